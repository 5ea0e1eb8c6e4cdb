//! Vectors that look like embeddings: the same text always has the same one, and it means nothing.

use serde_json::{Value, json};

use super::request::{DemoRequest, InvalidRequest};

const DEFAULT_DIMENSIONS: usize = 1_536;
const MAX_DIMENSIONS: u64 = 3_072;

pub(super) fn answer(request: &DemoRequest, model: &str) -> Result<Value, InvalidRequest> {
    let dimensions = match request.dimensions {
        None => DEFAULT_DIMENSIONS,
        Some(n @ 1..=MAX_DIMENSIONS) => usize::try_from(n).unwrap_or(DEFAULT_DIMENSIONS),
        Some(_) => {
            let message = format!("`dimensions` must be between 1 and {MAX_DIMENSIONS}");
            return Err(InvalidRequest::new(message, "dimensions"));
        }
    };
    let data: Vec<Value> = request
        .inputs
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let vector = vector(text, dimensions);
            let embedding = if request.is_base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Value::String(base64(&bytes))
            } else {
                json!(vector)
            };
            json!({ "object": "embedding", "index": index, "embedding": embedding })
        })
        .collect();
    let tokens = request.input_words;
    Ok(json!({
        "object": "list",
        "data": data,
        "model": model,
        "usage": { "prompt_tokens": tokens, "total_tokens": tokens },
    }))
}

/// Returns a vector of length one that depends on nothing but the text and the dimensions.
fn vector(text: &str, dimensions: usize) -> Vec<f32> {
    // FNV-1a for the seed, SplitMix64 for the numbers: stable over releases and machines.
    let mut state = text.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    let mut vector: Vec<f32> = (0..dimensions)
        .map(|_| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let [.., a, b] = (z ^ (z >> 31)).to_le_bytes();
            // Odd, so that no number is zero and no vector is without a length.
            f32::from(i16::from_le_bytes([a | 1, b]))
        })
        .collect();
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    for x in &mut vector {
        *x /= length;
    }
    vector
}

/// # Source
/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for position in 0..4_u32 {
            let index = (bits >> (18 - 6 * position)) & 63;
            let is_padding = usize::try_from(position).is_ok_and(|p| p > group.len());
            let symbol = usize::try_from(index).ok().and_then(|i| ALPHABET.get(i));
            text.push(if is_padding {
                '='
            } else {
                symbol.copied().map_or('=', char::from)
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_vectors_of_the_rfc() {
        for (plain, packed) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), packed);
        }
        assert_eq!(base64(&[0xFF, 0xEF, 0xBE]), "/+++");
    }

    #[test]
    fn a_vector_is_stable_and_has_length_one() {
        let first = vector("hello", 256);
        assert_eq!(first, vector("hello", 256));
        assert_ne!(first, vector("hellp", 256));
        let length: f32 = first.iter().map(|x| x * x).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-4);
    }
}
