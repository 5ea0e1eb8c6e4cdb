//! A small upstream on a raw socket that does exactly what a test tells it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// Time for whatever must happen, on whatever machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// One step of an answer.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Writes these bytes.
    Write(String),
    /// Writes these bytes again and again until the client closes the connection.
    Flood(String),
    /// Waits.
    Wait(Duration),
    /// Waits until the test says so.
    WaitFor(Arc<Notify>),
    /// Waits until the client closes the connection.
    WaitForClose,
    /// Says that nothing more comes, and keeps the connection.
    ShutDown,
    /// Closes with a reset instead of an orderly end.
    Reset,
    /// Closes in an orderly way.
    Close,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn header_names(&self) -> Vec<String> {
        let lines = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'));
        let mut names: Vec<String> = lines.map(|(name, _)| name.to_lowercase()).collect();
        names.sort();
        names
    }
}

/// What happened so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) opened: usize,
    pub(crate) closed: usize,
    /// Requests that were read.
    pub(crate) asked: usize,
    /// Requests whose script was played to its end.
    pub(crate) answered: usize,
}

/// A server; every request on every connection is answered by the same script.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    counts: watch::Receiver<Counts>,
}

impl Server {
    pub(crate) async fn start(script: Vec<Step>) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    pub(crate) fn start_on(listener: TcpListener, script: Vec<Step>) -> Self {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (sender, counts) = watch::channel(Counts::default());
        let (script, log) = (Arc::new(script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                sender.send_modify(|counts| counts.opened += 1);
                let (script, log, sender) = (Arc::clone(&script), Arc::clone(&log), sender.clone());
                tokio::spawn(async move {
                    serve(stream, &script, &log, &sender).await;
                    sender.send_modify(|counts| counts.closed += 1);
                });
            }
        });
        Self {
            address,
            seen,
            counts,
        }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(crate) fn opened(&self) -> usize {
        self.counts.borrow().opened
    }

    /// Waits until so many connections were closed, at most so long.
    #[track_caller]
    pub(crate) fn closed_within(
        &self,
        count: usize,
        limit: Duration,
    ) -> impl Future<Output = bool> + use<> {
        let mut counts = self.counts.clone();
        async move {
            timeout(limit, counts.wait_for(|counts| counts.closed >= count))
                .await
                .is_ok()
        }
    }

    /// Waits until something has come to pass.
    pub(crate) async fn wait_for(&self, is_reached: impl Fn(&Counts) -> bool + Send + Sync) {
        let mut counts = self.counts.clone();
        let reached = timeout(SOON, counts.wait_for(|counts| is_reached(counts))).await;
        let counts = self.counts.borrow().clone();
        reached
            .unwrap_or_else(|_elapsed| panic!("only {counts:?}"))
            .unwrap();
    }
}

async fn serve(
    mut stream: TcpStream,
    script: &[Step],
    log: &Mutex<Vec<Seen>>,
    counts: &watch::Sender<Counts>,
) {
    stream.set_nodelay(true).unwrap();
    while let Some(request) = read_request(&mut stream).await {
        log.lock().push(request);
        counts.send_modify(|counts| counts.asked += 1);
        for step in script {
            match step {
                Step::Write(text) => {
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                Step::Flood(text) => {
                    while stream.write_all(text.as_bytes()).await.is_ok() {}
                    return;
                }
                Step::Wait(time) => sleep(*time).await,
                Step::WaitFor(word) => word.notified().await,
                Step::WaitForClose => {
                    let mut byte = [0];
                    // The client sends nothing more: an end or an error is its close.
                    while matches!(stream.read(&mut byte).await, Ok(n) if n > 0) {}
                    return;
                }
                Step::ShutDown => stream.shutdown().await.unwrap(),
                Step::Reset => {
                    stream.set_zero_linger().unwrap();
                    return;
                }
                Step::Close => return,
            }
        }
        counts.send_modify(|counts| counts.answered += 1);
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).await.ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let mut seen = Seen {
        head,
        body: String::new(),
    };
    let length = seen
        .header("content-length")
        .map_or(0, |value| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    seen.body = String::from_utf8(body).unwrap();
    Some(seen)
}

/// A head with `transfer-encoding: chunked`.
pub(crate) fn chunked_head(status: &str, content_type: &str) -> Step {
    Step::Write(format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    ))
}

/// The head of a stream of events.
pub(crate) fn stream_head() -> Step {
    chunked_head("200 OK", "text/event-stream")
}

/// One chunk.
pub(crate) fn chunk(text: &str) -> Step {
    Step::Write(format!("{:x}\r\n{text}\r\n", text.len()))
}

/// The end of a chunked body.
pub(crate) fn end() -> Step {
    Step::Write("0\r\n\r\n".to_owned())
}

/// A whole answer with a length.
pub(crate) fn document(status: &str, headers: &str, body: &str) -> Step {
    Step::Write(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// A whole JSON answer.
pub(crate) fn json(status: &str, body: &str) -> Step {
    document(status, "content-type: application/json\r\n", body)
}

pub(crate) fn wait_ms(ms: u64) -> Step {
    Step::Wait(Duration::from_millis(ms))
}
