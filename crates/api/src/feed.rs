//! Follows the change feed: what an admin changes anywhere takes effect here within a second.
//!
//! Whoever follows also keeps the config snapshot: what has to leave it is written before a change
//! counts as read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sluice_domain::key::KeyHash;
use sluice_domain::ports::StoreError;
use sluice_storage::feed::{Change, FeedListener, FeedPage};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::database::bounded;
use crate::error::chain;
use crate::snapshot::{Frame, Keeper};

/// How often the feed is read. A notification of the database only wakes the reader earlier.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// A change may come right after a read, and reading and applying it takes its time as well.
const _: () = assert!(
    POLL_EVERY.as_millis() <= 500,
    "what an admin changes takes effect within a second"
);
/// Most events that are read at a time.
const PAGE: u32 = 1_000;
/// How long one read may take.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is tried to be told about changes again.
const LISTEN_EVERY: Duration = Duration::from_secs(10);
/// Most keys that are read again between two reads of the feed.
const REFRESHED_AT_ONCE: usize = 500;

/// The reader of the feed.
pub(crate) struct Follower {
    app: Arc<App>,
    position: i64,
    keeper: Option<Keeper>,
    listener: Option<FeedListener>,
    listen_at: Instant,
    /// Keys that were in use before they changed, or before the start.
    refresh: VecDeque<KeyHash>,
    /// Whether the last read failed: an outage is not told twice a second.
    is_failing: bool,
}

impl Follower {
    /// Begins after `position`. `used` are keys that were in use lately.
    pub(crate) fn new(
        app: Arc<App>,
        position: i64,
        keeper: Option<Keeper>,
        used: impl IntoIterator<Item = KeyHash>,
    ) -> Self {
        Self {
            app,
            position,
            keeper,
            listener: None,
            listen_at: Instant::now(),
            refresh: used.into_iter().collect(),
            is_failing: false,
        }
    }

    /// Reads the feed until the process stops.
    pub(crate) async fn run(mut self, stopping: CancellationToken) {
        loop {
            self.listen().await;
            let woken = async {
                match &mut self.listener {
                    Some(listener) => listener.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stopping.cancelled() => break,
                woken = woken => {
                    if let Err(error) = woken {
                        tracing::warn!(error = chain(&error), "the database no longer tells about changes; polling goes on");
                        self.listener = None;
                    }
                }
                () = tokio::time::sleep(POLL_EVERY) => {}
            }
            // Nothing is read from a database that may not fit this binary.
            if self.app.standing.is_joined() {
                self.follow().await;
            }
        }
        // The next start may find the database away.
        if self.app.standing.is_up() && self.catch_up().await.is_ok() {
            self.keep(true).await;
        }
    }

    async fn follow(&mut self) {
        match self.catch_up().await {
            Ok(()) => {
                self.is_failing = false;
                self.refresh_keys().await;
                self.keep(false).await;
            }
            Err(error) => {
                self.app.metrics.feed_failures.inc();
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(
                        error = chain(&error),
                        "the change feed cannot be read; it is tried again"
                    );
                }
            }
        }
    }

    /// Polling alone is enough; without a listener it only takes a little longer.
    async fn listen(&mut self) {
        let now = Instant::now();
        if self.listener.is_none() && self.app.standing.is_up() && now >= self.listen_at {
            self.listen_at = now + LISTEN_EVERY;
            let listener = bounded(READ_PATIENCE, self.app.storage.listen()).await;
            self.listener = listener.ok().flatten();
        }
    }

    /// Applies every event after the position.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        loop {
            // What is read now is true as of the moment before.
            let now = self.app.now();
            let page = bounded(
                READ_PATIENCE,
                self.app.storage.feed_since(self.position, PAGE),
            )
            .await?;
            let is_last = page.is_gap || page.events.is_empty();
            self.apply(page).await?;
            if is_last {
                self.app.standing.note_read(now);
                return Ok(());
            }
        }
    }

    async fn apply(&mut self, page: FeedPage) -> Result<(), StoreError> {
        let grants = &self.app.grants;
        let mut is_routing_changed = page.is_gap;
        let mut is_urgent = page.is_gap;
        if page.is_gap {
            tracing::info!("the change feed was trimmed meanwhile; everything is read anew");
            self.refresh.extend(grants.forget_all());
            if let Some(keeper) = &mut self.keeper {
                keeper.note_gap();
            }
        }
        for event in &page.events {
            let forgotten = match &event.change {
                Change::Key(hash) => grants.forget_key(hash),
                Change::User(user) => grants.forget_user(*user),
                Change::Tenant(tenant) => grants.forget_tenant(*tenant),
                Change::Routing => {
                    is_routing_changed = true;
                    Vec::new()
                }
            };
            self.refresh.extend(forgotten);
            if let Some(keeper) = &mut self.keeper {
                is_urgent |= keeper.note_change(&event.change);
            }
        }
        let routed = if is_routing_changed {
            bounded(READ_PATIENCE, self.app.reload_routing()).await
        } else {
            Ok(())
        };
        if is_urgent {
            // What is gone leaves the snapshot although the rest may not be known yet.
            let position = if routed.is_ok() {
                page.position
            } else {
                self.position
            };
            self.write_snapshot(position).await;
        }
        routed?;
        self.position = page.position;
        Ok(())
    }

    /// Reads keys again that were in use, some at a time.
    async fn refresh_keys(&mut self) {
        let Some(keeper) = &mut self.keeper else {
            self.refresh.clear();
            return;
        };
        if self.refresh.is_empty() {
            return;
        }
        self.refresh.truncate(keeper.max_keys());
        keeper.note_news();
        for _ in 0..REFRESHED_AT_ONCE {
            let Some(hash) = self.refresh.pop_front() else {
                return;
            };
            if let Err(error) = self.app.grants.refresh(hash).await {
                tracing::warn!(error = chain(&error), "a key cannot be read again");
                self.refresh.push_front(hash);
                return;
            }
        }
    }

    async fn keep(&mut self, is_last: bool) {
        let is_due = self
            .keeper
            .as_ref()
            .is_some_and(|keeper| is_last || keeper.is_due(&self.app.grants));
        if is_due && self.refresh.is_empty() {
            self.write_snapshot(self.position).await;
        }
    }

    async fn write_snapshot(&mut self, feed_position: i64) {
        let Some(keeper) = &mut self.keeper else {
            return;
        };
        let frame = Frame {
            feed_position,
            as_of: self.app.standing.as_of(),
            routing: self.app.stored_routing.load_full(),
        };
        let as_of = frame.as_of;
        if keeper.write(frame, &self.app.grants).await {
            self.app.metrics.snapshot_as_of.set(as_of.0 / 1_000);
        }
    }
}
