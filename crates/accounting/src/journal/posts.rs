//! Reading posts back, for a database that does not have them: piece by piece, so that an outage of
//! any length needs no more memory than one piece.

use std::sync::Arc;

use sluice_domain::record::NumberedRecord;

use crate::journal::Journal;
use crate::journal::disk::{Disk, Segment};
use crate::journal::error::JournalError;
use crate::journal::line::{Kind, Line, MAX_LINE, SEGMENT_HEADER, line_len};
use crate::journal::payload::decode_record;
use crate::journal::replay::scan;
use crate::journal::segment::SegmentInfo;

/// How much of a segment is read at once, at least and at most.
const BLOCK: (u64, u64) = (64 << 10, 1 << 20);
/// How many posts are handed out at once where nobody says.
const AT_ONCE: usize = 1_000;
/// What a post takes with the other lines of its request, about.
const POST: u64 = 1 << 10;

/// Where a reading of posts goes on.
#[derive(Debug, Clone, Copy)]
pub struct PostReader {
    next: i64,
    /// The segment, and where in it the line after the last post stands.
    place: Option<(u64, u64)>,
}

impl PostReader {
    /// Begins after a number. It comes from the database and may be lower than what was noted,
    /// because a database can go back.
    pub fn after(posted_no: i64) -> Self {
        Self {
            next: posted_no + 1,
            place: None,
        }
    }

    /// Returns the number of the next post.
    pub fn next_post_no(&self) -> i64 {
        self.next
    }
}

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
    for index in 0..scan.segments.len() {
        let mut lines =
            SegmentLines::open(disk, &scan.segments, index, SEGMENT_HEADER as u64, AT_ONCE)?;
        loop {
            let mut posts = Vec::new();
            lines.read_posts(&mut next, AT_ONCE, &mut posts)?;
            if posts.is_empty() {
                break;
            }
            each(posts);
        }
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

impl Journal {
    /// Returns the number of the last post; zero before the first.
    pub fn last_post_no(&self) -> i64 {
        self.writer.lock().next_post_no - 1
    }

    /// Returns the next posts in order, up to the number `until` and at most `most`: none when there
    /// are no further ones. Blocks.
    ///
    /// # Errors
    /// [`JournalError::PostsGone`] when the next one is not kept any more;
    /// [`JournalError::Corrupt`]; [`JournalError::Read`].
    pub fn read_posts(
        &self,
        reader: &mut PostReader,
        until: i64,
        most: usize,
    ) -> Result<Vec<NumberedRecord>, JournalError> {
        let _one = self.maintaining.lock();
        let (infos, last) = {
            let writer = self.writer.lock();
            let infos: Vec<SegmentInfo> = writer.infos.iter().cloned().collect();
            (infos, writer.next_post_no - 1)
        };
        let last = last.min(until);
        let wanted = usize::try_from(last - reader.next + 1)
            .unwrap_or(0)
            .min(most);
        let mut posts = Vec::with_capacity(wanted);
        if wanted == 0 {
            return Ok(posts);
        }
        let (first, mut offset) = begin(&infos, reader)?;
        for (index, info) in infos.iter().enumerate().skip(first) {
            let mut lines = SegmentLines::open(self.disk.as_ref(), &infos, index, offset, wanted)?;
            lines.read_posts(&mut reader.next, wanted, &mut posts)?;
            reader.place = Some((info.number(), lines.at));
            if posts.len() == wanted {
                return Ok(posts);
            }
            offset = SEGMENT_HEADER as u64;
        }
        let last = infos.last();
        Err(JournalError::Corrupt {
            segment: last.map_or(0, SegmentInfo::number),
            offset: last.map_or(0, |info| info.end),
        })
    }
}

/// Returns the index of the segment with the next post, and from where on it is looked for.
fn begin(infos: &[SegmentInfo], reader: &PostReader) -> Result<(usize, u64), JournalError> {
    if let Some((number, offset)) = reader.place
        && let Ok(index) = infos.binary_search_by_key(&number, SegmentInfo::number)
    {
        return Ok((index, offset));
    }
    // From the end: what was written again takes the place of what stands before it.
    infos
        .iter()
        .rposition(|info| info.first_post_no <= reader.next)
        .map(|index| (index, SEGMENT_HEADER as u64))
        .ok_or_else(|| JournalError::PostsGone {
            from: reader.next,
            oldest: infos.first().map_or(reader.next, |info| info.first_post_no),
        })
}

/// The lines of a segment from some line on, read block by block.
struct SegmentLines {
    segment: Arc<dyn Segment>,
    number: u64,
    salt: u32,
    /// Where the last line of the segment ends.
    end: u64,
    /// Where the next line stands.
    at: u64,
    block_len: u64,
    block: Vec<u8>,
    /// Where the block begins.
    block_at: u64,
    last_sequence: u64,
    /// From this sequence on, a later segment makes everything void.
    limit: u64,
}

impl SegmentLines {
    fn open(
        disk: &dyn Disk,
        infos: &[SegmentInfo],
        index: usize,
        at: u64,
        posts: usize,
    ) -> Result<Self, JournalError> {
        let info = &infos[index];
        let number = info.number();
        let (least, most) = BLOCK;
        let later = infos.iter().skip(index + 1);
        let limit = later.map(|later| later.first_sequence).min();
        let segment = disk
            .open(number)
            .map_err(|source| JournalError::read(number, 0, source))?;
        Ok(Self {
            segment,
            number,
            salt: info.header.salt(),
            end: info.end,
            at,
            block_len: (posts as u64).saturating_mul(POST).clamp(least, most),
            block: Vec::new(),
            block_at: at,
            last_sequence: 0,
            limit: limit.unwrap_or(u64::MAX),
        })
    }

    /// Reads posts from the number `next` on until there are `most`, or the segment has no more.
    fn read_posts(
        &mut self,
        next: &mut i64,
        most: usize,
        posts: &mut Vec<NumberedRecord>,
    ) -> Result<(), JournalError> {
        let (segment, limit) = (self.number, self.limit);
        while posts.len() < most
            && let Some(line) = self.next()?
            && line.sequence < limit
        {
            if line.kind != Kind::Post || line.post_no < *next {
                continue;
            }
            let offset = line.offset;
            let corrupt = || JournalError::Corrupt { segment, offset };
            if line.post_no > *next {
                return Err(corrupt());
            }
            let record = decode_record(line.payload).ok_or_else(corrupt)?;
            posts.push(NumberedRecord {
                post_no: *next,
                record: Box::new(record),
            });
            *next += 1;
        }
        Ok(())
    }

    /// Returns the next line; none at the end of the segment, and where a line was torn: whatever
    /// stands behind that was written again elsewhere.
    fn next(&mut self) -> Result<Option<Line<'_>>, JournalError> {
        let block_end = self.block_at + self.block.len() as u64;
        let is_whole = self.at + line_len(MAX_LINE) as u64 <= block_end;
        if !is_whole && block_end < self.end {
            self.read_block()?;
        }
        let start = usize::try_from(self.at - self.block_at).unwrap_or(usize::MAX);
        let bytes = self.block.get(start..).unwrap_or_default();
        let line = Line::parse(bytes, self.at, self.salt)
            .filter(|line| line.sequence > self.last_sequence);
        if let Some(line) = &line {
            self.at = line.end();
            self.last_sequence = line.sequence;
        }
        Ok(line)
    }

    fn read_block(&mut self) -> Result<(), JournalError> {
        let length = self.end.saturating_sub(self.at).min(self.block_len);
        self.block_at = self.at;
        self.block
            .resize(usize::try_from(length).unwrap_or_default(), 0);
        self.segment
            .read_at(&mut self.block, self.at)
            .map_err(|source| JournalError::read(self.number, self.at, source))
    }
}

#[cfg(test)]
impl Journal {
    /// All posts with numbers above `posted_no`, read in pieces.
    pub(crate) fn posts_after(&self, posted_no: i64) -> Result<Vec<NumberedRecord>, JournalError> {
        let mut reader = PostReader::after(posted_no);
        let mut posts = Vec::new();
        loop {
            let piece = self.read_posts(&mut reader, i64::MAX, 3)?;
            if piece.is_empty() {
                return Ok(posts);
            }
            posts.extend(piece);
        }
    }
}
