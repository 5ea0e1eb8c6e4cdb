//! Whether the database answers, and how long what is known of it may be served.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_domain::ports::StoreError;
use sluice_domain::time::UnixMillis;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How much longer than allowed known keys are served: the time between two reads of the change
/// feed, and that of the read itself.
const READ_GRACE: Duration = Duration::from_secs(2);

/// How the instance stands to its database.
#[derive(Debug)]
pub(crate) struct Standing {
    max_age: Duration,
    is_up: AtomicBool,
    joined: CancellationToken,
    is_stale: AtomicBool,
    is_of_snapshot: AtomicBool,
    as_of: AtomicI64,
    fresh_until: Mutex<Instant>,
}

impl Standing {
    /// Returns the standing of an instance that has just read its configuration from the database.
    pub(crate) fn joined(max_age: Duration, now: UnixMillis) -> Self {
        let joined = CancellationToken::new();
        joined.cancel();
        Self {
            max_age,
            is_up: AtomicBool::new(true),
            joined,
            is_stale: AtomicBool::new(false),
            is_of_snapshot: AtomicBool::new(false),
            as_of: AtomicI64::new(now.0),
            fresh_until: Mutex::new(Instant::now() + max_age + READ_GRACE),
        }
    }

    /// Returns the standing of an instance that has its configuration from a snapshot of that age.
    pub(crate) fn away(max_age: Duration, as_of: UnixMillis, age: Duration) -> Self {
        Self {
            is_up: AtomicBool::new(false),
            joined: CancellationToken::new(),
            is_of_snapshot: AtomicBool::new(true),
            fresh_until: Mutex::new(Instant::now() + max_age.saturating_sub(age)),
            ..Self::joined(max_age, as_of)
        }
    }

    /// Returns whether the database answered when it was last asked, and fits this binary.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Notes whether it answers. Returns whether that is new.
    pub(crate) fn note_up(&self, is_up: bool) -> bool {
        self.is_up.swap(is_up, Ordering::Relaxed) != is_up
    }

    /// Returns whether the database was found to fit this binary, in this process or before the
    /// snapshot was written. Nothing of it is used before.
    pub(crate) fn is_joined(&self) -> bool {
        self.joined.is_cancelled()
    }

    /// Resolves when the database was found to fit.
    pub(crate) fn when_joined(&self) -> WaitForCancellationFutureOwned {
        self.joined.clone().cancelled_owned()
    }

    /// Notes that the database fits.
    pub(crate) fn note_joined(&self) {
        self.joined.cancel();
    }

    /// Returns whether the database was silent for so long that nothing known may be served.
    pub(crate) fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Relaxed)
    }

    /// Returns when every change was last known.
    pub(crate) fn as_of(&self) -> UnixMillis {
        UnixMillis(self.as_of.load(Ordering::Relaxed))
    }

    /// Notes that at `now` the change feed was read to its end.
    pub(crate) fn note_read(&self, now: UnixMillis) {
        let mut fresh_until = self.fresh_until.lock();
        *fresh_until = Instant::now() + self.max_age + READ_GRACE;
        self.as_of.store(now.0, Ordering::Relaxed);
        self.is_of_snapshot.store(false, Ordering::Relaxed);
        if self.is_stale.swap(false, Ordering::Relaxed) {
            tracing::info!("the configuration is known again; keys are served");
        }
    }

    /// Looks at the time. To be called often.
    pub(crate) fn note_time(&self) {
        let fresh_until = self.fresh_until.lock();
        if Instant::now() >= *fresh_until && !self.is_stale.swap(true, Ordering::Relaxed) {
            tracing::error!(
                as_of = self.as_of().to_rfc3339(),
                "the database was silent for longer than snapshot.max_age_ms; no key is served until it answers"
            );
        }
    }

    /// Describes the database for people.
    pub(crate) fn describe(&self) -> String {
        if self.is_up() {
            return "up".to_owned();
        }
        if self.is_stale() {
            return "down".to_owned();
        }
        let at = self.as_of().to_rfc3339();
        let minute = at.get(11..16).unwrap_or(&at);
        if self.is_of_snapshot.load(Ordering::Relaxed) {
            format!("down, serving from a snapshot of {minute} UTC")
        } else {
            format!("down, serving known keys as of {minute} UTC")
        }
    }
}

/// Returns the error for a database that is known to be away, or did not answer in time.
pub(crate) fn away(what: &'static str) -> StoreError {
    StoreError::Unavailable {
        source: what.into(),
    }
}

/// Bounds a call to the database.
///
/// # Errors
/// [`StoreError::Unavailable`] when it takes longer.
pub(crate) async fn bounded<T>(
    at_most: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(at_most, call).await {
        Ok(result) => result,
        Err(_elapsed) => Err(away("the database does not answer in time")),
    }
}
