//! What all health of a process shares: a beginning of time, chance, and the hash of bodies.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use foldhash::quality::RandomState;
use sluice_domain::id::TenantId;
use tokio::time::Instant;

use super::evidence::Source;

/// Time, chance and hashes.
#[derive(Debug)]
pub(crate) struct Shared {
    epoch: Instant,
    random: AtomicU64,
    hasher: RandomState,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let hasher = RandomState::default();
        Self {
            epoch: Instant::now(),
            random: AtomicU64::new(hasher.hash_one(0)),
            hasher,
        }
    }

    /// Returns the time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    /// Returns an instant as the time since the beginning.
    pub(crate) fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.epoch)
    }

    /// Returns a random number from 0 to below 1.
    pub(crate) fn luck(&self) -> f64 {
        // SplitMix64: every thread takes the next number of one sequence.
        let mut z = self
            .random
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        unit(z ^ (z >> 31))
    }

    /// Returns a hash that nobody outside can foresee.
    pub(crate) fn hash(&self, value: impl Hash) -> u64 {
        self.hasher.hash_one(value)
    }

    /// Returns what tells a request from others.
    pub(crate) fn source(&self, tenant: TenantId, body: &[u8]) -> Source {
        Source {
            tenant,
            body: self.hash(body),
        }
    }
}

/// Returns a number from 0 to below 1 of random bits.
pub(crate) fn unit(bits: u64) -> f64 {
    // A float has room for 53 bits; both halves are exact.
    let high = u32::try_from(bits >> 32).unwrap_or(0);
    let low = u32::try_from((bits >> 11) & 0x001F_FFFF).unwrap_or(0);
    (f64::from(high) + f64::from(low) / f64::from(1 << 21)) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luck_is_spread_from_zero_to_one() {
        let shared = Shared::new();
        let draws: Vec<f64> = (0..10_000).map(|_| shared.luck()).collect();
        assert!(draws.iter().all(|luck| (0.0..1.0).contains(luck)));
        let mean = draws.iter().sum::<f64>() / 10_000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }

    #[test]
    fn bits_become_a_number_below_one() {
        assert!(unit(0) <= 0.0);
        assert!((0.999_999..1.0).contains(&unit(u64::MAX)));
        assert!((unit(1 << 63) - 0.5).abs() < 1e-12);
    }
}
