//! The bodies that an OpenAI-compatible provider sends, in the provider's order of members.

use std::fmt::Write as _;

use sluice_domain::usage::TokenUsage;

use crate::words;

/// The `created` of every answer: 2026-11-20T12:00:00Z.
const CREATED: i64 = 1_795_176_000;

/// Returns a JSON string with its quotes.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

pub(super) fn usage(usage: &TokenUsage) -> String {
    let TokenUsage {
        input,
        cached_input,
        output,
        reasoning_output,
        ..
    } = usage;
    format!(
        r#"{{"prompt_tokens":{input},"completion_tokens":{output},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{cached_input},"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":{reasoning_output},"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#,
        usage.total()
    )
}

/// What is the same in all chunks of a stream, and in the plain answer.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) is_chat: bool,
    pub(super) number: usize,
    pub(super) model: String,
}

/// One choice in a chunk.
#[derive(Debug, Default)]
pub(super) struct Delta {
    pub(super) choice: usize,
    pub(super) role: bool,
    pub(super) text: Option<String>,
    pub(super) finish: Option<&'static str>,
}

impl Frame {
    fn opening(&self, object: &str) -> String {
        let prefix = if self.is_chat { "chatcmpl" } else { "cmpl" };
        format!(
            r#"{{"id":"{prefix}-fake-{}","object":"{object}","created":{CREATED},"model":{}"#,
            self.number,
            quote(&self.model)
        )
    }

    /// Returns a chunk with the choices as they are; `usage` is left out when it is `None`.
    pub(super) fn chunk_of(&self, choices: &str, usage: Option<&str>, obfuscation: bool) -> String {
        let object = if self.is_chat {
            "chat.completion.chunk"
        } else {
            "text_completion"
        };
        let mut chunk = self.opening(object);
        let _never_fails = write!(
            chunk,
            r#","service_tier":"default","system_fingerprint":"fp_fake","choices":[{choices}]"#
        );
        if let Some(usage) = usage {
            let _never_fails = write!(chunk, r#","usage":{usage}"#);
        }
        if obfuscation {
            chunk.push_str(r#","obfuscation":"aK3pX9""#);
        }
        chunk.push('}');
        chunk
    }

    /// Returns a choice of a chunk.
    pub(super) fn choice(&self, delta: &Delta) -> String {
        let index = delta.choice;
        let finish = delta.finish.map_or_else(|| "null".to_owned(), quote);
        let text = delta.text.as_deref().map(quote);
        if !self.is_chat {
            let text = text.unwrap_or_else(|| quote(""));
            return format!(
                r#"{{"text":{text},"index":{index},"logprobs":null,"finish_reason":{finish}}}"#
            );
        }
        let mut members = Vec::new();
        if delta.role {
            members.push(r#""role":"assistant""#.to_owned());
        }
        if let Some(text) = text {
            members.push(format!(r#""content":{text}"#));
        }
        format!(
            r#"{{"index":{index},"delta":{{{}}},"logprobs":null,"finish_reason":{finish}}}"#,
            members.join(",")
        )
    }

    /// Returns the chunk that Azure sends first.
    pub(super) fn prompt_filter(&self) -> String {
        let object = if self.is_chat { "" } else { "text_completion" };
        format!(
            r#"{{"choices":[],"created":0,"id":"","model":"","object":"{object}","prompt_filter_results":[{{"prompt_index":0,"content_filter_results":{{"hate":{{"filtered":false,"severity":"safe"}}}}}}]}}"#
        )
    }

    /// Returns a plain answer with `choices` times the same words.
    pub(super) fn plain(
        &self,
        choices: usize,
        words: usize,
        finish: &str,
        usage: Option<&str>,
    ) -> String {
        let text = quote(&words::text(words));
        let choices: Vec<String> = (0..choices)
            .map(|index| {
                if self.is_chat {
                    format!(
                        r#"{{"index":{index},"message":{{"role":"assistant","content":{text},"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":{finish}}}"#
                    )
                } else {
                    format!(
                        r#"{{"text":{text},"index":{index},"logprobs":null,"finish_reason":{finish}}}"#
                    )
                }
            })
            .collect();
        let object = if self.is_chat {
            "chat.completion"
        } else {
            "text_completion"
        };
        let usage = usage.map_or_else(String::new, |usage| format!(r#","usage":{usage}"#));
        format!(
            r#"{},"choices":[{}]{usage},"service_tier":"default","system_fingerprint":"fp_fake"}}"#,
            self.opening(object),
            choices.join(",")
        )
    }
}

/// Returns an embedding answer; the numbers tell the index of the input and the dimension.
pub(super) fn embeddings(
    model: &str,
    inputs: usize,
    dimensions: usize,
    as_base64: bool,
    usage: Option<&TokenUsage>,
) -> String {
    let data: Vec<String> = (0..inputs)
        .map(|index| {
            let numbers = embedding(index, dimensions);
            let embedding = if as_base64 {
                let bytes: Vec<u8> = numbers
                    .iter()
                    .flat_map(|number| number.to_le_bytes())
                    .collect();
                quote(&base64(&bytes))
            } else {
                serde_json::Value::from(numbers).to_string()
            };
            format!(r#"{{"object":"embedding","index":{index},"embedding":{embedding}}}"#)
        })
        .collect();
    let usage = usage.map_or_else(String::new, |usage| {
        format!(
            r#","usage":{{"prompt_tokens":{0},"total_tokens":{0}}}"#,
            usage.input
        )
    });
    format!(
        r#"{{"object":"list","data":[{}],"model":{}{usage}}}"#,
        data.join(","),
        quote(model)
    )
}

/// Returns the embedding of an input: quarters, which every float holds exactly.
fn embedding(index: usize, dimensions: usize) -> Vec<f32> {
    let quarters = |dimension: usize| u16::try_from((index * 7 + dimension) % 97).unwrap_or(0);
    (0..dimensions)
        .map(|dimension| f32::from(quarters(dimension)) / 4.0)
        .collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let number = (0..3).fold(0_usize, |number, i| {
            (number << 8) | usize::from(group.get(i).copied().unwrap_or(0))
        });
        for digit in 0..4 {
            text.push(if digit <= group.len() {
                char::from(DIGITS[(number >> (18 - 6 * digit)) & 63])
            } else {
                '='
            });
        }
    }
    text
}

pub(super) fn model(id: &str) -> String {
    format!(
        r#"{{"id":{},"object":"model","created":{CREATED},"owned_by":"fake"}}"#,
        quote(id)
    )
}

pub(super) fn model_list(ids: &[String]) -> String {
    let models: Vec<String> = ids.iter().map(|id| model(id)).collect();
    format!(r#"{{"object":"list","data":[{}]}}"#, models.join(","))
}

/// Returns an error in OpenAI's envelope.
pub(super) fn error(message: &str, kind: &str, code: Option<&str>) -> String {
    let code = code.map_or_else(|| "null".to_owned(), quote);
    format!(
        r#"{{"error":{{"message":{},"type":{},"param":null,"code":{code}}}}}"#,
        quote(message),
        quote(kind)
    )
}

pub(super) fn model_not_found(model: &str) -> String {
    let message = format!("The model `{model}` does not exist or you do not have access to it.");
    error(&message, "invalid_request_error", Some("model_not_found"))
}

/// Returns the error that goes with a status.
pub(super) fn refusal(status: u16, model: &str) -> String {
    let rate = format!(
        "Rate limit reached for {model} on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in 20s."
    );
    let (message, kind, code) = match status {
        400 => (
            "Invalid value: 'x'.",
            "invalid_request_error",
            Some("invalid_value"),
        ),
        401 => (
            "Incorrect API key provided: sk-f***. ",
            "invalid_request_error",
            Some("invalid_api_key"),
        ),
        // As DeepSeek words it.
        402 => (
            "Insufficient Balance",
            "unknown_error",
            Some("invalid_request_error"),
        ),
        403 => (
            "Country, region, or territory not supported",
            "request_forbidden",
            Some("unsupported_country_region_territory"),
        ),
        404 => return model_not_found(model),
        429 => (rate.as_str(), "requests", Some("rate_limit_exceeded")),
        500 => (
            "The server had an error while processing your request. Sorry about that!",
            "server_error",
            None,
        ),
        503 => (
            "Our servers are currently overloaded. Please try again later.",
            "server_error",
            Some("server_is_overloaded"),
        ),
        _ => ("The fake upstream was told to refuse.", "api_error", None),
    };
    error(message, kind, code)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfb]), "//77");
    }

    #[test]
    fn bodies_are_json_with_whatever_name_a_model_has() {
        let frame = Frame {
            is_chat: true,
            number: 3,
            model: "a\"b\\c".to_owned(),
        };
        let choice = frame.choice(&Delta {
            role: true,
            text: Some(" alpha".into()),
            ..Delta::default()
        });
        for body in [
            frame.chunk_of(&choice, Some("null"), true),
            frame.plain(2, 3, "\"stop\"", Some(&usage(&TokenUsage::default()))),
            embeddings(&frame.model, 2, 3, false, None),
            model_list(std::slice::from_ref(&frame.model)),
            refusal(404, &frame.model),
            refusal(429, &frame.model),
            frame.prompt_filter(),
        ] {
            assert!(serde_json::from_str::<Value>(&body).is_ok(), "{body}");
        }
    }

    #[test]
    fn both_forms_of_an_embedding_are_the_same_numbers() {
        let floats: Value = serde_json::from_str(&embeddings("m", 2, 3, false, None)).unwrap();
        assert_eq!(floats["data"][1]["embedding"], json!([1.75, 2.0, 2.25]));
        let text: Value = serde_json::from_str(&embeddings("m", 2, 3, true, None)).unwrap();
        let bytes: Vec<u8> = [1.75_f32, 2.0, 2.25]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        assert_eq!(text["data"][1]["embedding"], base64(&bytes));
    }
}
