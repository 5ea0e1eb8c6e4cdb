//! Waiting for room instead of being refused.

use std::time::Duration;

use sluice_testkit::{Gate, HttpClient, Request, Script, call};
use tokio::time::Instant;

use crate::deployment::{Backend, Deployment, PATIENCE, Relay, chat, figure};

use super::slots::send_with;
use super::{ask, assert_refused, limit};

const QUEUED: &str = "sluice_window_queued";

fn relay(queue_ms: &str, max_queued: &str) -> Relay {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_LIMITS_QUEUE_MS", queue_ms);
    deployment.set("SLUICE_LIMITS_MAX_QUEUED", max_queued);
    limit(&deployment, &[], &["--concurrency", "1"]);
    deployment.start()
}

async fn wait_for_figure(relay: &Relay, name: &str, value: i64) {
    let began = Instant::now();
    while figure(relay.address, name).await != value {
        assert!(began.elapsed() < PATIENCE, "{name} is not {value}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Takes the only slot until the gate opens.
async fn occupy(relay: &Relay) -> (HttpClient, Gate) {
    let gate = Gate::new();
    relay
        .upstream()
        .script(Script::new().words(3).wait_before_head(&gate));
    (send_with(relay, relay.key(), &chat(1)).await, gate)
}

/// Sends a request whose prompt has so many words.
async fn send(relay: &Relay, words: usize) -> HttpClient {
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let request = Request::post("/v1/chat/completions", &chat(words)).key(relay.key());
    client.send(&request).await.unwrap();
    client
}

#[tokio::test]
async fn who_came_first_is_served_first() {
    let relay = relay("60000", "10");
    let (first, gate) = occupy(&relay).await;
    let mut clients = vec![first];
    for position in 2..=6 {
        clients.push(send(&relay, position).await);
        let waiting = i64::try_from(position).unwrap() - 1;
        wait_for_figure(&relay, QUEUED, waiting).await;
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.read_head().await.unwrap().status, 200);
        client.read_body().await.unwrap();
    }
    let order: Vec<usize> = relay
        .upstream()
        .served()
        .iter()
        .map(|served| {
            let messages = served.json()["messages"].clone();
            sluice_testkit::words::count_words(messages[0]["content"].as_str().unwrap())
        })
        .collect();
    assert_eq!(order, [1, 2, 3, 4, 5, 6]);
    wait_for_figure(&relay, QUEUED, 0).await;
    let admitted = figure(
        relay.address,
        "sluice_window_waits_total{outcome=\"admitted\"}",
    );
    assert_eq!(admitted.await, 5);
}

#[tokio::test]
async fn who_leaves_has_left_the_queue() {
    let relay = relay("60000", "10");
    let (mut first, gate) = occupy(&relay).await;
    let second = send(&relay, 2).await;
    wait_for_figure(&relay, QUEUED, 1).await;
    let mut third = send(&relay, 3).await;
    wait_for_figure(&relay, QUEUED, 2).await;
    drop(second);
    wait_for_figure(&relay, QUEUED, 1).await;
    gate.open();
    for client in [&mut first, &mut third] {
        assert_eq!(client.read_head().await.unwrap().status, 200);
    }
    assert_eq!(relay.upstream().served().len(), 2);
    let left = figure(relay.address, "sluice_window_waits_total{outcome=\"left\"}");
    assert_eq!(left.await, 1);
}

#[tokio::test]
async fn no_more_wait_than_may_and_no_longer_than_they_may() {
    let relay = relay("1500", "1");
    let (mut first, gate) = occupy(&relay).await;
    let mut second = send(&relay, 2).await;
    wait_for_figure(&relay, QUEUED, 1).await;
    let began = Instant::now();
    let refused = ask(&relay, relay.key()).await;
    assert_eq!(refused.status(), 429, "the queue is full");
    let message = refused.json()["error"]["message"].to_string();
    assert!(
        message.contains("too many of its requests wait already"),
        "{message}"
    );
    // The second waits for its time and no longer.
    assert_eq!(second.read_head().await.unwrap().status, 429);
    assert!(began.elapsed() < PATIENCE);
    wait_for_figure(&relay, QUEUED, 0).await;
    gate.open();
    assert_eq!(first.read_head().await.unwrap().status, 200);
}

/// Requests that were counted do not come back early: to wait for them in vain helps nobody.
#[tokio::test]
async fn who_would_wait_in_vain_is_refused_at_once() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_LIMITS_QUEUE_MS", "20000");
    limit(&deployment, &[], &["--rpm", "1"]);
    let relay = deployment.start();
    assert_eq!(ask(&relay, relay.key()).await.status(), 200);
    let began = Instant::now();
    let refused = ask(&relay, relay.key()).await;
    assert_refused(
        &refused,
        "requests",
        "your tenant \"acme\"",
        "requests per minute (RPM)",
    );
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(figure(relay.address, QUEUED).await, 0);
}

/// Of requests per second, the next is served when the window has moved on.
#[tokio::test]
async fn who_waits_is_served_when_the_window_has_moved_on() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_LIMITS_QUEUE_MS", "60000");
    limit(&deployment, &[], &["--rps", "2"]);
    let relay = deployment.start();
    let calls = (0..6).map(|_| {
        let (address, key) = (relay.address, relay.key().to_owned());
        tokio::spawn(async move {
            let request = Request::post("/v1/chat/completions", &chat(2)).key(&key);
            call(address, &request).await.unwrap().status()
        })
    });
    let calls: Vec<_> = calls.collect();
    let began = Instant::now();
    for call in calls {
        assert_eq!(call.await.unwrap(), 200);
    }
    assert!(
        began.elapsed() > Duration::from_millis(1_900),
        "two in each second"
    );
}
