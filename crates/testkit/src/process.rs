//! Programs under test: started, watched, ended.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::fail::fail;
use crate::stopwatch::Stopwatch;

/// Time between two looks at something that cannot be waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long what a process wrote before its end may be on its way to us.
const OUTPUTS_AT_MOST: Duration = Duration::from_secs(30);
/// How long one look at a port may take.
const LOOK_AT_MOST: Duration = Duration::from_secs(1);

/// A program to be started.
#[derive(Debug)]
#[must_use = "a program does nothing until it is started"]
pub struct Program {
    command: Command,
}

impl Program {
    /// Names the program by its path, such as `env!("CARGO_BIN_EXE_sluice")`.
    pub fn new(path: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(path),
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args<Arg: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = Arg>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable out of the environment that it inherits.
    pub fn without_env(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Starts it with an environment of only what [`env`](Self::env) adds after this.
    pub fn clear_env(mut self) -> Self {
        self.command.env_clear();
        self
    }

    /// Sets the folder in which it starts.
    pub fn current_dir(mut self, folder: impl AsRef<Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Starts it, without input, with its output captured; fails the test when it cannot be started.
    #[track_caller]
    pub fn start(mut self) -> RunningProcess {
        let name = self.command.get_program().to_string_lossy().into_owned();
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        match child {
            Ok(child) => RunningProcess::watch(name, child),
            Err(error) => fail(format_args!("cannot start {name}: {error}")),
        }
    }

    /// Starts it and waits for its end; fails the test when that takes longer than `at_most`.
    #[track_caller]
    pub fn run(self, at_most: Duration) -> FinishedProcess {
        let process = self.start();
        let status = process.wait_exit(at_most);
        process.join_readers();
        FinishedProcess {
            status,
            stdout: process.stdout(),
            stderr: process.stderr(),
        }
    }
}

/// What a program left behind.
#[derive(Debug)]
pub struct FinishedProcess {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its output.
    pub stdout: String,
    /// What it wrote to its error output.
    pub stderr: String,
}

/// A program that runs; it is killed when this is dropped.
///
/// All waits are in real time and block the calling thread.
#[derive(Debug)]
pub struct RunningProcess {
    name: String,
    pid: u32,
    child: Mutex<Child>,
    output: Arc<Output>,
    readers: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Stdout,
    Stderr,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutputState {
    lines: Vec<(Source, String)>,
    ended: usize,
}

impl RunningProcess {
    fn watch(name: String, mut child: Child) -> Self {
        let output = Arc::new(Output::default());
        let streams: [(Source, Option<Box<dyn Read + Send>>); 2] = [
            (
                Source::Stdout,
                child.stdout.take().map(|stream| Box::new(stream) as _),
            ),
            (
                Source::Stderr,
                child.stderr.take().map(|stream| Box::new(stream) as _),
            ),
        ];
        let readers = streams
            .into_iter()
            .filter_map(|(source, stream)| stream.map(|stream| (source, stream)))
            .map(|(source, stream)| {
                let output = Arc::clone(&output);
                thread::spawn(move || output.read(source, stream))
            })
            .collect();
        Self {
            name,
            pid: child.id(),
            child: Mutex::new(child),
            output,
            readers: Mutex::new(readers),
        }
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns what it has written to its output so far, in whole lines.
    pub fn stdout(&self) -> String {
        self.output.text(|source| source == Source::Stdout)
    }

    /// Returns what it has written to its error output so far, in whole lines.
    pub fn stderr(&self) -> String {
        self.output.text(|source| source == Source::Stderr)
    }

    /// Waits for a line of either output that contains the text, and returns the first; one that was
    /// written before counts. Fails the test after `at_most`, and at once when the program has
    /// closed its outputs without such a line.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str, at_most: Duration) -> String {
        let stopwatch = Stopwatch::start();
        let mut state = self.output.state.lock();
        loop {
            if let Some((_, line)) = state.lines.iter().find(|(_, line)| line.contains(text)) {
                return line.clone();
            }
            let left = at_most.saturating_sub(stopwatch.elapsed());
            if left.is_zero() || state.ended == 2 {
                drop(state);
                self.fail(&format!("did not write a line with {text:?}"));
            }
            // Whether it timed out is asked at the top.
            let _timed_out = self.output.changed.wait_for(&mut state, left);
        }
    }

    /// Waits for a line of either output that contains the text; `None` when the program ends before
    /// it wrote one. Fails the test after `at_most`.
    #[track_caller]
    pub fn wait_for_line_or_exit(&self, text: &str, at_most: Duration) -> Option<String> {
        let stopwatch = Stopwatch::start();
        let mut state = self.output.state.lock();
        loop {
            if let Some((_, line)) = state.lines.iter().find(|(_, line)| line.contains(text)) {
                return Some(line.clone());
            }
            if state.ended == 2 {
                return None;
            }
            let left = at_most.saturating_sub(stopwatch.elapsed());
            if left.is_zero() {
                drop(state);
                self.fail(&format!("did neither write a line with {text:?} nor end"));
            }
            // Whether it timed out is asked above.
            let _timed_out = self.output.changed.wait_for(&mut state, left);
        }
    }

    /// Waits until the port of 127.0.0.1 accepts connections; fails the test after `at_most` and at
    /// once when the program has ended.
    #[track_caller]
    pub fn wait_for_port(&self, port: u16, at_most: Duration) {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_open = || TcpStream::connect_timeout(&address, LOOK_AT_MOST).is_ok();
        self.wait_until(is_open, at_most, &format!("listen on port {port}"));
    }

    /// Waits until `GET path` at the port of 127.0.0.1 answers 200; fails the test after `at_most` and
    /// at once when the program has ended.
    #[track_caller]
    pub fn wait_for_ok(&self, port: u16, path: &str, at_most: Duration) {
        let is_ok = || http_status(port, path) == Some(200);
        self.wait_until(
            is_ok,
            at_most,
            &format!("answer 200 to {path} on port {port}"),
        );
    }

    #[track_caller]
    fn wait_until(&self, is_reached: impl Fn() -> bool, at_most: Duration, what: &str) {
        let stopwatch = Stopwatch::start();
        while !is_reached() {
            if let Some(status) = self.try_exit() {
                self.fail(&format!("ended ({status}) before it did {what}"));
            }
            if stopwatch.elapsed() >= at_most {
                self.fail(&format!("did not {what} within {at_most:?}"));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Returns how it ended; `None` while it runs.
    #[track_caller]
    pub fn try_exit(&self) -> Option<ExitStatus> {
        let status = self.child.lock().try_wait();
        status.unwrap_or_else(|error| fail(format_args!("cannot ask for {}: {error}", self.name)))
    }

    /// Waits for its end, and until all that it wrote is known; fails the test after `at_most`.
    #[track_caller]
    pub fn wait_exit(&self, at_most: Duration) -> ExitStatus {
        let stopwatch = Stopwatch::start();
        loop {
            if let Some(status) = self.try_exit() {
                self.wait_for_outputs();
                return status;
            }
            if stopwatch.elapsed() >= at_most {
                self.fail(&format!("did not end within {at_most:?}"));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until the readers have read what a process left in its outputs when it ended. A
    /// grandchild may hold them for longer: it is not waited for without end.
    fn wait_for_outputs(&self) {
        let stopwatch = Stopwatch::start();
        let mut state = self.output.state.lock();
        while state.ended < 2 {
            let left = OUTPUTS_AT_MOST.saturating_sub(stopwatch.elapsed());
            if left.is_zero() {
                return;
            }
            // Whether it timed out is asked at the top.
            let _timed_out = self.output.changed.wait_for(&mut state, left);
        }
    }

    /// Asks it to stop: SIGTERM.
    #[track_caller]
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Asks it to stop, unless it has ended by itself.
    #[track_caller]
    pub fn terminate_if_running(&self) {
        if self.try_exit().is_none() && !self.try_signal("TERM") && self.try_exit().is_none() {
            fail(format_args!("cannot send SIGTERM to {}", self.name));
        }
    }

    /// Sends a signal by its name without `SIG`, such as `KILL`, `HUP`, `STOP`, `CONT`; fails the test
    /// when the program has ended.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        if !self.try_signal(name) {
            fail(format_args!(
                "cannot send SIG{name} to {}: does it run?",
                self.name
            ));
        }
    }

    fn try_signal(&self, name: &str) -> bool {
        // A process that was waited for has given its id back; it may be another's now.
        let child = &mut self.child.lock();
        let is_running = matches!(child.try_wait(), Ok(None));
        is_running
            && Command::new("kill")
                .arg(format!("-{name}"))
                .arg(self.pid.to_string())
                .status()
                .is_ok_and(|status| status.success())
    }

    /// Kills it and waits for its end, and until all that it wrote is known.
    pub fn kill(&self) {
        self.kill_only();
        self.wait_for_outputs();
    }

    fn kill_only(&self) {
        let mut child = self.child.lock();
        // It may have ended by itself.
        let _ended_already = child.kill();
        let _ended_already = child.wait();
    }

    fn join_readers(&self) {
        let readers = std::mem::take(&mut *self.readers.lock());
        for reader in readers {
            let _its_panic = reader.join();
        }
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        fail(format_args!(
            "{} {what}; its output:\n{}",
            self.name,
            self.output.text(|_| true)
        ))
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        // The readers end by themselves: not waited for, since a grandchild may hold the outputs.
        self.kill_only();
    }
}

impl Output {
    fn read(&self, source: Source, stream: Box<dyn Read + Send>) {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches(['\r', '\n'])
                .to_owned();
            self.state.lock().lines.push((source, text));
            self.changed.notify_all();
            line.clear();
        }
        self.state.lock().ended += 1;
        self.changed.notify_all();
    }

    fn text(&self, is_wanted: impl Fn(Source) -> bool) -> String {
        let state = self.state.lock();
        let mut text = String::new();
        for (_, line) in state.lines.iter().filter(|(source, _)| is_wanted(*source)) {
            let _never_fails = writeln!(text, "{line}");
        }
        text
    }
}

/// Returns the status that a GET is answered; `None` when it is not answered at all.
fn http_status(port: u16, path: &str) -> Option<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, LOOK_AT_MOST).ok()?;
    stream.set_read_timeout(Some(LOOK_AT_MOST)).ok()?;
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpSocket;

    use super::*;
    use crate::upstream::{FakeUpstream, Script};

    const SOON: Duration = Duration::from_mins(1);

    fn shell(script: &str) -> Program {
        Program::new("sh").arg("-c").arg(script)
    }

    #[test]
    fn both_outputs_are_captured_and_the_status_told() {
        let finished = shell("echo one; echo two >&2; printf three; exit 3").run(SOON);
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!(
            (finished.stdout.as_str(), finished.stderr.as_str()),
            ("one\nthree\n", "two\n")
        );
    }

    #[test]
    fn the_environment_is_what_the_test_says() {
        let finished = shell("echo \"$A-$HOME\"")
            .clear_env()
            .env("A", "1")
            .run(SOON);
        assert_eq!(finished.stdout, "1-\n");
        assert_eq!(shell("pwd").current_dir("/").run(SOON).stdout, "/\n");
    }

    #[test]
    fn a_line_is_waited_for_and_a_signal_delivered() {
        let process = shell(
            "trap 'echo stopping; exit 0' TERM; echo ready on 7; while :; do sleep 0.01; done",
        )
        .start();
        assert_eq!(process.wait_for_line("ready", SOON), "ready on 7");
        assert_eq!(process.try_exit(), None);
        process.terminate();
        assert_eq!(process.wait_exit(SOON).code(), Some(0));
        assert_eq!(process.wait_for_line("stopping", SOON), "stopping");
    }

    #[test]
    #[should_panic(expected = "did not write a line with \"ready\"; its output:\nbroken")]
    fn a_program_that_ends_early_fails_the_wait_at_once() {
        shell("echo broken >&2")
            .start()
            .wait_for_line("ready", Duration::from_mins(1));
    }

    #[test]
    fn the_end_of_a_program_ends_the_wait_for_a_line() {
        let wait = |script| shell(script).start().wait_for_line_or_exit("ready", SOON);
        assert_eq!(wait("echo ready; sleep 60").as_deref(), Some("ready"));
        assert_eq!(wait("echo broken"), None);
    }

    /// What a program wrote last is read by other threads, which may come later than its end.
    #[test]
    fn all_that_a_program_wrote_is_known_when_its_end_was_waited_for() {
        let script = "i=0; while [ $i -lt 500 ]; do echo line $i >&2; i=$((i + 1)); done";
        for _ in 0..20 {
            let process = shell(script).start();
            assert!(process.wait_exit(SOON).success());
            assert_eq!(process.stderr().lines().last(), Some("line 499"));
        }
        let process = shell(&format!("{script}; echo over; exec sleep 60")).start();
        process.wait_for_line("over", SOON);
        process.kill();
        assert_eq!(process.stderr().lines().last(), Some("line 499"));
    }

    /// A port that nobody else is given and at which nobody listens, as long as the socket lives.
    fn silent_port() -> (TcpSocket, u16) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    #[test]
    #[should_panic(expected = "before it did listen on port")]
    fn a_port_of_a_program_that_ended_is_not_waited_for() {
        let (_socket, port) = silent_port();
        shell("exit 1")
            .start()
            .wait_for_port(port, Duration::from_mins(1));
    }

    #[test]
    fn a_program_is_killed_when_it_is_dropped() {
        let process = shell("exec sleep 60").start();
        let pid = process.pid().to_string();
        drop(process);
        let is_alive = Command::new("kill")
            .arg("-0")
            .arg(pid)
            .stderr(Stdio::null())
            .status();
        assert!(!is_alive.unwrap().success());
    }

    #[test]
    fn ports_and_answers_are_waited_for() {
        let upstream = FakeUpstream::start();
        upstream.script_for_path("/livez", Script::body(200, "text/plain", "ok"));
        upstream.script_for_path("/readyz", Script::refuse(503));
        let process = shell("exec sleep 60").start();
        process.wait_for_port(upstream.port(), SOON);
        process.wait_for_ok(upstream.port(), "/livez", SOON);
        assert_eq!(http_status(upstream.port(), "/readyz"), Some(503));
        let (_socket, port) = silent_port();
        assert_eq!(http_status(port, "/livez"), None);
    }
}
