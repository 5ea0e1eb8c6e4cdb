//! Answers as streams of events: passed on as they come, read for their usage, and booked before
//! their last event leaves.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use http::{HeaderValue, Response};
use http_body::Body as _;
use sluice_accounting::crash;
use sluice_domain::id::RequestId;
use sluice_domain::route::Protocol;
use sluice_domain::usage::{Ending, Stage};
use sluice_protocol::anthropic;
use sluice_protocol::failure::ErrorEvent;
use sluice_protocol::stream::{StreamEnding, StreamFinish, StreamStep, error_event};
use sluice_upstream_pool::{AnswerKind, DispatchError, ErrorClass, UpstreamAnswer, UpstreamBody};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};

use crate::app::{SignalWatch, Worker};
use crate::body::AnswerBody;
use crate::error::{ApiError, Code};
use crate::server::CLIENT_LEFT;

use super::in_flight::{Booked, InFlight, Output};
use super::inspector::{Inspector, keep_alive, terminal_event};
use super::progress::Mark;
use super::refusal::{ending_of, refusal};
use super::whole::{self, Detach, ReadToEnd};
use super::{RelayCall, identity_of};

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Clients of the Anthropic API give a stream up that is silent for longer, whatever the setting.
const LONGEST_ANTHROPIC_SILENCE: Duration = Duration::from_secs(10);
/// The status of a stream whose head has left.
const STREAMED: u16 = 200;

type Dispatching = Pin<Box<dyn Future<Output = Result<UpstreamAnswer, Box<DispatchError>>> + Send>>;

/// Relays a call whose answer is a stream.
///
/// The head waits for the first event, so that an early failure is still answered with its status;
/// when that takes too long the head leaves with keep-alives, and the wait goes on behind it.
pub(super) fn relay(call: RelayCall, in_flight: InFlight) -> ReadToEnd {
    let (side, worker) = (Arc::clone(&call.side), Arc::clone(&call.worker));
    let work = Box::pin(begin(call, in_flight));
    ReadToEnd::new(work, side, worker, Detach::WhereDrained)
}

async fn begin(call: RelayCall, mut in_flight: InFlight) -> Result<Response<AnswerBody>, ApiError> {
    let worker = Arc::clone(&call.worker);
    let app = Arc::clone(&worker.app);
    let config = &app.config.relay;
    let mut inspector = Inspector::of(&call);
    let request_id = call.request_id;
    let (endpoint, max_answer_bytes) = (call.endpoint, config.max_answer_bytes);

    let protocol = endpoint.protocol();
    let mark = Mark::new(Arc::clone(&call.worker.board), request_id);
    in_flight.stage = Stage::Dispatched;
    // Declared after `in_flight`: when the client leaves, the upstream is closed before the booking.
    let mut dispatching: Dispatching = Box::pin(async move { call.dispatch().await });
    let source = match tokio::time::timeout(config.head_wait, &mut dispatching).await {
        Ok(Ok(answer)) if answer.kind == AnswerKind::Document => {
            let identity = identity_of(&answer, request_id, &worker);
            return whole::finish(answer, identity, in_flight, endpoint, max_answer_bytes).await;
        }
        Ok(Ok(answer)) => {
            crash::point("stream.head");
            in_flight.answered(answer.answered_at);
            if let Some(identity) = identity_of(&answer, request_id, &worker) {
                inspector.normalize(identity);
            }
            in_flight.attempts = answer.attempts;
            in_flight.slot = answer.slot;
            Source::Relaying(answer.body)
        }
        Ok(Err(mut error)) => {
            in_flight.attempts = std::mem::take(&mut error.attempts);
            let ending = ending_of(error.class);
            let (answer, code) = refusal(*error);
            in_flight
                .end(ending, answer.status_in(protocol).as_u16(), Some(code))
                .await;
            return Err(answer);
        }
        Err(_head_wait_is_over) => Source::Waiting(dispatching),
    };
    let silence = silence(protocol, config.keep_alive);
    let keep_alive = match (protocol, &source) {
        // Its clients have waited for an event as long as they may.
        (Protocol::Anthropic, Source::Waiting(_)) => KeepAlive::overdue(silence),
        _ => KeepAlive::new(silence),
    };
    let body = EventStream {
        worker,
        request_id,
        source,
        is_draining: false,
        inspector,
        protocol,
        in_flight: Some(in_flight),
        mark,
        booked: Booked::Done,
        last: None,
        keep_alive,
        ending: SignalWatch::new(&app.ending),
    };
    let mut response = Response::new(AnswerBody::Events(Box::new(body)));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

/// Returns how long a client hears nothing at most.
fn silence(protocol: Protocol, configured: Duration) -> Duration {
    match protocol {
        Protocol::OpenAi => configured,
        Protocol::Anthropic => configured.min(LONGEST_ANTHROPIC_SILENCE),
    }
}

/// Where the events come from.
enum Source {
    /// The first event is not here yet; the head has left.
    Waiting(Dispatching),
    /// Events come.
    Relaying(UpstreamBody),
    /// Nothing more comes.
    Over,
}

/// The body of a streamed answer. It owns the upstream's answer and the booking: when it is dropped
/// the client has left, the upstream is closed, and what was read is booked.
pub(crate) struct EventStream {
    worker: Arc<Worker>,
    request_id: RequestId,
    source: Source,
    /// Whether the client has left and the stream is read on without it.
    is_draining: bool,
    inspector: Inspector,
    protocol: Protocol,
    in_flight: Option<InFlight>,
    /// How far the answer has come, for the journal.
    mark: Arc<Mark>,
    /// What the last bytes wait for.
    booked: Booked,
    /// The last bytes.
    last: Option<Bytes>,
    keep_alive: KeepAlive,
    /// Resolves when the process may wait no longer for open streams.
    ending: SignalWatch,
}

/// What one look at the source gave.
enum Progress {
    /// Bytes for the client; never empty.
    Send(Bytes),
    /// Something was consumed and nothing is to be sent; look again.
    Again,
    /// Nothing now.
    Wait,
    /// The stream is over.
    End,
}

impl EventStream {
    fn advance(&mut self, cx: &mut Context<'_>) -> Progress {
        match &mut self.source {
            Source::Over => Progress::End,
            Source::Waiting(dispatching) => match dispatching.as_mut().poll(cx) {
                Poll::Pending => Progress::Wait,
                Poll::Ready(Ok(answer)) if answer.kind == AnswerKind::Events => {
                    if let Some(identity) = identity_of(&answer, self.request_id, &self.worker) {
                        self.inspector.normalize(identity);
                    }
                    if let Some(in_flight) = &mut self.in_flight {
                        in_flight.answered(answer.answered_at);
                        in_flight.attempts = answer.attempts;
                        in_flight.slot = answer.slot;
                    }
                    self.source = Source::Relaying(answer.body);
                    Progress::Again
                }
                Poll::Ready(Ok(answer)) => {
                    if let Some(in_flight) = &mut self.in_flight {
                        in_flight.attempts = answer.attempts;
                    }
                    self.fail(
                        ErrorClass::Protocol,
                        "The provider of this model answered without a stream.",
                    )
                }
                Poll::Ready(Err(error)) => self.fail_dispatch(*error),
            },
            Source::Relaying(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Pending => Progress::Wait,
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.take(data),
                    Err(_trailers) => Progress::Again,
                },
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(error = crate::error::chain(&error), "a stream broke off");
                    self.fail(error.class(), "The stream of the provider broke off.")
                }
                Poll::Ready(None) => self.upstream_ended(),
            },
        }
    }

    /// Takes bytes of the upstream.
    fn take(&mut self, data: Bytes) -> Progress {
        let StreamStep {
            forward,
            events,
            ending,
        } = match self.inspector.push(data) {
            Ok(step) => step,
            Err(error) => {
                tracing::debug!(
                    error = crate::error::chain(&error),
                    "a stream cannot be relayed"
                );
                return self.fail(
                    ErrorClass::Protocol,
                    "The stream of the provider cannot be relayed.",
                );
            }
        };
        if events > 0
            && let Some(in_flight) = &mut self.in_flight
        {
            crash::point("stream.event");
            in_flight.stage = Stage::Relaying;
            self.mark.relayed(
                self.inspector.output().least_tokens(),
                self.inspector.usage_so_far(),
            );
        }
        match ending {
            None if forward.is_empty() => Progress::Again,
            None => Progress::Send(forward),
            Some(StreamEnding::Done) => {
                // Booked before the last event leaves; then the connection is freed for others.
                crash::point("stream.last_event");
                self.book(Ending::Finished, None);
                if let Source::Relaying(body) = std::mem::replace(&mut self.source, Source::Over) {
                    body.drain_rest();
                }
                Progress::Send(forward)
            }
            Some(StreamEnding::Failed(error)) => {
                let event = self.event_of(&error);
                self.attempt_failed(ErrorClass::Status);
                self.close(Ending::UpstreamFailed, Some("upstream_error"));
                Progress::Send(joined(forward, event))
            }
            Some(StreamEnding::FailedInItsWords) => {
                self.attempt_failed(ErrorClass::Status);
                self.close(Ending::UpstreamFailed, Some("upstream_error"));
                Progress::Send(forward)
            }
        }
    }

    /// The upstream has closed without its terminal event.
    fn upstream_ended(&mut self) -> Progress {
        match self.inspector.finish() {
            StreamFinish::Complete => {
                self.close(Ending::Finished, None);
                Progress::End
            }
            StreamFinish::CompleteWithoutDone => {
                let tail = self.inspector.take_tail();
                self.book(Ending::Finished, None);
                self.source = Source::Over;
                Progress::Send(joined(
                    tail,
                    Bytes::from_static(terminal_event(self.protocol)),
                ))
            }
            StreamFinish::Truncated => self.fail(
                ErrorClass::Cut,
                "The stream of the provider ended before it was complete.",
            ),
        }
    }

    fn fail_dispatch(&mut self, mut error: DispatchError) -> Progress {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.attempts = std::mem::take(&mut error.attempts);
        }
        let ending = ending_of(error.class);
        let (answer, code) = refusal(error);
        let event = answer.event(self.protocol, self.request_id);
        self.close(ending, Some(code));
        Progress::Send(event)
    }

    /// The upstream failed: ends with an error event, never with a clean end.
    fn fail(&mut self, class: ErrorClass, message: &'static str) -> Progress {
        self.attempt_failed(class);
        let (ending, code) = match ending_of(class) {
            Ending::Deadline => (Ending::Deadline, Code::UpstreamTimeout),
            other => (other, Code::UpstreamError),
        };
        self.end_with_error(ending, code, message)
    }

    fn end_with_error(&mut self, ending: Ending, code: Code, message: &'static str) -> Progress {
        self.close(ending, Some(code.as_str()));
        let error = ApiError::new(code, message);
        Progress::Send(error.event(self.protocol, self.request_id))
    }

    /// Returns the event for what an upstream said went wrong.
    fn event_of(&self, error: &ErrorEvent) -> Bytes {
        match self.protocol {
            Protocol::OpenAi => {
                let code = error.code.as_deref().unwrap_or("upstream_error");
                error_event(&error.message, &error.kind, Some(code))
            }
            Protocol::Anthropic => {
                anthropic::error::event_of(error, self.request_id.encode(&mut [0; 36]))
            }
        }
    }

    fn attempt_failed(&mut self, class: ErrorClass) {
        if let Some(in_flight) = &mut self.in_flight {
            in_flight.attempt_failed(class);
        }
    }

    /// Closes the upstream, then books.
    fn close(&mut self, ending: Ending, code: Option<&'static str>) {
        self.source = Source::Over;
        self.book(ending, code);
    }

    /// Books the end with what was read of the stream.
    fn book(&mut self, ending: Ending, code: Option<&'static str>) {
        if let Some(mut in_flight) = self.in_flight.take() {
            in_flight.usage = self.inspector.usage();
            in_flight.usage_so_far = self.inspector.usage_so_far();
            in_flight.output = Output::Stream(self.inspector.take_output());
            self.mark.end();
            if self.is_draining {
                in_flight.is_drained = ending == Ending::Finished;
                let ending = match ending {
                    Ending::Finished => Ending::ClientLeft,
                    other => other,
                };
                drop(in_flight.end(ending, CLIENT_LEFT, code));
            } else {
                self.booked = in_flight.end(ending, STREAMED, code);
            }
        }
    }

    /// Moves everything out, for reading on without the client. What stays behind is over.
    fn move_out(&mut self) -> Self {
        Self {
            worker: Arc::clone(&self.worker),
            request_id: self.request_id,
            source: std::mem::replace(&mut self.source, Source::Over),
            is_draining: true,
            inspector: std::mem::replace(&mut self.inspector, Inspector::of_nothing()),
            protocol: self.protocol,
            in_flight: self.in_flight.take(),
            mark: Arc::clone(&self.mark),
            booked: Booked::Done,
            last: None,
            keep_alive: KeepAlive::new(self.worker.app.config.relay.keep_alive),
            ending: SignalWatch::new(&self.worker.app.ending),
        }
    }

    /// Reads on without the client, for the provider's own numbers: bounded in time and bytes.
    async fn drain(mut self, _permit: OwnedSemaphorePermit) {
        let (time, max_bytes) = {
            let config = &self.worker.app.config.relay;
            (config.drain_time, config.drain_bytes)
        };
        let mut read = 0_usize;
        let reading = async {
            while let Some(bytes) = std::future::poll_fn(|cx| self.poll_event(cx)).await {
                read = read.saturating_add(bytes.len());
                if read > max_bytes {
                    break;
                }
            }
        };
        // Whether it came to its end shows in whether it is booked.
        let _elapsed = tokio::time::timeout(time, reading).await;
        self.close(Ending::ClientLeft, None);
    }
}

impl EventStream {
    /// Returns the next bytes for the client: whole events or a comment; `None` at the end.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if Pin::new(&mut self.booked).poll(cx).is_pending() {
                return Poll::Pending;
            }
            if let Some(last) = self.last.take() {
                crash::point("stream.last_bytes_leave");
                return Poll::Ready(Some(last));
            }
            match self.advance(cx) {
                Progress::Send(bytes) if matches!(self.booked, Booked::Done) => {
                    self.keep_alive.sent();
                    return Poll::Ready(Some(bytes));
                }
                Progress::Send(bytes) => self.last = Some(bytes),
                Progress::End if matches!(self.booked, Booked::Done) => return Poll::Ready(None),
                // The booking is waited for above.
                Progress::End | Progress::Again => {}
                Progress::Wait => break,
            }
        }
        if self.ending.poll_given(cx)
            && let Progress::Send(event) = self.end_with_error(
                Ending::Shutdown,
                Code::ServerShuttingDown,
                "The relay is stopping.",
            )
        {
            self.last = Some(event);
            return self.poll_event(cx);
        }
        // Only whole events have been forwarded, so a comment or a ping may stand here.
        if self.keep_alive.poll_due(cx) {
            self.keep_alive.sent();
            return Poll::Ready(Some(Bytes::from_static(keep_alive(self.protocol))));
        }
        Poll::Pending
    }

    /// Returns whether nothing more comes.
    pub(crate) fn is_over(&self) -> bool {
        matches!((&self.source, &self.booked), (Source::Over, Booked::Done)) && self.last.is_none()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if self.in_flight.as_ref().is_some_and(InFlight::drains)
            && !self.is_draining
            && !std::thread::panicking()
            && !self.worker.app.ending.is_given()
            && let Some(permit) = self.worker.app.begin_drain()
        {
            let detached = self.worker.detached.clone();
            detached.spawn(self.move_out().drain(permit));
            return;
        }
        let Some(mut in_flight) = self.in_flight.take() else {
            return;
        };
        // The upstream is closed first, then what was read is booked; dropping the request in
        // flight says why.
        self.source = Source::Over;
        self.mark.end();
        in_flight.usage = self.inspector.usage();
        in_flight.usage_so_far = self.inspector.usage_so_far();
        in_flight.output = Output::Stream(self.inspector.take_output());
        drop(in_flight);
    }
}

/// Tells when the client has heard nothing for too long. One timer per stream that looks now and
/// then, so that an event costs it no more than a flag.
struct KeepAlive {
    look_every: Duration,
    is_fresh: bool,
    timer: Pin<Box<Sleep>>,
}

impl KeepAlive {
    /// `every` is the longest silence; a comment may come after half of it.
    fn new(every: Duration) -> Self {
        let look_every = every / 2;
        Self {
            look_every,
            is_fresh: true,
            timer: Box::pin(tokio::time::sleep(look_every)),
        }
    }

    /// The same, for a client that has heard nothing for so long already.
    fn overdue(every: Duration) -> Self {
        Self {
            look_every: every / 2,
            is_fresh: false,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
        }
    }

    fn sent(&mut self) {
        self.is_fresh = true;
    }

    /// Returns whether a comment is due now; else the task is woken when it may be.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> bool {
        while self.timer.as_mut().poll(cx).is_ready() {
            self.timer.as_mut().reset(Instant::now() + self.look_every);
            if !std::mem::replace(&mut self.is_fresh, false) {
                return true;
            }
        }
        false
    }
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() {
        second
    } else {
        Bytes::from([first, second].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until a sign of life is due; fails when it is not in a time that is long, and short
    /// against that of the timer.
    async fn is_due(keep_alive: &mut KeepAlive) -> bool {
        let due = std::future::poll_fn(|cx| {
            if keep_alive.poll_due(cx) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        let patience = Duration::from_millis(200);
        tokio::time::timeout(patience, due).await.is_ok()
    }

    #[tokio::test]
    async fn a_client_that_has_waited_already_is_sent_a_sign_of_life_at_once() {
        let every = Duration::from_hours(1);
        let mut overdue = KeepAlive::overdue(every);
        assert!(is_due(&mut overdue).await);
        assert!(!is_due(&mut overdue).await, "once");
        assert!(!is_due(&mut KeepAlive::new(every)).await);
    }

    #[test]
    fn a_client_of_the_anthropic_api_waits_ten_seconds_at_most() {
        let (short, long) = (Duration::from_secs(3), Duration::from_mins(9));
        assert_eq!(silence(Protocol::OpenAi, long), long);
        assert_eq!(silence(Protocol::Anthropic, long), Duration::from_secs(10));
        assert_eq!(silence(Protocol::Anthropic, short), short);
    }
}
