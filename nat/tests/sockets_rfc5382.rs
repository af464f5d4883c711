//! RFC 5382 (TCP) and the socket engine, requirement by requirement. See `conformance.rs` for the convention of the comments.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use nat::{Protocol, Publication, SocketsConfig};
use scripted::{
    tcp::{End, SYN, accept, connected, listener, lives, segment},
    *,
};

const GUEST: &str = "10.0.0.2:4000";
const OTHER: &str = "10.0.0.3:4000";

/// RFC 5382 REQ-1 | sockets | not met | Every connection has a socket and an outside port of its own, so that the host may have as many as it has ports to each destination.
#[test]
fn rfc5382_req1_sockets_every_connection_has_a_port_of_its_own() {
    let mut lab = Lab::new(config());
    let (_one, first) = connected(&mut lab);
    let (_two, second) = connected(&mut lab);
    assert_ne!(first.peer_addr().unwrap(), second.peer_addr().unwrap());
    assert!(lab.show().iter().all(|line| line.inside == at(GUEST)));
}

/// RFC 5382 REQ-2 | sockets | met | Each half ends by itself, in any order; a SYN from outside that crosses the guest's opens the connection, which the guest sees as an answer.
#[test]
fn rfc5382_req2_sockets_all_valid_sequences() {
    if !in_namespace("rfc5382_req2_sockets_all_valid_sequences") {
        return;
    }
    let mut lab = Lab::new(config());
    // Ends that cross: both say so before they hear of the other's.
    let (mut guest, mut host) = connected(&mut lab);
    host.shutdown(std::net::Shutdown::Write).unwrap();
    guest.end(&mut lab);
    guest.until(&mut lab, |guest| guest.fin);
    assert_eq!((host.read(&mut [0]).unwrap(), guest.acked), (0, guest.seq));
    // Data behind the other's end.
    let (mut guest, mut host) = connected(&mut lab);
    guest.end(&mut lab);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    host.write_all(b"late").unwrap();
    drop(host);
    guest.until(&mut lab, |guest| guest.fin && guest.received == b"late");
    // Simultaneous open: with one port to connect from, the host's socket meets its own SYN.
    run(&["sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 40000"]);
    let mut guest = End::new(0, at("10.0.0.2:4001"), SocketAddr::new(router().into(), 40_000));
    guest.open(&mut lab);
    guest.send(&mut lab, b"to itself");
    guest.until(&mut lab, |guest| guest.received == b"to itself");
}

/// RFC 5382 REQ-3 | sockets | not met | Filtering is by address and port: the outside port of a connection is no listener. Ports that shall be open are published.
#[test]
fn rfc5382_req3_sockets_only_the_peer_is_let_in() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let outside = host.peer_addr().unwrap();
    assert_eq!(TcpStream::connect(outside).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    lab.nothing();
    lives(&mut lab, &mut guest, &mut host);
}

/// RFC 5382 REQ-4 | sockets | not met | The host answers a SYN that nobody waits for as it does any, by a reset at once. One that meets the guest's opens the connection (REQ-2).
#[test]
fn rfc5382_req4_sockets_the_host_refuses_unsolicited_syns() {
    let mut lab = Lab::new(config());
    let (_guest, host) = connected(&mut lab);
    let begun = std::time::Instant::now();
    let refused = TcpStream::connect(host.peer_addr().unwrap()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(begun.elapsed().as_secs() < 6);
}

/// RFC 5382 REQ-5 | sockets | met | An open connection may be silent for 2 h 4 min, one that the host is opening for 4 min, as far as its kernel tries.
#[test]
fn rfc5382_req5_sockets_idle_connections_last() {
    let defaults = SocketsConfig::new(None, None, 1);
    assert!(defaults.tcp_established.as_secs() >= 7440 && defaults.tcp_opening.as_secs() >= 240);
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    for _ in 0..2 {
        lab.seconds(7430);
        lab.turn(0, &[]);
        lives(&mut lab, &mut guest, &mut host);
    }
    lab.seconds(7450);
    for _ in 0..3 {
        let frames: Vec<_> = lab.turn(0, &[]).into_iter().map(|got| got.bytes).collect();
        guest.take(&frames);
    }
    assert!(guest.reset && lab.show().is_empty());
}

/// RFC 5382 REQ-6 | sockets | met | There are no application level gateways: no payload is looked at.
#[test]
fn rfc5382_req6_sockets_payload_is_left_alone() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    guest.send(&mut lab, b"PORT 10,0,0,2,15,160\r\n");
    let mut bytes = [0; 22];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"PORT 10,0,0,2,15,160\r\n");
}

/// RFC 5382 REQ-7 | sockets | met | No port overloading: two connections to one destination never share an outside port.
#[test]
fn rfc5382_req7_sockets_ports_are_never_overloaded() {
    let mut lab = Lab::new(config());
    let (listener, name) = listener(false);
    let mut taken = std::collections::HashSet::new();
    for nic in 0..8 {
        let mut guest = End::new(nic, SocketAddr::new([10, 0, 0, 2 + nic as u8].into(), 4000), name);
        guest.open(&mut lab);
        assert!(taken.insert(accept(&listener).peer_addr().unwrap()));
    }
}

/// RFC 5382 REQ-8 | sockets | not met | A published port of another guest is an address of this host, which guests do not reach; where that is configured, they reach it, seen as the router.
#[test]
fn rfc5382_req8_sockets_hairpinning_only_where_the_host_may_be_reached() {
    let publish = |lab: &mut Lab| {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let of = Publication { protocol: Protocol::Tcp, listen: free, to: at(OTHER), count: 1, nic: None };
        lab.publish(&of).unwrap();
        free.port()
    };
    let mut lab = Lab::new(config());
    let port = publish(&mut lab);
    let caller = End::new(0, at(GUEST), SocketAddr::new(router().into(), port));
    let syn = segment(&lab.ask(0, &caller.frame(SYN, b""))[0]).unwrap();
    let asks = |segment: &scripted::tcp::Segment| segment.to == at(OTHER) && segment.flags == SYN;
    let asked = if asks(&syn) { syn } else { segment(&lab.receive()[0]).unwrap() };
    assert!(asks(&asked) && asked.from.ip() == router(), "{asked:?}");
    let mut config = config();
    config.host = None;
    let mut lab = Lab::new(config);
    let port = publish(&mut lab);
    lab.host_has(&[("192.0.2.7", 32)]);
    let caller = End::new(0, at(GUEST), SocketAddr::new([192, 0, 2, 7].into(), port));
    assert_eq!(told(&lab.ask(0, &caller.frame(SYN, b""))[0]).code, 13);
}

/// RFC 5382 REQ-9 | sockets | met | What keeps the host from connecting is told to the guest about its own SYN. Of an open connection, errors are for the host's TCP, path MTU included.
#[test]
fn rfc5382_req9_sockets_errors_of_opening_are_told() {
    if !in_namespace("rfc5382_req9_sockets_errors_of_opening_are_told") {
        return;
    }
    let net = Router::new();
    net.run("ip route add unreachable 203.0.113.64/26");
    net.run("ip route add prohibit 203.0.113.128/26");
    let mut lab = Lab::new(config());
    for (to, code) in [("203.0.113.70:80", 1), ("203.0.113.130:80", 13)] {
        let guest = End::new(0, at(GUEST), at(to));
        let error = told(&lab.ask(0, &guest.frame(SYN, b""))[0]);
        let own = &guest.frame(SYN, b"")[26..42];
        assert_eq!((error.kind, &error.quoted[26..42]), (3, own), "its own addresses, ports and number");
        // The kernel tells some of them as one.
        assert!([1, code].contains(&error.code), "{error:?}");
    }
}

/// RFC 5382 REQ-10 | sockets | not met | An error ends a connection that the host is still opening, as it does the host's own; the guest is told (REQ-9) and may try again.
#[test]
fn rfc5382_req10_sockets_errors_end_what_is_opening() {
    if !in_namespace("rfc5382_req10_sockets_errors_end_what_is_opening") {
        return;
    }
    let net = Router::new();
    net.run("ip route add unreachable 203.0.113.64/26");
    let mut lab = Lab::new(config());
    let guest = End::new(0, at(GUEST), at("203.0.113.70:80"));
    for _ in 0..2 {
        assert_eq!(told(&lab.ask(0, &guest.frame(SYN, b""))[0]).kind, 3);
        assert!(lab.show().is_empty());
    }
}
