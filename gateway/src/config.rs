//! [`Config`]: who the router of a segment is, and what it offers.
//!
//! Invariant: a [`crate::Gateway`] is made of a configuration that passed [`Config::check`]: prefixes are in range, the pool and every
//! reservation lie in the subnet and are neither the router, the network nor the broadcast address, names fit into DNS messages.
//! Read first: RFC 4632 (prefixes), RFC 2131 section 4.3 (what a DHCP server is told by its administrator), RFC 4861 section 6.2.1.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use wire::Mac;

use crate::{dhcp::DhcpConfig, dhcp6::Dhcp6Config};

/// What happens to packets whose destination is not the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// There is no way out: network unreachable (RFC 1812 section 5.2.7.1), no route to destination (RFC 4443 section 3.1).
    Unreachable,
    /// There may be a way, but not for these guests: administratively prohibited.
    Prohibited,
    /// They go on, to the port behind the gateway.
    Forward,
}

/// The router's address in IPv4, with its subnet.
#[derive(Clone, Debug)]
pub struct RouterV4 {
    /// The address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, 8 to 30.
    pub prefix: u8,
    /// The DHCP server, if there is to be one.
    pub dhcp: Option<DhcpConfig>,
}

impl RouterV4 {
    fn mask_bits(&self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0)
    }

    /// The subnet's mask.
    pub fn mask(&self) -> Ipv4Addr {
        self.mask_bits().into()
    }

    /// The subnet's first address, which names it.
    pub fn network(&self) -> Ipv4Addr {
        (self.address.to_bits() & self.mask_bits()).into()
    }

    /// The subnet's last address, to which broadcasts go.
    pub fn broadcast(&self) -> Ipv4Addr {
        (self.address.to_bits() | !self.mask_bits()).into()
    }

    /// Whether `address` is in the subnet.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask_bits() == 0
    }

    /// Whether `address` can be a guest's.
    pub fn may_lease(&self, address: Ipv4Addr) -> bool {
        self.contains(address) && address != self.address && address != self.network() && address != self.broadcast()
    }
}

/// The router in IPv6.
#[derive(Clone, Debug)]
pub struct RouterV6 {
    /// Its link-local address, the source of advertisements.
    pub link_local: Ipv6Addr,
    /// Its address in the prefix below, with the prefix's length (64 where guests are to configure themselves); nothing: link-local only.
    pub global: Option<(Ipv6Addr, u8)>,
    /// Advertise a default route: there is a way out.
    pub default_router: bool,
    /// The M flag: addresses by DHCPv6. Guests are told to make none of the prefix themselves.
    pub managed: bool,
    /// The O flag: other things by DHCPv6.
    pub other: bool,
    /// Name servers (RDNSS).
    pub dns: Vec<Ipv6Addr>,
    /// Search list (DNSSL).
    pub search: Vec<String>,
    /// The DHCPv6 server, if there is to be one. The flags above are not set by it.
    pub dhcp: Option<Dhcp6Config>,
    /// Longest time between unsolicited advertisements, 4 s to 1800 s (RFC 4861 section 6.2.1).
    pub max_interval: Duration,
    /// How long an advertised prefix is valid.
    pub valid: Duration,
    /// How long addresses of an advertised prefix are preferred.
    pub preferred: Duration,
}

impl RouterV6 {
    /// A router with this link-local address that advertises nothing but itself; intervals and lifetimes as RFC 4861 has them.
    pub fn new(link_local: Ipv6Addr) -> Self {
        RouterV6 {
            link_local,
            global: None,
            default_router: false,
            managed: false,
            other: false,
            dns: Vec::new(),
            search: Vec::new(),
            dhcp: None,
            max_interval: Duration::from_secs(600),
            valid: Duration::from_secs(2_592_000),
            preferred: Duration::from_secs(604_800),
        }
    }

    /// Whether `address` is one of the router's.
    pub fn owns(&self, address: Ipv6Addr) -> bool {
        address == self.link_local || self.global.is_some_and(|(global, _)| global == address)
    }

    /// Whether `address` is to be found on the segment.
    pub fn is_on_link(&self, address: Ipv6Addr) -> bool {
        let prefix = |(global, length): (Ipv6Addr, u8)| within(address.into(), global.into(), length);
        address.is_unicast_link_local() || self.global.is_some_and(prefix)
    }

    /// The address to answer `from` with, where the question was not put to one address: of the same scope.
    pub fn source_for(&self, peer: Ipv6Addr) -> Ipv6Addr {
        match self.global {
            Some((global, _)) if !peer.is_unicast_link_local() => global,
            _ => self.link_local,
        }
    }
}

/// The router of one segment.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its link-layer address.
    pub mac: Mac,
    /// The segment's MTU in bytes, told by DHCP and by router advertisements.
    pub mtu: u16,
    /// IPv4, if there is any.
    pub v4: Option<RouterV4>,
    /// IPv6, if there is any.
    pub v6: Option<RouterV6>,
    /// What happens to packets to somewhere else.
    pub elsewhere: Elsewhere,
    /// The same for IPv6, where that is something else.
    pub elsewhere6: Option<Elsewhere>,
    /// Ports of TCP and UDP at the router's own addresses that the service port serves.
    pub services: Vec<u16>,
    /// Addresses of the router, here or in other segments: TCP, UDP and ICMP errors to these that no service takes go on to the way out.
    pub onward: Vec<IpAddr>,
    /// Prefixes of other segments that the router reaches, whatever `elsewhere` says.
    pub routes: Vec<(IpAddr, u8)>,
    /// The router's addresses in those segments: it answers echoes to them.
    pub aliases: Vec<IpAddr>,
    /// ICMP errors a second, and at once, for each NIC (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4(f)).
    pub errors_per_second: u32,
    /// Where random intervals and choices of addresses begin; the same seed and the same frames give the same answers.
    pub seed: u64,
}

impl Config {
    /// A router without addresses.
    pub fn new(mac: Mac) -> Self {
        Config {
            mac,
            mtu: 1500,
            v4: None,
            v6: None,
            elsewhere: Elsewhere::Unreachable,
            elsewhere6: None,
            services: Vec::new(),
            onward: Vec::new(),
            routes: Vec::new(),
            aliases: Vec::new(),
            errors_per_second: 20,
            seed: 0,
        }
    }

    /// Whether another segment that the router reaches has `address`.
    pub(crate) fn is_routed(&self, address: IpAddr) -> bool {
        self.routes.iter().any(|(network, length)| within(address, *network, *length))
    }

    /// What happens to IPv6 packets to somewhere else.
    pub(crate) fn elsewhere6(&self) -> Elsewhere {
        self.elsewhere6.unwrap_or(self.elsewhere)
    }

    /// Whether it can be: the first thing that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !self.mac.is_unicast() {
            return Err(ConfigError::Mac(self.mac));
        }
        let least = if self.v6.is_some() { 1280 } else { 576 };
        if self.mtu < least {
            return Err(ConfigError::Mtu { mtu: self.mtu, least });
        }
        if let Some(v4) = &self.v4 {
            if !(8..=30).contains(&v4.prefix) {
                return Err(ConfigError::Prefix(v4.prefix));
            }
            if v4.address == v4.network() || v4.address == v4.broadcast() || !is_host(v4.address) {
                return Err(ConfigError::Router(v4.address));
            }
            if let Some(dhcp) = &v4.dhcp {
                dhcp.check(v4)?;
            }
        }
        if let Some(v6) = &self.v6 {
            self.check_v6(v6)?;
        }
        Ok(())
    }

    fn check_v6(&self, v6: &RouterV6) -> Result<(), ConfigError> {
        if !v6.link_local.is_unicast_link_local() {
            return Err(ConfigError::LinkLocal(v6.link_local));
        }
        if let Some((address, prefix)) = v6.global
            && (address.is_multicast() || address.is_unicast_link_local() || !(16..=127).contains(&prefix))
        {
            return Err(ConfigError::Global { address, prefix });
        }
        let seconds = v6.max_interval.as_secs();
        if !(4..=1800).contains(&seconds) {
            return Err(ConfigError::Interval(seconds));
        }
        for name in &v6.search {
            encode_name(name, &mut Vec::new())?;
        }
        // An advertisement is one packet, and an option has at most 255 units of eight bytes.
        let names: usize = v6.search.iter().map(|name| name.len() + 2).sum();
        if v6.dns.len() * 16 + names > 800 {
            return Err(ConfigError::TooMuchDns);
        }
        Ok(())
    }
}

/// Whether `address` lies in the network that `network` and the length of its prefix name.
pub(crate) fn within(address: IpAddr, network: IpAddr, length: u8) -> bool {
    let length = u32::from(length);
    match (address, network) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= length.min(32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros() >= length.min(128),
        _ => false,
    }
}

/// Whether `address` can be the address of one host (RFC 1122 section 3.2.1.3).
pub(crate) fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_multicast() || address.is_loopback() || address.octets()[0] == 0 || address.octets()[0] >= 240)
}

/// Appends `name` as DNS has it (RFC 1035 section 3.1), uncompressed.
pub(crate) fn encode_name(name: &str, out: &mut Vec<u8>) -> Result<(), ConfigError> {
    let wrong = || ConfigError::Name(name.to_owned());
    let text = name.strip_suffix('.').unwrap_or(name);
    if text.is_empty() || text.len() > 253 {
        return Err(wrong());
    }
    for label in text.split('.') {
        if label.is_empty()
            || label.len() > 63
            || !label.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c))
        {
            return Err(wrong());
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    Ok(())
}

/// Why a configuration cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The router's link-layer address is a group or zero.
    #[error(
        "{0} cannot be the router's MAC address: give one that is neither zero nor a group, for example 02:00:00:00:00:01"
    )]
    Mac(Mac),
    /// The MTU is below what the protocol asks.
    #[error("an MTU of {mtu} is too small: the addresses of this network need at least {least} bytes")]
    Mtu {
        /// What was given.
        mtu: u16,
        /// What is needed.
        least: u16,
    },
    /// The IPv4 prefix leaves no room, or is no network.
    #[error("/{0} is no subnet for guests: its prefix must be from 8 to 30 bits long")]
    Prefix(u8),
    /// The router's IPv4 address is none of a host.
    #[error("{0} cannot be the router's address: choose one inside the subnet that is neither its first nor its last")]
    Router(Ipv4Addr),
    /// Not link-local.
    #[error("{0} is not a link-local address: the router needs one from fe80::/64")]
    LinkLocal(Ipv6Addr),
    /// Not a global address with a prefix.
    #[error(
        "{address}/{prefix} cannot be the router's global address: give a unicast address and a prefix of 16 to 127 bits"
    )]
    Global {
        /// The address.
        address: Ipv6Addr,
        /// Its prefix's length.
        prefix: u8,
    },
    /// Out of what RFC 4861 allows.
    #[error("router advertisements every {0} s are not allowed: give 4 to 1800 s (RFC 4861 section 6.2.1)")]
    Interval(u64),
    /// Name servers and search list do not fit into one router advertisement.
    #[error(
        "too many name servers or search domains for one router advertisement: 800 bytes in all, 16 for each server"
    )]
    TooMuchDns,
    /// Not a domain name.
    #[error(
        "`{0}` is not a domain name: labels of 1 to 63 letters, digits and hyphens, separated by dots, 253 bytes in all"
    )]
    Name(String),
    /// The pool is upside down, too big, or not inside the subnet.
    #[error(
        "the DHCP pool {first} to {last} is not usable: both ends must lie inside the subnet {network}/{prefix}, the first not after the last, with at most 65536 addresses"
    )]
    Pool {
        /// The pool's first address.
        first: Ipv4Addr,
        /// The pool's last address.
        last: Ipv4Addr,
        /// The subnet.
        network: Ipv4Addr,
        /// Its prefix's length.
        prefix: u8,
    },
    /// A reservation for an address that no guest can have.
    #[error(
        "{0} cannot be reserved: it must lie inside the subnet and be neither the router's, the first nor the last address"
    )]
    Reservation(Ipv4Addr),
    /// Two reservations for one address.
    #[error("{0} is reserved twice: give each guest its own address")]
    ReservedTwice(Ipv4Addr),
    /// A time out of range.
    #[error("a lease of {0} s is not possible: give 60 s to 4294967294 s")]
    LeaseTime(u64),
    /// Too many bytes for a DHCP option.
    #[error("too many entries for DHCP option {0}: it holds 255 bytes")]
    Option(u8),
}
