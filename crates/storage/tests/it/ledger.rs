use std::sync::Arc;

use sluice_domain::id::{BootId, InstanceId, RequestId, TenantId};
use sluice_domain::ports::{Guard, InstanceState, LedgerStore, PostMode, StoreError};
use sluice_domain::quota::{CounterKey, ScopeKind};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::{LocalDay, Month, TimeZone, parse_rfc3339};
use sluice_domain::usage::MAX_AMOUNT;

use crate::fixture::{Account, Database, NOW, id};

fn month() -> Month {
    TimeZone::utc().period_of(NOW).month
}

async fn post(database: &Database, guard: &mut Guard, records: &[NumberedRecord]) -> usize {
    let posted = database
        .storage
        .post_batch(*guard, PostMode::Live, records, &[], NOW)
        .await
        .unwrap();
    guard.seq += 1;
    posted.inserted
}

async fn count(database: &Database, table: &str) -> i64 {
    database
        .number(&format!("SELECT COUNT(*) FROM {table}"))
        .await
}

/// Checks the identities of the ledger that must hold in every snapshot.
async fn check_sums(database: &Database) {
    let used = database
        .number("SELECT COALESCE(SUM(used_tokens), 0) FROM counters WHERE scope = 'tenant'")
        .await;
    let records = database
        .number("SELECT COALESCE(SUM(quota_tokens), 0) FROM usage_records")
        .await;
    let entries = database
        .number(
            "SELECT COALESCE(SUM(e.amount_tokens), 0) FROM ledger_entries e \
             JOIN counters c ON c.counter_id = e.counter_id WHERE c.scope = 'tenant'",
        )
        .await;
    assert_eq!(used, records + entries, "used = records + entries");
    for table in ["rollup_daily", "rollup_monthly"] {
        let tokens = format!("SELECT COALESCE(SUM(quota_tokens), 0) FROM {table}");
        assert_eq!(database.number(&tokens).await, records, "records = {table}");
        let requests = format!("SELECT COALESCE(SUM(requests), 0) FROM {table}");
        assert_eq!(
            database.number(&requests).await,
            count(database, "usage_records").await,
            "{table}"
        );
    }
    let numbers =
        "SELECT COUNT(*) FROM instances WHERE posted_rows + quarantined_rows <> posted_no";
    assert_eq!(database.number(numbers).await, 0, "every number is a row");
    database.check().await;
}

async fn a_batch_moves_everything_once(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let records = account.records(1, 300);
    assert_eq!(post(database, &mut guard, &records).await, 300);
    check_sums(database).await;
    for _ in 0..3 {
        assert_eq!(post(database, &mut guard, &records).await, 0, "again");
        check_sums(database).await;
    }
    let overlapping = [&records[250..], &account.records(301, 20)].concat();
    assert_eq!(post(database, &mut guard, &overlapping).await, 20);
    check_sums(database).await;
    for (table, rows) in [
        ("usage_records", 320),
        ("attempts", 320),
        ("record_details", 320),
        ("quarantine", 0),
    ] {
        assert_eq!(count(database, table).await, rows, "{table}");
    }
    let row = database
        .storage
        .find_instance(guard.instance_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.posted_no, row.seq), (320, guard.seq));
    let balance = database
        .storage
        .load_counters(&[account.counter(ScopeKind::Tenant)])
        .await;
    assert_eq!(balance.unwrap()[0].used.tokens, 320 * 30);
}

/// Each row of the ledger without what tells requests apart, in words of both databases.
async fn rows(database: &Database, first: i64, last: i64) -> Vec<String> {
    let columns = [
        "r.tenant_id",
        "r.user_id",
        "r.key_id",
        "r.period",
        "r.statement_period",
        "r.local_day",
        "r.started_at_ms",
        "r.endpoint",
        "CAST(r.streams AS INTEGER)",
        "r.requested_model",
        "r.upstream_id",
        "r.upstream_model",
        "r.upstream_key_id",
        "r.attempt_count",
        "r.attempt_status",
        "r.attempt_started_at_ms",
        "r.attempt_head_ms",
        "r.ending",
        "r.stage",
        "r.status",
        "r.error_code",
        "r.basis",
        "r.input_tokens",
        "r.cached_input_tokens",
        "r.cache_write_input_tokens",
        "r.output_tokens",
        "r.reasoning_output_tokens",
        "r.quota_tokens",
        "r.bound_tokens",
        "r.bound_nano",
        "r.charge_nano",
        "r.excess_tokens",
        "r.excess_nano",
        "r.first_event_ms",
        "r.duration_ms",
        "d.ip",
        "d.user_agent",
        "f.n",
        "f.error",
    ];
    let text = columns.map(|column| {
        if database.is_sqlite() && column.ends_with("_id") {
            format!("COALESCE(hex({column}), '-')")
        } else {
            format!("COALESCE(CAST({column} AS TEXT), '-')")
        }
    });
    let sql = format!(
        "SELECT {} FROM usage_records r \
         LEFT JOIN record_details d ON d.request_id = r.request_id \
         LEFT JOIN failed_attempts f ON f.request_id = r.request_id \
         WHERE r.post_no BETWEEN {first} AND {last} ORDER BY r.post_no",
        text.join(" || '|' || ")
    );
    database.texts(&sql).await
}

async fn records_of_one_kind_are_stored_as_each_alone_would_be(database: &Database) {
    const COUNT: i64 = 40;
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    // What may differ within a kind does, with an agent for all and with several; what often is
    // equal is so in some.
    for (agents, classes, terms) in [
        (1, 1, 1),
        (3, 1, 1),
        (1, 0, 1),
        (3, 0, 1),
        (1, 0, 0),
        (3, 0, 0),
    ] {
        let mut next = guard_next(database, &guard).await;
        let mut batch = account.records(next, COUNT);
        for (at, numbered) in (0_i64..).zip(&mut batch) {
            let (open, end) = (&mut numbered.record.open, &mut numbered.record.end);
            open.started_at.0 += at;
            open.caller.user_agent = Some(Arc::from(format!("agent {}", at % agents)));
            end.usage.input = 100 + at;
            end.usage.cached_input = 200 + at * classes;
            end.usage.cache_write_input = 300 + at * classes;
            end.usage.output = 400 + at;
            end.usage.reasoning_output = 500 + at * classes;
            end.owed.tokens = 600 + at;
            end.owed.nano = 650 + at * terms;
            open.hold.bound.tokens = 2_000 + at * terms;
            open.hold.bound.nano = 3_000 + at * terms;
            end.first_event_ms = Some(700 + at).filter(|_| at % 2 == 0);
            end.duration_ms = 800 + at;
            let mut tried = end.attempts[0].clone();
            tried.error = Some("connect".into());
            end.attempts[0].started_at.0 += 900 + at;
            end.attempts[0].head_ms = 1_000 + at;
            end.attempts.insert(0, tried);
        }
        assert_eq!(post(database, &mut guard, &batch).await, batch.len());
        let together = rows(database, next, next + COUNT - 1).await;
        assert_eq!(together.len(), batch.len());
        next += COUNT;
        let first = next;
        for numbered in &mut batch {
            numbered.post_no = next;
            numbered.record.open.request_id = RequestId::from_uuid(id());
            assert_eq!(
                post(database, &mut guard, std::slice::from_ref(numbered)).await,
                1
            );
            next += 1;
        }
        assert_eq!(together, rows(database, first, next - 1).await);
    }
    check_sums(database).await;
}

async fn guard_next(database: &Database, guard: &Guard) -> i64 {
    let row = database.storage.find_instance(guard.instance_id).await;
    row.unwrap().unwrap().posted_no + 1
}

async fn kinds_large_and_small_are_booked_in_one_batch(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let mut batch = account.records(1, 100);
    for (at, numbered) in batch.iter_mut().enumerate() {
        // Two kinds in turns, and a few of many others.
        let model = match at % 10 {
            0 => format!("rare-{at}"),
            odd if odd % 2 == 1 => "odd".to_owned(),
            _ => "even".to_owned(),
        };
        numbered.record.open.requested_model = Arc::from(model);
    }
    assert_eq!(post(database, &mut guard, &batch).await, 100);
    assert_eq!(post(database, &mut guard, &batch).await, 0, "again");
    check_sums(database).await;
    for (model, rows) in [("odd", 50), ("even", 40), ("rare-0", 1)] {
        let of_model = format!("usage_records WHERE requested_model = '{model}'");
        assert_eq!(count(database, &of_model).await, rows, "{model}");
        let sums = format!("SELECT requests FROM rollup_monthly WHERE model = '{model}'");
        assert_eq!(database.number(&sums).await, rows, "{model}");
    }
}

async fn every_size_of_batch_is_posted(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let mut next = 1;
    for size in [1, 2, 3, 7, 8, 9, 31, 33, 127, 129, 257] {
        let records = account.records(next, size);
        assert_eq!(
            post(database, &mut guard, &records).await,
            records.len(),
            "{size}"
        );
        next += size;
    }
    check_sums(database).await;
    assert_eq!(count(database, "attempts").await, next - 1);
}

async fn balances_come_back_for_scopes_that_are_counted(database: &Database) {
    let account = database.account("acme").await;
    let scope = account.scope(ScopeKind::Key);
    database
        .storage
        .set_quota(scope, account.tenant.id, Some(100), NOW)
        .await
        .unwrap();
    let guard = database.instance().await;
    let mut posted = database
        .storage
        .post_batch(guard, PostMode::Live, &account.records(1, 2), &[], NOW)
        .await
        .unwrap();
    posted.counters.sort_by_key(|counter| counter.key.scope);
    let seen: Vec<_> = posted
        .counters
        .iter()
        .map(|c| (c.key.scope.kind, c.cap.tokens, c.used.tokens))
        .collect();
    assert_eq!(
        seen,
        [
            (ScopeKind::Tenant, None, 60),
            (ScopeKind::Key, Some(100), 60)
        ]
    );
}

async fn a_guard_that_does_not_fit_does_nothing(database: &Database) {
    let account = database.account("acme").await;
    let guard = database.instance().await;
    let records = account.records(1, 2);
    let foreign = BootId::from_uuid(id());
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
        Guard {
            instance_id: InstanceId::from_uuid(id()),
            ..guard
        },
    ] {
        let error = database
            .storage
            .post_batch(wrong, PostMode::Live, &records, &[], NOW)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Guard), "{error:?}");
        let error = database
            .storage
            .quarantine(wrong, PostMode::Live, &records[0], "x", NOW)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Guard), "{error:?}");
    }
    let beat = database
        .storage
        .heartbeat(
            Guard {
                boot_id: foreign,
                ..guard
            },
            NOW,
        )
        .await;
    assert!(matches!(beat, Err(StoreError::Guard)));
    database.storage.heartbeat(guard, NOW).await.unwrap();
    assert_eq!(
        count(database, "usage_records").await + count(database, "quarantine").await,
        0
    );
    let row = database
        .storage
        .find_instance(guard.instance_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.seq, row.posted_no), (guard.seq, 0));
}

async fn an_instance_is_claimed_by_its_own_boots_only(database: &Database) {
    let storage = &database.storage;
    let instance = InstanceId::from_uuid(id());
    let [first, second, third, foreign] = std::array::from_fn(|_| BootId::from_uuid(id()));
    assert!(storage.find_instance(instance).await.unwrap().is_none());
    let claim = async |boots: &[BootId], boot| {
        let claimed = storage.claim_instance(instance, boots, boot, NOW).await;
        claimed.map(|row| (row.boot_id, row.seq, row.state, row.posted_no))
    };
    let live = InstanceState::Live;
    assert_eq!(claim(&[], first).await.unwrap(), (first, 0, live, 0));
    assert_eq!(claim(&[first], second).await.unwrap(), (second, 0, live, 0));
    // A claim does not count: the number would hide that the database went back. Nor does the same
    // one again, whose answer was lost.
    for boots in [&[first][..], &[first, second], &[]] {
        assert_eq!(claim(boots, second).await.unwrap(), (second, 0, live, 0));
    }
    for boots in [&[first][..], &[foreign], &[]] {
        let error = claim(boots, third).await.unwrap_err();
        assert!(matches!(error, StoreError::Guard), "{error:?}");
    }
    let found = storage.find_instance(instance).await.unwrap().unwrap();
    assert_eq!((found.boot_id, found.seq), (second, 0));
    // A start between failed before it claimed: any of the folder's boots may be the last.
    let claimed = claim(&[first, second, foreign], third).await;
    assert_eq!(claimed.unwrap(), (third, 0, live, 0));
}

async fn a_gap_before_or_inside_a_batch_is_refused(database: &Database) {
    let account = database.account("acme").await;
    let guard = database.instance().await;
    let holes = [account.record(1), account.record(3)];
    for records in [account.records(2, 1), holes.to_vec(), account.records(0, 1)] {
        let error = database
            .storage
            .post_batch(guard, PostMode::Live, &records, &[], NOW)
            .await
            .unwrap_err();
        assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
    }
    assert_eq!(count(database, "usage_records").await, 0);
    assert_eq!(
        database
            .storage
            .find_instance(guard.instance_id)
            .await
            .unwrap()
            .unwrap()
            .seq,
        guard.seq
    );
}

async fn a_request_id_of_another_post_is_set_aside_and_charged(database: &Database) {
    let account = database.account("acme").await;
    let scope = account.scope(ScopeKind::Key);
    database
        .storage
        .set_quota(scope, account.tenant.id, Some(1_000), NOW)
        .await
        .unwrap();
    let (mut one, mut two) = (database.instance().await, database.instance().await);
    let first = account.records(1, 3);
    assert_eq!(post(database, &mut one, &first).await, 3);
    let mut second = account.records(1, 3);
    second[1].record.open.request_id = first[0].record.open.request_id;
    assert_eq!(post(database, &mut two, &second).await, 2);
    check_sums(database).await;
    assert_eq!(count(database, "quarantine").await, 1);
    assert_eq!(count(database, "ledger_entries").await, 2, "tenant and key");
    let used = database
        .storage
        .load_counters(&[account.counter(ScopeKind::Key)])
        .await
        .unwrap()[0]
        .used
        .tokens;
    assert_eq!(used, 180);
    // Repeating changes nothing.
    assert_eq!(post(database, &mut two, &second).await, 0);
    check_sums(database).await;
    assert_eq!(count(database, "quarantine").await, 1);
    // Twice in one batch is the same thing.
    let mut third = account.records(4, 2);
    third[1].record.open.request_id = third[0].record.open.request_id;
    assert_eq!(post(database, &mut two, &third).await, 1);
    check_sums(database).await;
    assert_eq!(count(database, "quarantine").await, 2);
}

async fn a_bad_record_is_refused_and_can_be_set_aside(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let mut records = account.records(1, 3);
    records[1].record.end.usage.output = -1;
    let error = database
        .storage
        .post_batch(guard, PostMode::Live, &records, &[], NOW)
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Internal { .. }), "{error:?}");
    assert_eq!(count(database, "usage_records").await, 0);
    assert_eq!(post(database, &mut guard, &records[..1]).await, 1);
    database
        .storage
        .quarantine(guard, PostMode::Live, &records[1], "negative\0 output", NOW)
        .await
        .unwrap();
    guard.seq += 1;
    assert_eq!(post(database, &mut guard, &records[2..]).await, 1);
    check_sums(database).await;
    let reasons = database.texts("SELECT reason FROM quarantine").await;
    assert_eq!(reasons, ["negative\u{fffd} output"]);
    let stored = database.texts("SELECT record FROM quarantine").await;
    assert!(
        stored[0].contains("\"output_tokens\":-1") && !stored[0].contains("127.0.0.1"),
        "{stored:?}"
    );
    // A repetition of the quarantine, with the next guard, changes nothing.
    database
        .storage
        .quarantine(guard, PostMode::Live, &records[1], "again", NOW)
        .await
        .unwrap();
    check_sums(database).await;
}

async fn amounts_beyond_the_largest_are_refused(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let huge = |post_no, tokens| {
        let mut record = account.record(post_no);
        record.record.end.owed.tokens = tokens;
        record.record.open.hold.bound.tokens = tokens;
        record
    };
    assert_eq!(post(database, &mut guard, &[huge(1, MAX_AMOUNT)]).await, 1);
    for tokens in [1, MAX_AMOUNT, i64::MAX] {
        let error = database
            .storage
            .post_batch(guard, PostMode::Live, &[huge(2, tokens)], &[], NOW)
            .await
            .unwrap_err();
        assert!(
            matches!(error, StoreError::Internal { .. }),
            "{tokens}: {error:?}"
        );
    }
    let used = "SELECT used_tokens FROM counters WHERE scope = 'tenant' AND used_tokens > 0";
    assert_eq!(database.number(used).await, MAX_AMOUNT);
    // Setting it aside works although the counter is full.
    database
        .storage
        .quarantine(guard, PostMode::Live, &huge(2, MAX_AMOUNT), "too much", NOW)
        .await
        .unwrap();
    check_sums(database).await;
    let raw = database
        .execute("UPDATE counters SET held_tokens = 4611686018427387905")
        .await;
    assert!(raw.is_err());
    let raw = database
        .execute("UPDATE counters SET held_tokens = 9223372036854775807 + 1")
        .await;
    assert!(raw.is_err());
}

async fn foreign_text_poisons_no_batch(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let mut records = account.records(1, 3);
    records[0].record.open.requested_model = Arc::from("evil\0model");
    records[1].record.open.requested_model = Arc::from("é".repeat(5_000));
    records[1].record.end.attempts[0].upstream_model = Arc::from("\0".repeat(300));
    records[2].record.open.caller.user_agent = Some(Arc::from("agent\0"));
    assert_eq!(post(database, &mut guard, &records).await, 3);
    check_sums(database).await;
    let models = database
        .texts("SELECT requested_model FROM usage_records ORDER BY post_no")
        .await;
    assert_eq!(models[0], "evil\u{fffd}model");
    assert!(models[1].len() <= 256 && models[1].starts_with('é'));
}

async fn records_and_entries_are_append_only(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    assert_eq!(post(database, &mut guard, &account.records(1, 2)).await, 2);
    database
        .storage
        .quarantine(guard, PostMode::Live, &account.record(3), "test", NOW)
        .await
        .unwrap();
    for sql in [
        "UPDATE usage_rows SET quota_tokens = 0",
        "UPDATE usage_rows SET duration_ms = duration_ms",
        "DELETE FROM usage_rows",
        "UPDATE record_kinds SET status = status",
        "DELETE FROM record_kinds",
        "UPDATE ledger_entries SET amount_tokens = 0",
        "DELETE FROM ledger_entries",
    ] {
        assert!(database.execute(sql).await.is_err(), "{sql}");
    }
    if !database.is_sqlite() {
        for sql in [
            "TRUNCATE usage_rows",
            "TRUNCATE usage_rows_2026_11",
            "DELETE FROM usage_rows_2026_11",
            "TRUNCATE record_kinds",
            "TRUNCATE ledger_entries",
        ] {
            assert!(database.execute(sql).await.is_err(), "{sql}");
        }
    }
    assert_eq!(count(database, "usage_records").await, 2);
    // Personal data can be erased.
    assert_eq!(
        database
            .execute("UPDATE callers SET ip = NULL")
            .await
            .unwrap(),
        1
    );
    assert_eq!(count(database, "usage_records").await, 2);
    database.check().await;
}

async fn a_closed_month_takes_nothing_and_late_records_go_to_the_oldest_open_one(
    database: &Database,
) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    assert_eq!(post(database, &mut guard, &account.records(1, 1)).await, 1);
    database.close_month(&account.tenant, month()).await;
    // By hand: refused by the database itself, on SQLite where the month is summed.
    let by_hand = if database.is_sqlite() {
        "UPDATE rollup_monthly SET requests = requests + 1".to_owned()
    } else {
        format!(
            "INSERT INTO usage_rows (origin, request_id, kind_id, started_at_ms, duration_ms, input_tokens, \
                 output_tokens, bound_tokens, bound_nano, quota_tokens, charge_nano) \
             SELECT origin + 99, {}, kind_id, started_at_ms, 0, 0, 0, 0, 0, 0, 0 FROM usage_rows",
            database.literal(id())
        )
    };
    let error = database.execute(&by_hand).await.unwrap_err();
    assert!(
        error.to_string().contains("the statement period is closed"),
        "{error}"
    );
    // Posted late: the quota month stays, the statement month is the next.
    assert_eq!(post(database, &mut guard, &account.records(2, 1)).await, 1);
    let next = month().next();
    let late = format!(
        "SELECT COUNT(*) FROM usage_records WHERE period = {} AND statement_period = {}",
        month().as_number(),
        next.as_number()
    );
    assert_eq!(database.number(&late).await, 1);
    // All months closed: the one after them is opened.
    database.close_month(&account.tenant, next).await;
    assert_eq!(post(database, &mut guard, &account.records(3, 1)).await, 1);
    let opened = format!(
        "SELECT COUNT(*) FROM usage_records WHERE statement_period = {}",
        next.next().as_number()
    );
    assert_eq!(database.number(&opened).await, 1);
    check_sums(database).await;
}

async fn a_month_that_is_not_in_the_calendar_is_written(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let old = Month::from_number(202_603).unwrap();
    let mut records = account.records(1, 2);
    records[0].record.open.period = old;
    records[0].record.open.local_day = LocalDay(20_260_331);
    records[0].record.open.started_at = parse_rfc3339("2026-03-31T12:00:00Z").unwrap();
    // The ledger outlives configuration: a tenant that nobody knows.
    records[1].record.open.payer.tenant_id = TenantId::from_uuid(id());
    assert_eq!(post(database, &mut guard, &records).await, 2);
    check_sums(database).await;
    let bounds = TimeZone::utc().period(old);
    let written = format!(
        "SELECT COUNT(*) FROM periods WHERE period = 202603 AND starts_at_ms = {} AND ends_at_ms = {}",
        bounds.starts_at.0, bounds.ends_at.0
    );
    assert_eq!(database.number(&written).await, 1);
}

async fn a_new_month_starts_with_the_caps_of_the_quotas(database: &Database) {
    let account = database.account("acme").await;
    let scope = account.scope(ScopeKind::Key);
    database
        .storage
        .set_quota(scope, account.tenant.id, Some(77), NOW)
        .await
        .unwrap();
    let mut guard = database.instance().await;
    let mut record = account.record(1);
    let later = month().next().next();
    record.record.open.period = later;
    assert_eq!(post(database, &mut guard, &[record]).await, 1);
    let balance = database
        .storage
        .load_counters(&[CounterKey {
            month: later,
            ..account.counter(ScopeKind::Key)
        }])
        .await
        .unwrap()[0];
    assert_eq!((balance.cap.tokens, balance.used.tokens), (Some(77), 30));
}

async fn two_tenants_in_one_batch_stay_apart(database: &Database) {
    let (acme, other) = (
        database.account("acme").await,
        database.account("other").await,
    );
    let mut guard = database.instance().await;
    let mut records: Vec<NumberedRecord> = Vec::new();
    for (no, account) in (1..).zip([&acme, &other, &acme, &acme]) {
        records.push(account.record(no));
    }
    assert_eq!(post(database, &mut guard, &records).await, 4);
    check_sums(database).await;
    // In the order that is asked for, and as often.
    let keys = [&acme, &other, &acme].map(|account| account.counter(ScopeKind::Tenant));
    let found = database.storage.load_counters(&keys).await.unwrap();
    let used: Vec<_> = found
        .iter()
        .map(|counter| (counter.key, counter.used.tokens))
        .collect();
    assert_eq!(used, [(keys[0], 90), (keys[1], 30), (keys[2], 90)]);
}

async fn an_empty_batch_only_passes_the_guard(database: &Database) {
    let mut guard = database.instance().await;
    assert_eq!(post(database, &mut guard, &[]).await, 0);
    assert_eq!(
        database
            .storage
            .find_instance(guard.instance_id)
            .await
            .unwrap()
            .unwrap()
            .seq,
        guard.seq
    );
}

async fn no_record_lands_in_the_default_partition(database: &Database) {
    if database.is_sqlite() {
        return;
    }
    let account: Account = database.account("acme").await;
    let mut guard = database.instance().await;
    assert_eq!(post(database, &mut guard, &account.records(1, 3)).await, 3);
    assert_eq!(count(database, "usage_rows_2026_11").await, 3);
    assert_eq!(count(database, "usage_rows_default").await, 0);
    // An id of a wrong clock does not stop the batch.
    let mut stray = account.record(4);
    stray.record.open.request_id =
        RequestId::from_uuid(sluice_domain::id::uuid_v7(4_000_000_000_000, [1; 10]));
    assert_eq!(post(database, &mut guard, &[stray]).await, 1);
    assert_eq!(count(database, "usage_rows_default").await, 1);
}

on_both! {
    a_batch_moves_everything_once,
    records_of_one_kind_are_stored_as_each_alone_would_be,
    kinds_large_and_small_are_booked_in_one_batch,
    every_size_of_batch_is_posted,
    balances_come_back_for_scopes_that_are_counted,
    a_guard_that_does_not_fit_does_nothing,
    an_instance_is_claimed_by_its_own_boots_only,
    a_gap_before_or_inside_a_batch_is_refused,
    a_request_id_of_another_post_is_set_aside_and_charged,
    a_bad_record_is_refused_and_can_be_set_aside,
    amounts_beyond_the_largest_are_refused,
    foreign_text_poisons_no_batch,
    records_and_entries_are_append_only,
    a_closed_month_takes_nothing_and_late_records_go_to_the_oldest_open_one,
    a_month_that_is_not_in_the_calendar_is_written,
    a_new_month_starts_with_the_caps_of_the_quotas,
    two_tenants_in_one_batch_stay_apart,
    an_empty_batch_only_passes_the_guard,
    no_record_lands_in_the_default_partition,
}
