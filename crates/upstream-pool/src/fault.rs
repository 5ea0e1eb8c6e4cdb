//! Reads a provider's error object and classifies it.
//!
//! # Source
//! Azure: answers seen in public issues, November 2026. A status as text is its usual `code`; a
//! deployment that was just made is unknown for minutes; where `code` says nothing of a content
//! filter, `innererror` does.

use std::sync::LazyLock;

use http::StatusCode;
use memchr::memmem::Finder;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::error::{ErrorClass, ProviderFault};

/// Reads the shapes in use: `{"error":{…}}`, `{"error":"text"}`, flat `{"object":"error",…}`,
/// `{"message":…}` and `{"detail":…}`. `None` when the text is no JSON object.
pub(crate) fn read_fault(body: &[u8]) -> Option<ProviderFault> {
    let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
        return None;
    };
    let text = |value: Option<&Value>| match value {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    let object = match body.get("error") {
        Some(Value::Object(inner)) => inner,
        Some(Value::String(message)) => {
            return Some(ProviderFault {
                message: Some(message.clone()),
                ..ProviderFault::default()
            });
        }
        _ => &body,
    };
    let inner = object.get("innererror").and_then(Value::as_object);
    Some(ProviderFault {
        message: text(object.get("message")).or_else(|| {
            object
                .get("detail")
                .map(|d| text(Some(d)).unwrap_or_else(|| d.to_string()))
        }),
        kind: text(object.get("type")),
        // Anthropic keeps the stable word for the cause in the details.
        code: text(object.get("code"))
            .or_else(|| text(inner?.get("code")))
            .or_else(|| text(object.get("details")?.get("error_code"))),
        param: text(object.get("param")),
    })
}

/// Prepared once: on a short answer that costs more than the search.
static ERROR_WORD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));

/// Returns whether a body with status 200, or the data of an event, is an error in disguise.
///
/// `"error":null` is a habit of some servers and means success.
pub(crate) fn is_error_object(data: &[u8]) -> bool {
    // Inside a string the quotes are escaped, so ordinary answers rarely get past this search.
    if ERROR_WORD.find(data).is_none() {
        return false;
    }
    let Ok(Value::Object(body)) = serde_json::from_slice(data) else {
        return false;
    };
    let has_error = body.get("error").is_some_and(|error| match error {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::Array(_) => true,
    });
    // `object` is vLLM's flat form, `type` the one of Anthropic's events.
    let says = |key: &str| body.get(key).and_then(Value::as_str) == Some("error");
    has_error || says("object") || says("type")
}

/// Returns whether the data of an event is a JSON object.
pub(crate) fn is_object(data: &[u8]) -> bool {
    data.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(data).is_ok()
}

/// Classifies an answer with status 400 or above.
pub(crate) fn classify_status(status: StatusCode, fault: Option<&ProviderFault>) -> ErrorClass {
    if let Some(class) = fault.and_then(classify_words) {
        return class;
    }
    match status.as_u16() {
        401 | 403 if fault.is_some_and(is_permission) => ErrorClass::Forbidden,
        401 | 403 => ErrorClass::Auth,
        402 => ErrorClass::Funds,
        429 => ErrorClass::RateLimited,
        408 | 409 | 425 => ErrorClass::Status,
        // A model API explains itself in JSON; another page there means that the base URL leads
        // somewhere else, which is nothing that the caller could mend.
        404 | 405 if fault.is_none() => ErrorClass::Protocol,
        400 | 413 | 422 if fault.is_some_and(says_too_long) => ErrorClass::ContextLength,
        // Azure's words for a path or version that it does not have.
        404 if fault.is_some_and(|fault| fault.code.as_deref() == Some("404")) => {
            ErrorClass::Misconfigured
        }
        400..=499 => ErrorClass::CallerFault,
        _ => ErrorClass::Status,
    }
}

/// Returns whether a refused key is good for other requests: it may not use the model, the feature or
/// the endpoint of this one.
///
/// # Source
/// Anthropic: 403 `permission_error`. OpenAI: 403 `model_not_found` where the project of the key may
/// not use the model; "You have insufficient permissions for this operation. Missing scopes: …", with
/// 401 or 403, where the key is restricted. Azure: 401 or 403 `PermissionDenied`, where the role of the
/// caller lacks the operation; its 403 with code `403` is about networks, and so about every request.
fn is_permission(fault: &ProviderFault) -> bool {
    let words = [fault.code.as_deref(), fault.kind.as_deref()];
    let says = |word: &str| words.contains(&Some(word));
    says("permission_error")
        || says("model_not_found")
        || says("PermissionDenied")
        || fault
            .message
            .as_deref()
            .is_some_and(|message| message.contains("insufficient permissions for this operation"))
}

/// Returns whether a refusal without a word for it says that the request is too long for the model.
///
/// # Source
/// vLLM: "This model's maximum context length is 4096 tokens. However, you requested …"; Anthropic:
/// "prompt is too long: 200251 tokens > 200000 maximum" and "input length and `max_tokens` exceed context
/// limit: …". None has a code for it.
fn says_too_long(fault: &ProviderFault) -> bool {
    fault.message.as_deref().is_some_and(|message| {
        message.contains("maximum context length")
            || message.contains("prompt is too long")
            || message.contains("exceed context limit")
    })
}

/// Classifies an error object that came with status 200, and the status that it stands for: as if it
/// had come with that status.
pub(crate) fn classify_disguised(fault: &ProviderFault) -> (StatusCode, ErrorClass) {
    let status = status_of_words(fault)
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, classify_status(status, Some(fault)))
}

/// Returns the status that an error object says to stand for, if it does. Of code and type the code
/// says more.
fn status_of_words(fault: &ProviderFault) -> Option<u16> {
    let of_words = [fault.code.as_deref(), fault.kind.as_deref()]
        .into_iter()
        .flatten()
        .find_map(status_of_word);
    // A bare sentence has nothing else.
    of_words.or_else(|| says_too_long(fault).then_some(400))
}

/// Returns the status that providers answer with a code or a type of error.
///
/// # Source
/// OpenAI's and Anthropic's pages about errors, and the class names of vLLM's. An OpenAI error of type
/// `requests` or `tokens` is about a limit of those.
fn status_of_word(word: &str) -> Option<u16> {
    if let Ok(status @ 400..600) = word.parse() {
        return Some(status);
    }
    let status = match word {
        "invalid_request_error"
        | "BadRequestError"
        | "context_length_exceeded"
        | "content_filter"
        | "content_policy_violation"
        | "ResponsibleAIPolicyViolation" => 400,
        "authentication_error" | "invalid_api_key" | "AuthenticationError" => 401,
        "billing_error" | "insufficient_balance" => 402,
        "permission_error"
        | "PermissionDenied"
        | "PermissionDeniedError"
        | "unsupported_country_region_territory" => 403,
        "not_found_error" | "NotFoundError" | "model_not_found" | "DeploymentNotFound" => 404,
        "request_too_large" => 413,
        "UnprocessableEntityError" => 422,
        "rate_limit_error"
        | "rate_limit_exceeded"
        | "RateLimitError"
        | "requests"
        | "tokens"
        | "insufficient_quota"
        | "credit_balance_exhausted"
        | "billing_hard_limit_reached"
        | "billing_not_active"
        | "enforced_spend_limit_reached" => 429,
        "api_error" | "server_error" | "InternalServerError" => 500,
        "server_is_overloaded" | "ServiceUnavailableError" => 503,
        "timeout_error" => 504,
        "overloaded_error" => 529,
        _ => return None,
    };
    Some(status)
}

/// Classifies by the words that decide whatever the status is.
fn classify_words(fault: &ProviderFault) -> Option<ErrorClass> {
    [fault.code.as_deref(), fault.kind.as_deref()]
        .into_iter()
        .flatten()
        .find_map(|word| {
            Some(match word {
                "insufficient_quota"
                | "credit_balance_exhausted"
                | "billing_hard_limit_reached"
                | "billing_not_active"
                | "insufficient_balance"
                | "enforced_spend_limit_reached"
                | "billing_error" => ErrorClass::Funds,
                "invalid_api_key" | "authentication_error" => ErrorClass::Auth,
                "context_length_exceeded" => ErrorClass::ContextLength,
                "content_filter" | "content_policy_violation" | "ResponsibleAIPolicyViolation" => {
                    ErrorClass::CallerFault
                }
                "DeploymentNotFound" => ErrorClass::Misconfigured,
                _ => return None,
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, body: &str) -> ErrorClass {
        let fault = read_fault(body.as_bytes());
        classify_status(StatusCode::from_u16(status).unwrap(), fault.as_ref())
    }

    #[test]
    fn statuses_are_classified_as_designed() {
        for (status, expected) in [
            (400, ErrorClass::CallerFault),
            (401, ErrorClass::Auth),
            (402, ErrorClass::Funds),
            (403, ErrorClass::Auth),
            (404, ErrorClass::CallerFault),
            (408, ErrorClass::Status),
            (413, ErrorClass::CallerFault),
            (422, ErrorClass::CallerFault),
            (429, ErrorClass::RateLimited),
            (500, ErrorClass::Status),
            (503, ErrorClass::Status),
            (529, ErrorClass::Status),
        ] {
            assert_eq!(
                class(status, r#"{"error":{"message":"m"}}"#),
                expected,
                "{status}"
            );
        }
    }

    #[test]
    fn words_decide_over_the_status() {
        let quota =
            r#"{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#;
        assert_eq!(class(429, quota), ErrorClass::Funds);
        let spent = r#"{"type":"error","error":{"type":"rate_limit_error","message":"m",
            "details":{"error_code":"enforced_spend_limit_reached"}}}"#;
        assert_eq!(class(429, spent), ErrorClass::Funds);
        assert_eq!(
            class(403, r#"{"error":{"code":"content_filter"}}"#),
            ErrorClass::CallerFault
        );
        assert_eq!(
            class(400, r#"{"error":{"code":"invalid_api_key"}}"#),
            ErrorClass::Auth
        );
    }

    #[test]
    fn a_request_that_is_too_long_is_told_from_other_faults() {
        for body in [
            r#"{"error":{"message":"m","code":"context_length_exceeded"}}"#,
            r#"{"object":"error","message":"This model's maximum context length is 4096 tokens. However, …","type":"BadRequestError","code":400}"#,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 2 tokens > 1 maximum"}}"#,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"input length and `max_tokens` exceed context limit: 3 + 2 > 4, decrease input length"}}"#,
        ] {
            assert_eq!(class(400, body), ErrorClass::ContextLength, "{body}");
            let fault = read_fault(body.as_bytes()).unwrap();
            let disguised = (StatusCode::BAD_REQUEST, ErrorClass::ContextLength);
            assert_eq!(classify_disguised(&fault), disguised, "{body}");
        }
        let bare = read_fault(br#"{"error":"This model's maximum context length is 4 tokens."}"#);
        let disguised = (StatusCode::BAD_REQUEST, ErrorClass::ContextLength);
        assert_eq!(classify_disguised(&bare.unwrap()), disguised);
        assert_eq!(
            class(500, r#"{"error":{"message":"maximum context length"}}"#),
            ErrorClass::Status
        );
    }

    #[test]
    fn what_azure_says_is_understood() {
        for (status, body, expected) in [
            (
                400,
                r#"{"error":{"message":"m","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
                ErrorClass::CallerFault,
            ),
            (
                403,
                r#"{"error":{"code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#,
                ErrorClass::CallerFault,
            ),
            (
                401,
                r#"{"error":{"code":"401","message":"Access denied due to invalid subscription key or wrong API endpoint."}}"#,
                ErrorClass::Auth,
            ),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
                ErrorClass::Misconfigured,
            ),
            (
                404,
                r#"{"error":{"code":"404","message":"Resource not found"}}"#,
                ErrorClass::Misconfigured,
            ),
            (
                404,
                r#"{"error":{"code":"model_not_found","message":"m"}}"#,
                ErrorClass::CallerFault,
            ),
            (
                403,
                r#"{"error":{"code":"403","message":"Access denied due to Virtual Network/Firewall rules."}}"#,
                ErrorClass::Auth,
            ),
            (
                401,
                r#"{"error":{"code":"PermissionDenied","message":"The principal lacks the required data action."}}"#,
                ErrorClass::Forbidden,
            ),
            (
                429,
                r#"{"error":{"code":"429","message":"Please retry after 42 seconds."}}"#,
                ErrorClass::RateLimited,
            ),
        ] {
            assert_eq!(class(status, body), expected, "{body}");
        }
        let refused =
            r#"{"error":{"code":null,"innererror":{"code":"ResponsibleAIPolicyViolation"}}}"#;
        assert_eq!(
            read_fault(refused.as_bytes()).unwrap().code.as_deref(),
            Some("ResponsibleAIPolicyViolation")
        );
    }

    #[test]
    fn a_key_that_may_not_use_one_model_is_told_from_one_that_is_refused() {
        for (status, body, expected) in [
            (
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"m"}}"#,
                ErrorClass::Forbidden,
            ),
            (
                403,
                r#"{"error":{"message":"Project `p` does not have access to model `m`","type":"invalid_request_error","code":"model_not_found"}}"#,
                ErrorClass::Forbidden,
            ),
            (
                401,
                r#"{"error":{"message":"You have insufficient permissions for this operation. Missing scopes: model.request.","type":"invalid_request_error","code":null}}"#,
                ErrorClass::Forbidden,
            ),
            (
                403,
                r#"{"error":{"message":"m","type":"request_forbidden","code":"unsupported_country_region_territory"}}"#,
                ErrorClass::Auth,
            ),
            (
                403,
                r#"{"type":"error","error":{"type":"forbidden","message":"Request not allowed"}}"#,
                ErrorClass::Auth,
            ),
            (
                401,
                r#"{"type":"error","error":{"type":"authentication_error","message":"m"}}"#,
                ErrorClass::Auth,
            ),
            (403, "<html>", ErrorClass::Auth),
        ] {
            assert_eq!(class(status, body), expected, "{body}");
        }
    }

    /// What every provider answers honestly must mean the same in disguise.
    #[test]
    fn an_error_means_the_same_with_its_status_and_in_disguise() {
        for (status, body) in [
            (
                400,
                r#"{"error":{"type":"invalid_request_error","code":null,"message":"m"}}"#,
            ),
            (
                400,
                r#"{"error":{"type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            ),
            (
                400,
                r#"{"error":{"type":"invalid_request_error","code":"content_filter"}}"#,
            ),
            (
                401,
                r#"{"error":{"type":"invalid_request_error","code":"invalid_api_key"}}"#,
            ),
            (
                403,
                r#"{"error":{"type":"request_forbidden","code":"unsupported_country_region_territory"}}"#,
            ),
            (
                404,
                r#"{"error":{"type":"invalid_request_error","code":"model_not_found"}}"#,
            ),
            (
                404,
                r#"{"error":{"code":"DeploymentNotFound","message":"m"}}"#,
            ),
            (
                429,
                r#"{"error":{"type":"requests","code":"rate_limit_exceeded"}}"#,
            ),
            (
                429,
                r#"{"error":{"type":"tokens","code":null,"message":"m"}}"#,
            ),
            (
                429,
                r#"{"error":{"type":"insufficient_quota","code":"insufficient_quota"}}"#,
            ),
            (
                500,
                r#"{"error":{"type":"server_error","code":null,"message":"m"}}"#,
            ),
            (
                503,
                r#"{"error":{"type":"server_error","code":"server_is_overloaded"}}"#,
            ),
            (
                400,
                r#"{"object":"error","message":"maximum context length","type":"BadRequestError","code":400}"#,
            ),
            (
                400,
                r#"{"error":{"type":"BadRequestError","code":null,"message":"maximum context length"}}"#,
            ),
            (
                404,
                r#"{"object":"error","message":"m","type":"NotFoundError","code":404}"#,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"m"}}"#,
            ),
            (
                400,
                r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long"}}"#,
            ),
            (
                401,
                r#"{"type":"error","error":{"type":"authentication_error","message":"m"}}"#,
            ),
            (
                402,
                r#"{"type":"error","error":{"type":"billing_error","message":"m"}}"#,
            ),
            (
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"m"}}"#,
            ),
            (
                404,
                r#"{"type":"error","error":{"type":"not_found_error","message":"m"}}"#,
            ),
            (
                413,
                r#"{"type":"error","error":{"type":"request_too_large","message":"m"}}"#,
            ),
            (
                429,
                r#"{"type":"error","error":{"type":"rate_limit_error","message":"m"}}"#,
            ),
            (
                500,
                r#"{"type":"error","error":{"type":"api_error","message":"m"}}"#,
            ),
            (
                504,
                r#"{"type":"error","error":{"type":"timeout_error","message":"m"}}"#,
            ),
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#,
            ),
        ] {
            let fault = read_fault(body.as_bytes()).unwrap();
            let honest = StatusCode::from_u16(status).unwrap();
            let expected = (honest, classify_status(honest, Some(&fault)));
            assert_eq!(classify_disguised(&fault), expected, "{body}");
        }
    }

    #[test]
    fn a_page_that_is_no_json_is_not_the_callers_fault() {
        assert_eq!(class(404, "<html>not found</html>"), ErrorClass::Protocol);
        assert_eq!(class(400, "<html>bad</html>"), ErrorClass::CallerFault);
    }

    #[test]
    fn every_shape_of_error_is_read() {
        for body in [
            r#"{"error":{"message":"no","type":"t","param":null,"code":"c"}}"#,
            r#"{"error":"no"}"#,
            r#"{"object":"error","message":"no","type":"t","param":null,"code":400}"#,
            r#"{"message":"no"}"#,
            r#"{"detail":"no"}"#,
        ] {
            assert_eq!(
                read_fault(body.as_bytes()).unwrap().message.as_deref(),
                Some("no"),
                "{body}"
            );
        }
        assert!(read_fault(b"no").is_none());
    }

    #[test]
    fn errors_in_disguise_are_recognized_and_lookalikes_are_not() {
        for data in [
            r#"{"error":{"message":"x"}}"#,
            r#"{"error":"x"}"#,
            r#"{"object":"error","message":"x"}"#,
            r#"{"type":"error","error":{"type":"overloaded_error"}}"#,
        ] {
            assert!(is_error_object(data.as_bytes()), "{data}");
        }
        for data in [
            r#"{"id":"1","error":null,"choices":[]}"#,
            r#"{"choices":[{"delta":{"content":"an \"error\" occurred"}}]}"#,
            r#"{"choices":[{"delta":{"content":"error"}}]}"#,
            r#"{"choices":[{"logprobs":{"token":"error"}}]}"#,
            "[DONE]",
        ] {
            assert!(!is_error_object(data.as_bytes()), "{data}");
        }
    }

    #[test]
    fn a_disguised_error_gets_the_status_that_it_stands_for() {
        let status = |body: &str| {
            let (status, class) = classify_disguised(&read_fault(body.as_bytes()).unwrap());
            (status.as_u16(), class)
        };
        assert_eq!(
            status(r#"{"error":{"code":429}}"#),
            (429, ErrorClass::RateLimited)
        );
        assert_eq!(
            status(r#"{"error":{"code":"502"}}"#),
            (502, ErrorClass::Status)
        );
        assert_eq!(
            status(
                r#"{"error":{"type":"invalid_request_error","code":"context_length_exceeded"}}"#
            ),
            (400, ErrorClass::ContextLength)
        );
        assert_eq!(
            status(r#"{"error":"overloaded"}"#),
            (500, ErrorClass::Status)
        );
        for (kind, expected) in [
            ("invalid_request_error", (400, ErrorClass::CallerFault)),
            ("authentication_error", (401, ErrorClass::Auth)),
            ("billing_error", (402, ErrorClass::Funds)),
            ("permission_error", (403, ErrorClass::Forbidden)),
            ("not_found_error", (404, ErrorClass::CallerFault)),
            ("request_too_large", (413, ErrorClass::CallerFault)),
            ("rate_limit_error", (429, ErrorClass::RateLimited)),
            ("api_error", (500, ErrorClass::Status)),
            ("timeout_error", (504, ErrorClass::Status)),
            ("overloaded_error", (529, ErrorClass::Status)),
        ] {
            let event = format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"m"}}}}"#);
            assert_eq!(status(&event), expected, "{kind}");
        }
    }
}
