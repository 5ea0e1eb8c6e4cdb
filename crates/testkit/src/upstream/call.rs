//! A request as the fake upstream understands it.

use bytes::Bytes;
use serde_json::Value;

use crate::wire::{Head, Headers};
use crate::words::{count_chat, count_input, count_message};

/// A request that arrived completely.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) head: Head,
    pub(super) body: Bytes,
    pub(super) key: Option<String>,
    pub(super) kind: CallKind,
    pub(super) model: Option<String>,
    pub(super) user: Option<String>,
    pub(super) streams: bool,
    pub(super) wants_usage: bool,
    /// Parallel answers: `n` times the number of prompts.
    pub(super) choices: usize,
    pub(super) max_tokens: Option<usize>,
    pub(super) wants_base64: bool,
    pub(super) dimensions: usize,
    pub(super) inputs: usize,
    pub(super) input_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CallKind {
    Chat,
    Completion,
    Embedding,
    Message,
    TokenCount,
    Models,
    /// One model, by its id with the escapes of the URL taken out.
    Model(String),
    /// A body that should be JSON and is not.
    NotJson,
    Unknown,
}

impl Call {
    pub(super) fn new(head: Head, body: Bytes) -> Self {
        let mut words = head.start_line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let target = words.next().unwrap_or_default().to_owned();
        let json = serde_json::from_slice::<Value>(&body)
            .ok()
            .filter(Value::is_object);
        let kind = CallKind::of(&method, &target, json.is_some());
        let json = json.unwrap_or(Value::Null);
        let (prompts, input_tokens) = match &kind {
            CallKind::Chat => (
                1,
                json["messages"]
                    .as_array()
                    .map_or(0, |messages| count_chat(messages)),
            ),
            CallKind::Completion => (inputs_of(&json["prompt"]), count_input(&json["prompt"])),
            CallKind::Embedding => (inputs_of(&json["input"]), count_input(&json["input"])),
            CallKind::Message | CallKind::TokenCount => (1, count_message(&json)),
            _ => (1, 0),
        };
        let number = |name: &str| json[name].as_u64().and_then(|n| usize::try_from(n).ok());
        Self {
            key: key_of(&head.headers),
            model: json["model"].as_str().map(str::to_owned),
            user: [&json["user"], &json["metadata"]["user_id"]]
                .into_iter()
                .find_map(|user| user.as_str().map(str::to_owned)),
            streams: json["stream"] == true,
            wants_usage: json["stream_options"]["include_usage"] == true,
            choices: prompts * number("n").unwrap_or(1),
            max_tokens: number("max_completion_tokens").or_else(|| number("max_tokens")),
            wants_base64: json["encoding_format"] == "base64",
            dimensions: number("dimensions").unwrap_or(8),
            inputs: prompts,
            input_tokens,
            kind,
            method,
            target,
            head,
            body,
        }
    }

    /// Returns whether the client speaks HTTP/1.0, which knows no chunks.
    pub(super) fn is_old(&self) -> bool {
        self.head.start_line.ends_with("HTTP/1.0")
    }

    /// Returns whether the connection must be closed after the answer.
    pub(super) fn closes(&self) -> bool {
        self.is_old() || self.head.headers.closes()
    }
}

impl CallKind {
    /// Returns whether it is a call of the Anthropic API.
    pub(super) const fn is_anthropic(&self) -> bool {
        matches!(self, Self::Message | Self::TokenCount)
    }

    fn of(method: &str, target: &str, has_json: bool) -> Self {
        let path = target.split('?').next().unwrap_or_default();
        let kind = match method {
            "GET" if path.ends_with("/models") => return Self::Models,
            "GET" => {
                return path
                    .split_once("/models/")
                    .map_or(Self::Unknown, |(_, id)| Self::Model(unescape(id)));
            }
            "POST" if path.ends_with("/chat/completions") => Self::Chat,
            "POST" if path.ends_with("/completions") => Self::Completion,
            "POST" if path.ends_with("/embeddings") => Self::Embedding,
            "POST" if path.ends_with("/messages") => Self::Message,
            "POST" if path.ends_with("/messages/count_tokens") => Self::TokenCount,
            _ => return Self::Unknown,
        };
        if has_json { kind } else { Self::NotJson }
    }
}

/// Returns the credential of a request.
fn key_of(headers: &Headers) -> Option<String> {
    let bearer = headers
        .get("authorization")
        .map(|value| value.strip_prefix("Bearer ").unwrap_or(value));
    bearer
        .or_else(|| headers.get("api-key"))
        .or_else(|| headers.get("x-api-key"))
        .map(str::to_owned)
}

/// Counts the texts of an input: a list of texts or of token lists is several, all else is one.
fn inputs_of(input: &Value) -> usize {
    match input {
        Value::Array(items) if items.iter().all(|item| item.is_string() || item.is_array()) => {
            items.len()
        }
        _ => 1,
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        if let Some(Ok(byte)) = after.get(..2).map(|digits| u8::from_str_radix(digits, 16)) {
            bytes.push(byte);
            rest = &after[2..];
        } else {
            bytes.push(b'%');
            rest = after;
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use serde_json::json;

    use super::*;
    use crate::wire::take_head;

    fn call(start_line: &str, header: &str, body: &Value) -> Call {
        let mut inbound = BytesMut::from(format!("{start_line}\r\n{header}\r\n\r\n").as_str());
        Call::new(
            take_head(&mut inbound).unwrap().unwrap(),
            body.to_string().into(),
        )
    }

    #[test]
    fn the_endpoint_is_told_by_the_end_of_the_path() {
        for (start_line, kind) in [
            ("POST /v1/chat/completions HTTP/1.1", CallKind::Chat),
            (
                "POST /openai/deployments/d/chat/completions?api-version=1 HTTP/1.1",
                CallKind::Chat,
            ),
            ("POST /completions HTTP/1.1", CallKind::Completion),
            ("POST /v1/embeddings HTTP/1.1", CallKind::Embedding),
            ("POST /v1/messages?beta=true HTTP/1.1", CallKind::Message),
            (
                "POST /v1/messages/count_tokens HTTP/1.1",
                CallKind::TokenCount,
            ),
            ("GET /v1/models HTTP/1.1", CallKind::Models),
            (
                "GET /v1/models/a%2Fb:c HTTP/1.1",
                CallKind::Model("a/b:c".to_owned()),
            ),
            ("GET /v1/chat/completions HTTP/1.1", CallKind::Unknown),
            ("POST /v1/responses HTTP/1.1", CallKind::Unknown),
        ] {
            assert_eq!(
                call(start_line, "host: h", &json!({})).kind,
                kind,
                "{start_line}"
            );
        }
        let not_an_object = call("POST /v1/embeddings HTTP/1.1", "host: h", &json!([1]));
        assert_eq!(not_an_object.kind, CallKind::NotJson);
    }

    #[test]
    fn the_key_is_read_from_each_usual_field() {
        for header in [
            "Authorization: Bearer k-1",
            "authorization: k-1",
            "api-key: k-1",
            "X-Api-Key: k-1",
        ] {
            let call = call("GET /v1/models HTTP/1.1", header, &json!({}));
            assert_eq!(call.key.as_deref(), Some("k-1"), "{header}");
        }
    }

    #[test]
    fn a_list_of_prompts_is_several_answers() {
        let line = "POST /v1/completions HTTP/1.1";
        let body = json!({"prompt": [" alpha", " river green"], "n": 2, "max_tokens": 5});
        let call = call(line, "host: h", &body);
        assert_eq!(
            (call.choices, call.input_tokens, call.max_tokens),
            (4, 3, Some(5))
        );
    }
}
