//! Takes the credential out of a request's head.

use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName};

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// Returns the presented credential: `Authorization: Bearer …`, bare `Authorization`, `x-api-key`,
/// `api-key`; the first that is present and not empty.
pub(crate) fn credential(headers: &HeaderMap) -> Option<&str> {
    authorization(headers)
        .or_else(|| plain(headers, &X_API_KEY))
        .or_else(|| plain(headers, &API_KEY))
}

fn authorization(headers: &HeaderMap) -> Option<&str> {
    let value = plain(headers, &AUTHORIZATION)?;
    let bearer = match value.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => token.trim(),
        _ => value,
    };
    // `Bearer` alone is what a client sends whose key is empty.
    (!bearer.is_empty() && !bearer.eq_ignore_ascii_case("bearer")).then_some(bearer)
}

fn plain<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers
        .get(name)?
        .to_str()
        .ok()
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(pairs: &[(&'static str, &'static str)]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        credential(&headers).map(str::to_owned)
    }

    #[test]
    fn every_channel_gives_the_same_credential() {
        for pair in [
            ("authorization", "Bearer sk-1"),
            ("authorization", "bearer  sk-1 "),
            ("authorization", "sk-1"),
            ("x-api-key", "sk-1"),
            ("api-key", "sk-1"),
        ] {
            assert_eq!(of(&[pair]).as_deref(), Some("sk-1"), "{pair:?}");
        }
    }

    #[test]
    fn bearer_wins_and_emptiness_is_absence() {
        assert_eq!(
            of(&[("authorization", "Bearer a"), ("x-api-key", "b")]).as_deref(),
            Some("a")
        );
        assert_eq!(
            of(&[("authorization", "Bearer "), ("api-key", "b")]).as_deref(),
            Some("b")
        );
        assert_eq!(of(&[("authorization", "Bearer")]), None);
        assert_eq!(of(&[]), None);
    }
}
