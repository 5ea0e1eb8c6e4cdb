//! HTTP/1.1 as a client speaks it: from bytes to bytes, without a connection.
//!
//! Where a message can be read in two ways it is refused: whoever lies about where an answer ends
//! could put words into the mouth of the next one.

pub(super) mod body;
pub(super) mod head;
pub(super) mod request;

/// What comes is not HTTP, or not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("the head of the answer cannot be read")]
    Head(#[source] httparse::Error),
    #[error("the head of the answer is too long")]
    HeadTooLong,
    #[error("the status of the answer does not exist")]
    Status,
    #[error("too many interim answers came")]
    TooManyInterim,
    #[error("the other end wants to speak another protocol")]
    OtherProtocol,
    #[error("a header of the answer cannot be read")]
    Header,
    #[error("the length of the answer cannot be read")]
    ContentLength,
    #[error("the answer has a transfer coding other than `chunked`")]
    TransferCoding,
    #[error("the answer has both a length and a transfer coding")]
    TwoLengths,
    #[error("the size of a chunk cannot be read")]
    ChunkSize,
    #[error("the extensions of chunks are too long or cannot be read")]
    ChunkExtension,
    #[error("a chunk is longer than its size")]
    ChunkEnd,
    #[error("the trailers are too long or cannot be read")]
    Trailer,
    #[error("bytes came that nobody asked for")]
    Unasked,
}

#[cfg(test)]
mod tests;
