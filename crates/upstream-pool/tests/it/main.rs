//! The dispatcher against real sockets.

#[cfg(test)]
mod server;

#[cfg(test)]
mod support;

#[cfg(test)]
mod answer;

#[cfg(test)]
mod connection;

#[cfg(test)]
mod deadline;

#[cfg(test)]
mod failover;

#[cfg(test)]
mod failure;

#[cfg(test)]
mod fleet;

#[cfg(test)]
mod patrol;
#[cfg(test)]
mod probe;

#[cfg(test)]
mod request;
