//! A plan for one upstream, and calls with defaults.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use secrecy::SecretString;
use sluice_domain::id::{
    ProxyKeyId, RouteId, TenantId, UpstreamId, UpstreamKeyId, UserId, uuid_v7,
};
use sluice_domain::ports::Clock;
use sluice_domain::quota::Payer;
use sluice_domain::route::{Endpoint, Route, Target};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{Deadlines, ProviderKind, Upstream, UpstreamKey};
use sluice_upstream_pool::{
    Call, ClientOptions, DispatchError, Dispatcher, HealthRegistry, RoutePlan, RoutingInput,
    RoutingTable, UpstreamAnswer,
};
use uuid::Uuid;

use crate::server::{SOON, Server};

pub(crate) const SECRET: &str = "sk-upstream-canary";

pub(crate) const PAYER: Payer = Payer {
    tenant_id: TenantId::from_uuid(Uuid::from_u128(1)),
    user_id: UserId::from_uuid(Uuid::from_u128(2)),
    key_id: ProxyKeyId::from_uuid(Uuid::from_u128(3)),
};

pub(crate) struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000)
    }
}

pub(crate) fn upstream(
    kind: ProviderKind,
    base_url: Option<&str>,
    deadlines: Deadlines,
) -> Upstream {
    Upstream {
        deadlines,
        allow_private: true,
        ..Upstream::new(
            UpstreamId::from_uuid(uuid_v7(1, [1; 10])),
            "local".parse().unwrap(),
            kind,
            base_url.map(|url| url.parse().unwrap()),
            UnixMillis(0),
        )
    }
}

/// Plans a route to one upstream with one key.
pub(crate) fn plan(upstream: Upstream) -> Arc<RoutePlan> {
    let key = UpstreamKey::new(
        UpstreamKeyId::from_uuid(uuid_v7(1, [2; 10])),
        upstream.id,
        "key".parse().unwrap(),
        UnixMillis(0),
    );
    let target = Target {
        upstream_model: Some("real".into()),
        ..Target::new(upstream.id)
    };
    let route = Route::new(
        RouteId::from_uuid(uuid_v7(1, [3; 10])),
        "alias".into(),
        vec![target],
        UnixMillis(0),
    );
    let (table, problems) = RoutingTable::build(
        RoutingInput {
            upstreams: vec![upstream],
            keys: vec![(key, SecretString::from(SECRET))],
            routes: vec![route],
        },
        &HealthRegistry::new(),
    );
    assert_eq!(problems, []);
    table
        .find_route(TenantId::from_uuid(uuid_v7(1, [4; 10])), "alias")
        .unwrap()
}

pub(crate) struct Relay {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) plan: Arc<RoutePlan>,
    pub(crate) headers: HeaderMap,
    pub(crate) max_event_bytes: usize,
    pub(crate) max_held_bytes: usize,
}

pub(crate) type Outcome = Result<UpstreamAnswer, Box<DispatchError>>;

impl Relay {
    pub(crate) fn to(server: &Server) -> Self {
        Self::with(server, Deadlines::default())
    }

    pub(crate) fn with(server: &Server, deadlines: Deadlines) -> Self {
        Self::at(server.address, deadlines)
    }

    pub(crate) fn at(address: SocketAddr, deadlines: Deadlines) -> Self {
        let base = format!("http://{address}/base/v1");
        Self::planned(plan(upstream(ProviderKind::OpenAi, Some(&base), deadlines)))
    }

    pub(crate) fn planned(plan: Arc<RoutePlan>) -> Self {
        Self {
            dispatcher: Dispatcher::new(ClientOptions::default()),
            plan,
            headers: HeaderMap::new(),
            max_event_bytes: 64 * 1024,
            max_held_bytes: 64 * 1024,
        }
    }

    pub(crate) async fn stream(&self) -> Outcome {
        self.call(Endpoint::ChatCompletions, true).await
    }

    pub(crate) async fn ask(&self) -> Outcome {
        self.call(Endpoint::ChatCompletions, false).await
    }

    /// Asks once, and expects that the connection is closed soon after, without another request.
    pub(crate) async fn ask_and_stay(&self, server: &Server) {
        self.ask().await.unwrap();
        assert!(server.closed_within(1, SOON).await, "still open");
        self.ask().await.unwrap();
        assert_eq!(server.opened(), 2);
    }

    pub(crate) async fn call(&self, endpoint: Endpoint, streams: bool) -> Outcome {
        let model = Arc::from("alias");
        let call = Call {
            pinned: None,
            endpoint,
            streams,
            is_beta: false,
            model: &model,
            headers: &self.headers,
            payer: &PAYER,
            body: b"{}",
            token_bound: 100,
            attempt_ended: &|_| {},
            abandoned: &|_| {},
            render: &|target| Bytes::from(format!("{{\"model\":\"{}\"}}", target.upstream_model)),
            clock: &FixedClock,
            max_event_bytes: self.max_event_bytes,
            max_held_bytes: self.max_held_bytes,
        };
        self.dispatcher.dispatch(&self.plan, &call).await
    }
}

/// Deadlines that a test can wait for; each of the others is long.
pub(crate) fn first_event_ms(ms: u64) -> Deadlines {
    Deadlines {
        first_event: Duration::from_millis(ms),
        ..Deadlines::default()
    }
}

pub(crate) fn idle_ms(ms: u64) -> Deadlines {
    Deadlines {
        idle: Duration::from_millis(ms),
        ..Deadlines::default()
    }
}

pub(crate) fn total_ms(ms: u64) -> Deadlines {
    Deadlines {
        total: Duration::from_millis(ms),
        ..Deadlines::default()
    }
}

pub(crate) async fn text_of(answer: UpstreamAnswer) -> String {
    String::from_utf8(answer.body.collect(1 << 20).await.unwrap().to_vec()).unwrap()
}
