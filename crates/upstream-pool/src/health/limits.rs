//! What an upstream or an upstream key may be asked at most, counted in this process.

use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::pool::UpstreamLimits;

/// The current second and the sixty before it: never more than the limit in any true minute.
const SECONDS: u64 = 61;

/// Requests and tokens of the last minute, and the requests under way.
#[derive(Debug)]
pub(crate) struct Limits {
    most: UpstreamLimits,
    under_way: u32,
    second: u64,
    seconds: Box<[Second]>,
    requests: u64,
    tokens: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Second {
    requests: u64,
    tokens: u64,
}

/// What a request took, to be handed back when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a place that is not given back stays taken"]
pub(crate) struct Place {
    second: u64,
    tokens: u64,
}

impl Limits {
    /// Makes the counts for these limits; `None` when nothing is limited.
    pub(crate) fn new(limits: UpstreamLimits) -> Option<Self> {
        (limits != UpstreamLimits::default()).then(|| Self {
            most: limits,
            under_way: 0,
            second: 0,
            seconds: vec![Second::default(); usize::try_from(SECONDS).unwrap_or(1)].into(),
            requests: 0,
            tokens: 0,
        })
    }

    /// Changes the limits and keeps what was counted.
    pub(crate) const fn set(&mut self, limits: UpstreamLimits) {
        self.most = limits;
    }

    /// Returns how long a request with so many tokens has to wait; `None` when there is room.
    pub(crate) fn wait(&mut self, tokens: u64, now: Duration) -> Option<Duration> {
        self.advance(now);
        let limit = |limit: Option<NonZeroU32>| limit.map_or(u64::MAX, |n| u64::from(n.get()));
        if u64::from(self.under_way) >= limit(self.most.concurrency) {
            // Nobody knows when one of them ends.
            return Some(Duration::from_secs(1));
        }
        let max_requests = limit(self.most.requests_per_minute);
        let max_tokens = limit(self.most.tokens_per_minute);
        // One request larger than the limit may pass when there is no other.
        let tokens = tokens.min(max_tokens);
        if self.requests < max_requests && self.tokens.saturating_add(tokens) <= max_tokens {
            return None;
        }
        let (mut requests, mut sum) = (self.requests, self.tokens);
        for age in (0..SECONDS).rev() {
            let Some(number) = self.second.checked_sub(age) else {
                continue;
            };
            let second = self.seconds[place(number)];
            requests = requests.saturating_sub(second.requests);
            sum = sum.saturating_sub(second.tokens);
            if requests < max_requests && sum.saturating_add(tokens) <= max_tokens {
                return Some(Duration::from_secs(number + SECONDS).saturating_sub(now));
            }
        }
        Some(Duration::from_secs(SECONDS))
    }

    /// Takes a place for a request with so many tokens, by its bound.
    pub(crate) fn take(&mut self, tokens: u64, now: Duration) -> Place {
        self.advance(now);
        let max_tokens = self.most.tokens_per_minute;
        let tokens = max_tokens.map_or(tokens, |max| tokens.min(u64::from(max.get())));
        let second = &mut self.seconds[place(self.second)];
        second.requests += 1;
        second.tokens = second.tokens.saturating_add(tokens);
        self.requests += 1;
        self.tokens = self.tokens.saturating_add(tokens);
        self.under_way = self.under_way.saturating_add(1);
        Place {
            second: self.second,
            tokens,
        }
    }

    /// Ends a request. Where its tokens are known they take the place of its bound, in the second in
    /// which it began, and as long as that second counts.
    pub(crate) fn give_back(&mut self, taken: Place, tokens: Option<u64>, now: Duration) {
        self.advance(now);
        self.under_way = self.under_way.saturating_sub(1);
        let is_counted = taken.second + SECONDS > self.second;
        if let Some(tokens) = tokens
            && is_counted
        {
            let second = &mut self.seconds[place(taken.second)];
            second.tokens = second
                .tokens
                .saturating_sub(taken.tokens)
                .saturating_add(tokens);
            self.tokens = self
                .tokens
                .saturating_sub(taken.tokens)
                .saturating_add(tokens);
        }
    }

    fn advance(&mut self, now: Duration) {
        let number = now.as_secs();
        let passed = number.saturating_sub(self.second).min(SECONDS);
        for step in 1..=passed {
            let stale = std::mem::take(&mut self.seconds[place(number - (passed - step))]);
            self.requests = self.requests.saturating_sub(stale.requests);
            self.tokens = self.tokens.saturating_sub(stale.tokens);
        }
        self.second = self.second.max(number);
    }
}

fn place(second: u64) -> usize {
    usize::try_from(second % SECONDS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(rpm: u32, tpm: u32, concurrency: u32) -> Limits {
        Limits::new(UpstreamLimits {
            requests_per_minute: NonZeroU32::new(rpm),
            tokens_per_minute: NonZeroU32::new(tpm),
            concurrency: NonZeroU32::new(concurrency),
        })
        .unwrap()
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        assert!(Limits::new(UpstreamLimits::default()).is_none());
    }

    #[test]
    fn a_minute_is_full_until_its_first_request_is_old() {
        let mut limits = limits(2, 0, 0);
        let _first = limits.take(1, at(10));
        let _second = limits.take(1, at(30));
        assert_eq!(limits.wait(1, at(40)), Some(at(31)));
        assert_eq!(limits.wait(1, at(71)), None);
    }

    #[test]
    fn tokens_count_by_their_bound_until_they_are_known() {
        let mut limits = limits(0, 100, 0);
        let place = limits.take(90, at(10));
        assert_eq!(limits.wait(20, at(11)), Some(at(60)));
        limits.give_back(place, Some(30), at(12));
        assert_eq!(limits.wait(70, at(12)), None);
        assert_eq!(limits.wait(71, at(12)), Some(at(59)));
        assert_eq!(
            limits.wait(1_000, at(80)),
            None,
            "one larger than the limit, alone"
        );
    }

    #[test]
    fn what_is_given_back_late_is_no_credit() {
        let mut limits = limits(0, 100, 0);
        let old = limits.take(100, at(0));
        let _new = limits.take(60, at(61));
        limits.give_back(old, Some(0), at(62));
        assert!(limits.wait(60, at(62)).is_some());
    }

    #[test]
    fn places_are_free_again_when_requests_end() {
        let mut limits = limits(0, 0, 1);
        let place = limits.take(0, at(0));
        assert!(limits.wait(0, at(0)).is_some());
        limits.give_back(place, None, at(0));
        assert_eq!(limits.wait(0, at(0)), None);
    }

    proptest! {
        #[test]
        fn no_minute_has_more_than_the_limit(
            gaps in prop::collection::vec(0..3_000_u64, 1..300),
            rpm in 1..40_u32,
        ) {
            let mut limits = limits(rpm, 0, 0);
            let mut now = Duration::ZERO;
            let mut passed: Vec<Duration> = Vec::new();
            for gap in gaps {
                now += Duration::from_millis(gap);
                if limits.wait(0, now).is_none() {
                    let _place = limits.take(0, now);
                    passed.push(now);
                }
            }
            for (n, from) in passed.iter().enumerate() {
                let inside = passed[n..].iter().filter(|at| **at < *from + at_minute()).count();
                prop_assert!(inside <= rpm as usize);
            }
        }
    }

    fn at_minute() -> Duration {
        Duration::from_mins(1)
    }
}
