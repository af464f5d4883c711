//! Names under in-addr.arpa and ip6.arpa: the address, or part of one, that they stand for.
//!
//! Invariant: what is read is what the name's labels say, canonically (no leading zeros), from the right; the rest is not guessed.
//! Read first: RFC 1035 section 3.5, RFC 3596 section 2.5, RFC 6303 (zones that nobody else shall be asked about).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::within;

/// What such a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reverse {
    /// The address; the bits that are not told are zero.
    address: IpAddr,
    /// Bits that are told.
    length: u8,
    /// Every label was used.
    exact: bool,
}

impl Reverse {
    /// The meaning of a name's labels in lower case; nothing when it is not such a name.
    pub(crate) fn of(labels: &[&[u8]]) -> Option<Reverse> {
        match labels {
            [front @ .., b"in-addr", b"arpa"] => Some(Self::read(front, octet, 8, 4, |value, length| {
                IpAddr::V4(Ipv4Addr::from_bits((value as u32).checked_shl(32 - length).unwrap_or(0)))
            })),
            [front @ .., b"ip6", b"arpa"] => Some(Self::read(front, nibble, 4, 32, |value, length| {
                IpAddr::V6(Ipv6Addr::from_bits(value.checked_shl(128 - length).unwrap_or(0)))
            })),
            _ => None,
        }
    }

    fn read(
        front: &[&[u8]],
        digit: fn(&[u8]) -> Option<u8>,
        bits: u32,
        most: usize,
        address: fn(u128, u32) -> IpAddr,
    ) -> Reverse {
        let digits: Vec<u8> = front.iter().rev().take(most).map_while(|label| digit(label)).collect();
        let value = digits.iter().fold(0u128, |value, digit| value << bits | u128::from(*digit));
        let length = digits.len() as u32 * bits;
        Reverse { address: address(value, length), length: length as u8, exact: digits.len() == front.len() }
    }

    /// The address, where the name stands for exactly one.
    pub(crate) fn whole(&self) -> Option<IpAddr> {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        (self.exact && self.length == bits).then_some(self.address)
    }

    /// Whether it stands for a part of an address that has more below it.
    pub(crate) fn is_inner(&self) -> bool {
        self.exact && self.whole().is_none()
    }

    /// Whether it lies in one of the zones of addresses that mean something else in every network.
    pub(crate) fn is_private(&self) -> bool {
        PRIVATE.iter().any(|(network, length)| self.length >= *length && within(self.address, *network, *length))
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(a: u16, b: u16, last: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, last))
}

/// RFC 6303 section 4, RFC 7793.
const PRIVATE: [(IpAddr, u8); 16] = [
    (v4(10, 0, 0, 0), 8),
    (v4(172, 16, 0, 0), 12),
    (v4(192, 168, 0, 0), 16),
    (v4(0, 0, 0, 0), 8),
    (v4(127, 0, 0, 0), 8),
    (v4(169, 254, 0, 0), 16),
    (v4(192, 0, 2, 0), 24),
    (v4(198, 51, 100, 0), 24),
    (v4(203, 0, 113, 0), 24),
    (v4(255, 255, 255, 255), 32),
    (v4(100, 64, 0, 0), 10),
    (v6(0, 0, 0), 128),
    (v6(0, 0, 1), 128),
    (v6(0xfd00, 0, 0), 8),
    (v6(0xfe80, 0, 0), 10),
    (v6(0x2001, 0xdb8, 0), 32),
];

/// 0 to 255 as they are written.
fn octet(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    text.parse::<u8>().ok().filter(|value| value.to_string() == text)
}

/// One hexadecimal digit in lower case.
fn nibble(label: &[u8]) -> Option<u8> {
    match *label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Option<Reverse> {
        Reverse::of(&name.split('.').map(str::as_bytes).collect::<Vec<_>>())
    }

    #[test]
    fn names_stand_for_addresses_and_parts_of_them() {
        assert_eq!(of("5.0.9.10.in-addr.arpa").unwrap().whole(), Some("10.9.0.5".parse().unwrap()));
        let v6 = format!("2.{}9.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(of(&v6).unwrap().whole(), Some("fd09::2".parse().unwrap()));
        let inner = of("0.9.10.in-addr.arpa").unwrap();
        assert!(inner.is_inner() && inner.is_private());
        for strange in ["x.5.0.9.10.in-addr.arpa", "05.0.9.10.in-addr.arpa", "256.0.9.10.in-addr.arpa"] {
            let strange = of(strange).unwrap();
            assert!(strange.whole().is_none() && !strange.is_inner() && strange.is_private(), "{strange:?}");
        }
        assert_eq!(of("in-addr.arpa.example"), None);
    }

    #[test]
    fn private_zones_are_those_of_rfc_6303() {
        for private in ["10", "16.172", "31.172", "168.192", "127", "64.100", "127.100", "255.255.255.255"] {
            assert!(of(&format!("{private}.in-addr.arpa")).unwrap().is_private(), "{private}");
        }
        for public in ["172", "15.172", "32.172", "192", "8.8.8.8", "63.100", "128.100", "255"] {
            assert!(!of(&format!("{public}.in-addr.arpa")).unwrap().is_private(), "{public}");
        }
        assert!(of("d.f.ip6.arpa").unwrap().is_private() && of("b.e.f.ip6.arpa").unwrap().is_private());
        assert!(of("8.b.d.0.1.0.0.2.ip6.arpa").unwrap().is_private());
        assert!(!of("f.ip6.arpa").unwrap().is_private() && !of("c.e.f.ip6.arpa").unwrap().is_private());
        assert!(!of("in-addr.arpa").unwrap().is_private());
    }
}
