//! Walks through the members of one JSON object, or the elements of one array, without a tree.
//!
//! The level that is walked is checked strictly. What lies deeper is skipped by its strings and
//! brackets; whoever needs it walks it in turn.

use std::borrow::Cow;
use std::ops::Range;

use crate::scan::{Malformed, Scanner};

/// A key that is looked at byte by byte is no longer than this.
const PLAIN_KEY_BYTES: usize = 32;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Number,
    Bool,
    Null,
}

impl Kind {
    /// Returns the kind as it reads in a sentence.
    pub(crate) const fn with_article(self) -> &'static str {
        match self {
            Self::Object => "an object",
            Self::Array => "an array",
            Self::String => "a string",
            Self::Number => "a number",
            Self::Bool => "a boolean",
            Self::Null => "null",
        }
    }
}

/// One value as it stands in the text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Value<'a> {
    pub(crate) kind: Kind,
    /// All of it: quotes and brackets included.
    pub(crate) raw: &'a [u8],
    /// Offset of `raw` in the walked text.
    pub(crate) start: usize,
}

impl<'a> Value<'a> {
    pub(crate) const fn range(&self) -> Range<usize> {
        self.start..self.start + self.raw.len()
    }

    /// Returns what a string says; `None` for another kind or for half a surrogate pair.
    pub(crate) fn as_str(&self) -> Option<Cow<'a, str>> {
        if self.kind == Kind::String {
            decode(self.raw)
        } else {
            None
        }
    }

    /// Returns `true` or `false`; `None` for another kind.
    pub(crate) fn as_bool(&self) -> Option<bool> {
        if self.kind == Kind::Bool {
            Some(self.raw == b"true")
        } else {
            None
        }
    }

    /// Returns a whole number, also one that is written as `12.0` or `1e3`.
    pub(crate) fn as_integer(&self) -> Option<i64> {
        /// Whole numbers up to here are exact in a double: 2^53.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        if self.kind != Kind::Number {
            return None;
        }
        let text = str::from_utf8(self.raw).ok()?;
        if let Ok(number) = text.parse::<i64>() {
            return Some(number);
        }
        let number = text.parse::<f64>().ok()?;
        if number.fract() != 0.0 || number.abs() > EXACT {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "whole and inside the exact range"
        )]
        let number = number as i64;
        Some(number)
    }
}

/// One member of an object.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    /// Decoded; always UTF-8.
    pub(crate) key: Cow<'a, [u8]>,
    pub(crate) value: Value<'a>,
}

/// Walks through one object or array that fills its text.
#[derive(Debug)]
pub(crate) struct Walker<'a> {
    text: &'a [u8],
    scanner: Scanner<'a>,
    at: usize,
    close: u8,
    is_first: bool,
    /// Containers that are open around the walked one.
    depth: u32,
}

impl<'a> Walker<'a> {
    /// Opens the object that is all of `text`, white space aside.
    pub(crate) fn object(text: &'a [u8], depth: u32) -> Result<Self, Malformed> {
        Self::open(text, depth, (b'{', b'}'), "it is not an object")
    }

    /// Opens the array that is all of `text`, white space aside.
    pub(crate) fn array(text: &'a [u8], depth: u32) -> Result<Self, Malformed> {
        Self::open(text, depth, (b'[', b']'), "it is not an array")
    }

    fn open(
        text: &'a [u8],
        depth: u32,
        (open, close): (u8, u8),
        reason: &'static str,
    ) -> Result<Self, Malformed> {
        let mut walker = Self {
            text,
            scanner: Scanner::new(text),
            at: 0,
            close,
            is_first: true,
            depth,
        };
        walker.skip_space();
        if walker.peek() != Some(open) {
            return Err(Malformed::new(walker.at, reason));
        }
        walker.at += 1;
        Ok(walker)
    }

    /// Returns the position behind the value that was read last, or behind the opening bracket.
    pub(crate) const fn position(&self) -> usize {
        self.at
    }

    /// Returns the next member; at the end, checks that nothing but white space follows.
    pub(crate) fn next_member(&mut self) -> Result<Option<Member<'a>>, Malformed> {
        if !self.go_on()? {
            return Ok(None);
        }
        if self.peek() != Some(b'"') {
            return Err(Malformed::new(self.at, "a key in quotes is missing"));
        }
        let key = match self.plain_key() {
            Some(key) => Cow::Borrowed(key),
            None => self.any_key()?,
        };
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(Malformed::new(self.at, "a colon is missing"));
        }
        self.at += 1;
        self.skip_space();
        let value = self.value()?;
        Ok(Some(Member { key, value }))
    }

    /// Returns a short key without escapes and steps over it, which is what nearly all keys are.
    ///
    /// The scanner need not hear of it: it reads every block in order, whatever is asked of it.
    fn plain_key(&mut self) -> Option<&'a [u8]> {
        let rest = self.text.get(self.at + 1..)?;
        let window = rest.get(..PLAIN_KEY_BYTES.min(rest.len()))?;
        let end = window
            .iter()
            .position(|byte| matches!(byte, b'"' | b'\\' | ..0x20 | 0x7f..))?;
        if window.get(end) != Some(&b'"') {
            return None;
        }
        let key = window.get(..end)?;
        self.at += end + 2;
        Some(key)
    }

    fn any_key(&mut self) -> Result<Cow<'a, [u8]>, Malformed> {
        let key = self.value()?;
        match key.as_str() {
            Some(Cow::Borrowed(text)) => Ok(Cow::Borrowed(text.as_bytes())),
            Some(Cow::Owned(text)) => Ok(Cow::Owned(text.into_bytes())),
            None => {
                let reason = "a key holds half a surrogate pair";
                Err(Malformed::new(key.start, reason))
            }
        }
    }

    /// Returns the next element; at the end, checks that nothing but white space follows.
    pub(crate) fn next_element(&mut self) -> Result<Option<Value<'a>>, Malformed> {
        if self.go_on()? {
            self.value().map(Some)
        } else {
            Ok(None)
        }
    }

    /// Steps over the comma, or over the closing bracket and what follows.
    fn go_on(&mut self) -> Result<bool, Malformed> {
        self.skip_space();
        if self.peek() == Some(self.close) {
            self.at += 1;
            self.skip_space();
            if self.at < self.text.len() {
                return Err(Malformed::new(self.at, "something follows the end"));
            }
            self.scanner.finish()?;
            return Ok(false);
        }
        if !self.is_first {
            if self.peek() != Some(b',') {
                return Err(Malformed::new(self.at, "a comma or the end is missing"));
            }
            self.at += 1;
            self.skip_space();
        }
        self.is_first = false;
        Ok(true)
    }

    fn value(&mut self) -> Result<Value<'a>, Malformed> {
        let start = self.at;
        let (kind, end) = match self.peek() {
            Some(b'"') => {
                let end = self.scanner.string_end(start)? + 1;
                check_escapes(self.text.get(start..end).unwrap_or_default(), start)?;
                (Kind::String, end)
            }
            Some(b'{') => (
                Kind::Object,
                self.scanner.container_end(start, self.depth + 1)? + 1,
            ),
            Some(b'[') => (
                Kind::Array,
                self.scanner.container_end(start, self.depth + 1)? + 1,
            ),
            Some(b't') => (Kind::Bool, self.literal(b"true")?),
            Some(b'f') => (Kind::Bool, self.literal(b"false")?),
            Some(b'n') => (Kind::Null, self.literal(b"null")?),
            Some(b'-' | b'0'..=b'9') => (Kind::Number, self.number()?),
            _ => return Err(Malformed::new(start, "a value is missing")),
        };
        self.at = end;
        Ok(Value {
            kind,
            raw: self.text.get(start..end).unwrap_or_default(),
            start,
        })
    }

    fn literal(&self, word: &[u8]) -> Result<usize, Malformed> {
        let end = self.at + word.len();
        if self.text.get(self.at..end) == Some(word) {
            Ok(end)
        } else {
            Err(Malformed::new(
                self.at,
                "a value is neither true, false nor null",
            ))
        }
    }

    fn number(&self) -> Result<usize, Malformed> {
        let wrong = |at| Malformed::new(at, "a number is malformed");
        let byte = |at: usize| self.text.get(at).copied();
        let digits = |mut at: usize| {
            while byte(at).is_some_and(|b| b.is_ascii_digit()) {
                at += 1;
            }
            at
        };
        let mut at = self.at;
        if byte(at) == Some(b'-') {
            at += 1;
        }
        at = match byte(at) {
            Some(b'0') => at + 1,
            Some(b'1'..=b'9') => digits(at),
            _ => return Err(wrong(at)),
        };
        if byte(at) == Some(b'.') {
            let end = digits(at + 1);
            if end == at + 1 {
                return Err(wrong(end));
            }
            at = end;
        }
        if matches!(byte(at), Some(b'e' | b'E')) {
            at += 1;
            if matches!(byte(at), Some(b'+' | b'-')) {
                at += 1;
            }
            let end = digits(at);
            if end == at {
                return Err(wrong(end));
            }
            at = end;
        }
        Ok(at)
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    #[inline]
    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }
}

/// Checks the escapes of a string that begins at `start`.
fn check_escapes(string: &[u8], start: usize) -> Result<(), Malformed> {
    let mut at = 0;
    while let Some(step) = memchr::memchr(b'\\', string.get(at..).unwrap_or_default()) {
        at += step;
        let is_fine = match string.get(at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => true,
            Some(b'u') => string
                .get(at + 2..at + 6)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
            _ => false,
        };
        if !is_fine {
            return Err(Malformed::new(start + at, "an escape is malformed"));
        }
        at += 2;
    }
    Ok(())
}

/// Returns what a quoted string says.
pub(crate) fn decode(quoted: &[u8]) -> Option<Cow<'_, str>> {
    let inner = quoted.get(1..quoted.len().checked_sub(1)?)?;
    if memchr::memchr(b'\\', inner).is_none() {
        return str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice::<String>(quoted)
        .ok()
        .map(Cow::Owned)
}

/// Replaces halves of surrogate pairs by the character for what cannot be read.
///
/// Servers write such halves when they cut a character in two; most clients read them.
pub(crate) fn mend_surrogates(text: &[u8]) -> Vec<u8> {
    fn unit(text: &[u8], at: usize) -> Option<u16> {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
    }

    let mut mended = text.to_vec();
    let mut at = 0;
    while let Some(step) = memchr::memchr(b'\\', mended.get(at..).unwrap_or_default()) {
        at += step;
        at += match (unit(&mended, at), unit(&mended, at + 6)) {
            (None, _) => 2,
            (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => 12,
            (Some(0xd800..=0xdfff), _) => {
                if let Some(digits) = mended.get_mut(at + 2..at + 6) {
                    digits.copy_from_slice(b"fffd");
                }
                6
            }
            (Some(_), _) => 6,
        };
    }
    mended
}

/// Writes a string in quotes.
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            char if char < ' ' => {
                quoted.push_str("\\u00");
                quoted.push(char::from_digit(u32::from(char) >> 4, 16).unwrap_or('0'));
                quoted.push(char::from_digit(u32::from(char) & 15, 16).unwrap_or('0'));
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(text: &str) -> Result<Vec<(String, Kind, String)>, Malformed> {
        let mut walker = Walker::object(text.as_bytes(), 0)?;
        let mut members = Vec::new();
        while let Some(Member { key, value }) = walker.next_member()? {
            let raw = str::from_utf8(value.raw).unwrap().to_owned();
            let key = String::from_utf8(key.into_owned()).unwrap();
            members.push((key, value.kind, raw));
        }
        Ok(members)
    }

    #[test]
    fn members_come_in_order_with_their_bytes() {
        let text = " { \"a\" : \"x\\\"y\" , \"\\u0062\":[1, {}] ,\"c\":{\"d\":\"}\"},\"e\":-1.5e+3,\
                    \"f\":true,\"g\":false,\"h\":null } \n";
        let expected = [
            ("a", Kind::String, "\"x\\\"y\""),
            ("b", Kind::Array, "[1, {}]"),
            ("c", Kind::Object, "{\"d\":\"}\"}"),
            ("e", Kind::Number, "-1.5e+3"),
            ("f", Kind::Bool, "true"),
            ("g", Kind::Bool, "false"),
            ("h", Kind::Null, "null"),
        ]
        .map(|(key, kind, raw)| (key.to_owned(), kind, raw.to_owned()));
        assert_eq!(members(text).unwrap(), expected);
    }

    #[test]
    fn the_walked_level_is_checked_strictly() {
        for text in [
            "",
            " ",
            "[]",
            "1",
            "{",
            "}",
            "{}}",
            "{} x",
            "{,}",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":.5}",
            "{\"a\":-}",
            "{\"a\":1e}",
            "{\"a\":+1}",
            "{\"a\":nul}",
            "{\"a\":truE}",
            "{\"a\":True}",
            "{\"a\":NaN}",
            "{\"a\":'b'}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":\"\\u12\"}",
            "{\"a\":\"\n\"}",
            "{'a':1}",
            "{1:1}",
            "{\"a\":1}{}",
            "{\"a\":[1,2}",
            "{\"a\":\"b}",
            "{\"\\ud800\":1}",
            "{/**/}",
            "\u{feff}{}",
        ] {
            assert!(members(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_decimal() {
        let integer = |raw: &'static str| {
            Value {
                kind: Kind::Number,
                raw: raw.as_bytes(),
                start: 0,
            }
            .as_integer()
        };
        assert_eq!(integer("12"), Some(12));
        assert_eq!(integer("12.0"), Some(12));
        assert_eq!(integer("-1e3"), Some(-1000));
        assert_eq!(integer("9223372036854775807"), Some(i64::MAX));
        assert_eq!(integer("12.5"), None);
        assert_eq!(integer("9223372036854775808"), None);
        assert_eq!(integer("1e999"), None);
    }

    #[test]
    fn only_halves_of_surrogate_pairs_are_mended() {
        for (text, mended) in [
            (r"\ud83d\ude00", r"\ud83d\ude00"),
            (r"\ud83d", r"\ufffd"),
            (r"\ude00\ud83d", r"\ufffd\ufffd"),
            (r"\ud83d\ud83d\ude00x", r"\ufffd\ud83d\ude00x"),
            (r"\\ud83d \\\ud83d \u00e4", r"\\ud83d \\\ufffd \u00e4"),
            (r"\ud8", r"\ud8"),
            (r"\", r"\"),
        ] {
            assert_eq!(
                mend_surrogates(text.as_bytes()),
                mended.as_bytes(),
                "{text}"
            );
        }
    }

    #[test]
    fn elements_come_in_order() {
        let mut walker = Walker::array(b" [1, \"a\", [2]] ", 0).unwrap();
        let mut kinds = Vec::new();
        while let Some(value) = walker.next_element().unwrap() {
            kinds.push(value.kind);
        }
        assert_eq!(kinds, [Kind::Number, Kind::String, Kind::Array]);
        assert!(
            Walker::array(b"[]", 0)
                .unwrap()
                .next_element()
                .unwrap()
                .is_none()
        );
    }

    proptest! {
        #[test]
        fn a_quoted_text_reads_back(text in any::<String>()) {
            prop_assert_eq!(&serde_json::from_str::<String>(&quote(&text)).unwrap(), &text);
            let quoted = quote(&text);
            prop_assert_eq!(decode(quoted.as_bytes()).unwrap(), text);
        }
    }
}
