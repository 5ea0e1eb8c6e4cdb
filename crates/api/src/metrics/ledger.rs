//! The figures of the ledger's own work: kept by the ledger, taken over when metrics are asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sluice_accounting::LedgerStats;
use sluice_storage::resolve::Attention;

type Total = Counter<u64, AtomicU64>;

type NowFigure = (&'static str, &'static str, fn(&LedgerStats) -> i64);
type TotalFigure = (&'static str, &'static str, fn(&LedgerStats) -> u64);

const NOW: [NowFigure; 2] = [
    (
        "sluice_ledger_open_holds",
        "Requests that are admitted and have not ended",
        LedgerStats::open_holds,
    ),
    (
        "sluice_ledger_waiting_records",
        "Records that have ended and are not in the database yet",
        LedgerStats::waiting,
    ),
];

const TOTAL: [TotalFigure; 7] = [
    (
        "sluice_ledger_posted_records",
        "Records that the database took in",
        LedgerStats::posted,
    ),
    (
        "sluice_ledger_batches",
        "Transactions that took records in",
        LedgerStats::batches,
    ),
    (
        "sluice_ledger_lease_moves",
        "Transactions that took or returned leases of quotas",
        LedgerStats::lease_moves,
    ),
    (
        "sluice_ledger_failures",
        "Transactions of the ledger that failed",
        LedgerStats::failures,
    ),
    (
        "sluice_ledger_quarantined_records",
        "Records that the database refused and that were set aside",
        LedgerStats::quarantined,
    ),
    (
        "sluice_ledger_recovered_records",
        "Requests that a crash cut off and whose records were rebuilt from the journal at the start",
        LedgerStats::recovered,
    ),
    (
        "sluice_ledger_resyncs",
        "How often the database was found to have gone back",
        LedgerStats::resyncs,
    ),
];

type AttentionFigure = (&'static str, &'static str, fn(&Attention) -> i64);

/// Of all instances, as the database has it.
const ATTENTION: [AttentionFigure; 6] = [
    (
        "sluice_ledger_silent_instances",
        "Instances that have leases and were not heard of for five minutes",
        |attention| attention.silent,
    ),
    (
        "sluice_ledger_settled_instances",
        "Instances that an operator has settled and whose journals have not come back",
        |attention| attention.settled,
    ),
    (
        "sluice_ledger_exposed_tokens",
        "Tokens that count as used for instances that an operator has settled",
        |attention| attention.exposed_tokens,
    ),
    (
        "sluice_ledger_over_tokens",
        "Tokens by which counters have exceeded their caps",
        |attention| attention.over_tokens,
    ),
    (
        "sluice_ledger_over_nano",
        "Money by which counters have exceeded their caps, in billionths",
        |attention| attention.over_nano,
    ),
    (
        "sluice_ledger_quarantine",
        "Records of all instances that were set aside",
        |attention| attention.quarantined,
    ),
];

/// The figures as the registry knows them.
#[derive(Debug)]
pub(super) struct LedgerFigures {
    now: [Gauge; NOW.len()],
    total: [Total; TOTAL.len()],
    attention: [Gauge; ATTENTION.len()],
}

impl LedgerFigures {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            now: NOW.map(|(name, help, _)| {
                let gauge = Gauge::default();
                registry.register(name, help, gauge.clone());
                gauge
            }),
            total: TOTAL.map(|(name, help, _)| {
                let total = Total::default();
                registry.register(name, help, total.clone());
                total
            }),
            attention: ATTENTION.map(|(name, help, _)| {
                let gauge = Gauge::default();
                registry.register(name, help, gauge.clone());
                gauge
            }),
        }
    }

    pub(super) fn note_attention(&self, attention: &Attention) {
        for (gauge, (_, _, read)) in self.attention.iter().zip(ATTENTION) {
            gauge.set(read(attention));
        }
    }

    pub(super) fn take_over(&self, stats: &LedgerStats) {
        for (gauge, (_, _, read)) in self.now.iter().zip(NOW) {
            gauge.set(read(stats));
        }
        for (total, (_, _, read)) in self.total.iter().zip(TOTAL) {
            total.inner().store(read(stats), Ordering::Relaxed);
        }
    }
}
