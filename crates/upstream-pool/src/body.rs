//! The body of an answer: bytes under deadlines.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, timeout};

use crate::client::{Lease, WireError};
use crate::demo::stream::DemoStream;
use crate::error::{Cause, ErrorClass};

/// How long the rest of a finished stream may take, so that its connection can be used again.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// How much may still come after the last event; more is not worth reading.
const DRAIN_BYTES: usize = 64 * 1024;

/// The body of an answer broke off.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamBodyError {
    /// No byte came for too long.
    #[error("the upstream sent nothing for too long")]
    Idle,
    /// The answer took too long as a whole.
    #[error("the answer of the upstream took too long")]
    Total,
    /// The connection broke.
    #[error("the connection to the upstream broke")]
    Reset(#[source] Cause),
    /// The answer ended before its declared end.
    #[error("the answer of the upstream ended early")]
    Cut(#[source] Cause),
    /// The bytes do not follow the protocol.
    #[error("the answer of the upstream breaks the protocol")]
    Protocol(#[source] Cause),
    /// The answer is longer than the reader takes.
    #[error("the answer of the upstream is longer than {limit} bytes")]
    TooLong {
        /// What the reader takes, in bytes.
        limit: usize,
    },
}

impl UpstreamBodyError {
    /// Returns the class of the failure.
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::Idle | Self::Total => ErrorClass::Timeout,
            Self::Reset(_) => ErrorClass::Reset,
            Self::Cut(_) => ErrorClass::Cut,
            Self::Protocol(_) | Self::TooLong { .. } => ErrorClass::Protocol,
        }
    }
}

/// The body of an answer.
///
/// Deadlines count while somebody waits for bytes: a reader that pauses does not make the upstream
/// late. Dropping the body before its end closes the connection to the upstream at once.
#[derive(Debug)]
pub struct UpstreamBody {
    /// Bytes that were read already; they come first.
    prefix: Bytes,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Wire(Wire),
    Demo(Box<DemoStream>),
    Ended,
}

/// An answer that comes over a connection.
#[derive(Debug)]
pub(crate) struct Wire {
    /// The connection; `None` once the answer is over.
    lease: Option<Lease>,
    /// What came with the head.
    first: Bytes,
    /// Since when the reader has been waiting; `None` when bytes came last.
    waiting_since: Option<Instant>,
    idle: Duration,
    total_due: Instant,
}

impl Wire {
    /// `at` is when the head came.
    pub(crate) fn new(
        first: Bytes,
        lease: Lease,
        idle: Duration,
        total_due: Instant,
        at: Instant,
    ) -> Self {
        let mut wire = Self {
            lease: Some(lease),
            first,
            waiting_since: None,
            idle,
            total_due,
        };
        wire.give_back_at_end(|| at);
        wire
    }

    /// Puts the deadline for the whole answer forward.
    pub(crate) fn finish_by(&mut self, due: Instant) {
        self.total_due = self.total_due.min(due);
    }

    /// Returns whether nothing more comes.
    pub(crate) const fn is_at_end(&self) -> bool {
        self.lease.is_none() && self.first.is_empty()
    }

    /// Returns how many bytes are still to come, where that is known.
    pub(crate) fn exact_length(&self) -> Option<u64> {
        let unread = self.lease.as_ref().map_or(Some(0), Lease::left)?;
        unread.checked_add(self.first.len() as u64)
    }

    /// Returns the next bytes; never an empty chunk.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, UpstreamBodyError>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Returns the next bytes of a stream whose first event has not come: only one deadline counts,
    /// whatever comes meanwhile. `None` when it passed.
    pub(crate) async fn next_before(
        &mut self,
        due: Instant,
    ) -> Option<Option<Result<Bytes, UpstreamBodyError>>> {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(item) = self.poll_data(cx) {
                return Poll::Ready(Some(item));
            }
            ready!(self.poll_passed(cx, due));
            Poll::Ready(None)
        })
        .await
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamBodyError>>> {
        let came_with_head = !self.first.is_empty();
        if let Poll::Ready(item) = self.poll_data(cx) {
            // An upstream that never pauses never lets the timer below be looked at.
            let has_paused = came_with_head || self.waiting_since.take().is_some();
            let is_late =
                !has_paused && matches!(item, Some(Ok(_))) && self.total_due <= Instant::now();
            return Poll::Ready(if is_late {
                Some(Err(UpstreamBodyError::Total))
            } else {
                item
            });
        }
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let idle_due = since + self.idle;
        ready!(self.poll_passed(cx, idle_due.min(self.total_due)));
        Poll::Ready(Some(Err(if idle_due < self.total_due {
            UpstreamBodyError::Idle
        } else {
            UpstreamBodyError::Total
        })))
    }

    fn poll_passed(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        match &mut self.lease {
            Some(lease) => lease.poll_passed(cx, due),
            None => Poll::Pending,
        }
    }

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamBodyError>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.first))));
        }
        let Some(lease) = &mut self.lease else {
            return Poll::Ready(None);
        };
        let item = ready!(lease.poll_data(cx));
        if let Some(Err(error)) = item {
            // It cannot be used again.
            self.lease = None;
            return Poll::Ready(Some(Err(classify(error))));
        }
        self.give_back_at_end(Instant::now);
        Poll::Ready(item.map(|data| data.map_err(classify)))
    }

    fn give_back_at_end(&mut self, now: impl FnOnce() -> Instant) {
        if let Some(lease) = self.lease.take_if(|lease| lease.is_at_end()) {
            lease.give_back(now());
        }
    }
}

/// Tells an early end from a broken connection from broken framing.
fn classify(error: WireError) -> UpstreamBodyError {
    let cause = match error {
        WireError::Closed => return UpstreamBodyError::Cut(error.into()),
        WireError::Protocol(_) => return UpstreamBodyError::Protocol(error.into()),
        WireError::Failed(ref cause) => cause.kind(),
    };
    match cause {
        // An encrypted connection that ended without saying so.
        io::ErrorKind::UnexpectedEof => UpstreamBodyError::Cut(error.into()),
        // Bytes that cannot be decrypted.
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
            UpstreamBodyError::Protocol(error.into())
        }
        _ => UpstreamBodyError::Reset(error.into()),
    }
}

impl UpstreamBody {
    /// Builds a body that is here already.
    pub(crate) fn in_memory(bytes: Bytes) -> Self {
        Self {
            prefix: bytes,
            source: Source::Ended,
        }
    }

    /// Builds a body of which `prefix` was read already.
    pub(crate) fn wire(prefix: Bytes, wire: Wire) -> Self {
        let source = if wire.is_at_end() {
            Source::Ended
        } else {
            Source::Wire(wire)
        };
        Self { prefix, source }
    }

    /// Builds a body that the built-in upstream writes.
    pub(crate) fn demo(stream: DemoStream) -> Self {
        Self {
            prefix: Bytes::new(),
            source: Source::Demo(Box::new(stream)),
        }
    }

    /// Returns the whole body when it is here already.
    pub fn as_complete(&self) -> Option<&Bytes> {
        matches!(self.source, Source::Ended).then_some(&self.prefix)
    }

    /// Returns the next bytes, never an empty chunk; `None` after the end or a failure.
    ///
    /// # Errors
    /// See [`UpstreamBodyError`]; nothing more comes after one.
    ///
    /// # Cancel safety
    /// Safe: no bytes are lost when the future is dropped.
    pub async fn next_chunk(&mut self) -> Option<Result<Bytes, UpstreamBodyError>> {
        std::future::poll_fn(|cx| self.poll_chunk(cx)).await
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// [`UpstreamBodyError::TooLong`] when there is more than `limit` bytes; the connection is
    /// closed then. Else whatever broke the answer off.
    ///
    /// # Units
    /// `limit` is in bytes.
    ///
    /// # Cancel safety
    /// Not safe: what was read is lost, and the connection is closed.
    pub async fn collect(mut self, limit: usize) -> Result<Bytes, UpstreamBodyError> {
        let too_long = UpstreamBodyError::TooLong { limit };
        let first = match self.next_chunk().await {
            None => return Ok(Bytes::new()),
            Some(chunk) => chunk?,
        };
        if first.len() > limit {
            return Err(too_long);
        }
        if self.is_end_stream() {
            return Ok(first);
        }
        let expected = usize::try_from(self.size_hint().lower()).unwrap_or(limit);
        let mut whole = BytesMut::with_capacity(first.len().saturating_add(expected).min(limit));
        whole.extend_from_slice(&first);
        while let Some(chunk) = self.next_chunk().await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > limit {
                return Err(too_long);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// Reads what is left after the last event in the background, so that the connection can be
    /// used again; gives up, and closes it, after a second or 64 KiB.
    ///
    /// Call it inside a runtime, when nothing of the rest matters any more.
    pub fn drain_rest(mut self) {
        self.prefix = Bytes::new();
        if !matches!(self.source, Source::Wire(_)) {
            return;
        }
        // Where the end has come already no task is needed. The task polls again, with a waker.
        match self.poll_chunk(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None | Some(Err(_))) => return,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        let rest = async move {
            let mut left = DRAIN_BYTES;
            while let Some(Ok(chunk)) = self.next_chunk().await {
                match left.checked_sub(chunk.len()) {
                    Some(less) => left = less,
                    None => break,
                }
            }
        };
        tokio::spawn(async move {
            // Out of time: the body is dropped, which closes the connection.
            if let Err(_elapsed) = timeout(DRAIN_TIME, rest).await {}
        });
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, UpstreamBodyError>>> {
        if !self.prefix.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.prefix))));
        }
        let item = match &mut self.source {
            Source::Wire(wire) => ready!(wire.poll_next(cx)),
            Source::Demo(stream) => ready!(stream.poll_next(cx)).map(Ok),
            Source::Ended => None,
        };
        let has_ended = match &self.source {
            Source::Wire(wire) => wire.is_at_end(),
            Source::Demo(_) | Source::Ended => false,
        };
        if has_ended || !matches!(item, Some(Ok(_))) {
            self.source = Source::Ended;
        }
        Poll::Ready(item)
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        self.poll_chunk(cx)
            .map(|item| item.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.prefix.is_empty() && matches!(self.source, Source::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.prefix.len() as u64;
        let mut hint = match &self.source {
            Source::Wire(wire) => wire
                .exact_length()
                .map_or_else(SizeHint::new, SizeHint::with_exact),
            Source::Demo(_) => SizeHint::new(),
            Source::Ended => SizeHint::with_exact(0),
        };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint.set_lower(hint.lower().saturating_add(read));
        hint
    }
}
