//! Which part of the list of models a client of the Anthropic API asks for.

use std::ops::Range;

use url::form_urlencoded;

use crate::error::{ApiError, Code};

/// How many models a page has unless the client says otherwise.
const USUAL: usize = 20;
/// Most models of a page.
const MOST: usize = 1_000;

/// A page of a list that is sorted by id.
///
/// # Source
/// Anthropic, "List models", November 2026: `limit` from 1 to 1000, 20 unless it is given; `after_id` and
/// `before_id` name the model next to the page; `has_more` is about the direction that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    limit: usize,
    cursor: Option<Cursor>,
}

#[derive(Debug, PartialEq, Eq)]
enum Cursor {
    After(String),
    Before(String),
}

impl Page {
    /// Reads the query of a request; what it does not know is passed over.
    ///
    /// # Errors
    /// What the client is answered where a value cannot be.
    pub(super) fn read(query: Option<&str>) -> Result<Self, ApiError> {
        let mut page = Self {
            limit: USUAL,
            cursor: None,
        };
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            let cursor = match &*name {
                "limit" => {
                    let limit = value.parse().ok();
                    page.limit = limit
                        .filter(|limit| (1..=MOST).contains(limit))
                        .ok_or_else(|| {
                            let message =
                                format!("`limit` must be a whole number from 1 to {MOST}.");
                            ApiError::new(Code::InvalidValue, message).param("limit")
                        })?;
                    continue;
                }
                "after_id" => Cursor::After(value.into_owned()),
                "before_id" => Cursor::Before(value.into_owned()),
                _ => continue,
            };
            if page.cursor.replace(cursor).is_some() {
                let message = "Give one `after_id` or one `before_id`, not both.";
                return Err(ApiError::new(Code::InvalidValue, message).param("after_id"));
            }
        }
        Ok(page)
    }

    /// Returns which of these ids are on the page, and whether there are more beyond it. A model that
    /// is named and gone meanwhile leaves its place behind.
    pub(super) fn of(&self, ids: &[&str]) -> (Range<usize>, bool) {
        let (start, end) = match &self.cursor {
            None => (0, ids.len()),
            Some(Cursor::After(id)) => (ids.partition_point(|of| *of <= id.as_str()), ids.len()),
            Some(Cursor::Before(id)) => {
                let end = ids.partition_point(|of| *of < id.as_str());
                let start = end.saturating_sub(self.limit);
                return (start..end, start > 0);
            }
        };
        let last = end.min(start.saturating_add(self.limit));
        (start..last, last < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [&str; 5] = ["a", "b", "c/d", "e", "f"];

    fn page(query: &str) -> (Vec<&'static str>, bool) {
        let (range, has_more) = Page::read(Some(query)).unwrap().of(&IDS);
        (IDS[range].to_vec(), has_more)
    }

    #[test]
    fn pages_follow_each_other_in_both_directions() {
        for (query, expected, has_more) in [
            ("", &IDS[..], false),
            ("limit=2", &["a", "b"], true),
            ("limit=2&after_id=b", &["c/d", "e"], true),
            ("limit=2&after_id=c%2Fd", &["e", "f"], false),
            ("limit=1000&after_id=f", &[], false),
            ("limit=2&before_id=e", &["b", "c/d"], true),
            ("limit=2&before_id=c/d", &["a", "b"], false),
            ("before_id=a", &[], false),
            ("limit=2&after_id=bb", &["c/d", "e"], true),
            ("limit=2&before_id=bb", &["a", "b"], false),
            ("beta=true&limit=5", &IDS, false),
        ] {
            assert_eq!(page(query), (expected.to_vec(), has_more), "{query}");
        }
        assert_eq!(Page::read(None).unwrap().limit, USUAL);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for query in [
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=many",
            "limit=",
            "after_id=a&before_id=b",
            "after_id=a&after_id=b",
        ] {
            let error = Page::read(Some(query)).unwrap_err();
            assert_eq!(error.status.as_u16(), 400, "{query}");
        }
    }
}
