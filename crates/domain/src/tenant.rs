//! Tenants, users and roles.

use std::fmt;
use std::str::FromStr;

use crate::id::{TenantId, UserId};
use crate::time::{TimeZone, UnixMillis};

/// Whether a tenant, user, key or upstream takes part. Rows are marked, never deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntityState {
    /// Takes part.
    Active,
    /// Switched off by an admin; may be switched on again.
    Disabled,
    /// Gone for good; kept because the ledger names it.
    Deleted,
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Everything, also granting the role of an owner.
    Owner,
    /// Tenants, users, keys, limits, routes.
    Admin,
    /// Upstreams, health, reload.
    Operator,
    /// Usage, prices, statements.
    Finance,
    /// Their own keys and usage.
    Member,
}

/// A word is not one of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not one of {expected}")]
pub struct UnknownWord {
    /// What was found.
    pub found: String,
    /// The known words, for people.
    pub expected: &'static str,
}

/// Gives an enumeration one fixed word per variant, for storage, wire and command line.
#[macro_export]
macro_rules! words {
    ($type:ty, $expected:literal, { $($variant:path => $word:literal),* $(,)? }) => {
        impl $type {
            /// Returns the stored word.
            pub const fn as_str(self) -> &'static str {
                match self { $($variant => $word),* }
            }
        }

        impl ::std::fmt::Display for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl ::std::str::FromStr for $type {
            type Err = $crate::tenant::UnknownWord;

            fn from_str(word: &str) -> ::std::result::Result<Self, $crate::tenant::UnknownWord> {
                match word {
                    $($word => Ok($variant),)*
                    other => Err($crate::tenant::UnknownWord { found: other.to_owned(), expected: $expected }),
                }
            }
        }
    };
}

words!(EntityState, "active, disabled, deleted", {
    EntityState::Active => "active",
    EntityState::Disabled => "disabled",
    EntityState::Deleted => "deleted",
});

words!(Role, "owner, admin, operator, finance, member", {
    Role::Owner => "owner",
    Role::Admin => "admin",
    Role::Operator => "operator",
    Role::Finance => "finance",
    Role::Member => "member",
});

/// A name that people gave to something: 1 to 100 characters, no control characters, trimmed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// A name is empty, too long or has control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to 100 characters and no control characters")]
pub struct InvalidName;

impl Name {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let text = text.trim();
        let count = text.chars().count();
        if (1..=100).contains(&count) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName)
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The isolation and billing unit.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name, unique among tenants.
    pub name: Name,
    /// The zone that decides where its months and days begin.
    pub time_zone: TimeZone,
    /// Whether its keys are served.
    pub state: EntityState,
    /// Tokens it may use in a month; `None` is without a cap.
    pub quota_tokens: Option<i64>,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// A person or service inside a tenant.
#[derive(Debug, Clone)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// The tenant it belongs to.
    pub tenant_id: TenantId,
    /// Its name, unique inside the tenant.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// Whether its keys are served.
    pub state: EntityState,
    /// Tokens it may use in a month; `None` is without a cap.
    pub quota_tokens: Option<i64>,
    /// When it was made.
    pub created_at: UnixMillis,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for role in [
            Role::Owner,
            Role::Admin,
            Role::Operator,
            Role::Finance,
            Role::Member,
        ] {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert_eq!(
            "boss".parse::<Role>().unwrap_err().to_string(),
            "`boss` is not one of owner, admin, operator, finance, member"
        );
    }

    #[test]
    fn a_name_is_trimmed_and_bounded() {
        assert_eq!(" acme ".parse::<Name>().unwrap().as_str(), "acme");
        assert!("".parse::<Name>().is_err());
        assert!("a\nb".parse::<Name>().is_err());
        assert!("x".repeat(101).parse::<Name>().is_err());
    }
}
