use std::collections::BTreeSet;

use sluice_storage::{Backend, statements};

use crate::fixture::Database;

/// Statements that select from a list of values: PostgreSQL takes the types of the values from the
/// binds, which a bare prepare lacks. They run in the other tests.
const NEEDS_TYPES: [&str; 4] = ["WITH wanted", "WITH own", "WITH moved", "r.* FROM (VALUES"];

async fn every_statement_is_understood_and_has_the_parameters_that_are_bound(database: &Database) {
    let mut names = BTreeSet::new();
    for statement in statements(database.storage.backend()) {
        names.insert(statement.name);
        if !database.is_sqlite() && NEEDS_TYPES.iter().any(|text| statement.sql.contains(text)) {
            continue;
        }
        let found = database.parameters(statement.sql).await;
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", statement.name));
        assert_eq!(found, statement.parameters, "{}", statement.name);
    }
    assert!(names.len() > 60, "{} statements", names.len());
}

on_both! { every_statement_is_understood_and_has_the_parameters_that_are_bound }

/// Each column as `table.column type null`, in words that both databases share.
async fn columns(database: &Database) -> BTreeSet<String> {
    let sql = match database.storage.backend() {
        Backend::Sqlite => {
            "SELECT m.name || '.' || c.name || ' ' || c.type || ' ' || c.\"notnull\" \
             FROM sqlite_master m JOIN pragma_table_info(m.name) c \
             WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name NOT LIKE '%sqlx%'"
        }
        Backend::Postgres => {
            "SELECT c.relname || '.' || a.attname || ' ' || CASE format_type(a.atttypid, a.atttypmod) \
                 WHEN 'uuid' THEN 'BLOB' WHEN 'bytea' THEN 'BLOB' WHEN 'text' THEN 'TEXT' \
                 WHEN 'bigint' THEN 'INTEGER' WHEN 'integer' THEN 'INTEGER' \
                 WHEN 'boolean' THEN 'INTEGER' ELSE format_type(a.atttypid, a.atttypmod) END \
                 || ' ' || CASE WHEN a.attnotnull THEN 1 ELSE 0 END \
             FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
             WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') \
                 AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped \
                 AND c.relname NOT LIKE '%sqlx%'"
        }
    };
    database.texts(sql).await.into_iter().collect()
}

#[tokio::test]
async fn both_databases_have_the_same_tables_and_columns() {
    let Some(postgres) = Database::postgres().await else {
        return;
    };
    let sqlite = Database::sqlite().await;
    let (left, right) = (columns(&sqlite).await, columns(&postgres).await);
    assert!(left.len() > 150, "{} columns", left.len());
    let differences: Vec<_> = left.symmetric_difference(&right).collect();
    assert!(differences.is_empty(), "{differences:#?}");
    sqlite.close().await;
    postgres.close().await;
}

#[tokio::test]
async fn every_constraint_has_a_name_of_ours() {
    let Some(postgres) = Database::postgres().await else {
        return;
    };
    let unnamed = postgres
        .texts(
            "SELECT r.relname || '.' || c.conname FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid \
             WHERE c.connamespace = current_schema()::regnamespace AND NOT r.relispartition \
                 AND r.relname NOT LIKE '%sqlx%' AND c.conname !~ '_(pk|uk|fk|ck)$'",
        )
        .await;
    assert!(unnamed.is_empty(), "{unnamed:?}");
    postgres.close().await;
    let sqlite = Database::sqlite().await;
    let tables = sqlite
        .texts("SELECT sql FROM sqlite_master WHERE type = 'table'")
        .await;
    for table in tables
        .iter()
        .filter(|sql| !sql.contains("_sqlx_migrations"))
    {
        let words: Vec<&str> = table.split_whitespace().collect();
        for (at, word) in words.iter().enumerate() {
            if ["PRIMARY", "UNIQUE", "CHECK", "FOREIGN"].contains(word) {
                assert_eq!(words[at - 2], "CONSTRAINT", "{} {word}", words[at - 1]);
            }
        }
    }
    sqlite.close().await;
}
