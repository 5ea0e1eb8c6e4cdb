//! Nine ways in which a network fails, under load.

use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::window::{InstanceRank, WindowAnswer, WindowKind};
use sluice_storage::windows::{RedisLoss, RedisOptions};
use sluice_testkit::{Fault, Link, RedisServer, redis_server};
use tokio::time::{Instant, sleep};

use super::fixture::{Kept, ask, key, redis_options, tenant};
use crate::fixture::environment;

/// How long each fault lasts, unless `SLUICE_PROVE_FAULT_SECONDS` says so. Given, the times are
/// judged as well: the machine must have nothing else to do then.
const LASTS: Duration = Duration::from_secs(3);
const MOST: u64 = 60;

fn judged() -> Option<Duration> {
    let seconds = environment("SLUICE_PROVE_FAULT_SECONDS")?;
    Some(Duration::from_secs(seconds.parse().unwrap()))
}

/// Decisions while a fault lasts: when they were asked, and how long they took.
struct Load {
    took: Vec<(Duration, Duration)>,
    admitted: u64,
}

/// Asks a thousand times a second, with up to 16 under way at once.
async fn load(kept: &Kept, lasts: Duration) -> Load {
    let (group, ask) = (tenant(), ask(&key(), WindowKind::Rpm, MOST, 1));
    let started = Instant::now();
    let asker = async || {
        let mut load = Load {
            took: Vec::new(),
            admitted: 0,
        };
        while started.elapsed() < lasts {
            let asked = Instant::now();
            let answer = kept.decide(group, std::slice::from_ref(&ask)).await;
            load.took.push((asked - started, asked.elapsed()));
            load.admitted += u64::from(matches!(answer, WindowAnswer::Admitted { .. }));
            sleep(Duration::from_millis(16)).await;
        }
        load
    };
    let loads = futures_util::future::join_all((0..16).map(|_| asker())).await;
    Load {
        took: loads.iter().flat_map(|load| load.took.clone()).collect(),
        admitted: loads.iter().map(|load| load.admitted).sum(),
    }
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().unwrap_or_default()
}

async fn endure(fault: Fault) {
    let Some(binary) = redis_server() else { return };
    let judged = judged();
    let server = RedisServer::start(&binary);
    let link = Link::start(server.address());
    let kept = Kept::start(
        RedisOptions {
            deadline: Duration::from_millis(20),
            ..redis_options(&format!("redis://{}", link.address()))
        },
        RedisLoss::Share,
    );
    kept.windows.set_rank(InstanceRank {
        instances: NonZeroU32::new(2).unwrap(),
        rank: 0,
    });
    kept.wait_for_redis().await;
    let before = kept.windows.status();
    let connections = link.connections();
    link.disturb(fault);
    let lasts = judged.unwrap_or(LASTS);
    let load = load(&kept, lasts).await;
    let during = kept.windows.status();
    link.restore();
    let restored = Instant::now();
    kept.wait_for_redis().await;
    let recovered = restored.elapsed();

    // Half is its share; what Redis admitted at the beginning counts against it.
    assert!(load.admitted <= MOST, "{} admitted", load.admitted);
    assert!(load.admitted >= MOST / 2, "{} admitted", load.admitted);
    let probes = during.nodes[0].probes - before.nodes[0].probes;
    // One at a time, at least half a second apart; each may make two connections.
    let most_probes = 2 * lasts.as_secs() + 2;
    assert!(probes <= most_probes, "{probes} probes");
    let connected = link.connections() - connections;
    assert!(
        connected <= 2 * (probes + 10),
        "{connected} connections, {probes} probes"
    );

    let (first, later): (Vec<_>, Vec<_>) = load
        .took
        .iter()
        .partition(|(asked, _)| *asked < Duration::from_secs(1));
    let took = |decisions: Vec<&(Duration, Duration)>| -> Duration {
        p99(decisions.iter().map(|(_, took)| *took).collect())
    };
    let first: Vec<(Duration, Duration)> = first;
    let later: Vec<(Duration, Duration)> = later;
    let (first, later) = (took(first.iter().collect()), took(later.iter().collect()));
    println!(
        "{fault:?}: {} decisions, {} admitted, p99 {first:?} in the first second and {later:?} after, \
         {probes} probes, {connected} connections, back after {recovered:?}",
        load.took.len(),
        load.admitted,
    );
    if judged.is_some() {
        assert!(first <= Duration::from_millis(25), "{first:?}");
        assert!(later <= Duration::from_millis(1), "{later:?}");
        assert!(recovered <= Duration::from_secs(5), "{recovered:?}");
    }
}

#[tokio::test]
async fn latency_of_a_second() {
    endure(Fault::Latency(Duration::from_secs(1))).await;
}

#[tokio::test]
async fn latency_of_half_a_minute() {
    endure(Fault::Latency(Duration::from_secs(30))).await;
}

#[tokio::test]
async fn down() {
    endure(Fault::Down).await;
}

#[tokio::test]
async fn reset() {
    endure(Fault::Reset).await;
}

#[tokio::test]
async fn black_hole() {
    endure(Fault::BlackHole).await;
}

#[tokio::test]
async fn one_byte_at_a_time() {
    endure(Fault::OneByte(Duration::from_millis(1))).await;
}

#[tokio::test]
async fn a_kilobyte_in_a_second() {
    endure(Fault::BytesPerSecond(1_024)).await;
}

#[tokio::test]
async fn cut_in_the_middle_of_a_message() {
    endure(Fault::CutInMessage).await;
}

#[tokio::test]
async fn closed_slowly() {
    endure(Fault::SlowClose(Duration::from_secs(1))).await;
}
