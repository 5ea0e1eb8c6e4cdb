//! What waits in the journal while the database is away, and what is not kept any more when the
//! database asks for it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sluice_domain::quota::Amounts;
use sluice_testkit::{Gate, HttpClient, Script};

use super::*;
use crate::deployment::{Relay, streamed_chat};

const SEGMENT: u64 = 1 << 20;
/// The smallest that there may be.
const MAX: u64 = 4 << 20;
/// As long as it may be, so that the journal fills up soon.
const USER_AGENT: &str = "client client client client client client client client client client \
    client client client client client client client client client client client client client \
    client client client client";
const CLIENTS: usize = 8;
/// More than fits into the journal.
const LEASED: i64 = 1_000_000;

/// Sends requests one after the other until one is refused; returns how many were answered, and the
/// code of the refusal.
async fn ask_until_refused(address: SocketAddr, key: String) -> (usize, String) {
    let request = Request::post("/v1/chat/completions", &chat(2))
        .key(&key)
        .header("user-agent", USER_AGENT);
    let mut client = HttpClient::connect(address).await.unwrap();
    let deadline = Instant::now() + 5 * PATIENCE;
    let mut answered = 0;
    loop {
        let response = client.call(&request).await.unwrap();
        if response.status() != 200 {
            assert_eq!(response.status(), 503, "{}", response.json());
            assert!(response.header("retry-after").is_some());
            let code = response.json()["error"]["code"]
                .as_str()
                .unwrap()
                .to_owned();
            return (answered, code);
        }
        answered += 1;
        assert!(Instant::now() < deadline, "{answered} fit into the journal");
    }
}

fn folder_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum()
}

#[tokio::test]
async fn what_waits_for_the_database_takes_no_more_than_it_may_and_what_is_open_ends() {
    let Some(outage) = Outage::new() else { return };
    let key = outage.deployment.key.clone();
    let (segment, max) = (SEGMENT.to_string(), MAX.to_string());
    let run = outage.start(&[
        ("SLUICE_JOURNAL_SEGMENT_BYTES", &segment),
        ("SLUICE_JOURNAL_MAX_BYTES", &max),
        ("SLUICE_LEDGER_OUTAGE_RESERVE_MS", "86400000"),
    ]);
    // What is leased ahead lasts for more than the journal has space for.
    let storage = outage.storage().await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert_eq!(run.ask(&key).await.status(), 200);
        let instances = storage.list_instances().await.unwrap();
        let leases = instances.iter().flat_map(|instance| &instance.leases);
        let leased = leases.fold(Amounts::ZERO, |sum, lease| sum.plus(lease.lease.held));
        if leased.tokens > LEASED {
            break;
        }
        assert!(Instant::now() < deadline, "{leased:?}");
    }
    storage.close().await;
    outage.wait_for_keys(1).await;
    let upstream = &outage.deployment.upstream;
    let gate = Gate::new();
    upstream.script(Script::new().words(9).wait_at(5, &gate));
    let mut open = HttpClient::connect(run.address).await.unwrap();
    let request = Request::post("/v1/chat/completions", &streamed_chat(2)).key(&key);
    open.send(&request).await.unwrap();
    assert_eq!(open.read_head().await.unwrap().status, 200);

    outage.proxy.set(Mode::Refuse);
    run.wait_for_database("down").await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| tokio::spawn(ask_until_refused(run.address, key.clone())))
        .collect();
    let mut answered = 0;
    for client in clients {
        let (count, code) = client.await.unwrap();
        assert_eq!(code, "server_is_overloaded");
        answered += count;
    }
    let journal = outage.deployment.folder.path().join("data/journal");
    let bytes = folder_bytes(&journal);
    println!("{answered} requests wait in {bytes} bytes");
    assert!((MAX - SEGMENT..=MAX).contains(&bytes), "{bytes}");
    assert!(answered > 500, "{answered}");
    run.process
        .wait_for_line("as much space as journal.max_bytes allows", PATIENCE);
    // What was admitted has its space.
    gate.open();
    let (events, error) = open.read_events().await;
    assert!(error.is_none(), "{error:?}");
    assert!(events.last().unwrap().is_done());

    outage.proxy.set(Mode::Pass);
    run.wait_until_served(&key).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let served = outage.served();
        let tokens = served
            .iter()
            .map(|s| s.input_tokens + s.output_tokens)
            .sum();
        let expected = (i64::try_from(served.len()).unwrap(), tokens);
        let (daily, monthly) = outage.deployment.rollups().await;
        if (daily, monthly) == (expected, expected) {
            break;
        }
        assert!(Instant::now() < deadline, "{daily:?} of {expected:?}");
        tokio::time::sleep(PAUSE).await;
    }
    assert!(folder_bytes(&journal) <= MAX);
    run.process.terminate();
    assert!(run.process.wait_exit(PATIENCE).success());
    outage.ledger_is_consistent().await;
}

/// Serves some requests until they are in the database, and stops.
async fn serve_some(deployment: Deployment, requests: usize, records: usize) -> Deployment {
    let relay = deployment.start();
    for _ in 0..requests {
        let answer = relay.post("/v1/chat/completions", &chat(2)).await;
        assert_eq!(answer.status(), 200);
    }
    relay.deployment.wait_for_records(records).await;
    assert!(relay.stop());
    let Relay { deployment, .. } = relay;
    deployment
}

fn copy_database(from: &Path, to: &Path) {
    for end in ["", "-wal", "-shm"] {
        let of = |folder: &Path| folder.join(format!("sluice.db{end}"));
        if of(to).exists() {
            fs::remove_file(of(to)).unwrap();
        }
        if of(from).exists() {
            fs::copy(of(from), of(to)).unwrap();
        }
    }
}

fn segments(folder: &Path) -> Vec<std::ffi::OsString> {
    let files = fs::read_dir(folder).unwrap();
    files.map(|file| file.unwrap().file_name()).collect()
}

#[tokio::test]
async fn posts_that_neither_database_nor_journal_has_are_given_up_by_an_operator_alone() {
    let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
    deployment.set("SLUICE_JOURNAL_KEEP_MS", "0");
    let folder = deployment.folder.path().to_owned();
    let (backup, journal) = (folder.join("backup"), folder.join("data/journal"));
    fs::create_dir(&backup).unwrap();
    let deployment = serve_some(deployment, 3, 3).await;
    copy_database(&folder, &backup);
    let deployment = serve_some(deployment, 4, 7).await;
    let old = segments(&journal);
    // The next start finds that they are not needed, and does not keep them.
    let relay = deployment.start();
    for _ in 0..2 {
        let answer = relay.post("/v1/chat/completions", &chat(2)).await;
        assert_eq!(answer.status(), 200);
    }
    relay.deployment.wait_for_records(9).await;
    let deadline = Instant::now() + PATIENCE;
    while segments(&journal).iter().any(|name| old.contains(name)) {
        assert!(Instant::now() < deadline, "they are kept");
        tokio::time::sleep(PAUSE).await;
    }
    relay.process.kill();
    let deployment = relay.deployment;
    copy_database(&backup, &folder);

    let started = deployment.try_run(&["serve"]);
    let said = format!("{}{}", started.stdout, started.stderr);
    assert!(!started.status.success(), "{said}");
    let instances: Value =
        serde_json::from_str(&deployment.run(&["ledger", "instances", "--json"])).unwrap();
    let id = instances[0]["id"].as_str().unwrap().to_owned();
    let path = journal.display().to_string();
    let command = format!("ledger resolve {id} --journal {path}");
    assert!(said.contains(&format!("sluice {command}")), "{said}");
    assert!(said.contains("post 4") && said.contains("from 8"), "{said}");

    // It says what is lost, and does nothing unless that is confirmed.
    let words: Vec<&str> = command.split(' ').collect();
    let asked = deployment.try_run(&words);
    assert_eq!(asked.status.code(), Some(2), "{}", asked.stderr);
    let lost = format!("posts 4 to 7 of {id}: 4 requests");
    assert!(asked.stderr.contains(&lost), "{}", asked.stderr);
    let again = deployment.try_run(&["serve"]);
    assert!(again.stderr.contains("post 4"), "{}", again.stderr);
    // It was heard of a moment ago.
    let confirmed = [&words[..], &["--yes"]].concat();
    let alive = deployment.try_run(&confirmed);
    assert!(alive.stderr.contains("--force"), "{}", alive.stderr);
    let done = deployment.try_run(&[&confirmed[..], &["--force"]].concat());
    assert!(done.status.success(), "{}", done.stderr);
    let given_up = format!("posts 4 to 7 of {id} are given up: what 4 requests used");
    assert!(done.stderr.contains(&given_up), "{}", done.stderr);
    // Now the journal has all that is asked for.
    let nothing = deployment.try_run(&confirmed);
    assert!(
        nothing.stderr.contains("nothing is lost"),
        "{}",
        nothing.stderr
    );

    // The next start hands in the rest, and the one after it serves.
    let handed_in = deployment.try_run(&["serve"]);
    let said = handed_in.stderr;
    assert!(said.contains("it will be a new instance"), "{said}");
    let records = deployment.wait_for_records(5).await;
    let numbers: Vec<i64> = records.iter().map(|record| record.post_no).collect();
    assert_eq!(numbers, [1, 2, 3, 8, 9]);
    let deployment = serve_some(deployment, 1, 6).await;
    let verified = deployment.run(&["ledger", "verify", "--json"]);
    let findings: Value = serde_json::from_str(&verified).unwrap();
    let findings = findings.as_array().unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    let key = json!(format!("posts 4 to 7 of {id}"));
    assert_eq!(
        (&findings[0]["rule"], &findings[0]["key"]),
        (&json!("W1"), &key)
    );
    let instances: Value =
        serde_json::from_str(&deployment.run(&["ledger", "instances", "--json"])).unwrap();
    let old = instances
        .as_array()
        .unwrap()
        .iter()
        .find(|i| i["id"] == *id);
    let old = old.unwrap();
    assert_eq!((&old["state"], &old["lost"]), (&json!("closed"), &json!(4)));
    let served: i64 = records.iter().map(|record| record.quota_tokens).sum();
    let (daily, _) = deployment.rollups().await;
    assert_eq!(daily.0, 6);
    assert!(daily.1 > served);
}
