//! Which counters a charge moves.

use std::collections::BTreeSet;

use sluice_domain::quota::{CounterBalance, Scope, ScopeKind};
use sluice_domain::time::{Month, UnixMillis};
use sqlx::FromRow;
use uuid::Uuid;

use super::sums::{Charge, Charges};
use crate::error::{Failure, corrupt};

bulks! {
    LOOK_UP = "WITH wanted (scope, scope_id, period) AS (VALUES ",
        3,
        ") SELECT w.scope, w.scope_id, w.period, \
            q.cap_tokens AS quota_tokens, q.cap_nano AS quota_nano, \
            c.counter_id, c.cap_tokens, c.used_tokens \
        FROM wanted w \
        LEFT JOIN quotas q ON q.scope = w.scope AND q.scope_id = w.scope_id \
        LEFT JOIN counters c ON c.scope = w.scope AND c.scope_id = w.scope_id AND c.period = w.period";
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
}

#[derive(FromRow)]
struct BalanceRow {
    scope: String,
    scope_id: Uuid,
    period: i32,
    cap_tokens: Option<i64>,
    used_tokens: i64,
}

fn scope_and_month(scope: &str, id: Uuid, period: i32) -> Result<(Scope, Month), Failure> {
    let kind: ScopeKind = scope.parse().map_err(|_bad| corrupt("counters", "scope", id))?;
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

on_both! {
    /// Returns the counters of charges, made where missing: those of tenants always, those of users
    /// and keys when they have a cap or once had one in this month.
    ///
    /// The counters of the tenants are locked first; whoever gives a user or key a cap waits there.
    pub(crate) async fn counters_of(
        &mut self,
        charges: &Charges,
        now: UnixMillis,
    ) -> Result<Vec<Booked>, Failure> {
        let is_tenant = |key: &&(Scope, Month)| key.0.kind == ScopeKind::Tenant;
        let tenants: Vec<_> = charges.keys().filter(is_tenant).copied().collect();
        let mut booked = self.find_or_make(&tenants, charges, now).await?;
        let ids: Vec<Uuid> = booked.iter().map(|b| b.counter_id).collect();
        self.lock_counters(&ids).await?;
        let others: Vec<_> = charges.keys().filter(|key| !is_tenant(key)).copied().collect();
        booked.extend(self.find_or_make(&others, charges, now).await?);
        Ok(booked)
    }

    async fn find_or_make(
        &mut self,
        wanted: &[(Scope, Month)],
        charges: &Charges,
        now: UnixMillis,
    ) -> Result<Vec<Booked>, Failure> {
        let mut booked = Vec::with_capacity(wanted.len());
        let mut missing = BTreeSet::new();
        for row in self.look_up(wanted).await? {
            let (scope, month) = scope_and_month(&row.scope, row.scope_id, row.period)?;
            let Some(charge) = charges.get(&(scope, month)).copied() else { continue };
            if let Some(counter_id) = row.counter_id {
                booked.push(Booked { counter_id, scope, month, charge });
            } else if scope.kind == ScopeKind::Tenant
                || row.quota_tokens.is_some()
                || row.quota_nano.is_some()
            {
                missing.insert((scope, month));
            }
        }
        for (scope, month) in missing {
            let Some(charge) = charges.get(&(scope, month)).copied() else { continue };
            let counter_id = self.ensure_counter(scope, charge.tenant_id, month, now).await?;
            booked.push(Booked { counter_id, scope, month, charge });
        }
        Ok(booked)
    }

    async fn look_up(&mut self, wanted: &[(Scope, Month)]) -> Result<Vec<FoundRow>, Failure> {
        self.fetch_bulk(&LOOK_UP, wanted, |arguments, (scope, month)| {
            row!(arguments, scope.kind.as_str(), scope.id, month.as_number())
        })
        .await
    }

    /// Adds charges to their counters; returns the new balances.
    pub(crate) async fn add_charges(
        &mut self,
        booked: &mut [Booked],
    ) -> Result<Vec<CounterBalance>, Failure> {
        booked.sort_by_key(|b| b.counter_id);
        let rows: Vec<BalanceRow> = self
            .fetch_bulk(&ADD_CHARGES, booked, |arguments, b| {
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
            .await?;
        rows.into_iter()
            .map(|row| {
                let (scope, month) = scope_and_month(&row.scope, row.scope_id, row.period)?;
                let (cap_tokens, used_tokens) = (row.cap_tokens, row.used_tokens);
                Ok(CounterBalance { scope, month, cap_tokens, used_tokens })
            })
            .collect()
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
