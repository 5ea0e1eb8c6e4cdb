use std::sync::Arc;

use sluice_accounting::{Account, Ledger, Refusal};
use sluice_domain::quota::ScopeKind;
use sluice_domain::time::TimeZone;

use crate::sim::{SimStore, end_with, now, open_request, payer};

async fn account(ledger: &Ledger, store: &SimStore) -> Account {
    let period = TimeZone::utc().period_of(now());
    ledger
        .open_account(store, payer(), period, TimeZone::utc(), now())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_charge_counts_against_the_quota_before_the_database_has_it() {
    let store = SimStore::default();
    store.state.lock().caps.insert(payer().scopes()[2], 100);
    let ledger = Ledger::new(10);
    let account = account(&ledger, &store).await;
    ledger
        .hold(&account, open_request(1))
        .unwrap()
        .post(end_with(99));
    ledger
        .hold(&account, open_request(2))
        .unwrap()
        .post(end_with(1));
    let Err(Refusal::Spent(spent)) = ledger.hold(&account, open_request(3)) else {
        panic!("the third request must be refused");
    };
    assert_eq!(
        (spent.scope, spent.cap_tokens, spent.used_tokens),
        (ScopeKind::Key, 100, 100)
    );
    assert_eq!(spent.resets_at, account.period().ends_at);
}

#[tokio::test]
async fn two_keys_of_one_tenant_share_its_counter() {
    let store = SimStore::default();
    store.state.lock().caps.insert(payer().scopes()[0], 50);
    let ledger = Ledger::new(10);
    let first = account(&ledger, &store).await;
    let second = account(&ledger, &store).await;
    ledger
        .hold(&first, open_request(1))
        .unwrap()
        .post(end_with(50));
    assert!(matches!(
        ledger.hold(&second, open_request(2)),
        Err(Refusal::Spent(_))
    ));
}

#[tokio::test]
async fn admission_stops_when_the_database_is_far_behind() {
    let store = SimStore::default();
    let ledger = Ledger::new(2);
    let account = account(&ledger, &store).await;
    for n in 0..2 {
        ledger
            .hold(&account, open_request(n))
            .unwrap()
            .post(end_with(1));
    }
    assert_eq!(
        ledger.hold(&account, open_request(3)).unwrap_err(),
        Refusal::Behind
    );
}

#[tokio::test]
async fn a_dropped_hold_becomes_a_record_of_zero() {
    let store = Arc::new(SimStore::default());
    let ledger = Ledger::new(10);
    let account = account(&ledger, &store).await;
    drop(ledger.hold(&account, open_request(1)).unwrap());
    assert_eq!(
        (ledger.stats().open_holds(), ledger.stats().waiting()),
        (0, 1)
    );
    assert_eq!(account.balances()[0].used_tokens, 0);
}
