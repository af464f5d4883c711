//! The packet port: what it does on the link outside, with frames that wait, and with packets that do not fit.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;
use std::{net::Ipv4Addr, net::SocketAddr, sync::mpsc::sync_channel, time::Duration};

use common::v4::{port::*, *};
use nat::{Command, PacketPort, Protocol, Publication, Side, remote};
use wire::{DropReason, Gso, Mac, NicId, Offload};

fn gate() -> Gate {
    Gate::new(port_config(config()))
}

const FLOW: (Ipv4Addr, u16) = (GUEST, 4000);

fn request(payload: &[u8]) -> Vec<u8> {
    udp(ep(FLOW.0, FLOW.1), ep(SERVER, 9000), payload)
}

/// The flow's mapping made; where it is outside.
fn mapped(gate: &mut Gate) -> u16 {
    seen(&one(gate.out(0, &request(b"first")), Side::Outside)).source.port
}

#[test]
fn a_packet_goes_out_and_its_answer_comes_back_to_the_guest_that_asked() {
    let mut gate = gate();
    let out = one(gate.out(0, &request(b"question")), Side::Outside);
    let there = seen(&out);
    assert_eq!((there.source.address, there.destination), (OUTSIDE, ep(SERVER, 9000)));
    assert_eq!((&out[..6], &out[6..12]), (&HOP_MAC.bytes()[..], &OWN.bytes()[..]));
    assert_eq!(out[22], 64, "the router has counted the hop already");
    let back = one(gate.reply(udp(ep(SERVER, 9000), there.source, b"answer")), Side::Inside);
    assert_eq!(seen(&back).destination, ep(GUEST, 4000));
    assert_eq!(back[..6], [2, 0, 0, 0, 0, 1], "the guest's own MAC address");
    assert_eq!(back[22], 63, "this is a hop");
}

#[test]
fn what_is_for_another_station_or_from_no_host_is_not_taken() {
    let mut gate = gate();
    let port = mapped(&mut gate);
    assert!(gate.back(&udp(ep(SERVER, 9000), ep(OUTSIDE, port), b"")).is_empty(), "another MAC address");
    for source in [Ipv4Addr::BROADCAST, Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::UNSPECIFIED] {
        assert!(gate.reply(udp(ep(source, 9000), ep(OUTSIDE, port), b"")).is_empty());
    }
    assert_eq!(gate.drops(OUTSIDE_NIC, DropReason::BadPacket), 4);
    assert!(gate.reply(udp(ep(SERVER, 9000), ep(PEER, 5), b"")).is_empty(), "an address that is not ours");
}

#[test]
fn a_header_that_was_changed_on_its_way_in_is_not_taken() {
    let mut gate = gate();
    let port = mapped(&mut gate);
    let good = udp(ep(SERVER, 9000), ep(OUTSIDE, port), b"answer");
    // Options: nothing, nothing, nothing, the end.
    let mut longer = good.clone();
    longer.splice(34..34, [1, 1, 1, 0]);
    longer[14] = 0x46;
    longer[16..18].copy_from_slice(&(20 + 4 + 8 + 6u16).to_be_bytes());
    longer[24..26].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&longer[14..38]);
    longer[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    let unmapped = udp(ep(SERVER, 9000), ep(OUTSIDE, port ^ 0x100), b"");
    for (n, frame) in [good, longer, unmapped].into_iter().enumerate() {
        for at in [15, 18, 22, 24, 26, 30] {
            let mut changed = frame.clone();
            changed[at] ^= 0x10;
            let before = gate.drops(OUTSIDE_NIC, DropReason::BadPacket);
            assert!(gate.reply(changed).is_empty(), "{n}: byte {at}");
            assert_eq!(gate.drops(OUTSIDE_NIC, DropReason::BadPacket), before + 1, "{n}: byte {at}");
        }
        assert_eq!(gate.reply(frame).len(), usize::from(n < 2), "as it was sent");
    }
}

#[test]
fn it_announces_its_addresses_twice_and_answers_for_them() {
    let table = Config { outside: vec![OUTSIDE, Ipv4Addr::new(192, 0, 2, 2)], ..config() };
    let mut cx = Gate::unresolved(port_config(table.clone()));
    cx.port = PacketPort::new(port_config(table)).unwrap();
    for nic in [INSIDE_NIC, OUTSIDE_NIC] {
        cx.cx.nic = nic;
        wire::Port::attach(&mut cx.port, &mut cx.cx).unwrap();
    }
    let said: Vec<Vec<u8>> = cx.wait(Duration::from_secs(5)).into_iter().map(|out| out.frame).collect();
    assert_eq!(said.len(), 4, "each of two addresses, twice");
    for (n, frame) in said.iter().enumerate() {
        let address = Ipv4Addr::new(192, 0, 2, 1 + (n % 2) as u8);
        assert_eq!(*frame, arp(1, (OWN, address), (Mac::BROADCAST, address)));
    }
    for n in [1, 2] {
        let ours = Ipv4Addr::new(192, 0, 2, n);
        let answer = one(cx.back(&arp(1, (HOP_MAC, HOP), (Mac::BROADCAST, ours))), Side::Outside);
        assert_eq!(answer, arp(2, (OWN, ours), (HOP_MAC, HOP)));
    }
    let other = arp(1, (HOP_MAC, HOP), (Mac::BROADCAST, Ipv4Addr::new(192, 0, 2, 3)));
    assert!(cx.back(&other).is_empty(), "not ours");
}

#[test]
fn the_next_hop_is_asked_for_and_a_few_packets_wait() {
    let mut gate = Gate::unresolved(port_config(config()));
    let asked = one(gate.out(0, &request(b"1")), Side::Outside);
    assert_eq!(asked, arp(1, (OWN, OUTSIDE), (Mac::BROADCAST, HOP)));
    assert!(gate.out(0, &request(b"2")).is_empty(), "once is enough");
    assert!(gate.back(&arp(2, (HOP_MAC, PEER), (OWN, OUTSIDE))).is_empty(), "nobody asked for that");
    let sent = gate.back(&arp(2, (HOP_MAC, HOP), (OWN, OUTSIDE)));
    let payloads: Vec<&[u8]> = sent.iter().map(|out| &out.frame[42..]).collect();
    assert_eq!(payloads, [b"1", b"2"], "in their order");
    assert!(sent.iter().all(|out| out.frame[..6] == HOP_MAC.bytes()));
}

#[test]
fn a_next_hop_that_is_not_there_is_told() {
    let mut gate = Gate::unresolved(port_config(config()));
    gate.out(0, &request(b"1"));
    let outs = gate.wait(Duration::from_secs(5));
    let (asked, told): (Vec<Out>, Vec<Out>) = outs.into_iter().partition(|out| out.side == Side::Outside);
    assert_eq!(asked.len(), 2, "three times in all");
    let told = one(told, Side::Inside);
    assert_eq!((icmp(&told).0, icmp(&told).1, seen(&told).source.address), (3, 1, ROUTER_INSIDE));
    assert_eq!(quoted(&told).source, ep(GUEST, 4000), "as the guest knows its packet");
    assert_eq!(gate.drops(NicId(0), DropReason::Unresolved), 1);
}

#[test]
fn neighbours_on_the_link_are_spoken_to_without_the_router() {
    let mut gate = gate();
    let near = Ipv4Addr::new(192, 0, 2, 77);
    let asked = one(gate.out(0, &udp(ep(GUEST, 4000), ep(near, 53), b"")), Side::Outside);
    assert_eq!(asked, arp(1, (OWN, OUTSIDE), (Mac::BROADCAST, near)));
    let mac = Mac::new([2, 0, 0, 0, 0, 0xcc]);
    let sent = one(gate.back(&arp(2, (mac, near), (OWN, OUTSIDE))), Side::Outside);
    assert_eq!(sent[..6], mac.bytes());
    for nowhere in [Ipv4Addr::new(192, 0, 2, 255), Ipv4Addr::new(192, 0, 2, 0), Ipv4Addr::new(239, 1, 2, 3)] {
        let told = one(gate.out(0, &udp(ep(GUEST, 4000), ep(nowhere, 53), b"")), Side::Inside);
        assert_eq!((icmp(&told).0, icmp(&told).1), (3, 0));
    }
}

#[test]
fn pings_to_its_own_addresses_are_answered_on_both_sides() {
    let mut gate = gate();
    for (n, side) in [(0, Side::Inside), (1, Side::Outside)] {
        let from = if n == 0 { GUEST } else { SERVER };
        let ping = echo(from, OUTSIDE, 7, false);
        let outs = if n == 0 { gate.out(0, &ping) } else { gate.reply(ping) };
        let pong = seen(&one(outs, side));
        assert_eq!((pong.source, pong.destination, pong.frame[34]), (ep(OUTSIDE, 7), ep(from, 7), 0));
        assert_eq!(pong.frame[42..], *b"abcdefgh");
    }
    assert!(gate.reply(echo(SERVER, PEER, 7, false)).is_empty(), "another's");
    assert!(gate.reply(echo(SERVER, OUTSIDE, 8, true)).is_empty(), "nobody asked");
}

#[test]
fn a_flood_of_fragments_takes_the_places_of_its_own_guest_only() {
    let mut gate = gate();
    let parts = |nic: u16, id| fragments(&udp(ep(GUEST, 4000 + nic), ep(SERVER, 9000), &[7; 64]), 32, id);
    let (quiet, later) = (parts(1, 1), 1);
    assert!(gate.out(1, &quiet[later]).is_empty());
    for id in 100..400 {
        assert!(gate.out(0, &parts(0, id)[later]).is_empty());
    }
    assert_eq!(gate.out(1, &quiet[0]).len(), 2, "the quiet guest's fragment was kept");
    assert_eq!(gate.out(0, &parts(0, 399)[0]).len(), 2);
    assert_eq!(gate.out(0, &parts(0, 100)[0]).len(), 1, "the flooding guest's own oldest went");
    assert!(gate.out(0, &parts(0, 5)[later]).is_empty());
    gate.wait(Duration::from_secs(6));
    assert_eq!(gate.out(0, &parts(0, 5)[0]).len(), 1, "what has waited too long is gone");
}

#[test]
fn a_super_frame_of_tcp_is_to_be_cut_smaller_where_the_mtu_is() {
    let mut gate = Gate::new(nat::PortConfig { mtu: 1400, ..port_config(config()) });
    gate.out(0, &tcp(ep(GUEST, 4000), ep(SERVER, 80), "S"));
    let mut frame = tcp(ep(GUEST, 4000), ep(SERVER, 80), "A");
    frame.extend([7; 4000]);
    frame[16..18].copy_from_slice(&4040u16.to_be_bytes());
    frame[20] = 0x40;
    frame[24..26].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    let outs = gate.cross_with(NicId(0), &frame, Offload::new(Gso::Tcp4, 54, 1460, 34, 16));
    assert_eq!(outs.len(), 1, "{outs:?}");
    assert_eq!((outs[0].offload.gso(), outs[0].offload.segment_size()), (Gso::Tcp4, 1360));
    let fits = gate.cross_with(NicId(0), &frame, Offload::new(Gso::Tcp4, 54, 1200, 34, 16));
    assert_eq!(fits[0].offload.segment_size(), 1200);
}

#[test]
fn datagrams_of_a_super_frame_that_do_not_fit_are_cut_one_by_one() {
    let mut gate = Gate::new(nat::PortConfig { mtu: 1000, ..port_config(config()) });
    let mut frame = udp(ep(GUEST, 4000), ep(SERVER, 9000), &[7; 2400]);
    frame[20] &= !0x40;
    frame[24..26].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    let pseudo = wire::checksum::Checksum::pseudo_v4(GUEST.octets(), SERVER.octets(), 17, 2408).fold();
    frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
    let outs = gate.cross_with(NicId(0), &frame, Offload::new(Gso::Udp, 42, 1200, 34, 6));
    let frames: Vec<Vec<u8>> = outs.into_iter().map(|out| out.frame).collect();
    assert_eq!(frames.len(), 4, "two datagrams in two fragments each");
    for pair in frames.chunks(2) {
        assert!(pair.iter().all(|frame| frame.len() <= 1014));
        assert_eq!(reassemble(pair).len(), 42 + 1200);
    }
}

#[test]
fn the_mss_of_both_ways_is_lowered_to_what_fits() {
    let mut gate = Gate::new(nat::PortConfig { mtu: 1300, inside_mtu: 1500, ..port_config(config()) });
    let syn = |from: nat::Endpoint, to: nat::Endpoint, mss: u16, odd: bool, ack: bool| {
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(from.address.octets(), to.address.octets(), 64)
            .tcp(from.port, to.port, 1, 1000)
            .syn();
        let builder = if ack { builder.ack(2) } else { builder };
        let [high, low] = mss.to_be_bytes();
        let options = if odd { vec![1, 2, 4, high, low, 1, 1, 1] } else { vec![2, 4, high, low] };
        let mut frame = Vec::new();
        builder.options_raw(&options).unwrap().write(&mut frame, b"").unwrap();
        (frame, if odd { 57 } else { 56 })
    };
    for (n, odd) in [(0, false), (1, true)] {
        let inside = ep(GUEST, 4000 + n);
        let (frame, at) = syn(inside, ep(SERVER, 80), 1460, odd, false);
        let out = one(gate.out(0, &frame), Side::Outside);
        assert_eq!(out[at..at + 2], 1260u16.to_be_bytes(), "checksums are checked where it comes out");
        let (frame, at) = syn(ep(SERVER, 80), seen(&out).source, 1460, odd, true);
        let back = one(gate.reply(frame), Side::Inside);
        assert_eq!(back[at..at + 2], 1260u16.to_be_bytes());
    }
    let (frame, at) = syn(ep(GUEST, 5000), ep(SERVER, 80), 536, false, false);
    assert_eq!(one(gate.out(0, &frame), Side::Outside)[at..at + 2], 536u16.to_be_bytes(), "a small one is left alone");
}

#[test]
fn errors_are_limited_per_guest() {
    let mut gate = Gate::new(nat::PortConfig { mtu: 600, errors: 10, ..port_config(config()) });
    let mut long = request(&[7; 1000]);
    long[20] = 0x40;
    long[24..26].fill(0);
    let mut sum = wire::checksum::Checksum::new();
    sum.add_bytes(&long[14..34]);
    long[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    let told = (0..100).filter(|_| gate.out(0, &long).len() == 1).count();
    assert_eq!(told, 10);
    assert_eq!(gate.drops(NicId(0), DropReason::MtuExceeded), 100);
    assert_eq!(gate.out(1, &long).len(), 1, "another guest has its own");
    gate.wait(Duration::from_secs(1));
    assert_eq!(gate.out(0, &long).len(), 1);
}

#[test]
fn ports_are_published_live_and_shown() {
    let (control, inbox) = remote();
    let mut gate = Gate::unresolved(port_config(config()));
    gate.port = PacketPort::new(port_config(config())).unwrap().with_inbox(inbox);
    for nic in [INSIDE_NIC, OUTSIDE_NIC] {
        gate.cx.nic = nic;
        wire::Port::attach(&mut gate.port, &mut gate.cx).unwrap();
    }
    let publication = Publication {
        protocol: Protocol::Tcp,
        listen: SocketAddr::from(([0, 0, 0, 0], 8080)),
        to: SocketAddr::new(GUEST.into(), 80),
        count: 2,
        nic: Some(NicId(0)),
    };
    let (reply, answer) = sync_channel(1);
    assert!(control.send(Command::Publish(publication.clone(), reply)));
    gate.wait(Duration::from_secs(1));
    answer.recv().unwrap().unwrap();
    let opened = one(gate.reply(tcp(ep(SERVER, 5555), ep(OUTSIDE, 8081), "S")), Side::Inside);
    assert_eq!(
        (seen(&opened).source, seen(&opened).destination),
        (ep(SERVER, 5555), ep(GUEST, 81)),
        "the client's address"
    );
    let (reply, lines) = sync_channel(1);
    assert!(control.send(Command::Show(reply)));
    gate.wait(Duration::from_secs(1));
    let lines = lines.recv().unwrap();
    assert_eq!(lines.iter().filter(|line| line.state == "published").count(), 2);
    assert!(lines.iter().any(|line| line.remote == Some(SocketAddr::new(SERVER.into(), 5555))), "{lines:?}");
    for expected in [true, false] {
        let (reply, answer) = sync_channel(1);
        assert!(control.send(Command::Withdraw(publication.clone(), reply)));
        gate.wait(Duration::from_secs(1));
        assert_eq!(answer.recv().unwrap(), expected);
    }
    let (reply, answer) = sync_channel(1);
    assert!(control.send(Command::Publish(Publication { nic: None, ..publication }, reply)));
    gate.wait(Duration::from_secs(1));
    let error = answer.recv().unwrap().unwrap_err();
    assert!(error.contains("10.0.0.2") && error.contains("name the guest"), "{error}");
}

#[test]
fn mappings_are_taken_over_by_the_next_port() {
    let mut gate = gate();
    let port = mapped(&mut gate);
    let snapshot = gate.port.snapshot(gate.now);
    let mut next = Gate::new(port_config(Config { seed: 99, ..config() }));
    assert_eq!(next.port.restore(&snapshot, next.now), 1, "the one that both have");
    assert_eq!(
        seen(&one(next.reply(udp(ep(SERVER, 9000), ep(OUTSIDE, port), b"")), Side::Inside)).destination,
        ep(GUEST, 4000)
    );
}

#[test]
fn a_full_burst_passes_whole_both_ways() {
    let mut gate = gate();
    let frames: Vec<Vec<u8>> = (0..64).map(|n| udp(ep(GUEST, 3000 + n), ep(SERVER, 9000), b"x")).collect();
    let burst: Vec<(&[u8], Offload)> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
    let outs = gate.cross_all(NicId(0), &burst);
    assert_eq!(outs.len(), 64);
    let back: Vec<Vec<u8>> =
        outs.iter().map(|out| from_outside(udp(ep(SERVER, 9000), seen(&out.frame).source, b"y"))).collect();
    let burst: Vec<(&[u8], Offload)> = back.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
    assert_eq!(gate.cross_all(OUTSIDE_NIC, &burst).len(), 64);
}
