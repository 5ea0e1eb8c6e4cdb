//! The body of a request, which knows when it was sent.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// Tells when a request began to be written to a connection.
///
/// The connection asks for the body only once it writes the head, so that the mark tells apart what
/// was never sent, which may be tried again for free, from what may have been.
#[derive(Debug, Clone)]
pub(crate) struct SentMark {
    begun: Instant,
    /// Nanoseconds from `begun`, plus one; zero while nothing was sent.
    after: Arc<AtomicU64>,
}

impl SentMark {
    pub(crate) fn new(begun: Instant) -> Self {
        Self {
            begun,
            after: Arc::new(AtomicU64::new(0)),
        }
    }

    /// Returns when the request began to be written; `None` while nothing was.
    pub(crate) fn sent_at(&self) -> Option<Instant> {
        let after = self.after.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.begun + Duration::from_nanos(after))
    }

    fn set(&self) {
        let after = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX - 1);
        self.after.store(after + 1, Ordering::Relaxed);
    }
}

/// A body in one piece.
#[derive(Debug)]
pub(crate) struct RequestBody {
    /// `None` once it was handed over.
    bytes: Option<Bytes>,
    mark: SentMark,
}

impl RequestBody {
    /// Builds a body; an empty one is for requests without a body, and leaves no mark.
    pub(crate) fn new(bytes: Bytes, mark: SentMark) -> Self {
        Self {
            bytes: (!bytes.is_empty()).then_some(bytes),
            mark,
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = self.bytes.take();
        if bytes.is_some() {
            self.mark.set();
        }
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}
