//! A scripted guest before a socket engine: frames in, frames out, in virtual time, against real sockets of this host's loopback (which guests reach
//! by the router's address) or of a network namespace of the test's own.
//!
//! Invariant: a frame that comes out has its checksums summed up anew, and after every turn every frame is accounted for.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod tcp;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::mpsc::sync_channel,
    time::Duration,
};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use nat::{Command, Line, Prefix, Publication, Remote, SocketsConfig, SocketsPort};
use wire::{Accepts, Burst, Context, DropReason, Instant, NicId, Offload, Origin, Port, Sizes, segmentation::Settle};

mod namespace;
#[allow(unused_imports)]
pub use namespace::*;

pub const ROUTER: NicId = NicId(9);
pub const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

pub fn router() -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 1)
}

pub fn router6() -> Ipv6Addr {
    "fd00::1".parse().unwrap()
}

pub fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Where guests may reach this host.
pub fn config() -> SocketsConfig {
    let mut config = SocketsConfig::new(Some(router()), Some(router6()), 7);
    config.host = Some((router(), router6()));
    config
}

/// A frame that came out.
#[derive(Clone, Debug)]
pub struct Got {
    pub bytes: Vec<u8>,
    pub offload: Offload,
}

pub struct Lab {
    pub port: SocketsPort,
    pub remote: Remote,
    pub cx: Context,
    pub now: Instant,
}

impl Lab {
    pub fn new(config: SocketsConfig) -> Lab {
        let (remote, inbox) = nat::remote();
        let mut cx = Context::new(Sizes { heads: 1024, pieces: 2048, pool: 4 << 20 }).unwrap();
        (0..10).for_each(|nic| cx.add_nic(NicId(nic)));
        Lab {
            port: SocketsPort::new(config, inbox).unwrap(),
            remote,
            cx,
            now: Instant::START + Duration::from_secs(10),
        }
    }

    pub fn seconds(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }

    /// One turn: a guest's frames, and what comes out at once.
    pub fn turn(&mut self, nic: u16, frames: &[(&[u8], Offload)]) -> Vec<Got> {
        self.cx.begin_turn(self.now);
        self.cx.nic = ROUTER;
        let mut burst = Burst::default();
        for (bytes, offload) in frames {
            let frame = self.cx.originate(Origin { nic: NicId(nic), lane: 0 }, bytes).unwrap();
            self.cx.heads.get_mut(&frame).offload = *offload;
            burst.push(frame).unwrap();
        }
        if !frames.is_empty() {
            self.port.transmit(&mut self.cx, &mut burst).unwrap();
        }
        assert!(burst.is_empty());
        self.port.receive(&mut self.cx, &mut burst).unwrap();
        let mut out = Vec::new();
        for frame in burst.drain() {
            let offload = self.cx.heads.get(&frame).offload;
            let mut bytes = vec![0; self.cx.heads.get(&frame).len()];
            assert_eq!(self.cx.read_all(&frame, &mut bytes), Some(bytes.len()));
            if offload.is_none() {
                check(&bytes);
            }
            out.push(Got { bytes, offload });
            self.cx.transmitted(1, 0);
        }
        self.port.release(&mut self.cx).unwrap();
        assert!(self.cx.ledger.balances(), "{:?}", self.cx.ledger);
        out
    }

    /// A guest sends a frame.
    pub fn send(&mut self, nic: u16, frame: &[u8]) -> Vec<Got> {
        self.turn(nic, &[(frame, Offload::NONE)])
    }

    /// Turns until something comes out, two seconds at most. Super-frames are cut and checksums completed.
    pub fn receive(&mut self) -> Vec<Vec<u8>> {
        let got = self.receive_as_is();
        got.iter().flat_map(|got| self.settle(got)).collect()
    }

    /// A guest sends a frame; what comes out, at once or later.
    pub fn ask(&mut self, nic: u16, frame: &[u8]) -> Vec<Vec<u8>> {
        let got = self.send(nic, frame);
        if got.is_empty() { self.receive() } else { got.iter().flat_map(|got| self.settle(got)).collect() }
    }

    pub fn receive_as_is(&mut self) -> Vec<Got> {
        for _ in 0..2000 {
            let got = self.turn(0, &[]);
            if !got.is_empty() {
                return got;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Vec::new()
    }

    /// Nothing comes out, even if some time passes.
    pub fn nothing(&mut self) {
        for _ in 0..20 {
            let got = self.turn(0, &[]);
            assert!(got.is_empty(), "{got:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The frames that a port whose guest takes over nothing makes of one.
    pub fn settle(&mut self, got: &Got) -> Vec<Vec<u8>> {
        self.cx.begin_turn(self.now);
        let frame = self.cx.originate(Origin { nic: ROUTER, lane: 0 }, &got.bytes).unwrap();
        self.cx.heads.get_mut(&frame).offload = got.offload;
        let mut settle = Settle::new(&mut self.cx, frame, Accepts::NONE);
        let mut out = Vec::new();
        while let Some(frame) = settle.next(&mut self.cx) {
            let mut bytes = vec![0; self.cx.heads.get(&frame).len()];
            self.cx.read_all(&frame, &mut bytes).unwrap();
            check(&bytes);
            out.push(bytes);
            self.cx.transmitted(1, 0);
        }
        out
    }

    pub fn drops(&self, reason: DropReason) -> u64 {
        self.cx.counters(ROUTER).unwrap().drops(reason)
    }

    pub fn show(&mut self) -> Vec<Line> {
        let (sender, receiver) = sync_channel(1);
        assert!(self.remote.send(Command::Show(sender)));
        self.turn(0, &[]);
        receiver.try_recv().unwrap()
    }

    /// What the host takes for its own from now on; what comes out at once.
    pub fn host_has(&mut self, prefixes: &[(&str, u8)]) -> Vec<Got> {
        let prefix = |(address, length): &(&str, u8)| Prefix::new(address.parse().unwrap(), *length).unwrap();
        assert!(self.remote.send(Command::HostAddresses(prefixes.iter().map(prefix).collect())));
        self.turn(0, &[])
    }

    pub fn publish(&mut self, publication: &Publication) -> Result<(), String> {
        let (sender, receiver) = sync_channel(1);
        assert!(self.remote.send(Command::Publish(publication.clone(), sender)));
        self.turn(0, &[]);
        receiver.try_recv().unwrap()
    }

    pub fn withdraw(&mut self, publication: &Publication) -> bool {
        let (sender, receiver) = sync_channel(1);
        assert!(self.remote.send(Command::Withdraw(publication.clone(), sender)));
        self.turn(0, &[]);
        receiver.try_recv().unwrap()
    }
}

/// Sums every checksum of a whole packet up anew, and the IPv4 header's of a fragment.
#[track_caller]
pub fn check(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header");
            if ip.is_payload_fragmented() {
                return;
            }
            match &packet.transport {
                Some(TransportSlice::Udp(udp)) => {
                    assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap());
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap());
                }
                Some(TransportSlice::Icmpv4(icmp)) => {
                    assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()), "ICMP");
                }
                other => panic!("{other:?}"),
            }
        }
        Some(NetSlice::Ipv6(ip)) => {
            if ip.is_payload_fragmented() {
                return;
            }
            let header = ip.header().to_header();
            match &packet.transport {
                Some(TransportSlice::Udp(udp)) => {
                    assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap());
                }
                Some(TransportSlice::Tcp(tcp)) => {
                    assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv6(&header, tcp.payload()).unwrap());
                }
                Some(TransportSlice::Icmpv6(icmp)) => {
                    let sum = icmp.icmp_type().calc_checksum(header.source, header.destination, icmp.payload());
                    assert_eq!(icmp.checksum(), sum.unwrap(), "ICMPv6");
                }
                other => panic!("{other:?}"),
            }
        }
        other => panic!("not IP: {other:?}"),
    }
}

/// A UDP packet of a guest; of IPv4 with DF as etherparse has it.
pub fn udp(from: SocketAddr, to: SocketAddr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(GUEST_MAC, [2, 0, 0, 0, 0, 9]);
    let mut frame = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let builder = ethernet.ipv4(source.octets(), destination.octets(), ttl).udp(from.port(), to.port());
            builder.write(&mut frame, payload).unwrap();
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let builder = ethernet.ipv6(source.octets(), destination.octets(), ttl).udp(from.port(), to.port());
            builder.write(&mut frame, payload).unwrap();
        }
        _ => panic!("two families"),
    }
    frame
}

/// An echo request of a guest.
pub fn echo(from: IpAddr, to: IpAddr, id: u16, seq: u16, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(GUEST_MAC, [2, 0, 0, 0, 0, 9]);
    let mut frame = Vec::new();
    match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let builder = ethernet.ipv4(source.octets(), destination.octets(), ttl).icmpv4_echo_request(id, seq);
            builder.write(&mut frame, payload).unwrap();
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let builder = ethernet.ipv6(source.octets(), destination.octets(), ttl).icmpv6_echo_request(id, seq);
            builder.write(&mut frame, payload).unwrap();
        }
        _ => panic!("two families"),
    }
    frame
}

/// Changes bytes of an IPv4 header and mends its checksum.
pub fn with_ip(mut frame: Vec<u8>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    change(&mut frame[14..34]);
    frame[24..26].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&frame[14..34]);
    let sum = sum.finish();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Without DF.
pub fn without_df(frame: Vec<u8>) -> Vec<u8> {
    with_ip(frame, |ip| ip[6] &= !0x40)
}

/// A UDP packet as it was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
    pub tos: u8,
    pub mac: [u8; 6],
}

#[track_caller]
pub fn seen(frame: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (source, destination, tos): (IpAddr, IpAddr, u8) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), frame[15])
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            (header.source_addr().into(), header.destination_addr().into(), header.traffic_class())
        }
        other => panic!("not IP: {other:?}"),
    };
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("not UDP: {packet:?}") };
    Seen {
        from: SocketAddr::new(source, udp.source_port()),
        to: SocketAddr::new(destination, udp.destination_port()),
        payload: udp.payload().to_vec(),
        tos,
        mac: frame[..6].try_into().unwrap(),
    }
}

/// An ICMP error: who says it to whom, type, code, the word behind the checksum, the packet that it quotes (as an Ethernet frame).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub from: IpAddr,
    pub to: IpAddr,
    pub kind: u8,
    pub code: u8,
    pub word: u32,
    pub quoted: Vec<u8>,
}

#[track_caller]
pub fn told(frame: &[u8]) -> Told {
    check(frame);
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let (from, to, l4): (IpAddr, IpAddr, usize) = match &packet.net {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into(), 34),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into(), 54),
        other => panic!("not IP: {other:?}"),
    };
    let word = u32::from_be_bytes(frame[l4 + 4..l4 + 8].try_into().unwrap());
    let mut quoted = frame[..14].to_vec();
    quoted.extend(&frame[l4 + 8..]);
    Told { from, to, kind: frame[l4], code: frame[l4 + 1], word, quoted }
}

/// Addresses and ports (of echoes, twice the identifier) of a packet that may be cut off.
pub fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let v6 = frame[12..14] == [0x86, 0xdd];
    let (source, destination, l4): (IpAddr, IpAddr, usize) = if v6 {
        let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
        (address(22).into(), address(38).into(), 54)
    } else {
        let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
        (address(26).into(), address(30).into(), 34)
    };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let protocol = if v6 { frame[20] } else { frame[23] };
    let (a, b) = if protocol == 17 { (port(l4), port(l4 + 2)) } else { (port(l4 + 4), port(l4 + 4)) };
    (SocketAddr::new(source, a), SocketAddr::new(destination, b))
}

/// A server on the loopback device, and how guests name it.
pub fn server(v6: bool) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(if v6 { "[::1]:0" } else { "127.0.0.1:0" }).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let port = socket.local_addr().unwrap().port();
    let name = if v6 { SocketAddr::new(router6().into(), port) } else { SocketAddr::new(router().into(), port) };
    (socket, name)
}

/// The next datagram of a server.
#[track_caller]
pub fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut bytes = vec![0; 65_536];
    let (len, from) = socket.recv_from(&mut bytes).unwrap();
    bytes.truncate(len);
    (bytes, from)
}

/// Cuts an IPv4 frame into fragments with `size` bytes (a multiple of eight) each.
pub fn fragments(frame: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let payload = &frame[34..];
    let count = payload.len().div_ceil(size);
    let cut = |n: usize| {
        let part = &payload[n * size..payload.len().min((n + 1) * size)];
        let more = if n + 1 < count { 0x2000 } else { 0 };
        let mut header = with_ip(frame[..34].to_vec(), |ip| {
            ip[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            ip[6..8].copy_from_slice(&(more | (n * size / 8) as u16).to_be_bytes());
        });
        header.extend(part);
        header
    };
    (0..count).map(cut).collect()
}

/// Puts fragments of one packet together again, of either family, and checks the whole.
#[track_caller]
pub fn joined(frames: &[Vec<u8>]) -> Vec<u8> {
    let v6 = frames[0][12..14] == [0x86, 0xdd];
    let (at, l4) = if v6 { (56, 62) } else { (20, 34) };
    let mask = if v6 { 0xfff8 } else { 0x1fff };
    let unit = if v6 { 1 } else { 8 };
    let offset = |frame: &Vec<u8>| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]) & mask) * unit;
    let mut parts: Vec<(usize, &[u8])> = frames.iter().map(|frame| (offset(frame), &frame[l4..])).collect();
    parts.sort_by_key(|(offset, _)| *offset);
    let mut whole = frames[0][..if v6 { 54 } else { 34 }].to_vec();
    let start = whole.len();
    for (offset, part) in parts {
        assert_eq!(whole.len() - start, offset, "no gap and no overlap");
        whole.extend(part);
    }
    let len = whole.len() - start;
    if v6 {
        whole[18..20].copy_from_slice(&(len as u16).to_be_bytes());
        whole[20] = frames[0][54];
    } else {
        whole = with_ip(whole, |ip| {
            ip[2..4].copy_from_slice(&(20 + len as u16).to_be_bytes());
            ip[6..8].fill(0);
        });
    }
    check(&whole);
    whole
}
