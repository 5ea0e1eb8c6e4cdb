//! `sluice explain`: what became of a request, and why.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};
use sluice_domain::id::{RequestId, UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{SkipReason, SkippedTarget};
use sluice_storage::usage::{StoredAttempt, StoredRecord};

use super::admin::{Admin, with_database};
use super::table::ListArgs;
use crate::config::Config;
use crate::terminal;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// Id of the request, as the header `x-request-id` and the log have it
    id: RequestId,
    #[command(flatten)]
    list: ListArgs,
}

pub(super) fn run(args: &ExplainArgs, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| {
        let Some(record) = admin.storage.find_record(args.id).await? else {
            bail!(
                "there is no record of {}: it still runs, was refused before it was admitted, or its \
                 record is on its way to the database",
                args.id
            );
        };
        let names = Names::load(admin, &record).await?;
        if args.list.json {
            terminal::result(&format!("{:#}", as_json(&record, &names)))?;
        } else {
            terminal::result(&as_text(&record, &names))?;
        }
        Ok(())
    })
}

/// What the ids of a record are called. What is deleted still has its name.
struct Names {
    upstreams: HashMap<UpstreamId, String>,
    upstream_keys: HashMap<UpstreamKeyId, String>,
    tenant: Option<String>,
    user: Option<String>,
    key: Option<String>,
}

impl Names {
    async fn load(admin: &Admin<'_>, record: &StoredRecord) -> anyhow::Result<Self> {
        let mut upstreams = HashMap::new();
        let mut upstream_keys = HashMap::new();
        let attempted = record.attempts.iter().map(|attempt| attempt.upstream_id);
        let skipped = record.skipped.named().iter().map(|skip| skip.upstream_id);
        let met: Vec<UpstreamId> = attempted.chain(skipped).collect();
        for upstream in admin.storage.list_upstreams().await? {
            if !met.contains(&upstream.id) {
                continue;
            }
            let keys = admin.storage.list_upstream_keys(upstream.id).await?;
            upstream_keys.extend(keys.into_iter().map(|key| (key.id, key.name.to_string())));
            upstreams.insert(upstream.id, upstream.name.to_string());
        }
        let tenants = admin.tenants().await?;
        let tenant = tenants.into_iter().find(|t| t.id == record.tenant_id);
        let users = match &tenant {
            Some(tenant) => admin.users(tenant).await?,
            None => Vec::new(),
        };
        let user = users.into_iter().find(|user| user.id == record.user_id);
        let key = admin.storage.find_key(record.key_id).await?;
        Ok(Self {
            upstreams,
            upstream_keys,
            tenant: tenant.map(|tenant| tenant.name.to_string()),
            user: user.map(|user| user.name.to_string()),
            key: key.map(|key| key.name.to_string()),
        })
    }

    fn upstream(&self, id: UpstreamId) -> String {
        self.upstreams
            .get(&id)
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }

    fn upstream_key(&self, id: UpstreamKeyId) -> String {
        self.upstream_keys
            .get(&id)
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }
}

/// Says what a reason means.
const fn meaning(reason: SkipReason) -> &'static str {
    match reason {
        SkipReason::Cooldown => "rests after the provider limited it",
        SkipReason::BreakerOpen => {
            "its breaker is open after failures, or another request probes it"
        }
        SkipReason::Quarantined => "the provider refused it; `enable` uses it again",
        SkipReason::AtLimit => "its own limits allow no more at the time",
        SkipReason::Throttled => "it accepts less than it is asked",
    }
}

fn as_json(record: &StoredRecord, names: &Names) -> Value {
    let attempt = |attempt: &StoredAttempt| {
        json!({
            "n": attempt.n,
            "upstream": names.upstream(attempt.upstream_id),
            "upstream_id": attempt.upstream_id.to_string(),
            "upstream_key": attempt.upstream_key_id.map(|id| names.upstream_key(id)),
            "upstream_key_id": attempt.upstream_key_id.map(|id| id.to_string()),
            "upstream_model": attempt.upstream_model,
            "status": attempt.status,
            "error": attempt.error,
            "started_at": attempt.started_at.to_rfc3339(),
            "started_after_ms": attempt.started_at.since(record.started_at),
            "head_ms": attempt.head_ms,
        })
    };
    let skip = |skip: &SkippedTarget| {
        json!({
            "upstream": names.upstream(skip.upstream_id),
            "upstream_id": skip.upstream_id.to_string(),
            "upstream_key": skip.upstream_key_id.map(|id| names.upstream_key(id)),
            "upstream_key_id": skip.upstream_key_id.map(|id| id.to_string()),
            "reason": skip.reason.as_str(),
        })
    };
    json!({
        "request_id": record.request_id.to_string(),
        "instance_id": record.instance_id.to_string(),
        "tenant": names.tenant,
        "user": names.user,
        "key": names.key,
        "endpoint": record.endpoint,
        "streams": record.streams,
        "model": record.requested_model,
        "started_at": record.started_at.to_rfc3339(),
        "first_event_ms": record.first_event_ms,
        "duration_ms": record.duration_ms,
        "ending": record.ending,
        "stage": record.stage,
        "status": record.status,
        "error_code": record.error_code,
        "attempts": record.attempts.iter().map(attempt).collect::<Vec<_>>(),
        "skipped": record.skipped.named().iter().map(skip).collect::<Vec<_>>(),
        "skipped_more": record.skipped.more(),
        "basis": record.basis,
        "input_tokens": record.usage.input,
        "output_tokens": record.usage.output,
        "quota_tokens": record.quota_tokens,
    })
}

fn as_text(record: &StoredRecord, names: &Names) -> String {
    let unknown = || "(unknown)".to_owned();
    let name = |name: &Option<String>| name.clone().unwrap_or_else(unknown);
    let mut lines = vec![
        format!(
            "{}: {}{} for model `{}`",
            record.request_id,
            record.endpoint,
            if record.streams { ", streamed," } else { "" },
            record.requested_model
        ),
        format!(
            "from tenant `{}`, user `{}`, key `{}`",
            name(&names.tenant),
            name(&names.user),
            name(&names.key)
        ),
        format!(
            "began {}{}, ended after {} ms",
            record.started_at.to_rfc3339(),
            record
                .first_event_ms
                .map_or_else(String::new, |ms| format!(", first answered after {ms} ms")),
            record.duration_ms
        ),
    ];
    for skipped in record.skipped.named() {
        lines.push(skip_line(skipped, names));
    }
    if record.skipped.more() > 0 {
        lines.push(format!("passed over: {} more", record.skipped.more()));
    }
    for attempt in &record.attempts {
        lines.push(attempt_line(attempt, record, names));
    }
    if record.attempts.is_empty() {
        lines.push("nothing was sent".to_owned());
    }
    let code = record.error_code.as_deref();
    lines.push(format!(
        "ended: {} with status {}{}",
        record.ending,
        record.status,
        code.map_or_else(String::new, |code| format!(" ({code})"))
    ));
    lines.push(format!(
        "tokens: {} in, {} out ({}); {} charged",
        record.usage.input, record.usage.output, record.basis, record.quota_tokens
    ));
    lines.join("\n")
}

fn skip_line(skipped: &SkippedTarget, names: &Names) -> String {
    let upstream = names.upstream(skipped.upstream_id);
    let what = skipped.upstream_key_id.map_or_else(
        || format!("upstream `{upstream}`"),
        |id| format!("key `{}` of upstream `{upstream}`", names.upstream_key(id)),
    );
    let reason = skipped.reason;
    format!("passed over: {what}: {reason}: {}", meaning(reason))
}

fn attempt_line(attempt: &StoredAttempt, record: &StoredRecord, names: &Names) -> String {
    let mut line = format!(
        "attempt {}: upstream `{}`",
        attempt.n,
        names.upstream(attempt.upstream_id)
    );
    if let Some(id) = attempt.upstream_key_id {
        // Writing to a string cannot fail.
        let _infallible = write!(line, ", key `{}`", names.upstream_key(id));
    }
    let status = attempt.status.map_or_else(
        || "no answer".to_owned(),
        |status| format!("status {status}"),
    );
    let error = attempt
        .error
        .as_deref()
        .map_or_else(String::new, |error| format!(", {error}"));
    let _infallible = write!(
        line,
        ", model `{}`: {status}{error} after {} ms, begun at {} ms",
        attempt.upstream_model,
        attempt.head_ms,
        attempt.started_at.since(record.started_at)
    );
    line
}
