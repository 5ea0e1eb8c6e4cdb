//! Tokens per minute: estimated before, corrected by what was used.

use serde_json::{Value, json};
use sluice_testkit::{Request, Response, Script, call};

use crate::deployment::{Backend, Deployment, PATIENCE, Relay, chat};

use super::{assert_refused, limit};

/// A chat of at most so many tokens of output.
async fn ask_for(relay: &Relay, key: &str, max_tokens: u64) -> Response {
    let mut body = chat(2);
    body["max_tokens"] = json!(max_tokens);
    let request = Request::post("/v1/chat/completions", &body).key(key);
    call(relay.address, &request).await.unwrap()
}

#[track_caller]
fn left(answer: &Response) -> u64 {
    let left = answer.header("x-ratelimit-remaining-tokens").unwrap();
    left.parse().unwrap()
}

/// Returns what the limit has room for, from a request that is refused.
async fn room(relay: &Relay) -> u64 {
    let refused = ask_for(relay, relay.key(), 1_000_000).await;
    assert_refused(
        &refused,
        "tokens",
        "your tenant \"acme\"",
        "tokens per minute (TPM)",
    );
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains(", counted as 10000. "), "{message}");
    left(&refused)
}

fn relay_with_limit() -> Relay {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    limit(&deployment, &[], &["--tpm", "10_000"]);
    deployment.start()
}

#[tokio::test]
async fn an_estimate_is_corrected_by_what_was_used() {
    let relay = relay_with_limit();
    relay.upstream().default_script(Script::new().words(10));
    // Each costs 3 + 1 + 2 + 3 tokens of input and 10 of output, and may cost 4,000.
    for number in 0..8 {
        let answer = ask_for(&relay, relay.key(), 4_000).await;
        assert_eq!(answer.status(), 200, "{number}");
        let left = left(&answer);
        assert!(left < 10_000 - 4_000 - number * 19, "{left} after {number}");
    }
    assert_eq!(room(&relay).await, 10_000 - 8 * 19);
}

#[tokio::test]
async fn what_may_not_fit_is_refused_before_it_is_sent() {
    let relay = relay_with_limit();
    let gate = sluice_testkit::Gate::new();
    relay
        .upstream()
        .script(Script::new().words(10).wait_before_head(&gate));
    let first = ask_for(&relay, relay.key(), 6_000);
    let second = async {
        let open = relay
            .upstream()
            .wait_for(|served| served.len() == 1, PATIENCE);
        open.await;
        let refused = ask_for(&relay, relay.key(), 6_000).await;
        assert_refused(
            &refused,
            "tokens",
            "your tenant \"acme\"",
            "tokens per minute (TPM)",
        );
        // What is smaller still fits.
        assert_eq!(ask_for(&relay, relay.key(), 100).await.status(), 200);
        gate.open();
    };
    let (first, ()) = tokio::join!(first, second);
    assert_eq!(first.status(), 200);
    assert_eq!(relay.upstream().served().len(), 2);
}

/// An estimate beyond the limit would never pass: it counts as the limit.
#[tokio::test]
async fn an_estimate_beyond_the_limit_is_taken_to_be_the_limit() {
    let relay = relay_with_limit();
    relay.upstream().default_script(Script::new().words(10));
    let answer = ask_for(&relay, relay.key(), 1_000_000).await;
    assert_eq!((answer.status(), left(&answer)), (200, 0));
    assert_eq!(room(&relay).await, 10_000 - 19);
}

#[tokio::test]
async fn what_was_not_sent_takes_no_tokens() {
    let relay = relay_with_limit();
    let small = relay.deployment.issue_key("small", &["--quota", "1"]);
    for _ in 0..5 {
        let refused = ask_for(&relay, &small, 4_000).await;
        assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
    }
    let mut body = chat(2);
    body["model"] = Value::from("no-such-model");
    relay.post("/v1/chat/completions", &body).await;
    relay.upstream().default_script(Script::new().words(10));
    assert_eq!(ask_for(&relay, relay.key(), 1_000_000).await.status(), 200);
    assert_eq!(room(&relay).await, 10_000 - 19);
}

/// What nobody knows stays as estimated: the provider may have done the work.
#[tokio::test]
async fn what_failed_at_the_provider_stays_as_estimated() {
    let relay = relay_with_limit();
    relay.upstream().script(Script::refuse(400));
    let answer = ask_for(&relay, relay.key(), 4_000).await;
    assert_eq!(answer.status(), 400);
    let left = room(&relay).await;
    assert!((5_000..6_000).contains(&left), "{left}");
}

/// A provider that reports more than was estimated carries the counter beyond the limit.
#[tokio::test]
async fn what_was_too_little_counts_afterwards() {
    let relay = relay_with_limit();
    let answer = json!({
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 12_000, "total_tokens": 12_005},
    });
    let script = Script::body(200, "application/json", answer.to_string());
    relay.upstream().script(script);
    let answer = ask_for(&relay, relay.key(), 10).await;
    assert_eq!(answer.status(), 200, "{}", answer.json());
    assert!(left(&answer) > 9_000, "{}", left(&answer));
    assert_eq!(room(&relay).await, 0);
    let refused = ask_for(&relay, relay.key(), 1).await;
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("Limit 10000, Used 12005, "), "{message}");
}
