//! Admission: holds inside the local leases, and the way of their records to the writer.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_domain::ports::{LedgerStore, StoreError};
use sluice_domain::quota::{Amounts, CounterBalance, HoldTerms, Payer, ScopeKind, ScopeSet};
use sluice_domain::record::{NumberedRecord, OpenRequest, RequestEnd, UsageRecord};
use sluice_domain::time::{Period, TimeZone, UnixMillis};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::account::{Account, Desk, Desks, Reserved};
use crate::inbox::{Inbox, Posting, Waiter};
use crate::journal::{Journal, JournalError, Slot};
use crate::lane::{Lane, Written};

/// How long a request waits for an answer of the database that is there and slow.
const DECISION_WAIT: Duration = Duration::from_secs(5);
/// How often it looks meanwhile whether it should go on waiting.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Most requests that wait for a lease at a time.
const MAX_WAITERS: usize = 65_536;

/// When lines of the journal reach the disk itself. Before a transaction goes out they always do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fsync {
    /// Every 50 ms while there are any.
    #[default]
    Interval,
    /// Before anybody relies on them: slow.
    Always,
    /// When the system likes.
    Never,
}

/// How the ledger behaves.
#[derive(Debug, Clone, Copy)]
pub struct LedgerOptions {
    /// Most records that wait for the database in memory; further ones wait in the journal alone.
    pub max_in_memory: usize,
    /// How long a request waits for room that others hold.
    pub quota_wait: Duration,
    /// For how much recent traffic leases are taken ahead, and after how long without use they are
    /// given back.
    pub outage_reserve: Duration,
    /// When lines of the journal reach the disk.
    pub fsync: Fsync,
    /// Whether slow file calls run on a thread for blocking work; a simulation runs them in place.
    pub blocks_on_threads: bool,
}

/// A request may not be admitted. Nothing is held and nothing is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What is left of the month's quota is less than what the request may cost.
    #[error("the quota of the month has no room for the request")]
    Spent(NoRoom),
    /// There is room, but other requests hold it; it may come free.
    #[error("what is left of the quota is held by other requests")]
    Held(NoRoom),
    /// The database is away, and what was leased of the quota is used up.
    #[error("the database is away and the lease is used up")]
    Unavailable,
    /// Too many requests wait for room; one more would need unbounded memory.
    #[error("too many requests wait for room")]
    Behind,
    /// The journal has no space or cannot be written.
    #[error("the journal cannot take the request")]
    Journal,
    /// This instance may not write to the ledger any more, or it is closing.
    #[error("this instance may not write to the ledger")]
    Closed,
}

/// A request that was not admitted, with its record for another try.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The record that was to be.
    pub record: Box<UsageRecord>,
}

/// A scope whose quota has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Where.
    pub scope: ScopeKind,
    /// What may be used in the month, what is used, and what is held of it.
    pub balance: CounterBalance,
    /// What the request would have set aside.
    pub bound: Amounts,
}

impl NoRoom {
    /// Counts what this instance has charged and not posted as used rather than as held.
    pub(crate) fn new(balance: CounterBalance, unposted: Amounts, bound: Amounts) -> Self {
        Self {
            scope: balance.key.scope.kind,
            balance: CounterBalance {
                used: balance.used.plus(unposted),
                held: balance.held.minus(unposted),
                ..balance
            },
            bound,
        }
    }
}

/// Figures about the ledger's own work.
#[derive(Debug, Default)]
pub struct LedgerStats {
    pub(crate) open_holds: AtomicI64,
    pub(crate) waiting: AtomicI64,
    pub(crate) posted: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) lease_moves: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) quarantined: AtomicU64,
    pub(crate) recovered: AtomicU64,
    pub(crate) read_back: AtomicU64,
    pub(crate) resyncs: AtomicU64,
}

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        impl LedgerStats {$(
            $(#[$doc])*
            pub fn $name(&self) -> $type {
                self.$name.load(Ordering::Relaxed)
            }
        )*}
    };
}

figures! {
    /// Requests that ask for admission, or are admitted and have not ended.
    open_holds: i64;
    /// Records that have ended and are not in the database yet.
    waiting: i64;
    /// Records that were taken in by the database since the start.
    posted: u64;
    /// Transactions that took records in since the start.
    batches: u64;
    /// Transactions that took or returned leases since the start.
    lease_moves: u64;
    /// Transactions that failed since the start.
    failures: u64;
    /// Records that the database refused and that were set aside since the start.
    quarantined: u64;
    /// Requests that a crash cut off and whose records were rebuilt at the start.
    recovered: u64;
    /// Records that had waited in the journal alone and were read there since the start.
    read_back: u64;
    /// How often the database was found to have gone back since the start.
    resyncs: u64;
}

/// Whether a request waits for room that others hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// It does not: it may be tried again with a tighter bound.
    None,
    /// As long as the setting says.
    QuotaWait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Admission {
    Open = 0,
    /// Nothing new while an operator's word holds that settled this instance.
    Settled = 1,
    /// Nothing new; what is open ends.
    Closed = 2,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) desks: Desks,
    pub(crate) journal: Journal,
    pub(crate) inbox: Mutex<Inbox>,
    /// Records came.
    pub(crate) posts: Notify,
    /// Room may have come free here, or who waited for it is gone.
    pub(crate) room: Notify,
    /// Somebody needs a lease, or the journal needs care.
    pub(crate) urgent: Notify,
    pub(crate) stats: LedgerStats,
    pub(crate) options: LedgerOptions,
    admission: AtomicU8,
    /// Whether the last transaction reached the database.
    pub(crate) is_database_up: AtomicBool,
    /// Whether the database knows of this start.
    pub(crate) is_claimed: AtomicBool,
    pub(crate) journal_needs_care: AtomicBool,
    /// Why the journal gets no further space, while it gets none.
    pub(crate) lack_of_space: Mutex<Option<&'static str>>,
    /// When a closing writer gives up; `None` while it is not closing.
    pub(crate) give_up_at: Mutex<Option<Instant>>,
    pub(crate) lanes: Mutex<Vec<Weak<Lane>>>,
}

impl Shared {
    /// Takes a post that was written: called in the order of the numbers.
    pub(crate) fn take_post(&self, numbered: NumberedRecord, desk: Arc<Desk>) {
        crate::crash::point("post.written");
        let record = &numbered.record;
        let open = &record.open;
        let wants_room = {
            let mut book = desk.book.lock();
            book.end(
                open.payer,
                open.period,
                open.hold.leased,
                open.hold.bound,
                record.charge(),
            );
            book.waiting > 0
        };
        self.stats.open_holds.fetch_sub(1, Ordering::Relaxed);
        self.stats.waiting.fetch_add(1, Ordering::Relaxed);
        self.keep_post(Posting { numbered, desk });
        if wants_room {
            self.room.notify_one();
            self.urgent.notify_one();
        }
    }

    /// Lets a record that is in the journal wait for the writer.
    pub(crate) fn keep_post(&self, posting: Posting) {
        let most = self.options.max_in_memory.max(1);
        let left = self.inbox.lock().add(posting, most);
        // The lock is free again: who is left out is dropped here.
        drop(left);
    }

    /// Wakes the writer for posts.
    pub(crate) fn posts_came(&self) {
        self.posts.notify_one();
    }

    pub(crate) fn journal_failed(&self, error: &JournalError) {
        if !self.journal_needs_care.swap(true, Ordering::AcqRel) {
            tracing::error!(error = crate::chain(error), "the journal cannot be written");
        }
        self.urgent.notify_one();
    }

    pub(crate) fn close_admission(&self) {
        self.admission
            .store(Admission::Closed as u8, Ordering::SeqCst);
    }

    /// Closes admission until [`reopen_admission`](Self::reopen_admission).
    pub(crate) fn suspend_admission(&self) {
        self.change_admission(Admission::Open, Admission::Settled);
    }

    /// Opens admission again; a writer that is closing keeps it closed.
    pub(crate) fn reopen_admission(&self) {
        self.change_admission(Admission::Settled, Admission::Open);
    }

    fn change_admission(&self, from: Admission, to: Admission) {
        // Anything else than `from` stays.
        let _stays = self.admission.compare_exchange(
            from as u8,
            to as u8,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
    }

    pub(crate) fn is_open(&self) -> bool {
        self.admission.load(Ordering::SeqCst) == Admission::Open as u8
    }
}

/// Admits requests and takes their records. Cheap to clone; one per process.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub(crate) shared: Arc<Shared>,
}

impl Ledger {
    pub(crate) fn new(options: LedgerOptions, journal: Journal) -> Self {
        Self {
            shared: Arc::new(Shared {
                desks: Desks::default(),
                journal,
                inbox: Mutex::default(),
                posts: Notify::new(),
                room: Notify::new(),
                urgent: Notify::new(),
                stats: LedgerStats::default(),
                options,
                admission: AtomicU8::new(Admission::Open as u8),
                is_database_up: AtomicBool::new(true),
                is_claimed: AtomicBool::new(true),
                journal_needs_care: AtomicBool::new(false),
                lack_of_space: Mutex::default(),
                give_up_at: Mutex::default(),
                lanes: Mutex::default(),
            }),
        }
    }

    /// Returns figures about the ledger's own work.
    pub fn stats(&self) -> &LedgerStats {
        &self.shared.stats
    }

    /// Returns how many records wait for the database in memory.
    pub fn records_in_memory(&self) -> usize {
        self.shared.inbox.lock().in_memory()
    }

    /// Makes the way into the journal for one thread. [`Lane::run`] must run there.
    pub fn lane(&self) -> Arc<Lane> {
        let lane = Lane::new(Arc::clone(&self.shared));
        let mut lanes = self.shared.lanes.lock();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        lane
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
        let balances = store.load_counters(&payer.counters(period.month)).await?;
        let desk = self.shared.desks.get_or_make(payer.tenant_id);
        Ok(Account::new(desk, payer, period, time_zone, now, &balances))
    }

    /// Opens the account of a payer for a period without asking the database: what may be spent is
    /// what is leased here of `leased`, which should have every scope with a cap. The tenant's scope
    /// is always in it.
    pub fn open_account_away(
        &self,
        payer: Payer,
        period: Period,
        time_zone: TimeZone,
        leased: ScopeSet,
        now: UnixMillis,
    ) -> Account {
        let desk = self.shared.desks.get_or_make(payer.tenant_id);
        Account::away(desk, payer, period, time_zone, leased, now)
    }

    /// Returns whether the database knows of this start. Later than the start itself only after
    /// [`start_away`](crate::start_away).
    pub fn is_claimed(&self) -> bool {
        self.shared.is_claimed.load(Ordering::Acquire)
    }

    /// Admits a request: sets its bound aside in every leased scope and writes it to the journal.
    /// Nothing may be sent to an upstream before this has returned.
    ///
    /// In the steady state neither the database nor the disk is waited for. When the lease is short
    /// the request waits until the writer has taken more. A [`Patience::None`] is answered as soon as
    /// the database has, [`Patience::QuotaWait`] waits up to `quota_wait` for room that others hold. A
    /// database that is slow has some seconds for its answer.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is held then and nothing is recorded.
    ///
    /// # Cancel safety
    /// When the future is dropped, nothing stays held; a line that is in the journal already ends as
    /// a record of zero.
    pub async fn hold(
        &self,
        lane: &Arc<Lane>,
        account: &Account,
        mut record: Box<UsageRecord>,
        now: UnixMillis,
        patience: Patience,
    ) -> Result<Hold, Refused> {
        match self.reserve(account, &mut record.open, now, patience).await {
            Ok(admitted) => {
                let Admitted {
                    entered,
                    slot,
                    reserved,
                } = admitted;
                let (slot, written) = lane.open(&record.open, slot);
                let hold = Hold {
                    lane: Arc::clone(lane),
                    pending: Some(Pending {
                        record,
                        slot,
                        desk: reserved.keep(),
                    }),
                    is_journaled: false,
                };
                entered.keep();
                crate::crash::point("open.gathered");
                written.await;
                crate::crash::point("open.written");
                Ok(hold.journaled())
            }
            Err(refusal) => Err(Refused { refusal, record }),
        }
    }

    /// Sets the bound of a request aside, with the space of its lines in the journal.
    async fn reserve(
        &self,
        account: &Account,
        open: &mut OpenRequest,
        now: UnixMillis,
        patience: Patience,
    ) -> Result<Admitted<'_>, Refusal> {
        let shared = &self.shared;
        // Counted before the look at the door: a closing writer sees one or the other.
        let entered = Entered::new(&shared.stats);
        if !shared.is_open() {
            return Err(Refusal::Closed);
        }
        open.hold.leased = account.leased();
        crate::crash::point("hold.reserving");
        let slot = shared.journal.reserve(open).map_err(|error| {
            if matches!(error, JournalError::Failed { .. }) {
                shared.journal_failed(&error);
            }
            Refusal::Journal
        })?;
        crate::crash::point("hold.reserved");
        let HoldTerms { bound, leased, .. } = open.hold;
        let (payer, month) = (open.payer, open.period);
        let held = account
            .desk
            .book
            .lock()
            .hold(payer, month, leased, bound, now);
        let reserved = match held {
            Ok(is_low) => {
                if is_low {
                    shared.inbox.lock().low.push(Arc::clone(&account.desk));
                    shared.urgent.notify_one();
                }
                Reserved::new(Arc::clone(&account.desk), payer, month, leased, bound)
            }
            // Rare: in a box it does not weigh on every request.
            Err(_short) => Box::pin(self.wait_for_room(account, open, now, patience)).await?,
        };
        crate::crash::point("hold.held");
        Ok(Admitted {
            entered,
            slot,
            reserved,
        })
    }

    /// Waits until the writer has taken what is missing.
    async fn wait_for_room(
        &self,
        account: &Account,
        open: &OpenRequest,
        now: UnixMillis,
        patience: Patience,
    ) -> Result<Reserved, Refusal> {
        let shared = &self.shared;
        let HoldTerms { bound, leased, .. } = open.hold;
        let (payer, month) = (open.payer, open.period);
        if let Some(no_room) = find_refused(account, open, now) {
            return Err(Refusal::Spent(no_room));
        }
        let (reply, mut answer) = oneshot::channel();
        let held = Arc::<Mutex<Option<NoRoom>>>::default();
        {
            let mut inbox = shared.inbox.lock();
            let may_wait = inbox.wait(MAX_WAITERS, |number| Waiter {
                number,
                desk: Arc::clone(&account.desk),
                payer,
                month,
                leased,
                bound,
                patience,
                held: Arc::clone(&held),
                reply,
            });
            if !may_wait {
                return Err(Refusal::Behind);
            }
            account.desk.book.lock().waiting += 1;
        }
        let _waiting = WaitingOnDrop {
            shared,
            desk: &account.desk,
        };
        shared.urgent.notify_one();
        let begun = Instant::now();
        let mut deadline = begun + shared.options.quota_wait;
        loop {
            if let Ok(answered) = tokio::time::timeout_at(deadline, &mut answer).await {
                return answered.unwrap_or(Err(Refusal::Closed));
            }
            let is_up = shared.is_database_up.load(Ordering::Relaxed);
            match *held.lock() {
                Some(no_room) if is_up => return Err(Refusal::Held(no_room)),
                // The database was not asked yet: it has more to do than it does in that time.
                None if is_up && deadline < begun + DECISION_WAIT => deadline += LOOK_AGAIN,
                _ => return Err(Refusal::Unavailable),
            }
        }
    }
}

/// Returns the scope that the database said lately has no room for the request.
fn find_refused(account: &Account, open: &OpenRequest, now: UnixMillis) -> Option<NoRoom> {
    let book = account.desk.book.lock();
    crate::book::leased_counters(open.payer, open.period, open.hold.leased).find_map(
        |(_place, key)| {
            let counter = book.get(&key)?;
            counter
                .is_refused(open.hold.bound, now)
                .then_some(counter.balance)
                .flatten()
                .map(|balance| NoRoom::new(balance, counter.unposted, open.hold.bound))
        },
    )
}

/// Counts a request from before it is asked whether admission is open.
struct Entered<'a>(&'a LedgerStats);

impl<'a> Entered<'a> {
    fn new(stats: &'a LedgerStats) -> Self {
        stats.open_holds.fetch_add(1, Ordering::SeqCst);
        Self(stats)
    }

    /// From here on its hold is what is counted.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.open_holds.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What an admitted request has before it is in the journal.
struct Admitted<'a> {
    entered: Entered<'a>,
    slot: Slot,
    reserved: Reserved,
}

struct WaitingOnDrop<'a> {
    shared: &'a Shared,
    desk: &'a Desk,
}

impl Drop for WaitingOnDrop<'_> {
    fn drop(&mut self) {
        let mut book = self.desk.book.lock();
        book.waiting = book.waiting.saturating_sub(1);
        drop(book);
        self.shared.room.notify_one();
    }
}

#[derive(Debug)]
struct Pending {
    record: Box<UsageRecord>,
    slot: Slot,
    desk: Arc<Desk>,
}

/// An admitted request. It ends in exactly one record: by [`post`](Self::post), or, when it is
/// dropped by a defect, as a record of zero that says so.
#[derive(Debug)]
#[must_use = "a hold that is dropped is recorded as a defect"]
pub struct Hold {
    lane: Arc<Lane>,
    pending: Option<Pending>,
    is_journaled: bool,
}

impl Hold {
    fn journaled(mut self) -> Self {
        self.is_journaled = true;
        self
    }

    /// Returns what was fixed at admission; `None` only after it was posted.
    pub fn open(&self) -> Option<&OpenRequest> {
        self.pending.as_ref().map(|pending| &pending.record.open)
    }

    /// Books the end of the request: the only way into the ledger. The last bytes of the answer may
    /// leave when the returned future has resolved; whoever has nothing to send need not wait.
    pub fn post(mut self, end: RequestEnd) -> Option<Written> {
        if let Some(pending) = &mut self.pending {
            pending.record.end = end;
        }
        self.post_once()
    }

    fn post_once(&mut self) -> Option<Written> {
        let Pending { record, slot, desk } = self.pending.take()?;
        crate::crash::point("post.begun");
        let written = self.lane.post(record, slot, desk);
        crate::crash::point("post.gathered");
        Some(written)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(pending) = &mut self.pending {
            // Before it was in the journal, its client has left.
            if self.is_journaled {
                pending.record.end = RequestEnd::abandoned();
                tracing::error!(
                    "a hold was dropped without a post; it is recorded with zero tokens"
                );
            }
            drop(self.post_once());
        }
    }
}
