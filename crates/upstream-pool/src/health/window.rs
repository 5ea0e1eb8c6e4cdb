//! Attempts and failures of the last while.

use std::time::Duration;

use super::evidence::{Evidence, Source};

/// So many parts of a window expire one by one.
const PARTS: usize = 12;

/// A sliding window over attempts that have ended.
#[derive(Debug)]
pub(crate) struct Window {
    part: Duration,
    /// The number of the part that is being filled, since the beginning of time.
    current: u128,
    parts: [Part; PARTS],
}

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    attempts: u32,
    failures: u32,
    evidence: Evidence,
}

/// What a window holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) attempts: u32,
    pub(crate) failures: u32,
    pub(crate) evidence: Evidence,
}

impl Window {
    /// Makes an empty window of this length.
    pub(crate) fn new(length: Duration) -> Self {
        let parts = u32::try_from(PARTS).unwrap_or(u32::MAX);
        Self {
            part: (length / parts).max(Duration::from_millis(1)),
            current: 0,
            parts: [Part::default(); PARTS],
        }
    }

    /// Adds an attempt that did not fail.
    pub(crate) fn succeeded(&mut self, now: Duration) {
        let part = self.advance(now);
        part.attempts = part.attempts.saturating_add(1);
    }

    /// Adds an attempt that failed.
    pub(crate) fn failed(&mut self, source: Source, now: Duration) {
        let part = self.advance(now);
        part.attempts = part.attempts.saturating_add(1);
        part.failures = part.failures.saturating_add(1);
        part.evidence = part.evidence.with(source);
    }

    /// Returns what ended in the last window.
    pub(crate) fn totals(&mut self, now: Duration) -> Totals {
        self.advance(now);
        let empty = Totals {
            attempts: 0,
            failures: 0,
            evidence: Evidence::None,
        };
        self.parts.iter().fold(empty, |sum, part| Totals {
            attempts: sum.attempts.saturating_add(part.attempts),
            failures: sum.failures.saturating_add(part.failures),
            evidence: sum.evidence.and(part.evidence),
        })
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.parts = [Part::default(); PARTS];
    }

    /// Empties what has expired and returns the part of this moment.
    fn advance(&mut self, now: Duration) -> &mut Part {
        let number = now.as_nanos() / self.part.as_nanos().max(1);
        // Time never goes back here.
        let passed = number.saturating_sub(self.current);
        let passed = usize::try_from(passed).unwrap_or(PARTS).min(PARTS);
        for step in 1..=passed {
            let stale = self.place(number - (passed - step) as u128);
            if let Some(part) = self.parts.get_mut(stale) {
                *part = Part::default();
            }
        }
        self.current = self.current.max(number);
        let place = self.place(self.current);
        &mut self.parts[place]
    }

    fn place(&self, number: u128) -> usize {
        usize::try_from(number % self.parts.len() as u128).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::evidence::tests::source;
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_older_than_the_window_does_not_count() {
        let mut window = Window::new(at(60));
        window.failed(source(1, 1), at(100));
        window.succeeded(at(130));
        let totals = window.totals(at(154));
        assert_eq!((totals.attempts, totals.failures), (2, 1));
        let totals = window.totals(at(160));
        assert_eq!((totals.attempts, totals.failures), (1, 0));
        assert_eq!(totals.evidence, Evidence::None);
        assert_eq!(window.totals(at(10_000)).attempts, 0);
    }

    #[test]
    fn time_that_goes_back_is_the_last_known() {
        let mut window = Window::new(at(60));
        window.succeeded(at(100));
        window.succeeded(at(90));
        assert_eq!(window.totals(at(100)).attempts, 2);
    }

    #[test]
    fn evidence_of_all_parts_is_put_together() {
        let mut window = Window::new(at(60));
        window.failed(source(1, 1), at(10));
        window.failed(source(1, 1), at(30));
        assert_eq!(window.totals(at(30)).evidence, Evidence::One(source(1, 1)));
        window.failed(source(2, 1), at(50));
        assert_eq!(window.totals(at(50)).evidence, Evidence::Several);
    }
}
