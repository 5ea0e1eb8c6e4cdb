//! Upstreams that are late. Deadlines are real and small: a paused clock does not stop sockets.

use std::time::Duration;

use sluice_domain::upstream::Deadlines;
use sluice_upstream_pool::{DispatchError, ErrorClass, SendStage, UpstreamBodyError};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::server::{SOON, Server, Step, chunk, chunked_head, end, json, stream_head, wait_ms};
use crate::support::{Relay, first_event_ms, idle_ms, total_ms};

/// So late a deadline may come true on a machine that is busy. The deadlines that a test did not
/// shorten are longer, but for that of a connection.
const LATE_MS: u128 = 8_000;

/// Runs a call that must end for its deadline, after `ms` and not much later.
async fn timed_out<T: std::fmt::Debug>(
    ms: u128,
    call: impl Future<Output = Result<T, Box<DispatchError>>>,
) -> Box<DispatchError> {
    let begun = Instant::now();
    let error = call.await.unwrap_err();
    let took = begun.elapsed().as_millis();
    assert_eq!(error.class, ErrorClass::Timeout, "{error:?}");
    assert!((ms..ms + LATE_MS).contains(&took), "{took} ms: {error:?}");
    error
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let server = Server::start(vec![Step::WaitForClose]).await;
    let relay = Relay::with(&server, first_event_ms(150));
    let error = timed_out(150, relay.ask()).await;
    assert_eq!((error.stage, error.status()), (SendStage::Sent, None));
    let attempt = &error.attempts[0];
    assert_eq!(attempt.error.as_deref(), Some("timeout"));
    assert!(attempt.head_ms >= 150, "{attempt:?}");
    assert!(server.closed_within(1, SOON).await);
}

#[tokio::test]
async fn comments_do_not_move_the_deadline_of_the_first_event() {
    // For longer than a late deadline takes.
    let mut script = vec![stream_head()];
    for _ in 0..400 {
        script.extend([chunk(": keep-alive\n\n"), wait_ms(30)]);
    }
    let server = Server::start(script).await;
    let relay = Relay::with(&server, first_event_ms(1_000));
    let error = timed_out(1_000, relay.stream()).await;
    assert_eq!(
        (error.stage, error.status()),
        (SendStage::Answered, Some(200))
    );
    assert!(server.closed_within(1, SOON).await);
}

#[tokio::test]
async fn the_deadline_of_the_first_event_is_over_once_it_came() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: {}\n\n"),
        wait_ms(1_500),
        chunk("data: [DONE]\n\n"),
        end(),
    ])
    .await;
    let relay = Relay::with(&server, first_event_ms(1_000));
    let body = relay.stream().await.unwrap().body;
    assert_eq!(
        body.collect(1_000).await.unwrap(),
        "data: {}\n\ndata: [DONE]\n\n"
    );
}

#[tokio::test]
async fn silence_inside_a_stream_ends_it_and_comments_break_the_silence() {
    let mut script = vec![stream_head(), chunk("data: {}\n\n")];
    for _ in 0..10 {
        script.extend([wait_ms(200), chunk(": keep-alive\n\n")]);
    }
    script.push(Step::WaitForClose);
    let server = Server::start(script).await;
    // Less than all pauses together, and much more than one.
    let mut body = Relay::with(&server, idle_ms(1_500))
        .stream()
        .await
        .unwrap()
        .body;
    let begun = Instant::now();
    let mut last = None;
    while let Some(chunk) = body.next_chunk().await {
        last = Some(chunk);
    }
    let error = last.unwrap().unwrap_err();
    assert!(matches!(error, UpstreamBodyError::Idle), "{error:?}");
    assert_eq!(error.class(), ErrorClass::Timeout);
    let took = begun.elapsed().as_millis();
    assert!(
        (3_500..3_500 + LATE_MS).contains(&took),
        "ten comments and one silence took {took} ms"
    );
    assert!(server.closed_within(1, SOON).await, "closed with the error");
}

#[tokio::test]
async fn a_reader_that_pauses_does_not_make_the_upstream_late() {
    let server = Server::start(vec![
        stream_head(),
        chunk("data: {}\n\n"),
        wait_ms(30),
        chunk("data: 2\n\n"),
        wait_ms(30),
        chunk("data: [DONE]\n\n"),
        end(),
    ])
    .await;
    let mut body = Relay::with(&server, idle_ms(1_000))
        .stream()
        .await
        .unwrap()
        .body;
    body.next_chunk().await.unwrap().unwrap();
    sleep(Duration::from_millis(1_500)).await;
    assert_eq!(
        body.collect(1_000).await.unwrap(),
        "data: 2\n\ndata: [DONE]\n\n"
    );
}

#[tokio::test]
async fn an_answer_that_takes_too_long_as_a_whole_is_ended() {
    // For longer than a late deadline takes.
    let mut script = vec![stream_head()];
    for _ in 0..600 {
        script.extend([chunk("data: {}\n\n"), wait_ms(20)]);
    }
    let server = Server::start(script).await;
    let relay = Relay::with(&server, total_ms(1_000));
    let begun = Instant::now();
    let error = relay
        .stream()
        .await
        .unwrap()
        .body
        .collect(10_000)
        .await
        .unwrap_err();
    assert!(matches!(error, UpstreamBodyError::Total), "{error:?}");
    let took = begun.elapsed().as_millis();
    assert!((1_000..1_000 + LATE_MS).contains(&took), "{took} ms");
}

#[tokio::test]
async fn a_document_that_stalls_fails_inside_the_attempt() {
    let server = Server::start(vec![
        chunked_head("200 OK", "application/json"),
        chunk("{\"id\""),
        Step::WaitForClose,
    ])
    .await;
    let relay = Relay::with(&server, idle_ms(150));
    let error = timed_out(150, relay.ask()).await;
    assert_eq!(
        (error.stage, error.status()),
        (SendStage::Answered, Some(200))
    );
}

#[tokio::test]
async fn the_body_of_a_refusal_that_stalls_does_not_hide_the_refusal() {
    let server = Server::start(vec![
        chunked_head("503 Service Unavailable", "application/json"),
        chunk("{\"err"),
        Step::WaitForClose,
    ])
    .await;
    let error = Relay::with(&server, idle_ms(100)).ask().await.unwrap_err();
    assert_eq!(
        (error.class, error.status()),
        (ErrorClass::Status, Some(503))
    );
    assert!(error.refusal.unwrap().body.is_empty());
}

/// Returns a listener whose queue is full, so that further connections are not opened, and what
/// fills it.
async fn full_listener() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while waiting.len() < 100 {
        match timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            Ok(stream) => waiting.push(stream.unwrap()),
            Err(_elapsed) => return (listener, waiting),
        }
    }
    panic!("the queue of the listener never filled");
}

#[tokio::test]
async fn a_connection_that_does_not_open_is_given_up_and_nothing_was_sent() {
    let (listener, _waiting) = full_listener().await;
    let deadlines = Deadlines {
        connect: Duration::from_millis(150),
        ..first_event_ms(100)
    };
    let relay = Relay::at(listener.local_addr().unwrap(), deadlines);
    let error = timed_out(150, relay.ask()).await;
    assert_eq!((error.stage, error.status()), (SendStage::NotSent, None));
}

#[tokio::test]
async fn time_spent_on_opening_does_not_count_against_the_answer() {
    let (listener, _waiting) = full_listener().await;
    let address = listener.local_addr().unwrap();
    let relay = Relay::at(address, first_event_ms(1_500));
    let begun = Instant::now();
    // The system asks for the connection again after two or three seconds.
    let (answer, _server) = tokio::join!(relay.ask(), async {
        sleep(Duration::from_millis(1_500)).await;
        Server::start_on(listener, vec![wait_ms(100), json("200 OK", "{}")])
    });
    let took = begun.elapsed();
    assert!(
        took > Duration::from_millis(1_700),
        "the connection was open at once: {took:?}"
    );
    answer.unwrap();
}

#[tokio::test]
async fn a_late_answer_on_a_connection_that_opened_late_is_not_waited_for() {
    let (listener, _waiting) = full_listener().await;
    let address = listener.local_addr().unwrap();
    let relay = Relay::at(address, first_event_ms(250));
    let (answer, server) = tokio::join!(relay.ask(), async {
        sleep(Duration::from_millis(400)).await;
        Server::start_on(listener, vec![Step::WaitForClose])
    });
    let error = answer.unwrap_err();
    assert_eq!(
        (error.class, error.stage),
        (ErrorClass::Timeout, SendStage::Sent)
    );
    server.wait_for(|counts| counts.asked == 1).await;
}

#[tokio::test]
async fn an_upstream_that_never_pauses_is_ended_in_time_too() {
    let Step::Write(chunk) = chunk(&"data: {}\n\n".repeat(2_000)) else {
        panic!("a chunk is written");
    };
    let server = Server::start(vec![stream_head(), Step::Flood(chunk)]).await;
    let relay = Relay::with(&server, total_ms(1_000));
    let mut body = relay.stream().await.unwrap().body;
    let begun = Instant::now();
    let error = loop {
        match body.next_chunk().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the stream ended by itself after {:?}", begun.elapsed()),
        }
    };
    assert!(matches!(error, UpstreamBodyError::Total), "{error:?}");
    assert!(server.closed_within(1, SOON).await);
}
