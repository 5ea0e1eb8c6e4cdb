//! Writes records with all that hangs on them: statement months, attempts, counters, rollups.

use std::collections::BTreeMap;

use sluice_domain::id::{InstanceId, TenantId};
use sluice_domain::ports::{PostMode, Posted};
use sluice_domain::quota::{Amounts, CounterKey, Lease};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::{Month, UnixMillis};
use uuid::Uuid;

use super::counters::{Counter, Counters, Move};
use super::guard::Poster;
use super::insert::Rows;
use super::kind::kinds;
use super::sums::{self, Charges, Entries};
use super::{LATEST_PERIOD, Lately, OLDEST_OPEN_PERIOD};
use crate::error::{Failure, corrupt, internal};
use crate::group::{Group, Part};

bulks! {
    ADD_TO_DAYS = "INSERT INTO rollup_daily (tenant_id, local_day, key_id, user_id, model, upstream_id, period, \
            statement_period, requests, failures, input_tokens, cached_input_tokens, \
            cache_write_input_tokens, output_tokens, reasoning_output_tokens, quota_tokens, \
            charge_nano, excess_tokens, excess_nano) VALUES ",
        19,
        " ON CONFLICT (tenant_id, local_day, key_id, user_id, model, upstream_id, period, statement_period) \
        DO UPDATE SET requests = rollup_daily.requests + excluded.requests, \
            failures = rollup_daily.failures + excluded.failures, \
            input_tokens = rollup_daily.input_tokens + excluded.input_tokens, \
            cached_input_tokens = rollup_daily.cached_input_tokens + excluded.cached_input_tokens, \
            cache_write_input_tokens = rollup_daily.cache_write_input_tokens + excluded.cache_write_input_tokens, \
            output_tokens = rollup_daily.output_tokens + excluded.output_tokens, \
            reasoning_output_tokens = rollup_daily.reasoning_output_tokens + excluded.reasoning_output_tokens, \
            quota_tokens = rollup_daily.quota_tokens + excluded.quota_tokens, \
            charge_nano = rollup_daily.charge_nano + excluded.charge_nano, \
            excess_tokens = rollup_daily.excess_tokens + excluded.excess_tokens, \
            excess_nano = rollup_daily.excess_nano + excluded.excess_nano";
    ADD_TO_MONTHS = "INSERT INTO rollup_monthly (tenant_id, period, key_id, user_id, model, upstream_id, \
            statement_period, requests, failures, input_tokens, cached_input_tokens, \
            cache_write_input_tokens, output_tokens, reasoning_output_tokens, quota_tokens, \
            charge_nano, excess_tokens, excess_nano) VALUES ",
        18,
        " ON CONFLICT (tenant_id, period, key_id, user_id, model, upstream_id, statement_period) \
        DO UPDATE SET requests = rollup_monthly.requests + excluded.requests, \
            failures = rollup_monthly.failures + excluded.failures, \
            input_tokens = rollup_monthly.input_tokens + excluded.input_tokens, \
            cached_input_tokens = rollup_monthly.cached_input_tokens + excluded.cached_input_tokens, \
            cache_write_input_tokens = rollup_monthly.cache_write_input_tokens + excluded.cache_write_input_tokens, \
            output_tokens = rollup_monthly.output_tokens + excluded.output_tokens, \
            reasoning_output_tokens = rollup_monthly.reasoning_output_tokens + excluded.reasoning_output_tokens, \
            quota_tokens = rollup_monthly.quota_tokens + excluded.quota_tokens, \
            charge_nano = rollup_monthly.charge_nano + excluded.charge_nano, \
            excess_tokens = rollup_monthly.excess_tokens + excluded.excess_tokens, \
            excess_nano = rollup_monthly.excess_nano + excluded.excess_nano";
}

/// What is added per batch.
static SUMS: Group = Group::new();

/// Statement months by tenant and quota month.
type StatementPeriods = BTreeMap<(Uuid, Month), i32>;

/// Moves charges out of the leases that they were held in. More than a lease has is a defect.
fn live_moves(counters: &[Counter], charges: &Charges) -> Result<Vec<Move>, Failure> {
    let found = counters.iter().map(|counter| (counter.key(), *counter));
    let found: BTreeMap<CounterKey, Counter> = found.collect();
    let mut moves = Vec::with_capacity(counters.len());
    for (key, charge) in charges {
        let Some(counter) = found.get(key).copied() else {
            if charge.leased.is_zero() {
                continue;
            }
            return Err(internal("a charge was held in a counter that does not exist").into());
        };
        if !charge.leased.fits(counter.leased) {
            return Err(internal("a charge is more than the lease that it was held in").into());
        }
        moves.push(Move {
            counter,
            used: charge.total,
            held: charge.leased,
        });
    }
    Ok(moves)
}

/// The leases that moves and what is in flight change, as they are afterwards.
fn leases_after(moves: &[Move], in_flight: &[Lease]) -> Vec<Counter> {
    let in_flight: BTreeMap<CounterKey, Amounts> = in_flight
        .iter()
        .map(|lease| (lease.key, lease.held))
        .collect();
    let changed = moves.iter().filter_map(|moved| {
        let before = &moved.counter;
        let mut after = *before;
        let in_flight = in_flight.get(&after.key()).copied();
        after.lease(
            before.leased.minus(moved.held),
            in_flight.unwrap_or(before.in_flight),
        );
        let is_changed = after.leased != before.leased || after.in_flight != before.in_flight;
        is_changed.then_some(after)
    });
    changed.collect()
}

on_both! {
    /// Books records that must all be new.
    pub(crate) async fn book(
        &mut self,
        poster: Poster,
        mode: PostMode,
        records: &[&NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
        lately: &Lately<'_>,
    ) -> Result<Posted, Failure> {
        if records.is_empty() {
            return Ok(Posted::default());
        }
        let instance = poster.id;
        let (kinds, places) = kinds(records);
        let charges = sums::charges(&kinds);
        let counters = self.counters_of(instance, &charges, now).await?;
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
        let rows = Rows { records, places: &places, kinds: &batch };
        self.insert_records(poster, &rows, lately, now).await?;
        let (moves, leases) = match mode {
            PostMode::Live => {
                let moves = live_moves(&counters.found, &charges)?;
                let leases = leases_after(&moves, in_flight);
                (moves, leases)
            }
            PostMode::Late => {
                (self.late_moves(instance, &counters.found, &charges, now).await?, Vec::new())
            }
        };
        self.add_sums(instance, &batch, &moves, &leases).await?;
        Ok(Posted {
            inserted: records.len(),
            counters: moves.iter().map(Move::balance_after).collect(),
        })
    }

    /// Adds records to their counters and rollups.
    async fn add_sums(
        &mut self,
        instance: InstanceId,
        batch: &[Entries<'_>],
        moves: &[Move],
        leases: &[Counter],
    ) -> Result<(), Failure> {
        let rollups = sums::rollups(batch);
        let counters = Self::move_charges(moves);
        let leases = Self::set_leases(instance, leases);
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
                sums.charge.tokens,
                sums.charge.nano,
                sums.excess.tokens,
                sums.excess.nano,
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
                sums.charge.tokens,
                sums.charge.nano,
                sums.excess.tokens,
                sums.excess.nano,
            )
        });
        self.execute_group(&SUMS, [counters, leases, days, months]).await?;
        Ok(())
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
