//! Which counters a transaction moves, and the order in which they are locked.
//!
//! The counters of a tenant are locked first, in the order of their ids; those of its users and keys
//! change under that lock alone. So what was read under it stays true until the commit, and two
//! transactions never wait for each other.

use std::collections::{BTreeMap, BTreeSet};

use sluice_domain::id::InstanceId;
use sluice_domain::ports::LockedCounter;
use sluice_domain::quota::{Amounts, Cap, CounterBalance, CounterKey, Scope, ScopeKind};
use sluice_domain::time::{Month, UnixMillis};
use sqlx::FromRow;
use uuid::Uuid;

use super::sums::Charges;
use crate::bulk::Repeats;
use crate::dialect::Args;
use crate::error::{Failure, corrupt, internal};
use crate::group::Part;

bulks! {
    // The state of a month stands beside the counter of its tenant.
    LOOK_UP = "WITH own (instance_id) AS (VALUES (?)), wanted (scope, scope_id, period) AS (VALUES ",
        3,
        ") SELECT w.scope, w.scope_id, w.period, \
            q.cap_tokens AS quota_tokens, q.cap_nano AS quota_nano, \
            c.counter_id, c.cap_tokens, c.cap_nano, c.used_tokens, c.used_nano, c.held_tokens, c.held_nano, \
            c.recall, l.held_tokens AS leased_tokens, l.held_nano AS leased_nano, \
            l.in_flight_tokens, l.in_flight_nano, p.state AS period_state \
        FROM own o CROSS JOIN wanted w \
        LEFT JOIN quotas q ON q.scope = w.scope AND q.scope_id = w.scope_id \
        LEFT JOIN counters c ON c.scope = w.scope AND c.scope_id = w.scope_id AND c.period = w.period \
        LEFT JOIN leases l ON l.instance_id = o.instance_id AND l.counter_id = c.counter_id \
        LEFT JOIN periods p ON p.tenant_id = w.scope_id AND p.period = w.period";
    /// The counters exist: only the part after the conflict is ever done. What is given as held is
    /// taken away from it. Facts win over caps; what is beyond the highest one is counted.
    MOVE_CHARGES = "INSERT INTO counters (counter_id, tenant_id, scope, scope_id, period, \
            used_tokens, used_nano, held_tokens, held_nano) VALUES ",
        9,
        " ON CONFLICT (counter_id) DO UPDATE SET \
            used_tokens = counters.used_tokens + excluded.used_tokens, \
            used_nano = counters.used_nano + excluded.used_nano, \
            held_tokens = counters.held_tokens - excluded.held_tokens, \
            held_nano = counters.held_nano - excluded.held_nano, \
            over_tokens = CASE WHEN counters.used_tokens + excluded.used_tokens + counters.held_tokens \
                    - excluded.held_tokens - counters.peak_cap_tokens > counters.over_tokens \
                THEN counters.used_tokens + excluded.used_tokens + counters.held_tokens \
                    - excluded.held_tokens - counters.peak_cap_tokens ELSE counters.over_tokens END, \
            over_nano = CASE WHEN counters.used_nano + excluded.used_nano + counters.held_nano \
                    - excluded.held_nano - counters.peak_cap_nano > counters.over_nano \
                THEN counters.used_nano + excluded.used_nano + counters.held_nano \
                    - excluded.held_nano - counters.peak_cap_nano ELSE counters.over_nano END";
    /// What an instance has of counters is known under its own lock: amounts are set, not added.
    SET_LEASES = "INSERT INTO leases (instance_id, counter_id, held_tokens, held_nano, \
            in_flight_tokens, in_flight_nano) VALUES ",
        6,
        " ON CONFLICT (instance_id, counter_id) DO UPDATE SET \
            held_tokens = excluded.held_tokens, held_nano = excluded.held_nano, \
            in_flight_tokens = excluded.in_flight_tokens, in_flight_nano = excluded.in_flight_nano";
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
    cap_nano: Option<i64>,
    used_tokens: Option<i64>,
    used_nano: Option<i64>,
    held_tokens: Option<i64>,
    held_nano: Option<i64>,
    recall: Option<bool>,
    leased_tokens: Option<i64>,
    leased_nano: Option<i64>,
    in_flight_tokens: Option<i64>,
    in_flight_nano: Option<i64>,
    period_state: Option<String>,
}

fn amounts(tokens: Option<i64>, nano: Option<i64>) -> Amounts {
    Amounts {
        tokens: tokens.unwrap_or(0),
        nano: nano.unwrap_or(0),
    }
}

/// Reads the scope and the month of a counter.
pub(crate) fn scope_and_month(
    scope: &str,
    id: Uuid,
    period: i32,
) -> Result<(Scope, Month), Failure> {
    let kind: ScopeKind = scope
        .parse()
        .map_err(|_bad| corrupt("counters", "scope", id))?;
    let month = Month::from_number(period).ok_or_else(|| corrupt("counters", "period", id))?;
    Ok((Scope { kind, id }, month))
}

/// A counter that is there, with what one instance has of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counter {
    pub(crate) id: Uuid,
    pub(crate) balance: CounterBalance,
    pub(crate) recall: bool,
    pub(crate) leased: Amounts,
    pub(crate) in_flight: Amounts,
}

impl Counter {
    pub(crate) fn key(&self) -> CounterKey {
        self.balance.key
    }

    pub(crate) fn locked(&self) -> LockedCounter {
        LockedCounter {
            balance: self.balance,
            leased: self.leased,
            recall: self.recall,
        }
    }

    /// Makes the lease this much; what is in flight is never more.
    pub(crate) fn lease(&mut self, held: Amounts, in_flight: Amounts) {
        self.leased = held;
        self.in_flight = in_flight.max(Amounts::ZERO).min(held);
    }
}

/// What there is of a counter.
#[derive(Debug, Clone)]
struct Looked {
    counter: Option<Counter>,
    /// The cap that a new one has.
    quota: Cap,
    period_state: Option<String>,
}

impl Looked {
    fn of(row: FoundRow, key: CounterKey) -> Self {
        let cap = Cap {
            tokens: row.cap_tokens,
            nano: row.cap_nano,
        };
        Self {
            counter: row.counter_id.map(|id| Counter {
                id,
                balance: CounterBalance {
                    key,
                    cap,
                    used: amounts(row.used_tokens, row.used_nano),
                    held: amounts(row.held_tokens, row.held_nano),
                },
                recall: row.recall.unwrap_or(false),
                leased: amounts(row.leased_tokens, row.leased_nano),
                in_flight: amounts(row.in_flight_tokens, row.in_flight_nano),
            }),
            quota: Cap {
                tokens: row.quota_tokens,
                nano: row.quota_nano,
            },
            period_state: row.period_state,
        }
    }
}

/// Which counters are made where they are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Make {
    /// Those of tenants, and those of users and keys that have a cap.
    Capped,
    /// All.
    All,
}

/// The counters of charges, and the months they fall into.
#[derive(Default)]
pub(crate) struct Counters {
    /// In the order of their keys; those of users and keys without a cap are missing.
    pub(crate) found: Vec<Counter>,
    /// By tenant and month; `None` when the month is not in the calendar.
    pub(crate) period_states: BTreeMap<(Uuid, Month), Option<String>>,
}

/// What is added to a counter's use and taken away from what is held of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move {
    pub(crate) counter: Counter,
    pub(crate) used: Amounts,
    pub(crate) held: Amounts,
}

impl Move {
    /// Returns the balance after it.
    pub(crate) fn balance_after(&self) -> CounterBalance {
        let before = self.counter.balance;
        CounterBalance {
            used: before.used.plus(self.used),
            held: before.held.minus(self.held),
            ..before
        }
    }
}

on_both! {
    /// Returns the counters of charges, made where missing: those of tenants always, those of users
    /// and keys when they have a cap or once had one in this month. Locks the months too: closing
    /// one waits for the posts that go into it.
    pub(crate) async fn counters_of(
        &mut self,
        instance: InstanceId,
        charges: &Charges,
        now: UnixMillis,
    ) -> Result<Counters, Failure> {
        let keys: Vec<CounterKey> = charges.keys().copied().collect();
        let looked = self.lock(instance, &keys, Make::Capped, now).await?;
        let mut counters = Counters::default();
        for (key, looked) in keys.into_iter().zip(looked) {
            if key.scope.kind == ScopeKind::Tenant {
                counters.period_states.insert((key.scope.id, key.month), looked.period_state);
            }
            counters.found.extend(looked.counter);
        }
        Ok(counters)
    }

    /// Locks counters, made where they are missing, and returns them in their order.
    pub(crate) async fn lock_counters(
        &mut self,
        instance: InstanceId,
        keys: &[CounterKey],
        now: UnixMillis,
    ) -> Result<Vec<Counter>, Failure> {
        self.lock(instance, keys, Make::All, now)
            .await?
            .into_iter()
            .map(|looked| Ok(looked.counter.ok_or_else(|| internal("a counter that was made is missing"))?))
            .collect()
    }

    async fn lock(
        &mut self,
        instance: InstanceId,
        keys: &[CounterKey],
        make: Make,
        now: UnixMillis,
    ) -> Result<Vec<Looked>, Failure> {
        let of_tenants: BTreeSet<(Uuid, i32)> =
            keys.iter().map(|key| (key.tenant_id.as_uuid(), key.month.as_number())).collect();
        let (tenants, months): (Vec<Uuid>, Vec<i32>) = of_tenants.into_iter().unzip();
        // Once for a month that has counters, twice for a new one: what is not there cannot be
        // locked, and what was looked up without the lock may have changed.
        loop {
            self.lock_tenant_counters(&tenants, &months).await?;
            if make == Make::Capped {
                self.lock_periods(&tenants, &months).await?;
            }
            let looked = self.look_up(instance.as_uuid(), keys).await?;
            let mut is_complete = true;
            for (key, looked) in keys.iter().zip(&looked) {
                let is_wanted = make == Make::All
                    || key.scope.kind == ScopeKind::Tenant
                    || looked.quota.is_set();
                if looked.counter.is_none() && is_wanted {
                    is_complete = false;
                    let tenant = Scope { kind: ScopeKind::Tenant, id: key.tenant_id.as_uuid() };
                    self.ensure_counter(tenant, key.tenant_id, key.month, now).await?;
                    self.ensure_counter(key.scope, key.tenant_id, key.month, now).await?;
                }
            }
            if is_complete {
                return Ok(looked);
            }
        }
    }

    /// Looks counters up, in their order.
    async fn look_up(
        &mut self,
        instance: Uuid,
        keys: &[CounterKey],
    ) -> Result<Vec<Looked>, Failure> {
        let share = |arguments: &mut Args<Self>| row!(arguments, instance);
        let rows: Vec<FoundRow> = self
            .fetch_sharing(&LOOK_UP, keys, Repeats::Allowed, share, |arguments, key| {
                row!(arguments, key.scope.kind.as_str(), key.scope.id, key.month.as_number())
            })
            .await?;
        let mut found: BTreeMap<(Scope, Month), FoundRow> = BTreeMap::new();
        for row in rows {
            found.insert(scope_and_month(&row.scope, row.scope_id, row.period)?, row);
        }
        // A key may stand there twice where nothing is locked.
        let mut looked: Vec<Looked> = Vec::with_capacity(keys.len());
        for (place, key) in keys.iter().enumerate() {
            if let Some(row) = found.remove(&(key.scope, key.month)) {
                looked.push(Looked::of(row, *key));
            } else {
                let before = keys.iter().take(place).position(|other| other == key);
                let again = before.and_then(|at| looked.get(at)).cloned();
                looked.push(again.ok_or_else(|| internal("a counter was not looked up"))?);
            }
        }
        Ok(looked)
    }

    pub(crate) async fn load_counters(
        &mut self,
        keys: &[CounterKey],
    ) -> Result<Vec<CounterBalance>, Failure> {
        let looked = self.look_up(Uuid::nil(), keys).await?;
        let balances = keys.iter().zip(looked).map(|(key, looked)| {
            looked.counter.map_or(
                CounterBalance {
                    key: *key,
                    cap: looked.quota,
                    used: Amounts::ZERO,
                    held: Amounts::ZERO,
                },
                |counter| counter.balance,
            )
        });
        Ok(balances.collect())
    }

    /// Moves charges.
    pub(crate) fn move_charges(moves: &[Move]) -> Part<'_, Args<Self>> {
        Part::new(&MOVE_CHARGES, moves, |arguments, moved| {
            let key = moved.counter.key();
            row!(
                arguments,
                moved.counter.id,
                key.tenant_id.as_uuid(),
                key.scope.kind.as_str(),
                key.scope.id,
                key.month.as_number(),
                moved.used.tokens,
                moved.used.nano,
                moved.held.tokens,
                moved.held.nano,
            )
        })
    }

    /// Makes the leases of an instance what the counters say.
    pub(crate) fn set_leases(instance: InstanceId, counters: &[Counter]) -> Part<'_, Args<Self>> {
        Part::new(&SET_LEASES, counters, move |arguments, counter| {
            row!(
                arguments,
                instance.as_uuid(),
                counter.id,
                counter.leased.tokens,
                counter.leased.nano,
                counter.in_flight.tokens,
                counter.in_flight.nano,
            )
        })
    }
}
