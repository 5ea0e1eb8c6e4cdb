//! Whose requests failed: a request that breaks every upstream must not look like a broken upstream.

use std::time::Duration;

use sluice_domain::id::TenantId;
use smallvec::SmallVec;

/// Most requests that are held back at one upstream at a time; the one that is free first makes room.
const MAX_HELD_BACK: usize = 64;
/// How long a request is held back that may not be at fault.
const UNSURE: Duration = Duration::from_secs(1);
/// How long it is remembered that a request was held back.
const REMEMBERED: Duration = Duration::from_mins(1);

/// What tells requests apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Source {
    /// Who sent it.
    pub(crate) tenant: TenantId,
    /// A keyed hash of its body.
    pub(crate) body: u64,
}

/// From how many sources failures came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Evidence {
    /// There were none.
    #[default]
    None,
    /// All from one tenant with one body.
    One(Source),
    /// From two tenants, or with two bodies.
    Several,
}

impl Evidence {
    /// Adds a failure.
    #[must_use]
    pub(crate) fn with(self, source: Source) -> Self {
        self.and(Self::One(source))
    }

    /// Puts the evidence of two times together.
    #[must_use]
    pub(crate) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, known) | (known, Self::None) => known,
            (Self::One(a), Self::One(b)) if a == b => self,
            _ => Self::Several,
        }
    }
}

/// Requests that failed again and again while nothing speaks against the upstream itself.
#[derive(Debug, Default)]
pub(crate) struct HeldBack {
    requests: SmallVec<[HeldRequest; 1]>,
}

#[derive(Debug, Clone, Copy)]
struct HeldRequest {
    source: Source,
    since: Duration,
    until: Duration,
}

impl HeldBack {
    /// Holds a request back, and returns for how long.
    ///
    /// Where it is not sure that the request is at fault and not the upstream, that is short, unless
    /// others have been served since it was held back before.
    pub(crate) fn add(
        &mut self,
        source: Source,
        is_sure: bool,
        last_success: Option<Duration>,
        long: Duration,
        now: Duration,
    ) -> Duration {
        self.expire(now);
        let known = self.requests.iter().position(|held| held.source == source);
        let before = known.map(|index| self.requests.swap_remove(index));
        let is_sure = is_sure || before.is_some_and(|held| last_success > Some(held.since));
        let pause = if is_sure { long } else { UNSURE.min(long) };
        if self.requests.len() >= MAX_HELD_BACK {
            let first = self
                .requests
                .iter()
                .enumerate()
                .min_by_key(|(_, held)| held.until);
            if let Some((index, _)) = first {
                self.requests.swap_remove(index);
            }
        }
        self.requests.push(HeldRequest {
            source,
            since: now,
            until: now.saturating_add(pause),
        });
        pause
    }

    /// Returns whether nothing is known of any request.
    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Forgets the requests whose time has been over for a while.
    pub(crate) fn expire(&mut self, now: Duration) {
        self.requests
            .retain(|held| held.until.saturating_add(REMEMBERED) > now);
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
    }

    /// Returns how long a request is still held back; `None` when it is not.
    pub(crate) fn wait(&self, source: Source, now: Duration) -> Option<Duration> {
        let held = self.requests.iter().find(|held| held.source == source)?;
        held.until.checked_sub(now).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use sluice_domain::id::uuid_v7;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    pub(crate) fn source(tenant: u8, body: u64) -> Source {
        Source {
            tenant: TenantId::from_uuid(uuid_v7(1, [tenant; 10])),
            body,
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn two_tenants_or_two_bodies_are_several_sources() {
        let one = Evidence::None.with(source(1, 1));
        assert_eq!(one.with(source(1, 1)), one);
        assert_eq!(one.with(source(2, 1)), Evidence::Several);
        assert_eq!(one.with(source(1, 2)), Evidence::Several);
        assert_eq!(Evidence::Several.and(Evidence::None), Evidence::Several);
    }

    #[test]
    fn a_request_is_held_back_until_its_time_and_no_other() {
        let mut held = HeldBack::default();
        assert_eq!(held.add(source(1, 1), true, None, LONG, at(0)), LONG);
        assert_eq!(held.wait(source(1, 1), at(59)), Some(at(1)));
        assert_eq!(held.wait(source(1, 1), at(60)), None);
        assert_eq!(held.wait(source(1, 2), at(1)), None);
        assert_eq!(held.wait(source(2, 1), at(1)), None);
        held.expire(at(200));
        assert!(held.is_empty());
    }

    #[test]
    fn a_request_that_may_not_be_at_fault_is_held_back_shortly_until_others_succeed() {
        let mut held = HeldBack::default();
        let one = source(1, 1);
        assert_eq!(held.add(one, false, Some(at(5)), LONG, at(10)), UNSURE);
        assert_eq!(held.add(one, false, Some(at(5)), LONG, at(12)), UNSURE);
        assert_eq!(held.add(one, false, Some(at(13)), LONG, at(14)), LONG);
    }

    #[test]
    fn the_number_of_requests_held_back_is_bounded() {
        let mut held = HeldBack::default();
        for n in 0..=MAX_HELD_BACK as u64 {
            held.add(source(1, n), true, None, LONG, Duration::from_millis(n));
        }
        assert_eq!(held.requests.len(), MAX_HELD_BACK);
        assert_eq!(held.wait(source(1, 0), at(1)), None, "free first");
        assert!(held.wait(source(1, 1), at(1)).is_some());
    }
}
