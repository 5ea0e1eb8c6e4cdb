//! Reads usage objects byte by byte, in the form in which nearly all servers write them.
//!
//! It takes half of what the parser takes. Whatever looks unusual is left to the parser, so that it
//! costs time, not correctness: only what both would read alike is read here. A member that the
//! parser is taught must be taught here too.

use super::{CompletionDetails, Count, MAX_TOKENS, PromptDetails, Usage};

/// Reads the usage object at the beginning of a text, and how many bytes it takes.
///
/// `None` when something in it is unusual: nothing is known then, not even whether it is JSON.
pub(super) fn read_first(text: &[u8]) -> Option<(Usage, usize)> {
    let mut cursor = Cursor { text, at: 0 };
    let mut usage = Usage::default();
    let mut seen = Seen::default();
    cursor.skip_space();
    cursor.object(|cursor, key| {
        match key {
            b"prompt_tokens" | b"input_tokens" => {
                seen.once(0)?;
                usage.prompt_tokens = cursor.count()?;
            }
            b"completion_tokens" | b"output_tokens" => {
                seen.once(1)?;
                usage.completion_tokens = cursor.count()?;
            }
            b"total_tokens" => {
                seen.once(2)?;
                usage.total_tokens = cursor.count()?;
            }
            b"prompt_tokens_details" | b"input_tokens_details" => {
                seen.once(3)?;
                cursor.prompt_details(&mut usage.prompt_tokens_details)?;
            }
            b"completion_tokens_details" | b"output_tokens_details" => {
                seen.once(4)?;
                cursor.completion_details(&mut usage.completion_tokens_details)?;
            }
            b"prompt_cache_hit_tokens" => {
                seen.once(5)?;
                usage.prompt_cache_hit_tokens = cursor.count()?;
            }
            _ => cursor.skip_member(key)?,
        }
        Some(())
    })?;
    Some((usage, cursor.at))
}

/// The members that were there. One that comes twice is unusual.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    fn once(&mut self, member: u8) -> Option<()> {
        let bit = 1 << member;
        let is_new = self.0 & bit == 0;
        self.0 |= bit;
        is_new.then_some(())
    }
}

/// A place in a text. Each method steps over what it reads; `None` where that is not there.
struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// Hands each member to `member`, which reads its value.
    #[inline]
    fn object(&mut self, mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>) -> Option<()> {
        self.byte(b'{')?;
        self.skip_space();
        if self.peek()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            let key = self.key()?;
            self.skip_space();
            self.byte(b':')?;
            self.skip_space();
            member(self, key)?;
            self.skip_space();
            let end = self.peek()?;
            self.at += 1;
            match end {
                b',' => self.skip_space(),
                b'}' => return Some(()),
                _ => return None,
            }
        }
    }

    fn prompt_details(&mut self, to: &mut Option<PromptDetails>) -> Option<()> {
        if self.peek()? == b'n' {
            return self.word(b"null");
        }
        let mut details = PromptDetails::default();
        let mut seen = Seen::default();
        self.object(|cursor, key| {
            match key {
                b"cached_tokens" => {
                    seen.once(0)?;
                    details.cached_tokens = cursor.count()?;
                }
                b"cache_write_tokens" => {
                    seen.once(1)?;
                    details.cache_write_tokens = cursor.count()?;
                }
                _ => cursor.skip_member(key)?,
            }
            Some(())
        })?;
        *to = Some(details);
        Some(())
    }

    fn completion_details(&mut self, to: &mut Option<CompletionDetails>) -> Option<()> {
        if self.peek()? == b'n' {
            return self.word(b"null");
        }
        let mut details = CompletionDetails::default();
        let mut seen = Seen::default();
        self.object(|cursor, key| {
            if key == b"reasoning_tokens" {
                seen.once(0)?;
                details.reasoning_tokens = cursor.count()?;
                Some(())
            } else {
                cursor.skip_member(key)
            }
        })?;
        *to = Some(details);
        Some(())
    }

    /// What stands between the quotes of a key, up to the first quote in it: a key that matters is
    /// known by all of its bytes, and of others [`skip_member`](Self::skip_member) checks them.
    #[inline]
    fn key(&mut self) -> Option<&'a [u8]> {
        self.byte(b'"')?;
        let rest = self.text.get(self.at..)?;
        let end = memchr::memchr(b'"', rest)?;
        self.at += end + 1;
        rest.get(..end)
    }

    /// A whole number in plain digits, or `null`.
    #[inline]
    fn count(&mut self) -> Option<Count> {
        if self.peek()? == b'n' {
            return self.word(b"null").map(|()| Count(None));
        }
        let start = self.at;
        let mut number: i64 = 0;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            number = number * 10 + i64::from(digit - b'0');
            // Checked at every digit, so that the number cannot overflow.
            if number > MAX_TOKENS {
                return None;
            }
            self.at += 1;
        }
        self.ends_digits(start)?;
        // A fraction or an exponent is refused where a comma or the end must follow.
        Some(Count(Some(number)))
    }

    /// The value of a member that does not matter, if it holds no other values and its key is of
    /// ASCII characters without escapes.
    fn skip_member(&mut self, key: &[u8]) -> Option<()> {
        if key
            .iter()
            .any(|byte| matches!(byte, b'\\' | ..0x20 | 0x80..))
        {
            return None;
        }
        match self.peek()? {
            b'n' => self.word(b"null"),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'0'..=b'9' => {
                let start = self.at;
                self.skip_digits();
                self.ends_digits(start)?;
                if self.peek() == Some(b'.') {
                    self.at += 1;
                    let start = self.at;
                    self.skip_digits();
                    if self.at == start {
                        return None;
                    }
                }
                Some(())
            }
            _ => None,
        }
    }

    #[inline]
    fn skip_digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    /// Checks that the digits since `start` are a number: at least one, and no zero before others.
    #[inline]
    fn ends_digits(&self, start: usize) -> Option<()> {
        match self.at - start {
            0 => None,
            1 => Some(()),
            _ => (self.text.get(start) != Some(&b'0')).then_some(()),
        }
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.text.get(self.at..)?.strip_prefix(word)?;
        self.at += word.len();
        Some(())
    }

    #[inline]
    fn byte(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::usage::{parse, parse_first, read};

    /// Returns what the parser makes of it; the reference.
    fn by_parser(text: &[u8]) -> Option<(Usage, usize)> {
        parse_first(text)
    }

    #[test]
    fn what_providers_send_is_read_without_the_parser() {
        for raw in [
            r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}"#,
            r#"{ "prompt_tokens": 90, "completion_tokens": 30, "total_tokens": 120,
                "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 12, "audio_tokens": 0,
                    "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0} }"#,
            r#"{"prompt_tokens":1,"completion_tokens":2,"prompt_cache_hit_tokens":1,"prompt_cache_miss_tokens":0}"#,
            r#"{"queue_time":0.0417,"prompt_tokens":1,"completion_tokens":2,"total_tokens":null,
                "prompt_tokens_details":null,"completion_tokens_details":null,"is_byok":false}"#,
            r#"{"input_tokens":8,"output_tokens":2,"input_tokens_details":{},"output_tokens_details":{}}"#,
            "{}",
        ] {
            let plain = read_first(raw.as_bytes());
            assert!(plain.is_some(), "{raw}");
            assert_eq!(plain, by_parser(raw.as_bytes()), "{raw}");
        }
    }

    #[test]
    fn what_is_unusual_is_left_to_the_parser() {
        for raw in [
            r#"{"prompt_tokens":9.0}"#,
            r#"{"prompt_tokens":9e0}"#,
            r#"{"prompt_tokens":-1}"#,
            r#"{"prompt_tokens":09}"#,
            r#"{"prompt_tokens":1099511627777}"#,
            r#"{"prompt_tokens":99999999999999999999999999}"#,
            r#"{"prompt_tokens":}"#,
            r#"{"prompt_tokens":"9"}"#,
            r#"{"prompt_tokens":9,"input_tokens":9}"#,
            r#"{"prompt_tokens":null,"prompt_tokens":9}"#,
            r#"{"prompt\u005ftokens":9}"#,
            r#"{"cost":"1"}"#,
            r#"{"cost":1.}"#,
            r#"{"cost":nul}"#,
            r#"{"cost_details":{"a":1}}"#,
            r#"{"prompt_tokens":9,}"#,
            r#"{"prompt_tokens":9"#,
            "[9,3,12]",
            "null",
            "",
        ] {
            assert_eq!(read_first(raw.as_bytes()), None, "{raw}");
        }
    }

    fn key() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "prompt_tokens",
            "input_tokens",
            "completion_tokens",
            "output_tokens",
            "total_tokens",
            "prompt_tokens_details",
            "input_tokens_details",
            "completion_tokens_details",
            "output_tokens_details",
            "prompt_cache_hit_tokens",
            "cached_tokens",
            "cache_write_tokens",
            "reasoning_tokens",
            "cost",
            "x",
            "",
            "prompt\\u005ftokens",
            "pröm\\\"pt",
        ])
    }

    fn scalar() -> impl Strategy<Value = String> {
        prop_oneof![
            6 => (0_i64..10_000).prop_map(|n| n.to_string()),
            1 => any::<i64>().prop_map(|n| n.to_string()),
            1 => any::<f64>().prop_map(|n| n.to_string()),
            1 => ((MAX_TOKENS - 1)..=(MAX_TOKENS + 1)).prop_map(|n| n.to_string()),
            3 => prop::sample::select(vec![
                "null", "true", "false", "0", "-0", "00", "01", "12.0", "0.5", "1.", ".5", "1e3",
                "1E+2", "-", "\"9\"", "[]", "[1]", "nul", "9a", "18446744073709551616", "",
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn space() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "", "", "", " ", "\n\t ", "\r\n"])
    }

    fn object(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
        let member = (space(), key(), space(), space(), value, space())
            .prop_map(|(a, key, b, c, value, d)| format!("{a}\"{key}\"{b}:{c}{value}{d}"));
        (prop::collection::vec(member, 0..6), space())
            .prop_map(|(members, end)| format!("{{{}{end}}}", members.join(",")))
    }

    fn usage() -> impl Strategy<Value = String> {
        let value = prop_oneof![3 => scalar(), 1 => object(scalar())];
        (
            space(),
            object(value),
            prop::sample::select(vec!["", "", " ", "}", ",\"a\":1}", "x"]),
        )
            .prop_map(|(before, object, after)| format!("{before}{object}{after}"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]

        #[test]
        fn both_ways_read_alike(text in usage()) {
            let text = text.as_bytes();
            if let Some(plain) = read_first(text) {
                prop_assert_eq!(Some(plain), by_parser(text));
            }
            prop_assert_eq!(read(text), parse(text).and_then(Usage::into_form));
        }

        #[test]
        fn both_ways_read_damaged_text_alike(
            text in usage(),
            at in any::<prop::sample::Index>(),
            byte in prop::sample::select(b"{}[]:,\"\\ 0n19.e-\x00\xff".to_vec()),
            cut in any::<bool>(),
        ) {
            let mut text = text.into_bytes();
            let at = at.index(text.len());
            if cut {
                text.truncate(at);
            } else {
                text[at] = byte;
            }
            if let Some(plain) = read_first(&text) {
                prop_assert_eq!(Some(plain), by_parser(&text));
            }
            prop_assert_eq!(read(&text), parse(&text).and_then(Usage::into_form));
        }
    }
}
