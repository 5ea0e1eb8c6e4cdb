//! Files that belong to their owner alone, and that are whole or absent after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::FolderError;

/// Makes a folder that only its owner may enter. One that exists is left as it is.
pub(super) fn create_private_folder(path: &Path) -> Result<(), FolderError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    match builder.create(path) {
        Ok(()) if path.is_dir() => Ok(()),
        Err(error) if !path.exists() => Err(FolderError::CreateFolder {
            path: path.to_owned(),
            source: error,
        }),
        _ => Err(FolderError::NotAFolder {
            path: path.to_owned(),
        }),
    }
}

/// Tries a write, which is the only reliable way to learn about rights and read-only mounts.
pub(super) fn check_writable(folder: &Path) -> Result<(), FolderError> {
    let probe = temporary(&folder.join("probe"));
    let tried = private(OpenOptions::new().write(true).create(true))
        .open(&probe)
        .and_then(|_file| fs::remove_file(&probe));
    tried.map_err(|source| FolderError::NotWritable {
        path: folder.to_owned(),
        source,
    })
}

/// Opens a file for its owner alone; makes it when it is missing.
pub(super) fn open_private(path: &Path) -> Result<File, FolderError> {
    private(OpenOptions::new().read(true).write(true).create(true))
        .open(path)
        .map_err(|source| FolderError::Write {
            path: path.to_owned(),
            source,
        })
}

/// Returns the text of a file, or `None` when there is no such file.
pub(super) fn read_text(path: &Path) -> Result<Option<Zeroizing<String>>, FolderError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Returns the bytes of a file, or `None` when there is no such file.
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes a file, durably. What is not there was removed before.
pub(crate) fn remove(path: &Path) -> Result<(), FolderError> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|source| FolderError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Moves a file or folder into a folder, durably. What is not there was moved before.
pub(super) fn move_into(path: &Path, folder: &Path) -> Result<(), FolderError> {
    let Some(name) = path.file_name() else {
        return Ok(());
    };
    let target = folder.join(name);
    match fs::rename(path, &target) {
        Ok(()) => sync_folder(&target).and_then(|()| sync_folder(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|source| FolderError::Write {
        path: path.to_owned(),
        source,
    })
}

/// Makes a file that does not exist yet; its content is whole when its name appears.
///
/// Of two processes that make the same file at once, one fails and changes nothing.
pub(super) fn create(path: &Path, content: &[u8]) -> Result<(), FolderError> {
    let temporary = temporary(path);
    // A name that exists is not replaced by a hard link, unlike by a rename.
    write_durably(&temporary, content)
        .and_then(|()| {
            let linked = fs::hard_link(&temporary, path);
            fs::remove_file(&temporary)?;
            linked
        })
        .and_then(|()| sync_folder(path))
        .map_err(|source| FolderError::Write {
            path: path.to_owned(),
            source,
        })
}

/// Replaces a file, or makes it; after a crash it holds the old or the new content.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), FolderError> {
    let temporary = temporary(path);
    write_durably(&temporary, content)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| sync_folder(path))
        .map_err(|source| FolderError::Write {
            path: path.to_owned(),
            source,
        })
}

fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file =
        private(OpenOptions::new().write(true).create(true).truncate(true)).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Makes a new name durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    PathBuf::from(name)
}

fn private(options: &mut OpenOptions) -> &OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options
}
