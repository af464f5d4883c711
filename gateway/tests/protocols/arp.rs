//! RFC 826 and RFC 5227.

use std::{net::Ipv4Addr, time::Duration};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, NetHeaders, PacketBuilder};
use gateway::Neighbour;
use wire::{DropReason, Mac, Verdict};

use crate::segment::{GUEST, GUEST_MAC, OUTSIDE, ROUTER, ROUTER_MAC, Segment, check, config};

pub fn arp(to: Mac, operation: ArpOperation, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Vec<u8> {
    let packet = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &GUEST_MAC.bytes(),
        &sender.octets(),
        &target_mac.bytes(),
        &target.octets(),
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(GUEST_MAC.bytes(), to.bytes()).arp(packet.unwrap()).write(&mut frame).unwrap();
    frame
}

pub fn request(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(Mac::BROADCAST, ArpOperation::REQUEST, sender, Mac::new([0; 6]), target)
}

fn read(frame: &[u8]) -> (Mac, ArpPacket) {
    let headers = check(frame);
    let to = Mac::new(headers.link.unwrap().ethernet2().unwrap().destination);
    let Some(NetHeaders::Arp(packet)) = headers.net else { panic!("not ARP") };
    (to, packet)
}

#[test]
fn rfc826_a_request_for_the_router_is_answered_to_the_asker_alone() {
    let (to, packet) = read(&Segment::new(config()).ask(&request(GUEST, ROUTER)));
    assert_eq!((to, packet.operation), (GUEST_MAC, ArpOperation::REPLY));
    assert_eq!(packet.sender_hw_addr(), ROUTER_MAC.bytes());
    assert_eq!(packet.sender_protocol_addr(), ROUTER.octets());
    assert_eq!(packet.target_hw_addr(), GUEST_MAC.bytes());
    assert_eq!(packet.target_protocol_addr(), GUEST.octets());
}

#[test]
fn rfc826_a_request_put_to_the_router_directly_is_answered() {
    let asked = arp(ROUTER_MAC, ArpOperation::REQUEST, GUEST, ROUTER_MAC, ROUTER);
    assert_eq!(read(&Segment::new(config()).ask(&asked)).0, GUEST_MAC);
}

#[test]
fn rfc826_requests_for_others_and_announcements_are_not_answered() {
    let mut segment = Segment::new(config());
    for frame in [request(GUEST, OUTSIDE), request(GUEST, GUEST)] {
        assert_eq!(segment.refused(&frame), DropReason::NotForGateway);
    }
    let mut cut = request(GUEST, ROUTER);
    cut.truncate(30);
    assert_eq!(segment.refused(&cut), DropReason::BadPacket);
}

#[test]
fn rfc826_the_router_asks_and_remembers_who_answers() {
    let mut segment = Segment::new(config());
    let guest = GUEST.into();
    assert_eq!(segment.gateway.neighbour(guest, segment.now), Neighbour::Ask);
    let mut question = Vec::new();
    segment.gateway.ask(guest, segment.now, &mut question);
    let (to, packet) = read(&question);
    assert_eq!((to, packet.operation), (Mac::BROADCAST, ArpOperation::REQUEST));
    assert_eq!(packet.target_protocol_addr(), GUEST.octets());
    assert_eq!(segment.gateway.neighbour(guest, segment.now), Neighbour::Waiting);
    let reply = arp(ROUTER_MAC, ArpOperation::REPLY, GUEST, ROUTER_MAC, ROUTER);
    assert_eq!(segment.say(&reply), (Verdict::Reply, None), "listened to, and not answered");
    let Neighbour::Known(mac, _) = segment.gateway.neighbour(guest, segment.now) else { panic!("not known") };
    assert_eq!(mac, GUEST_MAC);
}

#[test]
fn who_asks_for_the_router_is_remembered_unless_the_address_is_none_of_the_segment() {
    let mut segment = Segment::new(config());
    let _ = segment.ask(&request(GUEST, ROUTER));
    assert!(matches!(segment.gateway.neighbour(GUEST.into(), segment.now), Neighbour::Known(..)));
    let _ = segment.ask(&request(OUTSIDE, ROUTER));
    assert_eq!(segment.gateway.neighbour(OUTSIDE.into(), segment.now), Neighbour::Ask);
}

#[test]
fn rfc5227_a_probe_for_the_routers_address_is_answered() {
    let (to, packet) = read(&Segment::new(config()).ask(&request(Ipv4Addr::UNSPECIFIED, ROUTER)));
    assert_eq!((to, packet.operation), (GUEST_MAC, ArpOperation::REPLY));
    assert_eq!(packet.sender_protocol_addr(), ROUTER.octets());
    assert_eq!(packet.target_protocol_addr(), [0; 4]);
}

#[test]
fn rfc5227_the_address_is_defended_once_in_ten_seconds() {
    let mut segment = Segment::new(config());
    let stolen = request(ROUTER, ROUTER);
    let (to, packet) = read(&segment.ask(&stolen));
    assert_eq!((to, packet.operation), (Mac::BROADCAST, ArpOperation::REQUEST));
    assert_eq!(packet.sender_protocol_addr(), packet.target_protocol_addr());
    segment.later(Duration::from_secs(9));
    assert_eq!(segment.refused(&stolen), DropReason::NotForGateway);
    segment.later(Duration::from_secs(1));
    segment.ask(&stolen);
}

#[test]
fn rfc826_what_is_said_to_all_changes_what_is_known_and_adds_nothing() {
    let mut segment = Segment::new(config());
    let moved = Mac::new([2, 0, 0, 0, 0, 0x77]);
    // An announcement (RFC 5227 section 3), and a question put to somebody else.
    let of = |target: Ipv4Addr| {
        let mut frame = request(GUEST, target);
        frame[6..12].copy_from_slice(&moved.bytes());
        frame[22..28].copy_from_slice(&moved.bytes());
        frame
    };
    assert_eq!(segment.refused(&of(GUEST)), DropReason::NotForGateway);
    assert_eq!(segment.gateway.neighbour(GUEST.into(), segment.now), Neighbour::Ask);
    for target in [GUEST, OUTSIDE] {
        let _ = segment.ask(&request(GUEST, ROUTER));
        assert!(matches!(segment.gateway.neighbour(GUEST.into(), segment.now), Neighbour::Known(GUEST_MAC, _)));
        assert_eq!(segment.say(&of(target)), (Verdict::Reply, None));
        let Neighbour::Known(mac, _) = segment.gateway.neighbour(GUEST.into(), segment.now) else { panic!("unknown") };
        assert_eq!(mac, moved);
    }
}
