//! Statements that follow each other in every batch, as one text where the driver takes one.
//!
//! A call of SQLite is a change of threads and back, which costs as much as several rows.

use std::sync::OnceLock;

use sqlx::Arguments;
use sqlx::error::BoxDynError;

use crate::bulk::{Bulk, PADDED_UP_TO, Run, SIZES, WRONG_WIDTH};
use crate::error::{Failure, internal};
use crate::storage::Backend;

/// Most statements in a group.
const MOST_PARTS: usize = 4;

type Bind<'r, A> = Box<dyn FnMut(&mut A, usize) -> Result<(), BoxDynError> + Send + 'r>;

/// The rows of one statement of a [`Group`].
pub(crate) struct Part<'r, A> {
    pub(crate) bulk: &'static Bulk,
    pub(crate) rows: usize,
    /// Binds the row of an index.
    pub(crate) bind: Bind<'r, A>,
}

impl<'r, A: 'r> Part<'r, A> {
    pub(crate) fn new<R: Sync>(
        bulk: &'static Bulk,
        rows: &'r [R],
        mut bind: impl FnMut(&mut A, &R) -> Result<(), BoxDynError> + Send + 'r,
    ) -> Self {
        let bind: Bind<'r, A> =
            Box::new(move |arguments, at| rows.get(at).map_or(Ok(()), |row| bind(arguments, row)));
        Self {
            bulk,
            rows: rows.len(),
            bind,
        }
    }
}

/// Statements that follow each other.
pub(crate) struct Group {
    /// By the statements that a text has (a bit each) and by size.
    texts: [[OnceLock<String>; SIZES.len()]; 1 << MOST_PARTS],
}

impl Group {
    pub(crate) const fn new() -> Self {
        Self {
            texts: [const { [const { OnceLock::new() }; SIZES.len()] }; 1 << MOST_PARTS],
        }
    }

    /// Cuts the rows of all parts into runs; each part in a run has as many rows. A few rows that may
    /// be inserted twice are repeated rather than given a run of their own.
    ///
    /// A group is used with the same statements in the same order always.
    pub(crate) fn runs<'r, A: Arguments + Default, const PARTS: usize>(
        &'static self,
        mut parts: [Part<'r, A>; PARTS],
    ) -> impl Iterator<Item = Result<Run<A>, Failure>> + use<'r, A, PARTS> {
        const { assert!(PARTS <= MOST_PARTS, "too many statements in a group") };
        let mut done = [0; PARTS];
        std::iter::from_fn(move || {
            let left: [usize; PARTS] = std::array::from_fn(|part| parts[part].rows - done[part]);
            let size = fitting(left.into_iter().max()?)?;
            // What the next run will have, if the few wait for it.
            let later = parts.iter().zip(left).map(|(part, left)| {
                if part.bulk.may_repeat() {
                    0
                } else {
                    left % size
                }
            });
            let later = later.max().and_then(fitting).unwrap_or(0);
            let has: [bool; PARTS] = std::array::from_fn(|part| {
                let is_padded = parts[part].bulk.may_repeat()
                    && size <= PADDED_UP_TO
                    && left[part] > later
                    && left[part] > 0;
                left[part] >= size || is_padded
            });
            let sql = self.text(parts.each_ref().map(|part| part.bulk), has, size);
            let mut arguments = A::default();
            for (at, part) in parts.iter_mut().enumerate() {
                if !has[at] {
                    continue;
                }
                if let Err(failure) = bind_rows(part, done[at], size, &mut arguments) {
                    return Some(Err(failure));
                }
                done[at] = (done[at] + size).min(part.rows);
            }
            Some(Ok(Run { sql, arguments }))
        })
    }

    fn text<const PARTS: usize>(
        &'static self,
        bulks: [&'static Bulk; PARTS],
        has: [bool; PARTS],
        size: usize,
    ) -> &'static str {
        let at = SIZES
            .iter()
            .position(|s| *s == size)
            .unwrap_or(SIZES.len() - 1);
        let mask = has.iter().fold(0, |mask, has| mask * 2 + usize::from(*has));
        self.texts[mask][at].get_or_init(|| {
            let present = bulks.iter().zip(has).filter(|(_, has)| *has);
            let texts = present.map(|(bulk, _)| bulk.build(SIZES[at], Backend::Sqlite));
            texts.collect::<Vec<_>>().join("; ")
        })
    }
}

/// Returns the largest size of a run for so many rows that are left.
fn fitting(left: usize) -> Option<usize> {
    SIZES.into_iter().find(|size| *size <= left)
}

/// Binds `count` rows, the last one again where there are no more.
fn bind_rows<A: Arguments>(
    part: &mut Part<'_, A>,
    first: usize,
    count: usize,
    arguments: &mut A,
) -> Result<(), Failure> {
    let values = part.bulk.parameters(count);
    let before = arguments.len();
    arguments.reserve(values, 0);
    for row in first..first + count {
        (part.bind)(arguments, row.min(part.rows - 1)).map_err(sqlx::Error::Encode)?;
    }
    if arguments.len() == before + values {
        Ok(())
    } else {
        Err(internal(WRONG_WIDTH).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static GROUP: Group = Group::new();
    static ONE: Bulk = Bulk::new("ONE", "INSERT INTO one (a) VALUES ", 1, "");
    static TWO: Bulk = Bulk::new("TWO", "INSERT INTO two (a, b) VALUES ", 2, "");
    static THREE: Bulk = Bulk::new("THREE", "INSERT INTO three (a) VALUES ", 1, "");

    fn part<'r>(bulk: &'static Bulk, rows: &'r [i64]) -> Part<'r, sqlx::sqlite::SqliteArguments> {
        Part::new(
            bulk,
            rows,
            |arguments: &mut sqlx::sqlite::SqliteArguments, row| {
                for _ in 0..bulk.parameters(1) {
                    arguments.add(*row)?;
                }
                Ok(())
            },
        )
    }

    #[test]
    fn a_run_has_the_parts_that_have_rows_enough() {
        let rows = [7; 5];
        let runs = GROUP.runs([
            part(&ONE, &rows[..3]),
            part(&TWO, &rows),
            part(&THREE, &rows[..0]),
        ]);
        let runs: Vec<_> = runs
            .map(|run| run.unwrap())
            .map(|run| (run.sql, run.arguments.len()))
            .collect();
        assert_eq!(
            runs,
            [
                (
                    "INSERT INTO two (a, b) VALUES (?, ?), (?, ?), (?, ?), (?, ?)",
                    8
                ),
                ("INSERT INTO one (a) VALUES (?), (?)", 2),
                (
                    "INSERT INTO one (a) VALUES (?); INSERT INTO two (a, b) VALUES (?, ?)",
                    3
                ),
            ]
        );
    }

    #[test]
    fn a_few_rows_that_may_be_repeated_wait_for_a_run_that_they_fill() {
        use crate::bulk::Known;

        static GROUP: Group = Group::new();
        static KEPT: Bulk = Bulk::insert("KEPT", Known::Kept, "INTO kept (a) VALUES ", 1);
        let sizes = |kept: usize, rows: usize| -> Vec<[usize; 2]> {
            let all = [7; 64];
            let runs = GROUP.runs([part(&KEPT, &all[..kept]), part(&ONE, &all[..rows])]);
            let runs = runs.map(|run| run.unwrap()).map(|run| {
                let has_kept = usize::from(run.sql.contains("INTO kept"));
                let has_rows = usize::from(run.sql.contains("INTO one"));
                let size = run.arguments.len() / (has_kept + has_rows);
                [size * has_kept, size * has_rows]
            });
            runs.collect()
        };
        assert_eq!(sizes(1, 50), [[0, 32], [0, 16], [2, 2]]);
        assert_eq!(sizes(3, 7), [[4, 4], [0, 2], [0, 1]]);
        assert_eq!(sizes(5, 2), [[4, 0], [2, 2]]);
        // Too many repetitions would cost more than a run.
        assert_eq!(sizes(1, 16), [[0, 16], [1, 0]]);
        assert_eq!(sizes(3, 0), [[2, 0], [1, 0]]);
    }

    #[test]
    fn no_rows_are_no_run() {
        assert_eq!(
            GROUP
                .runs([part(&ONE, &[]), part(&TWO, &[]), part(&THREE, &[])])
                .count(),
            0
        );
    }
}
