//! Requests at the same time: a slot is given back on every ending, and once.

use std::time::Duration;

use serde_json::Value;
use sluice_testkit::{Gate, HttpClient, Request, Script, call};

use crate::deployment::{Backend, Deployment, PATIENCE, Relay, chat, figure, streamed_chat};

use super::{ask, assert_refused, limit};

/// Asks until there is a slot again: the last bytes of an answer may be here before the relay has
/// done with its request.
async fn wait_for_slot(relay: &Relay, after: &str) {
    let began = tokio::time::Instant::now();
    loop {
        let answer = ask(relay, relay.key()).await;
        if answer.status() == 200 {
            return;
        }
        assert_eq!(answer.status(), 429, "{after}: {}", answer.json());
        assert!(began.elapsed() < PATIENCE, "no slot after {after}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn one_at_a_time() -> Relay {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    limit(&deployment, &[], &["--concurrency", "1"]);
    deployment.start()
}

/// Sends a request and waits until it has come to the provider.
pub(super) async fn send_with(relay: &Relay, key: &str, body: &Value) -> HttpClient {
    let before = relay.upstream().served().len();
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let request = Request::post("/v1/chat/completions", body).key(key);
    client.send(&request).await.unwrap();
    let come = relay
        .upstream()
        .wait_for(|served| served.len() > before, PATIENCE);
    come.await;
    client
}

async fn send(relay: &Relay, body: &Value) -> HttpClient {
    send_with(relay, relay.key(), body).await
}

#[tokio::test]
async fn a_second_request_is_refused_while_the_first_is_open() {
    let relay = one_at_a_time();
    for body in [chat(2), streamed_chat(2)] {
        let gate = Gate::new();
        relay
            .upstream()
            .script(Script::new().words(3).wait_before_head(&gate));
        let mut client = send(&relay, &body).await;
        for _ in 0..3 {
            let refused = ask(&relay, relay.key()).await;
            assert_refused(
                &refused,
                "requests",
                "your tenant \"acme\"",
                "requests at the same time",
            );
            assert_eq!(refused.header("retry-after"), Some("2"), "about a second");
            assert_eq!(refused.header("x-ratelimit-limit-requests"), Some("1"));
        }
        gate.open();
        assert_eq!(client.read_head().await.unwrap().status, 200);
        client.read_body().await.unwrap();
        wait_for_slot(&relay, "an answer").await;
    }
}

#[tokio::test]
async fn every_ending_gives_its_slot_back() {
    let relay = one_at_a_time();
    let small = relay.deployment.issue_key("small", &["--quota", "1"]);
    let broken = [
        ("a refusal of the provider", Script::refuse(400)),
        ("an answer that is no JSON", Script::html(200)),
        ("a stream that is cut", Script::new().words(8).cut_at(4)),
        ("a stream that is reset", Script::new().words(8).reset_at(4)),
        (
            "an error in a stream",
            Script::new()
                .words(8)
                .error_at(4, sluice_testkit::ErrorShape::Object),
        ),
    ];
    for (name, script) in broken {
        for body in [chat(2), streamed_chat(2)] {
            relay.upstream().script(script.clone());
            let request = Request::post("/v1/chat/completions", &body).key(relay.key());
            // However it looks to the client.
            let _seen = call(relay.address, &request).await;
            wait_for_slot(&relay, name).await;
        }
    }
    let refused = ask(&relay, &small).await;
    assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
    wait_for_slot(&relay, "a spent quota").await;

    for (name, at) in [("before the head", None), ("in mid-stream", Some(3))] {
        let gate = Gate::new();
        let script = Script::new().words(8);
        relay.upstream().script(match at {
            None => script.wait_before_head(&gate),
            Some(at) => script.wait_at(at, &gate),
        });
        let mut client = send(&relay, &streamed_chat(2)).await;
        if at.is_some() {
            assert_eq!(client.read_head().await.unwrap().status, 200);
            client.next_event().await.unwrap();
        }
        assert_eq!(ask(&relay, relay.key()).await.status(), 429, "{name}");
        drop(client);
        wait_for_slot(&relay, name).await;
        gate.open();
    }
    // Nothing was given back twice: of two at once, one is still refused.
    let gate = Gate::new();
    relay
        .upstream()
        .script(Script::new().words(3).wait_before_head(&gate));
    let mut client = send(&relay, &chat(2)).await;
    assert_eq!(ask(&relay, relay.key()).await.status(), 429);
    gate.open();
    client.read_head().await.unwrap();
}

/// The provider bills an answer in one piece whatever the client does, so it is read to its end, and
/// keeps its slot until then.
#[tokio::test]
async fn an_answer_that_is_read_without_its_client_keeps_its_slot() {
    let relay = one_at_a_time();
    let gate = Gate::new();
    relay
        .upstream()
        .script(Script::new().words(3).wait_before_head(&gate));
    drop(send(&relay, &chat(2)).await);
    let began = tokio::time::Instant::now();
    while figure(relay.address, "sluice_connections").await > 1 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ask(&relay, relay.key()).await.status(), 429);
    gate.open();
    wait_for_slot(&relay, "the end of the answer").await;
}
