//! The balances that a request is checked against.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use sluice_domain::quota::{CounterBalance, Payer, Scope, ScopeKind, is_spent};
use sluice_domain::time::{DayBounds, LocalDay, Month, Period, TimeZone, UnixMillis};

/// No cap, as an atomic has it.
const UNCAPPED: i64 = i64::MAX;

/// One counter as this process knows it.
#[derive(Debug)]
pub(crate) struct Counter {
    pub(crate) scope: Scope,
    pub(crate) month: Month,
    cap_tokens: AtomicI64,
    /// What the database had used when it was last heard of. It only grows within a month.
    used_tokens: AtomicI64,
    /// Charged here, not yet in the database.
    unposted_tokens: AtomicI64,
}

impl Counter {
    fn new(scope: Scope, month: Month) -> Self {
        Self {
            scope,
            month,
            cap_tokens: AtomicI64::new(UNCAPPED),
            used_tokens: AtomicI64::new(0),
            unposted_tokens: AtomicI64::new(0),
        }
    }

    /// Takes in what the database says. Answers may arrive out of order, so `used` never goes down.
    pub(crate) fn observe(&self, balance: &CounterBalance) {
        self.cap_tokens
            .store(balance.cap_tokens.unwrap_or(UNCAPPED), Ordering::Relaxed);
        self.used_tokens
            .fetch_max(balance.used_tokens, Ordering::Relaxed);
    }

    pub(crate) fn add_unposted(&self, tokens: i64) {
        self.unposted_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    /// Moves a charge from our side of the sum to the database's. When the database has not told
    /// its new balance, the charge is added to what was last known.
    pub(crate) fn settle(&self, tokens: i64, is_observed: bool) {
        if !is_observed {
            self.used_tokens.fetch_add(tokens, Ordering::Relaxed);
        }
        self.unposted_tokens.fetch_sub(tokens, Ordering::Relaxed);
    }

    fn cap(&self) -> Option<i64> {
        let cap = self.cap_tokens.load(Ordering::Relaxed);
        (cap != UNCAPPED).then_some(cap)
    }

    fn used(&self) -> i64 {
        let used = self.used_tokens.load(Ordering::Relaxed);
        used.saturating_add(self.unposted_tokens.load(Ordering::Relaxed))
    }
}

/// A month's tokens are spent in one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// Where.
    pub scope: ScopeKind,
    /// What may be used in the month.
    pub cap_tokens: i64,
    /// What was used.
    pub used_tokens: i64,
    /// When the next month begins.
    pub resets_at: UnixMillis,
}

/// The counters of one payer in one month. Valid for instants inside its period.
#[derive(Debug)]
pub struct Account {
    payer: Payer,
    period: Period,
    time_zone: TimeZone,
    today: Mutex<DayBounds>,
    counters: [Arc<Counter>; 3],
}

impl Account {
    /// Returns who pays.
    pub fn payer(&self) -> Payer {
        self.payer
    }

    /// Returns the month that the account is for.
    pub fn period(&self) -> Period {
        self.period
    }

    /// Returns the tenant's local day of an instant.
    pub fn local_day(&self, at: UnixMillis) -> LocalDay {
        let mut today = self.today.lock();
        if at < today.starts_at || at >= today.ends_at {
            *today = self.time_zone.day_of(at);
        }
        today.day
    }

    /// Returns cap and use of each scope, the tenant's first.
    ///
    /// # Units
    /// Tokens of this month; the use includes what is not posted yet.
    pub fn balances(&self) -> [CounterBalance; 3] {
        self.counters.each_ref().map(|counter| CounterBalance {
            scope: counter.scope,
            month: counter.month,
            cap_tokens: counter.cap(),
            used_tokens: counter.used(),
        })
    }

    /// Returns the first scope whose tokens are spent.
    pub(crate) fn first_spent(&self) -> Option<Spent> {
        self.counters.iter().find_map(|counter| {
            let (cap, used) = (counter.cap(), counter.used());
            is_spent(cap, used).then(|| Spent {
                scope: counter.scope.kind,
                cap_tokens: cap.unwrap_or(0),
                used_tokens: used,
                resets_at: self.period.ends_at,
            })
        })
    }

    pub(crate) fn counters(&self) -> &[Arc<Counter>; 3] {
        &self.counters
    }
}

/// All counters that somebody holds, so that two keys of one tenant share the tenant's.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    by_identity: Mutex<HashMap<(Scope, Month), Weak<Counter>>>,
}

impl Counters {
    pub(crate) fn open_account(
        &self,
        payer: Payer,
        period: Period,
        time_zone: TimeZone,
        now: UnixMillis,
        balances: &[CounterBalance],
    ) -> Account {
        let counters = payer
            .scopes()
            .map(|scope| self.get_or_make(scope, period.month));
        for balance in balances {
            if let Some(counter) = counters.iter().find(|c| c.scope == balance.scope) {
                counter.observe(balance);
            }
        }
        let today = Mutex::new(time_zone.day_of(now));
        Account {
            payer,
            period,
            time_zone,
            today,
            counters,
        }
    }

    pub(crate) fn find(&self, scope: Scope, month: Month) -> Option<Arc<Counter>> {
        self.by_identity
            .lock()
            .get(&(scope, month))
            .and_then(Weak::upgrade)
    }

    fn get_or_make(&self, scope: Scope, month: Month) -> Arc<Counter> {
        let mut map = self.by_identity.lock();
        if let Some(counter) = map.get(&(scope, month)).and_then(Weak::upgrade) {
            return counter;
        }
        // The map forgets counters that nobody holds when it would have to grow.
        if map.len() == map.capacity() {
            map.retain(|_, counter| counter.strong_count() > 0);
        }
        let counter = Arc::new(Counter::new(scope, month));
        map.insert((scope, month), Arc::downgrade(&counter));
        counter
    }
}
