//! Window counters, in process and in Redis: one suite of functions, run on each.

mod conformance;
mod faults;
mod fixture;
mod loss;
mod prove;
