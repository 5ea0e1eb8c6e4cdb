//! The config snapshot: what an instance needs to know to serve while its database is away, kept in
//! the data folder.
//!
//! It holds the keys that were used lately (as keyed hashes), their users and tenants, and the
//! routing with the secrets of upstreams as they are sealed in the database. It is one file, made for
//! its owner alone, replaced as a whole, and authenticated with a key that is derived from master key
//! and pepper: what was changed, made by another instance or under other secrets is not used.
//!
//! A key that this instance has seen revoked leaves the file before the change counts as read, so
//! that no restart serves it again.
//!
//! Modules in reading order: `format` (the text of the file), `keeper` (when it is written).

mod format;

mod keeper;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sluice_domain::id::InstanceId;
use sluice_domain::key::{KeyHash, KeyHasher, ProxyKey};
use sluice_domain::limit::KeyLimits;
use sluice_domain::tenant::{Tenant, User};
use sluice_domain::time::{Period, UnixMillis};
use sluice_storage::grant::KeyGrant;
use sluice_storage::route::Routing;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::data_folder::{self, FolderError};

pub(crate) use self::keeper::Keeper;

/// How far ahead of this machine's clock a snapshot may have been written.
///
/// # Units
/// Milliseconds.
const CLOCK_TOLERANCE: i64 = 60_000;

/// Authenticates snapshots.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SnapshotKey([u8; 32]);

impl SnapshotKey {
    /// Derives the key from the master key and the pepper: with another one of either, snapshots are
    /// not those of this deployment.
    pub(crate) fn derive(master_key: &[u8; 32], hasher: &KeyHasher) -> Self {
        const LABEL: &str = "sluice/v1/snapshot";
        let mut mac = mac(master_key);
        mac.update(LABEL.as_bytes());
        mac.update(&hasher.hash(LABEL).0);
        Self(mac.finalize().into_bytes().into())
    }

    fn mac(&self) -> Hmac<Sha256> {
        mac(&self.0)
    }
}

impl std::fmt::Debug for SnapshotKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SnapshotKey(…)")
    }
}

/// HMAC pads a short key with zeros to one block, so this is the one with the 32 bytes.
fn mac(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
    for (to, from) in block.iter_mut().zip(key) {
        *to = *from;
    }
    let mac = Hmac::<Sha256>::new(&block);
    block.zeroize();
    mac
}

/// What a snapshot holds.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The position of the change feed up to which every change is in it.
    pub(crate) feed_position: i64,
    /// When the database was last heard of: the age of a snapshot counts from here.
    pub(crate) as_of: UnixMillis,
    /// The keys, with what they grant.
    pub(crate) grants: Vec<(KeyHash, KeyGrant)>,
    /// Upstreams, sealed keys and routes.
    pub(crate) routing: Routing,
}

/// One key and what it grants, as it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GrantView<'a> {
    pub(crate) hash: KeyHash,
    pub(crate) key: &'a ProxyKey,
    pub(crate) user: &'a User,
    pub(crate) tenant: &'a Tenant,
    pub(crate) periods: &'a [Period],
    pub(crate) limits: Option<&'a KeyLimits>,
}

/// What is written beside the keys.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) feed_position: i64,
    pub(crate) as_of: UnixMillis,
    pub(crate) routing: Arc<Routing>,
}

/// A snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("there is none")]
    Missing,
    #[error("it cannot be read")]
    Read(#[source] FolderError),
    #[error("it was written by another version")]
    Version,
    #[error("it was changed, or written with another master key or pepper")]
    Forged,
    #[error("it is of another instance")]
    Foreign,
    #[error("its content cannot be understood: {0}")]
    Content(String),
    #[error("it is older than snapshot.max_age_ms allows: {} s", age.as_secs())]
    TooOld { age: Duration },
    #[error("it is from the future: the clock of this machine was set back")]
    FromFuture,
}

/// The file of an instance.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    path: PathBuf,
    key: SnapshotKey,
    instance_id: InstanceId,
}

impl SnapshotFile {
    pub(crate) fn new(path: PathBuf, key: SnapshotKey, instance_id: InstanceId) -> Self {
        Self {
            path,
            key,
            instance_id,
        }
    }

    /// Reads the snapshot, whatever its age. Blocks.
    ///
    /// # Errors
    /// [`Unusable`].
    pub(crate) fn read(&self) -> Result<Snapshot, Unusable> {
        let bytes = data_folder::read_if_there(&self.path).map_err(Unusable::Read)?;
        format::decode(
            &bytes.ok_or(Unusable::Missing)?,
            &self.key,
            self.instance_id,
        )
    }

    /// Replaces the snapshot, durably. Blocks.
    ///
    /// # Errors
    /// [`FolderError`]; the old snapshot is still there then.
    fn write<'a>(
        &self,
        frame: &Frame,
        grants: impl Iterator<Item = GrantView<'a>>,
    ) -> Result<(), FolderError> {
        let bytes = format::encode(frame, grants, &self.key, self.instance_id);
        data_folder::replace_file(&self.path, &bytes)
    }

    /// Removes the snapshot, durably. Blocks.
    ///
    /// # Errors
    /// [`FolderError`].
    fn remove(&self) -> Result<(), FolderError> {
        data_folder::remove_file(&self.path)
    }
}

impl Snapshot {
    /// Returns how long ago the database was last heard of.
    ///
    /// # Errors
    /// [`Unusable`] when that is longer than `max_age`, or cannot be told.
    pub(crate) fn age(&self, now: UnixMillis, max_age: Duration) -> Result<Duration, Unusable> {
        if self.as_of.0 > now.0.saturating_add(CLOCK_TOLERANCE) {
            return Err(Unusable::FromFuture);
        }
        let age = Duration::from_millis(u64::try_from(now.since(self.as_of)).unwrap_or(0));
        if age > max_age {
            return Err(Unusable::TooOld { age });
        }
        Ok(age)
    }
}
