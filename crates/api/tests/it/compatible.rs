//! Upstreams of kind `compatible`: what other servers do differently, and what clients see of it.

use serde_json::{Value, json};
use sluice_testkit::{Quirk, Script};

use crate::deployment::{Backend, Deployment, MODEL, Relay, UPSTREAM_MODEL, chat, streamed_chat};

/// The model of an upstream of kind `openai` at the same server.
const NATIVE: &str = "native-model";

/// A relay whose model is served by a compatible server.
fn relay() -> Relay {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    compatible(&deployment);
    deployment.start()
}

/// Leads the model of the deployment to the fake provider as a compatible server.
pub(crate) fn compatible(deployment: &Deployment) {
    let url = deployment.upstream.base_url();
    let native = format!("fake={UPSTREAM_MODEL}");
    deployment.run(&["route", "create", NATIVE, "--to", &native]);
    deployment.run(&[
        "upstream",
        "create",
        "local",
        "--kind",
        "compatible",
        "--url",
        &url,
        "--allow-private",
    ]);
    deployment.run(&["route", "delete", MODEL]);
    let target = format!("local={UPSTREAM_MODEL}");
    deployment.run(&["route", "create", MODEL, "--to", &target]);
}

async fn stream(relay: &Relay, request: &Value) -> String {
    let response = relay.post("/v1/chat/completions", request).await;
    assert_eq!(response.status(), 200, "{:?}", response.body);
    String::from_utf8(response.body.to_vec()).unwrap()
}

fn event(chunk: &Value) -> String {
    format!("data: {chunk}\n\n")
}

/// The chunks of a stream, `[DONE]` not counted.
fn chunks(stream: &str) -> Vec<Value> {
    stream
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect()
}

#[tokio::test]
async fn a_server_that_refuses_stream_options_is_asked_once_more_and_not_asked_for_them_again() {
    let relay = relay();
    relay.upstream().default_script(
        Script::new()
            .words(5)
            .with(Quirk::RefusesStreamOptions)
            .with(Quirk::NoUsage),
    );
    let mut asking = streamed_chat(3);
    asking["stream_options"] = json!({"include_usage": true});
    for (number, request) in [streamed_chat(3), asking, streamed_chat(3)]
        .iter()
        .enumerate()
    {
        let text = stream(&relay, request).await;
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let served = relay.upstream().served();
        assert_eq!(served.len(), number + 2, "only the first is asked twice");
        assert_eq!(served[number + 1].status, Some(200));
        assert_eq!(served[number + 1].json().get("stream_options"), None);
    }
    let served = relay.upstream().served();
    assert_eq!(served[0].status, Some(400));
    assert_eq!(
        served[0].json()["stream_options"],
        json!({"include_usage": true})
    );
    for record in relay.deployment.wait_for_records(3).await {
        assert_eq!(record.ending, "finished");
        assert_eq!(record.basis, "counted");
        assert!(record.usage.output > 0);
    }
}

#[tokio::test]
async fn a_refusal_of_what_the_client_chose_is_for_the_client_and_teaches_nothing() {
    let relay = relay();
    relay
        .upstream()
        .default_script(Script::new().words(5).with(Quirk::RefusesStreamOptions));
    let mut request = streamed_chat(3);
    request["stream_options"] = json!({"include_usage": true, "made_up": 1});
    let response = relay.post("/v1/chat/completions", &request).await;
    assert_eq!(response.status(), 400);
    let message = response.json()["error"]["message"].to_string();
    assert!(message.contains("stream_options"), "{message}");
    assert_eq!(relay.upstream().served().len(), 1);
    relay.upstream().default_script(Script::new().words(5));
    stream(&relay, &streamed_chat(3)).await;
    let served = relay.upstream().served().pop().unwrap();
    assert_eq!(
        served.json()["stream_options"],
        json!({"include_usage": true})
    );
}

#[tokio::test]
async fn a_refusal_for_another_reason_teaches_nothing() {
    let relay = relay();
    let refusal = r#"{"detail":[{"loc":["body","messages"],"msg":"bad","input":{"stream_options":{"include_usage":true}}}]}"#;
    let refused = Script::body(422, "application/json", refusal);
    relay.upstream().script(refused.clone()).script(refused);
    let response = relay.post("/v1/chat/completions", &streamed_chat(3)).await;
    assert_eq!(response.status(), 422);
    stream(&relay, &streamed_chat(3)).await;
    let served = relay.upstream().served();
    assert_eq!(served.len(), 3);
    assert!(served[2].json().get("stream_options").is_some());
}

#[tokio::test]
async fn chunks_are_brought_into_form_for_compatible_servers_only() {
    let relay = relay();
    let script = Script::new()
        .words(4)
        .with(Quirk::RoleRepeated)
        .with(Quirk::UsageEveryChunk);
    relay.upstream().default_script(script);
    let roles = |text: &str| {
        let read = chunks(text);
        let with_role = |chunk: &&Value| chunk["choices"][0]["delta"]["role"].is_string();
        read.iter().filter(with_role).count()
    };
    let usages = |text: &str| {
        let read = chunks(text);
        read.iter()
            .filter(|chunk| chunk["usage"].is_object())
            .count()
    };
    let mut request = streamed_chat(3);
    request["stream_options"] = json!({"include_usage": true});
    let formed = stream(&relay, &request).await;
    assert_eq!((roles(&formed), usages(&formed)), (1, 1), "{formed}");
    let last = chunks(&formed).pop().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 4);
    let silent = stream(&relay, &streamed_chat(3)).await;
    assert_eq!(usages(&silent), 0, "{silent}");

    request["model"] = json!(NATIVE);
    let native = stream(&relay, &request).await;
    assert_eq!((roles(&native), usages(&native)), (6, 7), "{native}");
    for record in relay.deployment.wait_for_records(3).await {
        assert_eq!((&*record.basis, record.usage.output), ("reported", 4));
    }
}

#[tokio::test]
async fn a_stream_in_form_passes_byte_for_byte() {
    let relay = relay();
    let chunk = |delta: Value, finish: Value| {
        json!({"id": "c", "object": "chat.completion.chunk", "created": 5, "model": "m", "x": [1.50],
            "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]})
    };
    let mut events: Vec<String> = vec![event(&chunk(
        json!({"role": "assistant", "content": ""}),
        Value::Null,
    ))];
    for word in ["Hello", " \\ world", "\n", " again"] {
        events.push(event(&chunk(json!({"content": word}), Value::Null)));
    }
    events.push(event(&chunk(json!({}), json!("stop"))));
    events.push("data: [DONE]\n\n".to_owned());
    let sent = events.concat();
    relay.upstream().script(Script::events(events));
    assert_eq!(stream(&relay, &streamed_chat(3)).await, sent);
}

#[tokio::test]
async fn an_end_without_done_is_an_end_only_when_the_model_had_finished() {
    let relay = relay();
    let finished = Script::new().words(4).with(Quirk::NoDone);
    relay.upstream().script(finished.clone());
    let text = stream(&relay, &streamed_chat(3)).await;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    relay
        .upstream()
        .script(finished.with(Quirk::NoFinishReason));
    let text = stream(&relay, &streamed_chat(3)).await;
    assert!(text.contains("data: {\"error\":{"), "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    // What says that it is done without a reason gets one.
    relay
        .upstream()
        .script(Script::new().words(4).with(Quirk::NoFinishReason));
    let text = stream(&relay, &streamed_chat(3)).await;
    let last = chunks(&text).pop().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop", "{text}");
}

#[tokio::test]
async fn a_whole_answer_is_brought_into_form_and_counted() {
    let relay = relay();
    let answer = json!({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": null,
        "tool_calls": [{"function": {"name": "f", "arguments": {"city": "Ulm"}}}]}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 4}});
    let body = format!("\n\n{answer}");
    let script = Script::body(200, "application/json", body);
    relay.upstream().default_script(script);
    let response = relay.post("/v1/chat/completions", &chat(3)).await;
    let seen = response.json();
    let choice = &seen["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["role"], "assistant");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["arguments"], "{\"city\":\"Ulm\"}");
    assert_eq!(call["type"], "function");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert!(seen["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(seen["model"], UPSTREAM_MODEL);
    let record = relay.deployment.only_record().await;
    assert_eq!(
        (
            record.usage.input,
            record.usage.cached_input,
            record.usage.output
        ),
        (9, 5, 4)
    );
}

#[tokio::test]
async fn a_flat_error_in_the_middle_and_one_with_success_are_errors() {
    let relay = relay();
    let flat = r#"{"object":"error","message":"the engine is dead","type":"InternalServerError","param":null,"code":500}"#;
    let first = json!({"choices": [{"delta": {"content": "a"}}]});
    relay
        .upstream()
        .script(Script::events([event(&first), format!("data: {flat}\n\n")]));
    let text = stream(&relay, &streamed_chat(3)).await;
    let last = chunks(&text).pop().unwrap();
    assert_eq!(last["error"]["message"], "the engine is dead", "{text}");
    assert!(!text.contains("[DONE]"), "{text}");
    // It is tried again, as every failure of a server.
    let failed = Script::body(200, "application/json", flat);
    relay.upstream().default_script(failed);
    let response = relay.post("/v1/chat/completions", &chat(3)).await;
    assert_eq!(response.status(), 502, "{:?}", response.body);
}
