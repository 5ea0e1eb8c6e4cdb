//! Storage: SQL for PostgreSQL and SQLite, sealed secrets, migrations, the change feed.
//!
//! **For**: atomic operations on what lasts. Every method of [`Storage`] is one transaction or one
//! read; none hands out a connection.
//!
//! **Never here**: business rules, HTTP, a clock. Times and ids are parameters.
//!
//! Modules in reading order: `statement` (each SQL text once, for both databases), `dialect` (what
//! truly differs), `storage` (the pools), `migration`; who
//! changes what: [`audit`]; then configuration: [`tenant`], [`user`],
//! [`quota`], [`key`], [`import`], [`grant`], [`upstream`], [`route`]; who
//! administers: [`account`], [`session`], [`admin_token`]; what others learn of its
//! changes: [`feed`]; the [`calendar`]; the `ledger`, what is read from it: [`usage`], and what an
//! operator does: [`resolve`], [`verify`]; [`secret`], which needs no database; and [`windows`], which
//! are in process or in Redis.
//!
//! To add a statement, write it with `$1` placeholders into the `statements!` of the module that
//! owns it, run it with `sql!` inside `on_both!`, and call that with `in_transaction!` or
//! `reading!`. A bind too many or too few does not compile; the test that prepares every statement
//! on both databases finds it by itself. The traps are in `docs/storage.md`.

#[macro_use]
mod statement;
#[macro_use]
mod bulk;
mod dialect;
mod error;
mod group;
mod text;

mod migration;
mod storage;

pub mod audit;

pub mod tenant;

pub mod user;

pub mod quota;

pub mod limit;

pub mod key;

pub mod import;

pub mod grant;

pub mod account;

pub mod session;

pub mod admin_token;

pub mod upstream;

pub mod route;

pub mod feed;

pub mod calendar;

mod skipped;

mod ledger;

pub mod usage;

pub mod resolve;

pub mod verify;

pub mod secret;

pub mod windows;

pub use migration::{MigrationReport, MigrationState};
pub use statement::Statement;

pub use storage::{Backend, InvalidUrl, Storage, StorageOptions};

/// Returns every SQL text that runs on a database, for the test that prepares them. Generated ones
/// come in their smallest and their largest size.
pub fn statements(backend: Backend) -> Vec<Statement> {
    let own = match backend {
        Backend::Postgres => dialect::postgres::STATEMENTS,
        Backend::Sqlite => dialect::sqlite::STATEMENTS,
    };
    let mut all = [
        own,
        audit::STATEMENTS,
        tenant::STATEMENTS,
        user::STATEMENTS,
        quota::STATEMENTS,
        limit::STATEMENTS,
        key::STATEMENTS,
        import::STATEMENTS,
        grant::STATEMENTS,
        account::STATEMENTS,
        session::STATEMENTS,
        admin_token::STATEMENTS,
        upstream::STATEMENTS,
        route::STATEMENTS,
        feed::STATEMENTS,
        calendar::STATEMENTS,
        usage::STATEMENTS,
        resolve::STATEMENTS,
        verify::STATEMENTS,
    ]
    .concat();
    all.extend(ledger::statements());
    let bulks = [feed::bulks(), ledger::bulks(), usage::bulks()].concat();
    all.extend(bulks.into_iter().flat_map(|bulk| bulk.statements(backend)));
    all
}
