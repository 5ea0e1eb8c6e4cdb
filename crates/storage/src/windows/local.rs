//! The counters of this process: exact, bounded, behind short locks.
//!
//! All counters of a group lie in one shard, so that a decision about several of them holds one lock
//! and is all or nothing. They count everything that this instance admits, wherever it was decided:
//! where Redis decides, they are what is known when Redis is lost.

mod counter;
mod room;
mod taken;

use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use foldhash::HashMap;
use parking_lot::Mutex;
use sluice_domain::ports::{WindowCounters, WindowsUnavailable};
use sluice_domain::window::{
    CounterTime, WindowAnswer, WindowAsk, WindowDecision, WindowGroup, WindowKey, WindowKind,
    WindowLimit, WindowRefusal, WindowStanding, WindowTicket,
};
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::counter::Counter;
pub(crate) use self::taken::{LocalEnd, Part, Taken, Takings};

/// Decisions about different groups rarely wait for each other with so many shards.
const SHARDS: usize = 64;
/// How long a caller should wait for a slot: nobody knows when a request ends.
pub(crate) const SLOT_WAIT: Duration = Duration::from_secs(1);

/// One group's counters, and those of others that came by chance.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    counters: HashMap<WindowKey, Counter>,
}

/// Which counters displace each other when there are too many: a flood of addresses must not push
/// out those of tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Addresses,
    Others,
}

#[derive(Debug)]
struct Inner {
    shards: Box<[Mutex<Shard>]>,
    hasher: foldhash::quality::RandomState,
    start: Instant,
    max_counters: usize,
    /// How many there are, by [`Class`].
    counts: [AtomicUsize; 2],
    /// How many had to go while they still counted.
    displaced: AtomicU64,
    /// Numbers the states of slots, so that an older one never replaces a newer one.
    version: AtomicU64,
    /// Slots that were given back and that others must learn of.
    changed: Mutex<Vec<(WindowGroup, WindowKey)>>,
    has_changed: Notify,
}

/// Window counters in process.
///
/// No lock is held across an await, and no decision waits. There are at most `max_counters` for
/// addresses, and as many for all else; what is idle goes first, then what was asked longest ago,
/// but never one with slots in use.
#[derive(Debug, Clone)]
pub struct LocalWindows(Arc<Inner>);

/// How much of each limit is this instance's, and what follows from what it admits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms<F> {
    /// The part of a limit that may be admitted here.
    pub(crate) part: F,
    /// Whether others must learn of what is admitted.
    pub(crate) is_to_be_sent: bool,
}

impl LocalWindows {
    /// Returns counters that have counted nothing.
    pub fn new(max_counters: usize) -> Self {
        Self(Arc::new(Inner {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: foldhash::quality::RandomState::default(),
            start: Instant::now(),
            max_counters: max_counters.max(1),
            counts: Default::default(),
            displaced: AtomicU64::new(0),
            version: AtomicU64::new(1),
            changed: Mutex::default(),
            has_changed: Notify::new(),
        }))
    }

    /// Decides without asking anybody else.
    pub fn decide_now(&self, decision: WindowDecision<'_>) -> WindowAnswer {
        self.decide_within(
            decision,
            &Terms {
                part: WindowLimit::most,
                is_to_be_sent: false,
            },
        )
    }

    /// Decides within a part of each limit.
    pub(crate) fn decide_within(
        &self,
        decision: WindowDecision<'_>,
        terms: &Terms<impl Fn(WindowLimit) -> u64>,
    ) -> WindowAnswer {
        debug_assert!(asks_differ(decision.asks), "a counter is asked twice");
        let mut shard = self.shard(decision.group).lock();
        // Under the lock, so that decisions of one group see times in their order.
        let now = self.now();
        let mut standings: Vec<WindowStanding> = Vec::with_capacity(decision.asks.len());
        let mut refusal: Option<(usize, Duration)> = None;
        for (at, ask) in decision.asks.iter().enumerate() {
            let most = (terms.part)(ask.limit);
            let counter = self.counter(&mut shard, decision.group, &ask.key, now);
            let (standing, wait) = counter.look(now, amount_within(ask, most), most, ask.limit);
            if standing.is_over
                && !ask.limit.dry_run
                && refusal.is_none_or(|(_, longest)| wait > longest)
            {
                refusal = Some((at, wait));
            }
            standings.push(standing);
        }
        if let Some((which, retry_after)) = refusal {
            return WindowAnswer::Refused(WindowRefusal {
                which,
                standings,
                retry_after,
            });
        }
        let mut takings = Takings::new();
        for (ask, standing) in decision.asks.iter().zip(&mut standings) {
            let most = (terms.part)(ask.limit);
            let amount = amount_within(ask, most);
            let counter = self.counter(&mut shard, decision.group, &ask.key, now);
            if let Some(taken) = counter.take(&ask.key, now, amount, terms.is_to_be_sent) {
                takings.push(taken);
            }
            *standing = counter.stand(now, most, ask.limit, *standing);
        }
        drop(shard);
        WindowAnswer::Admitted {
            ticket: self.ticket(decision.group, takings),
            standings,
        }
    }

    /// Notes what others admitted for this instance. Slots were taken by [`prepare`](Self::prepare).
    pub(crate) fn record(&self, decision: WindowDecision<'_>) -> Takings {
        let mut shard = self.shard(decision.group).lock();
        let now = self.now();
        let mut takings = Takings::new();
        for ask in decision.asks {
            if ask.key.kind == WindowKind::Concurrency {
                takings.push(Taken::Slot {
                    key: ask.key.clone(),
                });
            } else {
                let amount = amount_within(ask, ask.limit.most());
                let counter = self.counter(&mut shard, decision.group, &ask.key, now);
                takings.extend(counter.take(&ask.key, now, amount, false));
            }
        }
        takings
    }

    fn ticket(&self, group: WindowGroup, takings: Takings) -> WindowTicket {
        if takings.is_empty() {
            return WindowTicket::empty();
        }
        WindowTicket::new(Box::new(LocalEnd::new(self.clone(), group, takings)))
    }

    /// Returns the time by which this process counts.
    pub(crate) fn now(&self) -> CounterTime {
        CounterTime(millis(self.0.start.elapsed()))
    }

    fn shard(&self, group: WindowGroup) -> &Mutex<Shard> {
        let shards = &self.0.shards;
        let at = usize::try_from(self.hash(group)).unwrap_or(0) % shards.len();
        &shards[at]
    }

    /// Returns a number that is the same for the same group in this process.
    pub(crate) fn hash(&self, group: WindowGroup) -> u64 {
        self.0.hasher.hash_one(group) >> 1
    }

    /// Returns how many counters there may be, of each kind.
    pub(crate) fn max_counters(&self) -> usize {
        self.0.max_counters
    }

    /// Returns how many counters there are.
    pub fn len(&self) -> usize {
        self.0
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    /// Returns whether there is no counter.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns how many counters had to make room while they still counted.
    pub fn displaced(&self) -> u64 {
        self.0.displaced.load(Ordering::Relaxed)
    }

    /// Waits until slots were given back that others must learn of.
    pub(crate) async fn slots_changed(&self) {
        self.0.has_changed.notified().await;
    }

    /// Returns the slots that were given back since the last call.
    pub(crate) fn take_changed(&self) -> Vec<(WindowGroup, WindowKey)> {
        std::mem::take(&mut *self.0.changed.lock())
    }
}

#[async_trait]
impl WindowCounters for LocalWindows {
    async fn decide(
        &self,
        decision: WindowDecision<'_>,
    ) -> Result<WindowAnswer, WindowsUnavailable> {
        Ok(self.decide_now(decision))
    }
}

/// What is really taken: never more than could ever pass.
pub(crate) fn amount_within(ask: &WindowAsk, most: u64) -> u64 {
    if most == 0 {
        // Nothing is admitted; what is asked stays above the limit.
        return ask.amount.clamp(1, ask.limit.most());
    }
    ask.amount.min(most)
}

fn asks_differ(asks: &[WindowAsk]) -> bool {
    asks.iter()
        .enumerate()
        .all(|(at, ask)| asks.iter().skip(at + 1).all(|other| other.key != ask.key))
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A list of as many entries as decisions usually have asks.
pub(crate) type Few<T> = SmallVec<[T; 6]>;

#[cfg(test)]
mod tests;
