//! The rows of the ledger as text, and what a finding may call each of them.

use std::collections::{BTreeMap, BTreeSet};

use sluice_domain::id::{InstanceId, RequestId, TenantId};
use uuid::Uuid;

use crate::fixture::Database;

/// The tables that are tampered with, and what tells their rows apart.
pub(super) const TABLES: [(&str, &[&str]); 14] = [
    ("usage_rows", &["request_id"]),
    ("record_kinds", &["kind_id"]),
    ("failed_attempts", &["request_id", "n"]),
    (
        "rollup_daily",
        &[
            "tenant_id",
            "local_day",
            "key_id",
            "user_id",
            "model",
            "upstream_id",
            "period",
            "statement_period",
        ],
    ),
    (
        "rollup_monthly",
        &[
            "tenant_id",
            "period",
            "key_id",
            "user_id",
            "model",
            "upstream_id",
            "statement_period",
        ],
    ),
    ("counters", &["counter_id"]),
    ("leases", &["instance_id", "counter_id"]),
    ("instances", &["instance_id"]),
    ("ledger_entries", &["entry_id"]),
    ("quarantine", &["instance_id", "post_no"]),
    ("periods", &["tenant_id", "period"]),
    ("statements", &["tenant_id", "statement_period", "version"]),
    ("quotas", &["scope", "scope_id"]),
    ("ledger_floor", &["partition_name", "instance_id"]),
];

/// A row, by column; ids as 32 digits, missing values as `NULL`.
pub(super) type Row = BTreeMap<String, String>;

/// How the columns of a table are read.
pub(super) struct Table {
    pub(super) name: &'static str,
    key: &'static [&'static str],
    /// Names, and whether they are ids.
    pub(super) columns: Vec<(String, bool)>,
}

impl Table {
    pub(super) async fn all(database: &Database) -> Vec<Self> {
        let mut tables = Vec::new();
        for (name, key) in TABLES {
            let sql = if database.is_sqlite() {
                format!(
                    "SELECT name || ':' || CASE type WHEN 'BLOB' THEN 'id' ELSE '' END FROM pragma_table_info('{name}')"
                )
            } else {
                format!(
                    "SELECT column_name || ':' || CASE data_type WHEN 'uuid' THEN 'id' ELSE '' END \
                     FROM information_schema.columns \
                     WHERE table_schema = current_schema() AND table_name = '{name}' ORDER BY ordinal_position"
                )
            };
            let columns = database.texts(&sql).await.into_iter().map(|text| {
                let (column, kind) = text.split_once(':').unwrap();
                (column.to_owned(), kind == "id" && column != "hash")
            });
            let columns: Vec<_> = columns.filter(|(column, _)| column != "hash").collect();
            assert!(!columns.is_empty(), "{name}");
            tables.push(Self { name, key, columns });
        }
        tables
    }

    pub(super) async fn rows(&self, database: &Database) -> Vec<Row> {
        let columns = self.columns.iter().map(|(column, is_id)| {
            let text = match (is_id, database.is_sqlite()) {
                (true, true) => format!("lower(hex({column}))"),
                (true, false) => format!("replace(CAST({column} AS TEXT), '-', '')"),
                (false, _) => format!("CAST({column} AS TEXT)"),
            };
            format!("CASE WHEN {column} IS NULL THEN 'NULL' ELSE {text} END")
        });
        let columns: Vec<String> = columns.collect();
        let sql = format!(
            "SELECT {} FROM {}",
            columns.join(" || '\u{1f}' || "),
            self.name
        );
        let mut rows: Vec<Row> = database
            .texts(&sql)
            .await
            .iter()
            .map(|text| {
                let values = text.split('\u{1f}').map(ToOwned::to_owned);
                self.columns
                    .iter()
                    .map(|(column, _)| column.clone())
                    .zip(values)
                    .collect()
            })
            .collect();
        rows.sort_unstable();
        rows
    }

    /// Writes a value of a column as a literal.
    pub(super) fn literal(&self, database: &Database, column: &str, value: &str) -> String {
        let (_, is_id) = self
            .columns
            .iter()
            .find(|(name, _)| name == column)
            .unwrap();
        if value == "NULL" || value.parse::<i64>().is_ok() && !is_id {
            value.to_owned()
        } else if *is_id {
            database.literal(Uuid::parse_str(value).unwrap())
        } else {
            format!("'{value}'")
        }
    }

    /// Writes which row is meant.
    pub(super) fn filter(&self, database: &Database, row: &Row) -> String {
        let parts = self.key.iter().map(|column| {
            format!(
                "{column} = {}",
                self.literal(database, column, &row[*column])
            )
        });
        parts.collect::<Vec<_>>().join(" AND ")
    }
}

/// All rows of all tables.
pub(super) type Dump = BTreeMap<&'static str, Vec<Row>>;

pub(super) async fn dump(database: &Database, tables: &[Table]) -> Dump {
    let mut dump = Dump::new();
    for table in tables {
        dump.insert(table.name, table.rows(database).await);
    }
    dump
}

/// Returns the rows that are in one of both alone, by table.
pub(super) fn changed<'d>(before: &'d Dump, after: &'d Dump) -> Vec<(&'static str, &'d Row)> {
    let mut changed = Vec::new();
    for (table, was) in before {
        let is = &after[table];
        changed.extend(
            was.iter()
                .filter(|row| !is.contains(row))
                .map(|row| (*table, row)),
        );
        changed.extend(
            is.iter()
                .filter(|row| !was.contains(row))
                .map(|row| (*table, row)),
        );
    }
    changed
}

fn uuid(row: &Row, column: &str) -> Uuid {
    Uuid::parse_str(&row[column]).unwrap_or_default()
}

fn tenant(row: &Row) -> TenantId {
    TenantId::from_uuid(uuid(row, "tenant_id"))
}

fn instance(row: &Row) -> InstanceId {
    InstanceId::from_uuid(uuid(row, "instance_id"))
}

fn request(row: &Row) -> RequestId {
    RequestId::from_uuid(uuid(row, "request_id"))
}

fn month(number: &str) -> String {
    format!("{}-{}", &number[..4], &number[4..])
}

fn counter(row: &Row) -> String {
    format!(
        "{} {} of {}",
        row["scope"],
        row["scope_id"],
        month(&row["period"])
    )
}

/// The counters that a row with a tenant, user and key counts in.
fn counters_of(row: &Row) -> impl Iterator<Item = String> {
    ["tenant", "user", "key"]
        .map(|scope| {
            format!(
                "{scope} {} of {}",
                row[&format!("{scope}_id")],
                month(&row["period"])
            )
        })
        .into_iter()
}

/// Records whole: a row with its kind and instance, of all that there were and are.
fn wholes(row: &Row, dumps: [&Dump; 2]) -> Vec<Row> {
    let origin: i64 = row["origin"].parse().unwrap();
    let no = (origin >> 40).to_string();
    let all = |table: &str| {
        let rows = dumps.iter().flat_map(|dump| dump[table].iter().cloned());
        rows.collect::<Vec<_>>()
    };
    let kinds = all("record_kinds").into_iter();
    let kinds = kinds.filter(|kind| kind["kind_id"] == row["kind_id"]);
    let instances = all("instances");
    let instance = instances
        .iter()
        .find(|instance| instance["instance_no"] == no);
    let instance = instance.map_or_else(|| "-".to_owned(), |row| row["instance_id"].clone());
    kinds
        .map(|kind| {
            let mut whole: Row = row.clone();
            whole.extend(kind);
            whole.insert("instance_no".to_owned(), no.clone());
            whole.insert("instance_id".to_owned(), instance.clone());
            whole
        })
        .collect()
}

/// Returns a record of a sound ledger whole.
pub(super) fn whole(row: &Row, dump: &Dump) -> Row {
    wholes(row, [dump, dump]).swap_remove(0)
}

/// What findings may call a row, or the sums that it is a part of; each a part of a key.
pub(super) fn names(table: &str, row: &Row, dumps: [&Dump; 2]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    match table {
        "usage_rows" => {
            names.insert(request(row).to_string());
            for whole in wholes(row, dumps) {
                names.extend(self::names("usage_records", &whole, dumps));
            }
            return names;
        }
        "record_kinds" => {
            names.insert(row["kind_id"].clone());
            let rows = dumps.iter().flat_map(|dump| &dump["usage_rows"]);
            for record in rows.filter(|record| record["kind_id"] == row["kind_id"]) {
                names.extend(self::names("usage_rows", record, dumps));
            }
            return names;
        }
        _ => {}
    }
    let model = || match table {
        "usage_records" => &row["requested_model"],
        _ => &row["model"],
    };
    let rollup = |at: &str| {
        format!(
            "{} key {} model {} at {}",
            tenant(row),
            row["key_id"],
            model(),
            row[at]
        )
    };
    let month_of_tenant = |at: &str| {
        let (tenant, at) = (tenant(row), &row[at]);
        [format!("{tenant} in {at}"), format!("{tenant} of {at}")]
    };
    let counter_of = |id: &str| {
        let mut counters = dumps.iter().flat_map(|dump| &dump["counters"]);
        let found = counters.find(|row| row["counter_id"] == id);
        found.map(counter)
    };
    match table {
        "usage_records" => {
            names.extend([
                request(row).to_string(),
                instance(row).to_string(),
                format!("number {}", row["instance_no"]),
                rollup("local_day"),
                rollup("period"),
            ]);
            names.extend(month_of_tenant("period"));
            names.extend(month_of_tenant("statement_period"));
            names.extend(counters_of(row));
        }
        "failed_attempts" => {
            names.insert(request(row).to_string());
        }
        "rollup_daily" => {
            names.extend([rollup("local_day"), rollup("period"), "up to ".to_owned()]);
        }
        "rollup_monthly" => {
            names.insert(rollup("period"));
            names.extend(month_of_tenant("statement_period"));
            names.extend(counters_of(row));
        }
        "counters" => {
            names.extend([counter(row), format!("of counter {}", row["counter_id"])]);
            names.extend(month_of_tenant("period"));
        }
        "leases" => {
            names.insert(format!(
                "{} of counter {}",
                instance(row),
                row["counter_id"]
            ));
            names.insert(instance(row).to_string());
            names.extend(counter_of(&row["counter_id"]));
        }
        "instances" => {
            names.insert(instance(row).to_string());
            names.insert(format!("number {}", row["instance_no"]));
        }
        "ledger_entries" => {
            names.insert(format!(
                "{} of counter {}",
                instance(row),
                row["counter_id"]
            ));
            names.insert(format!("{} of counter", row["entry_id"]));
            names.extend((row["request_id"] != "NULL").then(|| request(row).to_string()));
            names.extend(counter_of(&row["counter_id"]));
        }
        "quarantine" => names.extend([instance(row).to_string(), request(row).to_string()]),
        "periods" => {
            names.extend(month_of_tenant("period"));
            // The gap before it is named by the month before it.
            names.insert(format!("{} after ", tenant(row)));
            let counters = dumps.iter().flat_map(|dump| &dump["counters"]);
            let of_month = counters.filter(|other| {
                other["tenant_id"] == row["tenant_id"] && other["period"] == row["period"]
            });
            names.extend(of_month.map(counter));
        }
        "statements" => names.extend(month_of_tenant("statement_period")),
        "quotas" => {
            names.insert(format!("{} {} of ", row["scope"], row["scope_id"]));
        }
        "ledger_floor" => names.extend([instance(row).to_string(), "up to ".to_owned()]),
        other => panic!("{other}"),
    }
    names
}
