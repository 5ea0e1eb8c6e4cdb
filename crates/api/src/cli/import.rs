//! `sluice key import`: foreign keys from a JSON document.
//!
//! No message ever repeats a value of the document: a mistake may put a key anywhere in it.

mod document;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use sluice_domain::id::{ProxyKeyId, TenantId, UserId};
use sluice_domain::tenant::{Name, Tenant};
use sluice_domain::time::TimeZone;
use sluice_storage::import::{Imported, KeyImport};
use sluice_storage::tenant::NewTenant;

use self::document::Entry;
use super::admin::Admin;
use super::input::read_document;
use crate::data_folder::Secrets;
use crate::ids::new_uuid;
use crate::terminal;

/// Tenant of users that are not written as `tenant/user`, where no flag names another.
const DEFAULT_TENANT: &str = "default";
/// Problems that are shown; a wrong column would show one per entry.
const MAX_PROBLEMS: usize = 20;

pub(super) async fn run(
    admin: &Admin<'_>,
    file: &Path,
    tenant: Option<Name>,
) -> anyhow::Result<()> {
    let secrets = Secrets::load(admin.config)?;
    let default_tenant = match tenant {
        Some(tenant) => tenant,
        None => DEFAULT_TENANT.parse().context("the default tenant")?,
    };
    let source = if file == Path::new("-") {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    };
    let bytes = read_document(file)?;
    let entries = document::read(&bytes, &default_tenant)
        .map_err(list)
        .with_context(|| format!("{source}: nothing was imported"))?;
    drop(bytes);
    let Some(tenant_name) = only_tenant(&entries)? else {
        terminal::note("the document holds no keys");
        return Ok(());
    };
    let tenant = ensure_tenant(admin, tenant_name).await?;
    let imports = to_imports(&entries, &secrets)?;
    let imported = admin
        .storage
        .import_keys(tenant.id, imports, admin.now)
        .await
        .context("nothing was imported")?
        .with_context(|| format!("tenant `{tenant_name}` was deleted meanwhile"))?;
    report(&imported, &tenant.name)
}

/// Joins problems into one text, up to a bound.
fn list(mut problems: Vec<String>) -> anyhow::Error {
    let more = problems.len().saturating_sub(MAX_PROBLEMS);
    problems.truncate(MAX_PROBLEMS);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    anyhow!("{}", problems.join("; "))
}

/// Returns the tenant of the entries. One import is one transaction of one tenant.
fn only_tenant(entries: &[Entry]) -> anyhow::Result<Option<&Name>> {
    let tenants: BTreeSet<&Name> = entries.iter().map(|entry| &entry.tenant).collect();
    let mut tenants = tenants.into_iter();
    match (tenants.next(), tenants.next()) {
        (first, None) => Ok(first),
        (Some(first), Some(second)) => bail!(
            "nothing was imported: the document names several tenants (`{first}`, `{second}`); \
             import one tenant at a time, so that it is all or none"
        ),
        (None, Some(_)) => Ok(None),
    }
}

async fn ensure_tenant(admin: &Admin<'_>, name: &Name) -> anyhow::Result<Tenant> {
    if name.as_str() != DEFAULT_TENANT {
        return admin.tenant(name).await;
    }
    if let Some(tenant) = admin.storage.find_tenant_by_name(name).await? {
        return Ok(tenant);
    }
    let tenant = admin
        .storage
        .create_tenant(NewTenant {
            id: TenantId::from_uuid(new_uuid()),
            name: name.clone(),
            time_zone: "UTC".parse::<TimeZone>()?,
            quota_tokens: None,
            now: admin.now,
        })
        .await?;
    terminal::note(&format!("tenant `{name}` is made, with the time zone UTC"));
    Ok(tenant)
}

fn to_imports(entries: &[Entry], secrets: &Secrets) -> anyhow::Result<Vec<KeyImport>> {
    let hasher = secrets.hasher();
    let name: Name = "imported".parse().context("the name of imported keys")?;
    Ok(entries
        .iter()
        .map(|entry| KeyImport {
            id: ProxyKeyId::from_uuid(new_uuid()),
            name: name.clone(),
            user: entry.user.clone(),
            new_user_id: UserId::from_uuid(new_uuid()),
            key_hash: hasher.hash(entry.key.expose()),
            hint: entry.key.hint(),
            quota_tokens: entry.quota_tokens,
            state: entry.state,
        })
        .collect())
}

fn report(imported: &[Imported], tenant: &Name) -> anyhow::Result<()> {
    let count = |is: fn(&Imported) -> bool| imported.iter().filter(|one| is(one)).count();
    let created = count(|one| matches!(one, Imported::Created(_)));
    let updated = count(|one| matches!(one, Imported::Updated(_)));
    let revoked = count(|one| matches!(one, Imported::Revoked(_)));
    terminal::result(&format!(
        "imported into tenant `{tenant}`: {created} created, {updated} updated"
    ))?;
    if revoked > 0 {
        terminal::warning(&format!(
            "{revoked} keys of the document were revoked for good before and stay so"
        ));
    }
    Ok(())
}
