//! What commands take: names, amounts, secrets.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufRead as _, Read as _};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use secrecy::SecretString;
use sluice_domain::usage::MAX_AMOUNT;
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::Environment;
use crate::terminal;

/// Longest secret that is read, in bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1_024;

/// The arguments contradict each other or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct WrongUsage(pub(super) String);

/// Reads a number of tokens; underscores between digits are allowed.
pub(super) fn tokens(text: &str) -> Result<i64, String> {
    text.replace('_', "")
        .parse()
        .ok()
        .filter(|tokens| (0..=MAX_AMOUNT).contains(tokens))
        .ok_or_else(|| format!("a whole number of tokens from 0 to {MAX_AMOUNT} is expected"))
}

/// Reads a deadline: at least a millisecond, at most a day.
pub(super) fn millis(text: &str) -> Result<Duration, String> {
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    text.parse()
        .ok()
        .filter(|ms| (1..=DAY_MS).contains(ms))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("a whole number of milliseconds from 1 to {DAY_MS} is expected"))
}

/// Reads a whole number from 1 to a bound.
pub(super) fn limit(text: &str, max: u32) -> Result<NonZeroU32, String> {
    text.parse()
        .ok()
        .filter(|number: &NonZeroU32| number.get() <= max)
        .ok_or_else(|| format!("a whole number from 1 to {max} is expected"))
}

/// A value, or the word `none`.
#[derive(Debug, Clone)]
pub(super) struct OrNone<T>(pub(super) Option<T>);

impl<T: FromStr<Err: Display>> FromStr for OrNone<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        match text.parse() {
            Ok(value) => Ok(Self(Some(value))),
            Err(error) => Err(format!("{error}; or `none`")),
        }
    }
}

/// Where a secret comes from. Exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct SecretSource {
    /// Environment variable that holds the key
    #[arg(long, value_name = "VAR")]
    env: Option<String>,
    /// File that holds the key
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Read the key from standard input
    #[arg(long)]
    stdin: bool,
}

impl SecretSource {
    pub(super) fn read(&self) -> anyhow::Result<SecretString> {
        if let Some(name) = &self.env {
            secret_from_variable(&Environment::of_process(), name)
        } else if let Some(path) = &self.file {
            secret_from_file(path)
        } else {
            secret_from_input()
        }
    }
}

/// Takes a secret from an environment variable.
pub(super) fn secret_from_variable(
    environment: &Environment,
    name: &str,
) -> anyhow::Result<SecretString> {
    let Some(value) = environment.get(name) else {
        bail!("the environment variable {name} is not set");
    };
    let value = Zeroizing::new(
        value
            .to_str()
            .with_context(|| format!("the environment variable {name} is not valid UTF-8"))?
            .to_owned(),
    );
    checked(&value).with_context(|| format!("the environment variable {name}"))
}

/// Takes a secret from a file.
pub(super) fn secret_from_file(path: &Path) -> anyhow::Result<SecretString> {
    let what = || format!("the key file {}", path.display());
    let file = File::open(path).with_context(|| format!("{} cannot be read", what()))?;
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_SECRET_BYTES)
        .read_to_string(&mut text)
        .with_context(|| format!("{} cannot be read", what()))?;
    checked(&text).with_context(what)
}

fn secret_from_input() -> anyhow::Result<SecretString> {
    let mut text = Zeroizing::new(String::new());
    let read = if terminal::is_input_typed() {
        terminal::note("Paste the key and press Enter.");
        io::stdin()
            .lock()
            .take(MAX_SECRET_BYTES)
            .read_line(&mut text)
    } else {
        io::stdin()
            .lock()
            .take(MAX_SECRET_BYTES)
            .read_to_string(&mut text)
    };
    read.context("standard input cannot be read")?;
    checked(&text).context("standard input")
}

/// Reads a password: one line, which may hold spaces, from a file or `-` for standard input.
pub(super) fn password_from(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    if path == Path::new("-") && terminal::is_input_typed() {
        terminal::note("Type the password and press Enter; it is shown while you type.");
        io::stdin()
            .lock()
            .take(MAX_SECRET_BYTES)
            .read_line(&mut text)
            .context("standard input cannot be read")?;
    } else if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(MAX_SECRET_BYTES)
            .read_to_string(&mut text)
            .context("standard input cannot be read")?;
    } else {
        let what = || format!("the password file {} cannot be read", path.display());
        let file = File::open(path).with_context(what)?;
        file.take(MAX_SECRET_BYTES)
            .read_to_string(&mut text)
            .with_context(what)?;
    }
    let line = text.trim_end_matches(['\r', '\n']);
    if line.contains(['\r', '\n']) {
        bail!("a password is one line");
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// Takes the white space off that editors and shells add, and refuses what no provider issues.
fn checked(text: &str) -> anyhow::Result<SecretString> {
    let key = text.trim();
    if key.is_empty() {
        bail!("holds no key");
    }
    if !key.bytes().all(|b| b.is_ascii_graphic()) {
        bail!("holds more than a key: a key is one line of visible ASCII without spaces");
    }
    Ok(SecretString::from(key))
}

/// Reads a whole file, or standard input for `-`.
pub(super) fn read_document(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    if path == Path::new("-") {
        io::stdin()
            .lock()
            .read_to_end(&mut bytes)
            .context("standard input cannot be read")?;
    } else {
        let mut file =
            File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
        // With the size known, the buffer does not grow and leave copies behind.
        let size = file.metadata().map_or(0, |m| m.len());
        bytes.reserve_exact(usize::try_from(size).unwrap_or(0).saturating_add(1));
        if let Err(error) = file.read_to_end(&mut bytes) {
            bytes.zeroize();
            return Err(error).with_context(|| format!("{} cannot be read", path.display()));
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_number_of_tokens_is_whole_and_not_negative() {
        assert_eq!(tokens("1_000_000"), Ok(1_000_000));
        assert_eq!(tokens("0"), Ok(0));
        for text in ["-1", "1.5", "1M", "", "9223372036854775807"] {
            assert!(tokens(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_secret_from_a_file_loses_its_line_feed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "sk-upstream\n").unwrap();
        assert_eq!(
            secret_from_file(&file).unwrap().expose_secret(),
            "sk-upstream"
        );
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        for (content, expected) in [
            ("\n", "holds no key"),
            ("top secret", "holds more than a key"),
            ("topsecret\nsecond", "holds more than a key"),
        ] {
            std::fs::write(&file, content).unwrap();
            let error = format!("{:#}", secret_from_file(&file).unwrap_err());
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let environment: Environment = [("SET_TO_NOTHING", "")].into_iter().collect();
        for name in ["MY_KEY", "SET_TO_NOTHING"] {
            assert_eq!(
                secret_from_variable(&environment, name)
                    .unwrap_err()
                    .to_string(),
                format!("the environment variable {name} is not set")
            );
        }
    }
}
