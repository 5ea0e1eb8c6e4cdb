//! Counting the input of a message, as far as that is possible: the tokenizer is not public.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde_json::Value;

use crate::tokens::Encoding;

/// Tokens around each message.
const TOKENS_PER_MESSAGE: i64 = 4;
/// Tokens of an image of the largest size that is not scaled down.
///
/// # Source
/// Anthropic's guide to vision: width × height / 750, at most some 1,600.
const TOKENS_PER_IMAGE: i64 = 1_600;
/// Bytes of a document in base64 for each token, as a guess.
const BYTES_PER_TOKEN: usize = 8;

/// Counts the input of a message by the tokenizer of another model, which makes somewhat fewer tokens.
///
/// # Units
/// Tokens.
pub(crate) fn count(encoding: Encoding, request: &Value) -> i64 {
    let messages = request.get("messages").and_then(Value::as_array);
    let messages = messages.into_iter().flatten().map(|message| {
        let content = message.get("content");
        TOKENS_PER_MESSAGE + content.map_or(0, |content| count_content(encoding, content))
    });
    let system = request
        .get("system")
        .map_or(0, |system| count_content(encoding, system));
    let tools = request
        .get("tools")
        .filter(|tools| !tools.is_null())
        .map_or(0, |tools| encoding.count(&tools.to_string()));
    messages.chain([system, tools]).fold(0, i64::saturating_add)
}

fn count_content(encoding: Encoding, content: &Value) -> i64 {
    match content {
        Value::String(text) => encoding.count(text),
        Value::Array(blocks) => blocks
            .iter()
            .map(|block| count_block(encoding, block))
            .fold(0, i64::saturating_add),
        _ => 0,
    }
}

fn count_block(encoding: Encoding, block: &Value) -> i64 {
    let kind = block.get("type").and_then(Value::as_str);
    match kind.unwrap_or_default() {
        "image" => TOKENS_PER_IMAGE,
        "document" => count_document(encoding, block),
        "redacted_thinking" => 0,
        _ => {
            let texts = ["text", "thinking", "title", "name"]
                .map(|key| block.get(key).and_then(Value::as_str))
                .into_iter()
                .flatten()
                .map(|text| encoding.count(text));
            let input = block
                .get("input")
                .filter(|input| !input.is_null())
                .map_or(0, |input| encoding.count(&input.to_string()));
            let inner = block
                .get("content")
                .map_or(0, |content| count_content(encoding, content));
            texts.chain([input, inner]).fold(0, i64::saturating_add)
        }
    }
}

fn count_document(encoding: Encoding, document: &Value) -> i64 {
    let Some(source) = document.get("source") else {
        return 0;
    };
    let kind = source.get("type").and_then(Value::as_str);
    match (kind, source.get("data").and_then(Value::as_str)) {
        (Some("text"), Some(text)) => encoding.count(text),
        (Some("base64"), Some(data)) => {
            i64::try_from(data.len() / BYTES_PER_TOKEN).unwrap_or(i64::MAX)
        }
        _ => source
            .get("content")
            .map_or(0, |content| count_content(encoding, content)),
    }
}

/// Returns whether a part of the input may stand somewhere else, or hold more tokens than bytes:
/// images, documents, stored files, and what tools of the provider add while it answers.
///
/// A text that names such a thing in the same way is taken for one.
pub(crate) fn refers_elsewhere(body: &[u8]) -> bool {
    static ANYWHERE: LazyLock<[Finder<'static>; 5]> = LazyLock::new(|| {
        [
            "\"file_id\"",
            "\"mcp_servers\"",
            "\"web_search_",
            "\"web_fetch_",
            "\"code_execution_",
        ]
        .map(Finder::new)
    });
    // As keys they are common in the schemas of tools.
    static VALUES: LazyLock<[Finder<'static>; 3]> =
        LazyLock::new(|| ["\"url\"", "\"image\"", "\"document\""].map(Finder::new));
    let is_value = |at: usize| {
        let before = body.get(..at).unwrap_or_default().trim_ascii_end();
        before.ends_with(b":")
    };
    ANYWHERE.iter().any(|word| word.find(body).is_some())
        || VALUES.iter().any(|word| word.find_iter(body).any(is_value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use sluice_domain::route::Endpoint;

    use crate::request::refers_elsewhere;
    use crate::tokens::{count_prompt, count_text};

    fn count(body: &serde_json::Value) -> i64 {
        count_prompt(Endpoint::Messages, "claude-x", body.to_string().as_bytes())
    }

    #[test]
    fn system_messages_and_tools_are_counted() {
        let hello = count_text("Hello world");
        assert_eq!(
            count(&json!({"messages": [{"role": "user", "content": "Hello world"}]})),
            4 + hello
        );
        let blocks = json!({
            "system": [{"type": "text", "text": "Hello world", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello world"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "Hello world", "signature": "zzzz"},
                    {"type": "tool_use", "id": "t", "name": "look", "input": {"a": 1}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "Hello world"}]},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                ]},
            ],
            "tools": [{"name": "look", "input_schema": {}}],
        });
        let parts = [
            "look",
            r#"{"a":1}"#,
            r#"[{"input_schema":{},"name":"look"}]"#,
        ];
        let parts: i64 = parts.into_iter().map(count_text).sum();
        assert_eq!(count(&blocks), 3 * 4 + 4 * hello + parts + 1_600);
    }

    #[test]
    fn an_image_may_be_more_than_its_bytes_and_the_word_in_a_schema_is_none() {
        let is = |body: &str| refers_elsewhere(body.as_bytes(), Endpoint::Messages);
        assert!(is(r#"{"source":{"type":"url","url":"https://x"}}"#));
        assert!(is(r#"{"type" : "image"}"#));
        assert!(is(r#"{"source":{"type":"file","file_id":"f"}}"#));
        assert!(is(r#"{"tools":[{"type":"web_search_20250305"}]}"#));
        assert!(!is(
            r#"{"tools":[{"input_schema":{"properties":{"url":{"type":"string"},"image":{}},"required":["url"]}}]}"#
        ));
        assert!(!is(r#"{"text":"a \"url\": \"image\""}"#));
        let schema = br#"{"type":"image"}"#;
        assert!(!refers_elsewhere(schema, Endpoint::ChatCompletions));
    }
}
