//! The health of one upstream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sluice_domain::id::{UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{BreakerPolicy, ProbeInterval, RetryPolicy, SkipReason, UpstreamLimits};

use super::breaker::{Breaker, State, Ticket, Verdict};
use super::budget::RetryBudget;
use super::evidence::{HeldBack, Source};
use super::key::KeyHealth;
use super::latency::PeakLatency;
use super::limits::{Limits, Place};
use super::meter::Meter;
use super::probing::{Conclusion, ProbeFinding, Probing};
use super::shared::Shared;
use super::sync::{AtomicBool, Mutex, Ordering};
use super::throttle::Throttle;
use super::{Approach, Asking, Obstacle, Standing};
use crate::error::ErrorClass;

/// What a failure counts as, at least, in the average of the time to the first event.
const FAILURE_COSTS: Duration = Duration::from_secs(1);

/// The settings that decide about an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UpstreamPolicy {
    pub(crate) retry: RetryPolicy,
    pub(crate) breaker: BreakerPolicy,
    pub(crate) probe_every: Option<ProbeInterval>,
    pub(crate) limits: UpstreamLimits,
    /// How long a call may take to its first event.
    pub(crate) longest_call: Duration,
}

/// What is known of one upstream, shared by all threads and all routing tables.
#[derive(Debug)]
pub(crate) struct UpstreamHealth {
    pub(crate) id: UpstreamId,
    pub(crate) shared: Arc<Shared>,
    pub(crate) meter: Meter,
    /// Whether the state has to be looked at before a request is sent.
    is_special: AtomicBool,
    state: Mutex<UpstreamState>,
    pub(super) keys: Mutex<HashMap<Option<UpstreamKeyId>, KnownKey>>,
}

/// A key and what it was when it was last configured.
#[derive(Debug)]
pub(super) struct KnownKey {
    pub(super) health: Arc<KeyHealth>,
    pub(super) marks: Marks,
}

/// Hashes of what was configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// Where it is and which secret it has: when that changes, nothing that was seen holds any more.
    pub(super) identity: u64,
    /// The whole row: when it changes, an admin has acted.
    pub(super) row: u64,
}

#[derive(Debug)]
struct UpstreamState {
    name: Arc<str>,
    policy: UpstreamPolicy,
    breaker: Breaker,
    throttle: Throttle,
    budget: RetryBudget,
    latency: PeakLatency,
    held_back: HeldBack,
    limits: Option<Limits>,
    /// Attempts whose first event has not come.
    in_flight: u32,
    last_success: Option<Duration>,
    /// When it last answered or failed, or was set.
    last_seen: Duration,
    last_error: Option<ErrorClass>,
    probing: Probing,
}

/// The leave of one attempt to ask an upstream.
#[derive(Debug)]
#[must_use = "it must be ended"]
pub(crate) struct UpstreamLeave {
    pub(super) ticket: Ticket,
    pub(super) place: Option<Place>,
}

impl UpstreamHealth {
    pub(super) fn new(
        id: UpstreamId,
        shared: Arc<Shared>,
        name: Arc<str>,
        policy: UpstreamPolicy,
    ) -> Self {
        let limits = Limits::new(policy.limits);
        let last_seen = shared.now();
        Self {
            id,
            shared,
            meter: Meter::default(),
            is_special: AtomicBool::new(limits.is_some()),
            state: Mutex::new(UpstreamState {
                name,
                policy,
                breaker: Breaker::new(),
                throttle: Throttle::new(policy.longest_call),
                budget: RetryBudget::new(),
                latency: PeakLatency::default(),
                held_back: HeldBack::default(),
                limits,
                in_flight: 0,
                last_success: None,
                last_seen,
                last_error: None,
                probing: Probing::new(policy.probe_every),
            }),
            keys: Mutex::new(HashMap::new()),
        }
    }

    /// Takes over settings; `forgives` closes the breaker and forgets what was counted.
    pub(super) fn configure(&self, name: &Arc<str>, policy: UpstreamPolicy, forgives: bool) {
        let mut state = self.state.lock();
        state.name = Arc::clone(name);
        if state.policy.longest_call != policy.longest_call {
            state.throttle = Throttle::new(policy.longest_call);
        }
        match &mut state.limits {
            Some(known) if policy.limits != UpstreamLimits::default() => known.set(policy.limits),
            known => *known = Limits::new(policy.limits),
        }
        state.probing.configure(policy.probe_every);
        state.policy = policy;
        if forgives {
            state.breaker.close();
            state.throttle.clear();
            state.held_back.clear();
        }
        // It is looked at once and then found to be fine.
        self.is_special.store(true, Ordering::Release);
    }

    /// Returns what stands against a request now.
    pub(crate) fn obstacle(&self, asking: &Asking<'_>, now: Duration) -> Option<Obstacle> {
        if !self.is_special.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state.lock();
        let obstacle = state.obstacle(asking, &self.shared, now);
        if obstacle.is_none() {
            self.settle(&mut state, now);
        }
        obstacle
    }

    /// Lets an attempt ask the upstream. A forced one passes a breaker whose time is not over.
    ///
    /// # Errors
    /// What stands against it.
    pub(crate) fn begin(
        &self,
        asking: &Asking<'_>,
        approach: Approach,
        now: Duration,
    ) -> Result<UpstreamLeave, Obstacle> {
        let mut state = self.state.lock();
        match state.obstacle(asking, &self.shared, now) {
            Some(obstacle) if !obstacle.is_passed_by(approach) => {
                return Err(obstacle);
            }
            _ => {}
        }
        // What probes an upstream is not thinned out.
        if state.breaker.state() == State::Closed {
            let probability = state.throttle.probability(now);
            if probability > 0.0 && self.shared.luck() < probability {
                state.throttle.turned_away(now);
                return Err(Obstacle::new(SkipReason::Throttled, None));
            }
        }
        let ticket = if approach == Approach::Forced {
            state.breaker.begin_forced(now)
        } else {
            state.breaker.begin(now)
        };
        let Some(ticket) = ticket else {
            return Err(Obstacle::breaker(state.breaker.wait(now)));
        };
        let tokens = asking.tokens();
        let place = state.limits.as_mut().map(|limits| limits.take(tokens, now));
        state.in_flight = state.in_flight.saturating_add(1);
        if approach != Approach::Again {
            state.budget.deposit();
        }
        Ok(UpstreamLeave { ticket, place })
    }

    /// Takes one repetition from the budget; false when there is none left.
    pub(crate) fn withdraw(&self, now: Duration) -> bool {
        let granted = self.state.lock().budget.withdraw(now);
        if granted {
            self.meter.retried();
        } else {
            self.meter.budget_exhausted();
        }
        granted
    }

    /// Returns most attempts of one request here.
    pub(crate) fn max_attempts(&self) -> u32 {
        self.state.lock().policy.retry.max_attempts.get()
    }

    /// Returns what a request more would cost in time.
    pub(crate) fn cost(&self, now: Duration) -> f64 {
        let state = self.state.lock();
        state.latency.cost(state.in_flight, now)
    }

    pub(super) fn succeed(&self, ticket: Ticket, took: Duration, now: Duration) -> bool {
        let mut state = self.state.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.last_success = Some(now);
        state.last_seen = now;
        state.latency.note(took, now);
        state.throttle.accepted(now);
        let has_closed = state.breaker.succeed(ticket, now);
        if has_closed {
            state.throttle.clear();
        }
        self.settle(&mut state, now);
        has_closed
    }

    pub(super) fn pass_over(&self, ticket: Ticket, now: Duration) -> bool {
        let mut state = self.state.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.last_seen = now;
        state.throttle.accepted(now);
        let has_closed = state.breaker.pass_over(ticket);
        if has_closed {
            state.throttle.clear();
        }
        self.settle(&mut state, now);
        has_closed
    }

    pub(super) fn abandon(&self, ticket: Ticket, now: Duration) {
        let mut state = self.state.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.breaker.abandon(ticket);
        self.settle(&mut state, now);
    }

    pub(super) fn fail(
        &self,
        ticket: Ticket,
        class: ErrorClass,
        source: Source,
        took: Duration,
        now: Duration,
    ) -> Verdict {
        let luck = self.shared.luck();
        let mut state = self.state.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        state.last_seen = now;
        state.last_error = Some(class);
        // What fails fast must not look fast.
        state.latency.note(took.max(FAILURE_COSTS), now);
        state.throttle.refused(source, now);
        let policy = state.policy.breaker;
        let verdict = state.breaker.fail(ticket, source, &policy, now, luck);
        self.settle(&mut state, now);
        verdict
    }

    /// Holds a request back, and returns for how long.
    pub(super) fn hold_back(&self, source: Source, is_sure: bool, now: Duration) -> Duration {
        let mut state = self.state.lock();
        let (last_success, long) = (state.last_success, state.policy.breaker.open_for);
        let pause = state
            .held_back
            .add(source, is_sure, last_success, long, now);
        self.settle(&mut state, now);
        pause
    }

    pub(super) fn give_back(&self, place: Place, tokens: Option<u64>, now: Duration) {
        let mut state = self.state.lock();
        if let Some(limits) = &mut state.limits {
            limits.give_back(place, tokens, now);
        }
    }

    /// Returns whether a probe begins now; it must be ended or abandoned.
    pub(super) fn begin_probe(&self, now: Duration) -> bool {
        let is_key_open = self.keys.lock().values().any(|key| key.health.is_open());
        let luck = self.shared.luck();
        let mut state = self.state.lock();
        let (is_open, last_seen) = (is_key_open || state.breaker.is_open(), state.last_seen);
        state.probing.begin(is_open, last_seen, now, luck)
    }

    pub(super) fn abandon_probe(&self) {
        self.state.lock().probing.abandon();
    }

    /// Ends a probe. Returns what it led to, and for how long it opened the breaker.
    ///
    /// A failure opens what is closed once there were as many in a row as of requests. A success
    /// closes nothing: what it finds is not what requests need. It lets the next request find out.
    pub(super) fn end_probe(
        &self,
        found: ProbeFinding,
        now: Duration,
    ) -> (Conclusion, Option<Duration>) {
        let luck = self.shared.luck();
        let mut state = self.state.lock();
        let served_at = state.last_success;
        let conclusion = state.probing.end(found, served_at, now);
        let policy = state.policy.breaker;
        let opened = (conclusion.run >= policy.max_failures.get())
            .then(|| state.breaker.trip(&policy, now, luck))
            .flatten();
        if conclusion.has_recovered {
            state.breaker.hasten(now);
        }
        self.settle(&mut state, now);
        drop(state);
        if conclusion.has_recovered {
            for key in self.keys.lock().values() {
                key.health.hasten(now);
            }
        }
        (conclusion, opened)
    }

    pub(super) fn probe_found(&self) -> Option<ProbeFinding> {
        self.state.lock().probing.found()
    }

    fn settle(&self, state: &mut UpstreamState, now: Duration) {
        if !state.held_back.is_empty() {
            state.held_back.expire(now);
        }
        let is_special = state.limits.is_some()
            || state.breaker.state() != State::Closed
            || !state.held_back.is_empty();
        self.is_special.store(is_special, Ordering::Release);
    }

    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.state.lock().name)
    }

    pub(super) fn standing(&self, now: Duration) -> Standing {
        let state = self.state.lock();
        Standing {
            breaker: state.breaker.state(),
            breaker_wait: state.breaker.wait(now),
            failures: state.breaker.failures(),
            cooldown: None,
            quarantine: None,
            last_error: state.last_error,
        }
    }
}

impl UpstreamState {
    /// An open breaker comes last: whoever passes it in spite of that passes nothing else.
    fn obstacle(
        &mut self,
        asking: &Asking<'_>,
        shared: &Shared,
        now: Duration,
    ) -> Option<Obstacle> {
        if !self.held_back.is_empty()
            && let Some(wait) = self.held_back.wait(asking.source(shared), now)
        {
            return Some(Obstacle::new(SkipReason::Quarantined, Some(wait)));
        }
        let tokens = asking.tokens();
        if let Some(wait) = self.limits.as_mut().and_then(|l| l.wait(tokens, now)) {
            return Some(Obstacle::new(SkipReason::AtLimit, Some(wait)));
        }
        let wait = self.breaker.wait(now)?;
        Some(Obstacle::breaker(Some(wait)))
    }
}
