//! `sluice config`: whether the configuration is valid, and what it comes to.

use clap::Subcommand;

use super::Global;
use crate::config;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration; exits with 3 when it is invalid
    Check {
        /// Print each value and where it comes from; secrets are hidden
        #[arg(long)]
        print_effective: bool,
    },
    /// Print the page that documents every setting
    #[command(hide = true)]
    Reference,
}

pub(super) fn run(command: &ConfigCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check { print_effective } => {
            let loaded = global.load()?;
            if *print_effective {
                terminal::result(&loaded.effective())?;
            } else {
                terminal::note("the configuration is valid");
            }
        }
        ConfigCommand::Reference => terminal::result(&config::reference())?,
    }
    Ok(())
}
