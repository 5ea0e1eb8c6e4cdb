//! Routes, and all that the relay needs to choose an upstream.

use sluice_domain::id::{RouteId, TenantId, UpstreamId};
use sluice_domain::ports::StoreError;
use sluice_domain::route::{Route, Target};
use sluice_domain::tenant::EntityState;
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{Upstream, UpstreamKey};
use sqlx::FromRow;
use uuid::Uuid;

use crate::error::{Failure, corrupt};
use crate::feed::Change;
use crate::secret::SealedSecret;
use crate::storage::Storage;

statements! {
    INSERT_ROUTE = "INSERT INTO routes (route_id, tenant_id, model, selection, state, created_at_ms) \
        VALUES ($1, $2, $3, $4, $5, $6)";
    INSERT_TARGET = "INSERT INTO route_targets (route_id, position, tier, weight, upstream_id, upstream_model, \
            serves) \
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    // A route of a tenant may use its own upstreams and shared ones, a shared route only these.
    FIND_USABLE_UPSTREAM = "SELECT upstream_id FROM upstreams \
        WHERE upstream_id = $1 AND state <> 'deleted' AND (tenant_id IS NULL OR tenant_id = $2)";
    UPDATE_ROUTE = "UPDATE routes SET selection = $2 WHERE route_id = $1 AND state <> 'deleted'";
    REMOVE_TARGETS = "DELETE FROM route_targets WHERE route_id = $1";
    SET_ROUTE_STATE = "UPDATE routes SET state = $2 WHERE route_id = $1 AND state <> 'deleted'";
    LIST_ROUTES = "SELECT r.route_id, r.tenant_id, r.model, r.selection, r.state, r.created_at_ms, \
            t.tier, t.weight, t.upstream_id, t.upstream_model, t.serves \
        FROM routes r JOIN route_targets t ON t.route_id = r.route_id \
        ORDER BY r.route_id, t.position";
    ACTIVE_ROUTES = "SELECT r.route_id, r.tenant_id, r.model, r.selection, r.state, r.created_at_ms, \
            t.tier, t.weight, t.upstream_id, t.upstream_model, t.serves \
        FROM routes r JOIN route_targets t ON t.route_id = r.route_id \
        WHERE r.state = 'active' ORDER BY r.route_id, t.position";
}

/// All active upstreams, keys and routes, of one moment.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// The upstreams.
    pub upstreams: Vec<Upstream>,
    /// Their keys with their sealed secrets.
    pub keys: Vec<(UpstreamKey, SealedSecret)>,
    /// The routes. A target may name an upstream that is not active.
    pub routes: Vec<Route>,
}

#[derive(FromRow)]
struct RouteRow {
    route_id: Uuid,
    tenant_id: Option<Uuid>,
    model: String,
    selection: String,
    state: String,
    created_at_ms: i64,
    tier: i32,
    weight: i32,
    upstream_id: Uuid,
    upstream_model: Option<String>,
    serves: String,
}

/// Gathers rows, one per target and ordered by route, into routes.
fn gather(rows: Vec<RouteRow>) -> Result<Vec<Route>, StoreError> {
    let mut routes: Vec<Route> = Vec::new();
    for row in rows {
        let id = RouteId::from_uuid(row.route_id);
        let target = Target {
            tier: u32::try_from(row.tier).map_err(|_neg| corrupt("route_targets", "tier", id))?,
            weight: u32::try_from(row.weight)
                .map_err(|_neg| corrupt("route_targets", "weight", id))?,
            upstream_id: UpstreamId::from_uuid(row.upstream_id),
            upstream_model: row.upstream_model,
            serves: row
                .serves
                .parse()
                .map_err(|_bad| corrupt("route_targets", "serves", id))?,
        };
        match routes.last_mut().filter(|route| route.id == id) {
            Some(route) => route.targets.push(target),
            None => routes.push(Route {
                id,
                tenant_id: row.tenant_id.map(TenantId::from_uuid),
                model: row.model,
                targets: vec![target],
                selection: row
                    .selection
                    .parse()
                    .map_err(|_bad| corrupt("routes", "selection", id))?,
                state: row
                    .state
                    .parse()
                    .map_err(|_bad| corrupt("routes", "state", id))?,
                created_at: UnixMillis(row.created_at_ms),
            }),
        }
    }
    Ok(routes)
}

impl Storage {
    /// Stores a new route, whose model was checked by
    /// [`check_route_model`](sluice_domain::route::check_route_model); `false` when there is no target, or when one names an upstream that does not
    /// exist or belongs to a tenant other than the route's.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the tenant (or, for a shared route, everybody) has a route for
    /// the model.
    pub async fn create_route(&self, new: &Route) -> Result<bool, StoreError> {
        in_transaction!(self, create_route(new))
    }

    /// Replaces the targets and the selection of a route; `false` when there is no such route, and as
    /// for [`create_route`](Self::create_route).
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn update_route(&self, route: &Route) -> Result<bool, StoreError> {
        in_transaction!(self, update_route(route))
    }

    /// Sets the state of a route; `false` when there is none or it was deleted. The model of a
    /// deleted one may be routed anew.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn set_route_state(
        &self,
        id: RouteId,
        state: EntityState,
    ) -> Result<bool, StoreError> {
        in_transaction!(self, set_route_state(id, state))
    }

    /// Lists all routes in the order of their ids; also those that are deleted.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn list_routes(&self) -> Result<Vec<Route>, StoreError> {
        reading!(self, list_routes())
    }

    /// Loads what the relay needs to choose an upstream.
    ///
    /// Read the position of the feed before: a change between the parts shows as a change of
    /// routing after that position.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] may be repeated.
    pub async fn load_routing(&self) -> Result<Routing, StoreError> {
        reading!(self, load_routing())
    }
}

on_both! {
    async fn create_route(&mut self, new: &Route) -> Result<bool, Failure> {
        if !self.can_lead(new).await? {
            return Ok(false);
        }
        sql!(
            INSERT_ROUTE,
            new.id.as_uuid(),
            new.tenant_id.map(TenantId::as_uuid),
            new.model.as_str(),
            new.selection.as_str(),
            new.state.as_str(),
            new.created_at.0,
        )
        .execute(&mut *self.conn)
        .await
        .map_err(|error| Failure::or_conflict(error, || format!("a route for `{}`", new.model)))?;
        self.insert_targets(new).await?;
        self.publish(&[Change::Routing]).await?;
        Ok(true)
    }

    async fn update_route(&mut self, route: &Route) -> Result<bool, Failure> {
        if !self.can_lead(route).await? {
            return Ok(false);
        }
        let done = sql!(UPDATE_ROUTE, route.id.as_uuid(), route.selection.as_str())
            .execute(&mut *self.conn)
            .await?;
        if !self.publish_routing(done.rows_affected()).await? {
            return Ok(false);
        }
        sql!(REMOVE_TARGETS, route.id.as_uuid()).execute(&mut *self.conn).await?;
        self.insert_targets(route).await?;
        Ok(true)
    }

    /// Returns whether there are targets, and all of them are upstreams that the route may use.
    async fn can_lead(&mut self, route: &Route) -> Result<bool, Failure> {
        for target in &route.targets {
            let tenant = route.tenant_id.map(TenantId::as_uuid);
            let usable: Option<Uuid> =
                sql_scalar!(FIND_USABLE_UPSTREAM, target.upstream_id.as_uuid(), tenant)
                    .fetch_optional(&mut *self.conn)
                    .await?;
            if usable.is_none() {
                return Ok(false);
            }
        }
        Ok(!route.targets.is_empty())
    }

    async fn insert_targets(&mut self, route: &Route) -> Result<(), Failure> {
        for (position, target) in (0_i64..).zip(&route.targets) {
            sql!(
                INSERT_TARGET,
                route.id.as_uuid(),
                position,
                i64::from(target.tier),
                i64::from(target.weight),
                target.upstream_id.as_uuid(),
                target.upstream_model.as_deref(),
                target.serves.as_str(),
            )
            .execute(&mut *self.conn)
            .await?;
        }
        Ok(())
    }

    async fn set_route_state(&mut self, id: RouteId, state: EntityState) -> Result<bool, Failure> {
        let done =
            sql!(SET_ROUTE_STATE, id.as_uuid(), state.as_str()).execute(&mut *self.conn).await?;
        self.publish_routing(done.rows_affected()).await
    }

    async fn list_routes(&mut self) -> Result<Vec<Route>, Failure> {
        let rows: Vec<RouteRow> = sql_as!(LIST_ROUTES).fetch_all(&mut *self.conn).await?;
        Ok(gather(rows)?)
    }

    async fn load_routing(&mut self) -> Result<Routing, Failure> {
        let rows: Vec<RouteRow> = sql_as!(ACTIVE_ROUTES).fetch_all(&mut *self.conn).await?;
        Ok(Routing {
            routes: gather(rows)?,
            keys: self.active_upstream_keys().await?,
            upstreams: self.active_upstreams().await?,
        })
    }
}
