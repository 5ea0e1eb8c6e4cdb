//! Whether the process lives, is ready, and what it has.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use serde::Serialize;

use crate::app::Worker;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    database: String,
    accounts: &'static str,
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

/// `GET /health` and `/healthz`: what a person or a load balancer asks first. Says nothing about
/// tenants, keys or upstreams.
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

/// `GET /metrics`: the text format of Prometheus.
pub(crate) async fn metrics(State(worker): State<Arc<Worker>>) -> Response {
    let mut response = worker
        .app
        .metrics
        .render(worker.app.ledger.stats())
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
