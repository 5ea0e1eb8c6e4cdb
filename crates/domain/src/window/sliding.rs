//! The rule of a window: the current bucket and those before it are summed.

use std::collections::VecDeque;
use std::time::Duration;

/// A time of the clock by which a counter counts: milliseconds since some start that all users of
/// the counter agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct CounterTime(pub u64);

/// How the time of a window is cut.
///
/// A window covers the current bucket, which has just begun or is nearly over, **and** as many
/// buckets before it as fill the whole time. With one bucket less, what came at the end of the
/// oldest one would be forgotten too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowShape {
    /// Width of a bucket in milliseconds.
    pub width_ms: u64,
    /// How many buckets before the current one count.
    pub before: u64,
}

impl WindowShape {
    /// A second.
    pub const SECOND: Self = Self {
        width_ms: 50,
        before: 20,
    };
    /// A minute.
    pub const MINUTE: Self = Self {
        width_ms: 1_000,
        before: 60,
    };

    /// Returns the number of the bucket at a time.
    pub const fn bucket(self, at: CounterTime) -> u64 {
        at.0 / self.width_ms
    }

    /// Returns how long nothing may be forgotten: the window and the bucket that is not over.
    pub const fn memory(self) -> Duration {
        Duration::from_millis(self.width_ms * (self.before + 1))
    }

    /// Returns how long a bucket still counts at a time.
    pub const fn leaves_in(self, bucket: u64, now: CounterTime) -> Duration {
        let gone_at = bucket
            .saturating_add(self.before + 1)
            .saturating_mul(self.width_ms);
        Duration::from_millis(gone_at.saturating_sub(now.0))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    number: u64,
    amount: u64,
}

/// Amounts of the last second or minute.
///
/// Never more than the limit is admitted in any true window of its time, whenever requests come,
/// and room is back at most one bucket late. The clock never goes back: an earlier time than the
/// latest one is taken to be the latest.
///
/// Memory is that of the buckets in which something was taken.
#[derive(Debug, Clone)]
pub struct SlidingWindow {
    shape: WindowShape,
    /// Ascending; none is empty, none has left the window at `latest`.
    buckets: VecDeque<Bucket>,
    sum: u64,
    latest: CounterTime,
}

impl SlidingWindow {
    /// Returns a window in which nothing has happened.
    pub const fn new(shape: WindowShape) -> Self {
        Self {
            shape,
            buckets: VecDeque::new(),
            sum: 0,
            latest: CounterTime(0),
        }
    }

    /// Returns how its time is cut.
    pub const fn shape(&self) -> WindowShape {
        self.shape
    }

    /// Moves on to a time, forgets what has left the window, and returns the time that holds.
    fn advance(&mut self, now: CounterTime) -> CounterTime {
        self.latest = self.latest.max(now);
        let current = self.shape.bucket(self.latest);
        while let Some(oldest) = self.buckets.front()
            && oldest.number.saturating_add(self.shape.before) < current
        {
            self.sum = self.sum.saturating_sub(oldest.amount);
            self.buckets.pop_front();
        }
        self.latest
    }

    /// Returns what counts at a time.
    pub fn used(&mut self, now: CounterTime) -> u64 {
        self.advance(now);
        self.sum
    }

    /// Returns whether nothing counts at a time.
    pub fn is_idle(&mut self, now: CounterTime) -> bool {
        self.advance(now);
        self.buckets.is_empty()
    }

    /// Returns whether an amount can be taken at a time without exceeding `most`.
    pub fn fits(&mut self, now: CounterTime, amount: u64, most: u64) -> bool {
        self.advance(now);
        self.sum
            .checked_add(amount)
            .is_some_and(|after| after <= most)
    }

    /// Takes an amount, whatever the limit, and returns the number of its bucket.
    pub fn take(&mut self, now: CounterTime, amount: u64) -> u64 {
        let number = self.shape.bucket(self.advance(now));
        self.add(number, amount);
        number
    }

    fn add(&mut self, number: u64, amount: u64) {
        if amount == 0 {
            return;
        }
        self.sum = self.sum.saturating_add(amount);
        match self.buckets.back_mut() {
            Some(newest) if newest.number == number => {
                newest.amount = newest.amount.saturating_add(amount);
            }
            _ => self.buckets.push_back(Bucket { number, amount }),
        }
    }

    /// Gives an amount back to the bucket it was taken from. Nothing happens when that bucket does
    /// not count any more: what has left the window is no credit.
    pub fn give_back(&mut self, now: CounterTime, number: u64, amount: u64) {
        self.advance(now);
        let Ok(at) = self
            .buckets
            .binary_search_by_key(&number, |bucket| bucket.number)
        else {
            return;
        };
        let Some(bucket) = self.buckets.get_mut(at) else {
            return;
        };
        let returned = amount.min(bucket.amount);
        bucket.amount -= returned;
        self.sum = self.sum.saturating_sub(returned);
        if bucket.amount == 0 {
            self.buckets.remove(at);
        }
    }

    /// Returns how long it takes until an amount fits, if nothing else is taken; zero when it fits
    /// now. An amount above `most` waits for an empty window.
    pub fn wait(&mut self, now: CounterTime, amount: u64, most: u64) -> Duration {
        let now = self.advance(now);
        let room = most.saturating_sub(amount);
        let mut left = self.sum;
        let mut wait = Duration::ZERO;
        for bucket in &self.buckets {
            if left <= room {
                break;
            }
            left = left.saturating_sub(bucket.amount);
            wait = self.shape.leaves_in(bucket.number, now);
        }
        wait
    }

    /// Returns how long it takes until nothing counts any more.
    pub fn resets_in(&mut self, now: CounterTime) -> Duration {
        let now = self.advance(now);
        self.buckets.back().map_or(Duration::ZERO, |newest| {
            self.shape.leaves_in(newest.number, now)
        })
    }

    /// Returns what counts at a time: the number of each bucket, and its amount.
    pub fn amounts(&mut self, now: CounterTime) -> impl Iterator<Item = (u64, u64)> {
        self.advance(now);
        self.buckets
            .iter()
            .map(|bucket| (bucket.number, bucket.amount))
    }
}

#[cfg(test)]
mod tests;
