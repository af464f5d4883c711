//! Neighbour discovery, router advertisements, ICMPv6: RFC 4861, RFC 4862, RFC 8106, RFC 4443.

use std::{net::Ipv6Addr, time::Duration};

use etherparse::{NetHeaders, PacketBuilder};
use gateway::{Config, Elsewhere, Neighbour, RouterV6};
use wire::{DropReason, Mac, Verdict};

use crate::segment::{
    GLOBAL, GUEST_GLOBAL, GUEST_LINK_LOCAL, GUEST_MAC, LINK_LOCAL, OUTSIDE_V6, ROUTER_MAC, Segment, check, config,
    icmpv6,
};

const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const SOLICITED: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
const SOLICITED_MAC: Mac = Mac::new([0x33, 0x33, 0xff, 0, 0, 1]);
const ROUTERS_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 2]);
const NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);

/// A neighbour solicitation.
pub fn solicitation(from: Ipv6Addr, to: Ipv6Addr, target: Ipv6Addr, with_link: bool) -> Vec<u8> {
    let mut rest = vec![0; 4];
    rest.extend(target.octets());
    if with_link {
        rest.extend([1, 1]);
        rest.extend(GUEST_MAC.bytes());
    }
    icmpv6(SOLICITED_MAC, from, to, 255, [135, 0], &rest)
}

fn router_solicitation(from: Ipv6Addr) -> Vec<u8> {
    icmpv6(ROUTERS_MAC, from, ALL_ROUTERS, 255, [133, 0], &[0; 4])
}

/// Destination MAC, source, destination, hop limit and ICMPv6 message.
fn read(frame: &[u8]) -> (Mac, Ipv6Addr, Ipv6Addr, u8, &[u8]) {
    let headers = check(frame);
    let Some(NetHeaders::Ipv6(ip, _)) = headers.net else { panic!("not IPv6") };
    let to = Mac::new(headers.link.unwrap().ethernet2().unwrap().destination);
    (to, ip.source.into(), ip.destination.into(), ip.hop_limit, &frame[54..])
}

#[test]
fn rfc4861_7_2_4_a_solicitation_is_answered_by_a_router() {
    let mut segment = Segment::new(config());
    for target in [LINK_LOCAL, GLOBAL] {
        let answer = segment.ask(&solicitation(GUEST_LINK_LOCAL, SOLICITED, target, true));
        let (mac, from, to, hop_limit, message) = read(&answer);
        assert_eq!((mac, from, to, hop_limit), (GUEST_MAC, target, GUEST_LINK_LOCAL, 255));
        assert_eq!((message[0], message[1], message[4]), (136, 0, 0xe0), "router, solicited, override");
        assert_eq!(message[8..24], target.octets());
        assert_eq!((&message[24..26], &message[26..]), (&[2, 1][..], &ROUTER_MAC.bytes()[..]));
    }
}

#[test]
fn rfc4861_7_3_3_a_neighbour_that_is_checked_directly_answers() {
    let mut frame = solicitation(GUEST_GLOBAL, GLOBAL, GLOBAL, false);
    frame[..6].copy_from_slice(&ROUTER_MAC.bytes());
    assert_eq!(read(&Segment::new(config()).ask(&frame)).2, GUEST_GLOBAL);
}

#[test]
fn rfc4862_5_4_a_node_that_would_take_the_routers_address_is_told_before_all() {
    let answer = Segment::new(config()).ask(&solicitation(Ipv6Addr::UNSPECIFIED, SOLICITED, GLOBAL, false));
    let (mac, from, to, _, message) = read(&answer);
    assert_eq!((mac, from, to), (NODES_MAC, GLOBAL, ALL_NODES));
    assert_eq!(message[4], 0xa0, "router and override, not solicited");
}

#[test]
fn rfc4861_7_2_the_router_asks_and_remembers_who_answers() {
    let mut segment = Segment::new(config());
    let mut question = Vec::new();
    segment.gateway.ask(GUEST_GLOBAL.into(), segment.now, &mut question);
    let (mac, from, to, hop_limit, message) = read(&question);
    assert_eq!((mac, from, hop_limit), (Mac::new([0x33, 0x33, 0xff, 0, 0, 0x10]), GLOBAL, 255));
    assert_eq!((to.octets()[13..].to_vec(), message[0]), (vec![0, 0, 0x10], 135));
    assert_eq!((&message[8..24], &message[24..26]), (&GUEST_GLOBAL.octets()[..], &[1, 1][..]));
    assert_eq!(segment.gateway.neighbour(GUEST_GLOBAL.into(), segment.now), Neighbour::Waiting);
    let advertisement = |target: Ipv6Addr, mac: Mac| {
        let mut rest = vec![0x60, 0, 0, 0];
        rest.extend(target.octets());
        rest.extend([2, 1]);
        rest.extend(mac.bytes());
        icmpv6(ROUTER_MAC, GUEST_GLOBAL, GLOBAL, 255, [136, 0], &rest)
    };
    // Another's link-layer address, or one that is no neighbour's, is not believed.
    let _ = segment.say(&advertisement(GUEST_GLOBAL, Mac::new([2, 0, 0, 0, 0, 0x66])));
    assert_eq!(segment.gateway.neighbour(GUEST_GLOBAL.into(), segment.now), Neighbour::Waiting);
    let _ = segment.say(&advertisement(OUTSIDE_V6, GUEST_MAC));
    assert_eq!(segment.gateway.neighbour(OUTSIDE_V6.into(), segment.now), Neighbour::Ask);
    assert_eq!(segment.say(&advertisement(GUEST_GLOBAL, GUEST_MAC)), (Verdict::Reply, None));
    assert!(matches!(segment.gateway.neighbour(GUEST_GLOBAL.into(), segment.now), Neighbour::Known(GUEST_MAC, _)));
}

#[test]
fn rfc4861_7_1_1_solicitations_that_must_be_discarded() {
    let mut segment = Segment::new(config());
    let good = solicitation(GUEST_LINK_LOCAL, SOLICITED, LINK_LOCAL, true);
    let rest = &good[58..];
    let mut checksum = good.clone();
    checksum[56] ^= 1;
    let from_nobody_with_link = solicitation(Ipv6Addr::UNSPECIFIED, SOLICITED, GLOBAL, true);
    let from_nobody_to_one = solicitation(Ipv6Addr::UNSPECIFIED, GLOBAL, GLOBAL, false);
    let mut no_length = rest.to_vec();
    no_length[21] = 0;
    let make =
        |hop_limit, code, rest: &[u8]| icmpv6(SOLICITED_MAC, GUEST_LINK_LOCAL, SOLICITED, hop_limit, [135, code], rest);
    for (what, frame) in [
        ("from beyond the link", make(254, 0, rest)),
        ("with a code", make(255, 1, rest)),
        ("too short", make(255, 0, &rest[..16])),
        ("with an option without length", make(255, 0, &no_length)),
        ("with a wrong checksum", checksum),
        ("from nobody with a link-layer address", from_nobody_with_link),
        ("from nobody, not to the solicited-node group", from_nobody_to_one),
        ("for a group", solicitation(GUEST_LINK_LOCAL, SOLICITED, ALL_NODES, true)),
    ] {
        assert_eq!(segment.refused(&frame), DropReason::BadPacket, "{what}");
    }
    let other = solicitation(GUEST_LINK_LOCAL, SOLICITED, GUEST_GLOBAL, true);
    assert_eq!(segment.refused(&other), DropReason::NotForGateway);
}

#[test]
fn rfc6980_neighbour_discovery_behind_a_fragment_header_is_ignored() {
    let plain = solicitation(GUEST_LINK_LOCAL, SOLICITED, LINK_LOCAL, true);
    // An atomic fragment: whole, but with the header.
    let mut frame = [&plain[..54], &[58, 0, 0, 0, 0, 0, 0, 1], &plain[54..]].concat();
    frame[20] = 44;
    frame[19] += 8;
    assert_eq!(Segment::new(config()).refused(&frame), DropReason::NotForGateway);
}

/// The options of a router advertisement, by code.
fn options(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (option, rest) = bytes.split_at(usize::from(bytes[1]) * 8);
        found.push((option[0], option[2..].to_vec()));
        bytes = rest;
    }
    found
}

#[test]
fn rfc4861_6_2_6_a_router_solicitation_is_answered_directly_with_everything() {
    let answer = Segment::new(config()).ask(&router_solicitation(GUEST_LINK_LOCAL));
    let (mac, from, to, hop_limit, message) = read(&answer);
    assert_eq!((mac, from, to, hop_limit), (GUEST_MAC, LINK_LOCAL, GUEST_LINK_LOCAL, 255));
    assert_eq!(message[..2], [134, 0]);
    assert_eq!(message[4..8], [64, 0, 0, 0], "hop limit, neither M nor O, no default route without a way out");
    let options = options(&message[16..]);
    let one = |code| &options.iter().find(|(found, _)| *found == code).unwrap().1;
    assert_eq!(one(1)[..], ROUTER_MAC.bytes());
    assert_eq!(one(5)[2..], 1500u32.to_be_bytes());
    let prefix = one(3);
    assert_eq!(prefix[..2], [64, 0xc0], "on link, and for addresses of the guests' own making");
    assert_eq!(prefix[2..6], 2_592_000u32.to_be_bytes());
    assert_eq!(prefix[6..10], 604_800u32.to_be_bytes());
    assert_eq!(prefix[14..], Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 0).octets());
    assert_eq!(one(25)[2..6], 1800u32.to_be_bytes(), "RFC 8106 section 5.1");
    assert_eq!(one(25)[6..], GLOBAL.octets());
    assert_eq!(one(31)[6..], *b"\x03lan\x07example\0\0\0\0");
}

#[test]
fn rfc4861_6_2_3_a_way_out_is_advertised_for_three_intervals() {
    let mut config = config();
    config.v6 = config.v6.map(|v6| RouterV6 { default_router: true, managed: true, other: true, ..v6 });
    let answer = Segment::new(config).ask(&router_solicitation(GUEST_LINK_LOCAL));
    let message = read(&answer).4;
    assert_eq!((message[5], &message[6..8]), (0xc0, &1800u16.to_be_bytes()[..]));
}

#[test]
fn rfc4861_6_1_1_router_solicitations_that_must_be_discarded() {
    let mut segment = Segment::new(config());
    let link = [[0; 4].as_slice(), &[1, 1], &GUEST_MAC.bytes()].concat();
    for frame in [
        icmpv6(ROUTERS_MAC, GUEST_LINK_LOCAL, ALL_ROUTERS, 64, [133, 0], &[0; 4]),
        icmpv6(ROUTERS_MAC, GUEST_LINK_LOCAL, ALL_ROUTERS, 255, [133, 1], &[0; 4]),
        icmpv6(ROUTERS_MAC, Ipv6Addr::UNSPECIFIED, ALL_ROUTERS, 255, [133, 0], &link),
    ] {
        assert_eq!(segment.refused(&frame), DropReason::BadPacket);
    }
}

#[test]
fn rfc4861_6_2_4_advertisements_come_quickly_at_first_and_then_within_the_interval() {
    let mut segment = Segment::new(config());
    let mut last = segment.now;
    for number in 0..50 {
        let due = segment.gateway.deadline().unwrap();
        let waited = due.since(last);
        let least = Duration::from_secs(if number < 3 { 0 } else { 200 });
        let most = Duration::from_secs(if number < 3 { 16 } else { 600 });
        assert!((least..=most).contains(&waited), "advertisement {number} after {waited:?}");
        segment.now = due - Duration::from_nanos(1);
        if number > 0 {
            assert_eq!(segment.tick(), None);
        }
        segment.now = due;
        let frame = segment.tick().unwrap();
        let (mac, from, to, hop_limit, _) = read(&frame);
        assert_eq!((mac, from, to, hop_limit), (NODES_MAC, LINK_LOCAL, ALL_NODES, 255));
        last = due;
    }
}

#[test]
fn rfc4861_6_2_6_who_asks_without_an_address_is_told_with_all_and_not_more_than_every_three_seconds() {
    let mut segment = Segment::new(config());
    for _ in 0..3 {
        segment.now = segment.gateway.deadline().unwrap();
        segment.tick().unwrap();
    }
    let told = segment.now;
    let asked = router_solicitation(Ipv6Addr::UNSPECIFIED);
    assert_eq!(segment.say(&asked), (Verdict::Reply, None));
    assert_eq!(segment.gateway.deadline(), Some(told + Duration::from_secs(3)));
    segment.later(Duration::from_secs(60));
    for _ in 0..1000 {
        assert_eq!(segment.say(&asked), (Verdict::Reply, None));
    }
    let due = segment.gateway.deadline().unwrap();
    assert!(due.since(segment.now) <= Duration::from_millis(500));
    segment.now = due;
    segment.tick().unwrap();
}

fn ping(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    icmpv6(ROUTER_MAC, from, to, 64, [128, 0], b"\0\x05\0\x06and what is behind")
}

#[test]
fn rfc4443_4_2_an_echo_reply_carries_what_was_sent() {
    let mut segment = Segment::new(config());
    for (from, to) in [(GUEST_LINK_LOCAL, LINK_LOCAL), (GUEST_GLOBAL, GLOBAL)] {
        let answer = segment.ask(&ping(from, to));
        let (mac, source, back, _, message) = read(&answer);
        assert_eq!((mac, source, back), (GUEST_MAC, to, from));
        assert_eq!((message[0], &message[4..]), (129, &b"\0\x05\0\x06and what is behind"[..]));
    }
    let answer = segment.ask(&icmpv6(NODES_MAC, GUEST_LINK_LOCAL, ALL_NODES, 1, [128, 0], &[0; 8]));
    assert_eq!(read(&answer).1, LINK_LOCAL, "to a group: from an address of the asker's scope");
    let mut wrong = ping(GUEST_GLOBAL, GLOBAL);
    wrong[56] ^= 1;
    assert_eq!(segment.refused(&wrong), DropReason::BadPacket);
    segment.checksum_owed = true;
    segment.ask(&wrong);
}

#[test]
fn rfc4443_3_1_and_3_3_errors_say_why() {
    let error = |elsewhere, frame: &[u8]| {
        let (reason, answer) = Segment::elsewhere(elsewhere).error(frame);
        let message = read(&answer).4;
        assert_eq!(message[8..], frame[14..14 + message.len() - 8]);
        (reason, message[0], message[1])
    };
    let outside = ping(GUEST_GLOBAL, OUTSIDE_V6);
    assert_eq!(error(Elsewhere::Unreachable, &outside), (DropReason::NoRoute, 1, 0));
    assert_eq!(error(Elsewhere::Prohibited, &outside), (DropReason::NoRoute, 1, 1));
    assert_eq!(error(Elsewhere::Forward, &ping(GUEST_LINK_LOCAL, OUTSIDE_V6)), (DropReason::NoRoute, 1, 2));
    let mut last_hop = outside.clone();
    last_hop[21] = 1;
    assert_eq!(error(Elsewhere::Forward, &last_hop), (DropReason::TtlExceeded, 3, 0));
    assert_eq!(Segment::elsewhere(Elsewhere::Forward).say(&outside), (Verdict::Forward, None));
    let mut closed = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC.bytes(), ROUTER_MAC.bytes())
        .ipv6(GUEST_GLOBAL.octets(), GLOBAL.octets(), 64)
        .udp(1, 33_434)
        .write(&mut closed, &[1; 1400])
        .unwrap();
    assert_eq!(error(Elsewhere::Unreachable, &closed), (DropReason::NotForGateway, 1, 4));
    assert_eq!(Segment::new(config()).error(&closed).1.len(), 14 + 1280, "as much as the least MTU holds");
}

#[test]
fn rfc4443_2_4_e_errors_are_never_about_these() {
    let mut segment = Segment::new(config());
    let message = |from, to, kind| icmpv6(ROUTER_MAC, from, to, 64, [kind, 0], &[0; 48]);
    let mut to_group = ping(GUEST_GLOBAL, OUTSIDE_V6);
    to_group[..6].copy_from_slice(&NODES_MAC.bytes());
    for (what, frame) in [
        ("an ICMPv6 error", message(GUEST_GLOBAL, OUTSIDE_V6, 1)),
        ("a redirect", message(GUEST_GLOBAL, OUTSIDE_V6, 137)),
        ("a multicast", ping(GUEST_GLOBAL, Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 1))),
        ("a link-layer multicast", to_group),
        ("a packet from nobody", ping(Ipv6Addr::UNSPECIFIED, OUTSIDE_V6)),
        ("a packet from a group", ping(ALL_NODES, OUTSIDE_V6)),
        ("a packet from ourselves", ping(GLOBAL, OUTSIDE_V6)),
    ] {
        let (verdict, answer) = segment.say(&frame);
        assert!(answer.is_none() && matches!(verdict, Verdict::Drop(_)), "an error about {what}: {verdict:?}");
    }
}

#[test]
fn rfc4443_2_4_f_errors_are_limited() {
    let mut segment = Segment::new(Config { errors_per_second: 5, ..config() });
    let asked = ping(GUEST_GLOBAL, OUTSIDE_V6);
    assert_eq!((0..100).filter(|_| segment.say(&asked).1.is_some()).count(), 5);
    segment.later(Duration::from_secs(1));
    let asked = router_solicitation(GUEST_LINK_LOCAL);
    assert_eq!((0..100).filter(|_| segment.say(&asked).1.is_some()).count(), 5, "so are advertisements to one node");
}

/// An advertisement that nobody asked for.
fn announcement(from: Mac, target: Ipv6Addr, flags: u8) -> Vec<u8> {
    let mut rest = vec![flags, 0, 0, 0];
    rest.extend(target.octets());
    rest.extend([2, 1]);
    rest.extend(from.bytes());
    let mut frame = icmpv6(NODES_MAC, target, ALL_NODES, 255, [136, 0], &rest);
    frame[6..12].copy_from_slice(&from.bytes());
    frame
}

#[test]
fn rfc4861_7_2_5_what_nobody_asked_for_changes_what_is_known_if_it_says_so() {
    const OVERRIDE: u8 = 0x20;
    let mut segment = Segment::new(config());
    let (guest, moved) = (GUEST_GLOBAL.into(), Mac::new([2, 0, 0, 0, 0, 0x77]));
    let _ = segment.say(&announcement(moved, GUEST_GLOBAL, OVERRIDE));
    assert_eq!(segment.gateway.neighbour(guest, segment.now), Neighbour::Ask, "it adds nothing");
    let _ = segment.ask(&solicitation(GUEST_GLOBAL, SOLICITED, GLOBAL, true));
    let _ = segment.say(&announcement(moved, GUEST_GLOBAL, 0));
    assert!(matches!(segment.gateway.neighbour(guest, segment.now), Neighbour::Known(GUEST_MAC, _)));
    assert_eq!(segment.say(&announcement(moved, GUEST_GLOBAL, OVERRIDE)), (Verdict::Reply, None));
    let Neighbour::Known(mac, _) = segment.gateway.neighbour(guest, segment.now) else { panic!("unknown") };
    assert_eq!(mac, moved);
}

#[test]
fn services_are_not_served_behind_extension_headers() {
    let mut segment = Segment::new(Config { services: vec![53], ..config() });
    let mut plain = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC.bytes(), ROUTER_MAC.bytes())
        .ipv6(GUEST_GLOBAL.octets(), GLOBAL.octets(), 64)
        .tcp(1000, 53, 1, 1000)
        .write(&mut plain, &[])
        .unwrap();
    assert_eq!(segment.say(&plain), (Verdict::Forward, None));
    // Destination options in between: one that is padding.
    let mut hidden = [&plain[..54], &[6, 0, 1, 4, 0, 0, 0, 0], &plain[54..]].concat();
    hidden[20] = 60;
    hidden[19] += 8;
    assert!(matches!(segment.say(&hidden).0, Verdict::Drop(DropReason::NotForGateway)));
}

#[test]
fn ipv6_may_lead_nowhere_where_ipv4_leads_out() {
    let elsewhere6 = Some(Elsewhere::Unreachable);
    let mut segment = Segment::new(Config { elsewhere: Elsewhere::Forward, elsewhere6, ..config() });
    let (reason, answer) = segment.error(&ping(GUEST_GLOBAL, OUTSIDE_V6));
    assert_eq!((reason, read(&answer).4[..2].to_vec()), (DropReason::NoRoute, vec![1, 0]));
    assert_eq!(segment.say(&crate::segment::ping(crate::segment::OUTSIDE, 64, b"")), (Verdict::Forward, None));
}
