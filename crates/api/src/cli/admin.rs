//! What every administrative command shares: the open database, the clock, and names turned into
//! rows.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail};
use secrecy::ExposeSecret as _;
use sluice_domain::ports::{Clock as _, StoreError};
use sluice_domain::tenant::{EntityState, Name, Tenant, User};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::Upstream;
use sluice_storage::audit::{Actor, ActorKind};
use sluice_storage::{MigrationState, Storage, StorageOptions};

use crate::clock::SystemClock;
use crate::config::{Config, Environment};

/// Rows that are read at a time.
pub(super) const PAGE: u32 = 500;
/// Names that are listed where one was not found.
const MAX_SUGGESTIONS: usize = 10;

/// An open, migrated database.
pub(super) struct Admin<'a> {
    pub(super) storage: Storage,
    pub(super) config: &'a Config,
    pub(super) now: UnixMillis,
}

/// Opens the database, runs a command on it, and closes it.
pub(super) fn with_database<'a>(
    config: &'a Config,
    command: impl AsyncFnOnce(&Admin<'a>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    refuse_missing_file(config)?;
    block_on(async {
        let storage = open(config).await?;
        let result = async {
            refuse_unless_migrated(&storage).await?;
            let now = SystemClock.now();
            let admin = Admin {
                storage: storage.acting(command_line(now)),
                config,
                now,
            };
            command(&admin).await
        }
        .await;
        storage.close().await;
        result
    })
}

/// Returns who acts on the command line, by the name that the host knows them by.
pub(super) fn command_line(now: UnixMillis) -> Actor {
    let environment = Environment::of_process();
    let name = ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|variable| environment.get(variable));
    Actor {
        kind: ActorKind::CommandLine,
        name: name.map_or_else(
            || "unknown".to_owned(),
            |n| n.to_string_lossy().into_owned(),
        ),
        source: None,
        now,
    }
}

/// Runs a short command on a runtime of its own.
pub(super) fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?
        .block_on(command)
}

pub(super) fn storage_options(config: &Config) -> StorageOptions {
    StorageOptions {
        url: config.effective_database_url().expose_secret().to_owned(),
        max_connections: config.database_max_connections,
    }
}

pub(super) async fn open(config: &Config) -> anyhow::Result<Storage> {
    Storage::open(&storage_options(config))
        .await
        .context("the database cannot be opened")
}

/// Returns the SQLite file of the configuration; `None` for another database.
pub(super) fn database_file(config: &Config) -> Option<PathBuf> {
    let url = config.effective_database_url();
    let path = url.expose_secret().strip_prefix("sqlite:")?;
    Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
}

/// Opening would make the file, which would hide that the folder is the wrong one.
pub(super) fn refuse_missing_file(config: &Config) -> anyhow::Result<()> {
    match database_file(config) {
        Some(path) if !path.exists() => bail!(
            "there is no database at {}; make one with `sluice migrate` or `sluice quickstart`, or \
             name another data folder with --data",
            path.display()
        ),
        _ => Ok(()),
    }
}

async fn refuse_unless_migrated(storage: &Storage) -> anyhow::Result<()> {
    let state = storage
        .migration_state()
        .await
        .context("the state of the database cannot be read")?;
    problem_of(&state).map_or(Ok(()), |problem| Err(anyhow!("{problem}")))
}

/// Returns why this binary cannot work on a database; `None` when it can.
pub(super) fn problem_of(state: &MigrationState) -> Option<String> {
    if let Some(version) = state.unknown.first() {
        Some(format!(
            "the database was migrated by a newer version of sluice (migration {version}); use \
             that version"
        ))
    } else if let Some(version) = state.changed.first() {
        Some(format!(
            "migration {version} of the database is not the one of this version of sluice"
        ))
    } else if state.applied.is_empty() && !state.pending.is_empty() {
        Some("the database is empty; run `sluice migrate`".to_owned())
    } else if state.pending.is_empty() {
        None
    } else {
        Some("the database is of an older version; run `sluice migrate`".to_owned())
    }
}

impl Admin<'_> {
    /// Returns every tenant that is not deleted.
    pub(super) async fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self.storage.list_tenants(after, PAGE).await?;
            after = page.last().map(|tenant| tenant.id);
            let is_last = page.len() < PAGE as usize;
            all.extend(page.into_iter().filter(|t| t.state != EntityState::Deleted));
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Returns every user of a tenant that is not deleted.
    pub(super) async fn users(&self, tenant: &Tenant) -> Result<Vec<User>, StoreError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = self.storage.list_users(tenant.id, after, PAGE).await?;
            after = page.last().map(|user| user.id);
            let is_last = page.len() < PAGE as usize;
            all.extend(page.into_iter().filter(|u| u.state != EntityState::Deleted));
            if is_last {
                return Ok(all);
            }
        }
    }

    /// Finds a tenant by name, or says which there are.
    pub(super) async fn tenant(&self, name: &Name) -> anyhow::Result<Tenant> {
        if let Some(tenant) = self.storage.find_tenant_by_name(name).await? {
            return Ok(tenant);
        }
        let names = self
            .tenants()
            .await?
            .into_iter()
            .map(|t| t.name.to_string());
        bail!(
            "there is no tenant `{name}`; {}",
            known(names, "make one with `sluice tenant create NAME`")
        )
    }

    /// Finds the tenant of an optional flag; `None` means shared by all.
    pub(super) async fn optional_tenant(
        &self,
        name: Option<&Name>,
    ) -> anyhow::Result<Option<Tenant>> {
        match name {
            Some(name) => self.tenant(name).await.map(Some),
            None => Ok(None),
        }
    }

    /// Finds a user by name, or says which there are.
    pub(super) async fn user(&self, tenant: &Tenant, name: &Name) -> anyhow::Result<User> {
        if let Some(user) = self.storage.find_user_by_name(tenant.id, name).await? {
            return Ok(user);
        }
        let names = self
            .users(tenant)
            .await?
            .into_iter()
            .map(|u| u.name.to_string());
        bail!(
            "tenant `{}` has no user `{name}`; {}",
            tenant.name,
            known(
                names,
                "make one with `sluice user create --tenant TENANT NAME`"
            )
        )
    }

    /// Returns every upstream that is not deleted.
    pub(super) async fn upstreams(&self) -> Result<Vec<Upstream>, StoreError> {
        let all = self.storage.list_upstreams().await?;
        Ok(all
            .into_iter()
            .filter(|u| u.state != EntityState::Deleted)
            .collect())
    }

    /// Finds an upstream by name, or says which there are.
    pub(super) async fn upstream(&self, name: &Name) -> anyhow::Result<Upstream> {
        let all = self.upstreams().await?;
        let names = all.iter().map(|u| u.name.to_string()).collect::<Vec<_>>();
        all.into_iter().find(|u| u.name == *name).ok_or_else(|| {
            anyhow!(
                "there is no upstream `{name}`; {}",
                known(
                    names,
                    "make one with `sluice upstream create NAME --kind KIND --url URL`"
                )
            )
        })
    }
}

/// Lists what there is, or says how to make the first one.
pub(super) fn known(names: impl IntoIterator<Item = String>, first: &str) -> String {
    let names: Vec<_> = names.into_iter().collect();
    if names.is_empty() {
        return format!("there is none yet, {first}");
    }
    let shown: Vec<_> = names
        .iter()
        .take(MAX_SUGGESTIONS)
        .map(|name| format!("`{name}`"))
        .collect();
    let verb = if names.len() == 1 { "is" } else { "are" };
    let more = match names.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("there {verb} {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_there_are_are_listed_up_to_a_bound() {
        let names = |count: usize| (0..count).map(|n| n.to_string());
        assert_eq!(known(names(0), "make one"), "there is none yet, make one");
        assert_eq!(known(names(1), ""), "there is `0`");
        assert_eq!(known(names(2), ""), "there are `0`, `1`");
        assert!(known(names(12), "").ends_with("`9` and 2 more"));
    }

    #[test]
    fn each_state_of_the_database_says_what_to_do() {
        let state = |applied: &[i64], pending: &[i64], unknown: &[i64]| MigrationState {
            applied: applied.to_vec(),
            pending: pending.to_vec(),
            unknown: unknown.to_vec(),
            ..MigrationState::default()
        };
        assert_eq!(problem_of(&state(&[1], &[], &[])), None);
        for (state, word) in [
            (state(&[], &[1], &[]), "empty"),
            (state(&[1], &[2], &[]), "older"),
            (state(&[1], &[], &[2]), "newer"),
        ] {
            assert!(problem_of(&state).unwrap().contains(word));
        }
    }
}
