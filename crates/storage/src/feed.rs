//! The change feed: what other processes learn of changed configuration.
//!
//! The position is a row that every transaction that changes configuration advances last, so the
//! order of positions is the order of commits, and a poller that has read up to a position has
//! missed nothing before it. A sequence would not do: its numbers may commit out of order.

use sluice_domain::id::{TenantId, UserId};
use sluice_domain::key::KeyHash;
use sluice_domain::ports::StoreError;
use sqlx::FromRow;
use sqlx::postgres::PgListener;
use uuid::Uuid;

use crate::audit::Act;
use crate::dialect::FEED_CHANNEL;
use crate::error::{Failure, corrupt};
use crate::storage::{Pools, Storage};

/// Events that are kept. A poller that is further behind sees a gap.
pub const KEPT_EVENTS: i64 = 10_000;

statements! {
    ADVANCE_FEED = "UPDATE feed SET pos = pos + $1 WHERE feed_id = 1 RETURNING pos";
    TRIM_EVENTS = "DELETE FROM feed_events WHERE pos <= $1";
    FEED_POSITION = "SELECT pos FROM feed WHERE feed_id = 1";
    FEED_SINCE = "SELECT f.pos AS position, \
            (SELECT MIN(o.pos) FROM feed_events o) AS oldest, \
            e.pos, e.kind, e.key_hash, e.entity_id \
        FROM feed f LEFT JOIN feed_events e ON e.pos > $1 \
        WHERE f.feed_id = 1 ORDER BY e.pos LIMIT $2";
}

bulks! {
    INSERT_EVENTS = "INSERT INTO feed_events (pos, kind, key_hash, entity_id) VALUES ", 4, "";
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A proxy key.
    Key(KeyHash),
    /// A user.
    User(UserId),
    /// A tenant.
    Tenant(TenantId),
    /// Upstreams, their keys, or routes.
    Routing,
}

/// One change with its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedEvent {
    /// Its position; dense, ascending in the order of commits.
    pub pos: i64,
    /// What has changed.
    pub change: Change,
}

/// What a poller reads.
#[derive(Debug, Clone, Default)]
pub struct FeedPage {
    /// The events after the position that was asked for, in order.
    pub events: Vec<FeedEvent>,
    /// The position to ask for next.
    pub position: i64,
    /// Events were dropped, or the database went back: everything cached must go. There are no
    /// events then.
    pub is_gap: bool,
}

#[derive(FromRow)]
struct EventRow {
    position: i64,
    oldest: Option<i64>,
    pos: Option<i64>,
    kind: Option<String>,
    key_hash: Option<Vec<u8>>,
    entity_id: Option<Uuid>,
}

impl EventRow {
    fn event(self) -> Result<Option<FeedEvent>, StoreError> {
        let (Some(pos), Some(kind)) = (self.pos, self.kind) else {
            return Ok(None);
        };
        let entity = || {
            self.entity_id
                .ok_or_else(|| corrupt("feed_events", "entity_id", pos))
        };
        let change = match kind.as_str() {
            "key" => {
                let hash = self.key_hash.and_then(|hash| hash.try_into().ok());
                Change::Key(KeyHash(
                    hash.ok_or_else(|| corrupt("feed_events", "key_hash", pos))?,
                ))
            }
            "user" => Change::User(UserId::from_uuid(entity()?)),
            "tenant" => Change::Tenant(TenantId::from_uuid(entity()?)),
            "routing" => Change::Routing,
            _ => return Err(corrupt("feed_events", "kind", pos)),
        };
        Ok(Some(FeedEvent { pos, change }))
    }
}

/// Wakes a poller when something has changed. It may miss changes and wake in vain: only the feed
/// itself tells.
pub struct FeedListener(PgListener);

impl std::fmt::Debug for FeedListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FeedListener")
    }
}

impl FeedListener {
    /// Returns when something may have changed, or the connection was lost and made again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the database cannot be reached; may be repeated.
    ///
    /// # Cancel safety
    /// Safe; a wake-up that was lost is made good by the next poll.
    pub async fn wait(&mut self) -> Result<(), StoreError> {
        self.0.try_recv().await.map_err(Failure::from)?;
        // One look at the feed serves all that came in together.
        while self.0.next_buffered().is_some() {}
        Ok(())
    }
}

impl Storage {
    /// Returns the position of the last change; zero when there was none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn feed_position(&self) -> Result<i64, StoreError> {
        reading!(self, feed_position())
    }

    /// Returns the changes after a position, at most `limit` of them, at least 1.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn feed_since(&self, pos: i64, limit: u32) -> Result<FeedPage, StoreError> {
        reading!(self, feed_since(pos, limit))
    }

    /// Listens for changes; `None` where the database cannot tell, and polling must do.
    ///
    /// The listener holds a connection of its own kind: it works no longer behind a pooler that
    /// shares sessions, and may fall silent there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn listen(&self) -> Result<Option<FeedListener>, StoreError> {
        let Pools::Postgres(pool) = self.pools() else {
            return Ok(None);
        };
        let mut listener = PgListener::connect_with(pool)
            .await
            .map_err(Failure::from)?;
        listener.listen(FEED_CHANNEL).await.map_err(Failure::from)?;
        Ok(Some(FeedListener(listener)))
    }
}

on_both! {
    /// Tells of changes. Must be the last thing that a transaction does: the row of the feed is
    /// locked from here to the commit.
    pub(crate) async fn publish(&mut self, changes: &[Change]) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        if !self.is_recorded {
            // Nothing that others must learn of is done without a trace.
            self.record_act(Act {
                action: "configuration.change",
                tenant_id: None,
                target: format!("{changes:?}"),
                before: None,
                after: None,
            })
            .await?;
        }
        let count = i64::try_from(changes.len()).unwrap_or(i64::MAX);
        let last: i64 = sql_scalar!(ADVANCE_FEED, count).fetch_one(&mut *self.conn).await?;
        let events: Vec<FeedEvent> = (last - count + 1..)
            .zip(changes)
            .map(|(pos, change)| FeedEvent { pos, change: *change })
            .collect();
        self.execute_bulk(&INSERT_EVENTS, &events, |arguments, event| {
            let (kind, hash, entity) = match event.change {
                Change::Key(hash) => ("key", Some(hash.0.to_vec()), None),
                Change::User(id) => ("user", None, Some(id.as_uuid())),
                Change::Tenant(id) => ("tenant", None, Some(id.as_uuid())),
                Change::Routing => ("routing", None, None),
            };
            row!(arguments, event.pos, kind, hash, entity)
        })
        .await?;
        sql!(TRIM_EVENTS, last - KEPT_EVENTS).execute(&mut *self.conn).await?;
        self.notify_feed().await
    }

    async fn feed_position(&mut self) -> Result<i64, Failure> {
        Ok(sql_scalar!(FEED_POSITION).fetch_one(&mut *self.conn).await?)
    }

    async fn feed_since(&mut self, pos: i64, limit: u32) -> Result<FeedPage, Failure> {
        let rows: Vec<EventRow> =
            sql_as!(FEED_SINCE, pos, i64::from(limit.max(1))).fetch_all(&mut *self.conn).await?;
        // The row of the feed is always there, so there is always a row.
        let (position, oldest) = rows.first().map_or((0, None), |row| (row.position, row.oldest));
        let first_kept = oldest.unwrap_or(position + 1);
        if pos > position || pos.saturating_add(1) < first_kept {
            return Ok(FeedPage { events: Vec::new(), position, is_gap: true });
        }
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            events.extend(row.event()?);
        }
        let position = events.last().map_or(position, |event| event.pos);
        Ok(FeedPage { events, position, is_gap: false })
    }
}
