//! How long a provider asks to wait.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, RETRY_AFTER};
use jiff::fmt::rfc2822::DateTimeParser;
use sluice_domain::time::UnixMillis;

/// Nobody waits longer than a day on the word of a header.
const LONGEST: Duration = Duration::from_hours(24);

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Reads `retry-after-ms`, else `retry-after` as seconds, whole or not, or as an HTTP date.
///
/// Bounded by a day; a date in the past is zero; what cannot be read is `None`.
pub(crate) fn retry_after(headers: &HeaderMap, now: UnixMillis) -> Option<Duration> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    if let Some(wait) = text(&RETRY_AFTER_MS).and_then(|ms| number(ms, 1_000.0)) {
        return Some(wait);
    }
    let value = text(&RETRY_AFTER)?;
    number(value, 1.0).or_else(|| until(value, now))
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

/// # Source
/// RFC 9110, section 5.6.7: senders use the form of RFC 5322 with `GMT`.
fn until(date: &str, now: UnixMillis) -> Option<Duration> {
    // A wrong day of the week is no reason to ignore the rest.
    const PARSER: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
    let at = PARSER.parse_timestamp(date).ok()?.as_millisecond();
    let wait = UnixMillis(at).since(now);
    Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const NOW: UnixMillis = UnixMillis(784_111_777_000);

    fn wait(pairs: &[(&'static str, &'static str)]) -> Option<Duration> {
        let headers = pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        retry_after(&headers, NOW)
    }

    #[test]
    fn all_forms_are_read() {
        assert_eq!(
            wait(&[("retry-after", "20")]),
            Some(Duration::from_secs(20))
        );
        assert_eq!(
            wait(&[("retry-after", " 1.5 ")]),
            Some(Duration::from_millis(1_500))
        );
        assert_eq!(
            wait(&[("retry-after-ms", "250")]),
            Some(Duration::from_millis(250))
        );
        assert_eq!(
            wait(&[("retry-after", "Sun, 06 Nov 1994 08:50:37 GMT")]),
            Some(Duration::from_mins(1))
        );
    }

    #[test]
    fn milliseconds_win_and_nonsense_is_skipped() {
        assert_eq!(
            wait(&[("retry-after", "9"), ("retry-after-ms", "100")]),
            Some(Duration::from_millis(100))
        );
        assert_eq!(
            wait(&[("retry-after", "9"), ("retry-after-ms", "soon")]),
            Some(Duration::from_secs(9))
        );
    }

    #[test]
    fn the_wait_is_bounded() {
        assert_eq!(wait(&[("retry-after", "1e300")]), Some(LONGEST));
        assert_eq!(
            wait(&[("retry-after", "Sun, 06 Nov 2094 08:49:37 GMT")]),
            Some(LONGEST)
        );
        assert_eq!(
            wait(&[("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT")]),
            Some(Duration::ZERO)
        );
    }

    #[test]
    fn what_cannot_be_read_is_none() {
        for text in ["-1", "NaN", "inf", "", "tomorrow", "12 s"] {
            assert_eq!(wait(&[("retry-after", text)]), None, "{text}");
        }
        assert_eq!(wait(&[]), None);
    }
}
