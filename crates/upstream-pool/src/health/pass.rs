//! The leave of one attempt to ask one upstream with one key.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::breaker::Verdict;
use super::evidence::Source;
use super::key::{KeyHealth, KeyLeave};
use super::limits::Place;
use super::upstream::{UpstreamHealth, UpstreamLeave};
use super::{Approach, Asking, Obstacle};
use crate::error::{ErrorClass, SendStage};

/// An attempt that may be made. When it is dropped without a word it counts as nothing: its client
/// has left.
#[derive(Debug)]
pub(crate) struct Pass {
    upstream: Arc<UpstreamHealth>,
    key: Arc<KeyHealth>,
    begun: Duration,
    /// `None` once the attempt has ended.
    leave: Option<(UpstreamLeave, KeyLeave)>,
}

/// Who stands against an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Refused {
    /// The upstream, with whichever key.
    Upstream(Obstacle),
    /// The key.
    Key(Obstacle),
}

/// How an attempt failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FailedAttempt {
    pub(crate) class: ErrorClass,
    pub(crate) stage: SendStage,
    /// How long the provider asks to wait.
    pub(crate) retry_after: Option<Duration>,
}

impl Pass {
    /// Asks upstream and key for leave.
    ///
    /// # Errors
    /// Who stands against it; nothing was taken then.
    pub(crate) fn begin(
        upstream: &Arc<UpstreamHealth>,
        key: &Arc<KeyHealth>,
        asking: &Asking<'_>,
        approach: Approach,
        now: Duration,
    ) -> Result<Self, Refused> {
        let key_leave = key
            .begin(asking.tokens(), approach, now)
            .map_err(Refused::Key)?;
        match upstream.begin(asking, approach, now) {
            Ok(leave) => Ok(Self {
                upstream: Arc::clone(upstream),
                key: Arc::clone(key),
                begun: now,
                leave: Some((leave, key_leave)),
            }),
            Err(obstacle) => {
                key.abandon(key_leave.ticket, now);
                if let Some(place) = key_leave.place {
                    key.give_back(place, Some(0), now);
                }
                Err(Refused::Upstream(obstacle))
            }
        }
    }

    /// Ends an attempt whose first event has come at `at`. What it took of limits stays taken until
    /// the slot is dropped.
    pub(crate) fn succeed(mut self, at: Instant) -> Option<UpstreamSlot> {
        let (upstream, key) = self.leave.take()?;
        let now = self.upstream.shared.at(at);
        self.upstream.meter.served();
        let took = now.saturating_sub(self.begun);
        if self.upstream.succeed(upstream.ticket, took, now) {
            self.closed(false);
        }
        if self.key.succeed(key.ticket, now) {
            self.closed(true);
        }
        (upstream.place.is_some() || key.place.is_some()).then(|| UpstreamSlot {
            upstream: Arc::clone(&self.upstream),
            key: Arc::clone(&self.key),
            places: (upstream.place, key.place),
            tokens: None,
        })
    }

    /// Ends an attempt that failed. Returns how long its key rests, where it was limited.
    pub(crate) fn fail(mut self, failed: FailedAttempt, asking: &Asking<'_>) -> Option<Duration> {
        let (upstream, key) = self.leave.take()?;
        let now = self.upstream.shared.now();
        let FailedAttempt {
            class,
            stage,
            retry_after,
        } = failed;
        self.upstream.meter.failed(class);
        // What was answered with an error, or never sent, costs no tokens.
        let tokens = (stage != SendStage::Sent && class != ErrorClass::Timeout).then_some(0);
        give_back(
            (&self.upstream, &self.key),
            (upstream.place, key.place),
            tokens,
            now,
        );
        match class.blame() {
            Blame::Nobody => {
                self.upstream.abandon(upstream.ticket, now);
                self.key.abandon(key.ticket, now);
            }
            Blame::Request => self.pass_over((upstream, key), now),
            Blame::Key => {
                self.pass_over((upstream, key), now);
                if class == ErrorClass::RateLimited {
                    return Some(self.rest(retry_after, now));
                }
                self.quarantine(class, now);
            }
            Blame::Upstream => {
                let source = asking.source(&self.upstream.shared);
                let took = now.saturating_sub(self.begun);
                let verdict = self
                    .upstream
                    .fail(upstream.ticket, class, source, took, now);
                self.judged(verdict, class, source, None, now);
                if stage == SendStage::NotSent {
                    // No key was shown to anybody.
                    self.key.abandon(key.ticket, now);
                } else {
                    let luck = self.upstream.shared.luck();
                    let of_key = self.key.fail(key.ticket, class, source, now, luck);
                    // The same request is held back once.
                    if of_key != verdict || !matches!(verdict, Verdict::HoldBack { .. }) {
                        self.judged(of_key, class, source, Some(&self.key.name()), now);
                    }
                }
            }
        }
        None
    }

    fn pass_over(&self, (upstream, key): (UpstreamLeave, KeyLeave), now: Duration) {
        if self.upstream.pass_over(upstream.ticket, now) {
            self.closed(false);
        }
        if self.key.pass_over(key.ticket, now) {
            self.closed(true);
        }
    }

    fn rest(&self, retry_after: Option<Duration>, now: Duration) -> Duration {
        let luck = self.upstream.shared.luck();
        let (rest, is_new) = self.key.rest(retry_after, now, luck);
        if is_new {
            self.upstream.meter.cooled_down();
            tracing::info!(
                upstream = &*self.upstream.name(),
                upstream_key = &*self.key.name(),
                rest_ms = millis(rest),
                is_told = retry_after.is_some(),
                "an upstream key rests: its provider limits it"
            );
        }
        rest
    }

    fn quarantine(&self, class: ErrorClass, now: Duration) {
        if self.key.quarantine(class, now) {
            self.upstream.meter.quarantined();
            tracing::error!(
                upstream = &*self.upstream.name(),
                upstream_key = &*self.key.name(),
                class = class.as_str(),
                "an upstream key is not used until it is changed: its provider refuses it"
            );
        }
    }

    fn closed(&self, is_key: bool) {
        let key = is_key.then(|| self.key.name());
        tracing::info!(
            upstream = &*self.upstream.name(),
            upstream_key = key.as_deref(),
            "a breaker closed: it is served again"
        );
    }

    fn judged(
        &self,
        verdict: Verdict,
        class: ErrorClass,
        source: Source,
        key: Option<&str>,
        now: Duration,
    ) {
        match verdict {
            Verdict::Counted => {}
            Verdict::Opened(wait) => {
                self.upstream.meter.opened();
                tracing::warn!(
                    upstream = &*self.upstream.name(),
                    upstream_key = key,
                    class = class.as_str(),
                    open_ms = millis(wait),
                    "a breaker is open: it failed too often"
                );
            }
            Verdict::HoldBack { is_sure } => {
                let pause = self.upstream.hold_back(source, is_sure, now);
                tracing::warn!(
                    upstream = &*self.upstream.name(),
                    upstream_key = key,
                    tenant.id = %source.tenant,
                    class = class.as_str(),
                    pause_ms = millis(pause),
                    "one request failed again and again; it is held back, the others are not"
                );
            }
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some((upstream, key)) = self.leave.take() {
            let now = self.upstream.shared.now();
            self.upstream.abandon(upstream.ticket, now);
            self.key.abandon(key.ticket, now);
            let places = (upstream.place, key.place);
            give_back((&self.upstream, &self.key), places, None, now);
        }
    }
}

/// What a request that is being answered holds of the limits of its upstream and its key.
#[derive(Debug)]
pub struct UpstreamSlot {
    upstream: Arc<UpstreamHealth>,
    key: Arc<KeyHealth>,
    places: (Option<Place>, Option<Place>),
    tokens: Option<u64>,
}

impl UpstreamSlot {
    /// Ends an answer whose tokens are known: they count instead of the bound of the request.
    pub fn spent(mut self, tokens: u64) {
        self.tokens = Some(tokens);
    }
}

impl Drop for UpstreamSlot {
    fn drop(&mut self) {
        let now = self.upstream.shared.now();
        give_back((&self.upstream, &self.key), self.places, self.tokens, now);
    }
}

fn give_back(
    (upstream, key): (&UpstreamHealth, &KeyHealth),
    places: (Option<Place>, Option<Place>),
    tokens: Option<u64>,
    now: Duration,
) {
    if let Some(place) = places.0 {
        upstream.give_back(place, tokens, now);
    }
    if let Some(place) = places.1 {
        key.give_back(place, tokens, now);
    }
}

/// Who is to blame for a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// This machine, or nobody.
    Nobody,
    /// What was asked, or with which key that was asked: upstream and key are well.
    Request,
    /// The upstream key.
    Key,
    /// The upstream.
    Upstream,
}

impl ErrorClass {
    /// Returns who is to blame.
    pub(crate) const fn blame(self) -> Blame {
        match self {
            Self::NoTarget | Self::Misconfigured | Self::Internal => Blame::Nobody,
            Self::CallerFault | Self::ContextLength | Self::Forbidden => Blame::Request,
            Self::RateLimited | Self::Auth | Self::Funds => Blame::Key,
            Self::Connect
            | Self::Timeout
            | Self::Reset
            | Self::Cut
            | Self::Protocol
            | Self::Status => Blame::Upstream,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
