//! Upstreams that are probed without a request.

use sluice_testkit::{FakeUpstream, Request, Script, Served, call};
use tokio::time::Instant;

use crate::deployment::{PATIENCE, Relay, UPSTREAM_KEY, chat, on_both_databases};

/// Waits until the answer to a request holds a line or a part of one.
async fn until(relay: &Relay, path: &str, expected: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = call(relay.address, &Request::get(path)).await.unwrap();
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        if text.contains(expected) {
            return;
        }
        assert!(Instant::now() < deadline, "`{expected}` is not in:\n{text}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn probes(served: &[Served]) -> usize {
    served
        .iter()
        .filter(|served| served.method == "GET")
        .count()
}

on_both_databases! {
    async fn an_outage_is_seen_by_probes_and_its_end_is_decided_by_a_request(deployment: Deployment) {
        deployment.run(&["upstream", "set", "fake", "--probe-every", "1s", "--breaker-failures", "2"]);
        let relay = deployment.start();
        until(&relay, "/metrics", "sluice_upstream_probes_total{upstream=\"fake\",outcome=\"ok\"}").await;
        let first = relay.upstream().served().remove(0);
        assert_eq!((&*first.target, first.key.as_deref()), ("/v1/models", Some(UPSTREAM_KEY)));
        until(&relay, "/health", "\"upstreams\":\"ok\"").await;

        relay.upstream().script_for_path("/models", Script::refuse(503));
        until(&relay, "/health", "\"upstreams\":\"degraded\"").await;
        until(&relay, "/metrics", "sluice_upstream_breaker_state{upstream=\"fake\"} 2\n").await;
        until(&relay, "/metrics", "sluice_upstream_probes_total{upstream=\"fake\",outcome=\"failed\"} 2\n").await;

        relay.upstream().script_for_path("/models", Script::new());
        relay.process.wait_for_line("an upstream answers its probes again", PATIENCE);
        until(&relay, "/metrics", "sluice_upstream_breaker_state{upstream=\"fake\"} 2\n").await;
        assert_eq!(relay.post("/v1/chat/completions", &chat(1)).await.status(), 200);
        until(&relay, "/metrics", "sluice_upstream_breaker_state{upstream=\"fake\"} 0\n").await;
        until(&relay, "/health", "\"upstreams\":\"ok\"").await;
        relay.process.wait_for_line("a breaker closed", PATIENCE);
        // A probe is nobody's request.
        relay.deployment.only_record().await;

        // One that is under way does not hold up the end.
        relay.upstream().script_for_path("/models", Script::new().stall_before_head(PATIENCE));
        relay.upstream().wait_for(|all| all.iter().any(|s| s.method == "GET" && s.end.is_none()), PATIENCE).await;
        assert!(relay.stop());
    }

    async fn what_is_switched_off_or_deleted_is_probed_no_more(deployment: Deployment) {
        let (off, gone) = (FakeUpstream::start(), FakeUpstream::start());
        deployment.run(&["upstream", "set", "fake", "--probe-every", "1s"]);
        for (name, url) in [("off", off.base_url()), ("gone", gone.base_url())] {
            deployment.run(&[
                "upstream", "create", name, "--kind", "compatible", "--url", &url, "--allow-private",
                "--probe-every", "1s",
            ]);
        }
        let relay = deployment.start();
        off.wait_for(|served| probes(served) >= 1, PATIENCE).await;
        gone.wait_for(|served| probes(served) >= 1, PATIENCE).await;
        relay.deployment.run(&["upstream", "disable", "off"]);
        relay.deployment.run(&["upstream", "delete", "gone"]);
        until(&relay, "/metrics", "sluice_upstream_breaker_state{upstream=\"fake\"}").await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = call(relay.address, &Request::get("/metrics")).await.unwrap();
            let text = String::from_utf8(answer.body.to_vec()).unwrap();
            if !text.contains("upstream=\"off\"") && !text.contains("upstream=\"gone\"") {
                break;
            }
            assert!(Instant::now() < deadline, "{text}");
        }
        // One may be under way; the probes of the other upstream tell how long nothing comes.
        let (of_off, of_gone) = (probes(&off.served()), probes(&gone.served()));
        let before = probes(&relay.upstream().served());
        relay.upstream().wait_for(|served| probes(served) >= before + 3, PATIENCE).await;
        assert!(probes(&off.served()) <= of_off + 1);
        assert!(probes(&gone.served()) <= of_gone + 1);
    }
}
