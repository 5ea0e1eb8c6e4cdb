use sluice_domain::id::{RequestId, UpstreamId, UpstreamKeyId};
use sluice_domain::pool::{SkipReason, SkippedTarget, SkippedTargets};
use sluice_domain::ports::{LedgerStore, PostMode};
use sluice_domain::quota::Amounts;
use sluice_domain::time::{Month, TimeZone, UnixMillis};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};

use uuid::Uuid;

use crate::fixture::{Database, NOW, id};

const DAY_MS: i64 = 24 * 3_600_000;

async fn what_a_request_passed_over_is_read_as_it_was_posted(database: &Database) {
    let account = database.account("acme").await;
    let guard = database.instance().await;
    let mut records = account.records(1, 3);
    let reasons = [
        SkipReason::Cooldown,
        SkipReason::BreakerOpen,
        SkipReason::Quarantined,
        SkipReason::AtLimit,
        SkipReason::Throttled,
    ];
    let mut skipped = SkippedTargets::default();
    for (n, reason) in (0..20).zip(reasons.into_iter().cycle()) {
        skipped.add(SkippedTarget {
            upstream_id: UpstreamId::from_uuid(Uuid::from_u128(n)),
            upstream_key_id: (n > 0).then(|| UpstreamKeyId::from_uuid(Uuid::from_u128(n))),
            reason,
        });
    }
    assert_eq!(skipped.more(), 4);
    records[1].record.end.skipped = skipped.clone();
    database
        .storage
        .post_batch(guard, PostMode::Live, &records, &[], NOW)
        .await
        .unwrap();
    for (n, expected) in [SkippedTargets::default(), skipped].iter().enumerate() {
        let id = records[n].record.open.request_id;
        let found = database.storage.find_record(id).await.unwrap().unwrap();
        assert_eq!((found.request_id, &found.skipped), (id, expected));
    }
    let unknown = RequestId::from_uuid(id());
    assert_eq!(database.storage.find_record(unknown).await.unwrap(), None);
    let stored = database
        .number("SELECT COUNT(*) FROM skipped_targets")
        .await;
    assert_eq!(stored, 1, "the common record has none");

    // The ledger notices when it belongs to no record.
    assert!(!database.faults().await.contains(&"V14"));
    let unknown = database.literal(unknown.as_uuid());
    let sql = format!("UPDATE skipped_targets SET request_id = {unknown}");
    assert_eq!(database.execute(&sql).await.unwrap(), 1);
    assert!(database.faults().await.contains(&"V14"));
}

async fn a_record_is_read_as_it_was_posted(database: &Database) {
    let account = database.account("acme").await;
    let guard = database.instance().await;
    let mut records = account.records(1, 2);
    let failed = &mut records[1].record;
    failed.open.started_at = UnixMillis(NOW.0 + 5);
    failed.open.streams = false;
    failed.open.caller.ip = None;
    failed.open.caller.user_agent = None;
    failed.end.ending = Ending::UpstreamFailed;
    failed.end.stage = Stage::Dispatched;
    failed.end.status = 502;
    failed.end.error_code = Some("upstream_failed".into());
    failed.end.basis = Basis::Unknown;
    failed.end.usage = TokenUsage::default();
    failed.end.owed = Amounts::ZERO;
    failed.end.first_event_ms = None;
    let mut second = failed.end.attempts[0].clone();
    failed.end.attempts[0].status = None;
    failed.end.attempts[0].error = Some("connect".into());
    second.upstream_key_id = None;
    second.status = Some(503);
    failed.end.attempts.push(second);
    database
        .storage
        .post_batch(guard, PostMode::Live, &records, &[], NOW)
        .await
        .unwrap();
    let (from, to) = (NOW, UnixMillis(NOW.0 + DAY_MS));
    let found = database
        .storage
        .list_records(account.tenant.id, from, to, 10)
        .await
        .unwrap();
    let [late, early] = &found[..] else {
        panic!("{found:?}")
    };
    let (open, end) = (&records[0].record.open, &records[0].record.end);
    assert_eq!((early.request_id, early.post_no), (open.request_id, 1));
    assert_eq!(
        (early.tenant_id, early.user_id, early.key_id),
        (account.tenant.id, account.user.id, account.key.id)
    );
    assert_eq!(
        (early.period, early.statement_period, early.local_day),
        (open.period, open.period, open.local_day)
    );
    assert_eq!((early.started_at, early.streams), (NOW, true));
    assert_eq!(
        (early.endpoint.as_str(), early.requested_model.as_str()),
        ("chat_completions", "gpt-4o")
    );
    assert_eq!(early.upstream_id, Some(end.attempts[0].upstream_id));
    assert_eq!(early.upstream_model.as_deref(), Some("gpt-4o"));
    assert_eq!(
        (
            early.ending.as_str(),
            early.stage.as_str(),
            early.basis.as_str()
        ),
        ("finished", "relaying", "reported")
    );
    assert_eq!((early.status, early.error_code.as_deref()), (200, None));
    assert_eq!((early.usage, early.quota_tokens), (end.usage, 30));
    assert_eq!((early.charge_nano, early.excess), (300, Amounts::ZERO));
    assert_eq!(
        early.bound,
        Amounts {
            tokens: 100,
            nano: 1_000
        }
    );
    assert_eq!((early.first_event_ms, early.duration_ms), (Some(7), 9));
    assert_eq!(
        (early.ip.as_deref(), early.user_agent.as_deref()),
        (Some("127.0.0.1"), Some("curl/8"))
    );
    let [attempt] = &early.attempts[..] else {
        panic!("{early:?}")
    };
    assert_eq!(
        (attempt.n, attempt.status, attempt.head_ms),
        (1, Some(200), 6)
    );
    assert_eq!(attempt.upstream_key_id, end.attempts[0].upstream_key_id);
    assert_eq!(
        (late.ending.as_str(), late.stage.as_str(), late.status),
        ("upstream_failed", "dispatched", 502)
    );
    assert_eq!(
        (late.error_code.as_deref(), late.first_event_ms),
        (Some("upstream_failed"), None)
    );
    assert_eq!(
        (late.ip.as_deref(), late.user_agent.as_deref()),
        (None, None)
    );
    let tries: Vec<_> = late
        .attempts
        .iter()
        .map(|a| (a.n, a.status, a.error.as_deref()))
        .collect();
    assert_eq!(tries, [(1, None, Some("connect")), (2, Some(503), None)]);
    assert_eq!(late.attempts[1].upstream_key_id, None);
}

async fn a_record_that_was_sent_nowhere_has_no_upstream(database: &Database) {
    let account = database.account("acme").await;
    let guard = database.instance().await;
    let mut record = account.record(1);
    record.record.end.attempts.clear();
    database
        .storage
        .post_batch(guard, PostMode::Live, &[record], &[], NOW)
        .await
        .unwrap();
    let to = UnixMillis(NOW.0 + 1);
    let found = database
        .storage
        .list_records(account.tenant.id, NOW, to, 10)
        .await
        .unwrap();
    assert_eq!((found[0].upstream_id, found[0].attempts.len()), (None, 0));
    let day = TimeZone::utc().day_of(NOW).day;
    let sums = database
        .storage
        .usage_by_day(account.tenant.id, day, day)
        .await
        .unwrap();
    assert_eq!(sums[0].1.upstream_id, None);
}

async fn another_tenant_reads_nothing(database: &Database) {
    let (acme, other) = (
        database.account("acme").await,
        database.account("other").await,
    );
    let guard = database.instance().await;
    database
        .storage
        .post_batch(guard, PostMode::Live, &acme.records(1, 3), &[], NOW)
        .await
        .unwrap();
    let storage = &database.storage;
    let (from, to) = (UnixMillis(0), UnixMillis(NOW.0 + DAY_MS));
    assert!(
        storage
            .list_records(other.tenant.id, from, to, 10)
            .await
            .unwrap()
            .is_empty()
    );
    let day = TimeZone::utc().day_of(NOW).day;
    assert!(
        storage
            .usage_by_day(other.tenant.id, day, day)
            .await
            .unwrap()
            .is_empty()
    );
    let month = TimeZone::utc().period_of(NOW).month;
    assert!(
        storage
            .usage_by_month(other.tenant.id, month, month)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        storage
            .list_records(acme.tenant.id, from, to, 10)
            .await
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        storage
            .list_records(acme.tenant.id, from, to, 2)
            .await
            .unwrap()
            .len(),
        2
    );
    assert!(
        storage
            .list_records(acme.tenant.id, from, NOW, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn sums_are_kept_by_day_and_month(database: &Database) {
    let account = database.account("acme").await;
    let mut guard = database.instance().await;
    let zone = TimeZone::utc();
    for (first, at) in [(1, NOW), (4, UnixMillis(NOW.0 + DAY_MS)), (7, NOW)] {
        let mut records = account.records(first, 3);
        records[2].record.end.status = 502;
        for numbered in &mut records {
            numbered.record.open.started_at = at;
            numbered.record.open.local_day = zone.day_of(at).day;
        }
        database
            .storage
            .post_batch(guard, PostMode::Live, &records, &[], at)
            .await
            .unwrap();
        guard.seq += 1;
    }
    let (first, last) = (
        zone.day_of(NOW).day,
        zone.day_of(UnixMillis(NOW.0 + DAY_MS)).day,
    );
    let days = database
        .storage
        .usage_by_day(account.tenant.id, first, last)
        .await
        .unwrap();
    let seen: Vec<_> = days
        .iter()
        .map(|(day, sums)| (*day, sums.requests, sums.failures))
        .collect();
    assert_eq!(seen, [(first, 6, 2), (last, 3, 1)]);
    assert_eq!(
        (days[0].1.usage.input, days[0].1.usage.cached_input),
        (120, 30)
    );
    let month: Month = zone.period_of(NOW).month;
    let months = database
        .storage
        .usage_by_month(account.tenant.id, month, month)
        .await
        .unwrap();
    let [(_, sums)] = &months[..] else {
        panic!("{months:?}")
    };
    assert_eq!(
        (sums.requests, sums.failures, sums.quota_tokens),
        (9, 3, 270)
    );
    assert_eq!(
        (sums.key_id, sums.model.as_str()),
        (account.key.id, "gpt-4o")
    );
}

on_both! {
    a_record_is_read_as_it_was_posted,
    what_a_request_passed_over_is_read_as_it_was_posted,
    a_record_that_was_sent_nowhere_has_no_upstream,
    another_tenant_reads_nothing,
    sums_are_kept_by_day_and_month,
}
