use std::sync::OnceLock;

use sluice_domain::id::BootId;
use sluice_domain::ports::{
    Guard, LeaseChange, LedgerStore, LockedCounter, PostMode, Posted, StoreError,
};
use sluice_domain::quota::{Amounts, Cap, CounterKey, Lease, ScopeKind};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;

use crate::fixture::{Account, Database, FORCED, NOW, id, tenfold};

const TENANT: ScopeKind = ScopeKind::Tenant;
const USER: ScopeKind = ScopeKind::User;
const KEY: ScopeKind = ScopeKind::Key;

fn cap(tokens: i64, nano: i64) -> Cap {
    Cap {
        tokens: Some(tokens),
        nano: Some(nano),
    }
}

async fn set_cap(database: &Database, account: &Account, kind: ScopeKind, cap: Cap) {
    let set = database
        .storage
        .set_quota(account.scope(kind), account.tenant.id, cap, NOW);
    assert!(set.await.unwrap());
}

async fn post(
    database: &Database,
    guard: &mut Guard,
    records: &[NumberedRecord],
    in_flight: &[Lease],
) -> Posted {
    let posted = database
        .storage
        .post_batch(*guard, PostMode::Live, records, in_flight, NOW)
        .await
        .unwrap();
    guard.seq += 1;
    posted
}

/// What the database says an instance has leased, and the number of its last transaction.
async fn leases(database: &Database, guard: Guard) -> (i64, Vec<Lease>) {
    let row = database.storage.find_instance(guard.instance_id).await;
    let row = row.unwrap().unwrap();
    (row.seq, row.leases)
}

async fn a_lease_is_taken_and_given_back_in_both_units(database: &Database) {
    let account = database.account("acme").await;
    set_cap(database, &account, TENANT, cap(100, 5_000)).await;
    let counter = account.counter(TENANT);
    let mut guard = database.instance().await;
    let moved = database.lease(&mut guard, &[counter], tenfold(40)).await;
    assert_eq!(
        (moved[0].leased, moved[0].balance.held),
        (tenfold(40), tenfold(40))
    );
    assert_eq!(moved[0].balance.cap, cap(100, 5_000));
    let moved = database.lease(&mut guard, &[counter], tenfold(5)).await;
    assert_eq!(moved[0].balance, database.balance(counter).await);
    assert_eq!(
        moved[0].balance.room(),
        Amounts {
            tokens: 55,
            nano: 4_550
        }
    );
    let lease = Lease {
        key: counter,
        held: tenfold(45),
    };
    assert_eq!(leases(database, guard).await, (guard.seq, vec![lease]));
    database.check().await;
    // One unit alone, then the rest.
    database
        .lease(&mut guard, &[counter], Amounts::tokens(-45))
        .await;
    let lease = Lease {
        key: counter,
        held: Amounts {
            tokens: 0,
            nano: 450,
        },
    };
    assert_eq!(leases(database, guard).await.1, [lease]);
    database
        .lease(
            &mut guard,
            &[counter],
            Amounts {
                tokens: 0,
                nano: -450,
            },
        )
        .await;
    assert_eq!(leases(database, guard).await, (guard.seq, vec![]));
    assert_eq!(database.balance(counter).await.held, Amounts::ZERO);
    assert_eq!(
        database.number("SELECT COUNT(*) FROM leases").await,
        0,
        "no empty rows"
    );
    database.check().await;
}

async fn what_does_not_fit_in_one_of_three_scopes_changes_nothing(database: &Database) {
    let account = database.account("acme").await;
    set_cap(database, &account, TENANT, cap(1_000, 10_000)).await;
    set_cap(database, &account, USER, cap(50, 10_000)).await;
    set_cap(database, &account, KEY, cap(1_000, 10_000)).await;
    let all = [TENANT, USER, KEY].map(|kind| account.counter(kind));
    let mut guard = database.instance().await;
    let before = guard.seq;
    for too_much in [
        Amounts::tokens(51),
        Amounts {
            tokens: 1,
            nano: 10_001,
        },
    ] {
        let error = database.try_lease(guard, &all, too_much).await.unwrap_err();
        assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
        assert_eq!(leases(database, guard).await, (before, vec![]));
        for counter in all {
            assert_eq!(database.balance(counter).await.held, Amounts::ZERO);
        }
    }
    // Exactly the room is not too much.
    let moved = database
        .lease(
            &mut guard,
            &all,
            Amounts {
                tokens: 50,
                nano: 10_000,
            },
        )
        .await;
    assert!(moved.iter().all(|row| row.leased
        == Amounts {
            tokens: 50,
            nano: 10_000
        }));
    // Giving back is never refused by a cap, however low.
    set_cap(database, &account, USER, cap(0, 0)).await;
    database.lease(&mut guard, &all, Amounts::tokens(-20)).await;
    database.check().await;
}

async fn without_a_cap_everything_fits(database: &Database) {
    let account = database.account("acme").await;
    let no_cap = account.counter(TENANT);
    let money_only = Cap {
        tokens: None,
        nano: Some(10),
    };
    set_cap(database, &account, KEY, money_only).await;
    let (key, user) = (account.counter(KEY), account.counter(USER));
    let mut guard = database.instance().await;
    let moved = database
        .lease(&mut guard, &[no_cap, user, key], Amounts::tokens(1 << 60))
        .await;
    let caps: Vec<Cap> = moved.iter().map(|row| row.balance.cap).collect();
    assert_eq!(caps, [Cap::default(), Cap::default(), money_only]);
    let error = database
        .try_lease(
            guard,
            &[key],
            Amounts {
                tokens: 0,
                nano: 11,
            },
        )
        .await;
    assert!(matches!(error, Err(StoreError::Internal { .. })));
    database.check().await;
}

async fn a_counter_that_is_missing_is_made_with_its_cap_and_what_was_used(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    post(database, &mut guard, &account.records(1, 2), &[]).await;
    let counters = [USER, KEY].map(|kind| account.counter(kind));
    let moved = database
        .lease(&mut guard, &counters, Amounts::tokens(1))
        .await;
    assert!(
        moved.iter().all(|row| row.balance.used == tenfold(60)),
        "{moved:?}"
    );
    // A month that nobody has thought of, and only a counter of a key.
    set_cap(database, &account, KEY, cap(7, 7)).await;
    let far = CounterKey {
        month: account.counter(KEY).month.next().next(),
        ..account.counter(KEY)
    };
    let moved = database.lease(&mut guard, &[far], Amounts::tokens(7)).await;
    assert_eq!(
        (moved[0].balance.cap, moved[0].balance.used),
        (cap(7, 7), Amounts::ZERO)
    );
    database.check().await;
}

async fn a_policy_sees_what_is_locked_and_who_lives(database: &Database) {
    let account = database.account("acme").await;
    let counter = account.counter(TENANT);
    let (mut one, mut two) = (database.instance().await, database.instance().await);
    let gone = database.instance().await;
    database.lease(&mut one, &[counter], tenfold(10)).await;
    database.lease(&mut two, &[counter], tenfold(3)).await;
    let resolved = database
        .storage
        .resolve_instance(gone.instance_id, FORCED, NOW)
        .await;
    resolved.unwrap();
    for (after, recall) in [(14_999, false), (15_000, true)] {
        let seen = OnceLock::new();
        let policy = |rows: &[LockedCounter], live: u32| {
            seen.set((rows.to_vec(), live)).unwrap();
            let change = LeaseChange {
                delta: Amounts::ZERO,
                recall: Some(true),
            };
            vec![change; rows.len()]
        };
        let now = UnixMillis(NOW.0 + after);
        let moved = database
            .storage
            .move_leases(two, &[counter], &policy, now)
            .await
            .unwrap();
        two.seq += 1;
        assert!(moved[0].recall);
        let (rows, live) = seen.get().unwrap();
        assert_eq!((rows[0].leased, rows[0].recall), (tenfold(3), recall));
        assert_eq!(rows[0].balance.held, tenfold(13));
        assert_eq!(
            *live,
            if after < 15_000 { 2 } else { 1 },
            "after {after} ms"
        );
    }
}

async fn a_policy_with_a_defect_is_refused(database: &Database) {
    let account = database.account("acme").await;
    let counter = account.counter(TENANT);
    let mut guard = database.instance().await;
    database.lease(&mut guard, &[counter], tenfold(10)).await;
    let none = |_rows: &[LockedCounter], _live: u32| Vec::new();
    let refused = database
        .storage
        .move_leases(guard, &[counter], &none, NOW)
        .await;
    assert!(matches!(refused, Err(StoreError::Internal { .. })));
    for too_much in [
        Amounts::tokens(-11),
        Amounts {
            tokens: 5,
            nano: -101,
        },
    ] {
        let refused = database.try_lease(guard, &[counter], too_much).await;
        assert!(matches!(refused, Err(StoreError::Internal { .. })));
    }
    let twice = database
        .try_lease(guard, &[counter, counter], tenfold(1))
        .await;
    assert!(matches!(twice, Err(StoreError::Internal { .. })));
    let lease = Lease {
        key: counter,
        held: tenfold(10),
    };
    assert_eq!(leases(database, guard).await, (guard.seq, vec![lease]));
    database.check().await;
}

async fn recalled_counters_are_told_to_those_who_lease_them(database: &Database) {
    let account = database.account("acme").await;
    set_cap(database, &account, TENANT, cap(100, 1_000)).await;
    set_cap(database, &account, KEY, cap(100, 1_000)).await;
    let counters = [TENANT, KEY].map(|kind| account.counter(kind));
    let (mut one, two) = (database.instance().await, database.instance().await);
    database.lease(&mut one, &counters, tenfold(10)).await;
    let recalled = async |guard: Guard| {
        let recalled = database.storage.list_recalled(guard.instance_id).await;
        recalled.unwrap()
    };
    let set = async |guard: &mut Guard, flag: Option<bool>| {
        let policy = |rows: &[LockedCounter], _live: u32| {
            let change = LeaseChange {
                delta: Amounts::ZERO,
                recall: flag,
            };
            vec![change; rows.len()]
        };
        let keys = &counters[..1];
        let moved = database
            .storage
            .move_leases(*guard, keys, &policy, NOW)
            .await;
        guard.seq += 1;
        moved.unwrap()[0].recall
    };
    let mut two = two;
    // By hand: the caps were set when there was none, which asks leases back.
    assert!(!set(&mut two, Some(false)).await);
    set_cap(database, &account, KEY, cap(200, 1_000)).await;
    assert_eq!(recalled(one).await, [], "raising clears it");
    assert!(set(&mut two, Some(true)).await);
    assert!(set(&mut two, None).await, "stays");
    assert_eq!(recalled(one).await, counters[..1]);
    assert_eq!(recalled(two).await, [], "it has none");
    set_cap(database, &account, KEY, cap(200, 999)).await;
    assert_eq!(recalled(one).await, counters, "lowered in one unit");
    set_cap(database, &account, KEY, cap(200, 999)).await;
    assert_eq!(recalled(one).await, counters, "the same again");
    set_cap(database, &account, KEY, cap(201, 1_000)).await;
    assert_eq!(recalled(one).await, counters[..1]);
    set_cap(database, &account, TENANT, Cap::default()).await;
    assert_eq!(recalled(one).await, []);
}

async fn a_post_moves_the_charge_and_leaves_the_rest_of_the_hold(database: &Database) {
    let account = database.account("acme").await;
    set_cap(database, &account, USER, cap(1_000, 10_000)).await;
    set_cap(database, &account, KEY, cap(1_000, 10_000)).await;
    let (tenant, user, key) = (
        account.counter(TENANT),
        account.counter(USER),
        account.counter(KEY),
    );
    let mut guard = database.instance().await;
    database
        .lease(&mut guard, &[tenant, key], tenfold(500))
        .await;
    let in_flight = [
        Lease {
            key: tenant,
            held: tenfold(200),
        },
        Lease {
            key,
            held: tenfold(9_999),
        },
    ];
    // One of them was held in the lease of the tenant alone.
    let mut records = account.held_records(1, 3, &[TENANT, KEY]);
    records.extend(account.held_records(4, 1, &[TENANT]));
    let posted = post(database, &mut guard, &records, &in_flight).await;
    assert_eq!(posted.inserted, 4);
    for (counter, held) in [
        (tenant, tenfold(380)),
        (user, Amounts::ZERO),
        (key, tenfold(410)),
    ] {
        let balance = database.balance(counter).await;
        assert_eq!((balance.used, balance.held), (tenfold(120), held));
        assert!(posted.counters.contains(&balance), "{posted:?}");
    }
    let (_, leased) = leases(database, guard).await;
    let mut expected = [
        Lease {
            key: tenant,
            held: tenfold(380),
        },
        Lease {
            key,
            held: tenfold(410),
        },
    ];
    expected.sort_by_key(|lease| lease.key);
    assert_eq!(leased, expected);
    // What is in flight is never more than what is held, and goes with what is given back.
    let flying = async || {
        database
            .number("SELECT SUM(in_flight_tokens) FROM leases")
            .await
    };
    assert_eq!(flying().await, 200 + 410);
    database.check().await;
    database
        .lease(&mut guard, &[tenant, key], tenfold(-300))
        .await;
    assert_eq!(flying().await, 80 + 110);
    // A repetition moves nothing.
    let again = post(database, &mut guard, &records, &in_flight).await;
    assert_eq!(
        (again.inserted, database.balance(tenant).await.held),
        (0, tenfold(80))
    );
    database.check().await;
}

async fn a_charge_beyond_its_lease_is_refused_and_can_be_set_aside(database: &Database) {
    let account = database.account("acme").await;
    let (tenant, key) = (account.counter(TENANT), account.counter(KEY));
    let mut guard = database.instance().await;
    database
        .lease(
            &mut guard,
            &[tenant],
            Amounts {
                tokens: 100,
                nano: 299,
            },
        )
        .await;
    let post_one = async |guard: Guard, record: &NumberedRecord| {
        let records = std::slice::from_ref(record);
        database
            .storage
            .post_batch(guard, PostMode::Live, records, &[], NOW)
            .await
    };
    let over = &account.held_records(1, 1, &[TENANT])[0];
    let no_counter = &account.held_records(1, 1, &[KEY])[0];
    for refused in [over, no_counter] {
        let error = post_one(guard, refused).await.unwrap_err();
        assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
    }
    assert_eq!(database.balance(tenant).await.used, Amounts::ZERO);
    let set_aside = database
        .storage
        .quarantine(guard, PostMode::Live, over, "test", NOW)
        .await;
    set_aside.unwrap();
    let balance = database.balance(tenant).await;
    assert_eq!(
        (balance.used, balance.held),
        (tenfold(30), Amounts::tokens(70))
    );
    assert_eq!(
        database
            .number("SELECT quarantined_rows FROM instances")
            .await,
        1
    );
    assert_eq!(
        database.balance(key).await.used,
        Amounts::ZERO,
        "no counter"
    );
    database.check().await;
}

async fn what_was_charged_without_a_hold_is_counted_beyond_the_cap(database: &Database) {
    let account = database.account("acme").await;
    let key = account.counter(KEY);
    // The cap came while the request was open.
    set_cap(database, &account, KEY, cap(20, 10_000)).await;
    let mut guard = database.instance().await;
    post(database, &mut guard, &account.records(1, 1), &[]).await;
    assert_eq!(database.balance(key).await.used, tenfold(30));
    database.check().await;
    let over = "SELECT over_tokens * 1000 + over_nano FROM counters WHERE peak_cap_tokens = 20 AND used_tokens > 0";
    assert_eq!(database.number(over).await, 10_000);
    // A higher cap makes room, and what was over stays known.
    set_cap(database, &account, KEY, cap(60, 10_000)).await;
    post(database, &mut guard, &account.records(2, 1), &[]).await;
    let over = over.replace("= 20", "= 60");
    assert_eq!(database.number(&over).await, 10_000);
    let warnings = database.storage.verify_ledger(NOW).await.unwrap();
    assert!(
        warnings
            .iter()
            .any(|w| w.id == "W1" && w.table == "counters"),
        "{warnings:?}"
    );
}

async fn what_is_owed_beyond_the_hold_is_kept_apart(database: &Database) {
    let account = database.account("acme").await;
    let tenant = account.counter(TENANT);
    let mut guard = database.instance().await;
    database.lease(&mut guard, &[tenant], tenfold(10_000)).await;
    // Forty of a kind, and one alone.
    let mut records = account.held_records(1, 41, &[TENANT]);
    for numbered in &mut records {
        numbered.record.end.owed = Amounts {
            tokens: 107,
            nano: 999,
        };
    }
    records[40].record.end.owed = Amounts {
        tokens: 100,
        nano: 1_003,
    };
    post(database, &mut guard, &records, &[]).await;
    let balance = database.balance(tenant).await;
    let charged = Amounts {
        tokens: 41 * 100,
        nano: 40 * 999 + 1_000,
    };
    assert_eq!(balance.used, charged);
    assert_eq!(balance.held, tenfold(10_000).minus(charged));
    for table in ["usage_records", "rollup_daily", "rollup_monthly"] {
        let sum = format!("SELECT SUM(excess_tokens * 1000 + excess_nano) FROM {table}");
        assert_eq!(database.number(&sum).await, 280 * 1_000 + 3, "{table}");
        let sum = format!("SELECT SUM(charge_nano) FROM {table}");
        assert_eq!(database.number(&sum).await, charged.nano, "{table}");
    }
    database.check().await;
}

async fn every_transaction_needs_the_guard(database: &Database) {
    let account = database.account("acme").await;
    let counter = account.counter(TENANT);
    let mut guard = database.instance().await;
    database.lease(&mut guard, &[counter], tenfold(10)).await;
    let foreign = BootId::from_uuid(id());
    let storage = &database.storage;
    for wrong in [
        Guard {
            boot_id: foreign,
            ..guard
        },
        Guard {
            seq: guard.seq + 1,
            ..guard
        },
        Guard {
            seq: guard.seq - 1,
            ..guard
        },
    ] {
        let taken = database.try_lease(wrong, &[counter], tenfold(1)).await;
        assert!(matches!(taken, Err(StoreError::Guard)));
        let ended = storage.end_late(wrong, NOW).await;
        assert!(matches!(ended, Err(StoreError::Guard)));
        let beat = storage.heartbeat(wrong, NOW).await;
        assert!(matches!(beat, Err(StoreError::Guard)));
    }
    for wrong in [
        Guard {
            boot_id: foreign,
            seq: guard.seq + 1,
            ..guard
        },
        guard,
        Guard {
            seq: guard.seq - 1,
            ..guard
        },
    ] {
        let synced = storage.resync(wrong, &[], NOW).await;
        assert!(
            matches!(synced, Err(StoreError::Guard)),
            "the database is not behind"
        );
    }
    let late = storage.end_late(guard, NOW).await;
    assert!(matches!(late, Err(StoreError::Guard)), "it is live");
    storage.heartbeat(guard, NOW).await.unwrap();
    let lease = Lease {
        key: counter,
        held: tenfold(10),
    };
    assert_eq!(leases(database, guard).await, (guard.seq, vec![lease]));
}

async fn after_a_lost_answer_the_database_tells_what_happened(database: &Database) {
    let account = database.account("acme").await;
    let counter = account.counter(TENANT);
    let mut guard = database.instance().await;
    database.lease(&mut guard, &[counter], tenfold(100)).await;
    let records = account.held_records(1, 2, &[TENANT]);
    post(database, &mut guard, &records, &[]).await;
    // Committed, but nobody heard of it: the same with the old guard does nothing.
    let old = Guard {
        seq: guard.seq - 1,
        ..guard
    };
    let again = database
        .storage
        .post_batch(old, PostMode::Live, &records, &[], NOW)
        .await;
    assert!(matches!(again, Err(StoreError::Guard)));
    let row = database
        .storage
        .find_instance(guard.instance_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.seq, row.posted_no), (guard.seq, 2));
    assert_eq!(
        row.leases,
        [Lease {
            key: counter,
            held: tenfold(40)
        }]
    );
    database.check().await;
}

async fn what_a_database_lost_is_leased_and_posted_again(database: &Database) {
    let account = database.account("acme").await;
    set_cap(database, &account, TENANT, cap(500, 5_000)).await;
    // Known from the first of the month on, so that what is over can be counted.
    database
        .execute("UPDATE counters SET peak_cap_tokens = cap_tokens, peak_cap_nano = cap_nano")
        .await
        .unwrap();
    let (tenant, key) = (account.counter(TENANT), account.counter(KEY));
    let (mut one, mut two) = (database.instance().await, database.instance().await);
    database.lease(&mut one, &[tenant], tenfold(100)).await;
    post(
        database,
        &mut one,
        &account.held_records(1, 1, &[TENANT]),
        &[],
    )
    .await;
    database.keep().await;
    // Lost: a post, and a lease of the tenant and of a key.
    let lost = account.held_records(2, 2, &[TENANT]);
    post(database, &mut one, &lost, &[]).await;
    database.lease(&mut one, &[tenant, key], tenfold(200)).await;
    database.go_back().await;
    let row = database
        .storage
        .find_instance(one.instance_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.seq, row.posted_no), (one.seq - 2, 1));
    assert!(matches!(
        database.try_lease(one, &[tenant], tenfold(1)).await,
        Err(StoreError::Guard)
    ));
    // Another instance took the room meanwhile.
    database.lease(&mut two, &[tenant], tenfold(400)).await;
    // Two unposted charges and an open hold.
    let wanted = [
        Lease {
            key: tenant,
            held: tenfold(110),
        },
        Lease {
            key,
            held: tenfold(50),
        },
    ];
    let row = database.storage.resync(one, &wanted, NOW).await.unwrap();
    assert_eq!((row.seq, row.posted_no), (one.seq + 1, 1));
    let mut expected = wanted.to_vec();
    expected.sort_by_key(|lease| lease.key);
    assert_eq!(row.leases, expected);
    one.seq = row.seq;
    database.check().await;
    // 30 used, 400 and 110 held of 500.
    let over = "SELECT over_tokens * 1000 + over_nano FROM counters WHERE scope = 'tenant' AND used_tokens > 0";
    assert_eq!(database.number(over).await, 40_400);
    let twice = database
        .storage
        .resync(
            Guard {
                seq: one.seq - 1,
                ..one
            },
            &wanted,
            NOW,
        )
        .await;
    assert!(matches!(twice, Err(StoreError::Guard)));
    assert_eq!(post(database, &mut one, &lost, &[]).await.inserted, 2);
    let balance = database.balance(tenant).await;
    assert_eq!((balance.used, balance.held), (tenfold(90), tenfold(450)));
    database.check().await;
    // A lease that the instance does not know is none.
    database
        .execute("UPDATE instances SET seq = seq - 1")
        .await
        .unwrap();
    let row = database.storage.resync(one, &[], NOW).await.unwrap();
    assert_eq!((row.seq, row.leases), (one.seq + 1, vec![]));
    assert_eq!(database.balance(tenant).await.held, tenfold(400));
    database.check().await;
}

/// What records share is remembered, and must not be where the database has lost it.
async fn what_records_share_is_stored_again_where_a_database_lost_it(database: &Database) {
    let account = database.account("acme").await;
    let tenant = account.counter(TENANT);
    let mut one = database.instance().await;
    database.lease(&mut one, &[tenant], tenfold(300)).await;
    database.keep().await;
    let lost = account.held_records(1, 2, &[TENANT]);
    post(database, &mut one, &lost[..1], &[]).await;
    post(database, &mut one, &lost[1..], &[]).await;
    let kinds = "SELECT COUNT(*) FROM record_kinds";
    assert_eq!(database.number(kinds).await, 1);
    database.go_back().await;
    assert_eq!(database.number(kinds).await, 0);
    let held = [Lease {
        key: tenant,
        held: tenfold(300),
    }];
    let row = database.storage.resync(one, &held, NOW).await.unwrap();
    one.seq = row.seq;
    assert_eq!(post(database, &mut one, &lost, &[]).await.inserted, 2);
    let records = "SELECT COUNT(*) FROM usage_records";
    assert_eq!(database.number(records).await, 2);
    database.check().await;
    // A transaction that fails leaves nothing to remember.
    let mut mixed = vec![lost[1].clone()];
    mixed.extend(account.held_records(3, 1, &[TENANT]));
    mixed[1].record.open.requested_model = "another".into();
    assert_eq!(post(database, &mut one, &mixed, &[]).await.inserted, 1);
    assert_eq!(database.number(records).await, 3);
    assert_eq!(database.number(kinds).await, 2);
    database.check().await;
}

/// Takes, posts and gives back, again and again.
async fn work(database: &Database, accounts: [&Account; 2], rounds: i64) {
    let mut guard = database.instance().await;
    let mut next = 1;
    for round in 0..rounds {
        let account = accounts[usize::from(round % 2 == 1)];
        let counters: Vec<CounterKey> = accounts
            .iter()
            .flat_map(|account| [KEY, TENANT].map(|kind| account.counter(kind)))
            .collect();
        database.lease(&mut guard, &counters, tenfold(100)).await;
        let records = account.held_records(next, 3, &[TENANT, KEY]);
        next += 3;
        assert_eq!(post(database, &mut guard, &records, &[]).await.inserted, 3);
        let (_, leased) = leases(database, guard).await;
        let policy = |rows: &[LockedCounter], _live: u32| {
            let back = |row: &LockedCounter| LeaseChange {
                delta: Amounts::ZERO.minus(row.leased),
                recall: None,
            };
            rows.iter().map(back).collect()
        };
        let keys: Vec<CounterKey> = leased.iter().map(|lease| lease.key).collect();
        let moved = database
            .storage
            .move_leases(guard, &keys, &policy, NOW)
            .await;
        moved.unwrap();
        guard.seq += 1;
    }
}

async fn two_instances_on_the_same_counters_do_not_stand_in_each_others_way(database: &Database) {
    const ROUNDS: i64 = 200;
    let (acme, other) = (
        database.account("acme").await,
        database.account("other").await,
    );
    for account in [&acme, &other] {
        set_cap(database, account, KEY, cap(1 << 40, 1 << 40)).await;
    }
    // In opposite orders: one that locked as it was told would wait for the other for ever.
    tokio::join!(
        work(database, [&acme, &other], ROUNDS),
        work(database, [&other, &acme], ROUNDS)
    );
    for account in [&acme, &other] {
        for kind in [TENANT, KEY] {
            let balance = database.balance(account.counter(kind)).await;
            assert_eq!(
                (balance.used, balance.held),
                (tenfold(ROUNDS * 90), Amounts::ZERO)
            );
        }
    }
    database.check().await;
}

async fn leases_and_caps_at_once_never_pass_the_cap(database: &Database) {
    let account = database.account("acme").await;
    set_cap(database, &account, TENANT, cap(70, 700)).await;
    let counter = account.counter(TENANT);
    let greedy = |rows: &[LockedCounter], _live: u32| {
        let take = |row: &LockedCounter| LeaseChange {
            delta: tenfold(10).min(row.balance.room()).max(Amounts::ZERO),
            recall: Some(true),
        };
        rows.iter().map(take).collect()
    };
    let mut guards = Vec::new();
    for _ in 0..4 {
        guards.push(database.instance().await);
    }
    let run = async |mut guard: Guard| {
        for _ in 0..5 {
            let moved = database
                .storage
                .move_leases(guard, &[counter], &greedy, NOW)
                .await;
            moved.unwrap();
            guard.seq += 1;
        }
    };
    let change = async {
        for tokens in [50, 90, 60] {
            set_cap(database, &account, TENANT, cap(tokens, tokens * 10)).await;
        }
    };
    tokio::join!(
        run(guards[0]),
        run(guards[1]),
        run(guards[2]),
        run(guards[3]),
        change
    );
    let held = database.balance(counter).await.held;
    assert!(
        (60..=90).contains(&held.tokens) && held.nano == held.tokens * 10,
        "{held:?}"
    );
    database.check().await;
}

async fn caps_of_money_are_set_and_kept(database: &Database) {
    let account = database.account("acme").await;
    set_cap(database, &account, KEY, cap(100, 700)).await;
    // A number alone is of tokens.
    let scope = account.scope(KEY);
    let set = database
        .storage
        .set_quota(scope, account.tenant.id, Some(50), NOW)
        .await;
    assert!(set.unwrap());
    assert_eq!(
        database.balance(account.counter(KEY)).await.cap,
        cap(50, 700)
    );
    let peaks = "SELECT COUNT(*) FROM counters WHERE scope = 'key' AND peak_cap_tokens = 100 AND peak_cap_nano = 700";
    assert_eq!(database.number(peaks).await, 2, "this month and the next");
    set_cap(
        database,
        &account,
        KEY,
        Cap {
            tokens: Some(200),
            nano: None,
        },
    )
    .await;
    let peaks = "SELECT COUNT(*) FROM counters WHERE scope = 'key' AND peak_cap_tokens = 200 AND peak_cap_nano IS NULL";
    assert_eq!(database.number(peaks).await, 2);
    let refused = database
        .storage
        .set_quota(scope, account.tenant.id, cap(1, -1), NOW)
        .await;
    assert!(matches!(refused, Err(StoreError::Internal { .. })));
    database.check().await;
}

async fn instances_have_a_rank_among_those_that_live(database: &Database) {
    let mut guards = [
        database.instance().await,
        database.instance().await,
        database.instance().await,
    ];
    guards.sort_by_key(|guard| guard.instance_id);
    let rank = async |guard: &Guard, now: UnixMillis| {
        let instance = guard.instance_id;
        let rank = database.storage.instance_rank(instance, now).await.unwrap();
        (rank.instances.get(), rank.rank)
    };
    for (at, guard) in (0..).zip(&guards) {
        assert_eq!(rank(guard, NOW).await, (3, at));
    }
    // The first has not been heard of for long; the others have.
    let later = UnixMillis(NOW.0 + 60_000);
    for guard in &guards[1..] {
        database.storage.heartbeat(*guard, later).await.unwrap();
    }
    assert_eq!(rank(&guards[2], later).await, (2, 1));
    // One that nobody has heard of counts itself.
    assert_eq!(rank(&guards[0], later).await, (3, 0));
}

on_both! {
    instances_have_a_rank_among_those_that_live,
    a_lease_is_taken_and_given_back_in_both_units,
    what_does_not_fit_in_one_of_three_scopes_changes_nothing,
    without_a_cap_everything_fits,
    a_counter_that_is_missing_is_made_with_its_cap_and_what_was_used,
    a_policy_sees_what_is_locked_and_who_lives,
    a_policy_with_a_defect_is_refused,
    recalled_counters_are_told_to_those_who_lease_them,
    a_post_moves_the_charge_and_leaves_the_rest_of_the_hold,
    a_charge_beyond_its_lease_is_refused_and_can_be_set_aside,
    what_was_charged_without_a_hold_is_counted_beyond_the_cap,
    what_is_owed_beyond_the_hold_is_kept_apart,
    every_transaction_needs_the_guard,
    after_a_lost_answer_the_database_tells_what_happened,
    what_a_database_lost_is_leased_and_posted_again,
    what_records_share_is_stored_again_where_a_database_lost_it,
    two_instances_on_the_same_counters_do_not_stand_in_each_others_way,
    leases_and_caps_at_once_never_pass_the_cap,
    caps_of_money_are_set_and_kept,
}
