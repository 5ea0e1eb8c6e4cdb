//! `sluice route`.

use std::str::FromStr;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::json;
use sluice_domain::id::RouteId;
use sluice_domain::pool::{Selection, TargetUse};
use sluice_domain::ports::StoreError;
use sluice_domain::route::{Route, Target, check_route_model};
use sluice_domain::tenant::{EntityState, Name, Tenant};
use sluice_domain::upstream::Upstream;

use super::admin::{Admin, known, with_database};
use super::input::WrongUsage;
use super::table::{ListArgs, Table, time};
use super::upstream::MAX_WEIGHT;
use crate::config::Config;
use crate::ids::new_uuid;
use crate::terminal;

/// Largest tier; the database has the same bound.
const MAX_TIER: u32 = 1_000_000;

#[derive(Debug, Subcommand)]
pub(super) enum RouteCommand {
    /// Lead a model to upstreams, for example
    /// `sluice route create gpt-4o --to openai --to backup=gpt-4o-mini,tier=1`
    Create {
        /// The model that clients ask for; `name*` matches what begins so, `*` matches every model
        #[arg(value_parser = model)]
        model: String,
        /// Where it is served: `UPSTREAM[=MODEL][,tier=N][,weight=N][,for=context_length]`; the
        /// lowest tier is tried first, inside a tier the weights share the traffic; a target for
        /// `context_length` serves only what is too long for another one
        #[arg(long = "to", required = true, value_name = "TARGET")]
        targets: Vec<TargetArg>,
        /// How a target is chosen inside a tier: `weighted`, `least_latency`, `sticky_key` or
        /// `sticky_user`
        #[arg(long, default_value_t)]
        select: Selection,
        /// Only for this tenant [default: shared by all]
        #[arg(long)]
        tenant: Option<Name>,
    },
    /// Change a route; the targets that are given replace those that it has, all at once
    Set {
        #[command(flatten)]
        route: RouteArgs,
        /// Where it is served, as for `create`
        #[arg(long = "to", value_name = "TARGET")]
        targets: Vec<TargetArg>,
        /// How a target is chosen inside a tier
        #[arg(long)]
        select: Option<Selection>,
    },
    /// List the routes
    List(#[command(flatten)] ListArgs),
    /// Stop using a route; requests for its model go where a shorter pattern leads, if any
    Disable(#[command(flatten)] RouteArgs),
    /// Use a route again
    Enable(#[command(flatten)] RouteArgs),
    /// Delete a route
    Delete(#[command(flatten)] RouteArgs),
}

#[derive(Debug, Args)]
pub(super) struct RouteArgs {
    /// The model of the route
    model: String,
    /// The tenant of the route [default: the shared route]
    #[arg(long)]
    tenant: Option<Name>,
}

/// A target as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetArg {
    upstream: Name,
    upstream_model: Option<String>,
    tier: u32,
    weight: u32,
    serves: TargetUse,
}

impl FromStr for TargetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let (upstream, upstream_model) = match first.split_once('=') {
            Some((upstream, model)) => (upstream, Some(target_model(model)?)),
            None => (first, None),
        };
        let mut target = Self {
            upstream: upstream
                .parse()
                .map_err(|_bad| "a target begins with the name of an upstream".to_owned())?,
            upstream_model,
            tier: 0,
            weight: 1,
            serves: TargetUse::Any,
        };
        for option in parts {
            match option.split_once('=') {
                Some(("tier", number)) => target.tier = ranged("tier", number, 0, MAX_TIER)?,
                Some(("weight", number)) => {
                    target.weight = ranged("weight", number, 1, MAX_WEIGHT)?;
                }
                Some(("for", word)) => {
                    target.serves = word.parse().map_err(|unknown| format!("for: {unknown}"))?;
                }
                _ => {
                    return Err(format!(
                        "`{option}` is not an option of a target; there are tier=N, weight=N and \
                         for=context_length"
                    ));
                }
            }
        }
        Ok(target)
    }
}

fn ranged(name: &str, text: &str, min: u32, max: u32) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("{name} is a whole number from {min} to {max}"))
}

/// Checks the name of a model at an upstream, which is no pattern.
fn target_model(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err("the model of a target is a name, not a pattern".to_owned());
    }
    model(text)
}

fn model(text: &str) -> Result<String, String> {
    check_route_model(text)
        .map(|()| text.to_owned())
        .map_err(|error| error.to_string())
}

pub(super) fn run(command: RouteCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        RouteCommand::Create {
            model,
            targets,
            select,
            tenant,
        } => create_and_tell(admin, model, targets, select, tenant).await,
        RouteCommand::Set {
            route,
            targets,
            select,
        } => change(admin, &route, targets, select).await,
        RouteCommand::List(args) => list(admin, args).await,
        RouteCommand::Disable(route) => set_state(admin, &route, EntityState::Disabled).await,
        RouteCommand::Enable(route) => set_state(admin, &route, EntityState::Active).await,
        RouteCommand::Delete(route) => set_state(admin, &route, EntityState::Deleted).await,
    })
}

/// Makes a route.
pub(super) async fn create(admin: &Admin<'_>, route: &Route) -> anyhow::Result<()> {
    match admin.storage.create_route(route).await {
        Ok(true) => Ok(()),
        Ok(false) => bail!("an upstream was deleted meanwhile, or belongs to another tenant"),
        Err(error @ StoreError::Conflict { .. }) => {
            bail!(
                "{error}; `sluice route set {} --to UPSTREAM` changes it",
                route.model
            )
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns every route that is not deleted.
pub(super) async fn routes(admin: &Admin<'_>) -> anyhow::Result<Vec<Route>> {
    let mut routes = admin.storage.list_routes().await?;
    routes.retain(|route| route.state != EntityState::Deleted);
    Ok(routes)
}

async fn create_and_tell(
    admin: &Admin<'_>,
    model: String,
    targets: Vec<TargetArg>,
    selection: Selection,
    tenant: Option<Name>,
) -> anyhow::Result<()> {
    let tenant = admin.optional_tenant(tenant.as_ref()).await?;
    let targets = find_targets(admin, targets, tenant.as_ref()).await?;
    let id = RouteId::from_uuid(new_uuid());
    let route = Route {
        tenant_id: tenant.map(|tenant| tenant.id),
        selection,
        ..Route::new(id, model, targets, admin.now)
    };
    create(admin, &route).await?;
    terminal::note(&format!("route `{}` is made: {}", route.model, route.id));
    Ok(())
}

async fn change(
    admin: &Admin<'_>,
    args: &RouteArgs,
    targets: Vec<TargetArg>,
    selection: Option<Selection>,
) -> anyhow::Result<()> {
    if targets.is_empty() && selection.is_none() {
        bail!(WrongUsage("say what to change: --to, --select".to_owned()));
    }
    let (mut route, tenant) = find(admin, args).await?;
    if !targets.is_empty() {
        route.targets = find_targets(admin, targets, tenant.as_ref()).await?;
    }
    route.selection = selection.unwrap_or(route.selection);
    if !admin.storage.update_route(&route).await? {
        bail!(
            "route `{}` or an upstream of it was deleted meanwhile",
            args.model
        );
    }
    terminal::note(&format!("route `{}` is changed", route.model));
    Ok(())
}

/// Finds the upstreams of targets that a route of the tenant may have.
async fn find_targets(
    admin: &Admin<'_>,
    args: Vec<TargetArg>,
    tenant: Option<&Tenant>,
) -> anyhow::Result<Vec<Target>> {
    let tenant_id = tenant.map(|tenant| tenant.id);
    let mut targets = Vec::with_capacity(args.len());
    for arg in args {
        let upstream = admin.upstream(&arg.upstream).await?;
        if upstream.tenant_id.is_some() && upstream.tenant_id != tenant_id {
            bail!(
                "upstream `{}` belongs to one tenant, and the route is for {}",
                upstream.name,
                tenant.map_or("all".to_owned(), |t| format!("tenant `{}`", t.name))
            );
        }
        if upstream.state != EntityState::Active {
            terminal::warning(&format!(
                "upstream `{}` is {}",
                upstream.name, upstream.state
            ));
        }
        targets.push(Target {
            tier: arg.tier,
            weight: arg.weight,
            upstream_id: upstream.id,
            upstream_model: arg.upstream_model,
            serves: arg.serves,
        });
    }
    Ok(targets)
}

async fn list(admin: &Admin<'_>, args: ListArgs) -> anyhow::Result<()> {
    let tenants = admin.tenants().await?;
    let upstreams = admin.storage.list_upstreams().await?;
    let mut table = Table::new(&[
        "model",
        "tenant",
        "targets",
        "select",
        "state",
        "created_at",
        "id",
    ]);
    let mut routes = routes(admin).await?;
    routes.sort_by(|a, b| a.model.cmp(&b.model).then(a.id.cmp(&b.id)));
    for route in routes {
        let tenant = tenants.iter().find(|t| Some(t.id) == route.tenant_id);
        let targets: Vec<_> = route
            .targets
            .iter()
            .map(|t| target_text(t, &upstreams))
            .collect();
        table.push([
            json!(route.model),
            json!(tenant.map(|t| t.name.as_str())),
            json!(targets),
            json!(route.selection.as_str()),
            json!(route.state.as_str()),
            time(route.created_at),
            json!(route.id.to_string()),
        ]);
    }
    table.print(
        args,
        "no routes yet; make one with `sluice route create MODEL --to UPSTREAM`",
    )
}

/// Writes a target the way the command line takes it.
fn target_text(target: &Target, upstreams: &[Upstream]) -> String {
    let mut text = upstreams
        .iter()
        .find(|upstream| upstream.id == target.upstream_id)
        .map_or_else(|| target.upstream_id.to_string(), |u| u.name.to_string());
    if let Some(model) = &target.upstream_model {
        text.push('=');
        text.push_str(model);
    }
    let tier = (target.tier != 0).then(|| format!(",tier={}", target.tier));
    let weight = (target.weight != 1).then(|| format!(",weight={}", target.weight));
    let serves = (target.serves != TargetUse::Any).then(|| format!(",for={}", target.serves));
    text.extend(tier.into_iter().chain(weight).chain(serves));
    text
}

/// Finds a route by its model, or says which there are.
async fn find(admin: &Admin<'_>, args: &RouteArgs) -> anyhow::Result<(Route, Option<Tenant>)> {
    let tenant = admin.optional_tenant(args.tenant.as_ref()).await?;
    let tenant_id = tenant.as_ref().map(|tenant| tenant.id);
    let mut routes = routes(admin).await?;
    routes.retain(|route| route.tenant_id == tenant_id);
    if let Some(route) = routes.iter().find(|route| route.model == args.model) {
        return Ok((route.clone(), tenant));
    }
    let whose = tenant.map_or_else(
        || "no shared route".to_owned(),
        |tenant| format!("no route of tenant `{}`", tenant.name),
    );
    bail!(
        "there is {whose} for `{}`; {}",
        args.model,
        known(
            routes.into_iter().map(|route| route.model),
            "make one with `sluice route create MODEL --to UPSTREAM`"
        )
    )
}

async fn set_state(admin: &Admin<'_>, args: &RouteArgs, state: EntityState) -> anyhow::Result<()> {
    let (route, _tenant) = find(admin, args).await?;
    if !admin.storage.set_route_state(route.id, state).await? {
        bail!("route `{}` was deleted meanwhile", args.model);
    }
    terminal::note(&format!("route `{}` is {state}", route.model));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Result<TargetArg, String> {
        text.parse()
    }

    #[test]
    fn a_target_is_an_upstream_with_options() {
        let parsed = target("openai").unwrap();
        assert_eq!(
            (
                parsed.upstream.as_str(),
                parsed.upstream_model,
                parsed.tier,
                parsed.weight
            ),
            ("openai", None, 0, 1)
        );
        assert_eq!(parsed.serves, TargetUse::Any);
        let parsed = target("my vllm=org/model:tag=x,weight=3,tier=2,for=context_length").unwrap();
        assert_eq!(parsed.serves, TargetUse::ContextLength);
        assert_eq!(
            (
                parsed.upstream.as_str(),
                parsed.upstream_model.as_deref(),
                parsed.tier,
                parsed.weight
            ),
            ("my vllm", Some("org/model:tag=x"), 2, 3)
        );
    }

    #[test]
    fn what_makes_no_target_is_explained() {
        for (text, expected) in [
            ("", "a target begins with the name of an upstream"),
            ("=gpt-4o", "a target begins with the name of an upstream"),
            ("a=", "a model name has 1 to 200"),
            ("a=gpt-*", "the model of a target is a name, not a pattern"),
            ("a,tier=-1", "tier is a whole number from 0 to 1000000"),
            ("a,weight=0", "weight is a whole number from 1 to 1000000"),
            ("a,wieght=2", "`wieght=2` is not an option of a target"),
            (
                "a,for=long",
                "for: `long` is not one of any, context_length",
            ),
            ("a,b", "`b` is not an option of a target"),
        ] {
            let error = target(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
