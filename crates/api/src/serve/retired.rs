//! Instances of this data folder that an operator has settled, and that have handed in what they had.
//! The database may go back to before that; then nobody else would hand it in again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sluice_accounting::journal::{self, FolderDisk, Journal};
use sluice_accounting::{Finish, Identity, LedgerOptions, StartError};
use sluice_domain::ports::{Clock as _, InstanceState, LedgerStore};

use crate::clock::SystemClock;
use crate::data_folder::{DataFolder, RetiredInstance};
use crate::error::chain;

/// How long one instance may take to hand in what it has.
const GRACE: Duration = Duration::from_secs(30);

/// Looks at every retired instance: those that the database does not know as closed hand in again;
/// those that are closed are removed when their journals need not be kept any more. What fails is
/// logged and tried again at the next start.
pub(super) async fn look_after(
    folder: &DataFolder,
    store: &Arc<dyn LedgerStore>,
    options: LedgerOptions,
    journal_options: journal::Options,
) {
    let retired = match folder.retired() {
        Ok(retired) => retired,
        Err(error) => {
            tracing::warn!(error = chain(&error), "retired instances cannot be listed");
            return;
        }
    };
    for instance in retired {
        let looked = look_at(&instance, store, options, journal_options).await;
        if let Err(error) = looked {
            tracing::error!(
                instance.id = %instance.instance_id,
                error = format!("{error:#}"),
                "a retired instance could not be looked after; the next start tries again"
            );
        }
    }
}

async fn look_at(
    instance: &RetiredInstance,
    store: &Arc<dyn LedgerStore>,
    options: LedgerOptions,
    journal_options: journal::Options,
) -> anyhow::Result<()> {
    let row = store.find_instance(instance.instance_id).await?;
    if row.is_none_or(|row| row.state != InstanceState::Closed) {
        tracing::warn!(
            instance.id = %instance.instance_id,
            "the database has lost what a settled instance had handed in; it hands in again"
        );
        return hand_in(instance, store, options, journal_options).await;
    }
    if instance.age(SystemClock.now())? >= journal_options.keep {
        instance.remove()?;
    }
    Ok(())
}

async fn hand_in(
    instance: &RetiredInstance,
    store: &Arc<dyn LedgerStore>,
    options: LedgerOptions,
    journal_options: journal::Options,
) -> anyhow::Result<()> {
    let identity = instance.begin_boot()?;
    let disk = FolderDisk::open(&instance.journal()).context("its journal cannot be opened")?;
    let (journal, replay) = Journal::open(
        Arc::new(disk),
        journal_options,
        journal::Identity {
            instance_id: identity.instance_id,
            boot_id: identity.boot_id,
            previous_boot: identity.earlier_boots.last().copied(),
        },
    )
    .context("its journal cannot be opened")?;
    let identity = Identity {
        instance_id: identity.instance_id,
        earlier_boots: identity.earlier_boots,
        boot_id: identity.boot_id,
    };
    let (store, clock) = (Arc::clone(store), Arc::new(SystemClock));
    match sluice_accounting::start(options, store, clock, journal, replay, identity).await {
        Err(StartError::Settled) => Ok(()),
        Err(StartError::PostsGone { from, oldest }) => {
            let (id, journal) = (instance.instance_id, instance.journal());
            anyhow::bail!(super::posts_gone(id, &journal, from, oldest))
        }
        Err(error) => Err(error.into()),
        // The operator's act is undone as well: it ends as an instance that stops.
        Ok((_ledger, writer)) => match writer.run(std::future::ready(()), GRACE).await {
            Finish::Clean | Finish::Settled => Ok(()),
            other => anyhow::bail!("it could not hand in everything: {other:?}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use sluice_accounting::Fsync;
    use sluice_storage::resolve::Settlement;
    use sluice_storage::{Storage, StorageOptions};

    use super::*;

    fn options() -> LedgerOptions {
        LedgerOptions {
            max_in_memory: 100,
            quota_wait: Duration::from_secs(1),
            outage_reserve: Duration::from_mins(10),
            fsync: Fsync::Interval,
            blocks_on_threads: true,
        }
    }

    fn kept_for(keep: Duration) -> journal::Options {
        journal::Options {
            keep,
            ..journal::Options::default()
        }
    }

    #[tokio::test]
    async fn a_retired_instance_hands_in_again_and_is_removed_after_its_time() {
        let place = tempfile::tempdir().unwrap();
        let storage = Storage::open(&StorageOptions {
            url: format!("sqlite:{}", place.path().join("sluice.db").display()),
            max_connections: 2,
        })
        .await
        .unwrap();
        storage.migrate().await.unwrap();
        let store = Arc::new(storage.clone()) as Arc<dyn LedgerStore>;
        let mut folder = DataFolder::open_or_create(&place.path().join("data")).unwrap();
        folder.lock().unwrap();
        let identity = folder.begin_boot().unwrap();
        let instance_id = identity.instance_id;
        let boots = [identity.boot_id];
        store
            .claim_instance(instance_id, &[], boots[0], SystemClock.now())
            .await
            .unwrap();
        drop(folder.journal().unwrap());
        folder.retire_instance().unwrap();
        // The database is at a time when the operator had settled it and nothing was handed in.
        let forced = Settlement {
            is_forced: true,
            ..Settlement::default()
        };
        storage
            .resolve_instance(instance_id, forced, SystemClock.now())
            .await
            .unwrap();

        let keep = kept_for(Duration::from_hours(24));
        look_after(&folder, &store, options(), keep).await;
        let row = store.find_instance(instance_id).await.unwrap().unwrap();
        assert_eq!(row.state, InstanceState::Closed);
        assert_eq!(folder.retired().unwrap().len(), 1, "it is kept for a while");
        look_after(&folder, &store, options(), keep).await;
        assert_eq!(folder.retired().unwrap().len(), 1);
        look_after(&folder, &store, options(), kept_for(Duration::ZERO)).await;
        assert!(folder.retired().unwrap().is_empty());
    }
}
