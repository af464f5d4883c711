//! [`Message`]: what a message of ARP or neighbour discovery says of its sender and asks, and how it is answered in another's name.
//!
//! Invariant: only what a receiver would believe is read: whole, with its checksum and hop limit right, from the MAC that it speaks for. Announcements ask
//! nothing here, and probes for duplicates are no such message, so that they get to whoever they concern (`Read::Probe`).
//! Read first: RFC 826, RFC 5227 section 1.1 (probe, announcement), RFC 4861 sections 4.3, 4.4, 7.1 and 7.2.4.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::{
    ALL_NODES, Mac,
    bytes::{array, word},
    icmp::sum_v6,
    layers::{ETHERNET_LEN, ETHERTYPE_IPV6},
    solicited_node,
};

/// The EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Bytes of the longest answer.
pub const LONGEST: usize = ETHERNET_LEN + IPV6 + 32;

/// Ethernet, IPv4, and the lengths of their addresses.
pub(crate) const ARP: [u8; 6] = [0, 1, 8, 0, 6, 4];
pub(crate) const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// A frame is at least so long on the wire (IEEE 802.3 clause 4.2.3.3).
pub(crate) const SHORTEST: usize = 60;
const IPV6: usize = 40;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Options of neighbour discovery.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
/// Flags of an advertisement.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// What somebody says of himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// His address.
    pub address: IpAddr,
    /// His MAC, which the frame comes from.
    pub mac: Mac,
    /// Whether he is a router; nothing: he does not say.
    pub router: Option<bool>,
    /// RFC 4861 section 4.4, O.
    pub overrides: bool,
}

/// A question for somebody's MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Whose.
    pub target: IpAddr,
    by: IpAddr,
    to: Mac,
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What it says of its sender.
    pub said: Option<Said>,
    /// What it asks.
    pub asked: Option<Asked>,
}

impl Message {
    /// Whether a frame that begins with these bytes may hold such a message: one look at most frames.
    #[inline]
    pub fn may_be(ethertype: u16, bytes: &[u8]) -> bool {
        match ethertype {
            ETHERTYPE_ARP => true,
            ETHERTYPE_IPV6 => bytes.get(ETHERNET_LEN + 6) == Some(&ICMPV6) && bytes.get(ETHERNET_LEN + 7) == Some(&255),
            _ => false,
        }
    }

    /// Reads a frame from its first bytes, which hold the whole message; nothing when they do not, or it is none that counts.
    pub fn read(bytes: &[u8]) -> Option<Message> {
        match read(bytes)? {
            Read::Message(message) => Some(message),
            Read::Probe(_) => None,
        }
    }
}

/// What a frame is.
pub(crate) enum Read {
    /// A message that counts for all who hear it.
    Message(Message),
    /// The question of somebody who looks whether an address is free before it is his (RFC 5227 section 2.1.1, RFC 4862 section 5.4.3). He is to be
    /// answered by whoever has it, and nobody else.
    Probe(Asked),
}

/// Reads a frame from its first bytes, which hold the whole message; nothing when they do not, or it is neither.
pub(crate) fn read(bytes: &[u8]) -> Option<Read> {
    let source = Mac::new(array(bytes, 6)?);
    if !source.is_unicast() {
        return None;
    }
    match word(bytes, 12)? {
        ETHERTYPE_ARP => arp(bytes.get(ETHERNET_LEN..)?, source),
        ETHERTYPE_IPV6 => ipv6(bytes, source),
        _ => None,
    }
}

fn arp(packet: &[u8], source: Mac) -> Option<Read> {
    let operation = word(packet, 6)?;
    let (sender, by) = (Mac::new(array(packet, 8)?), Ipv4Addr::from(array::<4>(packet, 14)?));
    let target = Ipv4Addr::from(array::<4>(packet, 24)?);
    if array(packet, 0)? != ARP || sender != source || !matches!(operation, REQUEST | REPLY) {
        return None;
    }
    let question = Asked { target: target.into(), by: by.into(), to: sender };
    if by.is_unspecified() {
        return (operation == REQUEST).then_some(Read::Probe(question));
    }
    let said = Said { address: by.into(), mac: sender, router: None, overrides: true };
    let asks = operation == REQUEST && by != target;
    Some(Read::Message(Message { said: Some(said), asked: asks.then_some(question) }))
}

fn ipv6(bytes: &[u8], source: Mac) -> Option<Read> {
    let [first, _, _, _, high, low, next, hops]: [u8; 8] = array(bytes, ETHERNET_LEN)?;
    if first >> 4 != 6 || next != ICMPV6 || hops != 255 {
        return None;
    }
    // Of the frame what belongs to the packet.
    let bytes = bytes.get(..ETHERNET_LEN + IPV6 + usize::from(u16::from_be_bytes([high, low])))?;
    let (from, to) = (array::<16>(bytes, ETHERNET_LEN + 8)?, array::<16>(bytes, ETHERNET_LEN + 24)?);
    let message = bytes.get(ETHERNET_LEN + IPV6..)?;
    let [kind @ (SOLICITATION | ADVERTISEMENT), 0, ..] = *message else { return None };
    let target = Ipv6Addr::from(array::<16>(message, 8)?);
    if sum_v6(bytes)? != [0; 2] || target.is_multicast() {
        return None;
    }
    let (from, to) = (Ipv6Addr::from(from), Ipv6Addr::from(to));
    let option = if kind == SOLICITATION { SOURCE } else { TARGET };
    let mac = link_layer(message.get(24..)?, option)?;
    // Who speaks for another MAC than its own, a proxy, is no neighbour that could be answered for.
    let own = mac.filter(|mac| *mac == source);
    if kind == ADVERTISEMENT {
        let flags = *message.get(4)?;
        if to.is_multicast() && flags & SOLICITED != 0 {
            return None;
        }
        let (router, overrides) = (Some(flags & ROUTER != 0), flags & OVERRIDE != 0);
        // To who has asked him alone he need not say it (RFC 4861 section 4.4).
        let own = if mac.is_none() && flags & SOLICITED != 0 { Some(source) } else { own };
        let said = own.map(|mac| Said { address: target.into(), mac, router, overrides });
        return Some(Read::Message(Message { said, asked: None }));
    }
    let question = Asked { target: target.into(), by: from.into(), to: source };
    if from.is_unspecified() {
        // It looks whether its own address is free.
        return (to == solicited_node(target) && mac.is_none()).then_some(Read::Probe(question));
    }
    let asks = (to == solicited_node(target) || to == target) && from != target && (mac.is_none() || own.is_some());
    let said = own.map(|mac| Said { address: from.into(), mac, router: None, overrides: true });
    Some(Read::Message(Message { said, asked: asks.then_some(question) }))
}

/// The address in a link-layer option of this kind, if there is one; nothing at all when options are malformed (RFC 4861 section 7.1).
fn link_layer(mut options: &[u8], kind: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while let Some((this, rest)) = options.split_first() {
        let length = usize::from(*rest.first()?) * 8;
        if length == 0 {
            return None;
        }
        let option = options.get(..length)?;
        if *this == kind && length == 8 {
            found = Some(Mac::new(array(option, 2)?));
        }
        options = options.get(length..)?;
    }
    Some(found)
}

impl Asked {
    /// Writes the frame with which who was asked for would answer; its length. Who has no IPv6 address yet is answered by telling everybody (RFC 4861
    /// section 7.2.4).
    pub fn answer(&self, said: &Said, frame: &mut [u8; LONGEST]) -> Option<usize> {
        let Said { mac, router, overrides, .. } = *said;
        frame.fill(0);
        let mut place = Place { frame, at: 0 };
        place.put(&self.to.bytes());
        place.put(&mac.bytes());
        match (self.target, self.by) {
            (IpAddr::V4(target), IpAddr::V4(by)) => {
                place.put(&ETHERTYPE_ARP.to_be_bytes());
                place.put(&ARP);
                place.put(&REPLY.to_be_bytes());
                place.put(&mac.bytes());
                place.put(&target.octets());
                place.put(&self.to.bytes());
                place.put(&by.octets());
                Some(SHORTEST)
            }
            (IpAddr::V6(target), IpAddr::V6(by)) => {
                let flags = if router == Some(true) { ROUTER } else { 0 } | if overrides { OVERRIDE } else { 0 };
                if by.is_unspecified() {
                    place.at = 0;
                    place.put(&Mac::of_group(ALL_NODES.into()).bytes());
                    place.put(&mac.bytes());
                    return Some(advertise(place, target, ALL_NODES, mac, flags));
                }
                Some(advertise(place, target, by, mac, flags | SOLICITED))
            }
            _ => None,
        }
    }
}

/// The frame that tells everybody who has `address` (RFC 5227 section 2.3, RFC 4861 section 7.2.6); its length.
pub fn announcement(address: IpAddr, mac: Mac, frame: &mut [u8; LONGEST]) -> usize {
    frame.fill(0);
    let mut place = Place { frame, at: 0 };
    match address {
        IpAddr::V4(address) => {
            place.put(&Mac::BROADCAST.bytes());
            place.put(&mac.bytes());
            place.put(&ETHERTYPE_ARP.to_be_bytes());
            place.put(&ARP);
            place.put(&REQUEST.to_be_bytes());
            place.put(&mac.bytes());
            place.put(&address.octets());
            place.put(&[0; 6]);
            place.put(&address.octets());
            SHORTEST
        }
        IpAddr::V6(address) => {
            place.put(&Mac::of_group(ALL_NODES.into()).bytes());
            place.put(&mac.bytes());
            advertise(place, address, ALL_NODES, mac, OVERRIDE)
        }
    }
}

/// Writes an advertisement behind the two MACs; the length of the frame.
fn advertise(mut place: Place, target: Ipv6Addr, to: Ipv6Addr, mac: Mac, flags: u8) -> usize {
    place.put(&ETHERTYPE_IPV6.to_be_bytes());
    place.put(&[0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    place.put(&target.octets());
    place.put(&to.octets());
    let start = place.at;
    place.put(&[ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
    place.put(&target.octets());
    place.put(&[TARGET, 1]);
    place.put(&mac.bytes());
    let end = place.at;
    let sum = place.frame.get(..end).and_then(sum_v6).unwrap_or_default();
    place.at = start + 2;
    place.put(&sum);
    end
}

/// Where the next bytes go.
struct Place<'a> {
    frame: &'a mut [u8; LONGEST],
    at: usize,
}

impl Place<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.frame.get_mut(self.at..self.at + bytes.len()) {
            place.copy_from_slice(bytes);
            self.at += bytes.len();
        }
    }
}

const _: () = assert!(LONGEST >= SHORTEST, "an answer has room");
