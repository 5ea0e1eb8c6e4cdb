//! Bytes stay bytes: what the provider gets is what the client sent, but for the documented fields.

use serde_json::{Value, json};
use sluice_testkit::{Quirk, Request, Script, call};

use crate::deployment::{Backend, Deployment, MODEL, Relay, UPSTREAM_MODEL, chat};

fn relay() -> Relay {
    Deployment::new(Backend::Sqlite).unwrap().start()
}

#[tokio::test]
async fn only_the_model_is_replaced_in_a_plain_request() {
    let relay = relay();
    let body = format!(
        "{{ \"temperature\" : 0.10 ,\"messages\":[{{\"role\":\"user\",\"content\":\"gr\\u00fc\\\"\\\\ üß 🦀\"}}],\n\t\"model\":\"{MODEL}\", \
         \"vendor_option\":{{\"nested\":[1,2.50,null,\"{MODEL}\"]}},\"seed\":12345678901234567890}}"
    );
    let request = Request::new("POST", "/v1/chat/completions")
        .key(relay.key())
        .body(body.clone());
    assert_eq!(call(relay.address, &request).await.unwrap().status(), 200);
    let served = relay.upstream().only_served();
    let expected = body.replacen(
        &format!("\"model\":\"{MODEL}\""),
        &format!("\"model\":\"{UPSTREAM_MODEL}\""),
        1,
    );
    assert_eq!(String::from_utf8_lossy(&served.body), expected);
    assert_eq!(served.path(), "/v1/chat/completions");
}

#[tokio::test]
async fn a_plain_answer_arrives_byte_for_byte() {
    let relay = relay();
    let answer = "{\"id\":\"x\", \"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"grüß\"},\"finish_reason\":\"stop\"}],\n \"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5},\"vendor\":{\"a\":1.50}}";
    relay
        .upstream()
        .script(Script::body(200, "application/json", answer));
    let response = relay.post("/v1/chat/completions", &chat(2)).await;
    assert_eq!(String::from_utf8_lossy(&response.body), answer);
    let record = relay.deployment.only_record().await;
    assert_eq!((record.usage.input, record.usage.output), (3, 2));
}

#[tokio::test]
async fn blank_lines_before_an_answer_are_trimmed() {
    let relay = relay();
    relay
        .upstream()
        .script(Script::new().words(3).with(Quirk::BlankLines(5)));
    let response = relay.post("/v1/chat/completions", &chat(2)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.body.first(), Some(&b'{'));
}

#[tokio::test]
async fn all_base_urls_that_people_paste_work() {
    let relay = relay();
    for path in [
        "/v1/chat/completions",
        "/chat/completions",
        "/v1/v1/chat/completions",
    ] {
        assert_eq!(relay.post(path, &chat(2)).await.status(), 200, "{path}");
    }
    for path in ["/v1/models", "/models"] {
        assert_eq!(relay.get(path).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn completions_and_embeddings_are_relayed() {
    let relay = relay();
    let completion = json!({"model": MODEL, "prompt": " alpha river", "max_tokens": 5});
    assert_eq!(
        relay.post("/v1/completions", &completion).await.status(),
        200
    );
    let mut streamed = completion.clone();
    streamed["stream"] = json!(true);
    let response = relay.post("/v1/completions", &streamed).await;
    assert!(String::from_utf8_lossy(&response.body).ends_with("data: [DONE]\n\n"));
    let embedding = json!({"model": MODEL, "input": [" alpha river", " stone"]});
    assert_eq!(relay.post("/v1/embeddings", &embedding).await.status(), 200);
    let records = relay.deployment.wait_for_records(3).await;
    let served = relay.upstream().served();
    for (record, served) in records.iter().zip(&served) {
        assert_eq!(
            (record.usage.input, record.usage.output),
            (served.input_tokens, served.output_tokens),
            "{record:?}"
        );
    }
}

#[tokio::test]
async fn embeddings_come_in_the_form_that_was_asked_for() {
    let relay = relay();
    relay
        .upstream()
        .default_script(Script::new().with(Quirk::FloatEmbeddings));
    let mut request = json!({"model": MODEL, "input": " alpha", "encoding_format": "base64"});
    let answer: Value = relay.post("/v1/embeddings", &request).await.json();
    assert!(answer["data"][0]["embedding"].is_string(), "{answer}");
    request["encoding_format"] = json!("float");
    let answer: Value = relay.post("/v1/embeddings", &request).await.json();
    assert!(answer["data"][0]["embedding"].is_array(), "{answer}");
}

#[tokio::test]
async fn models_are_listed_and_found_by_ids_with_slashes() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.run(&["route", "create", "org/model:7b", "--to", "fake"]);
    let relay = deployment.start();
    let list = relay.get("/v1/models").await.json();
    let ids: Vec<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["org/model:7b", MODEL]);
    assert!(list["data"][0]["created"].is_i64());
    assert_eq!(list["object"], "list");
    for path in [
        "/v1/models/org%2Fmodel%3A7b",
        "/v1/models/org/model:7b",
        "/models/org%2Fmodel:7b",
    ] {
        let response = relay.get(path).await;
        assert_eq!(response.json()["id"], "org/model:7b", "{path}");
    }
}

#[tokio::test]
async fn only_listed_headers_reach_the_provider() {
    let relay = relay();
    let request = Request::post("/v1/chat/completions", &chat(2))
        .key(relay.key())
        .header("cookie", "session=1")
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-stainless-lang", "python")
        .header("openai-organization", "org-theirs")
        .header("openai-beta", "assistants=v2")
        .header("x-whatever", "1");
    assert_eq!(call(relay.address, &request).await.unwrap().status(), 200);
    let served = relay.upstream().only_served();
    for name in [
        "cookie",
        "x-forwarded-for",
        "x-stainless-lang",
        "openai-organization",
        "x-whatever",
    ] {
        assert_eq!(served.headers.get(name), None, "{name}");
    }
    assert_eq!(served.headers.get("openai-beta"), Some("assistants=v2"));
    assert_eq!(served.headers.get("content-type"), Some("application/json"));
}
