//! [`Family`]: what IPv4 and IPv6 differ in. Everything else of the table is written once, for both.
//!
//! Invariant: nothing here decides anything: what a mapping is, who is let in and for how long is said by the table alone. IPv4 pays nothing for
//! IPv6: a table is of one family, and each is compiled by itself.
//! Read first: RFC 791 section 3.1, RFC 8200 section 3.

use std::{
    fmt::{Debug, Display},
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use wire::{Head, keyed::fold};

use crate::{
    decide::Refusal,
    packet::{Packet, v4, v6},
    record::Endpoint,
};

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::net::Ipv4Addr {}
    impl Sealed for std::net::Ipv6Addr {}
}

/// A version of IP, named by its addresses: [`Ipv4Addr`] or [`Ipv6Addr`].
pub trait Family:
    Copy + Eq + Ord + Hash + Debug + Display + Into<IpAddr> + Send + Sync + sealed::Sealed + 'static
{
    /// The address that nobody has.
    const UNSPECIFIED: Self;
    /// IANA's number of this version's ICMP.
    const ICMP: u8;
    /// Bytes of the header without options or extensions.
    const HEADER: usize;
    /// Where in the header the source address is.
    const SOURCE: usize;
    /// Where in the header the destination address is.
    const DESTINATION: usize;
    /// Where in the header its own checksum is, if it has one.
    const SUM: Option<usize>;
    /// Where in the header the packet's length is, and bytes of the packet that it does not count.
    const LENGTH: (usize, usize);
    /// Bytes of an identification.
    const ID: usize;
    /// Whether the checksum of ICMP covers the addresses (RFC 4443 section 2.3).
    const ICMP_COVERS_ADDRESSES: bool;

    /// An address as it is in a header.
    type Octets: AsRef<[u8]>;
    /// Half of a table's key: 16 bits and an endpoint.
    type Half: Copy + Eq + Debug + Send + Sync;
    /// A half of zeros.
    const NOTHING: Self::Half;

    /// The address as it is in a header.
    fn octets(self) -> Self::Octets;
    /// Half a key.
    fn half(tag: u16, endpoint: Endpoint<Self>) -> Self::Half;
    /// Its 16 bits.
    fn tag(half: Self::Half) -> u16;
    /// Its endpoint.
    fn endpoint(half: Self::Half) -> Endpoint<Self>;
    /// The keyed hash of a key.
    fn mix(low: Self::Half, high: Self::Half, secret: [u64; 4]) -> u64;
    /// A number below 2^32 that near addresses do not share.
    fn spread(self) -> u64;
    /// Whether it can be the address of one host outside.
    fn is_unicast(self) -> bool;
    /// What the NAT has to know of a packet.
    fn packet(head: &Head) -> Result<Packet<Self>, Refusal>;
    /// Makes a header say that TCP comes right behind its first [`Family::HEADER`] bytes.
    fn strip(header: &mut [u8]);
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Family for Ipv4Addr {
    const UNSPECIFIED: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
    const ICMP: u8 = 1;
    const HEADER: usize = 20;
    const SOURCE: usize = 12;
    const DESTINATION: usize = 16;
    const SUM: Option<usize> = Some(10);
    const LENGTH: (usize, usize) = (2, 0);
    const ID: usize = 2;
    const ICMP_COVERS_ADDRESSES: bool = false;

    type Octets = [u8; 4];
    /// The 16 bits, the address, the port.
    type Half = u64;
    const NOTHING: u64 = 0;

    #[inline]
    fn octets(self) -> [u8; 4] {
        Ipv4Addr::octets(&self)
    }

    #[inline]
    fn half(tag: u16, endpoint: Endpoint) -> u64 {
        u64::from(tag) << 48 | u64::from(endpoint.address.to_bits()) << 16 | u64::from(endpoint.port)
    }

    #[inline]
    fn tag(half: u64) -> u16 {
        (half >> 48) as u16
    }

    #[inline]
    fn endpoint(half: u64) -> Endpoint {
        Endpoint::new(Ipv4Addr::from_bits((half >> 16) as u32), half as u16)
    }

    #[inline]
    fn mix(low: u64, high: u64, [a, b, c, d]: [u64; 4]) -> u64 {
        fold(fold(low ^ a, high ^ b) ^ c, d)
    }

    #[inline]
    fn spread(self) -> u64 {
        u64::from(self.to_bits()).wrapping_mul(GOLDEN) >> 32
    }

    fn is_unicast(self) -> bool {
        !(self.is_unspecified() || self.is_multicast() || self.is_broadcast() || self.is_loopback())
    }

    #[inline]
    fn packet(head: &Head) -> Result<Packet, Refusal> {
        v4::packet(head)
    }

    fn strip(header: &mut [u8]) {
        if let Some(first) = header.first_mut() {
            *first = 0x45;
        }
    }
}

impl Family for Ipv6Addr {
    const UNSPECIFIED: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
    const ICMP: u8 = 58;
    const HEADER: usize = 40;
    const SOURCE: usize = 8;
    const DESTINATION: usize = 24;
    const SUM: Option<usize> = None;
    const LENGTH: (usize, usize) = (4, 40);
    const ID: usize = 4;
    const ICMP_COVERS_ADDRESSES: bool = true;

    type Octets = [u8; 16];
    /// The address in two words; the 16 bits and the port.
    type Half = [u64; 3];
    const NOTHING: [u64; 3] = [0; 3];

    #[inline]
    fn octets(self) -> [u8; 16] {
        Ipv6Addr::octets(&self)
    }

    #[inline]
    fn half(tag: u16, endpoint: Endpoint<Ipv6Addr>) -> [u64; 3] {
        let address = endpoint.address.to_bits();
        [(address >> 64) as u64, address as u64, u64::from(tag) << 16 | u64::from(endpoint.port)]
    }

    #[inline]
    fn tag([_, _, rest]: [u64; 3]) -> u16 {
        (rest >> 16) as u16
    }

    #[inline]
    fn endpoint([high, low, rest]: [u64; 3]) -> Endpoint<Ipv6Addr> {
        Endpoint::new(Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low)), rest as u16)
    }

    #[inline]
    fn mix([a, b, c]: [u64; 3], [d, e, f]: [u64; 3], [k, l, m, n]: [u64; 4]) -> u64 {
        // Each word meets a secret, or what came before it, in every product.
        let sum = fold(a ^ k, b ^ l);
        let sum = fold(c ^ m, d ^ sum);
        let sum = fold(e ^ n, f ^ sum);
        fold(sum ^ k, m)
    }

    #[inline]
    fn spread(self) -> u64 {
        let bits = self.to_bits();
        ((bits >> 64) as u64 ^ bits as u64).wrapping_mul(GOLDEN) >> 32
    }

    fn is_unicast(self) -> bool {
        !(self.is_unspecified() || self.is_multicast() || self.is_loopback() || self.is_unicast_link_local())
    }

    #[inline]
    fn packet(head: &Head) -> Result<Packet<Ipv6Addr>, Refusal> {
        v6::packet(head)
    }

    fn strip(header: &mut [u8]) {
        if let Some(next) = header.get_mut(6) {
            *next = 6;
        }
    }
}
