//! What the tests of the fake upstream share.

use std::time::Duration;

use serde_json::Value;
use sluice_testkit::{FakeUpstream, HttpClient, RawEvent, Request, ResponseHead, Served, words};

/// Long enough for everything that must happen.
pub(crate) const SOON: Duration = Duration::from_mins(1);
/// Longer than any test: what waits so long was never meant to go on.
pub(crate) const NEVER: Duration = Duration::from_mins(10);
pub(crate) const CHAT: &str = "/v1/chat/completions";

/// A chat request with a prompt of 5 words that asks for a stream without usage.
pub(crate) fn streamed() -> Value {
    let mut body = words::chat_request("gpt-4o", 5);
    body["stream"] = true.into();
    body
}

/// The same with usage.
pub(crate) fn streamed_with_usage() -> Value {
    let mut body = streamed();
    body["stream_options"]["include_usage"] = true.into();
    body
}

/// Sends a chat request and reads the head of the answer.
pub(crate) async fn begin(upstream: &FakeUpstream, body: &Value) -> (HttpClient, ResponseHead) {
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    client
        .send(&Request::post(CHAT, body).key("k-1"))
        .await
        .unwrap();
    let head = client.read_head().await.unwrap();
    (client, head)
}

/// Streams to the clean end and returns the events.
pub(crate) async fn stream(upstream: &FakeUpstream, body: &Value) -> Vec<RawEvent> {
    let (mut client, head) = begin(upstream, body).await;
    assert_eq!(head.status, 200);
    assert_eq!(
        head.headers.get("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let (events, error) = client.read_events().await;
    assert!(error.is_none(), "{error:?}");
    events
}

/// Returns the text of all chunks.
pub(crate) fn text_of(events: &[RawEvent]) -> String {
    events
        .iter()
        .filter(|event| event.data().is_some_and(|d| d.starts_with('{')))
        .map(RawEvent::content)
        .collect()
}

/// Returns the raw bytes of a stream.
pub(crate) fn raw_of(events: &[RawEvent]) -> String {
    events
        .iter()
        .map(|event| String::from_utf8_lossy(&event.raw))
        .collect()
}

/// Returns the time from the head of an answer to its end.
#[track_caller]
pub(crate) fn body_time(served: &Served) -> Duration {
    served
        .ended_at
        .unwrap()
        .checked_sub(served.head_at.unwrap())
        .unwrap()
}
