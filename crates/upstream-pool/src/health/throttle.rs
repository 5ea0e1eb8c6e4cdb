//! How much less an upstream is asked that accepts less than it is asked.

use std::time::Duration;

use super::evidence::Source;

/// With fewer requests than this their rate says nothing.
const ENOUGH: u32 = 20;
/// So many requests are let through for each that was accepted.
const MULTIPLIER: u32 = 2;
/// The window is at least this long.
const SHORTEST_WINDOW: Duration = Duration::from_mins(2);
/// So many parts of the window expire one by one.
const PARTS: u32 = 12;

/// Counts requests and how many of them were accepted.
///
/// A request that is sent is counted when it ends, together with whether it was accepted: were it
/// counted when it begins, slow upstreams would seem to refuse what they have not answered yet. One
/// that is turned away here is counted at once.
///
/// # Source
/// Client-side throttling, "Site Reliability Engineering", chapter 21.
#[derive(Debug)]
pub(crate) struct Throttle {
    part: Duration,
    current: u64,
    parts: [Part; PARTS as usize],
    requests: u32,
    accepts: u32,
    /// Whose request was not accepted last: the same again says nothing new of the upstream.
    refused_last: Option<Source>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    requests: u32,
    accepts: u32,
}

impl Throttle {
    /// Makes one for an upstream whose calls take up to so long.
    pub(crate) fn new(longest_call: Duration) -> Self {
        Self {
            part: longest_call.max(SHORTEST_WINDOW) / PARTS,
            current: 0,
            parts: [Part::default(); PARTS as usize],
            requests: 0,
            accepts: 0,
            refused_last: None,
        }
    }

    /// Returns with which probability a request is turned away.
    pub(crate) fn probability(&mut self, now: Duration) -> f64 {
        self.advance(now);
        let allowed = self.accepts.saturating_mul(MULTIPLIER);
        if self.requests < ENOUGH || self.requests <= allowed {
            return 0.0;
        }
        f64::from(self.requests - allowed) / (f64::from(self.requests) + 1.0)
    }

    /// Counts a request that was accepted.
    pub(crate) fn accepted(&mut self, now: Duration) {
        self.count(true, now);
    }

    /// Counts a request that was not accepted. One request that is refused again and again counts
    /// once: it must not keep the others away.
    pub(crate) fn refused(&mut self, source: Source, now: Duration) {
        if self.refused_last.replace(source) != Some(source) {
            self.count(false, now);
        }
    }

    /// Counts a request that was turned away here.
    pub(crate) fn turned_away(&mut self, now: Duration) {
        self.count(false, now);
    }

    fn count(&mut self, is_accepted: bool, now: Duration) {
        self.advance(now);
        let place = usize::try_from(self.current % u64::from(PARTS)).unwrap_or(0);
        let part = &mut self.parts[place];
        part.requests = part.requests.saturating_add(1);
        part.accepts = part.accepts.saturating_add(u32::from(is_accepted));
        self.requests = self.requests.saturating_add(1);
        self.accepts = self.accepts.saturating_add(u32::from(is_accepted));
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.parts = [Part::default(); PARTS as usize];
        (self.requests, self.accepts) = (0, 0);
    }

    fn advance(&mut self, now: Duration) {
        let part = self.part.as_millis().max(1);
        let number = u64::try_from(now.as_millis() / part).unwrap_or(u64::MAX);
        let passed = number.saturating_sub(self.current).min(u64::from(PARTS));
        for step in 1..=passed {
            let stale = (number - (passed - step)) % u64::from(PARTS);
            let place = usize::try_from(stale).unwrap_or(0);
            let part = std::mem::take(&mut self.parts[place]);
            self.requests = self.requests.saturating_sub(part.requests);
            self.accepts = self.accepts.saturating_sub(part.accepts);
        }
        self.current = self.current.max(number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::evidence::tests::source;
    use super::*;

    const NOW: Duration = Duration::from_secs(1_000);

    fn after(requests: u32, accepts: u32) -> f64 {
        let mut throttle = Throttle::new(Duration::ZERO);
        for n in 0..requests {
            if n < accepts {
                throttle.accepted(NOW);
            } else {
                throttle.refused(source(1, u64::from(n)), NOW);
            }
        }
        throttle.probability(NOW)
    }

    #[test]
    fn half_may_fail_before_anything_is_turned_away() {
        assert!(after(100, 50) <= 0.0);
        assert!((after(100, 40) - 20.0 / 101.0).abs() < 1e-9);
        assert!((after(100, 0) - 100.0 / 101.0).abs() < 1e-9);
    }

    #[test]
    fn a_few_requests_say_nothing() {
        assert!(after(19, 0) <= 0.0);
        assert!(after(20, 0) > 0.9);
    }

    #[test]
    fn one_request_that_is_refused_again_and_again_keeps_nobody_away() {
        let mut throttle = Throttle::new(Duration::ZERO);
        throttle.accepted(NOW);
        for _ in 0..1_000 {
            throttle.refused(source(1, 1), NOW);
        }
        assert!(throttle.probability(NOW) <= 0.0);
    }

    #[test]
    fn the_window_covers_the_longest_call() {
        let call = Duration::from_mins(20);
        let mut throttle = Throttle::new(call);
        for n in 0..50 {
            throttle.refused(source(1, n), NOW);
        }
        assert!(throttle.probability(NOW + call / PARTS * (PARTS - 1)) > 0.9);
        assert!(throttle.probability(NOW + call / PARTS * (PARTS + 1)) <= 0.0);
    }
}
