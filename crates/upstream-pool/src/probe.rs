//! Asks an upstream for its models, to tell early whether its URL and key work.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, HOST, HeaderMap, HeaderValue, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use secrecy::SecretString;
use serde::Deserialize;
use sluice_domain::upstream::{BaseUrl, ProviderKind, Upstream};
use tokio::time::{Instant, timeout};

use crate::body::{UpstreamBody, UpstreamBodyError, Wire};
use crate::client::{ExchangeError, Origin, Patience, Reply};
use crate::dispatch::Dispatcher;
use crate::error::{Cause, ErrorClass};
use crate::fault::read_fault;
use crate::head::{ANTHROPIC_VERSION, OLDEST_VERSION};
use crate::routing::upstream::{credential, model_list};

/// The whole probe takes no longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A list of models is no longer than this, in bytes.
pub(crate) const MAX_LIST_BYTES: usize = 4 * 1024 * 1024;

/// A message of a provider is shown up to here, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// An upstream answered as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeReport {
    /// The models that it lists, in its order.
    pub models: Vec<String>,
    /// How long the answer took.
    pub took: Duration,
}

/// An upstream did not answer as it should. The texts are for the person who set it up.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no base URL, or it cannot be put into a request.
    #[error("the upstream has no usable base URL")]
    NoBaseUrl,
    /// The key cannot stand in a header.
    #[error(
        "the key is empty or holds white space or other characters that cannot stand in a header"
    )]
    UnusableKey,
    /// No connection could be opened.
    #[error("no connection to {origin} could be opened; check the URL, the name and the network")]
    Unreachable {
        /// Scheme, host and port.
        origin: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// There was no answer in time.
    #[error("{origin} did not answer within 10 s")]
    TimedOut {
        /// Scheme, host and port.
        origin: String,
    },
    /// The connection broke, or what came is no answer.
    #[error("{origin} did not answer as an HTTP server does")]
    Broken {
        /// Scheme, host and port.
        origin: String,
        /// The cause.
        #[source]
        source: Cause,
    },
    /// The key was refused.
    #[error("the upstream refused the key with status {status}{}", said(message.as_deref()))]
    KeyRefused {
        /// The status.
        status: u16,
        /// What the provider says about it.
        message: Option<String>,
    },
    /// Nothing is there. Some compatible servers have no list of models and work all the same.
    #[error("there is no list of models at {url}; {}", advice(*kind))]
    NotFound {
        /// What was asked for.
        url: String,
        /// The kind of the upstream.
        kind: ProviderKind,
    },
    /// Another status.
    #[error("the upstream answered with status {status}{}", said(message.as_deref()))]
    UnexpectedStatus {
        /// The status.
        status: u16,
        /// What the provider says about it.
        message: Option<String>,
    },
    /// The answer is not a list of models.
    #[error("the answer of {url} is not a list of models; check the base URL")]
    NotAModelList {
        /// What was asked for.
        url: String,
    },
    /// The root certificates of this machine cannot be read.
    #[error("the root certificates of this machine cannot be read; install `ca-certificates`")]
    NoRootCertificates(#[source] std::io::Error),
}

fn advice(kind: ProviderKind) -> &'static str {
    match kind {
        ProviderKind::Azure => "check the name of the resource and the API version",
        ProviderKind::Anthropic => "check the base URL",
        _ => "the base URL often ends in /v1",
    }
}

fn said(message: Option<&str>) -> String {
    let Some(message) = message else {
        return String::new();
    };
    let shown: String = message
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_MESSAGE_CHARS)
        .collect();
    format!(": {shown}")
}

#[derive(Deserialize)]
struct ModelList {
    data: Vec<ListedModel>,
}

#[derive(Deserialize)]
struct ListedModel {
    id: String,
}

impl Dispatcher {
    /// Asks an upstream for its models with a key, once.
    ///
    /// # Errors
    /// [`ProbeError`]; the call may be repeated.
    ///
    /// # Cancel safety
    /// Safe: nothing is changed anywhere.
    pub async fn probe(
        &self,
        upstream: &Upstream,
        key: Option<&SecretString>,
    ) -> Result<ProbeReport, ProbeError> {
        match upstream.kind {
            ProviderKind::OpenAi
            | ProviderKind::Azure
            | ProviderKind::Anthropic
            | ProviderKind::Compatible => {}
            ProviderKind::Demo => {
                return Ok(ProbeReport {
                    models: vec!["demo".to_owned()],
                    took: Duration::ZERO,
                });
            }
        }
        let base = upstream.base_url.as_ref().ok_or(ProbeError::NoBaseUrl)?;
        let begun = Instant::now();
        let uri = model_list(base, upstream).ok_or(ProbeError::NoBaseUrl)?;
        let url = format!("{}://{}{uri}", base.scheme(), base.authority());
        let asked = self.ask_for_models(upstream, base, uri, key, begun);
        let (status, body) =
            timeout(PATIENCE, asked)
                .await
                .map_err(|_elapsed| ProbeError::TimedOut {
                    origin: base.origin(),
                })??;
        let models = read_models(status, &body, upstream.kind, url)?;
        Ok(ProbeReport {
            models,
            took: begun.elapsed(),
        })
    }

    async fn ask_for_models(
        &self,
        upstream: &Upstream,
        base: &BaseUrl,
        uri: Uri,
        key: Option<&SecretString>,
        begun: Instant,
    ) -> Result<(StatusCode, Bytes), ProbeError> {
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_str(base.authority()).map_err(|_bad| ProbeError::NoBaseUrl)?;
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, self.user_agent().clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(key) = key {
            let (name, value) = credential(upstream.kind, key).ok_or(ProbeError::UnusableKey)?;
            headers.insert(name, value);
        }
        if upstream.kind == ProviderKind::Anthropic {
            headers.insert(ANTHROPIC_VERSION, OLDEST_VERSION);
        }
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;

        let origin = || base.origin();
        let destination = Origin::new(base, upstream.allow_private).ok_or(ProbeError::NoBaseUrl)?;
        let patience = Patience {
            connect: upstream.deadlines.connect,
            head: PATIENCE,
        };
        let Reply {
            status,
            first,
            lease,
            ..
        } = self
            .connections()
            .exchange(&destination, &request, patience, begun)
            .await
            .map_err(|error| match (error.class(), error) {
                (_, ExchangeError::NoRootCertificates(source)) => {
                    ProbeError::NoRootCertificates(source)
                }
                (ErrorClass::Timeout, _) => ProbeError::TimedOut { origin: origin() },
                (ErrorClass::Connect, error) => ProbeError::Unreachable {
                    origin: origin(),
                    source: error.into_cause(),
                },
                (_, error) => ProbeError::Broken {
                    origin: origin(),
                    source: error.into_cause(),
                },
            })?;
        let wire = Wire::new(first, lease, PATIENCE, begun + PATIENCE, Instant::now());
        match UpstreamBody::wire(Bytes::new(), wire)
            .collect(MAX_LIST_BYTES)
            .await
        {
            Ok(body) => Ok((status, body)),
            Err(UpstreamBodyError::Idle | UpstreamBodyError::Total) => {
                Err(ProbeError::TimedOut { origin: origin() })
            }
            Err(error) => Err(ProbeError::Broken {
                origin: origin(),
                source: error.into(),
            }),
        }
    }
}

/// Reads a list of models; `None` when it is none.
pub(crate) fn list_of(body: &[u8]) -> Option<Vec<String>> {
    let list: ModelList = serde_json::from_slice(body).ok()?;
    Some(list.data.into_iter().map(|model| model.id).collect())
}

fn read_models(
    status: StatusCode,
    body: &[u8],
    kind: ProviderKind,
    url: String,
) -> Result<Vec<String>, ProbeError> {
    let message = || read_fault(body).and_then(|fault| fault.message);
    match status.as_u16() {
        200 => list_of(body).ok_or(ProbeError::NotAModelList { url }),
        status @ (401 | 403) => Err(ProbeError::KeyRefused {
            status,
            message: message(),
        }),
        404 | 405 => Err(ProbeError::NotFound { url, kind }),
        status => Err(ProbeError::UnexpectedStatus {
            status,
            message: message(),
        }),
    }
}
