//! What retention has removed counts: a partition that was dropped with a row in `ledger_floor` is no
//! fault, and records that went without one are.

use sluice_domain::id::{RequestId, TenantId, uuid_v7};
use sluice_domain::ports::{Guard, LedgerStore, PostMode};
use sluice_domain::record::NumberedRecord;
use sluice_domain::tenant::Tenant;
use sluice_domain::time::{Month, TimeZone, UnixMillis, parse_rfc3339};
use sluice_storage::tenant::NewTenant;

use crate::fixture::{Account, Database, NOW, id};

/// East and west of UTC as far as it goes, so that months begin on other days than partitions.
const ZONES: [&str; 3] = ["Pacific/Kiritimati", "Pacific/Pago_Pago", "UTC"];
const SEPTEMBER: &str = "2026_09";
const OCTOBER: &str = "2026_10";

fn month(number: i32) -> Month {
    Month::from_number(number).unwrap()
}

async fn tenant(database: &Database, name: &str, zone: &str) -> Tenant {
    let new = NewTenant {
        id: TenantId::from_uuid(id()),
        name: name.parse().unwrap(),
        time_zone: zone.parse().unwrap(),
        quota_tokens: Some(100_000),
        now: NOW,
    };
    database.storage.create_tenant(new).await.unwrap()
}

/// Makes records one after the other, hours apart from the second of September to now.
fn records(account: &Account, first: i64, random: u8) -> Vec<NumberedRecord> {
    let zone = &account.tenant.time_zone;
    let begin = parse_rfc3339("2026-09-02T00:00:00Z").unwrap();
    let mut records = Vec::new();
    let mut at = begin.0;
    while at < NOW.0 {
        let mut numbered = account.record(first + i64::try_from(records.len()).unwrap());
        let open = &mut numbered.record.open;
        let no = u8::try_from(records.len()).unwrap();
        let request = uuid_v7(
            u64::try_from(at).unwrap(),
            [random, no, 0, 0, 0, 0, 0, 0, 0, 1],
        );
        open.request_id = RequestId::from_uuid(request);
        open.started_at = UnixMillis(at);
        open.period = zone.period_of(open.started_at).month;
        open.local_day = zone.day_of(open.started_at).day;
        records.push(numbered);
        at += 11 * 3_600_000;
    }
    records
}

/// A ledger of eleven weeks in three zones, written by two instances; the old months are closed.
async fn ledger(database: &Database) -> (Vec<Account>, Vec<Guard>) {
    database.unprotect().await;
    if database.is_sqlite() {
        let trigger = "DROP TRIGGER rollup_monthly_open_period_update";
        database.execute(trigger).await.unwrap();
    }
    let september = parse_rfc3339("2026-09-15T00:00:00Z").unwrap();
    database.storage.ensure_calendar(september).await.unwrap();
    let mut accounts = Vec::new();
    for (number, zone) in ZONES.into_iter().enumerate() {
        let tenant = tenant(database, &format!("tenant-{number}"), zone).await;
        let user = database.user(&tenant, "anna").await;
        let key = database
            .key(&user, &format!("sk-test-floor-000{number}"))
            .await;
        accounts.push(Account { tenant, user, key });
    }
    let mut guards = Vec::new();
    for random in 0..2 {
        let mut guard = database.instance().await;
        let mut next = 1;
        for (number, account) in (0_u8..).zip(&accounts) {
            let records = records(account, next, random * 10 + number);
            next += i64::try_from(records.len()).unwrap();
            let posted = database
                .storage
                .post_batch(guard, PostMode::Live, &records, &[], NOW)
                .await;
            assert_eq!(posted.unwrap().inserted, records.len());
            guard.seq += 1;
        }
        guards.push(guard);
    }
    for account in &accounts {
        for number in [202_609, 202_610] {
            database.close_month(&account.tenant, month(number)).await;
        }
    }
    database.check().await;
    (accounts, guards)
}

/// Which requests are in a partition.
fn range(database: &Database, partition: &str) -> String {
    let number: i32 = partition.replace('_', "").parse().unwrap();
    let period = TimeZone::utc().period(month(number));
    let literal = |at: UnixMillis| {
        // The smallest id of a time, without the digits of its version.
        let low = u128::try_from(at.0).unwrap() << 80;
        database.literal(uuid::Uuid::from_u128(low))
    };
    format!(
        "request_id >= {} AND request_id < {}",
        literal(period.starts_at),
        literal(period.ends_at)
    )
}

/// Notes what is in a partition, as retention does before it drops one.
async fn note(database: &Database, partition: &str) {
    let range = range(database, partition);
    let hash = if database.is_sqlite() {
        "zeroblob(32)"
    } else {
        "decode(repeat('00', 32), 'hex')"
    };
    for sql in [
        format!(
            "INSERT INTO ledger_floor (partition_name, instance_id, record_count, quota_tokens, charge_nano, hash, made_at_ms) \
             SELECT 'usage_records_{partition}', instance_id, COUNT(*), SUM(quota_tokens), SUM(charge_nano), {hash}, 0 \
             FROM usage_records WHERE {range} GROUP BY instance_id"
        ),
        format!(
            "UPDATE instances SET dropped_rows = dropped_rows + (SELECT COUNT(*) FROM usage_records r \
             WHERE r.instance_id = instances.instance_id AND {range})"
        ),
    ] {
        assert_eq!(database.execute(&sql).await.unwrap(), 2, "{sql}");
    }
}

async fn drop_partition(database: &Database, partition: &str) {
    let before = database.number("SELECT COUNT(*) FROM usage_records").await;
    for table in ["usage_rows", "failed_attempts", "skipped_targets"] {
        let sql = if database.is_sqlite() {
            format!("DELETE FROM {table} WHERE {}", range(database, partition))
        } else {
            format!("DROP TABLE {table}_{partition}")
        };
        database.execute(&sql).await.unwrap();
    }
    let after = database.number("SELECT COUNT(*) FROM usage_records").await;
    assert!(after + 300 < before, "{before} {after}");
}

async fn what_retention_has_removed_is_no_fault(database: &Database) {
    let (accounts, mut guards) = ledger(database).await;
    for partition in [SEPTEMBER, OCTOBER] {
        note(database, partition).await;
        drop_partition(database, partition).await;
        database.check().await;
    }
    // Life goes on, also in months that were reached.
    let guard = &mut guards[0];
    let next = database
        .number(&format!(
            "SELECT posted_no + 1 FROM instances WHERE instance_id = {}",
            database.literal(guard.instance_id.as_uuid())
        ))
        .await;
    let more = accounts[0].records(next, 3);
    let posted = database
        .storage
        .post_batch(*guard, PostMode::Live, &more, &[], NOW)
        .await;
    assert_eq!(posted.unwrap().inserted, 3);
    database.check().await;
    // What is left is still watched: counters, statements, rollups, numbers.
    let faults = [
        (
            "V2",
            "UPDATE counters SET used_tokens = used_tokens + 1 WHERE scope = 'tenant' AND period = 202609 AND tenant_id = ",
        ),
        (
            "V10",
            "UPDATE statements SET record_count = record_count + 1 WHERE statement_period = 202609 AND tenant_id = ",
        ),
        (
            "V5",
            "UPDATE rollup_daily SET requests = requests + 1 WHERE local_day = 20260910 AND tenant_id = ",
        ),
        (
            "V5",
            "UPDATE rollup_monthly SET charge_nano = charge_nano + 1 WHERE period = 202609 AND tenant_id = ",
        ),
    ];
    for (rule, fault) in faults {
        let fault = format!(
            "{fault}{}",
            database.literal(accounts[1].tenant.id.as_uuid())
        );
        expect(database, rule, &fault, &fault.replacen("+ 1", "- 1", 1)).await;
    }
}

async fn expect(database: &Database, rule: &str, fault: &str, undo: &str) {
    assert!(database.execute(fault).await.unwrap() > 0, "{fault}");
    let found = database.faults().await;
    assert!(found.contains(&rule), "{fault}: {found:?}");
    assert!(database.execute(undo).await.unwrap() > 0, "{undo}");
    database.check().await;
}

async fn what_the_floor_says_is_compared_with_the_sums(database: &Database) {
    let (_accounts, _guards) = ledger(database).await;
    note(database, SEPTEMBER).await;
    drop_partition(database, SEPTEMBER).await;
    database.check().await;
    for (column, rule) in [
        ("record_count", "V4"),
        ("record_count", "V5"),
        ("quota_tokens", "V5"),
        ("charge_nano", "V5"),
    ] {
        let change = |by: &str| format!("UPDATE ledger_floor SET {column} = {column} {by}");
        expect(database, rule, &change("+ 1"), &change("- 1")).await;
    }
    let dropped = |by: &str| format!("UPDATE instances SET dropped_rows = dropped_rows {by}");
    expect(database, "V4", &dropped("+ 1"), &dropped("- 1")).await;
    // Numbers and counts that agree do not hide one record of the days around the floor.
    let border = "FROM usage_records WHERE local_day = 20261001";
    let first = format!("(SELECT request_id {border} ORDER BY request_id LIMIT 1)");
    let keep =
        format!("CREATE TABLE kept AS SELECT * FROM usage_records WHERE request_id = {first}");
    database.execute(&keep).await.unwrap();
    let instances = |by: i32| {
        format!(
            "UPDATE instances SET dropped_rows = dropped_rows + {by} WHERE instance_id = (SELECT instance_id FROM kept)"
        )
    };
    let floor = |by: i32| {
        format!(
            "UPDATE ledger_floor SET record_count = record_count + {by} WHERE instance_id = (SELECT instance_id FROM kept)"
        )
    };
    for sql in [
        "DELETE FROM usage_rows WHERE request_id = (SELECT request_id FROM kept)",
        &instances(1),
        &floor(1),
    ] {
        assert_eq!(database.execute(sql).await.unwrap(), 1, "{sql}");
    }
    let found = database.storage.verify_ledger(NOW).await.unwrap();
    let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 1, "{texts:#?}");
    assert_eq!((found[0].id, found[0].table), ("V5", "ledger_floor"));
    assert_eq!(found[0].found, "+0 requests, -30 tokens, -300 nano");
}

async fn records_that_went_without_a_note_are_missed(database: &Database) {
    let (_accounts, _guards) = ledger(database).await;
    note(database, SEPTEMBER).await;
    drop_partition(database, SEPTEMBER).await;
    database.check().await;
    drop_partition(database, OCTOBER).await;
    let found = database.faults().await;
    for rule in ["V2", "V4", "V5"] {
        assert!(found.contains(&rule), "{rule}: {found:?}");
    }
    // A name that says no month is no floor.
    let rename = "UPDATE ledger_floor SET partition_name = 'all'";
    assert!(database.execute(rename).await.unwrap() > 0);
    assert!(database.storage.verify_ledger(NOW).await.is_err());
}

on_both! {
    what_retention_has_removed_is_no_fault,
    what_the_floor_says_is_compared_with_the_sums,
    records_that_went_without_a_note_are_missed,
}
