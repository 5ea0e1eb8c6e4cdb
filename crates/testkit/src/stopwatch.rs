//! Real time, also for tests that pause their executor's clock.
#![expect(
    clippy::disallowed_types,
    reason = "measures real time across runtimes; the clock of a test's runtime may be paused"
)]

use std::time::{Duration, Instant};

/// Measures real time from its start, whatever the clock of the calling runtime does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the real time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}
