//! Random histories against a model of what must be read back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sluice_domain::time::UnixMillis;

use super::fixture::*;
use crate::journal::{Journal, JournalError, Options, Replay, replay};

#[derive(Debug, Clone)]
enum Step {
    Open(u8),
    Post(usize),
    Progress(usize, u8),
    Sync,
    Ack,
    Lease(u8, i16),
    Maintain,
    FailSync,
    TearWrite(u16),
    Kill,
    PowerCut(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (1_u8..60).prop_map(Step::Open),
        12 => (0_usize..100).prop_map(Step::Post),
        4 => (0_usize..100, any::<u8>()).prop_map(|(at, n)| Step::Progress(at, n)),
        4 => Just(Step::Sync),
        4 => Just(Step::Ack),
        3 => (1_u8..100, 0_i16..1_000).prop_map(|(n, tokens)| Step::Lease(n, tokens)),
        6 => Just(Step::Maintain),
        1 => Just(Step::FailSync),
        1 => any::<u16>().prop_map(Step::TearWrite),
        2 => Just(Step::Kill),
        2 => any::<u8>().prop_map(Step::PowerCut),
    ]
}

/// What was appended, and what of it was synced.
#[derive(Debug, Clone, Default)]
struct Facts {
    open: BTreeMap<u128, i64>,
    posts: Vec<u128>,
    seq: i64,
    posted_no: i64,
    leases: BTreeMap<u128, i64>,
}

struct Sim {
    disk: MemoryDisk,
    journal: Journal,
    holder: Holder,
    boot: u128,
    next: u128,
    now: i64,
    facts: Facts,
    synced: Facts,
}

fn options() -> Options {
    Options {
        max_bytes: 300 << 10,
        keep: Duration::from_secs(3),
        ..small()
    }
}

impl Sim {
    fn new() -> Self {
        let disk = MemoryDisk::default();
        let shared = Arc::new(disk.clone());
        let (journal, _) = Journal::open(shared, options(), identity(1)).unwrap();
        Self {
            disk,
            journal,
            holder: Holder::default(),
            boot: 1,
            next: 1,
            now: 0,
            facts: Facts::default(),
            synced: Facts::default(),
        }
    }

    fn nth_open(&self, at: usize) -> Option<u128> {
        let count = self.facts.open.len().max(1);
        self.facts.open.keys().nth(at % count).copied()
    }

    /// Ends a failure; what was in the failed turn was not written.
    fn mend<T>(&self, done: Result<T, JournalError>) -> Option<T> {
        match done {
            Ok(value) => Some(value),
            Err(JournalError::Full) => None,
            Err(failure) if failure.is_failure() => {
                self.journal.recover_from_failure().unwrap();
                Self::check(&replay(&self.disk).unwrap(), &self.facts);
                None
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Open(count) => {
                for _ in 0..*count {
                    let n = self.next;
                    self.next += 1;
                    if self.mend(self.journal_open(n)).is_some() {
                        self.facts.open.insert(n, -1);
                    }
                }
            }
            Step::Post(at) => {
                for offset in 0..10 {
                    let Some(n) = self.nth_open(at + offset) else {
                        return;
                    };
                    self.post(n);
                }
            }
            Step::Progress(at, tokens) => {
                let Some(n) = self.nth_open(*at) else { return };
                let tokens = i64::from(*tokens);
                let mut turn = self.journal.turn();
                turn.progress(&progress(n, tokens));
                let is_kept = turn.len() == 1;
                let done = self.journal.append(&mut turn, |_| {});
                if self.mend(done).is_some() && is_kept {
                    self.facts.open.insert(n, tokens);
                }
            }
            Step::Sync => {
                if self.mend(self.journal.sync()).is_some() {
                    self.synced = self.facts.clone();
                }
            }
            Step::Ack => {
                // Nothing is in the database that was not synced.
                let posted_no = i64::try_from(self.synced.posts.len()).unwrap();
                let seq = self.facts.seq + 1;
                if self
                    .mend(self.journal.note_ack(seq, posted_no, &[]))
                    .is_some()
                {
                    self.facts.seq = seq;
                    self.facts.posted_no = posted_no;
                }
            }
            Step::Lease(n, tokens) => {
                let (n, tokens) = (u128::from(*n), i64::from(*tokens));
                let seq = self.facts.seq + 1;
                let posted_no = self.facts.posted_no;
                let done = self.journal.note_ack(seq, posted_no, &[lease(n, tokens)]);
                if self.mend(done).is_some() {
                    self.facts.seq = seq;
                    self.facts.leases.insert(n, tokens);
                }
            }
            Step::Maintain => {
                self.now += 1_000;
                self.mend(self.journal.maintain(UnixMillis(self.now)));
            }
            Step::FailSync => {
                self.disk.faults(|faults| faults.fail_sync = true);
                self.run(&Step::Sync);
            }
            Step::TearWrite(kept) => {
                // Only lines are torn here, not the headers of segments.
                self.disk
                    .faults(|faults| faults.tear_write = Some(usize::from(*kept)));
                let n = self.next;
                self.next += 1;
                if self.mend(self.journal_open(n)).is_some() {
                    self.facts.open.insert(n, -1);
                }
                self.disk.faults(|faults| faults.tear_write = None);
            }
            Step::Kill => self.restart(self.disk.copy(), false),
            Step::PowerCut(seed) => {
                let mut seed = usize::from(*seed);
                let disk = self.disk.after_power_cut(|length| {
                    seed = (seed * 31 + 17) % 257;
                    match seed % 3 {
                        0 => 0,
                        1 => length,
                        _ => seed * length / 257,
                    }
                });
                self.restart(disk, true);
            }
        }
        self.disk.faults(|faults| faults.fail_sync = false);
    }

    fn journal_open(&self, n: u128) -> Result<(), JournalError> {
        let open = open_request(n);
        let slot = self.journal.reserve(&open)?;
        let mut turn = self.journal.turn();
        // The slot of the post stays reserved for as long as the hold is open.
        let slot = turn.open(&open, slot);
        self.journal.append(&mut turn, |_| {})?;
        self.journal.left_open.lock().insert(request(n), slot);
        Ok(())
    }

    fn post(&mut self, n: u128) {
        let slot = self.journal.slot_of(request(n)).unwrap();
        let mut turn = self.journal.turn();
        turn.post(record(n), slot);
        let mut posted = None;
        for _ in 0..2 {
            let done = self
                .journal
                .append(&mut turn, |post| posted = Some(post.post_no));
            assert!(!matches!(done, Err(JournalError::Full)), "a post has space");
            if self.mend(done).is_some() {
                break;
            }
        }
        self.facts.posts.push(n);
        self.facts.open.remove(&n);
        assert_eq!(posted, i64::try_from(self.facts.posts.len()).ok());
    }

    fn restart(&mut self, disk: MemoryDisk, is_power_cut: bool) {
        self.boot += 1;
        let read = replay(&disk).unwrap();
        let shared = Arc::new(disk.clone());
        let (journal, opened) = Journal::open(shared, options(), identity(self.boot)).unwrap();
        assert_eq!(read.next_post_no, opened.next_post_no);
        assert_eq!(open_ids(&read), open_ids(&opened));
        self.journal = journal;
        self.disk = disk;
        self.holder = Holder::default();
        if is_power_cut {
            self.adopt(&opened);
        } else {
            Self::check(&opened, &self.facts);
        }
        self.check_posts();
        self.synced = self.facts.clone();
    }

    /// After a power cut everything that was synced is there, and nothing that never was.
    fn adopt(&mut self, read: &Replay) {
        let posted_no = self.journal.posts_after(read.posted_no).unwrap();
        let first = usize::try_from(read.posted_no).unwrap();
        let mut posts = self.facts.posts[..first].to_vec();
        posts.extend(posted_no.iter().map(|post| number_of(post).1));
        assert!(posts.starts_with(&self.synced.posts), "synced posts");
        let known: BTreeSet<u128> = self.facts.posts.iter().copied().collect();
        assert!(posts.iter().all(|n| known.contains(n)));
        let ended: BTreeSet<u128> = posts.iter().copied().collect();
        assert_eq!(ended.len(), posts.len(), "each once");
        let open = open_ids(read);
        for n in self.synced.open.keys() {
            assert!(open.contains(n) != ended.contains(n), "{n} ends once");
        }
        for hold in &read.holds {
            let n = hold.open.request_id.as_uuid().as_u128();
            assert!(self.facts.open.contains_key(&n) || known.contains(&n));
            let synced = self.synced.open.get(&n).copied().unwrap_or(-1);
            assert!(synced == -1 || hold.progress.is_some(), "synced progress");
        }
        assert!(read.seq >= self.synced.seq && read.seq <= self.facts.seq);
        self.facts = Facts {
            open: read.holds.iter().map(progress_of).collect(),
            posts,
            seq: read.seq,
            posted_no: read.posted_no,
            leases: read.leases.iter().map(tokens_of).collect(),
        };
    }

    fn check(read: &Replay, facts: &Facts) {
        let open: BTreeMap<u128, i64> = read.holds.iter().map(progress_of).collect();
        assert_eq!(open, facts.open);
        assert_eq!(
            read.next_post_no,
            i64::try_from(facts.posts.len()).unwrap() + 1
        );
        assert_eq!((read.seq, read.posted_no), (facts.seq, facts.posted_no));
        let mut leases = facts.leases.clone();
        leases.retain(|_, tokens| *tokens != 0);
        let read: BTreeMap<u128, i64> = read.leases.iter().map(tokens_of).collect();
        assert_eq!(read, leases);
    }

    /// All posts that the database lacks can be read, and all that are kept are right.
    fn check_posts(&self) {
        let numbered: Vec<(i64, u128)> = (1..).zip(self.facts.posts.iter().copied()).collect();
        for posted_no in [0, self.facts.posted_no / 2, self.facts.posted_no] {
            let expected = &numbered[usize::try_from(posted_no).unwrap()..];
            match self.journal.posts_after(posted_no) {
                Ok(posts) => assert_eq!(posts.iter().map(number_of).collect::<Vec<_>>(), expected),
                Err(JournalError::PostsGone { oldest, .. }) => {
                    assert!(oldest <= self.facts.posted_no + 1, "needed posts are gone");
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

fn progress_of(hold: &crate::journal::OpenHold) -> (u128, i64) {
    let n = hold.open.request_id.as_uuid().as_u128();
    (n, hold.progress.map_or(-1, |p| p.output_tokens))
}

fn tokens_of(lease: &sluice_domain::quota::Lease) -> (u128, i64) {
    (lease.key.tenant_id.as_uuid().as_u128(), lease.held.tokens)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_replay_is_the_model_after_any_history(steps in prop::collection::vec(step(), 1..150)) {
        let mut sim = Sim::new();
        for step in &steps {
            sim.run(step);
        }
        Sim::check(&replay(&sim.disk).unwrap(), &sim.facts);
        sim.check_posts();
    }
}
