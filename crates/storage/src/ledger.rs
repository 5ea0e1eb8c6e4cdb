//! The ledger: instances, leases, posting, quarantine, balances.
//!
//! Every transaction of an instance passes `guard` first and then locks `counters`. `instance` claims
//! and finds instances, `leases` takes and returns what they may spend, and `late` is what an operator
//! booked for one that was away.
//!
//! For posts, `kind` finds records that have much in common, `kind_hash` tells what they share apart and
//! `kind_rows` stores it,
//! `callers` knows who called lately, `sums` is what is computed before the database is asked, `post`
//! decides which records are new, `booking` writes those with all that hangs on them, `insert` is its
//! part that costs most, and `quarantine` sets aside what is refused.

mod booking;
mod callers;
mod counters;
mod guard;
mod insert;
mod instance;
mod kind;
mod kind_hash;
mod kind_rows;
mod late;
mod leases;
mod post;
mod quarantine;
mod sums;

pub(crate) use callers::Callers;
pub(crate) use counters::{Move, scope_and_month};
pub(crate) use guard::MAX_POST_NO;
pub(crate) use instance::AmountRow;
pub(crate) use kind_hash::KindContent;
pub(crate) use kind_rows::Kinds;
pub(crate) use late::{Entry, EntryKind};
pub(crate) use sums::upstream_of_rollup;

use async_trait::async_trait;
use parking_lot::Mutex;
use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{
    Guard, InstanceRow, LeasePolicy, LedgerStore, LockedCounter, PostMode, Posted, StoreError,
};
use sluice_domain::quota::{CounterBalance, CounterKey, Lease};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;
use sluice_domain::window::InstanceRank;

use self::kind_rows::KindIds;
use crate::error::Failure;
use crate::storage::Storage;

statements! {
    COUNT_ROWS = "UPDATE instances SET posted_rows = posted_rows + $2, \
            quarantined_rows = quarantined_rows + $3 \
        WHERE instance_id = $1";
    LIST_POSTED = "SELECT origin FROM usage_rows WHERE origin BETWEEN $1 AND $2";
    LIST_QUARANTINED = "SELECT post_no FROM quarantine \
        WHERE instance_id = $1 AND post_no BETWEEN $2 AND $3";
    OLDEST_OPEN_PERIOD = "SELECT period FROM periods WHERE tenant_id = $1 AND state = 'open' \
        ORDER BY period LIMIT 1";
    LATEST_PERIOD = "SELECT period FROM periods WHERE tenant_id = $1 ORDER BY period DESC LIMIT 1";
}

/// What one transaction knows from those before it, and leaves to those after it.
pub(crate) struct Lately<'s> {
    guard: Guard,
    callers: &'s Callers,
    kinds: &'s Kinds,
    /// The kinds that the transaction has met.
    met: Mutex<KindIds>,
}

impl Lately<'_> {
    /// Remembers what was met, once the transaction is committed.
    fn committed(self) {
        self.kinds.remember(self.guard, self.met.into_inner());
    }
}

#[async_trait]
impl LedgerStore for Storage {
    async fn claim_instance(
        &self,
        instance_id: InstanceId,
        boots: &[BootId],
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        self.kinds().forget();
        in_transaction!(self, claim_instance(instance_id, boots, boot, now))
    }

    async fn find_instance(
        &self,
        instance_id: InstanceId,
    ) -> Result<Option<InstanceRow>, StoreError> {
        in_transaction!(self, find_instance(instance_id))
    }

    async fn post_batch(
        &self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, StoreError> {
        match self.post_new(guard, mode, records, in_flight, now).await {
            Err(Failure::NotAllNew) => Ok(self
                .post_mixed(guard, mode, records, in_flight, now)
                .await?),
            other => Ok(other?),
        }
    }

    async fn quarantine(
        &self,
        guard: Guard,
        mode: PostMode,
        record: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        in_transaction!(self, quarantine(guard, mode, record, reason, now))
    }

    async fn move_leases(
        &self,
        guard: Guard,
        counters: &[CounterKey],
        policy: &LeasePolicy<'_>,
        now: UnixMillis,
    ) -> Result<Vec<LockedCounter>, StoreError> {
        in_transaction!(self, move_leases(guard, counters, policy, now))
    }

    async fn resync(
        &self,
        guard: Guard,
        leases: &[Lease],
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        self.kinds().forget();
        in_transaction!(self, resync(guard, leases, now))
    }

    async fn end_late(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError> {
        in_transaction!(self, end_late(guard, now))
    }

    async fn list_recalled(&self, instance_id: InstanceId) -> Result<Vec<CounterKey>, StoreError> {
        reading!(self, list_recalled(instance_id))
    }

    async fn load_counters(
        &self,
        counters: &[CounterKey],
    ) -> Result<Vec<CounterBalance>, StoreError> {
        reading!(self, load_counters(counters))
    }

    async fn heartbeat(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError> {
        in_transaction!(self, heartbeat(guard, now))
    }
}

impl Storage {
    /// Returns how many instances were heard of lately, the asked one included, and how many of the
    /// others come before it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn instance_rank(
        &self,
        instance_id: InstanceId,
        now: UnixMillis,
    ) -> Result<InstanceRank, StoreError> {
        reading!(self, rank_live(instance_id, now))
    }

    fn lately(&self, guard: Guard) -> Lately<'_> {
        Lately {
            guard,
            callers: self.callers(),
            kinds: self.kinds(),
            met: Mutex::default(),
        }
    }

    /// Posts records that are all new; anything else is [`Failure::NotAllNew`], and nothing is done.
    async fn post_new(
        &self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        let lately = self.lately(guard);
        let posted: Result<Posted, Failure> = in_transaction!(
            self,
            post_new(guard, mode, records, in_flight, now, &lately)
        );
        if posted.is_ok() {
            lately.committed();
        }
        posted
    }

    /// Posts records of which some were there already.
    async fn post_mixed(
        &self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        let lately = self.lately(guard);
        let posted: Result<Posted, Failure> = in_transaction!(
            self,
            post_mixed(guard, mode, records, in_flight, now, &lately)
        );
        if posted.is_ok() {
            lately.committed();
        }
        posted
    }
}

/// Lists the statements of many rows.
pub(crate) fn bulks() -> Vec<&'static crate::bulk::Bulk> {
    [
        booking::bulks(),
        counters::bulks(),
        insert::bulks(),
        kind_rows::bulks(),
        leases::bulks(),
        post::bulks(),
    ]
    .concat()
}

/// Lists the statements of this module.
pub(crate) fn statements() -> Vec<crate::Statement> {
    [
        STATEMENTS,
        guard::STATEMENTS,
        instance::STATEMENTS,
        late::STATEMENTS,
        leases::STATEMENTS,
        quarantine::STATEMENTS,
    ]
    .concat()
}
