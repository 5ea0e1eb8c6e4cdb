//! Encrypted connections, against a server whose certificate only these tests trust.

mod wire;

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
use crate::body::{UpstreamBody, UpstreamBodyError, Wire};

/// For `localhost`, signed by itself, valid until 2126.
const CERTIFICATE: &[u8] = include_bytes!("testdata/localhost.certificate.der");
const KEY: &[u8] = include_bytes!("testdata/localhost.key.der");

/// Time for whatever must happen, on whatever machine.
const LONG: Duration = Duration::from_mins(1);

fn trusting(roots: RootCertStore) -> Connections {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let options = PoolOptions {
        max_idle_per_host: 8,
        idle_timeout: 10 * LONG,
    };
    Connections::new(
        options,
        Arc::new(OnceCell::new_with(Some(Arc::new(config)))),
    )
}

fn acceptor() -> TlsAcceptor {
    let certificate = CertificateDer::from(CERTIFICATE.to_vec());
    let key = PrivateKeyDer::try_from(KEY.to_vec()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn trusting_the_server() -> Connections {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(CERTIFICATE)).unwrap();
    trusting(roots)
}

/// Starts a server that answers each request on an encrypted connection with the number of that
/// connection.
async fn start_server() -> SocketAddr {
    let acceptor = acceptor();
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

fn request(body: impl Into<Bytes>) -> Request<Bytes> {
    Request::post(Uri::from_static("/v1/x"))
        .header(HOST, HeaderValue::from_static("localhost"))
        .body(body.into())
        .unwrap()
}

async fn send(
    connections: &Connections,
    base: &str,
    body: impl Into<Bytes>,
) -> Result<Reply, ExchangeError> {
    let origin = Origin::new(&base.parse().unwrap(), true).unwrap();
    let patience = Patience {
        connect: LONG,
        head: LONG,
    };
    connections
        .exchange(&origin, &request(body), patience, Instant::now())
        .await
}

fn body_of(reply: Reply) -> UpstreamBody {
    let now = Instant::now();
    let wire = Wire::new(reply.first, reply.lease, LONG, now + LONG, now);
    UpstreamBody::wire(Bytes::new(), wire)
}

async fn ask(
    connections: &Connections,
    host: &str,
    server: SocketAddr,
) -> Result<Bytes, ExchangeError> {
    let base = format!("https://{host}:{}", server.port());
    let reply = send(connections, &base, "{}").await?;
    Ok(body_of(reply).collect(100).await.unwrap())
}

#[tokio::test]
async fn an_encrypted_connection_is_used_again() {
    let connections = trusting_the_server();
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
    for (connections, host) in [
        (trusting(RootCertStore::empty()), "localhost"),
        (trusting_the_server(), "127.0.0.1"),
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

/// What a server does after an answer that ends with its connection.
#[derive(Debug, Clone, Copy)]
enum Farewell {
    Said,
    Unsaid,
}

#[tokio::test]
async fn an_encrypted_answer_that_ends_with_its_connection_needs_a_farewell() {
    for farewell in [Farewell::Said, Farewell::Unsaid] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!(
            "https://localhost:{}",
            listener.local_addr().unwrap().port()
        );
        let connections = trusting_the_server();
        let (reply, ()) = tokio::join!(send(&connections, &base, "{}"), async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = acceptor().accept(tcp).await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"{}") {
                tls.read_buf(&mut seen).await.unwrap();
            }
            tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nall of it")
                .await
                .unwrap();
            match farewell {
                Farewell::Said => tls.shutdown().await.unwrap(),
                Farewell::Unsaid => tls.get_mut().0.shutdown().await.unwrap(),
            }
        });
        let body = body_of(reply.unwrap()).collect(100).await;
        match (farewell, body) {
            (Farewell::Said, Ok(body)) => assert_eq!(body, "all of it"),
            (Farewell::Unsaid, Err(UpstreamBodyError::Cut(_))) => {}
            (_, other) => panic!("{farewell:?}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_long_request_arrives_whole_over_an_encrypted_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!(
        "https://localhost:{}",
        listener.local_addr().unwrap().port()
    );
    let body = Bytes::from(
        (0..3_000_000_u32)
            .map(|n| n.to_le_bytes()[0])
            .collect::<Vec<u8>>(),
    );
    let connections = trusting_the_server();
    let (reply, ()) = tokio::join!(send(&connections, &base, body.clone()), async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut tls = acceptor().accept(tcp).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(&body) {
            tls.read_buf(&mut seen).await.unwrap();
        }
        tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n")
            .await
            .unwrap();
        tls.write_all(&body).await.unwrap();
    });
    let echo = body_of(reply.unwrap()).collect(4_000_000).await.unwrap();
    assert!(echo == body, "it came back changed");
}
