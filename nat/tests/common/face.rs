//! What the suites share, compiled once for each version of IP: packets built and read by etherparse, which somebody else wrote, and
//! [`Nat`], the face of an engine.
//!
//! Invariant: a packet that comes out of [`Nat`] has been parsed by etherparse and its checksums have been summed up anew.

use std::time::Duration;

use etherparse::{Icmpv4Type, Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
use nat::{Decision, NatTable, Refusal, Side};
use wire::{Context, Instant, NicId, Offload, Origin, Sizes};

family!();
pub use super::check;

#[path = "port.rs"]
pub mod port;

pub type Config = nat::Config<Addr>;
pub type Endpoint = nat::Endpoint<Addr>;
pub type Entry = nat::Entry<Addr>;
pub type Forward = nat::Forward<Addr>;
pub type PublishError = nat::PublishError<Addr>;

pub fn ep(address: Addr, port: u16) -> Endpoint {
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
    pub table: NatTable<Addr>,
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
    assert!(matches!(&packet.net, Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_))), "no IP: {packet:?}");
    let (s, d) = addresses(&frame[14..]);
    let (source, destination) = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) | Icmpv4Type::EchoReply(echo) => (echo.id, echo.id),
            _ => (0, 0),
        },
        Some(TransportSlice::Icmpv6(icmp)) => match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(echo) | Icmpv6Type::EchoReply(echo) => (echo.id, echo.id),
            _ => (0, 0),
        },
        _ => (0, 0),
    };
    Seen { source: ep(s, source), destination: ep(d, destination), frame: frame.to_vec() }
}

pub fn udp(from: Endpoint, to: Endpoint, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ip(from.address, to.address).udp(from.port, to.port).write(&mut frame, payload).unwrap();
    frame
}

/// A TCP segment; `flags` of the letters S, A, F, R.
pub fn tcp(from: Endpoint, to: Endpoint, flags: &str) -> Vec<u8> {
    let mut builder = ip(from.address, to.address).tcp(from.port, to.port, 1000, 4096);
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
pub fn echo(from: Addr, to: Addr, id: u16, reply: bool) -> Vec<u8> {
    echo_of(ip(from, to), id, reply, b"abcdefgh")
}

/// An ICMP query of another type.
pub fn query(from: Addr, to: Addr, kind: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    icmp_of(ip(from, to), (kind, 0), [high, low, 0, 1], payload)
}

/// An ICMP error of a type and code, about a frame, of which it quotes the IP header and up to `quote` bytes more.
pub fn error(from: Addr, to: Addr, what: (u8, u8), about: &[u8], quote: usize) -> Vec<u8> {
    let quoted = &about[14..about.len().min(L4 + quote)];
    let mtu = if what == TOO_BIG { [0, 0, 5, 0] } else { [0; 4] };
    icmp_of(ip(from, to), what, mtu, quoted)
}

/// The packet quoted in an ICMP error; its own header checksum is checked.
#[track_caller]
pub fn quoted(frame: &[u8]) -> Seen {
    let mut inner = frame[..14].to_vec();
    inner.extend(&frame[L4 + 8..]);
    if HEADER == 20 {
        let mut sum = wire::checksum::Checksum::new();
        sum.add_bytes(&inner[14..34]);
        assert!(sum.is_valid(), "the quoted header's checksum");
    }
    let port = |at: usize| u16::from_be_bytes([inner[L4 + at], inner[L4 + at + 1]]);
    let (from, to) = addresses(&inner[14..]);
    let (source, destination) = if inner[PROTOCOL] == ICMP { (port(4), port(4)) } else { (port(0), port(2)) };
    Seen { source: ep(from, source), destination: ep(to, destination), frame: inner }
}

/// Puts fragments together again and checks the checksums of the whole.
pub fn reassemble(frames: &[Vec<u8>]) -> Vec<u8> {
    let whole = join(frames);
    check(&whole);
    whole
}

/// Opens a connection from inside; returns its outside endpoint.
pub fn connect(nat: &mut Packets, inside: Endpoint, remote: Endpoint) -> Endpoint {
    let source = nat.out(&tcp(inside, remote, "S")).outward().source;
    nat.back(&tcp(remote, source, "SA")).inward();
    nat.out(&tcp(inside, remote, "A")).outward();
    source
}

/// The states of its connections.
pub fn state(packets: &Packets) -> Vec<nat::State> {
    packets.entries().iter().filter(|entry| entry.kind == nat::Kind::Session).map(|entry| entry.state).collect()
}
