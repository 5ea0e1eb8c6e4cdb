//! The promise about outages, at its length: known keys are served for as long as `outage_reserve_ms`
//! says, over a restart and over the end of a month, and nothing is lost.
//!
//! `SLUICE_PROVE_OUTAGE_SECONDS=600` makes it so long.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use sluice_domain::time::{Period, TimeZone, UnixMillis};
use sluice_testkit::{Link, Request, RunningProcess, call, faketime, words};
use tokio::time::Instant;

use crate::audit::{all_records, audit};
use crate::deployment::{Backend, Deployment, PATIENCE};
use crate::load::{Load, Outcome, QUICK, prepare};
use crate::outage_load::linked;

/// How long the database is away in the small size, and the least time of traffic before.
const AWAY: Duration = Duration::from_secs(16);
const WARM_UP: Duration = Duration::from_secs(20);
/// So much more is leased than the traffic needs, which may become more.
const TIMES_THE_NEED: i64 = 3;
/// What is leased ahead is in proportion to the traffic that was seen, and a short warm-up sees little.
const RESERVE_AFTER_SHORT_WARM_UP: &str = "3600000";
const CLIENTS: usize = 12;
/// How often each client sends a request.
const EVERY: Duration = Duration::from_millis(300);
/// A start reads what the journal has gathered in the meantime.
const START_WITHIN: Duration = Duration::from_mins(2);
/// Leases of the next month are taken so long before the end of a month.
const AHEAD: Duration = Duration::from_mins(15);

#[tokio::test]
async fn known_keys_are_served_through_a_long_outage_with_a_restart_in_it() {
    let Some(mut trial) = Trial::new("UTC") else {
        return;
    };
    let (process, address) = trial.serve();
    tokio::time::sleep(warm_up()).await;
    trial.both_keys_are_known().await;
    trial.leases_bridge_a_short_outage().await;
    trial.goes_away(address).await;
    tokio::time::sleep(away() / 2).await;
    let (process, address) = trial.restart(&process);
    tokio::time::sleep(away() / 2).await;
    trial.end(process, address).await;
}

#[tokio::test]
async fn known_keys_are_served_through_an_outage_over_the_end_of_a_month() {
    let Some(library) = faketime() else { return };
    let zone = "Asia/Tokyo";
    let Some(mut trial) = Trial::new(zone) else {
        return;
    };
    let zone: TimeZone = zone.parse().unwrap();
    // So that the clock is never before what was made with the true one.
    let soon = UnixMillis(now().0 + millis(warm_up() + AHEAD));
    let old = zone.period_of(soon);
    let clock = Clock::start(&mut trial.deployment, &library);
    clock.set(before(&old, warm_up() + AHEAD));
    let (process, address) = trial.serve();
    trial.next_month_is_leased(&old).await;
    trial.both_keys_are_known().await;
    trial.leases_bridge_a_short_outage().await;
    trial.goes_away(address).await;
    // A quarter of an hour passes at once.
    clock.set(before(&old, away() / 2));
    tokio::time::sleep(away() / 2 + Duration::from_secs(1)).await;
    let (process, address) = trial.restart(&process);
    tokio::time::sleep(away() / 2).await;
    let deployment = trial.end(process, address).await;

    let mut months: BTreeMap<i32, usize> = BTreeMap::new();
    for record in all_records(&deployment).await {
        let month = zone.period_of(record.started_at).month;
        assert_eq!(record.period, month, "{record:?}");
        *months.entry(month.as_number()).or_default() += 1;
    }
    println!("records by month: {months:?}");
    let both = [old.month.as_number(), old.month.next().as_number()];
    assert!(months.keys().eq(&both), "{months:?}");
    assert!(months.values().all(|count| *count > 20), "{months:?}");
}

fn away() -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "the size of a try is told by the environment"
    )]
    let seconds = std::env::var("SLUICE_PROVE_OUTAGE_SECONDS").ok();
    seconds.map_or(AWAY, |seconds| {
        Duration::from_secs(seconds.parse().unwrap())
    })
}

fn warm_up() -> Duration {
    WARM_UP.max(away() / 10)
}

fn now() -> UnixMillis {
    UnixMillis(millis(std::time::UNIX_EPOCH.elapsed().unwrap()))
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap()
}

fn before(period: &Period, time: Duration) -> UnixMillis {
    UnixMillis(period.ends_at.0 - millis(time))
}

/// The wall clock of the processes of a deployment. Their timers are the true ones.
struct Clock {
    file: PathBuf,
}

impl Clock {
    fn start(deployment: &mut Deployment, library: &str) -> Self {
        let file = deployment.folder.path().join("clock");
        deployment.set("LD_PRELOAD", library);
        deployment.set("FAKETIME_TIMESTAMP_FILE", file.display().to_string());
        deployment.set("FAKETIME_NO_CACHE", "1");
        deployment.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Self { file }
    }

    /// Lets it be this time now; it goes on from there.
    fn set(&self, time: UnixMillis) {
        let ahead = time.0 - now().0;
        let next = self.file.with_extension("next");
        let offset = format!("+{}.{:03}\n", ahead / 1_000, ahead % 1_000);
        std::fs::write(&next, offset).unwrap();
        std::fs::rename(&next, &self.file).unwrap();
    }
}

struct Trial {
    deployment: Deployment,
    link: Link,
    load: Load,
    unknown: String,
    began: Instant,
    life: usize,
    /// What earlier lives have logged.
    log: String,
}

impl Trial {
    fn new(zone: &str) -> Option<Self> {
        let mut deployment = Deployment::in_zone(Backend::Postgres, zone)?;
        prepare(&deployment);
        let unknown = deployment.issue_key("never-used", &[]);
        let capped = deployment.issue_key("capped", &["--quota", "1000000000"]);
        let (link, url) = linked(&deployment.database_url);
        deployment.set("SLUICE_DATABASE_URL", url);
        if away() == AWAY {
            let reserve = RESERVE_AFTER_SHORT_WARM_UP;
            deployment.set("SLUICE_LEDGER_OUTAGE_RESERVE_MS", reserve);
        }
        let load = Load::steady(CLIENTS, vec![deployment.key.clone(), capped], EVERY);
        Some(Self {
            deployment,
            link,
            load,
            unknown,
            began: Instant::now(),
            life: 0,
            log: String::new(),
        })
    }

    fn serve(&self) -> (RunningProcess, SocketAddr) {
        let started = Instant::now();
        let process = self.deployment.program(&["serve"]).start();
        let line = process.wait_for_line("accepting requests", START_WITHIN);
        println!("life {} began after {:?}", self.life, started.elapsed());
        let event: Value = serde_json::from_str(&line).unwrap();
        let address = event["address"].as_str().unwrap().parse().unwrap();
        self.load.send_to(self.life, address);
        (process, address)
    }

    /// Kills the relay and starts it again.
    fn restart(&mut self, process: &RunningProcess) -> (RunningProcess, SocketAddr) {
        self.load.pause();
        process.kill();
        self.log += &process.stderr();
        self.life += 1;
        self.serve()
    }

    async fn both_keys_are_known(&self) {
        let snapshot = self.deployment.folder.path().join("data/snapshot");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&snapshot).unwrap_or_default();
            if let Some((_head, json)) = text.split_once('\n') {
                let document: Value = serde_json::from_str(json).unwrap();
                if document["keys"].as_array().unwrap().len() == 2 {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "no snapshot of both keys");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the instance has leases of the next month for the tenant and the key with a cap.
    async fn next_month_is_leased(&self, period: &Period) {
        let next = period.month.next();
        let (storage, _tenant) = self.deployment.storage().await;
        let deadline = Instant::now() + warm_up() + PATIENCE;
        loop {
            let instances = storage.list_instances().await.unwrap();
            let leases = instances.iter().flat_map(|instance| &instance.leases);
            let of_next = leases
                .filter(|lease| lease.lease.key.month == next && !lease.lease.held.is_zero())
                .count();
            if of_next == 2 {
                break;
            }
            assert!(Instant::now() < deadline, "{instances:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        storage.close().await;
    }

    /// Waits until the leases of the tenant and the key are several times what the traffic so far needs
    /// in the small size: they are topped up after the short warm-up or before. In the full size
    /// nothing is waited for.
    async fn leases_bridge_a_short_outage(&self) {
        if away() > AWAY {
            return;
        }
        let (storage, _tenant) = self.deployment.storage().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let served = self.deployment.upstream.served();
            let tokens = served.iter().map(|s| s.input_tokens + s.output_tokens);
            let elapsed = millis(self.began.elapsed()).max(1);
            let needed = tokens.sum::<i64>() * millis(AWAY) * TIMES_THE_NEED / elapsed;
            let instances = storage.list_instances().await.unwrap();
            let leases: Vec<_> = instances.iter().flat_map(|i| &i.leases).collect();
            let first = leases.iter().map(|lease| lease.lease.key.month).min();
            let of_first = leases
                .iter()
                .filter(|lease| Some(lease.lease.key.month) == first)
                .map(|lease| lease.lease.held.tokens);
            if of_first.clone().count() == 2 && of_first.clone().all(|held| held >= needed) {
                break;
            }
            assert!(Instant::now() < deadline, "{needed}: {leases:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        storage.close().await;
    }

    async fn goes_away(&self, address: SocketAddr) {
        self.link.cut();
        wait_for_database(address, "down").await;
        self.unknown_key_is_refused(address).await;
    }

    async fn unknown_key_is_refused(&self, address: SocketAddr) {
        let body = words::chat_request(QUICK, 3);
        let request = Request::post("/v1/chat/completions", &body).key(&self.unknown);
        let answer = call(address, &request).await.unwrap();
        assert_eq!(answer.status(), 503);
        assert_eq!(answer.json()["error"]["code"], "service_unavailable");
    }

    /// The database comes back; everything is compared with what clients and provider saw.
    async fn end(self, process: RunningProcess, address: SocketAddr) -> Deployment {
        self.unknown_key_is_refused(address).await;
        self.link.restore();
        wait_for_database(address, "up").await;
        let calls = self.load.stop();
        process.terminate();
        let status = process.wait_exit(PATIENCE);
        assert!(status.success(), "{status}\n{}", process.stderr());
        let mut refused: BTreeMap<String, usize> = BTreeMap::new();
        let mut complete = 0;
        for call in &calls {
            match &call.outcome {
                Outcome::Complete => complete += 1,
                Outcome::Refused(..) => {
                    let what = format!("life {}, {:?}", call.life, call.outcome);
                    *refused.entry(what).or_default() += 1;
                }
                _ => {}
            }
        }
        println!(
            "{} requests, {complete} complete, refused: {refused:?}",
            calls.len()
        );
        audit(&self.deployment, &calls).await.assert_clean();
        let log = self.log + &process.stderr();
        assert!(refused.is_empty(), "{refused:?}\n{log}");
        self.deployment
    }
}

async fn wait_for_database(address: SocketAddr, state: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let health = call(address, &Request::get("/health"))
            .await
            .unwrap()
            .json();
        if health["database"].as_str().unwrap().starts_with(state) {
            return;
        }
        assert!(Instant::now() < deadline, "{health} instead of {state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
