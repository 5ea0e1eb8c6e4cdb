//! Statements of many rows, in a few fixed sizes.
//!
//! A driver keeps a prepared statement per text. With fixed sizes there are few texts, each built
//! once; a batch is cut into the largest sizes that fit.

use std::fmt::Write as _;
use std::sync::OnceLock;

use sqlx::Arguments;
use sqlx::error::BoxDynError;

use crate::error::{Failure, internal};
use crate::statement::Statement;
use crate::storage::Backend;

/// Rows per statement, largest first. The largest times the widest row stays far below the limit of
/// parameters: 32,766 on SQLite, 65,535 on PostgreSQL.
pub(crate) const SIZES: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];
/// Up to here a statement that may repeats its last row to be filled, which costs less than another.
pub(crate) const PADDED_UP_TO: usize = 8;

/// Whether rows may stand in a statement twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// Each row once.
    Never,
    /// The last row may be repeated; the caller drops what it finds twice.
    Allowed,
}

/// What an insert does with a row whose key is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// It stays as it is.
    Kept,
    /// It stays, and the transaction may not go on.
    Refused,
}

/// A statement whose middle is a list of rows.
pub(crate) struct Bulk {
    name: &'static str,
    /// Of an insert that the databases write differently.
    known: Option<Known>,
    head: &'static str,
    /// Placeholders in the head.
    shared: usize,
    columns: usize,
    tail: &'static str,
    texts: [[OnceLock<String>; SIZES.len()]; 2],
}

impl Bulk {
    /// `columns` is the number of values in a row; rows stand between `head` and `tail`.
    ///
    /// Each `?` in `head` is a value that all rows share, bound before them.
    pub(crate) const fn new(
        name: &'static str,
        head: &'static str,
        columns: usize,
        tail: &'static str,
    ) -> Self {
        Self {
            name,
            known: None,
            head,
            shared: count_placeholders(head),
            columns,
            tail,
            texts: [const { [const { OnceLock::new() }; SIZES.len()] }; 2],
        }
    }

    /// `into` is `INTO`, the table and its columns.
    ///
    /// On SQLite a statement that fails leaves the rows that it has inserted: to be able to take them
    /// back, it would first copy each page that it changes. Whoever runs it ends the transaction.
    pub(crate) const fn insert(
        name: &'static str,
        known: Known,
        into: &'static str,
        columns: usize,
    ) -> Self {
        let mut bulk = Self::new(name, into, columns, "");
        bulk.known = Some(known);
        bulk
    }

    /// Returns whether all its rows must be new.
    pub(crate) fn is_all_new(&self) -> bool {
        self.known == Some(Known::Refused)
    }

    /// Returns whether the same row twice is the same as once.
    pub(crate) fn may_repeat(&self) -> bool {
        self.known == Some(Known::Kept)
    }

    /// Returns the smallest and the largest of its statements.
    pub(crate) fn statements(&'static self, backend: Backend) -> [Statement; 2] {
        [1, SIZES[0]].map(|size| Statement {
            name: self.name,
            sql: self.text(size, backend),
            parameters: self.parameters(size),
        })
    }

    fn text(&'static self, size: usize, backend: Backend) -> &'static str {
        let [postgres, sqlite] = &self.texts;
        let texts = match backend {
            Backend::Postgres => postgres,
            Backend::Sqlite => sqlite,
        };
        let at = SIZES
            .iter()
            .position(|s| *s == size)
            .unwrap_or(SIZES.len() - 1);
        texts[at].get_or_init(|| self.build(SIZES[at], backend))
    }

    /// Returns the number of values that a statement of so many rows binds.
    pub(crate) const fn parameters(&self, rows: usize) -> usize {
        self.shared + rows * self.columns
    }

    pub(crate) fn build(&self, rows: usize, backend: Backend) -> String {
        let (verb, tail) = match (self.known, backend) {
            (None, _) => ("", self.tail),
            (Some(_), Backend::Postgres) => ("INSERT ", SKIP_KNOWN),
            (Some(Known::Kept), Backend::Sqlite) => ("INSERT OR FAIL ", SKIP_KNOWN),
            (Some(Known::Refused), Backend::Sqlite) => ("INSERT OR FAIL ", ""),
        };
        let mut text = String::with_capacity(self.head.len() + self.parameters(rows) * 6 + 64);
        text.push_str(verb);
        let mut number = 0;
        let mut push_placeholder = |text: &mut String| match backend {
            // SQLite keeps the names of numbered ones in a list that the driver searches for each
            // parameter, which takes milliseconds with some thousand of them.
            Backend::Sqlite => text.push('?'),
            Backend::Postgres => {
                number += 1;
                // Writing to a string cannot fail.
                let _infallible = write!(text, "${number}");
            }
        };
        for (at, part) in self.head.split('?').enumerate() {
            if at > 0 {
                push_placeholder(&mut text);
            }
            text.push_str(part);
        }
        for row in 0..rows {
            text.push_str(if row == 0 { "(" } else { ", (" });
            for column in 0..self.columns {
                if column > 0 {
                    text.push_str(", ");
                }
                push_placeholder(&mut text);
            }
            text.push(')');
        }
        text.push_str(tail);
        text
    }

    /// Cuts rows into runs of a fixed size; each comes with its statement and bound parameters.
    ///
    /// `share` binds what the rows of a statement share, `bind` binds one row.
    pub(crate) fn runs<'r, R, A: Arguments + Default>(
        &'static self,
        rows: &'r [R],
        backend: Backend,
        repeats: Repeats,
        mut share: impl FnMut(&mut A) -> Result<(), BoxDynError>,
        mut bind: impl FnMut(&mut A, &'r R) -> Result<(), BoxDynError>,
    ) -> impl Iterator<Item = Result<Run<A>, Failure>> {
        let mut rest = rows;
        std::iter::from_fn(move || {
            let (last, size) = (rest.last()?, statement_size(rest.len(), repeats));
            let (now, later) = rest.split_at(size.min(rest.len()));
            rest = later;
            let mut arguments = A::default();
            // Bytes are a guess for the binary protocol of PostgreSQL.
            let values = self.parameters(size);
            arguments.reserve(values, values * 12);
            if let Err(error) = share(&mut arguments) {
                return Some(Err(sqlx::Error::Encode(error).into()));
            }
            for row in now
                .iter()
                .chain(std::iter::repeat_n(last, size - now.len()))
            {
                if let Err(error) = bind(&mut arguments, row) {
                    return Some(Err(sqlx::Error::Encode(error).into()));
                }
            }
            if arguments.len() != values {
                return Some(Err(internal(WRONG_WIDTH).into()));
            }
            Some(Ok(Run {
                sql: self.text(size, backend),
                arguments,
            }))
        })
    }
}

const SKIP_KNOWN: &str = " ON CONFLICT DO NOTHING";

const fn count_placeholders(text: &str) -> usize {
    let (bytes, mut at, mut count) = (text.as_bytes(), 0, 0);
    while at < bytes.len() {
        if bytes[at] == b'?' {
            count += 1;
        }
        at += 1;
    }
    count
}

/// Binds nothing, for statements whose rows share nothing.
#[expect(clippy::unnecessary_wraps, reason = "stands where others bind")]
pub(crate) fn share_nothing<A>(_arguments: &mut A) -> Result<(), BoxDynError> {
    Ok(())
}

/// The defect of a row whose binds do not fit its statement.
pub(crate) const WRONG_WIDTH: &str = "a row has another number of values than its statement";

/// Returns the rows of the next statement for so many, at least one, that are left.
fn statement_size(left: usize, repeats: Repeats) -> usize {
    if repeats == Repeats::Allowed && left <= PADDED_UP_TO {
        left.next_power_of_two()
    } else {
        SIZES.into_iter().find(|size| *size <= left).unwrap_or(1)
    }
}

/// One statement with its parameters.
pub(crate) struct Run<A> {
    pub(crate) sql: &'static str,
    pub(crate) arguments: A,
}

/// Declares the statements of many rows of a module and lists them in its `bulks`.
macro_rules! bulks {
    ($($(#[$doc:meta])* $name:ident = $head:expr, $columns:expr, $tail:expr;)*) => {
        $($(#[$doc])* static $name: $crate::bulk::Bulk =
            $crate::bulk::Bulk::new(stringify!($name), $head, $columns, $tail);)*
        pub(super) fn bulks() -> Vec<&'static $crate::bulk::Bulk> {
            vec![$(&$name),*]
        }
    };
}

/// As `bulks!`, for inserts that the databases write differently.
macro_rules! inserts {
    ($($(#[$doc:meta])* $name:ident = $known:ident, $into:expr, $columns:expr;)*) => {
        $($(#[$doc])* static $name: $crate::bulk::Bulk = $crate::bulk::Bulk::insert(
            stringify!($name), $crate::bulk::Known::$known, $into, $columns);)*
        pub(super) fn bulks() -> Vec<&'static $crate::bulk::Bulk> {
            vec![$(&$name),*]
        }
    };
}

/// Binds the values of one row; [`Bulk::runs`] refuses a wrong number of them.
macro_rules! row {
    ($arguments:expr, $($value:expr),* $(,)?) => {{
        $(sqlx::Arguments::add($arguments, $value)?;)*
        Ok::<(), sqlx::error::BoxDynError>(())
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    static PAIRS: Bulk = Bulk::new(
        "PAIRS",
        "INSERT INTO t (a, b) VALUES ",
        2,
        " ON CONFLICT DO NOTHING",
    );

    #[test]
    fn a_text_has_one_placeholder_per_value() {
        assert_eq!(
            PAIRS.text(1, Backend::Postgres),
            "INSERT INTO t (a, b) VALUES ($1, $2) ON CONFLICT DO NOTHING"
        );
        assert_eq!(PAIRS.text(8, Backend::Sqlite).matches('?').count(), 16);
        assert!(PAIRS.text(8, Backend::Postgres).contains("($15, $16) ON"));
    }

    static TAGGED: Bulk = Bulk::new(
        "TAGGED",
        "INSERT INTO t (a, b, c) SELECT ?, ?, r.* FROM (VALUES ",
        1,
        ") AS r",
    );

    #[test]
    fn each_database_has_its_own_word_for_rows_that_are_there() {
        static NEW: Bulk = Bulk::insert("NEW", Known::Refused, "INTO t (a) VALUES ", 1);
        static ANY: Bulk = Bulk::insert("ANY", Known::Kept, "INTO t (a) VALUES ", 1);
        for (bulk, backend, text) in [
            (
                &NEW,
                Backend::Postgres,
                "INSERT INTO t (a) VALUES ($1) ON CONFLICT DO NOTHING",
            ),
            (
                &NEW,
                Backend::Sqlite,
                "INSERT OR FAIL INTO t (a) VALUES (?)",
            ),
            (
                &ANY,
                Backend::Postgres,
                "INSERT INTO t (a) VALUES ($1) ON CONFLICT DO NOTHING",
            ),
            (
                &ANY,
                Backend::Sqlite,
                "INSERT OR FAIL INTO t (a) VALUES (?) ON CONFLICT DO NOTHING",
            ),
        ] {
            assert_eq!(bulk.text(1, backend), text);
        }
        assert!(NEW.is_all_new() && !ANY.is_all_new() && !PAIRS.is_all_new());
    }

    #[test]
    fn what_rows_share_is_bound_once_and_first() {
        assert_eq!(
            TAGGED.text(2, Backend::Postgres),
            "INSERT INTO t (a, b, c) SELECT $1, $2, r.* FROM (VALUES ($3), ($4)) AS r"
        );
        assert_eq!(
            TAGGED.text(1, Backend::Sqlite),
            "INSERT INTO t (a, b, c) SELECT ?, ?, r.* FROM (VALUES (?)) AS r"
        );
        let share = |arguments: &mut sqlx::sqlite::SqliteArguments| {
            arguments.add("x")?;
            arguments.add("y")
        };
        let rows = [1_i64; 3];
        let runs = TAGGED.runs(
            &rows,
            Backend::Sqlite,
            Repeats::Never,
            share,
            |arguments, row| arguments.add(*row),
        );
        let values: Vec<usize> = runs.map(|run| run.unwrap().arguments.len()).collect();
        assert_eq!(values, [4, 3]);
    }

    fn values_per_statement(rows: i64, repeats: Repeats) -> Vec<usize> {
        let rows: Vec<i64> = (0..rows).collect();
        let bind = |arguments: &mut sqlx::sqlite::SqliteArguments, row: &i64| {
            arguments.add(*row)?;
            arguments.add(*row)
        };
        let runs = PAIRS.runs(&rows, Backend::Sqlite, repeats, share_nothing, bind);
        runs.map(|run| run.unwrap().arguments.len()).collect()
    }

    #[test]
    fn rows_are_cut_into_the_largest_sizes_that_fit() {
        assert_eq!(values_per_statement(300, Repeats::Never), [512, 64, 16, 8]);
        assert_eq!(values_per_statement(3, Repeats::Never), [4, 2]);
        assert_eq!(values_per_statement(0, Repeats::Allowed), [0; 0]);
    }

    #[test]
    fn few_rows_of_a_look_up_fill_one_statement() {
        assert_eq!(values_per_statement(3, Repeats::Allowed), [8]);
        assert_eq!(values_per_statement(13, Repeats::Allowed), [16, 16]);
    }

    #[test]
    fn a_row_that_is_too_short_is_refused() {
        let run = PAIRS
            .runs::<_, sqlx::sqlite::SqliteArguments>(
                &[1_i64],
                Backend::Sqlite,
                Repeats::Never,
                share_nothing,
                |arguments, row| arguments.add(*row),
            )
            .next();
        assert!(matches!(run, Some(Err(_))));
    }
}
