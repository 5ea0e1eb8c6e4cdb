//! Messages that come in one piece.

use serde_json::Value;

use super::usage::Usage;
use crate::answer::AnswerFacts;
use crate::failure;
use crate::json::{Kind, Walker, mend_surrogates};
use crate::output::OutputText;
use crate::scan::Malformed;

/// Reads what matters about an answer with a status of success.
pub(crate) fn inspect(body: &[u8]) -> Result<AnswerFacts, Malformed> {
    let mut walker = Walker::object(body, 0)?;
    let mut facts = AnswerFacts {
        is_json_object: true,
        ..AnswerFacts::default()
    };
    while let Some(member) = walker.next_member()? {
        let value = member.value;
        match (&*member.key, value.kind) {
            (b"usage", _) => {
                facts.usage = Usage::read(value.raw).and_then(Usage::into_form);
            }
            (b"type", Kind::String) if value.as_str().as_deref() == Some("error") => {
                facts.error = Some(failure::of_event(body));
            }
            _ => {}
        }
    }
    Ok(facts)
}

/// Adds what the model wrote: text, thinking, and what tools are called with.
pub(crate) fn add_to(body: &[u8], output: &mut OutputText) {
    let parsed = serde_json::from_slice::<Value>(body)
        .or_else(|_| serde_json::from_slice(&mend_surrogates(body)));
    let Ok(answer) = parsed else { return };
    let blocks = answer.get("content").and_then(Value::as_array);
    for (place, block) in blocks.into_iter().flatten().enumerate() {
        for key in ["text", "thinking", "name"] {
            if let Some(text) = block.get(key).and_then(Value::as_str) {
                output.add(place, text);
            }
        }
        if let Some(input) = block.get("input").filter(|input| !input.is_null()) {
            output.add(place, &input.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_domain::route::Endpoint;

    use crate::answer::{count_output, inspect};
    use crate::tokens::count_text;

    #[test]
    fn the_usage_of_a_message_is_read_and_that_in_its_text_is_not() {
        let body = br#"{"id":"msg_1","type":"message","role":"assistant","model":"claude-x",
            "content":[{"type":"text","text":"\"usage\":{\"input_tokens\":1}"}],"stop_reason":"end_turn",
            "usage":{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":3}}"#;
        let facts = inspect(Endpoint::Messages, body);
        assert!(facts.is_json_object && facts.error.is_none());
        let usage = facts.usage.unwrap();
        assert_eq!((usage.input, usage.cached_input, usage.output), (15, 5, 3));
    }

    #[test]
    fn an_error_with_a_status_of_success_is_one() {
        let body =
            br#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        let error = inspect(Endpoint::Messages, body).error.unwrap();
        assert_eq!(
            (&*error.kind, &*error.message),
            ("overloaded_error", "Overloaded")
        );
        assert!(!inspect(Endpoint::Messages, b"<html>").is_json_object);
    }

    #[test]
    fn a_count_of_tokens_is_no_usage() {
        let facts = inspect(Endpoint::CountTokens, br#"{"input_tokens":2095}"#);
        assert!(facts.is_json_object);
        assert_eq!(facts.usage, None);
    }

    #[test]
    fn text_thinking_and_the_calls_of_tools_are_counted() {
        let body = br#"{"content":[{"type":"thinking","thinking":"Hello world","signature":"x"},
            {"type":"text","text":"Guten Morgen"},{"type":"tool_use","id":"t","name":"look","input":{"a":1}},
            {"type":"redacted_thinking","data":"xxxxxxxxxxxxxxxx"}]}"#;
        let expected = ["Hello world", "Guten Morgen", "look{\"a\":1}"].map(count_text);
        assert_eq!(
            count_output(Endpoint::Messages, body),
            expected.iter().sum::<i64>()
        );
        assert_eq!(
            count_output(Endpoint::CountTokens, br#"{"input_tokens":9}"#),
            0
        );
    }
}
