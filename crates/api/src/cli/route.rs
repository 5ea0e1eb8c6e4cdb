//! `sluice route`.

use std::str::FromStr;

use anyhow::bail;
use clap::Subcommand;
use serde_json::json;
use sluice_domain::id::{RouteId, TenantId};
use sluice_domain::route::{Route, Target, check_route_model};
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::upstream::Upstream;

use super::admin::{Admin, known, with_database};
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
        /// Where it is served: `UPSTREAM[=MODEL][,tier=N][,weight=N]`; the lowest tier is tried
        /// first, inside a tier the weights share the traffic
        #[arg(long = "to", required = true, value_name = "TARGET")]
        targets: Vec<TargetArg>,
        /// Only for this tenant [default: shared by all]
        #[arg(long)]
        tenant: Option<Name>,
    },
    /// List the routes
    List(#[command(flatten)] ListArgs),
    /// Delete a route
    Delete {
        /// The model of the route
        model: String,
        /// The tenant of the route [default: the shared route]
        #[arg(long)]
        tenant: Option<Name>,
    },
}

/// A target as it is written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TargetArg {
    upstream: Name,
    upstream_model: Option<String>,
    tier: u32,
    weight: u32,
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
        };
        for option in parts {
            match option.split_once('=') {
                Some(("tier", number)) => target.tier = ranged("tier", number, 0, MAX_TIER)?,
                Some(("weight", number)) => {
                    target.weight = ranged("weight", number, 1, MAX_WEIGHT)?;
                }
                _ => {
                    return Err(format!(
                        "`{option}` is not an option of a target; there are tier=N and weight=N"
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
            tenant,
        } => create_and_tell(admin, model, targets, tenant).await,
        RouteCommand::List(args) => list(admin, args).await,
        RouteCommand::Delete { model, tenant } => delete(admin, &model, tenant).await,
    })
}

/// Makes a route.
pub(super) async fn create(
    admin: &Admin<'_>,
    tenant_id: Option<TenantId>,
    model: String,
    targets: Vec<Target>,
) -> anyhow::Result<Route> {
    let id = RouteId::from_uuid(new_uuid());
    let route = Route {
        tenant_id,
        ..Route::new(id, model, targets, admin.now)
    };
    if !admin.storage.create_route(&route).await? {
        bail!("an upstream was deleted meanwhile, or belongs to another tenant");
    }
    Ok(route)
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
    args: Vec<TargetArg>,
    tenant: Option<Name>,
) -> anyhow::Result<()> {
    let tenant = admin.optional_tenant(tenant.as_ref()).await?;
    let tenant_id = tenant.as_ref().map(|tenant| tenant.id);
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
            upstream_model: arg.upstream_model,
            ..Target::new(upstream.id)
        });
    }
    let route = create(admin, tenant_id, model, targets).await?;
    terminal::note(&format!("route `{}` is made: {}", route.model, route.id));
    Ok(())
}

async fn list(admin: &Admin<'_>, args: ListArgs) -> anyhow::Result<()> {
    let tenants = admin.tenants().await?;
    let upstreams = admin.storage.list_upstreams().await?;
    let mut table = Table::new(&["model", "tenant", "targets", "created_at", "id"]);
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
    text.extend(tier.into_iter().chain(weight));
    text
}

async fn delete(admin: &Admin<'_>, model: &str, tenant: Option<Name>) -> anyhow::Result<()> {
    let tenant = admin.optional_tenant(tenant.as_ref()).await?;
    let tenant_id = tenant.as_ref().map(|tenant| tenant.id);
    let whose = tenant.map_or_else(
        || "no shared route".to_owned(),
        |tenant| format!("no route of tenant `{}`", tenant.name),
    );
    let mut routes = routes(admin).await?;
    routes.retain(|route| route.tenant_id == tenant_id);
    let found = routes.iter().find(|route| route.model == model);
    match found {
        Some(route) if admin.storage.delete_route(route.id).await? => {
            terminal::note(&format!("route `{model}` is deleted"));
            Ok(())
        }
        Some(_) => bail!("route `{model}` was deleted meanwhile"),
        None => bail!(
            "there is {whose} for `{model}`; {}",
            known(
                routes.into_iter().map(|route| route.model),
                "make one with `sluice route create MODEL --to UPSTREAM`"
            )
        ),
    }
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
        let parsed = target("my vllm=org/model:tag=x,weight=3,tier=2").unwrap();
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
            ("a,b", "`b` is not an option of a target"),
        ] {
            let error = target(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
