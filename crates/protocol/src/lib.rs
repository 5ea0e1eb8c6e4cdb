//! Wire shapes of model APIs: bytes in, bytes out.
//!
//! **For**: reading requests and answers as they pass, changing the few values that must change,
//! and counting tokens where nobody else does. All of it lies on the path of every request and of
//! every chunk, so bytes stay bytes: what is not acted upon is neither parsed nor copied.
//!
//! **Never here**: sockets, clocks, keys, tenants, prices, and status codes of ours.
//!
//! Modules in reading order: [`request`] (the outline of a body, and its changes), [`sse`] (events
//! out of frames), [`normal`] (what other servers write differently), [`stream`] (what passes, what
//! is read, how it ends), [`answer`] (the same for
//! answers in one piece), [`output`] (text kept for counting), [`tokens`] (counting), [`failure`]
//! (what upstreams say went wrong), [`anthropic`] (all of it once more for the Anthropic API). Below them: `scan` finds strings and brackets 64 bytes at a
//! time, `json` walks one level of JSON on it, `chunk` and `usage` know the shapes of providers.
//!
//! To act upon one more member of a request, add a variant to `request::key::Field`, name it in the list
//! of its endpoint, read it in [`request::outline`], and add it to the comparison with `serde_json`
//! in the tests. To read one more provider's usage, extend `usage::Usage`,
//! `usage::plain` and the table of cases.
//!
//! ```
//! use bytes::Bytes;
//! use sluice_domain::route::Endpoint;
//! use sluice_protocol::request::{Changes, outline, rewrite};
//!
//! let body = Bytes::from_static(br#"{"model":"fast","stream":true,"top_k":5}"#);
//! let outline = outline(&body, Endpoint::ChatCompletions)?;
//! assert!(outline.streams);
//! let changes = Changes { model: Some("gpt-4o-mini"), ask_for_usage: true, ..Changes::default() };
//! assert_eq!(
//!     rewrite(&body, &outline, &changes),
//!     &br#"{"stream_options":{"include_usage":true},"model":"gpt-4o-mini","stream":true,"top_k":5}"#[..],
//! );
//! # Ok::<(), sluice_protocol::request::OutlineError>(())
//! ```

mod scan;

mod json;

pub mod request;

pub mod sse;

mod usage;

mod chunk;

pub mod normal;

pub mod stream;

pub mod answer;

pub mod output;

pub mod tokens;

pub mod failure;

pub mod anthropic;
