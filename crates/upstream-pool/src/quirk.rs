//! What was learned about servers while they were used.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use foldhash::fast::RandomState;
use memchr::memmem;
use parking_lot::RwLock;
use sluice_domain::id::UpstreamId;
use sluice_domain::time::UnixMillis;

use crate::attempt::Failure;
use crate::error::ErrorClass;

/// What was learned is tried again after so many milliseconds: servers are upgraded.
const MEMORY_MS: i64 = 60 * 60 * 1_000;

/// What the upstreams of this process refuse; shared by all of its threads.
#[derive(Debug, Default)]
pub(crate) struct Quirks {
    /// Until when the last one of `no_stream_options` holds, so that nothing is locked where there
    /// is none.
    latest: AtomicI64,
    /// The upstreams that refuse `stream_options`, and until when that is believed.
    no_stream_options: RwLock<HashMap<UpstreamId, UnixMillis, RandomState>>,
}

impl Quirks {
    /// Returns whether `stream_options` may be sent to an upstream.
    pub(crate) fn takes_stream_options(&self, upstream: UpstreamId, now: UnixMillis) -> bool {
        if self.latest.load(Ordering::Acquire) <= now.0 {
            return true;
        }
        let refusing = self.no_stream_options.read();
        refusing.get(&upstream).is_none_or(|until| until.0 <= now.0)
    }

    /// Notes that an upstream answered without `stream_options` what it had refused with them.
    pub(crate) fn refuses_stream_options(&self, upstream: UpstreamId, now: UnixMillis) {
        let until = UnixMillis(now.0.saturating_add(MEMORY_MS));
        let mut refusing = self.no_stream_options.write();
        refusing.retain(|_, until| until.0 > now.0);
        refusing.insert(upstream, until);
        self.latest.fetch_max(until.0, Ordering::Release);
    }
}

/// Returns whether a refusal names `stream_options`: older servers, and strict ones, do not know them.
pub(crate) fn names_stream_options(failure: &Failure) -> bool {
    let Some(refusal) = &failure.refusal else {
        return false;
    };
    failure.class == ErrorClass::CallerFault
        && matches!(refusal.status.as_u16(), 400 | 422)
        && [&b"stream_options"[..], b"include_usage"]
            .iter()
            .any(|word| memmem::find(&refusal.body, word).is_some())
}

#[cfg(test)]
mod tests {
    use sluice_domain::id::uuid_v7;

    use super::*;

    #[test]
    fn what_was_learned_holds_for_one_upstream_and_an_hour() {
        let quirks = Quirks::default();
        let upstream = |n| UpstreamId::from_uuid(uuid_v7(1, [n; 10]));
        let takes = |n, now| quirks.takes_stream_options(upstream(n), UnixMillis(now));
        assert!(takes(1, 0));
        quirks.refuses_stream_options(upstream(1), UnixMillis(1_000));
        assert!(!takes(1, 1_000));
        assert!(takes(2, 1_000));
        assert!(!takes(1, MEMORY_MS + 999));
        assert!(takes(1, MEMORY_MS + 1_000));
        quirks.refuses_stream_options(upstream(2), UnixMillis(MEMORY_MS + 1_000));
        assert!(takes(1, MEMORY_MS + 1_001) && !takes(2, MEMORY_MS + 1_001));
        assert_eq!(quirks.no_stream_options.read().len(), 1);
    }
}
