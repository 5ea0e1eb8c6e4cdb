//! Admission: how much a request may cost, and what is done when the quota has less room than that.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sluice_accounting::{Account, Hold, NoRoom, Patience, Refusal, Refused};
use sluice_domain::bound::{RequestSize, TokenBound, tighten, token_bound};
use sluice_domain::quota::{Amounts, HoldTerms, ScopeKind, ScopeSet};
use sluice_domain::record::{OpenRequest, UsageRecord};
use sluice_domain::route::{Endpoint, Protocol};
use sluice_protocol::request::{Outline, refers_elsewhere};
use sluice_protocol::tokens;
use sluice_upstream_pool::RoutePlan;

use crate::app::Worker;
use crate::error::{ApiError, Code, Retry};

/// What a client is asked to wait while the instance cannot take more.
const OVERLOAD_PAUSE: Duration = Duration::from_secs(2);
const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// What a client is asked to wait for room that other requests hold.
const HELD_PAUSE: Duration = Duration::from_secs(1);
/// A text of this many bytes has about one token, in an estimate that nobody is charged by before it
/// was dispatched.
const BYTES_PER_TOKEN: i64 = 4;

/// What the tokens of a prompt that were counted here may differ from what the provider counts.
///
/// # Units
/// Parts per thousand, and tokens.
struct CountMargin {
    per_mille: i64,
    flat: i64,
}

impl CountMargin {
    const fn of(endpoint: Endpoint) -> Self {
        match endpoint.protocol() {
            // Counted by the same tokenizer: the rest is its template.
            Protocol::OpenAi => Self {
                per_mille: 20,
                flat: 4,
            },
            // Counted by another one; and some hundred tokens stand before the tools.
            Protocol::Anthropic => Self {
                per_mille: 600,
                flat: 600,
            },
        }
    }
}

/// The bound of one request, and what was made of it.
pub(super) struct Admission {
    size: RequestSize,
    bound: TokenBound,
    /// Fewer tokens of output than this cannot be asked for.
    least_output: i64,
    max_output: Option<i64>,
}

impl Admission {
    pub(super) fn new(
        plan: &RoutePlan,
        model: &str,
        outline: &Outline<'_>,
        body: &[u8],
        endpoint: Endpoint,
    ) -> Self {
        let size = RequestSize {
            body_bytes: body.len(),
            max_output: outline.max_output_tokens,
            choices: outline.choices,
            has_output: endpoint.has_output(),
            refers_elsewhere: refers_elsewhere(body, endpoint),
        };
        let bound = if endpoint.is_charged() {
            token_bound(&plan.bound_profile(model), &size)
        } else {
            TokenBound::ZERO
        };
        Self {
            size,
            bound,
            least_output: outline.least_output_tokens,
            max_output: None,
        }
    }

    /// Returns the terms of the hold; the scopes are added at admission.
    pub(super) fn terms(&self) -> HoldTerms {
        let bytes = i64::try_from(self.size.body_bytes).unwrap_or(i64::MAX);
        HoldTerms {
            bound: Amounts::tokens(self.bound.total()),
            leased: ScopeSet::default(),
            input_estimate: (bytes / BYTES_PER_TOKEN).min(self.bound.input),
        }
    }

    /// Returns the bound of the tokens, for limits of upstreams.
    pub(super) fn token_bound(&self) -> u64 {
        u64::try_from(self.bound.total()).unwrap_or(0)
    }

    /// Returns the limit of each answer that was set because the quota has room for no more.
    pub(super) fn max_output(&self) -> Option<i64> {
        self.max_output
    }

    /// Admits the request. When the quota has no room for the first bound, which is generous, it is
    /// made tight: the prompt is counted, and the answer limited to what is affordable.
    ///
    /// # Errors
    /// Why it may not be sent.
    pub(super) async fn admit(
        &mut self,
        worker: &Worker,
        account: &Account,
        open: OpenRequest,
        body: &Bytes,
    ) -> Result<Hold, Refusal> {
        let ledger = &worker.app.ledger;
        let now = open.started_at;
        let record = Box::new(UsageRecord::begun(open));
        let first = ledger
            .hold(&worker.lane, account, record, now, Patience::None)
            .await;
        match first {
            Ok(hold) => Ok(hold),
            Err(refused) => match refused.refusal {
                Refusal::Spent(no_room) | Refusal::Held(no_room) => {
                    Box::pin(self.admit_tightly(worker, account, refused, body, no_room)).await
                }
                refusal => Err(refusal),
            },
        }
    }

    async fn admit_tightly(
        &mut self,
        worker: &Worker,
        account: &Account,
        refused: Refused,
        body: &Bytes,
        no_room: NoRoom,
    ) -> Result<Hold, Refusal> {
        let Refused {
            refusal,
            mut record,
        } = refused;
        let now = record.open.started_at;
        if self.is_tightened(&record.open, body, &no_room).await {
            record.open.hold = self.terms();
        } else if matches!(refusal, Refusal::Spent(_)) {
            return Err(refusal);
        }
        worker
            .app
            .ledger
            .hold(&worker.lane, account, record, now, Patience::QuotaWait)
            .await
            .map_err(|refused| refused.refusal)
    }

    /// Lowers the bound to what there is room for. Returns false when not even a short answer fits;
    /// then the bound stays what it was, and so does the refusal.
    async fn is_tightened(&mut self, open: &OpenRequest, body: &Bytes, no_room: &NoRoom) -> bool {
        let (free, unused) = (
            no_room.balance.room().tokens,
            no_room.balance.unused().tokens,
        );
        // An exhausted quota costs no count.
        if self.size.refers_elsewhere || unused <= 0 {
            return false;
        }
        let (body, endpoint) = (body.clone(), open.endpoint);
        let model = Arc::clone(&open.requested_model);
        let counted =
            tokio::task::spawn_blocking(move || tokens::count_prompt(endpoint, &model, &body))
                .await;
        let Ok(counted) = counted else { return false };
        let CountMargin { per_mille, flat } = CountMargin::of(endpoint);
        let input = counted
            .saturating_add(counted / 1_000 * per_mille)
            .saturating_add(counted % 1_000 * per_mille / 1_000)
            .saturating_add(flat);
        let (choices, least) = (self.size.choices, self.least_output);
        match tighten(self.bound, input, choices, least, (free, unused)) {
            Some(tight) => {
                self.bound = tight.bound;
                self.max_output = tight.max_output;
                true
            }
            None => false,
        }
    }
}

/// Says why a request was not admitted.
pub(super) fn not_admitted(refusal: Refusal, account: &Account) -> ApiError {
    match refusal {
        Refusal::Spent(no_room) => spent(&no_room, account),
        Refusal::Held(NoRoom { scope, bound, balance }) => ApiError::new(
            Code::QuotaHeld,
            format!(
                "What is left of the quota of {} for {} is held by other requests: this one may need {} \
                 tokens, and {} are free. Please try again in {}s.",
                whose(scope),
                account.period().month,
                bound.tokens,
                balance.room().tokens.max(0),
                HELD_PAUSE.as_secs(),
            ),
        )
        .retry(Retry::After(HELD_PAUSE)),
        Refusal::Unavailable => ApiError::new(
            Code::ServiceUnavailable,
            "The quota cannot be checked at the moment, because the database does not answer. Try again shortly.",
        )
        .retry(Retry::After(OVERLOAD_PAUSE)),
        Refusal::Behind => ApiError::new(
            Code::ServerIsOverloaded,
            "The relay cannot take more requests now, because too many wait for a quota. Try again shortly.",
        )
        .retry(Retry::After(OVERLOAD_PAUSE)),
        Refusal::Journal => ApiError::new(
            Code::ServerIsOverloaded,
            "The relay cannot take more requests now, because its journal has no space. Try again shortly.",
        )
        .retry(Retry::After(OVERLOAD_PAUSE)),
        Refusal::Closed => ApiError::new(
            Code::ServerShuttingDown,
            "This instance is stopping. Try again.",
        )
        .retry(Retry::After(RESTART_PAUSE)),
    }
}

fn spent(no_room: &NoRoom, account: &Account) -> ApiError {
    let NoRoom {
        scope,
        balance,
        bound,
    } = no_room;
    let period = account.period();
    let (used, cap) = (balance.used.tokens, balance.cap.amounts().tokens);
    let what = if used >= cap {
        format!("is spent: {used} of {cap} tokens are used")
    } else {
        format!(
            "has no room for this request: {used} of {cap} tokens are used, and it may need {}. A \
             smaller `max_tokens` may help",
            bound.tokens
        )
    };
    ApiError::new(
        Code::InsufficientQuota,
        format!(
            "The quota of {} for {} {what}. It begins anew at {}.",
            whose(*scope),
            period.month,
            period.ends_at.to_rfc3339()
        ),
    )
    .retry(Retry::Never)
}

const fn whose(scope: ScopeKind) -> &'static str {
    match scope {
        ScopeKind::Tenant => "your tenant",
        ScopeKind::User => "your user",
        ScopeKind::Key => "this API key",
    }
}
