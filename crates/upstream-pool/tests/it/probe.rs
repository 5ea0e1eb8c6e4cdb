//! The check of a URL and a key.

use secrecy::SecretString;
use sluice_domain::upstream::{Deadlines, ProviderKind};
use sluice_upstream_pool::{ClientOptions, Dispatcher, ProbeError, ProbeReport};

use crate::server::{Server, Step, document, json};
use crate::support::{SECRET, upstream};

async fn probe(server: &Server) -> Result<ProbeReport, ProbeError> {
    let base = format!("http://{}/v1", server.address);
    let upstream = upstream(ProviderKind::OpenAi, Some(&base), Deadlines::default());
    let dispatcher = Dispatcher::new(ClientOptions::default());
    let result = dispatcher
        .probe(&upstream, Some(&SecretString::from(SECRET)))
        .await;
    assert!(!format!("{result:?}").contains(SECRET));
    result
}

#[tokio::test]
async fn a_working_upstream_lists_its_models() {
    let list = r#"{"object":"list","data":[{"id":"a","object":"model"},{"id":"b"}]}"#;
    let server = Server::start(vec![json("200 OK", list)]).await;
    assert_eq!(probe(&server).await.unwrap().models, ["a", "b"]);
    let seen = server.seen().remove(0);
    assert_eq!(seen.head.lines().next(), Some("GET /v1/models HTTP/1.1"));
    assert_eq!(
        seen.header("authorization"),
        Some(format!("Bearer {SECRET}").as_str())
    );
}

#[tokio::test]
async fn an_anthropic_upstream_is_asked_in_its_own_words() {
    let list = r#"{"data":[{"type":"model","id":"claude-a"}],"has_more":false}"#;
    let server = Server::start(vec![json("200 OK", list)]).await;
    let base = format!("http://{}", server.address);
    let upstream = upstream(ProviderKind::Anthropic, Some(&base), Deadlines::default());
    let key = SecretString::from(SECRET);
    let dispatcher = Dispatcher::new(ClientOptions::default());
    let report = dispatcher.probe(&upstream, Some(&key)).await.unwrap();
    assert_eq!(report.models, ["claude-a"]);
    let seen = server.seen().remove(0);
    assert_eq!(seen.head.lines().next(), Some("GET /v1/models HTTP/1.1"));
    assert_eq!(seen.header("x-api-key"), Some(SECRET));
    assert_eq!(seen.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(seen.header("authorization"), None);
}

#[tokio::test]
async fn what_is_wrong_is_said_plainly() {
    let refusal = r#"{"error":{"message":"Incorrect API key provided"}}"#;
    for (step, text) in [
        (
            json("401 Unauthorized", refusal),
            "refused the key with status 401: Incorrect API key",
        ),
        (
            document("404 Not Found", "", "nope"),
            "no list of models at http://127.0.0.1",
        ),
        (document("200 OK", "", "<html>"), "is not a list of models"),
        (
            json("500 Internal Server Error", "{}"),
            "answered with status 500",
        ),
        (Step::Close, "did not answer as an HTTP server does"),
    ] {
        let server = Server::start(vec![step]).await;
        let error = probe(&server).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_unreachable() {
    let dispatcher = Dispatcher::new(ClientOptions::default());
    let nobody = upstream(
        ProviderKind::OpenAi,
        Some("http://127.0.0.1:1/v1"),
        Deadlines::default(),
    );
    let error = dispatcher.probe(&nobody, None).await.unwrap_err();
    assert!(matches!(error, ProbeError::Unreachable { .. }), "{error:?}");

    let bad_key = SecretString::from("sk with space");
    let error = dispatcher.probe(&nobody, Some(&bad_key)).await.unwrap_err();
    assert!(matches!(error, ProbeError::UnusableKey), "{error:?}");

    let demo = upstream(ProviderKind::Demo, None, Deadlines::default());
    assert_eq!(
        dispatcher.probe(&demo, None).await.unwrap().models,
        ["demo"]
    );
}
