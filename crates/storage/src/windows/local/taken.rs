//! What a decision took from the counters of this process, and how it goes back.

use std::sync::atomic::Ordering;

use sluice_domain::window::{
    CounterTime, TicketEnd, WindowDecision, WindowGroup, WindowKey, WindowKind,
};

use super::counter::{Count, Counter};
use super::{Few, LocalWindows};

/// Something that can be given back.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Tokens, as estimated.
    Tokens {
        key: WindowKey,
        bucket: u64,
        amount: u64,
        is_to_be_sent: bool,
    },
    /// A slot.
    Slot { key: WindowKey },
}

pub(crate) type Takings = Few<Taken>;

impl Taken {
    pub(super) fn of_window(
        key: &WindowKey,
        bucket: u64,
        amount: u64,
        is_to_be_sent: bool,
    ) -> Option<Self> {
        // Requests stay counted, whatever comes of them.
        (key.kind == WindowKind::Tpm).then(|| Self::Tokens {
            key: key.clone(),
            bucket,
            amount,
            is_to_be_sent,
        })
    }
}

/// Gives back what was taken in this process.
pub(crate) struct LocalEnd {
    windows: LocalWindows,
    group: WindowGroup,
    takings: Takings,
}

impl LocalEnd {
    pub(crate) const fn new(windows: LocalWindows, group: WindowGroup, takings: Takings) -> Self {
        Self {
            windows,
            group,
            takings,
        }
    }
}

impl TicketEnd for LocalEnd {
    fn correct(&mut self, tokens: u64) {
        let mut shard = self.windows.shard(self.group).lock();
        let now = self.windows.now();
        for taken in &self.takings {
            let Taken::Tokens {
                key,
                bucket,
                amount,
                is_to_be_sent,
            } = taken
            else {
                continue;
            };
            // One that is gone has nothing to correct.
            let Some(counter) = shard.counters.get_mut(key) else {
                continue;
            };
            counter.correct(now, *bucket, *amount, tokens, *is_to_be_sent);
        }
    }

    fn release(&mut self) {
        let takings = std::mem::take(&mut self.takings);
        let slots = takings.iter().filter_map(|taken| match taken {
            Taken::Slot { key } => Some(key),
            Taken::Tokens { .. } => None,
        });
        self.windows.free_slots(self.group, slots);
    }
}

impl Counter {
    fn correct(
        &mut self,
        now: CounterTime,
        bucket: u64,
        amount: u64,
        tokens: u64,
        is_to_be_sent: bool,
    ) {
        let Count::Window { own, unsent } = &mut self.count else {
            return;
        };
        if tokens <= amount {
            own.give_back(now, bucket, amount - tokens);
            // What others have learned of meanwhile stays as they learned it: more than was used.
            if is_to_be_sent && let Some(unsent) = unsent {
                unsent.give_back(now, bucket, amount - tokens);
            }
        } else {
            own.take(now, tokens - amount);
            if is_to_be_sent {
                unsent
                    .get_or_insert_with(|| {
                        Box::new(sluice_domain::window::SlidingWindow::new(own.shape()))
                    })
                    .take(now, tokens - amount);
            }
        }
    }
}

/// What is sent along with a decision that others make. Dropped before it is
/// [admitted](Self::admit), it is as if nothing had been asked.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    windows: &'a LocalWindows,
    decision: WindowDecision<'a>,
    /// What is asked of each counter.
    pub(crate) parts: Few<Part>,
    sent: CounterTime,
    is_learned: bool,
    is_admitted: bool,
}

/// What is sent along about one counter.
#[derive(Debug)]
pub(crate) enum Part {
    /// What was admitted here and is not known elsewhere: least age in milliseconds, amount.
    Window { unsent: Vec<(u64, u64)> },
    /// How many slots this instance has in use, with the one that is asked for.
    Slots { used: u64, version: u64 },
}

impl LocalWindows {
    /// Takes the slots of a decision that others are asked about, and what they should learn.
    pub(crate) fn prepare<'a>(&'a self, decision: WindowDecision<'a>) -> Prepared<'a> {
        let mut shard = self.shard(decision.group).lock();
        let sent = self.now();
        let parts = decision
            .asks
            .iter()
            .map(|ask| {
                let counter = self.counter(&mut shard, decision.group, &ask.key, sent);
                counter.touched = sent;
                if let Count::Slots { used, is_told, .. } = &mut counter.count {
                    *used = used.saturating_add(1);
                    *is_told = true;
                    return Part::Slots {
                        used: *used,
                        version: self.next_version(),
                    };
                }
                Part::Window {
                    unsent: counter.take_unsent(sent),
                }
            })
            .collect();
        Prepared {
            windows: self,
            decision,
            parts,
            sent,
            is_learned: false,
            is_admitted: false,
        }
    }

    /// Under the lock of a shard, so that numbers and states have one order.
    fn next_version(&self) -> u64 {
        self.0.version.fetch_add(1, Ordering::Relaxed)
    }

    fn free_slots<'k>(&self, group: WindowGroup, keys: impl Iterator<Item = &'k WindowKey>) {
        let mut keys = keys.peekable();
        if keys.peek().is_none() {
            return;
        }
        let mut shard = self.shard(group).lock();
        let mut changed: Few<WindowKey> = Few::new();
        for key in keys {
            if let Some(counter) = shard.counters.get_mut(key)
                && let Count::Slots {
                    used,
                    is_told,
                    is_listed,
                    ..
                } = &mut counter.count
            {
                *used = used.saturating_sub(1);
                if *is_told && !*is_listed {
                    *is_listed = true;
                    changed.push(key.clone());
                }
            }
        }
        drop(shard);
        if !changed.is_empty() {
            let mut all = self.0.changed.lock();
            all.extend(changed.into_iter().map(|key| (group, key)));
            drop(all);
            self.0.has_changed.notify_one();
        }
    }

    /// Returns the slots of a counter that others should be told of now, with the number of this
    /// state; `None` where there are none and they know of none.
    pub(crate) fn slots_to_tell(&self, group: WindowGroup, key: &WindowKey) -> Option<(u64, u64)> {
        let mut shard = self.shard(group).lock();
        let counter = shard.counters.get_mut(key)?;
        let Count::Slots {
            used,
            is_told,
            is_listed,
            ..
        } = &mut counter.count
        else {
            return None;
        };
        *is_listed = false;
        let used = *used;
        let was_told = std::mem::replace(is_told, used > 0);
        (was_told || used > 0).then(|| (used, self.next_version()))
    }

    /// Returns all counters with slots that others know of, or should: those that were taken while
    /// Redis was away are among them.
    pub(crate) fn slots_in_use(&self) -> Vec<(WindowGroup, WindowKey)> {
        let mut in_use = Vec::new();
        for shard in &self.0.shards {
            let shard = shard.lock();
            in_use.extend(
                shard
                    .counters
                    .iter()
                    .filter_map(|(key, counter)| match counter.count {
                        Count::Slots {
                            group,
                            used,
                            is_told,
                            ..
                        } if group != WindowGroup::Instance && (is_told || used > 0) => {
                            Some((group, key.clone()))
                        }
                        _ => None,
                    }),
            );
        }
        in_use
    }
}

impl Prepared<'_> {
    /// Notes that the others have learned what was sent along.
    pub(crate) fn learned(&mut self) {
        self.is_learned = true;
    }

    /// Notes that the decision was admitted, and returns what it took.
    pub(crate) fn admit(mut self) -> Takings {
        self.is_learned = true;
        self.is_admitted = true;
        self.windows.record(self.decision)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.is_learned {
            let mut shard = self.windows.shard(self.decision.group).lock();
            let now = self.windows.now();
            for (ask, part) in self.decision.asks.iter().zip(&self.parts) {
                if let Part::Window { unsent } = part
                    && !unsent.is_empty()
                {
                    self.windows
                        .counter(&mut shard, self.decision.group, &ask.key, now)
                        .put_unsent(now, unsent, self.sent);
                }
            }
        }
        if !self.is_admitted {
            let slots = self.decision.asks.iter().map(|ask| &ask.key);
            self.windows.free_slots(
                self.decision.group,
                slots.filter(|key| key.kind == WindowKind::Concurrency),
            );
        }
    }
}
