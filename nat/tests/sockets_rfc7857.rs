//! RFC 7857 (what changed of RFC 4787, 5382 and 5508) and the socket engine, section by section. See `conformance.rs` for the convention of the
//! comments.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::{
    collections::HashSet,
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use nat::Protocol;
use scripted::{
    tcp::{ACK, End, FIN, RST, SYN, accept, connected, listener},
    *,
};
use wire::DropReason;

const GUEST: &str = "10.0.0.2:4000";

/// RFC 7857 section 2 | sockets | met | A SYN between the same endpoints opens the next connection.
#[test]
fn rfc7857_2_sockets_the_next_connection_may_have_the_same_endpoints() {
    let mut lab = Lab::new(config());
    let (listener, name) = listener(false);
    for _ in 0..3 {
        let mut guest = End::new(0, at(GUEST), name);
        guest.open(&mut lab);
        let mut host = accept(&listener);
        guest.end(&mut lab);
        assert_eq!(host.read(&mut [0]).unwrap(), 0);
        drop(host);
        guest.until(&mut lab, |guest| guest.fin);
        let said = guest.say(&mut lab, &guest.frame_at(guest.seq.wrapping_sub(1), ACK | FIN, b""));
        assert!(said.iter().all(|said| (said.flags, said.ack) == (ACK, guest.seq)), "what comes late: {said:?}");
    }
}

/// RFC 7857 section 2.1 | sockets | met | How long a connection may open is set apart; when it closes, the host's own times apply.
#[test]
fn rfc7857_2_1_sockets_opening_has_a_lifetime_of_its_own() {
    if !in_namespace("rfc7857_2_1_sockets_opening_has_a_lifetime_of_its_own") {
        return;
    }
    let net = Router::new();
    net.run("ip route add 203.0.113.64/26 dev far");
    for minutes in [4u64, 8] {
        let mut config = config();
        config.tcp_opening = Duration::from_secs(minutes * 60);
        let mut lab = Lab::new(config);
        // Nobody answers there, not even to ARP: the host itself would wait.
        let guest = End::new(0, at(GUEST), at("203.0.113.70:80"));
        assert!(lab.send(0, &guest.frame(SYN, b"")).is_empty());
        let expires = lab.show()[0].expires;
        assert_eq!(expires, Some(minutes as u32 * 60));
    }
}

/// RFC 7857 section 2.2 | sockets | not met | A reset goes to the host's socket and ends the connection at once, on both sides: the host checks its number (RFC 5961) for what comes from outside, the engine for what comes from inside.
#[test]
fn rfc7857_2_2_sockets_a_reset_ends_at_once() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let forged = guest.frame_at(guest.seq.wrapping_add(1 << 30), RST, b"");
    guest.say(&mut lab, &forged);
    scripted::tcp::lives(&mut lab, &mut guest, &mut host);
    let reset = guest.frame(RST, b"");
    assert!(guest.say(&mut lab, &reset).is_empty());
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(lab.show().is_empty());
}

/// RFC 7857 section 3 | sockets | met | Of TCP the host may give one port to connections with different destinations, and it tells them apart by both endpoints. Of UDP no port is shared.
#[test]
fn rfc7857_3_sockets_connections_are_told_apart_by_both_endpoints() {
    if !in_namespace("rfc7857_3_sockets_connections_are_told_apart_by_both_endpoints") {
        return;
    }
    run(&["sysctl", "-q", "-w", "net.ipv4.ip_local_port_range=40000 40000"]);
    let mut lab = Lab::new(config());
    let mut ends = Vec::new();
    for n in 1..3u16 {
        let socket = std::net::TcpListener::bind(("127.0.0.1", 5000 + n)).unwrap();
        let mut guest = End::new(0, at(GUEST), SocketAddr::new(router().into(), 5000 + n));
        guest.open(&mut lab);
        let host = accept(&socket);
        assert_eq!(host.peer_addr().unwrap().port(), 40_000);
        ends.push((guest, host));
    }
    for (guest, host) in &mut ends {
        scripted::tcp::lives(&mut lab, guest, host);
    }
    let (server, name) = server(false);
    let ports: HashSet<u16> = (0..4)
        .map(|nic| {
            lab.send(nic, &udp(at(GUEST), name, 64, b"x"));
            next(&server).1.port()
        })
        .collect();
    assert_eq!(ports.len(), 4);
}

/// RFC 7857 section 4 | sockets | not met | The host's routes choose the outside address, by destination (RFC 4787 REQ-2); of a host with one address it is that of all protocols.
#[test]
fn rfc7857_4_sockets_one_address_for_all_protocols() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_guest, host) = connected(&mut lab);
    assert_eq!(next(&server).1.ip(), host.peer_addr().unwrap().ip());
}

/// RFC 7857 section 5 | sockets | met | Mappings are of one protocol: a socket of TCP says nothing of the same port's of UDP.
#[test]
fn rfc7857_5_sockets_mappings_are_of_one_protocol() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let _from = next(&server);
    let (_guest, _host) = connected(&mut lab);
    let protocols: HashSet<Protocol> = lab.show().iter().map(|line| line.protocol).collect();
    assert_eq!((lab.show().len(), protocols.len()), (2, 2), "of one inside endpoint");
}

/// RFC 7857 section 6 | sockets | met | Filtering is of one protocol: nothing comes in by TCP where UDP does, nor by UDP where TCP does.
#[test]
fn rfc7857_6_sockets_filtering_is_of_one_protocol() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_, outside) = next(&server);
    assert_eq!(TcpStream::connect(outside).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let (_guest, host) = connected(&mut lab);
    let stream = host.peer_addr().unwrap();
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"y", stream).unwrap();
    lab.nothing();
}

/// RFC 7857 section 7 | sockets | not met | What comes in never renews a mapping; that cannot be chosen otherwise.
#[test]
fn rfc7857_7_sockets_inbound_never_refreshes() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_, outside) = next(&server);
    lab.seconds(299);
    server.send_to(b"y", outside).unwrap();
    assert_eq!(lab.receive().len(), 1);
    lab.seconds(1);
    lab.turn(0, &[]);
    assert!(lab.show().is_empty());
}

/// RFC 7857 section 7.1 | sockets | met | What a guest answers to what came in, errors and resets, renews nothing: errors do not pass, and a reset ends its connection.
#[test]
fn rfc7857_7_1_sockets_errors_renew_nothing() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_, outside) = next(&server);
    lab.seconds(299);
    server.send_to(b"y", outside).unwrap();
    let came = lab.receive().remove(0);
    lab.send(0, &refusal(&came));
    assert_eq!(lab.drops(DropReason::NotTranslated), 1);
    lab.seconds(1);
    lab.turn(0, &[]);
    assert!(lab.show().is_empty());
}

/// "Port unreachable" about a packet that a guest was sent.
fn refusal(about: &[u8]) -> Vec<u8> {
    let ends = ends(about);
    let (std::net::IpAddr::V4(to), std::net::IpAddr::V4(from)) = (ends.0.ip(), ends.1.ip()) else { panic!() };
    let mut frame = Vec::new();
    let builder =
        etherparse::PacketBuilder::ethernet2(GUEST_MAC, [2, 0, 0, 0, 0, 9]).ipv4(from.octets(), to.octets(), 64);
    let kind = etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port);
    builder.icmpv4(kind).write(&mut frame, &about[14..14 + 28]).unwrap();
    frame
}

/// RFC 7857 section 8 | sockets | not met | Parity is kept wherever it can be; that cannot be switched off.
#[test]
fn rfc7857_8_sockets_parity_is_kept() {
    let mut config = config();
    config.preserve_port = false;
    let mut lab = Lab::new(config);
    let (server, name) = server(false);
    for port in 4000..4020u16 {
        lab.send(0, &udp(SocketAddr::from(([10, 0, 0, 2], port)), name, 64, b"x"));
        assert_eq!(next(&server).1.port() % 2, port % 2);
    }
}

/// RFC 7857 section 9 | sockets | met | Where the inside port is not asked for, the host chooses ports as it does its own (RFC 6056).
#[test]
fn rfc7857_9_sockets_ports_can_be_random() {
    let mut config = config();
    config.preserve_port = false;
    let mut lab = Lab::new(config);
    let (server, name) = server(false);
    let ports: Vec<u16> = (0..20u16)
        .map(|n| {
            lab.send(0, &udp(SocketAddr::from(([10, 0, 0, 2], 4000 + 2 * n)), name, 64, b"x"));
            next(&server).1.port()
        })
        .collect();
    assert!(ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 16).count() < 10, "{ports:?}");
}

/// RFC 7857 section 10 | sockets | met | Identifications are the host's own, whatever guests chose: datagrams without DF leave by sockets.
#[test]
fn rfc7857_10_sockets_identifications_are_the_hosts() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    for (nic, guest) in [(0, "10.0.0.2:4000"), (1, "10.0.0.3:4000")] {
        // Two guests, one identification: both are whole where they arrive.
        let same = with_ip(without_df(udp(at(guest), name, 64, &[nic as u8; 1200])), |ip| ip[4..6].fill(7));
        assert!(lab.send(nic, &same).is_empty());
        assert_eq!(next(&server).0, vec![nic as u8; 1200]);
    }
}

/// RFC 7857 section 11 | sockets | met | A mapping of pings has one time, a minute after the last request; there are no sessions on it that could end sooner.
#[test]
fn rfc7857_11_sockets_query_mappings_end_with_their_last_query() {
    if !in_namespace("rfc7857_11_sockets_query_mappings_end_with_their_last_query") {
        return;
    }
    permit_ping();
    let mut lab = Lab::new(config());
    let (guest, host) = (at(GUEST).ip(), router().into());
    lab.ask(0, &echo(guest, host, 77, 1, 64, b"x"));
    lab.seconds(30);
    lab.ask(0, &echo(guest, host, 77, 2, 64, b"x"));
    lab.seconds(59);
    assert_eq!(lab.show().len(), 1);
    lab.seconds(1);
    lab.turn(0, &[]);
    assert!(lab.show().is_empty());
}

/// RFC 7857 section 12 | sockets | not met | A socket cannot send ICMP errors, so none are hairpinned.
#[test]
fn rfc7857_12_sockets_errors_are_not_hairpinned() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at("10.0.0.2:4000"), name, 64, b"x"));
    let first = next(&server).1.port();
    let there = lab.ask(1, &udp(at("10.0.0.3:4000"), SocketAddr::new(router().into(), first), 64, b"hello"));
    assert_eq!(seen(&there[0]).payload, b"hello", "where the host may be reached, datagrams are");
    assert!(lab.ask(0, &refusal(&there[0])).is_empty());
    assert_eq!(lab.drops(DropReason::NotTranslated), 1);
}
