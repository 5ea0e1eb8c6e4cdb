//! What one thread writes in one turn of its event loop, and the space for it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use sluice_domain::record::{OpenRequest, UsageRecord};

use crate::journal::error::JournalError;
use crate::journal::line::{Batch, Kind, LineAbout, MAX_LINE, line_len};
use crate::journal::payload::{
    AttemptStart, Detail, END_ROOM, MAX_OPEN, Progress, open_len, put_attempt, put_open,
    put_progress, put_record,
};

/// Space in allocated segments that nobody has claimed.
///
/// # Units
/// Bytes. It may become negative for a moment when the leases outgrow the checkpoints.
#[derive(Debug, Default)]
pub(super) struct Space {
    free: AtomicI64,
    /// The journal has failed.
    is_closed: AtomicBool,
    /// What the database has not taken in takes as much as it may.
    is_at_bound: AtomicBool,
}

impl Space {
    pub(super) fn free(&self) -> i64 {
        self.free.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    pub(super) fn reopen(&self) {
        self.is_closed.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_at_bound(&self) -> bool {
        self.is_at_bound.load(Ordering::Relaxed)
    }

    pub(super) fn set_at_bound(&self, is_at_bound: bool) {
        self.is_at_bound.store(is_at_bound, Ordering::Relaxed);
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        let bytes = signed(bytes);
        let take = |free: i64| (free >= bytes || bytes == 0).then(|| free - bytes);
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    pub(super) fn give(&self, bytes: i64) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Returns a length as the budget counts it.
pub(super) fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Space for the lines of one request: its open and its post, later its post alone.
///
/// What is not used returns when it is dropped.
#[must_use = "the space returns at once when a slot is dropped"]
pub struct Slot {
    space: Arc<Space>,
    bytes: usize,
}

impl Slot {
    /// Takes the space of an open and its post.
    pub(super) fn reserve(space: &Arc<Space>, open: &OpenRequest) -> Result<Self, JournalError> {
        let payload = open_len(open);
        if payload > MAX_OPEN {
            return Err(JournalError::TooLong {
                bytes: payload,
                max: MAX_OPEN,
            });
        }
        let bytes = line_len(payload) + post_len(payload);
        if space.is_at_bound() || !space.take(bytes) {
            return Err(JournalError::Full);
        }
        Ok(Self::taken(space, bytes))
    }

    /// Stands for space that was taken already.
    pub(super) fn taken(space: &Arc<Space>, bytes: usize) -> Self {
        Self {
            space: Arc::clone(space),
            bytes,
        }
    }

    /// Gives back what exceeds `bytes`.
    fn shrink_to(&mut self, bytes: usize) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.space.give(signed(surplus));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.space.give(signed(self.bytes));
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.bytes).finish()
    }
}

/// Returns the space set aside for the post of a request whose open has such a payload.
pub(super) fn post_len(open_payload: usize) -> usize {
    line_len(open_payload + END_ROOM)
}

/// The lines of one thread in one turn of its event loop.
///
/// They are encoded here, without a lock; [`Journal::append`](super::Journal::append) writes them
/// all at once and leaves the turn empty, to be filled again.
#[derive(Debug)]
pub struct Turn {
    pub(super) batch: Batch,
    /// The records of the batch's posts, in their order.
    pub(super) records: VecDeque<Box<UsageRecord>>,
    space: Arc<Space>,
    /// Space that the lines of the batch have been given.
    charged: usize,
}

impl Turn {
    pub(super) fn new(space: &Arc<Space>) -> Self {
        Self {
            batch: Batch::default(),
            records: VecDeque::new(),
            space: Arc::clone(space),
            charged: 0,
        }
    }

    /// Returns whether there is nothing to append.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Returns how many lines there are.
    pub fn len(&self) -> usize {
        self.batch.lines().len()
    }

    /// Adds the open of a request, with the slot that was reserved for it. Returns the slot for its
    /// post.
    pub fn open(&mut self, open: &OpenRequest, mut slot: Slot) -> Slot {
        let mut payload = 0;
        let length = self
            .batch
            .push(LineAbout::request(Kind::Open, open.request_id), |out| {
                let start = out.len();
                put_open(out, open);
                payload = out.len() - start;
            });
        self.charge(length, &mut slot);
        slot.shrink_to(post_len(payload));
        slot
    }

    /// Adds the start of an attempt; left out when there is no space.
    pub fn attempt(&mut self, attempt: &AttemptStart) {
        let about = LineAbout::request(Kind::Attempt, attempt.request_id);
        self.batch.push(about, |out| put_attempt(out, attempt));
        self.keep_last_if_it_fits();
    }

    /// Adds how far an answer has come; left out when there is no space.
    pub fn progress(&mut self, progress: &Progress) {
        let about = LineAbout {
            is_report: progress.reported.is_some(),
            ..LineAbout::request(Kind::Progress, progress.request_id)
        };
        self.batch.push(about, |out| put_progress(out, progress));
        self.keep_last_if_it_fits();
    }

    /// Adds the end of a request, with the slot of its post.
    ///
    /// When the record needs more than the slot and the disk is full, what was passed over and its
    /// earlier attempts are left out: never what it charges.
    pub fn post(&mut self, record: Box<UsageRecord>, mut slot: Slot) {
        let about = LineAbout::request(Kind::Post, record.open.request_id);
        let nothing = Detail::LastAttempts(0);
        for detail in [Detail::Whole, Detail::LastAttempts(1), nothing] {
            let length = self
                .batch
                .push(about, |out| put_record(out, &record, detail));
            let lacking = length.saturating_sub(slot.bytes);
            if length <= MAX_LINE && self.space.take(lacking) {
                slot.bytes += lacking;
                self.charge(length, &mut slot);
                break;
            }
            if detail == nothing {
                // Only a record that is larger than its own open said comes here.
                self.space.give(-signed(lacking));
                slot.bytes += lacking;
                self.charge(length, &mut slot);
                break;
            }
            self.batch.pop();
        }
        self.records.push_back(record);
    }

    fn charge(&mut self, length: usize, slot: &mut Slot) {
        let lacking = length.saturating_sub(slot.bytes);
        self.space.give(-signed(lacking));
        slot.bytes -= length - lacking;
        self.charged += length;
    }

    fn keep_last_if_it_fits(&mut self) {
        let Some(length) = self.batch.last_len() else {
            return;
        };
        if length <= MAX_LINE && self.space.take(length) {
            self.charged += length;
        } else {
            self.batch.pop();
        }
    }

    /// Forgets what was written.
    pub(super) fn clear(&mut self) {
        self.batch.clear();
        self.charged = 0;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.space.give(signed(self.charged));
    }
}
