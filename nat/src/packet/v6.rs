//! IPv6 packets, with the extension headers that [`wire::Layers`] knows.
//!
//! Invariant: that of [`super::Packet`]. A fragment that is the whole of its packet ("atomic", RFC 6946) is no fragment here.
//! Read first: RFC 8200 sections 3 and 4, RFC 4443.

use std::net::Ipv6Addr;

use wire::{
    Head, L3, Layers,
    checksum::Checksum,
    layers::{ETHERTYPE_IPV6, fragment_header},
};

use super::{Content, Packet, Part, Quote, ports, quoted_ports};
use crate::{
    decide::Refusal,
    record::{Endpoint, Protocol},
};

const HEADER: usize = 40;
const ICMP: u8 = 58;
const FRAGMENT: u8 = 44;

/// The packet of a frame.
pub(crate) fn packet(head: &Head) -> Result<Packet<Ipv6Addr>, Refusal> {
    let bytes = head.bytes();
    let layers = Layers::parse(bytes).ok_or(Refusal::Malformed)?;
    let l3 = match (layers.l3, layers.ethertype) {
        (L3::V6, _) => layers.l2_len,
        (_, ETHERTYPE_IPV6) => return Err(Refusal::Malformed),
        _ => return Err(Refusal::OtherVersion),
    };
    let (len, source, destination) = fixed(bytes, l3).ok_or(Refusal::Malformed)?;
    // What is said to be there is there, and is no padding.
    let end = l3 + len;
    if end > head.len() {
        return Err(Refusal::Malformed);
    }
    let mut found = Packet {
        l3,
        l4: 0,
        number: FRAGMENT,
        protocol: Protocol::Udp,
        source,
        destination,
        id: 0,
        id_at: 0,
        may_fragment: false,
        part: Part::Whole,
        content: Content::Nothing,
        len: u16::try_from(len).unwrap_or(u16::MAX),
    };
    if layers.fragment {
        let at = fragment_header(bytes, l3).ok_or(Refusal::Malformed)?;
        let [_, _, high, low, id @ ..] =
            *bytes.get(at..).and_then(|at| at.first_chunk::<8>()).ok_or(Refusal::Malformed)?;
        (found.id, found.id_at) = (u32::from_be_bytes(id), at as u16 + 4);
        found.part = if u16::from_be_bytes([high, low]) & 0xfff8 == 0 { Part::First } else { Part::Later };
        if found.part == Part::Later {
            found.l4 = at + 8;
            return if end < found.l4 { Err(Refusal::Malformed) } else { Ok(found) };
        }
    }
    let (l4, number) = layers.l4.zip(layers.protocol).filter(|(l4, _)| *l4 <= end).ok_or(Refusal::Malformed)?;
    found.l4 = l4;
    found.protocol = Protocol::from_number::<Ipv6Addr>(number).ok_or(Refusal::UnknownProtocol)?;
    let within = bytes.get(..end.min(bytes.len())).unwrap_or_default();
    let rest = within.get(l4..).unwrap_or_default();
    found.content = match found.protocol {
        Protocol::Icmp => icmp(within, end, l4, (source, destination))?,
        protocol => ports(rest, protocol)?,
    };
    // There is no UDP without a checksum (RFC 8200 section 8.1).
    if found.protocol == Protocol::Udp && rest.get(6..8) == Some(&[0, 0]) && !head.offload.needs_checksum() {
        return Err(Refusal::BadChecksum);
    }
    if found.part != Part::Whole && matches!(found.content, Content::Error(_)) {
        return Err(Refusal::Malformed);
    }
    Ok(found)
}

/// Of a fixed header: the length of its packet, the source, the destination.
fn fixed(bytes: &[u8], l3: usize) -> Option<(usize, Ipv6Addr, Ipv6Addr)> {
    let header: &[u8; HEADER] = bytes.get(l3..)?.first_chunk()?;
    let ([_, _, _, _, l, m, ..], addresses) = header.split_first_chunk::<8>()?;
    let (source, destination) = addresses.split_first_chunk::<16>()?;
    let destination: &[u8; 16] = destination.first_chunk()?;
    Some((HEADER + usize::from(u16::from_be_bytes([*l, *m])), (*source).into(), (*destination).into()))
}

fn icmp(
    bytes: &[u8],
    end: usize,
    l4: usize,
    (source, destination): (Ipv6Addr, Ipv6Addr),
) -> Result<Content<Ipv6Addr>, Refusal> {
    let rest = bytes.get(l4..).unwrap_or_default();
    let [kind, _, _, _, a, b, ..] = *rest.first_chunk::<8>().ok_or(Refusal::Malformed)?;
    let id = u16::from_be_bytes([a, b]);
    match kind {
        128 => Ok(Content::Query { id, reply: false }),
        129 => Ok(Content::Query { id, reply: true }),
        1..=4 => {
            let intact = || {
                let mut sum = Checksum::pseudo_v6(source.octets(), destination.octets(), ICMP, rest.len() as u32);
                sum.add_bytes(rest);
                sum.is_valid()
            };
            // Where it is longer than a head it goes on as it is: a wrong checksum stays wrong.
            if bytes.len() == end && !intact() {
                return Err(Refusal::BadChecksum);
            }
            quote(bytes, l4 + 8).map(Content::Error)
        }
        _ => Err(Refusal::UnknownIcmp),
    }
}

fn quote(bytes: &[u8], l3: usize) -> Result<Quote<Ipv6Addr>, Refusal> {
    let (_, source, destination) = fixed(bytes, l3).ok_or(Refusal::Malformed)?;
    let layers = Layers::of_ipv6(bytes, l3).ok_or(Refusal::BadQuote)?;
    let (l4, number) = layers.l4.zip(layers.protocol).ok_or(Refusal::BadQuote)?;
    let protocol = Protocol::from_number::<Ipv6Addr>(number).ok_or(Refusal::BadQuote)?;
    let (from, to) = quoted_ports(bytes.get(l4..).unwrap_or_default(), protocol, &[128, 129])?;
    Ok(Quote { l3, l4, protocol, source: Endpoint::new(source, from), destination: Endpoint::new(destination, to) })
}
