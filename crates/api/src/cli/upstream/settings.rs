//! The settings of an upstream as `create` and `set` take them and `list` shows them.

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::{Map, Value, json};
use sluice_domain::address::ForbiddenAddress;
use sluice_domain::pool::{ProbeInterval, UpstreamLimits};
use sluice_domain::upstream::{ApiVersion, ClientGone, InvalidUpstream, Upstream};

use crate::cli::input::{OrNone, WrongUsage, limit, millis};

/// What may be set; what is absent stays as it is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct SettingArgs {
    /// When the client of a stream has left: `cancel` closes it at the provider, `drain` reads it to
    /// its end for the provider's own numbers [default: cancel]
    #[arg(long)]
    client_gone: Option<ClientGone>,
    /// Milliseconds to an open connection [default: 10000]
    #[arg(long, value_name = "MS", value_parser = millis)]
    connect_ms: Option<Duration>,
    /// Milliseconds to the first event of a stream, or to the head of an answer [default: 300000]
    #[arg(long, value_name = "MS", value_parser = millis)]
    first_event_ms: Option<Duration>,
    /// Milliseconds between two bytes of an answer [default: 180000]
    #[arg(long, value_name = "MS", value_parser = millis)]
    idle_ms: Option<Duration>,
    /// Milliseconds to the last byte of an answer [default: 3600000]
    #[arg(long, value_name = "MS", value_parser = millis)]
    total_ms: Option<Duration>,
    /// Most attempts of one request here [default: 3]
    #[arg(long, value_name = "N", value_parser = |text: &str| limit(text, 1_000))]
    max_attempts: Option<NonZeroU32>,
    /// So many failures in a row open the breaker [default: 5]
    #[arg(long, value_name = "N", value_parser = |text: &str| limit(text, 1_000_000))]
    breaker_failures: Option<NonZeroU32>,
    /// So many failures of a hundred attempts open the breaker [default: 50]
    #[arg(long, value_name = "PERCENT", value_parser = |text: &str| limit(text, 100))]
    breaker_percent: Option<NonZeroU32>,
    /// Milliseconds that the breaker stays open at first [default: 60000]
    #[arg(long, value_name = "MS", value_parser = millis)]
    breaker_open_ms: Option<Duration>,
    /// Ask it for its models this often, such as 30s, while no request tells how it is [default: none]
    #[arg(long, value_name = "TIME|none")]
    probe_every: Option<OrNone<ProbeInterval>>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Version of Azure's interface, such as 2024-10-21; `none` for its v1 paths [default: none]
    #[arg(long, value_name = "VERSION")]
    api_version: Option<OrNone<ApiVersion>>,
    /// Let it be at addresses of this machine or of private networks [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    allow_private: Option<bool>,
}

/// What an upstream or an upstream key may be asked at most.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// Requests a minute that one instance sends there at most [default: none]
    #[arg(long, value_name = "N|none")]
    rpm: Option<OrNone<NonZeroU32>>,
    /// Tokens a minute that one instance sends there at most [default: none]
    #[arg(long, value_name = "N|none")]
    tpm: Option<OrNone<NonZeroU32>>,
    /// Requests at the same time that one instance sends there at most [default: none]
    #[arg(long, value_name = "N|none")]
    concurrency: Option<OrNone<NonZeroU32>>,
}

impl SettingArgs {
    /// Returns whether nothing is to be set.
    pub(super) fn is_empty(&self) -> bool {
        let Self {
            client_gone,
            connect_ms,
            first_event_ms,
            idle_ms,
            total_ms,
            max_attempts,
            breaker_failures,
            breaker_percent,
            breaker_open_ms,
            probe_every,
            limits,
            api_version,
            allow_private,
        } = self;
        [
            client_gone.is_none(),
            connect_ms.is_none(),
            first_event_ms.is_none(),
            idle_ms.is_none(),
            total_ms.is_none(),
            max_attempts.is_none(),
            breaker_failures.is_none(),
            breaker_percent.is_none(),
            breaker_open_ms.is_none(),
            probe_every.is_none(),
            limits.is_empty(),
            api_version.is_none(),
            allow_private.is_none(),
        ]
        .into_iter()
        .all(|is_absent| is_absent)
    }

    /// Sets what is to be set, and checks the whole.
    pub(super) fn apply(self, upstream: &mut Upstream) -> anyhow::Result<()> {
        let (deadlines, breaker) = (&mut upstream.deadlines, &mut upstream.breaker);
        set(&mut upstream.client_gone, self.client_gone);
        set(&mut deadlines.connect, self.connect_ms);
        set(&mut deadlines.first_event, self.first_event_ms);
        set(&mut deadlines.idle, self.idle_ms);
        set(&mut deadlines.total, self.total_ms);
        set(&mut upstream.retry.max_attempts, self.max_attempts);
        set(&mut breaker.max_failures, self.breaker_failures);
        set(&mut breaker.max_failure_percent, self.breaker_percent);
        set(&mut breaker.open_for, self.breaker_open_ms);
        set(&mut upstream.probe_every, self.probe_every.map(|or| or.0));
        self.limits.apply(&mut upstream.limits);
        set(&mut upstream.api_version, self.api_version.map(|or| or.0));
        set(&mut upstream.allow_private, self.allow_private);
        check(upstream)
    }
}

impl LimitArgs {
    /// Returns whether nothing is to be set.
    pub(super) const fn is_empty(&self) -> bool {
        self.rpm.is_none() && self.tpm.is_none() && self.concurrency.is_none()
    }

    /// Sets what is to be set.
    pub(super) fn apply(self, limits: &mut UpstreamLimits) {
        set(&mut limits.requests_per_minute, self.rpm.map(|or| or.0));
        set(&mut limits.tokens_per_minute, self.tpm.map(|or| or.0));
        set(&mut limits.concurrency, self.concurrency.map(|or| or.0));
    }
}

fn set<T>(field: &mut T, wanted: Option<T>) {
    if let Some(wanted) = wanted {
        *field = wanted;
    }
}

/// Checks an upstream, and says what to do about one that cannot be.
pub(in crate::cli) fn check(upstream: &Upstream) -> anyhow::Result<()> {
    upstream.check().map_err(|invalid| match &invalid {
        InvalidUpstream::NoUrl(_)
        | InvalidUpstream::Url(_)
        | InvalidUpstream::ApiVersion(_)
        | InvalidUpstream::Probe(_) => anyhow::Error::new(WrongUsage(invalid.to_string())),
        InvalidUpstream::Address(ForbiddenAddress::NotAllowed { .. }) => {
            anyhow!("{invalid}; say `--allow-private` if it is meant to be there")
        }
        InvalidUpstream::Address(ForbiddenAddress::Never { .. }) => anyhow!("{invalid}"),
    })
}

/// Returns every setting, named as its flag.
pub(super) fn all(upstream: &Upstream) -> Map<String, Value> {
    let (deadlines, breaker) = (upstream.deadlines, upstream.breaker);
    let ms = |duration: Duration| json!(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    let limits = limit_fields(upstream.limits);
    [
        ("client_gone", json!(upstream.client_gone.as_str())),
        ("connect_ms", ms(deadlines.connect)),
        ("first_event_ms", ms(deadlines.first_event)),
        ("idle_ms", ms(deadlines.idle)),
        ("total_ms", ms(deadlines.total)),
        ("max_attempts", json!(upstream.retry.max_attempts)),
        ("breaker_failures", json!(breaker.max_failures)),
        ("breaker_percent", json!(breaker.max_failure_percent)),
        ("breaker_open_ms", ms(breaker.open_for)),
        (
            "probe_every",
            json!(upstream.probe_every.map(|every| every.to_string())),
        ),
    ]
    .into_iter()
    .chain(["rpm", "tpm", "concurrency"].into_iter().zip(limits))
    .chain([
        (
            "api_version",
            json!(upstream.api_version.as_ref().map(ApiVersion::as_str)),
        ),
        ("allow_private", json!(upstream.allow_private)),
    ])
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// Returns the limits as lists show them: requests and tokens a minute, requests at the same time.
pub(super) fn limit_fields(limits: UpstreamLimits) -> [Value; 3] {
    [
        json!(limits.requests_per_minute),
        json!(limits.tokens_per_minute),
        json!(limits.concurrency),
    ]
}

/// Returns the settings that are not the usual ones, for people.
pub(super) fn unusual(upstream: &Upstream) -> Vec<String> {
    let usual = all(&Upstream::new(
        upstream.id,
        upstream.name.clone(),
        upstream.kind,
        None,
        upstream.created_at,
    ));
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    all(upstream)
        .iter()
        .filter(|(name, value)| usual.get(*name) != Some(*value))
        .map(|(name, value)| format!("{name}={}", text(value)))
        .collect()
}
