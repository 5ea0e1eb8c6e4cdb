//! The master key and the pepper: from the settings, else from files in the data folder.

use std::path::Path;

use sluice_domain::key::{KeyHasher, Pepper};
use sluice_storage::secret::{MasterKey, Vault};
use zeroize::Zeroizing;

use super::{DataFolder, FolderError, file};
use crate::config::{Config, Secret32, is_open_to_others};
use crate::snapshot::SnapshotKey;

/// Name of the one master key in sealed secrets, so that a later one can stand beside it.
const MASTER_KEY_ID: &str = "mk1";

/// The secrets of a deployment.
#[derive(Debug)]
pub struct Secrets {
    /// The key that seals upstream keys.
    pub master_key: Secret32,
    /// The secret that keys the hash of proxy keys.
    pub pepper: Pepper,
    /// What is unwise about how they are kept, for people.
    pub warnings: Vec<String>,
}

/// One secret: its words, its file, its setting.
struct Source<'a> {
    what: &'static str,
    file: &'static str,
    variable: &'static str,
    setting: Option<&'a Secret32>,
}

impl Secrets {
    /// Returns what seals and opens upstream keys.
    pub fn vault(&self) -> Vault {
        let bytes = *self.master_key.expose();
        Vault::new(vec![MasterKey::new(MASTER_KEY_ID.to_owned(), bytes)])
    }

    /// Returns what hashes proxy keys.
    pub fn hasher(&self) -> KeyHasher {
        self.pepper.hasher()
    }

    /// Returns what authenticates the config snapshot.
    pub(crate) fn snapshot_key(&self) -> SnapshotKey {
        SnapshotKey::derive(self.master_key.expose(), &self.hasher())
    }

    /// Loads the secrets; makes those that are missing. Only for a database that is new: a new
    /// secret does not fit what was written with another one.
    ///
    /// # Errors
    /// [`FolderError`] when a file cannot be read, understood or made.
    pub fn load_or_create(folder: &DataFolder, config: &Config) -> Result<Self, FolderError> {
        Self::collect(folder.path(), config, |path, _source| create(path))
    }

    /// Loads the secrets of an existing deployment; makes nothing.
    ///
    /// # Errors
    /// [`FolderError::MissingSecret`] names what is missing and where it was looked for.
    pub fn load(config: &Config) -> Result<Self, FolderError> {
        Self::collect(&config.data_dir, config, |path, source| {
            Err(FolderError::MissingSecret {
                what: source.what,
                path: path.to_owned(),
                variable: source.variable,
            })
        })
    }

    fn collect(
        folder: &Path,
        config: &Config,
        missing: impl Fn(&Path, &Source<'_>) -> Result<Secret32, FolderError>,
    ) -> Result<Self, FolderError> {
        let mut warnings = Vec::new();
        let mut obtain = |source: &Source<'_>| {
            if let Some(secret) = source.setting {
                return Ok(secret.clone());
            }
            let path = folder.join(source.file);
            let Some(text) = file::read_text(&path)? else {
                return missing(&path, source);
            };
            if is_open_to_others(&path) {
                warnings.push(format!(
                    "the secret file {} can be read by others; `chmod 600` it",
                    path.display()
                ));
            }
            Secret32::parse(&text).map_err(|source| FolderError::DamagedSecret { path, source })
        };
        let master_key = obtain(&Source {
            what: "master key",
            file: "master.key",
            variable: "SLUICE_MASTER_KEY",
            setting: config.master_key.as_ref(),
        })?;
        let pepper = obtain(&Source {
            what: "pepper",
            file: "pepper.key",
            variable: "SLUICE_PEPPER",
            setting: config.pepper.as_ref(),
        })?;
        Ok(Self {
            master_key,
            pepper: Pepper::new(*pepper.expose()),
            warnings,
        })
    }
}

fn create(path: &Path) -> Result<Secret32, FolderError> {
    let secret = Secret32::new(*random_bytes()?);
    let mut text = secret.to_base64();
    text.push('\n');
    file::create(path, text.as_bytes())?;
    Ok(secret)
}

/// Returns random bytes of the operating system, for secrets.
///
/// # Errors
/// [`FolderError::Random`] when there are none.
pub(crate) fn random_bytes<const N: usize>() -> Result<Zeroizing<[u8; N]>, FolderError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| FolderError::Random {
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(bytes)
}
