//! One open connection, which is read and written by the task that uses it.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::WireError;
use super::http1::ProtocolError;
use super::http1::body::BodyDecoder;
use super::http1::head::{HeadReader, ResponseHead};
use super::http1::request::Outgoing;
use super::stream::Stream;
use crate::head;
use crate::watch::Watch;

/// No more than this is read at once, in bytes.
const MAX_READ: usize = 64 * 1024;

thread_local! {
    /// What all connections of a thread read into. What they have read is decoded and handed out
    /// before the next one reads, so a connection that waits holds no buffer.
    static READ_SPACE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// An open connection.
///
/// It has no task of its own: whoever waits for a head or for bytes of a body reads them. That
/// saves two switches between tasks per request, and dropping it closes the socket at once.
pub(super) struct Connection {
    stream: Stream,
    /// A request that was not yet sent to its end.
    request: Option<Outgoing>,
    head: HeadReader,
    body: BodyDecoder,
    /// Whether another request may be sent when the answer has ended.
    keeps_alive: bool,
    /// The timer of all deadlines; it lives as long as the connection, so that it is rarely moved.
    watch: Watch,
    /// Since when nobody has used it.
    pub(super) idle_since: Instant,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A request holds a credential and a prompt.
        f.debug_struct("Connection")
            .field("body", &self.body)
            .field("keeps_alive", &self.keeps_alive)
            .finish_non_exhaustive()
    }
}

/// The head of an answer came.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// What of the body came with it.
    pub(super) first: Bytes,
    /// When the request was sent.
    pub(super) sent_at: Instant,
}

/// No head of an answer came.
pub(super) enum SendFailure {
    /// The connection ended before anything of the request was sent.
    Unsent(WireError),
    /// The connection broke, or what came is no head.
    Broken(WireError),
    /// Nothing came in time.
    TimedOut,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Box<Self> {
        Box::new(Self {
            stream,
            request: None,
            head: HeadReader::default(),
            body: BodyDecoder::empty(),
            keeps_alive: true,
            watch: Watch::new(),
            idle_since: Instant::now(),
        })
    }

    /// Sends a request and waits for the head of its answer, `patience` long from when it was sent.
    ///
    /// An answer that comes before the whole request was sent is an answer; the rest of the request
    /// is sent while its body is read.
    ///
    /// # Cancel safety
    /// The connection cannot be used for another request when the future is dropped.
    pub(super) async fn send(
        &mut self,
        request: &Request<Bytes>,
        patience: Duration,
    ) -> Result<Answered, SendFailure> {
        self.request = Some(Outgoing::new(request));
        self.keeps_alive = false;
        let mut sent_at = None;
        let mut write_error = None;
        std::future::poll_fn(|cx| {
            if self.request.as_ref().is_none_or(Outgoing::has_begun) {
                if let Poll::Ready(read) = self.poll_head(cx) {
                    let sent_at = sent_at.unwrap_or_else(Instant::now);
                    return Poll::Ready(match (read, write_error.take()) {
                        (Ok((head, first)), _) => Ok(self.answered(head, first, sent_at)),
                        (Err(WireError::Closed | WireError::Failed(_)), Some(error)) => {
                            Err(SendFailure::Broken(WireError::Failed(error)))
                        }
                        (Err(error), _) => Err(SendFailure::Broken(error)),
                    });
                }
            } else if let Some(error) = self.stream.find_unasked() {
                // An idle connection is closed by its peer at any time, and what comes before a
                // request is no answer to it.
                return Poll::Ready(Err(SendFailure::Unsent(error)));
            } else if let Poll::Ready(error) = self.poll_unasked(cx) {
                return Poll::Ready(Err(SendFailure::Unsent(error)));
            }
            // The read above wakes the task for what comes from now on.
            if let Poll::Ready(Err(error)) = self.poll_send(cx) {
                let is_unsent = self.request.take().is_some_and(|rest| !rest.has_begun());
                if is_unsent && self.stream.writes_at_once() {
                    return Poll::Ready(Err(SendFailure::Unsent(WireError::Failed(error))));
                }
                // Whoever refuses the rest of a request may have said why.
                write_error = Some(error);
            }
            let sent_at = *sent_at.get_or_insert_with(Instant::now);
            ready!(self.watch.poll_passed(cx, sent_at + patience));
            Poll::Ready(Err(SendFailure::TimedOut))
        })
        .await
    }

    fn answered(&mut self, head: ResponseHead, first: Bytes, sent_at: Instant) -> Answered {
        let ResponseHead {
            status,
            headers,
            body,
            keeps_alive,
        } = head;
        self.body = body;
        self.keeps_alive = keeps_alive;
        Answered {
            status,
            headers,
            first,
            sent_at,
        }
    }

    /// Reads the head of an answer, and what of its body comes with it.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(ResponseHead, Bytes), WireError>> {
        loop {
            let reader = &mut self.head;
            let read = ready!(poll_read(&mut self.stream, cx, |mut input| {
                if input.is_empty() {
                    return Err(reader
                        .end_of_input()
                        .map_or(WireError::Closed, WireError::Protocol));
                }
                let Some(mut head) = reader.read(&mut input, head::is_of_interest)? else {
                    return Ok(None);
                };
                let first = head.body.decode(&mut input);
                head.keeps_alive &= input.is_empty();
                Ok(Some((head, first)))
            }));
            if let Some(done) = read.map_err(WireError::Failed).flatten().transpose() {
                return Poll::Ready(done);
            }
        }
    }

    /// Returns the next bytes of the body, never an empty piece; `None` at its end.
    pub(super) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, WireError>>> {
        if self.request.is_some()
            && let Poll::Ready(Err(_refused)) = self.poll_send(cx)
        {
            // The answer is here, so the rest of the request is not worth a failure.
            self.request = None;
            self.keeps_alive = false;
        }
        loop {
            if let Some(error) = self.body.failure() {
                return Poll::Ready(Some(Err(WireError::Protocol(error))));
            }
            if self.body.is_ended() {
                return Poll::Ready(None);
            }
            let (body, keeps_alive) = (&mut self.body, &mut self.keeps_alive);
            let read = ready!(poll_read(&mut self.stream, cx, |mut input| {
                if input.is_empty() {
                    return if body.end_of_input() {
                        Ok(Bytes::new())
                    } else {
                        Err(WireError::Closed)
                    };
                }
                let data = body.decode(&mut input);
                *keeps_alive &= input.is_empty();
                Ok(data)
            }));
            match read.map_err(WireError::Failed).flatten() {
                // It was framing alone.
                Ok(data) if data.is_empty() => {}
                result => return Poll::Ready(Some(result)),
            }
        }
    }

    /// Sends what is left of the request.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(request) = &mut self.request else {
            return Poll::Ready(Ok(()));
        };
        while !request.is_sent() {
            match ready!(self.stream.poll_write(cx, &request.pieces()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                bytes => request.advance(bytes),
            }
        }
        ready!(self.stream.poll_flush(cx))?;
        self.request = None;
        Poll::Ready(Ok(()))
    }

    /// Watches a connection on which nothing is awaited: it becomes ready when the connection
    /// ends, or something comes all the same, which makes it useless too.
    pub(super) fn poll_unasked(&mut self, cx: &mut Context<'_>) -> Poll<WireError> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let read = ready!(self.stream.poll_read(cx, &mut buffer));
        Poll::Ready(match read {
            Err(error) => WireError::Failed(error),
            Ok(()) if buffer.filled().is_empty() => WireError::Closed,
            Ok(()) => WireError::Protocol(ProtocolError::Unasked),
        })
    }

    /// Returns ready once `due` has passed.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        self.watch.poll_passed(cx, due)
    }

    /// Returns whether the body of the answer was read to its end.
    pub(super) const fn is_at_end(&self) -> bool {
        self.body.is_ended()
    }

    /// Returns how many bytes of the body are still to be read, where that is known.
    pub(super) const fn left(&self) -> Option<u64> {
        self.body.left()
    }

    /// Returns whether another request can be sent, as far as is known here.
    pub(super) const fn is_free(&self) -> bool {
        self.keeps_alive && self.body.is_ended() && self.request.is_none()
    }
}

/// Reads what has come and lets `take` have it; an empty slice is the end.
fn poll_read<T>(
    stream: &mut Stream,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    let mut space = READ_SPACE.take();
    if space.is_empty() {
        space.resize(MAX_READ, 0);
    }
    let mut buffer = ReadBuf::new(&mut space);
    let read = stream.poll_read(cx, &mut buffer);
    let taken = read.map_ok(|()| take(buffer.filled()));
    READ_SPACE.set(space);
    taken
}
