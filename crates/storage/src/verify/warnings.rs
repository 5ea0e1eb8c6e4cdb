//! What a person should know of a sound ledger.

use sluice_domain::time::UnixMillis;
use uuid::Uuid;

use super::amounts::{CounterRow, of_counters};
use super::{Finding, checks, instance};
use crate::error::Failure;

/// A live instance that holds leases should have been heard of within this time.
///
/// # Units
/// Milliseconds.
const SILENT_FOR_MS: i64 = 5 * 60 * 1_000;

on_both! {
    /// W1.
    pub(super) async fn warnings(&mut self, now: UnixMillis) -> Result<Vec<Finding>, Failure> {
        let over: Vec<CounterRow> = sql_as!(checks::W1_OVER).fetch_all(&mut *self.conn).await?;
        let mut findings = of_counters("W1", "more was spent than the cap allowed", over)?;
        let ended: Vec<CounterRow> = sql_as!(checks::W1_ENDED, now.0).fetch_all(&mut *self.conn).await?;
        findings.extend(of_counters(
            "W1",
            "something is still leased of a month that is over",
            ended,
        )?);
        let aside: Vec<(Uuid, i64, String)> =
            sql_as!(checks::W1_QUARANTINE).fetch_all(&mut *self.conn).await?;
        findings.extend(aside.into_iter().map(|(id, post_no, reason)| Finding {
            id: "W1",
            table: "quarantine",
            key: format!("post {post_no} of {}", instance(id)),
            expected: "nothing".to_owned(),
            found: reason,
            sentence: "a record was set aside; its charge is an exposure until it is repaired",
        }));
        let lost: Vec<(Uuid, i64, i64, i64)> =
            sql_as!(checks::W1_LOST).fetch_all(&mut *self.conn).await?;
        findings.extend(lost.into_iter().map(|(id, first, last, at)| Finding {
            id: "W1",
            table: "lost_posts",
            key: format!("posts {first} to {last} of {}", instance(id)),
            expected: "records".to_owned(),
            found: format!("given up at {}", UnixMillis(at).to_rfc3339()),
            sentence: "what these requests used is not counted, because no database and no journal has it",
        }));
        let silent_since = now.0.saturating_sub(SILENT_FOR_MS);
        let instances: Vec<(Uuid, String, i64)> =
            sql_as!(checks::W1_INSTANCES, silent_since).fetch_all(&mut *self.conn).await?;
        findings.extend(instances.into_iter().map(|(id, state, heartbeat)| {
            let is_resolved = state != "live";
            Finding {
                id: "W1",
                table: "instances",
                key: instance(id).to_string(),
                expected: if is_resolved { "closed" } else { "a sign of life" }.to_owned(),
                found: format!("{state}, heard of at {}", UnixMillis(heartbeat).to_rfc3339()),
                sentence: if is_resolved {
                    "an instance was settled and has not handed in its journal"
                } else {
                    "an instance holds leases and is silent"
                },
            }
        }));
        Ok(findings)
    }
}
