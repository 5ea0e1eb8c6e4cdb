use std::num::NonZeroU32;

use sluice_domain::key::Pepper;
use sluice_domain::pool::{BreakerPolicy, Selection, TargetUse, UpstreamLimits};
use sluice_domain::tenant::EntityState;
use sluice_domain::upstream::UpstreamKey;
use sluice_domain::window::{WindowLimit, WindowLimits};
use sluice_storage::secret::SealedSecret;
use sluice_testkit::builders::{
    a_key_with_secret, a_route, a_tenant, a_user, an_upstream, an_upstream_key, time_zone,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::*;

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

fn hasher() -> KeyHasher {
    Pepper::new([2; 32]).hasher()
}

fn key(master: u8, pepper: u8) -> SnapshotKey {
    SnapshotKey::derive(&[master; 32], &Pepper::new([pepper; 32]).hasher())
}

fn instance(id: u128) -> InstanceId {
    InstanceId::from_uuid(Uuid::from_u128(id))
}

fn file_in(folder: &TempDir) -> SnapshotFile {
    SnapshotFile::new(folder.path().join("snapshot"), key(1, 2), instance(1))
}

fn routing() -> Routing {
    let mut upstream = an_upstream("https://api.example.com/v1");
    upstream.deadlines.idle = Duration::from_millis(1_234);
    let number = |n| NonZeroU32::new(n).unwrap();
    upstream.retry.max_attempts = number(2);
    upstream.breaker = BreakerPolicy {
        max_failures: number(3),
        max_failure_percent: number(4),
        open_for: Duration::from_millis(5),
    };
    upstream.probe_every = Some("5m".parse().unwrap());
    upstream.limits = UpstreamLimits {
        requests_per_minute: Some(number(6)),
        tokens_per_minute: Some(number(7)),
        concurrency: Some(number(8)),
    };
    upstream.api_version = Some("2024-10-21".parse().unwrap());
    let mut upstream_key: UpstreamKey = an_upstream_key(&upstream);
    upstream_key.limits.concurrency = Some(number(9));
    let mut route = a_route("gpt-*", &upstream);
    route.selection = Selection::StickyKey;
    route.targets[0].serves = TargetUse::ContextLength;
    route.targets[0].upstream_model = Some("other".to_owned());
    let sealed = SealedSecret {
        sealed_secret: vec![1, 2, 255],
        wrapped_key: vec![3, 0, 4],
        master_key_id: "mk1".to_owned(),
    };
    Routing {
        keys: vec![(upstream_key, sealed)],
        routes: vec![route],
        upstreams: vec![upstream],
    }
}

/// Two keys of one user and one of another tenant.
fn grants() -> Vec<(KeyHash, KeyGrant)> {
    let mut tenant = a_tenant();
    tenant.time_zone = time_zone("Europe/Berlin");
    tenant.quota_tokens = Some(1_000);
    let user = a_user(&tenant);
    let mut other_tenant = a_tenant();
    other_tenant.id = sluice_domain::id::TenantId::from_uuid(Uuid::from_u128(77));
    let mut other_user = a_user(&other_tenant);
    other_user.id = sluice_domain::id::UserId::from_uuid(Uuid::from_u128(78));
    let grant = |tenant: &Tenant, user: &User, number: u128| {
        let (mut key, _secret) = a_key_with_secret(user);
        key.id = sluice_domain::id::ProxyKeyId::from_uuid(Uuid::from_u128(number));
        let this = tenant.time_zone.period_of(NOW);
        let granted = KeyGrant {
            key,
            user: user.clone(),
            tenant: tenant.clone(),
            periods: vec![this, tenant.time_zone.period(this.month.next())],
            limits: KeyLimits::default(),
        };
        (hasher().hash(&format!("key {number}")), granted)
    };
    let mut limited = grant(&tenant, &user, 1);
    limited.1.key.allowed_models = Some(vec!["gpt-4o".to_owned(), "o\"1\\".to_owned()]);
    limited.1.key.expires_at = Some(UnixMillis(NOW.0 + 5));
    limited.1.key.quota_tokens = Some(7);
    let limits = |n: u64| WindowLimits {
        rps: WindowLimit::new(n).ok(),
        rpm: WindowLimit::new(n + 1).ok().map(WindowLimit::dry_run),
        tpm: WindowLimit::new(n + 2).ok(),
        concurrency: None,
    };
    let of_user = WindowLimits {
        concurrency: WindowLimit::new(9).ok(),
        ..WindowLimits::default()
    };
    limited.1.limits = KeyLimits {
        tenant: limits(10),
        user: of_user,
        key: limits(20),
        models: [(Arc::from("gpt-4o"), limits(30))].into(),
    };
    let mut disabled = grant(&tenant, &user, 2);
    disabled.1.key.state = EntityState::Disabled;
    // Of the same user and tenant.
    disabled.1.limits = KeyLimits {
        key: WindowLimits::default(),
        models: [].into(),
        ..limited.1.limits.clone()
    };
    vec![limited, disabled, grant(&other_tenant, &other_user, 3)]
}

fn frame() -> Frame {
    Frame {
        feed_position: 41,
        as_of: NOW,
        routing: Arc::new(routing()),
    }
}

fn view((hash, grant): &(KeyHash, KeyGrant)) -> GrantView<'_> {
    GrantView {
        hash: *hash,
        key: &grant.key,
        user: &grant.user,
        tenant: &grant.tenant,
        periods: &grant.periods,
        limits: Some(&grant.limits),
    }
}

/// Writes a snapshot and returns what is in it.
fn write(file: &SnapshotFile) -> (Frame, Vec<(KeyHash, KeyGrant)>) {
    let (frame, grants) = (frame(), grants());
    file.write(&frame, grants.iter().map(view)).unwrap();
    (frame, grants)
}

#[test]
fn what_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(&folder);
    let (frame, expected) = write(&file);
    let read = file.read().unwrap();
    assert_eq!((read.feed_position, read.as_of), (41, NOW));
    let found = &read.grants;
    assert_eq!(found.len(), expected.len());
    for ((hash, grant), (found_hash, found)) in expected.iter().zip(found) {
        assert_eq!(hash.0, found_hash.0);
        // Every field is shown.
        assert_eq!(format!("{grant:?}"), format!("{found:?}"));
    }
    let expected = frame.routing;
    assert_eq!(
        format!("{:?}{:?}", expected.upstreams, expected.routes),
        format!("{:?}{:?}", read.routing.upstreams, read.routing.routes)
    );
    let ((key, sealed), (found_key, found_sealed)) = (&expected.keys[0], &read.routing.keys[0]);
    assert_eq!(format!("{key:?}"), format!("{found_key:?}"));
    assert_eq!(sealed, found_sealed);
}

#[test]
fn a_second_write_replaces_the_first_and_a_removed_one_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(&folder);
    write(&file);
    file.write(&frame(), grants().iter().skip(2).map(view))
        .unwrap();
    assert_eq!(file.read().unwrap().grants.len(), 1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    file.remove().unwrap();
    file.remove().unwrap();
    assert!(matches!(file.read(), Err(Unusable::Missing)));
}

#[cfg(unix)]
#[test]
fn the_file_is_its_owners_alone_and_holds_no_key() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(&folder);
    write(&file);
    let mode = std::fs::metadata(&file.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&file.path).unwrap();
    assert!(text.starts_with("sluice-snapshot 2 "), "{text}");
    assert!(!text.contains("key 1"), "a key stands in the clear");
}

#[test]
fn every_changed_byte_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(&folder);
    write(&file);
    let bytes = std::fs::read(&file.path).unwrap();
    for place in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        assert!(
            format::decode(&changed, &file.key, file.instance_id).is_err(),
            "byte {place} of {}",
            bytes.len()
        );
    }
    for length in [0, 1, 30, bytes.len() - 1] {
        let cut = format::decode(&bytes[..length], &file.key, file.instance_id);
        assert!(matches!(cut, Err(Unusable::Forged)), "{length}");
    }
}

#[test]
fn another_master_key_pepper_instance_or_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(&folder);
    write(&file);
    for other in [key(9, 2), key(1, 9)] {
        let other = SnapshotFile {
            key: other,
            ..file.clone()
        };
        assert!(matches!(other.read(), Err(Unusable::Forged)));
    }
    let other = SnapshotFile {
        instance_id: instance(2),
        ..file.clone()
    };
    assert!(matches!(other.read(), Err(Unusable::Foreign)));
    let text = std::fs::read_to_string(&file.path).unwrap();
    let newer = text.replacen("sluice-snapshot 2 ", "sluice-snapshot 3 ", 1);
    std::fs::write(&file.path, newer).unwrap();
    assert!(matches!(file.read(), Err(Unusable::Version)));
}

#[test]
fn the_age_counts_from_when_the_database_was_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = file_in(&folder);
    write(&file);
    let snapshot = file.read().unwrap();
    let max_age = Duration::from_hours(1);
    let age = |ms: i64| snapshot.age(UnixMillis(NOW.0 + ms), max_age);
    assert_eq!(age(90_000).unwrap(), Duration::from_secs(90));
    assert_eq!(age(3_600_000).unwrap(), max_age);
    assert!(matches!(age(3_600_001), Err(Unusable::TooOld { .. })));
    // A clock that was set back a little.
    assert_eq!(age(-30_000).unwrap(), Duration::ZERO);
    assert!(matches!(age(-3_600_000), Err(Unusable::FromFuture)));
}
