//! Exposures: what an operator booked for an instance, and how facts take its place.
//!
//! An entry with a request stands for a record that was set aside; entries without one are what was
//! leased when the instance was settled, and what of it was released since.

use std::collections::HashMap;

use sluice_domain::id::{InstanceId, RequestId};
use sluice_domain::ports::{Guard, PostMode};
use sluice_domain::quota::{Amounts, CounterKey};
use sluice_domain::time::UnixMillis;
use uuid::Uuid;

use super::counters::{Counter, Move};
use super::guard::Numbers;
use super::instance::{AmountRow, leases};
use super::sums::Charges;
use crate::error::Failure;
use crate::quota::new_row_id;

statements! {
    LIST_EXPOSURES = "SELECT c.tenant_id, c.scope, c.scope_id, c.period, \
            CAST(SUM(e.amount_tokens) AS BIGINT) AS tokens, CAST(SUM(e.amount_nano) AS BIGINT) AS nano \
        FROM ledger_entries e JOIN counters c ON c.counter_id = e.counter_id \
        WHERE e.instance_id = $1 AND e.request_id IS NULL \
        GROUP BY c.tenant_id, c.scope, c.scope_id, c.period \
        HAVING SUM(e.amount_tokens) <> 0 OR SUM(e.amount_nano) <> 0";
    INSERT_ENTRY = "INSERT INTO ledger_entries (entry_id, kind, instance_id, counter_id, request_id, \
            amount_tokens, amount_nano, made_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING";
    TAKE_USED = "UPDATE counters SET used_tokens = used_tokens - $2, used_nano = used_nano - $3 \
        WHERE counter_id = $1";
    CLOSE_INSTANCE = "UPDATE instances SET state = 'closed' WHERE instance_id = $1";
}

/// What an entry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// Counts against the quota; never billed.
    Exposure,
    /// Takes back a part of an exposure.
    Release,
}

/// One entry on its way into the ledger.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) instance_id: InstanceId,
    pub(crate) counter_id: Uuid,
    /// The record that it takes the place of.
    pub(crate) request_id: Option<RequestId>,
    /// Never negative.
    pub(crate) amount: Amounts,
}

on_both! {
    /// Writes an entry; `false` when there is one of its kind, counter and request. Nothing is
    /// written of nothing.
    pub(crate) async fn insert_entry(
        &mut self,
        entry: Entry,
        now: UnixMillis,
    ) -> Result<bool, Failure> {
        if entry.amount.is_zero() {
            return Ok(true);
        }
        let (kind, amount) = match entry.kind {
            EntryKind::Exposure => ("exposure", entry.amount),
            EntryKind::Release => ("release", Amounts::ZERO.minus(entry.amount)),
        };
        let made = sql!(
            INSERT_ENTRY,
            new_row_id(now)?,
            kind,
            entry.instance_id.as_uuid(),
            entry.counter_id,
            entry.request_id.map(RequestId::as_uuid),
            amount.tokens,
            amount.nano,
            now.0,
        )
        .execute(&mut *self.conn)
        .await?;
        Ok(made.rows_affected() == 1)
    }

    /// Returns what is left of the exposures of an instance, by counter.
    pub(crate) async fn exposures_left(
        &mut self,
        instance: InstanceId,
    ) -> Result<HashMap<CounterKey, Amounts>, Failure> {
        let rows: Vec<AmountRow> =
            sql_as!(LIST_EXPOSURES, instance.as_uuid()).fetch_all(&mut *self.conn).await?;
        Ok(leases(&rows)?.into_iter().map(|left| (left.key, left.held)).collect())
    }

    /// Adds charges of a resolved instance to what is used, and releases as much of its exposure.
    pub(crate) async fn late_moves(
        &mut self,
        instance: InstanceId,
        counters: &[Counter],
        charges: &Charges,
        now: UnixMillis,
    ) -> Result<Vec<Move>, Failure> {
        let left = self.exposures_left(instance).await?;
        let mut moves = Vec::with_capacity(counters.len());
        for counter in counters {
            let charge = charges.get(&counter.key()).copied().unwrap_or_default();
            let left = left.get(&counter.key()).copied().unwrap_or_default();
            let released = charge.leased.min(left.max(Amounts::ZERO));
            let entry = Entry {
                kind: EntryKind::Release,
                instance_id: instance,
                counter_id: counter.id,
                request_id: None,
                amount: released,
            };
            self.insert_entry(entry, now).await?;
            moves.push(Move {
                counter: *counter,
                used: charge.total.zip(released, i64::saturating_sub),
                held: Amounts::ZERO,
            });
        }
        Ok(moves)
    }

    pub(crate) async fn end_late(&mut self, guard: Guard, now: UnixMillis) -> Result<(), Failure> {
        let instance = guard.instance_id;
        self.pass_guard(guard, PostMode::Late, Numbers::default(), 0, now).await?;
        let mut keys: Vec<CounterKey> = self.exposures_left(instance).await?.into_keys().collect();
        keys.sort_unstable();
        let counters = self.lock_counters(instance, &keys, now).await?;
        let left = self.exposures_left(instance).await?;
        for counter in counters {
            let amount = left.get(&counter.key()).copied().unwrap_or_default();
            let entry = Entry {
                kind: EntryKind::Release,
                instance_id: instance,
                counter_id: counter.id,
                request_id: None,
                amount,
            };
            self.insert_entry(entry, now).await?;
            sql!(TAKE_USED, counter.id, amount.tokens, amount.nano)
                .execute(&mut *self.conn)
                .await?;
        }
        sql!(CLOSE_INSTANCE, instance.as_uuid()).execute(&mut *self.conn).await?;
        Ok(())
    }
}
