use sluice_domain::id::{TenantId, UserId};
use sluice_domain::ports::StoreError;
use sluice_domain::tenant::EntityState;
use sluice_domain::time::TimeZone;
use sluice_storage::tenant::NewTenant;

use crate::fixture::{Database, NOW, id, new_user};

async fn a_tenant_comes_with_two_months_and_their_counters(database: &Database) {
    let new = NewTenant {
        id: TenantId::from_uuid(id()),
        name: "Åcme".parse().unwrap(),
        time_zone: "Europe/Berlin".parse().unwrap(),
        quota_tokens: Some(1_000),
        now: NOW,
    };
    let made = database.storage.create_tenant(new).await.unwrap();
    let found = database
        .storage
        .find_tenant(made.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.name.as_str(), "Åcme");
    assert_eq!(found.time_zone.name(), "Europe/Berlin");
    assert_eq!((found.quota_tokens, found.created_at), (Some(1_000), NOW));
    assert_eq!(found.state, EntityState::Active);
    let tenant = database.literal(made.id.as_uuid());
    let berlin: TimeZone = "Europe/Berlin".parse().unwrap();
    let this = berlin.period_of(NOW);
    for period in [this, berlin.period(this.month.next())] {
        let bounds = format!(
            "SELECT COUNT(*) FROM periods WHERE tenant_id = {tenant} AND period = {} \
             AND starts_at_ms = {} AND ends_at_ms = {} AND state = 'open'",
            period.month.as_number(),
            period.starts_at.0,
            period.ends_at.0
        );
        assert_eq!(database.number(&bounds).await, 1, "{}", period.month);
    }
    let counters = format!(
        "SELECT COUNT(*) FROM counters WHERE scope_id = {tenant} AND cap_tokens = 1000 \
         AND peak_cap_tokens = 1000 AND used_tokens = 0"
    );
    assert_eq!(database.number(&counters).await, 2);
}

async fn a_name_is_taken_until_its_tenant_is_deleted(database: &Database) {
    let first = database.tenant("acme").await;
    let again = NewTenant {
        id: TenantId::from_uuid(id()),
        name: "acme".parse().unwrap(),
        time_zone: TimeZone::utc(),
        quota_tokens: None,
        now: NOW,
    };
    let error = database
        .storage
        .create_tenant(again.clone())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, StoreError::Conflict { what } if what.contains("acme")),
        "{error:?}"
    );
    assert_eq!(
        database.storage.list_tenants(None, 10).await.unwrap().len(),
        1
    );
    assert!(
        database
            .storage
            .set_tenant_state(first.id, EntityState::Deleted)
            .await
            .unwrap()
    );
    let second = database.storage.create_tenant(again).await.unwrap();
    let found = database
        .storage
        .find_tenant_by_name(&second.name)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.id, second.id);
}

async fn a_deleted_tenant_stays_deleted(database: &Database) {
    let tenant = database.tenant("acme").await;
    let storage = &database.storage;
    assert!(
        storage
            .set_tenant_state(tenant.id, EntityState::Disabled)
            .await
            .unwrap()
    );
    assert!(
        storage
            .set_tenant_state(tenant.id, EntityState::Deleted)
            .await
            .unwrap()
    );
    assert!(
        !storage
            .set_tenant_state(tenant.id, EntityState::Active)
            .await
            .unwrap()
    );
    let found = storage.find_tenant(tenant.id).await.unwrap().unwrap();
    assert_eq!(found.state, EntityState::Deleted);
    assert!(
        storage
            .find_tenant_by_name(&tenant.name)
            .await
            .unwrap()
            .is_none()
    );
}

async fn lists_go_on_after_an_id(database: &Database) {
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(database.tenant(name).await.id);
    }
    let first = database.storage.list_tenants(None, 2).await.unwrap();
    assert_eq!(first.iter().map(|t| t.id).collect::<Vec<_>>(), ids[..2]);
    let rest = database
        .storage
        .list_tenants(Some(ids[1]), 2)
        .await
        .unwrap();
    assert_eq!(rest.iter().map(|t| t.id).collect::<Vec<_>>(), ids[2..]);
}

async fn another_tenant_sees_and_changes_no_user(database: &Database) {
    let storage = &database.storage;
    let (acme, other) = (
        database.tenant("acme").await,
        database.tenant("other").await,
    );
    let anna = database.user(&acme, "anna").await;
    assert!(
        storage
            .list_users(other.id, None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(
        storage
            .find_user_by_name(other.id, &anna.name)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        !storage
            .set_user_state(other.id, anna.id, EntityState::Deleted)
            .await
            .unwrap()
    );
    let found = storage
        .find_user_by_name(acme.id, &anna.name)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((found.id, found.state), (anna.id, EntityState::Active));
    assert_eq!(
        storage.list_users(acme.id, None, 10).await.unwrap().len(),
        1
    );
    // The same name is free elsewhere.
    database.user(&other, "anna").await;
    let error = storage
        .create_user(new_user(&acme, "anna"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
}

async fn a_user_needs_a_tenant(database: &Database) {
    let mut ghost = database.tenant("acme").await;
    ghost.id = TenantId::from_uuid(id());
    assert!(
        database
            .storage
            .create_user(new_user(&ghost, "anna"))
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(database.number("SELECT COUNT(*) FROM users").await, 0);
    let nobody = UserId::from_uuid(id());
    assert!(
        !database
            .storage
            .set_user_state(ghost.id, nobody, EntityState::Disabled)
            .await
            .unwrap()
    );
}

async fn the_calendar_is_filled_for_all_tenants(database: &Database) {
    let tenant = database.tenant("acme").await;
    let later = sluice_domain::time::UnixMillis(NOW.0 + 40 * 24 * 3_600_000);
    let report = database.storage.ensure_calendar(later).await.unwrap();
    assert_eq!(report.tenants, 1);
    let months = format!(
        "SELECT COUNT(*) FROM periods WHERE tenant_id = {}",
        database.literal(tenant.id.as_uuid())
    );
    assert_eq!(database.number(&months).await, 3);
    let again = database.storage.ensure_calendar(later).await.unwrap();
    assert_eq!((again.tenants, again.partitions), (0, 0));
}

on_both! {
    a_tenant_comes_with_two_months_and_their_counters,
    a_name_is_taken_until_its_tenant_is_deleted,
    a_deleted_tenant_stays_deleted,
    lists_go_on_after_an_id,
    another_tenant_sees_and_changes_no_user,
    a_user_needs_a_tenant,
    the_calendar_is_filled_for_all_tenants,
}
