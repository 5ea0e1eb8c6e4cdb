//! What becomes of connections.

use std::sync::Arc;
use std::time::Duration;

use sluice_upstream_pool::{ClientOptions, Dispatcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::server::{SOON, Server, Step, chunk, document, end, json, stream_head, wait_ms};
use crate::support::Relay;

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
    let server = Server::start(vec![json("400 Bad Request", r#"{"error":{}}"#)]).await;
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
        chunk("data: {}\n\n"),
        chunk("data: [DONE]\n\n"),
        wait_ms(20),
        end(),
    ])
    .await;
    let relay = Relay::to(&server);
    for number in 1..=3 {
        let mut body = relay.stream().await.unwrap().body;
        let mut text = Vec::new();
        while !text.ends_with(b"data: [DONE]\n\n") {
            text.extend_from_slice(&body.next_chunk().await.unwrap().unwrap());
        }
        body.drain_rest();
        server.wait_for(|counts| counts.answered == number).await;
        // The end is in the socket; a turn of the loop later it is read.
        sleep(Duration::from_millis(60)).await;
    }
    assert_eq!((server.opened(), server.seen().len()), (1, 3));
}

#[tokio::test]
async fn a_stream_that_does_not_end_is_drained_for_a_second_only() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: {}\n\ndata: [DONE]\n\n"),
        Step::WaitForClose,
    ])
    .await;
    let body = Relay::to(&server).stream().await.unwrap().body;
    let begun = Instant::now();
    body.drain_rest();
    // Without the bound it would be drained for ever.
    assert!(server.closed_within(1, SOON).await);
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(800), "{took:?}");
}

#[tokio::test]
async fn dropping_a_stream_closes_its_connection_at_once() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: {}\n\n"),
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
        () = server.wait_for(|counts| counts.asked == 1) => {}
    }
    assert!(server.closed_within(1, SOON).await, "still open");
}

#[tokio::test]
async fn dropping_a_call_before_its_first_event_closes_its_connection_at_once() {
    let server = Server::start(vec![stream_head(), Step::WaitForClose]).await;
    let relay = Relay::to(&server);
    tokio::select! {
        _ = relay.stream() => panic!("answered"),
        () = async {
            server.wait_for(|counts| counts.asked == 1).await;
            sleep(Duration::from_millis(80)).await;
        } => {}
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

#[tokio::test]
async fn an_upstream_that_closes_right_after_each_answer_causes_no_failure() {
    let server = Server::start(vec![json("200 OK", "{}"), Step::Close]).await;
    let relay = Relay::to(&server);
    for _ in 0..20 {
        relay.ask().await.unwrap();
    }
    assert_eq!(server.opened(), 20);
}

#[tokio::test]
async fn a_connection_that_its_upstream_gives_up_is_closed_although_nobody_asks() {
    let server = Server::start(vec![
        json("200 OK", "{}"),
        wait_ms(50),
        Step::ShutDown,
        Step::WaitForClose,
    ])
    .await;
    Relay::to(&server).ask_and_stay(&server).await;
}

#[tokio::test]
async fn a_connection_is_closed_where_the_answer_says_so() {
    let server = Server::start(vec![
        document("200 OK", "connection: close\r\n", "{}"),
        Step::WaitForClose,
    ])
    .await;
    Relay::to(&server).ask_and_stay(&server).await;
}

#[tokio::test]
async fn an_unused_connection_is_closed_after_a_while() {
    let server = Server::start(vec![json("200 OK", "{}")]).await;
    let mut relay = Relay::to(&server);
    relay.dispatcher = Dispatcher::new(ClientOptions {
        // Far more than the pauses.
        idle_timeout: Duration::from_secs(2),
        ..ClientOptions::default()
    });
    for _ in 0..3 {
        relay.ask().await.unwrap();
        sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(server.opened(), 1, "it was used in time");
    assert!(server.closed_within(1, SOON).await);
    relay.ask().await.unwrap();
    assert_eq!(server.opened(), 2);
}

#[tokio::test]
async fn no_more_connections_are_kept_than_asked_for() {
    let server = Server::start(vec![wait_ms(50), json("200 OK", "{}")]).await;
    let mut relay = Relay::to(&server);
    relay.dispatcher = Dispatcher::new(ClientOptions {
        max_idle_per_host: 2,
        ..ClientOptions::default()
    });
    for _ in 0..2 {
        let (a, b, c) = tokio::join!(relay.ask(), relay.ask(), relay.ask());
        a.and(b).and(c).unwrap();
    }
    assert!(server.closed_within(2, SOON).await);
    assert_eq!(server.opened(), 4, "two of three were used again");
    assert!(!server.closed_within(3, Duration::from_millis(50)).await);
}

#[tokio::test]
async fn a_body_moves_to_another_task_between_two_chunks() {
    let go_on = Arc::<Notify>::default();
    let server = Server::start(vec![
        stream_head(),
        chunk("data: {}\n\n"),
        Step::WaitFor(Arc::clone(&go_on)),
        chunk("data: 2\n\n"),
        wait_ms(60),
        end(),
    ])
    .await;
    let relay = Relay::to(&server);
    let mut body = relay.stream().await.unwrap().body;
    assert_eq!(body.next_chunk().await.unwrap().unwrap(), "data: {}\n\n");
    // The wake of the first task, which waited last, is of no use to the second one.
    let waited = tokio::time::timeout(Duration::from_millis(20), body.next_chunk()).await;
    assert!(waited.is_err(), "{waited:?}");
    let rest = tokio::spawn(body.collect(100));
    // It waits by then.
    sleep(Duration::from_millis(20)).await;
    go_on.notify_one();
    assert_eq!(rest.await.unwrap().unwrap(), "data: 2\n\n");
    relay.stream().await.unwrap();
    assert_eq!(server.opened(), 1);
}
