//! [`Rewrite`]: the changes to a packet's head, and what they do to its checksums.
//!
//! Invariant: a checksum that was right is right afterwards, one that was wrong stays wrong (nothing is summed up anew, RFC 1624). A UDP
//! checksum of zero stays zero (over IPv6 there is none). A checksum that is still owed (virtio 1.2 section 5.1.6.2) holds the sum of the pseudo header, which covers
//! addresses and no ports, and not its complement.

use std::net::Ipv4Addr;

use wire::Head;

use crate::{
    family::Family,
    record::{Endpoint, Protocol},
};

/// New endpoints for one IP header and what is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends<A = Ipv4Addr> {
    /// Source.
    pub source: Endpoint<A>,
    /// Destination.
    pub destination: Endpoint<A>,
}

/// What is behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape<A = Ipv4Addr> {
    /// A transport header.
    Transport { l4: u16, protocol: Protocol },
    /// An ICMP error, whose quoted packet gets endpoints of its own.
    Error { l4: u16, quote_l3: u16, quote_l4: u16, protocol: Protocol, quote: Ends<A> },
    /// A later fragment: nothing but the IP header.
    Bare,
}

/// See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rewrite<A = Ipv4Addr> {
    pub(crate) l3: u16,
    pub(crate) ends: Ends<A>,
    pub(crate) shape: Shape<A>,
    /// Where the packet's identification is, and a new one.
    pub(crate) id: Option<(u16, u32)>,
}

/// What the changes of some words add to a checksum.
#[derive(Clone, Copy, Default)]
struct Delta(u64);

impl Delta {
    /// Writes two bytes and notes the change.
    #[inline]
    fn put(&mut self, bytes: &mut [u8], at: usize, new: [u8; 2]) {
        if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
            self.0 += u64::from(!u16::from_be_bytes(*place)) + u64::from(u16::from_be_bytes(new));
            *place = new;
        }
    }

    /// Writes an address and notes the change.
    #[inline]
    fn put_address<A: Family>(&mut self, bytes: &mut [u8], at: usize, new: A) {
        let octets = new.octets();
        for (n, word) in octets.as_ref().as_chunks::<2>().0.iter().enumerate() {
            self.put(bytes, at + n * 2, *word);
        }
    }

    #[inline]
    fn and(self, other: Delta) -> Delta {
        Delta(self.0 + other.0)
    }

    /// The field of a checksum after the change (RFC 1624 equation 3).
    #[inline]
    fn apply(self, field: u16) -> u16 {
        !self.fold(u64::from(!field))
    }

    /// The sum itself after the change.
    #[inline]
    fn apply_to_sum(self, sum: u16) -> u16 {
        self.fold(u64::from(sum))
    }

    #[inline]
    fn fold(self, with: u64) -> u16 {
        let sum = self.0 + with;
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = (sum >> 16) + (sum & 0xffff);
        sum as u16
    }
}

/// How the checksum field of a transport header is to be read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    Complete,
    Owed,
}

impl<A: Family> Rewrite<A> {
    /// Whether what the frame still owes goes with its headers: a checksum owed must be the transport header's own.
    pub(crate) fn suits(&self, head: &Head) -> bool {
        let offload = head.offload;
        if !offload.needs_checksum() {
            return true;
        }
        match self.shape {
            Shape::Transport { l4, protocol } => {
                offload.checksum_start() == l4 && usize::from(offload.checksum_offset()) == checksum_offset(protocol)
            }
            Shape::Error { .. } | Shape::Bare => false,
        }
    }

    /// Changes the head.
    #[inline]
    pub(crate) fn apply(&self, head: &mut Head) {
        let sum = if head.offload.needs_checksum() { Sum::Owed } else { Sum::Complete };
        let bytes = head.bytes_mut();
        let l3 = usize::from(self.l3);
        match self.shape {
            Shape::Bare => drop(ip(bytes, l3, self.ends, self.id)),
            Shape::Transport { l4, protocol } => {
                let addresses = ip(bytes, l3, self.ends, self.id);
                transport(bytes, usize::from(l4), protocol, self.ends, addresses, sum);
            }
            Shape::Error { l4, quote_l3, quote_l4, protocol, quote } => {
                // What is behind the packet, padding say, is no part of what it quotes.
                let (at, before) = A::LENGTH;
                let end = word(bytes, l3 + at).map_or(0, |length| l3 + before + usize::from(length)).min(bytes.len());
                let Some(bytes) = bytes.get_mut(..end) else { return };
                let addresses = ip(bytes, l3, self.ends, self.id);
                let (quote_l3, quote_l4) = (usize::from(quote_l3), usize::from(quote_l4));
                // Every word of the quoted packet that changes counts in the ICMP checksum: its addresses, its ports, its own checksums.
                let old = A::SUM.and_then(|sum| word(bytes, quote_l3 + sum));
                let mut delta = ip(bytes, quote_l3, quote, None);
                let new = A::SUM.and_then(|sum| word(bytes, quote_l3 + sum));
                let at = quote_l4 + checksum_offset(protocol);
                let old_sum = word(bytes, at);
                let ports = transport(bytes, quote_l4, protocol, quote, delta, Sum::Complete);
                let new_sum = word(bytes, at);
                for (old, new) in [(old, new), (old_sum, new_sum)] {
                    if let (Some(old), Some(new)) = (old, new) {
                        delta.0 += u64::from(!old) + u64::from(new);
                    }
                }
                if A::ICMP_COVERS_ADDRESSES {
                    delta = delta.and(addresses);
                }
                let at = usize::from(l4) + 2;
                if let Some(field) = word(bytes, at) {
                    set_word(bytes, at, delta.and(ports).apply(field));
                }
            }
        }
    }
}

/// New addresses and identification for an IP header; what the addresses add to a checksum.
#[inline]
fn ip<A: Family>(bytes: &mut [u8], l3: usize, ends: Ends<A>, id: Option<(u16, u32)>) -> Delta {
    let mut addresses = Delta::default();
    addresses.put_address(bytes, l3 + A::SOURCE, ends.source.address);
    addresses.put_address(bytes, l3 + A::DESTINATION, ends.destination.address);
    let mut all = addresses;
    if let Some((at, id)) = id {
        let ([a, b, c, d], at) = (id.to_be_bytes(), usize::from(at));
        if A::ID == 4 {
            all.put(bytes, at, [a, b]);
        }
        all.put(bytes, at + A::ID - 2, [c, d]);
    }
    if let Some(at) = A::SUM.map(|sum| l3 + sum)
        && let Some(field) = word(bytes, at)
    {
        set_word(bytes, at, all.apply(field));
    }
    addresses
}

/// New ports or a new identifier; returns what they add to a checksum that covers them.
#[inline]
fn transport<A: Family>(
    bytes: &mut [u8],
    l4: usize,
    protocol: Protocol,
    ends: Ends<A>,
    addresses: Delta,
    sum: Sum,
) -> Delta {
    let mut ports = Delta::default();
    let at = l4 + checksum_offset(protocol);
    if protocol == Protocol::Icmp {
        // The same on both sides, in one field; which end is the one that changes does not matter.
        ports.put(bytes, l4 + 4, ends.source.port.to_be_bytes());
        let addresses = if A::ICMP_COVERS_ADDRESSES { addresses } else { Delta::default() };
        if let Some(field) = word(bytes, at) {
            let field = match sum {
                Sum::Complete => addresses.and(ports).apply(field),
                Sum::Owed => addresses.apply_to_sum(field),
            };
            set_word(bytes, at, field);
        }
        return ports;
    }
    ports.put(bytes, l4, ends.source.port.to_be_bytes());
    ports.put(bytes, l4 + 2, ends.destination.port.to_be_bytes());
    let Some(field) = word(bytes, at) else { return ports };
    let field = match (sum, protocol) {
        (Sum::Owed, _) => addresses.apply_to_sum(field),
        (Sum::Complete, Protocol::Udp) if field == 0 => 0,
        (Sum::Complete, Protocol::Udp) => match addresses.and(ports).apply(field) {
            0 => 0xffff,
            field => field,
        },
        (Sum::Complete, _) => addresses.and(ports).apply(field),
    };
    set_word(bytes, at, field);
    ports
}

#[inline]
const fn checksum_offset(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Icmp => 2,
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
    }
}

#[inline]
fn word(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|word| u16::from_be_bytes(*word))
}

#[inline]
fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<2>()) {
        *place = value.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_is_what_update_makes() {
        let mut bytes = [0x12, 0x34, 0xff, 0xff];
        let mut delta = Delta::default();
        delta.put(&mut bytes, 0, [0xab, 0xcd]);
        assert_eq!(delta.apply(0x5555), wire::checksum::update(0x5555, 0x1234, 0xabcd));
        assert_eq!(bytes, [0xab, 0xcd, 0xff, 0xff]);
    }
}
