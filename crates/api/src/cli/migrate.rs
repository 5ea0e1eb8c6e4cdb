//! `sluice migrate`.

use anyhow::{Context as _, bail};
use clap::Args;
use sluice_storage::MigrationState;

use super::admin::{block_on, database_file, open, problem_of, refuse_missing_file};
use crate::config::Config;
use crate::data_folder::{DataFolder, Secrets};
use crate::terminal;

#[derive(Debug, Args)]
pub(super) struct MigrateArgs {
    /// Change nothing; exits with 1 when there is something to do
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: &MigrateArgs, config: &Config) -> anyhow::Result<()> {
    if args.check {
        refuse_missing_file(config)?;
        let state = block_on(read_state(config))?;
        if let Some(problem) = problem_of(&state) {
            bail!("{problem}");
        }
        terminal::note("the database is up to date");
        return Ok(());
    }
    // The secrets of a database that instances share are none of this folder's business.
    let folder = match database_file(config) {
        Some(_) => Some(DataFolder::open_or_create(&config.data_dir)?),
        None => None,
    };
    block_on(async {
        let storage = open(config).await?;
        let state = storage.migration_state().await?;
        let is_new = state.applied.is_empty() && state.unknown.is_empty();
        if let Some(folder) = folder.as_ref().filter(|_| is_new) {
            // Before the tables: a database that has them has its secrets.
            Secrets::load_or_create(folder, config)?;
        }
        let result = storage.migrate().await;
        storage.close().await;
        let report = result.context("the database cannot be migrated")?;
        if report.applied.is_empty() {
            terminal::note("the database is up to date");
        } else {
            let versions: Vec<_> = report.applied.iter().map(ToString::to_string).collect();
            terminal::note(&format!("migrations applied: {}", versions.join(", ")));
        }
        let has_secrets = config.master_key.is_some() && config.pepper.is_some();
        if is_new && folder.is_none() && !has_secrets {
            terminal::note(
                "Every instance of this database needs the same two secrets: set SLUICE_MASTER_KEY \
                 and SLUICE_PEPPER (or their _FILE forms) to 32 random bytes each, made with \
                 `openssl rand -base64 32`. Keep a copy of them apart from the database.",
            );
        }
        Ok(())
    })
}

async fn read_state(config: &Config) -> anyhow::Result<MigrationState> {
    let storage = open(config).await?;
    let state = storage.migration_state().await;
    storage.close().await;
    state.context("the state of the database cannot be read")
}
