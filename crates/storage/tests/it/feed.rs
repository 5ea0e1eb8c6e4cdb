use std::time::Duration;

use sluice_domain::quota::ScopeKind;
use sluice_domain::tenant::EntityState;
use sluice_storage::feed::{Change, KEPT_EVENTS};

use crate::fixture::{Database, NOW, hash};

async fn changes_come_in_order(database: &Database) {
    let storage = &database.storage;
    let account = database.account("acme").await;
    storage
        .set_key_state(account.key.id, EntityState::Disabled)
        .await
        .unwrap();
    storage
        .set_quota(
            account.scope(ScopeKind::User),
            account.tenant.id,
            Some(5),
            NOW,
        )
        .await
        .unwrap();
    let page = storage.feed_since(0, 100).await.unwrap();
    let key = Change::Key(hash("sk-test-acme-0001"));
    let (tenant, user) = (
        Change::Tenant(account.tenant.id),
        Change::User(account.user.id),
    );
    let changes: Vec<_> = page.events.iter().map(|event| event.change).collect();
    assert_eq!(changes, [tenant, user, key, key, user]);
    assert_eq!(
        page.events
            .iter()
            .map(|event| event.pos)
            .collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert_eq!((page.position, page.is_gap), (5, false));
    assert_eq!(storage.feed_position().await.unwrap(), 5);
    let two = storage.feed_since(1, 2).await.unwrap();
    assert_eq!((two.events.len(), two.position), (2, 3));
    let none = storage.feed_since(5, 2).await.unwrap();
    assert_eq!(
        (none.events.len(), none.position, none.is_gap),
        (0, 5, false)
    );
}

async fn what_changes_nothing_is_not_told(database: &Database) {
    let account = database.account("acme").await;
    let position = database.storage.feed_position().await.unwrap();
    let other = database.tenant("other").await;
    let after = database.storage.feed_position().await.unwrap();
    assert_eq!(after, position + 1);
    let set = database
        .storage
        .set_user_state(other.id, account.user.id, EntityState::Disabled);
    assert!(!set.await.unwrap());
    assert!(
        database
            .storage
            .insert_key(crate::fixture::new_key(&account.user, "sk-test-acme-0001"))
            .await
            .is_err()
    );
    assert_eq!(database.storage.feed_position().await.unwrap(), after);
}

async fn a_poller_that_is_too_far_behind_sees_a_gap(database: &Database) {
    let tenant = database.tenant("acme").await;
    database
        .execute(&format!("UPDATE feed SET pos = {}", KEPT_EVENTS + 500))
        .await
        .unwrap();
    database
        .storage
        .set_tenant_state(tenant.id, EntityState::Disabled)
        .await
        .unwrap();
    let position = KEPT_EVENTS + 501;
    let behind = database.storage.feed_since(0, 100).await.unwrap();
    assert_eq!(
        (behind.is_gap, behind.events.len(), behind.position),
        (true, 0, position)
    );
    let close = database
        .storage
        .feed_since(position - 1, 100)
        .await
        .unwrap();
    assert_eq!(
        (close.is_gap, close.events.len(), close.position),
        (false, 1, position)
    );
    // Event 1 is beyond what is kept.
    assert_eq!(database.number("SELECT COUNT(*) FROM feed_events").await, 1);
}

async fn a_database_that_went_back_is_a_gap(database: &Database) {
    database.tenant("acme").await;
    let page = database.storage.feed_since(7, 100).await.unwrap();
    assert_eq!((page.is_gap, page.position), (true, 1));
}

async fn positions_are_dense_under_twenty_writers(database: &Database) {
    let tenant = database.tenant("acme").await;
    let set = |state| database.storage.set_tenant_state(tenant.id, state);
    for _ in 0..5 {
        use EntityState::{Active, Disabled};
        let (a, b, c, d) = tokio::join!(set(Active), set(Disabled), set(Active), set(Disabled));
        assert!(a.unwrap() && b.unwrap() && c.unwrap() && d.unwrap());
    }
    let page = database.storage.feed_since(1, 100).await.unwrap();
    assert_eq!(
        page.events.iter().map(|e| e.pos).collect::<Vec<_>>(),
        (2..=21).collect::<Vec<_>>()
    );
}

async fn a_listener_is_woken_where_there_is_one(database: &Database) {
    let Some(mut listener) = database.storage.listen().await.unwrap() else {
        assert!(database.is_sqlite());
        return;
    };
    let woken = tokio::time::timeout(Duration::from_secs(10), listener.wait());
    let (woken, _) = tokio::join!(woken, database.tenant("acme"));
    woken.expect("a wake-up").unwrap();
    drop(listener);
}

on_both! {
    changes_come_in_order,
    what_changes_nothing_is_not_told,
    a_poller_that_is_too_far_behind_sees_a_gap,
    a_database_that_went_back_is_a_gap,
    positions_are_dense_under_twenty_writers,
    a_listener_is_woken_where_there_is_one,
}
