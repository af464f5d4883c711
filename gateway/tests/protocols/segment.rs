//! [`Segment`]: a router and what is asked of it; [`Answer`]: an answer as etherparse reads it.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use gateway::{
    Config, Decision, Elsewhere, Gateway, Incoming, RouterV4, RouterV6,
    dhcp::{DhcpConfig, LeaseEvent},
};
use wire::{DropReason, Instant, Mac, NicId, Origin, Verdict};

pub const ROUTER_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
pub const GUEST_MAC: Mac = Mac::new([2, 0, 0, 0, 0, 0x10]);
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 1);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 7, 16);
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub const GLOBAL: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 1);
pub const GUEST_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x10);
pub const GUEST_GLOBAL: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0x10);
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);

/// A router with everything, of a network without a way out.
pub fn config() -> Config {
    let mut v4 = RouterV4 { address: ROUTER, prefix: 24, dhcp: None };
    v4.dhcp = Some(DhcpConfig::new(&v4));
    let v6 = RouterV6 {
        global: Some((GLOBAL, 64)),
        dns: vec![GLOBAL],
        search: vec!["lan.example".to_owned()],
        ..RouterV6::new(LINK_LOCAL)
    };
    Config { v4: Some(v4), v6: Some(v6), seed: 7, ..Config::new(ROUTER_MAC) }
}

pub struct Segment {
    pub gateway: Gateway,
    pub now: Instant,
    pub nic: NicId,
    pub checksum_owed: bool,
    pub event: Option<LeaseEvent>,
    out: Vec<u8>,
}

impl Segment {
    pub fn new(config: Config) -> Self {
        let now = Instant::START + Duration::from_secs(1000);
        let gateway = Gateway::new(config, now).unwrap();
        Segment { gateway, now, nic: NicId(3), checksum_owed: false, event: None, out: Vec::new() }
    }

    pub fn elsewhere(elsewhere: Elsewhere) -> Self {
        Segment::new(Config { elsewhere, ..config() })
    }

    pub fn later(&mut self, by: Duration) {
        self.now = self.now + by;
    }

    /// What is decided, without committing it.
    pub fn decide(&mut self, frame: &[u8]) -> Decision {
        let origin = Origin { nic: self.nic, lane: 0 };
        let incoming = Incoming { bytes: frame, origin, checksum_owed: self.checksum_owed };
        self.gateway.decide(&incoming, self.now, &mut self.out)
    }

    /// Puts a frame to the router.
    pub fn say(&mut self, frame: &[u8]) -> (Verdict, Option<Vec<u8>>) {
        let decision = self.decide(frame);
        let verdict = decision.verdict;
        self.event = self.gateway.commit(decision, self.now).and_then(gateway::dhcp::Event::v4);
        (verdict, (!self.out.is_empty()).then(|| self.out.clone()))
    }

    /// Puts a frame to the router that has to be answered.
    pub fn ask(&mut self, frame: &[u8]) -> Vec<u8> {
        let (verdict, answer) = self.say(frame);
        assert_eq!(verdict, Verdict::Reply);
        let answer = answer.expect("an answer");
        check(&answer);
        answer
    }

    /// Puts a frame to the router that must not be answered.
    pub fn refused(&mut self, frame: &[u8]) -> DropReason {
        match self.say(frame) {
            (Verdict::Drop(reason), None) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Puts a frame to the router that must be answered by an ICMP error: its type and code, and why the frame ended.
    pub fn error(&mut self, frame: &[u8]) -> (DropReason, Vec<u8>) {
        match self.say(frame) {
            (Verdict::Drop(reason), Some(answer)) => {
                check(&answer);
                (reason, answer)
            }
            other => panic!("no error: {other:?}"),
        }
    }

    pub fn tick(&mut self) -> Option<Vec<u8>> {
        let said = self.gateway.tick(self.now, &mut self.out);
        assert_eq!(said, !self.out.is_empty());
        said.then(|| {
            check(&self.out);
            self.out.clone()
        })
    }
}

/// The answer's headers, which have to be right in every length and checksum.
pub fn check(frame: &[u8]) -> PacketHeaders<'_> {
    let headers = PacketHeaders::from_ethernet_slice(frame).expect("etherparse reads it");
    let payload = headers.payload.slice();
    let link = headers.link.clone().unwrap().ethernet2().unwrap();
    assert_eq!(link.source, ROUTER_MAC.bytes());
    match (&headers.net, &headers.transport) {
        (Some(NetHeaders::Ipv4(ip, _)), transport) => {
            assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            assert_eq!(usize::from(ip.total_len) + 14, frame.len());
            match transport {
                Some(TransportHeader::Udp(udp)) => {
                    assert_eq!(udp.calc_checksum_ipv4(ip, payload).unwrap(), udp.checksum);
                }
                Some(TransportHeader::Icmpv4(icmp)) => {
                    assert_eq!(icmp.icmp_type.calc_checksum(payload), icmp.checksum)
                }
                other => panic!("what is {other:?}"),
            }
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Icmpv6(icmp))) => {
            assert_eq!(usize::from(ip.payload_length) + 54, frame.len());
            assert_eq!(icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).unwrap(), icmp.checksum);
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Udp(udp))) => {
            assert_eq!(usize::from(ip.payload_length) + 54, frame.len());
            assert_eq!(udp.calc_checksum_ipv6(ip, payload).unwrap(), udp.checksum);
        }
        (Some(NetHeaders::Arp(_)), None) => {}
        other => panic!("what is {other:?}"),
    }
    headers
}

/// Sets the checksum of an IPv4 header again, after a change.
pub fn mend(frame: &mut [u8]) {
    let (header, _) = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap();
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

/// A frame from the guest with a UDP datagram.
pub fn udp(to: Ipv4Addr, ttl: u8, port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(GUEST_MAC.bytes(), ROUTER_MAC.bytes())
        .ipv4(GUEST.octets(), to.octets(), ttl)
        .udp(40_000, port);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A frame from the guest with an echo request.
pub fn ping(to: Ipv4Addr, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(GUEST_MAC.bytes(), ROUTER_MAC.bytes())
        .ipv4(GUEST.octets(), to.octets(), ttl)
        .icmpv4_echo_request(5, 6);
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// A frame from the guest with an ICMPv6 message.
pub fn icmpv6(to_mac: Mac, from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, kind: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let (first, payload) = rest.split_at(4);
    let builder = PacketBuilder::ethernet2(GUEST_MAC.bytes(), to_mac.bytes())
        .ipv6(from.octets(), to.octets(), hop_limit)
        .icmpv6_raw(kind[0], kind[1], first.try_into().unwrap());
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}
