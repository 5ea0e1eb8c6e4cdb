//! A TCP connection that a test can cut.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::fail::fail;

/// Passes connections on to an address, until it is cut.
///
/// A cut closes what is open, in the middle of whatever was under way: what was sent before has
/// arrived or not, and its answer never comes. It stops when it is dropped.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    is_cut: bool,
    is_over: bool,
    /// Both ends of what is open, and of what was.
    open: Vec<TcpStream>,
}

impl State {
    fn close_all(&mut self) {
        for stream in self.open.drain(..) {
            // It may be closed already.
            let _closed = stream.shutdown(Shutdown::Both);
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
        let state = Arc::<Mutex<State>>::default();
        let accepting = thread::spawn({
            let state = Arc::clone(&state);
            move || {
                while let Ok((near, _peer)) = listener.accept() {
                    if state.lock().is_over {
                        return;
                    }
                    connect(near, target, &state);
                }
            }
        });
        Self {
            address,
            state,
            accepting: Some(accepting),
        }
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes everything, and each new connection as soon as it comes.
    pub fn cut(&self) {
        let mut state = self.state.lock();
        state.is_cut = true;
        state.close_all();
    }

    /// Passes new connections on again.
    pub fn restore(&self) {
        self.state.lock().is_cut = false;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        {
            let mut state = self.state.lock();
            state.is_over = true;
            state.close_all();
        }
        // Wakes the thread that accepts.
        let is_woken = TcpStream::connect(self.address).is_ok();
        if let Some(thread) = self.accepting.take().filter(|_| is_woken) {
            let _its_panic = thread.join();
        }
    }
}

/// Passes one connection on; one that cannot be is closed.
fn connect(near: TcpStream, target: SocketAddr, state: &Mutex<State>) {
    let mut state = state.lock();
    if state.is_cut {
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
    drop(thread::spawn(move || pass(near_read, far)));
    drop(thread::spawn(move || pass(far_read, near)));
}

/// Passes bytes on in one direction until either side closes.
fn pass(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // The other direction ends with it.
    for stream in [from, to] {
        let _closed = stream.shutdown(Shutdown::Both);
    }
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
