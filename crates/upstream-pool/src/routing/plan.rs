//! The plan of a route: its tiers of weighted targets, and whose turn it is.

use std::sync::Arc;

use sluice_domain::bound::{BoundProfile, UNKNOWN_MODEL, profile_of};
use sluice_domain::id::{RouteId, UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{Selection, TargetUse};
use sluice_domain::route::{Protocol, Route, Target};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{ClientGone, ProviderKind};

use super::choice::{Tier, mix};
use super::upstream::{PreparedKey, PreparedUpstream};
use super::wheel::{Cursor, Wheel};
use crate::health::key::KeyHealth;
use crate::health::upstream::UpstreamHealth;

/// What may serve a requested model, in the order in which it is tried.
#[derive(Debug)]
pub struct RoutePlan {
    route_id: RouteId,
    created_at: UnixMillis,
    /// How a target is chosen inside a tier.
    pub(crate) selection: Selection,
    /// In the order of their levels; none of them is empty.
    tiers: Box<[Tier]>,
    /// The same for requests that are too long for the models of the others.
    longer_tiers: Box<[Tier]>,
    /// What bounds a request at every target; `None` when one takes the requested name.
    profile: Option<BoundProfile>,
    /// The same route with the targets of each protocol alone, where it has both; `None` for a
    /// protocol that only serves what is too long for the other one's models. They count turns for
    /// themselves and share the health of their upstreams.
    of_protocol: Option<[Option<Arc<Self>>; 2]>,
}

/// An upstream as routes use it: what was prepared, and its health.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) prepared: Arc<PreparedUpstream>,
    pub(crate) health: Arc<UpstreamHealth>,
    /// In the order of the prepared keys.
    pub(crate) keys: Box<[Arc<KeyHealth>]>,
}

impl Member {
    pub(super) fn new(prepared: PreparedUpstream, health: Arc<UpstreamHealth>) -> Self {
        Self {
            keys: prepared.keys.iter().map(|key| health.key(key.id)).collect(),
            prepared: Arc::new(prepared),
            health,
        }
    }
}

#[derive(Debug)]
pub(crate) struct PlannedTarget {
    pub(crate) member: Arc<Member>,
    /// `None` passes the requested name on, where the route is a pattern.
    pub(super) model: Option<Arc<str>>,
    /// Whose turn it is among the keys of the upstream. Each target counts for itself: were the
    /// cursor shared, two targets that alternate could each see only every other key.
    pub(super) keys: Cursor,
    /// Tells it from its siblings where the choice depends on who asks; the same on every instance.
    pub(super) mark: u64,
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
    /// Which attempt of the request it is, from 0.
    pub attempt: u32,
    /// Whether it takes `stream_options`, as far as is known.
    pub takes_stream_options: bool,
    /// Whether the body is rendered once more in the same attempt.
    pub is_repeated: bool,
}

/// One choice: a target and one of its upstream keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub(crate) upstream: &'a Arc<PreparedUpstream>,
    pub(crate) key: &'a PreparedKey,
    pub(crate) model: &'a Arc<str>,
    /// Which attempt of the request it is, from 0.
    pub(crate) attempt: u32,
}

impl<'a> Lane<'a> {
    pub(crate) fn info(&self) -> TargetInfo<'a> {
        TargetInfo {
            upstream_key_id: self.key.id,
            attempt: self.attempt,
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
        attempt: 0,
        takes_stream_options: true,
        is_repeated: false,
    }
}

impl PlannedTarget {
    /// Returns the name of the model at the upstream.
    pub(crate) fn model<'a>(&'a self, requested: &'a Arc<str>) -> &'a Arc<str> {
        self.model.as_ref().unwrap_or(requested)
    }
}

/// Returns what bounds a request at every target of a plan whose models are all named.
fn widest_profile<'a>(
    mut targets: impl Iterator<Item = &'a PlannedTarget>,
) -> Option<BoundProfile> {
    let first = profile_of(targets.next()?.model.as_deref()?);
    targets.try_fold(first, |widest, target| {
        Some(widest.widest(profile_of(target.model.as_deref()?)))
    })
}

impl RoutePlan {
    /// Returns whether one of the targets is at the upstream of this name.
    pub fn leads_to(&self, upstream: &str) -> bool {
        self.all_targets()
            .any(|target| *target.member.prepared.name == *upstream)
    }

    /// Returns what bounds a request for a model at every target that may serve it.
    pub fn bound_profile(&self, requested: &str) -> BoundProfile {
        self.profile.unwrap_or_else(|| {
            self.all_targets()
                .map(|target| profile_of(target.model.as_deref().unwrap_or(requested)))
                .reduce(BoundProfile::widest)
                .unwrap_or(UNKNOWN_MODEL)
        })
    }

    /// Sorts the usable targets of a route into tiers.
    pub(super) fn new(route: &Route, usable: Vec<(&Target, Arc<Member>)>) -> Self {
        let speaks = |protocol: Protocol| {
            let targets = usable.iter();
            targets
                .filter(move |(_, member)| member.prepared.kind.speaks(protocol))
                .cloned()
                .collect::<Vec<_>>()
        };
        let parts = [Protocol::OpenAi, Protocol::Anthropic].map(speaks);
        let of_protocol = parts.iter().all(|part| !part.is_empty()).then(|| {
            parts.map(|part| {
                let plan = Self::of_targets(route, part, None);
                plan.is_usable().then(|| Arc::new(plan))
            })
        });
        Self::of_targets(route, usable, of_protocol)
    }

    fn of_targets(
        route: &Route,
        mut usable: Vec<(&Target, Arc<Member>)>,
        of_protocol: Option<[Option<Arc<Self>>; 2]>,
    ) -> Self {
        usable.sort_by_key(|(target, _)| target.tier);
        // Random bits of the id, so that routes do not all begin with the same entry.
        let (high, low) = route.id.as_uuid().as_u64_pair();
        let mut seed = high ^ low;
        let requested: Option<Arc<str>> =
            (!route.model.ends_with('*')).then(|| Arc::from(route.model.as_str()));
        let (longer, usual): (Vec<_>, Vec<_>) = usable
            .into_iter()
            .partition(|(target, _)| target.serves == TargetUse::ContextLength);
        let tiers = plan_tiers(&usual, requested.as_ref(), &mut seed);
        let longer_tiers = plan_tiers(&longer, requested.as_ref(), &mut seed);
        let targets = tiers.iter().chain(&longer_tiers);
        Self {
            route_id: route.id,
            created_at: route.created_at,
            selection: route.selection,
            profile: widest_profile(targets.flat_map(|tier| &tier.targets)),
            tiers,
            longer_tiers,
            of_protocol,
        }
    }

    /// Returns the plan with the targets alone that speak a protocol; `None` when all speak another
    /// one. A route that nothing can serve stays one.
    #[must_use]
    pub fn speaking(self: Arc<Self>, protocol: Protocol) -> Option<Arc<Self>> {
        if let Some([open_ai, anthropic]) = &self.of_protocol
            && self.is_usable()
        {
            return match protocol {
                Protocol::OpenAi => open_ai.clone(),
                Protocol::Anthropic => anthropic.clone(),
            };
        }
        self.first_kind()
            .is_none_or(|kind| kind.speaks(protocol))
            .then_some(self)
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
        self.all_targets()
            .map(move |target| info(&target.member.prepared, target.model(requested_model)))
    }

    fn all_targets(&self) -> impl Iterator<Item = &PlannedTarget> {
        let tiers = self.tiers.iter().chain(&self.longer_tiers);
        tiers.flat_map(|tier| tier.targets.iter())
    }

    /// Returns when the route was made.
    pub fn created_at(&self) -> UnixMillis {
        self.created_at
    }

    /// Returns the kind of the provider that comes first; `None` when nothing can serve the route.
    pub fn first_kind(&self) -> Option<ProviderKind> {
        Some(self.tiers.first()?.targets.first()?.member.prepared.kind)
    }

    /// Returns the tiers for requests of a kind, in the order in which they are tried.
    pub(crate) fn tiers(&self, uses: TargetUse) -> &[Tier] {
        match uses {
            TargetUse::Any => &self.tiers,
            TargetUse::ContextLength => &self.longer_tiers,
        }
    }
}

fn plan_tiers(
    usable: &[(&Target, Arc<Member>)],
    requested: Option<&Arc<str>>,
    seed: &mut u64,
) -> Box<[Tier]> {
    let mut cursor = || {
        *seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
        Cursor::starting_at(*seed)
    };
    usable
        .chunk_by(|(a, _), (b, _)| a.tier == b.tier)
        .filter_map(|targets| {
            let wheel = Wheel::new(targets.iter().map(|(target, _)| target.weight))?;
            let targets = targets
                .iter()
                .map(|(target, member)| {
                    let model = target
                        .upstream_model
                        .as_deref()
                        .map_or(requested.cloned(), |m| Some(Arc::from(m)));
                    PlannedTarget {
                        mark: mark_of(member, model.as_deref()),
                        member: Arc::clone(member),
                        model,
                        keys: cursor(),
                    }
                })
                .collect();
            Some(Tier {
                targets,
                wheel,
                cursor: cursor(),
            })
        })
        .collect()
}

fn mark_of(member: &Member, model: Option<&str>) -> u64 {
    let (high, low) = member.prepared.id.as_uuid().as_u64_pair();
    let text = model.unwrap_or_default().bytes();
    text.fold(mix(high ^ mix(low)), |mark, byte| {
        mix(mark ^ u64::from(byte))
    })
}
