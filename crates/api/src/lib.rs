//! HTTP surfaces, command line and the binary `sluice`.
//!
//! **For**: everything that meets people and programs: the relay for clients with a proxy key, the
//! operational endpoints, the command line, configuration; and the composition of the other rooms.
//!
//! **Never here**: SQL, choice of upstreams, wire shapes of providers, arithmetic of quotas.
//!
//! Modules in reading order: [`cli`] (commands), [`config`], [`data_folder`], [`serve`] (threads,
//! start and end), then private: `listen`, `connection` (how long a client may take), `server` (what every request passes), `router` (all
//! paths), `source_ip` (from where), `auth` (who calls), `windows` (window limits), `relay` (the way of a request: `read`, `in_flight`, `whole`,
//! `stream`, `refusal`), `models`, `health`, `database` (whether it
//! answers), `snapshot` (what is known of it on the disk), `feed` (changes take effect), `app` (what threads
//! share), `error`, `metrics`, `logging`, `ids`, `clock`.
//!
//! To add an endpoint: a handler in a module of its own, a line in `router`, a label in
//! `metrics::Surface`, a test in `tests/it`. To add an error: a line in `error::Code` and a row in
//! `docs/errors.md`.

pub mod cli;

pub mod config;

pub mod data_folder;

pub mod serve;

mod listen;

mod connection;

mod server;

mod router;

mod source_ip;

mod auth;

mod windows;

mod admin;

mod relay;

mod body;

mod models;

mod health;

mod database;

mod snapshot;

mod feed;

mod app;
mod attention;

mod error;

mod metrics;

mod logging;

mod ids;

mod clock;

mod terminal;
