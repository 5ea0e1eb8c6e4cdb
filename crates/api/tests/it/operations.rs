//! What operators look at, and what they must never see.

use std::time::Duration;

use serde_json::Value;
use sluice_testkit::{Request, Script, call};
use tokio::time::Instant;

use crate::deployment::{
    Backend, Deployment, PATIENCE, UPSTREAM_KEY, chat, on_both_databases, streamed_chat,
};

on_both_databases! {
    async fn health_readiness_and_metrics(deployment: Deployment) {
        let relay = deployment.start();
        for path in ["/livez", "/readyz", "/health", "/healthz"] {
            let response = call(relay.address, &Request::get(path)).await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
            assert!(response.header("x-request-id").is_some(), "{path}");
        }
        relay.post("/v1/chat/completions", &chat(3)).await;
        relay.post("/v1/chat/completions", &streamed_chat(3)).await;
        relay.get("/v1/nothing").await;
        relay.deployment.wait_for_records(2).await;
        let expected = [
            "http_requests_total{endpoint=\"chat_completions\",status=\"200\"} 2",
            "http_request_duration_seconds_count{endpoint=\"chat_completions\"} 2",
            "http_active_requests{endpoint=\"chat_completions\"} 0",
            "http_errors_total{endpoint=\"other\",status=\"404\"} 1",
            "token_usage_total{class=\"input\"} 20",
            "sluice_records_total{ending=\"finished\",basis=\"reported\"} 2",
            "sluice_ledger_posted_records_total 2",
            "sluice_ledger_open_holds 0",
            "sluice_upstream_attempts_total{upstream=\"fake\",outcome=\"ok\"} 2",
            "sluice_upstream_breaker_state{upstream=\"fake\"} 0",
            "sluice_upstream_keys{upstream=\"fake\",state=\"ready\"} 1",
            "sluice_upstream_retries_total{upstream=\"fake\"} 0",
        ];
        // The database has a record before the relay knows that, and a client its answer before the
        // request counts as ended.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let response = call(relay.address, &Request::get("/metrics")).await.unwrap();
            let text = String::from_utf8(response.body.to_vec()).unwrap();
            let missing = expected.iter().find(|line| !text.lines().any(|l| l == **line));
            let Some(line) = missing else { break };
            assert!(Instant::now() < deadline, "`{line}` is not in:\n{text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn a_refused_upstream_key_shows_in_health_and_metrics(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().script(Script::refuse(401));
        relay.post("/v1/chat/completions", &chat(3)).await;
        let health = call(relay.address, &Request::get("/health")).await.unwrap();
        assert_eq!(health.status(), 200);
        assert_eq!(health.json()["upstreams"], "degraded");
        let metrics = call(relay.address, &Request::get("/metrics")).await.unwrap();
        let text = String::from_utf8(metrics.body.to_vec()).unwrap();
        for line in [
            "sluice_upstream_attempts_total{upstream=\"fake\",outcome=\"auth\"} 1",
            "sluice_upstream_keys{upstream=\"fake\",state=\"quarantined\"} 1",
            "sluice_upstream_quarantines_total{upstream=\"fake\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "`{line}` is not in:\n{text}");
        }
        assert!(relay.stop());
        let log = relay.process.stderr();
        assert!(log.contains("an upstream key is not used until it is changed"), "{log}");
    }

    async fn no_secret_and_no_prompt_is_in_the_log_or_the_metrics(deployment: Deployment) {
        let mut deployment = deployment;
        deployment.set("SLUICE_LOG_LEVEL", "trace");
        let relay = deployment.start();
        let mut request = chat(3);
        request["messages"][0]["content"] = "prompt-canary-77aa".into();
        relay.upstream().script(Script::new().words(4));
        relay.post("/v1/chat/completions", &request).await;
        request["stream"] = true.into();
        relay.upstream().script(Script::new().words(4).reset_at(2));
        relay.post("/v1/chat/completions", &request).await;
        relay.upstream().script(Script::refuse(401));
        relay.post("/v1/chat/completions", &request).await;
        relay.deployment.wait_for_records(3).await;
        let metrics = call(relay.address, &Request::get("/metrics")).await.unwrap();
        let mut text = String::from_utf8(metrics.body.to_vec()).unwrap();
        assert!(relay.stop());
        text.push_str(&relay.process.stdout());
        text.push_str(&relay.process.stderr());
        for secret in [relay.key(), UPSTREAM_KEY, "prompt-canary-77aa", &"11".repeat(32), &"22".repeat(32)] {
            assert!(!text.contains(secret), "`{secret}` was printed");
        }
    }

    async fn every_line_of_the_log_is_json(deployment: Deployment) {
        let relay = deployment.start();
        relay.upstream().default_script(Script::refuse(500));
        relay.post("/v1/chat/completions", &chat(3)).await;
        assert!(relay.stop());
        let stderr = relay.process.stderr();
        assert!(stderr.lines().count() >= 3, "{stderr}");
        for line in stderr.lines() {
            let event: Value = serde_json::from_str(line).unwrap();
            assert!(event["message"].is_string() && event["level"].is_string(), "{line}");
        }
    }

    async fn records_survive_a_stop_under_load(deployment: Deployment) {
        let relay = deployment.start();
        let key = relay.key().to_owned();
        let address = relay.address;
        let load: Vec<_> = (0..8)
            .map(|_| {
                let request = Request::post("/v1/chat/completions", &chat(2)).key(&key);
                tokio::spawn(async move {
                    let mut answered = 0;
                    while let Ok(response) = call(address, &request).await {
                        if response.status() != 200 {
                            break;
                        }
                        answered += 1;
                    }
                    answered
                })
            })
            .collect();
        relay.upstream().wait_for(|served| served.len() >= 100, PATIENCE).await;
        assert!(relay.stop());
        let mut answered = 0;
        for client in load {
            answered += client.await.unwrap();
        }
        let served = relay.upstream().wait_for_ends(answered, PATIENCE).await.len();
        assert!(answered > 20, "{answered} answers");
        let ((records, _), _) = relay.deployment.rollups().await;
        assert_eq!(usize::try_from(records).unwrap(), served, "one record for each request at the provider");
        assert!(served >= answered, "{served} at the provider, {answered} answered");
    }
}

#[tokio::test]
async fn the_age_of_the_snapshot_can_be_watched() {
    let Some(deployment) = Deployment::new(Backend::Postgres) else {
        return;
    };
    let before = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs();
    let relay = deployment.start();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let response = call(relay.address, &Request::get("/metrics"))
            .await
            .unwrap();
        let text = String::from_utf8(response.body.to_vec()).unwrap();
        let as_of: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("sluice_snapshot_as_of_seconds "))
            .unwrap()
            .parse()
            .unwrap();
        if as_of > 0 {
            assert!((before..before + 300).contains(&as_of), "{as_of}");
            return;
        }
        assert!(Instant::now() < deadline, "no snapshot was written");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
