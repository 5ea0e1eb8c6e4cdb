//! Instances: claimed, found, heard of.

use std::num::NonZeroU32;

use sluice_domain::id::TenantId;
use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{Guard, InstanceRow, InstanceState, StoreError};
use sluice_domain::quota::{Amounts, CounterKey, Lease};
use sluice_domain::time::UnixMillis;
use sluice_domain::window::InstanceRank;
use sqlx::FromRow;
use uuid::Uuid;

use super::counters::scope_and_month;
use crate::error::{Failure, corrupt, internal};

statements! {
    FIND_INSTANCE = "SELECT boot_id, seq, state, posted_no, heartbeat_at_ms FROM instances \
        WHERE instance_id = $1";
    // Does nothing when another instance takes the number first.
    INSERT_INSTANCE = "INSERT INTO instances (instance_no, instance_id, boot_id, seq, state, posted_no, \
            posted_rows, quarantined_rows, dropped_rows, heartbeat_at_ms) \
        SELECT COALESCE(MAX(instance_no), 0) + 1, $1, $2, 0, 'live', 0, 0, 0, 0, $3 \
        FROM instances WHERE TRUE ON CONFLICT DO NOTHING";
    // The number stays: it would hide that the database went back.
    CLAIM_INSTANCE = "UPDATE instances SET boot_id = $2, heartbeat_at_ms = $3 \
        WHERE instance_id = $1";
    HEARTBEAT = "UPDATE instances SET heartbeat_at_ms = $4 \
        WHERE instance_id = $1 AND boot_id = $2 AND seq = $3 AND state <> 'closed'";
    COUNT_LIVE = "SELECT COUNT(*) FROM instances \
        WHERE state = 'live' AND heartbeat_at_ms > $2 AND instance_id <> $1";
    RANK_LIVE = "SELECT COUNT(*), \
            CAST(COALESCE(SUM(CASE WHEN instance_id < $1 THEN 1 ELSE 0 END), 0) AS BIGINT) \
        FROM instances WHERE state = 'live' AND heartbeat_at_ms > $2 AND instance_id <> $1";
    LIST_LEASES = "SELECT c.tenant_id, c.scope, c.scope_id, c.period, l.held_tokens AS tokens, l.held_nano AS nano \
        FROM leases l JOIN counters c ON c.counter_id = l.counter_id \
        WHERE l.instance_id = $1 AND (l.held_tokens <> 0 OR l.held_nano <> 0)";
    LIST_RECALLED = "SELECT c.tenant_id, c.scope, c.scope_id, c.period, l.held_tokens AS tokens, l.held_nano AS nano \
        FROM counters c JOIN leases l ON l.counter_id = c.counter_id \
        WHERE c.recall AND l.instance_id = $1 AND (l.held_tokens <> 0 OR l.held_nano <> 0)";
}

/// An instance whose last sign of life is older is not counted as live.
///
/// # Units
/// Milliseconds.
const LIVE_FOR_MS: i64 = 15_000;

/// How often a new instance asks for a number: each time that it gets none, another got one.
const CLAIM_TRIES: u32 = 64;

/// A row of `instances`.
#[derive(Debug, FromRow)]
pub(crate) struct FoundInstance {
    pub(crate) boot_id: Uuid,
    pub(crate) seq: i64,
    state: String,
    pub(crate) posted_no: i64,
    pub(crate) heartbeat_at_ms: i64,
}

impl FoundInstance {
    pub(crate) fn state(&self, id: InstanceId) -> Result<InstanceState, Failure> {
        let state = self.state.parse();
        Ok(state.map_err(|_bad| corrupt("instances", "state", id))?)
    }
}

/// Amounts of a counter.
#[derive(Debug, FromRow)]
pub(crate) struct AmountRow {
    tenant_id: Uuid,
    scope: String,
    scope_id: Uuid,
    period: i32,
    tokens: i64,
    nano: i64,
}

impl AmountRow {
    pub(crate) fn lease(&self) -> Result<Lease, Failure> {
        let (scope, month) = scope_and_month(&self.scope, self.scope_id, self.period)?;
        Ok(Lease {
            key: CounterKey {
                tenant_id: TenantId::from_uuid(self.tenant_id),
                scope,
                month,
            },
            held: Amounts {
                tokens: self.tokens,
                nano: self.nano,
            },
        })
    }
}

/// Reads amounts, in the order of their counters.
pub(crate) fn leases(rows: &[AmountRow]) -> Result<Vec<Lease>, Failure> {
    let mut leases = rows
        .iter()
        .map(AmountRow::lease)
        .collect::<Result<Vec<_>, _>>()?;
    leases.sort_unstable_by_key(|lease| lease.key);
    Ok(leases)
}

on_both! {
    pub(crate) async fn claim_instance(
        &mut self,
        instance_id: InstanceId,
        boots: &[BootId],
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, Failure> {
        let instance = instance_id.as_uuid();
        let mut found = self.find_instance(instance_id).await?;
        for _ in 0..CLAIM_TRIES {
            if found.is_some() {
                break;
            }
            sql!(INSERT_INSTANCE, instance, boot.as_uuid(), now.0).execute(&mut *self.conn).await?;
            found = self.find_instance(instance_id).await?;
        }
        let found = found.ok_or_else(|| internal("other instances took every number"))?;
        if found.boot_id == boot {
            return Ok(found);
        }
        if !boots.contains(&found.boot_id) {
            return Err(StoreError::Guard.into());
        }
        if found.state == InstanceState::Closed {
            return Ok(found);
        }
        sql!(CLAIM_INSTANCE, instance, boot.as_uuid(), now.0).execute(&mut *self.conn).await?;
        Ok(InstanceRow { boot_id: boot, ..found })
    }

    /// Locks the row of an instance and returns it.
    pub(crate) async fn find_instance(
        &mut self,
        instance_id: InstanceId,
    ) -> Result<Option<InstanceRow>, Failure> {
        let Some(found) = self.lock_and_find(instance_id).await? else { return Ok(None) };
        Ok(Some(InstanceRow {
            boot_id: BootId::from_uuid(found.boot_id),
            seq: found.seq,
            state: found.state(instance_id)?,
            posted_no: found.posted_no,
            leases: self.list_leases(instance_id).await?,
        }))
    }

    pub(crate) async fn lock_and_find(
        &mut self,
        instance_id: InstanceId,
    ) -> Result<Option<FoundInstance>, Failure> {
        let instance = instance_id.as_uuid();
        self.lock_instance(instance).await?;
        Ok(sql_as!(FIND_INSTANCE, instance).fetch_optional(&mut *self.conn).await?)
    }

    /// Returns the leases of an instance that hold anything, in the order of their counters.
    pub(crate) async fn list_leases(
        &mut self,
        instance_id: InstanceId,
    ) -> Result<Vec<Lease>, Failure> {
        let rows: Vec<AmountRow> =
            sql_as!(LIST_LEASES, instance_id.as_uuid()).fetch_all(&mut *self.conn).await?;
        leases(&rows)
    }

    pub(crate) async fn list_recalled(
        &mut self,
        instance_id: InstanceId,
    ) -> Result<Vec<CounterKey>, Failure> {
        let rows: Vec<AmountRow> =
            sql_as!(LIST_RECALLED, instance_id.as_uuid()).fetch_all(&mut *self.conn).await?;
        Ok(leases(&rows)?.into_iter().map(|lease| lease.key).collect())
    }

    /// Counts the instances that have been heard of lately, this one included.
    pub(crate) async fn count_live(
        &mut self,
        instance_id: InstanceId,
        now: UnixMillis,
    ) -> Result<u32, Failure> {
        let since = now.0.saturating_sub(LIVE_FOR_MS);
        let others: i64 = sql_scalar!(COUNT_LIVE, instance_id.as_uuid(), since)
            .fetch_one(&mut *self.conn)
            .await?;
        Ok(u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1))
    }

    pub(crate) async fn rank_live(
        &mut self,
        instance_id: InstanceId,
        now: UnixMillis,
    ) -> Result<InstanceRank, Failure> {
        let since = now.0.saturating_sub(LIVE_FOR_MS);
        let (others, before): (i64, i64) = sql_as!(RANK_LIVE, instance_id.as_uuid(), since)
            .fetch_one(&mut *self.conn)
            .await?;
        let number = |count: i64| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(InstanceRank {
            instances: NonZeroU32::MIN.saturating_add(number(others)),
            rank: number(before),
        })
    }

    pub(crate) async fn heartbeat(&mut self, guard: Guard, now: UnixMillis) -> Result<(), Failure> {
        let (instance, boot) = (guard.instance_id.as_uuid(), guard.boot_id.as_uuid());
        let done =
            sql!(HEARTBEAT, instance, boot, guard.seq, now.0).execute(&mut *self.conn).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Guard.into()) }
    }
}
