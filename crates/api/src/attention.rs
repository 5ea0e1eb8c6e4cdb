//! Whether the accounts need a person: asked of the database now and then, told by metrics, the log
//! and the health page.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sluice_storage::resolve::Attention;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// How often the database is asked.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Whether somebody should look at the accounts.
#[derive(Debug, Default)]
pub(crate) struct AccountsState(AtomicBool);

impl AccountsState {
    /// Returns a word for the health page.
    pub(crate) fn word(&self) -> &'static str {
        if self.0.load(Ordering::Relaxed) {
            "needs_attention"
        } else {
            "ok"
        }
    }
}

/// Looks until it is told to stop.
pub(crate) async fn watch(app: Arc<App>, stopped: CancellationToken) {
    loop {
        // A database that is away is told by others.
        if let Ok(attention) = app.storage.ledger_attention(app.now()).await {
            note(&app, &attention);
        }
        tokio::select! {
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

fn note(app: &App, attention: &Attention) {
    app.metrics.note_attention(attention);
    let is_needed = *attention != Attention::default();
    if app.accounts.0.swap(is_needed, Ordering::Relaxed) == is_needed {
        return;
    }
    if is_needed {
        tracing::error!(
            silent_instances = attention.silent,
            settled_instances = attention.settled,
            exposed_tokens = attention.exposed_tokens,
            over_tokens = attention.over_tokens,
            quarantined_records = attention.quarantined,
            "the accounts need attention; `sluice ledger instances` and `sluice ledger verify` show more"
        );
    } else {
        tracing::info!("the accounts need no attention any more");
    }
}
