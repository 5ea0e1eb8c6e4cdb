//! Three processes ask one Redis as fast as they can, and what each was told is compared with the
//! true times at which it asked.

mod evidence;
mod member;

use std::time::Duration;

use sluice_testkit::{Program, RedisCluster, RedisServer, RunningProcess, faketime, redis_server};

use self::evidence::Evidence;
use self::member::Orders;
use super::fixture::prefix;
use crate::fixture::environment;

const MEMBERS: u32 = 3;
/// Decisions of all members together, unless `SLUICE_PROVE_DECISIONS` says how many.
const DECISIONS: u64 = 20_000;
/// How far the clocks of the members are from the true time, in seconds.
const SKEWS: [&str; 3] = ["-5s", "+0s", "+5s"];
/// How often the server is restarted, and after how much time each.
const RESTARTS: u32 = 3;
const RESTART_EVERY: Duration = Duration::from_secs(4);
/// How long the members may take.
const AT_MOST: Duration = Duration::from_mins(30);

fn decisions() -> u64 {
    environment("SLUICE_PROVE_DECISIONS").map_or(DECISIONS, |text| text.parse().unwrap())
}

/// Three processes with clocks that differ by ten seconds.
struct Members {
    processes: Vec<RunningProcess>,
    folder: tempfile::TempDir,
    has_minutes: bool,
}

impl Members {
    fn start(url: &str, memory: Duration, lasts: Duration) -> Option<Self> {
        let has_minutes = lasts.is_zero();
        let faketime = faketime()?;
        let folder = tempfile::tempdir().unwrap();
        let prefix = prefix();
        let processes = (0..MEMBERS)
            .zip(SKEWS)
            .map(|(rank, skew)| {
                let orders = Orders {
                    url: url.to_owned(),
                    prefix: prefix.clone(),
                    rank,
                    members: MEMBERS,
                    decisions: decisions() / u64::from(MEMBERS),
                    memory,
                    lasts,
                    report: folder.path().join(format!("member-{rank}")),
                };
                Program::new(std::env::current_exe().unwrap())
                    .args(["--exact", "windows::prove::member::member", "--nocapture"])
                    .env(member::ORDERS, orders.to_text())
                    .env("LD_PRELOAD", &faketime)
                    .env("FAKETIME", skew)
                    .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
                    .start()
            })
            .collect();
        Some(Self {
            processes,
            folder,
            has_minutes,
        })
    }

    /// Waits for all, and returns what they were told.
    fn join(self) -> Evidence {
        let mut evidence = Evidence::new(self.has_minutes);
        for (rank, process) in self.processes.iter().enumerate() {
            let status = process.wait_exit(AT_MOST);
            assert!(
                status.success(),
                "member {rank}: {}{}",
                process.stdout(),
                process.stderr()
            );
            let report = self.folder.path().join(format!("member-{rank}"));
            evidence.add(&std::fs::read_to_string(report).unwrap());
        }
        evidence
    }
}

#[test]
fn no_true_window_holds_more_than_the_limit() {
    let Some(binary) = redis_server() else { return };
    let server = RedisServer::start(&binary);
    let Some(members) = Members::start(&server.url(), Duration::from_millis(100), Duration::ZERO)
    else {
        return;
    };
    let evidence = members.join();
    evidence.print("one server");
    assert_eq!(evidence.local_decisions(), 0);
    evidence.check_limits(1);
    evidence.check_room();
}

#[test]
fn no_true_window_holds_more_than_the_limit_on_a_cluster() {
    let Some(binary) = redis_server() else { return };
    let cluster = RedisCluster::start(&binary, 3);
    let Some(members) = Members::start(&cluster.url(), Duration::from_millis(100), Duration::ZERO)
    else {
        return;
    };
    let evidence = members.join();
    evidence.print("a cluster of three");
    assert_eq!(evidence.local_decisions(), 0);
    evidence.check_limits(1);
    evidence.check_room();
}

#[test]
fn a_restart_lets_twice_the_limit_pass_at_most() {
    let Some(binary) = redis_server() else { return };
    let mut server = RedisServer::start(&binary);
    // Only seconds are counted, so nothing counts for longer than this.
    let memory = Duration::from_millis(1_050);
    let lasts = RESTART_EVERY * (RESTARTS + 1);
    let Some(members) = Members::start(&server.url(), memory, lasts) else {
        return;
    };
    for _ in 0..RESTARTS {
        std::thread::sleep(RESTART_EVERY);
        server.restart();
    }
    let evidence = members.join();
    evidence.print(&format!("a server that was restarted {RESTARTS} times"));
    assert!(evidence.local_decisions() > 0);
    assert!(evidence.redis_decisions() > 0);
    evidence.check_limits(2);
}
