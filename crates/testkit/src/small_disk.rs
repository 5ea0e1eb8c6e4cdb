//! A file system of its own that a test can fill up.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::backends::not_allowed;
use crate::fail::fail;
use crate::process::{Program, RunningProcess};

/// How long making the file system may take.
const SOON: Duration = Duration::from_mins(1);
/// How often what has come free is taken.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// What keeps the disk full.
const BALLAST: &str = "ballast";

/// A small file system in memory, mounted in a mount namespace of its own: nobody but the programs
/// that are started by its [`launcher`](Self::launcher) sees it at its path.
///
/// It goes with this value, and with the last program that uses it.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    holder: RunningProcess,
    launcher: Vec<String>,
}

/// Ways to be allowed to mount: as a user who is root in a namespace, and as root.
const WAYS: [(&[&str], &[&str]); 2] = [
    (
        &["--user", "--map-root-user", "--mount"],
        &["--user", "--mount", "--preserve-credentials"],
    ),
    (&["--mount"], &["--mount"]),
];

impl SmallDisk {
    /// Makes one over a folder that exists; what is in the folder is hidden. `None` where the
    /// system does not allow it, as in most containers.
    ///
    /// # Units
    /// `size` is in bytes.
    #[track_caller]
    pub fn mount(path: &Path, size: u64) -> Option<Self> {
        let script =
            r#"mount -t tmpfs -o "size=$2,mode=700" tmpfs "$1" && echo mounted && exec sleep 7200"#;
        let mut refusals = String::new();
        for (unshare, enter) in WAYS {
            let holder = Program::new("unshare")
                .args(unshare)
                .args(["sh", "-c", script, "sh"])
                .arg(path)
                .arg(size.to_string())
                .start();
            if holder.wait_for_line_or_exit("mounted", SOON).is_none() {
                refusals.push_str(&holder.stderr());
                continue;
            }
            let target = ["--target", &holder.pid().to_string()].map(str::to_owned);
            let launcher = ["nsenter"].iter().chain(enter).map(|&word| word.to_owned());
            return Some(Self {
                path: path.to_owned(),
                launcher: launcher.chain(target).chain(["--".to_owned()]).collect(),
                holder,
            });
        }
        not_allowed(
            "file system to fill up (neither user namespaces nor root)",
            &refusals,
        );
        None
    }

    /// Returns the words to put before those of a program that is to see the file system.
    pub fn launcher(&self) -> &[String] {
        &self.launcher
    }

    /// Returns the path by which this process reaches it.
    ///
    /// The system resolves it; a program that resolves links itself ends up elsewhere.
    pub fn outside_path(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.pid()));
        root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    /// Fills it, and takes whatever comes free until the ballast is dropped. Returns once it is full.
    #[track_caller]
    pub fn fill(&self) -> Ballast {
        let path = self.outside_path().join(BALLAST);
        let file = File::create(&path).unwrap_or_else(|error| {
            fail(format_args!("no ballast at {}: {error}", path.display()))
        });
        let is_over = Arc::<AtomicBool>::default();
        let mut filler = Filler { file };
        filler.fill();
        let thread = thread::spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    thread::sleep(LOOK_AGAIN);
                    filler.fill();
                }
            }
        });
        Ballast {
            path,
            is_over,
            thread: Some(thread),
        }
    }
}

/// What keeps a file system full; dropping it makes the space free again.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Ballast {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _its_panic = thread.join();
        }
        // The file system may be gone already.
        let _gone = std::fs::remove_file(&self.path);
    }
}

struct Filler {
    file: File,
}

impl Filler {
    /// Writes until there is no space.
    fn fill(&mut self) {
        let zeros = vec![0; 256 * 1024];
        loop {
            match self.file.write(&zeros) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return,
                Err(error) => fail(format_args!("the ballast cannot be written: {error}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_fills_up_and_is_seen_by_its_programs_alone() {
        let folder = std::env::temp_dir().join(format!("small-disk-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let Some(disk) = SmallDisk::mount(&folder, 1 << 20) else {
            return std::fs::remove_dir(&folder).unwrap();
        };
        let write = || {
            let (first, rest) = disk.launcher().split_first().unwrap();
            Program::new(first)
                .args(rest)
                .args(["sh", "-c", r#"echo something > "$1/file""#, "sh"])
                .arg(&folder)
                .run(SOON)
        };
        let ballast = disk.fill();
        assert!(!write().status.success());
        drop(ballast);
        let finished = write();
        assert!(finished.status.success(), "{}", finished.stderr);
        let seen = std::fs::read_to_string(disk.outside_path().join("file"));
        assert_eq!(seen.unwrap(), "something\n");
        assert!(!folder.join("file").exists());
        drop(disk);
        std::fs::remove_dir(&folder).unwrap();
    }
}
