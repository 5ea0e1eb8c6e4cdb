use sluice_domain::ports::{LedgerStore, PostMode, StoreError};
use sluice_domain::quota::{CounterKey, ScopeKind};
use sluice_domain::time::{Month, TimeZone};

use crate::fixture::{Account, Database, NOW};

fn month() -> Month {
    TimeZone::utc().period_of(NOW).month
}

async fn balance(database: &Database, account: &Account, kind: ScopeKind) -> (Option<i64>, i64) {
    let found = database
        .storage
        .load_counters(&[account.counter(kind)])
        .await;
    let found = found.unwrap();
    assert_eq!(found.len(), 1);
    (found[0].cap.tokens, found[0].used.tokens)
}

async fn a_cap_that_comes_late_counts_what_was_used(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    database
        .storage
        .post_batch(guard, PostMode::Live, &account.records(1, 3), &[], NOW)
        .await
        .unwrap();
    guard.seq += 1;
    for kind in [ScopeKind::Key, ScopeKind::User] {
        assert_eq!(
            balance(database, &account, kind).await,
            (None, 0),
            "{kind}: no counter yet"
        );
        let set =
            database
                .storage
                .set_quota(account.scope(kind), account.tenant.id, Some(1_000), NOW);
        assert!(set.await.unwrap());
        assert_eq!(
            balance(database, &account, kind).await,
            (Some(1_000), 90),
            "{kind}"
        );
    }
    let posted = database
        .storage
        .post_batch(guard, PostMode::Live, &account.records(4, 1), &[], NOW)
        .await
        .unwrap();
    assert_eq!(posted.counters.len(), 3);
    assert!(
        posted
            .counters
            .iter()
            .all(|counter| counter.used.tokens == 120),
        "{posted:?}"
    );
}

async fn a_cap_is_set_for_this_month_and_the_next(database: &Database) {
    let account = database.account("acme").await;
    let scope = account.scope(ScopeKind::Tenant);
    for (cap, recall, peak) in [
        (Some(500), 1, None),
        (Some(100), 1, None),
        (Some(900), 0, None),
        (None, 0, None::<i64>),
    ] {
        assert!(
            database
                .storage
                .set_quota(scope, account.tenant.id, cap, NOW)
                .await
                .unwrap()
        );
        let next = database
            .storage
            .load_counters(&[CounterKey {
                month: month().next(),
                ..account.counter(ScopeKind::Tenant)
            }])
            .await
            .unwrap();
        assert_eq!(next[0].cap.tokens, cap);
        let recalled = format!(
            "SELECT COUNT(*) FROM counters WHERE scope_id = {} AND recall = {}",
            database.literal(scope.id),
            if recall == 1 { "TRUE" } else { "FALSE" }
        );
        assert_eq!(database.number(&recalled).await, 2, "{cap:?}");
        // Without a cap at some time of the month there is no highest one.
        let peaks = "SELECT COUNT(*) FROM counters WHERE peak_cap_tokens IS NOT NULL";
        assert_eq!((database.number(peaks).await, peak), (0, None));
    }
    let tenant = database
        .storage
        .find_tenant(account.tenant.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(tenant.quota_tokens, None);
}

async fn the_peak_is_the_highest_cap_of_the_month(database: &Database) {
    let tenant = database.tenant_with_quota("acme", Some(500)).await;
    let scope = sluice_domain::quota::Scope {
        kind: ScopeKind::Tenant,
        id: tenant.id.as_uuid(),
    };
    for (cap, peak) in [(100, 500), (900, 900), (200, 900)] {
        assert!(
            database
                .storage
                .set_quota(scope, tenant.id, Some(cap), NOW)
                .await
                .unwrap()
        );
        let peaks = format!("SELECT COUNT(*) FROM counters WHERE peak_cap_tokens = {peak}");
        assert_eq!(database.number(&peaks).await, 2, "{cap}");
    }
}

async fn another_tenant_sets_no_quota(database: &Database) {
    let (acme, other) = (
        database.account("acme").await,
        database.account("other").await,
    );
    for kind in [ScopeKind::Tenant, ScopeKind::User, ScopeKind::Key] {
        let set = database
            .storage
            .set_quota(acme.scope(kind), other.tenant.id, Some(1), NOW);
        assert!(!set.await.unwrap(), "{kind}");
        assert_eq!(balance(database, &acme, kind).await.0, None, "{kind}");
    }
}

async fn a_cap_below_zero_is_refused(database: &Database) {
    let account = database.account("acme").await;
    let set = database.storage.set_quota(
        account.scope(ScopeKind::Tenant),
        account.tenant.id,
        Some(-1),
        NOW,
    );
    assert!(matches!(set.await, Err(StoreError::Internal { .. })));
    assert_eq!(balance(database, &account, ScopeKind::Tenant).await.0, None);
}

async fn twenty_at_once_spend_exactly_the_room(database: &Database) {
    // The conditional update on which leases are built: exact on both databases.
    let tenant = database.tenant_with_quota("acme", Some(70)).await;
    let take = format!(
        "UPDATE counters SET held_tokens = held_tokens + 10 WHERE scope_id = {} AND period = {} \
         AND (cap_tokens IS NULL OR used_tokens + held_tokens + 10 <= cap_tokens)",
        database.literal(tenant.id.as_uuid()),
        month().as_number()
    );
    let mut taken = 0;
    let calls = (0..20).map(|_| database.execute(&take));
    for result in join_all(calls).await {
        taken += result.unwrap();
    }
    assert_eq!(taken, 7);
    assert_eq!(
        database
            .number("SELECT SUM(held_tokens) FROM counters")
            .await,
        70
    );
}

/// Runs futures at the same time.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut is_ready = true;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => is_ready = false,
                }
            }
        }
        if is_ready {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

async fn a_cap_in_the_midst_of_posts_misses_nothing(database: &Database) {
    let tenant = database.tenant("acme").await;
    let mut guards = Vec::new();
    for _ in 0..4 {
        guards.push(database.instance().await);
    }
    for round in 0..12 {
        let user = database.user(&tenant, &format!("user {round}")).await;
        let key = database
            .key(&user, &format!("sk-test-round-{round:04}"))
            .await;
        let account = Account {
            tenant: tenant.clone(),
            user,
            key,
        };
        let scope = account.scope(ScopeKind::Key);
        let batches: Vec<_> = guards
            .iter()
            .map(|_| account.records(round * 5 + 1, 5))
            .collect();
        let posts = guards.iter().zip(&batches).map(|(guard, batch)| {
            database
                .storage
                .post_batch(*guard, PostMode::Live, batch, &[], NOW)
        });
        let cap = database
            .storage
            .set_quota(scope, account.tenant.id, Some(1 << 40), NOW);
        let (posted, set) = tokio::join!(join_all(posts), cap);
        assert!(set.unwrap());
        for result in posted {
            assert_eq!(result.unwrap().inserted, 5);
        }
        for guard in &mut guards {
            guard.seq += 1;
        }
        assert_eq!(
            balance(database, &account, ScopeKind::Key).await.1,
            600,
            "round {round}"
        );
        let used = balance(database, &account, ScopeKind::Tenant).await.1;
        assert_eq!(used, (round + 1) * 600, "round {round}");
    }
}

async fn twenty_instances_post_at_once_and_nothing_is_lost(database: &Database) {
    let account = database.account("acme").await;
    let mut guards = Vec::new();
    for _ in 0..20 {
        guards.push(database.instance().await);
    }
    let batches: Vec<_> = guards.iter().map(|_| account.records(1, 5)).collect();
    let posts = guards.iter().zip(&batches).map(|(guard, batch)| {
        database
            .storage
            .post_batch(*guard, PostMode::Live, batch, &[], NOW)
    });
    for result in join_all(posts).await {
        assert_eq!(result.unwrap().inserted, 5);
    }
    assert_eq!(
        balance(database, &account, ScopeKind::Tenant).await.1,
        3_000
    );
}

on_both! {
    a_cap_that_comes_late_counts_what_was_used,
    a_cap_is_set_for_this_month_and_the_next,
    the_peak_is_the_highest_cap_of_the_month,
    another_tenant_sets_no_quota,
    a_cap_below_zero_is_refused,
    twenty_at_once_spend_exactly_the_room,
    a_cap_in_the_midst_of_posts_misses_nothing,
    twenty_instances_post_at_once_and_nothing_is_lost,
}
