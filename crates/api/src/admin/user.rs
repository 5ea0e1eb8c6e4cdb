//! Users of a tenant.

use serde_json::{Value, json};
use sluice_domain::access::{Reach, Rights};
use sluice_domain::id::UserId;
use sluice_domain::tenant::{Name, Role, User};
use sluice_storage::audit::Updated;
use sluice_storage::user::{NewUser, UserUpdate};

use super::fields::Fields;
use super::page::{IfMatch, Page, etag, precondition_failed, versioned};
use super::problem::{Code, Problem};
use super::route::{Answer, Authorized, Call, ReadUsers, WriteUsers};
use super::tenant::settable_state;
use crate::ids::new_uuid_at;

fn view(user: &User) -> Value {
    json!({
        "id": user.id.to_string(),
        "tenant_id": user.tenant_id.to_string(),
        "name": user.name.as_str(),
        "role": user.role.as_str(),
        "state": user.state.as_str(),
        "quota_tokens": user.quota_tokens,
        "created_at": user.created_at.to_rfc3339(),
    })
}

/// `GET /admin/v1/tenants/{tenant_id}/users`
pub(crate) async fn list(by: Authorized<ReadUsers>, call: Call) -> Result<Answer, Problem> {
    let page = Page::<UserId>::read(&call.query)?;
    let tenant_id = by.tenant_id()?;
    let storage = by.storage(&call);
    if storage.find_tenant(tenant_id).await?.is_none() {
        return Err(Problem::not_found());
    }
    let rows = storage
        .list_users(tenant_id, page.after, page.rows())
        .await?;
    Ok(page.answer(rows, |user| user.id.to_string(), view))
}

/// `POST /admin/v1/tenants/{tenant_id}/users`
pub(crate) async fn create(by: Authorized<WriteUsers>, call: Call) -> Result<Answer, Problem> {
    let tenant_id = by.tenant_id()?;
    let mut fields = Fields::read(&call.body)?;
    let name = fields.parsed::<Name>("name");
    let role = fields
        .parsed_or_absent::<Role>("role")
        .unwrap_or(Role::Member);
    let quota_tokens = fields.tokens("quota_tokens").flatten();
    let name = fields.finish(name)?;
    let reach = Reach::Tenant(tenant_id);
    if !by.caller().rights.cover(Rights { role, reach }) {
        return Err(Problem::new(
            Code::Forbidden,
            format!(
                "Nobody gives what they do not have: you may not make a user with the role `{role}`."
            ),
        ));
    }
    let made = by
        .storage(&call)
        .create_user(NewUser {
            id: UserId::from_uuid(new_uuid_at(call.now)),
            tenant_id,
            name,
            role,
            quota_tokens,
            now: call.now,
        })
        .await?;
    let view = view(&made.ok_or_else(Problem::not_found)?);
    let etag = etag(&view);
    Ok(Answer::created(view).with_etag(etag))
}

/// `GET /admin/v1/tenants/{tenant_id}/users/{user_id}`
pub(crate) async fn get(by: Authorized<ReadUsers>, call: Call) -> Result<Answer, Problem> {
    let found = by
        .storage(&call)
        .find_user(by.tenant_id()?, call.id("user_id")?)
        .await?;
    let user = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(view(&user)))
}

/// `PATCH /admin/v1/tenants/{tenant_id}/users/{user_id}`
pub(crate) async fn update(by: Authorized<WriteUsers>, call: Call) -> Result<Answer, Problem> {
    let (tenant_id, user_id) = (by.tenant_id()?, call.id("user_id")?);
    let wanted = IfMatch::read(&call)?;
    let mut fields = Fields::read(&call.body)?;
    let update = UserUpdate {
        state: settable_state(&mut fields),
        quota_tokens: fields.tokens("quota_tokens"),
    };
    let update = fields.finish(Some(update))?;
    let is_expected = |user: &User| wanted.fits(&view(user));
    let updated = by
        .storage(&call)
        .update_user(tenant_id, user_id, update, &is_expected, call.now)
        .await?;
    match updated {
        Updated::Done(user) => Ok(versioned(view(&user))),
        Updated::Absent => Err(Problem::not_found()),
        Updated::Unexpected => Err(precondition_failed()),
    }
}
