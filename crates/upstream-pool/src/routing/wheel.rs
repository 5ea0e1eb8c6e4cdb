//! Weighted turns: which of several entries is next, with exact shares.

use std::sync::atomic::{AtomicU64, Ordering};

/// The golden section as a fraction of 2^64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Where a wheel stands; shared by all threads.
#[derive(Debug)]
pub(crate) struct Cursor {
    turn: AtomicU64,
    /// Counts the choices among what is left when most entries are out. Were they to take turns of
    /// their own, the entries that those turns belong to would lose them.
    spare: AtomicU64,
}

impl Cursor {
    /// Begins somewhere that depends on `seed`, so that many quiet routes do not all begin with
    /// the first entry.
    pub(crate) fn starting_at(seed: u64) -> Self {
        Self {
            // The upper half stays free: the counter never wraps in practice.
            turn: AtomicU64::new(seed >> 32),
            spare: AtomicU64::new(seed),
        }
    }

    /// Returns the number of the next turn.
    pub(crate) fn next(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns a fraction of 2^64; consecutive ones are spread evenly.
    pub(crate) fn next_fraction(&self) -> u64 {
        self.spare.fetch_add(GOLDEN, Ordering::Relaxed)
    }
}

/// A smooth weighted rotation over entries with fixed weights.
///
/// Each entry owns an interval as long as its weight, and consecutive turns step through all
/// positions by about the golden ratio of the total. The step is coprime to the total, so that any
/// `total` consecutive turns reach every position exactly once: the shares are exact, not only
/// likely. The golden ratio spreads the turns of one entry evenly, where nginx's algorithm does the
/// same at a cost per pick that grows with the number of entries.
#[derive(Debug)]
pub(crate) struct Wheel {
    /// The end of each entry's interval; empty when all weights are equal.
    ends: Box<[u64]>,
    total: u64,
    step: u64,
}

impl Wheel {
    /// Builds the rotation; a weight of zero counts as one. `None` without entries.
    pub(crate) fn new(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Option<Self> {
        let divisor = weights.clone().map(|w| u64::from(w.max(1))).reduce(gcd)?;
        let mut total = 0_u64;
        let mut is_uneven = false;
        let ends: Box<[u64]> = weights
            .map(|w| {
                let weight = u64::from(w.max(1)) / divisor;
                is_uneven |= weight != 1;
                total = total.saturating_add(weight);
                total
            })
            .collect();
        let ends = if is_uneven { ends } else { Box::default() };
        Some(Self {
            ends,
            total,
            step: golden_step(total),
        })
    }

    /// Returns the index of the entry whose turn has this number.
    pub(crate) fn at(&self, turn: u64) -> usize {
        if self.total == 1 {
            return 0;
        }
        let position = multiply_modulo(turn % self.total, self.step, self.total);
        if self.ends.is_empty() {
            // The number of entries is a `usize`, and the position is below it.
            usize::try_from(position).unwrap_or(0)
        } else {
            self.ends.partition_point(|&end| end <= position)
        }
    }

    /// Chooses one of `entries` by its weight and a fraction of 2^64; `None` when there are none.
    pub(crate) fn among(&self, entries: &[usize], fraction: u64) -> Option<usize> {
        let total: u64 = entries.iter().map(|&entry| self.weight(entry)).sum();
        let scaled = (u128::from(total) * u128::from(fraction)) >> 64;
        let mut position = u64::try_from(scaled).unwrap_or(0);
        for &entry in entries {
            let weight = self.weight(entry);
            if position < weight {
                return Some(entry);
            }
            position -= weight;
        }
        None
    }

    /// Returns the weight of an entry, divided by what all weights have in common.
    pub(crate) fn weight(&self, entry: usize) -> u64 {
        let before = entry.checked_sub(1).and_then(|n| self.ends.get(n));
        match self.ends.get(entry) {
            Some(end) => end - before.unwrap_or(&0),
            None => 1,
        }
    }
}

fn multiply_modulo(a: u64, b: u64, modulus: u64) -> u64 {
    if u32::try_from(modulus).is_ok() {
        a * b % modulus
    } else {
        // The remainder of a division by a `u64` fits into one.
        u64::try_from(u128::from(a) * u128::from(b) % u128::from(modulus)).unwrap_or(0)
    }
}

/// Returns a number near the golden section of `total` that is coprime to it and whose multiples
/// spread evenly.
///
/// How evenly is decided by the partial quotients of the continued fraction of `step / total`: the
/// smaller the largest of them, the better. Rounding to a neighbor can bring a large one in, so a
/// few neighbors are compared.
fn golden_step(total: u64) -> u64 {
    /// Good enough to stop looking.
    const FINE: u64 = 3;
    /// How far from the golden section is looked; beyond it the first that fits is taken.
    const NEIGHBORHOOD: u64 = 256;
    let ideal = u64::try_from((u128::from(total) * u128::from(GOLDEN)) >> 64).unwrap_or(1);
    let mut best = (u64::MAX, 1);
    for distance in 0..=total {
        for step in [
            ideal.saturating_add(distance),
            ideal.saturating_sub(distance),
        ] {
            if step == 0 || step > total || gcd(step, total) != 1 {
                continue;
            }
            best = best.min((largest_quotient(step, total), step));
        }
        let (quotient, _) = best;
        if quotient <= FINE || (distance >= NEIGHBORHOOD && quotient < u64::MAX) {
            break;
        }
    }
    best.1
}

/// Returns the largest partial quotient of the continued fraction of `a / b`, of a last quotient
/// only what is beyond one, because it can be written in two ways.
fn largest_quotient(mut a: u64, mut b: u64) -> u64 {
    let mut largest = 0;
    while b != 0 {
        let (quotient, rest) = (a / b, a % b);
        largest = largest.max(if rest == 0 {
            quotient.saturating_sub(1)
        } else {
            quotient
        });
        (a, b) = (b, rest);
    }
    largest
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turns(weights: &[u32], first: u64, count: u64) -> Vec<usize> {
        let wheel = Wheel::new(weights.iter().copied()).unwrap();
        (first..first + count).map(|turn| wheel.at(turn)).collect()
    }

    #[test]
    fn equal_entries_take_turns() {
        assert_eq!(turns(&[7, 7], 0, 4), [0, 1, 0, 1]);
        let mut seen = turns(&[3; 5], 100, 5);
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_heavy_entry_does_not_take_its_turns_in_one_run() {
        let picks = turns(&[5, 1, 1], 0, 70);
        let longest = picks
            .chunk_by(|a, b| a == b)
            .map(<[usize]>::len)
            .max()
            .unwrap();
        assert!(longest <= 4, "{picks:?}");
        assert_eq!(
            turns(&[1, 1, 1, 3], 0, 6)
                .iter()
                .filter(|&&i| i == 3)
                .count(),
            3
        );
    }

    #[test]
    fn one_entry_and_no_entry() {
        assert_eq!(turns(&[9], 0, 3), [0, 0, 0]);
        assert!(Wheel::new(std::iter::empty::<u32>()).is_none());
    }

    #[test]
    fn huge_weights_do_not_overflow() {
        let wheel = Wheel::new([u32::MAX, u32::MAX - 1, 1].into_iter()).unwrap();
        let cursor = Cursor::starting_at(u64::MAX);
        let mut counts = [0_u32; 3];
        for _ in 0..1_000 {
            counts[wheel.at(cursor.next())] += 1;
        }
        assert!(
            counts[0].abs_diff(counts[1]) < 20 && counts[2] <= 1,
            "{counts:?}"
        );
    }

    proptest! {
        #[test]
        fn shares_are_exact_over_every_full_round(
            weights in prop::collection::vec(1_u32..50, 1..12),
            first in 0_u64..1_000_000,
        ) {
            let divisor = weights.iter().copied().map(u64::from).reduce(gcd).unwrap();
            let total: u64 = weights.iter().map(|&w| u64::from(w) / divisor).sum();
            let picks = turns(&weights, first, total);
            for (index, &weight) in weights.iter().enumerate() {
                let count = picks.iter().filter(|&&i| i == index).count() as u64;
                prop_assert_eq!(count, u64::from(weight) / divisor);
            }
        }

        #[test]
        fn no_entry_runs_far_ahead_or_behind(
            weights in prop::collection::vec(1_u32..1_000, 2..20),
            first in 0_u64..1_000_000,
        ) {
            let total: u64 = weights.iter().map(|&w| u64::from(w)).sum();
            let mut counts = vec![0_u64; weights.len()];
            for (turn, index) in (1_u64..).zip(turns(&weights, first, 3_000)) {
                counts[index] += 1;
                // In units of 1 / total of a turn, so that nothing is rounded.
                let fair = turn * u64::from(weights[index]);
                let off = (counts[index] * total).abs_diff(fair);
                prop_assert!(off < 6 * total, "{:?} after {}", counts, turn);
            }
        }
    }
}
