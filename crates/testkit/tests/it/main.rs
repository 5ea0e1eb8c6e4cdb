//! The fake upstream as a raw client sees it.

#[cfg(test)]
mod plain;

#[cfg(test)]
mod stream;

#[cfg(test)]
mod fault;

#[cfg(test)]
mod scripting;

#[cfg(test)]
mod support;
