//! A deployment for one test: a database, a fake provider, a running `sluice`.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use sluice_domain::tenant::Tenant;
use sluice_domain::time::{LocalDay, Month, UnixMillis};
use sluice_storage::usage::StoredRecord;
use sluice_storage::{Storage, StorageOptions};
use sluice_testkit::{
    FakeUpstream, FinishedProcess, Program, Request, Response, RunningProcess, call,
};
use tempfile::TempDir;

/// How long anything in these tests may take, on whatever machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// What an admin changes takes effect within a second; and so long later on a machine that is so
/// busy that neither relay nor database run when they should.
pub(crate) const TAKES_EFFECT_WITHIN: Duration = Duration::from_secs(1 + 4);

/// The model that every deployment serves, and its name at the fake provider.
pub(crate) const MODEL: &str = "test-model";
pub(crate) const UPSTREAM_MODEL: &str = "provider-model";
/// The credential that the fake provider sees.
pub(crate) const UPSTREAM_KEY: &str = "sk-upstream-canary-5d1f";

/// The database under a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Sqlite,
    Postgres,
}

/// Runs one test body on both databases. PostgreSQL is skipped where there is none, unless
/// `REQUIRE_BACKENDS=1`.
macro_rules! on_both_databases {
    ($($(#[$attribute:meta])* async fn $name:ident($deployment:ident: Deployment) $body:block)*) => {$(
        mod $name {
            use super::*;

            $(#[$attribute])*
            async fn body($deployment: $crate::deployment::Deployment) $body

            #[tokio::test]
            async fn on_sqlite() {
                if let Some(deployment) = $crate::deployment::Deployment::new($crate::deployment::Backend::Sqlite) {
                    body(deployment).await;
                }
            }

            #[tokio::test]
            async fn on_postgres() {
                if let Some(deployment) = $crate::deployment::Deployment::new($crate::deployment::Backend::Postgres) {
                    body(deployment).await;
                }
            }
        }
    )*};
}
pub(crate) use on_both_databases;

/// A folder, a database and a fake provider; [`start`](Self::start) runs the relay on them.
pub(crate) struct Deployment {
    pub(crate) folder: TempDir,
    pub(crate) database_url: String,
    pub(crate) upstream: FakeUpstream,
    pub(crate) key: String,
    /// Words before those of each `sluice` process.
    pub(crate) launcher: Vec<String>,
    settings: Vec<(&'static str, String)>,
    _database: Option<PostgresDatabase>,
}

impl Deployment {
    /// Makes a migrated database with a tenant `acme`, a user `ann`, a key, and a route to a fake
    /// provider. `None` when the backend is not there and need not be.
    #[track_caller]
    pub(crate) fn new(backend: Backend) -> Option<Self> {
        Self::in_zone(backend, "UTC")
    }

    /// The same with a tenant whose months begin in another time zone.
    #[track_caller]
    pub(crate) fn in_zone(backend: Backend, time_zone: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (database_url, database) = match backend {
            Backend::Sqlite => (
                format!("sqlite:{}/sluice.db", folder.path().display()),
                None,
            ),
            Backend::Postgres => {
                let database = PostgresDatabase::create(&sluice_testkit::postgres_url()?);
                (database.url.clone(), Some(database))
            }
        };
        let mut deployment = Self {
            folder,
            database_url,
            upstream: FakeUpstream::start(),
            key: String::new(),
            launcher: Vec::new(),
            settings: Vec::new(),
            _database: database,
        };
        deployment.run(&["migrate"]);
        deployment.run(&["tenant", "create", "acme", "--time-zone", time_zone]);
        deployment.run(&["user", "create", "--tenant", "acme", "ann"]);
        deployment.key = deployment.issue_key("first", &[]);
        let base_url = deployment.upstream.base_url();
        deployment.run(&[
            "upstream",
            "create",
            "fake",
            "--kind",
            "openai",
            "--url",
            &base_url,
            "--allow-private",
        ]);
        let key_file = deployment.folder.path().join("upstream.key");
        std::fs::write(&key_file, UPSTREAM_KEY).unwrap();
        let key_file = key_file.display().to_string();
        deployment.run(&[
            "upstream", "key", "add", "fake", "main", "--file", &key_file,
        ]);
        deployment.run(&[
            "route",
            "create",
            MODEL,
            "--to",
            &format!("fake={UPSTREAM_MODEL}"),
        ]);
        Some(deployment)
    }

    /// Overrides a setting of processes that start from now on.
    pub(crate) fn set(&mut self, variable: &'static str, value: impl Into<String>) {
        self.settings.push((variable, value.into()));
    }

    /// A `sluice` process with the settings of this deployment and nothing else of the environment.
    pub(crate) fn program(&self, arguments: &[&str]) -> Program {
        let binary = env!("CARGO_BIN_EXE_sluice");
        let program = match self.launcher.split_first() {
            Some((first, rest)) => Program::new(first).args(rest).arg(binary),
            None => Program::new(binary),
        };
        let mut program = program
            .clear_env()
            .env("SLUICE_DATA_DIR", self.folder.path().join("data"))
            .env("SLUICE_DATABASE_URL", &self.database_url)
            .env("SLUICE_LISTEN", "127.0.0.1:0")
            .env("SLUICE_SERVER_WORKERS", "2")
            .env("SLUICE_MASTER_KEY", "11".repeat(32))
            .env("SLUICE_PEPPER", "22".repeat(32))
            .args(arguments);
        for (variable, value) in &self.settings {
            program = program.env(variable, value);
        }
        program
    }

    /// Runs a command that must succeed and returns its output.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let finished = self.try_run(arguments);
        assert!(
            finished.status.success(),
            "`sluice {}` failed:\n{}{}",
            arguments.join(" "),
            finished.stdout,
            finished.stderr
        );
        finished.stdout
    }

    #[track_caller]
    pub(crate) fn try_run(&self, arguments: &[&str]) -> FinishedProcess {
        self.program(arguments).run(PATIENCE)
    }

    /// Issues a further key to `ann` and returns it.
    #[track_caller]
    pub(crate) fn issue_key(&self, name: &str, options: &[&str]) -> String {
        let mut arguments = vec![
            "key", "issue", "--tenant", "acme", "--user", "ann", "--name", name, "--quiet",
        ];
        arguments.extend(options);
        self.run(&arguments).trim().to_owned()
    }

    /// Starts the relay and waits until it accepts requests.
    #[track_caller]
    pub(crate) fn start(self) -> Relay {
        let process = self.program(&["serve"]).start();
        let address = address_of(&process);
        Relay {
            deployment: self,
            process,
            address,
        }
    }

    /// Opens the database beside the relay, and finds the tenant `acme` in it.
    pub(crate) async fn storage(&self) -> (Storage, Tenant) {
        let options = StorageOptions {
            url: self.database_url.clone(),
            max_connections: 2,
        };
        let storage = Storage::open(&options).await.unwrap();
        let tenant = storage
            .find_tenant_by_name(&"acme".parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        (storage, tenant)
    }

    /// Returns every usage record, oldest first. Ids of one millisecond have no order; the numbers of
    /// posts are in the order in which requests ended.
    pub(crate) async fn records(&self) -> Vec<StoredRecord> {
        let (storage, tenant) = self.storage().await;
        let mut records = storage
            .list_records(tenant.id, UnixMillis(0), UnixMillis(i64::MAX), 1_000)
            .await
            .unwrap();
        records.sort_by_key(|record| (record.started_at, record.post_no));
        storage.close().await;
        records
    }

    /// Returns requests and tokens by the daily and by the monthly rollups.
    pub(crate) async fn rollups(&self) -> ((i64, i64), (i64, i64)) {
        let (storage, tenant) = self.storage().await;
        let (first, last) = (LocalDay(19_700_101), LocalDay(99_981_231));
        let daily = storage.usage_by_day(tenant.id, first, last).await.unwrap();
        let (first, last) = (
            Month::from_number(197_001).unwrap(),
            Month::from_number(999_801).unwrap(),
        );
        let monthly = storage
            .usage_by_month(tenant.id, first, last)
            .await
            .unwrap();
        storage.close().await;
        (
            (
                daily.iter().map(|(_, s)| s.requests).sum(),
                daily.iter().map(|(_, s)| s.quota_tokens).sum(),
            ),
            (
                monthly.iter().map(|(_, s)| s.requests).sum(),
                monthly.iter().map(|(_, s)| s.quota_tokens).sum(),
            ),
        )
    }

    /// Waits until there are `count` usage records; fails when there are more.
    pub(crate) async fn wait_for_records(&self, count: usize) -> Vec<StoredRecord> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let records = self.records().await;
            assert!(
                records.len() <= count,
                "{} records instead of {count}",
                records.len()
            );
            if records.len() == count {
                return records;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{} records instead of {count}",
                records.len()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for the only usage record.
    pub(crate) async fn only_record(&self) -> StoredRecord {
        self.wait_for_records(1).await.remove(0)
    }
}

/// Waits until a relay accepts requests, and returns where.
#[track_caller]
pub(crate) fn address_of(process: &RunningProcess) -> SocketAddr {
    let line = process.wait_for_line("accepting requests", PATIENCE);
    let event: Value = serde_json::from_str(&line).unwrap();
    event["address"].as_str().unwrap().parse().unwrap()
}

/// A running relay.
pub(crate) struct Relay {
    pub(crate) deployment: Deployment,
    pub(crate) process: RunningProcess,
    pub(crate) address: SocketAddr,
}

impl Relay {
    pub(crate) fn upstream(&self) -> &FakeUpstream {
        &self.deployment.upstream
    }

    pub(crate) fn key(&self) -> &str {
        &self.deployment.key
    }

    /// Sends a request with the deployment's key and reads the whole answer.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Response {
        call(self.address, &Request::post(path, body).key(self.key()))
            .await
            .unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        call(self.address, &Request::get(path).key(self.key()))
            .await
            .unwrap()
    }

    /// Stops it as an operator does and returns whether it ended cleanly.
    pub(crate) fn stop(&self) -> bool {
        self.process.terminate();
        self.process.wait_exit(PATIENCE).success()
    }
}

/// A chat request of `words` words.
pub(crate) fn chat(words: usize) -> Value {
    sluice_testkit::words::chat_request(MODEL, words)
}

/// The same as a stream.
pub(crate) fn streamed_chat(words: usize) -> Value {
    let mut request = chat(words);
    request["stream"] = json!(true);
    request
}

/// Waits until nothing is open at a relay and the database has all of its records.
pub(crate) async fn wait_until_posted(address: SocketAddr) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let open = figure(address, "sluice_ledger_open_holds").await;
        let waiting = figure(address, "sluice_ledger_waiting_records").await;
        if (open, waiting) == (0, 0) {
            return;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "{open} open, {waiting} wait"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks a relay for one of its figures.
pub(crate) async fn figure(address: SocketAddr, name: &str) -> i64 {
    let answer = call(address, &Request::get("/metrics")).await.unwrap();
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name} in:\n{text}"));
    value.parse().unwrap()
}

/// A database of a test, dropped with it.
pub(crate) struct PostgresDatabase {
    server: String,
    name: String,
    url: String,
}

impl PostgresDatabase {
    fn create(server: &str) -> Self {
        let name = format!("t{}", uuid::Uuid::from_u128(rand_u128()).simple());
        psql(server, &format!("CREATE DATABASE {name}"));
        let mut url = url::Url::parse(server).unwrap();
        url.set_path(&name);
        Self {
            server: server.to_owned(),
            name,
            url: url.into(),
        }
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        psql(
            &self.server,
            &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name),
        );
    }
}

fn rand_u128() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    u128::from_le_bytes(bytes)
}

fn psql(server: &str, statement: &str) {
    let finished = Program::new("psql")
        .args([server, "-X", "-q", "-c", statement])
        .run(PATIENCE);
    assert!(finished.status.success(), "psql: {}", finished.stderr);
}
