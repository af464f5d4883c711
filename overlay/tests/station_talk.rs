//! A tunnel endpoint in a network of ours: what it says there, what it answers, and what it believes.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{net::IpAddr, time::Duration};

use wire::{DropReason, Mac, NicId, Offload};
use world::{
    GUEST, Host, Hub, Net, address, mac_of,
    station::{alone, arp, icmp4, pair, said, seen},
    udp,
};

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
        // Three announcements, three questions, and then after two, four and eight seconds.
        assert_eq!(all.len(), 3 + 6);
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
