//! Kinds of settings that are lists: networks and origins.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Kind, Raw};
use crate::config::text::Shown;

/// A list of networks.
pub(in crate::config) struct Networks;

impl Kind for Networks {
    type Value = Vec<IpNet>;

    fn read(&self, raw: &Raw) -> Result<Vec<IpNet>, String> {
        raw.list()
            .ok_or_else(|| format!("must be a list of networks, not {}", raw.found()))?
            .into_iter()
            .map(network)
            .collect()
    }

    fn show(&self, value: &Vec<IpNet>) -> Shown {
        Shown::list(value.iter().map(ToString::to_string))
    }

    fn describe(&self) -> String {
        "list of networks such as 10.0.0.0/8".to_owned()
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network: IpNet = text.parse().map_err(|_syntax| {
        format!("holds `{text}`, which is not a network such as 10.0.0.0/8 or fd00::/8")
    })?;
    if network.trunc() == network {
        Ok(network)
    } else {
        // `10.0.0.1/8` means either the whole network or the one address.
        Err(format!(
            "holds `{text}`, which has bits outside of its prefix; write `{}` or `{}`",
            network.trunc(),
            network.addr()
        ))
    }
}

/// Which origins may call from a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// None; no CORS header is sent.
    Off,
    /// Every origin.
    Any,
    /// These origins, in lower case and without a trailing slash; never empty.
    Listed(Vec<String>),
}

/// A list of origins.
pub(in crate::config) struct Origins;

impl Kind for Origins {
    type Value = AllowedOrigins;

    fn read(&self, raw: &Raw) -> Result<AllowedOrigins, String> {
        let entries = raw
            .list()
            .ok_or_else(|| format!("must be a list of origins, not {}", raw.found()))?;
        match entries.as_slice() {
            [] => Ok(AllowedOrigins::Off),
            ["*"] => Ok(AllowedOrigins::Any),
            entries if entries.contains(&"*") => {
                Err("holds `*` beside other origins; `*` alone is every origin".to_owned())
            }
            entries => {
                let origins = entries.iter().map(|entry| origin(entry));
                origins
                    .collect::<Result<_, _>>()
                    .map(AllowedOrigins::Listed)
            }
        }
    }

    fn show(&self, value: &AllowedOrigins) -> Shown {
        match value {
            AllowedOrigins::Off => Shown::list([]),
            AllowedOrigins::Any => Shown::list(["*".to_owned()]),
            AllowedOrigins::Listed(origins) => Shown::list(origins.iter().cloned()),
        }
    }

    fn describe(&self) -> String {
        "list of origins, or `*`".to_owned()
    }
}

/// Checks the serialized form that browsers send: `scheme://host[:port]`.
///
/// Browser extensions and desktop apps have schemes of their own, so any scheme is taken.
fn origin(text: &str) -> Result<String, String> {
    let plain = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
    let is_fine = plain.split_once("://").is_some_and(|(scheme, rest)| {
        let mut letters = scheme.bytes();
        letters.next().is_some_and(|b| b.is_ascii_alphabetic())
            && letters.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
            && !rest.is_empty()
            && rest.bytes().all(|b| {
                b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']')
            })
    });
    if is_fine {
        Ok(plain)
    } else {
        Err(format!(
            "holds `{}`, which is not an origin such as https://chat.example.com (scheme, host, \
             port; no path)",
            text.escape_debug()
        ))
    }
}
