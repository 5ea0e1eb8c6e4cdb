//! Types, policies and ports of Sluice.
//!
//! **For**: the words of the product as types, the rules that need no I/O, and the traits behind
//! which storage stands.
//!
//! **Never here**: I/O, a clock, randomness, an executor, SQL or HTTP. Time and random bytes are
//! parameters.
//!
//! Modules in reading order: [`id`], [`time`], [`tenant`], [`access`] (who may administer what),
//! [`key`], [`account`] (who administers), [`upstream`], [`route`], [`pool`] (when an upstream is tried and left alone), [`usage`]
//! (what a request used and who pays), [`quota`], [`bound`] (what a request may cost at most),
//! [`window`] (how much may happen in a time), [`limit`] (which of these limits are set), [`record`],
//! [`ports`].
//!
//! To add an id type, add a line to the registry in [`id`]; to add a way in which a request can
//! end, add a variant to [`usage::Ending`] and a row to [`usage::charge`].

pub mod id;
pub mod time;

pub mod tenant;

pub mod access;

pub mod key;

pub mod account;

pub mod upstream;

pub mod route;

pub mod pool;

pub mod usage;

pub mod quota;

pub mod address;
pub mod bound;

pub mod window;

pub mod limit;

pub mod record;

pub mod ports;
