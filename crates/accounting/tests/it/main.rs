//! A deterministic simulation of the ledger: the real ledger, lanes, writer and journal on a
//! simulated database and simulated disks, with everything going wrong that can.
//!
//! `SLUICE_SIM_SEEDS=n` plays `n` seeds of each kind, `SLUICE_SIM_SEED=n` plays one with a trace;
//! `SLUICE_SIM_FIRST=n` begins elsewhere.

#[cfg(test)]
mod checks;
#[cfg(test)]
mod common;
#[cfg(test)]
mod disk;
#[cfg(test)]
mod store;
#[cfg(test)]
mod world;

#[cfg(test)]
mod play;

#[cfg(test)]
mod promises;
