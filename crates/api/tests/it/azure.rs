//! Upstreams of kind `azure`: where they are asked, with which credential, and what they refuse.

use serde_json::{Value, json};
use sluice_testkit::{AzureRefusal, Quirk, Script};

use crate::deployment::{Backend, Deployment, Relay, UPSTREAM_KEY, chat, streamed_chat};

const DEPLOYMENT: &str = "my-deployment";

/// A relay whose model is a deployment of a fake Azure resource.
fn relay() -> Relay {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.upstream.azure(&[DEPLOYMENT, "same-name"]);
    azure_upstream(&deployment, "azure", &[]);
    deployment.run(&[
        "route",
        "create",
        "gpt",
        "--to",
        &format!("azure={DEPLOYMENT}"),
    ]);
    deployment.run(&["route", "create", "same-name", "--to", "azure"]);
    deployment.run(&["route", "create", "lost", "--to", "azure=no-such"]);
    deployment.start()
}

/// Makes an upstream of kind `azure` at the fake provider, with its key.
pub(crate) fn azure_upstream(deployment: &Deployment, name: &str, options: &[&str]) {
    let origin = deployment.upstream.origin();
    let mut arguments = vec![
        "upstream",
        "create",
        name,
        "--kind",
        "azure",
        "--url",
        &origin,
        "--allow-private",
    ];
    arguments.extend(options);
    deployment.run(&arguments);
    let file = deployment.folder.path().join("upstream.key");
    let file = file.display().to_string();
    deployment.run(&["upstream", "key", "add", name, "main", "--file", &file]);
}

fn for_model(model: &str, mut request: Value) -> Value {
    request["model"] = json!(model);
    request
}

#[tokio::test]
async fn a_deployment_is_asked_with_its_name_and_the_key_in_azures_header() {
    let relay = relay();
    for (model, deployment) in [("gpt", DEPLOYMENT), ("same-name", "same-name")] {
        for request in [chat(3), streamed_chat(3)] {
            let response = relay
                .post("/v1/chat/completions", &for_model(model, request))
                .await;
            assert_eq!(response.status(), 200, "{:?}", response.body);
            let served = relay.upstream().served().pop().unwrap();
            assert_eq!(served.target, "/openai/v1/chat/completions");
            assert_eq!(served.model.as_deref(), Some(deployment));
            assert_eq!(served.headers.get("api-key"), Some(UPSTREAM_KEY));
            assert_eq!(served.headers.get("authorization"), None);
        }
    }
    let embedding = json!({"model": "gpt", "input": "a"});
    assert_eq!(relay.post("/v1/embeddings", &embedding).await.status(), 200);
    let served = relay.upstream().served().pop().unwrap();
    assert_eq!(served.target, "/openai/v1/embeddings");
}

#[tokio::test]
async fn a_stream_that_begins_with_its_prompt_filter_is_whole_and_counted() {
    let relay = relay();
    relay
        .upstream()
        .default_script(Script::new().words(5).with(Quirk::PromptFilterFirst));
    let request = for_model("gpt", streamed_chat(3));
    let response = relay.post("/v1/chat/completions", &request).await;
    let text = String::from_utf8(response.body.to_vec()).unwrap();
    assert!(text.contains("prompt_filter_results"), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let served = relay.upstream().only_served();
    let record = relay.deployment.only_record().await;
    assert_eq!(
        (record.usage.input, record.usage.output),
        (served.input_tokens, 5)
    );
}

#[tokio::test]
async fn a_filtered_prompt_is_the_callers_fault_and_keeps_azures_words() {
    let relay = relay();
    for request in [chat(3), streamed_chat(3)] {
        relay
            .upstream()
            .script(Script::azure(AzureRefusal::ContentFilter));
        let response = relay
            .post("/v1/chat/completions", &for_model("gpt", request))
            .await;
        assert_eq!(response.status(), 400);
        let error = &response.json()["error"];
        assert_eq!(error["code"], "content_filter");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"], "prompt");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("content management policy"), "{message}");
    }
    assert_eq!(relay.upstream().served().len(), 2);
}

#[tokio::test]
async fn what_is_set_up_wrongly_is_not_the_callers_fault() {
    let relay = relay();
    let lost = for_model("lost", chat(3));
    let response = relay.post("/v1/chat/completions", &lost).await;
    assert_eq!(response.status(), 502, "{:?}", response.body);
    assert_eq!(response.json()["error"]["code"], "upstream_error");
    for (refusal, status, code) in [
        (AzureRefusal::ResourceNotFound, 502, "upstream_error"),
        (AzureRefusal::WrongKey, 502, "upstream_auth_error"),
    ] {
        relay.upstream().script(Script::azure(refusal));
        let response = relay
            .post("/v1/chat/completions", &for_model("same-name", chat(3)))
            .await;
        assert_eq!(response.status(), status, "{refusal:?}");
        assert_eq!(response.json()["error"]["code"], code, "{refusal:?}");
    }
}

#[tokio::test]
async fn a_spent_rate_tells_how_long_to_wait() {
    let relay = relay();
    relay
        .upstream()
        .default_script(Script::azure(AzureRefusal::RateLimited));
    let response = relay
        .post("/v1/chat/completions", &for_model("gpt", chat(3)))
        .await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.header("retry-after"), Some("42"));
}

#[tokio::test]
async fn the_command_line_tests_an_azure_upstream() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.upstream.azure(&[DEPLOYMENT]);
    azure_upstream(&deployment, "azure", &[]);
    let said = deployment.run(&["upstream", "test", "azure"]);
    assert!(said.contains("works; 3 models"), "{said}");
    assert_eq!(
        deployment.upstream.only_served().target,
        "/openai/v1/models"
    );
    // The other upstream of the deployment speaks to the same server as to OpenAI.
    let refused = deployment.try_run(&["upstream", "test", "fake"]);
    assert!(!refused.status.success());
    assert!(
        refused.stderr.contains("refused the key with status 401"),
        "{}",
        refused.stderr
    );
}
