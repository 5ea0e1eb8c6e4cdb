//! Posting: the guard, which records are new, and those that are set aside.

use std::collections::{HashMap, HashSet};

use serde_json::json;
use sluice_domain::id::InstanceId;
use sluice_domain::ports::{Guard, Posted, StoreError};
use sluice_domain::record::{AttemptRecord, NumberedRecord, UsageRecord};
use sluice_domain::time::UnixMillis;
use sluice_domain::usage::MAX_AMOUNT;
use sqlx::FromRow;
use uuid::Uuid;

use super::sums::{self, stage_word};
use super::{
    ADD_USED, COUNT_ROWS, FIND_GUARD, INSERT_EXPOSURE, INSERT_QUARANTINE, LIST_POSTED,
    LIST_QUARANTINED, PASS_GUARD,
};
use crate::bulk::Repeats;
use crate::error::{Failure, internal};
use crate::quota::new_row_id;
use crate::text::cleaned;

bulks! {
    FIND_ORIGINS = "WITH wanted (request_id) AS (VALUES ",
        1,
        ") SELECT r.request_id, r.instance_id, r.post_no FROM wanted w \
        JOIN usage_records r ON r.request_id = w.request_id";
}

#[derive(FromRow)]
struct OriginRow {
    request_id: Uuid,
    instance_id: Uuid,
    post_no: i64,
}

/// The numbers of a batch, which must be dense.
struct Numbers {
    before_first: i64,
    last: i64,
}

impl Numbers {
    fn of(records: &[NumberedRecord]) -> Result<Self, StoreError> {
        let first = records.first().map_or(1, |numbered| numbered.post_no);
        let is_dense = first >= 1 && (first..).zip(records).all(|(no, n)| n.post_no == no);
        if !is_dense {
            return Err(internal("the numbers of a batch are not dense"));
        }
        let last = records.last().map_or(0, |numbered| numbered.post_no);
        Ok(Self {
            before_first: first - 1,
            last,
        })
    }
}

/// What the database knows of the records of a batch.
struct Known {
    /// The origin of each request id that is in the ledger.
    origins: HashMap<Uuid, (Uuid, i64)>,
    /// The request id of each number of this instance that is in the ledger.
    posted: HashMap<i64, Uuid>,
    /// The numbers of this instance that were set aside.
    quarantined: HashSet<i64>,
}

impl Known {
    /// Tells new records from repeated ones, and both from those that contradict the ledger.
    fn sort(mut self, instance: InstanceId, records: &[NumberedRecord]) -> Sorted<'_> {
        let mut sorted = Sorted::default();
        for numbered in records {
            let request = numbered.record.open.request_id.as_uuid();
            let origin = (instance.as_uuid(), numbered.post_no);
            if self.quarantined.contains(&numbered.post_no) {
                continue;
            }
            match (
                self.origins.get(&request),
                self.posted.get(&numbered.post_no),
            ) {
                (Some(known), _) if *known == origin => {}
                (Some(_), _) => {
                    sorted
                        .refused
                        .push((numbered, "another post has the same request id"));
                }
                (None, Some(_)) => {
                    sorted
                        .refused
                        .push((numbered, "another request has the same post number"));
                }
                (None, None) => {
                    self.origins.insert(request, origin);
                    sorted.new.push(numbered);
                }
            }
        }
        sorted
    }
}

#[derive(Default)]
struct Sorted<'r> {
    new: Vec<&'r NumberedRecord>,
    refused: Vec<(&'r NumberedRecord, &'static str)>,
}

on_both! {
    pub(crate) async fn post_new(
        &mut self,
        guard: Guard,
        records: &[NumberedRecord],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        let numbers = Numbers::of(records)?;
        self.pass_guard(guard, &numbers, records.len(), now).await?;
        let all: Vec<&NumberedRecord> = records.iter().collect();
        self.book(guard.instance_id, &all, now).await
    }

    pub(crate) async fn post_mixed(
        &mut self,
        guard: Guard,
        records: &[NumberedRecord],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        let numbers = Numbers::of(records)?;
        self.pass_guard(guard, &numbers, 0, now).await?;
        let known = self.find_known(guard.instance_id, records, &numbers).await?;
        let sorted = known.sort(guard.instance_id, records);
        let mut posted = self.book(guard.instance_id, &sorted.new, now).await?;
        for (numbered, reason) in &sorted.refused {
            posted.counters.extend(self.set_aside(guard.instance_id, numbered, reason, now).await?);
        }
        self.count_rows(guard.instance_id, sorted.new.len(), sorted.refused.len()).await?;
        Ok(posted)
    }

    pub(crate) async fn quarantine(
        &mut self,
        guard: Guard,
        numbered: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let numbers = Numbers::of(std::slice::from_ref(numbered))?;
        self.pass_guard(guard, &numbers, 0, now).await?;
        let known = self.find_known(guard.instance_id, std::slice::from_ref(numbered), &numbers).await?;
        if known.quarantined.contains(&numbered.post_no) || known.posted.contains_key(&numbered.post_no) {
            // A repetition: the number was dealt with.
            return Ok(());
        }
        self.set_aside(guard.instance_id, numbered, reason, now).await?;
        self.count_rows(guard.instance_id, 0, 1).await
    }

    /// Checks and advances the row of the instance; nothing may happen when it does not fit.
    async fn pass_guard(
        &mut self,
        guard: Guard,
        numbers: &Numbers,
        new_rows: usize,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let (instance, boot) = (guard.instance_id.as_uuid(), guard.boot_id.as_uuid());
        let passed = sql!(
            PASS_GUARD,
            instance,
            boot,
            guard.seq,
            now.0,
            numbers.before_first,
            numbers.last,
            as_i64(new_rows),
        )
        .execute(&mut *self.conn)
        .await?;
        if passed.rows_affected() == 1 {
            return Ok(());
        }
        let fits: Option<Uuid> = sql_scalar!(FIND_GUARD, instance, boot, guard.seq)
            .fetch_optional(&mut *self.conn)
            .await?;
        if fits.is_some() {
            return Err(internal("posts are missing before the first of this batch").into());
        }
        Err(StoreError::Guard.into())
    }

    async fn count_rows(
        &mut self,
        instance: InstanceId,
        posted: usize,
        quarantined: usize,
    ) -> Result<(), Failure> {
        sql!(COUNT_ROWS, instance.as_uuid(), as_i64(posted), as_i64(quarantined))
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    async fn find_known(
        &mut self,
        instance: InstanceId,
        records: &[NumberedRecord],
        numbers: &Numbers,
    ) -> Result<Known, Failure> {
        let origins: Vec<OriginRow> = self
            .fetch_bulk(&FIND_ORIGINS, records, Repeats::Allowed, |arguments, numbered| {
                row!(arguments, numbered.record.open.request_id.as_uuid())
            })
            .await?;
        let (instance, first) = (instance.as_uuid(), numbers.before_first + 1);
        let posted: Vec<(Uuid, i64)> = sql_as!(LIST_POSTED, instance, first, numbers.last)
            .fetch_all(&mut *self.conn)
            .await?;
        let quarantined: Vec<i64> = sql_scalar!(LIST_QUARANTINED, instance, first, numbers.last)
            .fetch_all(&mut *self.conn)
            .await?;
        Ok(Known {
            origins: origins
                .into_iter()
                .map(|row| (row.request_id, (row.instance_id, row.post_no)))
                .collect(),
            posted: posted.into_iter().map(|(request, no)| (no, request)).collect(),
            quarantined: quarantined.into_iter().collect(),
        })
    }

    /// Keeps a record for a person to look at, and charges its tokens to the quotas as an exposure,
    /// so that nobody overspends meanwhile. Returns the balances that were moved.
    async fn set_aside(
        &mut self,
        instance: InstanceId,
        numbered: &NumberedRecord,
        reason: &str,
        now: UnixMillis,
    ) -> Result<Vec<sluice_domain::quota::CounterBalance>, Failure> {
        let record = &numbered.record;
        let request = record.open.request_id.as_uuid();
        sql!(
            INSERT_QUARANTINE,
            instance.as_uuid(),
            numbered.post_no,
            request,
            cleaned(reason),
            as_json(record),
            now.0,
        )
        .execute(&mut *self.conn)
        .await?;
        let scopes = record.open.payer.scopes();
        let charges = sums::charges_of(record);
        for booked in self.counters_of(&charges, now).await?.booked {
            let used = self
                .load_counters(&[booked.scope], booked.month)
                .await?
                .first()
                .map_or(0, |balance| balance.used_tokens);
            // What cannot be right is not charged; a counter is never driven over its end.
            let tokens = booked.charge.tokens.clamp(0, MAX_AMOUNT - used);
            if tokens == 0 {
                continue;
            }
            let made = sql!(
                INSERT_EXPOSURE,
                new_row_id(now)?,
                instance.as_uuid(),
                booked.counter_id,
                request,
                tokens,
                now.0,
            )
            .execute(&mut *self.conn)
            .await?;
            if made.rows_affected() == 1 {
                sql!(ADD_USED, booked.counter_id, tokens).execute(&mut *self.conn).await?;
            }
        }
        self.load_counters(&scopes, record.open.period).await
    }
}

fn as_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Writes a record out, without personal data.
fn as_json(record: &UsageRecord) -> String {
    let (open, end) = (&record.open, &record.end);
    let attempt = |attempt: &AttemptRecord| {
        json!({
            "upstream_id": attempt.upstream_id.to_string(),
            "upstream_key_id": attempt.upstream_key_id.map(|id| id.to_string()),
            "upstream_model": &*attempt.upstream_model,
            "status": attempt.status,
            "error": attempt.error,
            "started_at_ms": attempt.started_at.0,
            "head_ms": attempt.head_ms,
        })
    };
    json!({
        "request_id": open.request_id.to_string(),
        "tenant_id": open.payer.tenant_id.to_string(),
        "user_id": open.payer.user_id.to_string(),
        "key_id": open.payer.key_id.to_string(),
        "period": open.period.as_number(),
        "local_day": open.local_day.0,
        "started_at_ms": open.started_at.0,
        "endpoint": open.endpoint.as_str(),
        "streams": open.streams,
        "requested_model": &*open.requested_model,
        "ending": end.ending.as_str(),
        "stage": stage_word(end.stage),
        "status": end.status,
        "error_code": end.error_code,
        "input_tokens": end.usage.input,
        "cached_input_tokens": end.usage.cached_input,
        "cache_write_input_tokens": end.usage.cache_write_input,
        "output_tokens": end.usage.output,
        "reasoning_output_tokens": end.usage.reasoning_output,
        "basis": end.basis.as_str(),
        "quota_tokens": end.quota_tokens,
        "first_event_ms": end.first_event_ms,
        "duration_ms": end.duration_ms,
        "attempts": end.attempts.iter().map(attempt).collect::<Vec<_>>(),
    })
    .to_string()
}
