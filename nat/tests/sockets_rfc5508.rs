//! RFC 5508 (ICMP) and the socket engine, requirement by requirement. See `conformance.rs` for the convention of the comments.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::net::IpAddr;

use nat::Filtering;
use scripted::*;
use wire::DropReason;

const GUEST: &str = "10.0.0.2:4000";

fn guest() -> IpAddr {
    at(GUEST).ip()
}

fn host() -> IpAddr {
    router().into()
}

/// RFC 5508 REQ-1 | sockets | met | Echo requests and replies pass by ping sockets, one identifier outside for one inside, whoever is asked. Where the host permits no ping sockets, requests are dropped, counted as `ping_not_permitted`.
#[test]
fn rfc5508_req1_sockets_echo_passes() {
    if !in_namespace("rfc5508_req1_sockets_echo_passes") {
        return;
    }
    let mut lab = Lab::new(config());
    assert!(lab.send(1, &echo(guest(), host(), 78, 5, 64, b"abc")).is_empty());
    assert_eq!(lab.drops(DropReason::PingNotPermitted), 1);
    permit_ping();
    let _router = Router::new();
    for to in [host(), "203.0.113.1".parse().unwrap(), "198.51.100.1".parse().unwrap()] {
        let frames = lab.ask(0, &echo(guest(), to, 77, 5, 64, b"abc"));
        assert_eq!((ends(&frames[0]).0.ip(), ends(&frames[0]).1), (to, "10.0.0.2:77".parse().unwrap()));
    }
    assert_eq!(lab.show().len(), 1);
}

/// RFC 5508 REQ-1b | sockets | met | Filtering of replies is as that of UDP. Of an identifier, 16 addresses are remembered.
#[test]
fn rfc5508_req1b_sockets_filtering_is_as_chosen() {
    if !in_namespace("rfc5508_req1b_sockets_filtering_is_as_chosen") {
        return;
    }
    permit_ping();
    let router = Router::new();
    let mut config = config();
    config.filtering = Filtering::AddressDependent;
    let mut lab = Lab::new(config);
    let first: IpAddr = "203.0.113.1".parse().unwrap();
    // More than are remembered, of which all answer.
    for n in 2..30 {
        router.run(&format!("ip address add 203.0.113.{n}/24 dev far"));
        let to = format!("203.0.113.{n}").parse().unwrap();
        assert_eq!(lab.ask(0, &echo(guest(), to, 77, 1, 64, b"x")).len(), 1);
    }
    assert_eq!(lab.ask(0, &echo(guest(), first, 77, 1, 64, b"x")).len(), 1);
    assert_eq!(lab.drops(DropReason::Filtered), 0);
}

/// RFC 5508 REQ-2 | sockets | met | Query mappings last 60 s unless told otherwise.
#[test]
fn rfc5508_req2_sockets_query_mappings_last_a_minute() {
    if !in_namespace("rfc5508_req2_sockets_query_mappings_last_a_minute") {
        return;
    }
    permit_ping();
    let mut lab = Lab::new(config());
    lab.ask(0, &echo(guest(), host(), 77, 1, 64, b"x"));
    lab.seconds(59);
    assert_eq!(lab.show().len(), 1);
    lab.seconds(1);
    lab.turn(0, &[]);
    assert!(lab.show().is_empty());
}

/// RFC 5508 REQ-3 | sockets | met | The kernel checks an error's checksum and whether it quotes what one of the sockets sent, before it is handed on.
#[test]
fn rfc5508_req3_sockets_errors_are_validated() {
    if !in_namespace("rfc5508_req3_sockets_errors_are_validated") {
        return;
    }
    let python = std::process::Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED rfc5508_req3_sockets_errors_are_validated: no python3 to make errors with");
        return;
    }
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    let (_, from) = next(&server);
    // An error about that datagram: intact, with a wrong checksum, about a port that is not ours.
    let error = |port: u16, flip: u8| {
        let script = "import socket,struct,sys\n\
            s,d,flip=map(int,sys.argv[1:])\n\
            ip=struct.pack('!BBHHHBBH4s4s',0x45,0,29,1,0,64,17,0,b'\\x7f\\0\\0\\1',b'\\x7f\\0\\0\\1')\n\
            def sum(b):\n b=b+b'\\0'*(len(b)%2)\n t=0\n\
            \x20for i in range(0,len(b),2): t+=b[i]<<8|b[i+1]\n\
            \x20while t>>16: t=(t&65535)+(t>>16)\n\
            \x20return t^65535\n\
            ip=ip[:10]+struct.pack('!H',sum(ip))+ip[12:]\n\
            q=ip+struct.pack('!HHHH',s,d,9,0)+b'x'\n\
            m=struct.pack('!BBHI',3,1,0,0)+q\n\
            m=m[:2]+struct.pack('!H',sum(m)^flip)+m[4:]\n\
            socket.socket(socket.AF_INET,socket.SOCK_RAW,1).sendto(m,('127.0.0.1',0))\n";
        run(&["python3", "-c", script, &port.to_string(), &name.port().to_string(), &flip.to_string()]);
    };
    error(from.port(), 1);
    error(from.port() ^ 0x100, 0);
    lab.nothing();
    error(from.port(), 0);
    let told = told(&lab.receive()[0]);
    assert_eq!((told.kind, told.code, ends(&told.quoted)), (3, 1, (at(GUEST), name)));
}

/// RFC 5508 REQ-4 | sockets | met | Errors from outside about a mapping are told to the guest as what they are, quoting its own packet; their source is who sent them.
#[test]
fn rfc5508_req4_sockets_errors_from_outside() {
    if !in_namespace("rfc5508_req4_sockets_errors_from_outside") {
        return;
    }
    permit_ping();
    let _router = Router::new();
    let mut lab = Lab::new(config());
    let beyond: IpAddr = "203.0.113.77".parse().unwrap();
    let sent =
        [udp(at(GUEST), "203.0.113.77:33434".parse().unwrap(), 1, b"data"), echo(guest(), beyond, 77, 1, 1, b"data")];
    for sent in sent {
        let told = told(&lab.ask(0, &sent)[0]);
        assert_eq!((told.kind, told.code, told.from.to_string().as_str(), told.to), (11, 0, "198.51.100.1", guest()));
        assert_eq!(ends(&told.quoted), ends(&sent));
    }
}

/// RFC 5508 REQ-5 | sockets | not met | A socket cannot send ICMP errors; those of guests are dropped, counted as `not_translated`.
#[test]
fn rfc5508_req5_sockets_errors_from_inside_are_dropped() {
    let mut lab = Lab::new(config());
    let mut error = echo(guest(), host(), 7, 1, 64, &[0; 40]);
    error[34] = 3;
    assert!(lab.send(0, &error).is_empty());
    assert_eq!(lab.drops(DropReason::NotTranslated), 1);
}

/// RFC 5508 REQ-6 | sockets | met | An error neither renews nor ends a mapping.
#[test]
fn rfc5508_req6_sockets_errors_leave_mappings_alone() {
    let mut lab = Lab::new(config());
    let (server, name) = server(false);
    lab.send(0, &udp(at(GUEST), name, 64, b"x"));
    drop(server);
    lab.seconds(100);
    let mut other = lab.ask(0, &udp(at("10.0.0.2:4001"), name, 64, b"x"));
    // Both have been told by now: the second is no matter here.
    while other.is_empty() {
        other = lab.receive();
    }
    let expires = |lab: &mut Lab| lab.show().iter().find(|line| line.inside == at(GUEST)).map(|line| line.expires);
    assert_eq!(expires(&mut lab), Some(Some(200)));
}

/// RFC 5508 REQ-7 | sockets | not met | Errors about hairpinned packets reach the guest where hairpinning is possible at all (RFC 4787 REQ-9), but none of guests leave.
#[test]
fn rfc5508_req7_sockets_errors_of_guests_are_not_hairpinned() {
    let mut lab = Lab::new(config());
    let mut error = echo(guest(), host(), 7, 1, 64, &[0; 40]);
    error[34] = 11;
    assert!(lab.send(0, &error).is_empty());
    assert_eq!(lab.drops(DropReason::NotTranslated), 1);
}

/// RFC 5508 REQ-8 | sockets | met | A packet refused for want of descriptors is answered with "communication administratively prohibited".
#[test]
fn rfc5508_req8_sockets_want_of_room_is_told() {
    let mut config = config();
    config.descriptors = 1;
    let mut lab = Lab::new(config);
    let (_server, name) = server(false);
    lab.send(0, &udp(at("10.0.0.3:4000"), name, 64, b"x"));
    let sent = udp(at(GUEST), name, 64, b"x");
    let told = told(&lab.ask(1, &sent)[0]);
    assert_eq!((told.kind, told.code, ends(&told.quoted)), (3, 13, ends(&sent)));
    assert_eq!(lab.drops(DropReason::NatQuota), 1);
    assert_eq!(lab.show().len(), 1, "the other guest's is left alone");
}

/// RFC 5508 REQ-9 | sockets | met | Errors of the engine itself have the router's address as their source, which guests can reach.
#[test]
fn rfc5508_req9_sockets_own_errors_come_from_the_router() {
    let mut lab = Lab::new(config());
    let told = told(&lab.ask(0, &udp(at(GUEST), at("169.254.169.254:80"), 64, b"x"))[0]);
    assert_eq!(told.from, host());
}

/// RFC 5508 REQ-10 | sockets | not met | Echo, destination unreachable, time exceeded and parameter problem pass inward; there is no socket for timestamp queries.
#[test]
fn rfc5508_req10_sockets_no_timestamps() {
    let mut lab = Lab::new(config());
    let mut timestamp = echo(guest(), host(), 7, 1, 64, &[0; 12]);
    timestamp[34] = 13;
    assert!(lab.send(0, &timestamp).is_empty());
    assert_eq!(lab.drops(DropReason::NotTranslated), 1);
}

/// RFC 5508 REQ-11 | sockets | met | Other ICMP types (redirect, router advertisement, source quench) are dropped.
#[test]
fn rfc5508_req11_sockets_other_types_are_dropped() {
    let mut lab = Lab::new(config());
    for kind in [4, 5, 9, 10, 15, 17, 40] {
        let mut other = echo(guest(), host(), 7, 1, 64, &[0; 40]);
        other[34] = kind;
        assert!(lab.send(0, &other).is_empty());
    }
    assert_eq!(lab.drops(DropReason::NotTranslated), 7);
}
