//! Quotas: what a scope may use in a calendar month.

use uuid::Uuid;

use crate::id::{ProxyKeyId, TenantId, UserId};
use crate::time::Month;
use crate::words;

/// What a counter counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ScopeKind {
    /// A tenant.
    Tenant,
    /// A user.
    User,
    /// A proxy key.
    Key,
}

words!(ScopeKind, "tenant, user, key", {
    ScopeKind::Tenant => "tenant",
    ScopeKind::User => "user",
    ScopeKind::Key => "key",
});

/// One tenant, user or proxy key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    /// What it is.
    pub kind: ScopeKind,
    /// Which one.
    pub id: Uuid,
}

/// The three scopes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Payer {
    /// The tenant.
    pub tenant_id: TenantId,
    /// The user.
    pub user_id: UserId,
    /// The proxy key.
    pub key_id: ProxyKeyId,
}

impl Payer {
    /// Returns its scopes; the tenant's comes first.
    pub fn scopes(&self) -> [Scope; 3] {
        [
            Scope {
                kind: ScopeKind::Tenant,
                id: self.tenant_id.as_uuid(),
            },
            Scope {
                kind: ScopeKind::User,
                id: self.user_id.as_uuid(),
            },
            Scope {
                kind: ScopeKind::Key,
                id: self.key_id.as_uuid(),
            },
        ]
    }
}

/// A counter as the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterBalance {
    /// Its scope.
    pub scope: Scope,
    /// Its month.
    pub month: Month,
    /// Tokens that may be used; `None` is without a cap.
    pub cap_tokens: Option<i64>,
    /// Tokens used.
    pub used_tokens: i64,
}

/// Returns whether a month's tokens are spent.
pub fn is_spent(cap_tokens: Option<i64>, used_tokens: i64) -> bool {
    cap_tokens.is_some_and(|cap| used_tokens >= cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_of_zero_is_spent_at_once_and_no_cap_never_is() {
        assert!(is_spent(Some(0), 0));
        assert!(!is_spent(Some(10), 9));
        assert!(is_spent(Some(10), 10));
        assert!(!is_spent(None, i64::MAX));
    }
}
