//! Who administers, and what is written down of it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use sluice_domain::access::{Reach, Rights};
use sluice_domain::id::{AccountId, AdminTokenId, SessionId, TenantId};
use sluice_domain::ports::StoreError;
use sluice_domain::quota::{Scope, ScopeKind};
use sluice_domain::tenant::{EntityState, Role};
use sluice_domain::time::UnixMillis;
use sluice_storage::account::NewAccount;
use sluice_storage::admin_token::NewAdminToken;
use sluice_storage::audit::{Actor, ActorKind, Updated};
use sluice_storage::key::ProxyKeyUpdate;
use sluice_storage::session::NewSession;
use sluice_storage::tenant::TenantUpdate;
use sluice_storage::user::UserUpdate;
use sluice_storage::{Storage, StorageOptions};

use crate::fixture::{Database, NOW, hash, id, new_key, new_user};

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA";

fn rights(role: Role, tenant_id: Option<TenantId>) -> Rights {
    Rights {
        role,
        reach: Reach::from_tenant(tenant_id),
    }
}

fn actor() -> Actor {
    Actor {
        kind: ActorKind::Account(AccountId::from_uuid(id())),
        name: "ann".to_owned(),
        source: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        now: NOW,
    }
}

async fn account(storage: &Storage, login: &str, tenant_id: Option<TenantId>) -> AccountId {
    let new = NewAccount {
        id: AccountId::from_uuid(id()),
        login: login.parse().unwrap(),
        rights: rights(Role::Admin, tenant_id),
        password_hash: HASH.to_owned(),
        now: NOW,
    };
    let id = new.id;
    assert!(storage.create_account(new).await.unwrap());
    id
}

async fn session(storage: &Storage, account_id: AccountId, token: &str) -> SessionId {
    let new = NewSession {
        id: SessionId::from_uuid(id()),
        account_id,
        token_hash: hash(token),
        expires_at: UnixMillis(NOW.0 + 1_000),
        now: NOW,
    };
    storage.open_session(new).await.unwrap();
    new.id
}

async fn an_account_is_found_by_its_login_while_it_is_there(database: &Database) {
    let storage = &database.storage;
    let acme = database.tenant("acme").await;
    let ann = account(storage, "Ann@acme", Some(acme.id)).await;
    let login = "ann@ACME".parse().unwrap();
    let found = storage
        .find_account_by_login(&login)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.account.id, ann);
    assert_eq!(found.account.rights, rights(Role::Admin, Some(acme.id)));
    assert_eq!(found.account.state, EntityState::Active);
    assert_eq!(found.password_hash, HASH);
    let again = NewAccount {
        id: AccountId::from_uuid(id()),
        login: login.clone(),
        rights: rights(Role::Owner, None),
        password_hash: HASH.to_owned(),
        now: NOW,
    };
    let error = storage.create_account(again.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Conflict { .. }), "{error:?}");
    let ghost = NewAccount {
        rights: rights(Role::Owner, Some(TenantId::from_uuid(id()))),
        login: "ghost".parse().unwrap(),
        ..again
    };
    assert!(!storage.create_account(ghost).await.unwrap());
    // Who is of a tenant takes part while it does.
    storage
        .set_tenant_state(acme.id, EntityState::Disabled)
        .await
        .unwrap();
    let found = storage
        .find_account_by_login(&login)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.account.state, EntityState::Disabled);
    storage
        .set_account_state(ann, EntityState::Deleted)
        .await
        .unwrap();
    assert!(
        storage
            .find_account_by_login(&login)
            .await
            .unwrap()
            .is_none()
    );
    assert!(
        !storage
            .set_account_state(ann, EntityState::Active)
            .await
            .unwrap()
    );
}

async fn a_session_ends_by_time_by_log_out_and_by_a_new_password(database: &Database) {
    let storage = &database.storage;
    let ann = account(storage, "ann", None).await;
    let ben = account(storage, "ben", None).await;
    let first = session(storage, ann, "one").await;
    session(storage, ann, "two").await;
    session(storage, ben, "three").await;
    let find = async |token: &str, at: i64| {
        let found = storage
            .find_session(&hash(token), UnixMillis(NOW.0 + at))
            .await;
        found.unwrap().map(|session| session.account.id)
    };
    assert_eq!(find("one", 999).await, Some(ann));
    assert_eq!(find("one", 1_000).await, None, "it has run out");
    assert_eq!(find("other", 0).await, None);
    assert!(!storage.end_session(ben, first).await.unwrap());
    assert_eq!(find("one", 0).await, Some(ann), "another's is not ended");
    assert!(storage.end_session(ann, first).await.unwrap());
    assert_eq!(find("one", 0).await, None);
    assert_eq!(find("two", 0).await, Some(ann));
    assert!(storage.set_password(ann, HASH).await.unwrap());
    assert_eq!(find("two", 0).await, None);
    assert_eq!(find("three", 0).await, Some(ben));
    storage
        .set_account_state(ben, EntityState::Disabled)
        .await
        .unwrap();
    assert_eq!(find("three", 0).await, None);
}

async fn a_token_is_found_until_it_ends_or_is_revoked(database: &Database) {
    let storage = &database.storage;
    let (acme, other) = (
        database.tenant("acme").await,
        database.tenant("other").await,
    );
    let ann = account(storage, "ann", None).await;
    let new = NewAdminToken {
        id: AdminTokenId::from_uuid(id()),
        account_id: ann,
        rights: rights(Role::Finance, Some(acme.id)),
        name: "report".parse().unwrap(),
        token_hash: hash("report"),
        hint: "…abcd".to_owned(),
        expires_at: UnixMillis(NOW.0 + 1_000),
        now: NOW,
    };
    storage.issue_token(new.clone()).await.unwrap();
    let find = async |at: i64| {
        let found = storage
            .find_token(&hash("report"), UnixMillis(NOW.0 + at))
            .await;
        found.unwrap()
    };
    let found = find(999).await.unwrap();
    assert_eq!(found.token.rights, new.rights);
    assert_eq!((found.maker.id, found.token.id), (ann, new.id));
    assert!(find(1_000).await.is_none());
    let list = async |tenant| storage.list_tokens(tenant, None, 10).await.unwrap().len();
    assert_eq!(list(None).await, 1);
    assert_eq!(list(Some(acme.id)).await, 1);
    assert_eq!(list(Some(other.id)).await, 0);
    let revoke = async |role, tenant| {
        let by = rights(role, tenant);
        storage.revoke_token(by, new.id, NOW).await.unwrap()
    };
    assert!(!revoke(Role::Owner, Some(other.id)).await);
    assert!(!revoke(Role::Operator, None).await);
    assert!(
        find(0).await.is_some(),
        "neither another tenant nor a lesser role revokes it"
    );
    assert!(revoke(Role::Admin, Some(acme.id)).await);
    assert!(find(0).await.is_none());
    assert!(!revoke(Role::Owner, None).await, "once is enough");
}

async fn a_change_is_made_only_of_what_is_expected_in_the_own_tenant(database: &Database) {
    let storage = &database.storage;
    let mine = database.account("acme").await;
    let other = database.tenant("other").await;
    let user = UserUpdate {
        quota_tokens: Some(Some(5)),
        ..UserUpdate::default()
    };
    let key = ProxyKeyUpdate {
        allowed_models: Some(None),
        may_pin: Some(true),
        ..ProxyKeyUpdate::default()
    };
    let (user_id, key_id) = (mine.user.id, mine.key.id);
    let updated = storage
        .update_user(other.id, user_id, user, &|_| true, NOW)
        .await;
    assert!(matches!(updated.unwrap(), Updated::Absent));
    let updated = storage
        .update_key(other.id, key_id, key.clone(), &|_| true, NOW)
        .await;
    assert!(matches!(updated.unwrap(), Updated::Absent));
    let updated = storage
        .update_user(mine.tenant.id, user_id, user, &|_| false, NOW)
        .await;
    assert!(matches!(updated.unwrap(), Updated::Unexpected));
    let tenant = TenantUpdate {
        state: Some(EntityState::Disabled),
        quota_tokens: None,
    };
    let updated = storage
        .update_tenant(mine.tenant.id, tenant, &|_| false, NOW)
        .await;
    assert!(matches!(updated.unwrap(), Updated::Unexpected));
    let updated = storage
        .update_key(mine.tenant.id, key_id, key.clone(), &|_| false, NOW)
        .await;
    assert!(matches!(updated.unwrap(), Updated::Unexpected));
    assert!(
        storage
            .find_user(other.id, user_id)
            .await
            .unwrap()
            .is_none()
    );
    let found = storage
        .find_user(mine.tenant.id, user_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.quota_tokens, None, "nothing was changed so far");
    assert!(!storage.find_key(key_id).await.unwrap().unwrap().may_pin);
    let is_without_quota = |user: &sluice_domain::tenant::User| user.quota_tokens.is_none();
    let updated = storage
        .update_user(mine.tenant.id, user_id, user, &is_without_quota, NOW)
        .await;
    let Updated::Done(made) = updated.unwrap() else {
        panic!("the user is as expected");
    };
    let found = storage
        .find_user(mine.tenant.id, user_id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((made.quota_tokens, found.quota_tokens), (Some(5), Some(5)));
    assert_eq!(found.state, EntityState::Active, "what is not named stays");
    let updated = storage
        .update_key(mine.tenant.id, key_id, key, &|_| true, NOW)
        .await;
    assert!(matches!(updated.unwrap(), Updated::Done(_)));
    let found = storage.find_key(key_id).await.unwrap().unwrap();
    assert_eq!((found.may_pin, found.allowed_models), (true, None));
    assert_eq!(found.expires_at, mine.key.expires_at);
}

/// Does one of everything that an admin can do to tenants, users and keys; returns the tenant.
async fn act_on_everything(storage: &Storage, database: &Database) -> TenantId {
    let tenant = database.tenant("quiet").await;
    let user = storage
        .create_user(new_user(&tenant, "anna"))
        .await
        .unwrap()
        .unwrap();
    let key = storage
        .insert_key(new_key(&user, "sk-a-key-0001"))
        .await
        .unwrap()
        .unwrap();
    let scope = Scope {
        kind: ScopeKind::Key,
        id: key.id.as_uuid(),
    };
    storage
        .set_quota(scope, tenant.id, Some(7), NOW)
        .await
        .unwrap();
    storage.set_key_pin(key.id, true).await.unwrap();
    storage
        .set_key_state(key.id, EntityState::Deleted)
        .await
        .unwrap();
    storage
        .set_user_state(tenant.id, user.id, EntityState::Disabled)
        .await
        .unwrap();
    storage
        .set_tenant_state(tenant.id, EntityState::Disabled)
        .await
        .unwrap();
    let ann = account(storage, "ann", Some(tenant.id)).await;
    let opened = session(storage, ann, "token").await;
    storage.end_session(ann, opened).await.unwrap();
    tenant.id
}

async fn what_somebody_does_is_an_event_with_what_was_before(database: &Database) {
    let other = database.tenant("other").await;
    let acting = database.storage.acting(actor());
    let tenant_id = act_on_everything(&acting, database).await;
    let events = acting
        .list_audit_events(Some(tenant_id), None, 100)
        .await
        .unwrap();
    let actions: Vec<&str> = events.iter().rev().map(|e| e.action.as_str()).collect();
    assert_eq!(
        actions,
        [
            "user.create",
            "key.issue",
            "quota.set",
            "key.update",
            "key.update",
            "user.update",
            "tenant.update",
            "account.create",
            "session.open",
            "session.end",
        ],
        "the tenant itself was made by nobody"
    );
    let pin = &events[6];
    assert_eq!(pin.before.as_ref().unwrap()["may_pin"], false);
    assert_eq!(pin.after.as_ref().unwrap()["may_pin"], true);
    assert_eq!((pin.at, pin.actor_name.as_str()), (NOW, "ann"));
    assert_eq!(pin.source.as_deref(), Some("127.0.0.1"));
    let page = acting
        .list_audit_events(None, Some(events[1].seq), 2)
        .await
        .unwrap();
    assert_eq!(page.iter().map(|e| e.seq).collect::<Vec<_>>(), [8, 7]);
    let foreign = acting
        .list_audit_events(Some(other.id), None, 10)
        .await
        .unwrap();
    assert!(foreign.is_empty(), "{foreign:?}");
    assert_eq!(acting.check_audit_chain().await.unwrap(), None);
    // Secrets and their hashes are nowhere in it.
    let text = format!("{events:?}");
    assert!(
        !text.contains("argon2") && !text.contains("sk-a-key"),
        "{text}"
    );
}

async fn a_change_that_is_refused_is_no_event(database: &Database) {
    let acting = database.storage.acting(actor());
    database.tenant("acme").await;
    let again = sluice_storage::tenant::NewTenant {
        id: TenantId::from_uuid(id()),
        name: "acme".parse().unwrap(),
        time_zone: sluice_domain::time::TimeZone::utc(),
        quota_tokens: None,
        now: NOW,
    };
    assert!(acting.create_tenant(again).await.is_err());
    assert!(
        acting
            .list_audit_events(None, None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(acting.check_audit_chain().await.unwrap(), None);
}

async fn several_processes_write_one_chain(database: &Database) {
    const WRITERS: usize = 4;
    const ACTS: usize = 8;
    let tenant = database.tenant("acme").await;
    let user = database.user(&tenant, "anna").await;
    let mut tasks = Vec::new();
    for _ in 0..WRITERS {
        let options = StorageOptions {
            url: database.url.clone(),
            max_connections: 2,
        };
        let storage = Storage::open(&options).await.unwrap().acting(actor());
        let (tenant_id, user_id) = (tenant.id, user.id);
        tasks.push(tokio::spawn(async move {
            for _ in 0..ACTS {
                // What was read is what is changed: an update that is lost would leave a gap.
                let found = storage
                    .find_user(tenant_id, user_id)
                    .await
                    .unwrap()
                    .unwrap();
                let mut seen = found.quota_tokens;
                loop {
                    let update = UserUpdate {
                        quota_tokens: Some(Some(seen.unwrap_or(0) + 1)),
                        state: None,
                    };
                    let expected = seen;
                    let is_expected =
                        move |user: &sluice_domain::tenant::User| user.quota_tokens == expected;
                    let updated = storage
                        .update_user(tenant_id, user_id, update, &is_expected, NOW)
                        .await;
                    match updated.unwrap() {
                        Updated::Done(_) => break,
                        Updated::Unexpected => {
                            let found = storage
                                .find_user(tenant_id, user_id)
                                .await
                                .unwrap()
                                .unwrap();
                            seen = found.quota_tokens;
                        }
                        Updated::Absent => panic!("the user is there"),
                    }
                }
            }
            storage.close().await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let storage = &database.storage;
    let total = i64::try_from(WRITERS * ACTS).unwrap();
    let found = storage
        .find_user(tenant.id, user.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.quota_tokens, Some(total), "no change was lost");
    let events = storage.list_audit_events(None, None, 200).await.unwrap();
    let numbers: BTreeSet<i64> = events.iter().map(|event| event.seq).collect();
    assert_eq!(numbers, (1..=total).collect());
    assert_eq!(storage.check_audit_chain().await.unwrap(), None);
}

async fn a_chain_that_was_tampered_with_is_found(database: &Database) {
    let acting = database.storage.acting(actor());
    act_on_everything(&acting, database).await;
    let changes = [
        "UPDATE audit_events SET actor_name = 'ben' WHERE seq = 3",
        "DELETE FROM audit_events WHERE seq = 3",
        "DELETE FROM audit_events WHERE seq = (SELECT MAX(seq) FROM audit_events)",
    ];
    for change in changes {
        let refused = database.execute(change).await;
        assert!(refused.is_err(), "{change}");
    }
    database.unprotect_audit().await;
    // The last one first: it leaves the others their places.
    assert_eq!(database.execute(changes[2]).await.unwrap(), 1);
    assert_eq!(acting.check_audit_chain().await.unwrap(), Some(10));
    assert_eq!(database.execute(changes[0]).await.unwrap(), 1);
    assert_eq!(acting.check_audit_chain().await.unwrap(), Some(3));
    assert_eq!(database.execute(changes[1]).await.unwrap(), 1);
    assert_eq!(acting.check_audit_chain().await.unwrap(), Some(3));
}

on_both! {
    an_account_is_found_by_its_login_while_it_is_there,
    a_session_ends_by_time_by_log_out_and_by_a_new_password,
    a_token_is_found_until_it_ends_or_is_revoked,
    a_change_is_made_only_of_what_is_expected_in_the_own_tenant,
    what_somebody_does_is_an_event_with_what_was_before,
    a_change_that_is_refused_is_no_event,
    several_processes_write_one_chain,
    a_chain_that_was_tampered_with_is_found,
}
