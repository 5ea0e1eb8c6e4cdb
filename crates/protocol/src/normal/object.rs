//! One JSON object as a list of members whose values stay text.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::json::{decode, quote};

/// The members of an object in their order; values that nobody sets stay as they were written.
#[derive(Debug, Default)]
pub(super) struct Object<'a> {
    members: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Whether anything is not as it was read.
    pub(super) is_changed: bool,
}

impl<'a> Object<'a> {
    /// Reads an object; `None` for any other value.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns the text of a member; where a key stands twice, of the last one, as clients read it.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.members.iter().rev().find(|(name, _)| name == key);
        found.map(|(_, value)| &**value)
    }

    /// Returns the text of a member as it was read; `None` where it was written since.
    pub(super) fn read(&self, key: &str) -> Option<&'a str> {
        let found = self.members.iter().rev().find(|(name, _)| name == key);
        found.and_then(|(_, value)| match value {
            Cow::Borrowed(text) => Some(*text),
            Cow::Owned(_) => None,
        })
    }

    /// Writes a member, at the end where it is not there yet.
    pub(super) fn set(&mut self, key: &'static str, value: impl Into<Cow<'a, str>>) {
        self.is_changed = true;
        let value = value.into();
        match self.members.iter_mut().rev().find(|(name, _)| name == key) {
            Some((_, place)) => *place = value,
            None => self.members.push((Cow::Borrowed(key), value)),
        }
    }

    /// Removes a member.
    pub(super) fn remove(&mut self, key: &str) {
        let before = self.members.len();
        self.members.retain(|(name, _)| name != key);
        self.is_changed |= self.members.len() < before;
    }

    /// Writes the object.
    pub(super) fn to_json(&self) -> String {
        let length = |(key, value): &(Cow<'_, str>, Cow<'_, str>)| key.len() + value.len() + 4;
        let mut json = String::with_capacity(self.members.iter().map(length).sum::<usize>() + 2);
        json.push('{');
        for (key, value) in &self.members {
            if json.len() > 1 {
                json.push(',');
            }
            json.push_str(&quote(key));
            json.push(':');
            json.push_str(value);
        }
        json.push('}');
        json
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;

        impl<'de> Visitor<'de> for Members {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut object = Object::default();
                while let Some(Key(key)) = map.next_key()? {
                    let value: &RawValue = map.next_value()?;
                    object.members.push((key, Cow::Borrowed(value.get())));
                }
                Ok(object)
            }
        }

        deserializer.deserialize_map(Members)
    }
}

/// A key, not copied where it has no escape.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads the elements of an array; `None` for any other value.
pub(super) fn elements(text: &str) -> Option<Vec<&str>> {
    let elements: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(elements.into_iter().map(RawValue::get).collect())
}

/// Writes an array.
pub(super) fn array<S: AsRef<str>>(elements: impl IntoIterator<Item = S>) -> String {
    let mut json = String::from("[");
    for element in elements {
        if json.len() > 1 {
            json.push(',');
        }
        json.push_str(element.as_ref());
    }
    json.push(']');
    json
}

/// Returns what a string says, if it is one and says something.
pub(super) fn said(value: Option<&str>) -> Option<Cow<'_, str>> {
    let value = value.filter(|value| value.starts_with('"') && *value != "\"\"")?;
    // What holds half a character is still something that was said.
    Some(decode(value.as_bytes()).unwrap_or(Cow::Borrowed(value)))
}

/// Returns whether there is no value: no member, or `null`.
pub(super) fn is_absent(value: Option<&str>) -> bool {
    value.is_none_or(|value| value == "null")
}
