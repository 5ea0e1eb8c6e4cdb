//! What the ledger tells: records, and sums by day and month.

use std::collections::HashMap;

use sluice_domain::id::{
    InstanceId, ProxyKeyId, RequestId, TenantId, UpstreamId, UpstreamKeyId, UserId, uuid_v7,
};
use sluice_domain::pool::SkippedTargets;
use sluice_domain::ports::StoreError;
use sluice_domain::quota::Amounts;
use sluice_domain::time::{LocalDay, Month, UnixMillis};
use sluice_domain::usage::TokenUsage;
use sqlx::FromRow;
use uuid::Uuid;

use crate::bulk::Repeats;
use crate::error::{Failure, corrupt};
use crate::ledger::upstream_of_rollup;
use crate::skipped;
use crate::storage::Storage;

/// How far the time inside a request id may be from the time of its record, in milliseconds.
const ID_SLACK_MS: i64 = 24 * 60 * 60 * 1_000;

statements! {
    // The time inside the ids makes an index on the time needless.
    FIND_RECORD = "SELECT request_id, instance_id, post_no, tenant_id, user_id, key_id, period, \
            statement_period, local_day, started_at_ms, endpoint, streams, requested_model, \
            upstream_id, upstream_model, ending, stage, status, error_code, basis, input_tokens, \
            cached_input_tokens, cache_write_input_tokens, output_tokens, reasoning_output_tokens, \
            bound_tokens, bound_nano, quota_tokens, charge_nano, excess_tokens, excess_nano, \
            first_event_ms, duration_ms \
        FROM usage_records WHERE request_id = $1";
    LIST_RECORDS = "SELECT request_id, instance_id, post_no, tenant_id, user_id, key_id, period, \
            statement_period, local_day, started_at_ms, endpoint, streams, requested_model, \
            upstream_id, upstream_model, ending, stage, status, error_code, basis, input_tokens, \
            cached_input_tokens, cache_write_input_tokens, output_tokens, reasoning_output_tokens, \
            bound_tokens, bound_nano, quota_tokens, charge_nano, excess_tokens, excess_nano, \
            first_event_ms, duration_ms \
        FROM usage_records \
        WHERE request_id >= $1 AND request_id < $2 AND tenant_id = $3 \
            AND started_at_ms >= $4 AND started_at_ms < $5 \
        ORDER BY request_id DESC LIMIT $6";
    USAGE_BY_DAY = "SELECT local_day, key_id, user_id, model, upstream_id, \
            CAST(SUM(requests) AS BIGINT) AS requests, CAST(SUM(failures) AS BIGINT) AS failures, \
            CAST(SUM(input_tokens) AS BIGINT) AS input_tokens, \
            CAST(SUM(cached_input_tokens) AS BIGINT) AS cached_input_tokens, \
            CAST(SUM(cache_write_input_tokens) AS BIGINT) AS cache_write_input_tokens, \
            CAST(SUM(output_tokens) AS BIGINT) AS output_tokens, \
            CAST(SUM(reasoning_output_tokens) AS BIGINT) AS reasoning_output_tokens, \
            CAST(SUM(quota_tokens) AS BIGINT) AS quota_tokens \
        FROM rollup_daily WHERE tenant_id = $1 AND local_day BETWEEN $2 AND $3 \
        GROUP BY local_day, key_id, user_id, model, upstream_id \
        ORDER BY local_day, key_id, model, upstream_id";
    USAGE_BY_MONTH = "SELECT period, key_id, user_id, model, upstream_id, \
            CAST(SUM(requests) AS BIGINT) AS requests, CAST(SUM(failures) AS BIGINT) AS failures, \
            CAST(SUM(input_tokens) AS BIGINT) AS input_tokens, \
            CAST(SUM(cached_input_tokens) AS BIGINT) AS cached_input_tokens, \
            CAST(SUM(cache_write_input_tokens) AS BIGINT) AS cache_write_input_tokens, \
            CAST(SUM(output_tokens) AS BIGINT) AS output_tokens, \
            CAST(SUM(reasoning_output_tokens) AS BIGINT) AS reasoning_output_tokens, \
            CAST(SUM(quota_tokens) AS BIGINT) AS quota_tokens \
        FROM rollup_monthly WHERE tenant_id = $1 AND period BETWEEN $2 AND $3 \
        GROUP BY period, key_id, user_id, model, upstream_id \
        ORDER BY period, key_id, model, upstream_id";
}

bulks! {
    ATTEMPTS_OF = "WITH wanted (request_id) AS (VALUES ",
        1,
        // Both halves of the view `attempts`: SQLite would read the whole of it for a join.
        ") SELECT a.request_id AS request_id, a.n AS n, a.upstream_id, a.upstream_key_id, a.upstream_model, \
            a.status, a.error, a.started_at_ms, a.head_ms \
        FROM wanted w CROSS JOIN failed_attempts a WHERE a.request_id = w.request_id \
        UNION ALL SELECT r.request_id, r.attempt_count, r.upstream_id, r.upstream_key_id, r.upstream_model, \
            r.attempt_status, CAST(NULL AS TEXT), r.attempt_started_at_ms, r.attempt_head_ms \
        FROM wanted w CROSS JOIN usage_records r \
        WHERE r.request_id = w.request_id AND r.attempt_head_ms IS NOT NULL ORDER BY request_id, n";
    DETAILS_OF = "WITH wanted (request_id) AS (VALUES ",
        1,
        ") SELECT d.request_id, d.ip, d.user_agent \
        FROM wanted w CROSS JOIN record_details d WHERE d.request_id = w.request_id";
    SKIPPED_OF = "WITH wanted (request_id) AS (VALUES ",
        1,
        ") SELECT s.request_id, s.targets, s.more \
        FROM wanted w CROSS JOIN skipped_targets s WHERE s.request_id = w.request_id";
}

/// A usage record as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRecord {
    /// The request.
    pub request_id: RequestId,
    /// The instance that posted it.
    pub instance_id: InstanceId,
    /// The number that its instance gave it.
    pub post_no: i64,
    /// Who pays.
    pub tenant_id: TenantId,
    /// The user.
    pub user_id: UserId,
    /// The key.
    pub key_id: ProxyKeyId,
    /// The quota month.
    pub period: Month,
    /// The statement month.
    pub statement_period: Month,
    /// The tenant's local day.
    pub local_day: LocalDay,
    /// When the request had been read.
    pub started_at: UnixMillis,
    /// The endpoint.
    pub endpoint: String,
    /// Whether the client asked for a stream.
    pub streams: bool,
    /// The model that the client asked for.
    pub requested_model: String,
    /// The upstream of the last attempt.
    pub upstream_id: Option<UpstreamId>,
    /// The name of the model there.
    pub upstream_model: Option<String>,
    /// How it ended.
    pub ending: String,
    /// How far it had come.
    pub stage: String,
    /// The status that the client was answered.
    pub status: i32,
    /// The code of the error that the client was answered.
    pub error_code: Option<String>,
    /// How the tokens are known.
    pub basis: String,
    /// Tokens by class.
    pub usage: TokenUsage,
    /// What was held: the charge is never more.
    pub bound: Amounts,
    /// Tokens charged to the quotas.
    pub quota_tokens: i64,
    /// What the tenant is charged, in billionths of the ledger's currency.
    pub charge_nano: i64,
    /// What was owed beyond the hold and is charged to nobody.
    pub excess: Amounts,
    /// Milliseconds to the first event or byte.
    pub first_event_ms: Option<i64>,
    /// Milliseconds to the end.
    pub duration_ms: i64,
    /// The attempts in order.
    pub attempts: Vec<StoredAttempt>,
    /// What was passed over, and why.
    pub skipped: SkippedTargets,
    /// The source address; erased with personal data.
    pub ip: Option<String>,
    /// The `user-agent` header; erased with personal data.
    pub user_agent: Option<String>,
}

/// An attempt as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAttempt {
    /// Its number, from 1.
    pub n: i32,
    /// The upstream.
    pub upstream_id: UpstreamId,
    /// The upstream key.
    pub upstream_key_id: Option<UpstreamKeyId>,
    /// The name of the model there.
    pub upstream_model: String,
    /// The status that the upstream answered.
    pub status: Option<i32>,
    /// What went wrong.
    pub error: Option<String>,
    /// When it began.
    pub started_at: UnixMillis,
    /// Milliseconds to the head of the answer, or to the failure.
    pub head_ms: i64,
}

/// Sums of one key, model and upstream in a day or month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageSums {
    /// The key.
    pub key_id: ProxyKeyId,
    /// The user.
    pub user_id: UserId,
    /// The requested model.
    pub model: String,
    /// The upstream of the last attempt; `None` when nothing was sent.
    pub upstream_id: Option<UpstreamId>,
    /// Requests.
    pub requests: i64,
    /// Requests that did not end well: another ending than finished, or a status from 400.
    pub failures: i64,
    /// Tokens by class.
    pub usage: TokenUsage,
    /// Tokens charged to the quotas.
    pub quota_tokens: i64,
}

#[derive(FromRow)]
struct RecordRow {
    request_id: Uuid,
    instance_id: Uuid,
    post_no: i64,
    tenant_id: Uuid,
    user_id: Uuid,
    key_id: Uuid,
    period: i32,
    statement_period: i32,
    local_day: i32,
    started_at_ms: i64,
    endpoint: String,
    streams: bool,
    requested_model: String,
    upstream_id: Option<Uuid>,
    upstream_model: Option<String>,
    ending: String,
    stage: String,
    status: i32,
    error_code: Option<String>,
    basis: String,
    #[sqlx(flatten)]
    tokens: TokenRow,
    bound_tokens: i64,
    bound_nano: i64,
    quota_tokens: i64,
    charge_nano: i64,
    excess_tokens: i64,
    excess_nano: i64,
    first_event_ms: Option<i64>,
    duration_ms: i64,
}

#[derive(FromRow)]
#[expect(clippy::struct_field_names, reason = "the names of columns")]
struct TokenRow {
    input_tokens: i64,
    cached_input_tokens: i64,
    cache_write_input_tokens: i64,
    output_tokens: i64,
    reasoning_output_tokens: i64,
}

impl From<TokenRow> for TokenUsage {
    fn from(row: TokenRow) -> Self {
        Self {
            input: row.input_tokens,
            cached_input: row.cached_input_tokens,
            cache_write_input: row.cache_write_input_tokens,
            output: row.output_tokens,
            reasoning_output: row.reasoning_output_tokens,
        }
    }
}

#[derive(FromRow)]
struct AttemptRow {
    request_id: Uuid,
    n: i32,
    upstream_id: Uuid,
    upstream_key_id: Option<Uuid>,
    upstream_model: String,
    status: Option<i32>,
    error: Option<String>,
    started_at_ms: i64,
    head_ms: i64,
}

#[derive(FromRow)]
struct DetailRow {
    request_id: Uuid,
    ip: Option<String>,
    user_agent: Option<String>,
}

#[derive(FromRow)]
struct SkippedRow {
    request_id: Uuid,
    targets: String,
    more: i64,
}

#[derive(FromRow)]
struct SumsRow {
    key_id: Uuid,
    user_id: Uuid,
    model: String,
    upstream_id: Uuid,
    requests: i64,
    failures: i64,
    #[sqlx(flatten)]
    tokens: TokenRow,
    quota_tokens: i64,
}

#[derive(FromRow)]
struct DayRow {
    local_day: i32,
    #[sqlx(flatten)]
    sums: SumsRow,
}

#[derive(FromRow)]
struct MonthRow {
    period: i32,
    #[sqlx(flatten)]
    sums: SumsRow,
}

impl From<SumsRow> for UsageSums {
    fn from(row: SumsRow) -> Self {
        Self {
            key_id: ProxyKeyId::from_uuid(row.key_id),
            user_id: UserId::from_uuid(row.user_id),
            model: row.model,
            upstream_id: upstream_of_rollup(row.upstream_id),
            requests: row.requests,
            failures: row.failures,
            usage: row.tokens.into(),
            quota_tokens: row.quota_tokens,
        }
    }
}

impl From<AttemptRow> for StoredAttempt {
    fn from(row: AttemptRow) -> Self {
        Self {
            n: row.n,
            upstream_id: UpstreamId::from_uuid(row.upstream_id),
            upstream_key_id: row.upstream_key_id.map(UpstreamKeyId::from_uuid),
            upstream_model: row.upstream_model,
            status: row.status,
            error: row.error,
            started_at: UnixMillis(row.started_at_ms),
            head_ms: row.head_ms,
        }
    }
}

impl TryFrom<RecordRow> for StoredRecord {
    type Error = StoreError;

    fn try_from(row: RecordRow) -> Result<Self, StoreError> {
        let request_id = RequestId::from_uuid(row.request_id);
        let month = |number: i32, column| {
            Month::from_number(number).ok_or_else(|| corrupt("usage_records", column, request_id))
        };
        Ok(Self {
            request_id,
            instance_id: InstanceId::from_uuid(row.instance_id),
            post_no: row.post_no,
            tenant_id: TenantId::from_uuid(row.tenant_id),
            user_id: UserId::from_uuid(row.user_id),
            key_id: ProxyKeyId::from_uuid(row.key_id),
            period: month(row.period, "period")?,
            statement_period: month(row.statement_period, "statement_period")?,
            local_day: LocalDay(row.local_day),
            started_at: UnixMillis(row.started_at_ms),
            endpoint: row.endpoint,
            streams: row.streams,
            requested_model: row.requested_model,
            upstream_id: row.upstream_id.map(UpstreamId::from_uuid),
            upstream_model: row.upstream_model,
            ending: row.ending,
            stage: row.stage,
            status: row.status,
            error_code: row.error_code,
            basis: row.basis,
            usage: row.tokens.into(),
            bound: Amounts {
                tokens: row.bound_tokens,
                nano: row.bound_nano,
            },
            quota_tokens: row.quota_tokens,
            charge_nano: row.charge_nano,
            excess: Amounts {
                tokens: row.excess_tokens,
                nano: row.excess_nano,
            },
            first_event_ms: row.first_event_ms,
            duration_ms: row.duration_ms,
            attempts: Vec::new(),
            skipped: SkippedTargets::default(),
            ip: None,
            user_agent: None,
        })
    }
}

impl Storage {
    /// Finds the record of a request, of whichever tenant: for operators.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_record(&self, id: RequestId) -> Result<Option<StoredRecord>, StoreError> {
        reading!(self, find_record(id))
    }

    /// Lists the records of a tenant that began in a span (its end excluded), newest first, with
    /// their attempts and details.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_records(
        &self,
        tenant_id: TenantId,
        from: UnixMillis,
        to: UnixMillis,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        reading!(self, list_records(tenant_id, from, to, limit))
    }

    /// Sums the usage of a tenant by local day, both ends included, and by key, model and upstream.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn usage_by_day(
        &self,
        tenant_id: TenantId,
        first: LocalDay,
        last: LocalDay,
    ) -> Result<Vec<(LocalDay, UsageSums)>, StoreError> {
        reading!(self, usage_by_day(tenant_id, first, last))
    }

    /// Sums the usage of a tenant by quota month, both ends included, and by key, model and upstream.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn usage_by_month(
        &self,
        tenant_id: TenantId,
        first: Month,
        last: Month,
    ) -> Result<Vec<(Month, UsageSums)>, StoreError> {
        reading!(self, usage_by_month(tenant_id, first, last))
    }
}

/// Returns the smallest request id of a time.
fn first_id_at(ms: i64) -> Uuid {
    let id = uuid_v7(u64::try_from(ms).unwrap_or(0), [0; 10]);
    // Below the version and variant that every id has.
    Uuid::from_u128(id.as_u128() & !((1 << 80) - 1))
}

on_both! {
    async fn list_records(
        &mut self,
        tenant_id: TenantId,
        from: UnixMillis,
        to: UnixMillis,
        limit: u32,
    ) -> Result<Vec<StoredRecord>, Failure> {
        let rows: Vec<RecordRow> = sql_as!(
            LIST_RECORDS,
            first_id_at(from.0.saturating_sub(ID_SLACK_MS)),
            first_id_at(to.0.saturating_add(ID_SLACK_MS)),
            tenant_id.as_uuid(),
            from.0,
            to.0,
            i64::from(limit),
        )
        .fetch_all(&mut *self.conn)
        .await?;
        self.whole_records(rows).await
    }

    async fn find_record(&mut self, id: RequestId) -> Result<Option<StoredRecord>, Failure> {
        let row: Vec<RecordRow> =
            sql_as!(FIND_RECORD, id.as_uuid()).fetch_all(&mut *self.conn).await?;
        Ok(self.whole_records(row).await?.pop())
    }

    /// Puts what hangs on records to them.
    async fn whole_records(&mut self, rows: Vec<RecordRow>) -> Result<Vec<StoredRecord>, Failure> {
        let mut records: Vec<StoredRecord> =
            rows.into_iter().map(StoredRecord::try_from).collect::<Result<_, _>>()?;
        let ids: Vec<Uuid> = records.iter().map(|record| record.request_id.as_uuid()).collect();
        let attempts: Vec<AttemptRow> =
            self.fetch_bulk(&ATTEMPTS_OF, &ids, Repeats::Never, |arguments, id| row!(arguments, *id)).await?;
        let details: Vec<DetailRow> =
            self.fetch_bulk(&DETAILS_OF, &ids, Repeats::Never, |arguments, id| row!(arguments, *id)).await?;
        let skipped: Vec<SkippedRow> =
            self.fetch_bulk(&SKIPPED_OF, &ids, Repeats::Never, |arguments, id| row!(arguments, *id)).await?;
        let places: HashMap<Uuid, usize> = ids.into_iter().zip(0..).collect();
        for row in attempts {
            if let Some(record) = places.get(&row.request_id).and_then(|at| records.get_mut(*at)) {
                record.attempts.push(row.into());
            }
        }
        for row in details {
            if let Some(record) = places.get(&row.request_id).and_then(|at| records.get_mut(*at)) {
                record.ip = row.ip;
                record.user_agent = row.user_agent;
            }
        }
        for row in skipped {
            if let Some(record) = places.get(&row.request_id).and_then(|at| records.get_mut(*at)) {
                record.skipped = skipped::read(&row.targets, row.more)
                    .ok_or_else(|| corrupt("skipped_targets", "targets", record.request_id))?;
            }
        }
        Ok(records)
    }

    async fn usage_by_day(
        &mut self,
        tenant_id: TenantId,
        first: LocalDay,
        last: LocalDay,
    ) -> Result<Vec<(LocalDay, UsageSums)>, Failure> {
        let rows: Vec<DayRow> = sql_as!(USAGE_BY_DAY, tenant_id.as_uuid(), first.0, last.0)
            .fetch_all(&mut *self.conn)
            .await?;
        Ok(rows.into_iter().map(|row| (LocalDay(row.local_day), row.sums.into())).collect())
    }

    async fn usage_by_month(
        &mut self,
        tenant_id: TenantId,
        first: Month,
        last: Month,
    ) -> Result<Vec<(Month, UsageSums)>, Failure> {
        let (first, last) = (first.as_number(), last.as_number());
        let rows: Vec<MonthRow> = sql_as!(USAGE_BY_MONTH, tenant_id.as_uuid(), first, last)
            .fetch_all(&mut *self.conn)
            .await?;
        rows.into_iter()
            .map(|row| {
                let month = Month::from_number(row.period)
                    .ok_or_else(|| corrupt("rollup_monthly", "period", tenant_id))?;
                Ok((month, row.sums.into()))
            })
            .collect()
    }
}
