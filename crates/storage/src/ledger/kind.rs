//! Records that differ in their numbers alone: what they share is bound and summed once.
//!
//! Most records of a batch come from a few programs that ask the same model with the same key.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use foldhash::fast::RandomState;
use sluice_domain::id::{UpstreamId, UpstreamKeyId};
use sluice_domain::quota::{Payer, ScopeSet};
use sluice_domain::record::{AttemptRecord, NumberedRecord, UsageRecord};
use sluice_domain::route::Endpoint;
use sluice_domain::time::{LocalDay, Month};
use sluice_domain::usage::{Basis, Ending, Stage};

/// Everything that decides the row of `record_kinds` of a record, and who is charged how.
#[derive(PartialEq, Eq)]
struct Common<'r> {
    payer: Payer,
    period: Month,
    local_day: LocalDay,
    endpoint: Endpoint,
    streams: bool,
    requested_model: &'r str,
    upstream: Option<(UpstreamId, Option<UpstreamKeyId>, &'r str)>,
    attempts: usize,
    /// Of the last attempt, when it succeeded.
    attempt_status: Option<u16>,
    ending: Ending,
    stage: Stage,
    status: u16,
    error_code: Option<&'r str>,
    basis: Basis,
    leased: ScopeSet,
}

impl Hash for Common<'_> {
    /// What tells kinds apart nearly always: hashing all of it costs more than comparing twice.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.payer.key_id.hash(state);
        self.requested_model.hash(state);
        // One tenant may use any number of these at once.
        self.upstream.and_then(|(_, key, _)| key).hash(state);
    }
}

impl<'r> Common<'r> {
    fn of(record: &'r UsageRecord) -> Self {
        let (open, end) = (&record.open, &record.end);
        let last = end.attempts.last();
        Self {
            payer: open.payer,
            period: open.period,
            local_day: open.local_day,
            endpoint: open.endpoint,
            streams: open.streams,
            requested_model: &open.requested_model,
            upstream: last.map(|attempt| {
                (
                    attempt.upstream_id,
                    attempt.upstream_key_id,
                    &*attempt.upstream_model,
                )
            }),
            attempts: end.attempts.len(),
            attempt_status: success(record).and_then(|attempt| attempt.status),
            ending: end.ending,
            stage: end.stage,
            status: end.status,
            error_code: end.error_code.as_deref(),
            basis: end.basis,
            leased: open.hold.leased,
        }
    }
}

/// Returns the last attempt of a record when it succeeded.
pub(crate) fn success(record: &UsageRecord) -> Option<&AttemptRecord> {
    let last = record.end.attempts.last();
    last.filter(|attempt| attempt.error.is_none())
}

/// Records of one kind, at least one.
pub(crate) struct Kind<'r> {
    /// Any of them, for what they share.
    pub(crate) sample: &'r UsageRecord,
    /// In the order of the batch.
    pub(crate) records: Vec<&'r NumberedRecord>,
}

/// Sorts records by kind, in the order in which kinds first appear. Returns the kinds, and the place
/// of each record's.
pub(crate) fn kinds<'r>(records: &[&'r NumberedRecord]) -> (Vec<Kind<'r>>, Vec<usize>) {
    let mut kinds: Vec<Kind<'r>> = Vec::new();
    let mut of = Vec::with_capacity(records.len());
    let mut places: HashMap<Common<'r>, usize, RandomState> = HashMap::default();
    // Neighbors are often of one kind, and comparing costs less than hashing.
    let mut last: Option<(Common<'r>, usize)> = None;
    for &numbered in records {
        let common = Common::of(&numbered.record);
        let place = match &last {
            Some((known, place)) if *known == common => *place,
            _ => {
                let place = *places
                    .entry(Common::of(&numbered.record))
                    .or_insert(kinds.len());
                last = Some((common, place));
                place
            }
        };
        of.push(place);
        if let Some(kind) = kinds.get_mut(place) {
            kind.records.push(numbered);
        } else {
            kinds.push(Kind {
                sample: &numbered.record,
                records: vec![numbered],
            });
        }
    }
    (kinds, of)
}
