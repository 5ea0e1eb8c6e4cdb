//! What the built-in upstream reads of a request.

use serde_json::{Map, Value};
use sluice_domain::route::Endpoint;

/// A request that the built-in upstream cannot answer.
#[derive(Debug)]
pub(super) struct InvalidRequest {
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
}

impl InvalidRequest {
    pub(super) fn new(message: impl Into<String>, param: &'static str) -> Self {
        Self {
            message: message.into(),
            param: Some(param),
        }
    }
}

/// The parts of a request that change the answer.
#[derive(Debug)]
pub(super) struct DemoRequest {
    /// Words of all messages and the system prompt, or of the prompt.
    pub(super) input_words: usize,
    /// Where the answer is cut.
    pub(super) max_words: Option<usize>,
    /// Whether a stream ends with a chunk of usage.
    pub(super) includes_usage: bool,
    /// The texts to embed; empty for other endpoints.
    pub(super) inputs: Vec<String>,
    /// Length of a vector.
    pub(super) dimensions: Option<u64>,
    /// Whether vectors are packed into base64.
    pub(super) is_base64: bool,
}

impl DemoRequest {
    /// Reads a request.
    pub(super) fn read(endpoint: Endpoint, body: &[u8]) -> Result<Self, InvalidRequest> {
        let Ok(Value::Object(body)) = serde_json::from_slice(body) else {
            let message = "the body of the request is not a JSON object".to_owned();
            return Err(InvalidRequest {
                message,
                param: None,
            });
        };
        let (input_words, inputs) = match endpoint {
            Endpoint::ChatCompletions => (words_of_messages(&body)?, Vec::new()),
            Endpoint::Messages | Endpoint::CountTokens => {
                let is_limited = body.get("max_tokens").and_then(Value::as_u64) > Some(0);
                if endpoint == Endpoint::Messages && !is_limited {
                    return Err(InvalidRequest::new(
                        "max_tokens: a number of at least 1 is required",
                        "max_tokens",
                    ));
                }
                let words = words_of_messages(&body)? + words_of(body.get("system"));
                (words, Vec::new())
            }
            Endpoint::Completions => (words_of(body.get("prompt")), Vec::new()),
            Endpoint::Embeddings => {
                let inputs = read_inputs(body.get("input"))?;
                (inputs.iter().map(|input| count_words(input)).sum(), inputs)
            }
        };
        let max_words = ["max_completion_tokens", "max_tokens"]
            .iter()
            .find_map(|name| body.get(*name)?.as_u64())
            .map(|max| usize::try_from(max).unwrap_or(usize::MAX).max(1));
        Ok(Self {
            input_words,
            max_words,
            includes_usage: body
                .get("stream_options")
                .and_then(|options| options.get("include_usage"))
                .and_then(Value::as_bool)
                .unwrap_or(false),
            inputs,
            dimensions: body.get("dimensions").and_then(Value::as_u64),
            is_base64: body.get("encoding_format").and_then(Value::as_str) == Some("base64"),
        })
    }
}

/// Counts words, the tokens of this upstream.
pub(super) fn count_words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Counts the words of all messages.
fn words_of_messages(body: &Map<String, Value>) -> Result<usize, InvalidRequest> {
    let messages = body.get("messages").and_then(Value::as_array);
    let messages = messages
        .filter(|messages| !messages.is_empty())
        .ok_or_else(|| {
            InvalidRequest::new(
                "`messages` must be a list with at least one message",
                "messages",
            )
        })?;
    let words = messages.iter().map(|m| words_of(m.get("content")));
    Ok(words.sum())
}

/// Counts the words of a string, of a list of strings, or of the text parts of a message.
fn words_of(content: Option<&Value>) -> usize {
    match content {
        Some(Value::String(text)) => count_words(text),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match part {
                Value::String(text) => count_words(text),
                other => other
                    .get("text")
                    .and_then(Value::as_str)
                    .map_or(0, count_words),
            })
            .sum(),
        _ => 0,
    }
}

/// Reads the four forms of an input: a text, texts, token ids, lists of token ids.
fn read_inputs(input: Option<&Value>) -> Result<Vec<String>, InvalidRequest> {
    /// As many as the OpenAI API takes in one request.
    const MAX_INPUTS: usize = 2_048;
    let ids = |list: &[Value]| {
        let words: Vec<String> = list.iter().map(Value::to_string).collect();
        words.join(" ")
    };
    let inputs: Vec<String> = match input {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(list)) if list.iter().all(Value::is_u64) => vec![ids(list)],
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|item| match item {
                Value::String(text) => Some(text.clone()),
                Value::Array(list) => Some(ids(list)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let is_fine = (1..=MAX_INPUTS).contains(&inputs.len()) && !inputs.iter().any(String::is_empty);
    if is_fine {
        Ok(inputs)
    } else {
        Err(InvalidRequest::new(
            format!(
                "`input` must be a text or a list of 1 to {MAX_INPUTS} texts, none of them empty"
            ),
            "input",
        ))
    }
}
