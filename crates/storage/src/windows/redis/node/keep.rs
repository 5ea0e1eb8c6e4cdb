//! The task that looks after one server: connects, watches, and probes when it was lost.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, Value, cmd};
use tokio::time::timeout;

use super::{Connection, Lines, Node, Origin, ask};
use crate::windows::redis::script::{Call, Script, ScriptHashes};
use crate::windows::redis::server::ServerFacts;
use crate::windows::redis::url::Host;
use crate::windows::status::{LocalReason, NodeMode};

/// How often a server that is well is watched.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How long making the connections may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// Connections on which so many probes had no answer are made anew.
const DEAD_AFTER_PROBES: u32 = 2;

/// Why a server cannot be used.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error("{0}")]
    Redis(#[from] RedisError),
    #[error("no answer in time")]
    Slow,
    #[error("it is no master")]
    NoMaster,
    #[error("its address leads to several servers")]
    SeveralServers,
    #[error("no sentinel knows the service")]
    NoSentinel,
    #[error("it gave an odd answer")]
    Odd,
}

impl Node {
    /// Looks after the server for ever.
    pub(in crate::windows::redis) async fn keep(&self) {
        let mut silent_probes = 0;
        loop {
            let due = self.gate.probe_in(self.now()).unwrap_or(WATCH_EVERY);
            tokio::select! {
                () = tokio::time::sleep(due) => {}
                // Something has changed: what is due is looked up again.
                () = self.wake.notified() => {
                    if !self.gate.is_closed() {
                        continue;
                    }
                }
            }
            if self.gate.is_closed() {
                self.watch().await;
            } else if let Some(probe) = self.gate.begin_probe(self.now()) {
                let outcome = self.probe().await;
                self.report.lock().probes += 1;
                let is_well = outcome.is_ok();
                match outcome {
                    Ok(()) => silent_probes = 0,
                    Err(error) => {
                        let reason = match &error {
                            KeepError::Slow => LocalReason::Slow,
                            _ => LocalReason::NotConnected,
                        };
                        self.set_mode(NodeMode::Local(reason), Some(error.to_string()));
                        silent_probes += 1;
                        if silent_probes >= DEAD_AFTER_PROBES || !matches!(error, KeepError::Slow) {
                            *self.lines.write() = None;
                            silent_probes = 0;
                            // It may have moved.
                            self.moved.notify_one();
                        }
                    }
                }
                self.gate.end_probe(probe, is_well, self.now());
                if is_well {
                    self.tell_mode();
                }
            }
        }
    }

    /// Looks at a server that is asked by decisions all the time; where those are few, this is what
    /// finds out that it is gone.
    async fn watch(&self) {
        let Some(lines) = self.lines.read().clone() else {
            self.gate.open(self.now());
            return;
        };
        let Some(pass) = self.gate.enter() else {
            return;
        };
        match self.look(&lines).await {
            Ok(()) => {
                self.gate.succeed(pass);
                self.tell_mode();
            }
            Err(KeepError::Redis(error)) => {
                self.judge(&error, Some(pass), &lines);
            }
            Err(error) => {
                if self.gate.fail(pass, self.now()) {
                    self.lost(LocalReason::Slow, &error.to_string());
                }
            }
        }
    }

    fn tell_mode(&self) {
        if self.rest_left().is_zero() {
            self.set_mode(NodeMode::Redis, None);
            return;
        }
        let mode = self.report.lock().mode;
        if mode != NodeMode::Local(LocalReason::ClockJumped) {
            self.set_mode(NodeMode::Local(LocalReason::Forgetful), None);
        }
    }

    /// Tries whether the server is there and answers in time.
    async fn probe(&self) -> Result<(), KeepError> {
        let lines = self.lines.read().clone();
        let lines = match lines {
            Some(lines) => lines,
            None => timeout(CONNECT_DEADLINE, self.connect())
                .await
                .map_err(|_elapsed| KeepError::Slow)??,
        };
        self.look(&lines).await?;
        *self.lines.write() = Some(lines);
        Ok(())
    }

    /// Compares the server with the one that was last seen in its place, within the deadline of
    /// decisions.
    async fn look(&self, lines: &Lines) -> Result<(), KeepError> {
        let mut call = Call::new(Script::Watch, vec![self.server_name.clone()]);
        call.text(&*lines.identity)
            .number(crate::windows::local::millis(self.settings.memory))
            .flag(self.take_jump());
        let mut connection = lines.connections.first().cloned().ok_or(KeepError::Odd)?;
        let sent = self.local.now();
        let reply = timeout(
            self.settings.deadline,
            ask(&mut connection, &call, &lines.hashes),
        )
        .await
        .map_err(|_elapsed| KeepError::Slow)??;
        let Value::Array(numbers) = reply else {
            return Err(KeepError::Odd);
        };
        let [Value::Int(server_ms), Value::Int(rest_ms)] = numbers.as_slice() else {
            return Err(KeepError::Odd);
        };
        let unsigned = |number: &i64| u64::try_from(*number).unwrap_or(0);
        if *rest_ms > 0 {
            self.rest(Duration::from_millis(unsigned(rest_ms)));
        }
        self.observe(sent, unsigned(server_ms));
        Ok(())
    }

    /// Returns true once for each jump of the server's clock.
    fn take_jump(&self) -> bool {
        std::mem::take(&mut self.report.lock().has_jumped)
    }

    async fn connect(&self) -> Result<Lines, KeepError> {
        let host = match &self.origin {
            Origin::At(host) => host.clone(),
            Origin::Sentinels { hosts, service } => self.find_master(hosts, service).await?,
        };
        let client = Client::open(self.settings.target.connection_info(&host))?;
        let mut connections = Vec::with_capacity(self.settings.connections);
        let mut facts: Option<ServerFacts> = None;
        for _ in 0..self.settings.connections.max(1) {
            let mut connection = connect(&client).await?;
            let found = ServerFacts::ask(&mut connection).await?;
            if facts
                .as_ref()
                .is_some_and(|facts| facts.identity != found.identity)
            {
                return Err(KeepError::SeveralServers);
            }
            facts = Some(found);
            connections.push(Connection(connection));
        }
        let (Some(facts), Some(first)) = (facts, connections.first_mut()) else {
            return Err(KeepError::Odd);
        };
        if !facts.is_master {
            return Err(KeepError::NoMaster);
        }
        let mut hashes = ScriptHashes::default();
        for script in Script::ALL {
            let hash: String = cmd("SCRIPT")
                .arg("LOAD")
                .arg(script.text())
                .query_async(&mut first.0)
                .await?;
            hashes.set(script, hash);
        }
        self.warn(&facts.warnings);
        Ok(Lines {
            connections: connections.into(),
            hashes: Arc::new(hashes),
            identity: facts.identity.into(),
        })
    }

    /// Says what is wrong with how the server is set up, once.
    fn warn(&self, warnings: &[String]) {
        let mut report = self.report.lock();
        let are_known = report.warnings == warnings;
        report.warnings = warnings.to_vec();
        drop(report);
        if !are_known {
            let server = self.origin.to_string();
            for warning in warnings {
                tracing::warn!(%server, "Redis counts window limits badly: {warning}");
            }
        }
    }

    async fn find_master(&self, sentinels: &[Host], service: &str) -> Result<Host, KeepError> {
        let mut failure = KeepError::NoSentinel;
        for sentinel in sentinels {
            let client = Client::open(self.settings.target.sentinel_info(sentinel))?;
            let asking = async {
                let mut connection = connect(&client).await?;
                let found: Option<(String, u16)> = cmd("SENTINEL")
                    .arg("get-master-addr-by-name")
                    .arg(service)
                    .query_async(&mut connection)
                    .await?;
                Ok::<_, RedisError>(found)
            };
            // One that is gone must not take the time of all.
            match timeout(CONNECT_DEADLINE / 4, asking).await {
                Ok(Ok(Some((name, port)))) => return Ok(Host { name, port }),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => failure = error.into(),
                Err(_elapsed) => failure = KeepError::Slow,
            }
        }
        Err(failure)
    }
}

/// Makes a connection without time-outs of its own.
pub(in crate::windows::redis) async fn connect(
    client: &Client,
) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}
