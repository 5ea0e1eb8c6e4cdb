//! Every way to break off, seen by a raw client, and the counts that go with it.

use std::io::ErrorKind;
use std::time::Duration;

use sluice_testkit::{
    Closed, ErrorShape, FakeUpstream, HttpClient, Quirk, Request, Script, ServedEnd, call, words,
};

use super::support::{CHAT, NEVER, SOON, begin, body_time, streamed, streamed_with_usage, text_of};

/// Events of a chat stream of 8 words: role, words, finish, end.
const EVENTS: usize = 11;

/// Tokens among the first so many events.
fn words_in(events: usize) -> usize {
    events.saturating_sub(1).min(8)
}

#[tokio::test]
async fn a_cut_and_a_reset_strike_at_every_position() {
    for at in 0..=EVENTS + 1 {
        for (script, kinds) in [
            (Script::new().cut_at(at), &[ErrorKind::UnexpectedEof][..]),
            (Script::new().reset_at(at), &[ErrorKind::ConnectionReset]),
        ] {
            let upstream = FakeUpstream::start();
            upstream.script(script);
            let (mut client, head) = begin(&upstream, &streamed()).await;
            let (events, error) = client.read_events().await;
            assert_eq!(head.status, 200);
            assert_eq!(events.len(), at.min(EVENTS));
            assert_eq!(text_of(&events), words::text(words_in(at)));
            assert!(kinds.contains(&error.unwrap().kind()), "at {at}");

            let served = upstream.only_served();
            assert_eq!(served.end, Some(ServedEnd::BrokenOff));
            assert_eq!(served.events_written, at.min(EVENTS));
            assert_eq!(served.output_tokens, i64::try_from(words_in(at)).unwrap());
        }
    }
}

#[tokio::test]
async fn a_stream_that_ends_early_ends_cleanly() {
    for at in [0, 1, 4, 9] {
        let upstream = FakeUpstream::start();
        upstream.script(Script::new().end_at(at));
        let (mut client, _) = begin(&upstream, &streamed()).await;
        let (events, error) = client.read_events().await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(events.len(), at);
        assert_eq!(upstream.only_served().end, Some(ServedEnd::BrokenOff));
        // A clean end leaves the connection usable.
        assert_eq!(
            client
                .call(&Request::get("/v1/models"))
                .await
                .unwrap()
                .status(),
            200
        );
        assert_eq!(upstream.connections(), 1);
    }
}

#[tokio::test]
async fn half_an_event_is_neither_whole_nor_counted() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().half_event_at(3));
    let (mut client, _) = begin(&upstream, &streamed()).await;
    let (events, error) = client.read_events().await;
    assert!(error.is_none(), "a clean end: {error:?}");
    assert_eq!(events.len(), 4);
    assert!(!events[3].is_whole && events[3].raw.starts_with(b"data: {"));
    assert_eq!(
        (
            upstream.only_served().events_written,
            upstream.only_served().output_tokens
        ),
        (3, 2)
    );

    let upstream = FakeUpstream::start();
    upstream.script(Script::new().cut_at(3).after_half_event());
    let (mut client, _) = begin(&upstream, &streamed()).await;
    let (events, error) = client.read_events().await;
    assert_eq!(
        (events.len(), error.unwrap().kind()),
        (3, ErrorKind::UnexpectedEof)
    );
    assert_eq!(upstream.only_served().output_tokens, 2);
}

#[tokio::test]
async fn an_answer_is_cut_at_any_byte() {
    let whole = {
        let upstream = FakeUpstream::start();
        let request = Request::post(CHAT, &words::chat_request("m", 1));
        call(upstream.address(), &request).await.unwrap().body.len()
    };
    for bytes in [0, 1, whole / 3, whole - 1] {
        let upstream = FakeUpstream::start();
        upstream.script(
            Script::new()
                .with(Quirk::Chunked)
                .end_at(0)
                .after_bytes(bytes),
        );
        let request = Request::post(CHAT, &words::chat_request("m", 1));
        let answer = call(upstream.address(), &request).await.unwrap();
        assert_eq!(answer.body.len(), bytes);
        assert_eq!(upstream.only_served().output_tokens, 0);
    }
}

#[tokio::test]
async fn garbage_stands_in_the_middle_and_the_rest_follows() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().garbage_at(3));
    let (mut client, _) = begin(&upstream, &streamed()).await;
    let (events, error) = client.read_events().await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(events.len(), EVENTS + 1);
    let no_json = |event: &sluice_testkit::RawEvent| {
        serde_json::from_str::<serde_json::Value>(&event.data().unwrap()).is_err()
    };
    assert!(no_json(&events[3]) && !no_json(&events[2]) && !no_json(&events[4]));
    assert!(events.last().unwrap().is_done());
    assert_eq!(upstream.only_served().end, Some(ServedEnd::BrokenOff));

    upstream.script(Script::new().garbage_at(0));
    let request = Request::post(CHAT, &words::chat_request("m", 1));
    let answer = call(upstream.address(), &request).await.unwrap();
    assert!(answer.body.starts_with(b"{") && !answer.body.ends_with(b"}"));
}

#[tokio::test]
async fn a_stall_is_silence_until_the_peer_leaves() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().stall_at(2, NEVER));
    let (mut client, _) = begin(&upstream, &streamed()).await;
    for _ in 0..2 {
        assert!(client.next_event().await.unwrap().is_some());
    }
    assert!(
        client
            .is_silent_for(Duration::from_millis(50))
            .await
            .unwrap()
    );
    assert_eq!(upstream.only_served().end, None);
    assert_eq!(upstream.open_connections(), 1);

    let left_at = upstream.elapsed();
    drop(client);
    let served = upstream.wait_for_ends(1, SOON).await.remove(0);
    assert_eq!(served.end, Some(ServedEnd::PeerLeft));
    assert!(served.peer_left_at().unwrap() >= left_at);
    assert_eq!((served.events_written, served.output_tokens), (2, 1));
    upstream
        .wait_for(|_| upstream.open_connections() == 0, SOON)
        .await;
}

#[tokio::test]
async fn a_stall_has_a_maximum() {
    let upstream = FakeUpstream::start();
    let long = Duration::from_millis(30);
    upstream.script(Script::new().stall_at(1, long));
    let (mut client, _) = begin(&upstream, &streamed()).await;
    let (events, error) = client.read_events().await;
    assert_eq!(
        (events.len(), error.unwrap().kind()),
        (1, ErrorKind::UnexpectedEof)
    );
    let served = upstream.only_served();
    assert_eq!(
        (served.end, served.events_written),
        (Some(ServedEnd::BrokenOff), 1)
    );
    assert!(body_time(&served) >= long);
}

#[tokio::test]
async fn a_stall_may_be_kept_alive_for_ever() {
    let upstream = FakeUpstream::start();
    upstream.script(
        Script::new()
            .stall_at(1, NEVER)
            .keep_alive(Duration::from_millis(2)),
    );
    let (mut client, _) = begin(&upstream, &streamed()).await;
    assert!(!client.next_event().await.unwrap().unwrap().is_comment());
    for _ in 0..3 {
        assert!(client.next_event().await.unwrap().unwrap().is_comment());
    }
    drop(client);
    let served = upstream.wait_for_ends(1, SOON).await.remove(0);
    assert_eq!(
        (served.end, served.events_written),
        (Some(ServedEnd::PeerLeft), 1)
    );
}

#[tokio::test]
async fn a_peer_that_leaves_is_noticed_wherever_the_answer_is() {
    for script in [
        Script::new().stall_before_head(NEVER),
        Script::new().head_delay(NEVER),
        Script::new().first_event_delay(NEVER),
        Script::new().pace(NEVER),
        Script::new().pause_at(3, NEVER),
        // More than the buffers of a socket hold, to a client that reads nothing.
        Script::new().words(200_000).coalesce(1_000),
    ] {
        for leaves_by_reset in [false, true] {
            let upstream = FakeUpstream::start();
            upstream.script(script.clone());
            let mut client = HttpClient::connect_with_buffer(upstream.address(), 4_096)
                .await
                .unwrap();
            client
                .send(&Request::post(CHAT, &streamed()))
                .await
                .unwrap();
            upstream.wait_for(|served| served.len() == 1, SOON).await;
            if leaves_by_reset {
                client.reset().unwrap();
            } else {
                drop(client);
            }
            let served = upstream.wait_for_ends(1, SOON).await.remove(0);
            assert_eq!(served.end, Some(ServedEnd::PeerLeft));
            assert!(served.output_tokens < 200_000);
        }
    }
}

#[tokio::test]
async fn an_error_event_takes_the_place_of_the_rest() {
    for (shape, sign, events_after) in [
        (ErrorShape::Object, "data: {\"error\":{\"message\":", 1),
        (
            ErrorShape::ObjectWithEventLine,
            "event: error\ndata: {\"error\":{",
            1,
        ),
        (ErrorShape::Text, "data: {\"error\":\"", 1),
        (ErrorShape::Flat, "data: {\"object\":\"error\",", 1),
        (ErrorShape::FlatThenDone, "data: {\"object\":\"error\",", 2),
    ] {
        let upstream = FakeUpstream::start();
        upstream.script(Script::new().error_at(4, shape));
        let (mut client, _) = begin(&upstream, &streamed()).await;
        let (events, error) = client.read_events().await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(events.len(), 4 + events_after, "{shape:?}");
        assert!(
            String::from_utf8_lossy(&events[4].raw).starts_with(sign),
            "{shape:?}: {events:?}"
        );
        assert_eq!(events.last().unwrap().is_done(), events_after == 2);
        let served = upstream.only_served();
        assert_eq!(
            (served.end, served.output_tokens),
            (Some(ServedEnd::BrokenOff), 3)
        );
    }
}

#[tokio::test]
async fn nothing_may_come_before_the_head() {
    for (script, closed) in [
        (Script::new().close_before_head(), Closed::Clean),
        (Script::new().reset_before_head(), Closed::Reset),
        (
            Script::new().stall_before_head(Duration::from_millis(20)),
            Closed::Clean,
        ),
    ] {
        let upstream = FakeUpstream::start();
        upstream.script(script);
        let mut client = HttpClient::connect(upstream.address()).await.unwrap();
        client
            .send(&Request::post(CHAT, &streamed()))
            .await
            .unwrap();
        assert_eq!(client.wait_closed().await.unwrap(), closed);
        let served = upstream.only_served();
        assert_eq!(
            (served.status, served.end),
            (None, Some(ServedEnd::BrokenOff))
        );
    }
}

#[tokio::test]
async fn connections_may_be_closed_as_soon_as_they_are_accepted() {
    let upstream = FakeUpstream::start();
    upstream.close_next_connections(2);
    for _ in 0..2 {
        let mut client = HttpClient::connect(upstream.address()).await.unwrap();
        assert_eq!(client.wait_closed().await.unwrap(), Closed::Clean);
    }
    let response = call(upstream.address(), &Request::get("/v1/models"))
        .await
        .unwrap();
    assert_eq!((response.status(), upstream.connections()), (200, 3));
}

#[tokio::test]
async fn a_plain_answer_breaks_before_or_in_the_middle_of_its_body() {
    let body = words::chat_request("m", 1);
    for (script, kind) in [
        (Script::new().cut_at(0), ErrorKind::UnexpectedEof),
        (Script::new().cut_at(3), ErrorKind::UnexpectedEof),
        (Script::new().end_at(3), ErrorKind::UnexpectedEof),
        (Script::new().reset_at(3), ErrorKind::ConnectionReset),
        (
            Script::new().stall_at(3, Duration::from_millis(10)),
            ErrorKind::UnexpectedEof,
        ),
        (
            Script::new().cut_at(3).with(Quirk::Chunked),
            ErrorKind::UnexpectedEof,
        ),
    ] {
        let upstream = FakeUpstream::start();
        upstream.script(script.clone());
        let (mut client, head) = begin(&upstream, &body).await;
        assert_eq!(head.status, 200);
        assert_eq!(
            client.read_body().await.unwrap_err().kind(),
            kind,
            "{script:?}"
        );
        let served = upstream.only_served();
        assert_eq!(
            (served.end, served.events_written, served.output_tokens),
            (Some(ServedEnd::BrokenOff), 0, 0)
        );
    }
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().end_at(1).with(Quirk::Chunked));
    let (mut client, _) = begin(&upstream, &body).await;
    let half = client.read_body().await.unwrap();
    assert!(
        half.starts_with(b"{\"id\"") && !half.ends_with(b"}"),
        "a clean end: {half:?}"
    );
}

#[tokio::test]
async fn an_error_may_be_the_body_of_a_good_status() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().error_at(0, ErrorShape::Object));
    let response = call(
        upstream.address(),
        &Request::post(CHAT, &words::chat_request("m", 1)),
    )
    .await
    .unwrap();
    assert_eq!(
        (response.status(), response.json()["error"]["type"].as_str()),
        (200, Some("server_error"))
    );
    assert_eq!(upstream.only_served().output_tokens, 0);
}

#[tokio::test]
async fn usage_that_was_written_before_the_fault_is_known() {
    let upstream = FakeUpstream::start();
    // Role, 8 words, finish, usage; then the end would come.
    upstream.script(Script::new().cut_at(EVENTS));
    let (mut client, _) = begin(&upstream, &streamed_with_usage()).await;
    let (events, error) = client.read_events().await;
    assert!(error.is_some() && !events.last().unwrap().is_done());
    assert_eq!(
        upstream.only_served().reported.map(|usage| usage.output),
        Some(8)
    );
}
