//! The binary `sluice` as its users meet it: real processes, real sockets, real databases.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod audit;
#[cfg(test)]
mod azure;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod compatible;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod deployment;
#[cfg(test)]
mod disconnects;
#[cfg(test)]
mod disk_full;
#[cfg(test)]
mod endings;
#[cfg(test)]
mod errors;
#[cfg(test)]
mod failures;
#[cfg(test)]
mod hot_path;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod load;
#[cfg(test)]
mod lost_posts;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod outage_load;
#[cfg(test)]
mod outage_long;
#[cfg(test)]
mod overspend;
#[cfg(test)]
mod pass_through;
#[cfg(test)]
mod probes;
#[cfg(test)]
mod quarantine;
#[cfg(test)]
mod restart;
#[cfg(test)]
mod sdk;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod upstream_limits;
#[cfg(test)]
mod upstreams;
