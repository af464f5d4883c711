//! Frames of each protocol through [`MacNat`], made and read by etherparse, and frames at random.

use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;
use wire::checksum::Checksum;

use super::*;
use crate::mac_nat::holders::{AGE, CAPACITY, LIVE, SHARE};

const UPLINK: [u8; 6] = [2, 0, 0, 0, 0, 0xff];
const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OUTSIDE: [u8; 6] = [2, 0, 0, 0, 9, 9];
const HOST: [u8; 4] = [192, 0, 2, 1];
const A: [u8; 4] = [192, 0, 2, 10];
const PEER: [u8; 4] = [192, 0, 2, 99];
const A6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10];
const PEER6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99];
const START: Instant = Instant::START;

fn nat() -> MacNat {
    MacNat::new(Mac::new(UPLINK), vec![HOST.into()])
}

fn arp_frame(
    operation: u8,
    to: [u8; 6],
    from: [u8; 6],
    sender: [u8; 4],
    target_mac: [u8; 6],
    target: [u8; 4],
) -> Vec<u8> {
    let fixed: &[u8] = &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation];
    [&to, &from, fixed, &from, &sender, &target_mac, &target].concat()
}

fn udp4(
    to: [u8; 6],
    from: [u8; 6],
    source: [u8; 4],
    destination: [u8; 4],
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to).ipv4(source, destination, 64).udp(ports.0, ports.1);
    builder.write(&mut bytes, payload).unwrap();
    bytes
}

fn icmp6(to: [u8; 6], from: [u8; 6], source: [u8; 16], destination: [u8; 16], message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    let mut sum = Checksum::pseudo_v6(source, destination, 58, message.len() as u32);
    sum.add_bytes(&message);
    message[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    let mut bytes = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to).ipv6(source, destination, 255);
    builder.write(&mut bytes, etherparse::IpNumber(58), &message).unwrap();
    bytes
}

fn solicitation(from: [u8; 6], source: [u8; 16], kind: u8, option: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &A6, option].concat();
    icmp6([0x33, 0x33, 0xff, 0, 0, 0x99], from, source, PEER6, &message)
}

/// Lets a guest send, in a frame that lies in its head as far as 128 bytes; the frame that leaves.
fn out(nat: &mut MacNat, frame: &[u8], nic: u16, now: Instant) -> Result<Vec<u8>, DropReason> {
    let mut sent = frame.to_vec();
    let head = sent.len().min(128);
    let (rewrite, learnt) = nat.outbound(&sent[..head], sent.len(), NicId(nic), false, now)?;
    rewrite.apply(&mut sent[..head]);
    if let Some(learnt) = learnt {
        nat.learn(learnt, now);
    }
    Ok(sent)
}

fn into(nat: &MacNat, frame: &[u8], now: Instant) -> Result<Vec<u8>, DropReason> {
    let mut given = frame.to_vec();
    let head = given.len().min(128);
    nat.inbound(&given[..head], now)?.apply(&mut given[..head]);
    Ok(given)
}

fn checksums_hold(frame: &[u8]) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match (packet.net.unwrap(), packet.transport.unwrap()) {
        (NetSlice::Ipv4(ip), TransportSlice::Udp(udp)) => {
            let sum = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
            assert_eq!(sum, udp.checksum());
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
        }
        other => panic!("neither UDP nor ICMPv6: {other:?}"),
    }
}

#[test]
fn an_arp_request_leaves_with_the_uplinks_mac_and_its_answer_reaches_the_guest() {
    let mut nat = nat();
    let sent = out(&mut nat, &arp_frame(1, [0xff; 6], GUEST, A, [0; 6], PEER), 1, START).unwrap();
    assert_eq!(sent, arp_frame(1, [0xff; 6], UPLINK, A, [0; 6], PEER));
    let given = into(&nat, &arp_frame(2, UPLINK, OUTSIDE, PEER, UPLINK, A), START).unwrap();
    assert_eq!(given, arp_frame(2, GUEST, OUTSIDE, PEER, GUEST, A));
}

#[test]
fn an_arp_request_from_outside_reaches_all_guests_and_a_probe_hears_its_answer() {
    let mut nat = nat();
    let request = arp_frame(1, [0xff; 6], OUTSIDE, PEER, [0; 6], A);
    assert_eq!(into(&nat, &request, START).unwrap(), request);
    let probe = out(&mut nat, &arp_frame(1, [0xff; 6], GUEST, [0; 4], [0; 6], A), 1, START).unwrap();
    assert_eq!(probe, arp_frame(1, [0xff; 6], UPLINK, [0; 4], [0; 6], A));
    assert_eq!(nat.holders().get(&A.into(), START), None, "a probe is no use of an address");
    let conflict = into(&nat, &arp_frame(2, UPLINK, OUTSIDE, A, UPLINK, [0; 4]), START).unwrap();
    assert_eq!(conflict[..6], [0xff; 6]);
}

#[test]
fn link_layer_options_of_discovery_are_changed_and_the_checksum_holds() {
    let mut nat = nat();
    let option = |kind, mac: [u8; 6]| [&[kind, 1][..], &mac].concat();
    for (kind, option_kind) in [(135, 1), (136, 2)] {
        let sent = out(&mut nat, &solicitation(GUEST, A6, kind, &option(option_kind, GUEST)), 1, START).unwrap();
        assert_eq!(sent, solicitation(UPLINK, A6, kind, &option(option_kind, UPLINK)));
        checksums_hold(&sent);
    }
    let router = [&[133, 0, 0, 0, 0, 0, 0, 0][..], &option(1, GUEST)].concat();
    let sent = out(&mut nat, &icmp6([0x33, 0x33, 0, 0, 0, 2], GUEST, A6, PEER6, &router), 1, START).unwrap();
    assert!(!sent.windows(6).any(|six| six == GUEST));
    checksums_hold(&sent);
}

#[test]
fn duplicate_address_detection_passes_and_learns_nothing() {
    let mut nat = nat();
    let sent = out(&mut nat, &solicitation(GUEST, [0; 16], 135, &[]), 1, START).unwrap();
    assert_eq!(sent, solicitation(UPLINK, [0; 16], 135, &[]));
    assert_eq!(nat.holders().get(&A6.into(), START), None);
    assert_eq!(into(&nat, &sent, START), Err(DropReason::SamePort), "an echo of it would look like a duplicate");
}

#[test]
fn guests_announce_no_routers_and_options_that_cannot_be_seen_do_not_leave() {
    let mut nat = nat();
    assert_eq!(out(&mut nat, &solicitation(GUEST, A6, 134, &[]), 1, START), Err(DropReason::OneMac));
    assert_eq!(out(&mut nat, &solicitation(GUEST, A6, 137, &[]), 1, START), Err(DropReason::OneMac));
    let hidden = [&[14, 10][..], &[0; 78], &[1, 1], &GUEST].concat();
    assert_eq!(out(&mut nat, &solicitation(GUEST, A6, 135, &hidden), 1, START), Err(DropReason::BadPacket));
    assert_eq!(
        out(&mut nat, &solicitation(GUEST, A6, 135, &[1, 0, 0, 0, 0, 0, 0, 0]), 1, START),
        Err(DropReason::BadPacket)
    );
}

fn bootp(kind: u8, flags: u8, client: [u8; 6]) -> Vec<u8> {
    let mut message = vec![0; 300];
    message[..4].copy_from_slice(&[kind, 1, 6, 0]);
    message[10] = flags;
    message[28..34].copy_from_slice(&client);
    message
}

#[test]
fn dhcp_asks_for_broadcast_and_an_answer_by_unicast_goes_to_its_client() {
    let mut nat = nat();
    let request = udp4([0xff; 6], GUEST, [0; 4], [255; 4], (68, 67), &bootp(1, 0, GUEST));
    let sent = out(&mut nat, &request, 1, START).unwrap();
    assert_eq!(sent, udp4([0xff; 6], UPLINK, [0; 4], [255; 4], (68, 67), &bootp(1, 0x80, GUEST)));
    checksums_hold(&sent);
    let mut without = request.clone();
    without[40..42].fill(0);
    assert_eq!(out(&mut nat, &without, 1, START).unwrap()[40..42], [0, 0], "no checksum stays none");
    let answer = |client| udp4(UPLINK, OUTSIDE, PEER, A, (67, 68), &bootp(2, 0, client));
    assert_eq!(into(&nat, &answer(GUEST), START).unwrap()[..6], GUEST);
    assert_eq!(into(&nat, &answer(UPLINK), START), Err(DropReason::NoDestination), "the host's own");
}

#[test]
fn packets_of_both_families_go_to_who_has_their_address_and_to_nobody_else() {
    let mut nat = nat();
    let packet = |to, from, source, destination| udp4(to, from, source, destination, (1, 2), b"x");
    assert_eq!(into(&nat, &packet(UPLINK, OUTSIDE, PEER, A), START), Err(DropReason::NoDestination));
    let sent = out(&mut nat, &packet(OUTSIDE, GUEST, A, PEER), 1, START).unwrap();
    assert_eq!(sent, packet(OUTSIDE, UPLINK, A, PEER));
    assert_eq!(into(&nat, &packet(UPLINK, OUTSIDE, PEER, A), START).unwrap(), packet(GUEST, OUTSIDE, PEER, A));
    assert_eq!(into(&nat, &packet(OTHER, OUTSIDE, PEER, A), START), Err(DropReason::NoDestination));
    assert_eq!(into(&nat, &packet(UPLINK, OUTSIDE, PEER, A), START + AGE), Err(DropReason::NoDestination));
    let ping = [128, 0, 0, 0, 0, 1, 0, 1];
    out(&mut nat, &icmp6(OUTSIDE, GUEST, A6, PEER6, &ping), 1, START).unwrap();
    let given = into(&nat, &icmp6(UPLINK, OUTSIDE, PEER6, A6, &ping), START).unwrap();
    assert_eq!(given, icmp6(GUEST, OUTSIDE, PEER6, A6, &ping));
}

#[test]
fn the_first_holder_keeps_its_address_while_it_speaks_and_the_hosts_is_nobodys() {
    let mut nat = nat();
    let claim = |mac, address| arp_frame(1, [0xff; 6], mac, address, [0; 6], PEER);
    out(&mut nat, &claim(GUEST, A), 1, START).unwrap();
    let later = START + LIVE / 2;
    assert_eq!(out(&mut nat, &claim(OTHER, A), 2, later), Err(DropReason::SpoofedSource));
    out(&mut nat, &claim(GUEST, A), 1, later).unwrap();
    assert_eq!(out(&mut nat, &claim(OTHER, A), 2, START + LIVE), Err(DropReason::SpoofedSource));
    out(&mut nat, &claim(OTHER, A), 2, later + LIVE).unwrap();
    assert_eq!(nat.holders().get(&A.into(), later + LIVE).unwrap().mac, Mac::new(OTHER));
    assert_eq!(out(&mut nat, &claim(OTHER, HOST), 2, START), Err(DropReason::SpoofedSource));
}

#[test]
fn a_guest_with_many_addresses_loses_its_own_oldest_and_nobody_elses() {
    let mut nat = nat();
    out(&mut nat, &udp4(OUTSIDE, GUEST, A, PEER, (1, 2), b""), 1, START).unwrap();
    for n in 0..1000u64 {
        let [.., high, low] = n.to_be_bytes();
        let now = START + Duration::from_millis(n);
        out(&mut nat, &udp4(OUTSIDE, OTHER, [10, 0, high, low], PEER, (1, 2), b""), 2, now).unwrap();
    }
    assert_eq!(nat.holders().iter().count(), SHARE + 1);
    assert!(nat.holders().get(&A.into(), START).is_some());
}

#[test]
fn a_full_table_takes_from_whoever_has_most() {
    let mut nat = nat();
    let addresses = |nic: u16, n: u8| [10, (nic >> 8) as u8, nic as u8, n];
    let mut tell = |nic: u16, n: u8, ms: u64| {
        let mac = [2, 0, 0, 1, (nic >> 8) as u8, nic as u8];
        let frame = udp4(OUTSIDE, mac, addresses(nic, n), PEER, (1, 2), b"");
        out(&mut nat, &frame, nic, START + Duration::from_millis(ms)).unwrap();
    };
    // One NIC has its full share, the others as many as there is room for; then comes one more.
    for n in 0..SHARE as u8 {
        tell(1, n, u64::from(n));
    }
    let others = (CAPACITY - SHARE) as u16;
    for nic in 2..2 + others {
        tell(nic, 0, 100);
    }
    tell(2 + others, 0, 200);
    let has = |nic, n| nat.holders().get(&addresses(nic, n).into(), START + Duration::from_millis(200)).is_some();
    assert_eq!(nat.holders().iter().count(), CAPACITY);
    assert!(!has(1, 0) && (1..SHARE as u8).all(|n| has(1, n)), "its oldest is gone");
    assert!((2..=2 + others).all(|nic| has(nic, 0)), "nobody else lost any");
}

#[test]
fn tags_and_other_protocols_do_not_pass() {
    let mut nat = nat();
    let frame = |kind: [u8; 2]| [&OUTSIDE[..], &GUEST, &kind, &[0; 46]].concat();
    assert_eq!(out(&mut nat, &frame([0x81, 0]), 1, START), Err(DropReason::VlanNotAllowed));
    assert_eq!(out(&mut nat, &frame([0x88, 0xb5]), 1, START), Err(DropReason::OneMac));
}

proptest! {
    /// Every byte may be anything, after a beginning that leads into each of the branches.
    #[test]
    fn nothing_leaves_with_a_foreign_source(
        ethertype in prop::sample::select(vec![[8u8, 6], [8, 0], [0x86, 0xdd], [0x81, 0], [1, 2]]),
        start in prop::sample::select(vec![vec![], vec![0, 1, 8, 0, 6, 4], vec![0x45], vec![0x60, 0, 0, 0, 0, 64, 58, 255]]),
        kind in 130u8..139,
        mut rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let keep = start.len().min(rest.len());
        rest[..keep].copy_from_slice(&start[..keep]);
        if start.len() == 8 && rest.len() > 40 {
            rest[40] = kind;
        }
        let frame = [&OUTSIDE[..], &GUEST, &ethertype, &rest].concat();
        let mut nat = nat();
        let _ = into(&nat, &frame, START);
        if let Ok(sent) = out(&mut nat, &frame, 1, START) {
            prop_assert_eq!(&sent[6..12], &UPLINK);
            prop_assert_eq!(sent.len(), frame.len());
            if ethertype == [8, 6] {
                prop_assert_eq!(&sent[22..28], &UPLINK);
            }
        }
        for cut in 0..frame.len().min(60) {
            let _ = out(&mut nat, &frame[..cut], 1, START);
            let _ = into(&nat, &frame[..cut], START);
        }
    }
}
