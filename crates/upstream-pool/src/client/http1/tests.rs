//! Answers of every kind, cut everywhere, and answers that try to be read in two ways.

mod hostile;
mod oracle;
mod property;

use http::{HeaderMap, Request, StatusCode};

use super::ProtocolError;
use super::body::BodyDecoder;
use super::head::HeadReader;
use super::request::Outgoing;

/// How an answer ended whose connection was closed after its last byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete { is_reusable: bool },
    Cut,
    Broken(ProtocolError),
}

/// What came out of the bytes of a connection.
#[derive(Debug, PartialEq)]
struct Outcome {
    head: Option<(StatusCode, HeaderMap)>,
    body: Vec<u8>,
    end: End,
}

/// Reads an answer that comes in these pieces, as a connection does.
fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut outcome = Outcome {
        head: None,
        body: Vec::new(),
        end: End::Cut,
    };
    let mut reader = HeadReader::default();
    let mut decoder = BodyDecoder::empty();
    let mut is_reusable = true;
    for mut input in pieces.into_iter().filter(|piece| !piece.is_empty()) {
        if outcome.head.is_none() {
            match reader.read(&mut input, |_| true) {
                Err(error) => {
                    outcome.end = End::Broken(error);
                    return outcome;
                }
                Ok(None) => {
                    assert!(input.is_empty(), "bytes of a head were left");
                    continue;
                }
                Ok(Some(head)) => {
                    outcome.head = Some((head.status, head.headers));
                    decoder = head.body;
                    is_reusable = head.keeps_alive;
                }
            }
        }
        outcome.body.extend_from_slice(&decoder.decode(&mut input));
        is_reusable &= input.is_empty();
        if let Some(error) = decoder.failure() {
            outcome.end = End::Broken(error);
            return outcome;
        }
        assert!(
            input.is_empty() || decoder.is_ended(),
            "bytes of a body were left"
        );
    }
    if outcome.head.is_none() {
        outcome.end = reader.end_of_input().map_or(End::Cut, End::Broken);
    } else if decoder.end_of_input() {
        outcome.end = End::Complete { is_reusable };
    }
    outcome
}

fn read_whole(bytes: &[u8]) -> Outcome {
    read([bytes])
}

const KEPT: End = End::Complete { is_reusable: true };
const NOT_KEPT: End = End::Complete { is_reusable: false };

/// Answers, their bodies, and whether their connections can be used again.
const ANSWERS: &[(&str, &str, End)] = &[
    (
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "hello",
        KEPT,
    ),
    (
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: y\r\n\r\n",
        "",
        KEPT,
    ),
    (
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\ncontent-length: 5\r\n\r\nhello",
        "hello",
        KEPT,
    ),
    (
        "HTTP/1.1 200\r\ncontent-length:\t5 \r\nconnection: Keep-Alive\r\n\r\nhello",
        "hello",
        KEPT,
    ),
    (
        "HTTP/1.1 404 Not Found\r\nconnection: x, Close\r\ncontent-length: 5\r\n\r\nhello",
        "hello",
        NOT_KEPT,
    ),
    (
        "HTTP/1.1 200 OK\r\nconnection: close\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n",
        "",
        NOT_KEPT,
    ),
    (
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "hello",
        KEPT,
    ),
    (
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
         001;a=\"b c\"\r\nh\r\n2 \t;x\r\nel\r\n0a  \r\nlo, world!\r\n0;end\r\n\r\n",
        "hello, world!",
        KEPT,
    ),
    (
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
         F\r\n0123456789abcde\r\n000\r\nx-sum: 1\r\nempty:\r\nn: \t\x7e\r\n\r\n",
        "0123456789abcde",
        KEPT,
    ),
    (
        "HTTP/1.1 200 OK\r\nserver: x\r\n\r\nuntil the end\r\n0\r\n\r\n",
        "until the end\r\n0\r\n\r\n",
        NOT_KEPT,
    ),
    (
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "ok",
        NOT_KEPT,
    ),
    (
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok",
        "ok",
        KEPT,
    ),
    ("HTTP/1.1 204 No Content\r\n\r\n", "", KEPT),
    (
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 100\r\n\r\n",
        "",
        KEPT,
    ),
    (
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\ncontent-length: 9\r\n\r\n\
         HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "ok",
        KEPT,
    ),
    ("HTTP/1.1 200 OK\ncontent-length: 2\n\nok", "ok", KEPT),
    (
        "\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "ok",
        KEPT,
    ),
];

#[test]
fn an_answer_means_the_same_wherever_it_is_cut() {
    for &(text, body, end) in ANSWERS {
        let bytes = text.as_bytes();
        let whole = read_whole(bytes);
        assert_eq!((&*whole.body, whole.end), (body.as_bytes(), end), "{text}");
        assert_eq!(read(bytes.chunks(1)), whole, "{text}");
        for first in 0..bytes.len() {
            let (head, tail) = bytes.split_at(first);
            assert_eq!(read([head, tail]), whole, "cut at {first}: {text}");
            let middle = tail.len() / 2;
            let pieces = [head, &tail[..middle], &tail[middle..]];
            assert_eq!(read(pieces), whole, "cut at {first} and later: {text}");
        }
    }
}

#[test]
fn an_answer_that_ends_early_is_never_whole() {
    for &(text, body, end) in ANSWERS {
        let ends_with_connection = body.starts_with("until");
        for length in 0..text.len() {
            let outcome = read_whole(&text.as_bytes()[..length]);
            if ends_with_connection && outcome.head.is_some() {
                assert_eq!(outcome.end, NOT_KEPT);
            } else {
                assert_eq!(outcome.end, End::Cut, "{length} bytes of {text}");
            }
            assert!(body.as_bytes().starts_with(&outcome.body));
        }
        if end == KEPT {
            for more in ["\n", "\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
                let outcome = read_whole(format!("{text}{more}").as_bytes());
                assert_eq!(outcome.end, NOT_KEPT, "{text}");
                assert_eq!(outcome.body, body.as_bytes());
                let outcome = read([text.as_bytes(), more.as_bytes()]);
                assert_eq!(outcome.end, NOT_KEPT, "{text}");
            }
        }
    }
}

#[test]
fn only_headers_of_interest_come_out_and_the_others_are_heeded_all_the_same() {
    let text = "HTTP/1.1 200 OK\r\nX-A: 1\r\ncontent-length: 2\r\nx-a:  2\r\nx-b: 3\r\n\r\nok";
    let mut input = text.as_bytes();
    let head = HeadReader::default()
        .read(&mut input, |name| name.eq_ignore_ascii_case("x-a"))
        .unwrap()
        .unwrap();
    let values: Vec<_> = head.headers.get_all("x-a").iter().collect();
    assert_eq!(values, ["1", "2"]);
    assert_eq!(head.headers.len(), 2);
    assert_eq!(head.body.left(), Some(2));
    assert_eq!(input, b"ok");
}

#[test]
fn chunks_that_came_together_leave_together() {
    let mut decoder = BodyDecoder::chunked();
    let mut input = &b"2\r\nab\r\n3;x\r\ncde\r\n1\r\nf"[..];
    assert_eq!(decoder.decode(&mut input), "abcdef");
    let mut input = &b"\r\n4\r\ngh"[..];
    assert_eq!(decoder.decode(&mut input), "gh");
    assert_eq!((decoder.left(), decoder.is_ended()), (None, false));
}

/// Writes a request whose connection takes so many bytes at a time.
fn written(request: &Request<bytes::Bytes>, at_once: usize) -> (Vec<u8>, usize) {
    let mut outgoing = Outgoing::new(request);
    let (mut bytes, mut writes) = (Vec::new(), 0);
    while !outgoing.is_sent() {
        assert_eq!(outgoing.has_begun(), !bytes.is_empty());
        let [first, second] = outgoing.pieces();
        let all = [&*first, &*second].concat();
        assert!(!first.is_empty(), "a write of nothing");
        let taken = &all[..all.len().min(at_once)];
        bytes.extend_from_slice(taken);
        outgoing.advance(taken.len());
        writes += 1;
        assert!(bytes.len() < 200_000, "it never ends");
    }
    (bytes, writes)
}

#[test]
fn a_request_is_written_with_its_headers_and_its_length_in_one_write() {
    for length in [0, 1, 4_096, 4_097, 100_000] {
        let body = bytes::Bytes::from("x".repeat(length));
        let request = Request::post("/v1/chat?a=b")
            .header("host", "h:1")
            .header("x-a", "1")
            .header("x-a", "2")
            .body(body)
            .unwrap();
        let expected = format!(
            "POST /v1/chat?a=b HTTP/1.1\r\nhost: h:1\r\nx-a: 1\r\nx-a: 2\r\ncontent-length: {length}\r\n\r\n{}",
            "x".repeat(length)
        );
        assert_eq!(written(&request, usize::MAX), (expected.clone().into(), 1));
        for at_once in [1, 7, 100, 4_096] {
            assert_eq!(
                written(&request, at_once).0,
                expected.as_bytes(),
                "{at_once}"
            );
        }
    }
}

#[test]
fn a_request_without_a_body_has_no_length_where_none_is_expected() {
    let request = Request::get("/v1/models")
        .header("host", "h")
        .body(bytes::Bytes::new())
        .unwrap();
    let (bytes, _) = written(&request, usize::MAX);
    assert_eq!(bytes, b"GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n");

    let request = Request::get("/").body(bytes::Bytes::from_static(b"x"));
    let (bytes, _) = written(&request.unwrap(), usize::MAX);
    assert_eq!(bytes, b"GET / HTTP/1.1\r\ncontent-length: 1\r\n\r\nx");
}
