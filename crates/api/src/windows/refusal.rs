//! What is said to a request that is over a limit.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use sluice_domain::time::UnixMillis;
use sluice_domain::window::{WindowAsk, WindowKind, WindowRefusal, WindowStanding, WindowSubject};

use crate::auth::Grant;
use crate::error::{ApiError, Code, MAX_RETRY_AFTER, Retry};
use crate::ids::random_bytes;

use super::shown::ShownLimits;

/// What a client is asked to wait at least.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
/// What a client is asked to wait for a slot: nobody knows when a request ends.
const SLOT_PAUSE: Duration = Duration::from_secs(1);

/// A limit that refused, for the log. Names nobody.
#[derive(Debug, thiserror::Error)]
struct LimitReached {
    scope: &'static str,
    kind: WindowKind,
    limit: u64,
    used: u64,
}

impl fmt::Display for LimitReached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            scope,
            kind,
            limit,
            used,
        } = self;
        write!(
            f,
            "the limit {kind} of the {scope} is reached: {used} of {limit}"
        )
    }
}

/// Returns the answer to a request that is over.
pub(super) fn refused(
    asks: &[WindowAsk],
    refusal: &WindowRefusal,
    grant: Option<&Grant>,
    now: UnixMillis,
) -> ApiError {
    let blamed = asks
        .get(refusal.which)
        .zip(refusal.standings.get(refusal.which));
    let Some((ask, standing)) = blamed else {
        return ApiError::new(Code::InternalError, "A limit refused that nobody knows.");
    };
    let kind = ask.key.kind;
    let pause = jittered(pause(kind, refusal.retry_after), random_bytes()[0]);
    let message = message(ask, standing, grant, pause);
    let class = match kind {
        WindowKind::Tpm => "tokens",
        WindowKind::Rps | WindowKind::Rpm | WindowKind::Concurrency => "requests",
    };
    let shown = ShownLimits::of_refused(asks, &refusal.standings, refusal.which, now);
    ApiError::new(Code::RateLimitExceeded, message)
        .kind(class)
        .retry(Retry::After(pause))
        .limits(shown, now)
        .cause(LimitReached {
            scope: ask.key.subject.scope().as_str(),
            kind,
            limit: ask.limit.most(),
            used: standing.used,
        })
}

/// Returns the answer to a request that may not pass those of its key that wait already.
pub(super) fn crowded(grant: &Grant) -> ApiError {
    let whose = grant.describe(&WindowSubject::ProxyKey(grant.key.id));
    let pause = jittered(SLOT_PAUSE, random_bytes()[0]);
    let message = format!(
        "Rate limit reached for {whose}: too many of its requests wait already. {}",
        again(pause)
    );
    ApiError::new(Code::RateLimitExceeded, message).retry(Retry::After(pause))
}

fn pause(kind: WindowKind, retry_after: Duration) -> Duration {
    let least = match kind {
        WindowKind::Concurrency => SLOT_PAUSE,
        WindowKind::Rps | WindowKind::Rpm | WindowKind::Tpm => SHORTEST_PAUSE,
    };
    retry_after.max(least)
}

/// Adds up to a tenth, so that those who were refused together do not come back together.
fn jittered(pause: Duration, random: u8) -> Duration {
    let longer = pause + pause * u32::from(random) / (10 * u32::from(u8::MAX));
    longer.min(MAX_RETRY_AFTER)
}

/// Tells when to come again, in whole milliseconds as in the header.
fn again(pause: Duration) -> String {
    let millis = u64::try_from(pause.as_millis()).unwrap_or(0).max(1);
    let seconds = Duration::from_millis(millis).as_secs_f64();
    format!("Please try again in {seconds}s.")
}

fn message(
    ask: &WindowAsk,
    standing: &WindowStanding,
    grant: Option<&Grant>,
    pause: Duration,
) -> Cow<'static, str> {
    let what = match ask.key.kind {
        WindowKind::Rps => "requests per second (RPS)",
        WindowKind::Rpm => "requests per minute (RPM)",
        WindowKind::Tpm => "tokens per minute (TPM)",
        WindowKind::Concurrency => "requests at the same time",
    };
    let again = again(pause);
    let whose = match (&ask.key.subject, grant) {
        // What others do here is not for one client to know.
        (WindowSubject::Instance, _) => {
            return format!("Rate limit reached for this relay on {what}. {again}").into();
        }
        (_, Some(grant)) => grant.describe(&ask.key.subject),
        (WindowSubject::SourceIp(block), None) => format!("your address ({block})"),
        (subject, None) => format!("your {}", subject.scope()),
    };
    let (limit, used) = (ask.limit.most(), standing.used);
    let asked = if ask.amount > limit {
        format!("{}, counted as {limit}", ask.amount)
    } else {
        ask.amount.to_string()
    };
    format!(
        "Rate limit reached for {whose} on {what}: Limit {limit}, Used {used}, Requested {asked}. {again}"
    )
    .into()
}

#[cfg(test)]
mod tests {
    use sluice_domain::window::{IpBlock, WindowKey, WindowLimit};

    use super::*;

    fn ask(subject: WindowSubject, kind: WindowKind, most: u64, amount: u64) -> WindowAsk {
        WindowAsk {
            key: WindowKey { subject, kind },
            limit: WindowLimit::new(most).unwrap(),
            amount,
        }
    }

    fn said(ask: &WindowAsk, used: u64, pause_ms: u64) -> String {
        let standing = WindowStanding {
            most: ask.limit.most(),
            used,
            resets_in: Duration::ZERO,
            is_over: true,
        };
        message(ask, &standing, None, Duration::from_millis(pause_ms)).into_owned()
    }

    fn address() -> WindowSubject {
        WindowSubject::SourceIp(IpBlock::of("2001:db8::7".parse().unwrap(), 64))
    }

    #[test]
    fn the_message_names_scope_limit_use_and_pause() {
        assert_eq!(
            said(&ask(address(), WindowKind::Rpm, 60, 1), 60, 1_234),
            "Rate limit reached for your address (2001:db8::/64) on requests per minute (RPM): \
             Limit 60, Used 60, Requested 1. Please try again in 1.234s."
        );
        assert_eq!(
            said(&ask(address(), WindowKind::Tpm, 100, 700), 40, 60_000),
            "Rate limit reached for your address (2001:db8::/64) on tokens per minute (TPM): Limit \
             100, Used 40, Requested 700, counted as 100. Please try again in 60s."
        );
    }

    #[test]
    fn what_the_instance_does_is_told_to_nobody() {
        assert_eq!(
            said(&ask(WindowSubject::Instance, WindowKind::Rps, 9, 1), 9, 50),
            "Rate limit reached for this relay on requests per second (RPS). Please try again in 0.05s."
        );
    }

    #[test]
    fn a_pause_is_at_most_a_tenth_longer_and_never_beyond_a_minute() {
        let pause = Duration::from_secs(10);
        assert_eq!(jittered(pause, 0), pause);
        assert_eq!(jittered(pause, u8::MAX), Duration::from_secs(11));
        assert_eq!(jittered(Duration::from_secs(61), 7), MAX_RETRY_AFTER);
        assert_eq!(
            super::pause(WindowKind::Concurrency, Duration::ZERO),
            SLOT_PAUSE
        );
        assert_eq!(
            super::pause(WindowKind::Rps, Duration::ZERO),
            SHORTEST_PAUSE
        );
    }
}
