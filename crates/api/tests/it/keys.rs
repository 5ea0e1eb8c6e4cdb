//! Keys, quotas and routes as an admin changes them while the relay runs.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;
use sluice_domain::time::UnixMillis;
use sluice_testkit::{Request, Response, Script, call};

use crate::deployment::{
    Deployment, MODEL, PATIENCE, Relay, TAKES_EFFECT_WITHIN, chat, on_both_databases,
};

async fn ask(relay: &Relay, key: &str) -> Response {
    call(
        relay.address,
        &Request::post("/v1/chat/completions", &chat(2)).key(key),
    )
    .await
    .unwrap()
}

/// Asks until the answer has the status, and returns how long that took.
async fn wait_for_status(relay: &Relay, key: &str, status: u16) -> Duration {
    let began = tokio::time::Instant::now();
    loop {
        let seen = ask(relay, key).await.status();
        if seen == status {
            return began.elapsed();
        }
        assert!(
            began.elapsed() < PATIENCE,
            "status {seen} instead of {status}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The clock of the host, which the relay reads.
fn host_now() -> UnixMillis {
    UnixMillis(i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap())
}

fn key_id(deployment: &Deployment, name: &str) -> String {
    let keys: serde_json::Value =
        serde_json::from_str(&deployment.run(&["key", "list", "--json"])).unwrap();
    let keys = keys
        .as_array()
        .cloned()
        .or_else(|| keys["data"].as_array().cloned())
        .unwrap();
    let key = keys.iter().find(|k| k["name"] == name).unwrap();
    key["id"].as_str().unwrap().to_owned()
}

on_both_databases! {
    async fn a_revoked_key_is_refused_within_a_second(deployment: Deployment) {
        let relay = deployment.start();
        let key = relay.deployment.issue_key("second", &[]);
        assert_eq!(ask(&relay, &key).await.status(), 200, "a new key works at once");
        let id = key_id(&relay.deployment, "second");
        relay.deployment.run(&["key", "disable", &id]);
        assert!(wait_for_status(&relay, &key, 401).await < TAKES_EFFECT_WITHIN);
        assert_eq!(ask(&relay, &key).await.json()["error"]["code"], "api_key_disabled");
        relay.deployment.run(&["key", "enable", &id]);
        assert!(wait_for_status(&relay, &key, 200).await < TAKES_EFFECT_WITHIN);
        relay.deployment.run(&["key", "revoke", &id]);
        assert!(wait_for_status(&relay, &key, 401).await < TAKES_EFFECT_WITHIN);
        assert_eq!(ask(&relay, relay.key()).await.status(), 200, "the other key still works");
    }

    async fn a_key_that_was_unknown_works_as_soon_as_it_is_imported(deployment: Deployment) {
        let relay = deployment.start();
        let foreign = "any-shape_of.key/123";
        assert_eq!(ask(&relay, foreign).await.status(), 401);
        let file = relay.deployment.folder.path().join("keys.json");
        std::fs::write(&file, json!({"keys": [{"key": foreign, "user": "bob", "quota": 1_000_000_000, "enabled": true}]}).to_string()).unwrap();
        let output = relay.deployment.run(&["key", "import", &file.display().to_string(), "--tenant", "acme"]);
        assert!(!output.contains(foreign), "{output}");
        assert!(wait_for_status(&relay, foreign, 200).await < TAKES_EFFECT_WITHIN);
    }

    async fn a_spent_quota_is_refused_and_not_to_be_retried(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().default_script(Script::new().words(10));
        let key = relay.deployment.issue_key("small", &["--quota", "60"]);
        // Each costs 3 + 1 + 2 + 3 tokens of input and 10 of output. The model could answer with
        // far more than the quota: the answer is limited to what is left.
        for left in [60, 41] {
            let answer = ask(&relay, &key).await;
            assert_eq!(answer.status(), 200, "{}", answer.json());
            let limit: i64 = answer.header("x-sluice-max-output-tokens").unwrap().parse().unwrap();
            assert!((left - 15..=left - 9).contains(&limit), "{limit} of {left}");
            let sent = relay.upstream().served().last().unwrap().body.clone();
            let sent: serde_json::Value = serde_json::from_slice(&sent).unwrap();
            assert_eq!(sent["max_completion_tokens"], limit);
        }
        let refused = ask(&relay, &key).await;
        assert_eq!(refused.status(), 429);
        assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
        assert_eq!(refused.json()["error"]["type"], "insufficient_quota");
        assert_eq!(refused.header("x-should-retry"), Some("false"));
        assert_eq!(refused.header("retry-after"), None);
        assert_eq!(relay.upstream().served().len(), 2, "a refused request is not sent");
        assert_eq!(ask(&relay, relay.key()).await.status(), 200, "other keys are not touched");
        // The quota holds over a restart.
        relay.deployment.wait_for_records(3).await;
        assert!(relay.stop());
        let relay = relay.deployment.start();
        assert_eq!(ask(&relay, &key).await.status(), 429);
        // The tenant's own quota counts all of its keys.
        relay.deployment.run(&["tenant", "quota", "acme", "--tokens", "50"]);
        wait_for_status(&relay, relay.key(), 429).await;
        relay.deployment.run(&["tenant", "quota", "acme", "--none"]);
        wait_for_status(&relay, relay.key(), 200).await;
    }

    async fn a_key_may_use_its_models_until_it_expires(deployment: Deployment) {
        deployment.run(&["route", "create", "other-model", "--to", "fake"]);
        let relay = deployment.start();
        let narrow = relay.deployment.issue_key("narrow", &["--models", "other-model"]);
        let refused = ask(&relay, &narrow).await;
        assert_eq!((refused.status(), &refused.json()["error"]["code"]), (404, &json!("model_not_found")));
        let unknown = call(
            relay.address,
            &Request::post("/v1/chat/completions", &json!({"model": "no-such", "messages": []})).key(&narrow),
        )
        .await
        .unwrap();
        assert_eq!(
            unknown.json()["error"]["message"].as_str().unwrap().replace("no-such", MODEL),
            refused.json()["error"]["message"].as_str().unwrap(),
            "a model that is not allowed looks like one that does not exist"
        );
        let list = call(relay.address, &Request::get("/v1/models").key(&narrow)).await.unwrap().json();
        assert_eq!(list["data"].as_array().unwrap().len(), 1);
        // On a machine that is busy a key may expire before it is asked for the first time.
        for seconds in [2, 10, 40] {
            let expires = UnixMillis(host_now().0 + seconds * 1_000);
            let name = format!("short-{seconds}");
            let short = relay.deployment.issue_key(&name, &["--expires", &expires.to_rfc3339()]);
            let status = ask(&relay, &short).await.status();
            if host_now() < expires {
                assert_eq!(status, 200);
                wait_for_status(&relay, &short, 401).await;
                assert!(host_now() >= expires);
                assert_eq!(ask(&relay, &short).await.json()["error"]["code"], "api_key_expired");
                return;
            }
        }
        panic!("no key was asked for in time");
    }

    async fn upstreams_and_routes_change_without_a_restart(deployment: Deployment) {
        let relay = deployment.start();
        let late = json!({"model": "late-model", "messages": [{"role": "user", "content": " alpha"}]});
        assert_eq!(relay.post("/v1/chat/completions", &late).await.status(), 404);
        relay.deployment.run(&["route", "create", "late-model", "--to", "fake"]);
        let began = tokio::time::Instant::now();
        while relay.post("/v1/chat/completions", &late).await.status() != 200 {
            assert!(began.elapsed() < TAKES_EFFECT_WITHIN);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        relay.deployment.run(&["upstream", "disable", "fake"]);
        let began = tokio::time::Instant::now();
        loop {
            let response = relay.post("/v1/chat/completions", &late).await;
            if response.status() == 503 {
                assert_eq!(response.json()["error"]["code"], "no_available_upstream");
                assert_eq!(response.header("retry-after"), Some("5"));
                break;
            }
            assert!(began.elapsed() < TAKES_EFFECT_WITHIN, "status {}", response.status());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn a_route_of_another_tenant_does_not_exist_here(deployment: Deployment) {
        deployment.run(&["tenant", "create", "globex"]);
        deployment.run(&["route", "create", "private-model", "--to", "fake", "--tenant", "globex"]);
        let relay = deployment.start();
        let request = json!({"model": "private-model", "messages": []});
        assert_eq!(relay.post("/v1/chat/completions", &request).await.status(), 404);
        let list = relay.get("/v1/models").await.json().to_string();
        assert!(!list.contains("private-model"), "{list}");
    }
}
