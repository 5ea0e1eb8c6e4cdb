//! Server-sent events: whole events out of any sequence of frames.
//!
//! # Source
//! WHATWG HTML, section "Server-sent events".

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use memchr::{memchr, memchr2, memrchr2};

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An event is larger than accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is larger than {limit_bytes} bytes")]
pub struct EventTooLarge {
    /// The limit.
    pub limit_bytes: usize,
}

/// Cuts a sequence of frames where events end.
#[derive(Debug)]
pub struct Splitter {
    max_event_bytes: usize,
    /// The beginning of an event whose end has not arrived.
    held: BytesMut,
    /// Whether a byte order mark may still come.
    is_at_start: bool,
    /// Whether the last event ended with a carriage return, to which a line feed may belong.
    ended_with_return: bool,
    /// Whether a too large event was seen; nothing is read beyond it.
    is_broken: bool,
}

impl Splitter {
    /// Returns a splitter for a new stream.
    ///
    /// # Units
    /// `max_event_bytes` counts all lines of an event and their ends.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            max_event_bytes,
            held: BytesMut::new(),
            is_at_start: true,
            ended_with_return: false,
            is_broken: false,
        }
    }

    /// Takes a frame and returns all events that are complete by now, possibly none.
    ///
    /// Nothing is copied when the frame holds whole events. What [`events`] reads from the
    /// returned bytes does not depend on how the stream was cut into frames.
    ///
    /// # Errors
    /// [`EventTooLarge`] once all events before the large one have been returned; the stream cannot
    /// be read on then.
    pub fn push(&mut self, mut frame: Bytes) -> Result<Bytes, EventTooLarge> {
        if self.is_broken {
            return Err(self.too_large());
        }
        if frame.is_empty() {
            return Ok(frame);
        }
        if self.ended_with_return && self.held.is_empty() {
            self.ended_with_return = false;
            if frame.first() == Some(&b'\n') {
                frame.advance(1);
            }
        }
        let mut whole = if self.held.is_empty() {
            let end = last_blank_line(&frame, 0);
            let whole = frame.split_to(end);
            self.held.extend_from_slice(&frame);
            whole
        } else {
            // What is held has no blank line; its last byte may begin one.
            let seen = self.held.len() - 1;
            self.held.extend_from_slice(&frame);
            let end = last_blank_line(&self.held, seen);
            let whole = self.held.split_to(end).freeze();
            if self.held.is_empty() {
                // Otherwise the empty rest would keep the buffer of the returned events alive.
                self.held = BytesMut::new();
            }
            whole
        };
        if whole.is_empty() {
            self.check_held()?;
            return Ok(whole);
        }
        self.ended_with_return = whole.last() == Some(&b'\r');
        if self.is_at_start {
            self.is_at_start = false;
            if whole.starts_with(BYTE_ORDER_MARK) {
                whole.advance(BYTE_ORDER_MARK.len());
            }
        }
        if whole.len() > self.max_event_bytes {
            let large = events(&whole).find(|event| event.range.len() > self.max_event_bytes);
            if let Some(event) = large {
                self.is_broken = true;
                if event.range.start == 0 {
                    return Err(self.too_large());
                }
                whole.truncate(event.range.start);
                return Ok(whole);
            }
        }
        // Too much may be held already; the events before it go first.
        self.is_broken = self.held.len() > self.max_event_bytes;
        Ok(whole)
    }

    /// Returns the part of an event that was never completed, without a byte order mark.
    pub fn rest(&self) -> &[u8] {
        if self.is_at_start {
            self.held
                .strip_prefix(BYTE_ORDER_MARK)
                .unwrap_or(&self.held)
        } else {
            &self.held
        }
    }

    fn check_held(&mut self) -> Result<(), EventTooLarge> {
        self.is_broken = self.held.len() > self.max_event_bytes;
        if self.is_broken {
            Err(self.too_large())
        } else {
            Ok(())
        }
    }

    const fn too_large(&self) -> EventTooLarge {
        EventTooLarge {
            limit_bytes: self.max_event_bytes,
        }
    }
}

/// Returns the end of the last blank line, 0 if there is none; `from` and what precedes it cannot
/// be the second of the two line ends that make one.
fn last_blank_line(bytes: &[u8], from: usize) -> usize {
    let mut end = bytes.len();
    while let Some(searched) = bytes.get(from..end)
        && let Some(found) = memrchr2(b'\n', b'\r', searched)
    {
        let at = from + found;
        let Some(before) = at.checked_sub(1).and_then(|before| bytes.get(before)) else {
            return 0;
        };
        let byte = bytes.get(at);
        let is_line_end = matches!(before, b'\n' | b'\r');
        let is_one_line_end = *before == b'\r' && byte == Some(&b'\n');
        if is_line_end && !is_one_line_end {
            // A line feed behind it belongs to the same line end.
            let ends_with_both = byte == Some(&b'\r') && bytes.get(at + 1) == Some(&b'\n');
            return at + 1 + usize::from(ends_with_both);
        }
        end = at;
    }
    0
}

/// One event as it stands in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// Where it stands in the bytes that were read, its blank line included.
    pub range: Range<usize>,
    /// Its name: the last `event` line.
    pub name: Option<&'a [u8]>,
    /// Its `data` lines, joined by line feeds; `None` without any.
    pub data: Option<Cow<'a, [u8]>>,
    /// Whether it consists of comments and of data that is not blank, in lines that end with a line
    /// feed, or a carriage return and a line feed.
    pub is_clean: bool,
}

impl Event<'_> {
    /// Returns whether there is data that is more than white space.
    pub fn has_data(&self) -> bool {
        self.data
            .as_ref()
            .is_some_and(|data| !data.trim_ascii().is_empty())
    }
}

/// Reads the events of bytes that end with a blank line, as [`Splitter::push`] returns them.
///
/// An event that is not complete is not returned. Blank lines that end nothing belong to no event.
pub const fn events(whole: &[u8]) -> Events<'_> {
    Events { whole, at: 0 }
}

/// The iterator behind [`events`].
#[derive(Debug, Clone)]
pub struct Events<'a> {
    whole: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Events<'a> {
    type Item = Event<'a>;

    fn next(&mut self) -> Option<Event<'a>> {
        let mut start = self.at;
        let mut at = start;
        let (mut name, mut data) = (None, None);
        let mut is_clean = true;
        loop {
            let line = next_line(self.whole, at)?;
            at = line.next;
            if line.text.is_empty() && line.start == start {
                // A blank line that ends nothing.
                start = at;
                continue;
            }
            is_clean &= line.ends_plainly;
            match line.read() {
                Field::Blank => break,
                Field::Comment(text) => is_clean &= str::from_utf8(text).is_ok(),
                Field::Data(value) => data = Some(joined(data, value)),
                Field::Name(value) => {
                    name = Some(value);
                    is_clean = false;
                }
                Field::Other => is_clean = false,
            }
        }
        self.at = at;
        let mut event = Event {
            range: start..at,
            name,
            data,
            is_clean,
        };
        event.is_clean &= event.data.is_none() || event.has_data();
        Some(event)
    }
}

fn joined<'a>(data: Option<Cow<'a, [u8]>>, value: &'a [u8]) -> Cow<'a, [u8]> {
    let Some(data) = data else {
        return Cow::Borrowed(value);
    };
    let mut data = data.into_owned();
    data.push(b'\n');
    data.extend_from_slice(value);
    Cow::Owned(data)
}

/// Writes the comments and, if they are more than white space, the data of one event.
pub(crate) fn write_clean(event: &[u8], out: &mut BytesMut) {
    let has_data = events(event).next().is_some_and(|event| event.has_data());
    let before = out.len();
    let mut at = 0;
    while let Some(line) = next_line(event, at) {
        at = line.next;
        let keeps = match line.read() {
            Field::Comment(text) => str::from_utf8(text).is_ok(),
            Field::Data(_) => has_data,
            Field::Blank | Field::Name(_) | Field::Other => false,
        };
        if keeps {
            out.extend_from_slice(line.text);
            out.extend_from_slice(b"\n");
        }
    }
    if out.len() > before {
        out.extend_from_slice(b"\n");
    }
}

struct Line<'a> {
    start: usize,
    text: &'a [u8],
    /// Where the next one begins.
    next: usize,
    /// Whether it ends with more than a carriage return.
    ends_plainly: bool,
}

enum Field<'a> {
    Blank,
    Comment(&'a [u8]),
    Data(&'a [u8]),
    Name(&'a [u8]),
    Other,
}

impl<'a> Line<'a> {
    fn read(&self) -> Field<'a> {
        if let Some(value) = self.text.strip_prefix(b"data:") {
            return Field::Data(value.strip_prefix(b" ").unwrap_or(value));
        }
        let colon = memchr(b':', self.text);
        let (name, value) = match colon.and_then(|colon| self.text.split_at_checked(colon)) {
            Some((name, value)) => (name, value.get(1..).unwrap_or_default()),
            None => (self.text, b"".as_slice()),
        };
        match name {
            b"" if colon.is_some() => Field::Comment(value),
            b"" => Field::Blank,
            b"data" => Field::Data(value),
            b"event" => Field::Name(value.strip_prefix(b" ").unwrap_or(value)),
            _ => Field::Other,
        }
    }
}

fn next_line(bytes: &[u8], at: usize) -> Option<Line<'_>> {
    let rest = bytes.get(at..)?;
    let length = memchr2(b'\n', b'\r', rest)?;
    let (text, end) = rest.split_at_checked(length)?;
    let (width, ends_plainly) = match end {
        [b'\r', b'\n', ..] => (2, true),
        [b'\n', ..] => (1, true),
        _ => (1, false),
    };
    Some(Line {
        start: at,
        text,
        next: at + length + width,
        ends_plainly,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Seen = (Option<Vec<u8>>, Option<Vec<u8>>);

    /// Feeds the frames and collects name and data of each event that has lines.
    fn read(
        frames: &[&[u8]],
        max_event_bytes: usize,
    ) -> (Vec<Seen>, Result<Vec<u8>, EventTooLarge>) {
        let mut splitter = Splitter::new(max_event_bytes);
        let mut seen = Vec::new();
        for frame in frames {
            let whole = match splitter.push(Bytes::copy_from_slice(frame)) {
                Ok(whole) => whole,
                Err(error) => return (seen, Err(error)),
            };
            let mut end = 0;
            for event in events(&whole) {
                assert!(event.range.start >= end);
                end = event.range.end;
                if event.name.is_some() || event.data.is_some() {
                    seen.push((
                        event.name.map(<[u8]>::to_vec),
                        event.data.map(Cow::into_owned),
                    ));
                }
            }
            assert!(
                whole[end..].trim_ascii().is_empty(),
                "only whole events are returned"
            );
        }
        (seen, Ok(splitter.rest().to_vec()))
    }

    fn data(frames: &[&[u8]]) -> Vec<String> {
        let (seen, rest) = read(frames, 1024);
        rest.unwrap();
        seen.into_iter()
            .filter_map(|(_, data)| String::from_utf8(data?).ok())
            .collect()
    }

    #[test]
    fn each_kind_of_line_end_is_understood() {
        assert_eq!(data(&[b"data: a\n\ndata: b\n\n"]), ["a", "b"]);
        assert_eq!(data(&[b"data: a\r\n\r\ndata: b\r\n\r\n"]), ["a", "b"]);
        assert_eq!(data(&[b"data: a\r\rdata: b\r\r"]), ["a", "b"]);
        assert_eq!(data(&[b"data: a\n\r\ndata: b\r\n\n"]), ["a", "b"]);
    }

    #[test]
    fn a_return_and_a_line_feed_in_two_frames_are_one_line_end() {
        assert_eq!(
            data(&[b"data: a\r", b"\ndata: b\r\n\r", b"\ndata: c\r\n\r\n"]),
            ["a\nb", "c"]
        );
        assert_eq!(data(&[b"data: a\r\n\r", b"\n", b"data: c\n\n"]), ["a", "c"]);
    }

    #[test]
    fn lines_of_data_are_joined_and_one_space_is_dropped() {
        assert_eq!(data(&[b"data:a\ndata\ndata:  b\n\n"]), ["a\n\n b"]);
    }

    #[test]
    fn comments_unknown_fields_and_a_byte_order_mark_are_no_data() {
        let frames: [&[u8]; 2] = [
            b"\xef\xbb",
            b"\xbf: hi\nid: 1\nretry: 5\ndatax: 1\ndata: a\n\n",
        ];
        assert_eq!(data(&frames), ["a"]);
        assert_eq!(data(&[b": keep-alive\n\n:\n\n"]), [""; 0]);
    }

    #[test]
    fn a_frame_of_whole_events_is_not_copied() {
        let frame = Bytes::from_static(b"data: a\n\n: x\n\ndata: b\r\n\r\n");
        let whole = Splitter::new(64).push(frame.clone()).unwrap();
        assert_eq!(whole.as_ptr(), frame.as_ptr());
        assert_eq!(whole.len(), frame.len());
        assert!(events(&whole).all(|event| event.is_clean));
    }

    #[test]
    fn what_kills_clients_is_not_clean() {
        for event in [
            "data:\n\n",
            "data: \n\n",
            "id: 1\ndata: a\n\n",
            "event: x\ndata: a\n\n",
            "retry: 1\n\n",
            "event: ping\n\n",
            "data: a\r\r",
            "foo\ndata: a\n\n",
        ] {
            assert!(
                !events(event.as_bytes()).next().unwrap().is_clean,
                "{event:?}"
            );
        }
        assert!(!events(b": \xff\n\n").next().unwrap().is_clean);
    }

    #[test]
    fn cleaning_keeps_comments_and_data() {
        let clean = |event: &str| {
            let mut out = BytesMut::new();
            write_clean(event.as_bytes(), &mut out);
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(
            clean("id: 1\r: c\rdata: a\revent: x\rdata:b\r\r"),
            ": c\ndata: a\ndata:b\n\n"
        );
        assert_eq!(clean(": c\ndata:\n\n"), ": c\n\n");
        assert_eq!(clean("event: ping\n\n"), "");
    }

    #[test]
    fn a_large_event_is_refused_after_those_before_it() {
        let large = [b"data: ".as_slice(), &[b'x'; 40], b"\n\n"].concat();
        let both = [b"data: a\n\n".as_slice(), &large].concat();
        let (seen, error) = read(&[&both, b"data: b\n\n"], 40);
        assert_eq!(seen.len(), 1);
        assert_eq!(error, Err(EventTooLarge { limit_bytes: 40 }));
        // The end of the event need not have come.
        let (seen, error) = read(&[&both[..55], b"x"], 40);
        assert_eq!((seen.len(), error.is_err()), (1, true));
        let (seen, error) = read(&[&large[..20], &large[20..]], 40);
        assert_eq!((seen.len(), error.is_err()), (0, true));
        assert!(read(&[&large], large.len()).1.is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn events_do_not_depend_on_the_frames(
            lines in prop::collection::vec(prop::sample::select(vec!["", "", "data: a", "data:bcd", "data", ": c", "id: 1", "event: e", "\u{feff}data: x", "retry: 3", "x"]), 0..30),
            ends in prop::collection::vec(prop::sample::select(vec!["\n", "\r\n", "\r"]), 30),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream: String = lines.iter().zip(&ends).flat_map(|(line, end)| [*line, *end]).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let frames: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream.as_bytes()[cut[0]..cut[1]]).collect();
            let singles: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
            let (whole, _) = read(&[stream.as_bytes()], 1 << 20);
            prop_assert_eq!(&read(&frames, 1 << 20).0, &whole);
            prop_assert_eq!(&read(&singles, 1 << 20).0, &whole);
            prop_assert_eq!(&naive(&stream), &whole);
        }
    }

    /// The specification's algorithm over the lines of a complete stream.
    fn naive(stream: &str) -> Vec<Seen> {
        let stream = stream.strip_prefix('\u{feff}').unwrap_or(stream);
        let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
        let mut seen: Vec<Seen> = Vec::new();
        let (mut name, mut data): Seen = (None, None);
        for line in stream.split_inclusive('\n') {
            let Some(line) = line.strip_suffix('\n') else {
                break;
            };
            if line.is_empty() {
                if name.is_some() || data.is_some() {
                    seen.push((name.take(), data.take()));
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "data" => {
                    let mut lines = data.take().map_or_else(Vec::new, |mut data| {
                        data.push(b'\n');
                        data
                    });
                    lines.extend_from_slice(value.as_bytes());
                    data = Some(lines);
                }
                "event" => name = Some(value.as_bytes().to_vec()),
                _ => {}
            }
        }
        seen
    }
}
