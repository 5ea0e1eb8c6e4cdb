//! Connections that wait for their next request.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::WireError;
use super::connection::Connection;
use super::origin::Origin;

/// Idle connections are looked through no more often than this for their age.
const MIN_SWEEP_PERIOD: Duration = Duration::from_millis(50);

/// How connections are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolOptions {
    pub(crate) max_idle_per_host: usize,
    pub(crate) idle_timeout: Duration,
}

/// The idle connections of one worker.
#[derive(Debug)]
pub(super) struct Pool {
    shelves: Mutex<HashMap<Origin, Arc<Shelf>, RandomState>>,
    options: PoolOptions,
    janitor: Arc<Janitor>,
}

/// The idle connections to one origin; the one that was used last is on top.
#[derive(Debug)]
pub(super) struct Shelf {
    #[expect(
        clippy::vec_box,
        reason = "a connection is large and moves with each request"
    )]
    idle: Mutex<Vec<Box<Connection>>>,
    options: PoolOptions,
    janitor: Arc<Janitor>,
}

/// Who is told when something happens on an idle connection: its peer closed it, most likely.
#[derive(Debug, Default)]
struct Janitor {
    is_hired: AtomicBool,
    waker: OnceLock<Waker>,
}

impl Pool {
    pub(super) fn new(options: PoolOptions) -> Self {
        Self {
            shelves: Mutex::default(),
            options,
            janitor: Arc::default(),
        }
    }

    pub(super) const fn options(&self) -> PoolOptions {
        self.options
    }

    /// Returns the shelf of an origin.
    pub(super) fn shelf(&self, origin: &Origin) -> Arc<Shelf> {
        let mut shelves = self.shelves.lock();
        if let Some(shelf) = shelves.get(origin) {
            return Arc::clone(shelf);
        }
        let shelf = Arc::new(Shelf {
            idle: Mutex::default(),
            options: self.options,
            janitor: Arc::clone(&self.janitor),
        });
        shelves.insert(origin.clone(), Arc::clone(&shelf));
        shelf
    }

    /// Makes sure that idle connections which are old or closed go away although nobody asks for
    /// one. Call it inside a runtime.
    pub(super) fn keep_tidy(self: &Arc<Self>) {
        if !self.janitor.is_hired.swap(true, Ordering::Relaxed) {
            let period = (self.options.idle_timeout / 2).max(MIN_SWEEP_PERIOD);
            tokio::spawn(sweep_for_ever(Arc::downgrade(self), period));
        }
    }

    /// Drops what is old or closed, and shelves that are no longer used.
    fn sweep(&self, cx: &mut Context<'_>) {
        self.shelves.lock().retain(|_, shelf| {
            // Nobody can get hold of a shelf meanwhile other than through this map.
            shelf.sweep(cx) > 0 || Arc::strong_count(shelf) > 1
        });
    }
}

async fn sweep_for_ever(pool: Weak<Pool>, period: Duration) {
    let mut tick = pin!(sleep(period));
    std::future::poll_fn(|cx: &mut Context<'_>| {
        let Some(pool) = pool.upgrade() else {
            return Poll::Ready(());
        };
        // The waker of a task stays the same as long as the task lives.
        pool.janitor.waker.get_or_init(|| cx.waker().clone());
        pool.sweep(cx);
        while tick.as_mut().poll(cx).is_ready() {
            tick.as_mut().reset(Instant::now() + period);
        }
        Poll::Pending
    })
    .await;
}

impl Shelf {
    /// Takes the connection that was used last, if that is not too long ago. Its peer may have
    /// closed it in the meantime.
    pub(super) fn take(&self, now: Instant) -> Option<Box<Connection>> {
        let connection = self.idle.lock().pop()?;
        if now.duration_since(connection.idle_since) < self.options.idle_timeout {
            return Some(connection);
        }
        // Those below are older still.
        let old = std::mem::take(&mut *self.idle.lock());
        drop(old);
        None
    }

    /// Keeps a connection for the next request, or closes it when it cannot be used again.
    fn put(&self, mut connection: Box<Connection>, now: Instant) {
        if !connection.is_free() {
            return;
        }
        connection.idle_since = now;
        let mut idle = self.idle.lock();
        if idle.len() < self.options.max_idle_per_host && self.janitor.watches(&mut connection) {
            idle.push(connection);
        }
    }

    /// Drops what is old or closed and returns how many connections are left.
    fn sweep(&self, cx: &mut Context<'_>) -> usize {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        idle.retain_mut(|connection| {
            now.duration_since(connection.idle_since) < self.options.idle_timeout
                && connection.poll_unasked(cx).is_pending()
        });
        idle.len()
    }
}

impl Janitor {
    /// Has the janitor woken when something happens on a connection; returns `false` when that is
    /// the case already.
    fn watches(&self, connection: &mut Connection) -> bool {
        // A janitor that has not begun looks through all connections when it does.
        let waker = self.waker.get().map_or(Waker::noop(), |waker| waker);
        let mut cx = Context::from_waker(waker);
        connection.poll_unasked(&mut cx).is_pending()
    }
}

/// A connection in use. It goes back to its shelf only through [`Lease::give_back`]: when it is
/// dropped, the connection is closed at once.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Box<Connection>,
    shelf: Arc<Shelf>,
}

impl Lease {
    pub(super) const fn new(connection: Box<Connection>, shelf: Arc<Shelf>) -> Self {
        Self { connection, shelf }
    }

    pub(super) const fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Returns the next bytes of the answer, never an empty piece; `None` at its end.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, WireError>>> {
        self.connection.poll_data(cx)
    }

    /// Returns whether the answer was read to its end.
    pub(crate) const fn is_at_end(&self) -> bool {
        self.connection.is_at_end()
    }

    /// Returns how many bytes of the answer are still to be read, where that is known.
    pub(crate) const fn left(&self) -> Option<u64> {
        self.connection.left()
    }

    /// Returns ready once `due` has passed. `due` may differ from call to call.
    pub(crate) fn poll_passed(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        self.connection.poll_passed(cx, due)
    }

    /// Keeps the connection for the next request. The answer was read to its end.
    pub(crate) fn give_back(self, now: Instant) {
        self.shelf.put(self.connection, now);
    }
}
