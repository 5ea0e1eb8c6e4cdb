//! A clock that moves only when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sluice_domain::ports::Clock;
use sluice_domain::time::UnixMillis;

use crate::builders::START;

/// A clock that stands still until it is set or advanced.
///
/// Clones share one time: give a clone to the code under test and keep one.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// Makes a clock that stands at the given time.
    pub fn at(now: UnixMillis) -> Self {
        Self(Arc::new(AtomicI64::new(now.0)))
    }

    /// Moves the clock to the given time, also backwards.
    pub fn set(&self, now: UnixMillis) {
        self.0.store(now.0, Ordering::SeqCst);
    }

    /// Moves the clock forward by whole milliseconds and returns the new time.
    pub fn advance(&self, by: Duration) -> UnixMillis {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        UnixMillis(self.0.fetch_add(by, Ordering::SeqCst).saturating_add(by))
    }
}

impl Default for ManualClock {
    /// Stands at [`START`], the time at which everything that the builders make was made.
    fn default() -> Self {
        Self::at(START)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_one_time_that_moves_only_on_demand() {
        let clock = ManualClock::default();
        let port: Arc<dyn Clock> = Arc::new(clock.clone());
        assert_eq!(port.now(), START);
        assert_eq!(
            clock.advance(Duration::from_secs(2)),
            UnixMillis(START.0 + 2_000)
        );
        assert_eq!(port.now(), UnixMillis(START.0 + 2_000));
        clock.set(UnixMillis(5));
        assert_eq!(port.now(), UnixMillis(5));
    }
}
