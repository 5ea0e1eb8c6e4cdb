//! How far streams have come, for the journal: one line per stream that moved, at most every 50 ms,
//! all in one write. A stream whose process dies is recorded from its last line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_accounting::journal::Progress;
use sluice_accounting::{Lane, crash};
use sluice_domain::id::RequestId;
use sluice_domain::usage::TokenUsage;
use tokio::sync::Notify;

/// How far the journal may be behind what clients have received.
const BEHIND: Duration = Duration::from_millis(50);

/// The streams of one thread that have moved since they were last noted.
#[derive(Debug, Default)]
pub(crate) struct Board {
    moved: Mutex<Vec<Arc<Mark>>>,
    wake: Notify,
}

impl Board {
    /// Writes lines until the future is dropped.
    pub(crate) async fn run(self: Arc<Self>, lane: Arc<Lane>) {
        loop {
            self.wake.notified().await;
            tokio::time::sleep(BEHIND).await;
            for mark in std::mem::take(&mut *self.moved.lock()) {
                mark.note(&lane);
            }
        }
    }
}

/// How far one stream has come.
#[derive(Debug)]
pub(crate) struct Mark {
    board: Arc<Board>,
    request_id: RequestId,
    has_moved: AtomicBool,
    is_over: AtomicBool,
    output_tokens: AtomicI64,
    reported: Mutex<Option<TokenUsage>>,
}

impl Mark {
    pub(crate) fn new(board: Arc<Board>, request_id: RequestId) -> Arc<Self> {
        Arc::new(Self {
            board,
            request_id,
            has_moved: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            output_tokens: AtomicI64::new(0),
            reported: Mutex::default(),
        })
    }

    /// Notes that events were relayed: how much there is by now, at least.
    pub(crate) fn relayed(self: &Arc<Self>, output_tokens: i64, reported: Option<TokenUsage>) {
        self.output_tokens.store(output_tokens, Ordering::Relaxed);
        if reported.is_some() {
            *self.reported.lock() = reported;
        }
        if !self.has_moved.swap(true, Ordering::Relaxed) {
            let mut moved = self.board.moved.lock();
            moved.push(Arc::clone(self));
            if moved.len() == 1 {
                self.board.wake.notify_one();
            }
        }
    }

    /// Notes that the end is booked: there is nothing more to say.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    fn note(&self, lane: &Arc<Lane>) {
        // Before it is read: what comes now is noted next time.
        self.has_moved.store(false, Ordering::Relaxed);
        if self.is_over.load(Ordering::Relaxed) {
            return;
        }
        crash::point("progress.noting");
        lane.progress(&Progress {
            request_id: self.request_id,
            output_tokens: self.output_tokens.load(Ordering::Relaxed),
            reported: *self.reported.lock(),
        });
        crash::point("progress.noted");
    }
}
