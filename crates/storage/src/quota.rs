//! Quotas, and the counters that they cap.

use serde_json::json;
use sluice_domain::id::{ProxyKeyId, TenantId, UserId, uuid_v7};
use sluice_domain::key::KeyHash;
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Cap, Scope, ScopeKind};
use sluice_domain::time::{Month, UnixMillis};
use uuid::Uuid;

use crate::audit::Act;
use crate::calendar::this_and_next;
use crate::error::{Failure, corrupt, internal};
use crate::feed::Change;
use crate::storage::Storage;

statements! {
    PUT_QUOTA = "INSERT INTO quotas (scope, scope_id, tenant_id, cap_tokens, cap_nano, changed_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6) \
        ON CONFLICT (scope, scope_id) DO UPDATE SET cap_tokens = excluded.cap_tokens, \
            cap_nano = excluded.cap_nano, changed_at_ms = excluded.changed_at_ms";
    FIND_QUOTA = "SELECT cap_tokens, cap_nano FROM quotas WHERE scope = $1 AND scope_id = $2";
    // A peak is known only when the scope was capped for the whole month so far.
    INSERT_COUNTER = "INSERT INTO counters (counter_id, tenant_id, scope, scope_id, period, \
            cap_tokens, cap_nano, peak_cap_tokens, peak_cap_nano, used_tokens, used_nano) \
        VALUES ($1, $2, $3, $4, $5, \
            (SELECT cap_tokens FROM quotas WHERE scope = $3 AND scope_id = $4), \
            (SELECT cap_nano FROM quotas WHERE scope = $3 AND scope_id = $4), \
            (SELECT cap_tokens FROM quotas WHERE scope = $3 AND scope_id = $4 AND CAST($6 AS BIGINT) = 0), \
            (SELECT cap_nano FROM quotas WHERE scope = $3 AND scope_id = $4 AND CAST($7 AS BIGINT) = 0), \
            $6, $7) \
        ON CONFLICT DO NOTHING";
    FIND_COUNTER = "SELECT counter_id FROM counters WHERE scope = $1 AND scope_id = $2 AND period = $3";
    USED_BY_TENANT = "SELECT CAST(COALESCE(SUM(quota_tokens), 0) AS BIGINT), \
            CAST(COALESCE(SUM(charge_nano), 0) AS BIGINT) \
        FROM rollup_monthly WHERE tenant_id = $1 AND period = $2";
    USED_BY_USER = "SELECT CAST(COALESCE(SUM(quota_tokens), 0) AS BIGINT), \
            CAST(COALESCE(SUM(charge_nano), 0) AS BIGINT) \
        FROM rollup_monthly WHERE tenant_id = $1 AND period = $2 AND user_id = $3";
    USED_BY_KEY = "SELECT CAST(COALESCE(SUM(quota_tokens), 0) AS BIGINT), \
            CAST(COALESCE(SUM(charge_nano), 0) AS BIGINT) \
        FROM rollup_monthly WHERE tenant_id = $1 AND period = $2 AND key_id = $3";
    // Lowering asks idle leases back; raising makes that needless. Without a cap there is no peak
    // for the rest of the month.
    SET_COUNTER_CAP = "UPDATE counters SET \
            recall = CASE \
                WHEN CAST($4 AS BIGINT) < cap_tokens OR CAST($5 AS BIGINT) < cap_nano \
                    OR (cap_tokens IS NULL AND $4 IS NOT NULL) \
                    OR (cap_nano IS NULL AND $5 IS NOT NULL) THEN TRUE \
                WHEN cap_tokens IS NOT DISTINCT FROM $4 AND cap_nano IS NOT DISTINCT FROM $5 THEN recall \
                ELSE FALSE END, \
            peak_cap_tokens = CASE WHEN $4 IS NULL THEN NULL \
                WHEN $4 > peak_cap_tokens THEN $4 ELSE peak_cap_tokens END, \
            peak_cap_nano = CASE WHEN $5 IS NULL THEN NULL \
                WHEN $5 > peak_cap_nano THEN $5 ELSE peak_cap_nano END, \
            cap_tokens = $4, cap_nano = $5 \
        WHERE scope = $1 AND scope_id = $2 AND period = $3";
    FIND_SCOPE_TENANT = "SELECT tenant_id FROM tenants WHERE tenant_id = $1 AND state <> 'deleted'";
    FIND_SCOPE_USER = "SELECT user_id FROM users WHERE user_id = $1 AND tenant_id = $2 AND state <> 'deleted'";
    FIND_SCOPE_KEY = "SELECT key_hash FROM proxy_keys WHERE key_id = $1 AND tenant_id = $2 AND state <> 'deleted'";
}

/// Makes a time-ordered id for a row that only this crate knows.
pub(crate) fn new_row_id(now: UnixMillis) -> Result<Uuid, StoreError> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(|error| internal(error.to_string()))?;
    Ok(uuid_v7(u64::try_from(now.0).unwrap_or(0), random))
}

/// What becomes of the caps of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapChange {
    /// Both become these; `None` is without a cap.
    Both(Cap),
    /// That of tokens becomes this; that of money stays.
    Tokens(Option<i64>),
}

impl CapChange {
    fn of(self, before: Cap) -> Cap {
        match self {
            Self::Both(cap) => cap,
            Self::Tokens(tokens) => Cap { tokens, ..before },
        }
    }
}

impl From<Cap> for CapChange {
    fn from(cap: Cap) -> Self {
        Self::Both(cap)
    }
}

impl From<Option<i64>> for CapChange {
    /// Tokens alone.
    fn from(tokens: Option<i64>) -> Self {
        Self::Tokens(tokens)
    }
}

impl Storage {
    /// Sets what a tenant, user or key may use in a month, from this month on; `None` takes a cap
    /// away. A number alone is of tokens and leaves the cap of money. `false` when the tenant has no
    /// such scope.
    ///
    /// A cap that is new for a user or key takes into account what was used in this month. A cap that
    /// is lowered asks idle leases back; open ones run on.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when a cap is negative or too large.
    pub async fn set_quota(
        &self,
        scope: Scope,
        tenant_id: TenantId,
        change: impl Into<CapChange>,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        self.set_caps(scope, tenant_id, change.into(), now).await
    }

    async fn set_caps(
        &self,
        scope: Scope,
        tenant_id: TenantId,
        change: CapChange,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_quota(scope, tenant_id, change, now))
    }
}

on_both! {
    async fn set_quota(
        &mut self,
        scope: Scope,
        tenant_id: TenantId,
        change: CapChange,
        now: UnixMillis,
    ) -> Result<bool, Failure> {
        let Some(changed) = self.find_scope(scope, tenant_id).await? else { return Ok(false) };
        let quota = sql_as!(FIND_QUOTA, scope.kind.as_str(), scope.id);
        let before: Option<(Option<i64>, Option<i64>)> =
            quota.fetch_optional(&mut *self.conn).await?;
        self.change_quota(scope, tenant_id, change, now).await?;
        let quota = sql_as!(FIND_QUOTA, scope.kind.as_str(), scope.id);
        let after: Option<(Option<i64>, Option<i64>)> = quota.fetch_optional(&mut *self.conn).await?;
        let facts = |caps: (Option<i64>, Option<i64>)| json!({"tokens": caps.0, "nano": caps.1});
        self.record_act(Act {
            action: "quota.set",
            tenant_id: Some(tenant_id),
            target: match scope.kind {
                ScopeKind::Tenant => tenant_id.to_string(),
                ScopeKind::User => UserId::from_uuid(scope.id).to_string(),
                ScopeKind::Key => ProxyKeyId::from_uuid(scope.id).to_string(),
            },
            before: before.map(facts),
            after: after.map(facts),
        })
        .await?;
        self.publish(&[changed]).await?;
        Ok(true)
    }

    /// Writes the quota and brings the counters of this month and the next in line.
    pub(crate) async fn change_quota(
        &mut self,
        scope: Scope,
        tenant_id: TenantId,
        change: CapChange,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        let zone = self.time_zone_of(tenant_id.as_uuid()).await?;
        let periods = this_and_next(&zone, now);
        // The counter of the tenant is what posting and this transaction wait for each other on:
        // between a sum of what was used and the counter that begins with it, nothing is posted.
        let tenant = Scope { kind: ScopeKind::Tenant, id: tenant_id.as_uuid() };
        let months = periods.map(|period| period.month.as_number());
        let tenants = [tenant.id; 2];
        // As posts do: what is there is locked before anything is made.
        self.lock_tenant_counters(&tenants, &months).await?;
        for period in periods {
            self.ensure_counter(tenant, tenant_id, period.month, now).await?;
        }
        self.lock_tenant_counters(&tenants, &months).await?;
        let before: Option<(Option<i64>, Option<i64>)> =
            sql_as!(FIND_QUOTA, scope.kind.as_str(), scope.id).fetch_optional(&mut *self.conn).await?;
        let before = before.map_or_else(Cap::default, |(tokens, nano)| Cap { tokens, nano });
        let cap = change.of(before);
        self.put_quota(scope, tenant_id, cap, now).await?;
        for period in periods {
            let changed = sql!(
                SET_COUNTER_CAP,
                scope.kind.as_str(),
                scope.id,
                period.month.as_number(),
                cap.tokens,
                cap.nano,
            )
            .execute(&mut *self.conn)
            .await?
            .rows_affected();
            if changed == 0 && cap.is_set() {
                self.ensure_counter(scope, tenant_id, period.month, now).await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn put_quota(
        &mut self,
        scope: Scope,
        tenant_id: TenantId,
        cap: Cap,
        now: UnixMillis,
    ) -> Result<(), Failure> {
        sql!(
            PUT_QUOTA,
            scope.kind.as_str(),
            scope.id,
            tenant_id.as_uuid(),
            cap.tokens,
            cap.nano,
            now.0,
        )
        .execute(&mut *self.conn)
        .await?;
        Ok(())
    }

    /// Returns the counter of a scope in a month. A new one has the cap of its quota, and has used
    /// what the rollups say.
    pub(crate) async fn ensure_counter(
        &mut self,
        scope: Scope,
        tenant_id: TenantId,
        month: Month,
        now: UnixMillis,
    ) -> Result<Uuid, Failure> {
        if let Some(found) = self.find_counter(scope, month).await? {
            return Ok(found);
        }
        let (tokens, nano) = self.used_by(scope, tenant_id, month).await?;
        sql!(
            INSERT_COUNTER,
            new_row_id(now)?,
            tenant_id.as_uuid(),
            scope.kind.as_str(),
            scope.id,
            month.as_number(),
            tokens,
            nano,
        )
        .execute(&mut *self.conn)
        .await?;
        // Another transaction may have been faster.
        let found = self.find_counter(scope, month).await?;
        Ok(found.ok_or_else(|| corrupt("counters", "counter_id", scope.id))?)
    }

    async fn find_counter(&mut self, scope: Scope, month: Month) -> Result<Option<Uuid>, Failure> {
        let found = sql_scalar!(FIND_COUNTER, scope.kind.as_str(), scope.id, month.as_number());
        Ok(found.fetch_optional(&mut *self.conn).await?)
    }

    async fn used_by(
        &mut self,
        scope: Scope,
        tenant_id: TenantId,
        month: Month,
    ) -> Result<(i64, i64), Failure> {
        let (tenant, month) = (tenant_id.as_uuid(), month.as_number());
        Ok(match scope.kind {
            ScopeKind::Tenant => {
                sql_as!(USED_BY_TENANT, tenant, month).fetch_one(&mut *self.conn).await?
            }
            ScopeKind::User => {
                sql_as!(USED_BY_USER, tenant, month, scope.id).fetch_one(&mut *self.conn).await?
            }
            ScopeKind::Key => {
                sql_as!(USED_BY_KEY, tenant, month, scope.id).fetch_one(&mut *self.conn).await?
            }
        })
    }

    /// Returns what a change of the scope is called, when the tenant has such a scope.
    pub(crate) async fn find_scope(
        &mut self,
        scope: Scope,
        tenant_id: TenantId,
    ) -> Result<Option<Change>, Failure> {
        let tenant = tenant_id.as_uuid();
        Ok(match scope.kind {
            ScopeKind::Tenant if scope.id != tenant => None,
            ScopeKind::Tenant => sql_scalar!(FIND_SCOPE_TENANT, tenant)
                .fetch_optional(&mut *self.conn)
                .await?
                .map(|id: Uuid| Change::Tenant(TenantId::from_uuid(id))),
            ScopeKind::User => sql_scalar!(FIND_SCOPE_USER, scope.id, tenant)
                .fetch_optional(&mut *self.conn)
                .await?
                .map(|id: Uuid| Change::User(UserId::from_uuid(id))),
            ScopeKind::Key => {
                let hash: Option<Vec<u8>> = sql_scalar!(FIND_SCOPE_KEY, scope.id, tenant)
                    .fetch_optional(&mut *self.conn)
                    .await?;
                hash.map(|hash| {
                    let hash = hash.try_into();
                    hash.map(|hash| Change::Key(KeyHash(hash))).map_err(|_len| {
                        corrupt("proxy_keys", "key_hash", ProxyKeyId::from_uuid(scope.id))
                    })
                })
                .transpose()?
            }
        })
    }
}
