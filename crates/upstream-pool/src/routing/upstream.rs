//! An upstream with everything that a request to it needs, made once.

use std::sync::Arc;

use http::Uri;
use http::header::{AUTHORIZATION, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use sluice_domain::id::{UpstreamId, UpstreamKeyId};
use sluice_domain::route::Endpoint;
use sluice_domain::tenant::EntityState;
use sluice_domain::upstream::{
    BaseUrl, ClientGone, Deadlines, ProviderKind, Upstream, UpstreamKey,
};

use super::RoutingProblem;
use super::wheel::Wheel;
use crate::client::Origin;
use crate::head::PreparedHeaders;

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
    chat_completions: Uri,
    completions: Uri,
    embeddings: Uri,
}

impl Address {
    /// Splits a base URL into what requests need; `None` when it does not fit into a request.
    fn new(base: &BaseUrl) -> Option<Self> {
        Some(Self {
            origin: Origin::new(base)?,
            host: HeaderValue::from_str(base.authority()).ok()?,
            chat_completions: uri_below(base, Endpoint::ChatCompletions.path())?,
            completions: uri_below(base, Endpoint::Completions.path())?,
            embeddings: uri_below(base, Endpoint::Embeddings.path())?,
        })
    }

    /// Returns the URI of an endpoint; cloning it does not parse or copy text.
    pub(crate) fn uri(&self, endpoint: Endpoint) -> &Uri {
        match endpoint {
            Endpoint::ChatCompletions => &self.chat_completions,
            Endpoint::Completions => &self.completions,
            Endpoint::Embeddings => &self.embeddings,
        }
    }
}

/// Builds the URI of a path below a base URL, as it stands in a request to its origin.
pub(crate) fn uri_below(base: &BaseUrl, path: &str) -> Option<Uri> {
    Uri::builder()
        .path_and_query(format!("{}{path}", base.path()))
        .build()
        .ok()
}

/// Builds `authorization: Bearer …`; `None` when the secret is empty or cannot stand in a header.
pub(crate) fn bearer(secret: &SecretString) -> Option<HeaderValue> {
    let secret = secret.expose_secret();
    if secret.is_empty() || !secret.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {secret}")).ok()?;
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
            ProviderKind::Azure | ProviderKind::Anthropic => {
                problems.push(RoutingProblem::UnsupportedKind {
                    upstream: name(),
                    kind: upstream.kind,
                });
                return None;
            }
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
            ProviderKind::OpenAi | ProviderKind::Compatible => {
                let Some(base) = &upstream.base_url else {
                    problems.push(RoutingProblem::NoBaseUrl { upstream: name() });
                    return None;
                };
                let Some(address) = Address::new(base) else {
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
            let Some(value) = bearer(secret) else {
                problems.push(RoutingProblem::UnusableSecret {
                    upstream: upstream.name.as_str().to_owned(),
                    key: key.name.as_str().to_owned(),
                });
                return None;
            };
            let headers = PreparedHeaders::new(host, Some((AUTHORIZATION, value)));
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
