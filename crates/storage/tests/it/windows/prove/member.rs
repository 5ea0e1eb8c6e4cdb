//! One of the processes, and what it is told to do.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sluice_domain::id::{BootId, ProxyKeyId, TenantId, uuid_v7};
use sluice_domain::window::{
    InstanceRank, WindowAnswer, WindowAsk, WindowGroup, WindowKind, WindowSubject,
};
use sluice_storage::windows::{RedisLoss, RedisOptions};
use tokio::time::{Instant, sleep};

use super::super::fixture::{Kept, ask, redis_options};
use crate::dice::Dice;
use crate::fixture::{environment, id};

/// The variable with the orders.
pub(super) const ORDERS: &str = "SLUICE_TEST_WINDOW_MEMBER";
/// How many groups of counters there are: enough to be on every server of a cluster.
const GROUPS: u8 = 9;
/// How many decisions of one process are under way at once.
const AT_ONCE: u64 = 6;

pub(super) struct Orders {
    pub(super) url: String,
    pub(super) prefix: String,
    pub(super) rank: u32,
    pub(super) members: u32,
    pub(super) decisions: u64,
    pub(super) memory: Duration,
    /// How long it goes on, at a slow pace, and asks only for seconds; zero is by number.
    pub(super) lasts: Duration,
    pub(super) report: PathBuf,
}

impl Orders {
    pub(super) fn to_text(&self) -> String {
        format!(
            "{}\n{}\n{}\n{}\n{}\n{}\n{}\n{}",
            self.url,
            self.prefix,
            self.rank,
            self.members,
            self.decisions,
            self.memory.as_millis(),
            self.lasts.as_millis(),
            self.report.display(),
        )
    }

    fn read(text: &str) -> Self {
        let lines: Vec<&str> = text.lines().collect();
        let [url, prefix, rank, members, decisions, memory, lasts, report] = lines[..] else {
            panic!("orders: {text}");
        };
        Self {
            url: url.to_owned(),
            prefix: prefix.to_owned(),
            rank: rank.parse().unwrap(),
            members: members.parse().unwrap(),
            decisions: decisions.parse().unwrap(),
            memory: Duration::from_millis(memory.parse().unwrap()),
            lasts: Duration::from_millis(lasts.parse().unwrap()),
            report: report.into(),
        }
    }
}

/// Returns what is asked of a group. All members ask the same.
pub(super) fn asks(number: u8, has_minutes: bool) -> (WindowGroup, Vec<WindowAsk>) {
    let uuid = uuid_v7(1, [number; 10]);
    let tenant = WindowSubject::Tenant(TenantId::from_uuid(uuid));
    let key = WindowSubject::ProxyKey(ProxyKeyId::from_uuid(uuid));
    let asks = match number % 3 {
        0 => vec![ask(&key, WindowKind::Rps, 40, 1)],
        1 if has_minutes => vec![ask(&key, WindowKind::Rpm, 200, 1)],
        1 => vec![ask(&key, WindowKind::Rps, 7, 1)],
        _ if has_minutes => vec![
            ask(&key, WindowKind::Rps, 25, 1),
            ask(&tenant, WindowKind::Rpm, 500, 1),
            ask(&tenant, WindowKind::Tpm, 4_000, 10),
        ],
        _ => vec![
            ask(&key, WindowKind::Rps, 25, 1),
            ask(&tenant, WindowKind::Rps, 20, 1),
        ],
    };
    (WindowGroup::Tenant(TenantId::from_uuid(uuid)), asks)
}

/// A clock that all processes of a machine share, and that nobody skews.
fn true_nanos() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Asks and asks. It is no test by itself: other tests run it in processes of its own.
#[tokio::test]
async fn member() {
    let Some(orders) = environment(ORDERS) else {
        return;
    };
    let orders = Orders::read(&orders);
    let options = RedisOptions {
        prefix: orders.prefix.clone(),
        memory: orders.memory,
        boot_id: BootId::from_uuid(id()),
        ..redis_options(&orders.url)
    };
    let kept = Kept::start(options, RedisLoss::Share);
    kept.windows.set_rank(InstanceRank {
        instances: NonZeroU32::new(orders.members).unwrap(),
        rank: orders.rank,
    });
    kept.wait_for_redis().await;
    let askers = (0..AT_ONCE).map(|number| {
        let seed = u64::from(orders.rank) * AT_ONCE + number;
        asker(&kept, &orders, seed)
    });
    let mut report = futures_util::future::join_all(askers).await.concat();
    let status = kept.windows.status();
    writeln!(
        report,
        "decisions {} {}",
        status.redis_decisions, status.local_decisions
    )
    .unwrap();
    std::fs::write(&orders.report, report).unwrap();
}

async fn pause(ms: i64) {
    sleep(Duration::from_millis(ms.unsigned_abs())).await;
}

async fn asker(kept: &Kept, orders: &Orders, seed: u64) -> String {
    let mut dice = Dice::new(seed);
    let mut report = String::new();
    let groups: Vec<_> = (0..GROUPS)
        .map(|number| asks(number, orders.lasts.is_zero()))
        .collect();
    let started = Instant::now();
    let mut decisions = 0;
    while if orders.lasts.is_zero() {
        decisions < orders.decisions / AT_ONCE
    } else {
        started.elapsed() < orders.lasts
    } {
        decisions += 1;
        let number = usize::try_from(dice.roll(0, i64::from(GROUPS) - 1)).unwrap();
        let (group, asks) = &groups[number];
        let from = true_nanos();
        let answer = kept.decide(*group, asks).await;
        let to = true_nanos();
        let admitted = u8::from(matches!(answer, WindowAnswer::Admitted { .. }));
        writeln!(report, "{number} {from} {to} {admitted}").unwrap();
        // Sometimes all is quiet for as long as a bucket, or a window.
        match dice.roll(0, 1_999) {
            0 => pause(dice.roll(0, 1_100)).await,
            _ if !orders.lasts.is_zero() => pause(1).await,
            1..=9 => pause(dice.roll(0, 60)).await,
            _ => {}
        }
    }
    report
}
