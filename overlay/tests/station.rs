//! A tunnel endpoint in a network of ours: what its packets look like to others, and which it takes.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{collections::VecDeque, net::IpAddr};

use proptest::prelude::*;
use wire::{DropReason, Gso, Mac, NicId, Offload};
use world::{
    Host, Hub, Net, Owing, UNDER, Under, address, host, settle,
    station::{alone, arp, icmp4, opened, pair, seen},
    tcp, udp,
};

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
        // One that was changed is not believed.
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
