//! `sluice admin`: accounts that log in to administer.

use std::path::PathBuf;

use anyhow::bail;
use clap::Subcommand;
use sluice_domain::access::{Reach, Rights};
use sluice_domain::account::{LoginName, check_new_password};
use sluice_domain::id::AccountId;
use sluice_domain::tenant::{EntityState, Name, Role};
use sluice_storage::account::NewAccount;

use super::admin::{Admin, with_database};
use super::input::password_from;
use crate::admin::openapi;
use crate::admin::password::hash;
use crate::config::Config;
use crate::ids::new_uuid;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum AdminCommand {
    /// Make an account, for example `sluice admin create ann --password-file FILE`
    ///
    /// There is no default account and no default password.
    Create {
        /// The name to log in by
        login: LoginName,
        /// `owner`, `admin`, `operator`, `finance` or `member`
        #[arg(long, default_value = "owner")]
        role: Role,
        /// The tenant that the role is about [default: the platform, with every tenant]
        #[arg(long)]
        tenant: Option<Name>,
        /// File with the password, or `-` for standard input
        #[arg(long, value_name = "FILE")]
        password_file: PathBuf,
    },
    /// Print the description of the admin API, as JSON
    Openapi,
    /// Set a new password; every session of the account ends
    Password {
        /// The name to log in by
        login: LoginName,
        /// File with the password, or `-` for standard input
        #[arg(long, value_name = "FILE")]
        password_file: PathBuf,
    },
    /// Keep an account out; every session of it ends
    Disable {
        /// The name to log in by
        login: LoginName,
    },
    /// Let an account in again
    Enable {
        /// The name to log in by
        login: LoginName,
    },
}

pub(super) fn run(command: AdminCommand, config: &Config) -> anyhow::Result<()> {
    if matches!(command, AdminCommand::Openapi) {
        return Ok(terminal::result(&openapi::text())?);
    }
    with_database(config, async |admin| match command {
        AdminCommand::Create {
            login,
            role,
            tenant,
            password_file,
        } => {
            let tenant = admin.optional_tenant(tenant.as_ref()).await?;
            let rights = Rights {
                role,
                reach: Reach::from_tenant(tenant.map(|tenant| tenant.id)),
            };
            create(admin, login, rights, &password_hash(&password_file)?).await
        }
        AdminCommand::Password {
            login,
            password_file,
        } => {
            let hash = password_hash(&password_file)?;
            let id = find(admin, &login).await?;
            if !admin.storage.set_password(id, &hash).await? {
                bail!("account `{login}` was deleted meanwhile");
            }
            terminal::note(&format!("account `{login}` has a new password"));
            Ok(())
        }
        // Answered above: it needs no database.
        AdminCommand::Openapi => Ok(()),
        AdminCommand::Disable { login } => set_state(admin, &login, EntityState::Disabled).await,
        AdminCommand::Enable { login } => set_state(admin, &login, EntityState::Active).await,
    })
}

fn password_hash(file: &std::path::Path) -> anyhow::Result<String> {
    let password = password_from(file)?;
    check_new_password(&password)?;
    Ok(hash(&password)?)
}

async fn create(
    admin: &Admin<'_>,
    login: LoginName,
    rights: Rights,
    password_hash: &str,
) -> anyhow::Result<()> {
    let new = NewAccount {
        id: AccountId::from_uuid(new_uuid()),
        login: login.clone(),
        rights,
        password_hash: password_hash.to_owned(),
        now: admin.now,
    };
    let id = new.id;
    if !admin.storage.create_account(new).await? {
        bail!("the tenant was deleted meanwhile");
    }
    terminal::note(&format!(
        "account `{login}` ({}) is made: {id}",
        rights.role
    ));
    Ok(())
}

async fn find(admin: &Admin<'_>, login: &LoginName) -> anyhow::Result<AccountId> {
    let found = admin.storage.find_account_by_login(login).await?;
    match found {
        Some(found) => Ok(found.account.id),
        None => bail!("there is no account `{login}`; make one with `sluice admin create`"),
    }
}

async fn set_state(admin: &Admin<'_>, login: &LoginName, state: EntityState) -> anyhow::Result<()> {
    let id = find(admin, login).await?;
    if !admin.storage.set_account_state(id, state).await? {
        bail!("account `{login}` was deleted meanwhile");
    }
    terminal::note(&format!("account `{login}` is {state}"));
    Ok(())
}
