//! Users.

use serde_json::{Value, json};
use sluice_domain::id::{TenantId, UserId};
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Scope, ScopeKind};
use sluice_domain::tenant::{EntityState, Name, Role, User};
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use crate::audit::{Act, Expected, Updated};
use crate::error::{Failure, corrupt};
use crate::feed::Change;
use crate::storage::Storage;

statements! {
    // Nothing is inserted when there is no such tenant.
    INSERT_USER = "INSERT INTO users (user_id, tenant_id, name, role, state, created_at_ms) \
        SELECT $1, tenant_id, $3, $4, $5, $6 FROM tenants WHERE tenant_id = $2 AND state <> 'deleted'";
    FIND_USER_BY_NAME = "SELECT u.user_id, u.tenant_id, u.name, u.role, u.state, u.created_at_ms, q.cap_tokens \
        FROM users u LEFT JOIN quotas q ON q.scope = 'user' AND q.scope_id = u.user_id \
        WHERE u.tenant_id = $1 AND u.name = $2 AND u.state <> 'deleted'";
    FIND_USER = "SELECT u.user_id, u.tenant_id, u.name, u.role, u.state, u.created_at_ms, q.cap_tokens \
        FROM users u LEFT JOIN quotas q ON q.scope = 'user' AND q.scope_id = u.user_id \
        WHERE u.tenant_id = $1 AND u.user_id = $2";
    LIST_USERS = "SELECT u.user_id, u.tenant_id, u.name, u.role, u.state, u.created_at_ms, q.cap_tokens \
        FROM users u LEFT JOIN quotas q ON q.scope = 'user' AND q.scope_id = u.user_id \
        WHERE u.tenant_id = $1 AND u.user_id > $2 ORDER BY u.user_id LIMIT $3";
    SET_USER_STATE = "UPDATE users SET state = $3 \
        WHERE tenant_id = $1 AND user_id = $2 AND state <> 'deleted'";
}

/// What a new user needs.
#[derive(Debug, Clone)]
pub struct NewUser {
    /// Their id.
    pub id: UserId,
    /// Their tenant.
    pub tenant_id: TenantId,
    /// Their name.
    pub name: Name,
    /// What they may do.
    pub role: Role,
    /// Tokens per month; `None` is without a cap.
    pub quota_tokens: Option<i64>,
    /// The time.
    pub now: UnixMillis,
}

/// What changes about a user; what is `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserUpdate {
    /// Whether their keys are served.
    pub state: Option<EntityState>,
    /// Tokens per month; `Some(None)` takes the cap away.
    pub quota_tokens: Option<Option<i64>>,
}

fn facts(user: &User) -> Value {
    json!({
        "name": user.name.as_str(),
        "role": user.role.as_str(),
        "state": user.state.as_str(),
        "quota_tokens": user.quota_tokens,
    })
}

#[derive(FromRow)]
pub(crate) struct UserRow {
    pub(crate) user_id: Uuid,
    pub(crate) tenant_id: Uuid,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) state: String,
    pub(crate) created_at_ms: i64,
    pub(crate) cap_tokens: Option<i64>,
}

impl TryFrom<UserRow> for User {
    type Error = StoreError;

    fn try_from(row: UserRow) -> Result<Self, StoreError> {
        let id = UserId::from_uuid(row.user_id);
        Ok(Self {
            id,
            tenant_id: TenantId::from_uuid(row.tenant_id),
            name: row
                .name
                .parse()
                .map_err(|_bad| corrupt("users", "name", id))?,
            role: row
                .role
                .parse()
                .map_err(|_bad| corrupt("users", "role", id))?,
            state: row
                .state
                .parse()
                .map_err(|_bad| corrupt("users", "state", id))?,
            quota_tokens: row.cap_tokens,
            created_at: UnixMillis(row.created_at_ms),
        })
    }
}

impl Storage {
    /// Makes a user with their quota; `None` when there is no such tenant.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a user of the tenant has the name.
    pub async fn create_user(&self, new: NewUser) -> Result<Option<User>, StoreError> {
        in_transaction!(self, create_user(&new))
    }

    /// Lists the users of a tenant in the order of their ids, beginning after one; also those that
    /// are deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_users(
        &self,
        tenant_id: TenantId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, StoreError> {
        reading!(self, list_users(tenant_id, after, limit))
    }

    /// Finds a user of a tenant by name; one that was deleted has none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_user_by_name(
        &self,
        tenant_id: TenantId,
        name: &Name,
    ) -> Result<Option<User>, StoreError> {
        reading!(self, find_user_by_name(tenant_id, name))
    }

    /// Finds a user of a tenant.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_user(
        &self,
        tenant_id: TenantId,
        id: UserId,
    ) -> Result<Option<User>, StoreError> {
        reading!(self, find_user(tenant_id, id))
    }

    /// Changes a user of a tenant who is as the caller expects them.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when a cap is negative or too large.
    pub async fn update_user(
        &self,
        tenant_id: TenantId,
        id: UserId,
        update: UserUpdate,
        is_expected: &Expected<'_, User>,
        now: UnixMillis,
    ) -> Result<Updated<User>, StoreError> {
        in_transaction!(self, update_user(tenant_id, id, update, is_expected, now))
    }

    /// Sets the state of a user; `false` when the tenant has no such user or they were deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_user_state(
        &self,
        tenant_id: TenantId,
        id: UserId,
        state: EntityState,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_user_state(tenant_id, id, state))
    }
}

on_both! {
    async fn create_user(&mut self, new: &NewUser) -> Result<Option<User>, Failure> {
        if !self.insert_user(new).await? {
            return Ok(None);
        }
        let made = User {
            id: new.id,
            tenant_id: new.tenant_id,
            name: new.name.clone(),
            role: new.role,
            state: EntityState::Active,
            quota_tokens: new.quota_tokens,
            created_at: new.now,
        };
        self.record_act(Act {
            action: "user.create",
            tenant_id: Some(new.tenant_id),
            target: new.id.to_string(),
            before: None,
            after: Some(facts(&made)),
        })
        .await?;
        self.publish(&[Change::User(new.id)]).await?;
        Ok(Some(made))
    }

    /// Returns whether there is such a tenant.
    pub(crate) async fn insert_user(&mut self, new: &NewUser) -> Result<bool, Failure> {
        let done = sql!(
            INSERT_USER,
            new.id.as_uuid(),
            new.tenant_id.as_uuid(),
            new.name.as_str(),
            new.role.as_str(),
            EntityState::Active.as_str(),
            new.now.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || format!("a user named `{}`", new.name)))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        if new.quota_tokens.is_some() {
            let scope = Scope { kind: ScopeKind::User, id: new.id.as_uuid() };
            self.change_quota(scope, new.tenant_id, new.quota_tokens.into(), new.now).await?;
        }
        Ok(true)
    }

    async fn list_users(
        &mut self,
        tenant_id: TenantId,
        after: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<User>, Failure> {
        let after = after.map_or(Uuid::nil(), UserId::as_uuid);
        let rows: Vec<UserRow> = sql_as!(LIST_USERS, tenant_id.as_uuid(), after, i64::from(limit))
            .fetch_all(&mut *self.conn)
            .await?;
        rows.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    pub(crate) async fn find_user_by_name(
        &mut self,
        tenant_id: TenantId,
        name: &Name,
    ) -> Result<Option<User>, Failure> {
        let row: Option<UserRow> = sql_as!(FIND_USER_BY_NAME, tenant_id.as_uuid(), name.as_str())
            .fetch_optional(&mut *self.conn)
            .await?;
        Ok(row.map(User::try_from).transpose()?)
    }

    async fn set_user_state(
        &mut self,
        tenant_id: TenantId,
        id: UserId,
        state: EntityState,
    ) -> Result<bool, Failure> {
        let update = UserUpdate { state: Some(state), quota_tokens: None };
        // Without a quota in it, the time decides nothing.
        let updated = self.update_user(tenant_id, id, update, &|_any| true, UnixMillis(0)).await?;
        Ok(matches!(updated, Updated::Done(_)))
    }

    async fn find_user(&mut self, tenant_id: TenantId, id: UserId) -> Result<Option<User>, Failure> {
        let row: Option<UserRow> = sql_as!(FIND_USER, tenant_id.as_uuid(), id.as_uuid())
            .fetch_optional(&mut *self.conn)
            .await?;
        Ok(row.map(User::try_from).transpose()?)
    }

    async fn update_user(
        &mut self,
        tenant_id: TenantId,
        id: UserId,
        update: UserUpdate,
        is_expected: &Expected<'_, User>,
        now: UnixMillis,
    ) -> Result<Updated<User>, Failure> {
        self.lock_acts().await?;
        let found = self.find_user(tenant_id, id).await?;
        let Some(before) = found.filter(|user| user.state != EntityState::Deleted) else {
            return Ok(Updated::Absent);
        };
        if !is_expected(&before) {
            return Ok(Updated::Unexpected);
        }
        let mut after = before.clone();
        if let Some(state) = update.state {
            after.state = state;
            let done = sql!(SET_USER_STATE, tenant_id.as_uuid(), id.as_uuid(), state.as_str())
                .execute(&mut *self.conn)
                .await?;
            if done.rows_affected() == 0 {
                return Ok(Updated::Absent);
            }
        }
        if let Some(quota_tokens) = update.quota_tokens {
            after.quota_tokens = quota_tokens;
            let scope = Scope { kind: ScopeKind::User, id: id.as_uuid() };
            self.change_quota(scope, tenant_id, quota_tokens.into(), now).await?;
        }
        self.record_act(Act {
            action: "user.update",
            tenant_id: Some(tenant_id),
            target: id.to_string(),
            before: Some(facts(&before)),
            after: Some(facts(&after)),
        })
        .await?;
        self.publish(&[Change::User(id)]).await?;
        Ok(Updated::Done(after))
    }
}
