//! What may serve a request: an immutable snapshot of upstreams, keys and routes.
//!
//! A table is built off the relay path whenever configuration changed, put into an `Arc`, and
//! replaced as a whole; requests in flight keep the plan they have.

pub(crate) mod upstream;

mod azure;

mod index;

pub(crate) mod plan;

pub(crate) mod choice;

mod wheel;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use secrecy::SecretString;
use sluice_domain::id::{RouteId, TenantId, UpstreamId};
use sluice_domain::route::Route;
use sluice_domain::tenant::EntityState;
use sluice_domain::upstream::{Upstream, UpstreamKey};

pub(crate) use self::plan::Lane;
pub use self::plan::{RoutePlan, TargetInfo};

use self::index::ScopeIndex;
use self::plan::Member;
use self::upstream::PreparedUpstream;
use crate::health::registry::HealthRegistry;

/// Everything a [`RoutingTable`] is built from, as it is stored.
#[derive(Debug, Default)]
pub struct RoutingInput {
    /// The upstreams, in any state.
    pub upstreams: Vec<Upstream>,
    /// The upstream keys, in any state, with their opened secrets.
    pub keys: Vec<(UpstreamKey, SecretString)>,
    /// The routes, in any state.
    pub routes: Vec<Route>,
}

/// A part of the configuration that is left out because it cannot be used.
///
/// An upstream is named once, however many routes lead to it. None of the texts holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RoutingProblem {
    /// A route leads to an upstream that does not exist.
    #[error("route `{model}` leads to {upstream_id}, which does not exist")]
    UnknownUpstream {
        /// The route.
        route_id: RouteId,
        /// Its model or pattern.
        model: String,
        /// What it leads to.
        upstream_id: UpstreamId,
    },
    /// A route leads to an upstream that is switched off or deleted.
    #[error("route `{model}` leads to upstream `{upstream}`, which is {state}")]
    InactiveUpstream {
        /// The route.
        route_id: RouteId,
        /// Its model or pattern.
        model: String,
        /// The name of the upstream.
        upstream: String,
        /// Its state.
        state: EntityState,
    },
    /// A route leads to an upstream that belongs to another tenant.
    #[error("route `{model}` leads to upstream `{upstream}`, which belongs to another tenant")]
    ForeignUpstream {
        /// The route.
        route_id: RouteId,
        /// Its model or pattern.
        model: String,
        /// The name of the upstream.
        upstream: String,
    },
    /// A route has no target that can be used; requests for its model fail.
    #[error("route `{model}` has no target that can be used")]
    NoUsableTarget {
        /// The route.
        route_id: RouteId,
        /// Its model or pattern.
        model: String,
    },
    /// Two active routes of one scope have the same model; the one made first is used.
    #[error("there is more than one active route for `{model}`; the oldest is used")]
    DuplicateRoute {
        /// The route that is not used.
        route_id: RouteId,
        /// Its model or pattern.
        model: String,
    },
    /// An upstream has no base URL.
    #[error("upstream `{upstream}` has no base URL")]
    NoBaseUrl {
        /// The name of the upstream.
        upstream: String,
    },
    /// The base URL of an upstream cannot be put into a request.
    #[error("the base URL of upstream `{upstream}` cannot be used in a request")]
    UnusableBaseUrl {
        /// The name of the upstream.
        upstream: String,
    },
    /// An upstream needs a key and has none that can be used.
    #[error("upstream `{upstream}` has no usable key")]
    NoUsableKey {
        /// The name of the upstream.
        upstream: String,
    },
    /// A secret holds characters that cannot stand in a header.
    #[error(
        "key `{key}` of upstream `{upstream}` is empty or holds white space or other characters that cannot stand in a header"
    )]
    UnusableSecret {
        /// The name of the upstream.
        upstream: String,
        /// The name of the upstream key.
        key: String,
    },
}

/// One line of the list of models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    /// What a client asks for.
    pub id: Arc<str>,
    /// When its route was made.
    ///
    /// # Units
    /// Seconds since the Unix epoch.
    pub created: i64,
    /// The kind of the provider that serves it first.
    pub owned_by: &'static str,
}

/// Finds the plan for a requested model.
#[derive(Debug, Default)]
pub struct RoutingTable {
    shared: ScopeIndex,
    by_tenant: HashMap<TenantId, ScopeIndex, RandomState>,
    /// The upstreams that are probed, whether a route leads to them or not.
    probed: Vec<Arc<Member>>,
}

impl RoutingTable {
    /// Builds a table; what cannot be used is left out and reported.
    ///
    /// A route that lost all its targets stays and is answered with a failure rather than with a
    /// route of a lower rank, which could lead to a provider that nobody chose for it.
    ///
    /// What `health` knows of upstreams and keys that are still the same goes on; what is gone is
    /// forgotten.
    pub fn build(input: RoutingInput, health: &HealthRegistry) -> (Self, Vec<RoutingProblem>) {
        let RoutingInput {
            upstreams,
            keys,
            mut routes,
        } = input;
        let mut problems = Vec::new();
        let upstreams = prepare_upstreams(upstreams, keys, health, &mut problems);

        let mut table = Self {
            probed: upstreams
                .values()
                .filter_map(|known| known.member.as_ref())
                .filter(|member| member.prepared.models.is_some())
                .map(Arc::clone)
                .collect(),
            ..Self::default()
        };
        routes.retain(|route| route.state == EntityState::Active);
        routes.sort_by_key(|route| (route.created_at, route.id));
        let mut seen = HashSet::with_capacity(routes.len());
        for route in &routes {
            if !seen.insert((route.tenant_id, route.model.as_str())) {
                problems.push(RoutingProblem::DuplicateRoute {
                    route_id: route.id,
                    model: route.model.clone(),
                });
                continue;
            }
            let plan = Arc::new(plan_route(route, &upstreams, &mut problems));
            let scope = match route.tenant_id {
                Some(tenant) => table.by_tenant.entry(tenant).or_default(),
                None => &mut table.shared,
            };
            scope.insert(&route.model, plan);
        }
        table.shared.finish();
        table.by_tenant.values_mut().for_each(ScopeIndex::finish);
        (table, problems)
    }

    /// Finds what may serve a model for a tenant.
    ///
    /// The tenant's own routes come before the shared ones; in each, an exact name before the
    /// longest pattern. The cost does not depend on the number of routes with exact names.
    pub fn find_route(&self, tenant: TenantId, model: &str) -> Option<Arc<RoutePlan>> {
        self.by_tenant
            .get(&tenant)
            .and_then(|own| own.find(model))
            .or_else(|| self.shared.find(model))
            .map(Arc::clone)
    }

    /// Returns the upstreams that are probed.
    pub(crate) fn probed(&self) -> &[Arc<Member>] {
        &self.probed
    }

    /// Returns the models that a tenant may ask for by name, sorted by name.
    ///
    /// Patterns are not listed, nor is a model without a usable target.
    pub fn models(&self, tenant: TenantId) -> Vec<ModelEntry> {
        let own = self.by_tenant.get(&tenant);
        let shared = self
            .shared
            .exact()
            .filter(|(model, _)| own.is_none_or(|own| own.find(model).is_none()));
        let mut entries: Vec<ModelEntry> = own
            .into_iter()
            .flat_map(ScopeIndex::exact)
            .chain(shared)
            .filter_map(|(model, plan)| {
                Some(ModelEntry {
                    id: Arc::clone(model),
                    created: plan.created_at().as_seconds(),
                    owned_by: plan.first_kind()?.as_str(),
                })
            })
            .collect();
        entries.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        entries
    }
}

/// What is known of an upstream when routes are planned.
pub(crate) struct KnownUpstream {
    name: String,
    state: EntityState,
    tenant_id: Option<TenantId>,
    /// `None` when it cannot be used.
    member: Option<Arc<Member>>,
}

fn prepare_upstreams(
    upstreams: Vec<Upstream>,
    keys: Vec<(UpstreamKey, SecretString)>,
    health: &HealthRegistry,
    problems: &mut Vec<RoutingProblem>,
) -> HashMap<UpstreamId, KnownUpstream> {
    let mut keys_of: HashMap<UpstreamId, Vec<(UpstreamKey, SecretString)>> = HashMap::new();
    for (key, secret) in keys {
        if key.state != EntityState::Deleted {
            keys_of
                .entry(key.upstream_id)
                .or_default()
                .push((key, secret));
        }
    }
    let known: HashMap<UpstreamId, KnownUpstream> = upstreams
        .into_iter()
        .map(|upstream| {
            let keys = keys_of.remove(&upstream.id).unwrap_or_default();
            let member = (upstream.state == EntityState::Active)
                .then(|| PreparedUpstream::new(&upstream, &keys, problems))
                .flatten()
                .map(|prepared| Arc::new(Member::new(prepared, health.adopt(&upstream, &keys))));
            let known = KnownUpstream {
                name: upstream.name.as_str().to_owned(),
                state: upstream.state,
                tenant_id: upstream.tenant_id,
                member,
            };
            (upstream.id, known)
        })
        .collect();
    let is_used = |(id, known): (&UpstreamId, &KnownUpstream)| known.member.as_ref().map(|_| *id);
    health.retain(&known.iter().filter_map(is_used).collect());
    known
}

fn plan_route(
    route: &Route,
    upstreams: &HashMap<UpstreamId, KnownUpstream>,
    problems: &mut Vec<RoutingProblem>,
) -> RoutePlan {
    let mut usable = Vec::with_capacity(route.targets.len());
    for target in &route.targets {
        let (route_id, model) = (route.id, route.model.clone());
        let upstream_id = target.upstream_id;
        match upstreams.get(&upstream_id) {
            None => {
                problems.push(RoutingProblem::UnknownUpstream {
                    route_id,
                    model,
                    upstream_id,
                });
            }
            Some(known) if known.tenant_id.is_some() && known.tenant_id != route.tenant_id => {
                let upstream = known.name.clone();
                problems.push(RoutingProblem::ForeignUpstream {
                    route_id,
                    model,
                    upstream,
                });
            }
            Some(known) if known.state != EntityState::Active => {
                let (upstream, state) = (known.name.clone(), known.state);
                problems.push(RoutingProblem::InactiveUpstream {
                    route_id,
                    model,
                    upstream,
                    state,
                });
            }
            Some(known) => {
                // An upstream that cannot be used was reported when it was prepared.
                usable.extend(
                    known
                        .member
                        .as_ref()
                        .map(|member| (target, Arc::clone(member))),
                );
            }
        }
    }
    if usable.is_empty() {
        problems.push(RoutingProblem::NoUsableTarget {
            route_id: route.id,
            model: route.model.clone(),
        });
    }
    RoutePlan::new(route, usable)
}

#[cfg(test)]
mod tests;
