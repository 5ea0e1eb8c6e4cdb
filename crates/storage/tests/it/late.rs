use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{Guard, InstanceState, LedgerStore, PostMode, StoreError};
use sluice_domain::quota::{Amounts, Cap, CounterKey, Lease, ScopeKind};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;
use sluice_storage::resolve::{ALIVE_FOR_MS, LostPosts, Resolved, Settlement};

use crate::fixture::{Account, Database, FORCED, NOW, id, tenfold};

const TENANT: ScopeKind = ScopeKind::Tenant;
const KEY: ScopeKind = ScopeKind::Key;

/// An account with a capped key, and an instance that has leased so much of both.
async fn leased(database: &Database, tokens: i64) -> (Account, Guard) {
    let account = database.account("acme").await;
    let cap = Cap {
        tokens: Some(1_000),
        nano: Some(10_000),
    };
    for kind in [TENANT, KEY] {
        let set = database
            .storage
            .set_quota(account.scope(kind), account.tenant.id, cap, NOW);
        assert!(set.await.unwrap());
    }
    database
        .execute("UPDATE counters SET peak_cap_tokens = cap_tokens, peak_cap_nano = cap_nano")
        .await
        .unwrap();
    let mut guard = database.instance().await;
    database
        .lease(&mut guard, &counters(&account), tenfold(tokens))
        .await;
    (account, guard)
}

/// In the order in which they are told.
fn counters(account: &Account) -> [CounterKey; 2] {
    let mut counters = [TENANT, KEY].map(|kind| account.counter(kind));
    counters.sort();
    counters
}

async fn resolve(database: &Database, guard: &mut Guard, releases: bool) -> Resolved {
    let settlement = Settlement { releases, ..FORCED };
    let resolved = database
        .storage
        .resolve_instance(guard.instance_id, settlement, NOW)
        .await
        .unwrap();
    guard.seq += 1;
    resolved
}

async fn post(
    database: &Database,
    guard: &mut Guard,
    mode: PostMode,
    records: &[NumberedRecord],
) -> usize {
    let posted = database
        .storage
        .post_batch(*guard, mode, records, &[], NOW)
        .await
        .unwrap();
    guard.seq += 1;
    for balance in &posted.counters {
        assert_eq!(*balance, database.balance(balance.key).await);
    }
    posted.inserted
}

async fn end(database: &Database, guard: &mut Guard) {
    database.storage.end_late(*guard, NOW).await.unwrap();
    guard.seq += 1;
}

/// What both counters have used and held, which is the same.
async fn balance(database: &Database, account: &Account) -> (Amounts, Amounts) {
    let [one, two] = counters(account);
    let (one, two) = (database.balance(one).await, database.balance(two).await);
    assert_eq!((one.used, one.held), (two.used, two.held));
    (one.used, one.held)
}

async fn state(database: &Database, guard: Guard) -> (i64, InstanceState) {
    let row = database.storage.find_instance(guard.instance_id).await;
    let row = row.unwrap().unwrap();
    assert_eq!(row.leases, []);
    (row.seq, row.state)
}

async fn what_was_leased_becomes_an_exposure_once(database: &Database) {
    let (account, mut guard) = leased(database, 200).await;
    let storage = &database.storage;
    let settle = async |is_forced, after: i64| {
        let now = UnixMillis(NOW.0 + after);
        let settlement = Settlement {
            is_forced,
            ..FORCED
        };
        let resolved = storage
            .resolve_instance(guard.instance_id, settlement, now)
            .await;
        resolved.unwrap()
    };
    let alive = Resolved::Alive { heartbeat_at: NOW };
    assert_eq!(settle(false, ALIVE_FOR_MS - 1).await, alive);
    assert_eq!(
        balance(database, &account).await,
        (Amounts::ZERO, tenfold(200))
    );
    let exposures = counters(&account).map(|key| Lease {
        key,
        held: tenfold(200),
    });
    assert_eq!(
        settle(false, ALIVE_FOR_MS).await,
        Resolved::Settled(exposures.to_vec())
    );
    assert_eq!(
        balance(database, &account).await,
        (tenfold(200), Amounts::ZERO)
    );
    for is_forced in [false, true] {
        let again = settle(is_forced, ALIVE_FOR_MS).await;
        assert_eq!(again, Resolved::Already(InstanceState::Resolved));
    }
    assert_eq!(
        balance(database, &account).await,
        (tenfold(200), Amounts::ZERO)
    );
    // It learns of it at its next word.
    let posted = account.held_records(1, 1, &[TENANT]);
    let live = storage
        .post_batch(guard, PostMode::Live, &posted, &[], NOW)
        .await;
    assert!(matches!(live, Err(StoreError::Guard)));
    let beat = storage.heartbeat(guard, NOW).await;
    assert!(matches!(beat, Err(StoreError::Guard)));
    guard.seq += 1;
    assert_eq!(
        state(database, guard).await,
        (guard.seq, InstanceState::Resolved)
    );
    storage.heartbeat(guard, NOW).await.unwrap();
    let live = storage
        .post_batch(guard, PostMode::Live, &posted, &[], NOW)
        .await;
    assert!(matches!(live, Err(StoreError::Guard)));
    let unknown = storage
        .resolve_instance(InstanceId::from_uuid(id()), FORCED, NOW)
        .await;
    assert_eq!(unknown.unwrap(), Resolved::Unknown);
    database.check().await;
}

async fn an_instance_that_was_heard_of_is_settled_by_force(database: &Database) {
    let (account, mut guard) = leased(database, 200).await;
    assert!(matches!(
        resolve(database, &mut guard, false).await,
        Resolved::Settled(_)
    ));
    assert_eq!(balance(database, &account).await.0, tenfold(200));
}

async fn facts_take_the_place_of_an_exposure(database: &Database) {
    let (account, mut guard) = leased(database, 200).await;
    assert_eq!(
        post(
            database,
            &mut guard,
            PostMode::Live,
            &account.held_records(1, 1, &[TENANT, KEY])
        )
        .await,
        1
    );
    resolve(database, &mut guard, false).await;
    assert_eq!(
        balance(database, &account).await,
        (tenfold(200), Amounts::ZERO),
        "30 and 170"
    );
    // The first of these is there already.
    let late = account.held_records(2, 2, &[TENANT, KEY]);
    assert_eq!(post(database, &mut guard, PostMode::Late, &late).await, 2);
    assert_eq!(balance(database, &account).await.0, tenfold(200));
    assert_eq!(
        post(database, &mut guard, PostMode::Late, &late).await,
        0,
        "again"
    );
    assert_eq!(balance(database, &account).await.0, tenfold(200));
    database.check().await;
    let all = database.storage.list_instances().await.unwrap();
    let left = counters(&account).map(|key| Lease {
        key,
        held: tenfold(110),
    });
    assert_eq!((all.len(), &all[0].exposures[..]), (1, &left[..]));
    end(database, &mut guard).await;
    assert_eq!(
        balance(database, &account).await,
        (tenfold(90), Amounts::ZERO)
    );
    assert_eq!(
        state(database, guard).await,
        (guard.seq, InstanceState::Closed)
    );
    assert_eq!(database.storage.verify_ledger(NOW).await.unwrap(), []);
    // Nothing more comes from it.
    let ended = database.storage.end_late(guard, NOW).await;
    assert!(matches!(ended, Err(StoreError::Guard)));
    let more = account.held_records(4, 1, &[TENANT]);
    let more = database
        .storage
        .post_batch(guard, PostMode::Late, &more, &[], NOW)
        .await;
    assert!(matches!(more, Err(StoreError::Guard)));
    let all = database.storage.list_instances().await.unwrap();
    assert_eq!(
        (all[0].state, &all[0].exposures[..]),
        (InstanceState::Closed, &[][..])
    );
}

async fn facts_beyond_the_exposure_are_counted(database: &Database) {
    let (account, mut guard) = leased(database, 40).await;
    resolve(database, &mut guard, false).await;
    // Others have taken the rest.
    let mut other = database.instance().await;
    database
        .lease(&mut other, &counters(&account), tenfold(950))
        .await;
    // The second brings the exposure to its end; the third was held in the lease of the tenant alone.
    let mut late = account.held_records(1, 2, &[TENANT, KEY]);
    late.extend(account.held_records(3, 1, &[TENANT]));
    assert_eq!(post(database, &mut guard, PostMode::Late, &late).await, 3);
    assert_eq!(
        balance(database, &account).await,
        (tenfold(90), tenfold(950))
    );
    // 90 and 950 of 1,000.
    let over = "SELECT SUM(over_tokens * 1000 + over_nano) FROM counters";
    assert_eq!(database.number(over).await, 2 * 40_400);
    database.check().await;
    end(database, &mut guard).await;
    assert_eq!(balance(database, &account).await.0, tenfold(90));
    database.check().await;
}

async fn late_charges_that_were_not_held_are_added(database: &Database) {
    let (account, mut guard) = leased(database, 200).await;
    resolve(database, &mut guard, false).await;
    assert_eq!(
        post(database, &mut guard, PostMode::Late, &account.records(1, 2)).await,
        2
    );
    assert_eq!(balance(database, &account).await.0, tenfold(260));
    end(database, &mut guard).await;
    assert_eq!(balance(database, &account).await.0, tenfold(60));
    database.check().await;
}

async fn leases_can_be_given_back_at_once(database: &Database) {
    let (account, mut guard) = leased(database, 200).await;
    let given = counters(&account).map(|key| Lease {
        key,
        held: tenfold(200),
    });
    assert_eq!(
        resolve(database, &mut guard, true).await,
        Resolved::Settled(given.to_vec())
    );
    assert_eq!(
        balance(database, &account).await,
        (Amounts::ZERO, Amounts::ZERO)
    );
    assert_eq!(
        database.number("SELECT COUNT(*) FROM ledger_entries").await,
        0
    );
    let mut other = database.instance().await;
    database
        .lease(&mut other, &counters(&account), tenfold(1_000))
        .await;
    let late = account.held_records(1, 1, &[TENANT, KEY]);
    assert_eq!(post(database, &mut guard, PostMode::Late, &late).await, 1);
    let over = "SELECT SUM(over_tokens * 1000 + over_nano) FROM counters";
    assert_eq!(
        database.number(over).await,
        2 * 30_300,
        "the only way to overdraw"
    );
    end(database, &mut guard).await;
    assert_eq!(
        balance(database, &account).await,
        (tenfold(30), tenfold(1_000))
    );
    database.check().await;
}

async fn a_late_record_that_is_set_aside_keeps_its_place(database: &Database) {
    let (account, mut guard) = leased(database, 100).await;
    resolve(database, &mut guard, false).await;
    let records = account.held_records(1, 3, &[TENANT, KEY]);
    for numbered in &records[..2] {
        let set_aside = database
            .storage
            .quarantine(guard, PostMode::Late, numbered, "test", NOW)
            .await;
        set_aside.unwrap();
        guard.seq += 1;
        assert_eq!(balance(database, &account).await.0, tenfold(100));
        database.check().await;
    }
    // The exposure of the records is not that of the instance.
    assert_eq!(
        post(database, &mut guard, PostMode::Late, &records[2..]).await,
        1
    );
    assert_eq!(balance(database, &account).await.0, tenfold(100));
    end(database, &mut guard).await;
    assert_eq!(balance(database, &account).await.0, tenfold(90));
    assert_eq!(database.number("SELECT COUNT(*) FROM quarantine").await, 2);
    database.check().await;
}

async fn a_request_that_is_set_aside_twice_is_charged_once(database: &Database) {
    let (account, mut guard) = leased(database, 100).await;
    let mut records = account.held_records(1, 2, &[TENANT, KEY]);
    records[1].record.open.request_id = records[0].record.open.request_id;
    for numbered in &records {
        let storage = &database.storage;
        let set_aside = storage
            .quarantine(guard, PostMode::Live, numbered, "test", NOW)
            .await;
        set_aside.unwrap();
        guard.seq += 1;
    }
    assert_eq!(
        balance(database, &account).await,
        (tenfold(30), tenfold(40))
    );
    database.check().await;
}

async fn a_settled_instance_is_claimed_until_it_has_ended(database: &Database) {
    let (_account, mut guard) = leased(database, 100).await;
    resolve(database, &mut guard, false).await;
    let [second, third] = std::array::from_fn(|_| BootId::from_uuid(id()));
    let storage = &database.storage;
    let instance = guard.instance_id;
    let row = storage
        .claim_instance(instance, &[guard.boot_id], second, NOW)
        .await
        .unwrap();
    assert_eq!((row.state, row.seq), (InstanceState::Resolved, guard.seq));
    guard = Guard {
        boot_id: second,
        seq: row.seq,
        ..guard
    };
    end(database, &mut guard).await;
    let row = storage
        .claim_instance(instance, &[second], third, NOW)
        .await
        .unwrap();
    assert_eq!(
        (row.state, row.boot_id, row.seq),
        (InstanceState::Closed, second, guard.seq)
    );
    let foreign = storage.claim_instance(instance, &[third], third, NOW).await;
    assert!(matches!(foreign, Err(StoreError::Guard)));
}

async fn an_instance_is_listed_with_what_it_has(database: &Database) {
    let (account, mut guard) = leased(database, 100).await;
    let idle = database.instance().await;
    let key = account.counter(TENANT);
    let in_flight = [Lease {
        key,
        held: tenfold(20),
    }];
    let records = account.held_records(1, 1, &[TENANT]);
    let posted = database
        .storage
        .post_batch(guard, PostMode::Live, &records, &in_flight, NOW)
        .await;
    posted.unwrap();
    guard.seq += 1;
    let all = database.storage.list_instances().await.unwrap();
    let listed: Vec<_> = all
        .iter()
        .map(|i| (i.instance_id, i.boot_id, i.seq, i.posted_no))
        .collect();
    assert_eq!(
        listed,
        [
            (guard.instance_id, guard.boot_id, guard.seq, 1),
            (idle.instance_id, idle.boot_id, 0, 0)
        ]
    );
    let seen: Vec<_> = all[0]
        .leases
        .iter()
        .map(|l| (l.lease.key, l.lease.held, l.in_flight))
        .collect();
    let mut expected = [
        (key, tenfold(70), tenfold(20)),
        (account.counter(KEY), tenfold(100), Amounts::ZERO),
    ];
    expected.sort_by_key(|(key, ..)| *key);
    assert_eq!(seen, expected);
    assert_eq!(
        (all[0].heartbeat_at, all[0].state, all[1].leases.len()),
        (NOW, InstanceState::Live, 0)
    );
}

async fn posts_that_nobody_has_are_given_up_and_stay_named(database: &Database) {
    let (account, mut guard) = leased(database, 200).await;
    let first = account.held_records(1, 1, &[TENANT, KEY]);
    assert_eq!(post(database, &mut guard, PostMode::Live, &first).await, 1);
    let instance = guard.instance_id;
    let give_up = async |first, last| {
        let lost = Some(LostPosts { first, last });
        let settlement = Settlement { lost, ..FORCED };
        let done = database
            .storage
            .resolve_instance(instance, settlement, NOW)
            .await;
        done.unwrap()
    };
    for (first, last) in [(1, 3), (3, 4), (2, 1)] {
        let moved = Resolved::Moved { posted_no: 1 };
        assert_eq!(give_up(first, last).await, moved, "{first} to {last}");
    }
    assert_eq!(
        balance(database, &account).await,
        (tenfold(30), tenfold(170))
    );
    assert!(matches!(give_up(2, 4).await, Resolved::Settled(_)));
    assert_eq!(
        balance(database, &account).await,
        (tenfold(200), Amounts::ZERO),
        "its lease is an exposure"
    );
    // Once more: it was settled, and no further posts are known of.
    let moved = Resolved::Moved { posted_no: 4 };
    assert_eq!(give_up(2, 4).await, moved);
    // Lost without a break.
    let already = Resolved::Already(InstanceState::Resolved);
    assert_eq!(give_up(5, 5).await, already);
    guard.seq += 1;

    let late = account.held_records(6, 2, &[TENANT, KEY]);
    assert_eq!(post(database, &mut guard, PostMode::Late, &late).await, 2);
    end(database, &mut guard).await;
    assert_eq!(
        balance(database, &account).await,
        (tenfold(90), Amounts::ZERO)
    );
    let all = database.storage.list_instances().await.unwrap();
    assert_eq!((all[0].posted_no, all[0].lost), (7, 4));
    let findings = database.storage.verify_ledger(NOW).await.unwrap();
    let found: Vec<_> = findings.iter().map(|f| (f.id, f.table, &*f.key)).collect();
    assert_eq!(
        found,
        [
            ("W1", "lost_posts", &*format!("posts 2 to 4 of {instance}")),
            ("W1", "lost_posts", &*format!("posts 5 to 5 of {instance}")),
        ]
    );
    let closed = Resolved::Already(InstanceState::Closed);
    assert_eq!(give_up(8, 9).await, closed, "nothing more is given up");
    // What is named wrongly is a fault, and what is not named.
    for change in [
        "UPDATE lost_posts SET last_no = 3 WHERE first_no = 2",
        "DELETE FROM lost_posts",
    ] {
        database.execute(change).await.unwrap();
        let findings = database.storage.verify_ledger(NOW).await.unwrap();
        let faults = findings.iter().filter(|finding| !finding.is_warning());
        let keys: Vec<&str> = faults.map(|finding| &*finding.key).collect();
        let missing = format!("posts 2 to 5 of {instance}");
        assert_eq!(keys, [&*instance.to_string(), &*missing], "{change}");
    }
}

on_both! {
    posts_that_nobody_has_are_given_up_and_stay_named,
    what_was_leased_becomes_an_exposure_once,
    an_instance_that_was_heard_of_is_settled_by_force,
    facts_take_the_place_of_an_exposure,
    facts_beyond_the_exposure_are_counted,
    late_charges_that_were_not_held_are_added,
    leases_can_be_given_back_at_once,
    a_late_record_that_is_set_aside_keeps_its_place,
    a_request_that_is_set_aside_twice_is_charged_once,
    a_settled_instance_is_claimed_until_it_has_ended,
    an_instance_is_listed_with_what_it_has,
}
