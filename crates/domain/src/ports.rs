//! The traits behind which storage and the clock stand, and the errors they share.

use std::error::Error;

use async_trait::async_trait;

use crate::id::{BootId, InstanceId};
use crate::quota::{Amounts, CounterBalance, CounterKey, Lease};
use crate::record::NumberedRecord;
use crate::time::UnixMillis;
use crate::window::{WindowAnswer, WindowDecision};
use crate::words;

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

/// Whether an instance takes part in the accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum InstanceState {
    /// It does.
    Live,
    /// An operator has settled its leases; it may only hand in what it still has.
    Resolved,
    /// It has handed in everything and will never write again.
    Closed,
}

words!(InstanceState, "live, resolved, closed", {
    InstanceState::Live => "live",
    InstanceState::Resolved => "resolved",
    InstanceState::Closed => "closed",
});

/// What the database knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRow {
    /// The start that claimed it last.
    pub boot_id: BootId,
    /// The number of its last transaction.
    pub seq: i64,
    /// Whether it takes part.
    pub state: InstanceState,
    /// Posts up to this number have been taken in.
    pub posted_no: i64,
    /// What it may spend, by counter; counters with nothing held may be missing.
    pub leases: Vec<Lease>,
}

/// How posts are booked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PostMode {
    /// The instance is live: a charge moves from its lease to what is used.
    Live,
    /// The instance was resolved: a charge replaces a part of the exposure that was booked for it.
    Late,
}

/// What became of a batch.
#[derive(Debug, Clone, Default)]
pub struct Posted {
    /// How many records were new; the others were there already.
    pub inserted: usize,
    /// The counters that were touched, as they are now.
    pub counters: Vec<CounterBalance>,
}

/// A counter that is locked, with what this instance has of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockedCounter {
    /// The counter.
    pub balance: CounterBalance,
    /// This instance's lease of it.
    pub leased: Amounts,
    /// Whether idle leases are asked back.
    pub recall: bool,
}

/// What changes at one locked counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseChange {
    /// Added to the lease of this instance and to what is held; negative gives back.
    pub delta: Amounts,
    /// Whether idle leases are asked back from now on; `None` leaves it.
    pub recall: Option<bool>,
}

/// Decides on locked counters: one change for each, in their order. The second argument is how many
/// instances have been heard of lately, this one included.
pub type LeasePolicy<'a> = dyn Fn(&[LockedCounter], u32) -> Vec<LeaseChange> + Send + Sync + 'a;

/// The ledger as its one writer per instance sees it. Every method is atomic.
///
/// Every method that takes a [`Guard`] and writes advances its number by one, or does nothing and
/// returns [`StoreError::Guard`]. After [`StoreError::Unavailable`] it may or may not have happened:
/// [`find_instance`](Self::find_instance) tells. [`StoreError::Internal`] and
/// [`StoreError::Corrupt`] mean that nothing was done and that a repetition fails again.
#[async_trait]
pub trait LedgerStore: Send + Sync {
    /// Claims the instance for this start; makes it, with number 0, when it is new. The number stays
    /// as it is: it would hide that the database went back. A resolved instance is claimed too, so
    /// that it can hand in what it has; a closed one is only looked at.
    ///
    /// # Errors
    /// [`StoreError::Guard`] when the last start in the database is neither one of `boots` nor
    /// `boot`: the folder is a copy. [`StoreError::Unavailable`] may be repeated.
    async fn claim_instance(
        &self,
        instance_id: InstanceId,
        boots: &[BootId],
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError>;

    /// Returns what the database knows of an instance, after any transaction of it that is still
    /// under way.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    async fn find_instance(
        &self,
        instance_id: InstanceId,
    ) -> Result<Option<InstanceRow>, StoreError>;

    /// Posts a run of records that begins right after `posted_no`, in one transaction: guard,
    /// records, attempts, details, counters, leases, daily and monthly rollups, `posted_no`.
    ///
    /// In [`PostMode::Live`] the charge of each new record moves, in every scope that its hold was
    /// taken from, from the instance's lease to what is used; other counters of its scopes add it to
    /// what is used. In [`PostMode::Late`] it is added to what is used everywhere, and as much of the
    /// instance's exposure is released. `in_flight` is what is open or unposted after this batch, by
    /// counter; it is stored for people.
    ///
    /// # Errors
    /// See [`LedgerStore`]. When the batch was refused, a part of it may pass.
    async fn post_batch(
        &self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, StoreError>;

    /// Sets one record aside that the database refuses, so that later ones can pass. Its charge is
    /// booked as an exposure that takes the place of the record; `posted_no` advances over it.
    ///
    /// # Errors
    /// See [`LedgerStore`].
    async fn quarantine(
        &self,
        guard: Guard,
        mode: PostMode,
        record: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), StoreError>;

    /// Locks counters, made where they are missing, and changes this instance's leases of them as
    /// `policy` says. Returns the counters as they are afterwards, in the order of `counters`.
    ///
    /// # Errors
    /// See [`LedgerStore`]. A policy that takes more than there is room for is a defect and refused.
    async fn move_leases(
        &self,
        guard: Guard,
        counters: &[CounterKey],
        policy: &LeasePolicy<'_>,
        now: UnixMillis,
    ) -> Result<Vec<LockedCounter>, StoreError>;

    /// After the database went back: sets this instance's leases to exactly `leases`, whatever the
    /// caps say, counts what exceeds them, and makes the guard's number `guard.seq + 1`. Does nothing
    /// unless the number in the database is lower than `guard.seq`. Returns what is known then.
    ///
    /// # Errors
    /// See [`LedgerStore`].
    async fn resync(
        &self,
        guard: Guard,
        leases: &[Lease],
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError>;

    /// Ends a resolved instance that has handed in everything: what is left of its exposure is
    /// released and it is closed.
    ///
    /// # Errors
    /// See [`LedgerStore`].
    async fn end_late(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError>;

    /// Returns the counters that this instance has a lease of and whose idle leases are asked back.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    async fn list_recalled(&self, instance_id: InstanceId) -> Result<Vec<CounterKey>, StoreError>;

    /// Returns the balances of counters, in their order. A counter that does not exist yet has used
    /// nothing; its cap is that of its quota.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    async fn load_counters(
        &self,
        counters: &[CounterKey],
    ) -> Result<Vec<CounterBalance>, StoreError>;

    /// Tells that the instance lives. Does not advance the guard's number.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    async fn heartbeat(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError>;
}

/// The counters of window limits could not decide: they cannot be reached, or may have forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindowsUnavailable {
    /// There was no answer in time. The decision may have been taken and counted.
    #[error("the window counters did not answer in time")]
    Slow,
    /// They cannot be reached.
    #[error("the window counters cannot be reached")]
    Away,
    /// They answered with an error.
    #[error("the window counters refused the decision")]
    Failed,
    /// They lost what they counted, or may have; nothing was counted.
    #[error("the window counters may have lost what they counted")]
    Forgetful,
}

/// Counts requests and tokens against window limits.
#[async_trait]
pub trait WindowCounters: Send + Sync {
    /// Takes what is asked of every counter, or nothing of any.
    ///
    /// Asks that are a dry run are counted when the decision is admitted, and never refuse it.
    ///
    /// # Errors
    /// [`WindowsUnavailable`]. The counters may have taken what was asked then, which is given back
    /// where that is possible.
    ///
    /// # Cancel safety
    /// Safe. A decision that is dropped half-way may stay counted; its slots are given back.
    async fn decide(
        &self,
        decision: WindowDecision<'_>,
    ) -> Result<WindowAnswer, WindowsUnavailable>;
}
