//! The admin API as admins, programs and those who should not meet it.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use sluice_domain::access::{Permission, Reach, Rights, allows};
use sluice_domain::account::{AdminSecret, SecretKind};
use sluice_domain::id::{AccountId, AdminTokenId, SessionId, TenantId, uuid_v7};
use sluice_domain::key::Pepper;
use sluice_domain::tenant::Role;
use sluice_domain::time::UnixMillis;
use sluice_storage::Storage;
use sluice_storage::account::NewAccount;
use sluice_storage::admin_token::NewAdminToken;
use sluice_storage::session::NewSession;
use sluice_testkit::{Request, Response, RunningProcess, call};

use crate::deployment::{
    Deployment, PATIENCE, Relay, TAKES_EFFECT_WITHIN, address_of, chat, on_both_databases,
};

const PASSWORD: &str = "a long password of mine";

/// A relay with an admin API, and an account `root` on the platform.
struct Administered {
    relay: Relay,
    admin: SocketAddr,
}

fn admin_address_of(process: &RunningProcess) -> SocketAddr {
    let line = process.wait_for_line("accepting admin requests", PATIENCE);
    let event: Value = serde_json::from_str(&line).unwrap();
    event["address"].as_str().unwrap().parse().unwrap()
}

impl Administered {
    fn start(mut deployment: Deployment) -> Self {
        let file = deployment.folder.path().join("password");
        std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
        let file = file.display().to_string();
        deployment.run(&["admin", "create", "Root", "--password-file", &file]);
        deployment.set("SLUICE_ADMIN_LISTEN", "127.0.0.1:0");
        let relay = deployment.start();
        let admin = admin_address_of(&relay.process);
        Self { relay, admin }
    }

    async fn log_in(&self, login: &str, password: &str) -> Response {
        let body = json!({"login": login, "password": password});
        call(self.admin, &Request::post("/admin/v1/sessions", &body))
            .await
            .unwrap()
    }

    async fn session(&self) -> String {
        let answer = self.log_in("root", PASSWORD).await;
        assert_eq!(answer.status(), 201, "{}", answer.json());
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    async fn send(&self, method: &str, path: &str, token: &str, body: Option<&Value>) -> Response {
        let mut request = Request::new(method, path).key(token);
        if method == "PATCH" {
            request = request.header("if-match", "*");
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        call(self.admin, &request).await.unwrap()
    }

    async fn made(&self, path: &str, token: &str, body: Value) -> Value {
        let answer = self.send("POST", path, token, Some(&body)).await;
        assert_eq!(answer.status(), 201, "{}", answer.json());
        answer.json()
    }
}

/// Without the request id, which differs always.
fn told(answer: &Response) -> Value {
    let mut body = answer.json();
    body.as_object_mut().map(|body| body.remove("request_id"));
    json!([answer.status(), body])
}

async fn status_with(address: SocketAddr, key: &str) -> u16 {
    let request = Request::post("/v1/chat/completions", &chat(2)).key(key);
    call(address, &request).await.unwrap().status()
}

on_both_databases! {
    async fn an_admin_makes_all_that_a_client_needs_and_takes_it_back(deployment: Deployment) {
        let on = Administered::start(deployment);
        let token = on.session().await;
        let tenant = on.made("/admin/v1/tenants", &token, json!({"name": "north", "time_zone": "Europe/Berlin"})).await;
        let tenant_id = tenant["id"].as_str().unwrap();
        assert_eq!((&tenant["state"], &tenant["quota_tokens"]), (&json!("active"), &Value::Null));
        let at = format!("/admin/v1/tenants/{tenant_id}");
        let user = on.made(&format!("{at}/users"), &token, json!({"name": "eva"})).await;
        let key = on.made(
            &format!("{at}/keys"),
            &token,
            json!({"user_id": user["id"], "name": "laptop", "quota_tokens": 1_000_000}),
        ).await;
        let secret = key["key"].as_str().unwrap().to_owned();
        let key_at = format!("{at}/keys/{}", key["id"].as_str().unwrap());
        let relays = [on.relay.address];
        assert_eq!(status_with(relays[0], &secret).await, 200);

        // The secret is shown this once, its beginning and its last four characters always.
        for path in [format!("{at}/keys"), key_at.clone(), "/admin/v1/audit_events".to_owned()] {
            let answer = on.send("GET", &path, &token, None).await;
            let text = String::from_utf8(answer.body.to_vec()).unwrap();
            assert_eq!(answer.status(), 200, "{text}");
            assert!(!text.contains(&secret), "{path}");
            assert!(text.contains(&secret[secret.len() - 4..]), "{path}: {text}");
        }

        // A change is made of what was read.
        let read = on.send("GET", &key_at, &token, None).await;
        let etag = read.header("etag").unwrap().to_owned();
        let change = |etag: &str, body: Value| {
            Request::new("PATCH", &key_at).key(&token).header("if-match", etag).body(body.to_string())
        };
        let changed = call(on.admin, &change(&etag, json!({"allowed_models": ["other"]}))).await.unwrap();
        assert_eq!((changed.status(), &changed.json()["allowed_models"]), (200, &json!(["other"])));
        assert_eq!(changed.json()["quota_tokens"], 1_000_000, "what is not named stays");
        let late = call(on.admin, &change(&etag, json!({"may_pin": true}))).await.unwrap();
        assert_eq!((late.status(), &late.json()["code"]), (412, &json!("precondition_failed")));
        let blind = Request::new("PATCH", &key_at).key(&token).body("{}");
        assert_eq!(call(on.admin, &blind).await.unwrap().status(), 428);
        wait_for(relays[0], &secret, 404).await;
        let opened = on.send("PATCH", &key_at, &token, Some(&json!({"allowed_models": null}))).await;
        assert_eq!(opened.json()["allowed_models"], Value::Null);
        wait_for(relays[0], &secret, 200).await;

        // A tenant that is suspended is served no longer, nor is a key that is revoked.
        on.send("PATCH", &at, &token, Some(&json!({"state": "disabled"}))).await;
        wait_for(relays[0], &secret, 403).await;
        on.send("PATCH", &at, &token, Some(&json!({"state": "active"}))).await;
        wait_for(relays[0], &secret, 200).await;
        for _ in 0..2 {
            let revoked = on.send("POST", &format!("{key_at}/revoke"), &token, None).await;
            assert_eq!((revoked.status(), &revoked.json()["state"]), (200, &json!("revoked")));
        }
        wait_for(relays[0], &secret, 401).await;

        let events = on.send("GET", "/admin/v1/audit_events?limit=200", &token, None).await.json();
        let actions: Vec<&str> = events["data"].as_array().unwrap().iter().map(|e| e["action"].as_str().unwrap()).collect();
        for action in ["account.create", "session.open", "tenant.create", "user.create", "key.issue", "key.update", "tenant.update"] {
            assert!(actions.contains(&action), "{action}: {actions:?}");
        }
        let (storage, _acme) = on.relay.deployment.storage().await;
        assert_eq!(storage.check_audit_chain().await.unwrap(), None);
        storage.close().await;
    }

    async fn a_log_in_gives_nothing_away(deployment: Deployment) {
        let on = Administered::start(deployment);
        let (wrong, unknown) = (on.log_in("root", "wrong").await, on.log_in("nobody", "wrong").await);
        assert_eq!(wrong.status(), 401);
        assert_eq!(told(&wrong), told(&unknown), "names cannot be told apart");
        let bad = on.send("POST", "/admin/v1/sessions", "x", Some(&json!({"login": "root", "password": PASSWORD, "role": "owner"}))).await;
        assert_eq!((bad.status(), &bad.json()["errors"][0]["pointer"]), (400, &json!("/role")));
        assert_eq!(bad.header("content-type"), Some("application/problem+json"));
        let token = on.session().await;
        let me = on.send("GET", "/admin/v1/me", &token, None).await.json();
        assert_eq!((&me["name"], &me["role"], &me["credential"]), (&json!("root"), &json!("owner"), &json!("session")));
        // What is stored is no credential.
        let (storage, _acme) = on.relay.deployment.storage().await;
        let stored = storage.find_account_by_login(&"root".parse().unwrap()).await.unwrap().unwrap();
        storage.close().await;
        assert_eq!(on.log_in("root", &stored.password_hash).await.status(), 401);
        let out = on.send("DELETE", "/admin/v1/sessions/current", &token, None).await;
        assert_eq!(out.status(), 204);
        assert_eq!(on.send("GET", "/admin/v1/me", &token, None).await.status(), 401);
        // A new password ends what the old one began.
        let token = on.session().await;
        let file = on.relay.deployment.folder.path().join("new");
        std::fs::write(&file, "another long password").unwrap();
        on.relay.deployment.run(&["admin", "password", "root", "--password-file", &file.display().to_string()]);
        assert_eq!(on.send("GET", "/admin/v1/me", &token, None).await.status(), 401);
        assert_eq!(on.log_in("ROOT", "another long password").await.status(), 201);
        // No more tries than a source has, whatever a request says of where it comes from.
        let mut refused = 0;
        for number in 0..30 {
            let body = json!({"login": format!("n{number}"), "password": "wrong"});
            let from = format!("203.0.113.{number}");
            let request = Request::post("/admin/v1/sessions", &body).header("x-forwarded-for", &from).header("forwarded", &format!("for={from}"));
            let answer = call(on.admin, &request).await.unwrap();
            if answer.status() == 429 {
                assert!(answer.header("retry-after").is_some());
                refused += 1;
            }
        }
        // Three tries of this test failed before.
        assert_eq!(refused, 30 - (10 - 3));
    }

    async fn a_token_never_does_more_than_its_maker(deployment: Deployment) {
        let on = Administered::start(deployment);
        let owner = on.session().await;
        let (storage, acme) = on.relay.deployment.storage().await;
        let tokens = "/admin/v1/admin_tokens";
        let wanted = |role: &str, tenant: Option<TenantId>| {
            let mut body = json!({"name": "program", "role": role, "expires_at": "2027-01-01T00:00:00Z"});
            if let Some(tenant) = tenant {
                body["tenant_id"] = tenant.to_string().into();
            }
            body
        };
        let made = on.made(tokens, &owner, wanted("admin", Some(acme.id))).await;
        let of_acme = made["token"].as_str().unwrap().to_owned();
        let me = on.send("GET", "/admin/v1/me", &of_acme, None).await.json();
        assert_eq!((&me["role"], &me["tenant_id"]), (&json!("admin"), &json!(acme.id.to_string())));
        // Neither more of a role nor more of a reach, and what is elsewhere is as what is nowhere.
        let nowhere = TenantId::from_uuid(uuid_v7(1, [7; 10]));
        on.relay.deployment.run(&["tenant", "create", "other"]);
        let other = storage.find_tenant_by_name(&"other".parse().unwrap()).await.unwrap().unwrap().id;
        let mut refusals = Vec::new();
        for (role, tenant) in [("owner", None), ("owner", Some(acme.id)), ("member", Some(other)), ("member", Some(nowhere))] {
            let answer = on.send("POST", tokens, &of_acme, Some(&wanted(role, tenant))).await;
            assert_eq!(answer.status(), 403, "{role} {tenant:?}");
            refusals.push(told(&answer));
        }
        assert_eq!(refusals[2], refusals[3]);
        let child = on.made(tokens, &of_acme, wanted("finance", None)).await;
        assert_eq!(child["tenant_id"], acme.id.to_string(), "it holds where its maker does");
        let user = json!({"name": "boss", "role": "owner"});
        let answer = on.send("POST", &format!("/admin/v1/tenants/{}/users", acme.id), &of_acme, Some(&user)).await;
        assert_eq!(answer.status(), 403);
        for bad in [json!("2020-01-01T00:00:00Z"), json!("2999-01-01T00:00:00Z"), Value::Null] {
            let mut body = wanted("finance", None);
            body["expires_at"] = bad;
            assert_eq!(on.send("POST", tokens, &of_acme, Some(&body)).await.status(), 400);
        }
        // Tokens are listed without what they are, and a child does not revoke its maker.
        let list = on.send("GET", tokens, &of_acme, None).await;
        assert!(!String::from_utf8(list.body.to_vec()).unwrap().contains(&of_acme));
        assert_eq!(list.json()["data"].as_array().unwrap().len(), 2);
        let revoke = |id: &Value| format!("{tokens}/{}/revoke", id.as_str().unwrap());
        let child_token = child["token"].as_str().unwrap();
        assert_eq!(on.send("POST", &revoke(&made["id"]), child_token, None).await.status(), 403);
        let root = on.made(tokens, &owner, wanted("owner", None)).await;
        assert_eq!(on.send("POST", &revoke(&root["id"]), &of_acme, None).await.status(), 404);
        assert_eq!(on.send("POST", &revoke(&child["id"]), &of_acme, None).await.status(), 204);
        assert_eq!(on.send("GET", "/admin/v1/me", child_token, None).await.status(), 401);
        // Nor does a token do more than its maker may by now.
        let ann = storage.find_account_by_login(&"root".parse().unwrap()).await.unwrap().unwrap().account;
        let finance = NewAccount {
            id: AccountId::from_uuid(uuid_v7(2, [1; 10])),
            login: "fin".parse().unwrap(),
            rights: Rights { role: Role::Finance, reach: Reach::Platform },
            password_hash: "none".to_owned(),
            now: UnixMillis(0),
        };
        let secret = AdminSecret::generate(SecretKind::AdminToken, [5; 32]);
        let beyond = NewAdminToken {
            id: AdminTokenId::from_uuid(uuid_v7(3, [1; 10])),
            account_id: finance.id,
            rights: ann.rights,
            name: "beyond".parse().unwrap(),
            token_hash: Pepper::new([0x22; 32]).hasher().hash(secret.expose()),
            hint: String::new(),
            expires_at: UnixMillis(4_000_000_000_000),
            now: UnixMillis(0),
        };
        assert!(storage.create_account(finance).await.unwrap());
        storage.issue_token(beyond).await.unwrap();
        assert_eq!(on.send("GET", "/admin/v1/me", secret.expose(), None).await.status(), 401);
        assert_eq!(on.send("GET", "/admin/v1/me", &of_acme, None).await.status(), 200);
        on.relay.deployment.run(&["admin", "disable", "root"]);
        assert_eq!(on.send("GET", "/admin/v1/me", &of_acme, None).await.status(), 401);
        storage.close().await;
    }

    async fn every_operation_asks_who_calls_and_where(deployment: Deployment) {
        deployment.run(&["tenant", "create", "other"]);
        deployment.run(&["user", "create", "--tenant", "other", "ben"]);
        deployment.issue_key("to be revoked", &[]);
        let on = Administered::start(deployment);
        let (storage, acme) = on.relay.deployment.storage().await;
        let other = storage.find_tenant_by_name(&"other".parse().unwrap()).await.unwrap().unwrap();
        let ann = storage.list_users(acme.id, None, 1).await.unwrap()[0].id;
        let keys = storage.list_keys(Some(acme.id), None, 2).await.unwrap();
        let description = call(on.admin, &Request::get("/admin/v1/openapi.json")).await.unwrap().json();
        let mut matrix = Matrix { on: &on, storage: &storage, acme: acme.id, count: 0, unique: 0 };
        let ids = HashMap::from([
            ("{tenant_id}", acme.id.to_string()),
            ("{user_id}", ann.to_string()),
            // What is revoked is not changed any more.
            ("{key_id}/revoke", format!("{}/revoke", keys[1].id)),
            ("{key_id}", keys[0].id.to_string()),
            ("{token_id}", AdminTokenId::from_uuid(uuid_v7(0, [0; 10])).to_string()),
        ]);
        let operations = operations(&description);
        assert!(operations.len() >= 20, "{} operations", operations.len());
        let reaches = [Reach::Platform, Reach::Tenant(acme.id), Reach::Tenant(other.id)];
        for role in [Role::Owner, Role::Admin, Role::Operator, Role::Finance, Role::Member] {
            for reach in reaches {
                for channel in SecretKind::ALL {
                    matrix.check(&operations, &ids, Rights { role, reach }, channel).await;
                }
            }
        }
        for operation in &operations {
            matrix.check_strangers(operation, &ids).await;
        }
        println!("{} requests", matrix.count);
        assert!(matrix.count > operations.len() * 5 * 3 * 2);
        storage.close().await;
    }
}

async fn wait_for(address: SocketAddr, key: &str, status: u16) {
    let began = tokio::time::Instant::now();
    while status_with(address, key).await != status {
        assert!(
            began.elapsed() < TAKES_EFFECT_WITHIN,
            "{status} comes too late"
        );
    }
}

/// An operation, as the description tells of it.
struct Operation {
    method: String,
    path: String,
    is_open: bool,
    permission: Option<Permission>,
    place: String,
}

fn operations(description: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if method == "parameters" {
                continue;
            }
            let permission = operation["x-sluice-permission"].as_str();
            all.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                is_open: operation["security"].is_null(),
                permission: permission.map(|word| word.parse().unwrap()),
                place: operation["x-sluice-where"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
    }
    // A session is ended after all else was asked with it.
    all.sort_by_key(|operation| operation.method == "DELETE");
    all
}

struct Matrix<'a> {
    on: &'a Administered,
    storage: &'a Storage,
    acme: TenantId,
    count: usize,
    unique: u64,
}

impl Matrix<'_> {
    fn id(&mut self) -> uuid::Uuid {
        self.unique += 1;
        let mut random = [9; 10];
        random[2..].copy_from_slice(&self.unique.to_be_bytes());
        uuid_v7(1_795_000_000_000, random)
    }

    /// Makes a credential behind the back of the API.
    async fn credential(&mut self, rights: Rights, channel: SecretKind) -> String {
        let (now, ever) = (UnixMillis(1_795_000_000_000), UnixMillis(4_000_000_000_000));
        let account_id = AccountId::from_uuid(self.id());
        let account = NewAccount {
            id: account_id,
            login: format!("a{}", self.unique).parse().unwrap(),
            rights,
            password_hash: "none".to_owned(),
            now,
        };
        assert!(self.storage.create_account(account).await.unwrap());
        let mut random = [3; 32];
        random[24..].copy_from_slice(&self.unique.to_be_bytes());
        let secret = AdminSecret::generate(channel, random);
        let token_hash = Pepper::new([0x22; 32]).hasher().hash(secret.expose());
        match channel {
            SecretKind::Session => {
                let id = SessionId::from_uuid(self.id());
                let new = NewSession {
                    id,
                    account_id,
                    token_hash,
                    expires_at: ever,
                    now,
                };
                self.storage.open_session(new).await.unwrap();
            }
            SecretKind::AdminToken => {
                let new = NewAdminToken {
                    id: AdminTokenId::from_uuid(self.id()),
                    account_id,
                    rights,
                    name: "program".parse().unwrap(),
                    token_hash,
                    hint: secret.hint(),
                    expires_at: ever,
                    now,
                };
                self.storage.issue_token(new).await.unwrap();
            }
        }
        secret.expose().to_owned()
    }

    async fn ask(&mut self, operation: &Operation, path: &str, token: &str) -> Response {
        self.count += 1;
        let body = (operation.method == "POST" || operation.method == "PATCH").then(|| json!({}));
        self.on
            .send(&operation.method, path, token, body.as_ref())
            .await
    }

    async fn check(
        &mut self,
        operations: &[Operation],
        ids: &HashMap<&str, String>,
        rights: Rights,
        channel: SecretKind,
    ) {
        let token = self.credential(rights, channel).await;
        for operation in operations.iter().filter(|operation| !operation.is_open) {
            let what = format!(
                "{} {} as {rights:?} by {channel:?}",
                operation.method, operation.path
            );
            let path = with_ids(&operation.path, ids);
            let answer = self.ask(operation, &path, &token).await;
            let status = answer.status();
            let target = match operation.place.as_str() {
                "platform" => Reach::Platform,
                "path_tenant" => Reach::Tenant(self.acme),
                _ => rights.reach,
            };
            if operation.place == "path_tenant" && !rights.reach.covers(target) {
                // Another tenant's id is answered as one that nobody has.
                let mut nowhere = ids.clone();
                nowhere.insert("{tenant_id}", TenantId::from_uuid(self.id()).to_string());
                let path = with_ids(&operation.path, &nowhere);
                let unknown = self.ask(operation, &path, &token).await;
                assert_eq!(status, 404, "{what}");
                assert_eq!(told(&answer), told(&unknown), "{what}");
            } else if let Some(permission) = operation.permission
                && !allows(rights, permission, target)
            {
                assert_eq!(status, 403, "{what}");
            } else if operation.method == "DELETE" {
                let is_session = channel == SecretKind::Session;
                assert_eq!(status, if is_session { 204 } else { 403 }, "{what}");
                let after = self.on.send("GET", "/admin/v1/me", &token, None).await;
                assert_eq!(after.status(), if is_session { 401 } else { 200 }, "{what}");
            } else {
                // An empty body lacks what is needed; all else is done.
                let is_lacking = operation.method == "POST"
                    && ["/tenants", "/users", "/keys", "/admin_tokens"]
                        .iter()
                        .any(|end| path.ends_with(end));
                // Of tokens the path names one that nobody has.
                let is_missing = path.contains("/admin_tokens/");
                let expected = match (is_lacking, is_missing) {
                    (true, _) => 400,
                    (_, true) => 404,
                    _ => 200,
                };
                assert_eq!(status, expected, "{what}: {}", answer.json());
            }
        }
    }

    /// Asks with what is no credential here.
    async fn check_strangers(&mut self, operation: &Operation, ids: &HashMap<&str, String>) {
        if operation.is_open {
            return;
        }
        let path = with_ids(&operation.path, ids);
        let key = self.on.relay.deployment.key.clone();
        let never_made = AdminSecret::generate(SecretKind::Session, [0; 32]);
        for credential in [key.as_str(), never_made.expose(), "x", ""] {
            let answer = self.ask(operation, &path, credential).await;
            assert_eq!(
                answer.status(),
                401,
                "{} {path} {credential}",
                operation.method
            );
            assert!(answer.header("www-authenticate").is_some());
        }
        self.count += 1;
        let bare = Request::new(&operation.method, &path);
        assert_eq!(
            call(self.on.admin, &bare).await.unwrap().status(),
            401,
            "{path}"
        );
        // Nor does the relay's own port know these addresses.
        let elsewhere = call(self.on.relay.address, &bare).await.unwrap();
        assert_eq!(elsewhere.status(), 404, "{path}");
    }
}

fn with_ids(path: &str, ids: &HashMap<&str, String>) -> String {
    let mut names: Vec<_> = ids.iter().collect();
    // The longest first: it has the others in it.
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    names
        .into_iter()
        .fold(path.to_owned(), |path, (name, id)| path.replace(name, id))
}

#[tokio::test]
async fn what_is_revoked_is_refused_within_a_second_on_another_instance() {
    let Some(deployment) = Deployment::new(crate::deployment::Backend::Postgres) else {
        return;
    };
    let on = Administered::start(deployment);
    let folder = on.relay.deployment.folder.path().join("second");
    let second = on.relay.deployment.program(&["serve"]);
    let second = second.env("SLUICE_DATA_DIR", folder).start();
    let (relay, admin) = (address_of(&second), admin_address_of(&second));
    let token = on.session().await;
    let list = on
        .send("GET", "/admin/v1/tenants", &token, None)
        .await
        .json();
    let acme = list["data"][0]["id"].as_str().unwrap().to_owned();
    let at = format!("/admin/v1/tenants/{acme}");
    let users = on
        .send("GET", &format!("{at}/users"), &token, None)
        .await
        .json();
    for round in 0..3 {
        let body = json!({"user_id": users["data"][0]["id"], "name": format!("key {round}")});
        let key = on.made(&format!("{at}/keys"), &token, body).await;
        let secret = key["key"].as_str().unwrap();
        assert_eq!(status_with(relay, secret).await, 200);
        let path = format!("{at}/keys/{}/revoke", key["id"].as_str().unwrap());
        assert_eq!(on.send("POST", &path, &token, None).await.status(), 200);
        let began = tokio::time::Instant::now();
        wait_for(relay, secret, 401).await;
        println!("refused after {:?}", began.elapsed());
    }
    // A session needs no time at all: every request looks.
    let me = Request::get("/admin/v1/me").key(&token);
    assert_eq!(call(admin, &me).await.unwrap().status(), 200);
    let out = on
        .send("DELETE", "/admin/v1/sessions/current", &token, None)
        .await;
    assert_eq!(out.status(), 204);
    assert_eq!(call(admin, &me).await.unwrap().status(), 401);
    second.terminate();
    assert!(second.wait_exit(PATIENCE).success());
    assert!(on.relay.stop());
}
