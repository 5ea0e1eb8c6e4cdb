//! The command line: quickstart, administration, what is said and how it ends.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;

use serde_json::{Value, json};
use sluice_testkit::{
    FakeUpstream, FinishedProcess, Program, Request, RunningProcess, Script, call,
};
use tempfile::TempDir;

use crate::deployment::PATIENCE;

/// A folder to work in, and nothing else.
struct Shell {
    folder: TempDir,
}

impl Shell {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A `sluice` process in the folder, with nothing of the environment.
    fn program(&self, arguments: &[&str]) -> Program {
        Program::new(env!("CARGO_BIN_EXE_sluice"))
            .clear_env()
            .env("SLUICE_SERVER_WORKERS", "1")
            .current_dir(self.folder.path())
            .args(arguments)
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> FinishedProcess {
        self.program(arguments).run(PATIENCE)
    }

    /// Runs a command that must succeed and returns its standard output.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let finished = self.run(arguments);
        assert!(
            finished.status.success(),
            "{arguments:?}: {}",
            finished.stderr
        );
        finished.stdout
    }

    /// Runs a command that must fail with this code and one line; returns the line.
    #[track_caller]
    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        one_line(&self.run(arguments), code)
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A migrated database with tenant `acme` and user `ann`.
    #[track_caller]
    fn with_account() -> Self {
        let shell = Self::new();
        shell.ok(&["migrate"]);
        shell.ok(&["tenant", "create", "acme"]);
        shell.ok(&["user", "create", "--tenant", "acme", "ann"]);
        shell
    }

    #[track_caller]
    fn quickstart(&self, arguments: &[&str]) -> Quickstart {
        self.quickstart_with(arguments, &[])
    }

    #[track_caller]
    fn quickstart_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Quickstart {
        let mut all = vec!["quickstart", "--listen", "127.0.0.1:0"];
        all.extend(arguments);
        let mut program = self.program(&all);
        for (name, value) in variables {
            program = program.env(name, value);
        }
        let process = program.start();
        process.wait_for_line("Ctrl-C stops it", PATIENCE);
        let text = process.stdout();
        let address = text
            .split_once("http://")
            .and_then(|(_, rest)| rest.split_once("/v1"))
            .and_then(|(address, _)| address.parse().ok());
        Quickstart {
            address: address.unwrap_or_else(|| panic!("no address in:\n{text}")),
            text,
            process,
        }
    }
}

#[track_caller]
fn one_line(finished: &FinishedProcess, code: i32) -> String {
    let stderr = finished.stderr.trim_end();
    assert_eq!(
        finished.status.code(),
        Some(code),
        "{}{stderr}",
        finished.stdout
    );
    assert_eq!(stderr.lines().count(), 1, "more than one line:\n{stderr}");
    assert_eq!(finished.stdout, "");
    let line = stderr.strip_prefix("error: ");
    line.unwrap_or_else(|| panic!("no error: {stderr}"))
        .to_owned()
}

/// A running quickstart and what it printed.
struct Quickstart {
    address: SocketAddr,
    text: String,
    process: RunningProcess,
}

impl Quickstart {
    /// The key of the `curl` line.
    #[track_caller]
    fn key(&self) -> String {
        let (_, rest) = self.text.split_once("Bearer ").unwrap();
        rest.split_once('\'').unwrap().0.to_owned()
    }

    /// Sends the body of the first `curl` line with a key.
    async fn chat(&self, key: &str) -> sluice_testkit::Response {
        let (_, rest) = self.text.split_once("-d '").unwrap();
        let body: Value = serde_json::from_str(rest.split_once('\'').unwrap().0).unwrap();
        let request = Request::post("/v1/chat/completions", &body).key(key);
        call(self.address, &request).await.unwrap()
    }

    #[track_caller]
    fn stop(self) {
        self.process.terminate();
        let status = self.process.wait_exit(PATIENCE);
        assert!(status.success(), "{status}: {}", self.process.stderr());
    }
}

#[tokio::test]
async fn a_quickstart_on_nothing_prints_a_key_and_a_command_that_work() {
    let shell = Shell::new();
    let first = shell.quickstart(&[]);
    let key = first.key();
    assert!(key.starts_with("sk-sluice-"));
    assert!(first.text.contains("This is a demonstration"));
    let answer = first.chat(&key).await;
    assert_eq!(answer.status(), 200);
    let said = answer.json()["choices"][0]["message"]["content"].to_string();
    assert!(said.contains("demonstration"), "{said}");
    let exported = format!(
        "ANTHROPIC_BASE_URL=http://{} ANTHROPIC_AUTH_TOKEN={key}\n",
        first.address
    );
    assert!(first.text.contains(&exported), "{}", first.text);
    first.stop();

    let second = shell.quickstart(&[]);
    assert!(!second.text.contains(&key), "a key is shown once");
    assert!(
        second
            .text
            .contains("sluice key issue --tenant default --user me")
    );
    assert_eq!(second.chat(&key).await.status(), 200, "the key still works");
    second.stop();
    // One of each, but a route for every model and one for the model that is listed.
    for (list, count) in [
        ("tenant", 1),
        ("user", 1),
        ("key", 1),
        ("upstream", 1),
        ("route", 2),
    ] {
        let rows = shell.json(&[list, "list", "--json"]);
        assert_eq!(rows.as_array().unwrap().len(), count, "{list}: {rows}");
    }
}

/// The same route serves clients of both protocols, each with the provider's own numbers.
#[tokio::test]
async fn the_demonstration_answers_messages_too() {
    let shell = Shell::new();
    let running = shell.quickstart(&[]);
    let key = running.key();
    let post = async |path: &str, body: &Value| {
        let request = Request::post(path, body)
            .key(&key)
            .header("anthropic-version", "2023-06-01");
        call(running.address, &request).await.unwrap()
    };
    let mut body = json!({
        "model": "claude-of-any-name",
        "max_tokens": 7,
        "messages": [{ "role": "user", "content": "one two three" }],
    });
    let answer = post("/v1/messages", &body).await;
    assert_eq!(answer.status(), 200, "{}", answer.json());
    assert_eq!(
        answer.json()["usage"],
        json!({ "input_tokens": 3, "output_tokens": 7 })
    );
    assert_eq!(answer.json()["stop_reason"], "max_tokens");
    let counted = post("/v1/messages/count_tokens", &body).await;
    assert_eq!(counted.json(), json!({ "input_tokens": 3 }));
    body["stream"] = json!(true);
    let streamed = post("/v1/messages", &body).await;
    let text = String::from_utf8(streamed.body.to_vec()).unwrap();
    assert!(text.starts_with("event: message_start\n"), "{text}");
    assert!(
        text.ends_with("data: {\"type\":\"message_stop\"}\n\n"),
        "{text}"
    );
    let refused = post(
        "/v1/messages",
        &json!({ "model": "m", "max_tokens": 1, "messages": [] }),
    )
    .await;
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.json()["error"]["type"], "invalid_request_error");
    let ids: Vec<String> = [&answer, &streamed]
        .iter()
        .map(|answer| answer.header("x-request-id").unwrap().to_owned())
        .collect();
    running.stop();
    for id in ids {
        let record = shell.json(&["explain", &id, "--json"]);
        let seen = ["input_tokens", "output_tokens", "basis"].map(|field| &record[field]);
        assert_eq!(seen, [&json!(3), &json!(7), &json!("reported")], "{record}");
    }
}

#[cfg(unix)]
#[test]
fn what_a_quickstart_makes_belongs_to_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let shell = Shell::new();
    let running = shell.quickstart(&[]);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(shell.path("sluice-data")), 0o700);
    let names: Vec<_> = fs::read_dir(shell.path("sluice-data"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for path in names {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode(path.clone()), expected, "{}", path.display());
    }
    for segment in fs::read_dir(shell.path("sluice-data/journal")).unwrap() {
        let path = segment.unwrap().path();
        assert_eq!(mode(path.clone()), 0o600, "{}", path.display());
    }
    running.stop();
}

#[tokio::test]
async fn a_quickstart_relays_to_the_upstream_that_is_named() {
    let shell = Shell::new();
    let upstream = FakeUpstream::start();
    upstream.models(&["text-embedding-3-small", "llama3"]);
    let key_file = shell.write("key", "sk-upstream-canary\n");
    let url = upstream.base_url();
    let running = shell.quickstart(&["--upstream", &url, "--upstream-key-file", &key_file]);
    assert!(running.text.contains("\"model\": \"llama3\""));
    assert!(!running.text.contains("demonstration"));
    assert_eq!(running.chat(&running.key()).await.status(), 200);
    assert_eq!(
        upstream.served_for("sk-upstream-canary").len(),
        2,
        "the probe and the chat"
    );
    running.stop();
}

#[tokio::test]
async fn a_later_quickstart_with_an_upstream_leads_the_route_to_it() {
    let shell = Shell::new();
    let first = shell.quickstart(&[]);
    let key = first.key();
    first.stop();
    let upstream = FakeUpstream::start();
    upstream.models(&["llama3"]);
    let url = upstream.base_url();
    let second = shell.quickstart(&["--upstream", &url]);
    assert!(second.text.contains("Route `*` leads to "));
    assert!(second.text.contains("before to `demo`"));
    second.stop();
    // Without the flag it stays so.
    let third = shell.quickstart(&[]);
    assert!(!third.text.contains("before to"));
    // Clients that let people choose from the list find the provider's models there.
    let routes = shell.json(&["route", "list", "--json"]).to_string();
    assert!(routes.contains("\"llama3\""), "{routes}");
    assert!(third.text.contains("\"model\": \"llama3\""));
    let served = upstream.served().len();
    assert_eq!(third.chat(&key).await.status(), 200);
    assert_eq!(upstream.served().len(), served + 1);
    third.stop();
}

#[tokio::test]
async fn a_new_key_of_the_upstream_replaces_the_one_of_an_earlier_quickstart() {
    let shell = Shell::new();
    let upstream = FakeUpstream::start();
    upstream.models(&["llama3"]);
    let url = upstream.base_url();
    let arguments = ["--upstream", &url, "--upstream-key-env", "LOCAL_KEY"];
    let first = shell.quickstart_with(&arguments, &[("LOCAL_KEY", "sk-old")]);
    let key = first.key();
    first.stop();
    let second = shell.quickstart_with(&arguments, &[("LOCAL_KEY", "sk-new")]);
    assert!(second.text.contains("has a new key"), "{}", second.text);
    assert_eq!(second.chat(&key).await.status(), 200);
    let last = upstream.served().pop().unwrap();
    assert_eq!(
        upstream.served_for("sk-new").last().unwrap().path(),
        last.path()
    );
    second.stop();
    let keys = shell.json(&["upstream", "list", "--json"]);
    let name = keys[0]["name"].as_str().unwrap();
    let keys = shell.json(&["upstream", "key", "list", name, "--json"]);
    assert_eq!(
        keys.as_array()
            .unwrap()
            .iter()
            .map(|k| &k["state"])
            .collect::<Vec<_>>(),
        ["disabled", "active"]
    );
}

#[test]
fn a_quickstart_that_cannot_work_says_so_in_one_line_and_makes_nothing() {
    let shell = Shell::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = listener.local_addr().unwrap();
    let refusing = FakeUpstream::start();
    refusing.script_for_path("/models", Script::refuse(401));
    let refused_url = refusing.base_url();
    let elsewhere = FakeUpstream::start();
    elsewhere.script_for_path("/models", Script::html(404));
    let wrong_path = elsewhere.base_url();
    let in_use = in_use.to_string();
    for (arguments, expected) in [
        (
            vec!["--listen", &in_use],
            "is in use; choose another with --listen",
        ),
        (
            vec!["--upstream", "nonsense"],
            "--upstream: `nonsense` is not a URL",
        ),
        (
            vec!["--upstream", "https://user:topsecret@example.com/v1"],
            "--upstream: the URL holds credentials",
        ),
        (
            vec!["--upstream", "http://127.0.0.1:9/v1"],
            "no connection to http://127.0.0.1:9",
        ),
        (
            vec!["--upstream", &refused_url],
            "the upstream refused the key with status 401",
        ),
        (
            vec!["--upstream", &wrong_path],
            "there is no list of models",
        ),
        (
            vec!["--upstream-key-env", "NOT_SET"],
            "the environment variable NOT_SET is not set",
        ),
    ] {
        let mut all = vec!["quickstart"];
        if !arguments.contains(&"--listen") {
            all.extend(["--listen", "127.0.0.1:0"]);
        }
        all.extend(&arguments);
        let line = shell.fails(1, &all);
        assert!(line.contains(expected), "{arguments:?}: {line}");
        assert!(!line.contains("topsecret"), "{line}");
        assert!(!shell.path("sluice-data").exists(), "{arguments:?}");
    }
}

#[test]
fn a_folder_serves_one_process_at_a_time() {
    let shell = Shell::new();
    let running = shell.quickstart(&[]);
    for arguments in [
        vec!["quickstart", "--listen", "127.0.0.1:0"],
        vec!["serve", "--listen", "127.0.0.1:0"],
    ] {
        let line = shell.fails(1, &arguments);
        assert!(
            line.contains("sluice-data is in use by another sluice process"),
            "{line}"
        );
    }
    // Administration does not need the folder for itself.
    shell.ok(&["tenant", "create", "acme"]);
    running.stop();
}

#[test]
fn a_file_in_place_of_the_folder_is_named() {
    let shell = Shell::new();
    let file = shell.write("file", "");
    let line = shell.fails(
        1,
        &["quickstart", "--listen", "127.0.0.1:0", "--data", &file],
    );
    assert_eq!(line, format!("the data folder {file} is not a folder"));
}

#[test]
fn a_lost_secret_is_never_replaced_by_a_new_one() {
    let shell = Shell::with_account();
    fs::remove_file(shell.path("sluice-data/pepper.key")).unwrap();
    for arguments in [
        vec!["serve", "--listen", "127.0.0.1:0"],
        vec!["quickstart", "--listen", "127.0.0.1:0"],
        vec![
            "key", "issue", "--tenant", "acme", "--user", "ann", "--name", "x",
        ],
    ] {
        let line = shell.fails(1, &arguments);
        assert!(
            line.starts_with(
                "the pepper of this deployment is missing: there is no sluice-data/pepper.key"
            ),
            "{line}"
        );
    }
    assert!(!shell.path("sluice-data/pepper.key").exists());
}

#[test]
fn before_the_migration_every_command_says_what_to_do() {
    let shell = Shell::new();
    for arguments in [
        vec!["tenant", "list"],
        vec!["serve"],
        vec!["migrate", "--check"],
    ] {
        let line = shell.fails(1, &arguments);
        assert!(
            line.starts_with("there is no database at sluice-data/sluice.db"),
            "{line}"
        );
        assert!(!shell.path("sluice-data").exists());
    }
    shell.ok(&["migrate"]);
    shell.ok(&["migrate"]);
    shell.ok(&["migrate", "--check"]);
    fs::write(shell.path("sluice-data/sluice.db"), "").unwrap();
    for name in ["sluice.db-wal", "sluice.db-shm"] {
        if shell.path("sluice-data").join(name).exists() {
            fs::remove_file(shell.path("sluice-data").join(name)).unwrap();
        }
    }
    assert_eq!(
        shell.fails(1, &["migrate", "--check"]),
        "the database is empty; run `sluice migrate`"
    );
    assert_eq!(
        shell.fails(1, &["tenant", "list"]),
        "the database is empty; run `sluice migrate`"
    );
}

#[test]
fn an_issued_key_stands_alone_on_standard_output() {
    let shell = Shell::with_account();
    let issue = [
        "key", "issue", "--tenant", "acme", "--user", "ann", "--name", "laptop",
    ];
    let spoken = shell.run(&issue);
    let key = spoken.stdout.trim();
    assert!(key.starts_with("sk-sluice-") && !key.contains(char::is_whitespace));
    assert!(spoken.stderr.contains("shown this once"));
    assert!(!spoken.stderr.contains(key));
    let quiet = shell.run(&[&issue[..], &["--quiet"]].concat());
    assert_eq!(quiet.stderr, "");
    assert_ne!(quiet.stdout, spoken.stdout);
    // A list shows hints only.
    assert!(!shell.ok(&["key", "list", "--json"]).contains(key));
}

#[test]
fn a_key_that_is_pasted_in_place_of_an_id_is_not_repeated() {
    let shell = Shell::with_account();
    let line = shell.fails(1, &["key", "revoke", "sk-sluice-topsecret"]);
    assert!(!line.contains("topsecret"), "{line}");
}

#[test]
fn a_revoked_key_stays_revoked() {
    let shell = Shell::with_account();
    shell.ok(&[
        "key", "issue", "--tenant", "acme", "--user", "ann", "--name", "laptop",
    ]);
    let keys = shell.json(&["key", "list", "--tenant", "acme", "--json"]);
    let id = keys[0]["id"].as_str().unwrap();
    shell.ok(&["key", "disable", id]);
    shell.ok(&["key", "enable", id]);
    shell.ok(&["key", "revoke", id]);
    let line = shell.fails(1, &["key", "enable", id]);
    assert!(line.contains("is revoked for good"), "{line}");
    let keys = shell.json(&["key", "list", "--json"]);
    assert_eq!(keys[0]["state"], "revoked");
}

#[test]
fn an_import_is_all_or_nothing_and_can_be_repeated() {
    let shell = Shell::new();
    shell.ok(&["migrate"]);
    let entry =
        |key: &str, user: &str, quota: Value| json!({"key": key, "user": user, "quota": quota});
    let document = |entries: &[Value]| json!({"keys": entries}).to_string();
    let good = [
        entry("foreign-key-1", "ann", json!(100)),
        entry("foreign-key-2", "bob", Value::Null),
    ];

    let bad = [
        good[0].clone(),
        entry("foreign-key-2", "bob", json!("many")),
    ];
    let file = shell.write("bad.json", &document(&bad));
    let line = shell.fails(1, &["key", "import", &file]);
    assert!(
        line.contains("nothing was imported: keys[1].quota: must be a whole number"),
        "{line}"
    );
    assert_eq!(shell.json(&["key", "list", "--json"]), json!([]));

    let file = shell.write("good.json", &document(&good));
    let first = shell.run(&["key", "import", &file]);
    assert_eq!(
        first.stdout,
        "imported into tenant `default`: 2 created, 0 updated\n"
    );
    assert!(first.stderr.contains("tenant `default` is made"));
    let changed = [entry("foreign-key-1", "ann", json!(200)), good[1].clone()];
    let file = shell.write("changed.json", &document(&changed));
    let second = shell.ok(&["key", "import", &file]);
    assert_eq!(
        second,
        "imported into tenant `default`: 0 created, 2 updated\n"
    );
    let keys = shell.json(&["key", "list", "--json"]);
    let mut quotas: Vec<_> = keys
        .as_array()
        .unwrap()
        .iter()
        .map(|key| (key["user"].as_str().unwrap(), key["quota_tokens"].as_i64()))
        .collect();
    quotas.sort_unstable();
    assert_eq!(quotas, [("ann", Some(200)), ("bob", None)]);

    // The second entry belongs to somebody else, so the first is not imported either.
    let foreign = [
        entry("foreign-key-3", "ann", Value::Null),
        entry("foreign-key-2", "ann", Value::Null),
    ];
    let file = shell.write("foreign.json", &document(&foreign));
    let line = shell.fails(1, &["key", "import", &file]);
    assert!(line.starts_with("nothing was imported: "), "{line}");
    assert!(!line.contains("foreign-key"), "{line}");
    assert_eq!(
        shell
            .json(&["key", "list", "--json"])
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn what_is_unknown_is_named_together_with_what_there_is() {
    let shell = Shell::with_account();
    shell.ok(&["upstream", "create", "demo", "--kind", "demo"]);
    shell.ok(&["route", "create", "demo", "--to", "demo"]);
    for (arguments, expected) in [
        (
            vec!["tenant", "disable", "acne"],
            "there is no tenant `acne`; there is `acme`",
        ),
        (
            vec!["user", "quota", "--tenant", "acme", "bob", "--none"],
            "tenant `acme` has no user `bob`; there is `ann`",
        ),
        (
            vec!["upstream", "test", "openai"],
            "there is no upstream `openai`; there is `demo`",
        ),
        (
            vec!["route", "delete", "gpt-4o"],
            "there is no shared route for `gpt-4o`; there is `demo`",
        ),
        (
            vec!["route", "create", "gpt-4o", "--to", "openai"],
            "there is no upstream `openai`; there is `demo`",
        ),
    ] {
        assert_eq!(shell.fails(1, &arguments), expected);
    }
}

#[test]
fn an_upstream_key_is_tested_and_never_shown() {
    let shell = Shell::with_account();
    let upstream = FakeUpstream::start();
    upstream.models(&["a", "b"]);
    let url = upstream.base_url();
    shell.ok(&[
        "upstream",
        "create",
        "fake",
        "--kind",
        "compatible",
        "--url",
        &url,
        "--allow-private",
    ]);
    let file = shell.write("key", "sk-upstream-canary\n");
    let added = shell.run(&["upstream", "key", "add", "fake", "main", "--file", &file]);
    assert!(added.status.success() && !added.stderr.contains("canary"));
    let tested = shell.ok(&["upstream", "test", "fake"]);
    assert!(
        tested.starts_with("key `main`: works; 2 models"),
        "{tested}"
    );
    assert_eq!(upstream.served_for("sk-upstream-canary").len(), 1);
    for arguments in [
        vec!["upstream", "list", "--json"],
        vec!["upstream", "key", "list", "fake", "--json"],
    ] {
        assert!(!shell.ok(&arguments).contains("canary"));
    }
    let database = fs::read(shell.path("sluice-data/sluice.db")).unwrap();
    let canary = b"sk-upstream-canary";
    assert!(!database.windows(canary.len()).any(|bytes| bytes == canary));

    upstream.script_for_path("/models", Script::refuse(401));
    let failed = shell.run(&["upstream", "test", "fake"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        failed
            .stderr
            .contains("key `main`: the upstream refused the key with status 401")
    );
}

#[test]
fn an_invalid_configuration_is_explained_line_by_line_and_ends_with_3() {
    let shell = Shell::new();
    let file = shell.write(
        "sluice.toml",
        "[server]\nmax_conections = 1\ndrain_ms = 'x'\n",
    );
    let finished = shell.run(&["config", "check", "--config", &file]);
    assert_eq!(finished.status.code(), Some(3));
    let lines: Vec<_> = finished.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        lines[0],
        format!(
            "error: {file}:2: `server.max_conections` is not a setting; did you mean \
             `server.max_connections`?"
        )
    );
    // The same for every other command.
    for arguments in [vec!["serve"], vec!["tenant", "list"], vec!["quickstart"]] {
        let finished = shell.run(&[&arguments[..], &["--config", &file]].concat());
        assert_eq!(finished.status.code(), Some(3), "{arguments:?}");
    }
}

#[test]
fn the_effective_configuration_hides_its_secrets() {
    let shell = Shell::new();
    let pepper = "ab".repeat(32);
    let finished = shell
        .program(&["config", "check", "--print-effective"])
        .env("SLUICE_PEPPER", &pepper)
        .env(
            "SLUICE_DATABASE_URL",
            "postgres://ann:topsecret@localhost/sluice",
        )
        .run(PATIENCE);
    assert!(finished.status.success());
    let text = finished.stdout;
    assert!(
        text.contains("pepper = \"(hidden)\" # SLUICE_PEPPER"),
        "{text}"
    );
    assert!(
        text.contains("postgres://ann:***@localhost/sluice"),
        "{text}"
    );
    assert!(
        text.contains("workers = 1 # SLUICE_SERVER_WORKERS"),
        "{text}"
    );
    assert!(!text.contains(&pepper) && !text.contains("topsecret"));
}

#[test]
fn wrong_usage_ends_with_2() {
    let shell = Shell::with_account();
    for arguments in [
        vec![],
        vec!["serv"],
        vec!["tenant", "create"],
        vec!["tenant", "create", "x", "--time-zone", "Mars/Olympus"],
        vec!["tenant", "quota", "acme"],
        vec!["upstream", "key", "add", "openai", "main"],
        vec!["upstream", "create", "x", "--kind", "compatible"],
        vec!["upstream", "create", "x", "--kind", "azure"],
        vec![
            "upstream",
            "create",
            "x",
            "--kind",
            "demo",
            "--url",
            "https://x.example",
        ],
        vec!["upstream", "set", "x"],
        vec!["upstream", "key", "set", "x", "main"],
        vec!["route", "set", "x"],
        vec!["route", "create", "x"],
        vec!["route", "create", "x", "--to", "a,wieght=1"],
    ] {
        assert_eq!(
            shell.run(&arguments).status.code(),
            Some(2),
            "{arguments:?}"
        );
    }
    assert!(shell.ok(&["--help"]).contains("quickstart"));
}
