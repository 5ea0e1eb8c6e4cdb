//! The writer: one per instance, one transaction at a time.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{Clock, Guard, InstanceRow, LedgerStore, Posted, StoreError};
use sluice_domain::record::NumberedRecord;
use tokio::time::Instant;

use crate::account::Counter;
use crate::ledger::{Ledger, Shared};

/// How long records are gathered before a batch goes out.
const BATCH_WINDOW: Duration = Duration::from_millis(25);
/// Most records in one transaction.
const MAX_BATCH: usize = 1_024;
/// First pause after the database could not be reached; doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How often a closing writer looks whether everything has ended.
const CLOSING_TICK: Duration = Duration::from_millis(20);
/// How often an idle instance says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Takes records from the queue and posts them. Owns the instance's right to write.
pub struct Poster {
    shared: Arc<Shared>,
    store: Arc<dyn LedgerStore>,
    clock: Arc<dyn Clock>,
    guard: Guard,
    posted_no: i64,
    /// Records in the order of their numbers; the first one is `posted_no + 1`.
    backlog: VecDeque<NumberedRecord>,
    /// The counters that each record of `backlog` moves.
    counters: VecDeque<[Arc<Counter>; 3]>,
}

/// What happened to a batch.
enum Outcome {
    Posted(Posted),
    /// The database refuses something in it, and will again.
    Refused(StoreError),
    /// Another process writes in our name.
    LostIdentity,
}

/// What the database says about a transaction whose answer was lost.
enum Found {
    Done,
    NotDone,
    LostIdentity,
}

impl Poster {
    /// Claims the instance for this start.
    ///
    /// # Errors
    /// [`StoreError::Guard`] when the data folder is a copy of another one, or older than the
    /// database; [`StoreError::Unavailable`] may be repeated.
    pub async fn claim(
        ledger: &Ledger,
        store: Arc<dyn LedgerStore>,
        clock: Arc<dyn Clock>,
        instance_id: InstanceId,
        last_boot: Option<BootId>,
        boot_id: BootId,
    ) -> Result<Self, StoreError> {
        let row = store
            .claim_instance(instance_id, last_boot, boot_id, clock.now())
            .await?;
        Ok(Self {
            shared: Arc::clone(&ledger.shared),
            store,
            clock,
            guard: Guard {
                instance_id,
                boot_id,
                seq: row.seq,
            },
            posted_no: row.posted_no,
            backlog: VecDeque::new(),
            counters: VecDeque::new(),
        })
    }

    /// Posts until `closing` resolves and everything that came before is posted, or until `grace`
    /// after that. Returns how many records could not be posted.
    ///
    /// # Cancel safety
    /// Not cancel safe: records taken from the queue are lost with the future.
    pub async fn run(mut self, closing: impl Future<Output = ()> + Send, grace: Duration) -> usize {
        let mut closing = std::pin::pin!(closing);
        let mut deadline: Option<Instant> = None;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = self.shared.wake.notified() => {
                    if deadline.is_none() {
                        tokio::time::sleep(BATCH_WINDOW).await;
                    }
                }
                () = &mut closing, if deadline.is_none() => deadline = Some(Instant::now() + grace),
                // A hold that ends wakes the loop; the deadline of a shutdown does not.
                () = tokio::time::sleep(CLOSING_TICK), if deadline.is_some() => {}
                _tick = heartbeat.tick() => self.heartbeat().await,
            }
            self.take_queue();
            if !self.post_backlog(deadline).await {
                return self.abandon();
            }
            if let Some(deadline) = deadline {
                let is_idle =
                    self.shared.stats.open_holds() == 0 && self.shared.queue.lock().is_empty();
                if is_idle || Instant::now() >= deadline {
                    self.shared.is_closed.store(true, Ordering::Relaxed);
                    self.take_queue();
                    self.post_backlog(Some(deadline)).await;
                    return self.abandon();
                }
            }
        }
    }

    fn take_queue(&mut self) {
        let taken = std::mem::take(&mut *self.shared.queue.lock());
        for waiting in taken {
            let post_no = self.number_at(self.backlog.len());
            self.backlog.push_back(NumberedRecord {
                post_no,
                record: waiting.record,
            });
            self.counters.push_back(waiting.counters);
        }
    }

    /// Returns the number of the record at a place in the backlog.
    fn number_at(&self, place: usize) -> i64 {
        self.posted_no
            .saturating_add(i64::try_from(place).unwrap_or(i64::MAX))
            .saturating_add(1)
    }

    /// Takes over what the database knows of us, and numbers the backlog anew after it.
    fn adopt(&mut self, row: InstanceRow) {
        self.guard.seq = row.seq;
        self.posted_no = row.posted_no;
        for place in 0..self.backlog.len() {
            let post_no = self.number_at(place);
            if let Some(record) = self.backlog.get_mut(place) {
                record.post_no = post_no;
            }
        }
    }

    /// Posts all that is waiting. Returns false when this instance may not write any more.
    async fn post_backlog(&mut self, deadline: Option<Instant>) -> bool {
        while !self.backlog.is_empty() {
            let size = self.backlog.len().min(MAX_BATCH);
            if !self.post_first(size, deadline).await {
                return false;
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return true;
            }
        }
        true
    }

    /// Posts the first `size` records; a batch that is refused is halved until the bad record is
    /// alone and can be set aside.
    async fn post_first(&mut self, size: usize, deadline: Option<Instant>) -> bool {
        let mut size = size;
        loop {
            let Some(outcome) = self.attempt(size, deadline).await else {
                return true;
            };
            match outcome {
                Outcome::Posted(posted) => {
                    self.retire(size, &posted);
                    return true;
                }
                Outcome::Refused(error) if size == 1 => {
                    return self.set_aside(&error, deadline).await;
                }
                Outcome::Refused(_batch) => size = (size / 2).max(1),
                Outcome::LostIdentity => return false,
            }
        }
    }

    /// Tries until the outcome is known. `None` when the deadline of a shutdown passed.
    async fn attempt(&mut self, size: usize, deadline: Option<Instant>) -> Option<Outcome> {
        loop {
            let batch = self
                .backlog
                .make_contiguous()
                .get(..size)
                .unwrap_or_default();
            match self
                .store
                .post_batch(self.guard, batch, self.clock.now())
                .await
            {
                Ok(posted) => {
                    self.guard.seq += 1;
                    return Some(Outcome::Posted(posted));
                }
                Err(error) => {
                    self.note_failure(&error);
                    if is_refusal(&error) {
                        return Some(Outcome::Refused(error));
                    }
                }
            }
            match self.find_outcome(size, deadline).await? {
                Found::Done => return Some(Outcome::Posted(Posted::default())),
                Found::NotDone => {}
                Found::LostIdentity => return Some(Outcome::LostIdentity),
            }
        }
    }

    /// Sets the first record aside, because the database refuses it alone.
    async fn set_aside(&mut self, reason: &StoreError, deadline: Option<Instant>) -> bool {
        loop {
            let Some(record) = self.backlog.front() else {
                return true;
            };
            match self
                .store
                .quarantine(self.guard, record, &chain(reason), self.clock.now())
                .await
            {
                Ok(()) => {
                    self.guard.seq += 1;
                    break;
                }
                Err(error) => self.note_failure(&error),
            }
            match self.find_outcome(1, deadline).await {
                Some(Found::Done) => break,
                Some(Found::NotDone) => {}
                Some(Found::LostIdentity) => return false,
                None => return true,
            }
        }
        if let Some(record) = self.backlog.front() {
            tracing::error!(
                request.id = %record.record.open.request_id,
                error = chain(reason),
                "the database refuses a usage record; it was set aside in `quarantine`"
            );
        }
        self.shared
            .stats
            .quarantined
            .fetch_add(1, Ordering::Relaxed);
        self.retire(1, &Posted::default());
        true
    }

    /// Asks the database, after a pause, whether a transaction over the first `size` records took
    /// place. `None` when the deadline of a shutdown passed before it answered.
    async fn find_outcome(&mut self, size: usize, deadline: Option<Instant>) -> Option<Found> {
        let mut pause = FIRST_PAUSE;
        loop {
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return None;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            match self.store.find_instance(self.guard.instance_id).await {
                Ok(Some(row)) if row.boot_id == self.guard.boot_id => {
                    let last = self.number_at(size.saturating_sub(1));
                    if row.seq == self.guard.seq + 1 && row.posted_no == last {
                        self.guard.seq = row.seq;
                        return Some(Found::Done);
                    }
                    if row.seq != self.guard.seq {
                        tracing::error!(
                            expected_seq = self.guard.seq,
                            found_seq = row.seq,
                            "the database is not where this instance left it; its state is taken over"
                        );
                    }
                    self.adopt(row);
                    return Some(Found::NotDone);
                }
                Ok(_foreign) => {
                    tracing::error!(
                        instance.id = %self.guard.instance_id,
                        "another process has claimed this instance; admission stops"
                    );
                    self.shared.is_closed.store(true, Ordering::Relaxed);
                    return Some(Found::LostIdentity);
                }
                Err(error) => self.note_failure(&error),
            }
        }
    }

    /// Forgets records that the database has: first its balances are taken in, then ours go, so
    /// that a charge is never missing from both.
    fn retire(&mut self, size: usize, posted: &Posted) {
        self.posted_no = self
            .posted_no
            .saturating_add(i64::try_from(size).unwrap_or(0));
        let mut observed = HashSet::with_capacity(posted.counters.len());
        for balance in &posted.counters {
            observed.insert((balance.scope, balance.month));
            if let Some(counter) = self.shared.counters.find(balance.scope, balance.month) {
                counter.observe(balance);
            }
        }
        for (record, counters) in self.backlog.drain(..size).zip(self.counters.drain(..size)) {
            for counter in &counters {
                let is_observed = observed.contains(&(counter.scope, counter.month));
                counter.settle(record.record.end.quota_tokens, is_observed);
            }
        }
        let stats = &self.shared.stats;
        stats
            .waiting
            .fetch_sub(i64::try_from(size).unwrap_or(0), Ordering::Relaxed);
        stats
            .posted
            .fetch_add(u64::try_from(size).unwrap_or(0), Ordering::Relaxed);
        stats.batches.fetch_add(1, Ordering::Relaxed);
    }

    async fn heartbeat(&self) {
        if let Err(error) = self.store.heartbeat(self.guard, self.clock.now()).await {
            tracing::warn!(
                error = chain(&error),
                "the heartbeat did not reach the database"
            );
        }
    }

    fn note_failure(&self, error: &StoreError) {
        self.shared.stats.failures.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            error = chain(error),
            waiting = self.backlog.len(),
            "posting failed"
        );
    }

    fn abandon(&mut self) -> usize {
        self.take_queue();
        let lost = self.backlog.len();
        if lost > 0 {
            tracing::error!(
                records = lost,
                "usage records could not be posted before the end"
            );
        }
        lost
    }
}

/// Returns whether the same call would be refused again.
fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Internal { .. } | StoreError::Conflict { .. } | StoreError::Corrupt { .. }
    )
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
