//! Errors of the admin API, in the form of RFC 9457.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use sluice_domain::id::RequestId;
use sluice_domain::ports::StoreError;

use crate::error::chain;

/// What a client is asked to wait while the database is away.
const DATABASE_PAUSE: Duration = Duration::from_secs(2);

/// What can go wrong, by a word that never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    InvalidRequest,
    Unauthenticated,
    LogInFailed,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    Conflict,
    PreconditionFailed,
    BodyTooLarge,
    PreconditionRequired,
    TooManyLogIns,
    InternalError,
    DatabaseUnavailable,
}

impl Code {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 13] = [
        Self::InvalidRequest,
        Self::Unauthenticated,
        Self::LogInFailed,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::PreconditionFailed,
        Self::BodyTooLarge,
        Self::PreconditionRequired,
        Self::TooManyLogIns,
        Self::InternalError,
        Self::DatabaseUnavailable,
    ];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthenticated => "unauthenticated",
            Self::LogInFailed => "log_in_failed",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "conflict",
            Self::PreconditionFailed => "precondition_failed",
            Self::BodyTooLarge => "body_too_large",
            Self::PreconditionRequired => "precondition_required",
            Self::TooManyLogIns => "too_many_log_ins",
            Self::InternalError => "internal_error",
            Self::DatabaseUnavailable => "database_unavailable",
        }
    }

    pub(crate) const fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::Unauthenticated | Self::LogInFailed => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
            Self::TooManyLogIns => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::DatabaseUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// A field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    /// JSON Pointer (RFC 6901) to it.
    pub(crate) pointer: String,
    /// What is wrong, without the value.
    pub(crate) detail: String,
}

/// An operation that was not done.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    detail: String,
    errors: Vec<FieldError>,
    retry_after: Option<Duration>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            retry_after: None,
            cause: None,
        }
    }

    /// One answer for what is not there and for what is another tenant's.
    pub(crate) fn not_found() -> Self {
        Self::new(Code::NotFound, "There is nothing at this address.")
    }

    pub(crate) fn of_fields(errors: Vec<FieldError>) -> Self {
        Self {
            errors,
            ..Self::new(Code::InvalidRequest, "Some fields cannot be used.")
        }
    }

    pub(crate) fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = Some(pause);
        self
    }

    pub(crate) fn cause(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Logs it, once, where it is answered.
    pub(crate) fn logged(self, request_id: RequestId) -> Self {
        let cause = self.cause.as_deref().map(|cause| chain(cause));
        let cause = cause.unwrap_or_default();
        let (code, status) = (self.code.as_str(), self.code.status().as_u16());
        if status == 500 {
            tracing::error!(request.id = %request_id, status, code, cause, "an admin request failed");
        } else {
            tracing::debug!(request.id = %request_id, status, code, cause, "an admin request was refused");
        }
        self
    }

    pub(crate) fn into_answer(self, request_id: RequestId) -> Response<Full<Bytes>> {
        let status = self.code.status();
        let mut body = json!({
            "type": format!("urn:sluice:problem:{}", self.code.as_str()),
            "title": status.canonical_reason().unwrap_or_default(),
            "status": status.as_u16(),
            "detail": self.detail,
            "code": self.code.as_str(),
            "request_id": request_id.to_string(),
        });
        if !self.errors.is_empty() {
            let errors = self.errors.iter();
            body["errors"] = errors
                .map(|error| json!({"pointer": error.pointer, "detail": error.detail}))
                .collect::<Vec<Value>>()
                .into();
        }
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(CONTENT_TYPE, kind);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(pause) = self.retry_after {
            let seconds = pause.as_secs().max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { what } => {
                Self::new(Code::Conflict, format!("There is {what} already."))
            }
            StoreError::Unavailable { .. } => Self::new(
                Code::DatabaseUnavailable,
                "The database does not answer. Whether the change was made is not known; look before you repeat it.",
            )
            .retry_after(DATABASE_PAUSE)
            .cause(error),
            StoreError::Corrupt { .. } | StoreError::Guard | StoreError::Internal { .. } => {
                Self::new(
                    Code::InternalError,
                    "This failed by a defect. Please report the request id.",
                )
                .cause(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../../docs/errors.md");
        for code in Code::ALL {
            let row = format!("| `{}` | {} |", code.as_str(), code.status().as_u16());
            assert!(page.contains(&row), "docs/errors.md has no row: {row}");
        }
    }
}
