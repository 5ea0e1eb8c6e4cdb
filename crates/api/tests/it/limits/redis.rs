//! Several instances that count together in Redis, and what they do without it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use sluice_testkit::{Gate, RedisServer, Request, RunningProcess, Script, call, redis_server};
use tokio::time::Instant;

use crate::deployment::{Backend, Deployment, PATIENCE, Relay, chat};

use super::slots::send_with;
use super::{key_id, limit};

/// A Redis that nobody has seen before is counted on only after a minute: it may have lost what it
/// knew.
const PATIENCE_WITH_REDIS: Duration = Duration::from_mins(3);

/// Two instances on one database and one Redis.
struct Pair {
    first: Relay,
    second: SocketAddr,
    _process: RunningProcess,
}

impl Pair {
    fn start(deployment: Deployment) -> Self {
        let folder = deployment.folder.path().join("second");
        let second = deployment
            .program(&["serve"])
            .env("SLUICE_DATA_DIR", folder);
        let process = second.start();
        let line = process.wait_for_line("accepting requests", PATIENCE);
        let event: Value = serde_json::from_str(&line).unwrap();
        Self {
            first: deployment.start(),
            second: event["address"].as_str().unwrap().parse().unwrap(),
            _process: process,
        }
    }

    fn both(&self) -> [SocketAddr; 2] {
        [self.first.address, self.second]
    }

    async fn wait_for_word(&self, word: &str) {
        let began = Instant::now();
        let health = Request::get("/health");
        for address in self.both() {
            while call(address, &health).await.unwrap().json()["windows"] != word {
                assert!(began.elapsed() < PATIENCE_WITH_REDIS, "not {word}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    /// Asks each in turn, and returns how many requests each has admitted.
    async fn ask_in_turn(&self, key: &str, rounds: usize) -> [usize; 2] {
        let request = Request::post("/v1/chat/completions", &chat(2)).key(key);
        let mut admitted = [0, 0];
        for _ in 0..rounds {
            for (count, address) in admitted.iter_mut().zip(self.both()) {
                let answer = call(address, &request).await.unwrap();
                match answer.status() {
                    200 => *count += 1,
                    429 => assert_eq!(answer.json()["error"]["code"], "rate_limit_exceeded"),
                    status => panic!("{status}: {}", answer.json()),
                }
            }
        }
        admitted
    }
}

/// A deployment that counts in a Redis.
fn deployment(redis: &RedisServer, on_loss: &str) -> Option<Deployment> {
    let mut deployment = Deployment::new(Backend::Postgres)?;
    deployment.set("SLUICE_LIMITS_REDIS_URL", redis.url());
    // What is shown here is what happens, not how fast it is on a busy machine.
    deployment.set("SLUICE_LIMITS_REDIS_DEADLINE_MS", "5000");
    deployment.set("SLUICE_LIMITS_ON_REDIS_LOSS", on_loss);
    deployment.set("SLUICE_LIMITS_MIN_INSTANCES", "2");
    Some(deployment)
}

fn key_with(deployment: &Deployment, name: &str, limits: &[&str]) -> String {
    let key = deployment.issue_key(name, &[]);
    limit(deployment, &["--key", &key_id(deployment, name)], limits);
    key
}

#[tokio::test]
async fn instances_count_together_in_redis_and_share_without_it() {
    let Some(binary) = redis_server() else { return };
    let mut redis = RedisServer::start(&binary);
    let Some(sharing) = deployment(&redis, "share") else {
        return;
    };
    let Some(denying) = deployment(&redis, "deny") else {
        return;
    };
    let shared = key_with(
        &sharing,
        "shared",
        &["--rpm", "6", "--tpm", "1_000_000_000"],
    );
    let slot = key_with(&sharing, "slot", &["--concurrency", "1"]);
    let lost = key_with(&sharing, "lost", &["--rpm", "7"]);
    let denied = key_with(&denying, "denied", &["--rpm", "1000"]);
    let (sharing, denying) = (Pair::start(sharing), Pair::start(denying));
    sharing.wait_for_word("redis").await;
    denying.wait_for_word("redis").await;

    assert_eq!(
        sharing.ask_in_turn(&shared, 8).await,
        [3, 3],
        "six a minute in all"
    );
    assert_eq!(denying.ask_in_turn(&denied, 2).await, [2, 2]);
    one_slot_for_both(&sharing, &slot).await;

    redis.kill();
    sharing.wait_for_word("degraded").await;
    denying.wait_for_word("degraded").await;
    let mut admitted = sharing.ask_in_turn(&lost, 10).await;
    admitted.sort_unstable();
    assert_eq!(admitted, [3, 4], "the rest goes to one of them");
    assert_eq!(
        sharing.ask_in_turn(&shared, 1).await,
        [0, 0],
        "each knows its own"
    );
    assert_eq!(denying.ask_in_turn(&denied, 2).await, [0, 0]);
    let unlimited = denying.first.key().to_owned();
    assert_eq!(
        denying.ask_in_turn(&unlimited, 2).await,
        [2, 2],
        "what has no limit is served"
    );

    let metrics = Request::get("/metrics");
    let answer = call(sharing.first.address, &metrics).await.unwrap();
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("sluice_window_redis_up{server="));
    assert!(line.unwrap().ends_with(" 0"), "{line:?}");
}

/// Whoever holds a slot at one instance holds it at the other.
async fn one_slot_for_both(pair: &Pair, key: &str) {
    let gate = Gate::new();
    pair.first
        .upstream()
        .script(Script::new().words(3).wait_before_head(&gate));
    let mut client = send_with(&pair.first, key, &chat(2)).await;
    assert_eq!(pair.ask_in_turn(key, 1).await, [0, 0]);
    gate.open();
    assert_eq!(client.read_head().await.unwrap().status, 200);
    client.read_body().await.unwrap();
    let began = Instant::now();
    while pair.ask_in_turn(key, 1).await != [1, 1] {
        assert!(began.elapsed() < PATIENCE, "the slot was not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A password in the URL is shown nowhere.
#[test]
fn the_url_of_redis_is_a_secret() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set(
        "SLUICE_LIMITS_REDIS_URL",
        "redis://user:canary-71@127.0.0.1:1/0",
    );
    let shown = deployment.run(&["config", "check"]);
    assert!(!shown.contains("canary"), "{shown}");
    deployment.set("SLUICE_LIMITS_REDIS_URL", "http://user:canary-71@127.0.0.1");
    let refused = deployment.try_run(&["config", "check"]);
    assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("redis://"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("canary"), "{}", refused.stderr);
}
