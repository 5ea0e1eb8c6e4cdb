//! A request between its hold and its record. Every ending goes through one function.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use sluice_accounting::{Hold, Written};
use sluice_domain::pool::SkippedTargets;
use sluice_domain::ports::Clock;
use sluice_domain::quota::Amounts;
use sluice_domain::record::{AttemptRecord, RequestEnd};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::ClientGone;
use sluice_domain::usage::{Basis, Ending, Owed, Stage, TokenUsage, charge};
use sluice_protocol::output::OutputText;
use sluice_protocol::{answer, tokens};
use sluice_upstream_pool::{Attempts, ErrorClass, TargetInfo, UpstreamSlot};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::app::App;
use crate::server::CLIENT_LEFT;
use crate::windows::WindowPass;

/// What is known of a request beside the future that carries it on.
#[derive(Debug, Default)]
pub(crate) struct SideNotes {
    /// Noted as they begin and end, so that a request whose client leaves in the meantime still has
    /// its attempts.
    attempts: Mutex<AttemptNotes>,
    /// How many attempts there were; 0 while the dispatch goes on.
    dispatched_after: AtomicU32,
    /// Whether the answer is read on although the client has left.
    pub(crate) is_detached: AtomicBool,
    /// Whether the upstream of the attempt wants streams read to their end.
    drains: AtomicBool,
}

#[derive(Debug, Default)]
struct AttemptNotes {
    ended: Attempts,
    /// The attempt that has begun and has no result yet.
    begun: Option<AttemptRecord>,
    /// What was passed over, once the dispatch has ended or was broken off.
    skipped: SkippedTargets,
}

impl SideNotes {
    /// Notes the target of the attempt that begins now, before anything is sent.
    pub(crate) fn attempt_begins(&self, target: &TargetInfo<'_>, at: UnixMillis) {
        self.drains
            .store(target.client_gone == ClientGone::Drain, Ordering::Relaxed);
        self.attempts.lock().begun = Some(AttemptRecord {
            upstream_id: target.upstream_id,
            upstream_key_id: target.upstream_key_id,
            upstream_model: Arc::clone(target.upstream_model),
            status: None,
            error: None,
            started_at: at,
            head_ms: 0,
        });
    }

    /// Notes the result of an attempt.
    pub(crate) fn attempt_ended(&self, record: &AttemptRecord) {
        let mut attempts = self.attempts.lock();
        attempts.begun = None;
        attempts.ended.push(record.clone());
    }

    /// Notes that an answer has begun, or that nothing is left to try.
    pub(crate) fn dispatched(&self, attempts: usize, skipped: SkippedTargets) {
        self.passed_over(skipped);
        let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
        self.dispatched_after.store(attempts, Ordering::Relaxed);
    }

    /// Notes what was passed over.
    pub(crate) fn passed_over(&self, skipped: SkippedTargets) {
        if !skipped.is_empty() {
            self.attempts.lock().skipped = skipped;
        }
    }

    /// Returns how many attempts there were; 0 while the dispatch goes on.
    pub(crate) fn attempts(&self) -> u32 {
        self.dispatched_after.load(Ordering::Relaxed)
    }

    /// Returns whether a stream is read to its end although its client has left.
    pub(crate) fn drains(&self) -> bool {
        self.drains.load(Ordering::Relaxed)
    }

    /// Returns what was passed over.
    fn skipped(&self) -> SkippedTargets {
        std::mem::take(&mut self.attempts.lock().skipped)
    }

    /// Returns the attempts, the one that is under way as one that had no result.
    fn unfinished(&self, now: UnixMillis, error: &'static str) -> Attempts {
        let mut notes = self.attempts.lock();
        let (mut ended, begun) = (std::mem::take(&mut notes.ended), notes.begun.take());
        drop(notes);
        ended.extend(begun.map(|begun| AttemptRecord {
            error: Some(Cow::Borrowed(error)),
            head_ms: now.since(begun.started_at),
            ..begun
        }));
        ended
    }
}

/// The text of an answer, kept in case that its tokens must be counted here.
#[derive(Debug, Default)]
pub(crate) enum Output {
    /// Nothing was relayed.
    #[default]
    None,
    /// What was read of a stream.
    Stream(OutputText),
    /// A whole answer.
    Whole(Bytes),
}

/// An admitted request. When it is dropped, its client has left.
pub(crate) struct InFlight {
    app: Arc<App>,
    hold: Option<Hold>,
    started: Instant,
    request: Bytes,
    side: Arc<SideNotes>,
    /// How far it has come.
    pub(crate) stage: Stage,
    /// Milliseconds from the start to the first event.
    first_event_ms: Option<i64>,
    /// Milliseconds from the start to the end, where that is known before the end is booked.
    duration_ms: Option<i64>,
    /// Every attempt that has a result.
    pub(crate) attempts: Attempts,
    /// What the answer holds of the limits of its upstream.
    pub(crate) slot: Option<UpstreamSlot>,
    /// What it has taken of the limits of its key, user and tenant.
    windows: WindowPass,
    /// What the provider reported.
    pub(crate) usage: Option<TokenUsage>,
    /// What the provider had reported of an answer that did not come to its end: its input is known,
    /// its output is at least this.
    pub(crate) usage_so_far: Option<TokenUsage>,
    /// What was relayed.
    pub(crate) output: Output,
    /// Whether a stream was read to its end after its client had left.
    pub(crate) is_drained: bool,
}

impl InFlight {
    pub(crate) fn new(
        app: Arc<App>,
        hold: Hold,
        started: Instant,
        request: Bytes,
        side: Arc<SideNotes>,
        windows: WindowPass,
    ) -> Self {
        Self {
            app,
            hold: Some(hold),
            started,
            request,
            side,
            stage: Stage::Held,
            first_event_ms: None,
            duration_ms: None,
            attempts: Attempts::new(),
            slot: None,
            windows,
            usage: None,
            usage_so_far: None,
            output: Output::None,
            is_drained: false,
        }
    }

    /// Notes when the first event, or the head of a whole answer, has come.
    pub(crate) fn answered(&mut self, at: Instant) {
        self.first_event_ms
            .get_or_insert_with(|| millis_between(self.started, at));
    }

    /// Notes that the whole answer has come at once: all that follows is the work of this moment.
    pub(crate) fn answered_whole(&mut self, at: Instant) {
        self.answered(at);
        self.duration_ms = self.first_event_ms;
    }

    /// Returns whether the answer was read to its end.
    fn is_complete(&self) -> bool {
        self.is_drained || matches!(self.output, Output::Whole(_))
    }

    /// Returns whether the stream is read to its end although its client has left.
    pub(crate) fn drains(&self) -> bool {
        self.side.drains()
    }

    /// Notes that the attempt whose answer had begun failed after all.
    pub(crate) fn attempt_failed(&mut self, class: ErrorClass) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.error.get_or_insert(Cow::Borrowed(class.as_str()));
        }
    }

    /// Ends the request: books what is owed, in the background when it must be counted first. Once it
    /// has ended, nothing more is booked.
    ///
    /// The last bytes of the answer leave when the returned future has resolved, so that an answer
    /// which a client has seen complete is recorded exactly, whatever happens then. One that is not
    /// complete waits for nothing.
    pub(crate) fn end(
        &mut self,
        ending: Ending,
        status: u16,
        error_code: Option<&'static str>,
    ) -> Booked {
        let Some(hold) = self.hold.take() else {
            return Booked::Done;
        };
        let booked = self.book(hold, ending, status, error_code);
        if ending == Ending::Finished {
            booked
        } else {
            Booked::Done
        }
    }

    fn book(
        &mut self,
        hold: Hold,
        ending: Ending,
        status: u16,
        error_code: Option<&'static str>,
    ) -> Booked {
        if self.attempts.is_empty() {
            self.attempts = self.side.unfinished(self.app.clock.now(), ending.as_str());
        }
        if let (Some(slot), Some(usage)) = (self.slot.take(), self.usage) {
            slot.spent(usage.total().unsigned_abs());
        }
        let owed = charge(ending, self.stage);
        let reported = if ending == Ending::ClientLeft && self.is_complete() {
            Basis::Drained
        } else {
            Basis::Reported
        };
        let mut end = RequestEnd {
            ending,
            stage: self.stage,
            status,
            error_code: error_code.map(Cow::Borrowed),
            usage: self.usage.unwrap_or_default(),
            basis: reported,
            owed: Amounts::ZERO,
            first_event_ms: self.first_event_ms,
            duration_ms: self
                .duration_ms
                .unwrap_or_else(|| millis_between(self.started, Instant::now())),
            attempts: std::mem::take(&mut self.attempts),
            skipped: self.side.skipped(),
        };
        match (owed, self.usage) {
            (Owed::Nothing, None) => {
                // What was never sent is known to be nothing.
                end.basis = if self.stage == Stage::Held {
                    Basis::Counted
                } else {
                    Basis::Unknown
                };
                self.post(hold, end)
            }
            (Owed::Nothing, Some(_)) => self.post(hold, end),
            (Owed::Input | Owed::InputAndOutput, Some(usage)) => {
                end.owed = Amounts::tokens(usage.total());
                self.post(hold, end)
            }
            (Owed::Input | Owed::InputAndOutput, None) => {
                end.basis = Basis::Counted;
                self.count_and_post(hold, end, owed)
            }
        }
    }

    fn post(&mut self, hold: Hold, end: RequestEnd) -> Booked {
        give_back(std::mem::take(&mut self.windows), &end);
        self.app
            .metrics
            .record_ended(end.ending, end.basis, &end.usage);
        hold.post(end).map_or(Booked::Done, Booked::Written)
    }

    /// Counts away from the threads of the relay; the hold stays open until then.
    fn count_and_post(&mut self, hold: Hold, mut end: RequestEnd, owed: Owed) -> Booked {
        let request = std::mem::take(&mut self.request);
        let output = if owed == Owed::Input {
            Output::None
        } else {
            std::mem::take(&mut self.output)
        };
        let known = self.usage_so_far;
        let windows = std::mem::take(&mut self.windows);
        let metrics = Arc::clone(&self.app.metrics);
        let (counted, booked) = oneshot::channel();
        self.app.control.spawn_blocking(move || {
            if let Some(open) = hold.open() {
                let model = end
                    .attempts
                    .last()
                    .map_or(&*open.requested_model, |a| &*a.upstream_model);
                end.usage = known.unwrap_or_else(|| TokenUsage {
                    input: tokens::count_prompt(open.endpoint, model, &request),
                    ..TokenUsage::default()
                });
                let written = match &output {
                    Output::None => 0,
                    Output::Stream(text) => text.count(),
                    Output::Whole(body) => answer::count_output(open.endpoint, body),
                };
                end.usage.output = end.usage.output.max(written);
            }
            end.owed = Amounts::tokens(end.usage.total());
            give_back(windows, &end);
            metrics.record_ended(end.ending, end.basis, &end.usage);
            if let Some(written) = hold.post(end) {
                // Nobody may be waiting.
                drop(counted.send(written));
            }
        });
        Booked::Counting(booked)
    }
}

/// Ends what a request has taken of window limits, with what is recorded of it.
fn give_back(windows: WindowPass, end: &RequestEnd) {
    match end.basis {
        Basis::Unknown => windows.unknown(),
        Basis::Reported | Basis::Drained | Basis::Counted | Basis::Recovered => {
            windows.spent(u64::try_from(end.usage.total()).unwrap_or(0));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let ending = if std::thread::panicking() {
            Ending::Panicked
        } else if self.app.ending.is_given() {
            Ending::Shutdown
        } else {
            Ending::ClientLeft
        };
        drop(self.end(ending, CLIENT_LEFT, None));
    }
}

/// Resolves when the record of a request is in the journal.
#[must_use = "the last bytes of the answer wait for it"]
pub(crate) enum Booked {
    /// It is.
    Done,
    /// It is on its way.
    Written(Written),
    /// What is owed is being counted.
    Counting(oneshot::Receiver<Written>),
}

impl Future for Booked {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut *self {
                Self::Done => return Poll::Ready(()),
                Self::Written(written) => match Pin::new(written).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => *self = Self::Done,
                },
                Self::Counting(counting) => match Pin::new(counting).poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(written)) => *self = Self::Written(written),
                    // The count failed by a defect: its hold was booked when it was dropped.
                    Poll::Ready(Err(_dropped)) => *self = Self::Done,
                },
            }
        }
    }
}

fn millis_between(started: Instant, at: Instant) -> i64 {
    i64::try_from((at - started).as_millis()).unwrap_or(i64::MAX)
}
