//! Where connections lead to.

use http::uri::Authority;
use sluice_domain::upstream::BaseUrl;

/// The other end of a connection; connections to the same one are shared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(super) is_https: bool,
    /// A name or an IP address, without brackets.
    pub(super) host: Box<str>,
    pub(super) port: u16,
    /// Whether it may be at an address that is not public. Part of the identity: nobody gets a
    /// connection that only somebody else was allowed to open.
    pub(super) allow_private: bool,
}

impl Origin {
    /// Takes the origin of a base URL; `None` when it does not fit into a request.
    pub(crate) fn new(base: &BaseUrl, allow_private: bool) -> Option<Self> {
        let authority: Authority = base.authority().parse().ok()?;
        if authority.as_str() != base.authority() {
            return None;
        }
        let is_https = base.is_https();
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let default_port = if is_https { 443 } else { 80 };
        Some(Self {
            is_https,
            host: bare.unwrap_or(host).into(),
            port: authority.port_u16().unwrap_or(default_port),
            allow_private,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_and_the_brackets_of_a_url_are_understood() {
        for (url, is_https, host, port) in [
            ("http://localhost/v1", false, "localhost", 80),
            ("https://api.example.com/v1", true, "api.example.com", 443),
            ("https://api.example.com:443", true, "api.example.com", 443),
            ("http://127.0.0.1:8000/v1", false, "127.0.0.1", 8000),
            ("http://[::1]:9/v1", false, "::1", 9),
            ("https://[2001:db8::1]/", true, "2001:db8::1", 443),
        ] {
            let expected = Origin {
                is_https,
                host: host.into(),
                port,
                allow_private: false,
            };
            let found = Origin::new(&url.parse().unwrap(), false);
            assert_eq!(found, Some(expected), "{url}");
        }
    }
}
