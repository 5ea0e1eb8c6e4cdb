//! Upper bounds of what a request may cost, from what is known before it is sent.

use crate::usage::MAX_AMOUNT;

/// What a model can take and give.
///
/// A bound that is too high only holds more than is needed for a while; one that is too low makes
/// the operator pay for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundProfile {
    /// Most tokens of input and output together.
    pub context_window: i64,
    /// Most tokens of one answer.
    pub max_output: i64,
    /// Most input tokens per thousand bytes of the request body. A tokenizer that works on bytes
    /// never makes more tokens than bytes: 1,000.
    pub tokens_per_kilobyte: i64,
    /// What the provider adds to every request: its template, and what comes with tools.
    pub added_tokens: i64,
}

impl BoundProfile {
    /// Returns a profile that bounds whatever either of two bounds.
    #[must_use]
    pub fn widest(self, other: Self) -> Self {
        Self {
            context_window: self.context_window.max(other.context_window),
            max_output: self.max_output.max(other.max_output),
            tokens_per_kilobyte: self.tokens_per_kilobyte.max(other.tokens_per_kilobyte),
            added_tokens: self.added_tokens.max(other.added_tokens),
        }
    }
}

/// For models that nobody has described.
pub const UNKNOWN_MODEL: BoundProfile = BoundProfile {
    context_window: 1_048_576,
    max_output: 32_768,
    tokens_per_kilobyte: 1_000,
    added_tokens: 600,
};

const fn profile(context_window: i64, max_output: i64) -> BoundProfile {
    BoundProfile {
        context_window,
        max_output,
        ..UNKNOWN_MODEL
    }
}

/// Well-known models by the beginning of their names; the first that fits counts. Sizes are those
/// that the providers' model pages state.
const KNOWN_MODELS: [(&str, BoundProfile); 21] = [
    ("gpt-5", profile(400_000, 128_000)),
    ("gpt-4.1", profile(1_047_576, 32_768)),
    ("gpt-4o", profile(128_000, 16_384)),
    ("chatgpt-4o", profile(128_000, 16_384)),
    ("gpt-4-turbo", profile(128_000, 4_096)),
    ("gpt-4-1106", profile(128_000, 4_096)),
    ("gpt-4-0125", profile(128_000, 4_096)),
    ("gpt-4-32k", profile(32_768, 32_768)),
    ("gpt-4", profile(8_192, 8_192)),
    ("gpt-3.5-turbo-instruct", profile(4_096, 4_096)),
    ("gpt-3.5", profile(16_385, 4_096)),
    ("o1", profile(200_000, 100_000)),
    ("o3", profile(200_000, 100_000)),
    ("o4", profile(200_000, 100_000)),
    ("claude-3-haiku", profile(200_000, 4_096)),
    ("claude-3-5", profile(200_000, 8_192)),
    ("claude", profile(1_000_000, 128_000)),
    ("deepseek", profile(131_072, 65_536)),
    ("gemini", profile(1_048_576, 65_536)),
    ("text-embedding", profile(8_192, 0)),
    ("davinci-002", profile(16_384, 16_384)),
];

/// Returns the profile of a model by its name; case does not matter, and neither does what stands
/// before the last slash.
pub fn profile_of(model: &str) -> BoundProfile {
    let name = model.rsplit('/').next().unwrap_or(model);
    KNOWN_MODELS
        .iter()
        .find(|(prefix, _)| {
            name.get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
        .map_or(UNKNOWN_MODEL, |(_, profile)| *profile)
}

/// What is known of a request before it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestSize {
    /// Bytes of the body, not compressed.
    pub body_bytes: usize,
    /// Most tokens of one answer, where the client said so.
    pub max_output: Option<i64>,
    /// How many answers are made, at least 1.
    pub choices: i64,
    /// Whether there is an answer in tokens at all.
    pub has_output: bool,
    /// Whether a part of the input is not in the body: an image behind an address, a stored file.
    pub refers_elsewhere: bool,
}

/// An upper bound in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBound {
    /// Of the input.
    pub input: i64,
    /// Of all answers together.
    pub output: i64,
}

impl TokenBound {
    /// Nothing: of what is free of charge.
    pub const ZERO: Self = Self {
        input: 0,
        output: 0,
    };

    /// Returns the sum.
    pub fn total(self) -> i64 {
        self.input.saturating_add(self.output).clamp(0, MAX_AMOUNT)
    }
}

/// Returns an upper bound of what a request may use.
///
/// The input is bounded by the bytes of the body; where a model has an answer, by its context window
/// too (an embedding has many inputs, each with a window of its own). The output is what the client
/// allows, else the most that the model gives.
pub fn token_bound(profile: &BoundProfile, size: &RequestSize) -> TokenBound {
    let bytes = i64::try_from(size.body_bytes).unwrap_or(MAX_AMOUNT);
    let from_bytes = bytes
        .saturating_mul(profile.tokens_per_kilobyte)
        .div_euclid(1_000)
        .saturating_add(profile.added_tokens)
        .saturating_add(1);
    let input = match (size.refers_elsewhere, size.has_output) {
        (true, _) => profile.context_window,
        (false, true) => from_bytes.min(profile.context_window),
        (false, false) => from_bytes,
    };
    let output = if size.has_output {
        size.max_output
            .unwrap_or(profile.max_output)
            .max(0)
            .saturating_mul(size.choices.max(1))
    } else {
        0
    };
    TokenBound { input, output }
}

/// A request is not sent with less room for each answer than this.
///
/// # Units
/// Tokens.
pub const LEAST_OUTPUT: i64 = 16;

/// A bound that was made to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TightBound {
    /// The bound.
    pub bound: TokenBound,
    /// Most tokens of each answer, where that is less than what was wanted; the provider must be told.
    pub max_output: Option<i64>,
}

/// Makes a bound fit what is affordable, by allowing shorter answers. `input` is the counted prompt,
/// `least` what each answer must have room for at least, unless less was wanted.
///
/// What is free now is used when it suffices; else what is unused at all, because what others only
/// hold may come back. `None` when not even short answers are affordable.
pub fn tighten(
    wanted: TokenBound,
    input: i64,
    choices: i64,
    least: i64,
    (free, unused): (i64, i64),
) -> Option<TightBound> {
    let input = input.clamp(0, wanted.input.max(0));
    let choices = choices.max(1);
    let each_wanted = wanted.output.max(0) / choices;
    let least = LEAST_OUTPUT.max(least).min(each_wanted);
    let each_of = |room: i64| (room.saturating_sub(input) / choices).min(each_wanted);
    let each = [free, unused]
        .into_iter()
        .filter(|room| *room >= input)
        .map(each_of)
        .find(|each| *each >= least)?;
    Some(TightBound {
        bound: TokenBound {
            input,
            output: each.saturating_mul(choices),
        },
        max_output: (each < each_wanted).then_some(each),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(body_bytes: usize) -> RequestSize {
        RequestSize {
            body_bytes,
            max_output: None,
            choices: 1,
            has_output: true,
            refers_elsewhere: false,
        }
    }

    #[test]
    fn the_longest_fitting_name_is_listed_first() {
        for (place, (prefix, _)) in KNOWN_MODELS.iter().enumerate() {
            let hidden = KNOWN_MODELS[..place]
                .iter()
                .any(|(earlier, _)| prefix.starts_with(earlier));
            assert!(!hidden, "{prefix} is never reached");
        }
        assert_eq!(profile_of("gpt-4o-mini").max_output, 16_384);
        assert_eq!(profile_of("openai/GPT-4o").max_output, 16_384);
        assert_eq!(profile_of("gpt-4-0613").context_window, 8_192);
        assert_eq!(profile_of("my-own"), UNKNOWN_MODEL);
    }

    #[test]
    fn the_client_decides_about_the_output_the_model_where_it_does_not() {
        let profile = profile_of("gpt-4o");
        assert_eq!(token_bound(&profile, &size(100)).output, 16_384);
        let limited = RequestSize {
            max_output: Some(50),
            choices: 3,
            ..size(100)
        };
        assert_eq!(token_bound(&profile, &limited).output, 150);
    }

    #[test]
    fn an_embedding_has_no_output_and_no_single_window() {
        let profile = profile_of("text-embedding-3-small");
        let bound = token_bound(
            &profile,
            &RequestSize {
                has_output: false,
                ..size(100_000)
            },
        );
        assert_eq!(bound.output, 0);
        assert!(bound.input > 100_000);
    }

    #[test]
    fn what_is_not_in_the_body_may_fill_the_window() {
        let bound = token_bound(
            &profile_of("gpt-4o"),
            &RequestSize {
                refers_elsewhere: true,
                ..size(100)
            },
        );
        assert_eq!(bound.input, 128_000);
    }

    const WANTED: TokenBound = TokenBound {
        input: 1_000,
        output: 16_384,
    };

    #[test]
    fn answers_are_as_long_as_what_is_free_allows() {
        let tight = tighten(WANTED, 100, 1, 0, (600, 5_000)).unwrap();
        assert_eq!(
            tight.bound,
            TokenBound {
                input: 100,
                output: 500
            }
        );
        assert_eq!(tight.max_output, Some(500));
        let whole = tighten(WANTED, 100, 1, 0, (100_000, 100_000)).unwrap();
        assert_eq!((whole.bound.output, whole.max_output), (16_384, None));
    }

    #[test]
    fn what_others_hold_may_come_back_and_what_is_used_does_not() {
        let tight = tighten(WANTED, 100, 1, 0, (105, 400)).unwrap();
        assert_eq!(tight.max_output, Some(300), "waits for what is held");
        assert_eq!(
            tighten(WANTED, 100, 1, 0, (0, 100 + LEAST_OUTPUT - 1)),
            None
        );
        assert_eq!(tighten(WANTED, 100, 1, 0, (-50, 50)), None);
    }

    #[test]
    fn an_answer_that_must_think_first_is_not_cut_below_that() {
        assert_eq!(tighten(WANTED, 100, 1, 2_001, (600, 2_100)), None);
        let waits = tighten(WANTED, 100, 1, 2_001, (600, 2_101)).unwrap();
        assert_eq!(waits.max_output, Some(2_001));
        let short = TokenBound {
            input: 100,
            output: 50,
        };
        assert!(tighten(short, 100, 1, 2_001, (150, 150)).is_some());
    }

    #[test]
    fn several_answers_share_what_is_affordable() {
        let wanted = TokenBound {
            input: 50,
            output: 4 * 100,
        };
        let tight = tighten(wanted, 50, 4, 0, (250, 250)).unwrap();
        assert_eq!((tight.bound.output, tight.max_output), (200, Some(50)));
    }

    #[test]
    fn an_embedding_needs_its_input_alone() {
        let wanted = TokenBound {
            input: 500,
            output: 0,
        };
        let tight = tighten(wanted, 40, 1, 0, (40, 40)).unwrap();
        assert_eq!((tight.bound.total(), tight.max_output), (40, None));
        assert_eq!(tighten(wanted, 40, 1, 0, (39, 39)), None);
    }

    proptest! {
        #[test]
        fn a_tight_bound_fits_what_is_unused_and_never_exceeds_what_was_wanted(
            input in 0_i64..5_000,
            output in 0_i64..50_000,
            counted in 0_i64..6_000,
            choices in 1_i64..9,
            least in 0_i64..2_000,
            free in -1_000_i64..60_000,
            held in 0_i64..10_000,
        ) {
            let wanted = TokenBound { input, output };
            if let Some(tight) = tighten(wanted, counted, choices, least, (free, free + held)) {
                prop_assert!(tight.bound.total() <= free + held);
                prop_assert!(tight.bound.input <= wanted.input);
                prop_assert!(tight.bound.output <= wanted.output);
                if let Some(each) = tight.max_output {
                    prop_assert_eq!(each * choices, tight.bound.output);
                }
            }
        }

        #[test]
        fn a_bound_is_never_negative_and_never_overflows(
            body_bytes in any::<usize>(),
            max_output in proptest::option::of(any::<i64>()),
            choices in any::<i64>(),
            has_output: bool,
            refers_elsewhere: bool,
        ) {
            let size = RequestSize { body_bytes, max_output, choices, has_output, refers_elsewhere };
            let bound = token_bound(&UNKNOWN_MODEL, &size);
            prop_assert!(bound.input >= 0 && bound.output >= 0);
            prop_assert!((0..=MAX_AMOUNT).contains(&bound.total()));
        }
    }
}
