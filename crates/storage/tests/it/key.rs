use sluice_domain::id::{ProxyKeyId, UserId};
use sluice_domain::key::import_key;
use sluice_domain::ports::StoreError;
use sluice_domain::quota::ScopeKind;
use sluice_domain::tenant::{EntityState, Name};
use sluice_domain::time::TimeZone;
use sluice_storage::import::{Imported, KeyImport};

use crate::fixture::{Database, NOW, hash, id, new_key};

async fn a_grant_holds_key_user_tenant_and_months(database: &Database) {
    let account = database.account("acme").await;
    let storage = &database.storage;
    for (kind, cap) in [
        (ScopeKind::Tenant, 106),
        (ScopeKind::User, 104),
        (ScopeKind::Key, 103),
    ] {
        let cap = Some(cap);
        assert!(
            storage
                .set_quota(account.scope(kind), account.tenant.id, cap, NOW)
                .await
                .unwrap()
        );
    }
    let grant = storage
        .find_grant(&hash("sk-test-acme-0001"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(grant.key.id, account.key.id);
    assert_eq!(
        grant.key.allowed_models.as_deref(),
        Some(["gpt-4o".to_owned()].as_slice())
    );
    assert_eq!(grant.key.expires_at, account.key.expires_at);
    assert_eq!(grant.key.hint, account.key.hint);
    assert_eq!(
        (grant.user.id, grant.user.name.as_str()),
        (account.user.id, "anna")
    );
    assert_eq!(
        (grant.tenant.id, grant.tenant.name.as_str()),
        (account.tenant.id, "acme")
    );
    let caps = [
        grant.key.quota_tokens,
        grant.user.quota_tokens,
        grant.tenant.quota_tokens,
    ];
    assert_eq!(caps, [Some(103), Some(104), Some(106)]);
    let zone = TimeZone::utc();
    let this = zone.period_of(NOW);
    assert_eq!(grant.periods, [this, zone.period(this.month.next())]);
    assert!(
        storage
            .find_grant(&hash("another"))
            .await
            .unwrap()
            .is_none()
    );
}

async fn a_grant_follows_every_state(database: &Database) {
    use EntityState::{Active, Deleted, Disabled};

    let account = database.account("acme").await;
    let storage = &database.storage;
    let states = async || {
        let grant = storage
            .find_grant(&hash("sk-test-acme-0001"))
            .await
            .unwrap()
            .unwrap();
        (grant.key.state, grant.user.state, grant.tenant.state)
    };
    assert_eq!(states().await, (Active, Active, Active));
    assert!(
        storage
            .set_key_state(account.key.id, Disabled)
            .await
            .unwrap()
    );
    assert_eq!(states().await, (Disabled, Active, Active));
    assert!(storage.set_key_state(account.key.id, Active).await.unwrap());
    assert!(
        storage
            .set_user_state(account.tenant.id, account.user.id, Disabled)
            .await
            .unwrap()
    );
    assert!(
        storage
            .set_tenant_state(account.tenant.id, Disabled)
            .await
            .unwrap()
    );
    assert_eq!(states().await, (Active, Disabled, Disabled));
    assert!(
        storage
            .set_key_state(account.key.id, Deleted)
            .await
            .unwrap()
    );
    assert_eq!(states().await.0, Deleted);
    assert!(!storage.set_key_state(account.key.id, Active).await.unwrap());
    assert_eq!(
        storage
            .find_key(account.key.id)
            .await
            .unwrap()
            .unwrap()
            .state,
        Deleted
    );
}

async fn a_grant_has_at_most_the_last_three_months(database: &Database) {
    database.account("acme").await;
    for months in 1..5 {
        let later = sluice_domain::time::UnixMillis(NOW.0 + months * 31 * 24 * 3_600_000);
        database.storage.ensure_calendar(later).await.unwrap();
    }
    let grant = database
        .storage
        .find_grant(&hash("sk-test-acme-0001"))
        .await
        .unwrap()
        .unwrap();
    let months: Vec<i32> = grant.periods.iter().map(|p| p.month.as_number()).collect();
    assert_eq!(months, [202_702, 202_703, 202_704]);
}

async fn a_hash_is_unique_over_all_tenants(database: &Database) {
    let account = database.account("acme").await;
    let other = database.account("other").await;
    let error = database
        .storage
        .insert_key(new_key(&other.user, "sk-test-acme-0001"))
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
    assert_eq!(
        database
            .storage
            .list_keys(None, None, 10)
            .await
            .unwrap()
            .len(),
        2
    );
    let of_acme = database
        .storage
        .list_keys(Some(account.tenant.id), None, 10)
        .await
        .unwrap();
    assert_eq!(
        of_acme.iter().map(|key| key.id).collect::<Vec<_>>(),
        [account.key.id]
    );
}

async fn a_key_needs_a_user_of_its_own_tenant(database: &Database) {
    let (acme, other) = (
        database.account("acme").await,
        database.account("other").await,
    );
    let mut stray = new_key(&acme.user, "sk-test-stray-01");
    stray.tenant_id = other.tenant.id;
    assert!(database.storage.insert_key(stray).await.unwrap().is_none());
    assert_eq!(database.number("SELECT COUNT(*) FROM proxy_keys").await, 2);
}

fn entry(user: &str, text: &str, quota_tokens: Option<i64>, state: EntityState) -> KeyImport {
    KeyImport {
        id: ProxyKeyId::from_uuid(id()),
        name: "imported".parse().unwrap(),
        user: user.parse().unwrap(),
        new_user_id: UserId::from_uuid(id()),
        key_hash: hash(text),
        hint: import_key(text).unwrap().hint(),
        quota_tokens,
        state,
    }
}

async fn an_import_makes_users_and_keys_and_can_be_repeated(database: &Database) {
    use EntityState::{Active, Disabled};
    let tenant = database.tenant("acme").await;
    let storage = &database.storage;
    let first = vec![
        entry("anna", "old-key-0001", Some(500), Active),
        entry("ben", "old-key-0002", None, Disabled),
        entry("anna", "old-key-0003", None, Active),
    ];
    let made = storage
        .import_keys(tenant.id, first.clone(), NOW)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        made,
        first
            .iter()
            .map(|key| Imported::Created(key.id))
            .collect::<Vec<_>>()
    );
    let users = storage.list_users(tenant.id, None, 10).await.unwrap();
    assert_eq!(
        users
            .iter()
            .map(|user| user.name.as_str())
            .collect::<Vec<_>>(),
        ["anna", "ben"]
    );
    let again = vec![
        entry("anna", "old-key-0001", Some(900), Disabled),
        entry("ben", "old-key-0002", Some(1), Active),
    ];
    let updated = storage
        .import_keys(tenant.id, again, NOW)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        updated,
        [
            Imported::Updated(first[0].id),
            Imported::Updated(first[1].id)
        ]
    );
    let key = storage.find_key(first[0].id).await.unwrap().unwrap();
    assert_eq!((key.quota_tokens, key.state), (Some(900), Disabled));
    assert_eq!(database.number("SELECT COUNT(*) FROM proxy_keys").await, 3);
}

async fn an_import_is_all_or_nothing(database: &Database) {
    let tenant = database.tenant("acme").await;
    let storage = &database.storage;
    let anna = entry("anna", "old-key-0001", None, EntityState::Active);
    storage
        .import_keys(tenant.id, vec![anna], NOW)
        .await
        .unwrap();
    let position = storage.feed_position().await.unwrap();
    let stolen = vec![
        entry("carl", "old-key-0007", Some(5), EntityState::Active),
        entry("dora", "old-key-0008", None, EntityState::Active),
        entry("ben", "old-key-0001", None, EntityState::Active),
    ];
    let error = storage
        .import_keys(tenant.id, stolen, NOW)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("entry 2"), "{error}");
    assert!(matches!(error, StoreError::Conflict { .. }));
    assert_eq!(database.number("SELECT COUNT(*) FROM proxy_keys").await, 1);
    assert_eq!(database.number("SELECT COUNT(*) FROM users").await, 1);
    assert_eq!(
        database
            .number("SELECT COUNT(*) FROM quotas WHERE scope <> 'tenant'")
            .await,
        0
    );
    assert_eq!(storage.feed_position().await.unwrap(), position);
}

async fn an_import_never_takes_or_changes_a_key_of_another_tenant(database: &Database) {
    let (acme, other) = (
        database.account("acme").await,
        database.tenant("other").await,
    );
    let taken = entry("anna", "sk-test-acme-0001", Some(1), EntityState::Disabled);
    let error = database
        .storage
        .import_keys(other.id, vec![taken], NOW)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("entry 0"), "{error}");
    let key = database
        .storage
        .find_key(acme.key.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((key.state, key.quota_tokens), (EntityState::Active, None));
}

async fn a_revoked_key_is_not_imported_back_to_life(database: &Database) {
    let account = database.account("acme").await;
    assert!(
        database
            .storage
            .set_key_state(account.key.id, EntityState::Deleted)
            .await
            .unwrap()
    );
    let back = entry("anna", "sk-test-acme-0001", None, EntityState::Active);
    let imported = database
        .storage
        .import_keys(account.tenant.id, vec![back], NOW)
        .await
        .unwrap();
    assert_eq!(imported, Some(vec![Imported::Revoked(account.key.id)]));
    let found = database
        .storage
        .find_key(account.key.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.state, EntityState::Deleted);
}

async fn an_import_needs_a_tenant(database: &Database) {
    let ghost = sluice_domain::id::TenantId::from_uuid(id());
    let keys = vec![entry("anna", "old-key-0001", None, EntityState::Active)];
    assert_eq!(
        database
            .storage
            .import_keys(ghost, keys, NOW)
            .await
            .unwrap(),
        None
    );
    let name: Name = "anna".parse().unwrap();
    assert!(
        database
            .storage
            .find_user_by_name(ghost, &name)
            .await
            .unwrap()
            .is_none()
    );
}

on_both! {
    a_grant_holds_key_user_tenant_and_months,
    a_grant_follows_every_state,
    a_grant_has_at_most_the_last_three_months,
    a_hash_is_unique_over_all_tenants,
    a_key_needs_a_user_of_its_own_tenant,
    an_import_makes_users_and_keys_and_can_be_repeated,
    an_import_is_all_or_nothing,
    an_import_never_takes_or_changes_a_key_of_another_tenant,
    a_revoked_key_is_not_imported_back_to_life,
    an_import_needs_a_tenant,
}
