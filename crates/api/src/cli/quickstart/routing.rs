//! The upstream and the routes of a quickstart.

use std::time::Duration;

use anyhow::bail;
use secrecy::{ExposeSecret as _, SecretString};
use sluice_domain::id::{RouteId, UpstreamId};
use sluice_domain::route::{Route, Target, check_route_model};
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::upstream::{ProviderKind, Upstream};
use sluice_storage::secret::{SealBinding, Vault};
use tokio::time::timeout;

use super::provider::{Reason, Wanted, likely_chat_model};
use crate::cli::admin::Admin;
use crate::cli::{route, upstream};
use crate::ids::new_uuid;
use crate::terminal;

/// The pattern of every model.
const EVERY_MODEL: &str = "*";
/// The model of the demonstration.
const DEMO_MODEL: &str = "demo";
/// Name of the upstream key that a quickstart adds; a later one has a number behind it.
const KEY: &str = "quickstart";
/// Longest name that is made from a host, in characters; a number may follow.
const MAX_NAME_CHARS: usize = 80;
/// Most models of a provider that get a route of their own.
const MAX_NAMED: usize = 500;
/// How long an upstream that is kept may take to list its models.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the relay leads to now.
pub(super) struct Provider {
    pub(super) upstream: Upstream,
    /// A model for the examples.
    pub(super) model: Option<String>,
    /// What was changed about an earlier setup, for people.
    pub(super) changes: Vec<String>,
}

impl Wanted {
    /// Returns the name that the upstream gets.
    pub(super) fn name(&self) -> anyhow::Result<Name> {
        let text = match (self.kind, &self.base_url) {
            (ProviderKind::OpenAi, _) => "openai",
            (ProviderKind::Compatible, Some(url)) => url.authority(),
            _ => "demo",
        };
        numbered(text, &[])
    }

    fn is(&self, upstream: &Upstream) -> bool {
        upstream.kind == self.kind
            && upstream.base_url == self.base_url
            && upstream.tenant_id.is_none()
            && upstream.state == EntityState::Active
    }
}

/// Makes upstream, key and routes where they are missing or where others are asked for.
pub(super) async fn prepare(
    admin: &Admin<'_>,
    vault: &Vault,
    wanted: &mut Wanted,
) -> anyhow::Result<Provider> {
    let upstreams = admin.upstreams().await?;
    let mut routes = route::routes(admin).await?;
    routes.retain(|route| route.tenant_id.is_none());
    if let Some(current) = to_keep(wanted, &upstreams, &routes) {
        return Ok(keep(admin, vault, current, &routes, wanted).await);
    }

    let existing = upstreams.iter().find(|upstream| wanted.is(upstream));
    let has_key = match (existing, &wanted.key) {
        (Some(upstream), Some(key)) => find_key(admin, vault, upstream, key).await?,
        (Some(_), None) => true,
        (None, _) => false,
    };
    if existing.is_none() || !has_key {
        wanted.probe().await?;
    }
    let mut changes = Vec::new();
    let upstream = if let Some(upstream) = existing {
        upstream.clone()
    } else {
        let taken: Vec<_> = upstreams.iter().map(|u| u.name.as_str()).collect();
        let name = numbered(wanted.name()?.as_str(), &taken)?;
        let new = wanted.upstream(name, admin.now);
        upstream::settings::check(&new)?;
        admin.storage.create_upstream(&new).await?;
        new
    };
    if let Some(key) = wanted.key.as_ref().filter(|_| !has_key) {
        changes.extend(replace_key(admin, vault, &upstream, key).await?);
    }
    let patterns = match wanted.models.as_slice() {
        [] => every_model(wanted),
        models => models.to_vec(),
    };
    for pattern in patterns {
        changes.extend(lead(admin, pattern, &upstream, &upstreams, &routes).await?);
    }
    let model = match wanted.kind {
        ProviderKind::Demo => Some(DEMO_MODEL.to_owned()),
        _ => wanted.example_model(),
    };
    if model.is_some() {
        return Ok(Provider {
            upstream,
            model,
            changes,
        });
    }
    let mut provider = keep(admin, vault, &upstream, &routes, wanted).await;
    provider.changes = changes;
    Ok(provider)
}

/// Returns a pattern for every model, and the names that are known: only names are listed to clients,
/// and many of them let people choose from that list.
fn every_model(wanted: &Wanted) -> Vec<String> {
    let named: &[String] = match wanted.kind {
        ProviderKind::Demo => &[DEMO_MODEL.to_owned()],
        _ => wanted.listed(),
    };
    let named = named
        .iter()
        .filter(|model| !model.contains('*') && check_route_model(model).is_ok())
        .take(MAX_NAMED);
    std::iter::once(EVERY_MODEL.to_owned())
        .chain(named.cloned())
        .collect()
}

/// Returns the upstream of an earlier setup that this start leaves alone.
fn to_keep<'a>(
    wanted: &Wanted,
    upstreams: &'a [Upstream],
    routes: &[Route],
) -> Option<&'a Upstream> {
    if !wanted.models.is_empty() {
        return None;
    }
    let current = routes
        .iter()
        .find(|route| route.model == EVERY_MODEL)
        .or(routes.first())
        .and_then(|route| route.targets.first())
        .and_then(|target| upstreams.iter().find(|u| u.id == target.upstream_id))?;
    match wanted.reason {
        Reason::Nothing => Some(current),
        // A key that happens to be in the environment replaces the demonstration, nothing else.
        Reason::KeyInEnvironment if current.kind != ProviderKind::Demo && !wanted.is(current) => {
            Some(current)
        }
        Reason::KeyInEnvironment | Reason::Asked => None,
    }
}

/// Describes an upstream that is kept, and warns when it does not answer.
async fn keep(
    admin: &Admin<'_>,
    vault: &Vault,
    upstream: &Upstream,
    routes: &[Route],
    wanted: &Wanted,
) -> Provider {
    let mut changes = Vec::new();
    if wanted.reason == Reason::KeyInEnvironment && !wanted.is(upstream) {
        changes.push(format!(
            "OPENAI_API_KEY is set, but the routes lead to `{}`, which is kept.",
            upstream.name
        ));
    }
    let routed: Vec<String> = routes
        .iter()
        .filter(|route| route.targets.iter().all(|t| t.upstream_id == upstream.id))
        .map(|route| route.model.clone())
        .filter(|model| !model.ends_with('*'))
        .collect();
    let known = if !routed.is_empty() {
        routed
    } else if upstream.kind == ProviderKind::Demo {
        vec![DEMO_MODEL.to_owned()]
    } else {
        ask(admin, vault, upstream).await
    };
    Provider {
        upstream: upstream.clone(),
        model: likely_chat_model(&known),
        changes,
    }
}

/// Asks an upstream that is in use for its models; that it does not answer is only a warning.
async fn ask(admin: &Admin<'_>, vault: &Vault, upstream: &Upstream) -> Vec<String> {
    let key = first_key(admin, vault, upstream).await;
    let prober = upstream::prober();
    let asked = timeout(PATIENCE, prober.probe(upstream, key.as_ref())).await;
    let problem = match asked {
        Ok(Ok(report)) => return report.models,
        Ok(Err(error)) => format!("{:#}", anyhow::Error::new(error)),
        Err(_elapsed) => format!("no answer within {} s", PATIENCE.as_secs()),
    };
    terminal::warning(&format!(
        "upstream `{}` does not answer as it should: {problem}",
        upstream.name
    ));
    Vec::new()
}

async fn first_key(admin: &Admin<'_>, vault: &Vault, upstream: &Upstream) -> Option<SecretString> {
    let routing = admin.storage.load_routing().await.ok()?;
    let (key, sealed) = routing
        .keys
        .iter()
        .find(|(key, _)| key.upstream_id == upstream.id)?;
    vault.open(sealed, &SealBinding::of(upstream, key.id)).ok()
}

/// Returns whether an upstream has the key already, in use.
async fn find_key(
    admin: &Admin<'_>,
    vault: &Vault,
    upstream: &Upstream,
    wanted: &SecretString,
) -> anyhow::Result<bool> {
    let routing = admin.storage.load_routing().await?;
    Ok(routing
        .keys
        .iter()
        .filter(|(key, _)| key.upstream_id == upstream.id)
        .filter_map(|(key, sealed)| vault.open(sealed, &SealBinding::of(upstream, key.id)).ok())
        .any(|secret| secret.expose_secret() == wanted.expose_secret()))
}

/// Adds a key and switches off those that an earlier quickstart added.
async fn replace_key(
    admin: &Admin<'_>,
    vault: &Vault,
    upstream: &Upstream,
    secret: &SecretString,
) -> anyhow::Result<Option<String>> {
    let keys = upstream::key::keys_of(admin, upstream).await?;
    let taken: Vec<_> = keys.iter().map(|key| key.name.as_str()).collect();
    let name = numbered(KEY, &taken)?;
    let added = upstream::key::new(admin, upstream, name);
    upstream::key::add(admin, vault, upstream, &added, secret).await?;
    let mut replaced = Vec::new();
    for key in &keys {
        if key.state == EntityState::Active && key.name.as_str().starts_with(KEY) {
            admin
                .storage
                .set_upstream_key_state(key.id, EntityState::Disabled, admin.now)
                .await?;
            replaced.push(format!("`{}`", key.name));
        }
    }
    Ok((!replaced.is_empty()).then(|| {
        format!(
            "Upstream `{}` has a new key, `{}`; {} is disabled.",
            upstream.name,
            added.name,
            replaced.join(", ")
        )
    }))
}

/// Leads a model to one upstream; returns what that changed.
async fn lead(
    admin: &Admin<'_>,
    pattern: String,
    upstream: &Upstream,
    upstreams: &[Upstream],
    routes: &[Route],
) -> anyhow::Result<Option<String>> {
    let target = Target::new(upstream.id);
    if let Some(route) = routes.iter().find(|route| route.model == pattern) {
        if route.targets.iter().all(|t| t.upstream_id == upstream.id) {
            return Ok(None);
        }
        let name = |id: UpstreamId| {
            let upstream = upstreams.iter().find(|upstream| upstream.id == id);
            upstream.map_or_else(|| id.to_string(), |u| format!("`{}`", u.name))
        };
        let before: Vec<_> = route.targets.iter().map(|t| name(t.upstream_id)).collect();
        let change = format!(
            "Route `{pattern}` leads to `{}` now, before to {}.",
            upstream.name,
            before.join(", ")
        );
        let led = Route {
            targets: vec![target],
            ..route.clone()
        };
        if !admin.storage.update_route(&led).await? {
            bail!("route `{pattern}` was deleted meanwhile");
        }
        return Ok(Some(change));
    }
    let id = RouteId::from_uuid(new_uuid());
    route::create(admin, &Route::new(id, pattern, vec![target], admin.now)).await?;
    Ok(None)
}

/// Returns a name that is not taken: the text, or the text with a number behind it.
fn numbered(text: &str, taken: &[&str]) -> anyhow::Result<Name> {
    // A host may be longer than a name.
    let text: String = text.chars().take(MAX_NAME_CHARS).collect();
    let mut candidate = text.clone();
    let mut number = 2;
    while taken.contains(&candidate.as_str()) {
        candidate = format!("{text}-{number}");
        number += 1;
    }
    Ok(candidate.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let name = |taken: &[&str]| numbered("openai", taken).unwrap().to_string();
        assert_eq!(name(&[]), "openai");
        assert_eq!(name(&["openai", "openai-2"]), "openai-3");
        assert!(numbered(&"x".repeat(300), &[]).is_ok());
    }
}
