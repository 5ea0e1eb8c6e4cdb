//! The one place where a helper ends the test that uses it.

use std::fmt::Display;

/// Fails the calling test.
///
/// Helpers for tests fail where they are called, not by a result that every test would unwrap.
#[track_caller]
#[expect(
    clippy::panic,
    reason = "a test helper that cannot go on fails its test"
)]
pub(crate) fn fail(message: impl Display) -> ! {
    panic!("{message}")
}
