//! What a start reads: from the database, or, when that is away, from the config snapshot.

use std::time::Duration;

use anyhow::bail;
use sluice_domain::key::KeyHash;
use sluice_domain::ports::{Clock, StoreError};
use sluice_storage::grant::KeyGrant;
use sluice_storage::route::Routing;
use sluice_storage::{MigrationState, Storage};
use tokio::time::Instant;

use crate::app::App;
use crate::clock::SystemClock;
use crate::database::{Standing, bounded};
use crate::error::chain;
use crate::snapshot::{SnapshotFile, Unusable};

/// How long a database that answers may take to be checked and read; in the first minutes of a month
/// many calendars are written.
const READ_PATIENCE: Duration = Duration::from_mins(1);
/// How long a start waits for the database, before a snapshot serves instead of it.
const PATIENCE_WITH_SNAPSHOT: Duration = Duration::from_secs(3);
/// How long a start waits for the database where it cannot do without.
const PATIENCE_WITHOUT_SNAPSHOT: Duration = Duration::from_secs(10);
/// How long it waits between two tries.
const REACH_PAUSE: Duration = Duration::from_millis(250);

/// What an instance begins with.
pub(super) struct Begun {
    pub(super) standing: Standing,
    /// The position of the change feed that the rest is true for.
    pub(super) feed_position: i64,
    pub(super) routing: Routing,
    /// Keys that are known.
    pub(super) grants: Vec<(KeyHash, KeyGrant)>,
    /// Keys that should be read, because they were in use.
    pub(super) used: Vec<KeyHash>,
}

/// Reads what the database has; when it is away, what the snapshot has.
pub(super) async fn begin(
    storage: &Storage,
    clock: SystemClock,
    file: Option<&SnapshotFile>,
    max_age: Duration,
) -> anyhow::Result<Begun> {
    let kept = match file.map(SnapshotFile::read) {
        Some(Ok(snapshot)) => Some(snapshot),
        Some(Err(unusable)) => {
            if !matches!(unusable, Unusable::Missing) {
                tracing::warn!(reason = chain(&unusable), "the config snapshot is not used");
            }
            None
        }
        None => None,
    };
    let usable = kept.as_ref().map(|kept| kept.age(clock.now(), max_age));
    let patience = match &usable {
        Some(Ok(_age)) => PATIENCE_WITH_SNAPSHOT,
        _ => PATIENCE_WITHOUT_SNAPSHOT,
    };
    let missed = match reach(storage, clock, max_age, patience).await {
        Ok(begun) => {
            let used = kept.map(|kept| kept.grants).unwrap_or_default();
            return Ok(Begun {
                used: used.into_iter().map(|(hash, _grant)| hash).collect(),
                ..begun
            });
        }
        Err(Missed::Away(error)) => error,
        Err(Missed::Other(error)) => return Err(error),
    };
    match (kept, usable) {
        (Some(snapshot), Some(Ok(_age))) => {
            // Time has passed since it was looked at.
            let age = snapshot.age(clock.now(), max_age).unwrap_or(max_age);
            tracing::warn!(
                error = chain(&missed),
                as_of = snapshot.as_of.to_rfc3339(),
                keys = snapshot.grants.len(),
                "the database does not answer; known keys are served from the config snapshot"
            );
            Ok(Begun {
                standing: Standing::away(max_age, snapshot.as_of, age),
                feed_position: snapshot.feed_position,
                routing: snapshot.routing,
                grants: snapshot.grants,
                used: Vec::new(),
            })
        }
        (_, Some(Err(unusable))) => {
            let reason = format!(
                "the database cannot be reached, and the config snapshot is not used: {unusable}"
            );
            Err(anyhow::Error::from(missed).context(reason))
        }
        _ => Err(anyhow::Error::from(missed).context("the database cannot be opened")),
    }
}

/// Why the database was not read.
enum Missed {
    Away(StoreError),
    Other(anyhow::Error),
}

/// Tries for a while to reach the database, then reads what it has.
async fn reach(
    storage: &Storage,
    clock: SystemClock,
    max_age: Duration,
    patience: Duration,
) -> Result<Begun, Missed> {
    let until = Instant::now() + patience;
    let migrations = loop {
        let left = until.saturating_duration_since(Instant::now());
        match bounded(left, storage.migration_state()).await {
            Ok(migrations) => break migrations,
            Err(error @ StoreError::Unavailable { .. }) => {
                if Instant::now() + REACH_PAUSE >= until {
                    return Err(Missed::Away(error));
                }
            }
            Err(error) => return Err(Missed::Other(unreadable(error))),
        }
        tokio::time::sleep(REACH_PAUSE).await;
    };
    refuse_unless_migrated(&migrations).map_err(Missed::Other)?;
    match bounded(READ_PATIENCE, read_database(storage, clock, max_age)).await {
        Ok(begun) => Ok(begun),
        Err(error @ StoreError::Unavailable { .. }) => Err(Missed::Away(error)),
        Err(error) => Err(Missed::Other(unreadable(error))),
    }
}

fn unreadable(error: StoreError) -> anyhow::Error {
    anyhow::Error::from(error).context("the database cannot be read")
}

async fn read_database(
    storage: &Storage,
    clock: SystemClock,
    max_age: Duration,
) -> Result<Begun, StoreError> {
    storage.ensure_calendar(clock.now()).await?;
    let standing = Standing::joined(max_age, clock.now());
    // The position comes before the first read, so that no change falls between them.
    let feed_position = storage.feed_position().await?;
    Ok(Begun {
        standing,
        feed_position,
        routing: storage.load_routing().await?,
        grants: Vec::new(),
        used: Vec::new(),
    })
}

/// Checks a database that was away at the start. Returns whether it may be used.
pub(super) async fn join(app: &App) -> bool {
    let checked = async {
        let migrations = app.storage.migration_state().await?;
        if let Err(refused) = refuse_unless_migrated(&migrations) {
            return Ok(Err(refused));
        }
        app.storage.ensure_calendar(app.now()).await?;
        Ok(Ok(()))
    };
    match bounded(READ_PATIENCE, checked).await {
        Ok(Ok(())) => {
            app.standing.note_joined();
            true
        }
        Ok(Err(refused)) => {
            tracing::error!(
                error = format!("{refused:#}"),
                "the database is back, but is not used; known keys are served until the snapshot is too old"
            );
            false
        }
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "the database is back, but cannot be read"
            );
            false
        }
    }
}

fn refuse_unless_migrated(state: &MigrationState) -> anyhow::Result<()> {
    if state.is_current() {
        return Ok(());
    }
    if state.unknown.is_empty() && state.changed.is_empty() {
        bail!("the database is not migrated to this version; run `sluice migrate` first");
    }
    bail!(
        "the database does not fit this binary: unknown migrations {:?}, changed migrations {:?}",
        state.unknown,
        state.changed
    )
}
