//! `kill -9` at every place that matters, under load, again and again on the same folder; then the
//! ledger against what clients and provider saw.
//!
//! The small size runs always. `SLUICE_PROVE_KILLS=1000` makes it so many kills.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use serde_json::Value;
use sluice_testkit::{FakeUpstream, Request, RunningProcess, Script, call};

use crate::audit::{Audit, Tally, audit};
use crate::deployment::{
    Backend, Deployment, MODEL, PATIENCE, address_of, chat, on_both_databases, streamed_chat,
};
use crate::load::{Dice, Load, prepare};

/// Kills at each place in the small size.
const KILLS: usize = 2;
const CLIENTS: usize = 12;
/// After so many requests of a life there are leases, and something is open.
const SOME: usize = 5;
const SIGKILL: i32 = 9;
/// Killed at no place.
const OUTSIDE: &str = "(from outside)";
/// Passed only when a request was open.
const RECOVERED_ONE: &str = "start.recovered_one";

/// What leads a process to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The load does; it is passed so often in the life of a process that it may die at any of so
    /// many passes.
    Load(u64),
    /// So many short requests that a segment of the journal is full.
    Roll,
    /// A start after a kill.
    Start,
    /// A request to stop, while the load goes on.
    Stop,
    /// None: it is killed from outside at a random instant.
    Outside,
}

const PLACES: [(&str, Way); 46] = [
    ("hold.reserving", Way::Load(30)),
    ("hold.reserved", Way::Load(30)),
    ("hold.held", Way::Load(30)),
    ("open.gathered", Way::Load(30)),
    ("open.written", Way::Load(30)),
    ("attempt.begun", Way::Load(30)),
    ("dispatch.rendered", Way::Load(30)),
    ("attempt.ended", Way::Load(30)),
    ("turn.writing", Way::Load(60)),
    ("turn.written", Way::Load(60)),
    ("stream.head", Way::Load(15)),
    ("stream.event", Way::Load(200)),
    ("progress.noting", Way::Load(10)),
    ("progress.noted", Way::Load(10)),
    ("stream.last_event", Way::Load(15)),
    ("stream.last_bytes_leave", Way::Load(15)),
    ("whole.head", Way::Load(15)),
    ("whole.body", Way::Load(15)),
    ("whole.booked", Way::Load(15)),
    ("post.begun", Way::Load(30)),
    ("post.gathered", Way::Load(30)),
    ("post.written", Way::Load(30)),
    ("answer.sent", Way::Load(30)),
    ("sent.noting", Way::Load(8)),
    ("sent.noted", Way::Load(8)),
    ("sent.synced", Way::Load(8)),
    ("post.committed", Way::Load(6)),
    ("ack.noting", Way::Load(6)),
    ("ack.noted", Way::Load(6)),
    ("lease.taking", Way::Load(2)),
    ("lease.taken", Way::Load(2)),
    ("lease.gained", Way::Load(2)),
    ("roll.begun", Way::Roll),
    ("roll.checkpoint_written", Way::Roll),
    ("start.claiming", Way::Start),
    ("start.claimed", Way::Start),
    (RECOVERED_ONE, Way::Start),
    ("start.taken_over", Way::Start),
    ("start.confirmed", Way::Start),
    ("start.serving", Way::Start),
    ("stop.asked", Way::Stop),
    ("stop.drained", Way::Stop),
    ("stop.posted", Way::Stop),
    ("lease.returning", Way::Stop),
    ("lease.returned", Way::Stop),
    ("stop.returned", Way::Stop),
];

#[test]
fn every_request_has_one_record_through_any_number_of_kills_on_sqlite() {
    try_kills(Backend::Sqlite);
}

#[test]
fn every_request_has_one_record_through_any_number_of_kills_on_postgres() {
    try_kills(Backend::Postgres);
}

on_both_databases! {
    /// Whatever an attempt has cost the operator, a request of which nothing was relayed is charged
    /// nothing, whether it dies after its first attempt, before its second, or when that was sent.
    async fn a_request_that_dies_between_two_attempts_has_one_record_of_nothing(deployment: Deployment) {
        let mut deployment = deployment;
        let second = FakeUpstream::start();
        let url = second.base_url();
        deployment.run(&["upstream", "create", "second", "--kind", "compatible", "--url", &url, "--allow-private"]);
        deployment.run(&["route", "set", MODEL, "--to", "fake", "--to", "second,tier=1"]);
        deployment.upstream.default_script(Script::refuse(429));
        second.default_script(Script::new().stall_before_head(PATIENCE));
        deployment.set("SLUICE_SERVER_WORKERS", "1");
        let places = ["attempt.ended:1", "attempt.begun:2", "dispatch.rendered:2", OUTSIDE];
        let mut count = 0;
        for (place, body) in places.into_iter().flat_map(|place| [(place, chat(3)), (place, streamed_chat(3))]) {
            let process = deployment.program(&["serve"]).env("CRASH_AT", place).start();
            let address = address_of(&process);
            let request = Request::post("/v1/chat/completions", &body).key(&deployment.key);
            let client = tokio::spawn(async move { call(address, &request).await });
            let attempts = if place == OUTSIDE {
                let before = second.served().len();
                second.wait_for(|served| served.len() > before, PATIENCE).await;
                // The only thread answers after it has written what it had noted.
                call(address, &Request::get("/livez")).await.unwrap();
                process.kill();
                2
            } else {
                1
            };
            assert!(client.await.unwrap().is_err(), "{place}");
            assert_eq!(process.wait_exit(PATIENCE).signal(), Some(SIGKILL), "{place}");
            count += 1;

            let process = deployment.program(&["serve"]).start();
            address_of(&process);
            let record = deployment.wait_for_records(count).await.pop().unwrap();
            process.terminate();
            assert!(process.wait_exit(PATIENCE).success(), "{}", process.stderr());
            let seen = (&*record.ending, &*record.basis, record.usage.total(), record.quota_tokens);
            assert_eq!(seen, ("crashed", "recovered", 0, 0), "{place}: {record:?}");
            let told = deployment.run(&["explain", &record.request_id.to_string(), "--json"]);
            let told: Value = serde_json::from_str(&told).unwrap();
            assert_eq!(told["attempts"].as_array().unwrap().len(), attempts, "{place}: {told}");
            deployment.run(&["ledger", "verify"]);
        }
        // What died before its second attempt has not made it.
        assert_eq!((deployment.upstream.served().len(), second.served().len()), (count, 2));
        let ((records, tokens), monthly) = deployment.rollups().await;
        assert_eq!((records, tokens), (i64::try_from(count).unwrap(), 0));
        assert_eq!(monthly, (records, tokens));
    }
}

fn try_kills(backend: Backend) {
    let Some(mut deployment) = Deployment::new(backend) else {
        return;
    };
    prepare(&deployment);
    // Leases that change hands often, and segments that fill up soon.
    deployment.set("SLUICE_LEDGER_OUTAGE_RESERVE_MS", "1000");
    deployment.set("SLUICE_LEDGER_QUOTA_WAIT_MS", "200");
    deployment.set("SLUICE_JOURNAL_SEGMENT_BYTES", "1048576");
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
    let keys = vec![
        deployment.key.clone(),
        deployment.issue_key("wide", &["--quota", "1000000000"]),
        // It is used up on the way.
        deployment.issue_key("narrow", &["--quota", "5000"]),
        deployment.issue_key("idle", &["--quota", "10000000"]),
    ];
    let mut run = Run {
        load: Load::start(CLIENTS, keys),
        deployment,
        dice: Dice::new(7),
        lives: Vec::new(),
        slowest: (Duration::ZERO, ""),
    };
    for round in 0..rounds() {
        for (place, way) in PLACES {
            run.kill_at(place, way, round);
        }
        run.kill_at(OUTSIDE, Way::Outside, round);
    }
    println!("\nthe longest life was {:?}", run.slowest);
    let (deployment, lives, calls) = run.finish();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let audit = runtime.block_on(audit(&deployment, &calls));
    print_table(backend, &lives, &audit);
    audit.assert_clean();
    let total = total(&audit);
    assert!(
        total.recovered > 0 && total.exact_though_cut > 0,
        "{total:?}"
    );
}

/// How often each place is visited.
fn rounds() -> usize {
    #[expect(
        clippy::disallowed_methods,
        reason = "the size of a try is told by the environment"
    )]
    let kills = std::env::var("SLUICE_PROVE_KILLS").ok();
    kills.map_or(KILLS, |kills| {
        let kills: usize = kills.parse().unwrap();
        kills.div_ceil(PLACES.len() + 1)
    })
}

/// A relay that lives many times.
struct Run {
    deployment: Deployment,
    load: Load,
    dice: Dice,
    /// Where each life ended.
    lives: Vec<&'static str>,
    /// The longest of them.
    slowest: (Duration, &'static str),
}

impl Run {
    /// Lets a relay start, serve, and die at a place.
    fn kill_at(&mut self, place: &'static str, way: Way, round: usize) {
        for _ in 0..10 {
            if way == Way::Start {
                // A start has something to recover only after a life that served.
                let _died = self.live(OUTSIDE, Way::Outside, round);
            }
            if self.live(place, way, round) {
                return;
            }
        }
        panic!("{place} is never passed");
    }

    /// Lives once. Returns false when the place is about requests that were open, and none was.
    #[must_use]
    fn live(&mut self, place: &'static str, way: Way, round: usize) -> bool {
        let life = self.lives.len();
        self.lives.push(place);
        let passes = match way {
            // The first time at the first pass, then anywhere.
            Way::Load(most) if round > 0 => 1 + self.dice.below(most),
            _ => 1,
        };
        let mut program = self.deployment.program(&["serve"]);
        if way != Way::Outside {
            program = program.env("CRASH_AT", format!("{place}:{passes}"));
        }
        let started = tokio::time::Instant::now();
        let process = program.start();
        if let Some(line) = process.wait_for_line_or_exit("accepting requests", PATIENCE) {
            let event: Value = serde_json::from_str(&line).unwrap();
            let address = event["address"].as_str().unwrap().parse().unwrap();
            if place == RECOVERED_ONE && !process.stderr().contains("cut off by a crash") {
                process.kill();
                return false;
            }
            self.load.send_to(life, address);
        }
        self.load.hurry(way == Way::Roll);
        match way {
            Way::Outside => {
                self.load.wait_for_ends(SOME, PATIENCE);
                std::thread::sleep(Duration::from_millis(50 + self.dice.below(250)));
                process.kill();
            }
            Way::Stop => {
                self.load.wait_for_ends(SOME, PATIENCE);
                std::thread::sleep(Duration::from_millis(50 + self.dice.below(100)));
                // It may have died there already: leases that are idle are returned as well.
                process.terminate_if_running();
            }
            Way::Load(_) | Way::Roll | Way::Start => {}
        }
        // A segment is full after more than a thousand requests.
        let patience = if way == Way::Roll { 5 } else { 2 } * PATIENCE;
        while process.try_exit().is_none() {
            assert!(
                started.elapsed() < patience,
                "{place}:{passes} was not passed; {}\n{}",
                self.load.describe(),
                process.stderr()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = process.wait_exit(PATIENCE);
        self.slowest = self.slowest.max((started.elapsed(), place));
        self.load.pause();
        assert_eq!(
            status.signal(),
            Some(SIGKILL),
            "the process did not die at {place}:{passes}, but so: {status}\n{}",
            process.stderr()
        );
        refuse_errors(&process, place);
        true
    }

    /// Lives once more, stops cleanly, and returns what there was.
    fn finish(self) -> (Deployment, Vec<&'static str>, Vec<crate::load::Call>) {
        let Self {
            deployment,
            load,
            mut lives,
            ..
        } = self;
        let process = deployment.program(&["serve"]).start();
        let line = process.wait_for_line("accepting requests", PATIENCE);
        let event: Value = serde_json::from_str(&line).unwrap();
        load.send_to(
            lives.len(),
            event["address"].as_str().unwrap().parse().unwrap(),
        );
        lives.push("(clean stop)");
        std::thread::sleep(Duration::from_millis(500));
        let calls = load.stop();
        process.terminate();
        let status = process.wait_exit(PATIENCE);
        assert!(status.success(), "{status}\n{}", process.stderr());
        refuse_errors(&process, "a clean stop");
        (deployment, lives, calls)
    }
}

/// Nothing that the relay does on these ways is an error of its own; a database that is busy with
/// other tests may be late.
#[track_caller]
fn refuse_errors(process: &RunningProcess, place: &str) {
    let log = process.stderr();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("\"ERROR\"") || line.contains("panicked"))
        .filter(|line| !line.contains("the database does not answer"))
        .collect();
    assert!(errors.is_empty(), "{place}: {errors:#?}");
}

fn total(audit: &Audit) -> Tally {
    let mut total = Tally::default();
    for tally in audit.lives.values() {
        total.add(*tally);
    }
    total
}

fn print_table(backend: Backend, lives: &[&'static str], audit: &Audit) {
    let mut places: BTreeMap<&str, (usize, Tally)> = BTreeMap::new();
    for (life, place) in lives.iter().enumerate() {
        let (kills, sum) = places.entry(place).or_default();
        *kills += 1;
        sum.add(audit.lives.get(&life).copied().unwrap_or_default());
    }
    println!("\n{backend:?}: kills by place, and the requests of these lives");
    println!(
        "{:<26} {:>6} {:>9} {:>9} {:>8} {:>6} {:>10} {:>9}",
        "place", "kills", "requests", "complete", "refused", "cut", "recovered", "exact"
    );
    let line = |place: &str, kills: usize, t: Tally| {
        println!(
            "{place:<26} {kills:>6} {:>9} {:>9} {:>8} {:>6} {:>10} {:>9}",
            t.requests, t.complete, t.refused, t.cut, t.recovered, t.exact_though_cut
        );
    };
    for (place, (kills, tally)) in &places {
        line(place, *kills, *tally);
    }
    // The last life was not killed.
    line("all", lives.len() - 1, total(audit));
    println!("the journal was {}", audit.describe_behind());
}
