//! The command line: what each command takes, and how it ends.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the configuration is invalid.
//!
//! A command that changes something writes to the database of the configuration; a running server
//! learns of it through the change feed. Secrets come from files, the environment or standard
//! input, never from an argument.

mod account;
mod admin;
mod check;
mod explain;
mod import;
mod input;
mod key;
mod ledger;
mod limit;
mod migrate;
mod quickstart;
mod quota;
mod route;
mod serve;
mod table;
mod tenant;
mod upstream;
mod user;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Environment, InvalidConfig, Loaded, Sources};
use crate::terminal;

/// Something failed.
const FAILED: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;
/// The configuration is invalid.
const INVALID_CONFIG: u8 = 3;

/// A relay for OpenAI-compatible APIs that knows who may spend what, and books every request once.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 100)]
#[command(after_help = "Begin with `sluice quickstart`.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file (else `SLUICE_CONFIG`, else `CONFIG_FILE`)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        help_heading = "Global options"
    )]
    config: Option<PathBuf>,
    /// Data folder of this instance [default: sluice-data]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up whatever is missing, then serve: one command from nothing to a first answer
    Quickstart(quickstart::QuickstartArgs),
    /// Serve
    Serve(serve::ServeArgs),
    /// Bring the database to the version of this binary
    Migrate(migrate::MigrateArgs),
    /// Look at the configuration
    #[command(subcommand)]
    Config(check::ConfigCommand),
    /// Accounts: who logs in to administer over HTTP
    #[command(subcommand)]
    Admin(account::AdminCommand),
    /// Tenants: who is billed, and isolated from each other
    #[command(subcommand)]
    Tenant(tenant::TenantCommand),
    /// Users of a tenant: people and services
    #[command(subcommand)]
    User(user::UserCommand),
    /// Proxy keys: what clients present
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Window limits of tenants, users and keys: requests and tokens per minute, and how many at once
    #[command(subcommand)]
    Limit(limit::LimitCommand),
    /// Upstreams: endpoints of providers, and their keys
    #[command(subcommand)]
    Upstream(upstream::UpstreamCommand),
    /// Routes: from a requested model to upstreams
    #[command(subcommand)]
    Route(route::RouteCommand),
    /// What became of a request: what was tried, what was passed over, and why
    Explain(explain::ExplainArgs),
    /// The ledger: whether it is sound, and what instances have of it
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
}

/// Runs the process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version are results; the rest is wrong usage.
            let is_usage = answer.use_stderr();
            if answer.print().is_err() {
                // Without a terminal there is nobody left to tell.
            }
            return ExitCode::from(if is_usage { USAGE } else { 0 });
        }
    };
    sluice_upstream_pool::install_crypto_provider();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let global = cli.global;
    match cli.command {
        Command::Quickstart(args) => quickstart::run(&args, &global),
        Command::Serve(args) => serve::run(args, &global),
        Command::Migrate(args) => migrate::run(&args, &global.load()?.config),
        Command::Config(command) => check::run(&command, &global),
        Command::Admin(command) => account::run(command, &global.load()?.config),
        Command::Tenant(command) => tenant::run(command, &global.load()?.config),
        Command::User(command) => user::run(command, &global.load()?.config),
        Command::Key(command) => key::run(command, &global.load()?.config),
        Command::Limit(command) => limit::run(command, &global.load()?.config),
        Command::Upstream(command) => upstream::run(command, &global.load()?.config),
        Command::Route(command) => route::run(command, &global.load()?.config),
        Command::Explain(args) => explain::run(&args, &global.load()?.config),
        Command::Ledger(command) => ledger::run(command, &global.load()?.config),
    }
}

/// Says what went wrong, one line per problem, and returns the exit code for it.
fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(invalid) = error.downcast_ref::<InvalidConfig>() {
        for problem in &invalid.problems {
            terminal::error(&problem.to_string());
        }
        return ExitCode::from(INVALID_CONFIG);
    }
    terminal::error(&chain(error));
    let is_usage = error.downcast_ref::<input::WrongUsage>().is_some();
    ExitCode::from(if is_usage { USAGE } else { FAILED })
}

/// Joins an error and its causes by `: `. Some drivers repeat their cause in their own text; it is
/// said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

impl Global {
    fn sources(&self, listen: Option<String>) -> Sources {
        Sources {
            file: self.config.clone(),
            listen,
            data_dir: self.data.clone(),
            environment: Environment::of_process(),
        }
    }

    /// Loads the configuration for a command that is over soon.
    fn load(&self) -> Result<Loaded, InvalidConfig> {
        let loaded = config::load(&self.sources(None))?;
        for warning in &loaded.warnings {
            terminal::warning(&warning.to_string());
        }
        Ok(loaded)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_that_is_repeated_is_said_once() {
        let error = anyhow!("no such file")
            .context("read failed: no such file")
            .context("cannot start");
        assert_eq!(chain(&error), "cannot start: read failed: no such file");
    }
}
