//! A TCP connection that a test can cut and disturb.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use socket2::SockRef;

use crate::fail::fail;

/// How much of a message passes before [`Fault::CutInMessage`] cuts.
const BYTES_BEFORE_CUT: usize = 7;

/// What a disturbed link does. It concerns connections that are open and new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// All bytes are so late, in each direction.
    Latency(Duration),
    /// Connections are closed, and new ones as soon as they come.
    Down,
    /// As `Down`, with a reset instead of a proper end.
    Reset,
    /// Bytes are taken and never arrive.
    BlackHole,
    /// Each byte is sent by itself, with a pause after it.
    OneByte(Duration),
    /// So many bytes pass in a second, in each direction.
    BytesPerSecond(u32),
    /// Each connection is closed in the middle of the first message towards the client.
    CutInMessage,
    /// What the server closes, and the client, is closed so much later; meanwhile nothing passes.
    SlowClose(Duration),
}

/// Passes connections on to an address, until it is cut.
///
/// A cut closes what is open, in the middle of whatever was under way: what was sent before has
/// arrived or not, and its answer never comes. It stops when it is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    fault: Option<Fault>,
    is_over: bool,
    /// How many connections came.
    connections: u64,
    /// Both ends of what is open, and of what was.
    open: Vec<TcpStream>,
}

impl State {
    fn close_all(&mut self) {
        let resets = self.fault == Some(Fault::Reset);
        for stream in self.open.drain(..) {
            if resets {
                let _best_effort = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                // Wakes the thread that reads: the last handle of a socket resets it.
                let _closed = stream.shutdown(Shutdown::Read);
            } else {
                // It may be closed already.
                let _closed = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits for a time, which ends early when the link is disturbed in another way.
    fn pause(&self, fault: Fault, at_most: Duration) {
        let mut state = self.lock();
        if state.fault == Some(fault) && !state.is_over {
            let _elapsed = self.changed.wait_for(&mut state, at_most);
        }
    }
}

impl Link {
    /// Starts to pass connections to a free port of 127.0.0.1 on to `target`.
    #[track_caller]
    pub fn start(target: SocketAddr) -> Self {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr().map(|address| (listener, address)));
        let (listener, address) = match bound {
            Ok(bound) => bound,
            Err(error) => fail(format_args!("a link cannot listen: {error}")),
        };
        let shared = Arc::<Shared>::default();
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while let Ok((near, _peer)) = listener.accept() {
                    if shared.lock().is_over {
                        return;
                    }
                    connect(near, target, &shared);
                }
            }
        });
        Self {
            address,
            shared,
            accepting: Some(accepting),
        }
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many connections came.
    pub fn connections(&self) -> u64 {
        self.shared.lock().connections
    }

    /// Closes everything, and each new connection as soon as it comes.
    pub fn cut(&self) {
        self.disturb(Fault::Down);
    }

    /// Disturbs what is open, and each new connection.
    pub fn disturb(&self, fault: Fault) {
        let mut state = self.shared.lock();
        state.fault = Some(fault);
        if matches!(fault, Fault::Down | Fault::Reset) {
            state.close_all();
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Passes on again what is there and what comes.
    pub fn restore(&self) {
        self.shared.lock().fault = None;
        self.shared.changed.notify_all();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.is_over = true;
            state.fault = None;
            state.close_all();
        }
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let is_woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.accepting.take().filter(|_| is_woken) {
            let _its_panic = thread.join();
        }
    }
}

/// Passes one connection on; one that cannot be is closed.
fn connect(near: TcpStream, target: SocketAddr, shared: &Arc<Shared>) {
    let mut state = shared.lock();
    state.connections += 1;
    if state.fault == Some(Fault::Reset) {
        let _best_effort = SockRef::from(&near).set_linger(Some(Duration::ZERO));
        return;
    }
    if state.fault == Some(Fault::Down) {
        return;
    }
    let Ok(far) = TcpStream::connect(target) else {
        return;
    };
    let copies = (
        near.try_clone(),
        near.try_clone(),
        far.try_clone(),
        far.try_clone(),
    );
    let (Ok(near_kept), Ok(near_read), Ok(far_kept), Ok(far_read)) = copies else {
        return;
    };
    for stream in [&near, &far] {
        let _best_effort = stream.set_nodelay(true);
    }
    state.open.extend([near_kept, far_kept]);
    drop(state);
    let (towards_server, towards_client) = (Arc::clone(shared), Arc::clone(shared));
    drop(thread::spawn(move || {
        pass(near_read, far, &towards_server, Way::ToServer);
    }));
    drop(thread::spawn(move || {
        pass(far_read, near, &towards_client, Way::ToClient);
    }));
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer,
    ToClient,
}

/// Passes bytes on in one direction until either side closes.
fn pass(mut from: TcpStream, mut to: TcpStream, shared: &Shared, way: Way) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if pass_disturbed(&buffer[..count], &mut to, shared, way).is_none() {
            break;
        }
    }
    let fault = shared.lock().fault;
    if let Some(fault @ Fault::SlowClose(wait)) = fault {
        shared.pause(fault, wait);
    }
    if fault == Some(Fault::Reset) {
        return;
    }
    // The other direction ends with it.
    for stream in [from, to] {
        let _closed = stream.shutdown(Shutdown::Both);
    }
}

/// Passes bytes on as the link is disturbed now; `None` ends the connection.
fn pass_disturbed(mut bytes: &[u8], to: &mut TcpStream, shared: &Shared, way: Way) -> Option<()> {
    while !bytes.is_empty() {
        let fault = shared.lock().fault;
        let mut count = bytes.len();
        match fault {
            Some(Fault::Down | Fault::Reset) => return None,
            Some(fault @ Fault::Latency(late)) => shared.pause(fault, late),
            // Until it is disturbed in another way; then nothing of this has arrived.
            Some(fault @ Fault::BlackHole) => {
                shared.pause(fault, Duration::from_mins(10));
                return Some(());
            }
            Some(fault @ Fault::OneByte(wait)) => {
                count = 1;
                shared.pause(fault, wait);
            }
            Some(fault @ Fault::BytesPerSecond(rate)) => {
                // Ten times a second, a tenth.
                count = count.min(usize::try_from(rate / 10).unwrap_or(1).max(1));
                shared.pause(fault, Duration::from_millis(100));
            }
            Some(Fault::CutInMessage) if way == Way::ToClient => {
                let part = &bytes[..bytes.len().min(BYTES_BEFORE_CUT)];
                let _cut_anyway = to.write_all(part);
                return None;
            }
            None | Some(Fault::CutInMessage) => {}
            // Half closed: neither end hears of the other.
            Some(fault @ Fault::SlowClose(wait)) => {
                shared.pause(fault, wait);
                return None;
            }
        }
        let (now, later) = bytes.split_at(count);
        to.write_all(now).ok()?;
        bytes = later;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Request, call};
    use crate::upstream::FakeUpstream;

    #[tokio::test]
    async fn a_link_passes_until_it_is_cut_and_again_when_it_is_restored() {
        let upstream = FakeUpstream::start();
        let link = Link::start(upstream.address());
        let models = Request::get("/v1/models");
        assert_eq!(call(link.address(), &models).await.unwrap().status(), 200);
        link.cut();
        assert!(call(link.address(), &models).await.is_err());
        link.restore();
        assert_eq!(call(link.address(), &models).await.unwrap().status(), 200);
    }
}
