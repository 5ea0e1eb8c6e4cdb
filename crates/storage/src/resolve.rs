//! What an operator sees and does of instances that are gone.

use std::collections::HashMap;

use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{InstanceState, StoreError};
use sluice_domain::quota::{Amounts, CounterKey, Lease};
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use crate::error::{Failure, corrupt};
use crate::ledger::{AmountRow, Entry, EntryKind, Move};
use crate::storage::Storage;

statements! {
    LIST_INSTANCES = "SELECT instance_id, boot_id, seq, state, posted_no, quarantined_rows, heartbeat_at_ms \
        FROM instances ORDER BY instance_id";
    LIST_ALL_LEASES = "SELECT l.instance_id, c.tenant_id, c.scope, c.scope_id, c.period, \
            l.held_tokens AS tokens, l.held_nano AS nano, l.in_flight_tokens, l.in_flight_nano \
        FROM leases l JOIN counters c ON c.counter_id = l.counter_id \
        WHERE l.held_tokens <> 0 OR l.held_nano <> 0";
    LIST_ALL_EXPOSURES = "SELECT e.instance_id, c.tenant_id, c.scope, c.scope_id, c.period, \
            CAST(SUM(e.amount_tokens) AS BIGINT) AS tokens, CAST(SUM(e.amount_nano) AS BIGINT) AS nano \
        FROM ledger_entries e JOIN counters c ON c.counter_id = e.counter_id \
        WHERE e.request_id IS NULL \
        GROUP BY e.instance_id, c.tenant_id, c.scope, c.scope_id, c.period \
        HAVING SUM(e.amount_tokens) <> 0 OR SUM(e.amount_nano) <> 0";
    ATTENTION = "SELECT \
            (SELECT COUNT(*) FROM instances i WHERE i.state = 'live' AND i.heartbeat_at_ms < $1 \
                AND EXISTS (SELECT 1 FROM leases l WHERE l.instance_id = i.instance_id \
                    AND (l.held_tokens <> 0 OR l.held_nano <> 0))) AS silent, \
            (SELECT COUNT(*) FROM instances WHERE state = 'resolved') AS settled, \
            (SELECT CAST(COALESCE(SUM(amount_tokens), 0) AS BIGINT) FROM ledger_entries \
                WHERE request_id IS NULL) AS exposed_tokens, \
            (SELECT CAST(COALESCE(SUM(amount_nano), 0) AS BIGINT) FROM ledger_entries \
                WHERE request_id IS NULL) AS exposed_nano, \
            (SELECT CAST(COALESCE(SUM(over_tokens), 0) AS BIGINT) FROM counters \
                WHERE over_tokens > 0 OR over_nano > 0) AS over_tokens, \
            (SELECT CAST(COALESCE(SUM(over_nano), 0) AS BIGINT) FROM counters \
                WHERE over_tokens > 0 OR over_nano > 0) AS over_nano, \
            (SELECT CAST(COALESCE(SUM(quarantined_rows), 0) AS BIGINT) FROM instances) AS quarantined";
    RESOLVE_INSTANCE = "UPDATE instances SET state = 'resolved', seq = seq + 1 WHERE instance_id = $1";
    LIST_LOST_POSTS = "SELECT instance_id, CAST(SUM(last_no - first_no + 1) AS BIGINT) FROM lost_posts \
        GROUP BY instance_id";
    INSERT_LOST_POSTS = "INSERT INTO lost_posts (instance_id, first_no, last_no, made_at_ms) VALUES ($1, $2, $3, $4)";
    SKIP_LOST_POSTS = "UPDATE instances SET posted_no = $2 WHERE instance_id = $1";
    DELETE_LEASES = "DELETE FROM leases WHERE instance_id = $1";
}

/// An instance that was heard of within this time is not settled without force.
///
/// # Units
/// Milliseconds.
pub const ALIVE_FOR_MS: i64 = 5 * 60 * 1_000;

/// What became of an attempt to settle an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// It is settled. What it had leased counts as used until its journal comes back, or was given
    /// back when that was asked for; by counter, in their order.
    Settled(Vec<Lease>),
    /// It was settled before; nothing was done.
    Already(InstanceState),
    /// It was heard of a moment ago; nothing was done.
    Alive {
        /// Its last sign of life.
        heartbeat_at: UnixMillis,
    },
    /// There is no such instance.
    Unknown,
    /// The posts that were to be given up are not the next ones any more; nothing was done.
    Moved {
        /// Posts up to this number have been taken in.
        posted_no: i64,
    },
}

/// Posts that neither the database nor a journal has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostPosts {
    /// The number of the first.
    pub first: i64,
    /// The number of the last.
    pub last: i64,
}

impl LostPosts {
    /// Returns how many there are.
    pub const fn count(self) -> i64 {
        self.last - self.first + 1
    }
}

/// How an instance is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settlement {
    /// Gives its leases back at once instead of booking them as an exposure.
    pub releases: bool,
    /// Settles it although it was heard of less than [`ALIVE_FOR_MS`] ago.
    pub is_forced: bool,
    /// Posts that are given up, the next ones of the instance: it hands in what comes after them.
    pub lost: Option<LostPosts>,
}

/// A lease as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredLease {
    /// The counter, and what is held of it.
    pub lease: Lease,
    /// What of it was open or unposted when the instance last wrote: an outage costs at most about
    /// this, not the whole lease.
    pub in_flight: Amounts,
}

/// What the database knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceOverview {
    /// The instance.
    pub instance_id: InstanceId,
    /// The start that claimed it last.
    pub boot_id: BootId,
    /// The number of its last transaction.
    pub seq: i64,
    /// Whether it takes part in the accounts.
    pub state: InstanceState,
    /// Posts up to this number have been taken in.
    pub posted_no: i64,
    /// How many of them were set aside.
    pub quarantined: i64,
    /// How many of them were given up as lost.
    pub lost: i64,
    /// Its last sign of life.
    pub heartbeat_at: UnixMillis,
    /// What it has leased, in the order of counters.
    pub leases: Vec<StoredLease>,
    /// What is left of the exposure that was booked for it, in the order of counters.
    pub exposures: Vec<Lease>,
}

/// What of the accounts a person should look at; all zero when there is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromRow)]
pub struct Attention {
    /// Instances that have leases and were not heard of for [`ALIVE_FOR_MS`].
    pub silent: i64,
    /// Instances that were settled and whose journals have not come back.
    pub settled: i64,
    /// Tokens that count as used for settled instances.
    pub exposed_tokens: i64,
    /// The same in billionths of the ledger's currency.
    pub exposed_nano: i64,
    /// Tokens by which counters have exceeded their caps.
    pub over_tokens: i64,
    /// The same in billionths of the ledger's currency.
    pub over_nano: i64,
    /// Records that were set aside.
    pub quarantined: i64,
}

#[derive(FromRow)]
struct OverviewRow {
    instance_id: Uuid,
    boot_id: Uuid,
    seq: i64,
    state: String,
    posted_no: i64,
    quarantined_rows: i64,
    heartbeat_at_ms: i64,
}

#[derive(FromRow)]
struct LeaseRow {
    instance_id: Uuid,
    #[sqlx(flatten)]
    amounts: AmountRow,
    in_flight_tokens: i64,
    in_flight_nano: i64,
}

#[derive(FromRow)]
struct ExposureRow {
    instance_id: Uuid,
    #[sqlx(flatten)]
    amounts: AmountRow,
}

impl Storage {
    /// Settles an instance that is gone: what it has leased becomes an exposure, which counts against
    /// the quotas and is never billed. When its journal comes back, the facts take its place.
    ///
    /// With `release` the leases are given back at once instead. What the instance had charged and
    /// not posted may then be spent twice: should its journal come back, quotas may be overdrawn, and
    /// that is counted.
    ///
    /// An instance that was heard of less than [`ALIVE_FOR_MS`] ago is settled only when that is forced.
    ///
    /// Posts that are given up with it count as taken in from then on, and are named in the ledger for
    /// good. That may be done for an instance that was settled before.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated: twice changes nothing.
    pub async fn resolve_instance(
        &self,
        instance_id: InstanceId,
        settlement: Settlement,
        now: UnixMillis,
    ) -> Result<Resolved, StoreError> {
        in_transaction!(self, resolve_instance(instance_id, settlement, now))
    }

    /// Returns what of the accounts a person should look at.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn ledger_attention(&self, now: UnixMillis) -> Result<Attention, StoreError> {
        reading!(self, ledger_attention(now))
    }

    /// Lists all instances, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_instances(&self) -> Result<Vec<InstanceOverview>, StoreError> {
        in_snapshot!(self, list_instances())
    }
}

on_both! {
    async fn resolve_instance(
        &mut self,
        instance_id: InstanceId,
        settlement: Settlement,
        now: UnixMillis,
    ) -> Result<Resolved, Failure> {
        let Settlement { releases: release, is_forced, lost } = settlement;
        let Some(found) = self.lock_and_find(instance_id).await? else {
            return Ok(Resolved::Unknown);
        };
        let state = found.state(instance_id)?;
        let lost = lost.filter(|_| state != InstanceState::Closed);
        if let Some(lost) = lost
            && (lost.first != found.posted_no + 1 || lost.count() < 1)
        {
            return Ok(Resolved::Moved { posted_no: found.posted_no });
        }
        let instance = instance_id.as_uuid();
        if state != InstanceState::Live {
            self.give_up(instance, lost, now).await?;
            return Ok(Resolved::Already(state));
        }
        let heartbeat_at = UnixMillis(found.heartbeat_at_ms);
        if !is_forced && now.since(heartbeat_at) < ALIVE_FOR_MS {
            return Ok(Resolved::Alive { heartbeat_at });
        }
        let leases = self.list_leases(instance_id).await?;
        let keys: Vec<CounterKey> = leases.iter().map(|lease| lease.key).collect();
        let counters = self.lock_counters(instance_id, &keys, now).await?;
        let mut moves = Vec::with_capacity(counters.len());
        for counter in counters {
            let held = counter.leased;
            moves.push(Move { counter, used: if release { Amounts::ZERO } else { held }, held });
            if !release {
                let entry = Entry {
                    kind: EntryKind::Exposure,
                    instance_id,
                    counter_id: counter.id,
                    request_id: None,
                    amount: held,
                };
                self.insert_entry(entry, now).await?;
            }
        }
        self.execute_part(Self::move_charges(&moves)).await?;
        self.give_up(instance, lost, now).await?;
        sql!(DELETE_LEASES, instance).execute(&mut *self.conn).await?;
        sql!(RESOLVE_INSTANCE, instance).execute(&mut *self.conn).await?;
        Ok(Resolved::Settled(leases))
    }

    /// Lets posts count as taken in that nobody has.
    async fn give_up(
        &mut self,
        instance: Uuid,
        lost: Option<LostPosts>,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        if let Some(LostPosts { first, last }) = lost {
            sql!(INSERT_LOST_POSTS, instance, first, last, now.0).execute(&mut *self.conn).await?;
            sql!(SKIP_LOST_POSTS, instance, last).execute(&mut *self.conn).await?;
        }
        Ok(())
    }

    async fn ledger_attention(&mut self, now: UnixMillis) -> Result<Attention, Failure> {
        let heard_before = now.0.saturating_sub(ALIVE_FOR_MS);
        Ok(sql_as!(ATTENTION, heard_before).fetch_one(&mut *self.conn).await?)
    }

    async fn list_instances(&mut self) -> Result<Vec<InstanceOverview>, Failure> {
        let rows: Vec<OverviewRow> = sql_as!(LIST_INSTANCES).fetch_all(&mut *self.conn).await?;
        let lease_rows: Vec<LeaseRow> = sql_as!(LIST_ALL_LEASES).fetch_all(&mut *self.conn).await?;
        let mut leases: HashMap<Uuid, Vec<StoredLease>> = HashMap::new();
        for row in lease_rows {
            let in_flight = Amounts { tokens: row.in_flight_tokens, nano: row.in_flight_nano };
            let lease = StoredLease { lease: row.amounts.lease()?, in_flight };
            leases.entry(row.instance_id).or_default().push(lease);
        }
        let exposure_rows: Vec<ExposureRow> =
            sql_as!(LIST_ALL_EXPOSURES).fetch_all(&mut *self.conn).await?;
        let mut exposures: HashMap<Uuid, Vec<Lease>> = HashMap::new();
        for row in exposure_rows {
            exposures.entry(row.instance_id).or_default().push(row.amounts.lease()?);
        }
        let lost: Vec<(Uuid, i64)> = sql_as!(LIST_LOST_POSTS).fetch_all(&mut *self.conn).await?;
        let lost: HashMap<Uuid, i64> = lost.into_iter().collect();
        rows.into_iter()
            .map(|row| {
                let instance_id = InstanceId::from_uuid(row.instance_id);
                let mut leases = leases.remove(&row.instance_id).unwrap_or_default();
                leases.sort_unstable_by_key(|stored| stored.lease.key);
                let mut exposures = exposures.remove(&row.instance_id).unwrap_or_default();
                exposures.sort_unstable_by_key(|exposure| exposure.key);
                Ok(InstanceOverview {
                    instance_id,
                    boot_id: BootId::from_uuid(row.boot_id),
                    seq: row.seq,
                    state: row
                        .state
                        .parse()
                        .map_err(|_bad| corrupt("instances", "state", instance_id))?,
                    posted_no: row.posted_no,
                    quarantined: row.quarantined_rows,
                    lost: lost.get(&row.instance_id).copied().unwrap_or(0),
                    heartbeat_at: UnixMillis(row.heartbeat_at_ms),
                    leases,
                    exposures,
                })
            })
            .collect()
    }
}
