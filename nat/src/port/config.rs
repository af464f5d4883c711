//! [`PortConfig`]: what may be set about the port of a packet NAT, beside its table.
//!
//! Invariant: a port is made of a checked configuration only; what is inside and what is outside never overlap (RFC 4787 REQ-7).

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::Mac;

use crate::{
    config::{Config, ConfigError},
    nptv6::{Nptv6, PrefixError},
};

/// Least MTU of IPv4 that a link may have (RFC 791 section 3.2), and of IPv6 (RFC 8200 section 5).
const LEAST: [u16; 2] = [68, 1280];

/// What a port is made of.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// The MAC address it has outside.
    pub mac: Mac,
    /// The table's configuration, with the outside addresses. There may be none if IPv6 is translated; then IPv4 is not.
    pub table: Config,
    /// Bits of the outside subnet: addresses that share as many with the first outside address are on the link. 32: none is; 0: all are.
    pub prefix: u8,
    /// The router outside, for everything else.
    pub next_hop: Option<Ipv4Addr>,
    /// Bytes of the longest IP packet outside.
    pub mtu: u16,
    /// Bytes of the longest IP packet inside.
    pub inside_mtu: u16,
    /// The router's address inside: where errors to guests come from.
    pub router: Ipv4Addr,
    /// The subnets inside: an address and the bits of its prefix.
    pub inside: Vec<(Ipv4Addr, u8)>,
    /// ICMP errors a second that are made for one NIC.
    pub errors: u32,
    /// IPv6, if it is translated.
    pub v6: Option<PortConfigV6>,
}

/// IPv6 by prefixes (RFC 6296).
#[derive(Clone, Debug)]
pub struct PortConfigV6 {
    /// The two prefixes.
    pub prefixes: Nptv6,
    /// The port's own address outside; not one that a guest's address becomes.
    pub address: Ipv6Addr,
    /// Bits of the outside subnet, as of IPv4. 128: nothing but link-local addresses is on the link.
    pub prefix: u8,
    /// The router outside.
    pub next_hop: Option<Ipv6Addr>,
    /// The router's address inside: where errors to guests come from.
    pub router: Ipv6Addr,
    /// Answer neighbour discovery outside for the addresses that guests' become. Not needed where the prefix is routed to the port.
    pub proxy: bool,
}

impl PortConfigV6 {
    /// Exchanges the first `length` bits of `inside` for those of `outside`. The port's own address outside is that of its MAC address in the
    /// outside prefix (RFC 4291 appendix A); without a next hop, everything outside is a neighbour.
    ///
    /// # Errors
    /// The length is not 1 to 64.
    pub fn new(
        mac: Mac,
        (inside, outside, length): (Ipv6Addr, Ipv6Addr, u32),
        next_hop: Option<Ipv6Addr>,
        router: Ipv6Addr,
    ) -> Result<PortConfigV6, PrefixError> {
        let prefixes = Nptv6::new(inside, outside, length)?;
        let host = u128::from(u64::from_be_bytes(interface(mac)));
        let address = Ipv6Addr::from_bits(outside.to_bits() & mask6(length.min(64) as u8) | host);
        let prefix = if next_hop.is_some() { 128 } else { 0 };
        Ok(PortConfigV6 { prefixes, address, prefix, next_hop, router, proxy: true })
    }
}

/// The interface identifier of a MAC address (RFC 4291 appendix A).
pub(super) fn interface(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.bytes();
    [a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}

/// Why there can be no port of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortConfigError {
    /// Of the table.
    #[error(transparent)]
    Table(#[from] ConfigError),
    /// Not the address of one station.
    #[error("the outside MAC address {0} is not the address of one station; give a unicast address")]
    Mac(Mac),
    /// Too long.
    #[error("a prefix of {given} bits; {most} is the most")]
    Prefix {
        /// Bits asked for.
        given: u8,
        /// The most there are.
        most: u8,
    },
    /// Too small.
    #[error("an MTU of {given} bytes; the least is {least} (RFC 791, RFC 8200)")]
    Mtu {
        /// Bytes asked for.
        given: u16,
        /// Bytes it must be at least.
        least: u16,
    },
    /// Not reachable.
    #[error("the next hop {hop} is not in the outside subnet {of}/{prefix}; give a router of that subnet")]
    NextHop {
        /// The router.
        hop: Ipv4Addr,
        /// An address of the subnet.
        of: Ipv4Addr,
        /// Its bits.
        prefix: u8,
    },
    /// RFC 4787 REQ-7.
    #[error("the inside subnet {inside}/{bits} and the outside subnet of {outside} overlap; choose another inside")]
    Overlap {
        /// The inside subnet.
        inside: Ipv4Addr,
        /// Its bits.
        bits: u8,
        /// An outside address.
        outside: Ipv4Addr,
    },
}

/// The bits that all addresses of a prefix share.
pub(super) fn mask(bits: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0)
}

/// As [`mask`], of IPv6.
pub(super) fn mask6(bits: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0)
}

impl PortConfig {
    /// The defaults: MTU 1500 on both sides, ten errors a second, no IPv6.
    pub fn new(mac: Mac, table: Config, prefix: u8, next_hop: Option<Ipv4Addr>, router: Ipv4Addr) -> PortConfig {
        PortConfig {
            mac,
            table,
            prefix,
            next_hop,
            mtu: 1500,
            inside_mtu: 1500,
            router,
            inside: Vec::new(),
            errors: 10,
            v6: None,
        }
    }

    /// Whether IPv4 is not translated.
    pub(super) fn only_v6(&self) -> bool {
        self.table.outside.is_empty() && self.v6.is_some()
    }

    /// Whether a port can be made of it.
    pub fn check(&self) -> Result<(), PortConfigError> {
        if !self.only_v6() {
            self.table.check()?;
        }
        let [first, ..] = self.mac.bytes();
        if first & 1 != 0 || self.mac.to_bits() == 0 {
            return Err(PortConfigError::Mac(self.mac));
        }
        let lengths = self.inside.iter().map(|(_, bits)| *bits).chain([self.prefix]).map(|bits| (bits, 32));
        for (given, most) in lengths.chain(self.v6.as_ref().map(|v6| (v6.prefix, 128))) {
            if given > most {
                return Err(PortConfigError::Prefix { given, most });
            }
        }
        let [v4, v6] = LEAST;
        let least = if self.v6.is_some() { v6 } else { v4 };
        for given in [self.mtu, self.inside_mtu] {
            if given < least {
                return Err(PortConfigError::Mtu { given, least });
            }
        }
        let Some(of) = self.table.outside.first().copied() else { return Ok(()) };
        let shared = mask(self.prefix);
        if let Some(hop) = self.next_hop
            && self.prefix < 32
            && (hop.to_bits() ^ of.to_bits()) & shared != 0
        {
            return Err(PortConfigError::NextHop { hop, of, prefix: self.prefix });
        }
        for (inside, bits) in self.inside.iter().copied() {
            let outside = self.table.outside.iter().find(|outside| {
                (inside.to_bits() ^ outside.to_bits()) & mask(bits) == 0
                    || (self.prefix > 0 && (inside.to_bits() ^ of.to_bits()) & mask(bits) & shared == 0)
            });
            if let Some(outside) = outside.copied() {
                return Err(PortConfigError::Overlap { inside, bits, outside });
            }
        }
        Ok(())
    }
}
