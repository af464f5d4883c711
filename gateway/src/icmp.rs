//! ICMP as the router sends it: echo replies and errors, for both versions of IP.
//!
//! Invariant: an error quotes the packet it is about from its IP header on, and is never longer than its RFC lets it be.
//! Read first: RFC 792, RFC 1812 section 4.3.2 (IPv4), RFC 4443 sections 2.4 and 3 (IPv6).

use std::net::{Ipv4Addr, Ipv6Addr};

use wire::{
    Mac,
    checksum::Checksum,
    layers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use crate::packet::{self, ICMP, IPV4_LEN, IPV6_LEN, L4_OVER_V4, TTL, V4, V6};

/// Bytes of an ICMP header.
const ICMP_LEN: usize = 8;
/// RFC 1812 section 4.3.2.3: an error is at most so long.
const MAX_ERROR_V4: usize = 576;
/// RFC 4443 section 2.4(c): the least MTU of IPv6.
const MAX_ERROR_V6: usize = 1280;
/// RFC 1812 section 4.3.2.5: precedence 6, internetwork control.
const ERROR_TOS: u8 = 0xc0;

pub(crate) const ECHO_REPLY: u8 = 0;
pub(crate) const UNREACHABLE: u8 = 3;
pub(crate) const ECHO: u8 = 8;
pub(crate) const TIME_EXCEEDED: u8 = 11;

/// Code of [`UNREACHABLE`]: fragmentation needed.
pub(crate) const TOO_BIG: u8 = 4;

pub(crate) const V6_UNREACHABLE: u8 = 1;
pub(crate) const V6_TOO_BIG: u8 = 2;
pub(crate) const V6_TIME_EXCEEDED: u8 = 3;
pub(crate) const V6_ECHO: u8 = 128;
pub(crate) const V6_ECHO_REPLY: u8 = 129;

/// Whom an answer goes to, and from whom.
#[derive(Clone, Copy)]
pub(crate) struct Path<A> {
    pub(crate) mac: Mac,
    pub(crate) to_mac: Mac,
    pub(crate) from: A,
    pub(crate) to: A,
}

/// An echo reply to `request`, an ICMP message.
pub(crate) fn echo_reply(out: &mut Vec<u8>, path: &Path<Ipv4Addr>, tos: u8, request: &[u8]) {
    packet::ethernet(out, path.to_mac, path.mac, ETHERTYPE_IPV4);
    packet::ipv4(out, &V4 { from: path.from, to: path.to, protocol: ICMP, tos, payload: request.len() });
    out.extend_from_slice(&[ECHO_REPLY, 0, 0, 0]);
    out.extend_from_slice(request.get(4..).unwrap_or_default());
    packet::finish(out, L4_OVER_V4, 2, Checksum::new());
}

/// An error about `about`, an IPv4 packet.
pub(crate) fn error(out: &mut Vec<u8>, path: &Path<Ipv4Addr>, kind: u8, code: u8, about: &[u8]) {
    error_with(out, path, kind, code, 0, about);
}

/// An error that says a number more: the MTU of the next hop (RFC 1191 section 4).
pub(crate) fn error_with(out: &mut Vec<u8>, path: &Path<Ipv4Addr>, kind: u8, code: u8, word: u32, about: &[u8]) {
    let quote = about.get(..MAX_ERROR_V4 - IPV4_LEN - ICMP_LEN).unwrap_or(about);
    packet::ethernet(out, path.to_mac, path.mac, ETHERTYPE_IPV4);
    let payload = ICMP_LEN + quote.len();
    packet::ipv4(out, &V4 { from: path.from, to: path.to, protocol: ICMP, tos: ERROR_TOS, payload });
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&word.to_be_bytes());
    out.extend_from_slice(quote);
    packet::finish(out, L4_OVER_V4, 2, Checksum::new());
}

/// An echo reply to `request`, an ICMPv6 message.
pub(crate) fn echo_reply_v6(out: &mut Vec<u8>, path: &Path<Ipv6Addr>, request: &[u8]) {
    let header = V6 { from: path.from, to: path.to, hop_limit: TTL };
    packet::ethernet(out, path.to_mac, path.mac, ETHERTYPE_IPV6);
    packet::icmpv6(out, &header);
    out.extend_from_slice(&[V6_ECHO_REPLY, 0, 0, 0]);
    out.extend_from_slice(request.get(4..).unwrap_or_default());
    packet::finish_icmpv6(out, &header);
}

/// An error about `about`, an IPv6 packet.
pub(crate) fn error_v6(out: &mut Vec<u8>, path: &Path<Ipv6Addr>, kind: u8, code: u8, about: &[u8]) {
    error_v6_with(out, path, kind, code, 0, about);
}

/// An error that says a number more: the MTU of the next hop (RFC 4443 section 3.2).
pub(crate) fn error_v6_with(out: &mut Vec<u8>, path: &Path<Ipv6Addr>, kind: u8, code: u8, word: u32, about: &[u8]) {
    let quote = about.get(..MAX_ERROR_V6 - IPV6_LEN - ICMP_LEN).unwrap_or(about);
    let header = V6 { from: path.from, to: path.to, hop_limit: TTL };
    packet::ethernet(out, path.to_mac, path.mac, ETHERTYPE_IPV6);
    packet::icmpv6(out, &header);
    out.extend_from_slice(&[kind, code, 0, 0]);
    out.extend_from_slice(&word.to_be_bytes());
    out.extend_from_slice(quote);
    packet::finish_icmpv6(out, &header);
}
