//! Which provider a quickstart is to relay to, and whether it answers.

use std::path::Path;

use anyhow::Context as _;
use secrecy::SecretString;
use sluice_domain::id::UpstreamId;
use sluice_domain::route::check_route_model;
use sluice_domain::tenant::Name;
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::{BaseUrl, ProviderKind, Upstream};
use sluice_upstream_pool::{ProbeError, ProbeReport};

use super::QuickstartArgs;
use crate::cli::input::{secret_from_file, secret_from_variable};
use crate::cli::upstream::{OPENAI_URL, prober};
use crate::config::Environment;
use crate::ids::new_uuid;

/// Variable that the SDKs of OpenAI read as well.
const OPENAI_KEY_VARIABLE: &str = "OPENAI_API_KEY";
const OPENAI_HOST: &str = "api.openai.com";

/// Why a provider is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// A flag asks for it.
    Asked,
    /// `OPENAI_API_KEY` happens to be set.
    KeyInEnvironment,
    /// Nothing else is there.
    Nothing,
}

/// The provider that the quickstart is to relay to.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) kind: ProviderKind,
    pub(super) base_url: Option<BaseUrl>,
    pub(super) key: Option<SecretString>,
    pub(super) reason: Reason,
    /// Models that are routed; empty is every model.
    pub(super) models: Vec<String>,
    /// What the provider lists, once it was asked.
    listed: Option<Vec<String>>,
}

impl Wanted {
    /// Decides from flags and environment.
    pub(super) fn choose(args: &QuickstartArgs, environment: &Environment) -> anyhow::Result<Self> {
        for model in &args.models {
            check_route_model(model).with_context(|| format!("--model {model}"))?;
        }
        let asked_key = match (&args.upstream_key_env, &args.upstream_key_file) {
            (Some(name), _) => Some(secret_from_variable(environment, name)?),
            (None, Some(file)) => Some(secret_from_file(Path::new(file))?),
            (None, None) => None,
        };
        let is_asked = args.upstream.is_some() || asked_key.is_some();
        let has_openai_key = environment.get(OPENAI_KEY_VARIABLE).is_some();
        if !is_asked && !has_openai_key {
            return Ok(Self {
                kind: ProviderKind::Demo,
                base_url: None,
                key: None,
                reason: Reason::Nothing,
                models: args.models.clone(),
                listed: None,
            });
        }
        let url: BaseUrl = args
            .upstream
            .as_deref()
            .unwrap_or(OPENAI_URL)
            .parse()
            .context("--upstream")?;
        let is_openai = url.authority() == OPENAI_HOST && url.is_https();
        // The key of OpenAI is for OpenAI alone; another server never sees it unasked.
        let key = match asked_key {
            None if is_openai => Some(secret_from_variable(environment, OPENAI_KEY_VARIABLE)?),
            asked => asked,
        };
        Ok(Self {
            kind: if is_openai {
                ProviderKind::OpenAi
            } else {
                ProviderKind::Compatible
            },
            base_url: Some(url),
            key,
            reason: if is_asked {
                Reason::Asked
            } else {
                Reason::KeyInEnvironment
            },
            models: args.models.clone(),
            listed: None,
        })
    }

    /// Returns the models that the provider listed; empty when it was not asked.
    pub(super) fn listed(&self) -> &[String] {
        self.listed.as_deref().unwrap_or_default()
    }

    /// Asks the provider for its models, once, so that a wrong URL or key is known before anything
    /// is made.
    pub(super) async fn probe(&mut self) -> anyhow::Result<()> {
        if self.listed.is_some() || self.kind == ProviderKind::Demo {
            return Ok(());
        }
        let upstream = self.upstream(self.name()?, UnixMillis::default());
        let answer = prober().probe(&upstream, self.key.as_ref()).await;
        match answer {
            Ok(ProbeReport { models, .. }) => self.listed = Some(models),
            // Some servers have no list of models; who names the models knows what is there.
            Err(ProbeError::NotFound { .. }) if !self.models.is_empty() => {
                self.listed = Some(Vec::new());
            }
            Err(error) => return Err(self.explain(error)),
        }
        Ok(())
    }

    /// Says what to do about a provider that does not answer as it should.
    fn explain(&self, error: ProbeError) -> anyhow::Error {
        let hint = match (self.reason, &error) {
            (Reason::KeyInEnvironment, _) => Some(
                "the upstream is used because OPENAI_API_KEY is set; unset it to begin with the \
                 built-in demonstration",
            ),
            (_, ProbeError::KeyRefused { .. }) if self.key.is_none() => {
                Some("give the key with --upstream-key-env or --upstream-key-file")
            }
            (_, ProbeError::NotFound { .. }) => {
                Some("a server without such a list works when --model names what it has")
            }
            _ => None,
        };
        let error = anyhow::Error::new(error);
        match hint {
            Some(hint) => anyhow::anyhow!("{error:#} ({hint})"),
            None => error,
        }
    }

    /// Returns a model for the examples, where one is known.
    pub(super) fn example_model(&self) -> Option<String> {
        let listed = self.listed();
        self.models
            .iter()
            .find(|model| !model.ends_with('*'))
            .cloned()
            .or_else(|| likely_chat_model(listed))
    }

    /// Makes the upstream. One whose URL was given may be at any address, also on this machine.
    pub(super) fn upstream(&self, name: Name, now: UnixMillis) -> Upstream {
        Upstream {
            allow_private: self.kind == ProviderKind::Compatible,
            ..Upstream::new(
                UpstreamId::from_uuid(new_uuid()),
                name,
                self.kind,
                self.base_url.clone(),
                now,
            )
        }
    }
}

/// Chooses from a provider's list one that talks.
pub(super) fn likely_chat_model(listed: &[String]) -> Option<String> {
    const PREFERRED: &str = "gpt-4o-mini";
    const NO_CHAT: [&str; 13] = [
        "embed",
        "whisper",
        "tts",
        "dall-e",
        "image",
        "moderation",
        "audio",
        "realtime",
        "transcribe",
        "sora",
        "babbage",
        "davinci",
        "instruct",
    ];
    listed
        .iter()
        .find(|model| *model == PREFERRED)
        .or_else(|| {
            let talks = |model: &&String| !NO_CHAT.iter().any(|word| model.contains(word));
            listed.iter().find(talks)
        })
        .or_else(|| listed.first())
        .cloned()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn args() -> QuickstartArgs {
        QuickstartArgs {
            listen: None,
            upstream: None,
            upstream_key_env: None,
            upstream_key_file: None,
            models: Vec::new(),
        }
    }

    fn choose(args: &QuickstartArgs, variables: &[(&str, &str)]) -> anyhow::Result<Wanted> {
        Wanted::choose(args, &variables.iter().copied().collect())
    }

    #[test]
    fn without_anything_it_is_the_demonstration() {
        let wanted = choose(&args(), &[("OPENAI_API_KEY", "")]).unwrap();
        assert_eq!(
            (wanted.kind, wanted.reason),
            (ProviderKind::Demo, Reason::Nothing)
        );
    }

    #[test]
    fn with_a_key_of_openai_it_is_openai() {
        let wanted = choose(&args(), &[("OPENAI_API_KEY", "sk-test")]).unwrap();
        assert_eq!(
            (wanted.kind, wanted.reason),
            (ProviderKind::OpenAi, Reason::KeyInEnvironment)
        );
        assert_eq!(wanted.base_url.unwrap().to_string(), OPENAI_URL);
        assert_eq!(wanted.key.unwrap().expose_secret(), "sk-test");
    }

    #[test]
    fn the_key_of_openai_is_never_sent_to_another_server() {
        for url in [
            "http://127.0.0.1:9100/v1",
            "https://api.openai.com.example/v1",
            "http://api.openai.com/v1",
            "https://api.openai.com:8443/v1",
        ] {
            let args = QuickstartArgs {
                upstream: Some(url.to_owned()),
                ..args()
            };
            let wanted = choose(&args, &[("OPENAI_API_KEY", "sk-test")]).unwrap();
            assert_eq!(wanted.kind, ProviderKind::Compatible, "{url}");
            assert!(wanted.key.is_none(), "{url}");
            assert_eq!(wanted.reason, Reason::Asked);
        }
    }

    #[test]
    fn the_key_of_a_flag_goes_to_the_upstream_of_a_flag() {
        let args = QuickstartArgs {
            upstream: Some("http://127.0.0.1:9100/v1".to_owned()),
            upstream_key_env: Some("LOCAL_KEY".to_owned()),
            ..args()
        };
        let wanted = choose(&args, &[("LOCAL_KEY", "local")]).unwrap();
        assert_eq!(wanted.key.unwrap().expose_secret(), "local");
        assert_eq!(
            choose(&args, &[]).unwrap_err().to_string(),
            "the environment variable LOCAL_KEY is not set"
        );
    }

    #[test]
    fn a_wrong_url_is_named() {
        let args = QuickstartArgs {
            upstream: Some("localhost:9100".to_owned()),
            ..args()
        };
        let error = choose(&args, &[]).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("--upstream: "),
            "{error:#}"
        );
    }

    #[test]
    fn the_example_uses_a_model_that_talks() {
        let listed = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        for (names, expected) in [
            (
                &["whisper-1", "gpt-9", "gpt-4o-mini"][..],
                Some("gpt-4o-mini"),
            ),
            (&["text-embedding-3-small", "llama3"][..], Some("llama3")),
            (&["bge-embed"][..], Some("bge-embed")),
            (&[][..], None),
        ] {
            assert_eq!(likely_chat_model(&listed(names)).as_deref(), expected);
        }
    }
}
