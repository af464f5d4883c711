//! A tunnel endpoint in a network of ours: what it says there, what it answers, and what its packets look like to others.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use proptest::prelude::*;
use wire::{DropReason, Gso, Mac, NicId, Offload};
use world::{GUEST, Host, Hub, Net, Owing, UNDER, Under, address, host, mac_of, settle, tcp, udp};

/// Two endpoints of the IP version asked for, and the hub with somebody who looks on.
fn pair(v6: bool, checksum: bool) -> (Host, Host, Hub) {
    let hub = Hub::default();
    let under = Under::Station { hub: hub.clone(), checksum };
    let (one, two) = (address(1, v6), address(2, v6));
    let mut a = host(&under, one, 4789, 1500, &[Net::new(5001, &[two])]);
    let mut b = host(&under, two, 4789, 1500, &[Net::new(5001, &[one])]);
    settle(&mut [&mut a, &mut b]);
    hub.borrow_mut().push(VecDeque::new());
    (a, b, hub)
}

fn seen(hub: &Hub) -> Vec<Owing> {
    hub.borrow_mut()[2].drain(..).collect()
}

/// One endpoint alone, and what it says.
fn alone(v6: bool, net: Net) -> (Host, Hub) {
    let hub = Hub::default();
    let host = host(&Under::Station { hub: hub.clone(), checksum: false }, address(1, v6), 4789, 1500, &[net]);
    hub.borrow_mut().push(VecDeque::new());
    (host, hub)
}

fn said(hub: &Hub) -> Vec<Vec<u8>> {
    hub.borrow_mut()[1].drain(..).map(|(bytes, _)| bytes).collect()
}

fn arp(operation: u8, (mac, by): (Mac, IpAddr), target: IpAddr) -> Vec<u8> {
    let (IpAddr::V4(by), IpAddr::V4(target)) = (by, target) else { panic!("no IPv4") };
    let fixed = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&[0xff; 6][..], &mac.bytes(), &fixed, &mac.bytes(), &by.octets(), &[0; 6], &target.octets()].concat()
}

/// The inner frame of a packet and the UDP source port, after its headers were found right.
fn opened(bytes: &[u8], v6: bool, checksum: bool) -> (Vec<u8>, u16) {
    let packet = etherparse::SlicedPacket::from_ethernet(bytes).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = &packet.transport else { panic!("no UDP: {bytes:x?}") };
    let payload = udp.payload().to_vec();
    assert_eq!((udp.destination_port(), usize::from(udp.length())), (4789, payload.len() + 8));
    assert!(udp.source_port() >= 49_152);
    match packet.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert!(!v6 && header.dont_fragment && header.time_to_live == 64);
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let right = udp.to_header().calc_checksum_ipv4(&header, &payload).unwrap();
            assert_eq!(udp.checksum(), if checksum { right } else { 0 });
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert!(v6 && usize::from(header.payload_length) == payload.len() + 8);
            assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv6(&header, &payload).unwrap());
        }
        _ => panic!("no IP"),
    }
    assert_eq!(payload[..8], [8, 0, 0, 0, 0, 0x13, 0x89, 0]);
    (payload[8..].to_vec(), udp.source_port())
}

#[test]
fn packets_are_whole_and_right_and_flows_have_their_ports() {
    for (v6, checksum) in [(false, false), (false, true), (true, false)] {
        let (mut a, mut b, hub) = pair(v6, checksum);
        let mut ports = Vec::new();
        for inner in [udp(2, 18, false, true), udp(2, 90, true, true), udp(2, 1300, true, true)] {
            a.send(0, &[(inner.clone(), Offload::NONE)]);
            let [(packet, offload)] = &seen(&hub)[..] else { panic!("one packet") };
            assert!(offload.is_none());
            let (frame, port) = opened(packet, v6, checksum);
            assert!(frame == inner);
            ports.push(port);
            let [(0, frame, offload)] = &b.turn()[..] else { panic!("one frame") };
            assert!(*frame == inner && offload.is_none());
        }
        assert_eq!(ports[1], ports[2], "one flow");
        assert_ne!(ports[0], ports[1]);
    }
}

#[test]
fn what_a_frame_owes_it_owes_still_and_the_outer_checksum_counts_it() {
    for (v6, checksum) in [(false, true), (true, true)] {
        let (mut a, mut b, hub) = pair(v6, checksum);
        a.send(0, &[tcp(5000, 1300)]);
        let packets = seen(&hub);
        assert_eq!(packets.len(), 4);
        let off: usize = if v6 { 70 } else { 50 };
        for (packet, offload) in &packets {
            assert_eq!((offload.gso(), usize::from(offload.checksum_start())), (Gso::None, off + 34));
            // Whoever takes it out of the network completes it: the outer checksum is right then.
            let (mut whole, at) = (packet.clone(), off + 34);
            let mut sum = wire::checksum::Checksum::new();
            sum.add_bytes(&whole[at..]);
            whole[at + 16..at + 18].copy_from_slice(&sum.finish().to_be_bytes());
            opened(&whole, v6, checksum);
        }
        let got = b.turn();
        assert_eq!(got.iter().map(|(_, bytes, _)| bytes.len() - 54).sum::<usize>(), 5000);
        assert!(got.iter().all(|(_, _, offload)| offload.checksum_start() == 34 && offload.needs_checksum()));
    }
}

#[test]
fn packets_that_came_as_one_super_frame_are_taken_one_by_one() {
    let (mut a, mut b, hub) = pair(false, false);
    let inner: Vec<Vec<u8>> = (0..3).map(|_| udp(2, 1000, false, true)).collect();
    a.send(0, &[(inner[0].clone(), Offload::NONE)]);
    let (packet, _) = seen(&hub).remove(0);
    b.turn();
    let one = &packet[42..];
    let mut whole = [&packet[..42], one, one, &one[..500]].concat();
    let len = (whole.len() - 14) as u16;
    whole[16..18].copy_from_slice(&len.to_be_bytes());
    whole[38..40].copy_from_slice(&(len - 20).to_be_bytes());
    let owing = Offload::new(Gso::Udp, 42, one.len() as u16, 34, 6);
    let got = b.come(&[(whole, owing)]);
    assert_eq!(got.iter().map(|(_, bytes, _)| bytes.len()).collect::<Vec<_>>(), [1042, 1042, 492]);
    assert!(got[0].1 == inner[0] && got[1].1 == inner[0] && got[2].1 == inner[0][..492]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Every frame ends as taken or with a counted reason; the books are looked at after each.
    #[test]
    fn whatever_comes_is_taken_or_counted(
        kind in 0..5usize,
        v6 in any::<bool>(),
        cut in 0..200usize,
        changes in prop::collection::vec((0..140usize, any::<u8>()), 0..4),
        start in 0..160u16,
    ) {
        let (mut a, mut b, hub) = pair(v6, true);
        let frame = match kind {
            0 | 1 => {
                a.send(0, &[(udp(2, if kind == 0 { 20 } else { 900 }, false, true), Offload::NONE)]);
                seen(&hub).remove(0).0
            }
            2 => icmp4([8, 0], [0; 4], &[7; 40]),
            3 => icmp4([3, 4], [0, 0, 2, 0], &[0x45; 40]),
            _ => arp(1, (Mac::new([2, 3, 3, 3, 3, 3]), address(1, false)), address(2, false)),
        };
        b.turn();
        let mut bytes = frame;
        for (at, value) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = value;
            }
        }
        bytes.truncate(bytes.len().saturating_sub(cut).max(14));
        let owing = Offload::new(if cut % 2 == 0 { Gso::None } else { Gso::Udp }, 0, 100, start, 6);
        let owing = owing.checked(bytes.len()).unwrap_or(Offload::NONE);
        let before = b.cx.ledger.dropped + b.cx.ledger.transmitted;
        b.come(&[(bytes.clone(), Offload::NONE)]);
        b.come(&[(bytes, owing)]);
        prop_assert!(b.cx.ledger.dropped + b.cx.ledger.transmitted >= before + 2);
    }
}

#[test]
fn it_announces_itself_asks_for_its_peers_and_is_asked() {
    for v6 in [false, true] {
        let peer = address(2, v6);
        let (mut a, hub) = alone(v6, Net::new(5001, &[peer]));
        let mut all = Vec::new();
        for _ in 0..20 {
            a.turn();
            all.extend(said(&hub));
            a.now = a.now + Duration::from_secs(1);
        }
        // Three announcements, three questions, and then one in ten seconds.
        assert_eq!(all.len(), 3 + 4);
        assert!(all.iter().all(|frame| frame[6..12] == mac_of(address(1, v6)).bytes()));
        let to: Vec<&[u8]> = all.iter().map(|frame| &frame[..6]).collect();
        if v6 {
            assert_eq!(to[..2], [&[0x33, 0x33, 0, 0, 0, 1], &[0x33, 0x33, 0xff, 0, 0, 2]]);
            assert!(all.iter().all(|frame| wire::icmp::sum_v6(frame) == Some([0; 2]) && frame[21] == 255));
        } else {
            assert_eq!(to[..2], [&[0xff; 6], &[0xff; 6]]);
            assert_eq!((&all[0][38..42], &all[1][38..42]), (&[127, 0, 9, 1][..], &[127, 0, 9, 2][..]));
        }
        // A packet has no way until somebody answers.
        a.send(0, &[(udp(2, 18, false, true), Offload::NONE)]);
        assert_eq!(a.drops(0, DropReason::Unresolved), 1);
        assert!(said(&hub).is_empty(), "questions are paced");
    }
    let (mut a, hub) = alone(false, Net::new(5001, &[address(2, false)]));
    a.turn();
    said(&hub);
    let other = (Mac::new([2, 9, 9, 9, 9, 9]), address(2, false));
    a.come(&[(arp(1, other, address(1, false)), Offload::NONE)]);
    let [answer] = &said(&hub)[..] else { panic!("an answer") };
    assert_eq!((&answer[..6], answer[21], &answer[28..32]), (&other.0.bytes()[..], 2, &[127, 0, 9, 1][..]));
    // Who asked is known.
    a.send(0, &[(udp(2, 18, false, true), Offload::NONE)]);
    assert_eq!(said(&hub)[0][..6], other.0.bytes());
    // Nobody is filled in whom no packet goes to, and a group is nobody's MAC.
    a.come(&[(arp(2, (Mac::new([3; 6]), address(2, false)), address(1, false)), Offload::NONE)]);
    a.send(0, &[(udp(2, 18, false, true), Offload::NONE)]);
    assert_eq!(said(&hub)[0][..6], other.0.bytes());
}

/// A message of neighbour discovery from `mac`, with its checksum right.
fn discovery(mac: Mac, [from, to]: [&str; 2], kind: u8, flags: u8, target: IpAddr, options: &[u8]) -> Vec<u8> {
    let (from, to): (std::net::Ipv6Addr, std::net::Ipv6Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let IpAddr::V6(target) = target else { panic!("IPv6") };
    let fixed = [0x86, 0xdd, 0x60, 0, 0, 0, 0, 24 + options.len() as u8, 58, 255];
    let addresses = [&fixed[..], &from.octets(), &to.octets()].concat();
    let message = [&[kind, 0, 0, 0, flags, 0, 0, 0][..], &target.octets(), options].concat();
    let mut bytes = [&mac_of(address(1, true)).bytes()[..], &mac.bytes(), &addresses, &message].concat();
    let sum = wire::icmp::sum_v6(&bytes).unwrap();
    bytes[56..58].copy_from_slice(&sum);
    bytes
}

#[test]
fn only_what_a_neighbour_says_rightly_of_itself_is_believed() {
    let (right, wrong) = (Mac::new([2, 9, 9, 9, 9, 9]), Mac::new([2, 8, 8, 8, 8, 8]));
    let goes_to = |a: &mut Host, hub: &Hub| {
        said(hub);
        a.send(0, &[(udp(2, 18, false, true), Offload::NONE)]);
        said(hub).first().map(|frame| Mac::new(frame[..6].try_into().unwrap()))
    };
    let (mut a, hub) = alone(false, Net::new(5001, &[address(2, false)]));
    a.turn();
    assert!(said(&hub).iter().all(|frame| frame.len() == 60), "no frame is shorter on the wire");
    a.come(&[(arp(2, (right, address(2, false)), address(1, false)), Offload::NONE)]);
    for operation in [0, 3, 4, 9] {
        a.come(&[(arp(operation, (wrong, address(2, false)), address(1, false)), Offload::NONE)]);
        assert_eq!(goes_to(&mut a, &hub), Some(right), "operation {operation}");
    }
    // Who looks whether our address is free is told that it is not.
    a.come(&[(arp(1, (wrong, [0; 4].into()), address(1, false)), Offload::NONE)]);
    let [answer] = &said(&hub)[..] else { panic!("an answer") };
    assert_eq!(
        (answer.len(), &answer[..6], answer[21], &answer[28..32]),
        (60, &wrong.bytes()[..], 2, &[127, 0, 9, 1][..])
    );
    a.come(&[(arp(1, (wrong, [0; 4].into()), address(3, false)), Offload::NONE)]);
    assert!(said(&hub).is_empty(), "of another address nothing");

    let (mut a, hub) = alone(true, Net::new(5001, &[address(2, true)]));
    a.turn();
    let option = |kind: u8, mac: Mac| [&[kind, 1][..], &mac.bytes()].concat();
    let both = ["fd09::2", "fd09::1"];
    let peer = address(2, true);
    a.come(&[(discovery(right, both, 136, 0x60, peer, &option(2, right)), Offload::NONE)]);
    assert_eq!(goes_to(&mut a, &hub), Some(right));
    for (options, why) in [
        (option(2, right), "it names another MAC than it comes from"),
        ([&[0, 0, 0, 0, 0, 0, 0, 0][..], &option(2, wrong)].concat(), "an option without length"),
    ] {
        a.come(&[(discovery(wrong, both, 136, 0x60, peer, &options), Offload::NONE)]);
        assert_eq!(goes_to(&mut a, &hub), Some(right), "{why}");
    }
    // To who asked it alone a neighbour need not say its MAC.
    a.come(&[(discovery(wrong, both, 136, 0x40, peer, &[]), Offload::NONE)]);
    assert_eq!(goes_to(&mut a, &hub), Some(wrong));
    said(&hub);
    let free = discovery(wrong, ["::", "ff02::1:ff00:1"], 135, 0, address(1, true), &[]);
    a.come(&[(free, Offload::NONE)]);
    let [answer] = &said(&hub)[..] else { panic!("an answer") };
    assert_eq!((&answer[..6], answer[54], answer[58]), (&[0x33, 0x33, 0, 0, 0, 1][..], 136, 0x20), "to everybody");
    assert_eq!(wire::icmp::sum_v6(answer), Some([0; 2]));
}

#[test]
fn a_peer_that_moves_is_followed_and_one_elsewhere_is_behind_the_gateway() {
    let far: IpAddr = [10, 9, 9, 9].into();
    let (mut a, hub) = alone(false, Net::new(5001, &[far]));
    a.turn();
    let gateway = (Mac::new([2, 1, 1, 1, 1, 1]), IpAddr::from([127, 0, 9, 254]));
    assert_eq!(said(&hub)[1][38..42], [127, 0, 9, 254], "it is the gateway that is asked for");
    for mac in [gateway.0, Mac::new([2, 1, 1, 1, 1, 2])] {
        a.come(&[(arp(2, (mac, gateway.1), address(1, false)), Offload::NONE)]);
        a.send(0, &[(udp(2, 18, false, true), Offload::NONE)]);
        let packet = &said(&hub)[0];
        assert_eq!((&packet[..6], &packet[30..34]), (&mac.bytes()[..], &[10, 9, 9, 9][..]));
    }
}

fn icmp4(kind: [u8; 2], rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let ethernet = etherparse::PacketBuilder::ethernet2([2, 7, 7, 7, 7, 7], mac_of(address(1, false)).bytes());
    let mut bytes = Vec::new();
    let IpAddr::V4(us) = address(1, false) else { panic!("IPv4") };
    let packet = ethernet.ipv4([127, 0, 9, 7], us.octets(), 9).icmpv4_raw(kind[0], kind[1], rest);
    packet.write(&mut bytes, payload).unwrap();
    bytes
}

fn icmp6(kind: [u8; 2], rest: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let ethernet = etherparse::PacketBuilder::ethernet2([2, 7, 7, 7, 7, 7], mac_of(address(1, true)).bytes());
    let mut bytes = Vec::new();
    let (IpAddr::V6(us), IpAddr::V6(router)) = (address(1, true), address(7, true)) else { panic!("IPv6") };
    let packet = ethernet.ipv6(router.octets(), us.octets(), 9).icmpv6_raw(kind[0], kind[1], rest);
    packet.write(&mut bytes, payload).unwrap();
    bytes
}

/// The beginning of a packet that the first endpoint has sent to another.
fn quoted4(to: u8) -> Vec<u8> {
    let fixed = [0x45, 0, 5, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 9, 1, 127, 0, 9, to];
    [&fixed[..], &[0xc0, 0, 0x12, 0xb5, 4, 0xec, 0, 0]].concat()
}

fn quoted6(to: u8) -> Vec<u8> {
    let (IpAddr::V6(us), IpAddr::V6(to)) = (address(1, true), address(to, true)) else { panic!("IPv6") };
    let fixed = [0x60, 0, 0, 0, 5, 0, 17, 64];
    [&fixed[..], &us.octets(), &to.octets(), &[0xc0, 0, 0x12, 0xb5, 5, 0, 0, 0]].concat()
}

#[test]
fn pings_are_answered_and_what_routers_say_of_the_path_is_followed() {
    let (mut a, mut b, hub) = pair(false, false);
    a.come(&[(icmp4([8, 0], [0, 1, 0, 2], b"are you there"), Offload::NONE)]);
    let [(pong, _)] = &seen(&hub)[..] else { panic!("an answer") };
    let packet = etherparse::SlicedPacket::from_ethernet(pong).unwrap();
    let Some(etherparse::TransportSlice::Icmpv4(icmp)) = packet.transport else { panic!("no ICMP") };
    assert_eq!((icmp.type_u8(), icmp.bytes5to8(), icmp.payload()), (0, [0, 1, 0, 2], &b"are you there"[..]));
    assert_eq!(icmp.checksum(), icmp.header().icmp_type.calc_checksum(icmp.payload()));
    b.turn();
    // A router quotes what we sent.
    a.send(0, &[(udp(2, 1300, false, true), Offload::NONE)]);
    let (sent, _) = seen(&hub).remove(0);
    a.come(&[(icmp4([3, 4], [0, 0, 0x05, 0x00], &sent[14..42]), Offload::NONE)]);
    let told = a.send(0, &[(udp(2, 1300, false, true), Offload::NONE)]);
    assert_eq!(u16::from_be_bytes([told[0][40], told[0][41]]), 1280 - 50);
    // Of what we did not send nothing is learnt.
    let mut other = sent[14..42].to_vec();
    other[15] = 77;
    a.come(&[(icmp4([3, 4], [0, 0, 0x03, 0x00], &other), Offload::NONE)]);
    assert_eq!(a.port.vtep().fits(overlay::NetworkId(0), overlay::vtep::Way::All), 1230);
}

#[test]
fn a_narrow_path_is_tried_again_and_what_no_path_is_is_not_believed() {
    for v6 in [false, true] {
        let (mut a, _, _) = pair(v6, true);
        let around = if v6 { 70 } else { 50 };
        let too_big = |mtu: u16| {
            let quoted = if v6 { quoted6(2) } else { quoted4(2) };
            (
                if v6 {
                    icmp6([2, 0], u32::from(mtu).to_be_bytes(), &quoted)
                } else {
                    icmp4([3, 4], u32::from(mtu).to_be_bytes(), &quoted)
                },
                Offload::NONE,
            )
        };
        let fits = |host: &Host| host.port.vtep().fits(overlay::NetworkId(0), overlay::vtep::Way::All);
        let least = if v6 { 1280 } else { 576 };
        for mtu in [0, 68, least - 1] {
            a.come(&[too_big(mtu)]);
            assert_eq!(fits(&a), 1500 - around, "{mtu}");
        }
        a.come(&[too_big(1400)]);
        a.now = a.now + Duration::from_secs(500);
        a.come(&[too_big(least)]);
        assert_eq!(fits(&a), least - around);
        a.now = a.now + Duration::from_secs(599);
        a.turn();
        assert_eq!(fits(&a), least - around);
        a.now = a.now + Duration::from_secs(1);
        a.turn();
        assert_eq!(fits(&a), 1500 - around, "ten minutes after it became narrow");
    }
}

#[test]
fn pings_of_one_guest_keep_nobody_from_being_answered() {
    let (mut a, hub) = alone(false, Net::new(5001, &[address(2, false)]));
    a.turn();
    said(&hub);
    let (guest, other) = (GUEST, NicId(7));
    let ping = || (icmp4([8, 0], [0; 4], b"ping"), Offload::NONE);
    let pings = |n: usize| std::iter::repeat_with(ping).take(n).collect::<Vec<_>>();
    for _ in 0..40 {
        a.come_from(guest, &pings(50));
    }
    assert_eq!(said(&hub).len(), 1000, "so many in a second");
    let question = (arp(1, (Mac::new([2, 3, 3, 3, 3, 3]), [127, 0, 9, 3].into()), address(1, false)), Offload::NONE);
    for nic in [guest, other] {
        a.come_from(nic, std::slice::from_ref(&question));
        assert_eq!(said(&hub).len(), 1, "who asks where we are is told");
    }
    a.come_from(other, &pings(3));
    assert_eq!(said(&hub).len(), 3, "and so is another that pings");
    a.now = a.now + Duration::from_secs(1);
    a.come_from(guest, &pings(1));
    assert_eq!(said(&hub).len(), 1);
}

#[test]
fn groups_are_told_once_in_a_while_and_only_to_a_right_query() {
    let group: IpAddr = "ff05::77:1".parse().unwrap();
    let (mut a, hub) = alone(true, Net { vni: 5001, group: Some(group), ..Net::default() });
    for _ in 0..5 {
        a.turn();
        a.now = a.now + Duration::from_secs(1);
    }
    said(&hub);
    let query = |from: &str, hops: u8| {
        let from: std::net::Ipv6Addr = from.parse().unwrap();
        let to: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
        let fixed = [0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 0, hops];
        let options = [58, 0, 5, 2, 0, 0, 1, 0];
        let mut message = [&[130, 0, 0, 0, 0x27, 0x10, 0, 0][..], &[0; 16]].concat();
        let mut sum = wire::checksum::Checksum::pseudo_v6(from.octets(), to.octets(), 58, 24);
        sum.add_bytes(&message);
        message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        let addresses = [&[0x33, 0x33, 0, 0, 0, 1][..], &[2, 7, 7, 7, 7, 7]].concat();
        let bytes = [&addresses[..], &fixed, &from.octets(), &to.octets(), &options, &message].concat();
        (bytes, Offload::NONE)
    };
    let mut damaged = query("fe80::7", 1);
    damaged.0[67] ^= 1;
    for (wrong, why) in [
        (query("fe80::7", 2), "not of this link"),
        (query("fd09::7", 1), "not a link-local source"),
        (damaged, "a wrong checksum"),
    ] {
        a.come(&[wrong]);
        a.now = a.now + Duration::from_secs(1);
        a.turn();
        assert_eq!(said(&hub).len(), 0, "{why}");
    }
    for _ in 0..50 {
        a.come(&vec![query("fe80::7", 1); 50]);
    }
    assert_eq!(said(&hub).len(), 0);
    a.now = a.now + Duration::from_secs(1);
    a.turn();
    let reports = said(&hub);
    assert_eq!((reports.len(), reports[0][62]), (1, 131), "one report of one group");
    a.now = a.now + Duration::from_secs(1);
    a.turn();
    assert_eq!(said(&hub).len(), 0);
}

#[test]
fn copies_that_there_is_no_room_for_are_counted() {
    let peers: Vec<IpAddr> = (2..102).map(|n| address(n, false)).collect();
    let (mut a, _) = alone(false, Net::new(5001, &peers));
    let mut frame = udp(2, 40, false, true);
    frame[..6].fill(0xff);
    a.send(0, &vec![(frame, Offload::NONE); 64]);
    let (unresolved, lost) = (a.drops(0, DropReason::Unresolved), a.drops(0, DropReason::NoHeads));
    assert!(lost > 0 && lost < 64, "{lost}");
    assert!(unresolved >= (64 - lost) * 100, "{unresolved} copies, {lost} frames without room");
}

#[test]
fn what_is_no_whole_packet_for_it_is_counted() {
    let (mut a, mut b, hub) = pair(false, true);
    a.send(0, &[(udp(2, 100, false, true), Offload::NONE)]);
    let (packet, _) = seen(&hub).remove(0);
    let mut wrong = packet.clone();
    wrong[60] ^= 1;
    let mut cut = packet.clone();
    cut[20] = 0x20;
    // Of nobody that is known.
    cut[29] = 77;
    cut[24..26].fill(0);
    let sum = wire::bytes::sum(&cut[14..34]);
    cut[24..26].copy_from_slice(&sum);
    let mut header = packet.clone();
    header[24] ^= 1;
    let mut elsewhere = packet.clone();
    elsewhere[0] = 4;
    let owing = Offload::new(Gso::None, 0, 0, 34, 6);
    b.turn();
    for bytes in [wrong.clone(), cut, header, elsewhere] {
        assert!(b.come(&[(bytes, Offload::NONE)]).is_empty());
    }
    let drops = |b: &Host, reason| b.drops(UNDER.0, reason);
    assert_eq!(drops(&b, DropReason::BadPacket), 1, "the checksum is wrong");
    assert_eq!((drops(&b, DropReason::OuterFragment), drops(&b, DropReason::NotForTunnel)), (1, 2));
    assert_eq!(b.come(&[(wrong, owing)]).len(), 1, "one that is owed is not looked at");
    assert_eq!(b.cx.counters(NicId(0)).unwrap().rx_frames, 2);
}

/// A packet in pieces, each with so many bytes of it behind the IP header.
fn pieces(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let v6 = packet[12..14] == [0x86, 0xdd];
    let body = &packet[if v6 { 54 } else { 34 }..];
    let last = (body.len() - 1) / size;
    let piece = |(n, part): (usize, &[u8])| {
        let more = u16::from(n < last);
        let mut bytes = packet[..packet.len() - body.len()].to_vec();
        if v6 {
            bytes[18..20].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
            bytes[20] = 44;
            let [high, low] = ((n * size) as u16 | more).to_be_bytes();
            bytes.extend([17, 0, high, low, 0, 0, 0, 9]);
        } else {
            bytes[16..18].copy_from_slice(&(part.len() as u16 + 20).to_be_bytes());
            bytes[20..22].copy_from_slice(&((n * size / 8) as u16 | more << 13).to_be_bytes());
            bytes[24..26].fill(0);
            let sum = wire::bytes::sum(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&sum);
        }
        [&bytes, part].concat()
    };
    body.chunks(size).enumerate().map(piece).collect()
}

#[test]
fn a_packet_that_was_cut_on_its_way_is_put_together_if_a_peer_has_sent_it() {
    for v6 in [false, true] {
        let (mut a, mut b, hub) = pair(v6, true);
        let sent = udp(2, 1400, false, true);
        a.send(0, &[(sent.clone(), Offload::NONE)]);
        let (packet, _) = seen(&hub).remove(0);
        b.turn();
        let mut all = pieces(&packet, 600);
        assert_eq!(all.len(), 3);
        all.reverse();
        let last = all.pop().unwrap();
        for piece in all {
            assert!(b.come(&[(piece, Offload::NONE)]).is_empty());
        }
        let got = b.come(&[(last, Offload::NONE)]);
        assert!(got.len() == 1 && got[0].1 == sent, "v6 {v6}: {} frames", got.len());
        // One that never becomes whole is given up, and one that was changed is not believed.
        let mut parts = pieces(&packet, 600);
        parts[1][100] ^= 1;
        for piece in parts {
            assert!(b.come(&[(piece, Offload::NONE)]).is_empty());
        }
        assert_eq!(b.drops(UNDER.0, DropReason::BadPacket), 1);
    }
}

#[test]
fn frames_to_everybody_go_to_the_group_and_who_speaks_there_is_learnt() {
    for v6 in [false, true] {
        let group: IpAddr = if v6 { "ff05::77:1".parse().unwrap() } else { [239, 129, 1, 1].into() };
        let net = || Net { vni: 5001, group: Some(group), ..Net::default() };
        let hub = Hub::default();
        let under = Under::Station { hub: hub.clone(), checksum: false };
        let mut hosts = [1, 2, 3].map(|n| host(&under, address(n, v6), 4789, 1500, &[net()]));
        hub.borrow_mut().push(VecDeque::new());
        hosts[0].turn();
        let reports: Vec<Vec<u8>> = hub.borrow_mut()[3].drain(..).map(|(bytes, _)| bytes).collect();
        let mac = if v6 { [0x33, 0x33, 0, 0x77, 0, 1] } else { [1, 0, 0x5e, 1, 1, 1] };
        assert_eq!((reports.len(), &reports[1][..6]), (2, &mac[..]), "an announcement, and a report");
        let at = if v6 { 62 } else { 38 };
        assert_eq!(reports[1][at], if v6 { 131 } else { 0x16 });
        settle(&mut hosts.each_mut());
        let mut frame = udp(2, 40, false, true);
        frame[..6].fill(0xff);
        hosts[0].send(0, &[(frame.clone(), Offload::NONE)]);
        let packets: Vec<Owing> = hub.borrow_mut()[3].drain(..).collect();
        let (packet, _) = packets.last().unwrap();
        assert_eq!(packet[..6], mac);
        assert_eq!(hosts[0].cx.ledger.copied, 0, "one for all");
        for other in &mut hosts[1..] {
            let got = other.turn();
            assert_eq!(got.iter().filter(|(_, bytes, _)| *bytes == frame).count(), 1);
        }
        // The answer is for one: its MAC is asked for, and then it goes there alone.
        let mut answer = udp(1, 40, false, true);
        answer[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        hosts[1].send(0, &[(answer.clone(), Offload::NONE)]);
        settle(&mut hosts.each_mut());
        hosts[1].send(0, &[(answer.clone(), Offload::NONE)]);
        let got = hosts[0].turn();
        assert_eq!(got.iter().filter(|(_, bytes, _)| *bytes == answer).count(), 1);
        assert!(hosts[2].turn().is_empty() && hosts[2].drops(UNDER.0, DropReason::NotForTunnel) > 0);
    }
}
