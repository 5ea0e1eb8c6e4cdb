//! Settings of the upstream pool: how often an upstream is tried, when it is left alone, and how much
//! it may be asked.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use crate::id::{UpstreamId, UpstreamKeyId};
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

/// How often an upstream is asked for its models while no request tells how it is: whole seconds, from
/// one to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeInterval(Duration);

/// An interval of probes cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a time from 1s to 24h is expected, such as 30s, 5m or 1h")]
pub struct InvalidProbeInterval;

impl ProbeInterval {
    /// Takes an interval; `None` when it is too short, too long, or has parts of seconds.
    pub fn new(every: Duration) -> Option<Self> {
        let is_fine = every.subsec_nanos() == 0
            && (Duration::from_secs(1)..=Duration::from_hours(24)).contains(&every);
        is_fine.then_some(Self(every))
    }

    /// Returns the interval.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for ProbeInterval {
    type Err = InvalidProbeInterval;

    fn from_str(text: &str) -> Result<Self, InvalidProbeInterval> {
        let units = [("s", 1), ("m", 60), ("h", 3_600)];
        let seconds = units.into_iter().find_map(|(unit, seconds)| {
            let number: u32 = text.strip_suffix(unit)?.parse().ok()?;
            Some(u64::from(number) * seconds)
        });
        seconds
            .and_then(|seconds| Self::new(Duration::from_secs(seconds)))
            .ok_or(InvalidProbeInterval)
    }
}

impl fmt::Display for ProbeInterval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds % 3_600, seconds % 60) {
            (0, _) => write!(f, "{}h", seconds / 3_600),
            (_, 0) => write!(f, "{}m", seconds / 60),
            _ => write!(f, "{seconds}s"),
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

/// Why a target or an upstream key was not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SkipReason {
    /// It rests after a limit signal of the provider.
    Cooldown,
    /// Its breaker is open, or another request probes it.
    BreakerOpen,
    /// The provider refused its credential or wants to be paid; an admin has to act.
    Quarantined,
    /// It would be asked more than its own limits allow.
    AtLimit,
    /// It accepts less than it is asked, so that it is asked less.
    Throttled,
}

words!(
    SkipReason,
    "cooldown, breaker_open, quarantined, at_limit, throttled",
    {
        SkipReason::Cooldown => "cooldown",
        SkipReason::BreakerOpen => "breaker_open",
        SkipReason::Quarantined => "quarantined",
        SkipReason::AtLimit => "at_limit",
        SkipReason::Throttled => "throttled",
    }
);

/// A target, or one key of it, that a request passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SkippedTarget {
    /// The upstream.
    pub upstream_id: UpstreamId,
    /// The key; `None` when the whole upstream was passed over.
    pub upstream_key_id: Option<UpstreamKeyId>,
    /// Why.
    pub reason: SkipReason,
}

/// What a request passed over: the first of them, each once, and how many more there were.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SkippedTargets {
    first: Vec<SkippedTarget>,
    more: u32,
}

impl SkippedTargets {
    /// So many are kept by name.
    pub const MAX_NAMED: usize = 16;

    /// Takes over what was kept elsewhere; what is beyond [`Self::MAX_NAMED`] is only counted.
    pub fn from_parts(mut first: Vec<SkippedTarget>, more: u32) -> Self {
        let beyond = first.len().saturating_sub(Self::MAX_NAMED);
        first.truncate(Self::MAX_NAMED);
        let more = more.saturating_add(u32::try_from(beyond).unwrap_or(u32::MAX));
        Self { first, more }
    }

    /// Adds one, unless it is there for the same reason.
    pub fn add(&mut self, skipped: SkippedTarget) {
        if self.first.contains(&skipped) {
            return;
        }
        if self.first.len() < Self::MAX_NAMED {
            self.first.push(skipped);
        } else {
            self.more = self.more.saturating_add(1);
        }
    }

    /// Returns those that are kept by name, in order.
    pub fn named(&self) -> &[SkippedTarget] {
        &self.first
    }

    /// Returns how many there were beyond those with a name.
    pub const fn more(&self) -> u32 {
        self.more
    }

    /// Returns whether nothing was passed over.
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_of_probes_is_whole_seconds_of_at_most_a_day() {
        for (text, seconds, shown) in [
            ("1s", 1, "1s"),
            ("90s", 90, "90s"),
            ("300s", 300, "5m"),
            ("60m", 3_600, "1h"),
            ("24h", 86_400, "24h"),
        ] {
            let every: ProbeInterval = text.parse().unwrap();
            assert_eq!(every.get(), Duration::from_secs(seconds), "{text}");
            assert_eq!(every.to_string(), shown);
            assert_eq!(shown.parse(), Ok(every));
        }
        for text in [
            "",
            "30",
            "0s",
            "25h",
            "1.5s",
            "-1s",
            "30 s",
            "500ms",
            "99999999999h",
        ] {
            assert_eq!(
                text.parse::<ProbeInterval>(),
                Err(InvalidProbeInterval),
                "{text}"
            );
        }
        assert_eq!(ProbeInterval::new(Duration::from_millis(1_500)), None);
    }

    #[test]
    fn what_was_skipped_is_named_once_and_up_to_a_bound() {
        let mut skipped = SkippedTargets::default();
        let upstream_id = UpstreamId::from_uuid(uuid::Uuid::from_u128(1));
        let of = |n: u128| SkippedTarget {
            upstream_id,
            upstream_key_id: Some(UpstreamKeyId::from_uuid(uuid::Uuid::from_u128(n))),
            reason: SkipReason::Cooldown,
        };
        for n in 0..20 {
            skipped.add(of(n));
            skipped.add(of(n.min(3)));
        }
        assert_eq!(skipped.named().len(), SkippedTargets::MAX_NAMED);
        assert_eq!((skipped.named()[15], skipped.more()), (of(15), 4));
        let kept = SkippedTargets::from_parts((0..20).map(of).collect(), 1);
        assert_eq!((kept.named(), kept.more()), (skipped.named(), 5));
    }
}
