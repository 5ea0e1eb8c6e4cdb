//! The journal on a disk in memory.

mod failing;
pub(super) mod fixture;
mod keeping;
mod model;
mod reading;
mod writing;
