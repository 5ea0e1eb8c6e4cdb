//! Redis servers of a test's own, which it may stop, restart and empty.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::fail::fail;
use crate::process::{Program, RunningProcess};
use crate::stopwatch::Stopwatch;

/// How long a server may take until it answers.
const UP_AT_MOST: Duration = Duration::from_secs(30);
/// Time between two looks at something that cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long one answer may take.
const ANSWER_AT_MOST: Duration = Duration::from_secs(10);
/// How often another port is tried when somebody was faster.
const PORTS: usize = 5;

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A Redis server on a port and in a folder of its own. It ends when it is dropped.
#[derive(Debug)]
pub struct RedisServer {
    binary: String,
    folder: PathBuf,
    address: SocketAddr,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    /// Its configuration file, where it has one.
    config: Option<PathBuf>,
    process: Option<RunningProcess>,
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk.
    #[track_caller]
    pub fn start(binary: &str) -> Self {
        Self::start_with(binary, &[])
    }

    /// Starts a server with further arguments.
    #[track_caller]
    pub fn start_with(binary: &str, arguments: &[&str]) -> Self {
        Self::make(binary, |_| Vec::new(), arguments, &[])
    }

    /// Starts a server that is told another time of day: the one that
    /// [`set_clock`](Self::set_clock) says. `faketime` is what [`faketime`](crate::faketime) returns.
    #[track_caller]
    pub fn start_with_clock(binary: &str, faketime: &str) -> Self {
        let clock = |folder: &Path| {
            let file = folder.join("clock");
            if let Err(error) = std::fs::write(&file, "+0") {
                fail(format_args!("cannot write {}: {error}", file.display()));
            }
            vec![
                // With the allocator of libc: jemalloc, with which Debian links Redis, asks for the time
                // while libfaketime is loaded.
                ("LD_PRELOAD".to_owned(), format!("{faketime} libc.so.6")),
                ("FAKETIME_NO_CACHE".to_owned(), "1".to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()),
                ("FAKETIME_FMT".to_owned(), "%s".to_owned()),
                (
                    "FAKETIME_TIMESTAMP_FILE".to_owned(),
                    file.display().to_string(),
                ),
            ]
        };
        Self::make(binary, clock, &[], &[])
    }

    /// Sets the clock of a server that was started with one: `+5` is five seconds ahead, a number of
    /// seconds since 1970 stands still.
    #[track_caller]
    pub fn set_clock(&self, time: &str) {
        // Replaced at once: a file that is half written would be another time.
        let (new, file) = (self.folder.join("clock.new"), self.folder.join("clock"));
        let written = std::fs::write(&new, time).and_then(|()| std::fs::rename(&new, &file));
        if let Err(error) = written {
            fail(format_args!("cannot set the clock: {error}"));
        }
    }

    /// Starts a sentinel that watches a server under the name `main`.
    #[track_caller]
    pub fn start_sentinel(binary: &str, master: &Self) -> Self {
        let lines = format!(
            "sentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n",
            master.address.port()
        );
        Self::make(
            binary,
            |_| Vec::new(),
            &["--sentinel"],
            &[("sentinel.conf", &lines)],
        )
    }

    /// Makes the folder, then starts the server.
    #[track_caller]
    fn make(
        binary: &str,
        environment: impl Fn(&Path) -> Vec<(String, String)>,
        arguments: &[&str],
        files: &[(&str, &str)],
    ) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder =
            std::env::temp_dir().join(format!("sluice-redis-{}-{number}", std::process::id()));
        if let Err(error) = std::fs::create_dir_all(&folder) {
            fail(format_args!("cannot make {}: {error}", folder.display()));
        }
        let mut server = Self {
            binary: binary.to_owned(),
            folder,
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            environment: Vec::new(),
            config: None,
            process: None,
        };
        server.environment = environment(&server.folder);
        for (name, text) in files {
            let file = server.folder.join(name);
            if let Err(error) = std::fs::write(&file, text) {
                fail(format_args!("cannot write {}: {error}", file.display()));
            }
            server.config = Some(file);
        }
        for _ in 0..PORTS {
            server.address = free_port();
            if server.try_start() {
                return server;
            }
        }
        fail(format_args!("{binary} does not start: no port was free"))
    }

    fn try_start(&mut self) -> bool {
        let mut program = Program::new(&self.binary);
        if let Some(config) = &self.config {
            program = program.arg(config);
        } else {
            program = program.args(["--save", ""]);
        }
        for (name, value) in &self.environment {
            program = program.env(name, value);
        }
        let process = program
            .args(["--bind", "127.0.0.1", "--loglevel", "notice"])
            .arg("--port")
            .arg(self.address.port().to_string())
            .arg("--dir")
            .arg(&self.folder)
            .args(&self.arguments)
            .start();
        let started = Stopwatch::start();
        while started.elapsed() < UP_AT_MOST {
            if process.try_exit().is_some() {
                return false;
            }
            if self
                .try_command(&["PING"])
                .is_some_and(|reply| reply == "PONG")
            {
                self.process = Some(process);
                return true;
            }
            thread::sleep(LOOK_AGAIN);
        }
        false
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it, when it runs, and starts it again on its port and folder.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        if !self.try_start() {
            fail(format_args!(
                "Redis does not start again on {}",
                self.address
            ));
        }
    }

    /// Runs a command and returns its answer as text: an array is one line for each element.
    #[track_caller]
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words)
            .unwrap_or_else(|| fail(format_args!("Redis on {} does not answer", self.address)))
    }

    fn try_command(&self, words: &[&str]) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(ANSWER_AT_MOST)).ok()?;
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            write!(request, "${}\r\n{word}\r\n", word.len()).ok()?;
        }
        stream.write_all(request.as_bytes()).ok()?;
        read_reply(&mut BufReader::new(stream))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
        // What is left is in the folder for temporary files.
        let _best_effort = std::fs::remove_dir_all(&self.folder);
    }
}

fn read_reply(from: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    from.read_line(&mut line).ok()?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1)?;
    match kind {
        "+" | "-" | ":" => Some(rest.to_owned()),
        "$" => {
            let Ok(length) = rest.parse::<usize>() else {
                return Some(String::new());
            };
            let mut bytes = vec![0; length + 2];
            from.read_exact(&mut bytes).ok()?;
            bytes.truncate(length);
            String::from_utf8(bytes).ok()
        }
        "*" => {
            let count = rest.parse::<usize>().unwrap_or(0);
            let parts: Option<Vec<String>> = (0..count).map(|_| read_reply(from)).collect();
            Some(parts?.join("\n"))
        }
        _ => None,
    }
}

#[track_caller]
fn free_port() -> SocketAddr {
    let bound =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    match bound {
        Ok(address) => address,
        Err(error) => fail(format_args!("no port is free: {error}")),
    }
}

/// Servers that each have a part of the keys.
#[derive(Debug)]
pub struct RedisCluster {
    servers: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts a cluster of so many masters, and waits until each knows all.
    #[track_caller]
    pub fn start(binary: &str, count: usize) -> Self {
        let servers: Vec<RedisServer> = (0..count)
            .map(|_| {
                let bus = free_port().port().to_string();
                let arguments = [
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    "2000",
                    "--cluster-port",
                    bus.as_str(),
                ];
                RedisServer::start_with(binary, &arguments)
            })
            .collect();
        let cluster = Self { servers };
        let count = cluster.servers.len().max(1);
        for (at, server) in cluster.servers.iter().enumerate() {
            let (first, next) = (16_384 * at / count, 16_384 * (at + 1) / count);
            let (first, last) = (first.to_string(), (next - 1).to_string());
            server.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            server.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]);
        }
        if let Some((first, others)) = cluster.servers.split_first() {
            for other in others {
                let port = other.address().port().to_string();
                let bus = other.arguments.last().cloned().unwrap_or_default();
                first.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
            }
        }
        let started = Stopwatch::start();
        while !cluster.is_ready() {
            if started.elapsed() > UP_AT_MOST {
                fail("the Redis servers do not become a cluster");
            }
            thread::sleep(LOOK_AGAIN);
        }
        cluster
    }

    fn is_ready(&self) -> bool {
        let known = format!("cluster_known_nodes:{}", self.servers.len());
        self.servers.iter().all(|server| {
            let info = server.command(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains(&known)
        })
    }

    /// Returns its servers.
    pub fn servers(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// Returns its URL.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self
            .servers
            .iter()
            .map(|server| server.address().to_string())
            .collect();
        format!("redis-cluster://{}", hosts.join(","))
    }
}
