//! ICMP errors: what they say ([`Owed`]), how they are made ([`v4`], [`v6`]), and how many a NIC gets ([`Limits`]).
//!
//! Invariant: no error is about an error, about a fragment other than the first, or goes to what is not the address of one host
//! (RFC 1122 section 3.2.2, RFC 4443 section 2.4); a NIC gets [`Limits::new`]'s number a second.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    Instant, Layers, NicId,
    bytes::{array, put, sum},
    checksum::Checksum,
};

/// Bytes of the packet that an error quotes, at most: the whole error keeps below 576 bytes (RFC 1812 section 4.3.2.3), or 1280 with IPv6.
const QUOTE: [usize; 2] = [548, 1232];
/// Bytes before the quoted packet.
const BEFORE: usize = 14 + 20 + 8;
const BEFORE6: usize = 14 + 40 + 8;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// Longer than fits, and not to be cut: the MTU (RFC 1191, RFC 8201).
    TooBig(u16),
    /// The time to live is over.
    Expired,
    /// No way to there.
    NoRoute,
    /// The next hop does not answer.
    NoHost,
    /// Nobody at this port.
    NoPort,
    /// Refused for want of room (RFC 5508 REQ-8), or not translated.
    Prohibited,
}

impl Owed {
    /// Type, code and the four bytes after the checksum.
    fn v4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Owed::TooBig(mtu) => {
                let [high, low] = mtu.to_be_bytes();
                (3, 4, [0, 0, high, low])
            }
            Owed::Expired => (11, 0, [0; 4]),
            Owed::NoRoute => (3, 0, [0; 4]),
            Owed::NoHost => (3, 1, [0; 4]),
            Owed::NoPort => (3, 3, [0; 4]),
            Owed::Prohibited => (3, 13, [0; 4]),
        }
    }

    fn v6(self) -> (u8, u8, [u8; 4]) {
        match self {
            Owed::TooBig(mtu) => (2, 0, u32::from(mtu).to_be_bytes()),
            Owed::Expired => (3, 0, [0; 4]),
            Owed::NoRoute => (1, 0, [0; 4]),
            Owed::NoHost => (1, 3, [0; 4]),
            Owed::NoPort => (1, 4, [0; 4]),
            Owed::Prohibited => (1, 1, [0; 4]),
        }
    }
}

/// Makes the error about the packet that begins with `packet` in `into`: an Ethernet frame without addresses. The length, or nothing when
/// no error may be made.
pub fn v4(owed: Owed, from: Ipv4Addr, packet: &[u8], into: &mut [u8]) -> Option<usize> {
    let to = Ipv4Addr::from(array::<4>(packet, 12)?);
    let [first, tos] = array(packet, 0)?;
    let [high, low] = array(packet, 6)?;
    let header = usize::from(first & 0x0f) * 4;
    let about_error = packet.get(9) == Some(&1) && !matches!(packet.get(header), Some(0 | 8 | 13 | 14));
    if about_error || u16::from_be_bytes([high & 0x1f, low]) != 0 || !is_host(to) {
        return None;
    }
    let [long, _] = QUOTE;
    let total = usize::from(u16::from_be_bytes(array(packet, 2)?));
    let quote = packet.get(..packet.len().min(total).min(long))?;
    let len = BEFORE + quote.len();
    let frame = into.get_mut(..len)?;
    frame.get_mut(..BEFORE)?.fill(0);
    let (kind, code, rest) = owed.v4();
    put(frame, 12, &[0x08, 0x00]);
    // As urgent as what it is about (RFC 1812 section 4.3.2.5).
    put(frame, 14, &[0x45, tos & 0xfc]);
    put(frame, 16, &((len - 14) as u16).to_be_bytes());
    put(frame, 20, &[0x40, 0, 64, 1]);
    put(frame, 26, &from.octets());
    put(frame, 30, &to.octets());
    put(frame, 34, &[kind, code]);
    put(frame, 38, &rest);
    put(frame, BEFORE, quote);
    let of_header = sum(frame.get(14..34)?);
    put(frame, 24, &of_header);
    let of_all = sum(frame.get(34..)?);
    put(frame, 36, &of_all);
    Some(len)
}

/// As [`v4`], of IPv6.
pub fn v6(owed: Owed, from: Ipv6Addr, packet: &[u8], into: &mut [u8]) -> Option<usize> {
    let to = Ipv6Addr::from(array::<16>(packet, 8)?);
    let layers = Layers::of_ipv6(packet, 0)?;
    let kind = layers.l4.filter(|_| layers.protocol == Some(58)).and_then(|l4| packet.get(l4));
    let about_error = kind.is_some_and(|kind| *kind < 128 || *kind == 137);
    let later = layers.fragment && layers.l4.is_none();
    // Of a packet to a group its senders are told the MTU alone (RFC 4443 section 2.4).
    let of_group = Ipv6Addr::from(array::<16>(packet, 24)?).is_multicast() && !matches!(owed, Owed::TooBig(_));
    if about_error || later || of_group || to.is_multicast() || to.is_unspecified() {
        return None;
    }
    let [_, long] = QUOTE;
    let quote = packet.get(..packet.len().min(long))?;
    let len = BEFORE6 + quote.len();
    let frame = into.get_mut(..len)?;
    frame.get_mut(..BEFORE6)?.fill(0);
    let (kind, code, rest) = owed.v6();
    put(frame, 12, &[0x86, 0xdd, 0x60]);
    put(frame, 18, &((len - 54) as u16).to_be_bytes());
    put(frame, 20, &[58, 64]);
    put(frame, 22, &from.octets());
    put(frame, 38, &to.octets());
    put(frame, 54, &[kind, code]);
    put(frame, 58, &rest);
    put(frame, BEFORE6, quote);
    let of_all = sum_v6(frame)?;
    put(frame, 56, &of_all);
    Some(len)
}

/// The ICMPv6 checksum of a frame whose field is zero and which has no extension headers.
pub fn sum_v6(frame: &[u8]) -> Option<[u8; 2]> {
    let message = frame.get(54..)?;
    let mut sum = Checksum::pseudo_v6(array(frame, 22)?, array(frame, 38)?, 58, u32::try_from(message.len()).ok()?);
    sum.add_bytes(message);
    Some(sum.finish().to_be_bytes())
}

/// Whether it is the address of one host.
pub fn is_host(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    !(first == 0 || first == 127 || first >= 224)
}

/// How many errors each NIC may still be given in this second.
pub struct Limits {
    second: u64,
    left: Vec<u32>,
    most: u32,
}

impl Limits {
    /// Each NIC gets `most` a second.
    pub fn new(most: u32) -> Limits {
        Limits { second: 0, left: Vec::new(), most }
    }

    /// NICs up to `nic` are known from here on. Allocates.
    pub fn add(&mut self, nic: NicId) {
        if self.left.len() <= nic.index() {
            self.left.resize(nic.index() + 1, self.most);
        }
    }

    /// Whether one more may be made for what came from a NIC.
    pub fn take(&mut self, nic: NicId, now: Instant) -> bool {
        if self.second != now.seconds() {
            self.second = now.seconds();
            self.left.fill(self.most);
        }
        let Some(left) = self.left.get_mut(nic.index()).filter(|left| **left > 0) else { return false };
        *left -= 1;
        true
    }
}

/// Where an IPv4 packet goes.
pub fn destination4(packet: &[u8]) -> Option<Ipv4Addr> {
    array::<4>(packet, 16).map(Ipv4Addr::from)
}

/// Where an IPv6 packet goes.
pub fn destination6(packet: &[u8]) -> Option<Ipv6Addr> {
    array::<16>(packet, 24).map(Ipv6Addr::from)
}
