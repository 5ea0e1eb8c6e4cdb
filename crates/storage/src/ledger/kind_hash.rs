//! The hash of all that the records of a kind share.
//!
//! Whoever meets a kind finds the same row by it, and a row that was changed does not fit it.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// A SHA-256.
pub(crate) type KindHash = [u8; 32];

/// What begins each hashed text, so that it is the text of nothing else.
const PREFIX: &[u8] = b"sluice record kind 1\n";

/// What the records of a kind share: a row of `record_kinds` without its id and hash.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KindContent<'k> {
    pub(crate) tenant_id: Uuid,
    pub(crate) user_id: Uuid,
    pub(crate) key_id: Uuid,
    pub(crate) period: i32,
    pub(crate) statement_period: i32,
    pub(crate) local_day: i32,
    pub(crate) endpoint: &'k str,
    pub(crate) streams: bool,
    pub(crate) requested_model: &'k str,
    pub(crate) upstream_id: Option<Uuid>,
    pub(crate) upstream_model: Option<&'k str>,
    pub(crate) upstream_key_id: Option<Uuid>,
    pub(crate) attempt_count: i32,
    pub(crate) attempt_status: Option<i32>,
    pub(crate) ending: &'k str,
    pub(crate) stage: &'k str,
    pub(crate) status: i32,
    pub(crate) error_code: Option<&'k str>,
    pub(crate) basis: &'k str,
}

impl KindContent<'_> {
    /// Returns the SHA-256 of the prefix and the columns in their order: numbers with 4 bytes, the
    /// highest first; text after its length in bytes, with 8 bytes; a truth as one byte; and before
    /// each column that may be `NULL` one byte, which is 0 when it is.
    pub(crate) fn hash(&self) -> KindHash {
        // Names each column, so that none can be forgotten.
        let Self {
            tenant_id,
            user_id,
            key_id,
            period,
            statement_period,
            local_day,
            endpoint,
            streams,
            requested_model,
            upstream_id,
            upstream_model,
            upstream_key_id,
            attempt_count,
            attempt_status,
            ending,
            stage,
            status,
            error_code,
            basis,
        } = *self;
        let mut out = Hashed(Vec::with_capacity(512));
        for id in [tenant_id, user_id, key_id] {
            out.id(id);
        }
        for number in [period, statement_period, local_day] {
            out.number(number);
        }
        out.text(endpoint);
        out.0.push(u8::from(streams));
        out.text(requested_model);
        out.option(upstream_id, Hashed::id);
        out.option(upstream_model, Hashed::text);
        out.option(upstream_key_id, Hashed::id);
        out.number(attempt_count);
        out.option(attempt_status, Hashed::number);
        out.text(ending);
        out.text(stage);
        out.number(status);
        out.option(error_code, Hashed::text);
        out.text(basis);
        let hash = Sha256::new_with_prefix(PREFIX)
            .chain_update(&out.0)
            .finalize();
        hash.into()
    }
}

/// The text that is hashed.
struct Hashed(Vec<u8>);

impl Hashed {
    fn id(&mut self, id: Uuid) {
        self.0.extend_from_slice(id.as_bytes());
    }

    fn number(&mut self, number: i32) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(&(text.len() as u64).to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.0.push(u8::from(value.is_some()));
        if let Some(value) = value {
            put(self, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn content() -> KindContent<'static> {
        KindContent {
            tenant_id: Uuid::from_u128(1),
            user_id: Uuid::from_u128(2),
            key_id: Uuid::from_u128(3),
            period: 202_611,
            statement_period: 202_611,
            local_day: 20_261_118,
            endpoint: "chat_completions",
            streams: true,
            requested_model: "gpt-4o",
            upstream_id: Some(Uuid::from_u128(4)),
            upstream_model: Some("gpt-4o"),
            upstream_key_id: Some(Uuid::from_u128(5)),
            attempt_count: 1,
            attempt_status: Some(200),
            ending: "finished",
            stage: "relaying",
            status: 200,
            error_code: None,
            basis: "reported",
        }
    }

    #[test]
    fn a_hash_is_the_same_for_ever() {
        // Computed by another program.
        let hash = [
            0xd4, 0x0f, 0x36, 0x6a, 0x30, 0xf4, 0xe0, 0x5f, 0x23, 0xeb, 0x30, 0x8a, 0x6f, 0x4e,
            0x7a, 0x98, 0x64, 0x99, 0xff, 0xcd, 0x30, 0xd1, 0xcc, 0xc5, 0xd5, 0x6b, 0x20, 0xba,
            0x27, 0x6c, 0x85, 0x27,
        ];
        assert_eq!(content().hash(), hash);
    }

    #[test]
    fn whatever_differs_makes_another_hash() {
        let other = Uuid::from_u128(9);
        let changes: [fn(&mut KindContent<'_>, Uuid); 24] = [
            |_, _| {},
            |c, other| c.tenant_id = other,
            |c, other| c.user_id = other,
            |c, other| c.key_id = other,
            |c, _| c.period += 1,
            |c, _| c.statement_period += 1,
            |c, _| c.local_day += 1,
            |c, _| c.endpoint = "responses",
            |c, _| c.streams = false,
            |c, _| c.requested_model = "gpt-4",
            |c, other| c.upstream_id = Some(other),
            |c, _| c.upstream_id = None,
            |c, _| c.upstream_model = None,
            |c, _| c.upstream_model = Some(""),
            |c, other| c.upstream_key_id = Some(other),
            |c, _| c.upstream_key_id = None,
            |c, _| c.attempt_count = 2,
            |c, _| c.attempt_status = None,
            |c, _| c.ending = "panicked",
            |c, _| c.stage = "held",
            |c, _| c.status = 499,
            |c, _| c.error_code = Some(""),
            |c, _| c.error_code = Some("x"),
            |c, _| c.basis = "counted",
        ];
        let mut hashes = HashSet::new();
        for change in changes {
            let mut content = content();
            change(&mut content, other);
            assert!(hashes.insert(content.hash()), "{content:?}");
        }
    }

    #[test]
    fn text_does_not_flow_into_its_neighbor() {
        let hashes = [("ab", "c"), ("a", "bc"), ("abc", "")].map(|(ending, stage)| {
            let content = KindContent {
                ending,
                stage,
                ..content()
            };
            content.hash()
        });
        assert_eq!(HashSet::from(hashes).len(), 3);
    }
}
