//! Posting: which records are new, and which contradict the ledger.

use std::collections::{HashMap, HashSet};

use sluice_domain::id::InstanceId;
use sluice_domain::ports::{Guard, PostMode, Posted};
use sluice_domain::quota::Lease;
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use super::guard::Numbers;
use super::{COUNT_ROWS, LIST_POSTED, LIST_QUARANTINED};
use crate::bulk::Repeats;
use crate::error::Failure;

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

/// What the database knows of the records of a batch.
pub(super) struct Known {
    /// The origin of each request id that is in the ledger.
    origins: HashMap<Uuid, (Uuid, i64)>,
    /// The request id of each number of this instance that is in the ledger.
    posted: HashMap<i64, Uuid>,
    /// The numbers of this instance that were set aside.
    quarantined: HashSet<i64>,
}

impl Known {
    /// Returns whether a number was posted or set aside.
    pub(super) fn has_dealt_with(&self, post_no: i64) -> bool {
        self.quarantined.contains(&post_no) || self.posted.contains_key(&post_no)
    }

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
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        let numbers = Numbers::of(records)?;
        self.pass_guard(guard, mode, numbers, records.len(), now).await?;
        let all: Vec<&NumberedRecord> = records.iter().collect();
        self.book(guard.instance_id, mode, &all, in_flight, now).await
    }

    pub(crate) async fn post_mixed(
        &mut self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, Failure> {
        let numbers = Numbers::of(records)?;
        self.pass_guard(guard, mode, numbers, 0, now).await?;
        let known = self.find_known(guard.instance_id, records, numbers).await?;
        let sorted = known.sort(guard.instance_id, records);
        let mut posted = self.book(guard.instance_id, mode, &sorted.new, in_flight, now).await?;
        for (numbered, reason) in &sorted.refused {
            let moved = self.set_aside(guard.instance_id, mode, numbered, reason, now).await?;
            posted.counters.extend(moved);
        }
        self.count_rows(guard.instance_id, sorted.new.len(), sorted.refused.len()).await?;
        Ok(posted)
    }

    pub(super) async fn count_rows(
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

    pub(super) async fn find_known(
        &mut self,
        instance: InstanceId,
        records: &[NumberedRecord],
        numbers: Numbers,
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
}

fn as_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
