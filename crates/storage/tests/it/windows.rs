//! Window counters, in process and in Redis: one suite of functions, run on each.

mod conformance;
mod fixture;
mod loss;
