//! Random answers in random pieces.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// How an answer tells its end.
#[derive(Debug, Clone)]
enum Framing {
    Length,
    Chunks {
        sizes: Vec<usize>,
        extension: String,
        trailers: usize,
    },
    Close,
}

fn framing() -> impl Strategy<Value = Framing> {
    let chunks = (
        vec(1_usize..40, 1..8),
        "(;[a-z]{0,9}(=[a-z]{1,5})?)?",
        0_usize..3,
    )
        .prop_map(|(sizes, extension, trailers)| Framing::Chunks {
            sizes,
            extension,
            trailers,
        });
    prop_oneof![Just(Framing::Length), chunks, Just(Framing::Close)]
}

fn answer(framing: &Framing, interim: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(interim);
    bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\nserver: x\r\n");
    match framing {
        Framing::Close => {
            bytes.extend_from_slice(b"\r\n");
            bytes.extend_from_slice(body);
        }
        Framing::Length => {
            bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
            bytes.extend_from_slice(body);
        }
        Framing::Chunks {
            sizes,
            extension,
            trailers,
        } => {
            bytes.extend_from_slice(b"transfer-encoding: chunked\r\n\r\n");
            let mut rest = body;
            for size in sizes.iter().cycle() {
                let (chunk, later) = rest.split_at(rest.len().min(*size));
                rest = later;
                bytes.extend_from_slice(format!("{:x}{extension}\r\n", chunk.len()).as_bytes());
                if chunk.is_empty() {
                    break;
                }
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice("t: v\r\n".repeat(*trailers).as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes
}

/// Cuts `bytes` into pieces of these sizes, the last of which repeats.
pub(super) fn cut<'a>(mut bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes.iter().cycle() {
        let (piece, rest) = bytes.split_at(bytes.len().min(*size));
        pieces.push(piece);
        bytes = rest;
        if bytes.is_empty() {
            break;
        }
    }
    pieces
}

proptest! {
    #[test]
    fn a_valid_answer_comes_out_as_it_was_put_in(
        framing in framing(),
        interim in 0_usize..3,
        body in vec(any::<u8>(), 0..300),
        sizes in vec(1_usize..60, 1..10),
    ) {
        let bytes = answer(&framing, interim, &body);
        let outcome = read(cut(&bytes, &sizes));
        let is_reusable = !matches!(framing, Framing::Close);
        prop_assert_eq!(outcome.end, End::Complete { is_reusable });
        prop_assert_eq!(outcome.head.unwrap().0, 200);
        prop_assert_eq!(outcome.body, body);
    }

    #[test]
    fn random_bytes_are_bounded_work_and_never_an_answer_by_chance(
        tail in vec(any::<u8>(), 0..300),
        sizes in vec(1_usize..60, 1..10),
    ) {
        let mut bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        bytes.extend_from_slice(&tail);
        prop_assert_eq!(read(cut(&bytes, &sizes)), read_whole(&bytes));
    }
}
