//! Locks and atomics; in the tests of `cfg(sluice_loom)` those of loom, which tries every order of events.

#[cfg(not(all(test, sluice_loom)))]
pub(crate) use std::sync::atomic::{AtomicBool, Ordering};

#[cfg(not(all(test, sluice_loom)))]
pub(crate) use parking_lot::Mutex;

#[cfg(all(test, sluice_loom))]
pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};

/// The lock of loom with the interface of `parking_lot`.
#[cfg(all(test, sluice_loom))]
#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(all(test, sluice_loom))]
impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
