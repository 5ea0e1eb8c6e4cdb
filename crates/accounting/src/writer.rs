//! The writer: one per instance, one transaction at a time.
//!
//! Two order rules hold everywhere: what is about to be given back is not spendable before the
//! transaction is sent, and what is taken is spendable only after its answer is in the journal.
//! After any answer that was lost, the database's numbers replace ours.

mod ahead;
mod backlog;
mod leases;
mod posts;
mod reconcile;
mod start;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_domain::id::BootId;
use sluice_domain::ports::{Clock, Guard, LedgerStore, PostMode, StoreError};
use sluice_domain::quota::{CounterKey, Lease};
use sluice_domain::record::NumberedRecord;
use tokio::time::{Instant, MissedTickBehavior};

use crate::account::Desk;
use crate::chain;
use crate::journal::{JournalError, Maintained, PostReader};
use crate::ledger::{Fsync, Shared};

use self::start::Unclaimed;
pub use self::start::{Identity, StartError, start, start_away};

/// How long records are gathered before a batch goes out: each batch costs a transaction and a sync
/// of the journal.
const BATCH_WINDOW: Duration = Duration::from_millis(50);
/// First pause after the database could not be reached; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How often a closing writer looks whether everything has ended.
const CLOSING_TICK: Duration = Duration::from_millis(20);
/// How long a transaction may take before its answer counts as lost.
const TRANSACTION_PATIENCE: Duration = Duration::from_secs(10);
/// How often an instance says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often requests that wait for room are tried again, and recalled leases are looked for.
const LEASE_TICK: Duration = Duration::from_millis(100);
const RECALL_EVERY: Duration = Duration::from_millis(250);
/// How often the journal is synced when no batch does it, and looked at whether it needs segments.
const JOURNAL_TICK: Duration = Duration::from_millis(50);
/// How often segments are looked at that may be removed.
const MAINTAIN_EVERY: Duration = Duration::from_secs(1);
/// How often idle leases are looked for.
const IDLE_EVERY: Duration = Duration::from_secs(1);

/// Takes records from the queue and posts them, takes and returns leases. Owns the instance's right
/// to write.
pub struct Writer {
    shared: Arc<Shared>,
    store: Arc<dyn LedgerStore>,
    clock: Arc<dyn Clock>,
    guard: Guard,
    /// Earlier starts of this folder: the database may go back to one of them.
    earlier_boots: Vec<BootId>,
    mode: PostMode,
    /// How many instances there were when leases were moved last.
    live: u32,
    posted_no: i64,
    /// Records in the order of their numbers; the first one is `posted_no + 1`.
    backlog: VecDeque<NumberedRecord>,
    /// The desk that each record of `backlog` moves.
    desks: VecDeque<Arc<Desk>>,
    /// Where records that are in the journal alone are read next.
    reader: PostReader,
    /// When requests that wait for room are looked at again.
    retry_at: Option<Instant>,
    /// What the journal knew, until the database has been asked for the first time.
    unclaimed: Option<Unclaimed>,
    /// Resolves when the database may be used, after a start without it.
    fits: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

/// Why a writer has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Everything was posted and every lease was returned, and the database has said so at the end.
    Clean,
    /// The time to close was over before that; this many records stay in the journal for the next
    /// start.
    Left {
        /// How many records.
        records: usize,
    },
    /// An operator has settled this instance; it has handed in everything. The data folder needs a
    /// new instance id.
    Settled,
    /// Another process uses the identity of this instance.
    LostIdentity,
    /// The journal cannot be written any more, not even anew, or what it has cannot be read.
    JournalLost,
    /// The database went back so far that the journal does not keep the posts any more that it lost.
    PostsGone {
        /// The first that the database asks for.
        from: i64,
        /// The first that the journal has.
        oldest: i64,
    },
}

/// Why the writer cannot go on with what it was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The deadline of a shutdown passed.
    Deadline,
    LostIdentity,
    Settled,
    JournalLost,
    PostsGone {
        from: i64,
        oldest: i64,
    },
}

impl Writer {
    /// Writes until `closing` resolves and everything that came before is posted, or until `grace`
    /// after that.
    ///
    /// # Cancel safety
    /// When the future is dropped, records that were taken from the queue are in the journal only.
    pub async fn run(
        mut self,
        closing: impl Future<Output = ()> + Send,
        grace: Duration,
    ) -> Finish {
        let (shared, clock) = (Arc::clone(&self.shared), Arc::clone(&self.clock));
        // Lines reach the disk in time also while the database lets a transaction wait.
        let finish = tokio::select! {
            biased;
            finish = self.work() => finish,
            stop = tend_journal(&shared, &*clock) => Err(stop),
            stop = leases::tend_room(&shared, &*clock) => Err(stop),
            stop = note_closing(&shared, closing, grace) => stop,
        };
        match finish {
            Ok(finish) => finish,
            Err(stop) => {
                self.shared.close_admission();
                self.finish_for(stop)
            }
        }
    }

    fn finish_for(&self, stop: Stop) -> Finish {
        match stop {
            Stop::Deadline => Finish::Left {
                records: usize::try_from(self.shared.stats.waiting()).unwrap_or(0),
            },
            Stop::LostIdentity => Finish::LostIdentity,
            Stop::Settled => Finish::Settled,
            Stop::JournalLost => Finish::JournalLost,
            Stop::PostsGone { from, oldest } => Finish::PostsGone { from, oldest },
        }
    }

    async fn work(&mut self) -> Result<Finish, Stop> {
        let shared = Arc::clone(&self.shared);
        if self.unclaimed.is_some() {
            self.wait_until_it_fits().await?;
            self.reconcile().await?;
        }
        let mut post_at: Option<Instant> = None;
        let mut heartbeat = ticks(HEARTBEAT);
        let mut recall = ticks(RECALL_EVERY);
        let mut idle = ticks(IDLE_EVERY);
        loop {
            // What the database lost, or the last round did not come to, has nobody to announce it.
            let is_behind = shared.inbox.lock().is_behind();
            if post_at.is_none() && (is_behind || !self.backlog.is_empty()) {
                post_at = Some(Instant::now());
            }
            let retry_at = self.retry_at;
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = shared.urgent.notified() => {}
                () = until(retry_at), if retry_at.is_some() => self.retry_at = None,
                // A hold that ends wakes the loop; the deadline of a shutdown does not.
                () = tokio::time::sleep(CLOSING_TICK), if deadline.is_some() => {}
                _tick = recall.tick() => self.return_recalled().await?,
                _tick = idle.tick() => {
                    self.return_idle().await?;
                    if deadline.is_none() {
                        self.top_up().await?;
                        self.lease_ahead().await?;
                    }
                }
                _tick = heartbeat.tick() => self.heartbeat().await?,
                // After everything that comes now and then: after an outage there is much to post.
                () = until(post_at), if post_at.is_some() => {
                    post_at = None;
                    self.post_round().await?;
                }
                () = shared.posts.notified(), if post_at.is_none() => {
                    post_at = Some(Instant::now() + BATCH_WINDOW);
                    continue;
                }
            }
            if shared.journal_needs_care.load(Ordering::Acquire) {
                self.care_for_journal().await?;
            }
            self.serve_waiters().await?;
            if self.mode == PostMode::Late && !self.has_open_work() {
                self.end_late().await?;
            }
            if let Some(deadline) = self.deadline() {
                let is_over = Instant::now() >= deadline;
                if !self.has_open_work() || is_over {
                    shared.close_admission();
                }
                // Who came in before the door was closed still ends.
                if self.has_open_work() && !is_over {
                    if self.has_posts() && post_at.is_none() {
                        post_at = Some(Instant::now());
                    }
                    continue;
                }
                flush_lanes(&self.shared);
                self.post_all().await?;
                crate::crash::point("stop.posted");
                self.return_all().await?;
                crate::crash::point("stop.returned");
                if self.has_open_work() {
                    return Err(Stop::Deadline);
                }
                if self.is_confirmed().await? {
                    return Ok(Finish::Clean);
                }
            }
        }
    }

    /// Waits until the database was found to be one that may be used.
    async fn wait_until_it_fits(&mut self) -> Result<(), Stop> {
        if let Some(mut fits) = self.fits.take() {
            while tokio::time::timeout(FIRST_PAUSE, &mut fits).await.is_err() {
                self.check_deadline()?;
            }
        }
        Ok(())
    }

    /// Asks once more, at the end, whether the database is where this instance leaves it. When it
    /// went back meanwhile, what it lost is to be handed in again.
    async fn is_confirmed(&mut self) -> Result<bool, Stop> {
        loop {
            match bounded(self.store.heartbeat(self.guard, self.clock.now())).await {
                Ok(()) => return Ok(true),
                Err(StoreError::Guard) => {
                    self.reconcile().await?;
                    return Ok(false);
                }
                Err(error) => self.note_failure(&error),
            }
            self.check_deadline()?;
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }

    /// When this writer gives up; `None` while it is not closing.
    fn deadline(&self) -> Option<Instant> {
        *self.shared.give_up_at.lock()
    }

    fn check_deadline(&self) -> Result<(), Stop> {
        match self.deadline() {
            Some(deadline) if Instant::now() >= deadline => Err(Stop::Deadline),
            _ => Ok(()),
        }
    }

    /// Returns whether a request is open or a record waits.
    fn has_open_work(&self) -> bool {
        self.shared.stats.open_holds() > 0 || self.has_posts()
    }

    async fn care_for_journal(&self) -> Result<(), Stop> {
        care_for_journal(&self.shared, &*self.clock).await
    }

    /// Makes everything that was written to the journal survive a loss of power. Nothing may be in
    /// the database that is not in the journal.
    async fn sync_journal(&mut self) -> Result<(), Stop> {
        while !sync_journal_once(&self.shared).await {
            self.care_for_journal().await?;
        }
        Ok(())
    }

    /// Notes in the journal that a transaction goes out, with the leases as they are when it counts
    /// against us, and syncs it.
    async fn announce(&mut self, touched: &[CounterKey]) -> Result<(), Stop> {
        loop {
            let leases = self.local_leases(touched);
            crate::crash::point("sent.noting");
            match self.shared.journal.note_sent(self.guard.seq + 1, &leases) {
                Ok(()) => break,
                Err(error) => self.wait_for_journal(&error).await?,
            }
        }
        crate::crash::point("sent.noted");
        self.sync_journal().await?;
        crate::crash::point("sent.synced");
        Ok(())
    }

    /// Notes in the journal what the database has confirmed.
    async fn confirm(&mut self, touched: &[CounterKey]) -> Result<(), Stop> {
        let leases = self.local_leases(touched);
        self.acknowledge(&leases).await
    }

    /// Notes in the journal what the database was found to have; other leases than these are gone.
    async fn note_found(&mut self, leases: &[Lease]) -> Result<(), Stop> {
        self.shared.is_database_up.store(true, Ordering::Relaxed);
        loop {
            let journal = &self.shared.journal;
            match journal.note_found(self.guard.seq, self.posted_no, leases) {
                Ok(()) => return Ok(()),
                Err(error) => self.wait_for_journal(&error).await?,
            }
        }
    }

    /// Notes in the journal that the last transaction was answered, and the leases after it.
    async fn acknowledge(&mut self, leases: &[Lease]) -> Result<(), Stop> {
        self.shared.is_database_up.store(true, Ordering::Relaxed);
        loop {
            let journal = &self.shared.journal;
            match journal.note_ack(self.guard.seq, self.posted_no, leases) {
                Ok(()) => return Ok(()),
                Err(error) => self.wait_for_journal(&error).await?,
            }
        }
    }

    /// Notes in the journal that the database lost what comes after `posted_no`, so that it is kept
    /// until it was posted again.
    async fn keep_posts_after(&mut self, posted_no: i64) -> Result<(), Stop> {
        while let Err(error) = self.shared.journal.note_went_back(posted_no) {
            self.wait_for_journal(&error).await?;
        }
        Ok(())
    }

    /// Waits until the journal may take a note again: nothing is sent and nothing that was gained is
    /// spent that the journal does not know.
    async fn wait_for_journal(&mut self, error: &JournalError) -> Result<(), Stop> {
        if error.is_failure() {
            self.shared.journal_failed(error);
        } else {
            self.check_deadline()?;
            tokio::time::sleep(JOURNAL_TICK).await;
        }
        self.care_for_journal().await
    }

    fn local_leases(&self, keys: &[CounterKey]) -> Vec<Lease> {
        keys.iter()
            .map(|key| {
                let desk = self.shared.desks.get_or_make(key.tenant_id);
                let held = desk
                    .book
                    .lock()
                    .get(key)
                    .map_or_else(Default::default, |c| c.lease);
                Lease { key: *key, held }
            })
            .collect()
    }

    async fn heartbeat(&mut self) -> Result<(), Stop> {
        match bounded(self.store.heartbeat(self.guard, self.clock.now())).await {
            Ok(()) => {
                self.shared.is_database_up.store(true, Ordering::Relaxed);
                Ok(())
            }
            // The database is not where we left it.
            Err(StoreError::Guard) => self.reconcile().await,
            Err(error) => {
                self.note_failure(&error);
                Ok(())
            }
        }
    }

    fn note_failure(&self, error: &StoreError) {
        let stats = &self.shared.stats;
        stats.failures.fetch_add(1, Ordering::Relaxed);
        if matches!(error, StoreError::Unavailable { .. }) {
            self.shared.is_database_up.store(false, Ordering::Relaxed);
        }
        tracing::warn!(
            error = chain(error),
            waiting = stats.waiting(),
            "a transaction of the ledger failed"
        );
    }
}

/// Waits for the database only so long: a server that has vanished never answers.
async fn bounded<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(TRANSACTION_PATIENCE, call).await {
        Ok(result) => result,
        Err(elapsed) => Err(StoreError::Unavailable {
            source: elapsed.into(),
        }),
    }
}

/// Sets the deadline of a shutdown when it begins: also a writer that waits for the database sees it.
async fn note_closing<T>(shared: &Shared, closing: impl Future<Output = ()>, grace: Duration) -> T {
    closing.await;
    *shared.give_up_at.lock() = Some(Instant::now() + grace);
    shared.urgent.notify_one();
    std::future::pending().await
}

/// Cares for the journal until it is lost.
async fn tend_journal(shared: &Arc<Shared>, clock: &dyn Clock) -> Stop {
    let mut tick = ticks(JOURNAL_TICK);
    let mut maintain_at = Instant::now();
    loop {
        tick.tick().await;
        let is_due = Instant::now() >= maintain_at || shared.journal.wants_maintenance();
        let needs_care = shared.journal_needs_care.load(Ordering::Acquire);
        // Most of the time there is nothing to do, or nothing but a sync.
        if is_due || needs_care {
            maintain_at = Instant::now() + MAINTAIN_EVERY;
            if let Err(stop) = care_for_journal(shared, clock).await {
                return stop;
            }
            continue;
        }
        if shared.options.fsync == Fsync::Interval && !shared.journal.is_synced() {
            sync_journal_once(shared).await;
        }
        flush_lanes(shared);
    }
}

/// Syncs the journal, prepares segments, removes what is not needed, repairs it after a failure.
async fn care_for_journal(shared: &Arc<Shared>, clock: &dyn Clock) -> Result<(), Stop> {
    if shared.journal_needs_care.swap(false, Ordering::AcqRel) {
        blocking(shared, |shared| shared.journal.recover_from_failure())
            .await
            .map_err(|error| {
                tracing::error!(error = chain(&error), "the journal cannot be begun anew");
                Stop::JournalLost
            })?;
        tracing::warn!("the journal was begun anew after a failure");
    }
    if shared.options.fsync == Fsync::Interval {
        sync_journal_once(shared).await;
    }
    let now = clock.now();
    match blocking(shared, move |shared| shared.journal.maintain(now)).await {
        Ok(done) => note_space(shared, done),
        Err(error) => tracing::warn!(error = chain(&error), "the journal cannot be cared for"),
    }
    flush_lanes(shared);
    Ok(())
}

/// Says so when the journal gets no further space, and when it does again.
fn note_space(shared: &Shared, done: Maintained) {
    let lack = if done.is_at_bound {
        Some("records that wait for the database take as much space as journal.max_bytes allows")
    } else if done.disk_is_full {
        Some("the disk under the journal is full")
    } else {
        None
    };
    let before = std::mem::replace(&mut *shared.lack_of_space.lock(), lack);
    match lack {
        Some(lack) if before.is_none() => tracing::error!(
            bytes = done.bytes,
            waiting = shared.stats.waiting(),
            "{lack}; nothing new is admitted until there is space again"
        ),
        None if before.is_some() => tracing::info!("the journal has space again"),
        _ => {}
    }
}

async fn sync_journal_once(shared: &Arc<Shared>) -> bool {
    match blocking(shared, |shared| shared.journal.sync()).await {
        Ok(()) => true,
        Err(error) => {
            shared.journal_failed(&error);
            false
        }
    }
}

/// Lanes whose thread is gone do not write by themselves.
fn flush_lanes(shared: &Shared) {
    let lanes = shared.lanes.lock().clone();
    for lane in lanes.iter().filter_map(std::sync::Weak::upgrade) {
        lane.flush_if_alone();
    }
}

async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    call: impl FnOnce(&Shared) -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    if !shared.options.blocks_on_threads {
        return call(shared);
    }
    let shared = Arc::clone(shared);
    match tokio::task::spawn_blocking(move || call(&shared)).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Returns whether the same call would be refused again.
fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Internal { .. } | StoreError::Conflict { .. } | StoreError::Corrupt { .. }
    )
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
