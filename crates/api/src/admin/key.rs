//! Proxy keys of a tenant.

use serde_json::{Value, json};
use sluice_domain::id::{ProxyKeyId, TenantId, UserId};
use sluice_domain::key::{ProxyKey, ProxyKeySecret};
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::time::UnixMillis;
use sluice_storage::Storage;
use sluice_storage::audit::Updated;
use sluice_storage::key::{NewProxyKey, ProxyKeyUpdate};

use super::fields::Fields;
use super::page::{IfMatch, Page, precondition_failed, versioned};
use super::problem::{Code, Problem};
use super::route::{Answer, Authorized, Call, ReadKeys, WriteKeys};
use super::tenant::settable_state;
use crate::data_folder::random_bytes;
use crate::ids::new_uuid_at;

/// What may be seen of a key; its secret never.
fn view(key: &ProxyKey) -> Value {
    let state = match key.state {
        EntityState::Deleted => "revoked",
        state => state.as_str(),
    };
    json!({
        "id": key.id.to_string(),
        "tenant_id": key.tenant_id.to_string(),
        "user_id": key.user_id.to_string(),
        "name": key.name.as_str(),
        "hint": key.hint.as_str(),
        "state": state,
        "expires_at": key.expires_at.map(UnixMillis::to_rfc3339),
        "allowed_models": key.allowed_models,
        "may_pin": key.may_pin,
        "quota_tokens": key.quota_tokens,
        "created_at": key.created_at.to_rfc3339(),
    })
}

async fn find(storage: &Storage, tenant_id: TenantId, call: &Call) -> Result<ProxyKey, Problem> {
    let found = storage.find_key(call.id("key_id")?).await?;
    found
        .filter(|key| key.tenant_id == tenant_id)
        .ok_or_else(Problem::not_found)
}

/// `GET /admin/v1/tenants/{tenant_id}/keys`
pub(crate) async fn list(by: Authorized<ReadKeys>, call: Call) -> Result<Answer, Problem> {
    let page = Page::<ProxyKeyId>::read(&call.query)?;
    let tenant_id = by.tenant_id()?;
    let storage = by.storage(&call);
    if storage.find_tenant(tenant_id).await?.is_none() {
        return Err(Problem::not_found());
    }
    let rows = storage
        .list_keys(Some(tenant_id), page.after, page.rows())
        .await?;
    Ok(page.answer(rows, |key| key.id.to_string(), view))
}

/// `POST /admin/v1/tenants/{tenant_id}/keys`: the one answer that has the key in it.
pub(crate) async fn issue(by: Authorized<WriteKeys>, call: Call) -> Result<Answer, Problem> {
    let tenant_id = by.tenant_id()?;
    let mut fields = Fields::read(&call.body)?;
    let user_id = fields.parsed::<UserId>("user_id");
    let name = fields.parsed::<Name>("name");
    let expires_at = expiry(&mut fields, call.now).flatten();
    let allowed_models = fields.models("allowed_models").flatten();
    let may_pin = fields.truth("may_pin").unwrap_or(false);
    let quota_tokens = fields.tokens("quota_tokens").flatten();
    let (user_id, name) = fields.finish(user_id.zip(name))?;

    let no_random =
        |error| Problem::new(Code::InternalError, "There are no random bytes.").cause(error);
    let secret = ProxyKeySecret::generate(
        *random_bytes().map_err(no_random)?,
        *random_bytes().map_err(no_random)?,
    );
    let made = by
        .storage(&call)
        .insert_key(NewProxyKey {
            id: ProxyKeyId::from_uuid(new_uuid_at(call.now)),
            tenant_id,
            user_id,
            name,
            key_hash: call.state.hasher.hash(secret.expose()),
            hint: secret.hint(),
            expires_at,
            allowed_models,
            may_pin,
            quota_tokens,
            state: EntityState::Active,
            now: call.now,
        })
        .await?;
    let mut view = view(&made.ok_or_else(Problem::not_found)?);
    view["key"] = secret.expose().into();
    Ok(Answer::created(view))
}

/// `GET /admin/v1/tenants/{tenant_id}/keys/{key_id}`
pub(crate) async fn get(by: Authorized<ReadKeys>, call: Call) -> Result<Answer, Problem> {
    let key = find(&by.storage(&call), by.tenant_id()?, &call).await?;
    Ok(versioned(view(&key)))
}

/// `PATCH /admin/v1/tenants/{tenant_id}/keys/{key_id}`
pub(crate) async fn update(by: Authorized<WriteKeys>, call: Call) -> Result<Answer, Problem> {
    let (tenant_id, key_id) = (by.tenant_id()?, call.id("key_id")?);
    let wanted = IfMatch::read(&call)?;
    let mut fields = Fields::read(&call.body)?;
    let update = ProxyKeyUpdate {
        state: settable_state(&mut fields),
        expires_at: expiry(&mut fields, call.now),
        allowed_models: fields.models("allowed_models"),
        may_pin: fields.truth("may_pin"),
        quota_tokens: fields.tokens("quota_tokens"),
    };
    let update = fields.finish(Some(update))?;
    let is_expected = |key: &ProxyKey| wanted.fits(&view(key));
    let updated = by
        .storage(&call)
        .update_key(tenant_id, key_id, update, &is_expected, call.now)
        .await?;
    match updated {
        Updated::Done(key) => Ok(versioned(view(&key))),
        Updated::Absent => Err(Problem::not_found()),
        Updated::Unexpected => Err(precondition_failed()),
    }
}

/// `POST /admin/v1/tenants/{tenant_id}/keys/{key_id}/revoke`: for good. Doing it again changes
/// nothing.
pub(crate) async fn revoke(by: Authorized<WriteKeys>, call: Call) -> Result<Answer, Problem> {
    let storage = by.storage(&call);
    let tenant_id = by.tenant_id()?;
    let key = find(&storage, tenant_id, &call).await?;
    let update = ProxyKeyUpdate {
        state: Some(EntityState::Deleted),
        ..ProxyKeyUpdate::default()
    };
    let updated = storage
        .update_key(tenant_id, key.id, update, &|_any| true, call.now)
        .await?;
    let key = match updated {
        Updated::Done(key) => key,
        // Somebody was faster.
        Updated::Absent | Updated::Unexpected => find(&storage, tenant_id, &call).await?,
    };
    Ok(Answer::ok(view(&key)))
}

#[expect(clippy::option_option, reason = "a merge patch tells absent from null")]
fn expiry(fields: &mut Fields, now: UnixMillis) -> Option<Option<UnixMillis>> {
    let expires_at = fields.instant("expires_at")?;
    if expires_at.is_some_and(|at| at <= now) {
        fields.refuse("expires_at", "is in the past");
        return None;
    }
    Some(expires_at)
}
