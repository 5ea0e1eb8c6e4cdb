//! Going on after a write or a sync that failed.

use std::sync::atomic::Ordering;

use crate::journal::Journal;
use crate::journal::balances::Balances;
use crate::journal::error::JournalError;
use crate::journal::line::{Found, Kind, Lines, SegmentHeader};
use crate::journal::payload::about;
use crate::journal::replay::read_bytes;
use crate::journal::segment::{Active, Rewrite, Rewritten, SegmentInfo};
use crate::journal::writer::{Writer, usable};

/// What has to be written again, as it was when the journal failed.
struct Lost {
    /// Segments with lines that were not synced.
    infos: Vec<SegmentInfo>,
    oldest: u64,
    number: u64,
    prepared: Vec<u64>,
    /// What the new segment has to have room for beside what is written again.
    room: u64,
}

impl Journal {
    /// Writes everything that was not synced into a new segment and goes on there. Does nothing
    /// when there is no failure. Blocks.
    ///
    /// What an [`append`](Self::append) that failed had in its turn is not written; that turn can be
    /// appended again.
    ///
    /// # Errors
    /// [`JournalError::NotRewritten`]: the process must end.
    pub fn recover_from_failure(&self) -> Result<(), JournalError> {
        let _maintaining = self.maintaining.lock();
        let _syncing = self.syncing.lock();
        // While it has failed, nobody changes anything: the lock need not be held meanwhile.
        let (lost, balances, next_post_no) = {
            let writer = self.writer.lock();
            if writer.failure.is_none() {
                return Ok(());
            }
            let lost = writer.lost(self.synced_sequence());
            (lost, writer.balances.clone(), writer.next_post_no)
        };
        let written = self.rewrite(&lost, &balances, next_post_no);
        let rewritten = written.map_err(|source| JournalError::NotRewritten {
            source: Box::new(source),
        })?;
        let mut writer = self.writer.lock();
        let credit = signed_room(rewritten.active.room()) - signed_room(lost.room);
        let last_sequence = rewritten.info.last_sequence;
        let number = rewritten.info.number();
        writer.next_segment = number + 1;
        writer.next_sequence = last_sequence + 1;
        writer.active = rewritten.active;
        writer.prepared.clear();
        writer.unsynced.clear();
        writer.infos.push_back(rewritten.info);
        let synced = self.synced_sequence();
        for info in &mut writer.infos {
            if info.number() != number {
                // What came after is void now.
                info.last_sequence = info.last_sequence.min(synced);
                info.closed_sequence = 0;
            }
        }
        writer.synced_posted_no = writer.balances.posted_no;
        writer.move_lines(synced, &rewritten.places);
        writer.failure = None;
        self.synced.store(last_sequence, Ordering::Release);
        self.space.give(credit);
        self.space.reopen();
        Ok(())
    }

    fn rewrite(
        &self,
        lost: &Lost,
        balances: &Balances,
        next_post_no: i64,
    ) -> Result<Rewritten, JournalError> {
        let synced = self.synced_sequence();
        let mut read = Vec::new();
        for info in &lost.infos {
            let number = info.number();
            let bytes = self
                .disk
                .open(number)
                .and_then(|segment| read_bytes(segment.as_ref(), info.end))
                .map_err(|source| JournalError::read(number, 0, source))?;
            read.push((info, bytes));
        }
        let mut tail = Vec::new();
        let mut next = synced + 1;
        let mut first_post_no = next_post_no;
        for (info, bytes) in &read {
            for found in Lines::new(bytes, info.header.salt()) {
                let line = match found {
                    Found::Line(line) if line.sequence <= synced => continue,
                    Found::Line(line) if line.sequence == next => line,
                    Found::Line(line) => return Err(corrupt(info, line.offset)),
                    Found::Hole { offset, .. } => return Err(corrupt(info, offset)),
                };
                next += 1;
                let about = about(line.kind, line.payload);
                let about = about.ok_or_else(|| corrupt(info, line.offset))?;
                if line.kind == Kind::Post {
                    first_post_no = first_post_no.min(line.post_no);
                }
                tail.push((about, line.payload));
            }
        }
        for number in &lost.prepared {
            // Their numbers are lower than that of the new one, so they may not be used any more.
            let _stays_unused = self.disk.remove(*number);
        }
        Rewrite {
            disk: self.disk.as_ref(),
            header: SegmentHeader {
                number: lost.number,
                instance_id: self.identity.instance_id,
                boot_id: self.identity.boot_id,
            },
            synced,
            balances,
            next_post_no: first_post_no,
            oldest: lost.oldest,
            start: None,
            min_size: self.options.segment_bytes,
            min_room: lost.room,
        }
        .write(tail.into_iter())
    }
}

impl Writer {
    fn lost(&self, synced: u64) -> Lost {
        let prepared: i64 = self
            .prepared
            .iter()
            .map(|next| usable(next, &self.balances))
            .sum();
        Lost {
            infos: self
                .infos
                .iter()
                .filter(|info| info.last_sequence > synced)
                .cloned()
                .collect(),
            oldest: self.oldest_needed(synced),
            number: self.next_segment,
            prepared: self.prepared.iter().map(Active::number).collect(),
            room: self.active.room() + u64::try_from(prepared).unwrap_or_default(),
        }
    }
}

fn corrupt(info: &SegmentInfo, offset: u64) -> JournalError {
    JournalError::Corrupt {
        segment: info.number(),
        offset,
    }
}

fn signed_room(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
