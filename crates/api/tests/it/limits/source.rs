//! Limits before anything is known of the caller, and those of the instance.

use sluice_testkit::{Request, Response, call};

use crate::deployment::{Backend, Deployment, Relay, chat};

use super::{assert_refused, decisions, limit};

/// A relay behind this machine as a trusted proxy.
fn relay(settings: &[(&'static str, &str)]) -> Relay {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_SERVER_TRUSTED_PROXIES", "127.0.0.1");
    for (name, value) in settings {
        deployment.set(name, *value);
    }
    deployment.start()
}

async fn ask_from(relay: &Relay, forwarded: &str, key: &str) -> Response {
    let request = Request::post("/v1/chat/completions", &chat(2))
        .key(key)
        .header("x-forwarded-for", forwarded);
    call(relay.address, &request).await.unwrap()
}

#[tokio::test]
async fn who_guesses_keys_is_stopped_whatever_it_claims_to_be() {
    let relay = relay(&[("SLUICE_LIMITS_SOURCE_IP_RPM", "3")]);
    for number in 0..3 {
        let spoofed = format!("192.0.2.{number}, 203.0.113.9");
        let answer = ask_from(&relay, &spoofed, "sk-guessed-key").await;
        assert_eq!(answer.status(), 401, "{number}");
    }
    let key = relay.key().to_owned();
    for number in 3..6 {
        let spoofed = format!("192.0.2.{number}, 203.0.113.9");
        // The right key is of no use either.
        let refused = ask_from(&relay, &spoofed, &key).await;
        assert_refused(
            &refused,
            "requests",
            "your address (203.0.113.9/32)",
            "requests per minute (RPM)",
        );
    }
    let answer = ask_from(&relay, "203.0.113.10", &key).await;
    assert_eq!(answer.status(), 200, "another address");
    assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some("2"));
    assert_eq!(decisions(&relay, "source_ip", "rpm", "refused").await, 3);
    // The list of models is behind it too.
    let list = Request::get("/v1/models").header("x-forwarded-for", "203.0.113.9");
    assert_eq!(call(relay.address, &list).await.unwrap().status(), 429);
    let health = call(relay.address, &Request::get("/livez")).await.unwrap();
    assert_eq!(health.status(), 200, "operators are not counted");
}

#[tokio::test]
async fn a_whole_network_of_ipv6_is_one_source() {
    let relay = relay(&[
        ("SLUICE_LIMITS_SOURCE_IP_RPM", "2"),
        ("SLUICE_LIMITS_IPV6_PREFIX", "56"),
    ]);
    let key = relay.key().to_owned();
    for address in ["2001:db8:0:1::1", "2001:db8:0:2:ffff::"] {
        assert_eq!(ask_from(&relay, address, &key).await.status(), 200);
    }
    let refused = ask_from(&relay, "2001:db8:0:3::1", &key).await;
    assert_refused(
        &refused,
        "requests",
        "your address (2001:db8::/56)",
        "requests per minute (RPM)",
    );
    let answer = ask_from(&relay, "2001:db8:0:100::1", &key).await;
    assert_eq!(answer.status(), 200, "another network");
}

#[tokio::test]
async fn the_instance_has_limits_that_tell_nothing_of_others() {
    let relay = relay(&[
        ("SLUICE_LIMITS_INSTANCE_RPM", "2"),
        ("SLUICE_LIMITS_INSTANCE_TPM", "1000000000"),
        ("SLUICE_LIMITS_SOURCE_IP_RPM", "1000"),
        ("SLUICE_LIMITS_SOURCE_IP_MODE", "dry_run"),
    ]);
    let key = relay.key().to_owned();
    for address in ["203.0.113.1", "203.0.113.2"] {
        let answer = ask_from(&relay, address, &key).await;
        assert_eq!(answer.status(), 200);
        let head = format!("{:?}", answer.head);
        assert!(!head.contains("ratelimit"), "{head}");
    }
    let refused = ask_from(&relay, "203.0.113.3", &key).await;
    assert_eq!(refused.status(), 429);
    let message = refused.json()["error"]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        message
            .starts_with("Rate limit reached for this relay on requests per minute (RPM). Please"),
        "{message}"
    );
    assert_eq!(refused.header("x-ratelimit-limit-requests"), None);
    assert_eq!(decisions(&relay, "instance", "tpm", "admitted").await, 2);
    assert_eq!(decisions(&relay, "source_ip", "rpm", "admitted").await, 3);
}

#[tokio::test]
async fn tokens_of_the_instance_are_given_back_when_the_key_is_refused() {
    let relay = relay(&[("SLUICE_LIMITS_INSTANCE_TPM", "10000")]);
    limit(&relay.deployment, &[], &["--rpm", "1"]);
    let mut body = chat(2);
    body["max_tokens"] = serde_json::json!(4_000);
    let request = Request::post("/v1/chat/completions", &body).key(relay.key());
    let began = tokio::time::Instant::now();
    while call(relay.address, &request).await.unwrap().status() != 429 {
        assert!(began.elapsed() < crate::deployment::PATIENCE);
    }
    // Two of these would take most of it.
    for _ in 0..5 {
        let refused = call(relay.address, &request).await.unwrap();
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains("your tenant"), "{message}");
    }
}
