//! UDP through the socket engine, behaviour by behaviour. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::net::{SocketAddr, UdpSocket};

use nat::Protocol;
use proptest::prelude::*;
use scripted::*;
use sys::inet::udp::{Datagrams, Kind, Outgoing, RecvBatch, SendBatch};
use wire::{DropReason, Gso, NicId, Offload};

const GUEST: &str = "10.0.0.2:4000";

#[test]
fn a_datagram_goes_out_and_its_answer_comes_back() {
    for (guest, v6) in [(GUEST, false), ("[fd00::2]:4001", true)] {
        let mut lab = Lab::new(config());
        let (server, name) = server(v6);
        for payload in [&b""[..], b"hello", &[7; 87], &[8; 1400]] {
            assert!(lab.send(0, &udp(at(guest), name, 64, payload)).is_empty());
            let (bytes, from) = next(&server);
            assert_eq!(bytes, payload);
            server.send_to(&bytes, from).unwrap();
            let back = seen(&lab.receive()[0]);
            assert_eq!((back.from, back.to, &back.payload[..], back.mac), (name, at(guest), payload, GUEST_MAC));
        }
        assert_eq!(lab.show().len(), 1);
    }
}

#[test]
fn tos_and_ecn_are_kept_both_ways() {
    let mut lab = Lab::new(config());
    let server = Datagrams::open(Kind::Udp4, at("127.0.0.1:0"), 64, 0).unwrap();
    let name = SocketAddr::new(router().into(), server.local().unwrap().port());
    // The first sets what the socket has anyway, the second differs from it.
    for tos in [0xb8 | 1, 0x20 | 2] {
        lab.send(0, &with_ip(udp(at(GUEST), name, 64, b"x"), |ip| ip[1] = tos));
        let mut batch = RecvBatch::default();
        assert_eq!(batch.receive(&server, 64).unwrap(), 1);
        let came = batch.get(0).unwrap();
        assert_eq!(came.tos, tos);
        let (mut answer, arena) = (SendBatch::default(), sys::arena::Arena::new(4096).unwrap());
        let how = Outgoing { to: came.from, ttl: 64, tos: tos ^ 3, segment: 0 };
        assert!(answer.push(&server, how, b"y", std::iter::empty()));
        assert_eq!(answer.send(&server, &arena, 0).unwrap(), 1);
        assert_eq!(seen(&lab.receive()[0]).tos, tos ^ 3);
    }
}

#[test]
fn a_burst_of_several_endpoints_reaches_everybody_in_order() {
    let mut lab = Lab::new(config());
    let servers: Vec<_> = (0..3).map(|_| server(false)).collect();
    let frames: Vec<Vec<u8>> = (0..60u16)
        .map(|n| {
            let guest = SocketAddr::from(([10, 0, 0, 2], 4100 + n % 5));
            udp(guest, servers[usize::from(n % 3)].1, 64, &n.to_be_bytes())
        })
        .collect();
    let burst: Vec<(&[u8], Offload)> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
    lab.turn(0, &burst);
    for (which, (server, _)) in servers.iter().enumerate() {
        let mut got = Vec::new();
        for _ in 0..20 {
            let (bytes, from) = next(server);
            got.push((from.port(), u16::from_be_bytes(bytes.try_into().unwrap())));
        }
        let mut numbers: Vec<u16> = got.iter().map(|(_, n)| *n).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..60).filter(|n| usize::from(n % 3) == which).collect::<Vec<_>>());
        for port in got.iter().map(|(port, _)| *port) {
            assert!(got.iter().filter(|(of, _)| *of == port).map(|(_, n)| n).is_sorted(), "in order by endpoint");
        }
    }
    assert_eq!(lab.show().len(), 5);
}

#[test]
fn datagrams_that_are_alike_arrive_one_by_one_and_in_order() {
    for (guest, v6) in [(GUEST, false), ("[fd00::2]:4000", true)] {
        let mut lab = Lab::new(config());
        let (server, name) = server(v6);
        for len in [2, 16, 86, 87, 200, 1400, 1600] {
            // One that differs now and then.
            let sizes = (0..60u16).map(|n| if n % 17 == 5 { len + 1 } else { len });
            let payloads: Vec<Vec<u8>> = sizes
                .enumerate()
                .map(|(n, len)| [&(n as u16).to_be_bytes(), &vec![n as u8; len - 2][..]].concat())
                .collect();
            let frames: Vec<Vec<u8>> = payloads.iter().map(|payload| udp(at(guest), name, 64, payload)).collect();
            let burst: Vec<(&[u8], Offload)> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
            lab.turn(0, &burst);
            for payload in &payloads {
                assert_eq!(next(&server).0, *payload);
            }
        }
        // To a closed port, at least one is told, and what comes next is not lost.
        let (closed, gone) = scripted::server(v6);
        drop(closed);
        let frames: Vec<Vec<u8>> =
            (0..60u8).map(|n| udp(at(guest), if n < 30 { gone } else { name }, 64, &[n; 16])).collect();
        let burst: Vec<(&[u8], Offload)> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
        let mut got = lab.turn(0, &burst);
        if got.is_empty() {
            got = lab.receive_as_is();
        }
        assert_eq!(ends(&told(&got[0].bytes).quoted), (at(guest), gone));
        for n in 30..60 {
            assert_eq!(next(&server).0, [n; 16]);
        }
    }
}

#[test]
fn a_super_frame_leaves_as_its_datagrams() {
    for (guest, v6) in [(GUEST, false), ("[fd00::2]:4000", true)] {
        let mut lab = Lab::new(config());
        let (server, name) = server(v6);
        let payload: Vec<u8> = (0..1000 * 9 + 100u32).map(|n| n as u8).collect();
        let mut frame = udp(at(guest), name, 64, &payload);
        let l4 = if v6 { 54 } else { 34 };
        // What the driver leaves: the pseudo header's sum of a checksum that is owed.
        frame[l4 + 6..l4 + 8].copy_from_slice(&[0x12, 0x34]);
        let offload = Offload::new(Gso::Udp, l4 as u16 + 8, 1000, l4 as u16, 6);
        lab.turn(0, &[(&frame, offload)]);
        for chunk in payload.chunks(1000) {
            assert_eq!(next(&server).0, chunk);
        }
    }
}

#[test]
fn a_run_of_datagrams_comes_in_as_one_super_frame() {
    let mut lab = Lab::new(config());
    let server = Datagrams::open(Kind::Udp4, at("127.0.0.1:0"), 64, 0).unwrap();
    let name = SocketAddr::new(router().into(), server.local().unwrap().port());
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let mut batch = RecvBatch::default();
    batch.receive(&server, 1).unwrap();
    let to = batch.get(0).unwrap().from;
    let payload: Vec<u8> = (0..20 * 1200 + 7u32).map(|n| n as u8).collect();
    let mut arena = sys::arena::Arena::new(65_536).unwrap();
    let lent = arena.pool(&payload).unwrap();
    let mut run = SendBatch::default();
    let how = Outgoing { to, ttl: 64, tos: 0, segment: 1200 };
    assert!(run.push(&server, how, b"", std::iter::once(lent)));
    assert_eq!(run.send(&server, &arena, 0).unwrap(), 1);
    let got = lab.receive_as_is();
    assert_eq!((got.len(), got[0].offload.gso(), got[0].offload.segment_size()), (1, Gso::Udp, 1200));
    let cut = lab.settle(&got[0]);
    assert_eq!(cut.len(), 21);
    let whole: Vec<u8> = cut.iter().flat_map(|frame| seen(frame).payload).collect();
    assert_eq!(whole, payload);
    // Of segments too long for the segment inside, each goes in fragments.
    let how = Outgoing { to, ttl: 64, tos: 0, segment: 2000 };
    run.clear();
    let lent = arena.pool(&payload).unwrap();
    assert!(run.push(&server, how, b"", std::iter::once(lent)));
    assert_eq!(run.send(&server, &arena, 0).unwrap(), 1);
    let mut frames = Vec::new();
    while frames.len() < 2 * 12 + 1 {
        let more = lab.receive();
        assert!(!more.is_empty());
        frames.extend(more);
    }
    let whole: Vec<u8> = frames[..24].chunks(2).flat_map(|pair| seen(&joined(pair)).payload).collect();
    assert_eq!(whole, payload[..24_000]);
    assert_eq!(seen(&frames[24]).payload, payload[24_000..]);
}

#[test]
fn a_datagram_longer_than_the_mtu_comes_in_fragments() {
    for (guest, v6) in [(GUEST, false), ("[fd00::2]:4000", true)] {
        let mut lab = Lab::new(config());
        let (server, name) = server(v6);
        lab.send(0, &udp(at(guest), name, 64, b"x"));
        let (_, from) = next(&server);
        for len in [1473, 5000, 60_000] {
            let payload: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            server.send_to(&payload, from).unwrap();
            let frames = lab.receive();
            assert!(frames.len() > 1 && frames.iter().all(|frame| frame.len() <= 1514), "{}", frames.len());
            let whole = seen(&joined(&frames));
            assert_eq!((whole.from, whole.to, whole.payload == payload), (name, at(guest), true));
        }
    }
}

#[test]
fn what_finds_no_room_in_a_turn_comes_in_the_next() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_, from) = next(&server);
    for n in 0..10u8 {
        server.send_to(&vec![n; 30_000], from).unwrap();
    }
    let mut frames = Vec::new();
    while frames.len() < 10 * 21 {
        let more = lab.receive();
        assert!(!more.is_empty(), "{} frames", frames.len());
        frames.extend(more);
    }
    for (n, of_one) in frames.chunks(21).enumerate() {
        assert_eq!(seen(&joined(of_one)).payload, vec![n as u8; 30_000]);
    }
}

#[test]
fn fragments_of_a_guest_are_joined_in_any_order() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let payload: Vec<u8> = (0..5000u32).map(|n| n as u8).collect();
    let parts = fragments(&udp(at(GUEST), name, 64, &payload), 1480, 77);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        for n in order {
            lab.send(0, &parts[n]);
            lab.send(0, &parts[n]);
        }
        assert!(next(&server).0 == payload, "{order:?}");
        // What came twice after the end waits for the rest, in vain.
        lab.seconds(31);
        lab.turn(0, &[]);
    }
    assert_eq!(lab.drops(DropReason::BadPacket), 0);
}

#[test]
fn fragments_of_ipv6_are_joined() {
    let mut lab = Lab::new(config());
    let (server, name) = server(true);
    let payload: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
    let whole = udp(at("[fd00::2]:4000"), name, 64, &payload);
    let body = &whole[54..];
    let cut = |from: usize, to: usize, more: u8| {
        let mut frame = whole[..54].to_vec();
        frame[18..20].copy_from_slice(&((to - from + 8) as u16).to_be_bytes());
        frame[20] = 44;
        frame.extend([17, 0, (from >> 8) as u8, from as u8 | more, 0, 0, 0, 9]);
        frame.extend(&body[from..to]);
        frame
    };
    for frame in [cut(1400, 2800, 1), cut(2800, body.len(), 0), cut(0, 1400, 1)] {
        lab.send(0, &frame);
    }
    assert!(next(&server).0 == payload);
}

#[test]
fn overlapping_fragments_end_their_packet() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let whole = udp(at(GUEST), name, 64, &[1; 200]);
    let (a, b) = (fragments(&whole, 80, 5), fragments(&whole, 120, 5));
    lab.send(0, &a[0]);
    lab.send(0, &b[0]);
    assert_eq!(lab.drops(DropReason::BadPacket), 1);
    for frame in &a[1..] {
        lab.send(0, frame);
    }
    server.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    assert!(server.recv(&mut [0; 300]).is_err());
}

#[test]
fn a_flood_of_first_fragments_takes_nothing_from_others() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let parts = fragments(&udp(at("10.0.0.3:4000"), name, 64, &[9; 200]), 104, 1);
    lab.send(1, &parts[0]);
    let flood = fragments(&udp(at(GUEST), name, 64, &[1; 200]), 104, 0);
    for id in 0..1000u16 {
        lab.send(0, &with_ip(flood[0].clone(), |ip| ip[4..6].copy_from_slice(&id.to_be_bytes())));
    }
    lab.send(1, &parts[1]);
    assert_eq!(next(&server).0, [9; 200]);
}

#[test]
fn checksums_are_checked_and_none_is_none() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    for payload in [&b"short"[..], &[7; 1000]] {
        let good = udp(at(GUEST), name, 64, payload);
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        let mut none = good.clone();
        none[40..42].fill(0);
        let before = lab.drops(DropReason::BadPacket);
        lab.send(0, &bad);
        assert_eq!(lab.drops(DropReason::BadPacket), before + 1);
        lab.send(0, &none);
        assert_eq!(next(&server).0, payload);
        let mut header = good.clone();
        header[24] ^= 1;
        lab.send(0, &header);
        assert_eq!(lab.drops(DropReason::BadPacket), before + 2, "of the IPv4 header");
    }
    let (_server6, name) = scripted::server(true);
    let mut none = udp(at("[fd00::2]:4000"), name, 64, b"x");
    none[60..62].fill(0);
    let before = lab.drops(DropReason::BadPacket);
    lab.send(0, &none);
    assert_eq!(lab.drops(DropReason::BadPacket), before + 1, "IPv6 has no datagrams without checksum");
    // Ethernet pads short frames.
    let mut padded = udp(at(GUEST), name_of(&server), 64, b"x");
    padded.resize(60, 0xee);
    lab.send(0, &padded);
    assert_eq!(next(&server).0, b"x");
}

fn name_of(server: &UdpSocket) -> SocketAddr {
    SocketAddr::new(router().into(), server.local_addr().unwrap().port())
}

#[test]
fn what_is_mapped_is_shown() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(2, &udp(at("10.0.0.2:41234"), name, 64, b"12345"));
    let (_, from) = next(&server);
    let lines = lab.show();
    let line = &lines[0];
    assert_eq!(
        (line.protocol, line.nic, line.inside, line.state),
        (Protocol::Udp, NicId(2), at("10.0.0.2:41234"), "open")
    );
    assert_eq!((line.outside.unwrap().port(), line.expires), (from.port(), Some(300)));
    assert_eq!((line.remote.unwrap().port(), line.packets, line.bytes), (name.port(), 1, 33));
    server.send_to(b"1", from).unwrap();
    lab.receive();
    lab.seconds(100);
    lab.send(2, &udp(at("10.0.0.2:41234"), scripted::server(false).1, 64, b""));
    let lines = lab.show();
    assert_eq!((lines[0].remote, lines[0].packets, lines[0].expires), (None, 3, Some(300)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_of_a_guest_upset_the_engine(
        frames in prop::collection::vec((0u16..4, 0u8..8, any::<u64>(), prop::collection::vec((0usize..120, any::<u8>()), 0..6), 0usize..1600), 1..40),
    ) {
        let mut config = config();
        // Nowhere to reach but loopback: what is changed goes nowhere else.
        config.udp_quota = 4;
        let mut lab = Lab::new(config);
        let (server, name) = server(false);
        let name6 = SocketAddr::new(router6().into(), name.port());
        for (nic, kind, random, changes, len) in frames {
            let payload = vec![random as u8; len];
            let mut frame = match kind {
                0..3 => udp(SocketAddr::from(([10, 0, 0, 2], random as u16)), name, 64, &payload),
                3..5 => udp(SocketAddr::new("fd00::2".parse().unwrap(), random as u16), name6, 64, &payload),
                5 => echo("10.0.0.2".parse().unwrap(), router().into(), random as u16, 1, 64, &payload),
                6 => fragments(&udp(at(GUEST), name, 64, &[1; 400]), 80, random as u16 & 3)[random as usize % 6].clone(),
                _ => payload,
            };
            for (at, value) in changes {
                // Addresses stay what they are.
                if let Some(byte) = frame.get_mut(at).filter(|_| !(26..34).contains(&at) && !(22..54).contains(&at)) {
                    *byte = value;
                }
            }
            if frame.len() < 14 {
                continue;
            }
            let gso = [Gso::None, Gso::Udp, Gso::Tcp4, Gso::Tcp6][(random >> 20) as usize & 3];
            let offload = Offload::new(gso, (random >> 24) as u16, (random >> 32) as u16, (random >> 48) as u16 & 127, 6);
            let offload = if random & 0x8_0000 == 0 { Offload::NONE } else { offload };
            let Some(offload) = offload.checked(frame.len()) else { continue };
            lab.turn(nic, &[(&frame, offload)]);
        }
        server.set_nonblocking(true).unwrap();
        prop_assert!(lab.show().len() <= 4 * 8);
    }
}
