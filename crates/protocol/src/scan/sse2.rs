//! Blocks by SSE2, which every `x86_64` has.

use safe_arch::{
    cmp_eq_mask_i8_m128i, load_unaligned_m128i, m128i, min_u8_m128i, move_mask_i8_m128i,
    set_splat_i8_m128i,
};

use super::{BLOCK, Marks};

#[inline]
pub(super) fn marks(block: &[u8; BLOCK]) -> Marks {
    let lanes = load(block);
    Marks {
        quotes: mask(lanes.map(|lane| cmp_eq_mask_i8_m128i(lane, splat(b'"')))),
        backslashes: mask(lanes.map(|lane| cmp_eq_mask_i8_m128i(lane, splat(b'\\')))),
        has_controls: move_mask_i8_m128i(or(lanes.map(is_control))) != 0,
        has_non_ascii: move_mask_i8_m128i(or(lanes)) != 0,
    }
}

#[inline]
pub(super) fn brackets(block: &[u8; BLOCK]) -> u64 {
    mask(load(block).map(|lane| {
        // Bit 0x20 turns square brackets into curly ones and nothing else into them.
        let curly = lane | splat(0x20);
        cmp_eq_mask_i8_m128i(curly, splat(b'{')) | cmp_eq_mask_i8_m128i(curly, splat(b'}'))
    }))
}

#[inline]
pub(super) fn controls(block: &[u8; BLOCK]) -> u64 {
    mask(load(block).map(is_control))
}

#[inline]
fn is_control(lane: m128i) -> m128i {
    cmp_eq_mask_i8_m128i(min_u8_m128i(lane, splat(0x1f)), lane)
}

#[inline]
fn splat(byte: u8) -> m128i {
    set_splat_i8_m128i(byte.cast_signed())
}

#[inline]
fn load(block: &[u8; BLOCK]) -> [m128i; 4] {
    let (lanes, _) = block.as_chunks::<16>();
    [0, 1, 2, 3].map(|at| {
        lanes
            .get(at)
            .map_or_else(m128i::default, load_unaligned_m128i)
    })
}

#[inline]
fn or(lanes: [m128i; 4]) -> m128i {
    let [a, b, c, d] = lanes;
    (a | b) | (c | d)
}

/// Collects the highest bit of each byte.
#[inline]
fn mask(lanes: [m128i; 4]) -> u64 {
    let [a, b, c, d] = lanes.map(|lane| u64::from(move_mask_i8_m128i(lane).cast_unsigned()));
    a | b << 16 | c << 32 | d << 48
}
