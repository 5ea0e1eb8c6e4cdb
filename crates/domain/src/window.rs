//! Window limits: how much may happen in the last second, the last minute, or at once.
//!
//! A [`WindowDecision`] asks one [`WindowGroup`] of counters at once, all or nothing. What it took
//! is held by a [`WindowTicket`], which gives back what can be given back exactly once. The rule
//! itself is [`SlidingWindow`], which knows no clock: `now` is a parameter.

mod ip_block;
mod sliding;
mod ticket;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::id::{ProxyKeyId, TenantId, UserId};
use crate::words;

pub use self::ip_block::IpBlock;
pub use self::sliding::{CounterTime, SlidingWindow, WindowShape};
pub use self::ticket::{TicketEnd, WindowTicket};

/// The most that a limit can be: counters are numbers of 53 bits where they are kept in Redis.
pub const LARGEST_LIMIT: u64 = 1 << 53;

/// What a window limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WindowKind {
    /// Requests in a second.
    Rps,
    /// Requests in a minute.
    Rpm,
    /// Tokens in a minute, as estimated when a request is admitted and corrected when it ends.
    Tpm,
    /// Requests at once.
    Concurrency,
}

words!(WindowKind, "rps, rpm, tpm, concurrency", {
    WindowKind::Rps => "rps",
    WindowKind::Rpm => "rpm",
    WindowKind::Tpm => "tpm",
    WindowKind::Concurrency => "concurrency",
});

impl WindowKind {
    /// Every kind, in the order in which surfaces show them.
    pub const ALL: [Self; 4] = [Self::Rps, Self::Rpm, Self::Tpm, Self::Concurrency];

    /// Returns how time is cut for this kind; `None` for what is not counted over time.
    pub const fn shape(self) -> Option<WindowShape> {
        match self {
            Self::Rps => Some(WindowShape::SECOND),
            Self::Rpm | Self::Tpm => Some(WindowShape::MINUTE),
            Self::Concurrency => None,
        }
    }
}

/// One limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WindowLimit {
    most: u64,
    /// Whether it only counts and reports, and refuses nothing.
    pub dry_run: bool,
}

/// A limit that no counter can keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a window limit is a whole number from 1 to 9007199254740992")]
pub struct InvalidWindowLimit;

impl WindowLimit {
    /// Builds a limit that refuses what is above it.
    ///
    /// # Errors
    /// [`InvalidWindowLimit`] when `most` is zero or above [`LARGEST_LIMIT`].
    pub const fn new(most: u64) -> Result<Self, InvalidWindowLimit> {
        if most == 0 || most > LARGEST_LIMIT {
            return Err(InvalidWindowLimit);
        }
        Ok(Self {
            most,
            dry_run: false,
        })
    }

    /// Returns the same limit, which only counts and reports.
    #[must_use]
    pub const fn dry_run(self) -> Self {
        Self {
            dry_run: true,
            ..self
        }
    }

    /// Returns the largest amount that is admitted in one window.
    pub const fn most(self) -> u64 {
        self.most
    }
}

/// The limits of one subject, by kind; `None` is without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowLimits {
    /// Requests in a second.
    pub rps: Option<WindowLimit>,
    /// Requests in a minute.
    pub rpm: Option<WindowLimit>,
    /// Tokens in a minute.
    pub tpm: Option<WindowLimit>,
    /// Requests at once.
    pub concurrency: Option<WindowLimit>,
}

impl WindowLimits {
    /// Returns the limit of a kind.
    pub const fn of(&self, kind: WindowKind) -> Option<WindowLimit> {
        match kind {
            WindowKind::Rps => self.rps,
            WindowKind::Rpm => self.rpm,
            WindowKind::Tpm => self.tpm,
            WindowKind::Concurrency => self.concurrency,
        }
    }

    /// Sets or removes the limit of a kind.
    pub const fn set(&mut self, kind: WindowKind, limit: Option<WindowLimit>) {
        match kind {
            WindowKind::Rps => self.rps = limit,
            WindowKind::Rpm => self.rpm = limit,
            WindowKind::Tpm => self.tpm = limit,
            WindowKind::Concurrency => self.concurrency = limit,
        }
    }

    /// Returns whether nothing is limited.
    pub const fn is_empty(&self) -> bool {
        self.rps.is_none() && self.rpm.is_none() && self.tpm.is_none() && self.concurrency.is_none()
    }

    /// Adds what one request asks of these limits to a decision.
    ///
    /// # Units
    /// `tokens` is the estimate of the tokens that the request takes.
    pub fn ask(&self, subject: &WindowSubject, tokens: u64, asks: &mut Vec<WindowAsk>) {
        for kind in WindowKind::ALL {
            if let Some(limit) = self.of(kind) {
                asks.push(WindowAsk {
                    key: WindowKey {
                        subject: subject.clone(),
                        kind,
                    },
                    limit,
                    amount: if kind == WindowKind::Tpm { tokens } else { 1 },
                });
            }
        }
    }
}

/// Whose requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WindowScope {
    /// An address that calls, before anything is known of the caller.
    SourceIp,
    /// A proxy key.
    ProxyKey,
    /// A proxy key, where it asks for one model.
    ProxyKeyModel,
    /// A user, with all of its keys.
    User,
    /// A tenant, with all of its users.
    Tenant,
    /// All that one instance serves.
    Instance,
}

words!(WindowScope, "source_ip, proxy_key, proxy_key_model, user, tenant, instance", {
    WindowScope::SourceIp => "source_ip",
    WindowScope::ProxyKey => "proxy_key",
    WindowScope::ProxyKeyModel => "proxy_key_model",
    WindowScope::User => "user",
    WindowScope::Tenant => "tenant",
    WindowScope::Instance => "instance",
});

/// One of those whose requests are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WindowSubject {
    /// A block of addresses.
    SourceIp(IpBlock),
    /// A proxy key.
    ProxyKey(ProxyKeyId),
    /// A proxy key, where it asks for this model.
    ProxyKeyModel(ProxyKeyId, Arc<str>),
    /// A user.
    User(UserId),
    /// A tenant.
    Tenant(TenantId),
    /// This instance.
    Instance,
}

impl WindowSubject {
    /// Returns what kind of subject it is.
    pub const fn scope(&self) -> WindowScope {
        match self {
            Self::SourceIp(_) => WindowScope::SourceIp,
            Self::ProxyKey(_) => WindowScope::ProxyKey,
            Self::ProxyKeyModel(..) => WindowScope::ProxyKeyModel,
            Self::User(_) => WindowScope::User,
            Self::Tenant(_) => WindowScope::Tenant,
            Self::Instance => WindowScope::Instance,
        }
    }
}

/// One counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WindowKey {
    /// Whose requests it counts.
    pub subject: WindowSubject,
    /// What it counts of them.
    pub kind: WindowKind,
}

/// The counters that one decision can ask together: they lie on one node of a Redis Cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WindowGroup {
    /// Those of a block of addresses, asked before authentication.
    Ip(IpBlock),
    /// Those of a tenant, its users and their keys.
    Tenant(TenantId),
    /// Those of this instance, which are always counted in process.
    Instance,
}

/// What a request asks of one counter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowAsk {
    /// The counter.
    pub key: WindowKey,
    /// Its limit as it is set now.
    pub limit: WindowLimit,
    /// How much is asked: a number of tokens for [`WindowKind::Tpm`], otherwise 1. What is larger
    /// than the limit is taken to be the limit, for it would never pass.
    pub amount: u64,
}

/// What a request asks of one group of counters, all or nothing.
///
/// No counter may occur twice. Every subject must belong to the group: for
/// [`WindowGroup::Tenant`] that is the caller's to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowDecision<'a> {
    /// The group.
    pub group: WindowGroup,
    /// What is asked of its counters.
    pub asks: &'a [WindowAsk],
}

/// How a counter stands after a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowStanding {
    /// The largest amount that is admitted in one window.
    pub most: u64,
    /// What counts against it now; includes what this decision took, and may exceed `most` by what
    /// a correction added or a dry run let pass. Where only a share of the limit is to be had, the
    /// rest counts as used.
    pub used: u64,
    /// How long it takes until nothing counts any more; zero for [`WindowKind::Concurrency`].
    pub resets_in: Duration,
    /// Whether the amount asked for did not fit. In an admitted decision that is a dry run.
    pub is_over: bool,
}

impl WindowStanding {
    /// Returns what could still be admitted.
    pub const fn remaining(&self) -> u64 {
        self.most.saturating_sub(self.used)
    }
}

/// A decision that found no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowRefusal {
    /// Which ask is to blame: the one that takes longest to fit.
    pub which: usize,
    /// The counters in the order of the asks; nothing was taken from them.
    pub standings: Vec<WindowStanding>,
    /// How long it takes until the same decision would fit, if nobody else asks.
    pub retry_after: Duration,
}

/// What came of a decision.
#[derive(Debug)]
pub enum WindowAnswer {
    /// There was room, and it is taken.
    Admitted {
        /// Gives back what can be given back.
        ticket: WindowTicket,
        /// The counters in the order of the asks.
        standings: Vec<WindowStanding>,
    },
    /// There was none, and nothing is taken.
    Refused(WindowRefusal),
}

/// How many instances serve, and which of them this one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstanceRank {
    /// How many there are.
    pub instances: NonZeroU32,
    /// How many of them come before this one in the order of their ids.
    pub rank: u32,
}

impl InstanceRank {
    /// The only instance.
    pub const ALONE: Self = Self {
        instances: NonZeroU32::MIN,
        rank: 0,
    };

    /// Returns the part of a limit that this instance may admit without asking the others.
    ///
    /// The parts of all instances together are the limit; where it is smaller than their number,
    /// some parts are zero.
    pub fn share(self, most: u64) -> u64 {
        let instances = u64::from(self.instances.get());
        let extra = u64::from(u64::from(self.rank) < most % instances);
        most / instances + extra
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_instances_are_the_limit() {
        for instances in 1..=12_u32 {
            for most in 0..100 {
                let shares = (0..instances).map(|rank| {
                    InstanceRank {
                        instances: NonZeroU32::new(instances).unwrap(),
                        rank,
                    }
                    .share(most)
                });
                assert_eq!(shares.sum::<u64>(), most, "{instances} instances");
            }
        }
    }

    #[test]
    fn a_share_may_be_nothing() {
        let last = InstanceRank {
            instances: NonZeroU32::new(10).unwrap(),
            rank: 9,
        };
        assert_eq!(last.share(5), 0);
    }

    #[test]
    fn a_limit_fits_53_bits() {
        assert_eq!(WindowLimit::new(0), Err(InvalidWindowLimit));
        assert!(WindowLimit::new(LARGEST_LIMIT).is_ok());
        assert_eq!(WindowLimit::new(LARGEST_LIMIT + 1), Err(InvalidWindowLimit));
    }

    #[test]
    fn only_set_limits_are_asked() {
        let limits = WindowLimits {
            rpm: WindowLimit::new(10).ok(),
            tpm: WindowLimit::new(1_000).ok(),
            ..WindowLimits::default()
        };
        let mut asks = Vec::new();
        limits.ask(&WindowSubject::Instance, 70, &mut asks);
        let asked: Vec<_> = asks.iter().map(|ask| (ask.key.kind, ask.amount)).collect();
        assert_eq!(asked, [(WindowKind::Rpm, 1), (WindowKind::Tpm, 70)]);
    }
}
