//! What a request passed over, as text.

use serde_json::{Value, json};
use sluice_domain::pool::{SkippedTarget, SkippedTargets};

/// Returns those that are named as a JSON array.
pub(crate) fn to_json(skipped: &SkippedTargets) -> Value {
    skipped
        .named()
        .iter()
        .map(|target| {
            json!({
                "upstream_id": target.upstream_id.to_string(),
                "upstream_key_id": target.upstream_key_id.map(|id| id.to_string()),
                "reason": target.reason.as_str(),
            })
        })
        .collect()
}

/// Reads what was stored; `None` when it is malformed.
pub(crate) fn read(targets: &str, more: i64) -> Option<SkippedTargets> {
    let targets: Vec<Value> = serde_json::from_str(targets).ok()?;
    let named: Option<Vec<SkippedTarget>> = targets
        .iter()
        .map(|target| {
            let key = target.get("upstream_key_id")?;
            Some(SkippedTarget {
                upstream_id: target.get("upstream_id")?.as_str()?.parse().ok()?,
                upstream_key_id: if key.is_null() {
                    None
                } else {
                    Some(key.as_str()?.parse().ok()?)
                },
                reason: target.get("reason")?.as_str()?.parse().ok()?,
            })
        })
        .collect();
    Some(SkippedTargets::from_parts(named?, more.try_into().ok()?))
}
