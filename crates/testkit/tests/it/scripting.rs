//! Which script is played, and what tests can wait for.

use std::time::Duration;

use sluice_testkit::{FakeUpstream, Gate, HttpClient, Request, Script, Served, call, words};

use super::support::{CHAT, NEVER, SOON, begin, body_time, stream, streamed};

async fn status(upstream: &FakeUpstream, key: &str, model: &str) -> u16 {
    let request = Request::post(CHAT, &words::chat_request(model, 1)).key(key);
    call(upstream.address(), &request).await.unwrap().status()
}

#[tokio::test]
async fn the_more_special_script_wins() {
    let upstream = FakeUpstream::start();
    upstream
        .default_script(Script::refuse(500))
        .script_for_model("m", Script::refuse(404))
        .script_for_key("k", Script::refuse(401))
        .script(Script::refuse(503))
        .script_once_for_model("m", Script::refuse(529))
        .script_once_for_key("k", Script::refuse(429));
    assert_eq!(status(&upstream, "k", "m").await, 429, "its key's queue");
    assert_eq!(status(&upstream, "k", "m").await, 529, "its model's queue");
    assert_eq!(status(&upstream, "k", "m").await, 503, "the common queue");
    assert_eq!(status(&upstream, "k", "m").await, 401, "its key");
    assert_eq!(status(&upstream, "other", "m").await, 404, "its model");
    assert_eq!(
        status(&upstream, "other", "other").await,
        500,
        "the default"
    );
    upstream.script_for_path("/completions", Script::refuse(400));
    assert_eq!(status(&upstream, "k", "m").await, 400, "its path");
    assert_eq!(upstream.served_for("k").len(), 5);
    assert_eq!(upstream.served_for_model("m").len(), 6);
}

#[tokio::test]
async fn a_list_of_models_takes_nothing_from_the_queue() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::refuse(503));
    assert_eq!(
        call(upstream.address(), &Request::get("/v1/models"))
            .await
            .unwrap()
            .status(),
        200
    );
    assert_eq!(status(&upstream, "k", "m").await, 503);
}

#[tokio::test]
async fn a_gate_holds_an_answer_at_its_position() {
    let upstream = FakeUpstream::start();
    let gate = Gate::new();
    upstream.default_script(Script::new().wait_at(2, &gate));
    let (mut client, _) = begin(&upstream, &streamed()).await;
    for _ in 0..2 {
        assert!(client.next_event().await.unwrap().is_some());
    }
    assert!(
        client
            .is_silent_for(Duration::from_millis(30))
            .await
            .unwrap()
    );
    gate.open();
    let (events, error) = client.read_events().await;
    assert!(error.is_none() && events.last().unwrap().is_done());
    // It stays open.
    stream(&upstream, &streamed()).await;
}

#[tokio::test]
async fn a_gate_holds_the_head_of_an_answer() {
    let upstream = FakeUpstream::start();
    let gate = Gate::new();
    upstream.default_script(Script::new().wait_before_head(&gate));
    let mut client = HttpClient::connect(upstream.address()).await.unwrap();
    let request = Request::post(CHAT, &words::chat_request("m", 1));
    client.send(&request).await.unwrap();
    assert!(
        client
            .is_silent_for(Duration::from_millis(30))
            .await
            .unwrap()
    );
    assert_eq!(upstream.only_served().status, None);
    gate.open();
    assert_eq!(client.read_head().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_script_of_a_user_is_played_for_that_user_alone() {
    let upstream = FakeUpstream::start();
    upstream
        .script_for_user("ann", Script::refuse(404))
        .script(Script::refuse(503));
    let of = |user: &str| {
        let mut body = words::chat_request("m", 1);
        body["user"] = user.into();
        Request::post(CHAT, &body)
    };
    for (user, status) in [("ann", 404), ("bob", 503), ("bob", 200), ("ann", 404)] {
        let answer = call(upstream.address(), &of(user)).await.unwrap();
        assert_eq!(answer.status(), status, "{user}");
    }
}

#[tokio::test(start_paused = true)]
async fn real_time_goes_on_while_the_clock_of_the_test_is_paused() {
    let upstream = FakeUpstream::start();
    let pause = Duration::from_millis(30);
    upstream.script(Script::new().first_event_delay(pause));
    // Nobody waits with a timer of this runtime, which would be over at once.
    let mut stream = tokio::net::TcpStream::connect(upstream.address())
        .await
        .unwrap();
    let request = Request::post(CHAT, &streamed()).header("connection", "close");
    tokio::io::AsyncWriteExt::write_all(&mut stream, &request.to_bytes())
        .await
        .unwrap();
    let served = upstream
        .wait_for(|served| served.iter().any(Served::is_complete), SOON)
        .await;
    assert!(body_time(&served[0]) >= pause);
}

#[tokio::test]
#[should_panic(expected = "scripting.rs")]
async fn a_wait_has_a_bound_and_names_its_caller() {
    let upstream = FakeUpstream::start();
    upstream
        .wait_for(|served| !served.is_empty(), Duration::from_millis(20))
        .await;
}

#[tokio::test]
async fn dropping_it_closes_everything_and_frees_the_port() {
    let upstream = FakeUpstream::start();
    upstream.script(Script::new().stall_at(1, NEVER));
    let port = upstream.port();
    let address = upstream.address();
    let (mut client, _) = begin(&upstream, &streamed()).await;
    assert!(client.next_event().await.unwrap().is_some());
    drop(upstream);
    client.wait_closed().await.unwrap();
    assert!(HttpClient::connect(address).await.is_err());

    let upstream = FakeUpstream::start_on(port);
    assert_eq!(upstream.base_url(), format!("http://127.0.0.1:{port}/v1"));
    assert_eq!(status(&upstream, "k", "m").await, 200);
}

#[tokio::test]
async fn it_works_for_tests_that_block_their_thread() {
    let upstream = FakeUpstream::start();
    let address = upstream.address();
    let request = Request::post(CHAT, &words::chat_request("m", 1)).header("connection", "close");
    // On this very thread, which therefore polls nothing.
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut stream, &request.to_bytes()).unwrap();
    let answer = std::io::read_to_string(&mut stream).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(upstream.only_served().is_complete());
}

#[tokio::test]
async fn many_connections_at_once_are_all_served() {
    let upstream = FakeUpstream::start();
    let address = upstream.address();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..200 {
        clients.spawn(async move {
            call(address, &Request::post(CHAT, &streamed()))
                .await
                .map(|response| response.body.len())
        });
    }
    let lengths: Vec<_> = clients
        .join_all()
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert!(lengths.iter().all(|length| *length > 1_000), "{lengths:?}");
    let served = upstream.served();
    assert_eq!(served.len(), 200);
    assert!(
        served
            .iter()
            .all(|s| s.is_complete() && s.output_tokens == 8)
    );
    assert_eq!(upstream.connections(), 200);
}
