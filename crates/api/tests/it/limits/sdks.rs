//! The official SDKs wait what they are told, and do not repeat what is of no use.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_testkit::{Gate, HttpClient, Program, Request, RunningProcess, Script, words};

use crate::deployment::{Backend, Deployment, MODEL, PATIENCE, Relay, figure};
use crate::messages::{CLAUDE, add_claude};
use crate::sdk::variable;

use super::{key_id, limit};

/// How long all cases may take together: a window is a minute.
const SDK_PATIENCE: Duration = Duration::from_mins(4);
/// What a timer may be early.
///
/// # Units
/// Milliseconds.
const TIMER: f64 = 5.0;
/// What a machine may be late that is busy.
const LATE: f64 = 15_000.0;

#[derive(Debug)]
struct Sdk {
    /// Part of the names of its keys.
    name: &'static str,
    program: String,
    arguments: Vec<String>,
    is_claude: bool,
}

fn sdks() -> Vec<Sdk> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/sdk");
    let script = |name: &str| folder.join(name).display().to_string();
    let (python, node) = (variable("SLUICE_TEST_PYTHON"), variable("SLUICE_TEST_NODE"));
    let all = [
        ("a", &python, "limits.py", "openai", false),
        ("b", &node, "limits.mjs", "openai", false),
        ("c", &node, "limits.mjs", "openai-v6", false),
        ("d", &python, "limits.py", "anthropic", true),
        ("e", &node, "limits.mjs", "@anthropic-ai/sdk", true),
        ("f", &node, "limits.mjs", "anthropic-v0", true),
    ];
    let found: Vec<Sdk> = all
        .into_iter()
        .filter_map(|(name, program, file, package, is_claude)| {
            Some(Sdk {
                name,
                program: program.clone()?,
                arguments: vec![script(file), package.to_owned()],
                is_claude,
            })
        })
        .collect();
    let is_required = variable("REQUIRE_BACKENDS").is_some();
    assert!(
        found.len() == all.len() || !is_required,
        "REQUIRE_BACKENDS=1, but only {found:?} are installed"
    );
    found
}

impl Sdk {
    fn model(&self) -> &'static str {
        if self.is_claude { CLAUDE } else { MODEL }
    }

    fn base_url(&self, relay: &Relay) -> String {
        let path = if self.is_claude { "" } else { "/v1" };
        format!("http://{}{path}", relay.address)
    }

    fn start(&self, cases: &[Value]) -> RunningProcess {
        Program::new(&self.program)
            .args(&self.arguments)
            .env("MODEL", self.model())
            .env("CASES", json!(cases).to_string())
            .start()
    }

    /// A call of the same kind, without an SDK.
    fn request(&self, key: &str, user: &str) -> Request {
        if self.is_claude {
            let mut body = words::message_request(CLAUDE, 2);
            body["metadata"] = json!({"user_id": user});
            Request::post("/v1/messages", &body).key(key)
        } else {
            let mut body = words::chat_request(MODEL, 2);
            body["user"] = json!(user);
            Request::post("/v1/chat/completions", &body).key(key)
        }
    }
}

/// Keys of one deployment, each with its limits.
struct Keys(Deployment);

impl Keys {
    fn new(settings: &[(&'static str, &str)]) -> Self {
        let mut deployment = Deployment::new(Backend::Sqlite).unwrap();
        for (name, value) in settings {
            deployment.set(name, *value);
        }
        add_claude(&deployment);
        Self(deployment)
    }

    /// Issues a key with limits of its own.
    fn of_key(&self, name: &str, options: &[&str], limits: &[&str]) -> String {
        let key = self.0.issue_key(name, options);
        if !limits.is_empty() {
            limit(&self.0, &["--key", &key_id(&self.0, name)], limits);
        }
        key
    }

    /// Issues a key of a user of its own, in a tenant of its own.
    fn of_tenant(&self, name: &str, scope: &[&str], limits: &[&str]) -> String {
        self.0.run(&["tenant", "create", name]);
        self.0.run(&["user", "create", "--tenant", name, "eve"]);
        let set = ["limit", "set", "--tenant", name];
        self.0.run(&[&set[..], scope, limits].concat());
        let issue = [
            "key", "issue", "--quiet", "--tenant", name, "--user", "eve", "--name", "k",
        ];
        self.0.run(&issue).trim().to_owned()
    }
}

/// Fails unless every pause was as long as it was asked for, and returns how many there were.
#[track_caller]
fn assert_waited(sdk: &Value, call: &Value) -> usize {
    let tries = call["tries"].as_array().unwrap();
    for (before, after) in tries.iter().zip(&tries[1..]) {
        assert_eq!(before["status"], 429, "{sdk}: {call}");
        let asked = before["retry_after_ms"].as_f64().unwrap();
        let waited = after["sent_ms"].as_f64().unwrap() - before["answered_ms"].as_f64().unwrap();
        assert!(
            waited >= asked - TIMER,
            "{sdk} came after {waited} ms: {call}"
        );
        assert!(
            waited <= asked * 1.1 + LATE,
            "{sdk} came after {waited} ms: {call}"
        );
        let seconds = before["retry_after"].as_f64().unwrap();
        assert!((asked / 1_000.0..=60.0).contains(&seconds), "{sdk}: {call}");
    }
    assert_eq!(call["error"], Value::Null, "{sdk}: {call}");
    assert_eq!(tries.last().unwrap()["status"], 200, "{sdk}: {call}");
    tries.len() - 1
}

/// Takes the only slot of each key until the gate opens.
async fn occupy(relay: &Relay, sdks: &[Sdk], keys: &[String]) -> (Vec<HttpClient>, Gate) {
    let gate = Gate::new();
    let mut clients = Vec::new();
    for (sdk, key) in sdks.iter().zip(keys) {
        let holder = format!("holder-{}", sdk.name);
        let script = Script::new().words(3).wait_before_head(&gate);
        relay.upstream().script_for_user(&holder, script);
        let mut client = HttpClient::connect(relay.address).await.unwrap();
        client.send(&sdk.request(key, &holder)).await.unwrap();
        clients.push(client);
    }
    let count = sdks.len();
    let open = relay
        .upstream()
        .wait_for(|served| served.len() == count, PATIENCE);
    open.await;
    (clients, gate)
}

#[tokio::test]
async fn sdks_wait_what_they_are_told_and_call_once_where_it_is_of_no_use() {
    let sdks = sdks();
    let plain = Keys::new(&[]);
    let by_address = Keys::new(&[
        ("SLUICE_SERVER_TRUSTED_PROXIES", "127.0.0.1"),
        ("SLUICE_LIMITS_SOURCE_IP_RPM", "1"),
    ]);
    let queued = Keys::new(&[("SLUICE_LIMITS_QUEUE_MS", "60000")]);
    let one_a_minute = ["--rpm", "1"];
    let (mut holders, mut queuers, mut sets) = (Vec::new(), Vec::new(), Vec::new());
    for sdk in &sdks {
        let name = |case: &str| format!("{case}-{}", sdk.name);
        let by_model = plain.of_key(&name("model"), &[], &[]);
        let id = key_id(&plain.0, &name("model"));
        let of_model = ["--key", id.as_str(), "--model", sdk.model()];
        limit(&plain.0, &of_model, &one_a_minute);
        holders.push(plain.of_key(&name("slot"), &[], &["--concurrency", "1"]));
        queuers.push(queued.of_key(&name("queue"), &[], &["--concurrency", "1"]));
        sets.push([
            ("rps", plain.of_key(&name("rps"), &[], &["--rps", "1"])),
            ("rpm", plain.of_key(&name("rpm"), &[], &one_a_minute)),
            ("tpm", plain.of_key(&name("tpm"), &[], &["--tpm", "50"])),
            ("model", by_model),
            (
                "user",
                plain.of_tenant(&name("user"), &["--user", "eve"], &one_a_minute),
            ),
            (
                "tenant",
                plain.of_tenant(&name("tenant"), &[], &one_a_minute),
            ),
            (
                "quota",
                plain.of_key(&name("quota"), &["--quota", "1"], &[]),
            ),
            (
                "dry_run",
                plain.of_key(&name("dry"), &[], &["--rpm", "1", "--dry-run"]),
            ),
            ("address", by_address.of_key(&name("address"), &[], &[])),
        ]);
    }
    let [plain, by_address, queued] = [plain, by_address, queued].map(|keys| keys.0.start());
    let (_clients, slots) = occupy(&plain, &sdks, &holders).await;
    let (_waiting, queue) = occupy(&queued, &sdks, &queuers).await;

    let mut processes = Vec::new();
    for (place, sdk) in sdks.iter().enumerate() {
        let mut cases: Vec<Value> = sets[place]
            .iter()
            .map(|(name, key)| {
                let relay = if *name == "address" {
                    &by_address
                } else {
                    &plain
                };
                let before = u8::from(*name != "quota");
                let case = json!({"name": name, "key": key, "before": before});
                with_url(case, sdk, relay)
            })
            .collect();
        let address = format!("203.0.113.{place}");
        cases.last_mut().unwrap()["headers"] = json!({"x-forwarded-for": address});
        // Tried again until the slot is free, however long the others take to begin.
        let slot = json!({"name": "concurrency", "key": holders[place], "max_retries": 200});
        cases.push(with_url(slot, sdk, &plain));
        cases.push(with_url(
            json!({"name": "queue", "key": queuers[place]}),
            sdk,
            &queued,
        ));
        processes.push(sdk.start(&cases));
    }
    for process in &processes {
        process.wait_for_line("refused concurrency", SDK_PATIENCE);
    }
    slots.open();
    let waiting = i64::try_from(sdks.len()).unwrap();
    while figure(queued.address, "sluice_window_queued").await < waiting {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    queue.open();

    for (sdk, process) in sdks.iter().zip(&processes) {
        let status = process.wait_exit(SDK_PATIENCE);
        assert!(status.success(), "{sdk:?}: {}", process.stderr());
        let report: Value = serde_json::from_str(process.stdout().trim()).unwrap();
        let mut tally = Vec::new();
        for call in report["calls"].as_array().unwrap() {
            let name = call["name"].as_str().unwrap();
            let waits = if name == "quota" {
                assert_called_once(&report["sdk"], call);
                0
            } else {
                assert_waited(&report["sdk"], call)
            };
            match name {
                "dry_run" | "queue" | "quota" => assert_eq!(waits, 0, "{call}"),
                // A machine may be so busy that a second passes between two calls.
                "rps" => {}
                _ => assert!(waits > 0, "{} {call}", report["sdk"]),
            }
            tally.push(format!("{name} {waits}"));
        }
        tally.sort();
        println!(
            "{} {}: {}",
            report["sdk"],
            report["sdk_version"],
            tally.join(", ")
        );
        assert_eq!(tally.len(), 11, "{tally:?}");
    }
}

fn with_url(mut case: Value, sdk: &Sdk, relay: &Relay) -> Value {
    case["base_url"] = Value::from(sdk.base_url(relay));
    case
}

/// A quota that is spent for the month is not asked for again.
#[track_caller]
fn assert_called_once(sdk: &Value, call: &Value) {
    let tries = call["tries"].as_array().unwrap();
    assert_eq!(tries.len(), 1, "{sdk}: {call}");
    assert_eq!(tries[0]["status"], 429, "{sdk}: {call}");
    assert_eq!(tries[0]["should_retry"], "false", "{sdk}: {call}");
    assert_eq!(tries[0]["retry_after_ms"], Value::Null, "{sdk}: {call}");
    assert!(call["error"].is_object(), "{sdk}: {call}");
}
