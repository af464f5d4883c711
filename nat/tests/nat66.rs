//! NAT66: what IPv6 has besides the suites, in the table and in the port: extension headers, fragments in a header of their own, neighbour
//! discovery, published ports, both versions of IP side by side.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;
use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::mpsc::sync_channel,
    time::Duration,
};

use common::v6::{port::*, *};
use nat::{ByV6, Command, PacketPort, PortConfig, PortConfigV6, Protocol, Publication, Refusal, Side, remote};
use proptest::prelude::*;
use wire::{DropReason, Gso, NicId, Offload};

fn nat() -> Packets {
    Packets::new(&config())
}

fn gate() -> Gate {
    Gate::new(port_config(config()))
}

fn request(payload: &[u8]) -> Vec<u8> {
    udp(ep(GUEST, 4000), ep(SERVER, 9000), payload)
}

/// Hop-by-hop options of eight bytes: padding.
const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

#[test]
fn extension_headers_stay_and_what_is_behind_them_is_translated() {
    let mut nat = nat();
    let plain = nat.out(&request(b"1")).outward();
    for kind in [0, 60] {
        let out = nat.out(&with_extension(&request(b"2"), kind, &PADDING)).outward();
        assert_eq!((out.source, out.destination), (plain.source, plain.destination));
        assert_eq!((out.frame[20], out.frame[54]), (kind, 17));
        let back = with_extension(&udp(ep(SERVER, 9000), plain.source, b"3"), kind, &PADDING);
        assert_eq!(nat.back(&back).inward().destination, ep(GUEST, 4000));
    }
    let unknown = with_extension(&request(b""), 50, &PADDING);
    assert_eq!(nat.out(&unknown).refused(), Refusal::UnknownProtocol, "encrypted");
    let mut cut = with_extension(&request(b""), 60, &PADDING);
    cut[55] = 200;
    assert_eq!(nat.out(&cut).refused(), Refusal::Malformed, "an extension that is longer than the packet");
}

/// RFC 4787 REQ-14 | packet, IPv6 | met | A fragment that is the whole of its packet (RFC 6946) waits for none and makes none wait.
#[test]
fn rfc4787_req14_atomic_fragments_are_whole() {
    let mut nat = nat();
    let atomic = with_fragment_header(&request(b"whole"), 0, 7);
    let out = nat.out(&atomic).outward();
    assert_eq!((out.source.address, out.destination), (OUTSIDE, ep(SERVER, 9000)));
    assert_eq!(identification(&out.frame), 7, "left alone");
    let later = &fragments(&request(&[1; 100]), 40, 7)[1];
    assert_eq!(nat.out(later), Fate::Held, "its first is another packet");
}

#[test]
fn fragments_that_say_another_protocol_than_the_first_are_still_its_own() {
    let mut nat = nat();
    let parts = fragments(&request(&[1; 100]), 40, 7);
    let first = nat.out(&parts[0]).outward();
    let mut odd = parts[1].clone();
    odd[54] = 60;
    let Fate::Sent(Side::Outside, later) = nat.out(&odd) else {
        panic!("a later fragment is known by addresses and identification")
    };
    assert_eq!(identification(&later), identification(&first.frame));
    assert_eq!(addresses(&later[14..]).0, OUTSIDE);
}

/// RFC 8200 section 8.1 | packet, IPv6 | met | UDP without a checksum is dropped, from inside and from outside.
#[test]
fn rfc8200_8_1_udp_without_a_checksum_is_dropped() {
    let mut nat = nat();
    let outside = nat.out(&request(b"1")).outward().source;
    for (side, mut frame) in [(Side::Inside, request(b"2")), (Side::Outside, udp(ep(SERVER, 9000), outside, b"3"))] {
        frame[60..62].fill(0);
        assert_eq!(nat.cross(side, 0, &frame).refused(), Refusal::BadChecksum);
    }
}

#[test]
fn ipv4_is_not_for_this_table() {
    let frame = common::v4::udp(common::v4::ep(common::v4::GUEST, 4000), common::v4::ep(common::v4::SERVER, 9000), b"");
    assert_eq!(nat().out(&frame).refused(), Refusal::OtherVersion);
}

/// RFC 4443 section 3.2 | packet, IPv6 | met | "Packet too big" reaches the sender with the MTU, its quote and its checksum right, however long the quote is.
#[test]
fn rfc4443_3_2_packet_too_big_reaches_the_sender() {
    let mut gate = gate();
    let sent = one(gate.out(0, &request(&[7; 1400])), Side::Outside);
    for quote in [8, 100, 1200] {
        let told = one(gate.reply(error(ROUTER, OUTSIDE, TOO_BIG, &sent, quote)), Side::Inside);
        assert_eq!((icmp(&told), seen(&told).destination.address), ((2, 0, 1280), GUEST));
        let about = quoted(&told);
        assert_eq!((about.source, about.destination), (ep(GUEST, 4000), ep(SERVER, 9000)));
    }
}

#[test]
fn the_next_hop_is_solicited_and_packets_wait_for_it() {
    let mut gate = Gate::unresolved(port_config(config()));
    let asked = one(gate.out(0, &request(b"1")), Side::Outside);
    assert_eq!((&asked[..6], asked[54], asked[21]), (&[0x33, 0x33, 0xff, 0, 0, 9][..], 135, 255));
    assert_eq!((addresses(&asked[14..]).0, &asked[62..78]), (LINK_LOCAL, &HOP.octets()[..]));
    assert!(gate.out(0, &request(b"2")).is_empty(), "once is enough");
    assert!(gate.back(&found(PEER)).is_empty(), "nobody asked for that");
    let sent = gate.back(&found(HOP));
    let payloads: Vec<&[u8]> = sent.iter().map(|out| &out.frame[62..]).collect();
    assert_eq!(payloads, [b"1", b"2"], "in their order");
    let mut gate = Gate::unresolved(port_config(config()));
    gate.out(0, &request(b"1"));
    let told: Vec<Out> = gate.wait(Duration::from_secs(5)).into_iter().filter(|out| out.side == Side::Inside).collect();
    let told = one(told, Side::Inside);
    assert_eq!((icmp(&told).0, icmp(&told).1, seen(&told).source.address), (1, 3, ROUTER_INSIDE), "it is not there");
    assert_eq!(quoted(&told).source, ep(GUEST, 4000), "as the guest knows its packet");
}

#[test]
fn it_announces_its_addresses_and_answers_for_them_alone() {
    let table = Config { outside: vec![OUTSIDE, outside(2)], ..config() };
    let mut gate = Gate::unresolved(port_config(config()));
    gate.port = PacketPort::new(port_config(table)).unwrap();
    for nic in [INSIDE_NIC, OUTSIDE_NIC] {
        gate.cx.nic = nic;
        wire::Port::attach(&mut gate.port, &mut gate.cx).unwrap();
    }
    let said = gate.wait(Duration::from_secs(5));
    let of: Vec<&[u8]> = said.iter().map(|out| &out.frame[62..78]).collect();
    assert_eq!(of, [OUTSIDE, outside(2), OUTSIDE, outside(2)].map(|address| address.octets()), "each of two, twice");
    assert!(said.iter().all(|out| (out.frame[54], out.frame[58]) == (136, 0x20)), "nobody asked");
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
    for (target, answers) in [(OUTSIDE, 1), (outside(2), 1), (LINK_LOCAL, 1), (outside(3), 0), (SERVER, 0)] {
        let mut asked = discovery(135, HOP, group, target);
        let outs = gate.back(&asked);
        assert_eq!(outs.len(), answers, "{target}");
        for out in outs {
            assert_eq!((out.frame[54], out.frame[58], &out.frame[62..78]), (136, 0x60, &target.octets()[..]));
        }
        asked[60] ^= 1;
        assert!(gate.back(&asked).is_empty(), "a wrong checksum");
    }
}

#[test]
fn a_packet_goes_out_and_its_answer_comes_back_to_the_guest_that_asked() {
    let mut gate = gate();
    let out = one(gate.out(0, &request(b"question")), Side::Outside);
    assert_eq!((&out[..6], &out[6..12], out[21]), (&common::HOP_MAC.bytes()[..], &common::OWN.bytes()[..], 64));
    let there = seen(&out);
    assert_eq!((there.source.address, there.destination), (OUTSIDE, ep(SERVER, 9000)));
    let back = one(gate.reply(udp(ep(SERVER, 9000), there.source, b"answer")), Side::Inside);
    assert_eq!((seen(&back).destination, back[21]), (ep(GUEST, 4000), 63), "this is a hop");
    assert_eq!(back[..6], [2, 0, 0, 0, 0, 1], "the guest's own MAC address");
    assert!(gate.reply(udp(ep(SERVER, 9000), ep(OUTSIDE, there.source.port ^ 0x100), b"")).is_empty(), "nobody's");
    assert!(gate.back(&udp(ep(SERVER, 9000), there.source, b"")).is_empty(), "for another station");
    assert!(gate.reply(udp(ep(HOP, 9000), there.source, b"")).is_empty(), "an address of the link goes no further");
    assert!(gate.out(0, &udp(ep(LINK_LOCAL, 4000), ep(SERVER, 9000), b"")).is_empty());
    assert_eq!(gate.drops(NicId(0), DropReason::NoRoute), 1);
}

#[test]
fn pings_to_its_own_addresses_are_answered_on_both_sides() {
    let mut gate = gate();
    let pong = seen(&one(gate.out(0, &echo(GUEST, OUTSIDE, 7, false)), Side::Inside));
    assert_eq!((pong.source, pong.destination, pong.frame[54]), (ep(OUTSIDE, 7), ep(GUEST, 7), 129));
    for (from, to) in [(SERVER, OUTSIDE), (HOP, OUTSIDE), (HOP, LINK_LOCAL)] {
        for hops in [64, 255] {
            let pong = seen(&one(gate.reply(with_hops(echo(from, to, 7, false), hops)), Side::Outside));
            assert_eq!((pong.source, pong.destination, pong.frame[54]), (ep(to, 7), ep(from, 7), 129));
        }
    }
    assert!(gate.reply(echo(SERVER, PEER, 7, false)).is_empty(), "another's");
}

#[test]
fn a_super_frame_of_tcp_is_to_be_cut_smaller_where_the_mtu_is() {
    let mut gate = Gate::new(PortConfig { mtu: 1400, ..port_config(config()) });
    gate.out(0, &tcp(ep(GUEST, 4000), ep(SERVER, 80), "S"));
    let mut frame = tcp(ep(GUEST, 4000), ep(SERVER, 80), "A");
    frame.extend([7; 4000]);
    frame[18..20].copy_from_slice(&4020u16.to_be_bytes());
    let outs = gate.cross_with(NicId(0), &frame, Offload::new(Gso::Tcp6, 74, 1440, 54, 16));
    assert_eq!(outs.len(), 1, "{outs:?}");
    assert_eq!((outs[0].offload.gso(), outs[0].offload.segment_size()), (Gso::Tcp6, 1340));
}

#[test]
fn ports_are_published_live_and_shown() {
    let (control, inbox) = remote();
    let mut gate = gate();
    gate.port = PacketPort::new(port_config(config())).unwrap().with_inbox(inbox);
    for nic in [INSIDE_NIC, OUTSIDE_NIC] {
        gate.cx.nic = nic;
        wire::Port::attach(&mut gate.port, &mut gate.cx).unwrap();
    }
    let publication = Publication {
        protocol: Protocol::Tcp,
        listen: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8080),
        to: SocketAddr::new(GUEST.into(), 80),
        count: 2,
        nic: Some(NicId(0)),
    };
    let ask = |gate: &mut Gate, publication: Publication| {
        let (reply, answer) = sync_channel(1);
        assert!(control.send(Command::Publish(publication, reply)));
        gate.wait(Duration::from_secs(1));
        answer.recv().unwrap()
    };
    ask(&mut gate, publication.clone()).unwrap();
    let opened = one(gate.reply(tcp(ep(SERVER, 5555), ep(OUTSIDE, 8081), "S")), Side::Inside);
    assert_eq!((seen(&opened).source, seen(&opened).destination), (ep(SERVER, 5555), ep(GUEST, 81)));
    let error = ask(&mut gate, publication.clone()).unwrap_err();
    assert!(error.contains("[2001:db8:0:9::1]:8080 is published already"), "{error}");
    let of_both = Publication { to: SocketAddr::from(([10, 0, 0, 2], 80)), ..publication.clone() };
    let error = ask(&mut gate, of_both).unwrap_err();
    assert!(error.contains("two versions of IP"), "{error}");
    let lines = gate.port.lines(gate.now);
    assert_eq!(lines.iter().filter(|line| line.state == "published").count(), 2);
    let line = lines.iter().find(|line| line.remote == Some(SocketAddr::new(SERVER.into(), 5555))).unwrap();
    assert_eq!(
        (line.inside.to_string(), line.outside.unwrap().to_string()),
        ("[fd00:0:0:1::2]:81".to_owned(), "[2001:db8:0:9::1]:8081".to_owned())
    );
    for expected in [true, false] {
        let (reply, answer) = sync_channel(1);
        assert!(control.send(Command::Withdraw(publication.clone(), reply)));
        gate.wait(Duration::from_secs(1));
        assert_eq!(answer.recv().unwrap(), expected);
    }
}

#[test]
fn both_versions_are_translated_side_by_side() {
    let v6 = port_config(config()).v6;
    let mut gate = Gate::unresolved(PortConfig { v6, ..common::v4::port_config(common::v4::config()) });
    let memory = gate.port.memory();
    let only4 = PacketPort::new(common::v4::port_config(common::v4::config())).unwrap();
    assert!(memory > only4.memory() + (4096 * 2 * 128), "a table of IPv6 is taken where there is an address for it");
    let v4 = common::v4::udp(common::v4::ep(common::v4::GUEST, 4000), common::v4::ep(common::v4::SERVER, 9000), b"4");
    gate.out(0, &v4);
    gate.out(0, &request(b"6"));
    let sent = [gate.back(&common::v4::found(common::v4::HOP)), gate.back(&found(HOP))].concat();
    assert_eq!(sent.len(), 2);
    assert_eq!(common::v4::seen(&sent[0].frame).source.address, common::v4::OUTSIDE);
    assert_eq!(seen(&sent[1].frame).source.address, OUTSIDE);
    assert_eq!(gate.port.stats().mapped, 2);
    assert_eq!(gate.port.lines(gate.now).len(), 2);
    let snapshot = gate.port.snapshot(gate.now);
    let v6 = port_config(Config { seed: 99, ..config() }).v6;
    let config4 = nat::Config { seed: 99, ..common::v4::config() };
    let mut next = Gate::unresolved(PortConfig { v6, ..common::v4::port_config(config4) });
    assert_eq!(next.port.restore(&snapshot, next.now), 0);
    let (from, to) = (ep(SERVER, 9000), seen(&sent[1].frame).source);
    assert_eq!(seen(&one(next.reply(udp(from, to, b"")), Side::Inside)).destination, ep(GUEST, 4000));
}

#[test]
fn configurations_that_cannot_be_are_told() {
    let with = |change: fn(&mut PortConfigV6)| {
        let mut made = port_config(config());
        change(made.v6.as_mut().unwrap());
        made.check().map_err(|error| error.to_string())
    };
    assert_eq!(with(|v6| v6.next_hop = Some(OUTSIDE)), Ok(()));
    assert!(with(|v6| v6.next_hop = Some(SERVER)).unwrap_err().contains("not in the outside subnet"));
    assert!(with(|v6| v6.prefix = 129).unwrap_err().contains("128 is the most"));
    let twice = with(|v6| v6.by = ByV6::Table(Config { outside: vec![OUTSIDE, OUTSIDE], ..config() }));
    assert!(twice.unwrap_err().contains("given twice"));
    let never = with(|v6| v6.by = ByV6::Table(Config { outside: vec![LINK_LOCAL], ..config() }));
    assert!(never.unwrap_err().contains("not the address of one host"));
    let short = PortConfig { mtu: 1279, ..port_config(config()) };
    assert!(short.check().unwrap_err().to_string().contains("1280"));
}

proptest! {
    /// Headers of any kind and order, and lengths that are not so: nothing panics, and what comes out has right checksums.
    #[test]
    fn any_chain_of_headers_is_translated_or_refused(
        kinds in prop::collection::vec((prop::sample::select(vec![0u8, 43, 44, 51, 60, 135, 50, 58, 1]), any::<[u8; 8]>()), 0..4),
        lengths: bool,
        is_tcp: bool,
        from_inside: bool,
    ) {
        let mut nat = nat();
        let outside = nat.out(&request(b"1")).outward().source;
        nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "S")).outward();
        let (from, to) = if from_inside { (ep(GUEST, 4000), ep(SERVER, 9000)) } else { (ep(SERVER, 9000), outside) };
        let mut frame = if is_tcp { tcp(from, to, "S") } else { udp(from, to, b"payload") };
        for (kind, mut bytes) in kinds {
            if !lengths {
                bytes[1] = 0;
            }
            frame = with_extension(&frame, kind, &bytes);
        }
        let side = if from_inside { Side::Inside } else { Side::Outside };
        let (fate, _) = nat.cross_with(side, 0, &frame, Offload::NONE);
        if let Fate::Sent(_, sent) = fate {
            prop_assert_eq!(sent.len(), frame.len());
            let old = pseudo(&frame[14..], 0, 0).fold();
            let new = pseudo(&sent[14..], 0, 0).fold();
            // Addresses, ports, identification and checksum are all that differs.
            let differs = (54..sent.len()).filter(|at| sent[*at] != frame[*at]).count();
            prop_assert!(differs <= 2 + 2 + 4, "{} bytes, {} {}", differs, old, new);
        }
    }
}
