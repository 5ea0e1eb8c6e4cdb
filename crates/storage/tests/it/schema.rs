use std::collections::BTreeSet;

use sluice_storage::{Backend, statements};
use uuid::Uuid;

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

on_both! {
    every_statement_is_understood_and_has_the_parameters_that_are_bound,
    records_are_found_without_reading_all_of_them,
}

/// Writes literals in the place of parameters, the last one for all that are left.
fn with_literals(sql: &str, literals: &[String]) -> String {
    let mut literals = literals.iter();
    let mut last = literals.next().unwrap();
    let mut text = String::new();
    let mut rest = sql;
    while let Some(at) = rest.find(['$', '?']) {
        text.push_str(&rest[..at]);
        text.push_str(last);
        last = literals.next().unwrap_or(last);
        rest = rest[at + 1..].trim_start_matches(|c: char| c.is_ascii_digit());
    }
    text + rest
}

async fn records_are_found_without_reading_all_of_them(database: &Database) {
    let id = database.literal(Uuid::from_u128(1));
    let hash = if database.is_sqlite() {
        "x'00'"
    } else {
        "'\\x00'::bytea"
    };
    let number = "1".to_owned();
    let of_posts = [&id, &number, &id, &number, &id, &number, &number].map(Clone::clone);
    let two_ids = [id.clone(), id.clone(), id.clone(), number.clone()];
    let mut queries: Vec<(String, String)> = Vec::new();
    for statement in statements(database.storage.backend()) {
        let literals: &[String] = match statement.name {
            "LIST_RECORDS" => &two_ids,
            "LIST_POSTED" => std::slice::from_ref(&number),
            "ATTEMPTS_OF" | "DETAILS_OF" | "FIND_ORIGINS" | "V4_GAPS" => std::slice::from_ref(&id),
            "LIST_POSTS" => &of_posts,
            "FIND_KINDS" => &[hash.to_owned()],
            _ => continue,
        };
        let name = format!("{} of {}", statement.name, statement.parameters);
        queries.push((name, with_literals(statement.sql, literals)));
    }
    // Of four there are two sizes.
    assert_eq!(queries.len(), 12);
    for view in ["usage_records", "attempts", "record_details"] {
        let by_hand = format!("SELECT * FROM {view} WHERE request_id = {id}");
        queries.push((view.to_owned(), by_hand));
    }
    for (name, sql) in queries {
        let plan = database.plan(&sql).await;
        assert!(!plan.is_empty(), "{name}");
        let scans = |line: &&String| {
            // Lists in the query itself, and a view that was asked for one request.
            let is_list = ["SCAN w", "SCAN p", "SCAN n", "SCAN attempts"].contains(&line.as_str())
                || line.starts_with("SCAN (subquery")
                || line.contains("CONSTANT ROW");
            line.contains("Seq Scan") || (line.starts_with("SCAN") && !is_list)
        };
        let scanned: Vec<&String> = plan.iter().filter(scans).collect();
        assert!(scanned.is_empty(), "{name}: {plan:#?}");
    }
}

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
