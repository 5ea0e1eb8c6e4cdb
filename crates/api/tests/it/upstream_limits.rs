//! Our own limits of an upstream, as clients and upstreams meet them.

use serde_json::{Value, json};
use sluice_testkit::{FakeUpstream, Gate, Script};
use tokio::time::Instant;

use crate::deployment::{Deployment, MODEL, PATIENCE, Relay, chat, on_both_databases};

/// Tokens a minute. One request with [`OUTPUT`] fits, two at the same time do not.
const LIMIT: usize = 2_000;
const OUTPUT: usize = 1_000;
/// A second and the sixty before it count.
const WINDOW_SECONDS: u64 = 61;

fn request(model: &str) -> Value {
    let mut request = chat(1);
    request["model"] = json!(model);
    request["max_tokens"] = json!(OUTPUT);
    request
}

/// Asks, and returns whom that reached: the limited upstream or the other one.
async fn reached(relay: &Relay, other: &FakeUpstream) -> &'static str {
    let before = (relay.upstream().served().len(), other.served().len());
    let answer = relay.post("/v1/chat/completions", &request(MODEL)).await;
    assert_eq!(answer.status(), 200, "{}", answer.json());
    let after = (relay.upstream().served().len(), other.served().len());
    match (after.0 - before.0, after.1 - before.1) {
        (1, 0) => "limited",
        (0, 1) => "other",
        both => panic!("{both:?}"),
    }
}

fn limited(deployment: &Deployment, other: &FakeUpstream, tier: &str) {
    let url = other.base_url();
    deployment.run(&["upstream", "set", "fake", "--tpm", &LIMIT.to_string()]);
    deployment.run(&[
        "upstream",
        "create",
        "other",
        "--kind",
        "compatible",
        "--url",
        &url,
        "--allow-private",
    ]);
    deployment.run(&[
        "route",
        "set",
        MODEL,
        "--to",
        "fake,weight=1000000",
        "--to",
        &format!("other{tier}"),
    ]);
    deployment.run(&["route", "create", "alone", "--to", "fake"]);
}

async fn is_kept(deployment: Deployment, tier: &str) {
    let other = FakeUpstream::start();
    limited(&deployment, &other, tier);
    let relay = deployment.start();
    let gate = Gate::new();
    relay
        .upstream()
        .script(Script::new().words(8).wait_before_head(&gate));
    let (address, key) = (relay.address, relay.key().to_owned());
    let first = tokio::spawn(async move {
        let request = sluice_testkit::Request::post("/v1/chat/completions", &request(MODEL));
        sluice_testkit::call(address, &request.key(&key))
            .await
            .unwrap()
    });
    relay
        .upstream()
        .wait_for(|served| served.len() == 1, PATIENCE)
        .await;
    // Its bound is reserved while nobody knows what it will use.
    assert_eq!(reached(&relay, &other).await, "other");
    gate.open();
    assert_eq!(first.await.unwrap().status(), 200);
    // What it has used counts instead; the place is given back when its answer has ended.
    let began = Instant::now();
    relay.upstream().default_script(Script::new().words(OUTPUT));
    while reached(&relay, &other).await == "other" {
        assert!(began.elapsed() < PATIENCE, "its bound is kept");
    }
    // This one has used what it may: the next one does not fit, however little it would use.
    assert_eq!(reached(&relay, &other).await, "other");
    let served = relay.upstream().served().len();

    // Where there is nobody else, the client is told when there is room again.
    let refused = relay.post("/v1/chat/completions", &request("alone")).await;
    assert_eq!(refused.status(), 429, "{}", refused.json());
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    let most = WINDOW_SECONDS;
    let least = most.saturating_sub(began.elapsed().as_secs() + 2);
    assert!(
        (least..=most).contains(&seconds),
        "{seconds} of {least} to {most}"
    );
    assert_eq!(
        relay.upstream().served().len(),
        served,
        "it is not even asked"
    );
    let id = refused.header("x-request-id").unwrap();
    relay
        .deployment
        .wait_for_records(relay.upstream().served().len() + other.served().len() + 1)
        .await;
    let explained: Value =
        serde_json::from_str(&relay.deployment.run(&["explain", id, "--json"])).unwrap();
    assert_eq!(explained["attempts"], json!([]));
    assert_eq!(explained["skipped"][0]["reason"], "at_limit");
    assert_eq!(explained["quota_tokens"], 0);
    // A smaller request fits.
    let mut small = request("alone");
    small["max_tokens"] = json!(1);
    assert_eq!(
        relay.post("/v1/chat/completions", &small).await.status(),
        200
    );
}

on_both_databases! {
    async fn tokens_a_minute_are_kept_and_the_sibling_serves_the_rest(deployment: Deployment) {
        is_kept(deployment, "").await;
    }

    async fn tokens_a_minute_are_kept_and_the_next_tier_serves_the_rest(deployment: Deployment) {
        is_kept(deployment, ",tier=1").await;
    }
}
