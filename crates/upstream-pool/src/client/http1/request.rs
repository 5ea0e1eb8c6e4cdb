//! A request as bytes.

use std::io::IoSlice;

use bytes::Bytes;
use http::{Method, Request, header};

/// A body up to this size, in bytes, is copied behind its head: one piece costs the system less
/// than two.
const MAX_COPIED_BYTES: usize = 4 * 1024;

/// What is still to be sent of a request.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The head, and a short body behind it.
    head: Vec<u8>,
    body: Bytes,
    sent: usize,
}

impl Outgoing {
    /// Writes a request. The length of the body is not among its headers: it is added here, so
    /// that it is always right.
    pub(crate) fn new(request: &Request<Bytes>) -> Self {
        debug_assert!(
            !request.headers().contains_key(header::CONTENT_LENGTH)
                && !request.headers().contains_key(header::TRANSFER_ENCODING),
            "the framing of a request is no business of its headers"
        );
        let mut body = request.body().clone();
        let target = request
            .uri()
            .path_and_query()
            .map_or("/", |target| target.as_str());
        let headers = request.headers();
        let header_bytes: usize = headers
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len() + 4)
            .sum();
        let copied = if body.len() <= MAX_COPIED_BYTES {
            std::mem::take(&mut body)
        } else {
            Bytes::new()
        };
        // The rest is the method, the version and the length.
        let mut head = Vec::with_capacity(target.len() + header_bytes + copied.len() + 80);
        for piece in [request.method().as_str(), " ", target, " HTTP/1.1\r\n"] {
            head.extend_from_slice(piece.as_bytes());
        }
        for (name, value) in headers {
            for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                head.extend_from_slice(piece);
            }
        }
        // Servers expect a length where a method usually has a body.
        let bytes = request.body().len();
        if bytes > 0 || !matches!(*request.method(), Method::GET | Method::HEAD) {
            head.extend_from_slice(b"content-length: ");
            head.extend_from_slice(bytes.to_string().as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head.extend_from_slice(&copied);
        Self {
            head,
            body,
            sent: 0,
        }
    }

    /// Returns whether a part was sent.
    pub(crate) const fn has_begun(&self) -> bool {
        self.sent > 0
    }

    /// Returns whether all was sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.sent == self.head.len() + self.body.len()
    }

    /// Returns what is still to be sent; the second piece may be empty.
    pub(crate) fn pieces(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = match self.head.get(self.sent..) {
            Some(rest) if !rest.is_empty() => (rest, self.body.as_ref()),
            _ => (&self.body[self.sent - self.head.len()..], &[][..]),
        };
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Takes note that so many bytes were sent.
    pub(crate) const fn advance(&mut self, bytes: usize) {
        self.sent += bytes;
    }
}
