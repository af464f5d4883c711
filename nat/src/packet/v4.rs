//! IPv4 packets.
//!
//! Invariant: that of [`super::Packet`]. Read first: RFC 791 section 3.1, RFC 792.

use std::net::Ipv4Addr;

use wire::{Head, L3, Layers};

use super::{Content, Packet, Part, Quote, ports, quoted_ports};
use crate::{
    decide::Refusal,
    record::{Endpoint, Protocol},
};

/// The packet of a frame.
#[inline]
pub(crate) fn packet(head: &Head) -> Result<Packet, Refusal> {
    let bytes = head.bytes();
    let l3 = match head.ethertype() {
        wire::layers::ETHERTYPE_IPV4 => wire::layers::ETHERNET_LEN,
        _ => tagged(bytes)?,
    };
    let header: &[u8; 20] = bytes.get(l3..).and_then(|at| at.first_chunk()).ok_or(Refusal::Malformed)?;
    let [first, _, l, m, i, d, flags, offset, _, number, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let l4 = l3 + usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || l4 < l3 + 20 || l4 > bytes.len() {
        return Err(Refusal::Malformed);
    }
    let len = u16::from_be_bytes([l, m]);
    let part = match (u16::from_be_bytes([flags & 0x1f, offset]), flags & 0x20 != 0) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    };
    let protocol = Protocol::from_number::<Ipv4Addr>(number).ok_or(Refusal::UnknownProtocol)?;
    // What is said to be there is there, and is no padding.
    let end = l3 + usize::from(len);
    if end > head.len() || end < l4 {
        return Err(Refusal::Malformed);
    }
    let content = match part {
        Part::Later => Content::Nothing,
        _ => content(bytes.get(..end.min(bytes.len())).unwrap_or_default(), end, l4, protocol)?,
    };
    if part != Part::Whole && matches!(content, Content::Error(_)) {
        return Err(Refusal::Malformed);
    }
    Ok(Packet {
        l3,
        l4,
        number,
        protocol,
        source: Ipv4Addr::new(s0, s1, s2, s3),
        destination: Ipv4Addr::new(d0, d1, d2, d3),
        id: u16::from_be_bytes([i, d]).into(),
        id_at: l3 as u16 + 4,
        may_fragment: flags & 0x40 == 0,
        part,
        content,
        len,
    })
}

/// Where the IPv4 header of a frame with tags begins.
#[cold]
fn tagged(bytes: &[u8]) -> Result<usize, Refusal> {
    let layers = Layers::parse(bytes).ok_or(Refusal::Malformed)?;
    match (layers.l3, layers.ethertype) {
        (L3::V4, _) => Ok(layers.l2_len),
        (_, wire::layers::ETHERTYPE_IPV4) => Err(Refusal::Malformed),
        _ => Err(Refusal::OtherVersion),
    }
}

#[inline]
fn content(bytes: &[u8], end: usize, l4: usize, protocol: Protocol) -> Result<Content, Refusal> {
    let rest = bytes.get(l4..).unwrap_or_default();
    match protocol {
        Protocol::Icmp => icmp(bytes, end, l4),
        _ => ports(rest, protocol),
    }
}

fn icmp(bytes: &[u8], end: usize, l4: usize) -> Result<Content, Refusal> {
    let rest = bytes.get(l4..).unwrap_or_default();
    let [kind, _, _, _, a, b, ..] = *rest.first_chunk::<8>().ok_or(Refusal::Malformed)?;
    let id = u16::from_be_bytes([a, b]);
    match kind {
        8 | 13 => Ok(Content::Query { id, reply: false }),
        0 | 14 => Ok(Content::Query { id, reply: true }),
        3 | 11 | 12 => {
            let intact = || {
                let mut sum = wire::checksum::Checksum::new();
                sum.add_bytes(rest);
                sum.is_valid()
            };
            // Where it is longer than a head it goes on as it is: a wrong checksum stays wrong (RFC 5508 REQ-3a).
            if bytes.len() == end && !intact() {
                return Err(Refusal::BadChecksum);
            }
            quote(bytes, l4 + 8).map(Content::Error)
        }
        _ => Err(Refusal::UnknownIcmp),
    }
}

fn quote(bytes: &[u8], l3: usize) -> Result<Quote, Refusal> {
    let rest = bytes.get(l3..).unwrap_or_default();
    let header: &[u8; 20] = rest.first_chunk().ok_or(Refusal::Malformed)?;
    let [first, _, _, _, _, _, flags, offset, _, number, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let l4 = l3 + usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || l4 < l3 + 20 || (flags & 0x1f, offset) != (0, 0) {
        return Err(Refusal::BadQuote);
    }
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(bytes.get(l3..l4).ok_or(Refusal::BadQuote)?);
    if !sum.is_valid() {
        return Err(Refusal::BadQuote);
    }
    let protocol = Protocol::from_number::<Ipv4Addr>(number).ok_or(Refusal::BadQuote)?;
    let (source, destination) = quoted_ports(bytes.get(l4..).unwrap_or_default(), protocol, &[0, 8, 13, 14])?;
    let source = Endpoint::new(Ipv4Addr::new(s0, s1, s2, s3), source);
    let destination = Endpoint::new(Ipv4Addr::new(d0, d1, d2, d3), destination);
    Ok(Quote { l3, l4, protocol, source, destination })
}
