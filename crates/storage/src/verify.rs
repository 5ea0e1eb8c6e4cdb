//! The identities of the ledger, each a query that finds nothing when it holds.

mod checks;

use std::fmt;

use sluice_domain::id::{InstanceId, RequestId, TenantId};
use sluice_domain::ports::StoreError;
use sluice_domain::time::{LocalDay, TimeZone, UnixMillis};
use sqlx::FromRow;
use uuid::Uuid;

use crate::error::Failure;
use crate::ledger::scope_and_month;
use crate::storage::Storage;

pub(crate) use self::checks::STATEMENTS;

/// A row that breaks an identity of the ledger, or that somebody should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule: `V1` to `V13` are faults, `W1` is a warning.
    pub id: &'static str,
    /// The table of the row.
    pub table: &'static str,
    /// Its key, in words.
    pub key: String,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// What it means.
    pub sentence: &'static str,
}

impl Finding {
    /// Returns whether the ledger is sound and a person should look nevertheless.
    pub fn is_warning(&self) -> bool {
        self.id.starts_with('W')
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            table,
            key,
            expected,
            found,
            sentence,
        } = self;
        write!(
            f,
            "{id} {table} {key}: expected {expected}, found {found}: {sentence}"
        )
    }
}

/// How far a local day may lie outside the bounds of its month in UTC.
///
/// # Units
/// Milliseconds.
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;
/// A live instance that holds leases should have been heard of within this time.
///
/// # Units
/// Milliseconds.
const SILENT_FOR_MS: i64 = 5 * 60 * 1_000;

/// Both units of a row; `None` is without a cap.
#[derive(FromRow)]
struct CounterRow {
    scope: String,
    scope_id: Uuid,
    period: i32,
    expected_tokens: Option<i64>,
    found_tokens: Option<i64>,
    expected_nano: Option<i64>,
    found_nano: Option<i64>,
}

#[derive(FromRow)]
struct LostLeaseRow {
    instance_id: Uuid,
    id: Uuid,
}

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
}

#[derive(FromRow)]
struct RollupRow {
    tenant_id: Uuid,
    key_id: Uuid,
    model: String,
    at: i32,
    n: i64,
    tokens: i64,
    nano: i64,
}

#[derive(FromRow)]
struct RecordAmountsRow {
    request_id: Uuid,
    bound_tokens: i64,
    bound_nano: i64,
    quota_tokens: i64,
    charge_nano: i64,
    excess_tokens: i64,
    excess_nano: i64,
}

#[derive(FromRow)]
struct MonthRow {
    tenant_id: Uuid,
    period: i32,
    first_day: i32,
    last_day: i32,
    counter_id: Option<Uuid>,
    starts_at_ms: Option<i64>,
    ends_at_ms: Option<i64>,
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
struct CalendarRow {
    tenant_id: Uuid,
    period: i32,
    ends: i64,
    starts: i64,
}

#[derive(FromRow)]
struct StatementRow {
    tenant_id: Uuid,
    period: i32,
    expected: i64,
    found: i64,
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

fn instance(id: Uuid) -> InstanceId {
    InstanceId::from_uuid(id)
}

fn tenant(id: Uuid) -> TenantId {
    TenantId::from_uuid(id)
}

/// Writes an amount, `no cap` for none.
fn both(tokens: Option<i64>, nano: Option<i64>) -> String {
    let word = |amount: Option<i64>| amount.map_or_else(|| "no cap".to_owned(), |a| a.to_string());
    format!("{} tokens and {} nano", word(tokens), word(nano))
}

/// Makes findings of counters.
fn of_counters(
    id: &'static str,
    sentence: &'static str,
    rows: Vec<CounterRow>,
) -> Result<Vec<Finding>, Failure> {
    rows.into_iter()
        .map(|row| {
            let (scope, month) = scope_and_month(&row.scope, row.scope_id, row.period)?;
            Ok(Finding {
                id,
                table: "counters",
                key: format!("{} {} of {month}", scope.kind, scope.id.simple()),
                expected: both(row.expected_tokens, row.expected_nano),
                found: both(row.found_tokens, row.found_nano),
                sentence,
            })
        })
        .collect()
}

fn of_rollups(table: &'static str, sentence: &'static str, rows: Vec<RollupRow>) -> Vec<Finding> {
    let finding = |row: RollupRow| Finding {
        id: "V5",
        table,
        key: format!(
            "{} key {} model {} at {}",
            tenant(row.tenant_id),
            row.key_id.simple(),
            row.model,
            row.at
        ),
        expected: "the same sums".to_owned(),
        found: format!(
            "{:+} requests, {:+} tokens, {:+} nano and other sums beside them",
            row.n, row.tokens, row.nano
        ),
        sentence,
    };
    rows.into_iter().map(finding).collect()
}

/// Returns what is wrong with a month that has records.
fn of_month(row: &MonthRow) -> Option<Finding> {
    let finding = |table, expected: String, found: String, sentence| Finding {
        id: "V7",
        table,
        key: format!("{} in {}", tenant(row.tenant_id), row.period),
        expected,
        found,
        sentence,
    };
    if row.counter_id.is_none() {
        return Some(finding(
            "counters",
            "a counter".to_owned(),
            "none".to_owned(),
            "the tenant has records in a month without a counter",
        ));
    }
    let (Some(starts), Some(ends)) = (row.starts_at_ms, row.ends_at_ms) else {
        return Some(finding(
            "periods",
            "a month in the calendar".to_owned(),
            "none".to_owned(),
            "the tenant has records in a month that is not in its calendar",
        ));
    };
    // Zones are at most a day apart.
    let day = |at: i64| TimeZone::utc().day_of(UnixMillis(at)).day;
    let (first, last) = (
        day(starts.saturating_sub(DAY_MS)),
        day(ends.saturating_add(DAY_MS)),
    );
    let is_inside = (first..=last).contains(&LocalDay(row.first_day))
        && (first..=last).contains(&LocalDay(row.last_day));
    (!is_inside).then(|| {
        finding(
            "usage_records",
            format!("days from {first} to {last}"),
            format!("{} to {}", LocalDay(row.first_day), LocalDay(row.last_day)),
            "a local day lies outside the month of its record",
        )
    })
}

impl Storage {
    /// Checks the identities of the ledger in one snapshot, without writing. Nothing found is clean;
    /// warnings come last.
    ///
    /// Reads all records: on a large ledger this takes minutes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn verify_ledger(&self, now: UnixMillis) -> Result<Vec<Finding>, StoreError> {
        in_snapshot!(self, verify_ledger(now))
    }
}

on_both! {
    async fn verify_ledger(&mut self, now: UnixMillis) -> Result<Vec<Finding>, Failure> {
        let mut findings = self.verify_counters(now).await?;
        findings.extend(self.verify_records().await?);
        findings.extend(self.verify_instances().await?);
        findings.extend(self.verify_calendar().await?);
        findings.extend(self.warnings(now).await?);
        Ok(findings)
    }

    /// V1, V2, V3, V13.
    async fn verify_counters(&mut self, now: UnixMillis) -> Result<Vec<Finding>, Failure> {
        let held: Vec<CounterRow> = sql_as!(checks::V1_HELD).fetch_all(&mut *self.conn).await?;
        let mut findings =
            of_counters("V1", "what is held is not the sum of the leases", held)?;
        let lost: Vec<LostLeaseRow> = sql_as!(checks::V1_LOST_LEASES).fetch_all(&mut *self.conn).await?;
        findings.extend(lost.into_iter().map(|row| Finding {
            id: "V1",
            table: "leases",
            key: format!("{} of counter {}", instance(row.instance_id), row.id.simple()),
            expected: "a counter".to_owned(),
            found: "none".to_owned(),
            sentence: "a lease is of a counter that does not exist",
        }));
        let used: Vec<CounterRow> = sql_as!(checks::V2_USED).fetch_all(&mut *self.conn).await?;
        findings.extend(of_counters(
            "V2",
            "what is used is not the sum of the records and entries",
            used,
        )?);
        let peak: Vec<CounterRow> = sql_as!(checks::V3_PEAK).fetch_all(&mut *self.conn).await?;
        findings.extend(of_counters(
            "V3",
            "more is used and held than the highest cap of the month and what was counted beyond it",
            peak,
        )?);
        let caps: Vec<CounterRow> = sql_as!(checks::V13_CAPS, now.0).fetch_all(&mut *self.conn).await?;
        findings.extend(of_counters("V13", "the cap of the counter is not that of the quota", caps)?);
        Ok(findings)
    }

    /// V5, V6, V11.
    async fn verify_records(&mut self) -> Result<Vec<Finding>, Failure> {
        let days: Vec<RollupRow> =
            sql_as!(checks::V5_DAYS, Uuid::nil()).fetch_all(&mut *self.conn).await?;
        let mut findings = of_rollups("rollup_daily", "the days are not the sums of the records", days);
        let months: Vec<RollupRow> = sql_as!(checks::V5_MONTHS).fetch_all(&mut *self.conn).await?;
        findings.extend(of_rollups(
            "rollup_monthly",
            "the months are not the sums of the days",
            months,
        ));
        let amounts: Vec<RecordAmountsRow> =
            sql_as!(checks::V6_AMOUNTS).fetch_all(&mut *self.conn).await?;
        findings.extend(amounts.into_iter().map(|row| Finding {
            id: "V6",
            table: "usage_records",
            key: RequestId::from_uuid(row.request_id).to_string(),
            expected: format!("at most {}", both(Some(row.bound_tokens), Some(row.bound_nano))),
            found: format!(
                "{} and {} beyond it",
                both(Some(row.quota_tokens), Some(row.charge_nano)),
                both(Some(row.excess_tokens), Some(row.excess_nano)),
            ),
            sentence: "a charge does not fit what was held",
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
                table: "usage_records_default",
                key: "all".to_owned(),
                expected: "0 records".to_owned(),
                found: format!("{stray} records"),
                sentence: "records lie outside the partitions of their months",
            });
        }
        Ok(findings)
    }

    /// V4, V8, V12.
    async fn verify_instances(&mut self) -> Result<Vec<Finding>, Failure> {
        let numbers: Vec<NumbersRow> = sql_as!(checks::V4_NUMBERS).fetch_all(&mut *self.conn).await?;
        let numbers = numbers.into_iter().map(|row| Finding {
            id: "V4",
            table: "instances",
            key: instance(row.instance_id).to_string(),
            expected: format!(
                "{} posts: {} records ({} of them removed) and {} set aside",
                row.posted_no, row.posted_rows, row.dropped_rows, row.quarantined_rows
            ),
            found: format!(
                "{} records up to number {} and {} set aside",
                row.records, row.last, row.quarantined
            ),
            sentence: "a post is missing, or there is one too many",
        });
        let mut findings: Vec<Finding> = numbers.collect();
        let unknown: Vec<Uuid> =
            sql_scalar!(checks::V4_UNKNOWN_INSTANCES).fetch_all(&mut *self.conn).await?;
        findings.extend(unknown.into_iter().map(|id| Finding {
            id: "V4",
            table: "instances",
            key: instance(id).to_string(),
            expected: "an instance".to_owned(),
            found: "none".to_owned(),
            sentence: "records are of an instance that does not exist",
        }));
        let exposures: Vec<ExposureRow> = sql_as!(checks::V8_EXPOSURES).fetch_all(&mut *self.conn).await?;
        findings.extend(exposures.into_iter().map(|row| Finding {
            id: "V8",
            table: "ledger_entries",
            key: format!("{} of counter {}", instance(row.instance_id), row.id.simple()),
            expected: match row.state.as_deref() {
                Some("closed") => both(Some(0), Some(0)),
                _ => "no less than 0".to_owned(),
            },
            found: both(Some(row.tokens), Some(row.nano)),
            sentence: "exposures and releases of an instance do not fit its state",
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

    /// V7, V9, V10.
    async fn verify_calendar(&mut self) -> Result<Vec<Finding>, Failure> {
        let months: Vec<MonthRow> = sql_as!(checks::V7_MONTHS).fetch_all(&mut *self.conn).await?;
        let mut findings: Vec<Finding> = months.iter().filter_map(of_month).collect();
        let gaps: Vec<CalendarRow> = sql_as!(checks::V9_CALENDAR).fetch_all(&mut *self.conn).await?;
        findings.extend(gaps.into_iter().map(|row| Finding {
            id: "V9",
            table: "periods",
            key: format!("{} after {}", tenant(row.tenant_id), row.period),
            expected: UnixMillis(row.ends).to_rfc3339(),
            found: UnixMillis(row.starts).to_rfc3339(),
            sentence: "two months of a tenant overlap or leave a gap",
        }));
        let statements: Vec<StatementRow> =
            sql_as!(checks::V10_STATEMENTS).fetch_all(&mut *self.conn).await?;
        findings.extend(statements.into_iter().map(|row| Finding {
            id: "V10",
            table: "statements",
            key: format!("{} of {}", tenant(row.tenant_id), row.period),
            expected: format!("{} records", row.expected),
            found: format!("{} records", row.found),
            sentence: "a closed month has other records than its statement",
        }));
        Ok(findings)
    }

    /// W1.
    async fn warnings(&mut self, now: UnixMillis) -> Result<Vec<Finding>, Failure> {
        let over: Vec<CounterRow> = sql_as!(checks::W1_OVER).fetch_all(&mut *self.conn).await?;
        let mut findings = of_counters("W1", "more was spent than the cap allowed", over)?;
        let ended: Vec<CounterRow> = sql_as!(checks::W1_ENDED, now.0).fetch_all(&mut *self.conn).await?;
        findings.extend(of_counters(
            "W1",
            "something is still leased of a month that is over",
            ended,
        )?);
        let aside: Vec<(Uuid, i64, String)> =
            sql_as!(checks::W1_QUARANTINE).fetch_all(&mut *self.conn).await?;
        findings.extend(aside.into_iter().map(|(id, post_no, reason)| Finding {
            id: "W1",
            table: "quarantine",
            key: format!("post {post_no} of {}", instance(id)),
            expected: "nothing".to_owned(),
            found: reason,
            sentence: "a record was set aside; its charge is an exposure until it is repaired",
        }));
        let silent_since = now.0.saturating_sub(SILENT_FOR_MS);
        let instances: Vec<(Uuid, String, i64)> =
            sql_as!(checks::W1_INSTANCES, silent_since).fetch_all(&mut *self.conn).await?;
        findings.extend(instances.into_iter().map(|(id, state, heartbeat)| {
            let is_resolved = state != "live";
            Finding {
                id: "W1",
                table: "instances",
                key: instance(id).to_string(),
                expected: if is_resolved { "closed" } else { "a sign of life" }.to_owned(),
                found: format!("{state}, heard of at {}", UnixMillis(heartbeat).to_rfc3339()),
                sentence: if is_resolved {
                    "an instance was settled and has not handed in its journal"
                } else {
                    "an instance holds leases and is silent"
                },
            }
        }));
        Ok(findings)
    }
}
