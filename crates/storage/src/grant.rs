//! What a presented key grants: the key, its user, its tenant, the tenant's months, and the window
//! limits of all three.

use sluice_domain::id::{ProxyKeyId, TenantId, UserId};
use sluice_domain::key::{KeyHash, ProxyKey};
use sluice_domain::limit::KeyLimits;
use sluice_domain::ports::StoreError;
use sluice_domain::quota::Payer;
use sluice_domain::tenant::{Tenant, User};
use sluice_domain::time::{Month, Period, UnixMillis};
use sqlx::FromRow;

use crate::error::{Failure, corrupt};
use crate::key::ProxyKeyRow;
use crate::storage::Storage;
use crate::tenant::TenantRow;
use crate::user::UserRow;

statements! {
    // The last three months are the one before, this and the next.
    FIND_GRANT = "SELECT k.key_id, k.tenant_id, k.user_id, k.name, k.hint, k.state, k.expires_at_ms, \
            k.allowed_models, k.may_pin, k.created_at_ms, kq.cap_tokens, \
            u.name AS user_name, u.role AS user_role, u.state AS user_state, \
            u.created_at_ms AS user_created_at_ms, uq.cap_tokens AS user_cap_tokens, \
            t.name AS tenant_name, t.time_zone AS tenant_time_zone, t.state AS tenant_state, \
            t.created_at_ms AS tenant_created_at_ms, tq.cap_tokens AS tenant_cap_tokens, \
            p.period, p.starts_at_ms, p.ends_at_ms \
        FROM proxy_keys k \
        JOIN users u ON u.user_id = k.user_id \
        JOIN tenants t ON t.tenant_id = k.tenant_id \
        LEFT JOIN quotas kq ON kq.scope = 'key' AND kq.scope_id = k.key_id \
        LEFT JOIN quotas uq ON uq.scope = 'user' AND uq.scope_id = k.user_id \
        LEFT JOIN quotas tq ON tq.scope = 'tenant' AND tq.scope_id = k.tenant_id \
        LEFT JOIN periods p ON p.tenant_id = k.tenant_id AND p.period IN \
            (SELECT l.period FROM periods l WHERE l.tenant_id = k.tenant_id \
             ORDER BY l.period DESC LIMIT 3) \
        WHERE k.key_hash = $1 ORDER BY p.period";
}

/// What a presented key grants. States and the expiry are as stored: whether it is served is for
/// the caller to judge.
#[derive(Debug, Clone)]
pub struct KeyGrant {
    /// The key, with its quota.
    pub key: ProxyKey,
    /// Its user, with theirs.
    pub user: User,
    /// Its tenant, with its.
    pub tenant: Tenant,
    /// The latest months of the tenant, at most three, ascending.
    pub periods: Vec<Period>,
    /// The window limits of all three.
    pub limits: KeyLimits,
}

#[derive(FromRow)]
struct GrantRow {
    #[sqlx(flatten)]
    key: ProxyKeyRow,
    user_name: String,
    user_role: String,
    user_state: String,
    user_created_at_ms: i64,
    user_cap_tokens: Option<i64>,
    tenant_name: String,
    tenant_time_zone: String,
    tenant_state: String,
    tenant_created_at_ms: i64,
    tenant_cap_tokens: Option<i64>,
    period: Option<i32>,
    starts_at_ms: Option<i64>,
    ends_at_ms: Option<i64>,
}

impl GrantRow {
    fn payer(&self) -> Payer {
        Payer {
            tenant_id: TenantId::from_uuid(self.key.tenant_id),
            user_id: UserId::from_uuid(self.key.user_id),
            key_id: ProxyKeyId::from_uuid(self.key.key_id),
        }
    }

    fn period(&self) -> Result<Option<Period>, StoreError> {
        let (Some(period), Some(starts), Some(ends)) =
            (self.period, self.starts_at_ms, self.ends_at_ms)
        else {
            return Ok(None);
        };
        let tenant = TenantId::from_uuid(self.key.tenant_id);
        let month =
            Month::from_number(period).ok_or_else(|| corrupt("periods", "period", tenant))?;
        Ok(Some(Period {
            month,
            starts_at: UnixMillis(starts),
            ends_at: UnixMillis(ends),
        }))
    }

    fn grant(self, periods: Vec<Period>, limits: KeyLimits) -> Result<KeyGrant, StoreError> {
        let user = UserRow {
            user_id: self.key.user_id,
            tenant_id: self.key.tenant_id,
            name: self.user_name,
            role: self.user_role,
            state: self.user_state,
            created_at_ms: self.user_created_at_ms,
            cap_tokens: self.user_cap_tokens,
        };
        let tenant = TenantRow {
            tenant_id: self.key.tenant_id,
            name: self.tenant_name,
            time_zone: self.tenant_time_zone,
            state: self.tenant_state,
            created_at_ms: self.tenant_created_at_ms,
            cap_tokens: self.tenant_cap_tokens,
        };
        Ok(KeyGrant {
            key: self.key.try_into()?,
            user: user.try_into()?,
            tenant: tenant.try_into()?,
            periods,
            limits,
        })
    }
}

impl Storage {
    /// Finds what a key grants, by its hash and in one snapshot.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_grant(&self, hash: &KeyHash) -> Result<Option<KeyGrant>, StoreError> {
        in_snapshot!(self, find_grant(hash))
    }
}

on_both! {
    async fn find_grant(&mut self, hash: &KeyHash) -> Result<Option<KeyGrant>, Failure> {
        let rows: Vec<GrantRow> =
            sql_as!(FIND_GRANT, hash.0.as_slice()).fetch_all(&mut *self.conn).await?;
        let mut periods = Vec::with_capacity(rows.len());
        for row in &rows {
            periods.extend(row.period()?);
        }
        let Some(row) = rows.into_iter().next() else { return Ok(None) };
        let limits = self.limits_of(row.payer()).await?;
        Ok(Some(row.grant(periods, limits)?))
    }
}
