//! Sessions: log-ins of accounts.

use serde_json::json;
use sluice_domain::account::Account;
use sluice_domain::id::{AccountId, SessionId};
use sluice_domain::key::KeyHash;
use sluice_domain::ports::StoreError;
use sluice_domain::time::UnixMillis;
use uuid::Uuid;

use crate::audit::Act;
use crate::error::Failure;
use crate::storage::Storage;

statements! {
    INSERT_SESSION = "INSERT INTO sessions (session_id, account_id, token_hash, created_at_ms, expires_at_ms) \
        VALUES ($1, $2, $3, $4, $5)";
    FIND_SESSION = "SELECT session_id, account_id, expires_at_ms FROM sessions \
        WHERE token_hash = $1 AND expires_at_ms > $2";
    END_SESSION = "DELETE FROM sessions WHERE session_id = $1 AND account_id = $2";
    TRIM_SESSIONS = "DELETE FROM sessions WHERE expires_at_ms <= $1";
}

/// What a new session needs.
#[derive(Debug, Clone, Copy)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub account_id: AccountId,
    /// The keyed hash of its token.
    pub token_hash: KeyHash,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// The time.
    pub now: UnixMillis,
}

/// A session that has not ended, with whose it is.
#[derive(Debug, Clone)]
pub struct StoredSession {
    /// Its id.
    pub id: SessionId,
    /// The account as it is now.
    pub account: Account,
    /// When it ends.
    pub expires_at: UnixMillis,
}

impl Storage {
    /// Opens a session; those of anybody that have run out are removed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated with another id.
    pub async fn open_session(&self, new: NewSession) -> Result<(), StoreError> {
        in_transaction!(self, open_session(&new))
    }

    /// Finds a session that has not ended by the hash of its token.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn find_session(
        &self,
        token_hash: &KeyHash,
        now: UnixMillis,
    ) -> Result<Option<StoredSession>, StoreError> {
        reading!(self, find_session(token_hash, now))
    }

    /// Ends a session of an account; `false` when it has no such session.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn end_session(
        &self,
        account_id: AccountId,
        id: SessionId,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, end_session(account_id, id))
    }
}

on_both! {
    async fn open_session(&mut self, new: &NewSession) -> Result<(), Failure> {
        sql!(TRIM_SESSIONS, new.now.0).execute(&mut *self.conn).await?;
        sql!(
            INSERT_SESSION,
            new.id.as_uuid(),
            new.account_id.as_uuid(),
            new.token_hash.0.as_slice(),
            new.now.0,
            new.expires_at.0,
        )
        .execute(&mut *self.conn)
        .await?;
        let account = self.find_account(new.account_id).await?;
        self.record_act(Act {
            action: "session.open",
            tenant_id: account.and_then(|found| found.account.rights.reach.tenant_id()),
            target: new.id.to_string(),
            before: None,
            after: Some(json!({
                "account_id": new.account_id.to_string(),
                "expires_at": new.expires_at.to_rfc3339(),
            })),
        })
        .await
    }

    async fn find_session(
        &mut self,
        token_hash: &KeyHash,
        now: UnixMillis,
    ) -> Result<Option<StoredSession>, Failure> {
        let row: Option<(Uuid, Uuid, i64)> =
            sql_as!(FIND_SESSION, token_hash.0.as_slice(), now.0).fetch_optional(&mut *self.conn).await?;
        let Some((id, account_id, expires_at)) = row else { return Ok(None) };
        let found = self.find_account(AccountId::from_uuid(account_id)).await?;
        Ok(found.map(|found| StoredSession {
            id: SessionId::from_uuid(id),
            account: found.account,
            expires_at: UnixMillis(expires_at),
        }))
    }

    async fn end_session(&mut self, account_id: AccountId, id: SessionId) -> Result<bool, Failure> {
        let done = sql!(END_SESSION, id.as_uuid(), account_id.as_uuid())
            .execute(&mut *self.conn)
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        let account = self.find_account(account_id).await?;
        self.record_act(Act {
            action: "session.end",
            tenant_id: account.and_then(|found| found.account.rights.reach.tenant_id()),
            target: id.to_string(),
            before: None,
            after: None,
        })
        .await?;
        Ok(true)
    }
}
