//! Posting: which records are new, and which contradict the ledger.

use std::collections::{HashMap, HashSet};

use sluice_domain::id::InstanceId;
use sluice_domain::ports::{Guard, PostMode, Posted};
use sluice_domain::quota::Lease;
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;
use uuid::Uuid;

use super::guard::{Numbers, Poster};
use super::{COUNT_ROWS, LIST_POSTED, LIST_QUARANTINED, Lately};
use crate::bulk::Repeats;
use crate::error::Failure;

bulks! {
    FIND_ORIGINS = "WITH wanted (request_id) AS (VALUES ",
        1,
        // `CROSS JOIN` is in this order on SQLite, which would read all records for many that are wanted.
        ") SELECT r.request_id, r.origin FROM wanted w CROSS JOIN usage_rows r \
        WHERE r.request_id = w.request_id";
}

/// What the database knows of the records of a batch.
pub(super) struct Known {
    /// The origin of each request id that is in the ledger.
    origins: HashMap<Uuid, i64>,
    /// The origins of this instance that are in the ledger.
    posted: HashSet<i64>,
    /// The numbers of this instance that were set aside.
    quarantined: HashSet<i64>,
}

impl Known {
    /// Returns whether a number was posted or set aside.
    pub(super) fn has_dealt_with(&self, poster: Poster, post_no: i64) -> bool {
        self.quarantined.contains(&post_no) || self.posted.contains(&poster.origin(post_no))
    }

    /// Tells new records from repeated ones, and both from those that contradict the ledger.
    fn sort(mut self, poster: Poster, records: &[NumberedRecord]) -> Sorted<'_> {
        let mut sorted = Sorted::default();
        for numbered in records {
            let request = numbered.record.open.request_id.as_uuid();
            let origin = poster.origin(numbered.post_no);
            if self.quarantined.contains(&numbered.post_no) {
                continue;
            }
            match (self.origins.get(&request), self.posted.contains(&origin)) {
                (Some(known), _) if *known == origin => {}
                (Some(_), _) => {
                    sorted
                        .refused
                        .push((numbered, "another post has the same request id"));
                }
                (None, true) => {
                    sorted
                        .refused
                        .push((numbered, "another request has the same post number"));
                }
                (None, false) => {
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
        lately: &Lately<'_>,
    ) -> Result<Posted, Failure> {
        let numbers = Numbers::of(records)?;
        let poster = self.pass_guard(guard, mode, numbers, records.len(), now).await?;
        let all: Vec<&NumberedRecord> = records.iter().collect();
        self.book(poster, mode, &all, in_flight, now, lately).await
    }

    pub(crate) async fn post_mixed(
        &mut self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        in_flight: &[Lease],
        now: UnixMillis,
        lately: &Lately<'_>,
    ) -> Result<Posted, Failure> {
        let numbers = Numbers::of(records)?;
        let poster = self.pass_guard(guard, mode, numbers, 0, now).await?;
        let known = self.find_known(poster, records, numbers).await?;
        let sorted = known.sort(poster, records);
        let mut posted = self.book(poster, mode, &sorted.new, in_flight, now, lately).await?;
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
        poster: Poster,
        records: &[NumberedRecord],
        numbers: Numbers,
    ) -> Result<Known, Failure> {
        let origins: Vec<(Uuid, i64)> = self
            .fetch_bulk(&FIND_ORIGINS, records, Repeats::Allowed, |arguments, numbered| {
                row!(arguments, numbered.record.open.request_id.as_uuid())
            })
            .await?;
        let first = numbers.before_first + 1;
        let posted: Vec<i64> =
            sql_scalar!(LIST_POSTED, poster.origin(first), poster.origin(numbers.last))
                .fetch_all(&mut *self.conn)
                .await?;
        let quarantined: Vec<i64> =
            sql_scalar!(LIST_QUARANTINED, poster.id.as_uuid(), first, numbers.last)
                .fetch_all(&mut *self.conn)
                .await?;
        Ok(Known {
            origins: origins.into_iter().collect(),
            posted: posted.into_iter().collect(),
            quarantined: quarantined.into_iter().collect(),
        })
    }
}

fn as_i64(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
