//! The events of a stream, in the dialect of its script.

use sluice_domain::usage::TokenUsage;

use super::answer::{Counting, Part, error_body};
use super::call::Call;
use super::openai::{self, Delta, Frame};
use super::quirk::{ErrorShape, Quirk};
use super::script::Script;
use crate::words;

/// Builds the events of a chat or completion stream.
pub(super) struct Stream<'a> {
    counting: Counting<'a>,
    frame: Frame,
    words_so_far: usize,
    events: usize,
    parts: Vec<Part>,
}

impl<'a> Stream<'a> {
    pub(super) fn new(call: &'a Call, script: &'a Script, frame: Frame) -> Self {
        let counting = Counting::new(call, script);
        Self {
            counting,
            frame,
            words_so_far: 0,
            events: 0,
            parts: Vec::new(),
        }
    }

    fn has(&self, quirk: Quirk) -> bool {
        self.counting.script.has(quirk)
    }

    /// Returns all parts of the stream in order.
    pub(super) fn parts(mut self) -> Vec<Part> {
        let eol = line_end(self.counting.script);
        if self.has(Quirk::Bom) {
            self.parts.push(Part::other("\u{feff}"));
        }
        if self.has(Quirk::CommentFirst) {
            self.parts.push(Part::other(&comment(self.counting.script)));
        }
        if self.has(Quirk::RetryLine) {
            self.parts
                .push(Part::other(&format!("retry: 1000{eol}{eol}")));
        }
        if self.has(Quirk::PromptFilterFirst) {
            let chunk = self.frame.prompt_filter();
            self.push(&chunk, 0, None);
        }
        self.push_choices();
        self.push_usage();
        if !self.has(Quirk::NoDone) {
            self.push_done();
        }
        self.parts
    }

    fn push_choices(&mut self) {
        let choices = self.counting.call.choices;
        let repeats = self.has(Quirk::RoleRepeated);
        if self.frame.is_chat && !self.has(Quirk::RoleMissing) {
            for choice in 0..choices {
                self.push_chunk(&Delta {
                    choice,
                    role: true,
                    text: Some(String::new()),
                    finish: None,
                });
            }
        }
        for position in 0..self.counting.words {
            for choice in 0..choices {
                let text = Some(words::word(position));
                self.push_chunk(&Delta {
                    choice,
                    role: repeats,
                    text,
                    finish: None,
                });
            }
        }
        if !self.has(Quirk::NoFinishReason) {
            for choice in 0..choices {
                let finish = Some(self.counting.finish);
                self.push_chunk(&Delta {
                    choice,
                    role: repeats,
                    text: None,
                    finish,
                });
            }
        }
    }

    /// Pushes a chunk with one choice and the usage that belongs to it.
    fn push_chunk(&mut self, delta: &Delta) {
        let words = usize::from(delta.text.as_deref().is_some_and(|text| !text.is_empty()));
        self.words_so_far += words;
        let is_last = delta.finish.is_some() && delta.choice + 1 == self.counting.call.choices;
        let has_usage = self.has(Quirk::UsageEveryChunk)
            || (is_last && self.has(Quirk::UsageWithFinish) && self.asked());
        let reported = has_usage.then(|| self.counting.usage(self.words_so_far));
        let usage = match &reported {
            Some(usage) => Some(openai::usage(usage)),
            None => self.asked().then(|| "null".to_owned()),
        };
        let choice = self.frame.choice(delta);
        let chunk = self.chunk(&choice, usage.as_deref());
        self.push(&chunk, words, reported);
    }

    /// Pushes the chunk that has only the usage.
    fn push_usage(&mut self) {
        let is_due =
            (self.asked() && !self.has(Quirk::UsageWithFinish)) || self.has(Quirk::UsageUnasked);
        if is_due {
            let usage = self.counting.usage(self.words_so_far);
            let chunk = self.chunk("", Some(&openai::usage(&usage)));
            self.push(&chunk, 0, Some(usage));
        }
    }

    fn asked(&self) -> bool {
        self.counting.call.wants_usage && !self.has(Quirk::NoUsage)
    }

    fn chunk(&self, choices: &str, usage: Option<&str>) -> String {
        self.frame
            .chunk_of(choices, usage, self.has(Quirk::Obfuscation))
    }

    fn push_done(&mut self) {
        let mut bytes = event(self.counting.script, "[DONE]", self.events);
        if self.has(Quirk::DoneWithoutBlankLine) {
            bytes.truncate(bytes.len() - line_end(self.counting.script).len());
        }
        self.parts.push(Part::event(bytes));
    }

    fn push(&mut self, data: &str, words: usize, reported: Option<TokenUsage>) {
        let script = self.counting.script;
        for quirk in &script.quirks {
            match quirk {
                Quirk::CommentEvery(count) if self.events.is_multiple_of(*count) => {
                    self.parts.push(Part::other(&comment(script)));
                }
                _ => {}
            }
        }
        let bytes = event(script, data, self.events);
        self.parts.push(Part {
            words,
            reported,
            ..Part::event(bytes)
        });
        self.events += 1;
        if self.events == 1 {
            let eol = line_end(script);
            if self.has(Quirk::EmptyData) {
                self.parts.push(Part::other(&format!("data:{eol}{eol}")));
            }
            if self.has(Quirk::Ping) {
                self.parts
                    .push(Part::other(&format!("event: ping{eol}{eol}")));
            }
        }
    }
}

/// Returns the end of a line in the dialect of the script.
pub(super) fn line_end(script: &Script) -> &'static str {
    if script.has(Quirk::CrLf) {
        "\r\n"
    } else if script.has(Quirk::Cr) {
        "\r"
    } else {
        "\n"
    }
}

/// Returns the comment that keeps a stream alive.
pub(super) fn comment(script: &Script) -> String {
    let eol = line_end(script);
    format!(": keep-alive{eol}{eol}")
}

/// Writes an event in the dialect of the script.
fn event(script: &Script, data: &str, number: usize) -> Vec<u8> {
    let eol = line_end(script);
    let space = if script.has(Quirk::NoSpace) { "" } else { " " };
    let mut text = String::with_capacity(data.len() + 16);
    let mut line = |name: &str, value: &str| {
        for part in [name, ":", space, value, eol] {
            text.push_str(part);
        }
    };
    if script.has(Quirk::IdLines) {
        line("id", &number.to_string());
    }
    if script.has(Quirk::EventLines) {
        line("event", "message");
    }
    // A line end is white space to JSON, so that the data may be parted after a comma.
    match data
        .split_once(',')
        .filter(|_| script.has(Quirk::TwoDataLines))
    {
        Some((first, second)) => {
            line("data", &format!("{first},"));
            line("data", second);
        }
        None => line("data", data),
    }
    text.push_str(eol);
    text.into_bytes()
}

/// Writes an event with a name, as the Anthropic API does.
pub(super) fn named_event(script: &Script, name: &str, data: &str) -> Vec<u8> {
    let eol = line_end(script);
    let space = if script.has(Quirk::NoSpace) { "" } else { " " };
    format!("event:{space}{name}{eol}data:{space}{data}{eol}{eol}").into_bytes()
}

/// Returns an event whose data is no JSON.
pub(super) fn garbage(script: &Script) -> Part {
    let data = r#"{"id":"chatcmpl-fake","choices":[{"index":0,"delta":{"content":" hal"#;
    Part::other(&String::from_utf8_lossy(&event(script, data, 0)))
}

/// Returns the events of an error inside a stream.
pub(super) fn error_events(script: &Script, shape: ErrorShape, number: usize) -> Vec<Part> {
    let mut bytes = event(script, &error_body(shape), number);
    let eol = line_end(script);
    if shape == ErrorShape::ObjectWithEventLine {
        bytes.splice(..0, format!("event: error{eol}").into_bytes());
    }
    let mut parts = vec![Part::event(bytes)];
    if shape == ErrorShape::FlatThenDone {
        parts.push(Part::event(event(script, "[DONE]", number + 1)));
    }
    parts
}
