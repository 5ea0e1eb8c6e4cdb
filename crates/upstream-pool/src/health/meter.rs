//! What happened at an upstream, counted for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::probing::ProbeFinding;
use crate::error::ErrorClass;

/// Counts since the process started, or since the upstream was led somewhere else.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    served: AtomicU64,
    failed: [AtomicU64; ErrorClass::COUNT],
    retries: AtomicU64,
    budget_exhausted: AtomicU64,
    cooldowns: AtomicU64,
    quarantines: AtomicU64,
    openings: AtomicU64,
    probes: [AtomicU64; ProbeFinding::ALL.len()],
}

/// What a [`Meter`] shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Attempts, by what came of them; `None` is success. Classes that did not occur are left out.
    pub attempts: Vec<(Option<ErrorClass>, u64)>,
    /// Attempts that repeated a failed one at the same upstream.
    pub retries: u64,
    /// Repetitions that the budget did not allow.
    pub budget_exhausted: u64,
    /// Rests that began after a limit signal.
    pub cooldowns: u64,
    /// Keys that were set aside until an admin acts.
    pub quarantines: u64,
    /// How often a breaker of the upstream or of a key opened.
    pub openings: u64,
    /// Probes, by what they found. Findings that did not occur are left out.
    pub probes: Vec<(ProbeFinding, u64)>,
}

impl Meter {
    pub(super) fn served(&self) {
        add(&self.served);
    }

    pub(super) fn failed(&self, class: ErrorClass) {
        if let Some(count) = self.failed.get(class as usize) {
            add(count);
        }
    }

    pub(super) fn retried(&self) {
        add(&self.retries);
    }

    pub(super) fn budget_exhausted(&self) {
        add(&self.budget_exhausted);
    }

    pub(super) fn cooled_down(&self) {
        add(&self.cooldowns);
    }

    pub(super) fn quarantined(&self) {
        add(&self.quarantines);
    }

    pub(super) fn opened(&self) {
        add(&self.openings);
    }

    pub(super) fn probed(&self, found: ProbeFinding) {
        if let Some(count) = self.probes.get(found as usize) {
            add(count);
        }
    }

    /// Returns how many probes there were.
    pub(super) fn probes(&self) -> usize {
        let all: u64 = self.probes.iter().map(|n| n.load(Ordering::Relaxed)).sum();
        usize::try_from(all).unwrap_or(0)
    }

    pub(super) fn read(&self) -> UpstreamCounts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let failed = ErrorClass::ALL
            .iter()
            .zip(&self.failed)
            .map(|(class, count)| (Some(*class), get(count)));
        UpstreamCounts {
            attempts: std::iter::once((None, get(&self.served)))
                .chain(failed)
                .filter(|(_, count)| *count > 0)
                .collect(),
            retries: get(&self.retries),
            budget_exhausted: get(&self.budget_exhausted),
            cooldowns: get(&self.cooldowns),
            quarantines: get(&self.quarantines),
            openings: get(&self.openings),
            probes: ProbeFinding::ALL
                .into_iter()
                .zip(&self.probes)
                .map(|(found, count)| (found, get(count)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
