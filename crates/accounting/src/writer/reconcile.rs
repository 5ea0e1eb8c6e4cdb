//! What is true after an answer was lost, or when the database is not where this instance left it.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use sluice_domain::ports::{InstanceRow, InstanceState, PostMode, StoreError};
use sluice_domain::quota::{Amounts, CounterKey, Lease};

use super::start::{Found, Unclaimed};
use super::{FIRST_PAUSE, MAX_PAUSE, Stop, Writer, bounded};

impl Writer {
    /// Asks the database until it answers, and lets its numbers replace ours. Afterwards everything
    /// that was to be done is looked at anew.
    pub(super) async fn reconcile(&mut self) -> Result<(), Stop> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.look().await {
                Ok(()) => return Ok(()),
                Err(Looked::Stopped(stop)) => return Err(stop),
                Err(Looked::Failed(error)) => self.note_failure(&error),
                Err(Looked::Again) => continue,
            }
            self.check_deadline()?;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn look(&mut self) -> Result<(), Looked> {
        if let Some(unclaimed) = self.unclaimed {
            return self.claim_at_last(unclaimed).await;
        }
        let row = bounded(self.store.find_instance(self.guard.instance_id))
            .await
            .map_err(Looked::Failed)?;
        let is_ours = row
            .as_ref()
            .is_some_and(|row| row.boot_id == self.guard.boot_id);
        if !is_ours {
            return self.reclaim(row).await;
        }
        let Some(row) = row else {
            return Err(Looked::Again);
        };
        if row.state == InstanceState::Live && self.mode == PostMode::Late {
            tracing::warn!(
                instance.id = %self.guard.instance_id,
                "the database lost that an operator had settled this instance; it goes on"
            );
            self.mode = PostMode::Live;
            self.shared.reopen_admission();
        }
        // The order matters: an operator's word is taken before a number that went back.
        match row.state {
            InstanceState::Resolved => self.adopt_resolved(&row).await.map_err(Looked::Stopped),
            InstanceState::Closed => Err(Looked::Stopped(Stop::Settled)),
            // Fewer posts are a sign as well: a number may have been reached again since.
            InstanceState::Live if row.seq < self.guard.seq || row.posted_no < self.posted_no => {
                self.guard.seq = self.guard.seq.max(row.seq + 1);
                self.resync(&row).await
            }
            InstanceState::Live if row.seq <= self.guard.seq + 1 => {
                self.adopt(&row).await.map_err(Looked::Stopped)
            }
            InstanceState::Live => Err(self.lost_identity(&row)),
        }
    }

    /// Claims the instance after a start without the database, as [`start`](super::start()) does.
    async fn claim_at_last(&mut self, unclaimed: Unclaimed) -> Result<(), Looked> {
        let is_copy = |row: &InstanceRow| {
            row.state != InstanceState::Closed && unclaimed.compare(row) == Found::OlderCopy
        };
        // Before the claim as well: it could not be taken back.
        let known = bounded(self.store.find_instance(self.guard.instance_id)).await;
        if let Some(row) = known.map_err(Looked::Failed)?.filter(is_copy) {
            return Err(self.lost_identity(&row));
        }
        let row = self.claim().await?;
        let found = unclaimed.compare(&row);
        if is_copy(&row) {
            return Err(self.lost_identity(&row));
        }
        self.unclaimed = None;
        match row.state {
            InstanceState::Closed => return Err(Looked::Stopped(Stop::Settled)),
            InstanceState::Resolved => {
                self.adopt_resolved(&row).await.map_err(Looked::Stopped)?;
            }
            InstanceState::Live if found == Found::WentBack => {
                self.guard.seq = unclaimed.number_above(&row);
            }
            InstanceState::Live => self.adopt(&row).await.map_err(Looked::Stopped)?,
        }
        self.shared.is_claimed.store(true, Ordering::Release);
        tracing::info!("the instance is claimed in the database");
        if found == Found::WentBack && row.state == InstanceState::Live {
            return Err(Looked::Again);
        }
        Ok(())
    }

    async fn claim(&self) -> Result<InstanceRow, Looked> {
        let claimed = bounded(self.store.claim_instance(
            self.guard.instance_id,
            &self.earlier_boots,
            self.guard.boot_id,
            self.clock.now(),
        ))
        .await;
        claimed.map_err(|error| match error {
            StoreError::Guard => Looked::Stopped(Stop::LostIdentity),
            error => Looked::Failed(error),
        })
    }

    /// The row is not of this start. When it is of an earlier one, the claim was undone with
    /// everything after it; an operator may have settled that one since.
    async fn reclaim(&mut self, row: Option<InstanceRow>) -> Result<(), Looked> {
        let went_back = row
            .as_ref()
            .is_none_or(|row| self.earlier_boots.contains(&row.boot_id));
        if !went_back {
            tracing::error!(
                instance.id = %self.guard.instance_id,
                "another process has claimed this instance; admission stops"
            );
            return Err(Looked::Stopped(Stop::LostIdentity));
        }
        tracing::error!("the database went back to before this start; it is claimed again");
        let _claimed = self.claim().await?;
        Err(Looked::Again)
    }

    fn lost_identity(&self, row: &InstanceRow) -> Looked {
        tracing::error!(
            instance.id = %self.guard.instance_id,
            expected_seq = self.guard.seq,
            found_seq = row.seq,
            "another process writes in the name of this instance; admission stops"
        );
        Looked::Stopped(Stop::LostIdentity)
    }

    /// Takes over what the database knows.
    async fn adopt(&mut self, row: &InstanceRow) -> Result<(), Stop> {
        self.guard.seq = row.seq;
        self.drop_posted(row.posted_no).await?;
        self.set_leases(&row.leases);
        self.note_found(&row.leases).await
    }

    /// Makes every local lease what the database says.
    pub(super) fn set_leases(&self, leases: &[Lease]) {
        let known: HashMap<CounterKey, Amounts> =
            leases.iter().map(|lease| (lease.key, lease.held)).collect();
        for desk in self.shared.desks.all() {
            for (key, counter) in desk.book.lock().iter_mut() {
                counter.lease = known.get(key).copied().unwrap_or_default();
            }
        }
        for lease in leases {
            let desk = self.shared.desks.get_or_make(lease.key.tenant_id);
            desk.book.lock().entry(lease.key).lease = lease.held;
        }
    }

    /// An operator has settled this instance: nothing new; what is left is handed in.
    async fn adopt_resolved(&mut self, row: &InstanceRow) -> Result<(), Stop> {
        if self.mode == PostMode::Live {
            tracing::error!(
                instance.id = %self.guard.instance_id,
                "an operator has settled this instance; admission stops, what is open is handed in"
            );
        }
        self.mode = PostMode::Late;
        self.shared.suspend_admission();
        self.guard.seq = row.seq;
        if row.posted_no < self.posted_no {
            // It went back as well.
            self.reload_posts(row.posted_no).await?;
        }
        self.drop_posted(row.posted_no).await?;
        self.set_leases(&[]);
        // A start without the database may not spend what is not leased to it any more.
        self.note_found(&[]).await
    }

    /// The database lost transactions: what is leased here is lowered to what is in use, and told to
    /// the database whatever the caps say; what it lost is posted again.
    async fn resync(&mut self, row: &InstanceRow) -> Result<(), Looked> {
        tracing::error!(
            instance.id = %self.guard.instance_id,
            expected_seq = self.guard.seq,
            found_seq = row.seq,
            "the database went back; what it lost is posted again"
        );
        self.shared.stats.resyncs.fetch_add(1, Ordering::Relaxed);
        if row.posted_no < self.posted_no {
            let reloaded = self.reload_posts(row.posted_no).await;
            reloaded.map_err(Looked::Stopped)?;
        }
        let dropped = self.drop_posted(row.posted_no).await;
        dropped.map_err(Looked::Stopped)?;
        let mut leases = Vec::new();
        for desk in self.shared.desks.all() {
            for (key, counter) in desk.book.lock().iter_mut() {
                counter.lease = counter.in_flight();
                if !counter.lease.is_zero() || row.leases.iter().any(|lease| lease.key == *key) {
                    leases.push(Lease {
                        key: *key,
                        held: counter.lease,
                    });
                }
            }
        }
        leases.sort_by_key(|lease| lease.key);
        // What only the journal still has is gone as well.
        let mut touched = self.shared.journal.leased();
        touched.extend(leases.iter().map(|lease| lease.key));
        touched.sort_unstable();
        touched.dedup();
        self.announce(&touched).await.map_err(Looked::Stopped)?;
        let row = bounded(self.store.resync(self.guard, &leases, self.clock.now()))
            .await
            .map_err(|error| match error {
                StoreError::Guard => Looked::Again,
                other => Looked::Failed(other),
            })?;
        if row.posted_no < self.posted_no {
            // It went back once more, between the look and the answer.
            return Err(Looked::Again);
        }
        self.guard.seq = row.seq;
        self.confirm(&touched).await.map_err(Looked::Stopped)
    }

    /// Hands in the end of a resolved instance, unless it turns out to be live again.
    pub(super) async fn end_late(&mut self) -> Result<(), Stop> {
        while self.mode == PostMode::Late && !self.has_posts() {
            self.announce(&[]).await?;
            match bounded(self.store.end_late(self.guard, self.clock.now())).await {
                Ok(()) => {
                    self.guard.seq += 1;
                    self.confirm(&[]).await?;
                    return Err(Stop::Settled);
                }
                Err(error) => self.note_failure(&error),
            }
            // It says so when it is closed already.
            self.reconcile().await?;
        }
        Ok(())
    }
}

/// What a look at the database came to when it did not settle everything.
enum Looked {
    /// It may be asked again after a pause.
    Failed(StoreError),
    /// Something was changed; look again.
    Again,
    Stopped(Stop),
}
