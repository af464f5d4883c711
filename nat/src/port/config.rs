//! [`PortConfig`]: what may be set about the port of a packet NAT, beside its table.
//!
//! Invariant: a port is made of a checked configuration only; what is inside and what is outside never overlap (RFC 4787 REQ-7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// IPv6 through the port.
#[derive(Clone, Debug)]
pub struct PortConfigV6 {
    /// How it is translated.
    pub by: ByV6,
    /// The port's own address outside; with prefixes exchanged, not one that a guest's address becomes.
    pub address: Ipv6Addr,
    /// Bits of the outside subnet, as of IPv4. 128: nothing but link-local addresses is on the link.
    pub prefix: u8,
    /// The router outside.
    pub next_hop: Option<Ipv6Addr>,
    /// The router's address inside: where errors to guests come from.
    pub router: Ipv6Addr,
    /// The subnets inside, as of IPv4; with prefixes exchanged, those say it.
    pub inside: Vec<(Ipv6Addr, u8)>,
}

/// How IPv6 is translated.
#[derive(Clone, Debug)]
pub enum ByV6 {
    /// By prefixes (RFC 6296).
    Prefixes {
        /// The two.
        prefixes: Nptv6,
        /// Answer neighbour discovery outside for the addresses that guests' become. Not needed where the prefix is routed to the port.
        proxy: bool,
    },
    /// By a table of its own: guests share its outside addresses, as of IPv4 (NAT66).
    Table(Config<Ipv6Addr>),
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
        let by = ByV6::Prefixes { prefixes, proxy: true };
        Ok(PortConfigV6 { by, address, prefix, next_hop, router, inside: Vec::new() })
    }

    /// Shares the outside addresses of `table`, the first of which is the port's own, among guests; without a next hop, everything outside
    /// is a neighbour.
    pub fn shared(table: Config<Ipv6Addr>, next_hop: Option<Ipv6Addr>, router: Ipv6Addr) -> PortConfigV6 {
        let address = table.outside.first().copied().unwrap_or(Ipv6Addr::UNSPECIFIED);
        let prefix = if next_hop.is_some() { 128 } else { 0 };
        PortConfigV6 { by: ByV6::Table(table), address, prefix, next_hop, router, inside: Vec::new() }
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
        hop: IpAddr,
        /// An address of the subnet.
        of: IpAddr,
        /// Its bits.
        prefix: u8,
    },
    /// RFC 4787 REQ-7.
    #[error("the inside subnet {inside}/{bits} and the outside subnet of {outside} overlap; choose another inside")]
    Overlap {
        /// The inside subnet.
        inside: IpAddr,
        /// Its bits.
        bits: u8,
        /// An outside address.
        outside: IpAddr,
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
        let [v4, v6] = LEAST;
        let least = if self.v6.is_some() { v6 } else { v4 };
        for given in [self.mtu, self.inside_mtu] {
            if given < least {
                return Err(PortConfigError::Mtu { given, least });
            }
        }
        Sides {
            most: 32,
            outside: ips(self.table.outside.iter().copied()),
            prefix: self.prefix,
            hop: self.next_hop.map(IpAddr::V4),
            inside: self.inside.iter().map(|(address, bits)| ((*address).into(), *bits)).collect(),
        }
        .check()?;
        let Some(v6) = &self.v6 else { return Ok(()) };
        let outside = match &v6.by {
            ByV6::Prefixes { .. } => Vec::new(),
            ByV6::Table(table) => {
                table.check()?;
                ips(table.outside.iter().copied())
            }
        };
        Sides {
            most: 128,
            outside,
            prefix: v6.prefix,
            hop: v6.next_hop.map(IpAddr::V6),
            inside: v6.inside.iter().map(|(address, bits)| ((*address).into(), *bits)).collect(),
        }
        .check()
    }
}

fn ips<A: Into<IpAddr>>(addresses: impl Iterator<Item = A>) -> Vec<IpAddr> {
    addresses.map(Into::into).collect()
}

/// What is inside and what is outside, of one version of IP.
struct Sides {
    /// Bits of an address.
    most: u8,
    outside: Vec<IpAddr>,
    prefix: u8,
    hop: Option<IpAddr>,
    inside: Vec<(IpAddr, u8)>,
}

impl Sides {
    fn check(&self) -> Result<(), PortConfigError> {
        let Sides { most, prefix, .. } = *self;
        for given in self.inside.iter().map(|(_, bits)| *bits).chain([prefix]) {
            if given > most {
                return Err(PortConfigError::Prefix { given, most });
            }
        }
        let Some(of) = self.outside.first().copied() else { return Ok(()) };
        let shared = mask6(prefix);
        // A router that only the link reaches is in every subnet of it.
        let is_near = |hop: IpAddr| match hop {
            IpAddr::V6(hop) => hop.is_unicast_link_local(),
            IpAddr::V4(_) => false,
        };
        if let Some(hop) = self.hop
            && prefix < most
            && !is_near(hop)
            && (bits(hop) ^ bits(of)) & shared != 0
        {
            return Err(PortConfigError::NextHop { hop, of, prefix });
        }
        for (inside, length) in self.inside.iter().copied() {
            let differs = |other: IpAddr, mask: u128| (bits(inside) ^ bits(other)) & mask != 0;
            let mask = mask6(length);
            let outside = self
                .outside
                .iter()
                .find(|outside| !differs(**outside, mask) || (prefix > 0 && !differs(of, mask & shared)));
            if let Some(outside) = outside.copied() {
                return Err(PortConfigError::Overlap { inside, bits: length, outside });
            }
        }
        Ok(())
    }
}

/// The bits of an address, from the first on.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}
