//! The members of a body: each is asked for by name, those that nobody asks for are refused.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};
use sluice_domain::time::{UnixMillis, parse_rfc3339};
use sluice_domain::usage::MAX_AMOUNT;

use super::problem::{Code, FieldError, Problem};

/// Most models in an allow-list.
const MAX_MODELS: usize = 1_000;

/// The members of a JSON object that nobody has asked for yet, and what is wrong with the others.
#[derive(Debug)]
pub(crate) struct Fields {
    left: Map<String, Value>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// 400 when it is no JSON object. The answer repeats nothing of it: it may hold a password.
    pub(crate) fn read(body: &[u8]) -> Result<Self, Problem> {
        let left = serde_json::from_slice(body).map_err(|error| {
            Problem::new(
                Code::InvalidRequest,
                format!(
                    "The body must be a JSON object; it ends to be one in line {}, column {}.",
                    error.line(),
                    error.column()
                ),
            )
        })?;
        Ok(Self {
            left,
            errors: Vec::new(),
        })
    }

    /// Says what is wrong with a member.
    pub(crate) fn refuse(&mut self, name: &str, detail: impl Display) {
        let name = name.replace('~', "~0").replace('/', "~1");
        self.errors.push(FieldError {
            pointer: format!("/{name}"),
            detail: detail.to_string(),
        });
    }

    /// Takes a text that must be there.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        match self.left.remove(name) {
            Some(Value::String(text)) => return Some(text),
            Some(_) => self.refuse(name, "must be a string"),
            None => self.refuse(name, "is missing"),
        }
        None
    }

    /// Takes a text that must be there and be read as something.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        self.parse(name, &text)
    }

    /// As [`parsed`](Self::parsed), where it may be absent.
    pub(crate) fn parsed_or_absent<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        if !self.left.contains_key(name) {
            return None;
        }
        self.parsed(name)
    }

    fn parse<T: FromStr<Err: Display>>(&mut self, name: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(name, error);
                None
            }
        }
    }

    /// Takes a truth that may be absent.
    pub(crate) fn truth(&mut self, name: &str) -> Option<bool> {
        match self.left.remove(name)? {
            Value::Bool(truth) => return Some(truth),
            _other => self.refuse(name, "must be true or false"),
        }
        None
    }

    /// Takes a number of tokens. `None` is absent, `Some(None)` is null: without a cap.
    #[expect(clippy::option_option, reason = "a merge patch tells absent from null")]
    pub(crate) fn tokens(&mut self, name: &str) -> Option<Option<i64>> {
        let value = self.left.remove(name)?;
        if value.is_null() {
            return Some(None);
        }
        let tokens = value.as_i64().filter(|n| (0..=MAX_AMOUNT).contains(n));
        if tokens.is_none() {
            let detail = format!("must be a whole number from 0 to {MAX_AMOUNT}, or null");
            self.refuse(name, detail);
            return None;
        }
        Some(tokens)
    }

    /// Takes an instant. `None` is absent, `Some(None)` is null: never.
    #[expect(clippy::option_option, reason = "a merge patch tells absent from null")]
    pub(crate) fn instant(&mut self, name: &str) -> Option<Option<UnixMillis>> {
        let value = self.left.remove(name)?;
        if value.is_null() {
            return Some(None);
        }
        let instant = value.as_str().and_then(|text| parse_rfc3339(text).ok());
        if instant.is_some() {
            return Some(instant);
        }
        self.refuse(name, "must be a time such as 2026-12-31T23:59:59Z, or null");
        None
    }

    /// Takes a list of models. `None` is absent, `Some(None)` is null: every model.
    #[expect(clippy::option_option, reason = "a merge patch tells absent from null")]
    pub(crate) fn models(&mut self, name: &str) -> Option<Option<Vec<String>>> {
        let value = self.left.remove(name)?;
        if value.is_null() {
            return Some(None);
        }
        let is_model = |model: &&str| (1..=256).contains(&model.len()) && !model.contains('\0');
        let models = value.as_array().filter(|list| list.len() <= MAX_MODELS);
        let models = models.and_then(|list| {
            let read = list.iter().map(|model| {
                let model = model.as_str().filter(is_model)?;
                Some(model.to_owned())
            });
            read.collect::<Option<Vec<String>>>()
        });
        if models.is_none() {
            let detail = format!(
                "must be a list of at most {MAX_MODELS} names of models of 1 to 256 bytes, or null"
            );
            self.refuse(name, detail);
            return None;
        }
        Some(models)
    }

    /// Ends the reading; hands out what was read when nothing was wrong and nothing is left.
    ///
    /// # Errors
    /// 400 that names every member that is wrong or unknown.
    pub(crate) fn finish<T>(mut self, read: Option<T>) -> Result<T, Problem> {
        let unknown: Vec<String> = self.left.keys().take(10).cloned().collect();
        for name in unknown {
            let short: String = name.chars().take(100).collect();
            self.refuse(&short, "is no member of this body");
        }
        match read {
            Some(read) if self.errors.is_empty() => Ok(read),
            _ => Err(Problem::of_fields(self.errors)),
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_domain::tenant::Name;

    use super::*;

    fn pointers(problem: &Problem) -> String {
        format!("{problem:?}")
    }

    #[test]
    fn what_nobody_asks_for_is_refused() {
        let mut fields = Fields::read(br#"{"name": "acme", "role/x": "owner"}"#).unwrap();
        let name = fields.parsed::<Name>("name");
        assert!(name.is_some());
        let problem = fields.finish(name).unwrap_err();
        assert!(pointers(&problem).contains("/role~1x"), "{problem:?}");
    }

    #[test]
    fn every_wrong_member_is_named_and_none_is_repeated() {
        let body = br#"{"name": 5, "quota": -1, "at": "top-secret", "on": "yes", "models": [""]}"#;
        let mut fields = Fields::read(body).unwrap();
        let name = fields.parsed::<Name>("name");
        assert_eq!(fields.tokens("quota"), None);
        assert_eq!(fields.instant("at"), None);
        assert_eq!(fields.truth("on"), None);
        assert_eq!(fields.models("models"), None);
        assert_eq!(fields.text("missing"), None);
        let text = pointers(&fields.finish(name).unwrap_err());
        for pointer in ["/name", "/quota", "/at", "/on", "/models", "/missing"] {
            assert!(text.contains(&format!("\"{pointer}\"")), "{text}");
        }
        assert!(!text.contains("top-secret"), "{text}");
    }

    #[test]
    fn null_is_not_absent() {
        let mut fields = Fields::read(br#"{"a": null, "b": null, "c": null}"#).unwrap();
        assert_eq!(fields.tokens("a"), Some(None));
        assert_eq!(fields.instant("b"), Some(None));
        assert_eq!(fields.models("c"), Some(None));
        assert_eq!(fields.tokens("d"), None);
        assert!(fields.finish(Some(())).is_ok());
    }

    #[test]
    fn a_body_that_is_no_object_is_refused_without_being_shown() {
        for body in [
            &b"[]"[..],
            b"",
            b"{\"password\": top-secret}",
            b"\"top-secret\"",
        ] {
            let problem = Fields::read(body).unwrap_err();
            assert!(
                !format!("{problem:?}").contains("top-secret"),
                "{problem:?}"
            );
        }
    }
}
