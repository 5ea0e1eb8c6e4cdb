use std::sync::Arc;

use sluice_domain::limit::{KeyLimits, LimitTarget, SetLimit};
use sluice_domain::ports::{LedgerStore as _, StoreError};
use sluice_domain::quota::ScopeKind;
use sluice_domain::tenant::EntityState;
use sluice_domain::time::UnixMillis;
use sluice_domain::window::{LARGEST_LIMIT, WindowKind, WindowLimit, WindowLimits};
use sluice_storage::feed::Change;
use sluice_storage::limit::LimitChange;

use crate::fixture::{Account, Database, NOW, hash};

fn target(account: &Account, kind: ScopeKind, model: Option<&str>) -> LimitTarget {
    LimitTarget {
        scope: account.scope(kind),
        model: model.map(str::to_owned),
    }
}

fn to(kind: WindowKind, most: u64) -> LimitChange {
    LimitChange {
        kind,
        limit: Some(WindowLimit::new(most).unwrap()),
    }
}

fn only(change: LimitChange) -> WindowLimits {
    let mut limits = WindowLimits::default();
    limits.set(change.kind, change.limit);
    limits
}

async fn limits_of(database: &Database, name: &str) -> KeyLimits {
    let key = hash(&format!("sk-test-{name}-0001"));
    let grant = database.storage.find_grant(&key).await.unwrap();
    grant.unwrap().limits
}

async fn set(
    database: &Database,
    account: &Account,
    target: &LimitTarget,
    changes: &[LimitChange],
) -> bool {
    let tenant = account.tenant.id;
    let set = database.storage.set_limits(target, tenant, changes, NOW);
    set.await.unwrap()
}

async fn a_grant_holds_the_limits_of_all_its_scopes(database: &Database) {
    let account = database.account("acme").await;
    assert!(limits_of(database, "acme").await.is_empty());
    let by_scope = [
        (ScopeKind::Tenant, None, to(WindowKind::Rpm, LARGEST_LIMIT)),
        (ScopeKind::User, None, to(WindowKind::Tpm, 2)),
        (ScopeKind::Key, None, to(WindowKind::Concurrency, 3)),
        (ScopeKind::Key, Some("gpt-4o"), to(WindowKind::Rps, 4)),
        (ScopeKind::Key, Some("é/b:7b"), to(WindowKind::Rpm, 5)),
    ];
    for (kind, model, change) in by_scope {
        assert!(
            set(
                database,
                &account,
                &target(&account, kind, model),
                &[change]
            )
            .await
        );
    }
    let [tenant, user, key, first, second] = by_scope.map(|(_, _, change)| only(change));
    let expected = KeyLimits {
        tenant,
        user,
        key,
        models: [(Arc::from("gpt-4o"), first), (Arc::from("é/b:7b"), second)].into(),
    };
    assert_eq!(limits_of(database, "acme").await, expected);
    // Months and limits are rows of their own: neither multiplies the other.
    let key = hash("sk-test-acme-0001");
    let grant = database.storage.find_grant(&key).await.unwrap().unwrap();
    assert_eq!(grant.periods.len(), 2);
    let listed = database.storage.list_limits(account.tenant.id).await;
    assert_eq!(listed.unwrap().len(), 5);
}

async fn what_is_not_changed_stays(database: &Database) {
    let account = database.account("acme").await;
    let tenant = target(&account, ScopeKind::Tenant, None);
    let all = WindowKind::ALL.map(|kind| to(kind, 10));
    assert!(set(database, &account, &tenant, &all).await);
    let dry_run = LimitChange {
        kind: WindowKind::Rpm,
        limit: Some(WindowLimit::new(20).unwrap().dry_run()),
    };
    let none = LimitChange {
        kind: WindowKind::Tpm,
        limit: None,
    };
    assert!(set(database, &account, &tenant, &[dry_run, none]).await);
    let found = limits_of(database, "acme").await.tenant;
    let ten = WindowLimit::new(10).ok();
    assert_eq!((found.rps, found.rpm), (ten, dry_run.limit));
    assert_eq!((found.tpm, found.concurrency), (None, ten));
    let listed = database
        .storage
        .list_limits(account.tenant.id)
        .await
        .unwrap();
    assert_eq!(listed.len(), 3, "{listed:?}");
    let expected = SetLimit {
        target: tenant,
        kind: WindowKind::Rpm,
        limit: dry_run.limit.unwrap(),
    };
    assert!(listed.contains(&expected), "{listed:?}");
}

async fn every_change_is_told_by_the_feed(database: &Database) {
    let account = database.account("acme").await;
    let by_scope = [
        (ScopeKind::Tenant, Change::Tenant(account.tenant.id)),
        (ScopeKind::User, Change::User(account.user.id)),
        (ScopeKind::Key, Change::Key(hash("sk-test-acme-0001"))),
    ];
    for (kind, change) in by_scope {
        let before = database.storage.feed_position().await.unwrap();
        let target = target(&account, kind, None);
        assert!(set(database, &account, &target, &[to(WindowKind::Rpm, 1)]).await);
        let page = database.storage.feed_since(before, 10).await.unwrap();
        let changes: Vec<_> = page.events.iter().map(|event| event.change).collect();
        assert_eq!(changes, [change]);
    }
}

async fn another_tenant_sets_and_sees_no_limit(database: &Database) {
    let (acme, other) = (
        database.account("acme").await,
        database.account("other").await,
    );
    let one = [to(WindowKind::Rpm, 1)];
    for kind in [ScopeKind::Tenant, ScopeKind::User, ScopeKind::Key] {
        let before = database.storage.feed_position().await.unwrap();
        assert!(!set(database, &other, &target(&acme, kind, None), &one).await);
        assert_eq!(database.storage.feed_position().await.unwrap(), before);
    }
    assert!(limits_of(database, "acme").await.is_empty());
    for kind in [ScopeKind::Tenant, ScopeKind::User, ScopeKind::Key] {
        assert!(set(database, &acme, &target(&acme, kind, None), &one).await);
    }
    assert!(limits_of(database, "other").await.is_empty());
    let seen = database.storage.list_limits(other.tenant.id).await.unwrap();
    assert_eq!(seen, []);
}

async fn a_model_is_limited_on_a_key_only(database: &Database) {
    let account = database.account("acme").await;
    for kind in [ScopeKind::Tenant, ScopeKind::User] {
        let target = target(&account, kind, Some("gpt-4o"));
        let one = [to(WindowKind::Rpm, 1)];
        let set = database
            .storage
            .set_limits(&target, account.tenant.id, &one, NOW);
        assert!(matches!(set.await, Err(StoreError::Internal { .. })));
    }
    assert!(limits_of(database, "acme").await.is_empty());
}

async fn what_is_deleted_gets_no_limit(database: &Database) {
    let account = database.account("acme").await;
    let storage = &database.storage;
    let revoked = storage.set_key_state(account.key.id, EntityState::Deleted);
    assert!(revoked.await.unwrap());
    let key = target(&account, ScopeKind::Key, None);
    assert!(!set(database, &account, &key, &[to(WindowKind::Rpm, 1)]).await);
}

/// What a share of a limit is, when each instance decides by itself.
async fn instances_know_their_rank_among_those_that_live(database: &Database) {
    let storage = &database.storage;
    let mut guards = Vec::new();
    for _ in 0..3 {
        guards.push(database.instance().await);
    }
    // Ids of one millisecond have an order as well.
    guards.sort_by_key(|guard| guard.instance_id.as_uuid());
    let rank = async |at: usize, now| {
        let found = storage.instance_rank(guards[at].instance_id, now).await;
        let found = found.unwrap();
        (found.instances.get(), found.rank)
    };
    for (at, expected) in [(0, (3, 0)), (1, (3, 1)), (2, (3, 2))] {
        assert_eq!(rank(at, NOW).await, expected);
    }
    // The first is not heard of any more; whoever asks is there.
    let later = UnixMillis(NOW.0 + 60_000);
    assert_eq!(rank(2, later).await, (1, 0));
    storage.heartbeat(guards[1], later).await.unwrap();
    assert_eq!(rank(2, later).await, (2, 1));
    assert_eq!(rank(1, later).await, (1, 0));
}

on_both! {
    instances_know_their_rank_among_those_that_live,
    a_grant_holds_the_limits_of_all_its_scopes,
    what_is_not_changed_stays,
    every_change_is_told_by_the_feed,
    another_tenant_sets_and_sees_no_limit,
    a_model_is_limited_on_a_key_only,
    what_is_deleted_gets_no_limit,
}
