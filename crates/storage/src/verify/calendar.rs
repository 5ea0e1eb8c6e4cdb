//! Months, the days of their records, and statements.

use sluice_domain::id::RequestId;
use sluice_domain::time::{LocalDay, TimeZone, UnixMillis};
use sqlx::FromRow;
use uuid::Uuid;

use super::{Finding, Floor, checks, tenant};
use crate::error::Failure;

/// How far a local day may lie from the same day in UTC, at either end.
///
/// # Units
/// Milliseconds.
const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

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
struct DayRow {
    tenant_id: Uuid,
    local_day: i32,
    first_ms: i64,
    last_ms: i64,
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

fn utc_day(at: i64) -> LocalDay {
    TimeZone::utc().day_of(UnixMillis(at)).day
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
    let (first, last) = (
        utc_day(starts.saturating_sub(DAY_MS)),
        utc_day(ends.saturating_add(DAY_MS)),
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

/// Returns the times at which requests of a local day may have begun: from the first to before the
/// second. A request may wait before it is admitted, and a zone is at most a day from UTC.
fn starts_of(day: LocalDay) -> (i64, i64) {
    let start = sluice_domain::time::parse_rfc3339(&format!("{day}T00:00:00Z"));
    // A day that is none holds no request.
    start.map_or((i64::MAX, i64::MIN), |at| {
        (at.0.saturating_sub(DAY_MS), at.0.saturating_add(2 * DAY_MS))
    })
}

on_both! {
    /// V7, V9, V10.
    pub(super) async fn verify_calendar(&mut self, floor: Floor) -> Result<Vec<Finding>, Failure> {
        let months: Vec<MonthRow> = sql_as!(checks::V7_MONTHS).fetch_all(&mut *self.conn).await?;
        let mut findings: Vec<Finding> = months.iter().filter_map(of_month).collect();
        findings.extend(self.verify_days().await?);
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
            sql_as!(checks::V10_STATEMENTS, floor.period).fetch_all(&mut *self.conn).await?;
        findings.extend(statements.into_iter().map(|row| Finding {
            id: "V10",
            table: "statements",
            key: format!("{} of {}", tenant(row.tenant_id), row.period),
            expected: format!("{} records", row.expected),
            found: format!("{} records", row.found),
            sentence: "a closed month has other records than its statement",
        }));
        let unstated: Vec<(Uuid, i32)> =
            sql_as!(checks::V10_UNSTATED).fetch_all(&mut *self.conn).await?;
        findings.extend(unstated.into_iter().map(|(id, period)| Finding {
            id: "V10",
            table: "statements",
            key: format!("{} of {period}", tenant(id)),
            expected: "a statement".to_owned(),
            found: "none".to_owned(),
            sentence: "a month is closed and has no statement",
        }));
        Ok(findings)
    }

    /// A part of V7: the times at which the records of each day began.
    async fn verify_days(&mut self) -> Result<Vec<Finding>, Failure> {
        let days: Vec<DayRow> = sql_as!(checks::V7_DAYS).fetch_all(&mut *self.conn).await?;
        let mut findings = Vec::new();
        for row in days {
            let day = LocalDay(row.local_day);
            let (from, until) = starts_of(day);
            if from <= row.first_ms && row.last_ms < until {
                continue;
            }
            let strays: Vec<(Uuid, i64)> =
                sql_as!(checks::V7_STARTS, row.tenant_id, row.local_day, from, until)
                    .fetch_all(&mut *self.conn)
                    .await?;
            findings.extend(strays.into_iter().map(|(id, at)| Finding {
                id: "V7",
                table: "usage_records",
                key: RequestId::from_uuid(id).to_string(),
                expected: format!("a start on {day}"),
                found: UnixMillis(at).to_rfc3339(),
                sentence: "a request began on another day than its record says",
            }));
        }
        Ok(findings)
    }
}
