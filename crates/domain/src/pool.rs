//! Settings of the upstream pool: how often an upstream is tried, when it is left alone, and how much
//! it may be asked.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::words;

/// How often a request is tried before its first event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Most attempts of one request at this upstream, at least 1. Between two of them lies a pause
    /// with full jitter.
    pub max_attempts: NonZeroU32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: NonZeroU32::MIN.saturating_add(2),
        }
    }
}

/// When an upstream or an upstream key is left alone because it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// So many failures in a row open the breaker.
    pub max_failures: NonZeroU32,
    /// So many failures of a hundred attempts open it too, once there were enough attempts to tell.
    /// At most 100.
    pub max_failure_percent: NonZeroU32,
    /// How long it stays open at first; every failed probe doubles that, up to ten times this.
    pub open_for: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            max_failures: NonZeroU32::MIN.saturating_add(4),
            max_failure_percent: NonZeroU32::MIN.saturating_add(49),
            open_for: Duration::from_mins(1),
        }
    }
}

/// What an upstream, or one upstream key, may be asked at most by one instance; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UpstreamLimits {
    /// Requests a minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens a minute, by the bound of a request until it ended.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time.
    pub concurrency: Option<NonZeroU32>,
}

/// How a target is chosen inside a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Selection {
    /// By weight, in smooth turns.
    #[default]
    Weighted,
    /// The faster of two that are drawn by weight: peak-sensitive moving average of the time to the
    /// first event.
    LeastLatency,
    /// By weight, the same for every request of one proxy key.
    StickyKey,
    /// By weight, the same for every request of one user.
    StickyUser,
}

words!(Selection, "weighted, least_latency, sticky_key, sticky_user", {
    Selection::Weighted => "weighted",
    Selection::LeastLatency => "least_latency",
    Selection::StickyKey => "sticky_key",
    Selection::StickyUser => "sticky_user",
});

/// Which requests a target serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TargetUse {
    /// Every request, in the order of the tiers.
    #[default]
    Any,
    /// Only requests that another target refused because they are too long for its model.
    ContextLength,
}

words!(TargetUse, "any, context_length", {
    TargetUse::Any => "any",
    TargetUse::ContextLength => "context_length",
});
