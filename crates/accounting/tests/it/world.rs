//! Instances, their clients, operators, and everything that can go wrong between them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_accounting::journal::{
    Identity as JournalIdentity, Journal, JournalError, Options as JournalOptions, Progress,
};
use sluice_accounting::{
    Account, Finish, Fsync, Hold, Identity, Lane, Ledger, LedgerOptions, Patience, Refusal,
    Refused, StartError, start, start_away,
};
use sluice_domain::id::{BootId, InstanceId, ProxyKeyId, RequestId, TenantId, UserId};
use sluice_domain::ports::{Clock, InstanceState, LedgerStore};
use sluice_domain::quota::{Amounts, Cap, CounterKey, HoldTerms, Payer, ScopeSet};
use sluice_domain::record::{Caller, OpenRequest, RequestEnd, UsageRecord};
use sluice_domain::route::Endpoint;
use sluice_domain::time::{Month, TimeZone, UnixMillis};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinHandle};
use uuid::Uuid;

use crate::checks;
use crate::common::{Life, Log, Rng, SimClock};
use crate::disk::{Mount, SimDisk};
use crate::store::{Connection, Database, Faults};

/// The first of December 2026, UTC.
const MONTH_BEGINS: i64 = 1_796_083_200_000;
const QUOTA_WAIT: i64 = 1_000;
/// How long a request waits for an answer of the database.
///
/// # Units
/// Milliseconds.
const DECISION_WAIT: i64 = 5_000;

/// What one seed plays.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) sites: usize,
    pub(crate) lanes: usize,
    pub(crate) requests: usize,
    /// Over how long the requests are spread, in milliseconds.
    pub(crate) duration: i64,
    pub(crate) outage_reserve: Duration,
    pub(crate) max_in_memory: usize,
    pub(crate) segment_bytes: u64,
    pub(crate) faults: Faults,
    /// How many of each act of chance.
    pub(crate) crashes: i64,
    pub(crate) power_cuts: i64,
    pub(crate) rollbacks: i64,
    pub(crate) resolves: i64,
    pub(crate) releases: i64,
    pub(crate) cap_changes: i64,
    pub(crate) outages: i64,
    pub(crate) full_disks: i64,
    pub(crate) sync_failures: i64,
    pub(crate) stops: i64,
    /// How many of a hundred starts do not wait for the database.
    pub(crate) starts_away: u64,
    pub(crate) poisoned: u64,
    pub(crate) leavers: u64,
    pub(crate) tenants: usize,
    pub(crate) cap: (i64, i64),
    pub(crate) bound: (i64, i64),
    /// Every request spends its whole hold at once.
    pub(crate) spends_all: bool,
    /// Requests come evenly, and from here on the database is away for the outage reserve.
    pub(crate) bridges_from: Option<i64>,
    pub(crate) month_begins_after: i64,
}

impl Plan {
    /// Nothing goes wrong.
    pub(crate) fn calm(rng: &Rng) -> Self {
        let duration = if rng.chance(30) {
            rng.range(40, 500)
        } else {
            rng.range(800, 5_000)
        };
        Self {
            sites: rng.index(3) + 1,
            lanes: rng.index(3) + 1,
            requests: rng.index(101) + 20,
            duration,
            outage_reserve: Duration::from_secs(if rng.chance(40) { 2 } else { 600 }),
            max_in_memory: if rng.chance(60) {
                rng.index(50) + 1
            } else {
                10_000
            },
            segment_bytes: 256 * 1024,
            faults: Faults::default(),
            crashes: 0,
            power_cuts: 0,
            rollbacks: 0,
            resolves: 0,
            releases: 0,
            cap_changes: 0,
            outages: 0,
            full_disks: 0,
            sync_failures: 0,
            stops: 0,
            starts_away: 0,
            poisoned: 0,
            leavers: 5,
            tenants: rng.index(3) + 1,
            cap: if rng.chance(25) {
                (20_000, 900_000)
            } else {
                (150, 3_000)
            },
            bound: (1, rng.range(2, 250)),
            spends_all: false,
            bridges_from: None,
            month_begins_after: if rng.chance(40) {
                rng.range(1, duration)
            } else {
                86_400_000
            },
        }
    }

    /// Anything goes wrong.
    pub(crate) fn wild(rng: &Rng) -> Self {
        let calm = Self::calm(rng);
        let some = |percent: u64, most: i64| {
            if rng.chance(percent) {
                rng.range(1, most)
            } else {
                0
            }
        };
        let often = |percent: u64, most: i64| some(percent, most).unsigned_abs();
        let full_disks = some(20, 2);
        Self {
            faults: Faults {
                lost_call: often(50, 60),
                lost_answer: often(60, 80),
                delayed_commit: often(50, 60),
                slow: often(40, 40),
                refused: often(15, 10),
                is_down: false,
            },
            crashes: some(65, 5),
            power_cuts: some(35, 3),
            // On a full disk the journal gives up what only a database that goes back would need.
            rollbacks: if full_disks > 0 { 0 } else { some(45, 3) },
            resolves: some(35, 2),
            releases: some(10, 1),
            cap_changes: some(50, 6),
            outages: some(35, 2),
            full_disks,
            sync_failures: some(20, 40),
            stops: some(40, 2),
            starts_away: often(50, 60),
            poisoned: often(15, 5),
            segment_bytes: 64 * 1024,
            leavers: often(60, 30),
            ..calm
        }
    }

    /// The try of the first promise: every request spends its whole hold, all at once.
    pub(crate) fn whole_holds(rng: &Rng) -> Self {
        let bound = rng.range(1, 100);
        let cap = bound * rng.range(1, 140) + rng.range(0, bound - 1);
        Self {
            sites: 3,
            requests: 150,
            duration: rng.range(1, 1_500),
            tenants: 1,
            bound: (bound, bound),
            cap: (cap, cap),
            spends_all: true,
            leavers: 0,
            month_begins_after: 86_400_000,
            ..Self::calm(rng)
        }
    }

    /// The try of the outage: traffic as even as can be, far from every cap, and then no database.
    pub(crate) fn bridged(rng: &Rng) -> Self {
        let warm_up = rng.range(30_000, 400_000);
        let duration = warm_up + 600_000;
        let every = rng.range(300, 3_000);
        let bound = rng.range(1, 1_000);
        Self {
            sites: rng.index(2) + 1,
            requests: usize::try_from(duration / every).unwrap(),
            duration,
            outage_reserve: Duration::from_mins(10),
            bound: (bound, bound),
            // With the reserve of all in it more than a hundred times for each instance.
            cap: (1_000_000_000, 2_000_000_000),
            spends_all: true,
            bridges_from: Some(warm_up),
            leavers: 0,
            month_begins_after: 86_400_000,
            ..Self::calm(rng)
        }
    }

    pub(crate) fn is_calm(&self) -> bool {
        let f = self.faults;
        f.lost_call + f.lost_answer + f.delayed_commit + f.slow + f.refused + self.poisoned == 0
            && self.crashes
                + self.power_cuts
                + self.rollbacks
                + self.resolves
                + self.releases
                + self.cap_changes
                + self.outages
                + self.full_disks
                + self.sync_failures
                + self.stops
                == 0
    }
}

/// One data folder: an instance, over all its starts.
#[derive(Debug)]
struct Site {
    number: usize,
    instance_id: InstanceId,
    disk: Arc<SimDisk>,
    boots: Mutex<Vec<BootId>>,
    life: Mutex<Arc<Life>>,
    run: Mutex<Option<Arc<Run>>>,
    /// Settled: another folder took its place.
    is_retired: AtomicBool,
    is_kept: AtomicBool,
}

/// One process.
#[derive(Debug)]
struct Run {
    site: usize,
    boot: usize,
    life: Arc<Life>,
    ledger: Ledger,
    store: Arc<Connection>,
    lanes: Vec<Arc<Lane>>,
    lane_tasks: Vec<AbortHandle>,
    tasks: Mutex<Vec<AbortHandle>>,
    close: Mutex<Option<oneshot::Sender<()>>>,
    /// How long a stop may take, in milliseconds.
    grace: i64,
    accounts: Mutex<BTreeMap<(Uuid, Month), Arc<Account>>>,
}

impl Run {
    fn end(&self) {
        self.life.kill();
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        for task in &self.lane_tasks {
            task.abort();
        }
    }
}

/// How far a request has come, as its client and its handler know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It waits, or its process died while it did.
    Waiting,
    Refused,
    /// The client left before it was told anything.
    Left,
    Open,
    Ended,
    /// Its end is in the journal.
    Answered,
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) site: usize,
    pub(crate) boot: usize,
    pub(crate) payer: Payer,
    pub(crate) month: Month,
    pub(crate) bound: Amounts,
    pub(crate) phase: Phase,
    pub(crate) opened_at: i64,
    pub(crate) answered_at: i64,
    /// What would be charged if the process died after each progress line, and when that line was
    /// known to be written.
    pub(crate) progress: Vec<(i64, Option<i64>)>,
    pub(crate) end: Option<(Ending, Amounts)>,
    /// A power cut may have taken its open.
    pub(crate) may_be_missing: bool,
    /// A power cut may have taken its post.
    pub(crate) may_be_cut: bool,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    rng: Rng,
    acts: Rng,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) log: Arc<Log>,
    pub(crate) database: Arc<Database>,
    sites: Mutex<Vec<Arc<Site>>>,
    payers: Vec<Payer>,
    pub(crate) requests: Mutex<BTreeMap<RequestId, Request>>,
    /// What is free of each counter in truth, over time; only in calm worlds.
    rooms: Mutex<BTreeMap<CounterKey, Vec<(i64, Amounts)>>>,
    is_ending: AtomicBool,
    is_quiet: AtomicBool,
    /// Since when nothing has lowered what is used or moved a cap.
    disturbed_at: AtomicI64,
    zone: TimeZone,
}

impl World {
    pub(crate) fn new(plan: Plan, rng: Rng, is_traced: bool) -> Arc<Self> {
        let base = UnixMillis(MONTH_BEGINS - plan.month_begins_after);
        let clock = Arc::new(SimClock::new(base));
        let log = Arc::new(Log::new(Arc::clone(&clock), is_traced));
        let database = Database::new(rng.fork(), Arc::clone(&log));
        let mut payers = Vec::new();
        for _ in 0..plan.tenants {
            let tenant_id = TenantId::from_uuid(rng.uuid(base));
            for _ in 0..=rng.index(2) {
                let user_id = UserId::from_uuid(rng.uuid(base));
                for _ in 0..=rng.index(2) {
                    payers.push(Payer {
                        tenant_id,
                        user_id,
                        key_id: ProxyKeyId::from_uuid(rng.uuid(base)),
                    });
                }
            }
        }
        Arc::new(Self {
            acts: rng.fork(),
            plan,
            rng,
            clock,
            log,
            database,
            sites: Mutex::default(),
            payers,
            requests: Mutex::default(),
            rooms: Mutex::default(),
            is_ending: AtomicBool::new(false),
            is_quiet: AtomicBool::new(false),
            disturbed_at: AtomicI64::new(-1_000_000),
            zone: TimeZone::utc(),
        })
    }

    /// Plays everything; returns what must not have happened.
    pub(crate) async fn play(self: &Arc<Self>) -> Option<String> {
        self.set_first_quotas().await;
        for _ in 0..self.plan.sites {
            self.add_site();
        }
        self.database.set_faults(self.plan.faults);
        let acting = tokio::spawn(Arc::clone(self).act());
        let asking = tokio::spawn(Arc::clone(self).ask());
        let bridging = tokio::spawn(Arc::clone(self).take_database_away());
        for task in [asking, acting, bridging] {
            if let Err(defect) = task.await {
                self.log.violation(format!("the world fails: {defect}"));
            }
        }
        self.finish().await;
        self.log.failed()
    }

    fn now(&self) -> i64 {
        self.clock.elapsed()
    }

    fn random_cap(&self) -> Cap {
        let (low, high) = self.plan.cap;
        let cap = |chance| self.rng.chance(chance).then(|| self.rng.range(low, high));
        Cap {
            tokens: cap(80),
            nano: cap(35),
        }
    }

    async fn set_first_quotas(&self) {
        let mut quotas = BTreeMap::new();
        for payer in &self.payers {
            let [tenant, user, key] = payer.scopes();
            if self.plan.spends_all && self.plan.bridges_from.is_none() {
                quotas.insert(
                    tenant,
                    Cap {
                        tokens: Some(self.plan.cap.0),
                        nano: None,
                    },
                );
                continue;
            }
            for (scope, percent) in [(tenant, 75), (user, 35), (key, 45)] {
                if !quotas.contains_key(&scope) && self.rng.chance(percent) {
                    quotas.insert(scope, self.random_cap());
                }
            }
        }
        self.database
            .operate(false, |state| state.quotas = quotas)
            .await;
    }

    fn add_site(self: &Arc<Self>) {
        let mut sites = self.sites.lock();
        let site = Arc::new(Site {
            number: sites.len(),
            instance_id: InstanceId::from_uuid(self.rng.uuid(self.clock.now())),
            disk: SimDisk::new(self.rng.fork(), Arc::clone(&self.log)),
            boots: Mutex::default(),
            life: Mutex::new(Life::new()),
            run: Mutex::default(),
            is_retired: AtomicBool::new(false),
            is_kept: AtomicBool::new(false),
        });
        site.disk
            .sync_failures
            .store(self.plan.sync_failures.unsigned_abs(), Ordering::Relaxed);
        sites.push(Arc::clone(&site));
        drop(sites);
        self.keep(&site);
    }

    /// Lets a folder's process run, and start again whenever it ends.
    fn keep(self: &Arc<Self>, site: &Arc<Site>) {
        site.is_kept.store(true, Ordering::Relaxed);
        let (world, site) = (Arc::clone(self), Arc::clone(site));
        tokio::spawn(async move {
            let keeper = {
                let (world, site) = (Arc::clone(&world), Arc::clone(&site));
                tokio::spawn(async move { while world.run_once(&site).await {} })
            };
            if let Err(defect) = keeper.await {
                world.log.violation(format!("an instance fails: {defect}"));
            }
            site.is_kept.store(false, Ordering::Relaxed);
        });
    }

    fn is_quiet(&self) -> bool {
        self.is_quiet.load(Ordering::Relaxed)
    }

    async fn pause(&self, low: i64, high: i64) {
        let pause = self.rng.range(low, high).unsigned_abs();
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// One process from its start to its end; returns whether there is a next one.
    async fn run_once(self: &Arc<Self>, site: &Arc<Site>) -> bool {
        let life = Life::new();
        let boot = site.boots.lock().len();
        if self.plan.crashes > 0 && self.acts.chance(10) && !self.is_quiet() {
            life.burn(self.acts.range(0, 40));
        }
        *site.life.lock() = Arc::clone(&life);
        let started = tokio::select! {
            biased;
            started = self.start(site, Arc::clone(&life), boot) => started,
            () = life.died() => Started::Again,
        };
        let (run, mut writing) = match started {
            Started::Running(run, writing) => (run, writing),
            Started::Again => {
                life.kill();
                self.pause(1, 300).await;
                return self.log.failed().is_none();
            }
            Started::Never => {
                life.kill();
                return false;
            }
        };
        *site.run.lock() = Some(Arc::clone(&run));
        let finish = tokio::select! {
            biased;
            finish = &mut writing => Some(finish),
            () = life.died() => None,
        };
        let finish = match finish {
            None => None,
            Some(Ok(finish)) => Some(finish),
            Some(Err(defect)) => {
                self.log
                    .violation(format!("the writer of i{} fails: {defect}", site.number));
                None
            }
        };
        let was_alive = !life.is_dead();
        self.log.event(30, || {
            format!(
                "i{}.{boot} ENDS: {finish:?}, alive: {was_alive}",
                site.number
            )
        });
        if was_alive {
            match finish {
                Some(Finish::Clean) => {
                    self.log.count(|f| &f.clean_stops);
                    self.check_clean(site, boot);
                }
                Some(Finish::Settled) => self.retire(site),
                Some(Finish::LostIdentity) => {
                    self.log
                        .violation(format!("i{}.{boot} lost its identity", site.number));
                }
                Some(Finish::JournalLost) => self.log.count(|f| &f.journals_lost),
                Some(Finish::PostsGone { from, oldest }) => {
                    // It keeps everything.
                    self.log.violation(format!(
                        "i{}.{boot} lacks posts from {from} to {oldest}",
                        site.number
                    ));
                }
                Some(Finish::Left { .. }) | None => {}
            }
        } else {
            self.log.count(|f| &f.crashes);
        }
        site.run.lock().take();
        self.log.figures.read_back.fetch_add(
            i64::try_from(run.ledger.stats().read_back()).unwrap(),
            Ordering::Relaxed,
        );
        run.end();
        writing.abort();
        let is_settled = was_alive && finish == Some(Finish::Settled);
        if is_settled || self.log.failed().is_some() {
            return false;
        }
        if self.is_ending.load(Ordering::Relaxed) && was_alive && finish == Some(Finish::Clean) {
            return false;
        }
        if !self.is_quiet() {
            self.pause(1, 1_200).await;
            if self.plan.power_cuts > 0 && self.rng.chance(5) {
                self.cut_power(site);
            }
        }
        true
    }

    /// Another folder takes the place of one that was settled.
    fn retire(self: &Arc<Self>, site: &Arc<Site>) {
        if !site.is_retired.swap(true, Ordering::Relaxed) {
            self.log.count(|f| &f.settled);
            self.disturb();
            if !self.is_ending.load(Ordering::Relaxed) {
                self.add_site();
            }
        }
    }

    async fn start(self: &Arc<Self>, site: &Arc<Site>, life: Arc<Life>, boot: usize) -> Started {
        let boot_id = BootId::from_uuid(self.rng.uuid(self.clock.now()));
        let earlier_boots = {
            let mut boots = site.boots.lock();
            let earlier = boots.clone();
            boots.push(boot_id);
            earlier
        };
        self.log.count(|f| &f.restarts);
        self.log.event(31, || {
            format!("i{}.{boot} STARTS as {boot_id}", site.number)
        });
        let mount = Mount {
            disk: Arc::clone(&site.disk),
            life: Arc::clone(&life),
        };
        let opened = Journal::open(
            Arc::new(mount),
            JournalOptions {
                segment_bytes: self.plan.segment_bytes,
                ..JournalOptions::default()
            },
            JournalIdentity {
                instance_id: site.instance_id,
                boot_id,
                previous_boot: earlier_boots.last().copied(),
            },
        );
        let (journal, replay) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                self.judge_journal_error(site, &life, &error);
                return Started::Again;
            }
        };
        self.log.event(32, || {
            let holds: Vec<_> = replay.holds.iter().map(|h| h.open.request_id).collect();
            format!(
                "i{}.{boot} journal: seq {} sent {:?} posted {} next {} open {holds:?} leases {:?}",
                site.number,
                replay.seq,
                replay.sent,
                replay.posted_no,
                replay.next_post_no,
                replay.leases,
            )
        });
        if self.plan.rollbacks == 0
            && let Some(row) = self.database.look(|state| state.row(site.instance_id))
            && let Err(what) = checks::check_journal(&replay, &row)
        {
            self.log
                .violation(format!("the journal of i{}.{boot} has {what}", site.number));
        }
        let store = Arc::new(Connection {
            database: Arc::clone(&self.database),
            life: Arc::clone(&life),
            name: format!("i{}.{boot}", site.number),
        });
        let options = LedgerOptions {
            max_in_memory: self.plan.max_in_memory,
            quota_wait: Duration::from_millis(QUOTA_WAIT.unsigned_abs()),
            outage_reserve: self.plan.outage_reserve,
            fsync: Fsync::Interval,
            blocks_on_threads: false,
        };
        let identity = Identity {
            instance_id: site.instance_id,
            earlier_boots,
            boot_id,
        };
        let database = Arc::clone(&store) as Arc<dyn LedgerStore>;
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let started = if self.acts.chance(self.plan.starts_away) {
            let fits = tokio::time::sleep(Duration::from_millis(self.rng.next() % 200));
            start_away(options, database, clock, journal, replay, identity, fits)
        } else {
            start(options, database, clock, journal, replay, identity).await
        };
        if life.is_dead() {
            return Started::Again;
        }
        let (ledger, writer) = match started {
            Ok(started) => started,
            Err(StartError::Settled) => {
                self.log
                    .event(33, || format!("i{}.{boot} was settled", site.number));
                self.retire(site);
                return Started::Never;
            }
            Err(StartError::Store(_)) => return Started::Again,
            Err(StartError::Journal(error)) => {
                self.judge_journal_error(site, &life, &error);
                return Started::Again;
            }
            Err(StartError::PostsGone { from, oldest }) => {
                let gone = JournalError::PostsGone { from, oldest };
                self.judge_journal_error(site, &life, &gone);
                return Started::Again;
            }
            Err(StartError::JournalLost) => {
                self.judge_journal_error(site, &life, &JournalError::Full);
                return Started::Again;
            }
            Err(StartError::OlderCopy) => {
                self.log.violation(format!(
                    "i{}.{boot} is taken for an older copy",
                    site.number
                ));
                return Started::Never;
            }
        };
        let lanes: Vec<Arc<Lane>> = (0..self.plan.lanes).map(|_| ledger.lane()).collect();
        let lane_tasks = lanes
            .iter()
            .map(|lane| tokio::spawn(Arc::clone(lane).run()).abort_handle())
            .collect();
        let (close, closing) = oneshot::channel::<()>();
        let grace = self.rng.range(100, 3_000);
        let writing = tokio::spawn(writer.run(
            async move {
                drop(closing.await);
            },
            Duration::from_millis(grace.unsigned_abs()),
        ));
        let run = Run {
            site: site.number,
            boot,
            life,
            ledger,
            store,
            lanes,
            lane_tasks,
            tasks: Mutex::default(),
            close: Mutex::new(Some(close)),
            grace,
            accounts: Mutex::default(),
        };
        Started::Running(Arc::new(run), writing)
    }

    /// The journal may be refused by a full or broken disk, and never for what it says.
    fn judge_journal_error(&self, site: &Site, life: &Life, error: &JournalError) {
        let is_excused = life.is_dead()
            || site.disk.is_full.load(Ordering::Relaxed)
            || site.disk.sync_failures.load(Ordering::Relaxed) > 0;
        let is_about_content = matches!(
            error,
            JournalError::Corrupt { .. }
                | JournalError::Missing { .. }
                | JournalError::Foreign { .. }
        ) && !life.is_dead();
        self.log
            .event(34, || format!("i{} journal: {error}", site.number));
        if is_about_content || !is_excused {
            self.log
                .violation(format!("the journal of i{}: {error}", site.number));
        }
    }

    fn disturb(&self) {
        self.disturbed_at.store(self.now(), Ordering::Relaxed);
    }

    fn cut_power(&self, site: &Site) {
        self.log.count(|f| &f.power_cuts);
        let since = site.disk.unsynced_since();
        let now = self.now();
        self.log.event(40, || {
            format!("POWER of i{} is cut; unsynced since {since:?}", site.number)
        });
        // While it starts, it writes nothing that it could not write again.
        let was_alive = !site.life.lock().is_dead() && site.run.lock().is_some();
        site.life.lock().kill();
        site.disk.cut_power();
        let Some(since) = since else {
            return;
        };
        if was_alive {
            self.log
                .figures
                .unsynced_ms_max
                .fetch_max(now - since, Ordering::Relaxed);
            if now - since > 100 {
                self.log
                    .violation(format!("{} ms were not synced", now - since));
            }
        }
        for request in self.requests.lock().values_mut() {
            if request.site != site.number {
                continue;
            }
            let is_open = matches!(request.phase, Phase::Open | Phase::Ended | Phase::Answered);
            if is_open && request.opened_at >= since {
                request.may_be_missing = true;
            }
            if request.phase == Phase::Answered && request.answered_at >= since {
                request.may_be_cut = true;
            }
            for (_, written_at) in &mut request.progress {
                if written_at.is_some_and(|at| at >= since) {
                    *written_at = None;
                }
            }
        }
    }

    fn sites(&self) -> Vec<Arc<Site>> {
        self.sites.lock().clone()
    }

    fn any_site(&self) -> Arc<Site> {
        let sites = self.sites();
        Arc::clone(&sites[self.rng.index(sites.len())])
    }

    // ---- what operators, machines and chance do

    async fn act(self: Arc<Self>) {
        let plan = &self.plan;
        let mut acts = Vec::new();
        for (act, count) in [
            (Act::Crash, plan.crashes),
            (Act::PowerCut, plan.power_cuts),
            (Act::GoBack, plan.rollbacks),
            (Act::Resolve, plan.resolves),
            (Act::Release, plan.releases),
            (Act::SetCap, plan.cap_changes),
            (Act::Outage, plan.outages),
            (Act::FullDisk, plan.full_disks),
            (Act::Stop, plan.stops),
        ] {
            for _ in 0..count {
                acts.push((self.acts.range(0, plan.duration + 800), act));
            }
        }
        acts.sort_by_key(|(at, _)| *at);
        for (at, act) in acts {
            let wait = (at - self.now()).max(0).unsigned_abs();
            tokio::time::sleep(Duration::from_millis(wait)).await;
            if self.log.failed().is_some() {
                break;
            }
            self.perform(act).await;
        }
    }

    async fn perform(self: &Arc<Self>, act: Act) {
        let site = self.any_site();
        match act {
            Act::Crash => {
                let life = Arc::clone(&site.life.lock());
                if self.rng.chance(50) {
                    self.log.event(41, || format!("CRASH of i{}", site.number));
                    life.kill();
                } else {
                    let calls = self.rng.range(0, 12);
                    self.log
                        .event(42, || format!("CRASH of i{} in {calls} calls", site.number));
                    life.burn(calls);
                }
            }
            Act::PowerCut => self.cut_power(&site),
            Act::GoBack => {
                self.disturb();
                self.database.go_back(self.rng.index(3) + 1);
            }
            Act::Resolve | Act::Release => {
                let is_released = act == Act::Release;
                self.disturb();
                let id = site.instance_id;
                let is_done = self
                    .database
                    .operate(is_released, |state| state.resolve(id, is_released))
                    .await;
                self.log.event(43, || {
                    format!(
                        "RESOLVE i{}, release: {is_released}, done: {is_done}",
                        site.number
                    )
                });
                if is_done {
                    self.log.count(|f| {
                        if is_released {
                            &f.releases
                        } else {
                            &f.resolves
                        }
                    });
                }
            }
            Act::SetCap => self.change_cap().await,
            Act::Outage => {
                self.log.event(44, || "DATABASE is down".to_owned());
                self.database.set_faults(Faults {
                    is_down: true,
                    ..self.plan.faults
                });
                if self.rng.chance(20) {
                    // It outlasts every stop.
                    self.stop(&site).await;
                    self.pause(12_000, 13_000).await;
                } else {
                    self.pause(30, 2_500).await;
                }
                self.log.event(45, || "DATABASE is up".to_owned());
                self.database.set_faults(self.plan.faults);
            }
            Act::FullDisk => {
                self.log.count(|f| &f.full_disks);
                self.log
                    .event(46, || format!("DISK of i{} is full", site.number));
                site.disk.is_full.store(true, Ordering::Relaxed);
                self.pause(30, 2_500).await;
                site.disk.is_full.store(false, Ordering::Relaxed);
            }
            Act::Stop => self.stop(&site).await,
        }
    }

    /// The outage that must be bridged.
    async fn take_database_away(self: Arc<Self>) {
        let Some(at) = self.plan.bridges_from else {
            return;
        };
        tokio::time::sleep(Duration::from_millis(at.unsigned_abs())).await;
        self.log.event(44, || "DATABASE is down".to_owned());
        self.database.set_faults(Faults {
            is_down: true,
            ..self.plan.faults
        });
        tokio::time::sleep(self.plan.outage_reserve).await;
        self.log.event(45, || "DATABASE is up".to_owned());
        self.database.set_faults(self.plan.faults);
    }

    /// Stops a process as an operator does; it must end in the time that it was given.
    async fn stop(self: &Arc<Self>, site: &Arc<Site>) {
        const SLACK: i64 = 7_000;
        let Some(run) = site.run.lock().clone() else {
            return;
        };
        self.log.event(47, || {
            format!("STOP of i{} within {} ms", site.number, run.grace)
        });
        drop(run.close.lock().take());
        let (world, site, stopping) = (Arc::clone(self), Arc::clone(site), Arc::clone(&run));
        tokio::spawn(async move {
            world
                .pause(stopping.grace + SLACK, stopping.grace + SLACK)
                .await;
            let is_running = site
                .run
                .lock()
                .as_ref()
                .is_some_and(|now| Arc::ptr_eq(now, &stopping));
            if is_running && !site.disk.is_full.load(Ordering::Relaxed) {
                world
                    .log
                    .violation(format!("i{}.{} does not stop", site.number, stopping.boot));
            }
        });
        if self.rng.chance(30) {
            // The threads of the handlers end before the writer does.
            self.pause(0, 500).await;
            for task in &run.lane_tasks {
                task.abort();
            }
        }
    }

    async fn change_cap(self: &Arc<Self>) {
        let payer = self.payers[self.rng.index(self.payers.len())];
        let place = self.rng.index(3);
        let month = self.zone.period_of(self.clock.now()).month;
        let keys = [
            payer.counters(month)[place],
            payer.counters(month.next())[place],
        ];
        let cap = if self.rng.chance(25) {
            Cap::default()
        } else {
            self.random_cap()
        };
        self.log
            .event(48, || format!("CAP of {:?}: {cap:?}", keys[0]));
        self.log.count(|f| &f.cap_changes);
        self.disturb();
        self.database
            .operate(false, |state| {
                state.set_cap(&keys, payer.scopes()[place], cap);
            })
            .await;
        let world = Arc::clone(self);
        tokio::spawn(async move {
            world.pause(0, 500).await;
            for site in world.sites() {
                if let Some(run) = &*site.run.lock() {
                    run.accounts.lock().clear();
                }
            }
        });
    }

    // ---- requests

    async fn ask(self: Arc<Self>) {
        let mut times: Vec<i64> = (0..self.plan.requests)
            .map(|_| self.rng.range(0, self.plan.duration))
            .collect();
        times.sort_unstable();
        if self.plan.bridges_from.is_some() {
            let count = i64::try_from(times.len()).unwrap();
            times = (0..count).map(|n| n * self.plan.duration / count).collect();
        }
        for (number, at) in times.into_iter().enumerate() {
            let wait = (at - self.now()).max(0).unsigned_abs();
            tokio::time::sleep(Duration::from_millis(wait)).await;
            if self.log.failed().is_some() {
                return;
            }
            let runs: Vec<Arc<Run>> = self
                .sites()
                .iter()
                .filter_map(|site| site.run.lock().clone())
                .filter(|run| !run.life.is_dead())
                .collect();
            if runs.is_empty() {
                continue;
            }
            let (run, payer) = match self.plan.bridges_from {
                Some(_) => (number % runs.len(), number / runs.len() % self.payers.len()),
                None => (
                    self.rng.index(runs.len()),
                    self.rng.index(self.payers.len()),
                ),
            };
            let (run, payer) = (Arc::clone(&runs[run]), self.payers[payer]);
            let request = Arc::clone(&self).request(Arc::clone(&run), payer);
            let task = tokio::spawn(request);
            run.tasks.lock().push(task.abort_handle());
            let log = Arc::clone(&self.log);
            tokio::spawn(async move {
                if let Err(defect) = task.await
                    && defect.is_panic()
                {
                    log.violation(format!("a handler fails: {defect}"));
                }
            });
        }
    }

    async fn account(&self, run: &Run, payer: Payer, now: UnixMillis) -> Option<Arc<Account>> {
        let period = self.zone.period_of(now);
        let place = (payer.key_id.as_uuid(), period.month);
        if let Some(account) = run.accounts.lock().get(&place) {
            return Some(Arc::clone(account));
        }
        let account = run
            .ledger
            .open_account(&*run.store, payer, period, self.zone.clone(), now)
            .await
            .ok()?;
        let account = Arc::new(account);
        run.accounts.lock().insert(place, Arc::clone(&account));
        Some(account)
    }

    async fn request(self: Arc<Self>, run: Arc<Run>, payer: Payer) {
        let now = self.clock.now();
        let Some(account) = self.account(&run, payer, now).await else {
            return;
        };
        let now = self.clock.now();
        if !account.period().contains(now) {
            return;
        }
        let (low, high) = self.plan.bound;
        let bound = Amounts {
            tokens: self.rng.range(low, high),
            nano: if self.plan.spends_all || self.rng.chance(50) {
                0
            } else {
                self.rng.range(low, high)
            },
        };
        let request_id = RequestId::from_uuid(self.rng.uuid(now));
        let open = OpenRequest {
            request_id,
            payer,
            period: account.period().month,
            local_day: account.local_day(now),
            started_at: now,
            endpoint: Endpoint::ChatCompletions,
            streams: true,
            requested_model: Arc::from("model"),
            hold: HoldTerms {
                bound,
                leased: ScopeSet::default(),
                input_estimate: self.rng.range(0, bound.tokens),
            },
            caller: Caller {
                ip: None,
                user_agent: None,
            },
        };
        if self.rng.per_mille(self.plan.poisoned) {
            self.database.poison(request_id);
        }
        self.log.count(|f| &f.requests);
        let asked_at = self.now();
        self.requests.lock().insert(
            request_id,
            Request {
                site: run.site,
                boot: run.boot,
                payer,
                month: open.period,
                bound,
                phase: Phase::Waiting,
                opened_at: 0,
                answered_at: 0,
                progress: Vec::new(),
                end: None,
                may_be_missing: false,
                may_be_cut: false,
            },
        );
        let lane = &run.lanes[self.rng.index(run.lanes.len())];
        let estimate = open.hold.input_estimate;
        let patience = if self.plan.spends_all || self.rng.chance(90) {
            Patience::QuotaWait
        } else {
            Patience::None
        };
        let record = Box::new(UsageRecord::begun(open));
        let holding = run.ledger.hold(lane, &account, record, now, patience);
        let held = if self.rng.chance(self.plan.leavers) {
            let leaves_after = Duration::from_millis(self.rng.range(0, 1_200).unsigned_abs());
            tokio::time::timeout(leaves_after, holding).await
        } else {
            Ok(holding.await)
        };
        if run.life.is_dead() {
            return;
        }
        match held {
            Err(_left) => {
                self.log.count(|f| &f.left);
                self.log
                    .event(50, || format!("i{} {request_id} leaves", run.site));
                self.with(request_id, |r| r.phase = Phase::Left);
            }
            Ok(Err(Refused { refusal, .. })) => {
                self.log.event(51, || {
                    format!("i{} {request_id} of {bound:?}: {refusal:?}", run.site)
                });
                self.with(request_id, |r| r.phase = Phase::Refused);
                self.judge_refusal(&run, request_id, asked_at, patience, refusal);
            }
            Ok(Ok(hold)) => {
                self.log.count(|f| &f.admitted);
                self.log.event(52, || {
                    format!("i{} {request_id} of {bound:?} is admitted", run.site)
                });
                let at = self.now();
                self.with(request_id, |r| {
                    r.phase = Phase::Open;
                    r.opened_at = at;
                });
                self.note_room(request_id, bound);
                self.handle(&run, lane, request_id, estimate, hold).await;
            }
        }
    }

    fn with<T>(&self, id: RequestId, change: impl FnOnce(&mut Request) -> T) -> T {
        let mut requests = self.requests.lock();
        change(requests.get_mut(&id).expect("a request"))
    }

    /// What happens to a request after its admission.
    async fn handle(
        &self,
        run: &Run,
        lane: &Arc<Lane>,
        request_id: RequestId,
        input: i64,
        hold: Hold,
    ) {
        let bound = self.with(request_id, |r| r.bound);
        if self.plan.spends_all {
            self.pause(0, 30).await;
            let end = end_of(Ending::Finished, Stage::Relaying, bound, 0, bound.tokens);
            self.end(run, request_id, hold, end, true).await;
            return;
        }
        self.pause(0, 25).await;
        if run.life.is_dead() {
            return;
        }
        if self.rng.chance(8) {
            self.end(run, request_id, hold, RequestEnd::withdrawn(), true)
                .await;
            return;
        }
        if self.rng.chance(5) {
            self.with(request_id, |r| {
                r.phase = Phase::Ended;
                r.end = Some((Ending::Panicked, Amounts::ZERO));
            });
            self.note_room(request_id, Amounts::ZERO.minus(bound));
            drop(hold);
            return;
        }
        let mut output = 0;
        let mut is_relaying = false;
        for _ in 0..self.rng.index(12) {
            self.pause(0, 80).await;
            if run.life.is_dead() {
                return;
            }
            is_relaying = true;
            output += self.rng.range(1, 30);
            let progress = Progress {
                request_id,
                output_tokens: output,
                reported: None,
            };
            let owed = (input + output).min(bound.tokens);
            let place = self.with(request_id, |r| {
                r.progress.push((owed, None));
                r.progress.len() - 1
            });
            lane.progress(&progress);
            // A journal that is full or failing leaves progress out.
            let is_kept = self.plan.sync_failures + self.plan.full_disks == 0;
            if self.rng.chance(40) && is_kept {
                // The lane writes at the end of the turn.
                tokio::time::sleep(Duration::from_millis(1)).await;
                if run.life.is_dead() {
                    return;
                }
                let at = self.now();
                self.with(request_id, |r| r.progress[place].1 = Some(at));
            }
        }
        self.pause(0, 50).await;
        if run.life.is_dead() {
            return;
        }
        let stage = if is_relaying {
            Stage::Relaying
        } else {
            Stage::Dispatched
        };
        let ending = match self.rng.index(10) {
            0 => Ending::ClientLeft,
            1 => Ending::UpstreamFailed,
            2 => Ending::Deadline,
            _ => Ending::Finished,
        };
        let owed = match self.rng.index(4) {
            0 => bound,
            1 => bound.plus(Amounts {
                tokens: self.rng.range(1, 50),
                nano: self.rng.range(0, 50),
            }),
            2 => Amounts::ZERO,
            _ => Amounts {
                tokens: self.rng.range(0, bound.tokens),
                nano: self.rng.range(0, bound.nano),
            },
        };
        let end = end_of(ending, stage, owed, input, output);
        let waits = self.rng.chance(80);
        self.end(run, request_id, hold, end, waits).await;
    }

    async fn end(&self, run: &Run, id: RequestId, hold: Hold, end: RequestEnd, waits: bool) {
        if run.life.is_dead() {
            return;
        }
        let charge = self.with(id, |r| {
            let charge = end.owed.max(Amounts::ZERO).min(r.bound);
            r.phase = Phase::Ended;
            r.end = Some((end.ending, charge));
            charge.minus(r.bound)
        });
        let written = hold.post(end);
        self.note_room(id, charge);
        let in_memory = run.ledger.records_in_memory();
        if in_memory > self.plan.max_in_memory {
            self.log
                .violation(format!("{in_memory} records are in memory"));
        }
        if waits && let Some(written) = written {
            written.await;
            if !run.life.is_dead() {
                let at = self.now();
                self.with(id, |r| {
                    r.phase = Phase::Answered;
                    r.answered_at = at;
                });
                self.log
                    .event(53, || format!("i{} {id} is answered", run.site));
            }
        }
    }

    /// Notes how much of each counter is in use in truth.
    fn note_room(&self, id: RequestId, change: Amounts) {
        if !self.plan.is_calm() {
            return;
        }
        let at = self.now();
        let (payer, month) = self.with(id, |r| (r.payer, r.month));
        let mut rooms = self.rooms.lock();
        for key in payer.counters(month) {
            let cap = self
                .database
                .look(|state| state.quotas.get(&key.scope).copied().unwrap_or_default());
            let history = rooms.entry(key).or_default();
            let before = history.last().map_or(cap.amounts(), |(_, room)| *room);
            history.push((at, before.minus(change)));
        }
    }

    /// The least that was free between two instants.
    fn least_room(&self, key: CounterKey, from: i64) -> Amounts {
        let cap = self
            .database
            .look(|state| state.quotas.get(&key.scope).copied().unwrap_or_default());
        let rooms = self.rooms.lock();
        let history = rooms.get(&key).map(Vec::as_slice).unwrap_or_default();
        let first = history.partition_point(|(at, _)| *at < from);
        history[first.saturating_sub(1)..]
            .iter()
            .map(|(_, room)| *room)
            .fold(cap.amounts(), Amounts::min)
    }

    fn judge_refusal(
        &self,
        run: &Run,
        id: RequestId,
        asked_at: i64,
        patience: Patience,
        refusal: Refusal,
    ) {
        let figure = match refusal {
            Refusal::Spent(_) => &self.log.figures.spent,
            Refusal::Held(_) => &self.log.figures.held,
            Refusal::Unavailable => &self.log.figures.unavailable,
            _ => &self.log.figures.other_refusals,
        };
        figure.fetch_add(1, Ordering::Relaxed);
        let waited = self.now() - asked_at;
        // A database that is slow to say what there is has longer.
        let most = if self.plan.is_calm() {
            QUOTA_WAIT
        } else {
            DECISION_WAIT
        };
        if waited > most + 20 {
            self.log
                .violation(format!("{id} waited {waited} ms to be refused"));
        }
        let (payer, month, bound) = self.with(id, |r| (r.payer, r.month, r.bound));
        let is_calm = self.plan.is_calm();
        match refusal {
            Refusal::Spent(no_room) => {
                if self.now() - self.disturbed_at.load(Ordering::Relaxed) < 3_000 {
                    return;
                }
                let key = payer
                    .counters(month)
                    .into_iter()
                    .find(|key| key.scope.kind == no_room.scope)
                    .expect("a scope");
                let unused = self.unused(key, run);
                if bound.fits(unused) {
                    self.log.violation(format!(
                        "{id}: {bound:?} is refused, {unused:?} are left: {no_room:?}"
                    ));
                }
            }
            Refusal::Held(_) if is_calm && patience == Patience::QuotaWait => {
                let rooms = payer
                    .counters(month)
                    .map(|key| self.least_room(key, asked_at));
                if rooms.iter().all(|room| bound.fits(*room)) {
                    self.log.violation(format!(
                        "{id}: {bound:?} is refused while {rooms:?} are idle; {}",
                        self.tell_leases(&payer.counters(month))
                    ));
                }
            }
            Refusal::Held(_) => {}
            Refusal::Closed if self.is_ending.load(Ordering::Relaxed) => {}
            _ if is_calm => self
                .log
                .violation(format!("{id}: {refusal:?} without a cause")),
            _ => {}
        }
    }

    /// What each instance has of some counters, for people.
    fn tell_leases(&self, keys: &[CounterKey]) -> String {
        self.database.look(|state| {
            let mut told = Vec::new();
            for (place, key) in keys.iter().enumerate() {
                let leases: Vec<_> = self
                    .sites()
                    .iter()
                    .filter_map(|site| {
                        let held = state.leases.get(&(site.instance_id, *key))?;
                        Some((site.number, held.tokens, held.nano))
                    })
                    .collect();
                let recall = state
                    .counters
                    .get(key)
                    .is_some_and(|counter| counter.recall);
                told.push(format!("scope {place}: {leases:?}, recall {recall}"));
            }
            told.join("; ")
        })
    }

    /// What is left by the database's count less what one instance has not posted.
    fn unused(&self, key: CounterKey, run: &Run) -> Amounts {
        let requests = self.requests.lock();
        self.database.look(|state| {
            let Some(counter) = state.counters.get(&key) else {
                let cap = state.quotas.get(&key.scope).copied().unwrap_or_default();
                return cap.amounts();
            };
            let unposted = requests
                .iter()
                .filter(|(id, r)| {
                    r.site == run.site
                        && r.payer.counters(r.month).contains(&key)
                        && !state.records.contains_key(id)
                })
                .map(|(_, r)| match (&r.end, r.phase) {
                    (Some((_, charge)), _) if r.boot == run.boot => *charge,
                    // A crash may have cut it off; nobody here knows what it costs.
                    (Some(_), _) | (None, Phase::Open | Phase::Waiting) => r.bound,
                    (None, _) => Amounts::ZERO,
                })
                .fold(Amounts::ZERO, Amounts::plus);
            counter.cap.amounts().minus(counter.used).minus(unposted)
        })
    }

    /// As many were admitted as fit; all others were told that the quota is spent.
    pub(crate) fn check_whole_holds(&self) -> Result<(), String> {
        let figure = |figure: &AtomicI64| figure.load(Ordering::Relaxed);
        let figures = &self.log.figures;
        let fitting = self.plan.cap.0 / self.plan.bound.0;
        let asked = figure(&figures.requests);
        let expected = (fitting.min(asked), (asked - fitting).max(0));
        let found = (figure(&figures.admitted), figure(&figures.spent));
        if found == expected {
            return Ok(());
        }
        Err(format!(
            "admitted and refused {found:?} instead of {expected:?}"
        ))
    }

    // ---- the end

    fn check_clean(&self, site: &Site, boot: usize) {
        if self.now() - self.disturbed_at.load(Ordering::Relaxed) < 6_000 {
            return;
        }
        let row = self.database.look(|state| state.row(site.instance_id));
        if let Some(row) = row
            && row.state == InstanceState::Live
            && !row.leases.is_empty()
        {
            self.log.violation(format!(
                "i{}.{boot} stopped clean with {:?}",
                site.number, row.leases
            ));
        }
        let requests = self.requests.lock();
        for (id, request) in &*requests {
            if request.site == site.number
                && matches!(request.phase, Phase::Open | Phase::Ended | Phase::Answered)
                && !request.may_be_missing
                && self
                    .database
                    .look(|state| checks::find(state, *id).is_none())
            {
                self.log.violation(format!(
                    "i{}.{boot} stopped clean without {id}: {request:?}",
                    site.number
                ));
            }
        }
    }

    /// Nothing goes wrong any more: everything comes to its end.
    async fn finish(self: &Arc<Self>) {
        if self.log.failed().is_some() {
            return;
        }
        self.is_quiet.store(true, Ordering::Relaxed);
        self.log.event(60, || "QUIET".to_owned());
        self.database.set_faults(Faults::default());
        for site in self.sites() {
            site.disk.sync_failures.store(0, Ordering::Relaxed);
            site.disk.is_full.store(false, Ordering::Relaxed);
            site.life.lock().burn(-1);
        }
        self.pause(2_500, 2_500).await;
        self.is_ending.store(true, Ordering::Relaxed);
        // The second round finds what the database lost while nobody wrote.
        for _round in 0..2 {
            for site in self.sites() {
                let is_closed = self.database.look(|state| {
                    state
                        .instances
                        .get(&site.instance_id)
                        .is_some_and(|i| i.state == InstanceState::Closed)
                });
                if !site.is_kept.load(Ordering::Relaxed) && !is_closed {
                    self.keep(&site);
                }
            }
            let patience = self.now() + 60_000;
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if self.log.failed().is_some() {
                    return;
                }
                if self.now() > patience {
                    self.log.violation("it does not come to its end");
                    return;
                }
                let sites = self.sites();
                for site in &sites {
                    if let Some(run) = &*site.run.lock() {
                        drop(run.close.lock().take());
                    }
                }
                if sites
                    .iter()
                    .all(|site| !site.is_kept.load(Ordering::Relaxed))
                {
                    break;
                }
            }
        }
        let (requests, log) = (self.requests.lock(), &self.log);
        self.database.look(|state| {
            if let Err(broken) = checks::check_end(state, &requests) {
                log.violation(broken);
            }
            for row in state.records.values() {
                if row.record.end.ending == Ending::Crashed {
                    log.count(|f| &f.recovered);
                }
            }
            log.figures.quarantined.fetch_add(
                i64::try_from(state.quarantine.len()).unwrap(),
                Ordering::Relaxed,
            );
            for counter in state.counters.values() {
                if !counter.over.fits(Amounts::ZERO) {
                    log.count(|f| &f.over_counters);
                }
            }
        });
    }
}

fn end_of(ending: Ending, stage: Stage, owed: Amounts, input: i64, output: i64) -> RequestEnd {
    RequestEnd {
        ending,
        stage,
        status: 200,
        error_code: None,
        usage: TokenUsage {
            input,
            output,
            ..TokenUsage::default()
        },
        basis: Basis::Reported,
        owed,
        ..RequestEnd::abandoned()
    }
}

enum Started {
    Running(Arc<Run>, JoinHandle<Finish>),
    Again,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Crash,
    PowerCut,
    GoBack,
    Resolve,
    Release,
    SetCap,
    Outage,
    FullDisk,
    Stop,
}
