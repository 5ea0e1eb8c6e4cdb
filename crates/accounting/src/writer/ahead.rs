//! Leases of the month that begins soon, so that an outage over its beginning is bridged too.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use sluice_domain::ports::PostMode;
use sluice_domain::quota::CounterKey;

use super::{Stop, Writer};

/// How long before the end of a month its successor's leases are taken.
///
/// # Units
/// Milliseconds.
const AHEAD: i64 = 15 * 60 * 1_000;
/// Most counters that are locked at a time; the others have their turn a second later.
const AT_ONCE: usize = 256;

impl Writer {
    /// Leases for the next month what the traffic of the one that is about to end asks for. What that
    /// becomes until then is topped up as any other lease.
    pub(super) async fn lease_ahead(&mut self) -> Result<(), Stop> {
        if self.mode == PostMode::Late || !self.shared.is_database_up.load(Ordering::Relaxed) {
            return Ok(());
        }
        let now = self.clock.now();
        let mut wanted = BTreeSet::new();
        for desk in self.shared.desks.all() {
            let mut book = desk.book.lock();
            let ending: Vec<_> = book
                .iter_mut()
                .filter_map(|(key, counter)| {
                    let ends_at = counter.ends_at.filter(|end| {
                        now < *end
                            && now.0 >= end.0.saturating_sub(AHEAD)
                            && !counter.lease.is_zero()
                    })?;
                    Some((*key, ends_at, counter.traffic()))
                })
                .collect();
            for (key, ends_at, traffic) in ending {
                let month = key.month.next();
                let next = CounterKey { month, ..key };
                if book.entry(next).expect_traffic(traffic, ends_at) && wanted.len() < AT_ONCE {
                    wanted.insert(next);
                }
            }
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let keys: Vec<CounterKey> = wanted.into_iter().collect();
        self.take_leases(&keys).await
    }
}
