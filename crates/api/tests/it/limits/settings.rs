//! Limits as an admin sets them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::deployment::{
    Backend, Deployment, MODEL, PATIENCE, TAKES_EFFECT_WITHIN, on_both_databases,
};

use super::{ask, assert_refused, key_id, limit};

fn shown(deployment: &Deployment, scope: &[&str]) -> Vec<Value> {
    let show = ["limit", "show", "--json", "--tenant", "acme"];
    serde_json::from_str(&deployment.run(&[&show, scope].concat())).unwrap()
}

/// Returns scope, name, model, kind, limit and whether it is a dry run.
fn row(row: &Value) -> Value {
    json!([
        row["scope"],
        row["name"],
        row["model"],
        row["kind"],
        row["limit"],
        row["dry_run"]
    ])
}

on_both_databases! {
    async fn limits_are_set_shown_and_cleared(deployment: Deployment) {
        let id = key_id(&deployment, "first");
        let key = ["--key", id.as_str()];
        let model = ["--key", id.as_str(), "--model", "gpt-x"];
        limit(&deployment, &[], &["--rpm", "1_000", "--tpm", "90071"]);
        limit(&deployment, &["--user", "ann"], &["--concurrency", "7", "--dry-run"]);
        limit(&deployment, &key, &["--rps", "3"]);
        limit(&deployment, &model, &["--rpm", "5"]);
        let expected = [
            json!(["key", "first", null, "rps", 3, false]),
            json!(["key", "first", "gpt-x", "rpm", 5, false]),
            json!(["tenant", "acme", null, "rpm", 1_000, false]),
            json!(["tenant", "acme", null, "tpm", 90_071, false]),
            json!(["user", "ann", null, "concurrency", 7, true]),
        ];
        let rows: Vec<_> = shown(&deployment, &[]).iter().map(row).collect();
        assert_eq!(rows, expected);
        let rows: Vec<_> = shown(&deployment, &key).iter().map(row).collect();
        assert_eq!(rows, expected[..2]);
        let rows: Vec<_> = shown(&deployment, &model).iter().map(row).collect();
        assert_eq!(rows, expected[1..2]);
        let text = deployment.run(&["limit", "show", "--tenant", "acme", "--user", "ann"]);
        assert!(text.lines().nth(1).unwrap().contains("concurrency  7"), "{text}");

        // One kind is taken away, the others stay; then all of one target.
        limit(&deployment, &[], &["--rpm", "none", "--tpm", "5"]);
        deployment.run(&["limit", "clear", "--tenant", "acme", "--key", &id]);
        let rows: Vec<_> = shown(&deployment, &[]).iter().map(row).collect();
        let kept = [
            json!(["key", "first", "gpt-x", "rpm", 5, false]),
            json!(["tenant", "acme", null, "tpm", 5, false]),
            json!(["user", "ann", null, "concurrency", 7, true]),
        ];
        assert_eq!(rows, kept);
    }

    async fn a_limit_takes_effect_within_a_second_and_is_gone_as_soon(deployment: Deployment) {
        let relay = deployment.start();
        for scope in [&["--user", "ann"][..], &[]] {
            assert_eq!(ask(&relay, relay.key()).await.status(), 200);
            limit(&relay.deployment, scope, &["--rpm", "1"]);
            let began = tokio::time::Instant::now();
            // The first that is counted still passes.
            while ask(&relay, relay.key()).await.status() != 429 {
                assert!(began.elapsed() < TAKES_EFFECT_WITHIN, "{scope:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            relay.deployment.run(&[&["limit", "clear", "--tenant", "acme"], scope].concat());
            let began = tokio::time::Instant::now();
            while ask(&relay, relay.key()).await.status() != 200 {
                assert!(began.elapsed() < TAKES_EFFECT_WITHIN, "{scope:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

#[test]
fn what_cannot_be_a_limit_is_refused() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.run(&["tenant", "create", "globex"]);
    let id = key_id(&deployment, "first");
    for (code, arguments, expected) in [
        (2, &["--tenant", "acme"][..], "required"),
        (2, &["--tenant", "acme", "--rpm", "0"], "--rpm <N|none>"),
        (2, &["--tenant", "acme", "--rpm", "1.5"], "or `none`"),
        (
            2,
            &["--tenant", "acme", "--model", "m", "--rpm", "1"],
            "--key <ID>",
        ),
        (
            2,
            &[
                "--tenant", "acme", "--user", "ann", "--key", &id, "--rpm", "1",
            ],
            "cannot be used with",
        ),
        (
            1,
            &["--tenant", "acme", "--user", "bob", "--rpm", "1"],
            "no user `bob`",
        ),
        (
            1,
            &["--tenant", "globex", "--key", &id, "--rpm", "1"],
            "tenant `globex` has no key",
        ),
        (
            1,
            &["--tenant", "acme", "--key", "sk-pasted-key", "--rpm", "1"],
            "no id of a key",
        ),
    ] {
        let finished = deployment.try_run(&[&["limit", "set"], arguments].concat());
        assert_eq!(
            finished.status.code(),
            Some(code),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert!(
            finished.stderr.contains(expected),
            "{arguments:?}: {}",
            finished.stderr
        );
        assert!(
            !finished.stderr.contains("sk-pasted"),
            "{}",
            finished.stderr
        );
    }
    assert_eq!(shown(&deployment, &[]), [] as [Value; 0]);
}

/// Each scope has a key that it limits and one that it does not.
#[tokio::test]
async fn a_limit_counts_its_own_scope_and_no_other() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.run(&["user", "create", "--tenant", "acme", "bob"]);
    deployment.run(&["tenant", "create", "globex"]);
    deployment.run(&["user", "create", "--tenant", "globex", "eve"]);
    let issue = |tenant: &str, user: &str, name: &str| {
        let issue = [
            "key", "issue", "--quiet", "--tenant", tenant, "--user", user,
        ];
        let key = deployment.run(&[&issue[..], &["--name", name]].concat());
        key.trim().to_owned()
    };
    let second = issue("acme", "ann", "second");
    let of_bob = issue("acme", "bob", "bobs");
    let foreign = issue("globex", "eve", "foreign");
    let id = key_id(&deployment, "first");
    deployment.run(&["route", "create", "other-model", "--to", "fake"]);
    let first = deployment.key.clone();
    let relay = deployment.start();

    let cases = [
        (
            &["--key", id.as_str()][..],
            "API key \"first\"",
            &first,
            &second,
        ),
        (&["--user", "ann"], "your user \"ann\"", &second, &of_bob),
        (&[], "your tenant \"acme\"", &of_bob, &foreign),
        (
            &["--key", id.as_str(), "--model", MODEL],
            "model \"test-model\" on API key \"first\"",
            &first,
            &second,
        ),
    ];
    for (scope, whose, limited, other) in cases {
        limit(&relay.deployment, scope, &["--rpm", "1"]);
        let began = tokio::time::Instant::now();
        let refused = loop {
            let answer = ask(&relay, limited).await;
            if answer.status() == 429 {
                break answer;
            }
            assert!(began.elapsed() < PATIENCE, "{whose}");
        };
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains(&whose.replace('"', "\\\"")), "{message}");
        assert_eq!(
            ask(&relay, other).await.status(),
            200,
            "{whose} is not {other}"
        );
        if scope.contains(&"--model") {
            let mut request = crate::deployment::chat(2);
            request["model"] = json!("other-model");
            let answer = relay.post("/v1/chat/completions", &request).await;
            assert_eq!(answer.status(), 200, "another model of the key");
        }
        relay
            .deployment
            .run(&[&["limit", "clear", "--tenant", "acme"], scope].concat());
        let began = tokio::time::Instant::now();
        while ask(&relay, limited).await.status() != 200 {
            assert!(began.elapsed() < PATIENCE, "{whose}");
        }
    }
}

#[tokio::test]
async fn the_tightest_scope_refuses_and_the_others_are_not_charged() {
    let deployment = Deployment::new(Backend::Sqlite).unwrap();
    limit(&deployment, &[], &["--rpm", "3"]);
    limit(&deployment, &["--user", "ann"], &["--rpm", "2"]);
    deployment.run(&["user", "create", "--tenant", "acme", "bob"]);
    let issue = [
        "key", "issue", "--quiet", "--tenant", "acme", "--user", "bob", "--name", "bobs",
    ];
    let of_bob = deployment.run(&issue).trim().to_owned();
    let relay = deployment.start();
    for _ in 0..2 {
        assert_eq!(ask(&relay, relay.key()).await.status(), 200);
    }
    for _ in 0..5 {
        let refused = ask(&relay, relay.key()).await;
        assert_refused(
            &refused,
            "requests",
            "your user \"ann\"",
            "requests per minute (RPM)",
        );
    }
    // All or nothing: what the user was refused is not counted of the tenant.
    assert_eq!(ask(&relay, &of_bob).await.status(), 200);
    let refused = ask(&relay, &of_bob).await;
    assert_refused(
        &refused,
        "requests",
        "your tenant \"acme\"",
        "requests per minute (RPM)",
    );
}
