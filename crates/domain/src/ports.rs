//! The traits behind which storage and the clock stand, and the errors they share.

use std::error::Error;

use async_trait::async_trait;

use crate::id::{BootId, InstanceId};
use crate::quota::{CounterBalance, Scope};
use crate::record::NumberedRecord;
use crate::time::{Month, UnixMillis};

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Returns the current time.
    fn now(&self) -> UnixMillis;
}

/// Storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something like it exists already, or it changed meanwhile.
    #[error("{what} exists already or was changed meanwhile")]
    Conflict {
        /// What conflicts, for people.
        what: String,
    },
    /// The database cannot be reached now; the same call may succeed later. When it was a write, it
    /// may or may not have happened.
    #[error("the database cannot be reached")]
    Unavailable {
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A stored row breaks a rule of the product.
    #[error("a stored value is corrupt: {table}.{column} of {id}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row.
        id: String,
    },
    /// The guard of this instance did not hold: another process has its identity, or the database
    /// went backwards.
    #[error("another process uses the identity of this instance, or the database went backwards")]
    Guard,
    /// A defect; the same call fails again.
    #[error("the database refused a statement")]
    Internal {
        /// The cause.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// One instance's right to write: its identity, its boot, and the number of its last transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guard {
    /// The instance.
    pub instance_id: InstanceId,
    /// This start of it.
    pub boot_id: BootId,
    /// The number of its last transaction.
    pub seq: i64,
}

/// What the database knows of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceRow {
    /// The start that claimed it last.
    pub boot_id: BootId,
    /// The number of its last transaction.
    pub seq: i64,
    /// Posts up to this number have been taken in.
    pub posted_no: i64,
}

/// What became of a batch.
#[derive(Debug, Clone, Default)]
pub struct Posted {
    /// How many records were new; the others were there already.
    pub inserted: usize,
    /// The counters that were touched, as they are now.
    pub counters: Vec<CounterBalance>,
}

/// The ledger as its one writer per instance sees it. Every method is atomic.
#[async_trait]
pub trait LedgerStore: Send + Sync {
    /// Claims the instance for this start; makes it when it is new.
    ///
    /// # Errors
    /// [`StoreError::Guard`] when the last start in the database is neither `last_boot` nor
    /// `boot`: the folder is a copy. [`StoreError::Unavailable`] may be repeated.
    async fn claim_instance(
        &self,
        instance_id: InstanceId,
        last_boot: Option<BootId>,
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError>;

    /// Returns what the database knows of an instance.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    async fn find_instance(
        &self,
        instance_id: InstanceId,
    ) -> Result<Option<InstanceRow>, StoreError>;

    /// Posts a run of records that begins right after `posted_no`, in one transaction: guard,
    /// records, attempts, details, counters, daily and monthly rollups, `posted_no`.
    ///
    /// On success the guard's number has advanced by one.
    ///
    /// # Errors
    /// [`StoreError::Guard`] when nothing was done because the guard did not hold.
    /// [`StoreError::Unavailable`] when it may or may not have happened: ask
    /// [`find_instance`](Self::find_instance) before repeating. [`StoreError::Internal`] when the
    /// batch was refused and nothing was done: repeating it fails again, a part of it may pass.
    async fn post_batch(
        &self,
        guard: Guard,
        records: &[NumberedRecord],
        now: UnixMillis,
    ) -> Result<Posted, StoreError>;

    /// Sets one record aside that the database refuses, so that later ones can pass. Its charge is
    /// booked as an exposure, so that the counters hold it; `posted_no` advances over it and the
    /// guard's number by one.
    ///
    /// # Errors
    /// As [`post_batch`](Self::post_batch).
    async fn quarantine(
        &self,
        guard: Guard,
        record: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), StoreError>;

    /// Returns the balances of scopes in a month. A scope without a counter row has used nothing;
    /// its cap is that of its quota row.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    async fn load_counters(
        &self,
        scopes: &[Scope],
        month: Month,
    ) -> Result<Vec<CounterBalance>, StoreError>;

    /// Tells that the instance lives.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    async fn heartbeat(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError>;
}
