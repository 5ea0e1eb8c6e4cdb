//! Whether the process lives, is ready, and what it has.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;
use sluice_storage::windows::{NodeMode, NodeStatus, WindowsStatus};
use sluice_upstream_pool::{BreakerReport, ProbeFinding, UpstreamReport};

use crate::app::Worker;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    database: String,
    accounts: &'static str,
    upstreams: &'static str,
    windows: &'static str,
}

#[derive(Serialize)]
struct Status {
    status: &'static str,
}

/// `GET /livez`: the process answers.
pub(crate) async fn livez() -> Response {
    json(StatusCode::OK, &Status { status: "ok" })
}

/// `GET /readyz`: keys that are known are served. The database may be away.
pub(crate) async fn readyz(State(worker): State<Arc<Worker>>) -> Response {
    if worker.app.is_ready() {
        json(StatusCode::OK, &Status { status: "ready" })
    } else if worker.app.draining.is_given() {
        json(
            StatusCode::SERVICE_UNAVAILABLE,
            &Status { status: "draining" },
        )
    } else {
        json(
            StatusCode::SERVICE_UNAVAILABLE,
            &Status {
                status: "database_unavailable",
            },
        )
    }
}

/// `GET /health` and `/healthz`: what a person or a load balancer asks first. Names no tenant, key or
/// upstream; `/metrics` has the figures of each upstream.
pub(crate) async fn health(State(worker): State<Arc<Worker>>) -> Response {
    let app = &worker.app;
    let is_up = app.standing.is_up();
    let health = Health {
        status: if app.is_ready() && is_up {
            "ok"
        } else {
            "degraded"
        },
        database: app.standing.describe(),
        accounts: app.accounts.word(),
        upstreams: upstreams_word(&app.health.report()),
        windows: windows_word(&app.gate.status()),
    };
    json(
        if app.is_ready() {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        &health,
    )
}

/// Tells whether a person should look at the upstreams. A rest after a limit passes by itself.
fn upstreams_word(reports: &[UpstreamReport]) -> &'static str {
    let is_well = |report: &UpstreamReport| {
        report.breaker == BreakerReport::Closed
            && report.probe != Some(ProbeFinding::Failing)
            && report
                .keys
                .iter()
                .all(|key| key.breaker == BreakerReport::Closed && key.quarantine.is_none())
    };
    if reports.iter().all(is_well) {
        "ok"
    } else {
        "degraded"
    }
}

/// Tells where window limits are counted: `degraded` is by each instance for itself although they
/// have counters together.
fn windows_word(status: &WindowsStatus) -> &'static str {
    let is_together = |node: &NodeStatus| node.mode == NodeMode::Redis;
    if status.nodes.is_empty() {
        "in_process"
    } else if status.nodes.iter().all(is_together) {
        "redis"
    } else {
        "degraded"
    }
}

/// `GET /metrics`: the text format of Prometheus.
pub(crate) async fn metrics(State(worker): State<Arc<Worker>>) -> Response {
    let mut response = worker
        .app
        .metrics
        .render(
            worker.app.ledger.stats(),
            &worker.app.health.report(),
            &worker.app.gate.status(),
        )
        .into_response();
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    response
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).unwrap_or_default()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
