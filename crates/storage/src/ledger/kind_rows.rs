//! Kinds in the database: found by their hashes, and made where they are missing.
//!
//! What was found is not remembered: the database may go back.

use std::collections::HashMap;

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
pub(super) type KindIds = HashMap<KindHash, i64>;

on_both! {
    /// Returns the ids of kinds, which are inserted where they are missing.
    pub(super) async fn ensure_kinds(
        &mut self,
        poster: Poster,
        kinds: &[Entries<'_>],
    ) -> Result<KindIds, Failure> {
        let mut known = self.find_kinds(kinds).await?;
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
        self.find_kinds(kinds).await
    }

    async fn find_kinds(&mut self, kinds: &[Entries<'_>]) -> Result<KindIds, Failure> {
        let found: Vec<(Vec<u8>, i64)> = self
            .fetch_bulk(&FIND_KINDS, kinds, Repeats::Allowed, |arguments, kind| {
                row!(arguments, &kind.hash[..])
            })
            .await?;
        let found = found.into_iter().filter_map(|(hash, id)| Some((hash.try_into().ok()?, id)));
        Ok(found.collect())
    }
}
