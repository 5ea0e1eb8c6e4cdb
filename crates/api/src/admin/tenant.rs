//! Tenants.

use serde_json::{Value, json};
use sluice_domain::id::TenantId;
use sluice_domain::tenant::{EntityState, Name, Tenant};
use sluice_domain::time::TimeZone;
use sluice_storage::audit::Updated;
use sluice_storage::tenant::{NewTenant, TenantUpdate};

use super::fields::Fields;
use super::page::{IfMatch, Page, etag, precondition_failed, versioned};
use super::problem::Problem;
use super::route::{Answer, Authorized, Call, CreateTenant, ListTenants, ReadTenant, WriteTenant};
use crate::ids::new_uuid_at;

fn view(tenant: &Tenant) -> Value {
    json!({
        "id": tenant.id.to_string(),
        "name": tenant.name.as_str(),
        "time_zone": tenant.time_zone.name(),
        "state": tenant.state.as_str(),
        "quota_tokens": tenant.quota_tokens,
        "created_at": tenant.created_at.to_rfc3339(),
    })
}

/// Reads a state that an admin may set: nothing is deleted.
pub(crate) fn settable_state(fields: &mut Fields) -> Option<EntityState> {
    let state = fields.parsed_or_absent::<EntityState>("state")?;
    if state == EntityState::Deleted {
        fields.refuse("state", "must be active or disabled");
        return None;
    }
    Some(state)
}

/// `GET /admin/v1/tenants`
pub(crate) async fn list(by: Authorized<ListTenants>, call: Call) -> Result<Answer, Problem> {
    let page = Page::<TenantId>::read(&call.query)?;
    let storage = by.storage(&call);
    let rows = match by.reach().tenant_id() {
        None => storage.list_tenants(page.after, page.rows()).await?,
        Some(own) => {
            let own = storage.find_tenant(own).await?;
            own.into_iter()
                .filter(|tenant| page.after.is_none_or(|after| tenant.id > after))
                .collect()
        }
    };
    Ok(page.answer(rows, |tenant| tenant.id.to_string(), view))
}

/// `POST /admin/v1/tenants`
pub(crate) async fn create(by: Authorized<CreateTenant>, call: Call) -> Result<Answer, Problem> {
    let mut fields = Fields::read(&call.body)?;
    let name = fields.parsed::<Name>("name");
    let time_zone = fields.parsed_or_absent::<TimeZone>("time_zone");
    let quota_tokens = fields.tokens("quota_tokens").flatten();
    let name = fields.finish(name)?;
    let made = by
        .storage(&call)
        .create_tenant(NewTenant {
            id: TenantId::from_uuid(new_uuid_at(call.now)),
            name,
            time_zone: time_zone.unwrap_or_else(TimeZone::utc),
            quota_tokens,
            now: call.now,
        })
        .await?;
    let view = view(&made);
    let etag = etag(&view);
    Ok(Answer::created(view).with_etag(etag))
}

/// `GET /admin/v1/tenants/{tenant_id}`
pub(crate) async fn get(by: Authorized<ReadTenant>, call: Call) -> Result<Answer, Problem> {
    let found = by.storage(&call).find_tenant(by.tenant_id()?).await?;
    let tenant = found.ok_or_else(Problem::not_found)?;
    Ok(versioned(view(&tenant)))
}

/// `PATCH /admin/v1/tenants/{tenant_id}`
pub(crate) async fn update(by: Authorized<WriteTenant>, call: Call) -> Result<Answer, Problem> {
    let tenant_id = call.id("tenant_id")?;
    let wanted = IfMatch::read(&call)?;
    let mut fields = Fields::read(&call.body)?;
    let update = TenantUpdate {
        state: settable_state(&mut fields),
        quota_tokens: fields.tokens("quota_tokens"),
    };
    let update = fields.finish(Some(update))?;
    let is_expected = |tenant: &Tenant| wanted.fits(&view(tenant));
    let updated = by
        .storage(&call)
        .update_tenant(tenant_id, update, &is_expected, call.now)
        .await?;
    match updated {
        Updated::Done(tenant) => Ok(versioned(view(&tenant))),
        Updated::Absent => Err(Problem::not_found()),
        Updated::Unexpected => Err(precondition_failed()),
    }
}
