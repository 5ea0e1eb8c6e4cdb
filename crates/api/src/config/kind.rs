//! Kinds of settings: how each is read from text or TOML, checked and shown.

mod list;
mod redis;

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sluice_accounting::Fsync;
use sluice_storage::windows::RedisLoss;
use tracing_subscriber::EnvFilter;
use zeroize::Zeroizing;

pub use self::list::AllowedOrigins;
pub(super) use self::list::{Networks, Origins};
pub(super) use self::redis::{RedisPrefix, RedisUrl};
use super::secret::Secret32;
use super::text::Shown;

/// A value as a layer gave it.
#[derive(Debug)]
pub(super) enum Raw {
    /// A text: from the environment, a flag, a secret file or a TOML string.
    Text(Zeroizing<String>),
    /// A TOML integer.
    Integer(i64),
    /// A TOML array of strings.
    List(Vec<String>),
    /// Any other TOML value, by the name of its type.
    Other(&'static str),
}

impl Raw {
    /// Returns what was given, for a message; never used for a secret.
    fn found(&self) -> String {
        match self {
            Self::Text(text) => format!("`{}`", text.escape_debug()),
            Self::Integer(number) => number.to_string(),
            Self::List(_) => "a list".to_owned(),
            Self::Other(name) => (*name).to_owned(),
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.trim()),
            _ => None,
        }
    }

    /// Returns the entries of a list; a text is split at its commas.
    fn list(&self) -> Option<Vec<&str>> {
        match self {
            Self::List(entries) => Some(entries.iter().map(|e| e.trim()).collect()),
            Self::Text(text) => Some(
                text.split(',')
                    .map(str::trim)
                    .filter(|entry| !entry.is_empty())
                    .collect(),
            ),
            Self::Integer(_) | Self::Other(_) => None,
        }
    }
}

/// One kind of setting.
pub(super) trait Kind {
    /// What it is read into.
    type Value;

    /// Whether its value is hidden, and may come from a file that is named by `…_file`.
    const IS_SECRET: bool = false;

    /// Reads and checks a value. The error completes the sentence that begins with the setting.
    fn read(&self, raw: &Raw) -> Result<Self::Value, String>;

    /// Returns how the value is printed.
    fn show(&self, value: &Self::Value) -> Shown;

    /// Describes what may be given, with its unit.
    fn describe(&self) -> String;
}

/// A whole number in a range.
pub(super) struct Integer<T> {
    min: u64,
    max: u64,
    unit: &'static str,
    value: PhantomData<T>,
}

impl<T> Integer<T> {
    pub(super) const fn new(min: u64, max: u64, unit: &'static str) -> Self {
        Self {
            min,
            max,
            unit,
            value: PhantomData,
        }
    }

    fn number(&self, raw: &Raw) -> Result<u64, String> {
        let number = match raw {
            Raw::Integer(number) => u64::try_from(*number).ok(),
            Raw::Text(text) => text.trim().replace('_', "").parse().ok(),
            Raw::List(_) | Raw::Other(_) => None,
        };
        number
            .filter(|n| (self.min..=self.max).contains(n))
            .ok_or_else(|| self.expectation(raw))
    }

    fn expectation(&self, raw: &Raw) -> String {
        format!(
            "must be a whole number of {} from {} to {}, not {}",
            self.unit,
            self.min,
            self.max,
            raw.found()
        )
    }
}

impl<T: TryFrom<u64> + Copy + ToString> Kind for Integer<T> {
    type Value = T;

    fn read(&self, raw: &Raw) -> Result<T, String> {
        T::try_from(self.number(raw)?).map_err(|_too_large| self.expectation(raw))
    }

    fn show(&self, value: &T) -> Shown {
        Shown::Toml(value.to_string())
    }

    fn describe(&self) -> String {
        format!("{}, {} to {}", self.unit, self.min, self.max)
    }
}

/// A duration in whole milliseconds.
pub(super) struct Millis {
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Millis {
    const fn integer(&self) -> Integer<u64> {
        Integer::new(self.min, self.max, "milliseconds")
    }
}

impl Kind for Millis {
    type Value = Duration;

    fn read(&self, raw: &Raw) -> Result<Duration, String> {
        self.integer().read(raw).map(Duration::from_millis)
    }

    fn show(&self, value: &Duration) -> Shown {
        Shown::Toml(value.as_millis().to_string())
    }

    fn describe(&self) -> String {
        self.integer().describe()
    }
}

/// An address and port.
pub(super) struct Address;

impl Kind for Address {
    type Value = SocketAddr;

    fn read(&self, raw: &Raw) -> Result<SocketAddr, String> {
        raw.text()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| {
                format!(
                    "must be an IP address and port such as 127.0.0.1:8000 or [::]:8000, not {}",
                    raw.found()
                )
            })
    }

    fn show(&self, value: &SocketAddr) -> Shown {
        Shown::text(&value.to_string())
    }

    fn describe(&self) -> String {
        "IP address and port".to_owned()
    }
}

/// An address to listen on, or none.
pub(super) struct OptionalAddress;

impl Kind for OptionalAddress {
    type Value = Option<SocketAddr>;

    fn read(&self, raw: &Raw) -> Result<Self::Value, String> {
        Address.read(raw).map(Some)
    }

    fn show(&self, value: &Self::Value) -> Shown {
        match value {
            Some(address) => Address.show(address),
            None => Shown::Absent("none".to_owned()),
        }
    }

    fn describe(&self) -> String {
        Address.describe()
    }
}

/// A folder.
pub(super) struct Folder;

impl Kind for Folder {
    type Value = PathBuf;

    fn read(&self, raw: &Raw) -> Result<PathBuf, String> {
        raw.text()
            .filter(|text| !text.is_empty())
            .map(PathBuf::from)
            .ok_or_else(|| format!("must be the path of a folder, not {}", raw.found()))
    }

    fn show(&self, value: &PathBuf) -> Shown {
        Shown::text(&value.to_string_lossy())
    }

    fn describe(&self) -> String {
        "path, from the working directory".to_owned()
    }
}

/// The URL of a database. It may hold a password.
pub(super) struct DatabaseUrl;

impl Kind for DatabaseUrl {
    type Value = Option<SecretString>;

    const IS_SECRET: bool = true;

    fn read(&self, raw: &Raw) -> Result<Self::Value, String> {
        let text = raw.text().unwrap_or_default();
        let is_sqlite = text.strip_prefix("sqlite:").is_some_and(|p| !p.is_empty());
        let is_postgres = ["postgres://", "postgresql://"]
            .iter()
            .any(|s| text.starts_with(s));
        if is_sqlite || (is_postgres && url::Url::parse(text).is_ok()) {
            Ok(Some(SecretString::from(text)))
        } else {
            Err(
                "must be `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`, with special \
                 characters of the password percent-encoded"
                    .to_owned(),
            )
        }
    }

    fn show(&self, value: &Self::Value) -> Shown {
        let Some(secret) = value else {
            return Shown::Absent("the file `sluice.db` in the data folder".to_owned());
        };
        let text = secret.expose_secret();
        if text.starts_with("sqlite:") {
            return Shown::text(text);
        }
        // Host and name help; the password and the parameters, which may hold one, do not.
        url::Url::parse(text).map_or(Shown::Hidden, |mut url| {
            if url.password().is_some() && url.set_password(Some("***")).is_err() {
                return Shown::Hidden;
            }
            if url.query().is_some() {
                url.set_query(Some("***"));
            }
            Shown::text(url.as_str())
        })
    }

    fn describe(&self) -> String {
        "URL; secret".to_owned()
    }
}

/// 32 secret bytes.
pub(super) struct Key {
    /// The file in the data folder that holds them when the setting is absent.
    pub(super) file: &'static str,
}

impl Kind for Key {
    type Value = Option<Secret32>;

    const IS_SECRET: bool = true;

    fn read(&self, raw: &Raw) -> Result<Self::Value, String> {
        let text = raw
            .text()
            .ok_or_else(|| "must be a text: 32 bytes in base64 or hexadecimal".to_owned())?;
        Secret32::parse(text)
            .map(Some)
            .map_err(|error| error.to_string())
    }

    fn show(&self, value: &Self::Value) -> Shown {
        match value {
            Some(_) => Shown::Hidden,
            None => Shown::Absent(format!("the file `{}` in the data folder", self.file)),
        }
    }

    fn describe(&self) -> String {
        "32 bytes; secret".to_owned()
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Whether a limit refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitMode {
    /// It does.
    Enforce,
    /// It is counted, and what it would refuse is reported.
    DryRun,
}

/// One of a few words.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

pub(super) const LOG_FORMATS: Choice<LogFormat> = Choice(&[
    ("auto", LogFormat::Auto),
    ("text", LogFormat::Text),
    ("json", LogFormat::Json),
]);

pub(super) const FSYNC_POLICIES: Choice<Fsync> = Choice(&[
    ("interval", Fsync::Interval),
    ("always", Fsync::Always),
    ("never", Fsync::Never),
]);

pub(super) const LIMIT_MODES: Choice<LimitMode> = Choice(&[
    ("enforce", LimitMode::Enforce),
    ("dry_run", LimitMode::DryRun),
]);

pub(super) const REDIS_LOSSES: Choice<RedisLoss> =
    Choice(&[("share", RedisLoss::Share), ("deny", RedisLoss::Deny)]);

impl<T: Copy + PartialEq> Kind for Choice<T> {
    type Value = T;

    fn read(&self, raw: &Raw) -> Result<T, String> {
        self.0
            .iter()
            .find(|(word, _)| raw.text() == Some(*word))
            .map(|(_, value)| *value)
            .ok_or_else(|| format!("must be {}, not {}", self.describe(), raw.found()))
    }

    fn show(&self, value: &T) -> Shown {
        let word = self.0.iter().find(|(_, known)| known == value);
        Shown::text(word.map_or("", |(word, _)| word))
    }

    fn describe(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("`{word}`")).collect();
        match words.split_last() {
            Some((last, others)) if !others.is_empty() => {
                format!("{} or {last}", others.join(", "))
            }
            _ => words.concat(),
        }
    }
}

/// Directives of the log filter.
pub(super) struct Filter;

impl Kind for Filter {
    type Value = String;

    fn read(&self, raw: &Raw) -> Result<String, String> {
        let expected = "must be a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or \
                        directives such as `info,sluice_api=debug`";
        let text = raw
            .text()
            .filter(|text| !text.is_empty())
            .ok_or_else(|| format!("{expected}, not {}", raw.found()))?;
        // A bare word that is no level would be read as the name of a module: `inof` logs nothing.
        let misread = text
            .split(',')
            .map(str::trim)
            .find(|part| part.bytes().all(|b| b.is_ascii_alphabetic()) && !is_level(part));
        if misread.is_some() || EnvFilter::builder().parse(text).is_err() {
            return Err(format!("{expected}, not {}", raw.found()));
        }
        Ok(text.to_owned())
    }

    fn show(&self, value: &String) -> Shown {
        Shown::text(value)
    }

    fn describe(&self) -> String {
        "level or filter directives".to_owned()
    }
}

fn is_level(word: &str) -> bool {
    ["error", "warn", "info", "debug", "trace", "off"]
        .iter()
        .any(|level| word.eq_ignore_ascii_case(level))
}
