//! Every order of events in which several threads can meet at one gate. Run by `./dev loom`.

use std::time::Duration;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

use super::Gate;

const DUE: Duration = Duration::from_mins(1);

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
        let gate = Arc::new(Gate::new());
        let probes = Arc::new(AtomicUsize::new(0));
        threads(3, {
            let (gate, probes) = (Arc::clone(&gate), Arc::clone(&probes));
            move || {
                if let Some(probe) = gate.begin_probe(DUE) {
                    probes.fetch_add(1, Ordering::Relaxed);
                    gate.end_probe(probe, true, DUE);
                }
            }
        });
        assert_eq!(probes.load(Ordering::Relaxed), 1);
        assert!(gate.enter().is_some());
    });
}

#[test]
fn loom_a_late_failure_never_opens_a_gate_that_a_probe_has_closed_since() {
    loom::model(|| {
        let gate = Arc::new(Gate::new());
        let probe = gate.begin_probe(DUE).unwrap();
        gate.end_probe(probe, true, DUE);
        let pass = gate.enter().unwrap();
        gate.open(DUE);
        threads(3, {
            let gate = Arc::clone(&gate);
            move || {
                gate.fail(pass, DUE);
                if let Some(probe) = gate.begin_probe(2 * DUE) {
                    gate.end_probe(probe, true, 2 * DUE);
                }
            }
        });
        assert!(gate.enter().is_some());
    });
}
