//! Support for the tests of all crates; a dev-dependency only.
//!
//! **For**: a provider that does what a script says ([`FakeUpstream`]), a client that shows the bytes
//! ([`HttpClient`]), a clock that stands still ([`ManualClock`]), domain values with valid defaults
//! ([`builders`]), programs under test ([`Program`]), a connection that
//! can be cut and disturbed ([`Link`]), servers that can be stopped ([`RedisServer`]), a file system that can be filled up ([`SmallDisk`]).
//!
//! **Never here**: anything that the product uses, and any knowledge of the product beside `domain`:
//! what is tested must not help to test itself.
//!
//! Modules in reading order: [`words`] (text whose tokens are known), [`upstream`], [`client`],
//! [`clock`], [`builders`], [`process`], [`link`], [`redis`], [`small_disk`], [`backends`].
//!
//! A helper that cannot go on fails the test at the place where it was called. Waits have a bound.
//!
//! To teach the fake upstream another habit of real servers, add a variant to [`Quirk`] and use it
//! where the answer is built; a way to break off is a method of [`Script`].
//!
//! ```
//! use std::time::Duration;
//!
//! use sluice_testkit::{FakeUpstream, HttpClient, Request, Script, words};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let upstream = FakeUpstream::start();
//! upstream.script(Script::new().words(20).cut_at(3));
//!
//! // Instead of a client of ours, the relay would stand here.
//! let mut request = words::chat_request("gpt-4o", 5);
//! request["stream"] = true.into();
//! let mut client = HttpClient::connect(upstream.address()).await.unwrap();
//! client.send(&Request::post("/v1/chat/completions", &request).key("sk-upstream")).await.unwrap();
//! assert_eq!(client.read_head().await.unwrap().status, 200);
//! let (events, error) = client.read_events().await;
//! assert_eq!(events.len(), 3);
//! assert!(error.is_some(), "the stream was cut");
//!
//! let served = upstream.wait_for_ends(1, Duration::from_secs(5)).await;
//! assert_eq!((served[0].input_tokens, served[0].output_tokens), (3 + 1 + 5 + 3, 2));
//! # });
//! ```

pub mod words;

pub mod upstream;

pub mod client;

pub mod clock;

pub mod builders;

pub mod process;

pub mod link;

pub mod redis;

pub mod small_disk;

pub mod backends;

mod fail;
mod stopwatch;
mod wire;

pub use backends::{faketime, postgres_url, redis_server, redis_url};
pub use client::{Closed, HttpClient, RawEvent, Request, Response, ResponseHead, call};
pub use clock::ManualClock;
pub use link::{Fault, Link};
pub use process::{FinishedProcess, Program, RunningProcess};
pub use redis::{RedisCluster, RedisServer};
pub use small_disk::{Ballast, SmallDisk};
pub use upstream::{
    AzureRefusal, ErrorShape, FakeUpstream, Gate, Quirk, Script, Served, ServedEnd,
};
pub use wire::Headers;
