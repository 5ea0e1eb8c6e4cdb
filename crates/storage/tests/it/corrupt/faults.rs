//! What a tamperer, a defect or a broken disk may do to a ledger, one thing at a time.

use std::fmt;

use super::rows::{Dump, Row, Table, whole};
use crate::dice::Dice;
use crate::fixture::{Database, id};

/// What a column becomes.
#[derive(Clone, Copy)]
pub(super) enum To {
    /// More or less of it, never below zero.
    Other,
    /// More of it.
    More,
    /// What it is in another row of any table that has such a column.
    Swapped,
    /// An id that is nobody's.
    Unknown,
    /// This.
    Is(&'static str),
}

/// What is done to a row.
#[derive(Clone, Copy)]
pub(super) enum Act {
    Delete,
    Change(&'static [(&'static str, To)]),
    /// Makes a copy that differs in these.
    Double(&'static [(&'static str, To)]),
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |to: &To| match to {
            To::Other => "other",
            To::More => "more",
            To::Swapped => "swapped",
            To::Unknown => "unknown",
            To::Is(sql) => sql,
        };
        let words = |changes: &[(&str, To)]| {
            let words = changes
                .iter()
                .map(|(column, to)| format!("{column}: {}", word(to)));
            words.collect::<Vec<_>>().join(", ")
        };
        let act = match self.act {
            Act::Delete => "deleted".to_owned(),
            Act::Change(changes) => format!("changed ({})", words(changes)),
            Act::Double(changes) => format!("doubled ({})", words(changes)),
        };
        write!(f, "{} {act} {:?}", self.table, self.covers)
    }
}

/// One class of faults.
#[derive(Clone, Copy)]
pub(super) struct Class {
    pub(super) table: &'static str,
    pub(super) act: Act,
    /// Which rows it is done to.
    pub(super) only: fn(&Row) -> bool,
    /// Whether the sums that the row is a part of are made to agree.
    pub(super) covers: &'static [&'static str],
}

const fn class(table: &'static str, act: Act) -> Class {
    Class {
        table,
        act,
        only: |_row| true,
        covers: &[],
    }
}

const fn only(class: Class, only: fn(&Row) -> bool) -> Class {
    Class { only, ..class }
}

const fn covering(class: Class, covers: &'static [&'static str]) -> Class {
    Class { covers, ..class }
}

/// The columns that records and rollups share, as they are called in each.
const SUMMED: [(&str, &str); 9] = [
    ("input_tokens", "input_tokens"),
    ("cached_input_tokens", "cached_input_tokens"),
    ("cache_write_input_tokens", "cache_write_input_tokens"),
    ("output_tokens", "output_tokens"),
    ("reasoning_output_tokens", "reasoning_output_tokens"),
    ("quota_tokens", "quota_tokens"),
    ("charge_nano", "charge_nano"),
    ("excess_tokens", "excess_tokens"),
    ("excess_nano", "excess_nano"),
];

/// Another request with a number of its own.
const AGAIN: &[(&str, To)] = &[("request_id", To::Unknown), ("origin", To::More)];

macro_rules! changes {
    ($table:literal: $($column:literal $to:expr),* $(,)?) => {
        vec![$(class($table, Act::Change(&[($column, $to)]))),*]
    };
}

fn is_finished(row: &Row) -> bool {
    row["ending"] == "finished" && row["status"] == "200"
}

fn moves(row: &Row) -> bool {
    ["used", "held"]
        .iter()
        .any(|what| row[&format!("{what}_tokens")] != "0")
}

fn is_capped(row: &Row) -> bool {
    row["cap_tokens"] != "NULL"
}

fn is_over(row: &Row) -> bool {
    row["over_tokens"] != "0"
}

fn holds(row: &Row) -> bool {
    row["held_tokens"] != "0"
}

fn of_settled(row: &Row) -> bool {
    row["request_id"] == "NULL"
}

fn of_request(row: &Row) -> bool {
    !of_settled(row)
}

pub(super) fn classes() -> Vec<Class> {
    let mut classes = changes!("usage_rows":
        "origin" To::Other, "origin" To::More, "kind_id" To::Swapped, "kind_id" To::Is("-1"),
        "input_tokens" To::Other, "cached_input_tokens" To::Other, "cache_write_input_tokens" To::Other,
        "output_tokens" To::Other, "reasoning_output_tokens" To::Other, "quota_tokens" To::Other,
        "charge_nano" To::Other, "excess_tokens" To::Other, "excess_nano" To::Other,
        "cost_nano" To::Is("5"), "bound_tokens" To::Is("quota_tokens - 1"), "bound_nano" To::Is("charge_nano - 1"),
        "started_at_ms" To::Is("started_at_ms - 259200000"), "started_at_ms" To::Is("started_at_ms + 259200000"),
        "origin" To::Is("origin + 1099511627776"), "origin" To::Is("origin + 1000 * 1099511627776"),
    );
    classes.extend(changes!("record_kinds":
        "period" To::Swapped, "statement_period" To::Swapped, "local_day" To::Other, "attempt_count" To::More,
        "tenant_id" To::Swapped, "user_id" To::Swapped, "key_id" To::Swapped, "tenant_id" To::Unknown,
        "upstream_id" To::Swapped, "upstream_key_id" To::Unknown, "requested_model" To::Is("'other'"),
        "endpoint" To::Is("'other'"), "streams" To::Is("NOT streams"), "upstream_model" To::Is("'other'"),
        "attempt_status" To::Is("418"), "stage" To::Is("'other'"), "error_code" To::Is("'other'"),
        "basis" To::Is("'other'"),
    ));
    classes.push(class("record_kinds", Act::Delete));
    classes.push(only(
        class("record_kinds", Act::Change(&[("status", To::Is("500"))])),
        is_finished,
    ));
    classes.push(only(
        class(
            "record_kinds",
            Act::Change(&[("ending", To::Is("'client_left'"))]),
        ),
        is_finished,
    ));
    classes.push(class("usage_rows", Act::Delete));
    classes.push(class("usage_rows", Act::Double(AGAIN)));
    classes.push(class(
        "usage_rows",
        Act::Double(&[("request_id", To::Unknown)]),
    ));
    classes.push(class(
        "usage_rows",
        Act::Double(&[
            ("request_id", To::Unknown),
            ("origin", To::Is("origin + 1099511627776")),
        ]),
    ));
    // With what is summed up of them.
    for covers in [
        &["counters"][..],
        &["rollup_daily"],
        &["rollup_daily", "rollup_monthly"],
        &["counters", "rollup_daily", "rollup_monthly"],
    ] {
        classes.push(covering(class("usage_rows", Act::Delete), covers));
        classes.push(covering(class("usage_rows", Act::Double(AGAIN)), covers));
    }
    for table in ["rollup_daily", "rollup_monthly"] {
        for column in [
            "requests",
            "failures",
            "input_tokens",
            "cached_input_tokens",
            "cache_write_input_tokens",
            "output_tokens",
            "reasoning_output_tokens",
            "quota_tokens",
            "charge_nano",
            "excess_tokens",
            "excess_nano",
            "cost_nano",
        ] {
            classes.push(class(table, Act::Change(leak(&[(column, To::Other)]))));
        }
        for column in [
            "tenant_id",
            "user_id",
            "key_id",
            "upstream_id",
            "period",
            "statement_period",
        ] {
            classes.push(class(table, Act::Change(leak(&[(column, To::Swapped)]))));
        }
        classes.push(class(table, Act::Delete));
        classes.push(class(table, Act::Double(&[("model", To::Is("'other'"))])));
        classes.push(class(table, Act::Double(&[("key_id", To::Unknown)])));
    }
    for column in ["used_tokens", "used_nano", "held_tokens", "held_nano"] {
        classes.push(class("counters", Act::Change(leak(&[(column, To::Other)]))));
    }
    for unit in ["tokens", "nano"] {
        let (over, cap) = (
            leak_text(format!("over_{unit}")),
            leak_text(format!("cap_{unit}")),
        );
        classes.push(class("counters", Act::Change(leak(&[(over, To::More)]))));
        let less = leak_text(format!("over_{unit} - 1"));
        classes.push(only(
            class("counters", Act::Change(leak(&[(over, To::Is(less))]))),
            is_over,
        ));
        classes.push(only(
            class("counters", Act::Change(leak(&[(cap, To::Other)]))),
            is_current,
        ));
        classes.push(only(
            class("counters", Act::Change(leak(&[(cap, To::Is("NULL"))]))),
            is_current,
        ));
        let peak = leak_text(format!("peak_cap_{unit}"));
        let low = leak_text(format!("used_{unit} + held_{unit} - 1"));
        classes.push(only(
            class("counters", Act::Change(leak(&[(peak, To::Is(low))]))),
            is_current_moved,
        ));
        classes.push(only(
            class("quotas", Act::Change(leak(&[(cap, To::Other)]))),
            is_capped,
        ));
        let held = leak_text(format!("held_{unit}"));
        classes.push(class("leases", Act::Change(leak(&[(held, To::Other)]))));
        let flying = leak_text(format!("in_flight_{unit}"));
        let more = leak_text(format!("held_{unit} + 1"));
        classes.push(class(
            "leases",
            Act::Change(leak(&[(flying, To::Is(more))])),
        ));
        let amount = leak_text(format!("amount_{unit}"));
        classes.push(class(
            "ledger_entries",
            Act::Change(leak(&[(
                amount,
                To::Is(leak_text(format!("{amount} + 1"))),
            )])),
        ));
        classes.push(class(
            "ledger_entries",
            Act::Change(leak(&[(
                amount,
                To::Is(leak_text(format!("{amount} - 1"))),
            )])),
        ));
    }
    classes.extend([
        only(class("counters", Act::Delete), moves),
        only(
            class("counters", Act::Change(&[("period", To::Is("202701"))])),
            moves,
        ),
        only(
            class("counters", Act::Change(&[("scope_id", To::Unknown)])),
            moves,
        ),
        only(
            class(
                "counters",
                Act::Double(&[("counter_id", To::Unknown), ("period", To::Is("202701"))]),
            ),
            moves,
        ),
        only(class("quotas", Act::Delete), is_capped),
        only(class("leases", Act::Delete), holds),
        only(
            class("leases", Act::Change(&[("counter_id", To::Swapped)])),
            holds,
        ),
        only(
            class("leases", Act::Change(&[("counter_id", To::Unknown)])),
            holds,
        ),
        only(
            class("leases", Act::Change(&[("instance_id", To::Unknown)])),
            holds,
        ),
        only(
            class("leases", Act::Double(&[("instance_id", To::Swapped)])),
            holds,
        ),
        only(
            class("leases", Act::Double(&[("instance_id", To::Unknown)])),
            holds,
        ),
    ]);
    classes.extend(changes!("instances":
        "posted_no" To::Other, "posted_rows" To::Other, "quarantined_rows" To::Other, "dropped_rows" To::More,
    ));
    classes.extend([
        class("instances", Act::Delete),
        only(
            class("instances", Act::Change(&[("state", To::Is("'closed'"))])),
            |row| row["state"] != "closed",
        ),
        only(
            class("instances", Act::Change(&[("state", To::Is("'resolved'"))])),
            |row| row["state"] == "live",
        ),
        only(
            class("instances", Act::Change(&[("state", To::Is("'live'"))])),
            |row| row["state"] == "resolved",
        ),
        class("ledger_entries", Act::Delete),
        class(
            "ledger_entries",
            Act::Change(&[("counter_id", To::Swapped)]),
        ),
        class(
            "ledger_entries",
            Act::Change(&[("counter_id", To::Unknown)]),
        ),
        only(
            class(
                "ledger_entries",
                Act::Change(&[("instance_id", To::Unknown)]),
            ),
            of_settled,
        ),
        only(
            class(
                "ledger_entries",
                Act::Change(&[("request_id", To::Unknown)]),
            ),
            of_request,
        ),
        only(
            class("ledger_entries", Act::Double(&[("entry_id", To::Unknown)])),
            of_settled,
        ),
        only(
            class(
                "ledger_entries",
                Act::Double(&[("entry_id", To::Unknown), ("request_id", To::Unknown)]),
            ),
            of_request,
        ),
        only(
            class(
                "ledger_entries",
                Act::Double(&[("entry_id", To::Unknown), ("counter_id", To::Unknown)]),
            ),
            of_settled,
        ),
        class("quarantine", Act::Change(&[("post_no", To::More)])),
        class(
            "failed_attempts",
            Act::Double(&[("request_id", To::Unknown)]),
        ),
        class("quarantine", Act::Delete),
        class("quarantine", Act::Change(&[("post_no", To::Other)])),
        class("quarantine", Act::Change(&[("request_id", To::Unknown)])),
        class("quarantine", Act::Change(&[("instance_id", To::Swapped)])),
        class("quarantine", Act::Double(&[("post_no", To::More)])),
        class("statements", Act::Change(&[("record_count", To::Other)])),
        class("statements", Act::Delete),
        class("failed_attempts", Act::Delete),
        class(
            "failed_attempts",
            Act::Change(&[("request_id", To::Unknown)]),
        ),
        class("failed_attempts", Act::Double(&[("n", To::More)])),
        only(class("periods", Act::Delete), is_now),
        only(
            class(
                "periods",
                Act::Change(&[("ends_at_ms", To::Is("ends_at_ms + 1"))]),
            ),
            is_now,
        ),
        only(
            class(
                "periods",
                Act::Change(&[("ends_at_ms", To::Is("ends_at_ms - 1"))]),
            ),
            is_now,
        ),
        only(
            class(
                "periods",
                Act::Change(&[("starts_at_ms", To::Is("starts_at_ms + 1"))]),
            ),
            is_next,
        ),
        only(
            class("periods", Act::Change(&[("state", To::Is("'closed'"))])),
            is_now,
        ),
    ]);
    classes
}

fn is_now(row: &Row) -> bool {
    row["period"] == "202611"
}

fn is_next(row: &Row) -> bool {
    row["period"] == "202612"
}

fn is_current(row: &Row) -> bool {
    is_capped(row) && is_now(row)
}

fn is_current_moved(row: &Row) -> bool {
    is_current(row) && !is_over(row) && moves(row)
}

/// Lists of classes are made once per test.
fn leak(changes: &[(&'static str, To)]) -> &'static [(&'static str, To)] {
    Box::leak(changes.to_vec().into_boxed_slice())
}

fn leak_text(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn table_of<'t>(tables: &'t [Table], name: &str) -> &'t Table {
    tables.iter().find(|table| table.name == name).unwrap()
}

/// Writes what a column of a row becomes, `None` when there is nothing else that it could be.
fn value(
    dice: &mut Dice,
    database: &Database,
    (dump, tables): (&Dump, &[Table]),
    table: &Table,
    row: &Row,
    (column, to): (&str, To),
) -> Option<String> {
    let by = dice.roll(1, 50);
    Some(match to {
        To::Other => {
            let is_less = row[column].parse::<i64>().is_ok_and(|now| now >= by) && dice.one_in(2);
            format!("{column} {} {by}", if is_less { "-" } else { "+" })
        }
        To::More => format!("{column} + {by}"),
        To::Swapped => {
            let mut others: Vec<&str> = Vec::new();
            for other in tables {
                let rows = dump[other.name].iter();
                others.extend(rows.filter_map(|row| row.get(column).map(String::as_str)));
            }
            // The nil UUID stands for none.
            others.retain(|other| {
                *other != row[column] && *other != "NULL" && !other.trim_matches('0').is_empty()
            });
            others.sort_unstable();
            others.dedup();
            if others.is_empty() {
                return None;
            }
            table.literal(database, column, dice.pick::<&str>(&others))
        }
        To::Unknown => database.literal(id()),
        To::Is(sql) => sql.to_owned(),
    })
}

/// Writes a fault of a class at a random place; `None` when there is no such place.
pub(super) fn fault(
    dice: &mut Dice,
    database: &Database,
    dump: &Dump,
    tables: &[Table],
    class: &Class,
) -> Option<Vec<String>> {
    let table = table_of(tables, class.table);
    let places: Vec<&Row> = dump[class.table]
        .iter()
        .filter(|row| (class.only)(row))
        .collect();
    if places.is_empty() {
        return None;
    }
    let row = *dice.pick(&places);
    let (name, filter) = (class.table, table.filter(database, row));
    let mut values = |changes: &[(&'static str, To)]| {
        let values = changes.iter().map(|change| {
            Some((
                change.0,
                value(dice, database, (dump, tables), table, row, *change)?,
            ))
        });
        values.collect::<Option<Vec<_>>>()
    };
    let mut by = "-";
    let sql = match class.act {
        Act::Delete => format!("DELETE FROM {name} WHERE {filter}"),
        Act::Change(changes) => {
            let values = values(changes)?;
            let set = values
                .iter()
                .map(|(column, value)| format!("{column} = {value}"));
            format!(
                "UPDATE {name} SET {} WHERE {filter}",
                set.collect::<Vec<_>>().join(", ")
            )
        }
        Act::Double(changes) => {
            by = "+";
            let values = values(changes)?;
            let columns: Vec<String> = columns(table);
            let copied = columns.iter().map(|column| {
                let changed = values.iter().find(|(name, _)| name == column);
                changed.map_or_else(|| column.clone(), |(_, value)| value.clone())
            });
            let copied = copied.collect::<Vec<_>>().join(", ");
            format!(
                "INSERT INTO {name} ({}) SELECT {copied} FROM {name} WHERE {filter}",
                columns.join(", ")
            )
        }
    };
    let mut all = vec![sql];
    all.extend(
        class
            .covers
            .iter()
            .flat_map(|covered| cover(database, tables, &whole(row, dump), covered, by)),
    );
    Some(all)
}

/// The columns of a table, with those that are not looked at.
fn columns(table: &Table) -> Vec<String> {
    let mut columns: Vec<String> = table.columns.iter().map(|(name, _)| name.clone()).collect();
    if ["statements", "ledger_floor"].contains(&table.name) {
        columns.push("hash".to_owned());
    }
    columns
}

/// Takes a record out of what it was summed into, or adds it once more.
fn cover(database: &Database, tables: &[Table], row: &Row, covered: &str, by: &str) -> Vec<String> {
    let lit =
        |column: &str| table_of(tables, "record_kinds").literal(database, column, &row[column]);
    let (quota, charge) = (&row["quota_tokens"], &row["charge_nano"]);
    if covered == "counters" {
        return ["tenant", "user", "key"]
            .iter()
            .map(|scope| {
                let scope_id = lit(&format!("{scope}_id"));
                format!(
                    "UPDATE counters SET used_tokens = used_tokens {by} {quota}, used_nano = used_nano {by} {charge} \
                     WHERE scope = '{scope}' AND scope_id = {scope_id} AND period = {}",
                    row["period"]
                )
            })
            .collect();
    }
    let has_failed = row["ending"] != "finished" || row["status"].parse::<i32>().unwrap() >= 400;
    let mut set = vec![
        format!("requests = requests {by} 1"),
        format!("failures = failures {by} {}", i32::from(has_failed)),
    ];
    set.extend(SUMMED.map(|(record, rollup)| format!("{rollup} = {rollup} {by} {}", row[record])));
    let upstream = if row["upstream_id"] == "NULL" {
        database.literal(uuid::Uuid::nil())
    } else {
        lit("upstream_id")
    };
    let day = if covered == "rollup_daily" {
        format!("AND local_day = {}", row["local_day"])
    } else {
        String::new()
    };
    vec![format!(
        "UPDATE {covered} SET {} WHERE tenant_id = {} AND user_id = {} AND key_id = {} AND model = {} \
         AND upstream_id = {upstream} AND period = {} AND statement_period = {} {day}",
        set.join(", "),
        lit("tenant_id"),
        lit("user_id"),
        lit("key_id"),
        lit("requested_model"),
        row["period"],
        row["statement_period"],
    )]
}
