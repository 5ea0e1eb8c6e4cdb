//! A quota is never overspent: not by many requests at once, not by several instances, not by a
//! provider that reports more than was held; and none is refused while there is room for it.
//!
//! Each request refers to something outside of its body, so that its bound is the context window of
//! its model and what it allows as output, and is never made tight. `SLUICE_PROVE_ROUNDS=200` makes
//! it so many rounds, each with more requests at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use sluice_domain::ports::LedgerStore;
use sluice_domain::quota::{CounterBalance, Payer, ScopeKind};
use sluice_testkit::{HttpClient, Request, RunningProcess, Script, words};

use crate::deployment::{Backend, Deployment, PATIENCE, wait_until_posted};

/// A model of which the relay knows the context window.
const CONTEXT_WINDOW: i64 = 8_192;
const MAX_TOKENS: i64 = 100;
/// What each request may cost.
const BOUND: i64 = CONTEXT_WINDOW + MAX_TOKENS;
/// Spends its hold to the last token.
const WHOLE: &str = "gpt-4-whole";
/// Reports more than was held.
const MORE: &str = "gpt-4-more";
const PROMPT_WORDS: usize = 5;
const ANSWER_WORDS: usize = 3;
/// Requests at once in the small size, and in the full one.
const PARALLEL: usize = 300;
const PARALLEL_IN_FULL: usize = 1_000;
/// How many requests the quota has room for.
const ROOM: usize = 40;
/// By so much there is more room than requests at once, so that an instance leases more for its first
/// request than that takes. The rest is idle there, while another instance is asked for all else.
const MUCH_ROOM: usize = 60;
/// What is left then: so little that nothing of the room for the last one may stay where it is idle.
const REST: i64 = 1;
const ROUNDS: usize = 2;
/// Rounds that are printed.
const SHOWN: usize = 6;

#[tokio::test]
async fn three_instances_never_overspend_a_quota() {
    try_to_overspend(Backend::Postgres, 3).await;
}

#[tokio::test]
async fn one_instance_never_overspends_a_quota() {
    try_to_overspend(Backend::Sqlite, 1).await;
}

async fn try_to_overspend(backend: Backend, instances: usize) {
    let Some(mut deployment) = Deployment::new(backend) else {
        return;
    };
    let (rounds, parallel) = size();
    // A machine that is busy with all of them may not come to ask the database within a second.
    deployment.set("SLUICE_LEDGER_QUOTA_WAIT_MS", "5000");
    for model in [WHOLE, MORE] {
        deployment.run(&["route", "create", model, "--to", &format!("fake={model}")]);
    }
    let written = words::count_chat(&[words::prompt(PROMPT_WORDS)]) + ANSWER_WORDS;
    let answer = Script::new()
        .words(ANSWER_WORDS)
        .head_delay(Duration::from_millis(30));
    let reasoning = BOUND - i64::try_from(written).unwrap();
    deployment
        .upstream
        .script_for_model(WHOLE, answer.clone().reasoning_tokens(reasoning))
        .script_for_model(MORE, answer.reasoning_tokens(reasoning + 1_000_000));
    let (processes, addresses) = start(&deployment, instances);
    let mut seen = Vec::new();
    for round in 0..rounds {
        let (model, room) = [(WHOLE, ROOM), (MORE, parallel + MUCH_ROOM)][round % 2];
        let name = format!("round-{round}");
        let key = deployment.issue_key(&name, &["--quota", &cap_of(room).to_string()]);
        let watch = Watch::start(&deployment, ScopeKind::Key, &name).await;
        seen.push(spend(&addresses, &key, model, room, parallel).await);
        for address in &addresses {
            wait_until_posted(*address).await;
        }
        let used = watch.end(cap_of(room)).await;
        assert_eq!(used, cap_of(room) - REST, "each has spent its whole hold");
    }
    // The same for the quota of the tenant, which has spent already. It had no cap until now, so that
    // what was leased meanwhile could be spent beyond it: a stop returns that.
    let watch = Watch::start(&deployment, ScopeKind::Tenant, "first").await;
    let cap_of_tenant = watch.end(i64::MAX).await + cap_of(ROOM);
    stop(processes);
    deployment.run(&[
        "tenant",
        "quota",
        "acme",
        "--tokens",
        &cap_of_tenant.to_string(),
    ]);
    let (processes, addresses) = start(&deployment, instances);
    let watch = Watch::start(&deployment, ScopeKind::Tenant, "first").await;
    seen.push(spend(&addresses, &deployment.key, WHOLE, ROOM, parallel).await);
    for address in &addresses {
        wait_until_posted(*address).await;
    }
    assert_eq!(watch.end(cap_of_tenant).await, cap_of_tenant - REST);

    stop(processes);
    println!("\n{backend:?}, {instances} instances, {parallel} at once");
    for (round, spent) in seen.iter().enumerate().rev().take(SHOWN) {
        println!("  {round}: {spent:?}");
    }
    let sum = |of: fn(&Spent) -> usize| seen.iter().map(of).sum::<usize>();
    println!(
        "  {} rounds: room for {}, {} admitted, {} refused with idle room",
        seen.len(),
        sum(|s| s.room),
        sum(Spent::admitted),
        sum(|s| s.refused_with_idle_room)
    );
    for (round, spent) in seen.into_iter().enumerate() {
        assert_eq!(spent.admitted(), spent.room, "{round}: {spent:?}");
        assert_eq!(spent.last_refusal, "insufficient_quota", "{spent:?}");
        let other = spent
            .refusals
            .keys()
            .find(|code| !["insufficient_quota", "quota_held"].contains(&code.as_str()));
        assert_eq!(other, None, "{round}: {spent:?}");
        assert_eq!(spent.refused_with_idle_room, 0, "{spent:?}");
    }
}

fn start(deployment: &Deployment, instances: usize) -> (Vec<Instance>, Vec<SocketAddr>) {
    let processes: Vec<Instance> = (0..instances)
        .map(|number| Instance::start(deployment, number))
        .collect();
    let addresses = processes.iter().map(|process| process.address).collect();
    (processes, addresses)
}

/// Stops them and prints what they complained of; refused requests are counted elsewhere.
#[track_caller]
fn stop(processes: Vec<Instance>) {
    for instance in processes {
        instance.stop();
        let log = instance.process.stderr();
        let complaints = log
            .lines()
            .filter(|line| line.contains("\"WARN\"") && !line.contains("answered with an error"));
        for line in complaints {
            println!("{line}");
        }
    }
}

fn cap_of(room: usize) -> i64 {
    i64::try_from(room).unwrap() * BOUND + REST
}

/// Returns how many rounds there are, and how many requests at once in each.
fn size() -> (usize, usize) {
    #[expect(
        clippy::disallowed_methods,
        reason = "the size of a try is told by the environment"
    )]
    let rounds = std::env::var("SLUICE_PROVE_ROUNDS").ok();
    rounds.map_or((ROUNDS, PARALLEL), |rounds| {
        (rounds.parse().unwrap(), PARALLEL_IN_FULL)
    })
}

/// One of several relays on one database.
struct Instance {
    process: RunningProcess,
    address: SocketAddr,
}

impl Instance {
    fn start(deployment: &Deployment, number: usize) -> Self {
        let folder = deployment.folder.path().join(format!("data-{number}"));
        let process = deployment
            .program(&["serve"])
            .env("SLUICE_DATA_DIR", folder)
            .start();
        let line = process.wait_for_line("accepting requests", PATIENCE);
        let event: Value = serde_json::from_str(&line).unwrap();
        let address = event["address"].as_str().unwrap().parse().unwrap();
        Self { process, address }
    }

    #[track_caller]
    fn stop(&self) {
        self.process.terminate();
        let status = self.process.wait_exit(PATIENCE);
        assert!(status.success(), "{status}\n{}", self.process.stderr());
    }
}

/// What became of the requests against one quota.
#[derive(Debug, Default)]
struct Spent {
    room: usize,
    /// One at each instance.
    admitted_first: usize,
    admitted_at_once: usize,
    /// One after the other, from instance to instance.
    admitted_after: usize,
    refusals: BTreeMap<String, usize>,
    /// Refusals of single requests while there was room for them.
    refused_with_idle_room: usize,
    last_refusal: String,
}

impl Spent {
    fn admitted(&self) -> usize {
        self.admitted_first + self.admitted_at_once + self.admitted_after
    }
}

/// Sends many requests at once, then single ones to each instance in turn until there is no room.
/// Where there is much room, each instance is asked once, and then the last alone.
async fn spend(
    addresses: &[SocketAddr],
    key: &str,
    model: &str,
    room: usize,
    parallel: usize,
) -> Spent {
    let mut spent = Spent {
        room,
        ..Spent::default()
    };
    let mut addresses = addresses;
    if room > parallel {
        for address in addresses {
            let answer = answer_code(*address, &request(key, model)).await;
            assert_eq!(answer, None);
            spent.admitted_first += 1;
        }
        addresses = &addresses[addresses.len() - 1..];
    }
    let at_once: Vec<_> = (0..parallel)
        .map(|number| {
            let address = addresses[number % addresses.len()];
            let request = request(key, model);
            tokio::spawn(async move { answer_code(address, &request).await })
        })
        .collect();
    for answer in at_once {
        match answer.await.unwrap() {
            None => spent.admitted_at_once += 1,
            Some(code) => *spent.refusals.entry(code).or_default() += 1,
        }
    }
    for number in 0..=room + addresses.len() {
        let address = addresses[number % addresses.len()];
        match answer_code(address, &request(key, model)).await {
            None => spent.admitted_after += 1,
            Some(code) => {
                let is_room = spent.admitted() < room;
                spent.refused_with_idle_room += usize::from(is_room);
                spent.last_refusal = code;
                if !is_room {
                    break;
                }
            }
        }
    }
    spent
}

fn request(key: &str, model: &str) -> Request {
    let mut body = words::chat_request(model, PROMPT_WORDS);
    body["max_tokens"] = MAX_TOKENS.into();
    let text = body["messages"][0]["content"].take();
    body["messages"][0]["content"] = json!([
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": "https://example.com/picture.png"}},
    ]);
    Request::post("/v1/chat/completions", &body).key(key)
}

/// Returns the code of the refusal; `None` when the request was answered.
async fn answer_code(address: SocketAddr, request: &Request) -> Option<String> {
    let mut client = HttpClient::connect(address)
        .await
        .unwrap()
        .patience(PATIENCE);
    let response = client.call(request).await.unwrap();
    if response.status() == 200 {
        return None;
    }
    let body = response.json();
    let code = body["error"]["code"].as_str().unwrap_or("").to_owned();
    if response.status() != 429 {
        return Some(format!("{} {code}", response.status()));
    }
    Some(code)
}

/// Looks at one counter in the database all the time.
struct Watch {
    is_over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<CounterBalance>>,
}

impl Watch {
    async fn start(deployment: &Deployment, kind: ScopeKind, key_name: &str) -> Self {
        let (storage, tenant) = deployment.storage().await;
        let keys = storage
            .list_keys(Some(tenant.id), None, 1_000)
            .await
            .unwrap();
        let key = keys
            .iter()
            .find(|key| key.name.to_string() == key_name)
            .unwrap();
        let payer = Payer {
            tenant_id: tenant.id,
            user_id: key.user_id,
            key_id: key.id,
        };
        let now = storage.list_instances().await.unwrap()[0].heartbeat_at;
        let counter = payer
            .counters(tenant.time_zone.period_of(now).month)
            .into_iter()
            .find(|counter| counter.scope.kind == kind)
            .unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn({
            let is_over = Arc::clone(&is_over);
            async move {
                let mut seen = Vec::new();
                loop {
                    let is_last = is_over.load(Ordering::SeqCst);
                    let balances = storage.load_counters(&[counter]).await.unwrap();
                    seen.extend(balances);
                    if is_last {
                        storage.close().await;
                        return seen;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        });
        Self { is_over, task }
    }

    /// Ends the watch after every charge has come to the database; never was more used and held than
    /// the cap. Returns what is used.
    async fn end(self, cap: i64) -> i64 {
        self.is_over.store(true, Ordering::SeqCst);
        let seen = self.task.await.unwrap();
        for balance in &seen {
            let total = balance.used.tokens + balance.held.tokens;
            assert!(total <= cap, "{balance:?}");
        }
        seen.last().map_or(0, |balance| balance.used.tokens)
    }
}
