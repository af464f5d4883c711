//! [`Packet`]: what a guest's frame says that is to leave by a datagram socket.
//!
//! Invariant: a packet that was read is whole, its lengths lie within the frame and its IPv4 header's checksum holds; the transport checksum is
//! checked by [`Packet::intact`], which reads all of it. Read first: RFC 768, RFC 791, RFC 8200 section 8.1, [`wire::layers`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) use wire::span::{body, front};
use wire::{Context, DropReason, Frame, Gso, Head, L3, Layers, checksum::Checksum, frame::Origin};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    /// Where it came in.
    pub(crate) origin: Origin,
    /// Who sent it.
    pub(crate) source: IpAddr,
    /// To whom.
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// TOS or traffic class.
    pub(crate) tos: u8,
    /// It is not to be fragmented.
    pub(crate) df: bool,
    /// IPv4 identification.
    pub(crate) id: u16,
    /// IANA's number of the transport protocol.
    pub(crate) protocol: u8,
    /// Where the network layer begins in the frame.
    pub(crate) l3: usize,
    /// Where the transport header begins, and where the packet ends.
    pub(crate) l4: usize,
    pub(crate) end: usize,
    /// Bytes of each datagram but the last, where it is many; else zero.
    pub(crate) segment: u16,
}

impl Packet {
    /// Reads a whole packet's headers.
    pub(crate) fn read(head: &Head, layers: &Layers) -> Result<Packet, DropReason> {
        let bad = DropReason::BadPacket;
        let bytes = head.bytes();
        let (l3, l4) = (layers.l2_len, layers.l4.ok_or(bad)?);
        let protocol = layers.protocol.ok_or(bad)?;
        let owed = head.offload;
        let many = owed.gso() != Gso::None;
        let segment = if many { owed.segment_size() } else { 0 };
        let mut packet = match layers.l3 {
            L3::V4 => {
                let header: &[u8; IPV4_LEN] = bytes.get(l3..).and_then(|at| at.first_chunk()).ok_or(bad)?;
                let [_, tos, a, b, i, d, flags, _, ttl, _, _, _, s @ ..] = *header;
                let [s0, s1, s2, s3, d0, d1, d2, d3] = s;
                let mut sum = Checksum::new();
                sum.add_bytes(bytes.get(l3..l4).ok_or(bad)?);
                if !sum.is_valid() {
                    return Err(bad);
                }
                Packet {
                    origin: head.origin,
                    source: Ipv4Addr::new(s0, s1, s2, s3).into(),
                    destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
                    ttl,
                    tos,
                    df: flags & 0x40 != 0,
                    id: u16::from_be_bytes([i, d]),
                    protocol,
                    l3,
                    l4,
                    end: l3 + usize::from(u16::from_be_bytes([a, b])),
                    segment,
                }
            }
            L3::V6 => {
                let header: &[u8; IPV6_LEN] = bytes.get(l3..).and_then(|at| at.first_chunk()).ok_or(bad)?;
                let [first, second, _, _, a, b, _, ttl, addresses @ ..] = *header;
                let (source, destination) = addresses.split_first_chunk::<16>().ok_or(bad)?;
                let destination: [u8; 16] = destination.first_chunk().copied().ok_or(bad)?;
                Packet {
                    origin: head.origin,
                    source: Ipv6Addr::from(*source).into(),
                    destination: Ipv6Addr::from(destination).into(),
                    ttl,
                    tos: first << 4 | second >> 4,
                    df: true,
                    id: 0,
                    protocol,
                    l3,
                    l4,
                    end: l3 + IPV6_LEN + usize::from(u16::from_be_bytes([a, b])),
                    segment,
                }
            }
            L3::Other => return Err(bad),
        };
        // Drivers need not fill in the length of what is to be cut.
        if many {
            packet.end = head.len();
        }
        if packet.end > head.len() || packet.end < packet.l4 {
            return Err(bad);
        }
        Ok(packet)
    }

    /// Whether both addresses are those of one host each.
    pub(crate) fn is_unicast(&self) -> bool {
        let one = |address: IpAddr| match address {
            IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && v4.octets().first() != Some(&0),
            IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unspecified(),
        };
        one(self.source) && one(self.destination)
    }

    /// Whether the transport checksum holds, or is still owed.
    pub(crate) fn intact(&self, cx: &Context, frame: &Frame) -> bool {
        let head = cx.heads.get(frame);
        if head.offload.needs_checksum() {
            return true;
        }
        let len = self.end - self.l4;
        let mut sum = match (self.source, self.destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) if self.protocol != 1 => {
                Checksum::pseudo_v4(s.octets(), d.octets(), self.protocol, len as u16)
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => Checksum::pseudo_v6(s.octets(), d.octets(), self.protocol, len as u32),
            _ => Checksum::new(),
        };
        let front = head.bytes();
        sum.add_bytes(front.get(self.l4..self.end.min(front.len())).unwrap_or_default());
        sum.add_lent(&cx.arena, body(cx, frame, self.l4.max(front.len()), self.end)) && sum.is_valid()
    }
}
