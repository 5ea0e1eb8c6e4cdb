//! Records that the ledger refuses, set aside for a person to look at.

use serde_json::json;
use sluice_domain::id::InstanceId;
use sluice_domain::ports::{Guard, PostMode};
use sluice_domain::quota::{Amounts, CounterBalance};
use sluice_domain::record::{AttemptRecord, NumberedRecord, UsageRecord};
use sluice_domain::time::UnixMillis;
use sluice_domain::usage::MAX_AMOUNT;

use super::counters::{Counter, Move};
use super::guard::Numbers;
use super::late::{Entry, EntryKind};
use super::sums::{self, Charge, stage_word};
use crate::error::Failure;
use crate::skipped;
use crate::text::cleaned;

statements! {
    INSERT_QUARANTINE = "INSERT INTO quarantine (instance_id, post_no, request_id, reason, record, made_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING";
}

/// The largest amount of a counter or record, in both units.
const MOST: Amounts = Amounts {
    tokens: MAX_AMOUNT,
    nano: MAX_AMOUNT,
};

/// Returns what can be charged of a record that may be wrong: a counter is never driven over its
/// end.
fn chargeable(counter: &Counter, charge: Charge) -> Charge {
    let room = MOST.minus(counter.balance.used);
    let total = charge.total.max(Amounts::ZERO).min(room);
    Charge {
        total,
        leased: charge.leased.max(Amounts::ZERO).min(total),
    }
}

on_both! {
    pub(crate) async fn quarantine(
        &mut self,
        guard: Guard,
        mode: PostMode,
        numbered: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let records = std::slice::from_ref(numbered);
        let numbers = Numbers::of(records)?;
        let poster = self.pass_guard(guard, mode, numbers, 0, now).await?;
        let known = self.find_known(poster, records, numbers).await?;
        if known.has_dealt_with(poster, numbered.post_no) {
            return Ok(());
        }
        self.set_aside(guard.instance_id, mode, numbered, reason, now).await?;
        self.count_rows(guard.instance_id, 0, 1).await
    }

    /// Keeps a record for a person to look at, and charges it to the quotas as an exposure, so that
    /// nobody overspends meanwhile. Returns the balances that were moved.
    ///
    /// Nothing may stand in its way: what its leases do not have is not taken from them.
    pub(crate) async fn set_aside(
        &mut self,
        instance: InstanceId,
        mode: PostMode,
        numbered: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<Vec<CounterBalance>, Failure> {
        let record = &numbered.record;
        let request_id = record.open.request_id;
        sql!(
            INSERT_QUARANTINE,
            instance.as_uuid(),
            numbered.post_no,
            request_id.as_uuid(),
            cleaned(reason),
            as_json(record),
            now.0,
        )
        .execute(&mut *self.conn)
        .await?;
        let mut charges = sums::charges_of(record);
        let mut counters = self.counters_of(instance, &charges, now).await?.found;
        for counter in &counters {
            if let Some(charge) = charges.get_mut(&counter.key()) {
                *charge = chargeable(counter, *charge);
            }
        }
        for counter in &counters {
            let Some(charge) = charges.get_mut(&counter.key()) else { continue };
            let entry = Entry {
                kind: EntryKind::Exposure,
                instance_id: instance,
                counter_id: counter.id,
                request_id: Some(request_id),
                amount: charge.total,
            };
            if !self.insert_entry(entry, now).await? {
                // Another post of this request was set aside: it is charged once.
                charge.total = Amounts::ZERO;
                if mode == PostMode::Late {
                    charge.leased = Amounts::ZERO;
                }
            }
        }
        let moves = match mode {
            PostMode::Live => counters
                .iter()
                .map(|counter| {
                    let charge = charges.get(&counter.key()).copied().unwrap_or_default();
                    Move {
                        counter: *counter,
                        used: charge.total,
                        held: charge.leased.min(counter.leased),
                    }
                })
                .collect(),
            PostMode::Late => self.late_moves(instance, &counters, &charges, now).await?,
        };
        self.execute_part(Self::move_charges(&moves)).await?;
        if mode == PostMode::Live {
            for (counter, moved) in counters.iter_mut().zip(&moves) {
                counter.lease(counter.leased.minus(moved.held), counter.in_flight);
            }
            counters.retain(|counter| !counter.leased.is_zero() || !counter.in_flight.is_zero());
            self.write_leases(instance, &counters).await?;
        }
        Ok(moves.iter().map(Move::balance_after).collect())
    }
}

/// Writes a record out, without personal data.
fn as_json(record: &UsageRecord) -> String {
    let (open, end) = (&record.open, &record.end);
    let attempt = |attempt: &AttemptRecord| {
        json!({
            "upstream_id": attempt.upstream_id.to_string(),
            "upstream_key_id": attempt.upstream_key_id.map(|id| id.to_string()),
            "upstream_model": &*attempt.upstream_model,
            "status": attempt.status,
            "error": attempt.error,
            "started_at_ms": attempt.started_at.0,
            "head_ms": attempt.head_ms,
        })
    };
    json!({
        "request_id": open.request_id.to_string(),
        "tenant_id": open.payer.tenant_id.to_string(),
        "user_id": open.payer.user_id.to_string(),
        "key_id": open.payer.key_id.to_string(),
        "period": open.period.as_number(),
        "local_day": open.local_day.0,
        "started_at_ms": open.started_at.0,
        "endpoint": open.endpoint.as_str(),
        "streams": open.streams,
        "requested_model": &*open.requested_model,
        "ending": end.ending.as_str(),
        "stage": stage_word(end.stage),
        "status": end.status,
        "error_code": end.error_code,
        "input_tokens": end.usage.input,
        "cached_input_tokens": end.usage.cached_input,
        "cache_write_input_tokens": end.usage.cache_write_input,
        "output_tokens": end.usage.output,
        "reasoning_output_tokens": end.usage.reasoning_output,
        "basis": end.basis.as_str(),
        "leased": open.hold.leased.bits(),
        "bound_tokens": open.hold.bound.tokens,
        "bound_nano": open.hold.bound.nano,
        "input_estimate": open.hold.input_estimate,
        "owed_tokens": end.owed.tokens,
        "owed_nano": end.owed.nano,
        "first_event_ms": end.first_event_ms,
        "duration_ms": end.duration_ms,
        "attempts": end.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "skipped": skipped::to_json(&end.skipped),
    })
    .to_string()
}
