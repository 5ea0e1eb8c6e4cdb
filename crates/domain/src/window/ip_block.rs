//! The addresses that are counted as one caller.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// One IPv4 address, or a block of IPv6 addresses that one caller is likely to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IpBlock {
    first: IpAddr,
    prefix_len: u8,
}

impl IpBlock {
    /// Length of the prefix that a provider usually gives to one customer.
    ///
    /// # Source
    /// RFC 6177: end sites get at least a /64.
    pub const DEFAULT_V6_PREFIX_LEN: u8 = 64;

    /// Returns the block that an address belongs to. An IPv4 address stands for itself, also where
    /// it is written as IPv6.
    ///
    /// # Units
    /// `v6_prefix_len` is in bits; what is above 128 is 128.
    pub fn of(address: IpAddr, v6_prefix_len: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self {
                first: IpAddr::V4(v4),
                prefix_len: 32,
            },
            IpAddr::V6(v6) => {
                let prefix_len = v6_prefix_len.min(128);
                let host_bits = u32::from(128 - prefix_len);
                let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
                Self {
                    first: IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask)),
                    prefix_len,
                }
            }
        }
    }

    /// Returns the first address of the block.
    pub const fn first(self) -> IpAddr {
        self.first
    }

    /// Returns how many leading bits all of its addresses share.
    pub const fn prefix_len(self) -> u8 {
        self.prefix_len
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(address: &str, prefix_len: u8) -> String {
        IpBlock::of(address.parse().unwrap(), prefix_len).to_string()
    }

    #[test]
    fn addresses_of_one_network_are_one_caller() {
        assert_eq!(block("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::/64");
        assert_eq!(block("2001:db8:1:2:ffff::", 64), "2001:db8:1:2::/64");
        assert_eq!(block("2001:db8:1:2:3::", 56), "2001:db8:1::/56");
        assert_eq!(block("2001:db8::1", 128), "2001:db8::1/128");
        assert_eq!(block("2001:db8::1", 0), "::/0");
    }

    #[test]
    fn an_ipv4_address_is_itself_however_it_is_written() {
        assert_eq!(block("192.0.2.7", 64), "192.0.2.7/32");
        assert_eq!(block("::ffff:192.0.2.7", 64), "192.0.2.7/32");
    }
}
