//! Opens connections under one deadline: name, TCP and TLS together.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use tokio::time::timeout;
use tower_service::Service;

use crate::error::Cause;

/// The connection was not open in time.
#[derive(Debug, thiserror::Error)]
#[error("the connection was not open within {0:?}")]
pub(super) struct ConnectTimedOut(Duration);

/// A connector with a deadline.
#[derive(Debug, Clone)]
pub(crate) struct TimedConnector<C> {
    inner: C,
    deadline: Duration,
}

impl<C> TimedConnector<C> {
    pub(super) const fn new(inner: C, deadline: Duration) -> Self {
        Self { inner, deadline }
    }
}

impl<C> Service<Uri> for TimedConnector<C>
where
    C: Service<Uri>,
    C::Error: Into<Cause>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = Cause;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, Cause>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let (connecting, deadline) = (self.inner.call(destination), self.deadline);
        Box::pin(async move {
            match timeout(deadline, connecting).await {
                Ok(connection) => connection.map_err(Into::into),
                Err(_elapsed) => Err(ConnectTimedOut(deadline).into()),
            }
        })
    }
}
