use sluice_domain::id::{TenantId, UpstreamId, uuid_v7};
use sluice_domain::time::UnixMillis;
use sluice_domain::upstream::ProviderKind;

use super::*;

fn upstream(tenant: Option<u8>, kind: ProviderKind, url: &str) -> Upstream {
    Upstream {
        tenant_id: tenant.map(|n| TenantId::from_uuid(uuid_v7(1, [n; 10]))),
        ..Upstream::new(
            UpstreamId::from_uuid(uuid_v7(1, [1; 10])),
            "main".parse().unwrap(),
            kind,
            Some(url.parse().unwrap()),
            UnixMillis(0),
        )
    }
}

fn key_id(n: u8) -> UpstreamKeyId {
    UpstreamKeyId::from_uuid(uuid_v7(2, [n; 10]))
}

fn vault(ids: &[&str]) -> Vault {
    Vault::new(
        ids.iter()
            .map(|id| MasterKey::new((*id).to_owned(), [id.as_bytes()[0]; KEY_BYTES]))
            .collect(),
    )
}

fn base() -> SealBinding {
    SealBinding::of(
        &upstream(Some(1), ProviderKind::OpenAi, "https://api.example.com/v1"),
        key_id(1),
    )
}

#[test]
fn a_secret_comes_back_for_its_own_purpose() {
    let vault = vault(&["a"]);
    for text in ["sk-test-123", "", "ключ"] {
        let sealed = vault.seal(&SecretString::from(text), &base()).unwrap();
        assert_eq!(vault.open(&sealed, &base()).unwrap().expose_secret(), text);
    }
}

#[test]
fn sealing_twice_gives_different_bytes() {
    let vault = vault(&["a"]);
    let secret = SecretString::from("sk-test-123");
    let (one, two) = (
        vault.seal(&secret, &base()).unwrap(),
        vault.seal(&secret, &base()).unwrap(),
    );
    assert_ne!(one.sealed_secret, two.sealed_secret);
    assert_ne!(one.wrapped_key, two.wrapped_key);
}

#[test]
fn any_flipped_bit_is_refused() {
    let vault = vault(&["a"]);
    let sealed = vault
        .seal(&SecretString::from("sk-test-123"), &base())
        .unwrap();
    for bit in 0..sealed.sealed_secret.len() * 8 {
        let mut bad = sealed.clone();
        bad.sealed_secret[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            vault.open(&bad, &base()).unwrap_err(),
            SealError::Refused,
            "secret, bit {bit}"
        );
    }
    for bit in 0..sealed.wrapped_key.len() * 8 {
        let mut bad = sealed.clone();
        bad.wrapped_key[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            vault.open(&bad, &base()).unwrap_err(),
            SealError::Refused,
            "key, bit {bit}"
        );
    }
    for bit in 0..base().associated.len() * 8 {
        let mut binding = base();
        binding.associated[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            vault.open(&sealed, &binding).unwrap_err(),
            SealError::Refused,
            "data, bit {bit}"
        );
    }
}

#[test]
fn what_is_cut_short_is_refused() {
    let vault = vault(&["a"]);
    let sealed = vault
        .seal(&SecretString::from("sk-test-123"), &base())
        .unwrap();
    for length in 0..sealed.sealed_secret.len() {
        let mut bad = sealed.clone();
        bad.sealed_secret.truncate(length);
        assert_eq!(
            vault.open(&bad, &base()).unwrap_err(),
            SealError::Refused,
            "{length} bytes"
        );
    }
    let mut bad = sealed.clone();
    bad.wrapped_key.clear();
    assert_eq!(vault.open(&bad, &base()).unwrap_err(), SealError::Refused);
}

#[test]
fn another_row_tenant_kind_or_origin_opens_nothing() {
    let vault = vault(&["a"]);
    let sealed = vault
        .seal(&SecretString::from("sk-test-123"), &base())
        .unwrap();
    let url = "https://api.example.com/v1";
    for (what, binding) in [
        (
            "row",
            SealBinding::of(&upstream(Some(1), ProviderKind::OpenAi, url), key_id(2)),
        ),
        (
            "tenant",
            SealBinding::of(&upstream(Some(2), ProviderKind::OpenAi, url), key_id(1)),
        ),
        (
            "shared",
            SealBinding::of(&upstream(None, ProviderKind::OpenAi, url), key_id(1)),
        ),
        (
            "kind",
            SealBinding::of(&upstream(Some(1), ProviderKind::Azure, url), key_id(1)),
        ),
        (
            "scheme",
            SealBinding::of(
                &upstream(
                    Some(1),
                    ProviderKind::OpenAi,
                    "http://api.example.com:443/v1",
                ),
                key_id(1),
            ),
        ),
        (
            "host",
            SealBinding::of(
                &upstream(Some(1), ProviderKind::OpenAi, "https://api.example.org/v1"),
                key_id(1),
            ),
        ),
        (
            "port",
            SealBinding::of(
                &upstream(
                    Some(1),
                    ProviderKind::OpenAi,
                    "https://api.example.com:8443/v1",
                ),
                key_id(1),
            ),
        ),
    ] {
        assert_eq!(
            vault.open(&sealed, &binding).unwrap_err(),
            SealError::Refused,
            "{what}"
        );
    }
}

#[test]
fn another_path_of_the_same_origin_opens_it() {
    let vault = vault(&["a"]);
    let sealed = vault
        .seal(&SecretString::from("sk-test-123"), &base())
        .unwrap();
    let moved = SealBinding::of(
        &upstream(Some(1), ProviderKind::OpenAi, "https://api.example.com/v2"),
        key_id(1),
    );
    assert!(vault.open(&sealed, &moved).is_ok());
}

#[test]
fn the_first_key_seals_and_all_open() {
    let old = vault(&["a"]);
    let both = vault(&["b", "a"]);
    let sealed = old.seal(&SecretString::from("s"), &base()).unwrap();
    assert!(both.open(&sealed, &base()).is_ok());
    let newer = both.seal(&SecretString::from("s"), &base()).unwrap();
    assert_eq!(newer.master_key_id, "b");
    assert_eq!(
        old.open(&newer, &base()).unwrap_err(),
        SealError::UnknownMasterKey("b".to_owned())
    );
}

#[test]
fn the_layers_cannot_be_swapped() {
    let vault = vault(&["a"]);
    let sealed = vault
        .seal(&SecretString::from("sk-test-123"), &base())
        .unwrap();
    let swapped = SealedSecret {
        sealed_secret: sealed.wrapped_key.clone(),
        wrapped_key: sealed.sealed_secret.clone(),
        ..sealed
    };
    assert_eq!(
        vault.open(&swapped, &base()).unwrap_err(),
        SealError::Refused
    );
}

#[test]
fn another_key_of_the_same_name_opens_nothing() {
    let sealed = vault(&["a"])
        .seal(&SecretString::from("s"), &base())
        .unwrap();
    let other = Vault::new(vec![MasterKey::new("a".to_owned(), [9; KEY_BYTES])]);
    assert_eq!(
        other.open(&sealed, &base()).unwrap_err(),
        SealError::Refused
    );
}

#[test]
fn debug_never_shows_a_key() {
    let shown = format!("{:?}", vault(&["a"]));
    assert_eq!(shown, "Vault([MasterKey(a)])");
}
