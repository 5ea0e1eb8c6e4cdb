//! The ledger: instances, posting, quarantine, balances.
//!
//! `kind` finds records that have much in common, `sums` is what is computed before the database is
//! asked, `counters` finds what a charge moves, `post` decides which records are new, `booking` writes
//! those with all that hangs on them, and `insert` is its part that costs most.

mod booking;
mod counters;
mod insert;
mod kind;
mod post;
mod sums;

pub(crate) use sums::upstream_of_rollup;

use async_trait::async_trait;
use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{Guard, InstanceRow, LedgerStore, Posted, StoreError};
use sluice_domain::quota::{CounterBalance, Scope};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::{Month, UnixMillis};
use uuid::Uuid;

use crate::error::Failure;
use crate::storage::Storage;

statements! {
    FIND_INSTANCE = "SELECT boot_id, seq, posted_no FROM instances WHERE instance_id = $1";
    INSERT_INSTANCE = "INSERT INTO instances (instance_id, boot_id, seq, state, posted_no, posted_rows, \
            quarantined_rows, dropped_rows, heartbeat_at_ms) \
        VALUES ($1, $2, 1, 'live', 0, 0, 0, 0, $3) ON CONFLICT DO NOTHING";
    CLAIM_INSTANCE = "UPDATE instances SET boot_id = $2, seq = seq + 1, heartbeat_at_ms = $4 \
        WHERE instance_id = $1 AND (boot_id = $2 OR boot_id = $3) AND state = 'live' \
        RETURNING boot_id, seq, posted_no";
    HEARTBEAT = "UPDATE instances SET heartbeat_at_ms = $3 \
        WHERE instance_id = $1 AND boot_id = $2 AND state = 'live'";
    // The first statement of every transaction of an instance: a commit of unknown outcome, a copied
    // folder and a database that went back are all a row that does not fit.
    PASS_GUARD = "UPDATE instances SET seq = seq + 1, heartbeat_at_ms = $4, \
            posted_no = CASE WHEN posted_no < $6 THEN $6 ELSE posted_no END, \
            posted_rows = posted_rows + $7 \
        WHERE instance_id = $1 AND boot_id = $2 AND seq = $3 AND state = 'live' AND posted_no >= $5";
    FIND_GUARD = "SELECT instance_id FROM instances \
        WHERE instance_id = $1 AND boot_id = $2 AND seq = $3 AND state = 'live'";
    COUNT_ROWS = "UPDATE instances SET posted_rows = posted_rows + $2, \
            quarantined_rows = quarantined_rows + $3 \
        WHERE instance_id = $1";
    LIST_POSTED = "SELECT request_id, post_no FROM usage_records \
        WHERE instance_id = $1 AND post_no BETWEEN $2 AND $3";
    LIST_QUARANTINED = "SELECT post_no FROM quarantine \
        WHERE instance_id = $1 AND post_no BETWEEN $2 AND $3";
    INSERT_QUARANTINE = "INSERT INTO quarantine (instance_id, post_no, request_id, reason, record, made_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
    INSERT_EXPOSURE = "INSERT INTO ledger_entries (entry_id, kind, instance_id, counter_id, request_id, \
            amount_tokens, amount_nano, made_at_ms) \
        VALUES ($1, 'exposure', $2, $3, $4, $5, 0, $6) ON CONFLICT DO NOTHING";
    ADD_USED = "UPDATE counters SET used_tokens = used_tokens + $2 WHERE counter_id = $1";
    OLDEST_OPEN_PERIOD = "SELECT period FROM periods WHERE tenant_id = $1 AND state = 'open' \
        ORDER BY period LIMIT 1";
    LATEST_PERIOD = "SELECT period FROM periods WHERE tenant_id = $1 ORDER BY period DESC LIMIT 1";
}

#[async_trait]
impl LedgerStore for Storage {
    async fn claim_instance(
        &self,
        instance_id: InstanceId,
        last_boot: Option<BootId>,
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        in_transaction!(self, claim_instance(instance_id, last_boot, boot, now))
    }

    async fn find_instance(
        &self,
        instance_id: InstanceId,
    ) -> Result<Option<InstanceRow>, StoreError> {
        reading!(self, find_instance(instance_id))
    }

    async fn post_batch(
        &self,
        guard: Guard,
        records: &[NumberedRecord],
        now: UnixMillis,
    ) -> Result<Posted, StoreError> {
        match self.post_new(guard, records, now).await {
            Err(Failure::NotAllNew) => Ok(self.post_mixed(guard, records, now).await?),
            other => Ok(other?),
        }
    }

    async fn quarantine(
        &self,
        guard: Guard,
        record: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        in_transaction!(self, quarantine(guard, record, reason, now))
    }

    async fn load_counters(
        &self,
        scopes: &[Scope],
        month: Month,
    ) -> Result<Vec<CounterBalance>, StoreError> {
        reading!(self, load_counters(scopes, month))
    }

    async fn heartbeat(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError> {
        in_transaction!(self, heartbeat(guard, now))
    }
}

impl Storage {
    /// Posts records that are all new; anything else is [`Failure::NotAllNew`], and nothing is done.
    async fn post_new(
        &self,
        guard: Guard,
        records: &[NumberedRecord],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        in_transaction!(self, post_new(guard, records, now))
    }

    /// Posts records of which some were there already.
    async fn post_mixed(
        &self,
        guard: Guard,
        records: &[NumberedRecord],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        in_transaction!(self, post_mixed(guard, records, now))
    }
}

/// Lists the statements of many rows.
pub(crate) fn bulks() -> Vec<&'static crate::bulk::Bulk> {
    [
        booking::bulks(),
        counters::bulks(),
        insert::bulks(),
        post::bulks(),
    ]
    .concat()
}

type InstanceTuple = (Uuid, i64, i64);

fn instance_row((boot_id, seq, posted_no): InstanceTuple) -> InstanceRow {
    InstanceRow {
        boot_id: BootId::from_uuid(boot_id),
        seq,
        posted_no,
    }
}

on_both! {
    async fn claim_instance(
        &mut self,
        instance_id: InstanceId,
        last_boot: Option<BootId>,
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, Failure> {
        let instance = instance_id.as_uuid();
        let made = sql!(INSERT_INSTANCE, instance, boot.as_uuid(), now.0)
            .execute(&mut *self.conn)
            .await?;
        if made.rows_affected() == 1 {
            return Ok(InstanceRow { boot_id: boot, seq: 1, posted_no: 0 });
        }
        let last = last_boot.unwrap_or(boot);
        let row: Option<InstanceTuple> =
            sql_as!(CLAIM_INSTANCE, instance, boot.as_uuid(), last.as_uuid(), now.0)
                .fetch_optional(&mut *self.conn)
                .await?;
        Ok(row.map(instance_row).ok_or(StoreError::Guard)?)
    }

    async fn find_instance(&mut self, id: InstanceId) -> Result<Option<InstanceRow>, Failure> {
        let row: Option<InstanceTuple> =
            sql_as!(FIND_INSTANCE, id.as_uuid()).fetch_optional(&mut *self.conn).await?;
        Ok(row.map(instance_row))
    }

    async fn heartbeat(&mut self, guard: Guard, now: UnixMillis) -> Result<(), Failure> {
        let done = sql!(HEARTBEAT, guard.instance_id.as_uuid(), guard.boot_id.as_uuid(), now.0)
            .execute(&mut *self.conn)
            .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Guard.into()) }
    }
}
