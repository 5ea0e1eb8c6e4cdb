//! One server: its connections, whether it is asked, and what it may have forgotten.

mod keep;

pub(super) use self::keep::connect;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use sluice_domain::ports::WindowsUnavailable;
use sluice_domain::window::CounterTime;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Settings;
use super::clock::ClockWatch;
use super::gate::{Gate, Pass};
use super::script::{Call, ScriptHashes};
use super::url::Host;
use crate::windows::local::LocalWindows;
use crate::windows::status::{LocalReason, NodeMode, NodeStatus};

/// How a server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is there.
    At(Host),
    /// Sentinels know where.
    Sentinels { hosts: Vec<Host>, service: String },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::At(host) => host.fmt(f),
            Self::Sentinels { service, .. } => f.write_str(service),
        }
    }
}

/// One server.
#[derive(Debug)]
pub(super) struct Node {
    settings: Arc<Settings>,
    local: LocalWindows,
    pub(super) origin: Origin,
    /// The first of its slots in a cluster.
    pub(super) first_slot: Option<u16>,
    server_name: String,
    gate: Gate,
    lines: RwLock<Option<Lines>>,
    clock: Mutex<ClockWatch>,
    /// Until when it is not counted on, because it may have forgotten; by our clock, in ms.
    rests_until: AtomicU64,
    /// Wakes the task that looks after it.
    wake: Notify,
    /// Wakes the task that knows which server has what.
    pub(super) moved: Arc<Notify>,
    report: Mutex<Report>,
}

/// The connections, each of which carries any number of calls at once.
#[derive(Debug, Clone)]
struct Lines {
    connections: Arc<[Connection]>,
    hashes: Arc<ScriptHashes>,
    /// What identifies the server they lead to.
    identity: Arc<str>,
}

#[derive(Clone)]
struct Connection(MultiplexedConnection);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

#[derive(Debug)]
struct Report {
    mode: NodeMode,
    since: CounterTime,
    last_error: Option<String>,
    probes: u64,
    warnings: Vec<String>,
    /// Whether others must be told that the server's clock has jumped.
    has_jumped: bool,
}

impl Node {
    pub(super) fn new(
        settings: Arc<Settings>,
        local: LocalWindows,
        origin: Origin,
        first_slot: Option<u16>,
        moved: Arc<Notify>,
    ) -> Self {
        let server_name = super::key_name::server_name(&settings.prefix, first_slot);
        let since = local.now();
        Self {
            settings,
            local,
            origin,
            first_slot,
            server_name,
            gate: Gate::new(),
            lines: RwLock::default(),
            clock: Mutex::default(),
            rests_until: AtomicU64::new(0),
            wake: Notify::new(),
            moved,
            report: Mutex::new(Report {
                mode: NodeMode::Local(LocalReason::NotConnected),
                since,
                last_error: None,
                probes: 0,
                warnings: Vec::new(),
                has_jumped: false,
            }),
        }
    }

    /// Calls a script for a decision: only where the server is well, and with the deadline.
    ///
    /// `lane` chooses the connection: calls of one lane keep their order.
    pub(super) async fn decide(&self, lane: u64, call: &Call) -> Result<Value, WindowsUnavailable> {
        let pass = self.gate.enter().ok_or(WindowsUnavailable::Away)?;
        if self.rest_left() > Duration::ZERO {
            return Err(WindowsUnavailable::Forgetful);
        }
        self.call(lane, call, Some(pass), self.settings.deadline)
            .await
    }

    /// Calls a script behind the scenes: it may take longer, and says nothing about the server.
    pub(super) async fn send(&self, lane: u64, call: &Call) -> Result<Value, WindowsUnavailable> {
        if !self.gate.is_closed() {
            return Err(WindowsUnavailable::Away);
        }
        self.call(lane, call, None, super::SEND_DEADLINE).await
    }

    async fn call(
        &self,
        lane: u64,
        call: &Call,
        pass: Option<Pass>,
        deadline: Duration,
    ) -> Result<Value, WindowsUnavailable> {
        let lines = self.lines.read().clone().ok_or(WindowsUnavailable::Away)?;
        let at = usize::try_from(lane).unwrap_or(0) % lines.connections.len().max(1);
        let mut connection = lines
            .connections
            .get(at)
            .cloned()
            .ok_or(WindowsUnavailable::Away)?;
        let asking = ask(&mut connection, call, &lines.hashes);
        match timeout(deadline, asking).await {
            Ok(Ok(reply)) => {
                if let Some(pass) = pass {
                    self.gate.succeed(pass);
                }
                Ok(reply)
            }
            Ok(Err(error)) => Err(self.judge(&error, pass, &lines)),
            Err(_elapsed) => {
                if pass.is_some_and(|pass| self.gate.fail(pass, self.now())) {
                    self.lost(LocalReason::Slow, "no answer in time");
                }
                Err(WindowsUnavailable::Slow)
            }
        }
    }

    /// Draws the consequences of an error.
    fn judge(&self, error: &RedisError, pass: Option<Pass>, lines: &Lines) -> WindowsUnavailable {
        match error.kind() {
            ErrorKind::Server(
                ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::TryAgain,
            ) => {
                self.moved.notify_one();
                return WindowsUnavailable::Away;
            }
            // It was the master, and is not any more. A connection to another will be made.
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                self.disconnect(lines);
            }
            _ if error.is_io_error()
                || error.is_connection_dropped()
                || error.is_unrecoverable_error() =>
            {
                self.disconnect(lines);
            }
            _ => {
                if pass.is_some_and(|pass| self.gate.fail(pass, self.now())) {
                    self.lost(LocalReason::Failed, &error.to_string());
                }
                return WindowsUnavailable::Failed;
            }
        }
        self.gate.open(self.now());
        self.lost(LocalReason::NotConnected, &error.to_string());
        WindowsUnavailable::Away
    }

    /// Drops connections, unless they were replaced meanwhile.
    fn disconnect(&self, lines: &Lines) {
        let mut current = self.lines.write();
        if current
            .as_ref()
            .is_some_and(|now| Arc::ptr_eq(&now.connections, &lines.connections))
        {
            *current = None;
        }
    }

    /// Takes in a time that the server told. Where its clock has jumped ahead, nothing that it
    /// counted is relied on before that has left every window.
    pub(super) fn observe(&self, sent: CounterTime, server_ms: u64) {
        let received = self.local.now();
        if self.clock.lock().observe(sent, received, server_ms) {
            self.rest(self.settings.memory);
            self.report.lock().has_jumped = true;
            self.lost(LocalReason::ClockJumped, "its clock has jumped ahead");
        }
    }

    /// Stops counting on the server for some time.
    fn rest(&self, rest: Duration) {
        let until = self
            .local
            .now()
            .0
            .saturating_add(crate::windows::local::millis(rest));
        self.rests_until.fetch_max(until, Ordering::Relaxed);
    }

    fn rest_left(&self) -> Duration {
        let until = self.rests_until.load(Ordering::Relaxed);
        Duration::from_millis(until.saturating_sub(self.local.now().0))
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.local.now().0)
    }

    fn lost(&self, reason: LocalReason, error: &str) {
        self.set_mode(NodeMode::Local(reason), Some(error.to_owned()));
        self.wake.notify_one();
    }

    fn set_mode(&self, mode: NodeMode, error: Option<String>) {
        let mut report = self.report.lock();
        let has_changed = report.mode != mode;
        if has_changed {
            report.since = self.local.now();
            report.mode = mode;
        }
        if error.is_some() {
            report.last_error.clone_from(&error);
        }
        drop(report);
        if !has_changed {
            return;
        }
        let server = self.origin.to_string();
        match mode {
            NodeMode::Redis => tracing::info!(%server, "window limits are counted in Redis"),
            NodeMode::Local(reason) => tracing::warn!(
                %server,
                reason = reason.as_str(),
                error = error.unwrap_or_default(),
                "window limits are counted by each instance for itself"
            ),
        }
    }

    /// Returns how it stands.
    pub(super) fn status(&self) -> NodeStatus {
        let report = self.report.lock();
        NodeStatus {
            server: self.origin.to_string(),
            mode: report.mode,
            since: Duration::from_millis(self.local.now().0.saturating_sub(report.since.0)),
            last_error: report.last_error.clone(),
            probes: report.probes,
            warnings: report.warnings.clone(),
        }
    }
}

/// Calls a script; a server that does not have it is given its text, once.
async fn ask(
    connection: &mut Connection,
    call: &Call,
    hashes: &ScriptHashes,
) -> Result<Value, RedisError> {
    let reply = send(connection, &call.by_hash(hashes)).await;
    match reply {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            send(connection, &call.by_text()).await
        }
        reply => reply,
    }
}

async fn send(connection: &mut Connection, command: &Cmd) -> Result<Value, RedisError> {
    connection
        .0
        .send_packed_command(command)
        .await?
        .extract_error()
}
