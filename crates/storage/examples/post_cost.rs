//! Measures the CPU time that posting costs per record on SQLite, by size of batch.
//!
//! `cargo run --release -p sluice-storage --example post_cost [RECORDS [KEYS [BATCH …]]]`
//!
//! Keys take turns, each with a program of its own: with as many keys as records, no two records
//! have anything in common. Counts user and system time of the whole process, threads of SQLite included, and subtracts
//! nothing: the records are built before.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sluice_domain::id::{
    BootId, InstanceId, ProxyKeyId, RequestId, TenantId, UpstreamId, UpstreamKeyId, UserId, uuid_v7,
};
use sluice_domain::ports::{Guard, LeaseChange, LedgerStore, LockedCounter, PostMode};
use sluice_domain::quota::{Amounts, HoldTerms, Lease, Payer, ScopeKind, ScopeSet};
use sluice_domain::record::{
    AttemptRecord, Caller, NumberedRecord, OpenRequest, RequestEnd, UsageRecord,
};
use sluice_domain::route::Endpoint;
use sluice_domain::time::{TimeZone, UnixMillis};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};
use sluice_storage::tenant::NewTenant;
use sluice_storage::{Storage, StorageOptions};
use uuid::Uuid;

const NOW: i64 = 1_795_000_000_000;
/// Of `/proc/self/stat`: 100 per second on every Linux that matters.
const MICROS_PER_TICK: u64 = 10_000;
/// Keys that take turns, when none are named.
const KEYS: i64 = 1;

fn id(number: u64) -> Uuid {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    uuid_v7(1_795_000_000_000 + number / 8, random)
}

fn cpu_micros() -> Result<u64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The second field is in parentheses and may hold spaces; user and system time are the 14th
    // and 15th.
    let (_, rest) = stat.rsplit_once(") ").ok_or("unexpected /proc/self/stat")?;
    let ticks: Vec<u64> = rest
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<u64>() * MICROS_PER_TICK)
}

fn record(
    post_no: i64,
    keys: u64,
    tenant: TenantId,
    model: &Arc<str>,
    agents: &[Arc<str>],
) -> NumberedRecord {
    let number = u64::try_from(post_no).unwrap_or(0);
    let started_at = UnixMillis(NOW + post_no / 8);
    let zone = TimeZone::utc();
    let agent = usize::try_from(number % keys)
        .ok()
        .and_then(|at| agents.get(at));
    NumberedRecord {
        post_no,
        record: Box::new(UsageRecord {
            open: OpenRequest {
                request_id: RequestId::from_uuid(id(1_000_000 + number)),
                payer: Payer {
                    tenant_id: tenant,
                    user_id: UserId::from_uuid(id(2)),
                    key_id: ProxyKeyId::from_uuid(id(100 + number % keys)),
                },
                period: zone.period_of(started_at).month,
                local_day: zone.day_of(started_at).day,
                started_at,
                endpoint: Endpoint::ChatCompletions,
                streams: true,
                requested_model: Arc::clone(model),
                hold: HoldTerms {
                    // Bounds follow the length of the request.
                    bound: Amounts {
                        tokens: 1_000 + post_no % 512,
                        nano: 5_000 + post_no % 512,
                    },
                    leased: ScopeSet::default().with(ScopeKind::Tenant),
                    input_estimate: 150,
                },
                caller: Caller {
                    ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    user_agent: agent.cloned(),
                },
            },
            end: RequestEnd {
                ending: Ending::Finished,
                stage: Stage::Relaying,
                status: 200,
                error_code: None,
                usage: TokenUsage {
                    input: 150,
                    output: 90,
                    ..TokenUsage::default()
                },
                basis: Basis::Reported,
                owed: Amounts {
                    tokens: 240,
                    nano: 1_200 + post_no % 64,
                },
                first_event_ms: Some(12),
                duration_ms: 87,
                attempts: std::iter::once(AttemptRecord {
                    upstream_id: UpstreamId::from_uuid(id(3)),
                    upstream_key_id: Some(UpstreamKeyId::from_uuid(id(4))),
                    upstream_model: Arc::clone(model),
                    status: Some(200),
                    error: None,
                    started_at,
                    head_ms: 11,
                })
                .collect(),
                skipped: sluice_domain::pool::SkippedTargets::default(),
            },
        }),
    }
}

#[tokio::main(flavor = "current_thread")]
#[expect(clippy::print_stdout, reason = "an example prints its result")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<i64> = std::env::args()
        .skip(1)
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let records = arguments.first().copied().unwrap_or(100_000);
    let keys = u64::try_from(arguments.get(1).copied().unwrap_or(KEYS))?.max(1);
    let batches = match arguments.get(2..) {
        Some(batches) if !batches.is_empty() => batches.to_vec(),
        _ => vec![1, 32, 256, 512],
    };
    println!(
        "{:>6} {:>9} {:>14} {:>16} {:>14}",
        "batch", "records", "CPU µs/record", "wall µs/record", "bytes/record"
    );
    for batch in batches {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("sluice.db");
        let url = format!("sqlite:{}", file.display());
        let storage = Storage::open(&StorageOptions {
            url,
            max_connections: 1,
        })
        .await?;
        storage.migrate().await?;
        let tenant = TenantId::from_uuid(id(1));
        let new = NewTenant {
            id: tenant,
            name: "acme".parse()?,
            time_zone: TimeZone::utc(),
            quota_tokens: Some(1 << 50),
            now: UnixMillis(NOW),
        };
        storage.create_tenant(new).await?;
        let (instance_id, boot_id) = (InstanceId::from_uuid(id(5)), BootId::from_uuid(id(6)));
        let row = storage
            .claim_instance(instance_id, &[], boot_id, UnixMillis(NOW))
            .await?;
        let mut guard = Guard {
            instance_id,
            boot_id,
            seq: row.seq,
        };
        let model: Arc<str> = Arc::from("gpt-4o-mini");
        let agents: Vec<Arc<str>> = (0..keys)
            .map(|key| Arc::from(format!("OpenAI/Python 3.1.{key}")))
            .collect();
        let count = if batch == 1 { records / 20 } else { records };
        let all: Vec<NumberedRecord> = (1..=count)
            .map(|no| record(no, keys, tenant, &model, &agents))
            .collect();
        let Some(counter) = all
            .first()
            .map(|n| n.record.open.payer.counters(n.record.open.period)[0])
        else {
            continue;
        };
        let leased = Amounts {
            tokens: 1 << 48,
            nano: 1 << 48,
        };
        let policy = |rows: &[LockedCounter], _live: u32| {
            let all = LeaseChange {
                delta: leased,
                recall: None,
            };
            vec![all; rows.len()]
        };
        storage
            .move_leases(guard, &[counter], &policy, UnixMillis(NOW))
            .await?;
        guard.seq += 1;
        let in_flight = [Lease {
            key: counter,
            held: Amounts::tokens(1_000),
        }];
        let wall = tokio::time::Instant::now();
        let before = cpu_micros()?;
        for part in all.chunks(usize::try_from(batch)?) {
            let posted = storage
                .post_batch(guard, PostMode::Live, part, &in_flight, UnixMillis(NOW))
                .await?;
            if posted.inserted != part.len() {
                return Err("a record was not new".into());
            }
            guard.seq += 1;
        }
        let used = cpu_micros()? - before;
        let wall = wall.elapsed();
        // Closed, all that was written stands in the file.
        storage.close().await;
        let bytes = std::fs::metadata(&file)?.len();
        let count = f64::from(u32::try_from(count)?);
        println!(
            "{batch:>6} {count:>9} {:>14.2} {:>16.2} {:>14.1}",
            f64::from(u32::try_from(used)?) / count,
            wall.as_secs_f64() * 1e6 / count,
            f64::from(u32::try_from(bytes)?) / count,
        );
    }
    Ok(())
}
