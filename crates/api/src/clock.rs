//! The system's clock.

use std::time::{SystemTime, UNIX_EPOCH};

use sluice_domain::ports::Clock;
use sluice_domain::time::UnixMillis;

/// Reads the wall clock of the host.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UnixMillis {
        #[expect(
            clippy::disallowed_methods,
            reason = "this is the clock that all others ask"
        )]
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }
}
