//! Which headers pass, in both directions. Everything else stays behind.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
    USER_AGENT,
};

use crate::routing::upstream::{Address, PreparedKey};

/// The headers of a client that an upstream gets to see.
///
/// All others stay: credentials, cookies, organization and project (the operator's key decides),
/// addresses of proxies, trace contexts, what SDKs tell about their machine.
const FORWARDED: [HeaderName; 1] = [HeaderName::from_static("openai-beta")];

/// The headers of an answer that are let through, beside those that begin with
/// [`LIMIT_PREFIX`].
const LET_THROUGH: [HeaderName; 5] = [
    CONTENT_TYPE,
    RETRY_AFTER,
    HeaderName::from_static("retry-after-ms"),
    HeaderName::from_static("openai-processing-ms"),
    HeaderName::from_static("openai-version"),
];

const LIMIT_PREFIX: &str = "x-ratelimit-";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// Builds the headers of a request to an upstream.
///
/// The content length is not here: the HTTP client derives it from the body.
pub(crate) fn request_headers(
    address: &Address,
    key: &PreparedKey,
    user_agent: &HeaderValue,
    streams: bool,
    from_client: &HeaderMap,
) -> HeaderMap {
    // Seven here and the length; one power of two above, so that nothing is moved later.
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(HOST, address.host.clone());
    if let Some((name, value)) = &key.credential {
        headers.insert(name.clone(), value.clone());
    }
    headers.insert(USER_AGENT, user_agent.clone());
    headers.insert(ACCEPT, if streams { EVENT_STREAM } else { JSON });
    headers.insert(ACCEPT_ENCODING, IDENTITY);
    headers.insert(CONTENT_TYPE, JSON);
    for name in &FORWARDED {
        for value in from_client.get_all(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

/// Splits the headers of an answer into those that are let through and the provider's request id.
pub(crate) fn answer_headers(all: &HeaderMap) -> (HeaderMap, Option<HeaderValue>) {
    let mut kept = HeaderMap::with_capacity(4);
    for (name, value) in all {
        if LET_THROUGH.contains(name) || name.as_str().starts_with(LIMIT_PREFIX) {
            kept.append(name.clone(), value.clone());
        }
    }
    (kept, all.get(REQUEST_ID).cloned())
}

/// Returns whether the answer is a stream of events.
pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        let media_type = value
            .as_bytes()
            .split(|&b| b == b';')
            .next()
            .unwrap_or_default();
        media_type
            .trim_ascii()
            .eq_ignore_ascii_case(b"text/event-stream")
    })
}

/// Returns whether the body is compressed although nobody asked for it.
pub(crate) fn is_encoded(headers: &HeaderMap) -> bool {
    headers
        .get_all(http::header::CONTENT_ENCODING)
        .iter()
        .any(|value| {
            !value
                .as_bytes()
                .trim_ascii()
                .eq_ignore_ascii_case(b"identity")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn an_answer_keeps_only_what_is_listed() {
        let (kept, id) = answer_headers(&headers(&[
            ("content-type", "application/json"),
            ("x-ratelimit-remaining-tokens", "7"),
            ("retry-after", "3"),
            ("x-request-id", "req-1"),
            ("set-cookie", "a=b"),
            ("openai-organization", "org-secret"),
            ("server", "x"),
            ("connection", "close"),
        ]));
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "content-type",
                "retry-after",
                "x-ratelimit-remaining-tokens"
            ]
        );
        assert_eq!(id.unwrap(), "req-1");
    }

    #[test]
    fn an_event_stream_is_known_by_its_media_type_alone() {
        for text in [
            "text/event-stream",
            "text/event-stream; charset=utf-8",
            "Text/Event-Stream ;x=1",
        ] {
            assert!(
                is_event_stream(&headers(&[("content-type", text)])),
                "{text}"
            );
        }
        for text in [
            "application/json",
            "text/event-streams",
            "x; text/event-stream",
        ] {
            assert!(
                !is_event_stream(&headers(&[("content-type", text)])),
                "{text}"
            );
        }
        assert!(!is_event_stream(&HeaderMap::new()));
    }

    #[test]
    fn compression_is_noticed() {
        assert!(is_encoded(&headers(&[("content-encoding", "gzip")])));
        assert!(!is_encoded(&headers(&[("content-encoding", "Identity")])));
    }
}
