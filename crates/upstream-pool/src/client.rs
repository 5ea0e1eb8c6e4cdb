//! Connections to upstreams: opened under a deadline, kept for the next request.

mod connection;
mod connector;
mod http1;
mod origin;
mod pool;
mod stream;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use rustls::ClientConfig;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::error::{Cause, ErrorClass, SendStage};
use crate::tls;

use self::connection::{Answered, Connection, SendFailure};
use self::connector::ConnectError;
use self::http1::ProtocolError;
pub(crate) use self::origin::Origin;
use self::pool::Pool;
pub(crate) use self::pool::{Lease, PoolOptions};

/// The connections of one worker thread.
pub(crate) struct Connections {
    pool: Arc<Pool>,
    tls_config: SharedTlsConfig,
}

/// The root certificates, loaded when the first encrypted upstream is used and shared by all
/// workers, because they take memory.
pub(crate) type SharedTlsConfig = Arc<OnceCell<Arc<ClientConfig>>>;

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("options", &self.pool.options())
            .finish_non_exhaustive()
    }
}

/// The head of an answer, and the connection on which its body comes.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    /// Those headers that somebody reads.
    pub(crate) headers: HeaderMap,
    /// What of the body came with the head.
    pub(crate) first: Bytes,
    pub(crate) lease: Lease,
    /// When the request was sent.
    pub(crate) sent_at: Instant,
}

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// From the dial to an open connection.
    pub(crate) connect: Duration,
    /// From the sent request to the head of its answer.
    pub(crate) head: Duration,
}

impl Connections {
    pub(crate) fn new(options: PoolOptions, tls_config: SharedTlsConfig) -> Self {
        Self {
            pool: Arc::new(Pool::new(options)),
            tls_config,
        }
    }

    /// Returns the same settings with no connections, for another worker.
    pub(crate) fn fork(&self) -> Self {
        Self::new(self.pool.options(), Arc::clone(&self.tls_config))
    }

    /// Sends a request in origin form, with a `host` and without the length of its body, and waits
    /// for the head of its answer. Redirects are never followed.
    ///
    /// A server may close an idle connection at any time. A request that meets such a connection
    /// and was not begun to be sent goes over another one, in the end over a new one.
    ///
    /// # Errors
    /// [`ExchangeError`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection at once.
    pub(crate) async fn exchange(
        &self,
        origin: &Origin,
        request: &Request<Bytes>,
        patience: Patience,
        now: Instant,
    ) -> Result<Reply, ExchangeError> {
        let shelf = self.pool.shelf(origin);
        loop {
            let kept = shelf.take(now);
            let is_new = kept.is_none();
            let connection = match kept {
                Some(connection) => connection,
                // Boxed, so that what is rarely needed takes no room in each request.
                None => Box::pin(self.open(origin, patience.connect)).await?,
            };
            let mut lease = Lease::new(connection, Arc::clone(&shelf));
            match lease.connection().send(request, patience.head).await {
                Ok(Answered {
                    status,
                    headers,
                    first,
                    sent_at,
                }) => {
                    return Ok(Reply {
                        status,
                        headers,
                        first,
                        lease,
                        sent_at,
                    });
                }
                Err(SendFailure::Unsent(error)) if is_new => {
                    return Err(ExchangeError::Unsent(error));
                }
                Err(SendFailure::Unsent(_)) => {}
                Err(SendFailure::Broken(error)) => return Err(ExchangeError::Broken(error)),
                Err(SendFailure::TimedOut) => return Err(ExchangeError::NoHead),
            }
        }
    }

    async fn open(
        &self,
        origin: &Origin,
        deadline: Duration,
    ) -> Result<Box<Connection>, ExchangeError> {
        let tls = if origin.is_https {
            let config = self.tls_config.get_or_try_init(load_tls_config).await;
            Some(Arc::clone(
                config.map_err(ExchangeError::NoRootCertificates)?,
            ))
        } else {
            None
        };
        let stream = connector::open(origin, tls, deadline)
            .await
            .map_err(ExchangeError::Connect)?;
        self.pool.keep_tidy();
        Ok(Connection::new(stream))
    }
}

async fn load_tls_config() -> io::Result<Arc<ClientConfig>> {
    tokio::task::spawn_blocking(tls::load_client_config)
        .await
        .map_err(io::Error::other)?
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// There were to be more bytes.
    #[error("the connection was closed by the other end")]
    Closed,
    #[error("the connection failed")]
    Failed(#[source] io::Error),
    #[error("the protocol was broken")]
    Protocol(#[from] ProtocolError),
}

/// Why no head of an answer came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("the root certificates of this machine cannot be read")]
    NoRootCertificates(#[source] io::Error),
    #[error("no connection could be opened")]
    Connect(#[source] ConnectError),
    #[error("the connection ended before the request was sent")]
    Unsent(#[source] WireError),
    #[error("the connection ended before the head of an answer came")]
    Broken(#[source] WireError),
    #[error("no head of an answer came in time")]
    NoHead,
}

impl ExchangeError {
    /// Returns the class of the failure.
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::NoRootCertificates(_) => ErrorClass::Internal,
            Self::Connect(ConnectError::TimedOut(_)) | Self::NoHead => ErrorClass::Timeout,
            Self::Connect(_) => ErrorClass::Connect,
            Self::Broken(WireError::Protocol(_)) => ErrorClass::Protocol,
            // Nothing of the answer is here that could have been cut.
            Self::Unsent(_) | Self::Broken(_) => ErrorClass::Reset,
        }
    }

    /// Returns how far the request had come.
    pub(crate) const fn stage(&self) -> SendStage {
        match self {
            Self::NoRootCertificates(_) | Self::Connect(_) | Self::Unsent(_) => SendStage::NotSent,
            Self::Broken(_) | Self::NoHead => SendStage::Sent,
        }
    }

    /// Returns what lies behind the failure, for people.
    pub(crate) fn into_cause(self) -> Cause {
        match self {
            Self::NoRootCertificates(error) => error.into(),
            Self::Connect(error) => error.into(),
            Self::Unsent(_) | Self::Broken(_) | Self::NoHead => self.into(),
        }
    }
}

#[cfg(test)]
mod tests;
