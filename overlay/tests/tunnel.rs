//! Two tunnel ports: what goes into one comes out of the other, over sockets of the host and over a network of ours.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod world;

use std::{
    net::{IpAddr, UdpSocket},
    time::Duration,
};

use overlay::Encapsulation;
use wire::{Burst, DropReason, Gso, NicId, Offload, Origin, Port};
use world::{GUEST, Host, Net, Under, address, free_port, host, settle, tcp, udp, vni};

fn pair(under: &Under, mtu: u16) -> (Host, Host) {
    let (a, b) = (address(1, false), address(2, false));
    let port = free_port(a);
    let mut one = host(under, a, port, mtu, &[Net::new(5001, &[b]), Net::new(5002, &[b])]);
    let mut two = host(under, b, port, mtu, &[Net::new(5001, &[a]), Net::new(5002, &[a])]);
    settle(&mut [&mut one, &mut two]);
    (one, two)
}

#[test]
fn frames_of_each_network_arrive_in_it_unchanged() {
    for under in Under::all() {
        let (mut a, mut b) = pair(&under, 65_535);
        let frames: Vec<(Vec<u8>, Offload)> =
            [18, 100, 1400, 9000].map(|len| (udp(2, len, len == 100, true), Offload::NONE)).into();
        for network in [0, 1] {
            assert!(a.send(network, &frames).is_empty());
            let got = b.receive(4);
            assert_eq!(got.len(), 4);
            // Flows leave by different sockets, so only frames of one flow keep their order.
            for (sent, _) in &frames {
                let same = got
                    .iter()
                    .filter(|(came_in, bytes, offload)| *came_in == network && bytes == sent && offload.is_none());
                assert_eq!(same.count(), 1);
            }
        }
        // Who was heard is known: the answer goes to that endpoint.
        assert_eq!(b.port.vtep().stations(b.now).count(), 2);
    }
}

#[test]
fn many_frames_of_one_flow_go_together_and_none_is_lost_or_changed() {
    for under in Under::all() {
        let (mut a, mut b) = pair(&under, 1500);
        let frames: Vec<(Vec<u8>, Offload)> =
            (0..64).map(|n| (udp(2, if n % 20 == 19 { 30 } else { 64 }, false, true), Offload::NONE)).collect();
        a.send(0, &frames);
        let got = b.receive(64);
        assert_eq!(got.len(), 64);
        assert!(got.iter().zip(&frames).all(|((_, bytes, _), (sent, _))| bytes == sent));
        assert_eq!(a.cx.counters(NicId(0)).unwrap().tx_frames, 64);
    }
}

#[test]
fn a_super_frame_is_cut_once_and_put_together_again() {
    for under in [Under::Sockets, Under::Sealed] {
        let (mut a, mut b) = pair(&under, 1500);
        let size = under.fits(1500) - 50;
        let whole = tcp(50_000, size);
        a.send(0, std::slice::from_ref(&whole));
        let got = b.receive(1);
        let bytes: usize = got.iter().map(|(_, bytes, _)| bytes.len() - 54).sum();
        assert_eq!(bytes, 50_000);
        let [(_, bytes, offload)] = &got[..] else { panic!("{} frames", got.len()) };
        assert_eq!((offload.gso(), offload.segment_size()), (Gso::Tcp4, size));
        assert!(bytes[54..] == whole.0[54..]);
    }
}

#[test]
fn super_frames_of_one_burst_leave_in_long_runs_though_a_batch_has_no_room_for_all() {
    for under in [Under::Sockets, Under::Sealed] {
        let (mut a, mut b) = pair(&under, 1500);
        // More segments than messages, and first bytes, that a batch has room for.
        let (each, count) = (48_000, 4);
        for _ in 0..4 {
            a.send(0, &vec![tcp(each, 1000); count]);
            let (mut frames, mut bytes) = (0, 0);
            while bytes < each * count {
                let got = b.receive(1);
                frames += got.len();
                bytes += got.iter().map(|(_, bytes, _)| bytes.len() - 54).sum::<usize>();
            }
            // A run is as long as a message can be; where it ends, or has the end of one super-frame and the begin of another, there are two frames of one.
            assert!(bytes == each * count && frames < 2 * count, "{frames} frames with {bytes} bytes");
        }
    }
}

#[test]
fn a_super_frame_of_longer_segments_than_fit_is_cut_smaller() {
    for under in Under::all() {
        let (mut a, mut b) = pair(&under, 1400);
        a.send(0, &[tcp(20_000, 1448)]);
        let got = b.receive(1);
        assert_eq!(got.iter().map(|(_, bytes, _)| bytes.len() - 54).sum::<usize>(), 20_000);
        // Sockets put them together again, a network of ours does not.
        let mtu = under.fits(1400);
        let fits = |len: usize, size: u16| if size > 0 { size <= mtu - 40 } else { len - 14 <= usize::from(mtu) };
        assert!(got.iter().all(|(_, bytes, offload)| fits(bytes.len(), offload.segment_size())));
    }
}

#[test]
fn who_sends_what_does_not_fit_is_told_and_what_may_be_cut_is() {
    for under in Under::all() {
        let (mut a, mut b) = pair(&under, 1500);
        let told = a.send(0, &[(udp(2, 1450, false, true), Offload::NONE)]);
        let error = &told[0];
        assert_eq!((error[34], error[35], u16::from_be_bytes([error[40], error[41]])), (3, 4, under.fits(1500)));
        assert_eq!((&error[..6], &error[26..34]), (&[2, 0, 0, 0, 0, 1][..], &[10, 0, 0, 2, 10, 0, 0, 1][..]));
        let told = a.send(0, &[(udp(2, 1450, true, true), Offload::NONE)]);
        assert_eq!(
            (told[0][54], u32::from_be_bytes(told[0][58..62].try_into().unwrap())),
            (2, under.fits(1500).into())
        );
        assert_eq!(a.drops(0, DropReason::MtuExceeded), 2);
        let may = udp(2, 2000, false, false);
        assert!(a.send(0, &[(may.clone(), Offload::NONE)]).is_empty());
        let mut fragments = b.receive(2);
        fragments.sort_by_key(|(_, bytes, _)| u16::from_be_bytes([bytes[20] & 0x1f, bytes[21]]));
        let payload: Vec<u8> = fragments.iter().flat_map(|(_, bytes, _)| bytes[34..].to_vec()).collect();
        assert!(payload == may[34..], "together they are the packet");
    }
}

#[test]
fn fragments_are_as_long_as_the_path_takes_and_a_packet_without_one_is_counted() {
    for under in Under::all() {
        let (mut a, mut b) = pair(&under, 9000);
        let may = udp(2, 20_000, false, false);
        assert!(a.send(0, &[(may.clone(), Offload::NONE)]).is_empty());
        let mut fragments = b.receive(3);
        fragments.sort_by_key(|(_, bytes, _)| u16::from_be_bytes([bytes[20] & 0x1f, bytes[21]]));
        let payload: Vec<u8> = fragments.iter().flat_map(|(_, bytes, _)| bytes[34..].to_vec()).collect();
        let longest = 34 + (usize::from(under.fits(9000)) - 20) / 8 * 8;
        assert!((fragments.len(), fragments[0].1.len()) == (3, longest) && payload == may[34..]);
    }
    // More than the turn has room for.
    let (mut a, mut b) = pair(&Under::station(), 9000);
    a.send(0, &vec![(udp(2, 64_000, false, false), Offload::NONE); 60]);
    let short = a.drops(0, DropReason::NoBuffers);
    let came = b.turn();
    let last = came.iter().filter(|(_, bytes, _)| bytes[20] & 0x20 == 0).count() as u64;
    assert!(short > 0 && last > 0);
    assert_eq!(short + last, 60, "every packet has its last fragment or is counted");
}

#[test]
fn a_broadcast_reaches_every_endpoint_once() {
    for under in Under::all() {
        let [a, b, c] = [1, 2, 3].map(|n| address(n, false));
        let port = free_port(a);
        let mut hosts = [(a, [b, c]), (b, [a, c]), (c, [a, b])]
            .map(|(local, peers)| host(&under, local, port, 1500, &[Net::new(77, &peers)]));
        settle(&mut hosts.each_mut());
        let mut frame = udp(2, 40, false, true);
        frame[..6].fill(0xff);
        hosts[0].send(0, &[(frame.clone(), Offload::NONE)]);
        for other in &mut hosts[1..] {
            let got = other.receive(1);
            assert_eq!(got.iter().filter(|(_, bytes, _)| *bytes == frame).count(), 1);
            assert_eq!(got.len(), 1);
        }
        // An answer goes to the one it is for.
        let mut answer = udp(1, 40, false, true);
        answer[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
        hosts[1].send(0, &[(answer.clone(), Offload::NONE)]);
        assert_eq!(hosts[0].receive(1)[0].1, answer);
        assert_eq!(hosts[1].cx.ledger.copied, 0, "one copy, for one endpoint");
    }
}

#[test]
fn what_is_in_too_many_pieces_is_counted_for_each_endpoint() {
    let [a, b, c, d] = [1, 2, 3, 4].map(|n| address(n, false));
    let mut host = host(&Under::Sockets, a, free_port(a), 1500, &[Net::new(77, &[b, c, d])]);
    host.cx.begin_turn(host.now);
    host.cx.nic = NicId(0);
    let mut bytes = udp(2, 1200, false, true);
    bytes[..6].fill(0xff);
    let (frame, head) = host.cx.heads.begin(Origin { nic: GUEST, lane: 0 }, bytes.len()).unwrap();
    let near = head.fill().len();
    head.fill().copy_from_slice(&bytes[..near]);
    for byte in &bytes[near..] {
        let piece = host.cx.arena.pool(&[*byte]).unwrap();
        assert!(host.cx.heads.add_piece(&frame, piece));
    }
    host.cx.ledger.originated += 1;
    let mut burst = Burst::default();
    burst.push(frame).unwrap();
    host.port.transmit(&mut host.cx, &mut burst).unwrap();
    host.port.release(&mut host.cx).unwrap();
    assert_eq!(host.drops(0, DropReason::TooManyPieces), 3);
    assert!(host.cx.ledger.balances(), "{:?}", host.cx.ledger);
}

#[test]
fn packets_of_strangers_are_counted_and_nothing_else() {
    let (_, mut b) = pair(&Under::Sockets, 1500);
    let stranger = UdpSocket::bind("127.0.9.7:0").unwrap();
    let to = (b.port.vtep().local(), b.port.vtep().port());
    stranger.send_to(&[&Encapsulation::Vxlan.header(vni(5001))[..], &udp(2, 18, false, true)].concat(), to).unwrap();
    for _ in 0..2000 {
        b.turn();
        if b.drops(0, DropReason::UnknownVtep) > 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(b.drops(0, DropReason::UnknownVtep), 1);
    assert_eq!(b.port.vtep().stations(b.now).count(), 0);
}

#[test]
fn a_question_for_a_known_neighbour_is_answered_and_stays_here() {
    let (one, two) = (address(1, false), address(2, false));
    let port = free_port(one);
    let mut a = host(&Under::Sockets, one, port, 1500, &[Net { suppress: true, ..Net::new(5001, &[two]) }]);
    let mut b = host(&Under::Sockets, two, port, 1500, &[Net::new(5001, &[one])]);
    let arp = |operation: u8, from: u8, to: u8| {
        let (from_mac, by, target) = ([2, 0, 0, 0, 0, from], [10, 0, 0, from], [10, 0, 0, to]);
        let (ethernet, there) =
            if operation == 1 { ([0xff; 6], [0; 6]) } else { ([2, 0, 0, 0, 0, to], [2, 0, 0, 0, 0, to]) };
        let fixed = [8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
        [&ethernet[..], &from_mac, &fixed, &from_mac, &by, &there, &target, &[0; 18]].concat()
    };
    let question = (arp(1, 1, 2), Offload::NONE);
    assert!(a.send(0, std::slice::from_ref(&question)).is_empty());
    assert_eq!(b.receive(1)[0].1, question.0, "nobody is known: it goes out");
    b.send(0, &[(arp(2, 2, 1), Offload::NONE)]);
    a.receive(1);
    let answers = a.send(0, &[question.clone(), (udp(2, 18, false, true), Offload::NONE)]);
    assert_eq!(answers, [arp(2, 2, 1)]);
    let got = b.receive(1);
    assert_eq!((got.len(), &got[0].1), (1, &udp(2, 18, false, true)), "the question did not cross the underlay");
    assert_eq!(a.port.vtep().answered(), 1);
}

#[test]
fn a_guest_that_is_announced_elsewhere_is_found_there_and_keeps_its_addresses() {
    for under in Under::all() {
        let all @ [one, two, _] = [1, 2, 3].map(|n| address(n, false));
        let port = free_port(one);
        let others = |own: IpAddr| all.into_iter().filter(|other| *other != own).collect::<Vec<_>>();
        let [mut a, mut b, mut c] =
            all.map(|own| host(&under, own, port, 1500, &[Net { suppress: true, ..Net::new(7, &others(own)) }]));
        settle(&mut [&mut a, &mut b, &mut c]);
        let remote = |host: &Host, address: IpAddr| host.port.vtep().remotes.find(address);
        let found = |host: &Host| host.port.vtep().stations(host.now).map(|(_, _, remote, _)| remote).next();
        // The guest speaks at the first host, with its address.
        let guest = [2, 0, 0, 0, 0, 1];
        let mut said = [&[0xff; 6][..], &guest, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &guest, &[10, 0, 0, 1]].concat();
        said.extend([&[0; 6][..], &[10, 0, 0, 2], &[0; 18]].concat());
        a.send(0, &[(said, Offload::NONE)]);
        b.receive(1);
        c.receive(1);
        assert_eq!(found(&c), remote(&c, one));
        // It is at the second: the switch there says so by its MAC alone.
        let mut rarp =
            [&[0xff; 6][..], &guest, &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3], &guest, &[0; 4], &guest].concat();
        rarp.resize(60, 0);
        b.send(0, &[(rarp, Offload::NONE)]);
        a.receive(1);
        c.receive(1);
        assert_eq!((found(&c), found(&a), found(&b)), (remote(&c, two), remote(&a, two), None));
        // A guest at the third is answered for it without a packet, and what it sends goes to the second.
        let mut question =
            [&[0xff; 6][..], &[2, 0, 0, 0, 0, 3], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 3]].concat();
        question.extend([&[10, 0, 0, 3][..], &[0; 6], &[10, 0, 0, 1], &[0; 18]].concat());
        let answers = c.send(0, &[(question.clone(), Offload::NONE)]);
        assert_eq!((answers.len(), &answers[0][6..12]), (1, &guest[..]));
        let mut packet = udp(1, 18, false, true);
        packet[11] = 3;
        c.send(0, &[(packet.clone(), Offload::NONE)]);
        assert_eq!(b.receive(1)[0].1, packet);
        // At the second host, where it is, nobody is answered for it.
        assert!(b.send(0, &[(question, Offload::NONE)]).is_empty());
    }
}
