//! Holds, leases, the journal and posting: from an admitted request to one row in the ledger.
//!
//! **For**: the way of every charge. A request is admitted with a [`Hold`] that is taken from what
//! this instance has leased of each quota; every ending turns the hold into exactly one usage
//! record, which is in the journal before the answer's last bytes leave; a single writer posts the
//! records in batches, takes and returns leases, and knows after a failure or a crash what is true.
//!
//! **Never here**: HTTP, providers, SQL. The database stands behind
//! [`LedgerStore`](sluice_domain::ports::LedgerStore), the disk behind [`journal::Disk`], the time
//! behind [`Clock`](sluice_domain::ports::Clock).
//!
//! Modules in reading order: `traffic` (how fast a counter is spent), `book` (what is free of it),
//! `account` (who pays), `ledger` (holds), `lane` (lines of one turn), [`journal`] (the redo log), `inbox`
//! (what waits for the writer), `policy` (how much is leased), `writer` (transactions), `recovery` (requests that a crash cut
//! off), [`crash`] (where tests let the process die).
//!
//! A new way to end a request is a variant of [`Ending`](sluice_domain::usage::Ending); nothing
//! changes here, because all of them post through [`Hold::post`].

mod account;
mod book;
pub mod crash;
mod inbox;
pub mod journal;
mod lane;
mod ledger;
mod policy;
mod recovery;
mod traffic;
mod writer;

pub use account::Account;
pub use lane::{Lane, Written};
pub use ledger::{
    Fsync, Hold, Ledger, LedgerOptions, LedgerStats, NoRoom, Patience, Refusal, Refused,
};
pub use writer::{Finish, Identity, StartError, Writer, start, start_away};

/// An error with its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
