//! Routes: from a requested model to the targets that may serve it.

use crate::id::{RouteId, TenantId, UpstreamId};
use crate::pool::{Selection, TargetUse};
use crate::tenant::EntityState;
use crate::time::UnixMillis;
use crate::words;

/// The inference endpoints that are relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// `chat/completions`.
    ChatCompletions,
    /// `completions`.
    Completions,
    /// `embeddings`.
    Embeddings,
    /// `messages` of the Anthropic API.
    Messages,
    /// `messages/count_tokens` of the Anthropic API: counts the input of a message, free of charge.
    CountTokens,
}

words!(Endpoint, "chat_completions, completions, embeddings, messages, count_tokens", {
    Endpoint::ChatCompletions => "chat_completions",
    Endpoint::Completions => "completions",
    Endpoint::Embeddings => "embeddings",
    Endpoint::Messages => "messages",
    Endpoint::CountTokens => "count_tokens",
});

/// What a client and an upstream speak; a request is relayed to upstreams that speak its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The OpenAI API.
    OpenAi,
    /// The Anthropic API.
    Anthropic,
}

impl Endpoint {
    /// Returns the path below the base URL.
    pub const fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
            Self::Messages => "/messages",
            Self::CountTokens => "/messages/count_tokens",
        }
    }

    /// Returns the protocol that it belongs to.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::ChatCompletions | Self::Completions | Self::Embeddings => Protocol::OpenAi,
            Self::Messages | Self::CountTokens => Protocol::Anthropic,
        }
    }

    /// Returns whether a model writes something, which is paid.
    pub const fn has_output(self) -> bool {
        !matches!(self, Self::Embeddings | Self::CountTokens)
    }

    /// Returns whether the endpoint can answer as a stream.
    pub const fn can_stream(self) -> bool {
        self.has_output()
    }

    /// Returns whether its use costs something.
    pub const fn is_charged(self) -> bool {
        !matches!(self, Self::CountTokens)
    }
}

/// One way to serve a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Priority level; the lowest number is tried first.
    pub tier: u32,
    /// Share of the traffic inside its tier, at least 1.
    pub weight: u32,
    /// The upstream.
    pub upstream_id: UpstreamId,
    /// The name of the model there; `None` is the requested name.
    pub upstream_model: Option<String>,
    /// Which requests it serves.
    pub serves: TargetUse,
}

impl Target {
    /// Makes one of the first tier with the smallest weight, which serves every request and keeps
    /// the name of the model.
    pub const fn new(upstream_id: UpstreamId) -> Self {
        Self {
            tier: 0,
            weight: 1,
            upstream_id,
            upstream_model: None,
            serves: TargetUse::Any,
        }
    }
}

/// A requested model and its targets.
#[derive(Debug, Clone)]
pub struct Route {
    /// Its id.
    pub id: RouteId,
    /// The tenant that alone may use it; `None` is shared by all. A tenant's own route wins.
    pub tenant_id: Option<TenantId>,
    /// The requested model, or a pattern: a name that ends in `*` matches what begins so.
    /// The longest match wins, an exact name before any pattern.
    pub model: String,
    /// Where it may be served; never empty.
    pub targets: Vec<Target>,
    /// How a target is chosen inside a tier.
    pub selection: Selection,
    /// Whether it is used.
    pub state: EntityState,
    /// When it was made.
    pub created_at: UnixMillis,
}

impl Route {
    /// Makes an active one for all tenants that chooses by weight.
    pub const fn new(
        id: RouteId,
        model: String,
        targets: Vec<Target>,
        created_at: UnixMillis,
    ) -> Self {
        Self {
            id,
            tenant_id: None,
            model,
            targets,
            selection: Selection::Weighted,
            state: EntityState::Active,
            created_at,
        }
    }
}

/// A model name cannot be routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a model name has 1 to 200 visible characters; `*` may stand at its end only")]
pub struct InvalidModelName;

/// Checks the model of a route.
///
/// # Errors
/// [`InvalidModelName`] when it is empty, too long, holds white space or control characters, or has
/// a `*` elsewhere than at its end.
pub fn check_route_model(model: &str) -> Result<(), InvalidModelName> {
    let stem = model.strip_suffix('*').unwrap_or(model);
    let is_fine = !model.is_empty()
        && model.len() <= 200
        && !stem.contains('*')
        && !model.chars().any(|c| c.is_control() || c.is_whitespace());
    if is_fine {
        Ok(())
    } else {
        Err(InvalidModelName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_at_the_end_only() {
        assert!(check_route_model("gpt-4o").is_ok());
        assert!(check_route_model("org/model:tag").is_ok());
        assert!(check_route_model("*").is_ok());
        assert!(check_route_model("g*t").is_err());
        assert!(check_route_model("").is_err());
        assert!(check_route_model("a b").is_err());
    }
}
