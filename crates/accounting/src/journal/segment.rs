//! What is remembered of a segment, and segments that are written as a whole.

use std::io;
use std::sync::Arc;

use sluice_domain::time::UnixMillis;
use smallvec::SmallVec;

use crate::journal::balances::Balances;
use crate::journal::disk::{Disk, Segment};
use crate::journal::error::JournalError;
use crate::journal::line::{Batch, Kind, LineAbout, SEGMENT_HEADER, SegmentHeader, Stamp};
use crate::journal::payload::{Start, put_start};

/// A segment that holds lines.
#[derive(Debug, Clone)]
pub(super) struct SegmentInfo {
    pub(super) header: SegmentHeader,
    pub(super) size: u64,
    pub(super) first_sequence: u64,
    /// The sequence of the last line of its checkpoint.
    pub(super) ready_sequence: u64,
    pub(super) last_sequence: u64,
    /// Where its last line ends.
    pub(super) end: u64,
    /// The number that its first post has or would have.
    pub(super) first_post_no: i64,
    /// The number of its last post; less than the first when it has none.
    pub(super) last_post_no: i64,
    /// How many open holds have their open here.
    pub(super) open: usize,
    /// The sequence of the last line that closed, or moved, a hold whose open is here.
    pub(super) closed_sequence: u64,
    /// Since when nothing in it is needed, but for a database that goes back.
    pub(super) settled_at: Option<UnixMillis>,
}

impl SegmentInfo {
    pub(super) fn new(
        header: SegmentHeader,
        size: u64,
        first_sequence: u64,
        first_post_no: i64,
    ) -> Self {
        Self {
            header,
            size,
            first_sequence,
            ready_sequence: first_sequence,
            last_sequence: 0,
            end: SEGMENT_HEADER as u64,
            first_post_no,
            last_post_no: first_post_no - 1,
            open: 0,
            closed_sequence: 0,
            settled_at: None,
        }
    }

    pub(super) fn number(&self) -> u64 {
        self.header.number
    }
}

/// The segment that lines are appended to, or one that waits for its turn.
#[derive(Debug, Clone)]
pub(super) struct Active {
    pub(super) segment: Arc<dyn Segment>,
    pub(super) header: SegmentHeader,
    pub(super) size: u64,
    pub(super) offset: u64,
}

impl Active {
    /// Makes an empty segment; its header is on the disk.
    pub(super) fn prepare(
        disk: &dyn Disk,
        header: SegmentHeader,
        size: u64,
    ) -> Result<Self, JournalError> {
        let fail = |source| JournalError::create(header.number, source);
        let segment = disk.create(header.number, size).map_err(fail)?;
        let active = Self {
            segment,
            header,
            size,
            offset: SEGMENT_HEADER as u64,
        };
        if let Err(source) = active.write_header() {
            let _cause_is_told = disk.remove(header.number);
            return Err(fail(source));
        }
        Ok(active)
    }

    fn write_header(&self) -> io::Result<()> {
        self.segment.write_at(&self.header.encode(), 0)?;
        self.segment.sync()
    }

    pub(super) fn number(&self) -> u64 {
        self.header.number
    }

    pub(super) fn room(&self) -> u64 {
        self.size.saturating_sub(self.offset)
    }
}

/// Where a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) sequence: u64,
}

/// The lines of an open hold that a replay needs.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) open: Place,
    /// Its attempts, the last progress, and the last one with reported usage.
    pub(super) others: SmallVec<[(LineAbout, Place); 2]>,
}

impl Held {
    pub(super) fn new(open: Place) -> Self {
        Self {
            open,
            others: SmallVec::new(),
        }
    }

    /// Takes a further line up. A progress takes the place of an earlier one, but not of the last
    /// one with reported usage unless it has some itself.
    pub(super) fn add(&mut self, about: LineAbout, place: Place) {
        if about.kind == Kind::Progress {
            self.others.retain(|(known, _)| {
                known.kind != Kind::Progress || (known.is_report && !about.is_report)
            });
        }
        self.others.push((about, place));
    }
}

/// What a segment begins with that takes the place of everything after a synced sequence.
#[derive(Debug)]
pub(super) struct Rewrite<'a> {
    pub(super) disk: &'a dyn Disk,
    pub(super) header: SegmentHeader,
    /// The last sequence that stays where it is.
    pub(super) synced: u64,
    pub(super) balances: &'a Balances,
    /// The number of the first post after `synced`.
    pub(super) next_post_no: i64,
    pub(super) oldest: u64,
    pub(super) start: Option<Start>,
    /// The size is at least this.
    pub(super) min_size: u64,
    /// And leaves at least this.
    pub(super) min_room: u64,
}

/// A segment that was written by [`Rewrite`].
#[derive(Debug)]
pub(super) struct Rewritten {
    pub(super) active: Active,
    pub(super) info: SegmentInfo,
    /// Where each line of the tail stands now, in its order.
    pub(super) places: Vec<(LineAbout, Place)>,
    pub(super) next_post_no: i64,
}

impl Rewrite<'_> {
    /// Writes the segment and syncs it; only then its header, which puts it to use. Stopped half-way
    /// it is no segment.
    pub(super) fn write<'p>(
        &self,
        tail: impl Iterator<Item = (LineAbout, &'p [u8])>,
    ) -> Result<Rewritten, JournalError> {
        let mut batch = Batch::default();
        self.balances
            .push_checkpoint(&mut batch, self.next_post_no, self.oldest);
        let first_sequence = self.synced + 1;
        let ready_sequence = self.synced + batch.lines().len() as u64;
        let mut places = Vec::new();
        for (about, payload) in tail {
            if about.kind != Kind::Checkpoint {
                let place = Place {
                    segment: self.header.number,
                    offset: (SEGMENT_HEADER + batch.len()) as u64,
                    sequence: first_sequence + batch.lines().len() as u64,
                };
                places.push((about, place));
                batch.push(about, |out| out.extend_from_slice(payload));
            }
        }
        if let Some(start) = &self.start {
            batch.push(LineAbout::none(Kind::Start), |out| put_start(out, start));
        }
        let mut stamp = Stamp {
            salt: self.header.salt(),
            synced: self.synced,
            next_sequence: first_sequence,
            next_post_no: self.next_post_no,
        };
        let bytes = batch.stamp(0..batch.lines().len(), &mut stamp);
        let end = SEGMENT_HEADER as u64 + bytes.len() as u64;
        let size = self.min_size.max(end + self.min_room);
        let number = self.header.number;
        let fail = |source| JournalError::create(number, source);
        let segment = self.disk.create(number, size).map_err(fail)?;
        let active = Active {
            segment,
            header: self.header,
            size,
            offset: end,
        };
        active
            .segment
            .write_at(bytes, SEGMENT_HEADER as u64)
            .and_then(|()| active.segment.sync())
            .and_then(|()| active.write_header())
            .map_err(fail)?;
        let info = SegmentInfo {
            ready_sequence,
            last_sequence: stamp.next_sequence - 1,
            end,
            last_post_no: stamp.next_post_no - 1,
            ..SegmentInfo::new(self.header, size, first_sequence, self.next_post_no)
        };
        Ok(Rewritten {
            active,
            info,
            places,
            next_post_no: stamp.next_post_no,
        })
    }
}
