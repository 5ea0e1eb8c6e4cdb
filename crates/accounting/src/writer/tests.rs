use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::task::Poll;

use async_trait::async_trait;
use parking_lot::Mutex;
use sluice_domain::id::{InstanceId, ProxyKeyId, RequestId, TenantId, UserId};
use sluice_domain::ports::{InstanceRow, InstanceState, LeasePolicy, LockedCounter, Posted};
use sluice_domain::quota::{Amounts, Cap, CounterBalance, HoldTerms, Payer, ScopeKind, ScopeSet};
use sluice_domain::record::{Caller, NumberedRecord, OpenRequest, RequestEnd, UsageRecord};
use sluice_domain::route::Endpoint;
use sluice_domain::time::{Month, TimeZone, UnixMillis};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::account::Account;
use crate::journal::{self, FolderDisk, Journal};
use crate::lane::Lane;
use crate::ledger::{Hold, Ledger, LedgerOptions, Patience, Refusal};

const PATIENCE: Duration = Duration::from_secs(30);

/// A database with one instance and counters, that may be away.
#[derive(Debug)]
struct Store {
    is_up: AtomicBool,
    /// How long it takes to move leases, in milliseconds.
    takes: AtomicU64,
    row: Mutex<InstanceRow>,
    leases: Mutex<BTreeMap<CounterKey, Amounts>>,
}

impl Store {
    fn check(&self) -> Result<(), StoreError> {
        if self.is_up.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(StoreError::Unavailable {
            source: "away".into(),
        })
    }

    fn found(&self) -> InstanceRow {
        let leases = self.leases.lock();
        InstanceRow {
            leases: leases
                .iter()
                .map(|(key, held)| Lease {
                    key: *key,
                    held: *held,
                })
                .collect(),
            ..self.row.lock().clone()
        }
    }

    fn pass(&self, guard: Guard) -> Result<(), StoreError> {
        self.check()?;
        let mut row = self.row.lock();
        if row.boot_id != guard.boot_id || row.seq != guard.seq {
            return Err(StoreError::Guard);
        }
        row.seq += 1;
        Ok(())
    }
}

#[async_trait]
impl LedgerStore for Store {
    async fn claim_instance(
        &self,
        _instance_id: InstanceId,
        boots: &[BootId],
        boot: BootId,
        _now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        self.check()?;
        let known = self.row.lock().boot_id;
        if known != boot && !boots.contains(&known) {
            return Err(StoreError::Guard);
        }
        self.row.lock().boot_id = boot;
        Ok(self.found())
    }

    async fn find_instance(&self, _id: InstanceId) -> Result<Option<InstanceRow>, StoreError> {
        self.check()?;
        Ok(Some(self.found()))
    }

    async fn post_batch(
        &self,
        guard: Guard,
        _mode: PostMode,
        records: &[NumberedRecord],
        _in_flight: &[Lease],
        _now: UnixMillis,
    ) -> Result<Posted, StoreError> {
        self.pass(guard)?;
        self.row.lock().posted_no += i64::try_from(records.len()).unwrap();
        Ok(Posted::default())
    }

    async fn quarantine(
        &self,
        guard: Guard,
        _mode: PostMode,
        _record: &NumberedRecord,
        _reason: &str,
        _now: UnixMillis,
    ) -> Result<(), StoreError> {
        self.pass(guard)
    }

    async fn move_leases(
        &self,
        guard: Guard,
        counters: &[CounterKey],
        policy: &LeasePolicy<'_>,
        _now: UnixMillis,
    ) -> Result<Vec<LockedCounter>, StoreError> {
        tokio::time::sleep(Duration::from_millis(self.takes.load(Ordering::SeqCst))).await;
        self.pass(guard)?;
        let mut leases = self.leases.lock();
        let mut rows: Vec<LockedCounter> = counters
            .iter()
            .map(|key| {
                let leased = leases.get(key).copied().unwrap_or_default();
                let cap = Cap {
                    tokens: Some(CAP),
                    nano: None,
                };
                LockedCounter {
                    balance: CounterBalance {
                        key: *key,
                        cap,
                        used: Amounts::ZERO,
                        held: leased,
                    },
                    leased,
                    recall: false,
                }
            })
            .collect();
        let changes = policy(&rows, 1);
        for (row, change) in rows.iter_mut().zip(changes) {
            row.leased = row.leased.plus(change.delta);
            row.balance.held = row.leased;
            leases.insert(row.balance.key, row.leased);
        }
        Ok(rows)
    }

    async fn resync(
        &self,
        guard: Guard,
        leases: &[Lease],
        _now: UnixMillis,
    ) -> Result<InstanceRow, StoreError> {
        self.check()?;
        self.row.lock().seq = guard.seq + 1;
        *self.leases.lock() = leases.iter().map(|lease| (lease.key, lease.held)).collect();
        Ok(self.found())
    }

    async fn end_late(&self, guard: Guard, _now: UnixMillis) -> Result<(), StoreError> {
        self.pass(guard)
    }

    async fn list_recalled(&self, _id: InstanceId) -> Result<Vec<CounterKey>, StoreError> {
        self.check()?;
        Ok(Vec::new())
    }

    async fn load_counters(
        &self,
        _counters: &[CounterKey],
    ) -> Result<Vec<CounterBalance>, StoreError> {
        self.check()?;
        Ok(Vec::new())
    }

    async fn heartbeat(&self, _guard: Guard, _now: UnixMillis) -> Result<(), StoreError> {
        self.check()
    }
}

#[derive(Debug, Default)]
struct StoppedClock(AtomicI64);

impl Clock for StoppedClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }
}

fn boot(number: u128) -> BootId {
    BootId::from_uuid(Uuid::from_u128(number))
}

fn payer() -> Payer {
    Payer {
        tenant_id: TenantId::from_uuid(Uuid::from_u128(1)),
        user_id: UserId::from_uuid(Uuid::from_u128(2)),
        key_id: ProxyKeyId::from_uuid(Uuid::from_u128(3)),
    }
}

fn month() -> Month {
    Month::from_number(202_611).unwrap()
}

fn tenant_counter() -> CounterKey {
    payer().counters(month())[0]
}

const LEASED: i64 = 5_000;
const CAP: i64 = 1_000_000_000;
const INSTANCE: u128 = 9;

fn open_journal(
    folder: &TempDir,
    boot_id: BootId,
    options: journal::Options,
) -> (Journal, journal::Replay) {
    let disk = FolderDisk::open(folder.path()).unwrap();
    let identity = journal::Identity {
        instance_id: InstanceId::from_uuid(Uuid::from_u128(INSTANCE)),
        boot_id,
        previous_boot: None,
    };
    Journal::open(Arc::new(disk), options, identity).unwrap()
}

fn options(max_in_memory: usize) -> LedgerOptions {
    LedgerOptions {
        max_in_memory,
        quota_wait: Duration::from_secs(1),
        outage_reserve: Duration::from_mins(10),
        fsync: Fsync::Interval,
        blocks_on_threads: false,
    }
}

/// An instance whose last start had a lease at transaction 7 of the database, which is away now.
fn begun_away() -> (TempDir, Arc<Store>, Arc<StoppedClock>, Ledger, Writer) {
    begun_away_with(100)
}

fn begun_away_with(
    max_in_memory: usize,
) -> (TempDir, Arc<Store>, Arc<StoppedClock>, Ledger, Writer) {
    begun_away_on(max_in_memory, journal::Options::default())
}

fn begun_away_on(
    max_in_memory: usize,
    of_journal: journal::Options,
) -> (TempDir, Arc<Store>, Arc<StoppedClock>, Ledger, Writer) {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _nothing) = open_journal(&folder, boot(1), of_journal);
    let lease = Lease {
        key: tenant_counter(),
        held: Amounts::tokens(LEASED),
    };
    journal.note_ack(7, 0, &[lease]).unwrap();
    drop(journal);
    let store = Arc::new(Store {
        is_up: AtomicBool::new(false),
        takes: AtomicU64::new(0),
        row: Mutex::new(InstanceRow {
            boot_id: boot(1),
            seq: 7,
            state: InstanceState::Live,
            posted_no: 0,
            leases: Vec::new(),
        }),
        leases: Mutex::new(BTreeMap::from([(lease.key, lease.held)])),
    });
    let clock = Arc::<StoppedClock>::default();
    let (journal, replay) = open_journal(&folder, boot(2), of_journal);
    let identity = Identity {
        instance_id: InstanceId::from_uuid(Uuid::from_u128(INSTANCE)),
        earlier_boots: vec![boot(1)],
        boot_id: boot(2),
    };
    let (ledger, writer) = start_away(
        options(max_in_memory),
        Arc::clone(&store) as Arc<dyn LedgerStore>,
        Arc::clone(&clock) as Arc<dyn Clock>,
        journal,
        replay,
        identity,
        std::future::ready(()),
    )
    .unwrap();
    (folder, store, clock, ledger, writer)
}

fn free(ledger: &Ledger) -> i64 {
    let desk = ledger.shared.desks.get_or_make(payer().tenant_id);
    let book = desk.book.lock();
    book.get(&tenant_counter())
        .map_or(0, |counter| counter.free().tokens)
}

async fn wait_for_claim(ledger: &Ledger) {
    let claimed = async {
        while !ledger.is_claimed() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, claimed).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_the_journal_is_spent_and_the_claim_made_good() {
    let (_folder, store, _clock, ledger, writer) = begun_away();
    assert_eq!(free(&ledger), LEASED);
    let period = TimeZone::utc().period(month());
    let account = ledger.open_account_away(
        payer(),
        period,
        TimeZone::utc(),
        ScopeSet::default(),
        period.starts_at,
    );
    assert!(account.leased().contains(ScopeKind::Tenant));
    assert!(ledger.shared.is_open() && !ledger.is_claimed());

    let running = tokio::spawn(writer.run(std::future::pending(), PATIENCE));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!ledger.is_claimed());
    store.is_up.store(true, Ordering::SeqCst);
    wait_for_claim(&ledger).await;
    assert_eq!(store.row.lock().boot_id, boot(2));
    assert_eq!(free(&ledger), LEASED);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_database_that_knows_more_than_the_journal_ends_the_writer() {
    let (_folder, store, _clock, ledger, writer) = begun_away();
    store.row.lock().seq = 8;
    store.is_up.store(true, Ordering::SeqCst);
    let finish = writer.run(std::future::pending(), PATIENCE).await;
    assert_eq!(finish, Finish::LostIdentity);
    assert!(!ledger.shared.is_open() && !ledger.is_claimed());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_somebody_else_has_claimed_ends_the_writer() {
    let (_folder, store, _clock, _ledger, writer) = begun_away();
    store.row.lock().boot_id = boot(77);
    store.is_up.store(true, Ordering::SeqCst);
    let finish = writer.run(std::future::pending(), PATIENCE).await;
    assert_eq!(finish, Finish::LostIdentity);
}

#[tokio::test(start_paused = true)]
async fn a_database_that_went_back_is_told_what_is_in_use() {
    let (_folder, store, _clock, ledger, writer) = begun_away();
    store.row.lock().seq = 3;
    store.leases.lock().clear();
    store.is_up.store(true, Ordering::SeqCst);
    let running = tokio::spawn(writer.run(std::future::pending(), PATIENCE));
    wait_for_claim(&ledger).await;
    tokio::time::timeout(PATIENCE, async {
        while ledger.stats().resyncs() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert!(store.row.lock().seq > 7, "a number that was never used");
    assert_eq!(
        free(&ledger),
        0,
        "nothing is leased that the database does not know"
    );
    assert_eq!(ledger.shared.journal.leased(), [], "nor after a crash");
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_stop_before_the_claim_leaves_everything_to_the_next_start() {
    let (_folder, _store, _clock, ledger, writer) = begun_away();
    let began = Instant::now();
    let finish = writer.run(std::future::ready(()), PATIENCE).await;
    assert_eq!(finish, Finish::Left { records: 0 });
    assert!(began.elapsed() < PATIENCE + Duration::from_secs(5));
    assert!(!ledger.shared.is_open());
}

#[tokio::test(start_paused = true)]
async fn leases_of_the_next_month_are_taken_before_it_begins_and_kept() {
    let (_folder, store, clock, ledger, mut writer) = begun_away();
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    let period = TimeZone::utc().period(month());
    let _account = ledger.open_account_away(
        payer(),
        period,
        TimeZone::utc(),
        ScopeSet::default(),
        period.starts_at,
    );
    let set_time = |ms: i64| clock.0.store(ms, Ordering::SeqCst);
    {
        let desk = ledger.shared.desks.get_or_make(payer().tenant_id);
        let mut book = desk.book.lock();
        let bound = Amounts::tokens(400);
        let leased = ScopeSet::default().with(ScopeKind::Tenant);
        book.hold(payer(), month(), leased, bound, period.starts_at)
            .unwrap();
    }
    let next = CounterKey {
        month: month().next(),
        ..tenant_counter()
    };
    let of_next = || store.leases.lock().get(&next).copied();

    set_time(period.ends_at.0 - 16 * 60_000);
    writer.lease_ahead().await.unwrap();
    assert_eq!(of_next(), None, "too early");
    set_time(period.ends_at.0 - 14 * 60_000);
    writer.lease_ahead().await.unwrap();
    assert_eq!(
        of_next(),
        Some(Amounts::tokens(400)),
        "what was open at once"
    );
    let moves = ledger.stats().lease_moves();
    writer.lease_ahead().await.unwrap();
    assert_eq!(ledger.stats().lease_moves(), moves, "it is taken once");
    {
        let desk = ledger.shared.desks.get_or_make(payer().tenant_id);
        let mut book = desk.book.lock();
        let leased = ScopeSet::default().with(ScopeKind::Tenant);
        let bound = Amounts::tokens(600);
        book.hold(payer(), month(), leased, bound, period.starts_at)
            .unwrap();
    }
    set_time(period.ends_at.0 - 13 * 60_000);
    writer.lease_ahead().await.unwrap();
    writer.top_up().await.unwrap();
    assert_eq!(
        of_next(),
        Some(Amounts::tokens(1_000)),
        "traffic that comes up in the last minutes is expected too"
    );
    set_time(period.ends_at.0 - 1);
    writer.return_idle().await.unwrap();
    assert_eq!(
        of_next(),
        Some(Amounts::tokens(1_000)),
        "it is not idle before its month"
    );
    set_time(period.ends_at.0 + 11 * 60_000);
    writer.return_idle().await.unwrap();
    assert_eq!(of_next(), Some(Amounts::ZERO), "nobody wanted it");
}

/// How much memory the process has.
///
/// # Units
/// KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let figure = line.unwrap().split_whitespace().nth(1).unwrap();
    figure.parse().unwrap()
}

/// Set in the process that has the measurement to itself.
const ALONE: &str = "SLUICE_TEST_ALONE";

#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// How many records wait: as `SLUICE_PROVE_WAITING` says, or few.
fn waiting_records() -> i64 {
    variable("SLUICE_PROVE_WAITING").map_or(30_000, |count| count.parse().unwrap())
}

/// The memory of a process says nothing while other tests run in it.
#[test]
fn waiting_records_need_no_more_memory_than_the_window() {
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "writer::tests::measure_waiting_records",
            "--nocapture",
        ])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success(), "{said}");
    let figures = said.lines().find(|line| line.contains("KiB before"));
    println!("{}", figures.expect("it was measured"));
}

/// Does nothing but in a process of its own.
#[tokio::test]
async fn measure_waiting_records() {
    const MIB: u64 = 1_024;
    const WINDOW: usize = 2_000;
    if variable(ALONE).is_none() {
        return;
    }
    let records = waiting_records();
    let (_folder, store, _clock, ledger, writer) = begun_away_with(WINDOW);
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let running = tokio::spawn(writer.run(std::future::pending(), PATIENCE));
    let period = TimeZone::utc().period(month());
    let (zone, leased) = (TimeZone::utc(), ScopeSet::default());
    let account = ledger.open_account_away(payer(), period, zone, leased, period.starts_at);
    let before = resident();
    for number in 0..records {
        let record = Box::new(UsageRecord::begun(open(number)));
        let held = ledger.hold(&lane, &account, record, period.starts_at, Patience::None);
        let hold = held.await.unwrap();
        let written = hold.post(RequestEnd::withdrawn());
        if number % 100 == 99 {
            written.unwrap().await;
        }
    }
    assert_eq!(ledger.stats().waiting(), records);
    let waiting = resident();
    let (behind, began) = (ledger.records_in_memory(), Instant::now());
    assert!(behind <= WINDOW, "{behind}");
    store.is_up.store(true, Ordering::SeqCst);
    let mut most = 0;
    while ledger.stats().waiting() > 0 {
        most = resident().max(most);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!(
        "{before} KiB before, {waiting} KiB with {records} records waiting, {behind} of them in \
         memory; at most {most} KiB while they were posted in {:?}",
        began.elapsed()
    );
    assert_eq!(store.row.lock().posted_no, records);
    assert!(waiting < before + 32 * MIB && most < before + 64 * MIB);
    running.abort();
    writing.abort();
}

fn open(number: i64) -> OpenRequest {
    OpenRequest {
        request_id: RequestId::from_uuid(Uuid::from_u128(number.unsigned_abs().into())),
        payer: payer(),
        period: month(),
        local_day: TimeZone::utc().day_of(UnixMillis(0)).day,
        started_at: UnixMillis(0),
        endpoint: Endpoint::ChatCompletions,
        streams: true,
        requested_model: Arc::from("a-model-with-a-name"),
        hold: HoldTerms {
            bound: Amounts::tokens(1),
            leased: ScopeSet::default(),
            input_estimate: 0,
        },
        caller: Caller {
            ip: None,
            user_agent: None,
        },
    }
}

/// A request of this many tokens.
async fn ask(
    ledger: &Ledger,
    lane: &Arc<Lane>,
    account: &Account,
    tokens: i64,
) -> Result<Hold, Refusal> {
    let mut open = open(tokens);
    open.hold.bound = Amounts::tokens(tokens);
    let record = Box::new(UsageRecord::begun(open));
    let now = account.period().starts_at;
    let held = ledger
        .hold(lane, account, record, now, Patience::QuotaWait)
        .await;
    held.map_err(|refused| refused.refusal)
}

fn account_away(ledger: &Ledger) -> Account {
    let period = TimeZone::utc().period(month());
    let (zone, leased) = (TimeZone::utc(), ScopeSet::default());
    ledger.open_account_away(payer(), period, zone, leased, period.starts_at)
}

#[tokio::test(start_paused = true)]
async fn what_comes_free_is_given_to_who_waits_while_the_database_is_away() {
    let (_folder, _store, _clock, ledger, writer) = begun_away();
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let running = tokio::spawn(writer.run(std::future::pending(), PATIENCE));
    let account = account_away(&ledger);
    let first = ask(&ledger, &lane, &account, LEASED - 100).await.unwrap();
    let waits = ask(&ledger, &lane, &account, 1_000);
    let ends = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let end = RequestEnd {
            owed: Amounts::tokens(200),
            ..RequestEnd::withdrawn()
        };
        first.post(end)
    };
    let began = Instant::now();
    let (held, _written) = tokio::join!(waits, ends);
    assert!(held.is_ok(), "{held:?}");
    assert!(began.elapsed() < Duration::from_millis(600));
    assert_eq!(free(&ledger), LEASED - 200 - 1_000);
    assert!(!ledger.is_claimed());
    running.abort();
    writing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_database_that_is_slow_has_some_seconds_to_say_what_there_is() {
    let (_folder, store, _clock, ledger, writer) = begun_away();
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let running = tokio::spawn(writer.run(std::future::pending(), PATIENCE));
    store.is_up.store(true, Ordering::SeqCst);
    wait_for_claim(&ledger).await;
    let account = account_away(&ledger);

    store.takes.store(3_000, Ordering::SeqCst);
    let held = ask(&ledger, &lane, &account, LEASED + 1).await;
    assert!(held.is_ok(), "{held:?}");

    store.takes.store(9_000, Ordering::SeqCst);
    let began = Instant::now();
    let refused = ask(&ledger, &lane, &account, 10 * CAP).await;
    assert!(matches!(refused, Err(Refusal::Unavailable)), "{refused:?}");
    let took = began.elapsed();
    assert!((4_900..5_200).contains(&took.as_millis()), "{took:?}");
    running.abort();
    writing.abort();
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_forgotten_at_once_while_the_database_is_away() {
    let (_folder, _store, _clock, ledger, writer) = begun_away();
    let lane = ledger.lane();
    let running = tokio::spawn(writer.run(std::future::pending(), PATIENCE));
    let account = account_away(&ledger);
    let waits = ask(&ledger, &lane, &account, LEASED + 1);
    let left = tokio::time::timeout(Duration::from_millis(100), waits).await;
    assert!(left.is_err(), "it waits");
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(!ledger.shared.inbox.lock().has_waiters());
    assert!(!ledger.is_claimed());
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn posts_that_the_database_has_already_are_forgotten_beyond_the_window_too() {
    let (_folder, store, _clock, ledger, writer) = begun_away_with(2);
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let account = account_away(&ledger);
    for _request in 0..7 {
        let hold = ask(&ledger, &lane, &account, 10).await.unwrap();
        let end = RequestEnd {
            owed: Amounts::tokens(10),
            ..RequestEnd::withdrawn()
        };
        hold.post(end).unwrap().await;
    }
    assert_eq!(
        (ledger.stats().waiting(), ledger.records_in_memory()),
        (7, 2)
    );
    // A batch of an earlier contact whose answer was lost.
    let mut writer = writer;
    writer.unclaimed = None;
    writer.guard.seq = store.row.lock().seq;
    store.row.lock().posted_no = 5;
    store.row.lock().boot_id = boot(2);
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    assert_eq!((ledger.stats().waiting(), writer.posted_no), (2, 5));
    assert_eq!(writer.backlog[0].post_no, 6);
    writing.abort();
}

#[tokio::test(start_paused = true)]
async fn fewer_posts_are_a_sign_that_the_database_went_back() {
    let (_folder, store, _clock, ledger, mut writer) = begun_away();
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let account = account_away(&ledger);
    let hold = ask(&ledger, &lane, &account, 10).await.unwrap();
    hold.post(RequestEnd::withdrawn()).unwrap().await;
    writer.post_all().await.unwrap();
    assert_eq!((writer.posted_no, ledger.stats().waiting()), (1, 0));
    // The number of the transaction was reached again since, by a copy that was restored.
    store.row.lock().posted_no = 0;
    writer.reconcile().await.unwrap();
    assert_eq!(ledger.stats().resyncs(), 1);
    assert_eq!(ledger.stats().waiting(), 1, "it is posted again");
    writer.post_all().await.unwrap();
    assert_eq!(store.row.lock().posted_no, 1);
    writing.abort();
}

/// It may be removed from the journal for its age while it is read again, which takes long.
#[tokio::test(start_paused = true)]
async fn what_the_database_lost_is_kept_from_the_moment_that_this_is_known() {
    let (folder, store, _clock, ledger, mut writer) = begun_away();
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let account = account_away(&ledger);
    for _request in 0..3 {
        let hold = ask(&ledger, &lane, &account, 10).await.unwrap();
        hold.post(RequestEnd::withdrawn()).unwrap().await;
    }
    writer.post_all().await.unwrap();
    let posted_no = || {
        let disk = FolderDisk::open(folder.path()).unwrap();
        journal::replay(&disk).unwrap().posted_no
    };
    assert_eq!(posted_no(), 3);
    writer.reload_posts(1).await.unwrap();
    assert_eq!(posted_no(), 1);
    assert_eq!(ledger.stats().waiting(), 2);
    writing.abort();
}

/// A database that goes back by more than the journal keeps: the instance stops, says what is missing,
/// and admits nobody, because nothing that it knows of its leases holds any more.
#[tokio::test(start_paused = true)]
async fn an_instance_stops_when_the_database_lost_posts_that_the_journal_no_longer_has() {
    let small = journal::Options {
        segment_bytes: 64 << 10,
        keep: Duration::ZERO,
        ..journal::Options::default()
    };
    let (folder, store, clock, ledger, mut writer) = begun_away_on(100, small);
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let account = account_away(&ledger);
    let ask_and_end = async || {
        let hold = ask(&ledger, &lane, &account, 10).await?;
        hold.post(RequestEnd::withdrawn()).unwrap().await;
        Ok::<(), Refusal>(())
    };
    let earlier = store.row.lock().clone();
    let kept = || {
        let disk = FolderDisk::open(folder.path()).unwrap();
        let mut first = i64::MAX;
        journal::kept_posts(&disk, &mut |posts| {
            first = posts.iter().map(|post| post.post_no).fold(first, i64::min);
        })
        .unwrap();
        first
    };
    // Until the first segment is gone, because the database has all of it.
    let mut asked = 0;
    while asked < 100 || kept() == 1 {
        for _request in 0..100 {
            ask_and_end().await.unwrap();
            asked += 1;
        }
        writer.post_all().await.unwrap();
        ledger.shared.journal.sync().unwrap();
        ledger.shared.journal.maintain(clock.now()).unwrap();
        assert!(asked < 100_000, "nothing is removed");
    }
    let oldest = kept();
    *store.row.lock() = InstanceRow {
        boot_id: boot(2),
        ..earlier
    };
    ask_and_end().await.unwrap();
    let finish = writer.run(std::future::pending(), PATIENCE).await;
    let Finish::PostsGone {
        from: 1,
        oldest: told,
    } = finish
    else {
        panic!("{finish:?}");
    };
    assert!((2..=oldest).contains(&told), "{told} of {oldest}");
    assert!(ask_and_end().await.is_err(), "somebody is admitted");
    // What it has stays, for an operator who gives up the rest.
    assert!(kept() <= oldest);
    writing.abort();
}

#[tokio::test(start_paused = true)]
async fn an_instance_goes_on_when_the_database_lost_that_it_was_settled() {
    let (_folder, store, _clock, ledger, mut writer) = begun_away();
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    store.row.lock().state = InstanceState::Resolved;
    store.row.lock().seq += 1;
    writer.reconcile().await.unwrap();
    assert_eq!(writer.mode, PostMode::Late);
    assert!(!ledger.shared.is_open());
    store.row.lock().state = InstanceState::Live;
    writer.reconcile().await.unwrap();
    assert_eq!(writer.mode, PostMode::Live);
    assert!(ledger.shared.is_open());
}

#[tokio::test(start_paused = true)]
async fn what_the_cap_has_no_room_for_is_asked_of_the_database_once_a_second() {
    let (_folder, store, clock, ledger, writer) = begun_away();
    store.is_up.store(true, Ordering::SeqCst);
    let lane = ledger.lane();
    let running = tokio::spawn(writer.run(std::future::pending(), PATIENCE));
    wait_for_claim(&ledger).await;
    let account = account_away(&ledger);
    let now = account.period().starts_at;
    clock.0.store(now.0, Ordering::SeqCst);
    for _request in 0..5 {
        let refused = ask(&ledger, &lane, &account, CAP + 1).await;
        assert!(matches!(refused, Err(Refusal::Spent(_))), "{refused:?}");
    }
    assert_eq!(ledger.stats().lease_moves(), 1);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn room_that_was_given_to_who_has_left_is_free_again() {
    let (_folder, _store, _clock, ledger, writer) = begun_away();
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let account = account_away(&ledger);
    let taken = ask(&ledger, &lane, &account, LEASED).await.unwrap();
    let mut waits = Box::pin(ask(&ledger, &lane, &account, LEASED));
    assert!(
        std::future::poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx)))
            .await
            .is_pending()
    );
    drop(taken.post(RequestEnd::withdrawn()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    leases::serve_free_room(&ledger.shared, UnixMillis(0));
    assert_eq!(free(&ledger), 0, "it is set aside");
    drop(waits);
    assert_eq!(free(&ledger), LEASED);
    drop(writer);
    writing.abort();
}

#[tokio::test]
async fn an_instance_that_was_settled_leaves_no_lease_to_a_start_without_the_database() {
    let (_folder, store, _clock, ledger, mut writer) = begun_away();
    assert_eq!(ledger.shared.journal.leased(), [tenant_counter()]);
    store.row.lock().state = InstanceState::Resolved;
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    assert_eq!(ledger.shared.journal.leased(), []);
    assert_eq!(writer.end_late().await, Err(Stop::Settled));
    assert_eq!(ledger.shared.journal.leased(), []);
}

/// The database has no row of a lease of which nothing is left.
#[tokio::test(start_paused = true)]
async fn a_lease_that_a_post_without_an_answer_used_up_is_gone_from_the_journal_too() {
    let (_folder, store, _clock, ledger, mut writer) = begun_away();
    store.is_up.store(true, Ordering::SeqCst);
    writer.reconcile().await.unwrap();
    let lane = ledger.lane();
    let writing = tokio::spawn(Arc::clone(&lane).run());
    let account = account_away(&ledger);
    let hold = ask(&ledger, &lane, &account, LEASED).await.unwrap();
    let end = RequestEnd {
        owed: Amounts::tokens(LEASED),
        ..RequestEnd::withdrawn()
    };
    hold.post(end).unwrap().await;
    assert_eq!(ledger.shared.journal.leased(), [tenant_counter()]);
    store.row.lock().seq += 1;
    store.row.lock().posted_no = 1;
    store.leases.lock().clear();
    writer.reconcile().await.unwrap();
    assert_eq!((writer.posted_no, free(&ledger)), (1, 0));
    assert_eq!(ledger.shared.journal.leased(), []);
    writing.abort();
}

/// As a crash between a transaction and its answer leaves it.
#[tokio::test(start_paused = true)]
async fn a_start_leaves_no_lease_in_the_journal_that_the_database_does_not_know() {
    let (folder, store, clock, ledger, writer) = begun_away();
    store.is_up.store(true, Ordering::SeqCst);
    ledger.shared.journal.note_sent(8, &[]).unwrap();
    drop((ledger, writer));
    store.row.lock().seq = 8;
    store.leases.lock().clear();
    let (journal, replay) = open_journal(&folder, boot(3), journal::Options::default());
    assert_eq!(replay.leases.len(), 1);
    let identity = Identity {
        instance_id: InstanceId::from_uuid(Uuid::from_u128(INSTANCE)),
        earlier_boots: vec![boot(1), boot(2)],
        boot_id: boot(3),
    };
    let (ledger, _writer) = start(options(100), store, clock, journal, replay, identity)
        .await
        .unwrap();
    assert_eq!(ledger.shared.journal.leased(), []);
}
