//! What the suites need of IPv6 in particular.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use nat::{Config, PortConfig, PortConfigError, PortConfigV6};
use wire::checksum::Checksum;

pub type Addr = Ipv6Addr;

pub const GUEST: Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2);
pub const OTHER: Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 3);
pub const OUTSIDE: Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 1);
pub const SERVER: Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 7);
pub const PEER: Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xfe, 0, 0, 0, 0, 9);
pub const ROUTER: Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xfe, 0, 0, 0, 0, 0xfe);
pub const HOP: Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
pub const ROUTER_INSIDE: Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
/// The port's own address of the link.
pub const LINK_LOCAL: Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0xaa);

pub const HEADER: usize = 40;
pub const L4: usize = 14 + HEADER;
pub const PROTOCOL: usize = 20;
pub const HOPS: usize = 21;
pub const SOURCE: Range<usize> = 22..38;
pub const HEADER_SUM: Range<usize> = 0..0;
pub const ICMP: u8 = 58;

pub const UNREACHABLE: (u8, u8) = (1, 3);
pub const NO_ROUTE: (u8, u8) = (1, 0);
pub const PORT_UNREACHABLE: (u8, u8) = (1, 4);
pub const PROHIBITED: (u8, u8) = (1, 1);
pub const TOO_BIG: (u8, u8) = (2, 0);
pub const EXCEEDED: (u8, u8) = (3, 0);
pub const PROBLEM: (u8, u8) = (4, 0);
pub const ERRORS: [(u8, u8); 6] = [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (4, 1)];
pub const UNKNOWN_TYPES: [u8; 7] = [0, 5, 100, 130, 134, 137, 143];

pub fn host(n: u32) -> Addr {
    Ipv6Addr::from_bits(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0).to_bits() + u128::from(n))
}

pub fn outside(n: u8) -> Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, n.into())
}

pub fn far(n: u8) -> Addr {
    Ipv6Addr::new(0x2001, 0xdb8, n.into(), 9, 0, 0, 0, 0x77)
}

pub fn ip(from: Addr, to: Addr) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv6(from.octets(), to.octets(), 64)
}

pub fn echo_of(ip: PacketBuilderStep<IpHeaders>, id: u16, reply: bool, payload: &[u8]) -> Vec<u8> {
    let builder = if reply { ip.icmpv6_echo_reply(id, 1) } else { ip.icmpv6_echo_request(id, 1) };
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

pub fn icmp_of(ip: PacketBuilderStep<IpHeaders>, (kind, code): (u8, u8), rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip.icmpv6_raw(kind, code, rest).write(&mut frame, payload).unwrap();
    frame
}

pub fn addresses(header: &[u8]) -> (Addr, Addr) {
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&header[at..at + 16]).unwrap());
    (address(8), address(24))
}

pub fn pseudo(header: &[u8], protocol: u8, len: usize) -> Checksum {
    let (from, to) = addresses(header);
    Checksum::pseudo_v6(from.octets(), to.octets(), protocol, len as u32)
}

/// There is no sum of the header.
pub fn sum_header(_: &mut [u8]) {}

pub fn with_hops(mut frame: Vec<u8>, hops: u8) -> Vec<u8> {
    frame[HOPS] = hops;
    frame
}

pub fn fragments(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let payload = &frame[54..];
    let count = payload.len().div_ceil(size);
    let cut = |n: usize| {
        let part = &payload[n * size..payload.len().min((n + 1) * size)];
        let offset = (n * size) as u16 | u16::from(n + 1 < count);
        with_fragment_header(&[&frame[..54], part].concat(), offset, id.into())
    };
    (0..count).map(cut).collect()
}

/// A frame with a fragment header put in, of this field of offset and flags, and identification.
pub fn with_fragment_header(frame: &[u8], offset: u16, id: u32) -> Vec<u8> {
    let mut header = vec![frame[20], 0];
    header.extend(offset.to_be_bytes());
    header.extend(id.to_be_bytes());
    with_extension(frame, 44, &header)
}

/// A frame with an extension header put in, whose first byte is set.
pub fn with_extension(frame: &[u8], kind: u8, header: &[u8]) -> Vec<u8> {
    let mut longer = frame[..54].to_vec();
    longer.extend(header);
    longer[54] = frame[20];
    longer[20] = kind;
    longer.extend(&frame[54..]);
    let len = longer.len() as u16 - 54;
    longer[18..20].copy_from_slice(&len.to_be_bytes());
    longer
}

pub fn identification(frame: &[u8]) -> u32 {
    assert_eq!(frame[20], 44);
    u32::from_be_bytes([frame[58], frame[59], frame[60], frame[61]])
}

pub fn join(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = frames[0][..54].to_vec();
    whole[20] = frames[0][54];
    let mut parts: Vec<(u16, &[u8])> =
        frames.iter().map(|f| (u16::from_be_bytes([f[56], f[57]]) & 0xfff8, &f[62..])).collect();
    parts.sort_by_key(|(offset, _)| *offset);
    parts.iter().for_each(|(_, part)| whole.extend(*part));
    assert!(frames.iter().all(|f| f[58..62] == frames[0][58..62] && f[22..54] == frames[0][22..54]));
    let len = whole.len() as u16 - 54;
    whole[18..20].copy_from_slice(&len.to_be_bytes());
    whole
}

/// A port that translates IPv6 only.
pub fn port_config(table: Config<Addr>) -> PortConfig {
    let v6 = PortConfigV6 { prefix: 64, ..PortConfigV6::shared(table, Some(HOP), ROUTER_INSIDE) };
    let nothing = Config::new(Vec::new(), 7);
    PortConfig { v6: Some(v6), ..PortConfig::new(super::OWN, nothing, 32, None, Ipv4Addr::new(10, 0, 0, 1)) }
}

pub fn with_inside(table: Config<Addr>, inside: (Addr, u8)) -> Result<(), PortConfigError> {
    let mut config = port_config(table);
    config.v6.as_mut().unwrap().inside.push(inside);
    config.check()
}

pub const SUBNETS: [(Addr, u8, bool); 3] =
    [(GUEST, 64, false), (OUTSIDE, 126, true), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, true)];

/// A message of neighbour discovery from a station with [`super::HOP_MAC`]: a solicitation (135) or an advertisement (136).
pub fn discovery(kind: u8, from: Addr, to: Addr, target: Addr) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target.octets());
    message.extend([if kind == 135 { 1 } else { 2 }, 1]);
    message.extend(super::HOP_MAC.bytes());
    let mut sum = Checksum::pseudo_v6(from.octets(), to.octets(), ICMP, message.len() as u32);
    sum.add_bytes(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let mut frame = [&super::OWN.bytes()[..], &super::HOP_MAC.bytes()].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, message.len() as u8, ICMP, 255]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(message);
    frame
}

pub fn found(address: Addr) -> Vec<u8> {
    discovery(136, address, LINK_LOCAL, address)
}

pub fn is_packet(frame: &[u8]) -> bool {
    frame[12..14] == [0x86, 0xdd] && !(frame[20] == ICMP && (133..=137).contains(&frame[54]))
}
