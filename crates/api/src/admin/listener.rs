//! The listener of the admin API: few connections, small bodies, one table of operations.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::problem::{Code, Problem};
use super::route::{Answer, Call, Route};
use super::{AdminState, routes};
use crate::ids::new_request_id;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Connections that are open at the same time; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// Largest body.
const MAX_BODY_BYTES: usize = 64 * 1_024;
/// How long a client may take to send a head, or a body.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// How long an operation may take. What it began is undone then.
const OPERATION_PATIENCE: Duration = Duration::from_secs(20);
/// Pause after the system refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

struct Surface {
    state: Arc<AdminState>,
    routes: Vec<Route>,
}

/// Accepts connections until the process drains, then waits for those that are open.
pub(crate) async fn run(state: Arc<AdminState>, listener: TcpListener) {
    let app = Arc::clone(&state.app);
    let surface = Arc::new(Surface {
        state,
        routes: routes(),
    });
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = app.draining.wait() => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let surface = Arc::clone(&surface);
                connections.spawn(async move {
                    let _place = place;
                    serve_connection(surface, stream, peer).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an admin connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_connection(surface: Arc<Surface>, stream: TcpStream, peer: SocketAddr) {
    let app = Arc::clone(&surface.state.app);
    let service = service_fn(move |request| answer(Arc::clone(&surface), peer, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CLIENT_PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = app.draining.wait() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = app.ending.wait() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%error, "an admin connection ended early");
    }
}

async fn answer(
    surface: Arc<Surface>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let now = surface.state.app.now();
    let request_id = new_request_id(now);
    let operation = async {
        let answered = tokio::time::timeout(OPERATION_PATIENCE, operate(&surface, peer, request));
        answered.await.unwrap_or_else(|_elapsed| {
            Err(Problem::new(
                Code::DatabaseUnavailable,
                "This took too long. Whether the change was made is not known; look before you repeat it.",
            )
            .retry_after(Duration::from_secs(2)))
        })
    };
    let answered = AssertUnwindSafe(operation).catch_unwind().await;
    let answered = answered.unwrap_or_else(|_panic| {
        Err(Problem::new(
            Code::InternalError,
            "This failed by a defect. Please report the request id.",
        ))
    });
    let mut response = match answered {
        Ok(answer) => respond(answer),
        Err(problem) => problem.logged(request_id).into_answer(request_id),
    };
    if let Ok(id) = HeaderValue::from_str(&request_id.to_string()) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    // A table of methods belongs to each answer that refuses one.
    if response.status() == http::StatusCode::METHOD_NOT_ALLOWED
        && let Ok(methods) = HeaderValue::from_str("GET, POST, PATCH, DELETE")
    {
        response.headers_mut().insert(ALLOW, methods);
    }
    Ok(response)
}

async fn operate(
    surface: &Surface,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Answer, Problem> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let mut is_known = false;
    let found = surface.routes.iter().find_map(|route| {
        let parameters = route.matches(path)?;
        is_known = true;
        (route.method == head.method.as_str()).then_some((route, parameters))
    });
    let Some((route, parameters)) = found else {
        return Err(if is_known {
            Problem::new(Code::MethodNotAllowed, "This address takes another method.")
        } else {
            Problem::not_found()
        });
    };
    let read = Limited::new(body, MAX_BODY_BYTES).collect();
    let body = match tokio::time::timeout(CLIENT_PATIENCE, read).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let detail = format!("A body has at most {MAX_BODY_BYTES} bytes.");
            return Err(Problem::new(Code::BodyTooLarge, detail));
        }
        Ok(Err(_)) | Err(_) => {
            let detail = "The body did not come whole and in time.";
            return Err(Problem::new(Code::InvalidRequest, detail));
        }
    };
    let call = Call {
        state: Arc::clone(&surface.state),
        parameters,
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
        source: peer.ip(),
        now: surface.state.app.now(),
    };
    route.enter(call).await
}

fn respond(answer: Answer) -> Response<Full<Bytes>> {
    let body = answer.body.map(|body| Bytes::from(body.to_string()));
    let has_body = body.is_some();
    let mut response = Response::new(Full::new(body.unwrap_or_default()));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    if has_body {
        let kind = HeaderValue::from_static("application/json");
        headers.insert(CONTENT_TYPE, kind);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(etag) = answer.etag {
        headers.insert(ETAG, etag);
    }
    response
}
