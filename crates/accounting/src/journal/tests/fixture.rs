//! A disk in memory that loses, tears and refuses writes, and builders of what is written to it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_domain::id::{
    BootId, InstanceId, ProxyKeyId, RequestId, TenantId, UpstreamId, UpstreamKeyId, UserId,
};
use sluice_domain::quota::{
    Amounts, CounterKey, HoldTerms, Lease, Payer, Scope, ScopeKind, ScopeSet,
};
use sluice_domain::record::{
    AttemptRecord, Caller, NumberedRecord, OpenRequest, RequestEnd, UsageRecord,
};
use sluice_domain::route::Endpoint;
use sluice_domain::time::{LocalDay, Month, UnixMillis};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};
use uuid::Uuid;

use crate::journal::disk::{Disk, Segment};
use crate::journal::{AttemptStart, Identity, Journal, JournalError, Options, Progress, Replay};

#[derive(Debug, Default)]
struct Image {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
    has_failed_sync: bool,
}

/// What goes wrong next.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The next write stops after so many bytes.
    pub(crate) tear_write: Option<usize>,
    /// The next sync fails.
    pub(crate) fail_sync: bool,
    /// No segment can be made.
    pub(crate) is_full: bool,
}

#[derive(Debug, Default)]
struct State {
    segments: BTreeMap<u64, Image>,
    faults: Faults,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct MemorySegment {
    disk: MemoryDisk,
    number: u64,
}

impl MemoryDisk {
    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().faults);
    }

    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.0.lock().segments.keys().copied().collect()
    }

    /// Returns the disk as a killed process leaves it.
    pub(crate) fn copy(&self) -> Self {
        self.map(|_number, image| image.cached.clone())
    }

    /// Returns the disk after a power cut: of each write that was not synced, `keep` bytes survive.
    pub(crate) fn after_power_cut(&self, mut keep: impl FnMut(usize) -> usize) -> Self {
        self.map(|_number, image| {
            let mut bytes = image.durable.clone();
            for (offset, write) in &image.pending {
                let kept = keep(write.len()).min(write.len());
                bytes[*offset..offset + kept].copy_from_slice(&write[..kept]);
            }
            bytes
        })
    }

    pub(crate) fn change(&self, number: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.0.lock();
        let image = state.segments.get_mut(&number).unwrap();
        change(&mut image.cached);
        image.durable = image.cached.clone();
    }

    fn map(&self, bytes: impl FnMut(u64, &Image) -> Vec<u8>) -> Self {
        let mut bytes = bytes;
        let segments = self
            .0
            .lock()
            .segments
            .iter()
            .map(|(number, image)| {
                let bytes = bytes(*number, image);
                let image = Image {
                    durable: bytes.clone(),
                    cached: bytes,
                    ..Image::default()
                };
                (*number, image)
            })
            .collect();
        Self(Arc::new(Mutex::new(State {
            segments,
            faults: Faults::default(),
        })))
    }
}

impl Disk for MemoryDisk {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.numbers())
    }

    fn create(&self, number: u64, size: u64) -> io::Result<Arc<dyn Segment>> {
        let mut state = self.0.lock();
        if state.faults.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let zeros = vec![0; usize::try_from(size).unwrap()];
        let image = Image {
            cached: zeros.clone(),
            durable: zeros,
            ..Image::default()
        };
        assert!(state.segments.insert(number, image).is_none());
        drop(state);
        self.open(number)
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn Segment>> {
        if !self.0.lock().segments.contains_key(&number) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(MemorySegment {
            disk: self.clone(),
            number,
        }))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        match self.0.lock().segments.remove(&number) {
            Some(_image) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

impl MemorySegment {
    fn with<T>(&self, f: impl FnOnce(&mut Image, &mut Faults) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.0.lock();
        let State { segments, faults } = &mut *state;
        let image = segments.get_mut(&self.number);
        f(image.ok_or(io::ErrorKind::NotFound)?, faults)
    }
}

impl Segment for MemorySegment {
    fn size(&self) -> io::Result<u64> {
        self.with(|image, _| Ok(image.cached.len() as u64))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|image, faults| {
            let offset = usize::try_from(offset).unwrap();
            let torn = faults.tear_write.take();
            let kept = torn.unwrap_or(bytes.len()).min(bytes.len());
            assert!(offset + bytes.len() <= image.cached.len(), "beyond its end");
            image.cached[offset..offset + kept].copy_from_slice(&bytes[..kept]);
            image.pending.push((offset, bytes[..kept].to_vec()));
            match torn {
                None => Ok(()),
                Some(_) => Err(io::ErrorKind::StorageFull.into()),
            }
        })
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.with(|image, _| {
            let offset = usize::try_from(offset).unwrap();
            let from = image.cached.get(offset..offset + bytes.len());
            bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|image, faults| {
            assert!(!image.has_failed_sync, "a failed file is synced again");
            if std::mem::take(&mut faults.fail_sync) {
                image.has_failed_sync = true;
                image.pending.clear();
                return Err(io::Error::other("lost"));
            }
            image.durable = image.cached.clone();
            image.pending.clear();
            Ok(())
        })
    }
}

pub(crate) fn instance() -> InstanceId {
    InstanceId::from_uuid(Uuid::from_u128(0xaaaa))
}

pub(crate) fn identity(boot: u128) -> Identity {
    let boot_id = |n| BootId::from_uuid(Uuid::from_u128(n));
    Identity {
        instance_id: instance(),
        boot_id: boot_id(boot),
        previous_boot: (boot > 1).then(|| boot_id(boot - 1)),
    }
}

pub(crate) fn small() -> Options {
    Options {
        segment_bytes: 64 << 10,
        ..Options::default()
    }
}

#[track_caller]
pub(crate) fn open(disk: &MemoryDisk, boot: u128) -> (Journal, Replay) {
    Journal::open(Arc::new(disk.clone()), small(), identity(boot)).unwrap()
}

pub(crate) fn request(n: u128) -> RequestId {
    RequestId::from_uuid(Uuid::from_u128(n))
}

pub(crate) fn open_request(n: u128) -> OpenRequest {
    OpenRequest {
        request_id: request(n),
        payer: Payer {
            tenant_id: TenantId::from_uuid(Uuid::from_u128(1)),
            user_id: UserId::from_uuid(Uuid::from_u128(2)),
            key_id: ProxyKeyId::from_uuid(Uuid::from_u128(3)),
        },
        period: Month::from_number(202_611).unwrap(),
        local_day: LocalDay(20_261_120),
        started_at: UnixMillis(1_795_000_000_000),
        endpoint: Endpoint::ChatCompletions,
        streams: true,
        requested_model: "gpt-4o-mini-2024-07-18".into(),
        hold: HoldTerms {
            bound: Amounts {
                tokens: 20_000,
                nano: 12_345_678,
            },
            leased: ScopeSet::default().with(ScopeKind::Tenant),
            input_estimate: 1_500,
        },
        caller: Caller {
            ip: Some("203.0.113.7".parse().unwrap()),
            user_agent: Some("OpenAI/Python 1.54.0".into()),
        },
    }
}

pub(crate) fn attempt(n: u128, index: u32) -> AttemptStart {
    AttemptStart {
        request_id: request(n),
        n: index,
        upstream_id: UpstreamId::from_uuid(Uuid::from_u128(7)),
        upstream_key_id: Some(UpstreamKeyId::from_uuid(Uuid::from_u128(8))),
        upstream_model: "gpt-4o-mini".into(),
        started_at: UnixMillis(1_795_000_000_010),
    }
}

pub(crate) fn progress(n: u128, output_tokens: i64) -> Progress {
    Progress {
        request_id: request(n),
        output_tokens,
        reported: None,
    }
}

pub(crate) fn record(n: u128) -> Box<UsageRecord> {
    let begun = attempt(n, 0);
    Box::new(UsageRecord {
        open: open_request(n),
        end: RequestEnd {
            ending: Ending::Finished,
            stage: Stage::Relaying,
            status: 200,
            usage: TokenUsage {
                input: 1_432,
                cached_input: 1_024,
                output: 321,
                ..TokenUsage::default()
            },
            basis: Basis::Reported,
            owed: Amounts {
                tokens: 1_753,
                nano: 407_400,
            },
            first_event_ms: Some(310),
            duration_ms: 4_210,
            attempts: [AttemptRecord {
                upstream_id: begun.upstream_id,
                upstream_key_id: begun.upstream_key_id,
                upstream_model: begun.upstream_model,
                status: Some(200),
                error: None,
                started_at: begun.started_at,
                head_ms: 290,
            }]
            .into_iter()
            .collect(),
            ..RequestEnd::abandoned()
        },
    })
}

pub(crate) fn lease(n: u128, tokens: i64) -> Lease {
    let tenant_id = TenantId::from_uuid(Uuid::from_u128(n));
    Lease {
        key: CounterKey {
            tenant_id,
            scope: Scope {
                kind: ScopeKind::Tenant,
                id: tenant_id.as_uuid(),
            },
            month: Month::from_number(202_611).unwrap(),
        },
        held: Amounts::tokens(tokens),
    }
}

/// A caller that keeps the slots of what it has open.
#[derive(Debug, Default)]
pub(crate) struct Holder {
    pub(crate) slots: BTreeMap<u128, crate::journal::Slot>,
    pub(crate) posted: Vec<(i64, u128)>,
}

impl Holder {
    pub(crate) fn open(&mut self, journal: &Journal, n: u128) -> Result<(), JournalError> {
        let open = open_request(n);
        let slot = journal.reserve(&open)?;
        let mut turn = journal.turn();
        let slot = turn.open(&open, slot);
        journal.append(&mut turn, |_| {})?;
        self.slots.insert(n, slot);
        Ok(())
    }

    pub(crate) fn post(&mut self, journal: &Journal, n: u128) -> Result<(), JournalError> {
        let slot = self
            .slots
            .remove(&n)
            .or_else(|| journal.slot_of(request(n)));
        let mut turn = journal.turn();
        turn.post(record(n), slot.unwrap());
        let posted = &mut self.posted;
        journal.append(&mut turn, |numbered| posted.push(number_of(&numbered)))
    }
}

pub(crate) fn number_of(numbered: &NumberedRecord) -> (i64, u128) {
    let id = numbered.record.open.request_id;
    (numbered.post_no, id.as_uuid().as_u128())
}

pub(crate) fn open_ids(replay: &Replay) -> Vec<u128> {
    let ids = replay.holds.iter();
    ids.map(|hold| hold.open.request_id.as_uuid().as_u128())
        .collect()
}

#[track_caller]
pub(crate) fn posts_after(journal: &Journal, posted_no: i64) -> Vec<(i64, u128)> {
    let posts = journal.posts_after(posted_no).unwrap();
    posts.iter().map(number_of).collect()
}

#[track_caller]
pub(crate) fn kept_posts(disk: &MemoryDisk) -> Vec<(i64, u128)> {
    let mut posts = Vec::new();
    let kept = crate::journal::kept_posts(disk, &mut |kept| {
        posts.extend(kept.iter().map(number_of));
    });
    kept.unwrap();
    posts
}
