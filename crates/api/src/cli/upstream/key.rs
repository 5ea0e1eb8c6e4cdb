//! `sluice upstream key`.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use secrecy::SecretString;
use serde_json::json;
use sluice_domain::id::UpstreamKeyId;
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::upstream::{ProviderKind, Upstream, UpstreamKey};
use sluice_storage::secret::{SealBinding, Vault};

use crate::cli::admin::{Admin, known};
use crate::cli::input::SecretSource;
use crate::cli::table::{ListArgs, Table, time};
use crate::cli::upstream::MAX_WEIGHT;
use crate::data_folder::Secrets;
use crate::ids::new_uuid;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum UpstreamKeyCommand {
    /// Add a key; it is stored encrypted. For example
    /// `sluice upstream key add openai main --env OPENAI_API_KEY`
    Add {
        /// The upstream
        upstream: Name,
        /// What people call the key, unique inside the upstream
        name: Name,
        #[command(flatten)]
        source: SecretSource,
        /// Share of the traffic against the other keys of the upstream
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WEIGHT)))]
        weight: u32,
    },
    /// List the keys of an upstream
    List {
        /// The upstream
        upstream: Name,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Stop using a key
    Disable(#[command(flatten)] UpstreamKeyArgs),
    /// Use a key again
    Enable(#[command(flatten)] UpstreamKeyArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct UpstreamKeyArgs {
    /// The upstream
    upstream: Name,
    /// The key
    name: Name,
}

pub(super) async fn run(admin: &Admin<'_>, command: UpstreamKeyCommand) -> anyhow::Result<()> {
    match command {
        UpstreamKeyCommand::Add {
            upstream,
            name,
            source,
            weight,
        } => add_and_tell(admin, &upstream, name, &source, weight).await,
        UpstreamKeyCommand::List { upstream, list } => self::list(admin, &upstream, list).await,
        UpstreamKeyCommand::Disable(key) => set_state(admin, &key, EntityState::Disabled).await,
        UpstreamKeyCommand::Enable(key) => set_state(admin, &key, EntityState::Active).await,
    }
}

/// Seals a key and adds it to an upstream.
pub(in crate::cli) async fn add(
    admin: &Admin<'_>,
    vault: &Vault,
    upstream: &Upstream,
    name: Name,
    weight: u32,
    secret: &SecretString,
) -> anyhow::Result<UpstreamKey> {
    // The id comes first: the sealed secret is bound to it.
    let id = UpstreamKeyId::from_uuid(new_uuid());
    let sealed = vault
        .seal(secret, &SealBinding::of(upstream, id))
        .context("the key cannot be sealed")?;
    let key = UpstreamKey {
        weight,
        ..UpstreamKey::new(id, upstream.id, name, admin.now)
    };
    if !admin.storage.add_upstream_key(&key, &sealed).await? {
        bail!("upstream `{}` was deleted meanwhile", upstream.name);
    }
    Ok(key)
}

async fn add_and_tell(
    admin: &Admin<'_>,
    upstream: &Name,
    name: Name,
    source: &SecretSource,
    weight: u32,
) -> anyhow::Result<()> {
    let upstream = admin.upstream(upstream).await?;
    if upstream.kind == ProviderKind::Demo {
        bail!(
            "upstream `{}` is the built-in demonstration and takes no key",
            upstream.name
        );
    }
    let vault = Secrets::load(admin.config)?.vault();
    let secret = source.read()?;
    let key = add(admin, &vault, &upstream, name, weight, &secret).await?;
    terminal::note(&format!(
        "key `{}` of upstream `{}` is stored encrypted: {}",
        key.name, upstream.name, key.id
    ));
    Ok(())
}

async fn list(admin: &Admin<'_>, upstream: &Name, args: ListArgs) -> anyhow::Result<()> {
    let upstream = admin.upstream(upstream).await?;
    let mut table = Table::new(&["name", "state", "weight", "created_at", "id"]);
    for key in keys_of(admin, &upstream).await? {
        table.push([
            json!(key.name.as_str()),
            json!(key.state.as_str()),
            json!(key.weight),
            time(key.created_at),
            json!(key.id.to_string()),
        ]);
    }
    table.print(
        args,
        "no keys yet; add one with `sluice upstream key add UPSTREAM NAME --env VAR`",
    )
}

/// Returns every key of an upstream that is not deleted.
pub(in crate::cli) async fn keys_of(
    admin: &Admin<'_>,
    upstream: &Upstream,
) -> anyhow::Result<Vec<UpstreamKey>> {
    let mut keys = admin.storage.list_upstream_keys(upstream.id).await?;
    keys.retain(|key| key.state != EntityState::Deleted);
    Ok(keys)
}

async fn set_state(
    admin: &Admin<'_>,
    args: &UpstreamKeyArgs,
    state: EntityState,
) -> anyhow::Result<()> {
    let upstream = admin.upstream(&args.upstream).await?;
    let keys = keys_of(admin, &upstream).await?;
    let Some(key) = keys.iter().find(|key| key.name == args.name) else {
        bail!(
            "upstream `{}` has no key `{}`; {}",
            upstream.name,
            args.name,
            known(
                keys.iter().map(|key| key.name.to_string()),
                "add one with `sluice upstream key add UPSTREAM NAME --env VAR`"
            )
        );
    };
    if !admin.storage.set_upstream_key_state(key.id, state).await? {
        bail!("key `{}` was deleted meanwhile", key.name);
    }
    terminal::note(&format!(
        "key `{}` of upstream `{}` is {state}",
        key.name, upstream.name
    ));
    Ok(())
}
