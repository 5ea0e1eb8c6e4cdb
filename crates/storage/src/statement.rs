//! One SQL text for two databases: statements as constants, and the macros that run them.

/// One SQL text of this crate.
#[derive(Debug, Clone, Copy)]
pub struct Statement {
    /// Its name in the code.
    pub name: &'static str,
    /// The text, with `$1` placeholders, in the subset that both databases understand.
    pub sql: &'static str,
    /// The number of its parameters.
    pub parameters: usize,
}

impl Statement {
    pub(crate) const fn new(name: &'static str, sql: &'static str) -> Self {
        Self {
            name,
            sql,
            parameters: highest_placeholder(sql),
        }
    }
}

/// Returns the highest `$n` of a text.
const fn highest_placeholder(sql: &str) -> usize {
    let bytes = sql.as_bytes();
    let mut highest = 0;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'$' {
            let mut number = 0;
            while at + 1 < bytes.len() && bytes[at + 1].is_ascii_digit() {
                number = number * 10 + (bytes[at + 1] - b'0') as usize;
                at += 1;
            }
            if number > highest {
                highest = number;
            }
        }
        at += 1;
    }
    highest
}

/// Declares the statements of a module and lists them in its `STATEMENTS`.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $sql:expr;)*) => {
        $($(#[$doc])* pub(super) const $name: $crate::Statement =
            $crate::Statement::new(stringify!($name), $sql);)*
        pub(crate) const STATEMENTS: &[$crate::Statement] = &[$($name),*];
    };
}

/// Counts expressions at compile time.
macro_rules! count {
    () => { 0 };
    ($head:expr $(, $tail:expr)*) => { 1 + count!($($tail),*) };
}

/// Binds the parameters of a statement; a wrong number of them does not compile.
///
/// SQLite would read a missing one as `NULL` without a word.
macro_rules! sql {
    ($statement:path $(, $value:expr)* $(,)?) => {{
        const { assert!($statement.parameters == count!($($value),*), "wrong number of binds") };
        sqlx::query($statement.sql)$(.bind($value))*
    }};
}

/// As `sql!`, with rows that become a type.
macro_rules! sql_as {
    ($statement:path $(, $value:expr)* $(,)?) => {{
        const { assert!($statement.parameters == count!($($value),*), "wrong number of binds") };
        sqlx::query_as($statement.sql)$(.bind($value))*
    }};
}

/// As `sql!`, with rows of one column.
macro_rules! sql_scalar {
    ($statement:path $(, $value:expr)* $(,)?) => {{
        const { assert!($statement.parameters == count!($($value),*), "wrong number of binds") };
        sqlx::query_scalar($statement.sql)$(.bind($value))*
    }};
}

/// Writes methods of [`Session`](crate::dialect::Session) once, for both databases.
macro_rules! on_both {
    ($($methods:tt)*) => {
        impl $crate::dialect::Session<'_, sqlx::Postgres> { $($methods)* }
        impl $crate::dialect::Session<'_, sqlx::Sqlite> { $($methods)* }
    };
}

/// Runs a method of a session in one write transaction: all or nothing.
macro_rules! in_transaction {
    ($storage:expr, $method:ident($($arg:expr),* $(,)?)) => {
        match $storage.pools() {
            $crate::storage::Pools::Postgres(pool) => {
                let mut tx = $crate::dialect::begin_postgres(pool).await?;
                let mut session = $crate::dialect::Session::<sqlx::Postgres>::new(&mut *tx)
                    .acting($storage.actor());
                session.begin_act().await?;
                let out = session.$method($($arg),*).await?;
                tx.commit().await.map_err($crate::error::Failure::from)?;
                Ok(out)
            }
            $crate::storage::Pools::Sqlite { write, .. } => {
                let mut tx = $crate::dialect::begin_sqlite(write).await?;
                let mut session = $crate::dialect::Session::<sqlx::Sqlite>::new(&mut *tx)
                    .acting($storage.actor());
                session.begin_act().await?;
                let out = session.$method($($arg),*).await?;
                tx.commit().await.map_err($crate::error::Failure::from)?;
                Ok(out)
            }
        }
    };
}

/// Runs a method of a session that reads. Each statement sees its own snapshot.
macro_rules! reading {
    ($storage:expr, $method:ident($($arg:expr),* $(,)?)) => {
        match $storage.pools() {
            $crate::storage::Pools::Postgres(pool) => {
                let mut conn = pool.acquire().await.map_err($crate::error::Failure::from)?;
                Ok($crate::dialect::Session::<sqlx::Postgres>::new(&mut *conn).$method($($arg),*).await?)
            }
            $crate::storage::Pools::Sqlite { read, .. } => {
                let mut conn = read.acquire().await.map_err($crate::error::Failure::from)?;
                Ok($crate::dialect::Session::<sqlx::Sqlite>::new(&mut *conn).$method($($arg),*).await?)
            }
        }
    };
}

/// Runs a method of a session that only reads, all its statements in one snapshot.
macro_rules! in_snapshot {
    ($storage:expr, $method:ident($($arg:expr),* $(,)?)) => {
        match $storage.pools() {
            $crate::storage::Pools::Postgres(pool) => {
                let mut tx = $crate::dialect::begin_postgres_snapshot(pool).await?;
                Ok($crate::dialect::Session::<sqlx::Postgres>::new(&mut *tx).$method($($arg),*).await?)
            }
            $crate::storage::Pools::Sqlite { read, .. } => {
                let mut tx = $crate::dialect::begin_sqlite_snapshot(read).await?;
                Ok($crate::dialect::Session::<sqlx::Sqlite>::new(&mut *tx).$method($($arg),*).await?)
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_by_the_highest_number() {
        assert_eq!(highest_placeholder("SELECT 1"), 0);
        assert_eq!(highest_placeholder("SELECT $1, $2, $1"), 2);
        assert_eq!(highest_placeholder("VALUES ($9, $10, $11)"), 11);
    }
}
