//! RFC 4787 (UDP) and the socket engine, requirement by requirement. See `conformance.rs` for the convention of the comments.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::net::{SocketAddr, UdpSocket};

use nat::Filtering;
use scripted::*;
use wire::{DropReason, NicId};

const GUEST: &str = "10.0.0.2:4000";

/// An endpoint whose port nobody on this host has.
fn free(address: &str, even: Option<bool>) -> SocketAddr {
    (0..1000)
        .map(|_| UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port())
        .find(|port| even.is_none_or(|even| even == port.is_multiple_of(2)))
        .map(|port| SocketAddr::new(address.parse().unwrap(), port))
        .unwrap()
}

/// RFC 4787 REQ-1 | sockets | met | One socket for an inside endpoint, whoever it speaks to, so one outside port.
#[test]
fn rfc4787_req1_sockets_mapping_is_endpoint_independent() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let mut config = config();
        config.filtering = filtering;
        let mut lab = Lab::new(config);
        let servers: Vec<_> = (0..5).map(|_| server(false)).collect();
        let ports: Vec<u16> = servers
            .iter()
            .map(|(server, name)| {
                lab.send(0, &udp(at(GUEST), *name, 64, b"x"));
                next(server).1.port()
            })
            .collect();
        assert!(ports.iter().all(|port| *port == ports[0]), "{ports:?}");
        lab.send(0, &udp(at("10.0.0.2:4002"), servers[0].1, 64, b"x"));
        assert_ne!(next(&servers[0].0).1.port(), ports[0]);
    }
}

/// RFC 4787 REQ-2 | sockets | not met | The host's routes choose the outside address by destination. On a host with one address it is always that one; with more, an endpoint may have several.
#[test]
fn rfc4787_req2_sockets_the_hosts_routes_choose_the_address() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    for port in 4000..4020 {
        lab.send(0, &udp(SocketAddr::from(([10, 0, 0, 2], port)), name, 64, b"x"));
        assert_eq!(next(&server).1.ip().to_string(), "127.0.0.1");
    }
}

/// RFC 4787 REQ-3 | sockets | met | No port overloading: two inside endpoints never share a socket; a port that the host or another guest has is not taken.
#[test]
fn rfc4787_req3_sockets_ports_are_never_overloaded() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let same = free("10.0.0.2", None);
    let mut ports = std::collections::HashSet::new();
    for nic in 0..8u16 {
        lab.send(nic, &udp(same, name, 64, b"x"));
        assert!(ports.insert(next(&server).1.port()));
    }
    assert!(ports.contains(&same.port()), "the first keeps its port");
    let host = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let taken = UdpSocket::bind(("0.0.0.0", host)).unwrap();
    lab.send(0, &udp(SocketAddr::from(([10, 0, 0, 2], host)), name, 64, b"x"));
    assert_ne!(next(&server).1.port(), taken.local_addr().unwrap().port());
}

/// RFC 4787 REQ-3a | sockets | not met | Well-known ports of the host are never taken for guests, whatever privilege there is; such inside ports get others.
#[test]
fn rfc4787_req3a_sockets_low_ports_are_the_hosts() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    for port in [1, 53, 123, 1023] {
        lab.send(0, &udp(SocketAddr::from(([10, 0, 0, 2], port)), name, 64, b"x"));
        assert!(next(&server).1.port() >= 1024);
    }
}

/// RFC 4787 REQ-3b | sockets | met | Inside ports from 1024 on get outside ports from 1024 on.
#[test]
fn rfc4787_req3b_sockets_other_ports_are_of_their_range() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    for nic in 0..6 {
        for port in [1024, 30_000, 65_535] {
            lab.send(nic, &udp(SocketAddr::from(([10, 0, 0, 2], port)), name, 64, b"x"));
            assert!(next(&server).1.port() >= 1024);
        }
    }
}

/// RFC 4787 REQ-4 | sockets | met | Parity is kept, also where the port itself is taken; after eight ports that others have it is given up.
#[test]
fn rfc4787_req4_sockets_parity_is_kept() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    for even in [true, false] {
        let inside = free("10.0.0.2", Some(even));
        for nic in 0..6 {
            lab.send(nic, &udp(inside, name, 64, b"x"));
            assert_eq!(next(&server).1.port().is_multiple_of(2), even);
        }
    }
}

/// RFC 4787 REQ-5 | sockets | met | UDP mappings last five minutes unless told otherwise.
#[test]
fn rfc4787_req5_sockets_udp_mappings_last() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_, from) = next(&server);
    lab.seconds(299);
    server.send_to(b"y", from).unwrap();
    assert_eq!(lab.receive().len(), 1);
    lab.seconds(1);
    lab.turn(0, &[]);
    server.send_to(b"y", from).unwrap();
    lab.nothing();
    assert!(lab.show().is_empty());
}

/// RFC 4787 REQ-5a | sockets | met | Mappings that speak to well-known ports only may be shorter: two minutes unless told otherwise.
#[test]
fn rfc4787_req5a_sockets_well_known_destinations_may_be_shorter() {
    let mut lab = Lab::new(config());
    let (_server, name) = server(false);
    let well_known = SocketAddr::new(router().into(), 9);
    lab.send(0, &udp(at("10.0.0.2:4001"), well_known, 64, b"x"));
    lab.send(0, &udp(at("10.0.0.2:4002"), well_known, 64, b"x"));
    lab.send(0, &udp(at("10.0.0.2:4002"), name, 64, b"x"));
    let expires: Vec<Option<u32>> = lab.show().iter().map(|line| line.expires).collect();
    assert_eq!(expires, [Some(120), Some(300)]);
    lab.seconds(120);
    lab.turn(0, &[]);
    assert_eq!(lab.show().iter().map(|line| line.inside.port()).collect::<Vec<_>>(), [4002]);
}

/// RFC 4787 REQ-6 | sockets | met | Outbound datagrams renew a mapping; inbound ones do not.
#[test]
fn rfc4787_req6_sockets_outbound_refreshes() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    for _ in 0..4 {
        lab.send(0, &udp(at(GUEST), name, 64, b"x"));
        lab.seconds(200);
        lab.turn(0, &[]);
    }
    let (_, from) = next(&server);
    server.send_to(b"y", from).unwrap();
    assert_eq!(lab.receive().len(), 1);
    lab.seconds(100);
    lab.turn(0, &[]);
    assert!(lab.show().is_empty());
}

/// RFC 4787 REQ-7 | sockets | not met | That a subnet inside is none of the host's is for the program to check; the engine refuses what it is told are addresses of the host.
#[test]
fn rfc4787_req7_sockets_addresses_of_the_host_are_refused() {
    let mut config = config();
    config.host = None;
    let mut lab = Lab::new(config);
    lab.host_has(&[("10.0.0.77", 32)]);
    assert_eq!(lab.send(0, &udp(at(GUEST), at("10.0.0.77:9"), 64, b"x")).len(), 1, "told so");
    assert_eq!(lab.drops(DropReason::NoRoute), 1);
}

/// RFC 4787 REQ-8 | sockets | met | Filtering is endpoint-independent or address-dependent, as chosen. Of an endpoint, 64 addresses are remembered.
#[test]
fn rfc4787_req8_sockets_filtering_is_as_chosen() {
    for (filtering, let_in) in [(Filtering::EndpointIndependent, true), (Filtering::AddressDependent, false)] {
        let mut config = config();
        config.filtering = filtering;
        let mut lab = Lab::new(config);
        let (server, name) = server(false);
        lab.send(0, &udp(at(GUEST), name, 64, b"x"));
        let (_, from) = next(&server);
        let stranger = UdpSocket::bind("127.0.0.2:0").unwrap();
        stranger.send_to(b"y", ("127.0.0.1", from.port())).unwrap();
        server.send_to(b"z", from).unwrap();
        let mut got = Vec::new();
        while got.last().is_none_or(|last: &Vec<u8>| last != b"z") {
            got.extend(lab.receive().iter().map(|frame| seen(frame).payload));
        }
        assert_eq!(got.len() == 2, let_in);
    }
}

/// RFC 4787 REQ-9 | sockets | not met | The outside endpoint of another guest is an address of this host, which guests do not reach; where that is configured, hairpinning works, with the outside source address and port.
#[test]
fn rfc4787_req9_sockets_hairpinning_only_where_the_host_may_be_reached() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let mut outside = Vec::new();
    for (nic, guest) in [(0, GUEST), (1, "10.0.0.3:4000")] {
        lab.send(nic, &udp(at(guest), name, 64, b"x"));
        outside.push(SocketAddr::new(router().into(), next(&server).1.port()));
    }
    let there = seen(&lab.ask(0, &udp(at(GUEST), outside[1], 64, b"hello"))[0]);
    assert_eq!((there.from, there.to), (outside[0], at("10.0.0.3:4000")));
    let back = seen(&lab.ask(1, &udp(at("10.0.0.3:4000"), outside[0], 64, b"hello"))[0]);
    assert_eq!((back.from, back.to), (outside[1], at(GUEST)));
    let mut config = config();
    config.host = None;
    let mut lab = Lab::new(config);
    assert_eq!(told(&lab.ask(0, &udp(at(GUEST), outside[1], 64, b"hello"))[0]).code, 13);
}

/// RFC 4787 REQ-10 | sockets | met | There are no application gateways: no payload is looked at.
#[test]
fn rfc4787_req10_sockets_payloads_are_left_alone() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let sip = b"INVITE sip:a@10.0.0.2:4000 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.2:4000\r\nc=IN IP4 10.0.0.2\r\n";
    lab.send(0, &udp(at(GUEST), name, 64, sip));
    assert_eq!(next(&server).0, sip);
}

/// RFC 4787 REQ-11 | sockets | met | Behaviour does not change with load or time: an endpoint keeps its outside port whatever others open.
#[test]
fn rfc4787_req11_sockets_behaviour_is_deterministic() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let ask = |lab: &mut Lab, nic, inside| {
        lab.send(nic, &udp(inside, name, 64, b"x"));
        next(&server).1.port()
    };
    let first = ask(&mut lab, 0, at(GUEST));
    for port in 5000..5200 {
        ask(&mut lab, 1, SocketAddr::from(([10, 0, 0, 3], port)));
        assert_eq!(ask(&mut lab, 0, at(GUEST)), first);
    }
}

/// RFC 4787 REQ-12 | sockets | met | ICMP errors never end a mapping.
#[test]
fn rfc4787_req12_sockets_icmp_errors_do_not_end_mappings() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_, before) = next(&server);
    let (closed, gone) = scripted::server(false);
    drop(closed);
    for _ in 0..5 {
        assert_eq!(told(&lab.ask(0, &udp(at(GUEST), gone, 64, b"x"))[0]).kind, 3);
    }
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    assert_eq!(next(&server).1, before);
}

/// RFC 4787 REQ-13 | sockets | met | A datagram with DF that is too long for the path is answered with fragmentation needed (packet too big) and the MTU; without DF the host fragments.
#[test]
fn rfc4787_req13_sockets_df_is_honoured() {
    if !in_namespace("rfc4787_req13_sockets_df_is_honoured") {
        return;
    }
    run(&["ip", "link", "set", "lo", "mtu", "1400"]);
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let long = udp(at(GUEST), name, 64, &[7; 1450]);
    let needed = told(&lab.ask(0, &long)[0]);
    assert_eq!((needed.kind, needed.code, needed.word), (3, 4, 1400));
    lab.send(0, &without_df(long));
    assert_eq!(next(&server).0, [7; 1450]);
}

/// RFC 4787 REQ-14 | sockets | met | Fragments are joined, in order and out of order; what is too long for the segment inside goes there in fragments.
#[test]
fn rfc4787_req14_sockets_fragments_pass_both_ways() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let parts = fragments(&udp(at(GUEST), name, 64, &[3; 4000]), 1480, 9);
    for order in [[0, 1, 2], [2, 0, 1]] {
        order.iter().for_each(|n| assert!(lab.send(0, &parts[*n]).is_empty()));
        let (bytes, from) = next(&server);
        assert_eq!(bytes, [3; 4000]);
        server.send_to(&bytes, from).unwrap();
        assert_eq!(seen(&joined(&lab.receive())).payload, [3; 4000]);
    }
}

/// RFC 4787 REQ-14a | sockets | met | Memory for fragments is bounded, by NIC and in all: floods of them take nothing from others.
#[test]
fn rfc4787_req14a_sockets_fragments_are_bounded() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    let parts = fragments(&udp(at("10.0.0.3:4000"), name, 64, &[9; 3000]), 1480, 1);
    lab.send(1, &parts[0]);
    for id in 0..500u16 {
        for nic in [0, 2, 3] {
            let part = &fragments(&udp(at(GUEST), name, 64, &[1; 200]), 104, id)[0];
            lab.send(nic, part);
        }
    }
    lab.send(1, &parts[1]);
    lab.send(1, &parts[2]);
    assert_eq!(next(&server).0, [9; 3000]);
    assert_eq!(lab.show().iter().filter(|line| line.nic == NicId(1)).count(), 1);
}
