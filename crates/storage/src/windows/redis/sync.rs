//! Locks; in the tests of `cfg(sluice_loom)` those of loom, which tries every order of events.

#[cfg(not(all(test, sluice_loom)))]
pub(super) use parking_lot::Mutex;

/// The lock of loom with the interface of `parking_lot`.
#[cfg(all(test, sluice_loom))]
#[derive(Debug)]
pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

#[cfg(all(test, sluice_loom))]
impl<T> Mutex<T> {
    pub(super) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(super) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
