//! What truly differs between the two databases. Everything else is written once.
//!
//! Counted, so that the list stays short:
//!
//! 1. how a write transaction begins;
//! 2. generated multi-row statements (in `bulk`): their placeholders (`$n`, `?`), and the word for rows
//!    that must be new;
//! 3. the lock on the counters of tenants: SQLite has one writer;
//! 4. the lock on the row of an instance;
//! 5. the lock on periods that a post relies on;
//! 6. the wake-up of pollers of the change feed;
//! 7. partitions, and what lies in the one that must stay empty;
//! 8. how the table of migrations is looked up;
//! 9. whether statements that follow each other are sent as one text;
//! 10. how a transaction begins whose reads see one snapshot;
//! 11. how rows that should have been new and were not are told: by their number, or by an error.

use sluice_domain::time::UnixMillis;
use sqlx::error::{BoxDynError, ErrorKind};
use sqlx::{
    Database, FromRow, PgPool, PgTransaction, Postgres, Sqlite, SqlitePool, SqliteTransaction,
};
use uuid::Uuid;

use crate::audit::Actor;
use crate::bulk::{Bulk, Repeats, share_nothing};
use crate::error::Failure;
use crate::group::{Group, Part};
use crate::storage::Backend;

/// A connection of one of the databases. Its methods are the functions of this crate that run SQL;
/// `on_both!` writes them once.
pub(crate) struct Session<'c, D: Database> {
    pub(crate) conn: &'c mut D::Connection,
    /// Who acts; what nobody does is not audited.
    pub(crate) actor: Option<&'c Actor>,
    /// Whether what they do is written down.
    pub(crate) is_recorded: bool,
}

/// The database of a session.
pub(crate) trait Backed {
    type Database: Database;
}

impl<D: Database> Backed for Session<'_, D> {
    type Database = D;
}

/// The bound parameters of a session's statements.
pub(crate) type Args<S> = <<S as Backed>::Database as Database>::Arguments;
/// The rows of a session's statements.
pub(crate) type Row<S> = <<S as Backed>::Database as Database>::Row;

impl<'c, D: Database> Session<'c, D> {
    pub(crate) fn new(conn: &'c mut D::Connection) -> Self {
        Self {
            conn,
            actor: None,
            is_recorded: false,
        }
    }

    pub(crate) fn acting(mut self, actor: Option<&'c Actor>) -> Self {
        self.actor = actor;
        self
    }
}

/// The channel that wakes pollers of the change feed.
pub(crate) const FEED_CHANNEL: &str = "sluice_feed";

/// Statements of PostgreSQL alone.
pub(crate) mod postgres {
    statements! {
        BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED";
        LOCK_TENANT_COUNTERS = "SELECT counter_id FROM counters \
            WHERE scope = 'tenant' AND scope_id = ANY($1) AND period = ANY($2) \
            ORDER BY counter_id FOR UPDATE";
        BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        LOCK_INSTANCE = "SELECT instance_id FROM instances WHERE instance_id = $1 FOR UPDATE";
        COUNT_STRAY_RECORDS = "SELECT COUNT(*) FROM usage_rows_default";
        LOCK_PERIODS = "SELECT period FROM periods WHERE tenant_id = ANY($1) AND period = ANY($2) \
            ORDER BY tenant_id, period FOR SHARE";
        NOTIFY_FEED = "SELECT CAST(pg_notify('sluice_feed', '') AS TEXT)";
        ENSURE_PARTITIONS = "SELECT sluice_ensure_partitions($1)";
        HAS_MIGRATIONS = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    }
}

/// Statements of SQLite alone.
pub(crate) mod sqlite {
    statements! {
        // A plain BEGIN becomes a writer at its first write, and fails at once when another one has
        // written since it began to read.
        BEGIN = "BEGIN IMMEDIATE";
        BEGIN_SNAPSHOT = "BEGIN";
        HAS_MIGRATIONS = "SELECT EXISTS \
            (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations')";
    }
}

pub(crate) async fn begin_postgres(pool: &PgPool) -> Result<PgTransaction<'static>, Failure> {
    Ok(pool.begin_with(postgres::BEGIN.sql).await?)
}

pub(crate) async fn begin_sqlite(pool: &SqlitePool) -> Result<SqliteTransaction<'static>, Failure> {
    Ok(pool.begin_with(sqlite::BEGIN.sql).await?)
}

pub(crate) async fn begin_postgres_snapshot(
    pool: &PgPool,
) -> Result<PgTransaction<'static>, Failure> {
    Ok(pool.begin_with(postgres::BEGIN_SNAPSHOT.sql).await?)
}

pub(crate) async fn begin_sqlite_snapshot(
    pool: &SqlitePool,
) -> Result<SqliteTransaction<'static>, Failure> {
    Ok(pool.begin_with(sqlite::BEGIN_SNAPSHOT.sql).await?)
}

impl Session<'_, Postgres> {
    pub(crate) const BACKEND: Backend = Backend::Postgres;

    /// Locks the counters of tenants in months, in the order of their ids, so that two writers never
    /// wait for each other.
    pub(crate) async fn lock_tenant_counters(
        &mut self,
        tenants: &[Uuid],
        periods: &[i32],
    ) -> Result<(), Failure> {
        sql!(postgres::LOCK_TENANT_COUNTERS, tenants, periods)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// Locks the row of an instance: a transaction of it that is under way is waited for.
    pub(crate) async fn lock_instance(&mut self, instance: Uuid) -> Result<(), Failure> {
        sql!(postgres::LOCK_INSTANCE, instance)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    /// Counts records in the partition that must stay empty.
    pub(crate) async fn count_stray_records(&mut self) -> Result<i64, Failure> {
        Ok(sql_scalar!(postgres::COUNT_STRAY_RECORDS)
            .fetch_one(&mut *self.conn)
            .await?)
    }

    /// Keeps the state of periods as it is until the end of the transaction.
    pub(crate) async fn lock_periods(
        &mut self,
        tenants: &[Uuid],
        periods: &[i32],
    ) -> Result<(), Failure> {
        sql!(postgres::LOCK_PERIODS, tenants, periods)
            .execute(&mut *self.conn)
            .await?;
        Ok(())
    }

    pub(crate) async fn notify_feed(&mut self) -> Result<(), Failure> {
        sql!(postgres::NOTIFY_FEED).execute(&mut *self.conn).await?;
        Ok(())
    }

    /// Runs a group of statements, one after the other; returns how many rows they changed.
    pub(crate) async fn execute_group<const PARTS: usize>(
        &mut self,
        _group: &'static Group,
        parts: [Part<'_, Args<Self>>; PARTS],
    ) -> Result<usize, Failure> {
        let mut changed = 0;
        for part in parts {
            changed += self.execute_part(part).await?;
        }
        Ok(changed)
    }

    /// Runs inserts, one after the other. When a row that must be new is there already, that is
    /// [`Failure::NotAllNew`].
    pub(crate) async fn insert_group<const PARTS: usize>(
        &mut self,
        _group: &'static Group,
        parts: [Part<'_, Args<Self>>; PARTS],
    ) -> Result<(), Failure> {
        for part in parts {
            let expected = part.bulk.is_all_new().then_some(part.rows);
            let inserted = self.execute_part(part).await?;
            if expected.is_some_and(|expected| inserted != expected) {
                return Err(Failure::NotAllNew);
            }
        }
        Ok(())
    }

    /// Makes the partitions of this month and the next two; returns how many were missing.
    pub(crate) async fn ensure_partitions(&mut self, now: UnixMillis) -> Result<i32, Failure> {
        Ok(sql_scalar!(postgres::ENSURE_PARTITIONS, now.0)
            .fetch_one(&mut *self.conn)
            .await?)
    }

    pub(crate) async fn has_migrations(&mut self) -> Result<bool, Failure> {
        Ok(sql_scalar!(postgres::HAS_MIGRATIONS)
            .fetch_one(&mut *self.conn)
            .await?)
    }
}

#[expect(clippy::unused_async, reason = "the other side of each pair awaits")]
impl Session<'_, Sqlite> {
    pub(crate) const BACKEND: Backend = Backend::Sqlite;

    pub(crate) async fn lock_tenant_counters(
        &mut self,
        _tenants: &[Uuid],
        _periods: &[i32],
    ) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) async fn lock_instance(&mut self, _instance: Uuid) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) async fn count_stray_records(&mut self) -> Result<i64, Failure> {
        Ok(0)
    }

    pub(crate) async fn lock_periods(
        &mut self,
        _tenants: &[Uuid],
        _periods: &[i32],
    ) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) async fn notify_feed(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Runs a group of statements as one text; returns how many rows they changed.
    pub(crate) async fn execute_group<const PARTS: usize>(
        &mut self,
        group: &'static Group,
        parts: [Part<'_, Args<Self>>; PARTS],
    ) -> Result<usize, Failure> {
        let mut changed = 0;
        for run in group.runs(parts) {
            let run = run?;
            let done = sqlx::query_with(run.sql, run.arguments)
                .execute(&mut *self.conn)
                .await?;
            changed += usize::try_from(done.rows_affected()).unwrap_or(usize::MAX);
        }
        Ok(changed)
    }

    /// Runs inserts as one text. When a row that must be new is there already, that is
    /// [`Failure::NotAllNew`].
    pub(crate) async fn insert_group<const PARTS: usize>(
        &mut self,
        group: &'static Group,
        parts: [Part<'_, Args<Self>>; PARTS],
    ) -> Result<(), Failure> {
        match self.execute_group(group, parts).await {
            Err(Failure::Sql(sqlx::Error::Database(cause)))
                if cause.kind() == ErrorKind::UniqueViolation =>
            {
                Err(Failure::NotAllNew)
            }
            Err(failure) => Err(failure),
            Ok(_changed) => Ok(()),
        }
    }

    pub(crate) async fn ensure_partitions(&mut self, _now: UnixMillis) -> Result<i32, Failure> {
        Ok(0)
    }

    pub(crate) async fn has_migrations(&mut self) -> Result<bool, Failure> {
        Ok(sql_scalar!(sqlite::HAS_MIGRATIONS)
            .fetch_one(&mut *self.conn)
            .await?)
    }
}

on_both! {
    /// Runs a statement of many rows; returns how many rows it changed.
    pub(crate) async fn execute_bulk<R: Sync>(
        &mut self,
        bulk: &'static Bulk,
        rows: &[R],
        bind: impl FnMut(&mut Args<Self>, &R) -> Result<(), BoxDynError> + Send,
    ) -> Result<usize, Failure> {
        let mut changed = 0;
        for run in bulk.runs(rows, Self::BACKEND, Repeats::Never, share_nothing, bind) {
            let run = run?;
            let done = sqlx::query_with(run.sql, run.arguments).execute(&mut *self.conn).await?;
            changed += usize::try_from(done.rows_affected()).unwrap_or(usize::MAX);
        }
        Ok(changed)
    }

    /// Runs a statement that belongs to a group elsewhere.
    pub(crate) async fn execute_part(
        &mut self,
        mut part: Part<'_, Args<Self>>,
    ) -> Result<usize, Failure> {
        let rows: Vec<usize> = (0..part.rows).collect();
        let bind = |arguments: &mut Args<Self>, row: &usize| (part.bind)(arguments, *row);
        self.execute_bulk(part.bulk, &rows, bind).await
    }

    /// Runs a statement of many rows; returns the rows that it returns.
    pub(crate) async fn fetch_bulk<R: Sync, T>(
        &mut self,
        bulk: &'static Bulk,
        rows: &[R],
        repeats: Repeats,
        bind: impl FnMut(&mut Args<Self>, &R) -> Result<(), BoxDynError> + Send,
    ) -> Result<Vec<T>, Failure>
    where
        T: for<'r> FromRow<'r, Row<Self>> + Send + Unpin,
    {
        self.fetch_sharing(bulk, rows, repeats, share_nothing, bind).await
    }

    /// As [`Self::fetch_bulk`], for a statement whose rows share values.
    pub(crate) async fn fetch_sharing<R: Sync, T>(
        &mut self,
        bulk: &'static Bulk,
        rows: &[R],
        repeats: Repeats,
        share: impl FnMut(&mut Args<Self>) -> Result<(), BoxDynError> + Send,
        bind: impl FnMut(&mut Args<Self>, &R) -> Result<(), BoxDynError> + Send,
    ) -> Result<Vec<T>, Failure>
    where
        T: for<'r> FromRow<'r, Row<Self>> + Send + Unpin,
    {
        let mut found = Vec::new();
        for run in bulk.runs(rows, Self::BACKEND, repeats, share, bind) {
            let run = run?;
            found.extend(sqlx::query_as_with(run.sql, run.arguments).fetch_all(&mut *self.conn).await?);
        }
        Ok(found)
    }
}
