//! 32 secret bytes and their text forms.

use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const LEN: usize = 32;

/// Base64 as tools write it, with or without padding.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

/// 32 secret bytes.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret32([u8; LEN]);

/// A text does not hold 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// Neither base64 nor hexadecimal.
    #[error("is neither base64 nor hexadecimal; make one with `openssl rand -base64 32`")]
    Encoding,
    /// Another length.
    #[error("has {found} bytes, not {LEN}; make one with `openssl rand -base64 32`")]
    Length {
        /// The number of bytes that were found.
        found: usize,
    },
}

impl Secret32 {
    /// Wraps bytes.
    pub fn new(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    pub fn expose(&self) -> &[u8; LEN] {
        &self.0
    }

    /// Reads base64 (standard or URL-safe, with or without padding) or 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`InvalidSecret`], which never shows the text.
    pub fn parse(text: &str) -> Result<Self, InvalidSecret> {
        let text = text.trim();
        // 64 hexadecimal digits are also base64, of 48 bytes; so they are asked first.
        let bytes = match from_hex(text) {
            Some(bytes) => bytes,
            None => from_base64(text).ok_or(InvalidSecret::Encoding)?,
        };
        <[u8; LEN]>::try_from(bytes.as_slice())
            .map(Self)
            .map_err(|_length| InvalidSecret::Length { found: bytes.len() })
    }

    /// Returns the base64 form.
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(STANDARD.encode(self.0))
    }
}

fn from_base64(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let engine = if text.contains(['-', '_']) {
        URL_SAFE
    } else {
        STANDARD
    };
    engine.decode(text).ok().map(Zeroizing::new)
}

fn from_hex(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if text.len() != 2 * LEN {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(LEN));
    for pair in text.as_bytes().chunks_exact(2) {
        let pair = std::str::from_utf8(pair).ok()?;
        // `from_str_radix` alone would take a sign.
        if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(pair, 16).ok()?);
    }
    Some(bytes)
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_text_form_of_32_bytes_is_read() {
        let secret = Secret32::new([0xfb; 32]);
        let base64 = secret.to_base64();
        let hex = "fb".repeat(32);
        for text in [
            base64.as_str(),
            base64.trim_end_matches('='),
            &base64.replace('+', "-").replace('/', "_"),
            &hex,
            &hex.to_uppercase(),
            &format!("{hex}\n"),
        ] {
            assert_eq!(Secret32::parse(text).unwrap().expose(), secret.expose());
        }
    }

    #[test]
    fn another_length_or_encoding_is_refused_without_showing_the_text() {
        for (text, error) in [
            ("", InvalidSecret::Length { found: 0 }),
            ("c2hvcnQ=", InvalidSecret::Length { found: 5 }),
            ("not base64 at all!", InvalidSecret::Encoding),
            (&"zz".repeat(32), InvalidSecret::Length { found: 48 }),
        ] {
            assert_eq!(Secret32::parse(text).unwrap_err(), error);
        }
    }

    #[test]
    fn debug_never_shows_the_bytes() {
        assert_eq!(format!("{:?}", Secret32::new([7; 32])), "Secret32(…)");
    }
}
