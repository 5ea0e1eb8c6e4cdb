//! What the fake upstream saw and served.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use sluice_domain::usage::TokenUsage;

use crate::fail::fail;
use crate::wire::Headers;

/// How the answer to a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedEnd {
    /// Everything that the script wanted was written.
    Complete,
    /// The script broke it off: cut, reset, stalled to its maximum, ended early, or sent an error in
    /// a stream.
    BrokenOff,
    /// The peer closed or reset the connection before the end.
    PeerLeft,
}

/// One request that arrived completely, and what was served for it.
///
/// What a peer has received is already counted here: the count changes in the same step as the write
/// to the socket. Times are real time since the start of the fake upstream.
#[derive(Debug, Clone)]
pub struct Served {
    /// Its number in order of arrival, from 0.
    pub number: usize,
    /// The number of its connection, from 0.
    pub connection: usize,
    /// The credential: `authorization` without `Bearer`, else `api-key`, else `x-api-key`.
    pub key: Option<String>,
    /// The method.
    pub method: String,
    /// The path with its query, as it was sent.
    pub target: String,
    /// The header fields as they were sent.
    pub headers: Headers,
    /// The head, byte for byte.
    pub raw_head: Bytes,
    /// The body, byte for byte, without its transfer coding.
    pub body: Bytes,
    /// The `model` of the body.
    pub model: Option<String>,
    /// Whether the body asks for a stream.
    pub streams: bool,
    /// When it had arrived.
    pub received_at: Duration,
    /// The status that was written; `None` while there is no head.
    pub status: Option<u16>,
    /// When the head was written.
    pub head_at: Option<Duration>,
    /// Events written as a whole; a plain answer is one.
    pub events_written: usize,
    /// Tokens of the prompt by the count of [`words`](crate::words), whether it was answered or not.
    pub input_tokens: i64,
    /// Tokens written: the words of whole events. Reasoning is not written, so it is not here.
    pub output_tokens: i64,
    /// The last usage that was written.
    pub reported: Option<TokenUsage>,
    /// How it ended; `None` while it is being answered.
    pub end: Option<ServedEnd>,
    /// When it ended.
    pub ended_at: Option<Duration>,
}

impl Served {
    /// Returns whether everything that the script wanted was written.
    pub fn is_complete(&self) -> bool {
        self.end == Some(ServedEnd::Complete)
    }

    /// Returns when the peer left before the end, if it did.
    pub fn peer_left_at(&self) -> Option<Duration> {
        self.ended_at
            .filter(|_| self.end == Some(ServedEnd::PeerLeft))
    }

    /// Returns the path without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Returns the body as JSON; fails the test when it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            fail(format_args!(
                "the body is not JSON: {error}: {:?}",
                self.body
            ))
        })
    }
}
