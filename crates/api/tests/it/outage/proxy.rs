//! A proxy in front of a database that can go away.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// They reach the database.
    Pass,
    /// Open ones are cut, new ones end at once: the server was stopped.
    Refuse,
    /// Nothing is heard of any of them: the server, or the way to it, hangs. They go on afterwards.
    Stall,
}

/// Runs on a thread of its own, because tests wait for processes that need it.
pub(super) struct DatabaseProxy {
    port: u16,
    mode: watch::Sender<Mode>,
}

impl DatabaseProxy {
    /// Begins to pass connections on to `target`; ends with the value.
    pub(super) fn start(target: String) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, changes) = watch::channel(Mode::Pass);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(accept(listener, target, changes));
        });
        Self { port, mode }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn accept(listener: std::net::TcpListener, target: String, changes: watch::Receiver<Mode>) {
    let listener = TcpListener::from_std(listener).unwrap();
    let mut over = changes.clone();
    let accepting = async {
        while let Ok((client, _peer)) = listener.accept().await {
            if *changes.borrow() != Mode::Refuse {
                tokio::spawn(relay(client, target.clone(), changes.clone()));
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = async { while over.changed().await.is_ok() {} } => {}
    }
}

async fn relay(client: TcpStream, target: String, changes: watch::Receiver<Mode>) {
    let mut until_cut = changes.clone();
    let both = async {
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = copy(from_client, to_server, changes.clone()) => {}
            () = copy(from_server, to_client, changes) => {}
        }
    };
    tokio::select! {
        () = both => {}
        _cut = until_cut.wait_for(|mode| *mode == Mode::Refuse) => {}
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut changes: watch::Receiver<Mode>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if changes.wait_for(|mode| *mode == Mode::Pass).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}
