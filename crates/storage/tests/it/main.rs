//! Storage on both databases: one suite of functions, run on each.
//!
//! SQLite runs always, in a temporary folder. PostgreSQL runs when `SLUICE_TEST_POSTGRES_URL` names
//! a database in which schemas may be made; with `REQUIRE_BACKENDS=1` its absence is a failure. The
//! same holds for Redis and `SLUICE_TEST_REDIS_URL`.

/// Makes a test of each function for each database.
#[cfg(test)]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {$(
            #[tokio::test]
            async fn $name() {
                let database = crate::fixture::Database::sqlite().await;
                super::$name(&database).await;
                database.close().await;
            }
        )*}
        mod postgres {$(
            #[tokio::test]
            async fn $name() {
                let Some(database) = crate::fixture::Database::postgres().await else { return };
                super::$name(&database).await;
                database.close().await;
            }
        )*}
    };
}

#[cfg(test)]
mod fixture;

#[cfg(test)]
mod dice;

#[cfg(test)]
mod migration;

#[cfg(test)]
mod schema;

#[cfg(test)]
mod tenant;

#[cfg(test)]
mod quota;

#[cfg(test)]
mod limit;

#[cfg(test)]
mod key;

#[cfg(test)]
mod admin;

#[cfg(test)]
mod routing;

#[cfg(test)]
mod feed;

#[cfg(test)]
mod ledger;

#[cfg(test)]
mod rows;

#[cfg(test)]
mod leases;

#[cfg(test)]
mod late;

#[cfg(test)]
mod verify;

#[cfg(test)]
mod corrupt;

#[cfg(test)]
mod floor;

#[cfg(test)]
mod replay;

#[cfg(test)]
mod calendar;

#[cfg(test)]
mod usage;

#[cfg(test)]
mod windows;
