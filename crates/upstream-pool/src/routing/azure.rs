//! Where things are at Azure OpenAI.
//!
//! # Source
//! Microsoft's reference of the data plane, seen in November 2026: the paths of dated versions name
//! the deployment; those under `v1`, general since August 2025, have no version or one such as
//! `preview`, and take the deployment from the `model` of the body.

use std::fmt::Write as _;

use http::Uri;
use http::header::HeaderName;
use sluice_domain::route::Endpoint;
use sluice_domain::upstream::BaseUrl;

use super::upstream::path_and_query;

/// The header for keys.
pub(super) const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// Where the endpoints of a resource are.
#[derive(Debug)]
pub(super) enum Paths {
    /// Below `before`, each followed by `query`.
    Plain { before: String, query: String },
    /// Below the deployment.
    ByDeployment(DeploymentPaths),
}

/// The paths of a dated version.
#[derive(Debug)]
pub(super) struct DeploymentPaths {
    /// Up to the name of the deployment.
    before: String,
    query: String,
}

/// Returns the paths of a resource by the version of the interface that is asked for.
pub(super) fn paths(base: &BaseUrl, api_version: Option<&str>) -> Paths {
    let root = root(base);
    let query = query(api_version);
    if is_dated(api_version) {
        let before = format!("{root}/openai/deployments/");
        return Paths::ByDeployment(DeploymentPaths { before, query });
    }
    Paths::Plain {
        before: format!("{root}/openai/v1"),
        query,
    }
}

/// Returns where a resource lists its models.
pub(super) fn model_list(base: &BaseUrl, api_version: Option<&str>) -> String {
    let version = if is_dated(api_version) { "" } else { "/v1" };
    format!(
        "{}/openai{version}/models{}",
        root(base),
        query(api_version)
    )
}

/// Returns the path of a base URL up to the resource: people paste longer ones too.
fn root(base: &BaseUrl) -> &str {
    let path = base.path();
    let path = path.strip_suffix("/v1").unwrap_or(path);
    path.strip_suffix("/openai").unwrap_or(base.path())
}

/// A version that is a date has paths with deployments; others are under `v1`.
fn is_dated(api_version: Option<&str>) -> bool {
    api_version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
}

fn query(api_version: Option<&str>) -> String {
    api_version.map_or_else(String::new, |version| format!("?api-version={version}"))
}

impl DeploymentPaths {
    /// Returns the URI of an endpoint of a deployment; `None` for a name that leads elsewhere.
    pub(super) fn uri(&self, endpoint: Endpoint, deployment: &str) -> Option<Uri> {
        if matches!(deployment, "" | "." | "..") {
            return None;
        }
        let mut text = String::with_capacity(
            self.before.len() + deployment.len() + endpoint.path().len() + self.query.len(),
        );
        text.push_str(&self.before);
        // The name may come from a client; no character of it may end the segment.
        for byte in deployment.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    text.push(char::from(byte));
                }
                _ => {
                    let _never_fails = write!(text, "%{byte:02X}");
                }
            }
        }
        text.push_str(endpoint.path());
        text.push_str(&self.query);
        path_and_query(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(base: &str, version: Option<&str>, deployment: &str) -> Option<String> {
        let base = base.parse().unwrap();
        match paths(&base, version) {
            Paths::Plain { before, query } => Some(format!("{before}/chat/completions{query}")),
            Paths::ByDeployment(paths) => paths
                .uri(Endpoint::ChatCompletions, deployment)
                .map(|uri| uri.to_string()),
        }
    }

    #[test]
    fn the_version_decides_about_the_path() {
        for (version, expected) in [
            (None, "/openai/v1/chat/completions"),
            (
                Some("preview"),
                "/openai/v1/chat/completions?api-version=preview",
            ),
            (
                Some("2024-10-21"),
                "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
            ),
        ] {
            assert_eq!(
                uri("https://r.openai.azure.com", version, "gpt-4o").as_deref(),
                Some(expected)
            );
        }
    }

    #[test]
    fn a_base_url_may_hold_a_part_of_the_path() {
        for (base, expected) in [
            ("https://r.openai.azure.com/", "/openai/v1/models"),
            ("https://r.openai.azure.com/openai", "/openai/v1/models"),
            ("https://r.openai.azure.com/openai/v1/", "/openai/v1/models"),
            (
                "https://gateway.example/team/openai",
                "/team/openai/v1/models",
            ),
            ("https://gateway.example/v1", "/v1/openai/v1/models"),
        ] {
            assert_eq!(model_list(&base.parse().unwrap(), None), expected, "{base}");
        }
        let base = "https://r.openai.azure.com".parse().unwrap();
        assert_eq!(
            model_list(&base, Some("2024-10-21")),
            "/openai/models?api-version=2024-10-21"
        );
    }

    #[test]
    fn the_name_of_a_deployment_stays_one_segment() {
        let uri = |deployment| uri("https://r.openai.azure.com", Some("2024-10-21"), deployment);
        for deployment in ["", ".", ".."] {
            assert_eq!(uri(deployment), None, "{deployment}");
        }
        for (deployment, segment) in [
            ("../x", "..%2Fx"),
            ("a b?c#d", "a%20b%3Fc%23d"),
            ("a%2Fb", "a%252Fb"),
            ("é\\", "%C3%A9%5C"),
        ] {
            assert_eq!(
                uri(deployment).unwrap(),
                format!("/openai/deployments/{segment}/chat/completions?api-version=2024-10-21")
            );
        }
    }
}
