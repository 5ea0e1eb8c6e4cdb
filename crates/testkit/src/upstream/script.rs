//! What the fake upstream does with a request.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::quirk::{ErrorShape, Quirk};
use crate::fail::fail;

/// What the fake upstream does with one request; it answers properly where nothing else is said.
///
/// # Positions
/// `at` counts events from 0: `cut_at(3)` writes three events and strikes where the fourth would
/// have stood. A chat stream is: the role, the words one by one, the finish, the usage if it was
/// asked for, `[DONE]`. A stream of the Anthropic API is: the start of the message, the start of its
/// block, the words one by one, the end of the block, the end of the message with its usage, the stop.
/// A position beyond the last event is the one right after it. Comments and
/// other lines without data are no events. An answer that is no stream is one event: position 0
/// strikes before its body, any other in the middle of it.
#[derive(Debug, Clone)]
#[must_use = "a script does nothing until it is given to a fake upstream"]
pub struct Script {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) content: Content,
    pub(super) words: usize,
    pub(super) cached_tokens: i64,
    pub(super) cache_write_tokens: i64,
    pub(super) reasoning_tokens: i64,
    pub(super) head_delay: Duration,
    pub(super) head_gate: Option<Gate>,
    pub(super) first_event_delay: Duration,
    pub(super) pace: Duration,
    pub(super) keep_alive: Option<Duration>,
    pub(super) holds: Vec<(usize, Hold)>,
    pub(super) split: Option<usize>,
    pub(super) coalesce: usize,
    pub(super) quirks: Vec<Quirk>,
    pub(super) before_head: Option<BeforeHead>,
    pub(super) fault: Option<Fault>,
}

/// Where the body comes from.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// The provider's answer to the request.
    Answer,
    /// The provider's error for the status.
    Refusal,
    /// These bytes.
    Body { content_type: String, bytes: Bytes },
    /// A stream of these events, each as it is on the wire.
    Events(Vec<Bytes>),
}

#[derive(Debug, Clone)]
pub(super) enum Hold {
    For(Duration),
    Until(Gate),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum BeforeHead {
    Close,
    Reset,
    Stall(Duration),
}

#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) at: usize,
    pub(super) share: Share,
    pub(super) gate: Option<Gate>,
    pub(super) kind: FaultKind,
}

/// How much of the event at the position of a fault is written before it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    Nothing,
    Half,
    Bytes(usize),
}

#[derive(Debug, Clone)]
pub(super) enum FaultKind {
    Cut,
    Reset,
    Stall(Duration),
    End,
    Error(ErrorShape),
    Garbage,
}

/// A point at which an answer waits until a test lets it go on.
#[derive(Debug, Clone)]
pub struct Gate(watch::Sender<bool>);

impl Gate {
    /// Makes a closed gate.
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Opens it for good, for every answer that waits or will wait.
    pub fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn passed(&self) {
        // The sender is this very gate, so that waiting cannot fail.
        if self.0.subscribe().wait_for(|open| *open).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Script {
    fn default() -> Self {
        Self::new()
    }
}

impl Script {
    /// Answers properly, with 8 words and without any delay.
    pub fn new() -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            content: Content::Answer,
            words: 8,
            cached_tokens: 0,
            cache_write_tokens: 0,
            reasoning_tokens: 0,
            head_delay: Duration::ZERO,
            head_gate: None,
            first_event_delay: Duration::ZERO,
            pace: Duration::ZERO,
            keep_alive: None,
            holds: Vec::new(),
            split: None,
            coalesce: 1,
            quirks: Vec::new(),
            before_head: None,
            fault: None,
        }
    }

    /// Refuses with the status and the error body that the provider of the called API sends with it:
    /// 400, 401, 402, 403, 404 (the model), 429, 500, 503, 529; others have a general one.
    pub fn refuse(status: u16) -> Self {
        Self {
            status,
            content: Content::Refusal,
            ..Self::new()
        }
    }

    /// Refuses with 429 because the account at the provider has no money left.
    pub fn insufficient_quota() -> Self {
        let body = super::openai::error(
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            Some("insufficient_quota"),
        );
        Self::body(429, "application/json", body)
    }

    /// Answers with the bytes as they are.
    pub fn body(status: u16, content_type: &str, bytes: impl Into<Bytes>) -> Self {
        let content = Content::Body {
            content_type: content_type.to_owned(),
            bytes: bytes.into(),
        };
        Self {
            status,
            content,
            ..Self::new()
        }
    }

    /// Answers with a page of HTML, as proxies in front of providers do.
    pub fn html(status: u16) -> Self {
        Self::body(
            status,
            "text/html",
            format!("<html><head><title>{status}</title></head><body>nginx</body></html>\r\n"),
        )
    }

    /// Streams the given events, each with its line ends as it shall stand on the wire:
    /// `"data: {…}\n\n"`. They have no words.
    pub fn events<Event: Into<Bytes>>(events: impl IntoIterator<Item = Event>) -> Self {
        let events = events.into_iter().map(Into::into).collect();
        Self {
            content: Content::Events(events),
            ..Self::new()
        }
    }

    /// Changes the status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Adds a header field.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds `retry-after`.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header("retry-after", &seconds.to_string())
    }

    /// Answers with so many words; `max_tokens` of the request may make them fewer.
    pub fn words(mut self, count: usize) -> Self {
        self.words = count;
        self
    }

    /// Reports so much of the input as served from the provider's cache.
    pub fn cached_tokens(mut self, count: i64) -> Self {
        self.cached_tokens = count;
        self
    }

    /// Reports so much of the input of a message as written to the provider's cache.
    pub fn cache_write_tokens(mut self, count: i64) -> Self {
        self.cache_write_tokens = count;
        self
    }

    /// Reports so many reasoning tokens on top of the words.
    pub fn reasoning_tokens(mut self, count: i64) -> Self {
        self.reasoning_tokens = count;
        self
    }

    /// Waits before the head.
    pub fn head_delay(mut self, delay: Duration) -> Self {
        self.head_delay = delay;
        self
    }

    /// Waits before the head until the gate is opened.
    pub fn wait_before_head(mut self, gate: &Gate) -> Self {
        self.head_gate = Some(gate.clone());
        self
    }

    /// Waits between the head and the first event, or the body.
    pub fn first_event_delay(mut self, delay: Duration) -> Self {
        self.first_event_delay = delay;
        self
    }

    /// Waits between two events, or between two writes where events are coalesced.
    pub fn pace(mut self, delay: Duration) -> Self {
        self.pace = delay;
        self
    }

    /// Writes a comment (a plain answer: an empty line, which makes it chunked) this often while the
    /// script waits after the head, also while it stalls.
    #[track_caller]
    pub fn keep_alive(mut self, every: Duration) -> Self {
        if every.is_zero() {
            fail("a keep-alive needs a time between two of them");
        }
        self.keep_alive = Some(every);
        self
    }

    /// Waits before the event at the position.
    pub fn pause_at(mut self, at: usize, pause: Duration) -> Self {
        self.holds.push((at, Hold::For(pause)));
        self
    }

    /// Waits before the event at the position until the gate is opened.
    pub fn wait_at(mut self, at: usize, gate: &Gate) -> Self {
        self.holds.push((at, Hold::Until(gate.clone())));
        self
    }

    /// Writes a stream in pieces of so many bytes, whatever the bounds of its events; each piece is
    /// a chunk of its own.
    #[track_caller]
    pub fn split_every(mut self, bytes: usize) -> Self {
        if bytes == 0 {
            fail("a piece has at least one byte");
        }
        self.split = Some(bytes);
        self
    }

    /// Writes so many events at once.
    #[track_caller]
    pub fn coalesce(mut self, events: usize) -> Self {
        if events == 0 {
            fail("a write has at least one event");
        }
        self.coalesce = events;
        self
    }

    /// Adds a habit.
    #[track_caller]
    pub fn with(mut self, quirk: Quirk) -> Self {
        if quirk == Quirk::CommentEvery(0) {
            fail("a comment stands before at least one event");
        }
        self.quirks.push(quirk);
        self
    }

    /// Reads the request and closes the connection without an answer.
    pub fn close_before_head(mut self) -> Self {
        self.before_head = Some(BeforeHead::Close);
        self
    }

    /// Reads the request and resets the connection.
    pub fn reset_before_head(mut self) -> Self {
        self.before_head = Some(BeforeHead::Reset);
        self
    }

    /// Reads the request and is silent until the peer leaves, at most so long; then closes.
    pub fn stall_before_head(mut self, at_most: Duration) -> Self {
        self.before_head = Some(BeforeHead::Stall(at_most));
        self
    }

    /// Closes the connection in the middle of the answer (FIN).
    #[track_caller]
    pub fn cut_at(self, at: usize) -> Self {
        self.fault(at, FaultKind::Cut)
    }

    /// Resets the connection in the middle of the answer (RST).
    #[track_caller]
    pub fn reset_at(self, at: usize) -> Self {
        self.fault(at, FaultKind::Reset)
    }

    /// Is silent in the middle of the answer until the peer leaves, at most so long; then closes.
    #[track_caller]
    pub fn stall_at(self, at: usize, at_most: Duration) -> Self {
        self.fault(at, FaultKind::Stall(at_most))
    }

    /// Ends the answer early as if it were complete: cleanly for HTTP, without the rest. An answer
    /// with a length cannot end so; it is cut.
    #[track_caller]
    pub fn end_at(self, at: usize) -> Self {
        self.fault(at, FaultKind::End)
    }

    /// Writes the first half of the event at the position and ends cleanly.
    #[track_caller]
    pub fn half_event_at(self, at: usize) -> Self {
        self.end_at(at).after_half_event()
    }

    /// Writes an error event and ends cleanly, without the rest; where the answer is no stream, the
    /// error is its whole body.
    #[track_caller]
    pub fn error_at(self, at: usize, shape: ErrorShape) -> Self {
        self.fault(at, FaultKind::Error(shape))
    }

    /// Writes an event that is no JSON before the event at the position, and goes on as if nothing
    /// had happened; a plain answer is half a document whose length is right.
    #[track_caller]
    pub fn garbage_at(self, at: usize) -> Self {
        self.fault(at, FaultKind::Garbage)
    }

    /// Lets the fault that was named before strike in the middle of an event.
    #[track_caller]
    pub fn after_half_event(self) -> Self {
        self.after(Share::Half)
    }

    /// Lets the fault that was named before strike after so many bytes of an event, or of the body of
    /// a plain answer.
    #[track_caller]
    pub fn after_bytes(self, bytes: usize) -> Self {
        self.after(Share::Bytes(bytes))
    }

    /// Lets the fault that was named before strike when the gate is opened. A reset takes back what
    /// the peer has not read yet.
    #[track_caller]
    pub fn strike_after(mut self, gate: &Gate) -> Self {
        self.named_fault().gate = Some(gate.clone());
        self
    }

    #[track_caller]
    fn after(mut self, share: Share) -> Self {
        self.named_fault().share = share;
        self
    }

    #[track_caller]
    fn named_fault(&mut self) -> &mut Fault {
        match &mut self.fault {
            Some(fault) => fault,
            None => fail("name a fault first: `cut_at(3).after_half_event()`"),
        }
    }

    #[track_caller]
    fn fault(mut self, at: usize, kind: FaultKind) -> Self {
        if self.fault.is_some() {
            fail("a script has one fault");
        }
        self.fault = Some(Fault {
            at,
            share: Share::Nothing,
            gate: None,
            kind,
        });
        self
    }

    pub(super) fn has(&self, quirk: Quirk) -> bool {
        self.quirks.contains(&quirk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a script has one fault")]
    fn a_second_fault_is_a_mistake_of_the_test() {
        drop(Script::new().cut_at(1).reset_at(2));
    }

    #[test]
    #[should_panic(expected = "name a fault first")]
    fn half_an_event_needs_a_fault() {
        drop(Script::new().after_half_event());
    }
}
