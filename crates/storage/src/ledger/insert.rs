//! Inserts records with their attempts and details: those of one kind together.

use sluice_domain::id::{InstanceId, UpstreamKeyId};
use sluice_domain::record::{AttemptRecord, Caller, NumberedRecord, RequestEnd, UsageRecord};
use uuid::Uuid;

use super::kind::success;
use super::sums::{Entries, stage_word};
use crate::bulk::Bulk;
use crate::dialect::Args;
use crate::error::Failure;
use crate::group::{Group, Part};
use crate::text::{Words, clean};

/// The statement for records of one kind: a value that is bound costs more than all else that a
/// column does, so columns that are often equal stand on either side.
macro_rules! insert_kind {
    ($shared:literal, $placeholders:literal, $own:literal) => {
        concat!(
            "INSERT INTO usage_records (instance_id, tenant_id, user_id, key_id, period, statement_period, \
                local_day, endpoint, streams, requested_model, upstream_id, upstream_model, upstream_key_id, \
                attempt_count, attempt_status, ending, stage, status, error_code, basis, excess_tokens, excess_nano",
            $shared,
            ", request_id, post_no, started_at_ms, attempt_started_at_ms, attempt_head_ms, input_tokens, \
                output_tokens, quota_tokens, first_event_ms, duration_ms",
            $own,
            ") SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?",
            $placeholders,
            ", r.* FROM (VALUES "
        )
    };
}

bulks! {
    INSERT_RECORDS = "INSERT INTO usage_records (request_id, instance_id, post_no, tenant_id, user_id, key_id, period, \
            statement_period, local_day, started_at_ms, endpoint, streams, requested_model, upstream_id, \
            upstream_model, upstream_key_id, attempt_count, attempt_status, attempt_started_at_ms, \
            attempt_head_ms, ending, stage, status, error_code, basis, input_tokens, cached_input_tokens, \
            cache_write_input_tokens, output_tokens, reasoning_output_tokens, bound_tokens, bound_nano, \
            quota_tokens, charge_nano, excess_tokens, excess_nano, first_event_ms, duration_ms) VALUES ",
        38,
        " ON CONFLICT DO NOTHING";
    INSERT_KIND = insert_kind!(
            "",
            "",
            ", cached_input_tokens, cache_write_input_tokens, reasoning_output_tokens, bound_tokens, bound_nano, charge_nano"
        ),
        16,
        ") AS r WHERE TRUE ON CONFLICT DO NOTHING";
    INSERT_KIND_OF_CLASSES = insert_kind!(
            ", cached_input_tokens, cache_write_input_tokens, reasoning_output_tokens",
            ", ?, ?, ?",
            ", bound_tokens, bound_nano, charge_nano"
        ),
        13,
        ") AS r WHERE TRUE ON CONFLICT DO NOTHING";
    INSERT_KIND_OF_TERMS = insert_kind!(
            ", cached_input_tokens, cache_write_input_tokens, reasoning_output_tokens, bound_tokens, bound_nano, charge_nano",
            ", ?, ?, ?, ?, ?, ?",
            ""
        ),
        10,
        ") AS r WHERE TRUE ON CONFLICT DO NOTHING";
    INSERT_FAILED_ATTEMPTS = "INSERT INTO failed_attempts (request_id, n, upstream_id, upstream_key_id, upstream_model, status, error, \
            started_at_ms, head_ms) VALUES ",
        9,
        " ON CONFLICT DO NOTHING";
    INSERT_DETAILS = "INSERT INTO record_details (request_id, ip, user_agent) VALUES ",
        3,
        " ON CONFLICT DO NOTHING";
    INSERT_DETAILS_OF_ONE = "INSERT INTO record_details (ip, user_agent, request_id) \
        SELECT ?, ?, r.* FROM (VALUES ",
        1,
        ") AS r WHERE TRUE ON CONFLICT DO NOTHING";
}

/// What is inserted for records of many kinds.
static RECORDS: Group = Group::new();
/// What records of one kind have in common beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Nothing.
    Varied,
    /// Tokens of the rarer classes: mostly none.
    Classes,
    /// These, what was held, and the money that is charged: mostly where there are no prices.
    Terms,
}

impl Shape {
    fn of(records: &[&NumberedRecord]) -> Self {
        let classes = |record: &UsageRecord| {
            let usage = &record.end.usage;
            (
                usage.cached_input,
                usage.cache_write_input,
                usage.reasoning_output,
            )
        };
        let terms = |record: &UsageRecord| (record.open.hold.bound, record.charge().nano);
        let Some((first, rest)) = records.split_first() else {
            return Self::Varied;
        };
        if rest
            .iter()
            .any(|other| classes(&other.record) != classes(&first.record))
        {
            Self::Varied
        } else if rest
            .iter()
            .any(|other| terms(&other.record) != terms(&first.record))
        {
            Self::Classes
        } else {
            Self::Terms
        }
    }

    const fn shares_classes(self) -> bool {
        !matches!(self, Self::Varied)
    }

    const fn shares_terms(self) -> bool {
        matches!(self, Self::Terms)
    }

    /// Returns the statement, and the group that it stands in when all callers are one or many.
    fn statement(self, is_one_caller: bool) -> (&'static Bulk, &'static Group) {
        static MANY: [Group; 3] = [Group::new(), Group::new(), Group::new()];
        static ONE: [Group; 3] = [Group::new(), Group::new(), Group::new()];
        let [varied, classes, terms] = if is_one_caller { &ONE } else { &MANY };
        match self {
            Self::Varied => (&INSERT_KIND, varied),
            Self::Classes => (&INSERT_KIND_OF_CLASSES, classes),
            Self::Terms => (&INSERT_KIND_OF_TERMS, terms),
        }
    }
}

/// Records of one kind that are worth statements of their own: with fewer, a call of SQLite costs
/// more than the binds that it saves.
const KIND_FROM: usize = 32;

/// A failed attempt: its request, its place, what happened.
type Failed<'r> = (Uuid, i32, &'r AttemptRecord, &'r str);

/// The attempts that failed; one that succeeded stands in the record itself.
fn failed_attempts<'r>(records: impl Iterator<Item = &'r NumberedRecord>) -> Vec<Failed<'r>> {
    records
        .flat_map(|numbered| {
            let request = numbered.record.open.request_id.as_uuid();
            (1_i32..)
                .zip(&numbered.record.end.attempts)
                .filter_map(move |(n, attempt)| {
                    Some((request, n, attempt, attempt.error.as_deref()?))
                })
        })
        .collect()
}

/// The callers of records that know any.
fn details<'r>(records: impl Iterator<Item = &'r NumberedRecord>) -> Vec<(Uuid, &'r Caller)> {
    records
        .map(|numbered| &numbered.record.open)
        .filter(|open| open.caller.ip.is_some() || open.caller.user_agent.is_some())
        .map(|open| (open.request_id.as_uuid(), &open.caller))
        .collect()
}

fn attempt_count(end: &RequestEnd) -> i32 {
    i32::try_from(end.attempts.len()).unwrap_or(i32::MAX)
}

on_both! {
    /// Inserts records with their attempts and details, all new or none.
    pub(super) async fn insert_records(
        &mut self,
        instance: InstanceId,
        batch: &[Entries<'_>],
    ) -> Result<(), Failure> {
        let (many, few): (Vec<&Entries<'_>>, Vec<&Entries<'_>>) =
            batch.iter().partition(|entries| entries.records.len() >= KIND_FROM);
        for entries in many {
            self.insert_kind(instance, entries).await?;
        }
        self.insert_mixed(instance, &few).await
    }

    /// Inserts records of one kind with their attempts and details, all new or none.
    async fn insert_kind(
        &mut self,
        instance: InstanceId,
        entries: &Entries<'_>,
    ) -> Result<(), Failure> {
        let failed = failed_attempts(entries.records.iter().copied());
        let details = details(entries.records.iter().copied());
        let expected = entries.records.len() + failed.len() + details.len();
        let (open, end) = (&entries.sample.open, &entries.sample.end);
        let (attempt, excess) = (entries.last_attempt(), entries.sample.excess());
        let shape = Shape::of(&entries.records);
        let bind_classes = |arguments: &mut Args<Self>, record: &UsageRecord| {
            let usage = &record.end.usage;
            row!(arguments, usage.cached_input, usage.cache_write_input, usage.reasoning_output)
        };
        let bind_terms = |arguments: &mut Args<Self>, record: &UsageRecord| {
            let bound = record.open.hold.bound;
            row!(arguments, bound.tokens, bound.nano, record.charge().nano)
        };
        let share = |arguments: &mut Args<Self>| {
            row!(
                arguments,
                instance.as_uuid(),
                open.payer.tenant_id.as_uuid(),
                open.payer.user_id.as_uuid(),
                open.payer.key_id.as_uuid(),
                open.period.as_number(),
                entries.statement_period,
                open.local_day.0,
                open.endpoint.as_str(),
                open.streams,
                entries.requested_model.clone(),
                attempt.map(|attempt| attempt.upstream_id.as_uuid()),
                entries.upstream_model.clone(),
                attempt.and_then(|attempt| attempt.upstream_key_id).map(UpstreamKeyId::as_uuid),
                attempt_count(end),
                success(entries.sample).and_then(|attempt| attempt.status).map(i32::from),
                end.ending.as_str(),
                stage_word(end.stage),
                i32::from(end.status),
                end.error_code.as_deref(),
                end.basis.as_str(),
                excess.tokens,
                excess.nano,
            )?;
            if shape.shares_classes() {
                bind_classes(arguments, entries.sample)?;
            }
            if shape.shares_terms() {
                bind_terms(arguments, entries.sample)?;
            }
            Ok(())
        };
        let one = details.first().map(|(_, caller)| *caller);
        let one = one.filter(|one| details.iter().all(|(_, caller)| caller == one));
        let (insert, group) = shape.statement(one.is_some());
        let records = Part::sharing(insert, &entries.records, share, |arguments, numbered| {
            let (record, end) = (&numbered.record, &numbered.record.end);
            let success = success(record);
            row!(
                arguments,
                record.open.request_id.as_uuid(),
                numbered.post_no,
                record.open.started_at.0,
                success.map(|attempt| attempt.started_at.0),
                success.map(|attempt| attempt.head_ms),
                end.usage.input,
                end.usage.output,
                record.charge().tokens,
                end.first_event_ms,
                end.duration_ms,
            )?;
            if !shape.shares_classes() {
                bind_classes(arguments, record)?;
            }
            if !shape.shares_terms() {
                bind_terms(arguments, record)?;
            }
            Ok(())
        });
        let details = if let Some(one) = one {
            let share = |arguments: &mut Args<Self>| {
                row!(arguments, one.ip.map(|ip| ip.to_string()), one.user_agent.as_ref().map(clean))
            };
            Part::sharing(&INSERT_DETAILS_OF_ONE, &details, share, |arguments, (request, _)| {
                row!(arguments, *request)
            })
        } else {
            Self::details_part(&details)
        };
        let mut errors = Words::default();
        let parts = [records, Self::failed_part(&failed, &mut errors), details];
        let inserted = self.execute_group(group, parts).await?;
        // Of a record that was there, nothing is inserted.
        if inserted == expected { Ok(()) } else { Err(Failure::NotAllNew) }
    }

    /// Inserts records with their attempts and details, all new or none.
    async fn insert_mixed(
        &mut self,
        instance: InstanceId,
        kinds: &[&Entries<'_>],
    ) -> Result<(), Failure> {
        let mut rows: Vec<(&Entries<'_>, &NumberedRecord)> = kinds
            .iter()
            .flat_map(|entries| entries.records.iter().map(|numbered| (*entries, *numbered)))
            .collect();
        // Indexes are appended to.
        rows.sort_unstable_by_key(|(_, numbered)| numbered.post_no);
        let failed = failed_attempts(rows.iter().map(|(_, numbered)| *numbered));
        let details = details(rows.iter().map(|(_, numbered)| *numbered));
        let expected = rows.len() + failed.len() + details.len();
        let (mut words, mut errors) = (Words::default(), Words::default());
        let records = Part::new(&INSERT_RECORDS, &rows, |arguments, (entries, numbered)| {
            let (open, end) = (&numbered.record.open, &numbered.record.end);
            let attempt = end.attempts.last();
            let success = success(&numbered.record);
            let (bound, charge) = (open.hold.bound, numbered.record.charge());
            let excess = numbered.record.excess();
            row!(
                arguments,
                open.request_id.as_uuid(),
                instance.as_uuid(),
                numbered.post_no,
                open.payer.tenant_id.as_uuid(),
                open.payer.user_id.as_uuid(),
                open.payer.key_id.as_uuid(),
                open.period.as_number(),
                entries.statement_period,
                open.local_day.0,
                open.started_at.0,
                words.share(open.endpoint.as_str()),
                open.streams,
                entries.requested_model.clone(),
                attempt.map(|attempt| attempt.upstream_id.as_uuid()),
                entries.upstream_model.clone(),
                attempt.and_then(|attempt| attempt.upstream_key_id).map(UpstreamKeyId::as_uuid),
                attempt_count(end),
                success.and_then(|attempt| attempt.status).map(i32::from),
                success.map(|attempt| attempt.started_at.0),
                success.map(|attempt| attempt.head_ms),
                words.share(end.ending.as_str()),
                words.share(stage_word(end.stage)),
                i32::from(end.status),
                end.error_code.as_deref().map(|code| words.share(code)),
                words.share(end.basis.as_str()),
                end.usage.input,
                end.usage.cached_input,
                end.usage.cache_write_input,
                end.usage.output,
                end.usage.reasoning_output,
                bound.tokens,
                bound.nano,
                charge.tokens,
                charge.nano,
                excess.tokens,
                excess.nano,
                end.first_event_ms,
                end.duration_ms,
            )
        });
        let parts = [records, Self::failed_part(&failed, &mut errors), Self::details_part(&details)];
        let inserted = self.execute_group(&RECORDS, parts).await?;
        // As for a kind.
        if inserted == expected { Ok(()) } else { Err(Failure::NotAllNew) }
    }

    fn failed_part<'p>(failed: &'p [Failed<'_>], errors: &'p mut Words) -> Part<'p, Args<Self>> {
        Part::new(&INSERT_FAILED_ATTEMPTS, failed, |arguments, (request, n, attempt, error)| {
            row!(
                arguments,
                *request,
                *n,
                attempt.upstream_id.as_uuid(),
                attempt.upstream_key_id.map(UpstreamKeyId::as_uuid),
                clean(&attempt.upstream_model),
                attempt.status.map(i32::from),
                errors.share(error),
                attempt.started_at.0,
                attempt.head_ms,
            )
        })
    }

    fn details_part<'p>(details: &'p [(Uuid, &Caller)]) -> Part<'p, Args<Self>> {
        Part::new(&INSERT_DETAILS, details, |arguments, (request, caller)| {
            row!(
                arguments,
                *request,
                caller.ip.map(|ip| ip.to_string()),
                caller.user_agent.as_ref().map(clean),
            )
        })
    }
}
