//! The figures of upstreams: kept by their health, taken over when metrics are asked for.

use std::sync::atomic::AtomicU64;

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sluice_upstream_pool::{BreakerReport, KeyReport, UpstreamCounts, UpstreamReport};

type Total = Counter<u64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabel {
    upstream: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    upstream: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyStateLabel {
    upstream: String,
    state: &'static str,
}

type TotalFigure = (&'static str, &'static str, fn(&UpstreamCounts) -> u64);

const TOTAL: [TotalFigure; 5] = [
    (
        "sluice_upstream_retries",
        "Attempts that repeated a failed one at the same upstream",
        |counts| counts.retries,
    ),
    (
        "sluice_upstream_retry_budget_exhausted",
        "Repetitions that the budget of the upstream did not allow",
        |counts| counts.budget_exhausted,
    ),
    (
        "sluice_upstream_cooldowns",
        "Rests of upstream keys after a limit signal",
        |counts| counts.cooldowns,
    ),
    (
        "sluice_upstream_quarantines",
        "Upstream keys that their provider refused and that are not used until they are changed",
        |counts| counts.quarantines,
    ),
    (
        "sluice_upstream_breaker_openings",
        "How often a breaker of the upstream or of a key opened",
        |counts| counts.openings,
    ),
];

/// In which state an upstream key is.
const KEY_STATES: [&str; 4] = ["ready", "cooldown", "breaker_open", "quarantined"];

#[derive(Debug)]
pub(super) struct UpstreamFigures {
    /// Nobody else takes figures over, or reads them, meanwhile.
    turn: Mutex<()>,
    attempts: Family<OutcomeLabel, Total>,
    probes: Family<OutcomeLabel, Total>,
    breakers: Family<UpstreamLabel, Gauge>,
    keys: Family<KeyStateLabel, Gauge>,
    totals: [Family<UpstreamLabel, Total>; TOTAL.len()],
}

impl UpstreamFigures {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let attempts = Family::default();
        registry.register(
            "sluice_upstream_attempts",
            "Attempts, by upstream and what came of them",
            attempts.clone(),
        );
        let probes = Family::default();
        registry.register(
            "sluice_upstream_probes",
            "Probes without a request, by upstream and what they found",
            probes.clone(),
        );
        let breakers = Family::default();
        registry.register(
            "sluice_upstream_breaker_state",
            "The breaker of the upstream: 0 closed, 1 half open, 2 open",
            breakers.clone(),
        );
        let keys = Family::default();
        registry.register(
            "sluice_upstream_keys",
            "Active upstream keys, by upstream and state",
            keys.clone(),
        );
        let totals = TOTAL.map(|(name, help, _)| {
            let family = Family::default();
            registry.register(name, help, family.clone());
            family
        });
        Self {
            turn: Mutex::new(()),
            attempts,
            probes,
            breakers,
            keys,
            totals,
        }
    }

    /// Takes over how the upstreams stand. What is gone is not shown any more. The figures stay as
    /// they are until the guard is dropped.
    pub(super) fn take_over(&self, reports: &[UpstreamReport]) -> MutexGuard<'_, ()> {
        let turn = self.turn.lock();
        self.attempts.clear();
        self.probes.clear();
        self.breakers.clear();
        self.keys.clear();
        self.totals.iter().for_each(Family::clear);
        for report in reports {
            let upstream = || report.name.to_string();
            let label = UpstreamLabel {
                upstream: upstream(),
            };
            for (class, count) in &report.counts.attempts {
                let outcome = class.map_or("ok", |class| class.as_str());
                let label = OutcomeLabel {
                    upstream: upstream(),
                    outcome,
                };
                self.attempts.get_or_create_owned(&label).inc_by(*count);
            }
            for (found, count) in &report.counts.probes {
                let label = OutcomeLabel {
                    upstream: upstream(),
                    outcome: found.as_str(),
                };
                self.probes.get_or_create_owned(&label).inc_by(*count);
            }
            let state = match report.breaker {
                BreakerReport::Closed => 0,
                BreakerReport::HalfOpen => 1,
                BreakerReport::Open => 2,
            };
            self.breakers.get_or_create_owned(&label).set(state);
            for state in KEY_STATES {
                let count = report.keys.iter().filter(|key| state_of(key) == state);
                let label = KeyStateLabel {
                    upstream: upstream(),
                    state,
                };
                let count = i64::try_from(count.count()).unwrap_or(i64::MAX);
                self.keys.get_or_create_owned(&label).set(count);
            }
            for (family, (_, _, read)) in self.totals.iter().zip(TOTAL) {
                family
                    .get_or_create_owned(&label)
                    .inc_by(read(&report.counts));
            }
        }
        turn
    }
}

fn state_of(key: &KeyReport) -> &'static str {
    if key.quarantine.is_some() {
        "quarantined"
    } else if key.cooldown.is_some() {
        "cooldown"
    } else if key.breaker == BreakerReport::Closed {
        "ready"
    } else {
        "breaker_open"
    }
}
