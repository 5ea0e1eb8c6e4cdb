//! Measures how long decisions about window limits take, in process and in Redis.
//!
//! `cargo run --release -p sluice-storage --example window_speed [REDIS_URL [RATE [SECONDS]]]`
//!
//! In process: as fast as one thread can. In Redis: at a rate that does not wait for answers, each
//! decision about four counters of one of a thousand tenants.

use std::time::Duration;

use anyhow::Context as _;
use sluice_domain::id::{BootId, ProxyKeyId, TenantId, UserId, uuid_v7};
use sluice_domain::window::{
    WindowAsk, WindowDecision, WindowGroup, WindowKey, WindowKind, WindowLimit, WindowSubject,
};
use sluice_storage::windows::{
    LocalWindows, NodeMode, RedisLoss, RedisOptions, RedisTarget, Windows, WindowsOptions,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const TENANTS: u64 = 1_000;
const LOCAL_DECISIONS: usize = 1_000_000;

/// What a request asks: of its key, its user and its tenant.
fn asks(tenant: u64) -> anyhow::Result<(WindowGroup, Vec<WindowAsk>)> {
    let uuid = uuid_v7(tenant, [3; 10]);
    let limit = WindowLimit::new(1 << 40)?;
    let ask = |subject, kind, amount| WindowAsk {
        key: WindowKey { subject, kind },
        limit,
        amount,
    };
    let tenant = TenantId::from_uuid(uuid);
    let key = WindowSubject::ProxyKey(ProxyKeyId::from_uuid(uuid));
    let asks = vec![
        ask(key.clone(), WindowKind::Rpm, 1),
        ask(key, WindowKind::Concurrency, 1),
        ask(
            WindowSubject::User(UserId::from_uuid(uuid)),
            WindowKind::Rpm,
            1,
        ),
        ask(WindowSubject::Tenant(tenant), WindowKind::Tpm, 700),
    ];
    Ok((WindowGroup::Tenant(tenant), asks))
}

fn print(what: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |part: usize| {
        took.get(took.len() * part / 1_000)
            .copied()
            .unwrap_or_default()
    };
    write(&format!(
        "{what}: {} decisions, p50 {:?}, p99 {:?}, p99.9 {:?}, longest {:?}",
        took.len(),
        at(500),
        at(990),
        at(999),
        took.last().copied().unwrap_or_default()
    ));
}

#[expect(
    clippy::print_stdout,
    reason = "a measurement is for the person who runs it"
)]
fn write(line: &str) {
    println!("{line}");
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next();
    let rate: u32 = arguments.next().map_or(Ok(10_000), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let groups = (0..TENANTS).map(asks).collect::<anyhow::Result<Vec<_>>>()?;

    let local = LocalWindows::new(100_000);
    let mut took = Vec::with_capacity(LOCAL_DECISIONS);
    for number in 0..LOCAL_DECISIONS {
        let (group, asks) = groups.get(number % groups.len()).context("no tenants")?;
        let asked = Instant::now();
        let answer = local.decide_now(WindowDecision {
            group: *group,
            asks,
        });
        took.push(asked.elapsed());
        drop(answer);
    }
    print("in process", took);

    let Some(url) = url else { return Ok(()) };
    let boot = BootId::from_uuid(uuid_v7(1, [9; 10]));
    let mut redis = RedisOptions::new(RedisTarget::parse(&url)?, boot);
    redis.prefix = format!("speed-{}", std::process::id());
    redis.memory = Duration::from_millis(1);
    let windows = Windows::new(WindowsOptions {
        max_counters: 100_000,
        redis: Some(redis),
        on_redis_loss: RedisLoss::Share,
    });
    let mut keeping = JoinSet::new();
    keeping.spawn({
        let windows = windows.clone();
        async move { windows.keep().await }
    });
    while windows
        .status()
        .nodes
        .iter()
        .any(|node| node.mode != NodeMode::Redis)
    {
        sleep(Duration::from_millis(10)).await;
    }
    let mut running = JoinSet::new();
    let mut took = Vec::new();
    let started = Instant::now();
    let mut asked = 0_u32;
    while started.elapsed() < Duration::from_secs(seconds) {
        // Timers are too coarse: decisions would come in bursts and wait for each other.
        tokio::task::yield_now().await;
        let due = started.elapsed().as_micros() * u128::from(rate) / 1_000_000;
        while u128::from(asked) < due {
            let (group, asks) = groups
                .get(usize::try_from(asked)? % groups.len())
                .context("no tenants")?
                .clone();
            asked += 1;
            let windows = windows.clone();
            running.spawn(async move {
                let asked = Instant::now();
                let decision = WindowDecision { group, asks: &asks };
                let answer = windows.decide(decision).await;
                let took = asked.elapsed();
                drop(answer);
                took
            });
        }
        while let Some(done) = running.try_join_next() {
            took.push(done?);
        }
    }
    while let Some(done) = running.join_next().await {
        took.push(done?);
    }
    print(&format!("in Redis at {rate}/s"), took);
    let status = windows.status();
    write(&format!(
        "{} in Redis, {} here, {} corrections lost",
        status.redis_decisions, status.local_decisions, status.lost_corrections
    ));
    Ok(())
}
