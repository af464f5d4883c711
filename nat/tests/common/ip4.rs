//! What the suites need of IPv4 in particular.

use std::{net::Ipv4Addr, ops::Range};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use nat::{Config, PortConfig, PortConfigError};
use wire::{Mac, checksum::Checksum};

pub type Addr = Ipv4Addr;

pub const GUEST: Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const OTHER: Addr = Ipv4Addr::new(10, 0, 0, 3);
pub const OUTSIDE: Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const SERVER: Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const PEER: Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const ROUTER: Addr = Ipv4Addr::new(203, 0, 113, 254);
pub const HOP: Addr = Ipv4Addr::new(192, 0, 2, 254);
pub const ROUTER_INSIDE: Addr = Ipv4Addr::new(10, 0, 0, 1);

/// Bytes of an IP header, and where the transport header of a frame is.
pub const HEADER: usize = 20;
pub const L4: usize = 14 + HEADER;
/// Where the protocol's number is in a frame, and the time to live.
pub const PROTOCOL: usize = 23;
pub const HOPS: usize = 22;
/// Where the source address of a frame is, and the header's own sum.
pub const SOURCE: Range<usize> = 26..30;
pub const HEADER_SUM: Range<usize> = 24..26;
pub const ICMP: u8 = 1;

/// Types and codes of ICMP errors.
pub const UNREACHABLE: (u8, u8) = (3, 1);
pub const NO_ROUTE: (u8, u8) = (3, 0);
pub const PORT_UNREACHABLE: (u8, u8) = (3, 3);
pub const PROHIBITED: (u8, u8) = (3, 13);
pub const TOO_BIG: (u8, u8) = (3, 4);
pub const EXCEEDED: (u8, u8) = (11, 0);
pub const PROBLEM: (u8, u8) = (12, 0);
/// All of them, with codes.
pub const ERRORS: [(u8, u8); 6] = [(3, 0), (3, 13), (3, 4), (11, 0), (11, 1), (12, 0)];
/// Types that are not translated.
pub const UNKNOWN_TYPES: [u8; 7] = [4, 5, 9, 10, 15, 17, 40];

/// Guest number `n`, which may be thousands; number 2 is [`GUEST`].
pub fn host(n: u32) -> Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + n)
}

/// Address number `n` outside; number 1 is [`OUTSIDE`].
pub fn outside(n: u8) -> Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

/// An address outside that is next to no other.
pub fn far(n: u8) -> Addr {
    Ipv4Addr::new(203, n, 113, 77)
}

pub fn ip(from: Addr, to: Addr) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(from.octets(), to.octets(), 64)
}

pub fn echo_of(ip: PacketBuilderStep<IpHeaders>, id: u16, reply: bool, payload: &[u8]) -> Vec<u8> {
    let builder = if reply { ip.icmpv4_echo_reply(id, 1) } else { ip.icmpv4_echo_request(id, 1) };
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub fn icmp_of(ip: PacketBuilderStep<IpHeaders>, (kind, code): (u8, u8), rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip.icmpv4_raw(kind, code, rest).write(&mut frame, payload).unwrap();
    frame
}

/// Source and destination in an IP header.
pub fn addresses(header: &[u8]) -> (Addr, Addr) {
    let address = |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    (address(12), address(16))
}

/// The sum of the pseudo header of a packet with this header, and `len` bytes behind it.
pub fn pseudo(header: &[u8], protocol: u8, len: usize) -> Checksum {
    let (from, to) = addresses(header);
    Checksum::pseudo_v4(from.octets(), to.octets(), protocol, len as u16)
}

/// Sums the header of a frame up.
pub fn sum_header(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let mut sum = Checksum::new();
    sum.add_bytes(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.finish().to_be_bytes());
}

/// Another time to live.
pub fn with_hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    frame[HOPS] = hops;
    sum_header(&mut frame);
    frame
}

/// Cuts a frame into fragments with `size` bytes of payload (a multiple of eight) each.
pub fn fragments(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let payload = &frame[34..];
    let count = payload.len().div_ceil(size);
    let cut = |n: usize| {
        let part = &payload[n * size..payload.len().min((n + 1) * size)];
        let mut frame = frame[..34].to_vec();
        frame[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        frame[18..20].copy_from_slice(&id.to_be_bytes());
        let more = if n + 1 < count { 0x2000 } else { 0 };
        frame[20..22].copy_from_slice(&(more | (n * size / 8) as u16).to_be_bytes());
        sum_header(&mut frame);
        frame.extend(part);
        frame
    };
    (0..count).map(cut).collect()
}

/// The identification of a fragment.
pub fn identification(frame: &[u8]) -> u32 {
    u16::from_be_bytes([frame[18], frame[19]]).into()
}

/// Puts fragments together again.
pub fn join(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = frames[0][..34].to_vec();
    let mut parts: Vec<(u16, &[u8])> =
        frames.iter().map(|f| (u16::from_be_bytes([f[20], f[21]]) & 0x1fff, &f[34..])).collect();
    parts.sort_by_key(|(offset, _)| *offset);
    parts.iter().for_each(|(_, part)| whole.extend(*part));
    assert!(frames.iter().all(|f| f[18..20] == frames[0][18..20] && f[26..34] == frames[0][26..34]));
    let len = whole.len() as u16 - 14;
    whole[16..18].copy_from_slice(&len.to_be_bytes());
    whole[20..22].fill(0);
    sum_header(&mut whole);
    whole
}

pub fn port_config(table: Config) -> PortConfig {
    PortConfig::new(super::OWN, table, 24, Some(HOP), ROUTER_INSIDE)
}

/// A port whose inside is this subnet.
pub fn with_inside(table: Config, inside: (Addr, u8)) -> Result<(), PortConfigError> {
    PortConfig { inside: vec![inside], ..port_config(table) }.check()
}

/// Subnets, of which the second and the third overlap with the outside.
pub const SUBNETS: [(Addr, u8, bool); 3] =
    [(GUEST, 24, false), (OUTSIDE, 30, true), (Ipv4Addr::new(192, 0, 0, 0), 16, true)];

/// An ARP request (1) or reply (2).
pub fn arp(kind: u8, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = if kind == 1 { vec![0xff; 6] } else { to.0.bytes().to_vec() };
    frame.extend(from.0.bytes());
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, kind]);
    frame.extend(from.0.bytes());
    frame.extend(from.1.octets());
    frame.extend(if kind == 1 { [0; 6] } else { to.0.bytes() });
    frame.extend(to.1.octets());
    frame
}

/// A neighbour says that it is at [`super::HOP_MAC`].
pub fn found(address: Addr) -> Vec<u8> {
    arp(2, (super::HOP_MAC, address), (super::OWN, OUTSIDE))
}

/// Whether a frame is a packet, and no talk about who is where.
pub fn is_packet(frame: &[u8]) -> bool {
    frame[12..14] == [8, 0]
}
