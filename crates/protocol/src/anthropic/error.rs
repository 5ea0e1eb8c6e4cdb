//! Errors in the shape of the Anthropic API.

use bytes::Bytes;

use crate::failure::ErrorEvent;
use crate::json::quote;

/// The words for kinds of errors, with the status that goes with each.
const KINDS: [(u16, &str); 11] = [
    (400, "invalid_request_error"),
    (401, "authentication_error"),
    (402, "billing_error"),
    (403, "permission_error"),
    (404, "not_found_error"),
    (409, "conflict_error"),
    (413, "request_too_large"),
    (429, "rate_limit_error"),
    (500, "api_error"),
    (504, "timeout_error"),
    (529, "overloaded_error"),
];

/// Returns the word that goes with a status.
pub fn kind_of_status(status: u16) -> &'static str {
    let known = KINDS.iter().find(|(of, _)| *of == status);
    match (known, status) {
        (Some((_, kind)), _) => kind,
        (None, 408) => "timeout_error",
        (None, 400..=499) => "invalid_request_error",
        (None, 503) => "overloaded_error",
        (None, _) => "api_error",
    }
}

/// Returns the body of an error. `code` is a stable word of ours for its cause.
pub fn body(kind: &str, message: &str, code: Option<&str>, request_id: &str) -> String {
    let (kind, message, request_id) = (quote(kind), quote(message), quote(request_id));
    let details = code.map_or_else(String::new, |code| {
        format!(r#","details":{{"error_code":{}}}"#, quote(code))
    });
    format!(
        r#"{{"type":"error","error":{{"type":{kind},"message":{message}{details}}},"request_id":{request_id}}}"#
    )
}

/// Returns the event that ends a stream badly; nothing may follow it.
pub fn event(kind: &str, message: &str, code: Option<&str>, request_id: &str) -> Bytes {
    let data = body(kind, message, code, request_id);
    format!("event: error\ndata: {data}\n\n").into()
}

/// Returns the event with the body of an error that a provider answered.
pub fn event_of_body(body: &[u8]) -> Bytes {
    let mut event = b"event: error\n".to_vec();
    for line in body.split(|byte| matches!(byte, b'\n' | b'\r')) {
        if !line.is_empty() {
            event.extend_from_slice(b"data: ");
            event.extend_from_slice(line);
            event.push(b'\n');
        }
    }
    event.push(b'\n');
    event.into()
}

/// Returns the event for what an upstream said in another shape.
pub fn event_of(said: &ErrorEvent, request_id: &str) -> Bytes {
    let is_known = KINDS.iter().any(|(_, kind)| *kind == said.kind);
    let kind = if is_known { &said.kind } else { "api_error" };
    event(
        kind,
        &said.message,
        Some(said.code.as_deref().unwrap_or("upstream_error")),
        request_id,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_error_has_a_kind_a_message_and_the_request() {
        let read: Value =
            serde_json::from_str(&body("not_found_error", "no \"x\"", None, "req_1")).unwrap();
        assert_eq!(
            read,
            json!({
                "type": "error",
                "error": {"type": "not_found_error", "message": "no \"x\""},
                "request_id": "req_1",
            })
        );
        let read: Value = serde_json::from_str(&body("api_error", "m", Some("c"), "r")).unwrap();
        assert_eq!(read["error"]["details"], json!({"error_code": "c"}));
    }

    #[test]
    fn an_event_has_its_name_because_sdks_skip_it_otherwise() {
        let said = ErrorEvent {
            message: "m".to_owned(),
            kind: "server_error".to_owned(),
            param: None,
            code: None,
        };
        let event = event_of(&said, "r");
        assert_eq!(
            event,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\
             \"message\":\"m\",\"details\":{\"error_code\":\"upstream_error\"}},\"request_id\":\"r\"}\n\n"
        );
        let overloaded = ErrorEvent {
            kind: "overloaded_error".to_owned(),
            ..said
        };
        assert!(event_of(&overloaded, "r").starts_with(
            b"event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\""
        ));
    }

    #[test]
    fn a_body_of_several_lines_is_one_event() {
        assert_eq!(
            event_of_body(b"{\"type\":\r\n\"error\"}\n"),
            "event: error\ndata: {\"type\":\ndata: \"error\"}\n\n"
        );
    }

    #[test]
    fn every_status_has_a_kind() {
        for (status, kind) in KINDS {
            assert_eq!(kind_of_status(status), kind);
        }
        for (status, kind) in [
            (405, "invalid_request_error"),
            (408, "timeout_error"),
            (502, "api_error"),
            (503, "overloaded_error"),
        ] {
            assert_eq!(kind_of_status(status), kind);
        }
    }
}
