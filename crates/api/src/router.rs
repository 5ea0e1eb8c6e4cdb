//! All paths in one place.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Extension, Router};
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Method, Request};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::app::Worker;
use crate::config::AllowedOrigins;
use crate::error::{ApiError, Code, RETRY_AFTER_MS, X_SHOULD_RETRY};
use crate::relay::{ATTEMPTS, MAX_OUTPUT_TOKENS};
use crate::server::RequestContext;
use crate::windows::header_names;
use crate::{health, models};

/// Prefixes of the inference paths: people paste base URLs with and without `/v1`, and some clients
/// add it to one that has it already.
const PREFIXES: [&str; 3] = ["/v1", "", "/v1/v1"];

/// Builds the router of one thread.
pub(crate) fn build(worker: Arc<Worker>) -> Router {
    let mut router = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/health", get(health::health))
        .route("/healthz", get(health::health))
        .route("/metrics", get(health::metrics));
    for prefix in PREFIXES {
        router = router
            // Posts to these never come here; the others learn that they must post.
            .route(
                &format!("{prefix}/chat/completions"),
                any(method_not_supported),
            )
            .route(&format!("{prefix}/completions"), any(method_not_supported))
            .route(&format!("{prefix}/embeddings"), any(method_not_supported))
            .route(&format!("{prefix}/messages"), any(method_not_supported))
            .route(
                &format!("{prefix}/messages/count_tokens"),
                any(method_not_supported),
            )
            .route(&format!("{prefix}/models"), get(models::list))
            // An id may hold slashes, raw or encoded.
            .route(&format!("{prefix}/models/{{*id}}"), get(models::find));
    }
    router
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_supported)
        .with_state(worker)
}

async fn unknown_url(
    Extension(context): Extension<RequestContext>,
    request: Request<Body>,
) -> Response {
    let error = ApiError::new(
        Code::UnknownUrl,
        format!(
            "Invalid URL ({} {})",
            request.method(),
            short(request.uri().path())
        ),
    );
    context.answer(error, request.headers())
}

async fn method_not_supported(
    Extension(context): Extension<RequestContext>,
    request: Request<Body>,
) -> Response {
    let error = ApiError::new(
        Code::MethodNotSupported,
        format!(
            "Not allowed to {} on {}. Perhaps you meant another HTTP method.",
            request.method(),
            short(request.uri().path())
        ),
    );
    let mut response = context.answer(error, request.headers());
    let allowed = if request.method() == Method::POST {
        "GET, HEAD"
    } else {
        "POST"
    };
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// A path as it may stand in a message.
fn short(path: &str) -> String {
    path.chars().take(200).collect()
}

/// Builds the layer for calls from browsers; `None` when the setting is off.
///
/// Browsers need the headers by name: `*` does not cover `authorization`.
pub(crate) fn cors(origins: &AllowedOrigins) -> Option<CorsLayer> {
    let allow_origin = match origins {
        AllowedOrigins::Off => return None,
        AllowedOrigins::Any => AllowOrigin::any(),
        AllowedOrigins::Listed(origins) => AllowOrigin::list(
            origins
                .iter()
                .filter_map(|origin| HeaderValue::from_str(origin).ok()),
        ),
    };
    let request_headers = [
        AUTHORIZATION,
        CONTENT_TYPE,
        HeaderName::from_static("x-api-key"),
        HeaderName::from_static("api-key"),
        HeaderName::from_static("anthropic-version"),
        HeaderName::from_static("anthropic-beta"),
        HeaderName::from_static("anthropic-dangerous-direct-browser-access"),
        HeaderName::from_static("openai-beta"),
        HeaderName::from_static("openai-organization"),
        HeaderName::from_static("openai-project"),
        HeaderName::from_static("x-stainless-lang"),
        HeaderName::from_static("x-stainless-package-version"),
        HeaderName::from_static("x-stainless-os"),
        HeaderName::from_static("x-stainless-arch"),
        HeaderName::from_static("x-stainless-runtime"),
        HeaderName::from_static("x-stainless-runtime-version"),
        HeaderName::from_static("x-stainless-async"),
        HeaderName::from_static("x-stainless-retry-count"),
        HeaderName::from_static("x-stainless-read-timeout"),
        HeaderName::from_static("x-stainless-timeout"),
        HeaderName::from_static("x-stainless-helper-method"),
    ];
    let answer_headers = [
        HeaderName::from_static("x-request-id"),
        HeaderName::from_static("request-id"),
        RETRY_AFTER,
        RETRY_AFTER_MS,
        X_SHOULD_RETRY,
        MAX_OUTPUT_TOKENS,
        ATTEMPTS,
    ];
    let layer = CorsLayer::new()
        .allow_origin(allow_origin)
        .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
        .allow_headers(request_headers)
        .expose_headers(
            answer_headers
                .into_iter()
                .chain(header_names())
                .collect::<Vec<_>>(),
        )
        .max_age(std::time::Duration::from_hours(1));
    Some(layer)
}
