//! `sluice quickstart`: from nothing to a first answer with one command, and the same again without
//! changing anything.
//!
//! What can go wrong is asked first (the port, the upstream, the folder), so that a failure leaves
//! nothing half-made. The proxy key is made last, because it is shown once.

mod account;
mod banner;
mod provider;
mod routing;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use parking_lot::Mutex;
use sluice_domain::ports::Clock as _;

use self::banner::Banner;
use self::provider::Wanted;
use super::Global;
use super::admin::{Admin, block_on, command_line, database_file, open, storage_options};
use crate::clock::SystemClock;
use crate::config::{self, Config, Environment, Loaded};
use crate::data_folder::{DataFolder, Secrets};
use crate::listen::Listeners;
use crate::logging;
use crate::serve::{self, Setup};
use crate::terminal;

#[derive(Debug, Args)]
pub(super) struct QuickstartArgs {
    /// Address and port to listen on [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Base URL of a server that speaks the OpenAI protocol; without it, OpenAI when
    /// `OPENAI_API_KEY` is set, else a built-in demonstration
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Environment variable that holds the key of the upstream
    #[arg(long, value_name = "NAME", conflicts_with = "upstream_key_file")]
    upstream_key_env: Option<String>,
    /// File that holds the key of the upstream
    #[arg(long, value_name = "FILE")]
    upstream_key_file: Option<PathBuf>,
    /// Model that clients may ask for; may be repeated [default: every model]
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
}

pub(super) fn run(args: &QuickstartArgs, global: &Global) -> anyhow::Result<()> {
    let Loaded {
        config, warnings, ..
    } = config::load(&global.sources(args.listen.clone()))?;
    for warning in &warnings {
        terminal::warning(&warning.to_string());
    }
    logging::install(config.log.format, &config.log.level)?;
    let mut wanted = Wanted::choose(args, &Environment::of_process())?;
    // Bound and let go again: the server binds for itself.
    drop(Listeners::bind(config.listen, 1)?);
    if database_file(&config).is_some_and(|file| !file.exists()) {
        block_on(wanted.probe())?;
    }
    let mut folder = DataFolder::open_or_create(&config.data_dir)?;
    folder.lock()?;
    let (secrets, banner) = block_on(prepare(&config, &folder, &mut wanted))?;
    for warning in &secrets.warnings {
        terminal::warning(warning);
    }
    serve(config, folder, &secrets, banner)
}

/// Makes whatever is missing in folder and database.
async fn prepare(
    config: &Config,
    folder: &DataFolder,
    wanted: &mut Wanted,
) -> anyhow::Result<(Secrets, Banner)> {
    let storage = open(config).await?;
    let result = async {
        let state = storage.migration_state().await?;
        let is_new = state.applied.is_empty() && state.unknown.is_empty();
        let secrets = if is_new {
            Secrets::load_or_create(folder, config)?
        } else {
            Secrets::load(config)?
        };
        storage
            .migrate()
            .await
            .context("the database cannot be migrated")?;
        let now = SystemClock.now();
        let admin = Admin {
            storage: storage.acting(command_line(now)),
            config,
            now,
        };
        let provider = routing::prepare(&admin, &secrets.vault(), wanted).await?;
        let account = account::prepare(&admin, &secrets).await?;
        let banner = Banner::new(provider, account, folder.path());
        Ok((secrets, banner))
    }
    .await;
    storage.close().await;
    result
}

fn serve(
    config: Config,
    folder: DataFolder,
    secrets: &Secrets,
    banner: Banner,
) -> anyhow::Result<()> {
    let unshown = Arc::new(Mutex::new(Some(banner)));
    let on_ready = {
        let unshown = Arc::clone(&unshown);
        Box::new(move |address| {
            let Some(banner) = unshown.lock().take() else {
                return;
            };
            if let Err(error) = terminal::result(&banner.text(address)) {
                tracing::error!(%error, "standard output cannot be written");
            }
        })
    };
    let served = serve::run(Setup {
        identity: folder.begin_boot()?,
        storage_options: storage_options(&config),
        hasher: secrets.hasher(),
        vault: secrets.vault(),
        snapshot_key: secrets.snapshot_key(),
        folder,
        config,
        on_ready,
    });
    // The key exists although the server did not start; later nobody can show it.
    if let Some(key) = unshown.lock().as_ref().and_then(Banner::key) {
        terminal::note("A proxy key was made and is shown this once:");
        terminal::result(key)?;
    }
    served
}
