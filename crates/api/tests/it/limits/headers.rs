//! What clients are told: headers, messages, in the words of each API; and what operators see.

use serde_json::json;
use sluice_testkit::{Request, Script, call};

use crate::deployment::{Backend, Deployment, chat, streamed_chat};
use crate::messages::{CLAUDE, add_claude};

use super::{ask, assert_refused, decisions, limit, pause_ms};

/// Returns a header as a number.
#[track_caller]
fn number(answer: &sluice_testkit::Response, name: &str) -> u64 {
    let value = answer.header(name).unwrap_or_else(|| panic!("no {name}"));
    value.parse().unwrap()
}

#[tokio::test]
async fn answers_tell_the_tightest_limit_and_what_is_left() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    limit(&deployment, &[], &["--rpm", "100", "--tpm", "10_000_000"]);
    limit(&deployment, &["--user", "ann"], &["--rpm", "2"]);
    let relay = deployment.start();
    for (left, body) in [(1, chat(2)), (0, streamed_chat(2))] {
        let answer = relay.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(number(&answer, "x-ratelimit-limit-requests"), 2);
        assert_eq!(number(&answer, "x-ratelimit-remaining-requests"), left);
        let reset = answer.header("x-ratelimit-reset-requests").unwrap();
        assert!(reset.starts_with("1m") || reset.starts_with('5'), "{reset}");
        assert_eq!(number(&answer, "x-ratelimit-limit-tokens"), 10_000_000);
        assert!(number(&answer, "x-ratelimit-remaining-tokens") < 10_000_000);
        assert!(answer.header("x-ratelimit-reset-tokens").is_some());
        assert_eq!(answer.header("anthropic-ratelimit-requests-limit"), None);
    }
    let refused = ask(&relay, relay.key()).await;
    assert_refused(
        &refused,
        "requests",
        "your user \"ann\"",
        "requests per minute (RPM)",
    );
    assert_eq!(number(&refused, "x-ratelimit-remaining-requests"), 0);
    assert!(refused.header("x-ratelimit-limit-tokens").is_some());
    let message = refused.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message.contains(": Limit 2, Used 2, Requested 1. "),
        "{message}"
    );
    assert!(
        pause_ms(&refused) > 30_000.0,
        "two in a row leave the window together"
    );
    assert_eq!(
        relay.upstream().served().len(),
        2,
        "what is refused is not sent"
    );
    relay.deployment.wait_for_records(2).await;
    assert_eq!(decisions(&relay, "user", "rpm", "admitted").await, 2);
    assert_eq!(decisions(&relay, "user", "rpm", "refused").await, 1);
    assert_eq!(decisions(&relay, "tenant", "rpm", "admitted").await, 2);
    let health = call(relay.address, &Request::get("/health")).await.unwrap();
    assert_eq!(health.json()["windows"], "in_process");
}

#[tokio::test]
async fn claude_clients_are_told_in_the_words_of_their_api() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    add_claude(&deployment);
    limit(&deployment, &[], &["--rpm", "2", "--tpm", "10_000_000"]);
    let relay = deployment.start();
    let message = sluice_testkit::words::message_request(CLAUDE, 3);
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let answer = relay.post(path, &message).await;
        assert_eq!(answer.status(), 200, "{}", answer.json());
        assert_eq!(number(&answer, "anthropic-ratelimit-requests-limit"), 2);
        let reset = answer.header("anthropic-ratelimit-requests-reset").unwrap();
        assert!(
            reset.len() == "2026-11-18T11:06:40Z".len() && reset.ends_with('Z'),
            "{reset}"
        );
        assert_eq!(answer.header("x-ratelimit-limit-requests"), None);
        // To count tokens takes none.
        let tells_tokens = answer.header("anthropic-ratelimit-tokens-limit").is_some();
        assert_eq!(tells_tokens, path == "/v1/messages");
    }
    let refused = relay.post("/v1/messages", &message).await;
    let body = refused.json();
    assert_eq!(refused.status(), 429, "{body}");
    assert_eq!(body["type"], "error");
    assert_eq!(body["error"]["type"], "rate_limit_error");
    assert_eq!(
        body["error"]["details"]["error_code"],
        "rate_limit_exceeded"
    );
    assert_eq!(
        number(&refused, "anthropic-ratelimit-requests-remaining"),
        0
    );
    assert!(refused.header("retry-after").is_some() && refused.header("retry-after-ms").is_some());
    // The models are asked for by both kinds of clients.
    let list = Request::get("/v1/models").key(relay.key());
    let refused = call(relay.address, &list).await.unwrap();
    assert_refused(
        &refused,
        "requests",
        "your tenant \"acme\"",
        "requests per minute (RPM)",
    );
    let list = list.header("anthropic-version", "2026-10-21");
    let refused = call(relay.address, &list).await.unwrap();
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
}

#[tokio::test]
async fn a_request_without_limits_is_told_of_none() {
    let relay = Deployment::new(Backend::Sqlite).unwrap().start();
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let body = json!({"model": "test-model", "prompt": "a", "messages": [{"role": "user", "content": "a"}]});
        let answer = relay.post(path, &body).await;
        let head = format!("{:?}", answer.head);
        assert!(!head.contains("ratelimit"), "{head}");
    }
}

#[tokio::test]
async fn a_limit_in_dry_run_refuses_nothing_and_is_reported() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    limit(
        &deployment,
        &[],
        &[
            "--rpm",
            "1",
            "--concurrency",
            "1",
            "--tpm",
            "1",
            "--dry-run",
        ],
    );
    let relay = deployment.start();
    relay.upstream().default_script(Script::new().words(3));
    for _ in 0..4 {
        let answer = ask(&relay, relay.key()).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            answer.header("x-ratelimit-limit-requests"),
            None,
            "it limits nobody"
        );
    }
    assert_eq!(decisions(&relay, "tenant", "rpm", "dry_run").await, 3);
    assert_eq!(decisions(&relay, "tenant", "rpm", "refused").await, 0);
    assert_eq!(
        decisions(&relay, "tenant", "concurrency", "dry_run").await,
        0
    );
}
