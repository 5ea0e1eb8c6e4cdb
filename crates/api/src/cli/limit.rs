//! `sluice limit`.

use std::collections::HashMap;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_domain::id::ProxyKeyId;
use sluice_domain::limit::LimitTarget;
use sluice_domain::quota::{Scope, ScopeKind};
use sluice_domain::tenant::{Name, Tenant};
use sluice_domain::window::{InvalidWindowLimit, WindowKind, WindowLimit};
use sluice_storage::limit::LimitChange;
use uuid::Uuid;

use super::admin::{Admin, PAGE, with_database};
use super::input::OrNone;
use super::table::{ListArgs, Table, grouped};
use crate::config::Config;
use crate::terminal;

/// Longest name of a model that a limit may be set for, in bytes.
const MAX_MODEL_BYTES: usize = 256;

#[derive(Debug, Subcommand)]
pub(super) enum LimitCommand {
    /// Set limits, for example `sluice limit set --tenant acme --rpm 600 --tpm 200_000`
    ///
    /// Limits of a tenant, of its users and of their keys hold side by side. What is not given stays
    /// as it is. They are in effect within a second, on every instance.
    Set {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        limits: LimitArgs,
        /// Only count and report what these limits would refuse
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the limits that are set
    Show {
        #[command(flatten)]
        target: TargetArgs,
        #[command(flatten)]
        list: ListArgs,
    },
    /// Take limits away: all of one tenant, user or key, or of one model on a key
    Clear(#[command(flatten)] TargetArgs),
}

/// Whose requests are limited.
#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// The tenant
    #[arg(long)]
    tenant: Name,
    /// One of its users
    #[arg(long, conflicts_with = "key")]
    user: Option<Name>,
    /// One of its keys, by the id that `sluice key list` shows
    // Not parsed by clap, which would repeat it: people paste whole keys here.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// A model that the key asks for, beside the limits of the key
    #[arg(long, requires = "key", value_parser = model)]
    model: Option<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(super) struct LimitArgs {
    /// Requests per second
    #[arg(long, value_name = "N|none")]
    rps: Option<OrNone<Most>>,
    /// Requests per minute
    #[arg(long, value_name = "N|none")]
    rpm: Option<OrNone<Most>>,
    /// Tokens per minute
    #[arg(long, value_name = "N|none")]
    tpm: Option<OrNone<Most>>,
    /// Requests at the same time
    #[arg(long, value_name = "N|none")]
    concurrency: Option<OrNone<Most>>,
}

/// A limit as people write it; underscores between digits are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Most(WindowLimit);

impl FromStr for Most {
    type Err = InvalidWindowLimit;

    fn from_str(text: &str) -> Result<Self, InvalidWindowLimit> {
        let most = text.replace('_', "").parse().unwrap_or(0);
        WindowLimit::new(most).map(Self)
    }
}

fn model(text: &str) -> Result<String, String> {
    let is_fine = (1..=MAX_MODEL_BYTES).contains(&text.len()) && !text.contains(char::is_control);
    if is_fine {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "the name of a model is expected: 1 to {MAX_MODEL_BYTES} bytes on one line"
        ))
    }
}

impl LimitArgs {
    fn changes(self, dry_run: bool) -> Vec<LimitChange> {
        [
            (WindowKind::Rps, self.rps),
            (WindowKind::Rpm, self.rpm),
            (WindowKind::Tpm, self.tpm),
            (WindowKind::Concurrency, self.concurrency),
        ]
        .into_iter()
        .filter_map(|(kind, given)| {
            let limit = given?
                .0
                .map(|Most(limit)| if dry_run { limit.dry_run() } else { limit });
            Some(LimitChange { kind, limit })
        })
        .collect()
    }
}

pub(super) fn run(command: LimitCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        LimitCommand::Set {
            target,
            limits,
            dry_run,
        } => {
            let found = target.find(admin).await?;
            let changes = limits.changes(dry_run);
            found.change(admin, &changes).await?;
            let words: Vec<_> = changes.iter().map(change_word).collect();
            terminal::note(&format!("{}: {}", found.what, words.join(", ")));
            Ok(())
        }
        LimitCommand::Show { target, list } => show(admin, &target, list).await,
        LimitCommand::Clear(target) => {
            let found = target.find(admin).await?;
            let changes = WindowKind::ALL.map(|kind| LimitChange { kind, limit: None });
            found.change(admin, &changes).await?;
            terminal::note(&format!("{} has no limits of its own", found.what));
            Ok(())
        }
    })
}

/// What a command is about.
struct Target {
    tenant: Tenant,
    limits: LimitTarget,
    /// It, for people.
    what: String,
}

impl TargetArgs {
    async fn find(&self, admin: &Admin<'_>) -> anyhow::Result<Target> {
        let tenant = admin.tenant(&self.tenant).await?;
        let (kind, id, what) = if let Some(name) = &self.user {
            let user = admin.user(&tenant, name).await?;
            let what = format!("user `{name}` of tenant `{}`", tenant.name);
            (ScopeKind::User, user.id.as_uuid(), what)
        } else if let Some(key) = &self.key {
            let id: ProxyKeyId = key
                .parse()
                .context("--key is no id of a key; `sluice key list` shows them")?;
            let found = admin.storage.find_key(id).await?;
            let Some(found) = found.filter(|key| key.tenant_id == tenant.id) else {
                bail!(
                    "tenant `{}` has no key {id}; `sluice key list` shows the ids",
                    tenant.name
                );
            };
            let mut what = format!("key `{}` of tenant `{}`", found.name, tenant.name);
            if let Some(model) = &self.model {
                what = format!("model `{model}` on {what}");
            }
            (ScopeKind::Key, id.as_uuid(), what)
        } else {
            let what = format!("tenant `{}`", tenant.name);
            (ScopeKind::Tenant, tenant.id.as_uuid(), what)
        };
        Ok(Target {
            tenant,
            limits: LimitTarget {
                scope: Scope { kind, id },
                model: self.model.clone(),
            },
            what,
        })
    }
}

impl Target {
    async fn change(&self, admin: &Admin<'_>, changes: &[LimitChange]) -> anyhow::Result<()> {
        let is_there = admin
            .storage
            .set_limits(&self.limits, self.tenant.id, changes, admin.now)
            .await?;
        if !is_there {
            bail!("{} was deleted meanwhile", self.what);
        }
        Ok(())
    }

    /// Returns whether a limit belongs to what was asked for: a tenant shows all that it has, a key
    /// also its models.
    fn shows(&self, target: &LimitTarget) -> bool {
        self.limits.scope.kind == ScopeKind::Tenant
            || (target.scope == self.limits.scope
                && (self.limits.model.is_none() || self.limits.model == target.model))
    }
}

fn change_word(change: &LimitChange) -> String {
    match change.limit {
        None => format!("no {}", change.kind),
        Some(limit) => {
            let most = grouped(&limit.most().to_string());
            let dry_run = if limit.dry_run { " (dry run)" } else { "" };
            format!("{} {most}{dry_run}", change.kind)
        }
    }
}

async fn show(admin: &Admin<'_>, args: &TargetArgs, list: ListArgs) -> anyhow::Result<()> {
    let asked = args.find(admin).await?;
    let names = names_of(admin, &asked.tenant).await?;
    let mut table = Table::new(&[
        "tenant", "scope", "name", "model", "kind", "limit", "dry_run", "id",
    ]);
    for set in admin.storage.list_limits(asked.tenant.id).await? {
        if !asked.shows(&set.target) {
            continue;
        }
        let scope = set.target.scope;
        table.push([
            json!(asked.tenant.name.as_str()),
            json!(scope.kind.as_str()),
            names.get(&scope.id).map_or(Value::Null, |name| json!(name)),
            json!(set.target.model),
            json!(set.kind.as_str()),
            json!(set.limit.most()),
            json!(set.limit.dry_run),
            json!(scope.id.to_string()),
        ]);
    }
    table.print(
        list,
        "no limits are set; set one with `sluice limit set --tenant TENANT --rpm N`",
    )
}

/// Returns the names of a tenant, its users and its keys.
async fn names_of(admin: &Admin<'_>, tenant: &Tenant) -> anyhow::Result<HashMap<Uuid, String>> {
    let mut names = HashMap::from([(tenant.id.as_uuid(), tenant.name.to_string())]);
    for user in admin.users(tenant).await? {
        names.insert(user.id.as_uuid(), user.name.to_string());
    }
    let mut after = None;
    loop {
        let page = admin
            .storage
            .list_keys(Some(tenant.id), after, PAGE)
            .await?;
        after = page.last().map(|key| key.id);
        let is_last = page.len() < PAGE as usize;
        names.extend(
            page.into_iter()
                .map(|key| (key.id.as_uuid(), key.name.to_string())),
        );
        if is_last {
            return Ok(names);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_whole_number_or_none() {
        let most = |text: &str| text.parse::<OrNone<Most>>().map(|or| or.0);
        assert_eq!(
            most("1_000").unwrap(),
            Some(Most(WindowLimit::new(1_000).unwrap()))
        );
        assert_eq!(most("none").unwrap(), None);
        for text in ["0", "-1", "1.5", "1k", "", "9007199254740993"] {
            assert!(most(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_model_has_a_name() {
        assert!(model("org/model:7b").is_ok());
        for text in ["", "a\nb", "a".repeat(257).as_str()] {
            assert!(model(text).is_err(), "{text:?}");
        }
    }
}
