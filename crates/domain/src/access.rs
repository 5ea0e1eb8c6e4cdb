//! Who may administer what: permissions as data, and the one function that decides.
//!
//! Nothing is allowed that is not in the table of [`Permission`]: a role, and a reach that covers
//! what is acted on. A permission of the platform is never given by a role in a tenant.

use crate::id::TenantId;
use crate::tenant::Role;
use crate::words;

/// What a role is about, or what an act is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// The whole installation, with every tenant.
    Platform,
    /// One tenant and what belongs to it.
    Tenant(TenantId),
}

impl Reach {
    /// Wraps how it is stored: no tenant is the platform.
    pub const fn from_tenant(tenant_id: Option<TenantId>) -> Self {
        match tenant_id {
            Some(tenant_id) => Self::Tenant(tenant_id),
            None => Self::Platform,
        }
    }

    /// Returns the tenant; `None` is the platform.
    pub const fn tenant_id(self) -> Option<TenantId> {
        match self {
            Self::Tenant(tenant_id) => Some(tenant_id),
            Self::Platform => None,
        }
    }

    /// Returns whether all of `inner` lies inside.
    pub fn covers(self, inner: Self) -> bool {
        match self {
            Self::Platform => true,
            Self::Tenant(_) => self == inner,
        }
    }
}

/// One thing that may be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// See a tenant.
    TenantRead,
    /// Make, change and suspend tenants, and set what they may spend.
    TenantWrite,
    /// See the users of a tenant.
    UserRead,
    /// Make, change and suspend users.
    UserWrite,
    /// See proxy keys, without their secrets.
    KeyRead,
    /// Issue, change and revoke proxy keys.
    KeyWrite,
    /// See accounts and admin tokens.
    AccountRead,
    /// Make and change accounts and admin tokens that may do no more than their maker.
    AccountWrite,
    /// Read what admins did.
    AuditRead,
    /// Let an instance read its configuration again.
    Reload,
}

words!(Permission, "the names of permissions", {
    Permission::TenantRead => "tenant.read",
    Permission::TenantWrite => "tenant.write",
    Permission::UserRead => "user.read",
    Permission::UserWrite => "user.write",
    Permission::KeyRead => "key.read",
    Permission::KeyWrite => "key.write",
    Permission::AccountRead => "account.read",
    Permission::AccountWrite => "account.write",
    Permission::AuditRead => "audit.read",
    Permission::Reload => "reload",
});

impl Permission {
    /// Every permission.
    pub const ALL: [Self; 10] = [
        Self::TenantRead,
        Self::TenantWrite,
        Self::UserRead,
        Self::UserWrite,
        Self::KeyRead,
        Self::KeyWrite,
        Self::AccountRead,
        Self::AccountWrite,
        Self::AuditRead,
        Self::Reload,
    ];

    /// Returns the roles that have it.
    pub const fn roles(self) -> &'static [Role] {
        match self {
            Self::TenantRead => &[Role::Owner, Role::Admin, Role::Operator, Role::Finance],
            Self::UserRead | Self::KeyRead => &[Role::Owner, Role::Admin, Role::Finance],
            Self::TenantWrite
            | Self::UserWrite
            | Self::KeyWrite
            | Self::AccountRead
            | Self::AccountWrite
            | Self::AuditRead => &[Role::Owner, Role::Admin],
            Self::Reload => &[Role::Owner, Role::Admin, Role::Operator],
        }
    }

    /// Returns whether only roles on the platform have it. Whoever administers a tenant neither
    /// raises what it may spend nor ends its suspension.
    pub const fn is_of_platform(self) -> bool {
        matches!(self, Self::TenantWrite | Self::Reload)
    }
}

/// What a credential may do: a role on the platform or in one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rights {
    /// The role.
    pub role: Role,
    /// Where it holds.
    pub reach: Reach,
}

impl Rights {
    /// Returns whether these rights cover all of others: whoever has them may grant those.
    ///
    /// An owner covers every role, an admin every role but the owner's; the others grant nothing,
    /// so each covers itself alone.
    pub fn cover(self, other: Self) -> bool {
        let covers_role = match self.role {
            Role::Owner => true,
            Role::Admin => other.role != Role::Owner,
            Role::Operator | Role::Finance | Role::Member => other.role == self.role,
        };
        covers_role && self.reach.covers(other.reach)
    }
}

/// Decides whether `rights` allow a permission on a target.
///
/// A permission of the platform is decided by the platform whatever the target, so that nobody in
/// a tenant changes what bounds it.
pub fn allows(rights: Rights, permission: Permission, target: Reach) -> bool {
    let needed = if permission.is_of_platform() {
        Reach::Platform
    } else {
        target
    };
    permission.roles().contains(&rights.role) && rights.reach.covers(needed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::uuid_v7;

    const ROLES: [Role; 5] = [
        Role::Owner,
        Role::Admin,
        Role::Operator,
        Role::Finance,
        Role::Member,
    ];

    fn tenant(number: u8) -> Reach {
        Reach::Tenant(TenantId::from_uuid(uuid_v7(1, [number; 10])))
    }

    fn reaches() -> impl Strategy<Value = Reach> {
        prop_oneof![Just(Reach::Platform), (0_u8..3).prop_map(tenant)]
    }

    fn rights() -> impl Strategy<Value = Rights> {
        (prop::sample::select(&ROLES[..]), reaches())
            .prop_map(|(role, reach)| Rights { role, reach })
    }

    #[test]
    fn a_role_in_a_tenant_allows_nothing_elsewhere() {
        for permission in Permission::ALL {
            for role in ROLES {
                let reach = tenant(1);
                for other in [tenant(2), Reach::Platform] {
                    let rights = Rights { role, reach };
                    assert!(!allows(rights, permission, other), "{role} {permission}");
                }
            }
        }
    }

    #[test]
    fn what_bounds_a_tenant_is_changed_by_the_platform_alone() {
        let (role, target) = (Role::Owner, tenant(1));
        for permission in Permission::ALL {
            let own = Rights {
                role,
                reach: target,
            };
            assert_eq!(
                allows(own, permission, target),
                ![Permission::TenantWrite, Permission::Reload].contains(&permission),
                "{permission}"
            );
            let reach = Reach::Platform;
            assert!(allows(Rights { role, reach }, permission, target));
        }
    }

    #[test]
    fn a_member_administers_nothing() {
        let (role, reach) = (Role::Member, Reach::Platform);
        for permission in Permission::ALL {
            assert!(!allows(Rights { role, reach }, permission, reach));
        }
    }

    #[test]
    fn only_who_may_make_accounts_is_ever_asked_what_it_covers() {
        assert_eq!(
            Permission::AccountWrite.roles(),
            [Role::Owner, Role::Admin],
            "a role that may grant needs a rank in `cover`"
        );
        let reach = Reach::Platform;
        let of = |role| Rights { role, reach };
        assert!(of(Role::Owner).cover(of(Role::Owner)));
        assert!(of(Role::Admin).cover(of(Role::Admin)));
        assert!(!of(Role::Admin).cover(of(Role::Owner)));
        assert!(!of(Role::Finance).cover(of(Role::Member)));
    }

    #[test]
    fn permissions_have_distinct_words() {
        for permission in Permission::ALL {
            assert_eq!(permission.as_str().parse(), Ok(permission));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn a_child_may_never_do_what_its_creator_may_not(
            creator in rights(), child in rights(), target in reaches(),
            permission in prop::sample::select(&Permission::ALL[..]),
        ) {
            if creator.cover(child) {
                prop_assert!(!allows(child, permission, target) || allows(creator, permission, target));
            }
        }

        #[test]
        fn covering_is_passed_on(a in rights(), b in rights(), c in rights()) {
            prop_assert!(a.cover(a));
            prop_assert!(!(a.cover(b) && b.cover(c)) || a.cover(c));
        }
    }
}
