//! Upstreams: configured endpoints of providers and their credentials.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use crate::address::{ForbiddenAddress, check_address, check_host_name};
use crate::id::{TenantId, UpstreamId, UpstreamKeyId};
use crate::pool::{BreakerPolicy, ProbeInterval, RetryPolicy, UpstreamLimits};
use crate::route::Protocol;
use crate::tenant::{EntityState, Name};
use crate::time::UnixMillis;
use crate::words;

/// The protocol and the habits of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProviderKind {
    /// The OpenAI API.
    OpenAi,
    /// Azure OpenAI.
    Azure,
    /// The Anthropic API.
    Anthropic,
    /// A server that speaks the OpenAI protocol: DeepSeek, vLLM, TensorRT-LLM, Ollama, …
    Compatible,
    /// Built in; answers by itself and says that it is a demonstration.
    Demo,
}

words!(ProviderKind, "openai, azure, anthropic, compatible, demo", {
    ProviderKind::OpenAi => "openai",
    ProviderKind::Azure => "azure",
    ProviderKind::Anthropic => "anthropic",
    ProviderKind::Compatible => "compatible",
    ProviderKind::Demo => "demo",
});

impl ProviderKind {
    /// Returns whether upstreams of this kind speak a protocol.
    pub const fn speaks(self, protocol: Protocol) -> bool {
        match self {
            Self::OpenAi | Self::Azure | Self::Compatible => matches!(protocol, Protocol::OpenAi),
            Self::Anthropic => matches!(protocol, Protocol::Anthropic),
            Self::Demo => true,
        }
    }
}

/// A checked base URL: `http` or `https`, a host, no credentials, query or fragment.
///
/// The only parsed form that exists; it is never parsed a second time by another parser.
#[derive(Clone, PartialEq, Eq)]
pub struct BaseUrl {
    url: url::Url,
}

/// A base URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBaseUrl {
    /// It is not a URL.
    #[error("`{0}` is not a URL such as https://api.openai.com/v1")]
    Syntax(String),
    /// Another scheme than `http` or `https`.
    #[error("the scheme must be http or https, not `{0}`")]
    Scheme(String),
    /// There is no host.
    #[error("the URL has no host")]
    NoHost,
    /// It holds a user name or password.
    #[error("the URL holds credentials; give the key by file or environment instead")]
    Credentials,
    /// It has a query or a fragment.
    #[error("the URL has a query or a fragment; give only scheme, host, port and path")]
    QueryOrFragment,
}

impl BaseUrl {
    /// Returns `scheme://host:port`, which a sealed secret is bound to.
    pub fn origin(&self) -> String {
        let port = self.url.port_or_known_default().unwrap_or(0);
        format!(
            "{}://{}:{port}",
            self.url.scheme(),
            self.url.host_str().unwrap_or("")
        )
    }

    /// Returns whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Returns the path without a trailing slash; empty for the root.
    pub fn path(&self) -> &str {
        self.url.path().trim_end_matches('/')
    }

    /// Returns `host[:port]` as it stands in the URL.
    pub fn authority(&self) -> &str {
        self.url.authority()
    }

    /// Checks where the host is, as far as the URL tells: the addresses behind a name are checked
    /// when it is connected to.
    ///
    /// # Errors
    /// [`ForbiddenAddress`] when the upstream may not be there.
    pub fn check_host(&self, allow_private: bool) -> Result<(), ForbiddenAddress> {
        match self.url.host() {
            Some(url::Host::Ipv4(address)) => check_address(IpAddr::V4(address), allow_private),
            Some(url::Host::Ipv6(address)) => check_address(IpAddr::V6(address), allow_private),
            Some(url::Host::Domain(name)) => check_host_name(name, allow_private),
            None => Ok(()),
        }
    }

    /// Returns the scheme.
    pub fn scheme(&self) -> &str {
        self.url.scheme()
    }
}

impl FromStr for BaseUrl {
    type Err = InvalidBaseUrl;

    fn from_str(text: &str) -> Result<Self, InvalidBaseUrl> {
        if text
            .bytes()
            .any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || b == b'\\')
        {
            return Err(InvalidBaseUrl::Syntax(text.escape_debug().to_string()));
        }
        let url = match url::Url::parse(text) {
            Ok(url) => url,
            Err(_syntax) => return Err(InvalidBaseUrl::Syntax(text.to_owned())),
        };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(InvalidBaseUrl::Scheme(url.scheme().to_owned()));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(InvalidBaseUrl::NoHost);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidBaseUrl::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidBaseUrl::QueryOrFragment);
        }
        Ok(Self { url })
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

impl fmt::Debug for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseUrl({self})")
    }
}

/// How long an upstream may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the dial to an open connection.
    pub connect: Duration,
    /// From the sent request to the first event of a stream, or to the head of an answer.
    pub first_event: Duration,
    /// Between two bytes of an answer; a comment counts as bytes.
    pub idle: Duration,
    /// From the sent request to the last byte.
    pub total: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_event: Duration::from_mins(5),
            idle: Duration::from_mins(3),
            total: Duration::from_hours(1),
        }
    }
}

/// One configured endpoint of a provider.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Its id.
    pub id: UpstreamId,
    /// The tenant that alone may use it; `None` is shared by all.
    pub tenant_id: Option<TenantId>,
    /// Its name, unique.
    pub name: Name,
    /// Its protocol.
    pub kind: ProviderKind,
    /// Where it is; `None` for [`ProviderKind::Demo`] only.
    pub base_url: Option<BaseUrl>,
    /// How long it may take.
    pub deadlines: Deadlines,
    /// What becomes of a stream there when its client has left.
    pub client_gone: ClientGone,
    /// How often a request is tried there.
    pub retry: RetryPolicy,
    /// When it is left alone because it fails.
    pub breaker: BreakerPolicy,
    /// How often it is probed while no request tells how it is; `None` is never.
    pub probe_every: Option<ProbeInterval>,
    /// How much it may be asked.
    pub limits: UpstreamLimits,
    /// The version of the interface that is asked for; of [`ProviderKind::Azure`] only, and there
    /// `None` stands for the paths that have none.
    pub api_version: Option<ApiVersion>,
    /// Whether it may be at an address that is not public.
    pub allow_private: bool,
    /// Whether it is used.
    pub state: EntityState,
    /// When it was last switched on: an admin wants it used then, whatever was held against it.
    pub enabled_at: UnixMillis,
    /// When it was made.
    pub created_at: UnixMillis,
}

impl Upstream {
    /// Makes an active one, shared by all tenants, with the usual settings.
    pub fn new(
        id: UpstreamId,
        name: Name,
        kind: ProviderKind,
        base_url: Option<BaseUrl>,
        created_at: UnixMillis,
    ) -> Self {
        Self {
            id,
            tenant_id: None,
            name,
            kind,
            base_url,
            deadlines: Deadlines::default(),
            client_gone: ClientGone::default(),
            retry: RetryPolicy::default(),
            breaker: BreakerPolicy::default(),
            probe_every: None,
            limits: UpstreamLimits::default(),
            api_version: None,
            allow_private: false,
            state: EntityState::Active,
            enabled_at: created_at,
            created_at,
        }
    }
}

/// An upstream cannot be as it is described; the text names the setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUpstream {
    /// It is somewhere, and nobody said where.
    #[error("url: an upstream of kind `{0}` needs one")]
    NoUrl(ProviderKind),
    /// It is built in.
    #[error("url: an upstream of kind `{0}` is built in and has none")]
    Url(ProviderKind),
    /// Its interface has no versions to choose from.
    #[error("api_version: only upstreams of kind `azure` have one, not `{0}`")]
    ApiVersion(ProviderKind),
    /// It answers by itself.
    #[error("probe_every: an upstream of kind `{0}` is built in and never probed")]
    Probe(ProviderKind),
    /// It may not be there.
    #[error("url: {0}")]
    Address(ForbiddenAddress),
}

impl Upstream {
    /// Checks what its settings say about each other.
    ///
    /// # Errors
    /// [`InvalidUpstream`], the first that is found.
    pub fn check(&self) -> Result<(), InvalidUpstream> {
        match &self.base_url {
            None if self.kind != ProviderKind::Demo => {
                return Err(InvalidUpstream::NoUrl(self.kind));
            }
            Some(_) if self.kind == ProviderKind::Demo => {
                return Err(InvalidUpstream::Url(self.kind));
            }
            Some(url) => url
                .check_host(self.allow_private)
                .map_err(InvalidUpstream::Address)?,
            None => {}
        }
        if self.api_version.is_some() && self.kind != ProviderKind::Azure {
            return Err(InvalidUpstream::ApiVersion(self.kind));
        }
        if self.probe_every.is_some() && self.kind == ProviderKind::Demo {
            return Err(InvalidUpstream::Probe(self.kind));
        }
        Ok(())
    }
}

/// A version of Azure's interface, such as `2024-10-21`: 1 to 40 letters, digits, `-`, `.` or `_`, so
/// that it can stand in a query.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiVersion(String);

/// A version of an interface cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an API version has 1 to 40 letters, digits, `-`, `.` or `_`, such as 2024-10-21")]
pub struct InvalidApiVersion;

impl ApiVersion {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ApiVersion {
    type Err = InvalidApiVersion;

    fn from_str(text: &str) -> Result<Self, InvalidApiVersion> {
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if (1..=40).contains(&text.len()) && text.bytes().all(is_plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidApiVersion)
        }
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of a stream at an upstream when its client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ClientGone {
    /// It is closed: the provider is to stop. The tenant pays the input and what was read.
    #[default]
    Cancel,
    /// It is read to its end, for the provider's own numbers: for providers that bill on after they
    /// were left.
    Drain,
}

words!(ClientGone, "cancel, drain", {
    ClientGone::Cancel => "cancel",
    ClientGone::Drain => "drain",
});

/// One credential of an upstream, without its secret.
#[derive(Debug, Clone)]
pub struct UpstreamKey {
    /// Its id.
    pub id: UpstreamKeyId,
    /// The upstream it belongs to.
    pub upstream_id: UpstreamId,
    /// Its name, unique inside the upstream.
    pub name: Name,
    /// Share of the traffic against its siblings, at least 1.
    pub weight: u32,
    /// How much it may be asked, beside what its upstream may be.
    pub limits: UpstreamLimits,
    /// Whether it is used.
    pub state: EntityState,
    /// When it was last switched on: an admin wants it used then, whatever was held against it.
    pub enabled_at: UnixMillis,
    /// When it was made.
    pub created_at: UnixMillis,
}

impl UpstreamKey {
    /// Makes an active one with the smallest weight and without limits.
    pub fn new(
        id: UpstreamKeyId,
        upstream_id: UpstreamId,
        name: Name,
        created_at: UnixMillis,
    ) -> Self {
        Self {
            id,
            upstream_id,
            name,
            weight: 1,
            limits: UpstreamLimits::default(),
            state: EntityState::Active,
            enabled_at: created_at,
            created_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_keeps_its_path_and_loses_its_slash() {
        let url: BaseUrl = "https://api.example.com/v1/".parse().unwrap();
        assert_eq!(url.to_string(), "https://api.example.com/v1");
        assert_eq!(url.path(), "/v1");
        assert_eq!(url.origin(), "https://api.example.com:443");
        assert_eq!(
            "http://127.0.0.1:9100".parse::<BaseUrl>().unwrap().path(),
            ""
        );
    }

    #[test]
    fn what_is_not_a_plain_base_url_is_refused() {
        for text in [
            "api.example.com/v1",
            "ftp://example.com",
            "https://user:pw@example.com",
            "https://example.com/v1?x=1",
            "https://example.com/#f",
            "https://",
            "https://exa mple.com",
            "https://example.com\\@evil.example",
            "",
        ] {
            assert!(text.parse::<BaseUrl>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_host_is_judged_by_its_address_however_it_is_written() {
        let url = |text: &str| text.parse::<BaseUrl>().unwrap();
        for text in [
            "http://127.0.0.1/v1",
            "http://127.1/v1",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1",
            "http://017700000001/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./v1",
            "http://%31%32%37.0.0.1/",
            "http://１２７.０.０.１/",
            "http://127。0。0。1/",
            "http://①②⑦.⓪.⓪.①/",
            "http://[::1]:8000/v1",
            "http://[::ffff:127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://[2002:7f00:1::]/",
            "http://10.1.2.3/",
            "http://192.168.0.1/",
            "http://172.16.0.1/",
            "http://100.64.0.1/",
            "http://[fd00::1]/",
            "http://localhost/v1",
            "http://LOCALHOST:11434",
            "http://localhost./",
            "http://a.localhost/",
        ] {
            let refused = url(text).check_host(false);
            assert!(
                matches!(refused, Err(ForbiddenAddress::NotAllowed { .. })),
                "{text}: {refused:?}"
            );
            assert_eq!(url(text).check_host(true), Ok(()), "{text}");
        }
        for text in [
            "http://169.254.169.254/latest",
            "http://2852039166/",
            "http://0xa9fea9fe/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[fd00:ec2::254]/",
            "http://metadata.google.internal/",
            "http://0/",
            "http://0.0.0.0:8000/v1",
            "http://[::]/",
            "http://224.0.0.1/",
            "http://[fe80::1]/",
        ] {
            let refused = url(text).check_host(true);
            assert!(
                matches!(refused, Err(ForbiddenAddress::Never { .. })),
                "{text}: {refused:?}"
            );
        }
        for text in [
            "https://api.openai.com/v1",
            "https://8.8.8.8/",
            "http://[2606:4700::1]/",
        ] {
            assert_eq!(url(text).check_host(false), Ok(()), "{text}");
        }
    }

    #[test]
    fn settings_that_contradict_each_other_are_named() {
        let upstream = |kind, url: Option<&str>| {
            Upstream::new(
                UpstreamId::from_uuid(uuid::Uuid::nil()),
                "some".parse().unwrap(),
                kind,
                url.map(|url| url.parse().unwrap()),
                UnixMillis(0),
            )
        };
        let public = Some("https://api.example.com/v1");
        let with_version = |kind| Upstream {
            api_version: Some("2024-10-21".parse().unwrap()),
            ..upstream(kind, public)
        };
        for (upstream, expected) in [
            (upstream(ProviderKind::OpenAi, public), Ok(())),
            (upstream(ProviderKind::Demo, None), Ok(())),
            (with_version(ProviderKind::Azure), Ok(())),
            (
                upstream(ProviderKind::Azure, None),
                Err("url: an upstream of kind `azure` needs one"),
            ),
            (
                upstream(ProviderKind::Demo, public),
                Err("url: an upstream of kind `demo` is built in and has none"),
            ),
            (
                with_version(ProviderKind::OpenAi),
                Err("api_version: only upstreams of kind `azure` have one, not `openai`"),
            ),
            (
                upstream(ProviderKind::Compatible, Some("http://10.0.0.1")),
                Err(
                    "url: 10.0.0.1 is an address of a private network, and private addresses are \
                     not allowed for this upstream",
                ),
            ),
        ] {
            let checked = upstream.check().map_err(|invalid| invalid.to_string());
            assert_eq!(checked, expected.map_err(str::to_owned));
        }
    }

    #[test]
    fn an_api_version_can_stand_in_a_query() {
        for text in ["2024-10-21", "2025-04-01-preview", "v1.0_x"] {
            assert_eq!(text.parse::<ApiVersion>().unwrap().as_str(), text);
        }
        for text in ["", "a b", "a&b=c", "a#", "ä", &"x".repeat(41)] {
            assert_eq!(text.parse::<ApiVersion>(), Err(InvalidApiVersion), "{text}");
        }
    }
}
