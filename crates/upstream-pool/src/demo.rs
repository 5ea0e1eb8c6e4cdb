//! The built-in upstream of kind `demo`: it answers by itself and says so.
//!
//! It speaks both protocols as far as a first try needs: chat and legacy completions and messages,
//! streamed and not, embeddings, and the count of the tokens of a message. It never calls a model. A
//! token is a word here, that is, characters between white space; usage is counted by that rule on both
//! sides, and `max_tokens` and `max_completion_tokens` cut the answer by it.

mod embedding;

mod envelope;

mod request;

pub(crate) mod stream;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use sluice_domain::route::{Endpoint, Protocol};
use sluice_domain::time::UnixMillis;

use crate::attempt::{Failure, Outcome};
use crate::body::UpstreamBody;
use crate::dispatch::{AnswerKind, Call};
use crate::error::{ErrorClass, ProviderFault, Refusal};
use crate::routing::TargetInfo;

use self::envelope::{Envelope, Said, Shape};
use self::request::{DemoRequest, InvalidRequest, count_words};
use self::stream::DemoStream;

/// What it says, before a sentence about the request.
const OPENING: &str = "This is the demonstration upstream that is built into Sluice. \
    No model was called, and this text is always the same.";

/// What it says at last.
const ADVICE: &str = "To talk to a real model, set OPENAI_API_KEY and start `sluice quickstart` \
    again, or add a provider with `sluice upstream` and lead a route to it with `sluice route`.";

/// Distinguishes answers that were made in the same millisecond.
static ANSWERS: AtomicU64 = AtomicU64::new(0);

/// Answers a request.
pub(crate) fn answer(
    call: &Call<'_>,
    target: &TargetInfo<'_>,
    body: &[u8],
    now: UnixMillis,
) -> Result<Outcome, Box<Failure>> {
    let protocol = call.endpoint.protocol();
    let refuse = |invalid| refuse(protocol, invalid);
    let request = DemoRequest::read(call.endpoint, body).map_err(refuse)?;
    let input = request.input_words;
    let shape = match call.endpoint {
        Endpoint::ChatCompletions => Shape::Chat,
        Endpoint::Completions => Shape::Completion,
        Endpoint::Messages => Shape::Message,
        Endpoint::Embeddings => {
            let answer = embedding::answer(&request, target.upstream_model).map_err(refuse)?;
            return Ok(document(&answer));
        }
        Endpoint::CountTokens => return Ok(document(&json!({ "input_tokens": input }))),
    };
    let number = ANSWERS.fetch_add(1, Ordering::Relaxed);
    let envelope = Envelope {
        id: format!("{}demo{:x}{number:04x}", shape.prefix(), now.0),
        created: now.as_seconds(),
        model: target.upstream_model.to_string(),
        shape,
    };
    let said = if input == 1 {
        "1 word".to_owned()
    } else {
        format!("{input} words")
    };
    let text = format!("{OPENING} Your request had {said}. {ADVICE}");
    let (text, is_cut) = cut(text, request.max_words);
    let said = Said {
        output: count_words(&text),
        text,
        is_cut,
        input,
    };
    if call.streams {
        let stream = DemoStream::new(envelope, said, request.includes_usage);
        return Ok(outcome(AnswerKind::Events, UpstreamBody::demo(stream)));
    }
    Ok(document(&envelope.document(&said)))
}

/// Keeps the first words of a text; returns whether some were left out.
fn cut(mut text: String, max_words: Option<usize>) -> (String, bool) {
    let Some(max_words) = max_words else {
        return (text, false);
    };
    let starts = text.match_indices(' ').map(|(at, _)| at);
    match starts.into_iter().nth(max_words.saturating_sub(1)) {
        Some(end) => {
            text.truncate(end);
            (text, true)
        }
        None => (text, false),
    }
}

fn document(value: &Value) -> Outcome {
    let body = UpstreamBody::in_memory(Bytes::from(value.to_string()));
    outcome(AnswerKind::Document, body)
}

fn outcome(kind: AnswerKind, body: UpstreamBody) -> Outcome {
    Outcome {
        status: StatusCode::OK,
        kind,
        body,
        facts: None,
    }
}

/// Refuses a request in the words that a provider would use.
fn refuse(protocol: Protocol, invalid: InvalidRequest) -> Box<Failure> {
    let InvalidRequest { message, param } = invalid;
    let kind = "invalid_request_error";
    let body = match protocol {
        Protocol::OpenAi => json!({
            "error": { "message": message, "type": kind, "param": param, "code": null },
        }),
        Protocol::Anthropic => json!({
            "type": "error",
            "error": { "type": kind, "message": message },
        }),
    };
    let refusal = Refusal {
        status: StatusCode::BAD_REQUEST,
        headers: HeaderMap::from_iter([(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )]),
        upstream_request_id: None,
        body: Bytes::from(body.to_string()),
        fault: ProviderFault {
            message: Some(message),
            kind: Some(kind.to_owned()),
            code: None,
            param: param.map(str::to_owned),
        },
    };
    Failure::refused(ErrorClass::CallerFault, refusal, None)
}

#[cfg(test)]
mod tests;
