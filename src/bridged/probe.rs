//! Do neighbours of a NIC answer? Asked by the kernel's own neighbour discovery, so it needs no socket for raw packets.
//!
//! Theory of operation: an entry that has an address is set to *probe*, which makes the kernel ask that neighbour at once and say *reachable*
//! when it answers; one without is asked for by a *use* of it. Both work for ARP and IPv6 alike. Read first: arp(7), RFC 4861 section 7.3,
//! ip-neighbour(8).

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};

use super::netlink::Netlink;

/// Neighbours that are asked at most.
const MOST: usize = 8;
/// How often the answers are looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often a neighbour that the kernel has given up is asked for anew.
const AGAIN: Duration = Duration::from_millis(250);

/// A neighbour as the kernel knows it.
struct Neighbour {
    address: IpAddr,
    state: NeighbourState,
    mac: Option<Vec<u8>>,
}

fn neighbours(netlink: &mut Netlink, index: u32) -> io::Result<Vec<Neighbour>> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = NeighbourMessage::default();
        request.header.family = family;
        let answers = match netlink.list(RouteNetlinkMessage::GetNeighbour(request)) {
            // EOPNOTSUPP: the kernel has no IPv6.
            Err(error) if error.raw_os_error() == Some(95) => continue,
            answers => answers?,
        };
        for answer in answers {
            let RouteNetlinkMessage::NewNeighbour(message) = answer else { continue };
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            });
            let mac = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.clone()),
                _ => None,
            });
            if let Some(address) = address.filter(|_| message.header.ifindex == index) {
                all.push(Neighbour { address, state: message.header.state, mac });
            }
        }
    }
    Ok(all)
}

/// Neighbours that were heard of on an interface.
///
/// # Errors
/// What the kernel answers.
pub fn known(netlink: &mut Netlink, index: u32) -> io::Result<Vec<IpAddr>> {
    use NeighbourState::{Delay, Probe, Reachable, Stale};
    let mut all = neighbours(netlink, index)?;
    all.retain(|neighbour| matches!(neighbour.state, Reachable | Stale | Delay | Probe));
    all.retain(|neighbour| !neighbour.address.is_multicast());
    Ok(all.into_iter().map(|neighbour| neighbour.address).take(MOST).collect())
}

/// Addresses on an interface that were heard of with another MAC address than `own`.
///
/// # Errors
/// What the kernel answers.
pub fn others(netlink: &mut Netlink, index: u32, own: &[u8]) -> io::Result<Vec<IpAddr>> {
    use NeighbourState::{Delay, Permanent, Probe, Reachable, Stale};
    let mut all = neighbours(netlink, index)?;
    all.retain(|neighbour| matches!(neighbour.state, Reachable | Stale | Delay | Probe | Permanent));
    all.retain(|neighbour| neighbour.mac.as_deref().is_some_and(|mac| mac != own));
    Ok(all.into_iter().map(|neighbour| neighbour.address).collect())
}

/// Asks neighbours, and waits until all have answered or `patience` is over; who has.
///
/// # Errors
/// What the kernel answers.
pub fn answering(
    netlink: &mut Netlink,
    index: u32,
    asked: &[IpAddr],
    patience: Duration,
) -> io::Result<BTreeSet<IpAddr>> {
    let end = Instant::now() + patience;
    let mut answered = BTreeSet::new();
    let asked = asked.get(..MOST).unwrap_or(asked);
    let (mut first, mut again) = (true, Instant::now() + AGAIN);
    loop {
        let seen = neighbours(netlink, index)?;
        let is_round = first || again <= Instant::now();
        for address in asked.iter().filter(|address| !answered.contains(*address)).copied().collect::<Vec<_>>() {
            let neighbour = seen.iter().find(|neighbour| neighbour.address == address);
            match neighbour.map_or(NeighbourState::None, |neighbour| neighbour.state) {
                // Not asked: it is there by configuration.
                NeighbourState::Permanent | NeighbourState::Noarp => drop(answered.insert(address)),
                // What was so before counts for nothing.
                NeighbourState::Reachable if !first => drop(answered.insert(address)),
                // The kernel is at it.
                NeighbourState::Incomplete | NeighbourState::Probe => {}
                // Heard of, and not asked yet.
                NeighbourState::Reachable | NeighbourState::Stale | NeighbourState::Delay => {
                    ask(netlink, index, address, neighbour.and_then(|known| known.mac.clone()))?;
                }
                _ if is_round => ask(netlink, index, address, None)?,
                _ => {}
            }
        }
        if is_round {
            (first, again) = (false, Instant::now() + AGAIN);
        }
        if answered.len() >= asked.len() || Instant::now() >= end {
            return Ok(answered);
        }
        std::thread::sleep(LOOK);
    }
}

fn ask(netlink: &mut Netlink, index: u32, address: IpAddr, mac: Option<Vec<u8>>) -> io::Result<()> {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    match mac {
        Some(mac) => {
            message.header.state = NeighbourState::Probe;
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac));
        }
        None => message.header.flags = NeighbourFlags::Use,
    }
    netlink.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}
