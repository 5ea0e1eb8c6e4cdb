//! Answers of servers that are not OpenAI's own, brought into the form that the SDKs take.
//!
//! What is in that form already passes as it came; only what deviates is written anew, and of that
//! only the members that deviate.
//!
//! # Source
//! `openai` for Python 3.51 and for Node 7.55: their accumulating helpers join repeated roles, ids
//! and names, merge calls with the same index, and fail without role, index, choices or finish
//! reason. `langchain-openai` 1.7 adds up the usage of all chunks.

mod call;

mod object;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use sluice_domain::id::RequestId;
use sluice_domain::route::Endpoint;
use sluice_domain::time::UnixMillis;

use crate::json::quote;

use self::call::Calls;
use self::object::{Object, array, elements, is_absent, said};

/// More choices of one answer are passed on as they come.
const MAX_CHOICES: usize = 128;

/// What an answer is called where its server says nothing about that.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Makes the `id`, and ids of calls.
    pub request_id: RequestId,
    /// `created`.
    pub created: UnixMillis,
    /// `model`.
    pub model: Arc<str>,
}

impl Identity {
    fn id(&self, is_chat: bool) -> String {
        let prefix = if is_chat { "chatcmpl" } else { "cmpl" };
        quote(&format!("{prefix}-{}", self.request_id.as_uuid().simple()))
    }

    /// Returns what makes ids of calls: the random part of the request, and the choice.
    fn seed(&self, choice: i64) -> String {
        let (_, low) = self.request_id.as_uuid().as_u64_pair();
        format!("{low:x}{choice}")
    }
}

/// What becomes of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It passes as it came. `is_settled` says that another one with the same frame would too.
    AsItCame { is_settled: bool },
    /// This passes in its place.
    Rewritten(String),
    /// It only has usage, which comes last.
    Usage,
    /// It is nothing.
    Drop,
}

/// The members that all chunks of a stream share, as they stand in them.
#[derive(Debug)]
struct Envelope {
    id: String,
    object: &'static str,
    created: String,
    model: String,
}

/// Brings the chunks of one stream into form.
#[derive(Debug)]
pub(crate) struct Normalizer {
    is_chat: bool,
    identity: Identity,
    envelope: Option<Envelope>,
    choices: Vec<Choice>,
    /// Whether the client asked for the usage.
    wants_usage: bool,
    /// The usage as it was reported last.
    usage: Usage,
    /// The choice and the call whose arguments are all that the chunk has which was read last.
    last_call: Option<(usize, usize)>,
    /// The same of the chunk whose frame was learned.
    settled_call: Option<(usize, usize)>,
}

#[derive(Debug)]
struct Choice {
    index: i64,
    is_finished: bool,
    calls: Calls,
}

/// The usage that the stream ends with.
#[derive(Debug, Default)]
enum Usage {
    #[default]
    None,
    /// Reported beside text.
    Object(String),
    /// Reported by an event of its own, which is kept as it came.
    Event(Bytes),
    /// Passed already: every choice had ended.
    Sent(String),
}

/// What reading a choice has shown.
struct ChoiceNews {
    /// The choice as it is to be written, if it is not as it was read.
    rewritten: Option<String>,
    is_settled: bool,
    /// The call whose arguments are all that the choice has.
    continues: Option<(usize, usize)>,
}

impl Normalizer {
    pub(crate) fn new(endpoint: Endpoint, identity: Identity, wants_usage: bool) -> Self {
        Self {
            is_chat: endpoint == Endpoint::ChatCompletions,
            identity,
            envelope: None,
            choices: Vec::new(),
            wants_usage,
            usage: Usage::None,
            last_call: None,
            settled_call: None,
        }
    }

    /// Reads a chunk and says what becomes of it.
    pub(crate) fn read(&mut self, data: &[u8]) -> Passage {
        self.last_call = None;
        let chunk = str::from_utf8(data).ok().and_then(Object::parse);
        let Some(mut chunk) = chunk else {
            return Passage::Drop;
        };
        self.settle_envelope(&mut chunk);
        let choices = chunk.read("choices").and_then(elements);
        if choices.is_none() {
            chunk.set("choices", "[]");
        }
        let choices = choices.unwrap_or_default();
        let has_choice = !choices.is_empty();
        let known = self.choices.len();
        let is_settled = self.read_choices(&mut chunk, &choices);
        if let Usage::Sent(usage) = &mut self.usage {
            if self.choices.len() == known {
                // To some clients the usage is lost when anything follows it.
                return Passage::Drop;
            }
            self.usage = Usage::Object(std::mem::take(usage));
        }
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.starts_with('{')) {
            let usage = on_one_line(usage.to_owned());
            if has_choice {
                self.usage = Usage::Object(usage);
                chunk.remove("usage");
            } else if self.is_finished() {
                self.usage = Usage::Sent(usage);
            } else if chunk.is_changed {
                self.usage = Usage::Event(event(&on_one_line(chunk.to_json())).into());
                return Passage::Drop;
            } else {
                return Passage::Usage;
            }
        }
        if chunk.is_changed {
            Passage::Rewritten(on_one_line(chunk.to_json()))
        } else {
            Passage::AsItCame {
                is_settled: is_settled && has_choice,
            }
        }
    }

    /// Keeps the event that only has usage until the stream ends.
    pub(crate) fn keep_usage(&mut self, event: Bytes) {
        self.usage = Usage::Event(event);
    }

    /// Notes that the frame of the chunk that was read last is settled: what has it is not read.
    pub(crate) fn learned(&mut self) {
        self.settled_call = self.last_call;
    }

    /// Notes the text of a chunk that was not read because its frame is settled.
    pub(crate) fn settled(&mut self, text: &str) {
        if let Some((choice, call)) = self.settled_call
            && let Some(choice) = self.choices.get_mut(choice)
        {
            choice.calls.continued(call, text);
        }
    }

    /// Returns whether every choice has said why it ended.
    pub(crate) fn is_finished(&self) -> bool {
        !self.choices.is_empty() && self.choices.iter().all(|choice| choice.is_finished)
    }

    /// Returns the events that are missing at the end of a stream that ended well.
    pub(crate) fn finish(&mut self) -> Bytes {
        let usage = std::mem::take(&mut self.usage);
        let unfinished: Vec<String> = self
            .choices
            .iter_mut()
            .filter(|choice| !choice.is_finished)
            .map(|choice| {
                choice.is_finished = true;
                let (index, reason) = (choice.index, choice.reason());
                if self.is_chat {
                    format!(r#"{{"index":{index},"delta":{{}},"finish_reason":{reason}}}"#)
                } else {
                    format!(r#"{{"index":{index},"text":"","finish_reason":{reason}}}"#)
                }
            })
            .collect();
        let mut events = String::new();
        if !unfinished.is_empty() {
            let choices = array(unfinished);
            events = event(&format!("{}\"choices\":{choices}}}", self.opening()));
        }
        match usage {
            Usage::Object(usage) if self.wants_usage => {
                events += &event(&format!(
                    "{}\"choices\":[],\"usage\":{usage}}}",
                    self.opening()
                ));
            }
            Usage::Event(usage) if self.wants_usage && events.is_empty() => return usage,
            Usage::Event(usage) if self.wants_usage => {
                return Bytes::from([events.as_bytes(), &usage].concat());
            }
            Usage::None | Usage::Object(_) | Usage::Event(_) | Usage::Sent(_) => {}
        }
        events.into()
    }

    /// Returns the beginning of a chunk of our own.
    fn opening(&self) -> String {
        self.envelope.as_ref().map_or_else(
            || "{".to_owned(),
            |envelope| {
                let Envelope {
                    id,
                    object,
                    created,
                    model,
                } = envelope;
                format!(r#"{{"id":{id},"object":{object},"created":{created},"model":{model},"#)
            },
        )
    }

    /// Gives the chunk the id, the time and the model of the first one.
    fn settle_envelope(&mut self, chunk: &mut Object<'_>) {
        let (identity, is_chat) = (&self.identity, self.is_chat);
        let envelope = self.envelope.get_or_insert_with(|| Envelope {
            id: text_or(chunk.get("id"), || identity.id(is_chat)),
            object: if is_chat {
                r#""chat.completion.chunk""#
            } else {
                r#""text_completion""#
            },
            created: created_or(chunk.get("created"), identity),
            model: text_or(chunk.get("model"), || quote(&identity.model)),
        });
        for (key, value) in [
            ("id", &*envelope.id),
            ("object", envelope.object),
            ("created", &*envelope.created),
            ("model", &*envelope.model),
        ] {
            if chunk.get(key) != Some(value) {
                chunk.set(key, value.to_owned());
            }
        }
    }

    /// Reads the choices of a chunk; returns whether another one of the same form passes too.
    fn read_choices(&mut self, chunk: &mut Object<'_>, choices: &[&str]) -> bool {
        let (mut is_settled, mut is_changed) = (true, false);
        let mut written: Vec<Cow<'_, str>> = Vec::with_capacity(choices.len());
        let mut continued = None;
        for (position, raw) in choices.iter().enumerate() {
            let Some(choice) = Object::parse(raw) else {
                is_changed = true;
                continue;
            };
            let news = self.read_choice(choice, position);
            is_settled &= news.is_settled;
            continued = news.continues;
            is_changed |= news.rewritten.is_some();
            written.push(news.rewritten.map_or(Cow::Borrowed(*raw), Cow::Owned));
        }
        if is_changed {
            chunk.set("choices", array(written));
        } else if choices.len() == 1 {
            self.last_call = continued;
        }
        is_settled
    }

    fn read_choice(&mut self, mut choice: Object<'_>, position: usize) -> ChoiceNews {
        let mut news = ChoiceNews {
            rewritten: None,
            is_settled: true,
            continues: None,
        };
        let index = choice.get("index").and_then(|raw| raw.parse::<i64>().ok());
        let index = index.unwrap_or_else(|| {
            let index = i64::try_from(position).unwrap_or(i64::MAX);
            choice.set("index", index.to_string());
            index
        });
        let known = self.choices.iter().position(|known| known.index == index);
        let place = known.unwrap_or(self.choices.len());
        if known.is_none() {
            if self.choices.len() >= MAX_CHOICES {
                return news;
            }
            news.is_settled = false;
            self.choices.push(Choice {
                index,
                is_finished: false,
                calls: Calls::default(),
            });
        }
        let Some(state) = self.choices.get_mut(place) else {
            return news;
        };
        if self.is_chat {
            let delta = choice.read("delta").and_then(Object::parse);
            if delta.is_none() {
                choice.set("delta", "{}");
            }
            let mut delta = delta.unwrap_or_default();
            if known.is_none() {
                give_role(&mut delta);
            } else if said(delta.get("role")).is_some() {
                delta.remove("role");
            }
            share_reasoning(&mut delta);
            if let Some(calls) = delta.read("tool_calls") {
                let seed = || self.identity.seed(index);
                let outcome = state.calls.take(calls, false, &seed());
                news.is_settled &= !outcome.is_news;
                let is_alone = said(delta.get("content")).is_none();
                news.continues = outcome
                    .continues
                    .filter(|_| is_alone)
                    .map(|call| (place, call));
                if let Some(calls) = outcome.rewritten {
                    delta.set("tool_calls", calls);
                }
            }
            if delta.is_changed {
                choice.set("delta", delta.to_json());
            }
        }
        news.is_settled &= !state.finish(&mut choice);
        news.rewritten = choice.is_changed.then(|| choice.to_json());
        news
    }
}

impl Choice {
    /// Leaves one finish reason; returns whether this is it.
    fn finish(&mut self, choice: &mut Object<'_>) -> bool {
        let reason = choice.get("finish_reason");
        if is_absent(reason) {
            return false;
        }
        if self.is_finished || said(reason).is_none() {
            choice.set("finish_reason", "null");
            return false;
        }
        self.is_finished = true;
        if said(reason).as_deref() == Some("stop") && !self.calls.is_empty() {
            choice.set("finish_reason", self.reason());
        }
        true
    }

    /// Returns why it ended where nobody says so.
    fn reason(&self) -> &'static str {
        if self.calls.is_empty() {
            r#""stop""#
        } else {
            r#""tool_calls""#
        }
    }
}

/// Brings an answer in one piece into form; `None` when it is in that form, or is no such answer.
pub fn normalize_answer(endpoint: Endpoint, body: &[u8], identity: &Identity) -> Option<Bytes> {
    let is_chat = match endpoint {
        Endpoint::ChatCompletions => true,
        Endpoint::Completions => false,
        Endpoint::Embeddings | Endpoint::Messages | Endpoint::CountTokens => return None,
    };
    let mut answer = str::from_utf8(body).ok().and_then(Object::parse)?;
    let choices = answer.read("choices").and_then(elements);
    let written = choices
        .as_ref()
        .map(|choices| whole_choices(choices, is_chat, identity));
    match written {
        Some(None) => {}
        Some(Some(choices)) => answer.set("choices", choices),
        None => answer.set("choices", "[]"),
    }
    for (key, value) in [
        ("id", text_or(answer.get("id"), || identity.id(is_chat))),
        ("created", created_or(answer.get("created"), identity)),
        (
            "model",
            text_or(answer.get("model"), || quote(&identity.model)),
        ),
        (
            "object",
            text_or(answer.get("object"), || {
                quote(if is_chat {
                    "chat.completion"
                } else {
                    "text_completion"
                })
            }),
        ),
    ] {
        if answer.get(key) != Some(&value) {
            answer.set(key, value);
        }
    }
    answer.is_changed.then(|| answer.to_json().into())
}

/// Returns the choices of a whole answer where they are to be written anew.
fn whole_choices(choices: &[&str], is_chat: bool, identity: &Identity) -> Option<String> {
    let mut is_changed = false;
    let mut written: Vec<Cow<'_, str>> = Vec::with_capacity(choices.len());
    for (position, raw) in choices.iter().enumerate() {
        let Some(mut choice) = Object::parse(raw) else {
            is_changed = true;
            continue;
        };
        let index = i64::try_from(position).unwrap_or(i64::MAX);
        if is_absent(choice.get("index")) {
            choice.set("index", index.to_string());
        }
        let mut state = Choice {
            index,
            is_finished: false,
            calls: Calls::default(),
        };
        if is_chat {
            let message = choice.read("message").and_then(Object::parse);
            let mut message = message.unwrap_or_default();
            give_role(&mut message);
            if message.get("content").is_none() {
                message.set("content", "null");
            }
            share_reasoning(&mut message);
            if let Some(calls) = message.read("tool_calls") {
                let outcome = state.calls.take(calls, true, &identity.seed(index));
                if let Some(calls) = outcome.rewritten {
                    message.set("tool_calls", calls);
                }
            }
            if message.is_changed {
                choice.set("message", message.to_json());
            }
        }
        if !state.finish(&mut choice) {
            choice.set("finish_reason", state.reason());
        }
        is_changed |= choice.is_changed;
        written.push(if choice.is_changed {
            Cow::Owned(choice.to_json())
        } else {
            Cow::Borrowed(*raw)
        });
    }
    is_changed.then(|| array(written))
}

fn give_role(message: &mut Object<'_>) {
    if said(message.get("role")).is_none() {
        message.set("role", r#""assistant""#);
    }
}

/// Says reasoning under both of its names: vLLM renamed it, and clients know one or the other.
fn share_reasoning(message: &mut Object<'_>) {
    let names = ["reasoning", "reasoning_content"];
    for (from, to) in [(names[0], names[1]), (names[1], names[0])] {
        if let Some(text) = message.read(from)
            && text.starts_with('"')
            && said(Some(text)).is_some()
            && said(message.get(to)).is_none()
        {
            message.set(to, text);
        }
    }
}

fn text_or(raw: Option<&str>, default: impl FnOnce() -> String) -> String {
    match raw.filter(|raw| said(Some(raw)).is_some()) {
        Some(raw) => raw.to_owned(),
        None => default(),
    }
}

/// Returns a time in whole seconds.
fn created_or(raw: Option<&str>, identity: &Identity) -> String {
    let whole = raw.and_then(|raw| raw.split('.').next());
    let seconds = whole.and_then(|seconds| seconds.parse::<i64>().ok());
    match seconds.filter(|seconds| *seconds > 0) {
        Some(seconds) => seconds.to_string(),
        None => identity.created.as_seconds().to_string(),
    }
}

/// Writes an event with this data.
pub(crate) fn event(data: &str) -> String {
    format!("data: {data}\n\n")
}

/// Line ends of data that came in several lines stand between tokens of the JSON.
fn on_one_line(json: String) -> String {
    if json.contains('\n') {
        json.replace('\n', " ")
    } else {
        json
    }
}

#[cfg(test)]
mod tests;
