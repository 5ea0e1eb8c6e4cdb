//! Who pays for a request, in which month, from which counters.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_domain::id::TenantId;
use sluice_domain::quota::{Amounts, CounterBalance, Payer, ScopeKind, ScopeSet};
use sluice_domain::time::{DayBounds, LocalDay, Month, Period, TimeZone, UnixMillis};

use crate::book::{Book, leased_counters};

/// A tenant's counters behind their lock. Holds, ends and posts of one tenant meet here and nowhere
/// else; nothing is awaited under the lock.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) book: Mutex<Book>,
}

/// The desks of all tenants that somebody uses or has a lease of.
#[derive(Debug, Default)]
pub(crate) struct Desks {
    by_tenant: Mutex<HashMap<TenantId, Arc<Desk>>>,
}

impl Desks {
    pub(crate) fn get_or_make(&self, tenant: TenantId) -> Arc<Desk> {
        Arc::clone(self.by_tenant.lock().entry(tenant).or_insert_with(|| {
            Arc::new(Desk {
                book: Mutex::default(),
            })
        }))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Desk>> {
        self.by_tenant.lock().values().map(Arc::clone).collect()
    }

    /// Forgets desks that hold nothing and that nobody else has.
    pub(crate) fn forget_unused(&self) {
        self.by_tenant
            .lock()
            .retain(|_tenant, desk| Arc::strong_count(desk) > 1 || !desk.book.lock().is_empty());
    }
}

/// The counters of one payer in one month. Valid for instants inside its period.
#[derive(Debug)]
pub struct Account {
    payer: Payer,
    period: Period,
    time_zone: TimeZone,
    today: Mutex<DayBounds>,
    pub(crate) desk: Arc<Desk>,
    leased: ScopeSet,
}

impl Account {
    pub(crate) fn new(
        desk: Arc<Desk>,
        payer: Payer,
        period: Period,
        time_zone: TimeZone,
        now: UnixMillis,
        balances: &[CounterBalance],
    ) -> Self {
        // The tenant's counter is always leased, so that nothing can be out without a trace.
        let mut leased = ScopeSet::default().with(ScopeKind::Tenant);
        let mut book = desk.book.lock();
        for balance in balances {
            if balance.cap.is_set() {
                leased = leased.with(balance.key.scope.kind);
            }
            let counter = book.entry(balance.key);
            counter.observe_apart(*balance);
            counter.ends_at = Some(period.ends_at);
        }
        drop(book);
        Self::of(desk, payer, period, time_zone, leased, now)
    }

    /// Makes an account whose balances are not known.
    pub(crate) fn away(
        desk: Arc<Desk>,
        payer: Payer,
        period: Period,
        time_zone: TimeZone,
        leased: ScopeSet,
        now: UnixMillis,
    ) -> Self {
        let leased = leased.with(ScopeKind::Tenant);
        let mut book = desk.book.lock();
        for (_place, key) in leased_counters(payer, period.month, leased) {
            book.entry(key).ends_at = Some(period.ends_at);
        }
        drop(book);
        Self::of(desk, payer, period, time_zone, leased, now)
    }

    fn of(
        desk: Arc<Desk>,
        payer: Payer,
        period: Period,
        time_zone: TimeZone,
        leased: ScopeSet,
        now: UnixMillis,
    ) -> Self {
        let today = Mutex::new(time_zone.day_of(now));
        Self {
            payer,
            period,
            time_zone,
            today,
            desk,
            leased,
        }
    }

    /// Returns who pays.
    pub fn payer(&self) -> Payer {
        self.payer
    }

    /// Returns the month that the account is for.
    pub fn period(&self) -> Period {
        self.period
    }

    /// Returns the scopes that a hold is taken from.
    pub fn leased(&self) -> ScopeSet {
        self.leased
    }

    /// Returns the tenant's local day of an instant.
    pub fn local_day(&self, at: UnixMillis) -> LocalDay {
        let mut today = self.today.lock();
        if at < today.starts_at || at >= today.ends_at {
            *today = self.time_zone.day_of(at);
        }
        today.day
    }
}

/// What was set aside in a book. Given back when it is dropped before anything was journaled.
#[derive(Debug)]
#[must_use = "what is dropped is given back"]
pub(crate) struct Reserved {
    desk: Arc<Desk>,
    pub(crate) payer: Payer,
    pub(crate) month: Month,
    pub(crate) leased: ScopeSet,
    pub(crate) bound: Amounts,
    is_kept: bool,
}

impl Reserved {
    /// Wraps what was just set aside.
    pub(crate) fn new(
        desk: Arc<Desk>,
        payer: Payer,
        month: Month,
        leased: ScopeSet,
        bound: Amounts,
    ) -> Self {
        Self {
            desk,
            payer,
            month,
            leased,
            bound,
            is_kept: false,
        }
    }

    /// Keeps it: from here on a post ends it. Returns the desk that it is in.
    pub(crate) fn keep(mut self) -> Arc<Desk> {
        self.is_kept = true;
        Arc::clone(&self.desk)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.is_kept {
            self.desk
                .book
                .lock()
                .release(self.payer, self.month, self.leased, self.bound);
        }
    }
}
