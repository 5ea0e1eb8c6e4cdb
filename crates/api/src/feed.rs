//! Follows the change feed: what an admin changes anywhere takes effect here within a second.

use std::sync::Arc;
use std::time::Duration;

use sluice_domain::ports::StoreError;
use sluice_storage::feed::Change;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::error::chain;

/// How often the feed is read. A notification of the database only wakes the reader earlier.
const POLL_EVERY: Duration = Duration::from_millis(500);
/// Most events that are read at a time.
const PAGE: u32 = 1_000;

/// Reads the feed until the process stops.
pub(crate) async fn follow(app: Arc<App>, mut position: i64, stopping: CancellationToken) {
    // Polling alone is enough; without a listener it only takes a little longer.
    let mut listener = app.storage.listen().await.ok().flatten();
    loop {
        let woken = async {
            match &mut listener {
                Some(listener) => listener.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stopping.cancelled() => return,
            woken = woken => {
                if let Err(error) = woken {
                    tracing::warn!(error = chain(&error), "the database no longer tells about changes; polling goes on");
                    listener = None;
                }
            }
            () = tokio::time::sleep(POLL_EVERY) => {}
        }
        match catch_up(&app, position).await {
            Ok(reached) => position = reached,
            Err(error) => {
                app.metrics.feed_failures.inc();
                tracing::warn!(error = chain(&error), "the change feed cannot be read");
            }
        }
    }
}

/// Applies every event after `position` and returns the position that was reached.
async fn catch_up(app: &App, mut position: i64) -> Result<i64, StoreError> {
    loop {
        let page = app.storage.feed_since(position, PAGE).await?;
        if page.is_gap {
            tracing::info!("the change feed was trimmed meanwhile; everything is read anew");
            app.grants.forget_all();
            app.reload_routing().await?;
            return Ok(page.position);
        }
        let is_last = page.events.is_empty();
        let mut is_routing_changed = false;
        for event in &page.events {
            match &event.change {
                Change::Key(hash) => app.grants.forget_key(hash),
                Change::User(user) => app.grants.forget_user(*user),
                Change::Tenant(tenant) => app.grants.forget_tenant(*tenant),
                Change::Routing => is_routing_changed = true,
            }
        }
        if is_routing_changed {
            app.reload_routing().await?;
        }
        position = page.position;
        if is_last {
            return Ok(position);
        }
    }
}
