//! The formats in which clients ask, and what they read of an answer.

use serde_json::{Value, json};
use sluice_domain::upstream::ProviderKind;
use sluice_testkit::{RawEvent, Request, words};

pub(crate) const PROMPT_WORDS: usize = 7;

/// An endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Chat,
    Completion,
    Message,
}

/// A stream as its client read it.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// The text of the answer.
    pub(crate) text: String,
    /// The data of the error event that came last.
    pub(crate) error: Option<Value>,
    /// Whether the event came that ends a stream well.
    pub(crate) is_complete: bool,
    /// Whether something came behind the end.
    pub(crate) goes_on: bool,
}

impl Format {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
            Self::Message => "/v1/messages",
        }
    }

    pub(crate) fn kind(self) -> ProviderKind {
        match self {
            Self::Chat | Self::Completion => ProviderKind::OpenAi,
            Self::Message => ProviderKind::Anthropic,
        }
    }

    /// Events of a stream that stand before its words: the role of a chat; the start of a message and
    /// of its block.
    pub(crate) fn events_before(self) -> usize {
        match self {
            Self::Chat => 1,
            Self::Completion => 0,
            Self::Message => 2,
        }
    }

    /// A request that nobody else sends: the provider sees its name as the `user`.
    pub(crate) fn request(self, model: &str, streams: bool, name: &str) -> Request {
        let mut body = match self {
            Self::Chat => words::chat_request(model, PROMPT_WORDS),
            Self::Completion => words::completion_request(model, PROMPT_WORDS),
            Self::Message => words::message_request(model, PROMPT_WORDS),
        };
        if self == Self::Message {
            body["metadata"] = json!({"user_id": name});
        } else {
            body["user"] = name.into();
        }
        if streams {
            body["stream"] = json!(true);
        }
        Request::post(self.path(), &body)
    }

    /// Returns the text of an answer in one piece.
    pub(crate) fn text(self, answer: &Value) -> String {
        let text = match self {
            Self::Chat => &answer["choices"][0]["message"]["content"],
            Self::Completion => &answer["choices"][0]["text"],
            Self::Message => &answer["content"][0]["text"],
        };
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Returns the code of an error, or its type where it has none.
    pub(crate) fn code(self, answer: &Value) -> String {
        let error = &answer["error"];
        let code = match self {
            Self::Chat | Self::Completion => &error["code"],
            Self::Message => &error["details"]["error_code"],
        };
        let word = code.as_str().or_else(|| error["type"].as_str());
        word.unwrap_or_default().to_owned()
    }

    /// Reads the events of a stream. Comments and pings say nothing.
    pub(crate) fn hear(self, events: &[RawEvent]) -> Heard {
        let mut heard = Heard::default();
        for event in events {
            let data = event.data().unwrap_or_default();
            if event.is_comment() || event.raw.starts_with(b"event: ping") {
                continue;
            }
            heard.goes_on |= heard.is_complete || heard.error.is_some();
            if event.is_done() {
                heard.is_complete = true;
                continue;
            }
            // A client that cannot read an event fails, too; here it must not come to that.
            let data: Value = serde_json::from_str(&data)
                .unwrap_or_else(|error| panic!("{error}: {:?}", event.raw));
            if self == Self::Message {
                heard.is_complete |= data["type"] == "message_stop";
                heard.text += data["delta"]["text"].as_str().unwrap_or_default();
            } else {
                heard.text += &event.content();
            }
            if !data["error"].is_null() {
                heard.error = Some(data);
            }
        }
        heard
    }
}
