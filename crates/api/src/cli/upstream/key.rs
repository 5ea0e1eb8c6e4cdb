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
use crate::cli::input::{SecretSource, WrongUsage};
use crate::cli::table::{ListArgs, Table, time};
use crate::cli::upstream::MAX_WEIGHT;
use crate::cli::upstream::settings::{LimitArgs, limit_fields};
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
        #[command(flatten)]
        settings: KeySettingArgs,
    },
    /// Change a key, for example `sluice upstream key set openai main --weight 3 --rpm none`
    Set {
        #[command(flatten)]
        key: UpstreamKeyArgs,
        #[command(flatten)]
        settings: KeySettingArgs,
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
    /// Use a key again, also one that is left alone because its provider refused it
    Enable(#[command(flatten)] UpstreamKeyArgs),
    /// Delete a key for good
    Delete(#[command(flatten)] UpstreamKeyArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct UpstreamKeyArgs {
    /// The upstream
    upstream: Name,
    /// The key
    name: Name,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct KeySettingArgs {
    /// Share of the traffic against the other keys of the upstream [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WEIGHT)))]
    weight: Option<u32>,
    #[command(flatten)]
    limits: LimitArgs,
}

impl KeySettingArgs {
    fn apply(self, key: &mut UpstreamKey) {
        key.weight = self.weight.unwrap_or(key.weight);
        self.limits.apply(&mut key.limits);
    }
}

pub(super) async fn run(admin: &Admin<'_>, command: UpstreamKeyCommand) -> anyhow::Result<()> {
    match command {
        UpstreamKeyCommand::Add {
            upstream,
            name,
            source,
            settings,
        } => add_and_tell(admin, &upstream, name, &source, settings).await,
        UpstreamKeyCommand::Set { key, settings } => change(admin, &key, settings).await,
        UpstreamKeyCommand::List { upstream, list } => self::list(admin, &upstream, list).await,
        UpstreamKeyCommand::Disable(key) => set_state(admin, &key, EntityState::Disabled).await,
        UpstreamKeyCommand::Enable(key) => set_state(admin, &key, EntityState::Active).await,
        UpstreamKeyCommand::Delete(key) => set_state(admin, &key, EntityState::Deleted).await,
    }
}

/// Returns a key for an upstream.
pub(in crate::cli) fn new(admin: &Admin<'_>, upstream: &Upstream, name: Name) -> UpstreamKey {
    let id = UpstreamKeyId::from_uuid(new_uuid());
    UpstreamKey::new(id, upstream.id, name, admin.now)
}

/// Seals the secret of a key and adds it to its upstream.
pub(in crate::cli) async fn add(
    admin: &Admin<'_>,
    vault: &Vault,
    upstream: &Upstream,
    key: &UpstreamKey,
    secret: &SecretString,
) -> anyhow::Result<()> {
    let sealed = vault
        .seal(secret, &SealBinding::of(upstream, key.id))
        .context("the key cannot be sealed")?;
    if !admin.storage.add_upstream_key(key, &sealed).await? {
        bail!("upstream `{}` was deleted meanwhile", upstream.name);
    }
    Ok(())
}

async fn add_and_tell(
    admin: &Admin<'_>,
    upstream: &Name,
    name: Name,
    source: &SecretSource,
    settings: KeySettingArgs,
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
    let mut key = new(admin, &upstream, name);
    settings.apply(&mut key);
    add(admin, &vault, &upstream, &key, &secret).await?;
    terminal::note(&format!(
        "key `{}` of upstream `{}` is stored encrypted: {}",
        key.name, upstream.name, key.id
    ));
    Ok(())
}

async fn list(admin: &Admin<'_>, upstream: &Name, args: ListArgs) -> anyhow::Result<()> {
    let upstream = admin.upstream(upstream).await?;
    let mut table = Table::new(&[
        "name",
        "state",
        "weight",
        "rpm",
        "tpm",
        "concurrency",
        "created_at",
        "id",
    ]);
    for key in keys_of(admin, &upstream).await? {
        let [rpm, tpm, concurrency] = limit_fields(key.limits);
        table.push([
            json!(key.name.as_str()),
            json!(key.state.as_str()),
            json!(key.weight),
            rpm,
            tpm,
            concurrency,
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

/// Finds an upstream and its key by name, or says which keys there are.
async fn find(
    admin: &Admin<'_>,
    args: &UpstreamKeyArgs,
) -> anyhow::Result<(Upstream, UpstreamKey)> {
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
    Ok((upstream, key.clone()))
}

async fn change(
    admin: &Admin<'_>,
    args: &UpstreamKeyArgs,
    settings: KeySettingArgs,
) -> anyhow::Result<()> {
    if settings.weight.is_none() && settings.limits.is_empty() {
        bail!(WrongUsage(
            "say what to change: --weight, --rpm, --tpm, --concurrency".to_owned()
        ));
    }
    let (upstream, mut key) = find(admin, args).await?;
    settings.apply(&mut key);
    if !admin.storage.update_upstream_key(&key).await? {
        bail!("key `{}` was deleted meanwhile", key.name);
    }
    terminal::note(&format!(
        "key `{}` of upstream `{}` is changed",
        key.name, upstream.name
    ));
    Ok(())
}

async fn set_state(
    admin: &Admin<'_>,
    args: &UpstreamKeyArgs,
    state: EntityState,
) -> anyhow::Result<()> {
    let (upstream, key) = find(admin, args).await?;
    let done = admin
        .storage
        .set_upstream_key_state(key.id, state, admin.now)
        .await?;
    if !done {
        bail!("key `{}` was deleted meanwhile", key.name);
    }
    terminal::note(&format!(
        "key `{}` of upstream `{}` is {state}",
        key.name, upstream.name
    ));
    Ok(())
}
