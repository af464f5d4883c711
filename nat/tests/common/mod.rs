//! What the suites share: packets built and read by etherparse, which somebody else wrote, and [`Nat`], the face of an engine.
//!
//! Invariant: a packet that comes out of [`Nat`] has been parsed by etherparse and its checksums have been summed up anew.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod port;

use std::{net::Ipv4Addr, time::Duration};

use etherparse::{Icmpv4Type, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use nat::{Config, Decision, Endpoint, Entry, NatTable, Refusal, Side};
use wire::{Context, Instant, NicId, Offload, Origin, Sizes};

pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
pub const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);

pub fn ep(address: Ipv4Addr, port: u16) -> Endpoint {
    Endpoint::new(address, port)
}

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Sent(Side, Vec<u8>),
    Held,
    Waits,
    Refused(Refusal),
}

/// What a suite asks of an engine: packets in, packets out, and the time moved. The packet engine is the one there is; a sockets engine has an
/// outside of its own and can run those suites that ask for nothing else.
pub trait Nat {
    /// A packet (an Ethernet frame) comes in from a NIC inside, or from outside.
    fn cross(&mut self, side: Side, nic: u16, frame: &[u8]) -> Fate;
    /// Time goes on.
    fn wait(&mut self, time: Duration);
    /// What it knows.
    fn entries(&self) -> Vec<Entry>;

    fn out(&mut self, frame: &[u8]) -> Fate {
        self.cross(Side::Inside, 0, frame)
    }

    fn back(&mut self, frame: &[u8]) -> Fate {
        self.cross(Side::Outside, 99, frame)
    }

    fn seconds(&mut self, seconds: u64) {
        self.wait(Duration::from_secs(seconds));
    }
}

/// The packet engine in virtual time.
pub struct Packets {
    pub table: NatTable,
    pub cx: Context,
    pub now: Instant,
}

pub fn config() -> Config {
    Config { mappings: 4096, quota: 2048, ..Config::new(vec![OUTSIDE], 7) }
}

impl Packets {
    pub fn new(config: &Config) -> Packets {
        let mut table = NatTable::new(config).unwrap();
        (0..4).for_each(|nic| table.add_nic(NicId(nic)));
        Packets {
            table,
            cx: Context::new(Sizes { heads: 256, pieces: 64, pool: 70_000 }).unwrap(),
            now: Instant::START,
        }
    }

    /// As [`Nat::cross`], for a frame that owes something.
    pub fn cross_with(&mut self, side: Side, nic: u16, frame: &[u8], offload: Offload) -> (Fate, Offload) {
        self.cx.begin_turn(self.now);
        let handle = self.cx.originate(Origin { nic: NicId(nic), lane: 0 }, frame).unwrap();
        let head = self.cx.heads.get_mut(&handle);
        head.offload = offload;
        let decision = self.table.decide(side, head, self.now);
        assert_eq!(decision, self.table.decide(side, head, self.now), "asking changes nothing");
        let before = head.bytes().to_vec();
        let done = self.table.commit(decision, head);
        if done.is_err() {
            assert_eq!(head.bytes(), before, "what is refused is left as it was");
        }
        let offload = head.offload;
        let fate = match (decision, done) {
            (Decision::Translate(translation), Ok(())) => {
                let mut bytes = vec![0; head.len()];
                let len = self.cx.read_all(&handle, &mut bytes).unwrap();
                bytes.truncate(len);
                Fate::Sent(translation.to, bytes)
            }
            (Decision::Hold, Err(_)) => Fate::Held,
            (Decision::Wait(_), Err(_)) => Fate::Waits,
            (_, Err(refusal)) => Fate::Refused(refusal),
            (decision, Ok(())) => panic!("{decision:?} went on"),
        };
        self.cx.drop(handle, wire::DropReason::NoDestination);
        (fate, offload)
    }
}

impl Nat for Packets {
    fn cross(&mut self, side: Side, nic: u16, frame: &[u8]) -> Fate {
        let (fate, _) = self.cross_with(side, nic, frame, Offload::NONE);
        if let Fate::Sent(_, frame) = &fate {
            check(frame);
        }
        fate
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn entries(&self) -> Vec<Entry> {
        self.table.entries(self.now).collect()
    }
}

impl Fate {
    #[track_caller]
    pub fn sent(self, side: Side) -> Seen {
        match self {
            Fate::Sent(to, frame) if to == side => seen(&frame),
            other => panic!("expected to be sent to the {side:?}, was {other:?}"),
        }
    }

    #[track_caller]
    pub fn outward(self) -> Seen {
        self.sent(Side::Outside)
    }

    #[track_caller]
    pub fn inward(self) -> Seen {
        self.sent(Side::Inside)
    }

    #[track_caller]
    pub fn refused(self) -> Refusal {
        match self {
            Fate::Refused(refusal) => refusal,
            other => panic!("expected to be refused, was {other:?}"),
        }
    }

    pub fn is_sent(&self) -> bool {
        matches!(self, Fate::Sent(..))
    }
}

/// A packet as etherparse reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub source: Endpoint,
    pub destination: Endpoint,
    pub frame: Vec<u8>,
}

pub fn seen(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { panic!("not IPv4: {packet:?}") };
    let (s, d) = (ip.header().source_addr(), ip.header().destination_addr());
    let (source, destination) = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) | Icmpv4Type::EchoReply(echo) => (echo.id, echo.id),
            _ => (0, 0),
        },
        _ => (0, 0),
    };
    Seen { source: ep(s, source), destination: ep(d, destination), frame: frame.to_vec() }
}

/// Sums every checksum up anew.
#[track_caller]
pub fn check(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &packet.net else { return };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header");
    if ip.is_payload_fragmented() {
        return;
    }
    match &packet.transport {
        Some(TransportSlice::Udp(udp)) if udp.checksum() != 0 => {
            let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), sum, "UDP");
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let sum = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
            assert_eq!(tcp.checksum(), sum, "TCP");
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()), "ICMP");
        }
        _ => {}
    }
}

pub fn udp(from: Endpoint, to: Endpoint, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.address.octets(), to.address.octets(), 64)
        .udp(from.port, to.port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A TCP segment; `flags` of the letters S, A, F, R.
pub fn tcp(from: Endpoint, to: Endpoint, flags: &str) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.address.octets(), to.address.octets(), 64)
        .tcp(from.port, to.port, 1000, 4096);
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'A' => builder.ack(77),
            'F' => builder.fin(),
            'R' => builder.rst(),
            other => panic!("no such flag: {other}"),
        };
    }
    let mut frame = Vec::new();
    builder.write(&mut frame, b"").unwrap();
    frame
}

/// An echo request or, if `reply`, the reply.
pub fn echo(from: Ipv4Addr, to: Ipv4Addr, id: u16, reply: bool) -> Vec<u8> {
    let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(from.octets(), to.octets(), 64);
    let builder = if reply { ip.icmpv4_echo_reply(id, 1) } else { ip.icmpv4_echo_request(id, 1) };
    let mut frame = Vec::new();
    builder.write(&mut frame, b"abcdefgh").unwrap();
    frame
}

/// An ICMP query of another type.
pub fn query(from: Ipv4Addr, to: Ipv4Addr, kind: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(from.octets(), to.octets(), 64);
    let mut frame = Vec::new();
    ip.icmpv4_raw(kind, 0, [high, low, 0, 1]).write(&mut frame, payload).unwrap();
    frame
}

/// An ICMP error of a type and code, about a frame.
pub fn error(from: Ipv4Addr, to: Ipv4Addr, kind: u8, code: u8, about: &[u8], quote: usize) -> Vec<u8> {
    let quoted = &about[14..about.len().min(14 + quote)];
    let ip = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]).ipv4(from.octets(), to.octets(), 64);
    let mtu = if (kind, code) == (3, 4) { [0, 0, 5, 0] } else { [0; 4] };
    let builder = ip.icmpv4_raw(kind, code, mtu);
    let mut frame = Vec::new();
    builder.write(&mut frame, quoted).unwrap();
    frame
}

/// The packet quoted in an ICMP error; its own header checksum is checked.
#[track_caller]
pub fn quoted(frame: &[u8]) -> Seen {
    let mut inner = frame[..14].to_vec();
    inner.extend(&frame[14 + 20 + 8..]);
    let ip = &inner[14..34];
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(ip);
    assert!(sum.is_valid(), "the quoted header's checksum");
    let port = |at: usize| u16::from_be_bytes([inner[34 + at], inner[35 + at]]);
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let (source, destination) = if ip[9] == 1 { (port(4), port(4)) } else { (port(0), port(2)) };
    Seen { source: ep(address(12), source), destination: ep(address(16), destination), frame: inner }
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
        frame[24..26].fill(0);
        let mut sum = wire::checksum::Checksum::new();
        sum.add_bytes(&frame[14..34]);
        let sum = sum.finish();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(part);
        frame
    };
    (0..count).map(cut).collect()
}

/// Puts fragments together again and checks the checksums of the whole.
pub fn reassemble(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut whole = frames[0][..34].to_vec();
    let mut parts: Vec<(u16, &[u8])> =
        frames.iter().map(|f| (u16::from_be_bytes([f[20], f[21]]) & 0x1fff, &f[34..])).collect();
    parts.sort_by_key(|(offset, _)| *offset);
    parts.iter().for_each(|(_, part)| whole.extend(*part));
    assert!(frames.iter().all(|f| f[18..20] == frames[0][18..20] && f[26..34] == frames[0][26..34]));
    let len = whole.len() as u16 - 14;
    whole[16..18].copy_from_slice(&len.to_be_bytes());
    whole[20..22].fill(0);
    whole[24..26].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&whole[14..34]);
    let sum = sum.finish();
    whole[24..26].copy_from_slice(&sum.to_be_bytes());
    check(&whole);
    whole
}
