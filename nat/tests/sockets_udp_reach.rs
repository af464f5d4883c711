//! Whom a guest reaches by UDP and who reaches it, and what it is told where that fails. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::net::{SocketAddr, UdpSocket};

use nat::{Filtering, Protocol, Publication};
use scripted::*;
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
    lab.host_has(&[("192.0.2.2", 32), ("10.9.0.0", 16)]);
    let (server, name) = server(false);
    server.set_read_timeout(Some(std::time::Duration::from_millis(50))).unwrap();
    let port = name.port();
    for to in ["10.0.0.1", "127.0.0.1", "192.0.2.2", "10.9.3.4", "169.254.169.254"] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let got = lab.send(0, &udp(at(GUEST), to, 64, b"let me in"));
        let told = told(&got[0].bytes);
        assert_eq!((told.kind, told.code, ends(&told.quoted)), (3, 13, (at(GUEST), to)));
    }
    assert_eq!(lab.drops(DropReason::NoRoute), 5);
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
    assert_eq!(seen(&lab.receive()[0]).mac, [0; 6], "anybody may have answered: the router finds the guest");
    let states: Vec<&str> = lab.show().iter().map(|line| line.state).collect();
    assert_eq!(states, ["published", "client", "client", "client"]);
    lab.seconds(301);
    lab.turn(0, &[]);
    assert_eq!(lab.show().len(), 1, "quiet clients are forgotten");
    assert!(lab.withdraw(&forward) && !lab.withdraw(&forward));
    assert!(UdpSocket::bind(("127.0.0.1", port)).is_ok(), "the port is free again");
}

#[test]
fn a_guest_whose_nic_is_known_says_itself_where_it_is() {
    let mut config = config();
    config.host = None;
    let mut lab = Lab::new(config);
    let port = free_port();
    let forward = publication(SocketAddr::from(([127, 0, 0, 1], port)), "10.0.0.2:53", 1);
    lab.publish(&Publication { nic: Some(NicId(3)), ..forward }).unwrap();
    let (client, _) = server(false);
    for (nic, mac) in [(4, [0; 6]), (3, [0; 6]), (3, GUEST_MAC)] {
        client.send_to(b"ask", ("127.0.0.1", port)).unwrap();
        let asked = seen(&lab.receive()[0]);
        assert_eq!(asked.mac, mac);
        lab.send(nic, &udp(asked.to, asked.from, 64, b"answer"));
    }
    // That of another NIC has gone nowhere.
    assert_eq!([next(&client).0, next(&client).0], [b"answer"; 2]);
    client.set_nonblocking(true).unwrap();
    assert!(client.recv(&mut [0; 9]).is_err());
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
    assert!(error.contains(&format!("udp 127.0.0.1:{}: another program has this port", port + 3)), "{error}");
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
