//! Streams of messages on their way through.

use bytes::Bytes;
use serde_json::Value;
use sluice_domain::usage::TokenUsage;

use super::event::{Event as Read, Kind};
use super::usage::Usage;
use crate::failure;
use crate::output::OutputText;
use crate::sse::{Event, Splitter, events};
use crate::stream::{Forward, StreamEnding, StreamError, StreamFinish, StreamStep};

/// The event that keeps a silent connection alive; allowed between any two events.
///
/// # Source
/// Claude Code gives a stream up after some 15 s without an event, and a comment is none.
pub const PING: &[u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";

/// The event that ends a stream well.
pub const STOP: &[u8] = b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

/// Reads a stream of messages while it passes.
///
/// Events are forwarded as they are. One without a name is given the name that its data says,
/// because the SDKs skip it otherwise.
#[derive(Debug)]
pub struct MessageInspector {
    splitter: Splitter,
    usage: Usage,
    /// Whether the usage is that of the whole answer.
    is_final: bool,
    output: OutputText,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Done,
    Failed,
}

/// What becomes of one event.
enum Verdict {
    /// It is forwarded, and something of the answer.
    Answer,
    /// It is forwarded and says nothing.
    Filler,
    Drop,
    End(StreamEnding),
}

impl MessageInspector {
    /// Returns an inspector for a new stream.
    ///
    /// # Units
    /// `max_event_bytes` counts all lines of an event and their ends.
    pub fn new(max_event_bytes: usize) -> Self {
        Self {
            splitter: Splitter::new(max_event_bytes),
            usage: Usage::default(),
            is_final: false,
            output: OutputText::default(),
            state: State::Open,
        }
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// [`StreamError::EventTooLarge`], once everything before that event has been returned. The
    /// stream is over then.
    pub fn push(&mut self, frame: Bytes) -> Result<StreamStep, StreamError> {
        let mut step = StreamStep {
            forward: Bytes::new(),
            events: 0,
            ending: None,
        };
        if self.state != State::Open {
            return Ok(step);
        }
        let whole = match self.splitter.push(frame) {
            Ok(whole) => whole,
            Err(error) => {
                self.state = State::Failed;
                return Err(error.into());
            }
        };
        let mut forward = Forward::new(&whole);
        for event in events(&whole) {
            let data = event.data.as_deref().unwrap_or_default();
            let read = Read::read(data);
            let verdict = self.judge(&event, data, read.as_ref());
            let is_forwarded = match &verdict {
                Verdict::Answer => {
                    step.events += 1;
                    true
                }
                Verdict::Filler => true,
                Verdict::Drop => false,
                Verdict::End(ending) => !matches!(ending, StreamEnding::Failed(_)),
            };
            if is_forwarded {
                match read.as_ref().map(Read::name) {
                    Some(name) if event.name.is_none() && is_word(name) => {
                        forward.keep_behind(format!("event: {name}\n").as_bytes(), &event);
                    }
                    _ => forward.keep_as_it_is(&event),
                }
            }
            if let Verdict::End(ending) = verdict {
                self.state = if ending == StreamEnding::Done {
                    State::Done
                } else {
                    State::Failed
                };
                step.ending = Some(ending);
                break;
            }
        }
        step.forward = forward.finish();
        self.output.shrink();
        Ok(step)
    }

    /// Tells what it means that no further frame comes.
    pub fn finish(&mut self) -> StreamFinish {
        match self.state {
            State::Done => return StreamFinish::Complete,
            State::Failed => return StreamFinish::Truncated,
            State::Open => {}
        }
        self.state = State::Failed;
        let mut rest = self.splitter.rest().to_vec();
        rest.extend_from_slice(b"\n\n");
        // Some servers leave out the last blank line.
        let is_stop = events(&rest).next().is_some_and(|event| {
            let read = event.data.as_deref().and_then(Read::read);
            kind_of(&event, read.as_ref()) == Kind::MessageStop
        });
        if is_stop {
            StreamFinish::CompleteWithoutDone
        } else {
            StreamFinish::Truncated
        }
    }

    /// Returns the usage of the whole answer, once the provider has reported it.
    pub fn usage(&self) -> Option<TokenUsage> {
        if self.is_final {
            self.usage.into_form()
        } else {
            None
        }
    }

    /// Returns what is known of the usage until now: the provider's numbers, and at least the output
    /// that was read. `None` before the provider has said anything about the input.
    pub fn usage_so_far(&self) -> Option<TokenUsage> {
        let mut usage = self.usage.into_form()?;
        if !self.is_final {
            usage.output = usage.output.max(self.output.least_tokens());
        }
        Some(usage)
    }

    /// Returns the text that was read so far.
    pub fn output(&self) -> &OutputText {
        &self.output
    }

    /// Takes the text that was read so far, for counting it.
    pub fn take_output(&mut self) -> OutputText {
        std::mem::take(&mut self.output)
    }

    /// Reads one event and decides about it.
    fn judge(&mut self, event: &Event<'_>, data: &[u8], read: Option<&Read<'_>>) -> Verdict {
        let kind = kind_of(event, read);
        if kind == Kind::Error {
            return Verdict::End(error_ending(data));
        }
        if kind == Kind::Ping || (!event.has_data() && kind != Kind::MessageStop) {
            return Verdict::Filler;
        }
        let Some(read) = read else {
            return match (event.name, kind) {
                (None, _) if data.trim_ascii() == b"[DONE]" => Verdict::Drop,
                // Nobody knows what those to come hold.
                (Some(_), Kind::Other) => Verdict::Answer,
                (_, Kind::MessageStop) => Verdict::End(StreamEnding::Done),
                _ => Verdict::End(StreamEnding::Failed(failure::of_garbage())),
            };
        };
        if let Some(usage) = read.usage() {
            self.usage = self.usage.updated(usage);
        }
        match kind {
            // More may follow a report, which is then not that of the whole answer.
            Kind::Content => {
                self.is_final = false;
                read.add_to(&mut self.output);
            }
            Kind::MessageDelta => self.is_final = read.usage().is_some(),
            Kind::MessageStop => return Verdict::End(StreamEnding::Done),
            _ => {}
        }
        Verdict::Answer
    }
}

/// Returns whether a name may stand in a line.
fn is_word(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    !name.is_empty() && name.bytes().all(is_plain)
}

/// Returns what an event is, by its name, else by its data.
fn kind_of(event: &Event<'_>, read: Option<&Read<'_>>) -> Kind {
    let of_data = || read.map_or(Kind::Other, |read| Kind::of(read.name().as_bytes()));
    match event.name.map(Kind::of) {
        // A client that does not know the name would skip the error.
        None | Some(Kind::Other) => of_data(),
        Some(kind) => kind,
    }
}

/// An error that a client of the Anthropic API reads passes as it is: clients match its words.
fn error_ending(data: &[u8]) -> StreamEnding {
    let said = serde_json::from_slice::<Value>(data).ok();
    let is_readable = said.is_some_and(|said| {
        said.get("type").is_some_and(|word| word == "error")
            && said
                .get("error")
                .and_then(|error| error.get("type"))
                .is_some_and(Value::is_string)
    });
    if is_readable {
        StreamEnding::FailedInItsWords
    } else {
        StreamEnding::Failed(failure::of_event(data))
    }
}

#[cfg(test)]
mod tests;
