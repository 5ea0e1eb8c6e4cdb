//! The members that are acted upon: their keys and the types of their values.

use sluice_domain::route::Endpoint;

use super::OutlineError;
use crate::json::{Kind, Value};

/// The members that are acted upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Model,
    Stream,
    StreamOptions,
    MaxTokens,
    MaxCompletionTokens,
    N,
    BestOf,
    Prompt,
    EncodingFormat,
    Thinking,
    IncludeUsage,
    IncludeObfuscation,
    BudgetTokens,
}

const CHAT_FIELDS: [Field; 6] = [
    Field::Model,
    Field::Stream,
    Field::StreamOptions,
    Field::MaxTokens,
    Field::MaxCompletionTokens,
    Field::N,
];
const COMPLETION_FIELDS: [Field; 8] = [
    Field::Model,
    Field::Stream,
    Field::StreamOptions,
    Field::MaxTokens,
    Field::MaxCompletionTokens,
    Field::N,
    Field::BestOf,
    Field::Prompt,
];
const EMBEDDING_FIELDS: [Field; 2] = [Field::Model, Field::EncodingFormat];
const MESSAGE_FIELDS: [Field; 4] = [
    Field::Model,
    Field::Stream,
    Field::MaxTokens,
    Field::Thinking,
];
const COUNT_FIELDS: [Field; 1] = [Field::Model];
pub(super) const STREAM_OPTIONS_FIELDS: [Field; 2] =
    [Field::IncludeUsage, Field::IncludeObfuscation];
pub(super) const THINKING_FIELDS: [Field; 1] = [Field::BudgetTokens];

impl Field {
    pub(super) const fn of(endpoint: Endpoint) -> &'static [Self] {
        match endpoint {
            Endpoint::ChatCompletions => &CHAT_FIELDS,
            Endpoint::Completions => &COMPLETION_FIELDS,
            Endpoint::Embeddings => &EMBEDDING_FIELDS,
            Endpoint::Messages => &MESSAGE_FIELDS,
            Endpoint::CountTokens => &COUNT_FIELDS,
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Stream => "stream",
            Self::StreamOptions => "stream_options",
            Self::MaxTokens => "max_tokens",
            Self::MaxCompletionTokens => "max_completion_tokens",
            Self::N => "n",
            Self::BestOf => "best_of",
            Self::Prompt => "prompt",
            Self::EncodingFormat => "encoding_format",
            Self::Thinking => "thinking",
            Self::BudgetTokens => "budget_tokens",
            Self::IncludeUsage => "include_usage",
            Self::IncludeObfuscation => "include_obfuscation",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::BudgetTokens => "thinking.budget_tokens",
            Self::IncludeUsage => "stream_options.include_usage",
            Self::IncludeObfuscation => "stream_options.include_obfuscation",
            _ => self.key(),
        }
    }

    pub(super) fn wrong_type(self, expected: &'static str, value: &Value<'_>) -> OutlineError {
        OutlineError::Type {
            param: self.path(),
            expected,
            found: value.kind.with_article(),
        }
    }

    pub(super) fn bool(self, value: &Value<'_>) -> Result<bool, OutlineError> {
        match value.as_bool() {
            Some(bool) => Ok(bool),
            None if value.kind == Kind::Null => Ok(false),
            None => Err(self.wrong_type("a boolean", value)),
        }
    }

    pub(super) fn integer(self, value: &Value<'_>) -> Result<Option<i64>, OutlineError> {
        match value.kind {
            Kind::Null => Ok(None),
            Kind::Number => match value.as_integer() {
                Some(integer) => Ok(Some(integer)),
                None if value.raw.iter().all(|b| b.is_ascii_digit() || *b == b'-') => {
                    let reason = "the number is too large";
                    Err(OutlineError::Value {
                        param: self.path(),
                        reason,
                    })
                }
                None => {
                    let (expected, found) = ("an integer", "a decimal number");
                    Err(OutlineError::Type {
                        param: self.path(),
                        expected,
                        found,
                    })
                }
            },
            _ => Err(self.wrong_type("an integer", value)),
        }
    }

    /// Reads a count of answers.
    pub(super) fn count(self, value: &Value<'_>) -> Result<i64, OutlineError> {
        match self.integer(value)? {
            None => Ok(1),
            Some(count @ 1..) => Ok(count),
            Some(_) => Err(OutlineError::Value {
                param: self.path(),
                reason: "it must be at least 1",
            }),
        }
    }
}

/// Recognises the keys that are acted upon, and refuses what could be taken for one of them.
pub(super) struct Keys {
    fields: &'static [Field],
    seen: u32,
}

impl Keys {
    pub(super) const fn new(fields: &'static [Field]) -> Self {
        Self { fields, seen: 0 }
    }

    /// Returns the member of this key, which is UTF-8.
    pub(super) fn recognize(&mut self, key: &[u8]) -> Result<Option<Field>, OutlineError> {
        let folds = !key.is_ascii();
        for field in self.fields {
            let known = field.key();
            if known.len() != key.len() && !folds {
                continue;
            }
            if known.as_bytes() == key {
                let bit = 1 << *field as u32;
                if self.seen & bit != 0 {
                    return Err(OutlineError::Duplicate(field.path()));
                }
                self.seen |= bit;
                return Ok(Some(*field));
            }
            if looks_like(key, known) {
                return Err(OutlineError::Case(field.path()));
            }
        }
        Ok(None)
    }
}

/// Returns whether a reader that ignores case takes `key` for `known`.
///
/// Servers written in Go do, and take two further letters for ASCII ones.
///
/// # Source
/// Go's `encoding/json`, which matches keys by Unicode simple folding.
fn looks_like(key: &[u8], known: &str) -> bool {
    if key.is_ascii() {
        return key.eq_ignore_ascii_case(known.as_bytes());
    }
    let folded = str::from_utf8(key)
        .unwrap_or_default()
        .chars()
        .map(|char| match char {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            char => char.to_ascii_lowercase(),
        });
    folded.eq(known.chars())
}
