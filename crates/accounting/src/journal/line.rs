//! Lines and segments as bytes: framing, checksums, and finding lines again after a hole.
//!
//! A segment begins with its header, twice, then come lines, each aligned to eight bytes:
//!
//! | at | bytes | |
//! | --- | --- | --- |
//! | 0 | 4 | CRC-32 of the payload with its padding, then of the rest of this header |
//! | 4 | 4 | length of the payload |
//! | 8 | 2 | magic |
//! | 10 | 1 | kind |
//! | 11 | 1 | zero |
//! | 12 | 4 | salt of the boot and the segment |
//! | 16 | 8 | sequence, dense over all segments |
//! | 24 | 8 | the last sequence that was synced when this line was written |
//! | 32 | 8 | post number, or zero |
//! | 40 | | payload, padded with zeros |

use std::ops::Range;

use crc32fast::Hasher;
use sluice_domain::id::{BootId, InstanceId, RequestId};
use uuid::Uuid;

use crate::journal::error::JournalError;

/// Bytes before the first line of a segment.
pub(super) const SEGMENT_HEADER: usize = 2 * ONE_HEADER;
const ONE_HEADER: usize = 64;
const SEGMENT_MAGIC: &[u8; 8] = b"SLUICEJL";
/// The format of headers, lines and payloads.
const VERSION: u32 = 1;

/// Bytes before the payload of a line.
pub(super) const LINE_HEADER: usize = 40;
const LINE_MAGIC: [u8; 2] = [0xd7, 0x4c];
const ALIGN: usize = 8;

/// The longest line. What a segment wastes at its end is less than this.
pub(super) const MAX_LINE: usize = 4096;

/// What a line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Start,
    Checkpoint,
    Open,
    Attempt,
    Progress,
    Post,
    Sent,
    Ack,
    WentBack,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::Start,
        Self::Checkpoint,
        Self::Open,
        Self::Attempt,
        Self::Progress,
        Self::Post,
        Self::Sent,
        Self::Ack,
        Self::WentBack,
    ];

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Start => 1,
            Self::Checkpoint => 2,
            Self::Open => 3,
            Self::Attempt => 4,
            Self::Progress => 5,
            Self::Post => 6,
            Self::Sent => 7,
            Self::Ack => 8,
            Self::WentBack => 9,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// Returns how many bytes a line with such a payload takes.
pub(super) const fn line_len(payload: usize) -> usize {
    LINE_HEADER + payload.next_multiple_of(ALIGN)
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    pub(super) instance_id: InstanceId,
    pub(super) boot_id: BootId,
}

impl SegmentHeader {
    /// Makes a line of another segment or boot invalid here.
    pub(super) fn salt(&self) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(self.boot_id.as_uuid().as_bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.finalize()
    }

    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut one = Vec::with_capacity(SEGMENT_HEADER);
        one.extend_from_slice(SEGMENT_MAGIC);
        one.extend_from_slice(&VERSION.to_le_bytes());
        one.extend_from_slice(&[0; 4]);
        one.extend_from_slice(&self.number.to_le_bytes());
        one.extend_from_slice(self.instance_id.as_uuid().as_bytes());
        one.extend_from_slice(self.boot_id.as_uuid().as_bytes());
        one.extend_from_slice(&[0; 4]);
        one.extend_from_slice(&crc32fast::hash(&one).to_le_bytes());
        let mut both = [0; SEGMENT_HEADER];
        both[..ONE_HEADER].copy_from_slice(&one);
        both[ONE_HEADER..].copy_from_slice(&one);
        both
    }

    /// Reads the header of the segment `number`; `None` when neither copy is valid: the segment was
    /// never put to use.
    ///
    /// # Errors
    /// [`JournalError::Version`].
    pub(super) fn decode(bytes: &[u8], number: u64) -> Result<Option<Self>, JournalError> {
        for one in bytes.chunks_exact(ONE_HEADER).take(2) {
            let is_whole = one.starts_with(SEGMENT_MAGIC)
                && crc32fast::hash(&one[..ONE_HEADER - 4]) == u32_at(one, ONE_HEADER - 4);
            if !is_whole || u64_at(one, 16) != number {
                continue;
            }
            let found = u32_at(one, 8);
            if found != VERSION {
                return Err(JournalError::Version {
                    segment: number,
                    found,
                });
            }
            return Ok(Some(Self {
                number,
                instance_id: InstanceId::from_uuid(uuid_at(one, 24)),
                boot_id: BootId::from_uuid(uuid_at(one, 40)),
            }));
        }
        Ok(None)
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn uuid_at(bytes: &[u8], at: usize) -> Uuid {
    Uuid::from_bytes(array_at(bytes, at))
}

/// Lines that are encoded but not yet numbered.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    lines: Vec<Framed>,
}

/// What a line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineAbout {
    pub(super) kind: Kind,
    /// The request; nil where there is none.
    pub(super) request_id: RequestId,
    /// A progress that carries reported usage.
    pub(super) is_report: bool,
}

impl LineAbout {
    pub(super) fn request(kind: Kind, request_id: RequestId) -> Self {
        Self {
            kind,
            request_id,
            is_report: false,
        }
    }

    pub(super) fn none(kind: Kind) -> Self {
        Self::request(kind, RequestId::from_uuid(Uuid::nil()))
    }
}

/// One line of a [`Batch`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Framed {
    pub(super) about: LineAbout,
    /// Where it begins in the batch.
    pub(super) start: usize,
    end: usize,
    payload_crc: u32,
}

/// What all lines of one write have in common, and the numbers that they take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp {
    pub(super) salt: u32,
    pub(super) synced: u64,
    pub(super) next_sequence: u64,
    pub(super) next_post_no: i64,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn lines(&self) -> &[Framed] {
        &self.lines
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.lines.clear();
    }

    /// Appends a line whose payload `put` writes; returns its length.
    pub(super) fn push(&mut self, about: LineAbout, put: impl FnOnce(&mut Vec<u8>)) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; LINE_HEADER]);
        put(&mut self.bytes);
        let payload = start + LINE_HEADER;
        let length = self.bytes.len() - payload;
        self.bytes
            .resize(payload + length.next_multiple_of(ALIGN), 0);
        let payload_crc = crc32fast::hash(&self.bytes[payload..]);
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.bytes[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
        self.bytes[start + 8..start + 10].copy_from_slice(&LINE_MAGIC);
        self.bytes[start + 10] = about.kind.code();
        let end = self.bytes.len();
        self.lines.push(Framed {
            about,
            start,
            end,
            payload_crc,
        });
        end - start
    }

    /// Returns the length of the last line.
    pub(super) fn last_len(&self) -> Option<usize> {
        self.lines.last().map(|line| line.end - line.start)
    }

    /// Takes the last line back.
    pub(super) fn pop(&mut self) {
        if let Some(last) = self.lines.pop() {
            self.bytes.truncate(last.start);
        }
    }

    /// Returns the end of the run of lines from `first` on that fits into `room` bytes.
    pub(super) fn fitting(&self, first: usize, room: u64) -> usize {
        let Some(start) = self.lines.get(first).map(|line| line.start) else {
            return first;
        };
        if self.bytes.len() as u64 - start as u64 <= room {
            return self.lines.len();
        }
        let fitting = self.lines[first..].partition_point(|line| (line.end - start) as u64 <= room);
        first + fitting
    }

    /// Numbers a run of lines and returns its bytes. May be repeated.
    pub(super) fn stamp(&mut self, run: Range<usize>, stamp: &mut Stamp) -> &[u8] {
        let lines = &self.lines[run];
        for line in lines {
            let header = &mut self.bytes[line.start..line.start + LINE_HEADER];
            let post_no = if line.about.kind == Kind::Post {
                stamp.next_post_no
            } else {
                0
            };
            header[12..16].copy_from_slice(&stamp.salt.to_le_bytes());
            header[16..24].copy_from_slice(&stamp.next_sequence.to_le_bytes());
            header[24..32].copy_from_slice(&stamp.synced.to_le_bytes());
            header[32..40].copy_from_slice(&post_no.to_le_bytes());
            let crc = line_crc(line.payload_crc, &header[4..]);
            header[..4].copy_from_slice(&crc.to_le_bytes());
            stamp.next_sequence += 1;
            stamp.next_post_no += i64::from(post_no != 0);
        }
        match (lines.first(), lines.last()) {
            (Some(first), Some(last)) => &self.bytes[first.start..last.end],
            _ => &[],
        }
    }
}

fn line_crc(payload_crc: u32, header: &[u8]) -> u32 {
    let mut hasher = Hasher::new_with_initial(payload_crc);
    hasher.update(header);
    hasher.finalize()
}

/// A valid line of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) kind: Kind,
    /// Where it begins in the segment.
    pub(super) offset: u64,
    pub(super) sequence: u64,
    pub(super) synced: u64,
    pub(super) post_no: i64,
    pub(super) payload: &'a [u8],
}

impl<'a> Line<'a> {
    /// Reads the line at the beginning of `bytes`, which stand at `offset`.
    pub(super) fn parse(bytes: &'a [u8], offset: u64, salt: u32) -> Option<Self> {
        let header = bytes.first_chunk::<LINE_HEADER>()?;
        if header[8..10] != LINE_MAGIC || u32_at(header, 12) != salt {
            return None;
        }
        let length = usize::try_from(u32_at(header, 4)).ok()?;
        if length > MAX_LINE {
            return None;
        }
        let padded = bytes.get(LINE_HEADER..line_len(length))?;
        if line_crc(crc32fast::hash(padded), &header[4..]) != u32_at(header, 0) {
            return None;
        }
        Some(Self {
            kind: Kind::from_code(header[10])?,
            offset,
            sequence: u64_at(header, 16),
            synced: u64_at(header, 24),
            post_no: i64::from_le_bytes(array_at(header, 32)),
            payload: &padded[..length],
        })
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + line_len(self.payload.len()) as u64
    }
}

/// What a scan comes upon.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found<'a> {
    Line(Line<'a>),
    /// Bytes that are no line, up to the next line or the end of the segment.
    Hole {
        offset: u64,
        /// Bytes up to the last one that is not zero.
        torn: u64,
    },
}

/// Finds the lines of a segment; sequences grow.
#[derive(Debug)]
pub(super) struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
    salt: u32,
    last_sequence: u64,
}

impl<'a> Lines<'a> {
    /// Scans a whole segment, or what was read of its beginning.
    pub(super) fn new(bytes: &'a [u8], salt: u32) -> Self {
        Self {
            bytes,
            at: SEGMENT_HEADER.min(bytes.len()),
            salt,
            last_sequence: 0,
        }
    }

    fn parse(&self, at: usize) -> Option<Line<'a>> {
        let line = Line::parse(self.bytes.get(at..)?, at as u64, self.salt)?;
        (line.sequence > self.last_sequence).then_some(line)
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        let start = self.at;
        if start >= self.bytes.len() {
            return None;
        }
        if let Some(line) = self.parse(start) {
            self.at += line_len(line.payload.len());
            self.last_sequence = line.sequence;
            return Some(Found::Line(line));
        }
        self.at = (start + ALIGN..self.bytes.len())
            .step_by(ALIGN)
            .find(|at| self.parse(*at).is_some())
            .unwrap_or(self.bytes.len());
        let torn = self.bytes[start..self.at]
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last as u64 + 1);
        Some(Found::Hole {
            offset: start as u64,
            torn,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            number: 3,
            instance_id: InstanceId::from_uuid(Uuid::from_u128(1)),
            boot_id: BootId::from_uuid(Uuid::from_u128(2)),
        }
    }

    fn segment(payloads: &[&[u8]]) -> Vec<u8> {
        let mut batch = Batch::default();
        for payload in payloads {
            batch.push(LineAbout::none(Kind::Ack), |out| {
                out.extend_from_slice(payload);
            });
        }
        let mut stamp = Stamp {
            salt: header().salt(),
            synced: 0,
            next_sequence: 1,
            next_post_no: 1,
        };
        let mut bytes = header().encode().to_vec();
        bytes.extend_from_slice(batch.stamp(0..payloads.len(), &mut stamp));
        bytes.resize(bytes.len() + 64, 0);
        bytes
    }

    fn payloads(bytes: &[u8]) -> Vec<Vec<u8>> {
        Lines::new(bytes, header().salt())
            .filter_map(|found| match found {
                Found::Line(line) => Some(line.payload.to_vec()),
                Found::Hole { .. } => None,
            })
            .collect()
    }

    #[test]
    fn every_flipped_bit_of_a_line_makes_exactly_that_line_invalid() {
        let bytes = segment(&[b"first", b"second line", b"third"]);
        let lengths = [line_len(5), line_len(11), line_len(5)];
        let mut start = SEGMENT_HEADER;
        for (index, length) in lengths.into_iter().enumerate() {
            for bit in 0..length * 8 {
                let mut flipped = bytes.clone();
                flipped[start + bit / 8] ^= 1 << (bit % 8);
                let mut expected = payloads(&bytes);
                expected.remove(index);
                assert_eq!(payloads(&flipped), expected, "bit {bit} of line {index}");
            }
            start += length;
        }
    }

    #[test]
    fn a_header_survives_the_loss_of_either_copy() {
        let bytes = header().encode();
        for bit in 0..SEGMENT_HEADER * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            let read = SegmentHeader::decode(&flipped, 3).unwrap();
            assert_eq!(read, Some(header()), "bit {bit}");
        }
        assert_eq!(
            SegmentHeader::decode(&bytes, 4).unwrap(),
            None,
            "a renamed file is not another segment"
        );
    }

    #[test]
    fn a_line_of_another_boot_or_segment_is_no_line() {
        let bytes = segment(&[b"first"]);
        let other = SegmentHeader {
            number: 4,
            ..header()
        };
        let found: Vec<_> = Lines::new(&bytes, other.salt()).collect();
        assert!(matches!(found[..], [Found::Hole { torn: 1.., .. }]));
    }

    #[test]
    fn codes_of_kinds_are_fixed() {
        let codes = Kind::ALL.map(Kind::code);
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(Kind::from_code(10), None);
    }
}
