//! From a call and a script to the parts of an answer.

use serde_json::Value;
use sluice_domain::usage::TokenUsage;

use super::anthropic::{self, Messages};
use super::call::{Call, CallKind};
use super::openai::{self, Frame};
use super::quirk::{ErrorShape, Quirk};
use super::script::{Content, FaultKind, Script};
use super::stream::Stream;

/// An answer, ready to be written.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) streams: bool,
    /// Whether it is one of the Anthropic API.
    pub(super) is_anthropic: bool,
    pub(super) framing: Framing,
    pub(super) parts: Vec<Part>,
}

/// How the end of the body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By this content length, which may be wrong.
    Length(usize),
    Chunked,
    UntilClose,
}

/// Bytes that belong together.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) bytes: Vec<u8>,
    /// Whether it is an event; comments and the like are none.
    pub(super) is_event: bool,
    pub(super) words: usize,
    pub(super) reported: Option<TokenUsage>,
}

impl Answer {
    /// Returns whether the connection cannot be used after it.
    pub(super) fn ends_connection(&self) -> bool {
        match self.framing {
            Framing::UntilClose => true,
            Framing::Length(length) => {
                length
                    != self
                        .parts
                        .iter()
                        .map(|part| part.bytes.len())
                        .sum::<usize>()
            }
            Framing::Chunked => false,
        }
    }
}

/// Returns the answer of a provider that lists `models` to the call with this number.
pub(super) fn answer(call: &Call, number: usize, script: &Script, models: &[String]) -> Answer {
    let model = call.model.as_deref().unwrap_or_default();
    let refuse =
        |status, body: String| plain(status, "application/json", Part::event(body), call, script);
    match &script.content {
        Content::Body {
            content_type,
            bytes,
        } => plain(
            script.status,
            content_type,
            Part::event(bytes.to_vec()),
            call,
            script,
        ),
        Content::Events(events) => {
            let parts = events
                .iter()
                .map(|event| Part::event(event.to_vec()))
                .collect();
            stream(script.status, parts, call, script)
        }
        Content::Refusal if call.kind.is_anthropic() => {
            refuse(script.status, anthropic::refusal(script.status, model))
        }
        Content::Refusal => refuse(script.status, openai::refusal(script.status, model)),
        Content::Answer if refuses_options(call, script) => {
            let message = "Unrecognized request argument supplied: stream_options";
            refuse(400, openai::error(message, "invalid_request_error", None))
        }
        Content::Answer => match &call.kind {
            CallKind::NotJson => {
                let message = "We could not parse the JSON body of your request.";
                refuse(400, openai::error(message, "invalid_request_error", None))
            }
            CallKind::Unknown => {
                let message = format!("Invalid URL ({} {})", call.method, call.target);
                refuse(404, openai::error(&message, "invalid_request_error", None))
            }
            CallKind::Models => refuse(script.status, openai::model_list(models)),
            CallKind::Model(id) if models.contains(id) => refuse(script.status, openai::model(id)),
            CallKind::Model(id) => refuse(404, openai::model_not_found(id)),
            CallKind::Embedding => {
                let usage = Counting::new(call, script).plain_usage(0);
                let as_base64 = call.wants_base64 && !script.has(Quirk::FloatEmbeddings);
                let body = openai::embeddings(
                    model,
                    call.inputs,
                    call.dimensions,
                    as_base64,
                    usage.as_ref(),
                );
                let part = Part {
                    reported: usage,
                    ..Part::event(body)
                };
                plain(script.status, "application/json", part, call, script)
            }
            CallKind::TokenCount => {
                refuse(script.status, anthropic::token_count(call.input_tokens))
            }
            CallKind::Message => {
                let messages = Messages::new(call, script, number);
                if call.streams {
                    stream(script.status, messages.stream(), call, script)
                } else {
                    let part = messages.plain();
                    plain(script.status, "application/json", part, call, script)
                }
            }
            CallKind::Chat | CallKind::Completion => {
                let frame = Frame {
                    is_chat: call.kind == CallKind::Chat,
                    number,
                    model: model.to_owned(),
                };
                if call.streams {
                    let parts = Stream::new(call, script, frame).parts();
                    stream(script.status, parts, call, script)
                } else {
                    let part = plain_completion(call, script, &frame);
                    plain(script.status, "application/json", part, call, script)
                }
            }
        },
    }
}

fn refuses_options(call: &Call, script: &Script) -> bool {
    let has_options = |body: Value| body.get("stream_options").is_some();
    script.has(Quirk::RefusesStreamOptions)
        && serde_json::from_slice(&call.body).is_ok_and(has_options)
}

fn plain_completion(call: &Call, script: &Script, frame: &Frame) -> Part {
    let counting = Counting::new(call, script);
    let finish = if script.has(Quirk::NoFinishReason) {
        "null".to_owned()
    } else {
        openai::quote(counting.finish)
    };
    let words = counting.words * call.choices;
    let reported = counting.plain_usage(words);
    let usage = reported.as_ref().map(openai::usage);
    let body = frame.plain(call.choices, counting.words, &finish, usage.as_deref());
    Part {
        words,
        reported,
        ..Part::event(body)
    }
}

fn plain(status: u16, content_type: &str, part: Part, call: &Call, script: &Script) -> Answer {
    let error = match &script.fault {
        Some(fault) => match fault.kind {
            FaultKind::Error(_) if call.kind.is_anthropic() => {
                Some(Part::event(anthropic::refusal(529, "")))
            }
            FaultKind::Error(shape) => Some(Part::event(error_body(shape))),
            FaultKind::Garbage => Some(Part::event(&part.bytes[..part.bytes.len() / 2])),
            _ => None,
        },
        None => None,
    };
    let part = error.unwrap_or(part);
    let mut parts = Vec::new();
    let mut framing = Framing::Length(part.bytes.len());
    for quirk in &script.quirks {
        match quirk {
            Quirk::BlankLines(count) => {
                framing = Framing::Chunked;
                parts.extend((0..*count).map(|_| Part::other("\n")));
            }
            Quirk::Chunked => framing = Framing::Chunked,
            Quirk::ContentLengthOff(by) => {
                let by = isize::try_from(*by).unwrap_or(0);
                framing = Framing::Length(part.bytes.len().saturating_add_signed(by));
            }
            _ => {}
        }
    }
    if script.keep_alive.is_some() {
        framing = Framing::Chunked;
    }
    parts.push(part);
    let framing = or_until_close(framing, call, script);
    Answer {
        status,
        content_type: content_type.to_owned(),
        streams: false,
        is_anthropic: call.kind.is_anthropic(),
        framing,
        parts,
    }
}

fn stream(status: u16, parts: Vec<Part>, call: &Call, script: &Script) -> Answer {
    let content_type = "text/event-stream; charset=utf-8".to_owned();
    let framing = or_until_close(Framing::Chunked, call, script);
    Answer {
        status,
        content_type,
        streams: true,
        is_anthropic: call.kind.is_anthropic(),
        framing,
        parts,
    }
}

fn or_until_close(framing: Framing, call: &Call, script: &Script) -> Framing {
    let is_impossible = call.is_old() && framing == Framing::Chunked;
    if is_impossible || script.has(Quirk::UntilClose) {
        Framing::UntilClose
    } else {
        framing
    }
}

impl Part {
    pub(super) fn event(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            is_event: true,
            ..Self::default()
        }
    }

    pub(super) fn other(text: &str) -> Self {
        Self {
            bytes: text.as_bytes().to_vec(),
            ..Self::default()
        }
    }
}

/// What the script and the call say about tokens.
pub(super) struct Counting<'a> {
    pub(super) call: &'a Call,
    pub(super) script: &'a Script,
    /// Words of each choice.
    pub(super) words: usize,
    pub(super) finish: &'static str,
}

impl<'a> Counting<'a> {
    pub(super) fn new(call: &'a Call, script: &'a Script) -> Self {
        let most = call.max_tokens.unwrap_or(usize::MAX);
        let finish = if script.words > most {
            "length"
        } else {
            "stop"
        };
        Self {
            call,
            script,
            words: script.words.min(most),
            finish,
        }
    }

    /// Returns the usage after `words` words.
    pub(super) fn usage(&self, words: usize) -> TokenUsage {
        if self.script.has(Quirk::ZeroUsage) {
            return TokenUsage::default();
        }
        TokenUsage {
            input: i64::try_from(self.call.input_tokens).unwrap_or(i64::MAX),
            cached_input: self.script.cached_tokens,
            output: i64::try_from(words).unwrap_or(i64::MAX) + self.script.reasoning_tokens,
            reasoning_output: self.script.reasoning_tokens,
            ..TokenUsage::default()
        }
    }

    fn plain_usage(&self, words: usize) -> Option<TokenUsage> {
        (!self.script.has(Quirk::NoUsage)).then(|| self.usage(words))
    }
}

/// Returns an error as a body or as the data of an event.
pub(super) fn error_body(shape: ErrorShape) -> String {
    const MESSAGE: &str = "The fake upstream failed in the middle of its answer.";
    match shape {
        ErrorShape::Object | ErrorShape::ObjectWithEventLine => {
            openai::error(MESSAGE, "server_error", Some("internal_error"))
        }
        ErrorShape::Text => format!(r#"{{"error":{}}}"#, openai::quote(MESSAGE)),
        ErrorShape::Flat | ErrorShape::FlatThenDone => format!(
            r#"{{"object":"error","message":{},"type":"InternalServerError","param":null,"code":500}}"#,
            openai::quote(MESSAGE)
        ),
    }
}
