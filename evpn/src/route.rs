//! What hosts tell each other: [`Route`], [`Prefix`], [`Rd`]; parsed at the edge, so that nothing behind it checks again.
//!
//! Invariant: a route names one station or one endpoint of one network; its next hop is one other host that packets can be sent to.
//! Read first: RFC 7432 sections 7.2, 7.3 and 7.7, RFC 8365 section 5.

use std::{fmt, net::IpAddr, net::Ipv4Addr};

use wire::{Mac, Vni};

/// A route distinguisher: who originated a route, and for which of his networks (RFC 4364 section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rd {
    /// Type 0.
    As2(u16, u32),
    /// Type 1.
    Address(Ipv4Addr, u16),
    /// Type 2.
    As4(u32, u16),
}

impl fmt::Display for Rd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rd::As2(admin, n) => write!(f, "{admin}:{n}"),
            Rd::Address(admin, n) => write!(f, "{admin}:{n}"),
            Rd::As4(admin, n) => write!(f, "{admin}:{n}"),
        }
    }
}

/// What a route is known by: one with the same prefix takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Prefix {
    /// A station, and perhaps one of its IP addresses (type 2).
    Station {
        /// Who originated it.
        rd: Rd,
        /// Ethernet tag.
        tag: u32,
        /// The station.
        mac: Mac,
        /// Its address.
        ip: Option<IpAddr>,
    },
    /// An endpoint that wants the frames to all (type 3).
    Endpoint {
        /// Who originated it.
        rd: Rd,
        /// Ethernet tag.
        tag: u32,
        /// The originating router's address.
        origin: IpAddr,
    },
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prefix::Station { rd, mac, ip: None, .. } => write!(f, "station {mac} of {rd}"),
            Prefix::Station { rd, mac, ip: Some(ip), .. } => write!(f, "station {mac} {ip} of {rd}"),
            Prefix::Endpoint { rd, origin, .. } => write!(f, "endpoint {origin} of {rd}"),
        }
    }
}

/// How often a station has moved (RFC 7432 section 7.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mobility {
    /// Counts moves.
    pub sequence: u32,
    /// It does not move.
    pub sticky: bool,
}

/// What one host tells of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it is known by.
    pub prefix: Prefix,
    /// The network: the label of the route, and the number of one of its route targets.
    pub vni: Vni,
    /// The tunnel endpoint.
    pub next_hop: IpAddr,
    /// Of a station; of an endpoint the default.
    pub mobility: Mobility,
}

/// A route as it arrives, before anything in it is trusted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raw {
    pub(crate) rd: Option<RawRd>,
    pub(crate) tag: u32,
    /// Of a station only.
    pub(crate) mac: Option<String>,
    /// Of a station its address, of an endpoint the originating router's.
    pub(crate) ip: String,
    pub(crate) labels: Vec<u32>,
    pub(crate) next_hops: Vec<String>,
    /// Numbers of route targets of the form AS:number.
    pub(crate) targets: Vec<u32>,
    pub(crate) mobility: Mobility,
    /// Of an endpoint: kind of tunnel and label of its PMSI attribute.
    pub(crate) pmsi: Option<(u32, u32)>,
    /// Kind of encapsulation, VXLAN if it is among several; nothing: not said.
    pub(crate) encapsulation: Option<u32>,
}

/// A route distinguisher as it arrives.
#[derive(Clone, Debug)]
pub(crate) enum RawRd {
    As2(u32, u32),
    Address(String, u32),
    As4(u32, u32),
}

/// Tunnel type VXLAN (RFC 8365 section 11).
pub(crate) const VXLAN: u32 = 8;
/// Ingress replication (RFC 6514 section 5).
pub(crate) const INGRESS_REPLICATION: u32 = 6;

/// Why a route is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No route distinguisher, or one out of range.
    #[error("its route distinguisher is none")]
    Rd,
    /// Not the address of one station.
    #[error("`{0}` is not the address of one station")]
    Mac(String),
    /// Not an IP address.
    #[error("`{0}` is not the IP address of one host")]
    Ip(String),
    /// No VNI.
    #[error("label {0} is not a VXLAN network identifier; allowed are 1 to 16777215")]
    Label(u32),
    /// Nothing that says the network.
    #[error("it has no label")]
    NoLabel,
    /// The label is that of no route target.
    #[error("its label {0} is the number of none of its route targets")]
    Target(u32),
    /// No next hop.
    #[error("it has no next hop")]
    NoNextHop,
    /// Not reachable from here.
    #[error("its next hop {0} and our endpoint are not of one version of IP")]
    Family(IpAddr),
    /// A peer says that our address is its own.
    #[error(
        "its next hop {0} is this host's own tunnel endpoint; another host has the same address, or sends our routes back"
    )]
    Ourselves(IpAddr),
    /// An encapsulation that is not spoken here.
    #[error("tunnel type {0} is not VXLAN (8)")]
    Encapsulation(u32),
    /// A multicast tunnel.
    #[error("tunnel type {0} of its PMSI attribute is not ingress replication (6)")]
    Pmsi(u32),
}

impl Raw {
    /// An encapsulation that its endpoint understands, one of perhaps several (RFC 8365 section 5.1.3).
    pub(crate) fn understands(&mut self, kind: u32) {
        if self.encapsulation != Some(VXLAN) {
            self.encapsulation = Some(kind);
        }
    }

    /// What it is known by: all that a withdrawal needs.
    pub(crate) fn prefix(&self) -> Result<Prefix, RouteError> {
        let rd = match self.rd.as_ref().ok_or(RouteError::Rd)? {
            RawRd::As2(admin, n) => Rd::As2(u16::try_from(*admin).map_err(|_| RouteError::Rd)?, *n),
            RawRd::As4(admin, n) => Rd::As4(*admin, u16::try_from(*n).map_err(|_| RouteError::Rd)?),
            RawRd::Address(admin, n) => {
                let admin = admin.parse().map_err(|_| RouteError::Rd)?;
                Rd::Address(admin, u16::try_from(*n).map_err(|_| RouteError::Rd)?)
            }
        };
        let tag = self.tag;
        match &self.mac {
            None => Ok(Prefix::Endpoint { rd, tag, origin: address(&self.ip)? }),
            Some(text) => {
                let mac = text.parse().ok().filter(|mac: &Mac| mac.is_unicast());
                let mac = mac.ok_or_else(|| RouteError::Mac(text.clone()))?;
                // The speaker writes an address that is not there in several ways.
                let ip = match self.ip.as_str() {
                    "" | "<nil>" | "0.0.0.0" | "::" => None,
                    ip => Some(address(ip)?),
                };
                Ok(Prefix::Station { rd, tag, mac, ip })
            }
        }
    }

    /// All of it, as a host at `local` takes it.
    pub(crate) fn route(&self, local: IpAddr) -> Result<Route, RouteError> {
        let prefix = self.prefix()?;
        match self.encapsulation {
            None | Some(VXLAN) => {}
            Some(other) => return Err(RouteError::Encapsulation(other)),
        }
        let label = match (prefix, self.pmsi) {
            (Prefix::Station { .. }, _) => *self.labels.first().ok_or(RouteError::NoLabel)?,
            (_, Some((INGRESS_REPLICATION, label))) => label,
            (_, Some((kind, _))) => return Err(RouteError::Pmsi(kind)),
            (_, None) => return Err(RouteError::NoLabel),
        };
        let vni = Vni::new(label).ok_or(RouteError::Label(label))?;
        if !self.targets.contains(&label) {
            return Err(RouteError::Target(label));
        }
        let next_hop = address(self.next_hops.first().ok_or(RouteError::NoNextHop)?)?;
        if next_hop == local {
            return Err(RouteError::Ourselves(next_hop));
        }
        if next_hop.is_ipv4() != local.is_ipv4() {
            return Err(RouteError::Family(next_hop));
        }
        Ok(Route { prefix, vni, next_hop, mobility: self.mobility })
    }
}

fn address(text: &str) -> Result<IpAddr, RouteError> {
    let parsed: Option<IpAddr> = text.parse().ok();
    let one = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast() && *ip != IpAddr::from([255; 4]);
    parsed.filter(one).ok_or_else(|| RouteError::Ip(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn station() -> Raw {
        Raw {
            rd: Some(RawRd::Address("192.0.2.2".to_owned(), 7)),
            mac: Some("02:00:00:00:00:01".to_owned()),
            ip: "<nil>".to_owned(),
            labels: vec![100],
            next_hops: vec!["192.0.2.2".to_owned()],
            targets: vec![100],
            encapsulation: Some(VXLAN),
            ..Raw::default()
        }
    }

    fn local() -> IpAddr {
        [192, 0, 2, 1].into()
    }

    #[test]
    fn a_station_and_an_endpoint_are_taken() {
        let route = station().route(local()).unwrap();
        assert_eq!((route.vni.get(), route.next_hop), (100, [192, 0, 2, 2].into()));
        assert!(matches!(route.prefix, Prefix::Station { ip: None, .. }), "{route:?}");
        let with = Raw { ip: "fd00::7".to_owned(), ..station() }.route(local()).unwrap();
        assert_eq!(with.prefix.to_string(), "station 02:00:00:00:00:01 fd00::7 of 192.0.2.2:7");
        let endpoint = Raw { mac: None, ip: "192.0.2.2".to_owned(), labels: vec![], pmsi: Some((6, 100)), ..station() };
        assert_eq!(endpoint.route(local()).unwrap().prefix.to_string(), "endpoint 192.0.2.2 of 192.0.2.2:7");
    }

    #[test]
    fn of_several_encapsulations_one_is_enough() {
        for kinds in [[7, VXLAN], [VXLAN, 7]] {
            let mut raw = Raw { encapsulation: None, ..station() };
            kinds.into_iter().for_each(|kind| raw.understands(kind));
            assert!(raw.route(local()).is_ok(), "{kinds:?}");
        }
    }

    #[test]
    fn nonsense_is_not_taken_and_says_what_it_is() {
        let hop = |text: &str| vec![text.to_owned()];
        let table = [
            (Raw { rd: None, ..station() }, "route distinguisher"),
            (Raw { rd: Some(RawRd::As2(65_536, 1)), ..station() }, "route distinguisher"),
            (Raw { rd: Some(RawRd::As4(1, 65_536)), ..station() }, "route distinguisher"),
            (Raw { mac: Some("ff:ff:ff:ff:ff:ff".to_owned()), ..station() }, "address of one station"),
            (Raw { mac: Some("03:00:00:00:00:01".to_owned()), ..station() }, "address of one station"),
            (Raw { ip: "224.0.0.1".to_owned(), ..station() }, "IP address of one host"),
            (Raw { labels: vec![], ..station() }, "no label"),
            (Raw { labels: vec![0], ..station() }, "label 0"),
            (Raw { labels: vec![1 << 24], targets: vec![1 << 24], ..station() }, "label 16777216"),
            (Raw { targets: vec![101], ..station() }, "none of its route targets"),
            (Raw { next_hops: vec![], ..station() }, "no next hop"),
            (Raw { next_hops: hop("fd00::1"), ..station() }, "one version of IP"),
            (Raw { next_hops: hop("192.0.2.1"), ..station() }, "own tunnel endpoint"),
            (Raw { next_hops: hop("0.0.0.0"), ..station() }, "one host"),
            (Raw { encapsulation: Some(7), ..station() }, "tunnel type 7"),
            (Raw { mac: None, ip: "192.0.2.2".to_owned(), pmsi: Some((1, 100)), ..station() }, "tunnel type 1"),
            (Raw { mac: None, ip: "192.0.2.2".to_owned(), pmsi: None, ..station() }, "no label"),
        ];
        for (raw, expected) in table {
            let error = raw.route(local()).unwrap_err().to_string();
            assert!(error.contains(expected), "{raw:?}: {error}");
        }
    }
}
