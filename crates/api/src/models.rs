//! The models that a key may ask for.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use serde::Serialize;
use sluice_domain::upstream::ProviderKind;
use sluice_upstream_pool::ModelEntry;

use crate::app::Worker;
use crate::auth::Grant;
use crate::auth::credential::credential;
use crate::error::ApiError;
use crate::relay::model_not_found;
use crate::server::RequestContext;

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

/// `GET /v1/models`: every model that this key may use. Routes by pattern are not listed.
pub(crate) async fn list(
    State(worker): State<Arc<Worker>>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let grant = grant_of(&worker, context, &headers).await?;
    let entries = worker.app.routing.load().models(grant.payer().tenant_id);
    let data = entries
        .iter()
        .filter(|e| grant.key.allows_model(&e.id))
        .map(Model::of)
        .collect();
    Ok(json(&ModelList {
        object: "list",
        data,
    }))
}

/// `GET /v1/models/{id}`: one model, also when only a pattern serves it.
pub(crate) async fn find(
    State(worker): State<Arc<Worker>>,
    Extension(context): Extension<RequestContext>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let grant = grant_of(&worker, context, &headers).await?;
    let tenant = grant.payer().tenant_id;
    let routing = worker.app.routing.load();
    let Some(route) = grant
        .key
        .allows_model(&id)
        .then(|| routing.find_route(tenant, &id))
        .flatten()
    else {
        return Err(model_not_found(&id));
    };
    let owned_by = route.first_kind().map_or("sluice", ProviderKind::as_str);
    Ok(json(&Model {
        id: &id,
        object: "model",
        created: route.created_at().as_seconds(),
        owned_by,
    }))
}

async fn grant_of(
    worker: &Worker,
    context: RequestContext,
    headers: &HeaderMap,
) -> Result<Arc<Grant>, ApiError> {
    let found = worker
        .app
        .grants
        .find(credential(headers), worker.app.now())
        .await;
    found.map_err(|error| error.logged(context.request_id))
}

fn json(value: &impl Serialize) -> Response {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).unwrap_or_default()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
