//! Answers in one piece. They are read to their end whatever the client does, because the provider
//! bills them whatever the client does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use sluice_accounting::crash;
use sluice_domain::route::Endpoint;
use sluice_domain::usage::{Ending, Stage};
use sluice_protocol::answer::{self, AnswerFacts};
use sluice_protocol::normal::{Identity, normalize_answer};
use sluice_upstream_pool::{
    Attempts, ErrorClass, UpstreamAnswer, UpstreamBody, UpstreamBodyError, UpstreamSlot,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::app::Worker;
use crate::body::AnswerBody;
use crate::error::{ApiError, Code, Retry};
use crate::server::CLIENT_LEFT;

use super::in_flight::{Booked, InFlight, Output, SideNotes};
use super::refusal::{ending_of, refusal};
use super::{RelayCall, identity_of};

/// Relays a call whose answer is one document.
///
/// A plain function, so that the work is built in its box and not in the caller's future first.
pub(super) fn relay(call: RelayCall, mut in_flight: InFlight) -> ReadToEnd {
    let worker = Arc::clone(&call.worker);
    let side = Arc::clone(&call.side);
    let work = async move {
        in_flight.stage = Stage::Dispatched;
        match call.dispatch().await {
            Ok(answer) => {
                crash::point("whole.head");
                let identity = identity_of(&answer, call.request_id, &call.worker);
                note_answer(
                    &mut in_flight,
                    (answer.attempts, answer.slot, answer.answered_at),
                    &answer.body,
                );
                let body = answer.body.collect(call.max_answer_bytes()).await;
                crash::point("whole.body");
                let wants_base64 = call.outline.wants_base64;
                let is_detached = call.side.is_detached.load(Ordering::Relaxed);
                let (booked, answer) = book(
                    (answer.status, body, answer.facts),
                    &mut in_flight,
                    call.endpoint,
                    identity.as_ref(),
                    wants_base64,
                    is_detached,
                );
                booked.await;
                crash::point("whole.booked");
                answer
            }
            Err(mut error) => {
                in_flight.attempts = std::mem::take(&mut error.attempts);
                let ending = ending_of(error.class);
                let (answer, code) = refusal(*error);
                let is_detached = call.side.is_detached.load(Ordering::Relaxed);
                let status = answer.status_in(call.endpoint.protocol());
                in_flight
                    .end(ending, status_for(is_detached, status), Some(code))
                    .await;
                Err(answer)
            }
        }
    };
    ReadToEnd::new(Box::pin(work), side, worker, Detach::Always)
}

/// Hands out an answer in one piece although a stream was asked for.
pub(super) async fn finish(
    answer: UpstreamAnswer,
    identity: Option<Identity>,
    mut in_flight: InFlight,
    endpoint: Endpoint,
    max_bytes: usize,
) -> Result<Response<AnswerBody>, ApiError> {
    note_answer(
        &mut in_flight,
        (answer.attempts, answer.slot, answer.answered_at),
        &answer.body,
    );
    let body = answer.body.collect(max_bytes).await;
    let (booked, answer) = book(
        (answer.status, body, answer.facts),
        &mut in_flight,
        endpoint,
        identity.as_ref(),
        false,
        false,
    );
    booked.await;
    answer
}

fn note_answer(
    in_flight: &mut InFlight,
    (attempts, slot, at): (Attempts, Option<UpstreamSlot>, Instant),
    body: &UpstreamBody,
) {
    in_flight.attempts = attempts;
    in_flight.slot = slot;
    if body.as_complete().is_some() {
        in_flight.answered_whole(at);
    } else {
        in_flight.answered(at);
    }
}

/// Books an answer that was read to its end, or as far as it came, and hands it out, in the form that
/// the SDKs take. `known` is what was read of it already.
fn book(
    (status, body, known): (
        StatusCode,
        Result<Bytes, UpstreamBodyError>,
        Option<AnswerFacts>,
    ),
    in_flight: &mut InFlight,
    endpoint: Endpoint,
    identity: Option<&Identity>,
    wants_base64: bool,
    is_detached: bool,
) -> (Booked, Result<Response<AnswerBody>, ApiError>) {
    let body = match body {
        Ok(body) => answer::trim(body),
        Err(error) => {
            in_flight.attempt_failed(error.class());
            let (ending, code, answer) = broken(error);
            let booked = in_flight.end(
                ending,
                status_for(is_detached, answer.status),
                Some(code.as_str()),
            );
            return (booked, Err(answer));
        }
    };
    let facts = known.unwrap_or_else(|| answer::inspect(endpoint, &body));
    // What is free of charge has its usage already.
    in_flight.usage = facts.usage.or(in_flight.usage);
    if !facts.is_json_object || facts.error.is_some() {
        let message = match facts.error {
            Some(error) => format!("The provider of this model failed: {}", error.message),
            None => {
                "The provider of this model answered with something that is not JSON.".to_owned()
            }
        };
        let answer = ApiError::new(Code::UpstreamError, message);
        in_flight.attempt_failed(ErrorClass::Protocol);
        let booked = in_flight.end(
            Ending::UpstreamFailed,
            status_for(is_detached, answer.status),
            Some("upstream_error"),
        );
        return (booked, Err(answer));
    }
    in_flight.stage = Stage::Relaying;
    in_flight.output = Output::Whole(body.clone());
    let booked = if is_detached {
        in_flight.end(Ending::ClientLeft, CLIENT_LEFT, None)
    } else {
        in_flight.end(Ending::Finished, status.as_u16(), None)
    };
    let normal = identity.and_then(|identity| normalize_answer(endpoint, &body, identity));
    let body = normal.unwrap_or(body);
    // Some SDKs decode what they asked for blindly and would take an array for nothing.
    let body = match (endpoint, wants_base64) {
        (Endpoint::Embeddings, true) => answer::embeddings_to_base64(&body).unwrap_or(body),
        _other => body,
    };
    (booked, Ok(document(status, body)))
}

fn document(status: StatusCode, body: Bytes) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::Whole(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn broken(error: UpstreamBodyError) -> (Ending, Code, ApiError) {
    let ending = ending_of(error.class());
    let (code, message, retry) = match error {
        _ if ending == Ending::Deadline => (
            Code::UpstreamTimeout,
            "The provider of this model did not finish its answer in time.".to_owned(),
            Retry::ByStatus,
        ),
        UpstreamBodyError::TooLong { limit } => (
            Code::UpstreamError,
            format!("The answer of the provider is longer than this relay takes ({limit} bytes)."),
            Retry::Never,
        ),
        _ => (
            Code::UpstreamError,
            "The answer of the provider broke off.".to_owned(),
            Retry::ByStatus,
        ),
    };
    let answer = ApiError::new(code, message).retry(retry).cause(error);
    (ending, code, answer)
}

/// The status for the record: what the client was answered, or that it had left.
fn status_for(is_detached: bool, status: StatusCode) -> u16 {
    if is_detached {
        CLIENT_LEFT
    } else {
        status.as_u16()
    }
}

pub(super) type Work = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, ApiError>> + Send>>;

/// Runs the work inside the request, and goes on as a task of its own when the request is dropped.
pub(super) struct ReadToEnd {
    work: Option<Work>,
    side: Arc<SideNotes>,
    worker: Arc<Worker>,
    detach: Detach,
}

/// Which work goes on when its client has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detach {
    /// A plain request: the provider bills it in any case.
    Always,
    /// A stream of an upstream that wants it read to its end, as long as there are not too many.
    WhereDrained,
}

/// What becomes of work whose client has left.
enum Leaving {
    Ends,
    GoesOn(Option<OwnedSemaphorePermit>),
}

impl ReadToEnd {
    pub(super) fn new(
        work: Work,
        side: Arc<SideNotes>,
        worker: Arc<Worker>,
        detach: Detach,
    ) -> Self {
        Self {
            work: Some(work),
            side,
            worker,
            detach,
        }
    }

    /// Says whether the work goes on without its client, and what is kept meanwhile.
    fn leave(&self) -> Leaving {
        match self.detach {
            Detach::Always => Leaving::GoesOn(None),
            Detach::WhereDrained if self.side.drains() => match self.worker.app.begin_drain() {
                Some(permit) => Leaving::GoesOn(Some(permit)),
                None => Leaving::Ends,
            },
            Detach::WhereDrained => Leaving::Ends,
        }
    }
}

impl Future for ReadToEnd {
    type Output = Result<Response<AnswerBody>, ApiError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(work) = &mut self.work else {
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(cx);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl Drop for ReadToEnd {
    fn drop(&mut self) {
        // A panic is unwinding through the work: it must not be polled again. When the process ends,
        // nothing is read on either: the drop of the work books it.
        if let Some(work) = self.work.take()
            && !std::thread::panicking()
            && !self.worker.app.ending.is_given()
            && let Leaving::GoesOn(permit) = self.leave()
        {
            self.side.is_detached.store(true, Ordering::Relaxed);
            self.worker.detached.spawn(async move {
                let _permit = permit;
                // Nobody waits for the answer; the record is written inside.
                if let Err(unseen) = work.await {
                    tracing::debug!(
                        code = unseen.code.as_deref(),
                        "an answer without a reader failed"
                    );
                }
            });
        }
    }
}
