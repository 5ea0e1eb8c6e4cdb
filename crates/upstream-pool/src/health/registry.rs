//! Keeps the health of upstreams while routing tables come and go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use sluice_domain::id::{UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{BreakerPolicy, UpstreamLimits};
use sluice_domain::tenant::EntityState;
use sluice_domain::upstream::{Upstream, UpstreamKey};

use super::breaker::State;
use super::key::KeyHealth;
use super::meter::UpstreamCounts;
use super::probing::ProbeFinding;
use super::shared::Shared;
use super::upstream::{KnownKey, Marks, UpstreamHealth, UpstreamPolicy};
use crate::error::ErrorClass;

/// The health of all upstreams of a process. Its clones are one.
#[derive(Debug, Clone)]
pub struct HealthRegistry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    upstreams: Mutex<HashMap<UpstreamId, KnownUpstream>>,
}

#[derive(Debug)]
struct KnownUpstream {
    health: Arc<UpstreamHealth>,
    marks: Marks,
}

impl Default for HealthRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl HealthRegistry {
    /// Makes an empty one: everything that comes is well.
    pub fn new() -> Self {
        let shared = Arc::new(Shared::new());
        let upstreams = Mutex::default();
        Self {
            inner: Arc::new(Inner { shared, upstreams }),
        }
    }

    /// Returns the health of an upstream as it is configured now, and of its active keys.
    ///
    /// One that leads to another place begins anew, and so does a key with another secret. Where
    /// anything else of a row changed an admin has acted: quarantines end and breakers close.
    pub(crate) fn adopt(
        &self,
        upstream: &Upstream,
        keys: &[(UpstreamKey, SecretString)],
    ) -> Arc<UpstreamHealth> {
        let shared = &self.inner.shared;
        let place = (
            upstream.kind,
            upstream.base_url.as_ref().map(ToString::to_string),
        );
        let marks = Marks {
            identity: shared.hash(&place),
            row: shared.hash(format!("{upstream:?}")),
        };
        let name: Arc<str> = Arc::from(upstream.name.as_str());
        let policy = policy_of(upstream);
        let mut upstreams = self.inner.upstreams.lock();
        let known = upstreams
            .get(&upstream.id)
            .filter(|known| known.marks.identity == marks.identity);
        let forgives = known.is_some_and(|known| known.marks != marks);
        let health = if let Some(known) = known {
            known.health.configure(&name, policy, forgives);
            Arc::clone(&known.health)
        } else {
            let shared = Arc::clone(shared);
            Arc::new(UpstreamHealth::new(upstream.id, shared, name, policy))
        };
        let adopted = KnownUpstream {
            health: Arc::clone(&health),
            marks,
        };
        upstreams.insert(upstream.id, adopted);
        drop(upstreams);
        health.adopt_keys(upstream, keys, forgives);
        health
    }

    /// Forgets upstreams that are gone.
    pub(crate) fn retain(&self, upstreams: &HashSet<UpstreamId>) {
        self.inner
            .upstreams
            .lock()
            .retain(|id, _| upstreams.contains(id));
    }

    /// Returns how all upstreams stand, sorted by name.
    pub fn report(&self) -> Vec<UpstreamReport> {
        let known: Vec<Arc<UpstreamHealth>> = {
            let upstreams = self.inner.upstreams.lock();
            upstreams
                .values()
                .map(|known| Arc::clone(&known.health))
                .collect()
        };
        let now = self.inner.shared.now();
        let mut reports: Vec<UpstreamReport> =
            known.iter().map(|health| health.report(now)).collect();
        reports.sort_by(|a, b| a.name.cmp(&b.name));
        reports
    }
}

fn policy_of(upstream: &Upstream) -> UpstreamPolicy {
    UpstreamPolicy {
        retry: upstream.retry,
        breaker: upstream.breaker,
        probe_every: upstream.probe_every,
        limits: upstream.limits,
        longest_call: upstream.deadlines.first_event,
    }
}

impl UpstreamHealth {
    fn adopt_keys(
        &self,
        upstream: &Upstream,
        keys: &[(UpstreamKey, SecretString)],
        forgives: bool,
    ) {
        let policy = policy_of(upstream);
        let mut adopted = HashMap::with_capacity(keys.len().max(1));
        let mut known = self.keys.lock();
        let active = keys
            .iter()
            .filter(|(key, _)| key.state == EntityState::Active);
        for (key, secret) in active {
            let marks = Marks {
                identity: self.shared.hash(secret.expose_secret()),
                row: self.shared.hash(format!("{key:?}")),
            };
            let name: Arc<str> = Arc::from(key.name.as_str());
            let limits = key.limits;
            let before = known
                .remove(&Some(key.id))
                .filter(|known| known.marks.identity == marks.identity);
            let health = match before {
                Some(before) => {
                    let forgives = forgives || before.marks != marks;
                    before
                        .health
                        .configure(&name, policy.breaker, limits, forgives);
                    before.health
                }
                None => Arc::new(KeyHealth::new(name, policy.breaker, limits)),
            };
            adopted.insert(Some(key.id), KnownKey { health, marks });
        }
        // An upstream without credentials has one key without any.
        let keyless = known.remove(&None).unwrap_or_else(|| KnownKey {
            health: Arc::new(KeyHealth::new(
                Arc::from(""),
                policy.breaker,
                UpstreamLimits::default(),
            )),
            marks: Marks {
                identity: 0,
                row: 0,
            },
        });
        if keys.is_empty() {
            keyless.health.configure(
                &Arc::from(""),
                policy.breaker,
                UpstreamLimits::default(),
                forgives,
            );
            adopted.insert(None, keyless);
        }
        *known = adopted;
    }

    /// Returns the health of a key; one that is not known is well.
    pub(crate) fn key(&self, id: Option<UpstreamKeyId>) -> Arc<KeyHealth> {
        let known = self.keys.lock();
        known.get(&id).map_or_else(
            || {
                Arc::new(KeyHealth::new(
                    Arc::from(""),
                    BreakerPolicy::default(),
                    UpstreamLimits::default(),
                ))
            },
            |known| Arc::clone(&known.health),
        )
    }

    fn report(&self, now: Duration) -> UpstreamReport {
        let standing = self.standing(now);
        let mut keys: Vec<KeyReport> = self
            .keys
            .lock()
            .iter()
            .map(|(id, known)| {
                let standing = known.health.standing(now);
                KeyReport {
                    id: *id,
                    name: known.health.name(),
                    breaker: BreakerReport::of(standing.breaker),
                    failures: standing.failures,
                    next_probe: standing.breaker_wait,
                    cooldown: standing.cooldown,
                    quarantine: standing.quarantine,
                    last_error: standing.last_error,
                }
            })
            .collect();
        keys.sort_by(|a, b| a.name.cmp(&b.name));
        UpstreamReport {
            id: self.id,
            name: self.name(),
            breaker: BreakerReport::of(standing.breaker),
            failures: standing.failures,
            next_probe: standing.breaker_wait,
            last_error: standing.last_error,
            probe: self.probe_found(),
            counts: self.meter.read(),
            keys,
        }
    }
}

/// What a breaker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerReport {
    /// Everything passes.
    Closed,
    /// Nothing passes.
    Open,
    /// One request is finding out whether it is over.
    HalfOpen,
}

impl BreakerReport {
    const fn of(state: State) -> Self {
        match state {
            State::Closed => Self::Closed,
            State::Open { .. } => Self::Open,
            State::HalfOpen { .. } => Self::HalfOpen,
        }
    }
}

/// How an upstream stands.
#[derive(Debug, Clone)]
pub struct UpstreamReport {
    /// The upstream.
    pub id: UpstreamId,
    /// Its name.
    pub name: Arc<str>,
    /// Its breaker.
    pub breaker: BreakerReport,
    /// Failures since the last success.
    pub failures: u32,
    /// How long until a request may find out whether an open breaker can close.
    pub next_probe: Option<Duration>,
    /// What went wrong last.
    pub last_error: Option<ErrorClass>,
    /// What the last probe found; `None` where there was none.
    pub probe: Option<ProbeFinding>,
    /// What happened there.
    pub counts: UpstreamCounts,
    /// Its active keys, sorted by name.
    pub keys: Vec<KeyReport>,
}

/// How an upstream key stands.
#[derive(Debug, Clone)]
pub struct KeyReport {
    /// The key; `None` where the upstream has none.
    pub id: Option<UpstreamKeyId>,
    /// Its name; empty where the upstream has none.
    pub name: Arc<str>,
    /// Its breaker.
    pub breaker: BreakerReport,
    /// Failures since the last success.
    pub failures: u32,
    /// How long until a request may find out whether an open breaker can close.
    pub next_probe: Option<Duration>,
    /// How long it still rests after a limit signal.
    pub cooldown: Option<Duration>,
    /// Why it is left alone until an admin acts.
    pub quarantine: Option<ErrorClass>,
    /// What went wrong last.
    pub last_error: Option<ErrorClass>,
}
