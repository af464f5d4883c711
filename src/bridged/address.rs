//! Addresses and routes of an interface: taken down as the kernel has them, and put on another interface.
//!
//! Invariant: what is put on an interface differs from what was taken down in the interface alone; lifetimes go on counting. Routes that the
//! kernel derives from addresses are among them: the kernel makes them itself, but does not remove all of them with the address (one of an
//! IPv6 address with a lifetime stays), and managers put some there by hand that look alike. Read first: [`super::netlink`]; ip-address(8), ip-route(8).

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressProtocol, AddressScope},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};

use super::netlink::Netlink;

/// A lifetime that does not end.
const FOREVER: u32 = u32::MAX;
/// The table of the kernel's own routes to this host.
const LOCAL_TABLE: u32 = 255;
/// Ticks a second in which the kernel tells how long a route lives (USER_HZ).
const TICKS: u32 = 100;

/// The addresses of an interface, in an order in which they can be added to have the same; without the IPv6 addresses of the link, which
/// every interface makes itself.
///
/// # Errors
/// What the kernel answers.
pub fn addresses(netlink: &mut Netlink, index: u32) -> io::Result<Vec<AddressMessage>> {
    let answers = netlink.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let address = |answer| match answer {
        RouteNetlinkMessage::NewAddress(message) => Some(message),
        _ => None,
    };
    let is_made = |message: &AddressMessage| {
        message.header.family == AddressFamily::Inet6
            && message.header.scope == AddressScope::Link
            && message.attributes.contains(&AddressAttribute::Protocol(AddressProtocol::LinkLocal))
    };
    let on_it = |message: &AddressMessage| message.header.index == index && !is_made(message);
    let all = answers.into_iter().filter_map(address).filter(on_it);
    let (mut all, six): (Vec<_>, Vec<_>) = all.partition(|message| message.header.family == AddressFamily::Inet);
    // The kernel tells the newest IPv6 address first.
    all.extend(six.into_iter().rev());
    Ok(all)
}

/// All addresses of this host, with the interface that has each.
///
/// # Errors
/// What the kernel answers.
pub fn all(netlink: &mut Netlink) -> io::Result<Vec<(IpAddr, u32)>> {
    let answers = netlink.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let of = |answer: &RouteNetlinkMessage| match answer {
        RouteNetlinkMessage::NewAddress(message) => Some((address_of(message)?, message.header.index)),
        _ => None,
    };
    Ok(answers.iter().filter_map(of).collect())
}

/// The interface that has an address.
///
/// # Errors
/// What the kernel answers.
pub fn index_of(netlink: &mut Netlink, address: IpAddr) -> io::Result<Option<u32>> {
    Ok(all(netlink)?.into_iter().find_map(|(other, index)| (other == address).then_some(index)))
}

/// The address itself.
pub fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    find(|attribute| if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None }).or_else(
        || find(|attribute| if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None }),
    )
}

/// As people write it.
pub fn address_text(message: &AddressMessage) -> String {
    let address = address_of(message).map_or("?".to_owned(), |address| address.to_string());
    format!("{address}/{}", message.header.prefix_len)
}

/// Whether both are the same address, wherever they are and however long they live.
pub fn same_address(one: &AddressMessage, other: &AddressMessage) -> bool {
    address_of(one) == address_of(other) && one.header.prefix_len == other.header.prefix_len
}

/// How long an address lives: preferred and valid, in seconds.
pub fn lifetimes(message: &AddressMessage) -> (u32, u32) {
    let info = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::CacheInfo(info) => Some((info.ifa_preferred, info.ifa_valid)),
        _ => None,
    });
    info.unwrap_or((FOREVER, FOREVER))
}

/// Whether the kernel has asked whether somebody else has the address, and nobody had (RFC 4862 section 5.4).
pub fn is_verified(message: &AddressMessage) -> bool {
    let told = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = told.unwrap_or(AddressFlags::from_bits_retain(u32::from(message.header.flags.bits())));
    !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Optimistic)
}

/// The same with these lifetimes.
pub fn with_lifetimes(mut message: AddressMessage, (preferred, valid): (u32, u32)) -> AddressMessage {
    for attribute in &mut message.attributes {
        if let AddressAttribute::CacheInfo(info) = attribute {
            (info.ifa_preferred, info.ifa_valid) = (preferred, valid);
        }
    }
    message
}

/// What is left of lifetimes after so many seconds; none when the address has ended.
pub fn aged((preferred, valid): (u32, u32), seconds: u32) -> Option<(u32, u32)> {
    let left = |time: u32| if time == FOREVER { FOREVER } else { time.saturating_sub(seconds) };
    (left(valid) > 0).then(|| (left(preferred), left(valid)))
}

/// Puts an address on an interface; one that is there already stays. `verified`: it was in use in this segment a moment ago, so IPv6 does
/// not ask first whether somebody else has it (RFC 4862 section 5.4).
///
/// # Errors
/// What the kernel answers.
pub fn add_address(
    netlink: &mut Netlink,
    message: &AddressMessage,
    place: (u32, &str, &str),
    verified: bool,
) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewAddress(on(message, place, verified));
    settle(netlink.change(message, NLM_F_CREATE | NLM_F_EXCL))
}

/// Puts an address back that was in use a moment ago: at once, and without a mark that nobody asked, which it had not.
///
/// # Errors
/// What the kernel answers.
pub fn put_back(netlink: &mut Netlink, message: &AddressMessage, place: (u32, &str, &str)) -> io::Result<()> {
    let verified = is_verified(message) && message.header.family == AddressFamily::Inet6;
    add_address(netlink, message, place, verified)?;
    if !verified {
        return Ok(());
    }
    settle(netlink.change(RouteNetlinkMessage::NewAddress(on(message, place, false)), NLM_F_REPLACE))
}

/// The same address on another interface, as it is asked for.
fn on(message: &AddressMessage, (index, from, to): (u32, &str, &str), verified: bool) -> AddressMessage {
    let mut message = message.clone();
    message.header.index = index;
    // What tells a state and is no wish.
    let told = AddressFlags::Secondary
        | AddressFlags::Dadfailed
        | AddressFlags::Tentative
        | AddressFlags::Deprecated
        | AddressFlags::Permanent
        | AddressFlags::StablePrivacy;
    let wish = |flags: AddressFlags| {
        let flags = flags & !told;
        if verified { flags | AddressFlags::Nodad } else { flags }
    };
    let mut has_flags = false;
    for attribute in &mut message.attributes {
        match attribute {
            AddressAttribute::Flags(flags) => {
                *flags = wish(*flags);
                has_flags = true;
            }
            AddressAttribute::Label(label) => {
                if let Some(rest) = label.strip_prefix(from) {
                    *label = format!("{to}{rest}");
                }
            }
            _ => {}
        }
    }
    if !has_flags {
        let flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
        message.attributes.push(AddressAttribute::Flags(wish(flags)));
    }
    message.header.flags = AddressHeaderFlags::empty();
    // A label has room for 15 bytes, and the kernel makes one of its own where none is given.
    message.attributes.retain(|attribute| !matches!(attribute, AddressAttribute::Label(label) if label.len() > 15));
    message
}

/// Takes an address from an interface; one that is gone is fine.
///
/// # Errors
/// What the kernel answers.
pub fn delete_address(netlink: &mut Netlink, message: &AddressMessage, index: u32) -> io::Result<()> {
    let mut message = message.clone();
    message.header.index = index;
    message
        .attributes
        .retain(|attribute| matches!(attribute, AddressAttribute::Local(_) | AddressAttribute::Address(_)));
    settle(netlink.change(RouteNetlinkMessage::DelAddress(message), 0))
}

/// EEXIST, ESRCH and EADDRNOTAVAIL of Linux: what was to be is so already.
fn settle(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if matches!(error.raw_os_error(), Some(17 | 3 | 99)) => Ok(()),
        other => other,
    }
}

/// The routes over an interface in all tables, those first that others may need: routes without a gateway.
///
/// # Errors
/// What the kernel answers.
pub fn routes(netlink: &mut Netlink, index: u32) -> io::Result<Vec<RouteMessage>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header = RouteHeader { address_family: family, ..RouteHeader::default() };
        let answers = match netlink.list(RouteNetlinkMessage::GetRoute(request)) {
            // EOPNOTSUPP: the kernel has no IPv6.
            Err(error) if error.raw_os_error() == Some(95) => continue,
            answers => answers?,
        };
        let route = |answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => Some(message),
            _ => None,
        };
        routes.extend(answers.into_iter().filter_map(route).filter(|message| is_over(message, index)));
    }
    routes.sort_by_key(|route| gateway_of(route).is_some());
    Ok(routes)
}

/// Whether this route is over this interface, and not one that every interface has.
fn is_over(message: &RouteMessage, index: u32) -> bool {
    let leads = message.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Oif(oif) => *oif == index,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| hop.interface_index == index),
        _ => false,
    });
    leads
        && table_of(message) != LOCAL_TABLE
        && !is_link_local(message)
        && message.header.kind == RouteType::Unicast
        && !message.header.flags.contains(RouteFlags::Cloned)
}

/// Whether it leads to the link itself, as every interface with IPv6 has it.
fn is_link_local(message: &RouteMessage) -> bool {
    let to_link = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => address.is_unicast_link_local(),
        _ => false,
    };
    message.header.protocol == RouteProtocol::Kernel && message.attributes.iter().any(to_link)
}

fn table_of(message: &RouteMessage) -> u32 {
    let told = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    told.unwrap_or_else(|| u32::from(message.header.table))
}

/// The gateway of a route.
pub fn gateway_of(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Gateway(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

/// Whether it is a default route.
pub fn is_default(message: &RouteMessage) -> bool {
    message.header.destination_prefix_length == 0
}

/// Whether it goes over several interfaces, or names its way by the number of a nexthop object: such routes are not moved.
pub fn is_shared(message: &RouteMessage) -> bool {
    let shared =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_));
    message.attributes.iter().any(shared)
}

/// As people write it.
pub fn route_text(message: &RouteMessage) -> String {
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(address.to_string()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(address.to_string()),
        _ => None,
    });
    let mut text = destination.map_or("default".to_owned(), |destination| {
        format!("{destination}/{}", message.header.destination_prefix_length)
    });
    if let Some(gateway) = gateway_of(message) {
        text.push_str(&format!(" via {gateway}"));
    }
    match table_of(message) {
        254 => text,
        table => format!("{text} table {table}"),
    }
}

/// The same route over another interface, as it is asked for.
fn over(message: &RouteMessage, index: u32) -> RouteMessage {
    let mut message = message.clone();
    let mut left = None;
    message.attributes.retain_mut(|attribute| match attribute {
        RouteAttribute::Oif(oif) => {
            *oif = index;
            true
        }
        RouteAttribute::CacheInfo(info) => {
            left = Some(info.expires / TICKS).filter(|seconds| *seconds > 0);
            false
        }
        RouteAttribute::Iif(_) | RouteAttribute::Uid(_) | RouteAttribute::MfcStats(_) => false,
        _ => true,
    });
    if message.header.address_family == AddressFamily::Inet6
        && let Some(seconds) = left
    {
        message.attributes.push(RouteAttribute::Expires(seconds));
    }
    // The others tell a state.
    message.header.flags &= RouteFlags::Onlink;
    message
}

/// Whether both are the same route, over whatever interface.
pub fn same_route(one: &RouteMessage, other: &RouteMessage) -> bool {
    let plain = |message: &RouteMessage| {
        let mut message = over(message, 0);
        message.attributes.retain(|attribute| !matches!(attribute, RouteAttribute::Expires(_)));
        message
    };
    plain(one) == plain(other)
}

/// Adds a route over an interface, behind others to the same destination; one that is there already stays.
///
/// # Errors
/// What the kernel answers.
pub fn add_route(netlink: &mut Netlink, message: &RouteMessage, index: u32) -> io::Result<()> {
    settle(netlink.change(RouteNetlinkMessage::NewRoute(over(message, index)), NLM_F_CREATE | NLM_F_APPEND))
}

/// Removes a route over an interface; one that is gone is fine.
///
/// # Errors
/// What the kernel answers.
pub fn delete_route(netlink: &mut Netlink, message: &RouteMessage, index: u32) -> io::Result<()> {
    settle(netlink.change(RouteNetlinkMessage::DelRoute(over(message, index)), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_the_kernel_still_asks_about_is_not_verified() {
        let with = |flags| {
            let mut message = AddressMessage::default();
            message.attributes.push(AddressAttribute::Flags(flags));
            message
        };
        assert!(is_verified(&with(AddressFlags::Permanent)) && is_verified(&AddressMessage::default()));
        for flags in
            [AddressFlags::Tentative, AddressFlags::Permanent | AddressFlags::Dadfailed, AddressFlags::Optimistic]
        {
            assert!(!is_verified(&with(flags)), "{flags:?}");
        }
    }
}
