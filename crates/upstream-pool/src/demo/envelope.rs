//! Answers and their events in the shapes of the two protocols.

use bytes::Bytes;
use serde_json::{Value, json};

/// What kind of answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Of `chat/completions`.
    Chat,
    /// Of `completions`.
    Completion,
    /// Of `messages`.
    Message,
}

impl Shape {
    /// Returns what ids begin with.
    pub(super) const fn prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
            Self::Message => "msg_",
        }
    }
}

/// What is said, and how much that is in words.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) text: String,
    /// Whether a limit has cut it.
    pub(super) is_cut: bool,
    pub(super) input: usize,
    pub(super) output: usize,
}

/// The fields that every answer begins with.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) model: String,
    pub(super) shape: Shape,
}

impl Envelope {
    /// Returns an answer in one piece.
    pub(super) fn document(&self, said: &Said) -> Value {
        let choice = match self.shape {
            Shape::Message => {
                let mut message = self.message();
                message["content"] = json!([{ "type": "text", "text": said.text }]);
                message["stop_reason"] = json!(stop_reason(said));
                message["usage"] = usage_of_message(said.input, said.output);
                return message;
            }
            Shape::Chat => json!({
                "index": 0,
                "message": { "role": "assistant", "content": said.text, "refusal": null },
                "logprobs": null,
                "finish_reason": finish_reason(said),
            }),
            Shape::Completion => json!({
                "index": 0,
                "text": said.text,
                "logprobs": null,
                "finish_reason": finish_reason(said),
            }),
        };
        json!({
            "id": self.id,
            "object": if self.shape == Shape::Chat { "chat.completion" } else { "text_completion" },
            "created": self.created,
            "model": self.model,
            "choices": [choice],
            "usage": usage(said),
        })
    }

    /// Returns the events before the first word.
    pub(super) fn opening(&self, said: &Said) -> Vec<Bytes> {
        match self.shape {
            Shape::Chat => {
                vec![self.chunk(&json!({ "role": "assistant", "content": "" }), None)]
            }
            Shape::Completion => Vec::new(),
            Shape::Message => {
                let mut message = self.message();
                message["usage"] = usage_of_message(said.input, 0);
                vec![
                    named("message_start", &json!({ "message": message })),
                    named(
                        "content_block_start",
                        &json!({ "index": 0, "content_block": { "type": "text", "text": "" } }),
                    ),
                ]
            }
        }
    }

    /// Returns the event of a word.
    pub(super) fn word(&self, word: &str) -> Bytes {
        match self.shape {
            Shape::Chat => self.chunk(&json!({ "content": word }), None),
            Shape::Completion => self.chunk(&json!(word), None),
            Shape::Message => named(
                "content_block_delta",
                &json!({ "index": 0, "delta": { "type": "text_delta", "text": word } }),
            ),
        }
    }

    /// Returns the events after the last word.
    pub(super) fn closing(&self, said: &Said, includes_usage: bool) -> Vec<Bytes> {
        let empty = match self.shape {
            Shape::Message => {
                return vec![
                    named("content_block_stop", &json!({ "index": 0 })),
                    named(
                        "message_delta",
                        &json!({
                            "delta": { "stop_reason": stop_reason(said), "stop_sequence": null },
                            "usage": { "output_tokens": said.output },
                        }),
                    ),
                    named("message_stop", &json!({})),
                ];
            }
            Shape::Chat => json!({}),
            Shape::Completion => json!(""),
        };
        let finish = self.chunk(&empty, Some(finish_reason(said)));
        let usage = includes_usage.then(|| {
            let mut chunk = self.bare_chunk(&json!([]));
            chunk["usage"] = usage(said);
            event(&chunk)
        });
        let done = Bytes::from_static(b"data: [DONE]\n\n");
        std::iter::once(finish).chain(usage).chain([done]).collect()
    }

    /// Returns a message without anything in it.
    fn message(&self) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
        })
    }

    fn chunk(&self, content: &Value, finish_reason: Option<&str>) -> Bytes {
        let name = if self.shape == Shape::Chat {
            "delta"
        } else {
            "text"
        };
        let choice = json!({
            "index": 0,
            name: content,
            "logprobs": null,
            "finish_reason": finish_reason,
        });
        event(&self.bare_chunk(&json!([choice])))
    }

    fn bare_chunk(&self, choices: &Value) -> Value {
        let is_chat = self.shape == Shape::Chat;
        json!({
            "id": self.id,
            "object": if is_chat { "chat.completion.chunk" } else { "text_completion" },
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

fn finish_reason(said: &Said) -> &'static str {
    if said.is_cut { "length" } else { "stop" }
}

fn stop_reason(said: &Said) -> &'static str {
    if said.is_cut {
        "max_tokens"
    } else {
        "end_turn"
    }
}

fn usage(said: &Said) -> Value {
    json!({
        "prompt_tokens": said.input,
        "completion_tokens": said.output,
        "total_tokens": said.input + said.output,
    })
}

fn usage_of_message(input: usize, output: usize) -> Value {
    json!({ "input_tokens": input, "output_tokens": output })
}

fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// Builds an event that says what it is in its name and in its data.
fn named(name: &str, data: &Value) -> Bytes {
    let mut data = data.clone();
    data["type"] = json!(name);
    Bytes::from(format!("event: {name}\ndata: {data}\n\n"))
}
