//! Properties over random packets: no bytes panic; out and back is the same packet; checksums are right, whoever still owes them.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod common;
use common::*;
use nat::{Endpoint, Nptv6, Side};
use proptest::prelude::*;
use wire::{Context, Gso, NicId, Offload, Origin, Sizes};

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (2..200u8, 1..=u16::MAX).prop_map(|(host, port)| ep(std::net::Ipv4Addr::new(10, 0, 0, host), port))
}

/// The same packet, the other way.
fn turned(seen: &Seen, frame: &[u8]) -> Vec<u8> {
    let payload = &frame[frame.len() - (frame.len() - 42).min(frame.len())..];
    match frame[23] {
        17 => udp(seen.destination, seen.source, payload),
        6 => tcp(seen.destination, seen.source, "SA"),
        _ => echo(seen.destination.address, seen.source.address, seen.source.port, true),
    }
}

proptest! {
    #[test]
    fn any_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        kind in 0..5usize,
        cuts in prop::collection::vec((0..128usize, any::<u8>()), 0..6),
        len in 0..200usize,
        words in any::<(u64, u32)>(),
    ) {
        let mut nat = Packets::new(&config());
        let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 60])).outward();
        nat.out(&tcp(ep(GUEST, 4000), ep(PEER, 80), "S")).outward();
        let mut frame = match kind {
            0 => bytes,
            1 => udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 60]),
            2 => tcp(ep(GUEST, 4000), ep(PEER, 80), "S"),
            3 => error(ROUTER, OUTSIDE, 3, 4, &sent.frame, 80),
            _ => fragments(&udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 100]), 40, 7)[0].clone(),
        };
        for (at, byte) in cuts {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(len.max(14));
        if frame.len() >= 14 {
            for side in [Side::Inside, Side::Outside] {
                nat.cross_with(side, 0, &frame, Offload::NONE);
                if let Some(offload) = Offload::from_words(words.0, words.1).checked(frame.len()) {
                    nat.cross_with(side, 0, &frame, offload);
                }
            }
        }
    }

    #[test]
    fn out_and_back_is_the_same_but_for_what_must_differ(inside in endpoint(), port in 1..=u16::MAX, kind in 0..3u8, payload in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut nat = Packets::new(&config());
        nat.cross(Side::Inside, 1, &udp(inside, ep(SERVER, port), b"")).outward();
        let remote = ep(PEER, port);
        let frame = match kind {
            0 => udp(inside, remote, &payload),
            1 => tcp(inside, remote, "S"),
            _ => echo(inside.address, PEER, inside.port, false),
        };
        let out = nat.out(&frame).outward();
        prop_assert_eq!(out.source.address, OUTSIDE);
        // All but addresses, ports and checksums is as it was.
        let sum = match kind { 0 => 40..42, 1 => 50..52, _ => 36..38 };
        let ends = if kind == 2 { 38..40 } else { 34..36 };
        for at in (0..frame.len()).filter(|at| !(26..30).contains(at) && !(24..26).contains(at) && !sum.contains(at) && !ends.contains(at)) {
            prop_assert_eq!(out.frame[at], frame[at], "byte {}", at);
        }
        let back = nat.back(&turned(&out, &out.frame)).inward();
        prop_assert_eq!(back.frame, turned(&seen(&frame), &frame));
    }

    #[test]
    fn a_checksum_owed_is_right_once_paid(inside in endpoint(), port in 1..=u16::MAX, is_tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..60)) {
        let mut nat = Packets::new(&config());
        nat.cross(Side::Inside, 1, &udp(inside, ep(SERVER, 9), b"")).outward();
        let mut frame = if is_tcp { tcp(inside, ep(PEER, port), "S") } else { udp(inside, ep(PEER, port), &payload) };
        let offset = if is_tcp { 16 } else { 6 };
        let pseudo = |frame: &[u8]| {
            let address = |at: usize| [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
            wire::checksum::Checksum::pseudo_v4(address(26), address(30), frame[23], frame.len() as u16 - 34).fold()
        };
        let sum = pseudo(&frame);
        frame[34 + offset..36 + offset].copy_from_slice(&sum.to_be_bytes());
        let offload = Offload::new(Gso::None, 0, 0, 34, offset as u16);
        let (fate, after) = nat.cross_with(Side::Inside, 0, &frame, offload);
        let Fate::Sent(Side::Outside, mut sent) = fate else { panic!("{fate:?}") };
        prop_assert_eq!(after, offload);
        let owed = u16::from_be_bytes([sent[34 + offset], sent[35 + offset]]);
        prop_assert_eq!(owed, pseudo(&sent), "still the sum of the pseudo header");
        let mut paid = wire::checksum::Checksum::new();
        paid.add_bytes(&sent[34..]);
        let paid = if is_tcp { paid.finish() } else { paid.finish_udp() };
        sent[34 + offset..36 + offset].copy_from_slice(&paid.to_be_bytes());
        check(&sent);
    }

    #[test]
    fn no_udp_checksum_stays_none(inside in endpoint(), port in 1..=u16::MAX) {
        let mut nat = Packets::new(&config());
        let mut frame = udp(inside, ep(PEER, port), b"abc");
        frame[40..42].fill(0);
        let out = nat.out(&frame).outward();
        prop_assert_eq!(&out.frame[40..42], &[0, 0]);
    }

    /// RFC 6296 | packet | met | Prefixes are exchanged so that every checksum stays right, and back again.
    #[test]
    fn rfc6296_prefixes_are_exchanged_checksum_neutrally(interface: u64, subnet: u16, length in prop::sample::select(vec![40u32, 48, 56, 64])) {
        let inside = std::net::Ipv6Addr::from_bits(0xfd01_0203_0405 << 80 | u128::from(subnet) << 64 | u128::from(interface));
        let outside: std::net::Ipv6Addr = "2001:db8:1:2::".parse().unwrap();
        let nptv6 = Nptv6::new(inside, outside, length).unwrap();
        let remote: std::net::Ipv6Addr = "2001:db8:ffff::1".parse().unwrap();
        let mut bytes = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6(inside.octets(), remote.octets(), 64).udp(1, 2).write(&mut bytes, b"hello").unwrap();
        let mut cx = Context::new(Sizes { heads: 8, pieces: 8, pool: 4096 }).unwrap();
        cx.begin_turn(wire::Instant::START);
        let handle = cx.originate(Origin { nic: NicId(0), lane: 0 }, &bytes).unwrap();
        let head = cx.heads.get_mut(&handle);
        let translated = nptv6.translate(Side::Inside, head);
        let blocked = if length <= 48 { subnet == 0xffff } else { interface == u64::MAX };
        prop_assert_eq!(translated.is_err(), blocked);
        if blocked {
            return Ok(());
        }
        let translated_frame = head.bytes().to_vec();
        let packet = etherparse::SlicedPacket::from_ethernet(&translated_frame).unwrap();
        let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Udp(udp))) = (&packet.net, &packet.transport) else { panic!() };
        let sum = udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload()).unwrap();
        prop_assert_eq!(udp.checksum(), sum);
        let mask = u128::MAX << (128 - length);
        prop_assert_eq!(ip.header().source_addr().to_bits() & mask, outside.to_bits() & mask);
        prop_assert_eq!(nptv6.outside(inside), Some(ip.header().source_addr()));
        // The answer's destination becomes what the source was.
        let answer = ip.header().source_addr().octets();
        head.bytes_mut()[38..54].copy_from_slice(&answer);
        nptv6.translate(Side::Outside, head).unwrap();
        prop_assert_eq!(&head.bytes()[38..54], &inside.octets());
        cx.drop(handle, wire::DropReason::NoDestination);
    }
}
