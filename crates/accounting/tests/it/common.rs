//! What every part of the simulation shares: one source of chance, one log, one life per process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_domain::id::uuid_v7;
use sluice_domain::ports::Clock;
use sluice_domain::time::UnixMillis;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

/// A generator with a seed and nothing else (`SplitMix64`).
#[derive(Debug)]
pub(crate) struct Rng(AtomicU64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A generator of its own for another subject, so that one subject does not shift another.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.next())
    }

    pub(crate) fn next(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub(crate) fn range(&self, low: i64, high: i64) -> i64 {
        let span = (high - low + 1).unsigned_abs();
        low + i64::try_from(self.next() % span).unwrap()
    }

    pub(crate) fn index(&self, len: usize) -> usize {
        usize::try_from(self.next() % len as u64).unwrap()
    }

    /// True in `percent` of a hundred cases.
    pub(crate) fn chance(&self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub(crate) fn per_mille(&self, per_mille: u64) -> bool {
        self.next() % 1_000 < per_mille
    }

    pub(crate) fn uuid(&self, now: UnixMillis) -> Uuid {
        let mut random = [0; 10];
        random[..8].copy_from_slice(&self.next().to_le_bytes());
        random[8..].copy_from_slice(&self.next().to_le_bytes()[..2]);
        uuid_v7(now.0.unsigned_abs(), random)
    }
}

/// The simulated wall clock: it runs with the paused time of the runtime.
#[derive(Debug)]
pub(crate) struct SimClock {
    base: UnixMillis,
    start: Instant,
}

impl SimClock {
    pub(crate) fn new(base: UnixMillis) -> Self {
        Self {
            base,
            start: Instant::now(),
        }
    }

    /// Milliseconds since the simulation began.
    pub(crate) fn elapsed(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap()
    }
}

impl Clock for SimClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.base.0 + self.elapsed())
    }
}

/// What happened, and the first thing that must not have happened.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) clock: Arc<SimClock>,
    is_traced: bool,
    hash: AtomicU64,
    violation: Mutex<Option<String>>,
    pub(crate) figures: Figures,
}

macro_rules! figures {
    ($($name:ident),* $(,)?) => {
        #[derive(Debug, Default)]
        pub(crate) struct Figures { $(pub(crate) $name: AtomicI64),* }

        impl Figures {
            pub(crate) fn all(&self) -> Vec<(&'static str, i64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed))),*]
            }
        }
    };
}

figures! {
    requests, admitted, spent, held, unavailable, other_refusals, left, in_flight_at_crash, crashes,
    power_cuts, restarts, clean_stops, resolves, releases, settled, rollbacks, commits, lost_answers,
    delayed_commits, lost_calls, quarantined, recovered, over_counters, cap_changes, full_disks,
    sync_failures, torn_writes, journals_lost, read_back, unsynced_ms_max,
}

impl Log {
    pub(crate) fn new(clock: Arc<SimClock>, is_traced: bool) -> Self {
        Self {
            clock,
            is_traced,
            hash: AtomicU64::new(0),
            violation: Mutex::default(),
            figures: Figures::default(),
        }
    }

    /// Notes an event; `text` is made only when somebody reads it.
    pub(crate) fn event(&self, tag: u64, text: impl FnOnce() -> String) {
        let now = self.clock.elapsed().unsigned_abs();
        let old = self.hash.load(Ordering::Relaxed);
        let mixed = (old ^ tag ^ (now << 20)).wrapping_mul(0x0100_0000_01b3);
        self.hash.store(mixed.rotate_left(17), Ordering::Relaxed);
        if self.is_traced {
            println!("{now:>7} {}", text());
        }
    }

    pub(crate) fn count(&self, figure: impl FnOnce(&Figures) -> &AtomicI64) {
        figure(&self.figures).fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn violation(&self, text: impl Into<String>) {
        let text = text.into();
        self.event(0xbad, || format!("VIOLATION {text}"));
        let at = self.clock.elapsed();
        self.violation
            .lock()
            .get_or_insert_with(|| format!("at {at} ms: {text}"));
    }

    pub(crate) fn failed(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    /// The same for two runs of one seed.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.load(Ordering::Relaxed)
    }
}

/// One process. When it is dead, nothing that its code still does reaches the disk or the database.
#[derive(Debug, Default)]
pub(crate) struct Life {
    is_dead: AtomicBool,
    /// Dies at this many further calls of the disk or the database; negative is never.
    fuse: AtomicI64,
    death: Notify,
}

impl Life {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            is_dead: AtomicBool::new(false),
            fuse: AtomicI64::new(-1),
            death: Notify::new(),
        })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    pub(crate) fn kill(&self) {
        self.is_dead.store(true, Ordering::Relaxed);
        self.death.notify_one();
    }

    /// Resolves when it is dead; one task may wait.
    pub(crate) async fn died(&self) {
        while !self.is_dead() {
            self.death.notified().await;
        }
    }

    /// Dies inside the call that comes after `calls` others.
    pub(crate) fn burn(&self, calls: i64) {
        self.fuse.store(calls, Ordering::Relaxed);
    }

    /// Counts a call; returns whether the process dies in it.
    pub(crate) fn dies_here(&self) -> bool {
        let left = self.fuse.load(Ordering::Relaxed);
        if left > 0 {
            self.fuse.store(left - 1, Ordering::Relaxed);
        }
        left == 0
    }
}
