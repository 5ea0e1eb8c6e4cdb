//! How long a client connection may keep us waiting.
//!
//! One coarse timer per connection instead of one per request: it looks now and then whether a head
//! is overdue. A connection that rests between two requests is left alone much longer, because a
//! proxy in front keeps connections open and sends on them at any time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Pieces that are together no longer than this, in bytes, are written as one.
const MAX_JOINED: usize = 1024;

/// What the parts of a connection tell each other.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    bytes_read: AtomicU64,
    requests_begun: AtomicU64,
    requests_ended: AtomicU64,
}

impl Activity {
    pub(crate) fn request_began(&self) {
        self.requests_begun.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether a request is being answered.
    pub(crate) fn is_busy(&self) -> bool {
        self.requests_begun.load(Ordering::Relaxed) != self.requests_ended.load(Ordering::Relaxed)
    }

    /// Notes that the last byte of an answer was handed out, or nobody wants it.
    pub(crate) fn request_ended(&self) {
        self.requests_ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// Judges at each look whether the client is overdue.
#[derive(Debug)]
pub(crate) struct HeadWatch {
    head_timeout: Duration,
    idle_timeout: Duration,
    resting_since: Instant,
    head_since: Option<Instant>,
    requests_seen: u64,
    bytes_seen: u64,
}

impl HeadWatch {
    /// A new connection owes us a head from the start.
    pub(crate) fn new(head_timeout: Duration, idle_timeout: Duration, now: Instant) -> Self {
        Self {
            head_timeout,
            idle_timeout,
            resting_since: now,
            head_since: Some(now),
            requests_seen: 0,
            bytes_seen: 0,
        }
    }

    /// How often to look: a head is cut off between one and one and a half times its timeout.
    pub(crate) fn look_every(&self) -> Duration {
        (self.head_timeout / 2).max(Duration::from_millis(10))
    }

    /// Returns whether the connection should be closed.
    pub(crate) fn is_overdue(&mut self, activity: &Activity, now: Instant) -> bool {
        let begun = activity.requests_begun.load(Ordering::Relaxed);
        let bytes = activity.bytes_read.load(Ordering::Relaxed);
        if activity.is_busy() || begun != self.requests_seen {
            self.requests_seen = begun;
            self.bytes_seen = bytes;
            self.resting_since = now;
            self.head_since = None;
            return false;
        }
        if bytes != self.bytes_seen {
            self.head_since.get_or_insert(now);
        }
        let is_late = |since: Instant, limit: Duration| now.duration_since(since) >= limit;
        self.head_since
            .is_some_and(|since| is_late(since, self.head_timeout))
            || is_late(self.resting_since, self.idle_timeout)
    }
}

/// A connection that counts what it reads.
#[derive(Debug)]
pub(crate) struct CountedStream {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl CountedStream {
    pub(crate) fn new(stream: TcpStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity }
    }
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        let read = buffer.filled().len() - before;
        self.activity
            .bytes_read
            .fetch_add(read as u64, Ordering::Relaxed);
        polled
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if slices.len() == 1 || length > MAX_JOINED {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        // An event of a stream comes in three pieces; the system takes one for less than three.
        let mut joined = [0; MAX_JOINED];
        let mut rest = joined.as_mut_slice();
        for slice in slices {
            let (place, after) = rest.split_at_mut(slice.len());
            place.copy_from_slice(slice);
            rest = after;
        }
        let joined = joined.get(..length).unwrap_or_default();
        Pin::new(&mut self.stream).poll_write(cx, joined)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_mins(2);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_first_head_is_due_from_the_start() {
        let start = Instant::now();
        let (mut watch, activity) = (HeadWatch::new(HEAD, IDLE, start), Activity::default());
        assert!(!watch.is_overdue(&activity, at(start, 5)));
        activity.bytes_read.fetch_add(20, Ordering::Relaxed);
        assert!(!watch.is_overdue(&activity, at(start, 9)));
        assert!(watch.is_overdue(&activity, at(start, 10)));
    }

    #[test]
    fn a_resting_connection_is_kept_and_a_dribbled_head_on_it_is_not() {
        let start = Instant::now();
        let (mut watch, activity) = (HeadWatch::new(HEAD, IDLE, start), Activity::default());
        activity.request_began();
        assert!(
            !watch.is_overdue(&activity, at(start, 50)),
            "a long answer is no fault"
        );
        activity.request_ended();
        assert!(!watch.is_overdue(&activity, at(start, 55)));
        assert!(
            !watch.is_overdue(&activity, at(start, 115)),
            "a minute of rest"
        );
        activity.bytes_read.fetch_add(1, Ordering::Relaxed);
        assert!(!watch.is_overdue(&activity, at(start, 120)));
        activity.bytes_read.fetch_add(1, Ordering::Relaxed);
        assert!(!watch.is_overdue(&activity, at(start, 125)));
        assert!(watch.is_overdue(&activity, at(start, 130)));
    }

    #[test]
    fn a_connection_that_rests_too_long_is_closed() {
        let start = Instant::now();
        let (mut watch, activity) = (HeadWatch::new(HEAD, IDLE, start), Activity::default());
        activity.request_began();
        activity.request_ended();
        assert!(!watch.is_overdue(&activity, at(start, 5)));
        assert!(!watch.is_overdue(&activity, at(start, 124)));
        assert!(watch.is_overdue(&activity, at(start, 125)));
    }
}
