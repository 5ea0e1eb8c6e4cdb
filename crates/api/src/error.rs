//! What goes wrong, as our clients see it: a status, a stable code, a message, in the envelope of
//! the client's protocol.

use std::borrow::Cow;
use std::error::Error;
use std::ops::Deref;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use sluice_domain::id::RequestId;
use sluice_domain::route::Protocol;
use sluice_domain::time::UnixMillis;
use sluice_protocol::{anthropic, stream};

use crate::body::AnswerBody;
use crate::relay::ATTEMPTS;
use crate::windows::ShownLimits;

/// Tells an SDK whether to repeat the call; it wins over the status.
pub(crate) const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The exact form of `retry-after`, which the SDKs prefer.
pub(crate) const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// What Anthropic answers when it cannot take more.
pub(crate) const OVERLOADED: u16 = 529;
/// Longest wait that a client is asked for; SDKs stop retrying or ignore more.
pub(crate) const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $status:ident, $kind:literal;)*) => {
        /// Stable codes of errors that Sluice itself answers. Append only; `docs/errors.md` lists them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code { $($(#[$doc])* $name,)* }

        impl Code {
            /// All codes.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the word on the wire.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word),* }
            }

            /// Returns the status that goes with it.
            pub(crate) const fn status(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$status),* }
            }

            /// Returns the `type` of the OpenAI envelope.
            pub(crate) const fn kind(self) -> &'static str {
                match self { $(Self::$name => $kind),* }
            }
        }
    };
}

codes! {
    /// No credential was presented.
    MissingApiKey = "missing_api_key", UNAUTHORIZED, "invalid_request_error";
    /// The credential is not a known key.
    InvalidApiKey = "invalid_api_key", UNAUTHORIZED, "invalid_request_error";
    /// The key or its user was switched off.
    ApiKeyDisabled = "api_key_disabled", UNAUTHORIZED, "invalid_request_error";
    /// The key's time is over.
    ApiKeyExpired = "api_key_expired", UNAUTHORIZED, "invalid_request_error";
    /// The tenant was switched off.
    TenantSuspended = "tenant_suspended", FORBIDDEN, "invalid_request_error";
    /// The model does not exist, or this key may not use it.
    ModelNotFound = "model_not_found", NOT_FOUND, "invalid_request_error";
    /// This key may not name its upstream.
    UpstreamNotSelectable = "upstream_not_selectable", FORBIDDEN, "invalid_request_error";
    /// The upstreams of the model speak another protocol than the request.
    UnsupportedProtocol = "unsupported_protocol", BAD_REQUEST, "invalid_request_error";
    /// The path does not exist.
    UnknownUrl = "unknown_url", NOT_FOUND, "invalid_request_error";
    /// The path exists, with another method.
    MethodNotSupported = "method_not_supported", METHOD_NOT_ALLOWED, "invalid_request_error";
    /// The body is not a JSON object.
    InvalidJson = "invalid_json", BAD_REQUEST, "invalid_request_error";
    /// A parameter that is needed is absent.
    MissingRequiredParameter = "missing_required_parameter", BAD_REQUEST, "invalid_request_error";
    /// A parameter has the wrong type.
    InvalidType = "invalid_type", BAD_REQUEST, "invalid_request_error";
    /// A parameter has a value that is not allowed.
    InvalidValue = "invalid_value", BAD_REQUEST, "invalid_request_error";
    /// The body is larger than the setting `server.max_body_bytes`.
    BodyTooLarge = "request_too_large", PAYLOAD_TOO_LARGE, "invalid_request_error";
    /// The body did not arrive in time.
    BodyTimeout = "request_timeout", REQUEST_TIMEOUT, "invalid_request_error";
    /// The body is compressed.
    UnsupportedEncoding = "unsupported_content_encoding", UNSUPPORTED_MEDIA_TYPE, "invalid_request_error";
    /// The month's quota of the key, the user or the tenant is spent.
    InsufficientQuota = "insufficient_quota", TOO_MANY_REQUESTS, "insufficient_quota";
    /// What is left of the month's quota is held by other requests.
    QuotaHeld = "quota_held", TOO_MANY_REQUESTS, "tokens";
    /// A limit is reached: of the caller here, or of ours at the provider.
    RateLimitExceeded = "rate_limit_exceeded", TOO_MANY_REQUESTS, "requests";
    /// The provider refuses our credential, or our account there has no funds.
    UpstreamAuthError = "upstream_auth_error", BAD_GATEWAY, "server_error";
    /// The provider failed.
    UpstreamError = "upstream_error", BAD_GATEWAY, "server_error";
    /// The provider did not answer in time.
    UpstreamTimeout = "upstream_timeout", GATEWAY_TIMEOUT, "server_error";
    /// The provider cannot take more now.
    UpstreamOverloaded = "upstream_overloaded", SERVICE_UNAVAILABLE, "server_error";
    /// No upstream can serve the model now.
    NoAvailableUpstream = "no_available_upstream", SERVICE_UNAVAILABLE, "server_error";
    /// The instance is stopping.
    ServerShuttingDown = "server_shutting_down", SERVICE_UNAVAILABLE, "server_error";
    /// The instance cannot take more now.
    ServerIsOverloaded = "server_is_overloaded", SERVICE_UNAVAILABLE, "server_error";
    /// The database cannot be reached, and the answer is not known without it.
    ServiceUnavailable = "service_unavailable", SERVICE_UNAVAILABLE, "server_error";
    /// A defect of ours.
    InternalError = "internal_error", INTERNAL_SERVER_ERROR, "server_error";
}

/// Whether the client may repeat the call, where the status alone would say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Retry {
    /// As the status says.
    #[default]
    ByStatus,
    /// Never: `x-should-retry: false`.
    Never,
    /// After a pause.
    After(Duration),
}

/// An answer that is an error. In a box, so that it does not weigh on what succeeds.
#[derive(Debug)]
pub(crate) struct ApiError(Box<ErrorParts>);

impl Deref for ApiError {
    type Target = ErrorParts;

    fn deref(&self) -> &ErrorParts {
        &self.0
    }
}

impl From<ErrorParts> for ApiError {
    fn from(parts: ErrorParts) -> Self {
        Self(Box::new(parts))
    }
}

/// What an error says.
#[derive(Debug)]
pub(crate) struct ErrorParts {
    pub(crate) status: StatusCode,
    pub(crate) kind: Cow<'static, str>,
    pub(crate) code: Option<Cow<'static, str>>,
    pub(crate) message: Cow<'static, str>,
    pub(crate) param: Option<Cow<'static, str>>,
    pub(crate) retry: Retry,
    /// How the limits stood that refused it, and when.
    pub(crate) limits: Option<(ShownLimits, UnixMillis)>,
    /// How often upstreams were asked.
    pub(crate) attempts: u32,
    /// The provider's own body, for clients that match its words.
    pub(crate) in_its_words: Option<Bytes>,
    pub(crate) cause: Option<Box<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// Makes an error of ours.
    pub(crate) fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self::from(ErrorParts {
            status: code.status(),
            kind: Cow::Borrowed(code.kind()),
            code: Some(Cow::Borrowed(code.as_str())),
            message: message.into(),
            param: None,
            retry: Retry::default(),
            limits: None,
            attempts: 0,
            in_its_words: None,
            cause: None,
        })
    }

    #[must_use]
    pub(crate) fn param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.0.param = Some(param.into());
        self
    }

    #[must_use]
    pub(crate) fn retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Sets the `type`, where it is another than that of the code.
    #[must_use]
    pub(crate) fn kind(mut self, kind: &'static str) -> Self {
        self.0.kind = Cow::Borrowed(kind);
        self
    }

    #[must_use]
    pub(crate) fn limits(mut self, limits: ShownLimits, now: UnixMillis) -> Self {
        self.0.limits = Some((limits, now));
        self
    }

    #[must_use]
    pub(crate) fn attempts(mut self, attempts: u32) -> Self {
        self.0.attempts = attempts;
        self
    }

    #[must_use]
    pub(crate) fn cause(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// Logs it, once, where it is answered, with the level of its status class.
    #[must_use]
    pub(crate) fn logged(self, request_id: RequestId) -> Self {
        let code = self.code.as_deref().unwrap_or("");
        let cause = self
            .cause
            .as_deref()
            .map(|cause| chain(cause))
            .unwrap_or_default();
        let status = self.status.as_u16();
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(request.id = %request_id, status, code, cause, "answered with an error");
        } else if self.status.is_server_error() {
            tracing::warn!(request.id = %request_id, status, code, cause, "answered with an error");
        } else {
            tracing::debug!(request.id = %request_id, status, code, cause, "answered with an error");
        }
        self
    }

    /// Returns the status in a protocol.
    pub(crate) fn status_in(&self, protocol: Protocol) -> StatusCode {
        match protocol {
            // Anthropic has a status of its own for it.
            Protocol::Anthropic if self.status == StatusCode::SERVICE_UNAVAILABLE => {
                StatusCode::from_u16(OVERLOADED).unwrap_or(self.status)
            }
            _ => self.status,
        }
    }

    /// Returns the event that ends a stream with this error.
    pub(crate) fn event(&self, protocol: Protocol, request_id: RequestId) -> Bytes {
        match (protocol, &self.in_its_words) {
            (Protocol::OpenAi, _) => {
                stream::error_event(&self.message, &self.kind, self.code.as_deref())
            }
            (Protocol::Anthropic, Some(body)) => anthropic::error::event_of_body(body),
            (Protocol::Anthropic, None) => anthropic::error::event(
                self.anthropic_kind(),
                &self.message,
                self.anthropic_code(),
                request_id.encode(&mut [0; 36]),
            ),
        }
    }

    fn body(&self, protocol: Protocol, request_id: RequestId) -> Bytes {
        match (protocol, &self.in_its_words) {
            (Protocol::OpenAi, _) => self.open_ai_body().into(),
            (Protocol::Anthropic, Some(body)) => body.clone(),
            (Protocol::Anthropic, None) => anthropic::error::body(
                self.anthropic_kind(),
                &self.message,
                self.anthropic_code(),
                request_id.encode(&mut [0; 36]),
            )
            .into(),
        }
    }

    fn anthropic_kind(&self) -> &'static str {
        anthropic::error::kind_of_status(self.status_in(Protocol::Anthropic).as_u16())
    }

    /// Returns the stable code; a spent quota goes by the word that the SDKs know.
    fn anthropic_code(&self) -> Option<&str> {
        let code = self.code.as_deref()?;
        if code == Code::InsufficientQuota.as_str() {
            Some("enforced_spend_limit_reached")
        } else {
            Some(code)
        }
    }

    fn open_ai_body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: Option<&'a str>,
        }
        let envelope = Envelope {
            error: Inner {
                message: &self.message,
                r#type: &self.kind,
                param: self.param.as_deref(),
                code: self.code.as_deref(),
            },
        };
        serde_json::to_vec(&envelope).unwrap_or_default()
    }
}

impl ApiError {
    /// Builds the answer in a protocol.
    pub(crate) fn into_answer(
        self,
        protocol: Protocol,
        request_id: RequestId,
    ) -> Response<AnswerBody> {
        let body = self.body(protocol, request_id);
        let mut response = Response::new(AnswerBody::Whole(body));
        *response.status_mut() = self.status_in(protocol);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.attempts > 0 {
            headers.insert(ATTEMPTS, HeaderValue::from(self.attempts));
        }
        if let Some((limits, now)) = &self.limits {
            limits.write(protocol, *now, headers);
        }
        match self.retry {
            Retry::ByStatus => {}
            Retry::Never => {
                headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
            }
            Retry::After(pause) => {
                let pause = pause.min(MAX_RETRY_AFTER);
                let millis = u64::try_from(pause.as_millis()).unwrap_or(0).max(1);
                headers.insert(RETRY_AFTER, HeaderValue::from(millis.div_ceil(1_000)));
                headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
            }
        }
        response
    }
}

/// An error with its causes, for the log.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::new_request_id;

    #[test]
    fn the_envelope_has_all_four_keys() {
        let error = ApiError::new(Code::InvalidApiKey, "no \"such\" key");
        assert_eq!(
            String::from_utf8(error.open_ai_body()).unwrap(),
            r#"{"error":{"message":"no \"such\" key","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}"#
        );
    }

    #[test]
    fn every_code_has_a_kind_and_a_status_of_anthropic() {
        for code in Code::ALL {
            let error = ApiError::new(*code, "m");
            let status = error.status_in(Protocol::Anthropic).as_u16();
            let kind = error.anthropic_kind();
            let expected = match status {
                400 | 405 | 415 => "invalid_request_error",
                401 => "authentication_error",
                403 => "permission_error",
                404 => "not_found_error",
                408 | 504 => "timeout_error",
                413 => "request_too_large",
                429 => "rate_limit_error",
                500 | 502 => "api_error",
                529 => "overloaded_error",
                _ => "",
            };
            assert_eq!(kind, expected, "{code:?} has the status {status}");
        }
    }

    #[test]
    fn a_pause_is_told_in_both_forms_and_capped() {
        let response = ApiError::new(Code::RateLimitExceeded, "wait")
            .retry(Retry::After(Duration::from_millis(1_200)))
            .into_answer(Protocol::OpenAi, new_request_id(UnixMillis(0)));
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        assert_eq!(response.headers()[RETRY_AFTER_MS], "1200");
        let long = ApiError::new(Code::RateLimitExceeded, "wait")
            .retry(Retry::After(Duration::from_hours(2)))
            .into_answer(Protocol::OpenAi, new_request_id(UnixMillis(0)));
        assert_eq!(long.headers()[RETRY_AFTER], "60");
    }

    #[test]
    fn every_code_is_documented() {
        let page = include_str!("../../../docs/errors.md");
        for code in Code::ALL {
            let row = format!("| `{}` | {} |", code.as_str(), code.status().as_u16());
            assert!(
                page.contains(&row),
                "docs/errors.md has no row that begins with: {row}"
            );
        }
    }
}
