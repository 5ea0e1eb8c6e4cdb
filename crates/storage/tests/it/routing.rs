use std::num::NonZeroU32;
use std::time::Duration;

use sluice_domain::id::{RouteId, TenantId, UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{BreakerPolicy, RetryPolicy, Selection, TargetUse, UpstreamLimits};
use sluice_domain::ports::StoreError;
use sluice_domain::route::{Route, Target};
use sluice_domain::tenant::EntityState;
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{ClientGone, Deadlines, ProviderKind, Upstream, UpstreamKey};
use sluice_storage::secret::{MasterKey, SealBinding, SealedSecret, Vault};
use sluice_storage::upstream::UpstreamUpdate;

use crate::fixture::{Database, NOW, id};

const LATER: UnixMillis = UnixMillis(NOW.0 + 1_000);

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

/// An upstream of which no setting is the usual one.
fn an_unusual_upstream(name: &str) -> Upstream {
    let n = |n| NonZeroU32::new(n).unwrap();
    Upstream {
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
        probe_every: Some("90s".parse().unwrap()),
        limits: limits(u32::MAX - 2),
        api_version: Some("2024-10-21".parse().unwrap()),
        allow_private: true,
        ..an_upstream(name)
    }
}

async fn every_setting_is_loaded_as_it_was_stored(database: &Database) {
    let storage = &database.storage;
    let upstream = an_unusual_upstream("one");
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

async fn a_change_replaces_every_setting_and_is_told(database: &Database) {
    let storage = &database.storage;
    let one = upstream(database, "one", None).await;
    let two = upstream(database, "two", None).await;
    let key = upstream_key(&one);
    assert!(
        storage
            .add_upstream_key(&key, &sealed(&one, &key))
            .await
            .unwrap()
    );
    let made = route("a", None, &[&one]);
    assert!(storage.create_route(&made).await.unwrap());
    let mut position = storage.feed_position().await.unwrap();
    let mut is_told = async || {
        let before = std::mem::replace(&mut position, storage.feed_position().await.unwrap());
        position > before
    };

    let changed = Upstream {
        id: one.id,
        kind: one.kind,
        base_url: Some("https://api.example.com/v2".parse().unwrap()),
        ..an_unusual_upstream("other-name")
    };
    let done = storage.update_upstream(&changed).await.unwrap();
    assert_eq!((done, is_told().await), (UpstreamUpdate::Done, true));
    let changed_key = UpstreamKey {
        weight: 9,
        limits: limits(1),
        ..key
    };
    assert!(storage.update_upstream_key(&changed_key).await.unwrap());
    assert!(is_told().await);
    let changed_route = Route {
        selection: Selection::LeastLatency,
        targets: route("a", None, &[&two, &one]).targets,
        ..made
    };
    assert!(storage.update_route(&changed_route).await.unwrap());
    assert!(is_told().await);
    let routing = storage.load_routing().await.unwrap();
    assert_eq!(
        format!("{:?}", routing.upstreams[0]),
        format!("{changed:?}")
    );
    assert_eq!(
        format!("{:?}", routing.keys[0].0),
        format!("{changed_key:?}")
    );
    assert_eq!(
        format!("{:?}", routing.routes),
        format!("{:?}", [&changed_route])
    );

    // Nothing of a change that is refused is stored.
    let taken = Upstream {
        name: two.name.clone(),
        ..an_upstream("x")
    };
    let taken = Upstream {
        id: one.id,
        ..taken
    };
    let refused = storage.update_upstream(&taken).await.unwrap_err();
    assert!(
        matches!(refused, StoreError::Conflict { .. }),
        "{refused:?}"
    );
    let no_target = Route {
        targets: Vec::new(),
        selection: Selection::Weighted,
        ..changed_route.clone()
    };
    let stray = Route {
        targets: route("a", None, &[&two, &an_upstream("nowhere")]).targets,
        ..no_target.clone()
    };
    for refused in [no_target, stray, route("b", None, &[&one])] {
        assert!(!storage.update_route(&refused).await.unwrap());
    }
    let unknown = an_upstream("unknown");
    let gone = storage.update_upstream(&unknown).await.unwrap();
    assert_eq!(gone, UpstreamUpdate::Gone);
    assert!(
        !storage
            .update_upstream_key(&upstream_key(&one))
            .await
            .unwrap()
    );
    assert!(!is_told().await);
    let after = storage.load_routing().await.unwrap();
    assert_eq!(
        format!("{:?}", after.upstreams),
        format!("{:?}", routing.upstreams)
    );
    assert_eq!(
        format!("{:?}", after.routes),
        format!("{:?}", routing.routes)
    );
}

async fn an_upstream_with_keys_stays_at_its_origin(database: &Database) {
    let storage = &database.storage;
    let one = upstream(database, "one", None).await;
    let key = upstream_key(&one);
    assert!(
        storage
            .add_upstream_key(&key, &sealed(&one, &key))
            .await
            .unwrap()
    );
    let at = |url: &str| Upstream {
        base_url: Some(url.parse().unwrap()),
        ..one.clone()
    };
    for url in [
        "http://api.example.com/v1",
        "https://api.example.com:8443/v1",
        "https://api.example.net/v1",
    ] {
        let refused = storage.update_upstream(&at(url)).await.unwrap();
        assert_eq!(refused, UpstreamUpdate::HasKeys, "{url}");
    }
    let moved = at("https://api.example.net/v1");
    assert!(
        storage
            .set_upstream_key_state(key.id, EntityState::Deleted, NOW)
            .await
            .unwrap()
    );
    let done = storage.update_upstream(&moved).await.unwrap();
    assert_eq!(done, UpstreamUpdate::Done);
    let found = storage.load_routing().await.unwrap().upstreams;
    assert_eq!(found[0].base_url, moved.base_url);
}

async fn an_upstream_is_deleted_with_its_keys_when_no_route_leads_there(database: &Database) {
    let storage = &database.storage;
    let one = upstream(database, "one", None).await;
    let two = upstream(database, "two", None).await;
    let key = upstream_key(&one);
    assert!(
        storage
            .add_upstream_key(&key, &sealed(&one, &key))
            .await
            .unwrap()
    );
    let made = route("a", None, &[&two, &one]);
    assert!(storage.create_route(&made).await.unwrap());
    assert!(
        storage
            .set_route_state(made.id, EntityState::Disabled)
            .await
            .unwrap()
    );
    assert!(!storage.delete_upstream(one.id).await.unwrap());
    assert_eq!(storage.load_routing().await.unwrap().upstreams.len(), 2);
    let elsewhere = Route {
        targets: route("a", None, &[&two]).targets,
        ..made
    };
    assert!(storage.update_route(&elsewhere).await.unwrap());
    assert!(storage.delete_upstream(one.id).await.unwrap());
    assert!(!storage.delete_upstream(one.id).await.unwrap());
    let states: Vec<_> = storage
        .list_upstream_keys(one.id)
        .await
        .unwrap()
        .iter()
        .map(|key| key.state)
        .collect();
    assert_eq!(states, [EntityState::Deleted]);
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
            .set_upstream_state(two.id, EntityState::Disabled, NOW)
            .await
            .unwrap()
    );
    for (state, found) in [
        (EntityState::Disabled, true),
        (EntityState::Deleted, true),
        (EntityState::Active, false),
    ] {
        let done = storage.set_route_state(made.id, state).await.unwrap();
        assert_eq!(done, found, "{state}");
    }
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
            .set_upstream_key_state(key_id, EntityState::Disabled, NOW)
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
            .set_upstream_key_state(key_id, EntityState::Active, LATER)
            .await
            .unwrap()
    );
    let keys = storage.load_routing().await.unwrap().keys;
    assert_eq!((keys.len(), keys[0].0.enabled_at), (1, LATER));
    assert!(
        storage
            .set_upstream_state(one.id, EntityState::Deleted, NOW)
            .await
            .unwrap()
    );
    assert!(storage.load_routing().await.unwrap().keys.is_empty());
    assert!(
        !storage
            .set_upstream_state(one.id, EntityState::Active, NOW)
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

async fn a_change_that_names_no_act_is_an_event_all_the_same(database: &Database) {
    use sluice_storage::audit::{Actor, ActorKind};
    let storage = &database.storage;
    let upstream = upstream(database, "one", None).await.id;
    let events = storage.list_audit_events(None, None, 10).await.unwrap();
    assert!(events.is_empty(), "nobody did it: {events:?}");
    let acting = storage.acting(Actor {
        kind: ActorKind::CommandLine,
        name: "ann".to_owned(),
        source: None,
        now: NOW,
    });
    let disabled = EntityState::Disabled;
    assert!(
        acting
            .set_upstream_state(upstream, disabled, NOW)
            .await
            .unwrap()
    );
    let events = storage.list_audit_events(None, None, 10).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].action, "configuration.change");
    assert_eq!(storage.check_audit_chain().await.unwrap(), None);
}

on_both! {
    a_change_that_names_no_act_is_an_event_all_the_same,
    every_setting_is_loaded_as_it_was_stored,
    what_was_stored_is_loaded,
    a_change_replaces_every_setting_and_is_told,
    an_upstream_with_keys_stays_at_its_origin,
    an_upstream_is_deleted_with_its_keys_when_no_route_leads_there,
    only_what_is_active_is_loaded,
    a_key_follows_its_state_and_its_upstream,
    a_model_is_routed_once_per_tenant,
    a_route_uses_no_upstream_of_another_tenant,
}
