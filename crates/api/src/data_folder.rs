//! The data folder of an instance: its lock, its identity, its secrets.
//!
//! The folder is open to its owner alone (0700), and so is each file (0600), from the moment it is
//! made. One process at a time serves from it. A copy of the folder is noticed through the boots:
//! each start has an id that is written here before it is claimed in the database.

mod boots;
mod error;
mod file;
mod retired;
mod secrets;

#[cfg(test)]
mod tests;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use sluice_domain::id::{BootId, InstanceId};

use crate::ids::new_uuid;

use boots::Boots;
pub use error::FolderError;
pub(crate) use file::{read_if_there, remove as remove_file, replace as replace_file};
pub(crate) use retired::RetiredInstance;
pub use secrets::Secrets;
pub(crate) use secrets::random_bytes;

const LOCK: &str = "lock";
const INSTANCE_ID: &str = "instance_id";
const BOOTS: &str = "boots";
const JOURNAL: &str = "journal";
const RETIRED: &str = "retired";
const SNAPSHOT: &str = "snapshot";

/// An existing data folder. It keeps the lock, where it was taken, for as long as it lives.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    lock: Option<File>,
}

/// Who an instance is, and which start of it this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceIdentity {
    /// The instance; made once per folder.
    pub instance_id: InstanceId,
    /// Earlier starts that the database may know as the last one, in their order.
    pub earlier_boots: Vec<BootId>,
    /// This start.
    pub boot_id: BootId,
}

impl DataFolder {
    /// Opens the folder; makes it, with its parents, when it is missing.
    ///
    /// # Errors
    /// [`FolderError`] when it cannot be made, is no folder or cannot be written.
    pub fn open_or_create(path: &Path) -> Result<Self, FolderError> {
        file::create_private_folder(path)?;
        file::check_writable(path)?;
        Ok(Self {
            path: path.to_owned(),
            lock: None,
        })
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock that only one process has; it ends with this value or with the process.
    ///
    /// # Errors
    /// [`FolderError::Locked`] when another process has it.
    pub fn lock(&mut self) -> Result<(), FolderError> {
        if self.lock.is_some() {
            return Ok(());
        }
        let path = self.path.join(LOCK);
        let lock = file::open_private(&path)?;
        match lock.try_lock() {
            Ok(()) => {
                self.lock = Some(lock);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(FolderError::Locked {
                folder: self.path.clone(),
            }),
            Err(TryLockError::Error(source)) => Err(FolderError::Lock { path, source }),
        }
    }

    /// Begins a start: reads who the instance is and writes the id of this start, durably, before
    /// anybody claims it. Needs the lock.
    ///
    /// # Errors
    /// [`FolderError`] when the lock is not held, or a file cannot be read, understood or written.
    pub fn begin_boot(&self) -> Result<InstanceIdentity, FolderError> {
        self.refuse_unlocked()?;
        let instance_id = self.load_or_create_instance_id()?;
        let (earlier_boots, boot_id) = begin_boot_in(&self.path)?;
        Ok(InstanceIdentity {
            instance_id,
            earlier_boots,
            boot_id,
        })
    }

    /// Writes that a start has claimed the instance in the database. To be called between the
    /// claim and the first work of the start.
    ///
    /// # Errors
    /// [`FolderError`] when the lock is not held or the file cannot be written.
    pub fn confirm_boot(&self, boot_id: BootId) -> Result<(), FolderError> {
        self.refuse_unlocked()?;
        let mut boots = load_boots(&self.path)?;
        boots.confirm(boot_id);
        file::replace(&self.path.join(BOOTS), boots.to_string().as_bytes())
    }

    /// Returns the folder of the journal, made when it is missing. Needs the lock.
    ///
    /// # Errors
    /// [`FolderError`] when the lock is not held or the folder cannot be made.
    pub fn journal(&self) -> Result<PathBuf, FolderError> {
        self.refuse_unlocked()?;
        let path = self.journal_path();
        file::create_private_folder(&path)?;
        Ok(path)
    }

    /// Returns where the journal is, or will be.
    pub(crate) fn journal_path(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// Returns where the config snapshot is kept.
    pub(crate) fn snapshot_path(&self) -> PathBuf {
        self.path.join(SNAPSHOT)
    }

    /// Sets the identity aside, with its journal, after an operator has settled the instance: the
    /// next start is that of a new one. Needs the lock.
    ///
    /// # Errors
    /// [`FolderError`] when the lock is not held or a file cannot be moved.
    pub fn retire_instance(&self) -> Result<(), FolderError> {
        self.refuse_unlocked()?;
        let instance_id = self.load_or_create_instance_id()?;
        let retired = self.path.join(RETIRED).join(instance_id.to_string());
        file::create_private_folder(&retired)?;
        // The id goes last: until then the next start finds the same instance and retires it again.
        for name in [JOURNAL, BOOTS, INSTANCE_ID] {
            file::move_into(&self.path.join(name), &retired)?;
        }
        Ok(())
    }

    fn refuse_unlocked(&self) -> Result<(), FolderError> {
        if self.lock.is_some() {
            Ok(())
        } else {
            Err(FolderError::NotLocked {
                folder: self.path.clone(),
            })
        }
    }

    fn load_or_create_instance_id(&self) -> Result<InstanceId, FolderError> {
        let path = self.path.join(INSTANCE_ID);
        if let Some(text) = file::read_text(&path)? {
            return text
                .trim()
                .parse()
                .map_err(|source| FolderError::InstanceId { path, source });
        }
        let id = InstanceId::from_uuid(new_uuid());
        file::create(&path, format!("{id}\n").as_bytes())?;
        Ok(id)
    }
}

/// Adds a start to the list in a folder; returns those before it, and it.
fn begin_boot_in(folder: &Path) -> Result<(Vec<BootId>, BootId), FolderError> {
    let mut boots = load_boots(folder)?;
    let earlier_boots = boots.all();
    let boot_id = BootId::from_uuid(new_uuid());
    boots.begin(boot_id);
    file::replace(&folder.join(BOOTS), boots.to_string().as_bytes())?;
    Ok((earlier_boots, boot_id))
}

fn load_boots(folder: &Path) -> Result<Boots, FolderError> {
    let path = folder.join(BOOTS);
    match file::read_text(&path)? {
        Some(text) => text
            .parse()
            .map_err(|line| FolderError::Boots { path, line }),
        None => Ok(Boots::default()),
    }
}
