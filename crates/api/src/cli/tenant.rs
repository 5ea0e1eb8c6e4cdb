//! `sluice tenant`.

use clap::Subcommand;
use serde_json::json;
use sluice_domain::id::TenantId;
use sluice_domain::quota::{Scope, ScopeKind};
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::time::TimeZone;
use sluice_storage::tenant::NewTenant;

use super::admin::{Admin, with_database};
use super::input::tokens;
use super::quota::CapArgs;
use super::table::{ListArgs, Table, time};
use crate::config::Config;
use crate::ids::new_uuid;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum TenantCommand {
    /// Make a tenant, for example `sluice tenant create acme --time-zone Europe/Berlin`
    Create {
        /// Its name, unique
        name: Name,
        /// IANA time zone in which its days and months begin
        #[arg(long, value_name = "ZONE", default_value = "UTC")]
        time_zone: TimeZone,
        /// Tokens that it may use per calendar month [default: no cap]
        #[arg(long, value_name = "TOKENS", value_parser = tokens)]
        quota: Option<i64>,
    },
    /// List the tenants
    List(#[command(flatten)] ListArgs),
    /// Set or remove the monthly cap, for example `sluice tenant quota acme --tokens 1_000_000`
    Quota {
        /// The tenant
        name: Name,
        #[command(flatten)]
        cap: CapArgs,
    },
    /// Stop serving the keys of a tenant
    Disable {
        /// The tenant
        name: Name,
    },
    /// Serve the keys of a tenant again
    Enable {
        /// The tenant
        name: Name,
    },
}

pub(super) fn run(command: TenantCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        TenantCommand::Create {
            name,
            time_zone,
            quota,
        } => create(admin, name, time_zone, quota).await,
        TenantCommand::List(args) => list(admin, args).await,
        TenantCommand::Quota { name, cap } => {
            let tenant = admin.tenant(&name).await?;
            let scope = Scope {
                kind: ScopeKind::Tenant,
                id: tenant.id.as_uuid(),
            };
            cap.apply(admin, scope, tenant.id, &format!("tenant `{name}`"))
                .await
        }
        TenantCommand::Disable { name } => set_state(admin, &name, EntityState::Disabled).await,
        TenantCommand::Enable { name } => set_state(admin, &name, EntityState::Active).await,
    })
}

async fn create(
    admin: &Admin<'_>,
    name: Name,
    time_zone: TimeZone,
    quota_tokens: Option<i64>,
) -> anyhow::Result<()> {
    let tenant = admin
        .storage
        .create_tenant(NewTenant {
            id: TenantId::from_uuid(new_uuid()),
            name,
            time_zone,
            quota_tokens,
            now: admin.now,
        })
        .await?;
    terminal::note(&format!("tenant `{}` is made: {}", tenant.name, tenant.id));
    Ok(())
}

async fn list(admin: &Admin<'_>, args: ListArgs) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "name",
        "state",
        "time_zone",
        "quota_tokens",
        "created_at",
        "id",
    ]);
    for tenant in admin.tenants().await? {
        table.push([
            json!(tenant.name.as_str()),
            json!(tenant.state.as_str()),
            json!(tenant.time_zone.name()),
            json!(tenant.quota_tokens),
            time(tenant.created_at),
            json!(tenant.id.to_string()),
        ]);
    }
    table.print(
        args,
        "no tenants yet; make one with `sluice tenant create NAME`",
    )
}

async fn set_state(admin: &Admin<'_>, name: &Name, state: EntityState) -> anyhow::Result<()> {
    let tenant = admin.tenant(name).await?;
    if !admin.storage.set_tenant_state(tenant.id, state).await? {
        anyhow::bail!("tenant `{name}` was deleted meanwhile");
    }
    terminal::note(&format!("tenant `{name}` is {state}"));
    Ok(())
}
