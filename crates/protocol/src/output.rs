//! The text that a model wrote, kept until it is known whether it must be counted.

use crate::tokens;

/// Text beyond this is counted and dropped, in bytes.
///
/// Below the next power of two, up to which a growing string allocates.
const MAX_TEXT_BYTES: usize = 12 * 1024;

/// Text is kept up to here while the tokenizer would have to be loaded first, in bytes.
const MAX_UNCOUNTED_BYTES: usize = 1024 * 1024;

/// How far back from its end a text is searched for a place to cut it, in bytes.
const SEARCHED_BYTES: usize = 4 * 1024;

/// Answers of one request that are kept apart; further ones are counted as one.
const MAX_CHOICES: usize = 128;

/// The text of an answer, or the part of it that was read.
///
/// It keeps a bounded amount: earlier text is counted and dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputText {
    /// Tokens of the text that was dropped.
    counted: i64,
    /// What remains, by choice: the choices of a stream arrive in turns.
    texts: Vec<String>,
    /// How many pieces the text came in.
    pieces: i64,
    /// All of its bytes.
    bytes: i64,
}

/// No token of the tokenizers here is longer than this many bytes.
const MAX_TOKEN_BYTES: i64 = 128;

impl OutputText {
    /// Returns whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.counted == 0 && self.texts.iter().all(String::is_empty)
    }

    /// Returns a cheap bound from below while the text still comes: at least one token per piece, and
    /// one for as many bytes as the longest token has. It is never more than was written, because a
    /// request that a crash cuts off is charged by it.
    ///
    /// # Units
    /// Tokens.
    pub fn least_tokens(&self) -> i64 {
        self.pieces.max(self.bytes / MAX_TOKEN_BYTES)
    }

    /// Counts all of it with a tokenizer.
    ///
    /// Costs some 13 µs per KiB of text, and the loading of the tokenizer the first time.
    ///
    /// # Units
    /// Tokens.
    pub fn count(&self) -> i64 {
        let remaining = self.texts.iter().map(|text| tokens::count_text(text));
        remaining.fold(self.counted, i64::saturating_add)
    }

    /// Adds text to one choice: a piece as the model made it, which is whole tokens.
    #[inline]
    pub(crate) fn add(&mut self, choice: usize, text: &str) {
        if !text.is_empty() {
            self.pieces += 1;
            self.add_cut(choice, text);
        }
    }

    /// Adds text that may have been cut anywhere.
    #[inline]
    pub(crate) fn add_cut(&mut self, choice: usize, text: &str) {
        if text.is_empty() {
            return;
        }
        self.bytes = self
            .bytes
            .saturating_add(i64::try_from(text.len()).unwrap_or(i64::MAX));
        let choice = choice.min(MAX_CHOICES);
        if self.texts.len() <= choice {
            self.texts.resize_with(choice + 1, String::new);
        }
        if let Some(kept) = self.texts.get_mut(choice) {
            kept.push_str(text);
        }
    }

    /// Counts and drops what is too much to keep.
    pub(crate) fn shrink(&mut self) {
        let kept: usize = self.texts.iter().map(String::len).sum();
        if kept <= MAX_TEXT_BYTES || (kept <= MAX_UNCOUNTED_BYTES && !tokens::is_loaded()) {
            return;
        }
        for text in &mut self.texts {
            let end = last_boundary(text);
            let Some(head) = text.get(..end) else {
                continue;
            };
            self.counted = self.counted.saturating_add(tokens::count_text(head));
            text.drain(..end);
            text.shrink_to(MAX_TEXT_BYTES);
        }
    }
}

/// Returns where a text can be cut so that its parts have as many tokens as the whole.
///
/// That is before a space between a visible character and a letter: no tokenizer of the family joins
/// what stands on its two sides. A text without one is cut anywhere, which can add a token.
fn last_boundary(text: &str) -> usize {
    clean_boundary(text).unwrap_or_else(|| {
        let from = text.len().saturating_sub(SEARCHED_BYTES);
        text.floor_char_boundary(from.max(text.len() / 2))
    })
}

fn clean_boundary(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let from = bytes.len().saturating_sub(SEARCHED_BYTES);
    let tail = bytes.get(from..).unwrap_or_default();
    let is_boundary = |window: &[u8]| match window {
        [before, b' ', after] => !before.is_ascii_whitespace() && after.is_ascii_alphabetic(),
        _ => false,
    };
    tail.windows(3)
        .rposition(|window| before_is_ascii(window) && is_boundary(window))
        .map(|at| from + at + 1)
}

/// Keeps clear of characters of several bytes: some of them are white space.
fn before_is_ascii(window: &[u8]) -> bool {
    window.first().is_some_and(u8::is_ascii)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_bound_from_below_is_never_more_than_the_count() {
        let longest = " ".repeat(usize::try_from(MAX_TOKEN_BYTES).unwrap());
        for word in [
            " leather",
            " internationalization",
            " of",
            " 東",
            ".\n",
            &longest,
        ] {
            let (mut apart, mut at_once) = (OutputText::default(), OutputText::default());
            (0..40).for_each(|_| apart.add(0, word));
            at_once.add(0, &word.repeat(40));
            let least = at_once.least_tokens();
            assert!((1..=at_once.count()).contains(&least), "{word:?}: {least}");
            // Pieces are what the model made, and it makes whole tokens.
            assert_eq!(apart.least_tokens(), 40, "{word:?}");
        }
    }

    #[test]
    fn choices_that_arrive_in_turns_are_counted_apart() {
        let mut output = OutputText::default();
        for (first, second) in [("Hel", "Gut"), ("lo wor", "en Mor"), ("ld", "gen")] {
            output.add(0, first);
            output.add(1, second);
        }
        assert_eq!(
            output.count(),
            tokens::count_text("Hello world") + tokens::count_text("Guten Morgen")
        );
    }

    #[test]
    fn a_choice_with_an_absurd_index_needs_no_memory() {
        let mut output = OutputText::default();
        output.add(usize::MAX, "a");
        assert_eq!(output.texts.len(), MAX_CHOICES + 1);
        assert_eq!(output.count(), 1);
    }

    #[test]
    fn a_long_text_is_counted_as_it_grows_and_kept_short() {
        tokens::preload();
        let mut output = OutputText::default();
        let mut whole = String::new();
        for number in 0..20_000 {
            let word = format!(
                "{}word{number}",
                if number % 7 == 0 { ".\n\n" } else { " " }
            );
            output.add(0, &word);
            output.shrink();
            whole.push_str(&word);
            assert!(output.texts[0].capacity() <= 2 * MAX_TEXT_BYTES);
        }
        assert!(output.counted > 0);
        assert_eq!(output.count(), tokens::count_text(&whole));
    }

    #[test]
    fn a_text_without_spaces_is_bounded_too() {
        tokens::preload();
        let mut output = OutputText::default();
        let line = "敏捷的棕色狐狸跳过了懒狗。".repeat(4_000);
        output.add(0, &line);
        output.shrink();
        assert!(output.texts[0].len() <= SEARCHED_BYTES + 3);
        let exact = tokens::count_text(&line);
        assert!((exact..=exact + 2).contains(&output.count()));
    }

    proptest! {
        #[test]
        fn a_cut_changes_no_count(text in "([ \n.,a-zA-Z0-9'\u{e4}\u{a0}\u{2003}/-]{0,8} [a-z]{1,4}){1,40}") {
            if let Some(at) = clean_boundary(&text) {
                let (head, tail) = text.split_at(at);
                prop_assert_eq!(tokens::count_text(head) + tokens::count_text(tail), tokens::count_text(&text));
            }
        }
    }
}
