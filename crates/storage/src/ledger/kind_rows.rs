//! Kinds in the database: found by their hashes, and made where they are missing.

use std::collections::HashMap;

use parking_lot::Mutex;
use quick_cache::unsync::Cache;
use sluice_domain::ports::Guard;

use super::Lately;
use super::guard::Poster;
use super::kind_hash::KindHash;
use super::sums::Entries;
use crate::bulk::Repeats;
use crate::error::Failure;
use crate::text::Words;

bulks! {
    FIND_KINDS = "WITH wanted (hash) AS (VALUES ",
        1,
        // `CROSS JOIN` is in this order on SQLite, which would read all kinds for many that are wanted.
        ") SELECT k.hash, k.kind_id FROM wanted w CROSS JOIN record_kinds k WHERE k.hash = w.hash";
    INSERT_KINDS = "INSERT INTO record_kinds (kind_id, hash, tenant_id, user_id, key_id, period, statement_period, \
            local_day, endpoint, streams, requested_model, upstream_id, upstream_model, upstream_key_id, \
            attempt_count, attempt_status, ending, stage, status, error_code, basis) VALUES ",
        21,
        " ON CONFLICT DO NOTHING";
}

/// The ids of kinds that are in the database.
pub(crate) type KindIds = HashMap<KindHash, i64>;

/// How many kinds are remembered.
const REMEMBERED: usize = 8_192;

/// The kinds that committed transactions of an instance have met lately.
///
/// The database may go back, and lose kinds. An instance notices by its guard: one that passes has
/// its last transaction in the database, and with it all that this transaction met. So nothing is
/// remembered for a guard before that transaction or of another start, and where a guard is set anew,
/// everything must be forgotten before. Whoever removes kinds from the database must see to it that
/// nobody remembers them.
pub(crate) struct Kinds(Mutex<Known>);

struct Known {
    /// The guard that holds after the last transaction that is remembered.
    since: Option<Guard>,
    ids: Cache<KindHash, i64>,
}

impl Known {
    fn forget(&mut self) {
        self.since = None;
        self.ids.clear();
    }

    fn is_before(&self, guard: Guard) -> bool {
        self.since.is_some_and(|since| {
            (since.instance_id, since.boot_id) == (guard.instance_id, guard.boot_id)
                && since.seq <= guard.seq
        })
    }
}

impl Kinds {
    pub(crate) fn new() -> Self {
        let ids = Cache::new(REMEMBERED);
        Self(Mutex::new(Known { since: None, ids }))
    }

    /// Remembers what a transaction has met that was committed with this guard.
    pub(super) fn remember(&self, guard: Guard, met: KindIds) {
        let mut known = self.0.lock();
        if !known.is_before(guard) {
            known.forget();
        }
        known.since = Some(Guard {
            seq: guard.seq.saturating_add(1),
            ..guard
        });
        for (hash, id) in met {
            known.ids.insert(hash, id);
        }
    }

    /// Forgets everything.
    pub(crate) fn forget(&self) {
        self.0.lock().forget();
    }

    fn among(&self, guard: Guard, kinds: &[Entries<'_>]) -> KindIds {
        let known = self.0.lock();
        if !known.is_before(guard) {
            return KindIds::default();
        }
        let found = kinds
            .iter()
            .filter_map(|kind| Some((kind.hash, *known.ids.get(&kind.hash)?)));
        found.collect()
    }
}

on_both! {
    /// Returns the ids of kinds, which are inserted where they are missing.
    pub(super) async fn ensure_kinds(
        &mut self,
        poster: Poster,
        kinds: &[Entries<'_>],
        lately: &Lately<'_>,
    ) -> Result<KindIds, Failure> {
        let mut known = lately.kinds.among(lately.guard, kinds);
        let new: Vec<&Entries<'_>> =
            kinds.iter().filter(|kind| !known.contains_key(&kind.hash)).collect();
        if new.is_empty() {
            return Ok(known);
        }
        known.extend(self.find_kinds(&new).await?);
        let mut missing: Vec<&Entries<'_>> =
            kinds.iter().filter(|kind| !known.contains_key(&kind.hash)).collect();
        if missing.is_empty() {
            return Ok(known);
        }
        // Kinds that differ in who is charged how are one here.
        missing.sort_unstable_by_key(|kind| kind.hash);
        missing.dedup_by_key(|kind| kind.hash);
        let id_of = |kind: &Entries<'_>| {
            kind.records.first().map(|numbered| poster.origin(numbered.post_no))
        };
        missing.sort_unstable_by_key(|kind| id_of(kind));
        let mut words = Words::default();
        let inserted = self.execute_bulk(&INSERT_KINDS, &missing, |arguments, kind| {
            let content = kind.content();
            row!(
                arguments,
                id_of(kind),
                &kind.hash[..],
                content.tenant_id,
                content.user_id,
                content.key_id,
                content.period,
                content.statement_period,
                content.local_day,
                words.share(content.endpoint),
                content.streams,
                kind.requested_model.clone(),
                content.upstream_id,
                kind.upstream_model.clone(),
                content.upstream_key_id,
                content.attempt_count,
                content.attempt_status,
                words.share(content.ending),
                words.share(content.stage),
                content.status,
                content.error_code.map(|code| words.share(code)),
                words.share(content.basis),
            )
        });
        if inserted.await? == missing.len() {
            let new = missing.iter().filter_map(|kind| Some((kind.hash, id_of(kind)?)));
            known.extend(new);
            return Ok(known);
        }
        // Another instance was faster.
        known.extend(self.find_kinds(&missing).await?);
        Ok(known)
    }

    async fn find_kinds(&mut self, kinds: &[&Entries<'_>]) -> Result<KindIds, Failure> {
        let found: Vec<(Vec<u8>, i64)> = self
            .fetch_bulk(&FIND_KINDS, kinds, Repeats::Allowed, |arguments, kind| {
                row!(arguments, &kind.hash[..])
            })
            .await?;
        let found = found.into_iter().filter_map(|(hash, id)| Some((hash.try_into().ok()?, id)));
        Ok(found.collect())
    }
}
