//! [`Segment`]: a segment of a network that the network's router is in: the untagged one, or that of a VLAN.
//!
//! Invariant: what the router says and gives out in a segment follows from the segment; what lies behind the router, from the network. A VLAN
//! has the router in it if the file has a table for it, and else stays alone.
//! Read first: [`super::types`], `vswitch::membership`.

use std::{fmt, net::IpAddr};

use serde::Serialize;
use wire::Vid;

use super::{
    types::{Dhcp6, Mode, Network, Port, Tagging},
    units::Subnet,
};

/// `[networks.NAME.vlans.ID]`: a VLAN of a network that the network's router is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vlan {
    /// Its number; not 1, which is the network's untagged segment.
    #[serde(skip)]
    pub id: Vid,
    /// IPv4 prefix of its guests. Default: none yet, `up` chooses one.
    pub subnet: Option<Subnet>,
    /// IPv6 prefix of its guests. Default: none; in mode nat `up` chooses one.
    pub subnet6: Option<Subnet>,
    /// There is to be no IPv6. Default: false.
    #[serde(skip)]
    pub without6: bool,
    /// The router gives out addresses of `subnet`. Default: the network's.
    pub dhcp: bool,
    /// What the router does by DHCPv6. Default: the network's.
    pub dhcp6: Dhcp6,
    /// The guests' search domain. Default: the network's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Time servers that guests are told of. Default: the network's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<IpAddr>,
}

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// The network.
    pub network: &'a Network,
    /// The VLAN; none: the untagged segment.
    pub vlan: Option<&'a Vlan>,
}

impl Network {
    /// The segments that its router is in, if it has one: the untagged one first, VLANs by their numbers.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        let untagged = Segment { network: self, vlan: None };
        let vlan = |vlan| Segment { network: self, vlan: Some(vlan) };
        std::iter::once(untagged).chain(self.vlans.iter().map(vlan))
    }

    /// The segment of the frames without a tag of a port, where the router is in that.
    pub fn segment_of(&self, port: &Port) -> Option<Segment<'_>> {
        let vid = match &port.tagging {
            Tagging::Untagged {} => None,
            Tagging::Access { vlan } => Some(*vlan),
            Tagging::Trunk { native, .. } => Some((*native)?),
        };
        self.segments().find(|segment| segment.is(vid))
    }
}

impl Segment<'_> {
    /// The VLAN's number; none: the untagged segment.
    pub fn vid(&self) -> Option<Vid> {
        self.vlan.map(|vlan| vlan.id)
    }

    /// Whether it is that of this VLAN, or of frames without one.
    fn is(&self, vid: Option<Vid>) -> bool {
        // The untagged segment is that of VLAN 1 (see `vswitch::membership`).
        self.vid() == vid.filter(|vid| vid.get() != 1)
    }

    /// Whether a port is in it.
    pub fn carries(&self, port: &Port) -> bool {
        port.network == self.network.name
            && match &port.tagging {
                Tagging::Untagged {} => self.is(None),
                Tagging::Access { vlan } => self.is(Some(*vlan)),
                Tagging::Trunk { trunk, native } => trunk.iter().chain(native).any(|vid| self.is(Some(*vid))),
            }
    }

    /// What it is called where it is remembered: unlike any name of a network but its own.
    pub fn key(&self) -> String {
        match self.vid() {
            None => self.network.name.to_string(),
            Some(vid) => format!("{}/vlan{vid}", self.network.name),
        }
    }

    /// IPv4 prefix of its guests.
    pub fn subnet(&self) -> Option<Subnet> {
        self.vlan.map_or(self.network.subnet, |vlan| vlan.subnet)
    }

    /// IPv6 prefix of its guests.
    pub fn subnet6(&self) -> Option<Subnet> {
        self.vlan.map_or(self.network.subnet6, |vlan| vlan.subnet6)
    }

    /// Both.
    pub fn subnets(&self) -> impl Iterator<Item = Subnet> {
        self.subnet().into_iter().chain(self.subnet6())
    }

    /// Whether it needs a subnet and has none: `up` chooses one.
    pub fn needs_subnet(&self) -> bool {
        self.vlan.map_or_else(|| self.network.needs_subnet(), |vlan| vlan.subnet.is_none())
    }

    /// Whether it is to have an IPv6 prefix and has none: `up` chooses one.
    pub fn needs_subnet6(&self) -> bool {
        let of_vlan = |vlan: &Vlan| vlan.subnet6.is_none() && !vlan.without6 && self.network.mode == Mode::Nat;
        self.vlan.map_or_else(|| self.network.needs_subnet6(), of_vlan)
    }

    /// Whether addresses are given out in it.
    pub fn dhcp(&self) -> bool {
        self.vlan.map_or(self.network.dhcp, |vlan| vlan.dhcp)
    }

    /// What the router does in it by DHCPv6.
    pub fn dhcp6(&self) -> Dhcp6 {
        self.vlan.map_or(self.network.dhcp6, |vlan| vlan.dhcp6)
    }

    /// Time servers that its guests are told of.
    pub fn ntp(&self) -> &[IpAddr] {
        self.vlan.map_or(&self.network.ntp, |vlan| &vlan.ntp)
    }

    /// The domain that its guests search.
    pub fn search_domain(&self) -> String {
        let own = self.vlan.and_then(|vlan| vlan.domain.clone());
        own.unwrap_or_else(|| self.network.search_domain())
    }

    /// Which address of the subnet its router has: the first that the host has not, which is in no VLAN.
    pub fn router_number(&self) -> u32 {
        if self.vlan.is_some() { 1 } else { self.network.router_number() }
    }

    /// The router's addresses in it, but for the link-local one: IPv4, IPv6.
    pub fn router(&self) -> impl Iterator<Item = IpAddr> {
        let number = self.router_number();
        self.subnets().filter_map(move |subnet| subnet.host(number))
    }
}

impl fmt::Display for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.network.name)?;
        self.vid().map_or(Ok(()), |vid| write!(f, ", VLAN {vid}"))
    }
}
