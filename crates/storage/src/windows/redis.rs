//! The counters of all instances, in Redis.
//!
//! One script makes one decision: all counters of a group, all or nothing, by the clock of the
//! server. What this instance is admitted is noted in its own counters too, which decide when Redis
//! is lost. `topology` knows which server has what, `node` is one of them, `gate` says whether it is
//! asked; the scripts are the files beside this one.

mod clock;
mod gate;
mod key_name;
mod node;
mod reply;
mod script;
mod server;
mod sync;
mod topology;
mod upkeep;
mod url;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use foldhash::HashMap;
use parking_lot::Mutex;
use sluice_domain::id::BootId;
use sluice_domain::ports::{WindowCounters, WindowsUnavailable};
use sluice_domain::window::{
    TicketEnd, WindowAnswer, WindowDecision, WindowGroup, WindowKey, WindowRefusal, WindowTicket,
};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::node::Node;
use self::reply::Reply;
use self::script::{Call, Script};
use self::topology::Topology;
use self::upkeep::Correction;
pub use self::url::{InvalidRedisUrl, RedisTarget};
use super::local::{LocalEnd, LocalWindows, Part, Taken, amount_within, millis};
use super::status::NodeStatus;

/// How long what is sent behind the scenes may take.
const SEND_DEADLINE: Duration = Duration::from_secs(1);
/// What a request can have used beyond its estimate at most: more than any does, and so little that
/// sums stay numbers which Redis counts exactly.
const MOST_SHORTAGE: u64 = 1 << 40;
/// How many corrections may wait to be sent.
const WAITING_CORRECTIONS: usize = 16_384;

/// How Redis is used.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Where it is.
    pub target: RedisTarget,
    /// What all names begin with; without `{`. Instances that share limits have the same.
    pub prefix: String,
    /// How long a decision waits for it.
    pub deadline: Duration,
    /// How many connections are made to each server; each carries any number of calls at once.
    pub connections: usize,
    /// How long it is not counted on after it may have lost what it counted: as long as anything
    /// counts. Only tests have a reason to make it shorter.
    pub memory: Duration,
    /// How long the slots of an instance that does not answer stay taken.
    pub slots_expire: Duration,
    /// This start of this instance.
    pub boot_id: BootId,
}

impl RedisOptions {
    /// Returns the options that are right unless there is a reason for others.
    pub fn new(target: RedisTarget, boot_id: BootId) -> Self {
        Self {
            target,
            prefix: "sluice".to_owned(),
            deadline: Duration::from_millis(20),
            connections: 2,
            memory: Duration::from_secs(61),
            slots_expire: Duration::from_secs(15),
            boot_id,
        }
    }
}

#[derive(Debug)]
struct Settings {
    target: RedisTarget,
    prefix: String,
    deadline: Duration,
    connections: usize,
    memory: Duration,
    slots_expire: Duration,
    boot: String,
}

/// What Redis must still know when it is asked for a group.
#[derive(Debug, Clone)]
struct Known {
    marker: String,
    /// Until then something counts that this instance was admitted.
    until: Instant,
}

#[derive(Debug)]
struct Inner {
    settings: Arc<Settings>,
    local: LocalWindows,
    topology: Topology,
    known: Mutex<HashMap<WindowGroup, Known>>,
    /// Makes markers differ.
    marker: AtomicU64,
    corrections: mpsc::Sender<Correction>,
    waiting: Mutex<Option<mpsc::Receiver<Correction>>>,
    lost_corrections: AtomicU64,
}

/// Window counters in Redis.
///
/// A decision is one script, which has the deadline to answer in; [`WindowsUnavailable`] says that
/// the caller must decide by itself. Nothing works before [`keep`](Self::keep) runs.
#[derive(Debug, Clone)]
pub struct RedisWindows(Arc<Inner>);

impl RedisWindows {
    /// Returns counters that are not connected yet. `local` takes part in all of their decisions.
    pub fn new(options: RedisOptions, local: LocalWindows) -> Self {
        let settings = Arc::new(Settings {
            target: options.target,
            prefix: options.prefix,
            deadline: options.deadline,
            connections: options.connections,
            memory: options.memory,
            slots_expire: options.slots_expire,
            boot: options.boot_id.to_string(),
        });
        let (corrections, waiting) = mpsc::channel(WAITING_CORRECTIONS);
        Self(Arc::new(Inner {
            topology: Topology::new(Arc::clone(&settings), local.clone()),
            settings,
            local,
            known: Mutex::default(),
            marker: AtomicU64::new(0),
            corrections,
            waiting: Mutex::new(Some(waiting)),
            lost_corrections: AtomicU64::new(0),
        }))
    }

    /// Returns how its servers stand.
    pub fn status(&self) -> Vec<NodeStatus> {
        let nodes = self.0.topology.nodes();
        nodes.iter().map(|node| node.status()).collect()
    }

    /// Returns how many corrections were not sent.
    pub fn lost_corrections(&self) -> u64 {
        self.0.lost_corrections.load(Ordering::Relaxed)
    }

    /// Returns the marker that Redis must have for a group.
    fn known_marker(&self, group: WindowGroup, now: Instant) -> Option<String> {
        let known = self.0.known.lock();
        known
            .get(&group)
            .filter(|known| known.until > now)
            .map(|known| known.marker.clone())
    }

    fn remember(&self, group: WindowGroup, marker: &str, now: Instant) {
        let until = now + self.0.settings.memory;
        let mut known = self.0.known.lock();
        // A flood of addresses must not fill the memory. One that is not remembered is not missed
        // when Redis has lost it; the loss of all is noticed in other ways.
        if known.len() >= 2 * self.0.local.max_counters() && !known.contains_key(&group) {
            return;
        }
        let entry = known.entry(group).or_insert_with(|| Known {
            marker: String::new(),
            until,
        });
        entry.until = until;
        if entry.marker != marker {
            marker.clone_into(&mut entry.marker);
        }
    }

    fn new_marker(&self) -> String {
        let number = self.0.marker.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number}", self.0.settings.boot)
    }

    async fn ask(
        &self,
        node: &Node,
        name: &str,
        decision: WindowDecision<'_>,
    ) -> Result<WindowAnswer, WindowsUnavailable> {
        let Inner {
            local, settings, ..
        } = &*self.0;
        let begun = Instant::now();
        let mut prepared = local.prepare(decision);
        let mut keys = vec![name.to_owned()];
        keys.extend(
            decision
                .asks
                .iter()
                .map(|ask| key_name::counter_name(name, &ask.key)),
        );
        let mut call = Call::new(Script::Decide, keys);
        call.text(self.known_marker(decision.group, begun).unwrap_or_default())
            .text(self.new_marker())
            .number(millis(settings.memory))
            .text(settings.boot.as_str());
        for (ask, part) in decision.asks.iter().zip(&prepared.parts) {
            match (part, ask.key.kind.shape()) {
                (Part::Window { unsent }, Some(shape)) => {
                    call.word("w")
                        .number(shape.width_ms)
                        .number(shape.before)
                        .number(ask.limit.most())
                        .number(amount_within(ask, ask.limit.most()))
                        .flag(ask.limit.dry_run)
                        .number(u64::try_from(unsent.len()).unwrap_or(0));
                    for (age, amount) in unsent {
                        call.number(*age).number(*amount);
                    }
                }
                (Part::Slots { used, version }, _) => {
                    call.word("c")
                        .number(ask.limit.most())
                        .number(*used)
                        .number(*version)
                        .number(millis(settings.slots_expire))
                        .flag(ask.limit.dry_run);
                }
                (Part::Window { .. }, None) => return Err(WindowsUnavailable::Failed),
            }
        }
        let sent = local.now();
        let reply = node.decide(local.hash(decision.group), &call).await?;
        let reply = Reply::read(&reply, decision.asks).ok_or(WindowsUnavailable::Failed)?;
        node.observe(sent, reply.server_ms());
        match reply {
            Reply::Forgetful { .. } => {
                self.0.known.lock().remove(&decision.group);
                Err(WindowsUnavailable::Forgetful)
            }
            Reply::Refused {
                which,
                standings,
                retry_after,
                ..
            } => {
                prepared.learned();
                Ok(WindowAnswer::Refused(WindowRefusal {
                    which,
                    standings,
                    retry_after,
                }))
            }
            Reply::Admitted {
                marker,
                standings,
                buckets,
                ..
            } => {
                self.remember(decision.group, &marker, Instant::now());
                let takings = prepared.admit();
                let ticket = if takings.is_empty() {
                    WindowTicket::empty()
                } else {
                    let tokens = takings
                        .iter()
                        .filter_map(|taken| match taken {
                            Taken::Tokens { key, amount, .. } => {
                                let at = decision.asks.iter().position(|ask| ask.key == *key)?;
                                let bucket = *buckets.get(at)?;
                                Some((key.clone(), bucket, *amount))
                            }
                            Taken::Slot { .. } => None,
                        })
                        .collect();
                    WindowTicket::new(Box::new(RedisEnd {
                        windows: self.clone(),
                        group: decision.group,
                        marker,
                        tokens,
                        local: LocalEnd::new(local.clone(), decision.group, takings),
                    }))
                };
                Ok(WindowAnswer::Admitted { ticket, standings })
            }
        }
    }
}

#[async_trait]
impl WindowCounters for RedisWindows {
    async fn decide(
        &self,
        decision: WindowDecision<'_>,
    ) -> Result<WindowAnswer, WindowsUnavailable> {
        let tag = key_name::tag(decision.group).ok_or(WindowsUnavailable::Away)?;
        let node = self.0.topology.find(&tag).ok_or(WindowsUnavailable::Away)?;
        let name = key_name::group_name(&self.0.settings.prefix, &tag);
        self.ask(&node, &name, decision).await
    }
}

/// Gives back what was taken in Redis, and here.
struct RedisEnd {
    windows: RedisWindows,
    group: WindowGroup,
    marker: String,
    /// The counters of tokens, the bucket in Redis, and the estimate.
    tokens: Vec<(WindowKey, u64, u64)>,
    local: LocalEnd,
}

impl TicketEnd for RedisEnd {
    fn correct(&mut self, tokens: u64) {
        self.local.correct(tokens);
        for (key, bucket, estimate) in self.tokens.drain(..) {
            if tokens == estimate {
                continue;
            }
            let correction = Correction {
                group: self.group,
                marker: self.marker.clone(),
                key,
                bucket,
                surplus: estimate.saturating_sub(tokens),
                shortage: tokens.saturating_sub(estimate).min(MOST_SHORTAGE),
            };
            if self.windows.0.corrections.try_send(correction).is_err() {
                self.windows
                    .0
                    .lost_corrections
                    .fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn release(&mut self) {
        self.local.release();
    }
}
