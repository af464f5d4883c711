//! What an endpoint in a network of ours says and hears besides packets of tunnels: ARP, neighbour discovery, ICMP, and reports of groups.
//!
//! Invariant: a message counts only when it is whole, its checksum is right, and its hop limit shows that it is from the same link where it must be.
//! Nothing here allocates. Read first: RFC 826, RFC 5227 section 3 (announcements), RFC 4861 sections 4.3, 4.4 and 7.1, RFC 792, RFC 2236, RFC 2710.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    Mac,
    bytes::{array, put, sum, word},
    checksum::Checksum,
    icmp::sum_v6,
    layers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

pub(super) const ETHERTYPE_ARP: u16 = 0x0806;
/// The header of ARP for IPv4 over Ethernet.
const ARP: [u8; 6] = [0, 1, 8, 0, 6, 4];
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

/// What a frame said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// An address is at a MAC; with `asks`, and who is there wants to know ours.
    Neighbour { address: IpAddr, mac: Mac, asks: bool },
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
    let said = match word(bytes, 12) {
        Some(ETHERTYPE_ARP) => arp(own, bytes),
        Some(ETHERTYPE_IPV4) => ipv4(own, bytes),
        Some(ETHERTYPE_IPV6) => ipv6(own, bytes),
        _ => None,
    };
    said.unwrap_or(Said::Nothing)
}

fn arp(own: &Own, bytes: &[u8]) -> Option<Said> {
    let IpAddr::V4(us) = own.address else { return None };
    let (source, mac) = (array::<6>(bytes, 6)?, array::<6>(bytes, 22)?);
    let address = Ipv4Addr::from(array::<4>(bytes, 28)?);
    let target = Ipv4Addr::from(array::<4>(bytes, 38)?);
    let operation = word(bytes, 20)?;
    let plain = array(bytes, 14)? == ARP && source == mac && Mac::new(mac).is_unicast();
    if !plain || address.is_unspecified() || address == us || Mac::new(mac) == own.mac {
        // A probe for our address is answered like a question (RFC 5227 section 2.1.1).
        let probes = plain && address.is_unspecified() && operation == 1 && target == us;
        return probes.then_some(Said::Neighbour { address: address.into(), mac: Mac::new(mac), asks: true });
    }
    let asks = operation == 1 && target == us;
    Some(Said::Neighbour { address: address.into(), mac: Mac::new(mac), asks })
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
        [135, 0] if hops == 255 => {
            let target = Ipv6Addr::from(array::<16>(bytes, BEFORE6 + 8)?);
            let asks = target == us;
            let mac = option(bytes, 1).unwrap_or(source);
            asks.then_some(Said::Neighbour { address: from.into(), mac, asks })
        }
        [136, 0] if hops == 255 => {
            let target = Ipv6Addr::from(array::<16>(bytes, BEFORE6 + 8)?);
            let mac = option(bytes, 2).unwrap_or(source);
            let plain = mac.is_unicast() && target != us && mac != own.mac;
            plain.then_some(Said::Neighbour { address: target.into(), mac, asks: false })
        }
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

/// The MAC address in an option of a message of neighbour discovery that has a target.
fn option(bytes: &[u8], kind: u8) -> Option<Mac> {
    let mut at = BEFORE6 + 24;
    loop {
        let [found, words] = array(bytes, at)?;
        if found == kind && words == 1 {
            return Some(Mac::new(array(bytes, at + 2)?)).filter(|mac| mac.is_unicast());
        }
        at += usize::from(words.max(1)) * 8;
    }
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

/// A question for an address, to everybody or to one that is expected to have it; with our own address it is an announcement.
pub(super) fn question(own: &Own, about: IpAddr, to: Option<Mac>) -> Message {
    match (own.address, about) {
        (IpAddr::V4(us), IpAddr::V4(about)) => {
            let mut message = Message::new(42, to.unwrap_or(Mac::BROADCAST), own.mac, ETHERTYPE_ARP);
            message.put(14, &ARP);
            message.put(20, &[0, 1]);
            message.put(22, &own.mac.bytes());
            message.put(28, &us.octets());
            message.put(38, &about.octets());
            message
        }
        (IpAddr::V6(us), IpAddr::V6(about)) if us == about => advertisement(own, us, None),
        (IpAddr::V6(us), IpAddr::V6(about)) => {
            let [.., a, b, c] = about.octets();
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
            let (mac, address) = to.map_or((group_mac(group.into()), group), |mac| (mac, about));
            let mut message = icmp6(own.mac, us, (mac, address), [135, 0, 0, 0]);
            message.put(BEFORE6 + 8, &about.octets());
            message.put(BEFORE6 + 24, &[1, 1]);
            message.put(BEFORE6 + 26, &own.mac.bytes());
            message.sealed()
        }
        _ => Message { bytes: [0; 86], len: 0 },
    }
}

/// The answer to who asked for our address.
pub(super) fn answer(own: &Own, to: IpAddr, mac: Mac) -> Message {
    match (own.address, to) {
        (IpAddr::V4(us), IpAddr::V4(to)) => {
            let mut message = Message::new(42, mac, own.mac, ETHERTYPE_ARP);
            message.put(14, &ARP);
            message.put(20, &[0, 2]);
            message.put(22, &own.mac.bytes());
            message.put(28, &us.octets());
            message.put(32, &mac.bytes());
            message.put(38, &to.octets());
            message
        }
        // Who has no address yet asks whether ours is free.
        (IpAddr::V6(us), IpAddr::V6(to)) => advertisement(own, us, (!to.is_unspecified()).then_some((mac, to))),
        _ => Message { bytes: [0; 86], len: 0 },
    }
}

fn advertisement(own: &Own, about: Ipv6Addr, to: Option<(Mac, Ipv6Addr)>) -> Message {
    let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Solicited where somebody is answered, and always overriding what was known before.
    let flags = if to.is_some() { 0x60 } else { 0x20 };
    let to = to.unwrap_or((group_mac(all.into()), all));
    let mut message = icmp6(own.mac, about, to, [136, 0, 0, 0]);
    message.put(BEFORE6 + 4, &[flags]);
    message.put(BEFORE6 + 8, &about.octets());
    message.put(BEFORE6 + 24, &[2, 1]);
    message.put(BEFORE6 + 26, &own.mac.bytes());
    message.sealed()
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
            let mut message = Message::new(46, group_mac(group), own.mac, ETHERTYPE_IPV4);
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
            let mut message = Message::new(86, group_mac(group), own.mac, ETHERTYPE_IPV6);
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

/// The MAC address that packets to a group go to (RFC 1112 section 6.4, RFC 2464 section 7).
pub(super) fn group_mac(group: IpAddr) -> Mac {
    match group {
        IpAddr::V4(group) => {
            let [_, a, b, c] = group.octets();
            Mac::new([1, 0, 0x5e, a & 0x7f, b, c])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            Mac::new([0x33, 0x33, a, b, c, d])
        }
    }
}
