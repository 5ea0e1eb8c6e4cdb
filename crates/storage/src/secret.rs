//! Sealed secrets: envelope encryption of upstream keys.
//!
//! Each secret is encrypted with a random data key of its own, and the data key with a named master
//! key; both with AES-256-GCM and a random 96-bit nonce that stands in front of the ciphertext. What
//! the secret is for (row, tenant, provider kind, `scheme://host:port`) is bound to both as
//! associated data: a row that is copied to another tenant, or an upstream that is pointed at
//! another host, opens no secret.
//!
//! A data key seals one message, and a master key some thousand data keys, far below the 2^32 that
//! random nonces allow.

use std::fmt;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, Key, KeyInit, Nonce};
use secrecy::{ExposeSecret, SecretString};
use sluice_domain::id::UpstreamKeyId;
use sluice_domain::upstream::{BaseUrl, Upstream};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// A key that wraps data keys. It is never stored in the database.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey {
    #[zeroize(skip)]
    id: String,
    bytes: [u8; KEY_BYTES],
}

impl MasterKey {
    /// Wraps 32 random bytes under a name, which is stored with everything they seal.
    pub fn new(id: String, bytes: [u8; KEY_BYTES]) -> Self {
        Self { id, bytes }
    }

    /// Returns its name.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

/// A secret as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// Nonce, ciphertext and tag of the secret, under the data key.
    pub sealed_secret: Vec<u8>,
    /// Nonce, ciphertext and tag of the data key, under the master key.
    pub wrapped_key: Vec<u8>,
    /// The name of the master key.
    pub master_key_id: String,
}

impl fmt::Debug for SealedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedSecret")
            .field("master_key_id", &self.master_key_id)
            .finish_non_exhaustive()
    }
}

/// A secret cannot be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no master key to seal with.
    #[error("there is no master key")]
    NoMasterKey,
    /// It was sealed with a master key that is not here.
    #[error("the master key `{0}` is not configured")]
    UnknownMasterKey(String),
    /// It was changed, or belongs to another row, tenant, provider or host.
    #[error("the sealed secret was changed, or belongs to another row, tenant, provider or host")]
    Refused,
    /// The system has no randomness.
    #[error("the system gives no random bytes")]
    Randomness,
}

/// What a secret is for. It opens for nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealBinding {
    associated: Vec<u8>,
}

impl SealBinding {
    /// Returns the binding of a key of an upstream.
    pub fn of(upstream: &Upstream, key: UpstreamKeyId) -> Self {
        let tenant = upstream
            .tenant_id
            .map_or_else(|| "shared".to_owned(), |id| id.to_string());
        let origin = upstream
            .base_url
            .as_ref()
            .map_or_else(String::new, BaseUrl::origin);
        let parts = [
            key.to_string(),
            tenant,
            upstream.kind.as_str().to_owned(),
            origin,
        ];
        let mut associated = Vec::with_capacity(160);
        for part in parts {
            // A length before each part: no two bindings have the same bytes.
            associated.extend(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            associated.extend(part.as_bytes());
        }
        Self { associated }
    }

    /// Returns the associated data of one layer; the domain keeps one from passing for the other.
    fn for_layer(&self, domain: &[u8]) -> Vec<u8> {
        [domain, &self.associated].concat()
    }
}

const SECRET_LAYER: &[u8] = b"sluice/v1/secret\0";
const KEY_LAYER: &[u8] = b"sluice/v1/data-key\0";

/// Seals and opens secrets.
#[derive(Clone)]
pub struct Vault {
    keys: Vec<MasterKey>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vault").field(&self.keys).finish()
    }
}

impl Vault {
    /// Takes master keys: the first seals, all open.
    pub fn new(keys: Vec<MasterKey>) -> Self {
        Self { keys }
    }

    /// Seals a secret for one purpose.
    ///
    /// # Errors
    /// [`SealError::NoMasterKey`], [`SealError::Randomness`].
    pub fn seal(
        &self,
        secret: &SecretString,
        binding: &SealBinding,
    ) -> Result<SealedSecret, SealError> {
        let master = self.keys.first().ok_or(SealError::NoMasterKey)?;
        let mut data_key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(data_key.as_mut()).map_err(|_unavailable| SealError::Randomness)?;
        Ok(SealedSecret {
            sealed_secret: encrypt(
                &data_key,
                secret.expose_secret().as_bytes(),
                &binding.for_layer(SECRET_LAYER),
            )?,
            wrapped_key: encrypt(
                &master.bytes,
                data_key.as_ref(),
                &wrap_data(binding, &master.id),
            )?,
            master_key_id: master.id.clone(),
        })
    }

    /// Opens a secret for the purpose it was sealed for.
    ///
    /// # Errors
    /// [`SealError::UnknownMasterKey`]; [`SealError::Refused`] when a bit was changed or the
    /// purpose is another one.
    pub fn open(
        &self,
        sealed: &SealedSecret,
        binding: &SealBinding,
    ) -> Result<SecretString, SealError> {
        let master = self
            .keys
            .iter()
            .find(|key| key.id == sealed.master_key_id)
            .ok_or_else(|| SealError::UnknownMasterKey(sealed.master_key_id.clone()))?;
        let data_key = decrypt(
            &master.bytes,
            &sealed.wrapped_key,
            &wrap_data(binding, &master.id),
        )?;
        let data_key: Zeroizing<[u8; KEY_BYTES]> = Zeroizing::new(
            data_key
                .as_slice()
                .try_into()
                .map_err(|_length| SealError::Refused)?,
        );
        let secret = decrypt(
            &data_key,
            &sealed.sealed_secret,
            &binding.for_layer(SECRET_LAYER),
        )?;
        let text = std::str::from_utf8(&secret).map_err(|_not_text| SealError::Refused)?;
        Ok(SecretString::from(text))
    }
}

/// The data key is bound to the name of its master key too.
fn wrap_data(binding: &SealBinding, master_key_id: &str) -> Vec<u8> {
    let mut data = binding.for_layer(KEY_LAYER);
    data.extend(master_key_id.as_bytes());
    data
}

fn encrypt(key: &[u8; KEY_BYTES], plain: &[u8], associated: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_unavailable| SealError::Randomness)?;
    let sealed = Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key))
        .encrypt(
            &Nonce::from(nonce),
            Payload {
                msg: plain,
                aad: associated,
            },
        )
        .map_err(|_too_long| SealError::Refused)?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn decrypt(
    key: &[u8; KEY_BYTES],
    sealed: &[u8],
    associated: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (nonce, sealed) = sealed
        .split_first_chunk::<NONCE_BYTES>()
        .ok_or(SealError::Refused)?;
    Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key))
        .decrypt(
            &Nonce::from(*nonce),
            Payload {
                msg: sealed,
                aad: associated,
            },
        )
        .map(Zeroizing::new)
        .map_err(|_opaque| SealError::Refused)
}

#[cfg(test)]
mod tests;
