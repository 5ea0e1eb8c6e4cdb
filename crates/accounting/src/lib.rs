//! Holds and posting: from an admitted request to one row in the ledger.
//!
//! **For**: the way of every charge. A request is admitted with a [`Hold`]; every ending of the
//! request turns the hold into exactly one usage record; a single writer posts the records in
//! batches and knows after a failure what was taken in.
//!
//! **Never here**: HTTP, providers, SQL. The database stands behind
//! [`LedgerStore`](sluice_domain::ports::LedgerStore), the time behind
//! [`Clock`](sluice_domain::ports::Clock).
//!
//! Modules in reading order: [`account`] (the balances that a request is checked against),
//! [`ledger`] (holds and the queue of records), [`poster`] (the writer).
//!
//! A new way to end a request is a variant of [`Ending`](sluice_domain::usage::Ending); nothing
//! changes here, because all of them post through [`Hold::post`].

pub mod account;

pub mod ledger;

pub mod poster;

pub use account::{Account, Spent};
pub use ledger::{Hold, Ledger, LedgerStats, Refusal};
pub use poster::Poster;
