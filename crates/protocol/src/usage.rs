//! Usage objects of providers, brought into one form.

mod plain;

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use sluice_domain::usage::TokenUsage;

/// No request uses so many tokens: 2^40. A larger number is a defect of the provider.
const MAX_TOKENS: i64 = 1 << 40;

/// A usage object of `chat/completions`, `completions` or `embeddings`.
///
/// Some compatible servers use the words of the Responses API.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
#[serde(default)]
struct Usage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Count,
    #[serde(alias = "output_tokens")]
    completion_tokens: Count,
    total_tokens: Count,
    #[serde(alias = "input_tokens_details")]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(alias = "output_tokens_details")]
    completion_tokens_details: Option<CompletionDetails>,
    /// DeepSeek's word for cached tokens.
    prompt_cache_hit_tokens: Count,
}

#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
#[serde(default)]
struct PromptDetails {
    cached_tokens: Count,
    cache_write_tokens: Count,
}

#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
#[serde(default)]
struct CompletionDetails {
    reasoning_tokens: Count,
}

/// A number of tokens; absent when `null` or not there.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(test, derive(PartialEq, Eq))]
pub(crate) struct Count(pub(crate) Option<i64>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CountVisitor;

        impl Visitor<'_> for CountVisitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of tokens")
            }

            fn visit_unit<E: Error>(self) -> Result<Count, E> {
                Ok(Count(None))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Count, E> {
                if (0..=MAX_TOKENS).contains(&number) {
                    Ok(Count(Some(number)))
                } else {
                    Err(E::custom("out of range"))
                }
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Count, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Count, E> {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "saturates, then is refused"
                )]
                let whole = number as i64;
                if number.fract() == 0.0 {
                    self.visit_i64(whole)
                } else {
                    Err(E::custom("a fraction"))
                }
            }
        }

        deserializer.deserialize_any(CountVisitor)
    }
}

/// Reads a usage object.
///
/// `None` when it is `null`, says nothing about input, or holds a number that cannot be. Zeros that
/// are said are usage.
pub(crate) fn read(raw: &[u8]) -> Option<TokenUsage> {
    let usage = match plain::read_first(raw) {
        Some((usage, length)) if length == raw.len() => usage,
        _ => parse(raw)?,
    };
    usage.into_form()
}

/// Reads a usage object at the beginning of a text, and how many bytes it takes.
///
/// `None` when it is no object or holds a number that cannot be.
pub(crate) fn read_first(text: &[u8]) -> Option<(Option<TokenUsage>, usize)> {
    let (usage, length) = plain::read_first(text).or_else(|| parse_first(text))?;
    Some((usage.into_form(), length))
}

/// Reads what is written in any way.
fn parse(raw: &[u8]) -> Option<Usage> {
    serde_json::from_slice(raw).ok()
}

fn parse_first(text: &[u8]) -> Option<(Usage, usize)> {
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter();
    let usage = objects.next()?.ok()?;
    Some((usage, objects.byte_offset()))
}

impl Usage {
    fn into_form(self) -> Option<TokenUsage> {
        let usage = self;
        let reasoning = usage
            .completion_tokens_details
            .unwrap_or_default()
            .reasoning_tokens
            .0;
        let details = usage.prompt_tokens_details.unwrap_or_default();
        let (prompt, completion, total) = (
            usage.prompt_tokens.0,
            usage.completion_tokens.0,
            usage.total_tokens.0,
        );
        let rest = |part: i64| total.map_or(0, |total| (total - part).max(0));

        let input = match (prompt, completion) {
            (Some(prompt), _) => prompt,
            (None, Some(completion)) if total.is_some() => rest(completion),
            (None, _) => return None,
        };
        // Embeddings have no completion; some servers leave zeros out.
        let mut output = completion.unwrap_or_else(|| rest(input));
        let reasoning_output = reasoning.unwrap_or(0);
        if reasoning_output > 0 && total == Some(input + output + reasoning_output) {
            // Source: xAI reports reasoning beside the completion, not as a part of it.
            output += reasoning_output;
        }
        let cached = details
            .cached_tokens
            .0
            .or(usage.prompt_cache_hit_tokens.0)
            .unwrap_or(0);
        let cached_input = cached.min(input);
        Some(TokenUsage {
            input,
            cached_input,
            cache_write_input: details
                .cache_write_tokens
                .0
                .unwrap_or(0)
                .min(input - cached_input),
            output,
            reasoning_output: reasoning_output.min(output),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: i64, cached: i64, write: i64, output: i64, reasoning: i64) -> TokenUsage {
        TokenUsage {
            input,
            cached_input: cached,
            cache_write_input: write,
            output,
            reasoning_output: reasoning,
        }
    }

    #[test]
    fn the_usage_of_each_provider_is_brought_into_one_form() {
        for (raw, expected) in [
            (
                r#"{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}"#,
                usage(9, 0, 0, 3, 0),
            ),
            (
                r#"{"prompt_tokens":90,"completion_tokens":30,"total_tokens":120,
                "prompt_tokens_details":{"cached_tokens":64,"cache_write_tokens":20,"audio_tokens":0},
                "completion_tokens_details":{"reasoning_tokens":12,"accepted_prediction_tokens":0}}"#,
                usage(90, 64, 20, 30, 12),
            ),
            // DeepSeek.
            (
                r#"{"prompt_tokens":9,"completion_tokens":3,"prompt_cache_hit_tokens":5,"prompt_cache_miss_tokens":4}"#,
                usage(9, 5, 0, 3, 0),
            ),
            (
                r#"{"prompt_tokens":9,"completion_tokens":3,"prompt_cache_hit_tokens":5,"prompt_tokens_details":{"cached_tokens":6}}"#,
                usage(9, 6, 0, 3, 0),
            ),
            // xAI.
            (
                r#"{"prompt_tokens":32,"completion_tokens":9,"total_tokens":135,"completion_tokens_details":{"reasoning_tokens":94}}"#,
                usage(32, 0, 0, 103, 94),
            ),
            // Embeddings.
            (
                r#"{"prompt_tokens":8,"total_tokens":8}"#,
                usage(8, 0, 0, 0, 0),
            ),
            // The words of the Responses API.
            (
                r#"{"input_tokens":8,"output_tokens":2,"input_tokens_details":{"cached_tokens":1}}"#,
                usage(8, 1, 0, 2, 0),
            ),
            (
                r#"{"prompt_tokens":0,"completion_tokens":0}"#,
                usage(0, 0, 0, 0, 0),
            ),
            (
                r#"{"prompt_tokens":12.0,"completion_tokens":3.0}"#,
                usage(12, 0, 0, 3, 0),
            ),
            (
                r#"{"prompt_tokens":1,"completion_tokens":2,"total_tokens":null,"prompt_tokens_details":null,
                "completion_tokens_details":{"reasoning_tokens":null}}"#,
                usage(1, 0, 0, 2, 0),
            ),
            (
                r#"{"completion_tokens":2,"total_tokens":5}"#,
                usage(3, 0, 0, 2, 0),
            ),
        ] {
            assert_eq!(read(raw.as_bytes()), Some(expected), "{raw}");
        }
    }

    #[test]
    fn parts_never_exceed_the_whole() {
        let raw = r#"{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":
            {"cached_tokens":4,"cache_write_tokens":4},"completion_tokens_details":{"reasoning_tokens":9}}"#;
        assert_eq!(read(raw.as_bytes()), Some(usage(5, 4, 1, 2, 2)));
    }

    #[test]
    fn numbers_that_cannot_be_are_no_usage() {
        for raw in [
            "null",
            "{}",
            "[]",
            "5",
            r#"{"prompt_tokens":-1,"completion_tokens":3}"#,
            r#"{"prompt_tokens":1,"completion_tokens":1099511627777}"#,
            r#"{"prompt_tokens":1e300,"completion_tokens":3}"#,
            r#"{"prompt_tokens":1.5,"completion_tokens":3}"#,
            r#"{"prompt_tokens":"9","completion_tokens":3}"#,
            r#"{"completion_tokens":3}"#,
            r#"{"prompt_tokens":null,"completion_tokens":null}"#,
        ] {
            assert_eq!(read(raw.as_bytes()), None, "{raw}");
        }
    }
}
