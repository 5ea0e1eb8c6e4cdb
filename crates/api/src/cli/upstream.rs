//! `sluice upstream`.

pub(super) mod key;
pub(super) mod settings;

mod test;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_domain::id::UpstreamId;
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::upstream::{BaseUrl, ProviderKind, Upstream};
use sluice_storage::upstream::UpstreamUpdate;
use sluice_upstream_pool::{ClientOptions, Dispatcher};

use self::settings::SettingArgs;
use super::admin::{Admin, with_database};
use super::input::WrongUsage;
use super::route;
use super::table::{ListArgs, Table, time};
use crate::config::Config;
use crate::ids::new_uuid;
use crate::terminal;

/// Where OpenAI is.
pub(super) const OPENAI_URL: &str = "https://api.openai.com/v1";
/// Where Anthropic is.
const ANTHROPIC_URL: &str = "https://api.anthropic.com/v1";
/// Largest share of an upstream key or target.
pub(super) const MAX_WEIGHT: u32 = 1_000_000;

#[derive(Debug, Subcommand)]
pub(super) enum UpstreamCommand {
    /// Make an upstream, for example
    /// `sluice upstream create local --kind compatible --url http://127.0.0.1:11434/v1 --allow-private`
    Create(CreateArgs),
    /// Change an upstream, for example `sluice upstream set openai --idle-ms 60000 --rpm 500`
    Set(SetArgs),
    /// List the upstreams
    List(#[command(flatten)] ListArgs),
    /// Stop using an upstream
    Disable {
        /// The upstream
        name: Name,
    },
    /// Use an upstream again, also one that is left alone because it failed
    Enable {
        /// The upstream
        name: Name,
    },
    /// Delete an upstream that no route leads to, with its keys
    Delete {
        /// The upstream
        name: Name,
    },
    /// Ask an upstream for its models, with each of its keys
    Test {
        /// The upstream
        name: Name,
    },
    /// Keys of upstreams
    #[command(subcommand)]
    Key(key::UpstreamKeyCommand),
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// Its name, unique
    name: Name,
    /// Its protocol: `openai`, `azure`, `anthropic`, `compatible` (vLLM, Ollama, DeepSeek, …) or
    /// `demo`
    #[arg(long)]
    kind: ProviderKind,
    /// Its base URL, which often ends in /v1 [default for `openai` and `anthropic`: theirs]
    #[arg(long)]
    url: Option<BaseUrl>,
    /// Only for this tenant [default: shared by all]
    #[arg(long)]
    tenant: Option<Name>,
    #[command(flatten)]
    settings: SettingArgs,
}

#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// The upstream
    name: Name,
    /// Another name for it
    #[arg(long = "name", value_name = "NAME")]
    new_name: Option<Name>,
    /// Another base URL; its keys are bound to scheme, host and port
    #[arg(long)]
    url: Option<BaseUrl>,
    #[command(flatten)]
    settings: SettingArgs,
}

pub(super) fn run(command: UpstreamCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        UpstreamCommand::Create(args) => create_and_tell(admin, args).await,
        UpstreamCommand::Set(args) => change(admin, args).await,
        UpstreamCommand::List(args) => list(admin, args).await,
        UpstreamCommand::Disable { name } => set_state(admin, &name, EntityState::Disabled).await,
        UpstreamCommand::Enable { name } => set_state(admin, &name, EntityState::Active).await,
        UpstreamCommand::Delete { name } => delete(admin, &name).await,
        UpstreamCommand::Test { name } => test::run(admin, &name).await,
        UpstreamCommand::Key(command) => key::run(admin, command).await,
    })
}

/// Returns the client that asks an upstream for its models.
pub(super) fn prober() -> Dispatcher {
    Dispatcher::new(ClientOptions::default())
}

async fn create_and_tell(admin: &Admin<'_>, args: CreateArgs) -> anyhow::Result<()> {
    let url = match (args.kind, args.url) {
        (ProviderKind::OpenAi, None) => Some(OPENAI_URL.parse()?),
        (ProviderKind::Anthropic, None) => Some(ANTHROPIC_URL.parse()?),
        (_, url) => url,
    };
    let id = UpstreamId::from_uuid(new_uuid());
    let mut upstream = Upstream::new(id, args.name, args.kind, url, admin.now);
    args.settings.apply(&mut upstream)?;
    let tenant = admin.optional_tenant(args.tenant.as_ref()).await?;
    upstream.tenant_id = tenant.map(|tenant| tenant.id);
    admin.storage.create_upstream(&upstream).await?;
    terminal::note(&format!(
        "upstream `{}` is made: {}",
        upstream.name, upstream.id
    ));
    if upstream.kind != ProviderKind::Demo {
        terminal::note(&format!(
            "next: `sluice upstream key add {0} NAME --env VAR`, `sluice upstream test {0}`, \
             `sluice route create MODEL --to {0}`",
            upstream.name
        ));
    }
    Ok(())
}

async fn change(admin: &Admin<'_>, args: SetArgs) -> anyhow::Result<()> {
    if args.new_name.is_none() && args.url.is_none() && args.settings.is_empty() {
        bail!(WrongUsage(
            "say what to change; `sluice upstream set --help` lists the settings".to_owned()
        ));
    }
    let mut upstream = admin.upstream(&args.name).await?;
    upstream.name = args.new_name.unwrap_or(upstream.name);
    upstream.base_url = args.url.or(upstream.base_url);
    args.settings.apply(&mut upstream)?;
    match admin.storage.update_upstream(&upstream).await? {
        UpstreamUpdate::Done => {
            terminal::note(&format!("upstream `{}` is changed", upstream.name));
            Ok(())
        }
        UpstreamUpdate::Gone => bail!("upstream `{}` was deleted meanwhile", args.name),
        UpstreamUpdate::HasKeys => bail!(
            "--url: the keys of upstream `{0}` are sealed for its scheme, host and port, and do not \
             follow it elsewhere; delete them first (`sluice upstream key delete {0} KEY`) and add \
             them again, or make another upstream and lead the routes there (`sluice route set`)",
            args.name
        ),
    }
}

async fn list(admin: &Admin<'_>, args: ListArgs) -> anyhow::Result<()> {
    let tenants = admin.tenants().await?;
    let mut table = Table::new(&[
        "name",
        "kind",
        "url",
        "tenant",
        "settings",
        "state",
        "created_at",
        "id",
    ]);
    for upstream in admin.upstreams().await? {
        let tenant = tenants.iter().find(|t| Some(t.id) == upstream.tenant_id);
        // All of them for machines, for people what is worth a look.
        let settings = if args.json {
            Value::Object(settings::all(&upstream))
        } else {
            json!(settings::unusual(&upstream))
        };
        table.push([
            json!(upstream.name.as_str()),
            json!(upstream.kind.as_str()),
            json!(upstream.base_url.as_ref().map(ToString::to_string)),
            json!(tenant.map(|t| t.name.as_str())),
            settings,
            json!(upstream.state.as_str()),
            time(upstream.created_at),
            json!(upstream.id.to_string()),
        ]);
    }
    table.print(
        args,
        "no upstreams yet; make one with `sluice upstream create NAME --kind KIND --url URL`",
    )
}

async fn set_state(admin: &Admin<'_>, name: &Name, state: EntityState) -> anyhow::Result<()> {
    let upstream = admin.upstream(name).await?;
    let done = admin
        .storage
        .set_upstream_state(upstream.id, state, admin.now)
        .await?;
    if !done {
        bail!("upstream `{name}` was deleted meanwhile");
    }
    terminal::note(&format!("upstream `{name}` is {state}"));
    Ok(())
}

async fn delete(admin: &Admin<'_>, name: &Name) -> anyhow::Result<()> {
    let upstream = admin.upstream(name).await?;
    if admin.storage.delete_upstream(upstream.id).await? {
        terminal::note(&format!("upstream `{name}` is deleted"));
        return Ok(());
    }
    let routes = route::routes(admin).await?;
    let leading: Vec<_> = routes
        .iter()
        .filter(|route| route.targets.iter().any(|t| t.upstream_id == upstream.id))
        .map(|route| format!("`{}`", route.model))
        .collect();
    if leading.is_empty() {
        bail!("upstream `{name}` was deleted meanwhile");
    }
    bail!(
        "routes lead to upstream `{name}`: {}; change them with `sluice route set` or delete them \
         first",
        leading.join(", ")
    )
}
