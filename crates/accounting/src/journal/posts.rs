//! Reading posts back, for a database that does not have them.

use sluice_domain::record::NumberedRecord;

use crate::journal::Journal;
use crate::journal::disk::Disk;
use crate::journal::error::JournalError;
use crate::journal::line::{Found, Kind, Lines};
use crate::journal::payload::decode_record;
use crate::journal::replay::{read_bytes, scan};
use crate::journal::segment::SegmentInfo;

/// Hands out all posts that the journal on `disk` still has, in order and some at a time, and changes
/// nothing. Blocks.
///
/// # Errors
/// As [`replay`](crate::journal::replay()).
pub fn kept_posts(
    disk: &dyn Disk,
    each: &mut dyn FnMut(Vec<NumberedRecord>),
) -> Result<(), JournalError> {
    let scan = scan(disk, None)?;
    let mut next = scan.segments.first().map_or(1, |info| info.first_post_no);
    for (index, info) in scan.segments.iter().enumerate() {
        let mut posts = Vec::new();
        let limit = limit_of(&scan.segments, index);
        read_posts(disk, info, limit, &mut next, &mut posts)?;
        each(posts);
    }
    let mut posts = Vec::new();
    for line in scan
        .tail
        .iter()
        .filter(|line| line.about.kind == Kind::Post)
    {
        let record = decode_record(&line.payload).ok_or(JournalError::Corrupt {
            segment: scan.highest,
            offset: 0,
        })?;
        if line.post_no >= next {
            posts.push(NumberedRecord {
                post_no: line.post_no,
                record: Box::new(record),
            });
        }
    }
    each(posts);
    Ok(())
}

/// Returns the first sequence that a later segment makes void.
fn limit_of(infos: &[SegmentInfo], index: usize) -> u64 {
    let later = infos
        .iter()
        .skip(index + 1)
        .map(|later| later.first_sequence);
    later.min().unwrap_or(u64::MAX)
}

impl Journal {
    /// Returns all posts with numbers above `posted_no`, in order. It comes from the database and
    /// may be lower than what was noted, because a database can go back. Blocks.
    ///
    /// # Errors
    /// [`JournalError::PostsGone`] when some of them are not kept any more;
    /// [`JournalError::Corrupt`]; [`JournalError::Read`].
    pub fn posts_after(&self, posted_no: i64) -> Result<Vec<NumberedRecord>, JournalError> {
        let _one = self.maintaining.lock();
        let (infos, next_post_no): (Vec<SegmentInfo>, i64) = {
            let writer = self.writer.lock();
            (writer.infos.iter().cloned().collect(), writer.next_post_no)
        };
        let from = posted_no + 1;
        let mut posts = Vec::new();
        if from >= next_post_no {
            return Ok(posts);
        }
        let first = infos.partition_point(|info| info.first_post_no <= from);
        let Some(first) = first.checked_sub(1) else {
            return Err(JournalError::PostsGone {
                from,
                oldest: infos.first().map_or(next_post_no, |i| i.first_post_no),
            });
        };
        let mut next = from;
        for (index, info) in infos.iter().enumerate().skip(first) {
            let limit = limit_of(&infos, index);
            read_posts(self.disk.as_ref(), info, limit, &mut next, &mut posts)?;
        }
        if next < next_post_no {
            let last = infos.last();
            return Err(JournalError::Corrupt {
                segment: last.map_or(0, SegmentInfo::number),
                offset: last.map_or(0, |info| info.end),
            });
        }
        posts.truncate(usize::try_from(next_post_no - from).unwrap_or(usize::MAX));
        Ok(posts)
    }
}

fn read_posts(
    disk: &dyn Disk,
    info: &SegmentInfo,
    limit: u64,
    next: &mut i64,
    posts: &mut Vec<NumberedRecord>,
) -> Result<(), JournalError> {
    let number = info.number();
    let bytes = disk
        .open(number)
        .and_then(|segment| read_bytes(segment.as_ref(), info.end))
        .map_err(|source| JournalError::read(number, 0, source))?;
    for found in Lines::new(&bytes, info.header.salt()) {
        let Found::Line(line) = found else { continue };
        if line.sequence >= limit {
            break;
        }
        if line.kind != Kind::Post || line.post_no < *next {
            continue;
        }
        let corrupt = JournalError::Corrupt {
            segment: number,
            offset: line.offset,
        };
        if line.post_no > *next {
            return Err(corrupt);
        }
        let record = decode_record(line.payload).ok_or(corrupt)?;
        posts.push(NumberedRecord {
            post_no: *next,
            record: Box::new(record),
        });
        *next += 1;
    }
    Ok(())
}
