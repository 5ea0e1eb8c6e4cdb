//! One open connection, which runs inside the task that uses it.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::time::Instant;

use super::request_body::RequestBody;
use super::signal::Signal;
use super::stream::Stream;
use crate::watch::Watch;

/// The head of an answer fits into this, and a body is read in pieces of at most this size.
const MAX_READ_BUFFER: usize = 128 * 1024;

/// An open connection.
///
/// It has no task of its own: whoever waits for a head or for a chunk lets it work meanwhile. That
/// saves two switches between tasks per request, and dropping it closes the socket at once.
pub(super) struct Connection {
    sender: http1::SendRequest<RequestBody>,
    /// `None` once the connection ended.
    driver: Option<http1::Connection<Stream, RequestBody>>,
    signal: Arc<Signal>,
    /// Wakes `signal`.
    waker: Waker,
    /// The timer of all deadlines; it lives as long as the connection, so that it is rarely moved.
    watch: Watch,
    /// Since when nobody has used it.
    pub(super) idle_since: Instant,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("is_open", &self.driver.is_some())
            .finish_non_exhaustive()
    }
}

/// The head of an answer came.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    /// When the request was sent.
    pub(super) sent_at: Instant,
}

/// No head of an answer came.
pub(super) enum SendFailure {
    /// The connection ended before anything of the request was sent.
    Unsent(Box<Request<RequestBody>>, hyper::Error),
    /// The connection broke, or what came is no head.
    Broken(hyper::Error),
    /// Nothing came in time.
    TimedOut,
}

impl Connection {
    pub(super) async fn begin(stream: Stream) -> hyper::Result<Box<Self>> {
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(MAX_READ_BUFFER)
            .handshake(stream)
            .await?;
        let signal = Arc::new(Signal::new());
        Ok(Box::new(Self {
            sender,
            driver: Some(driver),
            waker: Waker::from(Arc::clone(&signal)),
            signal,
            watch: Watch::new(),
            idle_since: Instant::now(),
        }))
    }

    /// Sends a request and waits for the head of its answer, `patience` long from when it was sent.
    ///
    /// # Cancel safety
    /// The connection cannot be used for another request when the future is dropped.
    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
        patience: Duration,
    ) -> Result<Answered, SendFailure> {
        let mut response = pin!(self.sender.try_send_request(request));
        let mut sent_at = None;
        std::future::poll_fn(|cx| {
            self.drive();
            let sent_at = *sent_at.get_or_insert_with(Instant::now);
            // Only the connection, which has just worked, makes it ready.
            let mut unheard = Context::from_waker(Waker::noop());
            if let Poll::Ready(result) = response.as_mut().poll(&mut unheard) {
                return Poll::Ready(match result {
                    Ok(response) => Ok(Answered { response, sent_at }),
                    Err(mut error) => Err(match error.take_message() {
                        Some(request) => SendFailure::Unsent(Box::new(request), error.into_error()),
                        None => SendFailure::Broken(error.into_error()),
                    }),
                });
            }
            self.wait(cx);
            // This also looks at the budget of the task, for all that was polled unheard.
            ready!(self.watch.poll_passed(cx, sent_at + patience));
            Poll::Ready(Err(SendFailure::TimedOut))
        })
        .await
    }

    /// Lets the connection work, if there is something to do.
    pub(super) fn drive(&mut self) {
        if self.signal.take()
            && let Some(driver) = &mut self.driver
        {
            let mut cx = Context::from_waker(&self.waker);
            // An error of the connection is told to whoever waits for its answer.
            if Pin::new(driver).poll(&mut cx).is_ready() {
                self.driver = None;
            }
        }
    }

    /// Wakes the task when there is something to do.
    pub(super) fn wait(&self, cx: &Context<'_>) {
        self.signal.arm(cx.waker());
    }

    /// Wakes `task` when there is something to do.
    pub(super) fn wake_on_event(&self, task: &Waker) {
        self.signal.arm(task);
    }

    /// Returns ready once `due` has passed.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        self.watch.poll_passed(cx, due)
    }

    /// Returns whether another request can be sent.
    pub(super) fn is_free(&mut self) -> bool {
        self.drive();
        self.driver.is_some() && self.sender.is_ready()
    }

    /// Returns whether another request can be sent, now that an answer was read to its end.
    pub(super) fn is_free_again(&mut self) -> bool {
        if !self.sender.is_ready() {
            return self.is_free();
        }
        // The connection waits for a request already: what has woken it since is that the last
        // piece of the answer was taken. If it was more, the next request finds out, because it
        // is not sent before the connection was read.
        self.signal.take();
        true
    }
}
