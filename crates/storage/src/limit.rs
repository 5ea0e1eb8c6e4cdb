//! Window limits as they are set; counting is not done here.

use sluice_domain::id::TenantId;
use sluice_domain::limit::{KeyLimits, LimitTarget, SetLimit};
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Payer, Scope, ScopeKind};
use sluice_domain::time::UnixMillis;
use sluice_domain::window::{WindowKind, WindowLimit};
use sqlx::FromRow;
use uuid::Uuid;

use crate::error::{Failure, corrupt, internal};
use crate::storage::Storage;

statements! {
    PUT_LIMIT = "INSERT INTO window_limits (scope, scope_id, model, kind, tenant_id, most, dry_run, changed_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
        ON CONFLICT (scope, scope_id, model, kind) DO UPDATE SET most = excluded.most, \
            dry_run = excluded.dry_run, changed_at_ms = excluded.changed_at_ms";
    REMOVE_LIMIT = "DELETE FROM window_limits \
        WHERE scope = $1 AND scope_id = $2 AND model = $3 AND kind = $4";
    LIST_LIMITS = "SELECT scope, scope_id, model, kind, most, dry_run FROM window_limits \
        WHERE tenant_id = $1 ORDER BY scope, scope_id, model, kind";
    LIMITS_OF_KEY = "SELECT scope, scope_id, model, kind, most, dry_run FROM window_limits \
        WHERE (scope = 'tenant' AND scope_id = $1) OR (scope = 'user' AND scope_id = $2) \
            OR (scope = 'key' AND scope_id = $3)";
}

/// What stands in the place of a model where there is none.
const EVERY_MODEL: &str = "";

/// A limit that is set anew, or taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitChange {
    /// What it counts.
    pub kind: WindowKind,
    /// What it becomes; `None` is without a limit.
    pub limit: Option<WindowLimit>,
}

#[derive(FromRow)]
struct LimitRow {
    scope: String,
    scope_id: Uuid,
    model: String,
    kind: String,
    most: i64,
    dry_run: bool,
}

impl TryFrom<LimitRow> for SetLimit {
    type Error = StoreError;

    fn try_from(row: LimitRow) -> Result<Self, StoreError> {
        let bad = |column| corrupt("window_limits", column, row.scope_id);
        let limit = u64::try_from(row.most)
            .ok()
            .and_then(|most| WindowLimit::new(most).ok())
            .ok_or_else(|| bad("most"))?;
        Ok(Self {
            target: LimitTarget {
                scope: Scope {
                    kind: row.scope.parse().map_err(|_unknown| bad("scope"))?,
                    id: row.scope_id,
                },
                model: Some(row.model).filter(|model| model != EVERY_MODEL),
            },
            kind: row.kind.parse().map_err(|_unknown| bad("kind"))?,
            limit: if row.dry_run { limit.dry_run() } else { limit },
        })
    }
}

impl Storage {
    /// Changes limits of a tenant, user or key, or of a model on a key; those of other kinds stay.
    /// `false` when the tenant has no such scope.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when a model is given and the scope is no key.
    pub async fn set_limits(
        &self,
        target: &LimitTarget,
        tenant_id: TenantId,
        changes: &[LimitChange],
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_limits(target, tenant_id, changes, now))
    }

    /// Lists the limits that are set for a tenant, its users and its keys, by scope, model and kind.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_limits(&self, tenant_id: TenantId) -> Result<Vec<SetLimit>, StoreError> {
        reading!(self, list_limits(tenant_id))
    }
}

on_both! {
    async fn set_limits(
        &mut self,
        target: &LimitTarget,
        tenant_id: TenantId,
        changes: &[LimitChange],
        now: UnixMillis,
    ) -> Result<bool, Failure> {
        let scope = target.scope;
        let Some(changed) = self.find_scope(scope, tenant_id).await? else { return Ok(false) };
        let model = target.model.as_deref().unwrap_or(EVERY_MODEL);
        for change in changes {
            let kind = change.kind.as_str();
            match change.limit {
                None => sql!(REMOVE_LIMIT, scope.kind.as_str(), scope.id, model, kind),
                Some(limit) => {
                    let most = i64::try_from(limit.most()).map_err(internal)?;
                    sql!(
                        PUT_LIMIT,
                        scope.kind.as_str(),
                        scope.id,
                        model,
                        kind,
                        tenant_id.as_uuid(),
                        most,
                        limit.dry_run,
                        now.0,
                    )
                }
            }
            .execute(&mut *self.conn)
            .await?;
        }
        self.publish(&[changed]).await?;
        Ok(true)
    }

    async fn list_limits(&mut self, tenant_id: TenantId) -> Result<Vec<SetLimit>, Failure> {
        let rows: Vec<LimitRow> =
            sql_as!(LIST_LIMITS, tenant_id.as_uuid()).fetch_all(&mut *self.conn).await?;
        Ok(rows.into_iter().map(SetLimit::try_from).collect::<Result<_, _>>()?)
    }

    /// Returns every limit that the requests of a key meet.
    pub(crate) async fn limits_of(&mut self, payer: Payer) -> Result<KeyLimits, Failure> {
        let rows: Vec<LimitRow> = sql_as!(
            LIMITS_OF_KEY,
            payer.tenant_id.as_uuid(),
            payer.user_id.as_uuid(),
            payer.key_id.as_uuid(),
        )
        .fetch_all(&mut *self.conn)
        .await?;
        let mut limits = KeyLimits::default();
        for row in rows {
            let SetLimit { target, kind, limit } = row.try_into()?;
            let place = match (target.scope.kind, target.model) {
                (_, Some(model)) => limits.models.entry(model.into()).or_default(),
                (ScopeKind::Tenant, None) => &mut limits.tenant,
                (ScopeKind::User, None) => &mut limits.user,
                (ScopeKind::Key, None) => &mut limits.key,
            };
            place.set(kind, Some(limit));
        }
        Ok(limits)
    }
}
