//! Who calls: one extractor for every credential channel, and the keys that are known.

pub(crate) mod credential;

pub(crate) mod grants;

pub(crate) use grants::{Grant, Grants};
