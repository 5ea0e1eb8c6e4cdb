//! What stood in the way of a request and what went wrong, and what of it the client is told.

use std::time::Duration;

use sluice_domain::pool::{SkipReason, SkippedTargets};

use crate::attempt::Failure;
use crate::error::{Attempts, DispatchError, ErrorClass, SendStage};
use crate::health::Obstacle;

/// Gathers obstacles and failures of one request.
#[derive(Default)]
pub(super) struct Advice {
    /// Of the last look at all lanes.
    seen: Obstacles,
    /// Of lanes that were about to be tried.
    refused: Obstacles,
    /// The failure that says most.
    best: Option<Box<Failure>>,
}

/// What stood in the way of lanes that were not tried.
#[derive(Debug, Default)]
struct Obstacles {
    /// The shortest rest or wait for a place.
    rest: Option<Duration>,
    /// The shortest wait for a breaker, or whatever else passes by itself.
    trouble: Option<Duration>,
    is_quarantined: bool,
}

impl Obstacles {
    fn add(&mut self, obstacle: Obstacle) {
        let wait = obstacle.wait;
        let shorter = |known: Option<Duration>| {
            let wait = wait.unwrap_or(Duration::MAX);
            Some(known.map_or(wait, |known| known.min(wait)))
        };
        match obstacle.reason {
            SkipReason::Cooldown | SkipReason::AtLimit => self.rest = shorter(self.rest),
            SkipReason::Quarantined if wait.is_none() => self.is_quarantined = true,
            SkipReason::Quarantined | SkipReason::BreakerOpen | SkipReason::Throttled => {
                self.trouble = shorter(self.trouble);
            }
        }
    }

    fn and(self, other: &Self) -> Self {
        let shorter = |a: Option<Duration>, b| a.into_iter().chain(b).min();
        Self {
            rest: shorter(self.rest, other.rest),
            trouble: shorter(self.trouble, other.trouble),
            is_quarantined: self.is_quarantined || other.is_quarantined,
        }
    }
}

impl Advice {
    /// Forgets what was seen, before all lanes are looked at again.
    pub(super) fn look_again(&mut self) {
        self.seen = Obstacles::default();
    }

    /// Notes what stands in the way of a lane that was looked at.
    pub(super) fn saw(&mut self, obstacle: Obstacle) {
        self.seen.add(obstacle);
    }

    /// Notes what stood in the way of a lane that was chosen.
    pub(super) fn was_refused(&mut self, obstacle: Obstacle) {
        self.refused.add(obstacle);
    }

    /// Keeps the failure that says most to the client.
    pub(super) fn failed(&mut self, failure: Box<Failure>) {
        let Some(best) = &mut self.best else {
            self.best = Some(failure);
            return;
        };
        let (old, new) = (usefulness(best.class), usefulness(failure.class));
        let is_shorter = failure.retry_after < best.retry_after;
        let is_better = if best.class == ErrorClass::RateLimited {
            new == old && is_shorter
        } else {
            new == old
        };
        if new > old || is_better {
            *best = failure;
        }
    }

    /// Returns what the client is told: of all failures the one that says most, unless waiting for
    /// what was passed over is better advice.
    pub(super) fn into_error(
        self,
        attempts: Attempts,
        skipped_targets: SkippedTargets,
    ) -> Box<DispatchError> {
        let Obstacles {
            rest,
            trouble,
            is_quarantined,
        } = self.seen.and(&self.refused);
        let skipped = [
            rest.map(|wait| (ErrorClass::RateLimited, Some(wait))),
            trouble.map(|wait| (ErrorClass::NoTarget, Some(wait))),
            is_quarantined.then_some((ErrorClass::Auth, None)),
        ];
        let skipped = skipped.into_iter().flatten().next();
        let mut error = DispatchError {
            class: ErrorClass::NoTarget,
            stage: SendStage::NotSent,
            retry_after: None,
            refusal: None,
            attempts,
            skipped: skipped_targets,
            cause: None,
        };
        let is_failure_useful = |failure: &Failure| {
            skipped.is_none_or(|(class, _)| usefulness(failure.class) >= usefulness(class))
        };
        if let Some(failure) = self.best.filter(|failure| is_failure_useful(failure)) {
            let failure = *failure;
            error.class = failure.class;
            error.stage = failure.stage;
            error.retry_after = failure.retry_after;
            error.refusal = failure.refusal;
            error.cause = failure.cause;
            if failure.class == ErrorClass::RateLimited
                && let Some(rest) = rest
            {
                let told = error.retry_after.unwrap_or(Duration::MAX);
                error.retry_after = Some(told.min(rest));
            }
        } else if let Some((class, wait)) = skipped {
            error.class = class;
            error.retry_after = wait.filter(|wait| *wait < Duration::MAX);
        }
        Box::new(error)
    }
}

/// How much the client can make of an answer of this class.
const fn usefulness(class: ErrorClass) -> u8 {
    match class {
        // Only the client can mend it.
        ErrorClass::CallerFault | ErrorClass::ContextLength => 9,
        // Waiting helps, and how long is known.
        ErrorClass::RateLimited => 8,
        ErrorClass::Status => 7,
        ErrorClass::Timeout => 6,
        ErrorClass::Reset | ErrorClass::Cut | ErrorClass::Protocol => 5,
        ErrorClass::Connect => 4,
        ErrorClass::NoTarget => 3,
        ErrorClass::Auth
        | ErrorClass::Forbidden
        | ErrorClass::Funds
        | ErrorClass::Misconfigured => 2,
        ErrorClass::Internal => 1,
    }
}
