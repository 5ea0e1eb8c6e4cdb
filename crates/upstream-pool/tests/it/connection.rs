//! What becomes of connections.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::server::{Server, Step, chunk, end, json, stream_head, wait_ms};
use crate::support::Relay;

const SOON: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_connection_is_used_again_after_a_document() {
    let server = Server::start(vec![json("200 OK", "{}")]).await;
    let relay = Relay::to(&server);
    for _ in 0..5 {
        relay.ask().await.unwrap();
    }
    assert_eq!((server.opened(), server.seen().len()), (1, 5));
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_refusal() {
    let server = Server::start(vec![json("429 Too Many Requests", "{}")]).await;
    let relay = Relay::to(&server);
    for _ in 0..5 {
        relay.ask().await.unwrap_err();
    }
    assert_eq!((server.opened(), server.seen().len()), (1, 5));
}

#[tokio::test]
async fn a_connection_is_used_again_after_the_rest_of_a_stream_was_drained() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: 1\n\n"),
        chunk("data: [DONE]\n\n"),
        wait_ms(20),
        end(),
    ])
    .await;
    let relay = Relay::to(&server);
    for _ in 0..3 {
        let mut body = relay.stream().await.unwrap().body;
        let mut text = Vec::new();
        while !text.ends_with(b"data: [DONE]\n\n") {
            text.extend_from_slice(&body.next_chunk().await.unwrap().unwrap());
        }
        body.drain_rest();
        sleep(Duration::from_millis(60)).await;
    }
    assert_eq!((server.opened(), server.seen().len()), (1, 3));
}

#[tokio::test]
async fn a_stream_that_does_not_end_is_drained_for_a_second_only() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: [DONE]\n\n"),
        Step::WaitForClose,
    ])
    .await;
    let body = Relay::to(&server).stream().await.unwrap().body;
    let begun = Instant::now();
    body.drain_rest();
    assert!(server.closed_within(1, Duration::from_secs(3)).await);
    let took = begun.elapsed();
    assert!((800..1_500).contains(&took.as_millis()), "{took:?}");
}

#[tokio::test]
async fn dropping_a_stream_closes_its_connection_at_once() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: 1\n\n"),
        Step::WaitForClose,
    ])
    .await;
    let mut body = Relay::to(&server).stream().await.unwrap().body;
    body.next_chunk().await.unwrap().unwrap();
    assert!(!server.closed_within(1, Duration::from_millis(50)).await);
    drop(body);
    assert!(server.closed_within(1, SOON).await, "still open");
}

#[tokio::test]
async fn dropping_a_call_before_its_head_closes_its_connection_at_once() {
    let server = Server::start(vec![Step::WaitForClose]).await;
    let relay = Relay::to(&server);
    tokio::select! {
        _ = relay.ask() => panic!("answered"),
        () = sleep(Duration::from_millis(80)) => {}
    }
    assert_eq!(server.seen().len(), 1);
    assert!(server.closed_within(1, SOON).await, "still open");
}

#[tokio::test]
async fn dropping_a_call_before_its_first_event_closes_its_connection_at_once() {
    let server = Server::start(vec![stream_head(), Step::WaitForClose]).await;
    let relay = Relay::to(&server);
    tokio::select! {
        _ = relay.stream() => panic!("answered"),
        () = sleep(Duration::from_millis(80)) => {}
    }
    assert!(server.closed_within(1, SOON).await, "still open");
}

#[tokio::test]
async fn a_fork_has_connections_of_its_own() {
    let server = Server::start(vec![json("200 OK", "{}")]).await;
    let mut relay = Relay::to(&server);
    relay.ask().await.unwrap();
    relay.dispatcher = relay.dispatcher.fork();
    relay.ask().await.unwrap();
    assert_eq!(server.opened(), 2);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_idle_is_replaced() {
    let server = Server::start(vec![json("200 OK", "{}"), Step::Close]).await;
    let relay = Relay::to(&server);
    for _ in 0..3 {
        relay.ask().await.unwrap();
        assert!(server.closed_within(server.opened(), SOON).await);
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.opened(), 3);
}
