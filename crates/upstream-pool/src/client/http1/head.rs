//! The head of an answer.

use std::mem::MaybeUninit;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use httparse::{Header, ParserConfig, Response, Status};

use super::ProtocolError;
use super::body::BodyDecoder;

/// The head of an answer is no longer than this, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 128 * 1024;

/// The head of an answer has no more headers than this.
pub(super) const MAX_HEADERS: usize = 100;

/// So many interim answers may come before the answer.
pub(super) const MAX_INTERIM: usize = 16;

/// The head of an answer.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// Decodes what follows.
    pub(crate) body: BodyDecoder,
    /// Whether another request may be sent on the connection when the answer has ended.
    pub(crate) keeps_alive: bool,
}

/// Reads the head of an answer, and passes over interim answers before it.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    /// A head that came in part.
    kept: Vec<u8>,
    interim: usize,
}

impl HeadReader {
    /// Reads on, and takes what belongs to the head off `input`: all of it when there is no head
    /// yet. `keeps` tells by its name which headers are of interest; the others do not come out.
    pub(crate) fn read(
        &mut self,
        input: &mut &[u8],
        keeps: fn(&str) -> bool,
    ) -> Result<Option<ResponseHead>, ProtocolError> {
        loop {
            let before = self.kept.len();
            let parsed = if before == 0 {
                parse(input, keeps)?
            } else {
                self.kept.extend_from_slice(input);
                // A head that comes in small pieces is not parsed with each of them.
                if has_empty_line(&self.kept[before.saturating_sub(3)..]) {
                    parse(&self.kept, keeps)?
                } else {
                    None
                }
            };
            let Some((length, head)) = parsed else {
                if before == 0 {
                    self.kept.extend_from_slice(input);
                }
                *input = &[];
                return if self.kept.len() > MAX_HEAD_BYTES {
                    Err(ProtocolError::HeadTooLong)
                } else {
                    Ok(None)
                };
            };
            if length > MAX_HEAD_BYTES {
                return Err(ProtocolError::HeadTooLong);
            }
            // What was kept was no whole head.
            *input = &input[length.saturating_sub(before)..];
            self.kept = Vec::new();
            if head.is_some() {
                self.interim = 0;
                return Ok(head);
            }
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err(ProtocolError::TooManyInterim);
            }
            if input.is_empty() {
                return Ok(None);
            }
        }
    }

    /// Returns what was wrong with a head whose connection ended, if it was more than that.
    pub(crate) fn end_of_input(&self) -> Option<ProtocolError> {
        parse(&self.kept, |_| false).err()
    }
}

/// Returns whether there is an empty line; lines of heads may end with LF alone.
fn has_empty_line(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes)
        .any(|at| matches!(bytes.get(at + 1..), Some([b'\n', ..] | [b'\r', b'\n', ..])))
}

/// The length of a head, and the head unless it is one of an interim answer.
type Parsed = (usize, Option<ResponseHead>);

fn parse(bytes: &[u8], keeps: fn(&str) -> bool) -> Result<Option<Parsed>, ProtocolError> {
    let mut space = [const { MaybeUninit::<Header<'_>>::uninit() }; MAX_HEADERS];
    let mut response = Response::new(&mut []);
    let status = ParserConfig::default()
        .parse_response_with_uninit_headers(&mut response, bytes, &mut space)
        .map_err(ProtocolError::Head)?;
    let Status::Complete(length) = status else {
        return Ok(None);
    };
    let code = response.code.unwrap_or_default();
    let head = match StatusCode::from_u16(code) {
        Err(_) => return Err(ProtocolError::Status),
        Ok(StatusCode::SWITCHING_PROTOCOLS) => return Err(ProtocolError::OtherProtocol),
        Ok(status) if status.is_informational() => None,
        Ok(status) => Some(read_head(status, &response, keeps)?),
    };
    Ok(Some((length, head)))
}

fn read_head(
    status: StatusCode,
    response: &Response<'_, '_>,
    keeps: fn(&str) -> bool,
) -> Result<ResponseHead, ProtocolError> {
    let is_http_1_0 = response.version == Some(0);
    let mut headers = HeaderMap::new();
    let mut framing = Framing::default();
    for header in response.headers.iter() {
        framing.read(header)?;
        if keeps(header.name) {
            headers.append(
                HeaderName::from_bytes(header.name.as_bytes())
                    .map_err(|_invalid| ProtocolError::Header)?,
                HeaderValue::from_bytes(header.value).map_err(|_invalid| ProtocolError::Header)?,
            );
        }
    }
    let body = framing.body(status, is_http_1_0)?;
    let keeps_alive =
        !framing.closes && (!is_http_1_0 || framing.keeps_alive) && !body.ends_with_connection();
    Ok(ResponseHead {
        status,
        headers,
        body,
        keeps_alive,
    })
}

/// What headers say about where an answer ends.
#[derive(Default)]
struct Framing {
    length: Option<u64>,
    is_chunked: bool,
    closes: bool,
    keeps_alive: bool,
}

impl Framing {
    fn read(&mut self, header: &Header<'_>) -> Result<(), ProtocolError> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            10 if is("connection") => {
                for option in elements(header.value) {
                    self.closes |= option.eq_ignore_ascii_case(b"close");
                    self.keeps_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if is("content-length") => {
                // The same length twice is one length.
                for text in elements(header.value) {
                    let length = number(text).ok_or(ProtocolError::ContentLength)?;
                    if *self.length.get_or_insert(length) != length {
                        return Err(ProtocolError::ContentLength);
                    }
                }
            }
            17 if is("transfer-encoding") => {
                let is_chunked = header.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                if !is_chunked || self.is_chunked {
                    return Err(ProtocolError::TransferCoding);
                }
                self.is_chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Decides how the body ends.
    ///
    /// # Source
    /// RFC 9112, section 6.3; where it leaves a choice the answer is refused.
    fn body(&self, status: StatusCode, is_http_1_0: bool) -> Result<BodyDecoder, ProtocolError> {
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Ok(BodyDecoder::empty());
        }
        match (self.is_chunked, self.length) {
            (true, Some(_)) => Err(ProtocolError::TwoLengths),
            (true, None) if is_http_1_0 => Err(ProtocolError::TransferCoding),
            (true, None) => Ok(BodyDecoder::chunked()),
            (false, Some(length)) => Ok(BodyDecoder::of_length(length)),
            (false, None) => Ok(BodyDecoder::until_close()),
        }
    }
}

/// Returns the elements of a list.
fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// Reads digits, and nothing but digits.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}
