//! Migrations: embedded, applied under a lock, and comparable with what a database has.

use sluice_domain::ports::StoreError;
use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migrator};

use crate::error::{Failure, internal};
use crate::storage::{Backend, Pools, Storage};

static POSTGRES: Migrator = sqlx::migrate!("../../migrations/postgres");
static SQLITE: Migrator = sqlx::migrate!("../../migrations/sqlite");
const TABLE: &str = "_sqlx_migrations";

/// How a database stands to the migrations of this binary. All lists are ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationState {
    /// Applied, and as this binary has them.
    pub applied: Vec<i64>,
    /// Known to this binary, not applied.
    pub pending: Vec<i64>,
    /// Applied by a newer binary.
    pub unknown: Vec<i64>,
    /// Applied, but with another text.
    pub changed: Vec<i64>,
}

impl MigrationState {
    /// Returns whether this binary can serve from the database: nothing pending, unknown or changed.
    pub fn is_current(&self) -> bool {
        self.pending.is_empty() && self.unknown.is_empty() && self.changed.is_empty()
    }

    fn compare(migrator: &Migrator, applied: &[AppliedMigration]) -> Self {
        let mut state = Self::default();
        for known in migrator.iter() {
            match applied.iter().find(|a| a.version == known.version) {
                None => state.pending.push(known.version),
                Some(a) if a.checksum == known.checksum => state.applied.push(known.version),
                Some(_) => state.changed.push(known.version),
            }
        }
        state.unknown = applied
            .iter()
            .map(|a| a.version)
            .filter(|version| !migrator.version_exists(*version))
            .collect();
        state
    }
}

/// What a migration did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MigrationReport {
    /// The versions that were applied now, ascending; empty when there was nothing to do.
    pub applied: Vec<i64>,
}

impl Storage {
    /// Applies what is pending, in order. Several processes may call it at once: on PostgreSQL one
    /// of them works under an advisory lock, on SQLite the later ones find the work done.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the database was migrated by a newer binary or an applied
    /// migration has another text; [`StoreError::Unavailable`] may be repeated.
    pub async fn migrate(&self) -> Result<MigrationReport, StoreError> {
        let before = self.migration_state().await?;
        if let Some(what) = refusal(&before) {
            return Err(StoreError::Conflict { what });
        }
        if before.pending.is_empty() {
            return Ok(MigrationReport::default());
        }
        let result = match self.pools() {
            Pools::Postgres(pool) => {
                let mut connection = pool.acquire().await.map_err(Failure::from)?;
                // When a migration fails, its session lock ends with the session.
                connection.close_on_drop();
                POSTGRES.run(&mut *connection).await
            }
            Pools::Sqlite { write, .. } => {
                let mut connection = write.acquire().await.map_err(Failure::from)?;
                SQLITE.run(&mut *connection).await
            }
        };
        if let Err(error) = result {
            // Another process may have been faster.
            if !self.migration_state().await?.is_current() {
                return Err(from_migration(error));
            }
        }
        Ok(MigrationReport {
            applied: before.pending,
        })
    }

    /// Compares the database with the migrations of this binary; changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn migration_state(&self) -> Result<MigrationState, StoreError> {
        let applied: Result<_, StoreError> = reading!(self, list_applied());
        let migrator = match self.backend() {
            Backend::Postgres => &POSTGRES,
            Backend::Sqlite => &SQLITE,
        };
        Ok(MigrationState::compare(migrator, &applied?))
    }
}

on_both! {
    async fn list_applied(&mut self) -> Result<Vec<AppliedMigration>, Failure> {
        if !self.has_migrations().await? {
            return Ok(Vec::new());
        }
        let listed = self.conn.list_applied_migrations(TABLE).await;
        listed.map_err(|error| Failure::Store(from_migration(error)))
    }
}

fn refusal(state: &MigrationState) -> Option<String> {
    if let Some(version) = state.unknown.first() {
        Some(format!("migration {version} of a newer version of Sluice"))
    } else {
        state
            .changed
            .first()
            .map(|version| format!("migration {version} with another text"))
    }
}

fn from_migration(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => {
            Failure::from(cause).into()
        }
        other => internal(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_databases_have_the_same_versions() {
        let versions = |m: &Migrator| m.iter().map(|m| m.version).collect::<Vec<_>>();
        assert_eq!(versions(&POSTGRES), versions(&SQLITE));
        assert!(!versions(&SQLITE).is_empty());
    }

    #[test]
    fn a_newer_and_a_changed_migration_are_told_apart() {
        let first = SQLITE.iter().next().unwrap();
        let applied = [
            AppliedMigration {
                version: first.version,
                checksum: vec![0; 48].into(),
            },
            AppliedMigration {
                version: 9_999,
                checksum: vec![0; 48].into(),
            },
        ];
        let state = MigrationState::compare(&SQLITE, &applied);
        assert_eq!(
            (state.changed, state.unknown),
            (vec![first.version], vec![9_999])
        );
    }
}
