//! The simulated disk: what was written is visible at once, what was synced survives a power cut.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use sluice_accounting::journal::{Disk, Segment};

use crate::common::{Life, Log, Rng};

#[derive(Debug, Clone)]
struct Write {
    at_ms: i64,
    offset: usize,
    bytes: Vec<u8>,
    /// Its sync failed: later syncs do not cover it.
    is_doomed: bool,
    /// It was written anew elsewhere.
    is_void: bool,
}

/// Where lines begin in a segment.
const FIRST_LINE: usize = 128;

#[derive(Debug, Default)]
struct Content {
    /// What the process reads.
    visible: Vec<u8>,
    /// What a power cut leaves for sure.
    durable: Vec<u8>,
    unsynced: Vec<Write>,
}

#[derive(Debug, Default)]
struct Platter {
    segments: BTreeMap<u64, Content>,
}

/// A folder that outlives the processes that use it.
#[derive(Debug)]
pub(crate) struct SimDisk {
    platter: Mutex<Platter>,
    pub(crate) is_full: AtomicBool,
    /// How many of a thousand syncs fail.
    pub(crate) sync_failures: AtomicU64,
    rng: Rng,
    log: Arc<Log>,
}

impl SimDisk {
    pub(crate) fn new(rng: Rng, log: Arc<Log>) -> Arc<Self> {
        Arc::new(Self {
            platter: Mutex::default(),
            is_full: AtomicBool::new(false),
            sync_failures: AtomicU64::new(0),
            rng,
            log,
        })
    }

    /// When the oldest write was made that a power cut could take.
    pub(crate) fn unsynced_since(&self) -> Option<i64> {
        let platter = self.platter.lock();
        let writes = platter.segments.values().flat_map(|c| &c.unsynced);
        writes
            .filter(|write| !write.is_void)
            .map(|write| write.at_ms)
            .min()
    }

    /// Loses what was not synced, or parts of it.
    pub(crate) fn cut_power(&self) {
        let mut platter = self.platter.lock();
        let platter = &mut *platter;
        for content in platter.segments.values_mut() {
            // Either everything up to some write, or any of them: a disk may reorder.
            let prefix = self
                .rng
                .chance(50)
                .then(|| self.rng.index(content.unsynced.len() + 1));
            for (number, write) in std::mem::take(&mut content.unsynced)
                .into_iter()
                .enumerate()
            {
                let survives = match prefix {
                    Some(prefix) => number < prefix,
                    None => self.rng.chance(50),
                };
                if survives {
                    let kept = self.torn(&write.bytes, 15);
                    content.durable[write.offset..write.offset + kept]
                        .copy_from_slice(&write.bytes[..kept]);
                }
            }
            content.visible.clone_from(&content.durable);
        }
    }

    /// How much of a write is done when it is cut off.
    fn torn(&self, bytes: &[u8], percent: u64) -> usize {
        if self.rng.chance(percent) {
            self.rng.index(bytes.len() + 1)
        } else {
            bytes.len()
        }
    }
}

/// The disk as one process sees it.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) disk: Arc<SimDisk>,
    pub(crate) life: Arc<Life>,
}

#[derive(Debug)]
struct Handle {
    mount: Mount,
    number: u64,
}

fn gone() -> io::Error {
    io::Error::other("the process is dead")
}

impl Mount {
    fn check(&self) -> io::Result<()> {
        if self.life.is_dead() {
            return Err(gone());
        }
        if self.life.dies_here() {
            self.life.kill();
            return Err(gone());
        }
        Ok(())
    }

    fn handle(&self, number: u64) -> Arc<dyn Segment> {
        Arc::new(Handle {
            mount: self.clone(),
            number,
        })
    }
}

impl Disk for Mount {
    fn list(&self) -> io::Result<Vec<u64>> {
        self.check()?;
        Ok(self.disk.platter.lock().segments.keys().copied().collect())
    }

    fn create(&self, number: u64, size: u64) -> io::Result<Arc<dyn Segment>> {
        self.check()?;
        if self.disk.is_full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let zeros = vec![0; usize::try_from(size).unwrap()];
        let mut platter = self.disk.platter.lock();
        if platter.segments.contains_key(&number) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        platter.segments.insert(
            number,
            Content {
                visible: zeros.clone(),
                durable: zeros,
                unsynced: Vec::new(),
            },
        );
        Ok(self.handle(number))
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn Segment>> {
        self.check()?;
        if !self.disk.platter.lock().segments.contains_key(&number) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(self.handle(number))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        self.check()?;
        let mut platter = self.disk.platter.lock();
        platter
            .segments
            .remove(&number)
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }
}

impl Handle {
    fn with<T>(&self, use_it: impl FnOnce(&mut Content) -> T) -> io::Result<T> {
        let mut platter = self.mount.disk.platter.lock();
        platter
            .segments
            .get_mut(&self.number)
            .map(use_it)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn put(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let at_ms = self.mount.disk.log.clock.elapsed();
        self.with(|content| {
            content.visible[offset..offset + bytes.len()].copy_from_slice(bytes);
            content.unsynced.push(Write {
                at_ms,
                offset,
                bytes: bytes.to_vec(),
                is_doomed: false,
                is_void: false,
            });
        })
    }
}

impl Segment for Handle {
    fn size(&self) -> io::Result<u64> {
        self.mount.check()?;
        self.with(|content| content.visible.len() as u64)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (disk, life) = (&self.mount.disk, &self.mount.life);
        if life.is_dead() {
            return Err(gone());
        }
        if life.dies_here() {
            life.kill();
            let kept = disk.torn(bytes, 60);
            disk.log.count(|f| &f.torn_writes);
            disk.log.event(20, || {
                format!("dies in a write after {kept} of {}", bytes.len())
            });
            self.put(&bytes[..kept], offset)?;
            return Err(gone());
        }
        self.put(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.mount.check()?;
        let offset = usize::try_from(offset).unwrap();
        self.with(
            |content| match content.visible.get(offset..offset + bytes.len()) {
                Some(found) => {
                    bytes.copy_from_slice(found);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
        )?
    }

    fn sync(&self) -> io::Result<()> {
        self.mount.check()?;
        let disk = &self.mount.disk;
        if disk
            .rng
            .per_mille(disk.sync_failures.load(Ordering::Relaxed))
        {
            disk.log.count(|f| &f.sync_failures);
            disk.log
                .event(21, || format!("a sync of {} fails", self.number));
            self.with(|content| {
                for write in &mut content.unsynced {
                    write.is_doomed = true;
                }
            })?;
            return Err(io::Error::other("an input or output error"));
        }
        let takes_over = self.with(|content| {
            let had_lines = content.durable[FIRST_LINE..FIRST_LINE + 8] != [0; 8];
            let mut has_header = false;
            for write in std::mem::take(&mut content.unsynced) {
                if write.is_doomed {
                    content.unsynced.push(write);
                } else {
                    has_header |= write.offset == 0;
                    content.durable[write.offset..write.offset + write.bytes.len()]
                        .copy_from_slice(&write.bytes);
                }
            }
            had_lines && has_header
        })?;
        if !takes_over {
            return Ok(());
        }
        // A header that comes after its lines: they take the place of what was not synced before.
        let mut platter = disk.platter.lock();
        for (_number, content) in platter.segments.range_mut(..self.number) {
            for write in &mut content.unsynced {
                write.is_void = true;
            }
        }
        Ok(())
    }
}
