//! The disk under the journal really fills up, under load: nobody is admitted whose end has no space,
//! whatever is under way ends and is recorded, and it goes on by itself.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::{
    Gate, HttpClient, Program, Request, RunningProcess, Script, SmallDisk, words,
};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::audit::{all_records, audit};
use crate::deployment::{Backend, Deployment, PATIENCE, figure, on_both_databases};
use crate::load::{Call, Load, NAME_LENGTH, Outcome, QUICK, prepare};

/// Some segments of the journal, and a database.
const DISK: u64 = 24 << 20;
/// The smallest that there are, so that the space that is set aside is used up soon.
const SEGMENT: &str = "1048576";
const CLIENTS: usize = 12;
/// Streams that are open all the time.
/// Requests before the disk is filled.
const WARM_UP: usize = 300;
/// So many that their posts do not fit into what the journal sets aside for notes of its own.
const PINNED: usize = 500;
const PINNED_MODEL: &str = "pinned";
/// Within this time of the first refusal nobody is admitted any more, by which other small requests
/// have used up the rest: a second; and so long later on a machine that is busy.
const STOPS_WITHIN: Duration = Duration::from_secs(1 + 9);
const STAYS_STOPPED: Duration = Duration::from_millis(1_500);
/// As many records wait for the database at any time.
const FEW_WAIT: i64 = 100;
/// It takes a second or two on a machine that is not busy.
const RESUMES_WITHIN: Duration = Duration::from_secs(30);

on_both_databases! {
    async fn a_full_disk_stops_admission_and_nothing_else(deployment: Deployment) {
        let Some(mut trial) = Trial::new(deployment) else { return };
        let (process, address) = trial.start(0);
        let gate = Gate::new();
        let pinned = trial.pin(address, &gate).await;
        trial.load_runs().await;
        for round in 0..2 {
            let ballast = trial.disk.fill();
            trial.admission_stops(&process, address).await;
            if round == 1 {
                // Their space was set aside: they end, and their records reach the database.
                gate.open();
                trial.pinned_are_recorded().await;
            }
            drop(ballast);
            trial.admission_resumes(address).await;
        }
        for task in pinned {
            trial.calls.push(task.await.unwrap());
        }
        trial.end(process).await;
    }
}

#[tokio::test]
async fn a_full_disk_under_journal_and_database_loses_nothing() {
    let Some(deployment) = Deployment::new(Backend::Sqlite) else {
        return;
    };
    let Some(mut trial) = Trial::new(deployment) else {
        return;
    };
    trial.move_database_onto_the_disk();
    let (process, address) = trial.start(0);
    trial.load_runs().await;
    let ballast = trial.disk.fill();
    trial.admission_stops(&process, address).await;
    drop(ballast);
    trial.admission_resumes(address).await;

    // Again; now it is killed meanwhile, and started while there is still no space.
    let ballast = trial.disk.fill();
    trial.admission_stops(&process, address).await;
    process.kill();
    trial.load.pause();
    let again = trial.deployment.program(&["serve"]).start();
    let line = again.wait_for_line_or_exit("accepting requests", PATIENCE);
    let said = again.stderr();
    assert!(line.is_some() || said.contains("No space left"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    again.kill();
    drop(ballast);
    let (process, address) = trial.start(1);
    trial.admission_resumes(address).await;
    trial.end(process).await;
}

struct Trial {
    deployment: Deployment,
    disk: SmallDisk,
    load: Load,
    /// Requests of this test itself.
    calls: Vec<Call>,
    key: String,
    life: usize,
    /// What a refusal may say.
    codes: Vec<&'static str>,
}

impl Trial {
    /// Puts the data folder on a disk of its own. `None` where that cannot be.
    fn new(mut deployment: Deployment) -> Option<Self> {
        prepare(&deployment);
        let pinned = format!("fake={PINNED_MODEL}");
        deployment.run(&["route", "create", PINNED_MODEL, "--to", &pinned]);
        let data = deployment.folder.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let disk = SmallDisk::mount(&data, DISK)?;
        deployment.launcher = disk.launcher().to_vec();
        deployment.set("SLUICE_JOURNAL_SEGMENT_BYTES", SEGMENT);
        let key = deployment.key.clone();
        let load = Load::start(CLIENTS, vec![key.clone()]);
        load.hurry(true);
        Some(Self {
            disk,
            load,
            calls: Vec::new(),
            key,
            life: 0,
            codes: vec!["server_is_overloaded"],
            deployment,
        })
    }

    fn move_database_onto_the_disk(&mut self) {
        let folder = self.deployment.folder.path();
        copy(&folder.join("sluice.db"), &self.disk.outside_path());
        self.codes.push("service_unavailable");
        // By the path that the relay sees.
        self.deployment.database_url = format!("sqlite:{}/data/sluice.db", folder.display());
    }

    fn start(&mut self, life: usize) -> (RunningProcess, std::net::SocketAddr) {
        let process = self.deployment.program(&["serve"]).start();
        let line = process.wait_for_line("accepting requests", PATIENCE);
        let event: Value = serde_json::from_str(&line).unwrap();
        let address = event["address"].as_str().unwrap().parse().unwrap();
        self.life = life;
        self.load.send_to(life, address);
        (process, address)
    }

    /// Waits until the load is under way, and what it needs is leased.
    async fn load_runs(&self) {
        let upstream = &self.deployment.upstream;
        upstream
            .wait_for(|served| served.len() >= WARM_UP, PATIENCE)
            .await;
    }

    /// Opens streams that wait at the gate in the middle. The oldest segment is needed as long as they
    /// are, and so is every other.
    async fn pin(&self, address: std::net::SocketAddr, gate: &Gate) -> Vec<JoinHandle<Call>> {
        let upstream = &self.deployment.upstream;
        let script = Script::new().words(40).wait_at(5, gate);
        upstream.script_for_model(PINNED_MODEL, script);
        let tasks = (0..PINNED)
            .map(|number| {
                let (mut call, request) = named("pinned", number, PINNED_MODEL, self.life);
                call.streams = true;
                let request = request(json!({"stream": true}), &self.key);
                tokio::spawn(async move {
                    let client = HttpClient::connect(address).await.unwrap();
                    let mut client = client.patience(Duration::from_mins(5));
                    // A database that is busy may not say in time what there is; who is told that
                    // asks again.
                    let head = loop {
                        client.send(&request).await.unwrap();
                        let head = client.read_head().await.unwrap();
                        if head.status != 503 {
                            break head;
                        }
                        client.read_body().await.unwrap();
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    };
                    call.request_id = head.headers.get("x-request-id").map(str::to_owned);
                    let (events, error) = client.read_events().await;
                    assert!(error.is_none(), "{error:?}");
                    assert!(events.last().unwrap().is_done(), "{events:?}");
                    call.outcome = Outcome::Complete;
                    call
                })
            })
            .collect();
        let is_waiting = |s: &sluice_testkit::Served| {
            s.model.as_deref() == Some(PINNED_MODEL) && s.events_written == 5
        };
        upstream
            .wait_for(
                move |all| all.iter().filter(|s| is_waiting(s)).count() == PINNED,
                PATIENCE,
            )
            .await;
        tasks
    }

    /// The disk is full: soon nobody is admitted, and nothing reaches the provider. Where it is the
    /// database that has no space, a lease may end before the journal.
    async fn admission_stops(&mut self, process: &RunningProcess, address: std::net::SocketAddr) {
        let full = Instant::now();
        let (mut refused_at, mut sent, mut last_sent_at) = (None, 0, full);
        while refused_at.is_none() || last_sent_at.elapsed() < STAYS_STOPPED {
            let outcome = self.ask(address).await;
            match &outcome {
                Outcome::Complete => {}
                Outcome::Refused(503, code) if self.codes.contains(&code.as_str()) => {
                    refused_at.get_or_insert_with(Instant::now);
                }
                _ => panic!("{outcome:?}\n{}", process.stderr()),
            }
            let count = self.deployment.upstream.served().len();
            if count != sent {
                (sent, last_sent_at) = (count, Instant::now());
            }
            let took = full.elapsed();
            assert!(
                took < Duration::from_mins(10),
                "it never stops: {sent} sent"
            );
        }
        let refused_after = refused_at.unwrap_or(full).duration_since(full);
        let stopped_after = last_sent_at
            .duration_since(full)
            .saturating_sub(refused_after);
        assert!(stopped_after < STOPS_WITHIN, "sent {stopped_after:?} later");
        assert_eq!(process.try_exit(), None);
        println!(
            "refused {refused_after:?} after the disk was full, the last of {sent} sent \
             {stopped_after:?} later"
        );
    }

    /// There is space again: soon everybody is admitted, and records reach the database.
    async fn admission_resumes(&mut self, address: std::net::SocketAddr) {
        let free = Instant::now();
        while self.ask(address).await != Outcome::Complete {
            assert!(free.elapsed() < RESUMES_WITHIN, "it does not resume");
        }
        let resumed_after = free.elapsed();
        loop {
            let waiting = figure(address, "sluice_ledger_waiting_records").await;
            if waiting < FEW_WAIT {
                break;
            }
            assert!(free.elapsed() < RESUMES_WITHIN, "{waiting} records wait");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let posted_after = free.elapsed();
        println!("resumed after {resumed_after:?}, records posted after {posted_after:?}");
    }

    /// Waits until the database has the records of the open streams.
    async fn pinned_are_recorded(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let records = all_records(&self.deployment).await;
            let finished = records.iter().filter(|record| {
                record.requested_model == PINNED_MODEL && record.ending == "finished"
            });
            let count = finished.count();
            if count == PINNED {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{count} of {PINNED} are recorded"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends a short request.
    async fn ask(&mut self, address: std::net::SocketAddr) -> Outcome {
        let (mut call, request) = named("ask", self.calls.len(), QUICK, self.life);
        let request = request(json!({"max_tokens": 1}), &self.key);
        let mut client = HttpClient::connect(address).await.unwrap();
        let answer = client.call(&request).await.unwrap();
        call.request_id = answer.header("x-request-id").map(str::to_owned);
        call.outcome = if answer.status() == 200 {
            Outcome::Complete
        } else {
            assert!(answer.header("retry-after").is_some(), "{answer:?}");
            let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
            Outcome::Refused(answer.status(), code)
        };
        let outcome = call.outcome.clone();
        self.calls.push(call);
        outcome
    }

    /// Stops everything, and compares each request with its record.
    async fn end(mut self, process: RunningProcess) {
        let mut calls = self.load.stop();
        calls.append(&mut self.calls);
        process.terminate();
        let status = process.wait_exit(PATIENCE);
        assert!(status.success(), "{status}\n{}", process.stderr());
        assert!(
            !process.stderr().contains("panicked"),
            "{}",
            process.stderr()
        );
        // To where it is found without the disk.
        let data = self.deployment.folder.path().join("data");
        copy(&self.disk.outside_path().join("."), &data);
        self.deployment.launcher.clear();
        audit(&self.deployment, &calls).await.assert_clean();
        let journal = data.join("journal").display().to_string();
        let verify = ["ledger", "verify", "--journal", &journal];
        println!("{}", self.deployment.run(&verify));
        let complete = calls.iter().filter(|c| c.outcome == Outcome::Complete);
        println!("{} requests, {} complete", calls.len(), complete.count());
    }
}

/// Names a request, for its client, its record and its provider.
fn named(
    what: &str,
    number: usize,
    model: &str,
    life: usize,
) -> (Call, impl Fn(Value, &str) -> Request + use<>) {
    let name = format!("{:x<NAME_LENGTH$}", format!("{what}-{number}-"));
    let call = Call {
        name: name.clone(),
        life,
        streams: false,
        request_id: None,
        tokens: Vec::new(),
        outcome: Outcome::Broken,
    };
    let model = model.to_owned();
    let request = move |members: Value, key: &str| {
        let mut body = words::chat_request(&model, 3);
        body["user"] = name.clone().into();
        for (member, value) in members.as_object().unwrap() {
            body[member] = value.clone();
        }
        Request::post("/v1/chat/completions", &body)
            .key(key)
            .header("user-agent", &name)
    };
    (call, request)
}

fn copy(from: &Path, to: &Path) {
    let copied = Program::new("cp").arg("-a").args([from, to]).run(PATIENCE);
    assert!(copied.status.success(), "{}", copied.stderr);
}
