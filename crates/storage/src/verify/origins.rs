//! What must be there: every number that an instance gave, and what rows hang on.

use sluice_domain::id::{InstanceId, ProxyKeyId, RequestId, TenantId, UserId};
use sluice_domain::quota::{Amounts, Payer};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Finding, both, checks, instance};
use crate::error::Failure;
use crate::ledger::MAX_POST_NO;

#[derive(FromRow)]
struct NumbersRow {
    instance_id: Uuid,
    posted_no: i64,
    posted_rows: i64,
    quarantined_rows: i64,
    dropped_rows: i64,
    records: i64,
    last: i64,
    quarantined: i64,
    removed: i64,
    lost: i64,
}

#[derive(FromRow)]
struct ExposureRow {
    instance_id: Uuid,
    id: Uuid,
    state: Option<String>,
    tokens: i64,
    nano: i64,
}

#[derive(FromRow)]
struct LeaseRow {
    instance_id: Uuid,
    id: Uuid,
    state: Option<String>,
    held_tokens: i64,
    held_nano: i64,
    in_flight_tokens: i64,
    in_flight_nano: i64,
}

/// A post as the ledger has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPost {
    /// Its number.
    pub post_no: i64,
    /// Its request.
    pub request_id: RequestId,
    /// Who paid; `None` when the record was set aside.
    pub payer: Option<Payer>,
    /// What quotas and statement took.
    pub charge: Amounts,
    /// What was owed beyond it.
    pub excess: Amounts,
}

#[derive(FromRow)]
struct PostRow {
    post_no: i64,
    request_id: Uuid,
    tenant_id: Option<Uuid>,
    user_id: Option<Uuid>,
    key_id: Option<Uuid>,
    quota_tokens: i64,
    charge_nano: i64,
    excess_tokens: i64,
    excess_nano: i64,
}

impl From<PostRow> for StoredPost {
    fn from(row: PostRow) -> Self {
        let payer = match (row.tenant_id, row.user_id, row.key_id) {
            (Some(tenant), Some(user), Some(key)) => Some(Payer {
                tenant_id: TenantId::from_uuid(tenant),
                user_id: UserId::from_uuid(user),
                key_id: ProxyKeyId::from_uuid(key),
            }),
            _ => None,
        };
        Self {
            post_no: row.post_no,
            request_id: RequestId::from_uuid(row.request_id),
            payer,
            charge: Amounts {
                tokens: row.quota_tokens,
                nano: row.charge_nano,
            },
            excess: Amounts {
                tokens: row.excess_tokens,
                nano: row.excess_nano,
            },
        }
    }
}

/// A row that hangs on something which does not exist.
fn lost(
    id: &'static str,
    table: &'static str,
    key: String,
    expected: &str,
    sentence: &'static str,
) -> Finding {
    Finding {
        id,
        table,
        key,
        expected: expected.to_owned(),
        found: "none".to_owned(),
        sentence,
    }
}

fn of_numbers(row: &NumbersRow) -> Finding {
    Finding {
        id: "V4",
        table: "instances",
        key: instance(row.instance_id).to_string(),
        expected: format!(
            "{} posts: {} records ({} of them removed) and {} set aside, {} lost",
            row.posted_no, row.posted_rows, row.dropped_rows, row.quarantined_rows, row.lost
        ),
        found: format!(
            "{} records up to number {}, {} removed and {} set aside",
            row.records, row.last, row.removed, row.quarantined
        ),
        sentence: "a post is missing, or there is one too many",
    }
}

fn of_gap(id: Uuid, before: i64, after: i64) -> Finding {
    let (first, last) = (before + 1, after - 1);
    let numbers = if first == last {
        format!("post {first}")
    } else {
        format!("posts {first} to {last}")
    };
    lost(
        "V4",
        "usage_records",
        format!("{numbers} of {}", instance(id)),
        "a record",
        "a record is missing",
    )
}

on_both! {
    /// V4, V11.
    pub(super) async fn verify_instances(&mut self) -> Result<Vec<Finding>, Failure> {
        let numbers: Vec<NumbersRow> = sql_as!(checks::V4_NUMBERS).fetch_all(&mut *self.conn).await?;
        let mut findings: Vec<Finding> = numbers.iter().map(of_numbers).collect();
        // Which numbers retention has removed is not known.
        for row in numbers.iter().filter(|row| row.removed == 0) {
            let gaps: Vec<(i64, i64)> =
                sql_as!(checks::V4_GAPS, row.instance_id).fetch_all(&mut *self.conn).await?;
            findings.extend(gaps.into_iter().map(|(before, after)| {
                of_gap(row.instance_id, before, after)
            }));
        }
        let unknown: Vec<i64> =
            sql_scalar!(checks::V4_UNKNOWN_NUMBERS).fetch_all(&mut *self.conn).await?;
        findings.extend(unknown.into_iter().map(|no| {
            let sentence = "records are of an instance that does not exist";
            lost("V4", "instances", format!("number {no}"), "an instance", sentence)
        }));
        let unknown: Vec<Uuid> =
            sql_scalar!(checks::V4_UNKNOWN_INSTANCES).fetch_all(&mut *self.conn).await?;
        findings.extend(unknown.into_iter().map(|id| {
            let sentence = "what was set aside, removed or lost is of an instance that does not exist";
            lost("V4", "instances", instance(id).to_string(), "an instance", sentence)
        }));
        let twice: Vec<(Uuid, i64, i64)> = sql_as!(checks::V11_TWICE).fetch_all(&mut *self.conn).await?;
        findings.extend(twice.into_iter().map(|(id, post_no, n)| Finding {
            id: "V11",
            table: "usage_records",
            key: format!("post {post_no} of {}", instance(id)),
            expected: "1 record".to_owned(),
            found: format!("{n} records"),
            sentence: "a number was used more than once",
        }));
        let stray = self.count_stray_records().await?;
        if stray > 0 {
            findings.push(Finding {
                id: "V11",
                table: "usage_rows_default",
                key: "all".to_owned(),
                expected: "0 records".to_owned(),
                found: format!("{stray} records"),
                sentence: "records lie outside the partitions of their months",
            });
        }
        Ok(findings)
    }

    /// V8, V12.
    pub(super) async fn verify_leases(&mut self) -> Result<Vec<Finding>, Failure> {
        let exposures: Vec<ExposureRow> = sql_as!(checks::V8_EXPOSURES).fetch_all(&mut *self.conn).await?;
        let mut findings: Vec<Finding> = exposures.into_iter().map(|row| Finding {
            id: "V8",
            table: "ledger_entries",
            key: format!("{} of counter {}", instance(row.instance_id), row.id.simple()),
            expected: match row.state.as_deref() {
                Some("resolved") => "no less than 0".to_owned(),
                _ => both(Some(0), Some(0)),
            },
            found: both(Some(row.tokens), Some(row.nano)),
            sentence: "exposures and releases of an instance do not fit its state",
        }).collect();
        let entries: Vec<(Uuid, Uuid)> =
            sql_as!(checks::V8_LOST_ENTRIES).fetch_all(&mut *self.conn).await?;
        findings.extend(entries.into_iter().map(|(id, counter)| {
            let key = format!("{} of counter {}", id.simple(), counter.simple());
            let sentence = "an entry is of a counter that does not exist";
            lost("V8", "ledger_entries", key, "a counter", sentence)
        }));
        let requests: Vec<Uuid> = sql_scalar!(checks::V8_REQUESTS).fetch_all(&mut *self.conn).await?;
        findings.extend(requests.into_iter().map(|id| {
            let key = RequestId::from_uuid(id).to_string();
            let sentence = "an entry stands for a record that was set aside, and there is none";
            lost("V8", "ledger_entries", key, "a row of quarantine", sentence)
        }));
        let leases: Vec<LeaseRow> = sql_as!(checks::V12_LEASES).fetch_all(&mut *self.conn).await?;
        findings.extend(leases.into_iter().map(|row| Finding {
            id: "V12",
            table: "leases",
            key: format!("{} of counter {}", instance(row.instance_id), row.id.simple()),
            expected: "leases of live instances, in flight at most what is held".to_owned(),
            found: format!(
                "{} held, {} in flight, instance {}",
                both(Some(row.held_tokens), Some(row.held_nano)),
                both(Some(row.in_flight_tokens), Some(row.in_flight_nano)),
                row.state.as_deref().unwrap_or("unknown"),
            ),
            sentence: "a lease is of an instance that may not spend, or smaller than what is in flight",
        }));
        Ok(findings)
    }

    /// V14.
    pub(super) async fn verify_what_hangs_on_records(&mut self) -> Result<Vec<Finding>, Failure> {
        let attempts: Vec<(Uuid, i64, i64)> =
            sql_as!(checks::V14_ATTEMPTS).fetch_all(&mut *self.conn).await?;
        let mut findings: Vec<Finding> = attempts.into_iter().map(|(id, expected, found)| Finding {
            id: "V14",
            table: "failed_attempts",
            key: RequestId::from_uuid(id).to_string(),
            expected: format!("{expected} failed attempts"),
            found: format!("{found} failed attempts"),
            sentence: "a record has other attempts than it says",
        }).collect();
        let lost_attempts: Vec<Uuid> =
            sql_scalar!(checks::V14_LOST_ATTEMPTS).fetch_all(&mut *self.conn).await?;
        findings.extend(lost_attempts.into_iter().map(|id| {
            let sentence = "attempts are of a record that does not exist";
            lost("V14", "failed_attempts", RequestId::from_uuid(id).to_string(), "a record", sentence)
        }));
        let lost_skipped: Vec<Uuid> =
            sql_scalar!(checks::V14_LOST_SKIPPED).fetch_all(&mut *self.conn).await?;
        findings.extend(lost_skipped.into_iter().map(|id| {
            let sentence = "what a request passed over is of a record that does not exist";
            lost("V14", "skipped_targets", RequestId::from_uuid(id).to_string(), "a record", sentence)
        }));
        Ok(findings)
    }

    pub(super) async fn list_posts(
        &mut self,
        instance: InstanceId,
        first: i64,
        last: i64,
    ) -> Result<Vec<StoredPost>, Failure> {
        // Beyond them are the numbers of other instances.
        let (first, last) = (first.max(0), last.min(MAX_POST_NO));
        let rows: Vec<PostRow> = sql_as!(checks::LIST_POSTS, instance.as_uuid(), first, last)
            .fetch_all(&mut *self.conn)
            .await?;
        Ok(rows.into_iter().map(StoredPost::from).collect())
    }
}
