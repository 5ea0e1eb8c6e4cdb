//! How limits stand, in the headers that clients of each API read.

use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use sluice_domain::route::Protocol;
use sluice_domain::time::UnixMillis;
use sluice_domain::window::{WindowAsk, WindowKind, WindowScope, WindowStanding};
use smallvec::SmallVec;

/// Limit, remaining and reset; of requests, then of tokens.
type Names = [[HeaderName; 3]; 2];

static OPEN_AI: Names = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];
static ANTHROPIC: Names = [
    [
        HeaderName::from_static("anthropic-ratelimit-requests-limit"),
        HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
        HeaderName::from_static("anthropic-ratelimit-requests-reset"),
    ],
    [
        HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
        HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
        HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
    ],
];

/// Returns every header, for pages of other origins that may read them.
pub(crate) fn header_names() -> impl Iterator<Item = HeaderName> {
    OPEN_AI.iter().chain(&ANTHROPIC).flatten().cloned()
}

/// How one limit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    limit: u64,
    remaining: u64,
    resets_at: UnixMillis,
}

impl Row {
    fn of(ask: &WindowAsk, standing: &WindowStanding, now: UnixMillis) -> Self {
        let millis = standing.resets_in.as_nanos().div_ceil(1_000_000);
        let millis = i64::try_from(millis).unwrap_or(i64::MAX);
        Self {
            limit: ask.limit.most(),
            remaining: standing.remaining(),
            resets_at: UnixMillis(now.0.saturating_add(millis)),
        }
    }

    /// Returns whether this one stops a client earlier than another.
    fn is_tighter_than(&self, other: &Self) -> bool {
        (self.remaining, other.resets_at) < (other.remaining, self.resets_at)
    }
}

/// The tightest limit of requests, and of tokens, that a request met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ShownLimits {
    requests: Option<Row>,
    tokens: Option<Row>,
}

impl ShownLimits {
    /// Returns what may be shown of a decision. Not what refuses nothing; nor what the whole
    /// instance does, which is not for one client to know; nor slots, which no time resets.
    pub(super) fn of(asks: &[WindowAsk], standings: &[WindowStanding], now: UnixMillis) -> Self {
        let mut shown = Self::default();
        for (ask, standing) in asks.iter().zip(standings) {
            let is_shown = !ask.limit.dry_run
                && ask.key.kind != WindowKind::Concurrency
                && ask.key.subject.scope() != WindowScope::Instance;
            if is_shown {
                shown.tighten(Self::only(ask.key.kind, Row::of(ask, standing, now)));
            }
        }
        shown
    }

    /// The same, of a decision that was refused: of the class of the limit that is to blame, that
    /// one.
    pub(super) fn of_refused(
        asks: &[WindowAsk],
        standings: &[WindowStanding],
        which: usize,
        now: UnixMillis,
    ) -> Self {
        let mut shown = Self::of(asks, standings, now);
        if let (Some(ask), Some(standing)) = (asks.get(which), standings.get(which))
            && ask.key.subject.scope() != WindowScope::Instance
        {
            let blamed = Self::only(ask.key.kind, Row::of(ask, standing, now));
            shown.requests = blamed.requests.or(shown.requests);
            shown.tokens = blamed.tokens.or(shown.tokens);
        }
        shown
    }

    const fn only(kind: WindowKind, row: Row) -> Self {
        match kind {
            WindowKind::Tpm => Self {
                requests: None,
                tokens: Some(row),
            },
            WindowKind::Rps | WindowKind::Rpm | WindowKind::Concurrency => Self {
                requests: Some(row),
                tokens: None,
            },
        }
    }

    /// Keeps the tighter of each.
    pub(super) fn tighten(&mut self, other: Self) {
        for (own, other) in [
            (&mut self.requests, other.requests),
            (&mut self.tokens, other.tokens),
        ] {
            if let Some(row) = other
                && own.is_none_or(|own| row.is_tighter_than(&own))
            {
                *own = Some(row);
            }
        }
    }

    /// Writes the headers of an answer that is sent now.
    pub(crate) fn write(&self, protocol: Protocol, now: UnixMillis, headers: &mut HeaderMap) {
        let names = match protocol {
            Protocol::OpenAi => &OPEN_AI,
            Protocol::Anthropic => &ANTHROPIC,
        };
        // At once: to grow is dearer than to insert.
        headers.reserve(names.len() * 3);
        for ([limit, remaining, reset], row) in names.iter().zip([self.requests, self.tokens]) {
            let Some(row) = row else { continue };
            let resets = match protocol {
                Protocol::OpenAi => HeaderValue::from_bytes(&go_duration(row.resets_at.since(now))),
                Protocol::Anthropic => HeaderValue::try_from(whole_second(row.resets_at)),
            };
            headers.insert(limit.clone(), HeaderValue::from(row.limit));
            headers.insert(remaining.clone(), HeaderValue::from(row.remaining));
            if let Ok(value) = resets {
                headers.insert(reset.clone(), value);
            }
        }
    }
}

/// Returns a duration as Go prints it: `12ms`, `1.5s`, `1m0s`.
///
/// # Units
/// `millis` is in milliseconds; what is over is zero.
///
/// # Source
/// OpenAI's documentation of rate limits, "Rate limits in headers" (read 2026-11).
fn go_duration(millis: i64) -> Text {
    let mut text = Text::new();
    let millis = millis.max(0).unsigned_abs();
    if (1..1_000).contains(&millis) {
        put_digits(&mut text, millis, 1);
        text.extend_from_slice(b"ms");
        return text;
    }
    let (minutes, seconds, mut rest) = (millis / 60_000, millis / 1_000 % 60, millis % 1_000);
    if minutes > 0 {
        put_digits(&mut text, minutes, 1);
        text.push(b'm');
    }
    put_digits(&mut text, seconds, 1);
    if rest > 0 {
        let mut width = 3;
        while rest.is_multiple_of(10) {
            rest /= 10;
            width -= 1;
        }
        text.push(b'.');
        put_digits(&mut text, rest, width);
    }
    text.push(b's');
    text
}

/// A short text without an allocation: every answer to a limited request has two.
type Text = SmallVec<[u8; 32]>;

/// Adds a number with at least so many digits.
fn put_digits(text: &mut Text, mut number: u64, width: usize) {
    let start = text.len();
    while number > 0 || text.len() - start < width {
        // A remainder of ten is one digit.
        text.push(b'0' + u8::try_from(number % 10).unwrap_or(0));
        number /= 10;
    }
    if let Some(digits) = text.get_mut(start..) {
        digits.reverse();
    }
}

/// Returns an instant as Anthropic writes it: RFC 3339 in whole seconds, rounded up.
fn whole_second(at: UnixMillis) -> String {
    let seconds = at.0.div_euclid(1_000) + i64::from(at.0.rem_euclid(1_000) > 0);
    UnixMillis(seconds.saturating_mul(1_000)).to_rfc3339()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sluice_domain::window::{WindowKey, WindowLimit, WindowSubject};

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_000_000_400);

    fn ask(subject: WindowSubject, kind: WindowKind, most: u64) -> WindowAsk {
        WindowAsk {
            key: WindowKey { subject, kind },
            limit: WindowLimit::new(most).unwrap(),
            amount: 1,
        }
    }

    fn user() -> WindowSubject {
        WindowSubject::User(sluice_domain::id::UserId::from_uuid(uuid::Uuid::from_u128(
            1,
        )))
    }

    fn standing(most: u64, used: u64, resets_ms: u64) -> WindowStanding {
        WindowStanding {
            most,
            used,
            resets_in: Duration::from_millis(resets_ms),
            is_over: false,
        }
    }

    fn written(shown: ShownLimits, protocol: Protocol) -> Vec<String> {
        let mut headers = HeaderMap::new();
        shown.write(protocol, NOW, &mut headers);
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (millis, text) in [
            (-5, "0s"),
            (0, "0s"),
            (12, "12ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (59_050, "59.05s"),
            (60_000, "1m0s"),
            (60_005, "1m0.005s"),
            (172_800, "2m52.8s"),
            (360_000, "6m0s"),
        ] {
            let written = go_duration(millis);
            assert_eq!(str::from_utf8(&written), Ok(text));
        }
    }

    #[test]
    fn the_tightest_is_shown_of_each_class() {
        let asks = [
            ask(user(), WindowKind::Rps, 10),
            ask(user(), WindowKind::Rpm, 60),
            ask(user(), WindowKind::Tpm, 1_000),
            // Shown to nobody.
            ask(user(), WindowKind::Concurrency, 1),
            ask(WindowSubject::Instance, WindowKind::Rpm, 2),
            WindowAsk {
                limit: WindowLimit::new(1).unwrap().dry_run(),
                ..ask(user(), WindowKind::Tpm, 1)
            },
        ];
        let standings = [
            standing(10, 1, 1_000),
            standing(60, 52, 61_500),
            standing(1_000, 1_700, 42_001),
            standing(1, 1, 0),
            standing(2, 2, 60_000),
            standing(1, 1, 60_000),
        ];
        let shown = ShownLimits::of(&asks, &standings, NOW);
        assert_eq!(
            written(shown, Protocol::OpenAi),
            [
                "x-ratelimit-limit-requests: 60",
                "x-ratelimit-limit-tokens: 1000",
                "x-ratelimit-remaining-requests: 8",
                "x-ratelimit-remaining-tokens: 0",
                "x-ratelimit-reset-requests: 1m1.5s",
                "x-ratelimit-reset-tokens: 42.001s",
            ]
        );
        assert_eq!(
            written(shown, Protocol::Anthropic),
            [
                "anthropic-ratelimit-requests-limit: 60",
                "anthropic-ratelimit-requests-remaining: 8",
                "anthropic-ratelimit-requests-reset: 2026-11-18T11:07:42Z",
                "anthropic-ratelimit-tokens-limit: 1000",
                "anthropic-ratelimit-tokens-remaining: 0",
                "anthropic-ratelimit-tokens-reset: 2026-11-18T11:07:23Z",
            ]
        );
    }

    #[test]
    fn a_refusal_shows_the_limit_that_is_to_blame() {
        let asks = [
            ask(user(), WindowKind::Rpm, 60),
            ask(user(), WindowKind::Concurrency, 2),
        ];
        let standings = [standing(60, 60, 9_000), standing(2, 2, 0)];
        let shown = ShownLimits::of_refused(&asks, &standings, 1, NOW);
        let lines = written(shown, Protocol::OpenAi);
        assert_eq!(lines[0], "x-ratelimit-limit-requests: 2");
        assert_eq!(lines.len(), 3, "{lines:?}");
    }

    #[test]
    fn what_is_not_limited_is_not_told() {
        let shown = ShownLimits::of(&[], &[], NOW);
        assert_eq!(written(shown, Protocol::OpenAi), [""; 0]);
    }
}
