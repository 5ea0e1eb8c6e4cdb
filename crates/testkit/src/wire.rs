//! The little of HTTP/1.1 that the fake upstream and the raw client share.

use std::fmt::Display;
use std::io;

use bytes::{Buf, Bytes, BytesMut};

/// Longest head that is read.
const MAX_HEAD_BYTES: usize = 256 * 1024;
/// Longest line with the size of a chunk, and longest trailer line.
const MAX_LINE_BYTES: usize = 8 * 1024;

/// Header fields as they were received: order, case and repetitions kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Returns the first value of a field; the name is compared without regard to case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Returns all values of a field in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.iter()
            .filter(move |(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// Returns all fields in order, names as they were written.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.get_all(name)
            .flat_map(|value| value.split(','))
            .any(|part| part.trim().eq_ignore_ascii_case(token))
    }

    /// Returns whether the sender closes the connection after this message.
    pub(crate) fn closes(&self) -> bool {
        self.has_token("connection", "close")
    }
}

/// A start line and header fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Everything up to and with the empty line.
    pub(crate) raw: Bytes,
    pub(crate) start_line: String,
    pub(crate) headers: Headers,
}

pub(crate) fn invalid(message: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_string())
}

/// Takes a head from the front of `inbound`; `None` when it is not there yet.
///
/// # Errors
/// `InvalidData` when it is too long or not HTTP/1.
pub(crate) fn take_head(inbound: &mut BytesMut) -> io::Result<Option<Head>> {
    // A client may send an empty line after the body of its last request.
    while inbound.starts_with(b"\r\n") {
        inbound.advance(2);
    }
    let Some(end) = find(inbound, b"\r\n\r\n") else {
        return if inbound.len() > MAX_HEAD_BYTES {
            Err(invalid("the head is too long"))
        } else {
            Ok(None)
        };
    };
    let raw = inbound.split_to(end + 4).freeze();
    let text = String::from_utf8_lossy(&raw);
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let start_line = lines.next().unwrap_or_default().to_owned();
    if !start_line.contains("HTTP/1.") {
        return Err(invalid(format_args!(
            "not an HTTP/1 message: {start_line:?}"
        )));
    }
    let mut headers = Vec::new();
    for line in lines {
        match line.split_once(':') {
            Some((name, value)) if !name.is_empty() && !name.contains(' ') => {
                headers.push((name.to_owned(), value.trim().to_owned()));
            }
            _ => return Err(invalid(format_args!("not a header field: {line:?}"))),
        }
    }
    let headers = Headers(headers);
    Ok(Some(Head {
        raw,
        start_line,
        headers,
    }))
}

/// Returns where `needle` begins in `haystack`.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// Reads a message body from the bytes after its head.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyReader {
    /// So many bytes are missing; 0 is the end.
    Length(u64),
    /// A chunked body and what comes next in it.
    Chunked(ChunkPart),
    /// Everything until the sender closes.
    UntilClose,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ChunkPart {
    Size,
    Data(u64),
    DataEnd,
    Trailer,
    End,
}

impl BodyReader {
    /// Returns the reader of a request's body.
    ///
    /// # Errors
    /// `InvalidData` for a content length that is no number.
    pub(crate) fn of_request(headers: &Headers) -> io::Result<Self> {
        Ok(Self::framed(headers)?.unwrap_or(Self::Length(0)))
    }

    /// Returns the reader of a response's body.
    ///
    /// # Errors
    /// `InvalidData` for a content length that is no number.
    pub(crate) fn of_response(status: u16, headers: &Headers) -> io::Result<Self> {
        if status < 200 || status == 204 || status == 304 {
            return Ok(Self::Length(0));
        }
        Ok(Self::framed(headers)?.unwrap_or(Self::UntilClose))
    }

    fn framed(headers: &Headers) -> io::Result<Option<Self>> {
        if headers.has_token("transfer-encoding", "chunked") {
            return Ok(Some(Self::Chunked(ChunkPart::Size)));
        }
        let Some(length) = headers.get("content-length") else {
            return Ok(None);
        };
        match length.parse() {
            Ok(length) => Ok(Some(Self::Length(length))),
            Err(_not_a_number) => Err(invalid(format_args!("content-length: {length:?}"))),
        }
    }

    /// Moves what belongs to the body from `inbound` to `body`; returns whether its end was reached.
    ///
    /// # Errors
    /// `InvalidData` when the chunks are malformed.
    pub(crate) fn take(&mut self, inbound: &mut BytesMut, body: &mut BytesMut) -> io::Result<bool> {
        loop {
            match self {
                Self::UntilClose => {
                    body.extend_from_slice(&inbound.split());
                    return Ok(false);
                }
                Self::Length(missing) => {
                    move_up_to(missing, inbound, body);
                    return Ok(*missing == 0);
                }
                Self::Chunked(part) => {
                    let next = match part {
                        ChunkPart::Size => match take_line(inbound)? {
                            Some(line) => match chunk_size(&line)? {
                                0 => ChunkPart::Trailer,
                                size => ChunkPart::Data(size),
                            },
                            None => return Ok(false),
                        },
                        ChunkPart::Data(missing) => {
                            move_up_to(missing, inbound, body);
                            if *missing > 0 {
                                return Ok(false);
                            }
                            ChunkPart::DataEnd
                        }
                        ChunkPart::DataEnd => match take_line(inbound)? {
                            Some(line) if line.is_empty() => ChunkPart::Size,
                            Some(_) => return Err(invalid("a chunk is longer than its size")),
                            None => return Ok(false),
                        },
                        ChunkPart::Trailer => match take_line(inbound)? {
                            Some(line) if line.is_empty() => ChunkPart::End,
                            Some(_) => ChunkPart::Trailer,
                            None => return Ok(false),
                        },
                        ChunkPart::End => return Ok(true),
                    };
                    *part = next;
                }
            }
        }
    }

    /// Returns whether the body is complete when the sender closes now.
    pub(crate) fn may_end(&self) -> bool {
        matches!(
            self,
            Self::UntilClose | Self::Length(0) | Self::Chunked(ChunkPart::End)
        )
    }
}

fn move_up_to(missing: &mut u64, from: &mut BytesMut, to: &mut BytesMut) {
    let count = from
        .len()
        .min(usize::try_from(*missing).unwrap_or(usize::MAX));
    to.extend_from_slice(&from.split_to(count));
    *missing -= count as u64;
}

fn take_line(inbound: &mut BytesMut) -> io::Result<Option<Bytes>> {
    match find(inbound, b"\r\n") {
        Some(end) => {
            let line = inbound.split_to(end).freeze();
            inbound.advance(2);
            Ok(Some(line))
        }
        None if inbound.len() > MAX_LINE_BYTES => Err(invalid("a chunk line is too long")),
        None => Ok(None),
    }
}

fn chunk_size(line: &[u8]) -> io::Result<u64> {
    let text = String::from_utf8_lossy(line);
    let digits = text.split(';').next().unwrap_or_default().trim();
    match u64::from_str_radix(digits, 16) {
        Ok(size) => Ok(size),
        Err(_not_hexadecimal) => Err(invalid(format_args!("size of a chunk: {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(text: &str) -> io::Result<Option<Head>> {
        take_head(&mut BytesMut::from(text))
    }

    #[test]
    fn a_head_keeps_order_case_and_repetitions() {
        let mut inbound = BytesMut::from(
            "\r\nPOST /v1/x?y=1 HTTP/1.1\r\nX-A: 1\r\nx-a:2 \r\nHost: h\r\n\r\nbody",
        );
        let head = take_head(&mut inbound).unwrap().unwrap();
        assert_eq!(head.start_line, "POST /v1/x?y=1 HTTP/1.1");
        assert_eq!(head.headers.get("HOST"), Some("h"));
        assert_eq!(head.headers.get_all("x-a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(head.headers.iter().next(), Some(("X-A", "1")));
        assert!(head.raw.ends_with(b"Host: h\r\n\r\n"));
        assert_eq!(&inbound[..], b"body");
    }

    #[test]
    fn an_unfinished_head_waits_and_nonsense_is_refused() {
        assert_eq!(head_of("GET / HTTP/1.1\r\nhost: h\r\n").unwrap(), None);
        assert!(head_of("hello\r\n\r\n").is_err());
        assert!(head_of("GET / HTTP/1.1\r\nno colon\r\n\r\n").is_err());
        assert!(head_of(&"x".repeat(MAX_HEAD_BYTES + 1)).is_err());
    }

    #[test]
    fn bodies_are_read_however_their_bytes_arrive() {
        let chunked = "5;ext=1\r\nhello\r\n1\r\n \r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        for (headers, wire, expected) in [
            ("content-length: 5", "hello", "hello"),
            (
                "transfer-encoding: gzip, Chunked",
                chunked,
                "hello 0123456789",
            ),
            ("host: h", "", ""),
        ] {
            let head = head_of(&format!("POST / HTTP/1.1\r\n{headers}\r\n\r\n"))
                .unwrap()
                .unwrap();
            for step in 1..=wire.len().max(1) {
                let mut reader = BodyReader::of_request(&head.headers).unwrap();
                let (mut inbound, mut body) = (BytesMut::new(), BytesMut::new());
                let mut ended = reader.take(&mut inbound, &mut body).unwrap();
                for piece in wire.as_bytes().chunks(step) {
                    assert!(!ended, "{headers}, {step} bytes at a time: ended early");
                    inbound.extend_from_slice(piece);
                    ended = reader.take(&mut inbound, &mut body).unwrap();
                }
                assert!(
                    ended && reader.may_end(),
                    "{headers}, {step} bytes at a time"
                );
                assert_eq!(&body[..], expected.as_bytes());
            }
        }
    }

    #[test]
    fn what_follows_a_body_is_left_for_the_next_message() {
        let mut reader = BodyReader::Chunked(ChunkPart::Size);
        let (mut inbound, mut body) = (BytesMut::from("1\r\na\r\n0\r\n\r\nGET "), BytesMut::new());
        assert!(reader.take(&mut inbound, &mut body).unwrap());
        assert_eq!(&inbound[..], b"GET ");
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in ["zz\r\n", "1\r\nab\r\n"] {
            let mut reader = BodyReader::Chunked(ChunkPart::Size);
            assert!(
                reader
                    .take(&mut BytesMut::from(wire), &mut BytesMut::new())
                    .is_err(),
                "{wire:?}"
            );
        }
    }

    #[test]
    fn a_response_without_framing_ends_with_its_connection() {
        let none = Headers::default();
        assert_eq!(
            BodyReader::of_response(200, &none).unwrap(),
            BodyReader::UntilClose
        );
        assert_eq!(
            BodyReader::of_response(204, &none).unwrap(),
            BodyReader::Length(0)
        );
        assert!(
            BodyReader::of_request(&Headers(vec![("Content-Length".into(), "x".into())])).is_err()
        );
    }
}
