//! Where the body of an answer ends, and what of it is framing.

use bytes::Bytes;

use super::ProtocolError;

/// All chunk extensions of one body together are no longer than this, in bytes; they mean nothing
/// here.
const MAX_EXTENSION_BYTES: u16 = 16 * 1024;

/// All trailers of one body together are no longer than this, in bytes; they are dropped.
const MAX_TRAILER_BYTES: u16 = 16 * 1024;

/// So many digits make a 64-bit size.
const MAX_SIZE_DIGITS: u8 = 16;

/// Takes the framing off a body. It keeps no bytes: whatever is put in comes out or is framing.
#[derive(Debug)]
pub(crate) struct BodyDecoder {
    state: State,
}

#[derive(Debug)]
enum State {
    /// So many bytes are still to come; never zero.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Ended,
    Broken(ProtocolError),
}

#[derive(Debug)]
struct Chunked {
    step: Step,
    /// What is still to come of the chunk, or its size as far as it was read.
    left: u64,
    digits: u8,
    extension_bytes: u16,
    trailer_bytes: u16,
}

/// What comes next in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Size,
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// A trailer, or the empty line after the last one.
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Ended,
}

impl BodyDecoder {
    /// Builds the decoder of an answer without a body.
    pub(crate) const fn empty() -> Self {
        Self {
            state: State::Ended,
        }
    }

    /// Builds the decoder of a body of so many bytes.
    pub(super) const fn of_length(bytes: u64) -> Self {
        let state = match bytes {
            0 => State::Ended,
            _ => State::Length(bytes),
        };
        Self { state }
    }

    /// Builds the decoder of a chunked body.
    pub(super) const fn chunked() -> Self {
        let state = State::Chunked(Chunked {
            step: Step::Size,
            left: 0,
            digits: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
        });
        Self { state }
    }

    /// Builds the decoder of a body that ends with its connection.
    pub(super) const fn until_close() -> Self {
        Self {
            state: State::UntilClose,
        }
    }

    /// Returns whether the whole body was here.
    pub(crate) const fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Returns whether only the end of the connection ends the body.
    pub(super) const fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// Returns what is wrong with the body, if something is.
    pub(crate) const fn failure(&self) -> Option<ProtocolError> {
        match self.state {
            State::Broken(error) => Some(error),
            _ => None,
        }
    }

    /// Returns how many bytes are still to come, where that is known.
    pub(crate) const fn left(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Ended => Some(0),
            State::Chunked(_) | State::UntilClose | State::Broken(_) => None,
        }
    }

    /// Takes note that the connection ended, and returns whether that is where the body ends.
    pub(crate) fn end_of_input(&mut self) -> bool {
        if self.ends_with_connection() {
            self.state = State::Ended;
        }
        self.is_ended()
    }

    /// Takes all of the body off `input` and returns it in one piece. What comes after the end
    /// stays in `input`; what comes before a [`failure`](Self::failure) is returned.
    ///
    /// Whatever came together leaves together: many small chunks in one read cost no more than one.
    pub(crate) fn decode(&mut self, input: &mut &[u8]) -> Bytes {
        let Some(first) = self.next_piece(input) else {
            return Bytes::new();
        };
        let mut whole = Vec::new();
        while let Some(piece) = self.next_piece(input) {
            if whole.is_empty() {
                whole.reserve_exact(first.len() + piece.len() + input.len());
                whole.extend_from_slice(first);
            }
            whole.extend_from_slice(piece);
        }
        if whole.is_empty() {
            Bytes::copy_from_slice(first)
        } else {
            Bytes::from(whole)
        }
    }

    /// Returns the next bytes of the body without framing, never an empty piece; `None` when there
    /// are none in `input`.
    fn next_piece<'a>(&mut self, input: &mut &'a [u8]) -> Option<&'a [u8]> {
        match &mut self.state {
            State::Length(left) => {
                let piece = take(input, left)?;
                if *left == 0 {
                    self.state = State::Ended;
                }
                Some(piece)
            }
            State::Chunked(chunked) => match chunked.next_piece(input) {
                Ok(piece) => {
                    if chunked.step == Step::Ended {
                        self.state = State::Ended;
                    }
                    piece
                }
                Err(error) => {
                    self.state = State::Broken(error);
                    None
                }
            },
            State::UntilClose => take(input, &mut u64::MAX.clone()),
            State::Ended | State::Broken(_) => None,
        }
    }
}

/// Takes at most `left` bytes off `input`; `None` when there are none.
fn take<'a>(input: &mut &'a [u8], left: &mut u64) -> Option<&'a [u8]> {
    let count = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    let (piece, rest) = input.split_at(count);
    *input = rest;
    *left -= count as u64;
    (count > 0).then_some(piece)
}

impl Chunked {
    fn next_piece<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ProtocolError> {
        while self.step != Step::Ended {
            if self.step == Step::Data {
                let piece = take(input, &mut self.left);
                if self.left == 0 {
                    self.step = Step::DataCr;
                }
                return Ok(piece);
            }
            let Some((&byte, rest)) = input.split_first() else {
                break;
            };
            *input = rest;
            self.step = self.after(byte)?;
        }
        Ok(None)
    }

    /// Reads one byte of framing and returns what comes after it. A line ends with CR LF, nowhere
    /// with LF alone.
    ///
    /// # Source
    /// RFC 9112, section 7.1.
    fn after(&mut self, byte: u8) -> Result<Step, ProtocolError> {
        use ProtocolError::{ChunkEnd, ChunkExtension, ChunkSize, Trailer};
        match self.step {
            Step::Size => match byte {
                b'0'..=b'9' => self.digit(byte - b'0'),
                b'a'..=b'f' => self.digit(byte - b'a' + 10),
                b'A'..=b'F' => self.digit(byte - b'A' + 10),
                _ if self.digits == 0 => Err(ChunkSize),
                _ => self.after_size(byte),
            },
            Step::SizeSpace => self.after_size(byte),
            Step::Extension => match byte {
                b'\r' => Ok(Step::SizeLf),
                _ if is_text(byte) => self.extension(Step::Extension),
                _ => Err(ChunkExtension),
            },
            Step::SizeLf => {
                self.digits = 0;
                let next = match self.left {
                    0 => Step::TrailerStart,
                    _ => Step::Data,
                };
                expect(b'\n', byte, next, ChunkSize)
            }
            Step::DataCr => expect(b'\r', byte, Step::DataLf, ChunkEnd),
            Step::DataLf => expect(b'\n', byte, Step::Size, ChunkEnd),
            Step::TrailerStart => match byte {
                b'\r' => Ok(Step::EndLf),
                _ if is_token(byte) => self.trailer(Step::TrailerName),
                _ => Err(Trailer),
            },
            Step::TrailerName => match byte {
                b':' => self.trailer(Step::TrailerValue),
                _ if is_token(byte) => self.trailer(Step::TrailerName),
                _ => Err(Trailer),
            },
            Step::TrailerValue => match byte {
                b'\r' => self.trailer(Step::TrailerLf),
                _ if is_text(byte) => self.trailer(Step::TrailerValue),
                _ => Err(Trailer),
            },
            Step::TrailerLf => expect(b'\n', byte, Step::TrailerStart, Trailer),
            Step::EndLf => expect(b'\n', byte, Step::Ended, Trailer),
            // No framing.
            Step::Data | Step::Ended => Ok(self.step),
        }
    }

    fn after_size(&mut self, byte: u8) -> Result<Step, ProtocolError> {
        match byte {
            b'\r' => Ok(Step::SizeLf),
            b';' => self.extension(Step::Extension),
            b' ' | b'\t' => self.extension(Step::SizeSpace),
            _ => Err(ProtocolError::ChunkSize),
        }
    }

    /// Reads a digit of a size. Leading zeros count, so that they end.
    fn digit(&mut self, value: u8) -> Result<Step, ProtocolError> {
        if self.digits == MAX_SIZE_DIGITS {
            return Err(ProtocolError::ChunkSize);
        }
        self.digits += 1;
        self.left = self.left << 4 | u64::from(value);
        Ok(Step::Size)
    }

    fn extension(&mut self, next: Step) -> Result<Step, ProtocolError> {
        self.extension_bytes += 1;
        if self.extension_bytes < MAX_EXTENSION_BYTES {
            Ok(next)
        } else {
            Err(ProtocolError::ChunkExtension)
        }
    }

    fn trailer(&mut self, next: Step) -> Result<Step, ProtocolError> {
        self.trailer_bytes += 1;
        if self.trailer_bytes < MAX_TRAILER_BYTES {
            Ok(next)
        } else {
            Err(ProtocolError::Trailer)
        }
    }
}

fn expect(
    expected: u8,
    byte: u8,
    next: Step,
    otherwise: ProtocolError,
) -> Result<Step, ProtocolError> {
    if byte == expected {
        Ok(next)
    } else {
        Err(otherwise)
    }
}

/// Returns whether a byte may stand in a value: everything but control characters.
const fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

/// Returns whether a byte may stand in a name.
///
/// # Source
/// RFC 9110, section 5.6.2.
const fn is_token(byte: u8) -> bool {
    matches!(
        byte,
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z'
            | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_'
            | b'`' | b'|' | b'~'
    )
}
