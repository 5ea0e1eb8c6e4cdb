//! Answers that are no streams.

use std::time::Duration;

use serde_json::json;
use sluice_testkit::{
    Closed, FakeUpstream, HttpClient, Quirk, Request, Script, ServedEnd, call, words,
};

use super::support::{CHAT, SOON, body_time};

#[tokio::test]
async fn a_chat_answer_has_the_words_and_the_usage_of_the_count() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().words(12).cached_tokens(4).reasoning_tokens(2));
    let request = Request::post(CHAT, &words::chat_request("gpt-4o", 5)).key("k-1");
    let response = call(upstream.address(), &request).await.unwrap();

    let json = response.json();
    assert_eq!(response.status(), 200);
    assert_eq!(response.header("x-request-id"), Some("req_fake_0"));
    assert_eq!(json["object"], "chat.completion");
    assert_eq!(json["choices"][0]["message"]["content"], words::text(12));
    assert_eq!(json["choices"][0]["finish_reason"], "stop");
    assert_eq!(json["usage"]["prompt_tokens"], 12);
    assert_eq!(json["usage"]["completion_tokens"], 14);
    assert_eq!(json["usage"]["total_tokens"], 26);
    assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
    assert_eq!(
        json["usage"]["completion_tokens_details"]["reasoning_tokens"],
        2
    );

    let served = upstream.only_served();
    assert_eq!(
        (
            served.input_tokens,
            served.output_tokens,
            served.events_written
        ),
        (12, 12, 1)
    );
    let reported = served.reported.unwrap();
    assert_eq!((reported.input, reported.cached_input), (12, 4));
    assert_eq!((reported.output, reported.reasoning_output), (14, 2));
    assert_eq!(served.end, Some(ServedEnd::Complete));
    assert_eq!(
        (served.key.as_deref(), served.model.as_deref()),
        (Some("k-1"), Some("gpt-4o"))
    );
    assert_eq!(served.json()["messages"][0], words::prompt(5));
    assert!(served.received_at <= served.ended_at.unwrap());
}

#[tokio::test]
async fn the_request_is_kept_byte_for_byte() {
    let upstream = FakeUpstream::start();
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    let head = "POST /v1/chat/completions?a=%20b HTTP/1.1\r\nHOST: x\r\nX-Odd:  1 \r\nX-Odd: 2\r\ntransfer-encoding: chunked\r\n\r\n";
    // In pieces, so that it arrives in pieces.
    for piece in [
        head,
        "5\r\n{ \"m",
        "o\r\n4\r\ndel\"\r\n",
        "3\r\n:1}\r\n0\r\n\r\n",
    ] {
        client.send_raw(piece.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(client.read_head().await.unwrap().status, 200);
    let served = upstream.only_served();
    assert_eq!(served.raw_head, head);
    assert_eq!(served.body, "{ \"model\":1}");
    assert_eq!(
        (served.path(), served.target.as_str()),
        (CHAT, "/v1/chat/completions?a=%20b")
    );
    assert_eq!(
        served.headers.get_all("x-odd").collect::<Vec<_>>(),
        ["1", "2"]
    );
    assert_eq!(served.key, None);
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let upstream = FakeUpstream::start();
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    for number in 0..3 {
        let response = client
            .call(&Request::post(CHAT, &words::chat_request("m", number)))
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
    }
    assert_eq!(
        (upstream.connections(), upstream.open_connections()),
        (1, 1)
    );
    assert_eq!(
        upstream
            .served()
            .iter()
            .map(|s| s.connection)
            .collect::<Vec<_>>(),
        [0, 0, 0]
    );
    let last = Request::get("/v1/models").header("connection", "close");
    assert_eq!(client.call(&last).await.unwrap().status(), 200);
    assert_eq!(client.wait_closed().await.unwrap(), Closed::Clean);
    upstream
        .wait_for(|_| upstream.open_connections() == 0, SOON)
        .await;
    assert_eq!(upstream.malformed(), Vec::<String>::new());
}

#[tokio::test]
async fn max_tokens_shortens_the_answer() {
    let upstream = FakeUpstream::start();
    for name in ["max_tokens", "max_completion_tokens"] {
        let mut body = words::chat_request("m", 1);
        body[name] = 3.into();
        let json = call(upstream.address(), &Request::post(CHAT, &body))
            .await
            .unwrap()
            .json();
        assert_eq!(json["choices"][0]["message"]["content"], words::text(3));
        assert_eq!(json["choices"][0]["finish_reason"], "length");
        assert_eq!(json["usage"]["completion_tokens"], 3);
    }
}

#[tokio::test]
async fn completions_and_embeddings_count_words() {
    let upstream = FakeUpstream::start();
    let request = Request::post("/v1/completions", &words::completion_request("m", 7));
    let json = call(upstream.address(), &request).await.unwrap().json();
    assert_eq!(
        (&json["object"], &json["choices"][0]["text"]),
        (&json!("text_completion"), &json!(words::text(8)))
    );
    assert_eq!(json["usage"]["prompt_tokens"], 7);

    let mut body = words::embedding_request("m", 6);
    body["dimensions"] = 2.into();
    let json = call(upstream.address(), &Request::post("/v1/embeddings", &body))
        .await
        .unwrap()
        .json();
    assert_eq!(json["data"][0]["embedding"], json!([0.0, 0.25]));
    assert_eq!(
        json["usage"],
        json!({"prompt_tokens": 6, "total_tokens": 6})
    );

    body["encoding_format"] = "base64".into();
    let json = call(upstream.address(), &Request::post("/v1/embeddings", &body))
        .await
        .unwrap()
        .json();
    assert_eq!(json["data"][0]["embedding"], "AAAAAAAAgD4=");

    upstream.script(Script::new().with(Quirk::FloatEmbeddings));
    let json = call(upstream.address(), &Request::post("/v1/embeddings", &body))
        .await
        .unwrap()
        .json();
    assert_eq!(
        json["data"][0]["embedding"],
        json!([0.0, 0.25]),
        "floats although base64 was asked for"
    );

    let counts: Vec<_> = upstream
        .served()
        .iter()
        .map(|s| (s.input_tokens, s.output_tokens))
        .collect();
    assert_eq!(counts, [(7, 8), (6, 0), (6, 0), (6, 0)]);
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let upstream = FakeUpstream::start();
    upstream.models(&["a", "org/b:c"]);
    let get = async |path| call(upstream.address(), &Request::get(path)).await.unwrap();
    let list = get("/v1/models").await.json();
    assert_eq!(
        (&list["object"], &list["data"][1]["id"]),
        (&json!("list"), &json!("org/b:c"))
    );
    assert!(list["data"][0]["created"].is_i64());
    assert_eq!(get("/v1/models/org%2Fb:c").await.json()["id"], "org/b:c");
    let missing = get("/v1/models/x").await;
    assert_eq!(
        (missing.status(), &missing.json()["error"]["code"]),
        (404, &json!("model_not_found"))
    );
}

#[tokio::test]
async fn what_a_provider_would_refuse_is_refused_in_its_envelope() {
    let upstream = FakeUpstream::start();
    let no_json = Request::new("POST", CHAT).body("{");
    assert_eq!(
        call(upstream.address(), &no_json).await.unwrap().status(),
        400
    );
    let unknown = call(upstream.address(), &Request::get("/v1/nothing"))
        .await
        .unwrap();
    assert_eq!(
        (unknown.status(), unknown.json()["error"]["type"].as_str()),
        (404, Some("invalid_request_error"))
    );

    for (status, kind, code) in [
        (400, "invalid_request_error", Some("invalid_value")),
        (401, "invalid_request_error", Some("invalid_api_key")),
        (
            403,
            "request_forbidden",
            Some("unsupported_country_region_territory"),
        ),
        (404, "invalid_request_error", Some("model_not_found")),
        (429, "requests", Some("rate_limit_exceeded")),
        (500, "server_error", None),
        (503, "server_error", Some("server_is_overloaded")),
        (529, "api_error", None),
    ] {
        upstream.script(Script::refuse(status).retry_after(7));
        let request = Request::post(CHAT, &words::chat_request("m", 1));
        let response = call(upstream.address(), &request).await.unwrap();
        let error = &response.json()["error"];
        assert_eq!(response.status(), status);
        assert_eq!(
            (error["type"].as_str(), error["code"].as_str()),
            (Some(kind), code),
            "{status}"
        );
        assert!(
            error["message"].is_string() && error["param"].is_null(),
            "{status}"
        );
        assert_eq!(response.header("retry-after"), Some("7"));
    }
    assert!(
        upstream
            .served()
            .iter()
            .all(|s| s.output_tokens == 0 && s.reported.is_none())
    );
}

#[tokio::test]
async fn raw_bodies_and_headers_are_sent_as_they_are() {
    let upstream = FakeUpstream::start();
    upstream.script(
        Script::body(201, "text/odd", "odd")
            .header("X-One", "1")
            .header("x-one", "2"),
    );
    upstream.script(Script::html(502));
    upstream.script(Script::insufficient_quota());
    let request = Request::post(CHAT, &words::chat_request("m", 1));
    let odd = call(upstream.address(), &request).await.unwrap();
    assert_eq!(
        (odd.status(), odd.header("content-type"), &odd.body[..]),
        (201, Some("text/odd"), &b"odd"[..])
    );
    assert_eq!(
        odd.head.headers.get_all("x-one").collect::<Vec<_>>(),
        ["1", "2"]
    );
    let html = call(upstream.address(), &request).await.unwrap();
    assert_eq!(
        (html.status(), html.header("content-type")),
        (502, Some("text/html"))
    );
    assert!(html.body.starts_with(b"<html>"));
    let quota = call(upstream.address(), &request).await.unwrap();
    assert_eq!(
        (quota.status(), &quota.json()["error"]["code"]),
        (429, &json!("insufficient_quota"))
    );
}

#[tokio::test]
async fn a_plain_answer_may_be_framed_in_every_way() {
    let upstream = FakeUpstream::start();
    let request = Request::post(CHAT, &words::chat_request("m", 1));
    let whole = call(upstream.address(), &request).await.unwrap();

    upstream.script(Script::new().with(Quirk::Chunked));
    let chunked = call(upstream.address(), &request).await.unwrap();
    assert_eq!(chunked.header("transfer-encoding"), Some("chunked"));
    assert_eq!(chunked.json()["choices"], whole.json()["choices"]);

    upstream.script(Script::new().with(Quirk::BlankLines(3)));
    let padded = call(upstream.address(), &request).await.unwrap();
    assert!(padded.body.starts_with(b"\n\n\n{"));
    assert_eq!(padded.json()["choices"], whole.json()["choices"]);

    upstream.script(Script::new().with(Quirk::UntilClose));
    let until_close = call(upstream.address(), &request).await.unwrap();
    assert_eq!(
        (
            until_close.header("content-length"),
            until_close.header("connection")
        ),
        (None, Some("close"))
    );
    assert_eq!(until_close.json()["choices"], whole.json()["choices"]);
    let served = upstream.served();
    assert!(
        served
            .iter()
            .all(|s| s.is_complete() && s.events_written == 1),
        "{served:?}"
    );
}

#[tokio::test]
async fn a_wrong_length_is_followed_by_the_end_of_the_connection() {
    let upstream = FakeUpstream::start();
    let request = Request::post(CHAT, &words::chat_request("m", 1));
    upstream.script(Script::new().with(Quirk::ContentLengthOff(5)));
    let error = call(upstream.address(), &request).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);

    upstream.script(Script::new().with(Quirk::ContentLengthOff(-5)));
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    let response = client.call(&request).await.unwrap();
    assert!(
        serde_json::from_slice::<serde_json::Value>(&response.body).is_err(),
        "cut short"
    );
    assert_eq!(client.wait_closed().await.unwrap(), Closed::Clean);
}

#[tokio::test]
async fn several_prompts_and_n_give_as_many_choices() {
    let upstream = FakeUpstream::start();
    let body = json!({"model": "m", "prompt": [" alpha", " river green"], "n": 2});
    let json = call(upstream.address(), &Request::post("/v1/completions", &body))
        .await
        .unwrap()
        .json();
    assert_eq!(json["choices"].as_array().unwrap().len(), 4);
    assert_eq!(json["choices"][3]["index"], 3);
    assert_eq!(json["usage"]["completion_tokens"], 4 * 8);
    let served = upstream.only_served();
    assert_eq!((served.input_tokens, served.output_tokens), (3, 32));
}

#[tokio::test]
async fn an_old_client_is_answered_until_close() {
    let upstream = FakeUpstream::start();
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    let body = super::support::streamed().to_string();
    let request = format!(
        "POST {CHAT} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send_raw(request.as_bytes()).await.unwrap();
    let head = client.read_head().await.unwrap();
    assert_eq!(head.headers.get("transfer-encoding"), None);
    let (events, error) = client.read_events().await;
    assert!(error.is_none() && events.last().unwrap().is_done());
}

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_go_on() {
    let upstream = FakeUpstream::start();
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
    client.send_raw(head.as_bytes()).await.unwrap();
    assert!(
        !client.is_silent_for(SOON).await.unwrap(),
        "an interim answer"
    );
    client.send_raw(b"{}").await.unwrap();
    assert_eq!(client.read_head().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_told_to_the_test() {
    let upstream = FakeUpstream::start();
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    client.send_raw(b"nonsense\r\n\r\n").await.unwrap();
    assert_eq!(client.wait_closed().await.unwrap(), Closed::Clean);
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    client
        .send_raw(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 9\r\n\r\n{")
        .await
        .unwrap();
    drop(client);
    upstream
        .wait_for(|_| upstream.malformed().len() == 2, SOON)
        .await;
    assert!(upstream.malformed()[0].contains("nonsense"));
    assert_eq!(upstream.served().len(), 0);
}

#[tokio::test]
async fn delays_are_at_least_as_long_as_told() {
    let upstream = FakeUpstream::start();
    let delay = Duration::from_millis(30);
    upstream.script(Script::new().head_delay(delay).first_event_delay(delay));
    call(
        upstream.address(),
        &Request::post(CHAT, &words::chat_request("m", 1)),
    )
    .await
    .unwrap();
    let served = upstream.only_served();
    assert!(served.head_at.unwrap() >= served.received_at + delay);
    assert!(body_time(&served) >= delay);
}
