//! IPv4 to the router, and through it: echo, DHCP, and errors about the rest.
//!
//! Invariant: an error is never sent about an ICMP error, a fragment other than the first, a packet to a group or from an address that is no
//! host's, nor about a frame to a group; and never over a NIC's budget. A checksum is looked at unless it is still owed.
//! Read first: RFC 1812 sections 4.3.2.7 (when not to), 4.3.3.6 (echo), 5.2.7.1 (unreachable), 5.3.1 (time to live).

use std::net::Ipv4Addr;

use wire::{DropReason, Layers, Verdict, checksum::Checksum};

use crate::{
    bytes::{array, be16},
    config::{Elsewhere, RouterV4, is_host},
    dhcp,
    gateway::{Change, Decision, Incoming, Interest, Protocols},
    icmp::{self, Path},
    packet::{ICMP, TCP, UDP},
};

/// The fields of an IPv4 header that matter here.
struct Header {
    length: usize,
    total: usize,
    tos: u8,
    ttl: u8,
    protocol: u8,
    first: bool,
    whole: bool,
    from: Ipv4Addr,
    to: Ipv4Addr,
}

fn parse(packet: &[u8]) -> Option<Header> {
    let [first, tos, _, _, _, _, flags, offset, ttl, protocol] = array(packet, 0)?;
    let offset = u16::from_be_bytes([flags & 0x1f, offset]);
    Some(Header {
        length: usize::from(first & 0x0f) * 4,
        total: usize::from(be16(packet, 2)?),
        tos,
        ttl,
        protocol,
        first: offset == 0,
        whole: offset == 0 && flags & 0x20 == 0,
        from: array::<4>(packet, 12)?.into(),
        to: array::<4>(packet, 16)?.into(),
    })
}

/// What is to be done with a packet, as its head says.
enum Course {
    Echo,
    Dhcp,
    Service,
    Forward,
    /// An error, with the reason that the packet ends for.
    Error(DropReason, u8, u8),
    Drop(DropReason),
}

fn course(on: Protocols<'_>, v4: &RouterV4, head: &Incoming<'_>, layers: Layers) -> Course {
    let Some(packet) = head.bytes.get(layers.l2_len..) else { return Course::Drop(DropReason::BadPacket) };
    let Some(header) = parse(packet) else { return Course::Drop(DropReason::BadPacket) };
    let payload = packet.get(header.length..).unwrap_or_default();
    let to_group = head.macs().0.is_group();
    let to_all = header.to.is_broadcast() || header.to == v4.broadcast();
    let to_dhcp = header.whole && header.protocol == UDP && be16(payload, 2) == Some(dhcp::SERVER_PORT);
    if to_dhcp && on.dhcp.is_some() && (to_all || (header.to == v4.address && !to_group)) {
        return Course::Dhcp;
    }
    if to_group || to_all || !is_host(header.to) || !is_host(header.from) {
        return Course::Drop(DropReason::NotForGateway);
    }
    let may_err = may_complain(v4, &header, payload);
    let error = |reason, kind, code| if may_err { Course::Error(reason, kind, code) } else { Course::Drop(reason) };
    if header.to == v4.address || on.config.aliases.contains(&header.to.into()) {
        let onward = on.config.onward.contains(&header.to.into());
        let serves = |port: Option<u16>| port.is_some_and(|port| on.config.services.contains(&port));
        return match header.protocol {
            ICMP if header.whole && payload.first() == Some(&icmp::ECHO) => Course::Echo,
            UDP | TCP if header.whole && header.to == v4.address && serves(be16(payload, 2)) => Course::Service,
            UDP | TCP | ICMP if onward => Course::Forward,
            ICMP => Course::Drop(DropReason::NotForGateway),
            _ if !header.whole => Course::Drop(DropReason::NotForGateway),
            // Nothing listens: port unreachable, which ends a connection attempt as a reset would.
            UDP | TCP => error(DropReason::NotForGateway, icmp::UNREACHABLE, 3),
            _ => error(DropReason::NotForGateway, icmp::UNREACHABLE, 2),
        };
    }
    if v4.contains(header.to) {
        // On the segment itself, where the router is not needed: it does not send back what came from there.
        return error(DropReason::NoRoute, icmp::UNREACHABLE, 1);
    }
    let elsewhere = if on.config.is_routed(header.to.into()) { Elsewhere::Forward } else { on.config.elsewhere };
    match elsewhere {
        Elsewhere::Unreachable => error(DropReason::NoRoute, icmp::UNREACHABLE, 0),
        Elsewhere::Prohibited => error(DropReason::NoRoute, icmp::UNREACHABLE, 13),
        Elsewhere::Forward if !head.checksum_owed && !is_intact(packet, header.length) => {
            Course::Drop(DropReason::BadPacket)
        }
        Elsewhere::Forward if header.ttl <= 1 => error(DropReason::TtlExceeded, icmp::TIME_EXCEEDED, 0),
        Elsewhere::Forward => Course::Forward,
    }
}

/// Whether an error may be about such a packet, as far as its own headers tell.
fn may_complain(v4: &RouterV4, header: &Header, payload: &[u8]) -> bool {
    header.first
        && (header.protocol != ICMP || payload.first().is_some_and(|kind| is_query(*kind)))
        && is_host(header.from)
        && header.from != v4.address
        && header.from != v4.broadcast()
}

/// Whom an error about a frame may go to.
pub(crate) fn to_complain_to(v4: &RouterV4, frame: &Incoming<'_>, layers: Layers) -> Option<Ipv4Addr> {
    let packet = frame.bytes.get(layers.l2_len..)?;
    let header = parse(packet)?;
    may_complain(v4, &header, packet.get(header.length..).unwrap_or_default()).then_some(header.from)
}

/// Whether a header's checksum is right, which a router looks at (RFC 1812 section 5.2.2). Where the transport's is owed still, this may be, too.
fn is_intact(packet: &[u8], length: usize) -> bool {
    let mut sum = Checksum::new();
    sum.add_bytes(packet.get(..length).unwrap_or_default());
    sum.is_valid()
}

/// Whether an ICMP message asks or answers, rather than reporting an error (RFC 1122 section 3.2.2).
fn is_query(kind: u8) -> bool {
    matches!(kind, 0 | 8 | 9 | 10 | 13..=18)
}

pub(crate) fn interest(on: Protocols<'_>, head: &Incoming<'_>, layers: Layers) -> Interest {
    let Some(v4) = &on.config.v4 else { return Interest::None(DropReason::NotForGateway) };
    match course(on, v4, head, layers) {
        Course::Echo | Course::Dhcp => Interest::All,
        Course::Forward => Interest::Forward,
        Course::Service => Interest::Service,
        Course::Error(..) if on.errors.allows(head.origin.nic, on.now) => Interest::All,
        Course::Error(reason, ..) | Course::Drop(reason) => Interest::None(reason),
    }
}

pub(crate) fn decide(on: Protocols<'_>, incoming: &Incoming<'_>, layers: Layers, out: &mut Vec<u8>) -> Decision {
    let Some(v4) = &on.config.v4 else { return Decision::drop(DropReason::NotForGateway) };
    let bad = || Decision::drop(DropReason::BadPacket);
    let course = course(on, v4, incoming, layers);
    let Some(packet) = incoming.bytes.get(layers.l2_len..) else { return bad() };
    let Some(header) = parse(packet) else { return bad() };
    // Ethernet may have padded the packet.
    let (Some(packet), Some(top)) = (packet.get(..header.total), packet.get(..header.length)) else { return bad() };
    let Some(payload) = packet.get(header.length..) else { return bad() };
    let mut sum = Checksum::new();
    sum.add_bytes(top);
    if !sum.is_valid() {
        return bad();
    }
    let echo = matches!(course, Course::Echo);
    let ours = if echo { header.to } else { v4.address };
    let path = Path { mac: on.config.mac, to_mac: incoming.macs().1, from: ours, to: header.from };
    match course {
        Course::Echo => {
            let mut sum = Checksum::new();
            sum.add_bytes(payload);
            if payload.len() < 8 || (!incoming.checksum_owed && !sum.is_valid()) {
                return bad();
            }
            icmp::echo_reply(out, &path, header.tos, payload);
            Decision::reply()
        }
        Course::Dhcp => {
            let Some(dhcp) = on.dhcp else { return Decision::drop(DropReason::NotForGateway) };
            let Some(message) = udp_payload(&header, payload, incoming.checksum_owed) else { return bad() };
            dhcp.decide(v4, on.config.mac, incoming, header.from, message, on.now, out)
        }
        Course::Error(reason, kind, code) => {
            icmp::error(out, &path, kind, code, packet);
            Decision { verdict: Verdict::Drop(reason), change: Change::Error(incoming.origin.nic) }
        }
        Course::Forward | Course::Service => Decision { verdict: Verdict::Forward, change: Change::None },
        Course::Drop(reason) => Decision::drop(reason),
    }
}

/// What a UDP datagram carries, if it is intact (RFC 768).
fn udp_payload<'a>(header: &Header, datagram: &'a [u8], checksum_owed: bool) -> Option<&'a [u8]> {
    let length = be16(datagram, 4)?;
    let datagram = datagram.get(..usize::from(length))?;
    if !checksum_owed && be16(datagram, 6)? != 0 {
        let mut sum = Checksum::pseudo_v4(header.from.octets(), header.to.octets(), UDP, length);
        sum.add_bytes(datagram);
        if !sum.is_valid() {
            return None;
        }
    }
    datagram.get(8..)
}
