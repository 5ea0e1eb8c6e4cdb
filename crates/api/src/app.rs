//! What all threads of the process share.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use arc_swap::ArcSwap;
use sluice_accounting::{Lane, Ledger};
use sluice_domain::ports::{Clock, StoreError};
use sluice_storage::Storage;
use sluice_storage::route::Routing;
use sluice_storage::secret::{SealBinding, Vault};
use sluice_upstream_pool::{Dispatcher, HealthRegistry, RoutingInput, RoutingTable};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;

use crate::attention::AccountsState;
use crate::auth::Grants;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::database::Standing;
use crate::error::chain;
use crate::metrics::Metrics;
use crate::relay::Board;
use crate::windows::Gate;

/// Something that happens once and is waited for by every connection.
///
/// Asking whether it has happened is one load. Waiting registers a waker, under a lock that all
/// waiters share: whoever is polled often waits once and then asks.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    is_given: AtomicBool,
    token: CancellationToken,
}

impl Signal {
    pub(crate) fn give(&self) {
        self.is_given.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(crate) fn is_given(&self) -> bool {
        self.is_given.load(Ordering::Acquire)
    }

    pub(crate) fn wait(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }
}

/// Waits for a [`Signal`] inside one task that is polled often.
pub(crate) struct SignalWatch {
    signal: Arc<Signal>,
    waiting: Pin<Box<WaitForCancellationFutureOwned>>,
    is_registered: bool,
}

impl SignalWatch {
    pub(crate) fn new(signal: &Arc<Signal>) -> Self {
        Self {
            signal: Arc::clone(signal),
            waiting: Box::pin(signal.wait()),
            is_registered: false,
        }
    }

    /// Returns whether the signal is given; else the task is woken when it is. The first call
    /// registers the task, later ones only look, so it must always be the same task.
    pub(crate) fn poll_given(&mut self, cx: &mut Context<'_>) -> bool {
        if self.is_registered {
            return self.signal.is_given();
        }
        self.is_registered = true;
        self.waiting.as_mut().poll(cx).is_ready()
    }
}

/// What all threads share. Cheap parts are copied into [`Worker`].
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) clock: SystemClock,
    pub(crate) storage: Storage,
    pub(crate) vault: Vault,
    pub(crate) ledger: Ledger,
    /// The way into the journal for work that belongs to no thread of the relay.
    pub(crate) control_lane: Arc<Lane>,
    pub(crate) grants: Grants,
    /// Decides about window limits.
    pub(crate) gate: Gate,
    pub(crate) routing: ArcSwap<RoutingTable>,
    /// What is known of upstreams from the requests that they had; it outlives routing tables.
    pub(crate) health: HealthRegistry,
    /// What `routing` was built from, with its secrets sealed.
    pub(crate) stored_routing: ArcSwap<Routing>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) accounts: AccountsState,
    /// The runtime on which the database's connections live.
    pub(crate) control: Handle,
    pub(crate) standing: Arc<Standing>,
    /// How many streams may be read to their end although their clients have left.
    pub(crate) drains: Arc<Semaphore>,
    /// No new connections; open requests go on.
    pub(crate) draining: Arc<Signal>,
    /// The time for draining is over; open requests end now.
    pub(crate) ending: Arc<Signal>,
}

impl App {
    /// Reads upstreams, keys and routes and puts them into use as a whole.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read; what was in use stays in use.
    pub(crate) async fn reload_routing(&self) -> Result<(), StoreError> {
        let stored = self.storage.load_routing().await?;
        self.routing
            .store(Arc::new(build_routing(&stored, &self.vault, &self.health)));
        self.stored_routing.store(Arc::new(stored));
        tracing::info!("upstreams and routes were read");
        Ok(())
    }

    pub(crate) fn now(&self) -> sluice_domain::time::UnixMillis {
        self.clock.now()
    }

    /// Returns leave to read a stream to its end without a client; `None` when too many are.
    pub(crate) fn begin_drain(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.drains).try_acquire_owned().ok()
    }

    /// Returns whether requests with known keys are served.
    pub(crate) fn is_ready(&self) -> bool {
        !self.standing.is_stale() && !self.draining.is_given()
    }
}

/// Puts upstreams, keys and routes into use. What cannot be used is reported and left out.
pub(crate) fn build_routing(
    stored: &Routing,
    vault: &Vault,
    health: &HealthRegistry,
) -> RoutingTable {
    let mut keys = Vec::with_capacity(stored.keys.len());
    for (key, sealed) in &stored.keys {
        let Some(upstream) = stored.upstreams.iter().find(|u| u.id == key.upstream_id) else {
            continue;
        };
        match vault.open(sealed, &SealBinding::of(upstream, key.id)) {
            Ok(secret) => keys.push((key.clone(), secret)),
            Err(error) => tracing::error!(
                upstream = upstream.name.as_str(),
                upstream_key = key.name.as_str(),
                error = chain(&error),
                "an upstream key cannot be unsealed; it is not used"
            ),
        }
    }
    let (table, problems) = RoutingTable::build(
        RoutingInput {
            upstreams: stored.upstreams.clone(),
            keys,
            routes: stored.routes.clone(),
        },
        health,
    );
    for problem in problems {
        tracing::warn!(problem = %problem, "a part of the routing is not used");
    }
    table
}

/// What one thread of the relay owns.
pub(crate) struct Worker {
    pub(crate) app: Arc<App>,
    /// Its way into the journal.
    pub(crate) lane: Arc<Lane>,
    /// How far its streams have come.
    pub(crate) board: Arc<Board>,
    pub(crate) dispatcher: Dispatcher,
    /// Answers that are read to their end although their client has left.
    pub(crate) detached: TaskTracker,
}
