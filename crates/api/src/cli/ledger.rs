//! `sluice ledger`: whether the accounts are sound, who takes part in them, and what an operator does
//! about an instance that is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::json;
use sluice_accounting::journal::{self, FolderDisk, Replay};
use sluice_domain::id::{InstanceId, ProxyKeyId, TenantId, UserId};
use sluice_domain::ports::InstanceState;
use sluice_domain::quota::{Amounts, CounterKey, Lease, ScopeKind};
use sluice_domain::record::NumberedRecord;
use sluice_storage::resolve::{InstanceOverview, LostPosts, Resolved, Settlement};
use sluice_storage::verify::{Finding, StoredPost};

use super::admin::{Admin, with_database};
use super::input::WrongUsage;
use super::table::{ListArgs, Table, grouped, time};
use crate::config::Config;
use crate::terminal;

#[derive(Debug, Subcommand)]
pub(super) enum LedgerCommand {
    /// Check that every figure follows from the records; reads only, exits with 1 when one does not
    ///
    /// Held amounts are compared with leases, used amounts with records and entries, records with
    /// daily and monthly sums, post numbers with each other.
    Verify {
        /// Check the journal of a stopped instance too: the folder `journal` in its data folder
        #[arg(long, value_name = "DIR")]
        journal: Option<PathBuf>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// List the instances that have written to the ledger, and what each has leased
    Instances(#[command(flatten)] ListArgs),
    /// Settle an instance that is gone for good, so that its leases do not block months and quotas
    ///
    /// What it had leased counts against the quotas and is never billed. When its data folder comes
    /// back and is started, the facts in its journal take the place of that. When that journal is
    /// there but lacks posts that the database asks for again, `--journal` gives those up, so that
    /// what the journal has can be handed in.
    Resolve {
        /// The instance, as `sluice ledger instances` shows it
        instance: InstanceId,
        /// Give its leases back at once instead: should its journal come back, quotas may be
        /// overdrawn by what it had not posted
        #[arg(long)]
        release: bool,
        /// Give up the posts that neither the database nor this journal of the instance has: the
        /// folder `journal` in its data folder. What they used is never counted
        #[arg(long, value_name = "DIR", conflicts_with = "release")]
        journal: Option<PathBuf>,
        /// Confirm `--release`, or what `--journal` gives up
        #[arg(long)]
        yes: bool,
        /// Settle it although it was heard of less than five minutes ago
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(command: LedgerCommand, config: &Config) -> anyhow::Result<()> {
    with_database(config, async |admin| match command {
        LedgerCommand::Verify { journal, list } => verify(admin, journal.as_deref(), list).await,
        LedgerCommand::Instances(list) => instances(admin, list).await,
        LedgerCommand::Resolve {
            instance,
            release,
            journal,
            yes,
            force,
        } => {
            if release && !yes {
                bail!(WrongUsage(
                    "`--release` may lead to an overdraft; confirm it with `--yes`".to_owned()
                ));
            }
            let lost = match journal {
                Some(folder) => Some(posts_to_give_up(admin, instance, &folder, yes).await?),
                None => None,
            };
            let settlement = Settlement {
                releases: release,
                is_forced: force,
                lost,
            };
            resolve(admin, instance, settlement).await
        }
    })
}

async fn verify(admin: &Admin<'_>, journal: Option<&Path>, list: ListArgs) -> anyhow::Result<()> {
    let mut findings = admin.storage.verify_ledger(admin.now).await?;
    if let Some(folder) = journal {
        findings.extend(verify_journal(admin, folder).await?);
    }
    let mut table = Table::new(&["rule", "table", "key", "expected", "found", "meaning"]);
    for finding in &findings {
        table.push([
            json!(finding.id),
            json!(finding.table),
            json!(finding.key),
            json!(finding.expected),
            json!(finding.found),
            json!(finding.sentence),
        ]);
    }
    table.print(list, "the ledger is sound")?;
    let faults = findings.iter().filter(|f| !f.is_warning()).count();
    if faults > 0 {
        bail!("the ledger has {faults} faults");
    }
    Ok(())
}

/// Compares the journal of a stopped instance with what the database knows of it.
async fn verify_journal(admin: &Admin<'_>, folder: &Path) -> anyhow::Result<Vec<Finding>> {
    let disk = FolderDisk::open(folder).context("the journal cannot be opened")?;
    let replay = journal::replay(&disk).context("the journal cannot be read")?;
    let Some(instance_id) = replay.instance_id else {
        bail!("{} holds no journal", folder.display());
    };
    let instances = admin.storage.list_instances().await?;
    let Some(instance) = instances.iter().find(|i| i.instance_id == instance_id) else {
        bail!("the database knows nothing of {instance_id}, whose journal this is");
    };
    let mut findings = compare(instance, &replay);
    // Read as fast as they are compared: a journal may be larger than the memory.
    let (sender, mut pieces) = tokio::sync::mpsc::channel(1);
    let reading = tokio::task::spawn_blocking(move || {
        journal::kept_posts(&disk, &mut |kept| {
            // Nobody listens when the comparison has failed.
            drop(sender.blocking_send(kept));
        })
    });
    while let Some(piece) = pieces.recv().await {
        let kept: Vec<StoredPost> = piece
            .iter()
            .filter(|post| post.post_no <= instance.posted_no)
            .map(post_of)
            .collect();
        let (Some(first), Some(last)) = (kept.first(), kept.last()) else {
            continue;
        };
        let stored = admin
            .storage
            .list_posts(instance_id, first.post_no, last.post_no)
            .await?;
        findings.extend(compare_posts(instance_id, &kept, &stored));
    }
    reading
        .await
        .context("the journal was not read to its end")?
        .context("the posts of the journal cannot be read")?;
    terminal::note(&format!(
        "{instance_id}: {} requests were open, posts up to {} of {} are in the database",
        replay.holds.len(),
        instance.posted_no,
        replay.next_post_no - 1
    ));
    Ok(findings)
}

/// Returns what the ledger should have of a post.
fn post_of(numbered: &NumberedRecord) -> StoredPost {
    let record = &numbered.record;
    StoredPost {
        post_no: numbered.post_no,
        request_id: record.open.request_id,
        payer: Some(record.open.payer),
        charge: record.charge(),
        excess: record.excess(),
    }
}

/// Compares posts of a journal, in their order, with what the ledger has of them.
fn compare_posts(instance: InstanceId, kept: &[StoredPost], stored: &[StoredPost]) -> Vec<Finding> {
    let found: BTreeMap<i64, &StoredPost> =
        stored.iter().map(|post| (post.post_no, post)).collect();
    let finding = |post: &StoredPost, expected: String, found: String, sentence| Finding {
        id: "J2",
        table: "usage_records",
        key: format!("post {} of {instance}", post.post_no),
        expected,
        found,
        sentence,
    };
    let words = |post: &StoredPost| {
        let payer = post.payer.map_or_else(String::new, |payer| {
            format!(" of {} {} {}", payer.tenant_id, payer.user_id, payer.key_id)
        });
        format!(
            "{}{payer}: {} tokens and {} nano, {} and {} beyond it",
            post.request_id,
            post.charge.tokens,
            post.charge.nano,
            post.excess.tokens,
            post.excess.nano
        )
    };
    let compare = |post: &StoredPost| match found.get(&post.post_no) {
        None => Some(finding(
            post,
            words(post),
            "none".to_owned(),
            "the journal has a post that the database lost",
        )),
        Some(stored) => {
            // Of what was set aside the ledger has no amounts.
            let is_same = if stored.payer.is_some() {
                *stored == post
            } else {
                stored.request_id == post.request_id
            };
            let sentence = "the journal and the database have different posts of one number";
            (!is_same).then(|| finding(post, words(post), words(stored), sentence))
        }
    };
    kept.iter().filter_map(compare).collect()
}

fn compare(instance: &InstanceOverview, replay: &Replay) -> Vec<Finding> {
    let mut findings = Vec::new();
    let finding = |key: String, expected: String, found: String, sentence| Finding {
        id: "J1",
        table: "journal",
        key,
        expected,
        found,
        sentence,
    };
    let last = replay.next_post_no - 1;
    if instance.posted_no > last {
        findings.push(finding(
            instance.instance_id.to_string(),
            format!("at least {}", instance.posted_no),
            last.to_string(),
            "the database has posts that the journal does not have: the folder is older or a copy",
        ));
    }
    if instance.state != InstanceState::Live {
        return findings;
    }
    for Lease { key, held } in open_bounds(replay) {
        let leased = instance
            .leases
            .iter()
            .find(|stored| stored.lease.key == key)
            .map_or(Amounts::ZERO, |stored| stored.lease.held);
        if !held.fits(leased) {
            findings.push(finding(
                format!("{} of {}", scope_id(key), key.month),
                format!("at least {} tokens leased", held.tokens),
                leased.tokens.to_string(),
                "open requests hold more than the instance has leased",
            ));
        }
    }
    findings
}

/// Returns the scope of a counter as other commands show it.
fn scope_id(key: CounterKey) -> String {
    let id = key.scope.id;
    match key.scope.kind {
        ScopeKind::Tenant => TenantId::from_uuid(id).to_string(),
        ScopeKind::User => UserId::from_uuid(id).to_string(),
        ScopeKind::Key => ProxyKeyId::from_uuid(id).to_string(),
    }
}

/// What the open holds of a journal have set aside, by counter.
fn open_bounds(replay: &Replay) -> Vec<Lease> {
    let mut bounds = BTreeMap::<CounterKey, Amounts>::new();
    for hold in &replay.holds {
        let open = &hold.open;
        for key in open.payer.counters(open.period) {
            if open.hold.leased.contains(key.scope.kind) {
                let sum = bounds.entry(key).or_default();
                *sum = sum.plus(open.hold.bound);
            }
        }
    }
    bounds
        .into_iter()
        .map(|(key, held)| Lease { key, held })
        .collect()
}

async fn instances(admin: &Admin<'_>, list: ListArgs) -> anyhow::Result<()> {
    let mut table = Table::new(&[
        "id",
        "state",
        "last_seen",
        "posted",
        "quarantined",
        "lost",
        "leased_tokens",
        "in_flight_tokens",
        "exposed_tokens",
    ]);
    for instance in admin.storage.list_instances().await? {
        let sum = |amounts: &mut dyn Iterator<Item = Amounts>| {
            amounts.fold(Amounts::ZERO, Amounts::plus).tokens
        };
        table.push([
            json!(instance.instance_id.to_string()),
            json!(instance.state.as_str()),
            time(instance.heartbeat_at),
            json!(instance.posted_no),
            json!(instance.quarantined),
            json!(instance.lost),
            json!(sum(&mut instance.leases.iter().map(|l| l.lease.held))),
            json!(sum(&mut instance.leases.iter().map(|l| l.in_flight))),
            json!(sum(&mut instance.exposures.iter().map(|l| l.held))),
        ]);
    }
    table.print(list, "no instance has written to the ledger yet")
}

/// Returns the posts that neither the database nor the journal of an instance has; fails when there
/// are none, and when nobody has confirmed that they are lost.
async fn posts_to_give_up(
    admin: &Admin<'_>,
    instance: InstanceId,
    folder: &Path,
    is_confirmed: bool,
) -> anyhow::Result<LostPosts> {
    let instances = admin.storage.list_instances().await?;
    let Some(known) = instances.iter().find(|i| i.instance_id == instance) else {
        bail!("there is no instance {instance}; `sluice ledger instances` lists what there is");
    };
    let disk = FolderDisk::open(folder).context("the journal cannot be opened")?;
    let replay = journal::replay(&disk).context("the journal cannot be read")?;
    if replay.instance_id != Some(instance) {
        bail!("{} is not the journal of {instance}", folder.display());
    }
    let mut oldest = None;
    journal::kept_posts(&disk, &mut |kept| {
        oldest = oldest.or(kept.first().map(|post| post.post_no));
    })
    .context("the posts of the journal cannot be read")?;
    // Where no post is kept, all that were made are gone.
    let oldest = oldest.unwrap_or(replay.next_post_no);
    let lost = LostPosts {
        first: known.posted_no + 1,
        last: oldest - 1,
    };
    if lost.count() < 1 {
        bail!(
            "the journal in {} has every post that the database asks for; start the instance from \
             its data folder, and nothing is lost",
            folder.display()
        );
    }
    if !is_confirmed {
        bail!(WrongUsage(format!(
            "neither the database nor the journal has posts {} to {} of {instance}: {} requests, whose \
             use would never be counted. Restore a newer state of the database if there is one; \
             otherwise confirm with `--yes` that they are lost",
            lost.first,
            lost.last,
            lost.count()
        )));
    }
    Ok(lost)
}

async fn resolve(
    admin: &Admin<'_>,
    instance: InstanceId,
    settlement: Settlement,
) -> anyhow::Result<()> {
    let resolved = admin
        .storage
        .resolve_instance(instance, settlement, admin.now)
        .await?;
    let note_lost = || {
        if let Some(lost) = settlement.lost {
            terminal::note(&format!(
                "posts {} to {} of {instance} are given up: what {} requests used is not counted. Start \
                 it from its data folder: it hands in what its journal has, and goes on as a new instance",
                lost.first,
                lost.last,
                lost.count()
            ));
        }
    };
    match resolved {
        Resolved::Settled(leases) => {
            for Lease { key, held } in &leases {
                terminal::note(&format!(
                    "{} of {}: {} tokens {}",
                    scope_id(*key),
                    key.month,
                    grouped(&held.tokens.to_string()),
                    if settlement.releases {
                        "given back"
                    } else {
                        "count as used until the journal comes back"
                    }
                ));
            }
            terminal::note(&format!("instance {instance} is settled"));
            note_lost();
        }
        Resolved::Already(state) => {
            terminal::note(&format!("instance {instance} is {state} already"));
            if state == InstanceState::Resolved {
                note_lost();
            }
        }
        Resolved::Moved { posted_no } => bail!(
            "instance {instance} has posted up to {posted_no} meanwhile; stop it, and try again"
        ),
        Resolved::Alive { heartbeat_at } => bail!(
            "instance {instance} was heard of at {}; stop it first, or add `--force`",
            heartbeat_at.to_rfc3339()
        ),
        Resolved::Unknown => {
            bail!("there is no instance {instance}; `sluice ledger instances` lists what there is")
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sluice_domain::id::RequestId;
    use sluice_domain::quota::Payer;
    use uuid::Uuid;

    use super::*;

    fn uuid(n: i64) -> Uuid {
        Uuid::from_u128(u128::try_from(n).unwrap())
    }

    fn posts() -> Vec<StoredPost> {
        let post = |post_no| StoredPost {
            post_no,
            request_id: RequestId::from_uuid(uuid(1_000 + post_no)),
            payer: Some(Payer {
                tenant_id: TenantId::from_uuid(uuid(post_no % 3)),
                user_id: UserId::from_uuid(uuid(post_no % 5)),
                key_id: ProxyKeyId::from_uuid(uuid(post_no % 7)),
            }),
            charge: Amounts {
                tokens: 30 + post_no,
                nano: 300,
            },
            excess: Amounts::ZERO,
        };
        (11..=40).map(post).collect()
    }

    #[test]
    fn a_journal_that_agrees_with_the_ledger_has_no_finding() {
        let instance = InstanceId::from_uuid(uuid(9));
        let mut stored = posts();
        assert_eq!(compare_posts(instance, &posts(), &stored), []);
        // What was set aside has its request alone.
        stored[3] = StoredPost {
            payer: None,
            charge: Amounts::ZERO,
            ..stored[3]
        };
        assert_eq!(compare_posts(instance, &posts(), &stored), []);
    }

    #[test]
    fn every_post_that_the_ledger_lost_or_changed_is_named_alone() {
        let instance = InstanceId::from_uuid(uuid(9));
        let payer = |post: &mut StoredPost, change: fn(&mut Payer)| {
            if let Some(payer) = &mut post.payer {
                change(payer);
            }
        };
        let changes: [&dyn Fn(&mut StoredPost); 10] = [
            &|post| post.charge.tokens += 1,
            &|post| post.charge.nano -= 1,
            &|post| post.excess.tokens += 1,
            &|post| post.excess.nano += 1,
            &|post| post.request_id = RequestId::from_uuid(uuid(1)),
            &|post| {
                payer(post, |payer| {
                    payer.tenant_id = TenantId::from_uuid(uuid(77));
                });
            },
            &|post| payer(post, |payer| payer.user_id = UserId::from_uuid(uuid(77))),
            &|post| payer(post, |payer| payer.key_id = ProxyKeyId::from_uuid(uuid(77))),
            &|post| {
                post.payer = None;
                post.request_id = RequestId::from_uuid(uuid(1));
            },
            &|post| post.post_no += 1_000,
        ];
        for (number, change) in changes.iter().enumerate() {
            for place in 0..posts().len() {
                let mut stored = posts();
                change(&mut stored[place]);
                let found = compare_posts(instance, &posts(), &stored);
                let keys: Vec<&str> = found.iter().map(|finding| finding.key.as_str()).collect();
                let key = format!("post {} of {instance}", place + 11);
                assert_eq!(keys, [key.as_str()], "change {number}");
            }
        }
    }
}
