//! Connections to upstreams: opened under a deadline, kept for the next request.

mod connector;
mod request_body;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error as ClientError, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::RwLock;
use rustls::ClientConfig;
use smallvec::SmallVec;
use tokio::sync::OnceCell;

use crate::error::{Cause, ErrorClass, SendStage};
use crate::tls;

use self::connector::{ConnectTimedOut, TimedConnector};
pub(crate) use self::request_body::{RequestBody, SentMark};

/// Idle connections send keep-alive probes on the TCP level this often, so that a firewall that
/// forgot one is noticed while nobody uses it.
const TCP_KEEPALIVE: Duration = Duration::from_mins(1);

/// The head of an answer fits into this, and a body is read in pieces of at most this size.
const MAX_READ_BUFFER: usize = 128 * 1024;

/// How connections are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolOptions {
    pub(crate) max_idle_per_host: usize,
    pub(crate) idle_timeout: Duration,
}

type PlainClient = Client<TimedConnector<HttpConnector>, RequestBody>;
type TlsClient = Client<TimedConnector<HttpsConnector<HttpConnector>>, RequestBody>;

/// The connections of one worker thread.
///
/// A deadline for connecting belongs to the connector, so upstreams with the same one share a
/// client; there are as many clients as distinct deadlines.
pub(crate) struct Connections {
    options: PoolOptions,
    tls_config: SharedTlsConfig,
    plain: RwLock<SmallVec<[(Duration, PlainClient); 1]>>,
    tls: RwLock<SmallVec<[(Duration, TlsClient); 1]>>,
}

/// The root certificates, loaded when the first encrypted upstream is used and shared by all
/// workers, because they take memory.
pub(crate) type SharedTlsConfig = Arc<OnceCell<Arc<ClientConfig>>>;

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Connections {
    pub(crate) fn new(options: PoolOptions, tls_config: SharedTlsConfig) -> Self {
        Self {
            options,
            tls_config,
            plain: RwLock::default(),
            tls: RwLock::default(),
        }
    }

    /// Returns the same settings with no connections, for another worker.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.options, Arc::clone(&self.tls_config))
    }

    /// Begins a request. Redirects are never followed.
    ///
    /// # Errors
    /// An I/O error when the root certificates of the machine cannot be read.
    pub(crate) async fn request(
        &self,
        request: Request<RequestBody>,
        connect: Duration,
    ) -> io::Result<ResponseFuture> {
        if is_https(request.uri()) {
            let config = self.tls_config.get_or_try_init(load_tls_config).await?;
            let client = find_or_insert(&self.tls, connect, || self.tls_client(connect, config));
            Ok(client.request(request))
        } else {
            let client = find_or_insert(&self.plain, connect, || self.plain_client(connect));
            Ok(client.request(request))
        }
    }

    fn plain_client(&self, connect: Duration) -> PlainClient {
        self.builder()
            .build(TimedConnector::new(tcp_connector(), connect))
    }

    fn tls_client(&self, connect: Duration, config: &ClientConfig) -> TlsClient {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.clone())
            .https_only()
            .enable_http1()
            .wrap_connector(tcp_connector());
        self.builder()
            .build(TimedConnector::new(connector, connect))
    }

    fn builder(&self) -> hyper_util::client::legacy::Builder {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(self.options.max_idle_per_host)
            .pool_idle_timeout(self.options.idle_timeout)
            .http1_max_buf_size(MAX_READ_BUFFER)
            // Every request carries the host that was prepared with its upstream.
            .set_host(false);
        builder
    }
}

fn find_or_insert<C: Clone>(
    clients: &RwLock<SmallVec<[(Duration, C); 1]>>,
    connect: Duration,
    make: impl FnOnce() -> C,
) -> C {
    let find = |clients: &[(Duration, C)]| {
        clients
            .iter()
            .find(|(timeout, _)| *timeout == connect)
            .map(|(_, client)| client.clone())
    };
    if let Some(client) = find(&clients.read()) {
        return client;
    }
    let mut clients = clients.write();
    if let Some(client) = find(&clients) {
        return client;
    }
    let client = make();
    clients.push((connect, client.clone()));
    client
}

async fn load_tls_config() -> io::Result<Arc<ClientConfig>> {
    tokio::task::spawn_blocking(tls::load_client_config)
        .await
        .map_err(io::Error::other)?
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme() == Some(&http::uri::Scheme::HTTPS)
}

fn tcp_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_keepalive(Some(TCP_KEEPALIVE));
    connector.enforce_http(false);
    connector
}

/// Why no head of an answer came.
#[derive(Debug)]
pub(crate) struct ExchangeFailure {
    pub(crate) class: ErrorClass,
    pub(crate) stage: SendStage,
    pub(crate) cause: Cause,
}

impl ExchangeFailure {
    /// Classifies an error of the client.
    pub(crate) fn new(error: ClientError, stage: SendStage) -> Self {
        let class = if error.is_connect() {
            if find_cause::<ConnectTimedOut>(&error).is_some() {
                ErrorClass::Timeout
            } else {
                ErrorClass::Connect
            }
        } else {
            match find_cause::<hyper::Error>(&error) {
                Some(http) if http.is_parse() => ErrorClass::Protocol,
                // The connection ended or broke before a head came: nothing of the answer is here
                // that could have been cut.
                _ => ErrorClass::Reset,
            }
        };
        Self {
            class,
            stage,
            cause: error.into(),
        }
    }
}

fn find_cause<E: std::error::Error + 'static>(error: &ClientError) -> Option<&E> {
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref::<E>() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}
