//! Counters with valid defaults, and time.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_domain::id::{BootId, ProxyKeyId, TenantId, UserId};
use sluice_domain::ports::{WindowCounters, WindowsUnavailable};
use sluice_domain::window::{
    IpBlock, WindowAnswer, WindowAsk, WindowDecision, WindowGroup, WindowKey, WindowKind,
    WindowLimit, WindowRefusal, WindowStanding, WindowSubject, WindowTicket,
};
use sluice_storage::windows::{
    LocalWindows, NodeMode, RedisLoss, RedisOptions, RedisTarget, RedisWindows, Windows,
    WindowsOptions,
};
use sluice_testkit::redis_url;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::fixture::id;

/// How long a state may take to come.
const SOON: Duration = Duration::from_mins(1);

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Returns a prefix that nobody else has.
pub(crate) fn prefix() -> String {
    format!(
        "test-{}-{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Returns options for a server, with times that a test can wait for.
pub(crate) fn redis_options(url: &str) -> RedisOptions {
    let target = RedisTarget::parse(url).unwrap();
    RedisOptions {
        prefix: prefix(),
        // A machine may be busy; what is slow is not the point of most tests.
        deadline: Duration::from_secs(10),
        memory: Duration::from_millis(200),
        ..RedisOptions::new(target, BootId::from_uuid(id()))
    }
}

/// Counters under test, with what looks after them.
pub(crate) struct Counters {
    counters: Arc<dyn WindowCounters>,
    _keeping: JoinSet<()>,
}

impl Counters {
    pub(crate) fn local() -> Self {
        Self {
            counters: Arc::new(LocalWindows::new(1_000)),
            _keeping: JoinSet::new(),
        }
    }

    /// Returns counters on the server that tests share, once they are connected.
    pub(crate) async fn redis() -> Option<Self> {
        Some(Self::with(redis_options(&redis_url()?)).await)
    }

    pub(crate) async fn with(options: RedisOptions) -> Self {
        let windows = RedisWindows::new(options, LocalWindows::new(1_000));
        let mut keeping = JoinSet::new();
        keeping.spawn({
            let windows = windows.clone();
            async move { windows.keep().await }
        });
        wait_until("Redis is asked", || {
            let nodes = windows.status();
            !nodes.is_empty() && nodes.iter().all(|node| node.mode == NodeMode::Redis)
        })
        .await;
        Self {
            counters: Arc::new(windows),
            _keeping: keeping,
        }
    }

    pub(crate) async fn decide(&self, group: WindowGroup, asks: &[WindowAsk]) -> WindowAnswer {
        self.try_decide(group, asks).await.unwrap()
    }

    pub(crate) async fn try_decide(
        &self,
        group: WindowGroup,
        asks: &[WindowAsk],
    ) -> Result<WindowAnswer, WindowsUnavailable> {
        self.counters.decide(WindowDecision { group, asks }).await
    }
}

/// The composition, with what looks after it.
pub(crate) struct Kept {
    pub(crate) windows: Windows,
    _keeping: JoinSet<()>,
}

impl Kept {
    pub(crate) fn start(redis: RedisOptions, on_redis_loss: RedisLoss) -> Self {
        let windows = Windows::new(WindowsOptions {
            max_counters: 10_000,
            redis: Some(redis),
            on_redis_loss,
        });
        let mut keeping = JoinSet::new();
        keeping.spawn({
            let windows = windows.clone();
            async move { windows.keep().await }
        });
        Self {
            windows,
            _keeping: keeping,
        }
    }

    pub(crate) fn is_in_redis(&self) -> bool {
        let nodes = self.windows.status().nodes;
        !nodes.is_empty() && nodes.iter().all(|node| node.mode == NodeMode::Redis)
    }

    pub(crate) async fn wait_for_redis(&self) {
        wait_until("Redis is asked", || self.is_in_redis()).await;
    }

    pub(crate) async fn wait_for_local(&self) {
        wait_until("Redis is not asked", || !self.is_in_redis()).await;
    }

    pub(crate) async fn decide(&self, group: WindowGroup, asks: &[WindowAsk]) -> WindowAnswer {
        self.windows.decide(WindowDecision { group, asks }).await
    }

    /// Asks so often for one, and returns how much was admitted. Slots stay taken.
    pub(crate) async fn admitted(&self, group: WindowGroup, ask: &WindowAsk, times: usize) -> u64 {
        let mut admitted = 0;
        for _ in 0..times {
            let answer = self.decide(group, std::slice::from_ref(ask)).await;
            admitted += u64::from(matches!(answer, WindowAnswer::Admitted { .. }));
        }
        admitted
    }
}

/// Waits for a state; fails when it does not come.
pub(crate) async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < SOON, "{what}: not so after {SOON:?}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn tenant() -> WindowGroup {
    WindowGroup::Tenant(TenantId::from_uuid(id()))
}

pub(crate) fn ip(address: &str) -> (WindowGroup, WindowSubject) {
    let block = IpBlock::of(address.parse::<IpAddr>().unwrap(), 64);
    (WindowGroup::Ip(block), WindowSubject::SourceIp(block))
}

pub(crate) fn key() -> WindowSubject {
    WindowSubject::ProxyKey(ProxyKeyId::from_uuid(id()))
}

pub(crate) fn user() -> WindowSubject {
    WindowSubject::User(UserId::from_uuid(id()))
}

pub(crate) fn ask(subject: &WindowSubject, kind: WindowKind, most: u64, amount: u64) -> WindowAsk {
    WindowAsk {
        key: WindowKey {
            subject: subject.clone(),
            kind,
        },
        limit: WindowLimit::new(most).unwrap(),
        amount,
    }
}

pub(crate) fn dry(mut ask: WindowAsk) -> WindowAsk {
    ask.limit = ask.limit.dry_run();
    ask
}

#[track_caller]
pub(crate) fn admitted(answer: WindowAnswer) -> (WindowTicket, Vec<WindowStanding>) {
    match answer {
        WindowAnswer::Admitted { ticket, standings } => (ticket, standings),
        WindowAnswer::Refused(refusal) => panic!("refused: {refusal:?}"),
    }
}

#[track_caller]
pub(crate) fn refused(answer: WindowAnswer) -> WindowRefusal {
    match answer {
        WindowAnswer::Refused(refusal) => refusal,
        WindowAnswer::Admitted { standings, .. } => panic!("admitted: {standings:?}"),
    }
}
