//! Admin tokens: what programs administer with.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_domain::access::{Reach, Rights};
use sluice_domain::account::{AdminSecret, AdminToken, SecretKind};
use sluice_domain::id::{AdminTokenId, TenantId};
use sluice_domain::tenant::{Name, Role};
use sluice_domain::time::UnixMillis;
use sluice_storage::admin_token::NewAdminToken;

use super::fields::Fields;
use super::page::Page;
use super::problem::{Code, Problem};
use super::route::{Answer, Authorized, Call, ReadTokens, WriteTokens};
use crate::data_folder::random_bytes;
use crate::ids::new_uuid_at;

/// Longest life of a token.
const MAX_LIFE: Duration = Duration::from_hours(366 * 24);

fn view(token: &AdminToken) -> Value {
    json!({
        "id": token.id.to_string(),
        "account_id": token.account_id.to_string(),
        "name": token.name.as_str(),
        "role": token.rights.role.as_str(),
        "tenant_id": token.rights.reach.tenant_id().map(|id| id.to_string()),
        "hint": token.hint,
        "created_at": token.created_at.to_rfc3339(),
        "expires_at": token.expires_at.to_rfc3339(),
        "revoked_at": token.revoked_at.map(UnixMillis::to_rfc3339),
    })
}

/// `GET /admin/v1/admin_tokens`: also those that have ended.
pub(crate) async fn list(by: Authorized<ReadTokens>, call: Call) -> Result<Answer, Problem> {
    let page = Page::<AdminTokenId>::read(&call.query)?;
    let rows = by
        .storage(&call)
        .list_tokens(by.reach().tenant_id(), page.after, page.rows())
        .await?;
    Ok(page.answer(rows, |token| token.id.to_string(), view))
}

/// `POST /admin/v1/admin_tokens`: the one answer that has the token in it. Without `tenant_id` it
/// holds wherever its maker's rights do.
pub(crate) async fn issue(by: Authorized<WriteTokens>, call: Call) -> Result<Answer, Problem> {
    let mut fields = Fields::read(&call.body)?;
    let name = fields.parsed::<Name>("name");
    let role = fields.parsed::<Role>("role");
    let tenant_id = fields.parsed_or_absent::<TenantId>("tenant_id");
    let expires_at = expiry(&mut fields, call.now);
    let read = name.zip(role).zip(expires_at);
    let ((name, role), expires_at) = fields.finish(read)?;

    let reach = tenant_id.map_or(by.reach(), Reach::Tenant);
    let rights = Rights { role, reach };
    if !by.caller().rights.cover(rights) {
        return Err(Problem::new(
            Code::Forbidden,
            "Nobody gives what they do not have: this token could do more than you.",
        ));
    }
    let storage = by.storage(&call);
    if let Some(tenant_id) = tenant_id
        && storage.find_tenant(tenant_id).await?.is_none()
    {
        return Err(Problem::not_found());
    }
    let random = random_bytes().map_err(|error| {
        Problem::new(Code::InternalError, "There are no random bytes.").cause(error)
    })?;
    let secret = AdminSecret::generate(SecretKind::AdminToken, *random);
    let token = AdminToken {
        id: AdminTokenId::from_uuid(new_uuid_at(call.now)),
        account_id: by.caller().account_id,
        name,
        rights,
        hint: secret.hint(),
        created_at: call.now,
        expires_at,
        revoked_at: None,
    };
    storage
        .issue_token(NewAdminToken {
            id: token.id,
            account_id: token.account_id,
            rights,
            name: token.name.clone(),
            token_hash: call.state.hasher.hash(secret.expose()),
            hint: token.hint.clone(),
            expires_at,
            now: call.now,
        })
        .await?;
    let mut view = view(&token);
    view["token"] = secret.expose().into();
    Ok(Answer::created(view))
}

/// `POST /admin/v1/admin_tokens/{token_id}/revoke`: of a token that can do no more than the caller.
pub(crate) async fn revoke(by: Authorized<WriteTokens>, call: Call) -> Result<Answer, Problem> {
    let is_done = by
        .storage(&call)
        .revoke_token(by.caller().rights, call.id("token_id")?, call.now)
        .await?;
    if is_done {
        Ok(Answer::nothing())
    } else {
        Err(Problem::not_found())
    }
}

/// Every token ends: nobody remembers one that does not.
fn expiry(fields: &mut Fields, now: UnixMillis) -> Option<UnixMillis> {
    let longest = i64::try_from(MAX_LIFE.as_millis()).unwrap_or(i64::MAX);
    let bounds = now.0 + 1..=now.0.saturating_add(longest);
    match fields.instant("expires_at") {
        Some(Some(at)) if bounds.contains(&at.0) => return Some(at),
        Some(Some(_)) => fields.refuse("expires_at", "must lie within the next 366 days"),
        Some(None) | None => fields.refuse("expires_at", "must be a time within the next 366 days"),
    }
    None
}
