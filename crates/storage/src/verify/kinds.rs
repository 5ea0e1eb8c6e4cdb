//! V15: what records share is what was hashed.

use sluice_domain::id::RequestId;
use sqlx::FromRow;
use uuid::Uuid;

use super::{Finding, checks};
use crate::error::Failure;
use crate::ledger::KindContent;

/// Kinds that are read at once.
const PAGE: i64 = 1_000;

#[derive(FromRow)]
struct KindRow {
    kind_id: i64,
    hash: Vec<u8>,
    tenant_id: Uuid,
    user_id: Uuid,
    key_id: Uuid,
    period: i32,
    statement_period: i32,
    local_day: i32,
    endpoint: String,
    streams: bool,
    requested_model: String,
    upstream_id: Option<Uuid>,
    upstream_model: Option<String>,
    upstream_key_id: Option<Uuid>,
    attempt_count: i32,
    attempt_status: Option<i32>,
    ending: String,
    stage: String,
    status: i32,
    error_code: Option<String>,
    basis: String,
}

impl KindRow {
    /// Returns whether its content is what was hashed.
    fn fits(&self) -> bool {
        let content = KindContent {
            tenant_id: self.tenant_id,
            user_id: self.user_id,
            key_id: self.key_id,
            period: self.period,
            statement_period: self.statement_period,
            local_day: self.local_day,
            endpoint: &self.endpoint,
            streams: self.streams,
            requested_model: &self.requested_model,
            upstream_id: self.upstream_id,
            upstream_model: self.upstream_model.as_deref(),
            upstream_key_id: self.upstream_key_id,
            attempt_count: self.attempt_count,
            attempt_status: self.attempt_status,
            ending: &self.ending,
            stage: &self.stage,
            status: self.status,
            error_code: self.error_code.as_deref(),
            basis: &self.basis,
        };
        content.hash()[..] == self.hash
    }
}

on_both! {
    /// V15.
    pub(super) async fn verify_kinds(&mut self) -> Result<Vec<Finding>, Failure> {
        let lost: Vec<Uuid> =
            sql_scalar!(checks::V15_LOST_KINDS).fetch_all(&mut *self.conn).await?;
        let lost = lost.into_iter().map(|request_id| Finding {
            id: "V15",
            table: "usage_rows",
            key: RequestId::from_uuid(request_id).to_string(),
            expected: "a kind".to_owned(),
            found: "none".to_owned(),
            sentence: "a record names a kind that does not exist",
        });
        let mut findings: Vec<Finding> = lost.collect();
        let mut after = i64::MIN;
        loop {
            let page: Vec<KindRow> =
                sql_as!(checks::V15_KINDS, after, PAGE).fetch_all(&mut *self.conn).await?;
            let Some(last) = page.last() else { return Ok(findings) };
            after = last.kind_id;
            findings.extend(page.iter().filter(|kind| !kind.fits()).map(|kind| Finding {
                id: "V15",
                table: "record_kinds",
                key: kind.kind_id.to_string(),
                expected: "what was hashed".to_owned(),
                found: "something else".to_owned(),
                sentence: "what many records share was changed",
            }));
        }
    }
}
