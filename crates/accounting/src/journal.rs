//! The redo log of one instance: an append-only log in a local folder.
//!
//! **For**: that every hold ends in exactly one record through any end of the process. The open of a
//! hold is written before anything is sent upstream, its post before the last bytes of the answer
//! leave; the database takes the posts in later, and when it goes back they are still here.
//!
//! **Never here**: an executor, a clock, SQL. Calls are short and may be made on an event loop
//! ([`Journal::append`] writes into the page cache), or they block and say so.
//!
//! Rules that carry the rest:
//! - Sequences and post numbers are dense and given under one lock, only to what was written.
//! - The space of a post is reserved with its open: a full disk stops admission and nothing else.
//! - A write or sync that fails ends the file; what it may have lost is written again elsewhere.
//! - A line that is missing at or before a synced sequence is corruption; after it, a torn tail.
//!
//! Modules in reading order: [`error`], [`disk`] (the port), `codec` and `payload` (what lines say),
//! `line` (how they are framed), [`turn`] (what a thread writes at once, and the space for it),
//! `balances`, `segment`, `writer` (behind the lock), [`mod@replay`], then what [`Journal`] does besides
//! appending: `posts`, `maintain`, `recover`.

pub mod error;

pub mod disk;

mod codec;

mod payload;

mod line;

pub mod turn;

mod balances;

mod segment;

mod writer;

pub mod replay;

mod posts;

mod maintain;

mod recover;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_domain::id::{BootId, InstanceId, RequestId};
use sluice_domain::quota::{CounterKey, Lease};
use sluice_domain::record::{NumberedRecord, OpenRequest};

pub use self::disk::{Disk, FolderDisk, Segment};
pub use self::error::JournalError;
pub use self::maintain::Maintained;
pub use self::payload::{AttemptStart, Progress};
pub use self::posts::{PostReader, kept_posts};
pub use self::replay::{OpenHold, Replay, replay};
pub use self::turn::{Slot, Turn};

use self::balances::{line_by_line, push_note};
use self::line::{Batch, Kind, MAX_LINE, SegmentHeader};
use self::payload::{Note, Start, open_len};
use self::segment::Rewrite;
use self::turn::{Space, post_len, signed};
use self::writer::{Unsynced, Writer};

/// How the journal uses its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a segment; at least 64 KiB, 16 MiB by default.
    pub segment_bytes: u64,
    /// Most bytes that all segments take, at least [four of them](MIN_SEGMENTS); 4 GiB by default:
    /// what an instance under full load has in ten minutes. Before it is passed, segments are
    /// removed that would be [kept](Self::keep) for longer. When what the database has not taken
    /// in would pass it, nobody is admitted; what is open can still end, and is the excess.
    pub max_bytes: u64,
    /// How long segments are kept after the database took their posts in, because it may go back;
    /// 24 hours by default.
    pub keep: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            max_bytes: 4 << 30,
            keep: Duration::from_hours(24),
        }
    }
}

/// The smallest segment: some lines of each kind have to fit.
const MIN_SEGMENT: u64 = 64 << 10;

/// So many segments there may always be: the one that is written to, those before and after it, and
/// one more that is made before the first of them may go.
pub const MIN_SEGMENTS: u64 = 4;

/// The share of a segment that is set aside for notes, so that a full disk does not stop posting.
const NOTES_SHARE: u64 = 16;

/// Whose journal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The instance.
    pub instance_id: InstanceId,
    /// This start of it.
    pub boot_id: BootId,
    /// The start before.
    pub previous_boot: Option<BootId>,
}

/// The journal of a running instance. One process at a time may have it; the caller locks the
/// folder.
#[derive(Debug)]
pub struct Journal {
    disk: Arc<dyn Disk>,
    options: Options,
    identity: Identity,
    writer: Mutex<Writer>,
    space: Arc<Space>,
    /// The last sequence that survives a power cut.
    synced: AtomicU64,
    /// Held by whoever syncs.
    syncing: Mutex<()>,
    /// Held by whoever makes or removes segments, or reads old ones. Taken before `syncing`.
    maintaining: Mutex<()>,
    /// Space for the posts of holds that an earlier start left open.
    left_open: Mutex<HashMap<RequestId, Slot>>,
}

impl Journal {
    /// Opens the journal on `disk`, reads what it says, and begins a new segment for this start.
    /// What was not known to be synced is written again; afterwards everything is. Blocks.
    ///
    /// # Errors
    /// See [`replay()`]; [`JournalError::Foreign`]; [`JournalError::Create`] when there is no space
    /// for a segment.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: Options,
        identity: Identity,
    ) -> Result<(Self, Replay), JournalError> {
        let segment_bytes = options
            .segment_bytes
            .max(MIN_SEGMENT)
            .next_multiple_of(4096);
        let options = Options {
            segment_bytes,
            max_bytes: options.max_bytes.max(MIN_SEGMENTS * segment_bytes),
            ..options
        };
        let scan = replay::scan(disk.as_ref(), Some(identity.instance_id))?;
        let mut replay = scan.replay;
        let slots: usize = replay.holds.iter().map(slot_of_hold).sum();
        let notes_room = notes_room(options);
        let number = scan.highest + 1;
        let header = SegmentHeader {
            number,
            instance_id: identity.instance_id,
            boot_id: identity.boot_id,
        };
        let oldest = scan
            .segments
            .iter()
            .filter(|info| info.last_post_no > scan.balances.posted_no)
            .map(segment::SegmentInfo::number)
            .chain(scan.places.iter().map(|(_, held)| held.open.segment))
            .min()
            .unwrap_or(number);
        let rewritten = Rewrite {
            disk: disk.as_ref(),
            header,
            synced: scan.synced,
            balances: &scan.balances,
            next_post_no: scan.next_post_no,
            oldest,
            start: Some(Start {
                instance_id: identity.instance_id,
                boot_id: identity.boot_id,
                previous_boot: identity.previous_boot,
            }),
            min_size: options.segment_bytes,
            min_room: (slots + notes_room + MAX_LINE) as u64,
        }
        .write(
            scan.tail
                .iter()
                .map(|line| (line.about, line.payload.as_slice())),
        )?;
        replay.next_post_no = rewritten.next_post_no;
        replay.boots.retain(|boot| *boot != identity.boot_id);
        replay.boots.push(identity.boot_id);

        let space = Arc::new(Space::default());
        let room = i64::try_from(rewritten.active.room()).unwrap_or(i64::MAX);
        space.give(room - signed(slots) - signed(notes_room));
        let left_open = replay
            .holds
            .iter()
            .map(|hold| {
                let slot = Slot::taken(&space, slot_of_hold(hold));
                (hold.open.request_id, slot)
            })
            .collect();
        let mut writer = Writer {
            failure: None,
            next_sequence: rewritten.info.last_sequence + 1,
            next_post_no: rewritten.next_post_no,
            next_segment: number + 1,
            synced_posted_no: scan.balances.posted_no,
            balances: scan.balances,
            active: rewritten.active,
            prepared: VecDeque::new(),
            infos: scan.segments.into_iter().chain([rewritten.info]).collect(),
            unsynced: Vec::new(),
            open: scan.places.into_iter().collect(),
            notes_room,
        };
        writer.move_lines(scan.synced, &rewritten.places);
        for number in scan.unused {
            // It holds nothing; what stays is looked at again by the next start.
            let _stays = disk.remove(number);
        }
        let journal = Self {
            disk,
            options,
            identity,
            synced: AtomicU64::new(writer.next_sequence - 1),
            writer: Mutex::new(writer),
            space,
            syncing: Mutex::new(()),
            maintaining: Mutex::new(()),
            left_open: Mutex::new(left_open),
        };
        Ok((journal, replay))
    }

    /// Returns the space for the post of a hold that an earlier start left open; once.
    pub fn slot_of(&self, request_id: RequestId) -> Option<Slot> {
        self.left_open.lock().remove(&request_id)
    }

    /// Reserves space for the open of a request and for its post. Takes no lock that a writer
    /// holds.
    ///
    /// # Errors
    /// [`JournalError::Full`]: nobody may be admitted until space was prepared, or the database has
    /// taken in what fills all that there may be.
    /// [`JournalError::TooLong`]: names are longer than the caller should have let pass. While the
    /// journal has failed, its failure.
    pub fn reserve(&self, open: &OpenRequest) -> Result<Slot, JournalError> {
        if self.space.is_closed() {
            self.writer.lock().check()?;
        }
        Slot::reserve(&self.space, open)
    }

    /// Returns an empty buffer for one thread.
    pub fn turn(&self) -> Turn {
        Turn::new(&self.space)
    }

    /// Writes the lines of a turn at once, and calls `posted` for each post in the order of their
    /// numbers while nobody else can get a number. The turn is empty afterwards.
    ///
    /// When it returns, the lines survive the end of the process; a power cut only after a
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// [`JournalError::Failed`]: nothing counts as written and the turn is as it was; append it
    /// again after [`recover_from_failure`](Self::recover_from_failure).
    pub fn append(
        &self,
        turn: &mut Turn,
        mut posted: impl FnMut(NumberedRecord),
    ) -> Result<(), JournalError> {
        if turn.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer.lock();
        let first_post_no = self.write(&mut writer, &mut turn.batch)?;
        for (post_no, record) in (first_post_no..).zip(turn.records.drain(..)) {
            posted(NumberedRecord { post_no, record });
        }
        drop(writer);
        turn.clear();
        Ok(())
    }

    /// Notes that transaction `seq` goes out: the balances that it lowers, as they are after it. A
    /// balance that the note would raise stays.
    ///
    /// # Errors
    /// [`JournalError::Failed`]; [`JournalError::Full`] when the disk has been full for so long that
    /// what is set aside for notes is used up. The transaction may not be sent then.
    pub fn note_sent(&self, seq: i64, leases: &[Lease]) -> Result<(), JournalError> {
        let note = Note {
            seq,
            posted_no: 0,
            leases: leases.to_vec(),
        };
        let notes = line_by_line(note).into_iter();
        let notes = notes.map(|note| (Kind::Sent, note)).collect();
        self.write_notes(&mut self.writer.lock(), notes)
    }

    /// Notes that transaction `seq` was answered: posts up to `posted_no` are taken in, and the
    /// balances that it touched, as they are now. Other balances stay. To be called before anything
    /// that was gained is spent.
    ///
    /// # Errors
    /// As [`note_sent`](Self::note_sent).
    pub fn note_ack(&self, seq: i64, posted_no: i64, leases: &[Lease]) -> Result<(), JournalError> {
        let note = Note {
            seq,
            posted_no,
            leases: leases.to_vec(),
        };
        let mut writer = self.writer.lock();
        let notes = writer.balances.answer(note);
        self.write_notes(&mut writer, notes)
    }

    /// Notes what the database was found to have when it was asked: as
    /// [`note_ack`](Self::note_ack), but `leases` are all that there are. What else it has a balance
    /// of is gone, by a transaction whose answer was lost.
    ///
    /// # Errors
    /// As [`note_sent`](Self::note_sent).
    pub fn note_found(
        &self,
        seq: i64,
        posted_no: i64,
        leases: &[Lease],
    ) -> Result<(), JournalError> {
        let mut writer = self.writer.lock();
        let note = Note {
            seq,
            posted_no,
            leases: writer.balances.replaced_by(leases),
        };
        let notes = writer.balances.answer(note);
        self.write_notes(&mut writer, notes)
    }

    /// Notes that the database has lost what comes after `posted_no`: posts above it are needed again,
    /// and nothing else changes.
    ///
    /// # Errors
    /// As [`note_sent`](Self::note_sent).
    pub fn note_went_back(&self, posted_no: i64) -> Result<(), JournalError> {
        let note = Note {
            seq: 0,
            posted_no,
            leases: Vec::new(),
        };
        // One line: what else the journal knows must not depend on whether a second one is there.
        self.write_notes(&mut self.writer.lock(), vec![(Kind::WentBack, note)])
    }

    /// Returns the counters of which it has balances.
    pub fn leased(&self) -> Vec<CounterKey> {
        let leases = self.writer.lock().balances.to_leases();
        leases.into_iter().map(|lease| lease.key).collect()
    }

    /// Makes all lines that were appended so far survive a power cut; others may be appended
    /// meanwhile. Blocks.
    ///
    /// # Errors
    /// [`JournalError::Failed`].
    pub fn sync(&self) -> Result<(), JournalError> {
        let _one = self.syncing.lock();
        let (targets, posted_no) = {
            let writer = self.writer.lock();
            writer.check()?;
            let mut targets = writer.unsynced.clone();
            if writer.next_sequence - 1 > self.synced_sequence() {
                targets.push(Unsynced {
                    number: writer.active.number(),
                    segment: Arc::clone(&writer.active.segment),
                    last_sequence: writer.next_sequence - 1,
                });
            }
            (targets, writer.balances.posted_no)
        };
        for target in targets {
            // A file that has failed is not synced again.
            self.writer.lock().check()?;
            if let Err(source) = target.segment.sync() {
                let failure = JournalError::failed("sync", target.number, 0, source);
                let mut writer = self.writer.lock();
                writer.failure.get_or_insert_with(|| failure.clone());
                self.space.close();
                return Err(failure);
            }
            self.synced
                .fetch_max(target.last_sequence, Ordering::Release);
            let mut writer = self.writer.lock();
            writer
                .unsynced
                .retain(|left| left.last_sequence > target.last_sequence);
        }
        self.writer.lock().synced_posted_no = posted_no;
        Ok(())
    }

    /// Returns the last sequence that survives a power cut.
    pub fn synced_sequence(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Returns whether everything that was appended survives a loss of power.
    pub fn is_synced(&self) -> bool {
        let writer = self.writer.lock();
        writer.unsynced.is_empty() && writer.next_sequence - 1 <= self.synced_sequence()
    }

    /// Returns the sequence of the last line that was appended.
    pub fn last_sequence(&self) -> u64 {
        self.writer.lock().next_sequence - 1
    }

    /// Returns how many holds are open.
    pub fn open_holds(&self) -> usize {
        self.writer.lock().open.len()
    }

    /// Returns whether nobody is admitted because the database has not taken in what fills all the
    /// space that there may be, according to the last [`maintain`](Self::maintain).
    pub fn is_at_bound(&self) -> bool {
        self.space.is_at_bound()
    }

    /// Returns whether [`maintain`](Self::maintain) should be called soon.
    pub fn wants_maintenance(&self) -> bool {
        let low_water = i64::try_from(self.options.segment_bytes).unwrap_or(i64::MAX);
        self.space.free() < low_water
    }

    fn write(&self, writer: &mut Writer, batch: &mut Batch) -> Result<i64, JournalError> {
        let written = writer.write(batch, self.synced_sequence(), &self.space);
        if writer.failure.is_some() {
            self.space.close();
        }
        written
    }

    /// Writes notes of a line each, one at a time: the checkpoint of a segment that begins between two
    /// of them has what the first one says.
    fn write_notes(
        &self,
        writer: &mut Writer,
        notes: Vec<(Kind, Note)>,
    ) -> Result<(), JournalError> {
        for (kind, note) in notes {
            let mut line = Batch::default();
            push_note(&mut line, kind, &note);
            self.write_note(writer, &mut line)?;
            self.change_balances(writer, |balances| balances.apply(kind, &note));
        }
        Ok(())
    }

    /// Writes lines for which space is set aside.
    fn write_note(&self, writer: &mut Writer, batch: &mut Batch) -> Result<(), JournalError> {
        let set_aside = batch.len().min(writer.notes_room);
        let beyond = batch.len() - set_aside;
        if !self.space.take(beyond) {
            return Err(JournalError::Full);
        }
        if let Err(failure) = self.write(writer, batch) {
            self.space.give(signed(beyond));
            return Err(failure);
        }
        writer.notes_room -= set_aside;
        self.refill_notes(writer);
        Ok(())
    }

    fn refill_notes(&self, writer: &mut Writer) {
        let lacking = notes_room(self.options).saturating_sub(writer.notes_room);
        if self.space.take(lacking) {
            writer.notes_room += lacking;
        }
    }

    /// Changes the balances, and keeps as much space as their checkpoints need.
    fn change_balances(&self, writer: &mut Writer, change: impl FnOnce(&mut balances::Balances)) {
        let before = signed(writer.balances.checkpoint_len());
        change(&mut writer.balances);
        let grown = signed(writer.balances.checkpoint_len()) - before;
        self.space.give(-grown * signed(writer.prepared.len()));
    }
}

fn slot_of_hold(hold: &OpenHold) -> usize {
    post_len(open_len(&hold.open))
}

fn notes_room(options: Options) -> usize {
    usize::try_from(options.segment_bytes / NOTES_SHARE).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
