//! Requests whose process died: what the journal knows becomes their record.

use std::borrow::Cow;

use sluice_domain::pool::SkippedTargets;
use sluice_domain::quota::Amounts;
use sluice_domain::record::{AttemptRecord, RequestEnd, UsageRecord};
use sluice_domain::time::UnixMillis;
use sluice_domain::usage::{Basis, Ending, Owed, Stage, TokenUsage, charge};

use crate::journal::OpenHold;

/// Why an attempt failed that is known to have failed: the journal has its start alone.
const UNKNOWN_FAILURE: &str = "unknown";

/// Makes the record of a request that was open when its process died. What was relayed is owed, by
/// the provider's own numbers where they had been seen; nothing else is.
pub(crate) fn recovered(hold: OpenHold, now: UnixMillis) -> UsageRecord {
    let OpenHold {
        open,
        attempts,
        progress,
    } = hold;
    let last = attempts.len().saturating_sub(1);
    // Whether it had been sent, nobody but the upstream knows.
    let stage = match progress {
        Some(_) => Stage::Relaying,
        None => Stage::Dispatched,
    };
    let usage = progress.map_or_else(TokenUsage::default, |progress| {
        progress.reported.unwrap_or(TokenUsage {
            input: open.hold.input_estimate,
            output: progress.output_tokens,
            ..TokenUsage::default()
        })
    });
    let owed = match charge(Ending::Crashed, stage) {
        Owed::Nothing => 0,
        Owed::Input => usage.input,
        Owed::InputAndOutput => usage.total(),
    };
    let end = RequestEnd {
        ending: Ending::Crashed,
        stage,
        status: 500,
        error_code: Some(Cow::Borrowed("internal_error")),
        usage,
        basis: Basis::Recovered,
        owed: Amounts::tokens(owed),
        first_event_ms: None,
        duration_ms: now.since(open.started_at),
        attempts: attempts
            .into_iter()
            .enumerate()
            .map(|(index, attempt)| AttemptRecord {
                upstream_id: attempt.upstream_id,
                upstream_key_id: attempt.upstream_key_id,
                upstream_model: attempt.upstream_model,
                status: None,
                // Another one was begun after it.
                error: (index < last).then_some(Cow::Borrowed(UNKNOWN_FAILURE)),
                started_at: attempt.started_at,
                head_ms: 0,
            })
            .collect(),
        skipped: SkippedTargets::default(),
    };
    UsageRecord { open, end }
}
