//! Streams on their way through: what is forwarded, what is read, how they end.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use sluice_domain::route::Endpoint;
use sluice_domain::usage::TokenUsage;

use crate::chunk::{ChunkReader, UnusualChunk};
use crate::failure::{self, ErrorEvent};
use crate::json::quote;
use crate::normal::{self, Identity, Normalizer, Passage};
use crate::output::OutputText;
use crate::sse::{Event, EventTooLarge, Splitter, events, write_clean};
use crate::usage;

/// A comment that keeps a silent connection alive; allowed between any two events.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// The event that ends a stream well.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// The data of the event that ends a stream well.
const DONE_DATA: &[u8] = b"[DONE]";

/// Returns the event that ends a stream badly; nothing may follow it.
pub fn error_event(message: &str, kind: &str, code: Option<&str>) -> Bytes {
    let code = code.map_or_else(|| "null".to_owned(), quote);
    let (message, kind) = (quote(message), quote(kind));
    let event = format!(
        "data: {{\"error\":{{\"message\":{message},\"type\":{kind},\"param\":null,\"code\":{code}}}}}\n\n"
    );
    event.into()
}

/// How a stream is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether the chunk that only reports usage is removed, because the client did not ask for it.
    pub strip_usage: bool,
    /// Largest event that is accepted, in bytes.
    pub max_event_bytes: usize,
    /// How many choices were asked for. A stream without `[DONE]` is whole when as many have ended.
    pub choices: usize,
}

/// What became of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStep {
    /// What goes to the client, possibly nothing: whole events only.
    pub forward: Bytes,
    /// Events with data in it, `[DONE]` not counted.
    pub events: u32,
    /// Set once, when the stream has ended; everything after that is dropped.
    pub ending: Option<StreamEnding>,
}

/// How a stream said that it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnding {
    /// With its terminal event, which is the last that is forwarded.
    Done,
    /// With an error, which is not forwarded.
    Failed(ErrorEvent),
    /// With an error that a client understands; it is the last that is forwarded.
    FailedInItsWords,
}

/// What the end of the bytes means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFinish {
    /// The terminal event was seen and forwarded.
    Complete,
    /// Everything came but the terminal event, which is left to the caller to send.
    CompleteWithoutDone,
    /// The answer is cut, or ended with an error.
    Truncated,
}

/// A stream cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// An event is larger than accepted.
    #[error("the upstream sent an event of more than {limit_bytes} bytes")]
    EventTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
}

impl From<EventTooLarge> for StreamError {
    fn from(error: EventTooLarge) -> Self {
        Self::EventTooLarge {
            limit_bytes: error.limit_bytes,
        }
    }
}

/// Reads a stream while it passes.
///
/// Frames of whole and harmless events are forwarded as they are. Held back are parts of events;
/// removed are fields, empty events and a byte order mark, which break clients.
///
/// # Source
/// `id`, `retry` and empty events end `openai-python` 3.51 with a decoding error, a byte order mark
/// swallows its first event, and `event` hides errors from it.
#[derive(Debug)]
pub struct StreamInspector {
    endpoint: Endpoint,
    splitter: Splitter,
    strip_usage: bool,
    /// Brings chunks into form; `None` where the provider's own form passes.
    normalizer: Option<Box<Normalizer>>,
    usage: Option<TokenUsage>,
    reader: ChunkReader,
    output: OutputText,
    /// How many choices must end.
    choices: usize,
    /// The choices that have said why they ended.
    ended: Vec<usize>,
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
    Forward,
    /// This data passes in place of the event's.
    Replace(String),
    /// It is kept for the end of the stream.
    Keep,
    Drop,
    End(StreamEnding),
}

impl StreamInspector {
    /// Returns an inspector for a new stream.
    ///
    /// All endpoints that can stream have the same frame.
    pub fn new(endpoint: Endpoint, options: StreamOptions) -> Self {
        debug_assert!(endpoint.can_stream(), "the endpoint cannot stream");
        Self {
            endpoint,
            splitter: Splitter::new(options.max_event_bytes),
            strip_usage: options.strip_usage,
            normalizer: None,
            usage: None,
            reader: ChunkReader::default(),
            output: OutputText::default(),
            choices: options.choices.max(1),
            ended: Vec::new(),
            state: State::Open,
        }
    }

    /// Brings the chunks of the stream into the form that the SDKs take, before the first of them.
    pub fn normalize(&mut self, identity: Identity) {
        let normalizer = Normalizer::new(self.endpoint, identity, !self.strip_usage);
        self.normalizer = Some(Box::new(normalizer));
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
            match self.judge(&event) {
                Verdict::Forward => {
                    step.events += u32::from(event.has_data());
                    forward.keep(&event);
                }
                Verdict::Replace(data) => {
                    step.events += 1;
                    forward.put(normal::event(&data).as_bytes());
                }
                Verdict::Keep => {
                    step.events += 1;
                    if let Some(normalizer) = &mut self.normalizer {
                        normalizer.keep_usage(clean(&whole, &event));
                    }
                }
                Verdict::Drop => {}
                Verdict::End(ending) => {
                    if ending == StreamEnding::Done {
                        forward.put(&self.take_tail());
                        forward.keep(&event);
                        self.state = State::Done;
                    } else {
                        self.state = State::Failed;
                    }
                    step.ending = Some(ending);
                    break;
                }
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
        let mut rest = self.splitter.rest().to_vec();
        rest.extend_from_slice(b"\n\n");
        // Some servers leave out the last blank line.
        let last = events(&rest).find(Event::has_data);
        let finish = match last.as_ref().and_then(|event| event.data.as_deref()) {
            Some(data) if data.trim_ascii() == DONE_DATA => StreamFinish::CompleteWithoutDone,
            None if self.is_finished() && is_only_comments(&rest) => {
                StreamFinish::CompleteWithoutDone
            }
            _ => StreamFinish::Truncated,
        };
        self.state = State::Failed;
        finish
    }

    /// Returns the events that are still missing before `[DONE]`, where
    /// [`finish`](Self::finish) says that it is left to the caller. Whole events, possibly none.
    pub fn take_tail(&mut self) -> Bytes {
        let normalizer = self.normalizer.as_mut();
        normalizer.map_or_else(Bytes::new, |normalizer| normalizer.finish())
    }

    fn is_finished(&self) -> bool {
        match &self.normalizer {
            Some(normalizer) => normalizer.is_finished(),
            None => self.ended.len() >= self.choices,
        }
    }

    /// Returns the usage as the provider last reported it.
    pub const fn usage(&self) -> Option<TokenUsage> {
        self.usage
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
    fn judge(&mut self, event: &Event<'_>) -> Verdict {
        let data = event.data.as_deref().unwrap_or_default();
        if event.name == Some(b"error") {
            return Verdict::End(StreamEnding::Failed(failure::of_event(data)));
        }
        if !event.has_data() {
            return Verdict::Forward;
        }
        if self.reader.find(data) {
            self.reader.add_to(&mut self.output);
            if let Some(normalizer) = &mut self.normalizer {
                normalizer.settled(self.reader.text());
            }
            return Verdict::Forward;
        }
        if let Some(chunk) = self.reader.parse(data) {
            let error = chunk
                .error
                .and_then(|raw| failure::of_member(raw.get().as_bytes()));
            if let Some(error) = error {
                return Verdict::End(StreamEnding::Failed(error));
            }
            if chunk.is_flat_error {
                return Verdict::End(StreamEnding::Failed(failure::of_event(data)));
            }
            self.reader.add_to(&mut self.output);
            let ended = self.reader.ended().iter().copied();
            note(&mut self.ended, self.choices, ended);
            let usage = chunk.usage.map(|raw| raw.get().as_bytes());
            let verdict = self.take_usage(usage, chunk.has_no_choice);
            let Some(normalizer) = &mut self.normalizer else {
                self.reader.learn(data, &chunk);
                return verdict;
            };
            return match verdict {
                Verdict::Forward => match normalizer.read(data) {
                    Passage::AsItCame { is_settled: true } => {
                        if self.reader.learn(data, &chunk) {
                            normalizer.learned();
                        }
                        Verdict::Forward
                    }
                    passage => {
                        // What was learned may be wrong from here on.
                        self.reader.forget();
                        passage.into()
                    }
                },
                other => other,
            };
        }
        if data.trim_ascii() == DONE_DATA {
            return Verdict::End(StreamEnding::Done);
        }
        let Some(chunk) = UnusualChunk::parse(data) else {
            return Verdict::End(StreamEnding::Failed(failure::of_garbage()));
        };
        if let Some(error) = chunk.error().and_then(|raw| failure::of_member(&raw)) {
            return Verdict::End(StreamEnding::Failed(error));
        }
        if chunk.is_flat_error() {
            return Verdict::End(StreamEnding::Failed(failure::of_event(data)));
        }
        chunk.add_to(&mut self.output);
        note(&mut self.ended, self.choices, chunk.ended());
        let verdict = self.take_usage(chunk.usage().as_deref(), chunk.has_no_choice());
        match (verdict, &mut self.normalizer) {
            (Verdict::Forward, Some(normalizer)) => {
                self.reader.forget();
                normalizer.read(data).into()
            }
            (other, _) => other,
        }
    }

    fn take_usage(&mut self, usage: Option<&[u8]>, has_no_choice: bool) -> Verdict {
        let Some(raw) = usage else {
            return Verdict::Forward;
        };
        if let Some(usage) = usage::read(raw) {
            self.usage = Some(usage);
        }
        if self.strip_usage && has_no_choice && raw.first() == Some(&b'{') {
            Verdict::Drop
        } else {
            Verdict::Forward
        }
    }
}

impl From<Passage> for Verdict {
    fn from(passage: Passage) -> Self {
        match passage {
            Passage::AsItCame { .. } => Self::Forward,
            Passage::Rewritten(data) => Self::Replace(data),
            Passage::Usage => Self::Keep,
            Passage::Drop => Self::Drop,
        }
    }
}

/// Returns an event as it may be sent.
fn clean(whole: &Bytes, event: &Event<'_>) -> Bytes {
    if event.is_clean {
        return whole.slice(event.range.clone());
    }
    let mut out = BytesMut::new();
    write_clean(whole.get(event.range.clone()).unwrap_or_default(), &mut out);
    out.freeze()
}

fn is_only_comments(rest: &[u8]) -> bool {
    rest.split(|byte| matches!(byte, b'\n' | b'\r'))
        .all(|line| line.is_empty() || line.starts_with(b":"))
}

/// Gathers what is forwarded of a frame; copies only when there are gaps.
pub(crate) struct Forward<'a> {
    whole: &'a Bytes,
    /// The last run of events that stand next to each other.
    start: usize,
    end: usize,
    /// What comes before that run.
    copied: BytesMut,
}

impl<'a> Forward<'a> {
    pub(crate) fn new(whole: &'a Bytes) -> Self {
        Self {
            whole,
            start: 0,
            end: 0,
            copied: BytesMut::new(),
        }
    }

    fn keep(&mut self, event: &Event<'_>) {
        if event.is_clean {
            self.keep_as_it_is(event);
        } else {
            self.copy_run();
            let bytes = self.whole.get(event.range.clone()).unwrap_or_default();
            write_clean(bytes, &mut self.copied);
        }
    }

    /// Adds bytes that do not stand in the frame.
    fn put(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.copy_run();
            self.copied.extend_from_slice(bytes);
        }
    }

    /// Keeps an event with all of its lines.
    pub(crate) fn keep_as_it_is(&mut self, event: &Event<'_>) {
        let Range { start, end } = event.range;
        if self.ends_in_return(event) {
            self.keep_behind(b"", event);
        } else if self.start == self.end && self.copied.is_empty() {
            (self.start, self.end) = (start, end);
        } else if self.end == start {
            self.end = end;
        } else {
            self.copy_run();
            let bytes = self.whole.get(start..end).unwrap_or_default();
            self.copied.extend_from_slice(bytes);
        }
    }

    /// Keeps an event with a line before it.
    pub(crate) fn keep_behind(&mut self, line: &[u8], event: &Event<'_>) {
        self.copy_run();
        self.copied.extend_from_slice(line);
        let bytes = self.whole.get(event.range.clone()).unwrap_or_default();
        self.copied.extend_from_slice(bytes);
        if self.ends_in_return(event) {
            self.copied.extend_from_slice(b"\n");
        }
    }

    /// Returns whether a line feed may belong to the end of an event that is in the next frame; it is
    /// left out there.
    fn ends_in_return(&self, event: &Event<'_>) -> bool {
        let last = event.range.end.checked_sub(1);
        last.and_then(|last| self.whole.get(last)) == Some(&b'\r')
    }

    fn copy_run(&mut self) {
        let run = self.whole.get(self.start..self.end).unwrap_or_default();
        self.copied.extend_from_slice(run);
        (self.start, self.end) = (0, 0);
    }

    pub(crate) fn finish(mut self) -> Bytes {
        if self.copied.is_empty() {
            return self.whole.slice(self.start..self.end);
        }
        self.copy_run();
        self.copied.freeze()
    }
}

/// Notes choices that have ended, each once and no more than `most`.
fn note(ended: &mut Vec<usize>, most: usize, now: impl Iterator<Item = usize>) {
    for choice in now {
        if ended.len() < most && !ended.contains(&choice) {
            ended.push(choice);
        }
    }
}

#[cfg(test)]
mod tests;
