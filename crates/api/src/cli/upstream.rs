//! `sluice upstream`.

pub(super) mod key;

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;
use sluice_domain::id::UpstreamId;
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::upstream::{BaseUrl, ClientGone, Deadlines, ProviderKind, Upstream};
use sluice_storage::secret::SealBinding;
use sluice_upstream_pool::{ClientOptions, Dispatcher};

use super::admin::{Admin, with_database};
use super::input::WrongUsage;
use super::table::{ListArgs, Table, time};
use crate::config::Config;
use crate::data_folder::Secrets;
use crate::ids::new_uuid;
use crate::terminal;

/// Where OpenAI is.
pub(super) const OPENAI_URL: &str = "https://api.openai.com/v1";
/// Largest share of an upstream key or target.
pub(super) const MAX_WEIGHT: u32 = 1_000_000;

#[derive(Debug, Subcommand)]
pub(super) enum UpstreamCommand {
    /// Make an upstream, for example
    /// `sluice upstream create local --kind compatible --url http://127.0.0.1:11434/v1`
    Create(CreateArgs),
    /// List the upstreams
    List(#[command(flatten)] ListArgs),
    /// Stop using an upstream
    Disable {
        /// The upstream
        name: Name,
    },
    /// Use an upstream again
    Enable {
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
    /// Its protocol: `openai`, `compatible` (vLLM, Ollama, DeepSeek, …) or `demo`
    #[arg(long)]
    kind: ProviderKind,
    /// Its base URL, which often ends in /v1 [default for `openai`: that of OpenAI]
    #[arg(long)]
    url: Option<BaseUrl>,
    /// Only for this tenant [default: shared by all]
    #[arg(long)]
    tenant: Option<Name>,
    /// When the client of a stream has left: `cancel` closes it at the provider, `drain` reads it to
    /// its end for the provider's own numbers
    #[arg(long, default_value_t)]
    client_gone: ClientGone,
    #[command(flatten)]
    deadlines: DeadlineArgs,
}

#[derive(Debug, Args)]
struct DeadlineArgs {
    /// Milliseconds to an open connection [default: 10000]
    #[arg(long = "connect-ms", value_name = "MS", value_parser = millis)]
    connect: Option<Duration>,
    /// Milliseconds to the first event of a stream, or to the head of an answer [default: 300000]
    #[arg(long = "first-event-ms", value_name = "MS", value_parser = millis)]
    first_event: Option<Duration>,
    /// Milliseconds between two bytes of an answer [default: 180000]
    #[arg(long = "idle-ms", value_name = "MS", value_parser = millis)]
    idle: Option<Duration>,
    /// Milliseconds to the last byte of an answer [default: 3600000]
    #[arg(long = "total-ms", value_name = "MS", value_parser = millis)]
    total: Option<Duration>,
}

impl DeadlineArgs {
    fn deadlines(&self) -> Deadlines {
        let usual = Deadlines::default();
        Deadlines {
            connect: self.connect.unwrap_or(usual.connect),
            first_event: self.first_event.unwrap_or(usual.first_event),
            idle: self.idle.unwrap_or(usual.idle),
            total: self.total.unwrap_or(usual.total),
        }
    }
}

/// Reads a deadline: at least a millisecond, at most a day.
fn millis(text: &str) -> Result<Duration, String> {
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    text.parse()
        .ok()
        .filter(|ms| (1..=DAY_MS).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("a whole number of milliseconds from 1 to {DAY_MS} is expected"))
}

pub(super) fn run(command: UpstreamCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        UpstreamCommand::Create(args) => create_and_tell(admin, args).await,
        UpstreamCommand::List(args) => list(admin, args).await,
        UpstreamCommand::Disable { name } => set_state(admin, &name, EntityState::Disabled).await,
        UpstreamCommand::Enable { name } => set_state(admin, &name, EntityState::Active).await,
        UpstreamCommand::Test { name } => test(admin, &name).await,
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
        (ProviderKind::OpenAi | ProviderKind::Compatible, Some(url)) => Some(url),
        (ProviderKind::Compatible, None) => {
            bail!(WrongUsage(
                "an upstream of kind `compatible` needs --url".to_owned()
            ))
        }
        (ProviderKind::Demo, None) => None,
        (ProviderKind::Demo, Some(_)) => bail!(WrongUsage(
            "an upstream of kind `demo` is built in and has no --url".to_owned()
        )),
        (kind @ (ProviderKind::Azure | ProviderKind::Anthropic), _) => bail!(WrongUsage(format!(
            "this release cannot relay to upstreams of kind `{kind}`; there are `openai`, \
             `compatible` and `demo`"
        ))),
    };
    let tenant = admin.optional_tenant(args.tenant.as_ref()).await?;
    let upstream = Upstream {
        tenant_id: tenant.map(|tenant| tenant.id),
        deadlines: args.deadlines.deadlines(),
        client_gone: args.client_gone,
        ..Upstream::new(
            UpstreamId::from_uuid(new_uuid()),
            args.name,
            args.kind,
            url,
            admin.now,
        )
    };
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

async fn list(admin: &Admin<'_>, args: ListArgs) -> anyhow::Result<()> {
    let tenants = admin.tenants().await?;
    let mut table = Table::new(&[
        "name",
        "kind",
        "url",
        "tenant",
        "client_gone",
        "state",
        "created_at",
        "id",
    ]);
    for upstream in admin.upstreams().await? {
        let tenant = tenants.iter().find(|t| Some(t.id) == upstream.tenant_id);
        table.push([
            json!(upstream.name.as_str()),
            json!(upstream.kind.as_str()),
            json!(upstream.base_url.as_ref().map(ToString::to_string)),
            json!(tenant.map(|t| t.name.as_str())),
            json!(upstream.client_gone.as_str()),
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
    if !admin.storage.set_upstream_state(upstream.id, state).await? {
        bail!("upstream `{name}` was deleted meanwhile");
    }
    terminal::note(&format!("upstream `{name}` is {state}"));
    Ok(())
}

async fn test(admin: &Admin<'_>, name: &Name) -> anyhow::Result<()> {
    let upstream = admin.upstream(name).await?;
    if upstream.state != EntityState::Active {
        bail!(
            "upstream `{name}` is {}; `sluice upstream enable {name}` first",
            upstream.state
        );
    }
    let vault = Secrets::load(admin.config)?.vault();
    let routing = admin.storage.load_routing().await?;
    let keys: Vec<_> = routing
        .keys
        .iter()
        .filter(|(key, _)| key.upstream_id == upstream.id)
        .collect();
    let prober = prober();
    if keys.is_empty() {
        let report = prober.probe(&upstream, None).await?;
        terminal::result(&format!("without a key: {}", said(&report)))?;
        return Ok(());
    }
    let mut failed = 0;
    for (key, sealed) in &keys {
        let outcome = match vault.open(sealed, &SealBinding::of(&upstream, key.id)) {
            Ok(secret) => prober
                .probe(&upstream, Some(&secret))
                .await
                .map_err(anyhow::Error::new),
            Err(error) => Err(anyhow::Error::new(error).context("the key cannot be unsealed")),
        };
        match outcome {
            Ok(report) => terminal::result(&format!("key `{}`: {}", key.name, said(&report)))?,
            Err(error) => {
                failed += 1;
                terminal::error(&format!("key `{}`: {error:#}", key.name));
            }
        }
    }
    if failed > 0 {
        bail!(
            "{failed} of {} keys of upstream `{name}` do not work",
            keys.len()
        );
    }
    Ok(())
}

fn said(report: &sluice_upstream_pool::ProbeReport) -> String {
    let count = report.models.len();
    let plural = if count == 1 { "" } else { "s" };
    format!(
        "works; {count} model{plural}, answered in {} ms",
        report.took.as_millis()
    )
}
