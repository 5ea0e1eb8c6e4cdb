//! Upstream keys that their provider refused, until an admin acts.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use sluice_testkit::{FakeUpstream, Request, Script, call};
use tokio::time::Instant;

use crate::deployment::{
    Backend, Deployment, PATIENCE, TAKES_EFFECT_WITHIN, UPSTREAM_KEY, address_of, chat,
    on_both_databases,
};

/// What an admin does takes effect so soon; on a busy machine in the best of some tries.
const WITHIN: Duration = Duration::from_secs(1);
const TRIES: usize = 10;

async fn status(address: SocketAddr, key: &str) -> u16 {
    let request = Request::post("/v1/chat/completions", &chat(1)).key(key);
    let answer = call(address, &request).await.unwrap();
    if answer.status() != 200 {
        assert_eq!(answer.json()["error"]["code"], json!("upstream_auth_error"));
    }
    answer.status()
}

/// Lets the key be refused, and its provider take it again; nobody asks it.
async fn quarantine(upstream: &FakeUpstream, addresses: &[SocketAddr], key: &str) {
    upstream.script_for_key(UPSTREAM_KEY, Script::refuse(401));
    let before = upstream.served().len();
    for address in addresses {
        assert_eq!(status(*address, key).await, 502);
    }
    upstream.script_for_key(UPSTREAM_KEY, Script::new());
    for address in addresses {
        assert_eq!(status(*address, key).await, 502, "it is not asked again");
    }
    assert_eq!(upstream.served().len(), before + addresses.len());
}

/// Asks until the key is used again, and returns how long after `since` that was.
async fn used_again(address: SocketAddr, key: &str, since: Instant) -> Duration {
    while status(address, key).await != 200 {
        assert!(since.elapsed() < PATIENCE, "it stays quarantined");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    since.elapsed()
}

on_both_databases! {
    async fn a_quarantined_key_is_used_again_within_a_second_after_it_was_enabled(deployment: Deployment) {
        let relay = deployment.start();
        let mut best = Duration::MAX;
        for _ in 0..TRIES {
            quarantine(relay.upstream(), &[relay.address], relay.key()).await;
            // It never was disabled.
            relay.deployment.run(&["upstream", "key", "enable", "fake", "main"]);
            let took = used_again(relay.address, relay.key(), Instant::now()).await;
            assert!(took < TAKES_EFFECT_WITHIN, "{took:?}");
            best = best.min(took);
            if best < WITHIN {
                break;
            }
        }
        assert!(best < WITHIN, "{best:?}");
        // A change that is not about the key lifts nothing.
        quarantine(relay.upstream(), &[relay.address], relay.key()).await;
        relay.deployment.run(&["route", "create", "another", "--to", "fake"]);
        relay.process.wait_for_line("upstreams and routes were read", PATIENCE);
        let another = json!({"model": "another", "messages": [{"role": "user", "content": " alpha"}]});
        let began = Instant::now();
        while relay.post("/v1/chat/completions", &another).await.status() == 404 {
            assert!(began.elapsed() < PATIENCE);
        }
        assert_eq!(status(relay.address, relay.key()).await, 502);
    }

    async fn a_restart_forgets_a_quarantine_and_finds_out_anew(deployment: Deployment) {
        let relay = deployment.start();
        quarantine(relay.upstream(), &[relay.address], relay.key()).await;
        assert!(relay.stop());
        let relay = relay.deployment.start();
        assert_eq!(status(relay.address, relay.key()).await, 200);
    }
}

#[tokio::test]
async fn every_instance_uses_the_key_again() {
    let Some(deployment) = Deployment::new(Backend::Postgres) else {
        return;
    };
    let start = |number: usize| {
        let folder = deployment.folder.path().join(format!("data-{number}"));
        let program = deployment.program(&["serve"]);
        program.env("SLUICE_DATA_DIR", folder).start()
    };
    let processes = [start(1), start(2), start(3)];
    let addresses = processes.each_ref().map(address_of);
    quarantine(&deployment.upstream, &addresses, &deployment.key).await;
    deployment.run(&["upstream", "key", "enable", "fake", "main"]);
    let enabled = Instant::now();
    for address in addresses {
        let took = used_again(address, &deployment.key, enabled).await;
        assert!(took < TAKES_EFFECT_WITHIN, "{took:?}");
    }
}
