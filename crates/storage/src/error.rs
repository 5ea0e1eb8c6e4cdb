//! Errors: from the drivers to the kinds that callers know.

use std::error::Error;

use sluice_domain::ports::StoreError;
use sqlx::error::{DatabaseError, ErrorKind};

/// What a function on a connection may fail with.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Already in the caller's words.
    Store(StoreError),
    /// From the driver.
    Sql(sqlx::Error),
    /// Rows that should have been new were not: the transaction must be done again with care.
    NotAllNew,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Store(error) => error,
            Failure::Sql(error) => from_sql(error),
            Failure::NotAllNew => internal("rows appeared while a batch was posted"),
        }
    }
}

impl Failure {
    /// Names what conflicts when a unique key was violated; leaves anything else as it is.
    pub(crate) fn or_conflict(error: sqlx::Error, what: impl FnOnce() -> String) -> Self {
        match &error {
            sqlx::Error::Database(cause) if cause.kind() == ErrorKind::UniqueViolation => {
                Self::Store(StoreError::Conflict { what: what() })
            }
            _ => Self::Sql(error),
        }
    }
}

/// Builds the error for a defect of ours.
pub(crate) fn internal(cause: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Internal {
        source: cause.into(),
    }
}

/// Builds the error for a stored value that breaks a rule.
pub(crate) fn corrupt(
    table: &'static str,
    column: &'static str,
    id: impl std::fmt::Display,
) -> StoreError {
    StoreError::Corrupt {
        table,
        column,
        id: id.to_string(),
    }
}

fn from_sql(error: sqlx::Error) -> StoreError {
    let is_unavailable = match &error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        // A connection that is cut in the middle of a message reads as zeros.
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(cause) if cause.kind() == ErrorKind::UniqueViolation => {
            return StoreError::Conflict {
                what: "a row with the same key".to_owned(),
            };
        }
        sqlx::Error::Database(cause) => is_transient(cause.as_ref()),
        _ => false,
    };
    if is_unavailable {
        StoreError::Unavailable {
            source: Box::new(error),
        }
    } else {
        internal(error)
    }
}

/// Returns whether the same statement may succeed later.
///
/// # Source
/// PostgreSQL 15, appendix A (SQLSTATE, five characters); SQLite, "Result and Error Codes"
/// (decimal, the primary code in the low byte).
fn is_transient(error: &dyn DatabaseError) -> bool {
    let Some(code) = error.code() else {
        return false;
    };
    if error
        .try_downcast_ref::<sqlx::sqlite::SqliteError>()
        .is_some()
    {
        const PRIMARY: i32 = 0xff;
        // BUSY, LOCKED, NOMEM, READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL.
        return code
            .parse::<i32>()
            .is_ok_and(|code| matches!(code & PRIMARY, 5 | 6 | 7 | 8 | 9 | 10 | 13 | 14 | 15));
    }
    // Connection, rollback (deadlock), resources, operator intervention; a lock that was not
    // available; a server that has become a standby.
    ["08", "40", "53", "57"]
        .iter()
        .any(|class| code.starts_with(class))
        || code == "55P03"
        || code == "25006"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_connection_is_unavailable_and_a_defect_is_not() {
        let lost = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(matches!(
            StoreError::from(Failure::from(lost)),
            StoreError::Unavailable { .. }
        ));
        let defect = sqlx::Error::ColumnNotFound("x".to_owned());
        assert!(matches!(
            StoreError::from(Failure::from(defect)),
            StoreError::Internal { .. }
        ));
    }
}
