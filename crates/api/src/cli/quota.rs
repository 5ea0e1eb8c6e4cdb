//! The arguments that set a monthly quota.

use clap::Args;
use sluice_domain::id::TenantId;
use sluice_domain::quota::Scope;

use super::admin::Admin;
use super::input::tokens;
use super::table::grouped;
use crate::terminal;

/// A new cap. Exactly one.
#[derive(Debug, Clone, Copy, Args)]
#[group(required = true, multiple = false)]
pub(super) struct CapArgs {
    /// Tokens per calendar month
    #[arg(long, value_name = "N", value_parser = tokens)]
    tokens: Option<i64>,
    /// Take the cap away
    #[arg(long)]
    none: bool,
}

impl CapArgs {
    /// Sets the cap of a scope; `what` names it for people.
    pub(super) async fn apply(
        self,
        admin: &Admin<'_>,
        scope: Scope,
        tenant_id: TenantId,
        what: &str,
    ) -> anyhow::Result<()> {
        let is_there = admin
            .storage
            .set_quota(scope, tenant_id, self.tokens, admin.now)
            .await?;
        if !is_there {
            anyhow::bail!("{what} was deleted meanwhile");
        }
        terminal::note(&match self.tokens {
            Some(tokens) => format!(
                "{what} may use {} tokens a month",
                grouped(&tokens.to_string())
            ),
            None => format!("{what} has no monthly cap of its own"),
        });
        Ok(())
    }
}
