//! What an upstream gets to see.

use http::{HeaderName, HeaderValue};
use secrecy::SecretString;
use sluice_domain::route::Endpoint;
use sluice_domain::upstream::{Deadlines, ProviderKind};

use crate::server::{Server, chunk, end, json, stream_head};
use crate::support::{Relay, SECRET, plan, upstream};

/// What clients and proxies before us send, besides what is allowed.
const PRIVATE: &[(&str, &str)] = &[
    ("authorization", "Bearer rk-client-canary"),
    ("x-api-key", "client-canary"),
    ("api-key", "client-canary"),
    ("cookie", "session=client-canary"),
    ("proxy-authorization", "Basic client-canary"),
    ("host", "client-canary.example"),
    ("connection", "client-canary"),
    ("transfer-encoding", "client-canary"),
    ("te", "client-canary"),
    ("upgrade", "client-canary"),
    ("x-forwarded-for", "client-canary"),
    ("x-forwarded-host", "client-canary"),
    ("forwarded", "for=client-canary"),
    ("x-real-ip", "client-canary"),
    ("traceparent", "client-canary"),
    ("x-stainless-os", "client-canary"),
    ("openai-organization", "client-canary"),
    ("openai-project", "client-canary"),
    ("user-agent", "client-canary"),
    ("accept", "client-canary"),
    ("accept-encoding", "client-canary"),
    ("content-type", "client-canary"),
    ("content-length", "client-canary"),
    ("expect", "client-canary"),
    ("x-portkey-custom-host", "client-canary"),
    ("idempotency-key", "client-canary"),
];

#[tokio::test]
async fn a_request_has_our_headers_and_nothing_of_the_clients() {
    let server = Server::start(vec![json("200 OK", "{}")]).await;
    let mut relay = Relay::to(&server);
    for (name, value) in PRIVATE {
        relay.headers.insert(
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        );
    }
    relay
        .headers
        .insert("openai-beta", HeaderValue::from_static("assistants=v2"));
    relay.ask().await.unwrap();

    let seen = server.seen().remove(0);
    assert!(
        !seen.head.contains("canary.example") && !seen.head.contains("client-canary"),
        "{}",
        seen.head
    );
    assert_eq!(
        seen.head.lines().next(),
        Some("POST /base/v1/chat/completions HTTP/1.1")
    );
    assert_eq!(
        seen.header("host"),
        Some(server.address.to_string().as_str())
    );
    assert_eq!(
        seen.header("authorization"),
        Some(format!("Bearer {SECRET}").as_str())
    );
    assert_eq!(seen.header("accept"), Some("application/json"));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("openai-beta"), Some("assistants=v2"));
    assert!(seen.header("user-agent").unwrap().starts_with("sluice/"));
    assert_eq!(
        seen.header_names(),
        [
            "accept",
            "accept-encoding",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "openai-beta",
            "user-agent",
        ]
    );
    assert_eq!(seen.body, r#"{"model":"real"}"#);
}

#[tokio::test]
async fn each_endpoint_has_its_path_and_a_stream_its_accept() {
    let server = Server::start(vec![json("200 OK", "{}")]).await;
    let relay = Relay::to(&server);
    relay.call(Endpoint::Completions, false).await.unwrap();
    relay.call(Endpoint::Embeddings, false).await.unwrap();
    let lines: Vec<String> = server
        .seen()
        .iter()
        .map(|s| s.head.lines().next().unwrap().to_owned())
        .collect();
    assert_eq!(
        lines,
        [
            "POST /base/v1/completions HTTP/1.1",
            "POST /base/v1/embeddings HTTP/1.1"
        ]
    );

    let server = Server::start(vec![stream_head(), chunk("data: {}\n\n"), end()]).await;
    Relay::to(&server).stream().await.unwrap();
    assert_eq!(server.seen()[0].header("accept"), Some("text/event-stream"));
}

#[tokio::test]
async fn azure_is_asked_by_deployment_or_by_its_newer_paths_and_with_its_own_header() {
    for (version, target, models) in [
        (
            Some("2024-10-21"),
            "/openai/deployments/real/chat/completions?api-version=2024-10-21",
            "/openai/models?api-version=2024-10-21",
        ),
        (
            Some("preview"),
            "/openai/v1/chat/completions?api-version=preview",
            "/openai/v1/models?api-version=preview",
        ),
        (None, "/openai/v1/chat/completions", "/openai/v1/models"),
    ] {
        let server = Server::start(vec![json("200 OK", r#"{"data":[]}"#)]).await;
        let base = format!("http://{}", server.address);
        let mut azure = upstream(ProviderKind::Azure, Some(&base), Deadlines::default());
        azure.api_version = version.map(|version| version.parse().unwrap());
        let relay = Relay::planned(plan(azure.clone()));
        relay.ask().await.unwrap();
        let secret = SecretString::from(SECRET);
        relay.dispatcher.probe(&azure, Some(&secret)).await.unwrap();
        for (seen, target) in server.seen().iter().zip([target, models]) {
            let line = seen.head.lines().next().unwrap();
            assert_eq!(line.split(' ').nth(1), Some(target));
            assert_eq!(seen.header("api-key"), Some(SECRET));
            assert_eq!(seen.header("authorization"), None);
        }
    }
}
