//! A client that shows the bytes: raw HTTP/1.1 on one connection.

mod message;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use self::message::end_of_event;
pub use self::message::{RawEvent, Request, Response, ResponseHead};
use crate::wire::{BodyReader, invalid, take_head};

/// How long a step may take unless a test says otherwise: nothing takes so long that goes on at all,
/// on whatever machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// How a connection was closed by the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// By FIN.
    Clean,
    /// By RST.
    Reset,
}

/// A raw HTTP/1.1 client on one connection.
///
/// Dropping it leaves: the kernel sends FIN, or RST when unread bytes are left.
///
/// # Errors
/// All its steps end in an error after a bounded time: `TimedOut` when nothing came in time (a
/// minute unless [`patience`](Self::patience) says otherwise, by the clock of the calling runtime),
/// `UnexpectedEof` when the other side closed in the middle of a message, `ConnectionReset` and the
/// like as the system says, `InvalidData` for what is not HTTP.
#[derive(Debug)]
pub struct HttpClient {
    stream: TcpStream,
    inbound: BytesMut,
    body: BodyReader,
    decoded: BytesMut,
    is_answer_to_head: bool,
    patience: Duration,
}

impl HttpClient {
    /// Connects.
    ///
    /// # Errors
    /// As the type says.
    pub async fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::from_socket(TcpSocket::new_v4()?, address).await
    }

    /// Connects with a receive buffer of about so many bytes, so that the other side cannot write
    /// much ahead of a client that does not read.
    ///
    /// # Errors
    /// As the type says.
    pub async fn connect_with_buffer(address: SocketAddr, bytes: u32) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(bytes)?;
        Self::from_socket(socket, address).await
    }

    async fn from_socket(socket: TcpSocket, address: SocketAddr) -> io::Result<Self> {
        let stream = bounded(PATIENCE, "a connection", socket.connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            inbound: BytesMut::new(),
            body: BodyReader::Length(0),
            decoded: BytesMut::new(),
            is_answer_to_head: false,
            patience: PATIENCE,
        })
    }

    /// Sets how long each step may take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends bytes as they are: a whole request, a part of one, or nonsense.
    ///
    /// # Errors
    /// As the type says.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        bounded(self.patience, "room to send", self.stream.write_all(bytes)).await
    }

    /// Sends a request.
    ///
    /// # Errors
    /// As the type says.
    pub async fn send(&mut self, request: &Request) -> io::Result<()> {
        self.is_answer_to_head = request.method == "HEAD";
        self.send_raw(&request.to_bytes()).await
    }

    /// Reads the head of the next answer; interim answers (1xx) are left out.
    ///
    /// # Errors
    /// As the type says; `UnexpectedEof` also when the other side closed without an answer.
    pub async fn read_head(&mut self) -> io::Result<ResponseHead> {
        loop {
            let Some(head) = take_head(&mut self.inbound)? else {
                if self.receive("the head of an answer").await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            };
            let status = status_of(&head.start_line)?;
            if status >= 200 {
                self.body = if self.is_answer_to_head {
                    BodyReader::Length(0)
                } else {
                    BodyReader::of_response(status, &head.headers)?
                };
                self.decoded.clear();
                return Ok(ResponseHead {
                    status,
                    headers: head.headers,
                    raw: head.raw,
                });
            }
        }
    }

    /// Reads the rest of the body.
    ///
    /// # Errors
    /// As the type says. What had arrived before the error is lost; use
    /// [`next_event`](Self::next_event) or [`read_some`](Self::read_some) to keep it.
    pub async fn read_body(&mut self) -> io::Result<Bytes> {
        while self.decode().await? {}
        Ok(self.decoded.split().freeze())
    }

    /// Reads what comes next of the body; `None` at its end.
    ///
    /// # Errors
    /// As the type says.
    pub async fn read_some(&mut self) -> io::Result<Option<Bytes>> {
        let mut may_go_on = true;
        while self.decoded.is_empty() && may_go_on {
            may_go_on = self.decode().await?;
        }
        Ok((!self.decoded.is_empty()).then(|| self.decoded.split().freeze()))
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// As the type says.
    pub async fn call(&mut self, request: &Request) -> io::Result<Response> {
        self.send(request).await?;
        let head = self.read_head().await?;
        Ok(Response {
            head,
            body: self.read_body().await?,
        })
    }

    /// Reads the next event of a stream, comments included; `None` at a clean end.
    ///
    /// # Errors
    /// As the type says. All whole events before an error have been returned.
    pub async fn next_event(&mut self) -> io::Result<Option<RawEvent>> {
        loop {
            if let Some(end) = end_of_event(&self.decoded) {
                let raw = self.decoded.split_to(end).freeze();
                return Ok(Some(RawEvent {
                    raw,
                    is_whole: true,
                }));
            }
            if !self.decode().await? && end_of_event(&self.decoded).is_none() {
                let raw = self.decoded.split().freeze();
                return Ok((!raw.is_empty()).then_some(RawEvent {
                    raw,
                    is_whole: false,
                }));
            }
        }
    }

    /// Reads events up to the end of the stream; also returns the error that ended it, if one did.
    pub async fn read_events(&mut self) -> (Vec<RawEvent>, Option<io::Error>) {
        let mut events = Vec::new();
        loop {
            match self.next_event().await {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return (events, None),
                Err(error) => return (events, Some(error)),
            }
        }
    }

    /// Returns whether nothing arrives for so long; what arrives is kept.
    ///
    /// # Errors
    /// As the system says, when the connection breaks meanwhile.
    pub async fn is_silent_for(&mut self, time: Duration) -> io::Result<bool> {
        match timeout(time, self.stream.read_buf(&mut self.inbound)).await {
            Ok(read) => read.map(|_| false),
            Err(_elapsed) => Ok(true),
        }
    }

    /// Waits until the other side closes and tells how; what arrives until then is thrown away.
    ///
    /// # Errors
    /// As the type says.
    pub async fn wait_closed(&mut self) -> io::Result<Closed> {
        loop {
            self.inbound.clear();
            match self.receive("the end of the connection").await {
                Ok(0) => return Ok(Closed::Clean),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(Closed::Reset);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Leaves by RST.
    ///
    /// # Errors
    /// As the system says.
    pub fn reset(self) -> io::Result<()> {
        self.stream.set_zero_linger()
    }

    /// Decodes more of the body; returns whether there may be more after it.
    async fn decode(&mut self) -> io::Result<bool> {
        let before = self.decoded.len();
        if self.body.take(&mut self.inbound, &mut self.decoded)? {
            return Ok(false);
        }
        if self.decoded.len() > before {
            return Ok(true);
        }
        if self.receive("more of the body").await? > 0 {
            return Ok(true);
        }
        if self.body.may_end() {
            Ok(false)
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    async fn receive(&mut self, what: &str) -> io::Result<usize> {
        bounded(self.patience, what, self.stream.read_buf(&mut self.inbound)).await
    }
}

/// Makes a connection of its own for a request and reads the whole answer.
///
/// # Errors
/// As [`HttpClient`] says.
pub async fn call(address: SocketAddr, request: &Request) -> io::Result<Response> {
    HttpClient::connect(address).await?.call(request).await
}

async fn bounded<T>(
    patience: Duration,
    what: &str,
    step: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match timeout(patience, step).await {
        Ok(result) => result,
        Err(_elapsed) => {
            let message = format!("waited {patience:?} for {what}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        }
    }
}

fn status_of(start_line: &str) -> io::Result<u16> {
    let status = start_line
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok());
    status.ok_or_else(|| invalid(format_args!("not a status line: {start_line:?}")))
}
