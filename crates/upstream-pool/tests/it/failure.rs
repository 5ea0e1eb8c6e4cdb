//! Upstreams that refuse, fail or break off.

use std::error::Error;
use std::time::Duration;

use sluice_domain::upstream::Deadlines;
use sluice_upstream_pool::{
    ClientOptions, DispatchError, Dispatcher, ErrorClass, ErrorOrigin, SendStage, UpstreamBodyError,
};
use tokio::net::TcpListener;

use crate::server::{Server, Step, chunk, chunked_head, document, end, json, stream_head, wait_ms};
use crate::support::{Relay, SECRET};

async fn fails(script: Vec<Step>) -> Box<DispatchError> {
    let server = Server::start(script).await;
    let relay = Relay::to(&server);
    let error = relay.stream().await.unwrap_err();
    let mut printed = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(next) = cause {
        printed = format!("{printed} {next}");
        cause = next.source();
    }
    assert!(!printed.contains(SECRET), "{printed}");
    assert_eq!(
        error.attempts[0].error.as_deref(),
        Some(error.class.as_str())
    );
    error
}

#[tokio::test]
async fn a_refusal_keeps_the_providers_words_and_hint() {
    let body = r#"{"error":{"message":"Slow down.","type":"tokens","param":null,"code":"rate_limit_exceeded"},"x":1}"#;
    let headers = "content-type: application/json\r\nretry-after-ms: 1500\r\n\
                   x-request-id: req_up\r\nset-cookie: a=b\r\n";
    let error = fails(vec![document("429 Too Many Requests", headers, body)]).await;
    assert_eq!(
        (error.class, error.stage),
        (ErrorClass::RateLimited, SendStage::Answered)
    );
    assert_eq!(error.status(), Some(429));
    assert_eq!(error.retry_after, Some(Duration::from_millis(1_500)));
    let refusal = error.refusal.as_ref().unwrap();
    assert_eq!(refusal.body, body);
    assert_eq!(refusal.fault.message.as_deref(), Some("Slow down."));
    assert_eq!(refusal.fault.code.as_deref(), Some("rate_limit_exceeded"));
    assert_eq!(refusal.upstream_request_id.as_ref().unwrap(), "req_up");
    assert!(refusal.headers.get("set-cookie").is_none());
    assert_eq!(
        error.to_string(),
        "the upstream limits the rate of this upstream key with status 429"
    );
}

#[tokio::test]
async fn statuses_get_their_class() {
    for (status, body, class, origin) in [
        (
            "400 Bad Request",
            r#"{"error":{}}"#,
            ErrorClass::CallerFault,
            ErrorOrigin::Downstream,
        ),
        (
            "401 Unauthorized",
            r#"{"error":{}}"#,
            ErrorClass::Auth,
            ErrorOrigin::Upstream,
        ),
        (
            "402 Payment Required",
            "",
            ErrorClass::Funds,
            ErrorOrigin::Upstream,
        ),
        (
            "500 Internal Server Error",
            "<html>",
            ErrorClass::Status,
            ErrorOrigin::Upstream,
        ),
        (
            "529 Overloaded",
            "",
            ErrorClass::Status,
            ErrorOrigin::Upstream,
        ),
        ("302 Found", "", ErrorClass::Protocol, ErrorOrigin::Upstream),
    ] {
        let error = fails(vec![json(status, body)]).await;
        assert_eq!((error.class, error.origin()), (class, origin), "{status}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(vec![json("200 OK", "{}")]).await;
    for status in [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary",
        "308 Permanent",
    ] {
        let headers = format!(
            "location: http://{}/v1/chat/completions\r\n",
            elsewhere.address
        );
        fails(vec![document(status, &headers, "")]).await;
    }
    assert_eq!(elsewhere.opened(), 0);
}

#[tokio::test]
async fn a_refusal_that_is_too_long_is_dropped_and_still_a_refusal() {
    let error = fails(vec![json("400 Bad Request", &"x".repeat(2 << 20))]).await;
    assert_eq!(error.class, ErrorClass::CallerFault);
    assert!(error.refusal.unwrap().body.is_empty());
}

#[tokio::test]
async fn an_error_as_first_event_is_an_error_of_the_attempt() {
    for (event, class, status) in [
        (
            r#"data: {"error":{"message":"no","code":429}}"#,
            ErrorClass::RateLimited,
            429,
        ),
        (
            "event: error\ndata: {\"message\":\"no\"}",
            ErrorClass::Status,
            500,
        ),
        (
            r#"data: {"object":"error","message":"no","type":"BadRequestError","code":400}"#,
            ErrorClass::CallerFault,
            400,
        ),
    ] {
        let error = fails(vec![stream_head(), chunk(&format!("{event}\n\n")), end()]).await;
        assert_eq!((error.class, error.status()), (class, Some(200)), "{event}");
        let refusal = error.refusal.as_ref().unwrap();
        assert_eq!(refusal.status.as_u16(), status);
        assert_eq!(refusal.fault.message.as_deref(), Some("no"));
        assert_eq!(refusal.headers["content-type"], "application/json");
        assert!(refusal.body.starts_with(b"{"));
    }
}

#[tokio::test]
async fn an_error_with_status_200_is_an_error() {
    let error = fails(vec![json(
        "200 OK",
        r#"{"error":{"message":"no","code":503}}"#,
    )])
    .await;
    assert_eq!(
        (error.class, error.status()),
        (ErrorClass::Status, Some(200))
    );
    assert_eq!(error.refusal.unwrap().status.as_u16(), 503);
}

#[tokio::test]
async fn a_stream_that_ends_before_its_first_event_was_cut() {
    for tail in [
        vec![end()],
        vec![chunk(": hello\n\n"), end()],
        vec![chunk("data: {\"a"), end()],
    ] {
        let mut script = vec![stream_head()];
        script.extend(tail);
        let error = fails(script).await;
        assert_eq!(
            (error.class, error.stage),
            (ErrorClass::Cut, SendStage::Answered)
        );
    }
}

#[tokio::test]
async fn a_first_event_that_is_no_object_is_a_failure_of_the_attempt() {
    for data in [
        "{\"choices\":[{\"delta\"",
        "1",
        "upstream timed out",
        "[DONE]",
    ] {
        let event = format!("data: {data}\n\n");
        for tail in [
            vec![chunk(&event), end()],
            vec![chunk(event.trim_end()), end()],
        ] {
            let mut script = vec![stream_head()];
            script.extend(tail);
            let error = fails(script).await;
            let expected = [ErrorClass::Protocol, ErrorClass::Cut];
            assert!(expected.contains(&error.class), "{data}: {error:?}");
            assert_eq!(error.stage, SendStage::Answered, "{data}");
        }
    }
}

#[tokio::test]
async fn a_document_that_is_no_whole_object_is_a_failure_of_the_attempt() {
    for body in [
        r#"{"id":"a","usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}"#,
        r#"{"id":"a"#,
        r#"{"id":"a"}}"#,
        r#"[{"id":"a"}]"#,
        "{",
        "",
    ] {
        let error = fails(vec![json("200 OK", body)]).await;
        assert_eq!(error.class, ErrorClass::Protocol, "{body}");
    }
}

#[tokio::test]
async fn a_cut_and_a_reset_before_the_first_event_are_told_apart() {
    let cut = fails(vec![
        stream_head(),
        chunk(": x\n\n"),
        wait_ms(30),
        Step::Close,
    ])
    .await;
    assert_eq!(cut.class, ErrorClass::Cut);
    let reset = fails(vec![
        stream_head(),
        chunk(": x\n\n"),
        wait_ms(30),
        Step::Reset,
    ])
    .await;
    assert_eq!(reset.class, ErrorClass::Reset);
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_head_was_reset() {
    for step in [Step::Close, Step::Reset] {
        let error = fails(vec![step]).await;
        assert_eq!(
            (error.class, error.stage),
            (ErrorClass::Reset, SendStage::Sent)
        );
        assert_eq!(error.status(), None);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_later_says_how() {
    for (step, expected) in [
        (Step::Close, ErrorClass::Cut),
        (Step::Reset, ErrorClass::Reset),
    ] {
        let script = vec![
            stream_head(),
            chunk("data: {}\n\n"),
            wait_ms(30),
            Step::Write("40\r\ndata".into()),
            wait_ms(30),
            step,
        ];
        let server = Server::start(script).await;
        let mut body = Relay::to(&server).stream().await.unwrap().body;
        let mut read = Vec::new();
        let error = loop {
            match body.next_chunk().await.unwrap() {
                Ok(chunk) => read.extend_from_slice(&chunk),
                Err(error) => break error,
            }
        };
        assert_eq!(error.class(), expected, "{error:?}");
        assert_eq!(read, b"data: {}\n\ndata", "what came before is handed out");
        assert!(body.next_chunk().await.is_none());
    }
}

#[tokio::test]
async fn a_document_that_is_shorter_than_it_says_was_cut() {
    let text = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"id\"";
    let error = fails(vec![Step::Write(text.into()), Step::Close]).await;
    assert_eq!(error.class, ErrorClass::Cut);
}

#[tokio::test]
async fn broken_framing_is_a_fault_of_protocol() {
    let error = fails(vec![stream_head(), Step::Write("zz\r\nnonsense".into())]).await;
    assert_eq!(error.class, ErrorClass::Protocol, "{error:?}");
    let error = fails(vec![Step::Write("SMTP ready\r\n\r\n".into())]).await;
    assert_eq!(error.class, ErrorClass::Protocol, "{error:?}");
}

#[tokio::test]
async fn what_was_not_asked_for_is_a_fault_of_protocol() {
    let gzip = "content-type: application/json\r\ncontent-encoding: gzip\r\n";
    assert_eq!(
        fails(vec![document("200 OK", gzip, "{}")]).await.class,
        ErrorClass::Protocol
    );
    let server = Server::start(vec![stream_head(), chunk("data: {}\n\n"), end()]).await;
    let error = Relay::to(&server).ask().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Protocol);
}

#[tokio::test]
async fn an_endless_first_event_is_refused() {
    let mut script = vec![
        chunked_head("200 OK", "text/event-stream"),
        chunk("data: \""),
    ];
    script.extend(std::iter::repeat_n(chunk(&"x".repeat(8_000)), 20));
    let error = fails(script).await;
    assert_eq!(error.class, ErrorClass::Protocol, "{error:?}");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_a_failure_to_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = Relay::at(address, Deadlines::default())
        .ask()
        .await
        .unwrap_err();
    assert_eq!(
        (error.class, error.stage),
        (ErrorClass::Connect, SendStage::NotSent)
    );
}

#[tokio::test]
async fn a_stream_error_does_not_leave_through_a_body_that_was_collected() {
    let server = Server::start(vec![stream_head(), chunk("data: {}\n\n"), Step::Close]).await;
    let mut relay = Relay::to(&server);
    relay.dispatcher = Dispatcher::new(ClientOptions {
        max_idle_per_host: 0,
        ..Default::default()
    });
    let error = relay
        .stream()
        .await
        .unwrap()
        .body
        .collect(100)
        .await
        .unwrap_err();
    assert!(matches!(error, UpstreamBodyError::Cut(_)), "{error:?}");
}
