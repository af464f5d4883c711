//! [`Prefix`]: addresses that begin with the same bits; [`Prefixes`]: many of them, and whether an address is in any.
//!
//! Invariant: the ranges of [`Prefixes`] are sorted and apart, so that a question takes one search by halves, however many there are.
//! Read first: RFC 4632 section 3.1, RFC 4291 section 2.3.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The addresses that have the first `length` bits of `address`; nothing when an address of its family has fewer.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        let most = if address.is_ipv6() { 128 } else { 32 };
        (length <= most).then_some(Prefix { address, length })
    }

    /// The first address and the last.
    fn ends(self) -> (IpAddr, IpAddr) {
        let length = u32::from(self.length);
        match self.address {
            IpAddr::V4(address) => {
                let rest = u32::MAX.checked_shr(length).unwrap_or(0);
                let bits = address.to_bits();
                (Ipv4Addr::from_bits(bits & !rest).into(), Ipv4Addr::from_bits(bits | rest).into())
            }
            IpAddr::V6(address) => {
                let rest = u128::MAX.checked_shr(length).unwrap_or(0);
                let bits = address.to_bits();
                (Ipv6Addr::from_bits(bits & !rest).into(), Ipv6Addr::from_bits(bits | rest).into())
            }
        }
    }
}

impl From<IpAddr> for Prefix {
    /// One address.
    fn from(address: IpAddr) -> Prefix {
        Prefix { address, length: if address.is_ipv6() { 128 } else { 32 } }
    }
}

/// See the module's documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefixes {
    /// First and last addresses; those of IPv4 come before those of IPv6.
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Prefixes {
    pub(crate) fn new(of: &[Prefix]) -> Prefixes {
        let mut all: Vec<(IpAddr, IpAddr)> = of.iter().map(|prefix| prefix.ends()).collect();
        all.sort_unstable();
        let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match ranges.last_mut() {
                Some((_, before)) if first <= *before => *before = last.max(*before),
                _ => ranges.push((first, last)),
            }
        }
        Prefixes { ranges }
    }

    pub(crate) fn hold(&self, address: IpAddr) -> bool {
        let after = self.ranges.partition_point(|(first, _)| *first <= address);
        let at = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        at.is_some_and(|(_, last)| address <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_held_by_the_prefixes_that_it_begins_with() {
        let prefix = |address: &str, length| Prefix::new(address.parse().unwrap(), length).unwrap();
        let single = Prefix::from("192.0.2.7".parse::<IpAddr>().unwrap());
        let all = Prefixes::new(&[
            prefix("2001:db8:9::77", 48),
            prefix("10.9.3.4", 24),
            prefix("10.9.7.7", 16),
            single,
            prefix("203.0.113.128", 25),
            prefix("2001:db8::2", 128),
        ]);
        for held in ["10.9.0.0", "10.9.255.255", "192.0.2.7", "203.0.113.255", "2001:db8::2", "2001:db8:9:ffff::1"] {
            assert!(all.hold(held.parse().unwrap()), "{held}");
        }
        for free in ["10.8.255.255", "10.10.0.0", "192.0.2.6", "192.0.2.8", "203.0.113.127", "255.255.255.255"] {
            assert!(!all.hold(free.parse().unwrap()), "{free}");
        }
        for free in ["::", "::ffff:192.0.2.7", "2001:db8::1", "2001:db8:8:ffff::1", "2001:db8:a::"] {
            assert!(!all.hold(free.parse().unwrap()), "{free}");
        }
        assert!(!Prefixes::default().hold("0.0.0.0".parse().unwrap()));
        assert!(Prefixes::new(&[prefix("192.0.2.1", 0)]).hold("255.255.255.255".parse().unwrap()));
        assert_eq!((Prefix::new([10, 0, 0, 1].into(), 33), Prefix::new(Ipv6Addr::LOCALHOST.into(), 129)), (None, None));
    }
}
