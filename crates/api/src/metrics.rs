//! Metrics: bounded labels, handles made once, text for Prometheus.

mod ledger;

mod upstreams;

mod windows;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sluice_domain::route::{Endpoint, Protocol};
use sluice_domain::usage::{Basis, Ending, TokenUsage};
use sluice_storage::resolve::Attention;
use sluice_storage::windows::WindowsStatus;
use sluice_upstream_pool::UpstreamReport;

use self::ledger::LedgerFigures;
use self::upstreams::UpstreamFigures;
use self::windows::WindowFigures;

/// Upper bounds of the duration buckets, in seconds: from a refusal to a long stream.
const DURATION_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0,
];

/// The parts of the surface, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label values")]
pub(crate) enum Surface {
    chat_completions,
    completions,
    embeddings,
    messages,
    count_tokens,
    models,
    ops,
    other,
}

impl Surface {
    const ALL: [Self; 8] = [
        Self::chat_completions,
        Self::completions,
        Self::embeddings,
        Self::messages,
        Self::count_tokens,
        Self::models,
        Self::ops,
        Self::other,
    ];

    /// Returns the endpoint that is relayed here.
    pub(crate) const fn endpoint(self) -> Option<Endpoint> {
        match self {
            Self::chat_completions => Some(Endpoint::ChatCompletions),
            Self::completions => Some(Endpoint::Completions),
            Self::embeddings => Some(Endpoint::Embeddings),
            Self::messages => Some(Endpoint::Messages),
            Self::count_tokens => Some(Endpoint::CountTokens),
            Self::models | Self::ops | Self::other => None,
        }
    }

    /// Returns the protocol in which errors are answered here.
    pub(crate) const fn protocol(self) -> Protocol {
        match self.endpoint() {
            Some(endpoint) => endpoint.protocol(),
            None => Protocol::OpenAi,
        }
    }

    /// Classifies a path; what is not served is `other`.
    pub(crate) fn of_path(path: &str) -> Self {
        let path = path.strip_prefix("/v1").unwrap_or(path);
        let path = path.strip_prefix("/v1").unwrap_or(path);
        match path {
            "/chat/completions" => Self::chat_completions,
            "/completions" => Self::completions,
            "/embeddings" => Self::embeddings,
            "/messages" => Self::messages,
            "/messages/count_tokens" => Self::count_tokens,
            "/livez" | "/readyz" | "/healthz" | "/health" | "/metrics" => Self::ops,
            "/models" => Self::models,
            _ if path.starts_with("/models/") => Self::models,
            _ => Self::other,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SurfaceLabel {
    endpoint: Surface,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    endpoint: Surface,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabel {
    class: TokenClass,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[expect(non_camel_case_types, reason = "the names are the label values")]
enum TokenClass {
    input,
    cached_input,
    cache_write_input,
    output,
    reasoning_output,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndingLabel {
    ending: &'static str,
    basis: &'static str,
}

/// Handles of one surface, made once.
#[derive(Debug)]
struct SurfaceMetrics {
    active: Gauge,
    duration: Histogram,
    requests: [OnceLock<Counter>; 500],
    errors: [OnceLock<Counter>; 500],
}

/// All metrics of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<StatusLabel, Counter>,
    errors: Family<StatusLabel, Counter>,
    surfaces: Vec<Box<SurfaceMetrics>>,
    tokens: [Counter; 5],
    endings: Family<EndingLabel, Counter>,
    /// Handles of `endings`, by ending and basis.
    ending_handles: [[OnceLock<Counter>; 5]; 7],
    ledger: LedgerFigures,
    upstreams: UpstreamFigures,
    pub(crate) windows: WindowFigures,
    pub(crate) connections: Gauge,
    pub(crate) feed_failures: Counter,
    pub(crate) snapshot_as_of: Gauge,
    pub(crate) key_lookups: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let requests = Family::<StatusLabel, Counter>::default();
        registry.register(
            "http_requests",
            "Requests that were answered",
            requests.clone(),
        );
        let errors = Family::<StatusLabel, Counter>::default();
        registry.register(
            "http_errors",
            "Requests that were answered with status 400 or above",
            errors.clone(),
        );
        let durations = Family::<SurfaceLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(DURATION_BUCKETS)
        });
        registry.register(
            "http_request_duration_seconds",
            "Seconds from the head of a request to the last byte of its answer",
            durations.clone(),
        );
        let active = Family::<SurfaceLabel, Gauge>::default();
        registry.register(
            "http_active_requests",
            "Requests that are being answered",
            active.clone(),
        );
        let tokens = Family::<TokenLabel, Counter>::default();
        registry.register("token_usage", "Tokens in usage records, by class; cached and cache-write are part of input, reasoning is part of output", tokens.clone());
        let endings = Family::<EndingLabel, Counter>::default();
        registry.register(
            "sluice_records",
            "Usage records, by how the request ended and how its tokens are known",
            endings.clone(),
        );

        let surfaces = Surface::ALL
            .iter()
            .map(|surface| {
                Box::new(SurfaceMetrics {
                    active: active.get_or_create_owned(&SurfaceLabel { endpoint: *surface }),
                    duration: durations.get_or_create_owned(&SurfaceLabel { endpoint: *surface }),
                    requests: [const { OnceLock::new() }; 500],
                    errors: [const { OnceLock::new() }; 500],
                })
            })
            .collect();
        let token_classes = [
            TokenClass::input,
            TokenClass::cached_input,
            TokenClass::cache_write_input,
            TokenClass::output,
            TokenClass::reasoning_output,
        ]
        .map(|class| tokens.get_or_create_owned(&TokenLabel { class }));

        let ledger = LedgerFigures::register(&mut registry);
        let upstreams = UpstreamFigures::register(&mut registry);
        let windows = WindowFigures::register(&mut registry);
        let mut metrics = Self {
            registry,
            requests,
            errors,
            surfaces,
            tokens: token_classes,
            endings,
            ending_handles: [const { [const { OnceLock::new() }; 5] }; 7],
            ledger,
            upstreams,
            windows,
            connections: Gauge::default(),
            feed_failures: Counter::default(),
            snapshot_as_of: Gauge::default(),
            key_lookups: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "sluice_connections",
            "Open client connections",
            metrics.connections.clone(),
        );
        registry.register(
            "sluice_feed_failures",
            "Polls of the change feed that failed",
            metrics.feed_failures.clone(),
        );
        registry.register(
            "sluice_snapshot_as_of_seconds",
            "The Unix time of which the config snapshot on disk is, 0 when this process has written none; a restart without the database needs one that is younger than snapshot.max_age_ms",
            metrics.snapshot_as_of.clone(),
        );
        registry.register(
            "sluice_key_lookups",
            "Look-ups of proxy keys in the database",
            metrics.key_lookups.clone(),
        );
        Arc::new(metrics)
    }

    fn surface(&self, surface: Surface) -> Option<&SurfaceMetrics> {
        self.surfaces.get(surface as usize).map(Box::as_ref)
    }

    pub(crate) fn request_began(&self, surface: Surface) {
        if let Some(metrics) = self.surface(surface) {
            metrics.active.inc();
        }
    }

    /// Counts a request whose answer has left, or whose client has.
    pub(crate) fn request_ended(&self, surface: Surface, status: StatusCode, duration: Duration) {
        let Some(metrics) = self.surface(surface) else {
            return;
        };
        metrics.active.dec();
        metrics.duration.observe(duration.as_secs_f64());
        let label = || StatusLabel {
            endpoint: surface,
            status: status.as_u16(),
        };
        let place = usize::from(status.as_u16()).saturating_sub(100);
        if let Some(counter) = metrics.requests.get(place) {
            counter
                .get_or_init(|| self.requests.get_or_create_owned(&label()))
                .inc();
        }
        if status.as_u16() >= 400
            && let Some(counter) = metrics.errors.get(place)
        {
            counter
                .get_or_init(|| self.errors.get_or_create_owned(&label()))
                .inc();
        }
    }

    /// Counts a usage record.
    pub(crate) fn record_ended(&self, ending: Ending, basis: Basis, usage: &TokenUsage) {
        let label = || EndingLabel {
            ending: ending.as_str(),
            basis: basis.as_str(),
        };
        if let Some(handle) = self
            .ending_handles
            .get(ending as usize)
            .and_then(|h| h.get(basis as usize))
        {
            handle
                .get_or_init(|| self.endings.get_or_create_owned(&label()))
                .inc();
        }
        let amounts = [
            usage.input,
            usage.cached_input,
            usage.cache_write_input,
            usage.output,
            usage.reasoning_output,
        ];
        for (counter, amount) in self.tokens.iter().zip(amounts) {
            if amount > 0 {
                counter.inc_by(amount.unsigned_abs());
            }
        }
    }

    /// Notes what of the accounts a person should look at.
    pub(crate) fn note_attention(&self, attention: &Attention) {
        self.ledger.note_attention(attention);
    }

    /// Writes all metrics in the text format of Prometheus.
    pub(crate) fn render(
        &self,
        ledger: &sluice_accounting::LedgerStats,
        upstreams: &[UpstreamReport],
        windows: &WindowsStatus,
    ) -> String {
        self.ledger.take_over(ledger);
        let _turn = self.upstreams.take_over(upstreams);
        self.windows.take_over(windows);
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_five_names_are_there() {
        let metrics = Metrics::new();
        metrics.request_began(Surface::chat_completions);
        metrics.request_ended(
            Surface::chat_completions,
            StatusCode::BAD_GATEWAY,
            Duration::from_millis(3),
        );
        metrics.record_ended(
            Ending::Finished,
            Basis::Reported,
            &TokenUsage {
                input: 3,
                ..TokenUsage::default()
            },
        );
        let text = metrics.render(
            &sluice_accounting::LedgerStats::default(),
            &[],
            &WindowsStatus::default(),
        );
        for line in [
            "http_requests_total{endpoint=\"chat_completions\",status=\"502\"} 1",
            "http_errors_total{endpoint=\"chat_completions\",status=\"502\"} 1",
            "http_request_duration_seconds_count{endpoint=\"chat_completions\"} 1",
            "http_active_requests{endpoint=\"chat_completions\"} 0",
            "token_usage_total{class=\"input\"} 3",
            "sluice_records_total{ending=\"finished\",basis=\"reported\"} 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn paths_are_classified_with_and_without_their_prefix() {
        assert_eq!(
            Surface::of_path("/v1/chat/completions"),
            Surface::chat_completions
        );
        assert_eq!(Surface::of_path("/embeddings"), Surface::embeddings);
        assert_eq!(Surface::of_path("/v1/messages"), Surface::messages);
        assert_eq!(
            Surface::of_path("/v1/messages/count_tokens"),
            Surface::count_tokens
        );
        assert_eq!(Surface::of_path("/v1/models/a/b"), Surface::models);
        assert_eq!(Surface::of_path("/v1/unknown"), Surface::other);
    }
}
