//! When the snapshot is written.
//!
//! What is gone leaves the file before the change counts as read; what is new is in it within
//! seconds; and every few minutes it is written anew, because its age counts.

use std::collections::HashMap;
use std::time::Duration;

use sluice_domain::id::{TenantId, UserId};
use sluice_domain::key::KeyHash;
use sluice_storage::feed::Change;
use tokio::time::Instant;

use super::{Frame, SnapshotFile};
use crate::auth::Grants;
use crate::error::chain;

/// How long news may be missing in the snapshot.
const NEWS_WAIT: Duration = Duration::from_secs(3);
/// A write may take this share of the time at most, unless something has to leave the snapshot.
const TIME_SHARE: u32 = 20;
/// How old a snapshot becomes while the database answers.
const RENEW_AFTER: Duration = Duration::from_mins(5);

/// Keeps the snapshot of a running instance. Owned by whoever follows the change feed.
#[derive(Debug)]
pub(crate) struct Keeper {
    file: SnapshotFile,
    max_keys: usize,
    /// The keys in the file, as far as this process knows it; those of an earlier one go with the
    /// first write.
    written: HashMap<KeyHash, (TenantId, UserId)>,
    is_written: bool,
    /// How many keys had been learned at the last write.
    learned: u64,
    /// Something has changed since the last write.
    is_outdated: bool,
    /// Something may be in the file that must not be.
    is_wrong: bool,
    written_at: Instant,
    not_before: Instant,
}

impl Keeper {
    pub(crate) fn new(file: SnapshotFile, max_keys: usize) -> Self {
        let now = Instant::now();
        Self {
            file,
            max_keys,
            written: HashMap::new(),
            is_written: false,
            learned: 0,
            is_outdated: true,
            is_wrong: false,
            written_at: now,
            not_before: now,
        }
    }

    /// Most keys that a snapshot holds.
    pub(crate) fn max_keys(&self) -> usize {
        self.max_keys
    }

    /// Takes in that something has changed. Returns whether it has to leave the file at once.
    pub(crate) fn note_change(&mut self, change: &Change) -> bool {
        let concerns = !self.is_written
            || match change {
                Change::Key(hash) => self.written.contains_key(hash),
                Change::User(user) => self.written.values().any(|(_, known)| known == user),
                Change::Tenant(tenant) => self.written.values().any(|(known, _)| known == tenant),
                Change::Routing => true,
            };
        self.is_wrong |= concerns;
        concerns
    }

    /// Takes in that changes were missed.
    pub(crate) fn note_gap(&mut self) {
        self.is_wrong = true;
    }

    /// Takes in that keys were read again.
    pub(crate) fn note_news(&mut self) {
        self.is_outdated = true;
    }

    /// Returns whether the snapshot should be written now.
    pub(crate) fn is_due(&self, grants: &Grants) -> bool {
        let now = Instant::now();
        let has_news = self.is_outdated || grants.learned() != self.learned;
        self.is_wrong
            || (has_news && now >= self.not_before)
            || now >= self.written_at + RENEW_AFTER
    }

    /// Writes what is known now, and returns whether that succeeded. A file that cannot be replaced is
    /// removed, so that it serves nobody who is gone.
    pub(crate) async fn write(&mut self, frame: Frame, grants: &Grants) -> bool {
        let began = Instant::now();
        let learned = grants.learned();
        let known = grants.export(self.max_keys);
        let written = known
            .iter()
            .map(|(hash, grant)| (*hash, grant.owners()))
            .collect();
        let file = self.file.clone();
        let done = tokio::task::spawn_blocking(move || {
            let views = known.iter().map(|(hash, grant)| grant.view(*hash));
            match file.write(&frame, views) {
                Ok(()) => Ok(()),
                Err(error) => Err((error, file.remove())),
            }
        })
        .await;
        let now = Instant::now();
        self.written_at = now;
        self.not_before = now + NEWS_WAIT.max(began.elapsed() * TIME_SHARE);
        self.is_outdated = false;
        self.learned = learned;
        match done {
            Ok(Ok(())) => {
                self.written = written;
                self.is_written = true;
                self.is_wrong = false;
                true
            }
            Ok(Err((error, removed))) => {
                tracing::error!(
                    error = chain(&error),
                    "the config snapshot cannot be written; a restart needs the database"
                );
                self.is_outdated = true;
                if removed.is_ok() {
                    self.written.clear();
                    self.is_written = true;
                    self.is_wrong = false;
                }
                false
            }
            Err(ended) => {
                tracing::error!(error = chain(&ended), "the config snapshot was not written");
                false
            }
        }
    }
}
