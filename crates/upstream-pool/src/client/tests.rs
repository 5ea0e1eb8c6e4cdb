//! Encrypted connections, against a server whose certificate only these tests trust, and requests
//! that meet a closed connection.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Uri};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::body::{UpstreamBody, Wire};

/// For `localhost`, signed by itself, valid until 2126.
const CERTIFICATE: &[u8] = include_bytes!("testdata/localhost.certificate.der");
const KEY: &[u8] = include_bytes!("testdata/localhost.key.der");

const LONG: Duration = Duration::from_secs(10);

fn trusting(roots: RootCertStore) -> Connections {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let options = PoolOptions {
        max_idle_per_host: 8,
        idle_timeout: LONG,
    };
    Connections::new(
        options,
        Arc::new(OnceCell::new_with(Some(Arc::new(config)))),
    )
}

/// Starts a server that answers each request on an encrypted connection with the number of that
/// connection.
async fn start_server() -> SocketAddr {
    let certificate = CertificateDer::from(CERTIFICATE.to_vec());
    let key = PrivateKeyDer::try_from(KEY.to_vec()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 1.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else {
                continue;
            };
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while tls.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                    if seen.ends_with(b"{}") {
                        seen.clear();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                        tls.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
            });
        }
    });
    address
}

fn request() -> Request<Bytes> {
    Request::post(Uri::from_static("/v1/x"))
        .header(HOST, HeaderValue::from_static("localhost"))
        .body(Bytes::from_static(b"{}"))
        .unwrap()
}

async fn ask(
    connections: &Connections,
    host: &str,
    server: SocketAddr,
) -> Result<Bytes, ExchangeError> {
    let base = format!("https://{host}:{}", server.port());
    let origin = Origin::new(&base.parse().unwrap()).unwrap();
    let patience = Patience {
        connect: LONG,
        head: LONG,
    };
    let reply = connections.exchange(&origin, &request(), patience).await?;
    let wire = Wire::new(reply.first, reply.lease, LONG, Instant::now() + LONG);
    let body = UpstreamBody::wire(Bytes::new(), wire).collect(100).await;
    Ok(body.unwrap())
}

#[tokio::test]
async fn an_encrypted_connection_is_used_again() {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
    let connections = trusting(roots);
    let server = start_server().await;
    for _ in 0..3 {
        assert_eq!(ask(&connections, "localhost", server).await.unwrap(), "1");
    }
    let other = connections.fork();
    assert_eq!(ask(&other, "localhost", server).await.unwrap(), "2");
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_or_for_another_name_is_refused() {
    let server = start_server().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
    for (connections, host) in [
        (trusting(RootCertStore::empty()), "localhost"),
        (trusting(roots), "127.0.0.1"),
    ] {
        let error = ask(&connections, host, server).await.unwrap_err();
        assert!(
            matches!(error, ExchangeError::Connect(ConnectError::Tls(_))),
            "{error:?}"
        );
        assert_eq!(
            (error.class(), error.stage()),
            (ErrorClass::Connect, SendStage::NotSent)
        );
    }
}

#[tokio::test]
async fn a_request_that_meets_a_closed_connection_comes_back_unsent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let origin = Origin::new(&base.parse().unwrap()).unwrap();
    let stream = connector::open(&origin, None, LONG).await.unwrap();
    let mut connection = Connection::new(stream);
    drop(listener.accept().await.unwrap());
    // The end arrives in the meantime.
    tokio::time::sleep(Duration::from_millis(50)).await;
    match connection.send(&request(), LONG).await {
        Err(SendFailure::Unsent(WireError::Closed)) => {}
        Err(SendFailure::Unsent(error) | SendFailure::Broken(error)) => panic!("{error:?}"),
        Err(SendFailure::TimedOut) | Ok(_) => panic!("sent to nobody"),
    }
}
