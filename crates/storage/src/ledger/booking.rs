//! Writes records with all that hangs on them: statement months, attempts, details, counters, rollups.

use std::collections::BTreeMap;

use sluice_domain::id::{InstanceId, TenantId};
use sluice_domain::ports::Posted;
use sluice_domain::quota::CounterBalance;
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::{Month, UnixMillis};
use uuid::Uuid;

use super::counters::{BalanceRow, Booked, Counters};
use super::kind::kinds;
use super::sums::{self, Entries};
use super::{LATEST_PERIOD, OLDEST_OPEN_PERIOD};
use crate::error::{Failure, corrupt};
use crate::group::{Group, Part};

bulks! {
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
        let kinds = kinds(records.iter().copied());
        let mut counters = self.counters_of(&sums::charges(&kinds), now).await?;
        let statement_periods = self.statement_periods(&counters).await?;
        let batch: Vec<Entries<'_>> = kinds
            .into_iter()
            .map(|kind| {
                let open = &kind.sample.open;
                let quota_month = (open.payer.tenant_id.as_uuid(), open.period);
                let statement = statement_periods.get(&quota_month).copied();
                let statement = statement.unwrap_or_else(|| open.period.as_number());
                Entries::new(kind, statement)
            })
            .collect();
        self.insert_records(instance, &batch).await?;
        let counters = self.add_sums(&batch, &mut counters.booked).await?;
        Ok(Posted { inserted: records.len(), counters })
    }

    /// Adds records to their counters and rollups; returns the new balances.
    async fn add_sums(
        &mut self,
        batch: &[Entries<'_>],
        booked: &mut [Booked],
    ) -> Result<Vec<CounterBalance>, Failure> {
        let rollups = sums::rollups(batch);
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
