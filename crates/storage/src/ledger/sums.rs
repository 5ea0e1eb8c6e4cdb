//! What a batch adds up to, before the database is asked.
//!
//! Maps are ordered, so that rows are locked in one order by all writers.

use std::collections::BTreeMap;
use std::sync::Arc;

use sluice_domain::id::{UpstreamId, UpstreamKeyId};
use sluice_domain::quota::{Amounts, CounterKey};
use sluice_domain::record::{AttemptRecord, NumberedRecord, UsageRecord};
use sluice_domain::usage::{Ending, Stage};
use uuid::Uuid;

use super::kind::{Kind, success};
use super::kind_hash::{KindContent, KindHash};
use crate::text::clean;

/// Records of one kind on their way into the ledger.
pub(crate) struct Entries<'r> {
    /// Any of them, for what they share.
    pub(crate) sample: &'r UsageRecord,
    pub(crate) records: Vec<&'r NumberedRecord>,
    /// Decided in the transaction.
    pub(crate) statement_period: i32,
    pub(crate) requested_model: Arc<str>,
    /// Of the last attempt.
    pub(crate) upstream_model: Option<Arc<str>>,
    /// Of what they share.
    pub(crate) hash: KindHash,
}

impl<'r> Entries<'r> {
    pub(crate) fn new(kind: Kind<'r>, statement_period: i32) -> Self {
        let Kind { sample, records } = kind;
        let last = sample.end.attempts.last();
        let mut entries = Self {
            sample,
            records,
            statement_period,
            requested_model: clean(&sample.open.requested_model),
            upstream_model: last.map(|attempt| clean(&attempt.upstream_model)),
            hash: KindHash::default(),
        };
        entries.hash = entries.content().hash();
        entries
    }

    /// Returns what they share.
    pub(crate) fn content(&self) -> KindContent<'_> {
        let (open, end) = (&self.sample.open, &self.sample.end);
        let last = self.last_attempt();
        KindContent {
            tenant_id: open.payer.tenant_id.as_uuid(),
            user_id: open.payer.user_id.as_uuid(),
            key_id: open.payer.key_id.as_uuid(),
            period: open.period.as_number(),
            statement_period: self.statement_period,
            local_day: open.local_day.0,
            endpoint: open.endpoint.as_str(),
            streams: open.streams,
            requested_model: &self.requested_model,
            upstream_id: last.map(|attempt| attempt.upstream_id.as_uuid()),
            upstream_model: self.upstream_model.as_deref(),
            upstream_key_id: last
                .and_then(|attempt| attempt.upstream_key_id)
                .map(UpstreamKeyId::as_uuid),
            attempt_count: i32::try_from(end.attempts.len()).unwrap_or(i32::MAX),
            attempt_status: success(self.sample)
                .and_then(|attempt| attempt.status)
                .map(i32::from),
            ending: end.ending.as_str(),
            stage: stage_word(end.stage),
            status: i32::from(end.status),
            error_code: end.error_code.as_deref(),
            basis: end.basis.as_str(),
        }
    }

    pub(crate) fn last_attempt(&self) -> Option<&'r AttemptRecord> {
        self.sample.end.attempts.last()
    }

    fn upstream_id(&self) -> Uuid {
        self.last_attempt()
            .map_or(Uuid::nil(), |attempt| attempt.upstream_id.as_uuid())
    }
}

/// The stored word of a stage.
pub(crate) const fn stage_word(stage: Stage) -> &'static str {
    match stage {
        Stage::Held => "held",
        Stage::Dispatched => "dispatched",
        Stage::Relaying => "relaying",
    }
}

/// What one counter is charged.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Charge {
    /// All of it.
    pub(crate) total: Amounts,
    /// The part that was held in the lease of the instance.
    pub(crate) leased: Amounts,
}

/// Charges by counter, in the order in which counters are locked.
pub(crate) type Charges = BTreeMap<CounterKey, Charge>;

/// Adds without the bounds of [`Amounts::plus`]: an overflow must become an amount that no column
/// takes.
pub(crate) fn add(sum: Amounts, more: Amounts) -> Amounts {
    sum.zip(more, i64::saturating_add)
}

/// Sums the charges of records.
pub(crate) fn charges(kinds: &[Kind<'_>]) -> Charges {
    let mut charges = Charges::new();
    for kind in kinds {
        let sum = kind.records.iter().fold(Amounts::ZERO, |sum, numbered| {
            add(sum, numbered.record.charge())
        });
        charge(&mut charges, kind.sample, sum);
    }
    charges
}

/// Returns the charges of one record.
pub(crate) fn charges_of(record: &UsageRecord) -> Charges {
    let mut charges = Charges::new();
    charge(&mut charges, record, record.charge());
    charges
}

fn charge(charges: &mut Charges, sample: &UsageRecord, amount: Amounts) {
    let open = &sample.open;
    for key in open.payer.counters(open.period) {
        let charge = charges.entry(key).or_default();
        charge.total = add(charge.total, amount);
        if open.hold.leased.contains(key.scope.kind) {
            charge.leased = add(charge.leased, amount);
        }
    }
}

/// The key of a daily rollup, in the order of its primary key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DayKey {
    pub(crate) tenant_id: Uuid,
    pub(crate) local_day: i32,
    pub(crate) key_id: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) model: Arc<str>,
    pub(crate) upstream_id: Uuid,
    pub(crate) period: i32,
    pub(crate) statement_period: i32,
}

/// The key of a monthly rollup, in the order of its primary key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MonthKey {
    pub(crate) tenant_id: Uuid,
    pub(crate) period: i32,
    pub(crate) key_id: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) model: Arc<str>,
    pub(crate) upstream_id: Uuid,
    pub(crate) statement_period: i32,
}

/// What a rollup adds up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub(crate) requests: i64,
    pub(crate) failures: i64,
    pub(crate) input: i64,
    pub(crate) cached_input: i64,
    pub(crate) cache_write_input: i64,
    pub(crate) output: i64,
    pub(crate) reasoning_output: i64,
    pub(crate) charge: Amounts,
    pub(crate) excess: Amounts,
}

impl Sums {
    fn of(record: &UsageRecord) -> Self {
        let (end, usage) = (&record.end, &record.end.usage);
        let has_failed = end.ending != Ending::Finished || end.status >= 400;
        Self {
            requests: 1,
            failures: i64::from(has_failed),
            input: usage.input,
            cached_input: usage.cached_input,
            cache_write_input: usage.cache_write_input,
            output: usage.output,
            reasoning_output: usage.reasoning_output,
            charge: record.charge(),
            excess: record.excess(),
        }
    }

    /// An overflow becomes an amount that no rollup takes.
    fn add(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.requests, other.requests),
            (&mut self.failures, other.failures),
            (&mut self.input, other.input),
            (&mut self.cached_input, other.cached_input),
            (&mut self.cache_write_input, other.cache_write_input),
            (&mut self.output, other.output),
            (&mut self.reasoning_output, other.reasoning_output),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.charge = add(self.charge, other.charge);
        self.excess = add(self.excess, other.excess);
    }
}

/// The rollups of a batch, one row per key: the same key twice in one statement is an error on
/// PostgreSQL.
pub(crate) struct Rollups {
    pub(crate) daily: Vec<(DayKey, Sums)>,
    pub(crate) monthly: Vec<(MonthKey, Sums)>,
}

pub(crate) fn rollups(batch: &[Entries<'_>]) -> Rollups {
    let mut daily: BTreeMap<DayKey, Sums> = BTreeMap::new();
    for entries in batch {
        let (open, payer) = (&entries.sample.open, &entries.sample.open.payer);
        let key = DayKey {
            tenant_id: payer.tenant_id.as_uuid(),
            local_day: open.local_day.0,
            key_id: payer.key_id.as_uuid(),
            user_id: payer.user_id.as_uuid(),
            model: Arc::clone(&entries.requested_model),
            upstream_id: entries.upstream_id(),
            period: open.period.as_number(),
            statement_period: entries.statement_period,
        };
        let sums = daily.entry(key).or_default();
        for numbered in &entries.records {
            sums.add(&Sums::of(&numbered.record));
        }
    }
    let mut monthly: BTreeMap<MonthKey, Sums> = BTreeMap::new();
    for (day, sums) in &daily {
        let key = MonthKey {
            tenant_id: day.tenant_id,
            period: day.period,
            key_id: day.key_id,
            user_id: day.user_id,
            model: Arc::clone(&day.model),
            upstream_id: day.upstream_id,
            statement_period: day.statement_period,
        };
        monthly.entry(key).or_default().add(sums);
    }
    Rollups {
        daily: daily.into_iter().collect(),
        monthly: monthly.into_iter().collect(),
    }
}

/// The upstream of a stored rollup; the nil UUID stands for none.
pub(crate) fn upstream_of_rollup(id: Uuid) -> Option<UpstreamId> {
    (!id.is_nil()).then(|| UpstreamId::from_uuid(id))
}
