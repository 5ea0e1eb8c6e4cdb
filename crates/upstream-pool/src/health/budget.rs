//! How many attempts at an upstream may be repetitions.

use std::time::Duration;

/// A thousandth of a repetition.
type Milli = u64;

/// What a request adds: a fifth of a repetition.
const PER_REQUEST: Milli = 200;
/// What a millisecond adds: ten repetitions a second.
const PER_MILLISECOND: Milli = 10;
/// What time alone adds up to: a second's worth.
const MOST_BY_TIME: Milli = 10_000;
/// What requests add up to.
const MOST: Milli = 100_000;
const ONE: Milli = 1_000;

/// The budget of one upstream: a fifth of its requests and ten a second.
///
/// It keeps a failing upstream from being asked several times as much as a healthy one.
#[derive(Debug)]
pub(crate) struct RetryBudget {
    balance: Milli,
    as_of: Duration,
}

impl RetryBudget {
    pub(crate) const fn new() -> Self {
        Self {
            balance: MOST_BY_TIME,
            as_of: Duration::ZERO,
        }
    }

    /// Adds what a request that is new at the upstream adds.
    pub(crate) fn deposit(&mut self) {
        self.balance = (self.balance + PER_REQUEST).min(MOST);
    }

    /// Takes one repetition; false when there is none left.
    pub(crate) fn withdraw(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.as_of).as_millis();
        self.as_of = self.as_of.max(now);
        if self.balance < MOST_BY_TIME {
            let added = Milli::try_from(passed).unwrap_or(MOST).min(MOST) * PER_MILLISECOND;
            self.balance = (self.balance + added).min(MOST_BY_TIME);
        }
        let left = self.balance.checked_sub(ONE);
        self.balance = left.unwrap_or(self.balance);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quiet_upstream_is_repeated_ten_times_a_second() {
        let mut budget = RetryBudget::new();
        let taken = (0..3_000)
            .filter(|ms| budget.withdraw(Duration::from_millis(*ms)))
            .count();
        // A second's worth was there at the start.
        assert!((38..=40).contains(&taken), "{taken}");
    }

    proptest! {
        #[test]
        fn repetitions_are_a_fifth_of_the_requests_and_ten_a_second(
            per_second in 1..2_000_u64,
            wanted_per_request in 1..4_u32,
        ) {
            let mut budget = RetryBudget::new();
            let (seconds, mut taken) = (20, 0_u64);
            for n in 0..per_second * seconds {
                budget.deposit();
                for _ in 0..wanted_per_request {
                    taken += u64::from(budget.withdraw(Duration::from_millis(n * 1_000 / per_second)));
                }
            }
            prop_assert!(taken <= per_second * seconds / 5 + 10 * seconds + 10, "{}", taken);
        }
    }
}
