//! What is refused.

use super::super::head::{MAX_HEAD_BYTES, MAX_HEADERS, MAX_INTERIM};
use super::*;

/// Reads whole and byte by byte.
#[track_caller]
fn refused(text: &str) -> ProtocolError {
    let whole = read_whole(text.as_bytes());
    let single = read(text.as_bytes().chunks(1));
    assert_eq!(whole.end, single.end, "{text:.200}");
    assert_eq!(whole.body, single.body, "{text:.200}");
    match whole.end {
        End::Broken(error) => error,
        End::Complete { .. } | End::Cut => panic!("{:?}: {text:.200}", whole.end),
    }
}

#[test]
fn an_answer_whose_end_is_in_doubt_is_refused() {
    for (headers, expected) in [
        (
            "content-length: 5\r\ncontent-length: 6",
            ProtocolError::ContentLength,
        ),
        ("content-length: 5, 6", ProtocolError::ContentLength),
        ("content-length: 5,", ProtocolError::ContentLength),
        ("content-length:", ProtocolError::ContentLength),
        ("content-length: +5", ProtocolError::ContentLength),
        ("content-length: -5", ProtocolError::ContentLength),
        ("content-length: 0x5", ProtocolError::ContentLength),
        ("content-length: 5 5", ProtocolError::ContentLength),
        ("content-length: 5;", ProtocolError::ContentLength),
        (
            "content-length: 18446744073709551616",
            ProtocolError::ContentLength,
        ),
        (
            "content-length: 5\r\ntransfer-encoding: chunked",
            ProtocolError::TwoLengths,
        ),
        (
            "transfer-encoding: chunked\r\nCONTENT-LENGTH: 5",
            ProtocolError::TwoLengths,
        ),
        (
            "transfer-encoding: gzip, chunked",
            ProtocolError::TransferCoding,
        ),
        (
            "transfer-encoding: chunked, gzip",
            ProtocolError::TransferCoding,
        ),
        (
            "transfer-encoding: chunked, chunked",
            ProtocolError::TransferCoding,
        ),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            ProtocolError::TransferCoding,
        ),
        (
            "transfer-encoding: chunked;q=1",
            ProtocolError::TransferCoding,
        ),
        ("transfer-encoding: xchunked", ProtocolError::TransferCoding),
        (
            "transfer-encoding: \"chunked\"",
            ProtocolError::TransferCoding,
        ),
        ("transfer-encoding:", ProtocolError::TransferCoding),
        ("transfer-encoding: identity", ProtocolError::TransferCoding),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(refused(&text), expected, "{headers}");
    }
    let text = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(refused(text), ProtocolError::TransferCoding);
}

#[test]
fn a_head_that_is_malformed_is_refused() {
    use httparse::Error::{HeaderName, HeaderValue, NewLine, Status, Version};
    for (text, expected) in [
        ("SMTP ready\r\n\r\n", Version),
        ("HTTP/2.0 200 OK\r\n\r\n", Version),
        ("HTTP/1.2 200 OK\r\n\r\n", Version),
        ("http/1.1 200 OK\r\n\r\n", Version),
        ("HTTP/1.1 2x0 OK\r\n\r\n", Status),
        ("HTTP/1.1 2000 OK\r\n\r\n", Status),
        ("HTTP/1.1 20\r\n\r\n", Status),
        ("HTTP/1.1 200 OK\r\nx : y\r\n\r\n", HeaderName),
        ("HTTP/1.1 200 OK\r\n: y\r\n\r\n", HeaderName),
        ("HTTP/1.1 200 OK\r\nx\0: y\r\n\r\n", HeaderName),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", HeaderName),
        ("HTTP/1.1 200 OK\r\nx: a\r\n folded\r\n\r\n", HeaderName),
        ("HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n", HeaderValue),
        ("HTTP/1.1 200 OK\r\nx: a\rb\r\n\r\n", HeaderValue),
        ("HTTP/1.1 200 OK\r\nx: a\x7fb\r\n\r\n", HeaderValue),
        ("HTTP/1.1 200 OK\rx: a\r\n\r\n", Status),
        ("HTTP/1.1 200 OK\r\nx: a\r\n\rb", NewLine),
    ] {
        let error = refused(text);
        assert!(
            matches!(error, ProtocolError::Head(_)),
            "{error:?}: {text:?}"
        );
        assert_eq!(error, ProtocolError::Head(expected), "{text:?}");
    }
    for status in ["000", "099"] {
        let text = format!("HTTP/1.1 {status} OK\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(refused(&text), ProtocolError::Status);
    }
    let text = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n";
    assert_eq!(refused(text), ProtocolError::OtherProtocol);
}

#[test]
fn a_head_without_end_is_refused_in_bounded_space() {
    let many = "a: b\r\n".repeat(MAX_HEADERS);
    let text = format!("HTTP/1.1 200 OK\r\n{many}\r\n");
    assert_eq!(
        read_whole(text.as_bytes()).end,
        NOT_KEPT,
        "as many as may be"
    );
    let text = format!("HTTP/1.1 200 OK\r\n{many}a: b\r\n\r\n");
    assert_eq!(
        refused(&text),
        ProtocolError::Head(httparse::Error::TooManyHeaders)
    );

    let fixed = "HTTP/1.1 204 OK\r\na: \r\n\r\n".len();
    let long = |bytes: usize| {
        format!(
            "HTTP/1.1 204 OK\r\na: {}\r\n\r\n",
            "x".repeat(bytes - fixed)
        )
    };
    for size in [1_000, 65_536] {
        let text = long(MAX_HEAD_BYTES);
        assert_eq!(
            read(text.as_bytes().chunks(size)).end,
            KEPT,
            "as long as may be"
        );
        let text = long(MAX_HEAD_BYTES + 1);
        let end = read(text.as_bytes().chunks(size)).end;
        assert_eq!(end, End::Broken(ProtocolError::HeadTooLong));
    }
    assert_eq!(
        read_whole(long(MAX_HEAD_BYTES + 1).as_bytes()).end,
        End::Broken(ProtocolError::HeadTooLong)
    );

    let mut reader = HeadReader::default();
    let mut begun = &b"HTTP/1.1 200 OK\r\nx: "[..];
    assert!(reader.read(&mut begun, |_| true).unwrap().is_none());
    let refused = (0..=MAX_HEAD_BYTES / 1_000)
        .find_map(|_| reader.read(&mut &[b'x'; 1_000][..], |_| true).err());
    assert_eq!(refused, Some(ProtocolError::HeadTooLong));
}

#[test]
fn interim_answers_without_end_are_refused() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let last = "HTTP/1.1 204 No Content\r\n\r\n";
    let text = format!("{}{last}", interim.repeat(MAX_INTERIM));
    assert_eq!(read_whole(text.as_bytes()).end, KEPT);
    assert_eq!(read(text.as_bytes().chunks(1)).end, KEPT);
    let text = format!("{}{last}", interim.repeat(MAX_INTERIM + 1));
    assert_eq!(refused(&text), ProtocolError::TooManyInterim);
}

fn chunked(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}")
}

#[test]
fn a_chunk_whose_size_is_in_doubt_is_refused() {
    for size in [
        "",
        " 5",
        "+5",
        "-5",
        "0x5",
        "x",
        "g",
        "5g",
        "5 5",
        "5 \0",
        "5,",
        "5\0",
        "5\n",
        "\n",
        "\r\n",
        ";x",
        "5\rx",
        "5\r\r\n",
        "10000000000000005",
        "00000000000000005",
        "ffffffffffffffff5",
    ] {
        let error = refused(&chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n")));
        assert_eq!(error, ProtocolError::ChunkSize, "{size:?}");
    }
    // The largest size that can be written only never ends.
    let outcome = read_whole(chunked("ffffffffffffffff\r\nhello").as_bytes());
    assert_eq!((&*outcome.body, outcome.end), (&b"hello"[..], End::Cut));
}

#[test]
fn what_comes_before_a_broken_chunk_is_handed_out() {
    for tail in [
        "X",
        "X\n",
        "\nx",
        "\rx",
        "\n",
        "\r\r",
        "hello",
        "\r\n5\r\nworld!",
    ] {
        let text = chunked(&format!("5\r\nhello{tail}\r\n0\r\n\r\n"));
        assert_eq!(refused(&text), ProtocolError::ChunkEnd, "{tail:?}");
        assert!(read_whole(text.as_bytes()).body.starts_with(b"hello"));
    }
}

#[test]
fn chunk_extensions_are_bounded_and_of_one_line() {
    for extension in [";\n", ";a\nb", ";a\0", ";\x7f"] {
        let text = chunked(&format!("5{extension}\r\nhello\r\n0\r\n\r\n"));
        assert_eq!(
            refused(&text),
            ProtocolError::ChunkExtension,
            "{extension:?}"
        );
    }
    let end = |fill: &str, count| {
        let one = format!("1{}\r\nx\r\n", fill.repeat(count));
        read_whole(chunked(&format!("{}0\r\n\r\n", one.repeat(16))).as_bytes()).end
    };
    for fill in [";", " "] {
        assert_eq!(end(fill, 1_000), KEPT);
        assert_eq!(
            end(fill, 1_024),
            End::Broken(ProtocolError::ChunkExtension),
            "all together"
        );
    }
}

#[test]
fn trailers_are_bounded_and_well_formed() {
    for trailer in [
        "\n",
        "a\r\n",
        "a\n",
        ": b",
        " a: b",
        "a : b",
        "a: b\n",
        "a: b\0",
        "a: b\rc",
        "a: b\r\n c",
        "\rx",
    ] {
        let text = chunked(&format!("0\r\n{trailer}\r\n\r\n"));
        assert_eq!(refused(&text), ProtocolError::Trailer, "{trailer:?}");
    }
    let end = |count| {
        let trailers = "a: bcdefghijkl\r\n".repeat(count);
        read_whole(chunked(&format!("0\r\n{trailers}\r\n")).as_bytes()).end
    };
    assert_eq!(end(1_000), KEPT);
    assert_eq!(end(1_200), End::Broken(ProtocolError::Trailer));
}
