//! What admins did.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sluice_storage::audit::{ActorKind, AuditEvent};

use super::page::Page;
use super::problem::Problem;
use super::route::{Answer, Authorized, Call, ReadAudit};

fn view(event: &AuditEvent) -> Value {
    let actor_id = match event.actor {
        ActorKind::Account(id) => Some(id.to_string()),
        ActorKind::Token(id) => Some(id.to_string()),
        ActorKind::CommandLine => None,
    };
    let hash = URL_SAFE_NO_PAD.encode(event.hash);
    json!({
        "seq": event.seq,
        "at": event.at.to_rfc3339(),
        "actor": {"kind": event.actor.as_str(), "id": actor_id, "name": event.actor_name},
        "source": event.source,
        "action": event.action,
        "tenant_id": event.tenant_id.map(|id| id.to_string()),
        "target": event.target,
        "before": event.before,
        "after": event.after,
        "hash": hash,
    })
}

/// `GET /admin/v1/audit_events`: the latest first.
pub(crate) async fn list(by: Authorized<ReadAudit>, call: Call) -> Result<Answer, Problem> {
    let page = Page::<i64>::read(&call.query)?;
    let rows = by
        .storage(&call)
        .list_audit_events(by.reach().tenant_id(), page.after, page.rows())
        .await?;
    Ok(page.answer(rows, |event| event.seq.to_string(), view))
}
