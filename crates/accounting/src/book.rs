//! What one instance may spend of each counter of one tenant, and what of it is taken.
//!
//! The one equation: `free = lease − open − unposted`. A post lowers lease and unposted alike, so it
//! leaves what is free as it is; only a take raises it, only a return lowers it.

use std::collections::HashMap;

use sluice_domain::quota::{Amounts, CounterBalance, CounterKey, Payer, ScopeKind, ScopeSet};
use sluice_domain::time::{Month, UnixMillis};

use crate::policy::share_of;
use crate::traffic::Traffic;

/// A counter is topped up at most this often, however fast it is spent from, unless it runs low.
///
/// # Units
/// Milliseconds.
const TOP_UP_EVERY: i64 = 5_000;

/// One counter as this instance has it.
#[derive(Debug, Clone, Default)]
pub(crate) struct LocalCounter {
    /// What the database has set aside for this instance, as far as it is known to have happened.
    pub(crate) lease: Amounts,
    /// The bounds of open holds.
    pub(crate) open: Amounts,
    /// Charges of ended requests that the database has not taken in.
    pub(crate) unposted: Amounts,
    /// The counter when the database was last heard of.
    pub(crate) balance: Option<CounterBalance>,
    /// When it was last held from.
    pub(crate) used_at: UnixMillis,
    /// When its month ends, where that is known.
    pub(crate) ends_at: Option<UnixMillis>,
    /// Below this, more is leased ahead at once; zero near the cap.
    pub(crate) low_mark: Amounts,
    /// Whether more was asked for already.
    pub(crate) is_topping_up: bool,
    /// When more was leased ahead last.
    pub(crate) topped_up_at: UnixMillis,
    /// Until when the last answer of the database is good enough to refuse what the cap has no room
    /// for, so that an exhausted tenant does not ask it for every request.
    pub(crate) refused_until: UnixMillis,
    traffic: Traffic,
}

impl LocalCounter {
    /// Returns what may be held; negative after the database took something back.
    pub(crate) fn free(&self) -> Amounts {
        self.lease.minus(self.open).minus(self.unposted)
    }

    /// Takes in what the database says. Answers may arrive out of order; `used` never goes down
    /// within a month, so the one with more is the later one.
    pub(crate) fn observe(&mut self, balance: CounterBalance) {
        if self
            .balance
            .is_none_or(|known| known.used.fits(balance.used))
        {
            self.balance = Some(balance);
        }
    }

    /// Takes in what the database says to somebody else than the writer. It may have a post in it that
    /// is unposted here, because its answer is on its way, so nothing is refused on the word of both
    /// together.
    pub(crate) fn observe_apart(&mut self, balance: CounterBalance) {
        self.observe(balance);
        self.refused_until = UnixMillis(0);
    }

    /// Returns what is out: open or not yet posted.
    pub(crate) fn in_flight(&self) -> Amounts {
        self.open.plus(self.unposted)
    }

    /// Returns whether nothing is known here that the database does not know.
    fn is_idle(&self) -> bool {
        self.lease.is_zero() && self.open.is_zero() && self.unposted.is_zero()
    }

    /// Sets a bound aside. Returns whether the lease should be topped up.
    fn hold(&mut self, bound: Amounts, now: UnixMillis) -> bool {
        self.open = self.open.plus(bound);
        self.traffic.note_open(self.open, now);
        self.used_at = self.used_at.max(now);
        let is_low = !self.is_topping_up && !self.low_mark.fits(self.free());
        self.is_topping_up |= is_low;
        is_low
    }

    /// Returns whether the database said lately that the cap has no room for this.
    pub(crate) fn is_refused(&self, bound: Amounts, now: UnixMillis) -> bool {
        now < self.refused_until
            && self
                .balance
                .is_some_and(|balance| !bound.fits(balance.unused().minus(self.unposted)))
    }

    /// Returns how much should be free after a lease was taken for who asks for `asked`.
    pub(crate) fn goal(&self, asked: Amounts, now: UnixMillis, reserve_ms: i64) -> Amounts {
        self.traffic.goal(asked, now, reserve_ms)
    }

    /// Returns whether less is free than what bridges an outage, or than an instance of so many may
    /// lease ahead of the room that is left.
    pub(crate) fn is_below_reserve(&self, now: UnixMillis, reserve_ms: i64, live: u32) -> bool {
        let is_in_use = now.since(self.used_at) <= reserve_ms
            && self.ends_at.is_none_or(|end| now < end)
            && now.since(self.topped_up_at) >= TOP_UP_EVERY;
        let Some(balance) = self.balance.filter(|_| is_in_use) else {
            return false;
        };
        let reserve = self.traffic.reserve(now, reserve_ms);
        !reserve
            .min(share_of(balance.room(), live))
            .fits(self.free())
    }

    /// Returns what is known of the traffic.
    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// Takes over the traffic of the month before, for a month that begins at `from`; what is leased
    /// for it is not idle before. Returns whether the database has said nothing of the counter yet.
    pub(crate) fn expect_traffic(&mut self, traffic: Traffic, from: UnixMillis) -> bool {
        self.traffic = traffic;
        self.used_at = self.used_at.max(from);
        self.balance.is_none()
    }

    /// Lets time pass for what is known of the traffic.
    pub(crate) fn age(&mut self, now: UnixMillis) {
        self.traffic.age(now, self.open);
    }
}

/// A hold does not fit: what the leases lack, by scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) missing: [Amounts; 3],
}

/// The counters of one tenant.
#[derive(Debug, Default)]
pub(crate) struct Book {
    counters: HashMap<CounterKey, LocalCounter, foldhash::fast::RandomState>,
    /// How many requests wait for room.
    pub(crate) waiting: usize,
}

const KINDS: [ScopeKind; 3] = [ScopeKind::Tenant, ScopeKind::User, ScopeKind::Key];

/// Returns the counters that a hold is taken from.
pub(crate) fn leased_counters(
    payer: Payer,
    month: Month,
    leased: ScopeSet,
) -> impl Iterator<Item = (usize, CounterKey)> {
    payer
        .counters(month)
        .into_iter()
        .zip(KINDS)
        .enumerate()
        .filter(move |(_, (_, kind))| leased.contains(*kind))
        .map(|(place, (key, _))| (place, key))
}

impl Book {
    /// Returns a counter.
    pub(crate) fn get(&self, key: &CounterKey) -> Option<&LocalCounter> {
        self.counters.get(key)
    }

    /// Returns a counter.
    pub(crate) fn get_mut(&mut self, key: &CounterKey) -> Option<&mut LocalCounter> {
        self.counters.get_mut(key)
    }

    /// Returns a counter, made when it is not there.
    pub(crate) fn entry(&mut self, key: CounterKey) -> &mut LocalCounter {
        self.counters.entry(key).or_default()
    }

    /// Returns all counters.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&CounterKey, &mut LocalCounter)> {
        self.counters.iter_mut()
    }

    /// Sets a bound aside in every leased scope, or in none. Returns whether a lease runs low.
    pub(crate) fn hold(
        &mut self,
        payer: Payer,
        month: Month,
        leased: ScopeSet,
        bound: Amounts,
        now: UnixMillis,
    ) -> Result<bool, Short> {
        if leased == ScopeSet::default().with(ScopeKind::Tenant)
            && let [tenant, ..] = payer.counters(month)
            && let Some(counter) = self.counters.get_mut(&tenant)
            && bound.fits(counter.free())
        {
            return Ok(counter.hold(bound, now));
        }
        let mut missing = [Amounts::ZERO; 3];
        let mut fits = true;
        for (place, key) in leased_counters(payer, month, leased) {
            let free = self.get(&key).map_or(Amounts::ZERO, LocalCounter::free);
            if !bound.fits(free) {
                fits = false;
                if let Some(slot) = missing.get_mut(place) {
                    *slot = bound.minus(free).max(Amounts::ZERO);
                }
            }
        }
        if !fits {
            return Err(Short { missing });
        }
        let mut is_low = false;
        for (_place, key) in leased_counters(payer, month, leased) {
            is_low |= self.entry(key).hold(bound, now);
        }
        Ok(is_low)
    }

    /// Gives a hold back that was never journaled.
    pub(crate) fn release(&mut self, payer: Payer, month: Month, leased: ScopeSet, bound: Amounts) {
        for (_place, key) in leased_counters(payer, month, leased) {
            let counter = self.entry(key);
            counter.open = counter.open.minus(bound);
        }
    }

    /// Turns a hold into a charge that waits for the database. The post must be in the journal: what
    /// becomes free here may be held by the next request at once.
    pub(crate) fn end(
        &mut self,
        payer: Payer,
        month: Month,
        leased: ScopeSet,
        bound: Amounts,
        charge: Amounts,
    ) {
        for (_place, key) in leased_counters(payer, month, leased) {
            let counter = self.entry(key);
            counter.open = counter.open.minus(bound);
            counter.unposted = counter.unposted.plus(charge);
            counter.traffic.note_spent(charge);
        }
    }

    /// Takes in that the database has booked a charge.
    pub(crate) fn posted(&mut self, payer: Payer, month: Month, leased: ScopeSet, charge: Amounts) {
        for (_place, key) in leased_counters(payer, month, leased) {
            let counter = self.entry(key);
            counter.unposted = counter.unposted.minus(charge);
            counter.lease = counter.lease.minus(charge);
        }
    }

    /// Returns whether there is nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.counters.is_empty()
    }

    /// Forgets counters that nobody uses and that hold nothing.
    pub(crate) fn forget_idle(&mut self, before: UnixMillis) {
        self.counters
            .retain(|_key, counter| !(counter.is_idle() && counter.used_at < before));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_domain::id::{ProxyKeyId, TenantId, UserId};
    use uuid::Uuid;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn month() -> Month {
        Month::from_number(202_601).unwrap()
    }

    fn payer(key: u128) -> Payer {
        Payer {
            tenant_id: TenantId::from_uuid(Uuid::from_u128(1)),
            user_id: UserId::from_uuid(Uuid::from_u128(2)),
            key_id: ProxyKeyId::from_uuid(Uuid::from_u128(key)),
        }
    }

    fn tenant_and_key() -> ScopeSet {
        ScopeSet::default()
            .with(ScopeKind::Tenant)
            .with(ScopeKind::Key)
    }

    fn lease(book: &mut Book, key: CounterKey, tokens: i64) {
        book.entry(key).lease = Amounts::tokens(tokens);
    }

    #[test]
    fn a_hold_is_taken_from_every_leased_scope_or_from_none() {
        let mut book = Book::default();
        let [tenant, user, key] = payer(3).counters(month());
        lease(&mut book, tenant, 100);
        lease(&mut book, key, 40);
        let bound = Amounts::tokens(50);
        let short = book
            .hold(payer(3), month(), tenant_and_key(), bound, NOW)
            .unwrap_err();
        assert_eq!(short.missing[2], Amounts::tokens(10));
        assert_eq!(short.missing[0], Amounts::ZERO);
        assert_eq!(book.get(&tenant).unwrap().free(), Amounts::tokens(100));

        let bound = Amounts::tokens(40);
        book.hold(payer(3), month(), tenant_and_key(), bound, NOW)
            .unwrap();
        assert_eq!(book.get(&tenant).unwrap().free(), Amounts::tokens(60));
        assert_eq!(book.get(&key).unwrap().free(), Amounts::ZERO);
        assert!(book.get(&user).is_none(), "an uncapped user has no lease");
    }

    #[test]
    fn a_refusal_is_remembered_as_long_as_it_is_good() {
        let mut counter = LocalCounter::default();
        let [tenant, ..] = payer(3).counters(month());
        counter.observe(CounterBalance {
            key: tenant,
            cap: sluice_domain::quota::Cap {
                tokens: Some(100),
                nano: None,
            },
            used: Amounts::tokens(80),
            held: Amounts::ZERO,
        });
        counter.refused_until = UnixMillis(NOW.0 + 1_000);
        counter.unposted = Amounts::tokens(5);
        assert!(counter.is_refused(Amounts::tokens(16), NOW), "own charges");
        counter.unposted = Amounts::ZERO;
        assert!(counter.is_refused(Amounts::tokens(21), NOW));
        assert!(!counter.is_refused(Amounts::tokens(20), NOW), "it fits");
        assert!(!counter.is_refused(Amounts::tokens(21), UnixMillis(NOW.0 + 1_000)));

        // A post of 5 is in the database, and its answer on the way.
        counter.unposted = Amounts::tokens(5);
        counter.observe_apart(CounterBalance {
            used: Amounts::tokens(85),
            ..counter.balance.unwrap()
        });
        assert!(!counter.is_refused(Amounts::tokens(15), NOW), "it fits");
    }

    /// One step of the life of holds.
    #[derive(Debug, Clone)]
    enum Step {
        Take(i64),
        Hold { key: u128, bound: i64 },
        End { nth: usize, charge: i64 },
        Post,
        GiveBack,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0_i64..500).prop_map(Step::Take),
            (3_u128..6, 1_i64..100).prop_map(|(key, bound)| Step::Hold { key, bound }),
            (any::<usize>(), 0_i64..200).prop_map(|(nth, charge)| Step::End { nth, charge }),
            Just(Step::Post),
            Just(Step::GiveBack),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// What is leased covers what is open and unposted after every step, so nothing is spent
        /// that was not leased.
        #[test]
        fn nothing_is_held_that_is_not_leased(steps in steps()) {
            let mut book = Book::default();
            let scopes = ScopeSet::default().with(ScopeKind::Tenant);
            let [tenant, ..] = payer(3).counters(month());
            let (mut leased, mut spent) = (0_i64, 0_i64);
            let (mut open, mut ended) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Take(tokens) => {
                        leased += tokens;
                        let counter = book.entry(tenant);
                        counter.lease = counter.lease.plus(Amounts::tokens(tokens));
                    }
                    Step::Hold { key, bound } => {
                        let amount = Amounts::tokens(bound);
                        let before = book.entry(tenant).free().tokens;
                        let held = book.hold(payer(key), month(), scopes, amount, NOW);
                        prop_assert_eq!(held.is_ok(), bound <= before);
                        if held.is_ok() {
                            open.push((key, bound));
                        }
                    }
                    Step::End { nth, charge } if !open.is_empty() => {
                        let (key, bound) = open.swap_remove(nth % open.len());
                        let charge = charge.min(bound);
                        let (bound, charge) = (Amounts::tokens(bound), Amounts::tokens(charge));
                        book.end(payer(key), month(), scopes, bound, charge);
                        ended.push((key, charge));
                    }
                    Step::Post => {
                        let free = book.entry(tenant).free();
                        for (key, charge) in ended.drain(..) {
                            spent += charge.tokens;
                            book.posted(payer(key), month(), scopes, charge);
                        }
                        prop_assert_eq!(book.entry(tenant).free(), free, "a post frees nothing");
                    }
                    Step::GiveBack => {
                        let counter = book.entry(tenant);
                        let free = counter.free().max(Amounts::ZERO);
                        counter.lease = counter.lease.minus(free);
                        leased -= free.tokens;
                    }
                    Step::End { .. } => {}
                }
                let counter = book.entry(tenant);
                prop_assert!(counter.free().tokens >= 0);
                prop_assert_eq!(counter.lease.tokens, leased - spent);
            }
        }
    }
}
