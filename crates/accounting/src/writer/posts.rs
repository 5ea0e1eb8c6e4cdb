//! Posting: records in batches, and what the database refuses set aside.

use std::sync::atomic::Ordering;

use sluice_domain::ports::{PostMode, Posted, StoreError};
use sluice_domain::quota::{CounterKey, Lease};

use crate::chain;

use super::backlog::Run;
use super::{Stop, Writer, bounded, is_refusal};

/// Most records in one transaction.
pub(super) const MAX_BATCH: usize = 2_048;
/// Most transactions before the writer looks at what else there is to do.
const ROUND: usize = 8;

/// What happened to a batch.
enum Outcome {
    Posted(Posted),
    /// The database refuses something in it, and will again.
    Refused(StoreError),
    /// Its answer was lost; the backlog is what it is now.
    Reconciled,
}

impl Writer {
    /// Posts all that is waiting.
    pub(super) async fn post_all(&mut self) -> Result<(), Stop> {
        while self.has_posts() {
            self.post_round().await?;
        }
        Ok(())
    }

    /// Posts some of what is waiting. What comes while the last of it is posted is gathered anew.
    pub(super) async fn post_round(&mut self) -> Result<(), Stop> {
        for _batch in 0..ROUND {
            self.fill_backlog().await?;
            let size = self.backlog.len().min(MAX_BATCH);
            if size == 0 {
                return Ok(());
            }
            self.post_first(size).await?;
            if self.has_posts() {
                self.check_deadline()?;
            }
            if size < MAX_BATCH {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Posts the first `size` records; a batch that is refused is halved until the bad record is
    /// alone and can be set aside.
    async fn post_first(&mut self, size: usize) -> Result<(), Stop> {
        let mut size = size;
        loop {
            match self.attempt(size).await? {
                Outcome::Posted(posted) => {
                    self.retire(size, &posted).await?;
                    return Ok(());
                }
                Outcome::Refused(error) if size == 1 => {
                    return self.set_aside(&error).await;
                }
                Outcome::Refused(_batch) => size = (size / 2).max(1),
                Outcome::Reconciled => return Ok(()),
            }
        }
    }

    async fn attempt(&mut self, size: usize) -> Result<Outcome, Stop> {
        let touched = self.touched(size);
        self.announce(&touched).await?;
        let in_flight = self.in_flight_after(size, &touched);
        let batch = self.backlog.make_contiguous();
        let posted = bounded(self.store.post_batch(
            self.guard,
            self.mode,
            batch.get(..size).unwrap_or_default(),
            &in_flight,
            self.clock.now(),
        ))
        .await;
        match posted {
            Ok(posted) => {
                crate::crash::point("post.committed");
                Ok(Outcome::Posted(posted))
            }
            Err(error) => {
                self.note_failure(&error);
                if is_refusal(&error) {
                    return Ok(Outcome::Refused(error));
                }
                self.reconcile().await?;
                Ok(Outcome::Reconciled)
            }
        }
    }

    /// Sets the first record aside, because the database refuses it alone.
    async fn set_aside(&mut self, reason: &StoreError) -> Result<(), Stop> {
        let touched = self.touched(1);
        self.announce(&touched).await?;
        let Some(first) = self.backlog.front() else {
            return Ok(());
        };
        let request_id = first.record.open.request_id;
        let set_aside = bounded(self.store.quarantine(
            self.guard,
            self.mode,
            first,
            &chain(reason),
            self.clock.now(),
        ))
        .await;
        if let Err(error) = set_aside {
            self.note_failure(&error);
            return self.reconcile().await;
        }
        tracing::error!(
            request.id = %request_id,
            error = chain(reason),
            "the database refuses a usage record; it was set aside in `quarantine`"
        );
        self.shared
            .stats
            .quarantined
            .fetch_add(1, Ordering::Relaxed);
        self.retire(1, &Posted::default()).await
    }

    /// Forgets records that the database has.
    async fn retire(&mut self, size: usize, posted: &Posted) -> Result<(), Stop> {
        let touched = self.touched(size);
        self.guard.seq += 1;
        self.forget_posted(size);
        // After that: what is counted twice for a moment would refuse what has room.
        for balance in &posted.counters {
            let desk = self.shared.desks.get_or_make(balance.key.tenant_id);
            desk.book.lock().entry(balance.key).observe(*balance);
        }
        let stats = &self.shared.stats;
        stats
            .posted
            .fetch_add(u64::try_from(size).unwrap_or(0), Ordering::Relaxed);
        stats.batches.fetch_add(1, Ordering::Relaxed);
        crate::crash::point("ack.noting");
        self.confirm(&touched).await?;
        crate::crash::point("ack.noted");
        Ok(())
    }

    /// The counters that the first records move.
    fn touched(&self, size: usize) -> Vec<CounterKey> {
        let mut keys: Vec<CounterKey> = self.runs(size).flat_map(Run::counters).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// What is open or unposted once the first records are posted.
    fn in_flight_after(&self, size: usize, touched: &[CounterKey]) -> Vec<Lease> {
        if self.mode == PostMode::Late {
            return Vec::new();
        }
        let mut in_flight: Vec<Lease> = touched
            .iter()
            .map(|key| {
                let desk = self.shared.desks.get_or_make(key.tenant_id);
                let held = desk
                    .book
                    .lock()
                    .get(key)
                    .map_or_else(Default::default, crate::book::LocalCounter::in_flight);
                Lease { key: *key, held }
            })
            .collect();
        for run in self.runs(size) {
            for key in run.counters() {
                if let Ok(place) = in_flight.binary_search_by_key(&key, |lease| lease.key)
                    && let Some(lease) = in_flight.get_mut(place)
                {
                    lease.held = lease.held.minus(run.charge);
                }
            }
        }
        in_flight
    }
}
