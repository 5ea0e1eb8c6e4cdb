//! The database server goes away, for a while and over a restart. Only PostgreSQL can.

mod journal;
mod proxy;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_domain::time::UnixMillis;
use sluice_storage::Storage;
use sluice_storage::resolve::{Resolved, Settlement};
use sluice_testkit::{Program, Request, Response, RunningProcess, Served, call};
use tokio::time::Instant;

use crate::deployment::{Backend, Deployment, PATIENCE, TAKES_EFFECT_WITHIN, chat};
use proxy::{DatabaseProxy, Mode};

/// A relay whose database stands behind a proxy.
struct Outage {
    deployment: Deployment,
    proxy: DatabaseProxy,
    url: String,
}

/// One run of the relay.
struct Run {
    process: RunningProcess,
    address: SocketAddr,
}

impl Outage {
    fn new() -> Option<Self> {
        let deployment = Deployment::new(Backend::Postgres)?;
        let mut url = url::Url::parse(&deployment.database_url).unwrap();
        let host = url.host_str().unwrap().to_owned();
        let proxy = DatabaseProxy::start(format!("{host}:{}", url.port().unwrap_or(5432)));
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(proxy.port())).unwrap();
        Some(Self {
            deployment,
            proxy,
            url: url.into(),
        })
    }

    fn spawn(&self, settings: &[(&str, &str)]) -> RunningProcess {
        let mut program = self
            .deployment
            .program(&["serve"])
            .env("SLUICE_DATABASE_URL", &self.url);
        for (variable, value) in settings {
            program = program.env(variable, value);
        }
        program.start()
    }

    fn start(&self, settings: &[(&str, &str)]) -> Run {
        let process = self.spawn(settings);
        let line = process.wait_for_line("accepting requests", PATIENCE);
        let event: Value = serde_json::from_str(&line).unwrap();
        let address = event["address"].as_str().unwrap().parse().unwrap();
        Run { process, address }
    }

    fn snapshot(&self) -> PathBuf {
        self.deployment.folder.path().join("data/snapshot")
    }

    /// Waits until the snapshot has so many keys.
    async fn wait_for_keys(&self, count: usize) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(self.snapshot()) {
                let (_head, json) = text.split_once('\n').unwrap();
                let document: Value = serde_json::from_str(json).unwrap();
                if document["keys"].as_array().unwrap().len() == count {
                    return document;
                }
            }
            assert!(Instant::now() < deadline, "no snapshot of {count} keys");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Revokes a key, past the proxy.
    fn revoke(&self, name: &str) {
        let list = self.deployment.run(&["key", "list", "--tenant", "acme"]);
        let line = list.lines().find(|line| line.contains(name)).unwrap();
        let mut words = line.split_whitespace();
        let id = words.find(|word| word.starts_with("key_")).unwrap();
        self.deployment.run(&["key", "revoke", id]);
    }

    /// Waits until every request at the provider has exactly one record, of just what was served.
    async fn everything_is_posted_once(&self) {
        let served = self.served();
        let mut expected: Vec<i64> = served
            .iter()
            .map(|s| s.input_tokens + s.output_tokens)
            .collect();
        let records = self.deployment.wait_for_records(served.len()).await;
        let mut found: Vec<i64> = records.iter().map(|r| r.quota_tokens).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        let ((daily, tokens), (monthly, monthly_tokens)) = self.deployment.rollups().await;
        assert_eq!(usize::try_from(daily).unwrap(), served.len());
        assert_eq!((monthly, monthly_tokens), (daily, tokens));
        self.ledger_is_consistent().await;
    }

    /// Opens the database, past the proxy.
    async fn storage(&self) -> Storage {
        self.deployment.storage().await.0
    }

    async fn ledger_is_consistent(&self) {
        let storage = self.storage().await;
        let findings = storage.verify_ledger(now()).await.unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        storage.close().await;
    }

    fn served(&self) -> Vec<Served> {
        self.deployment.upstream.served()
    }
}

impl Run {
    async fn ask(&self, key: &str) -> Response {
        ask(self.address, key).await
    }

    /// Waits until a key is served: the writer takes a moment to find a database that is back.
    async fn wait_until_served(&self, key: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.ask(key).await.status() != 200 {
            assert!(Instant::now() < deadline, "the key is not served");
        }
    }

    async fn health(&self) -> Value {
        let response = call(self.address, &Request::get("/health")).await.unwrap();
        serde_json::from_slice(&response.body).unwrap()
    }

    /// Waits for a state of the database in `/health`.
    async fn wait_for_database(&self, state: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let health = self.health().await;
            if health["database"].as_str().unwrap().starts_with(state) {
                return;
            }
            assert!(Instant::now() < deadline, "{health} instead of {state}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn readiness(&self) -> u16 {
        let response = call(self.address, &Request::get("/readyz")).await.unwrap();
        response.status()
    }
}

fn now() -> UnixMillis {
    let elapsed = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    UnixMillis(i64::try_from(elapsed).unwrap())
}

async fn ask(address: SocketAddr, key: &str) -> Response {
    let request = Request::post("/v1/chat/completions", &chat(2)).key(key);
    call(address, &request).await.unwrap()
}

#[track_caller]
fn assert_unavailable(response: &Response) {
    let body: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(response.status(), 503, "{body}");
    assert_eq!(body["error"]["code"], "service_unavailable", "{body}");
    assert!(response.header("retry-after").is_some());
}

/// How long a client of the load rests: `records` reads a thousand of them.
const PAUSE: Duration = Duration::from_millis(50);

/// Clients that ask one after the other until they are told to stop.
struct Load {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr, key: &str, clients: usize) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let (answered, refused) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let clients = (0..clients)
            .map(|_| {
                let request = Request::post("/v1/chat/completions", &chat(2)).key(key);
                let (is_over, answered) = (Arc::clone(&is_over), Arc::clone(&answered));
                let refused = Arc::clone(&refused);
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        // A killed process refuses connections.
                        let Ok(response) = call(address, &request).await else {
                            return;
                        };
                        let count = if response.status() == 200 {
                            &answered
                        } else {
                            &refused
                        };
                        count.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(PAUSE).await;
                    }
                })
            })
            .collect();
        Self {
            is_over,
            answered,
            refused,
            clients,
        }
    }

    fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many more were answered.
    async fn goes_on(&self, more: usize) {
        let (before, deadline) = (self.answered(), Instant::now() + PATIENCE);
        while self.answered() < before + more {
            let answered = self.answered();
            assert!(Instant::now() < deadline, "{answered} after {before}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn end(self) -> (usize, usize) {
        self.is_over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        (
            self.answered.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
        )
    }
}

async fn known_keys_are_served(mode: Mode) {
    let Some(outage) = Outage::new() else { return };
    let known = outage.deployment.key.clone();
    let unknown = outage.deployment.issue_key("never-used", &[]);
    let run = outage.start(&[]);
    assert_eq!(run.ask(&known).await.status(), 200);
    let load = Load::start(run.address, &known, 4);
    outage.wait_for_keys(1).await;

    outage.proxy.set(mode);
    run.wait_for_database("down, serving known keys as of ")
        .await;
    assert_eq!(run.readiness().await, 200);
    assert_unavailable(&run.ask(&unknown).await);
    load.goes_on(100).await;
    assert_eq!(run.ask(&known).await.status(), 200);

    outage.proxy.set(Mode::Pass);
    run.wait_for_database("up").await;
    assert_eq!(run.ask(&unknown).await.status(), 200);
    let (_answered, refused) = load.end().await;
    assert_eq!(refused, 0);
    outage.everything_is_posted_once().await;
}

#[tokio::test]
async fn known_keys_are_served_while_the_database_refuses_connections() {
    known_keys_are_served(Mode::Refuse).await;
}

#[tokio::test]
async fn known_keys_are_served_while_the_database_is_silent() {
    known_keys_are_served(Mode::Stall).await;
}

async fn a_killed_instance_serves_known_keys(mode: Mode) {
    let Some(outage) = Outage::new() else { return };
    let known = outage.deployment.key.clone();
    let revoked_before = outage.deployment.issue_key("revoked-before", &[]);
    let revoked_meanwhile = outage.deployment.issue_key("revoked-meanwhile", &[]);
    let never_used = outage.deployment.issue_key("never-used", &[]);
    let run = outage.start(&[]);
    for key in [&known, &revoked_before, &revoked_meanwhile] {
        assert_eq!(run.ask(key).await.status(), 200);
    }
    outage.wait_for_keys(3).await;
    outage.revoke("revoked-before");
    outage.wait_for_keys(2).await;

    let load = Load::start(run.address, &known, 4);
    load.goes_on(20).await;
    outage.proxy.set(mode);
    load.goes_on(20).await;
    run.process.kill();
    load.end().await;

    let run = outage.start(&[]);
    let health = run.health().await;
    assert!(
        health["database"]
            .as_str()
            .unwrap()
            .starts_with("down, serving from a snapshot of "),
        "{health}"
    );
    assert_eq!(run.readiness().await, 200);
    assert_unavailable(&run.ask(&never_used).await);
    assert_unavailable(&run.ask(&revoked_before).await);
    assert_eq!(run.ask(&revoked_meanwhile).await.status(), 200);
    // Past the proxy: the database itself is there.
    outage.revoke("revoked-meanwhile");
    let load = Load::start(run.address, &known, 4);
    load.goes_on(40).await;

    outage.proxy.set(Mode::Pass);
    run.wait_for_database("up").await;
    let up = Instant::now();
    while run.ask(&revoked_meanwhile).await.status() == 200 {
        assert!(
            up.elapsed() < TAKES_EFFECT_WITHIN,
            "a revoked key is served"
        );
    }
    assert_eq!(run.ask(&never_used).await.status(), 200);
    let (_answered, refused) = load.end().await;
    assert_eq!(refused, 0);
    run.process.terminate();
    assert!(
        run.process.wait_exit(PATIENCE).success(),
        "{}",
        run.process.stderr()
    );

    // What the kill cut off may not have reached the provider, but was held.
    let served = outage.served().len();
    let records = outage.deployment.records().await;
    assert!(
        (served..=served + 4).contains(&records.len()),
        "{served} served, {} records",
        records.len()
    );
    let ((daily, _), (monthly, _)) = outage.deployment.rollups().await;
    assert_eq!(
        (usize::try_from(daily), usize::try_from(monthly)),
        (Ok(records.len()), Ok(records.len()))
    );
    outage.ledger_is_consistent().await;
    let recovered = records
        .iter()
        .filter(|record| record.basis == "recovered")
        .count();
    assert!(
        recovered <= 4,
        "{recovered} of 4 open requests were recovered"
    );
}

#[tokio::test]
async fn a_killed_instance_serves_known_keys_while_the_database_refuses_connections() {
    a_killed_instance_serves_known_keys(Mode::Refuse).await;
}

#[tokio::test]
async fn a_killed_instance_serves_known_keys_while_the_database_is_silent() {
    a_killed_instance_serves_known_keys(Mode::Stall).await;
}

/// Serves once with every key, kills the process, and returns with the database away.
async fn killed() -> Option<Outage> {
    let outage = Outage::new()?;
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    outage.wait_for_keys(1).await;
    outage.proxy.set(Mode::Refuse);
    run.process.kill();
    Some(outage)
}

#[tokio::test]
async fn a_snapshot_that_was_changed_is_not_used() {
    let Some(outage) = killed().await else { return };
    let mut text = std::fs::read_to_string(outage.snapshot()).unwrap();
    text = text.replacen("\"state\":\"active\"", "\"state\":\"ACTIVE\"", 1);
    std::fs::write(outage.snapshot(), text).unwrap();
    let process = outage.spawn(&[]);
    assert!(!process.wait_exit(PATIENCE).success());
    let log = process.stderr();
    assert!(
        log.contains("it was changed, or written with another master key or pepper"),
        "{log}"
    );
    assert!(log.contains("the database cannot be opened"), "{log}");
}

#[tokio::test]
async fn a_snapshot_of_another_pepper_is_not_used() {
    let Some(outage) = killed().await else { return };
    let pepper = "33".repeat(32);
    let process = outage.spawn(&[("SLUICE_PEPPER", &pepper)]);
    assert!(!process.wait_exit(PATIENCE).success());
    let log = process.stderr();
    assert!(
        log.contains("it was changed, or written with another master key or pepper"),
        "{log}"
    );
}

#[tokio::test]
async fn a_snapshot_that_is_too_old_is_not_used() {
    let Some(outage) = killed().await else { return };
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let process = outage.spawn(&[("SLUICE_SNAPSHOT_MAX_AGE_MS", "1000")]);
    assert!(!process.wait_exit(PATIENCE).success());
    let log = process.stderr();
    assert!(
        log.contains("it is older than snapshot.max_age_ms allows"),
        "{log}"
    );
}

#[tokio::test]
async fn without_snapshots_nothing_is_served_without_the_database() {
    let Some(outage) = Outage::new() else { return };
    let off = [("SLUICE_SNAPSHOT_MAX_AGE_MS", "0")];
    let run = outage.start(&off);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    outage.proxy.set(Mode::Refuse);
    let deadline = Instant::now() + PATIENCE;
    while run.readiness().await == 200 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_unavailable(&run.ask(&outage.deployment.key).await);
    run.process.kill();
    assert!(!outage.snapshot().exists());
    let process = outage.spawn(&off);
    assert!(!process.wait_exit(PATIENCE).success());
}

#[tokio::test]
async fn known_keys_are_served_only_as_long_as_allowed() {
    let Some(outage) = killed().await else { return };
    let run = outage.start(&[("SLUICE_SNAPSHOT_MAX_AGE_MS", "12000")]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    let deadline = Instant::now() + PATIENCE;
    while run.readiness().await == 200 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_unavailable(&run.ask(&outage.deployment.key).await);
    outage.proxy.set(Mode::Pass);
    run.wait_until_served(&outage.deployment.key).await;
    outage.everything_is_posted_once().await;
}

#[tokio::test]
async fn an_exhausted_lease_is_never_an_exhausted_quota() {
    let Some(outage) = Outage::new() else { return };
    let capped = outage
        .deployment
        .issue_key("capped", &["--quota", "2000000"]);
    let run = outage.start(&[]);
    assert_eq!(run.ask(&capped).await.status(), 200);
    outage.wait_for_keys(1).await;
    outage.proxy.set(Mode::Refuse);
    run.wait_for_database("down").await;
    // Leases are taken ahead, but not without end.
    let deadline = Instant::now() + Duration::from_mins(5);
    let refused = loop {
        let response = run.ask(&capped).await;
        if response.status() != 200 {
            break response;
        }
        assert!(Instant::now() < deadline, "the lease does not end");
    };
    assert_unavailable(&refused);
    run.process.kill();
    let run = outage.start(&[]);
    assert_unavailable(&run.ask(&capped).await);
    outage.proxy.set(Mode::Pass);
    run.wait_until_served(&capped).await;
    outage.everything_is_posted_once().await;
}

#[tokio::test]
async fn a_stop_without_the_database_leaves_the_records_to_the_next_start() {
    let Some(outage) = killed().await else { return };
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    run.process.terminate();
    assert!(!run.process.wait_exit(2 * PATIENCE).success());
    let log = run.process.stderr();
    assert!(
        log.contains("usage records could not be posted before the end"),
        "{log}"
    );
    outage.proxy.set(Mode::Pass);
    let run = outage.start(&[]);
    outage.everything_is_posted_once().await;
    assert_eq!(run.health().await["database"], "up");
}

#[tokio::test]
async fn a_running_instance_stops_without_the_database() {
    let Some(outage) = Outage::new() else { return };
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    outage.proxy.set(Mode::Refuse);
    run.wait_for_database("down").await;
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    tokio::time::sleep(Duration::from_millis(300)).await;
    run.process.terminate();
    assert!(!run.process.wait_exit(2 * PATIENCE).success());
    let log = run.process.stderr();
    assert!(
        log.contains("usage records could not be posted before the end"),
        "{log}"
    );
    outage.proxy.set(Mode::Pass);
    let _run = outage.start(&[]);
    outage.everything_is_posted_once().await;
}

#[tokio::test]
async fn keys_that_were_used_before_a_restart_stay_known() {
    let Some(outage) = Outage::new() else { return };
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    outage.wait_for_keys(1).await;
    run.process.terminate();
    assert!(run.process.wait_exit(PATIENCE).success());
    let first = outage.wait_for_keys(1).await;

    // With the database, and without a request.
    let run = outage.start(&[]);
    let deadline = Instant::now() + PATIENCE;
    while outage.wait_for_keys(1).await["as_of_ms"] == first["as_of_ms"] {
        assert!(Instant::now() < deadline, "the snapshot is not renewed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    outage.proxy.set(Mode::Refuse);
    run.process.kill();
    let run = outage.start(&[]);
    // It was stopped, so it has no lease of anything.
    assert_unavailable(&run.ask(&outage.deployment.key).await);
    outage.proxy.set(Mode::Pass);
    run.wait_until_served(&outage.deployment.key).await;
}

#[tokio::test]
async fn a_key_that_changes_stays_known_with_its_change() {
    let Some(outage) = Outage::new() else { return };
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    let document = outage.wait_for_keys(1).await;
    assert_eq!(document["users"][0]["quota_tokens"], Value::Null);
    let id = document["keys"][0]["id"].as_str().unwrap().to_owned();
    outage.deployment.run(&["key", "disable", &id]);
    outage.wait_for_keys(0).await;
    outage.deployment.run(&["key", "enable", &id]);
    run.wait_until_served(&outage.deployment.key).await;
    outage.wait_for_keys(1).await;
    let quota = [
        "user",
        "quota",
        "--tenant",
        "acme",
        "ann",
        "--tokens",
        "123456789",
    ];
    outage.deployment.run(&quota);
    let deadline = Instant::now() + PATIENCE;
    while outage.wait_for_keys(1).await["users"][0]["quota_tokens"] != 123_456_789 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Limits are known without the database as well, also to an instance that starts meanwhile.
#[tokio::test]
async fn window_limits_hold_after_a_restart_without_the_database() {
    let Some(outage) = Outage::new() else { return };
    let key = outage.deployment.key.clone();
    let run = outage.start(&[]);
    assert_eq!(run.ask(&key).await.status(), 200);
    outage.wait_for_keys(1).await;
    let set = ["limit", "set", "--tenant", "acme", "--user", "ann"];
    outage.deployment.run(&[&set[..], &["--rpm", "2"]].concat());
    let expected = json!([["rpm", 2, false]]);
    let deadline = Instant::now() + PATIENCE;
    while outage.wait_for_keys(1).await["users"][0]["windows"] != expected {
        assert!(
            Instant::now() < deadline,
            "the limit is not in the snapshot"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    outage.proxy.set(Mode::Refuse);
    run.process.kill();
    let run = outage.start(&[]);
    for status in [200, 200, 429, 429] {
        let answer = run.ask(&key).await;
        assert_eq!(answer.status(), status, "{}", answer.json());
    }
    assert_eq!(
        run.ask(&key).await.json()["error"]["code"],
        "rate_limit_exceeded"
    );
}

#[tokio::test]
async fn an_instance_that_was_settled_meanwhile_hands_in_what_it_has() {
    let Some(outage) = killed().await else { return };
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    let storage = outage.storage().await;
    let instance = storage.list_instances().await.unwrap()[0].instance_id;
    let forced = Settlement {
        is_forced: true,
        ..Settlement::default()
    };
    let settled = storage
        .resolve_instance(instance, forced, now())
        .await
        .unwrap();
    assert!(matches!(settled, Resolved::Settled(_)), "{settled:?}");
    storage.close().await;
    outage.proxy.set(Mode::Pass);
    assert!(!run.process.wait_exit(PATIENCE).success());
    let log = run.process.stderr();
    assert!(
        log.contains("an operator has settled this instance"),
        "{log}"
    );
    outage.everything_is_posted_once().await;
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    outage.everything_is_posted_once().await;
}

#[tokio::test]
async fn an_older_copy_of_a_data_folder_ends_when_the_database_says_so() {
    let Some(outage) = Outage::new() else { return };
    let run = outage.start(&[]);
    assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    outage.wait_for_keys(1).await;
    outage.deployment.wait_for_records(1).await;
    run.process.kill();
    let folder = outage.deployment.folder.path();
    let (data, copy) = (folder.join("data"), folder.join("copy"));
    let copied = Program::new("cp")
        .arg("-r")
        .args([&data, &copy])
        .run(PATIENCE);
    assert!(copied.status.success());
    let run = outage.start(&[]);
    for _ in 0..3 {
        assert_eq!(run.ask(&outage.deployment.key).await.status(), 200);
    }
    outage.deployment.wait_for_records(4).await;
    run.process.kill();

    outage.proxy.set(Mode::Refuse);
    let run = outage.start(&[("SLUICE_DATA_DIR", copy.to_str().unwrap())]);
    outage.proxy.set(Mode::Pass);
    assert!(!run.process.wait_exit(PATIENCE).success());
    let log = run.process.stderr();
    assert!(
        log.contains("another process uses the identity of this instance"),
        "{log}"
    );
    outage.everything_is_posted_once().await;
}

/// How long each half of an outage under load takes; minutes show more of it.
const HALF_AN_OUTAGE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn an_outage_under_load_with_a_restart_loses_nothing() {
    const CLIENTS: usize = 8;
    let Some(outage) = Outage::new() else { return };
    let known = outage.deployment.key.clone();
    let run = outage.start(&[]);
    assert_eq!(run.ask(&known).await.status(), 200);
    outage.wait_for_keys(1).await;
    let load = Load::start(run.address, &known, CLIENTS);
    load.goes_on(10 * CLIENTS).await;
    outage.proxy.set(Mode::Stall);
    tokio::time::sleep(HALF_AN_OUTAGE).await;
    run.process.kill();
    let (first_half, refused) = load.end().await;
    assert_eq!(refused, 0);

    outage.proxy.set(Mode::Refuse);
    let run = outage.start(&[]);
    let load = Load::start(run.address, &known, CLIENTS);
    tokio::time::sleep(HALF_AN_OUTAGE).await;
    outage.proxy.set(Mode::Pass);
    run.wait_for_database("up").await;
    let (second_half, refused) = load.end().await;
    assert_eq!(refused, 0);
    run.process.terminate();
    assert!(
        run.process.wait_exit(PATIENCE).success(),
        "{}",
        run.process.stderr()
    );

    let ((records, tokens), monthly) = outage.deployment.rollups().await;
    assert_eq!((records, tokens), monthly);
    let (records, served) = (usize::try_from(records).unwrap(), outage.served().len());
    assert!(served > first_half + second_half, "{served} served");
    // What the kill cut off may not have reached the provider, but was held.
    assert!(
        (served..=served + CLIENTS).contains(&records),
        "{served} served, {records} records"
    );
    let sent: i64 = outage
        .served()
        .iter()
        .map(|s| s.input_tokens + s.output_tokens)
        .sum();
    // What was open at the kill is charged as far as it was relayed.
    let cut_off = sent - tokens;
    assert!(
        (0..=50 * 8).contains(&cut_off),
        "{sent} tokens were sent, {tokens} charged"
    );
    outage.ledger_is_consistent().await;
}
