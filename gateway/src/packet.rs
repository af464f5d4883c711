//! The headers of what the router sends, each appended to the frame that is being made.
//!
//! Invariant: every checksum is complete; nothing is owed. The bytes go into a `Vec` whose capacity is the longest frame, so that
//! writing allocates nothing.
//! Read first: RFC 791 section 3.1, RFC 6864 (the identification of packets that are never cut), RFC 8200 section 3.

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::{Mac, checksum::Checksum, layers::ETHERNET_LEN};

use crate::bytes::set16;

/// IANA protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// IANA protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// IANA protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// IANA protocol number of ICMPv6.
pub(crate) const ICMPV6: u8 = 58;
/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub(crate) const IPV6_LEN: usize = 40;
/// Where the transport header lies in an IPv4 packet of ours.
pub(crate) const L4_OVER_V4: usize = ETHERNET_LEN + IPV4_LEN;
/// Where the transport header lies in an IPv6 packet of ours.
pub(crate) const L4_OVER_V6: usize = ETHERNET_LEN + IPV6_LEN;
/// Time to live of what the router sends (RFC 1700).
pub(crate) const TTL: u8 = 64;

/// Begins a frame anew.
pub(crate) fn ethernet(out: &mut Vec<u8>, to: Mac, from: Mac, ethertype: u16) {
    out.clear();
    out.extend_from_slice(&to.bytes());
    out.extend_from_slice(&from.bytes());
    out.extend_from_slice(&ethertype.to_be_bytes());
}

/// What differs between the IPv4 headers that the router sends.
pub(crate) struct V4 {
    pub(crate) from: Ipv4Addr,
    pub(crate) to: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) tos: u8,
    /// Bytes behind the header.
    pub(crate) payload: usize,
}

/// Appends an IPv4 header.
pub(crate) fn ipv4(out: &mut Vec<u8>, header: &V4) {
    out.extend_from_slice(&ipv4_bytes(header));
}

/// Writes an IPv4 header over what is at `at`.
pub(crate) fn ipv4_at(out: &mut [u8], at: usize, header: &V4) {
    if let Some(place) = out.get_mut(at..at + IPV4_LEN) {
        place.copy_from_slice(&ipv4_bytes(header));
    }
}

/// The header of a packet that is never cut, so it needs no identification (RFC 6864 section 4.1).
fn ipv4_bytes(header: &V4) -> [u8; IPV4_LEN] {
    let length = (IPV4_LEN + header.payload) as u16;
    let [high, low] = length.to_be_bytes();
    let mut bytes = [0u8; IPV4_LEN];
    bytes[..10].copy_from_slice(&[0x45, header.tos, high, low, 0, 0, 0x40, 0, TTL, header.protocol]);
    bytes[12..16].copy_from_slice(&header.from.octets());
    bytes[16..].copy_from_slice(&header.to.octets());
    let mut sum = Checksum::new();
    sum.add_bytes(&bytes);
    bytes[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    bytes
}

/// What differs between the IPv6 headers that the router sends.
pub(crate) struct V6 {
    pub(crate) from: Ipv6Addr,
    pub(crate) to: Ipv6Addr,
    pub(crate) hop_limit: u8,
}

/// Appends an IPv6 header in front of ICMPv6; its length is set by [`finish_icmpv6`].
pub(crate) fn icmpv6(out: &mut Vec<u8>, header: &V6) {
    out.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, ICMPV6, header.hop_limit]);
    out.extend_from_slice(&header.from.octets());
    out.extend_from_slice(&header.to.octets());
}

/// Sets length and checksum of the ICMPv6 packet in `out`, whose checksum field is zero.
pub(crate) fn finish_icmpv6(out: &mut [u8], header: &V6) {
    let length = out.len().saturating_sub(L4_OVER_V6);
    set16(out, ETHERNET_LEN + 4, length as u16);
    let sum = Checksum::pseudo_v6(header.from.octets(), header.to.octets(), ICMPV6, length as u32);
    finish(out, L4_OVER_V6, 2, sum);
}

/// Sets the checksum at `field` of the transport header at `at`, which runs to the end; `sum` is that of the pseudo header.
pub(crate) fn finish(out: &mut [u8], at: usize, field: usize, mut sum: Checksum) {
    sum.add_bytes(out.get(at..).unwrap_or_default());
    set16(out, at + field, sum.finish());
}

/// All routers on the link.
pub(crate) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
