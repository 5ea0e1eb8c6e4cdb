//! Text whose tokens can be counted without a tokenizer.
//!
//! Each word of the [`VOCABULARY`], with a space before it, is exactly one token of `o200k_base` and
//! of `cl100k_base`, and a text of n such words is n tokens; a test of this crate checks it.

use serde_json::{Value, json};

/// The words that prompts and answers are made of.
pub const VOCABULARY: [&str; 40] = [
    "alpha", "river", "green", "table", "music", "winter", "paper", "stone", "garden", "window",
    "silver", "market", "bridge", "forest", "island", "summer", "letter", "mountain", "ocean",
    "yellow", "kitchen", "doctor", "planet", "engine", "camera", "castle", "corner", "desert",
    "dinner", "finger", "flower", "golden", "hammer", "handle", "honest", "jacket", "ladder",
    "leather", "mirror", "pocket",
];

/// Tokens of a message to the Anthropic API beside its words, as a relay that must guess counts them.
const PER_ANTHROPIC_MESSAGE: usize = 4;
/// Tokens of a chat prompt beside its words: per message, its role, and the start of the answer.
const PER_MESSAGE: usize = 3;
const PER_ROLE: usize = 1;
const PER_ANSWER: usize = 3;

/// Returns the word at a position of an endless text, with the space before it.
pub fn word(position: usize) -> String {
    format!(" {}", VOCABULARY[position % VOCABULARY.len()])
}

/// Returns a text of `count` words, each with a space before it: exactly `count` tokens.
pub fn text(count: usize) -> String {
    (0..count).map(word).collect()
}

/// Returns a user message of `count` words: `{"role":"user","content":" alpha river …"}`.
pub fn prompt(count: usize) -> Value {
    json!({"role": "user", "content": text(count)})
}

/// Returns the body of a chat request with one user message of `count` words.
///
/// Index it to say more: `body["stream"] = true.into()`.
pub fn chat_request(model: &str, count: usize) -> Value {
    json!({"model": model, "messages": [prompt(count)]})
}

/// Returns the body of a legacy completion request with a prompt of `count` words.
pub fn completion_request(model: &str, count: usize) -> Value {
    json!({"model": model, "prompt": text(count)})
}

/// Returns the body of an embedding request with one input of `count` words.
pub fn embedding_request(model: &str, count: usize) -> Value {
    json!({"model": model, "input": text(count)})
}

/// Counts the words of a text.
pub fn count_words(text: &str) -> usize {
    text.split_ascii_whitespace().count()
}

/// Counts a chat prompt: per message 3, 1 for its role, and the words of its content; 3 for the
/// start of the answer.
///
/// Content may be a string or an array of text parts. Names, images and tools count nothing.
pub fn count_chat(messages: &[Value]) -> usize {
    let of_message = |message: &Value| PER_MESSAGE + PER_ROLE + count_content(&message["content"]);
    messages.iter().map(of_message).sum::<usize>() + PER_ANSWER
}

/// Returns the body of a request to the Anthropic API with one user message of `count` words.
pub fn message_request(model: &str, count: usize) -> Value {
    json!({"model": model, "max_tokens": 1_024, "messages": [prompt(count)]})
}

/// Counts the prompt of a request to the Anthropic API: per message 4 and the words of its content,
/// and those of the system prompt.
pub fn count_message(request: &Value) -> usize {
    let messages = request["messages"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let of_message = |message: &Value| PER_ANTHROPIC_MESSAGE + count_content(&message["content"]);
    messages.iter().map(of_message).sum::<usize>() + count_content(&request["system"])
}

fn count_content(content: &Value) -> usize {
    match content {
        Value::String(text) => count_words(text),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part["text"].as_str())
            .map(count_words)
            .sum(),
        _ => 0,
    }
}

/// Counts the `prompt` of a completion or the `input` of an embedding: the words of a text or of a
/// list of texts; token ids count one each.
pub fn count_input(input: &Value) -> usize {
    match input {
        Value::String(text) => count_words(text),
        Value::Number(_) => 1,
        Value::Array(items) => items.iter().map(count_input).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_one_token_and_a_text_of_words_is_as_many_tokens() {
        for (name, tokenizer) in [
            ("o200k", bpe_openai::o200k_base()),
            ("cl100k", bpe_openai::cl100k_base()),
        ] {
            for word in VOCABULARY {
                assert_eq!(
                    tokenizer.count(format!(" {word}").as_str()),
                    1,
                    "{name}: {word}"
                );
            }
            for count in [0, 1, 2, 39, 40, 41, 1_000] {
                assert_eq!(
                    tokenizer.count(text(count).as_str()),
                    count,
                    "{name}: {count} words"
                );
            }
        }
    }

    #[test]
    fn a_chat_prompt_counts_its_frame_and_its_words() {
        assert_eq!(count_chat(&[prompt(5)]), 3 + 1 + 5 + 3);
        assert_eq!(count_chat(&[prompt(5), prompt(2)]), 2 * 4 + 7 + 3);
        let parts = json!({"role": "user", "content": [
            {"type": "text", "text": " alpha river"}, {"type": "image_url"}, {"type": "text", "text": " green"},
        ]});
        assert_eq!(count_chat(&[parts]), 3 + 1 + 3 + 3);
    }

    #[test]
    fn a_message_counts_its_frame_its_words_and_the_system_prompt() {
        let mut request = message_request("m", 5);
        assert_eq!(count_message(&request), 4 + 5);
        request["system"] = json!([{"type": "text", "text": " alpha river"}]);
        assert_eq!(count_message(&request), 4 + 5 + 2);
    }

    #[test]
    fn inputs_are_texts_lists_or_token_ids() {
        assert_eq!(count_input(&json!(" alpha river")), 2);
        assert_eq!(count_input(&json!([" alpha", " river green"])), 3);
        assert_eq!(count_input(&json!([[1, 2], [3]])), 3);
    }
}
