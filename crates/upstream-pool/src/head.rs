//! Which headers pass, in both directions. Everything else stays behind.

use http::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName,
    HeaderValue, RETRY_AFTER, USER_AGENT,
};
use sluice_domain::upstream::ProviderKind;

/// The headers of a client that an upstream gets to see.
///
/// All others stay: credentials, cookies, organization and project (the operator's key decides),
/// addresses of proxies, trace contexts, what SDKs tell about their machine.
static FORWARDED: [HeaderName; 1] = [HeaderName::from_static("openai-beta")];

/// All that begin so are passed on to upstreams that speak the Anthropic protocol, known or not:
/// versions and betas belong to members of the body, and a request with one half of such a pair is
/// refused.
const ANTHROPIC_PREFIX: &str = "anthropic-";

/// The version of the API that a request is written for.
pub(crate) const ANTHROPIC_VERSION: HeaderName = HeaderName::from_static("anthropic-version");

/// The version for a client that names none; without one Anthropic refuses.
pub(crate) const OLDEST_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// The headers of an answer that are let through, beside those that begin with
/// [`LIMIT_PREFIX`].
static LET_THROUGH: [HeaderName; 5] = [
    CONTENT_TYPE,
    RETRY_AFTER,
    HeaderName::from_static("retry-after-ms"),
    HeaderName::from_static("openai-processing-ms"),
    HeaderName::from_static("openai-version"),
];

const LIMIT_PREFIX: &str = "x-ratelimit-";

/// Anthropic's limits, which tell how long a key has to rest.
const ANTHROPIC_LIMIT_PREFIX: &str = "anthropic-ratelimit-";

/// Where providers put their own request id: the first that is there. The second one is Anthropic's,
/// the third one Azure's, whose support asks for it.
static REQUEST_IDS: [HeaderName; 3] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("request-id"),
    HeaderName::from_static("apim-request-id"),
];

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// The headers of requests with one upstream key, prepared once: copying them is several times
/// cheaper than putting them together.
#[derive(Debug, Default)]
pub(crate) struct PreparedHeaders {
    for_document: HeaderMap,
    for_stream: HeaderMap,
    is_anthropic: bool,
}

impl PreparedHeaders {
    pub(crate) fn new(host: &HeaderValue, credential: Option<(HeaderName, HeaderValue)>) -> Self {
        // Six here, and one or two of the client; one power of two above, so that nothing is
        // moved later.
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(HOST, host.clone());
        if let Some((name, value)) = credential {
            headers.insert(name, value);
        }
        // It is set in each request; a copy has no room for more than it was made with.
        headers.insert(USER_AGENT, HeaderValue::from_static(""));
        headers.insert(ACCEPT, JSON);
        headers.insert(ACCEPT_ENCODING, IDENTITY);
        headers.insert(CONTENT_TYPE, JSON);
        let mut for_stream = headers.clone();
        for_stream.insert(ACCEPT, EVENT_STREAM);
        Self {
            for_document: headers,
            for_stream,
            is_anthropic: false,
        }
    }

    /// Says which headers of clients are passed on: those of the protocol of an upstream.
    pub(crate) fn passing_of(self, kind: ProviderKind) -> Self {
        Self {
            is_anthropic: kind == ProviderKind::Anthropic,
            ..self
        }
    }

    /// Builds the headers of a request to an upstream.
    pub(crate) fn of_request(
        &self,
        user_agent: &HeaderValue,
        streams: bool,
        from_client: &HeaderMap,
    ) -> HeaderMap {
        let prepared = if streams {
            &self.for_stream
        } else {
            &self.for_document
        };
        let mut headers = prepared.clone();
        headers.insert(USER_AGENT, user_agent.clone());
        if self.is_anthropic {
            pass_anthropic(from_client, &mut headers);
            return headers;
        }
        for name in &FORWARDED {
            for value in from_client.get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        headers
    }

    #[cfg(test)]
    pub(crate) const fn for_document(&self) -> &HeaderMap {
        &self.for_document
    }
}

fn pass_anthropic(from_client: &HeaderMap, headers: &mut HeaderMap) {
    for (name, value) in from_client {
        if name.as_str().starts_with(ANTHROPIC_PREFIX) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers.entry(ANTHROPIC_VERSION).or_insert(OLDEST_VERSION);
}

/// Returns whether somebody reads a header of an answer, by its name in whichever case.
pub(crate) fn is_of_interest(name: &str) -> bool {
    let is_limit = |prefix: &str| {
        name.get(..prefix.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
    };
    is_limit(LIMIT_PREFIX)
        || is_limit(ANTHROPIC_LIMIT_PREFIX)
        || LET_THROUGH
            .iter()
            .chain(&REQUEST_IDS)
            .chain([&CONTENT_ENCODING])
            .any(|known| known.as_str().eq_ignore_ascii_case(name))
}

/// What the headers of an answer say.
#[derive(Debug)]
pub(crate) struct AnswerHeaders {
    /// Whether the answer is a stream of events.
    pub(crate) is_event_stream: bool,
    /// Whether the body is compressed although nobody asked for it.
    pub(crate) is_encoded: bool,
}

impl AnswerHeaders {
    /// Reads the headers of an answer.
    pub(crate) fn read(all: &HeaderMap) -> Self {
        Self {
            is_event_stream: all.get(CONTENT_TYPE).is_some_and(is_event_stream),
            is_encoded: all.get_all(CONTENT_ENCODING).iter().any(|value| {
                !value
                    .as_bytes()
                    .trim_ascii()
                    .eq_ignore_ascii_case(b"identity")
            }),
        }
    }
}

/// What is passed on of the head of a refusal.
pub(crate) struct LetThrough {
    pub(crate) headers: HeaderMap,
    /// The provider's own request id.
    pub(crate) upstream_request_id: Option<HeaderValue>,
}

impl LetThrough {
    pub(crate) fn read(all: &HeaderMap) -> Self {
        Self {
            headers: all
                .iter()
                .filter(|(name, _)| {
                    LET_THROUGH.contains(name) || name.as_str().starts_with(LIMIT_PREFIX)
                })
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            upstream_request_id: REQUEST_IDS.iter().find_map(|name| all.get(name)).cloned(),
        }
    }
}

fn is_event_stream(content_type: &HeaderValue) -> bool {
    let media_type = content_type
        .as_bytes()
        .split(|&b| b == b';')
        .next()
        .unwrap_or_default();
    media_type
        .trim_ascii()
        .eq_ignore_ascii_case(b"text/event-stream")
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
    fn of_a_refusal_only_what_is_listed_is_passed_on() {
        let LetThrough {
            headers: kept,
            upstream_request_id,
        } = LetThrough::read(&headers(&[
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
        assert_eq!(upstream_request_id.unwrap(), "req-1");
    }

    #[test]
    fn an_anthropic_upstream_gets_every_header_of_that_name_and_a_version() {
        let host = HeaderValue::from_static("api.anthropic.com");
        let prepared = PreparedHeaders::new(&host, None).passing_of(ProviderKind::Anthropic);
        let agent = HeaderValue::from_static("sluice");
        let mut from_client = headers(&[
            ("anthropic-version", "2026-10-21"),
            ("anthropic-beta", "a,b"),
            ("anthropic-thing-to-come", "1"),
            ("openai-beta", "x"),
            ("x-api-key", "sk-client"),
            ("x-stainless-lang", "python"),
        ]);
        from_client.append("anthropic-beta", HeaderValue::from_static("c"));
        let sent = prepared.of_request(&agent, true, &from_client);
        assert_eq!(sent["anthropic-version"], "2026-10-21");
        let betas: Vec<_> = sent.get_all("anthropic-beta").iter().collect();
        assert_eq!(betas, ["a,b", "c"]);
        assert_eq!(sent["anthropic-thing-to-come"], "1");
        for name in ["openai-beta", "x-api-key", "x-stainless-lang"] {
            assert!(!sent.contains_key(name), "{name}");
        }
        let sent = prepared.of_request(&agent, false, &HeaderMap::new());
        assert_eq!(sent["anthropic-version"], "2023-06-01");
        let others = PreparedHeaders::new(&host, None);
        let sent = others.of_request(&agent, false, &from_client);
        assert!(!sent.contains_key("anthropic-version") && sent.contains_key("openai-beta"));
    }

    #[test]
    fn whatever_is_read_or_let_through_is_of_interest() {
        for name in [
            "Content-Type",
            "content-encoding",
            "X-Request-Id",
            "Request-Id",
            "retry-after",
            "RETRY-AFTER-MS",
            "openai-processing-ms",
            "X-RateLimit-Remaining-Tokens",
            "Anthropic-RateLimit-Tokens-Reset",
        ] {
            assert!(is_of_interest(name), "{name}");
        }
        for name in [
            "server",
            "set-cookie",
            "x-ratelimit",
            "x-ratelimité",
            "content-typ",
        ] {
            assert!(!is_of_interest(name), "{name}");
        }
    }

    #[test]
    fn an_event_stream_is_known_by_its_media_type_alone() {
        for text in [
            "text/event-stream",
            "text/event-stream; charset=utf-8",
            "Text/Event-Stream ;x=1",
        ] {
            assert!(
                AnswerHeaders::read(&headers(&[("content-type", text)])).is_event_stream,
                "{text}"
            );
        }
        for text in [
            "application/json",
            "text/event-streams",
            "x; text/event-stream",
        ] {
            assert!(
                !AnswerHeaders::read(&headers(&[("content-type", text)])).is_event_stream,
                "{text}"
            );
        }
        assert!(!AnswerHeaders::read(&HeaderMap::new()).is_event_stream);
    }

    #[test]
    fn compression_is_noticed() {
        let is_encoded = |value| {
            let all = headers(&[
                ("content-encoding", "identity"),
                ("content-encoding", value),
            ]);
            AnswerHeaders::read(&all).is_encoded
        };
        assert!(is_encoded("gzip"));
        assert!(!is_encoded("Identity"));
    }
}
