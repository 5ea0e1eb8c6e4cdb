//! What stands behind the lock: numbers, the segment that is written to, and where open holds are.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use foldhash::fast::RandomState;
use sluice_domain::id::RequestId;

use crate::journal::balances::Balances;
use crate::journal::disk::Segment;
use crate::journal::error::JournalError;
use crate::journal::line::{Batch, Kind, MAX_LINE, SEGMENT_HEADER, Stamp};
use crate::journal::segment::{Active, Held, Place, SegmentInfo};
use crate::journal::turn::{Space, signed};

#[derive(Debug)]
pub(super) struct Writer {
    /// Why nothing can be written any more.
    pub(super) failure: Option<JournalError>,
    pub(super) next_sequence: u64,
    pub(super) next_post_no: i64,
    pub(super) next_segment: u64,
    pub(super) balances: Balances,
    pub(super) active: Active,
    /// Segments to go on with.
    pub(super) prepared: VecDeque<Active>,
    /// The segments with lines, in order; the last one is the active one.
    pub(super) infos: VecDeque<SegmentInfo>,
    /// Segments before the active one that have lines which were not synced.
    pub(super) unsynced: Vec<Unsynced>,
    /// Where the lines of each open hold are.
    pub(super) open: HashMap<RequestId, Held, RandomState>,
    /// The posts that the database has taken in according to synced lines.
    pub(super) synced_posted_no: i64,
    /// Space that is set aside for notes.
    pub(super) notes_room: usize,
}

/// A segment that is left behind and has to be synced.
#[derive(Debug, Clone)]
pub(super) struct Unsynced {
    pub(super) number: u64,
    pub(super) segment: Arc<dyn Segment>,
    pub(super) last_sequence: u64,
}

/// Lines of one batch that went to one segment.
#[derive(Debug)]
struct Run {
    lines: Range<usize>,
    segment: u64,
    /// Where its first line begins in the segment.
    start: u64,
    /// The numbers after its last line.
    after: Stamp,
    end: u64,
}

impl Writer {
    pub(super) fn check(&self) -> Result<(), JournalError> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    pub(super) fn info(&mut self, number: u64) -> Option<&mut SegmentInfo> {
        if self
            .infos
            .back()
            .is_some_and(|info| info.number() == number)
        {
            return self.infos.back_mut();
        }
        let index = self.infos.partition_point(|info| info.number() < number);
        self.infos
            .get_mut(index)
            .filter(|info| info.number() == number)
    }

    /// Returns whether a start needs a segment: an open hold or a post that the database lacks is
    /// in it, or would be after a power cut.
    pub(super) fn is_needed(&self, info: &SegmentInfo, synced: u64) -> bool {
        let posted_no = self.balances.posted_no.min(self.synced_posted_no);
        info.open > 0 || info.closed_sequence > synced || info.last_post_no > posted_no
    }

    /// Returns the oldest segment that a start needs.
    pub(super) fn oldest_needed(&self, synced: u64) -> u64 {
        self.infos
            .iter()
            .find(|info| self.is_needed(info, synced))
            .map_or(self.active.number(), SegmentInfo::number)
            .min(self.active.number())
    }

    /// Numbers the lines of a batch and writes them; returns the number of its first post.
    ///
    /// Nothing counts as written unless all was. After an error the batch may be given again.
    pub(super) fn write(
        &mut self,
        batch: &mut Batch,
        synced: u64,
        space: &Space,
    ) -> Result<i64, JournalError> {
        self.check()?;
        let first_post_no = self.next_post_no;
        let mut stamp = Stamp {
            salt: self.active.header.salt(),
            synced,
            next_sequence: self.next_sequence,
            next_post_no: self.next_post_no,
        };
        let fitting = batch.fitting(0, self.active.room());
        if fitting < batch.lines().len() {
            self.write_over_segments(batch, stamp, fitting, space)?;
            return Ok(first_post_no);
        }
        let bytes = batch.stamp(0..fitting, &mut stamp);
        let length = bytes.len() as u64;
        write_at(&self.active, bytes).map_err(|failure| self.fail(failure))?;
        self.active.offset += length;
        let run = Run {
            lines: 0..fitting,
            segment: self.active.number(),
            start: self.active.offset - length,
            after: stamp,
            end: self.active.offset,
        };
        self.commit(batch, &run);
        Ok(first_post_no)
    }

    /// Writes a batch of which only the first lines fit into the active segment.
    fn write_over_segments(
        &mut self,
        batch: &mut Batch,
        mut stamp: Stamp,
        fitting: usize,
        space: &Space,
    ) -> Result<(), JournalError> {
        let count = batch.lines().len();
        let checkpoint_len = self.balances.checkpoint_len() as u64;
        let mut at = fitting;
        let mut segments = 0;
        for next in &self.prepared {
            if at == count {
                break;
            }
            at = batch.fitting(at, next.room().saturating_sub(checkpoint_len));
            segments += 1;
        }
        if at < count {
            return Err(JournalError::Full);
        }
        let oldest = self.oldest_needed(stamp.synced);
        let mut active = self.active.clone();
        let mut runs = Vec::new();
        let mut infos = Vec::new();
        let mut credit = 0;
        let mut at = 0;
        for index in 0..=segments {
            let end = batch.fitting(at, active.room());
            let start = active.offset;
            let bytes = batch.stamp(at..end, &mut stamp);
            write_at(&active, bytes).map_err(|failure| self.fail(failure))?;
            active.offset += bytes.len() as u64;
            runs.push(Run {
                lines: at..end,
                segment: active.number(),
                start,
                after: stamp,
                end: active.offset,
            });
            at = end;
            if index == segments {
                break;
            }
            crate::crash::point("roll.begun");
            credit += signed(MAX_LINE) - i64::try_from(active.room()).unwrap_or(i64::MAX);
            active = self.prepared[index].clone();
            stamp.salt = active.header.salt();
            let mut first = Batch::default();
            self.balances
                .push_checkpoint(&mut first, stamp.next_post_no, oldest);
            let mut info = SegmentInfo::new(
                active.header,
                active.size,
                stamp.next_sequence,
                stamp.next_post_no,
            );
            let bytes = first.stamp(0..first.lines().len(), &mut stamp);
            write_at(&active, bytes).map_err(|failure| self.fail(failure))?;
            active.offset += bytes.len() as u64;
            credit += signed(self.balances.checkpoint_len()) - signed(bytes.len());
            info.ready_sequence = stamp.next_sequence - 1;
            info.last_sequence = info.ready_sequence;
            info.end = active.offset;
            infos.push(info);
            crate::crash::point("roll.checkpoint_written");
        }
        for (index, run) in runs.iter().enumerate() {
            if index > 0 {
                self.infos.push_back(infos[index - 1].clone());
            }
            self.commit(batch, run);
            if index < segments {
                self.unsynced.push(Unsynced {
                    number: run.segment,
                    segment: Arc::clone(&self.active.segment),
                    last_sequence: run.after.next_sequence - 1,
                });
                if let Some(next) = self.prepared.pop_front() {
                    self.active = next;
                }
            }
        }
        self.active = active;
        space.give(credit);
        Ok(())
    }

    /// Remembers what was written.
    fn commit(&mut self, batch: &Batch, run: &Run) {
        let last_sequence = run.after.next_sequence - 1;
        let lines = &batch.lines()[run.lines.clone()];
        let base = lines.first().map_or(0, |line| line.start);
        let mut opened = 0;
        let mut posted = false;
        let first_sequence = last_sequence + 1 - lines.len() as u64;
        for (sequence, line) in (first_sequence..).zip(lines) {
            let request_id = line.about.request_id;
            let place = Place {
                segment: run.segment,
                offset: run.start + (line.start - base) as u64,
                sequence,
            };
            match line.about.kind {
                Kind::Open => {
                    opened += 1;
                    if let Some(moved) = self.open.insert(request_id, Held::new(place)) {
                        self.close_in(moved.open.segment, last_sequence);
                    }
                }
                Kind::Attempt | Kind::Progress => {
                    if let Some(held) = self.open.get_mut(&request_id) {
                        held.add(line.about, place);
                    }
                }
                Kind::Post => {
                    posted = true;
                    match self.open.remove(&request_id) {
                        Some(held) if held.open.segment == run.segment => opened -= 1,
                        Some(held) => self.close_in(held.open.segment, last_sequence),
                        None => {}
                    }
                }
                Kind::Start | Kind::Checkpoint | Kind::Sent | Kind::Ack | Kind::WentBack => {}
            }
        }
        self.next_sequence = run.after.next_sequence;
        self.next_post_no = run.after.next_post_no;
        if let Some(info) = self.info(run.segment) {
            info.open = info.open.saturating_add_signed(opened);
            info.end = run.end;
            info.last_sequence = last_sequence;
            if posted {
                info.last_post_no = run.after.next_post_no - 1;
            }
        }
    }

    fn close_in(&mut self, segment: u64, sequence: u64) {
        if let Some(info) = self.info(segment) {
            info.open = info.open.saturating_sub(1);
            info.closed_sequence = sequence;
        }
    }

    fn fail(&mut self, failure: JournalError) -> JournalError {
        self.failure = Some(failure.clone());
        failure
    }
}

/// The bytes that a prepared segment adds to the budget.
pub(super) fn usable(active: &Active, balances: &Balances) -> i64 {
    i64::try_from(active.size).unwrap_or(i64::MAX)
        - signed(SEGMENT_HEADER)
        - signed(balances.checkpoint_len())
        - signed(MAX_LINE)
}

fn write_at(active: &Active, bytes: &[u8]) -> Result<(), JournalError> {
    if bytes.is_empty() {
        return Ok(());
    }
    active
        .segment
        .write_at(bytes, active.offset)
        .map_err(|source| JournalError::failed("write", active.number(), active.offset, source))
}
