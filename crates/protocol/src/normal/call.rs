//! The calls of tools of one choice: which piece belongs to which call.

use super::object::{Object, array, elements, is_absent, said};
use crate::json::quote;

/// More calls of one answer are passed on as they come.
const MAX_CALLS: usize = 1_024;

/// Ids and names are told apart by so many bytes; no more of them is kept.
const MAX_WORD_BYTES: usize = 256;

/// The calls that a choice has made so far.
#[derive(Debug, Default)]
pub(super) struct Calls {
    calls: Vec<Call>,
    /// Which call an index of the provider means now.
    by_index: Vec<(i64, usize)>,
}

#[derive(Debug)]
struct Call {
    /// As the provider named it, if it did.
    id: Option<String>,
    name: String,
    arguments: Progress,
}

/// How far the text of arguments has come.
#[derive(Debug, Default)]
struct Progress {
    depth: usize,
    is_in_string: bool,
    is_escaped: bool,
    has_begun: bool,
}

impl Progress {
    fn feed(&mut self, text: &str) {
        for byte in text.bytes() {
            if self.is_in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.is_in_string = false,
                    _ => {}
                }
                continue;
            }
            self.has_begun |= !byte.is_ascii_whitespace();
            match byte {
                b'"' => self.is_in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// Returns whether the text is a part of a value that goes on.
    const fn is_open(&self) -> bool {
        self.has_begun && (self.depth > 0 || self.is_in_string)
    }

    const fn is_complete(&self) -> bool {
        self.has_begun && !self.is_open()
    }
}

/// What one delta, or one whole message, made of its calls.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The calls as they are to be written, if they are not as they were read.
    pub(super) rewritten: Option<String>,
    /// Whether the same delta once more would mean something else.
    pub(super) is_news: bool,
    /// The call whose arguments are all that the delta has.
    pub(super) continues: Option<usize>,
}

/// One element of `tool_calls` on its way.
struct Piece<'a> {
    object: Object<'a>,
    /// The member with the name and the arguments.
    body: Object<'a>,
    form: Form,
    call: usize,
}

/// The two forms of calls.
#[derive(Clone, Copy)]
enum Form {
    Function,
    Custom,
}

impl Form {
    const fn kind(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Custom => "custom",
        }
    }

    const fn arguments(self) -> &'static str {
        match self {
            Self::Function => "arguments",
            Self::Custom => "input",
        }
    }
}

impl Calls {
    pub(super) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Notes more text of arguments that was not read here.
    pub(super) fn continued(&mut self, call: usize, text: &str) {
        if let Some(call) = self.calls.get_mut(call) {
            call.arguments.feed(text);
        }
    }

    /// Takes the calls of one delta, or of a whole message, whose calls have no index.
    ///
    /// `seed` makes ids that the provider did not give.
    pub(super) fn take(&mut self, raw: &str, is_whole: bool, seed: &str) -> Outcome {
        let mut outcome = Outcome::default();
        let Some(items) = elements(raw) else {
            return outcome;
        };
        let (count, mut is_changed) = (items.len(), false);
        let mut pieces: Vec<Piece<'_>> = Vec::with_capacity(count);
        for item in items {
            let Some(object) = Object::parse(item).filter(|_| self.calls.len() < MAX_CALLS) else {
                is_changed |= item == "null";
                if item != "null" {
                    // Nothing is known about it.
                    return Outcome::default();
                }
                continue;
            };
            let piece = self.place(object, &pieces, is_whole, seed, &mut outcome.is_news);
            match pieces.iter_mut().find(|other| other.call == piece.call) {
                // Clients take the first delta of a call as it is.
                Some(earlier) => {
                    earlier.append(&piece);
                    is_changed = true;
                }
                None => pieces.push(piece),
            }
        }
        let written: Vec<String> = pieces
            .iter_mut()
            .map(|piece| {
                piece.close();
                is_changed |= piece.object.is_changed;
                piece.object.to_json()
            })
            .collect();
        if let ([piece], false) = (&pieces[..], is_changed) {
            outcome.continues = Some(piece.call);
        }
        outcome.rewritten = is_changed.then(|| array(written));
        outcome
    }

    /// Finds the call of a piece, and leaves in the piece what its call does not have yet.
    fn place<'a>(
        &mut self,
        mut object: Object<'a>,
        before: &[Piece<'_>],
        is_whole: bool,
        seed: &str,
        is_news: &mut bool,
    ) -> Piece<'a> {
        let form = if is_absent(object.get("custom")) {
            Form::Function
        } else {
            Form::Custom
        };
        let body = object.read(form.kind()).and_then(Object::parse);
        let mut body = body.unwrap_or_default();
        let index = object.get("index").and_then(|raw| raw.parse::<i64>().ok());
        let id = said(object.get("id")).map(|id| beginning(&id).to_owned());
        let name = said(body.get("name")).map(|name| beginning(&name).to_owned());
        let arguments = body.get(form.arguments());
        let is_text = arguments.is_some_and(|raw| raw.starts_with('"'));
        if !is_text && !is_absent(arguments) {
            let text = quote(arguments.unwrap_or_default());
            body.set(form.arguments(), text);
        }

        let used = |call: usize| before.iter().any(|piece| piece.call == call);
        let found = if is_whole {
            None
        } else {
            self.find(index, id.as_deref(), name.as_deref(), used)
        };
        let call = found.unwrap_or(self.calls.len());
        if found.is_none() {
            *is_news = true;
            self.begin(index, id, name, &mut object, &mut body, form, seed);
        } else {
            self.go_on(call, id.is_some(), name, &mut object, &mut body, is_news);
        }
        if !is_whole && index != i64::try_from(call).ok() {
            object.set("index", call.to_string());
        }
        if let (Some(text), Some(known)) =
            (said(body.get(form.arguments())), self.calls.get_mut(call))
        {
            known.arguments.feed(&text);
        }
        Piece {
            object,
            body,
            form,
            call,
        }
    }

    /// Returns the call that a piece goes on with; `None` when it begins one.
    fn find(
        &self,
        index: Option<i64>,
        id: Option<&str>,
        name: Option<&str>,
        used: impl Fn(usize) -> bool,
    ) -> Option<usize> {
        let by_index = index.map(|index| {
            let found = self.by_index.iter().find(|(known, _)| *known == index);
            found.map(|(_, call)| *call)
        });
        let last = self.calls.len().checked_sub(1);
        let at = |call: usize| self.calls.get(call);
        let of_id = id.and_then(|id| {
            let is_it = |call: &Call| call.id.as_deref() == Some(id);
            let indexed = by_index
                .flatten()
                .filter(|call| at(*call).is_some_and(is_it));
            indexed.or_else(|| self.calls.iter().rposition(is_it))
        });
        if let Some(call) = of_id {
            // Some servers give the same id to all calls.
            let begins = by_index == Some(None)
                && name.is_some()
                && at(call).is_some_and(|call| call.arguments.is_complete());
            return (!begins).then_some(call);
        }
        let call = by_index.unwrap_or(last).or_else(|| {
            // A piece without a name begins nothing, whatever its index says.
            last.filter(|_| id.is_none() && name.is_none())
        })?;
        let known = at(call)?;
        let Some(name) = name else {
            // Some servers make up another id for each piece.
            return Some(call);
        };
        if used(call) || known.arguments.is_complete() {
            return None;
        }
        let begins = match (id, &known.id) {
            (Some(_), Some(_)) => !known.arguments.is_open(),
            (Some(_), None) => known.name != name && !known.name.is_empty(),
            (None, _) => false,
        };
        (!begins).then_some(call)
    }

    /// Begins a call: everything that clients need is there.
    #[expect(clippy::too_many_arguments, reason = "the parts of one piece")]
    fn begin(
        &mut self,
        index: Option<i64>,
        id: Option<String>,
        name: Option<String>,
        object: &mut Object<'_>,
        body: &mut Object<'_>,
        form: Form,
        seed: &str,
    ) {
        let number = self.calls.len();
        if id.is_none() {
            object.set("id", quote(&made_id(seed, number)));
        }
        if said(object.get("type")).is_none() {
            object.set("type", quote(form.kind()));
        }
        if !body.get("name").is_some_and(|raw| raw.starts_with('"')) {
            body.set("name", "\"\"");
        }
        if is_absent(body.get(form.arguments())) {
            body.set(form.arguments(), "\"\"");
        }
        if let Some(index) = index {
            self.by_index.retain(|(known, _)| *known != index);
            self.by_index.push((index, number));
        }
        self.calls.push(Call {
            id,
            name: name.unwrap_or_default(),
            arguments: Progress::default(),
        });
    }

    /// Goes on with a call: what was said is not said again.
    fn go_on(
        &mut self,
        call: usize,
        has_id: bool,
        name: Option<String>,
        object: &mut Object<'_>,
        body: &mut Object<'_>,
        is_news: &mut bool,
    ) {
        if has_id {
            object.remove("id");
        }
        if said(object.get("type")).is_some() {
            object.remove("type");
        }
        let Some((name, known)) = name.zip(self.calls.get_mut(call)) else {
            return;
        };
        // A name may come late, or in pieces, but not after the arguments have begun.
        let is_piece =
            known.name.is_empty() || (!has_id && !known.arguments.has_begun && known.name != name);
        if is_piece {
            if known.name.len() < MAX_WORD_BYTES {
                known.name.push_str(&name);
            }
            *is_news = true;
        } else {
            body.remove("name");
        }
    }
}

impl Piece<'_> {
    /// Takes over the texts of another piece of the same call.
    fn append(&mut self, other: &Self) {
        for key in ["name", self.form.arguments()] {
            let texts = [said(self.body.get(key)), said(other.body.get(key))];
            if texts[1].is_some() {
                let both: String = texts.into_iter().flatten().collect();
                self.body.set(
                    if key == "name" {
                        "name"
                    } else {
                        self.form.arguments()
                    },
                    quote(&both),
                );
            }
        }
    }

    /// Writes the inner object.
    fn close(&mut self) {
        let kind = self.form.kind();
        if self.body.is_changed {
            self.object.set(kind, self.body.to_json());
        }
    }
}

fn beginning(word: &str) -> &str {
    let end = word.floor_char_boundary(MAX_WORD_BYTES);
    word.get(..end).unwrap_or(word)
}

/// Makes an id for a call that has none; the same answer gives the same one.
fn made_id(seed: &str, number: usize) -> String {
    format!("call_{seed}_{number}")
}
