//! Chunks of a stream and whole answers, as far as they matter for counting.
//!
//! One pass over the text reads what nearly all servers send, without building anything; a chunk
//! that differs from an earlier one in its text alone is not even parsed. What does not fit is read
//! again as a tree, so that an unusual server costs time, not correctness.

mod frame;

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::json::mend_surrogates;
use crate::output::OutputText;

use self::frame::Frames;

/// What matters about one chunk, its text aside.
#[derive(Debug, Default)]
pub(crate) struct Chunk<'a> {
    /// Absent when `null`.
    pub(crate) usage: Option<&'a RawValue>,
    /// Absent when `null`.
    pub(crate) error: Option<&'a RawValue>,
    /// Whether it is an error without an envelope.
    pub(crate) is_flat_error: bool,
    /// Whether there is no choice.
    pub(crate) has_no_choice: bool,
    /// Whether a choice has ended.
    pub(crate) is_finishing: bool,
}

impl Chunk<'_> {
    /// Returns whether nothing matters about it but its text.
    const fn is_only_text(&self) -> bool {
        matches!(
            self,
            Self {
                usage: None,
                error: None,
                is_flat_error: false,
                has_no_choice: false,
                is_finishing: false,
            }
        )
    }
}

/// Reads chunks one after the other and reuses its memory.
#[derive(Debug, Default)]
pub(crate) struct ChunkReader {
    /// The text of all choices of one chunk.
    text: String,
    /// The index of each choice, and where its text ends.
    choices: Vec<(usize, usize)>,
    /// The index of each choice that has ended.
    ended: Vec<usize>,
    frames: Frames,
}

impl ChunkReader {
    /// Reads a chunk that differs from the one that was learned in its text alone.
    #[inline]
    pub(crate) fn find(&mut self, data: &[u8]) -> bool {
        let Some((choice, text)) = self.frames.find(data) else {
            return false;
        };
        self.text.clear();
        self.text.push_str(&text);
        self.choices.clear();
        self.choices.push((choice, self.text.len()));
        true
    }

    /// Learns from the chunk that was parsed last, if it is one of many that differ in their text
    /// alone; returns whether it did.
    pub(crate) fn learn(&mut self, data: &[u8], chunk: &Chunk<'_>) -> bool {
        match self.choices[..] {
            [(choice, _)] if chunk.is_only_text() => self.frames.learn(data, choice, &self.text),
            _ => false,
        }
    }

    /// Forgets what was learned.
    pub(crate) fn forget(&mut self) {
        self.frames.forget();
    }

    /// Returns the text of all choices of the chunk that was read last.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Reads what nearly all servers send; `None` for anything else, JSON or not.
    pub(crate) fn parse<'a>(&mut self, data: &'a [u8]) -> Option<Chunk<'a>> {
        self.text.clear();
        self.choices.clear();
        self.ended.clear();
        let text = str::from_utf8(data).ok()?;
        let mut chunk = Chunk::default();
        let mut json = serde_json::Deserializer::from_str(text);
        Object(ChunkMembers {
            chunk: &mut chunk,
            reader: self,
        })
        .deserialize(&mut json)
        .ok()?;
        json.end().ok()?;
        chunk.has_no_choice = self.choices.is_empty();
        chunk.is_finishing = !self.ended.is_empty();
        Some(chunk)
    }

    /// Returns the index of each choice that has ended in the chunk that was parsed last.
    pub(crate) fn ended(&self) -> &[usize] {
        &self.ended
    }

    /// Adds the text of the chunk that was read last.
    pub(crate) fn add_to(&self, output: &mut OutputText) {
        let mut start = 0;
        for (choice, end) in &self.choices {
            output.add(*choice, self.text.get(start..*end).unwrap_or_default());
            start = *end;
        }
    }
}

/// Reads the members of an object where they stand.
trait Members<'de> {
    fn read<A: MapAccess<'de>>(&mut self, members: A) -> Result<(), A::Error>;
}

/// An object or `null`.
struct Object<M>(M);

impl<'de, M: Members<'de>> DeserializeSeed<'de> for Object<M> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, M: Members<'de>> Visitor<'de> for Object<M> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or null")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, members: A) -> Result<(), A::Error> {
        self.0.read(members)
    }
}

/// A list of objects or `null`.
struct List<M>(M);

impl<'de, M: Members<'de>> DeserializeSeed<'de> for List<M> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, M: Members<'de>> Visitor<'de> for List<M> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or null")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Object(&mut self.0))?.is_some() {}
        Ok(())
    }
}

impl<'de, M: Members<'de>> Members<'de> for &mut M {
    fn read<A: MapAccess<'de>>(&mut self, members: A) -> Result<(), A::Error> {
        (**self).read(members)
    }
}

/// A text or `null`, handed to a function.
struct Text<F>(F);

impl<'de, F: FnOnce(&str)> DeserializeSeed<'de> for Text<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<F: FnOnce(&str)> Visitor<'_> for Text<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or null")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        (self.0)(text);
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The members of a chunk or of a whole answer.
struct ChunkMembers<'s, 'de> {
    chunk: &'s mut Chunk<'de>,
    reader: &'s mut ChunkReader,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum ChunkKey {
    Choices,
    Usage,
    Error,
    Object,
    Type,
    #[serde(other)]
    Other,
}

impl<'de> Members<'de> for ChunkMembers<'_, 'de> {
    fn read<A: MapAccess<'de>>(&mut self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key()? {
            match key {
                ChunkKey::Choices => {
                    members.next_value_seed(List(ChoiceMembers {
                        reader: self.reader,
                    }))?;
                }
                ChunkKey::Usage => self.chunk.usage = members.next_value()?,
                ChunkKey::Error => self.chunk.error = members.next_value()?,
                ChunkKey::Object | ChunkKey::Type => {
                    let is_error = &mut self.chunk.is_flat_error;
                    members.next_value_seed(Text(|word: &str| *is_error |= word == "error"))?;
                }
                ChunkKey::Other => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The members of a choice; `text` is that of `completions`.
struct ChoiceMembers<'s> {
    reader: &'s mut ChunkReader,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum ChoiceKey {
    Index,
    Delta,
    Message,
    Text,
    FinishReason,
    #[serde(other)]
    Other,
}

impl<'de> Members<'de> for ChoiceMembers<'_> {
    fn read<A: MapAccess<'de>>(&mut self, mut members: A) -> Result<(), A::Error> {
        let mut index: usize = 0;
        let mut has_ended = false;
        while let Some(key) = members.next_key()? {
            let text = &mut self.reader.text;
            match key {
                ChoiceKey::Index => index = members.next_value()?,
                ChoiceKey::Delta | ChoiceKey::Message => {
                    members.next_value_seed(Object(MessageMembers { text }))?;
                }
                ChoiceKey::Text => members.next_value_seed(append(text))?,
                ChoiceKey::FinishReason => {
                    members.next_value_seed(Text(|reason: &str| {
                        has_ended |= !reason.is_empty();
                    }))?;
                }
                ChoiceKey::Other => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        self.reader.choices.push((index, self.reader.text.len()));
        if has_ended {
            self.reader.ended.push(index);
        }
        Ok(())
    }
}

fn append(all: &mut String) -> Text<impl FnOnce(&str)> {
    Text(|text: &str| all.push_str(text))
}

/// The members of a message or of its delta.
struct MessageMembers<'s> {
    text: &'s mut String,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum MessageKey {
    Content,
    Refusal,
    ReasoningContent,
    Reasoning,
    ToolCalls,
    FunctionCall,
    #[serde(other)]
    Other,
}

impl<'de> Members<'de> for MessageMembers<'_> {
    fn read<A: MapAccess<'de>>(&mut self, mut members: A) -> Result<(), A::Error> {
        let mut has_reasoning = false;
        while let Some(key) = members.next_key()? {
            let text = &mut *self.text;
            match key {
                MessageKey::Content | MessageKey::Refusal => {
                    members.next_value_seed(append(text))?;
                }
                // Some servers send the same reasoning under both names.
                MessageKey::ReasoningContent | MessageKey::Reasoning if !has_reasoning => {
                    let before = text.len();
                    members.next_value_seed(append(text))?;
                    has_reasoning = text.len() > before;
                }
                MessageKey::ToolCalls => members.next_value_seed(List(CallMembers { text }))?,
                MessageKey::FunctionCall => {
                    members.next_value_seed(Object(CallMembers { text }))?;
                }
                MessageKey::ReasoningContent | MessageKey::Reasoning | MessageKey::Other => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The members of a call, and of the object with the word for its kind around it.
struct CallMembers<'s> {
    text: &'s mut String,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum CallKey {
    Function,
    Custom,
    Name,
    Arguments,
    Input,
    #[serde(other)]
    Other,
}

impl<'de> Members<'de> for CallMembers<'_> {
    fn read<A: MapAccess<'de>>(&mut self, mut members: A) -> Result<(), A::Error> {
        while let Some(key) = members.next_key()? {
            let text = &mut *self.text;
            match key {
                CallKey::Function | CallKey::Custom => {
                    members.next_value_seed(Object(CallMembers { text }))?;
                }
                CallKey::Name | CallKey::Arguments | CallKey::Input => {
                    members.next_value_seed(append(text))?;
                }
                CallKey::Other => {
                    members.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A chunk or an answer that does not have the usual types.
pub(crate) struct UnusualChunk(Value);

impl UnusualChunk {
    /// Parses any JSON, also with half a surrogate pair in a string.
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let parsed = serde_json::from_slice(data);
        parsed
            .or_else(|_| serde_json::from_slice(&mend_surrogates(data)))
            .ok()
            .map(Self)
    }

    pub(crate) fn usage(&self) -> Option<Vec<u8>> {
        let usage = self.0.get("usage").filter(|usage| usage.is_object())?;
        Some(usage.to_string().into_bytes())
    }

    pub(crate) fn error(&self) -> Option<Vec<u8>> {
        let error = self.0.get("error").filter(|error| !error.is_null())?;
        Some(error.to_string().into_bytes())
    }

    pub(crate) fn is_flat_error(&self) -> bool {
        ["object", "type"]
            .iter()
            .any(|key| self.0.get(key).is_some_and(|word| word == "error"))
    }

    pub(crate) fn has_no_choice(&self) -> bool {
        self.choices().is_empty()
    }

    /// Returns the index of each choice that has ended.
    pub(crate) fn ended(&self) -> impl Iterator<Item = usize> {
        let reason = |choice: &Value| choice.get("finish_reason")?.as_str().map(str::is_empty);
        let choices = self.choices().iter().enumerate();
        choices
            .filter(move |(_, choice)| reason(choice) == Some(false))
            .map(|(position, choice)| index_of(choice, position))
    }

    pub(crate) fn add_to(&self, output: &mut OutputText) {
        for (position, choice) in self.choices().iter().enumerate() {
            let index = index_of(choice, position);
            for key in ["text", "delta", "message"] {
                if let Some(part) = choice.get(key) {
                    add_leaves(part, index, output);
                }
            }
        }
    }

    fn choices(&self) -> &[Value] {
        self.0
            .get("choices")
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }
}

/// Returns the index of a choice; its position where it has none.
fn index_of(choice: &Value, position: usize) -> usize {
    let index = choice.get("index").and_then(Value::as_u64);
    index
        .and_then(|index| usize::try_from(index).ok())
        .unwrap_or(position)
}

/// Adds every text of a message, names of roles and types and identifiers aside.
pub(crate) fn add_leaves(value: &Value, choice: usize, output: &mut OutputText) {
    match value {
        Value::String(text) => output.add(choice, text),
        Value::Array(list) => list
            .iter()
            .for_each(|item| add_leaves(item, choice, output)),
        Value::Object(members) => {
            for (key, member) in members {
                match (key.as_str(), member) {
                    ("role" | "type" | "id" | "index", _) => {}
                    // Written as text by all others.
                    ("arguments" | "input", Value::Object(_) | Value::Array(_)) => {
                        output.add(choice, &member.to_string());
                    }
                    _ => add_leaves(member, choice, output),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
