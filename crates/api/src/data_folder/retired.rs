//! Instances of this folder that an operator has settled: kept as long as their journals are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::time::UnixMillis;

use super::{BOOTS, DataFolder, FolderError, INSTANCE_ID, InstanceIdentity, JOURNAL, RETIRED};
use super::{begin_boot_in, file};

/// An instance that was set aside with its journal.
#[derive(Debug)]
pub(crate) struct RetiredInstance {
    pub(crate) instance_id: InstanceId,
    path: PathBuf,
}

impl DataFolder {
    /// Returns the instances that were set aside. Needs the lock.
    ///
    /// # Errors
    /// [`FolderError`] when the lock is not held or the folder cannot be read.
    pub(crate) fn retired(&self) -> Result<Vec<RetiredInstance>, FolderError> {
        self.refuse_unlocked()?;
        let path = self.path.join(RETIRED);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let unreadable = |source| FolderError::Read {
            path: path.clone(),
            source,
        };
        let mut found = Vec::new();
        for entry in fs::read_dir(&path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            // Without its id it was not set aside to the end: the next start does that.
            if let Some(Ok(instance_id)) = name.map(str::parse)
                && path.join(INSTANCE_ID).exists()
            {
                found.push(RetiredInstance { instance_id, path });
            }
        }
        Ok(found)
    }
}

impl RetiredInstance {
    /// Begins a start of it, as [`DataFolder::begin_boot`] does.
    ///
    /// # Errors
    /// [`FolderError`] when its list of starts cannot be read, understood or written.
    pub(crate) fn begin_boot(&self) -> Result<InstanceIdentity, FolderError> {
        let (earlier_boots, boot_id): (Vec<BootId>, BootId) = begin_boot_in(&self.path)?;
        Ok(InstanceIdentity {
            instance_id: self.instance_id,
            earlier_boots,
            boot_id,
        })
    }

    /// Returns where its journal is.
    pub(crate) fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// Returns for how long nobody has started it.
    ///
    /// # Errors
    /// [`FolderError::Read`].
    pub(crate) fn age(&self, now: UnixMillis) -> Result<Duration, FolderError> {
        // Every start replaces the list.
        let changed = |path: &Path| fs::metadata(path).and_then(|about| about.modified());
        let folder = changed(&self.path).map_err(|source| FolderError::Read {
            path: self.path.clone(),
            source,
        })?;
        let boots = changed(&self.path.join(BOOTS)).unwrap_or(folder);
        let changed = folder.max(boots).duration_since(SystemTime::UNIX_EPOCH);
        let now = Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
        Ok(now.saturating_sub(changed.unwrap_or_default()))
    }

    /// Removes it for good.
    ///
    /// # Errors
    /// [`FolderError::Write`].
    pub(crate) fn remove(&self) -> Result<(), FolderError> {
        file::remove(&self.path.join(INSTANCE_ID))?;
        fs::remove_dir_all(&self.path).map_err(|source| FolderError::Write {
            path: self.path.clone(),
            source,
        })
    }
}
