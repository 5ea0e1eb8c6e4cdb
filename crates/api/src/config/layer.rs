//! The layers of a configuration: file, environment, flags; merged into one value per setting.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::kind::Raw;
use super::problem::{Place, Problem};
use super::text::Setting;
use super::{Environment, Reader, Sources};

/// What the variables of this product begin with.
const PREFIX: &str = "SLUICE_";
/// Names the file.
const FILE_VARIABLE: &str = "SLUICE_CONFIG";
/// Names the file where [`FILE_VARIABLE`] is absent.
const FALLBACK_FILE_VARIABLE: &str = "CONFIG_FILE";
/// Largest configuration or secret file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What helps when there is nothing to suggest.
const SEE_REFERENCE: &str = "`sluice config reference` lists what there is";

/// A value and where it was given.
#[derive(Debug)]
pub(super) struct Sourced {
    pub(super) raw: Raw,
    pub(super) place: Place,
}

/// A value, or the file that holds it. Files are read last, so that one that does not count is
/// never opened.
enum Given {
    Value(Sourced),
    InFile { path: PathBuf, place: Place },
}

impl Given {
    fn place(&self) -> &Place {
        match self {
            Self::Value(sourced) => &sourced.place,
            Self::InFile { place, .. } => place,
        }
    }
}

/// The layers as they are added, lowest first.
pub(super) struct Layers<'a> {
    table: &'a [Setting],
    given: BTreeMap<&'static str, Given>,
    /// Settings of the layer that is being added, for finding contradictions inside it.
    in_layer: BTreeMap<&'static str, Place>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

/// Returns the environment variable of a setting.
pub(super) fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_ascii_uppercase())
}

impl<'a> Layers<'a> {
    pub(super) fn new(table: &'a [Setting]) -> Self {
        Self {
            table,
            given: BTreeMap::new(),
            in_layer: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds the file of `--config`, `SLUICE_CONFIG` or `CONFIG_FILE`, when one is named.
    pub(super) fn add_file(&mut self, sources: &Sources) {
        let from_environment = |name: &str| sources.environment.get(name).map(PathBuf::from);
        let Some(path) = sources
            .file
            .clone()
            .or_else(|| from_environment(FILE_VARIABLE))
            .or_else(|| from_environment(FALLBACK_FILE_VARIABLE))
        else {
            return;
        };
        self.in_layer.clear();
        let text = match read_small_file(&path) {
            Ok(text) => text,
            Err(what) => {
                self.problem(Place::File { path, line: None }, what);
                return;
            }
        };
        let file = TomlFile {
            path: &path,
            text: &text,
        };
        let (root, errors) = DeTable::parse_recoverable(&text);
        if !errors.is_empty() {
            for error in errors {
                let place = file.place(error.span().map_or(0, |span| span.start));
                self.problem(place, format!("is not TOML: {}", error.message()));
            }
            // What was parsed around an error is a guess, and complaints about it would mislead.
            return;
        }
        self.add_table(&file, "", root.get_ref());
        if !self.in_layer.is_empty() && self.holds_secret_in_clear() && is_open_to_others(&path) {
            self.warnings.push(Problem::new(
                Place::File { path, line: None },
                "holds a secret and can be read by others; `chmod 600` it".to_owned(),
            ));
        }
    }

    fn add_table(&mut self, file: &TomlFile<'_>, section: &str, entries: &DeTable<'_>) {
        // The table is sorted by key; people read a file from its top.
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let place = file.place(key.span().start);
            let path = if section.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{section}.{}", key.get_ref())
            };
            let is_section = section.is_empty() && self.table.iter().any(|s| s.section == path);
            match value.get_ref() {
                DeValue::Table(inner) if is_section => self.add_table(file, &path, inner),
                _ if is_section => {
                    self.problem(
                        place,
                        format!("`{path}` is a section: write `[{path}]` and its settings below"),
                    );
                }
                DeValue::Table(_) if section.is_empty() => {
                    let what = match self.nearest_section(&path) {
                        Some(nearest) => {
                            format!("`[{path}]` is not a section; did you mean `[{nearest}]`?")
                        }
                        None => format!("`[{path}]` is not a section; {SEE_REFERENCE}"),
                    };
                    self.problem(place, what);
                }
                _ => self.add(&path, raw(value), place, |path| format!("`{path}`")),
            }
        }
    }

    /// Adds the variables of the product; every other one is left alone.
    pub(super) fn add_environment(&mut self, environment: &Environment) {
        self.in_layer.clear();
        for (name, value) in environment.iter() {
            let Some(name) = name.to_str() else {
                continue;
            };
            let Some(rest) = name.strip_prefix(PREFIX) else {
                continue;
            };
            if name == FILE_VARIABLE || is_kubernetes_link(rest, value) {
                continue;
            }
            let place = Place::Environment {
                name: name.to_owned(),
            };
            let Some(value) = value.to_str() else {
                self.problem(place, "is not valid UTF-8".to_owned());
                continue;
            };
            let path = self
                .keys()
                .find(|path| variable(path) == name)
                .unwrap_or_else(|| rest.to_ascii_lowercase());
            let raw = Raw::Text(Zeroizing::new(value.to_owned()));
            self.add(&path, raw, place, |path| format!("`{}`", variable(path)));
        }
    }

    pub(super) fn add_flags(&mut self, sources: &Sources) {
        self.in_layer.clear();
        if let Some(listen) = &sources.listen {
            let raw = Raw::Text(Zeroizing::new(listen.clone()));
            self.add(
                "listen",
                raw,
                Place::Flag { name: "--listen" },
                str::to_owned,
            );
        }
        if let Some(folder) = &sources.data_dir {
            let place = Place::Flag { name: "--data" };
            match folder.to_str() {
                Some(folder) => {
                    let raw = Raw::Text(Zeroizing::new(folder.to_owned()));
                    self.add("data_dir", raw, place, str::to_owned);
                }
                None => self.problem(place, "is not valid UTF-8".to_owned()),
            }
        }
    }

    /// Adds one value; `name` writes a path the way this layer spells it.
    fn add(&mut self, path: &str, raw: Raw, place: Place, name: impl Fn(&str) -> String) {
        let direct = self.table.iter().find(|setting| setting.path == path);
        let by_file = path.strip_suffix("_file").and_then(|stem| {
            self.table
                .iter()
                .find(|setting| setting.is_secret && setting.path == stem)
        });
        let Some(setting) = direct.or(by_file) else {
            let what = match self.nearest(path) {
                Some(nearest) => format!(
                    "{} is not a setting; did you mean {}?",
                    name(path),
                    name(&nearest)
                ),
                None => format!("{} is not a setting; {SEE_REFERENCE}", name(path)),
            };
            self.problem(place, what);
            return;
        };
        if let Some(other) = self.in_layer.insert(setting.path, place.clone()) {
            self.problem(
                place,
                format!("`{}` is already given by {other}; keep one", setting.path),
            );
            return;
        }
        let given = match (direct, raw) {
            (Some(_), raw) => Given::Value(Sourced { raw, place }),
            (None, Raw::Text(file)) => Given::InFile {
                path: PathBuf::from(file.trim()),
                place,
            },
            (None, _) => {
                self.problem(place, format!("{} must be the path of a file", name(path)));
                return;
            }
        };
        self.given.insert(setting.path, given);
    }

    /// Returns every path that may be given.
    fn keys(&self) -> impl Iterator<Item = String> {
        self.table.iter().flat_map(|setting| {
            let file = setting.is_secret.then(|| format!("{}_file", setting.path));
            std::iter::once(setting.path.to_owned()).chain(file)
        })
    }

    /// Returns the known path that a mistyped one most likely meant.
    fn nearest(&self, unknown: &str) -> Option<String> {
        let last = |path: &str| path.rsplit('.').next().map(str::to_owned);
        let wanted = last(unknown);
        // Right name, wrong or missing section.
        if let Some(path) = self.keys().find(|path| last(path) == wanted) {
            return Some(path);
        }
        let flat = |path: &str| path.replace(['.', '-'], "_").to_ascii_lowercase();
        let unknown = flat(unknown);
        self.keys()
            .map(|path| {
                // A name that lacks its section or its unit is near as well.
                let whole = flat(&path);
                let short = last(&path).unwrap_or_default();
                let distance = strsim::damerau_levenshtein(&unknown, &whole)
                    .min(strsim::damerau_levenshtein(&unknown, &short) + 1);
                let is_start = whole.starts_with(&unknown) || short.starts_with(&unknown);
                let distance = if is_start { 1 } else { distance };
                (distance, path.len(), path)
            })
            .min()
            .filter(|(distance, length, _)| *distance <= (length / 3).max(2))
            .map(|(_, _, path)| path)
    }

    /// Returns the section that a mistyped one most likely meant.
    fn nearest_section(&self, unknown: &str) -> Option<&'static str> {
        self.table
            .iter()
            .map(|s| (strsim::damerau_levenshtein(unknown, s.section), s.section))
            .min()
            .filter(|(distance, section)| *distance <= (section.len() / 3).max(1))
            .map(|(_, section)| section)
    }

    fn holds_secret_in_clear(&self) -> bool {
        self.table.iter().any(|setting| {
            setting.is_secret
                && matches!(self.given.get(setting.path), Some(Given::Value(s)) if {
                    // A SQLite path is not worth hiding.
                    !matches!(&s.raw, Raw::Text(text) if text.starts_with("sqlite:"))
                })
        })
    }

    fn problem(&mut self, place: Place, what: String) {
        self.problems.push(Problem::new(place, what));
    }

    /// Reads the files of secrets that count and hands the values to the reader.
    pub(super) fn into_reader(mut self) -> Reader {
        let mut values = BTreeMap::new();
        for (path, given) in std::mem::take(&mut self.given) {
            let place = given.place().clone();
            match given {
                Given::Value(sourced) => {
                    values.insert(path, sourced);
                }
                Given::InFile { path: file, .. } => match read_small_file(&file) {
                    Ok(text) => {
                        if is_open_to_others(&file) {
                            self.warnings.push(Problem::new(
                                place.clone(),
                                format!(
                                    "the secret file {} can be read by others; `chmod 600` it",
                                    file.display()
                                ),
                            ));
                        }
                        let raw = Raw::Text(text);
                        values.insert(path, Sourced { raw, place });
                    }
                    Err(what) => {
                        self.problem(place, format!("{} {what}", file.display()));
                    }
                },
            }
        }
        Reader {
            values,
            problems: self.problems,
            warnings: self.warnings,
            ..Reader::default()
        }
    }
}

/// A TOML text and where it stands.
struct TomlFile<'a> {
    path: &'a Path,
    text: &'a str,
}

impl TomlFile<'_> {
    /// Returns the line of a byte offset.
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or_default();
        Place::File {
            path: self.path.to_owned(),
            line: Some(1 + before.matches('\n').count()),
        }
    }
}

fn raw(value: &Spanned<DeValue<'_>>) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::Text(Zeroizing::new(text.to_string())),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Raw::Integer(number),
            Err(_too_large) => Raw::Other("a number that is too large"),
        },
        DeValue::Array(entries) => {
            let texts: Option<Vec<_>> = entries
                .iter()
                .map(|entry| entry.get_ref().as_str().map(str::to_owned))
                .collect();
            texts.map_or(Raw::Other("a list of other things than texts"), Raw::List)
        }
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Boolean(_) => Raw::Other("a boolean"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

/// Reads a file of bounded size; the error completes a sentence about the file.
fn read_small_file(path: &Path) -> Result<Zeroizing<String>, String> {
    let size = fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if size.len() > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| format!("cannot be read: {error}"))
}

/// Returns whether other users of the machine may read a file.
pub(crate) fn is_open_to_others(path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o004 != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        false
    }
}

/// Returns whether Kubernetes made the variable for a service whose name begins with `sluice`.
///
/// # Source
/// Kubernetes documentation, "Service: environment variables" (read 2026-11).
fn is_kubernetes_link(rest: &str, value: &OsStr) -> bool {
    let is_url = value.to_str().is_some_and(|value| {
        ["tcp://", "udp://", "sctp://"]
            .iter()
            .any(|scheme| value.starts_with(scheme))
    });
    let has_protocol = ["_TCP", "_UDP", "_SCTP"].iter().any(|p| rest.contains(p));
    let is = |name: &str| rest == name || rest.ends_with(&format!("_{name}"));
    let holds = |name: &str| rest.starts_with(name) || rest.contains(&format!("_{name}"));
    is("SERVICE_HOST")
        || is("SERVICE_PORT")
        || holds("SERVICE_PORT_")
        || (is("PORT") && is_url)
        || (holds("PORT_") && has_protocol)
}
