//! What can go wrong on the way to an upstream, decided once.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use sluice_domain::pool::SkippedTargets;
use sluice_domain::record::AttemptRecord;
use sluice_domain::words;
use smallvec::SmallVec;

/// The attempts of one request in order; the last one decided.
pub type Attempts = SmallVec<[AttemptRecord; 1]>;

/// A cause that is printed for operators; it never holds a secret or a query.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// The class of a failure. Retries, breakers and cooldowns read it; nobody matches on text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The route has nothing that can serve it.
    NoTarget,
    /// No connection could be opened: name, network or TLS.
    Connect,
    /// A deadline passed: connect, first event, idle or total.
    Timeout,
    /// The connection broke.
    Reset,
    /// The answer ended early.
    Cut,
    /// The answer is not one of a model API.
    Protocol,
    /// The provider failed: 5xx, 408, 409, 425, 529.
    Status,
    /// The provider limits this upstream key: 429.
    RateLimited,
    /// The provider refuses this upstream key, whatever is asked: 401, 403.
    Auth,
    /// The provider knows this upstream key, which may not use the model or the feature: another key may,
    /// and this one may serve other requests.
    Forbidden,
    /// The account behind this upstream key has no money: 402, `insufficient_quota`.
    Funds,
    /// The provider does not know what our configuration names: a deployment, a path, a version.
    /// Another upstream may serve the request, and nothing is wrong with this one otherwise.
    Misconfigured,
    /// The request itself is at fault: 400, 404, 413, 422, a content filter.
    CallerFault,
    /// The request is too long for the model.
    ContextLength,
    /// A defect or a missing piece of this machine.
    Internal,
}

words!(
    ErrorClass,
    "no_target, connect, timeout, reset, cut, protocol, status, rate_limited, auth, forbidden, funds, misconfigured, caller_fault, context_length, internal",
    {
        ErrorClass::NoTarget => "no_target",
        ErrorClass::Connect => "connect",
        ErrorClass::Timeout => "timeout",
        ErrorClass::Reset => "reset",
        ErrorClass::Cut => "cut",
        ErrorClass::Protocol => "protocol",
        ErrorClass::Status => "status",
        ErrorClass::RateLimited => "rate_limited",
        ErrorClass::Auth => "auth",
        ErrorClass::Forbidden => "forbidden",
        ErrorClass::Funds => "funds",
        ErrorClass::Misconfigured => "misconfigured",
        ErrorClass::CallerFault => "caller_fault",
        ErrorClass::ContextLength => "context_length",
        ErrorClass::Internal => "internal",
    }
);

/// On whose side a failure lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorOrigin {
    /// The provider or the way to it.
    Upstream,
    /// The client's request.
    Downstream,
    /// This machine or its configuration.
    Internal,
}

impl ErrorClass {
    /// All classes, in the order of their numbers.
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::NoTarget,
        Self::Connect,
        Self::Timeout,
        Self::Reset,
        Self::Cut,
        Self::Protocol,
        Self::Status,
        Self::RateLimited,
        Self::Auth,
        Self::Forbidden,
        Self::Funds,
        Self::Misconfigured,
        Self::CallerFault,
        Self::ContextLength,
        Self::Internal,
    ];
    /// How many there are.
    pub(crate) const COUNT: usize = Self::Internal as usize + 1;

    /// Returns on whose side the failure lies.
    pub const fn origin(self) -> ErrorOrigin {
        match self {
            Self::CallerFault | Self::ContextLength => ErrorOrigin::Downstream,
            Self::NoTarget | Self::Misconfigured | Self::Internal => ErrorOrigin::Internal,
            Self::Connect
            | Self::Timeout
            | Self::Reset
            | Self::Cut
            | Self::Protocol
            | Self::Status
            | Self::RateLimited
            | Self::Auth
            | Self::Forbidden
            | Self::Funds => ErrorOrigin::Upstream,
        }
    }

    const fn describe(self) -> &'static str {
        match self {
            Self::NoTarget => "the route has no target that can be used",
            Self::Connect => "the upstream cannot be reached",
            Self::Timeout => "the upstream did not answer in time",
            Self::Reset => "the connection to the upstream broke",
            Self::Cut => "the answer of the upstream ended early",
            Self::Protocol => "the answer of the upstream cannot be understood",
            Self::Status => "the upstream failed",
            Self::RateLimited => "the upstream limits the rate of this upstream key",
            Self::Auth => "the upstream refused this upstream key",
            Self::Forbidden => "the upstream does not let this upstream key use the model",
            Self::Funds => "the upstream account has no funds left",
            Self::Misconfigured => "the upstream does not know what its configuration names",
            Self::CallerFault => "the upstream refused the request",
            Self::ContextLength => "the request is too long for the model",
            Self::Internal => "the request could not be sent",
        }
    }
}

/// How far an attempt had come; a later attempt may cost money only after `Sent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SendStage {
    /// Nothing of the request was sent.
    NotSent,
    /// A part or all of the request was sent; no head came back.
    Sent,
    /// The head of an answer came back.
    Answered,
}

/// What a provider says about an error, in whichever shape it says it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProviderFault {
    /// For people.
    pub message: Option<String>,
    /// `error.type`.
    pub kind: Option<String>,
    /// `error.code`; a number is given as text.
    pub code: Option<String>,
    /// `error.param`.
    pub param: Option<String>,
}

/// A refusal in the provider's own words.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The status. Where a stream had begun with 200 and its first event is an error object, the
    /// status that this object stands for.
    pub status: StatusCode,
    /// The headers that are let through.
    pub headers: HeaderMap,
    /// The provider's own request id.
    pub upstream_request_id: Option<HeaderValue>,
    /// The body as it came, or the data of the event; empty when it was too long or cut.
    pub body: Bytes,
    /// What the body says.
    pub fault: ProviderFault,
}

/// A request could not be served.
#[derive(Debug)]
pub struct DispatchError {
    /// What went wrong.
    pub class: ErrorClass,
    /// How far the last attempt had come.
    pub stage: SendStage,
    /// How long the provider asks to wait, at most a day.
    pub retry_after: Option<Duration>,
    /// The provider's own words, when it answered with an error.
    pub refusal: Option<Refusal>,
    /// The attempts; empty when there was nothing to try.
    pub attempts: Attempts,
    /// What was passed over.
    pub skipped: SkippedTargets,
    pub(crate) cause: Option<Cause>,
}

impl DispatchError {
    /// Returns the status that the upstream answered; `None` when no head came.
    pub fn status(&self) -> Option<u16> {
        self.attempts.last().and_then(|attempt| attempt.status)
    }

    /// Returns on whose side the failure lies.
    pub const fn origin(&self) -> ErrorOrigin {
        self.class.origin()
    }
}

impl fmt::Display for DispatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class.describe())?;
        match &self.refusal {
            Some(refusal) => write!(f, " with status {}", refusal.status.as_u16()),
            None => Ok(()),
        }
    }
}

impl Error for DispatchError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause
            .as_deref()
            .map(|cause| cause as &(dyn Error + 'static))
    }
}
