//! Usage objects, which come in parts: the input at the start of a stream, the output at its end.

use serde::Deserialize;
use sluice_domain::usage::TokenUsage;

use crate::usage::Count;

/// A usage object, or a part of one.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Usage {
    /// Input that was neither read from the prompt cache nor written to it.
    input_tokens: Count,
    cache_creation_input_tokens: Count,
    cache_read_input_tokens: Count,
    /// All output, thinking included.
    output_tokens: Count,
    output_tokens_details: Option<OutputDetails>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct OutputDetails {
    thinking_tokens: Count,
}

impl Usage {
    /// Reads a usage object; `None` when it holds a number that cannot be.
    pub(crate) fn read(raw: &[u8]) -> Option<Self> {
        serde_json::from_slice(raw).ok()
    }

    /// Returns what is known after a later object: its numbers are totals, and those that it leaves
    /// out stay.
    #[must_use]
    pub(crate) fn updated(self, later: Self) -> Self {
        let newer = |now: Count, before: Count| Count(now.0.or(before.0));
        Self {
            input_tokens: newer(later.input_tokens, self.input_tokens),
            cache_creation_input_tokens: newer(
                later.cache_creation_input_tokens,
                self.cache_creation_input_tokens,
            ),
            cache_read_input_tokens: newer(
                later.cache_read_input_tokens,
                self.cache_read_input_tokens,
            ),
            output_tokens: newer(later.output_tokens, self.output_tokens),
            output_tokens_details: later.output_tokens_details.or(self.output_tokens_details),
        }
    }

    /// Returns the usage in the form of the ledger, where all input is one sum; `None` when nothing is
    /// said about the input.
    pub(crate) fn into_form(self) -> Option<TokenUsage> {
        let cached_input = self.cache_read_input_tokens.0.unwrap_or(0);
        let cache_write_input = self.cache_creation_input_tokens.0.unwrap_or(0);
        let output = self.output_tokens.0.unwrap_or(0);
        let thinking = self
            .output_tokens_details
            .unwrap_or_default()
            .thinking_tokens
            .0;
        Some(TokenUsage {
            // Each of them is below 2^40.
            input: self.input_tokens.0? + cached_input + cache_write_input,
            cached_input,
            cache_write_input,
            output,
            reasoning_output: thinking.unwrap_or(0).min(output),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(raw: &str) -> Option<(i64, i64, i64, i64, i64)> {
        let usage = Usage::read(raw.as_bytes())?.into_form()?;
        Some((
            usage.input,
            usage.cached_input,
            usage.cache_write_input,
            usage.output,
            usage.reasoning_output,
        ))
    }

    #[test]
    fn all_input_is_one_sum_with_its_parts_beside_it() {
        let raw = r#"{"input_tokens":10,"cache_creation_input_tokens":200,"cache_read_input_tokens":3000,
            "cache_creation":{"ephemeral_5m_input_tokens":200,"ephemeral_1h_input_tokens":0},
            "output_tokens":40,"output_tokens_details":{"thinking_tokens":25},
            "server_tool_use":{"web_search_requests":1},"service_tier":"standard"}"#;
        assert_eq!(form(raw), Some((3_210, 3_000, 200, 40, 25)));
    }

    #[test]
    fn what_is_left_out_or_null_is_nothing_and_input_must_be_said() {
        assert_eq!(
            form(r#"{"input_tokens":7,"output_tokens":1,"cache_read_input_tokens":null}"#),
            Some((7, 0, 0, 1, 0))
        );
        assert_eq!(form(r#"{"input_tokens":7}"#), Some((7, 0, 0, 0, 0)));
        assert_eq!(form(r#"{"output_tokens":7}"#), None);
    }

    #[test]
    fn numbers_that_cannot_be_are_no_usage() {
        for raw in [
            r#"{"input_tokens":-1,"output_tokens":1}"#,
            r#"{"input_tokens":1,"output_tokens":1099511627777}"#,
            r#"{"input_tokens":"1"}"#,
            "[]1",
        ] {
            assert_eq!(form(raw), None, "{raw}");
        }
    }

    #[test]
    fn thinking_is_a_part_of_the_output() {
        let raw =
            r#"{"input_tokens":1,"output_tokens":5,"output_tokens_details":{"thinking_tokens":9}}"#;
        assert_eq!(form(raw), Some((1, 0, 0, 5, 5)));
    }

    #[test]
    fn later_totals_overwrite_and_what_they_leave_out_stays() {
        let read = |raw: &str| Usage::read(raw.as_bytes()).unwrap();
        let start = read(r#"{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":1}"#);
        let end = read(r#"{"input_tokens":null,"output_tokens":30}"#);
        let usage = start.updated(end).into_form().unwrap();
        assert_eq!((usage.input, usage.cached_input, usage.output), (15, 5, 30));
        let more = read(r#"{"input_tokens":12,"cache_read_input_tokens":6,"output_tokens":31}"#);
        let usage = start.updated(end).updated(more).into_form().unwrap();
        assert_eq!((usage.input, usage.cached_input, usage.output), (18, 6, 31));
    }
}
