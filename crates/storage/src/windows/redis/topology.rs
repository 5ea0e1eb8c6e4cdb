//! Which server has which counters.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use redis::{Client, RedisError, Value, cmd};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

use super::Settings;
use super::key_name::{SLOTS, slot_of};
use super::node::{Node, Origin, connect};
use super::url::{Host, Shape};
use crate::windows::local::LocalWindows;

/// How often a cluster is asked which server has what.
const REFRESH_EVERY: Duration = Duration::from_secs(10);
/// How long it is waited between two questions.
const REFRESH_PAUSE: Duration = Duration::from_millis(200);
/// How long one server of a cluster has for its answer.
const REFRESH_DEADLINE: Duration = Duration::from_millis(500);

/// The servers.
#[derive(Debug)]
pub(super) struct Topology {
    settings: Arc<Settings>,
    local: LocalWindows,
    map: RwLock<Arc<Map>>,
    /// Is told when a server is gone, or has something no longer.
    moved: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Map {
    /// The number of the server of each slot of a cluster; empty where there is one server.
    slots: Vec<Option<usize>>,
    nodes: Vec<Arc<Node>>,
}

/// A server of a cluster, and its slots.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    host: Host,
    ranges: Vec<(u16, u16)>,
}

impl Topology {
    pub(super) fn new(settings: Arc<Settings>, local: LocalWindows) -> Self {
        let topology = Self {
            settings,
            local,
            map: RwLock::default(),
            moved: Arc::new(Notify::new()),
        };
        let origin = match &topology.settings.target.shape {
            Shape::Single(host) => Some(Origin::At(host.clone())),
            Shape::Sentinel { sentinels, service } => Some(Origin::Sentinels {
                hosts: sentinels.clone(),
                service: service.clone(),
            }),
            Shape::Cluster(_) => None,
        };
        if let Some(origin) = origin {
            let node = topology.new_node(origin, None);
            *topology.map.write() = Arc::new(Map {
                slots: Vec::new(),
                nodes: vec![node],
            });
        }
        topology
    }

    fn new_node(&self, origin: Origin, first_slot: Option<u16>) -> Arc<Node> {
        Arc::new(Node::new(
            Arc::clone(&self.settings),
            self.local.clone(),
            origin,
            first_slot,
            Arc::clone(&self.moved),
        ))
    }

    /// Returns the server of a group.
    pub(super) fn find(&self, tag: &str) -> Option<Arc<Node>> {
        let map = Arc::clone(&self.map.read());
        if map.slots.is_empty() {
            return map.nodes.first().cloned();
        }
        let slot = usize::from(slot_of(tag));
        let at = map.slots.get(slot).copied().flatten()?;
        map.nodes.get(at).cloned()
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.map.read().nodes.clone()
    }

    /// Looks after all servers for ever.
    pub(super) async fn keep(&self) {
        let Shape::Cluster(seeds) = &self.settings.target.shape else {
            match self.nodes().first() {
                Some(node) => node.keep().await,
                None => std::future::pending().await,
            }
            return;
        };
        let mut keepers = Keepers::default();
        loop {
            if let Some(parts) = self.ask_cluster(seeds).await {
                self.apply(parts, &mut keepers);
            } else {
                tracing::debug!("no server of the Redis Cluster tells its parts");
            }
            let pause = if self.nodes().is_empty() {
                REFRESH_PAUSE
            } else {
                REFRESH_EVERY
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.moved.notified() => tokio::time::sleep(REFRESH_PAUSE).await,
            }
        }
    }

    async fn ask_cluster(&self, seeds: &[Host]) -> Option<Vec<Part>> {
        let known = self.nodes();
        let known = known.iter().filter_map(|node| match &node.origin {
            Origin::At(host) => Some(host),
            Origin::Sentinels { .. } => None,
        });
        for host in known.chain(seeds) {
            if let Ok(Ok(parts)) = timeout(REFRESH_DEADLINE, self.ask_server(host)).await
                && !parts.is_empty()
            {
                return Some(parts);
            }
        }
        None
    }

    async fn ask_server(&self, host: &Host) -> Result<Vec<Part>, RedisError> {
        let client = Client::open(self.settings.target.connection_info(host))?;
        let mut connection = connect(&client).await?;
        let reply: Value = cmd("CLUSTER")
            .arg("SLOTS")
            .query_async(&mut connection)
            .await?;
        Ok(read_parts(reply, host))
    }

    /// Takes over who has what. A server whose part begins elsewhere is a new one: what it has was
    /// perhaps another's before.
    fn apply(&self, parts: Vec<Part>, keepers: &mut Keepers) {
        let known = self.nodes();
        let mut map = Map {
            slots: vec![None; usize::from(SLOTS)],
            nodes: Vec::with_capacity(parts.len()),
        };
        for part in parts {
            let first_slot = part.ranges.iter().map(|(first, _)| *first).min();
            let origin = Origin::At(part.host);
            let node = known
                .iter()
                .find(|node| node.origin == origin && node.first_slot == first_slot)
                .cloned()
                .unwrap_or_else(|| self.new_node(origin, first_slot));
            for (first, last) in part.ranges {
                let range = usize::from(first)..=usize::from(last);
                if let Some(slots) = map.slots.get_mut(range) {
                    slots.fill(Some(map.nodes.len()));
                }
            }
            map.nodes.push(node);
        }
        keepers.keep(&map.nodes);
        *self.map.write() = Arc::new(map);
    }
}

/// The tasks that look after the servers of a cluster.
#[derive(Debug, Default)]
struct Keepers {
    tasks: JoinSet<()>,
    kept: Vec<(Arc<Node>, AbortHandle)>,
}

impl Keepers {
    fn keep(&mut self, nodes: &[Arc<Node>]) {
        self.kept.retain(|(kept, task)| {
            let is_there = nodes.iter().any(|node| Arc::ptr_eq(node, kept));
            if !is_there {
                task.abort();
            }
            is_there
        });
        for node in nodes {
            if !self.kept.iter().any(|(kept, _)| Arc::ptr_eq(node, kept)) {
                let kept = Arc::clone(node);
                let task = self.tasks.spawn(async move { kept.keep().await });
                self.kept.push((Arc::clone(node), task));
            }
        }
        // Ended ones were aborted.
        while self.tasks.try_join_next().is_some() {}
    }
}

/// Reads the answer to `CLUSTER SLOTS`: ranges, each with its servers, the master first.
fn read_parts(reply: Value, asked: &Host) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let Value::Array(ranges) = reply else {
        return parts;
    };
    for range in ranges {
        let Value::Array(range) = range else { continue };
        let [
            Value::Int(first),
            Value::Int(last),
            Value::Array(master),
            ..,
        ] = range.as_slice()
        else {
            continue;
        };
        let [name, Value::Int(port), ..] = master.as_slice() else {
            continue;
        };
        let (Ok(first), Ok(last), Ok(port)) = (
            u16::try_from(*first),
            u16::try_from(*last),
            u16::try_from(*port),
        ) else {
            continue;
        };
        // A server that does not know its own name is the one that was asked.
        let name = match name {
            Value::BulkString(name) if !name.is_empty() => {
                String::from_utf8_lossy(name).into_owned()
            }
            Value::SimpleString(name) if !name.is_empty() => name.clone(),
            _ => asked.name.clone(),
        };
        let host = Host { name, port };
        match parts.iter_mut().find(|part| part.host == host) {
            Some(part) => part.ranges.push((first, last)),
            None => parts.push(Part {
                host,
                ranges: vec![(first, last)],
            }),
        }
    }
    parts
}
