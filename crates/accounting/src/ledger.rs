//! Holds, and the queue of records on their way to the database.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_domain::ports::{LedgerStore, StoreError};
use sluice_domain::quota::Payer;
use sluice_domain::record::{OpenRequest, RequestEnd, UsageRecord};
use sluice_domain::time::{Period, TimeZone, UnixMillis};
use tokio::sync::Notify;

use crate::account::{Account, Counter, Counters, Spent};

/// A request may not be admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The month's tokens are spent.
    #[error("the quota of the month is spent")]
    Spent(Spent),
    /// Too many records wait for the database; admitting more would need unbounded memory.
    #[error("the ledger is behind")]
    Behind,
    /// Another process has taken over this instance's identity, or the instance is closing.
    #[error("this instance may not write to the ledger")]
    Closed,
}

/// A record that waits for the database, with the counters it moves.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) record: Box<UsageRecord>,
    pub(crate) counters: [Arc<Counter>; 3],
}

/// Figures about the ledger's own work.
#[derive(Debug, Default)]
pub struct LedgerStats {
    pub(crate) open_holds: AtomicI64,
    pub(crate) waiting: AtomicI64,
    pub(crate) posted: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) quarantined: AtomicU64,
}

impl LedgerStats {
    /// Requests that are admitted and have not ended.
    pub fn open_holds(&self) -> i64 {
        self.open_holds.load(Ordering::Relaxed)
    }

    /// Records that have ended and are not in the database yet.
    pub fn waiting(&self) -> i64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Records that were taken in by the database since the start.
    pub fn posted(&self) -> u64 {
        self.posted.load(Ordering::Relaxed)
    }

    /// Transactions that took records in since the start.
    pub fn batches(&self) -> u64 {
        self.batches.load(Ordering::Relaxed)
    }

    /// Transactions that failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Records that the database refused and that were set aside since the start.
    pub fn quarantined(&self) -> u64 {
        self.quarantined.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    pub(crate) queue: Mutex<Vec<Waiting>>,
    pub(crate) wake: Notify,
    pub(crate) stats: LedgerStats,
    pub(crate) is_closed: AtomicBool,
    max_waiting: i64,
}

impl Shared {
    fn push(&self, waiting: Waiting) {
        let tokens = waiting.record.end.quota_tokens;
        for counter in &waiting.counters {
            counter.add_unposted(tokens);
        }
        self.stats.waiting.fetch_add(1, Ordering::Relaxed);
        let was_empty = {
            let mut queue = self.queue.lock();
            queue.push(waiting);
            queue.len() == 1
        };
        // The writer empties the whole queue at a time, so one wake-up per batch is enough.
        if was_empty {
            self.wake.notify_one();
        }
    }
}

/// Admits requests and takes their records. Cheap to clone; one per process.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(crate) shared: Arc<Shared>,
}

impl Ledger {
    /// Makes a ledger that refuses admission beyond `max_waiting` records that the database has not
    /// taken in.
    pub fn new(max_waiting: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                counters: Counters::default(),
                queue: Mutex::default(),
                wake: Notify::new(),
                stats: LedgerStats::default(),
                is_closed: AtomicBool::new(false),
                max_waiting: i64::try_from(max_waiting).unwrap_or(i64::MAX),
            }),
        }
    }

    /// Returns figures about the ledger's own work.
    pub fn stats(&self) -> &LedgerStats {
        &self.shared.stats
    }

    /// Opens the account of a payer for a period, with the balances that the database has now.
    ///
    /// # Errors
    /// [`StoreError`] of the look-up; it may be repeated when it was unavailable.
    pub async fn open_account(
        &self,
        store: &dyn LedgerStore,
        payer: Payer,
        period: Period,
        time_zone: TimeZone,
        now: UnixMillis,
    ) -> Result<Account, StoreError> {
        let balances = store.load_counters(&payer.scopes(), period.month).await?;
        Ok(self
            .shared
            .counters
            .open_account(payer, period, time_zone, now, &balances))
    }

    /// Admits a request, or says why not.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is held then and nothing is recorded.
    pub fn hold(&self, account: &Account, open: OpenRequest) -> Result<Hold, Refusal> {
        if self.shared.is_closed.load(Ordering::Relaxed) {
            return Err(Refusal::Closed);
        }
        if self.shared.stats.waiting() >= self.shared.max_waiting {
            return Err(Refusal::Behind);
        }
        if let Some(spent) = account.first_spent() {
            return Err(Refusal::Spent(spent));
        }
        self.shared.stats.open_holds.fetch_add(1, Ordering::Relaxed);
        Ok(Hold {
            shared: Arc::clone(&self.shared),
            pending: Some(Waiting {
                // What is posted when nobody ends the request.
                record: Box::new(UsageRecord {
                    open,
                    end: RequestEnd::abandoned(),
                }),
                counters: account.counters().clone(),
            }),
        })
    }
}

/// An admitted request. It ends in exactly one record: by [`post`](Self::post), or, when it is
/// dropped by a defect, as a record of zero that says so.
#[derive(Debug)]
#[must_use = "a hold that is dropped is recorded as a defect"]
pub struct Hold {
    shared: Arc<Shared>,
    pending: Option<Waiting>,
}

impl Hold {
    /// Returns what was fixed at admission; `None` only after it was posted.
    pub fn open(&self) -> Option<&OpenRequest> {
        self.pending.as_ref().map(|waiting| &waiting.record.open)
    }

    /// Books the end of the request: the only way into the ledger.
    pub fn post(mut self, end: RequestEnd) {
        if let Some(waiting) = &mut self.pending {
            waiting.record.end = end;
        }
        self.post_once();
    }

    fn post_once(&mut self) {
        if let Some(waiting) = self.pending.take() {
            self.shared.stats.open_holds.fetch_sub(1, Ordering::Relaxed);
            self.shared.push(waiting);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.pending.is_some() {
            tracing::error!("a hold was dropped without a post; it is recorded with zero tokens");
            self.post_once();
        }
    }
}
