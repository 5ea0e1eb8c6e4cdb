//! The official OpenAI SDKs as clients of the real binary.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::{Program, Script};

use crate::deployment::{MODEL, Relay, on_both_databases};

const SDK_PATIENCE: Duration = Duration::from_mins(3);

/// An SDK under test.
#[derive(Debug, Clone)]
struct Sdk {
    name: &'static str,
    program: String,
    arguments: Vec<String>,
}

/// The SDKs that are installed; all of them must be when `REQUIRE_BACKENDS=1`.
fn sdks() -> Vec<Sdk> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/sdk");
    let script = |name: &str| folder.join(name).display().to_string();
    let (python, node) = (variable("SLUICE_TEST_PYTHON"), variable("SLUICE_TEST_NODE"));
    let mut found = Vec::new();
    if let Some(program) = python {
        found.push(Sdk {
            name: "python",
            program,
            arguments: vec![script("chat.py")],
        });
    }
    if let Some(program) = node {
        for package in ["openai", "openai-v6"] {
            let arguments = vec![script("chat.mjs"), package.to_owned()];
            found.push(Sdk {
                name: package,
                program: program.clone(),
                arguments,
            });
        }
    }
    let is_required = variable("REQUIRE_BACKENDS").is_some();
    assert!(
        found.len() == 3 || !is_required,
        "REQUIRE_BACKENDS=1, but only {found:?} are installed"
    );
    found
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment what is installed"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Sdk {
    /// Makes one call and returns what the SDK saw.
    async fn call(&self, relay: &Relay, case: &str, key: &str, model: &str) -> Value {
        let mut arguments = self.arguments.clone();
        arguments.insert(1, case.to_owned());
        let program = Program::new(&self.program)
            .args(arguments)
            .env("BASE_URL", format!("http://{}/v1", relay.address))
            .env("API_KEY", key)
            .env("MODEL", model);
        let finished = tokio::task::spawn_blocking(move || program.run(SDK_PATIENCE))
            .await
            .unwrap();
        assert!(
            finished.status.success(),
            "{} {case}: {}",
            self.name,
            finished.stderr
        );
        serde_json::from_str(finished.stdout.trim()).unwrap()
    }
}

on_both_databases! {
    async fn chat_works_streaming_and_not(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().default_script(Script::new().words(8));
        let text = sluice_testkit::words::text(8);
        let mut count = 0;
        for sdk in sdks() {
            for case in ["chat", "chat_stream", "chat_stream_usage", "chat_helper", "chat_helper_usage", "chat_large", "chat_extra"] {
                let seen = sdk.call(&relay, case, relay.key(), MODEL).await;
                assert_eq!(seen["error"], Value::Null, "{} {case}: {seen}", sdk.name);
                assert_eq!(seen["content"], text, "{} {case}: {seen}", sdk.name);
                assert_eq!(seen["finish_reason"], "stop", "{} {case}: {seen}", sdk.name);
                count += 1;
                let wants_usage = !matches!(case, "chat_stream" | "chat_helper");
                assert_eq!(seen["usage"].is_object(), wants_usage, "{} {case}: {seen}", sdk.name);
                assert_eq!(relay.upstream().served().len(), count, "{} {case}: one call, one request", sdk.name);
            }
        }
        let records = relay.deployment.wait_for_records(count).await;
        for (record, served) in records.iter().zip(relay.upstream().served()) {
            assert_eq!((record.usage.input, record.usage.output), (served.input_tokens, served.output_tokens));
        }
    }

    async fn the_other_endpoints_work(deployment: Deployment) {
        deployment.run(&["route", "create", "org/model:7b", "--to", "fake"]);
        let relay = deployment.start();
        for sdk in sdks() {
            for case in ["completion", "completion_stream", "embedding", "embedding_float", "models"] {
                let seen = sdk.call(&relay, case, relay.key(), MODEL).await;
                assert_eq!(seen["error"], Value::Null, "{} {case}: {seen}", sdk.name);
                if case.starts_with("embedding") {
                    let vectors = seen["vectors"].as_array().unwrap();
                    assert_eq!(vectors.len(), 2, "{seen}");
                    assert_ne!(vectors[0], json!([]), "{seen}");
                }
            }
            let seen = sdk.call(&relay, "model", relay.key(), "org/model:7b").await;
            assert_eq!(seen["error"], Value::Null, "{} model: {seen}", sdk.name);
        }
    }

    async fn errors_are_the_ones_that_the_sdks_know(deployment: Deployment) {
        let mut deployment = deployment;
        deployment.set("SLUICE_RELAY_KEEP_ALIVE_MS", "1000");
        let empty = deployment.issue_key("empty", &["--quota", "0"]);
        let relay = deployment.start();
        for sdk in sdks() {
            let seen = sdk.call(&relay, "chat", "sk-wrong-key-0000", MODEL).await;
            assert_eq!((&seen["error"]["class"], &seen["error"]["code"]), (&json!("AuthenticationError"), &json!("invalid_api_key")), "{seen}");
            assert!(seen["error"]["request_id"].as_str().unwrap().starts_with("req_"), "{seen}");
            let seen = sdk.call(&relay, "chat", relay.key(), "no-such-model").await;
            assert_eq!((&seen["error"]["class"], &seen["error"]["code"]), (&json!("NotFoundError"), &json!("model_not_found")), "{seen}");
            let seen = sdk.call(&relay, "chat", &empty, MODEL).await;
            assert_eq!((&seen["error"]["class"], &seen["error"]["code"]), (&json!("RateLimitError"), &json!("insufficient_quota")), "{seen}");
            assert_eq!(seen["attempts"], 1, "a spent quota is not tried again: {seen}");
            relay.upstream().script(Script::refuse(400));
            let seen = sdk.call(&relay, "chat_extra", relay.key(), MODEL).await;
            assert_eq!(seen["error"]["class"], "BadRequestError", "{seen}");
        }
    }

    async fn a_broken_stream_always_raises(deployment: Deployment) {
        let relay = deployment.start();
        for sdk in sdks() {
            for (name, script) in [
                ("cut", Script::new().words(8).cut_at(4)),
                ("reset", Script::new().words(8).reset_at(4)),
                ("clean end", Script::new().words(8).end_at(4)),
                ("half an event", Script::new().words(8).half_event_at(4)),
            ] {
                for case in ["chat_stream", "chat_helper"] {
                    relay.upstream().script(script.clone());
                    let seen = sdk.call(&relay, case, relay.key(), MODEL).await;
                    assert!(seen["error"].is_object(), "{} {case} {name} looks complete: {seen}", sdk.name);
                    assert_eq!(seen["error"]["code"], "upstream_error", "{} {case} {name}: {seen}", sdk.name);
                }
            }
        }
    }
}
