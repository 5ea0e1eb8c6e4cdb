//! Where segments lie: the port, and the folder behind it.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// A set of segments, each with a number that is used once.
///
/// All calls block. A simulation keeps segments in memory and loses, tears or refuses writes.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Returns the numbers of all segments, in any order.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn list(&self) -> io::Result<Vec<u64>>;

    /// Makes a segment of zeros whose space is allocated and whose name survives a power cut.
    ///
    /// # Units
    /// `size` is in bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when there is no space; nothing is left behind then.
    fn create(&self, number: u64, size: u64) -> io::Result<Arc<dyn Segment>>;

    /// Opens a segment.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is none of this number.
    fn open(&self, number: u64) -> io::Result<Arc<dyn Segment>>;

    /// Removes a segment for good: it does not come back after a power cut. One that did, without
    /// those that followed it, would be taken for damaged when a sync of it had failed.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn remove(&self, number: u64) -> io::Result<()>;
}

/// One segment: a file of fixed size.
pub trait Segment: Send + Sync + fmt::Debug {
    /// Returns its size in bytes.
    ///
    /// # Errors
    /// Whatever the disk says.
    fn size(&self) -> io::Result<u64>;

    /// Writes all of `bytes` at `offset`. What was written survives the end of the process.
    ///
    /// # Errors
    /// Any part of it may have been written then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the segment ends before.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// Makes all earlier writes survive a power cut.
    ///
    /// # Errors
    /// What was written since the last success may be lost, even if a later call succeeds.
    fn sync(&self) -> io::Result<()>;
}

/// Returns the name of a segment's file.
pub(super) fn file_name(number: u64) -> String {
    format!("journal-{number:020}.seg")
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("journal-")?.strip_suffix(".seg")?;
    let is_number = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

/// Segments as files of one folder, readable by the owner alone.
#[derive(Debug)]
pub struct FolderDisk {
    path: PathBuf,
    folder: File,
}

impl FolderDisk {
    /// Opens a folder that exists.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            folder: File::open(path)?,
        })
    }

    fn path_of(&self, number: u64) -> PathBuf {
        self.path.join(file_name(number))
    }

    fn allocate(&self, path: &Path, size: u64) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            // The file system cannot; zeros take the space as well as anything can there.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(&file, size)?,
            Err(refused) => return Err(refused.into()),
        }
        file.sync_all()?;
        self.folder.sync_all()?;
        Ok(file)
    }
}

fn write_zeros(file: &File, size: u64) -> io::Result<()> {
    const STEP: usize = 256 * 1024;
    let zeros = vec![0; STEP];
    for offset in (0..size).step_by(STEP) {
        let length = usize::try_from(size - offset).map_or(STEP, |left| left.min(STEP));
        file.write_all_at(&zeros[..length], offset)?;
    }
    Ok(())
}

impl Disk for FolderDisk {
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            numbers.extend(entry?.file_name().to_str().and_then(number_of));
        }
        Ok(numbers)
    }

    fn create(&self, number: u64, size: u64) -> io::Result<Arc<dyn Segment>> {
        let path = self.path_of(number);
        match self.allocate(&path, size) {
            Ok(file) => Ok(Arc::new(FileSegment(file))),
            Err(cause) => {
                if cause.kind() != io::ErrorKind::AlreadyExists {
                    // Without this a full disk would stay full.
                    let _gone_or_not = std::fs::remove_file(&path);
                }
                Err(cause)
            }
        }
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn Segment>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path_of(number))?;
        Ok(Arc::new(FileSegment(file)))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        std::fs::remove_file(self.path_of(number))?;
        self.folder.sync_all()
    }
}

#[derive(Debug)]
struct FileSegment(File);

impl Segment for FileSegment {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_segment_is_allocated_zeroed_private_and_named_by_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FolderDisk::open(folder.path()).unwrap();
        let segment = disk.create(42, 100_000).unwrap();
        let path = folder.path().join("journal-00000000000000000042.seg");
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), 100_000);
        assert!(metadata.blocks() * 512 >= 100_000, "the space is reserved");
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let mut bytes = vec![1; 100_000];
        segment.read_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        assert_eq!(disk.list().unwrap(), [42]);
        assert_eq!(
            disk.create(42, 10).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(disk.open(42).unwrap().size().unwrap(), 100_000);
        disk.remove(42).unwrap();
        assert_eq!(disk.open(42).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn other_files_of_the_folder_are_not_segments() {
        assert_eq!(number_of("journal-00000000000000000007.seg"), Some(7));
        for name in ["journal-7.seg", "journal-+0000000000000000007.seg", "lock"] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_refused_allocation_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let disk = FolderDisk::open(folder.path()).unwrap();
        assert!(disk.create(1, u64::MAX / 4).is_err());
        assert_eq!(disk.list().unwrap(), [] as [u64; 0]);
    }

    #[test]
    fn zeros_fill_a_file_of_any_size() {
        let file = tempfile::tempfile().unwrap();
        write_zeros(&file, 600_001).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 600_001);
    }
}
