//! Which addresses upstreams may be at.
//!
//! A provider's name that leads into the network of the operator would make of the relay a way into
//! it. So each address is judged by the range that it is in, never by how it was written, and the
//! judgment is made on the address that is connected to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// Anybody's, in the internet.
    Public,
    /// This machine.
    Loopback,
    /// A private network, also a unique-local one.
    Private,
    /// Shared by the customers of a carrier, and used inside clusters.
    Shared,
    /// Set aside for documents, measurements and translation between networks.
    Special,
    /// The same network segment.
    LinkLocal,
    /// Where clouds hand credentials and settings to their machines.
    Metadata,
    /// Many receivers.
    Multicast,
    /// No machine at all, or whichever one is asked.
    Unspecified,
    /// Not in use.
    Reserved,
}

/// Who may be sent to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// Every upstream.
    Anyone,
    /// Upstreams that may be at private addresses.
    Allowed,
    /// None: no server of models is there, and something worth stealing may be.
    Nobody,
}

impl AddressKind {
    /// Judges an address. An IPv6 address that carries an IPv4 address is at least as close as that
    /// one.
    ///
    /// # Source
    /// The special-purpose registries of IANA for IPv4 and IPv6, seen 2026-11; the metadata addresses
    /// are those of AWS, Azure, Google Cloud, Alibaba Cloud and Oracle Cloud.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    const fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [169, 254, 169, 254]
            | [169, 254, 170, 2 | 23]
            | [100, 100, 100, 200]
            | [168, 63, 129, 16]
            | [192, 0, 0, 192] => Self::Metadata,
            [0, ..] => Self::Unspecified,
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Self::Private,
            [100, 64..=127, ..] => Self::Shared,
            [169, 254, ..] => Self::LinkLocal,
            [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _] => Self::Special,
            [224..=239, ..] => Self::Multicast,
            [240..=255, ..] => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let own = match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => return Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => return Self::Loopback,
            [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23 | 0x254] | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254] => {
                Self::Metadata
            }
            [0xfc00..=0xfdff, ..] => Self::Private,
            // With the site-local ones, which came before the unique-local ones.
            [0xfe80..=0xfeff, ..] => Self::LinkLocal,
            [0xff00..=0xffff, ..] => Self::Multicast,
            [0x64, 0xff9b, 1, ..] | [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => {
                Self::Special
            }
            // Also what is nothing but a way to write an IPv4 address: mapped, and the translation of
            // RFC 6052.
            [0x2000..=0x3fff, ..]
            | [0, 0, 0, 0, 0, 0xffff, ..]
            | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Self::Public,
            _ => Self::Reserved,
        };
        embedded(address)
            .into_iter()
            .flatten()
            .map(Self::of_v4)
            .fold(own, Self::closer)
    }

    /// Returns which of two is further from public.
    fn closer(self, other: Self) -> Self {
        if other.reach() > self.reach() {
            other
        } else {
            self
        }
    }

    /// Returns who may be sent there.
    pub const fn reach(self) -> Reach {
        match self {
            Self::Public => Reach::Anyone,
            Self::Loopback | Self::Private | Self::Shared | Self::Special => Reach::Allowed,
            // Link-local addresses as a whole: clouds add to their metadata services there.
            Self::LinkLocal
            | Self::Metadata
            | Self::Multicast
            | Self::Unspecified
            | Self::Reserved => Reach::Nobody,
        }
    }
}

/// Returns the IPv4 addresses that an IPv6 address carries.
fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Some(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        // Teredo: the server as it is, the client with all bits turned.
        [0x2001, 0, high, low, _, _, client_high, client_low] => {
            [v4(high, low), v4(!client_high, !client_low)]
        }
        // Mapped, compatible (which nobody uses), the translations of RFC 6052 and RFC 8215, 6to4,
        // ISATAP.
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0x64, 0xff9b, _, _, _, _, high, low]
        | [0x2002, high, low, ..]
        | [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => [v4(high, low), None],
        _ => [None, None],
    }
}

impl fmt::Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "a public address",
            Self::Loopback => "an address of this machine",
            Self::Private => "an address of a private network",
            Self::Shared => "an address of a shared (carrier) network",
            Self::Special => "an address for special purposes",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "an address of a cloud's metadata service",
            Self::Multicast => "a multicast address",
            Self::Unspecified => "no address of a machine",
            Self::Reserved => "a reserved address",
        })
    }
}

/// An upstream may not be where its URL or its name leads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForbiddenAddress {
    /// It would have to be allowed for the upstream.
    #[error("{host} is {kind}, and private addresses are not allowed for this upstream")]
    NotAllowed {
        /// The address or name, as people know it.
        host: String,
        /// What it is.
        kind: AddressKind,
    },
    /// It cannot be allowed.
    #[error("{host} is {kind}; no upstream may be there")]
    Never {
        /// The address or name, as people know it.
        host: String,
        /// What it is.
        kind: AddressKind,
    },
}

/// Checks an address that is about to be connected to.
///
/// # Errors
/// [`ForbiddenAddress`] when the upstream may not be there.
pub fn check_address(address: IpAddr, allow_private: bool) -> Result<(), ForbiddenAddress> {
    check(AddressKind::of(address), allow_private, || {
        address.to_string()
    })
}

/// Checks the name of a host as far as it tells where it leads; the addresses behind it are checked
/// when they are known.
///
/// # Errors
/// [`ForbiddenAddress`] when the upstream may not be there.
pub fn check_host_name(name: &str, allow_private: bool) -> Result<(), ForbiddenAddress> {
    const LOCAL: [&str; 4] = [
        "localhost",
        "localhost.localdomain",
        "ip6-localhost",
        "ip6-loopback",
    ];
    const METADATA: [&str; 2] = ["metadata.google.internal", "metadata.goog"];
    let bare = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let kind = if LOCAL.contains(&bare.as_str()) || bare.ends_with(".localhost") {
        AddressKind::Loopback
    } else if METADATA.contains(&bare.as_str()) {
        AddressKind::Metadata
    } else {
        AddressKind::Public
    };
    check(kind, allow_private, || name.to_owned())
}

fn check(
    kind: AddressKind,
    allow_private: bool,
    host: impl FnOnce() -> String,
) -> Result<(), ForbiddenAddress> {
    match kind.reach() {
        Reach::Anyone => Ok(()),
        Reach::Allowed if allow_private => Ok(()),
        Reach::Allowed => Err(ForbiddenAddress::NotAllowed { host: host(), kind }),
        Reach::Nobody => Err(ForbiddenAddress::Never { host: host(), kind }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn kind(text: &str) -> AddressKind {
        AddressKind::of(text.parse().unwrap())
    }

    #[test]
    fn the_first_and_last_address_of_each_range_are_judged_by_it_and_their_neighbors_not() {
        use AddressKind as K;
        for (texts, expected) in [
            (["0.0.0.0", "0.255.255.255"], K::Unspecified),
            (["1.0.0.0", "9.255.255.255"], K::Public),
            (["10.0.0.0", "10.255.255.255"], K::Private),
            (["11.0.0.0", "100.63.255.255"], K::Public),
            (["100.64.0.0", "100.127.255.255"], K::Shared),
            (["100.128.0.0", "126.255.255.255"], K::Public),
            (["127.0.0.0", "127.255.255.255"], K::Loopback),
            (["128.0.0.0", "169.253.255.255"], K::Public),
            (["169.254.0.0", "169.254.255.255"], K::LinkLocal),
            (["169.255.0.0", "172.15.255.255"], K::Public),
            (["172.16.0.0", "172.31.255.255"], K::Private),
            (["172.32.0.0", "191.255.255.255"], K::Public),
            (["192.0.0.0", "192.0.0.255"], K::Special),
            (["192.0.1.0", "192.0.1.255"], K::Public),
            (["192.0.2.0", "192.0.2.255"], K::Special),
            (["192.0.3.0", "192.88.98.255"], K::Public),
            (["192.88.99.0", "192.88.99.255"], K::Special),
            (["192.88.100.0", "192.167.255.255"], K::Public),
            (["192.168.0.0", "192.168.255.255"], K::Private),
            (["192.169.0.0", "198.17.255.255"], K::Public),
            (["198.18.0.0", "198.19.255.255"], K::Special),
            (["198.20.0.0", "198.51.99.255"], K::Public),
            (["198.51.100.0", "198.51.100.255"], K::Special),
            (["198.51.101.0", "203.0.112.255"], K::Public),
            (["203.0.113.0", "203.0.113.255"], K::Special),
            (["203.0.114.0", "223.255.255.255"], K::Public),
            (["224.0.0.0", "239.255.255.255"], K::Multicast),
            (["240.0.0.0", "255.255.255.255"], K::Reserved),
            (["169.254.169.254", "169.254.170.2"], K::Metadata),
            (["169.254.170.23", "100.100.100.200"], K::Metadata),
            (["168.63.129.16", "192.0.0.192"], K::Metadata),
            (["::", "::"], K::Unspecified),
            (["::1", "::1"], K::Loopback),
            (["::2", "::a:1"], K::Reserved),
            (["100::", "1fff::"], K::Reserved),
            (["2000::", "2000:ffff::"], K::Public),
            (["2001:1::", "2001:1ff:ffff::"], K::Special),
            (["2001:200::", "2001:db7:ffff::"], K::Public),
            (["2001:db8::", "2001:db8:ffff::"], K::Special),
            (["2001:db9::", "2001:ffff::"], K::Public),
            (["2003::", "3ffe:ffff::"], K::Public),
            (["3fff::", "3fff:fff:ffff::"], K::Special),
            (["3fff:1000::", "3fff:ffff::"], K::Public),
            (["4000::", "fbff:ffff::"], K::Reserved),
            (["fc00::", "fdff:ffff::"], K::Private),
            (["fe00::", "fe7f:ffff::"], K::Reserved),
            (["fe80::", "febf:ffff::"], K::LinkLocal),
            (["fec0::", "feff:ffff::"], K::LinkLocal),
            (["ff00::", "ffff:ffff::"], K::Multicast),
            (["fd00:ec2::254", "fd00:ec2::23"], K::Metadata),
            (["fd20:ce::254", "fd20:ce::254"], K::Metadata),
        ] {
            for text in texts {
                assert_eq!(kind(text), expected, "{text}");
            }
        }
    }

    #[test]
    fn an_address_inside_an_address_counts_as_much_as_the_address() {
        use AddressKind as K;
        for (text, expected) in [
            ("::ffff:8.8.8.8", K::Public),
            ("::ffff:127.0.0.1", K::Loopback),
            ("::ffff:7f00:1", K::Loopback),
            ("::ffff:169.254.169.254", K::Metadata),
            ("::10.0.0.1", K::Reserved),
            ("64:ff9b::8.8.8.8", K::Public),
            ("64:ff9b::10.0.0.1", K::Private),
            ("64:ff9b::169.254.169.254", K::Metadata),
            ("64:ff9b:1::8.8.8.8", K::Special),
            ("64:ff9b:1:2:3:4:169.254.169.254", K::Metadata),
            ("2002:808:808::1", K::Public),
            ("2002:7f00:1::1", K::Loopback),
            ("2002:a9fe:a9fe::1", K::Metadata),
            ("2001:0:808:808::f7f7:f7f7", K::Special),
            // The client is 169.254.169.254 with all bits turned.
            ("2001:0:808:808::5601:5601", K::Metadata),
            ("2001:0:a9fe:a9fe::f7f7:f7f7", K::Metadata),
            ("2600::5efe:8.8.8.8", K::Public),
            ("2600::200:5efe:10.0.0.1", K::Private),
            ("fd00::5efe:169.254.169.254", K::Metadata),
        ] {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn private_addresses_need_to_be_allowed_and_some_never_are() {
        let check = |text: &str, allow| check_address(text.parse().unwrap(), allow);
        for text in ["8.8.8.8", "2606:4700::1111"] {
            assert_eq!((check(text, false), check(text, true)), (Ok(()), Ok(())));
        }
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "100.64.0.1",
            "198.18.0.1",
            "::1",
            "fd00::1",
        ] {
            assert!(
                matches!(check(text, false), Err(ForbiddenAddress::NotAllowed { .. })),
                "{text}"
            );
            assert_eq!(check(text, true), Ok(()), "{text}");
        }
        for text in [
            "0.0.0.0",
            "169.254.0.1",
            "169.254.169.254",
            "168.63.129.16",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
        ] {
            for allow in [false, true] {
                assert!(
                    matches!(check(text, allow), Err(ForbiddenAddress::Never { .. })),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn names_of_this_machine_and_of_metadata_services_are_known() {
        for name in [
            "localhost",
            "LocalHost.",
            "a.localhost",
            "a.localhost.",
            "localhost.localdomain",
            "ip6-loopback",
        ] {
            assert!(check_host_name(name, false).is_err(), "{name}");
            assert_eq!(check_host_name(name, true), Ok(()), "{name}");
        }
        for name in ["metadata.google.internal", "METADATA.goog."] {
            assert!(check_host_name(name, true).is_err(), "{name}");
        }
        for name in ["api.example.com", "localhost.example.com", "mylocalhost"] {
            assert_eq!(check_host_name(name, false), Ok(()), "{name}");
        }
    }
}
