//! Makes identifiers: UUIDv7 from the clock and the system's random bytes.

use std::cell::RefCell;

use sluice_domain::id::{RequestId, uuid_v7};
use sluice_domain::ports::Clock;
use sluice_domain::time::UnixMillis;
use uuid::Uuid;

use crate::clock::SystemClock;

/// Random bytes that are fetched at a time. Small, so that few are shared with a copy of the
/// process's memory.
const POOL: usize = 640;

struct RandomPool {
    bytes: [u8; POOL],
    used: usize,
}

thread_local! {
    static RANDOM: RefCell<RandomPool> = const { RefCell::new(RandomPool { bytes: [0; POOL], used: POOL }) };
}

/// Returns 10 random bytes of the operating system.
pub(crate) fn random_bytes() -> [u8; 10] {
    RANDOM.with_borrow_mut(|pool| {
        if pool.used + 10 > POOL {
            if let Err(error) = getrandom::fill(&mut pool.bytes) {
                // Linux gives random bytes or blocks; there is nothing to fall back to.
                tracing::error!(%error, "the operating system gives no random bytes");
                std::process::abort();
            }
            pool.used = 0;
        }
        let mut out = [0; 10];
        if let Some(bytes) = pool.bytes.get(pool.used..pool.used + 10) {
            out.copy_from_slice(bytes);
        }
        pool.used += 10;
        out
    })
}

/// Returns a new UUIDv7.
pub(crate) fn new_uuid() -> Uuid {
    new_uuid_at(SystemClock.now())
}

/// Returns a new UUIDv7 of an instant.
pub(crate) fn new_uuid_at(now: UnixMillis) -> Uuid {
    uuid_v7(u64::try_from(now.0).unwrap_or(0), random_bytes())
}

/// Returns a new request id.
pub(crate) fn new_request_id(now: UnixMillis) -> RequestId {
    RequestId::from_uuid(new_uuid_at(now))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_do_not_repeat_within_a_millisecond() {
        let ids: HashSet<Uuid> = (0..10_000).map(|_| new_uuid_at(UnixMillis(1))).collect();
        assert_eq!(ids.len(), 10_000);
    }
}
