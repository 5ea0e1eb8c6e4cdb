//! Errors in the shape of the Anthropic API.

use serde_json::{Value, json};
use sluice_testkit::{FakeUpstream, Request, Response, Script, call, words};

use super::{
    CLAUDE, UPSTREAM_CLAUDE, add_claude, add_upstream, message, post, relay, request, start,
    streamed_message,
};
use crate::deployment::{Backend, Deployment, MODEL};

#[track_caller]
fn assert_error(response: &Response, status: u16, kind: &str) -> Value {
    let body = response.json();
    assert_eq!(response.status(), status, "{body}");
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(body["type"], "error", "{body}");
    assert_eq!(body["error"]["type"], kind, "{body}");
    assert!(!body["error"]["message"].as_str().unwrap().is_empty());
    let id = response.header("request-id").unwrap();
    assert_eq!(body["request_id"], id);
    assert_eq!(response.header("x-request-id"), Some(id));
    body
}

#[tokio::test]
async fn what_we_refuse_is_refused_in_the_clients_words() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    let spent = deployment.issue_key("spent", &["--quota", "0"]);
    let relay = start(deployment);
    let key = relay.key();
    let path = "/v1/messages";
    let without_max = json!({"model": CLAUDE, "messages": [words::prompt(2)]});
    let unknown = words::message_request("claude-none", 2);
    for (request, status, kind) in [
        (Request::post(path, &message()), 401, "authentication_error"),
        (
            Request::post(path, &message()).header("x-api-key", "sk-wrong"),
            401,
            "authentication_error",
        ),
        (
            Request::new("POST", path).key(key).body("{not json"),
            400,
            "invalid_request_error",
        ),
        (
            Request::post(path, &without_max).key(key),
            400,
            "invalid_request_error",
        ),
        (
            Request::post(path, &unknown).key(key),
            404,
            "not_found_error",
        ),
        (
            Request::post("/v1/messages/count_tokens", &unknown).key(key),
            404,
            "not_found_error",
        ),
        (Request::get(path).key(key), 405, "invalid_request_error"),
        (
            Request::get("/v1/messages/batches")
                .key(key)
                .header("anthropic-version", "2026-10-21"),
            404,
            "not_found_error",
        ),
        (
            Request::post(path, &message())
                .key(key)
                .header("content-encoding", "gzip"),
            415,
            "invalid_request_error",
        ),
    ] {
        let response = call(relay.address, &request).await.unwrap();
        assert_error(&response, status, kind);
    }
    let request = Request::post(path, &message()).header("x-api-key", &spent);
    let response = call(relay.address, &request).await.unwrap();
    let body = assert_error(&response, 429, "rate_limit_error");
    assert_eq!(
        body["error"]["details"]["error_code"],
        "enforced_spend_limit_reached"
    );
    assert_eq!(response.header("x-should-retry"), Some("false"));
    assert_eq!(relay.upstream().served().len(), 0);
    assert_eq!(relay.deployment.records().await.len(), 0);
}

#[tokio::test]
async fn a_request_for_upstreams_of_the_other_protocol_says_what_to_do() {
    let relay = relay();
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let request = request(&relay, path, &words::message_request(MODEL, 2));
        let response = call(relay.address, &request).await.unwrap();
        let body = assert_error(&response, 400, "invalid_request_error");
        let text = body["error"]["message"].as_str().unwrap();
        assert!(text.contains("/v1/chat/completions"), "{text}");
    }
    let response = relay
        .post("/v1/chat/completions", &words::chat_request(CLAUDE, 2))
        .await;
    assert_eq!(response.status(), 400);
    let error = &response.json()["error"];
    assert_eq!(error["code"], "unsupported_protocol");
    assert!(error["message"].as_str().unwrap().contains("/v1/messages"));
    assert_eq!(relay.upstream().served().len(), 0);
    assert_eq!(
        relay.deployment.records().await.len(),
        0,
        "nothing was held"
    );
}

#[tokio::test]
async fn what_the_caller_did_wrong_is_told_in_the_providers_own_bytes() {
    let relay = relay();
    for (status, kind) in [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
    ] {
        let body = format!(
            "{{\"type\":\"error\", \"error\":{{\"type\":\"{kind}\",\"message\":\"thinking: grüß\"}},\n\"request_id\":\"req_up\",\"vendor\":1.50}}"
        );
        for request in [message(), streamed_message()] {
            relay
                .upstream()
                .script(Script::body(status, "application/json", body.clone()));
            let response = post(&relay, &request).await;
            assert_eq!(response.status(), status);
            assert_eq!(String::from_utf8_lossy(&response.body), body);
            assert_eq!(response.header("content-type"), Some("application/json"));
        }
    }
    let records = relay.deployment.wait_for_records(6).await;
    assert!(records.iter().all(|record| record.quota_tokens == 0));
    assert_eq!(records[0].status, 400);
    assert_eq!(records[0].error_code.as_deref(), Some("upstream_refused"));
}

#[tokio::test]
async fn what_the_provider_did_wrong_is_told_in_our_words() {
    for (script, status, kind, attempts) in [
        (Script::refuse(401), 502, "api_error", "1"),
        (Script::refuse(402), 502, "api_error", "1"),
        (Script::refuse(403), 502, "api_error", "1"),
        (Script::refuse(500), 502, "api_error", "3"),
        (Script::refuse(529), 529, "overloaded_error", "3"),
        (Script::html(502), 502, "api_error", "3"),
        (Script::html(404), 502, "api_error", "3"),
    ] {
        for request in [message(), streamed_message()] {
            // What failed before is no reason to pass the upstream over.
            let relay = relay();
            relay.upstream().default_script(script.clone());
            let response = post(&relay, &request).await;
            assert_error(&response, status, kind);
            assert_eq!(response.header("x-should-retry"), Some("false"));
            assert_eq!(response.header("x-sluice-attempts"), Some(attempts));
            let record = relay.deployment.only_record().await;
            assert_eq!(record.status, i32::from(status));
        }
    }
}

#[tokio::test]
async fn a_limit_of_the_provider_is_told_and_kept_until_it_is_over() {
    let relay = relay();
    let reset = "2099-01-01T00:00:00Z";
    let limited = Script::refuse(429)
        .header("anthropic-ratelimit-requests-remaining", "0")
        .header("anthropic-ratelimit-requests-reset", reset);
    relay.upstream().script(limited);
    for attempts in [Some("1"), None] {
        let response = post(&relay, &message()).await;
        assert_error(&response, 429, "rate_limit_error");
        assert_eq!(response.header("x-sluice-attempts"), attempts);
        assert_eq!(response.header("retry-after"), Some("60"), "at most");
    }
    relay.upstream().only_served();
}

#[tokio::test]
async fn a_message_that_fails_is_tried_at_the_next_upstream_that_speaks_its_protocol() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    let backup = FakeUpstream::start();
    let url = deployment.upstream.base_url();
    add_upstream(&deployment, "first", &url, &["--max-attempts", "1"]);
    add_upstream(&deployment, "backup", &backup.base_url(), &[]);
    deployment.run(&[
        "route",
        "create",
        CLAUDE,
        "--to",
        "first",
        "--to",
        "fake,tier=2",
        "--to",
        "backup,tier=3",
    ]);
    let relay = deployment.start();
    relay.upstream().default_script(Script::refuse(529));
    for (request, end) in [(message(), "}"), (streamed_message(), "\n\n")] {
        let response = post(&relay, &request).await;
        assert_eq!(response.status(), 200, "{:?}", response.body);
        assert_eq!(response.header("x-sluice-attempts"), Some("2"));
        let text = String::from_utf8_lossy(&response.body);
        assert!(text.contains("\"message") && text.ends_with(end), "{text}");
    }
    let all: Vec<_> = [relay.upstream().served(), backup.served()].concat();
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|served| served.path() == "/v1/messages"));
    backup.default_script(Script::refuse(529));
    let response = post(&relay, &words::message_request(CLAUDE, 3)).await;
    assert_error(&response, 529, "overloaded_error");
    assert_eq!(response.header("x-sluice-attempts"), Some("4"));
}

#[tokio::test]
async fn a_message_that_is_too_long_goes_to_a_larger_model_or_is_told_in_the_providers_bytes() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    add_claude(&deployment);
    deployment.run(&[
        "route",
        "create",
        "claude-two",
        "--to",
        "claude=small",
        "--to",
        "claude=large,for=context_length",
    ]);
    let relay = deployment.start();
    let body = "{\"type\":\"error\", \"error\":{\"type\":\"invalid_request_error\",\"message\":\"prompt is too long: 9 tokens > 8 maximum\"}}\n";
    let too_long = Script::body(400, "application/json", body);
    for model in [UPSTREAM_CLAUDE, "small"] {
        relay.upstream().script_for_model(model, too_long.clone());
    }
    let response = post(&relay, &message()).await;
    assert_eq!((response.status(), &*response.body), (400, body.as_bytes()));
    let response = post(&relay, &words::message_request("claude-two", 2)).await;
    assert_eq!(response.status(), 200, "{:?}", response.body);
    relay.upstream().script_for_model("large", too_long);
    let response = post(&relay, &words::message_request("claude-two", 2)).await;
    assert_eq!((response.status(), &*response.body), (400, body.as_bytes()));
    let models: Vec<_> = relay
        .upstream()
        .served()
        .into_iter()
        .map(|served| served.model.unwrap())
        .collect();
    assert_eq!(
        models,
        [UPSTREAM_CLAUDE, "small", "large", "small", "large"]
    );
}

#[tokio::test]
async fn an_error_before_the_first_event_keeps_its_status() {
    for (kind, status) in [
        ("overloaded_error", 529),
        ("invalid_request_error", 400),
        ("rate_limit_error", 429),
        ("api_error", 502),
    ] {
        let event = format!(
            "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"m\"}}}}\n\n"
        );
        let ping = "event: ping\ndata: {\"type\": \"ping\"}\n\n".to_owned();
        let relay = relay();
        relay
            .upstream()
            .default_script(Script::events([ping, event]));
        let response = post(&relay, &streamed_message()).await;
        assert_eq!(response.status(), status, "{kind}");
        assert_eq!(response.json()["error"]["type"], kind);
    }
}
