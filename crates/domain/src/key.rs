//! Proxy keys: their text form, their hash, their state.
//!
//! A key that we issue is `sk-sluice-` + public id (10) + secret (43) + checksum (6), all base62.
//! The secret has 256 bits; the checksum is the CRC-32 of everything before it, so that a typo is
//! refused before any look-up. Imported keys may have any shape. Only the HMAC is stored.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::id::{ProxyKeyId, TenantId, UserId};
use crate::tenant::{EntityState, Name};
use crate::time::UnixMillis;

/// What every key that we issue begins with.
pub const KEY_PREFIX: &str = "sk-sluice-";
const PUBLIC_ID_LEN: usize = 10;
const SECRET_LEN: usize = 43;
pub(crate) const CHECKSUM_LEN: usize = 6;
const KEY_LEN: usize = KEY_PREFIX.len() + PUBLIC_ID_LEN + SECRET_LEN + CHECKSUM_LEN;
/// Longest credential that is looked at, in bytes.
pub const MAX_CREDENTIAL_LEN: usize = 512;
/// Shortest key that may be imported, in bytes.
pub const MIN_IMPORTED_LEN: usize = 8;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A proxy key in the clear. It exists while it is issued, imported or presented.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct ProxyKeySecret(String);

/// A credential cannot be a key of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// Empty, too long, or has characters outside of visible ASCII.
    #[error("a key has {MIN_IMPORTED_LEN} to {MAX_CREDENTIAL_LEN} visible ASCII characters")]
    Shape,
    /// Looks like an issued key, but its checksum does not fit.
    #[error("the key has a typing error: its checksum does not fit")]
    Checksum,
}

impl ProxyKeySecret {
    /// Makes a key from random bytes: 8 for the public id, 32 for the secret.
    pub fn generate(public_id: [u8; 8], secret: [u8; 32]) -> Self {
        let mut text = String::with_capacity(KEY_LEN);
        text.push_str(KEY_PREFIX);
        push_base62(&mut text, &public_id, PUBLIC_ID_LEN);
        push_base62(&mut text, &secret, SECRET_LEN);
        let checksum = crc32fast::hash(text.as_bytes());
        push_base62(&mut text, &checksum.to_be_bytes(), CHECKSUM_LEN);
        Self(text)
    }

    /// Returns the whole key. It is shown once, to the person who issues it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns what may be shown later: the beginning and the last four characters.
    pub fn hint(&self) -> KeyHint {
        KeyHint::of(&self.0)
    }
}

impl fmt::Debug for ProxyKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyKeySecret(…)")
    }
}

/// The part of a key that identifies it to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyHint(String);

impl KeyHint {
    /// Derives the hint of a key; a short foreign key shows nothing but its last characters.
    fn of(key: &str) -> Self {
        let shown = if key.starts_with(KEY_PREFIX) && key.len() == KEY_LEN {
            key.get(..KEY_PREFIX.len() + PUBLIC_ID_LEN).unwrap_or("")
        } else {
            ""
        };
        // A foreign key may be short: at most a quarter of it is shown.
        let tail = 4.min(key.len() / 4);
        Self(format!(
            "{shown}…{}",
            key.get(key.len() - tail..).unwrap_or("")
        ))
    }

    /// Wraps a stored hint.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Checks the shape of a presented credential before anything is looked up.
///
/// # Errors
/// [`InvalidKey`] when no stored key can be equal to it.
pub fn check_shape(presented: &str) -> Result<(), InvalidKey> {
    let bytes = presented.as_bytes();
    if !(MIN_IMPORTED_LEN..=MAX_CREDENTIAL_LEN).contains(&bytes.len())
        || !bytes.iter().all(u8::is_ascii_graphic)
    {
        return Err(InvalidKey::Shape);
    }
    if presented.starts_with(KEY_PREFIX) {
        let body = bytes
            .get(..KEY_LEN - CHECKSUM_LEN)
            .ok_or(InvalidKey::Checksum)?;
        let mut expected = String::with_capacity(CHECKSUM_LEN);
        push_base62(
            &mut expected,
            &crc32fast::hash(body).to_be_bytes(),
            CHECKSUM_LEN,
        );
        if bytes.get(KEY_LEN - CHECKSUM_LEN..) != Some(expected.as_bytes()) {
            return Err(InvalidKey::Checksum);
        }
    }
    Ok(())
}

/// Takes a foreign key for import.
///
/// # Errors
/// [`InvalidKey`] when it is too short, too long, not visible ASCII, or a mistyped key of ours.
pub fn import_key(text: &str) -> Result<ProxyKeySecret, InvalidKey> {
    check_shape(text)?;
    Ok(ProxyKeySecret(text.to_owned()))
}

/// Writes big-endian bytes as base62 of a fixed width.
pub(crate) fn push_base62(out: &mut String, bytes: &[u8], width: usize) {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0_u32;
        for byte in &mut number {
            let value = (remainder << 8) | u32::from(*byte);
            *byte = u8::try_from(value / 62).unwrap_or(0);
            remainder = value % 62;
        }
        *digit = BASE62.get(remainder as usize).copied().unwrap_or(b'0');
    }
    number.zeroize();
    out.extend(digits.iter().map(|d| char::from(*d)));
    digits.zeroize();
}

/// The secret that keys the hash of proxy keys, so that a stolen database cannot be searched.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Pepper([u8; 32]);

impl Pepper {
    /// Wraps 32 secret bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Prepares the keyed hash; do this once, it is cloned per key.
    pub fn hasher(&self) -> KeyHasher {
        // HMAC pads a short key with zeros to one block, so this is the hash with the 32 bytes.
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        for (to, from) in block.iter_mut().zip(&self.0) {
            *to = *from;
        }
        let mac = Hmac::<Sha256>::new(&block);
        block.zeroize();
        KeyHasher(mac)
    }
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper(…)")
    }
}

/// The keyed hash, ready to use.
#[derive(Clone)]
pub struct KeyHasher(Hmac<Sha256>);

impl KeyHasher {
    /// Hashes a credential.
    pub fn hash(&self, presented: &str) -> KeyHash {
        let mut mac = self.0.clone();
        mac.update(presented.as_bytes());
        KeyHash(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHasher(…)")
    }
}

/// HMAC-SHA-256 of a proxy key.
#[derive(Clone, Copy)]
pub struct KeyHash(pub [u8; 32]);

impl std::hash::Hash for KeyHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Equal lengths need no separation, so a hasher may take the bytes as they are.
        state.write(&self.0);
    }
}

impl PartialEq for KeyHash {
    /// Compares in constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for KeyHash {}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

/// A stored proxy key.
#[derive(Debug, Clone)]
pub struct ProxyKey {
    /// Its id.
    pub id: ProxyKeyId,
    /// The tenant it belongs to.
    pub tenant_id: TenantId,
    /// The user it belongs to.
    pub user_id: UserId,
    /// Its name.
    pub name: Name,
    /// What may be shown of it.
    pub hint: KeyHint,
    /// Whether it is served.
    pub state: EntityState,
    /// When it ends; `None` is never.
    pub expires_at: Option<UnixMillis>,
    /// Models it may ask for; `None` is every model of its tenant.
    pub allowed_models: Option<Vec<String>>,
    /// Whether a request may name the upstream that is to serve it, among those of its route.
    pub may_pin: bool,
    /// Tokens it may use in a month; `None` is without a cap.
    pub quota_tokens: Option<i64>,
    /// When it was made.
    pub created_at: UnixMillis,
}

impl ProxyKey {
    /// Returns whether the key may ask for the model.
    pub fn allows_model(&self, model: &str) -> bool {
        self.allowed_models
            .as_ref()
            .is_none_or(|models| models.iter().any(|m| m == model))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_issued_key_has_a_fixed_length_and_passes_its_own_check() {
        let key = ProxyKeySecret::generate([255; 8], [255; 32]);
        assert_eq!(key.expose().len(), KEY_LEN);
        assert_eq!(check_shape(key.expose()), Ok(()));
        let zero = ProxyKeySecret::generate([0; 8], [0; 32]);
        assert_eq!(zero.expose().len(), KEY_LEN);
    }

    #[test]
    fn debug_never_shows_a_key() {
        let key = ProxyKeySecret::generate([1; 8], [2; 32]);
        assert_eq!(format!("{key:?}"), "ProxyKeySecret(…)");
        assert_eq!(
            format!("{:?}", Pepper::new([3; 32]).hasher()),
            "KeyHasher(…)"
        );
    }

    #[test]
    fn the_hint_shows_the_public_id_and_four_characters() {
        let key = ProxyKeySecret::generate([1; 8], [2; 32]);
        let hint = key.hint();
        assert!(hint.as_str().starts_with(&key.expose()[..20]));
        assert!(hint.as_str().ends_with(&key.expose()[KEY_LEN - 4..]));
        assert_eq!(import_key("12345678").unwrap().hint().as_str(), "…78");
    }

    #[test]
    fn foreign_keys_need_a_plausible_shape() {
        assert!(import_key("sk-live_AnyThing-123").is_ok());
        assert_eq!(import_key("short"), Err(InvalidKey::Shape));
        assert_eq!(import_key("has a space in it"), Err(InvalidKey::Shape));
        assert_eq!(import_key("sk-sluice-tooshort"), Err(InvalidKey::Checksum));
    }

    #[test]
    fn the_hash_is_the_hmac_of_rfc_2104() {
        // Computed with Python's `hmac` and `hashlib`.
        let hash = Pepper::new([1; 32]).hasher().hash("sk-test");
        assert_eq!(
            hash.0,
            [
                0x7d, 0x25, 0xf1, 0x7c, 0x93, 0x07, 0xcb, 0x00, 0xe6, 0x51, 0x37, 0xa4, 0x79, 0x06,
                0xbc, 0xf9, 0x21, 0xda, 0xff, 0xf9, 0xeb, 0x3f, 0x6c, 0xc2, 0x94, 0x34, 0x4c, 0x6b,
                0xe9, 0x46, 0x85, 0x3e
            ]
        );
    }

    #[test]
    fn another_pepper_gives_another_hash() {
        let (a, b) = (Pepper::new([1; 32]).hasher(), Pepper::new([2; 32]).hasher());
        assert!(a.hash("x") == a.hash("x"));
        assert!(a.hash("x") != b.hash("x"));
    }

    proptest! {
        #[test]
        fn one_changed_character_is_always_caught(
            id in any::<[u8; 8]>(), secret in any::<[u8; 32]>(), at in KEY_PREFIX.len()..KEY_LEN, with in 0_usize..62,
        ) {
            let key = ProxyKeySecret::generate(id, secret);
            let mut bytes = key.expose().as_bytes().to_vec();
            prop_assume!(bytes[at] != BASE62[with]);
            bytes[at] = BASE62[with];
            prop_assert_eq!(check_shape(std::str::from_utf8(&bytes).unwrap()), Err(InvalidKey::Checksum));
        }

        #[test]
        fn different_secrets_give_different_keys(a in any::<[u8; 32]>(), b in any::<[u8; 32]>()) {
            prop_assume!(a != b);
            prop_assert_ne!(
                ProxyKeySecret::generate([0; 8], a).expose().to_owned(),
                ProxyKeySecret::generate([0; 8], b).expose().to_owned()
            );
        }
    }
}
