//! What waits for the writer: records, requests that need room, leases that run low.
//!
//! Records wait in the order of their numbers. Only so many are in memory; those after them are in
//! the journal alone, until the writer has come so far and reads them there.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use sluice_domain::quota::{Amounts, Payer, ScopeSet};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::Month;
use tokio::sync::oneshot;

use crate::account::{Desk, Reserved};
use crate::ledger::{NoRoom, Patience, Refusal};

/// A request that waits for room in a lease.
#[derive(Debug)]
pub(crate) struct Waiter {
    /// Its number among all that ever waited.
    pub(crate) number: u64,
    pub(crate) desk: Arc<Desk>,
    pub(crate) payer: Payer,
    pub(crate) month: Month,
    pub(crate) leased: ScopeSet,
    pub(crate) bound: Amounts,
    pub(crate) patience: Patience,
    /// Whether it was found that others hold the room.
    pub(crate) held: Arc<Mutex<Option<NoRoom>>>,
    pub(crate) reply: oneshot::Sender<Result<Reserved, Refusal>>,
}

/// A record with its number and the desk that it moves.
#[derive(Debug)]
pub(crate) struct Posting {
    pub(crate) numbered: NumberedRecord,
    pub(crate) desk: Arc<Desk>,
}

/// What waits for the writer.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    posts: VecDeque<Posting>,
    /// How many records are in memory, here and with the writer.
    in_memory: usize,
    /// The number of the last record when the latest ones are in the journal alone.
    left_until: Option<i64>,
    waiters: Vec<Waiter>,
    /// How many requests have ever waited.
    waited: u64,
    /// Desks with a lease that runs low.
    pub(crate) low: Vec<Arc<Desk>>,
}

impl Inbox {
    /// Lets a request wait for room, unless `most` do. It is made with its number.
    pub(crate) fn wait(&mut self, most: usize, make: impl FnOnce(u64) -> Waiter) -> bool {
        let has_place = self.waiters.len() < most;
        if has_place {
            self.waited += 1;
            self.waiters.push(make(self.waited));
        }
        has_place
    }

    /// Returns whether a request waits for room.
    pub(crate) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Returns the requests that wait, first come first.
    pub(crate) fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.waiters.iter()
    }

    /// Takes all requests that wait, first come first.
    pub(crate) fn take_waiters(&mut self) -> Vec<Waiter> {
        std::mem::take(&mut self.waiters)
    }

    /// Lets requests wait on, before those that came since.
    pub(crate) fn wait_on(&mut self, waiters: Vec<Waiter>) {
        self.waiters.splice(..0, waiters);
    }

    /// Takes the next record, or, when `most` are in memory, leaves it in the journal and returns it.
    pub(crate) fn add(&mut self, posting: Posting, most: usize) -> Option<Posting> {
        if self.left_until.is_some() || self.in_memory >= most {
            self.left_until = Some(posting.numbered.post_no);
            return Some(posting);
        }
        self.in_memory += 1;
        self.posts.push_back(posting);
        None
    }

    /// Returns the records that came in, and the number up to which the ones after them are in the
    /// journal alone.
    pub(crate) fn take_posts(&mut self) -> (VecDeque<Posting>, Option<i64>) {
        (std::mem::take(&mut self.posts), self.left_until)
    }

    /// Returns whether records are here or in the journal alone.
    pub(crate) fn has_posts(&self) -> bool {
        !self.posts.is_empty() || self.is_behind()
    }

    /// Returns whether records are in the journal alone.
    pub(crate) fn is_behind(&self) -> bool {
        self.left_until.is_some()
    }

    /// Returns how many records are in memory.
    pub(crate) fn in_memory(&self) -> usize {
        self.in_memory
    }

    /// Notes that the writer has read the next records from the journal, the last one of this number.
    pub(crate) fn note_read(&mut self, count: usize, last: i64) {
        self.in_memory += count;
        self.left_until = self.left_until.filter(|until| *until > last);
    }

    /// Notes that the writer has dropped records.
    pub(crate) fn note_dropped(&mut self, count: usize) {
        self.in_memory = self.in_memory.saturating_sub(count);
    }

    /// Drops what is in memory, here and with the writer: everything up to the latest record, and at
    /// least to `last`, is in the journal alone.
    pub(crate) fn leave_all(&mut self, last: i64) {
        let latest = self.posts.back().map(|posting| posting.numbered.post_no);
        self.left_until = [self.left_until, latest, Some(last)]
            .into_iter()
            .max()
            .flatten();
        self.posts.clear();
        self.in_memory = 0;
    }
}
