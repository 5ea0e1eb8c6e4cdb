//! Every error is in the OpenAI envelope with a request id, those of the framework included.

use serde_json::{Value, json};
use sluice_testkit::{HttpClient, Request, Response, Script, call};

use crate::deployment::{Backend, Deployment, Relay, chat, streamed_chat};

fn relay() -> Relay {
    Deployment::new(Backend::Sqlite).unwrap().start()
}

#[track_caller]
fn assert_envelope(response: &Response, status: u16, code: &Value) {
    assert_eq!(
        response.status(),
        status,
        "{}",
        String::from_utf8_lossy(&response.body)
    );
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert!(response.header("x-request-id").unwrap().starts_with("req_"));
    let error = &response.json()["error"];
    let mut keys: Vec<&String> = error.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["code", "message", "param", "type"]);
    assert_eq!(&error["code"], code, "{error}");
    assert!(!error["message"].as_str().unwrap().is_empty());
}

#[tokio::test]
async fn what_a_framework_would_answer_is_answered_by_us() {
    let relay = relay();
    let key = relay.key();
    let long = vec![b'x'; 3 * 1024 * 1024];
    let cases: Vec<(Request, u16, Value)> = vec![
        (
            Request::new("POST", "/v1/chat/completions")
                .key(key)
                .body("{not json"),
            400,
            json!("invalid_json"),
        ),
        (
            Request::new("POST", "/v1/chat/completions")
                .key(key)
                .body(""),
            400,
            json!("invalid_json"),
        ),
        (
            Request::new("POST", "/v1/chat/completions")
                .key(key)
                .body("[1]"),
            400,
            json!("invalid_json"),
        ),
        (
            Request::new("POST", "/v1/chat/completions")
                .key(key)
                .body(long),
            400,
            json!("invalid_json"),
        ),
        (
            Request::post("/v1/chat/completions", &json!({})).key(key),
            400,
            json!("missing_required_parameter"),
        ),
        (
            Request::post("/v1/chat/completions", &json!({"model": 7})).key(key),
            400,
            json!("invalid_type"),
        ),
        (
            Request::post(
                "/v1/chat/completions",
                &json!({"model": "m", "stream": "yes"}),
            )
            .key(key),
            400,
            json!("invalid_type"),
        ),
        (
            Request::get("/v1/chat/completions").key(key),
            405,
            json!("method_not_supported"),
        ),
        (
            Request::new("DELETE", "/v1/models").key(key),
            405,
            json!("method_not_supported"),
        ),
        (
            Request::get("/v1/nothing").key(key),
            404,
            json!("unknown_url"),
        ),
        (Request::get("/").key(key), 404, json!("unknown_url")),
        (
            Request::get("/v1/models/no/such:model").key(key),
            404,
            json!("model_not_found"),
        ),
        (
            Request::get("/v1/models/no%2Fsuch%3Amodel").key(key),
            404,
            json!("model_not_found"),
        ),
        (
            Request::post(
                "/v1/chat/completions",
                &json!({"model": "nope", "messages": []}),
            )
            .key(key),
            404,
            json!("model_not_found"),
        ),
        (
            Request::post("/v1/chat/completions", &chat(1))
                .key(key)
                .header("content-encoding", "gzip"),
            415,
            json!("unsupported_content_encoding"),
        ),
    ];
    for (request, status, code) in cases {
        let response = call(relay.address, &request).await.unwrap();
        assert_envelope(&response, status, &code);
    }
    assert_eq!(
        relay.deployment.records().await.len(),
        0,
        "what was not relayed has no record"
    );
}

#[tokio::test]
async fn a_request_without_content_type_is_read_all_the_same() {
    let relay = relay();
    let request = Request::new("POST", "/v1/chat/completions")
        .key(relay.key())
        .body(chat(2).to_string());
    assert_eq!(call(relay.address, &request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_by_its_length_and_by_its_bytes() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_SERVER_MAX_BODY_BYTES", "2048");
    let relay = deployment.start();
    let announced = Request::post("/v1/chat/completions", &chat(2_000)).key(relay.key());
    assert_envelope(
        &call(relay.address, &announced).await.unwrap(),
        413,
        &json!("request_too_large"),
    );
    // Without a length the bytes are counted.
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
        relay.key()
    );
    client.send_raw(head.as_bytes()).await.unwrap();
    client
        .send_raw(format!("1000\r\n{}\r\n", "x".repeat(0x1000)).as_bytes())
        .await
        .unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 413);
}

#[tokio::test]
async fn a_slow_body_and_a_slow_head_are_cut_off() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_SERVER_BODY_TIMEOUT_MS", "300");
    // The head of the first client has to come in time.
    deployment.set("SLUICE_SERVER_HEADER_TIMEOUT_MS", "3000");
    let relay = deployment.start();
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 100\r\n\r\n{{",
        relay.key()
    );
    client.send_raw(head.as_bytes()).await.unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 408);
    let mut client = HttpClient::connect(relay.address).await.unwrap();
    client
        .send_raw(b"POST /v1/chat/completions HTTP/1.1\r\nhost:")
        .await
        .unwrap();
    client.wait_closed().await.unwrap();
}

#[tokio::test]
async fn every_credential_channel_is_the_same_and_none_is_forwarded() {
    let relay = relay();
    let key = relay.key().to_owned();
    for (name, value) in [
        ("authorization", format!("Bearer {key}")),
        ("authorization", format!("bearer {key}")),
        ("authorization", key.clone()),
        ("x-api-key", key.clone()),
        ("api-key", key.clone()),
    ] {
        let request = Request::post("/v1/chat/completions", &chat(2)).header(name, &value);
        assert_eq!(
            call(relay.address, &request).await.unwrap().status(),
            200,
            "{name}"
        );
    }
    for served in relay.upstream().served() {
        assert_eq!(served.key.as_deref(), Some(crate::deployment::UPSTREAM_KEY));
        let head = String::from_utf8_lossy(&served.raw_head).into_owned();
        assert!(!head.contains(&key), "{head}");
        assert!(
            served.headers.get("x-api-key").is_none() && served.headers.get("api-key").is_none()
        );
    }
    let nobody = Request::post("/v1/chat/completions", &chat(2));
    let response = call(relay.address, &nobody).await.unwrap();
    assert_envelope(&response, 401, &json!("missing_api_key"));
    assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    // Another last character than it has.
    let last = if key.ends_with('0') { '1' } else { '0' };
    let mistyped = format!("{}{last}", &key[..key.len() - 1]);
    for wrong in [
        "sk-nothing-like-it",
        "Basic abc",
        "x",
        &key[..key.len() - 1],
        &mistyped,
    ] {
        let request = Request::post("/v1/chat/completions", &chat(2))
            .header("authorization", &format!("Bearer {wrong}"));
        assert_envelope(
            &call(relay.address, &request).await.unwrap(),
            401,
            &json!("invalid_api_key"),
        );
    }
}

#[tokio::test]
async fn what_the_provider_refuses_is_explained_to_the_right_person() {
    for (script, code, attempts) in [
        (Script::refuse(401), "upstream_auth_error", "1"),
        (Script::refuse(403), "upstream_auth_error", "1"),
        (Script::insufficient_quota(), "upstream_auth_error", "1"),
        (Script::refuse(500), "upstream_error", "3"),
        (Script::refuse(503), "upstream_error", "3"),
        (Script::html(502), "upstream_error", "3"),
    ] {
        for request in [chat(2), streamed_chat(2)] {
            let relay = relay();
            relay.upstream().default_script(script.clone());
            let response = relay.post("/v1/chat/completions", &request).await;
            assert_envelope(&response, 502, &json!(code));
            // What could be tried was tried here.
            assert_eq!(response.header("x-should-retry"), Some("false"));
            assert_eq!(response.header("x-sluice-attempts"), Some(attempts));
        }
    }
}

#[tokio::test]
async fn a_limit_of_the_provider_is_passed_on_and_kept_until_it_is_over() {
    let relay = relay();
    relay.upstream().script(Script::refuse(429).retry_after(50));
    let response = relay.post("/v1/chat/completions", &chat(2)).await;
    assert_envelope(&response, 429, &json!("rate_limit_exceeded"));
    assert_eq!(response.header("retry-after"), Some("50"));
    assert_eq!(response.header("retry-after-ms"), Some("50000"));
    let message = response.json()["error"]["message"].clone();
    assert!(
        message
            .as_str()
            .unwrap()
            .ends_with("Please try again in 50s.")
    );

    let response = relay.post("/v1/chat/completions", &streamed_chat(2)).await;
    assert_envelope(&response, 429, &json!("rate_limit_exceeded"));
    assert_eq!(response.header("x-sluice-attempts"), None);
    let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=50).contains(&seconds), "{seconds}");
    relay.upstream().only_served();
}

#[tokio::test]
async fn what_the_provider_says_about_the_request_passes_through() {
    let relay = relay();
    let body = json!({"error": {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": "invalid_value"}});
    for request in [chat(2), streamed_chat(2)] {
        for status in [400, 404, 413, 422] {
            relay
                .upstream()
                .script(Script::body(status, "application/json", body.to_string()));
            let response = relay.post("/v1/chat/completions", &request).await;
            assert_eq!(response.status(), status);
            assert_eq!(response.json(), body);
        }
        // The habit of some servers, which the SDKs cannot read, is put into the envelope.
        relay.upstream().script(Script::body(
            422,
            "application/json",
            r#"{"detail":"no such field"}"#,
        ));
        let response = relay.post("/v1/chat/completions", &request).await;
        assert_eq!(response.status(), 422);
        assert!(
            response.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains("no such field")
        );
    }
}

#[tokio::test]
async fn browsers_are_answered_when_the_setting_says_so() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_CORS_ALLOWED_ORIGINS", "https://chat.example.com");
    let relay = deployment.start();
    let preflight = Request::new("OPTIONS", "/v1/chat/completions")
        .header("origin", "https://chat.example.com")
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type",
        );
    let response = call(relay.address, &preflight).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(
        response.header("access-control-allow-origin"),
        Some("https://chat.example.com")
    );
    assert!(
        response
            .header("access-control-allow-headers")
            .unwrap()
            .contains("authorization")
    );
    let request = Request::post("/v1/chat/completions", &chat(2))
        .key(relay.key())
        .header("origin", "https://chat.example.com");
    let response = call(relay.address, &request).await.unwrap();
    assert!(
        response
            .header("access-control-expose-headers")
            .unwrap()
            .contains("x-request-id")
    );
    let foreign = Request::post("/v1/chat/completions", &chat(2))
        .key(relay.key())
        .header("origin", "https://evil.example");
    assert_eq!(
        call(relay.address, &foreign)
            .await
            .unwrap()
            .header("access-control-allow-origin"),
        None
    );
}

#[tokio::test]
async fn without_the_setting_no_cors_header_is_sent() {
    let relay = relay();
    let request = Request::post("/v1/chat/completions", &chat(2))
        .key(relay.key())
        .header("origin", "https://x.example");
    let response = call(relay.address, &request).await.unwrap();
    assert_eq!(response.header("access-control-allow-origin"), None);
}
