//! Admin tokens: credentials of programs that administer.

use serde_json::{Value, json};
use sluice_domain::access::{Reach, Rights};
use sluice_domain::account::{Account, AdminToken};
use sluice_domain::id::{AccountId, AdminTokenId, TenantId};
use sluice_domain::key::KeyHash;
use sluice_domain::ports::StoreError;
use sluice_domain::tenant::Name;
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use crate::audit::Act;
use crate::error::{Failure, corrupt};
use crate::storage::Storage;

statements! {
    INSERT_TOKEN = "INSERT INTO admin_tokens (token_id, account_id, tenant_id, role, name, token_hash, hint, \
            created_at_ms, expires_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    FIND_TOKEN_BY_HASH = "SELECT token_id, account_id, tenant_id, role, name, hint, created_at_ms, \
            expires_at_ms, revoked_at_ms \
        FROM admin_tokens WHERE token_hash = $1 AND expires_at_ms > $2 AND revoked_at_ms IS NULL";
    FIND_TOKEN = "SELECT token_id, account_id, tenant_id, role, name, hint, created_at_ms, \
            expires_at_ms, revoked_at_ms \
        FROM admin_tokens WHERE token_id = $1";
    LIST_TOKENS = "SELECT token_id, account_id, tenant_id, role, name, hint, created_at_ms, \
            expires_at_ms, revoked_at_ms \
        FROM admin_tokens WHERE token_id > $1 ORDER BY token_id LIMIT $2";
    LIST_TOKENS_OF_TENANT = "SELECT token_id, account_id, tenant_id, role, name, hint, created_at_ms, \
            expires_at_ms, revoked_at_ms \
        FROM admin_tokens WHERE tenant_id = $1 AND token_id > $2 ORDER BY token_id LIMIT $3";
    REVOKE_TOKEN = "UPDATE admin_tokens SET revoked_at_ms = $2 WHERE token_id = $1 AND revoked_at_ms IS NULL";
}

/// What a new admin token needs.
#[derive(Debug, Clone)]
pub struct NewAdminToken {
    /// Its id.
    pub id: AdminTokenId,
    /// Who makes it.
    pub account_id: AccountId,
    /// What it may do.
    pub rights: Rights,
    /// Its name.
    pub name: Name,
    /// The keyed hash of the secret.
    pub token_hash: KeyHash,
    /// What may be shown of it.
    pub hint: String,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// The time.
    pub now: UnixMillis,
}

/// An admin token that has not ended, with who made it.
#[derive(Debug, Clone)]
pub struct StoredToken {
    /// The token.
    pub token: AdminToken,
    /// Its maker as they are now.
    pub maker: Account,
}

#[derive(FromRow)]
struct TokenRow {
    token_id: Uuid,
    account_id: Uuid,
    tenant_id: Option<Uuid>,
    role: String,
    name: String,
    hint: String,
    created_at_ms: i64,
    expires_at_ms: i64,
    revoked_at_ms: Option<i64>,
}

impl TryFrom<TokenRow> for AdminToken {
    type Error = StoreError;

    fn try_from(row: TokenRow) -> Result<Self, StoreError> {
        let id = AdminTokenId::from_uuid(row.token_id);
        let role = row
            .role
            .parse()
            .map_err(|_bad| corrupt("admin_tokens", "role", id))?;
        Ok(Self {
            id,
            account_id: AccountId::from_uuid(row.account_id),
            name: row
                .name
                .parse()
                .map_err(|_bad| corrupt("admin_tokens", "name", id))?,
            rights: Rights {
                role,
                reach: Reach::from_tenant(row.tenant_id.map(TenantId::from_uuid)),
            },
            hint: row.hint,
            created_at: UnixMillis(row.created_at_ms),
            expires_at: UnixMillis(row.expires_at_ms),
            revoked_at: row.revoked_at_ms.map(UnixMillis),
        })
    }
}

fn facts(name: &Name, rights: Rights, hint: &str, expires_at: UnixMillis) -> Value {
    json!({
        "name": name.as_str(),
        "role": rights.role.as_str(),
        "tenant_id": rights.reach.tenant_id().map(|id| id.to_string()),
        "hint": hint,
        "expires_at": expires_at.to_rfc3339(),
    })
}

impl Storage {
    /// Makes an admin token.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when one with the hash exists; [`StoreError::Internal`] when there is
    /// no such account or tenant.
    pub async fn issue_token(&self, new: NewAdminToken) -> Result<(), StoreError> {
        in_transaction!(self, issue_token(&new))
    }

    /// Finds a token that is neither revoked nor expired by the hash of its secret.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_token(
        &self,
        token_hash: &KeyHash,
        now: UnixMillis,
    ) -> Result<Option<StoredToken>, StoreError> {
        reading!(self, find_token_by_hash(token_hash, now))
    }

    /// Lists tokens in the order of their ids, beginning after one, of one tenant or of all; also
    /// those that have ended.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_tokens(
        &self,
        tenant_id: Option<TenantId>,
        after: Option<AdminTokenId>,
        limit: u32,
    ) -> Result<Vec<AdminToken>, StoreError> {
        reading!(self, list_tokens(tenant_id, after, limit))
    }

    /// Revokes a token that may do no more than whoever revokes it; `false` when there is none such
    /// that is not revoked.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn revoke_token(
        &self,
        by: Rights,
        id: AdminTokenId,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, revoke_token(by, id, now))
    }
}

on_both! {
    async fn issue_token(&mut self, new: &NewAdminToken) -> Result<(), Failure> {
        let tenant_id = new.rights.reach.tenant_id();
        sql!(
            INSERT_TOKEN,
            new.id.as_uuid(),
            new.account_id.as_uuid(),
            tenant_id.map(TenantId::as_uuid),
            new.rights.role.as_str(),
            new.name.as_str(),
            new.token_hash.0.as_slice(),
            new.hint.as_str(),
            new.now.0,
            new.expires_at.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || "this token".to_owned()))?;
        self.record_act(Act {
            action: "token.issue",
            tenant_id,
            target: new.id.to_string(),
            before: None,
            after: Some(facts(&new.name, new.rights, &new.hint, new.expires_at)),
        })
        .await
    }

    async fn find_token_by_hash(
        &mut self,
        token_hash: &KeyHash,
        now: UnixMillis,
    ) -> Result<Option<StoredToken>, Failure> {
        let row: Option<TokenRow> = sql_as!(FIND_TOKEN_BY_HASH, token_hash.0.as_slice(), now.0)
            .fetch_optional(&mut *self.conn)
            .await?;
        let Some(token) = row.map(AdminToken::try_from).transpose()? else { return Ok(None) };
        let maker = self.find_account(token.account_id).await?;
        Ok(maker.map(|maker| StoredToken { token, maker: maker.account }))
    }

    async fn list_tokens(
        &mut self,
        tenant_id: Option<TenantId>,
        after: Option<AdminTokenId>,
        limit: u32,
    ) -> Result<Vec<AdminToken>, Failure> {
        let after = after.map_or(Uuid::nil(), AdminTokenId::as_uuid);
        let limit = i64::from(limit);
        let rows: Vec<TokenRow> = match tenant_id {
            Some(tenant) => {
                sql_as!(LIST_TOKENS_OF_TENANT, tenant.as_uuid(), after, limit)
                    .fetch_all(&mut *self.conn)
                    .await?
            }
            None => sql_as!(LIST_TOKENS, after, limit).fetch_all(&mut *self.conn).await?,
        };
        rows.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    async fn revoke_token(
        &mut self,
        by: Rights,
        id: AdminTokenId,
        now: UnixMillis,
    ) -> Result<bool, Failure> {
        let row: Option<TokenRow> =
            sql_as!(FIND_TOKEN, id.as_uuid()).fetch_optional(&mut *self.conn).await?;
        let token = row.map(AdminToken::try_from).transpose()?;
        let Some(token) = token.filter(|token| by.cover(token.rights)) else {
            return Ok(false);
        };
        let done = sql!(REVOKE_TOKEN, id.as_uuid(), now.0).execute(&mut *self.conn).await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        self.record_act(Act {
            action: "token.revoke",
            tenant_id: token.rights.reach.tenant_id(),
            target: id.to_string(),
            before: Some(facts(&token.name, token.rights, &token.hint, token.expires_at)),
            after: None,
        })
        .await?;
        Ok(true)
    }
}
