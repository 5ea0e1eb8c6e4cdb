use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use sluice_accounting::{Ledger, Poster};
use sluice_domain::id::{BootId, InstanceId, RequestId};
use sluice_domain::time::TimeZone;

use crate::sim::{Fault, FixedClock, SimStore, end_with, id, now, open_request, payer};

async fn start(ledger: &Ledger, store: &Arc<SimStore>) -> Poster {
    Poster::claim(
        ledger,
        Arc::clone(store) as _,
        Arc::new(FixedClock),
        InstanceId::from_uuid(id(9)),
        None,
        BootId::from_uuid(id(10)),
    )
    .await
    .unwrap()
}

/// Sends `count` records of one token through a store with the given faults and poisoned records.
/// Returns the store, what could not be posted, and what the account thinks was used.
async fn run(
    count: u128,
    faults: Vec<Option<Fault>>,
    poison: &[u128],
) -> (Arc<SimStore>, usize, i64) {
    let store = Arc::new(SimStore::default());
    store.state.lock().faults = faults.into();
    store.state.lock().poison = poison
        .iter()
        .map(|n| RequestId::from_uuid(id(1_000 + n)))
        .collect();
    let ledger = Ledger::new(1_000_000);
    let poster = start(&ledger, &store).await;
    let period = TimeZone::utc().period_of(now());
    let account = ledger
        .open_account(store.as_ref(), payer(), period, TimeZone::utc(), now())
        .await
        .unwrap();
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let writer = tokio::spawn(poster.run(
        async move {
            let _closed = closed.await;
        },
        Duration::from_mins(5),
    ));
    for n in 0..count {
        ledger
            .hold(&account, open_request(n))
            .unwrap()
            .post(end_with(1));
        if n % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
    }
    close.send(()).unwrap();
    let lost = writer.await.unwrap();
    (store, lost, account.balances()[0].used_tokens)
}

#[tokio::test(start_paused = true)]
async fn many_records_leave_in_few_transactions() {
    let (store, lost, used) = run(100, vec![], &[]).await;
    let state = store.state.lock();
    assert_eq!((state.posted.len(), lost, used), (100, 0, 100));
    assert!(
        state.transactions < 30,
        "{} transactions",
        state.transactions
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_not_posted_again() {
    let (store, lost, used) = run(3, vec![Some(Fault::AnswerLost)], &[]).await;
    assert_eq!((store.state.lock().posted.len(), lost, used), (3, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_refused_record_is_set_aside_and_the_others_pass() {
    let (store, lost, _used) = run(20, vec![], &[4, 11]).await;
    let state = store.state.lock();
    assert_eq!(
        (state.posted.len(), state.quarantined.len(), lost),
        (18, 2, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_writer_whose_identity_was_taken_stops_admission() {
    let store = Arc::new(SimStore::default());
    let ledger = Ledger::new(10);
    let poster = start(&ledger, &store).await;
    let period = TimeZone::utc().period_of(now());
    let account = ledger
        .open_account(store.as_ref(), payer(), period, TimeZone::utc(), now())
        .await
        .unwrap();
    ledger
        .hold(&account, open_request(1))
        .unwrap()
        .post(end_with(1));
    if let Some(row) = &mut store.state.lock().instance {
        row.boot_id = BootId::from_uuid(id(77));
        row.seq += 1;
    }
    let lost = poster
        .run(std::future::pending(), Duration::from_secs(1))
        .await;
    assert_eq!(lost, 1);
    assert!(ledger.hold(&account, open_request(2)).is_err());
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_holds_that_are_still_open() {
    let store = Arc::new(SimStore::default());
    let ledger = Ledger::new(10);
    let poster = start(&ledger, &store).await;
    let period = TimeZone::utc().period_of(now());
    let account = ledger
        .open_account(store.as_ref(), payer(), period, TimeZone::utc(), now())
        .await
        .unwrap();
    let hold = ledger.hold(&account, open_request(1)).unwrap();
    let writer = tokio::spawn(poster.run(std::future::ready(()), Duration::from_mins(1)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    hold.post(end_with(1));
    assert_eq!(writer.await.unwrap(), 0);
    assert_eq!(store.state.lock().posted.len(), 1);
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        3 => Just(None),
        1 => Just(Some(Fault::Unreachable)),
        1 => Just(Some(Fault::AnswerLost)),
    ]
}

proptest! {
    #[test]
    fn every_record_is_taken_in_exactly_once_whatever_fails(
        count in 1_u128..40,
        faults in prop::collection::vec(fault(), 0..12),
        poison in prop::collection::vec(0_u128..40, 0..3),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (store, lost, used) = runtime.block_on(run(count, faults, &poison));
        let state = store.state.lock();
        prop_assert_eq!(lost, 0);
        let mut seen: Vec<_> = state.posted.values().chain(state.quarantined.values()).collect();
        seen.sort();
        let expected: Vec<_> = (0..count).map(|n| RequestId::from_uuid(id(1_000 + n))).collect();
        prop_assert_eq!(seen, expected.iter().collect::<Vec<_>>());
        // Numbers are dense: every number up to the last is a record or in quarantine.
        let last = state.instance.unwrap().posted_no;
        prop_assert_eq!(last, i64::try_from(count).unwrap());
        for number in 1..=last {
            prop_assert!(state.posted.contains_key(&number) != state.quarantined.contains_key(&number));
        }
        prop_assert_eq!(used, i64::try_from(count).unwrap());
    }
}
