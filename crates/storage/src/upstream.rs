//! Upstreams and their sealed keys.

use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::id::{TenantId, UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{BreakerPolicy, ProbeInterval, RetryPolicy, UpstreamLimits};
use sluice_domain::ports::StoreError;
use sluice_domain::tenant::EntityState;
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{ApiVersion, BaseUrl, Deadlines, Upstream, UpstreamKey};
use sqlx::FromRow;
use uuid::Uuid;

use crate::error::{Failure, corrupt};
use crate::feed::Change;
use crate::secret::SealedSecret;
use crate::storage::Storage;

statements! {
    INSERT_UPSTREAM = "INSERT INTO upstreams (upstream_id, tenant_id, name, kind, base_url, connect_ms, \
            first_event_ms, idle_ms, total_ms, client_gone, max_attempts, breaker_failures, \
            breaker_failure_percent, breaker_open_ms, probe_every_ms, requests_per_minute, tokens_per_minute, \
            concurrency, api_version, allow_private, state, enabled_at_ms, created_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, \
            $22, $23)";
    // What is sealed and what routes rely on stays: kind and tenant.
    UPDATE_UPSTREAM = "UPDATE upstreams SET name = $2, base_url = $3, connect_ms = $4, first_event_ms = $5, \
            idle_ms = $6, total_ms = $7, client_gone = $8, max_attempts = $9, breaker_failures = $10, \
            breaker_failure_percent = $11, breaker_open_ms = $12, probe_every_ms = $13, \
            requests_per_minute = $14, tokens_per_minute = $15, concurrency = $16, api_version = $17, \
            allow_private = $18 \
        WHERE upstream_id = $1 AND state <> 'deleted'";
    FIND_BASE_URL = "SELECT base_url FROM upstreams WHERE upstream_id = $1 AND state <> 'deleted'";
    HAS_UPSTREAM_KEYS = "SELECT upstream_key_id FROM upstream_keys \
        WHERE upstream_id = $1 AND state <> 'deleted' LIMIT 1";
    DELETE_UPSTREAM = "UPDATE upstreams SET state = 'deleted' \
        WHERE upstream_id = $1 AND state <> 'deleted' AND NOT EXISTS ( \
            SELECT 1 FROM route_targets t JOIN routes r ON r.route_id = t.route_id \
            WHERE t.upstream_id = $1 AND r.state <> 'deleted')";
    DELETE_UPSTREAM_KEYS = "UPDATE upstream_keys SET state = 'deleted' WHERE upstream_id = $1";
    LIST_UPSTREAMS = "SELECT upstream_id, tenant_id, name, kind, base_url, connect_ms, first_event_ms, \
            idle_ms, total_ms, client_gone, max_attempts, breaker_failures, breaker_failure_percent, \
            breaker_open_ms, probe_every_ms, requests_per_minute, tokens_per_minute, concurrency, api_version, \
            allow_private, state, enabled_at_ms, created_at_ms \
        FROM upstreams ORDER BY upstream_id";
    SET_UPSTREAM_STATE = "UPDATE upstreams SET state = $2, \
            enabled_at_ms = CASE WHEN $2 = 'active' THEN $3 ELSE enabled_at_ms END \
        WHERE upstream_id = $1 AND state <> 'deleted'";
    INSERT_UPSTREAM_KEY = "INSERT INTO upstream_keys (upstream_key_id, upstream_id, name, weight, \
            requests_per_minute, tokens_per_minute, concurrency, sealed_secret, wrapped_key, \
            master_key_id, state, enabled_at_ms, created_at_ms) \
        SELECT $1, upstream_id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 FROM upstreams \
        WHERE upstream_id = $2 AND state <> 'deleted'";
    LIST_UPSTREAM_KEYS = "SELECT upstream_key_id, upstream_id, name, weight, requests_per_minute, \
            tokens_per_minute, concurrency, sealed_secret, wrapped_key, master_key_id, state, \
            enabled_at_ms, created_at_ms \
        FROM upstream_keys WHERE upstream_id = $1 ORDER BY upstream_key_id";
    UPDATE_UPSTREAM_KEY = "UPDATE upstream_keys SET weight = $2, requests_per_minute = $3, \
            tokens_per_minute = $4, concurrency = $5 \
        WHERE upstream_key_id = $1 AND state <> 'deleted'";
    SET_UPSTREAM_KEY_STATE = "UPDATE upstream_keys SET state = $2, \
            enabled_at_ms = CASE WHEN $2 = 'active' THEN $3 ELSE enabled_at_ms END \
        WHERE upstream_key_id = $1 AND state <> 'deleted'";
    ACTIVE_UPSTREAMS = "SELECT upstream_id, tenant_id, name, kind, base_url, connect_ms, first_event_ms, \
            idle_ms, total_ms, client_gone, max_attempts, breaker_failures, breaker_failure_percent, \
            breaker_open_ms, probe_every_ms, requests_per_minute, tokens_per_minute, concurrency, api_version, \
            allow_private, state, enabled_at_ms, created_at_ms \
        FROM upstreams WHERE state = 'active' ORDER BY upstream_id";
    ACTIVE_UPSTREAM_KEYS = "SELECT k.upstream_key_id, k.upstream_id, k.name, k.weight, k.requests_per_minute, \
            k.tokens_per_minute, k.concurrency, k.sealed_secret, k.wrapped_key, k.master_key_id, k.state, \
            k.enabled_at_ms, k.created_at_ms \
        FROM upstream_keys k JOIN upstreams u ON u.upstream_id = k.upstream_id \
        WHERE k.state = 'active' AND u.state = 'active' ORDER BY k.upstream_key_id";
}

/// What became of a change of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamUpdate {
    /// It is stored.
    Done,
    /// There is no such upstream.
    Gone,
    /// It was to be at another scheme, host or port, and it has keys, which are sealed for the one
    /// that it has.
    HasKeys,
}

#[derive(FromRow)]
struct UpstreamRow {
    upstream_id: Uuid,
    tenant_id: Option<Uuid>,
    name: String,
    kind: String,
    base_url: Option<String>,
    connect_ms: i64,
    first_event_ms: i64,
    idle_ms: i64,
    total_ms: i64,
    client_gone: String,
    max_attempts: i32,
    breaker_failures: i32,
    breaker_failure_percent: i32,
    breaker_open_ms: i64,
    probe_every_ms: Option<i64>,
    requests_per_minute: Option<i64>,
    tokens_per_minute: Option<i64>,
    concurrency: Option<i64>,
    api_version: Option<String>,
    allow_private: bool,
    state: String,
    enabled_at_ms: i64,
    created_at_ms: i64,
}

impl TryFrom<UpstreamRow> for Upstream {
    type Error = StoreError;

    fn try_from(row: UpstreamRow) -> Result<Self, StoreError> {
        let id = UpstreamId::from_uuid(row.upstream_id);
        let millis = |ms: i64| {
            let ms = u64::try_from(ms).map_err(|_negative| corrupt("upstreams", "total_ms", id));
            ms.map(Duration::from_millis)
        };
        let count = |n: i32, column| positive(n).ok_or_else(|| corrupt("upstreams", column, id));
        Ok(Self {
            id,
            tenant_id: row.tenant_id.map(TenantId::from_uuid),
            name: row
                .name
                .parse()
                .map_err(|_bad| corrupt("upstreams", "name", id))?,
            kind: row
                .kind
                .parse()
                .map_err(|_bad| corrupt("upstreams", "kind", id))?,
            base_url: row
                .base_url
                .map(|url| url.parse())
                .transpose()
                .map_err(|_bad| corrupt("upstreams", "base_url", id))?,
            deadlines: Deadlines {
                connect: millis(row.connect_ms)?,
                first_event: millis(row.first_event_ms)?,
                idle: millis(row.idle_ms)?,
                total: millis(row.total_ms)?,
            },
            client_gone: row
                .client_gone
                .parse()
                .map_err(|_bad| corrupt("upstreams", "client_gone", id))?,
            retry: RetryPolicy {
                max_attempts: count(row.max_attempts, "max_attempts")?,
            },
            breaker: BreakerPolicy {
                max_failures: count(row.breaker_failures, "breaker_failures")?,
                max_failure_percent: count(row.breaker_failure_percent, "breaker_failure_percent")?,
                open_for: millis(row.breaker_open_ms)?,
            },
            probe_every: match row.probe_every_ms {
                None => None,
                Some(ms) => Some(
                    ProbeInterval::new(millis(ms)?)
                        .ok_or_else(|| corrupt("upstreams", "probe_every_ms", id))?,
                ),
            },
            limits: limits(
                row.requests_per_minute,
                row.tokens_per_minute,
                row.concurrency,
            )
            .map_err(|column| corrupt("upstreams", column, id))?,
            api_version: row
                .api_version
                .map(|version| version.parse())
                .transpose()
                .map_err(|_bad| corrupt("upstreams", "api_version", id))?,
            allow_private: row.allow_private,
            state: row
                .state
                .parse()
                .map_err(|_bad| corrupt("upstreams", "state", id))?,
            enabled_at: UnixMillis(row.enabled_at_ms),
            created_at: UnixMillis(row.created_at_ms),
        })
    }
}

fn positive(n: impl TryInto<u32>) -> Option<NonZeroU32> {
    n.try_into().ok().and_then(NonZeroU32::new)
}

/// Reads limits; the error is the column that breaks a rule.
fn limits(
    requests_per_minute: Option<i64>,
    tokens_per_minute: Option<i64>,
    concurrency: Option<i64>,
) -> Result<UpstreamLimits, &'static str> {
    let limit = |stored: Option<i64>, column| stored.map(|n| positive(n).ok_or(column)).transpose();
    Ok(UpstreamLimits {
        requests_per_minute: limit(requests_per_minute, "requests_per_minute")?,
        tokens_per_minute: limit(tokens_per_minute, "tokens_per_minute")?,
        concurrency: limit(concurrency, "concurrency")?,
    })
}

#[derive(FromRow)]
struct UpstreamKeyRow {
    upstream_key_id: Uuid,
    upstream_id: Uuid,
    name: String,
    weight: i32,
    requests_per_minute: Option<i64>,
    tokens_per_minute: Option<i64>,
    concurrency: Option<i64>,
    sealed_secret: Vec<u8>,
    wrapped_key: Vec<u8>,
    master_key_id: String,
    state: String,
    enabled_at_ms: i64,
    created_at_ms: i64,
}

impl UpstreamKeyRow {
    fn key_and_secret(self) -> Result<(UpstreamKey, SealedSecret), StoreError> {
        let id = UpstreamKeyId::from_uuid(self.upstream_key_id);
        let key = UpstreamKey {
            id,
            upstream_id: UpstreamId::from_uuid(self.upstream_id),
            name: self
                .name
                .parse()
                .map_err(|_bad| corrupt("upstream_keys", "name", id))?,
            weight: u32::try_from(self.weight)
                .map_err(|_negative| corrupt("upstream_keys", "weight", id))?,
            limits: limits(
                self.requests_per_minute,
                self.tokens_per_minute,
                self.concurrency,
            )
            .map_err(|column| corrupt("upstream_keys", column, id))?,
            state: self
                .state
                .parse()
                .map_err(|_bad| corrupt("upstream_keys", "state", id))?,
            enabled_at: UnixMillis(self.enabled_at_ms),
            created_at: UnixMillis(self.created_at_ms),
        };
        let sealed = SealedSecret {
            sealed_secret: self.sealed_secret,
            wrapped_key: self.wrapped_key,
            master_key_id: self.master_key_id,
        };
        Ok((key, sealed))
    }
}

fn as_count(limit: NonZeroU32) -> i64 {
    i64::from(limit.get())
}

fn as_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

impl Storage {
    /// Stores a new upstream.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an upstream has the name.
    pub async fn create_upstream(&self, new: &Upstream) -> Result<(), StoreError> {
        in_transaction!(self, create_upstream(new))
    }

    /// Stores what an upstream is now; its kind and its tenant stay as they are, and its state has a
    /// method of its own.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when another upstream has the name.
    pub async fn update_upstream(&self, upstream: &Upstream) -> Result<UpstreamUpdate, StoreError> {
        in_transaction!(self, update_upstream(upstream))
    }

    /// Deletes an upstream with its keys; `false` when there is none, or when a route leads to it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn delete_upstream(&self, id: UpstreamId) -> Result<bool, StoreError> {
        in_transaction!(self, delete_upstream(id))
    }

    /// Lists all upstreams in the order of their ids; also those that are deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_upstreams(&self) -> Result<Vec<Upstream>, StoreError> {
        reading!(self, list_upstreams())
    }

    /// Switches an upstream on or off; `false` when there is none or it was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_upstream_state(
        &self,
        id: UpstreamId,
        state: EntityState,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_upstream_state(id, state, now))
    }

    /// Stores a new upstream key with its secret, which is bound to the id of the key; `false` when
    /// there is no such upstream.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a key of the upstream has the name.
    pub async fn add_upstream_key(
        &self,
        new: &UpstreamKey,
        sealed: &SealedSecret,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, add_upstream_key(new, sealed))
    }

    /// Lists the keys of an upstream in the order of their ids, without their secrets; also those
    /// that are deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_upstream_keys(
        &self,
        upstream_id: UpstreamId,
    ) -> Result<Vec<UpstreamKey>, StoreError> {
        reading!(self, list_upstream_keys(upstream_id))
    }

    /// Stores weight and limits of an upstream key; `false` when there is none or it was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn update_upstream_key(&self, key: &UpstreamKey) -> Result<bool, StoreError> {
        in_transaction!(self, update_upstream_key(key))
    }

    /// Sets the state of an upstream key; `false` when there is none or it was deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_upstream_key_state(
        &self,
        id: UpstreamKeyId,
        state: EntityState,
        now: UnixMillis,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_upstream_key_state(id, state, now))
    }
}

on_both! {
    async fn create_upstream(&mut self, new: &Upstream) -> Result<(), Failure> {
        sql!(
            INSERT_UPSTREAM,
            new.id.as_uuid(),
            new.tenant_id.map(TenantId::as_uuid),
            new.name.as_str(),
            new.kind.as_str(),
            new.base_url.as_ref().map(ToString::to_string),
            as_millis(new.deadlines.connect),
            as_millis(new.deadlines.first_event),
            as_millis(new.deadlines.idle),
            as_millis(new.deadlines.total),
            new.client_gone.as_str(),
            i64::from(new.retry.max_attempts.get()),
            i64::from(new.breaker.max_failures.get()),
            i64::from(new.breaker.max_failure_percent.get()),
            as_millis(new.breaker.open_for),
            new.probe_every.map(|every| as_millis(every.get())),
            new.limits.requests_per_minute.map(as_count),
            new.limits.tokens_per_minute.map(as_count),
            new.limits.concurrency.map(as_count),
            new.api_version.as_ref().map(ApiVersion::as_str),
            new.allow_private,
            new.state.as_str(),
            new.enabled_at.0,
            new.created_at.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || format!("an upstream named `{}`", new.name)))?;
        self.publish(&[Change::Routing]).await?;
        Ok(())
    }

    async fn update_upstream(&mut self, upstream: &Upstream) -> Result<UpstreamUpdate, Failure> {
        let base_url = upstream.base_url.as_ref().map(ToString::to_string);
        let stored: Option<Option<String>> = sql_scalar!(FIND_BASE_URL, upstream.id.as_uuid())
            .fetch_optional(&mut *self.conn)
            .await?;
        let Some(stored) = stored else {
            return Ok(UpstreamUpdate::Gone);
        };
        if stored != base_url {
            let stored: Option<BaseUrl> = stored
                .map(|url| url.parse())
                .transpose()
                .map_err(|_bad| corrupt("upstreams", "base_url", upstream.id))?;
            let (before, after) = (stored.as_ref(), upstream.base_url.as_ref());
            let key: Option<Uuid> = sql_scalar!(HAS_UPSTREAM_KEYS, upstream.id.as_uuid())
                .fetch_optional(&mut *self.conn)
                .await?;
            if key.is_some() && before.map(BaseUrl::origin) != after.map(BaseUrl::origin) {
                return Ok(UpstreamUpdate::HasKeys);
            }
        }
        let done = sql!(
            UPDATE_UPSTREAM,
            upstream.id.as_uuid(),
            upstream.name.as_str(),
            base_url,
            as_millis(upstream.deadlines.connect),
            as_millis(upstream.deadlines.first_event),
            as_millis(upstream.deadlines.idle),
            as_millis(upstream.deadlines.total),
            upstream.client_gone.as_str(),
            i64::from(upstream.retry.max_attempts.get()),
            i64::from(upstream.breaker.max_failures.get()),
            i64::from(upstream.breaker.max_failure_percent.get()),
            as_millis(upstream.breaker.open_for),
            upstream.probe_every.map(|every| as_millis(every.get())),
            upstream.limits.requests_per_minute.map(as_count),
            upstream.limits.tokens_per_minute.map(as_count),
            upstream.limits.concurrency.map(as_count),
            upstream.api_version.as_ref().map(ApiVersion::as_str),
            upstream.allow_private,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| {
            Failure::or_conflict(error, || format!("an upstream named `{}`", upstream.name))
        })?;
        if self.publish_routing(done.rows_affected()).await? {
            Ok(UpstreamUpdate::Done)
        } else {
            Ok(UpstreamUpdate::Gone)
        }
    }

    async fn delete_upstream(&mut self, id: UpstreamId) -> Result<bool, Failure> {
        let done = sql!(DELETE_UPSTREAM, id.as_uuid()).execute(&mut *self.conn).await?;
        if !self.publish_routing(done.rows_affected()).await? {
            return Ok(false);
        }
        sql!(DELETE_UPSTREAM_KEYS, id.as_uuid()).execute(&mut *self.conn).await?;
        Ok(true)
    }

    async fn list_upstreams(&mut self) -> Result<Vec<Upstream>, Failure> {
        let rows: Vec<UpstreamRow> = sql_as!(LIST_UPSTREAMS).fetch_all(&mut *self.conn).await?;
        rows.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    async fn set_upstream_state(
        &mut self,
        id: UpstreamId,
        state: EntityState,
        now: UnixMillis,
    ) -> Result<bool, Failure> {
        let done = sql!(SET_UPSTREAM_STATE, id.as_uuid(), state.as_str(), now.0)
            .execute(&mut *self.conn)
            .await?;
        self.publish_routing(done.rows_affected()).await
    }

    async fn add_upstream_key(
        &mut self,
        new: &UpstreamKey,
        sealed: &SealedSecret,
    ) -> Result<bool, Failure> {
        let done = sql!(
            INSERT_UPSTREAM_KEY,
            new.id.as_uuid(),
            new.upstream_id.as_uuid(),
            new.name.as_str(),
            i64::from(new.weight),
            new.limits.requests_per_minute.map(as_count),
            new.limits.tokens_per_minute.map(as_count),
            new.limits.concurrency.map(as_count),
            sealed.sealed_secret.as_slice(),
            sealed.wrapped_key.as_slice(),
            sealed.master_key_id.as_str(),
            new.state.as_str(),
            new.enabled_at.0,
            new.created_at.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || format!("an upstream key named `{}`", new.name)))?;
        self.publish_routing(done.rows_affected()).await
    }

    async fn list_upstream_keys(
        &mut self,
        upstream_id: UpstreamId,
    ) -> Result<Vec<UpstreamKey>, Failure> {
        let rows: Vec<UpstreamKeyRow> =
            sql_as!(LIST_UPSTREAM_KEYS, upstream_id.as_uuid()).fetch_all(&mut *self.conn).await?;
        rows.into_iter().map(|row| Ok(row.key_and_secret()?.0)).collect()
    }

    async fn update_upstream_key(&mut self, key: &UpstreamKey) -> Result<bool, Failure> {
        let done = sql!(
            UPDATE_UPSTREAM_KEY,
            key.id.as_uuid(),
            i64::from(key.weight),
            key.limits.requests_per_minute.map(as_count),
            key.limits.tokens_per_minute.map(as_count),
            key.limits.concurrency.map(as_count),
        )
        .execute(&mut *self.conn)
        .await?;
        self.publish_routing(done.rows_affected()).await
    }

    async fn set_upstream_key_state(
        &mut self,
        id: UpstreamKeyId,
        state: EntityState,
        now: UnixMillis,
    ) -> Result<bool, Failure> {
        let done = sql!(SET_UPSTREAM_KEY_STATE, id.as_uuid(), state.as_str(), now.0)
            .execute(&mut *self.conn)
            .await?;
        self.publish_routing(done.rows_affected()).await
    }

    pub(crate) async fn active_upstreams(&mut self) -> Result<Vec<Upstream>, Failure> {
        let rows: Vec<UpstreamRow> = sql_as!(ACTIVE_UPSTREAMS).fetch_all(&mut *self.conn).await?;
        rows.into_iter().map(|row| Ok(row.try_into()?)).collect()
    }

    pub(crate) async fn active_upstream_keys(
        &mut self,
    ) -> Result<Vec<(UpstreamKey, SealedSecret)>, Failure> {
        let rows: Vec<UpstreamKeyRow> =
            sql_as!(ACTIVE_UPSTREAM_KEYS).fetch_all(&mut *self.conn).await?;
        rows.into_iter().map(|row| Ok(row.key_and_secret()?)).collect()
    }

    /// Tells of changed routing when rows were changed; returns whether there were any.
    pub(crate) async fn publish_routing(&mut self, changed: u64) -> Result<bool, Failure> {
        if changed > 0 {
            self.publish(&[Change::Routing]).await?;
        }
        Ok(changed > 0)
    }
}
