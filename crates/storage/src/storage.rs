//! The pools, and how they are opened.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sluice_domain::ports::StoreError;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, PgPool, SqlitePool};
use tracing::log::LevelFilter;

use crate::audit::Actor;
use crate::error::{Failure, internal};
use crate::ledger::{Callers, Kinds};

/// How long a call waits for a connection of PostgreSQL.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a write waits for the one writer of SQLite, this process's or another's.
const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read SQLite; each is a thread.
const SQLITE_MAX_READERS: u32 = 4;
/// Rows that the thread of a connection reads ahead: those of the largest statement of many rows, so that
/// it does not wait for its reader in between, which costs a change of threads each time.
const SQLITE_ROW_BUFFER: usize = 256;
/// Page cache of one SQLite connection. A negative number is KiB.
const SQLITE_CACHE: &str = "-2000";
/// Bytes of a page, fixed when a file is made. Records are appended, so large pages mean fewer
/// reads and writes; but a batch writes each page that it changes whole, and of most it changes a row.
const SQLITE_PAGE_BYTES: u32 = 8_192;
/// Pages in the write-ahead log before it is copied back: 16 MiB. A page that changes in every
/// batch is copied once per checkpoint.
const SQLITE_CHECKPOINT_PAGES: &str = "2000";
/// Bytes to which the write-ahead log is cut after a checkpoint.
const SQLITE_WAL_LIMIT: &str = "33554432";
/// Prepared statements kept per connection: all constants and all sizes of generated ones.
const STATEMENT_CACHE: usize = 256;
/// A statement that takes longer is logged.
const SLOW_STATEMENT: Duration = Duration::from_secs(1);

/// The kind of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// PostgreSQL.
    Postgres,
    /// SQLite.
    Sqlite,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Sqlite => "sqlite",
        })
    }
}

/// Which database, and how many connections.
#[derive(Clone)]
pub struct StorageOptions {
    /// `sqlite:PATH`, `sqlite://PATH`, `postgres://…` or `postgresql://…`.
    pub url: String,
    /// Most connections to PostgreSQL, or most that read SQLite (at most 4 are used there; one more
    /// writes).
    pub max_connections: u32,
}

impl fmt::Debug for StorageOptions {
    /// Shows the scheme alone: the rest may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split_once(':').map_or("", |(scheme, _)| scheme);
        f.debug_struct("StorageOptions")
            .field("url", &format_args!("{scheme}:…"))
            .field("max_connections", &self.max_connections)
            .finish()
    }
}

/// A database URL cannot be used. Never shows the URL, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// The scheme is another one.
    #[error("the database URL must begin with `sqlite:`, `postgres://` or `postgresql://`")]
    Scheme,
    /// There is no path to a file.
    #[error("the database URL needs a path, such as `sqlite:/var/lib/sluice/sluice.db`")]
    NoPath,
    /// The rest of a PostgreSQL URL cannot be read.
    #[error("the database URL is not of the form `postgres://user:password@host:port/database`")]
    Postgres,
}

pub(crate) enum Pools {
    Postgres(PgPool),
    Sqlite { write: SqlitePool, read: SqlitePool },
}

/// The database, behind operations that are atomic each.
///
/// Cheap to clone; clones share their connections, and what is remembered of callers and kinds.
#[derive(Clone)]
pub struct Storage {
    pools: Arc<Pools>,
    callers: Arc<Callers>,
    kinds: Arc<Kinds>,
    actor: Option<Arc<Actor>>,
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Storage({})", self.backend())
    }
}

impl Storage {
    /// Opens the database. A SQLite file that does not exist is made, readable by its owner alone;
    /// nothing is migrated.
    ///
    /// # Errors
    /// [`StoreError::Internal`] with [`InvalidUrl`] when the URL cannot be used;
    /// [`StoreError::Unavailable`] when the database cannot be reached or the file not be opened.
    pub async fn open(options: &StorageOptions) -> Result<Self, StoreError> {
        let Some((scheme, rest)) = options.url.split_once(':') else {
            return Err(internal(InvalidUrl::Scheme));
        };
        let pools = match scheme {
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                open_sqlite(path, options.max_connections).await?
            }
            "postgres" | "postgresql" if rest.starts_with("//") => open_postgres(options).await?,
            _ => return Err(internal(InvalidUrl::Scheme)),
        };
        Ok(Self::new(pools))
    }

    /// As [`open`](Self::open), but a database on a server is not reached for: the first call
    /// connects.
    ///
    /// # Errors
    /// See [`open`](Self::open).
    pub async fn open_lazily(options: &StorageOptions) -> Result<Self, StoreError> {
        let is_server = matches!(
            options.url.split_once("://"),
            Some(("postgres" | "postgresql", _))
        );
        if !is_server {
            return Self::open(options).await;
        }
        let (pool, connect) = postgres_pool(options)?;
        Ok(Self::new(Pools::Postgres(pool.connect_lazy_with(connect))))
    }

    /// Returns the kind of the database.
    pub fn backend(&self) -> Backend {
        match self.pools() {
            Pools::Postgres(_) => Backend::Postgres,
            Pools::Sqlite { .. } => Backend::Sqlite,
        }
    }

    /// Asks the database for a sign of life.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when there is none; may be repeated.
    pub async fn ping(&self) -> Result<(), StoreError> {
        const PING: &str = "SELECT 1";
        match self.pools() {
            Pools::Postgres(pool) => sqlx::query(PING).execute(pool).await.map(drop),
            Pools::Sqlite { read, .. } => sqlx::query(PING).execute(read).await.map(drop),
        }
        .map_err(|error| StoreError::from(Failure::from(error)))
    }

    /// Closes every connection; calls after it fail as [`StoreError::Unavailable`].
    pub async fn close(&self) {
        match self.pools() {
            Pools::Postgres(pool) => pool.close().await,
            Pools::Sqlite { write, read } => {
                read.close().await;
                // Last: the last connection copies the write-ahead log back.
                write.close().await;
            }
        }
    }

    fn new(pools: Pools) -> Self {
        Self {
            pools: Arc::new(pools),
            callers: Arc::new(Callers::new()),
            kinds: Arc::new(Kinds::new()),
            actor: None,
        }
    }

    /// Returns the same storage for what somebody does: each change of configuration through it is
    /// an audit event of theirs, in the same transaction.
    #[must_use]
    pub fn acting(&self, actor: Actor) -> Self {
        Self {
            actor: Some(Arc::new(actor)),
            ..self.clone()
        }
    }

    pub(crate) fn actor(&self) -> Option<&Actor> {
        self.actor.as_deref()
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }

    pub(crate) fn callers(&self) -> &Callers {
        &self.callers
    }

    pub(crate) fn kinds(&self) -> &Kinds {
        &self.kinds
    }
}

async fn open_postgres(options: &StorageOptions) -> Result<Pools, StoreError> {
    let (pool, connect) = postgres_pool(options)?;
    let pool = pool.connect_with(connect).await.map_err(Failure::from)?;
    Ok(Pools::Postgres(pool))
}

fn postgres_pool(
    options: &StorageOptions,
) -> Result<(PgPoolOptions, PgConnectOptions), StoreError> {
    // The driver's error may quote the URL.
    let connect = PgConnectOptions::from_str(&options.url)
        .map_err(|_may_hold_password| internal(InvalidUrl::Postgres))?
        .application_name("sluice")
        .statement_cache_capacity(STATEMENT_CACHE)
        .log_statements(LevelFilter::Trace)
        .log_slow_statements(LevelFilter::Warn, SLOW_STATEMENT);
    let pool = PgPoolOptions::new()
        .max_connections(options.max_connections.max(1))
        .acquire_timeout(ACQUIRE_TIMEOUT);
    Ok((pool, connect))
}

async fn open_sqlite(path: &str, max_connections: u32) -> Result<Pools, StoreError> {
    // Each connection to `:memory:` is a database of its own.
    if path.is_empty() || path.starts_with(':') || path.contains('?') {
        return Err(internal(InvalidUrl::NoPath));
    }
    make_private_file(Path::new(path)).map_err(|error| StoreError::Unavailable {
        source: Box::new(error),
    })?;
    let connect = SqliteConnectOptions::new()
        .filename(path)
        .page_size(SQLITE_PAGE_BYTES)
        .journal_mode(SqliteJournalMode::Wal)
        // A power cut may take the last commits; the journal of the instance posts them again.
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(SQLITE_BUSY_TIMEOUT)
        .foreign_keys(true)
        .statement_cache_capacity(STATEMENT_CACHE)
        .row_buffer_size(SQLITE_ROW_BUFFER)
        .pragma("cache_size", SQLITE_CACHE)
        .pragma("wal_autocheckpoint", SQLITE_CHECKPOINT_PAGES)
        .pragma("journal_size_limit", SQLITE_WAL_LIMIT)
        .pragma("temp_store", "memory")
        .pragma("trusted_schema", "off")
        .log_statements(LevelFilter::Trace)
        .log_slow_statements(LevelFilter::Warn, SLOW_STATEMENT);
    // Connections are threads of this process: they do not go stale, so neither their age nor
    // their life is checked.
    let pool = || {
        SqlitePoolOptions::new()
            .acquire_timeout(SQLITE_BUSY_TIMEOUT + ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            // When its disk is full, SQLite ends a transaction by itself. The driver's own end of it
            // fails then, and it would take the connection to be in a transaction for ever.
            .before_acquire(|connection, _| {
                let is_usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(is_usable) })
            })
    };
    let write = pool()
        .max_connections(1)
        .connect_with(connect.clone())
        .await
        .map_err(Failure::from)?;
    let read = pool()
        .max_connections(max_connections.clamp(1, SQLITE_MAX_READERS))
        .connect_lazy_with(connect.pragma("query_only", "on"));
    Ok(Pools::Sqlite { write, read })
}

/// Makes the file when it is missing; SQLite gives its side files the same rights.
fn make_private_file(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    match options.open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
