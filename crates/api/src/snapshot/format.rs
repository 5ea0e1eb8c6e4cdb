//! The text of a snapshot: one line with version and authentication, then JSON.
//!
//! Tenants and users stand in it once; keys name them.

use std::collections::HashMap;
use std::fmt::{Display, Write as _};
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::Mac;
use serde::{Deserialize, Serialize};
use sluice_domain::id::{InstanceId, TenantId, UserId};
use sluice_domain::key::{KeyHash, KeyHint, ProxyKey};
use sluice_domain::limit::KeyLimits;
use sluice_domain::pool::{BreakerPolicy, RetryPolicy, UpstreamLimits};
use sluice_domain::route::{Route, Target};
use sluice_domain::tenant::{Tenant, User};
use sluice_domain::time::{Month, Period, UnixMillis};
use sluice_domain::upstream::{Deadlines, Upstream, UpstreamKey};
use sluice_domain::window::{WindowKind, WindowLimit, WindowLimits};
use sluice_storage::grant::KeyGrant;
use sluice_storage::route::Routing;
use sluice_storage::secret::SealedSecret;

use super::{Frame, GrantView, Snapshot, SnapshotKey, Unusable};

/// What every snapshot begins with, before the authentication.
const MAGIC: &str = "sluice-snapshot ";
/// Grows with every change that an older or newer binary would misread.
const VERSION: &str = "2";
const MAC_BYTES: usize = 32;

#[derive(Serialize, Deserialize)]
struct Document {
    instance_id: String,
    feed_position: i64,
    as_of_ms: i64,
    tenants: Vec<TenantEntry>,
    users: Vec<UserEntry>,
    keys: Vec<KeyEntry>,
    upstreams: Vec<UpstreamEntry>,
    upstream_keys: Vec<UpstreamKeyEntry>,
    routes: Vec<RouteEntry>,
}

#[derive(Serialize, Deserialize)]
struct TenantEntry {
    id: String,
    name: String,
    time_zone: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    quota_tokens: Option<i64>,
    #[serde(skip_serializing_if = "WindowEntry::is_empty", default)]
    windows: WindowEntry,
    created_at_ms: i64,
    /// Month, first instant, first instant after it.
    periods: Vec<(i32, i64, i64)>,
}

#[derive(Serialize, Deserialize)]
struct UserEntry {
    id: String,
    /// The place of its tenant.
    tenant: usize,
    name: String,
    role: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    quota_tokens: Option<i64>,
    #[serde(skip_serializing_if = "WindowEntry::is_empty", default)]
    windows: WindowEntry,
    created_at_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct KeyEntry {
    hash: String,
    id: String,
    /// The place of its user.
    user: usize,
    name: String,
    hint: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    expires_at_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    allowed_models: Option<Vec<String>>,
    may_pin: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    quota_tokens: Option<i64>,
    #[serde(skip_serializing_if = "WindowEntry::is_empty", default)]
    windows: WindowEntry,
    /// By model.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    model_windows: Vec<(String, WindowEntry)>,
    created_at_ms: i64,
}

/// Window limits, by their words; each with its largest amount, and whether it refuses nothing.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
struct WindowEntry(Vec<(String, u64, bool)>);

#[derive(Serialize, Deserialize)]
struct UpstreamEntry {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    tenant_id: Option<String>,
    name: String,
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    base_url: Option<String>,
    connect_ms: u64,
    first_event_ms: u64,
    idle_ms: u64,
    total_ms: u64,
    client_gone: String,
    max_attempts: NonZeroU32,
    breaker_failures: NonZeroU32,
    breaker_failure_percent: NonZeroU32,
    breaker_open_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    probe_every: Option<String>,
    limits: LimitsEntry,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    api_version: Option<String>,
    allow_private: bool,
    state: String,
    enabled_at_ms: i64,
    created_at_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct LimitsEntry {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    requests_per_minute: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    tokens_per_minute: Option<NonZeroU32>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    concurrency: Option<NonZeroU32>,
}

#[derive(Serialize, Deserialize)]
struct UpstreamKeyEntry {
    id: String,
    upstream_id: String,
    name: String,
    weight: u32,
    limits: LimitsEntry,
    state: String,
    enabled_at_ms: i64,
    created_at_ms: i64,
    sealed_secret: String,
    wrapped_key: String,
    master_key_id: String,
}

#[derive(Serialize, Deserialize)]
struct RouteEntry {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    tenant_id: Option<String>,
    model: String,
    targets: Vec<TargetEntry>,
    selection: String,
    state: String,
    created_at_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct TargetEntry {
    tier: u32,
    weight: u32,
    upstream_id: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    upstream_model: Option<String>,
    serves: String,
}

/// Writes a snapshot.
pub(super) fn encode<'a>(
    frame: &Frame,
    grants: impl Iterator<Item = GrantView<'a>>,
    key: &SnapshotKey,
    instance_id: InstanceId,
) -> Vec<u8> {
    let document = Document::new(frame, grants, instance_id);
    // Strings, numbers and lists: there is nothing in it that could fail.
    let json = serde_json::to_vec(&document).unwrap_or_default();
    let mut bytes = head(&authenticate(key, &json)).into_bytes();
    bytes.extend(json);
    bytes
}

fn authenticate(key: &SnapshotKey, json: &[u8]) -> [u8; MAC_BYTES] {
    let mut mac = key.mac();
    mac.update(VERSION.as_bytes());
    mac.update(b"\n");
    mac.update(json);
    mac.finalize().into_bytes().into()
}

fn head(authentication: &[u8; MAC_BYTES]) -> String {
    let mut head = format!("{MAGIC}{VERSION} ");
    for byte in authentication {
        // Writing to a string cannot fail.
        let _infallible = write!(head, "{byte:02x}");
    }
    head.push('\n');
    head
}

/// Reads a snapshot.
///
/// # Errors
/// [`Unusable`]; nothing of the content was looked at before it was authenticated.
pub(super) fn decode(
    bytes: &[u8],
    key: &SnapshotKey,
    instance_id: InstanceId,
) -> Result<Snapshot, Unusable> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(Unusable::Forged)?;
    let (head, json) = bytes.split_at_checked(end + 1).ok_or(Unusable::Forged)?;
    let head = str::from_utf8(head).map_err(|_bytes| Unusable::Forged)?;
    let rest = head.strip_prefix(MAGIC).ok_or(Unusable::Forged)?;
    let (version, authentication) = rest.trim_end().split_once(' ').ok_or(Unusable::Forged)?;
    if version != VERSION {
        return Err(Unusable::Version);
    }
    let found = from_hex(authentication).ok_or(Unusable::Forged)?;
    let mut mac = key.mac();
    mac.update(VERSION.as_bytes());
    mac.update(b"\n");
    mac.update(json);
    mac.verify_slice(&found)
        .map_err(|_differs| Unusable::Forged)?;
    let document: Document =
        serde_json::from_slice(json).map_err(|error| Unusable::Content(error.to_string()))?;
    if document.instance_id != instance_id.to_string() {
        return Err(Unusable::Foreign);
    }
    document.snapshot()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != MAC_BYTES || !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

impl Document {
    fn new<'a>(
        frame: &Frame,
        grants: impl Iterator<Item = GrantView<'a>>,
        instance_id: InstanceId,
    ) -> Self {
        let (mut tenants, mut users, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        let mut tenant_places: HashMap<TenantId, usize> = HashMap::new();
        let mut user_places: HashMap<UserId, usize> = HashMap::new();
        for grant in grants {
            let tenant = *tenant_places.entry(grant.tenant.id).or_insert_with(|| {
                tenants.push(TenantEntry::new(&grant));
                tenants.len() - 1
            });
            let user = *user_places.entry(grant.user.id).or_insert_with(|| {
                users.push(UserEntry::new(&grant, tenant));
                users.len() - 1
            });
            keys.push(KeyEntry::new(&grant, user));
        }
        let routing = &frame.routing;
        Self {
            instance_id: instance_id.to_string(),
            feed_position: frame.feed_position,
            as_of_ms: frame.as_of.0,
            tenants,
            users,
            keys,
            upstreams: routing.upstreams.iter().map(UpstreamEntry::new).collect(),
            upstream_keys: routing
                .keys
                .iter()
                .map(|(key, sealed)| UpstreamKeyEntry::new(key, sealed))
                .collect(),
            routes: routing.routes.iter().map(RouteEntry::new).collect(),
        }
    }

    fn snapshot(self) -> Result<Snapshot, Unusable> {
        let tenants = read_all(&self.tenants, TenantEntry::read)?;
        let users = read_all(&self.users, |entry| {
            let (tenant, ..) = at(&tenants, entry.tenant)?;
            let user = entry.read(tenant.id)?;
            Ok(((user, entry.windows.read()?), entry.tenant))
        })?;
        let grants = self
            .keys
            .into_iter()
            .map(|entry| {
                let ((user, user_windows), place) = at(&users, entry.user)?;
                let (tenant, periods, tenant_windows) = at(&tenants, *place)?;
                let limits = KeyLimits {
                    tenant: *tenant_windows,
                    user: *user_windows,
                    key: entry.windows.read()?,
                    models: entry
                        .model_windows
                        .iter()
                        .map(|(model, entry)| Ok((Arc::from(model.as_str()), entry.read()?)))
                        .collect::<Result<_, Unusable>>()?,
                };
                let hash = KeyHash(
                    bytes(&entry.hash)?
                        .try_into()
                        .map_err(|_length| bad("a hash", &entry.hash))?,
                );
                let grant = KeyGrant {
                    key: entry.read(user)?,
                    user: user.clone(),
                    tenant: tenant.clone(),
                    periods: periods.clone(),
                    limits,
                };
                Ok((hash, grant))
            })
            .collect::<Result<Vec<_>, Unusable>>()?;
        Ok(Snapshot {
            feed_position: self.feed_position,
            as_of: UnixMillis(self.as_of_ms),
            grants,
            routing: Routing {
                upstreams: read_all(&self.upstreams, UpstreamEntry::read)?,
                keys: read_all(&self.upstream_keys, UpstreamKeyEntry::read)?,
                routes: read_all(&self.routes, RouteEntry::read)?,
            },
        })
    }
}

fn read_all<E, T>(
    entries: &[E],
    read: impl Fn(&E) -> Result<T, Unusable>,
) -> Result<Vec<T>, Unusable> {
    entries.iter().map(read).collect()
}

fn at<T>(entries: &[T], place: usize) -> Result<&T, Unusable> {
    entries
        .get(place)
        .ok_or_else(|| Unusable::Content(format!("there is no entry {place}")))
}

fn bad(what: &str, text: impl Display) -> Unusable {
    Unusable::Content(format!("`{text}` is not {what}"))
}

fn parse<T: FromStr>(text: &str, what: &'static str) -> Result<T, Unusable> {
    text.parse().map_err(|_bad| bad(what, text))
}

fn bytes(text: &str) -> Result<Vec<u8>, Unusable> {
    BASE64.decode(text).map_err(|_bad| bad("base64", text))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl TenantEntry {
    fn new(grant: &GrantView<'_>) -> Self {
        let GrantView {
            tenant, periods, ..
        } = grant;
        Self {
            id: tenant.id.to_string(),
            name: tenant.name.to_string(),
            time_zone: tenant.time_zone.name().to_owned(),
            state: tenant.state.to_string(),
            quota_tokens: tenant.quota_tokens,
            windows: WindowEntry::new(grant.limits.map(|limits| &limits.tenant)),
            created_at_ms: tenant.created_at.0,
            periods: periods
                .iter()
                .map(|p| (p.month.as_number(), p.starts_at.0, p.ends_at.0))
                .collect(),
        }
    }

    fn read(&self) -> Result<(Tenant, Vec<Period>, WindowLimits), Unusable> {
        let tenant = Tenant {
            id: parse(&self.id, "the id of a tenant")?,
            name: parse(&self.name, "a name")?,
            time_zone: parse(&self.time_zone, "a time zone")?,
            state: parse(&self.state, "a state")?,
            quota_tokens: self.quota_tokens,
            created_at: UnixMillis(self.created_at_ms),
        };
        let periods = read_all(&self.periods, |(month, starts, ends)| {
            Ok(Period {
                month: Month::from_number(*month).ok_or_else(|| bad("a month", month))?,
                starts_at: UnixMillis(*starts),
                ends_at: UnixMillis(*ends),
            })
        })?;
        Ok((tenant, periods, self.windows.read()?))
    }
}

impl WindowEntry {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn new(limits: Option<&WindowLimits>) -> Self {
        let set = WindowKind::ALL
            .iter()
            .filter_map(|kind| Some((*kind, limits?.of(*kind)?)));
        Self(
            set.map(|(kind, limit)| (kind.to_string(), limit.most(), limit.dry_run))
                .collect(),
        )
    }

    fn read(&self) -> Result<WindowLimits, Unusable> {
        let mut limits = WindowLimits::default();
        for (kind, most, dry_run) in &self.0 {
            let limit = WindowLimit::new(*most).map_err(|_invalid| bad("a limit", most))?;
            let limit = if *dry_run { limit.dry_run() } else { limit };
            limits.set(parse(kind, "a kind of limit")?, Some(limit));
        }
        Ok(limits)
    }
}

impl UserEntry {
    fn new(grant: &GrantView<'_>, tenant: usize) -> Self {
        let user = grant.user;
        Self {
            id: user.id.to_string(),
            tenant,
            name: user.name.to_string(),
            role: user.role.to_string(),
            state: user.state.to_string(),
            quota_tokens: user.quota_tokens,
            windows: WindowEntry::new(grant.limits.map(|limits| &limits.user)),
            created_at_ms: user.created_at.0,
        }
    }

    fn read(&self, tenant_id: TenantId) -> Result<User, Unusable> {
        Ok(User {
            id: parse(&self.id, "the id of a user")?,
            tenant_id,
            name: parse(&self.name, "a name")?,
            role: parse(&self.role, "a role")?,
            state: parse(&self.state, "a state")?,
            quota_tokens: self.quota_tokens,
            created_at: UnixMillis(self.created_at_ms),
        })
    }
}

impl KeyEntry {
    fn new(grant: &GrantView<'_>, user: usize) -> Self {
        let key = grant.key;
        Self {
            hash: BASE64.encode(grant.hash.0),
            id: key.id.to_string(),
            user,
            name: key.name.to_string(),
            hint: key.hint.as_str().to_owned(),
            state: key.state.to_string(),
            expires_at_ms: key.expires_at.map(|at| at.0),
            allowed_models: key.allowed_models.clone(),
            may_pin: key.may_pin,
            quota_tokens: key.quota_tokens,
            windows: WindowEntry::new(grant.limits.map(|limits| &limits.key)),
            model_windows: grant
                .limits
                .iter()
                .flat_map(|limits| &limits.models)
                .map(|(model, limits)| (model.to_string(), WindowEntry::new(Some(limits))))
                .collect(),
            created_at_ms: key.created_at.0,
        }
    }

    fn read(self, user: &User) -> Result<ProxyKey, Unusable> {
        Ok(ProxyKey {
            id: parse(&self.id, "the id of a key")?,
            tenant_id: user.tenant_id,
            user_id: user.id,
            name: parse(&self.name, "a name")?,
            hint: KeyHint::from_stored(self.hint),
            state: parse(&self.state, "a state")?,
            expires_at: self.expires_at_ms.map(UnixMillis),
            allowed_models: self.allowed_models,
            may_pin: self.may_pin,
            quota_tokens: self.quota_tokens,
            created_at: UnixMillis(self.created_at_ms),
        })
    }
}

impl UpstreamEntry {
    fn new(upstream: &Upstream) -> Self {
        Self {
            id: upstream.id.to_string(),
            tenant_id: upstream.tenant_id.map(|id| id.to_string()),
            name: upstream.name.to_string(),
            kind: upstream.kind.to_string(),
            base_url: upstream.base_url.as_ref().map(ToString::to_string),
            connect_ms: millis(upstream.deadlines.connect),
            first_event_ms: millis(upstream.deadlines.first_event),
            idle_ms: millis(upstream.deadlines.idle),
            total_ms: millis(upstream.deadlines.total),
            client_gone: upstream.client_gone.to_string(),
            max_attempts: upstream.retry.max_attempts,
            breaker_failures: upstream.breaker.max_failures,
            breaker_failure_percent: upstream.breaker.max_failure_percent,
            breaker_open_ms: millis(upstream.breaker.open_for),
            probe_every: upstream.probe_every.map(|every| every.to_string()),
            limits: LimitsEntry::new(upstream.limits),
            api_version: upstream.api_version.as_ref().map(ToString::to_string),
            allow_private: upstream.allow_private,
            state: upstream.state.to_string(),
            enabled_at_ms: upstream.enabled_at.0,
            created_at_ms: upstream.created_at.0,
        }
    }

    fn read(&self) -> Result<Upstream, Unusable> {
        let tenant_id = self.tenant_id.as_deref();
        let base_url = self.base_url.as_deref();
        let api_version = self.api_version.as_deref();
        let probe_every = self.probe_every.as_deref();
        Ok(Upstream {
            id: parse(&self.id, "the id of an upstream")?,
            tenant_id: tenant_id
                .map(|id| parse(id, "the id of a tenant"))
                .transpose()?,
            name: parse(&self.name, "a name")?,
            kind: parse(&self.kind, "a kind")?,
            base_url: base_url.map(|url| parse(url, "a URL")).transpose()?,
            deadlines: Deadlines {
                connect: Duration::from_millis(self.connect_ms),
                first_event: Duration::from_millis(self.first_event_ms),
                idle: Duration::from_millis(self.idle_ms),
                total: Duration::from_millis(self.total_ms),
            },
            client_gone: parse(&self.client_gone, "what becomes of a stream")?,
            retry: RetryPolicy {
                max_attempts: self.max_attempts,
            },
            breaker: BreakerPolicy {
                max_failures: self.breaker_failures,
                max_failure_percent: self.breaker_failure_percent,
                open_for: Duration::from_millis(self.breaker_open_ms),
            },
            probe_every: probe_every
                .map(|every| parse(every, "an interval of probes"))
                .transpose()?,
            limits: self.limits.read(),
            api_version: api_version
                .map(|version| parse(version, "a version of an interface"))
                .transpose()?,
            allow_private: self.allow_private,
            state: parse(&self.state, "a state")?,
            enabled_at: UnixMillis(self.enabled_at_ms),
            created_at: UnixMillis(self.created_at_ms),
        })
    }
}

impl LimitsEntry {
    const fn new(limits: UpstreamLimits) -> Self {
        Self {
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            concurrency: limits.concurrency,
        }
    }

    const fn read(&self) -> UpstreamLimits {
        UpstreamLimits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrency: self.concurrency,
        }
    }
}

impl UpstreamKeyEntry {
    fn new(key: &UpstreamKey, sealed: &SealedSecret) -> Self {
        Self {
            id: key.id.to_string(),
            upstream_id: key.upstream_id.to_string(),
            name: key.name.to_string(),
            weight: key.weight,
            limits: LimitsEntry::new(key.limits),
            state: key.state.to_string(),
            enabled_at_ms: key.enabled_at.0,
            created_at_ms: key.created_at.0,
            sealed_secret: BASE64.encode(&sealed.sealed_secret),
            wrapped_key: BASE64.encode(&sealed.wrapped_key),
            master_key_id: sealed.master_key_id.clone(),
        }
    }

    fn read(&self) -> Result<(UpstreamKey, SealedSecret), Unusable> {
        let key = UpstreamKey {
            id: parse(&self.id, "the id of an upstream key")?,
            upstream_id: parse(&self.upstream_id, "the id of an upstream")?,
            name: parse(&self.name, "a name")?,
            weight: self.weight,
            limits: self.limits.read(),
            state: parse(&self.state, "a state")?,
            enabled_at: UnixMillis(self.enabled_at_ms),
            created_at: UnixMillis(self.created_at_ms),
        };
        let sealed = SealedSecret {
            sealed_secret: bytes(&self.sealed_secret)?,
            wrapped_key: bytes(&self.wrapped_key)?,
            master_key_id: self.master_key_id.clone(),
        };
        Ok((key, sealed))
    }
}

impl RouteEntry {
    fn new(route: &Route) -> Self {
        Self {
            id: route.id.to_string(),
            tenant_id: route.tenant_id.map(|id| id.to_string()),
            model: route.model.clone(),
            targets: route
                .targets
                .iter()
                .map(|target| TargetEntry {
                    tier: target.tier,
                    weight: target.weight,
                    upstream_id: target.upstream_id.to_string(),
                    upstream_model: target.upstream_model.clone(),
                    serves: target.serves.to_string(),
                })
                .collect(),
            selection: route.selection.to_string(),
            state: route.state.to_string(),
            created_at_ms: route.created_at.0,
        }
    }

    fn read(&self) -> Result<Route, Unusable> {
        let tenant_id = self.tenant_id.as_deref();
        Ok(Route {
            id: parse(&self.id, "the id of a route")?,
            tenant_id: tenant_id
                .map(|id| parse(id, "the id of a tenant"))
                .transpose()?,
            model: self.model.clone(),
            targets: read_all(&self.targets, |target| {
                Ok(Target {
                    tier: target.tier,
                    weight: target.weight,
                    upstream_id: parse(&target.upstream_id, "the id of an upstream")?,
                    upstream_model: target.upstream_model.clone(),
                    serves: parse(&target.serves, "a use of a target")?,
                })
            })?,
            selection: parse(&self.selection, "a way to choose")?,
            state: parse(&self.state, "a state")?,
            created_at: UnixMillis(self.created_at_ms),
        })
    }
}
