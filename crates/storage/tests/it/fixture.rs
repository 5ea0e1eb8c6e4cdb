//! Databases and builders.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_domain::id::{
    BootId, InstanceId, ProxyKeyId, RequestId, TenantId, UpstreamId, UpstreamKeyId, UserId, uuid_v7,
};
use sluice_domain::key::{KeyHash, ProxyKey, import_key};
use sluice_domain::ports::{Guard, LeaseChange, LedgerStore, LockedCounter, StoreError};
use sluice_domain::quota::{
    Amounts, CounterBalance, CounterKey, HoldTerms, Payer, Scope, ScopeKind, ScopeSet,
};
use sluice_domain::record::{
    AttemptRecord, Caller, NumberedRecord, OpenRequest, RequestEnd, UsageRecord,
};
use sluice_domain::route::Endpoint;
use sluice_domain::tenant::{EntityState, Role, Tenant, User};
use sluice_domain::time::{Month, TimeZone, UnixMillis};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};
use sluice_storage::key::NewProxyKey;
use sluice_storage::resolve::Settlement;
use sluice_storage::tenant::NewTenant;
use sluice_storage::user::NewUser;
use sluice_storage::{Backend, Storage, StorageOptions};
use sqlx::{PgPool, SqlitePool};
use uuid::Uuid;

/// 2026-11-18T11:06:40Z.
pub(crate) const NOW: UnixMillis = UnixMillis(1_795_000_000_000);

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// Settles an instance whenever it was heard of.
pub(crate) const FORCED: Settlement = Settlement {
    is_forced: true,
    releases: false,
    lost: None,
};

/// The tables of the ledger.
const LEDGER: [&str; 13] = [
    "instances",
    "leases",
    "counters",
    "record_kinds",
    "callers",
    "usage_rows",
    "failed_attempts",
    "skipped_targets",
    "rollup_daily",
    "rollup_monthly",
    "ledger_entries",
    "quarantine",
    "lost_posts",
];

/// Returns a new id, later than all before.
pub(crate) fn id() -> Uuid {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    uuid_v7(u64::try_from(NOW.0).unwrap(), random)
}

enum Raw {
    Sqlite {
        pool: SqlitePool,
        _folder: tempfile::TempDir,
    },
    Postgres {
        pool: PgPool,
        schema: String,
    },
}

/// An empty, migrated database of its own.
pub(crate) struct Database {
    pub(crate) storage: Storage,
    pub(crate) url: String,
    raw: Raw,
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Database {
    pub(crate) async fn sqlite() -> Self {
        let database = Self::empty_sqlite().await;
        database.storage.migrate().await.unwrap();
        database.storage.ensure_calendar(NOW).await.unwrap();
        database
    }

    pub(crate) async fn empty_sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("sluice.db").display());
        let storage = Storage::open(&StorageOptions {
            url: url.clone(),
            max_connections: 4,
        })
        .await
        .unwrap();
        let pool = SqlitePool::connect(&url).await.unwrap();
        Self {
            storage,
            url,
            raw: Raw::Sqlite {
                pool,
                _folder: folder,
            },
        }
    }

    pub(crate) async fn postgres() -> Option<Self> {
        let database = Self::empty_postgres().await?;
        database.storage.migrate().await.unwrap();
        database.storage.ensure_calendar(NOW).await.unwrap();
        Some(database)
    }

    pub(crate) async fn empty_postgres() -> Option<Self> {
        let Some(server) = environment("SLUICE_TEST_POSTGRES_URL") else {
            assert!(
                environment("REQUIRE_BACKENDS").as_deref() != Some("1"),
                "SLUICE_TEST_POSTGRES_URL is not set"
            );
            println!("skipped: SLUICE_TEST_POSTGRES_URL is not set");
            return None;
        };
        let schema = format!("sluice_test_{}_{}", std::process::id(), id().simple());
        let admin = PgPool::connect(&server).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
            .execute(&admin)
            .await
            .unwrap();
        admin.close().await;
        let separator = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{separator}options=-csearch_path%3D{schema}");
        let storage = Storage::open(&StorageOptions {
            url: url.clone(),
            max_connections: 5,
        })
        .await
        .unwrap();
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(2)
            .connect(&url)
            .await
            .unwrap();
        Some(Self {
            storage,
            url,
            raw: Raw::Postgres { pool, schema },
        })
    }

    pub(crate) fn is_sqlite(&self) -> bool {
        self.storage.backend() == Backend::Sqlite
    }

    /// Runs SQL behind the back of the storage.
    pub(crate) async fn execute(&self, sql: &str) -> Result<u64, sqlx::Error> {
        let sql = sqlx::AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::Sqlite { pool, .. } => sqlx::query(sql)
                .execute(pool)
                .await
                .map(|d| d.rows_affected()),
            Raw::Postgres { pool, .. } => sqlx::query(sql)
                .execute(pool)
                .await
                .map(|d| d.rows_affected()),
        }
    }

    /// Reads one number behind the back of the storage.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let text = sqlx::AssertSqlSafe(format!("SELECT CAST(({sql}) AS BIGINT)"));
        match &self.raw {
            Raw::Sqlite { pool, .. } => sqlx::query_scalar(text).fetch_one(pool).await.unwrap(),
            Raw::Postgres { pool, .. } => sqlx::query_scalar(text).fetch_one(pool).await.unwrap(),
        }
    }

    /// Reads a column of text behind the back of the storage.
    pub(crate) async fn texts(&self, sql: &str) -> Vec<String> {
        let text = sqlx::AssertSqlSafe(sql.to_owned());
        match &self.raw {
            Raw::Sqlite { pool, .. } => sqlx::query_scalar(text).fetch_all(pool).await.unwrap(),
            Raw::Postgres { pool, .. } => sqlx::query_scalar(text).fetch_all(pool).await.unwrap(),
        }
    }

    /// Prepares a statement; returns the number of its parameters.
    pub(crate) async fn parameters(&self, sql: &'static str) -> Result<usize, sqlx::Error> {
        use sqlx::{Either, Executor, SqlSafeStr, Statement};
        let sql = sql.into_sql_str();
        let count = |parameters: Option<Either<usize, usize>>| match parameters {
            Some(Either::Left(count) | Either::Right(count)) => count,
            None => 0,
        };
        Ok(match &self.raw {
            Raw::Sqlite { pool, .. } => {
                let statement = pool.acquire().await?.prepare(sql).await?;
                count(statement.parameters().map(|p| p.map_left(<[_]>::len)))
            }
            Raw::Postgres { pool, .. } => {
                let statement = pool.acquire().await?.prepare(sql).await?;
                count(statement.parameters().map(|p| p.map_left(<[_]>::len)))
            }
        })
    }

    /// Returns the plan of a query: on PostgreSQL one that reads whole tables only where it must.
    pub(crate) async fn plan(&self, sql: &str) -> Vec<String> {
        use sqlx::{AssertSqlSafe, Row};
        match &self.raw {
            Raw::Sqlite { pool, .. } => {
                let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
                let rows = sqlx::raw_sql(explain).fetch_all(pool).await.unwrap();
                rows.iter().map(|row| row.get("detail")).collect()
            }
            Raw::Postgres { pool, .. } => {
                let mut transaction = pool.begin().await.unwrap();
                let without_scans = "SET LOCAL enable_seqscan = off";
                sqlx::raw_sql(without_scans)
                    .execute(&mut *transaction)
                    .await
                    .unwrap();
                let explain = AssertSqlSafe(format!("EXPLAIN {sql}"));
                let rows = sqlx::raw_sql(explain).fetch_all(&mut *transaction).await;
                rows.unwrap().iter().map(|row| row.get(0)).collect()
            }
        }
    }

    /// Writes an id as a literal.
    pub(crate) fn literal(&self, id: Uuid) -> String {
        if self.is_sqlite() {
            format!("x'{}'", id.simple())
        } else {
            format!("CAST('{id}' AS UUID)")
        }
    }

    pub(crate) async fn close(self) {
        self.storage.close().await;
        if let Raw::Postgres { schema, .. } = &self.raw {
            self.execute(&format!("DROP SCHEMA {schema} CASCADE"))
                .await
                .unwrap();
        }
    }

    pub(crate) async fn tenant(&self, name: &str) -> Tenant {
        self.tenant_with_quota(name, None).await
    }

    pub(crate) async fn tenant_with_quota(&self, name: &str, quota_tokens: Option<i64>) -> Tenant {
        let new = NewTenant {
            id: TenantId::from_uuid(id()),
            name: name.parse().unwrap(),
            time_zone: TimeZone::utc(),
            quota_tokens,
            now: NOW,
        };
        self.storage.create_tenant(new).await.unwrap()
    }

    pub(crate) async fn user(&self, tenant: &Tenant, name: &str) -> User {
        self.storage
            .create_user(new_user(tenant, name))
            .await
            .unwrap()
            .unwrap()
    }

    pub(crate) async fn key(&self, user: &User, text: &str) -> ProxyKey {
        self.storage
            .insert_key(new_key(user, text))
            .await
            .unwrap()
            .unwrap()
    }

    /// Returns a tenant with a user and a key.
    pub(crate) async fn account(&self, name: &str) -> Account {
        let tenant = self.tenant(name).await;
        let user = self.user(&tenant, "anna").await;
        let key = self.key(&user, &format!("sk-test-{name}-0001")).await;
        Account { tenant, user, key }
    }

    /// Changes the leases of an instance by so much in each of the counters.
    pub(crate) async fn lease(
        &self,
        guard: &mut Guard,
        counters: &[CounterKey],
        delta: Amounts,
    ) -> Vec<LockedCounter> {
        let moved = self.try_lease(*guard, counters, delta).await.unwrap();
        guard.seq += 1;
        moved
    }

    pub(crate) async fn try_lease(
        &self,
        guard: Guard,
        counters: &[CounterKey],
        delta: Amounts,
    ) -> Result<Vec<LockedCounter>, StoreError> {
        let change = LeaseChange {
            delta,
            recall: None,
        };
        let policy = |rows: &[LockedCounter], _live: u32| vec![change; rows.len()];
        self.storage
            .move_leases(guard, counters, &policy, NOW)
            .await
    }

    pub(crate) async fn balance(&self, counter: CounterKey) -> CounterBalance {
        let found = self.storage.load_counters(&[counter]).await.unwrap();
        assert_eq!(found.len(), 1);
        found[0]
    }

    /// Returns the rules that are broken, without warnings.
    pub(crate) async fn faults(&self) -> Vec<&'static str> {
        let findings = self.storage.verify_ledger(NOW).await.unwrap();
        let mut faults: Vec<&str> = findings
            .iter()
            .filter(|finding| !finding.is_warning())
            .map(|finding| finding.id)
            .collect();
        faults.dedup();
        faults
    }

    /// Checks the identities of the ledger that must hold in every snapshot.
    pub(crate) async fn check(&self) {
        let findings = self.storage.verify_ledger(NOW).await.unwrap();
        let faults: Vec<String> = findings
            .iter()
            .filter(|finding| !finding.is_warning())
            .map(ToString::to_string)
            .collect();
        assert!(faults.is_empty(), "{faults:#?}");
    }

    /// Closes a month of a tenant with a statement of the records that it has.
    pub(crate) async fn close_month(&self, tenant: &Tenant, month: Month) {
        let (tenant, month) = (self.literal(tenant.id.as_uuid()), month.as_number());
        let hash = if self.is_sqlite() {
            "zeroblob(32)"
        } else {
            "decode(repeat('00', 32), 'hex')"
        };
        for sql in [
            format!(
                "INSERT INTO statements (tenant_id, statement_period, version, totals, record_count, hash, closed_at_ms) \
                 SELECT {tenant}, {month}, 1, '{{}}', COUNT(*), {hash}, 0 FROM usage_records \
                 WHERE tenant_id = {tenant} AND statement_period = {month}"
            ),
            format!(
                "UPDATE periods SET state = 'closed' WHERE tenant_id = {tenant} AND period = {month}"
            ),
        ] {
            assert_eq!(self.execute(&sql).await.unwrap(), 1, "{sql}");
        }
    }

    /// Lets audit events be changed by hand.
    pub(crate) async fn unprotect_audit(&self) {
        let triggers: &[&str] = if self.is_sqlite() {
            &[
                "DROP TRIGGER audit_events_no_update",
                "DROP TRIGGER audit_events_no_delete",
            ]
        } else {
            &["DROP TRIGGER audit_events_no_change ON audit_events"]
        };
        for trigger in triggers {
            self.execute(trigger).await.unwrap();
        }
    }

    /// Lets records and entries be changed by hand.
    pub(crate) async fn unprotect(&self) {
        for (table, triggers) in [
            (
                "record_kinds",
                ["record_kinds_no_update", "record_kinds_no_delete"],
            ),
            (
                "usage_rows",
                ["usage_rows_no_update", "usage_rows_no_delete"],
            ),
            (
                "ledger_entries",
                ["ledger_entries_no_update", "ledger_entries_no_delete"],
            ),
        ] {
            if self.is_sqlite() {
                for trigger in triggers {
                    self.execute(&format!("DROP TRIGGER {trigger}"))
                        .await
                        .unwrap();
                }
            } else {
                self.execute(&format!("DROP TRIGGER {table}_no_change ON {table}"))
                    .await
                    .unwrap();
            }
        }
    }

    /// Keeps the ledger as it is now, for [`Self::go_back`].
    pub(crate) async fn keep(&self) {
        for table in LEDGER {
            self.execute(&format!(
                "CREATE TABLE kept_{table} AS SELECT * FROM {table}"
            ))
            .await
            .unwrap();
        }
    }

    /// Makes the ledger what it was, as a database does that lost its last transactions.
    pub(crate) async fn go_back(&self) {
        self.unprotect().await;
        for table in LEDGER {
            for sql in [
                format!("DELETE FROM {table}"),
                format!("INSERT INTO {table} SELECT * FROM kept_{table}"),
            ] {
                self.execute(&sql).await.unwrap();
            }
        }
    }

    /// Returns a claimed instance.
    pub(crate) async fn instance(&self) -> Guard {
        let (instance_id, boot_id) = (InstanceId::from_uuid(id()), BootId::from_uuid(id()));
        let row = self
            .storage
            .claim_instance(instance_id, &[], boot_id, NOW)
            .await
            .unwrap();
        Guard {
            instance_id,
            boot_id,
            seq: row.seq,
        }
    }
}

pub(crate) struct Account {
    pub(crate) tenant: Tenant,
    pub(crate) user: User,
    pub(crate) key: ProxyKey,
}

impl Account {
    pub(crate) fn payer(&self) -> Payer {
        Payer {
            tenant_id: self.tenant.id,
            user_id: self.user.id,
            key_id: self.key.id,
        }
    }

    pub(crate) fn scope(&self, kind: ScopeKind) -> Scope {
        let id = match kind {
            ScopeKind::Tenant => self.tenant.id.as_uuid(),
            ScopeKind::User => self.user.id.as_uuid(),
            ScopeKind::Key => self.key.id.as_uuid(),
        };
        Scope { kind, id }
    }

    /// Returns its counter in the month of [`NOW`].
    pub(crate) fn counter(&self, kind: ScopeKind) -> CounterKey {
        CounterKey {
            tenant_id: self.tenant.id,
            scope: self.scope(kind),
            month: TimeZone::utc().period_of(NOW).month,
        }
    }

    /// Returns records with dense numbers.
    pub(crate) fn records(&self, first: i64, count: i64) -> Vec<NumberedRecord> {
        (first..first + count)
            .map(|post_no| self.record(post_no))
            .collect()
    }

    /// Returns records as [`Self::records`] does, held in leases of these scopes.
    pub(crate) fn held_records(
        &self,
        first: i64,
        count: i64,
        scopes: &[ScopeKind],
    ) -> Vec<NumberedRecord> {
        let mut records = self.records(first, count);
        let leased = scopes
            .iter()
            .fold(ScopeSet::default(), |set, kind| set.with(*kind));
        for numbered in &mut records {
            numbered.record.open.hold.leased = leased;
        }
        records
    }

    /// Returns a record that charges 30 tokens and 300 billionths, held in no lease.
    pub(crate) fn record(&self, post_no: i64) -> NumberedRecord {
        let zone = TimeZone::utc();
        let model: Arc<str> = Arc::from("gpt-4o");
        NumberedRecord {
            post_no,
            record: Box::new(UsageRecord {
                open: OpenRequest {
                    request_id: RequestId::from_uuid(id()),
                    payer: self.payer(),
                    period: zone.period_of(NOW).month,
                    local_day: zone.day_of(NOW).day,
                    started_at: NOW,
                    endpoint: Endpoint::ChatCompletions,
                    streams: true,
                    requested_model: Arc::clone(&model),
                    hold: HoldTerms {
                        bound: Amounts {
                            tokens: 100,
                            nano: 1_000,
                        },
                        leased: ScopeSet::default(),
                        input_estimate: 20,
                    },
                    caller: Caller {
                        ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                        user_agent: Some(Arc::from("curl/8")),
                    },
                },
                end: RequestEnd {
                    ending: Ending::Finished,
                    stage: Stage::Relaying,
                    status: 200,
                    error_code: None,
                    usage: TokenUsage {
                        input: 20,
                        cached_input: 5,
                        output: 10,
                        ..TokenUsage::default()
                    },
                    basis: Basis::Reported,
                    owed: Amounts {
                        tokens: 30,
                        nano: 300,
                    },
                    first_event_ms: Some(7),
                    duration_ms: 9,
                    attempts: smallvec::smallvec![AttemptRecord {
                        upstream_id: UpstreamId::from_uuid(Uuid::from_u128(7)),
                        upstream_key_id: Some(UpstreamKeyId::from_uuid(Uuid::from_u128(8))),
                        upstream_model: model,
                        status: Some(200),
                        error: None,
                        started_at: NOW,
                        head_ms: 6,
                    }],
                    skipped: sluice_domain::pool::SkippedTargets::default(),
                },
            }),
        }
    }
}

pub(crate) fn hash(text: &str) -> KeyHash {
    sluice_domain::key::Pepper::new([7; 32]).hasher().hash(text)
}

pub(crate) fn new_user(tenant: &Tenant, name: &str) -> NewUser {
    NewUser {
        id: UserId::from_uuid(id()),
        tenant_id: tenant.id,
        name: name.parse().unwrap(),
        role: Role::Member,
        quota_tokens: None,
        now: NOW,
    }
}

pub(crate) fn new_key(user: &User, text: &str) -> NewProxyKey {
    NewProxyKey {
        may_pin: false,
        id: ProxyKeyId::from_uuid(id()),
        tenant_id: user.tenant_id,
        user_id: user.id,
        name: "laptop".parse().unwrap(),
        key_hash: hash(text),
        hint: import_key(text).unwrap().hint(),
        expires_at: Some(UnixMillis(NOW.0 + 1_000)),
        allowed_models: Some(vec!["gpt-4o".to_owned()]),
        quota_tokens: None,
        state: EntityState::Active,
        now: NOW,
    }
}

/// Returns amounts with ten times as many billionths as tokens, as records of [`Account`] have them.
pub(crate) fn tenfold(tokens: i64) -> Amounts {
    Amounts {
        tokens,
        nano: tokens * 10,
    }
}
