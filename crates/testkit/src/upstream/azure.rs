//! The face of Azure OpenAI: its paths, its credential and its errors.

use super::call::{Call, CallKind};
use super::openai::quote;
use super::script::Script;

/// A resource with deployments.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) deployments: Vec<String>,
}

/// What Azure refuses with errors of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AzureRefusal {
    /// The content filter holds the prompt back.
    ContentFilter,
    /// There is no key, or a wrong one.
    WrongKey,
    /// The deployment does not exist, or not yet.
    DeploymentNotFound,
    /// The path or the version does not exist.
    ResourceNotFound,
    /// The rate of the deployment is spent for 42 seconds.
    RateLimited,
}

impl Script {
    /// Refuses as Azure does.
    pub fn azure(refusal: AzureRefusal) -> Self {
        let plain = |status, code: &str, message: &str| {
            let body = format!(
                r#"{{"error":{{"code":{},"message":{}}}}}"#,
                quote(code),
                quote(message)
            );
            Self::body(status, "application/json", body)
        };
        let script = match refusal {
            AzureRefusal::ContentFilter => Self::body(
                400,
                "application/json",
                r#"{"error":{"message":"The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify your prompt and retry.","type":null,"param":"prompt","code":"content_filter","status":400,"innererror":{"code":"ResponsibleAIPolicyViolation","content_filter_result":{"hate":{"filtered":true,"severity":"high"}}}}}"#,
            ),
            AzureRefusal::WrongKey => plain(
                401,
                "401",
                "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an active subscription.",
            ),
            AzureRefusal::DeploymentNotFound => plain(
                404,
                "DeploymentNotFound",
                "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, please wait a moment and try again.",
            ),
            AzureRefusal::ResourceNotFound => plain(404, "404", "Resource not found"),
            AzureRefusal::RateLimited => plain(
                429,
                "429",
                "Requests to the ChatCompletions_Create Operation have exceeded the token rate limit of your current OpenAI S0 pricing tier. Please retry after 42 seconds.",
            )
            .retry_after(42)
            .header("retry-after-ms", "42000")
            .header("x-ratelimit-remaining-tokens", "-27689")
            .header("x-ratelimit-reset-tokens", "42"),
        };
        script
            .header("apim-request-id", "00000000-0000-0000-0000-00000000a2e1")
            .header("x-ms-region", "Sweden Central")
    }
}

impl Resource {
    /// Returns what a call is refused with that Azure would not take.
    pub(super) fn refusal(&self, call: &Call) -> Option<Script> {
        let headers = &call.head.headers;
        if headers.get("api-key").is_none() || headers.get("authorization").is_some() {
            return Some(Script::azure(AzureRefusal::WrongKey));
        }
        let (path, query) = call.target.split_once('?').unwrap_or((&call.target, ""));
        let version = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("api-version="));
        let lists_models = matches!(call.kind, CallKind::Models | CallKind::Model(_));
        let deployment = if let Some(rest) = path.strip_prefix("/openai/v1/") {
            let is_known = version.is_none_or(|version| matches!(version, "preview" | "latest"));
            (is_known && !rest.is_empty()).then(|| call.model.as_deref().unwrap_or_default())
        } else {
            let is_dated = version.is_some_and(|version| version.starts_with("20"));
            let rest = path.strip_prefix("/openai/").filter(|_| is_dated);
            rest.and_then(|rest| match rest.strip_prefix("deployments/") {
                Some(rest) => rest.split_once('/').map(|(deployment, _)| deployment),
                None => lists_models.then_some(""),
            })
        };
        match deployment {
            None => Some(Script::azure(AzureRefusal::ResourceNotFound)),
            Some(name) if lists_models || self.deployments.iter().any(|known| known == name) => {
                None
            }
            Some(_) => Some(Script::azure(AzureRefusal::DeploymentNotFound)),
        }
    }
}
