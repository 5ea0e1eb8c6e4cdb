//! The plan of a route: its tiers of weighted targets, and whose turn it is.

use std::sync::Arc;

use sluice_domain::bound::{BoundProfile, UNKNOWN_MODEL, profile_of};
use sluice_domain::id::{RouteId, UpstreamId, UpstreamKeyId};
use sluice_domain::route::{Route, Target};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{ClientGone, ProviderKind};

use super::upstream::{PreparedKey, PreparedUpstream};
use super::wheel::{Cursor, Wheel};

/// What may serve a requested model, in the order in which it is tried.
#[derive(Debug)]
pub struct RoutePlan {
    route_id: RouteId,
    created_at: UnixMillis,
    /// In the order of their levels; none of them is empty.
    tiers: Box<[Tier]>,
    /// What bounds a request at every target; `None` when one takes the requested name.
    profile: Option<BoundProfile>,
}

#[derive(Debug)]
struct Tier {
    targets: Box<[PlannedTarget]>,
    wheel: Wheel,
    cursor: Cursor,
}

#[derive(Debug)]
struct PlannedTarget {
    upstream: Arc<PreparedUpstream>,
    /// `None` passes the requested name on, where the route is a pattern.
    model: Option<Arc<str>>,
    /// Whose turn it is among the keys of the upstream. Each target counts for itself: were the
    /// cursor shared, two targets that alternate could each see only every other key.
    keys: Cursor,
}

/// A target as a caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetInfo<'a> {
    /// The upstream.
    pub upstream_id: UpstreamId,
    /// Its name.
    pub upstream_name: &'a str,
    /// The upstream key that was chosen; `None` where the upstream has none, and before the choice.
    pub upstream_key_id: Option<UpstreamKeyId>,
    /// Its protocol.
    pub kind: ProviderKind,
    /// The name of the model there.
    pub upstream_model: &'a Arc<str>,
    /// What becomes of a stream there when its client has left.
    pub client_gone: ClientGone,
}

/// One choice: a target and one of its upstream keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub(crate) upstream: &'a Arc<PreparedUpstream>,
    pub(crate) key: &'a PreparedKey,
    pub(crate) model: &'a Arc<str>,
}

impl<'a> Lane<'a> {
    pub(crate) fn info(&self) -> TargetInfo<'a> {
        TargetInfo {
            upstream_key_id: self.key.id,
            ..info(self.upstream, self.model)
        }
    }
}

fn info<'a>(upstream: &'a PreparedUpstream, model: &'a Arc<str>) -> TargetInfo<'a> {
    TargetInfo {
        upstream_id: upstream.id,
        upstream_name: &upstream.name,
        upstream_key_id: None,
        kind: upstream.kind,
        upstream_model: model,
        client_gone: upstream.client_gone,
    }
}

/// Returns what bounds a request at every target of a plan whose models are all named.
fn widest_profile(tiers: &[Tier]) -> Option<BoundProfile> {
    let mut targets = tiers.iter().flat_map(|tier| &tier.targets);
    let first = profile_of(targets.next()?.model.as_deref()?);
    targets.try_fold(first, |widest, target| {
        Some(widest.widest(profile_of(target.model.as_deref()?)))
    })
}

impl RoutePlan {
    /// Returns what bounds a request for a model at every target that may serve it.
    pub fn bound_profile(&self, requested: &str) -> BoundProfile {
        self.profile.unwrap_or_else(|| {
            let targets = self.tiers.iter().flat_map(|tier| &tier.targets);
            targets
                .map(|target| profile_of(target.model.as_deref().unwrap_or(requested)))
                .reduce(BoundProfile::widest)
                .unwrap_or(UNKNOWN_MODEL)
        })
    }

    /// Sorts the usable targets of a route into tiers.
    pub(super) fn new(route: &Route, mut usable: Vec<(&Target, Arc<PreparedUpstream>)>) -> Self {
        usable.sort_by_key(|(target, _)| target.tier);
        // Random bits of the id, so that routes do not all begin with the same entry.
        let (high, low) = route.id.as_uuid().as_u64_pair();
        let mut seed = high ^ low;
        let mut cursor = || {
            seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
            Cursor::starting_at(seed)
        };
        let requested: Option<Arc<str>> =
            (!route.model.ends_with('*')).then(|| Arc::from(route.model.as_str()));
        let tiers = usable
            .chunk_by(|(a, _), (b, _)| a.tier == b.tier)
            .filter_map(|targets| {
                let wheel = Wheel::new(targets.iter().map(|(target, _)| target.weight))?;
                let targets = targets
                    .iter()
                    .map(|(target, upstream)| PlannedTarget {
                        upstream: Arc::clone(upstream),
                        model: target
                            .upstream_model
                            .as_deref()
                            .map_or(requested.clone(), |m| Some(Arc::from(m))),
                        keys: cursor(),
                    })
                    .collect();
                Some(Tier {
                    targets,
                    wheel,
                    cursor: cursor(),
                })
            })
            .collect::<Box<[Tier]>>();
        Self {
            route_id: route.id,
            created_at: route.created_at,
            profile: widest_profile(&tiers),
            tiers,
        }
    }

    /// Returns the route.
    pub fn route_id(&self) -> RouteId {
        self.route_id
    }

    /// Returns whether anything can serve the route at all.
    pub fn is_usable(&self) -> bool {
        !self.tiers.is_empty()
    }

    /// Returns every target that the plan may reach, in the order of the tiers.
    pub fn targets<'a>(
        &'a self,
        requested_model: &'a Arc<str>,
    ) -> impl Iterator<Item = TargetInfo<'a>> {
        self.tiers
            .iter()
            .flat_map(|tier| tier.targets.iter())
            .map(move |target| {
                info(
                    &target.upstream,
                    target.model.as_ref().unwrap_or(requested_model),
                )
            })
    }

    /// Returns when the route was made.
    pub fn created_at(&self) -> UnixMillis {
        self.created_at
    }

    /// Returns the kind of the provider that comes first; `None` when nothing can serve the route.
    pub fn first_kind(&self) -> Option<ProviderKind> {
        Some(self.tiers.first()?.targets.first()?.upstream.kind)
    }

    /// Chooses the target and the upstream key of the next attempt in the first tier.
    ///
    /// The cost does not depend on the number of keys, and nothing is locked.
    pub(crate) fn pick<'a>(&'a self, requested_model: &'a Arc<str>) -> Option<Lane<'a>> {
        let tier = self.tiers.first()?;
        let target = tier.targets.get(tier.wheel.next(&tier.cursor))?;
        let upstream = &target.upstream;
        let key = upstream.keys.get(upstream.wheel.next(&target.keys))?;
        Some(Lane {
            upstream,
            key,
            model: target.model.as_ref().unwrap_or(requested_model),
        })
    }
}
