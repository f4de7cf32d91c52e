//! A NIC's hardware address, and the IPv6 address that follows from it.

use std::fmt;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

/// The address of one NIC: six bytes, no group address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac([u8; 6]);

impl Mac {
    /// `aa:00:00:35:e8:90`, as Ganeti writes it, in either case.
    pub fn parse(text: &str) -> Option<Mac> {
        let mut bytes = [0; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            let group = groups.next().filter(|g| g.len() == 2 && g.bytes().all(|b| b.is_ascii_hexdigit()))?;
            *byte = u8::from_str_radix(group, 16).ok()?;
        }
        let is_group = bytes[0] & 1 == 1;
        (groups.next().is_none() && !is_group && bytes != [0; 6]).then_some(Mac(bytes))
    }

    /// The interface's address in a /64: modified EUI-64 (RFC 4291, appendix A), as routers and Ganeti's own
    /// networks expect it.
    pub fn eui64(self, subnet: Ipv6Net) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        Ipv6Addr::from(u128::from(subnet.network()) | u128::from(interface))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_six_pairs_of_hex_digits_and_no_group() {
        for good in ["aa:00:00:35:e8:90", "00:16:3E:00:00:01"] {
            assert_eq!(Mac::parse(good).unwrap().to_string(), good.to_lowercase());
        }
        for bad in [
            "",
            "aa:00:00:35:e8",
            "aa:00:00:35:e8:90:01",
            "aa-00-00-35-e8-90",
            "aa:00:00:35:e8:9",
            "aa:00:00:35:e8:+9",
            "ga:00:00:35:e8:90",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "auto",
        ] {
            assert_eq!(Mac::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_ipv6_address_follows_from_the_mac() {
        let mac = Mac::parse("aa:00:01:d8:a3:5b").unwrap();
        let subnet = "2001:db8:1::/64".parse().unwrap();
        assert_eq!(mac.eui64(subnet), "2001:db8:1:0:a800:1ff:fed8:a35b".parse::<Ipv6Addr>().unwrap());
    }
}
