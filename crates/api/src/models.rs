//! The models that a key may ask for.

mod page;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use sluice_domain::route::Protocol;
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::ProviderKind;
use sluice_upstream_pool::ModelEntry;

use crate::app::Worker;
use crate::auth::Grant;
use crate::auth::credential::credential;
use crate::error::ApiError;
use crate::relay::model_not_found;
use crate::server::RequestContext;
use crate::source_ip::source_ip;
use crate::windows::{Asked, WindowPass};

use self::page::Page;

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'a str,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<Model<'a>>,
}

/// A model in the words of the Anthropic API.
#[derive(Serialize)]
struct AnthropicModel<'a> {
    r#type: &'static str,
    id: &'a str,
    display_name: &'a str,
    created_at: String,
}

#[derive(Serialize)]
struct AnthropicList<'a> {
    data: Vec<AnthropicModel<'a>>,
    has_more: bool,
    first_id: Option<&'a str>,
    last_id: Option<&'a str>,
}

impl<'a> AnthropicModel<'a> {
    fn new(id: &'a str, created_seconds: i64) -> Self {
        Self {
            r#type: "model",
            id,
            display_name: id,
            created_at: UnixMillis(created_seconds.saturating_mul(1_000)).to_rfc3339(),
        }
    }
}

impl<'a> Model<'a> {
    fn of(entry: &'a ModelEntry) -> Self {
        Self {
            id: &entry.id,
            object: "model",
            created: entry.created,
            owned_by: entry.owned_by,
        }
    }
}

/// `GET /v1/models`: every model that this key may use, in the client's protocol, by pages in that of
/// Anthropic. Routes by pattern are not listed.
pub(crate) async fn list(
    State(worker): State<Arc<Worker>>,
    Extension(context): Extension<RequestContext>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let protocol = context.protocol(&headers);
    let (grant, windows) = match grant_of(&worker, context, &headers).await {
        Ok(granted) => granted,
        Err(error) => return context.answer(error, &headers),
    };
    let entries = worker.app.routing.load().models(grant.payer().tenant_id);
    let allowed = entries.iter().filter(|e| grant.key.allows_model(&e.id));
    let response = match protocol {
        Protocol::OpenAi => json(&ModelList {
            object: "list",
            data: allowed.map(Model::of).collect(),
        }),
        Protocol::Anthropic => {
            let page = match Page::read(query.as_deref()) {
                Ok(page) => page,
                Err(error) => return context.answer(error, &headers),
            };
            let allowed: Vec<_> = allowed.collect();
            let ids: Vec<&str> = allowed.iter().map(|entry| &*entry.id).collect();
            let (range, has_more) = page.of(&ids);
            let shown = allowed.get(range).unwrap_or_default();
            let data: Vec<_> = shown
                .iter()
                .map(|entry| AnthropicModel::new(&entry.id, entry.created))
                .collect();
            json(&AnthropicList {
                has_more,
                first_id: data.first().map(|model| model.id),
                last_id: data.last().map(|model| model.id),
                data,
            })
        }
    };
    told(response, protocol, &worker, &windows)
}

/// `GET /v1/models/{id}`: one model, also when only a pattern serves it.
pub(crate) async fn find(
    State(worker): State<Arc<Worker>>,
    Extension(context): Extension<RequestContext>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let protocol = context.protocol(&headers);
    let (grant, windows) = match grant_of(&worker, context, &headers).await {
        Ok(granted) => granted,
        Err(error) => return context.answer(error, &headers),
    };
    let tenant = grant.payer().tenant_id;
    let routing = worker.app.routing.load();
    let Some(route) = grant
        .key
        .allows_model(&id)
        .then(|| routing.find_route(tenant, &id))
        .flatten()
    else {
        return context.answer(model_not_found(&id), &headers);
    };
    let created = route.created_at().as_seconds();
    let response = match protocol {
        Protocol::OpenAi => json(&Model {
            id: &id,
            object: "model",
            created,
            owned_by: route.first_kind().map_or("sluice", ProviderKind::as_str),
        }),
        Protocol::Anthropic => json(&AnthropicModel::new(&id, created)),
    };
    told(response, protocol, &worker, &windows)
}

/// Finds out who calls, and counts the request: as one, without tokens.
async fn grant_of(
    worker: &Worker,
    context: RequestContext,
    headers: &HeaderMap,
) -> Result<(Arc<Grant>, WindowPass), ApiError> {
    let app = &worker.app;
    let granted = async {
        let trusted = &app.config.server.trusted_proxies;
        let ip = source_ip(context.peer.ip(), headers, trusted);
        let mut windows = app.gate.enter(ip).await?;
        let grant = app.grants.find(credential(headers), app.now()).await?;
        let asked = Asked {
            model: None,
            tokens: None,
        };
        app.gate.admit(&mut windows, &grant, asked).await?;
        Ok((grant, windows))
    };
    granted
        .await
        .map_err(|error: ApiError| error.logged(context.request_id))
}

/// Tells how the limits stand.
fn told(
    mut response: Response,
    protocol: Protocol,
    worker: &Worker,
    windows: &WindowPass,
) -> Response {
    if let Some(limits) = windows.shown() {
        limits.write(protocol, worker.app.now(), response.headers_mut());
    }
    response
}

fn json(value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).unwrap_or_default()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
