//! Upstreams, their keys and routes as an admin sets and changes them.

use serde_json::{Value, json};
use sluice_testkit::{FakeUpstream, HttpClient, Request, Script, call};

use crate::deployment::{
    Deployment, MODEL, PATIENCE, UPSTREAM_MODEL, chat, on_both_databases, streamed_chat,
};

fn listed(deployment: &Deployment, arguments: &[&str]) -> Value {
    let list = deployment.run(&[arguments, &["--json"]].concat());
    serde_json::from_str(&list).unwrap()
}

/// Returns the row with this name or model.
fn row(rows: &Value, name: &str) -> Value {
    let rows = rows.as_array().unwrap();
    rows.iter()
        .find(|row| row["name"] == name || row["model"] == name)
        .unwrap()
        .clone()
}

/// Runs a command that must fail with this code, and returns the line that it says.
fn refused(deployment: &Deployment, code: i32, arguments: &[&str]) -> String {
    let finished = deployment.try_run(arguments);
    let said = finished.stderr.trim_end().to_owned();
    assert_eq!(finished.status.code(), Some(code), "{arguments:?}: {said}");
    said
}

on_both_databases! {
    async fn every_setting_of_an_upstream_is_set_changed_and_listed(deployment: Deployment) {
        deployment.run(&[
            "upstream", "create", "azure", "--kind", "azure", "--url", "https://x.openai.azure.com",
            "--api-version", "2024-10-21", "--max-attempts", "2", "--breaker-failures", "7",
            "--breaker-percent", "80", "--breaker-open-ms", "5000", "--rpm", "100", "--tpm", "200000",
            "--concurrency", "8", "--connect-ms", "1000", "--client-gone", "drain", "--probe-every", "90s",
        ]);
        deployment.run(&["upstream", "create", "claude", "--kind", "anthropic"]);
        let list = listed(&deployment, &["upstream", "list"]);
        let azure = row(&list, "azure");
        let mut expected = json!({
            "client_gone": "drain", "connect_ms": 1000, "first_event_ms": 300_000, "idle_ms": 180_000,
            "total_ms": 3_600_000, "max_attempts": 2, "breaker_failures": 7, "breaker_percent": 80,
            "breaker_open_ms": 5000, "probe_every": "90s", "rpm": 100, "tpm": 200_000, "concurrency": 8,
            "api_version": "2024-10-21", "allow_private": false,
        });
        assert_eq!(azure["settings"], expected);
        assert_eq!(row(&list, "claude")["url"], "https://api.anthropic.com/v1");
        let text = deployment.run(&["upstream", "list"]);
        let line = text.lines().find(|line| line.starts_with("azure ")).unwrap();
        assert!(line.contains("rpm=100") && !line.contains("idle_ms"), "{line}");

        deployment.run(&[
            "upstream", "set", "azure", "--rpm", "none", "--api-version", "none", "--idle-ms", "60000",
            "--name", "west", "--probe-every", "2m",
        ]);
        expected["rpm"] = Value::Null;
        expected["api_version"] = Value::Null;
        expected["idle_ms"] = json!(60_000);
        expected["probe_every"] = json!("2m");
        let west = row(&listed(&deployment, &["upstream", "list"]), "west");
        assert_eq!((&west["settings"], &west["id"]), (&expected, &azure["id"]));
    }

    async fn a_change_that_cannot_be_is_refused_as_a_whole(deployment: Deployment) {
        let before = listed(&deployment, &["upstream", "list"]);
        for (code, arguments, expected) in [
            (2, &["--rpm", "5", "--idle-ms", "0"][..], "--idle-ms <MS>"),
            (2, &["--rpm", "5", "--breaker-percent", "101"], "--breaker-percent <PERCENT>"),
            (2, &["--rpm", "0"], "--rpm <N|none>"),
            (2, &["--rpm", "5", "--api-version", "2024-10-21"], "api_version: only upstreams of kind `azure`"),
            (2, &["--rpm", "5", "--probe-every", "30"], "--probe-every <TIME|none>"),
            (2, &["--rpm", "5", "--probe-every", "25h"], "a time from 1s to 24h is expected"),
            (2, &["--api-version", "a b"], "an API version has"),
            (1, &["--rpm", "5", "--allow-private=false"], "url: 127.0.0.1 is an address of this machine"),
            (1, &["--rpm", "5", "--url", "http://169.254.169.254/v1"], "no upstream may be there"),
            (1, &["--rpm", "5", "--url", "https://api.example.com/v1"], "--url: the keys of upstream `fake`"),
        ] {
            let said = refused(&deployment, code, &[&["upstream", "set", "fake"], arguments].concat());
            assert!(said.contains(expected), "{arguments:?}: {said}");
        }
        assert_eq!(listed(&deployment, &["upstream", "list"]), before);
        let said = refused(&deployment, 1, &["upstream", "delete", "fake"]);
        assert!(said.contains(&format!("routes lead to upstream `fake`: `{MODEL}`")), "{said}");
        let said = refused(&deployment, 1, &["route", "create", MODEL, "--to", "fake"]);
        assert!(said.contains(&format!("`sluice route set {MODEL}")), "{said}");
    }

    async fn a_private_address_has_to_be_allowed(deployment: Deployment) {
        for (url, named) in [
            ("http://127.0.0.1:9/v1", "127.0.0.1 is an address of this machine"),
            ("http://0x7f.1:9/v1", "127.0.0.1 is an address of this machine"),
            ("http://localhost:9/v1", "localhost is an address of this machine"),
            ("http://[fd00::1]/v1", "fd00::1 is an address of a private network"),
        ] {
            let create = ["upstream", "create", "x", "--kind", "compatible", "--url", url];
            let said = refused(&deployment, 1, &create);
            assert!(said.contains(named) && said.contains("--allow-private"), "{said}");
            deployment.run(&[&create[..], &["--allow-private"]].concat());
            deployment.run(&["upstream", "delete", "x"]);
        }
        let create = ["upstream", "create", "x", "--kind", "compatible", "--allow-private", "--url"];
        for url in ["http://169.254.169.254/v1", "http://[::ffff:a9fe:a9fe]/", "http://0.0.0.0:8000"] {
            let said = refused(&deployment, 1, &[&create[..], &[url]].concat());
            assert!(said.contains("no upstream may be there"), "{said}");
        }
    }

    async fn keys_have_settings_and_move_with_nothing(deployment: Deployment) {
        deployment.run(&["upstream", "key", "set", "fake", "main", "--weight", "3", "--tpm", "1000"]);
        let keys = listed(&deployment, &["upstream", "key", "list", "fake"]);
        let main = row(&keys, "main");
        assert_eq!((&main["weight"], &main["tpm"], &main["rpm"]), (&json!(3), &json!(1000), &Value::Null));
        // Without keys it may go elsewhere.
        deployment.run(&["upstream", "key", "delete", "fake", "main"]);
        assert_eq!(listed(&deployment, &["upstream", "key", "list", "fake"]), json!([]));
        deployment.run(&["upstream", "set", "fake", "--url", "https://api.example.com/v1"]);
        let fake = row(&listed(&deployment, &["upstream", "list"]), "fake");
        assert_eq!(fake["url"], "https://api.example.com/v1");
    }

    async fn routes_are_led_elsewhere_while_requests_are_served(deployment: Deployment) {
        let second = FakeUpstream::start();
        let url = second.base_url();
        deployment.run(&["upstream", "create", "second", "--kind", "compatible", "--url", &url, "--allow-private"]);
        let relay = deployment.start();
        assert_eq!(relay.post("/v1/chat/completions", &chat(1)).await.status(), 200);
        assert_eq!((relay.upstream().served().len(), second.served().len()), (1, 0));

        relay.deployment.run(&[
            "route", "set", MODEL, "--to", "second=other-name,weight=2", "--to", "fake,tier=1,for=context_length",
            "--select", "sticky_user",
        ]);
        let route = row(&listed(&relay.deployment, &["route", "list"]), MODEL);
        let targets = json!(["second=other-name,weight=2", "fake,tier=1,for=context_length"]);
        assert_eq!((&route["targets"], &route["select"]), (&targets, &json!("sticky_user")));
        let began = tokio::time::Instant::now();
        while second.served().is_empty() {
            assert!(began.elapsed() < PATIENCE);
            assert_eq!(relay.post("/v1/chat/completions", &chat(1)).await.status(), 200);
        }
        let sent: Value = serde_json::from_slice(&second.served()[0].body).unwrap();
        assert_eq!(sent["model"], "other-name");

        relay.deployment.run(&["route", "disable", MODEL]);
        let began = tokio::time::Instant::now();
        while relay.post("/v1/chat/completions", &chat(1)).await.status() != 404 {
            assert!(began.elapsed() < PATIENCE);
        }
        relay.deployment.run(&["route", "enable", MODEL]);
        relay.deployment.run(&["route", "set", MODEL, "--to", &format!("fake={UPSTREAM_MODEL}")]);
        let began = tokio::time::Instant::now();
        let before = relay.upstream().served().len();
        while relay.upstream().served().len() == before {
            assert!(began.elapsed() < PATIENCE);
            relay.post("/v1/chat/completions", &chat(1)).await;
        }
        let route = row(&listed(&relay.deployment, &["route", "list"]), MODEL);
        assert_eq!((&route["select"], &route["state"]), (&json!("sticky_user"), &json!("active")));
    }

    async fn what_is_no_longer_allowed_is_not_connected_to(deployment: Deployment) {
        let relay = deployment.start();
        assert_eq!(relay.post("/v1/chat/completions", &chat(1)).await.status(), 200);
        let (storage, _) = relay.deployment.storage().await;
        let mut fake = storage.list_upstreams().await.unwrap().remove(0);
        fake.allow_private = false;
        // Past the check of the command line.
        storage.update_upstream(&fake).await.unwrap();
        storage.close().await;
        let began = tokio::time::Instant::now();
        loop {
            let answer = relay.post("/v1/chat/completions", &chat(1)).await;
            if answer.status() != 200 {
                assert_eq!(answer.status(), 502, "{}", answer.json());
                break;
            }
            assert!(began.elapsed() < PATIENCE);
        }
    }

    async fn a_request_is_explained_with_what_it_tried_and_passed_over(deployment: Deployment) {
        let second = FakeUpstream::start();
        let url = second.base_url();
        deployment.run(&["upstream", "create", "second", "--kind", "compatible", "--url", &url, "--allow-private"]);
        deployment.run(&[
            "route", "set", MODEL, "--to", &format!("fake={UPSTREAM_MODEL}"), "--to", "second=other-name,tier=1",
        ]);
        let relay = deployment.start();
        // The first one is asked to wait, and goes elsewhere; the next one does not even ask.
        relay.upstream().default_script(Script::refuse(429).retry_after(120));
        let mut ids = Vec::new();
        for _ in 0..2 {
            let answer = relay.post("/v1/chat/completions", &chat(1)).await;
            assert_eq!(answer.status(), 200, "{}", answer.json());
            ids.push(answer.header("x-request-id").unwrap().to_owned());
        }
        assert_eq!((relay.upstream().served().len(), second.served().len()), (1, 2));
        // What is known survives a crash of whoever knows it.
        relay.process.kill();
        relay.process.wait_exit(PATIENCE);
        let relay = relay.deployment.start();
        relay.deployment.wait_for_records(2).await;

        let explained = listed(&relay.deployment, &["explain", &ids[0]]);
        let attempts = explained["attempts"].as_array().unwrap();
        let told: Vec<_> = attempts
            .iter()
            .map(|a| (&a["upstream"], &a["upstream_key"], &a["upstream_model"], &a["status"], &a["error"]))
            .collect();
        assert_eq!(told, [
            (&json!("fake"), &json!("main"), &json!(UPSTREAM_MODEL), &json!(429), &json!("rate_limited")),
            (&json!("second"), &Value::Null, &json!("other-name"), &json!(200), &Value::Null),
        ]);
        let explained = listed(&relay.deployment, &["explain", &ids[1]]);
        assert_eq!(explained["attempts"].as_array().unwrap().len(), 1);
        let skipped = explained["skipped"].as_array().unwrap();
        let told: Vec<_> =
            skipped.iter().map(|s| (&s["upstream"], &s["upstream_key"], &s["reason"])).collect();
        assert_eq!(told, [(&json!("fake"), &json!("main"), &json!("cooldown"))]);
        assert_eq!((&explained["tenant"], &explained["key"]), (&json!("acme"), &json!("first")));

        let text = relay.deployment.run(&["explain", &ids[1]]);
        for line in [
            "passed over: key `main` of upstream `fake`: cooldown: rests after the provider limited it",
            "attempt 1: upstream `second`, model `other-name`: status 200 after ",
            "ended: finished with status 200",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        let unknown = ids[0].replace(&ids[0][20..], &"0".repeat(ids[0].len() - 20));
        assert!(refused(&relay.deployment, 1, &["explain", &unknown]).contains("there is no record of"));
        relay.deployment.run(&["ledger", "verify"]);
    }

    async fn what_was_passed_over_is_known_also_when_the_client_leaves_before_an_answer(deployment: Deployment) {
        let second = FakeUpstream::start();
        let url = second.base_url();
        deployment.run(&["upstream", "create", "second", "--kind", "compatible", "--url", &url, "--allow-private"]);
        deployment.run(&["route", "set", MODEL, "--to", "fake", "--to", "second,tier=1"]);
        let mut deployment = deployment;
        // The head of a stream leaves before its first event is here.
        deployment.set("SLUICE_RELAY_HEAD_WAIT_MS", "20");
        let relay = deployment.start();
        relay.upstream().default_script(Script::refuse(429).retry_after(120));
        assert_eq!(relay.post("/v1/chat/completions", &chat(1)).await.status(), 200);

        second.default_script(Script::new().stall_before_head(PATIENCE));
        let request = Request::post("/v1/chat/completions", &streamed_chat(1)).key(relay.key());
        // Once while the head is waited for or just after, once with the head here.
        for reads_head in [false, true] {
            let before = second.served().len();
            let mut client = HttpClient::connect(relay.address).await.unwrap();
            client.send(&request).await.unwrap();
            if reads_head {
                assert_eq!(client.read_head().await.unwrap().status, 200);
            }
            second.wait_for(|served| served.len() > before, PATIENCE).await;
            drop(client);
            second.wait_for_ends(before + 1, PATIENCE).await;
        }
        let records = relay.deployment.wait_for_records(3).await;
        for record in &records[1..] {
            assert_eq!(&*record.ending, "client_left");
            let explained = listed(&relay.deployment, &["explain", &record.request_id.to_string()]);
            let attempts = explained["attempts"].as_array().unwrap();
            let told: Vec<_> = attempts.iter().map(|a| (&a["upstream"], &a["error"])).collect();
            assert_eq!(told, [(&json!("second"), &json!("client_left"))]);
            let skipped = explained["skipped"].as_array().unwrap();
            let told: Vec<_> =
                skipped.iter().map(|s| (&s["upstream"], &s["upstream_key"], &s["reason"])).collect();
            assert_eq!(told, [(&json!("fake"), &json!("main"), &json!("cooldown"))]);
        }
        relay.deployment.run(&["ledger", "verify"]);
    }

    async fn a_key_that_may_names_its_upstream(deployment: Deployment) {
        let second = FakeUpstream::start();
        let url = second.base_url();
        deployment.run(&["upstream", "create", "second", "--kind", "compatible", "--url", &url, "--allow-private"]);
        deployment.run(&["upstream", "create", "third", "--kind", "compatible", "--url", &url, "--allow-private"]);
        deployment.run(&["route", "set", MODEL, "--to", "fake", "--to", "second,tier=1"]);
        let pinning = deployment.issue_key("pinning", &["--allow-pin"]);
        let relay = deployment.start();
        let ask = async |key: &str, upstream: &str| {
            let request = Request::post("/v1/chat/completions", &chat(1)).key(key);
            call(relay.address, &request.header("x-sluice-upstream", upstream)).await.unwrap()
        };
        for (name, expected) in [("second", (0, 1)), ("fake", (1, 1)), ("second", (1, 2))] {
            assert_eq!(ask(&pinning, name).await.status(), 200);
            assert_eq!((relay.upstream().served().len(), second.served().len()), expected);
        }
        assert!(second.served()[0].headers.get("x-sluice-upstream").is_none());
        // Nobody else serves it: not a route's other target, not an upstream of another route.
        relay.upstream().default_script(Script::refuse(500));
        assert_eq!(ask(&pinning, "fake").await.status(), 502);
        assert_eq!(second.served().len(), 2);
        let refused = ask(&pinning, "third").await;
        assert_eq!((refused.status(), &refused.json()["error"]["param"]), (400, &json!("x-sluice-upstream")));
        let refused = ask(relay.key(), "second").await;
        let code = refused.json()["error"]["code"].clone();
        assert_eq!((refused.status(), code), (403, json!("upstream_not_selectable")));

        let keys = listed(&relay.deployment, &["key", "list"]);
        let first = row(&keys, "first");
        assert_eq!((&first["may_pin"], &row(&keys, "pinning")["may_pin"]), (&json!(false), &json!(true)));
        relay.deployment.run(&["key", "set", first["id"].as_str().unwrap(), "--allow-pin"]);
        let began = tokio::time::Instant::now();
        while ask(relay.key(), "second").await.status() != 200 {
            assert!(began.elapsed() < PATIENCE);
        }
    }
}
