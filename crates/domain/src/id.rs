//! Typed identifiers: a prefix for people, a UUIDv7 inside.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// An identifier could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an id such as `{expected}_0190c2…`, a prefix and 32 hexadecimal digits")]
pub struct ParseIdError {
    /// Prefix that was expected.
    pub expected: &'static str,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Prefix of the text form.
            pub const PREFIX: &'static str = $prefix;

            /// Wraps a UUID that was made for this purpose.
            pub const fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }

            /// Writes the text form without an allocation.
            pub fn encode(self, buffer: &mut [u8; 36]) -> &str {
                let (prefix, hex) = buffer.split_at_mut(4);
                prefix.copy_from_slice(concat!($prefix, "_").as_bytes());
                if let Some(hex) = hex.first_chunk_mut::<32>() {
                    self.0.simple().encode_lower(hex);
                }
                str::from_utf8(buffer).unwrap_or_default()
            }

            /// Returns the UUID inside.
            pub const fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.encode(&mut [0; 36]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.strip_prefix(concat!($prefix, "_"))
                    .filter(|hex| hex.len() == 32)
                    .and_then(|hex| Uuid::try_parse(hex).ok())
                    .map(Self)
                    .ok_or(ParseIdError { expected: $prefix })
            }
        }
    )*};
}

ids! {
    /// A tenant: the isolation and billing unit.
    TenantId = "ten";
    /// A user: a person or service inside a tenant.
    UserId = "usr";
    /// An account: somebody who administers, with a name to log in by.
    AccountId = "acc";
    /// A session: one log-in of an account.
    SessionId = "ses";
    /// An admin token: the credential of a program that administers.
    AdminTokenId = "tok";
    /// A proxy key: the credential that a client presents to us.
    ProxyKeyId = "key";
    /// An upstream: one configured endpoint of a provider.
    UpstreamId = "ups";
    /// An upstream key: one credential of an upstream.
    UpstreamKeyId = "upk";
    /// A route: a requested model and its targets.
    RouteId = "rte";
    /// A relayed request; also the id of its usage record.
    RequestId = "req";
    /// An instance: one data folder, one journal, one writer.
    InstanceId = "ins";
    /// One start of an instance.
    BootId = "boo";
    /// A counter: one scope in one month.
    CounterId = "cnt";
}

/// Builds a UUIDv7 from a time and 80 random bits (74 are used).
///
/// # Units
/// `unix_ms` is milliseconds since the Unix epoch.
///
/// # Source
/// RFC 9562, section 5.7.
pub fn uuid_v7(unix_ms: u64, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_through_its_text_form() {
        let id = TenantId::from_uuid(uuid_v7(1_700_000_000_000, [7; 10]));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().starts_with("ten_"));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        let user = UserId::from_uuid(uuid_v7(1, [1; 10]));
        assert_eq!(
            user.to_string().parse::<TenantId>(),
            Err(ParseIdError { expected: "ten" })
        );
    }

    #[test]
    fn later_ids_sort_after_earlier_ones() {
        assert!(uuid_v7(1_000, [255; 10]) < uuid_v7(1_001, [0; 10]));
    }
}
