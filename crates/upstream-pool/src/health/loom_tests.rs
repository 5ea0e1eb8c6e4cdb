//! Every order of events in which several threads can meet at one breaker. Run by `./dev loom`.

use std::sync::Arc as StdArc;
use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use sluice_domain::pool::{BreakerPolicy, UpstreamLimits};

use super::Approach;
use super::evidence::tests::source;
use super::key::KeyHealth;
use crate::error::ErrorClass;

const DUE: Duration = Duration::from_mins(2);

/// Returns a key whose breaker is open, and whose time is over at [`DUE`].
fn sick() -> KeyHealth {
    let policy = BreakerPolicy::default();
    let key = KeyHealth::new(StdArc::from("k"), policy, UpstreamLimits::default());
    for n in 0..u64::from(policy.max_failures.get()) {
        let leave = key.begin(0, Approach::First, Duration::ZERO).unwrap();
        let class = ErrorClass::Status;
        key.fail(leave.ticket, class, source(1, n), Duration::ZERO, 0.0);
    }
    key
}

/// Runs so many threads, this one among them.
fn threads(count: usize, act: impl Fn() + Send + Sync + 'static) {
    let act = Arc::new(act);
    let others: Vec<_> = (1..count)
        .map(|_| {
            let act = Arc::clone(&act);
            thread::spawn(move || act())
        })
        .collect();
    act();
    for other in others {
        other.join().unwrap();
    }
}

#[test]
fn loom_exactly_one_of_three_probes() {
    loom::model(|| {
        let key = Arc::new(sick());
        let probes = Arc::new(AtomicUsize::new(0));
        threads(3, {
            let (key, probes) = (Arc::clone(&key), Arc::clone(&probes));
            move || {
                if key.begin(0, Approach::First, DUE).is_ok() {
                    probes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        assert_eq!(probes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_who_looks_before_it_asks_is_never_a_second_probe() {
    loom::model(|| {
        let key = Arc::new(sick());
        let probes = Arc::new(AtomicUsize::new(0));
        threads(2, {
            let (key, probes) = (Arc::clone(&key), Arc::clone(&probes));
            move || {
                if key.obstacle(0, DUE).is_none() && key.begin(0, Approach::First, DUE).is_ok() {
                    probes.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        assert_eq!(probes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn loom_a_forced_probe_and_a_due_one_exclude_each_other() {
    loom::model(|| {
        let key = Arc::new(sick());
        let under_way = Arc::new(AtomicUsize::new(0));
        threads(3, {
            let (key, under_way) = (Arc::clone(&key), Arc::clone(&under_way));
            move || {
                if let Ok(leave) = key.begin(0, Approach::Forced, DUE / 4) {
                    assert_eq!(under_way.fetch_add(1, Ordering::SeqCst), 0);
                    under_way.fetch_sub(1, Ordering::SeqCst);
                    key.abandon(leave.ticket, DUE / 4);
                }
            }
        });
        assert!(
            key.begin(0, Approach::First, DUE).is_ok(),
            "it can be probed again"
        );
    });
}

#[test]
fn loom_after_the_probe_succeeded_nothing_stands_in_the_way() {
    loom::model(|| {
        let key = Arc::new(sick());
        threads(3, {
            let key = Arc::clone(&key);
            move || {
                if let Ok(leave) = key.begin(0, Approach::First, DUE) {
                    key.succeed(leave.ticket, DUE);
                }
            }
        });
        assert!(key.obstacle(0, DUE).is_none());
        assert!(key.begin(0, Approach::First, DUE).is_ok());
    });
}
