use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::id::{RouteId, TenantId, UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{BreakerPolicy, RetryPolicy, Selection, TargetUse, UpstreamLimits};
use sluice_domain::ports::StoreError;
use sluice_domain::route::{Route, Target};
use sluice_domain::tenant::EntityState;
use sluice_domain::upstream::{ClientGone, Deadlines, ProviderKind, Upstream, UpstreamKey};
use sluice_storage::secret::{MasterKey, SealBinding, SealedSecret, Vault};

use crate::fixture::{Database, NOW, id};

async fn upstream(database: &Database, name: &str, tenant_id: Option<TenantId>) -> Upstream {
    let new = Upstream {
        tenant_id,
        ..an_upstream(name)
    };
    database.storage.create_upstream(&new).await.unwrap();
    new
}

fn an_upstream(name: &str) -> Upstream {
    Upstream::new(
        UpstreamId::from_uuid(id()),
        name.parse().unwrap(),
        ProviderKind::OpenAi,
        Some("https://api.example.com/v1".parse().unwrap()),
        NOW,
    )
}

fn upstream_key(upstream: &Upstream) -> UpstreamKey {
    UpstreamKey::new(
        UpstreamKeyId::from_uuid(id()),
        upstream.id,
        "main".parse().unwrap(),
        NOW,
    )
}

fn sealed(upstream: &Upstream, key: &UpstreamKey) -> SealedSecret {
    let binding = SealBinding::of(upstream, key.id);
    vault().seal(&"sk-provider".into(), &binding).unwrap()
}

fn vault() -> Vault {
    Vault::new(vec![MasterKey::new("m1".to_owned(), [9; 32])])
}

fn route(model: &str, tenant_id: Option<TenantId>, upstreams: &[&Upstream]) -> Route {
    let targets = (0..)
        .zip(upstreams)
        .map(|(tier, upstream)| Target {
            tier,
            weight: 3,
            upstream_model: (tier == 0).then(|| "other-name".to_owned()),
            ..Target::new(upstream.id)
        })
        .collect();
    Route {
        tenant_id,
        ..Route::new(RouteId::from_uuid(id()), model.to_owned(), targets, NOW)
    }
}

fn limits(first: u32) -> UpstreamLimits {
    UpstreamLimits {
        requests_per_minute: NonZeroU32::new(first),
        tokens_per_minute: NonZeroU32::new(first + 1),
        concurrency: NonZeroU32::new(first + 2),
    }
}

async fn every_setting_is_loaded_as_it_was_stored(database: &Database) {
    let storage = &database.storage;
    let n = |n| NonZeroU32::new(n).unwrap();
    let upstream = Upstream {
        kind: ProviderKind::Azure,
        deadlines: Deadlines {
            connect: Duration::from_millis(1),
            first_event: Duration::from_millis(2),
            idle: Duration::from_millis(3),
            total: Duration::from_millis(4),
        },
        client_gone: ClientGone::Drain,
        retry: RetryPolicy { max_attempts: n(5) },
        breaker: BreakerPolicy {
            max_failures: n(6),
            max_failure_percent: n(7),
            open_for: Duration::from_millis(8),
        },
        limits: limits(u32::MAX - 2),
        api_version: Some("2024-10-21".parse().unwrap()),
        allow_private: true,
        ..an_upstream("one")
    };
    storage.create_upstream(&upstream).await.unwrap();
    let key = UpstreamKey {
        weight: 9,
        limits: limits(10),
        ..upstream_key(&upstream)
    };
    let secret = sealed(&upstream, &key);
    assert!(storage.add_upstream_key(&key, &secret).await.unwrap());
    let mut route = route("a*", None, &[&upstream]);
    route.selection = Selection::StickyUser;
    route.targets[0].serves = TargetUse::ContextLength;
    assert!(storage.create_route(&route).await.unwrap());
    let routing = storage.load_routing().await.unwrap();
    // Every field stands in the text of `Debug`.
    assert_eq!(
        format!("{:?}", routing.upstreams),
        format!("{:?}", [&upstream])
    );
    assert_eq!(format!("{:?}", routing.keys[0].0), format!("{key:?}"));
    assert_eq!(format!("{:?}", routing.routes), format!("{:?}", [&route]));
}

async fn what_was_stored_is_loaded(database: &Database) {
    let storage = &database.storage;
    let (one, two) = (
        upstream(database, "one", None).await,
        upstream(database, "two", None).await,
    );
    let new = upstream_key(&one);
    let secret = sealed(&one, &new);
    assert!(storage.add_upstream_key(&new, &secret).await.unwrap());
    let made = route("gpt-4o", None, &[&two, &one]);
    assert!(storage.create_route(&made).await.unwrap());
    let routing = storage.load_routing().await.unwrap();
    assert_eq!(
        routing.upstreams.iter().map(|u| u.id).collect::<Vec<_>>(),
        [one.id, two.id]
    );
    let loaded = &routing.upstreams[0];
    let (key, sealed) = &routing.keys[0];
    assert_eq!(key.id, new.id);
    let opened = vault()
        .open(sealed, &SealBinding::of(loaded, key.id))
        .unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&opened), "sk-provider");
    assert_eq!(routing.routes[0].id, made.id);
    assert_eq!(routing.routes[0].targets, made.targets);
    let error = storage.add_upstream_key(&upstream_key(&one), &secret).await;
    assert!(matches!(error, Err(StoreError::Conflict { .. })));
}

async fn only_what_is_active_is_loaded(database: &Database) {
    let storage = &database.storage;
    let (one, two) = (
        upstream(database, "one", None).await,
        upstream(database, "two", None).await,
    );
    let made = route("a", None, &[&one]);
    assert!(storage.create_route(&made).await.unwrap());
    assert!(
        storage
            .set_upstream_state(two.id, EntityState::Disabled)
            .await
            .unwrap()
    );
    assert!(storage.delete_route(made.id).await.unwrap());
    assert!(!storage.delete_route(made.id).await.unwrap());
    let routing = storage.load_routing().await.unwrap();
    assert_eq!((routing.upstreams.len(), routing.routes.len()), (1, 0));
    assert_eq!(storage.list_upstreams().await.unwrap().len(), 2);
    assert_eq!(
        storage.list_routes().await.unwrap()[0].state,
        EntityState::Deleted
    );
    // The model of a deleted route may be routed anew.
    assert!(
        storage
            .create_route(&route("a", None, &[&one]))
            .await
            .unwrap()
    );
}

async fn a_key_follows_its_state_and_its_upstream(database: &Database) {
    let storage = &database.storage;
    let one = upstream(database, "one", None).await;
    let new = upstream_key(&one);
    let (key_id, secret) = (new.id, sealed(&one, &new));
    let stray = UpstreamKey {
        upstream_id: UpstreamId::from_uuid(id()),
        ..new.clone()
    };
    assert!(!storage.add_upstream_key(&stray, &secret).await.unwrap());
    assert!(storage.add_upstream_key(&new, &secret).await.unwrap());
    assert!(
        storage
            .set_upstream_key_state(key_id, EntityState::Disabled)
            .await
            .unwrap()
    );
    assert!(storage.load_routing().await.unwrap().keys.is_empty());
    assert_eq!(
        storage.list_upstream_keys(one.id).await.unwrap()[0].state,
        EntityState::Disabled
    );
    assert!(
        storage
            .set_upstream_key_state(key_id, EntityState::Active)
            .await
            .unwrap()
    );
    assert_eq!(storage.load_routing().await.unwrap().keys.len(), 1);
    assert!(
        storage
            .set_upstream_state(one.id, EntityState::Deleted)
            .await
            .unwrap()
    );
    assert!(storage.load_routing().await.unwrap().keys.is_empty());
    assert!(
        !storage
            .set_upstream_state(one.id, EntityState::Active)
            .await
            .unwrap()
    );
}

async fn a_model_is_routed_once_per_tenant(database: &Database) {
    let storage = &database.storage;
    let one = upstream(database, "one", None).await;
    let (acme, other) = (
        database.tenant("acme").await.id,
        database.tenant("other").await.id,
    );
    for tenant in [None, Some(acme), Some(other)] {
        assert!(
            storage
                .create_route(&route("gpt-4o", tenant, &[&one]))
                .await
                .unwrap()
        );
        let error = storage
            .create_route(&route("gpt-4o", tenant, &[&one]))
            .await
            .unwrap_err();
        assert!(
            matches!(&error, StoreError::Conflict { what } if what.contains("gpt-4o")),
            "{error:?}"
        );
    }
    assert_eq!(database.number("SELECT COUNT(*) FROM routes").await, 3);
    assert_eq!(
        database.number("SELECT COUNT(*) FROM route_targets").await,
        3
    );
}

async fn a_route_uses_no_upstream_of_another_tenant(database: &Database) {
    let storage = &database.storage;
    let (acme, other) = (
        database.tenant("acme").await.id,
        database.tenant("other").await.id,
    );
    let own = upstream(database, "own", Some(acme)).await;
    let shared = upstream(database, "shared", None).await;
    assert!(
        !storage
            .create_route(&route("a", Some(other), &[&shared, &own]))
            .await
            .unwrap()
    );
    assert!(
        !storage
            .create_route(&route("b", None, &[&own]))
            .await
            .unwrap()
    );
    assert!(
        !storage
            .create_route(&route("c", Some(acme), &[]))
            .await
            .unwrap()
    );
    assert_eq!(database.number("SELECT COUNT(*) FROM routes").await, 0);
    assert!(
        storage
            .create_route(&route("a", Some(acme), &[&own, &shared]))
            .await
            .unwrap()
    );
}

on_both! {
    every_setting_is_loaded_as_it_was_stored,
    what_was_stored_is_loaded,
    only_what_is_active_is_loaded,
    a_key_follows_its_state_and_its_upstream,
    a_model_is_routed_once_per_tenant,
    a_route_uses_no_upstream_of_another_tenant,
}
