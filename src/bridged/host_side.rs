//! [`bring`]: the host's TAP in a network whose guests share its NIC, kept as it should be.
//!
//! Invariant: all that is put there lies on the TAP and ends with it: a route of /32 or /128 to each guest's address, and the host's IPv6
//! addresses, so that it answers neighbour discovery for them. IPv4 needs no address there: Linux answers ARP for any of its addresses on any
//! interface. What others put there stays.
//! Read first: [`super::site`]; docs/decisions/0014-mac-nat-and-the-host.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
    path::Path,
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
};

use super::{
    address, link,
    netlink::Netlink,
    site::{Site, destination_of, source_of},
};

/// A setting of an interface in /proc/sys/net, and its value.
type Setting = (&'static str, &'static str);

/// Settings of a TAP of the host's: what guests say of better ways is not for the host.
const ALWAYS: [Setting; 2] = [("ipv6/conf/*/accept_redirects", "0"), ("ipv4/conf/*/accept_redirects", "0")];
/// Where no router of ours is: nor is what they say of routers.
const WITHOUT_ROUTER: [Setting; 2] = [("ipv6/conf/*/accept_ra", "0"), ("ipv6/conf/*/autoconf", "0")];
/// Where one is: the host makes itself the address that it is declared with, of its MAC, and no other, and takes no default route to guests.
const WITH_ROUTER: [Setting; 3] =
    [("ipv6/conf/*/addr_gen_mode", "0"), ("ipv6/conf/*/use_tempaddr", "0"), ("ipv6/conf/*/accept_ra_defrtr", "0")];

/// Has the host take no word on the TAP but that of a router of ours, where there is one, before anybody can speak there.
pub fn deafen(tap: &str, with_router: bool) {
    for (setting, value) in settings(with_router) {
        let path = format!("/proc/sys/net/{}", setting.replace('*', tap));
        if Path::new(&path).exists()
            && let Err(error) = fs::write(&path, value)
        {
            tracing::warn!(%error, "{path} is not {value}: a guest may tell this host of routers");
        }
    }
}

fn settings(with_router: bool) -> impl Iterator<Item = Setting> {
    let more: &[Setting] = if with_router { &WITH_ROUTER } else { &WITHOUT_ROUTER };
    ALWAYS.iter().chain(more).copied()
}

/// Brings the TAP in step with what the NIC has and which addresses guests have.
///
/// # Errors
/// What the kernel answers; what could be done is done.
pub fn bring(netlink: &mut Netlink, tap: &str, site: &Site, guests: &[IpAddr]) -> io::Result<()> {
    let Some(link) = link::named(netlink, tap)? else { return Err(io::ErrorKind::NotFound.into()) };
    let wanted: BTreeMap<IpAddr, Option<IpAddr>> = guests
        .iter()
        .filter(|address| site.may_be_a_guests(**address))
        // IPv6 chooses the source by itself, among the addresses of the TAP.
        .map(|address| (*address, site.source_for(*address).filter(IpAddr::is_ipv4)))
        .collect();
    let addresses = host_addresses(netlink, link.index, site);
    let mut there = BTreeSet::new();
    let mut result = addresses;
    for route in address::routes(netlink, link.index)? {
        let Some((to, length)) = destination_of(&route) else { continue };
        if route.header.protocol != RouteProtocol::Static || length != whole(&to) {
            continue;
        }
        if wanted.get(&to).is_some_and(|source| *source == source_of(&route)) {
            there.insert(to);
        } else {
            result = result.and(address::delete_route(netlink, &route, link.index));
        }
    }
    for (to, source) in wanted.into_iter().filter(|(to, _)| !there.contains(to)) {
        let message = RouteNetlinkMessage::NewRoute(route(link.index, to, source));
        match netlink.change(message, NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => tracing::debug!(%to, tap, "a route to a guest"),
            // EEXIST: somebody has one of his own.
            Err(error) if error.raw_os_error() == Some(17) => {}
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

fn whole(address: &IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn route(index: u32, to: IpAddr, source: Option<IpAddr>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        destination_prefix_length: whole(&to),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Static,
        scope: if to.is_ipv4() { RouteScope::Link } else { RouteScope::Universe },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Destination(route_address(to)), RouteAttribute::Oif(index)];
    message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(route_address(source))));
    message
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

/// The host's IPv6 addresses of the NIC are on the TAP as well, each for itself.
fn host_addresses(netlink: &mut Netlink, tap: u32, site: &Site) -> io::Result<()> {
    let wanted: BTreeSet<IpAddr> = site.own.iter().map(|(own, _)| *own).filter(IpAddr::is_ipv6).collect();
    let mut there = BTreeSet::new();
    let mut result = Ok(());
    for message in address::addresses(netlink, tap)? {
        let Some(address) = address::address_of(&message).filter(IpAddr::is_ipv6) else { continue };
        if super::site::is_of_the_link(&address) || message.header.prefix_len != 128 {
            continue;
        }
        if wanted.contains(&address) {
            there.insert(address);
        } else {
            result = result.and(address::delete_address(netlink, &message, tap));
        }
    }
    for address in wanted.difference(&there) {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet6;
        message.header.prefix_len = 128;
        message.header.scope = AddressScope::Universe;
        message.attributes =
            vec![AddressAttribute::Address(*address), AddressAttribute::Flags(AddressFlags::Noprefixroute)];
        // It was verified on the NIC.
        result = result.and(address::add_address(netlink, &message, (tap, "", ""), true));
    }
    result
}
