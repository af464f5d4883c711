//! What an inspected NIC may say: each kind of spoof, and clean traffic of a declared guest.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use wire::{DropReason, Mac};

use crate::{
    NicSpec, Role,
    testing::{Net, access, mac, tagged},
};

const MINE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const ROUTERS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// That of the declared addresses.
const PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0);
const ALL: Ipv4Addr = Ipv4Addr::BROADCAST;
const NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn mine6() -> Ipv6Addr {
    "fd00::5".parse().unwrap()
}

fn routers6() -> Ipv6Addr {
    "fd00::1".parse().unwrap()
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [Mac::BROADCAST.bytes(), mac(1).bytes()].concat();
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn arp(operation: u8, sender: Mac, address: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(sender.bytes());
    packet.extend(address.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    packet.resize(46, 0);
    ethernet(0x0806, &packet)
}

fn v4_packet(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, flags_and_offset: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(flags_and_offset.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn v4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(0x0800, &v4_packet(from, to, protocol, 0, payload))
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = 8 + payload.len() as u16;
    let mut bytes = [from, to, length, 0].map(u16::to_be_bytes).as_flattened().to_vec();
    bytes.extend(payload);
    bytes
}

fn v6_packet(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn v6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(0x86dd, &v6_packet(from, to, next, payload))
}

/// A neighbour solicitation (135) or advertisement (136), with a link-layer address if one is given.
fn nd(kind: u8, target: Ipv6Addr, link_layer: Option<Mac>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if let Some(link_layer) = link_layer {
        message.extend([kind - 134, 1]);
        message.extend(link_layer.bytes());
    }
    message
}

/// NIC 1 with a guard and two addresses, NIC 2 without, NIC 3 the router.
fn net() -> Net {
    let mut net = Net::new();
    let addresses = vec![IpAddr::V4(MINE), IpAddr::V6(mine6())];
    net.add(1, NicSpec { guard: Some(mac(1)), addresses, ..NicSpec::default() }, 1);
    net.add(2, NicSpec::default(), 1);
    let addresses = vec![ROUTERS.into(), routers6().into(), mac(3).link_local().into()];
    net.add(3, NicSpec { guard: Some(mac(3)), addresses, role: Role::Router, ..NicSpec::default() }, 1);
    net
}

/// A network without a router whose NIC 1 has a guard and no addresses.
fn guard_alone() -> Net {
    let mut net = Net::new();
    net.add(1, NicSpec { guard: Some(mac(1)), ..NicSpec::default() }, 1);
    net.add(2, NicSpec::default(), 1);
    net
}

fn from(mut frame: Vec<u8>, source: Mac) -> Vec<u8> {
    frame[6..12].copy_from_slice(&source.bytes());
    frame
}

/// What an honest guest says.
fn clean() -> Vec<Vec<u8>> {
    let any = Ipv4Addr::UNSPECIFIED;
    let none = Ipv6Addr::UNSPECIFIED;
    let local = mac(1).link_local();
    let own_making: Ipv6Addr = "fe80::abcd:1234:5678:9abc".parse().unwrap();
    let mld = [58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0];
    vec![
        arp(1, mac(1), any, MINE),
        arp(1, mac(1), MINE, MINE),
        arp(1, mac(1), MINE, ROUTERS),
        arp(2, mac(1), MINE, ROUTERS),
        v4(any, ALL, 17, &udp(68, 67, &[1; 240])),
        v4(MINE, ROUTERS, 17, &udp(68, 67, &[1; 240])),
        v4(any, Ipv4Addr::new(224, 0, 0, 22), 2, &[0x22; 16]),
        v4(MINE, ROUTERS, 6, &[0; 20]),
        v4(MINE, ROUTERS, 17, &udp(5353, 53, &[0; 40])),
        v4(MINE, ROUTERS, 1, &[8, 0, 0, 0, 0, 0, 0, 0]),
        ethernet(0x0800, &v4_packet(MINE, ROUTERS, 17, 0x2000, &udp(1000, 53, &[0; 40]))),
        ethernet(0x0800, &v4_packet(MINE, ROUTERS, 17, 6, &udp(67, 68, &[2; 40]))),
        v6(none, NODES, 58, &nd(135, local, None)),
        v6(none, NODES, 58, &nd(135, mine6(), None)),
        v6(none, NODES, 0, &mld),
        v6(local, NODES, 58, &nd(135, routers6(), Some(mac(1)))),
        v6(own_making, NODES, 58, &nd(135, routers6(), Some(mac(1)))),
        v6(mine6(), routers6(), 58, &nd(136, mine6(), Some(mac(1)))),
        v6(mine6(), routers6(), 58, &nd(136, mine6(), None)),
        v6(local, NODES, 58, &[133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1]),
        v6(local, NODES, 17, &udp(546, 547, &[1; 40])),
        v6(mine6(), routers6(), 6, &[0; 20]),
        v6(mine6(), routers6(), 17, &udp(1000, 53, &[0; 40])),
        v6(mac(1).in_prefix(PREFIX), routers6(), 6, &[0; 20]),
        v6(none, NODES, 58, &nd(135, mac(1).in_prefix(PREFIX), None)),
        v6(mac(1).in_prefix(PREFIX), NODES, 58, &nd(136, mac(1).in_prefix(PREFIX), Some(mac(1)))),
        v6(mine6(), routers6(), 58, &[128, 0, 0, 0, 0, 0, 0, 0]),
        v6(mine6(), routers6(), 44, &[&[6, 0, 0, 1, 0, 0, 0, 9][..], &[0; 40]].concat()),
    ]
}

#[test]
fn what_an_honest_guest_says_passes() {
    let mut net = net();
    for (n, frame) in clean().into_iter().enumerate() {
        assert_eq!(net.reaches(1, &frame), [2, 3], "frame {n}");
        let mut padded = frame;
        padded.resize(padded.len().max(60), 0);
        assert_eq!(net.reaches(1, &padded), [2, 3], "frame {n}, padded");
    }
}

#[test]
fn arp_for_another_address_or_station_is_dropped() {
    let mut net = net();
    let other = Ipv4Addr::new(10, 0, 0, 6);
    for operation in [1, 2] {
        assert_eq!(net.dropped(1, &arp(operation, mac(1), other, ROUTERS)), DropReason::SpoofedArp);
        assert_eq!(net.dropped(1, &arp(operation, mac(1), other, other)), DropReason::SpoofedArp);
        assert_eq!(net.dropped(1, &arp(operation, mac(2), MINE, ROUTERS)), DropReason::SpoofedArp);
        assert_eq!(net.dropped(1, &arp(operation, mac(1), ROUTERS, ROUTERS)), DropReason::SpoofedArp);
    }
    assert_eq!(net.dropped(1, &arp(1, mac(1), MINE, ROUTERS)[..30]), DropReason::SpoofedArp);
}

#[test]
fn addresses_that_change_are_the_only_ones_from_then_on() {
    let mut net = net();
    let other = Ipv4Addr::new(10, 0, 0, 6);
    net.bridge.set_addresses(wire::NicId(1), &[other.into()]);
    assert_eq!(net.reaches(1, &arp(1, mac(1), other, ROUTERS)), [2, 3]);
    assert_eq!(net.reaches(1, &v4(other, ROUTERS, 6, &[0; 20])), [2, 3]);
    assert_eq!(net.dropped(1, &arp(1, mac(1), MINE, ROUTERS)), DropReason::SpoofedArp);
    assert_eq!(net.dropped(1, &v4(MINE, ROUTERS, 6, &[0; 20])), DropReason::SpoofedAddress);
}

#[test]
fn packets_from_other_addresses_are_dropped() {
    let mut net = net();
    let other6 = "fd00::6".parse().unwrap();
    let none6 = Ipv6Addr::UNSPECIFIED;
    for frame in [
        v4(Ipv4Addr::new(10, 0, 0, 6), ROUTERS, 6, &[0; 20]),
        v4(Ipv4Addr::UNSPECIFIED, ROUTERS, 6, &[0; 20]),
        v4(Ipv4Addr::UNSPECIFIED, ROUTERS, 17, &udp(68, 53, &[0; 20])),
        v6(other6, routers6(), 6, &[0; 20]),
        v6(none6, routers6(), 6, &[0; 20]),
        v6(mac(3).in_prefix(PREFIX), routers6(), 6, &[0; 20]),
        v6(mac(1).in_prefix(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0)), routers6(), 6, &[0; 20]),
        v6(mac(3).link_local(), routers6(), 17, &udp(1000, 53, &[0; 20])),
        ethernet(0x0800, &[0x45; 10]),
    ] {
        assert_eq!(net.dropped(1, &frame), DropReason::SpoofedAddress);
    }
}

#[test]
fn neighbour_discovery_for_another_is_dropped() {
    let mut net = net();
    let other6 = "fd00::6".parse().unwrap();
    let fragment = [&[58, 0, 0, 1, 0, 0, 0, 9][..], &nd(136, mine6(), Some(mac(1)))].concat();
    for frame in [
        v6(mine6(), NODES, 58, &nd(136, other6, Some(mac(1)))),
        v6(mine6(), NODES, 58, &nd(136, routers6(), Some(mac(1)))),
        v6(mine6(), NODES, 58, &nd(136, mine6(), Some(mac(2)))),
        v6(mine6(), NODES, 58, &nd(135, routers6(), Some(mac(2)))),
        v6(Ipv6Addr::UNSPECIFIED, NODES, 58, &nd(135, other6, None)),
        v6(mine6(), NODES, 44, &fragment),
        v6(mine6(), NODES, 58, &nd(136, mine6(), Some(mac(1)))[..27]),
    ] {
        assert_eq!(net.dropped(1, &frame), DropReason::SpoofedNd);
    }
}

/// What a router or a DHCP server says, and the reason it is dropped for.
fn rogue() -> Vec<(DropReason, Vec<u8>)> {
    use DropReason::{RogueDhcp, RogueRa};
    let local = mac(1).link_local();
    let advertisement = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let behind = |chain: &[u8]| [chain, &advertisement].concat();
    let local_v6 = |next, payload: &[u8]| v6(local, NODES, next, payload);
    let plain = v6_packet(local, NODES, 58, &advertisement);
    let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd][..], &plain].concat();
    vec![
        (RogueRa, local_v6(58, &advertisement)),
        (RogueRa, local_v6(58, &[137; 40])),
        (RogueRa, local_v6(0, &behind(&[58, 0, 1, 4, 0, 0, 0, 0]))),
        (RogueRa, local_v6(60, &behind(&[60, 0, 1, 4, 0, 0, 0, 0, 58, 0, 1, 4, 0, 0, 0, 0]))),
        (RogueRa, local_v6(44, &behind(&[58, 0, 0, 1, 0, 0, 0, 9]))),
        (RogueRa, local_v6(44, &[60, 0, 0, 1, 0, 0, 0, 9])),
        (RogueRa, local_v6(44, &[58, 0, 0, 1, 0, 0, 0, 9])),
        (RogueRa, local_v6(60, &[58, 20, 1, 4, 0, 0, 0, 0])),
        (RogueRa, local_v6(60, &[60, 0].repeat(40))),
        (RogueRa, tagged(local_v6(58, &advertisement), 0, 0)),
        (RogueRa, tagged(tagged(tagged(local_v6(58, &advertisement), 0, 0), 0, 0), 0, 0)),
        (RogueRa, ethernet(snap.len() as u16, &snap)),
        (RogueRa, v4(MINE, ROUTERS, 1, &[5, 1, 0, 0, 10, 0, 0, 5])),
        (RogueRa, v4(MINE, ROUTERS, 1, &[9, 0, 0, 0, 1, 2, 0, 30])),
        (RogueDhcp, v4(MINE, ALL, 17, &udp(67, 68, &[2; 240]))),
        (RogueDhcp, v4(MINE, ALL, 17, &udp(1234, 68, &[2; 240]))),
        (RogueDhcp, ethernet(0x0800, &v4_packet(MINE, ALL, 17, 0x2000, &udp(67, 68, &[])))),
        (RogueDhcp, local_v6(17, &udp(547, 546, &[2; 40]))),
        (RogueDhcp, local_v6(17, &udp(1234, 546, &[7; 40]))),
        (RogueDhcp, local_v6(44, &[&[17, 0, 0, 1, 0, 0, 0, 9][..], &udp(547, 546, &[2; 40])].concat())),
    ]
}

#[test]
fn what_routers_and_servers_say_is_dropped_from_a_guarded_port() {
    for mut net in [net(), guard_alone()] {
        for (n, (reason, frame)) in rogue().into_iter().enumerate() {
            assert_eq!(net.dropped(1, &frame), reason, "frame {n}");
        }
    }
}

#[test]
fn only_the_router_advertises_in_its_segment() {
    let mut net = net();
    for (reason, frame) in rogue() {
        assert_eq!(net.dropped(2, &from(frame.clone(), mac(2))), reason);
        assert_eq!(net.reaches(3, &from(frame, mac(3))), [1, 2]);
    }
    net.add(4, NicSpec { membership: access(10), ..NicSpec::default() }, 1);
    net.add(5, NicSpec { membership: access(10), ..NicSpec::default() }, 1);
    for (_, frame) in rogue().into_iter().filter(|(_, frame)| frame[12] != 0x81) {
        assert_eq!(net.reaches(4, &from(frame, mac(4))), [5], "its VLAN has no router");
    }
    let mut alone = guard_alone();
    for (_, frame) in rogue() {
        assert_eq!(
            alone.reaches(2, &from(frame, mac(2))),
            [1],
            "nobody is guarded against it where there is no router"
        );
    }
}

#[test]
fn nobody_speaks_for_a_declared_address_while_its_port_is_attached() {
    let mut net = net();
    let strange = "fe80::2222".parse().unwrap();
    let claims = [
        (DropReason::SpoofedArp, arp(1, mac(1), ROUTERS, MINE)),
        (DropReason::SpoofedArp, arp(2, mac(1), MINE, ROUTERS)),
        (DropReason::SpoofedArp, tagged(arp(2, mac(1), MINE, ROUTERS), 0, 0)),
        (DropReason::SpoofedNd, v6(strange, NODES, 58, &nd(136, routers6(), None))),
        (DropReason::SpoofedNd, v6(strange, NODES, 58, &nd(136, mine6(), None))),
        (DropReason::SpoofedNd, v6(strange, NODES, 58, &nd(136, mac(1).link_local(), None))),
        (DropReason::SpoofedNd, v6(routers6(), NODES, 58, &nd(135, mine6(), Some(mac(1))))),
    ];
    for (n, (reason, frame)) in claims.iter().enumerate() {
        assert_eq!(net.dropped(2, &from(frame.clone(), mac(2))), *reason, "claim {n}");
    }
    assert_eq!(
        net.reaches(2, &from(arp(1, mac(1), Ipv4Addr::UNSPECIFIED, ROUTERS), mac(2))),
        [1, 3],
        "a probe claims nothing"
    );
    net.bridge.remove_nic(wire::NicId(3));
    net.bridge.remove_nic(wire::NicId(1));
    net.add(1, NicSpec::default(), 1);
    for (_, frame) in &claims {
        assert_eq!(net.reaches(2, &from(frame.clone(), mac(2))), [1], "nobody is declared any more");
    }
}

#[test]
fn a_spoofed_frame_in_a_burst_of_good_ones_is_found() {
    use wire::Offload;
    let mut net = net();
    // So that the destination is known and the decision can be remembered.
    net.send(3, &from(arp(1, mac(3), ROUTERS, MINE), mac(3)));
    let to_router = |mut frame: Vec<u8>| {
        frame[..6].copy_from_slice(&mac(3).bytes());
        (frame, Offload::NONE)
    };
    let good = to_router(v4(MINE, ROUTERS, 6, &[0; 20]));
    let bad = to_router(v4(ROUTERS, MINE, 6, &[0; 20]));
    let burst = [good.clone(), bad.clone(), good.clone(), good.clone(), bad.clone(), bad, good];
    assert_eq!(net.burst(1, &burst).len(), 4);
    assert_eq!(net.cx.counters(wire::NicId(1)).unwrap().drops(DropReason::SpoofedAddress), 3);
}

#[test]
fn a_spoofed_frame_teaches_nothing() {
    let mut net = net();
    net.dropped(2, &from(arp(1, mac(1), ROUTERS, MINE), mac(9)));
    assert!(net.bridge.fdb_entries(net.now()).iter().all(|entry| entry.mac != mac(9)));
}

#[test]
fn a_guarded_port_without_addresses_may_use_any_but_declared_ones() {
    let mut net = guard_alone();
    for frame in clean() {
        assert_eq!(net.reaches(1, &frame), [2]);
    }
    assert_eq!(net.reaches(1, &arp(1, mac(1), Ipv4Addr::new(192, 0, 2, 1), MINE)), [2]);
    assert_eq!(net.dropped(1, &arp(1, mac(2), MINE, MINE)), DropReason::SpoofedArp);
}

proptest! {
    #[test]
    fn any_bytes_leave_a_guarded_port_as_its_own_or_not_at_all(
        kind in prop::sample::select(vec![0x0800u16, 0x86dd, 0x0806, 0x8100, 40]),
        start in prop::sample::select(vec![0x45u8, 0x4f, 0x60, 0, 0xaa]),
        rest in prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 6, 17, 43, 44, 58, 60, 67, 68, 134, 136, 0x45, 0x86, 0xdd, 255]), 0..150),
    ) {
        let mut payload = vec![start];
        payload.extend(rest);
        let mut net = net();
        let frame = ethernet(kind, &payload);
        let reached = !net.reaches(1, &frame).is_empty();
        if reached && kind == 0x0800 && payload.len() >= 20 {
            let source = &payload[12..16];
            prop_assert!(source == MINE.octets() || source == [0; 4]);
        }
    }

    #[test]
    fn honest_frames_with_any_payload_pass(payload in prop::collection::vec(any::<u8>(), 20..400), n in 0..4usize) {
        let mut net = net();
        let frame = match n {
            0 => v4(MINE, ROUTERS, 6, &payload),
            1 => v4(MINE, ROUTERS, 17, &udp(40_000, 53, &payload)),
            2 => v6(mine6(), routers6(), 6, &payload),
            _ => v6(mine6(), routers6(), 17, &udp(40_000, 53, &payload)),
        };
        prop_assert_eq!(net.reaches(1, &frame), vec![2, 3]);
    }
}
