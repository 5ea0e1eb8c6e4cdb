//! Numbers, words and identifiers as bytes: the primitives of the payloads.
//!
//! Integers have a variable length, seven bits a byte, least first; signed ones are folded so that
//! small negative numbers stay short. A reader returns `None` where the bytes do not fit.

use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;

/// Appends primitives.
pub(super) trait Put {
    fn put_byte(&mut self, byte: u8);
    fn put_uint(&mut self, value: u64);
    fn put_int(&mut self, value: i64);
    fn put_uuid(&mut self, id: Uuid);
    fn put_text(&mut self, text: &str);
    fn put_option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T));
    fn put_ip(&mut self, ip: Option<IpAddr>);
}

impl Put for Vec<u8> {
    fn put_byte(&mut self, byte: u8) {
        self.push(byte);
    }

    fn put_uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.push(value.to_le_bytes()[0]);
    }

    fn put_int(&mut self, value: i64) {
        self.put_uint((value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned());
    }

    fn put_uuid(&mut self, id: Uuid) {
        self.extend_from_slice(id.as_bytes());
    }

    fn put_text(&mut self, text: &str) {
        self.put_uint(text.len() as u64);
        self.extend_from_slice(text.as_bytes());
    }

    fn put_option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.push(0),
            Some(value) => {
                self.push(1);
                put(self, value);
            }
        }
    }

    fn put_ip(&mut self, ip: Option<IpAddr>) {
        match ip {
            None => self.push(0),
            Some(IpAddr::V4(ip)) => {
                self.push(4);
                self.extend_from_slice(&ip.octets());
            }
            Some(IpAddr::V6(ip)) => {
                self.push(6);
                self.extend_from_slice(&ip.octets());
            }
        }
    }
}

/// Reads primitives one after the other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns `value` when everything was read.
    pub(super) fn finish<T>(self, value: T) -> Option<T> {
        self.rest.is_empty().then_some(value)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*array)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(super) fn uint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn int(&mut self) -> Option<i64> {
        let folded = self.uint()?;
        Some((folded >> 1).cast_signed() ^ -(folded & 1).cast_signed())
    }

    pub(super) fn uuid(&mut self) -> Option<Uuid> {
        self.array::<16>().map(Uuid::from_bytes)
    }

    pub(super) fn str(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.uint()?).ok()?;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        str::from_utf8(text).ok()
    }

    pub(super) fn text(&mut self) -> Option<Arc<str>> {
        self.str().map(Arc::from)
    }

    /// Reads an optional value; the outer `None` means malformed bytes.
    #[expect(clippy::option_option, reason = "the outer one is the error")]
    pub(super) fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<Option<T>> {
        if self.flag()? {
            read(self).map(Some)
        } else {
            Some(None)
        }
    }

    #[expect(clippy::option_option, reason = "the outer one is the error")]
    pub(super) fn ip(&mut self) -> Option<Option<IpAddr>> {
        match self.byte()? {
            0 => Some(None),
            4 => self.array::<4>().map(|ip| Some(IpAddr::from(ip))),
            6 => self.array::<16>().map(|ip| Some(IpAddr::from(ip))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_survive(unsigned: u64, signed: i64) {
            let mut bytes = Vec::new();
            bytes.put_uint(unsigned);
            bytes.put_int(signed);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.uint(), Some(unsigned));
            prop_assert_eq!(reader.int(), Some(signed));
            prop_assert_eq!(reader.finish(()), Some(()));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = Reader::new(&bytes);
            while reader.uint().is_some() && reader.str().is_some() && reader.ip().is_some() {}
        }
    }

    #[test]
    fn the_ends_of_the_number_range_survive() {
        for value in [0, 1, -1, i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            bytes.put_int(value);
            assert_eq!(Reader::new(&bytes).int(), Some(value));
        }
    }
}
