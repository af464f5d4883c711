//! What an endpoint in a network of ours says and hears besides packets of tunnels: questions for neighbours, ICMP, and reports of groups.
//!
//! Invariant: a message counts only when it is whole, its checksum is right, and its hop limit shows that it is from the same link where it must be.
//! Nothing here allocates. Read first: [`crate::resolution`] (what neighbours say), RFC 826, RFC 4861 section 4.3, RFC 792, RFC 2236, RFC 2710.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    Mac,
    bytes::{array, put, sum, word},
    checksum::Checksum,
    icmp::sum_v6,
    layers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
    solicited_node,
};

use crate::resolution::{self, ARP, Asked, ETHERTYPE_ARP, REQUEST, Read, SHORTEST};

/// The headers that come before an ICMP message.
const BEFORE4: usize = 34;
const BEFORE6: usize = 54;
const ICMP: u8 = 1;
const IGMP: u8 = 2;
const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;

/// Who speaks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) mac: Mac,
    pub(super) address: IpAddr,
    /// UDP port of the endpoint.
    pub(super) port: u16,
}

impl Own {
    /// What it says of itself.
    pub(super) fn said(&self) -> resolution::Said {
        resolution::Said { address: self.address, mac: self.mac, router: None, overrides: true }
    }
}

/// What a frame said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// What a neighbour says of himself, and asks.
    Neighbour { said: Option<resolution::Said>, asked: Option<Asked> },
    /// A ping: the frame was made the answer to it, of so many bytes.
    Ping(usize),
    /// A packet of ours to there was longer than this.
    TooBig { to: IpAddr, mtu: u16 },
    /// Who is in which group?
    Groups,
    /// A fragment of a packet to us.
    Fragment,
    /// Nothing that is for us to know.
    Nothing,
}

/// Reads a frame, which ends where `bytes` do.
pub(super) fn hear(own: &Own, bytes: &mut [u8]) -> Said {
    match resolution::read(bytes) {
        Some(Read::Message(resolution::Message { said, asked })) => return Said::Neighbour { said, asked },
        Some(Read::Probe(asked)) => return Said::Neighbour { said: None, asked: Some(asked) },
        None => {}
    }
    let said = match word(bytes, 12) {
        Some(ETHERTYPE_IPV4) => ipv4(own, bytes),
        Some(ETHERTYPE_IPV6) => ipv6(own, bytes),
        _ => None,
    };
    said.unwrap_or(Said::Nothing)
}

fn ipv4(own: &Own, bytes: &mut [u8]) -> Option<Said> {
    let IpAddr::V4(us) = own.address else { return None };
    let header: [u8; 20] = array(bytes, 14)?;
    let [first, _, high, low, _, _, flags, offset, _, protocol, ..] = header;
    let (len, l4) = (14 + usize::from(u16::from_be_bytes([high, low])), 14 + usize::from(first & 15) * 4);
    let to = Ipv4Addr::from(array::<4>(bytes, 30)?);
    if first >> 4 != 4 || l4 < BEFORE4 || len > bytes.len() || sum(bytes.get(14..l4)?) != [0; 2] {
        return None;
    }
    if protocol == IGMP {
        return (*bytes.get(l4)? == 0x11 && sum(bytes.get(l4..len)?) == [0; 2]).then_some(Said::Groups);
    }
    if to != us {
        return None;
    }
    if flags & 0x3f != 0 || offset != 0 {
        return Some(Said::Fragment);
    }
    if protocol != ICMP || l4 != BEFORE4 || sum(bytes.get(l4..len)?) != [0; 2] {
        return None;
    }
    match array(bytes, l4)? {
        [8, 0] => {
            let (mac, from) = (array::<6>(bytes, 6)?, array::<4>(bytes, 26)?);
            put(bytes, 0, &mac)?;
            put(bytes, 6, &own.mac.bytes())?;
            put(bytes, 22, &[super::TTL])?;
            put(bytes, 24, &[0; 2])?;
            put(bytes, 26, &us.octets())?;
            put(bytes, 30, &from)?;
            let of_header = sum(bytes.get(14..l4)?);
            put(bytes, 24, &of_header)?;
            put(bytes, l4, &[0, 0, 0, 0])?;
            let of_all = sum(bytes.get(l4..len)?);
            put(bytes, l4 + 2, &of_all)?;
            Some(Said::Ping(len))
        }
        [3, 4] => {
            let inner = l4 + 8;
            let about = array::<4>(bytes, inner + 12)? == us.octets() && *bytes.get(inner + 9)? == UDP;
            let l4 = inner + usize::from(*bytes.get(inner)? & 15) * 4;
            let ours = about && word(bytes, l4 + 2)? == own.port;
            let to = IpAddr::from(array::<4>(bytes, inner + 16)?);
            ours.then_some(Said::TooBig { to, mtu: word(bytes, BEFORE4 + 6)? })
        }
        _ => None,
    }
}

fn ipv6(own: &Own, bytes: &mut [u8]) -> Option<Said> {
    let IpAddr::V6(us) = own.address else { return None };
    let [next, hops] = array(bytes, 20)?;
    let len = BEFORE6 + usize::from(word(bytes, 18)?);
    let bytes = bytes.get_mut(..len)?;
    let to = Ipv6Addr::from(array::<16>(bytes, 38)?);
    let from = Ipv6Addr::from(array::<16>(bytes, 22)?);
    if next == 0 {
        return asks_for_groups(bytes, (from, to), hops).then_some(Said::Groups);
    }
    if to == us && next == FRAGMENT {
        return Some(Said::Fragment);
    }
    if next != ICMPV6 || sum_v6(bytes)? != [0; 2] {
        return None;
    }
    let source = Mac::new(array(bytes, 6)?);
    match array(bytes, BEFORE6)? {
        [128, 0] if to == us => {
            put(bytes, 0, &source.bytes())?;
            put(bytes, 6, &own.mac.bytes())?;
            put(bytes, 21, &[super::TTL])?;
            put(bytes, 22, &us.octets())?;
            put(bytes, 38, &from.octets())?;
            put(bytes, BEFORE6, &[129, 0, 0, 0])?;
            let of_all = sum_v6(bytes)?;
            put(bytes, BEFORE6 + 2, &of_all)?;
            Some(Said::Ping(len))
        }
        [2, 0] if to == us => {
            let inner = BEFORE6 + 8;
            let about = array::<16>(bytes, inner + 8)? == us.octets() && *bytes.get(inner + 6)? == UDP;
            let ours = about && word(bytes, inner + 40 + 2)? == own.port;
            let to = IpAddr::from(array::<16>(bytes, inner + 24)?);
            let mtu = u32::from_be_bytes(array(bytes, BEFORE6 + 4)?);
            ours.then_some(Said::TooBig { to, mtu: u16::try_from(mtu).unwrap_or(u16::MAX) })
        }
        _ => None,
    }
}

/// Whether a packet with options from hop to hop is a query for groups (RFC 2710 sections 3 and 4, RFC 3810 section 5.1.14).
fn asks_for_groups(bytes: &[u8], (from, to): (Ipv6Addr, Ipv6Addr), hops: u8) -> bool {
    let Some([ICMPV6, words]) = array(bytes, BEFORE6) else { return false };
    let message = bytes.get(BEFORE6 + 8 + usize::from(words) * 8..).unwrap_or_default();
    let mut sum = Checksum::pseudo_v6(from.octets(), to.octets(), ICMPV6, message.len() as u32);
    sum.add_bytes(message);
    let is_query = array(message, 0) == Some([130, 0]) && message.len() >= 24 && sum.is_valid();
    is_query && hops == 1 && from.is_unicast_link_local()
}

/// A message made here.
pub(super) struct Message {
    bytes: [u8; 86],
    len: usize,
}

impl Message {
    fn new(len: usize, to: Mac, from: Mac, ethertype: u16) -> Message {
        let mut message = Message { bytes: [0; 86], len };
        message.put(0, &to.bytes());
        message.put(6, &from.bytes());
        message.put(12, &ethertype.to_be_bytes());
        message
    }

    fn put(&mut self, at: usize, new: &[u8]) {
        // Every place lies within the room.
        let _ = put(&mut self.bytes, at, new);
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// A question for an address, to everybody or to one that is expected to have it.
pub(super) fn question(own: &Own, about: IpAddr, to: Option<Mac>) -> Message {
    match (own.address, about) {
        (IpAddr::V4(us), IpAddr::V4(about)) => {
            let mut message = Message::new(SHORTEST, to.unwrap_or(Mac::BROADCAST), own.mac, ETHERTYPE_ARP);
            message.put(14, &ARP);
            message.put(20, &REQUEST.to_be_bytes());
            message.put(22, &own.mac.bytes());
            message.put(28, &us.octets());
            message.put(38, &about.octets());
            message
        }
        (IpAddr::V6(us), IpAddr::V6(about)) => {
            let group = solicited_node(about);
            let (mac, address) = to.map_or((Mac::of_group(group.into()), group), |mac| (mac, about));
            let mut message = icmp6(own.mac, us, (mac, address), [135, 0, 0, 0]);
            message.put(BEFORE6 + 8, &about.octets());
            message.put(BEFORE6 + 24, &[1, 1]);
            message.put(BEFORE6 + 26, &own.mac.bytes());
            message.sealed()
        }
        _ => Message { bytes: [0; 86], len: 0 },
    }
}

/// An ICMPv6 message of 32 bytes that begins like this.
fn icmp6(mac: Mac, from: Ipv6Addr, (to, address): (Mac, Ipv6Addr), begin: [u8; 4]) -> Message {
    let mut message = Message::new(86, to, mac, ETHERTYPE_IPV6);
    message.put(14, &[0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    message.put(22, &from.octets());
    message.put(38, &address.octets());
    message.put(BEFORE6, &begin);
    message
}

impl Message {
    fn sealed(mut self) -> Message {
        let sum = sum_v6(self.bytes()).unwrap_or_default();
        self.put(BEFORE6 + 2, &sum);
        self
    }
}

/// We are in a group (RFC 2236 section 2, RFC 2710 section 3): to the group itself, with the option that routers look for.
pub(super) fn report(own: &Own, group: IpAddr) -> Message {
    match (own.address, group) {
        (IpAddr::V4(us), IpAddr::V4(to)) => {
            let mut message = Message::new(46, Mac::of_group(group), own.mac, ETHERTYPE_IPV4);
            message.put(14, &[0x46, 0xc0, 0, 32, 0, 0, 0, 0, 1, IGMP, 0, 0]);
            message.put(26, &us.octets());
            message.put(30, &to.octets());
            message.put(34, &[0x94, 4, 0, 0]);
            let of_header = sum(message.bytes.get(14..38).unwrap_or_default());
            message.put(24, &of_header);
            message.put(38, &[0x16, 0]);
            message.put(42, &to.octets());
            let of_all = sum(message.bytes.get(38..46).unwrap_or_default());
            message.put(40, &of_all);
            message
        }
        (IpAddr::V6(_), IpAddr::V6(to)) => {
            let from = own.mac.link_local();
            let mut message = Message::new(86, Mac::of_group(group), own.mac, ETHERTYPE_IPV6);
            message.put(14, &[0x60, 0, 0, 0, 0, 32, 0, 1]);
            message.put(22, &from.octets());
            message.put(38, &to.octets());
            message.put(BEFORE6, &[ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
            message.put(BEFORE6 + 8, &[131, 0]);
            message.put(BEFORE6 + 16, &to.octets());
            let mut sum = Checksum::pseudo_v6(from.octets(), to.octets(), ICMPV6, 24);
            sum.add_bytes(message.bytes.get(BEFORE6 + 8..86).unwrap_or_default());
            message.put(BEFORE6 + 10, &sum.finish().to_be_bytes());
            message
        }
        _ => Message { bytes: [0; 86], len: 0 },
    }
}
