//! When an upstream or an upstream key is left alone because it fails.

use std::time::Duration;

use sluice_domain::pool::BreakerPolicy;

use super::evidence::{Evidence, Source};
use super::window::{Totals, Window};

/// The rate of failures is that of the last minute.
const RATE_WINDOW: Duration = Duration::from_mins(1);
/// With fewer attempts than this a rate says nothing.
const RATE_ATTEMPTS: u32 = 20;
/// An open breaker stays open at most so many times as long as at first.
const LONGEST: u32 = 10;
/// How much longer than due a breaker may stay open, at random, so that many do not probe at once.
const JITTER: f64 = 0.2;

/// Counts failures and decides who may pass. It knows no clock: `now` is the time since some start.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// How often the state has changed. What began before the last change does not count any more.
    generation: u32,
    /// How often in a row it was opened.
    openings: u32,
    /// Failures since the last success.
    run: u32,
    run_evidence: Evidence,
    window: Window,
}

/// What a breaker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Everything passes.
    Closed,
    /// Nothing passes before then.
    Open {
        /// When one attempt may find out.
        until: Duration,
    },
    /// One attempt is finding out.
    HalfOpen {
        /// When it was due.
        until: Duration,
    },
}

/// The leave of one attempt to pass; it must be handed back with what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an attempt that is not ended keeps a breaker half open"]
pub(crate) struct Ticket {
    generation: u32,
    probe: Option<Probe>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// The time was over.
    Due,
    /// It was not, and there was nothing else to try.
    Forced,
}

/// What a failure led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing yet.
    Counted,
    /// The breaker opened, or stays open, for so long.
    Opened(Duration),
    /// All failures are of one request; it is to be held back instead.
    HoldBack {
        /// Whether others succeeded meanwhile. Where nobody did, it may as well be the upstream.
        is_sure: bool,
    },
}

impl Breaker {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Closed,
            generation: 0,
            openings: 0,
            run: 0,
            run_evidence: Evidence::None,
            window: Window::new(RATE_WINDOW),
        }
    }

    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// Returns the failures since the last success.
    pub(crate) const fn failures(&self) -> u32 {
        self.run
    }

    /// Returns how long nothing passes; zero when something may pass now.
    pub(crate) fn wait(&self, now: Duration) -> Option<Duration> {
        match self.state {
            State::Closed => None,
            State::Open { until } if until <= now => None,
            State::Open { until } | State::HalfOpen { until } => Some(until.saturating_sub(now)),
        }
    }

    /// Lets an attempt pass; `None` when it may not. One that passes an open breaker whose time is
    /// over is the probe, and the only one.
    pub(crate) fn begin(&mut self, now: Duration) -> Option<Ticket> {
        match self.state {
            State::Closed => Some(self.ticket(None)),
            State::Open { until } if until <= now => Some(self.probe(until, Probe::Due)),
            State::Open { .. } | State::HalfOpen { .. } => None,
        }
    }

    /// Lets an attempt pass although the time is not over, as the probe; `None` while another probe
    /// is under way.
    pub(crate) fn begin_forced(&mut self, now: Duration) -> Option<Ticket> {
        match self.state {
            State::Open { until } if until > now => Some(self.probe(until, Probe::Forced)),
            _ => self.begin(now),
        }
    }

    fn ticket(&self, probe: Option<Probe>) -> Ticket {
        Ticket {
            generation: self.generation,
            probe,
        }
    }

    fn probe(&mut self, until: Duration, probe: Probe) -> Ticket {
        self.change(State::HalfOpen { until });
        self.ticket(Some(probe))
    }

    /// Ends an attempt whose first event has come. Returns whether that closed the breaker.
    pub(crate) fn succeed(&mut self, ticket: Ticket, now: Duration) -> bool {
        if ticket.generation != self.generation {
            return false;
        }
        if ticket.probe.is_some() {
            self.close();
            return true;
        }
        self.run = 0;
        self.run_evidence = Evidence::None;
        self.window.succeeded(now);
        false
    }

    /// Ends an attempt that says nothing about failures, though somebody was there to answer it:
    /// counts nothing, but as a probe it is good enough. Returns whether that closed the breaker.
    pub(crate) fn pass_over(&mut self, ticket: Ticket) -> bool {
        let closes = ticket.generation == self.generation && ticket.probe.is_some();
        if closes {
            self.close();
        }
        closes
    }

    /// Ends an attempt that came to nothing, because its client left.
    pub(crate) fn abandon(&mut self, ticket: Ticket) {
        if ticket.generation == self.generation
            && ticket.probe.is_some()
            && let State::HalfOpen { until } = self.state
        {
            self.change(State::Open { until });
        }
    }

    /// Ends an attempt that failed. `luck` is random, from 0 to 1.
    pub(crate) fn fail(
        &mut self,
        ticket: Ticket,
        source: Source,
        policy: &BreakerPolicy,
        now: Duration,
        luck: f64,
    ) -> Verdict {
        if ticket.generation != self.generation {
            return Verdict::Counted;
        }
        match (ticket.probe, self.state) {
            (Some(Probe::Due), _) => return self.open(policy, now, luck),
            // It came too early to say anything new.
            (Some(Probe::Forced), State::HalfOpen { until }) => {
                self.change(State::Open { until });
                return Verdict::Counted;
            }
            (Some(Probe::Forced), _) => return Verdict::Counted,
            (None, _) => {}
        }
        self.count(source, now);
        let is_run = self.run >= policy.max_failures.get();
        let rate = self.window.totals(now);
        if !is_run && !is_too_many(policy, &rate) {
            return Verdict::Counted;
        }
        let evidence = if is_run {
            self.run_evidence
        } else {
            rate.evidence
        };
        if evidence == Evidence::Several {
            return self.open(policy, now, luck);
        }
        self.forget();
        // However often it failed, it is one failure among those to come. Were it none, requests that
        // are repeated as often as failures are allowed would each be held back, and nothing opened.
        self.count(source, now);
        Verdict::HoldBack {
            is_sure: !is_run && rate.failures < rate.attempts,
        }
    }

    /// Returns whether nothing passes and nobody is finding out.
    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Lets an open breaker be probed by the next attempt. Returns whether it had to wait still.
    pub(crate) fn hasten(&mut self, now: Duration) -> bool {
        let waits = matches!(self.state, State::Open { until } if until > now);
        if waits {
            self.change(State::Open { until: now });
        }
        waits
    }

    /// Opens a closed breaker for what was seen elsewhere. Returns for how long.
    pub(crate) fn trip(
        &mut self,
        policy: &BreakerPolicy,
        now: Duration,
        luck: f64,
    ) -> Option<Duration> {
        (self.state == State::Closed).then(|| self.open_now(policy, now, luck))
    }

    /// Closes the breaker and forgets what was counted.
    pub(crate) fn close(&mut self) {
        self.openings = 0;
        self.forget();
        self.change(State::Closed);
    }

    fn open(&mut self, policy: &BreakerPolicy, now: Duration, luck: f64) -> Verdict {
        Verdict::Opened(self.open_now(policy, now, luck))
    }

    fn open_now(&mut self, policy: &BreakerPolicy, now: Duration, luck: f64) -> Duration {
        let doubled = 1_u32.checked_shl(self.openings).unwrap_or(LONGEST);
        let longest = policy.open_for.saturating_mul(LONGEST);
        let due = policy.open_for.saturating_mul(doubled.min(LONGEST));
        let open_for = due
            .mul_f64(1.0 + JITTER * luck.clamp(0.0, 1.0))
            .min(longest);
        self.openings = self.openings.saturating_add(1);
        self.forget();
        self.change(State::Open {
            until: now.saturating_add(open_for),
        });
        open_for
    }

    fn count(&mut self, source: Source, now: Duration) {
        self.run = self.run.saturating_add(1);
        self.run_evidence = self.run_evidence.with(source);
        self.window.failed(source, now);
    }

    fn forget(&mut self) {
        self.run = 0;
        self.run_evidence = Evidence::None;
        self.window.clear();
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.generation = self.generation.wrapping_add(1);
    }
}

fn is_too_many(policy: &BreakerPolicy, rate: &Totals) -> bool {
    let failures = u64::from(rate.failures) * 100;
    let allowed = u64::from(rate.attempts) * u64::from(policy.max_failure_percent.get());
    rate.attempts >= RATE_ATTEMPTS && failures >= allowed
}

#[cfg(test)]
mod tests;
