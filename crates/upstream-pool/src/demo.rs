//! The built-in upstream of kind `demo`: it answers by itself and says so.
//!
//! It speaks the OpenAI protocol as far as a first try needs: chat and legacy completions, streamed
//! and not, and embeddings. It never calls a model. A token is a word here, that is, characters
//! between white space; usage is counted by that rule on both sides, and `max_tokens` and
//! `max_completion_tokens` cut the answer by it.

mod embedding;

mod request;

pub(crate) mod stream;

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use sluice_domain::route::Endpoint;
use sluice_domain::time::UnixMillis;

use crate::attempt::{Failure, Outcome};
use crate::body::UpstreamBody;
use crate::dispatch::{AnswerKind, Call};
use crate::error::{ErrorClass, ProviderFault, Refusal};
use crate::routing::TargetInfo;

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

/// The fields that every document and every chunk begins with.
#[derive(Debug, Clone)]
pub(crate) struct Envelope {
    id: String,
    created: i64,
    model: String,
    is_chat: bool,
}

/// Answers a request.
pub(crate) fn answer(
    call: &Call<'_>,
    target: &TargetInfo<'_>,
    body: &[u8],
    now: UnixMillis,
) -> Result<Outcome, Box<Failure>> {
    let request = DemoRequest::read(call.endpoint, body).map_err(refuse)?;
    let is_chat = match call.endpoint {
        Endpoint::ChatCompletions => true,
        // Messages were refused when they were read: none is routed here.
        Endpoint::Completions | Endpoint::Messages | Endpoint::CountTokens => false,
        Endpoint::Embeddings => {
            let answer = embedding::answer(&request, target.upstream_model).map_err(refuse)?;
            return Ok(document(&answer));
        }
    };
    let number = ANSWERS.fetch_add(1, Ordering::Relaxed);
    let prefix = if is_chat { "chatcmpl" } else { "cmpl" };
    let envelope = Envelope {
        id: format!("{prefix}-demo{:x}{number:04x}", now.0),
        created: now.as_seconds(),
        model: target.upstream_model.to_string(),
        is_chat,
    };
    let input = request.input_words;
    let said = if input == 1 {
        "1 word".to_owned()
    } else {
        format!("{input} words")
    };
    let text = format!("{OPENING} Your request had {said}. {ADVICE}");
    let (text, is_cut) = cut(text, request.max_words);
    let output = count_words(&text);
    let finish_reason = if is_cut { "length" } else { "stop" };
    let usage = json!({
        "prompt_tokens": input,
        "completion_tokens": output,
        "total_tokens": input + output,
    });
    if call.streams {
        let usage = request.includes_usage.then_some(usage);
        let stream = DemoStream::new(envelope, text, finish_reason, usage);
        return Ok(outcome(AnswerKind::Events, UpstreamBody::demo(stream)));
    }
    Ok(document(&envelope.document(&text, finish_reason, &usage)))
}

impl Envelope {
    fn document(&self, text: &str, finish_reason: &str, usage: &Value) -> Value {
        let choice = if self.is_chat {
            json!({
                "index": 0,
                "message": { "role": "assistant", "content": text, "refusal": null },
                "logprobs": null,
                "finish_reason": finish_reason,
            })
        } else {
            json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": finish_reason })
        };
        json!({
            "id": self.id,
            "object": if self.is_chat { "chat.completion" } else { "text_completion" },
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage,
        })
    }
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
    }
}

/// Refuses a request in the words that a provider would use.
fn refuse(invalid: InvalidRequest) -> Box<Failure> {
    let InvalidRequest { message, param } = invalid;
    let kind = "invalid_request_error";
    let error = json!({ "message": message, "type": kind, "param": param, "code": null });
    let refusal = Refusal {
        status: StatusCode::BAD_REQUEST,
        headers: HeaderMap::from_iter([(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )]),
        upstream_request_id: None,
        body: Bytes::from(json!({ "error": error }).to_string()),
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
