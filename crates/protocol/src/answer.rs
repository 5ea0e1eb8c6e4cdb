//! Answers that come in one piece.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use memchr::memmem;
use sluice_domain::route::{Endpoint, Protocol};
use sluice_domain::usage::TokenUsage;

use crate::anthropic;
use crate::chunk::{ChunkReader, UnusualChunk};
use crate::failure::{self, ErrorEvent};
use crate::json::{Kind, Walker};
use crate::output::OutputText;
use crate::scan::Malformed;
use crate::usage;

/// What matters about an answer with a status of success.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerFacts {
    /// Whether it is one JSON object, as far as its outermost level shows.
    pub is_json_object: bool,
    /// The usage that the provider reported.
    pub usage: Option<TokenUsage>,
    /// The error that it holds in spite of its status.
    pub error: Option<ErrorEvent>,
}

/// Members that may stand behind the usage in the short way, in bytes.
const MAX_TAIL: usize = 1_024;

/// The key of the usage, as it stands in nearly all answers.
const USAGE_KEY: &[u8] = b"\"usage\"";
/// How far from the end of an answer it nearly always stands, in bytes.
const NEAR_END: usize = 512;

/// Reads what matters about an answer with a status of success.
///
/// Costs some 80 ns per KiB, whatever the answer holds.
pub fn inspect(endpoint: Endpoint, body: &[u8]) -> AnswerFacts {
    let body = without_mark(body).trim_ascii_end();
    if endpoint.protocol() == Protocol::Anthropic {
        return anthropic::answer::inspect(body).unwrap_or_default();
    }
    plain_facts(body)
        .or_else(|| read_facts(body).ok())
        .unwrap_or_default()
}

/// Reads the facts of an answer as providers nearly always send it: no error in it, and the usage
/// as one of its last members. `None` when it does not look so; nothing is known then.
fn plain_facts(body: &[u8]) -> Option<AnswerFacts> {
    static ERROR: LazyLock<memmem::Finder<'static>> =
        LazyLock::new(|| memmem::Finder::new(b"\"error\""));

    if !body.starts_with(b"{") || !body.ends_with(b"}") || ERROR.find(body).is_some() {
        return None;
    }
    let at = last_usage_key(body)?;
    if body.get(at.checked_sub(1)?) == Some(&b'\\') {
        return None;
    }
    let value = body
        .get(at + USAGE_KEY.len()..)?
        .trim_ascii_start()
        .strip_prefix(b":")?;
    let (usage, length) = usage::read_first(value)?;
    // An object that leaves only the end of the answer open is one of its own members.
    let tail = value.get(length..)?;
    if tail.len() > MAX_TAIL || closed_levels(tail)? != 1 {
        return None;
    }
    Some(AnswerFacts {
        is_json_object: true,
        usage,
        error: None,
    })
}

/// Returns where the key of the usage stands last.
fn last_usage_key(body: &[u8]) -> Option<usize> {
    static USAGE: LazyLock<memmem::FinderRev<'static>> =
        LazyLock::new(|| memmem::FinderRev::new(USAGE_KEY));

    // A search for one letter has nothing to set up; beyond a few hundred bytes the other wins.
    let far = body.len().saturating_sub(NEAR_END);
    let near = body.get(far..)?;
    memchr::memrchr_iter(b'u', near)
        .filter_map(|letter| letter.checked_sub(1))
        .find(|quote| near.get(*quote..).is_some_and(|s| s.starts_with(USAGE_KEY)))
        .map(|quote| far + quote)
        .or_else(|| USAGE.rfind(body))
}

/// Returns how many containers the text closes beyond those that it opens; `None` when it stands
/// inside a string or goes on behind the last of them.
fn closed_levels(tail: &[u8]) -> Option<i32> {
    let mut level = 0;
    let mut rest = tail;
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        match byte {
            b'{' | b'[' => level -= 1,
            b'}' | b']' => level += 1,
            b'"' => rest = behind_string(rest)?,
            _ => {}
        }
    }
    Some(level)
}

/// Returns what follows the string of which `text` is all but the opening quote.
fn behind_string(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        let at = memchr::memchr2(b'"', b'\\', text)?;
        let is_end = text.get(at) == Some(&b'"');
        // Behind a backslash stands one more byte of the string.
        text = text.get(if is_end { at + 1 } else { at + 2 }..)?;
        if is_end {
            return Some(text);
        }
    }
}

fn read_facts(body: &[u8]) -> Result<AnswerFacts, Malformed> {
    let mut walker = Walker::object(without_mark(body), 0)?;
    let mut facts = AnswerFacts {
        is_json_object: true,
        ..AnswerFacts::default()
    };
    let mut is_flat_error = false;
    while let Some(member) = walker.next_member()? {
        let value = member.value;
        match (&*member.key, value.kind) {
            (b"usage", _) => facts.usage = usage::read(value.raw),
            (b"error", Kind::Null) => {}
            (b"error", _) => facts.error = failure::of_member(value.raw),
            (b"object" | b"type", Kind::String) => {
                is_flat_error |= value.as_str().as_deref() == Some("error");
            }
            _ => {}
        }
    }
    if is_flat_error && facts.error.is_none() {
        facts.error = Some(failure::of_event(without_mark(body)));
    }
    Ok(facts)
}

/// Removes white space and a byte order mark from both ends, without a copy.
///
/// # Source
/// DeepSeek sends blank lines while a request waits for its turn.
pub fn trim(body: Bytes) -> Bytes {
    let trimmed = without_mark(&body).trim_ascii();
    if trimmed.len() == body.len() {
        body
    } else {
        body.slice_ref(trimmed)
    }
}

fn without_mark(body: &[u8]) -> &[u8] {
    let body = body.trim_ascii_start();
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// Counts the output of an answer with a tokenizer; costs some 13 µs per KiB of text.
///
/// # Units
/// Tokens; zero for what has no output, such as embeddings, and for what cannot be read.
pub fn count_output(endpoint: Endpoint, body: &[u8]) -> i64 {
    if !endpoint.has_output() {
        return 0;
    }
    let mut output = OutputText::default();
    let body = without_mark(body);
    if endpoint.protocol() == Protocol::Anthropic {
        anthropic::answer::add_to(body, &mut output);
        return output.count();
    }
    let mut reader = ChunkReader::default();
    if reader.parse(body).is_some() {
        reader.add_to(&mut output);
    } else if let Some(answer) = UnusualChunk::parse(body) {
        answer.add_to(&mut output);
    }
    output.count()
}

/// Writes embeddings that are lists of numbers as base64 of little-endian 32-bit floats.
///
/// Everything else stays byte for byte. `None` when there is no such list.
///
/// # Source
/// `openai` for Node 6.49 asks for base64 unasked and reads a list of numbers as an empty vector.
pub fn embeddings_to_base64(body: &Bytes) -> Option<Bytes> {
    let mut out = Vec::new();
    let mut copied = 0;
    let base = body.len() - without_mark(body).len();
    let mut answer = Walker::object(body.get(base..)?, 0).ok()?;
    while let Some(member) = answer.next_member().ok()? {
        if *member.key != *b"data" || member.value.kind != Kind::Array {
            continue;
        }
        let base = base + member.value.start;
        let mut items = Walker::array(member.value.raw, 1).ok()?;
        while let Some(item) = items.next_element().ok()? {
            if item.kind != Kind::Object {
                continue;
            }
            let base = base + item.start;
            let mut item = Walker::object(item.raw, 2).ok()?;
            while let Some(member) = item.next_member().ok()? {
                let value = member.value;
                if *member.key != *b"embedding" || value.kind != Kind::Array {
                    continue;
                }
                let Ok(vector) = serde_json::from_slice::<Vec<f32>>(value.raw) else {
                    continue;
                };
                let range = value.range();
                out.extend_from_slice(body.get(copied..base + range.start)?);
                let bytes: Vec<u8> = vector
                    .iter()
                    .flat_map(|number| number.to_le_bytes())
                    .collect();
                out.push(b'"');
                out.extend_from_slice(STANDARD.encode(bytes).as_bytes());
                out.push(b'"');
                copied = base + range.end;
            }
        }
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(body.get(copied..)?);
    Some(out.into())
}

/// Reads what an upstream says about an error, in any of the known shapes.
///
/// Lengths are bounded; what cannot be read gives a generic text that names the status.
pub fn error_of(status: u16, body: &[u8]) -> ErrorEvent {
    failure::of_answer(status, body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::tokens::count_text;

    fn chat(body: &str) -> AnswerFacts {
        inspect(Endpoint::ChatCompletions, body.as_bytes())
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            prop::sample::select(vec![
                "usage",
                "a\"usage\": {",
                "}",
                "error",
                "\\",
                "]",
                "\"usage\""
            ])
            .prop_map(Value::from),
            (0..50_i64, 0..50_i64)
                .prop_map(|(a, b)| json!({"prompt_tokens": a, "completion_tokens": b})),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map(
                    prop::sample::select(vec!["usage", "choices", "x\"usage", "error", "id"])
                        .prop_map(str::to_owned),
                    inner,
                    0..4
                )
                .prop_map(|members| Value::from(serde_json::Map::from_iter(members))),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_short_way_finds_what_the_long_way_finds(value in any_value(), is_pretty in any::<bool>()) {
            let text = if is_pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            if let Some(facts) = plain_facts(text.as_bytes()) {
                prop_assert_eq!(Some(facts), read_facts(text.as_bytes()).ok());
            }
        }
    }

    #[test]
    fn the_short_way_is_taken_for_what_providers_send() {
        let answer = json!({
            "id": "x", "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "{\"usage\": {"}}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}},
            "service_tier": "default", "system_fingerprint": null,
        });
        let facts = plain_facts(answer.to_string().as_bytes()).unwrap();
        assert_eq!(facts.usage.unwrap().total(), 5);
        let nested = json!({"choices": [{"usage": {"prompt_tokens": 9}}]}).to_string();
        assert_eq!(plain_facts(nested.as_bytes()), None);
    }

    #[test]
    fn the_last_usage_is_found_near_the_end_and_far_from_it() {
        for (before, after) in [
            (0, 0),
            (0, 600),
            (600, 0),
            (2_000, 500),
            (2_000, 504),
            (9, 505),
        ] {
            for first in ["", "\"usage\":{},"] {
                let text = format!(
                    "{first}{}\"usage\":{{}},\"uuu\":\"u{}",
                    "u".repeat(before),
                    "u".repeat(after)
                );
                assert_eq!(
                    last_usage_key(text.as_bytes()),
                    text.rfind("\"usage\""),
                    "{text}"
                );
            }
        }
        for text in ["", "u", "usage", "\"usage", "sage\"", "\"Usage\""] {
            assert_eq!(last_usage_key(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn usage_is_found_behind_blank_lines_and_large_choices() {
        let text = "x\\\" \"usage\":{} "
            .repeat(5_000)
            .replace('"', "\\\"")
            .replace("\\\\\"", "\\\"");
        let body = format!(
            "\n\n \r\n{{\"choices\":[{{\"message\":{{\"content\":\"{text}\"}}}}],\"error\":null,\
             \"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12}}}}\n"
        );
        let facts = chat(&body);
        assert!(facts.is_json_object);
        assert_eq!(
            facts.usage,
            Some(TokenUsage {
                input: 5,
                output: 7,
                ..TokenUsage::default()
            })
        );
        assert_eq!(facts.error, None);
        let trimmed = trim(Bytes::from(body));
        assert!(trimmed.starts_with(b"{") && trimmed.ends_with(b"}"));
    }

    #[test]
    fn an_error_in_spite_of_success_is_found() {
        let message = |body| chat(body).error.map(|error| (error.message, error.code));
        let error =
            |text: &str, code: Option<&str>| Some((text.to_owned(), code.map(str::to_owned)));
        assert_eq!(
            message(r#"{"error":{"message":"no","code":402}}"#),
            error("no", Some("402"))
        );
        assert_eq!(message(r#"{"error":"no"}"#), error("no", None));
        assert_eq!(
            message(r#"{"object":"error","message":"no","code":400}"#),
            error("no", Some("400"))
        );
        assert_eq!(message(r#"{"id":"x","error":null}"#), None);
        assert_eq!(message(r#"{"object":"chat.completion"}"#), None);
    }

    #[test]
    fn what_is_not_an_object_has_no_facts() {
        for body in [
            "",
            "<html>",
            "[]",
            r#"{"usage":{"prompt_tokens":1}"#,
            r#"{"a":1} x"#,
        ] {
            assert_eq!(chat(body), AnswerFacts::default(), "{body}");
        }
    }

    #[test]
    fn a_body_without_white_space_around_is_not_copied() {
        let body = Bytes::from_static(b"{\"a\": 1}");
        assert_eq!(trim(body.clone()).as_ptr(), body.as_ptr());
        assert_eq!(trim(Bytes::from_static(b"\xef\xbb\xbf {} ")), "{}");
        assert_eq!(trim(Bytes::from_static(b" \n")), "");
    }

    #[test]
    fn the_text_of_all_choices_is_counted() {
        let body = r#"{"choices":[
            {"index":0,"message":{"role":"assistant","content":"Hello world","reasoning_content":null,"tool_calls":null}},
            {"index":1,"message":{"content":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"lookup","arguments":"{\"a\":1}"}}]}}]}"#;
        let expected = count_text("Hello world") + count_text("lookup{\"a\":1}");
        assert_eq!(
            count_output(Endpoint::ChatCompletions, body.as_bytes()),
            expected
        );
        let body = r#"{"choices":[{"text":" one two","index":0},{"text":"three","index":1}]}"#;
        assert_eq!(count_output(Endpoint::Completions, body.as_bytes()), 3);
        assert_eq!(count_output(Endpoint::Embeddings, body.as_bytes()), 0);
        assert_eq!(count_output(Endpoint::ChatCompletions, b"<html>"), 0);
    }

    #[test]
    fn an_answer_with_unusual_types_is_counted_too() {
        let body = r#"{"choices":[{"message":{"role":"assistant","content":[{"type":"text","text":"Hello world"}],
            "tool_calls":[{"function":{"name":"lookup","arguments":{"a":1}}}]}}]}"#;
        let expected = count_text("Hello worldlookup{\"a\":1}");
        let counted = count_output(Endpoint::ChatCompletions, body.as_bytes());
        assert!((counted - expected).abs() <= 1, "{counted} {expected}");
    }

    #[test]
    fn embeddings_become_base64_and_the_rest_stays() {
        let body = Bytes::from_static(
            br#" {"object":"list", "data":[{"embedding":[0.5,-1, 2e0],"index":0,"x":[1]},{"index":1,"embedding":"AAAA"},{"embedding":[]}],"model":"m"}"#,
        );
        assert_eq!(
            embeddings_to_base64(&body).unwrap(),
            &br#" {"object":"list", "data":[{"embedding":"AAAAPwAAgL8AAABA","index":0,"x":[1]},{"index":1,"embedding":"AAAA"},{"embedding":""}],"model":"m"}"#[..]
        );
    }

    #[test]
    fn embeddings_that_are_base64_already_stay() {
        for body in [
            r#"{"data":[{"embedding":"AAAA"}]}"#,
            r#"{"data":[{"embedding":[null]}]}"#,
            r#"{"data":null}"#,
            r#"{"data":[1]}"#,
            r#"{"data":[{"embedding":[1]}]"#,
            "x",
        ] {
            assert_eq!(
                embeddings_to_base64(&Bytes::from_static(body.as_bytes())),
                None,
                "{body}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_float_survives(vectors in prop::collection::vec(prop::collection::vec(prop::num::f32::NORMAL | prop::num::f32::ZERO, 0..20), 1..5)) {
            let data: Vec<Value> = vectors.iter().map(|vector| json!({"embedding": vector})).collect();
            let body = Bytes::from(json!({"data": data}).to_string());
            let after: Value = serde_json::from_slice(&embeddings_to_base64(&body).unwrap()).unwrap();
            for (item, vector) in after["data"].as_array().unwrap().iter().zip(&vectors) {
                let bytes = STANDARD.decode(item["embedding"].as_str().unwrap()).unwrap();
                let (words, _) = bytes.as_chunks::<4>();
                let read: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
                prop_assert_eq!(&read, vector);
            }
        }
    }
}
