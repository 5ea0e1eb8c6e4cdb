//! What a quickstart says when it is ready.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use sluice_domain::upstream::ProviderKind;

use super::account::Account;
use super::routing::Provider;

/// Stands in the examples where the key cannot be shown again.
const KEY_PLACEHOLDER: &str = "YOUR_KEY";
/// Stands in the examples where no model is known.
const MODEL_PLACEHOLDER: &str = "MODEL";

/// What a quickstart has set up.
pub(super) struct Banner {
    provider: Provider,
    account: Account,
    data: PathBuf,
}

impl Banner {
    pub(super) fn new(provider: Provider, account: Account, data: &Path) -> Self {
        Self {
            provider,
            account,
            data: std::path::absolute(data).unwrap_or_else(|_no_working_folder| data.to_owned()),
        }
    }

    /// Returns the key, where it is new.
    pub(super) fn key(&self) -> Option<&str> {
        match &self.account {
            Account::New(key) => Some(key.expose()),
            Account::Kept { .. } => None,
        }
    }

    /// Returns the text for a person.
    pub(super) fn text(&self, address: SocketAddr) -> String {
        let mut out = String::new();
        if self.write(&mut out, &base_url(address)).is_err() {
            // Writing to a `String` has no error to report.
        }
        out
    }

    fn write(&self, out: &mut String, base_url: &str) -> std::fmt::Result {
        writeln!(
            out,
            "\nSluice is ready: an OpenAI-compatible API at {base_url}\n"
        )?;
        match &self.account {
            Account::New(key) => {
                writeln!(out, "  key       {}", key.expose())?;
                writeln!(out, "            Keep it: it is shown this once.")?;
            }
            Account::Kept { hint, command } => {
                match hint {
                    Some(hint) => writeln!(
                        out,
                        "  key       {hint} (shown in full only when it was made)"
                    )?,
                    None => writeln!(out, "  key       none that is usable")?,
                }
                writeln!(
                    out,
                    "            Another one: {command}{}",
                    self.data_flag()
                )?;
            }
        }
        writeln!(out, "  upstream  {}", self.upstream_text())?;
        writeln!(out, "  data      {}", self.data.display())?;
        for change in &self.provider.changes {
            writeln!(out, "\n  {change}")?;
        }
        self.write_examples(out, base_url)?;
        if self.provider.upstream.kind == ProviderKind::Demo {
            writeln!(
                out,
                "\nWith Claude Code and the Anthropic SDKs:\n\n\
                 \x20 export ANTHROPIC_BASE_URL={1} ANTHROPIC_AUTH_TOKEN={2}\n\n\
                 This is a demonstration: no model is called, and every answer says so.\n\
                 For a real one: OPENAI_API_KEY=… sluice quickstart{0}\n\
                 \x20           or: sluice quickstart --upstream http://127.0.0.1:11434/v1{0}",
                self.data_flag(),
                base_url.trim_end_matches("/v1"),
                self.key().unwrap_or(KEY_PLACEHOLDER),
            )?;
        }
        writeln!(
            out,
            "\nCtrl-C stops it; starting it again keeps everything."
        )
    }

    fn write_examples(&self, out: &mut String, base_url: &str) -> std::fmt::Result {
        let key = self.key().unwrap_or(KEY_PLACEHOLDER);
        let model = self
            .provider
            .model
            .as_deref()
            .filter(|model| is_plain(model))
            .unwrap_or(MODEL_PLACEHOLDER);
        let messages = r#""messages": [{"role": "user", "content": "Hello!"}]"#;
        for (title, flag, stream) in [
            ("Try it", "", ""),
            ("As a stream", " -N", r#", "stream": true"#),
        ] {
            writeln!(
                out,
                "\n{title}:\n\n\
                 \x20 curl{flag} {base_url}/chat/completions \\\n\
                 \x20   -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n\
                 \x20   -d '{{\"model\": \"{model}\", {messages}{stream}}}'"
            )?;
        }
        writeln!(
            out,
            "\nWith the OpenAI SDK for Python:\n\n\
             \x20 from openai import OpenAI\n\n\
             \x20 client = OpenAI(base_url=\"{base_url}\", api_key=\"{key}\")\n\
             \x20 answer = client.chat.completions.create(\n\
             \x20     model=\"{model}\", {}\n\
             \x20 )\n\
             \x20 print(answer.choices[0].message.content)",
            messages.replacen("\"messages\": ", "messages=", 1)
        )
    }

    fn upstream_text(&self) -> String {
        let upstream = &self.provider.upstream;
        match &upstream.base_url {
            Some(url) => format!("{} at {url}", upstream.name),
            None => format!("{}, built in", upstream.name),
        }
    }

    /// Returns the flag that other commands need to find this folder.
    fn data_flag(&self) -> String {
        let is_default = std::path::absolute("sluice-data").is_ok_and(|path| path == self.data);
        if is_default {
            String::new()
        } else {
            format!(" --data {}", self.data.display())
        }
    }
}

/// Returns the URL that a client on this machine uses.
fn base_url(mut address: SocketAddr) -> String {
    // "Any address" is nowhere to connect to.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{address}/v1")
}

/// Returns whether a model may stand in a command for a shell. The list comes from a provider.
fn is_plain(model: &str) -> bool {
    model
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b))
}

#[cfg(test)]
mod tests {
    use sluice_domain::id::UpstreamId;
    use sluice_domain::key::ProxyKeySecret;
    use sluice_domain::time::UnixMillis;
    use sluice_domain::upstream::Upstream;
    use uuid::Uuid;

    use super::*;

    fn banner(kind: ProviderKind, model: &str, account: Account) -> Banner {
        let upstream = Upstream::new(
            UpstreamId::from_uuid(Uuid::nil()),
            "some".parse().unwrap(),
            kind,
            None,
            UnixMillis(0),
        );
        let provider = Provider {
            upstream,
            model: Some(model.to_owned()),
            changes: Vec::new(),
        };
        Banner::new(provider, account, Path::new("/srv/data"))
    }

    fn text(banner: &Banner) -> String {
        banner.text("0.0.0.0:8000".parse().unwrap())
    }

    #[test]
    fn a_new_key_stands_in_every_example() {
        let key = ProxyKeySecret::generate([1; 8], [2; 32]);
        let banner = banner(ProviderKind::Demo, "demo", Account::New(key.clone()));
        let text = text(&banner);
        assert_eq!(text.matches(key.expose()).count(), 5);
        assert!(text.contains("http://127.0.0.1:8000/v1/chat/completions"));
        assert!(text.contains("This is a demonstration"));
        assert!(text.contains("ANTHROPIC_BASE_URL=http://127.0.0.1:8000 ANTHROPIC_AUTH_TOKEN=sk-"));
        assert!(text.contains(r#"-d '{"model": "demo", "messages": [{"role": "user", "content": "Hello!"}], "stream": true}'"#));
    }

    #[test]
    fn a_key_that_was_there_is_a_hint_and_a_command() {
        let account = Account::Kept {
            hint: Some("sk-sluice-abc…wxyz".to_owned()),
            command: "sluice key issue".to_owned(),
        };
        let text = text(&banner(ProviderKind::OpenAi, "gpt-4o", account));
        assert!(text.contains("sk-sluice-abc…wxyz (shown in full only when it was made)"));
        assert!(text.contains("Another one: sluice key issue --data /srv/data"));
        assert!(text.contains("Bearer YOUR_KEY"));
        assert!(!text.contains("demonstration"));
    }

    #[test]
    fn a_model_that_a_shell_would_run_does_not_stand_in_a_command() {
        let account = Account::Kept {
            hint: None,
            command: String::new(),
        };
        let text = text(&banner(ProviderKind::OpenAi, "x'; rm -rf ~; '", account));
        assert!(!text.contains("rm -rf"));
        assert!(text.contains(r#""model": "MODEL""#));
    }
}
