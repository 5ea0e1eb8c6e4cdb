//! The first tenant, user and proxy key.

use anyhow::{Context as _, bail};
use sluice_domain::id::{TenantId, UserId};
use sluice_domain::key::ProxyKeySecret;
use sluice_domain::tenant::{EntityState, Name, Role, Tenant, User};
use sluice_domain::time::TimeZone;
use sluice_storage::tenant::NewTenant;
use sluice_storage::user::NewUser;

use crate::cli::admin::{Admin, PAGE};
use crate::cli::key::{KeyOptions, issue};
use crate::data_folder::Secrets;
use crate::ids::new_uuid;

const TENANT: &str = "default";
const USER: &str = "me";
const KEY: &str = "quickstart";

/// What there is to call the relay with.
pub(super) enum Account {
    /// A new key.
    New(ProxyKeySecret),
    /// There were keys before, which cannot be shown again.
    Kept {
        /// What may be shown of one that works, where there is one.
        hint: Option<String>,
        /// How to make another one.
        command: String,
    },
}

/// Makes tenant, user and key where there is none yet. A start that ended half-way is continued.
pub(super) async fn prepare(admin: &Admin<'_>, secrets: &Secrets) -> anyhow::Result<Account> {
    let (tenant_name, user_name): (Name, Name) = (TENANT.parse()?, USER.parse()?);
    let tenants = admin.tenants().await?;
    let is_ours = tenants.iter().all(|tenant| tenant.name == tenant_name);
    let has_keys = !admin.storage.list_keys(None, None, 1).await?.is_empty();
    if has_keys || !is_ours {
        return kept(admin, &tenants).await;
    }
    let tenant = if let Some(tenant) = tenants.into_iter().next() {
        tenant
    } else {
        let new = NewTenant {
            id: TenantId::from_uuid(new_uuid()),
            name: tenant_name,
            time_zone: "UTC".parse::<TimeZone>()?,
            quota_tokens: None,
            now: admin.now,
        };
        admin.storage.create_tenant(new).await?
    };
    let user = ensure_user(admin, &tenant, user_name).await?;
    let (secret, _key) = issue(admin, secrets, &user, KEY.parse()?, KeyOptions::default()).await?;
    Ok(Account::New(secret))
}

async fn ensure_user(admin: &Admin<'_>, tenant: &Tenant, name: Name) -> anyhow::Result<User> {
    if let Some(user) = admin.storage.find_user_by_name(tenant.id, &name).await? {
        return Ok(user);
    }
    let new = NewUser {
        id: UserId::from_uuid(new_uuid()),
        tenant_id: tenant.id,
        name,
        role: Role::Owner,
        quota_tokens: None,
        now: admin.now,
    };
    let made = admin.storage.create_user(new).await?;
    made.with_context(|| format!("tenant `{}` was deleted meanwhile", tenant.name))
}

/// Finds a key to remind of, the newest of the quickstart's own user before any other.
async fn kept(admin: &Admin<'_>, tenants: &[Tenant]) -> anyhow::Result<Account> {
    let Some(tenant) = tenants
        .iter()
        .find(|tenant| tenant.name.as_str() == TENANT)
        .or(tenants.first())
    else {
        bail!("there are proxy keys but no tenants; the database is damaged");
    };
    let users = admin.users(tenant).await?;
    let user = users
        .iter()
        .find(|user| user.name.as_str() == USER)
        .or(users.first());
    let keys = admin.storage.list_keys(Some(tenant.id), None, PAGE).await?;
    let hint = keys
        .iter()
        .rev()
        .find(|key| {
            key.state == EntityState::Active
                && user.is_some_and(|user| user.id == key.user_id)
                && key.expires_at.is_none_or(|at| at > admin.now)
        })
        .map(|key| key.hint.as_str().to_owned());
    let user = user.map_or("USER", |user| user.name.as_str());
    Ok(Account::Kept {
        hint,
        command: format!(
            "sluice key issue --tenant {} --user {} --name NAME",
            quoted(tenant.name.as_str()),
            quoted(user)
        ),
    })
}

/// Quotes a name for a shell where it needs that.
fn quoted(name: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:/".contains(&b);
    if name.bytes().all(is_plain) {
        name.to_owned()
    } else {
        format!("'{}'", name.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_quoted_for_a_shell_where_it_needs_that() {
        assert_eq!(quoted("ann@example.com"), "ann@example.com");
        assert_eq!(quoted("it's me"), "'it'\\''s me'");
        assert_eq!(quoted("$(rm)"), "'$(rm)'");
    }
}
