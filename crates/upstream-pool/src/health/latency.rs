//! How fast an upstream answers, seen pessimistically.

use std::time::Duration;

/// In this time the weight of what was seen falls to about a third.
const FADES_IN: f64 = 10.0;

/// What a request is taken to cost where nothing was seen yet, in seconds.
const UNKNOWN: f64 = 1.0;

/// A moving average of the time to the first event that follows peaks at once and forgets slowly.
#[derive(Debug, Default)]
pub(crate) struct PeakLatency {
    /// In seconds.
    average: f64,
    as_of: Duration,
}

impl PeakLatency {
    /// Takes in one measurement.
    pub(crate) fn note(&mut self, seen: Duration, now: Duration) {
        let seen = seen.as_secs_f64();
        let kept = self.kept(now);
        self.average = if seen > self.average {
            seen
        } else {
            self.average * kept + seen * (1.0 - kept)
        };
        self.as_of = self.as_of.max(now);
    }

    /// Returns what a request more would cost: the average, which fades while nothing is seen so that
    /// a slow upstream gets another chance, and the average again for each request that is there
    /// already, so that it does not get all of them at once.
    pub(crate) fn cost(&self, in_flight: u32, now: Duration) -> f64 {
        let known = if self.average > 0.0 {
            self.average
        } else {
            UNKNOWN
        };
        self.average * self.kept(now) + known * f64::from(in_flight)
    }

    fn kept(&self, now: Duration) -> f64 {
        (-now.saturating_sub(self.as_of).as_secs_f64() / FADES_IN).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let mut latency = PeakLatency::default();
        latency.note(Duration::from_millis(100), at(1));
        latency.note(at(3), at(2));
        assert!((latency.cost(0, at(2)) - 3.0).abs() < 1e-9);
        latency.note(Duration::from_millis(100), at(3));
        assert!(
            latency.cost(0, at(3)) > 2.5,
            "one fast answer is not enough"
        );
        assert!(latency.cost(0, at(33)) < 0.2, "it gets another chance");
    }

    #[test]
    fn requests_under_way_make_the_next_one_dearer() {
        let mut latency = PeakLatency::default();
        latency.note(at(1), at(1));
        assert!((latency.cost(3, at(1)) - 4.0).abs() < 1e-9);
        assert!(
            latency.cost(3, at(100)) > 2.9,
            "one more chance, not all of them"
        );
        assert!(PeakLatency::default().cost(1, at(1)) > 0.0);
    }
}
