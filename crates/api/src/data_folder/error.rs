//! What can be wrong with a data folder.

use std::io;
use std::path::PathBuf;

use sluice_domain::id::ParseIdError;

use crate::config::InvalidSecret;

/// The data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The folder cannot be made.
    #[error("the data folder {} cannot be made", path.display())]
    CreateFolder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something else has the name of the folder.
    #[error("the data folder {} is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// This user may not write to the folder.
    #[error("the data folder {} cannot be written by this user", path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process works in the folder.
    #[error(
        "the data folder {} is in use by another sluice process; stop it, or choose another folder \
         with --data",
        folder.display()
    )]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// The lock cannot be taken.
    #[error("the lock {} cannot be taken; does its file system have locks?", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A defect of ours: a start needs the lock.
    #[error("the data folder {} is not locked by this process", folder.display())]
    NotLocked {
        /// The folder.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The identity of the instance cannot be understood.
    #[error("{} does not hold the id of an instance", path.display())]
    InstanceId {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: ParseIdError,
    },
    /// The list of starts cannot be understood.
    #[error("line {line} of {} is not a start of this instance", path.display())]
    Boots {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A secret that must exist is nowhere.
    #[error(
        "the {what} of this deployment is missing: there is no {}, and {variable} and \
         {variable}_FILE are not set",
        path.display()
    )]
    MissingSecret {
        /// Which secret.
        what: &'static str,
        /// Where its file would be.
        path: PathBuf,
        /// The environment variable that could hold it.
        variable: &'static str,
    },
    /// A secret file does not hold 32 bytes.
    #[error("the secret file {} is damaged", path.display())]
    DamagedSecret {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: InvalidSecret,
    },
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Random {
        /// The cause.
        source: io::Error,
    },
}
