//! Who administers: accounts of people, admin tokens of programs, and the secrets of both.
//!
//! A session token is `sluice-session-`, an admin token `sluice-admin-`, then 43 base62 digits of
//! 256 random bits and a checksum of 6, so that a typing error is refused before any look-up and
//! neither is taken for the other or for a proxy key. Only their keyed hash is stored.

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::access::Rights;
use crate::id::{AccountId, AdminTokenId};
use crate::key::{CHECKSUM_LEN, InvalidKey, push_base62};
use crate::tenant::{EntityState, Name};
use crate::time::UnixMillis;

/// Base62 digits of 32 random bytes.
const SECRET_LEN: usize = 43;
/// Shortest password, in characters.
///
/// # Source
/// NIST SP 800-63B-4, section 3.1.1.2: 15 where it is the only factor.
pub const MIN_PASSWORD_CHARS: usize = 15;
/// Longest password that is looked at, in bytes.
pub const MAX_PASSWORD_BYTES: usize = 1_024;

/// The name that somebody logs in by: 1 to 100 characters without spaces, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LoginName(String);

/// A name cannot be one to log in by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a login name has 1 to 100 characters without spaces and control characters")]
pub struct InvalidLoginName;

impl LoginName {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LoginName {
    type Err = InvalidLoginName;

    fn from_str(text: &str) -> Result<Self, InvalidLoginName> {
        let lower = text.trim().to_lowercase();
        let is_plain = |c: char| !c.is_control() && !c.is_whitespace();
        if (1..=100).contains(&lower.chars().count()) && lower.chars().all(is_plain) {
            Ok(Self(lower))
        } else {
            Err(InvalidLoginName)
        }
    }
}

impl fmt::Display for LoginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Somebody who administers.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// The name to log in by, unique among accounts.
    pub login: LoginName,
    /// What it may do.
    pub rights: Rights,
    /// Whether it may log in and act.
    pub state: EntityState,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// The credential of a program that administers.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// Its id.
    pub id: AdminTokenId,
    /// Who made it.
    pub account_id: AccountId,
    /// Its name.
    pub name: Name,
    /// What it may do, as long as its maker may as well.
    pub rights: Rights,
    /// What may be shown of it.
    pub hint: String,
    /// When it was made.
    pub created_at: UnixMillis,
    /// When it ends.
    pub expires_at: UnixMillis,
    /// When it was revoked.
    pub revoked_at: Option<UnixMillis>,
}

/// What an administrative secret is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretKind {
    /// One log-in.
    Session,
    /// A program.
    AdminToken,
}

impl SecretKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Session, Self::AdminToken];

    /// Returns what its secrets begin with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Session => "sluice-session-",
            Self::AdminToken => "sluice-admin-",
        }
    }

    /// Returns the kind that a presented credential has the shape of.
    ///
    /// # Errors
    /// [`InvalidKey::Shape`] when it is neither, [`InvalidKey::Checksum`] when it is mistyped.
    pub fn of(presented: &str) -> Result<Self, InvalidKey> {
        let kind = Self::ALL
            .into_iter()
            .find(|kind| presented.starts_with(kind.prefix()))
            .ok_or(InvalidKey::Shape)?;
        let body_len = kind.prefix().len() + SECRET_LEN;
        let is_plain = presented
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !is_plain || presented.len() != body_len + CHECKSUM_LEN {
            return Err(InvalidKey::Checksum);
        }
        let (body, checksum) = presented.split_at(body_len);
        if checksum_of(body) == checksum {
            Ok(kind)
        } else {
            Err(InvalidKey::Checksum)
        }
    }
}

/// A session token or admin token in the clear. It exists while it is made or presented.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct AdminSecret(String);

impl AdminSecret {
    /// Makes a secret from random bytes.
    pub fn generate(kind: SecretKind, random: [u8; 32]) -> Self {
        let mut text = String::with_capacity(kind.prefix().len() + SECRET_LEN + CHECKSUM_LEN);
        text.push_str(kind.prefix());
        push_base62(&mut text, &random, SECRET_LEN);
        let checksum = checksum_of(&text);
        text.push_str(&checksum);
        Self(text)
    }

    /// Returns the whole secret. It is shown once.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns what may be shown later: the prefix and the last four characters.
    pub fn hint(&self) -> String {
        let kind = SecretKind::ALL
            .into_iter()
            .find(|kind| self.0.starts_with(kind.prefix()));
        let tail = self.0.get(self.0.len().saturating_sub(4)..).unwrap_or("");
        format!("{}…{tail}", kind.map_or("", SecretKind::prefix))
    }
}

impl fmt::Debug for AdminSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminSecret(…)")
    }
}

fn checksum_of(body: &str) -> String {
    let mut checksum = String::with_capacity(CHECKSUM_LEN);
    let sum = crc32fast::hash(body.as_bytes());
    push_base62(&mut checksum, &sum.to_be_bytes(), CHECKSUM_LEN);
    checksum
}

/// Why a password is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    /// It is too short.
    #[error("a password has at least {MIN_PASSWORD_CHARS} characters")]
    TooShort,
    /// It is too long to be looked at.
    #[error("a password has at most {MAX_PASSWORD_BYTES} bytes")]
    TooLong,
}

/// Checks the length of a new password; what it is made of is nobody's business.
///
/// # Errors
/// [`WeakPassword`] says which bound it misses.
pub fn check_new_password(password: &str) -> Result<(), WeakPassword> {
    if password.len() > MAX_PASSWORD_BYTES {
        Err(WeakPassword::TooLong)
    } else if password.chars().count() < MIN_PASSWORD_CHARS {
        Err(WeakPassword::TooShort)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::{ProxyKeySecret, check_shape};

    #[test]
    fn a_login_name_is_found_however_it_is_written() {
        let name: LoginName = " Ann@Example.COM ".parse().unwrap();
        assert_eq!(name.as_str(), "ann@example.com");
        for bad in ["", " ", "a b", "a\u{0}b", &"x".repeat(101)] {
            assert_eq!(bad.parse::<LoginName>(), Err(InvalidLoginName), "{bad:?}");
        }
    }

    #[test]
    fn a_password_is_judged_by_its_length_alone() {
        assert_eq!(
            check_new_password("fourteen chars"),
            Err(WeakPassword::TooShort)
        );
        assert_eq!(check_new_password("fifteen chars é"), Ok(()));
        let long = "x".repeat(MAX_PASSWORD_BYTES + 1);
        assert_eq!(check_new_password(&long), Err(WeakPassword::TooLong));
        assert_eq!(check_new_password(&long[1..]), Ok(()));
    }

    #[test]
    fn the_kinds_of_secrets_are_not_taken_for_each_other() {
        for kind in SecretKind::ALL {
            let secret = AdminSecret::generate(kind, [7; 32]);
            assert_eq!(SecretKind::of(secret.expose()), Ok(kind));
            assert!(!format!("{secret:?}").contains(&secret.expose()[20..]));
            assert!(
                secret
                    .expose()
                    .ends_with(secret.hint().split('…').nth(1).unwrap())
            );
            assert!(secret.hint().chars().count() <= kind.prefix().len() + 5);
        }
        let key = ProxyKeySecret::generate([1; 8], [2; 32]);
        assert_eq!(SecretKind::of(key.expose()), Err(InvalidKey::Shape));
        assert_eq!(check_shape(key.expose()), Ok(()));
    }

    proptest! {
        #[test]
        fn one_changed_character_is_always_caught(
            random in any::<[u8; 32]>(), at in 15_usize..60, with in "[0-9A-Za-zé]",
        ) {
            let secret = AdminSecret::generate(SecretKind::Session, random);
            let mut text = secret.expose().to_owned();
            prop_assume!(text[at..=at] != with);
            text.replace_range(at..=at, &with);
            prop_assert_eq!(SecretKind::of(&text), Err(InvalidKey::Checksum));
        }
    }
}
