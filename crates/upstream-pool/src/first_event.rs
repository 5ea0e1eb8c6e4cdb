//! Waits for the first event of a stream: bytes that hold data, not a comment and not a ping.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use serde::de::IgnoredAny;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// An event is longer than it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the first event is longer than {limit} bytes")]
pub(crate) struct EventTooLong {
    limit: usize,
}

/// The first event and everything that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FirstEvent {
    /// From the first byte of the event to the last byte that was read.
    pub(crate) prefix: Bytes,
    /// The data of the event.
    pub(crate) data: Bytes,
    /// Whether the event is named `error`.
    pub(crate) is_named_error: bool,
}

/// Collects chunks until they hold an event with data.
///
/// Comments, blank lines, pings, events without data and a byte order mark before it are dropped:
/// they say nothing to a client, and some of them make clients fail. So memory is bounded by one event,
/// however long a provider sends comments. Chunk boundaries do not matter, and a chunk that holds
/// the whole event is not copied.
#[derive(Debug)]
pub(crate) struct FirstEventScanner {
    buffer: BytesMut,
    scan: Scan,
    limit: usize,
}

#[derive(Debug, Default)]
struct Scan {
    event_start: usize,
    line_start: usize,
    /// Everything before it was searched for the end of the line.
    position: usize,
    has_data: bool,
    is_ping: bool,
    is_past_mark: bool,
}

impl FirstEventScanner {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            scan: Scan::default(),
            limit,
        }
    }

    /// Takes the next chunk and returns the first event once it is complete.
    ///
    /// # Errors
    /// [`EventTooLong`] when the event is not complete within the limit.
    pub(crate) fn push(&mut self, chunk: &Bytes) -> Result<Option<FirstEvent>, EventTooLong> {
        let complete = if self.buffer.is_empty() {
            if let Some(end) = self.scan.run(chunk) {
                return Ok(Some(event(chunk, self.scan.event_start..end)));
            }
            self.buffer
                .extend_from_slice(chunk.get(self.scan.event_start..).unwrap_or_default());
            self.scan.forget_before_event();
            None
        } else {
            self.buffer.extend_from_slice(chunk);
            self.scan.run(&self.buffer)
        };
        if let Some(end) = complete {
            let bytes = self.buffer.split().freeze();
            return Ok(Some(event(&bytes, self.scan.event_start..end)));
        }
        if self.scan.event_start > 0 {
            let rest = self
                .buffer
                .split_off(self.scan.event_start.min(self.buffer.len()));
            self.buffer = rest;
            self.scan.forget_before_event();
        }
        if self.buffer.len() > self.limit {
            return Err(EventTooLong { limit: self.limit });
        }
        Ok(None)
    }

    /// Takes the end of the stream: an event that only lacks its blank line counts, a part of one
    /// does not.
    pub(crate) fn finish(mut self) -> Option<FirstEvent> {
        let bytes = self.buffer.split().freeze();
        let whole = 0..bytes.len();
        let event = event(&bytes, whole);
        let is_whole =
            &*event.data == b"[DONE]" || serde_json::from_slice::<IgnoredAny>(&event.data).is_ok();
        (is_whole && !self.scan.is_ping).then_some(event)
    }
}

impl Scan {
    /// Goes on where it stopped and returns the end of the first event with data.
    fn run(&mut self, bytes: &[u8]) -> Option<usize> {
        if !self.is_past_mark {
            if bytes.len() < BYTE_ORDER_MARK.len() && BYTE_ORDER_MARK.starts_with(bytes) {
                return None;
            }
            self.is_past_mark = true;
            if bytes.starts_with(BYTE_ORDER_MARK) {
                let after = BYTE_ORDER_MARK.len();
                (self.event_start, self.line_start, self.position) = (after, after, after);
            }
        }
        loop {
            let rest = bytes.get(self.position..)?;
            let Some(offset) = memchr2(b'\n', b'\r', rest) else {
                self.position = bytes.len();
                return None;
            };
            let end = self.position + offset;
            let next = match (bytes.get(end), bytes.get(end + 1)) {
                (Some(b'\r'), Some(b'\n')) => end + 2,
                // The other half of a line end may follow.
                (Some(b'\r'), None) => {
                    self.position = end;
                    return None;
                }
                _ => end + 1,
            };
            let line = bytes.get(self.line_start..end).unwrap_or_default();
            if line.is_empty() {
                let is_event = self.has_data && !self.is_ping;
                if is_event {
                    return Some(next);
                }
                (self.has_data, self.is_ping) = (false, false);
                self.event_start = next;
            } else if line.starts_with(b":") {
                if self.line_start == self.event_start {
                    self.event_start = next;
                }
            } else {
                self.has_data |= field(line, b"data").is_some_and(|value| !value.is_empty());
                if let Some(name) = field(line, b"event") {
                    self.is_ping = name == b"ping";
                }
            }
            self.line_start = next;
            self.position = next;
        }
    }

    /// Counts from the start of the event, after what came before was dropped.
    fn forget_before_event(&mut self) {
        self.line_start -= self.event_start;
        self.position -= self.event_start;
        self.event_start = 0;
    }
}

/// Returns the value of a field line, without the one space that may stand before it.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// Reads the fields of the event that lies at `range`.
fn event(bytes: &Bytes, range: Range<usize>) -> FirstEvent {
    let prefix = bytes.slice(range.start.min(bytes.len())..);
    let text = bytes.slice(range);
    let lines = || text.split(|&b| b == b'\n' || b == b'\r');
    let mut values = lines().filter_map(|line| field(line, b"data"));
    let first = values.next().unwrap_or_default();
    let mut joined: Option<Vec<u8>> = None;
    for value in values {
        let joined = joined.get_or_insert_with(|| first.to_vec());
        joined.push(b'\n');
        joined.extend_from_slice(value);
    }
    let data = joined.map_or_else(|| text.slice_ref(first), Bytes::from);
    let is_named_error = lines().any(|line| field(line, b"event") == Some(b"error"));
    FirstEvent {
        prefix,
        data,
        is_named_error,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feed(text: &[u8], cut: usize) -> (Option<FirstEvent>, usize) {
        let mut scanner = FirstEventScanner::new(1 << 20);
        let mut fed = 0;
        for chunk in text.chunks(cut.max(1)) {
            fed += chunk.len();
            if let Some(event) = scanner.push(&Bytes::copy_from_slice(chunk)).unwrap() {
                return (Some(event), fed);
            }
        }
        (scanner.finish(), fed)
    }

    fn data_of(text: &str) -> Option<String> {
        let (event, _) = feed(text.as_bytes(), usize::MAX);
        event.map(|e| String::from_utf8(e.data.to_vec()).unwrap())
    }

    #[test]
    fn comments_and_empty_events_are_not_events() {
        assert_eq!(data_of(": keep-alive\n\n:\n\n"), None);
        assert_eq!(data_of("event: ping\n\ndata:\n\ndata: \n\n"), None);
        assert_eq!(
            data_of(": a\n\ndata: {\"a\":1}\n\n").as_deref(),
            Some("{\"a\":1}")
        );
    }

    #[test]
    fn a_ping_is_not_an_event_whatever_its_data() {
        assert_eq!(data_of("event: ping\ndata: {\"type\": \"ping\"}\n\n"), None);
        let text = "event: ping\ndata: {}\n\ndata:\n\nevent: message_start\ndata: {\"a\":1}\n\n";
        assert_eq!(data_of(text).as_deref(), Some("{\"a\":1}"));
    }

    #[test]
    fn everything_from_the_event_on_is_kept_and_nothing_before_it() {
        let (event, _) = feed(
            b"\xEF\xBB\xBF: x\n\ndata:\n\ndata: 1\n\ndata: 2\n\nda",
            usize::MAX,
        );
        assert_eq!(&*event.unwrap().prefix, b"data: 1\n\ndata: 2\n\nda");
    }

    #[test]
    fn several_data_lines_are_joined() {
        assert_eq!(data_of("data: {\ndata: }\n\n").as_deref(), Some("{\n}"));
        assert_eq!(
            data_of("data: {\r\ndata: }\r\n\r\n").as_deref(),
            Some("{\n}")
        );
    }

    #[test]
    fn an_error_event_is_named() {
        let (event, _) = feed(b"event: error\ndata: {\"message\":\"x\"}\n\n", usize::MAX);
        assert!(event.unwrap().is_named_error);
    }

    #[test]
    fn the_end_completes_a_whole_event_and_no_half_one() {
        assert_eq!(data_of("data: [DONE]").as_deref(), Some("[DONE]"));
        assert_eq!(data_of("data: {\"a\":1}\n").as_deref(), Some("{\"a\":1}"));
        assert_eq!(data_of("data: {\"a\":"), None);
        assert_eq!(data_of("dat"), None);
        assert_eq!(data_of(""), None);
    }

    #[test]
    fn an_endless_event_is_refused_and_endless_comments_are_not_stored() {
        let mut scanner = FirstEventScanner::new(100);
        for _ in 0..1_000 {
            assert_eq!(
                scanner.push(&Bytes::from_static(b": keep-alive\n\n")),
                Ok(None)
            );
            assert!(scanner.buffer.len() < 20);
        }
        assert_eq!(
            scanner.push(&Bytes::from(format!("data: {}", "x".repeat(90)))),
            Ok(None)
        );
        assert!(scanner.push(&Bytes::from_static(b"xxxxxxxx")).is_err());
    }

    proptest! {
        #[test]
        fn chunk_boundaries_do_not_matter(
            pieces in prop::collection::vec(prop::sample::select(vec![
                ": c\n\n", ":\n", "\n", "\r\n", "data:\n\n", "event: x\n", "event: x\r\n\r\n", "event: ping\n",
                "data: {\"a\":1}\n", "data: {\"b\":2}\r\n", "data: [DONE]\n\n", "id: 7\n", "\r", "data",
            ]), 0..12),
            mark in any::<bool>(),
            cut in 1_usize..9,
        ) {
            let text = format!("{}{}", if mark { "\u{FEFF}" } else { "" }, pieces.concat());
            let (whole, _) = feed(text.as_bytes(), usize::MAX);
            let (cut_up, fed) = feed(text.as_bytes(), cut);
            prop_assert_eq!(whole.as_ref().map(|e| &e.data), cut_up.as_ref().map(|e| &e.data));
            if let (Some(whole), Some(cut_up)) = (whole, cut_up) {
                let unread = text.len() - fed;
                prop_assert_eq!(&whole.prefix[..whole.prefix.len() - unread], &cut_up.prefix[..]);
            }
        }
    }
}
