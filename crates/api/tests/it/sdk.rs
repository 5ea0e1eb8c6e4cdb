//! The official SDKs of OpenAI and Anthropic as clients of the real binary.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::{AzureRefusal, ErrorShape, Program, Quirk, Script};
use tempfile::NamedTempFile;

use crate::compatible::compatible;
use crate::deployment::{Backend, Deployment, MODEL, Relay, on_both_databases};
use crate::messages::{CLAUDE, add_claude};

const SDK_PATIENCE: Duration = Duration::from_mins(3);

/// An SDK under test.
#[derive(Debug, Clone)]
pub(crate) struct Sdk {
    pub(crate) name: &'static str,
    program: String,
    arguments: Vec<String>,
    /// The path that its base URL ends in.
    base_path: &'static str,
}

/// The OpenAI SDKs.
pub(crate) fn sdks() -> Vec<Sdk> {
    installed("chat", &["openai", "openai-v6"], "/v1")
}

/// The Anthropic SDKs: of Node also the one before the version of October 2026, which sends its key
/// in another header.
pub(crate) fn claude_sdks() -> Vec<Sdk> {
    installed("messages", &["@anthropic-ai/sdk", "anthropic-v0"], "")
}

/// The SDKs that are installed; all of them must be when `REQUIRE_BACKENDS=1`.
fn installed(script_name: &str, packages: &[&'static str], base_path: &'static str) -> Vec<Sdk> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/sdk");
    let script = |name: &str| folder.join(name).display().to_string();
    let (python, node) = (variable("SLUICE_TEST_PYTHON"), variable("SLUICE_TEST_NODE"));
    let mut found = Vec::new();
    if let Some(program) = python {
        found.push(Sdk {
            name: "python",
            program,
            arguments: vec![script(&format!("{script_name}.py"))],
            base_path,
        });
    }
    if let Some(program) = node {
        for package in packages {
            let arguments = vec![script(&format!("{script_name}.mjs")), (*package).to_owned()];
            found.push(Sdk {
                name: package,
                program: program.clone(),
                arguments,
                base_path,
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
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Sdk {
    /// Returns whether it is one of Anthropic.
    pub(crate) fn calls_messages(&self) -> bool {
        self.base_path.is_empty()
    }

    /// Makes one call and returns what the SDK saw.
    async fn call(&self, relay: &Relay, case: &str, key: &str, model: &str) -> Value {
        let program = self.program(relay, case, key).env("MODEL", model);
        let printed = self.run(program, case, SDK_PATIENCE).await;
        serde_json::from_str(printed.trim()).unwrap()
    }

    /// Makes calls one after the other in one process, each a case and a model, and returns what the
    /// SDK saw of each.
    pub(crate) async fn call_many(&self, relay: &Relay, calls: &[(String, String)]) -> Vec<Value> {
        let mut list = NamedTempFile::new().unwrap();
        for (case, model) in calls {
            writeln!(list, "{case} {model}").unwrap();
        }
        let program = self.program(relay, "many", relay.key());
        let program = program.env("CALLS", list.path());
        let seconds = u64::try_from(calls.len()).unwrap();
        let patience = SDK_PATIENCE + Duration::from_secs(seconds);
        let printed = self.run(program, "many", patience).await;
        let reports = printed
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        reports.collect()
    }

    fn program(&self, relay: &Relay, case: &str, key: &str) -> Program {
        let mut arguments = self.arguments.clone();
        arguments.insert(1, case.to_owned());
        let base_url = format!("http://{}{}", relay.address, self.base_path);
        Program::new(&self.program)
            .args(arguments)
            .env("BASE_URL", base_url)
            .env("API_KEY", key)
    }

    async fn run(&self, program: Program, case: &str, patience: Duration) -> String {
        let finished = tokio::task::spawn_blocking(move || program.run(patience))
            .await
            .unwrap();
        assert!(
            finished.status.success(),
            "{} {case}: {}",
            self.name,
            finished.stderr
        );
        finished.stdout
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

    async fn the_demonstration_serves_both_kinds_of_sdks(deployment: Deployment) {
        deployment.run(&["upstream", "create", "demo", "--kind", "demo"]);
        deployment.run(&["route", "create", "shown", "--to", "demo"]);
        let relay = deployment.start();
        for (sdks, cases) in [
            (sdks(), ["chat", "chat_stream", "chat_helper"]),
            (claude_sdks(), ["message", "message_stream", "message_helper"]),
        ] {
            for sdk in sdks {
                for case in cases {
                    let seen = sdk.call(&relay, case, relay.key(), "shown").await;
                    assert_eq!(seen["error"], Value::Null, "{} {case}: {seen}", sdk.name);
                    let said = seen["content"].as_str().unwrap();
                    assert!(said.contains("demonstration"), "{} {case}: {seen}", sdk.name);
                }
            }
        }
    }

    async fn messages_work_streaming_and_not(deployment: Deployment) {
        add_claude(&deployment);
        let relay = deployment.start();
        relay.upstream().default_script(Script::new().words(8).cached_tokens(3));
        let text = sluice_testkit::words::text(8);
        let mut count = 0;
        for sdk in claude_sdks() {
            for case in ["message", "message_beta", "message_stream", "message_helper", "async_message_stream"] {
                if case.starts_with("async") && sdk.name != "python" {
                    continue;
                }
                let seen = sdk.call(&relay, case, relay.key(), CLAUDE).await;
                assert_eq!(seen["error"], Value::Null, "{} {case}: {seen}", sdk.name);
                assert_eq!(seen["content"], text, "{} {case}: {seen}", sdk.name);
                assert_eq!(seen["stop_reason"], "end_turn", "{} {case}: {seen}", sdk.name);
                assert!(seen["request_id"].as_str().unwrap().starts_with("req_"), "{seen}");
                if !case.ends_with("_stream") {
                    assert_eq!((&seen["usage"]["output_tokens"], &seen["usage"]["cache_read_input_tokens"]), (&json!(8), &json!(3)), "{} {case}: {seen}", sdk.name);
                }
                count += 1;
                assert_eq!(relay.upstream().served().len(), count, "{} {case}: one call, one request", sdk.name);
            }
        }
        let records = relay.deployment.wait_for_records(count).await;
        for (record, served) in records.iter().zip(relay.upstream().served()) {
            assert_eq!((record.usage.input, record.usage.output), (served.input_tokens, served.output_tokens));
        }
        for sdk in claude_sdks() {
            let seen = sdk.call(&relay, "count", relay.key(), CLAUDE).await;
            assert_eq!(seen["input_tokens"], 4 + 2, "{} count: {seen}", sdk.name);
            let seen = sdk.call(&relay, "models", relay.key(), CLAUDE).await;
            assert_eq!(seen["models"], json!([CLAUDE, MODEL]), "{} models: {seen}", sdk.name);
            let seen = sdk.call(&relay, "model", relay.key(), CLAUDE).await;
            assert_eq!(seen["model"], CLAUDE, "{} model: {seen}", sdk.name);
        }
    }
}

// What follows does not touch the database: once is enough.

#[tokio::test]
async fn errors_are_the_ones_that_the_claude_sdks_know() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    let empty = deployment.issue_key("empty", &["--quota", "0"]);
    add_claude(&deployment);
    let relay = deployment.start();
    let key = relay.key();
    for sdk in claude_sdks() {
        // Newer SDKs have classes of their own for some errors.
        let spent = &["RateLimitError", "EnforcedSpendLimitReachedError"][..];
        for (key, model, script, classes) in [
            (
                "sk-wrong-key-0000",
                CLAUDE,
                None,
                &["AuthenticationError"][..],
            ),
            (key, "claude-none", None, &["NotFoundError"]),
            (key, MODEL, None, &["BadRequestError"]),
            (&empty, CLAUDE, None, spent),
            (key, CLAUDE, Some(Script::refuse(400)), &["BadRequestError"]),
        ] {
            for case in ["message", "message_stream"] {
                if let Some(script) = &script {
                    relay.upstream().script(script.clone());
                }
                let seen = sdk.call(&relay, case, key, model).await;
                let error = &seen["error"];
                let class = error["class"].as_str().unwrap_or_default();
                assert!(classes.contains(&class), "{} {case}: {seen}", sdk.name);
                assert_eq!(seen["attempts"], 1, "{} {case}: {seen}", sdk.name);
                assert!(
                    error["request_id"].as_str().unwrap().starts_with("req_"),
                    "{seen}"
                );
            }
        }
        let seen = sdk.call(&relay, "message", &empty, CLAUDE).await;
        assert_eq!(
            seen["error"]["code"], "enforced_spend_limit_reached",
            "{seen}"
        );
    }
}

#[tokio::test]
async fn claude_sdks_wait_for_a_limit_and_leave_it_to_the_relay_to_repeat_failures() {
    let overloaded = &["OverloadedError", "InternalServerError"][..];
    for (status, classes, attempts) in [
        // It tells how long to wait.
        (429, &["RateLimitError"][..], 3),
        (529, overloaded, 1),
    ] {
        for sdk in claude_sdks() {
            for case in ["message", "message_stream"] {
                // What failed before is no reason to pass the upstream over.
                let deployment = Deployment::new(Backend::Sqlite).unwrap();
                add_claude(&deployment);
                let relay = deployment.start();
                let refusal = Script::refuse(status).header("retry-after-ms", "10");
                relay.upstream().default_script(refusal);
                let seen = sdk.call(&relay, case, relay.key(), CLAUDE).await;
                let class = seen["error"]["class"].as_str().unwrap_or_default();
                assert!(classes.contains(&class), "{} {case}: {seen}", sdk.name);
                assert_eq!(seen["attempts"], attempts, "{} {case}: {seen}", sdk.name);
            }
        }
    }
}

#[tokio::test]
async fn a_broken_message_stream_always_raises() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    add_claude(&deployment);
    let relay = deployment.start();
    for sdk in claude_sdks() {
        for (name, script) in [
            ("cut", Script::new().words(8).cut_at(4)),
            ("reset", Script::new().words(8).reset_at(4)),
            ("clean end", Script::new().words(8).end_at(4)),
            ("half an event", Script::new().words(8).half_event_at(4)),
            ("no stop", Script::new().words(8).with(Quirk::NoDone)),
            (
                "error event",
                Script::new().words(8).error_at(4, ErrorShape::Object),
            ),
        ] {
            for case in ["message_stream", "message_helper"] {
                relay.upstream().script(script.clone());
                let seen = sdk.call(&relay, case, relay.key(), CLAUDE).await;
                assert!(
                    seen["error"].is_object(),
                    "{} {case} {name} looks complete: {seen}",
                    sdk.name
                );
                let kind = if name == "error event" {
                    "overloaded_error"
                } else {
                    "api_error"
                };
                assert_eq!(
                    seen["error"]["type"], kind,
                    "{} {case} {name}: {seen}",
                    sdk.name
                );
                assert_eq!(seen["attempts"], 1, "{} {case} {name}: {seen}", sdk.name);
            }
        }
    }
}

/// A habit of other servers, as chunks, and what their model meant.
struct Habit {
    name: &'static str,
    chunks: Vec<Value>,
    content: &'static str,
    finish_reason: &'static str,
    /// Name and arguments of each call.
    calls: &'static [(&'static str, &'static str)],
}

impl Default for Habit {
    fn default() -> Self {
        Self {
            name: "",
            chunks: Vec::new(),
            content: "one two",
            finish_reason: "stop",
            calls: &[],
        }
    }
}

impl Habit {
    fn script(&self) -> Script {
        let events = self.chunks.iter().map(|chunk| format!("data: {chunk}\n\n"));
        Script::events(events.chain(["data: [DONE]\n\n".to_owned()]))
    }
}

/// A chunk with one choice, in OpenAI's form where the delta is.
fn chunk(delta: &Value, finish: &Value) -> Value {
    json!({"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
}

/// The words of an ordinary answer, each with more members in its delta.
fn words(more: &Value) -> Vec<Value> {
    let delta = |text: &str| {
        let mut delta = more.clone();
        delta["content"] = json!(text);
        chunk(&delta, &Value::Null)
    };
    vec![delta("one"), delta(" two")]
}

fn stop() -> Value {
    chunk(&json!({}), &json!("stop"))
}

fn first() -> Value {
    chunk(&json!({"role": "assistant", "content": ""}), &Value::Null)
}

fn calls(items: &Value) -> Value {
    chunk(&json!({"tool_calls": items}), &Value::Null)
}

/// One for each row of the table of what breaks the helpers of the SDKs.
fn habits() -> Vec<Habit> {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5});
    let with = |mut chunk: Value, key: &str, value: &Value| {
        chunk[key] = value.clone();
        chunk
    };
    let begin = |index: i32, id: &str, name: &str| json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}});
    let go_on = |index: i32, text: &str| json!({"index": index, "function": {"arguments": text}});
    let one_call: &[_] = &[("f", "{\"a\":1}")];
    let two_calls: &[_] = &[("f", "{\"a\":1}"), ("g", "{\"b\":2}")];
    let called = |name, chunks: Vec<Value>, calls| Habit {
        name,
        chunks: [
            vec![first()],
            chunks,
            vec![chunk(&json!({}), &json!("tool_calls"))],
        ]
        .concat(),
        content: "",
        finish_reason: "tool_calls",
        calls,
    };
    let spoken = |name, chunks: Vec<Value>| Habit {
        name,
        chunks,
        ..Habit::default()
    };
    let said = words(&json!({}));
    vec![
        spoken(
            "role in each delta",
            [words(&json!({"role": "assistant"})), vec![stop()]].concat(),
        ),
        spoken("no role", [said.clone(), vec![stop()]].concat()),
        called(
            "id and name in each delta",
            vec![
                calls(
                    &json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"a\""}}]),
                ),
                calls(
                    &json!([{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ":1}"}}]),
                ),
            ],
            one_call,
        ),
        called(
            "all calls with index 0",
            vec![
                calls(&json!([begin(0, "a", "f")])),
                calls(&json!([go_on(0, "{\"a\":1}")])),
                calls(&json!([begin(0, "b", "g")])),
                calls(&json!([go_on(0, "{\"b\":2}")])),
            ],
            two_calls,
        ),
        called(
            "calls without an index, and arguments as an object",
            vec![calls(&json!([
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                {"id": "b", "function": {"name": "g", "arguments": {"b": 2}}},
            ]))],
            two_calls,
        ),
        called(
            "another id for each piece",
            vec![
                calls(&json!([begin(0, "a", "f")])),
                calls(&json!([{"index": 0, "id": "b", "function": {"arguments": "{\"a\":"}}])),
                calls(&json!([{"index": 0, "id": "c", "function": {"arguments": "1}"}}])),
            ],
            one_call,
        ),
        Habit {
            chunks: vec![
                first(),
                calls(&json!([{"function": {"name": "f", "arguments": "{\"a\":1}"}}])),
                stop(),
            ],
            ..called(
                "`stop` with calls, without id and type",
                Vec::new(),
                one_call,
            )
        },
        spoken("no finish reason", [vec![first()], said.clone()].concat()),
        spoken(
            "an empty finish reason",
            [
                vec![first(), chunk(&json!({"content": "one two"}), &json!(""))],
                vec![stop()],
            ]
            .concat(),
        ),
        spoken(
            "finish reason twice",
            [vec![first()], said.clone(), vec![stop(), stop()]].concat(),
        ),
        spoken(
            "`choices` null",
            [
                vec![first()],
                said.clone(),
                vec![json!({"id": "c", "choices": null}), stop()],
            ]
            .concat(),
        ),
        spoken(
            "`delta` null",
            [
                vec![first()],
                said.clone(),
                vec![chunk(&Value::Null, &json!("stop"))],
            ]
            .concat(),
        ),
        spoken(
            "usage in each chunk",
            [first()]
                .into_iter()
                .chain(said.clone())
                .chain([stop()])
                .map(|chunk| with(chunk, "usage", &usage))
                .collect(),
        ),
        spoken(
            "a chunk after the usage",
            [
                vec![first()],
                said.clone(),
                vec![json!({"choices": [], "usage": usage}), stop()],
            ]
            .concat(),
        ),
        spoken(
            "another id, time and model in each chunk",
            [first()]
                .into_iter()
                .chain(said.clone())
                .chain([stop()])
                .enumerate()
                .map(|(n, chunk)| {
                    with(
                        with(
                            with(chunk, "id", &json!(format!("c{n}"))),
                            "created",
                            &json!(n),
                        ),
                        "model",
                        &Value::Null,
                    )
                })
                .collect(),
        ),
        spoken(
            "reasoning",
            [
                vec![first(), chunk(&json!({"reasoning": "so"}), &Value::Null)],
                said,
                vec![stop()],
            ]
            .concat(),
        ),
    ]
}

#[tokio::test]
async fn what_other_servers_do_is_read_by_every_sdk_as_the_model_meant_it() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    compatible(&deployment);
    let relay = deployment.start();
    for sdk in sdks() {
        for habit in habits() {
            relay.upstream().script(habit.script());
            let seen = sdk
                .call(&relay, "chat_helper_usage", relay.key(), MODEL)
                .await;
            let shown = format!("{} {}: {seen}", sdk.name, habit.name);
            assert_eq!(seen["error"], Value::Null, "{shown}");
            assert_eq!(
                seen["content"].as_str().unwrap_or_default(),
                habit.content,
                "{shown}"
            );
            assert_eq!(seen["finish_reason"], habit.finish_reason, "{shown}");
            assert_eq!(seen["final_role"], "assistant", "{shown}");
            let calls = seen["tool_calls"].as_array().unwrap();
            let read: Vec<_> = calls
                .iter()
                .map(|call| {
                    (
                        call["name"].as_str().unwrap(),
                        call["arguments"].as_str().unwrap(),
                    )
                })
                .collect();
            assert_eq!(read, habit.calls, "{shown}");
            for call in calls {
                assert_eq!(call["type"], "function", "{shown}");
                assert!(
                    matches!(call["id"].as_str(), Some(id) if id == "a" || id == "b" || id.starts_with("call_")),
                    "{shown}"
                );
            }
            if habit.name.contains("usage") {
                assert_eq!(seen["usage"]["total_tokens"], 5, "{shown}");
                assert_eq!(seen["chunks_with_usage"], 1, "{shown}");
            }
            if habit.name == "reasoning" && sdk.name == "python" {
                assert_eq!(seen["reasoning"], json!(["so", "so"]), "{shown}");
            }
        }
    }
}

#[tokio::test]
async fn what_azure_sends_is_read_by_every_sdk() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.upstream.azure(&["gpt"]);
    crate::azure::azure_upstream(&deployment, "azure", &[]);
    deployment.run(&["route", "create", "gpt", "--to", "azure"]);
    let relay = deployment.start();
    let filtered = Script::new().words(4).with(Quirk::PromptFilterFirst);
    relay.upstream().default_script(filtered);
    let text = sluice_testkit::words::text(4);
    for sdk in sdks() {
        for case in [
            "chat",
            "chat_stream",
            "chat_helper",
            "chat_helper_usage",
            "embedding",
        ] {
            let seen = sdk.call(&relay, case, relay.key(), "gpt").await;
            assert_eq!(seen["error"], Value::Null, "{} {case}: {seen}", sdk.name);
            if case != "embedding" {
                assert_eq!(seen["content"], text, "{} {case}: {seen}", sdk.name);
            }
        }
        let refusal = Script::azure(AzureRefusal::ContentFilter);
        relay.upstream().script(refusal);
        let seen = sdk.call(&relay, "chat", relay.key(), "gpt").await;
        assert_eq!(seen["error"]["class"], "BadRequestError", "{seen}");
        assert_eq!(seen["error"]["code"], "content_filter", "{seen}");
    }
}
