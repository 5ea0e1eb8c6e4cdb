//! Blocks by 64-bit words, for machines without SSE2.

use super::{BLOCK, Marks};

/// One in each byte.
const ONES: u64 = 0x0101_0101_0101_0101;
/// The highest bit of each byte.
const TOPS: u64 = 0x8080_8080_8080_8080;

pub(super) fn marks(block: &[u8; BLOCK]) -> Marks {
    Marks {
        quotes: mask(block, |word| equals(word, b'"')),
        backslashes: mask(block, |word| equals(word, b'\\')),
        has_controls: controls(block) != 0,
        has_non_ascii: mask(block, |word| word & TOPS) != 0,
    }
}

pub(super) fn brackets(block: &[u8; BLOCK]) -> u64 {
    mask(block, |word| {
        let curly = word | (ONES * 0x20);
        equals(curly, b'{') | equals(curly, b'}')
    })
}

pub(super) fn controls(block: &[u8; BLOCK]) -> u64 {
    // A byte below 0x20 has none of its three highest bits.
    mask(block, |word| is_zero(word & (ONES * 0xe0)))
}

fn equals(word: u64, byte: u8) -> u64 {
    is_zero(word ^ (ONES * u64::from(byte)))
}

/// Sets the highest bit of exactly those bytes that are zero.
fn is_zero(word: u64) -> u64 {
    !(((word & !TOPS) + !TOPS) | word) & TOPS
}

/// Collects the highest bit of each byte.
fn mask(block: &[u8; BLOCK], select: impl Fn(u64) -> u64) -> u64 {
    let (words, _) = block.as_chunks::<8>();
    words.iter().rev().fold(0, |mask, word| {
        let tops = select(u64::from_le_bytes(*word)) & TOPS;
        // Each factor moves one byte's bit to its place in the highest byte.
        (mask << 8) | ((tops >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56)
    })
}
