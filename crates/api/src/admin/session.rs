//! Log-in, log-out, and who one is.

use std::time::Duration;

use serde_json::{Value, json};
use sluice_domain::access::{Permission, Rights, allows};
use sluice_domain::account::{AdminSecret, LoginName, SecretKind};
use sluice_domain::id::SessionId;
use sluice_domain::tenant::EntityState;
use sluice_domain::time::UnixMillis;
use sluice_storage::audit::{Actor, ActorKind};
use sluice_storage::session::NewSession;
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::fields::Fields;
use super::problem::{Code, Problem};
use super::route::{Answer, Authorized, Call, SignedIn};
use crate::data_folder::random_bytes;
use crate::ids::new_uuid_at;

/// How long a session lasts.
const SESSION: Duration = Duration::from_hours(12);

/// `POST /admin/v1/sessions`
pub(crate) async fn log_in(call: Call) -> Result<Answer, Problem> {
    let mut fields = Fields::read(&call.body)?;
    let login = fields.parsed::<LoginName>("login");
    let password = fields.text("password").map(Zeroizing::new);
    let (login, password) = fields.finish(login.zip(password))?;

    let state = &call.state;
    let tried = state
        .throttle
        .begin(call.source, &login, Instant::now())
        .map_err(|pause| {
            Problem::new(
                Code::TooManyLogIns,
                "There were too many log-ins that failed.",
            )
            .retry_after(pause)
        })?;
    let found = state.app.storage.find_account_by_login(&login).await?;
    let hash = found.as_ref().map(|found| found.password_hash.clone());
    let is_right = state.passwords.check(password, hash).await;
    let account = found
        .filter(|found| is_right && found.account.state == EntityState::Active)
        .map(|found| found.account)
        .ok_or_else(|| {
            // One answer, so that names cannot be told apart.
            Problem::new(
                Code::LogInFailed,
                "The login name or the password is wrong.",
            )
        })?;
    state.throttle.succeeded(&tried);

    let random = random_bytes().map_err(|error| {
        Problem::new(Code::InternalError, "There are no random bytes.").cause(error)
    })?;
    let secret = AdminSecret::generate(SecretKind::Session, *random);
    let lasts = i64::try_from(SESSION.as_millis()).unwrap_or(0);
    let expires_at = UnixMillis(call.now.0.saturating_add(lasts));
    let storage = state.app.storage.acting(Actor {
        kind: ActorKind::Account(account.id),
        name: account.login.to_string(),
        source: Some(call.source),
        now: call.now,
    });
    storage
        .open_session(NewSession {
            id: SessionId::from_uuid(new_uuid_at(call.now)),
            account_id: account.id,
            token_hash: state.hasher.hash(secret.expose()),
            expires_at,
            now: call.now,
        })
        .await?;
    Ok(Answer::created(json!({
        "token": secret.expose(),
        "expires_at": expires_at.to_rfc3339(),
        "account_id": account.id.to_string(),
    })))
}

/// `DELETE /admin/v1/sessions/current`
pub(crate) async fn log_out(by: Authorized<SignedIn>, call: Call) -> Result<Answer, Problem> {
    let caller = by.caller();
    let Some(session_id) = caller.session_id else {
        return Err(Problem::new(
            Code::Forbidden,
            "An admin token is not logged in; revoke it instead.",
        ));
    };
    by.storage(&call)
        .end_session(caller.account_id, session_id)
        .await?;
    Ok(Answer::nothing())
}

/// `GET /admin/v1/me`
pub(crate) async fn me(by: Authorized<SignedIn>, _call: Call) -> Result<Answer, Problem> {
    let caller = by.caller();
    let Rights { role, reach } = caller.rights;
    let permissions = Permission::ALL
        .into_iter()
        .filter(|permission| allows(caller.rights, *permission, reach))
        .map(|permission| Value::from(permission.as_str()));
    Ok(Answer::ok(json!({
        "account_id": caller.account_id.to_string(),
        "name": caller.name,
        "credential": if caller.session_id.is_some() { "session" } else { "admin_token" },
        "role": role.as_str(),
        "tenant_id": reach.tenant_id().map(|id| id.to_string()),
        "permissions": permissions.collect::<Vec<_>>(),
        "expires_at": caller.expires_at.to_rfc3339(),
    })))
}
