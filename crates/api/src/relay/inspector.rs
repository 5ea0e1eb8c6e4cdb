//! What reads a stream while it passes: one for each protocol, behind one face.

use bytes::Bytes;
use sluice_domain::route::Protocol;
use sluice_domain::usage::TokenUsage;
use sluice_protocol::anthropic::stream::{self as messages, MessageInspector};
use sluice_protocol::normal::Identity;
use sluice_protocol::output::OutputText;
use sluice_protocol::stream::{
    self as chat, StreamError, StreamFinish, StreamInspector, StreamOptions, StreamStep,
};

use super::RelayCall;

/// Reads the streams of a protocol.
pub(super) enum Inspector {
    OpenAi(StreamInspector),
    Anthropic(MessageInspector),
}

impl Inspector {
    /// Returns one for the answer of a call.
    pub(super) fn of(call: &RelayCall) -> Self {
        let max_event_bytes = call.worker.app.config.relay.max_event_bytes;
        match call.endpoint.protocol() {
            Protocol::OpenAi => {
                let options = StreamOptions {
                    strip_usage: !call.wants_usage(),
                    max_event_bytes,
                    choices: usize::try_from(call.outline.choices).unwrap_or(1),
                };
                Self::OpenAi(StreamInspector::new(call.endpoint, options))
            }
            Protocol::Anthropic => Self::Anthropic(MessageInspector::new(max_event_bytes)),
        }
    }

    /// Returns one that stands where nothing more comes.
    pub(super) fn of_nothing() -> Self {
        Self::Anthropic(MessageInspector::new(0))
    }

    /// Brings what comes into the form that the SDKs take, before the first of it. Messages come from
    /// their own provider and pass as they are.
    pub(super) fn normalize(&mut self, identity: Identity) {
        if let Self::OpenAi(inspector) = self {
            inspector.normalize(identity);
        }
    }

    pub(super) fn push(&mut self, frame: Bytes) -> Result<StreamStep, StreamError> {
        match self {
            Self::OpenAi(inspector) => inspector.push(frame),
            Self::Anthropic(inspector) => inspector.push(frame),
        }
    }

    pub(super) fn finish(&mut self) -> StreamFinish {
        match self {
            Self::OpenAi(inspector) => inspector.finish(),
            Self::Anthropic(inspector) => inspector.finish(),
        }
    }

    /// Returns the events that are still missing before the terminal event, where that is left to the
    /// caller. Whole events, possibly none.
    pub(super) fn take_tail(&mut self) -> Bytes {
        match self {
            Self::OpenAi(inspector) => inspector.take_tail(),
            Self::Anthropic(_) => Bytes::new(),
        }
    }

    /// Returns the usage of the whole answer, as the provider reported it.
    pub(super) fn usage(&self) -> Option<TokenUsage> {
        match self {
            Self::OpenAi(inspector) => inspector.usage(),
            Self::Anthropic(inspector) => inspector.usage(),
        }
    }

    /// Returns what the provider has reported until now, and at least the output that was read.
    pub(super) fn usage_so_far(&self) -> Option<TokenUsage> {
        match self {
            Self::OpenAi(inspector) => inspector.usage(),
            Self::Anthropic(inspector) => inspector.usage_so_far(),
        }
    }

    pub(super) fn output(&self) -> &OutputText {
        match self {
            Self::OpenAi(inspector) => inspector.output(),
            Self::Anthropic(inspector) => inspector.output(),
        }
    }

    pub(super) fn take_output(&mut self) -> OutputText {
        match self {
            Self::OpenAi(inspector) => inspector.take_output(),
            Self::Anthropic(inspector) => inspector.take_output(),
        }
    }
}

/// Returns what keeps a silent connection alive, to stand between two events.
pub(super) const fn keep_alive(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::OpenAi => chat::KEEP_ALIVE,
        Protocol::Anthropic => messages::PING,
    }
}

/// Returns the event that ends a stream well.
pub(super) const fn terminal_event(protocol: Protocol) -> &'static [u8] {
    match protocol {
        Protocol::OpenAi => chat::DONE,
        Protocol::Anthropic => messages::STOP,
    }
}
