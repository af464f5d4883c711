//! The packet port and IPv6: prefixes exchanged, neighbour discovery, errors translated with what they quote.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;
use std::{net::Ipv6Addr, time::Duration};

use common::v4::{port::*, *};
use nat::{ByV6, PortConfig, PortConfigV6, Side};
use wire::{DropReason, NicId, checksum::Checksum};

const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 2);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 3);
const INSIDE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 0);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 0);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, 1);
const HOP6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 7);

fn v6() -> PortConfigV6 {
    PortConfigV6::new(OWN, (INSIDE6, OUTSIDE6, 64), Some(HOP6), ROUTER6).unwrap()
}

fn port_config6() -> PortConfig {
    let table = Config { outside: Vec::new(), ..config() };
    PortConfig { v6: Some(v6()), ..port_config(table) }
}

fn packet6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([next, 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(payload);
    frame
}

/// The payload of an ICMPv6 message with its checksum.
fn summed(from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let mut sum = Checksum::pseudo_v6(from.octets(), to.octets(), 58, message.len() as u32);
    sum.add_bytes(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    message
}

fn udp6(from: Ipv6Addr, to: Ipv6Addr, size: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv6(from.octets(), to.octets(), 64)
        .udp(4000, 9000)
        .write(&mut frame, &vec![7; size])
        .unwrap();
    frame
}

fn ends(frame: &[u8]) -> (Ipv6Addr, Ipv6Addr) {
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    (address(22), address(38))
}

#[track_caller]
fn right_sum(frame: &[u8]) {
    let (from, to) = ends(frame);
    let mut sum = Checksum::pseudo_v6(from.octets(), to.octets(), frame[20], (frame.len() - 54) as u32);
    sum.add_bytes(&frame[54..]);
    assert!(sum.is_valid(), "the transport checksum");
}

fn advertisement(of: Ipv6Addr) -> Vec<u8> {
    let own = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0xaa);
    let mut message = vec![136, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(of.octets());
    message.extend([2, 1]);
    message.extend(HOP_MAC.bytes());
    let mut frame = packet6(of, own, 58, &summed(of, own, message));
    frame[21] = 255;
    from_outside(frame)
}

fn gate6() -> Gate {
    let mut gate = Gate::unresolved(port_config6());
    gate.out(3, &udp6(OTHER6, SERVER6, 8));
    assert_eq!(gate.back(&advertisement(HOP6)).len(), 1, "what has waited goes");
    gate
}

#[test]
fn the_next_hop_is_solicited_and_packets_wait() {
    let mut gate = Gate::unresolved(port_config6());
    let asked = one(gate.out(0, &udp6(GUEST6, SERVER6, 8)), Side::Outside);
    right_sum(&asked);
    assert_eq!((&asked[..6], asked[54], asked[21]), (&[0x33, 0x33, 0xff, 0, 0, 9][..], 135, 255));
    assert_eq!(asked[62..78], HOP6.octets());
    let sent = one(gate.back(&advertisement(HOP6)), Side::Outside);
    assert_eq!(sent[..6], HOP_MAC.bytes());
    assert_eq!(ends(&sent).1, SERVER6);
}

#[test]
fn prefixes_are_exchanged_and_checksums_stay_right() {
    let mut gate = gate6();
    let out = one(gate.out(0, &udp6(GUEST6, SERVER6, 8)), Side::Outside);
    let (source, _) = ends(&out);
    assert_eq!(source.octets()[..8], OUTSIDE6.octets()[..8]);
    right_sum(&out);
    let back = one(gate.reply(udp6(SERVER6, source, 8)), Side::Inside);
    assert_eq!((ends(&back).1, &back[..6], back[21]), (GUEST6, &[0; 6][..], 63), "the router finds the guest");
    right_sum(&back);
    let hairpin = one(gate.out(1, &udp6(OTHER6, source, 8)), Side::Inside);
    assert_eq!(ends(&hairpin).1, GUEST6);
    assert_eq!(ends(&hairpin).0.octets()[..8], OUTSIDE6.octets()[..8], "as the world would see it");
    right_sum(&hairpin);
    let other = Ipv6Addr::new(0xfd00, 0, 0, 2, 0, 0, 0, 2);
    let told = one(gate.out(0, &udp6(other, SERVER6, 8)), Side::Inside);
    assert_eq!((told[54], told[55]), (1, 0), "a source that is not of the prefix");
}

#[test]
fn nobody_is_sent_what_is_for_an_address_that_it_claims() {
    let mut gate = gate6();
    let out = one(gate.out(0, &udp6(GUEST6, SERVER6, 8)), Side::Outside);
    let mut claim = udp6(GUEST6, SERVER6, 8);
    claim[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x66]);
    gate.out(1, &claim);
    let back = one(gate.reply(udp6(SERVER6, ends(&out).0, 8)), Side::Inside);
    assert_eq!((ends(&back).1, &back[..6]), (GUEST6, &[0; 6][..]));
    let hairpin = one(gate.out(2, &udp6(OTHER6, ends(&out).0, 8)), Side::Inside);
    assert_eq!((ends(&hairpin).1, &hairpin[..6]), (GUEST6, &[0; 6][..]));
}

#[test]
fn errors_are_translated_with_what_they_quote() {
    let mut gate = gate6();
    let out = one(gate.out(0, &udp6(GUEST6, SERVER6, 8)), Side::Outside);
    let (source, _) = ends(&out);
    let far = Ipv6Addr::new(0x2001, 0xdb8, 0xaa, 0, 0, 0, 0, 1);
    let mut message = vec![3, 0, 0, 0, 0, 0, 0, 0];
    message.extend(&out[14..]);
    let error = one(gate.reply(packet6(far, source, 58, &summed(far, source, message))), Side::Inside);
    right_sum(&error);
    assert_eq!(ends(&error), (far, GUEST6));
    assert_eq!(ends(&error[62 - 14..]), (GUEST6, SERVER6), "as the guest knows its packet");
}

#[test]
fn what_is_too_long_or_has_come_too_far_is_told() {
    let mut gate = Gate::unresolved(PortConfig { mtu: 1400, inside_mtu: 1300, ..port_config6() });
    gate.out(3, &udp6(OTHER6, SERVER6, 8));
    gate.back(&advertisement(HOP6));
    let told = one(gate.out(0, &udp6(GUEST6, SERVER6, 1400)), Side::Inside);
    right_sum(&told);
    assert_eq!((told[54], &told[58..62], ends(&told)), (2, &1400u32.to_be_bytes()[..], (ROUTER6, GUEST6)));
    assert!(told.len() <= 14 + 1280);
    let source = ends(&one(gate.out(0, &udp6(GUEST6, SERVER6, 8)), Side::Outside)).0;
    let told = one(gate.reply(udp6(SERVER6, source, 1300)), Side::Outside);
    assert_eq!((told[54], &told[58..62], ends(&told)), (2, &1300u32.to_be_bytes()[..], (v6().address, SERVER6)));
    let mut tired = udp6(SERVER6, source, 8);
    tired[21] = 1;
    let told = one(gate.reply(tired), Side::Outside);
    assert_eq!((told[54], told[55]), (3, 0));
    assert_eq!(gate.drops(NicId(0), DropReason::MtuExceeded), 1);
}

#[test]
fn it_answers_for_its_own_addresses_and_those_of_guests() {
    let mut gate = gate6();
    let ByV6::Prefixes { prefixes, .. } = v6().by else { panic!("prefixes are exchanged") };
    let guest = prefixes.outside(GUEST6).unwrap();
    for (target, answers) in [(v6().address, 1), (guest, 1), (SERVER6, 0)] {
        let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1);
        let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        message.extend([1, 1]);
        message.extend(HOP_MAC.bytes());
        let mut question = packet6(HOP6, to, 58, &summed(HOP6, to, message));
        question[21] = 255;
        question[6..12].copy_from_slice(&HOP_MAC.bytes());
        let outs = gate.back(&question);
        assert_eq!(outs.len(), answers, "{target}");
        for out in outs {
            right_sum(&out.frame);
            assert_eq!((out.frame[54], &out.frame[62..78]), (136, &target.octets()[..]));
        }
        question[60] ^= 1;
        assert!(gate.back(&question).is_empty(), "a wrong checksum");
    }
    let ping = summed(SERVER6, v6().address, vec![128, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3]);
    let pong = one(gate.reply(packet6(SERVER6, v6().address, 58, &ping)), Side::Outside);
    right_sum(&pong);
    assert_eq!((pong[54], ends(&pong)), (129, (v6().address, SERVER6)));
}

#[test]
fn without_an_outside_address_ipv4_is_prohibited_and_without_ipv6_it_is_counted() {
    let mut gate = gate6();
    let told = one(gate.out(0, &udp(ep(GUEST, 4000), ep(SERVER, 9000), b"")), Side::Inside);
    assert_eq!((icmp(&told).0, icmp(&told).1), (3, 13));
    let mut gate = Gate::new(port_config(config()));
    assert!(gate.out(0, &udp6(GUEST6, SERVER6, 8)).is_empty());
    assert_eq!(gate.drops(NicId(0), DropReason::NatUnsupported), 1);
    assert!(gate.wait(Duration::from_secs(5)).is_empty());
}
