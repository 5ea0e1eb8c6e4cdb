//! A ledger with something in every table, made by the calls that a gateway makes.

use std::borrow::Cow;
use std::sync::Arc;

use sluice_domain::id::{UpstreamId, UpstreamKeyId};
use sluice_domain::ports::{Guard, LedgerStore, PostMode};
use sluice_domain::quota::{Cap, CounterKey, ScopeKind};
use sluice_domain::record::{AttemptRecord, NumberedRecord};
use sluice_domain::time::{TimeZone, UnixMillis};
use sluice_domain::usage::Ending;
use uuid::Uuid;

use crate::dice::Dice;
use crate::fixture::{Account, Database, FORCED, NOW, tenfold};

/// In the month before [`NOW`].
pub(super) const BEFORE: UnixMillis = UnixMillis(NOW.0 - 30 * 86_400_000);

const SCOPES: [ScopeKind; 3] = [ScopeKind::Tenant, ScopeKind::User, ScopeKind::Key];

async fn accounts(database: &Database) -> Vec<Account> {
    let mut accounts = Vec::new();
    for name in ["acme", "globex", "initech"] {
        accounts.push(database.account(name).await);
    }
    // A second user of a tenant, and a second key of that.
    let tenant = accounts[0].tenant.clone();
    let user = database.user(&tenant, "bert").await;
    for text in ["sk-test-acme-0002", "sk-test-acme-0003"] {
        let key = database.key(&user, text).await;
        accounts.push(Account {
            tenant: tenant.clone(),
            user: user.clone(),
            key,
        });
    }
    for (number, account) in accounts.iter().enumerate() {
        let caps = match number {
            0 | 3 => &SCOPES[..],
            1 => &SCOPES[..1],
            4 => &SCOPES[2..],
            _ => &[],
        };
        for kind in caps {
            let cap = Cap {
                tokens: Some(20_000),
                nano: Some(200_000),
            };
            let scope = account.scope(*kind);
            let set = database
                .storage
                .set_quota(scope, account.tenant.id, cap, BEFORE)
                .await;
            assert!(set.unwrap());
        }
    }
    // As if the tenants had been made in the month before.
    let ahead = "DELETE FROM counters WHERE period = 202612";
    assert!(database.execute(ahead).await.unwrap() > 0);
    // As if they had been capped before anything was used.
    let peaks = "UPDATE counters SET peak_cap_tokens = cap_tokens, peak_cap_nano = cap_nano";
    assert!(database.execute(peaks).await.unwrap() > 0);
    accounts
}

/// Makes the records of an instance differ from each other.
fn vary(dice: &mut Dice, records: &mut [NumberedRecord]) {
    for numbered in records {
        let record = &mut numbered.record;
        let (open, end) = (&mut record.open, &mut record.end);
        if dice.one_in(3) {
            open.started_at = UnixMillis(BEFORE.0 + dice.roll(0, 5) * 86_400_000);
        } else {
            open.started_at = UnixMillis(NOW.0 - dice.roll(0, 5) * 86_400_000);
        }
        open.period = TimeZone::utc().period_of(open.started_at).month;
        open.local_day = TimeZone::utc().day_of(open.started_at).day;
        open.requested_model = Arc::from(*dice.pick(&["gpt-4o", "claude", "mistral"]));
        open.streams = dice.one_in(2);
        let (input, output) = (dice.roll(10, 40), dice.roll(1, 60));
        end.usage.input = input;
        end.usage.cached_input = dice.roll(0, input);
        end.usage.cache_write_input = dice.roll(0, 3);
        end.usage.output = output;
        end.usage.reasoning_output = dice.roll(0, output);
        // Some owe more than was held.
        let owed = if dice.one_in(6) { 130 } else { input + output };
        end.owed = tenfold(owed.min(130));
        if dice.one_in(4) {
            end.ending = *dice.pick(&[Ending::ClientLeft, Ending::UpstreamFailed]);
            end.status = 499;
        }
        let upstream = Uuid::from_u128(u128::try_from(dice.roll(7, 9)).unwrap());
        if dice.one_in(8) {
            end.attempts.clear();
        } else {
            end.attempts[0].upstream_id = UpstreamId::from_uuid(upstream);
        }
        if dice.one_in(4) {
            let failed = AttemptRecord {
                upstream_id: UpstreamId::from_uuid(upstream),
                upstream_key_id: Some(UpstreamKeyId::from_uuid(Uuid::from_u128(8))),
                upstream_model: Arc::from("gpt-4o"),
                status: Some(503),
                error: Some(Cow::Borrowed("overloaded")),
                started_at: open.started_at,
                head_ms: 3,
            };
            end.attempts.insert(0, failed);
        }
    }
}

/// The counters of an account in both months.
fn counters(account: &Account) -> Vec<CounterKey> {
    [BEFORE, NOW]
        .into_iter()
        .flat_map(|at| {
            account
                .payer()
                .counters(TimeZone::utc().period_of(at).month)
        })
        .collect()
}

struct Instance<'d> {
    database: &'d Database,
    guard: Guard,
    next: i64,
}

impl Instance<'_> {
    async fn lease(&mut self, accounts: &[Account], tokens: i64) {
        for account in accounts {
            let counters = counters(account);
            self.database
                .lease(&mut self.guard, &counters, tenfold(tokens))
                .await;
        }
    }

    fn records(&mut self, dice: &mut Dice, account: &Account, count: i64) -> Vec<NumberedRecord> {
        let scopes = SCOPES.iter().copied();
        let held: Vec<ScopeKind> = scopes
            .filter(|kind| *kind == ScopeKind::Tenant || dice.one_in(2))
            .collect();
        let mut records = account.held_records(self.next, count, &held);
        vary(dice, &mut records);
        self.next += count;
        records
    }

    async fn post(&mut self, dice: &mut Dice, account: &Account, mode: PostMode, count: i64) {
        let records = self.records(dice, account, count);
        let posted = self
            .database
            .storage
            .post_batch(self.guard, mode, &records, &[], NOW)
            .await;
        assert_eq!(posted.unwrap().inserted, records.len());
        self.guard.seq += 1;
    }

    async fn set_aside(&mut self, dice: &mut Dice, account: &Account, mode: PostMode) {
        let records = self.records(dice, account, 1);
        let storage = &self.database.storage;
        let set_aside = storage
            .quarantine(self.guard, mode, &records[0], "strange", NOW)
            .await;
        set_aside.unwrap();
        self.guard.seq += 1;
    }

    async fn settle(&mut self) {
        let storage = &self.database.storage;
        let settled = storage
            .resolve_instance(self.guard.instance_id, FORCED, NOW)
            .await;
        settled.unwrap();
        self.guard.seq += 1;
    }
}

/// Several tenants, users and capped keys; two live instances, one that is settled and has handed in
/// a part of its journal, one that has handed in all of it; two months, of which one is closed for a
/// tenant; records that were set aside, that owe more than was held, that failed.
pub(super) async fn build(database: &Database) {
    let mut dice = Dice::new(1);
    let accounts = accounts(database).await;
    let mut instances = Vec::new();
    for _ in 0..4 {
        let guard = database.instance().await;
        instances.push(Instance {
            database,
            guard,
            next: 1,
        });
    }
    for (number, instance) in instances.iter_mut().enumerate() {
        // Not everybody is served by each.
        let served = if number == 1 {
            &accounts[..2]
        } else {
            &accounts
        };
        instance.lease(served, 1_500).await;
        for account in served {
            instance.post(&mut dice, account, PostMode::Live, 3).await;
        }
        instance
            .set_aside(&mut dice, &accounts[0], PostMode::Live)
            .await;
    }
    database
        .close_month(&accounts[1].tenant, TimeZone::utc().period_of(BEFORE).month)
        .await;
    for instance in &mut instances[2..] {
        instance.settle().await;
        for account in &accounts[..3] {
            instance.post(&mut dice, account, PostMode::Late, 2).await;
        }
        instance
            .set_aside(&mut dice, &accounts[1], PostMode::Late)
            .await;
    }
    let closed = instances[3].guard;
    database.storage.end_late(closed, NOW).await.unwrap();
    instances[0]
        .post(&mut dice, &accounts[1], PostMode::Live, 3)
        .await;
    // A lease that a database which went back had forgotten: what is beyond the cap is counted.
    let [tenant, ..] = accounts[1]
        .payer()
        .counters(TimeZone::utc().period_of(NOW).month);
    let storage = &database.storage;
    let mut guard = instances[1].guard;
    let found = storage
        .find_instance(guard.instance_id)
        .await
        .unwrap()
        .unwrap();
    let leases: Vec<_> = found
        .leases
        .into_iter()
        .map(|mut lease| {
            if lease.key == tenant {
                lease.held = lease.held.plus(tenfold(30_000));
            }
            lease
        })
        .collect();
    guard.seq += 1;
    storage.resync(guard, &leases, NOW).await.unwrap();
    let over =
        database.number("SELECT COUNT(*) FROM counters WHERE over_tokens > 0 AND over_nano > 0");
    assert_eq!(over.await, 1);
}
