//! What the upstream pool promises when providers fail, seen by clients of the real binary.

mod breakers;
mod format;
mod hints;
mod invisible;
mod matrix;
mod pool;
mod silence;
mod truncation;

use sluice_domain::pool::SkipReason;
use sluice_storage::usage::StoredRecord;
use sluice_testkit::Response;

use crate::audit::audit_ledger;
use crate::deployment::{Relay, wait_until_posted};

/// Returns the size of a try: the small one, unless the environment tells another.
fn size(variable: &str, small: usize) -> usize {
    #[expect(
        clippy::disallowed_methods,
        reason = "the size of a try is told by the environment"
    )]
    let told = std::env::var(variable).ok();
    told.map_or(small, |told| told.parse().unwrap())
}

/// Waits until every record is in the database, stops the relay, and looks for faults of the ledger.
async fn end(relay: &Relay) {
    wait_until_posted(relay.address).await;
    assert!(relay.stop(), "{}", relay.process.stderr());
    relay.deployment.run(&["ledger", "verify"]);
}

/// The same, and compares the posts of the only tenant with its records.
async fn close(relay: &Relay) {
    end(relay).await;
    audit_ledger(&relay.deployment).await.assert_clean();
}

/// Returns how often upstreams were asked, as the client is told.
#[track_caller]
fn attempts_told(answer: &Response) -> usize {
    let told = answer.header("x-sluice-attempts");
    told.map_or(0, |told| told.parse().unwrap())
}

/// Returns whether a request passed something over for this reason.
fn passed_over(record: &StoredRecord, reason: SkipReason) -> bool {
    let named = record.skipped.named();
    named.iter().any(|skipped| skipped.reason == reason)
}
