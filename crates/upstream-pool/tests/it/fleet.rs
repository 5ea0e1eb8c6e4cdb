//! Several fake upstreams behind one route, and the health that stays while tables are rebuilt.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use secrecy::SecretString;
use sluice_domain::id::{RouteId, TenantId, UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{BreakerPolicy, RetryPolicy, TargetUse};
use sluice_domain::quota::Payer;
use sluice_domain::record::AttemptRecord;
use sluice_domain::route::{Endpoint, Route, Target};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{Deadlines, ProviderKind, Upstream, UpstreamKey};
use sluice_testkit::FakeUpstream;
use sluice_upstream_pool::{
    Call, ClientOptions, Dispatcher, HealthRegistry, RoutePlan, RoutingInput, RoutingTable,
    UpstreamReport,
};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::support::{FixedClock, Outcome, PAYER};

/// How long anything may take, on whatever machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A route in the making.
pub(crate) struct Fleet {
    pub(crate) upstreams: Vec<Upstream>,
    pub(crate) keys: Vec<(UpstreamKey, SecretString)>,
    pub(crate) route: Route,
    pub(crate) health: HealthRegistry,
}

impl Fleet {
    /// Leads a route to one upstream per address: a tier each, with so many keys.
    pub(crate) fn of(fakes: &[(&FakeUpstream, usize)]) -> Self {
        let addresses: Vec<_> = fakes
            .iter()
            .map(|(f, keys)| (f.base_url(), *keys))
            .collect();
        Self::at(&addresses)
    }

    pub(crate) fn at(addresses: &[(String, usize)]) -> Self {
        let mut fleet = Self {
            upstreams: Vec::new(),
            keys: Vec::new(),
            route: Route::new(
                RouteId::from_uuid(Uuid::from_u128(7)),
                "alias".into(),
                Vec::new(),
                UnixMillis(0),
            ),
            health: HealthRegistry::new(),
        };
        for (n, (base_url, keys)) in addresses.iter().enumerate() {
            let id = UpstreamId::from_uuid(Uuid::from_u128(n as u128 + 1));
            fleet.upstreams.push(Upstream {
                allow_private: true,
                ..Upstream::new(
                    id,
                    format!("up-{n}").parse().unwrap(),
                    ProviderKind::OpenAi,
                    Some(base_url.parse().unwrap()),
                    UnixMillis(0),
                )
            });
            fleet.route.targets.push(Target {
                tier: u32::try_from(n).unwrap(),
                upstream_model: Some(format!("model-{n}")),
                ..Target::new(id)
            });
            for key in 0..*keys {
                let number = n * 100 + key;
                fleet.keys.push((
                    UpstreamKey::new(
                        UpstreamKeyId::from_uuid(Uuid::from_u128(number as u128 + 1)),
                        id,
                        format!("key-{key}").parse().unwrap(),
                        UnixMillis(0),
                    ),
                    SecretString::from(format!("sk-{n}-{key}")),
                ));
            }
        }
        fleet
    }

    /// Puts all targets into one tier.
    pub(crate) fn in_one_tier(mut self) -> Self {
        self.route
            .targets
            .iter_mut()
            .for_each(|target| target.tier = 0);
        self
    }

    pub(crate) fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.upstreams
            .iter_mut()
            .for_each(|up| up.deadlines = deadlines);
        self
    }

    pub(crate) fn with_breaker(mut self, max_failures: u32, open_for: Duration) -> Self {
        for upstream in &mut self.upstreams {
            upstream.breaker = BreakerPolicy {
                max_failures: NonZeroU32::new(max_failures).unwrap(),
                open_for,
                ..BreakerPolicy::default()
            };
        }
        self
    }

    pub(crate) fn with_max_attempts(mut self, max_attempts: u32) -> Self {
        for upstream in &mut self.upstreams {
            upstream.retry = RetryPolicy {
                max_attempts: NonZeroU32::new(max_attempts).unwrap(),
            };
        }
        self
    }

    /// Keeps the last target for requests that are too long for the others.
    pub(crate) fn with_last_for_long_requests(mut self) -> Self {
        self.route.targets.last_mut().unwrap().serves = TargetUse::ContextLength;
        self
    }

    /// Builds the table anew, as after a change of the configuration.
    pub(crate) fn ready(&self) -> Ready {
        let table = self.table();
        let plan = table.find_route(PAYER.tenant_id, "alias").unwrap();
        Ready {
            dispatcher: Dispatcher::new(ClientOptions::default()),
            plan,
            ended: Arc::default(),
            begun: Arc::default(),
        }
    }

    fn table(&self) -> RoutingTable {
        let input = RoutingInput {
            upstreams: self.upstreams.clone(),
            keys: self.keys.clone(),
            routes: vec![self.route.clone()],
        };
        let (table, problems) = RoutingTable::build(input, &self.health);
        assert_eq!(problems, []);
        table
    }

    /// Probes upstreams as they are now until it is dropped.
    pub(crate) fn patrol(&self) -> JoinSet<()> {
        let table = Arc::new(self.table());
        let dispatcher = Dispatcher::new(ClientOptions::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { dispatcher.patrol(|| Arc::clone(&table)).await });
        tasks
    }

    /// Waits until the first upstream stands so.
    pub(crate) async fn until(&self, stands: impl Fn(&UpstreamReport) -> bool) -> UpstreamReport {
        let began = Instant::now();
        loop {
            let report = self.health.report().remove(0);
            if stands(&report) {
                return report;
            }
            assert!(began.elapsed() < PATIENCE, "{report:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A route that requests can be sent to.
#[derive(Clone)]
pub(crate) struct Ready {
    dispatcher: Dispatcher,
    plan: Arc<RoutePlan>,
    /// What was said at the end of each attempt.
    pub(crate) ended: Arc<Mutex<Vec<AttemptRecord>>>,
    /// The numbers of the attempts as they began.
    pub(crate) begun: Arc<Mutex<Vec<u32>>>,
}

/// The upstream of an attempt and what went wrong there.
pub(crate) type Tried = (usize, Option<String>);

pub(crate) fn tried(attempts: &[AttemptRecord]) -> Vec<Tried> {
    attempts
        .iter()
        .map(|attempt| {
            let number = attempt.upstream_id.as_uuid().as_u128() - 1;
            let error = attempt.error.as_deref().map(str::to_owned);
            (usize::try_from(number).unwrap(), error)
        })
        .collect()
}

/// Names attempts for comparison: the upstream, and the class or nothing.
pub(crate) fn attempts(expected: &[(usize, &str)]) -> Vec<Tried> {
    expected
        .iter()
        .map(|(upstream, error)| (*upstream, (!error.is_empty()).then(|| (*error).to_owned())))
        .collect()
}

fn unique() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("user-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn tenant(n: u128) -> Payer {
    Payer {
        tenant_id: TenantId::from_uuid(Uuid::from_u128(n)),
        ..PAYER
    }
}

impl Ready {
    /// Asks with a body that no other request has.
    pub(crate) async fn ask(&self) -> Outcome {
        self.send(&PAYER, &unique(), false).await
    }

    /// Asks for a stream with a body that no other request has.
    pub(crate) async fn stream(&self) -> Outcome {
        self.send(&PAYER, &unique(), true).await
    }

    pub(crate) async fn send(&self, payer: &Payer, user: &str, streams: bool) -> Outcome {
        let model = Arc::from("alias");
        let body = |model: &str| {
            format!(
                r#"{{"model":"{model}","stream":{streams},"user":"{user}","messages":[{{"role":"user","content":"a b"}}]}}"#
            )
        };
        let asked = body("alias");
        let call = Call {
            pinned: None,
            endpoint: Endpoint::ChatCompletions,
            streams,
            is_beta: false,
            model: &model,
            headers: &HeaderMap::new(),
            payer,
            body: asked.as_bytes(),
            token_bound: 100,
            attempt_ended: &|record| self.ended.lock().push(record.clone()),
            abandoned: &|_| {},
            render: &|target| {
                self.begun.lock().push(target.attempt);
                Bytes::from(body(target.upstream_model))
            },
            clock: &FixedClock,
            max_event_bytes: 64 * 1024,
            max_held_bytes: 64 * 1024,
        };
        self.dispatcher.dispatch(&self.plan, &call).await
    }
}
