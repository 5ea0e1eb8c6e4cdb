//! An upstream with everything that a request to it needs, made once.

use std::sync::Arc;

use http::Uri;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use sluice_domain::id::{UpstreamId, UpstreamKeyId};
use sluice_domain::route::Endpoint;
use sluice_domain::tenant::EntityState;
use sluice_domain::upstream::{
    ApiVersion, BaseUrl, ClientGone, Deadlines, ProviderKind, Upstream, UpstreamKey,
};

use super::RoutingProblem;
use super::azure;
use super::wheel::Wheel;
use crate::client::Origin;
use crate::head::PreparedHeaders;

/// Known to all versions of the Anthropic API.
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// An upstream that can be used.
#[derive(Debug)]
pub(crate) struct PreparedUpstream {
    pub(crate) id: UpstreamId,
    pub(crate) name: Arc<str>,
    pub(crate) kind: ProviderKind,
    pub(crate) deadlines: Deadlines,
    pub(crate) client_gone: ClientGone,
    /// `None` for the built-in upstream, which is nowhere.
    pub(crate) address: Option<Address>,
    /// Where it lists its models, if it is probed.
    pub(crate) models: Option<Uri>,
    /// Never empty; an upstream without credentials has one key without any.
    pub(crate) keys: Box<[PreparedKey]>,
    /// Turns over `keys`.
    pub(crate) wheel: Wheel,
}

/// One credential of an upstream, ready for a header.
#[derive(Debug)]
pub(crate) struct PreparedKey {
    pub(crate) id: Option<UpstreamKeyId>,
    /// The credential in it is marked sensitive, so that it never shows in `Debug`.
    pub(crate) headers: PreparedHeaders,
}

/// Where an upstream is, as parts of a request.
#[derive(Debug)]
pub(crate) struct Address {
    pub(crate) origin: Origin,
    pub(crate) host: HeaderValue,
    paths: Paths,
}

/// Where the endpoints of an upstream are.
#[derive(Debug)]
enum Paths {
    /// At one place each, whatever the model.
    Fixed(Box<[Uri; 3]>),
    /// At a place for each model.
    ByDeployment(azure::DeploymentPaths),
    /// Those of the Anthropic API, each without and with `beta=true`.
    Anthropic(Box<[[Uri; 2]; 2]>),
}

impl Address {
    /// Splits a base URL into what requests need; `None` when it does not fit into a request.
    fn new(base: &BaseUrl, upstream: &Upstream) -> Option<Self> {
        let paths = match upstream.kind {
            ProviderKind::Azure => match azure::paths(base, api_version(upstream)) {
                azure::Paths::Plain { before, query } => {
                    Paths::Fixed(Box::new(endpoints(&before, &query)?))
                }
                azure::Paths::ByDeployment(paths) => Paths::ByDeployment(paths),
            },
            ProviderKind::Anthropic => Paths::Anthropic(Box::new(message_endpoints(base)?)),
            _ => Paths::Fixed(Box::new(endpoints(base.path(), "")?)),
        };
        Some(Self {
            origin: Origin::new(base, upstream.allow_private)?,
            host: HeaderValue::from_str(base.authority()).ok()?,
            paths,
        })
    }

    /// Returns the URI of an endpoint; `None` when the name of the model cannot stand in it, and for
    /// endpoints of a protocol that is not spoken there.
    ///
    /// Where no model stands in it, no text is parsed or copied.
    pub(crate) fn uri(&self, endpoint: Endpoint, is_beta: bool, model: &str) -> Option<Uri> {
        let uri = match &self.paths {
            Paths::ByDeployment(paths) => return paths.uri(endpoint, model),
            Paths::Fixed(uris) => {
                let [chat_completions, completions, embeddings] = &**uris;
                match endpoint {
                    Endpoint::ChatCompletions => chat_completions,
                    Endpoint::Completions => completions,
                    Endpoint::Embeddings => embeddings,
                    Endpoint::Messages | Endpoint::CountTokens => return None,
                }
            }
            Paths::Anthropic(uris) => {
                let [messages, count_tokens] = &**uris;
                let [plain, beta] = match endpoint {
                    Endpoint::Messages => messages,
                    Endpoint::CountTokens => count_tokens,
                    Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Embeddings => {
                        return None;
                    }
                };
                if is_beta { beta } else { plain }
            }
        };
        Some(uri.clone())
    }
}

/// Builds the URIs of the endpoints, in the order of [`Address::uri`].
fn endpoints(before: &str, query: &str) -> Option<[Uri; 3]> {
    let uri = |endpoint: Endpoint| path_and_query(&format!("{before}{}{query}", endpoint.path()));
    Some([
        uri(Endpoint::ChatCompletions)?,
        uri(Endpoint::Completions)?,
        uri(Endpoint::Embeddings)?,
    ])
}

/// Builds the URIs of the endpoints of the Anthropic API, in the order of [`Address::uri`].
fn message_endpoints(base: &BaseUrl) -> Option<[[Uri; 2]; 2]> {
    let root = anthropic_root(base);
    let uris = |endpoint: Endpoint| {
        let path = format!("{root}{}", endpoint.path());
        Some([
            path_and_query(&path)?,
            path_and_query(&format!("{path}?beta=true"))?,
        ])
    };
    Some([uris(Endpoint::Messages)?, uris(Endpoint::CountTokens)?])
}

/// Returns where the Anthropic API begins below a base URL, which people write with and without
/// `/v1`.
fn anthropic_root(base: &BaseUrl) -> String {
    let path = base.path();
    let version = if path.ends_with("/v1") { "" } else { "/v1" };
    format!("{path}{version}")
}

/// Returns where an upstream lists its models.
pub(crate) fn model_list(base: &BaseUrl, upstream: &Upstream) -> Option<Uri> {
    match upstream.kind {
        ProviderKind::Azure => path_and_query(&azure::model_list(base, api_version(upstream))),
        ProviderKind::Anthropic => path_and_query(&format!("{}/models", anthropic_root(base))),
        _ => path_and_query(&format!("{}/models", base.path())),
    }
}

fn api_version(upstream: &Upstream) -> Option<&str> {
    upstream.api_version.as_ref().map(ApiVersion::as_str)
}

/// Builds a URI as it stands in a request to its origin.
pub(super) fn path_and_query(text: &str) -> Option<Uri> {
    Uri::builder().path_and_query(text).build().ok()
}

/// Builds the header by which upstreams of a kind know the caller; `None` when the secret is empty or
/// cannot stand in one.
pub(crate) fn credential(
    kind: ProviderKind,
    secret: &SecretString,
) -> Option<(HeaderName, HeaderValue)> {
    match kind {
        ProviderKind::Azure => Some((azure::API_KEY, header_of("", secret)?)),
        ProviderKind::Anthropic => Some((X_API_KEY, header_of("", secret)?)),
        _ => Some((AUTHORIZATION, header_of("Bearer ", secret)?)),
    }
}

fn header_of(scheme: &str, secret: &SecretString) -> Option<HeaderValue> {
    let secret = secret.expose_secret();
    if secret.is_empty() || !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("{scheme}{secret}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl PreparedUpstream {
    /// Prepares an active upstream; `None` when it cannot be used, with the problem reported.
    pub(super) fn new(
        upstream: &Upstream,
        keys: &[(UpstreamKey, SecretString)],
        problems: &mut Vec<RoutingProblem>,
    ) -> Option<Self> {
        let name = || upstream.name.as_str().to_owned();
        let (address, keys) = match upstream.kind {
            ProviderKind::Demo => (
                None,
                vec![(
                    1,
                    PreparedKey {
                        id: None,
                        headers: PreparedHeaders::default(),
                    },
                )],
            ),
            ProviderKind::OpenAi
            | ProviderKind::Azure
            | ProviderKind::Anthropic
            | ProviderKind::Compatible => {
                let Some(base) = &upstream.base_url else {
                    problems.push(RoutingProblem::NoBaseUrl { upstream: name() });
                    return None;
                };
                let Some(address) = Address::new(base, upstream) else {
                    problems.push(RoutingProblem::UnusableBaseUrl { upstream: name() });
                    return None;
                };
                let keys = prepare_keys(upstream, &address.host, keys, problems);
                (Some(address), keys)
            }
        };
        let Some(wheel) = Wheel::new(keys.iter().map(|(weight, _)| *weight)) else {
            problems.push(RoutingProblem::NoUsableKey { upstream: name() });
            return None;
        };
        Some(Self {
            id: upstream.id,
            name: Arc::from(upstream.name.as_str()),
            kind: upstream.kind,
            deadlines: upstream.deadlines,
            client_gone: upstream.client_gone,
            address,
            models: upstream
                .base_url
                .as_ref()
                .filter(|_| upstream.probe_every.is_some())
                .and_then(|base| model_list(base, upstream)),
            keys: keys.into_iter().map(|(_, key)| key).collect(),
            wheel,
        })
    }
}

/// Returns the usable keys with their weights.
///
/// A server without any key is asked without a credential. One whose keys are all switched off or
/// broken is not: nobody decided to call it without one.
fn prepare_keys(
    upstream: &Upstream,
    host: &HeaderValue,
    keys: &[(UpstreamKey, SecretString)],
    problems: &mut Vec<RoutingProblem>,
) -> Vec<(u32, PreparedKey)> {
    if keys.is_empty() && upstream.kind == ProviderKind::Compatible {
        return vec![(
            1,
            PreparedKey {
                id: None,
                headers: PreparedHeaders::new(host, None),
            },
        )];
    }
    keys.iter()
        .filter(|(key, _)| key.state == EntityState::Active)
        .filter_map(|(key, secret)| {
            let Some(credential) = credential(upstream.kind, secret) else {
                problems.push(RoutingProblem::UnusableSecret {
                    upstream: upstream.name.as_str().to_owned(),
                    key: key.name.as_str().to_owned(),
                });
                return None;
            };
            let headers = PreparedHeaders::new(host, Some(credential)).passing_of(upstream.kind);
            Some((
                key.weight,
                PreparedKey {
                    id: Some(key.id),
                    headers,
                },
            ))
        })
        .collect()
}
