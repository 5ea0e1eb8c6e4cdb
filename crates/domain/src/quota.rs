//! Quotas: what a scope may use in a calendar month.

use std::hash::{Hash, Hasher};

use uuid::Uuid;

use crate::id::{ProxyKeyId, TenantId, UserId};
use crate::time::Month;
use crate::usage::MAX_AMOUNT;
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

    /// Returns its counters of a month, in the order of [`scopes`](Self::scopes).
    pub fn counters(&self, month: Month) -> [CounterKey; 3] {
        self.scopes().map(|scope| CounterKey {
            tenant_id: self.tenant_id,
            scope,
            month,
        })
    }
}

/// Tokens and money side by side.
///
/// # Units
/// Tokens, and billionths of the ledger's currency. Sums saturate at ±[`MAX_AMOUNT`], which no
/// quota reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Amounts {
    /// Tokens.
    pub tokens: i64,
    /// Billionths of the ledger's currency.
    pub nano: i64,
}

impl Amounts {
    /// Nothing of either.
    pub const ZERO: Self = Self { tokens: 0, nano: 0 };

    /// Returns tokens without money.
    pub const fn tokens(tokens: i64) -> Self {
        Self { tokens, nano: 0 }
    }

    /// Returns the result of a function of each unit.
    #[must_use]
    pub fn zip(self, other: Self, f: impl Fn(i64, i64) -> i64) -> Self {
        Self {
            tokens: f(self.tokens, other.tokens),
            nano: f(self.nano, other.nano),
        }
    }

    /// Returns the sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| {
            a.saturating_add(b).clamp(-MAX_AMOUNT, MAX_AMOUNT)
        })
    }

    /// Returns the difference; it may be negative.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| {
            a.saturating_sub(b).clamp(-MAX_AMOUNT, MAX_AMOUNT)
        })
    }

    /// Returns the smaller of each unit.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        self.zip(other, i64::min)
    }

    /// Returns the larger of each unit.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        self.zip(other, i64::max)
    }

    /// Returns whether both units are zero.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// Returns whether both units are at most those of `room`.
    pub fn fits(self, room: Self) -> bool {
        self.tokens <= room.tokens && self.nano <= room.nano
    }
}

/// What a counter may come to in its month; `None` is without a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cap {
    /// Tokens.
    pub tokens: Option<i64>,
    /// Billionths of the ledger's currency.
    pub nano: Option<i64>,
}

impl Cap {
    /// Returns whether there is a cap in any unit.
    pub fn is_set(self) -> bool {
        self.tokens.is_some() || self.nano.is_some()
    }

    /// Returns the caps as amounts; a unit without one is [`MAX_AMOUNT`].
    pub fn amounts(self) -> Amounts {
        Amounts {
            tokens: self.tokens.unwrap_or(MAX_AMOUNT),
            nano: self.nano.unwrap_or(MAX_AMOUNT),
        }
    }
}

/// Some of the three kinds of scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ScopeSet(u8);

impl ScopeSet {
    /// Returns the set with a further kind.
    #[must_use]
    pub const fn with(self, kind: ScopeKind) -> Self {
        Self(self.0 | Self::bit(kind))
    }

    /// Returns whether a kind is in the set.
    pub const fn contains(self, kind: ScopeKind) -> bool {
        self.0 & Self::bit(kind) != 0
    }

    /// Returns the set as bits: tenant 1, user 2, key 4.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Reads [`bits`](Self::bits); unknown bits are dropped.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0b111)
    }

    const fn bit(kind: ScopeKind) -> u8 {
        match kind {
            ScopeKind::Tenant => 1,
            ScopeKind::User => 2,
            ScopeKind::Key => 4,
        }
    }
}

/// Which counter: a scope's of one month. The order is the one in which counters are locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CounterKey {
    /// The tenant that the scope belongs to.
    pub tenant_id: TenantId,
    /// Its scope.
    pub scope: Scope,
    /// Its month.
    pub month: Month,
}

impl Hash for CounterKey {
    /// The id of the scope and the month tell counters apart; the rest follows from them.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (high, low) = self.scope.id.as_u64_pair();
        state.write_u64(high ^ u64::from(self.month.as_number().unsigned_abs()));
        state.write_u64(low);
    }
}

/// A counter as the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterBalance {
    /// Which one.
    pub key: CounterKey,
    /// What it may come to.
    pub cap: Cap,
    /// What was charged, exposures included.
    pub used: Amounts,
    /// The sum of its leases.
    pub held: Amounts,
}

impl CounterBalance {
    /// Returns what may still be leased: the cap less what is used and held. Negative when the cap
    /// was lowered below that.
    pub fn room(&self) -> Amounts {
        self.cap.amounts().minus(self.used).minus(self.held)
    }

    /// Returns what nobody has used: the cap less what is used.
    pub fn unused(&self) -> Amounts {
        self.cap.amounts().minus(self.used)
    }
}

/// What one instance may spend of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The counter.
    pub key: CounterKey,
    /// How much.
    pub held: Amounts,
}

/// The terms of a hold, fixed at admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldTerms {
    /// An upper bound of the whole charge; a tenant is never charged more.
    pub bound: Amounts,
    /// The scopes whose leases the bound was taken from.
    pub leased: ScopeSet,
    /// What the input is likely to cost, for a request whose end nobody saw.
    ///
    /// # Units
    /// Tokens.
    pub input_estimate: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_at_most_the_room_in_both_units() {
        let room = Amounts {
            tokens: 10,
            nano: 5,
        };
        assert!(
            Amounts {
                tokens: 10,
                nano: 5
            }
            .fits(room)
        );
        assert!(
            !Amounts {
                tokens: 11,
                nano: 0
            }
            .fits(room)
        );
        assert!(!Amounts { tokens: 0, nano: 6 }.fits(room));
    }

    #[test]
    fn no_cap_has_more_room_than_any_sum_needs() {
        let open = Cap::default().amounts();
        assert!(
            Amounts {
                tokens: MAX_AMOUNT,
                nano: MAX_AMOUNT
            }
            .fits(open)
        );
        assert_eq!(open.plus(open), open, "sums saturate");
    }

    #[test]
    fn a_set_of_scopes_survives_its_bits() {
        let set = ScopeSet::default()
            .with(ScopeKind::Tenant)
            .with(ScopeKind::Key);
        assert!(set.contains(ScopeKind::Tenant) && set.contains(ScopeKind::Key));
        assert!(!set.contains(ScopeKind::User));
        assert_eq!(ScopeSet::from_bits(set.bits()), set);
    }
}
