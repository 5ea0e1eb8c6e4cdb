use sluice_storage::{MigrationReport, MigrationState, Storage, StorageOptions};

use crate::fixture::Database;

async fn a_new_database_is_pending_and_then_current(database: &Database) {
    let storage = &database.storage;
    let pending = storage.migration_state().await.unwrap();
    assert!(!pending.is_current());
    assert_eq!(
        (pending.applied.len(), pending.pending.as_slice()),
        (0, [1].as_slice())
    );
    assert_eq!(
        storage.migrate().await.unwrap(),
        MigrationReport { applied: vec![1] }
    );
    assert_eq!(storage.migrate().await.unwrap(), MigrationReport::default());
    let current = storage.migration_state().await.unwrap();
    assert_eq!(
        current,
        MigrationState {
            applied: vec![1],
            ..MigrationState::default()
        }
    );
}

async fn four_at_once_migrate_once(database: &Database) {
    let options = StorageOptions {
        url: database.url.clone(),
        max_connections: 2,
    };
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(Storage::open(&options).await.unwrap());
    }
    let (a, b, c, d) = tokio::join!(
        others[0].migrate(),
        others[1].migrate(),
        others[2].migrate(),
        others[3].migrate()
    );
    for result in [a, b, c, d] {
        result.unwrap();
    }
    assert!(
        database
            .storage
            .migration_state()
            .await
            .unwrap()
            .is_current()
    );
    for other in others {
        other.close().await;
    }
}

async fn a_database_of_a_newer_binary_is_left_alone(database: &Database) {
    database.storage.migrate().await.unwrap();
    let bytes = if database.is_sqlite() {
        "x'00'"
    } else {
        "'\\x00'"
    };
    database
        .execute(&format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
             VALUES (9999, 'later', TRUE, {bytes}, 1)"
        ))
        .await
        .unwrap();
    let state = database.storage.migration_state().await.unwrap();
    assert_eq!((state.is_current(), state.unknown), (false, vec![9999]));
    let error = database.storage.migrate().await.unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("migration 9999 of a newer version"),
        "{error}"
    );
}

macro_rules! on_empty {
    ($($name:ident),* $(,)?) => {
        mod sqlite {$(
            #[tokio::test]
            async fn $name() {
                let database = crate::fixture::Database::empty_sqlite().await;
                super::$name(&database).await;
                database.close().await;
            }
        )*}
        mod postgres {$(
            #[tokio::test]
            async fn $name() {
                let Some(database) = crate::fixture::Database::empty_postgres().await else { return };
                super::$name(&database).await;
                database.close().await;
            }
        )*}
    };
}

on_empty! {
    a_new_database_is_pending_and_then_current,
    four_at_once_migrate_once,
    a_database_of_a_newer_binary_is_left_alone,
}

#[tokio::test]
async fn a_url_that_cannot_be_used_is_refused_without_showing_it() {
    for url in [
        "mysql://root:hunter2@db/sluice",
        "/var/lib/sluice.db",
        "sqlite:",
        "sqlite::memory:",
        "postgres:db",
        "postgres://user:hunter2@host:notaport/db",
    ] {
        let options = StorageOptions {
            url: url.to_owned(),
            max_connections: 1,
        };
        let error = Storage::open(&options).await.unwrap_err();
        let shown = format!("{error:?} {options:?}");
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(
            shown.contains("InvalidUrl")
                || shown.contains("Scheme")
                || shown.contains("Path")
                || shown.contains("Postgres"),
            "{shown}"
        );
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_private() {
    use std::os::unix::fs::PermissionsExt;

    let database = Database::sqlite().await;
    let path = database.url.strip_prefix("sqlite://").unwrap();
    for suffix in ["", "-wal", "-shm"] {
        let mode = std::fs::metadata(format!("{path}{suffix}"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
    database.close().await;
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_unavailable() {
    let url = "sqlite:/nonexistent/folder/sluice.db".to_owned();
    let error = Storage::open(&StorageOptions {
        url,
        max_connections: 1,
    })
    .await
    .unwrap_err();
    assert!(
        matches!(error, sluice_domain::ports::StoreError::Unavailable { .. }),
        "{error:?}"
    );
}
