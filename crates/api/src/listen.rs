//! The listening sockets: one per thread, all on one address.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context as _, anyhow};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4_096;

/// Bound sockets, in the order of the threads.
pub(crate) struct Listeners {
    address: SocketAddr,
    sockets: Vec<std::net::TcpListener>,
}

impl Listeners {
    /// Binds `count` sockets to one address; port 0 takes a free one.
    ///
    /// # Errors
    /// One line for people when the address is in use or not ours.
    pub(crate) fn bind(address: SocketAddr, count: usize) -> anyhow::Result<Self> {
        // Sockets that share a port would also share it with another process; a socket that does
        // not share tells whether somebody is there.
        let alone = socket(address, false).map_err(|error| explain(address, &error))?;
        if count <= 1 {
            let socket = std::net::TcpListener::from(alone);
            return Ok(Self {
                address: local_address(&socket)?,
                sockets: vec![socket],
            });
        }
        let address = local_address(&std::net::TcpListener::from(alone))?;
        let sockets = (0..count)
            .map(|_thread| socket(address, true).map(std::net::TcpListener::from))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| explain(address, &error))?;
        Ok(Self { address, sockets })
    }

    /// Returns the address, with the port that was taken.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl IntoIterator for Listeners {
    type Item = std::net::TcpListener;
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.sockets.into_iter()
    }
}

fn socket(address: SocketAddr, shares_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shares_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn local_address(socket: &std::net::TcpListener) -> anyhow::Result<SocketAddr> {
    socket
        .local_addr()
        .context("the bound address cannot be read")
}

fn explain(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!(
                "port {} on {} is in use; choose another with --listen",
                address.port(),
                address.ip()
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            anyhow!("{} is not an address of this machine", address.ip())
        }
        io::ErrorKind::PermissionDenied => {
            anyhow!(
                "this user may not listen on port {}; choose one above 1023",
                address.port()
            )
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_one_clear_line() {
        let first = Listeners::bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        for count in [1, 2] {
            let error = Listeners::bind(first.address(), count).err().unwrap();
            assert_eq!(
                error.to_string(),
                format!(
                    "port {} on 127.0.0.1 is in use; choose another with --listen",
                    first.address().port()
                )
            );
        }
    }
}
