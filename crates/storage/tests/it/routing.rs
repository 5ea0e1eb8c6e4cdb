use sluice_domain::id::{RouteId, TenantId, UpstreamId, UpstreamKeyId};
use sluice_domain::ports::StoreError;
use sluice_domain::route::Target;
use sluice_domain::tenant::EntityState;
use sluice_domain::upstream::{ClientGone, Deadlines, ProviderKind, Upstream};
use sluice_storage::route::NewRoute;
use sluice_storage::secret::{MasterKey, SealBinding, Vault};
use sluice_storage::upstream::{NewUpstream, NewUpstreamKey};

use crate::fixture::{Database, NOW, id};

async fn upstream(database: &Database, name: &str, tenant_id: Option<TenantId>) -> Upstream {
    let new = NewUpstream {
        id: UpstreamId::from_uuid(id()),
        tenant_id,
        name: name.parse().unwrap(),
        kind: ProviderKind::OpenAi,
        base_url: Some("https://api.example.com/v1".parse().unwrap()),
        deadlines: Deadlines::default(),
        client_gone: ClientGone::default(),
        now: NOW,
    };
    database.storage.create_upstream(new).await.unwrap()
}

fn route(model: &str, tenant_id: Option<TenantId>, upstreams: &[&Upstream]) -> NewRoute {
    NewRoute {
        id: RouteId::from_uuid(id()),
        tenant_id,
        model: model.to_owned(),
        targets: (0..)
            .zip(upstreams)
            .map(|(tier, upstream)| Target {
                tier,
                weight: 3,
                upstream_id: upstream.id,
                upstream_model: (tier == 0).then(|| "other-name".to_owned()),
            })
            .collect(),
        now: NOW,
    }
}

async fn what_was_stored_is_loaded(database: &Database) {
    let storage = &database.storage;
    let vault = Vault::new(vec![MasterKey::new("m1".to_owned(), [9; 32])]);
    let (one, two) = (
        upstream(database, "one", None).await,
        upstream(database, "two", None).await,
    );
    let key_id = UpstreamKeyId::from_uuid(id());
    let binding = SealBinding::of(&one, key_id);
    let new = NewUpstreamKey {
        id: key_id,
        upstream_id: one.id,
        name: "main".parse().unwrap(),
        weight: 5,
        sealed: vault.seal(&"sk-provider".into(), &binding).unwrap(),
        now: NOW,
    };
    storage
        .add_upstream_key(new.clone())
        .await
        .unwrap()
        .unwrap();
    let made = storage
        .create_route(route("gpt-4o", None, &[&two, &one]))
        .await
        .unwrap()
        .unwrap();
    let routing = storage.load_routing().await.unwrap();
    assert_eq!(
        routing.upstreams.iter().map(|u| u.id).collect::<Vec<_>>(),
        [one.id, two.id]
    );
    let loaded = &routing.upstreams[0];
    assert_eq!((loaded.kind, loaded.deadlines), (one.kind, one.deadlines));
    assert_eq!(loaded.base_url, one.base_url);
    let (key, sealed) = &routing.keys[0];
    assert_eq!((key.id, key.weight), (key_id, 5));
    let opened = vault
        .open(sealed, &SealBinding::of(loaded, key.id))
        .unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(&opened), "sk-provider");
    assert_eq!(routing.routes[0].id, made.id);
    assert_eq!(routing.routes[0].targets, made.targets);
    let error = storage
        .add_upstream_key(NewUpstreamKey {
            id: UpstreamKeyId::from_uuid(id()),
            ..new
        })
        .await;
    assert!(matches!(error, Err(StoreError::Conflict { .. })));
}

async fn only_what_is_active_is_loaded(database: &Database) {
    let storage = &database.storage;
    let (one, two) = (
        upstream(database, "one", None).await,
        upstream(database, "two", None).await,
    );
    let made = storage
        .create_route(route("a", None, &[&one]))
        .await
        .unwrap()
        .unwrap();
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
            .create_route(route("a", None, &[&one]))
            .await
            .unwrap()
            .is_some()
    );
}

async fn a_key_follows_its_state_and_its_upstream(database: &Database) {
    let storage = &database.storage;
    let one = upstream(database, "one", None).await;
    let vault = Vault::new(vec![MasterKey::new("m1".to_owned(), [9; 32])]);
    let key_id = UpstreamKeyId::from_uuid(id());
    let new = NewUpstreamKey {
        id: key_id,
        upstream_id: one.id,
        name: "main".parse().unwrap(),
        weight: 1,
        sealed: vault
            .seal(&"s".into(), &SealBinding::of(&one, key_id))
            .unwrap(),
        now: NOW,
    };
    let stray = NewUpstreamKey {
        upstream_id: UpstreamId::from_uuid(id()),
        ..new.clone()
    };
    assert!(storage.add_upstream_key(stray).await.unwrap().is_none());
    storage.add_upstream_key(new).await.unwrap().unwrap();
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
                .create_route(route("gpt-4o", tenant, &[&one]))
                .await
                .unwrap()
                .is_some()
        );
        let error = storage
            .create_route(route("gpt-4o", tenant, &[&one]))
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
        storage
            .create_route(route("a", Some(other), &[&shared, &own]))
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        storage
            .create_route(route("b", None, &[&own]))
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        storage
            .create_route(route("c", Some(acme), &[]))
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(database.number("SELECT COUNT(*) FROM routes").await, 0);
    assert!(
        storage
            .create_route(route("a", Some(acme), &[&own, &shared]))
            .await
            .unwrap()
            .is_some()
    );
}

on_both! {
    what_was_stored_is_loaded,
    only_what_is_active_is_loaded,
    a_key_follows_its_state_and_its_upstream,
    a_model_is_routed_once_per_tenant,
    a_route_uses_no_upstream_of_another_tenant,
}
