//! Whether the database answers, how long what is known of it may be served, and the ledger's way to
//! it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{
    Guard, InstanceRow, LeasePolicy, LedgerStore, LockedCounter, PostMode, Posted, StoreError,
};
use sluice_domain::quota::{CounterBalance, CounterKey, Lease};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;
use sluice_storage::Storage;
use tokio::time::Instant;

/// How long a transaction of the ledger may take before its answer counts as lost. A server that
/// has vanished never answers, and the journal must be cared for meanwhile.
const TRANSACTION_PATIENCE: Duration = Duration::from_secs(10);
/// How much longer than allowed known keys are served: the time between two reads of the change
/// feed, and that of the read itself.
const READ_GRACE: Duration = Duration::from_secs(2);

/// How the instance stands to its database.
#[derive(Debug)]
pub(crate) struct Standing {
    max_age: Duration,
    is_up: AtomicBool,
    is_joined: AtomicBool,
    is_stale: AtomicBool,
    is_of_snapshot: AtomicBool,
    as_of: AtomicI64,
    fresh_until: Mutex<Instant>,
}

impl Standing {
    /// Returns the standing of an instance that has just read its configuration from the database.
    pub(crate) fn joined(max_age: Duration, now: UnixMillis) -> Self {
        Self {
            max_age,
            is_up: AtomicBool::new(true),
            is_joined: AtomicBool::new(true),
            is_stale: AtomicBool::new(false),
            is_of_snapshot: AtomicBool::new(false),
            as_of: AtomicI64::new(now.0),
            fresh_until: Mutex::new(Instant::now() + max_age + READ_GRACE),
        }
    }

    /// Returns the standing of an instance that has its configuration from a snapshot of that age.
    pub(crate) fn away(max_age: Duration, as_of: UnixMillis, age: Duration) -> Self {
        Self {
            is_up: AtomicBool::new(false),
            is_joined: AtomicBool::new(false),
            is_of_snapshot: AtomicBool::new(true),
            fresh_until: Mutex::new(Instant::now() + max_age.saturating_sub(age)),
            ..Self::joined(max_age, as_of)
        }
    }

    /// Returns whether the database answered when it was last asked, and fits this binary.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Notes whether it answers. Returns whether that is new.
    pub(crate) fn note_up(&self, is_up: bool) -> bool {
        self.is_up.swap(is_up, Ordering::Relaxed) != is_up
    }

    /// Returns whether the database was found to fit this binary, in this process or before the
    /// snapshot was written. Nothing of it is used before.
    pub(crate) fn is_joined(&self) -> bool {
        self.is_joined.load(Ordering::Acquire)
    }

    /// Notes that the database fits.
    pub(crate) fn note_joined(&self) {
        self.is_joined.store(true, Ordering::Release);
    }

    /// Returns whether the database was silent for so long that nothing known may be served.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Returns when every change was last known.
    pub(crate) fn as_of(&self) -> UnixMillis {
        UnixMillis(self.as_of.load(Ordering::Relaxed))
    }

    /// Notes that at `now` the change feed was read to its end.
    pub(crate) fn note_read(&self, now: UnixMillis) {
        let mut fresh_until = self.fresh_until.lock();
        *fresh_until = Instant::now() + self.max_age + READ_GRACE;
        self.as_of.store(now.0, Ordering::Relaxed);
        self.is_of_snapshot.store(false, Ordering::Relaxed);
        if self.is_stale.swap(false, Ordering::Relaxed) {
            tracing::info!("the configuration is known again; keys are served");
        }
    }

    /// Looks at the time. To be called often.
    pub(crate) fn note_time(&self) {
        let fresh_until = self.fresh_until.lock();
        if Instant::now() >= *fresh_until && !self.is_stale.swap(true, Ordering::Relaxed) {
            tracing::error!(
                as_of = self.as_of().to_rfc3339(),
                "the database was silent for longer than snapshot.max_age_ms; no key is served until it answers"
            );
        }
    }

    /// Describes the database for people.
    pub(crate) fn describe(&self) -> String {
        if self.is_up() {
            return "up".to_owned();
        }
        if self.is_stale() {
            return "down".to_owned();
        }
        let at = self.as_of().to_rfc3339();
        let minute = at.get(11..16).unwrap_or(&at);
        if self.is_of_snapshot.load(Ordering::Relaxed) {
            format!("down, serving from a snapshot of {minute} UTC")
        } else {
            format!("down, serving known keys as of {minute} UTC")
        }
    }
}

/// Returns the error for a database that is known to be away, or did not answer in time.
pub(crate) fn away(what: &'static str) -> StoreError {
    StoreError::Unavailable {
        source: what.into(),
    }
}

/// Bounds a call to the database.
///
/// # Errors
/// [`StoreError::Unavailable`] when it takes longer.
pub(crate) async fn bounded<T>(
    at_most: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(at_most, call).await {
        Ok(result) => result,
        Err(_elapsed) => Err(away("the database does not answer in time")),
    }
}

/// The ledger's way to the database: closed until the database was found to fit this binary, and
/// bounded in time.
#[derive(Debug)]
pub(crate) struct LedgerDoor {
    storage: Storage,
    standing: Arc<Standing>,
}

impl LedgerDoor {
    pub(crate) fn new(storage: Storage, standing: Arc<Standing>) -> Self {
        Self { storage, standing }
    }

    async fn pass<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        if !self.standing.is_joined() {
            return Err(away("the database has not answered since the start"));
        }
        bounded(TRANSACTION_PATIENCE, call).await
    }
}

#[async_trait]
impl LedgerStore for LedgerDoor {
    async fn claim_instance(
        &self,
        instance_id: InstanceId,
        boots: &[BootId],
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        self.pass(self.storage.claim_instance(instance_id, boots, boot, now))
            .await
    }

    async fn find_instance(
        &self,
        instance_id: InstanceId,
    ) -> Result<Option<InstanceRow>, StoreError> {
        self.pass(self.storage.find_instance(instance_id)).await
    }

    async fn post_batch(
        &self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, StoreError> {
        self.pass(
            self.storage
                .post_batch(guard, mode, records, in_flight, now),
        )
        .await
    }

    async fn quarantine(
        &self,
        guard: Guard,
        mode: PostMode,
        record: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        self.pass(self.storage.quarantine(guard, mode, record, reason, now))
            .await
    }

    async fn move_leases(
        &self,
        guard: Guard,
        counters: &[CounterKey],
        policy: &LeasePolicy<'_>,
        now: UnixMillis,
    ) -> Result<Vec<LockedCounter>, StoreError> {
        self.pass(self.storage.move_leases(guard, counters, policy, now))
            .await
    }

    async fn resync(
        &self,
        guard: Guard,
        leases: &[Lease],
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        self.pass(self.storage.resync(guard, leases, now)).await
    }

    async fn end_late(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError> {
        self.pass(self.storage.end_late(guard, now)).await
    }

    async fn list_recalled(&self, instance_id: InstanceId) -> Result<Vec<CounterKey>, StoreError> {
        self.pass(self.storage.list_recalled(instance_id)).await
    }

    async fn load_counters(
        &self,
        counters: &[CounterKey],
    ) -> Result<Vec<CounterBalance>, StoreError> {
        self.pass(self.storage.load_counters(counters)).await
    }

    async fn heartbeat(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError> {
        self.pass(self.storage.heartbeat(guard, now)).await
    }
}
