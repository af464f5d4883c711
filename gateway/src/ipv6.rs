//! IPv6 to the router, and through it: neighbour discovery, echo, and errors about the rest.
//!
//! Invariant: neighbour discovery is listened to only with a hop limit of 255, which no router lets through; an error is never sent about an
//! ICMPv6 error or redirect, a packet or frame to a group, or a packet from no single node, and never over a NIC's budget.
//! Read first: RFC 4443 section 2.4(e), RFC 4861 sections 6.1.1 and 7.1.1 (validation), RFC 8200.

use std::net::{IpAddr, Ipv6Addr};

use wire::{ALL_NODES, DropReason, Layers, Mac, Verdict, checksum::Checksum, solicited_node};

use crate::{
    bytes::{array, be16},
    config::{Elsewhere, RouterV6, within},
    dhcp6::{self, ALL_SERVERS},
    gateway::{Change, Decision, Incoming, Interest, Protocols},
    icmp::{self, Path},
    ndisc,
    packet::{ALL_ROUTERS, ICMPV6, IPV6_LEN, L4_OVER_V6, TCP, UDP},
};

struct Header {
    payload: usize,
    hop_limit: u8,
    from: Ipv6Addr,
    to: Ipv6Addr,
}

fn parse(packet: &[u8]) -> Option<Header> {
    Some(Header {
        payload: usize::from(be16(packet, 4)?),
        hop_limit: *packet.get(7)?,
        from: array::<16>(packet, 8)?.into(),
        to: array::<16>(packet, 24)?.into(),
    })
}

/// What is to be done with a packet, as its head says.
enum Course {
    NeighborSolicitation,
    NeighborAdvertisement,
    RouterSolicitation,
    Echo,
    Service,
    Dhcp,
    Forward,
    /// An error, with the reason that the packet ends for.
    Error(DropReason, u8, u8),
    Drop(DropReason),
}

fn course(on: Protocols<'_>, v6: &RouterV6, head: &Incoming<'_>, layers: Layers) -> Course {
    let Some(header) = head.bytes.get(layers.l2_len..).and_then(parse) else {
        return Course::Drop(DropReason::BadPacket);
    };
    let nothing = Course::Drop(DropReason::NotForGateway);
    let kind = match (layers.protocol, layers.l4) {
        (Some(ICMPV6), Some(at)) => head.bytes.get(at).copied(),
        _ => None,
    };
    let mine = v6.owns(header.to);
    let member = header.to == ALL_NODES
        || header.to == ALL_ROUTERS
        || header.to == solicited_node(v6.link_local)
        || v6.global.is_some_and(|(global, _)| header.to == solicited_node(global));
    let bare = layers.l4 == Some(L4_OVER_V6);
    if (mine || member) && !layers.fragment {
        // Behind extension headers there is no neighbour discovery: RFC 6980 forbids one of them, and nobody sends the others.
        let to_all = header.to == ALL_NODES;
        match kind {
            Some(ndisc::NEIGHBOR_SOLICITATION) if bare => return Course::NeighborSolicitation,
            Some(ndisc::NEIGHBOR_ADVERTISEMENT) if bare && (mine || to_all) => return Course::NeighborAdvertisement,
            Some(ndisc::ROUTER_SOLICITATION) if bare => return Course::RouterSolicitation,
            Some(icmp::V6_ECHO) if is_node(header.from) => return Course::Echo,
            _ => {}
        }
    }
    if (mine || header.to == ALL_SERVERS)
        && on.dhcp6.is_some()
        && layers.protocol == Some(UDP)
        && bare
        && !layers.fragment
        && be16(head.bytes, L4_OVER_V6 + 2) == Some(dhcp6::SERVER_PORT)
        && is_node(header.from)
    {
        return Course::Dhcp;
    }
    let to_group = head.macs().0.is_group();
    if to_group || header.to.is_multicast() || !is_node(header.from) || v6.owns(header.from) {
        return nothing;
    }
    let may_err = may_complain(layers, kind);
    let error = |reason, kind, code| if may_err { Course::Error(reason, kind, code) } else { Course::Drop(reason) };
    let alias = on.config.aliases.contains(&header.to.into());
    if alias && kind == Some(icmp::V6_ECHO) && !layers.fragment {
        return Course::Echo;
    }
    if mine || alias {
        let port = layers.l4.and_then(|at| be16(head.bytes, at + 2));
        // Nobody sends these behind extension headers, and what serves them need not look through any.
        let serves = mine && bare && !layers.fragment && port.is_some_and(|port| on.config.services.contains(&port));
        return match layers.protocol {
            Some(UDP | TCP) if serves => Course::Service,
            Some(UDP | TCP | ICMPV6) if on.config.onward.contains(&header.to.into()) => Course::Forward,
            Some(UDP | TCP) if !layers.fragment => error(DropReason::NotForGateway, icmp::V6_UNREACHABLE, 4),
            _ => nothing,
        };
    }
    if header.to.is_unicast_link_local() || header.to.is_unspecified() || header.to.is_loopback() {
        return nothing;
    }
    if header.from.is_unicast_link_local() {
        // RFC 4007 section 9: such a packet does not leave its link.
        return error(DropReason::NoRoute, icmp::V6_UNREACHABLE, 2);
    }
    if v6.global.is_some_and(|(global, prefix)| within(header.to.into(), global.into(), prefix)) {
        // On the segment itself, where the router is not needed.
        return error(DropReason::NoRoute, icmp::V6_UNREACHABLE, 3);
    }
    let elsewhere = if on.config.is_routed(header.to.into()) { Elsewhere::Forward } else { on.config.elsewhere6() };
    match elsewhere {
        Elsewhere::Unreachable => error(DropReason::NoRoute, icmp::V6_UNREACHABLE, 0),
        Elsewhere::Prohibited => error(DropReason::NoRoute, icmp::V6_UNREACHABLE, 1),
        Elsewhere::Forward if header.hop_limit <= 1 => error(DropReason::TtlExceeded, icmp::V6_TIME_EXCEEDED, 0),
        Elsewhere::Forward => Course::Forward,
    }
}

/// Whether `address` can be that of one node.
fn is_node(address: Ipv6Addr) -> bool {
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback())
}

/// Whether an error may be about such a packet, whose ICMPv6 type is `kind`: of a later fragment nothing is seen.
fn may_complain(layers: Layers, kind: Option<u8>) -> bool {
    match (layers.protocol, layers.l4) {
        // Echo alone asks and answers beyond the link.
        (Some(ICMPV6), _) => kind.is_some_and(|kind| matches!(kind, icmp::V6_ECHO | icmp::V6_ECHO_REPLY)),
        (_, at) => at.is_some(),
    }
}

/// Whom an error about a frame may go to.
pub(crate) fn to_complain_to(v6: &RouterV6, frame: &Incoming<'_>, layers: Layers) -> Option<Ipv6Addr> {
    let header = frame.bytes.get(layers.l2_len..).and_then(parse)?;
    let kind = layers.l4.and_then(|at| frame.bytes.get(at)).copied();
    (is_node(header.from) && !v6.owns(header.from) && may_complain(layers, kind)).then_some(header.from)
}

pub(crate) fn interest(on: Protocols<'_>, head: &Incoming<'_>, layers: Layers) -> Interest {
    let Some(v6) = &on.config.v6 else { return Interest::None(DropReason::NotForGateway) };
    match course(on, v6, head, layers) {
        Course::NeighborSolicitation
        | Course::NeighborAdvertisement
        | Course::RouterSolicitation
        | Course::Echo
        | Course::Dhcp => Interest::All,
        Course::Forward => Interest::Forward,
        Course::Service => Interest::Service,
        Course::Error(..) if on.errors.allows(head.origin.nic, on.now) => Interest::All,
        Course::Error(reason, ..) | Course::Drop(reason) => Interest::None(reason),
    }
}

pub(crate) fn decide(on: Protocols<'_>, incoming: &Incoming<'_>, layers: Layers, out: &mut Vec<u8>) -> Decision {
    let Some(v6) = &on.config.v6 else { return Decision::drop(DropReason::NotForGateway) };
    let bad = || Decision::drop(DropReason::BadPacket);
    let course = course(on, v6, incoming, layers);
    let Some(packet) = incoming.bytes.get(layers.l2_len..) else { return bad() };
    let Some(header) = parse(packet) else { return bad() };
    let Some(packet) = packet.get(..IPV6_LEN + header.payload) else { return bad() };
    let to_mac = incoming.macs().1;
    let ours = v6.owns(header.to) || on.config.aliases.contains(&header.to.into());
    let from = if ours { header.to } else { v6.source_for(header.from) };
    let path = Path { mac: on.config.mac, to_mac, from, to: header.from };
    match course {
        Course::Error(reason, kind, code) => {
            icmp::error_v6(out, &path, kind, code, packet);
            return Decision { verdict: Verdict::Drop(reason), change: Change::Error(incoming.origin.nic) };
        }
        Course::Forward | Course::Service => return Decision { verdict: Verdict::Forward, change: Change::None },
        Course::Drop(reason) => return Decision::drop(reason),
        Course::NeighborSolicitation
        | Course::NeighborAdvertisement
        | Course::RouterSolicitation
        | Course::Echo
        | Course::Dhcp => {}
    }
    let Some(message) = layers.l4.and_then(|at| packet.get(at - layers.l2_len..)) else { return bad() };
    let protocol = if matches!(course, Course::Dhcp) { UDP } else { ICMPV6 };
    if message.len() < 8 || !(incoming.checksum_owed || is_intact(&header, protocol, message)) {
        return bad();
    }
    if matches!(course, Course::Echo) {
        icmp::echo_reply_v6(out, &path, message);
        return Decision::reply();
    }
    if let (Course::Dhcp, Some(dhcp)) = (&course, on.dhcp6) {
        let Some(message) = be16(message, 4).and_then(|length| message.get(8..usize::from(length))) else {
            return bad();
        };
        let path = Path { from: v6.source_for(header.from), ..path };
        return dhcp.decide(&path, header.to == ALL_SERVERS, incoming.origin.nic, message, on.now, out);
    }
    if header.hop_limit != 255 || message.get(1) != Some(&0) {
        return bad();
    }
    let shown = ndisc::shown(message, header.from, to_mac);
    let shown = shown.filter(|(address, _)| v6.is_on_link(*address) && !v6.owns(*address));
    let believed = |(address, mac): &(Ipv6Addr, Mac)| {
        let known = on.neighbours.mac(IpAddr::V6(*address));
        match course {
            // RFC 4861 section 7.2.5: what nobody asked for changes what is known, if it says that it does, and adds nothing.
            Course::NeighborAdvertisement if known.is_none() => ours,
            Course::NeighborAdvertisement => known == Some(*mac) || ndisc::overrides(message),
            _ => true,
        }
    };
    let heard = match shown.filter(believed) {
        Some((address, mac)) => Change::Heard { address: address.into(), mac, nic: incoming.origin.nic },
        None => Change::None,
    };
    match course {
        Course::NeighborAdvertisement => Decision { verdict: Verdict::Reply, change: heard },
        Course::NeighborSolicitation => {
            let decision = ndisc::solicitation(on.config.mac, v6, &path, header.to, message, out);
            if decision.verdict == Verdict::Reply { Decision { change: heard, ..decision } } else { decision }
        }
        _ => match on.advertiser {
            Some(advertiser) => advertiser.solicitation(on, incoming.origin.nic, &path, message, out),
            None => Decision::drop(DropReason::NotForGateway),
        },
    }
}

fn is_intact(header: &Header, protocol: u8, message: &[u8]) -> bool {
    let (from, to) = (header.from.octets(), header.to.octets());
    let mut sum = Checksum::pseudo_v6(from, to, protocol, message.len() as u32);
    sum.add_bytes(message);
    sum.is_valid()
}
