//! Servers that some tests need and not every machine has.

use crate::fail::fail;

const POSTGRES_URL: &str = "SLUICE_TEST_POSTGRES_URL";
const REDIS_URL: &str = "SLUICE_TEST_REDIS_URL";
const REDIS_SERVER: &str = "SLUICE_TEST_REDIS_SERVER";
const FAKETIME: &str = "SLUICE_TEST_FAKETIME";
const REQUIRE_BACKENDS: &str = "REQUIRE_BACKENDS";

/// Returns the URL of the PostgreSQL server for tests, from `SLUICE_TEST_POSTGRES_URL`.
///
/// Without one the test should return early; a note says so. With `REQUIRE_BACKENDS=1`, as in
/// continuous integration, its absence fails the test instead.
#[track_caller]
pub fn postgres_url() -> Option<String> {
    given(POSTGRES_URL, "postgres://postgres@127.0.0.1:5432/postgres")
}

/// Returns the URL of a Redis server that tests share, from `SLUICE_TEST_REDIS_URL`. What they store
/// there has names of their own.
///
/// Without it as [`postgres_url`] says.
#[track_caller]
pub fn redis_url() -> Option<String> {
    given(REDIS_URL, "redis://127.0.0.1:6379")
}

/// Returns the path of `redis-server`, from `SLUICE_TEST_REDIS_SERVER`, for tests that stop their
/// server or have several.
///
/// Without it as [`postgres_url`] says.
#[track_caller]
pub fn redis_server() -> Option<String> {
    given(REDIS_SERVER, "/usr/bin/redis-server")
}

/// Returns the path of `libfaketimeMT.so.1`, from `SLUICE_TEST_FAKETIME`: a program that loads it
/// first is told another time of day.
///
/// Without it as [`postgres_url`] says.
#[track_caller]
pub fn faketime() -> Option<String> {
    given(
        FAKETIME,
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    )
}

#[track_caller]
fn given(name: &str, such_as: &str) -> Option<String> {
    match choose(variable(name), variable(REQUIRE_BACKENDS)) {
        Choice::Use(value) => Some(value),
        Choice::Skip => {
            note(&format!("skipped: {name} is not set"));
            None
        }
        Choice::Fail => fail(format_args!(
            "{name} is not set, but {REQUIRE_BACKENDS}=1 wants this test to run; \
             set it to something like {such_as}"
        )),
    }
}

/// Says that a test is skipped, because the system allows something nowhere: no installation helps, so
/// this is no failure with `REQUIRE_BACKENDS=1` either.
pub(crate) fn not_allowed(what: &str, why: &str) {
    note(&format!("skipped: the system allows no {what}: {why}"));
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Use(String),
    Skip,
    Fail,
}

fn choose(url: Option<String>, required: Option<String>) -> Choice {
    match url {
        Some(url) => Choice::Use(url),
        None if required.is_some_and(|value| value != "0") => Choice::Fail,
        None => Choice::Skip,
    }
}

/// Returns a variable that is set and not empty.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are told by the environment which servers there are"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[expect(
    clippy::print_stderr,
    reason = "a skipped test says so to the person who runs it"
)]
fn note(text: &str) {
    eprintln!("{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_server_skips_unless_it_is_required() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            choose(some("postgres://x"), some("1")),
            Choice::Use("postgres://x".to_owned())
        );
        assert_eq!(choose(None, None), Choice::Skip);
        assert_eq!(choose(None, some("0")), Choice::Skip);
        assert_eq!(choose(None, some("1")), Choice::Fail);
    }
}
