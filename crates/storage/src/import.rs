//! The import of foreign keys: all or nothing.

use std::collections::HashMap;

use serde_json::json;
use sluice_domain::id::{ProxyKeyId, TenantId, UserId};
use sluice_domain::key::{KeyHash, KeyHint};
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Scope, ScopeKind};
use sluice_domain::tenant::{EntityState, Name, Role};
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use crate::audit::Act;
use crate::error::Failure;
use crate::feed::Change;
use crate::key::NewProxyKey;
use crate::storage::Storage;
use crate::user::NewUser;

statements! {
    FIND_KEY_BY_HASH = "SELECT key_id, tenant_id, user_id, state FROM proxy_keys WHERE key_hash = $1";
    UPDATE_IMPORTED_KEY = "UPDATE proxy_keys SET state = $2 WHERE key_id = $1";
}

/// One key of an import.
#[derive(Debug, Clone)]
pub struct KeyImport {
    /// The id it gets when it is new.
    pub id: ProxyKeyId,
    /// The name it gets when it is new.
    pub name: Name,
    /// The user it belongs to, by name.
    pub user: Name,
    /// The id that the user gets when there is none of that name.
    pub new_user_id: UserId,
    /// The keyed hash of the secret.
    pub key_hash: KeyHash,
    /// What may be shown of it.
    pub hint: KeyHint,
    /// Tokens per month; `None` is without a cap.
    pub quota_tokens: Option<i64>,
    /// Whether it is served.
    pub state: EntityState,
}

/// What became of one key of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    /// It is new.
    Created(ProxyKeyId),
    /// It was there; its quota and state are as imported now.
    Updated(ProxyKeyId),
    /// It was revoked for good, and stays so.
    Revoked(ProxyKeyId),
}

#[derive(FromRow)]
struct ExistingRow {
    key_id: Uuid,
    tenant_id: Uuid,
    user_id: Uuid,
    state: String,
}

impl Storage {
    /// Imports keys into a tenant in one transaction, in the order given; missing users are made as
    /// members. `None` when there is no such tenant. The answers stand in the order of the entries.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] names the first entry (from 0) whose key belongs to another user;
    /// nothing was imported then.
    pub async fn import_keys(
        &self,
        tenant_id: TenantId,
        keys: Vec<KeyImport>,
        now: UnixMillis,
    ) -> Result<Option<Vec<Imported>>, StoreError> {
        in_transaction!(self, import_keys(tenant_id, &keys, now))
    }
}

on_both! {
    async fn import_keys(
        &mut self,
        tenant_id: TenantId,
        keys: &[KeyImport],
        now: UnixMillis,
    ) -> Result<Option<Vec<Imported>>, Failure> {
        let mut users: HashMap<&Name, UserId> = HashMap::new();
        let mut changes = Vec::new();
        let mut imported = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            let known = users.get(&key.user).copied();
            let user_id = if let Some(id) = known {
                id
            } else {
                let Some((id, is_new)) = self.ensure_user(tenant_id, key, now).await? else {
                    return Ok(None);
                };
                if is_new {
                    changes.push(Change::User(id));
                }
                users.insert(&key.user, id);
                id
            };
            imported.push(self.import_key(tenant_id, user_id, index, key, now).await?);
            changes.push(Change::Key(key.key_hash));
        }
        self.record_act(Act {
            action: "key.import",
            tenant_id: Some(tenant_id),
            target: tenant_id.to_string(),
            before: None,
            after: Some(json!({"keys": keys.len(), "new_users": changes.len() - keys.len()})),
        })
        .await?;
        self.publish(&changes).await?;
        Ok(Some(imported))
    }

    /// Returns the user of an entry, and whether they are new; `None` when there is no such tenant.
    async fn ensure_user(
        &mut self,
        tenant_id: TenantId,
        key: &KeyImport,
        now: UnixMillis,
    ) -> Result<Option<(UserId, bool)>, Failure> {
        if let Some(user) = self.find_user_by_name(tenant_id, &key.user).await? {
            return Ok(Some((user.id, false)));
        }
        let new = NewUser {
            id: key.new_user_id,
            tenant_id,
            name: key.user.clone(),
            role: Role::Member,
            quota_tokens: None,
            now,
        };
        Ok(self.insert_user(&new).await?.then_some((new.id, true)))
    }

    async fn import_key(
        &mut self,
        tenant_id: TenantId,
        user_id: UserId,
        index: usize,
        key: &KeyImport,
        now: UnixMillis,
    ) -> Result<Imported, Failure> {
        let existing: Option<ExistingRow> = sql_as!(FIND_KEY_BY_HASH, key.key_hash.0.as_slice())
            .fetch_optional(&mut *self.conn)
            .await?;
        let Some(existing) = existing else {
            let new = NewProxyKey {
                id: key.id,
                tenant_id,
                user_id,
                name: key.name.clone(),
                key_hash: key.key_hash,
                hint: key.hint.clone(),
                expires_at: None,
                allowed_models: None,
                may_pin: false,
                quota_tokens: key.quota_tokens,
                state: key.state,
                now,
            };
            self.insert_key(&new).await?;
            return Ok(Imported::Created(key.id));
        };
        if existing.tenant_id != tenant_id.as_uuid() || existing.user_id != user_id.as_uuid() {
            let what = format!("the key of entry {index}, for another user,");
            return Err(StoreError::Conflict { what }.into());
        }
        let id = ProxyKeyId::from_uuid(existing.key_id);
        if existing.state == EntityState::Deleted.as_str() {
            return Ok(Imported::Revoked(id));
        }
        sql!(UPDATE_IMPORTED_KEY, existing.key_id, key.state.as_str())
            .execute(&mut *self.conn)
            .await?;
        let scope = Scope { kind: ScopeKind::Key, id: existing.key_id };
        self.change_quota(scope, tenant_id, key.quota_tokens.into(), now).await?;
        Ok(Imported::Updated(id))
    }
}
