//! The bytes of a connection, encrypted or not.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::WireError;
use super::http1::ProtocolError;

/// An open connection.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    /// Boxed, because its state is large and plain connections should not carry it.
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buffer),
            Self::Encrypted(tls) => Pin::new(tls).poll_read(cx, buffer),
        }
    }

    /// Writes one piece, or the beginning of two.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>; 2],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) if pieces[1].is_empty() => Pin::new(tcp).poll_write(cx, &pieces[0]),
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, pieces),
            Self::Encrypted(tls) if pieces[1].is_empty() => {
                Pin::new(tls).poll_write(cx, &pieces[0])
            }
            Self::Encrypted(tls) => Pin::new(tls).poll_write_vectored(cx, pieces),
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            // What was written is with the system.
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Encrypted(tls) => Pin::new(tls).poll_flush(cx),
        }
    }

    /// Returns why a connection on which nothing is awaited cannot be used, if that is so. This asks
    /// the system itself: the runtime hears of what has come only when it has nothing else to do.
    pub(super) fn find_unasked(&self) -> Option<WireError> {
        let (tcp, is_encrypted) = match self {
            Self::Plain(tcp) => (tcp, false),
            Self::Encrypted(tls) => (tls.get_ref().0, true),
        };
        match SockRef::from(tcp).peek(&mut [MaybeUninit::uninit()]) {
            Ok(0) => Some(WireError::Closed),
            // Messages of TLS itself may come at any time.
            Ok(_) => (!is_encrypted).then_some(WireError::Protocol(ProtocolError::Unasked)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => Some(WireError::Failed(error)),
        }
    }

    /// Returns whether a write that fails has sent nothing.
    pub(super) const fn writes_at_once(&self) -> bool {
        matches!(self, Self::Plain(_))
    }
}
