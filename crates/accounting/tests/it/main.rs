//! The ledger against a simulated store that loses answers and refuses rows.

#[cfg(test)]
mod holds;
#[cfg(test)]
mod posting;
#[cfg(test)]
mod sim;
