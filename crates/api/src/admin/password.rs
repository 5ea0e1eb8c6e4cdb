//! Passwords: hashed and checked beside everything else, a few at a time.

use std::sync::Arc;

use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use sluice_domain::account::MAX_PASSWORD_BYTES;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::data_folder::{FolderError, random_bytes};

/// Passwords that are checked at a time: each takes a thread and 19 MiB for as long as it takes.
pub(crate) const AT_ONCE: usize = 2;
/// Checked where there is no account, so that this takes as long as where there is one. Of the same
/// parameters as those of [`hash`], and no password hashes to zeros.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A password could not be hashed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PasswordError {
    /// There was no salt.
    #[error("there are no random bytes")]
    Salt(#[source] FolderError),
    /// The function failed, which bounded input does not make it do.
    #[error("a password cannot be hashed")]
    Hash(#[source] argon2::password_hash::Error),
}

/// Hashes a password: Argon2id with 19 MiB, two passes, one lane, in the form of the PHC.
///
/// # Errors
/// [`PasswordError`] where the system gives no random bytes.
///
/// # Source
/// OWASP Password Storage Cheat Sheet, seen 2026-11.
pub(crate) fn hash(password: &str) -> Result<String, PasswordError> {
    let salt = random_bytes::<16>().map_err(PasswordError::Salt)?;
    let hash = Argon2::default()
        .hash_password_with_salt(password.as_bytes(), salt.as_slice())
        .map_err(PasswordError::Hash)?;
    Ok(hash.to_string())
}

fn is_right(password: &str, hash: &str) -> bool {
    Argon2::default()
        .verify_password(password.as_bytes(), hash)
        .is_ok()
}

/// Checks passwords on threads of their own, a few at a time.
pub(crate) struct Passwords(Arc<Semaphore>);

impl Passwords {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }

    /// Returns whether the password is that of a hash. Without one it takes as long, and is wrong.
    pub(crate) async fn check(&self, password: Zeroizing<String>, hash: Option<String>) -> bool {
        let Ok(permit) = Arc::clone(&self.0).acquire_owned().await else {
            return false;
        };
        let checked = tokio::task::spawn_blocking(move || {
            // Whoever has stopped waiting does not let more than these run.
            let _permit = permit;
            if password.len() > MAX_PASSWORD_BYTES {
                return false;
            }
            let is_right = is_right(&password, hash.as_deref().unwrap_or(NOBODY));
            is_right && hash.is_some()
        });
        checked.await.unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_salted_and_names_its_parameters() {
        let (one, two) = (
            hash("correct horse").unwrap(),
            hash("correct horse").unwrap(),
        );
        assert_ne!(one, two);
        let parameters = "$argon2id$v=19$m=19456,t=2,p=1$";
        assert!(one.starts_with(parameters), "{one}");
        assert!(NOBODY.starts_with(parameters), "nobody is checked alike");
        assert!(is_right("correct horse", &one) && is_right("correct horse", &two));
        assert!(!is_right("correct horsf", &one));
    }

    #[test]
    fn nobody_is_checked_as_fully_as_somebody() {
        use argon2::password_hash::Error;
        // A text that cannot be read would be refused before any work.
        let refused = Argon2::default().verify_password(b"x", NOBODY).unwrap_err();
        assert!(matches!(refused, Error::PasswordInvalid), "{refused:?}");
    }

    #[tokio::test]
    async fn a_hash_is_no_password_and_nobody_has_one() {
        let passwords = Passwords::new();
        let stored = hash("correct horse").unwrap();
        let text = |text: &str| Zeroizing::new(text.to_owned());
        assert!(
            passwords
                .check(text("correct horse"), Some(stored.clone()))
                .await
        );
        assert!(!passwords.check(text(&stored), Some(stored.clone())).await);
        assert!(!passwords.check(text("correct horse"), None).await);
        let long = "x".repeat(MAX_PASSWORD_BYTES + 1);
        assert!(!passwords.check(text(&long), Some(stored)).await);
    }
}
