//! Opens connections under one deadline: name, TCP and TLS together.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sluice_domain::address::{ForbiddenAddress, check_address};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::origin::Origin;
use super::stream::Stream;

/// Idle connections send keep-alive probes on the TCP level this often, so that a firewall that
/// forgot one is noticed while nobody uses it.
const TCP_KEEPALIVE: Duration = Duration::from_mins(1);

/// Where a name has addresses of both families, the second one is tried this much later.
///
/// Source: RFC 8305 asks for 250 ms; 300 ms is what HTTP clients widely use.
const OTHER_FAMILY_DELAY: Duration = Duration::from_millis(300);

/// No connection could be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the connection was not open within {0:?}")]
    TimedOut(Duration),
    #[error("the name cannot be resolved")]
    Name(#[source] io::Error),
    #[error("the name leads where this upstream may not be")]
    Forbidden(#[source] ForbiddenAddress),
    #[error("no TCP connection can be opened")]
    Tcp(#[source] io::Error),
    #[error("the TLS handshake failed")]
    Tls(#[source] io::Error),
}

/// Opens a connection to `origin`, encrypted when there is a configuration for that.
pub(super) async fn open(
    origin: &Origin,
    tls: Option<Arc<ClientConfig>>,
    deadline: Duration,
) -> Result<Stream, ConnectError> {
    let opening = async {
        let tcp = dial(origin).await?;
        set_options(&tcp).map_err(ConnectError::Tcp)?;
        match tls {
            None => Ok(Stream::Plain(tcp)),
            Some(config) => encrypt(origin, config, tcp)
                .await
                .map_err(ConnectError::Tls),
        }
    };
    match timeout(deadline, opening).await {
        Ok(result) => result,
        Err(_elapsed) => Err(ConnectError::TimedOut(deadline)),
    }
}

fn set_options(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    SockRef::from(tcp).set_tcp_keepalive(&TcpKeepalive::new().with_time(TCP_KEEPALIVE))
}

async fn encrypt(origin: &Origin, config: Arc<ClientConfig>, tcp: TcpStream) -> io::Result<Stream> {
    let name = ServerName::try_from(origin.host.as_ref())
        .map_err(io::Error::other)?
        .to_owned();
    let tls = TlsConnector::from(config).connect(name, tcp).await?;
    Ok(Stream::Encrypted(Box::new(tls)))
}

async fn dial(origin: &Origin) -> Result<TcpStream, ConnectError> {
    dial_resolved(origin, async |host, port| {
        Ok(lookup_host((host, port)).await?.collect())
    })
    .await
}

/// Opens a TCP connection to the first address of a name that takes it, among those where the
/// upstream may be; the family of the first address has a head start.
///
/// The name is resolved once: who resolves is used up by it, and what is connected to are the
/// addresses that were checked. A name that says something else the next moment changes nothing.
async fn dial_resolved(
    origin: &Origin,
    resolve: impl AsyncFnOnce(&str, u16) -> io::Result<Vec<SocketAddr>>,
) -> Result<TcpStream, ConnectError> {
    let mut addresses = resolve(&origin.host, origin.port)
        .await
        .map_err(ConnectError::Name)?;
    let mut forbidden = None;
    addresses.retain(
        |address| match check_address(address.ip(), origin.allow_private) {
            Ok(()) => true,
            Err(error) => {
                forbidden.get_or_insert(error);
                false
            }
        },
    );
    match forbidden {
        Some(error) if addresses.is_empty() => Err(ConnectError::Forbidden(error)),
        _ => dial_addresses(addresses.into_iter())
            .await
            .map_err(ConnectError::Tcp),
    }
}

async fn dial_addresses(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.peekable();
    let is_first_v4 = addresses.peek().is_some_and(SocketAddr::is_ipv4);
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.partition(|address| address.is_ipv4() == is_first_v4);
    if other.is_empty() {
        return dial_in_turn(&preferred).await;
    }
    // Where both families fail the error of the preferred one is told.
    let mut preferred = pin!(dial_in_turn(&preferred));
    if let Ok(early) = timeout(OTHER_FAMILY_DELAY, &mut preferred).await {
        return match early {
            Ok(stream) => Ok(stream),
            Err(error) => dial_in_turn(&other).await.map_err(|_other| error),
        };
    }
    let mut other = pin!(dial_in_turn(&other));
    tokio::select! {
        result = &mut preferred => match result {
            Ok(stream) => Ok(stream),
            Err(error) => other.await.map_err(|_other| error),
        },
        result = &mut other => match result {
            Ok(stream) => Ok(stream),
            Err(_other) => preferred.await,
        },
    }
}

/// Tries one address after the other; the first error is the one that is told.
async fn dial_in_turn(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut first = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no address")))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    async fn closed_port(address: &str) -> SocketAddr {
        let listener = TcpListener::bind(address).await.unwrap();
        listener.local_addr().unwrap()
    }

    fn origin(allow_private: bool) -> Origin {
        Origin {
            is_https: false,
            host: "models.example".into(),
            port: 9,
            allow_private,
        }
    }

    /// Dials a name that has these addresses, and tells how many connections the listener saw.
    async fn dialed(
        listener: &TcpListener,
        addresses: Vec<SocketAddr>,
        allow_private: bool,
    ) -> (Result<TcpStream, ConnectError>, usize) {
        let result = dial_resolved(&origin(allow_private), async |host, port| {
            assert_eq!((host, port), ("models.example", 9));
            Ok(addresses)
        })
        .await;
        let mut seen = 0;
        while let Ok(Ok(_)) = timeout(Duration::from_millis(20), listener.accept()).await {
            seen += 1;
        }
        (result, seen)
    }

    #[tokio::test]
    async fn a_name_that_leads_into_the_private_network_is_not_connected_to() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", open.port())
            .parse()
            .unwrap();
        for addresses in [vec![open], vec![mapped], vec![mapped, open]] {
            let (result, seen) = dialed(&listener, addresses, false).await;
            assert!(
                matches!(result, Err(ConnectError::Forbidden(_))),
                "{result:?}"
            );
            assert_eq!(seen, 0);
        }
        let (result, seen) = dialed(&listener, vec![open], true).await;
        assert_eq!(result.unwrap().peer_addr().unwrap(), open);
        assert_eq!(seen, 1);
        // What is never allowed is told as such also where private addresses are.
        let metadata = "169.254.169.254:80".parse().unwrap();
        let (result, _seen) = dialed(&listener, vec![metadata], true).await;
        assert!(matches!(
            result,
            Err(ConnectError::Forbidden(ForbiddenAddress::Never { .. }))
        ));
    }

    #[tokio::test]
    async fn of_mixed_addresses_only_those_are_tried_that_are_allowed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let never: SocketAddr = format!("0.0.0.0:{}", open.port()).parse().unwrap();
        let metadata: SocketAddr = "[fd00:ec2::254]:80".parse().unwrap();
        // 0.0.0.0 would reach the listener as well: the peer tells which address was dialed.
        let (result, seen) = dialed(&listener, vec![metadata, never, open], true).await;
        assert_eq!(result.unwrap().peer_addr().unwrap(), open);
        assert_eq!(seen, 1);
        let (result, seen) = dialed(&listener, vec![metadata, never], true).await;
        assert!(
            matches!(result, Err(ConnectError::Forbidden(_))),
            "{result:?}"
        );
        assert_eq!(seen, 0);
    }

    #[tokio::test]
    async fn a_name_whose_answer_changes_is_asked_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = closed_port("127.0.0.1:0").await;
        // Each answer of this resolver differs from the one before.
        let mut answers = vec![vec![open], vec![closed]];
        let mut asked = 0;
        let result = dial_resolved(&origin(true), async |_, _| {
            asked += 1;
            Ok(answers.pop().unwrap())
        })
        .await;
        assert!(matches!(result, Err(ConnectError::Tcp(_))), "{result:?}");
        assert_eq!(asked, 1);
    }

    #[tokio::test]
    async fn an_address_that_refuses_gives_way_to_the_next_and_to_the_other_family() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed_v4 = closed_port("127.0.0.1:0").await;
        let closed_v6: SocketAddr = "[::1]:9".parse().unwrap();
        for addresses in [vec![closed_v4, open], vec![closed_v6, open]] {
            let mut fastest = Duration::MAX;
            // A machine that is busy makes any try slow, but not all of them.
            for _ in 0..50 {
                let begun = Instant::now();
                let stream = dial_addresses(addresses.iter().copied()).await.unwrap();
                assert_eq!(stream.peer_addr().unwrap(), open);
                fastest = fastest.min(begun.elapsed());
                if fastest < OTHER_FAMILY_DELAY {
                    break;
                }
            }
            assert!(fastest < OTHER_FAMILY_DELAY, "nothing is waited for");
        }

        let error = dial_addresses([closed_v4].into_iter()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = dial_addresses(std::iter::empty()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
