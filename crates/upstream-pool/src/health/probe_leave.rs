//! The leave of one probe.

use std::sync::Arc;

use super::key::KeyHealth;
use super::probing::ProbeFinding;
use super::upstream::UpstreamHealth;

/// A probe that may be made. When it is dropped without a word it counts as nothing.
#[derive(Debug)]
pub(crate) struct ProbeLeave {
    /// `None` once the probe has ended.
    upstream: Option<Arc<UpstreamHealth>>,
}

impl UpstreamHealth {
    /// Returns leave for a probe, if one is due, and the number of the key that it is to be made with:
    /// keys take turns, and those that are quarantined or rest are left alone.
    pub(crate) fn may_probe(
        self: &Arc<Self>,
        keys: &[Arc<KeyHealth>],
    ) -> Option<(ProbeLeave, usize)> {
        let now = self.shared.now();
        let first = self.meter.probes();
        let key = (0..keys.len())
            .map(|n| (first + n) % keys.len())
            .find(|key| keys.get(*key).is_some_and(|key| key.may_probe(now)))?;
        let leave = self.begin_probe(now).then(|| ProbeLeave {
            upstream: Some(Arc::clone(self)),
        })?;
        Some((leave, key))
    }
}

impl ProbeLeave {
    /// Ends the probe.
    pub(crate) fn end(mut self, found: ProbeFinding) {
        let Some(upstream) = self.upstream.take() else {
            return;
        };
        upstream.meter.probed(found);
        let (conclusion, opened) = upstream.end_probe(found, upstream.shared.now());
        let name = upstream.name();
        if conclusion.is_news {
            match found {
                ProbeFinding::Well => {
                    tracing::info!(upstream = &*name, "an upstream answers its probes again");
                }
                ProbeFinding::Failing => {
                    tracing::warn!(upstream = &*name, "a probe of an upstream failed");
                }
                ProbeFinding::Unclear => tracing::warn!(
                    upstream = &*name,
                    "a probe of an upstream says nothing: it does not list its models; \
                     `sluice upstream test` tells why"
                ),
            }
        }
        if let Some(wait) = opened {
            upstream.meter.opened();
            tracing::warn!(
                upstream = &*name,
                open_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "a breaker is open: its probes failed too often"
            );
        }
    }
}

impl Drop for ProbeLeave {
    fn drop(&mut self) {
        if let Some(upstream) = self.upstream.take() {
            upstream.abandon_probe();
        }
    }
}
