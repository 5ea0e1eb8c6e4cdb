//! Whether a server is asked: a breaker on answers that are late or missing.
//!
//! Decisions never find out whether a server is well again: one probe at a time does, which nobody
//! waits for. So a server that is slow costs each decision nothing once the gate is open.

use std::time::Duration;

use super::sync::Mutex;

/// What one missing answer weighs, where an answer in time weighs one: a server of which more than
/// one answer in eleven is late is as good as away.
const FAILURE_WEIGHT: u32 = 10;
/// The weight at which the gate opens: three missing answers in a row.
const OPENING_WEIGHT: u32 = 30;
/// How long an open gate waits for its probe at first.
const FIRST_REST: Duration = Duration::from_millis(500);
/// How long at most, when it opens again and again.
const LONGEST_REST: Duration = Duration::from_secs(4);
/// A gate that was closed for so long begins anew.
const FORGIVEN_AFTER: Duration = Duration::from_secs(10);

/// Lets decisions through to a server while it answers in time. It knows no clock: `now` is the
/// time since some start.
#[derive(Debug)]
pub(super) struct Gate(Mutex<State>);

#[derive(Debug)]
struct State {
    phase: Phase,
    /// How often the phase has changed. What began before the last change does not count any more.
    generation: u64,
    weight: u32,
    rest: Duration,
    closed_at: Duration,
}

/// In the words of breakers: closed is when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Decisions pass.
    Closed,
    /// None does before a probe has succeeded, which is due at that time.
    Open { until: Duration },
    /// One probe is finding out.
    HalfOpen,
}

/// The leave of one decision.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pass(u64);

/// The leave of one probe.
#[derive(Debug, Clone, Copy)]
#[must_use = "a probe that is not ended keeps the gate half open"]
pub(super) struct Probe(u64);

impl Gate {
    /// Returns a gate that is open, with a probe that is due: nothing is known yet.
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            phase: Phase::Open {
                until: Duration::ZERO,
            },
            generation: 0,
            weight: 0,
            rest: FIRST_REST,
            closed_at: Duration::ZERO,
        }))
    }

    /// Lets a decision pass, or tells it not to ask.
    pub(super) fn enter(&self) -> Option<Pass> {
        let state = self.0.lock();
        (state.phase == Phase::Closed).then_some(Pass(state.generation))
    }

    /// Notes an answer that came in time.
    pub(super) fn succeed(&self, pass: Pass) {
        let mut state = self.0.lock();
        if state.generation == pass.0 {
            state.weight = state.weight.saturating_sub(1);
        }
    }

    /// Notes that an answer was late or missing. Returns whether the gate opened.
    pub(super) fn fail(&self, pass: Pass, now: Duration) -> bool {
        let mut state = self.0.lock();
        if state.generation != pass.0 {
            return false;
        }
        state.weight += FAILURE_WEIGHT;
        let opens = state.weight >= OPENING_WEIGHT;
        if opens {
            state.open_for_longer(now);
        }
        opens
    }

    /// Opens the gate at once: the connection is gone. It is soon probed, however often that
    /// happens: without a connection nobody waits.
    pub(super) fn open(&self, now: Duration) {
        let mut state = self.0.lock();
        if state.phase == Phase::Closed {
            let until = now + FIRST_REST;
            state.change(Phase::Open { until });
        }
    }

    /// Returns the leave to probe, when that is due and nobody else does.
    pub(super) fn begin_probe(&self, now: Duration) -> Option<Probe> {
        let mut state = self.0.lock();
        match state.phase {
            Phase::Open { until } if until <= now => {
                state.change(Phase::HalfOpen);
                Some(Probe(state.generation))
            }
            _ => None,
        }
    }

    /// Ends a probe. The gate closes when it `succeeded`.
    pub(super) fn end_probe(&self, probe: Probe, succeeded: bool, now: Duration) {
        let mut state = self.0.lock();
        if state.generation != probe.0 {
            return;
        }
        if succeeded {
            state.weight = 0;
            state.closed_at = now;
            state.change(Phase::Closed);
        } else {
            // The first probe that fails does not make the next one later: the sooner it is known
            // that a server is back, the better.
            let until = now + FIRST_REST;
            state.change(Phase::Open { until });
        }
    }

    /// Returns how long it is until a probe is due; `None` while none will be.
    pub(super) fn probe_in(&self, now: Duration) -> Option<Duration> {
        match self.0.lock().phase {
            Phase::Open { until } => Some(until.saturating_sub(now)),
            Phase::Closed | Phase::HalfOpen => None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.0.lock().phase == Phase::Closed
    }
}

impl State {
    fn open_for_longer(&mut self, now: Duration) {
        let was_closed_for = now.saturating_sub(self.closed_at);
        self.rest = if was_closed_for > FORGIVEN_AFTER {
            FIRST_REST
        } else {
            (self.rest * 2).min(LONGEST_REST)
        };
        let until = now + self.rest;
        self.change(Phase::Open { until });
    }

    fn change(&mut self, phase: Phase) {
        self.phase = phase;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Gate {
        let gate = Gate::new();
        let probe = gate.begin_probe(Duration::ZERO).unwrap();
        gate.end_probe(probe, true, Duration::ZERO);
        gate
    }

    fn fail(gate: &Gate, now: Duration) {
        let pass = gate.enter().unwrap();
        while !gate.fail(pass, now) {}
    }

    const LATER: Duration = Duration::from_mins(1);

    #[test]
    fn a_new_gate_lets_nothing_pass_before_a_probe() {
        let gate = Gate::new();
        assert!(gate.enter().is_none());
        let probe = gate.begin_probe(Duration::ZERO).unwrap();
        assert!(gate.begin_probe(LATER).is_none(), "one probe at a time");
        assert!(gate.enter().is_none());
        gate.end_probe(probe, true, Duration::ZERO);
        assert!(gate.enter().is_some());
    }

    #[test]
    fn three_missing_answers_in_a_row_open_it() {
        let gate = closed();
        let pass = gate.enter().unwrap();
        assert!(!gate.fail(pass, LATER));
        assert!(!gate.fail(pass, LATER));
        assert!(gate.fail(pass, LATER));
        assert!(gate.enter().is_none());
        assert!(!gate.fail(pass, LATER), "what began before says nothing");
    }

    #[test]
    fn few_late_answers_among_many_do_not_open_it_and_many_do() {
        for (one_in, opens) in [(20, false), (8, true)] {
            let gate = closed();
            let has_opened = (0..1_000).any(|n| {
                let pass = gate.enter().unwrap();
                if n % one_in == 0 {
                    gate.fail(pass, LATER)
                } else {
                    gate.succeed(pass);
                    false
                }
            });
            assert_eq!(has_opened, opens, "one in {one_in} is late");
        }
    }

    #[test]
    fn one_that_opens_again_and_again_rests_longer_up_to_a_bound() {
        let gate = closed();
        let mut now = LATER;
        let mut rests = Vec::new();
        for _ in 0..6 {
            fail(&gate, now);
            let rest = gate.probe_in(now).unwrap();
            rests.push(rest.as_millis());
            now += rest;
            let probe = gate.begin_probe(now).unwrap();
            gate.end_probe(probe, true, now);
        }
        assert_eq!(rests, [500, 1_000, 2_000, 4_000, 4_000, 4_000]);
        fail(&gate, now + LATER);
        assert_eq!(gate.probe_in(now + LATER).unwrap().as_millis(), 500);
    }
}

#[cfg(all(test, sluice_loom))]
mod loom_tests;
