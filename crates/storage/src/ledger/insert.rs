//! Inserts records with their callers and attempts.

use sluice_domain::id::UpstreamKeyId;
use sluice_domain::pool::SkippedTargets;
use sluice_domain::record::{AttemptRecord, NumberedRecord, UsageRecord};
use sluice_domain::time::UnixMillis;
use uuid::Uuid;

use super::Lately;
use super::callers::Named;
use super::guard::Poster;
use super::kind::success;
use super::kind_rows::KindIds;
use super::sums::Entries;
use crate::error::{Failure, internal};
use crate::group::{Group, Part};
use crate::skipped;
use crate::text::{Words, clean};

/// The columns of a record that are never left out, in the order of the table.
macro_rules! row_columns {
    ($more:literal) => {
        concat!(
            "INTO usage_rows (origin, request_id, kind_id, caller_id, started_at_ms, attempt_after_ms, \
                attempt_head_ms, first_event_ms, duration_ms, input_tokens, output_tokens, bound_tokens, \
                bound_nano, quota_tokens, charge_nano",
            $more,
            ") VALUES "
        )
    };
}

inserts! {
    INSERT_CALLERS = Kept, "INTO callers (caller_id, made_at_ms, ip, user_agent) VALUES ",
        4;
    /// Of records that are like most.
    INSERT_ROWS = Refused, row_columns!(""),
        15;
    INSERT_WHOLE_ROWS = Refused, row_columns!(", cached_input_tokens, cache_write_input_tokens, \
            reasoning_output_tokens, excess_tokens, excess_nano"),
        20;
    INSERT_FAILED_ATTEMPTS = Refused, "INTO failed_attempts (request_id, n, upstream_id, upstream_key_id, \
            upstream_model, status, error, started_at_ms, head_ms) VALUES ",
        9;
    INSERT_SKIPPED_TARGETS = Refused, "INTO skipped_targets (request_id, targets, more) VALUES ",
        3;
}

/// What is inserted when all records are like most.
static ROWS: Group = Group::new();
/// What is inserted otherwise.
static WHOLE_ROWS: Group = Group::new();

/// Records with what they refer to.
pub(super) struct Rows<'r> {
    pub(super) records: &'r [&'r NumberedRecord],
    /// The place of each one's kind.
    pub(super) places: &'r [usize],
    pub(super) kinds: &'r [Entries<'r>],
}

/// A row of `usage_rows`.
struct Row<'r> {
    origin: i64,
    kind_id: i64,
    caller_id: Option<i64>,
    record: &'r UsageRecord,
}

impl<'r> Rows<'r> {
    /// Returns the rows, or nothing when a kind is not known.
    fn rows(&self, poster: Poster, kinds: &KindIds, callers: &Named<'_>) -> Option<Vec<Row<'r>>> {
        let kinds: Option<Vec<i64>> = self
            .kinds
            .iter()
            .map(|kind| kinds.get(&kind.hash).copied())
            .collect();
        let kinds = kinds?;
        let known = self.places.iter().zip(&callers.ids);
        let rows = self
            .records
            .iter()
            .zip(known)
            .map(|(numbered, (place, caller))| {
                Some(Row {
                    origin: poster.origin(numbered.post_no),
                    kind_id: *kinds.get(*place)?,
                    caller_id: *caller,
                    record: &numbered.record,
                })
            });
        rows.collect()
    }
}

/// Returns whether what most records have nothing of is nothing.
fn is_like_most(record: &UsageRecord) -> bool {
    let usage = &record.end.usage;
    usage.cached_input == 0
        && usage.cache_write_input == 0
        && usage.reasoning_output == 0
        && record.excess().is_zero()
}

/// A failed attempt: its request, its place, what happened.
type Failed<'r> = (Uuid, i32, &'r AttemptRecord, &'r str);

/// The attempts that failed; one that succeeded stands in the record itself.
fn failed_attempts<'r>(records: &[&'r NumberedRecord]) -> Vec<Failed<'r>> {
    let failed = records.iter().flat_map(|numbered| {
        let request = numbered.record.open.request_id.as_uuid();
        let attempts = (1_i32..).zip(&numbered.record.end.attempts);
        attempts
            .filter_map(move |(n, attempt)| Some((request, n, attempt, attempt.error.as_deref()?)))
    });
    failed.collect()
}

/// The records that passed something over.
fn passers<'r>(records: &[&'r NumberedRecord]) -> Vec<(Uuid, &'r SkippedTargets)> {
    let all = records.iter().map(|numbered| {
        let record = &numbered.record;
        (record.open.request_id.as_uuid(), &record.end.skipped)
    });
    all.filter(|(_, skipped)| !skipped.is_empty()).collect()
}

on_both! {
    /// Inserts records with their kinds, callers, attempts and what they passed over: all of it new
    /// or none.
    pub(super) async fn insert_records(
        &mut self,
        poster: Poster,
        batch: &Rows<'_>,
        lately: &Lately<'_>,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let kinds = self.ensure_kinds(poster, batch.kinds, lately).await?;
        let callers = lately.callers.name(poster, batch.records);
        let rows = batch.rows(poster, &kinds, &callers);
        *lately.met.lock() = kinds;
        let rows = rows.ok_or_else(|| internal("a kind that was inserted is missing"))?;
        let failed = failed_attempts(batch.records);
        let passers = passers(batch.records);
        let are_like_most = rows.iter().all(|row| is_like_most(row.record));
        let (insert_rows, group) =
            if are_like_most { (&INSERT_ROWS, &ROWS) } else { (&INSERT_WHOLE_ROWS, &WHOLE_ROWS) };
        let mut errors = Words::default();
        let callers = Part::new(&INSERT_CALLERS, &callers.callers, |arguments, (id, caller)| {
            row!(
                arguments,
                *id,
                now.0,
                caller.ip.map(|ip| ip.to_string()),
                caller.user_agent.as_ref().map(clean),
            )
        });
        let rows = Part::new(insert_rows, &rows, |arguments, row| {
            let (open, end) = (&row.record.open, &row.record.end);
            let (bound, charge) = (open.hold.bound, row.record.charge());
            let success = success(row.record);
            row!(
                arguments,
                row.origin,
                open.request_id.as_uuid(),
                row.kind_id,
                row.caller_id,
                open.started_at.0,
                success.map(|attempt| attempt.started_at.0.saturating_sub(open.started_at.0)),
                success.map(|attempt| attempt.head_ms),
                end.first_event_ms,
                end.duration_ms,
                end.usage.input,
                end.usage.output,
                bound.tokens,
                bound.nano,
                charge.tokens,
                charge.nano,
            )?;
            if are_like_most {
                return Ok(());
            }
            let excess = row.record.excess();
            row!(
                arguments,
                end.usage.cached_input,
                end.usage.cache_write_input,
                end.usage.reasoning_output,
                excess.tokens,
                excess.nano,
            )
        });
        let failed = Part::new(&INSERT_FAILED_ATTEMPTS, &failed, |arguments, (request, n, attempt, error)| {
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
        });
        let skipped = Part::new(&INSERT_SKIPPED_TARGETS, &passers, |arguments, (request, skipped)| {
            row!(
                arguments,
                *request,
                skipped::to_json(skipped).to_string(),
                i64::from(skipped.more()),
            )
        });
        self.insert_group(group, [callers, rows, failed, skipped]).await
    }
}
