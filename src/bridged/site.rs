//! [`Site`]: what a NIC of the host is part of, as far as guests that share it must know.
//!
//! Invariant: looks, and changes nothing. Read first: [`super::netlink`].

use std::net::IpAddr;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use super::{address, link, missing, netlink::Netlink, probe};
use crate::config::Subnet;

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct Site {
    /// The NIC's number.
    pub index: u32,
    /// Its address.
    pub mac: [u8; 6],
    /// The host's addresses on it, and the prefixes that they were given with; without those of the link.
    pub own: Vec<(IpAddr, Subnet)>,
    /// The prefixes that are behind it without a router.
    pub on_link: Vec<Subnet>,
    /// The routers that the host reaches over it.
    pub routers: Vec<IpAddr>,
    /// Addresses that somebody outside has, as the host heard by itself.
    pub outside: Vec<IpAddr>,
}

impl Site {
    /// Looks at the NIC of this name.
    ///
    /// # Errors
    /// Why guests cannot go out by it, and what to do.
    pub fn look(netlink: &mut Netlink, nic: &str) -> Result<Site, String> {
        let text = |error: std::io::Error| format!("what {nic} has cannot be seen: {error}");
        let links = link::all(netlink).map_err(text)?;
        let found = links.iter().find(|link| link.name == nic).ok_or_else(|| missing(nic, &links))?;
        let Ok(mac) = <[u8; 6]>::try_from(found.mac.as_slice()) else {
            return Err(format!("{nic} is not an Ethernet interface; nat reaches the outside by it"));
        };
        if !found.ethernet {
            return Err(format!("{nic} is not an Ethernet interface; nat reaches the outside by it"));
        }
        if let Some(index) = found.master {
            let master = links.iter().find(|other| other.index == index).map_or("another device", |link| &link.name);
            return Err(format!("{nic} is part of {master}; name that one by uplink"));
        }
        if !found.up {
            return Err(format!("{nic} is down; `ip link set {nic} up`"));
        }
        let addresses = address::addresses(netlink, found.index).map_err(text)?;
        let routes = address::routes(netlink, found.index).map_err(text)?;
        let own = addresses.iter().filter_map(|message| {
            let address = address::address_of(message)?;
            (!is_of_the_link(&address)).then(|| (address, Subnet::of(address, message.header.prefix_len)))
        });
        Ok(Site {
            index: found.index,
            mac,
            own: own.collect(),
            on_link: routes.iter().filter_map(on_link).collect(),
            routers: routes.iter().filter_map(address::gateway_of).collect(),
            outside: probe::others(netlink, found.index, &mac).map_err(text)?,
        })
    }

    /// Whether a guest that says it has this address has it for all that the host knows.
    pub fn may_be_a_guests(&self, address: IpAddr) -> bool {
        let whole = Subnet::of(address, if address.is_ipv4() { 32 } else { 128 });
        !is_of_the_link(&address)
            && self.on_link.iter().any(|prefix| whole.overlaps(*prefix))
            && !self.routers.contains(&address)
            && !self.outside.contains(&address)
            && !self.own.iter().any(|(own, _)| *own == address)
    }

    /// Which of the host's addresses speaks to a neighbour with this one.
    pub fn source_for(&self, address: IpAddr) -> Option<IpAddr> {
        let whole = Subnet::of(address, if address.is_ipv4() { 32 } else { 128 });
        let near = self.own.iter().find(|(_, prefix)| whole.overlaps(*prefix));
        near.or_else(|| self.own.iter().find(|(own, _)| own.is_ipv4() == address.is_ipv4())).map(|(own, _)| *own)
    }
}

/// Whether an address means something on its own link only.
pub fn is_of_the_link(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The prefix of a route without a gateway.
fn on_link(route: &RouteMessage) -> Option<Subnet> {
    let (address, length) = destination_of(route)?;
    (length > 0 && address::gateway_of(route).is_none()).then(|| Subnet::of(address, length))
}

/// Where a route leads to: a prefix.
pub fn destination_of(route: &RouteMessage) -> Option<(IpAddr, u8)> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    Some((address?, route.header.destination_prefix_length))
}

/// The address of the host that a route gives to what is sent by it.
pub fn source_of(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(address) => ip(address),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_behind_the_nic_and_nobody_elses_is_a_guests() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let site = Site {
            index: 1,
            mac: [2; 6],
            own: vec![
                (ip("10.0.0.1"), Subnet::of(ip("10.0.0.1"), 8)),
                (ip("192.0.2.5"), Subnet::of(ip("192.0.2.5"), 24)),
                (ip("2001:db8::5"), Subnet::of(ip("2001:db8::5"), 64)),
            ],
            on_link: vec![Subnet::of(ip("192.0.2.0"), 24), Subnet::of(ip("2001:db8::"), 64)],
            routers: vec![ip("192.0.2.1")],
            outside: vec![ip("192.0.2.9")],
        };
        let is = |text: &str| site.may_be_a_guests(ip(text));
        assert!(is("192.0.2.10") && is("2001:db8::10"));
        for other in ["192.0.2.5", "192.0.2.1", "192.0.2.9", "8.8.8.8", "2001:db8:1::1", "fe80::1", "10.0.0.7"] {
            assert!(!is(other), "{other}");
        }
        assert_eq!(site.source_for(ip("192.0.2.10")), Some(ip("192.0.2.5")));
        assert_eq!(site.source_for(ip("198.51.100.1")), Some(ip("10.0.0.1")));
        assert_eq!(site.source_for(ip("2001:db8::10")), Some(ip("2001:db8::5")));
    }
}
