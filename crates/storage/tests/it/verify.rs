use sluice_domain::ports::{LedgerStore, PostMode};
use sluice_domain::quota::{Cap, ScopeKind};
use sluice_domain::time::UnixMillis;
use sluice_storage::verify::Finding;

use crate::fixture::{Account, Database, FORCED, NOW, id, tenfold};

/// A ledger with something in every table that is checked.
async fn ledger(database: &Database) -> Account {
    let account = database.account("acme").await;
    let cap = Cap {
        tokens: Some(10_000),
        nano: Some(100_000),
    };
    for kind in [ScopeKind::User, ScopeKind::Key] {
        let set = database
            .storage
            .set_quota(account.scope(kind), account.tenant.id, cap, NOW);
        assert!(set.await.unwrap());
    }
    let tenant = account.counter(ScopeKind::Tenant);
    let (mut one, mut two) = (database.instance().await, database.instance().await);
    let records = account.held_records(1, 3, &[ScopeKind::Tenant]);
    for guard in [&mut one, &mut two] {
        database.lease(guard, &[tenant], tenfold(1_000)).await;
    }
    let posted = database
        .storage
        .post_batch(one, PostMode::Live, &records, &[], NOW)
        .await;
    assert_eq!(posted.unwrap().inserted, 3);
    let resolved = database
        .storage
        .resolve_instance(two.instance_id, FORCED, NOW)
        .await;
    resolved.unwrap();
    account
}

/// Makes a change by hand, expects exactly these rules to be broken, and undoes it.
async fn expect(database: &Database, rules: &[&str], change: &[&str], undo: &[&str]) {
    for sql in change {
        assert!(database.execute(sql).await.unwrap() > 0, "{sql}");
    }
    assert_eq!(database.faults().await, rules, "{change:?}");
    for sql in undo {
        assert!(database.execute(sql).await.unwrap() > 0, "{sql}");
    }
    if !undo.is_empty() {
        database.check().await;
    }
}

async fn a_sound_ledger_has_no_finding(database: &Database) {
    assert_eq!(database.storage.verify_ledger(NOW).await.unwrap(), []);
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let tenant = account.counter(ScopeKind::Tenant);
    database.lease(&mut guard, &[tenant], tenfold(500)).await;
    let records = account.held_records(1, 3, &[ScopeKind::Tenant]);
    let posted = database
        .storage
        .post_batch(guard, PostMode::Live, &records, &[], NOW)
        .await;
    posted.unwrap();
    assert_eq!(database.storage.verify_ledger(NOW).await.unwrap(), []);
}

async fn counters_that_do_not_add_up_are_found(database: &Database) {
    ledger(database).await;
    for unit in ["tokens", "nano"] {
        let held = |by: &str| {
            format!(
                "UPDATE counters SET held_{unit} = held_{unit} {by} WHERE scope = 'tenant' AND held_tokens > 0"
            )
        };
        expect(database, &["V1"], &[&held("+ 1")], &[&held("- 1")]).await;
        for scope in ["tenant", "user", "key"] {
            let used = |by: &str| {
                format!(
                    "UPDATE counters SET used_{unit} = used_{unit} {by} WHERE scope = '{scope}' AND used_tokens > 0"
                )
            };
            expect(database, &["V2"], &[&used("- 1")], &[&used("+ 1")]).await;
        }
        let peak = |to: &str| {
            format!(
                "UPDATE counters SET peak_cap_{unit} = {to} WHERE scope = 'key' AND used_tokens > 0"
            )
        };
        let used = format!("used_{unit} - 1");
        expect(database, &["V3"], &[&peak(&used)], &[&peak("NULL")]).await;
        let next = |by: &str| {
            format!(
                "UPDATE counters SET cap_{unit} = cap_{unit} {by} WHERE scope = 'key' AND period = 202612"
            )
        };
        expect(database, &["V13"], &[&next("+ 1")], &[&next("- 1")]).await;
        let quota = |to: &str| format!("UPDATE quotas SET cap_{unit} = {to} WHERE scope = 'key'");
        let was = if unit == "tokens" { "10000" } else { "100000" };
        expect(database, &["V13"], &[&quota("5")], &[&quota(was)]).await;
        expect(database, &["V13"], &[&quota("NULL")], &[&quota(was)]).await;
    }
    let lease = format!("UPDATE leases SET counter_id = {}", database.literal(id()));
    expect(database, &["V1"], &[&lease], &[]).await;
}

async fn instances_that_do_not_add_up_are_found(database: &Database) {
    ledger(database).await;
    for column in [
        "posted_rows",
        "posted_no",
        "quarantined_rows",
        "dropped_rows",
    ] {
        let change = |by: &str| {
            format!("UPDATE instances SET {column} = {column} {by} WHERE state = 'live'")
        };
        expect(database, &["V4"], &[&change("+ 1")], &[&change("- 1")]).await;
    }
    let state = |from: &str, to: &str| {
        format!("UPDATE instances SET state = '{to}' WHERE state = '{from}'")
    };
    expect(database, &["V12"], &[&state("live", "resolved")], &[]).await;
    let back =
        "UPDATE instances SET state = 'live' WHERE instance_id IN (SELECT instance_id FROM leases)";
    assert_eq!(database.execute(back).await.unwrap(), 1);
    database.check().await;
    // Closed, with an exposure that nobody released.
    let [close, open] = [state("resolved", "closed"), state("closed", "resolved")];
    expect(database, &["V8"], &[&close], &[&open]).await;
    for unit in ["tokens", "nano"] {
        let flying = |to: &str| format!("UPDATE leases SET in_flight_{unit} = {to}");
        let more = flying(&format!("held_{unit} + 1"));
        expect(database, &["V12"], &[&more], &[&flying("0")]).await;
    }
    // More released than was exposed, which the counter knows of.
    let entry = database.literal(id());
    let release = format!(
        "INSERT INTO ledger_entries SELECT {entry}, 'release', instance_id, counter_id, NULL, -1001, 0, made_at_ms \
         FROM ledger_entries"
    );
    let used = "UPDATE counters SET used_tokens = used_tokens - 1001 WHERE scope = 'tenant' AND used_tokens > 0";
    let by_hand = database.execute(used).await;
    assert_eq!(by_hand.unwrap(), 1);
    assert_eq!(database.faults().await, ["V2"]);
    expect(database, &["V8"], &[&release], &[]).await;
}

async fn records_that_do_not_add_up_are_found(database: &Database) {
    ledger(database).await;
    for table in ["rollup_daily", "rollup_monthly"] {
        for column in [
            "requests",
            "failures",
            "cached_input_tokens",
            "quota_tokens",
            "charge_nano",
            "excess_tokens",
            "excess_nano",
        ] {
            let change = |by: &str| format!("UPDATE {table} SET {column} = {column} {by}");
            expect(database, &["V5"], &[&change("+ 1")], &[&change("- 1")]).await;
        }
    }
    database.unprotect().await;
    let of_post = |post_no: i64| format!("WHERE origin & 1099511627775 = {post_no}");
    let record = |set: &str| format!("UPDATE usage_rows SET {set} {}", of_post(2));
    let change = record("quota_tokens = 29");
    let undo = record("quota_tokens = 30");
    expect(database, &["V2", "V5"], &[&change], &[&undo]).await;
    let kind = |day: i32| format!("UPDATE record_kinds SET local_day = {day}");
    let (change, undo) = (kind(20_261_119), kind(20_261_118));
    expect(database, &["V5", "V15"], &[&change], &[&undo]).await;
    let start = |by: &str| record(&format!("started_at_ms = started_at_ms {by} 172800000"));
    expect(database, &["V7"], &[&start("-")], &[&start("+")]).await;
    // A record that vanished together with all that it was summed in.
    let gone = [
        format!("DELETE FROM usage_rows {}", of_post(3)),
        "UPDATE counters SET used_tokens = used_tokens - 30, used_nano = used_nano - 300 WHERE used_tokens > 0".to_owned(),
        less("rollup_daily"),
        less("rollup_monthly"),
    ];
    expect(database, &["V4"], &gone.each_ref().map(String::as_str), &[]).await;
    let findings = database.storage.verify_ledger(NOW).await.unwrap();
    let named = findings
        .iter()
        .filter(|finding| finding.key.starts_with("post 3 of ins_"));
    assert_eq!(named.count(), 1, "{findings:?}");
}

/// Takes one record of the fixture out of a rollup.
fn less(table: &str) -> String {
    format!(
        "UPDATE {table} SET requests = requests - 1, input_tokens = input_tokens - 20, \
             cached_input_tokens = cached_input_tokens - 5, output_tokens = output_tokens - 10, \
             quota_tokens = quota_tokens - 30, charge_nano = charge_nano - 300"
    )
}

async fn charges_that_do_not_fit_what_was_held_are_found(database: &Database) {
    ledger(database).await;
    database.unprotect().await;
    if !database.is_sqlite() {
        for constraint in ["bound_tokens", "bound_nano", "excess_tokens", "excess_nano"] {
            let drop = format!("ALTER TABLE usage_rows DROP CONSTRAINT usage_rows_{constraint}_ck");
            database.execute(&drop).await.unwrap();
        }
    }
    let by_hand = |set: &str| {
        let update = format!("UPDATE usage_rows SET {set} WHERE origin & 1099511627775 = 1");
        if database.is_sqlite() {
            format!(
                "PRAGMA ignore_check_constraints = ON; {update}; PRAGMA ignore_check_constraints = OFF"
            )
        } else {
            update
        }
    };
    for (change, undo) in [
        ("bound_tokens = 29", "bound_tokens = 100"),
        ("bound_nano = 299", "bound_nano = 1000"),
    ] {
        expect(database, &["V6"], &[&by_hand(change)], &[&by_hand(undo)]).await;
    }
    for (change, undo) in [
        ("excess_tokens = 1", "excess_tokens = 0"),
        ("excess_nano = 1", "excess_nano = 0"),
    ] {
        expect(
            database,
            &["V5", "V6"],
            &[&by_hand(change)],
            &[&by_hand(undo)],
        )
        .await;
    }
}

async fn kinds_that_were_changed_or_lost_are_found(database: &Database) {
    ledger(database).await;
    database.unprotect().await;
    for (column, wrong, right) in [
        ("requested_model", "'gpt-4'", "'gpt-4o'"),
        ("upstream_model", "NULL", "'gpt-4o'"),
        ("attempt_status", "201", "200"),
        ("error_code", "''", "NULL"),
        ("stage", "'held'", "'relaying'"),
    ] {
        let set = |value: &str| format!("UPDATE record_kinds SET {column} = {value}");
        let rules: &[&str] = if column == "requested_model" {
            &["V5", "V15"]
        } else {
            &["V15"]
        };
        expect(database, rules, &[&set(wrong)], &[&set(right)]).await;
    }
    // Its records are in no sum by tenant, key or day.
    let gone = "DELETE FROM record_kinds";
    expect(database, &["V2", "V5", "V15"], &[gone], &[]).await;
    let findings = database.storage.verify_ledger(NOW).await.unwrap();
    let lost = findings.iter().filter(|finding| {
        (finding.id, finding.table, finding.found.as_str()) == ("V15", "usage_rows", "none")
    });
    assert_eq!(lost.count(), 3);
}

async fn records_of_an_unknown_instance_are_found(database: &Database) {
    ledger(database).await;
    database.unprotect().await;
    let change =
        |by: &str| format!("UPDATE usage_rows SET origin = origin {by} 1000 * 1099511627776");
    expect(database, &["V4"], &[&change("+")], &[&change("-")]).await;
    assert!(database.execute(&change("+")).await.unwrap() > 0);
    let findings = database.storage.verify_ledger(NOW).await.unwrap();
    assert!(findings.iter().any(|finding| finding.key == "number 1001"));
}

async fn months_that_do_not_fit_are_found(database: &Database) {
    let account = ledger(database).await;
    let tenant = database.literal(account.tenant.id.as_uuid());
    let month = account.counter(ScopeKind::Tenant).month.as_number();
    let of_month = format!("WHERE tenant_id = {tenant} AND period = {month}");
    for by in [1, -1] {
        let change =
            |by: i64| format!("UPDATE periods SET ends_at_ms = ends_at_ms + {by} {of_month}");
        expect(database, &["V9"], &[&change(by)], &[&change(-by)]).await;
    }
    let statement = format!(
        "INSERT INTO statements (tenant_id, statement_period, version, totals, record_count, hash, closed_at_ms) \
         VALUES ({tenant}, {month}, 1, '{{}}', 4, {}, 0)",
        if database.is_sqlite() {
            "zeroblob(32)".to_owned()
        } else {
            "decode(repeat('00', 32), 'hex')".to_owned()
        }
    );
    let again = statement.replace(", 1, '{}', 4", ", 2, '{}', 3");
    expect(database, &["V10"], &[&statement], &[&again]).await;
    let stated = format!("DELETE FROM statements WHERE tenant_id = {tenant}");
    let state = |to: &str| format!("UPDATE periods SET state = '{to}' {of_month}");
    let (closed, open) = (state("closed"), state("open"));
    expect(database, &["V10"], &[&closed, &stated], &[&open]).await;
    let moved = |from: i32, to: i32| {
        format!(
            "UPDATE counters SET period = {to} WHERE scope = 'tenant' AND scope_id = {tenant} AND period = {from}"
        )
    };
    let (away, back) = (moved(month, 209_901), moved(209_901, month));
    expect(database, &["V2", "V7"], &[&away], &[&back]).await;
    database.unprotect().await;
    // Records, days and months agree on a day of another month.
    let day = |day: i32, by: &str| {
        [
            format!("UPDATE record_kinds SET local_day = {day}"),
            format!("UPDATE usage_rows SET started_at_ms = started_at_ms {by} 5529600000"),
            format!("UPDATE rollup_daily SET local_day = {day}"),
        ]
    };
    let (wrong, right) = (day(20_260_915, "-"), day(20_261_118, "+"));
    expect(
        database,
        &["V7", "V15"],
        &wrong.each_ref().map(String::as_str),
        &right.each_ref().map(String::as_str),
    )
    .await;
    let gone = format!("DELETE FROM periods {of_month}");
    expect(database, &["V7"], &[&gone], &[]).await;
}

async fn numbers_that_were_used_twice_and_stray_records_are_found(database: &Database) {
    let account = ledger(database).await;
    if database.is_sqlite() {
        // The database itself refuses the one, and has no partitions.
        database.unprotect().await;
        let twice = "UPDATE usage_rows SET origin = 1";
        assert!(database.execute(twice).await.is_err());
        return;
    }
    database.unprotect().await;
    let change = |from: i64, to: i64| {
        format!(
            "UPDATE usage_rows SET origin = origin + {} WHERE request_id = (SELECT request_id FROM usage_rows ORDER BY request_id DESC LIMIT 1)",
            to - from
        )
    };
    expect(database, &["V11"], &[&change(3, 2)], &[&change(2, 3)]).await;
    let mut guard = database.instance().await;
    let tenant = account.counter(ScopeKind::Tenant);
    database.lease(&mut guard, &[tenant], tenfold(100)).await;
    let mut stray = account.held_records(1, 1, &[ScopeKind::Tenant]);
    stray[0].record.open.request_id = sluice_domain::id::RequestId::from_uuid(
        sluice_domain::id::uuid_v7(4_000_000_000_000, [1; 10]),
    );
    let posted = database
        .storage
        .post_batch(guard, PostMode::Live, &stray, &[], NOW)
        .await;
    assert_eq!(posted.unwrap().inserted, 1);
    assert_eq!(database.faults().await, ["V11"]);
}

async fn what_somebody_should_look_at_is_a_warning(database: &Database) {
    let account = ledger(database).await;
    let warnings = async |now: UnixMillis| {
        let found = database.storage.verify_ledger(now).await.unwrap();
        assert!(found.iter().all(Finding::is_warning), "{found:?}");
        let found = found
            .into_iter()
            .map(|finding| (finding.table, finding.sentence));
        found.collect::<Vec<_>>()
    };
    let settled = (
        "instances",
        "an instance was settled and has not handed in its journal",
    );
    assert_eq!(warnings(NOW).await, [settled]);
    let silent = ("instances", "an instance holds leases and is silent");
    let mut later = warnings(UnixMillis(NOW.0 + 301_000)).await;
    later.sort_unstable();
    assert_eq!(later, [silent, settled]);
    let guard = database.instance().await;
    let set_aside = database
        .storage
        .quarantine(guard, PostMode::Live, &account.record(1), "strange", NOW)
        .await;
    set_aside.unwrap();
    let aside = "a record was set aside; its charge is an exposure until it is repaired";
    assert_eq!(warnings(NOW).await, [settled, ("quarantine", aside)]);
    let over = "UPDATE counters SET over_nano = 1 WHERE scope = 'key' AND used_tokens > 0";
    assert_eq!(database.execute(over).await.unwrap(), 1);
    let beyond = ("counters", "more was spent than the cap allowed");
    assert_eq!(warnings(NOW).await[0], beyond);
    let findings = database.storage.verify_ledger(NOW).await.unwrap();
    assert_eq!(findings[0].expected, "0 tokens and 0 nano");
    assert_eq!(findings[0].found, "0 tokens and 1 nano");
    let key = account.key.id.as_uuid().simple().to_string();
    assert!(findings[0].to_string().contains(&key), "{}", findings[0]);
    // After the month.
    let ended = (
        "counters",
        "something is still leased of a month that is over",
    );
    let later = warnings(UnixMillis(NOW.0 + 20 * 86_400_000)).await;
    assert!(later.contains(&ended), "{later:?}");
}

on_both! {
    a_sound_ledger_has_no_finding,
    counters_that_do_not_add_up_are_found,
    instances_that_do_not_add_up_are_found,
    records_that_do_not_add_up_are_found,
    charges_that_do_not_fit_what_was_held_are_found,
    kinds_that_were_changed_or_lost_are_found,
    records_of_an_unknown_instance_are_found,
    months_that_do_not_fit_are_found,
    numbers_that_were_used_twice_and_stray_records_are_found,
    what_somebody_should_look_at_is_a_warning,
}
