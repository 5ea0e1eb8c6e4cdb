use http::HeaderValue;
use proptest::prelude::*;

use super::*;

/// 1994-11-06T08:49:37Z.
const NOW: UnixMillis = UnixMillis(784_111_777_000);
/// 2026-11-20T12:00:00Z.
const TODAY: UnixMillis = UnixMillis(1_795_176_000_000);

fn read(pairs: &[(&'static str, &str)], now: UnixMillis) -> Option<Duration> {
    let headers = pairs
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect();
    retry_after(&headers, now)
}

fn wait_of(pairs: &[(&'static str, &str)]) -> Option<Duration> {
    read(pairs, NOW)
}

#[test]
fn every_form_is_read() {
    let milliseconds = |ms| Some(Duration::from_millis(ms));
    for (text, expected) in [
        ("20", milliseconds(20_000)),
        (" 1.5 ", milliseconds(1_500)),
        ("0", milliseconds(0)),
        ("64", milliseconds(64_000)),
        ("12ms", milliseconds(12)),
        ("1s", milliseconds(1_000)),
        ("1m0s", milliseconds(60_000)),
        ("6m0s", milliseconds(360_000)),
        ("2m52.8s", milliseconds(172_800)),
        ("1h2m3s", milliseconds(3_723_000)),
        ("1.5h", milliseconds(5_400_000)),
        ("250us", Some(Duration::from_micros(250))),
        ("7ns", Some(Duration::from_nanos(7))),
        ("Fri, 20 Nov 2026 12:01:00 GMT", milliseconds(60_000)),
        ("Mon, 20 Nov 2026 12:01:00 GMT", milliseconds(60_000)),
        ("2026-11-20T12:00:30Z", milliseconds(30_000)),
        ("2026-11-20T13:00:30+01:00", milliseconds(30_000)),
        ("2026-11-20T12:00:00.250Z", milliseconds(250)),
        ("1795176090", milliseconds(90_000)),
        ("1795176000500", milliseconds(500)),
        ("1e2", milliseconds(100_000)),
        ("2026-11-20T11:59:00Z", milliseconds(0)),
        ("1795170000", milliseconds(0)),
        ("48h", Some(LONGEST)),
        ("1e300", Some(LONGEST)),
        ("Sun, 20 Nov 2094 12:00:00 GMT", Some(LONGEST)),
        ("-1", None),
        ("-3s", None),
        ("NaN", None),
        ("inf", None),
        ("", None),
        ("soon", None),
        ("12 s", None),
        ("1x", None),
        ("5m3", None),
        (".s", None),
    ] {
        assert_eq!(read(&[("retry-after", text)], TODAY), expected, "{text}");
        let pairs = [("x-ratelimit-reset-tokens", text)];
        assert_eq!(read(&pairs, TODAY), expected, "{text}");
    }
}

#[test]
fn milliseconds_win_and_nonsense_is_skipped() {
    assert_eq!(
        wait_of(&[("retry-after", "9"), ("retry-after-ms", "100")]),
        Some(Duration::from_millis(100))
    );
    assert_eq!(
        wait_of(&[("retry-after", "9"), ("retry-after-ms", "soon")]),
        Some(Duration::from_secs(9))
    );
    assert_eq!(
        wait_of(&[
            ("retry-after", "soon"),
            ("x-ratelimit-reset-requests", "3s")
        ]),
        Some(Duration::from_secs(3))
    );
    assert_eq!(wait_of(&[]), None);
}

#[test]
fn the_limit_that_is_used_up_decides() {
    let openai = [
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "8.64s"),
        ("x-ratelimit-remaining-tokens", "149000"),
        ("x-ratelimit-reset-tokens", "6m0s"),
    ];
    assert_eq!(wait_of(&openai), Some(Duration::from_millis(8_640)));
    let azure = [
        ("x-ratelimit-remaining-requests", "9"),
        ("x-ratelimit-reset-requests", "1"),
        ("x-ratelimit-remaining-tokens", "-27689"),
        ("x-ratelimit-reset-tokens", "64"),
    ];
    assert_eq!(wait_of(&azure), Some(Duration::from_secs(64)));
    let both = [
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "5s"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "9s"),
    ];
    assert_eq!(wait_of(&both), Some(Duration::from_secs(9)));
    let neither = [
        ("x-ratelimit-reset-requests", "5s"),
        ("x-ratelimit-reset-tokens", "9s"),
    ];
    assert_eq!(wait_of(&neither), Some(Duration::from_secs(5)));
}

#[test]
fn the_limits_of_anthropic_are_read() {
    let pairs = [
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-requests-reset", "1994-11-06T08:49:40Z"),
        ("anthropic-ratelimit-input-tokens-remaining", "0"),
        (
            "anthropic-ratelimit-input-tokens-reset",
            "1994-11-06T08:50:37Z",
        ),
    ];
    assert_eq!(wait_of(&pairs), Some(Duration::from_mins(1)));
    let unified = [("anthropic-ratelimit-unified-reset", "1795176060")];
    assert_eq!(read(&unified, TODAY), Some(Duration::from_mins(1)));
}

proptest! {
    #[test]
    fn nothing_is_longer_than_a_day_and_nothing_breaks(text in "[ -~]{0,30}") {
        let headers = [("retry-after", &*text), ("x-ratelimit-reset-tokens", &*text)];
        let read = read(&headers, TODAY);
        prop_assert!(read.is_none_or(|wait| wait <= LONGEST));
    }

    #[test]
    fn a_duration_is_what_go_writes(ms in 0..86_400_000_u64) {
        let (hours, minutes, rest) = (ms / 3_600_000, ms / 60_000 % 60, ms % 60_000);
        let seconds = format!("{}.{:03}s", rest / 1_000, rest % 1_000);
        let text = match (hours, minutes) {
            (0, 0) => seconds,
            (0, _) => format!("{minutes}m{seconds}"),
            _ => format!("{hours}h{minutes}m{seconds}"),
        };
        let wait = read(&[("x-ratelimit-reset-requests", &text)], NOW).unwrap();
        let off = wait.abs_diff(Duration::from_millis(ms));
        prop_assert!(off < Duration::from_micros(1), "{text} is {wait:?}");
    }

    #[test]
    fn a_time_is_the_same_in_every_form(seconds in 0..86_400_i64) {
        let at = TODAY.0 / 1_000 + seconds;
        let time = Timestamp::from_second(at).unwrap();
        let rfc_3339 = time.to_string();
        let http_date = time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let expected = Some(Duration::from_secs(seconds.unsigned_abs()));
        for text in [at.to_string(), format!("{at}000"), rfc_3339, http_date, seconds.to_string()] {
            prop_assert_eq!(read(&[("retry-after", &text)], TODAY), expected, "{}", text);
        }
    }
}
