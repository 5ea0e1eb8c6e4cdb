//! Streams and their dialects.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::{
    FakeUpstream, Gate, HttpClient, Quirk, RawEvent, Request, Script, ServedEnd, words,
};

use super::support::{
    NEVER, SOON, begin, body_time, raw_of, stream, streamed, streamed_with_usage, text_of,
};

/// Streams with a quirk and two words.
async fn with_quirk(quirk: Quirk, body: &Value) -> Vec<RawEvent> {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().words(2).with(quirk));
    let events = stream(&upstream, body).await;
    assert_eq!(upstream.only_served().output_tokens, 2, "{quirk:?}");
    events
}

#[tokio::test]
async fn a_stream_begins_with_the_role_and_ends_with_done() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().words(3));
    let events = stream(&upstream, &streamed()).await;

    let data: Vec<_> = events.iter().map(|event| event.data().unwrap()).collect();
    assert_eq!(data.len(), 1 + 3 + 1 + 1);
    assert_eq!(
        events[0].json()["choices"][0]["delta"],
        json!({"role": "assistant", "content": ""})
    );
    assert_eq!(
        events[1].json()["choices"][0]["delta"],
        json!({"content": " alpha"})
    );
    assert_eq!(
        events[4].json()["choices"][0],
        json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"})
    );
    assert_eq!(data[5], "[DONE]");
    assert!(
        data.iter().all(|data| !data.contains("usage")),
        "usage was not asked for"
    );
    assert!(
        events
            .iter()
            .all(|event| event.raw.starts_with(b"data: ") && event.raw.ends_with(b"\n\n"))
    );
    assert_eq!(text_of(&events), words::text(3));

    let served = upstream.only_served();
    assert!(served.streams && served.is_complete());
    assert_eq!(
        (
            served.events_written,
            served.input_tokens,
            served.output_tokens
        ),
        (6, 12, 3)
    );
    assert_eq!(served.reported, None);
}

#[tokio::test]
async fn usage_is_a_chunk_of_its_own_when_it_is_asked_for() {
    let upstream = FakeUpstream::start();
    let events = stream(&upstream, &streamed_with_usage()).await;
    let usage = events[events.len() - 2].json();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(
        (
            &usage["usage"]["prompt_tokens"],
            &usage["usage"]["completion_tokens"]
        ),
        (&json!(12), &json!(8))
    );
    for event in &events[..events.len() - 2] {
        assert_eq!(event.json().get("usage"), Some(&Value::Null));
    }
    let served = upstream.only_served();
    assert_eq!(
        served.reported.map(|usage| (usage.input, usage.output)),
        Some((12, 8))
    );
}

#[tokio::test]
async fn legacy_completions_stream_too() {
    let upstream = FakeUpstream::start();
    let mut body = words::completion_request("m", 4);
    body["stream"] = true.into();
    body["prompt"] = json!([words::text(2), words::text(2)]);
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    client
        .send(&Request::post("/v1/completions", &body))
        .await
        .unwrap();
    client.read_head().await.unwrap();
    let (events, error) = client.read_events().await;
    assert!(error.is_none());
    // Two choices with 8 words and a finish each, and the end.
    assert_eq!(events.len(), 2 * (8 + 1) + 1);
    assert_eq!(
        events[1].json()["choices"][0],
        json!({"text": " alpha", "index": 1, "logprobs": null, "finish_reason": null})
    );
    let served = upstream.only_served();
    assert_eq!((served.input_tokens, served.output_tokens), (4, 16));
}

#[tokio::test]
async fn the_bytes_are_the_same_however_they_are_split_or_coalesced() {
    let upstream = FakeUpstream::start();
    let body = streamed_with_usage();
    // All have number 0 in their ids.
    let whole = raw_of(&stream(&upstream, &body).await);
    for script in [
        Script::new().split_every(1),
        Script::new().split_every(7),
        Script::new().coalesce(3),
        Script::new().coalesce(100),
        Script::new().coalesce(4).split_every(50),
        Script::new().with(Quirk::UntilClose),
    ] {
        let upstream = FakeUpstream::start();
        upstream.script(script.clone());
        assert_eq!(raw_of(&stream(&upstream, &body).await), whole, "{script:?}");
        let served = upstream.only_served();
        assert_eq!(
            (served.events_written, served.output_tokens),
            (12, 8),
            "{script:?}"
        );
    }
}

#[tokio::test]
async fn pieces_are_chunks_of_their_own() {
    let upstream = FakeUpstream::start();
    let raw_length = raw_of(&stream(&upstream, &streamed()).await).len();
    upstream.script(Script::new().split_every(10));
    let (mut client, _) = begin(&upstream, &streamed()).await;
    let mut pieces = 0;
    let mut length = 0;
    while let Some(piece) = client.read_some().await.unwrap() {
        pieces += piece.len().div_ceil(10);
        length += piece.len();
    }
    assert_eq!(length, raw_length);
    assert!(
        pieces >= raw_length / 10,
        "{pieces} pieces of {length} bytes"
    );
}

#[tokio::test]
async fn line_dialects_carry_the_same_data() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().words(2));
    let plain: Vec<_> = stream(&upstream, &streamed())
        .await
        .iter()
        .map(|e| e.data().unwrap())
        .collect();
    for (quirk, sign) in [
        (Quirk::CrLf, "\r\n\r\n"),
        (Quirk::Cr, "\r\r"),
        (Quirk::NoSpace, "data:{"),
        (Quirk::CommentFirst, ": keep-alive\n\ndata: "),
        (Quirk::CommentEvery(2), "\n\n: keep-alive\n\n"),
        (Quirk::IdLines, "id: 0\ndata: "),
        (Quirk::RetryLine, "retry: 1000\n\ndata: "),
        (Quirk::EventLines, "event: message\ndata: "),
        (Quirk::EmptyData, "\n\ndata:\n\n"),
        (Quirk::Ping, "\n\nevent: ping\n\n"),
        (Quirk::Bom, "\u{feff}data: "),
        (Quirk::DoneWithoutBlankLine, "[DONE]\n"),
    ] {
        let events = with_quirk(quirk, &streamed()).await;
        let raw = raw_of(&events);
        assert!(raw.contains(sign), "{quirk:?}: {raw:?}");
        let data: Vec<_> = events
            .iter()
            .filter_map(RawEvent::data)
            .filter(|data| !data.is_empty())
            .collect();
        assert_eq!(data, plain, "{quirk:?}");
    }
    let last = with_quirk(Quirk::DoneWithoutBlankLine, &streamed())
        .await
        .pop()
        .unwrap();
    assert_eq!(
        (&last.raw[..], last.is_whole),
        (&b"data: [DONE]\n"[..], false)
    );
    let two_lines = with_quirk(Quirk::TwoDataLines, &streamed()).await;
    assert_eq!(
        raw_of(&two_lines).matches("data: ").count(),
        2 * (plain.len() - 1) + 1
    );
    assert_eq!(text_of(&two_lines), words::text(2));
}

#[tokio::test]
async fn comments_are_no_events() {
    let upstream = FakeUpstream::start();
    upstream.script(
        Script::new()
            .words(2)
            .with(Quirk::CommentFirst)
            .with(Quirk::CommentEvery(2)),
    );
    let events = stream(&upstream, &streamed()).await;
    let comments: Vec<_> = events.iter().map(RawEvent::is_comment).collect();
    assert_eq!(
        comments,
        [true, true, false, false, true, false, false, false]
    );
    assert_eq!(upstream.only_served().events_written, 5);
}

#[tokio::test]
async fn habits_of_chunks_are_as_they_are_named() {
    let deltas = |events: &[RawEvent]| -> Vec<Value> {
        let jsons = events
            .iter()
            .filter(|event| !event.is_done())
            .map(RawEvent::json);
        jsons
            .filter_map(|json| json["choices"].get(0).map(|choice| choice["delta"].clone()))
            .collect()
    };
    let usages = |events: &[RawEvent]| -> Vec<Value> {
        let jsons = events
            .iter()
            .filter(|event| !event.is_done())
            .map(RawEvent::json);
        jsons
            .filter_map(|json| json.get("usage").filter(|usage| !usage.is_null()).cloned())
            .collect()
    };

    let events = with_quirk(Quirk::RoleRepeated, &streamed()).await;
    assert!(
        deltas(&events)
            .iter()
            .all(|delta| delta["role"] == "assistant")
    );
    let events = with_quirk(Quirk::RoleMissing, &streamed()).await;
    assert!(
        deltas(&events)
            .iter()
            .all(|delta| delta.get("role").is_none())
    );

    let events = with_quirk(Quirk::UsageEveryChunk, &streamed()).await;
    let so_far: Vec<_> = usages(&events)
        .iter()
        .map(|usage| usage["completion_tokens"].clone())
        .collect();
    assert_eq!(so_far, [0, 1, 2, 2]);
    assert_eq!(
        usages(&with_quirk(Quirk::NoUsage, &streamed_with_usage()).await).len(),
        0
    );
    assert_eq!(
        usages(&with_quirk(Quirk::UsageUnasked, &streamed()).await).len(),
        1
    );
    let events = with_quirk(Quirk::ZeroUsage, &streamed_with_usage()).await;
    assert_eq!(
        (
            &usages(&events)[0]["prompt_tokens"],
            &usages(&events)[0]["total_tokens"]
        ),
        (&json!(0), &json!(0))
    );
    let events = with_quirk(Quirk::UsageWithFinish, &streamed_with_usage()).await;
    let finish = events[events.len() - 2].json();
    assert_eq!(
        (
            &finish["choices"][0]["finish_reason"],
            &finish["usage"]["completion_tokens"]
        ),
        (&json!("stop"), &json!(2))
    );
    assert_eq!(usages(&events).len(), 1);

    let events = with_quirk(Quirk::NoDone, &streamed()).await;
    assert_eq!(
        events.last().unwrap().json()["choices"][0]["finish_reason"],
        "stop"
    );
    let events = with_quirk(Quirk::NoFinishReason, &streamed()).await;
    assert!(!raw_of(&events).contains("\"stop\"") && events.last().unwrap().is_done());
    let events = with_quirk(Quirk::PromptFilterFirst, &streamed()).await;
    assert_eq!(events[0].json()["choices"], json!([]));
    assert!(events[0].json()["prompt_filter_results"].is_array());
    let events = with_quirk(Quirk::Obfuscation, &streamed()).await;
    assert!(events[1].json()["obfuscation"].is_string());
}

#[tokio::test]
async fn habits_of_a_stream_that_ends_cleanly_count_as_complete() {
    for quirk in [Quirk::NoDone, Quirk::NoFinishReason, Quirk::UntilClose] {
        let upstream = FakeUpstream::start();
        upstream.script(Script::new().with(quirk));
        stream(&upstream, &streamed()).await;
        assert_eq!(
            upstream.only_served().end,
            Some(ServedEnd::Complete),
            "{quirk:?}"
        );
    }
}

#[tokio::test]
async fn raw_events_are_sent_as_they_are() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::events(["data: {\"a\":1}\n\n", "data: [DONE]\n\n"]));
    let events = stream(&upstream, &streamed()).await;
    assert_eq!(raw_of(&events), "data: {\"a\":1}\n\ndata: [DONE]\n\n");
    let served = upstream.only_served();
    assert_eq!((served.events_written, served.output_tokens), (2, 0));
}

#[tokio::test]
async fn events_keep_their_pace() {
    let upstream = FakeUpstream::start();
    let pace = Duration::from_millis(10);
    upstream.script(Script::new().words(4).pace(pace));
    // Seven events at once have no pause between them.
    upstream.script(Script::new().words(4).pace(NEVER).coalesce(7));
    stream(&upstream, &streamed()).await;
    stream(&upstream, &streamed()).await;
    assert!(
        body_time(&upstream.served()[0]) >= 6 * pace,
        "seven events, six pauses"
    );
}

#[tokio::test]
async fn keep_alives_are_sent_while_the_first_event_is_awaited() {
    let upstream = FakeUpstream::start();
    let often = Duration::from_millis(2);
    let gate = Gate::new();
    upstream.script(Script::new().words(1).wait_at(0, &gate).keep_alive(often));
    let (mut client, _) = begin(&upstream, &streamed()).await;
    for _ in 0..3 {
        assert_eq!(
            &client.next_event().await.unwrap().unwrap().raw[..],
            b": keep-alive\n\n"
        );
    }
    gate.open();
    let (events, error) = client.read_events().await;
    assert!(error.is_none());
    let events: Vec<_> = events
        .into_iter()
        .filter(|event| !event.is_comment())
        .collect();
    assert_eq!(text_of(&events), words::text(1));
    assert_eq!(upstream.only_served().events_written, events.len());
}

#[tokio::test]
async fn empty_lines_are_sent_while_a_plain_answer_is_awaited() {
    let upstream = FakeUpstream::start();
    let gate = Gate::new();
    upstream.script(
        Script::new()
            .wait_at(0, &gate)
            .keep_alive(Duration::from_millis(2)),
    );
    let (mut client, _) = begin(&upstream, &words::chat_request("m", 1)).await;
    for _ in 0..3 {
        let piece = client.read_some().await.unwrap().unwrap();
        assert!(piece.iter().all(|byte| *byte == b'\n'), "{piece:?}");
    }
    gate.open();
    let body = client.read_body().await.unwrap();
    assert!(serde_json::from_slice::<Value>(&body).unwrap()["usage"].is_object());
    assert!(upstream.wait_for_ends(1, SOON).await[0].is_complete());
}
