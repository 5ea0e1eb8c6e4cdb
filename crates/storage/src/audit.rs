//! Audit events: who changed what, in the transaction that changed it.
//!
//! Events form a chain: each has a hash over itself and the hash before. Whoever acts locks the end
//! of the chain before anything else, so that several processes write one chain, and so that what
//! an act reads of configuration stays true until it commits. That lock comes before those on
//! counters, and the row of the change feed after them.

use std::net::IpAddr;

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sluice_domain::id::{AccountId, AdminTokenId, TenantId};
use sluice_domain::ports::StoreError;
use sluice_domain::time::UnixMillis;
use sqlx::FromRow;
use uuid::Uuid;

use crate::error::{Failure, corrupt};
use crate::storage::Storage;
use crate::text::cleaned;

statements! {
    // Changes nothing: it locks the row.
    LOCK_AUDIT = "UPDATE audit_head SET seq = seq WHERE head_id = 1";
    ADVANCE_AUDIT = "UPDATE audit_head SET seq = seq + 1 WHERE head_id = 1 RETURNING seq, hash";
    FIND_AUDIT_HEAD = "SELECT seq, hash FROM audit_head WHERE head_id = 1";
    SET_AUDIT_HEAD = "UPDATE audit_head SET hash = $1 WHERE head_id = 1";
    INSERT_AUDIT_EVENT = "INSERT INTO audit_events (seq, at_ms, actor_kind, actor_id, actor_name, source, \
            action, tenant_id, target, facts_before, facts_after, hash) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    LIST_AUDIT_EVENTS = "SELECT seq, at_ms, actor_kind, actor_id, actor_name, source, action, tenant_id, \
            target, facts_before, facts_after, hash \
        FROM audit_events WHERE seq < $1 ORDER BY seq DESC LIMIT $2";
    LIST_AUDIT_EVENTS_OF_TENANT = "SELECT seq, at_ms, actor_kind, actor_id, actor_name, source, action, \
            tenant_id, target, facts_before, facts_after, hash \
        FROM audit_events WHERE tenant_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3";
    AUDIT_EVENTS_AFTER = "SELECT seq, at_ms, actor_kind, actor_id, actor_name, source, action, tenant_id, \
            target, facts_before, facts_after, hash \
        FROM audit_events WHERE seq > $1 ORDER BY seq LIMIT $2";
}

/// Events that are checked at a time.
const CHECKED_AT_ONCE: i64 = 500;

/// What somebody acted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActorKind {
    /// A session of an account.
    Account(AccountId),
    /// An admin token.
    Token(AdminTokenId),
    /// A command on the host, which nobody logs in for.
    CommandLine,
}

impl ActorKind {
    /// Returns the stored word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Account(_) => "account",
            Self::Token(_) => "token",
            Self::CommandLine => "command_line",
        }
    }

    const fn id(self) -> Option<Uuid> {
        match self {
            Self::Account(id) => Some(id.as_uuid()),
            Self::Token(id) => Some(id.as_uuid()),
            Self::CommandLine => None,
        }
    }
}

/// Who acts, from where, when.
#[derive(Debug, Clone)]
pub struct Actor {
    /// What they act with.
    pub kind: ActorKind,
    /// How people call them.
    pub name: String,
    /// The address that they come from; `None` on the host itself.
    pub source: Option<IpAddr>,
    /// The time.
    pub now: UnixMillis,
}

/// Says whether a row is as whoever changes it saw it.
pub type Expected<'a, T> = dyn Fn(&T) -> bool + Send + Sync + 'a;

/// What became of a change.
#[derive(Debug, Clone)]
pub enum Updated<T> {
    /// It is made; this is what there is now.
    Done(T),
    /// There is no such row, or it was deleted.
    Absent,
    /// The row is not as it was expected; nothing is changed.
    Unexpected,
}

/// One thing that was done. Facts never hold secrets.
pub(crate) struct Act {
    /// What was done, as `noun.verb`.
    pub(crate) action: &'static str,
    /// Whose tenant is concerned; `None` is the platform.
    pub(crate) tenant_id: Option<TenantId>,
    /// What it was done to.
    pub(crate) target: String,
    /// What was there.
    pub(crate) before: Option<Value>,
    /// What is there now.
    pub(crate) after: Option<Value>,
}

/// An audit event as it is stored.
#[derive(Debug, Clone)]
pub struct AuditEvent {
    /// Its number in the chain, dense from 1.
    pub seq: i64,
    /// When it was done.
    pub at: UnixMillis,
    /// What it was done with.
    pub actor: ActorKind,
    /// Who did it.
    pub actor_name: String,
    /// Where they came from.
    pub source: Option<String>,
    /// What was done, as `noun.verb`.
    pub action: String,
    /// Whose tenant is concerned; `None` is the platform.
    pub tenant_id: Option<TenantId>,
    /// What it was done to.
    pub target: String,
    /// What was there.
    pub before: Option<Value>,
    /// What was there afterwards.
    pub after: Option<Value>,
    /// The hash of the chain up to here.
    pub hash: [u8; 32],
}

#[derive(FromRow)]
struct EventRow {
    seq: i64,
    at_ms: i64,
    actor_kind: String,
    actor_id: Option<Uuid>,
    actor_name: String,
    source: Option<String>,
    action: String,
    tenant_id: Option<Uuid>,
    target: String,
    facts_before: Option<String>,
    facts_after: Option<String>,
    hash: Vec<u8>,
}

impl EventRow {
    /// Hashes the event behind another one. Every field has its length in front, so that no two
    /// events have the same bytes.
    fn hash_after(&self, previous: &[u8]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let mut add = |field: Option<&[u8]>| match field {
            Some(bytes) => {
                hasher.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
                hasher.update(bytes);
            }
            None => hasher.update([0xff; 8]),
        };
        add(Some(previous));
        add(Some(&self.seq.to_be_bytes()));
        add(Some(&self.at_ms.to_be_bytes()));
        add(Some(self.actor_kind.as_bytes()));
        add(self.actor_id.as_ref().map(|id| id.as_bytes().as_slice()));
        add(Some(self.actor_name.as_bytes()));
        add(self.source.as_deref().map(str::as_bytes));
        add(Some(self.action.as_bytes()));
        add(self.tenant_id.as_ref().map(|id| id.as_bytes().as_slice()));
        add(Some(self.target.as_bytes()));
        add(self.facts_before.as_deref().map(str::as_bytes));
        add(self.facts_after.as_deref().map(str::as_bytes));
        hasher.finalize().into()
    }
}

impl TryFrom<EventRow> for AuditEvent {
    type Error = StoreError;

    fn try_from(row: EventRow) -> Result<Self, StoreError> {
        let actor = match (row.actor_kind.as_str(), row.actor_id) {
            ("account", Some(id)) => ActorKind::Account(AccountId::from_uuid(id)),
            ("token", Some(id)) => ActorKind::Token(AdminTokenId::from_uuid(id)),
            ("command_line", None) => ActorKind::CommandLine,
            _ => return Err(corrupt("audit_events", "actor_kind", row.seq)),
        };
        let facts = |text: Option<String>, column| {
            text.map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(|_bad| corrupt("audit_events", column, row.seq))
        };
        Ok(Self {
            seq: row.seq,
            at: UnixMillis(row.at_ms),
            actor,
            actor_name: row.actor_name,
            source: row.source,
            action: row.action,
            tenant_id: row.tenant_id.map(TenantId::from_uuid),
            target: row.target,
            before: facts(row.facts_before, "facts_before")?,
            after: facts(row.facts_after, "facts_after")?,
            hash: row
                .hash
                .try_into()
                .map_err(|_len| corrupt("audit_events", "hash", row.seq))?,
        })
    }
}

impl Storage {
    /// Lists audit events, the latest first, of one tenant or of all, those before a number.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_audit_events(
        &self,
        tenant_id: Option<TenantId>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditEvent>, StoreError> {
        reading!(self, list_audit_events(tenant_id, before, limit))
    }

    /// Checks the chain of audit events. Returns the number of the first event that does not fit:
    /// it, or one before it, was changed or is missing. `None` means that the chain is whole.
    ///
    /// Whoever can write all of the database can write a chain anew; a copy of its end elsewhere
    /// tells.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn check_audit_chain(&self) -> Result<Option<i64>, StoreError> {
        in_snapshot!(self, check_audit_chain())
    }
}

on_both! {
    /// Begins what somebody does: one act at a time.
    pub(crate) async fn begin_act(&mut self) -> Result<(), Failure> {
        if self.actor.is_some() {
            self.lock_acts().await?;
        }
        Ok(())
    }

    /// Waits for every other act and keeps others waiting: what is read from here on and written
    /// back later is not changed between the two. Must come before any other lock.
    pub(crate) async fn lock_acts(&mut self) -> Result<(), Failure> {
        sql!(LOCK_AUDIT).execute(&mut *self.conn).await?;
        Ok(())
    }

    /// Writes down what was done, when somebody did it.
    pub(crate) async fn record_act(&mut self, act: Act) -> Result<(), Failure> {
        self.is_recorded = true;
        let Some(actor) = self.actor else { return Ok(()) };
        let (seq, previous): (i64, Vec<u8>) =
            sql_as!(ADVANCE_AUDIT).fetch_one(&mut *self.conn).await?;
        let mut row = EventRow {
            seq,
            at_ms: actor.now.0,
            actor_kind: actor.kind.as_str().to_owned(),
            actor_id: actor.kind.id(),
            actor_name: cleaned(&actor.name),
            source: actor.source.map(|address| address.to_string()),
            action: act.action.to_owned(),
            tenant_id: act.tenant_id.map(TenantId::as_uuid),
            target: cleaned(&act.target),
            // In JSON, a NUL is written as an escape.
            facts_before: act.before.map(|facts| facts.to_string()),
            facts_after: act.after.map(|facts| facts.to_string()),
            hash: Vec::new(),
        };
        row.hash = row.hash_after(&previous).to_vec();
        sql!(SET_AUDIT_HEAD, row.hash.clone()).execute(&mut *self.conn).await?;
        sql!(
            INSERT_AUDIT_EVENT,
            row.seq,
            row.at_ms,
            row.actor_kind,
            row.actor_id,
            row.actor_name,
            row.source,
            row.action,
            row.tenant_id,
            row.target,
            row.facts_before,
            row.facts_after,
            row.hash,
        )
        .execute(&mut *self.conn)
        .await?;
        Ok(())
    }

    async fn list_audit_events(
        &mut self,
        tenant_id: Option<TenantId>,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<AuditEvent>, Failure> {
        let (before, limit) = (before.unwrap_or(i64::MAX), i64::from(limit));
        let rows: Vec<EventRow> = match tenant_id {
            Some(tenant) => {
                sql_as!(LIST_AUDIT_EVENTS_OF_TENANT, tenant.as_uuid(), before, limit)
                    .fetch_all(&mut *self.conn)
                    .await?
            }
            None => sql_as!(LIST_AUDIT_EVENTS, before, limit).fetch_all(&mut *self.conn).await?,
        };
        rows.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    async fn check_audit_chain(&mut self) -> Result<Option<i64>, Failure> {
        let (head, head_hash): (i64, Vec<u8>) =
            sql_as!(FIND_AUDIT_HEAD).fetch_one(&mut *self.conn).await?;
        let (mut seq, mut hash) = (0, vec![0; 32]);
        loop {
            let rows: Vec<EventRow> = sql_as!(AUDIT_EVENTS_AFTER, seq, CHECKED_AT_ONCE)
                .fetch_all(&mut *self.conn)
                .await?;
            if rows.is_empty() {
                let is_whole = seq == head && hash == head_hash;
                return Ok((!is_whole).then_some(seq + 1));
            }
            for row in rows {
                if row.seq != seq + 1 || row.hash_after(&hash) != row.hash.as_slice() {
                    return Ok(Some(seq + 1));
                }
                (seq, hash) = (row.seq, row.hash);
            }
        }
    }
}
