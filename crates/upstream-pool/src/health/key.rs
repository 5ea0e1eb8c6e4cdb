//! The health of one upstream key.

use std::sync::Arc;
use std::time::Duration;

use sluice_domain::pool::{BreakerPolicy, SkipReason, UpstreamLimits};

use super::breaker::{Breaker, State, Ticket, Verdict};
use super::cooldown::Cooldown;
use super::evidence::Source;
use super::limits::{Limits, Place};
use super::sync::{AtomicBool, Mutex, Ordering};
use super::{Approach, Obstacle, Standing};
use crate::error::ErrorClass;

/// What is known of one upstream key, shared by all threads and all routing tables.
#[derive(Debug)]
pub(crate) struct KeyHealth {
    /// Whether the state has to be looked at: false where nothing is wrong and nothing is limited.
    is_special: AtomicBool,
    state: Mutex<KeyState>,
}

#[derive(Debug)]
struct KeyState {
    name: Arc<str>,
    policy: BreakerPolicy,
    breaker: Breaker,
    cooldown: Cooldown,
    /// Why the provider refuses the key; until an admin acts.
    quarantine: Option<ErrorClass>,
    limits: Option<Limits>,
    last_error: Option<ErrorClass>,
}

/// The leave of one attempt to use a key.
#[derive(Debug)]
#[must_use = "it must be ended"]
pub(crate) struct KeyLeave {
    pub(super) ticket: Ticket,
    pub(super) place: Option<Place>,
}

impl KeyHealth {
    pub(crate) fn new(name: Arc<str>, policy: BreakerPolicy, limits: UpstreamLimits) -> Self {
        let limits = Limits::new(limits);
        Self {
            is_special: AtomicBool::new(limits.is_some()),
            state: Mutex::new(KeyState {
                name,
                policy,
                breaker: Breaker::new(),
                cooldown: Cooldown::default(),
                quarantine: None,
                limits,
                last_error: None,
            }),
        }
    }

    /// Takes over settings; `forgives` ends a quarantine and closes the breaker.
    pub(crate) fn configure(
        &self,
        name: &Arc<str>,
        policy: BreakerPolicy,
        limits: UpstreamLimits,
        forgives: bool,
    ) {
        let mut state = self.state.lock();
        state.name = Arc::clone(name);
        state.policy = policy;
        match &mut state.limits {
            Some(known) if limits != UpstreamLimits::default() => known.set(limits),
            known => *known = Limits::new(limits),
        }
        if forgives {
            state.quarantine = None;
            state.breaker.close();
        }
        // It is looked at once and then found to be fine.
        self.is_special.store(true, Ordering::Release);
    }

    /// Returns what stands against a request with so many tokens now.
    pub(crate) fn obstacle(&self, tokens: u64, now: Duration) -> Option<Obstacle> {
        if !self.is_special.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state.lock();
        let obstacle = state.obstacle(tokens, now);
        if obstacle.is_none() {
            self.is_special
                .store(state.is_special(now), Ordering::Release);
        }
        obstacle
    }

    /// Lets an attempt use the key. A forced one passes a breaker whose time is not over.
    ///
    /// # Errors
    /// What stands against it, which may have come up since it was asked for.
    pub(crate) fn begin(
        &self,
        tokens: u64,
        approach: Approach,
        now: Duration,
    ) -> Result<KeyLeave, Obstacle> {
        let mut state = self.state.lock();
        let obstacle = state.obstacle(tokens, now);
        match obstacle {
            Some(obstacle) if !obstacle.is_passed_by(approach) => {
                return Err(obstacle);
            }
            _ => {}
        }
        let ticket = if approach == Approach::Forced {
            state.breaker.begin_forced(now)
        } else {
            state.breaker.begin(now)
        };
        let Some(ticket) = ticket else {
            return Err(Obstacle::breaker(state.breaker.wait(now)));
        };
        let place = state.limits.as_mut().map(|limits| limits.take(tokens, now));
        Ok(KeyLeave { ticket, place })
    }

    pub(super) fn succeed(&self, ticket: Ticket, now: Duration) -> bool {
        let mut state = self.state.lock();
        state.cooldown.served();
        let has_closed = state.breaker.succeed(ticket, now);
        self.settle(&state, now);
        has_closed
    }

    pub(super) fn pass_over(&self, ticket: Ticket, now: Duration) -> bool {
        let mut state = self.state.lock();
        let has_closed = state.breaker.pass_over(ticket);
        self.settle(&state, now);
        has_closed
    }

    pub(super) fn abandon(&self, ticket: Ticket, now: Duration) {
        let mut state = self.state.lock();
        state.breaker.abandon(ticket);
        self.settle(&state, now);
    }

    pub(super) fn fail(
        &self,
        ticket: Ticket,
        class: ErrorClass,
        source: Source,
        now: Duration,
        luck: f64,
    ) -> Verdict {
        let mut state = self.state.lock();
        state.last_error = Some(class);
        let policy = state.policy;
        let verdict = state.breaker.fail(ticket, source, &policy, now, luck);
        self.settle(&state, now);
        verdict
    }

    /// Lets the key rest after a limit signal. Returns for how long, and whether it did not yet.
    pub(super) fn rest(
        &self,
        hint: Option<Duration>,
        now: Duration,
        luck: f64,
    ) -> (Duration, bool) {
        let mut state = self.state.lock();
        state.last_error = Some(ErrorClass::RateLimited);
        let is_new = state.cooldown.wait(now).is_none();
        let rest = state.cooldown.rest(hint, now, luck);
        self.settle(&state, now);
        (rest, is_new)
    }

    /// Leaves the key alone until an admin acts. Returns whether that is new.
    pub(super) fn quarantine(&self, class: ErrorClass, now: Duration) -> bool {
        let mut state = self.state.lock();
        state.last_error = Some(class);
        let is_new = state.quarantine.replace(class).is_none();
        self.settle(&state, now);
        is_new
    }

    /// Returns whether the key may be shown to its provider without a request.
    pub(crate) fn may_probe(&self, now: Duration) -> bool {
        let state = self.state.lock();
        state.quarantine.is_none() && state.cooldown.wait(now).is_none()
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_special.load(Ordering::Acquire) && self.state.lock().breaker.is_open()
    }

    pub(super) fn hasten(&self, now: Duration) -> bool {
        self.state.lock().breaker.hasten(now)
    }

    pub(super) fn give_back(&self, place: Place, tokens: Option<u64>, now: Duration) {
        let mut state = self.state.lock();
        if let Some(limits) = &mut state.limits {
            limits.give_back(place, tokens, now);
        }
    }

    fn settle(&self, state: &KeyState, now: Duration) {
        self.is_special
            .store(state.is_special(now), Ordering::Release);
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
            cooldown: state.cooldown.wait(now),
            quarantine: state.quarantine,
            last_error: state.last_error,
        }
    }
}

impl KeyState {
    fn is_special(&self, now: Duration) -> bool {
        self.limits.is_some()
            || self.quarantine.is_some()
            || self.breaker.state() != State::Closed
            || self.cooldown.wait(now).is_some()
    }

    /// An open breaker comes last: whoever passes it in spite of that passes nothing else.
    fn obstacle(&mut self, tokens: u64, now: Duration) -> Option<Obstacle> {
        if self.quarantine.is_some() {
            return Some(Obstacle::new(SkipReason::Quarantined, None));
        }
        if let Some(wait) = self.cooldown.wait(now) {
            return Some(Obstacle::new(SkipReason::Cooldown, Some(wait)));
        }
        if let Some(wait) = self.limits.as_mut().and_then(|l| l.wait(tokens, now)) {
            return Some(Obstacle::new(SkipReason::AtLimit, Some(wait)));
        }
        let wait = self.breaker.wait(now)?;
        Some(Obstacle::breaker(Some(wait)))
    }
}
