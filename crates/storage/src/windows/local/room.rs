//! Where counters come from and go to, so that memory is bounded.

use std::sync::atomic::Ordering;

use sluice_domain::window::{CounterTime, WindowGroup, WindowKey, WindowScope};

use super::counter::Counter;
use super::{Class, LocalWindows, Shard};

/// When counters must go that still count, one in so many goes at once: looking at all of them for
/// each new one would take too long.
const DISPLACED_PART: usize = 16;

fn class(key: &WindowKey) -> Class {
    if key.subject.scope() == WindowScope::SourceIp {
        Class::Addresses
    } else {
        Class::Others
    }
}

impl LocalWindows {
    fn count(&self, class: Class) -> &std::sync::atomic::AtomicUsize {
        let [addresses, others] = &self.0.counts;
        match class {
            Class::Addresses => addresses,
            Class::Others => others,
        }
    }

    /// Returns a counter, which is made when it is not there.
    pub(super) fn counter<'a>(
        &self,
        shard: &'a mut Shard,
        group: WindowGroup,
        key: &WindowKey,
        now: CounterTime,
    ) -> &'a mut Counter {
        if !shard.counters.contains_key(key) {
            let class = class(key);
            if self.count(class).load(Ordering::Relaxed) >= self.0.max_counters {
                self.make_room(shard, class, now);
            }
            self.count(class).fetch_add(1, Ordering::Relaxed);
        }
        shard
            .counters
            .entry(key.clone())
            .or_insert_with(|| Counter::new(group, key, now))
    }

    /// Drops what is idle, or else what was asked longest ago.
    fn make_room(&self, shard: &mut Shard, class_of_new: Class, now: CounterTime) {
        if self.drop_idle(shard, now) > 0 {
            return;
        }
        let mut asked: Vec<CounterTime> = shard
            .counters
            .iter()
            .filter(|(key, counter)| class(key) == class_of_new && !counter.is_pinned())
            .map(|(_, counter)| counter.touched)
            .collect();
        if asked.is_empty() {
            return;
        }
        let at = asked.len() / DISPLACED_PART;
        let (_, oldest, _) = asked.select_nth_unstable(at);
        let oldest = *oldest;
        // What this very decision has touched must stay.
        let dropped = self.retain(shard, |key, counter| {
            class(key) != class_of_new
                || counter.is_pinned()
                || counter.touched > oldest
                || counter.touched >= now
        });
        self.0
            .displaced
            .fetch_add(u64::try_from(dropped).unwrap_or(0), Ordering::Relaxed);
    }

    fn drop_idle(&self, shard: &mut Shard, now: CounterTime) -> usize {
        self.retain(shard, |_, counter| {
            counter.touched >= now || !counter.is_idle(now)
        })
    }

    fn retain(
        &self,
        shard: &mut Shard,
        mut is_kept: impl FnMut(&WindowKey, &mut Counter) -> bool,
    ) -> usize {
        let before = shard.counters.len();
        shard.counters.retain(|key, counter| {
            let keep = is_kept(key, counter);
            if !keep {
                self.count(class(key)).fetch_sub(1, Ordering::Relaxed);
            }
            keep
        });
        before - shard.counters.len()
    }

    /// Drops the counters that count nothing any more.
    pub fn sweep(&self) {
        for shard in &self.0.shards {
            let mut shard = shard.lock();
            self.drop_idle(&mut shard, self.now());
            let (len, capacity) = (shard.counters.len(), shard.counters.capacity());
            if capacity > 64 && len < capacity / 4 {
                shard.counters.shrink_to(len * 2);
            }
        }
    }
}
