//! What comes back when all goes well.

use std::time::Duration;

use sluice_domain::route::Endpoint;
use sluice_domain::upstream::{Deadlines, ProviderKind};
use sluice_upstream_pool::{AnswerKind, UpstreamBodyError};
use tokio::time::Instant;

use crate::server::{Server, Step, chunk, end, json, stream_head, wait_ms};
use crate::support::{Relay, plan, text_of, upstream};

const ANSWER: &str = r#"{"id":"1","choices":[],"usage":{"prompt_tokens":1}}"#;

#[tokio::test]
async fn the_head_of_a_stream_waits_for_its_first_event() {
    let server = Server::start(vec![
        stream_head(),
        chunk(": keep-alive\n\n"),
        // So long that the head is read before the event is sent, also on a machine that is busy.
        wait_ms(1_000),
        chunk("data: {\"n\""),
        chunk(":1}\n\ndata: {\"n\":2}\n\n"),
        chunk("data: [DONE]\n\n"),
        end(),
    ])
    .await;
    let begun = Instant::now();
    let answer = Relay::to(&server).stream().await.unwrap();
    assert!(
        begun.elapsed() >= Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(
        (answer.status.as_u16(), answer.kind),
        (200, AnswerKind::Events)
    );
    assert_eq!(&**answer.upstream_model().unwrap(), "real");
    assert_eq!(&*answer.upstream_name, "local");
    let attempt = &answer.attempts[0];
    assert_eq!(
        (attempt.status, attempt.error.as_deref()),
        (Some(200), None)
    );
    assert!(
        attempt.head_ms < 1_000,
        "the head came before the event: {attempt:?}"
    );
    assert_eq!(
        text_of(answer).await,
        "data: {\"n\":1}\n\ndata: {\"n\":2}\n\ndata: [DONE]\n\n"
    );
}

#[tokio::test]
async fn chunks_pass_as_they_come() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: {}\n\n"),
        wait_ms(60),
        chunk("data: 2\n\n"),
        wait_ms(60),
        chunk("data: [DONE]\n\n"),
        end(),
    ])
    .await;
    let mut body = Relay::to(&server).stream().await.unwrap().body;
    assert!(body.as_complete().is_none());
    let mut chunks = Vec::new();
    while let Some(chunk) = body.next_chunk().await {
        chunks.push(chunk.unwrap());
    }
    assert_eq!(chunks, ["data: {}\n\n", "data: 2\n\n", "data: [DONE]\n\n"]);
    assert!(body.next_chunk().await.is_none());
}

#[tokio::test]
async fn a_document_is_held_until_it_is_whole() {
    let server = Server::start(vec![json("200 OK", ANSWER)]).await;
    let answer = Relay::to(&server).ask().await.unwrap();
    assert_eq!(answer.kind, AnswerKind::Document);
    assert_eq!(answer.body.as_complete().unwrap(), ANSWER);
}

#[tokio::test]
async fn a_document_in_pieces_is_put_together() {
    let server = Server::start(vec![
        crate::server::chunked_head("200 OK", "application/json"),
        chunk("\n\n"),
        wait_ms(30),
        chunk(&ANSWER[..10]),
        wait_ms(30),
        chunk(&ANSWER[10..]),
        end(),
    ])
    .await;
    let answer = Relay::to(&server).ask().await.unwrap();
    assert_eq!(answer.body.as_complete().unwrap(), &format!("\n\n{ANSWER}"));
}

#[tokio::test]
async fn a_long_document_is_handed_out_while_it_comes() {
    let long = format!("{{\"data\":\"{}\"}}", "x".repeat(200_000));
    for step in [
        json("200 OK", &long),
        Step::Write(format!(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
            long.len(),
        )),
    ] {
        let server = Server::start(vec![step]).await;
        let relay = Relay::to(&server);
        let answer = relay.ask().await.unwrap();
        assert!(answer.body.as_complete().is_none());
        assert_eq!(text_of(answer).await, long);
        let again = relay.ask().await.unwrap();
        let error = again.body.collect(100_000).await.unwrap_err();
        assert!(
            matches!(error, UpstreamBodyError::TooLong { limit: 100_000 }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_ignores_the_wish_for_a_stream_is_understood() {
    let server = Server::start(vec![json("200 OK", ANSWER)]).await;
    let answer = Relay::to(&server).stream().await.unwrap();
    assert_eq!(answer.kind, AnswerKind::Document);
    assert_eq!(answer.body.as_complete().unwrap(), ANSWER);
}

#[tokio::test]
async fn the_demonstration_upstream_answers_like_any_other() {
    let relay = Relay::planned(plan(upstream(
        ProviderKind::Demo,
        None,
        Deadlines::default(),
    )));
    // The rendered body has no messages.
    let refused = relay.stream().await.unwrap_err();
    assert_eq!(refused.status(), Some(400));
    let answer = relay.call(Endpoint::Completions, true).await.unwrap();
    assert_eq!(answer.provider_kind, ProviderKind::Demo);
    assert_eq!(answer.attempts[0].upstream_key_id, None);
    let text = text_of(answer).await;
    assert!(
        text.contains("\"model\":\"real\"") && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
}
