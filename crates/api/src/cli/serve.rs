//! `sluice serve`.

use clap::Args;

use super::Global;
use super::admin::{refuse_missing_file, storage_options};
use crate::config::{self, Loaded};
use crate::data_folder::{DataFolder, Secrets};
use crate::logging;
use crate::serve::{self, Setup};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address and port to listen on [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
}

pub(super) fn run(args: ServeArgs, global: &Global) -> anyhow::Result<()> {
    let Loaded {
        config, warnings, ..
    } = config::load(&global.sources(args.listen))?;
    logging::install(config.log.format, &config.log.level)?;
    refuse_missing_file(&config)?;
    let mut folder = DataFolder::open_or_create(&config.data_dir)?;
    folder.lock()?;
    let secrets = Secrets::load(&config)?;
    let warnings = warnings.iter().map(ToString::to_string);
    for warning in warnings.chain(secrets.warnings.iter().cloned()) {
        tracing::warn!(problem = warning, "the configuration is unwise");
    }
    serve::run(Setup {
        identity: folder.begin_boot()?,
        storage_options: storage_options(&config),
        hasher: secrets.hasher(),
        vault: secrets.vault(),
        snapshot_key: secrets.snapshot_key(),
        folder,
        config,
        on_ready: Box::new(|_address| {}),
    })
}
