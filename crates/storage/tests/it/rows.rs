//! How records are stored: in rows of their own, and rows that they share.

use std::sync::Arc;

use sluice_domain::id::{BootId, InstanceId};
use sluice_domain::ports::{Guard, LedgerStore, PostMode};
use sluice_domain::quota::{Amounts, ScopeKind, ScopeSet};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;

use crate::fixture::{Database, NOW, id, tenfold};

async fn post(database: &Database, guard: &mut Guard, records: &[NumberedRecord]) {
    let posted = database
        .storage
        .post_batch(*guard, PostMode::Live, records, &[], NOW)
        .await;
    assert_eq!(posted.unwrap().inserted, records.len());
    guard.seq += 1;
}

async fn count(database: &Database, table: &str) -> i64 {
    let sql = format!("SELECT COUNT(*) FROM {table}");
    database.number(&sql).await
}

async fn records_share_their_kind_and_their_caller(database: &Database) {
    let account = database.account("acme").await;
    let other = database.account("other").await;
    let mut guard = database.instance().await;
    let mut records = account.records(1, 5);
    records[1].record.open.requested_model = Arc::from("gpt-4");
    records[2].record.open.caller.user_agent = Some(Arc::from("curl/9"));
    records[3].record.open.caller.ip = None;
    records[3].record.open.caller.user_agent = None;
    // Held in another lease, which is no matter of the record.
    records[4].record.open.hold.leased = ScopeSet::default().with(ScopeKind::Tenant);
    let tenant = account.counter(ScopeKind::Tenant);
    database.lease(&mut guard, &[tenant], tenfold(1_000)).await;
    records.push(other.record(6));
    for _ in 0..2 {
        post(database, &mut guard, &records).await;
        assert_eq!(count(database, "record_kinds").await, 3);
        // Those of two tenants are two.
        assert_eq!(count(database, "callers").await, 3);
        for numbered in &mut records {
            numbered.post_no += 6;
            numbered.record.open.request_id = sluice_domain::id::RequestId::from_uuid(id());
        }
    }
    assert_eq!(count(database, "usage_records").await, 12);
    assert_eq!(count(database, "record_details").await, 10);
    let with = |what: &str| format!("record_details WHERE user_agent = '{what}'");
    assert_eq!(count(database, &with("curl/8")).await, 8);
    assert_eq!(count(database, &with("curl/9")).await, 2);
    database.check().await;
}

async fn kinds_and_callers_that_the_database_lost_are_made_again(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    database.keep().await;
    let kept = guard;
    let records = account.records(1, 40);
    post(database, &mut guard, &records).await;
    database.go_back().await;
    assert_eq!(count(database, "record_kinds").await, 0);
    guard = kept;
    post(database, &mut guard, &records[..1]).await;
    post(database, &mut guard, &records[1..]).await;
    assert_eq!(count(database, "record_kinds").await, 1);
    assert_eq!(count(database, "callers").await, 1);
    assert_eq!(count(database, "record_details").await, 40);
    database.check().await;
    let gone = database.execute("DELETE FROM callers").await;
    assert_eq!(gone.unwrap(), 1);
    let again = account.records(41, 1);
    post(database, &mut guard, &again).await;
    assert_eq!(count(database, "record_details").await, 41);
}

async fn records_without_what_is_rare_are_stored_once_and_whole(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let mut records = account.records(1, 50);
    for (at, numbered) in (0_i64..).zip(&mut records) {
        let (open, end) = (&mut numbered.record.open, &mut numbered.record.end);
        end.usage.cached_input = 0;
        end.usage.input = 100 + at;
        // A clock was set back between.
        end.attempts[0].started_at.0 = open.started_at.0 + 30 - at;
    }
    post(database, &mut guard, &records).await;
    for repeated in [&records[..], &records[20..30], &records[..1]] {
        let again = database
            .storage
            .post_batch(guard, PostMode::Live, repeated, &[], NOW)
            .await;
        assert_eq!(again.unwrap().inserted, 0);
        guard.seq += 1;
    }
    database.check().await;
    let to = UnixMillis(NOW.0 + 1);
    let found = database
        .storage
        .list_records(account.tenant.id, NOW, to, 100);
    let mut found = found.await.unwrap();
    found.reverse();
    assert_eq!(found.len(), records.len());
    for (found, NumberedRecord { post_no, record }) in found.iter().zip(&records) {
        assert_eq!(found.post_no, *post_no);
        assert_eq!(found.usage, record.end.usage);
        assert_eq!(found.excess, Amounts::ZERO);
        let started_at = record.end.attempts[0].started_at;
        assert_eq!(found.attempts[0].started_at, started_at);
    }
}

async fn a_caller_that_was_erased_stays_erased(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    post(database, &mut guard, &account.records(1, 2)).await;
    let erase = "UPDATE callers SET ip = NULL, user_agent = NULL";
    assert_eq!(database.execute(erase).await.unwrap(), 1);
    post(database, &mut guard, &account.records(3, 2)).await;
    let known = "record_details WHERE ip IS NOT NULL OR user_agent IS NOT NULL";
    assert_eq!(count(database, known).await, 0);
    assert_eq!(count(database, "usage_records").await, 4);
}

async fn instances_that_come_at_once_have_numbers_of_their_own(database: &Database) {
    let claim = async || {
        let (instance_id, boot_id) = (InstanceId::from_uuid(id()), BootId::from_uuid(id()));
        let claimed = database
            .storage
            .claim_instance(instance_id, &[], boot_id, NOW);
        claimed.await.unwrap();
    };
    tokio::join!(claim(), claim(), claim(), claim(), claim());
    let numbers = "SELECT COUNT(DISTINCT instance_no) * 100 + MAX(instance_no) FROM instances";
    assert_eq!(database.number(numbers).await, 505);
}

async fn equal_numbers_of_two_instances_are_two_records(database: &Database) {
    let account = database.account("acme").await;
    let (mut one, mut two) = (database.instance().await, database.instance().await);
    post(database, &mut one, &account.records(1, 3)).await;
    post(database, &mut two, &account.records(1, 2)).await;
    for (guard, records) in [(one, 3), (two, 2)] {
        let instance = database.literal(guard.instance_id.as_uuid());
        let of =
            format!("usage_records WHERE instance_id = {instance} AND post_no BETWEEN 1 AND 3");
        assert_eq!(count(database, &of).await, records);
    }
    database.check().await;
}

async fn the_database_refuses_amounts_that_do_not_fit(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    post(database, &mut guard, &account.records(1, 1)).await;
    database.unprotect().await;
    for set in [
        "input_tokens = -1",
        "cached_input_tokens = -1",
        "cache_write_input_tokens = -1",
        "output_tokens = -1",
        "reasoning_output_tokens = -1",
        "quota_tokens = -1",
        "charge_nano = -1",
        "excess_tokens = -1, bound_tokens = quota_tokens",
        "excess_nano = -1, bound_nano = charge_nano",
        "quota_tokens = bound_tokens + 1",
        "charge_nano = bound_nano + 1",
        "excess_tokens = 1",
        "excess_nano = 1",
    ] {
        let change = database
            .execute(&format!("UPDATE usage_rows SET {set}"))
            .await;
        assert!(change.is_err(), "{set}");
    }
    let fits = "UPDATE usage_rows SET excess_tokens = 1, bound_tokens = quota_tokens";
    assert_eq!(database.execute(fits).await.unwrap(), 1);
}

on_both! {
    the_database_refuses_amounts_that_do_not_fit,
    records_share_their_kind_and_their_caller,
    records_without_what_is_rare_are_stored_once_and_whole,
    kinds_and_callers_that_the_database_lost_are_made_again,
    a_caller_that_was_erased_stays_erased,
    instances_that_come_at_once_have_numbers_of_their_own,
    equal_numbers_of_two_instances_are_two_records,
}
