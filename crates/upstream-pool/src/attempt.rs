//! One try of one request against one upstream key.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use sluice_domain::time::UnixMillis;
use sluice_protocol::answer::{AnswerFacts, inspect};
use tokio::time::Instant;

use crate::body::{UpstreamBody, UpstreamBodyError, Wire};
use crate::client::{Patience, Reply};
use crate::demo;
use crate::dispatch::{AnswerKind, Call, Dispatcher};
use crate::error::{Cause, ErrorClass, ProviderFault, Refusal, SendStage};
use crate::fault::{classify_disguised, classify_status, is_error_object, is_object, read_fault};
use crate::first_event::{FirstEvent, FirstEventScanner};
use crate::head::{AnswerHeaders, LetThrough};
use crate::quirk::names_stream_options;
use crate::retry_after::retry_after;
use crate::routing::upstream::Address;
use crate::routing::{Lane, TargetInfo};

/// The body of an error is read up to here; a longer one is dropped.
const MAX_ERROR_BYTES: usize = 1024 * 1024;

/// The body of an error that takes longer is not waited for; the status says enough.
const ERROR_BODY_TIME: Duration = Duration::from_secs(10);

/// Answers up to this size are searched for an error in disguise.
const MAX_DISGUISED_BYTES: usize = 16 * 1024;

/// A failed attempt.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) class: ErrorClass,
    pub(crate) stage: SendStage,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) refusal: Option<Refusal>,
    pub(crate) cause: Option<Cause>,
}

impl Failure {
    fn new(class: ErrorClass, stage: SendStage, cause: impl Into<Cause>) -> Box<Self> {
        Box::new(Self {
            class,
            stage,
            retry_after: None,
            refusal: None,
            cause: Some(cause.into()),
        })
    }

    fn answered(class: ErrorClass, cause: impl Into<Cause>) -> Box<Self> {
        Self::new(class, SendStage::Answered, cause)
    }

    pub(crate) fn refused(
        class: ErrorClass,
        refusal: Refusal,
        retry_after: Option<Duration>,
    ) -> Box<Self> {
        let (stage, refusal) = (SendStage::Answered, Some(refusal));
        Box::new(Self {
            class,
            stage,
            retry_after,
            refusal,
            cause: None,
        })
    }
}

impl From<UpstreamBodyError> for Box<Failure> {
    fn from(error: UpstreamBodyError) -> Self {
        Failure::answered(error.class(), error)
    }
}

/// A successful attempt.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: StatusCode,
    pub(crate) kind: AnswerKind,
    pub(crate) body: UpstreamBody,
    /// What was read of a document that is here whole.
    pub(crate) facts: Option<AnswerFacts>,
}

/// An attempt under way.
pub(crate) struct Attempt<'a> {
    dispatcher: &'a Dispatcher,
    lane: Lane<'a>,
    call: &'a Call<'a>,
    started_at: UnixMillis,
    begun: Instant,
    /// When the request is over, with all its attempts.
    due: Instant,
    /// Set when the head has come.
    head: Option<(StatusCode, Instant)>,
}

/// The head of an answer.
struct AnswerHead {
    status: StatusCode,
    headers: HeaderMap,
}

impl<'a> Attempt<'a> {
    pub(crate) fn begin(
        dispatcher: &'a Dispatcher,
        lane: Lane<'a>,
        call: &'a Call<'a>,
        started_at: UnixMillis,
        begun: Instant,
        due: Instant,
    ) -> Self {
        Self {
            dispatcher,
            lane,
            call,
            started_at,
            begun,
            due,
            head: None,
        }
    }

    /// Returns the status of the head, if one came.
    pub(crate) fn status(&self) -> Option<StatusCode> {
        self.head.map(|(status, _)| status)
    }

    /// Returns the milliseconds to the head, or until now when none came.
    pub(crate) fn elapsed_ms(&self) -> i64 {
        let until = self.head.map_or_else(Instant::now, |(_, at)| at);
        i64::try_from((until - self.begun).as_millis()).unwrap_or(i64::MAX)
    }

    pub(crate) async fn run(&mut self) -> Result<Outcome, Box<Failure>> {
        let (lane, quirks) = (self.lane, self.dispatcher.quirks());
        let upstream = lane.upstream;
        let info = TargetInfo {
            takes_stream_options: quirks.takes_stream_options(upstream.id, self.started_at),
            ..lane.info()
        };
        let body = (self.call.render)(&info);
        let Some(address) = &upstream.address else {
            let answer = demo::answer(self.call, &info, &body, self.started_at);
            let status = match &answer {
                Ok(outcome) => Some(outcome.status),
                Err(failure) => failure.refusal.as_ref().map(|refusal| refusal.status),
            };
            self.head = status.map(|status| (status, Instant::now()));
            return answer;
        };

        let refused = match self.exchange(address, body.clone(), self.begun).await {
            Err(failure) if info.takes_stream_options && names_stream_options(&failure) => failure,
            result => return result,
        };
        let without = (self.call.render)(&TargetInfo {
            takes_stream_options: false,
            is_repeated: true,
            ..info
        });
        if without == body {
            return Err(refused);
        }
        let result = self.exchange(address, without, Instant::now()).await;
        if result.is_ok() {
            // A mistake of the client would be refused again.
            quirks.refuses_stream_options(upstream.id, self.started_at);
        }
        result
    }

    /// Sends one request now, at `at`, and reads the beginning of its answer.
    async fn exchange(
        &mut self,
        address: &Address,
        body: Bytes,
        at: Instant,
    ) -> Result<Outcome, Box<Failure>> {
        let Some(request) = self.request(address, body) else {
            return Err(Failure::new(
                ErrorClass::CallerFault,
                SendStage::NotSent,
                "the name of the model cannot stand in a path",
            ));
        };
        let deadlines = &self.lane.upstream.deadlines;
        let left = self.due.saturating_duration_since(at);
        let patience = Patience {
            connect: deadlines.connect.min(left),
            head: deadlines.first_event.min(left),
        };
        let Reply {
            status,
            headers,
            first,
            lease,
            sent_at,
        } = self
            .dispatcher
            .connections()
            .exchange(&address.origin, &request, patience, at)
            .await
            .map_err(|error| Failure::new(error.class(), error.stage(), error.into_cause()))?;
        let head_at = Instant::now();
        self.head = Some((status, head_at));
        let wire = Wire::new(first, lease, deadlines.idle, self.due, head_at);
        let answer = AnswerHead { status, headers };
        self.read_answer(answer, wire, sent_at).await
    }

    fn request(&self, address: &Address, body: Bytes) -> Option<Request<Bytes>> {
        let headers = self.lane.key.headers.of_request(
            self.dispatcher.user_agent(),
            self.call.streams,
            self.call.headers,
        );
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = address.uri(self.call.endpoint, self.call.is_beta, self.lane.model)?;
        *request.headers_mut() = headers;
        Some(request)
    }

    async fn read_answer(
        &self,
        answer: AnswerHead,
        wire: Wire,
        sent_at: Instant,
    ) -> Result<Outcome, Box<Failure>> {
        let status = answer.status;
        let AnswerHeaders {
            is_event_stream,
            is_encoded,
        } = AnswerHeaders::read(&answer.headers);
        if status.as_u16() >= 400 {
            return Err(self.read_refusal(is_encoded, answer, wire).await);
        }
        if !status.is_success() {
            // Following a redirect would carry the key and the prompt to another place.
            return Err(Failure::answered(
                ErrorClass::Protocol,
                format!("the upstream answered with status {}", status.as_u16()),
            ));
        }
        if is_encoded {
            return Err(Failure::answered(
                ErrorClass::Protocol,
                "the answer is compressed although that was not asked for",
            ));
        }
        if is_event_stream {
            if !self.call.streams {
                return Err(Failure::answered(
                    ErrorClass::Protocol,
                    "the upstream answered with a stream that was not asked for",
                ));
            }
            return self.read_first_event(answer, wire, sent_at).await;
        }
        self.read_document(answer, wire).await
    }

    /// Reads the body of an error, as far as that is worth it.
    async fn read_refusal(
        &self,
        is_encoded: bool,
        answer: AnswerHead,
        mut wire: Wire,
    ) -> Box<Failure> {
        wire.finish_by(Instant::now() + ERROR_BODY_TIME);
        let body = UpstreamBody::wire(Bytes::new(), wire)
            .collect(MAX_ERROR_BYTES)
            .await;
        let body = if is_encoded {
            Bytes::new()
        } else {
            body.unwrap_or_default()
        };
        let fault = read_fault(&body);
        let class = classify_status(answer.status, fault.as_ref());
        let wait = retry_after(&answer.headers, self.call.clock.now());
        Failure::refused(class, answer.refusal(body, fault.unwrap_or_default()), wait)
    }

    async fn read_first_event(
        &self,
        answer: AnswerHead,
        mut wire: Wire,
        sent_at: Instant,
    ) -> Result<Outcome, Box<Failure>> {
        let first_event = self.lane.upstream.deadlines.first_event;
        let due = (sent_at + first_event).min(self.due);
        let mut scanner = FirstEventScanner::new(self.call.max_event_bytes);
        let first = loop {
            let Some(item) = wire.next_before(due).await else {
                return Err(Failure::answered(
                    ErrorClass::Timeout,
                    "no event came in time",
                ));
            };
            let Some(chunk) = item else {
                break scanner.finish().ok_or_else(|| {
                    Failure::answered(ErrorClass::Cut, "the stream ended before its first event")
                })?;
            };
            let complete = scanner
                .push(&chunk?)
                .map_err(|too_long| Failure::answered(ErrorClass::Protocol, too_long))?;
            if let Some(first) = complete {
                break first;
            }
        };
        let FirstEvent {
            prefix,
            data,
            is_named_error,
        } = first;
        if is_named_error || is_error_object(&data) {
            return Err(answer.into_disguised(data, self.call.clock.now()));
        }
        if !is_object(&data) {
            // An end without anything before it is the same: a client would take it for an answer.
            return Err(Failure::answered(
                ErrorClass::Protocol,
                "the first event is no JSON object",
            ));
        }
        Ok(answer.into_outcome(AnswerKind::Events, UpstreamBody::wire(prefix, wire)))
    }

    /// Reads an answer that is no stream, whole if it is not too long.
    async fn read_document(
        &self,
        answer: AnswerHead,
        mut wire: Wire,
    ) -> Result<Outcome, Box<Failure>> {
        let limit = self.call.max_held_bytes;
        let length = wire.exact_length();
        if length.is_some_and(|length| length > limit as u64) {
            let body = UpstreamBody::wire(Bytes::new(), wire);
            return Ok(answer.into_outcome(AnswerKind::Document, body));
        }
        let mut first = wire.next().await.transpose()?.unwrap_or_default();
        let mut rest = BytesMut::new();
        while !wire.is_at_end() && first.len() + rest.len() <= limit {
            let Some(chunk) = wire.next().await.transpose()? else {
                break;
            };
            if rest.is_empty() {
                rest.reserve(
                    length
                        .and_then(|n| usize::try_from(n).ok())
                        .unwrap_or(0)
                        .max(chunk.len()),
                );
                rest.extend_from_slice(&first);
                first = Bytes::new();
            }
            rest.extend_from_slice(&chunk);
        }
        // An answer that came in one piece is not copied.
        let whole = if rest.is_empty() {
            first
        } else {
            rest.freeze()
        };
        if whole.len() > limit {
            let body = UpstreamBody::wire(whole, wire);
            return Ok(answer.into_outcome(AnswerKind::Document, body));
        }
        let facts = inspect(self.call.endpoint, &whole);
        if !facts.is_json_object {
            return Err(Failure::answered(
                ErrorClass::Protocol,
                "the answer is no JSON object",
            ));
        }
        if whole.len() <= MAX_DISGUISED_BYTES && is_error_object(&whole) {
            return Err(answer.into_disguised(whole, self.call.clock.now()));
        }
        let body = UpstreamBody::in_memory(whole);
        Ok(Outcome {
            facts: Some(facts),
            ..answer.into_outcome(AnswerKind::Document, body)
        })
    }
}

impl AnswerHead {
    fn refusal(self, body: Bytes, fault: ProviderFault) -> Refusal {
        let LetThrough {
            headers,
            upstream_request_id,
        } = LetThrough::read(&self.headers);
        Refusal {
            status: self.status,
            headers,
            upstream_request_id,
            body,
            fault,
        }
    }

    /// Turns an error object that came with status 200 into what it should have been.
    fn into_disguised(mut self, data: Bytes, now: UnixMillis) -> Box<Failure> {
        let fault = read_fault(&data).unwrap_or_default();
        let (status, class) = classify_disguised(&fault);
        // Other answers tell of limits too, which then are no reason to wait.
        let wait = (class == ErrorClass::RateLimited)
            .then(|| retry_after(&self.headers, now))
            .flatten();
        self.status = status;
        self.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Failure::refused(class, self.refusal(data, fault), wait)
    }

    fn into_outcome(self, kind: AnswerKind, body: UpstreamBody) -> Outcome {
        Outcome {
            status: self.status,
            kind,
            body,
            facts: None,
        }
    }
}
