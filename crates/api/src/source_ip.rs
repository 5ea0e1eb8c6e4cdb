//! Where a request comes from: the address of the client, as far as the proxies in front are
//! believed.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::HeaderName;
use ipnet::IpNet;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Returns the address of the client, an IPv4 address in its own form even where it came in that of
/// IPv6.
///
/// Each proxy adds the address that called it at the right of `X-Forwarded-For`. The header is
/// believed from the right, and only as far as every hop behind it is a trusted proxy: what stands
/// further left was written by somebody whom nobody vouches for. A hop that is no address ends the
/// walk, so that the proxy which passed it on is the client.
pub(crate) fn source_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let mut client = peer.to_canonical();
    if !is_trusted(&client) {
        return client;
    }
    // Several headers are one list. Bytes, because a header that is not text must not be passed
    // over: what stands left of it would be believed instead.
    let hops = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .rev()
        .flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
    for hop in hops {
        let Some(ip) = address(hop) else { break };
        client = ip;
        if !is_trusted(&client) {
            break;
        }
    }
    client
}

/// Reads one hop: an address, alone, in brackets or with a port, as proxies write it.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(hop).ok()?.trim();
    let bracketed = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let ip = bracketed
        .unwrap_or(text)
        .parse()
        .or_else(|_no_address| text.parse::<SocketAddr>().map(|with_port| with_port.ip()))
        .ok()?;
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn ip(peer: &str, forwarded: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(value).unwrap());
        }
        let trusted = ["10.0.0.0/8", "127.0.0.1/32", "fd00::/8"].map(|net| net.parse().unwrap());
        source_ip(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn a_forwarded_address_is_believed_from_trusted_proxies_only() {
        let cases: [(&str, &[&[u8]], &str); 18] = [
            // Nobody vouches for what a stranger sends.
            ("203.0.113.9", &[b"198.51.100.1"], "203.0.113.9"),
            ("203.0.113.9", &[b"10.1.1.1"], "203.0.113.9"),
            ("127.0.0.1", &[b"198.51.100.1"], "198.51.100.1"),
            ("::ffff:127.0.0.1", &[b"198.51.100.1"], "198.51.100.1"),
            ("fd00::1", &[b"2001:db8::7"], "2001:db8::7"),
            // From the right, over trusted hops only.
            (
                "127.0.0.1",
                &[b"1.1.1.1, 198.51.100.1, 10.1.1.1"],
                "198.51.100.1",
            ),
            ("127.0.0.1", &[b"10.2.2.2,10.1.1.1"], "10.2.2.2"),
            // Several headers are one list.
            ("127.0.0.1", &[b"1.1.1.1", b"198.51.100.1"], "198.51.100.1"),
            (
                "127.0.0.1",
                &[b"198.51.100.1", b"10.1.1.1, 10.1.1.2"],
                "198.51.100.1",
            ),
            // In the forms of various proxies.
            ("127.0.0.1", &[b"198.51.100.1:4711"], "198.51.100.1"),
            ("127.0.0.1", &[b"[2001:db8::7]:443"], "2001:db8::7"),
            ("127.0.0.1", &[b"[2001:db8::7]"], "2001:db8::7"),
            ("127.0.0.1", &[b"::ffff:198.51.100.1"], "198.51.100.1"),
            // What is no address ends the walk at the one who passed it on.
            ("127.0.0.1", &[b"198.51.100.1, unknown"], "127.0.0.1"),
            ("127.0.0.1", &[b"198.51.100.1, ,10.1.1.1"], "10.1.1.1"),
            (
                "127.0.0.1",
                &[b"198.51.100.1", b"\xff, 10.1.1.1"],
                "10.1.1.1",
            ),
            ("127.0.0.1", &[b""], "127.0.0.1"),
            ("127.0.0.1", &[], "127.0.0.1"),
        ];
        for (peer, forwarded, expected) in cases {
            assert_eq!(ip(peer, forwarded), expected, "{peer} {forwarded:?}");
        }
    }

    /// A client that sends another `X-Forwarded-For` with each request is the same client.
    #[test]
    fn what_a_client_writes_itself_changes_nothing() {
        for number in 0..=255 {
            let spoofed = format!("192.0.2.{number}, 198.51.100.{number}, 203.0.113.9");
            assert_eq!(ip("10.0.0.1", &[spoofed.as_bytes()]), "203.0.113.9");
            let two = format!("192.0.2.{number}");
            assert_eq!(
                ip("10.0.0.1", &[two.as_bytes(), b"\xfe", b"203.0.113.9"]),
                "203.0.113.9"
            );
        }
    }
}
