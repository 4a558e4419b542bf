//! Which addresses a buyer on the internet can have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where an address can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the internet.
    Internet,
    /// In documents and examples alone (RFC 5737, RFC 3849, RFC 9637). Simulated buyers have such addresses.
    Documents,
    /// On this machine, in a private network or behind the NAT of a carrier, or with no buyer at all.
    Nowhere,
}

impl Place {
    /// Where this address can be. An IPv4 address in the form of an IPv6 one is that IPv4 address.
    pub fn of(address: IpAddr) -> Place {
        match address.to_canonical() {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => of_v6(address),
        }
    }
}

/// Source: IANA IPv4 Special-Purpose Address Registry, read 2026-11-30.
fn of_v4(address: Ipv4Addr) -> Place {
    let [first, second, third, _] = address.octets();
    match (first, second, third) {
        (192, 0, 2) | (198, 51, 100) | (203, 0, 113) => Place::Documents,
        // This network, private, loopback, and from 224 on multicast and what is reserved.
        (0 | 10 | 127 | 224..=255, ..) => Place::Nowhere,
        // Carrier-grade NAT.
        (100, 64..=127, _) => Place::Nowhere,
        // Link-local.
        (169, 254, _) => Place::Nowhere,
        (172, 16..=31, _) | (192, 168, _) => Place::Nowhere,
        // Protocol assignments, and benchmarks.
        (192, 0, 0) | (198, 18..=19, _) => Place::Nowhere,
        _ => Place::Internet,
    }
}

/// Source: IANA IPv6 Global Unicast Address Assignments: every address of the internet is in 2000::/3.
fn of_v6(address: Ipv6Addr) -> Place {
    match address.segments() {
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Place::Documents,
        [0x2000..=0x3fff, ..] => Place::Internet,
        _ => Place::Nowhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_on_the_internet() {
        let place = |text: &str| Place::of(text.parse().unwrap());
        for text in [
            "1.2.3.4",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:1.2.3.4",
            "2400:3200::1",
            "2a00::1",
        ] {
            assert_eq!(place(text), Place::Internet, "{text}");
        }
        for text in ["192.0.2.1", "198.51.100.7", "203.0.113.7", "::ffff:203.0.113.7", "2001:db8::1", "3fff:fff::1"] {
            assert_eq!(place(text), Place::Documents, "{text}");
        }
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "::10.1.2.3",
            "64:ff9b::102:304",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert_eq!(place(text), Place::Nowhere, "{text}");
        }
    }
}
