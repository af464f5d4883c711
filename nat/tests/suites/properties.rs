//! Properties over random packets, over IPv4 and over IPv6: no bytes panic; out and back is the same packet; checksums are right, whoever still
//! owes them.

use nat::Side;
use proptest::prelude::*;
use wire::{Gso, Offload, checksum::Checksum};

family!();

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (2..200u32, 1..=u16::MAX).prop_map(|(n, port)| ep(host(n), port))
}

/// The same packet, the other way.
fn turned(seen: &Seen, frame: &[u8]) -> Vec<u8> {
    let payload = &frame[L4 + 8..];
    match frame[PROTOCOL] {
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
            3 => error(ROUTER, OUTSIDE, TOO_BIG, &sent.frame, 60),
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
        let sum = L4 + match kind { 0 => 6, 1 => 16, _ => 2 };
        let end = L4 + if kind == 2 { 4 } else { 0 };
        let changes = [SOURCE, HEADER_SUM, sum..sum + 2, end..end + 2];
        for at in (0..frame.len()).filter(|at| !changes.iter().any(|range| range.contains(at))) {
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
        let pseudo = |frame: &[u8]| pseudo(&frame[14..], frame[PROTOCOL], frame.len() - L4).fold();
        let sum = pseudo(&frame);
        frame[L4 + offset..L4 + offset + 2].copy_from_slice(&sum.to_be_bytes());
        let offload = Offload::new(Gso::None, 0, 0, L4 as u16, offset as u16);
        let (fate, after) = nat.cross_with(Side::Inside, 0, &frame, offload);
        let Fate::Sent(Side::Outside, mut sent) = fate else { panic!("{fate:?}") };
        prop_assert_eq!(after, offload);
        let owed = u16::from_be_bytes([sent[L4 + offset], sent[L4 + offset + 1]]);
        prop_assert_eq!(owed, pseudo(&sent), "still the sum of the pseudo header");
        let mut paid = Checksum::new();
        paid.add_bytes(&sent[L4..]);
        let paid = if is_tcp { paid.finish() } else { paid.finish_udp() };
        sent[L4 + offset..L4 + offset + 2].copy_from_slice(&paid.to_be_bytes());
        check(&sent);
    }
}
