//! When an upstream is probed without a request, and what that says.

use std::time::Duration;

use sluice_domain::pool::ProbeInterval;

/// How much longer than said it may be to the next probe, at random, so that many instances do not
/// probe at once.
const JITTER: f64 = 0.2;

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeFinding {
    /// It lists its models.
    Well,
    /// It cannot be reached, is silent, or fails.
    Failing,
    /// It answers something else. Some servers have no list of models, and some keys may not read it,
    /// while both serve requests.
    Unclear,
}

impl ProbeFinding {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Well, Self::Failing, Self::Unclear];

    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Well => "ok",
            Self::Failing => "failed",
            Self::Unclear => "unclear",
        }
    }
}

/// The probes of one upstream. It knows no clock: `now` is the time since some start.
#[derive(Debug)]
pub(crate) struct Probing {
    every: Option<ProbeInterval>,
    /// Not again before then.
    due: Duration,
    is_under_way: bool,
    found: Option<ProbeFinding>,
    /// Whether a probe was well since a request was last served in spite of one that failed: only then
    /// does a failure say anything about requests.
    is_telling: bool,
    /// Failures in a row that say something.
    run: u32,
    /// The last failure, until a probe finds that it is over.
    failed_at: Option<Duration>,
}

/// What a probe led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Conclusion {
    /// Whether the probe before found something else; of the first one, whether it is not well.
    pub(crate) is_news: bool,
    /// Failures in a row that say something.
    pub(crate) run: u32,
    /// Whether it is well where a probe failed before. Whoever was well all the time while requests
    /// failed says nothing about what fails.
    pub(crate) has_recovered: bool,
}

impl Probing {
    pub(crate) const fn new(every: Option<ProbeInterval>) -> Self {
        Self {
            every,
            due: Duration::ZERO,
            is_under_way: false,
            found: None,
            is_telling: false,
            run: 0,
            failed_at: None,
        }
    }

    /// Takes over the setting; where it changed, what was found is forgotten.
    pub(crate) const fn configure(&mut self, every: Option<ProbeInterval>) {
        let is_same = match (self.every, every) {
            (None, None) => true,
            (Some(a), Some(b)) => a.get().as_nanos() == b.get().as_nanos(),
            _ => false,
        };
        if !is_same {
            let is_under_way = self.is_under_way;
            *self = Self::new(every);
            self.is_under_way = is_under_way;
        }
    }

    /// Returns whether a probe begins now: one at a time, while a breaker is open or nothing was seen
    /// of requests for the interval. `luck` is random, from 0 to 1.
    pub(crate) fn begin(
        &mut self,
        is_open: bool,
        last_seen: Duration,
        now: Duration,
        luck: f64,
    ) -> bool {
        let Some(every) = self.every.map(ProbeInterval::get) else {
            return false;
        };
        let is_quiet = now.saturating_sub(last_seen) >= every;
        if self.is_under_way || now < self.due || !(is_open || is_quiet) {
            return false;
        }
        self.is_under_way = true;
        self.due = now.saturating_add(every.mul_f64(1.0 + JITTER * luck.clamp(0.0, 1.0)));
        true
    }

    /// Ends a probe that came to nothing.
    pub(crate) const fn abandon(&mut self) {
        self.is_under_way = false;
    }

    /// Ends a probe. `served_at` is when a request was last served.
    pub(crate) fn end(
        &mut self,
        found: ProbeFinding,
        served_at: Option<Duration>,
        now: Duration,
    ) -> Conclusion {
        self.is_under_way = false;
        if self.failed_at.is_some() && self.failed_at < served_at {
            self.run = 0;
            self.failed_at = None;
            self.is_telling = false;
        }
        let mut has_recovered = false;
        match found {
            ProbeFinding::Well => {
                self.run = 0;
                self.is_telling = true;
                has_recovered = self.failed_at.take().is_some();
            }
            ProbeFinding::Failing => {
                self.run = self.run.saturating_add(u32::from(self.is_telling));
                self.failed_at = Some(now);
            }
            ProbeFinding::Unclear => {}
        }
        let before = self.found.replace(found).unwrap_or(ProbeFinding::Well);
        Conclusion {
            is_news: before != found,
            run: self.run,
            has_recovered,
        }
    }

    /// Returns what the last probe found.
    pub(crate) const fn found(&self) -> Option<ProbeFinding> {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(10);

    fn probing() -> Probing {
        Probing::new(ProbeInterval::new(EVERY))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn nothing_is_probed_unless_it_was_asked_for() {
        assert!(!Probing::new(None).begin(true, at(0), at(100), 0.0));
    }

    #[test]
    fn a_probe_waits_until_nothing_was_seen_for_the_interval() {
        let mut probing = probing();
        assert!(!probing.begin(false, at(95), at(100), 0.0));
        assert!(probing.begin(false, at(90), at(100), 0.0));
    }

    #[test]
    fn an_open_breaker_is_reason_enough() {
        assert!(probing().begin(true, at(100), at(100), 0.0));
    }

    #[test]
    fn there_is_one_probe_at_a_time_and_the_next_one_comes_after_the_interval_and_some_luck() {
        let mut probing = probing();
        assert!(probing.begin(true, at(0), at(100), 1.0));
        assert!(
            !probing.begin(true, at(0), at(200), 1.0),
            "one is under way"
        );
        probing.end(ProbeFinding::Well, None, at(101));
        assert!(!probing.begin(true, at(0), at(111), 1.0));
        assert!(probing.begin(true, at(0), at(112), 1.0));
        probing.abandon();
        assert!(probing.begin(true, at(0), at(130), 1.0));
    }

    #[test]
    fn only_who_failed_can_recover() {
        let mut probing = probing();
        let well = |probing: &mut Probing, now| probing.end(ProbeFinding::Well, None, at(now));
        assert!(!well(&mut probing, 1).has_recovered);
        probing.end(ProbeFinding::Failing, None, at(2));
        probing.end(ProbeFinding::Unclear, None, at(3));
        assert!(well(&mut probing, 4).has_recovered);
        assert!(!well(&mut probing, 5).has_recovered, "once");
    }

    #[test]
    fn what_was_served_meanwhile_ends_a_failure() {
        let mut probing = probing();
        probing.end(ProbeFinding::Well, None, at(0));
        probing.end(ProbeFinding::Failing, None, at(1));
        assert_eq!(probing.end(ProbeFinding::Failing, None, at(2)).run, 2);
        let served = Some(at(3));
        assert!(!probing.end(ProbeFinding::Well, served, at(4)).has_recovered);
        probing.end(ProbeFinding::Failing, served, at(5));
        assert_eq!(probing.end(ProbeFinding::Failing, served, at(6)).run, 2);
    }

    #[test]
    fn a_list_that_fails_while_requests_are_served_says_nothing() {
        let mut probing = probing();
        let fail = |probing: &mut Probing, served, now| {
            probing.end(ProbeFinding::Failing, served, at(now)).run
        };
        assert_eq!(fail(&mut probing, None, 1), 0, "it never was well");
        probing.end(ProbeFinding::Well, None, at(2));
        assert_eq!(fail(&mut probing, None, 3), 1);
        assert_eq!(
            fail(&mut probing, Some(at(4)), 5),
            0,
            "a request was served all the same"
        );
        assert_eq!(fail(&mut probing, Some(at(4)), 6), 0);
    }

    #[test]
    fn only_a_change_is_news() {
        let mut probing = probing();
        let findings = [
            (ProbeFinding::Well, false),
            (ProbeFinding::Failing, true),
            (ProbeFinding::Failing, false),
            (ProbeFinding::Well, true),
        ];
        for (found, is_news) in findings {
            assert_eq!(
                probing.end(found, None, at(1)).is_news,
                is_news,
                "{found:?}"
            );
        }
    }
}
