//! The simulated database: the tables of the ledger in memory, every method one transaction, with a
//! history of committed states so that it can go back, and faults between it and each instance.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sluice_domain::id::{BootId, InstanceId, RequestId};
use sluice_domain::ports::{
    Guard, InstanceRow, InstanceState, LeaseChange, LeasePolicy, LedgerStore, LockedCounter,
    PostMode, Posted, StoreError,
};
use sluice_domain::quota::{Amounts, Cap, CounterBalance, CounterKey, Lease, Scope};
use sluice_domain::record::{NumberedRecord, UsageRecord};
use sluice_domain::time::UnixMillis;

use crate::checks;
use crate::common::{Life, Log, Rng};

/// How many committed states can be gone back to.
const HISTORY: usize = 4;
/// An instance is live when it was heard of this lately.
const HEARD_OF: i64 = 15_000;
/// More calls than any run needs: an instance that spins is found.
const MAX_CALLS: u64 = 100_000;

#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) boot_id: BootId,
    pub(crate) seq: i64,
    pub(crate) state: InstanceState,
    pub(crate) posted_no: i64,
    heard_at: UnixMillis,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Counter {
    pub(crate) cap: Cap,
    /// The highest cap of the month; none once there was none.
    pub(crate) peak: Cap,
    pub(crate) used: Amounts,
    pub(crate) held: Amounts,
    pub(crate) over: Amounts,
    pub(crate) recall: bool,
}

/// A record as the database keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) post_no: i64,
    pub(crate) record: Arc<UsageRecord>,
}

impl Row {
    pub(crate) fn counters(&self) -> [CounterKey; 3] {
        counters_of(&self.record)
    }
}

fn counters_of(record: &UsageRecord) -> [CounterKey; 3] {
    record.open.payer.counters(record.open.period)
}

#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) quotas: BTreeMap<Scope, Cap>,
    pub(crate) counters: BTreeMap<CounterKey, Counter>,
    pub(crate) leases: BTreeMap<(InstanceId, CounterKey), Amounts>,
    pub(crate) records: BTreeMap<RequestId, Row>,
    pub(crate) origins: BTreeMap<(InstanceId, i64), RequestId>,
    pub(crate) quarantine: BTreeMap<(InstanceId, i64), Row>,
    /// What is left of the exposures that were booked for resolved instances.
    pub(crate) exposures: BTreeMap<(InstanceId, CounterKey), Amounts>,
}

/// Which part of a hold a scope gave.
fn is_leased(record: &UsageRecord, key: &CounterKey) -> bool {
    record.open.hold.leased.contains(key.scope.kind)
}

fn internal(what: &str) -> StoreError {
    StoreError::Internal {
        source: what.to_owned().into(),
    }
}

fn unavailable(what: &str) -> StoreError {
    StoreError::Unavailable {
        source: what.to_owned().into(),
    }
}

impl State {
    fn guard(
        &mut self,
        guard: Guard,
        state: InstanceState,
        now: UnixMillis,
    ) -> Result<&mut Instance, StoreError> {
        match self.instances.get_mut(&guard.instance_id) {
            Some(row)
                if row.boot_id == guard.boot_id && row.seq == guard.seq && row.state == state =>
            {
                row.seq += 1;
                row.heard_at = now;
                Ok(row)
            }
            _ => Err(StoreError::Guard),
        }
    }

    pub(crate) fn row(&self, id: InstanceId) -> Option<InstanceRow> {
        let row = self.instances.get(&id)?;
        let leases = self
            .leases
            .iter()
            .filter(|((owner, _), _)| *owner == id)
            .filter(|(_, held)| !held.is_zero())
            .map(|((_, key), held)| Lease {
                key: *key,
                held: *held,
            })
            .collect();
        Some(InstanceRow {
            boot_id: row.boot_id,
            seq: row.seq,
            state: row.state,
            posted_no: row.posted_no,
            leases,
        })
    }

    /// Returns a counter, made from its quota when it is missing.
    fn counter(&mut self, key: CounterKey) -> &mut Counter {
        let cap = self.quotas.get(&key.scope).copied().unwrap_or_default();
        self.counters.entry(key).or_insert_with(|| Counter {
            cap,
            peak: cap,
            ..Counter::default()
        })
    }

    fn balance(&self, key: CounterKey) -> CounterBalance {
        match self.counters.get(&key) {
            Some(counter) => CounterBalance {
                key,
                cap: counter.cap,
                used: counter.used,
                held: counter.held,
            },
            None => CounterBalance {
                key,
                cap: self.quotas.get(&key.scope).copied().unwrap_or_default(),
                used: Amounts::ZERO,
                held: Amounts::ZERO,
            },
        }
    }

    fn lease(&mut self, id: InstanceId, key: CounterKey) -> &mut Amounts {
        self.leases.entry((id, key)).or_default()
    }

    fn live(&self, now: UnixMillis) -> u32 {
        let live = self
            .instances
            .values()
            .filter(|i| i.state == InstanceState::Live && now.since(i.heard_at) < HEARD_OF)
            .count();
        u32::try_from(live).unwrap()
    }

    fn count_over(&mut self, key: CounterKey) {
        let counter = self.counter(key);
        let sum = counter.used.plus(counter.held);
        counter.over = counter.over.max(sum.minus(counter.peak.amounts()));
    }

    /// Books what a record costs, or what stands for it.
    fn charge(&mut self, id: InstanceId, mode: PostMode, record: &UsageRecord) {
        let charge = record.charge();
        for key in counters_of(record) {
            if !self.counters.contains_key(&key) && !is_leased(record, &key) {
                // There was no cap when it was held; one that was set since does not count.
                self.counter(key).peak = Cap::default();
            }
            let counter = self.counter(key);
            counter.used = counter.used.plus(charge);
            match mode {
                PostMode::Live if is_leased(record, &key) => {
                    counter.held = counter.held.minus(charge);
                    let lease = self.lease(id, key);
                    *lease = lease.minus(charge);
                }
                // The cap may be one that the database had lost.
                PostMode::Live => self.count_over(key),
                PostMode::Late => {
                    let left = self.exposures.entry((id, key)).or_default();
                    let released = charge.min(*left);
                    *left = left.minus(released);
                    let counter = self.counter(key);
                    counter.used = counter.used.minus(released);
                    self.count_over(key);
                }
            }
        }
    }

    /// An operator settles an instance.
    pub(crate) fn resolve(&mut self, id: InstanceId, is_released: bool) -> bool {
        let Some(row) = self.instances.get_mut(&id) else {
            return false;
        };
        if row.state != InstanceState::Live {
            return false;
        }
        row.state = InstanceState::Resolved;
        row.seq += 1;
        let leases = self
            .leases
            .iter()
            .filter(|((owner, _), _)| *owner == id)
            .map(|((_, key), held)| (*key, *held))
            .collect::<Vec<_>>();
        for (key, held) in leases {
            *self.lease(id, key) = Amounts::ZERO;
            let counter = self.counter(key);
            counter.held = counter.held.minus(held);
            if !is_released {
                counter.used = counter.used.plus(held);
                let exposure = self.exposures.entry((id, key)).or_default();
                *exposure = exposure.plus(held);
            }
        }
        true
    }

    /// An admin sets a cap.
    pub(crate) fn set_cap(&mut self, keys: &[CounterKey], scope: Scope, cap: Cap) {
        for key in keys {
            let counter = self.counter(*key);
            let higher = |old: Option<i64>, new: Option<i64>| Some(old?.max(new?));
            let is_raised = counter.cap.amounts().fits(cap.amounts());
            counter.cap = cap;
            counter.peak = Cap {
                tokens: higher(counter.peak.tokens, cap.tokens),
                nano: higher(counter.peak.nano, cap.nano),
            };
            counter.recall = !is_raised;
        }
        self.quotas.insert(scope, cap);
    }
}

/// How often each fault happens, of a thousand calls.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lost_call: u64,
    pub(crate) lost_answer: u64,
    pub(crate) delayed_commit: u64,
    pub(crate) slow: u64,
    pub(crate) refused: u64,
    pub(crate) is_down: bool,
}

#[derive(Debug)]
struct Shared {
    state: State,
    history: Vec<State>,
    /// A transaction that holds its locks and commits later.
    pending: Option<State>,
    faults: Faults,
    poison: BTreeSet<RequestId>,
    calls: u64,
    /// Whether one of the three events happened that may exceed a cap.
    may_exceed: bool,
}

#[derive(Debug)]
pub(crate) struct Database {
    shared: Mutex<Shared>,
    rng: Rng,
    log: Arc<Log>,
}

impl Database {
    pub(crate) fn new(rng: Rng, log: Arc<Log>) -> Arc<Self> {
        Arc::new(Self {
            shared: Mutex::new(Shared {
                state: State::default(),
                history: Vec::new(),
                pending: None,
                faults: Faults::default(),
                poison: BTreeSet::new(),
                calls: 0,
                may_exceed: false,
            }),
            rng,
            log,
        })
    }

    pub(crate) fn look<T>(&self, at: impl FnOnce(&State) -> T) -> T {
        at(&self.shared.lock().state)
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.shared.lock().faults = faults;
    }

    pub(crate) fn poison(&self, request: RequestId) {
        self.shared.lock().poison.insert(request);
    }

    pub(crate) fn is_poisoned(&self, request: RequestId) -> bool {
        self.shared.lock().poison.contains(&request)
    }

    /// An operator's act: one transaction that no fault touches.
    pub(crate) async fn operate<T>(
        &self,
        may_exceed: bool,
        act: impl FnOnce(&mut State) -> T,
    ) -> T {
        self.wait_for_locks().await;
        let mut shared = self.shared.lock();
        shared.may_exceed |= may_exceed;
        let mut state = shared.state.clone();
        let done = act(&mut state);
        self.commit(&mut shared, state);
        done
    }

    /// The database loses its last transactions, and those that are under way.
    pub(crate) fn go_back(&self, transactions: usize) {
        let mut shared = self.shared.lock();
        shared.pending = None;
        let mut gone = 0;
        while gone < transactions
            && let Some(state) = shared.history.pop()
        {
            shared.state = state;
            gone += 1;
        }
        if gone > 0 {
            shared.may_exceed = true;
            self.log.count(|f| &f.rollbacks);
        }
        self.log
            .event(1, || format!("DATABASE goes back by {gone}"));
    }

    fn commit(&self, shared: &mut Shared, state: State) {
        let old = std::mem::replace(&mut shared.state, state);
        shared.history.push(old);
        if shared.history.len() > HISTORY {
            shared.history.remove(0);
        }
        self.log.count(|f| &f.commits);
        if let Err(broken) = checks::check_state(&shared.state, shared.may_exceed) {
            self.log.violation(broken);
        }
    }

    async fn wait_for_locks(&self) {
        while self.shared.lock().pending.is_some() {
            pause(1).await;
        }
    }

    /// Commits a transaction that is under way, or loses it.
    async fn land(self: Arc<Self>, after: i64, is_lost: bool) {
        pause(after).await;
        let mut shared = self.shared.lock();
        if let Some(state) = shared.pending.take() {
            self.log
                .event(2, || format!("a delayed commit lands, lost: {is_lost}"));
            if !is_lost {
                self.commit(&mut shared, state);
            }
        }
    }
}

async fn pause(milliseconds: i64) {
    tokio::time::sleep(Duration::from_millis(milliseconds.unsigned_abs())).await;
}

/// The database as one process sees it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) database: Arc<Database>,
    pub(crate) life: Arc<Life>,
    pub(crate) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    LostCall,
    LostAnswer,
    Delayed,
    Refused,
}

impl Connection {
    /// What becomes of a call, after the time it takes to get there.
    async fn travel(&self, is_write: bool) -> Fate {
        let rng = &self.database.rng;
        let faults = {
            let mut shared = self.database.shared.lock();
            shared.calls += 1;
            if shared.calls == MAX_CALLS {
                self.database.log.violation("an instance spins");
            }
            if shared.calls >= MAX_CALLS {
                self.life.kill();
            }
            shared.faults
        };
        let dies = self.life.dies_here();
        if dies && rng.chance(50) {
            self.life.kill();
        }
        self.end_if_dead().await;
        let fate = if faults.is_down || rng.per_mille(faults.lost_call) {
            Fate::LostCall
        } else if rng.per_mille(faults.lost_answer) {
            Fate::LostAnswer
        } else if is_write && rng.per_mille(faults.delayed_commit) {
            Fate::Delayed
        } else if is_write && rng.per_mille(faults.refused) {
            Fate::Refused
        } else {
            Fate::Done
        };
        let slow = rng.per_mille(faults.slow);
        pause(if slow {
            rng.range(50, 1_500)
        } else {
            rng.range(1, 6)
        })
        .await;
        if dies {
            // It arrives; nobody is there to hear the answer.
            self.life.kill();
            return Fate::Done;
        }
        fate
    }

    async fn end_if_dead(&self) {
        if self.life.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    async fn way_back(&self) {
        pause(self.database.rng.range(0, 4)).await;
        self.end_if_dead().await;
    }

    async fn read<T>(&self, what: &str, read: impl FnOnce(&State) -> T) -> Result<T, StoreError> {
        if self.travel(false).await != Fate::Done {
            self.way_back().await;
            self.database
                .log
                .event(3, || format!("{} {what}: lost", self.name));
            return Err(unavailable(what));
        }
        let found = self.database.look(read);
        self.database
            .log
            .event(6, || format!("{} {what}", self.name));
        self.way_back().await;
        Ok(found)
    }

    async fn write<T>(
        &self,
        what: &str,
        transact: impl FnOnce(&mut State) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let database = &self.database;
        let fate = self.travel(true).await;
        let outcome = match fate {
            Fate::LostCall => {
                database.log.count(|f| &f.lost_calls);
                Err(unavailable(what))
            }
            Fate::Refused => Err(internal(what)),
            Fate::Done | Fate::LostAnswer | Fate::Delayed => {
                database.wait_for_locks().await;
                let mut shared = database.shared.lock();
                let mut state = shared.state.clone();
                match (transact(&mut state), fate) {
                    (Err(refused), _) => Err(refused),
                    (Ok(_), Fate::Delayed) => {
                        shared.pending = Some(state);
                        drop(shared);
                        database.log.count(|f| &f.delayed_commits);
                        let after = database.rng.range(1, 400);
                        let is_lost = database.rng.chance(40);
                        tokio::spawn(Arc::clone(database).land(after, is_lost));
                        Err(unavailable(what))
                    }
                    (Ok(done), _) => {
                        database.commit(&mut shared, state);
                        drop(shared);
                        if fate == Fate::LostAnswer {
                            database.log.count(|f| &f.lost_answers);
                            Err(unavailable(what))
                        } else {
                            Ok(done)
                        }
                    }
                }
            }
        };
        database.log.event(4, || {
            let word = match &outcome {
                Ok(_) => "ok".to_owned(),
                Err(error) => error.to_string(),
            };
            format!("{} {what}: {fate:?}, {word}", self.name)
        });
        self.way_back().await;
        outcome
    }

    fn defect(&self, what: impl Into<String>) -> StoreError {
        let what = what.into();
        self.database
            .log
            .violation(format!("{}: {what}", self.name));
        internal(&what)
    }
}

#[async_trait]
impl LedgerStore for Connection {
    async fn claim_instance(
        &self,
        instance_id: InstanceId,
        boots: &[BootId],
        boot: BootId,
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        self.write(&format!("claim {boot}"), |state| {
            match state.instances.get_mut(&instance_id) {
                None => {
                    state.instances.insert(
                        instance_id,
                        Instance {
                            boot_id: boot,
                            seq: 0,
                            state: InstanceState::Live,
                            posted_no: 0,
                            heard_at: now,
                        },
                    );
                }
                Some(row) if row.boot_id == boot || row.state == InstanceState::Closed => {}
                Some(row) if boots.contains(&row.boot_id) => {
                    // The number stays: it would hide that the database went back.
                    row.boot_id = boot;
                    row.heard_at = now;
                }
                Some(_) => return Err(StoreError::Guard),
            }
            state.row(instance_id).ok_or(StoreError::Guard)
        })
        .await
    }

    async fn find_instance(&self, id: InstanceId) -> Result<Option<InstanceRow>, StoreError> {
        // It takes the lock of the row: what is under way comes first.
        if self.travel(false).await != Fate::Done {
            self.way_back().await;
            return Err(unavailable("find"));
        }
        self.database.wait_for_locks().await;
        let row = self.database.look(|state| state.row(id));
        self.database.log.event(5, || {
            let told = row
                .as_ref()
                .map(|r| (r.seq, r.state, r.posted_no, &r.leases));
            format!("{} find: {told:?}", self.name)
        });
        self.way_back().await;
        Ok(row)
    }

    async fn post_batch(
        &self,
        guard: Guard,
        mode: PostMode,
        records: &[NumberedRecord],
        _in_flight: &[Lease],
        now: UnixMillis,
    ) -> Result<Posted, StoreError> {
        let first = records.first().map_or(0, |r| r.post_no);
        let what = format!(
            "post {} from {first} at {} {mode:?}",
            records.len(),
            guard.seq
        );
        let poisoned = records
            .iter()
            .any(|r| self.database.is_poisoned(r.record.open.request_id));
        self.write(&what, |state| {
            let row = state.guard(guard, state_for(mode), now)?;
            let id = guard.instance_id;
            if row.posted_no + 1 != first {
                return Err(self.defect(format!("a run from {first} after {}", row.posted_no)));
            }
            if poisoned {
                return Err(internal("a row is refused"));
            }
            row.posted_no += i64::try_from(records.len()).unwrap();
            let mut touched = BTreeSet::new();
            for (numbered, post_no) in records.iter().zip(first..) {
                let record = &numbered.record;
                let request = record.open.request_id;
                if numbered.post_no != post_no {
                    return Err(self.defect(format!(
                        "{} stands where {post_no} should",
                        numbered.post_no
                    )));
                }
                let row = Row {
                    post_no,
                    record: Arc::new(UsageRecord::clone(record)),
                };
                if let Some(other) = state.records.insert(request, row) {
                    return Err(self.defect(format!("{request} is there as {}", other.post_no)));
                }
                if let Some(other) = state.origins.insert((id, post_no), request) {
                    return Err(self.defect(format!("{post_no} is there as {other}")));
                }
                state.charge(id, mode, record);
                touched.extend(counters_of(record));
            }
            Ok(Posted {
                inserted: records.len(),
                counters: touched.into_iter().map(|key| state.balance(key)).collect(),
            })
        })
        .await
    }

    async fn quarantine(
        &self,
        guard: Guard,
        mode: PostMode,
        numbered: &NumberedRecord,
        _reason: &str,
        now: UnixMillis,
    ) -> Result<(), StoreError> {
        let what = format!("quarantine {} at {}", numbered.post_no, guard.seq);
        self.write(&what, |state| {
            let row = state.guard(guard, state_for(mode), now)?;
            let id = guard.instance_id;
            if row.posted_no + 1 != numbered.post_no {
                return Err(self.defect(format!("sets {} aside", numbered.post_no)));
            }
            row.posted_no += 1;
            let record = &numbered.record;
            state.charge(id, mode, record);
            let row = Row {
                post_no: numbered.post_no,
                record: Arc::new(UsageRecord::clone(record)),
            };
            state.quarantine.insert((id, numbered.post_no), row);
            Ok(())
        })
        .await
    }

    async fn move_leases(
        &self,
        guard: Guard,
        counters: &[CounterKey],
        policy: &LeasePolicy<'_>,
        now: UnixMillis,
    ) -> Result<Vec<LockedCounter>, StoreError> {
        let what = format!("move {} at {}", counters.len(), guard.seq);
        self.write(&what, |state| {
            state.guard(guard, InstanceState::Live, now)?;
            let id = guard.instance_id;
            if !counters.is_sorted_by(|a, b| a < b) {
                return Err(self.defect("counters are not locked in their order"));
            }
            let rows: Vec<LockedCounter> = counters
                .iter()
                .map(|key| {
                    let recall = state.counter(*key).recall;
                    LockedCounter {
                        balance: state.balance(*key),
                        leased: *state.lease(id, *key),
                        recall,
                    }
                })
                .collect();
            let changes = policy(&rows, state.live(now));
            if changes.len() != rows.len() {
                return Err(self.defect("a policy forgets counters"));
            }
            for (row, LeaseChange { delta, recall }) in rows.iter().zip(changes) {
                let key = row.balance.key;
                let room = row.balance.room();
                let too_much = |delta: i64, room: i64| delta > 0 && delta > room;
                if too_much(delta.tokens, room.tokens) || too_much(delta.nano, room.nano) {
                    return Err(self.defect(format!("takes {delta:?} of {room:?}")));
                }
                let lease = state.lease(id, key);
                *lease = lease.plus(delta);
                if !Amounts::ZERO.fits(*lease) {
                    return Err(self.defect(format!("returns {delta:?} of {:?}", row.leased)));
                }
                let counter = state.counter(key);
                counter.held = counter.held.plus(delta);
                counter.recall = recall.unwrap_or(counter.recall);
            }
            Ok(rows
                .iter()
                .map(|row| {
                    let key = row.balance.key;
                    let recall = state.counter(key).recall;
                    LockedCounter {
                        balance: state.balance(key),
                        leased: *state.lease(id, key),
                        recall,
                    }
                })
                .collect())
        })
        .await
    }

    async fn resync(
        &self,
        guard: Guard,
        leases: &[Lease],
        now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        let what = format!("resync {} leases at {}", leases.len(), guard.seq);
        self.write(&what, |state| {
            let id = guard.instance_id;
            match state.instances.get_mut(&id) {
                Some(row)
                    if row.boot_id == guard.boot_id
                        && row.state == InstanceState::Live
                        && row.seq < guard.seq =>
                {
                    row.seq = guard.seq + 1;
                    row.heard_at = now;
                }
                _ => return Err(StoreError::Guard),
            }
            let mut wanted: BTreeMap<CounterKey, Amounts> = state
                .leases
                .keys()
                .filter(|(owner, _)| *owner == id)
                .map(|(_, key)| (*key, Amounts::ZERO))
                .collect();
            wanted.extend(leases.iter().map(|lease| (lease.key, lease.held)));
            for (key, held) in wanted {
                if !Amounts::ZERO.fits(held) {
                    return Err(self.defect(format!("resync to {held:?}")));
                }
                let lease = state.lease(id, key);
                let change = held.minus(*lease);
                *lease = held;
                let counter = state.counter(key);
                counter.held = counter.held.plus(change);
                state.count_over(key);
            }
            state.row(id).ok_or(StoreError::Guard)
        })
        .await
    }

    async fn end_late(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError> {
        self.write(&format!("end late at {}", guard.seq), |state| {
            let row = state.guard(guard, InstanceState::Resolved, now)?;
            row.state = InstanceState::Closed;
            let id = guard.instance_id;
            let left: Vec<_> = state
                .exposures
                .iter()
                .filter(|((owner, _), _)| *owner == id)
                .map(|(key, left)| (*key, *left))
                .collect();
            for ((id, key), left) in left {
                state.exposures.remove(&(id, key));
                let counter = state.counter(key);
                counter.used = counter.used.minus(left);
            }
            Ok(())
        })
        .await
    }

    async fn list_recalled(&self, id: InstanceId) -> Result<Vec<CounterKey>, StoreError> {
        self.read("list recalled", |state| {
            self.database.log.event(7, || {
                let flags: Vec<_> = state
                    .counters
                    .iter()
                    .filter(|(_, c)| c.recall)
                    .map(|(k, _)| k.scope.id)
                    .collect();
                let mine: Vec<_> = state
                    .row(id)
                    .map(|r| r.leases)
                    .unwrap_or_default()
                    .iter()
                    .map(|l| (l.key.scope.id, l.held.tokens, l.held.nano))
                    .collect();
                format!("{} recalled {flags:?}, has {mine:?}", self.name)
            });
            state
                .row(id)
                .map(|row| row.leases)
                .unwrap_or_default()
                .into_iter()
                .map(|lease| lease.key)
                .filter(|key| state.counters.get(key).is_some_and(|c| c.recall))
                .collect()
        })
        .await
    }

    async fn load_counters(
        &self,
        counters: &[CounterKey],
    ) -> Result<Vec<CounterBalance>, StoreError> {
        self.read("load counters", |state| {
            counters.iter().map(|key| state.balance(*key)).collect()
        })
        .await
    }

    async fn heartbeat(&self, guard: Guard, now: UnixMillis) -> Result<(), StoreError> {
        self.write(&format!("heartbeat at {}", guard.seq), |state| match state
            .instances
            .get_mut(&guard.instance_id)
        {
            Some(row)
                if row.boot_id == guard.boot_id
                    && row.seq == guard.seq
                    && row.state != InstanceState::Closed =>
            {
                row.heard_at = now;
                Ok(())
            }
            _ => Err(StoreError::Guard),
        })
        .await
    }
}

fn state_for(mode: PostMode) -> InstanceState {
    match mode {
        PostMode::Live => InstanceState::Live,
        PostMode::Late => InstanceState::Resolved,
    }
}
