//! Names of counters in Redis.

use std::fmt::Write as _;

use sluice_domain::window::{WindowGroup, WindowKey, WindowSubject};

/// Changes when the form of what is stored changes.
const VERSION: &str = "w1";
/// How many parts a cluster has.
pub(super) const SLOTS: u16 = 16_384;

/// Returns what all names of a group have in common, which puts them on one server of a cluster;
/// `None` for what is never in Redis.
pub(super) fn tag(group: WindowGroup) -> Option<String> {
    match group {
        WindowGroup::Ip(block) => Some(format!("ip:{block}")),
        WindowGroup::Tenant(id) => Some(format!("tenant:{id}")),
        WindowGroup::Instance => None,
    }
}

/// Returns the name of what a group as a whole has.
pub(super) fn group_name(prefix: &str, tag: &str) -> String {
    format!("{prefix}:{VERSION}:{{{tag}}}")
}

/// Returns the name of a counter. `group` is the name of its group.
pub(super) fn counter_name(group: &str, key: &WindowKey) -> String {
    let mut name = String::with_capacity(group.len() + 60);
    name.push_str(group);
    let written = match &key.subject {
        WindowSubject::SourceIp(_) => write!(name, ":ip:{}", key.kind),
        WindowSubject::ProxyKey(id) => write!(name, ":{id}:{}", key.kind),
        // The model comes last: it may have any characters.
        WindowSubject::ProxyKeyModel(id, model) => {
            write!(name, ":{id}:{}:{model}", key.kind)
        }
        WindowSubject::User(id) => write!(name, ":{id}:{}", key.kind),
        WindowSubject::Tenant(_) => write!(name, ":tenant:{}", key.kind),
        WindowSubject::Instance => write!(name, ":instance:{}", key.kind),
    };
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    name
}

/// Returns the name of what is known of a server, which must lie on it.
pub(super) fn server_name(prefix: &str, first_slot: Option<u16>) -> String {
    let tag = first_slot.map_or_else(|| "server".to_owned(), tag_in_slot);
    format!("{prefix}:{VERSION}:{{{tag}}}:server")
}

/// Returns a short text that belongs to a slot.
fn tag_in_slot(slot: u16) -> String {
    // A few tens of thousands are enough to meet each of 16384 slots.
    (0..10_000_000_u32)
        .map(|n| n.to_string())
        .find(|text| slot_of(text) == slot)
        .unwrap_or_default()
}

/// Returns the part of a cluster to which a tag belongs.
///
/// # Source
/// The cluster specification of Redis: CRC-16/XMODEM modulo 16384.
pub(super) fn slot_of(tag: &str) -> u16 {
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            }
        })
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis() {
        // As `CLUSTER KEYSLOT` says; the specification gives 0x31C3 for the first.
        assert_eq!(slot_of("123456789"), 0x31C3);
        assert_eq!(slot_of("foo"), 12_182);
        assert_eq!(slot_of(""), 0);
    }

    #[test]
    fn every_slot_has_a_tag() {
        for slot in [0, 1, 5_460, 8_191, 16_383] {
            assert_eq!(slot_of(&tag_in_slot(slot)), slot);
        }
    }
}
