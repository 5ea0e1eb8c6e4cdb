//! Segments ahead, and segments behind.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::Arc;

use sluice_domain::id::RequestId;
use sluice_domain::time::UnixMillis;

use crate::journal::disk::Segment;
use crate::journal::error::JournalError;
use crate::journal::line::{Batch, Kind, Line, LineAbout, MAX_LINE, SegmentHeader, line_len};
use crate::journal::segment::{Active, Held, Place, SegmentInfo};
use crate::journal::turn::signed;
use crate::journal::writer::{Writer, usable};
use crate::journal::{Journal, notes_room};

/// What [`Journal::maintain`] did and found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Maintained {
    /// Segments that were made.
    pub prepared: u32,
    /// Segments that were removed.
    pub removed: u32,
    /// The disk had no space for a further segment: admission may stop.
    pub disk_is_full: bool,
    /// What the database has not taken in fills all the space that there may be: admission stops.
    pub is_at_bound: bool,
    /// What all segments take now, in bytes.
    pub bytes: u64,
}

/// When a segment that nothing needs may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// When it was kept long enough, or all together are too large.
    None,
    /// Now: there is no space for the next one.
    DiskFull,
}

impl Journal {
    /// Prepares segments ahead and removes old ones. Blocks; to be called often, and when
    /// [`wants_maintenance`](Self::wants_maintenance) says so.
    ///
    /// A segment is removed when no open hold and no post that the database lacks is in it or before
    /// it, and then after the time that was set, or earlier when all segments are too large or the
    /// disk is full.
    ///
    /// # Errors
    /// [`JournalError::Create`], [`JournalError::Remove`] and [`JournalError::Read`]: nothing is lost
    /// and a later call tries again. [`JournalError::Failed`].
    pub fn maintain(&self, now: UnixMillis) -> Result<Maintained, JournalError> {
        let _one = self.maintaining.lock();
        self.writer.lock().check()?;
        let mut done = Maintained {
            removed: self.remove_settled(now, Haste::None)?,
            ..Maintained::default()
        };
        done.is_at_bound = self.is_waiting_part_too_large();
        self.space.set_at_bound(done.is_at_bound);
        while self.wants_segment(done.is_at_bound) {
            match self.prepare() {
                Ok(()) => done.prepared += 1,
                Err(JournalError::Create { source, .. })
                    if source.kind() == io::ErrorKind::StorageFull =>
                {
                    let removed = self.remove_settled(now, Haste::DiskFull)?;
                    done.removed += removed;
                    if removed == 0 {
                        done.disk_is_full = true;
                        break;
                    }
                }
                Err(other) => return Err(other),
            }
        }
        if self.has_no_room_for_another(self.bytes()) {
            self.carry_forward()?;
        }
        done.bytes = self.bytes();
        Ok(done)
    }

    fn bytes(&self) -> u64 {
        self.writer.lock().bytes()
    }

    fn has_no_room_for_another(&self, bytes: u64) -> bool {
        bytes.saturating_add(self.options.segment_bytes) > self.options.max_bytes
    }

    fn is_waiting_part_too_large(&self) -> bool {
        let synced = self.synced_sequence();
        let waiting = self.writer.lock().waiting_bytes(synced);
        self.has_no_room_for_another(waiting)
    }

    /// Returns whether a segment is to be prepared. At the bound there is only what notes need: they
    /// are what takes the database further.
    fn wants_segment(&self, is_at_bound: bool) -> bool {
        if is_at_bound {
            self.space.free() < signed(notes_room(self.options))
        } else {
            self.wants_maintenance()
        }
    }

    fn prepare(&self) -> Result<(), JournalError> {
        let number = self.writer.lock().next_segment;
        let header = SegmentHeader {
            number,
            instance_id: self.identity.instance_id,
            boot_id: self.identity.boot_id,
        };
        let next = Active::prepare(self.disk.as_ref(), header, self.options.segment_bytes)?;
        let mut writer = self.writer.lock();
        writer.next_segment = number + 1;
        self.space.give(usable(&next, &writer.balances));
        writer.prepared.push_back(next);
        self.refill_notes(&mut writer);
        Ok(())
    }

    /// Removes what is not needed, from the oldest on; in haste one segment at a time.
    fn remove_settled(&self, now: UnixMillis, haste: Haste) -> Result<u32, JournalError> {
        let synced = self.synced_sequence();
        let keep = i64::try_from(self.options.keep.as_millis()).unwrap_or(i64::MAX);
        let mut removed = 0;
        loop {
            let number = {
                let mut writer = self.writer.lock();
                writer.mark_settled(synced, now);
                let is_too_large = self.has_no_room_for_another(writer.bytes());
                let oldest = writer.infos.front().filter(|info| {
                    let is_old = |since: UnixMillis| now.since(since) >= keep;
                    info.settled_at.is_some_and(|since| {
                        haste == Haste::DiskFull || is_too_large || is_old(since)
                    })
                });
                let Some(number) = oldest.map(SegmentInfo::number) else {
                    return Ok(removed);
                };
                writer.infos.pop_front();
                number
            };
            if let Err(source) = self.disk.remove(number)
                && source.kind() != io::ErrorKind::NotFound
            {
                return Err(JournalError::Remove {
                    segment: number,
                    source: source.into(),
                });
            }
            removed += 1;
            if haste == Haste::DiskFull {
                return Ok(removed);
            }
        }
    }

    /// Writes the lines of holds that alone keep the oldest segment once more, so that long requests
    /// do not pin everything that came after them.
    fn carry_forward(&self) -> Result<(), JournalError> {
        let synced = self.synced_sequence();
        let pinned = self.writer.lock().pinned_oldest(synced);
        let mut open: HashMap<u64, (Arc<dyn Segment>, SegmentHeader)> = HashMap::new();
        for (request_id, held) in pinned {
            let opened = LineAbout::request(Kind::Open, request_id);
            let mut batch = Batch::default();
            for (about, place) in [(opened, held.open)].into_iter().chain(held.others.clone()) {
                let fail = |source| JournalError::read(place.segment, place.offset, source);
                let corrupt = JournalError::Corrupt {
                    segment: place.segment,
                    offset: place.offset,
                };
                if let Entry::Vacant(vacant) = open.entry(place.segment) {
                    let header = self.writer.lock().info(place.segment).map(|i| i.header);
                    let segment = self.disk.open(place.segment).map_err(fail)?;
                    vacant.insert((segment, header.ok_or_else(|| corrupt.clone())?));
                }
                let Some((segment, header)) = open.get(&place.segment) else {
                    continue;
                };
                let bytes = read_line(segment.as_ref(), place.offset).map_err(fail)?;
                let line = Line::parse(&bytes, place.offset, header.salt()).ok_or(corrupt)?;
                batch.push(about, |out| out.extend_from_slice(line.payload));
            }
            let mut writer = self.writer.lock();
            // Meanwhile it may have ended, or have come further.
            let is_same = writer
                .open
                .get(&request_id)
                .is_some_and(|now| now.open == held.open && now.others == held.others);
            if is_same && self.space.take(batch.len()) {
                self.write(&mut writer, &mut batch)?;
            }
        }
        Ok(())
    }
}

/// Reads a line and what comes after it.
fn read_line(segment: &dyn Segment, offset: u64) -> io::Result<Vec<u8>> {
    let length = (segment.size()? - offset).min(line_len(MAX_LINE) as u64);
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    segment.read_at(&mut bytes, offset)?;
    Ok(bytes)
}

impl Writer {
    /// Returns what all segments take.
    pub(super) fn bytes(&self) -> u64 {
        let used: u64 = self.infos.iter().map(|info| info.size).sum();
        let prepared: u64 = self.prepared.iter().map(|next| next.size).sum();
        used + prepared
    }

    /// Returns what the segments take that have something which the database has not taken in, and
    /// those to go on with.
    fn waiting_bytes(&self, synced: u64) -> u64 {
        let waiting = (0..self.infos.len()).filter(|index| !self.is_posted(*index, synced));
        let used: u64 = waiting.map(|index| self.infos[index].size).sum();
        let prepared: u64 = self.prepared.iter().map(|next| next.size).sum();
        used + prepared
    }

    /// Returns whether a segment is needed for nothing but its open holds.
    fn is_posted(&self, index: usize, synced: u64) -> bool {
        let (Some(info), Some(next)) = (self.infos.get(index), self.infos.get(index + 1)) else {
            // The active one.
            return false;
        };
        let posted_no = self.balances.posted_no.min(self.synced_posted_no);
        info.last_post_no <= posted_no
            && info.last_sequence <= synced
            && next.ready_sequence <= synced
    }

    fn mark_settled(&mut self, synced: u64, now: UnixMillis) {
        for index in 0..self.infos.len() {
            let is_settled =
                self.is_posted(index, synced) && !self.is_needed(&self.infos[index], synced);
            let settled_at = &mut self.infos[index].settled_at;
            if is_settled {
                settled_at.get_or_insert(now);
            } else {
                *settled_at = None;
            }
        }
    }

    /// Returns the open holds of the oldest segment, when these alone keep it.
    fn pinned_oldest(&self, synced: u64) -> Vec<(RequestId, Held)> {
        let Some(info) = self.infos.front() else {
            return Vec::new();
        };
        if info.open == 0 || !self.is_posted(0, synced) {
            return Vec::new();
        }
        self.open
            .iter()
            .filter(|(_, held)| held.open.segment == info.number())
            .map(|(request_id, held)| (*request_id, held.clone()))
            .collect()
    }

    /// Remembers that all lines after `synced` were written again elsewhere.
    pub(super) fn move_lines(&mut self, synced: u64, places: &[(LineAbout, Place)]) {
        for held in self.open.values_mut() {
            held.others.retain(|(_, place)| place.sequence <= synced);
        }
        for (about, place) in places {
            let request_id = about.request_id;
            match about.kind {
                Kind::Open => {
                    let known = self.open.get(&request_id);
                    if known.is_none_or(|held| held.open.sequence > synced) {
                        self.open.insert(request_id, Held::new(*place));
                    }
                }
                Kind::Attempt | Kind::Progress => {
                    if let Some(held) = self.open.get_mut(&request_id) {
                        held.add(*about, *place);
                    }
                }
                Kind::Post => {
                    self.open.remove(&request_id);
                }
                Kind::Start | Kind::Checkpoint | Kind::Sent | Kind::Ack | Kind::WentBack => {}
            }
        }
        self.count_open();
    }

    /// Counts the open holds of each segment anew.
    fn count_open(&mut self) {
        for info in &mut self.infos {
            info.open = 0;
        }
        let segments: Vec<u64> = self.open.values().map(|held| held.open.segment).collect();
        for number in segments {
            if let Some(info) = self.info(number) {
                info.open += 1;
            }
        }
    }
}
