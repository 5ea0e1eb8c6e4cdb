//! Tenants.

use serde_json::{Value, json};
use sluice_domain::id::TenantId;
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Cap, Scope, ScopeKind};
use sluice_domain::tenant::{EntityState, Name, Tenant};
use sluice_domain::time::{TimeZone, UnixMillis};
use sqlx::FromRow;
use uuid::Uuid;

use crate::audit::{Act, Expected, Updated};
use crate::calendar;
use crate::error::{Failure, corrupt};
use crate::feed::Change;
use crate::storage::Storage;

statements! {
    INSERT_TENANT = "INSERT INTO tenants (tenant_id, name, time_zone, state, created_at_ms) \
        VALUES ($1, $2, $3, $4, $5)";
    FIND_TENANT = "SELECT t.tenant_id, t.name, t.time_zone, t.state, t.created_at_ms, q.cap_tokens \
        FROM tenants t LEFT JOIN quotas q ON q.scope = 'tenant' AND q.scope_id = t.tenant_id \
        WHERE t.tenant_id = $1";
    FIND_TENANT_BY_NAME = "SELECT t.tenant_id, t.name, t.time_zone, t.state, t.created_at_ms, q.cap_tokens \
        FROM tenants t LEFT JOIN quotas q ON q.scope = 'tenant' AND q.scope_id = t.tenant_id \
        WHERE t.name = $1 AND t.state <> 'deleted'";
    LIST_TENANTS = "SELECT t.tenant_id, t.name, t.time_zone, t.state, t.created_at_ms, q.cap_tokens \
        FROM tenants t LEFT JOIN quotas q ON q.scope = 'tenant' AND q.scope_id = t.tenant_id \
        WHERE t.tenant_id > $1 ORDER BY t.tenant_id LIMIT $2";
    SET_TENANT_STATE = "UPDATE tenants SET state = $2 WHERE tenant_id = $1 AND state <> 'deleted'";
}

/// What a new tenant needs.
#[derive(Debug, Clone)]
pub struct NewTenant {
    /// Its id.
    pub id: TenantId,
    /// Its name.
    pub name: Name,
    /// The zone of its months and days.
    pub time_zone: TimeZone,
    /// Tokens per month; `None` is without a cap.
    pub quota_tokens: Option<i64>,
    /// The time.
    pub now: UnixMillis,
}

/// What changes about a tenant; what is `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct TenantUpdate {
    /// Whether its keys are served.
    pub state: Option<EntityState>,
    /// Tokens per month; `Some(None)` takes the cap away.
    pub quota_tokens: Option<Option<i64>>,
}

fn facts(tenant: &Tenant) -> Value {
    json!({
        "name": tenant.name.as_str(),
        "time_zone": tenant.time_zone.name(),
        "state": tenant.state.as_str(),
        "quota_tokens": tenant.quota_tokens,
    })
}

#[derive(FromRow)]
pub(crate) struct TenantRow {
    pub(crate) tenant_id: Uuid,
    pub(crate) name: String,
    pub(crate) time_zone: String,
    pub(crate) state: String,
    pub(crate) created_at_ms: i64,
    pub(crate) cap_tokens: Option<i64>,
}

impl TryFrom<TenantRow> for Tenant {
    type Error = StoreError;

    fn try_from(row: TenantRow) -> Result<Self, StoreError> {
        let id = TenantId::from_uuid(row.tenant_id);
        Ok(Self {
            id,
            name: row
                .name
                .parse()
                .map_err(|_bad| corrupt("tenants", "name", id))?,
            time_zone: row
                .time_zone
                .parse()
                .map_err(|_bad| corrupt("tenants", "time_zone", id))?,
            state: row
                .state
                .parse()
                .map_err(|_bad| corrupt("tenants", "state", id))?,
            quota_tokens: row.cap_tokens,
            created_at: UnixMillis(row.created_at_ms),
        })
    }
}

impl Storage {
    /// Makes a tenant with its quota, its months (this one and the next) and their counters.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a tenant has the name.
    pub async fn create_tenant(&self, new: NewTenant) -> Result<Tenant, StoreError> {
        in_transaction!(self, create_tenant(&new))
    }

    /// Lists tenants in the order of their ids, beginning after one; also those that are deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_tenants(
        &self,
        after: Option<TenantId>,
        limit: u32,
    ) -> Result<Vec<Tenant>, StoreError> {
        reading!(self, list_tenants(after, limit))
    }

    /// Finds a tenant by its name; one that was deleted has none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_tenant_by_name(&self, name: &Name) -> Result<Option<Tenant>, StoreError> {
        reading!(self, find_tenant_by_name(name))
    }

    /// Finds a tenant.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_tenant(&self, id: TenantId) -> Result<Option<Tenant>, StoreError> {
        reading!(self, find_tenant(id))
    }

    /// Sets the state of a tenant; `false` when there is none or it was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_tenant_state(
        &self,
        id: TenantId,
        state: EntityState,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_tenant_state(id, state))
    }

    /// Changes a tenant that is as the caller expects it.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when a cap is negative or too large.
    pub async fn update_tenant(
        &self,
        id: TenantId,
        update: TenantUpdate,
        is_expected: &Expected<'_, Tenant>,
        now: UnixMillis,
    ) -> Result<Updated<Tenant>, StoreError> {
        in_transaction!(self, update_tenant(id, update, is_expected, now))
    }
}

on_both! {
    async fn create_tenant(&mut self, new: &NewTenant) -> Result<Tenant, Failure> {
        sql!(
            INSERT_TENANT,
            new.id.as_uuid(),
            new.name.as_str(),
            new.time_zone.name(),
            EntityState::Active.as_str(),
            new.now.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || format!("a tenant named `{}`", new.name)))?;
        let scope = Scope { kind: ScopeKind::Tenant, id: new.id.as_uuid() };
        self.put_quota(scope, new.id, Cap { tokens: new.quota_tokens, nano: None }, new.now).await?;
        for period in calendar::this_and_next(&new.time_zone, new.now) {
            self.insert_period(new.id, period).await?;
            self.ensure_counter(scope, new.id, period.month, new.now).await?;
        }
        let made = Tenant {
            id: new.id,
            name: new.name.clone(),
            time_zone: new.time_zone.clone(),
            state: EntityState::Active,
            quota_tokens: new.quota_tokens,
            created_at: new.now,
        };
        self.record_act(Act {
            action: "tenant.create",
            tenant_id: Some(new.id),
            target: new.id.to_string(),
            before: None,
            after: Some(facts(&made)),
        })
        .await?;
        self.publish(&[Change::Tenant(new.id)]).await?;
        Ok(made)
    }

    async fn list_tenants(
        &mut self,
        after: Option<TenantId>,
        limit: u32,
    ) -> Result<Vec<Tenant>, Failure> {
        let after = after.map_or(Uuid::nil(), TenantId::as_uuid);
        let rows: Vec<TenantRow> =
            sql_as!(LIST_TENANTS, after, i64::from(limit)).fetch_all(&mut *self.conn).await?;
        rows.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    async fn find_tenant_by_name(
        &mut self,
        name: &Name,
    ) -> Result<Option<Tenant>, Failure> {
        let row: Option<TenantRow> =
            sql_as!(FIND_TENANT_BY_NAME, name.as_str()).fetch_optional(&mut *self.conn).await?;
        Ok(row.map(Tenant::try_from).transpose()?)
    }

    pub(crate) async fn find_tenant(
        &mut self,
        id: TenantId,
    ) -> Result<Option<Tenant>, Failure> {
        let row: Option<TenantRow> = sql_as!(FIND_TENANT, id.as_uuid()).fetch_optional(&mut *self.conn).await?;
        Ok(row.map(Tenant::try_from).transpose()?)
    }

    async fn set_tenant_state(
        &mut self,
        id: TenantId,
        state: EntityState,
    ) -> Result<bool, Failure> {
        let update = TenantUpdate { state: Some(state), quota_tokens: None };
        // Without a quota in it, the time decides nothing.
        let updated = self.update_tenant(id, update, &|_any| true, UnixMillis(0)).await?;
        Ok(matches!(updated, Updated::Done(_)))
    }

    async fn update_tenant(
        &mut self,
        id: TenantId,
        update: TenantUpdate,
        is_expected: &Expected<'_, Tenant>,
        now: UnixMillis,
    ) -> Result<Updated<Tenant>, Failure> {
        self.lock_acts().await?;
        let found = self.find_tenant(id).await?;
        let Some(before) = found.filter(|t| t.state != EntityState::Deleted) else {
            return Ok(Updated::Absent);
        };
        if !is_expected(&before) {
            return Ok(Updated::Unexpected);
        }
        let mut after = before.clone();
        if let Some(state) = update.state {
            after.state = state;
            let done = sql!(SET_TENANT_STATE, id.as_uuid(), state.as_str())
                .execute(&mut *self.conn)
                .await?;
            if done.rows_affected() == 0 {
                return Ok(Updated::Absent);
            }
        }
        if let Some(quota_tokens) = update.quota_tokens {
            after.quota_tokens = quota_tokens;
            let scope = Scope { kind: ScopeKind::Tenant, id: id.as_uuid() };
            self.change_quota(scope, id, quota_tokens.into(), now).await?;
        }
        self.record_act(Act {
            action: "tenant.update",
            tenant_id: Some(id),
            target: id.to_string(),
            before: Some(facts(&before)),
            after: Some(facts(&after)),
        })
        .await?;
        self.publish(&[Change::Tenant(id)]).await?;
        Ok(Updated::Done(after))
    }
}
