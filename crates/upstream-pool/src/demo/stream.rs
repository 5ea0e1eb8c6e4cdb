//! A streamed answer of the built-in upstream, one word at a time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Envelope;

/// The pace of a model that is quick but can be watched.
const TIME_PER_WORD: Duration = Duration::from_millis(20);

/// A stream of events in the shape of the OpenAI API.
#[derive(Debug)]
pub(crate) struct DemoStream {
    envelope: Envelope,
    text: String,
    finish_reason: &'static str,
    usage: Option<Value>,
    step: Step,
    /// `None` before the first event, which is not waited for.
    sleep: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Role,
    /// The word that begins at this byte of the text.
    Word(usize),
    Finish,
    Usage,
    Done,
    Ended,
}

impl DemoStream {
    pub(super) fn new(
        envelope: Envelope,
        text: String,
        finish_reason: &'static str,
        usage: Option<Value>,
    ) -> Self {
        let step = if envelope.is_chat {
            Step::Role
        } else {
            Step::Word(0)
        };
        Self {
            envelope,
            text,
            finish_reason,
            usage,
            step,
            sleep: None,
        }
    }

    /// Returns the next event when its time has come.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if matches!(self.step, Step::Ended) {
            return Poll::Ready(None);
        }
        if let (Step::Word(_), Some(sleep)) = (self.step, &mut self.sleep) {
            ready!(sleep.as_mut().poll(cx));
        }
        let event = self.next_event();
        if matches!(self.step, Step::Word(_)) {
            let due = Instant::now() + TIME_PER_WORD;
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(due),
                None => self.sleep = Some(Box::pin(sleep_until(due))),
            }
        }
        Poll::Ready(Some(event))
    }

    fn next_event(&mut self) -> Bytes {
        match self.step {
            Step::Role => {
                self.step = Step::Word(0);
                self.chunk(&json!({ "role": "assistant", "content": "" }), None)
            }
            Step::Word(start) => {
                let rest = self.text.get(start..).unwrap_or_default();
                // The space before a word belongs to it, as with real tokens.
                let length = rest
                    .get(1..)
                    .and_then(|rest| rest.find(' '))
                    .map(|at| at + 1);
                let (word, next) = match length {
                    Some(length) => (rest.get(..length), Step::Word(start + length)),
                    None => (Some(rest), Step::Finish),
                };
                let word = word.unwrap_or_default().to_owned();
                self.step = next;
                if self.envelope.is_chat {
                    self.chunk(&json!({ "content": word }), None)
                } else {
                    self.chunk(&Value::String(word), None)
                }
            }
            Step::Finish => {
                self.step = if self.usage.is_some() {
                    Step::Usage
                } else {
                    Step::Done
                };
                let empty = if self.envelope.is_chat {
                    json!({})
                } else {
                    json!("")
                };
                self.chunk(&empty, Some(self.finish_reason))
            }
            Step::Usage => {
                self.step = Step::Done;
                let usage = self.usage.take().unwrap_or_default();
                event(&self.envelope.chunk(&json!([]), Some(usage)))
            }
            Step::Done | Step::Ended => {
                self.step = Step::Ended;
                Bytes::from_static(b"data: [DONE]\n\n")
            }
        }
    }

    fn chunk(&self, content: &Value, finish_reason: Option<&str>) -> Bytes {
        let name = if self.envelope.is_chat {
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
        event(&self.envelope.chunk(&json!([choice]), None))
    }
}

impl Envelope {
    fn chunk(&self, choices: &Value, usage: Option<Value>) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": if self.is_chat { "chat.completion.chunk" } else { "text_completion" },
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let (Some(fields), Some(usage)) = (chunk.as_object_mut(), usage) {
            fields.insert("usage".to_owned(), usage);
        }
        chunk
    }
}

fn event(chunk: &Value) -> Bytes {
    Bytes::from(format!("data: {chunk}\n\n"))
}
