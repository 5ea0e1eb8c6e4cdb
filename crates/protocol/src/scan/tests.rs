use proptest::prelude::*;

use super::*;

fn container_end(text: &str) -> Result<usize, Malformed> {
    let mut scanner = Scanner::new(text.as_bytes());
    let end = scanner.container_end(0, 0)?;
    scanner.finish()?;
    Ok(end)
}

#[test]
fn a_container_ends_at_its_own_bracket() {
    assert_eq!(container_end(r#"[{"a":"]"},[]] "#), Ok(13));
    assert_eq!(container_end(r#"{"\\":"\"}"}"#), Ok(11));
}

#[test]
fn a_bracket_of_another_kind_closes_nothing() {
    assert!(container_end("[}").is_err());
    assert!(container_end("{\"a\":[}]").is_err());
}

#[test]
fn what_is_not_closed_is_refused() {
    for text in ["[", "[[]", "[\"", "[\"\\\"]", "{\"a\":{}"] {
        assert!(container_end(text).is_err(), "{text}");
    }
}

#[test]
fn control_characters_are_refused_inside_strings_only() {
    assert!(container_end("[\n\"a\"\r\t]").is_ok());
    for control in 0..0x20_u8 {
        assert!(container_end(&format!("[\"{}\"]", char::from(control))).is_err());
    }
}

#[test]
fn a_backslash_outside_of_a_string_is_refused() {
    assert!(container_end(r#"[\"a"]"#).is_err());
    assert!(container_end(r"[\\]").is_err());
}

#[test]
fn nesting_has_a_limit() {
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(container_end(&nested(128)).is_ok());
    assert_eq!(container_end(&nested(129)).unwrap_err().at, 128);
}

#[test]
fn invalid_utf8_is_refused_wherever_it_stands() {
    for at in 0..300 {
        let mut text = vec![b'x'; 300];
        text[at] = 0xe4;
        let mut scanner = Scanner::new(&text);
        assert_eq!(scanner.finish(), Err(Malformed::new(at, "it is not UTF-8")));
    }
}

#[test]
fn characters_of_several_bytes_may_lie_across_blocks() {
    for lead in 0..70 {
        let text = format!("{}äöü\u{1f600}€{}", "x".repeat(lead), "y".repeat(130));
        assert_eq!(Scanner::new(text.as_bytes()).finish(), Ok(()));
    }
}

/// Reads byte by byte what the scanner computes in parallel.
fn naive(text: &[u8]) -> (Vec<usize>, Vec<usize>) {
    let (mut quotes, mut brackets) = (Vec::new(), Vec::new());
    let (mut in_string, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        if in_string && escaped {
            escaped = false;
            continue;
        }
        match byte {
            b'\\' if in_string => escaped = true,
            b'"' => {
                in_string = !in_string;
                quotes.push(at);
            }
            b'[' | b']' | b'{' | b'}' if !in_string => brackets.push(at),
            _ => {}
        }
    }
    (quotes, brackets)
}

proptest! {
    #[test]
    fn both_ways_to_read_a_block_agree(block in prop::array::uniform32(any::<u8>()), other in prop::array::uniform32(prop::sample::select(b"\"\\{}[]\n\x1f \x80a".as_slice()))) {
        let mut bytes = [0; BLOCK];
        bytes[..32].copy_from_slice(&block);
        bytes[32..].copy_from_slice(&other);
        prop_assert_eq!(lanes::marks(&bytes), portable::marks(&bytes));
        prop_assert_eq!(lanes::brackets(&bytes), portable::brackets(&bytes));
        prop_assert_eq!(lanes::controls(&bytes), portable::controls(&bytes));
        for (at, byte) in bytes.iter().enumerate() {
            let bit = |mask: u64| mask >> at & 1 == 1;
            let marks = portable::marks(&bytes);
            prop_assert_eq!(bit(marks.quotes), *byte == b'"');
            prop_assert_eq!(bit(marks.backslashes), *byte == b'\\');
            prop_assert_eq!(bit(portable::brackets(&bytes)), b"[]{}".contains(byte));
            prop_assert_eq!(bit(portable::controls(&bytes)), *byte < 0x20);
        }
    }

    #[test]
    fn strings_and_brackets_are_those_of_a_reading_byte_by_byte(text in prop::collection::vec(prop::sample::select(b"\"\\\\{}[]ab".as_slice()), 0..400)) {
        let (quotes, brackets) = naive(&text);
        let mut scanner = Scanner::new(&text);
        let (mut seen_quotes, mut seen_brackets) = (Vec::new(), Vec::new());
        let stray = loop {
            match scanner.advance() {
                Ok(true) => {}
                Ok(false) => break None,
                Err(malformed) => break Some(malformed.at),
            }
            for bit in 0..BLOCK {
                if scanner.quotes >> bit & 1 == 1 {
                    seen_quotes.push(scanner.end - BLOCK + bit);
                }
                if scanner.brackets >> bit & 1 == 1 {
                    seen_brackets.push(scanner.end - BLOCK + bit);
                }
            }
        };
        if let Some(at) = stray {
            prop_assert_eq!(text[at], b'\\');
            prop_assert_eq!(quotes.iter().filter(|quote| **quote < at).count() % 2, 0);
        } else {
            prop_assert_eq!(seen_quotes, quotes);
            prop_assert_eq!(seen_brackets, brackets);
        }
    }
}
