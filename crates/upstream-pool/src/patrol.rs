//! Probes upstreams that nothing is known of, or whose breaker is open, without a request.
//!
//! They are asked for their models, which costs nothing and names no model. That a list comes does
//! not say that requests are served, so a probe closes no breaker: where probes failed and no longer
//! do, the next request finds out at once instead of later.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::body::{UpstreamBody, Wire};
use crate::client::Patience;
use crate::dispatch::Dispatcher;
use crate::health::pass::Blame;
use crate::health::probing::ProbeFinding;
use crate::probe::{MAX_LIST_BYTES, PATIENCE, list_of};
use crate::routing::RoutingTable;
use crate::routing::plan::Member;

/// How often it is looked whether a probe is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Dispatcher {
    /// Probes the upstreams of the table in force that want it, until it is dropped; what is under
    /// way then is broken off.
    ///
    /// `table` returns the table in force. An upstream that is not in it is not probed any more.
    pub async fn patrol(&self, table: impl Fn() -> Arc<RoutingTable>) {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut under_way = JoinSet::new();
        loop {
            looks.tick().await;
            for member in table().probed() {
                let Some((leave, key)) = member.health.may_probe(&member.keys) else {
                    continue;
                };
                let (dispatcher, member) = (self.clone(), Arc::clone(member));
                under_way.spawn(async move {
                    let found = dispatcher.look_at(&member, key).await;
                    leave.end(found);
                });
            }
            // What has ended is let go of.
            while under_way.try_join_next().is_some() {}
        }
    }

    async fn look_at(&self, member: &Member, key: usize) -> ProbeFinding {
        match timeout(PATIENCE, self.list_models(member, key)).await {
            Ok(found) => found,
            Err(_elapsed) => ProbeFinding::Failing,
        }
    }

    async fn list_models(&self, member: &Member, key: usize) -> ProbeFinding {
        let upstream = &member.prepared;
        let (Some(address), Some(uri), Some(key)) =
            (&upstream.address, &upstream.models, upstream.keys.get(key))
        else {
            return ProbeFinding::Unclear;
        };
        let mut headers = key
            .headers
            .of_request(self.user_agent(), false, &HeaderMap::new());
        headers.remove(CONTENT_TYPE);
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers;
        let patience = Patience {
            connect: upstream.deadlines.connect,
            head: PATIENCE,
        };
        let exchanged = self
            .connections()
            .exchange(&address.origin, &request, patience, Instant::now())
            .await;
        let reply = match exchanged {
            Ok(reply) => reply,
            Err(error) if error.class().blame() == Blame::Upstream => {
                return ProbeFinding::Failing;
            }
            Err(_ours) => return ProbeFinding::Unclear,
        };
        match reply.status {
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                return ProbeFinding::Failing;
            }
            StatusCode::OK => {}
            _ => return ProbeFinding::Unclear,
        }
        let now = Instant::now();
        let wire = Wire::new(reply.first, reply.lease, PATIENCE, now + PATIENCE, now);
        let body = UpstreamBody::wire(Bytes::new(), wire)
            .collect(MAX_LIST_BYTES)
            .await;
        match body {
            Ok(body) if list_of(&body).is_some() => ProbeFinding::Well,
            Ok(_) => ProbeFinding::Unclear,
            Err(_broken) => ProbeFinding::Failing,
        }
    }
}
