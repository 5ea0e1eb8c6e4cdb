//! Window limits: how much may happen in a second, in a minute, and at once.
//!
//! [`Windows`] decides: in process where there is one instance, and in Redis for several. When Redis
//! is slow, away, or may have forgotten, each instance goes on with its share of every limit.
//! `local` are the counters of this process, `redis` those of all.

mod local;
mod redis;
mod status;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_domain::ports::WindowCounters as _;
use sluice_domain::window::{
    InstanceRank, WindowAnswer, WindowDecision, WindowGroup, WindowLimit, WindowRefusal,
    WindowStanding, WindowTicket,
};

pub use self::local::LocalWindows;
pub use self::redis::{InvalidRedisUrl, RedisOptions, RedisTarget, RedisWindows};
pub use self::status::{LocalReason, NodeMode, NodeStatus, WindowsStatus};

use self::local::Terms;

/// How often counters that count nothing are dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// What a caller is told to wait that is refused because Redis is lost.
const DENIED_WAIT: Duration = Duration::from_secs(1);

/// What happens while Redis cannot be counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RedisLoss {
    /// Each instance admits its share of every limit by itself.
    #[default]
    Share,
    /// Everything that has a limit is refused.
    Deny,
}

/// How window limits are counted.
#[derive(Debug, Clone)]
pub struct WindowsOptions {
    /// How many counters there may be in process for addresses, and as many for all else.
    pub max_counters: usize,
    /// Where the counters of all instances are; `None` counts in process alone.
    pub redis: Option<RedisOptions>,
    /// What happens while those cannot be counted on.
    pub on_redis_loss: RedisLoss,
}

#[derive(Debug)]
struct Inner {
    local: LocalWindows,
    redis: Option<RedisWindows>,
    on_redis_loss: RedisLoss,
    /// Number of instances in the upper half, rank in the lower.
    rank: AtomicU64,
    redis_decisions: AtomicU64,
    local_decisions: AtomicU64,
}

/// Decides about window limits.
///
/// In process a decision never waits. In Redis it waits for one answer, at most as long as the
/// deadline, and when there is none it is made here. It is never an error.
///
/// Without Redis, a limit holds for this instance alone.
#[derive(Debug, Clone)]
pub struct Windows(Arc<Inner>);

impl Windows {
    /// Returns counters that have counted nothing. Where there is Redis, decisions are made by
    /// shares until [`keep`](Self::keep) has connected.
    pub fn new(options: WindowsOptions) -> Self {
        let local = LocalWindows::new(options.max_counters);
        let redis = options
            .redis
            .map(|redis| RedisWindows::new(redis, local.clone()));
        let windows = Self(Arc::new(Inner {
            local,
            redis,
            on_redis_loss: options.on_redis_loss,
            rank: AtomicU64::new(0),
            redis_decisions: AtomicU64::new(0),
            local_decisions: AtomicU64::new(0),
        }));
        windows.set_rank(InstanceRank::ALONE);
        windows
    }

    /// Says how many instances there are, and which of them this one is: what counts when Redis is
    /// lost.
    pub fn set_rank(&self, rank: InstanceRank) {
        let packed = u64::from(rank.instances.get()) << 32 | u64::from(rank.rank);
        self.0.rank.store(packed, Ordering::Relaxed);
    }

    fn rank(&self) -> InstanceRank {
        let packed = self.0.rank.load(Ordering::Relaxed);
        let half = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
        InstanceRank {
            instances: NonZeroU32::new(half(packed >> 32)).unwrap_or(NonZeroU32::MIN),
            rank: half(packed),
        }
    }

    /// Takes what is asked of every counter, or nothing of any.
    ///
    /// # Cancel safety
    /// Safe: see [`WindowCounters::decide`](sluice_domain::ports::WindowCounters::decide).
    pub async fn decide(&self, decision: WindowDecision<'_>) -> WindowAnswer {
        if decision.asks.is_empty() {
            return WindowAnswer::Admitted {
                ticket: WindowTicket::empty(),
                standings: Vec::new(),
            };
        }
        let redis = match &self.0.redis {
            Some(redis) if decision.group != WindowGroup::Instance => redis,
            _ => return self.0.local.decide_now(decision),
        };
        if let Ok(answer) = redis.decide(decision).await {
            self.0.redis_decisions.fetch_add(1, Ordering::Relaxed);
            return answer;
        }
        self.0.local_decisions.fetch_add(1, Ordering::Relaxed);
        if self.0.on_redis_loss == RedisLoss::Deny
            && let Some(which) = decision.asks.iter().position(|ask| !ask.limit.dry_run)
        {
            return WindowAnswer::Refused(deny(decision, which));
        }
        let rank = self.rank();
        self.0.local.decide_within(
            decision,
            &Terms {
                part: |limit: WindowLimit| rank.share(limit.most()),
                is_to_be_sent: true,
            },
        )
    }

    /// Returns how the counters stand.
    pub fn status(&self) -> WindowsStatus {
        let Inner { local, redis, .. } = &*self.0;
        WindowsStatus {
            nodes: redis.as_ref().map(RedisWindows::status).unwrap_or_default(),
            counters: local.len(),
            displaced: local.displaced(),
            local_decisions: self.0.local_decisions.load(Ordering::Relaxed),
            redis_decisions: self.0.redis_decisions.load(Ordering::Relaxed),
            lost_corrections: redis.as_ref().map_or(0, RedisWindows::lost_corrections),
        }
    }

    /// Connects to Redis, watches it, sends what is to be sent, and drops counters that count
    /// nothing, for ever. Must run once, as long as decisions are made.
    pub async fn keep(&self) {
        let sweeping = async {
            let mut ticks = tokio::time::interval(SWEEP_EVERY);
            loop {
                ticks.tick().await;
                self.0.local.sweep();
            }
        };
        match &self.0.redis {
            Some(redis) => {
                tokio::join!(sweeping, redis.keep());
            }
            None => sweeping.await,
        }
    }
}

/// Refuses because the counters cannot be counted on.
fn deny(decision: WindowDecision<'_>, which: usize) -> WindowRefusal {
    WindowRefusal {
        which,
        standings: decision
            .asks
            .iter()
            .map(|ask| WindowStanding {
                most: ask.limit.most(),
                used: ask.limit.most(),
                resets_in: DENIED_WAIT,
                is_over: true,
            })
            .collect(),
        retry_after: DENIED_WAIT,
    }
}
