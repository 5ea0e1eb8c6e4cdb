//! One event of a stream, as far as it matters.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;

use super::usage::Usage;
use crate::chunk::add_leaves;
use crate::json::mend_surrogates;
use crate::output::OutputText;

/// What an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    MessageStart,
    /// The start or the end of a block, or a part of it.
    Content,
    MessageDelta,
    MessageStop,
    Ping,
    Error,
    /// One of those to come.
    Other,
}

impl Kind {
    /// Returns the kind that goes by a name.
    pub(super) fn of(name: &[u8]) -> Self {
        match name {
            b"content_block_delta" | b"content_block_start" | b"content_block_stop" => {
                Self::Content
            }
            b"message_start" => Self::MessageStart,
            b"message_delta" => Self::MessageDelta,
            b"message_stop" => Self::MessageStop,
            b"ping" => Self::Ping,
            b"error" => Self::Error,
            _ => Self::Other,
        }
    }
}

/// The data of an event.
#[derive(Debug, Deserialize)]
pub(super) struct EventData<'a> {
    #[serde(borrow, default, rename = "type")]
    name: Cow<'a, str>,
    #[serde(default)]
    index: Option<usize>,
    #[serde(borrow, default)]
    delta: Option<Piece<'a>>,
    #[serde(borrow, default)]
    content_block: Option<Piece<'a>>,
    #[serde(default)]
    message: Option<Message>,
    #[serde(default)]
    usage: Option<Usage>,
}

/// A block, or what is added to one.
#[derive(Debug, Deserialize)]
struct Piece<'a> {
    #[serde(borrow, default)]
    text: Option<Text<'a>>,
    #[serde(borrow, default)]
    thinking: Option<Text<'a>>,
    #[serde(borrow, default)]
    partial_json: Option<Text<'a>>,
    /// That of a tool.
    #[serde(borrow, default)]
    name: Option<Text<'a>>,
}

/// A text that is copied only where it has escapes.
#[derive(Debug, Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    usage: Option<Usage>,
}

/// An event that was read.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time lives on the stack, and a box would be an allocation per event"
)]
pub(super) enum Event<'a> {
    /// With members of the usual types.
    Usual(EventData<'a>),
    /// With others.
    Unusual(Value),
}

impl<'a> Event<'a> {
    /// Reads the data of an event; `None` when it is no JSON object.
    pub(super) fn read(data: &'a [u8]) -> Option<Self> {
        if let Ok(usual) = serde_json::from_slice(data) {
            return Some(Self::Usual(usual));
        }
        let value = serde_json::from_slice(data)
            .or_else(|_| serde_json::from_slice(&mend_surrogates(data)));
        value.ok().filter(Value::is_object).map(Self::Unusual)
    }

    /// Returns what it says that it is.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Usual(data) => &data.name,
            Self::Unusual(value) => value
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        }
    }

    /// Returns the usage, that of its message included.
    pub(super) fn usage(&self) -> Option<Usage> {
        match self {
            Self::Usual(data) => {
                let of_message = data.message.as_ref().and_then(|message| message.usage);
                data.usage.or(of_message)
            }
            Self::Unusual(value) => {
                let of_message = || value.get("message")?.get("usage");
                let usage = value.get("usage").or_else(of_message)?;
                Usage::read(usage.to_string().as_bytes())
            }
        }
    }

    /// Adds what the model wrote.
    pub(super) fn add_to(&self, output: &mut OutputText) {
        match self {
            Self::Usual(data) => {
                let block = data.index.unwrap_or(0);
                for piece in [&data.delta, &data.content_block].into_iter().flatten() {
                    for text in [&piece.text, &piece.thinking].into_iter().flatten() {
                        output.add(block, &text.0);
                    }
                    // Its parts are not what the model made: they are cut where it suits the provider.
                    for text in [&piece.name, &piece.partial_json].into_iter().flatten() {
                        output.add_cut(block, &text.0);
                    }
                }
            }
            Self::Unusual(value) => {
                let index = value.get("index").and_then(Value::as_u64).unwrap_or(0);
                let block = usize::try_from(index).unwrap_or(usize::MAX);
                for key in ["delta", "content_block"] {
                    for member in ["text", "thinking", "partial_json"] {
                        if let Some(text) = value.get(key).and_then(|piece| piece.get(member)) {
                            add_leaves(text, block, output);
                        }
                    }
                }
            }
        }
    }
}
