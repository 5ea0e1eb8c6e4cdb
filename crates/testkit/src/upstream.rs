//! A provider that does what a script says, on a raw socket.

mod script;

mod quirk;

mod served;

mod state;

mod connection;

mod call;

mod answer;

mod stream;

mod openai;

mod anthropic;

mod azure;

mod play;

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::Location;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::TcpSocket;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

pub use self::azure::AzureRefusal;
pub use self::quirk::{ErrorShape, Quirk};
pub use self::script::{Gate, Script};
pub use self::served::{Served, ServedEnd};
use self::state::Shared;
use crate::fail::fail;

/// Connections that may wait to be accepted: tests open a thousand at once.
const BACKLOG: u32 = 4096;

/// A provider that speaks the OpenAI and the Anthropic protocol and does what scripts say.
///
/// It runs in a thread and runtime of its own, so that its time is real time also when a test
/// pauses its own, and it goes on when a test blocks. It stops, and closes all connections, when
/// it is dropped. The handle may be shared by threads.
///
/// # Which script
/// The first that there is: for the path, for the user, then the next in the queue of the key, the
/// next in the queue of the model, the next in the common queue, for the key, for the model, the
/// default. Lists of models take nothing from queues.
#[derive(Debug)]
pub struct FakeUpstream {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Runs timers in real time.
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeUpstream {
    /// Starts at a free port of 127.0.0.1.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_on(0)
    }

    /// Starts at the given port of 127.0.0.1, for instance where another one was stopped.
    #[track_caller]
    pub fn start_on(port: u16) -> Self {
        match Self::try_start(port) {
            Ok(upstream) => upstream,
            Err(error) => fail(format_args!(
                "the fake upstream cannot listen on port {port}: {error}"
            )),
        }
    }

    fn try_start(port: u16) -> io::Result<Self> {
        let shared = Arc::new(Shared::new());
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("fake-upstream".to_owned())
                .spawn(move || run(port, &shared, stopped, &ready))?
        };
        let (address, handle) = started.recv().map_err(io::Error::other)??;
        Ok(Self {
            address,
            shared,
            handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Returns `http://127.0.0.1:PORT/v1`.
    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Returns the address it listens at.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the port it listens at.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Adds a script to the common queue: each is for one request.
    pub fn script(&self, script: Script) -> &Self {
        self.shared.scripts.lock().queue.push_back(script);
        self
    }

    /// Adds a script to the queue of a key: each is for one request with that key.
    pub fn script_once_for_key(&self, key: &str, script: Script) -> &Self {
        self.shared
            .scripts
            .lock()
            .queue_by_key
            .entry(key.to_owned())
            .or_default()
            .push_back(script);
        self
    }

    /// Adds a script to the queue of a model: each is for one request for that model.
    pub fn script_once_for_model(&self, model: &str, script: Script) -> &Self {
        self.shared
            .scripts
            .lock()
            .queue_by_model
            .entry(model.to_owned())
            .or_default()
            .push_back(script);
        self
    }

    /// Sets the script for all requests with a key.
    pub fn script_for_key(&self, key: &str, script: Script) -> &Self {
        self.shared
            .scripts
            .lock()
            .by_key
            .insert(key.to_owned(), script);
        self
    }

    /// Sets the script for all requests for a model.
    pub fn script_for_model(&self, model: &str, script: Script) -> &Self {
        self.shared
            .scripts
            .lock()
            .by_model
            .insert(model.to_owned(), script);
        self
    }

    /// Sets the script for all requests whose body has this `user`: one of many at the same time.
    pub fn script_for_user(&self, user: &str, script: Script) -> &Self {
        self.shared
            .scripts
            .lock()
            .by_user
            .insert(user.to_owned(), script);
        self
    }

    /// Sets the script for all requests whose path ends so, such as `/models`.
    pub fn script_for_path(&self, end: &str, script: Script) -> &Self {
        self.shared
            .scripts
            .lock()
            .by_path
            .insert(end.to_owned(), script);
        self
    }

    /// Sets the script for all other requests.
    pub fn default_script(&self, script: Script) -> &Self {
        self.shared.scripts.lock().default = script;
        self
    }

    /// Sets the models that are listed.
    pub fn models(&self, ids: &[&str]) -> &Self {
        self.shared.scripts.lock().models = ids.iter().map(|id| (*id).to_owned()).collect();
        self
    }

    /// Is an Azure resource with these deployments from now on: other paths, credentials and
    /// deployments are refused as Azure does, before any script is asked.
    pub fn azure(&self, deployments: &[&str]) -> &Self {
        let deployments = deployments.iter().map(|name| (*name).to_owned()).collect();
        self.shared.scripts.lock().azure = Some(azure::Resource { deployments });
        self
    }

    /// Returns `http://127.0.0.1:PORT`, the base URL of an Azure resource.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes so many of the next connections as soon as they are accepted.
    pub fn close_next_connections(&self, count: usize) -> &Self {
        self.shared.scripts.lock().connections_to_close = count;
        self
    }

    /// Returns everything that was served so far, in order of arrival.
    pub fn served(&self) -> Vec<Served> {
        self.shared.log.lock().served.clone()
    }

    /// Returns what was served for a key so far.
    pub fn served_for(&self, key: &str) -> Vec<Served> {
        let mut served = self.served();
        served.retain(|served| served.key.as_deref() == Some(key));
        served
    }

    /// Returns what was served for a model so far.
    pub fn served_for_model(&self, model: &str) -> Vec<Served> {
        let mut served = self.served();
        served.retain(|served| served.model.as_deref() == Some(model));
        served
    }

    /// Returns the only request so far; fails the test when there is none or more than one.
    #[track_caller]
    pub fn only_served(&self) -> Served {
        match <[Served; 1]>::try_from(self.served()) {
            Ok([served]) => served,
            Err(all) => fail(format_args!(
                "expected one request, found {}:{}",
                all.len(),
                lines(&all)
            )),
        }
    }

    /// Returns how many connections were accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.log.lock().connections
    }

    /// Returns how many connections are open now.
    pub fn open_connections(&self) -> usize {
        self.shared.log.lock().open_connections
    }

    /// Returns what was wrong with requests that could not be read, such as those that the peer
    /// broke off.
    pub fn malformed(&self) -> Vec<String> {
        self.shared.log.lock().malformed.clone()
    }

    /// Returns the real time since the start, the measure of all times in [`Served`].
    pub fn elapsed(&self) -> Duration {
        self.shared.stopwatch.elapsed()
    }

    /// Waits until what was served satisfies the test, and returns it; the test fails when that takes
    /// longer than `at_most` of real time.
    ///
    /// It is asked again after each change, also of the number of connections.
    #[track_caller]
    pub fn wait_for(
        &self,
        is_reached: impl Fn(&[Served]) -> bool,
        at_most: Duration,
    ) -> impl Future<Output = Vec<Served>> {
        let caller = Location::caller();
        async move {
            // The timer of this runtime runs in real time, that of the caller may be paused.
            // The sleep is made inside of the task: it belongs to the runtime that it is made in.
            let mut timer = self
                .handle
                .spawn(async move { tokio::time::sleep(at_most).await });
            loop {
                let mut changed = pin!(self.shared.changed.notified());
                // From here on no change is missed.
                changed.as_mut().enable();
                let served = self.served();
                if is_reached(&served) {
                    timer.abort();
                    return served;
                }
                tokio::select! {
                    () = changed => {}
                    _ = &mut timer => fail(format_args!(
                        "{caller}: the fake upstream did not get there in {at_most:?}; connections: {} ({} open), requests:{}",
                        self.connections(),
                        self.open_connections(),
                        lines(&served)
                    )),
                }
            }
        }
    }

    /// Waits until so many requests have ended, in whatever way, and none is being answered.
    #[track_caller]
    pub fn wait_for_ends(
        &self,
        count: usize,
        at_most: Duration,
    ) -> impl Future<Output = Vec<Served>> {
        self.wait_for(
            move |all| all.len() >= count && all.iter().all(|s| s.end.is_some()),
            at_most,
        )
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed by the thread.
            let _its_panic = thread.join();
        }
    }
}

/// Describes requests for people.
fn lines(served: &[Served]) -> String {
    let mut text = String::new();
    for served in served {
        let Served {
            number,
            method,
            target,
            status,
            events_written,
            end,
            ..
        } = served;
        let _never_fails = write!(
            text,
            "\n  {number}: {method} {target}: status {status:?}, {events_written} events, {end:?}"
        );
    }
    text
}

/// The thread of a fake upstream.
fn run(
    port: u16,
    shared: &Arc<Shared>,
    stopped: oneshot::Receiver<()>,
    ready: &mpsc::Sender<io::Result<(SocketAddr, Handle)>>,
) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _starter_waits = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(async {
        let listener = match listen(port) {
            Ok(listener) => listener,
            Err(error) => {
                let _starter_waits = ready.send(Err(error));
                return;
            }
        };
        let _starter_waits = ready.send(
            listener
                .local_addr()
                .map(|address| (address, Handle::current())),
        );
        let accept = async {
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    drop(tokio::spawn(connection::serve(stream, Arc::clone(shared))));
                }
            }
        };
        tokio::select! {
            // The sender is dropped with the handle.
            _ = stopped => {}
            () = accept => {}
        }
    });
    // Dropping the runtime drops its connections.
}

fn listen(port: u16) -> io::Result<tokio::net::TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    socket.listen(BACKLOG)
}
