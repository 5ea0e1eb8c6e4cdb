//! Errors of upstreams in whatever shape they come.

use std::borrow::Cow;

use serde_json::Value;

use crate::json::mend_surrogates;

/// Longest message that is taken over, in bytes.
const MAX_MESSAGE_BYTES: usize = 2_000;
/// Longest type, code or parameter that is taken over, in bytes.
const MAX_WORD_BYTES: usize = 100;
/// A larger body is not an error that anyone wrote.
const MAX_BODY_BYTES: usize = 256 * 1024;

/// What an upstream said went wrong.
///
/// It was written by the upstream: it may name the upstream's own account and is not yet fit for a
/// client. Its parts are bounded in length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorEvent {
    /// The text; never empty.
    pub message: String,
    /// The word for its kind, `type` on the wire; never empty.
    pub kind: String,
    /// The parameter that it is about.
    pub param: Option<String>,
    /// The code; a number is written out.
    pub code: Option<String>,
}

impl ErrorEvent {
    fn new(message: &str, kind: &str) -> Self {
        Self {
            message: bounded(message, MAX_MESSAGE_BYTES),
            kind: bounded(kind, MAX_WORD_BYTES),
            param: None,
            code: None,
        }
    }
}

/// Reads the body of an answer whose status is an error.
pub(crate) fn of_answer(status: u16, body: &[u8]) -> ErrorEvent {
    let default = || {
        let message = format!("the upstream answered with status {status} and no readable error");
        ErrorEvent::new(&message, default_kind(status))
    };
    if body.len() > MAX_BODY_BYTES {
        return default();
    }
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        return default();
    };
    // Source: Google's compatible endpoint wraps its error into a list.
    let document = document.get(0).unwrap_or(&document);
    let mut read = default();
    if let Some(error) = document.get("error").filter(|error| is_said(error)) {
        fill(&mut read, error);
    } else if let Some(detail) = document.get("detail").and_then(validation_errors) {
        read.message = bounded(&detail, MAX_MESSAGE_BYTES);
    } else {
        fill(&mut read, document);
    }
    read
}

/// Reads an event that is an error.
pub(crate) fn of_event(data: &[u8]) -> ErrorEvent {
    let mut read = ErrorEvent::new(
        "the upstream broke the stream with an error",
        "server_error",
    );
    match serde_json::from_slice::<Value>(data) {
        Ok(document) => match document.get("error").filter(|error| is_said(error)) {
            Some(error) => fill(&mut read, error),
            None => fill(&mut read, &document),
        },
        Err(_not_json) => {
            if let Ok(text) = str::from_utf8(data) {
                set(&mut read.message, Some(text), MAX_MESSAGE_BYTES);
            }
        }
    }
    read
}

/// Reads an `error` member that is not `null`; `None` when it says nothing.
pub(crate) fn of_member(raw: &[u8]) -> Option<ErrorEvent> {
    let mut read = ErrorEvent::new("the upstream answered with an error", "server_error");
    // What cannot be read is something that was said.
    if let Ok(error) = serde_json::from_slice::<Value>(&mend_surrogates(raw)) {
        if !is_said(&error) {
            return None;
        }
        fill(&mut read, &error);
    }
    Some(read)
}

/// Returns the event for one that cannot be read at all.
pub(crate) fn of_garbage() -> ErrorEvent {
    ErrorEvent::new(
        "the upstream sent an event that is not JSON",
        "server_error",
    )
}

/// Returns whether an `error` member means that there is an error, as the client SDKs judge it.
fn is_said(error: &Value) -> bool {
    match error {
        Value::Null => false,
        Value::Bool(is_error) => *is_error,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

fn default_kind(status: u16) -> &'static str {
    match status {
        429 => "requests",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

/// Takes over what an error object, or a plain text, says.
fn fill(read: &mut ErrorEvent, error: &Value) {
    if let Value::String(text) = error {
        set(&mut read.message, Some(text), MAX_MESSAGE_BYTES);
        return;
    }
    let text = |key: &str| error.get(key).and_then(Value::as_str);
    set(
        &mut read.message,
        text("message").or_else(|| text("msg")),
        MAX_MESSAGE_BYTES,
    );
    // `error` and `list` are words for the envelope; Google says `status`.
    let kind = text("type")
        .filter(|kind| *kind != "error")
        .or_else(|| text("status"));
    set(&mut read.kind, kind, MAX_WORD_BYTES);
    read.param = text("param").map(|param| bounded(param, MAX_WORD_BYTES));
    read.code = error.get("code").and_then(|code| match code {
        Value::String(code) if !code.is_empty() => Some(bounded(code, MAX_WORD_BYTES)),
        Value::Number(code) => Some(code.to_string()),
        _ => None,
    });
}

fn set(field: &mut String, text: Option<&str>, max_bytes: usize) {
    if let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) {
        *field = bounded(text, max_bytes);
    }
}

/// Reads `detail` of servers built on `FastAPI`: a text, or a list of what did not validate.
fn validation_errors(detail: &Value) -> Option<String> {
    let described = |item: &Value| {
        let message = item.get("msg").or_else(|| item.get("message"))?.as_str()?;
        let path: Vec<Cow<'_, str>> = item
            .get("loc")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|part| part.as_str() != Some("body"))
            .map(|part| {
                part.as_str()
                    .map_or_else(|| part.to_string().into(), Cow::Borrowed)
            })
            .collect();
        if path.is_empty() {
            return Some(message.to_owned());
        }
        Some(format!("{}: {message}", path.join(".")))
    };
    match detail {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().filter_map(described).collect();
            (!items.is_empty()).then(|| items.join("; "))
        }
        Value::Object(_) => described(detail),
        _ => None,
    }
}

/// Cuts a text that is too long and shows that it was cut.
fn bounded(text: &str, max_bytes: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max_bytes.saturating_sub(MARK.len()));
    format!("{}{MARK}", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Read<'a> = (&'a str, &'a str, Option<&'a str>, Option<&'a str>);

    #[track_caller]
    fn check(read: &ErrorEvent, expected: Read<'_>) {
        let read: Read<'_> = (
            &read.message,
            &read.kind,
            read.param.as_deref(),
            read.code.as_deref(),
        );
        assert_eq!(read, expected);
    }

    #[test]
    fn error_bodies_of_each_shape_are_read() {
        let cases: [(u16, &str, Read<'_>); 16] = [
            (
                400,
                r#"{"error":{"message":"bad","type":"invalid_request_error","param":"messages[0].content","code":"invalid_type"}}"#,
                (
                    "bad",
                    "invalid_request_error",
                    Some("messages[0].content"),
                    Some("invalid_type"),
                ),
            ),
            (
                429,
                r#"{"error":{"message":"slow down","type":"tokens","param":null,"code":"rate_limit_exceeded"}}"#,
                ("slow down", "tokens", None, Some("rate_limit_exceeded")),
            ),
            // Azure: a code in digits, no type.
            (
                429,
                r#"{"error":{"code":"429","message":"Please retry after 42 seconds"}}"#,
                (
                    "Please retry after 42 seconds",
                    "requests",
                    None,
                    Some("429"),
                ),
            ),
            (
                400,
                r#"{"error":{"message":"filtered","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{}}}"#,
                (
                    "filtered",
                    "invalid_request_error",
                    Some("prompt"),
                    Some("content_filter"),
                ),
            ),
            // OpenRouter: a numeric code.
            (
                502,
                r#"{"error":{"message":"no provider","code":502,"metadata":{}}}"#,
                ("no provider", "server_error", None, Some("502")),
            ),
            // Ollama.
            (
                404,
                r#"{"error":"model not found"}"#,
                ("model not found", "invalid_request_error", None, None),
            ),
            // FastAPI.
            (
                404,
                r#"{"detail":"Not Found"}"#,
                ("Not Found", "invalid_request_error", None, None),
            ),
            (
                422,
                r#"{"detail":[{"loc":["body","messages",0,"role"],"msg":"field required","type":"missing"},{"msg":"odd"}]}"#,
                (
                    "messages.0.role: field required; odd",
                    "invalid_request_error",
                    None,
                    None,
                ),
            ),
            // vLLM.
            (
                400,
                r#"{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}"#,
                ("too long", "BadRequestError", None, Some("400")),
            ),
            // Anthropic.
            (
                529,
                r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"r"}"#,
                ("Overloaded", "overloaded_error", None, None),
            ),
            // Google.
            (
                400,
                r#"[{"error":{"code":400,"message":"bad key","status":"INVALID_ARGUMENT"}}]"#,
                ("bad key", "INVALID_ARGUMENT", None, Some("400")),
            ),
            (
                500,
                r#"{"message":"oops","error":null}"#,
                ("oops", "server_error", None, None),
            ),
            (
                502,
                "<html><body>Bad Gateway</body></html>",
                (
                    "the upstream answered with status 502 and no readable error",
                    "server_error",
                    None,
                    None,
                ),
            ),
            (
                503,
                "",
                (
                    "the upstream answered with status 503 and no readable error",
                    "server_error",
                    None,
                    None,
                ),
            ),
            (
                401,
                "{}",
                (
                    "the upstream answered with status 401 and no readable error",
                    "invalid_request_error",
                    None,
                    None,
                ),
            ),
            (
                500,
                r#"{"error":{}}"#,
                (
                    "the upstream answered with status 500 and no readable error",
                    "server_error",
                    None,
                    None,
                ),
            ),
        ];
        for (status, body, expected) in cases {
            check(&of_answer(status, body.as_bytes()), expected);
        }
    }

    #[test]
    fn what_is_taken_over_is_bounded() {
        let body = format!(
            r#"{{"error":{{"message":"{0}","type":"{0}","code":"{0}","param":"{0}"}}}}"#,
            "ä".repeat(5_000)
        );
        let read = of_answer(400, body.as_bytes());
        assert!(read.message.len() <= MAX_MESSAGE_BYTES && read.message.ends_with('…'));
        for word in [
            &read.kind,
            read.code.as_ref().unwrap(),
            read.param.as_ref().unwrap(),
        ] {
            assert!(word.len() <= MAX_WORD_BYTES);
        }
        let huge = format!(r#"{{"error":"{}"}}"#, "x".repeat(MAX_BODY_BYTES));
        assert!(
            of_answer(500, huge.as_bytes())
                .message
                .contains("no readable error")
        );
    }

    #[test]
    fn an_error_member_counts_when_sdks_take_it_for_one() {
        for raw in ["null", "false", "0", "\"\"", "{}", "[]"] {
            assert_eq!(of_member(raw.as_bytes()), None, "{raw}");
        }
        for raw in [
            "true",
            "1",
            "\"x\"",
            r#"{"a":1}"#,
            "[1]",
            r#""\ud800""#,
            "{x}",
        ] {
            assert!(of_member(raw.as_bytes()).is_some(), "{raw}");
        }
    }
}
