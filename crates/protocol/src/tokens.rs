//! Counting tokens here, for providers that do not report them and for estimates.
//!
//! The tables are large and are loaded on first use. Counting costs some 13 µs per KiB: keep large
//! texts off the thread that relays.

use std::sync::atomic::{AtomicBool, Ordering};

use bpe_openai::Tokenizer;
use serde_json::Value;
use sluice_domain::route::Endpoint;

use crate::anthropic;
use crate::json::{Kind, Member, Walker};

/// Tokens around each message of a chat.
///
/// # Source
/// OpenAI cookbook, "How to count tokens with tiktoken".
const TOKENS_PER_MESSAGE: i64 = 3;
/// Tokens of a message's name beside its text; source as above.
const TOKENS_PER_NAME: i64 = 1;
/// Tokens that open the answer; source as above.
const TOKENS_OF_REPLY: i64 = 3;

/// Tokens of an image in low detail.
///
/// # Source
/// OpenAI's guide to images: 85 in low detail, else 85 and 170 per tile.
const TOKENS_PER_LOW_IMAGE: i64 = 85;
/// Tokens of an image in any other detail, taken as one of 1024 × 1024 pixels: four tiles.
///
/// Recorded speech and files, whose length is not known here either, count the same.
const TOKENS_PER_IMAGE: i64 = 765;

static IS_LOADED: AtomicBool = AtomicBool::new(false);

/// A table of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `o200k_base`: GPT-4o and later, and the stand-in for models that publish none.
    O200kBase,
    /// `cl100k_base`: GPT-4, GPT-3.5 and the embedding models.
    Cl100kBase,
}

impl Encoding {
    /// Returns the encoding of a model by its name; a vendor and a slash may stand before it.
    pub fn of_model(model: &str) -> Self {
        let name = model.rsplit('/').next().unwrap_or(model);
        let is_gpt_4 = name == "gpt-4" || name.starts_with("gpt-4-");
        let older = ["gpt-3.5", "gpt-35", "text-embedding-"];
        if is_gpt_4 || older.iter().any(|prefix| name.starts_with(prefix)) {
            Self::Cl100kBase
        } else {
            Self::O200kBase
        }
    }

    fn table(self) -> &'static Tokenizer {
        match self {
            Self::O200kBase => {
                let table = bpe_openai::o200k_base();
                IS_LOADED.store(true, Ordering::Relaxed);
                table
            }
            Self::Cl100kBase => bpe_openai::cl100k_base(),
        }
    }

    /// Counts the tokens of a text; special tokens count as the text that they are written with.
    ///
    /// # Units
    /// Tokens.
    pub fn count(self, text: &str) -> i64 {
        if text.is_empty() {
            return 0;
        }
        i64::try_from(self.table().count(text)).unwrap_or(i64::MAX)
    }
}

/// Loads the table of `o200k_base`, which takes some tens of milliseconds.
///
/// That of `cl100k_base` is loaded when a model needs it.
pub fn preload() {
    Encoding::O200kBase.table();
}

/// Returns whether the table of `o200k_base` is loaded.
pub fn is_loaded() -> bool {
    IS_LOADED.load(Ordering::Relaxed)
}

/// Counts the tokens of a text by `o200k_base`.
///
/// # Units
/// Tokens.
pub fn count_text(text: &str) -> i64 {
    Encoding::O200kBase.count(text)
}

/// Counts the input of a request by the encoding of its model.
///
/// For chats that is OpenAI's published formula; tools and schemas count as their JSON text, images
/// a flat number by their detail. For messages it is an estimate: their tokenizer is not public. A body that cannot be read counts as text.
///
/// # Units
/// Tokens.
pub fn count_prompt(endpoint: Endpoint, model: &str, body: &[u8]) -> i64 {
    let encoding = Encoding::of_model(model);
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return encoding.count(&String::from_utf8_lossy(body));
    };
    match endpoint {
        Endpoint::ChatCompletions => sum([
            count_messages(encoding, &request),
            count_shapes(encoding, body),
            TOKENS_OF_REPLY,
        ]),
        Endpoint::Completions => {
            let parts = ["prompt", "suffix"].map(|key| count_input(encoding, request.get(key)));
            sum(parts)
        }
        Endpoint::Embeddings => count_input(encoding, request.get("input")),
        Endpoint::Messages | Endpoint::CountTokens => anthropic::prompt::count(encoding, &request),
    }
}

fn count_messages(encoding: Encoding, request: &Value) -> i64 {
    let messages = request.get("messages").and_then(Value::as_array);
    sum(messages
        .into_iter()
        .flatten()
        .map(|message| count_message(encoding, message)))
}

/// Counts what stands beside the messages in the form in which it was sent.
fn count_shapes(encoding: Encoding, body: &[u8]) -> i64 {
    let mut count: i64 = 0;
    let Ok(mut members) = Walker::object(body, 0) else {
        return 0;
    };
    while let Ok(Some(Member { key, value })) = members.next_member() {
        let is_shape = matches!(&*key, b"tools" | b"functions" | b"response_format");
        if is_shape && value.kind != Kind::Null {
            count = count.saturating_add(encoding.count(&String::from_utf8_lossy(value.raw)));
        }
    }
    count
}

fn count_message(encoding: Encoding, message: &Value) -> i64 {
    let texts = ["role", "name", "reasoning_content", "refusal"].map(|key| {
        message
            .get(key)
            .and_then(Value::as_str)
            .map_or(0, |text| encoding.count(text))
    });
    let name = if message.get("name").is_some_and(Value::is_string) {
        TOKENS_PER_NAME
    } else {
        0
    };
    let content = message
        .get("content")
        .map_or(0, |content| count_content(encoding, content));
    let calls = message
        .get("tool_calls")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let calls = calls
        .flat_map(|call| [call.get("function"), call.get("custom")])
        .chain([message.get("function_call")])
        .flatten()
        .map(|call| count_call(encoding, call));
    sum(texts
        .into_iter()
        .chain([TOKENS_PER_MESSAGE, name, content])
        .chain(calls))
}

fn count_call(encoding: Encoding, call: &Value) -> i64 {
    sum(
        ["name", "arguments", "input"].map(|key| match call.get(key) {
            Some(Value::String(text)) => encoding.count(text),
            Some(Value::Null) | None => 0,
            Some(other) => encoding.count(&other.to_string()),
        }),
    )
}

fn count_content(encoding: Encoding, content: &Value) -> i64 {
    match content {
        Value::String(text) => encoding.count(text),
        Value::Array(parts) => sum(parts.iter().map(|part| count_part(encoding, part))),
        _ => 0,
    }
}

fn count_part(encoding: Encoding, part: &Value) -> i64 {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "image_url" => {
            let detail = part.get("image_url").and_then(|image| image.get("detail"));
            let is_low = detail.and_then(Value::as_str) == Some("low");
            if is_low {
                TOKENS_PER_LOW_IMAGE
            } else {
                TOKENS_PER_IMAGE
            }
        }
        "input_audio" | "file" => TOKENS_PER_IMAGE,
        _ => match part {
            Value::String(text) => encoding.count(text),
            part => sum(["text", "refusal"].map(|key| {
                part.get(key)
                    .and_then(Value::as_str)
                    .map_or(0, |text| encoding.count(text))
            })),
        },
    }
}

/// Counts a text, a list of texts, a list of tokens, or a list of lists of tokens.
fn count_input(encoding: Encoding, input: Option<&Value>) -> i64 {
    match input {
        Some(Value::String(text)) => encoding.count(text),
        Some(Value::Number(_)) => 1,
        Some(Value::Array(items)) => {
            sum(items.iter().map(|item| count_input(encoding, Some(item))))
        }
        _ => 0,
    }
}

fn sum(parts: impl IntoIterator<Item = i64>) -> i64 {
    parts.into_iter().fold(0, i64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: &str) -> i64 {
        count_prompt(Endpoint::ChatCompletions, "gpt-4o", body.as_bytes())
    }

    #[test]
    fn the_encoding_follows_the_name_of_the_model() {
        for model in [
            "gpt-4",
            "gpt-4-0613",
            "gpt-4-turbo",
            "gpt-3.5-turbo",
            "gpt-35-turbo",
            "openai/gpt-4",
            "text-embedding-3-small",
        ] {
            assert_eq!(Encoding::of_model(model), Encoding::Cl100kBase, "{model}");
        }
        for model in [
            "gpt-4o",
            "gpt-4.1",
            "gpt-4.5-preview",
            "gpt-5",
            "o3",
            "deepseek-chat",
            "",
            "a/b",
        ] {
            assert_eq!(Encoding::of_model(model), Encoding::O200kBase, "{model}");
        }
    }

    /// Numbers of OpenAI's own tokenizer.
    #[test]
    fn counts_are_those_of_the_published_tables() {
        assert_eq!(Encoding::Cl100kBase.count("tiktoken is great!"), 6);
        assert_eq!(count_text("hello world"), 2);
        assert_eq!(count_text(""), 0);
        assert!(is_loaded());
    }

    /// The example of the cookbook, whose numbers OpenAI's API confirmed.
    #[test]
    fn a_chat_counts_as_in_the_cookbook() {
        let body = r#"{"messages":[
            {"role":"system","content":"You are a helpful, pattern-following assistant that translates corporate jargon into plain English."},
            {"role":"system","name":"example_user","content":"New synergies will help drive top-line growth."},
            {"role":"system","name":"example_assistant","content":"Things working well together will increase revenue."},
            {"role":"system","name":"example_user","content":"Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage."},
            {"role":"system","name":"example_assistant","content":"Let's talk later when we're less busy about how to do better."},
            {"role":"user","content":"This late pivot means we don't have time to boil the ocean for the client deliverable."}]}"#;
        let count = |model| count_prompt(Endpoint::ChatCompletions, model, body.as_bytes());
        assert_eq!(count("gpt-4-0613"), 129);
        assert_eq!(count("gpt-3.5-turbo"), 129);
        assert_eq!(count("gpt-4o"), 124);
    }

    #[test]
    fn parts_of_a_message_are_added_up() {
        let plain = chat(r#"{"messages":[{"role":"user","content":"hello world"}]}"#);
        assert_eq!(plain, 3 + 1 + 2 + 3);
        let part = |part: &str| {
            let text = r#"{"type":"text","text":"hello world"}"#;
            chat(&format!(
                r#"{{"messages":[{{"role":"user","content":[{text},{part}]}}]}}"#
            )) - plain
        };
        assert_eq!(
            part(r#"{"type":"image_url","image_url":{"url":"data:x","detail":"low"}}"#),
            85
        );
        assert_eq!(
            part(r#"{"type":"image_url","image_url":{"url":"data:x"}}"#),
            765
        );
        assert_eq!(
            part(r#"{"type":"input_audio","input_audio":{"data":"AAAA"}}"#),
            765
        );
        assert_eq!(part(r#"{"type":"text","text":"hello world"}"#), 2);
        assert_eq!(part(r#"{"type":"unknown"}"#), 0);
    }

    #[test]
    fn tools_and_calls_count_as_text() {
        let plain = chat(r#"{"messages":[]}"#);
        assert_eq!(plain, 3);
        let tools = r#"[{"type":"function","function":{"name":"f"}}]"#;
        let with_tools = chat(&format!(
            r#"{{"messages":[],"tools":{tools},"functions":null}}"#
        ));
        assert_eq!(with_tools - plain, count_text(tools));
        let call = |call: &str| {
            chat(&format!(
                r#"{{"messages":[{{"role":"assistant","content":null,{call}}}]}}"#
            )) - 3
                - 3
                - 1
        };
        let expected = count_text("lookup") + count_text("{\"a\":1}");
        assert_eq!(
            call(
                r#""tool_calls":[{"id":"c","type":"function","function":{"name":"lookup","arguments":"{\"a\":1}"}}]"#
            ),
            expected
        );
        assert_eq!(
            call(r#""tool_calls":[{"custom":{"name":"lookup","input":"{\"a\":1}"}}]"#),
            expected
        );
        assert_eq!(
            call(r#""function_call":{"name":"lookup","arguments":{"a":1}}"#),
            expected
        );
    }

    #[test]
    fn inputs_of_each_form_are_counted() {
        let count = |endpoint, body: &str| {
            count_prompt(endpoint, "text-embedding-3-small", body.as_bytes())
        };
        assert_eq!(count(Endpoint::Embeddings, r#"{"input":"hello world"}"#), 2);
        assert_eq!(
            count(Endpoint::Embeddings, r#"{"input":["hello world","hello"]}"#),
            3
        );
        assert_eq!(count(Endpoint::Embeddings, r#"{"input":[1,2,3]}"#), 3);
        assert_eq!(count(Endpoint::Embeddings, r#"{"input":[[1,2],[3]]}"#), 3);
        assert_eq!(
            count(
                Endpoint::Completions,
                r#"{"prompt":"hello world","suffix":" hello"}"#
            ),
            3
        );
        assert_eq!(count(Endpoint::Completions, "{}"), 0);
    }

    #[test]
    fn a_body_that_is_not_json_counts_as_text() {
        assert_eq!(chat("hello world"), 2);
    }
}
