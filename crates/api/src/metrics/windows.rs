//! The figures of window limits: what was decided, and who waited.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sluice_domain::window::{WindowKey, WindowKind, WindowScope};
use sluice_storage::windows::{NodeMode, WindowsStatus};

use crate::windows::QueueOutcome;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabel {
    scope: &'static str,
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabel {
    server: String,
}

type Total = Counter<u64, AtomicU64>;
type TotalFigure = (&'static str, &'static str, fn(&WindowsStatus) -> u64);

const TOTAL: [TotalFigure; 4] = [
    (
        "sluice_window_redis_decisions",
        "Decisions that were made in Redis",
        |status| status.redis_decisions,
    ),
    (
        "sluice_window_local_decisions",
        "Decisions that an instance made by itself although there is a Redis",
        |status| status.local_decisions,
    ),
    (
        "sluice_window_displaced_counters",
        "Counters that had to make room while they still counted; limits.max_counters is too low",
        |status| status.displaced,
    ),
    (
        "sluice_window_lost_corrections",
        "Corrections of tokens that could not be sent to Redis",
        |status| status.lost_corrections,
    ),
];

/// How many scopes, kinds and outcomes there are.
const SCOPES: usize = 6;
const KINDS: usize = 4;
const OUTCOMES: usize = 3;

#[derive(Debug, Clone, Copy)]
enum Outcome {
    Admitted,
    Refused,
    DryRun,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Refused => "refused",
            Self::DryRun => "dry_run",
        }
    }
}

/// The figures, with handles that are made once.
#[derive(Debug)]
pub(crate) struct WindowFigures {
    decisions: Family<DecisionLabel, Counter>,
    handles: [[[OnceLock<Counter>; OUTCOMES]; KINDS]; SCOPES],
    waits: Family<QueueLabel, Counter>,
    totals: [Total; TOTAL.len()],
    counters: Gauge,
    servers: Family<ServerLabel, Gauge>,
    /// Requests that wait for room.
    pub(crate) queued: Gauge,
}

impl WindowFigures {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let decisions = Family::default();
        registry.register(
            "sluice_window_decisions",
            "What window limits said to requests; `dry_run` would have been refused",
            decisions.clone(),
        );
        let waits = Family::default();
        registry.register(
            "sluice_window_waits",
            "Requests that were to wait for room in their window limits, and what came of it",
            waits.clone(),
        );
        let queued = Gauge::default();
        registry.register(
            "sluice_window_queued",
            "Requests that wait for room in their window limits",
            queued.clone(),
        );
        let counters = Gauge::default();
        registry.register(
            "sluice_window_counters",
            "Counters of window limits in memory",
            counters.clone(),
        );
        let servers = Family::default();
        registry.register(
            "sluice_window_redis_up",
            "Whether decisions are made in a Redis server, 1 or 0",
            servers.clone(),
        );
        Self {
            totals: TOTAL.map(|(name, help, _)| {
                let total = Total::default();
                registry.register(name, help, total.clone());
                total
            }),
            counters,
            servers,
            decisions,
            handles: [const { [const { [const { OnceLock::new() }; OUTCOMES] }; KINDS] }; SCOPES],
            waits,
            queued,
        }
    }

    /// Takes over how the counters stand.
    pub(super) fn take_over(&self, status: &WindowsStatus) {
        for (total, (_, _, read)) in self.totals.iter().zip(TOTAL) {
            total.inner().store(read(status), Ordering::Relaxed);
        }
        let counters = i64::try_from(status.counters).unwrap_or(i64::MAX);
        self.counters.set(counters);
        // Servers come and go.
        self.servers.clear();
        for node in &status.nodes {
            let label = ServerLabel {
                server: node.server.clone(),
            };
            let is_up = i64::from(node.mode == NodeMode::Redis);
            self.servers.get_or_create_owned(&label).set(is_up);
        }
    }

    /// Counts a limit that had room.
    pub(crate) fn admitted(&self, key: &WindowKey) {
        self.count(key, Outcome::Admitted);
    }

    /// Counts a limit that refused.
    pub(crate) fn refused(&self, key: &WindowKey) {
        self.count(key, Outcome::Refused);
    }

    /// Counts a limit in dry run that would have refused.
    pub(crate) fn dry_run(&self, key: &WindowKey) {
        self.count(key, Outcome::DryRun);
    }

    fn count(&self, key: &WindowKey, outcome: Outcome) {
        let (scope, kind): (WindowScope, WindowKind) = (key.subject.scope(), key.kind);
        let handle = self
            .handles
            .get(scope as usize)
            .and_then(|kinds| kinds.get(kind as usize))
            .and_then(|outcomes| outcomes.get(outcome as usize));
        if let Some(handle) = handle {
            let label = || DecisionLabel {
                scope: scope.as_str(),
                kind: kind.as_str(),
                outcome: outcome.as_str(),
            };
            handle
                .get_or_init(|| self.decisions.get_or_create_owned(&label()))
                .inc();
        }
    }

    /// Counts a request that was to wait.
    pub(crate) fn waited(&self, outcome: QueueOutcome) {
        let outcome = match outcome {
            QueueOutcome::Admitted => "admitted",
            QueueOutcome::Refused => "refused",
            QueueOutcome::Left => "left",
            QueueOutcome::Full => "full",
        };
        self.waits
            .get_or_create_owned(&QueueLabel { outcome })
            .inc();
    }
}

#[cfg(test)]
mod tests {
    use sluice_domain::window::WindowSubject;

    use super::*;

    #[test]
    fn every_scope_kind_and_outcome_has_a_handle() {
        let mut registry = Registry::default();
        let figures = WindowFigures::register(&mut registry);
        for kind in WindowKind::ALL {
            let key = WindowKey {
                subject: WindowSubject::Instance,
                kind,
            };
            figures.admitted(&key);
            figures.refused(&key);
            figures.dry_run(&key);
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        // The instance is the last scope.
        assert_eq!(WindowScope::Instance as usize, SCOPES - 1);
        assert_eq!(
            text.matches("scope=\"instance\"").count(),
            KINDS * OUTCOMES,
            "{text}"
        );
    }
}
