//! Proxy keys.

use serde_json::{Value, json};
use sluice_domain::id::{ProxyKeyId, TenantId, UserId};
use sluice_domain::key::{KeyHash, KeyHint, ProxyKey};
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Scope, ScopeKind};
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use crate::audit::{Act, Expected, Updated};
use crate::error::{Failure, corrupt, internal};
use crate::feed::Change;
use crate::storage::Storage;

statements! {
    // Nothing is inserted when the tenant has no such user.
    INSERT_KEY = "INSERT INTO proxy_keys (key_id, tenant_id, user_id, name, key_hash, hint, state, \
            expires_at_ms, allowed_models, may_pin, created_at_ms) \
        SELECT $1, tenant_id, user_id, $4, $5, $6, $7, $8, $9, $10, $11 FROM users \
        WHERE tenant_id = $2 AND user_id = $3 AND state <> 'deleted'";
    FIND_KEY = "SELECT k.key_id, k.tenant_id, k.user_id, k.name, k.hint, k.state, k.expires_at_ms, \
            k.allowed_models, k.may_pin, k.created_at_ms, q.cap_tokens \
        FROM proxy_keys k LEFT JOIN quotas q ON q.scope = 'key' AND q.scope_id = k.key_id \
        WHERE k.key_id = $1";
    LIST_KEYS = "SELECT k.key_id, k.tenant_id, k.user_id, k.name, k.hint, k.state, k.expires_at_ms, \
            k.allowed_models, k.may_pin, k.created_at_ms, q.cap_tokens \
        FROM proxy_keys k LEFT JOIN quotas q ON q.scope = 'key' AND q.scope_id = k.key_id \
        WHERE k.key_id > $1 ORDER BY k.key_id LIMIT $2";
    LIST_KEYS_OF_TENANT = "SELECT k.key_id, k.tenant_id, k.user_id, k.name, k.hint, k.state, k.expires_at_ms, \
            k.allowed_models, k.may_pin, k.created_at_ms, q.cap_tokens \
        FROM proxy_keys k LEFT JOIN quotas q ON q.scope = 'key' AND q.scope_id = k.key_id \
        WHERE k.tenant_id = $1 AND k.key_id > $2 ORDER BY k.key_id LIMIT $3";
    UPDATE_KEY = "UPDATE proxy_keys SET state = $3, may_pin = $4, allowed_models = $5, expires_at_ms = $6 \
        WHERE tenant_id = $1 AND key_id = $2 AND state <> 'deleted' RETURNING key_hash";
}

/// What a new proxy key needs.
#[derive(Debug, Clone)]
pub struct NewProxyKey {
    /// Its id.
    pub id: ProxyKeyId,
    /// The tenant.
    pub tenant_id: TenantId,
    /// The user.
    pub user_id: UserId,
    /// Its name.
    pub name: Name,
    /// The keyed hash of the secret.
    pub key_hash: KeyHash,
    /// What may be shown of it.
    pub hint: KeyHint,
    /// When it ends; `None` is never.
    pub expires_at: Option<UnixMillis>,
    /// Models it may ask for; `None` is every model of its tenant.
    pub allowed_models: Option<Vec<String>>,
    /// Whether a request may name its upstream.
    pub may_pin: bool,
    /// Tokens per month; `None` is without a cap.
    pub quota_tokens: Option<i64>,
    /// Whether it is served at once.
    pub state: EntityState,
    /// The time.
    pub now: UnixMillis,
}

/// What changes about a proxy key; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct ProxyKeyUpdate {
    /// Whether it is served; [`EntityState::Deleted`] revokes it for good.
    pub state: Option<EntityState>,
    /// When it ends; `Some(None)` is never.
    pub expires_at: Option<Option<UnixMillis>>,
    /// Models it may ask for; `Some(None)` is every model of its tenant.
    pub allowed_models: Option<Option<Vec<String>>>,
    /// Whether a request may name its upstream.
    pub may_pin: Option<bool>,
    /// Tokens per month; `Some(None)` takes the cap away.
    pub quota_tokens: Option<Option<i64>>,
}

fn facts(key: &ProxyKey) -> Value {
    json!({
        "user_id": key.user_id.to_string(),
        "name": key.name.as_str(),
        "hint": key.hint.as_str(),
        "state": key.state.as_str(),
        "expires_at": key.expires_at.map(UnixMillis::to_rfc3339),
        "allowed_models": key.allowed_models,
        "may_pin": key.may_pin,
        "quota_tokens": key.quota_tokens,
    })
}

#[derive(FromRow)]
pub(crate) struct ProxyKeyRow {
    pub(crate) key_id: Uuid,
    pub(crate) tenant_id: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) name: String,
    pub(crate) hint: String,
    pub(crate) state: String,
    pub(crate) expires_at_ms: Option<i64>,
    pub(crate) allowed_models: Option<String>,
    pub(crate) may_pin: bool,
    pub(crate) created_at_ms: i64,
    pub(crate) cap_tokens: Option<i64>,
}

impl TryFrom<ProxyKeyRow> for ProxyKey {
    type Error = StoreError;

    fn try_from(row: ProxyKeyRow) -> Result<Self, StoreError> {
        let id = ProxyKeyId::from_uuid(row.key_id);
        let allowed_models = row
            .allowed_models
            .map(|json| serde_json::from_str(&json))
            .transpose()
            .map_err(|_bad| corrupt("proxy_keys", "allowed_models", id))?;
        Ok(Self {
            id,
            tenant_id: TenantId::from_uuid(row.tenant_id),
            user_id: UserId::from_uuid(row.user_id),
            name: row
                .name
                .parse()
                .map_err(|_bad| corrupt("proxy_keys", "name", id))?,
            hint: KeyHint::from_stored(row.hint),
            state: row
                .state
                .parse()
                .map_err(|_bad| corrupt("proxy_keys", "state", id))?,
            expires_at: row.expires_at_ms.map(UnixMillis),
            allowed_models,
            may_pin: row.may_pin,
            quota_tokens: row.cap_tokens,
            created_at: UnixMillis(row.created_at_ms),
        })
    }
}

impl Storage {
    /// Makes a proxy key with its quota; `None` when the tenant has no such user.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a key with the hash exists, in any tenant and any state.
    pub async fn insert_key(&self, new: NewProxyKey) -> Result<Option<ProxyKey>, StoreError> {
        in_transaction!(self, create_key(&new))
    }

    /// Lists keys in the order of their ids, beginning after one, of one tenant or of all; also
    /// those that are deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_keys(
        &self,
        tenant_id: Option<TenantId>,
        after: Option<ProxyKeyId>,
        limit: u32,
    ) -> Result<Vec<ProxyKey>, StoreError> {
        reading!(self, list_keys(tenant_id, after, limit))
    }

    /// Finds a key by its id, in any tenant.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_key(&self, id: ProxyKeyId) -> Result<Option<ProxyKey>, StoreError> {
        reading!(self, find_key(id))
    }

    /// Changes a key of a tenant that is as the caller expects it.
    ///
    /// # Errors
    /// [`StoreError::Internal`] when a cap is negative or too large.
    pub async fn update_key(
        &self,
        tenant_id: TenantId,
        id: ProxyKeyId,
        update: ProxyKeyUpdate,
        is_expected: &Expected<'_, ProxyKey>,
        now: UnixMillis,
    ) -> Result<Updated<ProxyKey>, StoreError> {
        in_transaction!(self, update_key(tenant_id, id, &update, is_expected, now))
    }

    /// Sets whether requests with a key may name their upstream, in any tenant; `false` when there is
    /// no such key or it was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_key_pin(&self, id: ProxyKeyId, may_pin: bool) -> Result<bool, StoreError> {
        in_transaction!(self, set_key_pin(id, may_pin))
    }

    /// Sets the state of a key, in any tenant; `false` when there is none or it was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_key_state(
        &self,
        id: ProxyKeyId,
        state: EntityState,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_key_state(id, state))
    }
}

on_both! {
    async fn create_key(&mut self, new: &NewProxyKey) -> Result<Option<ProxyKey>, Failure> {
        if !self.insert_key(new).await? {
            return Ok(None);
        }
        let made = ProxyKey {
            id: new.id,
            tenant_id: new.tenant_id,
            user_id: new.user_id,
            name: new.name.clone(),
            hint: new.hint.clone(),
            state: new.state,
            expires_at: new.expires_at,
            allowed_models: new.allowed_models.clone(),
            may_pin: new.may_pin,
            quota_tokens: new.quota_tokens,
            created_at: new.now,
        };
        self.record_act(Act {
            action: "key.issue",
            tenant_id: Some(new.tenant_id),
            target: new.id.to_string(),
            before: None,
            after: Some(facts(&made)),
        })
        .await?;
        self.publish(&[Change::Key(new.key_hash)]).await?;
        Ok(Some(made))
    }

    /// Returns whether the tenant has such a user.
    pub(crate) async fn insert_key(&mut self, new: &NewProxyKey) -> Result<bool, Failure> {
        let models = new.allowed_models.as_ref().map(serde_json::to_string).transpose();
        let done = sql!(
            INSERT_KEY,
            new.id.as_uuid(),
            new.tenant_id.as_uuid(),
            new.user_id.as_uuid(),
            new.name.as_str(),
            new.key_hash.0.as_slice(),
            new.hint.as_str(),
            new.state.as_str(),
            new.expires_at.map(|at| at.0),
            models.map_err(internal)?,
            new.may_pin,
            new.now.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || "this key".to_owned()))?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        if new.quota_tokens.is_some() {
            let scope = Scope { kind: ScopeKind::Key, id: new.id.as_uuid() };
            self.change_quota(scope, new.tenant_id, new.quota_tokens.into(), new.now).await?;
        }
        Ok(true)
    }

    async fn list_keys(
        &mut self,
        tenant_id: Option<TenantId>,
        after: Option<ProxyKeyId>,
        limit: u32,
    ) -> Result<Vec<ProxyKey>, Failure> {
        let after = after.map_or(Uuid::nil(), ProxyKeyId::as_uuid);
        let limit = i64::from(limit);
        let rows: Vec<ProxyKeyRow> = match tenant_id {
            Some(tenant) => {
                sql_as!(LIST_KEYS_OF_TENANT, tenant.as_uuid(), after, limit)
                    .fetch_all(&mut *self.conn)
                    .await?
            }
            None => sql_as!(LIST_KEYS, after, limit).fetch_all(&mut *self.conn).await?,
        };
        rows.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    async fn find_key(&mut self, id: ProxyKeyId) -> Result<Option<ProxyKey>, Failure> {
        let row: Option<ProxyKeyRow> =
            sql_as!(FIND_KEY, id.as_uuid()).fetch_optional(&mut *self.conn).await?;
        Ok(row.map(ProxyKey::try_from).transpose()?)
    }

    async fn set_key_state(&mut self, id: ProxyKeyId, state: EntityState) -> Result<bool, Failure> {
        let update = ProxyKeyUpdate { state: Some(state), ..ProxyKeyUpdate::default() };
        self.update_key_anywhere(id, &update).await
    }

    async fn set_key_pin(&mut self, id: ProxyKeyId, may_pin: bool) -> Result<bool, Failure> {
        let update = ProxyKeyUpdate { may_pin: Some(may_pin), ..ProxyKeyUpdate::default() };
        self.update_key_anywhere(id, &update).await
    }

    /// Changes a key of whatever tenant, without its quota.
    async fn update_key_anywhere(
        &mut self,
        id: ProxyKeyId,
        update: &ProxyKeyUpdate,
    ) -> Result<bool, Failure> {
        let Some(key) = self.find_key(id).await? else { return Ok(false) };
        // Without a quota in it, the time decides nothing.
        let updated =
            self.update_key(key.tenant_id, id, update, &|_any| true, UnixMillis(0)).await?;
        Ok(matches!(updated, Updated::Done(_)))
    }

    async fn update_key(
        &mut self,
        tenant_id: TenantId,
        id: ProxyKeyId,
        update: &ProxyKeyUpdate,
        is_expected: &Expected<'_, ProxyKey>,
        now: UnixMillis,
    ) -> Result<Updated<ProxyKey>, Failure> {
        self.lock_acts().await?;
        let found = self.find_key(id).await?.filter(|key| key.tenant_id == tenant_id);
        let Some(before) = found.filter(|key| key.state != EntityState::Deleted) else {
            return Ok(Updated::Absent);
        };
        if !is_expected(&before) {
            return Ok(Updated::Unexpected);
        }
        let after = ProxyKey {
            state: update.state.unwrap_or(before.state),
            expires_at: update.expires_at.unwrap_or(before.expires_at),
            allowed_models: update
                .allowed_models
                .clone()
                .unwrap_or_else(|| before.allowed_models.clone()),
            may_pin: update.may_pin.unwrap_or(before.may_pin),
            quota_tokens: update.quota_tokens.unwrap_or(before.quota_tokens),
            ..before.clone()
        };
        let models = after.allowed_models.as_ref().map(serde_json::to_string).transpose();
        let hash: Option<Vec<u8>> = sql_scalar!(
            UPDATE_KEY,
            tenant_id.as_uuid(),
            id.as_uuid(),
            after.state.as_str(),
            after.may_pin,
            models.map_err(internal)?,
            after.expires_at.map(|at| at.0),
        )
        .fetch_optional(&mut *self.conn)
        .await?;
        let Some(hash) = hash else { return Ok(Updated::Absent) };
        let hash = hash.try_into().map_err(|_len| corrupt("proxy_keys", "key_hash", id))?;
        if let Some(quota_tokens) = update.quota_tokens {
            let scope = Scope { kind: ScopeKind::Key, id: id.as_uuid() };
            self.change_quota(scope, tenant_id, quota_tokens.into(), now).await?;
        }
        self.record_act(Act {
            action: "key.update",
            tenant_id: Some(tenant_id),
            target: id.to_string(),
            before: Some(facts(&before)),
            after: Some(facts(&after)),
        })
        .await?;
        self.publish(&[Change::Key(KeyHash(hash))]).await?;
        Ok(Updated::Done(after))
    }
}
