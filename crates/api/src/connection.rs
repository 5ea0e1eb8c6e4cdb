//! How long a client connection may keep us waiting.
//!
//! One coarse timer per connection instead of one per request: it looks now and then whether a head
//! is overdue, or whether the client has stopped to read. A connection that rests between two requests is left alone much longer, because a
//! proxy in front keeps connections open and sends on them at any time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    /// Whether bytes wait for the client to take them.
    is_blocked: AtomicBool,
    /// How often it took some after it had not.
    unblocked: AtomicU64,
}

impl Activity {
    /// Returns whether bytes wait for the client to take them.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    fn wrote<T>(&self, polled: Poll<T>) -> Poll<T> {
        let is_blocked = polled.is_pending();
        if is_blocked != self.is_blocked() {
            self.is_blocked.store(is_blocked, Ordering::Relaxed);
            self.unblocked
                .fetch_add(u64::from(!is_blocked), Ordering::Relaxed);
        }
        polled
    }

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

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientPatience {
    /// To send a head.
    pub(crate) head: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// To take bytes that wait for it.
    pub(crate) write_stall: Duration,
}

/// Judges at each look whether the client is overdue.
#[derive(Debug)]
pub(crate) struct ClientWatch {
    patience: ClientPatience,
    resting_since: Instant,
    head_since: Option<Instant>,
    stalled_since: Option<Instant>,
    unblocked_seen: u64,
    requests_seen: u64,
    bytes_seen: u64,
}

impl ClientWatch {
    /// A new connection owes us a head from the start.
    pub(crate) fn new(patience: ClientPatience, now: Instant) -> Self {
        Self {
            patience,
            resting_since: now,
            head_since: Some(now),
            stalled_since: None,
            unblocked_seen: 0,
            requests_seen: 0,
            bytes_seen: 0,
        }
    }

    /// How often to look: a client is cut off between one and one and a half times its timeout.
    pub(crate) fn look_every(&self) -> Duration {
        let shortest = self.patience.head.min(self.patience.write_stall);
        (shortest / 2).max(Duration::from_millis(10))
    }

    /// Returns whether the client has taken nothing for too long, although bytes wait for it.
    fn is_stalled(&mut self, activity: &Activity, now: Instant) -> bool {
        let unblocked = activity.unblocked.load(Ordering::Relaxed);
        if !activity.is_blocked() || unblocked != self.unblocked_seen {
            self.unblocked_seen = unblocked;
            self.stalled_since = None;
        }
        if !activity.is_blocked() {
            return false;
        }
        let since = *self.stalled_since.get_or_insert(now);
        now.duration_since(since) >= self.patience.write_stall
    }

    /// Returns whether the connection should be closed.
    pub(crate) fn is_overdue(&mut self, activity: &Activity, now: Instant) -> bool {
        if self.is_stalled(activity, now) {
            return true;
        }
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
            .is_some_and(|since| is_late(since, self.patience.head))
            || is_late(self.resting_since, self.patience.idle)
    }
}

/// A connection that tells what it reads and whether it can write.
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
        let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.activity.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if slices.len() == 1 || length > MAX_JOINED {
            let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
            return self.activity.wrote(polled);
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
        let polled = Pin::new(&mut self.stream).poll_write(cx, joined);
        self.activity.wrote(polled)
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

    const PATIENCE: ClientPatience = ClientPatience {
        head: Duration::from_secs(10),
        idle: Duration::from_mins(2),
        write_stall: Duration::from_secs(30),
    };

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_first_head_is_due_from_the_start() {
        let start = Instant::now();
        let (mut watch, activity) = (ClientWatch::new(PATIENCE, start), Activity::default());
        assert!(!watch.is_overdue(&activity, at(start, 5)));
        activity.bytes_read.fetch_add(20, Ordering::Relaxed);
        assert!(!watch.is_overdue(&activity, at(start, 9)));
        assert!(watch.is_overdue(&activity, at(start, 10)));
    }

    #[test]
    fn a_resting_connection_is_kept_and_a_dribbled_head_on_it_is_not() {
        let start = Instant::now();
        let (mut watch, activity) = (ClientWatch::new(PATIENCE, start), Activity::default());
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
    fn a_client_that_takes_nothing_is_overdue_and_a_slow_one_is_not() {
        let start = Instant::now();
        let (mut watch, activity) = (ClientWatch::new(PATIENCE, start), Activity::default());
        activity.request_began();
        for second in (0..200).step_by(20) {
            assert_eq!(activity.wrote::<()>(Poll::Pending), Poll::Pending);
            assert!(!watch.is_overdue(&activity, at(start, second)));
            assert!(!watch.is_overdue(&activity, at(start, second + 19)));
            // It takes a little, and is behind again before anybody looks.
            assert!(activity.wrote(Poll::Ready(())).is_ready());
        }
        assert_eq!(activity.wrote::<()>(Poll::Pending), Poll::Pending);
        assert!(!watch.is_overdue(&activity, at(start, 200)));
        assert!(!watch.is_overdue(&activity, at(start, 229)));
        assert!(watch.is_overdue(&activity, at(start, 230)));
        assert!(activity.wrote(Poll::Ready(())).is_ready());
        assert!(!watch.is_overdue(&activity, at(start, 500)));
    }

    #[test]
    fn a_connection_that_rests_too_long_is_closed() {
        let start = Instant::now();
        let (mut watch, activity) = (ClientWatch::new(PATIENCE, start), Activity::default());
        activity.request_began();
        activity.request_ended();
        assert!(!watch.is_overdue(&activity, at(start, 5)));
        assert!(!watch.is_overdue(&activity, at(start, 124)));
        assert!(watch.is_overdue(&activity, at(start, 125)));
    }
}
