//! The ledger against what clients and the fake provider saw, request by request.

use std::collections::HashMap;
use std::time::Duration;

use sluice_accounting::journal::{self, FolderDisk};
use sluice_domain::ports::LedgerStore;
use sluice_domain::quota::{Amounts, Payer, ScopeKind};
use sluice_domain::time::UnixMillis;
use sluice_domain::usage::{Basis, Ending};
use sluice_storage::Storage;
use sluice_storage::usage::StoredRecord;
use sluice_testkit::Served;

use crate::deployment::Deployment;
use crate::load::{Call, Outcome, PACE};

/// How far the journal may be behind a client: the 50 ms that are promised, and as much again for
/// threads that do not run when they should on a machine that is busy with tests.
const BEHIND: Duration = Duration::from_millis(100);
/// A thread that does not run for longer leaves some streams further behind, one in so many.
const EXCUSED: usize = 5;

/// What came of the requests of one life, or of all.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) requests: usize,
    pub(crate) complete: usize,
    pub(crate) refused: usize,
    /// Cut off for the client.
    pub(crate) cut: usize,
    /// Rebuilt from the journal.
    pub(crate) recovered: usize,
    /// Cut off for the client, yet recorded with the provider's own numbers.
    pub(crate) exact_though_cut: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.complete += other.complete;
        self.refused += other.refused;
        self.cut += other.cut;
        self.recovered += other.recovered;
        self.exact_though_cut += other.exact_though_cut;
    }
}

/// What an audit found.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// By the life in which the request was sent.
    pub(crate) lives: HashMap<usize, Tally>,
    /// By how much the journal was behind a client at most, where more is missing than a stream
    /// brings in that time.
    most_behind: Duration,
    /// Streams that were rebuilt from the journal and were long enough to be too far behind, and
    /// those that were.
    rebuilt: usize,
    behind: Vec<String>,
    pub(crate) faults: Vec<String>,
}

impl Audit {
    /// Fails the test when anything was found.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        let shown: Vec<&String> = self.faults.iter().take(20).collect();
        assert!(
            shown.is_empty(),
            "{} faults, such as:\n{shown:#?}",
            self.faults.len()
        );
    }

    /// Says how far the journal was behind clients.
    pub(crate) fn describe_behind(&self) -> String {
        format!(
            "{:?} behind a client at most, more than it may be in {} of {} streams",
            self.most_behind,
            self.behind.len(),
            self.rebuilt
        )
    }

    fn fault(&mut self, call: &Call, what: &str, seen: &dyn std::fmt::Debug) {
        let name = call.name.trim_end_matches('x');
        self.faults.push(format!(
            "{name} (life {}, stream {}, {:?}, {} tokens, {:?}): {what}: {seen:?}",
            call.life,
            call.streams,
            call.outcome,
            call.tokens.len(),
            call.request_id,
        ));
    }
}

/// Compares everything, after the relay was stopped cleanly and the load has ended.
pub(crate) async fn audit(deployment: &Deployment, calls: &[Call]) -> Audit {
    let mut audit = audit_ledger(deployment).await;
    let records = all_records(deployment).await;
    check_requests(&mut audit, calls, &records, &deployment.upstream.served());
    if audit.behind.len() > audit.rebuilt / EXCUSED + 1 {
        let (behind, rebuilt) = (&audit.behind, audit.rebuilt);
        audit.faults.push(format!(
            "recorded too little of {} of {rebuilt} streams: {behind:#?}",
            behind.len()
        ));
    }
    audit
}

/// Returns every usage record of the tenant.
pub(crate) async fn all_records(deployment: &Deployment) -> Vec<StoredRecord> {
    let (storage, tenant) = deployment.storage().await;
    let records = storage
        .list_records(tenant.id, UnixMillis(0), UnixMillis(i64::MAX), u32::MAX)
        .await
        .unwrap();
    storage.close().await;
    records
}

/// Compares what the ledger says with itself and with the journal, after the relay was stopped.
pub(crate) async fn audit_ledger(deployment: &Deployment) -> Audit {
    let mut audit = Audit::default();
    let (storage, _tenant) = deployment.storage().await;
    let records = all_records(deployment).await;
    check_numbers(&mut audit, &storage, &records).await;
    check_counters(&mut audit, &storage, &records).await;
    check_journal(&mut audit, deployment, records.len());
    let now = records.iter().map(|r| r.started_at.0).max().unwrap_or(0);
    for finding in storage.verify_ledger(UnixMillis(now)).await.unwrap() {
        audit.faults.push(finding.to_string());
    }
    storage.close().await;
    audit
}

fn check_requests(audit: &mut Audit, calls: &[Call], records: &[StoredRecord], served: &[Served]) {
    let mut records_of: HashMap<&str, Vec<&StoredRecord>> = HashMap::new();
    for record in records {
        let name = record.user_agent.as_deref().unwrap_or("");
        records_of.entry(name).or_default().push(record);
    }
    let mut served_of: HashMap<String, Vec<&Served>> = HashMap::new();
    for served in served {
        let name = served.json()["user"].as_str().unwrap_or("").to_owned();
        served_of.entry(name).or_default().push(served);
    }
    for call in calls {
        let records = records_of.remove(&*call.name).unwrap_or_default();
        let served = served_of.remove(&call.name).unwrap_or_default();
        check_request(audit, call, &records, &served);
    }
    for (name, records) in records_of {
        audit.faults.push(format!(
            "records of nobody's request: {name:?}: {records:?}"
        ));
    }
    for name in served_of.keys() {
        audit
            .faults
            .push(format!("the provider served what nobody sent: {name}"));
    }
}

fn check_request(audit: &mut Audit, call: &Call, records: &[&StoredRecord], served: &[&Served]) {
    let tally = audit.lives.entry(call.life).or_default();
    tally.requests += 1;
    match call.outcome {
        Outcome::Complete => tally.complete += 1,
        Outcome::Refused(..) => tally.refused += 1,
        Outcome::Broken | Outcome::Failed(_) => tally.cut += 1,
        Outcome::Left => {}
    }
    if records.len() > 1 {
        audit.fault(call, "more than one record", &records);
    }
    if served.len() > 1 {
        audit.fault(call, "sent to the provider more than once", &served.len());
    }
    let (record, served) = (records.first().copied(), served.first().copied());
    let Some(record) = record else {
        if served.is_some() {
            audit.fault(call, "sent to the provider, without a record", &"");
        }
        if !matches!(call.outcome, Outcome::Refused(..) | Outcome::Broken) {
            audit.fault(call, "answered, without a record", &"");
        }
        return;
    };
    if let Some(id) = &call.request_id
        && *id != record.request_id.to_string()
    {
        audit.fault(call, "another request id", &record.request_id);
    }
    let sent = served.map_or(0, |served| served.output_tokens);
    if record.ending == Ending::Finished.as_str() {
        let is_exact = record.basis == Basis::Reported.as_str()
            && served.is_some_and(|s| s.reported == Some(record.usage) && s.is_complete());
        if !is_exact {
            audit.fault(call, "finished, but not as reported", &(record, served));
        }
        if call.outcome != Outcome::Complete {
            audit.lives.entry(call.life).or_default().exact_though_cut += 1;
        }
    } else if record.usage.output > sent {
        audit.fault(call, "recorded more than was sent", &(record, sent));
    }
    match &call.outcome {
        Outcome::Complete => {
            if record.ending != Ending::Finished.as_str() {
                audit.fault(call, "complete, but not recorded so", &record);
            }
        }
        Outcome::Refused(status, code) => {
            audit.fault(call, "refused, with a record", &(status, code, record));
        }
        Outcome::Broken => check_cut(audit, call, record),
        Outcome::Failed(_) | Outcome::Left => {
            let received = i64::try_from(call.tokens.len()).unwrap();
            // A provider that is not given the processor for long counts as silent.
            let is_ending = [
                Ending::ClientLeft,
                Ending::Shutdown,
                Ending::Finished,
                Ending::Deadline,
            ]
            .iter()
            .any(|ending| record.ending == ending.as_str());
            if record.ending == Ending::Crashed.as_str() {
                check_cut(audit, call, record);
            } else if !is_ending || record.usage.output < received {
                audit.fault(call, "recorded less than was received", &record);
            }
        }
    }
}

/// A request that was cut off by the end of the process.
fn check_cut(audit: &mut Audit, call: &Call, record: &StoredRecord) {
    if record.ending != Ending::Crashed.as_str() {
        // It had ended before the process did; it may have reached nobody.
        let known = [
            Ending::Finished,
            Ending::ClientLeft,
            Ending::Shutdown,
            Ending::Deadline,
        ];
        if !known.iter().any(|ending| record.ending == ending.as_str()) {
            audit.fault(call, "an ending that nothing explains", &record);
        }
        return;
    }
    audit.lives.entry(call.life).or_default().recovered += 1;
    if record.basis != Basis::Recovered.as_str() {
        audit.fault(call, "rebuilt on another basis", &record);
    }
    let recorded = usize::try_from(record.usage.output).unwrap();
    let length = u32::try_from(call.tokens.len()).unwrap();
    audit.rebuilt += usize::from(PACE * length > BEHIND);
    // Both instants are the client's, so that a slow end of the connection does not count.
    if let (Some(first_missing), Some(last)) = (call.tokens.get(recorded), call.tokens.last()) {
        let behind = last.saturating_sub(*first_missing);
        let missing = u32::try_from(call.tokens.len() - recorded).unwrap();
        // Where few came in a long time, it was the relay that did not run.
        if PACE * missing > BEHIND {
            audit.most_behind = audit.most_behind.max(behind);
            if behind > BEHIND {
                let name = call.name.trim_end_matches('x');
                audit.behind.push(format!("{name}: {behind:?}, {record:?}"));
            }
        }
    }
}

/// The numbers of each instance are dense, and no id is there twice.
async fn check_numbers(audit: &mut Audit, storage: &Storage, records: &[StoredRecord]) {
    let mut numbers: HashMap<_, Vec<i64>> = HashMap::new();
    for record in records {
        numbers
            .entry(record.instance_id)
            .or_default()
            .push(record.post_no);
    }
    for instance in storage.list_instances().await.unwrap() {
        let mut given = numbers.remove(&instance.instance_id).unwrap_or_default();
        given.sort_unstable();
        let dense: Vec<i64> = (1..=instance.posted_no).collect();
        if given != dense || instance.quarantined > 0 {
            let gap = given.iter().zip(&dense).find(|(a, b)| a != b);
            audit.faults.push(format!(
                "{} posts of {} numbers, first difference {gap:?}, {} set aside",
                given.len(),
                dense.len(),
                instance.quarantined
            ));
        }
        if instance
            .leases
            .iter()
            .any(|lease| !lease.lease.held.is_zero())
        {
            audit
                .faults
                .push(format!("leases are left: {:?}", instance.leases));
        }
    }
    if !numbers.is_empty() {
        audit.faults.push(format!(
            "records of unknown instances: {:?}",
            numbers.keys()
        ));
    }
    let mut ids: Vec<_> = records.iter().map(|record| record.request_id).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != records.len() {
        audit
            .faults
            .push(format!("{} ids in {} records", ids.len(), records.len()));
    }
}

/// What is used is the sum of the charges, and nothing is held.
async fn check_counters(audit: &mut Audit, storage: &Storage, records: &[StoredRecord]) {
    let mut sums: HashMap<_, i64> = HashMap::new();
    for record in records {
        let payer = Payer {
            tenant_id: record.tenant_id,
            user_id: record.user_id,
            key_id: record.key_id,
        };
        for key in payer.counters(record.period) {
            *sums.entry(key).or_default() += record.quota_tokens;
        }
    }
    let keys: Vec<_> = sums.keys().copied().collect();
    for balance in storage.load_counters(&keys).await.unwrap() {
        let charged = sums.remove(&balance.key).unwrap_or(0);
        // Users and keys without a cap are not counted.
        if balance.key.scope.kind != ScopeKind::Tenant && !balance.cap.is_set() {
            continue;
        }
        if balance.used != Amounts::tokens(charged) || !balance.held.is_zero() {
            audit.faults.push(format!(
                "{:?}: {charged} charged, {:?} used, {:?} held",
                balance.key.scope, balance.used, balance.held
            ));
        }
        if balance
            .cap
            .tokens
            .is_some_and(|cap| balance.used.tokens > cap)
        {
            audit.faults.push(format!("above its cap: {balance:?}"));
        }
    }
    if !sums.is_empty() {
        audit
            .faults
            .push(format!("charges without a counter: {sums:?}"));
    }
}

/// Nothing is open, and the database has everything.
fn check_journal(audit: &mut Audit, deployment: &Deployment, records: usize) {
    let folder = deployment.folder.path().join("data").join("journal");
    let replay = journal::replay(&FolderDisk::open(&folder).unwrap()).unwrap();
    let posted = usize::try_from(replay.posted_no).unwrap();
    if !replay.holds.is_empty()
        || replay.next_post_no != replay.posted_no + 1
        || posted != records
        || !replay.leases.is_empty()
    {
        audit.faults.push(format!(
            "the journal: {} open, {posted} posted of {}, {records} records, leases {:?}",
            replay.holds.len(),
            replay.next_post_no - 1,
            replay.leases
        ));
    }
}
