//! Taking and returning leases.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use sluice_domain::ports::{Clock, LeaseChange, LockedCounter, PostMode};
use sluice_domain::quota::{Amounts, CounterKey, Lease};
use sluice_domain::time::UnixMillis;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::account::{Desk, Reserved};
use crate::book::leased_counters;
use crate::inbox::Waiter;
use crate::ledger::{NoRoom, Patience, Refusal, Shared};
use crate::policy::{Ahead, Decision, Verdict, Want, WantPart, decide};

use super::{LEASE_TICK, Stop, Writer, bounded, is_refusal};

/// How long a refusal by the database is good for requests that come after it.
///
/// # Units
/// Milliseconds.
const REFUSAL_HOLDS: i64 = 1_000;
/// Leases of a month that is over are returned this much later: requests that came before may still
/// ask for them.
///
/// # Units
/// Milliseconds.
const AFTER_MONTH: i64 = 1_000;
/// Most counters that one transaction locks.
const MAX_COUNTERS: usize = 512;

impl Writer {
    /// Lets waiting requests in: from what has come free here, else from what the database has room
    /// for. Tops up leases that run low on the way.
    pub(super) async fn serve_waiters(&mut self) -> Result<(), Stop> {
        let (low, has_waiters) = {
            let mut inbox = self.shared.inbox.lock();
            (std::mem::take(&mut inbox.low), inbox.has_waiters())
        };
        if !has_waiters && low.is_empty() {
            return Ok(());
        }
        if self.mode == PostMode::Late {
            self.refuse_waiters(Refusal::Closed);
            return Ok(());
        }
        serve_free_room(&self.shared, self.clock.now());
        let keys = self.wanted_counters(&low);
        if keys.is_empty() {
            return Ok(());
        }
        self.take_leases(&keys).await?;
        if self.shared.inbox.lock().has_waiters() {
            self.retry_at = Some(Instant::now() + LEASE_TICK);
        }
        Ok(())
    }

    fn refuse_waiters(&self, refusal: Refusal) {
        let waiters = self.shared.inbox.lock().take_waiters();
        for waiter in waiters {
            // Who is gone needs no answer.
            drop(waiter.reply.send(Err(refusal)));
        }
    }

    fn wanted_counters(&self, low: &[Arc<Desk>]) -> Vec<CounterKey> {
        let mut keys: BTreeSet<CounterKey> = self
            .shared
            .inbox
            .lock()
            .waiters()
            .flat_map(|w| leased_counters(w.payer, w.month, w.leased).map(|(_, key)| key))
            .collect();
        for desk in low {
            let mut book = desk.book.lock();
            keys.extend(
                book.iter_mut()
                    .filter(|(_, counter)| counter.is_topping_up)
                    .map(|(key, _)| *key),
            );
        }
        keys.into_iter().take(MAX_COUNTERS).collect()
    }

    pub(super) async fn take_leases(&mut self, keys: &[CounterKey]) -> Result<(), Stop> {
        let (wants, waiting) = self.wants(keys);
        let ahead = self.ahead(keys);
        let decision = Mutex::new(Decision::default());
        let policy = |rows: &[LockedCounter], live: u32| {
            let made = decide(rows, live, &wants, &ahead);
            let changes = made.changes.clone();
            *decision.lock() = made;
            changes
        };
        self.announce(&[]).await?;
        crate::crash::point("lease.taking");
        let moved = bounded(
            self.store
                .move_leases(self.guard, keys, &policy, self.clock.now()),
        )
        .await;
        let rows = match moved {
            Ok(rows) => rows,
            Err(error) => {
                self.note_failure(&error);
                self.note_topped_up(keys, &[]);
                if !is_refusal(&error) {
                    return self.reconcile().await;
                }
                self.refuse_waiters(Refusal::Unavailable);
                return Ok(());
            }
        };
        crate::crash::point("lease.taken");
        let decision = decision.into_inner();
        self.gain(&rows).await?;
        crate::crash::point("lease.gained");
        self.note_topped_up(keys, &decision.aims);
        self.live = decision.live;
        self.answer(&rows, &waiting, &decision.verdicts);
        Ok(())
    }

    /// What each waiting request lacks, if those before it get what they want.
    fn wants(&self, keys: &[CounterKey]) -> (Vec<Want>, Vec<u64>) {
        let mut free: BTreeMap<CounterKey, (Amounts, Amounts)> = BTreeMap::new();
        let (mut wants, mut waiting) = (Vec::new(), Vec::new());
        for waiter in self.shared.inbox.lock().waiters() {
            let mut parts = SmallVec::new();
            let mut is_whole = true;
            for (_, key) in leased_counters(waiter.payer, waiter.month, waiter.leased) {
                let Ok(place) = keys.binary_search(&key) else {
                    // Beyond what one transaction locks: its turn comes.
                    is_whole = false;
                    break;
                };
                let (free, unposted) = free.entry(key).or_insert_with(|| {
                    let book = waiter.desk.book.lock();
                    book.get(&key).map_or_else(Default::default, |counter| {
                        (counter.free(), counter.unposted)
                    })
                });
                let missing = waiter.bound.minus(*free).max(Amounts::ZERO);
                *free = free.plus(missing).minus(waiter.bound);
                parts.push(WantPart {
                    place,
                    missing,
                    bound: waiter.bound,
                    unposted: *unposted,
                });
            }
            if is_whole {
                wants.push(Want { parts });
                waiting.push(waiter.number);
            }
        }
        (wants, waiting)
    }

    /// How much should be free of each counter to bridge an outage, and how much is.
    fn ahead(&self, keys: &[CounterKey]) -> Vec<Ahead> {
        let (now, reserve) = (self.clock.now(), self.reserve_ms());
        keys.iter()
            .map(|key| {
                let asked = self
                    .shared
                    .inbox
                    .lock()
                    .waiters()
                    .filter(|w| leased_counters(w.payer, w.month, w.leased).any(|(_, k)| k == *key))
                    .map(|w| w.bound)
                    .fold(Amounts::ZERO, Amounts::max);
                let desk = self.shared.desks.get_or_make(key.tenant_id);
                let book = desk.book.lock();
                book.get(key).map_or_else(Ahead::default, |counter| Ahead {
                    goal: counter.goal(asked, now, reserve),
                    free: counter.free(),
                })
            })
            .collect()
    }

    /// Leases more of every counter of which less is free than what bridges an outage.
    pub(super) async fn top_up(&mut self) -> Result<(), Stop> {
        if self.mode == PostMode::Late || !self.shared.is_database_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (now, reserve) = (self.clock.now(), self.reserve_ms());
        let mut keys = Vec::new();
        for desk in self.shared.desks.all() {
            for (key, counter) in desk.book.lock().iter_mut() {
                // The others have their turn a second later.
                if keys.len() < MAX_COUNTERS && counter.is_below_reserve(now, reserve, self.live) {
                    counter.is_topping_up = true;
                    keys.push(*key);
                }
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        keys.sort_unstable();
        self.take_leases(&keys).await
    }

    fn reserve_ms(&self) -> i64 {
        i64::try_from(self.shared.options.outage_reserve.as_millis()).unwrap_or(i64::MAX)
    }

    /// Takes in what the database has confirmed: first into the journal, then it may be spent.
    async fn gain(&mut self, rows: &[LockedCounter]) -> Result<(), Stop> {
        self.guard.seq += 1;
        self.shared
            .stats
            .lease_moves
            .fetch_add(1, Ordering::Relaxed);
        let leases: Vec<Lease> = rows
            .iter()
            .map(|row| Lease {
                key: row.balance.key,
                held: row.leased,
            })
            .collect();
        self.acknowledge(&leases).await?;
        for row in rows {
            let desk = self.shared.desks.get_or_make(row.balance.key.tenant_id);
            let mut book = desk.book.lock();
            let counter = book.entry(row.balance.key);
            counter.lease = row.leased;
            counter.observe(row.balance);
        }
        Ok(())
    }

    /// Notes from where on each lease is low again: half of what was aimed at. Near the cap, where
    /// nothing is leased ahead, nothing is topped up.
    fn note_topped_up(&self, keys: &[CounterKey], aims: &[Amounts]) {
        let now = self.clock.now();
        for (place, key) in keys.iter().enumerate() {
            let desk = self.shared.desks.get_or_make(key.tenant_id);
            let mut book = desk.book.lock();
            let counter = book.entry(*key);
            counter.is_topping_up = false;
            counter.topped_up_at = now;
            let aim = aims.get(place).copied().unwrap_or_default();
            let half = aim.zip(counter.free(), |aim, free| aim.min(free) / 2);
            counter.low_mark = half.max(Amounts::ZERO);
        }
    }

    /// Answers those whose case is decided; the others go on waiting.
    fn answer(&self, rows: &[LockedCounter], waiting: &[u64], verdicts: &[Verdict]) {
        let now = self.clock.now();
        let judged: HashMap<u64, Verdict> = waiting
            .iter()
            .copied()
            .zip(verdicts.iter().copied())
            .collect();
        let waiters = self.shared.inbox.lock().take_waiters();
        let mut left = Vec::new();
        for waiter in waiters {
            let verdict = judged.get(&waiter.number).copied();
            let no_room = |place: usize| {
                rows.get(place).map(|row| {
                    let key = row.balance.key;
                    let book = waiter.desk.book.lock();
                    let unposted = book.get(&key).map(|c| c.unposted).unwrap_or_default();
                    NoRoom::new(row.balance, unposted, waiter.bound)
                })
            };
            match verdict {
                Some(Verdict::Spent { place }) => {
                    let Some(no_room) = no_room(place) else {
                        continue;
                    };
                    let mut book = waiter.desk.book.lock();
                    book.entry(no_room.balance.key).refused_until =
                        UnixMillis(now.0.saturating_add(REFUSAL_HOLDS));
                    drop(book);
                    drop(waiter.reply.send(Err(Refusal::Spent(no_room))));
                }
                Some(Verdict::Held { place }) => match no_room(place) {
                    Some(no_room) if waiter.patience == Patience::None => {
                        drop(waiter.reply.send(Err(Refusal::Held(no_room))));
                    }
                    no_room => {
                        *waiter.held.lock() = no_room;
                        left.push(waiter);
                    }
                },
                // Somebody else may have been faster in the meantime.
                Some(Verdict::Granted) => match hold_for(&waiter, now) {
                    Some(reserved) => drop(waiter.reply.send(Ok(reserved))),
                    None => left.push(waiter),
                },
                None => left.push(waiter),
            }
        }
        self.shared.inbox.lock().wait_on(left);
    }

    /// Returns what is idle of counters that others wait for.
    pub(super) async fn return_recalled(&mut self) -> Result<(), Stop> {
        if self.mode == PostMode::Late || !self.shared.is_database_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        match bounded(self.store.list_recalled(self.guard.instance_id)).await {
            Ok(keys) => {
                for key in &keys {
                    let desk = self.shared.desks.get_or_make(key.tenant_id);
                    desk.book.lock().entry(*key).low_mark = Amounts::ZERO;
                }
                self.give_back(&keys).await
            }
            Err(error) => {
                self.note_failure(&error);
                Ok(())
            }
        }
    }

    /// Returns what nobody has used for long, and what is left of months that are over.
    pub(super) async fn return_idle(&mut self) -> Result<(), Stop> {
        let now = self.clock.now();
        let long_ago = UnixMillis(now.0.saturating_sub(self.reserve_ms()));
        let mut keys = Vec::new();
        for desk in self.shared.desks.all() {
            let mut book = desk.book.lock();
            for (key, counter) in book.iter_mut() {
                counter.age(now);
                let is_over = counter
                    .ends_at
                    .is_some_and(|end| now.0 >= end.0.saturating_add(AFTER_MONTH));
                if counter.used_at < long_ago || is_over {
                    keys.push(*key);
                }
            }
            book.forget_idle(long_ago);
        }
        self.shared.desks.forget_unused();
        if self.mode == PostMode::Late || !self.shared.is_database_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.give_back(&keys).await
    }

    /// Returns everything that is not in use, until the database has confirmed it.
    pub(super) async fn return_all(&mut self) -> Result<(), Stop> {
        loop {
            let mut keys = Vec::new();
            for desk in self.shared.desks.all() {
                let mut book = desk.book.lock();
                let leased = book
                    .iter_mut()
                    .filter(|(_, counter)| !counter.free().max(Amounts::ZERO).is_zero());
                keys.extend(leased.map(|(key, _)| *key));
            }
            if keys.is_empty() {
                return Ok(());
            }
            self.give_back(&keys).await?;
            self.check_deadline()?;
        }
    }

    async fn give_back(&mut self, keys: &[CounterKey]) -> Result<(), Stop> {
        // Lowered before it is sent: what is on its way back cannot be spent here.
        let mut given: BTreeMap<CounterKey, Amounts> = BTreeMap::new();
        for key in keys {
            let desk = self.shared.desks.get_or_make(key.tenant_id);
            let mut book = desk.book.lock();
            let Some(counter) = book.get_mut(key) else {
                continue;
            };
            let free = counter.free().max(Amounts::ZERO);
            if !free.is_zero() {
                counter.lease = counter.lease.minus(free);
                given.insert(*key, free);
            }
        }
        let given: Vec<(CounterKey, Amounts)> = given.into_iter().collect();
        for part in given.chunks(MAX_COUNTERS) {
            let keys: Vec<CounterKey> = part.iter().map(|(key, _)| *key).collect();
            self.announce(&keys).await?;
            crate::crash::point("lease.returning");
            let policy = |rows: &[LockedCounter], _live: u32| {
                rows.iter()
                    .zip(part)
                    .map(|(_row, (_key, free))| LeaseChange {
                        delta: Amounts::ZERO.minus(*free),
                        recall: None,
                    })
                    .collect()
            };
            let moved =
                bounded(
                    self.store
                        .move_leases(self.guard, &keys, &policy, self.clock.now()),
                )
                .await;
            match moved {
                Ok(rows) => {
                    crate::crash::point("lease.returned");
                    self.gain(&rows).await?;
                }
                Err(error) => {
                    self.note_failure(&error);
                    // The database's numbers replace ours, whatever became of it.
                    return self.reconcile().await;
                }
            }
        }
        Ok(())
    }
}

/// Serves requests that wait from what comes free here, also while the writer waits for the database.
pub(super) async fn tend_room(shared: &Shared, clock: &dyn Clock) -> Stop {
    loop {
        shared.room.notified().await;
        serve_free_room(shared, clock.now());
    }
}

/// Holds for waiting requests what is free here, first come, first served, and forgets who is gone.
pub(super) fn serve_free_room(shared: &Shared, now: UnixMillis) {
    let mut waiters = shared.inbox.lock().take_waiters();
    waiters.retain(|waiter| !waiter.reply.is_closed());
    let mut left = Vec::with_capacity(waiters.len());
    for waiter in waiters {
        match hold_for(&waiter, now) {
            // When nobody takes it, it is given back by its drop.
            Some(reserved) => drop(waiter.reply.send(Ok(reserved))),
            None => left.push(waiter),
        }
    }
    if !left.is_empty() {
        shared.inbox.lock().wait_on(left);
    }
}

/// Tries to hold for a request that waits.
fn hold_for(waiter: &Waiter, now: UnixMillis) -> Option<Reserved> {
    let held =
        waiter
            .desk
            .book
            .lock()
            .hold(waiter.payer, waiter.month, waiter.leased, waiter.bound, now);
    held.ok().map(|_is_low| {
        Reserved::new(
            Arc::clone(&waiter.desk),
            waiter.payer,
            waiter.month,
            waiter.leased,
            waiter.bound,
        )
    })
}
