//! In the steady state a request asks the database for nothing: its key is known, its hold is taken
//! from a lease, its record goes out with those of others.

use std::net::SocketAddr;

use serde_json::Value;
use sluice_testkit::{HttpClient, Program, Request, Script, postgres_url};
use tokio::time::Instant;

use crate::deployment::{Backend, Deployment, PATIENCE, UPSTREAM_MODEL, chat};

const CLIENTS: usize = 8;
const REQUESTS: usize = 4_000;

#[tokio::test]
async fn requests_of_known_keys_cost_no_transactions_of_their_own() {
    let Some(deployment) = Deployment::new(Backend::Postgres) else {
        return;
    };
    let server = postgres_url().unwrap();
    let capped = deployment.issue_key("capped", &["--quota", "1000000000"]);
    deployment
        .upstream
        .script_for_model(UPSTREAM_MODEL, Script::new().words(3));
    let relay = deployment.start();
    let keys = [relay.key().to_owned(), capped];
    for key in &keys {
        send(relay.address, key, REQUESTS / 40).await;
    }

    let before = transactions(&server, &relay.deployment.database_url);
    let started = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (address, key) = (relay.address, keys[client % keys.len()].clone());
            tokio::spawn(async move { send(address, &key, REQUESTS / CLIENTS).await })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let took = started.elapsed();
    wait_until_posted(&relay.deployment, REQUESTS + 2 * (REQUESTS / 40)).await;
    let cost = transactions(&server, &relay.deployment.database_url) - before;
    println!("{cost} transactions while {REQUESTS} requests took {took:?}");

    // Batches of some 25 ms, and what looks at the database now and then whatever is going on.
    let per_second = 80;
    let most = per_second * (2 + i64::try_from(started.elapsed().as_secs()).unwrap());
    let requests = i64::try_from(REQUESTS).unwrap();
    assert!(
        cost <= most.min(requests - 1),
        "{cost} transactions for {requests} requests in {took:?}"
    );
    assert!(relay.stop());
}

async fn send(address: SocketAddr, key: &str, requests: usize) {
    let mut client = HttpClient::connect(address).await.unwrap();
    for _ in 0..requests {
        let request = Request::post("/v1/chat/completions", &chat(5)).key(key);
        client.send(&request).await.unwrap();
        let head = client.read_head().await.unwrap();
        let body: Value = serde_json::from_slice(&client.read_body().await.unwrap()).unwrap();
        assert_eq!(head.status, 200, "{body}");
    }
}

/// Waits until the rollups have so many requests.
async fn wait_until_posted(deployment: &Deployment, requests: usize) {
    let deadline = Instant::now() + PATIENCE;
    let requests = i64::try_from(requests).unwrap();
    loop {
        let ((posted, _), _) = deployment.rollups().await;
        if posted == requests {
            return;
        }
        assert!(posted < requests && Instant::now() < deadline, "{posted}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Returns how many transactions have ended in a database, of which the server knows after a second
/// at the latest.
fn transactions(server: &str, database_url: &str) -> i64 {
    let name = database_url.rsplit('/').next().unwrap();
    let statement = format!(
        "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
    );
    let finished = Program::new("psql")
        .args([server, "-X", "-q", "-t", "-A", "-c", &statement])
        .run(PATIENCE);
    assert!(finished.status.success(), "psql: {}", finished.stderr);
    finished.stdout.trim().parse().unwrap()
}
