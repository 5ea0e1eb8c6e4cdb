//! A ledger is spoiled in one place at a time: `verify` must find each fault, name the row or the sums
//! that it is a part of, and name nothing else.
//!
//! `SLUICE_PROVE_FAULTS=1000` makes it so many faults.

mod faults;
mod healthy;
mod rows;

use std::collections::BTreeSet;

use sluice_storage::verify::Finding;

use self::faults::{Class, classes, fault};
use self::rows::{Dump, Table, changed, dump, names};
use crate::dice::Dice;
use crate::fixture::{Database, NOW, environment};

/// How often each class is tried at least.
const LEAST: usize = 2;
/// How many places are tried when the database itself refuses a change.
const TRIES: usize = 40;
/// How often it is looked a second time, which must say the same and change nothing.
const AGAIN_EVERY: usize = 6;
/// What no place allows, because the database refuses it.
const REFUSED_BY_SQLITE: [&str; 1] = ["usage_rows doubled (request_id: unknown) []"];

fn copy_of(table: &str) -> String {
    format!("kept_{table}")
}

/// Takes away what would refuse a change by hand, and keeps a copy of everything.
async fn prepare(database: &Database, tables: &[Table]) {
    if database.is_sqlite() {
        let triggers = database
            .texts("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            .await;
        for trigger in triggers {
            database
                .execute(&format!("DROP TRIGGER {trigger}"))
                .await
                .unwrap();
        }
    } else {
        let checks = "SELECT 'ALTER TABLE ' || conrelid::regclass || ' DROP CONSTRAINT ' || conname \
             FROM pg_constraint WHERE contype = 'c' AND coninhcount = 0 \
             AND connamespace = current_schema()::regnamespace";
        for drop in database.texts(checks).await {
            database.execute(&drop).await.unwrap();
        }
        for table in tables {
            let disable = format!("ALTER TABLE {} DISABLE TRIGGER USER", table.name);
            database.execute(&disable).await.unwrap();
        }
    }
    for table in tables {
        let (name, copy) = (table.name, copy_of(table.name));
        let keep = format!("CREATE TABLE {copy} AS SELECT * FROM {name}");
        database.execute(&keep).await.unwrap();
    }
}

async fn restore(database: &Database, table: &str) {
    for sql in [
        format!("DELETE FROM {table}"),
        format!("INSERT INTO {table} SELECT * FROM {}", copy_of(table)),
    ] {
        database.execute(&sql).await.unwrap();
    }
}

/// Runs SQL as somebody who lets nothing stand in his way; `None` when the database refuses.
async fn tamper(database: &Database, sql: &str) -> Option<u64> {
    let sql = if database.is_sqlite() {
        format!(
            "PRAGMA ignore_check_constraints = ON; {sql}; PRAGMA ignore_check_constraints = OFF"
        )
    } else {
        sql.to_owned()
    };
    let done = database.execute(&sql).await;
    if done.is_err() && database.is_sqlite() {
        let off = "PRAGMA ignore_check_constraints = OFF";
        database.execute(off).await.unwrap();
    }
    done.ok()
}

async fn verify(database: &Database) -> Vec<Finding> {
    database.storage.verify_ledger(NOW).await.unwrap()
}

/// A sound ledger that can be spoiled.
struct Bench<'d> {
    database: &'d Database,
    tables: Vec<Table>,
    sound: Dump,
    /// What is said of it without any fault: warnings.
    usual: Vec<Finding>,
    /// The rules that found something.
    rules: BTreeSet<&'static str>,
    /// What went wrong with which fault.
    missed: Vec<String>,
    looks: usize,
}

impl<'d> Bench<'d> {
    async fn new(database: &'d Database) -> Self {
        let usual = verify(database).await;
        let faults: Vec<_> = usual
            .iter()
            .filter(|finding| !finding.is_warning())
            .collect();
        assert!(faults.is_empty(), "{faults:#?}");
        let tables = Table::all(database).await;
        prepare(database, &tables).await;
        let sound = dump(database, &tables).await;
        Self {
            database,
            tables,
            sound,
            usual,
            rules: BTreeSet::new(),
            missed: Vec::new(),
            looks: 0,
        }
    }

    /// Makes a fault of a class, looks for it, and undoes it. `None` when the database refuses it
    /// wherever it is tried.
    async fn play(&mut self, class: &Class, seed: u64) -> Option<()> {
        let mut dice = Dice::new(seed);
        for _ in 0..TRIES {
            let fault = fault(&mut dice, self.database, &self.sound, &self.tables, class);
            let fault = fault.unwrap_or_else(|| panic!("{class}: no row"));
            let mut is_done = true;
            for sql in &fault {
                match tamper(self.database, sql).await {
                    Some(rows) if rows > 0 || sql.contains("UPDATE counters") => {}
                    _ => is_done = false,
                }
            }
            let mut spoiled = self.sound.clone();
            for table in &self.tables {
                if table.name == class.table || class.covers.contains(&table.name) {
                    spoiled.insert(table.name, table.rows(self.database).await);
                }
            }
            if is_done {
                let looked = self.look(&spoiled).await;
                self.missed.extend(
                    looked
                        .err()
                        .map(|what| format!("{class}, seed {seed}: {what}\n{fault:#?}")),
                );
            }
            let touched: BTreeSet<&str> = changed(&self.sound, &spoiled)
                .into_iter()
                .map(|(table, _)| table)
                .collect();
            for table in touched {
                restore(self.database, table).await;
            }
            if is_done {
                return Some(());
            }
        }
        None
    }

    async fn look(&mut self, spoiled: &Dump) -> Result<(), String> {
        let changed = changed(&self.sound, spoiled);
        if changed.is_empty() {
            return Err("nothing was changed".to_owned());
        }
        let names: BTreeSet<String> = changed
            .iter()
            .flat_map(|(table, row)| names(table, row, [&self.sound, spoiled]))
            .collect();
        let findings = verify(self.database).await;
        let new: Vec<&Finding> = findings
            .iter()
            .filter(|found| !self.usual.contains(found))
            .collect();
        if new.is_empty() {
            return Err("not found".to_owned());
        }
        for finding in &new {
            let is_named = names.iter().any(|name| finding.key.contains(name.as_str()));
            if !is_named {
                return Err(format!("something healthy is named: {finding}\n{names:#?}"));
            }
        }
        self.rules.extend(new.iter().map(|finding| finding.id));
        self.looks += 1;
        if self.looks.is_multiple_of(AGAIN_EVERY) {
            if verify(self.database).await != findings {
                return Err("a second look says something else".to_owned());
            }
            if dump(self.database, &self.tables).await != *spoiled {
                return Err("looking, or the fault, changed something else".to_owned());
            }
        }
        Ok(())
    }
}

async fn every_fault_is_found_and_named(database: &Database) {
    healthy::build(database).await;
    let mut bench = Bench::new(database).await;
    let classes = classes();
    let wanted = environment("SLUICE_PROVE_FAULTS").map(|count| count.parse::<usize>().unwrap());
    let each = wanted.unwrap_or(0).div_ceil(classes.len()).max(LEAST);
    let mut played = 0;
    for (number, class) in classes.iter().enumerate() {
        for round in 0..each {
            let seed = u64::try_from(number * 1_000 + round).unwrap();
            if bench.play(class, seed).await.is_some() {
                played += 1;
            } else {
                let is_known = REFUSED_BY_SQLITE.contains(&class.to_string().as_str());
                assert!(
                    database.is_sqlite() && is_known,
                    "{class} is never possible"
                );
            }
        }
    }
    let missed = &bench.missed;
    assert!(
        missed.is_empty(),
        "{} of {played} faults:\n{}",
        missed.len(),
        missed.join("\n")
    );
    println!("{played} faults of {} classes were found", classes.len());
    assert_eq!(verify(database).await, bench.usual, "all was undone");
    let rules: Vec<&str> = bench.rules.into_iter().collect();
    assert_eq!(
        rules,
        [
            "V1", "V10", "V11", "V12", "V13", "V14", "V15", "V2", "V3", "V4", "V5", "V6", "V7",
            "V8", "V9", "W1"
        ]
    );
}

on_both! { every_fault_is_found_and_named }
