//! `sluice key`.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_domain::id::ProxyKeyId;
use sluice_domain::key::{ProxyKey, ProxyKeySecret};
use sluice_domain::tenant::{EntityState, Name, Tenant, User};
use sluice_domain::time::{UnixMillis, parse_rfc3339};
use sluice_storage::key::NewProxyKey;

use super::admin::{Admin, PAGE, with_database};
use super::import;
use super::input::tokens;
use super::table::{ListArgs, Table, time};
use crate::config::Config;
use crate::data_folder::{Secrets, random_bytes};
use crate::ids::new_uuid;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Make a proxy key and print it, once
    ///
    /// The key alone goes to standard output:
    /// `KEY=$(sluice key issue --tenant acme --user ann --name laptop --quiet)`
    Issue(IssueArgs),
    /// Import keys of any shape, all or none
    ///
    /// The file is JSON: `{"keys": [{"key": "…", "user": "ann", "quota": 1000000, "enabled": true}]}`.
    /// `quota` is in tokens per month, absent or null is without a cap; `enabled` is true by
    /// default. Users that are missing are made. A key that is there already gets the quota and
    /// state of the file.
    Import {
        /// The file, or `-` for standard input
        file: PathBuf,
        /// Tenant of the users whose name is not written as `tenant/user` [default: default]
        #[arg(long)]
        tenant: Option<Name>,
    },
    /// List the proxy keys
    List {
        /// Only of this tenant
        #[arg(long)]
        tenant: Option<Name>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Change what a key may do, for example `sluice key set ID --allow-pin`
    Set {
        #[command(flatten)]
        key: KeyArgs,
        /// Whether its requests may name their upstream with the header `x-sluice-upstream`
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", required = true)]
        allow_pin: bool,
    },
    /// Revoke a key for good
    Revoke(#[command(flatten)] KeyArgs),
    /// Stop serving a key
    Disable(#[command(flatten)] KeyArgs),
    /// Serve a key again
    Enable(#[command(flatten)] KeyArgs),
}

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The tenant
    #[arg(long)]
    tenant: Name,
    /// The user
    #[arg(long)]
    user: Name,
    /// What people call the key
    #[arg(long)]
    name: Name,
    /// When it ends, such as 2026-12-31T23:59:59Z [default: never]
    #[arg(long, value_name = "RFC3339", value_parser = parse_rfc3339)]
    expires: Option<UnixMillis>,
    /// Models that it may ask for, separated by commas [default: all of its tenant]
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    models: Vec<String>,
    /// Tokens that it may use per calendar month [default: no cap]
    #[arg(long, value_name = "TOKENS", value_parser = tokens)]
    quota: Option<i64>,
    /// Let its requests name their upstream with the header `x-sluice-upstream`
    #[arg(long)]
    allow_pin: bool,
    /// Print nothing but the key
    #[arg(long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    /// Id of the key, as `sluice key list` shows it
    // Not parsed by clap, which would repeat it: people paste whole keys here.
    id: String,
}

impl KeyArgs {
    fn id(&self) -> anyhow::Result<ProxyKeyId> {
        self.id
            .parse()
            .context("this is no id of a key; `sluice key list` shows them")
    }
}

pub(super) fn run(command: KeyCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        KeyCommand::Issue(args) => issue_and_print(admin, args).await,
        KeyCommand::Import { file, tenant } => import::run(admin, &file, tenant).await,
        KeyCommand::List { tenant, list } => self::list(admin, tenant, list).await,
        KeyCommand::Set { key, allow_pin } => set_pin(admin, key.id()?, allow_pin).await,
        KeyCommand::Revoke(key) => set_state(admin, key.id()?, EntityState::Deleted).await,
        KeyCommand::Disable(key) => set_state(admin, key.id()?, EntityState::Disabled).await,
        KeyCommand::Enable(key) => set_state(admin, key.id()?, EntityState::Active).await,
    })
}

/// What may be chosen about a new key.
#[derive(Debug, Default)]
pub(super) struct KeyOptions {
    pub(super) expires_at: Option<UnixMillis>,
    pub(super) allowed_models: Option<Vec<String>>,
    pub(super) may_pin: bool,
    pub(super) quota_tokens: Option<i64>,
}

/// Makes a key of a user and returns it in the clear, which is the only time it is.
pub(super) async fn issue(
    admin: &Admin<'_>,
    secrets: &Secrets,
    user: &User,
    name: Name,
    options: KeyOptions,
) -> anyhow::Result<(ProxyKeySecret, ProxyKey)> {
    let secret = ProxyKeySecret::generate(*random_bytes()?, *random_bytes()?);
    let made = admin
        .storage
        .insert_key(NewProxyKey {
            id: ProxyKeyId::from_uuid(new_uuid()),
            tenant_id: user.tenant_id,
            user_id: user.id,
            name,
            key_hash: secrets.hasher().hash(secret.expose()),
            hint: secret.hint(),
            expires_at: options.expires_at,
            allowed_models: options.allowed_models,
            may_pin: options.may_pin,
            quota_tokens: options.quota_tokens,
            state: EntityState::Active,
            now: admin.now,
        })
        .await?;
    let key = made.with_context(|| format!("user `{}` was deleted meanwhile", user.name))?;
    Ok((secret, key))
}

async fn issue_and_print(admin: &Admin<'_>, args: IssueArgs) -> anyhow::Result<()> {
    if let Some(expires_at) = args.expires.filter(|at| *at <= admin.now) {
        bail!("--expires is in the past: {}", expires_at.to_rfc3339());
    }
    let secrets = Secrets::load(admin.config)?;
    let tenant = admin.tenant(&args.tenant).await?;
    let user = admin.user(&tenant, &args.user).await?;
    let options = KeyOptions {
        expires_at: args.expires,
        allowed_models: Some(args.models).filter(|models| !models.is_empty()),
        may_pin: args.allow_pin,
        quota_tokens: args.quota,
    };
    let (secret, key) = issue(admin, &secrets, &user, args.name, options).await?;
    if !args.quiet {
        terminal::note(&format!(
            "Key `{}` of user `{}` in tenant `{}` is made: {}\nIt is shown this once:",
            key.name, user.name, tenant.name, key.id
        ));
        for (what, state) in [("tenant", tenant.state), ("user", user.state)] {
            if state != EntityState::Active {
                terminal::warning(&format!("the {what} is {state}, so the key is not served"));
            }
        }
    }
    terminal::result(secret.expose())?;
    Ok(())
}

async fn list(admin: &Admin<'_>, tenant: Option<Name>, args: ListArgs) -> anyhow::Result<()> {
    let tenants = match &tenant {
        Some(name) => vec![admin.tenant(name).await?],
        None => admin.tenants().await?,
    };
    let only = tenant.and(tenants.first()).map(|tenant| tenant.id);
    let users = users_of(admin, &tenants).await?;
    let mut table = Table::new(&[
        "tenant",
        "user",
        "name",
        "key",
        "state",
        "expires_at",
        "models",
        "may_pin",
        "quota_tokens",
        "created_at",
        "id",
    ]);
    let mut after = None;
    loop {
        let page = admin.storage.list_keys(only, after, PAGE).await?;
        after = page.last().map(|key| key.id);
        let is_last = page.len() < PAGE as usize;
        for key in page {
            let owner = users.get(&key.user_id);
            table.push([
                json!(owner.map(|(tenant, _)| tenant)),
                json!(owner.map(|(_, user)| user)),
                json!(key.name.as_str()),
                json!(key.hint.as_str()),
                json!(state_word(&key, admin.now)),
                key.expires_at.map_or(Value::Null, time),
                json!(key.allowed_models),
                json!(key.may_pin),
                json!(key.quota_tokens),
                time(key.created_at),
                json!(key.id.to_string()),
            ]);
        }
        if is_last {
            break;
        }
    }
    table.print(
        args,
        "no keys yet; make one with `sluice key issue --tenant TENANT --user USER --name NAME`",
    )
}

/// Returns the names of tenant and user, by user.
async fn users_of(
    admin: &Admin<'_>,
    tenants: &[Tenant],
) -> anyhow::Result<HashMap<sluice_domain::id::UserId, (String, String)>> {
    let mut names = HashMap::new();
    for tenant in tenants {
        for user in admin.users(tenant).await? {
            names.insert(user.id, (tenant.name.to_string(), user.name.to_string()));
        }
    }
    Ok(names)
}

/// Returns the state as the person who revoked a key calls it.
fn state_word(key: &ProxyKey, now: UnixMillis) -> &'static str {
    match key.state {
        EntityState::Deleted => "revoked",
        EntityState::Active if key.expires_at.is_some_and(|at| at <= now) => "expired",
        state => state.as_str(),
    }
}

async fn set_pin(admin: &Admin<'_>, id: ProxyKeyId, may_pin: bool) -> anyhow::Result<()> {
    if !admin.storage.set_key_pin(id, may_pin).await? {
        bail!("there is no key {id} that is not revoked; `sluice key list` shows the ids");
    }
    let word = if may_pin { "may" } else { "may not" };
    terminal::note(&format!(
        "requests with key {id} {word} name their upstream"
    ));
    Ok(())
}

async fn set_state(admin: &Admin<'_>, id: ProxyKeyId, state: EntityState) -> anyhow::Result<()> {
    let Some(key) = admin.storage.find_key(id).await? else {
        bail!("there is no key {id}; `sluice key list` shows the ids");
    };
    if !admin.storage.set_key_state(id, state).await? {
        bail!(
            "key {id} (`{}`) is revoked for good; issue a new one",
            key.name
        );
    }
    let word = match state {
        EntityState::Active => "enabled",
        EntityState::Disabled => "disabled",
        EntityState::Deleted => "revoked for good",
    };
    terminal::note(&format!(
        "key {id} (`{}`, {}) is {word}",
        key.name,
        key.hint.as_str()
    ));
    Ok(())
}
