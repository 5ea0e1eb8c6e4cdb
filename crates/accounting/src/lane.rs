//! The way of lines into the journal: gathered over one turn of an event loop, written at once.
//!
//! One lane per thread. Whoever opens or posts waits until the write has returned; the lane's task is
//! woken by the first line of a turn and runs after everybody else who was ready in that turn, so
//! that all their lines leave in one `write`. Lines that nobody waits for leave with those of the
//! next turn, which begins at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_domain::record::{OpenRequest, UsageRecord};
use tokio::sync::Notify;

use crate::account::Desk;
use crate::journal::{AttemptStart, Progress, Slot, Turn};
use crate::ledger::{Fsync, Shared};

/// How long a lane waits before it tries again to write what the journal could not take.
const RETRY_AFTER: Duration = Duration::from_millis(10);

/// The journal as one thread sees it.
#[derive(Debug)]
pub struct Lane {
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
    wake: Notify,
}

#[derive(Debug)]
struct Inner {
    turn: Turn,
    /// The desks of the posts in `turn`, in their order.
    desks: VecDeque<Arc<Desk>>,
    waiting: Vec<Waker>,
    /// Whether somebody waits, or is about to, for what is in `turn`.
    is_awaited: bool,
    /// How many turns have been written.
    written: u64,
    /// Whether the task of the lane has ended: then everybody writes for themselves.
    is_alone: bool,
}

impl Lane {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        let turn = shared.journal.turn();
        Arc::new(Self {
            shared,
            inner: Mutex::new(Inner {
                turn,
                desks: VecDeque::new(),
                waiting: Vec::new(),
                is_awaited: false,
                written: 0,
                is_alone: false,
            }),
            wake: Notify::new(),
        })
    }

    /// Writes lines until the future is dropped. Runs on the thread of the lane.
    pub async fn run(self: Arc<Self>) {
        let _alone = AloneOnDrop(&self);
        loop {
            self.wake.notified().await;
            if !self.inner.lock().is_awaited {
                tokio::task::yield_now().await;
            }
            while !self.flush() {
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Adds the open of a request. Returns the space of its post.
    pub(crate) fn open(self: &Arc<Self>, open: &OpenRequest, slot: Slot) -> (Slot, Written) {
        self.add(|inner| {
            inner.is_awaited = true;
            inner.turn.open(open, slot)
        })
    }

    /// Adds the start of an attempt; nobody waits for it.
    pub fn attempt(self: &Arc<Self>, attempt: &AttemptStart) {
        drop(self.add(|inner| inner.turn.attempt(attempt)));
    }

    /// Adds how far an answer has come; nobody waits for it.
    pub fn progress(self: &Arc<Self>, progress: &Progress) {
        drop(self.add(|inner| inner.turn.progress(progress)));
    }

    pub(crate) fn post(
        self: &Arc<Self>,
        record: Box<UsageRecord>,
        slot: Slot,
        desk: Arc<Desk>,
    ) -> Written {
        self.add(|inner| {
            inner.is_awaited = true;
            inner.turn.post(record, slot);
            inner.desks.push_back(desk);
        })
        .1
    }

    /// Adds lines to the turn that is being gathered.
    fn add<T>(self: &Arc<Self>, lines: impl FnOnce(&mut Inner) -> T) -> (T, Written) {
        let mut inner = self.inner.lock();
        let was_empty = inner.turn.is_empty();
        let added = lines(&mut inner);
        let written = Written {
            lane: Arc::clone(self),
            turn: inner.written,
        };
        let is_alone = inner.is_alone;
        drop(inner);
        if is_alone {
            self.flush();
        } else if was_empty {
            self.wake.notify_one();
        }
        (added, written)
    }

    /// Writes what was gathered when nobody else does.
    pub(crate) fn flush_if_alone(&self) {
        let is_needed = {
            let inner = self.inner.lock();
            inner.is_alone && !inner.turn.is_empty()
        };
        if is_needed {
            self.flush();
        }
    }

    /// Writes what was gathered. Returns false when the journal cannot take it now.
    fn flush(&self) -> bool {
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        if !inner.turn.is_empty() {
            crate::crash::point("turn.writing");
            let desks = &mut inner.desks;
            let appended = self.shared.journal.append(&mut inner.turn, |numbered| {
                if let Some(desk) = desks.pop_front() {
                    self.shared.take_post(numbered, desk);
                }
            });
            if let Err(error) = appended {
                drop(guard);
                self.shared.journal_failed(&error);
                return false;
            }
        }
        if self.shared.options.fsync == Fsync::Always
            && let Err(error) = self.shared.journal.sync()
        {
            // What waits goes on waiting until the journal was begun anew.
            drop(guard);
            self.shared.journal_failed(&error);
            return false;
        }
        crate::crash::point("turn.written");
        inner.written += 1;
        inner.is_awaited = false;
        let waiting = std::mem::take(&mut inner.waiting);
        drop(guard);
        self.shared.posts_came();
        for waker in waiting {
            waker.wake();
        }
        true
    }
}

struct AloneOnDrop<'a>(&'a Lane);

impl Drop for AloneOnDrop<'_> {
    fn drop(&mut self) {
        self.0.inner.lock().is_alone = true;
        self.0.flush();
    }
}

/// Resolves when lines are in the journal: their write has returned.
#[derive(Debug)]
#[must_use = "what depends on the lines must wait for it"]
pub struct Written {
    lane: Arc<Lane>,
    turn: u64,
}

impl Future for Written {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lane.inner.lock();
        if inner.written > self.turn {
            return Poll::Ready(());
        }
        inner.waiting.push(cx.waker().clone());
        Poll::Pending
    }
}
