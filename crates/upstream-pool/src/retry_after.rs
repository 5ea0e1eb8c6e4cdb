//! How long a provider asks to wait.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use sluice_domain::time::UnixMillis;

/// Nobody waits longer than a day on the word of a header.
const LONGEST: Duration = Duration::from_hours(24);

/// Smaller numbers are seconds from now, larger ones seconds since 1970: the first is 31 years.
const FIRST_EPOCH_SECOND: f64 = 1e9;
/// From here on they are milliseconds since 1970.
const FIRST_EPOCH_MILLISECOND: f64 = 1e11;

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// The families of limit headers: what their names begin and end with around what is limited.
///
/// # Source
/// OpenAI and Azure: `x-ratelimit-reset-tokens`; Anthropic: `anthropic-ratelimit-tokens-reset`; others:
/// `x-ratelimit-reset`.
const FAMILIES: [Family; 2] = [
    Family {
        reset: ("x-ratelimit-reset", ""),
        remaining: ("x-ratelimit-remaining", ""),
    },
    Family {
        reset: ("anthropic-ratelimit-", "-reset"),
        remaining: ("anthropic-ratelimit-", "-remaining"),
    },
];

struct Family {
    reset: (&'static str, &'static str),
    remaining: (&'static str, &'static str),
}

/// Reads how long to wait from the head of an answer that says that a limit is reached.
///
/// `retry-after-ms` comes first, then `retry-after`, then the times at which limits are reset: of
/// those that are used up the latest, or the earliest of all where none says so. Bounded by a day; a
/// time in the past is zero; what cannot be read is `None`.
pub(crate) fn retry_after(headers: &HeaderMap, now: UnixMillis) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(wait) = text(&RETRY_AFTER_MS).and_then(|ms| number(ms, 1_000.0)) {
        return Some(wait);
    }
    if let Some(wait) = text(&RETRY_AFTER).and_then(|value| wait(value, now)) {
        return Some(wait);
    }
    resets(headers, now)
}

/// Reads one time in whichever form: a duration as Go writes it (`1m0s`, `12ms`), seconds, a time
/// since 1970, RFC 3339, or an HTTP date.
fn wait(text: &str, now: UnixMillis) -> Option<Duration> {
    let text = text.trim();
    if let Ok(count) = text.parse::<f64>() {
        if count >= FIRST_EPOCH_MILLISECOND && count.is_finite() {
            return Some(after(
                now,
                Duration::from_secs_f64((count / 1_000.0).min(1e10)),
            ));
        }
        if count >= FIRST_EPOCH_SECOND && count.is_finite() {
            return Some(after(now, Duration::from_secs_f64(count)));
        }
        return number(text, 1.0);
    }
    go_duration(text).or_else(|| date(text, now))
}

/// Returns how long after now a time since 1970 is.
fn after(now: UnixMillis, at: Duration) -> Duration {
    let now = Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
    at.saturating_sub(now).min(LONGEST)
}

fn number(text: &str, per_second: f64) -> Option<Duration> {
    let count: f64 = text.parse().ok()?;
    if !count.is_finite() || count < 0.0 {
        return None;
    }
    Some(Duration::from_secs_f64(
        (count / per_second).min(LONGEST.as_secs_f64()),
    ))
}

/// Reads `1h2m3.5s`: numbers, each with a unit.
///
/// # Source
/// Go, package `time`, `ParseDuration`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (count, tail) = rest.split_at_checked(digits)?;
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at_checked(unit_end)?;
        let unit = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += count.parse::<f64>().ok()? * unit;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::from_secs_f64(seconds.min(LONGEST.as_secs_f64())))
}

/// # Source
/// RFC 9110, section 5.6.7: senders use the form of RFC 5322 with `GMT`.
fn date(text: &str, now: UnixMillis) -> Option<Duration> {
    // A wrong day of the week is no reason to ignore the rest.
    const PARSER: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
    let at = match text.parse::<Timestamp>() {
        Ok(at) => at,
        Err(_not_rfc_3339) => PARSER.parse_timestamp(text).ok()?,
    };
    let wait = UnixMillis(at.as_millisecond()).since(now);
    Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)).min(LONGEST))
}

/// Reads the times at which limits are reset.
fn resets(headers: &HeaderMap, now: UnixMillis) -> Option<Duration> {
    let (mut used_up, mut earliest): (Option<Duration>, Option<Duration>) = (None, None);
    for (name, value) in headers {
        let Some((family, limit)) = FAMILIES
            .iter()
            .find_map(|family| Some((family, between(name.as_str(), family.reset)?)))
        else {
            continue;
        };
        let Some(wait) = value.to_str().ok().and_then(|text| wait(text, now)) else {
            continue;
        };
        let (before, behind) = family.remaining;
        let remaining = headers
            .get(format!("{before}{limit}{behind}"))
            .and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
        if remaining.is_some_and(|left| left <= 0.0) {
            used_up = Some(used_up.map_or(wait, |known| known.max(wait)));
        }
        earliest = Some(earliest.map_or(wait, |known| known.min(wait)));
    }
    used_up.or(earliest)
}

fn between<'a>(name: &'a str, (before, behind): (&str, &str)) -> Option<&'a str> {
    name.strip_prefix(before)?.strip_suffix(behind)
}

#[cfg(test)]
mod tests;
