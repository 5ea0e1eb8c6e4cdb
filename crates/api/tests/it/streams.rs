//! What a stream looks like to its client: only what the SDKs can take, in whole events.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::{ErrorShape, Gate, HttpClient, Quirk, Request, Script};

use crate::deployment::{Backend, Deployment, PATIENCE, Relay, chat, streamed_chat};

fn relay() -> Relay {
    Deployment::new(Backend::Sqlite).unwrap().start()
}

/// The stream that a client gets for a script, as text.
async fn stream(relay: &Relay, script: Script, request: &Value) -> String {
    relay.upstream().script(script);
    let response = relay.post("/v1/chat/completions", request).await;
    assert_eq!(response.status(), 200);
    String::from_utf8(response.body.to_vec()).unwrap()
}

fn content(stream: &str) -> String {
    stream
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter_map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect()
}

#[tokio::test]
async fn the_head_says_what_proxies_and_clients_need() {
    let relay = relay();
    let response = relay.post("/v1/chat/completions", &streamed_chat(3)).await;
    assert_eq!(
        response.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(response.header("cache-control"), Some("no-cache"));
    assert_eq!(response.header("x-accel-buffering"), Some("no"));
    assert_eq!(response.header("content-length"), None);
    assert_eq!(response.header("content-encoding"), None);
    let id = response.header("x-request-id").unwrap();
    assert!(id.starts_with("req_"), "{id}");
    assert_eq!(response.header("request-id"), Some(id));
}

#[tokio::test]
async fn only_data_lines_and_comments_leave_whatever_the_provider_sends() {
    let relay = relay();
    for quirk in [
        Quirk::CrLf,
        Quirk::Cr,
        Quirk::NoSpace,
        Quirk::CommentFirst,
        Quirk::CommentEvery(2),
        Quirk::IdLines,
        Quirk::RetryLine,
        Quirk::EventLines,
        Quirk::EmptyData,
        Quirk::Ping,
        Quirk::TwoDataLines,
        Quirk::Bom,
        Quirk::DoneWithoutBlankLine,
        Quirk::PromptFilterFirst,
        Quirk::Obfuscation,
    ] {
        for split in [None, Some(1), Some(7)] {
            let mut script = Script::new().words(4).with(quirk);
            if let Some(bytes) = split {
                script = script.split_every(bytes);
            }
            let text = stream(&relay, script, &streamed_chat(3)).await;
            assert!(!text.starts_with('\u{feff}'), "{quirk:?}");
            let lines: Vec<&str> = text
                .split(['\r', '\n'])
                .filter(|line| !line.is_empty())
                .collect();
            for line in &lines {
                assert!(
                    line.starts_with("data:") || line.starts_with(':'),
                    "{quirk:?} sends `{line}`"
                );
                assert_ne!(line.trim(), "data:", "{quirk:?} sends empty data");
            }
            assert!(
                lines.last().unwrap().ends_with("[DONE]"),
                "{quirk:?}: {text}"
            );
        }
    }
}

#[tokio::test]
async fn the_usage_event_is_for_those_who_asked() {
    let relay = relay();
    let without = stream(&relay, Script::new().words(4), &streamed_chat(3)).await;
    assert!(!without.contains("\"total_tokens\""), "{without}");
    let mut request = streamed_chat(3);
    request["stream_options"] = json!({"include_usage": true});
    let with = stream(&relay, Script::new().words(4), &request).await;
    assert!(with.contains("\"total_tokens\""), "{with}");
    request["stream_options"] = json!({"include_usage": false, "x": 1});
    let refused = stream(&relay, Script::new().words(4), &request).await;
    assert!(!refused.contains("\"total_tokens\""), "{refused}");
    for served in relay.upstream().served() {
        assert_eq!(
            served.json()["stream_options"]["include_usage"],
            json!(true)
        );
    }
    assert_eq!(content(&without), content(&with));
}

#[tokio::test]
async fn an_error_inside_a_stream_is_passed_in_our_form_and_ends_it() {
    let relay = relay();
    for shape in [
        ErrorShape::Object,
        ErrorShape::ObjectWithEventLine,
        ErrorShape::Text,
        ErrorShape::Flat,
        ErrorShape::FlatThenDone,
    ] {
        let text = stream(
            &relay,
            Script::new().words(6).error_at(3, shape),
            &streamed_chat(3),
        )
        .await;
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert!(error["error"]["message"].is_string(), "{shape:?}: {text}");
        assert!(error["error"].get("code").is_some(), "{shape:?}: {text}");
        assert!(!text.contains("[DONE]"), "{shape:?}: {text}");
        assert!(!text.contains("event:"), "{shape:?}: {text}");
    }
}

#[tokio::test]
async fn an_error_as_first_event_is_a_real_status() {
    let relay = relay();
    relay
        .upstream()
        .default_script(Script::new().words(6).error_at(0, ErrorShape::Object));
    let response = relay.post("/v1/chat/completions", &streamed_chat(3)).await;
    assert!(response.status() >= 400, "{}", response.status());
    assert!(response.json()["error"]["message"].is_string());
}

#[tokio::test]
async fn silence_is_filled_with_comments_and_the_head_does_not_wait_for_ever() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "200");
    deployment.set("SLUICE_RELAY_KEEP_ALIVE_MS", "1000");
    let relay = deployment.start();
    let gate = Gate::new();
    relay
        .upstream()
        .script(Script::new().words(3).wait_at(0, &gate));
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let asked = tokio::time::Instant::now();
    client
        .send(&Request::post("/v1/chat/completions", &streamed_chat(3)).key(relay.key()))
        .await
        .unwrap();
    // All of this while the provider says nothing.
    assert_eq!(client.read_head().await.unwrap().status, 200);
    for _ in 0..2 {
        assert!(client.next_event().await.unwrap().unwrap().is_comment());
    }
    let silent = asked.elapsed();
    assert!(silent > Duration::from_millis(1_500), "two in {silent:?}");
    gate.open();
    let (events, error) = client.read_events().await;
    assert!(error.is_none());
    assert!(events.last().unwrap().is_done());
}

#[tokio::test]
async fn a_failure_after_the_head_has_left_is_an_error_event() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "100");
    let relay = deployment.start();
    let gate = Gate::new();
    relay
        .upstream()
        .default_script(Script::refuse(500).wait_before_head(&gate));
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let request = Request::post("/v1/chat/completions", &streamed_chat(3)).key(relay.key());
    client.send(&request).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 200);
    gate.open();
    let text = String::from_utf8(client.read_body().await.unwrap().to_vec()).unwrap();
    assert!(text.contains("data: {\"error\":{"), "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    let record = relay.deployment.only_record().await;
    assert_eq!(record.quota_tokens, 0);
}

#[tokio::test]
async fn the_answer_closes_at_once_after_done_and_upstream_connections_are_used_again() {
    let relay = relay();
    for _ in 0..10 {
        let response = relay.post("/v1/chat/completions", &streamed_chat(3)).await;
        assert_eq!(response.status(), 200);
    }
    // Two threads, each with connections of its own.
    assert!(
        relay.upstream().connections() <= 3,
        "{} connections",
        relay.upstream().connections()
    );
}

#[tokio::test]
async fn open_streams_end_when_the_relay_stops() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_SERVER_DRAIN_MS", "300");
    let relay = deployment.start();
    relay
        .upstream()
        .script(Script::new().words(9).wait_at(5, &Gate::new()));
    let mut client = HttpClient::connect(relay.address)
        .await
        .unwrap()
        .patience(PATIENCE);
    client
        .send(&Request::post("/v1/chat/completions", &streamed_chat(3)).key(relay.key()))
        .await
        .unwrap();
    client.read_head().await.unwrap();
    client.next_event().await.unwrap().unwrap();
    relay.process.terminate();
    let (events, error) = client.read_events().await;
    assert!(error.is_none(), "{error:?}");
    let last = events.last().unwrap().json();
    assert_eq!(last["error"]["code"], "server_shutting_down");
    let status = relay.process.wait_exit(PATIENCE);
    assert!(status.success(), "{status}: {}", relay.process.stderr());
    let record = relay.deployment.only_record().await;
    assert_eq!(record.ending, "shutdown");
    assert!(record.quota_tokens > 0, "what was relayed is charged");
}

#[tokio::test]
async fn open_streams_finish_when_the_relay_stops_in_time() {
    let relay = relay();
    let gate = Gate::new();
    relay
        .upstream()
        .script(Script::new().words(9).wait_at(5, &gate));
    let mut client = HttpClient::connect(relay.address)
        .await
        .unwrap()
        .patience(PATIENCE);
    client
        .send(&Request::post("/v1/chat/completions", &streamed_chat(3)).key(relay.key()))
        .await
        .unwrap();
    client.read_head().await.unwrap();
    relay.process.terminate();
    relay
        .process
        .wait_for_line("open requests may end first", PATIENCE);
    gate.open();
    let (events, error) = client.read_events().await;
    assert!(error.is_none(), "{error:?}");
    assert!(events.last().unwrap().is_done());
    assert!(relay.process.wait_exit(PATIENCE).success());
    assert_eq!(relay.deployment.only_record().await.ending, "finished");
}

#[tokio::test]
async fn a_plain_request_that_outlasts_the_stop_is_recorded_and_costs_nothing() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_SERVER_DRAIN_MS", "300");
    let relay = deployment.start();
    relay
        .upstream()
        .script(Script::new().words(3).wait_before_head(&Gate::new()));
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let request = Request::post("/v1/chat/completions", &chat(3)).key(relay.key());
    client.send(&request).await.unwrap();
    relay
        .upstream()
        .wait_for(|served| served.len() == 1, PATIENCE)
        .await;
    assert!(relay.stop(), "{}", relay.process.stderr());
    let record = relay.deployment.only_record().await;
    assert_eq!((&*record.ending, record.quota_tokens), ("shutdown", 0));
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_its_answer_is_left() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_SERVER_WRITE_STALL_MS", "1000");
    let relay = deployment.start();
    // More than all buffers between the two take.
    relay
        .upstream()
        .default_script(Script::new().words(100_000).coalesce(100));
    let mut client = HttpClient::connect_with_buffer(relay.address, 4_096)
        .await
        .unwrap();
    let request = Request::post("/v1/chat/completions", &streamed_chat(3)).key(relay.key());
    client.send(&request).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 200);
    // The client stays, and reads no more.
    let record = relay.deployment.only_record().await;
    assert_eq!((&*record.ending, record.status), ("client_left", 499));
    assert!(record.duration_ms >= 1_000, "{}", record.duration_ms);
    drop(client);
}
