//! ICMP: RFC 792, RFC 1122, RFC 1812.

use std::{net::Ipv4Addr, time::Duration};

use etherparse::{Icmpv4Type, NetHeaders, PacketBuilder, TransportHeader, icmpv4};
use gateway::{Config, Elsewhere};
use proptest::prelude::*;
use wire::{DropReason, Mac, NicId, Verdict};

use crate::segment::{GUEST, GUEST_MAC, OUTSIDE, ROUTER, ROUTER_MAC, Segment, check, config, mend, ping, udp};

fn kind(frame: &[u8]) -> Icmpv4Type {
    let headers = check(frame);
    let Some(NetHeaders::Ipv4(ip, _)) = &headers.net else { panic!("not IPv4") };
    assert_eq!((ip.source, ip.destination), (ROUTER.octets(), GUEST.octets()));
    let Some(TransportHeader::Icmpv4(icmp)) = headers.transport else { panic!("not ICMP") };
    icmp.icmp_type
}

fn unreachable(header: icmpv4::DestUnreachableHeader) -> Icmpv4Type {
    Icmpv4Type::DestinationUnreachable(header)
}

#[test]
fn rfc792_an_echo_reply_carries_what_was_sent() {
    let payload: Vec<u8> = (0..=255).cycle().take(1473).collect();
    let answer = Segment::new(config()).ask(&ping(ROUTER, 64, &payload));
    assert_eq!(kind(&answer), Icmpv4Type::EchoReply(etherparse::IcmpEchoHeader { id: 5, seq: 6 }));
    assert_eq!(check(&answer).payload.slice(), payload);
}

#[test]
fn rfc792_ethernet_padding_is_not_echoed() {
    let mut frame = ping(ROUTER, 64, b"x");
    frame.resize(60, 0xee);
    assert_eq!(check(&Segment::new(config()).ask(&frame)).payload.slice(), b"x");
}

#[test]
fn a_wrong_checksum_is_not_answered_and_an_owed_one_is_completed() {
    let mut segment = Segment::new(config());
    let mut frame = ping(ROUTER, 64, b"abcd");
    frame[36] ^= 1;
    assert_eq!(segment.refused(&frame), DropReason::BadPacket);
    segment.checksum_owed = true;
    segment.ask(&frame);
    frame[24] ^= 1;
    assert_eq!(segment.refused(&frame), DropReason::BadPacket, "an IP header's checksum is never owed");
}

#[test]
fn rfc1122_fragments_and_broadcasts_are_not_echoed() {
    let mut segment = Segment::new(config());
    let mut fragment = ping(ROUTER, 64, b"abcd");
    fragment[20] = 0x20;
    mend(&mut fragment);
    assert_eq!(segment.refused(&fragment), DropReason::NotForGateway);
    assert_eq!(segment.refused(&ping(Ipv4Addr::new(192, 168, 7, 255), 64, b"")), DropReason::NotForGateway);
    let mut group = ping(ROUTER, 64, b"abcd");
    group[..6].copy_from_slice(&Mac::BROADCAST.bytes());
    assert_eq!(segment.refused(&group), DropReason::NotForGateway);
}

#[test]
fn what_comes_from_the_routers_own_address_or_to_somebody_else_is_left_alone() {
    let mut segment = Segment::new(config());
    let good = ping(ROUTER, 64, b"abcd");
    for (at, mac) in [(6, ROUTER_MAC), (6, Mac::BROADCAST), (0, GUEST_MAC)] {
        let mut frame = good.clone();
        frame[at..at + 6].copy_from_slice(&mac.bytes());
        assert_eq!(segment.refused(&frame), DropReason::NotForGateway);
    }
}

#[test]
fn rfc1812_5_2_7_1_on_the_segment_itself_the_host_is_unreachable() {
    let (reason, answer) = Segment::elsewhere(Elsewhere::Forward).error(&ping(Ipv4Addr::new(192, 168, 7, 99), 64, b""));
    assert_eq!((reason, kind(&answer)), (DropReason::NoRoute, unreachable(icmpv4::DestUnreachableHeader::Host)));
}

#[test]
fn rfc1812_5_2_7_1_without_a_way_out_the_network_is_unreachable() {
    let mut segment = Segment::new(config());
    let asked = udp(OUTSIDE, 64, 53, &[7; 900]);
    let (reason, answer) = segment.error(&asked);
    assert_eq!((reason, kind(&answer)), (DropReason::NoRoute, unreachable(icmpv4::DestUnreachableHeader::Network)));
    let quote = check(&answer).payload.slice().to_vec();
    assert_eq!(answer.len(), 14 + 576, "RFC 1812 section 4.3.2.3: as much as fits into 576 bytes");
    assert_eq!(quote, asked[14..14 + quote.len()]);
    assert_eq!(answer[15], 0xc0, "RFC 1812 section 4.3.2.5: precedence of internetwork control");
}

#[test]
fn rfc1812_5_2_7_1_what_is_forbidden_is_administratively_prohibited() {
    let (reason, answer) = Segment::elsewhere(Elsewhere::Prohibited).error(&ping(OUTSIDE, 64, b""));
    assert_eq!(reason, DropReason::NoRoute);
    assert_eq!(kind(&answer), unreachable(icmpv4::DestUnreachableHeader::FilterProhibited));
}

#[test]
fn rfc1812_5_3_1_a_hop_limit_that_ends_here_is_reported() {
    let mut segment = Segment::elsewhere(Elsewhere::Forward);
    let mut first_fragment = udp(OUTSIDE, 1, 33_434, b"traceroute");
    first_fragment[20] = 0x20;
    mend(&mut first_fragment);
    segment.error(&first_fragment);
    for ttl in [0, 1] {
        let (reason, answer) = segment.error(&udp(OUTSIDE, ttl, 33_434, b"traceroute"));
        assert_eq!(reason, DropReason::TtlExceeded);
        assert_eq!(kind(&answer), Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit));
    }
    assert_eq!(segment.say(&udp(OUTSIDE, 2, 33_434, b"traceroute")), (Verdict::Forward, None));
    segment.ask(&ping(ROUTER, 1, b"a packet to the router itself is not forwarded"));
}

#[test]
fn rfc1122_3_2_2_1_a_port_that_nobody_has_is_unreachable() {
    let (_, answer) = Segment::new(config()).error(&udp(ROUTER, 64, 33_434, b"traceroute"));
    assert_eq!(kind(&answer), unreachable(icmpv4::DestUnreachableHeader::Port));
}

#[test]
fn rfc1812_4_3_2_7_errors_are_never_about_these() {
    let mut segment = Segment::new(config());
    let make = |from: Ipv4Addr, to: Ipv4Addr| {
        let mut frame = Vec::new();
        let step = PacketBuilder::ethernet2(GUEST_MAC.bytes(), ROUTER_MAC.bytes());
        step.ipv4(from.octets(), to.octets(), 64).udp(1, 2).write(&mut frame, b"").unwrap();
        frame
    };
    let mut error = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC.bytes(), ROUTER_MAC.bytes())
        .ipv4(GUEST.octets(), OUTSIDE.octets(), 64)
        .icmpv4(unreachable(icmpv4::DestUnreachableHeader::Host))
        .write(&mut error, b"")
        .unwrap();
    let mut later_fragment = udp(OUTSIDE, 64, 53, b"");
    later_fragment[21] = 1;
    mend(&mut later_fragment);
    let mut to_group = udp(OUTSIDE, 64, 53, b"");
    to_group[..6].copy_from_slice(&Mac::BROADCAST.bytes());
    let frames = [
        ("an ICMP error", error),
        ("a fragment that is not the first", later_fragment),
        ("a link-layer broadcast", to_group),
        ("a multicast", make(GUEST, Ipv4Addr::new(224, 0, 0, 251))),
        ("a broadcast", make(GUEST, Ipv4Addr::BROADCAST)),
        ("a packet from nobody", make(Ipv4Addr::UNSPECIFIED, OUTSIDE)),
        ("a packet from a group", make(Ipv4Addr::new(224, 0, 0, 1), OUTSIDE)),
        ("a packet from a broadcast address", make(Ipv4Addr::new(192, 168, 7, 255), OUTSIDE)),
        ("a packet from ourselves", make(ROUTER, OUTSIDE)),
        ("a packet from the loopback network", make(Ipv4Addr::LOCALHOST, OUTSIDE)),
    ];
    for (what, frame) in frames {
        let (verdict, answer) = segment.say(&frame);
        let refused = matches!(verdict, Verdict::Drop(DropReason::NoRoute | DropReason::NotForGateway));
        assert!(answer.is_none() && refused, "an error about {what}: {verdict:?}");
    }
}

#[test]
fn rfc1812_4_3_2_8_errors_are_limited_for_each_nic() {
    let mut segment = Segment::new(Config { errors_per_second: 10, ..config() });
    let asked = udp(OUTSIDE, 64, 53, b"");
    let answered = |segment: &mut Segment| (0..1000).filter(|_| segment.say(&asked).1.is_some()).count();
    assert_eq!(answered(&mut segment), 10);
    segment.nic = NicId(4);
    assert_eq!(answered(&mut segment), 10, "another guest has a budget of its own");
    segment.later(Duration::from_millis(500));
    assert_eq!(answered(&mut segment), 5);
    segment.ask(&ping(ROUTER, 64, b"echo is no error"));
}

#[test]
fn deciding_alone_changes_nothing() {
    let mut segment = Segment::new(Config { errors_per_second: 1, ..config() });
    let asked = udp(OUTSIDE, 64, 53, b"");
    for _ in 0..5 {
        let _ = segment.decide(&asked);
    }
    segment.error(&asked);
    assert_eq!(segment.refused(&asked), DropReason::NoRoute);
}

proptest! {
    #[test]
    fn every_echo_comes_back_whole(payload in prop::collection::vec(any::<u8>(), 0..2000), ttl in 1u8..) {
        let answer = Segment::new(config()).ask(&ping(ROUTER, ttl, &payload));
        let headers = check(&answer);
        prop_assert_eq!(headers.payload.slice(), &payload[..]);
    }
}
