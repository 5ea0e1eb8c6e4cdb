//! The posts of one journal are handed in again and again, in every order: each request is in the
//! ledger once, whatever an operator does meanwhile.
//!
//! `SLUICE_PROVE_REPLAYS=200` plays all orders of up to five batches, and so many random ones.

use sluice_domain::id::BootId;
use sluice_domain::ports::{Guard, InstanceState, LedgerStore, PostMode, StoreError};
use sluice_domain::quota::{Amounts, Cap, CounterKey, ScopeKind};
use sluice_domain::record::NumberedRecord;
use sluice_storage::resolve::{Resolved, Settlement};
use sluice_storage::verify::StoredPost;

use crate::dice::Dice;
use crate::fixture::{Account, Database, FORCED, NOW, environment, id, tenfold};

/// How often the whole journal is handed in.
const TIMES: usize = 10;
const LEASED: Amounts = Amounts {
    tokens: 2_000,
    nano: 20_000,
};

/// What an operator does at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Nothing,
    Resolves,
    Releases,
}

const OPERATORS: [Operator; 3] = [Operator::Nothing, Operator::Resolves, Operator::Releases];

/// A journal, and what the database should have made of it so far.
struct Play<'d> {
    database: &'d Database,
    account: Account,
    journal: Vec<NumberedRecord>,
    guard: Guard,
    state: InstanceState,
    posted: i64,
    quarantined: Vec<i64>,
    refusals: usize,
    about: String,
}

impl<'d> Play<'d> {
    async fn new(database: &'d Database, dice: &mut Dice, length: i64, about: String) -> Self {
        let name = format!("tenant-{}", id().simple());
        let account = database.account(&name).await;
        let cap = Cap {
            tokens: Some(1_000_000),
            nano: Some(10_000_000),
        };
        let scope = account.scope(ScopeKind::Key);
        let set = database
            .storage
            .set_quota(scope, account.tenant.id, cap, NOW)
            .await;
        assert!(set.unwrap());
        let mut guard = database.instance().await;
        database
            .lease(&mut guard, &Self::counters(&account), LEASED)
            .await;
        let mut journal = account.held_records(1, length, &[ScopeKind::Tenant, ScopeKind::Key]);
        for numbered in &mut journal {
            // Nothing, a part, all, or more than was held.
            numbered.record.end.owed = tenfold(*dice.pick(&[0, 30, 60, 100, 130]));
        }
        Self {
            database,
            account,
            journal,
            guard,
            state: InstanceState::Live,
            posted: 0,
            quarantined: Vec::new(),
            refusals: 0,
            about,
        }
    }

    fn counters(account: &Account) -> [CounterKey; 2] {
        [ScopeKind::Tenant, ScopeKind::Key].map(|kind| account.counter(kind))
    }

    fn last(&self) -> i64 {
        i64::try_from(self.journal.len()).unwrap()
    }

    fn mode(&self) -> PostMode {
        match self.state {
            InstanceState::Live => PostMode::Live,
            _ => PostMode::Late,
        }
    }

    /// Hands in some numbers, and compares what comes of it with what should.
    async fn post(&mut self, first: i64, last: i64, mode: PostMode) {
        let range = usize::try_from(first - 1).unwrap()..usize::try_from(last).unwrap();
        let storage = &self.database.storage;
        let posted = storage
            .post_batch(self.guard, mode, &self.journal[range], &[], NOW)
            .await;
        let about = format!(
            "{}: {first} to {last} of {mode:?} after {}",
            self.about, self.posted
        );
        if mode != self.mode() || self.state == InstanceState::Closed {
            assert!(
                matches!(posted, Err(StoreError::Guard)),
                "{about}: {posted:?}"
            );
            self.refusals += 1;
        } else if first > self.posted + 1 {
            assert!(
                matches!(posted, Err(StoreError::Internal { .. })),
                "{about}: {posted:?}"
            );
            self.refusals += 1;
        } else {
            let new = (first..=last).filter(|no| *no > self.posted).count();
            assert_eq!(posted.unwrap().inserted, new, "{about}");
            self.guard.seq += 1;
            self.posted = self.posted.max(last);
        }
    }

    /// Sets the next record aside, or one that was dealt with.
    async fn set_aside(&mut self, post_no: i64) {
        let numbered = &self.journal[usize::try_from(post_no - 1).unwrap()];
        let storage = &self.database.storage;
        let set_aside = storage
            .quarantine(self.guard, self.mode(), numbered, "strange", NOW)
            .await;
        if self.state == InstanceState::Closed {
            assert!(
                matches!(set_aside, Err(StoreError::Guard)),
                "{}",
                self.about
            );
        } else if post_no > self.posted + 1 {
            assert!(
                matches!(set_aside, Err(StoreError::Internal { .. })),
                "{}",
                self.about
            );
        } else {
            set_aside.unwrap();
            self.guard.seq += 1;
            if post_no > self.posted {
                self.quarantined.push(post_no);
                self.posted = post_no;
            }
        }
    }

    async fn act(&mut self, operator: Operator) {
        if operator == Operator::Nothing {
            return;
        }
        let storage = &self.database.storage;
        let settlement = Settlement {
            releases: operator == Operator::Releases,
            ..FORCED
        };
        let instance = self.guard.instance_id;
        let done = storage
            .resolve_instance(instance, settlement, NOW)
            .await
            .unwrap();
        if self.state == InstanceState::Live {
            assert!(
                matches!(done, Resolved::Settled(_)),
                "{}: {done:?}",
                self.about
            );
            self.state = InstanceState::Resolved;
            self.guard.seq += 1;
        } else {
            assert_eq!(done, Resolved::Already(self.state), "{}", self.about);
        }
    }

    /// Starts once more from the same folder.
    async fn restart(&mut self) {
        let boot = BootId::from_uuid(id());
        let (instance, last) = (self.guard.instance_id, self.guard.boot_id);
        let storage = &self.database.storage;
        let row = storage
            .claim_instance(instance, &[last], boot, NOW)
            .await
            .unwrap();
        assert_eq!(
            (row.state, row.seq, row.posted_no),
            (self.state, self.guard.seq, self.posted)
        );
        // What an older start still sends is refused; of one that is closed, everything.
        let heard = storage.heartbeat(self.guard, NOW).await;
        assert!(matches!(heard, Err(StoreError::Guard)), "{}", self.about);
        self.guard.boot_id = row.boot_id;
        let mut other = Guard {
            seq: self.guard.seq - 1,
            ..self.guard
        };
        for _ in 0..2 {
            let posted = storage
                .post_batch(other, self.mode(), &self.journal[..1], &[], NOW)
                .await;
            assert!(
                matches!(posted, Err(StoreError::Guard)),
                "{}: {posted:?}",
                self.about
            );
            other.seq += 2;
        }
    }

    fn charges(&self) -> Amounts {
        let charges = self.journal.iter().map(|numbered| numbered.record.charge());
        charges.fold(Amounts::ZERO, Amounts::plus)
    }

    /// The whole journal is in the ledger, once.
    async fn check(&self) {
        assert_eq!(self.posted, self.last(), "{}", self.about);
        let storage = &self.database.storage;
        let stored = storage
            .list_posts(self.guard.instance_id, 1, i64::MAX)
            .await
            .unwrap();
        let expected: Vec<StoredPost> = self
            .journal
            .iter()
            .map(|numbered| {
                let record = &numbered.record;
                let is_aside = self.quarantined.contains(&numbered.post_no);
                let amount = |amount| if is_aside { Amounts::ZERO } else { amount };
                StoredPost {
                    post_no: numbered.post_no,
                    request_id: record.open.request_id,
                    payer: (!is_aside).then_some(record.open.payer),
                    charge: amount(record.charge()),
                    excess: amount(record.excess()),
                }
            })
            .collect();
        assert_eq!(stored, expected, "{}", self.about);
        let held = match self.state {
            InstanceState::Live => LEASED.minus(self.charges()),
            _ => Amounts::ZERO,
        };
        for counter in Self::counters(&self.account) {
            let balance = self.database.balance(counter).await;
            // What is left of an exposure counts until all is handed in.
            if self.state != InstanceState::Resolved {
                assert_eq!(
                    (balance.used, balance.held),
                    (self.charges(), held),
                    "{}",
                    self.about
                );
            }
        }
    }

    /// Hands in the end, when an operator has settled the instance; nothing comes after it.
    async fn end(&mut self, dice: &mut Dice) {
        self.check().await;
        if self.state == InstanceState::Live {
            return;
        }
        self.database
            .storage
            .end_late(self.guard, NOW)
            .await
            .unwrap();
        self.guard.seq += 1;
        self.state = InstanceState::Closed;
        self.check().await;
        for _ in 0..3 {
            let first = dice.roll(1, self.last());
            self.post(first, self.last(), PostMode::Late).await;
        }
        self.set_aside(1).await;
        self.act(Operator::Releases).await;
        self.restart().await;
        self.check().await;
    }
}

/// Cuts a journal into so many batches.
fn batches(dice: &mut Dice, length: i64, count: usize) -> Vec<(i64, i64)> {
    let mut cuts: Vec<i64> = (1..length).collect();
    dice.shuffle(&mut cuts);
    cuts.truncate(count - 1);
    cuts.sort_unstable();
    let firsts = std::iter::once(0).chain(cuts.iter().copied());
    let lasts = cuts.iter().copied().chain(std::iter::once(length));
    firsts
        .zip(lasts)
        .map(|(before, last)| (before + 1, last))
        .collect()
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let mut orders = Vec::new();
    for order in self::orders(count - 1) {
        for place in 0..count {
            let mut order = order.clone();
            order.insert(place, count - 1);
            orders.push(order);
        }
    }
    orders
}

fn random_orders() -> Option<u64> {
    environment("SLUICE_PROVE_REPLAYS").map(|count| count.parse().unwrap())
}

async fn a_journal_in_every_order_of_its_batches_is_posted_once(database: &Database) {
    let is_full = random_orders().is_some();
    let mut dice = Dice::new(3);
    for count in 1..=if is_full { 5 } else { 3 } {
        for (number, order) in orders(count).iter().enumerate() {
            for (variant, operator) in OPERATORS.into_iter().enumerate() {
                if !is_full && count == 3 && number % 3 != variant {
                    continue;
                }
                let length = i64::try_from(count).unwrap() + dice.roll(0, 6);
                let about = format!("{order:?} with {operator:?}");
                let mut play = Play::new(database, &mut dice, length, about).await;
                let batches = batches(&mut dice, length, count);
                let moment = dice.roll(0, i64::try_from(count * count).unwrap());
                let mut step = 0;
                for _ in 0..TIMES {
                    for batch in order {
                        if step == moment {
                            play.act(operator).await;
                        }
                        let (first, last) = batches[*batch];
                        play.post(first, last, play.mode()).await;
                        step += 1;
                    }
                }
                play.act(operator).await;
                assert!(play.refusals > 0 || order.is_sorted(), "{order:?}");
                play.end(&mut dice).await;
            }
        }
        database.check().await;
    }
    let findings = database.storage.verify_ledger(NOW).await.unwrap();
    assert_eq!(findings, [], "everything was handed in");
}

async fn a_journal_in_any_order_and_size_is_posted_once(database: &Database) {
    for seed in 0..random_orders().unwrap_or(8) {
        let mut dice = Dice::new(seed);
        let length = dice.roll(4, 20);
        let mut play = Play::new(database, &mut dice, length, format!("seed {seed}")).await;
        let mut steps = 0;
        // In the end in order, so that nothing is left.
        while steps < TIMES * 4 || play.posted < length {
            steps += 1;
            match dice.roll(0, 19) {
                0 => play.act(*dice.pick(&OPERATORS)).await,
                1 => play.restart().await,
                2 => {
                    let near = (play.posted + dice.roll(-1, 2)).clamp(1, length);
                    play.set_aside(near).await;
                }
                3 => {
                    let wrong = match play.mode() {
                        PostMode::Live => PostMode::Late,
                        PostMode::Late => PostMode::Live,
                    };
                    play.post(1, length, wrong).await;
                }
                4..=8 => {
                    let first = (play.posted + 1).min(length);
                    let last = dice.roll(first, (first + 3).min(length));
                    play.post(first, last, play.mode()).await;
                }
                _ => {
                    let first = dice.roll(1, length);
                    let last = dice.roll(first, length);
                    play.post(first, last, play.mode()).await;
                }
            }
            if steps % 16 == 0 {
                database.check().await;
            }
        }
        play.end(&mut dice).await;
        database.check().await;
    }
    let once = database.storage.verify_ledger(NOW).await.unwrap();
    assert_eq!(database.storage.verify_ledger(NOW).await.unwrap(), once);
}

on_both! {
    a_journal_in_every_order_of_its_batches_is_posted_once,
    a_journal_in_any_order_and_size_is_posted_once,
}
