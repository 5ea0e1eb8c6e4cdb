//! The admin API: who administers over HTTP, and what.
//!
//! It has a listener of its own, on the thread that owns the database's connections: what admins do
//! takes nothing from the threads that relay, and a proxy that forwards the relay's port cannot
//! forward this by accident.
//!
//! Modules in reading order: `route` (who may call what, by type), `problem` and `fields` (what
//! answers and bodies look like), `listener`; `password` and `throttle` (what guards the log-in);
//! then the operations, a file for each resource.
//!
//! To add an operation, write its handler with the policy in its type, and a line in [`routes`]. The
//! router, its description and the test of who may call what follow from that table.

pub(crate) mod audit;
pub(crate) mod fields;
pub(crate) mod key;
pub(crate) mod listener;
pub(crate) mod openapi;
pub(crate) mod page;
pub(crate) mod password;
pub(crate) mod problem;
pub(crate) mod reload;
pub(crate) mod route;
pub(crate) mod session;
pub(crate) mod tenant;
pub(crate) mod throttle;
pub(crate) mod token;
pub(crate) mod user;

use std::sync::Arc;

use sluice_domain::key::KeyHasher;

use self::password::Passwords;
use self::route::Route;
use self::throttle::Throttle;
use crate::app::App;

/// What all admin operations share.
pub(crate) struct AdminState {
    pub(crate) app: Arc<App>,
    pub(crate) hasher: KeyHasher,
    pub(crate) passwords: Passwords,
    pub(crate) throttle: Throttle,
}

impl AdminState {
    pub(crate) fn new(app: Arc<App>, hasher: KeyHasher) -> Self {
        Self {
            app,
            hasher,
            passwords: Passwords::new(),
            throttle: Throttle::new(),
        }
    }
}

/// Every operation.
pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::open("POST", "/admin/v1/sessions", session::log_in),
        Route::open("GET", "/admin/v1/openapi.json", openapi::get),
        Route::of("DELETE", "/admin/v1/sessions/current", session::log_out),
        Route::of("GET", "/admin/v1/me", session::me),
        Route::of("GET", "/admin/v1/tenants", tenant::list),
        Route::of("POST", "/admin/v1/tenants", tenant::create),
        Route::of("GET", "/admin/v1/tenants/{tenant_id}", tenant::get),
        Route::of("PATCH", "/admin/v1/tenants/{tenant_id}", tenant::update),
        Route::of("GET", "/admin/v1/tenants/{tenant_id}/users", user::list),
        Route::of("POST", "/admin/v1/tenants/{tenant_id}/users", user::create),
        Route::of(
            "GET",
            "/admin/v1/tenants/{tenant_id}/users/{user_id}",
            user::get,
        ),
        Route::of(
            "PATCH",
            "/admin/v1/tenants/{tenant_id}/users/{user_id}",
            user::update,
        ),
        Route::of("GET", "/admin/v1/tenants/{tenant_id}/keys", key::list),
        Route::of("POST", "/admin/v1/tenants/{tenant_id}/keys", key::issue),
        Route::of(
            "GET",
            "/admin/v1/tenants/{tenant_id}/keys/{key_id}",
            key::get,
        ),
        Route::of(
            "PATCH",
            "/admin/v1/tenants/{tenant_id}/keys/{key_id}",
            key::update,
        ),
        Route::of(
            "POST",
            "/admin/v1/tenants/{tenant_id}/keys/{key_id}/revoke",
            key::revoke,
        ),
        Route::of("GET", "/admin/v1/admin_tokens", token::list),
        Route::of("POST", "/admin/v1/admin_tokens", token::issue),
        Route::of(
            "POST",
            "/admin/v1/admin_tokens/{token_id}/revoke",
            token::revoke,
        ),
        Route::of("GET", "/admin/v1/audit_events", audit::list),
        Route::of("POST", "/admin/v1/reload", reload::reload),
        Route::of("POST", "/admin/reload-keys", reload::reload),
    ]
}
