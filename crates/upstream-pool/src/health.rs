//! What is known of upstreams and their keys from the requests that they had, and who may be asked.
//!
//! The judges are plain state machines that know no clock: [`breaker`], [`cooldown`], [`budget`],
//! [`throttle`], [`limits`], [`latency`], [`evidence`], [`probing`]. [`key`] and [`upstream`] put them behind one
//! short lock each, with a flag beside it so that what is well is not locked to be asked. A [`pass`]
//! is the leave of one attempt; the [`registry`] keeps all of it while routing tables come and go.

pub(crate) mod breaker;

mod window;

pub(crate) mod evidence;

mod cooldown;

mod budget;

mod throttle;

mod limits;

mod latency;

mod meter;

pub(crate) mod probing;

mod probe_leave;

pub(crate) mod shared;

mod sync;

pub(crate) mod key;

pub(crate) mod upstream;

pub(crate) mod pass;

pub(crate) mod registry;

use std::sync::OnceLock;
use std::time::Duration;

use sluice_domain::id::TenantId;
use sluice_domain::pool::SkipReason;

use self::breaker::State;
use self::evidence::Source;
use self::shared::Shared;
use crate::error::ErrorClass;

pub use self::meter::UpstreamCounts;
pub(crate) use self::shared::unit;

/// What is judged of a request.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    tenant: TenantId,
    body: &'a [u8],
    /// The bound of its tokens.
    tokens: u64,
    /// A body is hashed only when something has failed.
    source: OnceLock<Source>,
}

impl<'a> Asking<'a> {
    pub(crate) const fn new(tenant: TenantId, body: &'a [u8], tokens: u64) -> Self {
        Self {
            tenant,
            body,
            tokens,
            source: OnceLock::new(),
        }
    }

    pub(crate) const fn tokens(&self) -> u64 {
        self.tokens
    }

    fn source(&self, shared: &Shared) -> Source {
        *self
            .source
            .get_or_init(|| shared.source(self.tenant, self.body))
    }
}

/// Why an attempt is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Approach {
    /// It is the first of its request at this upstream.
    First,
    /// The request was at this upstream before.
    Again,
    /// It is the first, and nothing else is left: it passes breakers whose time is not over.
    Forced,
}

/// What stands against asking an upstream or a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) reason: SkipReason,
    /// When it is over; `None` where nobody knows.
    pub(crate) wait: Option<Duration>,
}

impl Obstacle {
    const fn new(reason: SkipReason, wait: Option<Duration>) -> Self {
        Self { reason, wait }
    }

    const fn breaker(wait: Option<Duration>) -> Self {
        Self::new(SkipReason::BreakerOpen, wait)
    }

    fn is_passed_by(self, approach: Approach) -> bool {
        approach == Approach::Forced && self.reason == SkipReason::BreakerOpen
    }
}

/// How an upstream or a key stands.
#[derive(Debug, Clone, Copy)]
struct Standing {
    breaker: State,
    breaker_wait: Option<Duration>,
    failures: u32,
    cooldown: Option<Duration>,
    quarantine: Option<ErrorClass>,
    last_error: Option<ErrorClass>,
}

#[cfg(all(test, sluice_loom))]
mod loom_tests;
