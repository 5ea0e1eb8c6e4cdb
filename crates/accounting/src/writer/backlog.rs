//! The records that are posted next: those that came in, and those that are read from the journal.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use sluice_domain::quota::{Amounts, CounterKey, Payer, ScopeSet};
use sluice_domain::record::{NumberedRecord, UsageRecord};
use sluice_domain::time::Month;

use crate::book::leased_counters;
use crate::chain;
use crate::inbox::Posting;
use crate::journal::{Journal, JournalError, PostReader};

use super::posts::MAX_BATCH;
use super::{Stop, Writer, blocking};

/// Most records that are read from the journal at once.
const READ_AT_ONCE: usize = 4 * MAX_BATCH;

/// What records charge to each counter.
#[derive(Debug, Default)]
pub(super) struct Charges {
    pub(super) records: i64,
    by_counter: HashMap<CounterKey, Amounts, foldhash::fast::RandomState>,
}

impl Charges {
    /// Adds up what the posts with numbers above `posted_no`, up to `until`, charge. Blocks.
    pub(super) fn read(
        journal: &Journal,
        posted_no: i64,
        until: i64,
    ) -> Result<Self, JournalError> {
        let mut charges = Self::default();
        let mut reader = PostReader::after(posted_no);
        loop {
            let posts = journal.read_posts(&mut reader, until, READ_AT_ONCE)?;
            if posts.is_empty() {
                return Ok(charges);
            }
            for numbered in &posts {
                charges.add(&numbered.record);
            }
        }
    }

    pub(super) fn add(&mut self, record: &UsageRecord) {
        let open = &record.open;
        self.records += 1;
        for (_place, key) in leased_counters(open.payer, open.period, open.hold.leased) {
            let sum = self.by_counter.entry(key).or_default();
            *sum = sum.plus(record.charge());
        }
    }
}

/// Records of one payer that follow one another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// The place of the first one in the backlog.
    first: usize,
    payer: Payer,
    month: Month,
    leased: ScopeSet,
    /// What they charge together.
    pub(super) charge: Amounts,
}

impl Run {
    fn of(first: usize, record: &UsageRecord) -> Self {
        Self {
            first,
            payer: record.open.payer,
            month: record.open.period,
            leased: record.open.hold.leased,
            charge: record.charge(),
        }
    }

    fn takes(&self, record: &UsageRecord) -> bool {
        let open = &record.open;
        (self.payer, self.month, self.leased) == (open.payer, open.period, open.hold.leased)
    }

    /// The counters that they move.
    pub(super) fn counters(self) -> impl Iterator<Item = CounterKey> {
        leased_counters(self.payer, self.month, self.leased).map(|(_place, key)| key)
    }
}

impl Writer {
    /// Takes what waits into the backlog: what came in, then, before the backlog runs out, what is
    /// in the journal alone.
    pub(super) async fn fill_backlog(&mut self) -> Result<(), Stop> {
        loop {
            let (posts, left_until) = self.shared.inbox.lock().take_posts();
            for Posting { numbered, desk } in posts {
                self.backlog.push_back(numbered);
                self.desks.push_back(desk);
            }
            let most = self.shared.options.max_in_memory.max(1);
            let room = most.saturating_sub(self.backlog.len()).min(READ_AT_ONCE);
            match left_until {
                Some(until) if room > 0 && self.backlog.len() < MAX_BATCH => {
                    self.read_back(until, room).await?;
                }
                _ => return Ok(()),
            }
        }
    }

    /// Reads the records after the backlog from the journal.
    async fn read_back(&mut self, until: i64, most: usize) -> Result<(), Stop> {
        let last = self.posted_no + i64::try_from(self.backlog.len()).unwrap_or(i64::MAX);
        if self.reader.next_post_no() != last + 1 {
            self.reader = PostReader::after(last);
        }
        let mut reader = self.reader;
        let read = blocking(&self.shared, move |shared| {
            let posts = shared.journal.read_posts(&mut reader, until, most)?;
            Ok((reader, posts))
        })
        .await;
        let (reader, posts) = read.map_err(|error| unreadable(&error))?;
        self.reader = reader;
        let last = reader.next_post_no() - 1;
        self.shared.inbox.lock().note_read(posts.len(), last);
        let count = u64::try_from(posts.len()).unwrap_or(0);
        let read_back = &self.shared.stats.read_back;
        read_back.fetch_add(count, Ordering::Relaxed);
        for numbered in posts {
            let tenant_id = numbered.record.open.payer.tenant_id;
            self.desks
                .push_back(self.shared.desks.get_or_make(tenant_id));
            self.backlog.push_back(numbered);
        }
        Ok(())
    }

    /// Begins again after `posted_no`, because the database lost what came after it: that counts as
    /// unposted again, and is read from the journal when its turn comes.
    pub(super) async fn reload_posts(&mut self, posted_no: i64) -> Result<(), Stop> {
        let until = self.posted_no;
        self.keep_posts_after(posted_no).await?;
        let lost = blocking(&self.shared, move |shared| {
            Charges::read(&shared.journal, posted_no, until)
        })
        .await
        .map_err(|error| unreadable(&error))?;
        self.charge_again(&lost);
        let last = self.backlog.back().map_or(until, |last| last.post_no);
        self.leave_all(posted_no, last);
        Ok(())
    }

    /// Lets everything from `posted_no` on up to `last` be read from the journal.
    pub(super) fn leave_all(&mut self, posted_no: i64, last: i64) {
        self.backlog.clear();
        self.desks.clear();
        self.posted_no = posted_no;
        if last > posted_no {
            self.shared.inbox.lock().leave_all(last);
        }
    }

    /// Counts records as unposted that are known from the journal only.
    pub(super) fn charge_again(&self, charges: &Charges) {
        for (key, amount) in &charges.by_counter {
            let desk = self.shared.desks.get_or_make(key.tenant_id);
            let mut book = desk.book.lock();
            let counter = book.entry(*key);
            counter.unposted = counter.unposted.plus(*amount);
        }
        let waiting = &self.shared.stats.waiting;
        waiting.fetch_add(charges.records, Ordering::Relaxed);
    }

    /// Takes up a record that a start has written.
    pub(super) fn take_recovered(&self, numbered: NumberedRecord) {
        let mut charges = Charges::default();
        charges.add(&numbered.record);
        self.charge_again(&charges);
        let tenant_id = numbered.record.open.payer.tenant_id;
        let desk = self.shared.desks.get_or_make(tenant_id);
        self.shared.keep_post(Posting { numbered, desk });
    }

    /// Takes the first records off the backlog and off the books.
    pub(super) fn forget_posted(&mut self, size: usize) {
        let size = size.min(self.backlog.len());
        for run in self.runs(size) {
            if let Some(desk) = self.desks.get(run.first) {
                let mut book = desk.book.lock();
                book.posted(run.payer, run.month, run.leased, run.charge);
            }
        }
        self.desks.drain(..size);
        if let Some(last) = self.backlog.drain(..size).next_back() {
            self.posted_no = last.post_no;
        }
        let count = i64::try_from(size).unwrap_or(0);
        let waiting = &self.shared.stats.waiting;
        waiting.fetch_sub(count, Ordering::Relaxed);
        self.shared.inbox.lock().note_dropped(size);
    }

    /// The first records, those that follow one another and are of one payer added up.
    pub(super) fn runs(&self, size: usize) -> impl Iterator<Item = Run> {
        let mut records = self.backlog.iter().take(size).enumerate().peekable();
        std::iter::from_fn(move || {
            let (first, numbered) = records.next()?;
            let mut run = Run::of(first, &numbered.record);
            while let Some((_, numbered)) = records.next_if(|(_, next)| run.takes(&next.record)) {
                run.charge = run.charge.plus(numbered.record.charge());
            }
            Some(run)
        })
    }

    /// Forgets records that the database has taken in.
    pub(super) async fn drop_posted(&mut self, posted_no: i64) -> Result<(), Stop> {
        loop {
            self.fill_backlog().await?;
            let known = self
                .backlog
                .iter()
                .take_while(|numbered| numbered.post_no <= posted_no)
                .count();
            if known == 0 {
                break;
            }
            self.forget_posted(known);
        }
        self.posted_no = self.posted_no.max(posted_no);
        Ok(())
    }

    /// Returns whether a record waits.
    pub(super) fn has_posts(&self) -> bool {
        !self.backlog.is_empty() || self.shared.inbox.lock().has_posts()
    }
}

fn unreadable(error: &JournalError) -> Stop {
    tracing::error!(
        error = chain(error),
        "posts that the database lacks cannot be read from the journal"
    );
    match *error {
        JournalError::PostsGone { from, oldest } => Stop::PostsGone { from, oldest },
        _ => Stop::JournalLost,
    }
}
