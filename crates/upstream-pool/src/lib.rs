//! Upstream selection and the HTTP client of the relay path.
//!
//! **For**: an immutable [`routing`] table built from configuration, the choice of a target and an
//! upstream key for each attempt, the health that decides who may be asked, the request to the
//! provider under deadlines, the classification of what went wrong, and the body of the answer as a
//! bounded stream. Also the built-in `demo` upstream and the probe that tells whether a URL and a
//! key work.
//!
//! **Never here**: the ledger, quotas, prices, SQL, and the shapes of errors that our own clients
//! see. An error says what happened and is logged where it is answered; only changes of health are
//! logged here, because no one request answers for them.
//!
//! Modules in reading order: [`routing`] (what may serve a request), [`error`] (what can go wrong),
//! `health` (breakers, rests, limits), [`body`] (the answer's bytes), [`dispatch`] (one request,
//! tried until it is answered), [`demo`], [`probe`], [`tls`]. Private: `patrol` (probes without a
//! request), `head` (which headers pass),
//! `fault` (a provider's error object), `retry_after`, `attempt`, `first_event`, `quirk` (what was
//! learned about a server), `watch` (the timer of an answer), `client` (connections).
//!
//! To let another header of an answer through, add it to the list in `head`; to relay another
//! provider kind, give it its credential header and its paths in `routing::upstream`; to judge
//! upstreams by something else, write a state machine in `health` and ask it in `health::key` or
//! `health::upstream`.

pub mod routing;

pub mod error;

mod fault;

mod retry_after;

mod health;

mod head;

mod first_event;

mod quirk;

mod watch;

mod client;

pub mod body;

pub mod dispatch;

mod attempt;

pub mod demo;

pub mod probe;

mod patrol;

pub mod tls;

pub use body::{UpstreamBody, UpstreamBodyError};
pub use dispatch::{AnswerKind, Call, ClientOptions, Dispatcher, UpstreamAnswer};
pub use error::{
    Attempts, DispatchError, ErrorClass, ErrorOrigin, ProviderFault, Refusal, SendStage,
};
pub use health::UpstreamCounts;
pub use health::pass::UpstreamSlot;
pub use health::probing::ProbeFinding;
pub use health::registry::{BreakerReport, HealthRegistry, KeyReport, UpstreamReport};
pub use probe::{ProbeError, ProbeReport};
pub use routing::{ModelEntry, RoutePlan, RoutingInput, RoutingProblem, RoutingTable, TargetInfo};
pub use tls::install_crypto_provider;
