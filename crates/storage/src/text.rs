//! Foreign text on its way into a row.

use std::sync::Arc;

/// Longest model name, agent or reason that is stored, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 256;

/// Returns text that both databases accept: without NUL, which PostgreSQL refuses and SQLite takes,
/// and not longer than [`MAX_TEXT_BYTES`]. Text that is fine is not copied.
pub(crate) fn clean(text: &Arc<str>) -> Arc<str> {
    if text.len() <= MAX_TEXT_BYTES && !text.as_bytes().contains(&0) {
        Arc::clone(text)
    } else {
        Arc::from(cleaned(text))
    }
}

/// As [`clean`], for text that is copied anyway.
pub(crate) fn cleaned(text: &str) -> String {
    let mut clean = text.replace('\0', "\u{fffd}");
    clean.truncate(clean.floor_char_boundary(MAX_TEXT_BYTES));
    clean
}

/// Words of closed types as shared text: a batch binds each many times, and sharing costs less than
/// a copy.
#[derive(Default)]
pub(crate) struct Words(Vec<Arc<str>>);

impl Words {
    pub(crate) fn share(&mut self, word: &str) -> Arc<str> {
        if let Some(shared) = self.0.iter().find(|known| ***known == *word) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = Arc::from(word);
        self.0.push(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nul_is_replaced_and_length_is_cut_between_characters() {
        assert_eq!(cleaned("a\0b"), "a\u{fffd}b");
        let long = "é".repeat(MAX_TEXT_BYTES);
        let cut = cleaned(&long);
        assert!(cut.len() <= MAX_TEXT_BYTES && long.starts_with(&cut));
        let odd = format!("x{}", "\0".repeat(MAX_TEXT_BYTES));
        assert!(cleaned(&odd).len() <= MAX_TEXT_BYTES);
    }

    #[test]
    fn fine_text_is_shared() {
        let text: Arc<str> = Arc::from("gpt-4o");
        assert!(Arc::ptr_eq(&text, &clean(&text)));
    }
}
