//! The identities of the ledger, each a query that finds nothing when it holds.
//!
//! `amounts` adds up, `origins` looks for what is missing or hangs on nothing, `kinds` at what records
//! share, `calendar` at months and statements, and `warnings` at what a person should know of a sound ledger.

mod amounts;
mod calendar;
mod checks;
mod kinds;
mod origins;
mod warnings;

use std::fmt;

use sluice_domain::id::{InstanceId, TenantId};
use sluice_domain::ports::StoreError;
use sluice_domain::time::{Month, UnixMillis};
use uuid::Uuid;

use crate::error::{Failure, corrupt};
use crate::storage::Storage;

pub(crate) use self::checks::STATEMENTS;
pub use self::origins::StoredPost;

/// A row that breaks an identity of the ledger, or that somebody should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule: `V1` to `V15` are faults, `W1` is a warning.
    pub id: &'static str,
    /// The table of the row.
    pub table: &'static str,
    /// Its key, in words.
    pub key: String,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// What it means.
    pub sentence: &'static str,
}

impl Finding {
    /// Returns whether the ledger is sound and a person should look nevertheless.
    pub fn is_warning(&self) -> bool {
        self.id.starts_with('W')
    }

    /// Where it stands among others: faults before warnings, by their rules.
    fn place(&self) -> impl Ord {
        let rule = (self.is_warning(), self.id.len(), self.id);
        (rule, self.table, &self.key, &self.expected, &self.found)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            table,
            key,
            expected,
            found,
            sentence,
        } = self;
        write!(
            f,
            "{id} {table} {key}: expected {expected}, found {found}: {sentence}"
        )
    }
}

/// How far retention has come. Of what it has removed there are sums per instance, no records.
#[derive(Debug, Clone, Copy, Default)]
struct Floor {
    /// Records of months up to this one may be missing; 0 when nothing was ever removed.
    period: i32,
    /// Records of local days up to this one may be missing.
    local_day: i32,
}

impl Floor {
    /// Reads it from the name of the newest partition that was removed, which ends in its month.
    fn of(partition: Option<&str>) -> Result<Self, Failure> {
        let Some(name) = partition else {
            return Ok(Self::default());
        };
        let month = name
            .get(name.len().saturating_sub(7)..)
            .and_then(|end| end.split_once('_'))
            .and_then(|(year, month)| format!("{year}{month}").parse().ok())
            .and_then(Month::from_number);
        let month = month.ok_or_else(|| corrupt("ledger_floor", "partition_name", name))?;
        // A partition is a month in UTC: east of it, its last day is the first of the next month.
        let period = month.next().as_number();
        Ok(Self {
            period,
            local_day: period * 100 + 1,
        })
    }
}

fn instance(id: Uuid) -> InstanceId {
    InstanceId::from_uuid(id)
}

fn tenant(id: Uuid) -> TenantId {
    TenantId::from_uuid(id)
}

/// Writes an amount, `no cap` for none.
fn both(tokens: Option<i64>, nano: Option<i64>) -> String {
    let word = |amount: Option<i64>| amount.map_or_else(|| "no cap".to_owned(), |a| a.to_string());
    format!("{} tokens and {} nano", word(tokens), word(nano))
}

impl Storage {
    /// Checks the identities of the ledger in one snapshot, without writing. Nothing found is clean;
    /// warnings come last.
    ///
    /// Reads all records: on a large ledger this takes minutes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn verify_ledger(&self, now: UnixMillis) -> Result<Vec<Finding>, StoreError> {
        in_snapshot!(self, verify_ledger(now))
    }

    /// Returns what the ledger has of the posts of an instance with numbers from `first` to `last`,
    /// in their order: to be compared with its journal.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_posts(
        &self,
        instance: InstanceId,
        first: i64,
        last: i64,
    ) -> Result<Vec<StoredPost>, StoreError> {
        in_snapshot!(self, list_posts(instance, first, last))
    }
}

on_both! {
    async fn verify_ledger(&mut self, now: UnixMillis) -> Result<Vec<Finding>, Failure> {
        let newest: Option<String> = sql_scalar!(checks::FLOOR).fetch_one(&mut *self.conn).await?;
        let floor = Floor::of(newest.as_deref())?;
        let mut findings = self.verify_counters(floor, now).await?;
        findings.extend(self.verify_records(floor).await?);
        findings.extend(self.verify_instances().await?);
        findings.extend(self.verify_leases().await?);
        findings.extend(self.verify_what_hangs_on_records().await?);
        findings.extend(self.verify_kinds().await?);
        findings.extend(self.verify_calendar(floor).await?);
        findings.extend(self.warnings(now).await?);
        // A database has no order of its own; two looks at the same say the same.
        findings.sort_by(|a, b| a.place().cmp(&b.place()));
        Ok(findings)
    }
}

#[cfg(test)]
mod tests {
    use super::Floor;

    #[test]
    fn the_floor_is_read_from_the_name_of_a_partition() {
        let floor = Floor::of(Some("usage_records_2026_12")).unwrap();
        assert_eq!((floor.period, floor.local_day), (202_701, 20_270_101));
        assert_eq!(Floor::of(None).unwrap().period, 0);
        for name in ["usage_records", "", "2026-12", "usage_records_2026_13", "ü"] {
            assert!(Floor::of(Some(name)).is_err(), "{name}");
        }
    }
}
