//! Reading a journal: what was known when its process ended.
//!
//! Sequences are dense, and every line carries the last sequence that had been synced before it. So
//! a line that is missing at or before a synced sequence was on the disk once: corruption. What is
//! missing after it never got there: a torn tail.
//!
//! The first line of a segment makes all lines of earlier segments from its sequence on void: a new
//! start, and a recovery from a failure, write the tail that is not known to be synced again.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use foldhash::fast::RandomState;
use sluice_domain::id::{BootId, InstanceId, RequestId};
use sluice_domain::quota::Lease;
use sluice_domain::record::OpenRequest;

use crate::journal::balances::Balances;
use crate::journal::disk::{Disk, Segment};
use crate::journal::error::JournalError;
use crate::journal::line::{
    Found, Kind, Line, LineAbout, Lines, MAX_LINE, SEGMENT_HEADER, SegmentHeader, line_len,
};
use crate::journal::payload::{
    AttemptStart, Checkpoint, Progress, about, decode_attempt, decode_checkpoint, decode_note,
    decode_open, decode_progress, decode_start,
};
use crate::journal::segment::{Held, Place, SegmentInfo};

/// What a journal says.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// The instance; `None` when nothing was ever written.
    pub instance_id: Option<InstanceId>,
    /// The starts of it that the kept segments know, oldest first.
    pub boots: Vec<BootId>,
    /// The number of the last transaction that was answered.
    pub seq: i64,
    /// The number of a transaction that was sent after that and whose answer is not known.
    pub sent: Option<i64>,
    /// Posts up to this number were taken in by the database.
    pub posted_no: i64,
    /// The number of the next post.
    pub next_post_no: i64,
    /// What the instance may spend; counters with nothing are left out.
    pub leases: Vec<Lease>,
    /// Holds without a post, oldest first.
    pub holds: Vec<OpenHold>,
    /// Bytes that were no lines and were never synced.
    pub torn_bytes: u64,
}

/// A hold whose request nobody ended.
#[derive(Debug, Clone)]
pub struct OpenHold {
    /// What was fixed at admission.
    pub open: OpenRequest,
    /// The attempts that were begun, as far as they were written.
    pub attempts: Vec<AttemptStart>,
    /// How far the answer had come; `None` when no event of it was relayed.
    pub progress: Option<Progress>,
}

impl OpenHold {
    fn begin(&mut self, attempt: AttemptStart) {
        match self.attempts.iter_mut().find(|known| known.n == attempt.n) {
            Some(known) => *known = attempt,
            None => self.attempts.push(attempt),
        }
    }

    fn advance(&mut self, progress: Progress) {
        let reported_before = self.progress.and_then(|known| known.reported);
        self.progress = Some(Progress {
            reported: progress.reported.or(reported_before),
            ..progress
        });
    }
}

/// Reads the journal on `disk` and changes nothing.
///
/// # Errors
/// [`JournalError::Corrupt`], [`JournalError::Missing`], [`JournalError::Version`], or what the disk
/// says.
pub fn replay(disk: &dyn Disk) -> Result<Replay, JournalError> {
    let mut scan = scan(disk, None)?;
    let mut next_post_no = scan.next_post_no;
    for line in &scan.tail {
        next_post_no += i64::from(line.about.kind == Kind::Post);
    }
    scan.replay.next_post_no = next_post_no;
    Ok(scan.replay)
}

/// A line behind the last one that is known to be synced.
#[derive(Debug, Clone)]
pub(super) struct TailLine {
    pub(super) about: LineAbout,
    pub(super) payload: Vec<u8>,
    sequence: u64,
    end: u64,
    pub(super) post_no: i64,
    /// Which of the scan's segments it stands in.
    segment: usize,
}

/// All that a start needs to know.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Without `next_post_no`.
    pub(super) replay: Replay,
    pub(super) balances: Balances,
    /// The segments with lines, in order.
    pub(super) segments: Vec<SegmentInfo>,
    /// Segments that were prepared but hold nothing.
    pub(super) unused: Vec<u64>,
    /// The highest number of any segment.
    pub(super) highest: u64,
    /// The last sequence that is known to be synced.
    pub(super) synced: u64,
    /// The number of the first post after it.
    pub(super) next_post_no: i64,
    /// The lines after it.
    pub(super) tail: VecDeque<TailLine>,
    /// Where the holds' lines are; those of the tail are written again elsewhere.
    pub(super) places: Vec<(RequestId, Held)>,
}

/// The beginning of a segment.
#[derive(Debug)]
struct Head {
    header: SegmentHeader,
    size: u64,
    /// The sequence of its first line, when that is a valid checkpoint, and what it says.
    first: Option<(u64, Checkpoint)>,
}

/// Reads what a start needs of all segments.
///
/// # Errors
/// See [`replay`]; [`JournalError::Foreign`] when a segment is not of `expected`.
pub(super) fn scan(disk: &dyn Disk, expected: Option<InstanceId>) -> Result<Scan, JournalError> {
    let mut numbers = disk.list().map_err(|source| JournalError::List {
        source: Arc::new(source),
    })?;
    numbers.sort_unstable();
    let mut scan = Scan {
        highest: numbers.last().copied().unwrap_or_default(),
        next_post_no: 1,
        ..Scan::default()
    };
    let mut heads = Vec::new();
    for number in numbers {
        match read_head(disk, number)? {
            Ok(head) => heads.push(head),
            Err(NeverUsed { is_blank: true }) => scan.unused.push(number),
            Err(NeverUsed { is_blank: false }) => {}
        }
    }
    let oldest = oldest_needed(&heads);
    let limits = limits(&heads);
    let mut reading = Reading {
        scan,
        holds: HashMap::default(),
        expected: None,
        gap: None,
    };
    for (head, limit) in heads.iter().zip(limits) {
        reading.meet(&head.header, expected)?;
        if head.header.number < oldest {
            reading.pass_over(head, limit);
        } else {
            reading.read(disk, head, limit)?;
        }
    }
    reading.finish()
}

/// A segment whose header was not written to its end.
struct NeverUsed {
    /// Not a byte of its header was written.
    is_blank: bool,
}

fn read_head(disk: &dyn Disk, number: u64) -> Result<Result<Head, NeverUsed>, JournalError> {
    let fail = |source| JournalError::read(number, 0, source);
    let segment = disk.open(number).map_err(fail)?;
    let size = segment.size().map_err(fail)?;
    let length = size.min((SEGMENT_HEADER + line_len(MAX_LINE)) as u64);
    let bytes = read_bytes(segment.as_ref(), length).map_err(fail)?;
    let Some(header) = SegmentHeader::decode(&bytes, number)? else {
        let header = &bytes[..bytes.len().min(SEGMENT_HEADER)];
        return Ok(Err(NeverUsed {
            is_blank: header.iter().all(|byte| *byte == 0),
        }));
    };
    let first = bytes
        .get(SEGMENT_HEADER..)
        .and_then(|rest| Line::parse(rest, SEGMENT_HEADER as u64, header.salt()))
        .filter(|line| line.kind == Kind::Checkpoint)
        .and_then(|line| Some((line.sequence, decode_checkpoint(line.payload)?)));
    Ok(Ok(Head {
        header,
        size,
        first,
    }))
}

/// Reads the first `length` bytes of a segment.
pub(super) fn read_bytes(segment: &dyn Segment, length: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(length).map_err(|_too_large| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; length];
    segment.read_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Returns the oldest segment that the newest checkpoint still needed; it may be gone since.
fn oldest_needed(heads: &[Head]) -> u64 {
    let newest = heads.iter().rev().find_map(|head| head.first.as_ref());
    newest.map_or(0, |(_sequence, checkpoint)| checkpoint.oldest)
}

/// Returns for each segment the first sequence that a later segment makes void.
fn limits(heads: &[Head]) -> Vec<u64> {
    let mut limit = u64::MAX;
    let mut limits: Vec<u64> = heads
        .iter()
        .rev()
        .map(|head| {
            let own = limit;
            if let Some((first, _)) = &head.first {
                limit = limit.min(*first);
            }
            own
        })
        .collect();
    limits.reverse();
    limits
}

/// Sequences that are missing.
#[derive(Debug, Clone, Copy)]
struct Gap {
    from: u64,
    segment: u64,
    offset: u64,
}

#[derive(Debug)]
struct Replayed {
    hold: OpenHold,
    held: Held,
    sequence: u64,
}

/// A scan under way.
#[derive(Debug)]
struct Reading {
    scan: Scan,
    holds: HashMap<RequestId, Replayed, RandomState>,
    /// The next sequence, and where its line should stand; `None` before the first line.
    expected: Option<Gap>,
    /// The first gap.
    gap: Option<Gap>,
}

impl Reading {
    fn meet(
        &mut self,
        header: &SegmentHeader,
        expected: Option<InstanceId>,
    ) -> Result<(), JournalError> {
        let replay = &mut self.scan.replay;
        let expected = expected.or(replay.instance_id);
        if let Some(expected) = expected.filter(|expected| *expected != header.instance_id) {
            return Err(JournalError::Foreign {
                segment: header.number,
                found: header.instance_id,
                expected,
            });
        }
        replay.instance_id = Some(header.instance_id);
        if !replay.boots.contains(&header.boot_id) {
            replay.boots.push(header.boot_id);
        }
        Ok(())
    }

    fn begin_segment(&mut self, info: SegmentInfo) {
        if let Some(before) = self.scan.segments.last_mut() {
            before.last_post_no = before.last_post_no.max(info.first_post_no - 1);
        }
        self.scan.segments.push(info);
    }

    /// Takes up a segment from which nothing but posts may be asked for.
    fn pass_over(&mut self, head: &Head, limit: u64) {
        match &head.first {
            Some((sequence, checkpoint)) if *sequence < limit => {
                let first_post_no = checkpoint.next_post_no;
                self.begin_segment(SegmentInfo {
                    end: head.size,
                    last_sequence: *sequence,
                    ..SegmentInfo::new(head.header, head.size, *sequence, first_post_no)
                });
            }
            Some(_void) => self.scan.unused.push(head.header.number),
            // It is damaged, but not needed; whoever asks for its posts is told.
            None => {}
        }
    }

    fn read(&mut self, disk: &dyn Disk, head: &Head, limit: u64) -> Result<(), JournalError> {
        let number = head.header.number;
        let fail = |source| JournalError::read(number, 0, source);
        let segment = disk.open(number).map_err(fail)?;
        let bytes = read_bytes(segment.as_ref(), head.size).map_err(fail)?;
        let mut hole: Option<u64> = None;
        let mut torn_here = 0;
        let mut is_empty = true;
        for found in Lines::new(&bytes, head.header.salt()) {
            let line = match found {
                Found::Line(line) => line,
                Found::Hole { offset, torn } => {
                    hole = hole.or(Some(offset));
                    torn_here = torn;
                    continue;
                }
            };
            if line.sequence >= limit {
                // Written again in a later segment.
                torn_here = 0;
                break;
            }
            if self.expected.is_some_and(|gap| line.sequence < gap.from) {
                continue;
            }
            self.scan.replay.torn_bytes += std::mem::take(&mut torn_here);
            let is_very_first = self.expected.is_none();
            self.check_sequence(&line, head, hole.take());
            if self.gap.is_some() {
                // What stands behind a lost line may rest on it: a hold on room that a lost post
                // made free. It only tells whether the lost line had been synced.
                self.settle(line.synced);
                continue;
            }
            if std::mem::take(&mut is_empty) {
                let first_post_no = match &head.first {
                    Some((_sequence, checkpoint)) => checkpoint.next_post_no,
                    None => self.scan.next_post_no,
                };
                if is_very_first {
                    self.scan.next_post_no = first_post_no;
                }
                self.begin_segment(SegmentInfo::new(
                    head.header,
                    head.size,
                    line.sequence,
                    first_post_no,
                ));
            }
            let about = self.apply(&line, number).ok_or(JournalError::Corrupt {
                segment: number,
                offset: line.offset,
            })?;
            self.scan.tail.push_back(TailLine {
                about,
                payload: line.payload.to_vec(),
                sequence: line.sequence,
                end: line.end(),
                post_no: line.post_no,
                segment: self.scan.segments.len() - 1,
            });
            self.settle(line.synced);
        }
        if limit == u64::MAX {
            self.scan.replay.torn_bytes += torn_here;
        }
        if is_empty {
            self.scan.unused.push(number);
        }
        Ok(())
    }

    /// Notices missing lines before this one.
    fn check_sequence(&mut self, line: &Line<'_>, head: &Head, hole: Option<u64>) {
        let segment = head.header.number;
        let is_first = line.offset == SEGMENT_HEADER as u64;
        let here = Gap {
            from: line.sequence,
            segment,
            offset: hole.unwrap_or(line.offset),
        };
        let gap = match self.expected {
            Some(missing) if missing.from == line.sequence => None,
            Some(missing) if is_first => Some(missing),
            Some(missing) => Some(Gap {
                from: missing.from,
                ..here
            }),
            None if is_first && line.kind == Kind::Checkpoint => None,
            None => Some(Gap {
                from: line.sequence.saturating_sub(1),
                ..here
            }),
        };
        self.gap = self.gap.or(gap);
        self.expected = Some(Gap {
            from: line.sequence + 1,
            segment,
            offset: line.end(),
        });
    }

    /// Takes in what a line says.
    fn apply(&mut self, line: &Line<'_>, segment: u64) -> Option<LineAbout> {
        let about = about(line.kind, line.payload)?;
        let place = Place {
            segment,
            offset: line.offset,
            sequence: line.sequence,
        };
        let balances = &mut self.scan.balances;
        match line.kind {
            Kind::Start => {
                let start = decode_start(line.payload)?;
                let boots = &mut self.scan.replay.boots;
                if let Some(previous) = start.previous_boot
                    && !boots.contains(&previous)
                {
                    boots.insert(0, previous);
                }
            }
            Kind::Checkpoint => balances.apply_checkpoint(decode_checkpoint(line.payload)?),
            Kind::Sent | Kind::Ack | Kind::WentBack => {
                balances.apply(line.kind, &decode_note(line.payload)?);
            }
            Kind::Open => {
                let open = decode_open(line.payload)?;
                // A later copy of its lines may be torn; where the first ones are, all of them are.
                let known = self.holds.entry(open.request_id);
                known.or_insert_with(|| Replayed {
                    hold: OpenHold {
                        open,
                        attempts: Vec::new(),
                        progress: None,
                    },
                    held: Held::new(place),
                    sequence: line.sequence,
                });
            }
            Kind::Attempt => {
                let attempt = decode_attempt(line.payload)?;
                if let Some(known) = self.holds.get_mut(&attempt.request_id) {
                    known.hold.begin(attempt);
                    known.held.add(about, place);
                }
            }
            Kind::Progress => {
                let progress = decode_progress(line.payload)?;
                if let Some(known) = self.holds.get_mut(&progress.request_id) {
                    known.hold.advance(progress);
                    known.held.add(about, place);
                }
            }
            Kind::Post => {
                self.holds.remove(&about.request_id);
            }
        }
        Some(about)
    }

    /// Lines up to `synced` are known to be on the disk.
    fn settle(&mut self, synced: u64) {
        let scan = &mut self.scan;
        scan.synced = scan.synced.max(synced);
        while let Some(line) = scan.tail.pop_front_if(|line| line.sequence <= scan.synced) {
            let info = &mut scan.segments[line.segment];
            info.end = line.end;
            info.last_sequence = line.sequence;
            if line.about.kind == Kind::Post {
                info.last_post_no = line.post_no;
                scan.next_post_no = line.post_no + 1;
            }
        }
    }

    fn finish(mut self) -> Result<Scan, JournalError> {
        let mut scan = self.scan;
        if let Some(gap) = self.gap
            && gap.from <= scan.synced
        {
            return Err(JournalError::Corrupt {
                segment: gap.segment,
                offset: gap.offset,
            });
        }
        // What lies behind the synced lines is written again, or read through the tail.
        scan.segments.retain(|info| {
            let is_kept = info.last_sequence > 0;
            if !is_kept {
                scan.unused.push(info.number());
            }
            is_kept
        });
        let mut holds: Vec<Replayed> = self.holds.drain().map(|(_id, known)| known).collect();
        holds.sort_unstable_by_key(|known| known.sequence);
        for known in holds {
            let request_id = known.hold.open.request_id;
            if known.sequence <= scan.synced {
                scan.places.push((request_id, known.held));
            }
            scan.replay.holds.push(known.hold);
        }
        scan.replay.seq = scan.balances.seq;
        scan.replay.sent = scan.balances.sent;
        scan.replay.posted_no = scan.balances.posted_no;
        scan.replay.leases = scan.balances.to_leases();
        Ok(scan)
    }
}
