//! The bodies and events that Anthropic sends, in its order of members.

use serde_json::json;
use sluice_domain::usage::TokenUsage;

use super::answer::{Counting, Part};
use super::call::Call;
use super::openai::quote;
use super::quirk::Quirk;
use super::script::Script;
use super::stream::{line_end, named_event};
use crate::words;

/// What an error inside a stream says.
const OVERLOADED: (&str, &str) = ("overloaded_error", "Overloaded");

/// Builds the answers to messages.
pub(super) struct Messages<'a> {
    counting: Counting<'a>,
    script: &'a Script,
    number: usize,
    model: &'a str,
    parts: Vec<Part>,
}

impl<'a> Messages<'a> {
    pub(super) fn new(call: &'a Call, script: &'a Script, number: usize) -> Self {
        Self {
            counting: Counting::new(call, script),
            script,
            number,
            model: call.model.as_deref().unwrap_or_default(),
            parts: Vec::new(),
        }
    }

    /// Returns the usage after so many words.
    fn usage(&self, words: usize) -> TokenUsage {
        TokenUsage {
            cache_write_input: self.script.cache_write_tokens,
            ..self.counting.usage(words)
        }
    }

    fn stop_reason(&self) -> &'static str {
        if self.counting.finish == "length" {
            "max_tokens"
        } else {
            "end_turn"
        }
    }

    fn reports(&self) -> bool {
        !self.script.has(Quirk::NoUsage)
    }

    /// Returns the answer in one piece.
    pub(super) fn plain(&self) -> Part {
        let usage = self.usage(self.counting.words);
        let reported = if self.reports() {
            format!(r#","usage":{}"#, usage_of(&usage))
        } else {
            String::new()
        };
        let body = format!(
            r#"{{"id":"msg_fake_{}","type":"message","role":"assistant","model":{},"content":[{{"type":"text","text":{}}}],"stop_reason":{},"stop_sequence":null{reported}}}"#,
            self.number,
            quote(self.model),
            quote(&words::text(self.counting.words)),
            quote(self.stop_reason()),
        );
        Part {
            words: self.counting.words,
            reported: self.reports().then_some(usage),
            ..Part::event(body)
        }
    }

    /// Returns the events of a stream: the start of the message, the start of its only block, the
    /// words one by one, the end of the block, the end of the message, the stop. A ping follows the
    /// start of the block; it is no event.
    pub(super) fn stream(mut self) -> Vec<Part> {
        let start = self.start();
        self.push("message_start", &start, 0, Some(1));
        self.push(
            "content_block_start",
            r#""index":0,"content_block":{"type":"text","text":""}"#,
            0,
            None,
        );
        self.parts.push(ping(self.script));
        for position in 0..self.counting.words {
            let text = quote(&words::word(position));
            let delta = format!(r#""index":0,"delta":{{"type":"text_delta","text":{text}}}"#);
            self.push("content_block_delta", &delta, 1, None);
        }
        self.push("content_block_stop", r#""index":0"#, 0, None);
        let end = self.end();
        self.push("message_delta", &end, 0, Some(self.counting.words));
        if !self.script.has(Quirk::NoDone) {
            self.push("message_stop", "", 0, None);
        }
        self.parts
    }

    fn start(&self) -> String {
        let usage = if self.reports() {
            // Anthropic reports the first token here, before anything is written.
            let mut usage = self.usage(0);
            usage.output = 1;
            usage.reasoning_output = 0;
            format!(r#","usage":{}"#, usage_of(&usage))
        } else {
            String::new()
        };
        format!(
            r#""message":{{"id":"msg_fake_{}","type":"message","role":"assistant","model":{},"content":[],"stop_reason":null,"stop_sequence":null{usage}}}"#,
            self.number,
            quote(self.model),
        )
    }

    fn end(&self) -> String {
        let usage = self.usage(self.counting.words);
        let usage = if self.reports() {
            format!(
                r#","usage":{{"output_tokens":{},"output_tokens_details":{{"thinking_tokens":{}}}}}"#,
                usage.output, usage.reasoning_output
            )
        } else {
            String::new()
        };
        format!(
            r#""delta":{{"stop_reason":{},"stop_sequence":null}}{usage}"#,
            quote(self.stop_reason())
        )
    }

    fn push(&mut self, kind: &str, members: &str, words: usize, reports_after: Option<usize>) {
        let comma = if members.is_empty() { "" } else { "," };
        let data = format!(r#"{{"type":"{kind}"{comma}{members}}}"#);
        let reported = reports_after
            .filter(|_| self.reports())
            .map(|words| self.usage(words));
        self.parts.push(Part {
            words,
            reported,
            ..Part::event(named_event(self.script, kind, &data))
        });
    }
}

fn ping(script: &Script) -> Part {
    let bytes = named_event(script, "ping", r#"{"type": "ping"}"#);
    Part::other(&String::from_utf8_lossy(&bytes))
}

fn usage_of(usage: &TokenUsage) -> String {
    let TokenUsage {
        input,
        cached_input,
        cache_write_input,
        output,
        reasoning_output,
    } = usage;
    let input = input - cached_input - cache_write_input;
    format!(
        r#"{{"input_tokens":{input},"cache_creation_input_tokens":{cache_write_input},"cache_read_input_tokens":{cached_input},"cache_creation":{{"ephemeral_5m_input_tokens":{cache_write_input},"ephemeral_1h_input_tokens":0}},"output_tokens":{output},"output_tokens_details":{{"thinking_tokens":{reasoning_output}}},"service_tier":"standard"}}"#
    )
}

/// Returns the answer to a question for the number of tokens.
pub(super) fn token_count(tokens: usize) -> String {
    json!({"input_tokens": tokens}).to_string()
}

/// Returns an error as a body or as the data of an event.
pub(super) fn error(kind: &str, message: &str) -> String {
    format!(
        r#"{{"type":"error","error":{{"type":{},"message":{}}},"request_id":"req_fake"}}"#,
        quote(kind),
        quote(message)
    )
}

/// Returns the error inside a stream.
pub(super) fn error_event(script: &Script) -> Part {
    let data = error(OVERLOADED.0, OVERLOADED.1);
    Part::event(named_event(script, "error", &data))
}

/// Returns the error that goes with a status.
pub(super) fn refusal(status: u16, model: &str) -> String {
    let not_found = format!("model: {model}");
    let (kind, message) = match status {
        400 => (
            "invalid_request_error",
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after",
        ),
        401 => ("authentication_error", "invalid x-api-key"),
        402 => ("billing_error", "Your credit balance is too low."),
        403 => (
            "permission_error",
            "Your API key does not have permission to use the specified resource.",
        ),
        404 => ("not_found_error", not_found.as_str()),
        413 => ("request_too_large", "Request exceeds the maximum size"),
        429 => (
            "rate_limit_error",
            "This request would exceed your organization's rate limit of 50 requests per minute.",
        ),
        504 => ("timeout_error", "Request timed out"),
        529 => OVERLOADED,
        _ => ("api_error", "Internal server error"),
    };
    error(kind, message)
}

/// Returns the bytes that stand between two events while a script waits.
pub(super) fn keep_alive(script: &Script) -> String {
    let eol = line_end(script);
    format!("event: ping{eol}data: {{\"type\": \"ping\"}}{eol}{eol}")
}
