//! UDP through the socket engine, behaviour by behaviour. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::net::{SocketAddr, UdpSocket};

use nat::{Filtering, Protocol, Publication};
use proptest::prelude::*;
use scripted::*;
use sys::inet::udp::{Datagrams, Kind, Outgoing, RecvBatch, SendBatch};
use wire::{DropReason, Gso, NicId, Offload};

const GUEST: &str = "10.0.0.2:4000";

fn publication(listen: SocketAddr, to: &str, count: u16) -> Publication {
    Publication { protocol: Protocol::Udp, listen, to: at(to), count, nic: None }
}

/// A range of ports of which nobody else in this test program has one.
fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

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
fn a_closed_port_is_told_to_the_guest() {
    for (guest, v6) in [(GUEST, false), ("[fd00::2]:4000", true)] {
        let mut lab = Lab::new(config());
        let (server, name) = server(v6);
        drop(server);
        let sent = udp(at(guest), name, 64, b"anybody there?");
        let mut frames: Vec<Vec<u8>> = lab.send(0, &sent).into_iter().map(|got| got.bytes).collect();
        if frames.is_empty() {
            frames = lab.receive();
        }
        let told = told(&frames[0]);
        assert_eq!((told.kind, told.code), if v6 { (1, 4) } else { (3, 3) });
        assert_eq!((told.from, told.to), (name.ip(), at(guest).ip()));
        assert_eq!(ends(&told.quoted), (at(guest), name));
        if !v6 {
            assert_eq!(told.quoted[16..20], sent[16..20], "length and identification of the guest's own packet");
            assert_eq!(told.quoted[38..42], sent[38..42], "length and checksum of its datagram");
        }
        // The mapping stays and the next datagram is not lost by the error of the one before.
        let (open, name) = scripted::server(v6);
        lab.send(0, &udp(at(guest), name, 64, b"next"));
        assert_eq!(next(&open).0, b"next");
        assert_eq!(lab.show().len(), 1);
    }
}

#[test]
fn errors_of_one_destination_do_not_hold_up_the_others_of_a_burst() {
    let mut lab = Lab::new(config());
    let (open, name) = server(false);
    let (closed, gone) = server(false);
    drop(closed);
    let frames: Vec<Vec<u8>> =
        (0..60).map(|n| udp(at(GUEST), if n % 2 == 0 { name } else { gone }, 64, &[n])).collect();
    let burst: Vec<(&[u8], Offload)> = frames.iter().map(|frame| (&frame[..], Offload::NONE)).collect();
    lab.turn(0, &burst);
    for n in (0..60).step_by(2) {
        assert_eq!(next(&open).0, [n]);
    }
    assert_eq!(lab.drops(DropReason::NoRoute), 0);
}

#[test]
fn the_host_is_out_of_reach_unless_it_is_configured() {
    let mut closed = config();
    closed.host = None;
    let mut lab = Lab::new(closed);
    lab.remote.send(nat::Command::HostAddresses(vec!["192.0.2.2".parse().unwrap()]));
    lab.turn(0, &[]);
    let (server, name) = server(false);
    server.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let port = name.port();
    for to in ["10.0.0.1", "127.0.0.1", "192.0.2.2", "169.254.169.254"] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let got = lab.send(0, &udp(at(GUEST), to, 64, b"let me in"));
        let told = told(&got[0].bytes);
        assert_eq!((told.kind, told.code, ends(&told.quoted)), (3, 13, (at(GUEST), to)));
    }
    assert_eq!(lab.drops(DropReason::NoRoute), 4);
    assert!(server.recv(&mut [0; 64]).is_err());
    assert!(lab.show().is_empty(), "and nothing is open for it");
}

#[test]
fn groups_and_everybody_are_not_sent_to() {
    let mut lab = Lab::new(config());
    for to in ["224.0.0.251:5353", "255.255.255.255:67", "0.0.0.0:9"] {
        assert!(lab.send(0, &udp(at(GUEST), at(to), 64, b"x")).is_empty());
    }
    assert!(lab.send(0, &udp(at("[fd00::2]:1"), at("[ff02::fb]:5353"), 64, b"x")).is_empty());
    assert_eq!(lab.drops(DropReason::NoRoute), 4);
}

#[test]
fn a_guest_that_opens_many_endpoints_takes_from_itself_only() {
    let mut config = config();
    (config.udp_quota, config.udp_mappings, config.descriptors, config.descriptor_quota) = (8, 64, 40, 8);
    let mut lab = Lab::new(config);
    let (server, name) = server(false);
    lab.send(1, &udp(at("10.0.0.3:5000"), name, 64, b"x"));
    let (_, other) = next(&server);
    for port in 10_000..10_200 {
        lab.send(0, &udp(SocketAddr::from(([10, 0, 0, 2], port)), name, 64, b"x"));
        next(&server);
    }
    let lines = lab.show();
    assert_eq!((lines.len(), lines.iter().filter(|line| line.nic == NicId(0)).count()), (9, 8));
    let newest = lines.iter().filter(|line| line.nic == NicId(0)).map(|line| line.inside.port()).min();
    assert_eq!(newest, Some(10_192), "the oldest gave way");
    server.send_to(b"still there", other).unwrap();
    assert_eq!(seen(&lab.receive()[0]).payload, b"still there");
}

#[test]
fn a_published_port_leads_to_its_guest_and_back() {
    let mut lab = Lab::new(config());
    let port = free_port();
    let forward = publication(SocketAddr::from(([127, 0, 0, 1], port)), "10.0.0.2:53", 1);
    lab.publish(&forward).unwrap();
    assert!(lab.publish(&forward).unwrap_err().contains("published already"));
    let clients: Vec<UdpSocket> = (0..3).map(|_| server(false).0).collect();
    for (n, client) in clients.iter().enumerate() {
        client.send_to(&[n as u8; 10], ("127.0.0.1", port)).unwrap();
    }
    let mut frames = Vec::new();
    while frames.len() < 3 {
        frames.extend(lab.receive());
    }
    for frame in &frames {
        let asked = seen(frame);
        assert_eq!((asked.from.ip(), asked.to, asked.mac), (router().into(), at("10.0.0.2:53"), [0; 6]));
        lab.send(3, &udp(asked.to, asked.from, 64, &[asked.payload[0] + 100]));
    }
    for (n, client) in clients.iter().enumerate() {
        let (bytes, from) = next(client);
        assert_eq!(
            (bytes, from.port()),
            (vec![n as u8 + 100], port),
            "each client its own answer, from where it asked"
        );
    }
    clients[0].send_to(b"again", ("127.0.0.1", port)).unwrap();
    assert_eq!(seen(&lab.receive()[0]).mac, GUEST_MAC, "now it is known where the guest is");
    let states: Vec<&str> = lab.show().iter().map(|line| line.state).collect();
    assert_eq!(states, ["published", "client", "client", "client"]);
    lab.seconds(301);
    lab.turn(0, &[]);
    assert_eq!(lab.show().len(), 1, "quiet clients are forgotten");
    assert!(lab.withdraw(&forward) && !lab.withdraw(&forward));
    assert!(UdpSocket::bind(("127.0.0.1", port)).is_ok(), "the port is free again");
}

#[test]
fn ranges_are_published_as_a_whole_or_not_at_all() {
    let mut lab = Lab::new(config());
    let (port, taken) = (0..100)
        .find_map(|_| {
            let port = free_port().min(65_000);
            let taken = UdpSocket::bind(("127.0.0.1", port + 3)).ok()?;
            let free = (0..3).all(|n| UdpSocket::bind(("127.0.0.1", port + n)).is_ok());
            free.then_some((port, taken))
        })
        .unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let error = lab.publish(&publication(listen, "[fd00::2]:7000", 4)).unwrap_err();
    assert!(error.contains(&format!("127.0.0.1:{}", port + 3)), "{error}");
    assert!(lab.show().is_empty());
    assert!(lab.publish(&publication(at("127.0.0.1:65535"), "10.0.0.2:7000", 2)).is_err());
    drop(taken);
    // The guest may be of the other family.
    lab.publish(&publication(listen, "[fd00::2]:7000", 4)).unwrap();
    let (client, _) = server(false);
    client.send_to(b"x", ("127.0.0.1", port + 2)).unwrap();
    let asked = seen(&lab.receive()[0]);
    assert_eq!((asked.from.ip(), asked.to), (router6().into(), at("[fd00::2]:7002")));
    lab.send(0, &udp(asked.to, asked.from, 64, b"y"));
    assert_eq!(next(&client), (b"y".to_vec(), SocketAddr::from(([127, 0, 0, 1], port + 2))));
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

#[test]
fn too_long_for_the_path_is_told_with_the_mtu() {
    if !in_namespace("too_long_for_the_path_is_told_with_the_mtu") {
        return;
    }
    run(&["ip", "link", "set", "lo", "mtu", "1400"]);
    for (guest, v6) in [(GUEST, false), ("[fd00::2]:4000", true)] {
        let mut lab = Lab::new(config());
        let (server, name) = server(v6);
        let long = udp(at(guest), name, 64, &[7; 1450]);
        let frames = lab.send(0, &long);
        let told = told(&frames[0].bytes);
        assert_eq!((told.kind, told.code, told.word), if v6 { (2, 0, 1400) } else { (3, 4, 1400) });
        assert_eq!(ends(&told.quoted), (at(guest), name));
        assert_eq!(lab.drops(DropReason::TooBig), 1);
        if !v6 {
            lab.send(0, &without_df(long));
            assert_eq!(next(&server).0, [7; 1450], "without DF, the host fragments");
        }
        lab.send(0, &udp(at(guest), name, 64, &[8; 1300]));
        assert_eq!(next(&server).0, [8; 1300]);
        // A run of datagrams of which each is too long, and one of which none is.
        let l4 = if v6 { 54 } else { 34 };
        let run = udp(at(guest), name, 64, &[9; 5000]);
        let offload = |size| Offload::new(Gso::Udp, l4 + 8, size, l4, 6);
        assert!(!lab.turn(0, &[(&run, offload(1450))]).is_empty());
        lab.turn(0, &[(&run, offload(1300))]);
        assert_eq!(next(&server).0, [9; 1300]);
    }
}

#[test]
fn routers_on_the_way_are_seen_by_the_guest() {
    if !in_namespace("routers_on_the_way_are_seen_by_the_guest") {
        return;
    }
    let router = Router::new();
    let mut lab = Lab::new(config());
    for (guest, target, hop, v6) in [
        (GUEST, "203.0.113.1:33434", "198.51.100.1", false),
        ("[fd00::2]:4000", "[2001:db8:2::1]:33434", "2001:db8:1::1", true),
    ] {
        let beyond = if v6 { "[2001:db8:2::77]:33434" } else { "203.0.113.77:33434" };
        // The first with what the socket has anyway, the second with a TTL of its own.
        for ttl in [64, 1] {
            let closed = told(&lab.ask(0, &udp(at(guest), at(target), ttl, b"probe"))[0]);
            assert_eq!((closed.kind, closed.code), if v6 { (1, 4) } else { (3, 3) });
            assert_eq!(closed.from, at(target).ip());
        }
        let exceeded = told(&lab.ask(0, &udp(at(guest), at(beyond), 1, b"probe"))[0]);
        assert_eq!((exceeded.kind, exceeded.code), if v6 { (3, 0) } else { (11, 0) });
        assert_eq!(exceeded.from.to_string(), hop);
        assert_eq!(ends(&exceeded.quoted), (at(guest), at(beyond)));
        // The far link is narrower than ours; from the second on the host knows that itself.
        for from in
            [hop.parse().unwrap(), if v6 { router6().into() } else { std::net::IpAddr::from(scripted::router()) }]
        {
            let long = told(&lab.ask(0, &udp(at(guest), at(beyond), 64, &[1; 1400]))[0]);
            assert_eq!((long.kind, long.code, long.word), if v6 { (2, 0, 1300) } else { (3, 4, 1300) });
            assert_eq!((long.from, ends(&long.quoted)), (from, (at(guest), at(beyond))));
        }
    }
    router.run("ip route add unreachable 192.0.2.0/24");
    let unreachable = told(&lab.ask(0, &udp(at(GUEST), at("192.0.2.9:9"), 64, b"x"))[0]);
    assert_eq!((unreachable.kind, unreachable.code, unreachable.from.to_string().as_str()), (3, 1, "198.51.100.1"));
    run(&["ip", "route", "del", "default"]);
    let unreachable = told(&lab.ask(0, &udp(at(GUEST), at("192.0.2.9:9"), 64, b"x"))[0]);
    assert_eq!((unreachable.kind, unreachable.code), (3, 0), "no route of the host's");
}

#[test]
fn strangers_are_let_in_only_if_that_is_configured() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let mut config = config();
        config.filtering = filtering;
        let mut lab = Lab::new(config);
        let (server, name) = server(false);
        lab.send(0, &udp(at(GUEST), name, 64, b"x"));
        let (_, mapped) = next(&server);
        let to = SocketAddr::from(([127, 0, 0, 1], mapped.port()));
        let stranger = UdpSocket::bind("127.0.0.2:0").unwrap();
        stranger.send_to(b"strange", to).unwrap();
        if filtering == Filtering::EndpointIndependent {
            assert_eq!(seen(&lab.receive()[0]).payload, b"strange");
        } else {
            lab.nothing();
            assert_eq!(lab.drops(DropReason::Filtered), 1);
        }
        // Another port of the same address is no stranger.
        let friend = UdpSocket::bind("127.0.0.1:0").unwrap();
        friend.send_to(b"friend", to).unwrap();
        assert_eq!(seen(&lab.receive()[0]).payload, b"friend");
    }
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
