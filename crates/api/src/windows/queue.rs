//! Waiting for room instead of being refused: the requests of one key go first come, first served.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sluice_domain::id::{ProxyKeyId, TenantId};
use sluice_domain::quota::Payer;
use sluice_domain::window::{WindowAsk, WindowKind, WindowRefusal};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics::Metrics;

use super::pass::WindowPass;

/// How long the first of a queue waits before it asks again for what other instances may have given
/// back: nobody tells it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long it waits at least.
const LEAST_WAIT: Duration = Duration::from_millis(5);

/// Those who wait, by key. Empty while nobody does.
#[derive(Debug)]
pub(super) struct Queues {
    patience: Duration,
    most: usize,
    /// How many wait in all queues together.
    waiting: AtomicUsize,
    by_key: Mutex<HashMap<ProxyKeyId, Members>>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Members {
    queue: Arc<Queue>,
    count: usize,
}

/// Those of one key.
#[derive(Debug)]
struct Queue {
    tenant_id: TenantId,
    /// One permit, given in the order in which it was asked for: whoever has it is first.
    turn: Arc<Semaphore>,
    /// Wakes the first when something was given back.
    freed: Notify,
}

/// How somebody left a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueOutcome {
    /// There was room in time.
    Admitted,
    /// There was none.
    Refused,
    /// The client did not wait.
    Left,
    /// Too many waited already.
    Full,
}

impl Queues {
    pub(super) fn new(patience: Duration, most: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            patience,
            most: if patience.is_zero() { 0 } else { most },
            waiting: AtomicUsize::new(0),
            by_key: Mutex::default(),
            metrics,
        }
    }

    /// Returns how long a request waits at most.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Returns whether nobody with the key waits already, so that nobody is overtaken.
    pub(super) fn is_first(&self, key: ProxyKeyId) -> bool {
        self.waiting.load(Ordering::Acquire) == 0 || !self.by_key.lock().contains_key(&key)
    }

    /// Returns whether waiting may help.
    pub(super) fn is_worth_waiting(&self, asks: &[WindowAsk], refusal: &WindowRefusal) -> bool {
        self.most > 0 && may_fit_within(self.patience, asks, refusal)
    }

    /// Lets a pass tell those who wait when it gives back what it took.
    pub(super) fn note_taker(self: &Arc<Self>, pass: &mut WindowPass, tenant: TenantId) {
        if self.most > 0 {
            pass.tell(self, tenant);
        }
    }

    /// Tells the first of each queue of a tenant that something was given back.
    pub(super) fn freed(&self, tenant: TenantId) {
        if self.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        for members in self.by_key.lock().values() {
            if members.queue.tenant_id == tenant {
                members.queue.freed.notify_one();
            }
        }
    }

    /// Joins the queue of a key and waits until everybody before has gone. `None` when too many wait,
    /// or when the time is over first.
    ///
    /// # Cancel safety
    /// Safe: who is dropped has left.
    pub(super) async fn join(self: &Arc<Self>, payer: Payer, until: Instant) -> Option<Turn> {
        let Some(mut member) = self.enter(payer) else {
            self.metrics.windows.waited(QueueOutcome::Full);
            return None;
        };
        let turn = Arc::clone(&member.queue.turn).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout_at(until, turn).await else {
            member.outcome = QueueOutcome::Refused;
            return None;
        };
        Some(Turn {
            member,
            until,
            _permit: permit,
        })
    }

    fn enter(self: &Arc<Self>, payer: Payer) -> Option<Member> {
        let one_more = |waiting: usize| (waiting < self.most).then_some(waiting + 1);
        self.waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .ok()?;
        self.metrics.windows.queued.inc();
        let mut by_key = self.by_key.lock();
        let members = by_key.entry(payer.key_id).or_insert_with(|| Members {
            queue: Arc::new(Queue {
                tenant_id: payer.tenant_id,
                turn: Arc::new(Semaphore::new(1)),
                freed: Notify::new(),
            }),
            count: 0,
        });
        members.count += 1;
        Some(Member {
            queues: Arc::clone(self),
            queue: Arc::clone(&members.queue),
            key_id: payer.key_id,
            outcome: QueueOutcome::Left,
        })
    }
}

/// Somebody in a queue; leaves it when dropped.
#[derive(Debug)]
struct Member {
    queues: Arc<Queues>,
    queue: Arc<Queue>,
    key_id: ProxyKeyId,
    outcome: QueueOutcome,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut by_key = self.queues.by_key.lock();
        if let Some(members) = by_key.get_mut(&self.key_id) {
            members.count -= 1;
            if members.count == 0 {
                by_key.remove(&self.key_id);
            }
        }
        drop(by_key);
        self.queues.waiting.fetch_sub(1, Ordering::AcqRel);
        let figures = &self.queues.metrics.windows;
        figures.queued.dec();
        figures.waited(self.outcome);
    }
}

/// The first of a queue. The next one is first when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    member: Member,
    until: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Turn {
    /// Notes that there was room.
    pub(super) fn admitted(&mut self) {
        self.member.outcome = QueueOutcome::Admitted;
    }

    /// Waits until it is worth asking again; `false` when that would be too late.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn wait(&mut self, asks: &[WindowAsk], refusal: &WindowRefusal) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() || !may_fit_within(left, asks, refusal) {
            self.member.outcome = QueueOutcome::Refused;
            return false;
        }
        let longest = if comes_back_early(asks, refusal) {
            left.min(LOOK_AGAIN)
        } else {
            left
        };
        let pause = refusal.retry_after.max(LEAST_WAIT).min(longest);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.member.queue.freed.notified() => {}
        }
        true
    }
}

/// Returns whether what is missing may come back before its time: slots and tokens do, requests stay
/// counted.
fn comes_back_early(asks: &[WindowAsk], refusal: &WindowRefusal) -> bool {
    asks.get(refusal.which)
        .is_some_and(|ask| match ask.key.kind {
            WindowKind::Tpm | WindowKind::Concurrency => true,
            WindowKind::Rps | WindowKind::Rpm => false,
        })
}

fn may_fit_within(time: Duration, asks: &[WindowAsk], refusal: &WindowRefusal) -> bool {
    refusal.retry_after <= time || comes_back_early(asks, refusal)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use sluice_domain::id::UserId;
    use sluice_domain::window::{WindowKey, WindowLimit, WindowStanding, WindowSubject};
    use uuid::Uuid;

    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    fn queues(most: usize) -> Arc<Queues> {
        Arc::new(Queues::new(PATIENCE, most, Metrics::new()))
    }

    fn payer(key: u128, tenant: u128) -> Payer {
        Payer {
            tenant_id: TenantId::from_uuid(Uuid::from_u128(tenant)),
            user_id: UserId::from_uuid(Uuid::from_u128(9)),
            key_id: ProxyKeyId::from_uuid(Uuid::from_u128(key)),
        }
    }

    /// A decision that a limit of this kind has refused for so long.
    fn refused(kind: WindowKind, retry_after: Duration) -> (Vec<WindowAsk>, WindowRefusal) {
        let ask = WindowAsk {
            key: WindowKey {
                subject: WindowSubject::Instance,
                kind,
            },
            limit: WindowLimit::new(1).unwrap(),
            amount: 1,
        };
        let standing = WindowStanding {
            most: 1,
            used: 1,
            resets_in: retry_after,
            is_over: true,
        };
        let refusal = WindowRefusal {
            which: 0,
            standings: vec![standing],
            retry_after,
        };
        (vec![ask], refusal)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_is_woken_by_what_its_tenant_gives_back() {
        let queues = queues(10);
        let began = Instant::now();
        let mut turn = queues.join(payer(1, 1), began + PATIENCE).await.unwrap();
        let (asks, refusal) = refused(WindowKind::Concurrency, Duration::from_secs(1));
        queues.freed(payer(2, 1).tenant_id);
        assert!(turn.wait(&asks, &refusal).await);
        assert_eq!(began.elapsed(), Duration::ZERO);
        // Another tenant gives back nothing that it could use.
        queues.freed(payer(3, 2).tenant_id);
        assert!(turn.wait(&asks, &refusal).await);
        assert!(began.elapsed() >= LOOK_AGAIN, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn turns_come_in_the_order_of_arrival_and_keys_do_not_wait_for_each_other() {
        let queues = queues(10);
        let until = Instant::now() + PATIENCE;
        let first = queues.join(payer(1, 1), until).await.unwrap();
        assert!(!queues.is_first(payer(1, 1).key_id));
        let mut second = Box::pin(queues.join(payer(1, 1), until));
        let mut third = Box::pin(queues.join(payer(1, 1), until));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        assert!(queues.is_first(payer(2, 1).key_id));
        drop(queues.join(payer(2, 1), until).await.unwrap());
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        let second = second.await.unwrap();
        drop(second);
        drop(third.await.unwrap());
        assert!(queues.is_first(payer(1, 1).key_id));
        assert_eq!(queues.waiting.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_it_may_or_in_vain() {
        let queues = queues(2);
        let until = Instant::now() + PATIENCE;
        let mut first = queues.join(payer(1, 1), until).await.unwrap();
        // The second waits for its turn until its time is over; a third finds no place.
        let mut second = Box::pin(queues.join(payer(1, 1), until));
        assert!((&mut second).now_or_never().is_none());
        assert!(queues.join(payer(2, 1), until).await.is_none());
        assert!(second.await.is_none());
        assert_eq!(Instant::now(), until);
        let (asks, refusal) = refused(WindowKind::Concurrency, Duration::from_secs(1));
        assert!(!first.wait(&asks, &refusal).await, "its time is over");
        drop(first);

        let until = Instant::now() + PATIENCE;
        let mut turn = queues.join(payer(1, 1), until).await.unwrap();
        for (kind, seconds, helps) in [
            (WindowKind::Rpm, 61, false),
            (WindowKind::Rpm, 20, true),
            (WindowKind::Tpm, 61, true),
        ] {
            let (asks, refusal) = refused(kind, Duration::from_secs(seconds));
            assert_eq!(turn.wait(&asks, &refusal).await, helps, "{kind} {seconds}");
        }
    }

    #[test]
    fn without_patience_nobody_waits() {
        let queues = Queues::new(Duration::ZERO, 10, Metrics::new());
        let (asks, refusal) = refused(WindowKind::Concurrency, Duration::ZERO);
        assert!(!queues.is_worth_waiting(&asks, &refusal));
    }
}
