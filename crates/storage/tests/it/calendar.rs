//! The stored months of tenants, while clocks step and tenants move to other zones.
//!
//! `SLUICE_PROVE_TIMES=100000` looks at so many times.

use sluice_domain::id::{RequestId, TenantId, uuid_v7};
use sluice_domain::ports::{LedgerStore, PostMode};
use sluice_domain::quota::{CounterKey, ScopeKind};
use sluice_domain::time::{Period, TimeZone, UnixMillis};
use sluice_storage::tenant::NewTenant;

use crate::dice::Dice;
use crate::fixture::{Account, Database, NOW, environment, hash, id, tenfold};

const DAY: i64 = 86_400_000;
/// Zones at both ends, with clock changes at midnight, at half hours, and none.
const ZONES: [&str; 10] = [
    "UTC",
    "Pacific/Kiritimati",
    "Pacific/Pago_Pago",
    "Europe/Berlin",
    "America/St_Johns",
    "America/Santiago",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Africa/Cairo",
    "America/Havana",
];

fn looks() -> usize {
    let wanted = environment("SLUICE_PROVE_TIMES");
    wanted.map_or(2_000, |count| count.parse().unwrap())
}

struct Moving {
    account: Account,
    key: String,
    zone: TimeZone,
    has_moved: bool,
}

async fn tenants(database: &Database) -> Vec<Moving> {
    let mut tenants = Vec::new();
    for (number, zone) in ZONES.into_iter().enumerate() {
        let zone: TimeZone = zone.parse().unwrap();
        let new = NewTenant {
            id: TenantId::from_uuid(id()),
            name: format!("tenant-{number}").parse().unwrap(),
            time_zone: zone.clone(),
            quota_tokens: None,
            now: NOW,
        };
        let tenant = database.storage.create_tenant(new).await.unwrap();
        let user = database.user(&tenant, "anna").await;
        let key = format!("sk-test-moving-{number:04}");
        let account = Account {
            key: database.key(&user, &key).await,
            user,
            tenant,
        };
        tenants.push(Moving {
            account,
            key,
            zone,
            has_moved: false,
        });
    }
    tenants
}

/// All months of a tenant as they are stored.
async fn stored(database: &Database, moving: &Moving) -> Vec<(i32, i64, i64)> {
    let tenant = database.literal(moving.account.tenant.id.as_uuid());
    let sql = format!(
        "SELECT CAST(period AS TEXT) || ' ' || CAST(starts_at_ms AS TEXT) || ' ' || CAST(ends_at_ms AS TEXT) \
         FROM periods WHERE tenant_id = {tenant} ORDER BY period"
    );
    let rows = database.texts(&sql).await.into_iter().map(|row| {
        let mut numbers = row.split(' ').map(|number| number.parse::<i64>().unwrap());
        let mut next = || numbers.next().unwrap();
        (i32::try_from(next()).unwrap(), next(), next())
    });
    rows.collect()
}

async fn move_to(database: &Database, moving: &mut Moving, zone: &str) {
    let tenant = database.literal(moving.account.tenant.id.as_uuid());
    let update = format!("UPDATE tenants SET time_zone = '{zone}' WHERE tenant_id = {tenant}");
    assert_eq!(database.execute(&update).await.unwrap(), 1);
    moving.zone = zone.parse().unwrap();
    moving.has_moved = true;
}

/// The month of a time, as admission finds it: the stored bounds rule.
async fn month_of(database: &Database, moving: &Moving, at: UnixMillis) -> Period {
    let grant = database
        .storage
        .find_grant(&hash(&moving.key))
        .await
        .unwrap()
        .unwrap();
    let containing: Vec<Period> = grant
        .periods
        .iter()
        .filter(|period| period.contains(at))
        .copied()
        .collect();
    assert_eq!(
        containing.len(),
        1,
        "{:?} at {}: {:?}",
        moving.zone,
        at.to_rfc3339(),
        grant.periods
    );
    containing[0]
}

async fn every_time_is_in_one_stored_month_whatever_clocks_and_zones_do(database: &Database) {
    let mut tenants = tenants(database).await;
    let mut dice = Dice::new(5);
    let looks = looks();
    let (mut now, mut looked) = (NOW, 0);
    let (mut months, mut guard) = (0, database.instance().await);
    let mut post_no = 1;
    while looked < looks {
        // Time goes on to just before a month ends somewhere, and then in steps over it.
        months += 1;
        let zone = &tenants[usize::try_from(dice.roll(0, 9)).unwrap()].zone;
        now = UnixMillis(zone.period_of(UnixMillis(now.0 + 3 * DAY)).ends_at.0 - 40 * 3_600_000);
        let mut begun: Vec<Vec<(i32, i64, i64)>> = Vec::new();
        for moving in &tenants {
            begun.push(stored(database, moving).await);
        }
        for _step in 0..10 {
            now = UnixMillis(now.0 + dice.roll(1, 10 * 3_600_000));
            if dice.one_in(3) {
                let moving = usize::try_from(dice.roll(0, 9)).unwrap();
                let zone = *dice.pick(&ZONES);
                move_to(database, &mut tenants[moving], zone).await;
            }
            // Clocks of instances differ, and step.
            for by in [0, -dice.roll(0, 2 * 3_600_000), dice.roll(0, 2 * 3_600_000)] {
                let at = UnixMillis(now.0 + by);
                database.storage.ensure_calendar(at).await.unwrap();
            }
            for moving in &tenants {
                let mut last = None;
                for by in [-dice.roll(0, 3_600_000), -1, 0, 1, dice.roll(0, 3_600_000)] {
                    let at = UnixMillis(now.0 + by);
                    let period = month_of(database, moving, at).await;
                    looked += 1;
                    assert!(
                        last <= Some(period.month),
                        "{:?} at {}",
                        moving.zone,
                        at.to_rfc3339()
                    );
                    last = Some(period.month);
                    let day = moving.zone.day_of(at).day;
                    if !moving.has_moved {
                        assert_eq!(period, moving.zone.period_of(at));
                        assert_eq!(day.0 / 100, period.month.as_number());
                    }
                }
            }
        }
        for (moving, begun) in tenants.iter().zip(&begun) {
            let stored = stored(database, moving).await;
            assert_eq!(stored[..begun.len()], begun[..], "what was written stays");
            for (one, next) in stored.iter().zip(&stored[1..]) {
                let is_next = one.0 < next.0 && one.2 == next.1;
                assert!(is_next, "{:?}: {stored:?}", moving.zone);
            }
        }
        // A request that began before its month ended is booked in it when it ends after.
        let moving = &tenants[usize::try_from(dice.roll(0, 9)).unwrap()];
        let account = &moving.account;
        let period = month_of(database, moving, now).await;
        let mut records = account.records(post_no, 1);
        let open = &mut records[0].record.open;
        open.request_id = RequestId::from_uuid(uuid_v7(
            u64::try_from(now.0).unwrap(),
            *id().as_bytes().last_chunk().unwrap(),
        ));
        open.started_at = UnixMillis(period.ends_at.0 - 1);
        open.period = month_of(database, moving, open.started_at).await.month;
        open.local_day = moving.zone.day_of(open.started_at).day;
        assert_eq!(open.period, period.month);
        let counter = CounterKey {
            tenant_id: account.tenant.id,
            scope: account.scope(ScopeKind::Tenant),
            month: period.month,
        };
        let before = database.balance(counter).await.used;
        let after_it = UnixMillis(period.ends_at.0 + 1);
        let posted = database
            .storage
            .post_batch(guard, PostMode::Live, &records, &[], after_it)
            .await;
        assert_eq!(posted.unwrap().inserted, 1);
        guard.seq += 1;
        post_no += 1;
        assert_eq!(
            database.balance(counter).await.used,
            before.plus(tenfold(30))
        );
    }
    assert!(months > 1);
    database.check().await;
}

/// Instances that start together find the same month missing.
async fn many_write_the_calendar_at_once(database: &Database) {
    for year in 0..20 {
        let now = UnixMillis(NOW.0 + year * 366 * DAY);
        let writers: Vec<_> = (0..6)
            .map(|_| {
                let storage = database.storage.clone();
                tokio::spawn(async move { storage.ensure_calendar(now).await })
            })
            .collect();
        let mut partitions = 0;
        for writer in writers {
            partitions += writer.await.unwrap().unwrap().partitions;
        }
        // Each is made once, and SQLite has none.
        assert!(partitions == 9 || partitions == 0, "{partitions}");
    }
}

on_both! {
    every_time_is_in_one_stored_month_whatever_clocks_and_zones_do,
    many_write_the_calendar_at_once,
}
