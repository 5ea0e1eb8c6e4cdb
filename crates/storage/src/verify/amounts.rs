//! What must add up: counters, rollups, charges.

use sluice_domain::id::RequestId;
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use super::{Finding, Floor, both, checks, instance, tenant};
use crate::error::Failure;
use crate::ledger::scope_and_month;

/// Both units of a row; `None` is without a cap.
#[derive(FromRow)]
pub(super) struct CounterRow {
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

/// Makes findings of counters.
pub(super) fn of_counters(
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

on_both! {
    /// V1, V2, V3, V13.
    pub(super) async fn verify_counters(
        &mut self,
        floor: Floor,
        now: UnixMillis,
    ) -> Result<Vec<Finding>, Failure> {
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
        let used: Vec<CounterRow> =
            sql_as!(checks::V2_USED, floor.period).fetch_all(&mut *self.conn).await?;
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
        let uncounted: Vec<CounterRow> =
            sql_as!(checks::V13_UNCOUNTED).fetch_all(&mut *self.conn).await?;
        findings.extend(of_counters("V13", "what has a cap has no counter", uncounted)?);
        Ok(findings)
    }

    /// V5, V6.
    pub(super) async fn verify_records(&mut self, floor: Floor) -> Result<Vec<Finding>, Failure> {
        let days: Vec<RollupRow> = sql_as!(checks::V5_DAYS, Uuid::nil(), floor.local_day)
            .fetch_all(&mut *self.conn)
            .await?;
        let mut findings = of_rollups("rollup_daily", "the days are not the sums of the records", days);
        let months: Vec<RollupRow> = sql_as!(checks::V5_MONTHS).fetch_all(&mut *self.conn).await?;
        findings.extend(of_rollups(
            "rollup_monthly",
            "the months are not the sums of the days",
            months,
        ));
        let removed: Option<(i64, i64, i64)> = sql_as!(checks::V5_REMOVED, floor.local_day)
            .fetch_optional(&mut *self.conn)
            .await?;
        findings.extend(removed.map(|(n, tokens, nano)| Finding {
            id: "V5",
            table: "ledger_floor",
            key: format!("up to {}", floor.local_day),
            expected: "the same sums".to_owned(),
            found: format!("{n:+} requests, {tokens:+} tokens, {nano:+} nano"),
            sentence: "the days are not the sums of the records and of what retention has removed",
        }));
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
        Ok(findings)
    }
}
