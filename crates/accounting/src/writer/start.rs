//! The start of an instance: what the journal and the database say of the last one is made true.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{
    Clock, Guard, InstanceRow, InstanceState, LedgerStore, PostMode, StoreError,
};
use sluice_domain::time::UnixMillis;

use crate::journal::{Journal, JournalError, PostReader, Replay};
use crate::ledger::{Ledger, LedgerOptions, Shared};
use crate::recovery::recovered;

use super::backlog::Charges;
use super::{Stop, Writer, bounded};

/// Who an instance is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The instance: one per data folder.
    pub instance_id: InstanceId,
    /// Earlier starts of this folder that the database may know, the latest last.
    pub earlier_boots: Vec<BootId>,
    /// This start.
    pub boot_id: BootId,
}

/// An instance may not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process has used its identity: the folder is a copy, or an old one.
    #[error(
        "the database knows more of this instance than its journal: the data folder is a copy or older"
    )]
    OlderCopy,
    /// The database could not do what was asked; when it is away the start may be tried again.
    #[error("the instance cannot be registered in the database")]
    Store(#[source] StoreError),
    /// The journal cannot be used.
    #[error("the journal cannot be used")]
    Journal(#[source] JournalError),
    /// The journal cannot be written any more, not even anew, or what it has cannot be read.
    #[error("the journal cannot be written")]
    JournalLost,
    /// The database went back so far that the journal does not keep the posts any more that it lost.
    /// An operator can give them up: then the start hands in what the journal has.
    #[error("posts from {from} are asked for, but the journal keeps only those from {oldest}")]
    PostsGone {
        /// The first that the database asks for.
        from: i64,
        /// The first that the journal has.
        oldest: i64,
    },
    /// The instance was settled by an operator; what its journal had was handed in. It needs a new
    /// instance id.
    #[error("this instance was settled by an operator")]
    Settled,
}

/// Claims the instance for this start, ends what the last one left open, and returns the ledger with
/// its writer.
///
/// # Errors
/// [`StartError`].
pub async fn start(
    options: LedgerOptions,
    store: Arc<dyn LedgerStore>,
    clock: Arc<dyn Clock>,
    journal: Journal,
    replay: Replay,
    identity: Identity,
) -> Result<(Ledger, Writer), StartError> {
    let known_here = Unclaimed::of(&replay);
    let is_ahead = |row: &InstanceRow| {
        row.state != InstanceState::Closed && known_here.compare(row) == Found::OlderCopy
    };
    // Before the claim as well: a start from a copy must not take the name from who goes on using
    // it, because the claim could not be taken back, and its folder would be refused for good.
    let known = bounded(store.find_instance(identity.instance_id)).await;
    if known
        .map_err(StartError::Store)?
        .is_some_and(|row| is_ahead(&row))
    {
        return Err(StartError::OlderCopy);
    }
    crate::crash::point("start.claiming");
    let row = claim(&*store, &identity, clock.now()).await?;
    crate::crash::point("start.claimed");
    if row.state == InstanceState::Closed {
        return Err(StartError::Settled);
    }
    if is_ahead(&row) {
        return Err(StartError::OlderCopy);
    }
    let went_back = known_here.compare(&row) == Found::WentBack;
    let noted = if went_back {
        // What the database lost is needed again, and is kept from here on.
        journal.note_went_back(row.posted_no)
    } else {
        journal.note_found(row.seq, row.posted_no, &row.leases)
    };
    noted.map_err(StartError::Journal)?;
    // The next segment is there before the first request is.
    journal.maintain(clock.now()).map_err(StartError::Journal)?;
    let ledger = Ledger::new(options, journal);
    let shared = Arc::clone(&ledger.shared);
    let mut writer = Writer::new(shared, store, clock, identity, row.seq, row.posted_no);
    writer
        .take_over(&row, replay)
        .map_err(|error| match error {
            JournalError::PostsGone { from, oldest } => StartError::PostsGone { from, oldest },
            other => StartError::Journal(other),
        })?;
    if went_back {
        writer.guard.seq = known_here.number_above(&row);
    }
    match writer.settle_start(went_back).await {
        Ok(()) => {
            crate::crash::point("start.taken_over");
            Ok((ledger, writer))
        }
        Err(Stop::Settled) => Err(StartError::Settled),
        Err(Stop::LostIdentity) => Err(StartError::OlderCopy),
        Err(Stop::PostsGone { from, oldest }) => Err(StartError::PostsGone { from, oldest }),
        Err(Stop::Deadline | Stop::JournalLost) => Err(StartError::JournalLost),
    }
}

/// Begins without the database, with the leases that the journal knows.
///
/// They are at most those that the database has. What the last start left open is ended in the
/// journal. The writer claims the instance as soon as the database answers after `fits` has resolved,
/// which says that it may be used, and everything else waits for that; it ends with [`Finish::LostIdentity`](super::Finish::LostIdentity) or
/// [`Finish::Settled`](super::Finish::Settled) where [`start`] would have refused.
///
/// # Errors
/// [`StartError::Journal`].
pub fn start_away(
    options: LedgerOptions,
    store: Arc<dyn LedgerStore>,
    clock: Arc<dyn Clock>,
    journal: Journal,
    replay: Replay,
    identity: Identity,
    fits: impl Future<Output = ()> + Send + Sync + 'static,
) -> Result<(Ledger, Writer), StartError> {
    journal.maintain(clock.now()).map_err(StartError::Journal)?;
    let ledger = Ledger::new(options, journal);
    let shared = Arc::clone(&ledger.shared);
    shared.is_database_up.store(false, Ordering::Relaxed);
    shared.is_claimed.store(false, Ordering::Release);
    let unclaimed = Unclaimed::of(&replay);
    let boot_id = identity.boot_id;
    let (seq, posted_no) = (unclaimed.seq, unclaimed.posted_no);
    let mut writer = Writer::new(shared, store, clock, identity, seq, posted_no);
    writer.unclaimed = Some(unclaimed);
    writer.fits = Some(Box::pin(fits));
    let row = InstanceRow {
        boot_id,
        seq,
        state: InstanceState::Live,
        posted_no,
        leases: replay.leases.clone(),
    };
    writer
        .take_over(&row, replay)
        .map_err(StartError::Journal)?;
    Ok((ledger, writer))
}

impl Writer {
    /// Makes the writer of a start, with transaction `seq` and the posts up to `posted_no` behind it.
    fn new(
        shared: Arc<Shared>,
        store: Arc<dyn LedgerStore>,
        clock: Arc<dyn Clock>,
        identity: Identity,
        seq: i64,
        posted_no: i64,
    ) -> Self {
        let guard = Guard {
            instance_id: identity.instance_id,
            boot_id: identity.boot_id,
            seq,
        };
        Self {
            shared,
            store,
            clock,
            guard,
            earlier_boots: identity.earlier_boots,
            mode: PostMode::Live,
            live: 1,
            posted_no,
            backlog: VecDeque::new(),
            desks: VecDeque::new(),
            reader: PostReader::after(0),
            retry_at: None,
            unclaimed: None,
            fits: None,
        }
    }
}

/// What the journal knew when an instance began without the database.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unclaimed {
    /// The last transaction that was answered.
    seq: i64,
    /// The last transaction that may have been taken in.
    last_sent: i64,
    posted_no: i64,
    /// The number that no earlier start has given to a post.
    next_post_no: i64,
}

/// How the row of an instance stands to what its journal knew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The database knows more.
    OlderCopy,
    /// The database knows less.
    WentBack,
    /// They agree.
    Same,
}

impl Unclaimed {
    fn of(replay: &Replay) -> Self {
        Self {
            seq: replay.seq,
            last_sent: replay.sent.map_or(replay.seq, |sent| sent.max(replay.seq)),
            posted_no: replay.posted_no,
            next_post_no: replay.next_post_no,
        }
    }

    pub(super) fn compare(&self, row: &InstanceRow) -> Found {
        // What an operator did is one more.
        let settled = i64::from(row.state == InstanceState::Resolved);
        if row.seq > self.last_sent + settled || row.posted_no >= self.next_post_no.max(1) {
            Found::OlderCopy
        } else if row.seq < self.seq || row.posted_no < self.posted_no {
            Found::WentBack
        } else {
            Found::Same
        }
    }

    /// A number above every one that was ever used, so that the database is behind it.
    pub(super) fn number_above(&self, row: &InstanceRow) -> i64 {
        self.last_sent.max(row.seq) + 1
    }
}

/// Claims the instance. The outcome of a claim is never unknown for long: repeated by the same boot
/// it changes nothing.
async fn claim(
    store: &dyn LedgerStore,
    identity: &Identity,
    now: UnixMillis,
) -> Result<InstanceRow, StartError> {
    bounded(store.claim_instance(
        identity.instance_id,
        &identity.earlier_boots,
        identity.boot_id,
        now,
    ))
    .await
    .map_err(|error| match error {
        StoreError::Guard => StartError::OlderCopy,
        other => StartError::Store(other),
    })
}

impl Writer {
    /// Takes over what the last start left: leases from the database, posts from the journal, and
    /// one record for each hold that was open.
    fn take_over(&mut self, row: &InstanceRow, replay: Replay) -> Result<(), JournalError> {
        if row.state == InstanceState::Resolved {
            self.mode = PostMode::Late;
            self.shared.suspend_admission();
        } else {
            self.set_leases(&row.leases);
        }
        let last = self.shared.journal.last_post_no();
        let unposted = Charges::read(&self.shared.journal, row.posted_no, last)?;
        self.charge_again(&unposted);
        self.leave_all(row.posted_no, last);
        let now = self.clock.now();
        let open = replay.holds;
        let count = u64::try_from(open.len()).unwrap_or(0);
        if count > 0 {
            tracing::warn!(
                requests = count,
                "requests were cut off by a crash; they are recorded from the journal"
            );
        }
        for hold in open {
            let record = Box::new(recovered(hold, now));
            let mut turn = self.shared.journal.turn();
            let request_id = record.open.request_id;
            let slot = match self.shared.journal.slot_of(request_id) {
                Some(slot) => slot,
                None => self.shared.journal.reserve(&record.open)?,
            };
            turn.post(record, slot);
            let mut posted = Vec::new();
            self.shared
                .journal
                .append(&mut turn, |numbered| posted.push(numbered))?;
            crate::crash::point("start.recovered_one");
            for numbered in posted {
                self.take_recovered(numbered);
            }
        }
        self.shared.posts_came();
        self.shared.stats.recovered.store(count, Ordering::Relaxed);
        Ok(())
    }

    /// Brings the database to where the journal is, when it is behind, and hands everything in when
    /// the instance was settled.
    async fn settle_start(&mut self, went_back: bool) -> Result<(), Stop> {
        if went_back {
            self.reconcile().await?;
        }
        while self.mode == PostMode::Late {
            self.post_all().await?;
            self.end_late().await?;
        }
        Ok(())
    }
}
