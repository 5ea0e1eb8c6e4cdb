//! Writes records with all that hangs on them: attempts, details, counters, rollups.

use std::collections::BTreeMap;

use sluice_domain::id::{InstanceId, TenantId, UpstreamKeyId};
use sluice_domain::ports::Posted;
use sluice_domain::quota::CounterBalance;
use sluice_domain::record::{AttemptRecord, Caller, NumberedRecord};
use sluice_domain::time::{Month, UnixMillis};
use uuid::Uuid;

use super::counters::{BalanceRow, Booked, Counters};
use super::sums::{self, Entry, stage_word};
use super::{LATEST_PERIOD, OLDEST_OPEN_PERIOD};
use crate::error::{Failure, corrupt};
use crate::group::{Group, Part};
use crate::text::{Words, clean};

bulks! {
    INSERT_RECORDS = "INSERT INTO usage_records (request_id, instance_id, post_no, tenant_id, user_id, key_id, period, \
            statement_period, local_day, started_at_ms, endpoint, streams, requested_model, upstream_id, \
            upstream_model, upstream_key_id, attempt_count, attempt_status, attempt_started_at_ms, \
            attempt_head_ms, ending, stage, status, error_code, basis, input_tokens, cached_input_tokens, \
            cache_write_input_tokens, output_tokens, reasoning_output_tokens, quota_tokens, first_event_ms, \
            duration_ms) VALUES ",
        33,
        " ON CONFLICT DO NOTHING";
    INSERT_FAILED_ATTEMPTS = "INSERT INTO failed_attempts (request_id, n, upstream_id, upstream_key_id, upstream_model, status, error, \
            started_at_ms, head_ms) VALUES ",
        9,
        " ON CONFLICT DO NOTHING";
    INSERT_DETAILS = "INSERT INTO record_details (request_id, ip, user_agent) VALUES ",
        3,
        " ON CONFLICT DO NOTHING";
    ADD_TO_DAYS = "INSERT INTO rollup_daily (tenant_id, local_day, key_id, user_id, model, upstream_id, period, \
            statement_period, requests, failures, input_tokens, cached_input_tokens, \
            cache_write_input_tokens, output_tokens, reasoning_output_tokens, quota_tokens) VALUES ",
        16,
        " ON CONFLICT (tenant_id, local_day, key_id, user_id, model, upstream_id, period, statement_period) \
        DO UPDATE SET requests = rollup_daily.requests + excluded.requests, \
            failures = rollup_daily.failures + excluded.failures, \
            input_tokens = rollup_daily.input_tokens + excluded.input_tokens, \
            cached_input_tokens = rollup_daily.cached_input_tokens + excluded.cached_input_tokens, \
            cache_write_input_tokens = rollup_daily.cache_write_input_tokens + excluded.cache_write_input_tokens, \
            output_tokens = rollup_daily.output_tokens + excluded.output_tokens, \
            reasoning_output_tokens = rollup_daily.reasoning_output_tokens + excluded.reasoning_output_tokens, \
            quota_tokens = rollup_daily.quota_tokens + excluded.quota_tokens";
    ADD_TO_MONTHS = "INSERT INTO rollup_monthly (tenant_id, period, key_id, user_id, model, upstream_id, \
            statement_period, requests, failures, input_tokens, cached_input_tokens, \
            cache_write_input_tokens, output_tokens, reasoning_output_tokens, quota_tokens) VALUES ",
        15,
        " ON CONFLICT (tenant_id, period, key_id, user_id, model, upstream_id, statement_period) \
        DO UPDATE SET requests = rollup_monthly.requests + excluded.requests, \
            failures = rollup_monthly.failures + excluded.failures, \
            input_tokens = rollup_monthly.input_tokens + excluded.input_tokens, \
            cached_input_tokens = rollup_monthly.cached_input_tokens + excluded.cached_input_tokens, \
            cache_write_input_tokens = rollup_monthly.cache_write_input_tokens + excluded.cache_write_input_tokens, \
            output_tokens = rollup_monthly.output_tokens + excluded.output_tokens, \
            reasoning_output_tokens = rollup_monthly.reasoning_output_tokens + excluded.reasoning_output_tokens, \
            quota_tokens = rollup_monthly.quota_tokens + excluded.quota_tokens";
}

/// What is inserted per record.
static RECORDS: Group = Group::new();
/// What is added per batch.
static SUMS: Group = Group::new();

/// Statement months by tenant and quota month.
type StatementPeriods = BTreeMap<(Uuid, Month), i32>;

on_both! {
    /// Books records that must all be new.
    pub(crate) async fn book(
        &mut self,
        instance: InstanceId,
        records: &[&NumberedRecord],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        if records.is_empty() {
            return Ok(Posted::default());
        }
        let charges = sums::charges(records.iter().map(|numbered| &*numbered.record));
        let mut counters = self.counters_of(&charges, now).await?;
        let statement_periods = self.statement_periods(&counters).await?;
        let entries: Vec<Entry<'_>> = records
            .iter()
            .map(|numbered| {
                let open = &numbered.record.open;
                let quota_month = (open.payer.tenant_id.as_uuid(), open.period);
                let statement = statement_periods.get(&quota_month).copied();
                let statement = statement.unwrap_or_else(|| open.period.as_number());
                Entry::new(numbered.post_no, &numbered.record, statement)
            })
            .collect();
        self.insert_records(instance, &entries).await?;
        let counters = self.add_sums(&entries, &mut counters.booked).await?;
        Ok(Posted { inserted: entries.len(), counters })
    }

    /// Inserts records with their attempts and details, all new or none.
    async fn insert_records(
        &mut self,
        instance: InstanceId,
        entries: &[Entry<'_>],
    ) -> Result<(), Failure> {
        // The attempt that succeeded stands in the record itself.
        let failed: Vec<(Uuid, i32, &AttemptRecord, &'static str)> = entries
            .iter()
            .flat_map(|entry| {
                let request = entry.record.open.request_id.as_uuid();
                (1_i32..)
                    .zip(&entry.record.end.attempts)
                    .filter_map(move |(n, attempt)| Some((request, n, attempt, attempt.error?)))
            })
            .collect();
        let details: Vec<(Uuid, &Caller)> = entries
            .iter()
            .map(|entry| (entry.record.open.request_id.as_uuid(), &entry.record.open.caller))
            .filter(|(_, caller)| caller.ip.is_some() || caller.user_agent.is_some())
            .collect();
        let expected = entries.len() + failed.len() + details.len();
        let (mut words, mut errors) = (Words::default(), Words::default());
        let records = Part::new(&INSERT_RECORDS, entries, |arguments, entry| {
            let (open, end) = (&entry.record.open, &entry.record.end);
            let attempt = entry.last_attempt();
            let success = attempt.filter(|attempt| attempt.error.is_none());
            row!(
                arguments,
                open.request_id.as_uuid(),
                instance.as_uuid(),
                entry.post_no,
                open.payer.tenant_id.as_uuid(),
                open.payer.user_id.as_uuid(),
                open.payer.key_id.as_uuid(),
                open.period.as_number(),
                entry.statement_period,
                open.local_day.0,
                open.started_at.0,
                words.share(open.endpoint.as_str()),
                open.streams,
                entry.requested_model.clone(),
                attempt.map(|attempt| attempt.upstream_id.as_uuid()),
                attempt.map(|attempt| clean(&attempt.upstream_model)),
                attempt.and_then(|attempt| attempt.upstream_key_id).map(UpstreamKeyId::as_uuid),
                i32::try_from(end.attempts.len()).unwrap_or(i32::MAX),
                success.and_then(|attempt| attempt.status).map(i32::from),
                success.map(|attempt| attempt.started_at.0),
                success.map(|attempt| attempt.head_ms),
                words.share(end.ending.as_str()),
                words.share(stage_word(end.stage)),
                i32::from(end.status),
                end.error_code.map(|code| words.share(code)),
                words.share(end.basis.as_str()),
                end.usage.input,
                end.usage.cached_input,
                end.usage.cache_write_input,
                end.usage.output,
                end.usage.reasoning_output,
                end.quota_tokens,
                end.first_event_ms,
                end.duration_ms,
            )
        });
        let failed = Part::new(&INSERT_FAILED_ATTEMPTS, &failed, |arguments, (request, n, attempt, error)| {
            row!(
                arguments,
                *request,
                *n,
                attempt.upstream_id.as_uuid(),
                attempt.upstream_key_id.map(UpstreamKeyId::as_uuid),
                clean(&attempt.upstream_model),
                attempt.status.map(i32::from),
                errors.share(error),
                attempt.started_at.0,
                attempt.head_ms,
            )
        });
        let details = Part::new(&INSERT_DETAILS, &details, |arguments, (request, caller)| {
            row!(
                arguments,
                *request,
                caller.ip.map(|ip| ip.to_string()),
                caller.user_agent.as_ref().map(clean),
            )
        });
        let inserted = self.execute_group(&RECORDS, [records, failed, details]).await?;
        // Of a record that was there, nothing is inserted.
        if inserted == expected { Ok(()) } else { Err(Failure::NotAllNew) }
    }

    /// Adds records to their counters and rollups; returns the new balances.
    async fn add_sums(
        &mut self,
        entries: &[Entry<'_>],
        booked: &mut [Booked],
    ) -> Result<Vec<CounterBalance>, Failure> {
        let rollups = sums::rollups(entries);
        let counters = Self::add_charges(booked);
        let days = Part::new(&ADD_TO_DAYS, &rollups.daily, |arguments, (key, sums)| {
            row!(
                arguments,
                key.tenant_id,
                key.local_day,
                key.key_id,
                key.user_id,
                key.model.clone(),
                key.upstream_id,
                key.period,
                key.statement_period,
                sums.requests,
                sums.failures,
                sums.input,
                sums.cached_input,
                sums.cache_write_input,
                sums.output,
                sums.reasoning_output,
                sums.quota,
            )
        });
        let months = Part::new(&ADD_TO_MONTHS, &rollups.monthly, |arguments, (key, sums)| {
            row!(
                arguments,
                key.tenant_id,
                key.period,
                key.key_id,
                key.user_id,
                key.model.clone(),
                key.upstream_id,
                key.statement_period,
                sums.requests,
                sums.failures,
                sums.input,
                sums.cached_input,
                sums.cache_write_input,
                sums.output,
                sums.reasoning_output,
                sums.quota,
            )
        });
        let balances: Vec<BalanceRow> = self.fetch_group(&SUMS, [counters, days, months]).await?;
        balances.into_iter().map(BalanceRow::balance).collect()
    }

    /// Decides the statement month of quota months that are not their own: the oldest open one of
    /// the tenant, for those that are closed. Months that are not in the calendar are written.
    async fn statement_periods(&mut self, counters: &Counters) -> Result<StatementPeriods, Failure> {
        let mut decided = StatementPeriods::new();
        for ((tenant, month), state) in &counters.period_states {
            match state.as_deref() {
                Some("open") => {}
                Some(_closed) => {
                    decided.insert((*tenant, *month), self.oldest_open_period(*tenant).await?);
                }
                None => self.make_period(*tenant, month.as_number()).await?,
            }
        }
        Ok(decided)
    }

    async fn oldest_open_period(&mut self, tenant: Uuid) -> Result<i32, Failure> {
        let open: Option<i32> =
            sql_scalar!(OLDEST_OPEN_PERIOD, tenant).fetch_optional(&mut *self.conn).await?;
        let period = if let Some(period) = open {
            period
        } else {
            // All are closed: the month after the latest is opened.
            let latest: i32 = sql_scalar!(LATEST_PERIOD, tenant).fetch_one(&mut *self.conn).await?;
            let latest = Month::from_number(latest)
                .ok_or_else(|| corrupt("periods", "period", TenantId::from_uuid(tenant)))?;
            let next = latest.next().as_number();
            self.make_period(tenant, next).await?;
            next
        };
        self.lock_periods(&[tenant], &[period]).await?;
        Ok(period)
    }

    async fn make_period(&mut self, tenant: Uuid, period: i32) -> Result<(), Failure> {
        let tenant_id = TenantId::from_uuid(tenant);
        let month =
            Month::from_number(period).ok_or_else(|| corrupt("periods", "period", tenant_id))?;
        let zone = self.time_zone_of(tenant).await?;
        self.insert_period(tenant_id, zone.period(month)).await
    }
}
