//! Accounts: who logs in to administer.

use serde_json::{Value, json};
use sluice_domain::access::{Reach, Rights};
use sluice_domain::account::{Account, LoginName};
use sluice_domain::id::{AccountId, TenantId};
use sluice_domain::ports::StoreError;
use sluice_domain::tenant::EntityState;
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use crate::audit::Act;
use crate::error::{Failure, corrupt};
use crate::storage::Storage;

statements! {
    INSERT_ACCOUNT = "INSERT INTO accounts (account_id, tenant_id, login, role, password_hash, state, \
            created_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    HAS_TENANT = "SELECT COUNT(*) FROM tenants WHERE tenant_id = $1 AND state <> 'deleted'";
    FIND_ACCOUNT = "SELECT a.account_id, a.tenant_id, a.login, a.role, a.password_hash, a.state, \
            a.created_at_ms, t.state AS tenant_state \
        FROM accounts a LEFT JOIN tenants t ON t.tenant_id = a.tenant_id WHERE a.account_id = $1";
    FIND_ACCOUNT_BY_LOGIN = "SELECT a.account_id, a.tenant_id, a.login, a.role, a.password_hash, a.state, \
            a.created_at_ms, t.state AS tenant_state \
        FROM accounts a LEFT JOIN tenants t ON t.tenant_id = a.tenant_id \
        WHERE a.login = $1 AND a.state <> 'deleted'";
    SET_ACCOUNT_STATE = "UPDATE accounts SET state = $2 WHERE account_id = $1 AND state <> 'deleted'";
    SET_PASSWORD = "UPDATE accounts SET password_hash = $2 WHERE account_id = $1 AND state <> 'deleted'";
    END_SESSIONS_OF = "DELETE FROM sessions WHERE account_id = $1";
}

/// What a new account needs.
#[derive(Clone)]
pub struct NewAccount {
    /// Its id.
    pub id: AccountId,
    /// The name to log in by.
    pub login: LoginName,
    /// What it may do.
    pub rights: Rights,
    /// The password, hashed by Argon2id, in the form of the PHC.
    pub password_hash: String,
    /// The time.
    pub now: UnixMillis,
}

impl std::fmt::Debug for NewAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewAccount")
            .field("id", &self.id)
            .field("rights", &self.rights)
            .finish_non_exhaustive()
    }
}

/// An account with what its log-in is checked against.
#[derive(Clone)]
pub struct StoredAccount {
    /// The account. One whose tenant does not take part does not either.
    pub account: Account,
    /// The hash of its password.
    pub password_hash: String,
}

impl std::fmt::Debug for StoredAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredAccount({})", self.account.id)
    }
}

#[derive(FromRow)]
pub(crate) struct AccountRow {
    account_id: Uuid,
    tenant_id: Option<Uuid>,
    login: String,
    role: String,
    password_hash: String,
    state: String,
    created_at_ms: i64,
    tenant_state: Option<String>,
}

impl TryFrom<AccountRow> for StoredAccount {
    type Error = StoreError;

    fn try_from(row: AccountRow) -> Result<Self, StoreError> {
        let id = AccountId::from_uuid(row.account_id);
        let state = |word: &str| {
            word.parse()
                .map_err(|_bad| corrupt("accounts", "state", id))
        };
        let own: EntityState = state(&row.state)?;
        let of_tenant = row.tenant_state.as_deref().map(state).transpose()?;
        let role = row
            .role
            .parse()
            .map_err(|_bad| corrupt("accounts", "role", id))?;
        Ok(Self {
            account: Account {
                id,
                login: row
                    .login
                    .parse()
                    .map_err(|_bad| corrupt("accounts", "login", id))?,
                rights: Rights {
                    role,
                    reach: Reach::from_tenant(row.tenant_id.map(TenantId::from_uuid)),
                },
                state: match of_tenant {
                    Some(tenant) if own == EntityState::Active => tenant,
                    _ => own,
                },
                created_at: UnixMillis(row.created_at_ms),
            },
            password_hash: row.password_hash,
        })
    }
}

fn facts(login: &LoginName, rights: Rights, state: EntityState) -> Value {
    json!({
        "login": login.as_str(),
        "role": rights.role.as_str(),
        "tenant_id": rights.reach.tenant_id().map(|id| id.to_string()),
        "state": state.as_str(),
    })
}

impl Storage {
    /// Makes an account; `false` when there is no such tenant.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an account has the name.
    pub async fn create_account(&self, new: NewAccount) -> Result<bool, StoreError> {
        in_transaction!(self, create_account(&new))
    }

    /// Finds an account by the name it logs in by; one that was deleted has none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_account_by_login(
        &self,
        login: &LoginName,
    ) -> Result<Option<StoredAccount>, StoreError> {
        reading!(self, find_account_by_login(login))
    }

    /// Sets the state of an account; `false` when there is none or it was deleted. Its sessions end.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_account_state(
        &self,
        id: AccountId,
        state: EntityState,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_account_state(id, state))
    }

    /// Sets the password of an account; `false` when there is none or it was deleted. Its sessions
    /// end: whoever knew the old one is out.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_password(&self, id: AccountId, hash: &str) -> Result<bool, StoreError> {
        in_transaction!(self, set_password(id, hash))
    }
}

on_both! {
    async fn create_account(&mut self, new: &NewAccount) -> Result<bool, Failure> {
        let tenant_id = new.rights.reach.tenant_id();
        if let Some(tenant) = tenant_id {
            let found: i64 =
                sql_scalar!(HAS_TENANT, tenant.as_uuid()).fetch_one(&mut *self.conn).await?;
            if found == 0 {
                return Ok(false);
            }
        }
        sql!(
            INSERT_ACCOUNT,
            new.id.as_uuid(),
            tenant_id.map(TenantId::as_uuid),
            new.login.as_str(),
            new.rights.role.as_str(),
            new.password_hash.as_str(),
            EntityState::Active.as_str(),
            new.now.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || format!("an account named `{}`", new.login)))?;
        self.record_act(Act {
            action: "account.create",
            tenant_id,
            target: new.id.to_string(),
            before: None,
            after: Some(facts(&new.login, new.rights, EntityState::Active)),
        })
        .await?;
        Ok(true)
    }

    pub(crate) async fn find_account(&mut self, id: AccountId) -> Result<Option<StoredAccount>, Failure> {
        let row: Option<AccountRow> =
            sql_as!(FIND_ACCOUNT, id.as_uuid()).fetch_optional(&mut *self.conn).await?;
        Ok(row.map(StoredAccount::try_from).transpose()?)
    }

    async fn find_account_by_login(
        &mut self,
        login: &LoginName,
    ) -> Result<Option<StoredAccount>, Failure> {
        let row: Option<AccountRow> = sql_as!(FIND_ACCOUNT_BY_LOGIN, login.as_str())
            .fetch_optional(&mut *self.conn)
            .await?;
        Ok(row.map(StoredAccount::try_from).transpose()?)
    }

    async fn set_account_state(&mut self, id: AccountId, state: EntityState) -> Result<bool, Failure> {
        let Some(before) = self.find_account(id).await? else { return Ok(false) };
        let done = sql!(SET_ACCOUNT_STATE, id.as_uuid(), state.as_str())
            .execute(&mut *self.conn)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        sql!(END_SESSIONS_OF, id.as_uuid()).execute(&mut *self.conn).await?;
        let account = before.account;
        self.record_act(Act {
            action: "account.set_state",
            tenant_id: account.rights.reach.tenant_id(),
            target: id.to_string(),
            before: Some(facts(&account.login, account.rights, account.state)),
            after: Some(facts(&account.login, account.rights, state)),
        })
        .await?;
        Ok(true)
    }

    async fn set_password(&mut self, id: AccountId, hash: &str) -> Result<bool, Failure> {
        let Some(before) = self.find_account(id).await? else { return Ok(false) };
        let done = sql!(SET_PASSWORD, id.as_uuid(), hash).execute(&mut *self.conn).await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        sql!(END_SESSIONS_OF, id.as_uuid()).execute(&mut *self.conn).await?;
        self.record_act(Act {
            action: "account.set_password",
            tenant_id: before.account.rights.reach.tenant_id(),
            target: id.to_string(),
            before: None,
            after: None,
        })
        .await?;
        Ok(true)
    }
}
