//! What a stream of messages looks like to its client.

use std::time::Duration;

use serde_json::Value;
use sluice_testkit::{Gate, HttpClient, Quirk, RawEvent, Script};

use super::{add_claude_with, post, relay, request, start, streamed_message};
use crate::deployment::{Backend, Deployment, PATIENCE, Relay};

fn text(event: &RawEvent) -> String {
    String::from_utf8(event.raw.to_vec()).unwrap()
}

/// A relay that gives a provider up which is silent for three seconds.
fn impatient(deployment: Deployment) -> Relay {
    add_claude_with(&deployment, &["--idle-ms", "3000"]);
    deployment.start()
}

/// Reads the error that ends a stream.
#[track_caller]
fn last_error(body: &str) -> Value {
    let last = body.trim_end().rsplit("\n\n").next().unwrap();
    let data = last
        .strip_prefix("event: error\ndata: ")
        .unwrap_or_else(|| panic!("the stream does not end in an error: {body}"));
    let error: Value = serde_json::from_str(data).unwrap();
    assert_eq!(error["type"], "error");
    error
}

async fn stream(relay: &Relay, script: Script) -> String {
    relay.upstream().script(script);
    let response = post(relay, &streamed_message()).await;
    assert_eq!(response.status(), 200);
    String::from_utf8(response.body.to_vec()).unwrap()
}

#[tokio::test]
async fn events_and_pings_arrive_as_they_came() {
    let relay = relay();
    let whole = stream(&relay, Script::new().words(4)).await;
    for name in [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ] {
        assert!(
            whole.contains(&format!("event: {name}\ndata: {{\"type\":")),
            "{name}: {whole}"
        );
    }
    for split in [1, 7, 100] {
        let text = stream(&relay, Script::new().words(4).split_every(split)).await;
        let number = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        assert_eq!(number(&text), number(&whole), "in pieces of {split}");
    }
    for quirk in [Quirk::CrLf, Quirk::Cr, Quirk::NoSpace] {
        let text = stream(&relay, Script::new().words(4).with(quirk)).await;
        let lines = |text: &str| {
            let lines = text.split(['\r', '\n']).filter(|line| !line.is_empty());
            lines.filter(|line| line.starts_with("event:")).count()
        };
        assert_eq!(lines(&text), lines(&whole), "{quirk:?}: {text}");
    }
}

#[tokio::test]
async fn a_broken_stream_ends_in_an_error_event_and_never_well() {
    let relay = impatient(Deployment::new(Backend::Sqlite).unwrap());
    let answer = || Script::new().words(6);
    for (name, script, kind) in [
        ("cut", answer().cut_at(4), "api_error"),
        ("reset", answer().reset_at(4), "api_error"),
        ("clean end", answer().end_at(4), "api_error"),
        ("half an event", answer().half_event_at(4), "api_error"),
        ("no stop", answer().with(Quirk::NoDone), "api_error"),
        (
            "silence",
            answer().stall_at(4, Duration::from_mins(1)),
            "timeout_error",
        ),
    ] {
        let body = stream(&relay, script).await;
        let error = last_error(&body);
        assert_eq!(error["error"]["type"], kind, "{name}: {body}");
        assert!(
            error["request_id"].as_str().unwrap().starts_with("req_"),
            "{name}: {body}"
        );
        assert!(!body.contains("message_stop"), "{name}: {body}");
        assert!(body.starts_with("event: message_start\n"), "{name}: {body}");
    }
    let passed = stream(
        &relay,
        answer().error_at(4, sluice_testkit::ErrorShape::Object),
    )
    .await;
    let error = last_error(&passed);
    assert_eq!(error["error"]["type"], "overloaded_error");
    assert_eq!(
        error["request_id"], "req_fake",
        "it is the provider's own event"
    );
}

#[tokio::test]
async fn a_stop_without_its_last_line_is_a_stop() {
    let relay = relay();
    let events = [
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":9}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}",
    ];
    let body = stream(&relay, Script::events(events)).await;
    assert!(
        body.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"),
        "{body}"
    );
    let record = relay.deployment.only_record().await;
    assert_eq!(
        (&*record.ending, record.usage.input, record.usage.output),
        ("finished", 3, 9)
    );
}

#[tokio::test]
async fn pings_fill_the_silence_before_and_after_the_first_event() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_RELAY_KEEP_ALIVE_MS", "1000");
    deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "200");
    let relay = start(deployment);
    let (before, after) = (Gate::new(), Gate::new());
    let script = Script::new()
        .words(4)
        .wait_before_head(&before)
        .wait_at(3, &after);
    relay.upstream().script(script);
    let mut client = HttpClient::connect(relay.address)
        .await
        .unwrap()
        .patience(PATIENCE);
    client
        .send(&request(&relay, "/v1/messages", &streamed_message()))
        .await
        .unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 200);
    let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n";
    assert_eq!(text(&client.next_event().await.unwrap().unwrap()), ping);
    before.open();
    let mut seen = Vec::new();
    loop {
        let event = text(&client.next_event().await.unwrap().unwrap());
        let is_delta = event.contains("content_block_delta");
        seen.push(event);
        if is_delta {
            break;
        }
    }
    // The provider's own ping has been passed before.
    assert_eq!(text(&client.next_event().await.unwrap().unwrap()), ping);
    after.open();
    let (rest, error) = client.read_events().await;
    assert!(error.is_none());
    assert!(text(rest.last().unwrap()).starts_with("event: message_stop\n"));
}

#[tokio::test]
async fn a_silent_provider_is_given_up_although_the_client_is_sent_pings() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_RELAY_KEEP_ALIVE_MS", "1000");
    let relay = impatient(deployment);
    let silent = Script::new().words(4).stall_at(3, Duration::from_mins(1));
    let body = stream(&relay, silent).await;
    assert_eq!(last_error(&body)["error"]["type"], "timeout_error");
    // One that sends pings is alive, however long it takes.
    let (gate, slow) = (Gate::new(), Duration::from_millis(200));
    let alive = Script::new().words(4).keep_alive(slow).wait_at(3, &gate);
    relay.upstream().script(alive);
    let mut client = HttpClient::connect(relay.address)
        .await
        .unwrap()
        .patience(PATIENCE);
    client
        .send(&request(&relay, "/v1/messages", &streamed_message()))
        .await
        .unwrap();
    client.read_head().await.unwrap();
    let mut pings = 0;
    while pings < 20 {
        let event = text(&client.next_event().await.unwrap().unwrap());
        assert!(!event.contains("event: error"), "{event}");
        pings += usize::from(event.starts_with("event: ping"));
    }
    gate.open();
    let (rest, error) = client.read_events().await;
    assert!(error.is_none());
    assert!(text(rest.last().unwrap()).starts_with("event: message_stop\n"));
}
