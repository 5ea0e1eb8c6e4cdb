//! The same bytes through the client of hyper: what we take it takes too, and reads alike.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use proptest::collection::vec;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::property::cut;
use super::*;

/// A request without a body.
struct NoBody;

impl Body for NoBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

/// What hyper made of an answer; the error says only that there was one.
struct Theirs {
    head: Option<(StatusCode, HeaderMap)>,
    body: Vec<u8>,
    is_whole: bool,
    /// Whether it takes another request; asked only while the connection is open.
    is_reusable: bool,
}

async fn ask_hyper(pieces: &[&[u8]], closes: bool) -> Theirs {
    let (ours, mut peer) = tokio::io::duplex(1 << 20);
    let (mut sender, connection): (SendRequest<NoBody>, _) =
        handshake(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(async move { connection.await.ok() });
    let request = Request::post("/").header("host", "x").body(NoBody).unwrap();
    let asked = sender.send_request(request);
    let (answer, peer) = tokio::join!(asked, async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            peer.read_buf(&mut seen).await.unwrap();
        }
        for piece in pieces {
            // It has stopped reading when it does not like what it has read.
            if peer.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        (!closes).then_some(peer)
    });
    let mut theirs = Theirs {
        head: None,
        body: Vec::new(),
        is_whole: false,
        is_reusable: false,
    };
    let Ok(answer) = answer else {
        return theirs;
    };
    let (parts, mut incoming) = answer.into_parts();
    theirs.head = Some((parts.status, parts.headers));
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx));
        match timeout(Duration::from_secs(1), frame).await {
            Ok(None) => {
                theirs.is_whole = true;
                break;
            }
            Ok(Some(Ok(frame))) => {
                theirs.body.extend(frame.into_data().unwrap_or_default());
            }
            Ok(Some(Err(_))) | Err(_) => break,
        }
    }
    if theirs.is_whole {
        theirs.is_reusable = is_reusable(&mut sender, peer).await;
    }
    theirs
}

async fn is_reusable(sender: &mut SendRequest<NoBody>, peer: Option<DuplexStream>) -> bool {
    // On a paused clock this lets the connection do all it can.
    tokio::time::sleep(Duration::from_millis(1)).await;
    peer.is_some() && sender.is_ready()
}

/// Returns whether we refuse on purpose what hyper takes.
fn is_stricter(error: ProtocolError, bytes: &[u8]) -> bool {
    let has = |text: &str| memchr::memmem::find(bytes, text.as_bytes()).is_some();
    match error {
        // It ignores the length, hands out what is coded as if it were not, would upgrade, and
        // takes lines of trailers that end with LF alone.
        ProtocolError::TwoLengths
        | ProtocolError::TransferCoding
        | ProtocolError::OtherProtocol
        | ProtocolError::Trailer => true,
        // It does not read the length of an answer that has no body.
        ProtocolError::ContentLength => has(" 204") || has(" 304"),
        // It takes control characters in extensions.
        ProtocolError::ChunkExtension => bytes.iter().any(|byte| is_odd_control(*byte)),
        // It takes any number of leading zeros.
        ProtocolError::ChunkSize => has("00000000"),
        _ => false,
    }
}

const fn is_odd_control(byte: u8) -> bool {
    byte.is_ascii_control() && !matches!(byte, b'\r' | b'\n' | b'\t')
}

fn compare(bytes: &[u8], sizes: &[usize]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let pieces = cut(bytes, sizes);
    let ours = read(pieces.iter().copied());
    let theirs = runtime.block_on(ask_hyper(&pieces, true));
    let shown = String::from_utf8_lossy(bytes).into_owned();
    match ours.end {
        End::Complete { is_reusable } => {
            prop_assert!(theirs.is_whole, "refused by hyper: {:?}", shown);
            prop_assert_eq!(&ours.head, &theirs.head);
            prop_assert_eq!(&ours.body, &theirs.body);
            if is_reusable {
                let open = runtime.block_on(ask_hyper(&pieces, false));
                prop_assert!(open.is_reusable, "not used again by hyper: {:?}", shown);
            }
        }
        End::Cut => {
            prop_assert!(!theirs.is_whole, "whole for hyper: {:?}", shown);
            prop_assert_eq!(&ours.body, &theirs.body);
        }
        End::Broken(error) => {
            prop_assert!(
                !theirs.is_whole || is_stricter(error, bytes),
                "{:?}, but taken by hyper: {:?}",
                error,
                shown
            );
        }
    }
    Ok(())
}

/// What a mutation puts in: bytes that mean something, and words that do.
const WORDS: &[&str] = &[
    "\r",
    "\n",
    "\r\n",
    " ",
    "\t",
    ";",
    ",",
    ":",
    "0",
    "1",
    "5",
    "f",
    "G",
    "\0",
    "\x7f",
    "é",
    "-",
    "+",
    "x",
    "\r\n\r\n",
    "0\r\n\r\n",
    "5\r\nhello\r\n",
    "00000000000000000",
    "ffffffffffffffff",
    "content-length: 5\r\n",
    "content-length: 2\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip\r\n",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 x\r\n",
];

#[derive(Debug, Clone)]
enum Mutation {
    Put(usize, usize),
    Cut(usize, usize),
    Copy(usize, usize, usize),
    Flip(usize, u8),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = 0_usize..400;
    prop_oneof![
        4 => (at.clone(), 0..WORDS.len()).prop_map(|(at, word)| Mutation::Put(at, word)),
        2 => (at.clone(), 1_usize..20).prop_map(|(at, count)| Mutation::Cut(at, count)),
        1 => (at.clone(), 1_usize..40, at.clone()).prop_map(|(at, count, to)| Mutation::Copy(at, count, to)),
        1 => (at, any::<u8>()).prop_map(|(at, byte)| Mutation::Flip(at, byte)),
    ]
}

fn mutate(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let within = |at: usize| at % (bytes.len() + 1);
    match *mutation {
        Mutation::Put(at, word) => {
            let at = within(at);
            bytes.splice(at..at, WORDS[word].bytes());
        }
        Mutation::Cut(at, count) => {
            let at = within(at);
            bytes.drain(at..bytes.len().min(at + count));
        }
        Mutation::Copy(at, count, to) => {
            let (at, to) = (within(at), within(to));
            let copied = bytes[at..bytes.len().min(at + count)].to_vec();
            bytes.splice(to..to, copied);
        }
        Mutation::Flip(at, byte) => {
            let at = within(at);
            if let Some(old) = bytes.get_mut(at) {
                *old = byte;
            }
        }
    }
}

#[test]
fn hyper_reads_every_kind_of_answer_alike() {
    for (text, ..) in ANSWERS {
        for sizes in [&[1][..], &[1_000], &[7, 30]] {
            compare(text.as_bytes(), sizes).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn what_we_take_of_broken_answers_hyper_reads_alike(
        which in 0..ANSWERS.len(),
        mutations in vec(mutation(), 1..4),
        sizes in vec(1_usize..60, 1..6),
    ) {
        let mut bytes = ANSWERS[which].0.as_bytes().to_vec();
        for mutation in &mutations {
            mutate(&mut bytes, mutation);
        }
        compare(&bytes, &sizes)?;
    }
}
