//! Which counters a charge moves.

use std::collections::{BTreeMap, HashSet};

use sluice_domain::quota::{CounterBalance, Scope, ScopeKind};
use sluice_domain::time::{Month, UnixMillis};
use sqlx::FromRow;
use uuid::Uuid;

use super::sums::{Charge, Charges};
use crate::bulk::Repeats;
use crate::dialect::Args;
use crate::error::{Failure, corrupt};
use crate::group::Part;

bulks! {
    // The state of a month stands beside the counter of its tenant.
    LOOK_UP = "WITH wanted (scope, scope_id, period) AS (VALUES ",
        3,
        ") SELECT w.scope, w.scope_id, w.period, \
            q.cap_tokens AS quota_tokens, q.cap_nano AS quota_nano, \
            c.counter_id, c.cap_tokens, c.used_tokens, p.state AS period_state \
        FROM wanted w \
        LEFT JOIN quotas q ON q.scope = w.scope AND q.scope_id = w.scope_id \
        LEFT JOIN counters c ON c.scope = w.scope AND c.scope_id = w.scope_id AND c.period = w.period \
        LEFT JOIN periods p ON p.tenant_id = w.scope_id AND p.period = w.period";
    /// The counters exist: only the part after the conflict is ever done.
    ADD_CHARGES = "INSERT INTO counters (counter_id, tenant_id, scope, scope_id, period, used_tokens) VALUES ",
        6,
        " ON CONFLICT (counter_id) DO UPDATE SET used_tokens = counters.used_tokens + excluded.used_tokens \
        RETURNING scope, scope_id, period, cap_tokens, used_tokens";
}

#[derive(FromRow)]
struct FoundRow {
    scope: String,
    scope_id: Uuid,
    period: i32,
    quota_tokens: Option<i64>,
    quota_nano: Option<i64>,
    counter_id: Option<Uuid>,
    cap_tokens: Option<i64>,
    used_tokens: Option<i64>,
    period_state: Option<String>,
}

#[derive(FromRow)]
pub(crate) struct BalanceRow {
    scope: String,
    scope_id: Uuid,
    period: i32,
    cap_tokens: Option<i64>,
    used_tokens: i64,
}

impl BalanceRow {
    pub(crate) fn balance(self) -> Result<CounterBalance, Failure> {
        let (scope, month) = scope_and_month(&self.scope, self.scope_id, self.period)?;
        let (cap_tokens, used_tokens) = (self.cap_tokens, self.used_tokens);
        Ok(CounterBalance {
            scope,
            month,
            cap_tokens,
            used_tokens,
        })
    }
}

fn scope_and_month(scope: &str, id: Uuid, period: i32) -> Result<(Scope, Month), Failure> {
    let kind: ScopeKind = scope
        .parse()
        .map_err(|_bad| corrupt("counters", "scope", id))?;
    let month = Month::from_number(period).ok_or_else(|| corrupt("counters", "period", id))?;
    Ok((Scope { kind, id }, month))
}

/// A counter and what it is charged.
pub(crate) struct Booked {
    pub(crate) counter_id: Uuid,
    pub(crate) scope: Scope,
    pub(crate) month: Month,
    pub(crate) charge: Charge,
}

type Missing = BTreeMap<(Scope, Month), Charge>;

/// Sorts what was looked up into counters that are there and those that must be made.
fn sort_found(rows: Vec<FoundRow>, charges: &Charges) -> Result<(Counters, Missing), Failure> {
    let (mut counters, mut missing) = (Counters::default(), Missing::new());
    for row in rows {
        let (scope, month) = scope_and_month(&row.scope, row.scope_id, row.period)?;
        let Some(charge) = charges.get(&(scope, month)).copied() else {
            continue;
        };
        let is_tenant = scope.kind == ScopeKind::Tenant;
        if is_tenant {
            counters
                .period_states
                .insert((scope.id, month), row.period_state);
        }
        if let Some(counter_id) = row.counter_id {
            counters.booked.push(Booked {
                counter_id,
                scope,
                month,
                charge,
            });
        } else if is_tenant || row.quota_tokens.is_some() || row.quota_nano.is_some() {
            missing.insert((scope, month), charge);
        }
    }
    Ok((counters, missing))
}

/// The counters of charges, and the months they fall into.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) booked: Vec<Booked>,
    /// By tenant and month; `None` when the month is not in the calendar.
    pub(crate) period_states: BTreeMap<(Uuid, Month), Option<String>>,
}

on_both! {
    /// Returns the counters of charges, made where missing: those of tenants always, those of users
    /// and keys when they have a cap or once had one in this month.
    ///
    /// Locks the counters of the tenants before it looks: whoever gives a user or key a cap waits
    /// there. Locks the months too: closing one waits for the posts that go into it.
    pub(crate) async fn counters_of(
        &mut self,
        charges: &Charges,
        now: UnixMillis,
    ) -> Result<Counters, Failure> {
        let of_tenants: Vec<(Scope, Month)> =
            charges.keys().filter(|(scope, _)| scope.kind == ScopeKind::Tenant).copied().collect();
        let tenants: Vec<Uuid> = of_tenants.iter().map(|(scope, _)| scope.id).collect();
        let months: Vec<i32> = of_tenants.iter().map(|(_, month)| month.as_number()).collect();
        let wanted: Vec<(Scope, Month)> = charges.keys().copied().collect();
        // Once for a month that has counters, twice for a new one: what is not there cannot be
        // locked, and what was looked up without the lock may have changed.
        loop {
            self.lock_tenant_counters(&tenants, &months).await?;
            self.lock_periods(&tenants, &months).await?;
            let (counters, missing) = sort_found(self.look_up(&wanted).await?, charges)?;
            if missing.is_empty() {
                return Ok(counters);
            }
            for ((scope, month), charge) in missing {
                self.ensure_counter(scope, charge.tenant_id, month, now).await?;
            }
        }
    }

    async fn look_up(&mut self, wanted: &[(Scope, Month)]) -> Result<Vec<FoundRow>, Failure> {
        let mut found: Vec<FoundRow> = self
            .fetch_bulk(&LOOK_UP, wanted, Repeats::Allowed, |arguments, (scope, month)| {
                row!(arguments, scope.kind.as_str(), scope.id, month.as_number())
            })
            .await?;
        let mut seen = HashSet::with_capacity(found.len());
        found.retain(|row| seen.insert((row.scope.clone(), row.scope_id, row.period)));
        Ok(found)
    }

    /// Adds charges to their counters; the rows that come back are the new balances.
    pub(crate) fn add_charges(booked: &mut [Booked]) -> Part<'_, Args<Self>> {
        booked.sort_by_key(|b| b.counter_id);
        Part::new(&ADD_CHARGES, booked, |arguments, b| {
            row!(
                arguments,
                b.counter_id,
                b.charge.tenant_id.as_uuid(),
                b.scope.kind.as_str(),
                b.scope.id,
                b.month.as_number(),
                b.charge.tokens,
            )
        })
    }

    pub(crate) async fn load_counters(
        &mut self,
        scopes: &[Scope],
        month: Month,
    ) -> Result<Vec<CounterBalance>, Failure> {
        let wanted: Vec<_> = scopes.iter().map(|scope| (*scope, month)).collect();
        let rows = self.look_up(&wanted).await?;
        rows.into_iter()
            .map(|row| {
                let (scope, month) = scope_and_month(&row.scope, row.scope_id, row.period)?;
                let cap_tokens =
                    if row.counter_id.is_some() { row.cap_tokens } else { row.quota_tokens };
                let used_tokens = row.used_tokens.unwrap_or(0);
                Ok(CounterBalance { scope, month, cap_tokens, used_tokens })
            })
            .collect()
    }
}
