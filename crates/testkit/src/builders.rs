//! Domain values with valid defaults.
//!
//! A test states only what matters to it: `Tenant { quota_tokens: Some(10), ..a_tenant() }`.
//! Ids come from a counter, so they are unique in the process, ordered, and not random.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_domain::id::{
    BootId, InstanceId, ProxyKeyId, RequestId, RouteId, TenantId, UpstreamId, UpstreamKeyId,
    UserId, uuid_v7,
};
use sluice_domain::key::{ProxyKey, ProxyKeySecret};
use sluice_domain::ports::Guard;
use sluice_domain::quota::{Amounts, HoldTerms, Payer, ScopeSet};
use sluice_domain::record::{
    AttemptRecord, Caller, NumberedRecord, OpenRequest, RequestEnd, UsageRecord,
};
use sluice_domain::route::{Endpoint, Route, Target};
use sluice_domain::tenant::{EntityState, Name, Role, Tenant, User};
use sluice_domain::time::{LocalDay, Month, TimeZone, UnixMillis};
use sluice_domain::upstream::{ProviderKind, Upstream, UpstreamKey};
use sluice_domain::usage::{Basis, Ending, Stage, TokenUsage};

use crate::fail::fail;

/// When everything that the builders make was made: 2026-11-20T12:00:00Z.
pub const START: UnixMillis = UnixMillis(1_795_176_000_000);

static COUNTER: AtomicU64 = AtomicU64::new(1);

fn count() -> u64 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// A UUIDv7 of [`START`] whose random part is the next number of the counter.
fn next_uuid<Id>(wrap: impl FnOnce(uuid::Uuid) -> Id) -> Id {
    let mut random = [0_u8; 10];
    random[2..].copy_from_slice(&count().to_be_bytes());
    wrap(uuid_v7(START.0.unsigned_abs(), random))
}

/// Returns a new request id.
pub fn a_request_id() -> RequestId {
    next_uuid(RequestId::from_uuid)
}

/// Returns a name; fails the test when the text is no valid one.
#[track_caller]
pub fn name(text: &str) -> Name {
    text.parse()
        .unwrap_or_else(|invalid| fail(format_args!("`{text}`: {invalid}")))
}

/// Returns an active tenant in UTC without a cap, with a name of its own.
pub fn a_tenant() -> Tenant {
    Tenant {
        id: next_uuid(TenantId::from_uuid),
        name: name(&format!("tenant-{}", count())),
        time_zone: time_zone("UTC"),
        state: EntityState::Active,
        quota_tokens: None,
        created_at: START,
    }
}

/// Returns a time zone; fails the test when the name is not in the IANA database.
#[track_caller]
pub fn time_zone(name: &str) -> TimeZone {
    name.parse().unwrap_or_else(|unknown| fail(unknown))
}

/// Returns an active member of the tenant without a cap, with a name of its own.
pub fn a_user(tenant: &Tenant) -> User {
    User {
        id: next_uuid(UserId::from_uuid),
        tenant_id: tenant.id,
        name: name(&format!("user-{}", count())),
        role: Role::Member,
        state: EntityState::Active,
        quota_tokens: None,
        created_at: START,
    }
}

/// Returns the secret of a proxy key as we issue it; each call returns another one.
pub fn a_secret() -> ProxyKeySecret {
    let number = count().to_be_bytes();
    let mut secret = [0x5a_u8; 32];
    secret[24..].copy_from_slice(&number);
    ProxyKeySecret::generate(number, secret)
}

/// Returns an active proxy key of the user for every model, without expiry or cap.
pub fn a_key(user: &User) -> ProxyKey {
    a_key_with_secret(user).0
}

/// Returns a proxy key as [`a_key`] does, together with its secret.
pub fn a_key_with_secret(user: &User) -> (ProxyKey, ProxyKeySecret) {
    let secret = a_secret();
    let key = ProxyKey {
        id: next_uuid(ProxyKeyId::from_uuid),
        tenant_id: user.tenant_id,
        user_id: user.id,
        name: name(&format!("key-{}", count())),
        hint: secret.hint(),
        state: EntityState::Active,
        expires_at: None,
        allowed_models: None,
        may_pin: false,
        quota_tokens: None,
        created_at: START,
    };
    (key, secret)
}

/// Returns an active upstream of kind `compatible`, shared by all tenants, with default settings, that
/// may be on this machine.
///
/// Fails the test when the base URL is no valid one.
#[track_caller]
pub fn an_upstream(base_url: &str) -> Upstream {
    let base_url = base_url
        .parse()
        .unwrap_or_else(|invalid| fail(format_args!("`{base_url}`: {invalid}")));
    Upstream {
        allow_private: true,
        ..Upstream::new(
            next_uuid(UpstreamId::from_uuid),
            name(&format!("upstream-{}", count())),
            ProviderKind::Compatible,
            Some(base_url),
            START,
        )
    }
}

/// Returns an active key of the upstream with weight 1.
pub fn an_upstream_key(upstream: &Upstream) -> UpstreamKey {
    UpstreamKey::new(
        next_uuid(UpstreamKeyId::from_uuid),
        upstream.id,
        name(&format!("upstream-key-{}", count())),
        START,
    )
}

/// Returns an active route for all tenants from the model to the same model at the upstream.
pub fn a_route(model: &str, upstream: &Upstream) -> Route {
    Route::new(
        next_uuid(RouteId::from_uuid),
        model.to_owned(),
        vec![a_target(upstream)],
        START,
    )
}

/// Returns a target of the first tier with weight 1 that keeps the requested model.
pub fn a_target(upstream: &Upstream) -> Target {
    Target::new(upstream.id)
}

/// Returns the payer of a key.
pub fn a_payer(key: &ProxyKey) -> Payer {
    Payer {
        tenant_id: key.tenant_id,
        user_id: key.user_id,
        key_id: key.id,
    }
}

/// Returns a payer that belongs to no stored tenant, user or key.
pub fn an_unknown_payer() -> Payer {
    Payer {
        tenant_id: next_uuid(TenantId::from_uuid),
        user_id: next_uuid(UserId::from_uuid),
        key_id: next_uuid(ProxyKeyId::from_uuid),
    }
}

/// Returns a streamed chat request for `gpt-4o` that began at [`START`]. Up to 1,000 tokens were held,
/// in no lease.
pub fn an_open_request(payer: Payer) -> OpenRequest {
    let bounds = time_zone("UTC");
    OpenRequest {
        request_id: a_request_id(),
        payer,
        period: bounds.period_of(START).month,
        local_day: bounds.day_of(START).day,
        started_at: START,
        endpoint: Endpoint::ChatCompletions,
        streams: true,
        requested_model: Arc::from("gpt-4o"),
        hold: HoldTerms {
            bound: Amounts::tokens(1_000),
            leased: ScopeSet::default(),
            input_estimate: 10,
        },
        caller: Caller {
            // From the range that is set aside for documentation.
            ip: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))),
            user_agent: Some(Arc::from("OpenAI/Python 3.51.0")),
        },
    }
}

/// Returns the end of a request that finished with 10 input and 5 output tokens as reported, after
/// one attempt at an upstream that is not stored.
pub fn a_finished_end() -> RequestEnd {
    let usage = TokenUsage {
        input: 10,
        output: 5,
        ..TokenUsage::default()
    };
    RequestEnd {
        ending: Ending::Finished,
        stage: Stage::Relaying,
        status: 200,
        error_code: None,
        usage,
        basis: Basis::Reported,
        owed: Amounts::tokens(usage.total()),
        first_event_ms: Some(120),
        duration_ms: 900,
        attempts: std::iter::once(an_attempt(next_uuid(UpstreamId::from_uuid))).collect(),
        skipped: sluice_domain::pool::SkippedTargets::default(),
    }
}

/// Returns a successful attempt for `gpt-4o` at the upstream, without an upstream key.
pub fn an_attempt(upstream_id: UpstreamId) -> AttemptRecord {
    AttemptRecord {
        upstream_id,
        upstream_key_id: None,
        upstream_model: Arc::from("gpt-4o"),
        status: Some(200),
        error: None,
        started_at: START,
        head_ms: 100,
    }
}

/// Returns the record of a finished request of an unknown payer.
pub fn a_record() -> UsageRecord {
    a_record_of(an_unknown_payer())
}

/// Returns the record of a finished request of the payer.
pub fn a_record_of(payer: Payer) -> UsageRecord {
    UsageRecord {
        open: an_open_request(payer),
        end: a_finished_end(),
    }
}

/// Numbers records densely from `first`.
pub fn numbered(first: i64, records: impl IntoIterator<Item = UsageRecord>) -> Vec<NumberedRecord> {
    (first..)
        .zip(records)
        .map(|(post_no, record)| NumberedRecord {
            post_no,
            record: Box::new(record),
        })
        .collect()
}

/// Returns the guard of an instance that has just been claimed for the first time.
pub fn a_guard() -> Guard {
    Guard {
        instance_id: next_uuid(InstanceId::from_uuid),
        boot_id: next_uuid(BootId::from_uuid),
        seq: 0,
    }
}

/// Returns the month with the given number, `YYYYMM`; fails the test when there is none.
#[track_caller]
pub fn month(yyyymm: i32) -> Month {
    Month::from_number(yyyymm).unwrap_or_else(|| fail(format_args!("{yyyymm} is not a month")))
}

/// Returns the local day with the given number, `YYYYMMDD`.
pub fn day(yyyymmdd: i32) -> LocalDay {
    LocalDay(yyyymmdd)
}

#[cfg(test)]
mod tests {
    use sluice_domain::key::check_shape;
    use sluice_domain::route::check_route_model;

    use super::*;

    #[test]
    fn the_start_is_what_it_says() {
        assert_eq!(START.to_rfc3339(), "2026-11-20T12:00:00Z");
        let open = an_open_request(an_unknown_payer());
        assert_eq!(
            (open.period, open.local_day),
            (month(202_611), day(20_261_120))
        );
    }

    #[test]
    fn what_is_built_is_valid_unique_and_belongs_together() {
        let tenant = a_tenant();
        let user = a_user(&tenant);
        let (key, secret) = a_key_with_secret(&user);
        assert_eq!((key.tenant_id, key.user_id), (tenant.id, user.id));
        assert_eq!(check_shape(secret.expose()), Ok(()));
        assert_eq!(key.hint, secret.hint());
        let upstream = an_upstream("http://127.0.0.1:9/v1");
        let route = a_route("gpt-4o", &upstream);
        assert!(check_route_model(&route.model).is_ok());
        assert_eq!(route.targets[0].upstream_id, upstream.id);
        assert_eq!(an_upstream_key(&upstream).upstream_id, upstream.id);

        assert_ne!(a_tenant().id, tenant.id);
        assert_ne!(a_tenant().name, tenant.name);
        assert_ne!(a_secret().expose(), secret.expose());
        assert!(
            a_request_id() < a_request_id(),
            "ids of one time are in order"
        );
    }

    #[test]
    fn records_are_numbered_without_a_gap() {
        let records = numbered(7, [a_record(), a_record()]);
        assert_eq!(
            records.iter().map(|r| r.post_no).collect::<Vec<_>>(),
            [7, 8]
        );
        assert_eq!(records[0].record.charge(), Amounts::tokens(15));
    }

    #[test]
    #[should_panic(expected = "the scheme must be http or https")]
    fn a_wrong_base_url_fails_the_test() {
        an_upstream("ftp://example.com");
    }
}
