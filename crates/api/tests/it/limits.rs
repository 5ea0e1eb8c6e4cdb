//! Window limits as clients and admins meet them.

mod headers;
mod queue;
mod redis;
mod sdks;
mod settings;
mod slots;
mod source;
mod tokens;

use serde_json::{Value, json};
use sluice_testkit::{Request, Response, call};

use crate::deployment::{Deployment, Relay, chat};

/// Sets limits of the tenant, or of what `scope` says inside it.
fn limit(deployment: &Deployment, scope: &[&str], limits: &[&str]) {
    deployment.run(&[&["limit", "set", "--tenant", "acme"], scope, limits].concat());
}

/// Returns the id of a key by its name.
fn key_id(deployment: &Deployment, name: &str) -> String {
    let keys = deployment.run(&["key", "list", "--json"]);
    let keys: Vec<Value> = serde_json::from_str(&keys).unwrap();
    let key = keys.iter().find(|key| key["name"] == name).unwrap();
    key["id"].as_str().unwrap().to_owned()
}

/// Asks for a short chat with a key.
async fn ask(relay: &Relay, key: &str) -> Response {
    let request = Request::post("/v1/chat/completions", &chat(2)).key(key);
    call(relay.address, &request).await.unwrap()
}

/// Fails unless the answer is a refusal by a limit on `what` of `whose`, with all that SDKs need.
#[track_caller]
fn assert_refused(answer: &Response, class: &str, whose: &str, what: &str) {
    let body = answer.json();
    assert_eq!(answer.status(), 429, "{body}");
    let error = &body["error"];
    assert_eq!(error["code"], "rate_limit_exceeded", "{body}");
    assert_eq!(error["type"], class, "{body}");
    assert_eq!(error["param"], Value::Null, "{body}");
    let message = error["message"].as_str().unwrap();
    assert!(
        message.starts_with(&format!("Rate limit reached for {whose} on {what}: Limit ")),
        "{message}"
    );
    let pause = pause_ms(answer);
    let again = format!("Please try again in {}s.", json!(pause / 1_000.0));
    let again = again.replace(".0s.", "s.");
    assert!(message.ends_with(&again), "{message} without {again}");
    let seconds: f64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1.0..=60.0).contains(&seconds), "{seconds}");
    assert!(
        (seconds - (pause / 1_000.0).ceil()).abs() < f64::EPSILON,
        "{seconds} s and {pause} ms"
    );
    assert_eq!(answer.header("x-should-retry"), None);
}

/// Returns what the client is asked to wait.
#[track_caller]
fn pause_ms(answer: &Response) -> f64 {
    answer.header("retry-after-ms").unwrap().parse().unwrap()
}

/// Reads one figure of decisions; nothing was counted where there is none.
async fn decisions(relay: &Relay, scope: &str, kind: &str, outcome: &str) -> u64 {
    let name = format!(
        "sluice_window_decisions_total{{scope=\"{scope}\",kind=\"{kind}\",outcome=\"{outcome}\"}} "
    );
    let metrics = Request::get("/metrics");
    let answer = call(relay.address, &metrics).await.unwrap();
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    value.map_or(0, |value| value.parse().unwrap())
}
