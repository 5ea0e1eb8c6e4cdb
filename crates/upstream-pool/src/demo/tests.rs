use std::sync::Arc;

use sluice_domain::id::{ProxyKeyId, TenantId, UpstreamId, UserId, uuid_v7};
use sluice_domain::ports::Clock;
use sluice_domain::quota::Payer;
use sluice_domain::upstream::ProviderKind;
use tokio::time::Instant;

use super::*;

struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_123)
    }
}

fn ask(endpoint: Endpoint, streams: bool, body: &Value) -> Result<Outcome, Box<Failure>> {
    let model: Arc<str> = Arc::from("demo");
    let call = Call {
        pinned: None,
        endpoint,
        streams,
        is_beta: false,
        model: &model,
        headers: &HeaderMap::new(),
        payer: &Payer {
            tenant_id: TenantId::from_uuid(uuid_v7(1, [2; 10])),
            user_id: UserId::from_uuid(uuid_v7(1, [3; 10])),
            key_id: ProxyKeyId::from_uuid(uuid_v7(1, [4; 10])),
        },
        body: b"",
        token_bound: 0,
        attempt_ended: &|_| {},
        abandoned: &|_| {},
        render: &|_| Bytes::new(),
        clock: &Fixed,
        max_event_bytes: 1 << 20,
        max_held_bytes: 1 << 20,
    };
    let model = Arc::from("demo-1");
    let target = TargetInfo {
        upstream_id: UpstreamId::from_uuid(uuid_v7(1, [1; 10])),
        upstream_name: "demo",
        upstream_key_id: None,
        kind: ProviderKind::Demo,
        upstream_model: &model,
        client_gone: sluice_domain::upstream::ClientGone::Cancel,
        attempt: 0,
        takes_stream_options: true,
        is_repeated: false,
    };
    answer(&call, &target, body.to_string().as_bytes(), Fixed.now())
}

fn document_of(outcome: Result<Outcome, Box<Failure>>) -> Value {
    serde_json::from_slice(outcome.unwrap().body.as_complete().unwrap()).unwrap()
}

async fn events_of(outcome: Result<Outcome, Box<Failure>>) -> Vec<Value> {
    let bytes = outcome.unwrap().body.collect(1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let mut events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.pop(), Some("data: [DONE]"));
    events
        .iter()
        .map(|e| serde_json::from_str(e.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

#[test]
fn a_chat_answer_says_what_it_is_and_counts_words() {
    let body = json!({ "model": "demo", "messages": [
        { "role": "system", "content": "be brief" },
        { "role": "user", "content": [{ "type": "text", "text": "one two three" }] },
    ]});
    let answer = document_of(ask(Endpoint::ChatCompletions, false, &body));
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    for part in [
        "demonstration upstream",
        "No model was called",
        "5 words",
        "OPENAI_API_KEY",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "demo-1");
    assert_eq!(answer["created"], 1_700_000_000);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let words = text.split_whitespace().count();
    assert_eq!(answer["usage"]["prompt_tokens"], 5);
    assert_eq!(answer["usage"]["completion_tokens"], words);
    assert_eq!(answer["usage"]["total_tokens"], words + 5);
}

#[tokio::test(start_paused = true)]
async fn a_stream_says_the_same_word_by_word() {
    let mut body = json!({
        "messages": [{ "role": "user", "content": "hello" }],
        "stream": true,
        "stream_options": { "include_usage": true },
    });
    let whole = document_of(ask(Endpoint::ChatCompletions, false, &body));
    let begun = Instant::now();
    let events = events_of(ask(Endpoint::ChatCompletions, true, &body)).await;
    let text: String = events
        .iter()
        .filter_map(|e| e["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(
        text,
        whole["choices"][0]["message"]["content"].as_str().unwrap()
    );
    let words = u128::from(whole["usage"]["completion_tokens"].as_u64().unwrap());
    let took = begun.elapsed().as_millis();
    assert!(
        (words * 20..=words * 22).contains(&took),
        "{took} ms for {words} words"
    );
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let last = &events[events.len() - 1];
    assert_eq!(
        (&last["usage"], &last["choices"]),
        (&whole["usage"], &json!([]))
    );
    assert_eq!(
        events[events.len() - 2]["choices"][0]["finish_reason"],
        "stop"
    );

    body["stream_options"] = Value::Null;
    let events = events_of(ask(Endpoint::ChatCompletions, true, &body)).await;
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test(start_paused = true)]
async fn a_limit_cuts_the_answer_and_says_so() {
    let body = json!({ "prompt": "a b", "max_tokens": 3 });
    let answer = document_of(ask(Endpoint::Completions, false, &body));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["text"], "This is the");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let events = events_of(ask(Endpoint::Completions, true, &body)).await;
    let text: String = events
        .iter()
        .filter_map(|event| event["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(text, "This is the");
}

#[test]
fn embeddings_respect_form_and_dimensions() {
    let answer = |body: &Value| document_of(ask(Endpoint::Embeddings, false, body));
    let plain = answer(&json!({ "input": ["a b", "c"], "dimensions": 8 }));
    assert_eq!(
        plain["usage"],
        json!({ "prompt_tokens": 3, "total_tokens": 3 })
    );
    assert_eq!(plain["data"].as_array().unwrap().len(), 2);
    assert_eq!(plain["data"][1]["index"], 1);
    let floats = plain["data"][0]["embedding"].as_array().unwrap();
    assert_eq!(floats.len(), 8);

    let packed = answer(&json!({ "input": "a b", "dimensions": 8, "encoding_format": "base64" }));
    assert_eq!(
        packed["data"][0]["embedding"].as_str().unwrap().len(),
        (8_usize * 4).div_ceil(3) * 4
    );
    let default = answer(&json!({ "input": [1, 2, 3] }));
    assert_eq!(
        default["data"][0]["embedding"].as_array().unwrap().len(),
        1_536
    );
    assert_eq!(default["usage"]["prompt_tokens"], 3);
}

#[test]
fn a_request_that_makes_no_sense_is_refused_in_the_providers_shape() {
    for (endpoint, body, param) in [
        (Endpoint::ChatCompletions, json!({}), json!("messages")),
        (
            Endpoint::ChatCompletions,
            json!({ "messages": [] }),
            json!("messages"),
        ),
        (Endpoint::ChatCompletions, json!([]), json!(null)),
        (Endpoint::Embeddings, json!({ "input": "" }), json!("input")),
        (
            Endpoint::Embeddings,
            json!({ "input": "a", "dimensions": 4_000 }),
            json!("dimensions"),
        ),
    ] {
        let failure = ask(endpoint, false, &body).unwrap_err();
        assert_eq!(failure.class, ErrorClass::CallerFault);
        let refusal = failure.refusal.unwrap();
        let told: Value = serde_json::from_slice(&refusal.body).unwrap();
        assert_eq!(told["error"]["param"], param, "{body}");
        assert_eq!(refusal.status, 400);
    }
}

fn message() -> Value {
    json!({
        "model": "claude-x",
        "max_tokens": 1_000,
        "system": [{ "type": "text", "text": "be brief" }],
        "messages": [
            { "role": "user", "content": "one two" },
            { "role": "assistant", "content": [{ "type": "text", "text": "three" }] },
        ],
    })
}

#[test]
fn a_message_is_answered_in_its_own_shape() {
    let answer = document_of(ask(Endpoint::Messages, false, &message()));
    let text = answer["content"][0]["text"].as_str().unwrap();
    assert!(
        text.contains("No model was called") && text.contains("5 words"),
        "{text}"
    );
    assert_eq!(answer["type"], "message");
    assert_eq!(answer["stop_reason"], "end_turn");
    assert_eq!(answer["model"], "demo-1");
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    let words = text.split_whitespace().count();
    assert_eq!(
        answer["usage"],
        json!({ "input_tokens": 5, "output_tokens": words })
    );

    let counted = document_of(ask(Endpoint::CountTokens, false, &message()));
    assert_eq!(counted, json!({ "input_tokens": 5 }));
}

#[tokio::test(start_paused = true)]
async fn a_streamed_message_says_the_same_and_what_it_cost() {
    let mut body = message();
    body["max_tokens"] = json!(3);
    let whole = document_of(ask(Endpoint::Messages, false, &body));
    assert_eq!(whole["stop_reason"], "max_tokens");
    let outcome = ask(Endpoint::Messages, true, &body).unwrap();
    let bytes = outcome.body.collect(1 << 20).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    let mut names = Vec::new();
    let mut said = String::new();
    let mut usage = [json!(null), json!(null)];
    for event in text.split_terminator("\n\n") {
        let (name, data) = event.split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let name = name.strip_prefix("event: ").unwrap().to_owned();
        assert_eq!(data["type"], name.as_str());
        said.push_str(data["delta"]["text"].as_str().unwrap_or_default());
        match &*name {
            "message_start" => usage[0] = data["message"]["usage"].clone(),
            "message_delta" => {
                usage[1] = data["usage"].clone();
                assert_eq!(data["delta"]["stop_reason"], "max_tokens");
            }
            _ => {}
        }
        names.push(name);
    }
    let delta = "content_block_delta";
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            delta,
            delta,
            delta,
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert_eq!(said, whole["content"][0]["text"].as_str().unwrap());
    assert_eq!(
        usage,
        [
            json!({ "input_tokens": 5, "output_tokens": 0 }),
            json!({ "output_tokens": 3 })
        ]
    );
}

#[test]
fn a_message_that_makes_no_sense_is_refused_in_the_words_of_its_api() {
    let mut no_limit = message();
    no_limit.as_object_mut().unwrap().remove("max_tokens");
    for (endpoint, body) in [
        (Endpoint::Messages, no_limit),
        (
            Endpoint::Messages,
            json!({ "max_tokens": 1, "messages": [] }),
        ),
        (Endpoint::CountTokens, json!({})),
    ] {
        let refusal = ask(endpoint, false, &body).unwrap_err().refusal.unwrap();
        let told: Value = serde_json::from_slice(&refusal.body).unwrap();
        assert_eq!(told["type"], "error", "{body}");
        assert_eq!(told["error"]["type"], "invalid_request_error", "{body}");
    }
}
