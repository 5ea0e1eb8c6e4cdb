//! One request, tried until it is answered or nothing is left to try.

mod advice;

mod tour;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use sluice_domain::pool::SkippedTargets;
use sluice_domain::ports::Clock;
use sluice_domain::quota::Payer;
use sluice_domain::record::AttemptRecord;
use sluice_domain::route::Endpoint;
use sluice_domain::upstream::ProviderKind;
use sluice_protocol::answer::AnswerFacts;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::attempt::Attempt;
use crate::body::UpstreamBody;
use crate::client::{Connections, PoolOptions};
use crate::error::{Attempts, DispatchError};
use crate::health::pass::UpstreamSlot;
use crate::quirk::Quirks;
use crate::routing::{RoutePlan, TargetInfo};

use self::tour::Tour;

/// How a [`Dispatcher`] talks to upstreams.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Our `user-agent`.
    pub user_agent: HeaderValue,
    /// Unused connections that one worker keeps for one host.
    pub max_idle_per_host: usize,
    /// How long an unused connection is kept. Shorter than what servers do, so that a request
    /// rarely meets a connection that its server is about to close.
    pub idle_timeout: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            user_agent: HeaderValue::from_static(concat!("sluice/", env!("CARGO_PKG_VERSION"))),
            max_idle_per_host: 512,
            idle_timeout: Duration::from_secs(45),
        }
    }
}

/// What is to be sent, without the choice of where.
pub struct Call<'a> {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether the client asked for a stream.
    pub streams: bool,
    /// Whether the client called the endpoint of the Anthropic API with `beta=true`.
    pub is_beta: bool,
    /// The model that the client asked for.
    pub model: &'a Arc<str>,
    /// The client's headers; only a short allow-list of them is passed on.
    pub headers: &'a HeaderMap,
    /// Who pays: sticky choices and the causes of failures are told apart by it.
    pub payer: &'a Payer,
    /// The name of the upstream that alone is to serve it.
    pub pinned: Option<&'a str>,
    /// What the client sent, to tell requests apart that fail again and again.
    pub body: &'a [u8],
    /// The bound of its tokens, for limits of upstreams.
    pub token_bound: u64,
    /// Renders the body for the target that was chosen; called once per attempt, before anything
    /// of it is sent, and once more with [`TargetInfo::is_repeated`] where the server refused a
    /// part of it that can be left out.
    pub render: &'a (dyn Fn(&TargetInfo<'_>) -> Bytes + Send + Sync),
    /// Called at the end of each attempt, so that attempts are known also when the client leaves.
    pub attempt_ended: &'a (dyn Fn(&AttemptRecord) + Send + Sync),
    /// Called when the dispatch is dropped before its end, with what was passed over until then.
    pub abandoned: &'a (dyn Fn(SkippedTargets) + Send + Sync),
    /// Tells when attempts begin.
    pub clock: &'a dyn Clock,
    /// The first event of a stream may be this long, in bytes.
    pub max_event_bytes: usize,
    /// An answer that is no stream is read whole before it is returned when it is no longer than
    /// this, in bytes: what fails meanwhile is still an error of the attempt. A longer one is
    /// returned while it still comes.
    pub max_held_bytes: usize,
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers hold credentials and bodies hold prompts.
        f.debug_struct("Call")
            .field("endpoint", &self.endpoint)
            .field("streams", &self.streams)
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// What kind of body an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// A stream of server-sent events, of which the first one is here.
    Events,
    /// One document. Some servers answer so although a stream was asked for.
    Document,
}

/// An answer with a status below 300.
#[derive(Debug)]
pub struct UpstreamAnswer {
    /// The status.
    pub status: StatusCode,
    /// What the body is.
    pub kind: AnswerKind,
    /// The body.
    pub body: UpstreamBody,
    /// What was read of a document that is here whole, so that nobody reads it again.
    pub facts: Option<AnswerFacts>,
    /// The name of the upstream that answered.
    pub upstream_name: Arc<str>,
    /// Its protocol.
    pub provider_kind: ProviderKind,
    /// The attempts; the last one is the one that answered.
    pub attempts: Attempts,
    /// What was passed over.
    pub skipped: SkippedTargets,
    /// When its first event, or its head, was here.
    pub answered_at: Instant,
    /// What the answer holds of the limits of its upstream; to be kept until it has ended.
    pub slot: Option<UpstreamSlot>,
}

impl UpstreamAnswer {
    /// Returns the name of the model at the upstream that answered.
    pub fn upstream_model(&self) -> Option<&Arc<str>> {
        self.attempts.last().map(|attempt| &attempt.upstream_model)
    }
}

/// Sends requests to upstreams, with connections of its own.
///
/// Clones share their connections, which live on the runtime that used them first: give every
/// worker thread its own with [`fork`](Self::fork).
#[derive(Debug, Clone)]
pub struct Dispatcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    user_agent: HeaderValue,
    connections: Connections,
    quirks: Arc<Quirks>,
}

impl Dispatcher {
    /// Builds a dispatcher. Nothing is opened or loaded yet.
    pub fn new(options: ClientOptions) -> Self {
        let ClientOptions {
            user_agent,
            max_idle_per_host,
            idle_timeout,
        } = options;
        let pool = PoolOptions {
            max_idle_per_host,
            idle_timeout,
        };
        let connections = Connections::new(pool, Arc::new(OnceCell::new()));
        Self {
            shared: Arc::new(Shared {
                user_agent,
                connections,
                quirks: Arc::default(),
            }),
        }
    }

    /// Returns a dispatcher with the same settings and no connections, for another worker thread.
    #[must_use]
    pub fn fork(&self) -> Self {
        let user_agent = self.shared.user_agent.clone();
        let connections = self.shared.connections.fork();
        let quirks = Arc::clone(&self.shared.quirks);
        Self {
            shared: Arc::new(Shared {
                user_agent,
                connections,
                quirks,
            }),
        }
    }

    pub(crate) fn quirks(&self) -> &Quirks {
        &self.shared.quirks
    }

    pub(crate) fn user_agent(&self) -> &HeaderValue {
        &self.shared.user_agent
    }

    pub(crate) fn connections(&self) -> &Connections {
        &self.shared.connections
    }

    /// Sends a request until it is answered, to the targets and keys whose turn it is.
    ///
    /// Nothing is repeated once an answer has begun: a stream is returned when its first event is
    /// here, so that whatever fails before can be tried elsewhere, or be answered with a status of
    /// its own.
    ///
    /// # Errors
    /// [`DispatchError`] with the class, the provider's own words where there are some, and the
    /// attempts: of several failures the one that says most to the client. Nothing of an answer was
    /// handed out then.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection to the upstream at once; the upstream may have
    /// been asked by then. It counts as nothing in the health of the upstream.
    pub async fn dispatch(
        &self,
        plan: &RoutePlan,
        call: &Call<'_>,
    ) -> Result<UpstreamAnswer, Box<DispatchError>> {
        let mut tour = Tour::new(plan, call);
        while let Some(step) = tour.next() {
            if !step.pause.is_zero() {
                tokio::time::sleep(step.pause).await;
            }
            let Some((lane, pass)) = tour.begin(&step) else {
                continue;
            };
            let started_at = call.clock.now();
            let (begun, due) = (tour.at(), tour.due(&lane));
            let mut attempt = Attempt::begin(self, lane, call, started_at, begun, due);
            let result = attempt.run().await;
            let error = result.as_ref().err().map(|failure| failure.class.as_str());
            tour.record(AttemptRecord {
                upstream_id: lane.upstream.id,
                upstream_key_id: lane.key.id,
                upstream_model: Arc::clone(lane.model),
                status: attempt.status().map(|status| status.as_u16()),
                error: error.map(Cow::Borrowed),
                started_at,
                head_ms: attempt.elapsed_ms(),
            });
            match result {
                Ok(outcome) => {
                    let answered_at = Instant::now();
                    let slot = pass.succeed(answered_at);
                    let (attempts, skipped) = tour.into_notes();
                    return Ok(UpstreamAnswer {
                        status: outcome.status,
                        kind: outcome.kind,
                        body: outcome.body,
                        facts: outcome.facts,
                        answered_at,
                        slot,
                        upstream_name: Arc::clone(&lane.upstream.name),
                        provider_kind: lane.upstream.kind,
                        attempts,
                        skipped,
                    });
                }
                Err(failure) => tour.failed(&step, pass, failure),
            }
        }
        Err(tour.into_error())
    }
}
