//! Kinds of settings about Redis.

use secrecy::{ExposeSecret, SecretString};
use sluice_storage::windows::RedisTarget;

use super::{Kind, Raw};
use crate::config::text::Shown;

/// Longest prefix of names, in bytes: each counter has it.
const MAX_PREFIX_BYTES: usize = 64;

/// The URL of a Redis. It may hold a password.
pub(in crate::config) struct RedisUrl;

impl Kind for RedisUrl {
    type Value = Option<SecretString>;

    const IS_SECRET: bool = true;

    fn read(&self, raw: &Raw) -> Result<Self::Value, String> {
        let text = raw.text().unwrap_or_default();
        match RedisTarget::parse(text) {
            Ok(_target) => Ok(Some(SecretString::from(text))),
            Err(error) => Err(format!("must be a URL: {error}")),
        }
    }

    fn show(&self, value: &Self::Value) -> Shown {
        match value {
            None => Shown::Absent("each instance counts for itself".to_owned()),
            // A URL of several hosts is none that a library reads: where there may be a password,
            // nothing is shown.
            Some(url) if url.expose_secret().contains('@') => Shown::Hidden,
            Some(url) => Shown::text(url.expose_secret()),
        }
    }

    fn describe(&self) -> String {
        "URL; secret".to_owned()
    }
}

/// What names begin with.
pub(in crate::config) struct RedisPrefix;

impl Kind for RedisPrefix {
    type Value = String;

    fn read(&self, raw: &Raw) -> Result<String, String> {
        raw.text()
            .filter(|text| (1..=MAX_PREFIX_BYTES).contains(&text.len()))
            // Braces say which part of a name places it in a cluster.
            .filter(|text| {
                text.bytes()
                    .all(|b| b.is_ascii_graphic() && !b"{}".contains(&b))
            })
            .map(str::to_owned)
            .ok_or_else(|| format!("must be {}, not {}", self.describe(), raw.found()))
    }

    fn show(&self, value: &String) -> Shown {
        Shown::text(value)
    }

    fn describe(&self) -> String {
        format!("1 to {MAX_PREFIX_BYTES} visible ASCII letters without braces")
    }
}
