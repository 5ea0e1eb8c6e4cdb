//! Sets the log up: JSON lines, or text for a person at a terminal.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// The filter of the log cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log.level: `{level}` is not a level or filter such as `info` or `info,sluice_api=debug`")]
pub(crate) struct InvalidLogLevel {
    level: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// Installs the log; a second call changes nothing.
///
/// # Errors
/// [`InvalidLogLevel`] when the filter has a syntax error.
pub(crate) fn install(format: LogFormat, level: &str) -> Result<(), InvalidLogLevel> {
    let filter = EnvFilter::try_new(level).map_err(|source| InvalidLogLevel {
        level: level.to_owned(),
        source,
    })?;
    let is_json = match format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let installed = if is_json {
        builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .try_init()
    } else {
        builder
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .try_init()
    };
    if installed.is_err() {
        tracing::debug!("the log was installed before");
    }
    Ok(())
}
