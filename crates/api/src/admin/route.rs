//! Who may call what. A handler takes an [`Authorized`] of its policy, which only this module makes:
//! an operation without a policy does not compile, and one is never called before its policy has
//! decided.

use std::future::Future;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::Value;
use sluice_domain::access::{Permission, Reach, Rights, allows};
use sluice_domain::account::{Account, SecretKind};
use sluice_domain::id::{AccountId, SessionId, TenantId};
use sluice_domain::tenant::EntityState;
use sluice_domain::time::UnixMillis;
use sluice_storage::Storage;
use sluice_storage::audit::{Actor, ActorKind};

use super::AdminState;
use super::problem::{Code, Problem};

/// Where the permission must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    /// On the platform.
    Platform,
    /// In the tenant whose id stands in the path as `{tenant_id}`.
    PathTenant,
    /// Wherever the caller's rights are; the handler sees nothing beyond.
    OwnReach,
}

/// What an operation asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A permission.
    Permission(Permission, Where),
    /// To be somebody.
    SignedIn,
}

/// A policy, as a type.
pub(crate) trait Policy: Send + Sync + 'static {
    const NEEDS: Needs;
}

/// Declares policies.
macro_rules! policies {
    ($($(#[$doc:meta])* $name:ident = $needs:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) enum $name {}

        impl Policy for $name {
            const NEEDS: Needs = $needs;
        }
    )*};
}

policies! {
    SignedIn = Needs::SignedIn;
    ListTenants = Needs::Permission(Permission::TenantRead, Where::OwnReach);
    CreateTenant = Needs::Permission(Permission::TenantWrite, Where::Platform);
    ReadTenant = Needs::Permission(Permission::TenantRead, Where::PathTenant);
    WriteTenant = Needs::Permission(Permission::TenantWrite, Where::PathTenant);
    ReadUsers = Needs::Permission(Permission::UserRead, Where::PathTenant);
    WriteUsers = Needs::Permission(Permission::UserWrite, Where::PathTenant);
    ReadKeys = Needs::Permission(Permission::KeyRead, Where::PathTenant);
    WriteKeys = Needs::Permission(Permission::KeyWrite, Where::PathTenant);
    ReadAudit = Needs::Permission(Permission::AuditRead, Where::OwnReach);
    ReadTokens = Needs::Permission(Permission::AccountRead, Where::OwnReach);
    WriteTokens = Needs::Permission(Permission::AccountWrite, Where::OwnReach);
    Reload = Needs::Permission(Permission::Reload, Where::Platform);
}

/// Somebody who has shown who they are.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) kind: ActorKind,
    pub(crate) name: String,
    pub(crate) account_id: AccountId,
    pub(crate) session_id: Option<SessionId>,
    pub(crate) rights: Rights,
    pub(crate) expires_at: UnixMillis,
}

/// The proof that a policy allows its caller an operation. Only this module makes one.
pub(crate) struct Authorized<P: Policy> {
    caller: Caller,
    reach: Reach,
    policy: PhantomData<P>,
}

impl<P: Policy> Authorized<P> {
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Returns where the permission holds: nothing beyond may be read or changed.
    pub(crate) fn reach(&self) -> Reach {
        self.reach
    }

    /// Returns the tenant of the path.
    ///
    /// # Errors
    /// 404 where the path has none.
    pub(crate) fn tenant_id(&self) -> Result<TenantId, Problem> {
        self.reach.tenant_id().ok_or_else(Problem::not_found)
    }

    /// Returns the storage for what this caller does.
    pub(crate) fn storage(&self, call: &Call) -> Storage {
        call.state.app.storage.acting(Actor {
            kind: self.caller.kind,
            name: self.caller.name.clone(),
            source: Some(call.source),
            now: call.now,
        })
    }
}

/// A request, as far as handlers need it.
pub(crate) struct Call {
    pub(crate) state: Arc<AdminState>,
    pub(crate) parameters: Vec<(&'static str, String)>,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) source: IpAddr,
    pub(crate) now: UnixMillis,
}

impl Call {
    /// Returns an id of the path.
    ///
    /// # Errors
    /// 404 when it is no id: it names nothing, as an unknown one does.
    pub(crate) fn id<T: std::str::FromStr>(&self, name: &str) -> Result<T, Problem> {
        let found = self.parameters.iter().find(|(key, _)| *key == name);
        found
            .and_then(|(_, text)| text.parse().ok())
            .ok_or_else(Problem::not_found)
    }
}

/// What an operation answers.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Option<Value>,
    pub(crate) etag: Option<HeaderValue>,
}

impl Answer {
    pub(crate) fn ok(body: Value) -> Self {
        Self {
            status: StatusCode::OK,
            body: Some(body),
            etag: None,
        }
    }

    pub(crate) fn created(body: Value) -> Self {
        Self {
            status: StatusCode::CREATED,
            ..Self::ok(body)
        }
    }

    pub(crate) fn nothing() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            body: None,
            etag: None,
        }
    }

    pub(crate) fn with_etag(mut self, etag: HeaderValue) -> Self {
        self.etag = Some(etag);
        self
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;
type Enter = Box<dyn Fn(Call) -> Answering + Send + Sync>;

/// One operation: how it is called, who may, and what it does.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// `None` is open to everybody.
    pub(crate) needs: Option<Needs>,
    enter: Enter,
}

impl Route {
    /// An operation with a policy, which is that of its handler's type.
    pub(crate) fn of<P, H, F>(method: &'static str, path: &'static str, handler: H) -> Self
    where
        P: Policy,
        H: Fn(Authorized<P>, Call) -> F + Send + Sync + Copy + 'static,
        F: Future<Output = Result<Answer, Problem>> + Send + 'static,
    {
        Self {
            method,
            path,
            needs: Some(P::NEEDS),
            enter: Box::new(move |call| {
                Box::pin(async move {
                    let authorized = authorize::<P>(&call).await?;
                    handler(authorized, call).await
                })
            }),
        }
    }

    /// An operation that is open to everybody who reaches the listener.
    pub(crate) fn open<H, F>(method: &'static str, path: &'static str, handler: H) -> Self
    where
        H: Fn(Call) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Answer, Problem>> + Send + 'static,
    {
        Self {
            method,
            path,
            needs: None,
            enter: Box::new(move |call| Box::pin(handler(call))),
        }
    }

    /// Returns the parameters of a path that is this one's.
    pub(crate) fn matches(&self, path: &str) -> Option<Vec<(&'static str, String)>> {
        let (mut own, mut theirs) = (self.path.split('/'), path.split('/'));
        let mut parameters = Vec::new();
        loop {
            match (own.next(), theirs.next()) {
                (None, None) => return Some(parameters),
                (Some(own), Some(theirs)) => {
                    let name = own.strip_prefix('{').and_then(|n| n.strip_suffix('}'));
                    match name {
                        Some(name) => parameters.push((name, theirs.to_owned())),
                        None if own == theirs => {}
                        None => return None,
                    }
                }
                _ => return None,
            }
        }
    }

    pub(crate) fn enter(&self, call: Call) -> Answering {
        (self.enter)(call)
    }
}

async fn authorize<P: Policy>(call: &Call) -> Result<Authorized<P>, Problem> {
    let caller = authenticate(call).await?;
    let reach = match P::NEEDS {
        Needs::SignedIn => caller.rights.reach,
        Needs::Permission(permission, place) => {
            let target = match place {
                Where::Platform => Reach::Platform,
                Where::OwnReach => caller.rights.reach,
                Where::PathTenant => Reach::Tenant(call.id("tenant_id")?),
            };
            // What is another tenant's is not there, whatever is asked of it.
            if place == Where::PathTenant && !caller.rights.reach.covers(target) {
                return Err(Problem::not_found());
            }
            if !allows(caller.rights, permission, target) {
                return Err(Problem::new(
                    Code::Forbidden,
                    format!(
                        "This needs the permission `{permission}`, which you do not have here."
                    ),
                ));
            }
            target
        }
    };
    Ok(Authorized {
        caller,
        reach,
        policy: PhantomData,
    })
}

/// Finds out who calls. Every request asks the database: what was revoked is refused at once, on
/// every instance.
async fn authenticate(call: &Call) -> Result<Caller, Problem> {
    let refused = || {
        Problem::new(
            Code::Unauthenticated,
            "Send a session token or an admin token in the header `Authorization: Bearer TOKEN`.",
        )
    };
    let mut values = call.headers.get_all(http::header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(refused());
    };
    let token = value.to_str().ok().and_then(bearer).ok_or_else(refused)?;
    let kind = SecretKind::of(token).map_err(|_mistyped| refused())?;
    let (storage, hash) = (&call.state.app.storage, call.state.hasher.hash(token));
    let is_active = |account: &Account| account.state == EntityState::Active;
    match kind {
        SecretKind::Session => {
            let found = storage.find_session(&hash, call.now).await?;
            let session = found
                .filter(|session| is_active(&session.account))
                .ok_or_else(refused)?;
            Ok(Caller {
                kind: ActorKind::Account(session.account.id),
                name: session.account.login.to_string(),
                account_id: session.account.id,
                session_id: Some(session.id),
                rights: session.account.rights,
                expires_at: session.expires_at,
            })
        }
        SecretKind::AdminToken => {
            let found = storage.find_token(&hash, call.now).await?;
            // A token never does more than its maker may by now.
            let found = found
                .filter(|f| is_active(&f.maker) && f.maker.rights.cover(f.token.rights))
                .ok_or_else(refused)?;
            Ok(Caller {
                kind: ActorKind::Token(found.token.id),
                name: found.token.name.to_string(),
                account_id: found.maker.id,
                session_id: None,
                rights: found.token.rights,
                expires_at: found.token.expires_at,
            })
        }
    }
}

/// Takes the token out of a header.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then_some(token.trim())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::routes;

    #[test]
    fn only_the_log_in_and_the_description_are_open_to_everybody() {
        let routes = routes();
        let open: Vec<_> = routes
            .iter()
            .filter(|route| route.needs.is_none())
            .map(|route| (route.method, route.path))
            .collect();
        assert_eq!(
            open,
            [
                ("POST", "/admin/v1/sessions"),
                ("GET", "/admin/v1/openapi.json")
            ]
        );
    }

    #[test]
    fn a_tenant_in_the_path_is_what_decides() {
        for route in routes() {
            let Some(Needs::Permission(_, place)) = route.needs else {
                continue;
            };
            assert_eq!(
                route.path.contains("{tenant_id}"),
                place == Where::PathTenant,
                "{} {}",
                route.method,
                route.path
            );
        }
    }

    #[test]
    fn every_operation_is_reached_by_one_route() {
        let routes = routes();
        let mut seen = BTreeSet::new();
        for route in &routes {
            assert!(seen.insert((route.method, route.path)), "{}", route.path);
            let path = route.path.replace(['{', '}'], "");
            let reached: Vec<_> = routes
                .iter()
                .filter(|other| other.method == route.method && other.matches(&path).is_some())
                .map(|other| other.path)
                .collect();
            assert_eq!(reached, [route.path]);
        }
    }

    #[test]
    fn a_path_is_matched_as_it_is_written() {
        let routes = routes();
        let is_known = |path: &str| routes.iter().any(|route| route.matches(path).is_some());
        assert!(is_known("/admin/v1/tenants"));
        for path in [
            "//admin/v1/tenants",
            "/admin/v1/tenants/",
            "/admin/v1/../v1/me",
            "/ADMIN/v1/me",
            "/admin/v1/%6de",
            "",
        ] {
            let found = routes.iter().find_map(|route| route.matches(path));
            // A trailing slash names a tenant with an empty id, which is none.
            assert!(found.is_none_or(|p| p[0].1.is_empty()), "{path}");
        }
    }

    #[test]
    fn a_bearer_is_read_in_one_way() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc"), Some("abc"));
        for bad in ["abc", "Basic abc", ""] {
            assert_eq!(bearer(bad), None);
        }
    }
}
