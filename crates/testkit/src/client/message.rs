//! What the raw client sends and receives.

use bytes::Bytes;
use serde_json::Value;

use crate::fail::fail;
use crate::wire::{Headers, find};

/// A request, to be written as bytes.
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    pub(super) method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Option<Bytes>,
}

impl Request {
    /// Makes a request without a body.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// Makes a GET.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// Makes a POST of JSON.
    pub fn post(target: &str, json: &Value) -> Self {
        Self::new("POST", target)
            .header("content-type", "application/json")
            .body(json.to_string())
    }

    /// Adds `authorization: Bearer KEY`.
    pub fn key(self, key: &str) -> Self {
        self.header("authorization", &format!("Bearer {key}"))
    }

    /// Adds a header field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body; its length is sent with it.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Returns the bytes of the request; `host` is added where the test has not set one.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        let mut line = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                bytes.push_str(part);
            }
        };
        if !self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("host"))
        {
            line("host", "testkit");
        }
        for (name, value) in &self.headers {
            line(name, value);
        }
        if let Some(body) = &self.body {
            line("content-length", &body.len().to_string());
        }
        bytes.push_str("\r\n");
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes.into()
    }
}

/// The head of an answer.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    /// The status.
    pub status: u16,
    /// The header fields as they were sent.
    pub headers: Headers,
    /// The head, byte for byte.
    pub raw: Bytes,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The head.
    pub head: ResponseHead,
    /// The body without its transfer coding.
    pub body: Bytes,
}

impl Response {
    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.head.status
    }

    /// Returns the first value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)
    }

    /// Returns the body as JSON; fails the test when it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            fail(format_args!(
                "the body is not JSON: {error}: {:?}",
                self.body
            ))
        })
    }
}

impl Response {
    /// Returns the events of a stream that was read to its end, comments included.
    pub fn events(&self) -> Vec<RawEvent> {
        let mut rest = self.body.clone();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let end = end_of_event(&rest);
            let raw = rest.split_to(end.unwrap_or(rest.len()));
            let is_whole = end.is_some();
            events.push(RawEvent { raw, is_whole });
        }
        events
    }
}

/// An event of a stream as it stood on the wire; also comments and what is left at a clean end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEvent {
    /// Its bytes with the empty line that ends it.
    pub raw: Bytes,
    /// Whether the empty line was there; false for what is left at a clean end.
    pub is_whole: bool,
}

impl RawEvent {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.raw);
        let text = text
            .trim_start_matches('\u{feff}')
            .replace("\r\n", "\n")
            .replace('\r', "\n");
        text.split('\n')
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Returns the values of its `data` lines, joined by line ends; `None` when it has none.
    pub fn data(&self) -> Option<String> {
        let data: Vec<String> = self
            .lines()
            .iter()
            .filter_map(|line| line.strip_prefix("data:"))
            .map(|value| value.strip_prefix(' ').unwrap_or(value).to_owned())
            .collect();
        (!data.is_empty()).then(|| data.join("\n"))
    }

    /// Returns whether it consists of comments.
    pub fn is_comment(&self) -> bool {
        self.lines().iter().all(|line| line.starts_with(':'))
    }

    /// Returns whether it is `[DONE]`.
    pub fn is_done(&self) -> bool {
        self.data().as_deref() == Some("[DONE]")
    }

    /// Returns its data as JSON; fails the test when it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        let data = self.data().unwrap_or_default();
        serde_json::from_str(&data)
            .unwrap_or_else(|error| fail(format_args!("not JSON: {error}: {:?}", self.raw)))
    }

    /// Returns the text that a chat or completion chunk adds to its first choice.
    #[track_caller]
    pub fn content(&self) -> String {
        let json = self.json();
        let choice = &json["choices"][0];
        let text = choice["delta"]["content"]
            .as_str()
            .or_else(|| choice["text"].as_str());
        text.unwrap_or_default().to_owned()
    }
}

/// Returns where the first event ends, after its empty line.
pub(super) fn end_of_event(bytes: &[u8]) -> Option<usize> {
    [b"\n\n".as_slice(), b"\r\n\r\n", b"\r\r"]
        .into_iter()
        .filter_map(|empty_line| find(bytes, empty_line).map(|at| at + empty_line.len()))
        .min()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(raw: &'static str) -> RawEvent {
        RawEvent {
            raw: Bytes::from_static(raw.as_bytes()),
            is_whole: true,
        }
    }

    #[test]
    fn a_request_is_written_with_host_and_length() {
        let request = Request::post("/v1/x", &json!({"a": 1})).key("k");
        assert_eq!(
            request.to_bytes(),
            "POST /v1/x HTTP/1.1\r\nhost: testkit\r\ncontent-type: application/json\r\n\
             authorization: Bearer k\r\ncontent-length: 7\r\n\r\n{\"a\":1}"
        );
        let request = Request::get("/").header("Host", "mine");
        assert_eq!(request.to_bytes(), "GET / HTTP/1.1\r\nHost: mine\r\n\r\n");
    }

    #[test]
    fn an_event_is_read_in_every_dialect() {
        for raw in [
            "data: a\ndata:b\n\n",
            "id: 1\r\ndata:a\r\ndata: b\r\n\r\n",
            "\u{feff}data: a\rdata: b\r\r",
        ] {
            assert_eq!(event(raw).data().as_deref(), Some("a\nb"), "{raw:?}");
            assert_eq!(end_of_event(raw.as_bytes()), Some(raw.len()), "{raw:?}");
        }
        assert!(event(": keep-alive\n\n").is_comment());
        assert_eq!(event(": keep-alive\n\n").data(), None);
        assert!(!event("data: x\n\n").is_comment());
        assert!(event("data: [DONE]\n\n").is_done());
    }
}
