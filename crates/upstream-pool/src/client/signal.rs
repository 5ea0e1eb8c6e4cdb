//! Wakes of a connection, passed on only to a task that waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Wake, Waker};

use parking_lot::Mutex;

/// Something happened since the connection was looked at.
const WOKEN: u8 = 1;

/// A task waits and wants to know.
const ARMED: u8 = 2;

/// What a connection wakes.
///
/// A connection runs inside the task that uses it, so most of its wakes come from that very task:
/// it hands over a request, or takes a chunk. Such a wake only marks that the connection has
/// something to do; the task would otherwise be run once more for nothing, with every chunk.
#[derive(Debug)]
pub(super) struct Signal {
    state: AtomicU8,
    task: Mutex<Waker>,
}

impl Signal {
    /// Builds the signal of a new connection, which has to be looked at.
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU8::new(WOKEN),
            task: Mutex::new(Waker::noop().clone()),
        }
    }

    /// Returns whether something happened since the last call, and wakes nobody from now on.
    pub(super) fn take(&self) -> bool {
        self.state.swap(0, Ordering::AcqRel) & WOKEN != 0
    }

    /// Wakes `task` when something happens, or has happened since [`take`](Self::take).
    pub(super) fn arm(&self, task: &Waker) {
        self.task.lock().clone_from(task);
        if self.state.fetch_or(ARMED, Ordering::AcqRel) & WOKEN != 0 {
            task.wake_by_ref();
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) == ARMED {
            self.task.lock().wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_a_task_that_waits_is_woken_and_only_once() {
        let counter = Arc::new(Counter::default());
        let task = Waker::from(Arc::clone(&counter));
        let woken = || counter.0.load(Ordering::Relaxed);
        let signal = Arc::new(Signal::new());
        let waker = Waker::from(Arc::clone(&signal));

        assert!(signal.take(), "a new connection is looked at");
        assert!(!signal.take());
        waker.wake_by_ref();
        assert_eq!(woken(), 0, "nobody waits");
        assert!(signal.take());

        signal.arm(&task);
        assert_eq!(woken(), 0);
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(woken(), 1);

        assert!(signal.take());
        waker.wake_by_ref();
        signal.arm(&task);
        assert_eq!(woken(), 2, "what happened before the wait is not lost");
    }
}
