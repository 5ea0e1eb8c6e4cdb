//! Lists by pages, and versions of what is listed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use http::header::{ETAG, IF_MATCH};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::problem::{Code, FieldError, Problem};
use super::route::{Answer, Call};

/// Items on a page that asks for no number.
const DEFAULT_LIMIT: u32 = 50;
/// Most items on a page.
const MAX_LIMIT: u32 = 200;

/// What a list is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<C> {
    pub(crate) limit: u32,
    pub(crate) after: Option<C>,
}

impl<C: std::str::FromStr> Page<C> {
    /// Reads `limit` and `cursor`.
    ///
    /// # Errors
    /// 400 for anything else, a bad number, and a cursor that no list has handed out.
    pub(crate) fn read(query: &str) -> Result<Self, Problem> {
        let mut page = Self {
            limit: DEFAULT_LIMIT,
            after: None,
        };
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let detail = match name.as_ref() {
                "limit" => match value.parse() {
                    Ok(limit @ 1..=MAX_LIMIT) => {
                        page.limit = limit;
                        continue;
                    }
                    _ => format!("must be a whole number from 1 to {MAX_LIMIT}"),
                },
                "cursor" => match decode(&value) {
                    Some(cursor) => {
                        page.after = Some(cursor);
                        continue;
                    }
                    None => "is no cursor of this list".to_owned(),
                },
                _ => "is no parameter of this list".to_owned(),
            };
            let name: String = name.chars().take(100).collect();
            return Err(Problem::of_fields(vec![FieldError {
                pointer: format!("?{name}"),
                detail,
            }]));
        }
        Ok(page)
    }

    /// Returns how many rows are read: one more tells whether there is another page.
    pub(crate) fn rows(&self) -> u32 {
        self.limit + 1
    }

    /// Builds the answer from the rows that were read.
    pub(crate) fn answer<T>(
        &self,
        mut rows: Vec<T>,
        cursor_of: impl Fn(&T) -> String,
        view: impl Fn(&T) -> Value,
    ) -> Answer {
        let limit = self.limit as usize;
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let last = rows.last().filter(|_| has_more);
        let next = last.map(|row| URL_SAFE_NO_PAD.encode(cursor_of(row)));
        Answer::ok(json!({
            "data": rows.iter().map(view).collect::<Vec<_>>(),
            "next_cursor": next,
        }))
    }
}

fn decode<C: std::str::FromStr>(text: &str) -> Option<C> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

/// Returns the version of a representation.
pub(crate) fn etag(view: &Value) -> HeaderValue {
    let digest = Sha256::digest(view.to_string().as_bytes());
    let short = URL_SAFE_NO_PAD.encode(&digest[..16]);
    HeaderValue::from_str(&format!("\"{short}\"")).unwrap_or_else(|_| HeaderValue::from_static("*"))
}

/// Answers with a representation and its version.
pub(crate) fn versioned(view: Value) -> Answer {
    let etag = etag(&view);
    Answer::ok(view).with_etag(etag)
}

/// The version that a change is made of.
#[derive(Debug)]
pub(crate) struct IfMatch(Option<HeaderValue>);

impl IfMatch {
    /// Reads `If-Match`: the version as it was read, or `*` for any.
    ///
    /// # Errors
    /// 428 without it: a change of what nobody has looked at may undo another's.
    pub(crate) fn read(call: &Call) -> Result<Self, Problem> {
        let value = call.headers.get(IF_MATCH).ok_or_else(|| {
            Problem::new(
                Code::PreconditionRequired,
                format!("Send the `{ETAG}` that you have read in the header `If-Match`, or `*`."),
            )
        })?;
        Ok(Self((value != "*").then(|| value.clone())))
    }

    pub(crate) fn fits(&self, view: &Value) -> bool {
        self.0.as_ref().is_none_or(|wanted| *wanted == etag(view))
    }
}

/// The answer to a change of a version that is no longer the present one.
pub(crate) fn precondition_failed() -> Problem {
    Problem::new(
        Code::PreconditionFailed,
        "It was changed since you have read it. Read it again and repeat your change.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded() {
        let read = Page::<i64>::read;
        assert_eq!(read("").unwrap().limit, DEFAULT_LIMIT);
        assert_eq!(read("limit=200").unwrap().limit, 200);
        for bad in [
            "limit=0",
            "limit=201",
            "limit=x",
            "cursor=!",
            "cursor=YQ",
            "page=2",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cursor_leads_to_the_next_page_and_the_last_page_has_none() {
        let page = Page::<i64>::read("limit=2").unwrap();
        let answer = page.answer(vec![1, 2, 3], ToString::to_string, |n| json!(n));
        let body = answer.body.unwrap();
        assert_eq!(body["data"], json!([1, 2]));
        let cursor = body["next_cursor"].as_str().unwrap();
        let next = Page::<i64>::read(&format!("cursor={cursor}")).unwrap();
        assert_eq!(next.after, Some(2));
        let last = page.answer(vec![3, 4], ToString::to_string, |n| json!(n));
        assert_eq!(last.body.unwrap()["next_cursor"], Value::Null);
    }

    #[test]
    fn a_version_changes_with_what_it_is_of() {
        let (one, two) = (json!({"a": 1}), json!({"a": 2}));
        let wanted = IfMatch(Some(etag(&one)));
        assert!(wanted.fits(&one) && !wanted.fits(&two));
        assert!(IfMatch(None).fits(&two));
    }
}
