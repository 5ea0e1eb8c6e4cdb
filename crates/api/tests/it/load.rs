//! Clients that send requests until they are told to stop, and remember what they saw.
//!
//! Each request has a name of its own, which the relay records as its `user-agent` and the fake
//! provider sees as the `user` of the body: so each of the three can be compared with the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::{FakeUpstream, HttpClient, Request, Script, words};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::deployment::Deployment;

/// Models by the manner of the fake provider.
pub(crate) const QUICK: &str = "quick";
const PACED: &str = "paced";
const SLOW: &str = "slow";
/// The time between two events of a paced stream.
pub(crate) const PACE: Duration = Duration::from_millis(8);
/// More than any request asks for.
const ENDLESS: usize = 1_000;
/// Names are as long as a `user-agent` may be, so that segments of the journal fill up soon.
pub(crate) const NAME_LENGTH: usize = 200;

/// How a request ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The whole answer came.
    Complete,
    /// An error came instead of an answer: its status and code.
    Refused(u16, String),
    /// A stream ended with an error event of this code.
    Failed(String),
    /// The connection broke off.
    Broken,
    /// The client left in the middle.
    Left,
}

/// A request as its client saw it.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// What names it everywhere.
    pub(crate) name: String,
    /// In which life of the relay it was sent.
    pub(crate) life: usize,
    /// Whether a stream was asked for.
    pub(crate) streams: bool,
    /// The id that the relay answered.
    pub(crate) request_id: Option<String>,
    /// When each token of the answer arrived, from the start of the load.
    pub(crate) tokens: Vec<Duration>,
    pub(crate) outcome: Outcome,
}

/// What the clients share.
#[derive(Debug)]
struct Shared {
    keys: Vec<String>,
    /// Where the relay is, while it is.
    address: watch::Receiver<Option<SocketAddr>>,
    life: AtomicUsize,
    stopped: AtomicBool,
    hurries: AtomicBool,
    /// How often each client sends a request; `None` when it waits for nothing but the answer.
    every: Option<Duration>,
    started: Instant,
    /// Requests that were sent, and those that were answered, were refused or broke off.
    sent: AtomicUsize,
    ended: AtomicUsize,
}

/// Clients at work, in a thread of their own.
pub(crate) struct Load {
    shared: Arc<Shared>,
    address: watch::Sender<Option<SocketAddr>>,
    thread: JoinHandle<Vec<Call>>,
}

/// Makes the routes of the load and teaches the provider its manners.
pub(crate) fn prepare(deployment: &Deployment) {
    for model in [QUICK, PACED, SLOW] {
        deployment.run(&["route", "create", model, "--to", &format!("fake={model}")]);
    }
    teach(&deployment.upstream);
}

fn teach(upstream: &FakeUpstream) {
    let endless = Script::new().words(ENDLESS);
    upstream
        .script_for_model(QUICK, endless.clone())
        .script_for_model(PACED, endless.clone().pace(PACE))
        .script_for_model(SLOW, endless.head_delay(Duration::from_millis(30)));
}

impl Load {
    /// Starts so many clients; they wait until there is an address. The number of a client decides
    /// about its key and its habits.
    pub(crate) fn start(clients: usize, keys: Vec<String>) -> Self {
        Self::start_with(clients, keys, None)
    }

    /// Starts so many clients as [`start`](Self::start) does, each of which sends a request this
    /// often.
    pub(crate) fn steady(clients: usize, keys: Vec<String>, every: Duration) -> Self {
        Self::start_with(clients, keys, Some(every))
    }

    fn start_with(clients: usize, keys: Vec<String>, every: Option<Duration>) -> Self {
        let (address, receiver) = watch::channel(None);
        let shared = Arc::new(Shared {
            keys,
            address: receiver,
            life: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            hurries: AtomicBool::new(false),
            every,
            started: Instant::now(),
            sent: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let clients: Vec<_> = (0..clients)
                        .map(|number| tokio::spawn(client(number, Arc::clone(&shared))))
                        .collect();
                    let mut calls = Vec::new();
                    for client in clients {
                        calls.extend(client.await.unwrap());
                    }
                    calls
                })
            }
        });
        Self {
            shared,
            address,
            thread,
        }
    }

    /// Tells the clients where the relay is; requests from now on are of this life.
    pub(crate) fn send_to(&self, life: usize, address: SocketAddr) {
        self.shared.life.store(life, Ordering::SeqCst);
        self.address.send_replace(Some(address));
    }

    /// Lets the clients send many short requests from now on, or their usual ones.
    pub(crate) fn hurry(&self, hurries: bool) {
        self.shared.hurries.store(hurries, Ordering::SeqCst);
    }

    /// Says how far the clients have come.
    pub(crate) fn describe(&self) -> String {
        let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
        let (sent, ended) = (count(&self.shared.sent), count(&self.shared.ended));
        format!("{sent} requests were sent, {ended} have ended")
    }

    /// Blocks until so many more requests have ended.
    pub(crate) fn wait_for_ends(&self, more: usize, at_most: Duration) {
        let ended = || self.shared.ended.load(Ordering::SeqCst);
        let (before, deadline) = (ended(), Instant::now() + at_most);
        while ended() < before + more {
            assert!(Instant::now() < deadline, "{}", self.describe());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Lets the clients wait for the next life.
    pub(crate) fn pause(&self) {
        self.address.send_replace(None);
    }

    /// Lets every client end its request, and returns all calls.
    pub(crate) fn stop(self) -> Vec<Call> {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.address.send_modify(|_| {});
        self.thread.join().unwrap()
    }
}

/// A small generator: a try prints no more than its numbers to be repeated.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Returns a number below `end`.
    pub(crate) fn count(&mut self, end: u32) -> usize {
        usize::try_from(self.below(end.into())).unwrap()
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

async fn client(number: usize, shared: Arc<Shared>) -> Vec<Call> {
    let mut dice = Dice::new(number as u64 + 1);
    let mut calls = Vec::new();
    let mut address = shared.address.clone();
    let mut connection: Option<HttpClient> = None;
    loop {
        if shared.stopped.load(Ordering::SeqCst) {
            return calls;
        }
        let Some(target) = *address.borrow_and_update() else {
            connection = None;
            address.changed().await.unwrap();
            continue;
        };
        let mut client = match connection.take() {
            Some(client) => client,
            None => match HttpClient::connect(target).await {
                Ok(client) => client,
                Err(_not_there) => {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                    continue;
                }
            },
        };
        let sent_at = Instant::now();
        shared.sent.fetch_add(1, Ordering::SeqCst);
        let call = one_call(&mut client, number, calls.len(), &mut dice, &shared).await;
        shared.ended.fetch_add(1, Ordering::SeqCst);
        let may_go_on = matches!(call.outcome, Outcome::Complete | Outcome::Refused(..));
        if matches!(call.outcome, Outcome::Refused(..)) {
            // As a client does.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        calls.push(call);
        // Also connections that are used once.
        connection = (may_go_on && dice.below(8) > 0).then_some(client);
        if let Some(every) = shared.every {
            tokio::time::sleep_until(sent_at + every).await;
        } else if number % 4 == 3 && !shared.hurries.load(Ordering::SeqCst) {
            // This one leaves its key's lease idle between two requests.
            tokio::time::sleep(Duration::from_millis(dice.below(150))).await;
        }
    }
}

async fn one_call(
    client: &mut HttpClient,
    number: usize,
    count: usize,
    dice: &mut Dice,
    shared: &Shared,
) -> Call {
    let name = format!("{:x<NAME_LENGTH$}", format!("client-{number}-{count}-"));
    let hurries = shared.hurries.load(Ordering::SeqCst);
    let (model, streams) = match dice.below(10) {
        _ if hurries => (QUICK, false),
        0..=2 => (QUICK, true),
        3..=5 => (PACED, true),
        6..=7 => (QUICK, false),
        _ => (SLOW, false),
    };
    let mut body = words::chat_request(model, 1 + dice.count(9));
    body["user"] = name.clone().into();
    body["max_tokens"] = if hurries { 1 } else { 1 + dice.below(40) }.into();
    if streams {
        body["stream"] = json!(true);
    }
    let leaves_after = (streams && dice.below(12) == 0).then(|| dice.count(10));
    let key = number % shared.keys.len();
    let request = Request::post("/v1/chat/completions", &body)
        .key(&shared.keys[key])
        .header("user-agent", &name);
    let mut call = Call {
        name,
        life: shared.life.load(Ordering::SeqCst),
        streams,
        request_id: None,
        tokens: Vec::new(),
        outcome: Outcome::Broken,
    };
    if let Ok(outcome) = talk(client, &request, leaves_after, &mut call, shared).await {
        call.outcome = outcome;
    }
    call
}

/// Sends the request and reads the answer; an error leaves what was read until then in `call`.
async fn talk(
    client: &mut HttpClient,
    request: &Request,
    leaves_after: Option<usize>,
    call: &mut Call,
    shared: &Shared,
) -> std::io::Result<Outcome> {
    client.send(request).await?;
    let head = client.read_head().await?;
    call.request_id = head.headers.get("x-request-id").map(str::to_owned);
    if head.status != 200 {
        let body: Value = serde_json::from_slice(&client.read_body().await?).unwrap_or_default();
        let code = body["error"]["code"].as_str().unwrap_or_default();
        return Ok(Outcome::Refused(head.status, code.to_owned()));
    }
    if !call.streams {
        let body: Value = serde_json::from_slice(&client.read_body().await?).unwrap();
        let content = body["choices"][0]["message"]["content"].as_str();
        let count = words::count_words(content.unwrap_or_default());
        call.tokens = vec![shared.started.elapsed(); count];
        return Ok(Outcome::Complete);
    }
    while let Some(event) = client.next_event().await? {
        if event.is_comment() || !event.is_whole {
            continue;
        }
        if event.is_done() {
            return Ok(Outcome::Complete);
        }
        let json = event.json();
        if !json["error"].is_null() {
            let code = json["error"]["code"].as_str().unwrap_or_default();
            return Ok(Outcome::Failed(code.to_owned()));
        }
        let text = json["choices"][0]["delta"]["content"].as_str();
        let count = words::count_words(text.unwrap_or_default());
        call.tokens
            .extend(std::iter::repeat_n(shared.started.elapsed(), count));
        if leaves_after.is_some_and(|count| call.tokens.len() > count) {
            return Ok(Outcome::Left);
        }
    }
    // A clean end without the terminal event would be a silent truncation.
    Ok(Outcome::Failed("clean end".to_owned()))
}
