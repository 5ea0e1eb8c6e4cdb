//! The guard: the first statement of every transaction of an instance.

use sluice_domain::id::InstanceId;
use sluice_domain::ports::{Guard, InstanceState, PostMode, StoreError};
use sluice_domain::record::NumberedRecord;
use sluice_domain::time::UnixMillis;

use crate::error::{Failure, internal};

statements! {
    // A commit of unknown outcome, a copied folder and a database that went back are all a row that
    // does not fit.
    PASS_GUARD = "UPDATE instances SET seq = seq + 1, heartbeat_at_ms = $5, \
            posted_no = CASE WHEN posted_no < $7 THEN $7 ELSE posted_no END, \
            posted_rows = posted_rows + $8 \
        WHERE instance_id = $1 AND boot_id = $2 AND seq = $3 AND state = $4 \
            AND (posted_no = $6 OR (posted_no > $6 AND CAST($8 AS BIGINT) = 0)) \
        RETURNING instance_no";
    FIND_GUARD = "SELECT posted_no FROM instances \
        WHERE instance_id = $1 AND boot_id = $2 AND seq = $3 AND state = $4";
    PASS_RESYNC = "UPDATE instances SET seq = CAST($3 AS BIGINT) + 1, heartbeat_at_ms = $4 \
        WHERE instance_id = $1 AND boot_id = $2 AND state = 'live' AND seq < $3";
}

/// The numbers of a batch, which must be dense.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Numbers {
    pub(crate) before_first: i64,
    pub(crate) last: i64,
}

impl Numbers {
    pub(crate) fn of(records: &[NumberedRecord]) -> Result<Self, StoreError> {
        let first = records.first().map_or(1, |numbered| numbered.post_no);
        let is_dense = first >= 1 && (first..).zip(records).all(|(no, n)| n.post_no == no);
        if !is_dense {
            return Err(internal("the numbers of a batch are not dense"));
        }
        let last = records.last().map_or(0, |numbered| numbered.post_no);
        if last > MAX_POST_NO {
            return Err(internal("an instance has no more numbers"));
        }
        Ok(Self {
            before_first: first - 1,
            last,
        })
    }
}

/// Bits of an origin that are the number of the post; the rest is the number of the instance.
const POST_BITS: u32 = 40;
/// The highest number of a post.
pub(crate) const MAX_POST_NO: i64 = (1 << POST_BITS) - 1;

/// An instance that has passed the guard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Poster {
    pub(crate) id: InstanceId,
    /// Its number in the database, which may be another after the database went back.
    pub(crate) no: i64,
}

impl Poster {
    /// Returns what the ledger calls a post of all instances by.
    pub(crate) const fn origin(self, post_no: i64) -> i64 {
        (self.no << POST_BITS) | post_no
    }
}

/// The state in which an instance may post so.
const fn state_for(mode: PostMode) -> InstanceState {
    match mode {
        PostMode::Live => InstanceState::Live,
        PostMode::Late => InstanceState::Resolved,
    }
}

on_both! {
    /// Checks and advances the row of the instance; nothing may happen when it does not fit. Rows
    /// that are counted as new must begin right after the last post: of earlier ones some may have
    /// been set aside, which the records do not tell.
    pub(crate) async fn pass_guard(
        &mut self,
        guard: Guard,
        mode: PostMode,
        numbers: Numbers,
        new_rows: usize,
        now: UnixMillis,
    ) -> Result<Poster, Failure> {
        let (instance, boot) = (guard.instance_id.as_uuid(), guard.boot_id.as_uuid());
        let state = state_for(mode).as_str();
        let passed: Option<i64> = sql_scalar!(
            PASS_GUARD,
            instance,
            boot,
            guard.seq,
            state,
            now.0,
            numbers.before_first,
            numbers.last,
            i64::try_from(new_rows).unwrap_or(i64::MAX),
        )
        .fetch_optional(&mut *self.conn)
        .await?;
        if let Some(no) = passed {
            return Ok(Poster { id: guard.instance_id, no });
        }
        let posted_no: Option<i64> = sql_scalar!(FIND_GUARD, instance, boot, guard.seq, state)
            .fetch_optional(&mut *self.conn)
            .await?;
        match posted_no {
            None => Err(StoreError::Guard.into()),
            Some(posted_no) if posted_no > numbers.before_first => Err(Failure::NotAllNew),
            Some(_) => Err(internal("posts are missing before the first of this batch").into()),
        }
    }

    /// As [`Self::pass_guard`], when the number in the database is behind: it becomes one more than
    /// that of the guard.
    pub(crate) async fn pass_resync(&mut self, guard: Guard, now: UnixMillis) -> Result<(), Failure> {
        let (instance, boot) = (guard.instance_id.as_uuid(), guard.boot_id.as_uuid());
        let passed =
            sql!(PASS_RESYNC, instance, boot, guard.seq, now.0).execute(&mut *self.conn).await?;
        if passed.rows_affected() == 1 { Ok(()) } else { Err(StoreError::Guard.into()) }
    }
}
