//! Requests: the outline of a body, and the few values that are changed on the way.
//!
//! The body stays bytes. Only what is acted upon is read, and only that is written again.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem::Finder;
use sluice_domain::route::Endpoint;

use crate::anthropic;
use crate::json::{Kind, Member, Value, Walker, quote};
use crate::scan::Malformed;

mod key;

use key::{Field, Keys, STREAM_OPTIONS_FIELDS, THINKING_FIELDS};

/// Longest model name that is accepted, in bytes.
pub const MAX_MODEL_BYTES: usize = 200;

/// What is acted upon in a request body.
///
/// # Units
/// Ranges and positions are byte offsets in the body that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline<'a> {
    /// The requested model, decoded; never empty.
    pub model: Cow<'a, str>,
    /// Where its value stands, quotes included.
    pub model_range: Range<usize>,
    /// Whether the answer is wanted as a stream. Always `false` where the endpoint cannot stream.
    pub streams: bool,
    /// The member `stream_options`, if there is one.
    pub stream_options: Option<StreamOptionsMember>,
    /// Upper bound of the tokens of one answer, as the client set it.
    ///
    /// The larger one of `max_completion_tokens` and `max_tokens` when both are there, since which
    /// of them a server obeys is its own affair; `None` when a bound is negative, which some
    /// servers read as "no limit".
    pub max_output_tokens: Option<i64>,
    /// Where the values of `max_tokens` and `max_completion_tokens` stand, where they are there.
    pub max_tokens_ranges: [Option<Range<usize>>; 2],
    /// Fewer tokens of output than this are refused by the provider: a message must have room beyond
    /// what it may spend on thinking.
    pub least_output_tokens: i64,
    /// How many answers are generated at most, at least 1: `n`, for `completions` the larger one of
    /// `n` and `best_of` times the number of prompts.
    pub choices: i64,
    /// Whether embeddings are wanted in base64.
    pub wants_base64: bool,
    /// Where a member with a comma behind it can be inserted into the outermost object.
    pub insert_at: usize,
}

/// The member `stream_options` of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamOptionsMember {
    /// Where its value stands: an object or `null`.
    pub range: Range<usize>,
    /// Where the value before it ends, or the opening bracket when it is the first member.
    pub behind: usize,
    /// What stands there.
    pub form: StreamOptionsForm,
    /// Whether the client asked for usage.
    pub include_usage: bool,
    /// Where the value of `include_usage` stands, if it is there.
    pub include_usage_range: Option<Range<usize>>,
    /// Whether the client set `include_obfuscation` itself.
    pub sets_obfuscation: bool,
    /// Whether there is anything in it beside `include_usage`.
    pub has_others: bool,
}

/// What stands as the value of `stream_options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamOptionsForm {
    /// `null`.
    Null,
    /// An object without members.
    Empty,
    /// An object with members.
    Filled,
}

/// A request body cannot be relayed.
///
/// Its text is meant for the client, in the manner of the OpenAI API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutlineError {
    /// It is not JSON.
    #[error(
        "We could not parse the JSON body of your request: {reason} (at byte {at}). Please check \
         that the body is one valid JSON object, encoded as UTF-8."
    )]
    Malformed {
        /// Offset of the byte that shows it.
        at: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// A member that must be there is missing.
    #[error("you must provide a {0} parameter")]
    Missing(&'static str),
    /// A member has a value of the wrong type.
    #[error("Invalid type for '{param}': expected {expected}, but got {found} instead.")]
    Type {
        /// Path of the member.
        param: &'static str,
        /// The types that are accepted.
        expected: &'static str,
        /// The type that was found.
        found: &'static str,
    },
    /// A member has a value that is not accepted.
    #[error("Invalid value for '{param}': {reason}.")]
    Value {
        /// Path of the member.
        param: &'static str,
        /// What would be accepted.
        reason: &'static str,
    },
    /// A member stands there twice, so that two readers could understand two things.
    #[error("Invalid value: the parameter '{0}' is given more than once.")]
    Duplicate(&'static str),
    /// A key differs from one that is acted upon only in case; some servers take it for that one.
    #[error("Unknown parameter: did you mean '{0}'? Parameters are written in lower case.")]
    Case(&'static str),
}

impl OutlineError {
    /// Returns the path of the parameter, for `param` of an error answer.
    pub const fn param(&self) -> Option<&str> {
        match self {
            Self::Malformed { .. } => None,
            Self::Missing(param)
            | Self::Duplicate(param)
            | Self::Case(param)
            | Self::Type { param, .. }
            | Self::Value { param, .. } => Some(param),
        }
    }

    /// Returns the code, for `code` of an error answer.
    pub const fn code(&self) -> Option<&'static str> {
        match self {
            Self::Malformed { .. } => None,
            Self::Missing(_) => Some("missing_required_parameter"),
            Self::Type { .. } => Some("invalid_type"),
            Self::Value { .. } | Self::Duplicate(_) => Some("invalid_value"),
            Self::Case(_) => Some("unknown_parameter"),
        }
    }
}

impl From<Malformed> for OutlineError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed {
            at: malformed.at,
            reason: malformed.reason,
        }
    }
}

/// Reads the outline of a request body.
///
/// The outermost object is checked strictly. Values that are not acted upon are checked as far as
/// needed to know where they end; what else is wrong with them is for the upstream to say.
///
/// # Errors
/// [`OutlineError`] when the body is not one JSON object, when the model is missing, or when a
/// member that is acted upon has a wrong type or value, stands there twice, or could be taken by
/// another reader for something else.
pub fn outline(body: &[u8], endpoint: Endpoint) -> Result<Outline<'_>, OutlineError> {
    let mut walker = Walker::object(body, 0)?;
    let insert_at = walker.position();
    let mut keys = Keys::new(Field::of(endpoint));
    let mut model = None;
    let mut streams = false;
    let mut stream_options = None;
    let (mut max_tokens, mut max_completion_tokens) = (None, None);
    let mut max_tokens_ranges = [None, None];
    let (mut n, mut best_of, mut prompts) = (1, 1, 1);
    let mut wants_base64 = false;
    let mut least_output_tokens = 0;

    let mut behind = insert_at;
    while let Some(Member { key, value }) = walker.next_member()? {
        let behind = std::mem::replace(&mut behind, walker.position());
        let Some(field) = keys.recognize(&key)? else {
            continue;
        };
        match field {
            Field::Model => model = Some((read_model(&value)?, value.range())),
            Field::Stream => streams = field.bool(&value)?,
            Field::StreamOptions => stream_options = Some(read_stream_options(&value, behind)?),
            Field::MaxTokens => {
                max_tokens = field.integer(&value)?;
                max_tokens_ranges[0] = Some(value.range());
            }
            Field::MaxCompletionTokens => {
                max_completion_tokens = field.integer(&value)?;
                max_tokens_ranges[1] = Some(value.range());
            }
            Field::N => n = field.count(&value)?,
            Field::BestOf => best_of = field.count(&value)?,
            Field::Prompt => prompts = count_prompts(&value)?,
            Field::EncodingFormat => wants_base64 = reads_base64(&value)?,
            Field::Thinking => least_output_tokens = least_beyond_thinking(&value)?,
            // Members of other members only.
            Field::IncludeUsage | Field::IncludeObfuscation | Field::BudgetTokens => {}
        }
    }
    if endpoint == Endpoint::Messages && max_tokens.is_none() {
        return Err(OutlineError::Missing("max_tokens"));
    }

    let Some((model, model_range)) = model else {
        return Err(OutlineError::Missing("model"));
    };
    Ok(Outline {
        model,
        model_range,
        streams,
        stream_options,
        max_tokens_ranges,
        max_output_tokens: larger_bound([max_tokens, max_completion_tokens]),
        least_output_tokens,
        choices: n.max(best_of).saturating_mul(prompts),
        wants_base64,
        insert_at,
    })
}

/// Returns the larger one of the bounds that are given; `None` when one of them is negative.
fn larger_bound(bounds: [Option<i64>; 2]) -> Option<i64> {
    let given = || bounds.into_iter().flatten();
    if given().any(i64::is_negative) {
        None
    } else {
        given().max()
    }
}

fn read_model<'a>(value: &Value<'a>) -> Result<Cow<'a, str>, OutlineError> {
    let invalid = |reason| OutlineError::Value {
        param: "model",
        reason,
    };
    match value.kind {
        Kind::String => {}
        Kind::Null => return Err(OutlineError::Missing("model")),
        _ => return Err(Field::Model.wrong_type("a string", value)),
    }
    let model = value
        .as_str()
        .ok_or(invalid("it holds half a surrogate pair"))?;
    if model.is_empty() {
        return Err(OutlineError::Missing("model"));
    }
    if model.len() > MAX_MODEL_BYTES {
        return Err(invalid("the name of a model has at most 200 bytes"));
    }
    Ok(model)
}

fn read_stream_options(
    value: &Value<'_>,
    behind: usize,
) -> Result<StreamOptionsMember, OutlineError> {
    let mut member = StreamOptionsMember {
        range: value.range(),
        behind,
        form: if value.kind == Kind::Null {
            StreamOptionsForm::Null
        } else {
            StreamOptionsForm::Empty
        },
        include_usage: false,
        include_usage_range: None,
        sets_obfuscation: false,
        has_others: false,
    };
    if member.form == StreamOptionsForm::Null {
        return Ok(member);
    }
    if value.kind != Kind::Object {
        return Err(Field::StreamOptions.wrong_type("an object", value));
    }
    let shift = |malformed: Malformed| OutlineError::Malformed {
        at: value.start + malformed.at,
        reason: malformed.reason,
    };
    let mut walker = Walker::object(value.raw, 1).map_err(shift)?;
    let mut keys = Keys::new(&STREAM_OPTIONS_FIELDS);
    while let Some(Member { key, value: inner }) = walker.next_member().map_err(shift)? {
        member.form = StreamOptionsForm::Filled;
        let Some(field) = keys.recognize(&key)? else {
            member.has_others = true;
            continue;
        };
        if field == Field::IncludeUsage {
            let Range { start, end } = inner.range();
            member.include_usage = field.bool(&inner)?;
            member.include_usage_range = Some(value.start + start..value.start + end);
        } else {
            member.sets_obfuscation = true;
            member.has_others = true;
        }
    }
    Ok(member)
}

fn reads_base64(value: &Value<'_>) -> Result<bool, OutlineError> {
    match value.kind {
        Kind::String => Ok(value.as_str().as_deref() == Some("base64")),
        Kind::Null => Ok(false),
        _ => Err(Field::EncodingFormat.wrong_type("a string", value)),
    }
}

/// Returns the least output that `thinking` of a message leaves room for.
///
/// What has another form is for the upstream to refuse.
fn least_beyond_thinking(value: &Value<'_>) -> Result<i64, OutlineError> {
    if value.kind != Kind::Object {
        return Ok(0);
    }
    let shift = |malformed: Malformed| OutlineError::Malformed {
        at: value.start + malformed.at,
        reason: malformed.reason,
    };
    let mut walker = Walker::object(value.raw, 1).map_err(shift)?;
    let mut keys = Keys::new(&THINKING_FIELDS);
    let mut budget = None;
    while let Some(Member { key, value }) = walker.next_member().map_err(shift)? {
        if keys.recognize(&key)?.is_some() {
            budget = value.as_integer();
        }
    }
    Ok(budget.map_or(0, |budget| budget.max(0).saturating_add(1)))
}

/// Returns how many prompts a `completions` request has: a list of numbers is one.
fn count_prompts(value: &Value<'_>) -> Result<i64, OutlineError> {
    if value.kind != Kind::Array {
        return Ok(1);
    }
    let shift = |malformed: Malformed| OutlineError::Malformed {
        at: value.start + malformed.at,
        reason: malformed.reason,
    };
    let mut walker = Walker::array(value.raw, 1).map_err(shift)?;
    let mut count = 0;
    while let Some(element) = walker.next_element().map_err(shift)? {
        if element.kind == Kind::Number && count == 0 {
            return Ok(1);
        }
        count += 1;
    }
    Ok(count.max(1))
}

/// Returns whether a part of the input may stand somewhere else: behind an address, or as a stored
/// file.
///
/// Then its tokens are not bounded by the bytes of the body. A text that names such a member is
/// taken for one.
pub fn refers_elsewhere(body: &[u8], endpoint: Endpoint) -> bool {
    static MEMBERS: LazyLock<[Finder<'static>; 2]> =
        LazyLock::new(|| ["\"image_url\"", "\"file_id\""].map(Finder::new));
    match endpoint {
        Endpoint::ChatCompletions => MEMBERS.iter().any(|member| member.find(body).is_some()),
        Endpoint::Messages => anthropic::prompt::refers_elsewhere(body),
        Endpoint::Completions | Endpoint::Embeddings | Endpoint::CountTokens => false,
    }
}

/// What is changed in a request before it is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes<'a> {
    /// The name of the model at the upstream.
    pub model: Option<&'a str>,
    /// Whether a stream is asked to end with its usage.
    pub ask_for_usage: bool,
    /// Whether `stream_options` are taken out, for a server that refuses them; where the client
    /// chose more than usage they stay, and the refusal is for the client.
    pub no_stream_options: bool,
    /// Whether a stream is asked not to pad its events, unless the client chose.
    pub no_obfuscation: bool,
    /// Most tokens of each answer, lower than what the client or the model would allow.
    pub max_output: Option<MaxOutput>,
}

/// A limit of the output that is set on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxOutput {
    /// Tokens of one answer.
    pub tokens: i64,
    /// The member that says so where the client has none.
    pub member: MaxOutputMember,
}

/// The members that limit the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxOutputMember {
    /// `max_tokens`: understood everywhere but by the reasoning models of OpenAI.
    MaxTokens,
    /// `max_completion_tokens`: OpenAI's chat models.
    MaxCompletionTokens,
}

/// One place of the body and what stands there afterwards.
struct Edit<'a> {
    range: Range<usize>,
    text: [&'a str; 3],
}

/// Applies the changes to a body and leaves every other byte as it is.
///
/// Returns the same buffer, not a copy, when there is nothing to change. The outline must be that
/// of this body.
pub fn rewrite(body: &Bytes, outline: &Outline<'_>, changes: &Changes<'_>) -> Bytes {
    let model = changes
        .model
        .filter(|model| *model != outline.model)
        .map(quote);
    let model = model.as_deref().map(|text| Edit {
        range: outline.model_range.clone(),
        text: [text, "", ""],
    });
    let (value, members) = if changes.no_stream_options {
        (None, removal(body, outline))
    } else {
        stream_options_edits(outline, changes)
    };
    let limit = changes.max_output.map(LimitText::new);
    let [first, second] = limit
        .as_ref()
        .map_or([None, None], |limit| limit.edits(outline));
    let mut edits = [model, value, members, first, second];
    if edits.iter().all(Option::is_none) {
        return body.clone();
    }
    // What is inserted comes before what is removed at the same place.
    edits.sort_unstable_by_key(|edit| edit.as_ref().map(|edit| (edit.range.start, edit.range.end)));

    let added: usize = edits
        .iter()
        .flatten()
        .flat_map(|edit| edit.text)
        .map(str::len)
        .sum();
    let mut out = Vec::with_capacity(body.len() + added);
    let mut copied = 0;
    for edit in edits.iter().flatten() {
        out.extend_from_slice(body.get(copied..edit.range.start).unwrap_or_default());
        for text in edit.text {
            out.extend_from_slice(text.as_bytes());
        }
        copied = edit.range.end;
    }
    out.extend_from_slice(body.get(copied..).unwrap_or_default());
    out.into()
}

/// The texts of a limit of the output.
struct LimitText {
    number: String,
    member: &'static str,
}

impl LimitText {
    fn new(max: MaxOutput) -> Self {
        Self {
            number: max.tokens.max(0).to_string(),
            member: match max.member {
                MaxOutputMember::MaxTokens => r#""max_tokens":"#,
                MaxOutputMember::MaxCompletionTokens => r#""max_completion_tokens":"#,
            },
        }
    }

    /// Every value that is there is replaced; where there is none, a member is added.
    fn edits(&self, outline: &Outline<'_>) -> [Option<Edit<'_>>; 2] {
        let [first, second] = &outline.max_tokens_ranges;
        if first.is_none() && second.is_none() {
            let added = Edit {
                range: outline.insert_at..outline.insert_at,
                text: [self.member, &self.number, ","],
            };
            return [Some(added), None];
        }
        [first, second].map(|range| {
            range.clone().map(|range| Edit {
                range,
                text: [&self.number, "", ""],
            })
        })
    }
}

/// Returns the edit that takes `stream_options` out, with the comma that belongs to them.
fn removal(body: &[u8], outline: &Outline<'_>) -> Option<Edit<'static>> {
    let options = outline.stream_options.as_ref().filter(|o| !o.has_others)?;
    let mut end = options.range.end;
    if options.behind == outline.insert_at {
        let rest = body.get(end..)?;
        let space = rest.len() - rest.trim_ascii_start().len();
        if rest.get(space) == Some(&b',') {
            end += space + 1;
        }
    }
    Some(Edit {
        range: options.behind..end,
        text: [""; 3],
    })
}

/// Returns the edit of the value of `include_usage`, and the one that adds members.
fn stream_options_edits(
    outline: &Outline<'_>,
    changes: &Changes<'_>,
) -> (Option<Edit<'static>>, Option<Edit<'static>>) {
    if !outline.streams {
        return (None, None);
    }
    let options = outline.stream_options.as_ref();
    let asks = changes.ask_for_usage && !options.is_some_and(|options| options.include_usage);
    let unpads = changes.no_obfuscation && !options.is_some_and(|options| options.sets_obfuscation);
    let value = options
        .filter(|_| asks)
        .and_then(|options| options.include_usage_range.clone())
        .map(|range| Edit {
            range,
            text: ["true", "", ""],
        });
    let members = match (asks && value.is_none(), unpads) {
        (true, true) => r#""include_usage":true,"include_obfuscation":false"#,
        (true, false) => r#""include_usage":true"#,
        (false, true) => r#""include_obfuscation":false"#,
        (false, false) => return (value, None),
    };
    let members = match options {
        None => Edit {
            range: outline.insert_at..outline.insert_at,
            text: [r#""stream_options":{"#, members, "},"],
        },
        Some(options) if options.form == StreamOptionsForm::Null => Edit {
            range: options.range.clone(),
            text: ["{", members, "}"],
        },
        Some(options) => {
            let at = options.range.start + 1;
            let comma = if options.form == StreamOptionsForm::Empty {
                ""
            } else {
                ","
            };
            Edit {
                range: at..at,
                text: ["", members, comma],
            }
        }
    };
    (value, Some(members))
}

#[cfg(test)]
mod tests;
