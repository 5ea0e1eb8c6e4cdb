//! Connections that are not encrypted, against servers that do what a test tells them.

use std::io::{Read as _, Write as _};

use tokio::net::TcpStream;

use super::*;

fn plain() -> Connections {
    trusting(RootCertStore::empty())
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    (listener, base)
}

async fn accept(listener: &TcpListener) -> TcpStream {
    let accepted = tokio::time::timeout(LONG, listener.accept()).await;
    let (stream, _) = accepted.expect("no connection was opened").unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Reads up to these bytes.
async fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    while !seen.ends_with(end) {
        assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0, "closed");
    }
    seen
}

/// Reads the head of a request and nothing more.
async fn read_head(stream: &mut TcpStream) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(stream.read_u8().await.unwrap());
    }
}

/// More than the system takes while nobody reads.
fn long_body() -> Bytes {
    let mut body: Vec<u8> = (0..8_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    body.extend_from_slice(b"the end");
    body.into()
}

#[tokio::test]
async fn a_long_request_arrives_whole_although_its_server_is_slow() {
    let (listener, base) = listen().await;
    let connections = plain();
    let body = long_body();
    let (reply, seen) = tokio::join!(send(&connections, &base, body.clone()), async {
        let mut stream = accept(&listener).await;
        let mut seen = Vec::new();
        while !seen.ends_with(b"the end") {
            let mut piece = vec![0; 40_000];
            let count = stream.read(&mut piece).await.unwrap();
            assert_ne!(count, 0, "closed");
            seen.extend_from_slice(&piece[..count]);
            tokio::task::yield_now().await;
        }
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
        seen
    });
    assert_eq!(reply.unwrap().status, 204);
    assert!(seen.ends_with(&body), "it arrived changed");
}

#[tokio::test]
async fn an_answer_to_a_part_of_a_request_is_an_answer() {
    for closes in [true, false] {
        let (listener, base) = listen().await;
        let connections = plain();
        let (reply, stream) = tokio::join!(send(&connections, &base, long_body()), async {
            let mut stream = accept(&listener).await;
            read_head(&mut stream).await;
            let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno!";
            stream.write_all(answer).await.unwrap();
            (!closes).then_some(stream)
        });
        let reply = reply.unwrap();
        assert_eq!(reply.status, 413);
        assert_eq!(body_of(reply).collect(100).await.unwrap(), "no!");
        // What is left of the request cannot be taken back, so the next one has its own connection.
        let (again, ()) = tokio::join!(send(&connections, &base, "{}"), async {
            let mut stream = accept(&listener).await;
            read_until(&mut stream, b"{}").await;
            stream.write_all(b"HTTP/1.1 204 x\r\n\r\n").await.unwrap();
        });
        assert_eq!(again.unwrap().status, 204);
        if let Some(mut stream) = stream {
            let mut rest = Vec::new();
            while matches!(stream.read_buf(&mut rest).await, Ok(1..)) {}
            assert!(rest.len() < long_body().len(), "{} bytes", rest.len());
        }
    }
}

#[tokio::test]
async fn an_answer_outlives_the_reset_of_a_request_that_was_not_read() {
    for _ in 0..30 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        // On a thread of its own it closes while a long request is being written.
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 64]).unwrap();
            let answer = b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno!";
            stream.write_all(answer).unwrap();
        });
        let connections = plain();
        let reply = send(&connections, &base, long_body()).await.unwrap();
        assert_eq!(reply.status, 413);
        assert_eq!(body_of(reply).collect(100).await.unwrap(), "no!");
        server.join().unwrap();
    }
}

#[tokio::test]
async fn the_rest_of_a_request_is_sent_while_its_answer_is_read() {
    let (listener, base) = listen().await;
    let connections = plain();
    let body = long_body();
    let (text, ()) = tokio::join!(
        async {
            let reply = send(&connections, &base, body.clone()).await.unwrap();
            assert_eq!(reply.status, 200);
            body_of(reply).collect(100).await.unwrap()
        },
        async {
            let mut stream = accept(&listener).await;
            read_head(&mut stream).await;
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";
            stream.write_all(head).await.unwrap();
            let seen = read_until(&mut stream, b"the end").await;
            assert!(seen == body, "it arrived changed");
            stream.write_all(b"done").await.unwrap();
        }
    );
    assert_eq!(text, "done");
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let (listener, base) = listen().await;
    let connections = plain();
    let (reply, ()) = tokio::join!(send(&connections, &base, "{}"), async {
        let mut stream = accept(&listener).await;
        read_until(&mut stream, b"{}").await;
        for text in [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 103 x\r\na: b\r\n\r\nHTTP/1.1 2",
            "04 x\r\n\r\n",
        ] {
            stream.write_all(text.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_eq!(reply.unwrap().status, 204);
}

/// When bytes come that nobody asked for.
#[derive(Debug, Clone, Copy)]
enum Unasked {
    WithTheAnswer,
    WithTheBody,
    BehindTheAnswer,
    BeforeTheNextRequest,
}

#[tokio::test]
async fn what_nobody_asked_for_is_never_the_answer_to_another_request() {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nmine";
    let forged = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    for when in [
        Unasked::WithTheAnswer,
        Unasked::WithTheBody,
        Unasked::BehindTheAnswer,
        Unasked::BeforeTheNextRequest,
    ] {
        let (listener, base) = listen().await;
        let connections = plain();
        let (body, mut first) = tokio::join!(
            async {
                let reply = send(&connections, &base, "{}").await.unwrap();
                body_of(reply).collect(100).await.unwrap()
            },
            async {
                let mut stream = accept(&listener).await;
                read_until(&mut stream, b"{}").await;
                let together = [answer, forged].concat();
                let (head, body) = together.split_at(answer.len() - "mine".len());
                match when {
                    Unasked::WithTheAnswer => stream.write_all(together.as_bytes()).await.unwrap(),
                    Unasked::WithTheBody => {
                        stream.write_all(head.as_bytes()).await.unwrap();
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        stream.write_all(body.as_bytes()).await.unwrap();
                    }
                    Unasked::BehindTheAnswer | Unasked::BeforeTheNextRequest => {
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                }
                stream
            }
        );
        assert_eq!(body, "mine");
        match when {
            Unasked::WithTheAnswer | Unasked::WithTheBody => {}
            Unasked::BehindTheAnswer => {
                first.write_all(forged.as_bytes()).await.unwrap();
                // The connection is closed although nobody asks.
                let mut byte = [0];
                let closed = first.read(&mut byte);
                let closed = tokio::time::timeout(LONG, closed).await;
                assert!(!matches!(closed.unwrap(), Ok(1..)));
            }
            Unasked::BeforeTheNextRequest => first.write_all(forged.as_bytes()).await.unwrap(),
        }
        let (body, ()) = tokio::join!(
            async {
                let reply = send(&connections, &base, "{}").await.unwrap();
                body_of(reply).collect(100).await.unwrap()
            },
            async {
                let mut stream = accept(&listener).await;
                read_until(&mut stream, b"{}").await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        );
        assert_eq!(body, "mine", "{when:?}");
    }
}

#[tokio::test]
async fn a_head_that_trickles_is_waited_for_only_so_long() {
    let (listener, base) = listen().await;
    let origin = Origin::new(&base.parse().unwrap(), true).unwrap();
    let patience = Patience {
        connect: LONG,
        head: Duration::from_millis(200),
    };
    let connections = plain();
    let request = request("{}");
    let server = tokio::spawn(async move {
        let mut stream = accept(&listener).await;
        read_until(&mut stream, b"{}").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await.unwrap();
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let begun = Instant::now();
    let error = connections
        .exchange(&origin, &request, patience, Instant::now())
        .await
        .unwrap_err();
    assert!(matches!(error, ExchangeError::NoHead), "{error:?}");
    // The server goes on for as long as anybody listens.
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    server.await.unwrap();
}

#[tokio::test]
async fn a_request_that_meets_a_closed_connection_comes_back_unsent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let origin = Origin::new(&base.parse().unwrap(), true).unwrap();
    let stream = connector::open(&origin, None, LONG).await.unwrap();
    let mut connection = Connection::new(stream);
    drop(listener.accept().await.unwrap());
    // The end arrives in the meantime.
    tokio::time::sleep(Duration::from_millis(50)).await;
    match connection.send(&request("{}"), LONG).await {
        Err(SendFailure::Unsent(WireError::Closed)) => {}
        Err(SendFailure::Unsent(error) | SendFailure::Broken(error)) => panic!("{error:?}"),
        Err(SendFailure::TimedOut) | Ok(_) => panic!("sent to nobody"),
    }
}
