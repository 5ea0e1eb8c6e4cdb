//! One connection: reads requests and plays the scripts on the socket.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::answer::answer;
use super::call::Call;
use super::play::Play;
use super::served::{Served, ServedEnd};
use super::state::Shared;
use crate::wire::{BodyReader, take_head};

/// The peer closed or reset the connection.
#[derive(Debug)]
pub(super) struct PeerLeft;

/// What happens to the connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    KeepOpen,
    Close,
    Reset,
}

/// Serves a connection to its end.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let number = shared.change(|log, _| {
        log.connections += 1;
        log.open_connections += 1;
        log.connections - 1
    });
    let open = OpenConnection {
        shared: Arc::clone(&shared),
    };
    if !shared.refuses_connection() {
        // Without it a small event waits for the acknowledgement of the one before.
        let _best_effort = stream.set_nodelay(true);
        let mut connection = Connection {
            stream,
            inbound: BytesMut::new(),
            number,
            shared,
        };
        let after = connection.serve_all().await;
        connection.close(after).await;
    }
    drop(open);
}

/// Counts the connection as open until it is dropped, also when the server is stopped.
struct OpenConnection {
    shared: Arc<Shared>,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.shared.change(|log, _| log.open_connections -= 1);
    }
}

pub(super) struct Connection {
    stream: TcpStream,
    inbound: BytesMut,
    number: usize,
    pub(super) shared: Arc<Shared>,
}

impl Connection {
    async fn serve_all(&mut self) -> After {
        loop {
            let call = match self.read_call().await {
                Ok(Some(call)) => call,
                Ok(None) => return After::Close,
                Err(error) => {
                    self.shared
                        .change(|log, _| log.malformed.push(error.to_string()));
                    return After::Close;
                }
            };
            let (number, script, models) = self.shared.admit(self.number, &call);
            let answer = answer(&call, number, &script, &models);
            match Play::new(self, number, &script, &answer)
                .run(&call, answer)
                .await
            {
                Ok(After::KeepOpen) => {}
                Ok(after) => return after,
                Err(PeerLeft) => {
                    self.shared.end(number, ServedEnd::PeerLeft);
                    return After::Close;
                }
            }
        }
    }

    async fn close(mut self, after: After) {
        if after == After::Reset {
            // Closing with a linger time of zero sends RST instead of FIN.
            let _best_effort = self.stream.set_zero_linger();
        } else {
            let _best_effort = self.stream.shutdown().await;
        }
    }

    /// Reads a request; `None` when the peer closed between two of them.
    async fn read_call(&mut self) -> io::Result<Option<Call>> {
        let head = loop {
            if let Some(head) = take_head(&mut self.inbound)? {
                break head;
            }
            match self.read_more().await {
                Ok(0) | Err(_) if self.inbound.is_empty() => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        };
        if head
            .headers
            .get("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            self.stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await?;
        }
        let mut reader = BodyReader::of_request(&head.headers)?;
        let mut body = BytesMut::new();
        while !reader.take(&mut self.inbound, &mut body)? {
            if self.read_more().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Some(Call::new(head, body.freeze())))
    }

    async fn read_more(&mut self) -> io::Result<usize> {
        read_more(&self.stream, &mut self.inbound).await
    }

    /// Returns when the peer has closed or reset; keeps what it sends meanwhile.
    pub(super) async fn until_peer_left(&mut self) -> PeerLeft {
        until_peer_left(&self.stream, &mut self.inbound).await
    }

    /// Writes all bytes, and in the step in which the last one goes to the socket, changes the entry
    /// of the request: whoever has received the bytes sees the change.
    pub(super) async fn write(
        &mut self,
        bytes: &[u8],
        number: usize,
        on_written: impl FnOnce(&mut Served, Duration),
    ) -> Result<(), PeerLeft> {
        let mut rest = bytes;
        loop {
            {
                let mut log = self.shared.log.lock();
                let written = if rest.is_empty() {
                    Ok(0)
                } else {
                    self.stream.try_write(rest)
                };
                match written {
                    Ok(count) => {
                        rest = &rest[count..];
                        if rest.is_empty() {
                            on_written(&mut log.served[number], self.shared.stopwatch.elapsed());
                            drop(log);
                            self.shared.changed.notify_waiters();
                            return Ok(());
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Err(PeerLeft),
                }
            }
            self.until_writable().await?;
        }
    }

    async fn until_writable(&mut self) -> Result<(), PeerLeft> {
        tokio::select! {
            biased;
            writable = self.stream.writable() => writable.or(Err(PeerLeft)),
            left = until_peer_left(&self.stream, &mut self.inbound) => Err(left),
        }
    }
}

async fn read_more(stream: &TcpStream, inbound: &mut BytesMut) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read_buf(inbound) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
}

async fn until_peer_left(stream: &TcpStream, inbound: &mut BytesMut) -> PeerLeft {
    while let Ok(1..) = read_more(stream, inbound).await {}
    PeerLeft
}
