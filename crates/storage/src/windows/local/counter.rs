//! One counter of this process.

use std::time::Duration;

use sluice_domain::window::{
    CounterTime, SlidingWindow, WindowGroup, WindowKey, WindowLimit, WindowShape, WindowStanding,
};

use super::{SLOT_WAIT, Taken};

/// What one counter knows.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) count: Count,
    /// When it was asked last.
    pub(super) touched: CounterTime,
}

#[derive(Debug)]
pub(super) enum Count {
    /// Amounts over time.
    Window {
        /// All that this instance admitted.
        own: SlidingWindow,
        /// What of it others have not learned yet.
        unsent: Option<Box<SlidingWindow>>,
    },
    /// Slots in use.
    Slots {
        /// Whose they are, for telling others.
        group: WindowGroup,
        used: u64,
        /// Whether others were told of some.
        is_told: bool,
        /// Whether it waits to be told again.
        is_listed: bool,
    },
}

impl Counter {
    pub(super) fn new(group: WindowGroup, key: &WindowKey, now: CounterTime) -> Self {
        let count = match key.kind.shape() {
            Some(shape) => Count::Window {
                own: SlidingWindow::new(shape),
                unsent: None,
            },
            None => Count::Slots {
                group,
                used: 0,
                is_told: false,
                is_listed: false,
            },
        };
        Self {
            count,
            touched: now,
        }
    }

    /// Returns how it stands, whether the amount fits within `most`, and how long it takes until it
    /// does.
    pub(super) fn look(
        &mut self,
        now: CounterTime,
        amount: u64,
        most: u64,
        limit: WindowLimit,
    ) -> (WindowStanding, Duration) {
        self.touched = now;
        let (used, fits, resets_in, wait) = match &mut self.count {
            Count::Window { own, .. } => {
                let fits = own.fits(now, amount, most);
                let wait = if fits {
                    Duration::ZERO
                } else if most == 0 {
                    // A part of nothing never has room; others may.
                    SLOT_WAIT
                } else {
                    own.wait(now, amount, most)
                };
                (own.used(now), fits, own.resets_in(now), wait)
            }
            Count::Slots { used, .. } => (
                *used,
                used.saturating_add(amount) <= most,
                Duration::ZERO,
                SLOT_WAIT,
            ),
        };
        let standing = WindowStanding {
            most: limit.most(),
            used: used.saturating_add(others(limit, most)),
            resets_in,
            is_over: !fits,
        };
        (standing, wait)
    }

    /// Takes an amount, and returns what of it can be given back.
    pub(super) fn take(
        &mut self,
        key: &WindowKey,
        now: CounterTime,
        amount: u64,
        is_to_be_sent: bool,
    ) -> Option<Taken> {
        self.touched = now;
        match &mut self.count {
            Count::Window { own, unsent } => {
                let bucket = own.take(now, amount);
                if is_to_be_sent {
                    unsent
                        .get_or_insert_with(|| Box::new(SlidingWindow::new(own.shape())))
                        .take(now, amount);
                }
                Taken::of_window(key, bucket, amount, is_to_be_sent)
            }
            Count::Slots { used, .. } => {
                *used = used.saturating_add(amount);
                Some(Taken::Slot { key: key.clone() })
            }
        }
    }

    /// Returns the standing after something was taken, where `most` of the limit is to be had here.
    pub(super) fn stand(
        &mut self,
        now: CounterTime,
        most: u64,
        limit: WindowLimit,
        before: WindowStanding,
    ) -> WindowStanding {
        let (used, resets_in) = match &mut self.count {
            Count::Window { own, .. } => (own.used(now), own.resets_in(now)),
            Count::Slots { used, .. } => (*used, Duration::ZERO),
        };
        WindowStanding {
            used: used.saturating_add(others(limit, most)),
            resets_in,
            ..before
        }
    }

    /// Returns whether forgetting it changes nothing.
    pub(super) fn is_idle(&mut self, now: CounterTime) -> bool {
        match &mut self.count {
            Count::Window { own, unsent } => {
                own.is_idle(now) && unsent.as_mut().is_none_or(|unsent| unsent.is_idle(now))
            }
            Count::Slots {
                used, is_listed, ..
            } => *used == 0 && !*is_listed,
        }
    }

    /// Returns whether it must stay: a slot in use is given back some day.
    pub(super) const fn is_pinned(&self) -> bool {
        matches!(self.count, Count::Slots { used: 1.., .. })
    }

    /// Takes what others have not learned yet: the least age of each amount, and the amount.
    pub(super) fn take_unsent(&mut self, now: CounterTime) -> Vec<(u64, u64)> {
        let Count::Window { unsent, .. } = &mut self.count else {
            return Vec::new();
        };
        let Some(mut unsent) = unsent.take() else {
            return Vec::new();
        };
        let width = unsent.shape().width_ms;
        unsent
            .amounts(now)
            .map(|(bucket, amount)| {
                let ended = bucket.saturating_add(1).saturating_mul(width);
                (now.0.saturating_sub(ended), amount)
            })
            .collect()
    }

    /// Puts back what could not be sent.
    pub(super) fn put_unsent(&mut self, now: CounterTime, ages: &[(u64, u64)], sent: CounterTime) {
        let Count::Window { own, unsent } = &mut self.count else {
            return;
        };
        let mut merged: Vec<(u64, u64)> = ages
            .iter()
            .map(|(age, amount)| (sent.0.saturating_sub(*age), *amount))
            .collect();
        let shape: WindowShape = own.shape();
        if let Some(later) = unsent.take() {
            let mut later = *later;
            merged.extend(
                later
                    .amounts(now)
                    .map(|(bucket, amount)| (bucket.saturating_mul(shape.width_ms), amount)),
            );
        }
        merged.sort_unstable();
        let mut window = SlidingWindow::new(shape);
        for (at, amount) in merged {
            window.take(CounterTime(at), amount);
        }
        *unsent = Some(Box::new(window));
    }
}

/// What is left to others: it counts as used, so that nobody is told of room that is not to be had.
const fn others(limit: WindowLimit, most: u64) -> u64 {
    limit.most().saturating_sub(most)
}
