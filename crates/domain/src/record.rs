//! The usage record: one row per relayed request, the audit row.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::id::{RequestId, UpstreamId, UpstreamKeyId};
use crate::pool::SkippedTargets;
use crate::quota::{Amounts, HoldTerms, Payer};
use crate::route::Endpoint;
use crate::time::{LocalDay, Month, UnixMillis};
use crate::usage::{Basis, Ending, Stage, TokenUsage};

/// What is fixed when a request is admitted, before anything is sent.
#[derive(Debug, Clone)]
pub struct OpenRequest {
    /// The request.
    pub request_id: RequestId,
    /// Who pays.
    pub payer: Payer,
    /// The quota month, decided now and never again.
    pub period: Month,
    /// The tenant's local day.
    pub local_day: LocalDay,
    /// When the head of the request had been read.
    pub started_at: UnixMillis,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Whether the client asked for a stream.
    pub streams: bool,
    /// The model that the client asked for.
    pub requested_model: Arc<str>,
    /// What was set aside.
    pub hold: HoldTerms,
    /// Who called; personal data, kept apart from the ledger.
    pub caller: Caller,
}

/// Personal data of a call; stored in a table of its own that can be erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The source address.
    pub ip: Option<IpAddr>,
    /// The `user-agent` header, at most 200 bytes.
    pub user_agent: Option<Arc<str>>,
}

/// One try of one request against one upstream key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// The upstream.
    pub upstream_id: UpstreamId,
    /// The upstream key; `None` where the upstream has none.
    pub upstream_key_id: Option<UpstreamKeyId>,
    /// The name of the model there.
    pub upstream_model: Arc<str>,
    /// The status that the upstream answered; `None` when no head came.
    pub status: Option<u16>,
    /// A stable word for what went wrong; `None` when the attempt succeeded.
    pub error: Option<Cow<'static, str>>,
    /// When the attempt began.
    pub started_at: UnixMillis,
    /// Milliseconds to the head of the answer, or to the failure.
    pub head_ms: i64,
}

/// What is known when a request has ended.
#[derive(Debug, Clone)]
pub struct RequestEnd {
    /// How it ended.
    pub ending: Ending,
    /// How far it had come.
    pub stage: Stage,
    /// The status that the client was answered; 499 when it had left before.
    pub status: u16,
    /// The stable code of the error that the client was answered.
    pub error_code: Option<Cow<'static, str>>,
    /// Tokens by class: facts, never clamped.
    pub usage: TokenUsage,
    /// How the tokens are known.
    pub basis: Basis,
    /// What the tenant owes of `usage`, before it is limited to what was held.
    pub owed: Amounts,
    /// Milliseconds from the start to the first event or byte of the answer.
    pub first_event_ms: Option<i64>,
    /// Milliseconds from the start to the end.
    pub duration_ms: i64,
    /// The attempts in order.
    pub attempts: SmallVec<[AttemptRecord; 1]>,
    /// What was passed over, and why.
    pub skipped: SkippedTargets,
}

impl RequestEnd {
    /// Returns the end of a request whose client left before anything was sent.
    pub fn withdrawn() -> Self {
        Self {
            ending: Ending::ClientLeft,
            status: 499,
            error_code: None,
            basis: Basis::Counted,
            ..Self::abandoned()
        }
    }

    /// Returns the end of a request that nobody ended: a defect of ours, which costs nothing.
    pub fn abandoned() -> Self {
        Self {
            ending: Ending::Panicked,
            stage: Stage::Held,
            status: 500,
            error_code: Some(Cow::Borrowed("internal_error")),
            usage: TokenUsage::default(),
            basis: Basis::Unknown,
            owed: Amounts::ZERO,
            first_event_ms: None,
            duration_ms: 0,
            attempts: SmallVec::new(),
            skipped: SkippedTargets::default(),
        }
    }
}

/// One row of the ledger.
#[derive(Debug, Clone)]
pub struct UsageRecord {
    /// What was fixed at admission.
    pub open: OpenRequest,
    /// What was known at the end.
    pub end: RequestEnd,
}

impl UsageRecord {
    /// Returns the record of a request that has only begun: what stands in it when its client leaves
    /// before anything is sent.
    pub fn begun(open: OpenRequest) -> Self {
        Self {
            open,
            end: RequestEnd::withdrawn(),
        }
    }

    /// Returns what the quotas and the statement take: what is owed, at most what was held.
    pub fn charge(&self) -> Amounts {
        self.end.owed.max(Amounts::ZERO).min(self.open.hold.bound)
    }

    /// Returns what is owed beyond the hold: the operator's loss, never the tenant's.
    pub fn excess(&self) -> Amounts {
        self.end.owed.minus(self.charge()).max(Amounts::ZERO)
    }
}

/// A record with the number that its instance gave it.
///
/// Numbers are dense per instance, so that a record that vanished leaves a gap.
#[derive(Debug, Clone)]
pub struct NumberedRecord {
    /// The number, from 1.
    pub post_no: i64,
    /// The record; in a box, because it changes hands several times.
    pub record: Box<UsageRecord>,
}

#[cfg(test)]
mod tests;
