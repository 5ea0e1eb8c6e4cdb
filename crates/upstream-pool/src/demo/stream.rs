//! A streamed answer of the built-in upstream, one word at a time.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::vec;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use super::envelope::{Envelope, Said};

/// The pace of a model that is quick but can be watched.
const TIME_PER_WORD: Duration = Duration::from_millis(20);

/// A stream of events in the shape of the API that was called.
#[derive(Debug)]
pub(crate) struct DemoStream {
    envelope: Envelope,
    opening: vec::IntoIter<Bytes>,
    text: String,
    /// The next word begins at this byte of the text.
    next: usize,
    closing: vec::IntoIter<Bytes>,
    /// `None` before the first event, which is not waited for.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl DemoStream {
    pub(super) fn new(envelope: Envelope, said: Said, includes_usage: bool) -> Self {
        Self {
            opening: envelope.opening(&said).into_iter(),
            closing: envelope.closing(&said, includes_usage).into_iter(),
            envelope,
            text: said.text,
            next: 0,
            sleep: None,
        }
    }

    /// Returns the next event when its time has come.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(event) = self.opening.next() {
            self.pause();
            return Poll::Ready(Some(event));
        }
        if self.next >= self.text.len() {
            return Poll::Ready(self.closing.next());
        }
        if let Some(sleep) = &mut self.sleep {
            ready!(sleep.as_mut().poll(cx));
        }
        let rest = self.text.get(self.next..).unwrap_or_default();
        // The space before a word belongs to it, as with real tokens.
        let length = rest
            .get(1..)
            .and_then(|rest| rest.find(' '))
            .map_or(rest.len(), |at| at + 1);
        let event = self.envelope.word(rest.get(..length).unwrap_or(rest));
        self.next += length;
        self.pause();
        Poll::Ready(Some(event))
    }

    fn pause(&mut self) {
        let due = Instant::now() + TIME_PER_WORD;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(due),
            None => self.sleep = Some(Box::pin(sleep_until(due))),
        }
    }
}
