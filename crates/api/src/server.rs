//! The accept loop of one thread, and what every request passes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sluice_accounting::crash;
use sluice_domain::id::RequestId;
use sluice_domain::route::{Endpoint, Protocol};
use sluice_domain::time::UnixMillis;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_util::task::TaskTracker;
use tower_http::cors::CorsLayer;
use tower_layer::Layer;
use tower_service::Service as _;

use crate::app::{App, Signal, SignalWatch, Worker};
use crate::body::AnswerBody;
use crate::connection::{Activity, ClientPatience, ClientWatch, CountedStream};
use crate::error::{ApiError, Code};
use crate::ids::new_request_id;
use crate::metrics::{Metrics, Surface};
use crate::{relay, router};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The Anthropic SDKs read this name only.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");
const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");
/// Pause after the system refused a connection, for instance for want of files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a stream may take to hand out its last event when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The status of a request whose client left before it was answered; only in metrics and records.
pub(crate) const CLIENT_LEFT: u16 = 499;

/// What is known of a request before anything of it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestContext {
    pub(crate) request_id: RequestId,
    pub(crate) peer: SocketAddr,
    /// When its head had been read.
    pub(crate) now: UnixMillis,
    pub(crate) started: Instant,
    pub(crate) surface: Surface,
}

impl RequestContext {
    /// Returns the protocol of the client: that of the path, or what the client says where a path has
    /// both. All clients of the Anthropic API say so, whichever header their key is in.
    pub(crate) fn protocol(&self, headers: &HeaderMap) -> Protocol {
        if headers.contains_key(ANTHROPIC_VERSION) && self.surface.endpoint().is_none() {
            Protocol::Anthropic
        } else {
            self.surface.protocol()
        }
    }

    /// Builds the answer of an error.
    pub(crate) fn answer(&self, error: ApiError, headers: &HeaderMap) -> Response<Body> {
        let protocol = self.protocol(headers);
        error.into_answer(protocol, self.request_id).map(Body::new)
    }
}

/// Accepts connections until the process drains, then waits for those that are open.
///
/// # Errors
/// When the socket cannot be used.
pub(crate) async fn accept(
    worker: Arc<Worker>,
    listener: std::net::TcpListener,
) -> anyhow::Result<()> {
    let listener =
        TcpListener::from_std(listener).context("the listening socket cannot be used")?;
    let app = Arc::clone(&worker.app);
    let service = Arc::new(Service {
        router: router::build(Arc::clone(&worker)),
        cors: router::cors(&app.config.cors.allowed_origins),
        worker: Arc::clone(&worker),
    });
    let connections = TaskTracker::new();
    let max_connections = i64::try_from(app.config.server.max_connections).unwrap_or(i64::MAX);
    loop {
        let accepted = tokio::select! {
            () = app.draining.wait() => break,
            accepted = listener.accept(), if app.metrics.connections.get() < max_connections => accepted,
            // At the cap the others wait in the backlog until somebody leaves.
            () = tokio::time::sleep(ACCEPT_PAUSE), if app.metrics.connections.get() >= max_connections => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let service = Arc::clone(&service);
                let open = OpenConnection::new(&app.metrics);
                connections.spawn(async move {
                    let _open = open;
                    serve_connection(service, stream, peer).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    // Posts that outlive their connection are counted by the ledger, not here.
    connections.wait().await;
    worker.detached.close();
    tokio::select! {
        () = worker.detached.wait() => {}
        () = app.ending.wait() => {}
    }
    Ok(())
}

async fn serve_connection(service: Arc<Service>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY cannot be set");
    }
    let app = Arc::clone(&service.worker.app);
    let config = &app.config.server;
    let activity = Arc::<Activity>::default();
    let io = TokioIo::new(CountedStream::new(stream, Arc::clone(&activity)));
    let patience = ClientPatience {
        head: config.header_timeout,
        idle: config.idle_timeout,
        write_stall: config.write_stall,
    };
    let mut watch = ClientWatch::new(patience, Instant::now());
    let mut next_look = std::pin::pin!(tokio::time::sleep(watch.look_every()));

    let service =
        service_fn(|request| answer(Arc::clone(&service), Arc::clone(&activity), peer, request));
    let mut connection = std::pin::pin!(http1::Builder::new().serve_connection(io, service));
    let mut draining = SignalWatch::new(&app.draining);
    let mut is_told = false;
    let mut last_words = LastWords::new(&app.ending);
    // Polled with every event of a stream, so what stands beside the connection must cost little.
    let result = std::future::poll_fn(|cx| {
        if !is_told && draining.poll_given(cx) {
            is_told = true;
            connection.as_mut().graceful_shutdown();
        }
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        if is_told && last_words.poll_over(cx) {
            // What is still open is dropped here, and booked by that.
            return Poll::Ready(Ok(()));
        }
        // A client that waits for its answer is not late, so nobody looks meanwhile, unless it does
        // not take what is there; the end of the answer passes here too.
        if !activity.is_busy() {
            crash::point("answer.sent");
        }
        while (!activity.is_busy() || activity.is_blocked())
            && next_look.as_mut().poll(cx).is_ready()
        {
            let now = Instant::now();
            if watch.is_overdue(&activity, now) {
                tracing::trace!("a client is overdue; its connection is closed");
                return Poll::Ready(Ok(()));
            }
            next_look.as_mut().reset(now + watch.look_every());
        }
        Poll::Pending
    })
    .await;
    if let Err(error) = result {
        tracing::trace!(%error, "a connection ended early");
    }
}

/// Lets streams say that they end, once nothing may be waited for any longer.
struct LastWords {
    ending: SignalWatch,
    time: Option<Pin<Box<Sleep>>>,
}

impl LastWords {
    fn new(ending: &Arc<Signal>) -> Self {
        Self {
            ending: SignalWatch::new(ending),
            time: None,
        }
    }

    /// Returns whether the time for that is over; else the task is woken when it is.
    fn poll_over(&mut self, cx: &mut TaskContext<'_>) -> bool {
        if self.time.is_none() && self.ending.poll_given(cx) {
            self.time = Some(Box::pin(tokio::time::sleep(LAST_WORDS)));
        }
        let time = self.time.as_mut();
        time.is_some_and(|time| time.as_mut().poll(cx).is_ready())
    }
}

/// Answers one request: gives it an id, counts it, and turns a panic into an answer.
async fn answer(
    service: Arc<Service>,
    activity: Arc<Activity>,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<CountedBody>, Infallible> {
    let started = Instant::now();
    let app = &service.worker.app;
    let now = app.now();
    let request_id = new_request_id(now);
    let mut counted = CountedRequest {
        surface: Surface::of_path(request.uri().path()),
        app: Arc::clone(app),
        activity,
        started,
        status: None,
    };
    counted.activity.request_began();
    app.metrics.request_began(counted.surface);
    let context = RequestContext {
        request_id,
        peer,
        now,
        started,
        surface: counted.surface,
    };
    // What carries the load is not sent through the router, which would box it several times.
    let answered = if service.cors.is_none()
        && let Some(endpoint) = relayed_endpoint(context.surface, &request)
    {
        let worker = Arc::clone(&service.worker);
        AssertUnwindSafe(relay::relay(worker, endpoint, context, request))
            .catch_unwind()
            .await
            .map(|answer| {
                answer.unwrap_or_else(|error| {
                    error
                        .logged(request_id)
                        .into_answer(endpoint.protocol(), request_id)
                })
            })
    } else {
        AssertUnwindSafe(Box::pin((*service).clone().answer(context, request)))
            .catch_unwind()
            .await
    };
    let mut response = answered.unwrap_or_else(|_panic| {
        tracing::error!(request.id = %request_id, "a request ended by a panic");
        ApiError::new(
            Code::InternalError,
            "The relay failed by a defect of its own. Please report the request id.",
        )
        .into_answer(context.surface.protocol(), request_id)
    });
    if let Ok(id) = HeaderValue::from_str(request_id.encode(&mut [0; 36])) {
        response.headers_mut().insert(REQUEST_ID, id.clone());
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    counted.status = Some(response.status());
    Ok(response.map(|inner| CountedBody {
        inner,
        _counted: counted,
    }))
}

/// Returns the endpoint of a request that is relayed.
fn relayed_endpoint<B>(surface: Surface, request: &Request<B>) -> Option<Endpoint> {
    surface
        .endpoint()
        .filter(|_| request.method() == Method::POST)
}

/// What answers the requests of one thread: the relay itself for what it relays, the router for all
/// else.
#[derive(Clone)]
struct Service {
    worker: Arc<Worker>,
    router: Router,
    cors: Option<CorsLayer>,
}

impl Service {
    async fn answer(
        self,
        context: RequestContext,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        match self.cors.clone() {
            None => self.dispatch(context, request).await,
            Some(layer) => {
                let mut service = layer.layer(WithContext {
                    service: self,
                    context,
                });
                match service.call(request).await {
                    Ok(response) => response,
                    Err(never) => match never {},
                }
            }
        }
    }

    async fn dispatch(
        mut self,
        context: RequestContext,
        request: Request<Incoming>,
    ) -> Response<AnswerBody> {
        if let Some(endpoint) = relayed_endpoint(context.surface, &request) {
            let request_id = context.request_id;
            return match relay::relay(self.worker, endpoint, context, request).await {
                Ok(response) => response,
                Err(error) => error
                    .logged(request_id)
                    .into_answer(endpoint.protocol(), request_id),
            };
        }
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(context);
        match self.router.call(request).await {
            Ok(response) => response.map(AnswerBody::Routed),
            Err(never) => match never {},
        }
    }
}

/// A [`Service`] in the form that the CORS layer takes.
struct WithContext {
    service: Service,
    context: RequestContext,
}

impl tower_service::Service<Request<Incoming>> for WithContext {
    type Response = Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let (service, context) = (self.service.clone(), self.context);
        Box::pin(async move { Ok(service.dispatch(context, request).await) })
    }
}

/// Counts an open connection for as long as it lives.
struct OpenConnection(Arc<Metrics>);

impl OpenConnection {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.connections.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// Counts a request when its answer has left, or its client has.
struct CountedRequest {
    app: Arc<App>,
    activity: Arc<Activity>,
    surface: Surface,
    started: Instant,
    status: Option<StatusCode>,
}

impl Drop for CountedRequest {
    fn drop(&mut self) {
        let status = self
            .status
            .or_else(|| StatusCode::from_u16(CLIENT_LEFT).ok())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.activity.request_ended();
        self.app
            .metrics
            .request_ended(self.surface, status, self.started.elapsed());
    }
}

/// The body of an answer, counted until its end.
struct CountedBody {
    inner: AnswerBody,
    _counted: CountedRequest,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
