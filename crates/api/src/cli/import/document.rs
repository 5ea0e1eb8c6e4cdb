//! The JSON document of an import. No message repeats a value of it.

use serde_json::{Map, Value};
use sluice_domain::key::{ProxyKeySecret, import_key};
use sluice_domain::tenant::{EntityState, InvalidName, Name};
use sluice_domain::usage::MAX_AMOUNT;

/// Longest name of an unknown field that is repeated, in bytes. A longer one may be a key.
const MAX_SHOWN_FIELD: usize = 24;
const FIELDS: [&str; 4] = ["key", "user", "quota", "enabled"];

/// One entry, checked.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: ProxyKeySecret,
    pub(super) tenant: Name,
    pub(super) user: Name,
    pub(super) quota_tokens: Option<i64>,
    pub(super) state: EntityState,
}

/// Reads and checks the document.
///
/// # Errors
/// Every problem, with the JSON path of its place.
pub(super) fn read(bytes: &[u8], default_tenant: &Name) -> Result<Vec<Entry>, Vec<String>> {
    let document: Value =
        serde_json::from_slice(bytes).map_err(|error| vec![format!("not JSON: {error}")])?;
    let Value::Object(mut fields) = document else {
        return Err(vec!["must be an object `{\"keys\": […]}`".to_owned()]);
    };
    let keys = fields.remove("keys");
    let mut problems: Vec<_> = fields
        .keys()
        .map(|field| unknown(field, &["keys"]))
        .collect();
    let entries = match keys {
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            problems.push("keys: must be a list of objects".to_owned());
            Vec::new()
        }
        None => {
            problems.push("keys: is missing".to_owned());
            Vec::new()
        }
    };
    let mut checked: Vec<Entry> = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        match read_entry(entry, default_tenant) {
            Ok(entry) => checked.push(entry),
            Err(wrong) => problems.extend(wrong.into_iter().map(|p| format!("keys[{index}]{p}"))),
        }
    }
    if problems.is_empty() {
        problems = repeated(&checked);
    }
    if problems.is_empty() {
        Ok(checked)
    } else {
        Err(problems)
    }
}

/// Finds keys that stand there twice, which would leave open which quota counts.
fn repeated(entries: &[Entry]) -> Vec<String> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    let key_of = |index: &usize| entries.get(*index).map_or("", |entry| entry.key.expose());
    order.sort_by(|a, b| key_of(a).cmp(key_of(b)).then(a.cmp(b)));
    order
        .windows(2)
        .filter_map(|pair| match pair {
            [first, second] if key_of(first) == key_of(second) => Some(format!(
                "keys[{second}].key: is the same key as keys[{first}].key"
            )),
            _ => None,
        })
        .collect()
}

/// Reads one entry; the errors begin with the path inside it.
fn read_entry(entry: Value, default_tenant: &Name) -> Result<Entry, Vec<String>> {
    let Value::Object(fields) = entry else {
        return Err(vec![": must be an object with `key` and `user`".to_owned()]);
    };
    let mut problems: Vec<_> = fields
        .keys()
        .filter(|field| !FIELDS.contains(&field.as_str()))
        .map(|field| format!(": {}", unknown(field, &FIELDS)))
        .collect();
    let mut note = |field: &str, what: String| problems.push(format!(".{field}: {what}"));
    let key = read_key(&fields).map_err(|what| note("key", what)).ok();
    let user = read_user(&fields, default_tenant)
        .map_err(|what| note("user", what))
        .ok();
    let quota_tokens = read_quota(&fields).map_err(|what| note("quota", what)).ok();
    let state = read_state(&fields)
        .map_err(|what| note("enabled", what))
        .ok();
    match (key, user, quota_tokens, state) {
        (Some(key), Some((tenant, user)), Some(quota_tokens), Some(state))
            if problems.is_empty() =>
        {
            Ok(Entry {
                key,
                tenant,
                user,
                quota_tokens,
                state,
            })
        }
        _ => Err(problems),
    }
}

fn read_key(fields: &Map<String, Value>) -> Result<ProxyKeySecret, String> {
    import_key(text(fields, "key")?).map_err(|error| error.to_string())
}

/// Reads `user` or `tenant/user`.
fn read_user(fields: &Map<String, Value>, default_tenant: &Name) -> Result<(Name, Name), String> {
    let text = text(fields, "user")?;
    let name = |text: &str| text.parse().map_err(|error: InvalidName| error.to_string());
    match text.split_once('/') {
        Some((tenant, user)) => Ok((name(tenant)?, name(user)?)),
        None => Ok((default_tenant.clone(), name(text)?)),
    }
}

fn read_quota(fields: &Map<String, Value>) -> Result<Option<i64>, String> {
    match fields.get("quota") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value
            .as_i64()
            .filter(|tokens| (0..=MAX_AMOUNT).contains(tokens))
            .map(Some)
            .ok_or_else(|| {
                format!("must be a whole number of tokens from 0 to {MAX_AMOUNT}, or null")
            }),
    }
}

fn read_state(fields: &Map<String, Value>) -> Result<EntityState, String> {
    match fields.get("enabled") {
        None | Some(Value::Bool(true)) => Ok(EntityState::Active),
        Some(Value::Bool(false)) => Ok(EntityState::Disabled),
        Some(_) => Err("must be true or false".to_owned()),
    }
}

fn text<'a>(fields: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    match fields.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err("must be a text".to_owned()),
        None => Err("is missing".to_owned()),
    }
}

fn unknown(field: &str, known: &[&str]) -> String {
    let known: Vec<_> = known.iter().map(|field| format!("`{field}`")).collect();
    let known = known.join(", ");
    let is_word = field.len() <= MAX_SHOWN_FIELD
        && field.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
    if is_word {
        format!("`{field}` is not a field; known: {known}")
    } else {
        format!("a field is not known; known: {known}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(json: &str) -> Result<Vec<Entry>, Vec<String>> {
        read(json.as_bytes(), &"default".parse().unwrap())
    }

    #[track_caller]
    fn problems(json: &str) -> Vec<String> {
        entries(json).unwrap_err()
    }

    #[test]
    fn an_entry_needs_only_key_and_user() {
        let entries = entries(
            r#"{"keys": [
                {"key": "foreign-key-1", "user": "ann"},
                {"key": "foreign-key-2", "user": "acme/bob", "quota": 1000, "enabled": false},
                {"key": "foreign-key-3", "user": "ann", "quota": null, "enabled": true}
            ]}"#,
        )
        .unwrap();
        let shown: Vec<_> = entries
            .iter()
            .map(|e| {
                let names = (e.tenant.as_str(), e.user.as_str());
                (e.key.expose(), names, e.quota_tokens, e.state)
            })
            .collect();
        assert_eq!(
            shown,
            [
                (
                    "foreign-key-1",
                    ("default", "ann"),
                    None,
                    EntityState::Active
                ),
                (
                    "foreign-key-2",
                    ("acme", "bob"),
                    Some(1000),
                    EntityState::Disabled
                ),
                (
                    "foreign-key-3",
                    ("default", "ann"),
                    None,
                    EntityState::Active
                ),
            ]
        );
    }

    #[test]
    fn every_problem_is_named_with_its_path() {
        assert_eq!(
            problems(
                r#"{"keys": [
                    {"key": "foreign-key-1", "user": "ann", "quota": -1},
                    {"key": "short", "user": "", "enabled": "yes"},
                    {"user": "ann", "qouta": 5},
                    {"key": 12345678, "user": "ann", "quota": 1.5},
                    "foreign-key-1"
                ]}"#
            ),
            [
                "keys[0].quota: must be a whole number of tokens from 0 to 4611686018427387904, or \
                 null",
                "keys[1].key: a key has 8 to 512 visible ASCII characters",
                "keys[1].user: a name has 1 to 100 characters and no control characters",
                "keys[1].enabled: must be true or false",
                "keys[2]: `qouta` is not a field; known: `key`, `user`, `quota`, `enabled`",
                "keys[2].key: is missing",
                "keys[3].key: must be a text",
                "keys[3].quota: must be a whole number of tokens from 0 to 4611686018427387904, or \
                 null",
                "keys[4]: must be an object with `key` and `user`",
            ]
        );
    }

    #[test]
    fn a_document_of_another_shape_is_refused() {
        for (json, expected) in [
            ("[]", "must be an object `{\"keys\": […]}`"),
            ("{}", "keys: is missing"),
            ("{\"keys\": {}}", "keys: must be a list of objects"),
            (
                "{\"keys\": [], \"more\": 1}",
                "`more` is not a field; known: `keys`",
            ),
        ] {
            assert_eq!(problems(json), [expected], "{json}");
        }
        assert!(problems("{\"keys\": [}")[0].starts_with("not JSON: "));
    }

    #[test]
    fn a_key_that_stands_there_twice_is_refused() {
        assert_eq!(
            problems(
                r#"{"keys": [
                    {"key": "foreign-key-1", "user": "ann", "quota": 1},
                    {"key": "foreign-key-2", "user": "ann"},
                    {"key": "foreign-key-1", "user": "ann", "quota": 2}
                ]}"#
            ),
            ["keys[2].key: is the same key as keys[0].key"]
        );
    }

    #[test]
    fn a_key_in_a_wrong_place_is_never_repeated() {
        let key = "sk-live-0123456789";
        for json in [
            format!(r#""{key}""#),
            format!(r#"{{"{key}": 1}}"#),
            format!(r#"{{"keys": "{key}"}}"#),
            format!(r#"{{"keys": ["{key}"]}}"#),
            format!(r#"{{"keys": [{{"{key}": "ann"}}]}}"#),
            format!(r#"{{"keys": [{{"key": ["{key}"], "user": "ann"}}]}}"#),
            format!(r#"{{"keys": [{{"key": "{key} ", "user": "ann"}}]}}"#),
            format!(r#"{{"keys": [{{"key": "ann-ann-ann", "user": "ann", "quota": "{key}"}}]}}"#),
            format!(r#"{{"keys": [{{"key": "ann-ann-ann", "user": "ann", "enabled": "{key}"}}]}}"#),
            format!(r#"{{"keys": [{{"key": "{key}" "user"}}]}}"#),
        ] {
            let problems = problems(&json);
            assert!(!problems.is_empty());
            assert!(!problems.concat().contains("0123456789"), "{problems:?}");
        }
    }
}
