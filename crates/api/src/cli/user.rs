//! `sluice user`.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;
use sluice_domain::id::UserId;
use sluice_domain::quota::{Scope, ScopeKind};
use sluice_domain::tenant::{EntityState, Name, Role};
use sluice_storage::user::NewUser;

use super::admin::{Admin, with_database};
use super::input::tokens;
use super::quota::CapArgs;
use super::table::{ListArgs, Table, time};
use crate::config::Config;
use crate::ids::new_uuid;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum UserCommand {
    /// Make a user, for example `sluice user create --tenant acme ann`
    Create {
        #[command(flatten)]
        user: UserArgs,
        /// `owner`, `admin`, `operator`, `finance` or `member`
        #[arg(long, default_value = "member")]
        role: Role,
        /// Tokens that the user may use per calendar month [default: no cap]
        #[arg(long, value_name = "TOKENS", value_parser = tokens)]
        quota: Option<i64>,
    },
    /// List the users
    List {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<Name>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Set or remove the monthly cap
    Quota {
        #[command(flatten)]
        user: UserArgs,
        #[command(flatten)]
        cap: CapArgs,
    },
    /// Stop serving the keys of a user
    Disable(#[command(flatten)] UserArgs),
    /// Serve the keys of a user again
    Enable(#[command(flatten)] UserArgs),
}

#[derive(Debug, Args)]
pub(super) struct UserArgs {
    /// The tenant
    #[arg(long)]
    tenant: Name,
    /// The user, unique inside the tenant
    name: Name,
}

pub(super) fn run(command: UserCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        UserCommand::Create { user, role, quota } => create(admin, user, role, quota).await,
        UserCommand::List { tenant, list } => self::list(admin, tenant, list).await,
        UserCommand::Quota { user, cap } => {
            let tenant = admin.tenant(&user.tenant).await?;
            let found = admin.user(&tenant, &user.name).await?;
            let scope = Scope {
                kind: ScopeKind::User,
                id: found.id.as_uuid(),
            };
            cap.apply(admin, scope, tenant.id, &format!("user `{}`", user.name))
                .await
        }
        UserCommand::Disable(user) => set_state(admin, &user, EntityState::Disabled).await,
        UserCommand::Enable(user) => set_state(admin, &user, EntityState::Active).await,
    })
}

async fn create(
    admin: &Admin<'_>,
    args: UserArgs,
    role: Role,
    quota_tokens: Option<i64>,
) -> anyhow::Result<()> {
    let tenant = admin.tenant(&args.tenant).await?;
    let made = admin
        .storage
        .create_user(NewUser {
            id: UserId::from_uuid(new_uuid()),
            tenant_id: tenant.id,
            name: args.name,
            role,
            quota_tokens,
            now: admin.now,
        })
        .await?;
    let Some(user) = made else {
        bail!("tenant `{}` was deleted meanwhile", tenant.name);
    };
    terminal::note(&format!(
        "user `{}` of tenant `{}` is made: {}",
        user.name, tenant.name, user.id
    ));
    Ok(())
}

async fn list(admin: &Admin<'_>, tenant: Option<Name>, args: ListArgs) -> anyhow::Result<()> {
    let tenants = match tenant {
        Some(name) => vec![admin.tenant(&name).await?],
        None => admin.tenants().await?,
    };
    let mut table = Table::new(&[
        "tenant",
        "name",
        "role",
        "state",
        "quota_tokens",
        "created_at",
        "id",
    ]);
    for tenant in tenants {
        for user in admin.users(&tenant).await? {
            table.push([
                json!(tenant.name.as_str()),
                json!(user.name.as_str()),
                json!(user.role.as_str()),
                json!(user.state.as_str()),
                json!(user.quota_tokens),
                time(user.created_at),
                json!(user.id.to_string()),
            ]);
        }
    }
    table.print(
        args,
        "no users yet; make one with `sluice user create --tenant TENANT NAME`",
    )
}

async fn set_state(admin: &Admin<'_>, args: &UserArgs, state: EntityState) -> anyhow::Result<()> {
    let tenant = admin.tenant(&args.tenant).await?;
    let user = admin.user(&tenant, &args.name).await?;
    if !admin
        .storage
        .set_user_state(tenant.id, user.id, state)
        .await?
    {
        bail!("user `{}` was deleted meanwhile", args.name);
    }
    terminal::note(&format!("user `{}` is {state}", args.name));
    Ok(())
}
