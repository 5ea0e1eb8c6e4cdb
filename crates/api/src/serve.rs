//! Runs the relay: threads, background tasks, start and end.
//!
//! One thread per core relays, each with its own runtime, listener and upstream connections. The
//! calling thread owns everything that talks to the database.

mod begin;
mod retired;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use sluice_accounting::crash;
use sluice_accounting::journal::{self, FolderDisk, Journal};
use sluice_accounting::{Finish, Identity, Ledger, LedgerOptions, StartError, Writer};
use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::key::KeyHasher;
use sluice_domain::ports::LedgerStore;
use sluice_storage::secret::Vault;
use sluice_storage::{Backend, Storage, StorageOptions};
use sluice_upstream_pool::{ClientOptions, Dispatcher, HealthRegistry};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, AdminState};
use crate::app::{App, Worker, build_routing};
use crate::attention::{self, AccountsState};
use crate::auth::Grants;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::data_folder::{DataFolder, InstanceIdentity};
use crate::database::{Standing, bounded};
use crate::error::chain;
use crate::feed::Follower;
use crate::listen::Listeners;
use crate::metrics::Metrics;
use crate::relay::Board;
use crate::server;
use crate::snapshot::{Keeper, SnapshotFile, SnapshotKey};
use crate::windows::{Gate, counting};

use self::begin::{begin, join};

/// How long requests may take to end after they were told to.
const ENDING_GRACE: Duration = Duration::from_secs(5);
/// How long the writer may take to post what is left.
const POSTING_GRACE: Duration = Duration::from_secs(20);
/// How often the database is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(2);
/// How often, while it is not.
const PING_AWAY_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked whether what is known is too old.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// How often the calendar of the tenants is written ahead.
const CALENDAR_EVERY: Duration = Duration::from_hours(1);

/// Everything that a running instance needs.
pub struct Setup {
    /// The settings.
    pub config: Config,
    /// Who this instance is.
    pub identity: InstanceIdentity,
    /// The data folder; its lock is held as long as the instance runs.
    pub folder: DataFolder,
    /// Where the database is.
    pub storage_options: StorageOptions,
    /// Hashes presented keys.
    pub hasher: KeyHasher,
    /// Opens sealed upstream keys.
    pub vault: Vault,
    /// Authenticates the config snapshot.
    pub snapshot_key: SnapshotKey,
    /// Is called once when requests are accepted, with the address.
    pub on_ready: Box<dyn FnOnce(SocketAddr) + Send>,
}

/// Serves until the process is asked to stop, then ends what is open and posts what is left.
///
/// # Errors
/// What kept it from starting, or from ending cleanly.
pub fn run(setup: Setup) -> anyhow::Result<()> {
    sluice_upstream_pool::install_crypto_provider();
    raise_file_limit(setup.config.server.max_connections);
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // The journal, the config snapshot and TLS roots are the only blocking work.
        // Passwords that are checked have their own share.
        .max_blocking_threads(3 + admin::password::AT_ONCE)
        .build()
        .context("the runtime cannot be started")?;
    control.block_on(serve(setup))
}

async fn serve(setup: Setup) -> anyhow::Result<()> {
    let Setup {
        config,
        identity,
        folder,
        storage_options,
        hasher,
        vault,
        snapshot_key,
        on_ready,
    } = setup;
    // From here on a signal to stop is never the end of the process in mid-work.
    let mut signals = Signals::install()?;
    let listeners = Listeners::bind(config.listen, config.server.worker_count())?;
    let address = listeners.address();
    let admin_listener = config.admin.listen.map(bind_admin).transpose()?;

    let clock = SystemClock;
    let max_age = config.snapshot.max_age;
    let storage = Storage::open_lazily(&storage_options)
        .await
        .context("the database cannot be opened")?;
    // The file of SQLite is as near as a snapshot would be.
    let file = (storage.backend() == Backend::Postgres && !max_age.is_zero())
        .then(|| SnapshotFile::new(folder.snapshot_path(), snapshot_key, identity.instance_id));
    let begun = begin(&storage, clock, file.as_ref(), max_age).await?;
    let standing = Arc::new(begun.standing);
    let (ledger, writer) = start_ledger(
        &config,
        Arc::new(storage.clone()),
        &standing,
        clock,
        &folder,
        &identity,
    )
    .await?;
    if ledger.is_claimed() {
        folder.confirm_boot(identity.boot_id)?;
    }
    crash::point("start.confirmed");
    let metrics = Metrics::new();
    let grants = Grants::new(
        hasher.clone(),
        config.keys.cache_size,
        storage.clone(),
        ledger.clone(),
        Arc::clone(&standing),
        Handle::current(),
        Arc::clone(&metrics),
    );
    grants.import(begun.grants);
    let windows = counting::counters(&config.limits, identity.boot_id)
        .context("limits.redis_url cannot be used")?;
    let gate = Gate::new(&config.limits, windows.clone(), clock, Arc::clone(&metrics));
    let keeper = file.map(|file| Keeper::new(file, config.snapshot.max_keys));
    let max_drains = config.relay.max_drains;
    let health = HealthRegistry::new();
    let app = Arc::new(App {
        config,
        clock,
        storage,
        control_lane: ledger.lane(),
        ledger,
        grants,
        gate,
        routing: ArcSwap::from_pointee(build_routing(&begun.routing, &vault, &health)),
        health,
        stored_routing: ArcSwap::from_pointee(begun.routing),
        vault,
        metrics,
        accounts: AccountsState::default(),
        control: Handle::current(),
        standing,
        drains: Arc::new(Semaphore::new(max_drains)),
        draining: Arc::default(),
        ending: Arc::default(),
    });

    let stopped = CancellationToken::new();
    let background = TaskTracker::new();
    let follower = Follower::new(Arc::clone(&app), begun.feed_position, keeper, begun.used);
    background.spawn(follower.run(stopped.clone()));
    background.spawn(keep_calendar(Arc::clone(&app), stopped.clone()));
    background.spawn(watch_database(Arc::clone(&app), stopped.clone()));
    counting::rank(&app, &windows, identity.instance_id).await;
    background.spawn(counting::keep(
        Arc::clone(&app),
        windows,
        identity.instance_id,
        stopped.clone(),
    ));
    let folder = Arc::new(folder);
    if !app.ledger.is_claimed() {
        let (app, folder) = (Arc::clone(&app), Arc::clone(&folder));
        background.spawn(confirm_boot(app, folder, identity.boot_id, stopped.clone()));
    }
    background.spawn(attention::watch(Arc::clone(&app), stopped.clone()));
    background.spawn(look_after_retired(
        Arc::clone(&app),
        Arc::clone(&folder),
        stopped.clone(),
    ));
    if let Some(listener) = admin_listener {
        let address = listener
            .local_addr()
            .context("the admin address is not known")?;
        let state = Arc::new(AdminState::new(Arc::clone(&app), hasher));
        background.spawn(admin::listener::run(state, listener));
        tracing::info!(%address, "accepting admin requests");
    }
    let posting_closed = CancellationToken::new();
    let mut writer =
        tokio::spawn(writer.run(posting_closed.clone().cancelled_owned(), POSTING_GRACE));
    let control_lane = tokio::spawn(Arc::clone(&app.control_lane).run());

    crash::point("start.serving");
    let threads = start_workers(&app, listeners)?;
    tracing::info!(%address, workers = threads.len(), instance.id = %identity.instance_id, "accepting requests");
    on_ready(address);

    let ended = drain(&app, threads, &mut signals, &mut writer).await;
    crash::point("stop.drained");
    posting_closed.cancel();
    let finish = match ended {
        Ok(Some(finish)) => Ok(finish),
        Ok(None) => writer
            .await
            .context("the writer of the ledger ended by a defect"),
        Err(error) => {
            drop(writer.await);
            Err(error)
        }
    };
    control_lane.abort();
    stopped.cancel();
    background.close();
    background.wait().await;
    app.storage.close().await;
    let finish = finish?;
    let journal_path = folder.journal_path();
    if finish == Finish::Settled {
        folder.retire_instance()?;
    }
    drop(folder);
    match finish {
        Finish::Clean => {
            tracing::info!("stopped");
            Ok(())
        }
        Finish::Left { records: 0 } => bail!(
            "the database did not say at the end that it has everything; the next start from this \
             data folder makes sure of it"
        ),
        Finish::Left { records } => bail!(
            "{records} usage records could not be posted before the end; they are in the journal, and \
             the next start from this data folder posts them"
        ),
        Finish::Settled => bail!(
            "an operator has settled this instance with `sluice ledger resolve`; what it had was \
             handed in. Start again: it will be a new instance"
        ),
        Finish::LostIdentity => bail!(
            "another process uses the identity of this instance; give each instance its own data folder"
        ),
        Finish::JournalLost => bail!(
            "the journal cannot be written or read; what was open is recorded at the next start from \
             this data folder"
        ),
        Finish::PostsGone { from, oldest } => {
            bail!(posts_gone(
                identity.instance_id,
                &journal_path,
                from,
                oldest
            ))
        }
    }
}

/// Binds the listener of the admin API.
fn bind_admin(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let sockets = Listeners::bind(address, 1).context("the admin API cannot listen")?;
    let socket = sockets.into_iter().next().context("there is no socket")?;
    TcpListener::from_std(socket).context("the listening socket cannot be used")
}

/// Says what an operator can do about posts that neither the database nor the journal has.
fn posts_gone(instance: InstanceId, journal: &Path, from: i64, oldest: i64) -> String {
    format!(
        "the database went back to before post {from} of this instance, and the journal keeps only \
         those from {oldest} on. Restore a newer state of the database; if there is none, `sluice \
         ledger resolve {instance} --journal {}` gives up what is lost, and the next start from \
         this data folder hands in the rest",
        journal.display()
    )
}

/// Opens the journal, claims the instance for this start, and ends what the last one left open. An
/// instance that an operator has settled hands in what its journal has, and is followed by a new one.
/// While the database is away, the claim comes later.
async fn start_ledger(
    config: &Config,
    store: Arc<Storage>,
    standing: &Standing,
    clock: SystemClock,
    folder: &DataFolder,
    identity: &InstanceIdentity,
) -> anyhow::Result<(Ledger, Writer)> {
    let disk = FolderDisk::open(&folder.journal()?).context("the journal cannot be opened")?;
    let (journal, replay) = Journal::open(
        Arc::new(disk),
        journal_options(config),
        journal::Identity {
            instance_id: identity.instance_id,
            boot_id: identity.boot_id,
            previous_boot: identity.earlier_boots.last().copied(),
        },
    )
    .context("the journal cannot be opened")?;
    let options = ledger_options(config);
    let clock = Arc::new(clock);
    let instance_id = identity.instance_id;
    let identity = Identity {
        instance_id: identity.instance_id,
        earlier_boots: identity.earlier_boots.clone(),
        boot_id: identity.boot_id,
    };
    let started = if standing.is_joined() {
        sluice_accounting::start(options, store, clock, journal, replay, identity).await
    } else {
        let fits = standing.when_joined();
        sluice_accounting::start_away(options, store, clock, journal, replay, identity, fits)
    };
    match started {
        Err(StartError::OlderCopy) => bail!(
            "the data folder {} is a copy, or older than the database: another process has used this \
             instance's identity since. Use a fresh folder for a further instance",
            folder.path().display()
        ),
        Err(StartError::PostsGone { from, oldest }) => {
            let journal = folder.journal_path();
            bail!(posts_gone(instance_id, &journal, from, oldest))
        }
        Err(StartError::Settled) => {
            folder.retire_instance()?;
            bail!(
                "an operator had settled this instance with `sluice ledger resolve`; what its journal \
                 had was handed in. Start again: it will be a new instance"
            )
        }
        other => Ok(other?),
    }
}

/// Looks at instances of this folder that were settled, as soon as the database may be used. A stop
/// cuts it off as a crash would.
async fn look_after_retired(app: Arc<App>, folder: Arc<DataFolder>, stopped: CancellationToken) {
    let store = Arc::new(app.storage.clone()) as Arc<dyn LedgerStore>;
    let looks = async {
        app.standing.when_joined().await;
        let (ledger, journal) = (ledger_options(&app.config), journal_options(&app.config));
        retired::look_after(&folder, &store, ledger, journal).await;
    };
    stopped.run_until_cancelled(looks).await;
}

fn journal_options(config: &Config) -> journal::Options {
    journal::Options {
        segment_bytes: config.journal.segment_bytes,
        keep: config.journal.keep,
        max_bytes: config.journal.max_bytes,
    }
}

fn ledger_options(config: &Config) -> LedgerOptions {
    LedgerOptions {
        max_in_memory: config.ledger.max_in_memory,
        quota_wait: config.ledger.quota_wait,
        outage_reserve: config.ledger.outage_reserve,
        fsync: config.journal.fsync,
        blocks_on_threads: true,
    }
}

/// What asks the process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> anyhow::Result<Self> {
        let install = |kind| signal(kind).context("signals cannot be received");
        Ok(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
        })
    }

    async fn stop(&mut self) {
        tokio::select! {
            _asked = self.terminate.recv() => {}
            _asked = self.interrupt.recv() => {}
        }
    }
}

/// Waits for the signal to stop, then for open requests, then ends what is still open. Returns how the
/// writer of the ledger has ended, when it did so first.
async fn drain(
    app: &App,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
    signals: &mut Signals,
    writer: &mut tokio::task::JoinHandle<Finish>,
) -> anyhow::Result<Option<Finish>> {
    let mut finish = None;
    let is_any_thread_over = async {
        while !threads.iter().any(JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = signals.stop() => {}
        ended = writer => {
            finish = Some(ended.context("the writer of the ledger ended by a defect")?);
            tracing::error!("the writer of the ledger has ended; the process stops");
        }
        () = is_any_thread_over => tracing::error!("a thread of the relay has ended; the process stops"),
    }
    tracing::info!(
        connections = app.metrics.connections.get(),
        open_holds = app.ledger.stats().open_holds(),
        "stopping; open requests may end first"
    );
    crash::point("stop.asked");
    app.draining.give();
    tokio::select! {
        () = wait_for(&threads) => {}
        () = signals.stop() => tracing::info!("asked again; open requests end now"),
        () = tokio::time::sleep(app.config.server.drain) => {}
    }
    app.ending.give();
    if tokio::time::timeout(ENDING_GRACE, wait_for(&threads))
        .await
        .is_err()
    {
        bail!("some connections did not end in time");
    }
    for thread in threads {
        match thread.join() {
            Ok(result) => result?,
            Err(_panic) => bail!("a thread of the relay ended by a defect"),
        }
    }
    Ok(finish)
}

async fn wait_for(threads: &[JoinHandle<anyhow::Result<()>>]) {
    while !threads.iter().all(JoinHandle::is_finished) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Probes upstreams until the process is to stop. It runs on a thread of the relay: looking up a name
/// may block for long, and what the other one has to do blocks too.
async fn patrol(app: Arc<App>, dispatcher: Dispatcher) {
    tokio::select! {
        () = app.draining.wait() => {}
        () = dispatcher.patrol(|| app.routing.load_full()) => {}
    }
}

fn start_workers(
    app: &Arc<App>,
    listeners: Listeners,
) -> anyhow::Result<Vec<JoinHandle<anyhow::Result<()>>>> {
    let options = ClientOptions {
        max_idle_per_host: app.config.relay.max_idle_upstream_connections,
        ..ClientOptions::default()
    };
    // Each thread has connections of its own; what is learned about servers is for all.
    let first = Dispatcher::new(options);
    let mut threads = Vec::new();
    for (number, listener) in listeners.into_iter().enumerate() {
        let app = Arc::clone(app);
        let dispatcher = first.fork();
        let thread = std::thread::Builder::new()
            .name(format!("relay-{number}"))
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .max_blocking_threads(2)
                    .build()
                    .context("the runtime of a thread cannot be started")?;
                runtime.block_on(async move {
                    let lane = app.ledger.lane();
                    tokio::spawn(Arc::clone(&lane).run());
                    if number == 0 {
                        tokio::spawn(patrol(Arc::clone(&app), dispatcher.clone()));
                    }
                    let board = Arc::<Board>::default();
                    tokio::spawn(Arc::clone(&board).run(Arc::clone(&lane)));
                    let worker = Arc::new(Worker {
                        app,
                        lane,
                        board,
                        dispatcher,
                        detached: TaskTracker::new(),
                    });
                    server::accept(worker, listener).await
                })
            })
            .context("a thread cannot be started")?;
        threads.push(thread);
    }
    Ok(threads)
}

async fn keep_calendar(app: Arc<App>, stopped: CancellationToken) {
    let mut ticks = tokio::time::interval_at(Instant::now() + CALENDAR_EVERY, CALENDAR_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopped.cancelled() => return,
            _tick = ticks.tick() => {}
        }
        if !app.standing.is_joined() {
            continue;
        }
        if let Err(error) = app.storage.ensure_calendar(app.now()).await {
            tracing::warn!(
                error = chain(&error),
                "the calendar cannot be written ahead; it is tried again in an hour"
            );
        }
    }
}

/// Asks the database whether it is there. After a start without it, it is used only once it was found
/// to fit this binary.
async fn watch_database(app: Arc<App>, stopped: CancellationToken) {
    let standing = &app.standing;
    let mut ping_at = Instant::now();
    loop {
        standing.note_time();
        if Instant::now() >= ping_at {
            let is_up = match bounded(PING_EVERY, app.storage.ping()).await {
                Ok(()) => standing.is_joined() || join(&app).await,
                Err(_away) => false,
            };
            if standing.note_up(is_up) {
                if is_up {
                    tracing::info!("the database answers again");
                } else {
                    tracing::error!("the database does not answer");
                }
            }
            ping_at = Instant::now() + if is_up { PING_EVERY } else { PING_AWAY_EVERY };
        }
        tokio::select! {
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
    }
}

/// Notes in the data folder that the database knows of this start, once it does.
async fn confirm_boot(
    app: Arc<App>,
    folder: Arc<DataFolder>,
    boot_id: BootId,
    stopped: CancellationToken,
) {
    while !app.ledger.is_claimed() {
        tokio::select! {
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(WATCH_EVERY) => {}
        }
    }
    if let Err(error) = folder.confirm_boot(boot_id) {
        tracing::error!(
            error = chain(&error),
            "the start cannot be noted in the data folder"
        );
    }
}

/// Every stream needs two files. What the system does not allow is only logged.
fn raise_file_limit(max_connections: usize) {
    let wanted = u64::try_from(max_connections)
        .unwrap_or(u64::MAX)
        .saturating_mul(2)
        .saturating_add(256);
    match rlimit::increase_nofile_limit(wanted) {
        Ok(limit) if limit < wanted => {
            tracing::warn!(
                limit,
                wanted,
                "the limit of open files is lower than server.max_connections needs"
            );
        }
        Ok(_enough) => {}
        Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
    }
}
