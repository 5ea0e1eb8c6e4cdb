//! The Anthropic API: messages of Claude clients against Anthropic upstreams.

mod endings;
mod errors;
mod streams;

use serde_json::{Value, json};
use sluice_domain::usage::{Basis, Ending};
use sluice_storage::usage::StoredRecord;
use sluice_testkit::{Request, Response, Script, Served, call, words};

use crate::deployment::{Backend, Deployment, MODEL, Relay, UPSTREAM_KEY, on_both_databases};

/// The model that clients ask for.
pub(crate) const CLAUDE: &str = "claude-test";
/// Its name at the fake provider.
const UPSTREAM_CLAUDE: &str = "claude-upstream";
const PROMPT_WORDS: usize = 7;
const ANSWER_WORDS: usize = 12;

/// Adds an upstream of kind `anthropic` at the fake provider and a route to it.
pub(crate) fn add_claude(deployment: &Deployment) {
    add_claude_with(deployment, &[]);
}

fn add_claude_with(deployment: &Deployment, options: &[&str]) {
    let url = deployment.upstream.base_url();
    add_upstream(deployment, "claude", &url, options);
    let target = format!("claude={UPSTREAM_CLAUDE}");
    deployment.run(&["route", "create", CLAUDE, "--to", &target]);
}

fn add_upstream(deployment: &Deployment, name: &str, url: &str, options: &[&str]) {
    let create = ["upstream", "create", name, "--kind", "anthropic", "--url"];
    deployment.run(&[&create[..], &[url, "--allow-private"], options].concat());
    let key_file = deployment.folder.path().join("anthropic.key");
    std::fs::write(&key_file, UPSTREAM_KEY).unwrap();
    let key_file = key_file.display().to_string();
    deployment.run(&["upstream", "key", "add", name, "main", "--file", &key_file]);
}

fn relay() -> Relay {
    start(Deployment::new(Backend::Sqlite).unwrap())
}

fn start(deployment: Deployment) -> Relay {
    add_claude(&deployment);
    deployment.start()
}

fn message() -> Value {
    words::message_request(CLAUDE, PROMPT_WORDS)
}

fn streamed_message() -> Value {
    let mut request = message();
    request["stream"] = json!(true);
    request
}

/// A request as the SDKs send it since version 2026-10-21.
fn request(relay: &Relay, path: &str, body: &Value) -> Request {
    Request::post(path, body)
        .key(relay.key())
        .header("anthropic-version", "2026-10-21")
}

async fn post(relay: &Relay, body: &Value) -> Response {
    let request = request(relay, "/v1/messages", body);
    call(relay.address, &request).await.unwrap()
}

#[track_caller]
fn assert_record(record: &StoredRecord, ending: Ending, basis: Basis, input: i64, output: i64) {
    let seen = (
        &*record.ending,
        &*record.basis,
        record.usage.input,
        record.usage.output,
    );
    assert_eq!(
        seen,
        (ending.as_str(), basis.as_str(), input, output),
        "{record:?}"
    );
    assert_eq!(record.quota_tokens, input + output, "{record:?}");
}

on_both_databases! {
    async fn a_message_is_relayed_and_recorded_with_the_providers_numbers(deployment: Deployment) {
        let relay = start(deployment);
        let script = Script::new().words(ANSWER_WORDS).cached_tokens(4).cache_write_tokens(2).reasoning_tokens(5);
        relay.upstream().default_script(script);
        let plain = post(&relay, &message()).await;
        assert_eq!(plain.status(), 200, "{}", plain.json());
        assert_eq!(plain.json()["content"][0]["text"], words::text(ANSWER_WORDS));
        let streamed = post(&relay, &streamed_message()).await;
        assert_eq!(streamed.status(), 200);
        assert!(String::from_utf8_lossy(&streamed.body).ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));

        let records = relay.deployment.wait_for_records(2).await;
        let served = relay.upstream().served();
        for (record, served) in records.iter().zip(&served) {
            assert_record(record, Ending::Finished, Basis::Reported, served.input_tokens, served.output_tokens + 5);
            let usage = record.usage;
            assert_eq!((usage.cached_input, usage.cache_write_input, usage.reasoning_output), (4, 2, 5));
            assert_eq!((&*record.endpoint, &*record.requested_model, record.status), ("messages", CLAUDE, 200));
            assert_eq!(record.attempts.len(), 1);
        }
        assert_eq!(records.iter().map(|record| record.streams).collect::<Vec<_>>(), [false, true]);
    }

    async fn a_count_of_tokens_is_recorded_and_costs_nothing(deployment: Deployment) {
        let spent = deployment.issue_key("spent", &["--quota", "0"]);
        let relay = start(deployment);
        let body = json!({"model": CLAUDE, "messages": [words::prompt(PROMPT_WORDS)]});
        for key in [relay.key(), &spent] {
            let request = Request::post("/v1/messages/count_tokens?beta=true", &body)
                .header("x-api-key", key)
                .header("anthropic-version", "2023-06-01");
            let response = call(relay.address, &request).await.unwrap();
            assert_eq!(response.status(), 200, "{}", response.json());
            assert_eq!(response.json(), json!({"input_tokens": 4 + PROMPT_WORDS}));
        }
        let served = relay.upstream().served();
        assert_eq!(served[0].target, "/v1/messages/count_tokens?beta=true");
        relay.upstream().default_script(Script::refuse(500));
        let failed = call(relay.address, &request(&relay, "/v1/messages/count_tokens", &body)).await.unwrap();
        assert_eq!(failed.status(), 502);
        let records = relay.deployment.wait_for_records(3).await;
        for record in &records[..2] {
            assert_record(record, Ending::Finished, Basis::Reported, 0, 0);
            assert_eq!(&*record.endpoint, "count_tokens");
        }
        assert_eq!((&*records[2].ending, records[2].quota_tokens), ("upstream_failed", 0));
    }
}

#[tokio::test]
async fn only_the_model_is_replaced_in_a_message() {
    let relay = relay();
    let body = format!(
        "{{ \"max_tokens\" : 1024 ,\"system\":[{{\"type\":\"text\",\"text\":\"gr\\u00fc\\\"\\\\ üß 🦀\",\"cache_control\":{{\"type\":\"ephemeral\"}}}}],\
         \"messages\":[{{\"role\":\"user\",\"content\":\"{CLAUDE}\"}}],\n\t\"model\":\"{CLAUDE}\",\"thinking\":{{\"type\":\"adaptive\"}},\
         \"context_management\":{{\"edits\":[1.50,null]}},\"stream\":true,\"metadata\":{{\"user_id\":\"u\"}}}}"
    );
    let request = Request::new("POST", "/v1/messages?beta=true&x=1")
        .header("x-api-key", relay.key())
        .header("anthropic-version", "2026-10-21")
        .header("anthropic-beta", "context-management-2025-06-27,x")
        .header("anthropic-beta", "y")
        .header("anthropic-not-yet-known", "1")
        .header("openai-organization", "org")
        .header("cookie", "a=b")
        .body(body.clone());
    assert_eq!(call(relay.address, &request).await.unwrap().status(), 200);
    let served = relay.upstream().only_served();
    let expected = body.replacen(
        &format!("\"model\":\"{CLAUDE}\""),
        &format!("\"model\":\"{UPSTREAM_CLAUDE}\""),
        1,
    );
    assert_eq!(String::from_utf8_lossy(&served.body), expected);
    assert_eq!(served.target, "/v1/messages?beta=true");
    let headers = &served.headers;
    assert_eq!(headers.get("x-api-key"), Some(UPSTREAM_KEY));
    assert_eq!(headers.get("anthropic-version"), Some("2026-10-21"));
    assert_eq!(headers.get("anthropic-not-yet-known"), Some("1"));
    let head = String::from_utf8_lossy(&served.raw_head).to_lowercase();
    assert!(
        head.contains("anthropic-beta: context-management-2025-06-27,x\r\n"),
        "{head}"
    );
    assert!(head.contains("anthropic-beta: y\r\n"), "{head}");
    for stays in [
        "authorization",
        "cookie",
        "openai-organization",
        relay.key(),
    ] {
        assert!(!head.contains(stays), "{stays} is passed on: {head}");
    }
}

#[tokio::test]
async fn an_answer_arrives_byte_for_byte_without_the_providers_limits() {
    let relay = relay();
    let answer = "{\"id\":\"msg_1\", \"type\":\"message\",\"content\":[{\"type\":\"text\",\"text\":\"grüß\"}],\n \"usage\":{\"input_tokens\":3,\"output_tokens\":2},\"vendor\":{\"a\":1.50}}";
    let script = Script::body(200, "application/json", answer)
        .header("anthropic-ratelimit-requests-remaining", "7")
        .header("anthropic-organization-id", "org-secret")
        .header("request-id", "req_upstream");
    relay.upstream().script(script);
    let response = post(&relay, &message()).await;
    assert_eq!(String::from_utf8_lossy(&response.body), answer);
    for (name, _) in [
        ("anthropic-ratelimit-requests-remaining", 0),
        ("anthropic-organization-id", 0),
    ] {
        assert_eq!(response.header(name), None, "{name}");
    }
    let id = response.header("request-id").unwrap();
    assert!(id.starts_with("req_") && id != "req_upstream", "{id}");
    assert_eq!(response.header("x-request-id"), Some(id));
    let record = relay.deployment.only_record().await;
    assert_eq!((record.usage.input, record.usage.output), (3, 2));
}

#[tokio::test]
async fn all_base_urls_that_people_paste_work_on_both_sides() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    let root = deployment.upstream.base_url().replace("/v1", "");
    add_upstream(&deployment, "root", &root, &[]);
    deployment.run(&["route", "create", "claude-root", "--to", "root"]);
    add_upstream(&deployment, "below", &format!("{root}/anthropic/"), &[]);
    deployment.run(&["route", "create", "claude-below", "--to", "below"]);
    let relay = start(deployment);
    for path in ["/v1/messages", "/messages", "/v1/v1/messages"] {
        let request = request(&relay, path, &message());
        assert_eq!(
            call(relay.address, &request).await.unwrap().status(),
            200,
            "{path}"
        );
    }
    for model in ["claude-root", "claude-below"] {
        let response = post(&relay, &words::message_request(model, 2)).await;
        assert_eq!(response.status(), 200, "{model}");
    }
    let served = relay.upstream().served();
    let paths: Vec<&str> = served[2..].iter().map(Served::path).collect();
    assert_eq!(
        paths,
        ["/v1/messages", "/v1/messages", "/anthropic/v1/messages"]
    );
    relay.deployment.run(&["upstream", "test", "root"]);
}

#[tokio::test]
async fn a_route_to_both_protocols_serves_each_with_its_own_upstreams() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    add_claude(&deployment);
    let (open_ai, claude) = ("fake=gpt", "claude=claude-x");
    deployment.run(&["route", "create", "both", "--to", open_ai, "--to", claude]);
    let relay = deployment.start();
    // Several of a kind in a row, so that no turns between the targets hide a wrong one.
    for _ in 0..3 {
        let response = post(&relay, &words::message_request("both", 2)).await;
        assert_eq!(response.status(), 200, "{:?}", response.body);
    }
    let chat = words::chat_request("both", 2);
    for _ in 0..3 {
        let response = relay.post("/v1/chat/completions", &chat).await;
        assert_eq!(response.status(), 200, "{:?}", response.body);
    }
    assert_eq!(relay.upstream().served().len(), 6);
    for served in relay.upstream().served() {
        let model = served.model.as_deref();
        match served.path() {
            "/v1/messages" => assert_eq!(model, Some("claude-x")),
            "/v1/chat/completions" => assert_eq!(model, Some("gpt")),
            path => panic!("{path}"),
        }
    }
}

#[tokio::test]
async fn models_are_listed_in_the_words_of_the_client() {
    let relay = relay();
    let get = async |path: &str| {
        let request = Request::get(path)
            .key(relay.key())
            .header("anthropic-version", "2023-06-01");
        call(relay.address, &request).await.unwrap()
    };
    let list = get("/v1/models?limit=1000").await.json();
    assert_eq!(
        (&list["first_id"], &list["last_id"], &list["has_more"]),
        (&json!(CLAUDE), &json!(MODEL), &json!(false))
    );
    let model = &list["data"][0];
    assert_eq!(
        (&model["type"], &model["display_name"]),
        (&json!("model"), &json!(CLAUDE))
    );
    let created = model["created_at"].as_str().unwrap();
    assert!(created.ends_with('Z') && created.contains('T'), "{created}");
    assert_eq!(&get(&format!("/v1/models/{CLAUDE}")).await.json(), model);
    let first = get("/v1/models?limit=1").await.json();
    assert_eq!(
        (&first["data"], &first["last_id"], &first["has_more"]),
        (&json!([model]), &json!(CLAUDE), &json!(true))
    );
    let rest = get(&format!("/v1/models?limit=1000&after_id={CLAUDE}"))
        .await
        .json();
    assert_eq!(
        (&rest["first_id"], &rest["has_more"]),
        (&list["data"][1]["id"], &json!(false))
    );
    assert_eq!(
        get(&format!(
            "/v1/models?limit=1&before_id={}",
            rest["first_id"].as_str().unwrap()
        ))
        .await
        .json()["data"],
        json!([model])
    );
    let none = get(&format!("/v1/models?before_id={CLAUDE}")).await.json();
    assert_eq!(
        (&none["data"], &none["first_id"], &none["last_id"]),
        (&json!([]), &json!(null), &json!(null))
    );
    let refused = get("/v1/models?limit=0").await;
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json()["error"]["type"], "invalid_request_error");
    let missing = get("/v1/models/claude-none").await;
    assert_eq!(missing.status(), 404);
    assert_eq!(missing.json()["error"]["type"], "not_found_error");
    // The other API has no pages.
    let others = relay.get("/v1/models?limit=1").await.json();
    assert_eq!(
        others["data"].as_array().unwrap().len(),
        list["data"].as_array().unwrap().len()
    );
    assert_eq!(
        (&others["object"], &others["data"][0]["object"]),
        (&json!("list"), &json!("model"))
    );
}
