//! What a failed upstream means for the client, in the client's protocol.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use sluice_domain::usage::Ending;
use sluice_upstream_pool::{DispatchError, ErrorClass};

use crate::error::{ApiError, Code, ErrorParts, MAX_RETRY_AFTER, OVERLOADED, Retry};

/// What a client is asked to wait at most when nothing can serve the model: what is broken is probed
/// meanwhile.
const NO_UPSTREAM_PAUSE: Duration = Duration::from_secs(5);
/// What it is asked to wait at least.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// What a client is asked to wait when the provider limits us and does not say for how long.
const RATE_LIMIT_PAUSE: Duration = Duration::from_secs(1);

/// Returns how a request ended whose dispatch failed.
pub(crate) fn ending_of(class: ErrorClass) -> Ending {
    if class == ErrorClass::Timeout {
        Ending::Deadline
    } else {
        Ending::UpstreamFailed
    }
}

/// Returns the answer, and the stable code for the record.
pub(crate) fn refusal(error: DispatchError) -> (ApiError, &'static str) {
    let code = match error.class {
        ErrorClass::NoTarget => Code::NoAvailableUpstream,
        ErrorClass::Status if is_overloaded(&error) => Code::UpstreamOverloaded,
        ErrorClass::Connect
        | ErrorClass::Reset
        | ErrorClass::Cut
        | ErrorClass::Protocol
        | ErrorClass::Status
        | ErrorClass::Misconfigured
        | ErrorClass::Internal => Code::UpstreamError,
        ErrorClass::Timeout => Code::UpstreamTimeout,
        ErrorClass::RateLimited => Code::RateLimitExceeded,
        ErrorClass::Auth | ErrorClass::Forbidden | ErrorClass::Funds => Code::UpstreamAuthError,
        ErrorClass::CallerFault | ErrorClass::ContextLength => return caller_fault(error),
    };
    let answer = match code {
        Code::NoAvailableUpstream => {
            ApiError::new(code, "No upstream can serve this model at the moment. Try again shortly.")
                .retry(Retry::After(no_upstream_pause(error.retry_after)))
        }
        Code::RateLimitExceeded => {
            let pause = error.retry_after.unwrap_or(RATE_LIMIT_PAUSE).min(MAX_RETRY_AFTER);
            ApiError::new(
                code,
                format!(
                    "Rate limit reached at the provider of this model. Please try again in {}s.",
                    pause.as_secs_f64().max(0.001)
                ),
            )
            .retry(Retry::After(pause))
        }
        // What could be tried was tried; an SDK that tried again would only multiply it.
        Code::UpstreamOverloaded => {
            ApiError::new(code, "The provider of this model cannot take more at the moment. Try again later.")
                .retry(Retry::Never)
        }
        Code::UpstreamTimeout => {
            ApiError::new(code, "The provider of this model did not answer in time.").retry(Retry::Never)
        }
        Code::UpstreamAuthError => ApiError::new(
            code,
            "The provider of this model refuses the credential of this relay. This is not about your key; \
             the administrator has to act.",
        )
        .retry(Retry::Never),
        _other => ApiError::new(code, format!("The provider of this model failed: {error}."))
            .retry(Retry::Never),
    };
    (answer.cause(error), code.as_str())
}

fn no_upstream_pause(wait: Option<Duration>) -> Duration {
    wait.unwrap_or(NO_UPSTREAM_PAUSE)
        .clamp(SHORTEST_PAUSE, NO_UPSTREAM_PAUSE)
}

fn is_overloaded(error: &DispatchError) -> bool {
    let refusal = error.refusal.as_ref();
    refusal.is_some_and(|refusal| refusal.status.as_u16() == OVERLOADED)
}

/// The provider says that the request itself is at fault: its status, message and code pass.
fn caller_fault(error: DispatchError) -> (ApiError, &'static str) {
    let status = error
        .refusal
        .as_ref()
        .map(|r| r.status)
        .filter(StatusCode::is_client_error)
        .unwrap_or(StatusCode::BAD_REQUEST);
    let fault = error
        .refusal
        .as_ref()
        .map(|r| r.fault.clone())
        .unwrap_or_default();
    let body = error.refusal.as_ref().map(|r| r.body.clone());
    let in_its_words = body.filter(|body| body.trim_ascii_start().starts_with(b"{"));
    let message = fault.message.unwrap_or_else(|| {
        format!(
            "The provider of this model refused the request with status {}.",
            status.as_u16()
        )
    });
    let answer = ApiError::from(ErrorParts {
        status,
        kind: fault
            .kind
            .map_or(Cow::Borrowed("invalid_request_error"), Cow::Owned),
        code: fault.code.map(Cow::Owned),
        message: Cow::Owned(message),
        param: fault.param.map(Cow::Owned),
        retry: Retry::ByStatus,
        limits: None,
        attempts: 0,
        in_its_words,
        cause: Some(error.into()),
    });
    (answer, "upstream_refused")
}
