//! A client that leaves, whenever it leaves, is billed by the table of endings: one record, with what
//! the fake provider itself counted.
//!
//! Where the provider waits at the position at which the client leaves, both have the same count, and
//! the record is exact. Where the provider runs ahead, it is between what the client had received and
//! what the provider had sent. `SLUICE_PROVE_POSITIONS=200` makes it so many positions.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_domain::usage::{Basis, Ending};
use sluice_storage::usage::StoredRecord;
use sluice_testkit::{Gate, HttpClient, Quirk, Request, Script, Served, words};
use tokio::time::Instant;

use crate::audit::{all_records, audit_ledger};
use crate::deployment::{Backend, Deployment, Relay, figure};

/// Positions in the small size.
const POSITIONS: usize = 20;
const PROMPT_WORDS: usize = 7;
/// The time between two events of a provider that runs ahead.
const PACE: Duration = Duration::from_millis(1);
/// Hundreds of streams at a time, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_mins(2);

/// The one that asks for it is one of them.
const CONNECTIONS: &str = "sluice_connections";
const OPEN_HOLDS: &str = "sluice_ledger_open_holds";

#[tokio::test]
async fn a_client_that_leaves_at_any_position_is_billed_once_on_sqlite() {
    try_disconnects(Backend::Sqlite).await;
}

#[tokio::test]
async fn a_client_that_leaves_at_any_position_is_billed_once_on_postgres() {
    try_disconnects(Backend::Postgres).await;
}

async fn try_disconnects(backend: Backend) {
    let Some(mut deployment) = Deployment::new(backend) else {
        return;
    };
    prepare(&mut deployment);
    let positions = positions();
    let relay = deployment.start();
    let mut tries = Vec::new();
    for format in [
        Format::Chat,
        Format::Completion,
        Format::Embedding,
        Format::Message,
    ] {
        for side in [Side::Cancel, Side::Drain] {
            for kind in format.kinds(side) {
                let (gate, waiting) = kind.waiting(positions);
                tries.extend(leave_together(&relay, kind, &gate, waiting).await);
                let ahead = kind.ahead(positions);
                tries.extend(leave_each(&relay, ahead).await);
            }
        }
    }
    assert!(relay.stop(), "{}", relay.process.stderr());

    let deployment = &relay.deployment;
    let mut records: HashMap<String, Vec<StoredRecord>> = HashMap::new();
    for record in all_records(deployment).await {
        let name = record.user_agent.clone().unwrap_or_default();
        records.entry(name).or_default().push(record);
    }
    let mut served: HashMap<String, Vec<Served>> = HashMap::new();
    for each in relay.upstream().served() {
        let body = each.json();
        let user = body.get("user").unwrap_or(&body["metadata"]["user_id"]);
        let name = user.as_str().unwrap().to_owned();
        served.entry(name).or_default().push(each);
    }
    let mut tally: BTreeMap<String, usize> = BTreeMap::new();
    for this in &tries {
        let records = records.remove(&this.name).unwrap_or_default();
        let served = served.remove(&this.name).unwrap_or_default();
        let found = this.check(&records, &served);
        *tally.entry(found).or_default() += 1;
    }
    println!(
        "\n{backend:?}: {} tries at {positions} positions: {tally:#?}",
        tries.len()
    );
    assert!(records.is_empty(), "nobody's: {records:?}");
    audit_ledger(deployment).await.assert_clean();
}

fn positions() -> usize {
    #[expect(
        clippy::disallowed_methods,
        reason = "the size of a try is told by the environment"
    )]
    let positions = std::env::var("SLUICE_PROVE_POSITIONS").ok();
    positions.map_or(POSITIONS, |positions| positions.parse().unwrap())
}

/// Adds an upstream for each side. Their deadlines are long: the provider waits for all clients.
fn prepare(deployment: &mut Deployment) {
    let url = deployment.upstream.base_url();
    for side in [Side::Cancel, Side::Drain] {
        let name = side.name();
        let claude = format!("{name}-claude");
        for (upstream, kind) in [(name, "compatible"), (&*claude, "anthropic")] {
            deployment.run(&[
                "upstream",
                "create",
                upstream,
                "--kind",
                kind,
                "--url",
                &url,
                "--allow-private",
                "--client-gone",
                name,
                "--idle-ms",
                "120000",
                "--first-event-ms",
                "120000",
            ]);
        }
        let key_file = deployment.folder.path().join("upstream.key");
        let key_file = key_file.display().to_string();
        deployment.run(&[
            "upstream", "key", "add", &claude, "main", "--file", &key_file,
        ]);
        // Each protocol has its own half of the route.
        deployment.run(&["route", "create", name, "--to", name, "--to", &claude]);
    }
    deployment.set("SLUICE_RELAY_KEEP_ALIVE_MS", "600000");
    deployment.set("SLUICE_RELAY_MAX_DRAINS", "1000");
    deployment.set("SLUICE_LOG_LEVEL", "warn,sluice_api=info");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Chat,
    Completion,
    Embedding,
    Message,
}

impl Format {
    fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
            Self::Embedding => "/v1/embeddings",
            Self::Message => "/v1/messages",
        }
    }

    /// Events of a stream beside its words: the role of a chat, the finish, the usage, the end; of a
    /// message, the start and the end of it and of its block, and the stop.
    fn frame(self) -> usize {
        match self {
            Self::Message => 5,
            Self::Chat => 4,
            Self::Completion | Self::Embedding => 3,
        }
    }

    fn kinds(self, side: Side) -> Vec<Kind> {
        let kind = |streams| Kind {
            format: self,
            side,
            streams,
        };
        match self {
            Self::Embedding => vec![kind(false)],
            Self::Chat | Self::Completion | Self::Message => vec![kind(false), kind(true)],
        }
    }
}

/// What the upstream wants when a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Cancel,
    Drain,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Drain => "drain",
        }
    }
}

/// When a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// After so many bytes of its request.
    InRequest(usize),
    /// As soon as the request is written.
    AtOnce,
    /// The provider has the request and has not answered.
    BeforeHead,
    /// The head of the provider's plain answer has come.
    BeforeBody,
    /// So has the beginning of its body.
    InBody,
    /// It has read so many events of a stream.
    After(usize),
    /// It has read the head of a plain answer.
    InAnswer,
}

#[derive(Debug, Clone, Copy)]
struct Kind {
    format: Format,
    side: Side,
    streams: bool,
}

/// One request whose client leaves.
#[derive(Debug)]
struct Try {
    name: String,
    kind: Kind,
    leave: Leave,
    /// Whether the provider writes on while the client leaves.
    runs_ahead: bool,
    script: Script,
    /// Words that the client has received.
    received: usize,
}

impl Kind {
    fn words(self, positions: usize) -> usize {
        positions.saturating_sub(self.format.frame()).max(1)
    }

    /// Events of the whole stream.
    fn events(self, positions: usize) -> usize {
        self.words(positions) + self.format.frame()
    }

    /// Clients that leave where the provider waits, and the gate that lets it go on.
    fn waiting(self, positions: usize) -> (Gate, Vec<Try>) {
        let gate = Gate::new();
        let answer = || Script::new().words(self.words(positions));
        let mut plan = Vec::new();
        if self.streams {
            plan.push((Leave::BeforeHead, answer().wait_before_head(&gate)));
            for events in 0..=self.events(positions) {
                plan.push((Leave::After(events), answer().wait_at(events, &gate)));
            }
        } else {
            let length = self.request("").to_bytes().len();
            let quarter = positions.div_ceil(4);
            for number in 0..quarter {
                let bytes = length * number / quarter;
                plan.push((Leave::InRequest(bytes), answer()));
                plan.push((Leave::BeforeHead, answer().wait_before_head(&gate)));
                plan.push((Leave::BeforeBody, answer().wait_at(0, &gate)));
                let begun = answer().with(Quirk::BlankLines(number + 1));
                plan.push((Leave::InBody, begun.wait_at(0, &gate)));
            }
        }
        (gate, self.tries(plan, false))
    }

    /// Clients that leave while the provider writes on.
    fn ahead(self, positions: usize) -> Vec<Try> {
        let answer = || Script::new().words(self.words(positions)).pace(PACE);
        let leave = |number| match number {
            0 => Leave::AtOnce,
            number if self.streams => Leave::After(number),
            _ => Leave::InAnswer,
        };
        let plan = (0..=self.events(positions)).flat_map(|number| {
            let again = (!self.streams).then_some((Leave::AtOnce, answer()));
            again.into_iter().chain([(leave(number), answer())])
        });
        self.tries(plan.collect(), true)
    }

    fn tries(self, plan: Vec<(Leave, Script)>, runs_ahead: bool) -> Vec<Try> {
        let provider = if runs_ahead { "ahead" } else { "waits" };
        let shape = if self.streams { "stream" } else { "plain" };
        let (format, side) = (self.format, self.side.name());
        let a_try = |(number, (leave, script))| Try {
            name: format!("{format:?} {shape} {side} {provider} {number} {leave:?}"),
            kind: self,
            leave,
            runs_ahead,
            script,
            received: 0,
        };
        plan.into_iter().enumerate().map(a_try).collect()
    }

    fn request(self, name: &str) -> Request {
        let model = self.side.name();
        let mut body: Value = match self.format {
            Format::Chat => words::chat_request(model, PROMPT_WORDS),
            Format::Completion => words::completion_request(model, PROMPT_WORDS),
            Format::Embedding => words::embedding_request(model, PROMPT_WORDS),
            Format::Message => words::message_request(model, PROMPT_WORDS),
        };
        let is_message = self.format == Format::Message;
        if is_message {
            body["metadata"] = json!({"user_id": name});
        } else {
            body["user"] = name.into();
        }
        if self.streams {
            body["stream"] = json!(true);
        }
        if self.streams && !is_message {
            // So that each event of the provider is one for the client.
            body["stream_options"] = json!({"include_usage": true});
        }
        Request::post(self.format.path(), &body).header("user-agent", name)
    }
}

impl Try {
    /// Sends the request and reads the answer as far as the client goes. It leaves when the connection
    /// is dropped.
    async fn go(&mut self, address: SocketAddr, key: &str) -> HttpClient {
        let mut client = HttpClient::connect(address)
            .await
            .unwrap()
            .patience(PATIENCE);
        let request = self.kind.request(&self.name).key(key);
        if let Leave::InRequest(bytes) = self.leave {
            let whole = request.to_bytes();
            client.send_raw(&whole[..bytes]).await.unwrap();
            return client;
        }
        client.send(&request).await.unwrap();
        match self.leave {
            Leave::After(1..) | Leave::InAnswer => {
                let head = client.read_head().await.unwrap();
                assert_eq!(head.status, 200, "{}", self.name);
            }
            _ => return client,
        }
        if let Leave::After(events) = self.leave {
            for _ in 0..events {
                let mut event = client.next_event().await.unwrap().unwrap();
                while event.raw.starts_with(b"event: ping") {
                    event = client.next_event().await.unwrap().unwrap();
                }
                if !event.is_done() {
                    let event = event.json();
                    let choice = &event["choices"][0];
                    let text = choice["delta"]["content"].as_str();
                    let text = text.or_else(|| choice["text"].as_str());
                    let text = text.or_else(|| event["delta"]["text"].as_str());
                    self.received += words::count_words(text.unwrap_or_default());
                }
            }
        }
        client
    }

    /// Compares the record with what the provider counted. Returns what became of the request.
    fn check(&self, records: &[StoredRecord], served: &[Served]) -> String {
        let name = &self.name;
        assert!(served.len() <= 1, "{name}: sent more than once: {served:?}");
        assert!(records.len() <= 1, "{name}: {records:?}");
        let Some(record) = records.first() else {
            assert!(served.is_empty(), "{name}: sent without a record");
            let may_be = matches!(self.leave, Leave::InRequest(_) | Leave::AtOnce);
            assert!(may_be, "{name}: no record");
            return "never begun".to_owned();
        };
        let served = served.first();
        let usage = record.usage;
        let all = || {
            format!(
                "{name}, {} words received: {record:?}, {served:?}",
                self.received
            )
        };
        let Some(served) = served else {
            assert_eq!(self.leave, Leave::AtOnce, "{}", all());
            assert_eq!(usage.output, 0, "{}", all());
            return "never sent".to_owned();
        };
        assert_eq!(record.quota_tokens, usage.total(), "{}", all());
        let (ending, basis) = (&*record.ending, &*record.basis);
        let ends_whole = match self.leave {
            Leave::InAnswer => true,
            Leave::After(_) => self.received_all(served),
            _ => false,
        };
        if ending == Ending::Finished.as_str() {
            // The client may be gone before the relay hears of it.
            assert!(ends_whole || self.runs_ahead, "{}", all());
            assert_eq!(basis, Basis::Reported.as_str(), "{}", all());
            assert_eq!(Some(usage), served.reported, "{}", all());
            assert!(served.is_complete(), "{}", all());
            return "finished".to_owned();
        }
        assert_eq!(ending, Ending::ClientLeft.as_str(), "{}", all());
        assert!(!ends_whole, "{}", all());
        assert_eq!(record.status, 499, "{}", all());
        if !self.kind.streams || self.kind.side == Side::Drain {
            assert_eq!(basis, Basis::Drained.as_str(), "{}", all());
            assert_eq!(Some(usage), served.reported, "{}", all());
            assert!(served.is_complete(), "{}", all());
            return "left, read to the end".to_owned();
        }
        if basis == Basis::Reported.as_str() {
            assert_eq!(Some(usage), served.reported, "{}", all());
            return "left after the usage".to_owned();
        }
        assert_eq!(basis, Basis::Counted.as_str(), "{}", all());
        assert_eq!(usage.input, served.input_tokens, "{}", all());
        let received = i64::try_from(self.received).unwrap();
        let is_message = self.kind.format == Format::Message;
        // The start of a message reports its first token before anything is written.
        let most = if is_message && usage.output == 1 {
            served.output_tokens.max(1)
        } else {
            served.output_tokens
        };
        assert!((received..=most).contains(&usage.output), "{}", all());
        let is_exact =
            received == served.output_tokens && (is_message || served.reported.is_none());
        assert!(self.runs_ahead || is_exact, "{}", all());
        if received == 0 {
            return "left, pays the prompt at least".to_owned();
        }
        "left, pays what was read".to_owned()
    }

    /// Whether the client has read the last event.
    fn received_all(&self, served: &Served) -> bool {
        served.is_complete()
            && matches!(self.leave, Leave::After(events) if events == served.events_written)
    }
}

/// All clients come to their positions, then all leave; when the relay has heard of that, the provider
/// may go on.
async fn leave_together(relay: &Relay, kind: Kind, gate: &Gate, tries: Vec<Try>) -> Vec<Try> {
    let upstream = relay.upstream();
    let arriving = |this: &&Try| !matches!(this.leave, Leave::InRequest(_));
    let arrived = upstream.served().len() + tries.iter().filter(arriving).count();
    let tasks: Vec<_> = start(relay, tries)
        .map(|(mut this, address, key)| {
            tokio::spawn(async move {
                let client = this.go(address, &key).await;
                (this, client)
            })
        })
        .collect();
    let (mut tries, mut clients) = (Vec::new(), Vec::new());
    for task in tasks {
        let (this, client) = task.await.unwrap();
        tries.push(this);
        clients.push(client);
    }
    upstream
        .wait_for(move |all| all.len() == arrived, PATIENCE)
        .await;
    drop(clients);
    wait_for(relay, CONNECTIONS, 1).await;
    if kind.streams && kind.side == Side::Cancel {
        // Each is closed although its provider waits.
        upstream.wait_for_ends(arrived, PATIENCE).await;
    }
    gate.open();
    upstream.wait_for_ends(arrived, PATIENCE).await;
    wait_for(relay, OPEN_HOLDS, 0).await;
    tries
}

/// Each client leaves as soon as it is where it leaves.
async fn leave_each(relay: &Relay, tries: Vec<Try>) -> Vec<Try> {
    let tasks: Vec<_> = start(relay, tries)
        .map(|(mut this, address, key)| {
            tokio::spawn(async move {
                drop(this.go(address, &key).await);
                this
            })
        })
        .collect();
    let mut tries = Vec::new();
    for task in tasks {
        tries.push(task.await.unwrap());
    }
    wait_for(relay, CONNECTIONS, 1).await;
    wait_for(relay, OPEN_HOLDS, 0).await;
    relay.upstream().wait_for_ends(0, PATIENCE).await;
    tries
}

/// Tells the provider what to do, and everyone where to go.
fn start(relay: &Relay, tries: Vec<Try>) -> impl Iterator<Item = (Try, SocketAddr, String)> {
    tries.into_iter().map(|this| {
        let upstream = relay.upstream();
        upstream.script_for_user(&this.name, this.script.clone());
        (this, relay.address, relay.key().to_owned())
    })
}

/// Waits until a figure of the relay has a value.
async fn wait_for(relay: &Relay, name: &str, value: i64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = figure(relay.address, name).await;
        if found == value {
            return;
        }
        assert!(Instant::now() < deadline, "{name} is {found}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
