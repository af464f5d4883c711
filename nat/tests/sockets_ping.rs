//! ICMP echo through the socket engine, behaviour by behaviour, each in a network namespace of its own, where ping sockets can be permitted.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, SlicedPacket, TransportSlice};
use scripted::*;
use wire::{DropReason, NicId};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Identifier, sequence number and bytes of a reply, and who sent it.
#[track_caller]
fn reply(frame: &[u8]) -> (u16, u16, Vec<u8>, IpAddr) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    let from = ends(frame).0.ip();
    match &packet.transport {
        Some(TransportSlice::Icmpv4(icmp)) => match icmp.icmp_type() {
            Icmpv4Type::EchoReply(echo) => (echo.id, echo.seq, icmp.payload().to_vec(), from),
            other => panic!("{other:?}"),
        },
        Some(TransportSlice::Icmpv6(icmp)) => match icmp.icmp_type() {
            Icmpv6Type::EchoReply(echo) => (echo.id, echo.seq, icmp.payload().to_vec(), from),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn replies_come_back_with_the_guests_identifier() {
    if !in_namespace("replies_come_back_with_the_guests_identifier") {
        return;
    }
    permit_ping();
    for (guest, other, to) in [("10.0.0.2", "10.0.0.3", ip("10.0.0.1")), ("fd00::2", "fd00::3", router6().into())] {
        let mut lab = Lab::new(config());
        // Two guests with one identifier: outside they have two.
        for seq in [1, 2, 700] {
            for (nic, from) in [(0, guest), (1, other)] {
                let payload = vec![nic as u8 + 1; 56];
                let frames = lab.ask(nic, &echo(ip(from), to, 77, seq, 64, &payload));
                assert_eq!((frames.len(), reply(&frames[0])), (1, (77, seq, payload, to)));
                assert_eq!(ends(&frames[0]).1.ip(), ip(from));
                assert_eq!(frames[0][..6], GUEST_MAC);
            }
        }
        let lines = lab.show();
        assert_eq!(lines.len(), 2);
        assert_ne!(lines[0].outside.unwrap().port(), lines[1].outside.unwrap().port());
        assert_eq!((lines[0].nic, lines[0].inside.port(), lines[0].packets), (NicId(0), 77, 6));
        // One that needs fragments both ways.
        let payload: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
        let whole = echo(ip(guest), to, 78, 1, 64, &payload);
        if to.is_ipv4() {
            let mut frames = Vec::new();
            for part in fragments(&whole, 1480, 5) {
                frames.extend(lab.send(0, &part).into_iter().map(|got| got.bytes));
            }
            if frames.is_empty() {
                frames = lab.receive();
            }
            assert_eq!(frames.len(), 3);
            assert_eq!(reply(&joined(&frames)), (78, 1, payload, to));
        }
    }
}

#[test]
fn where_ping_is_not_permitted_nothing_is_faked() {
    if !in_namespace("where_ping_is_not_permitted_nothing_is_faked") {
        return;
    }
    assert!(!sys::inet::ping::ping_permitted(false) && !sys::inet::ping::ping_permitted(true));
    let mut lab = Lab::new(config());
    for seq in 0..5 {
        assert!(lab.send(0, &echo(ip("10.0.0.2"), router().into(), 7, seq, 64, b"x")).is_empty());
    }
    lab.nothing();
    assert_eq!(lab.drops(DropReason::PingNotPermitted), 5);
    assert!(lab.show().is_empty());
    permit_ping();
    assert!(sys::inet::ping::ping_permitted(false) && sys::inet::ping::ping_permitted(true));
    assert_eq!(lab.ask(0, &echo(ip("10.0.0.2"), router().into(), 7, 9, 64, b"x")).len(), 1, "from the next on");
}

#[test]
fn errors_on_the_way_are_about_the_guests_own_request() {
    if !in_namespace("errors_on_the_way_are_about_the_guests_own_request") {
        return;
    }
    permit_ping();
    let router = Router::new();
    let mut lab = Lab::new(config());
    for (guest, other, near, beyond, hop, v6) in [
        ("10.0.0.2", "10.0.0.3", "203.0.113.1", "203.0.113.77", "198.51.100.1", false),
        ("fd00::2", "fd00::3", "2001:db8:2::1", "2001:db8:2::77", "2001:db8:1::1", true),
    ] {
        // The one who comes second has another identifier outside.
        for (nic, from) in [(1, other), (0, guest)] {
            let frames = lab.ask(nic, &echo(ip(from), ip(near), 77, 1, 64, b"reach"));
            assert_eq!(reply(&frames[0]), (77, 1, b"reach".to_vec(), ip(near)));
        }
        let sent = echo(ip(guest), ip(beyond), 77, 2, 1, b"probe of traceroute");
        let exceeded = told(&lab.ask(0, &sent)[0]);
        assert_eq!((exceeded.kind, exceeded.code), if v6 { (3, 0) } else { (11, 0) });
        assert_eq!((exceeded.from, exceeded.to), (ip(hop), ip(guest)));
        let (from, to) = ends(&exceeded.quoted);
        assert_eq!((from.ip(), from.port(), to.ip()), (ip(guest), 77, ip(beyond)));
        let l4 = if v6 { 54 } else { 34 };
        assert_eq!(exceeded.quoted[l4 + 4..l4 + 8], sent[l4 + 4..l4 + 8], "identifier and sequence number");
        if !v6 {
            assert_eq!(exceeded.quoted[34..42], sent[34..42], "the guest's checksum, too");
            assert_eq!(exceeded.quoted[16..20], sent[16..20], "length and identification");
        }
        // Too long for the far link.
        let long = told(&lab.ask(0, &echo(ip(guest), ip(beyond), 77, 3, 64, &[7; 1400]))[0]);
        assert_eq!((long.kind, long.code, long.word), if v6 { (2, 0, 1300) } else { (3, 4, 1300) });
    }
    router.run("ip route add prohibit 192.0.2.0/24");
    // Linux tells this once in a while only (net.ipv4.route.error_cost, for all namespaces together).
    let mut answers = (4..10).map(|seq| lab.ask(0, &echo(ip("10.0.0.2"), ip("192.0.2.9"), 77, seq, 64, b"x")));
    let told = told(&answers.find(|answer| !answer.is_empty()).unwrap()[0]);
    assert_eq!((told.kind, told.code, told.from), (3, 13, ip("198.51.100.1")));
}

#[test]
fn many_pings_of_one_guest_take_nothing_from_another() {
    if !in_namespace("many_pings_of_one_guest_take_nothing_from_another") {
        return;
    }
    permit_ping();
    let mut config = config();
    (config.ping_quota, config.descriptors, config.descriptor_quota) = (16, 40, 20);
    let mut lab = Lab::new(config);
    lab.ask(1, &echo(ip("10.0.0.3"), router().into(), 5, 1, 64, b"x"));
    for id in 100..400 {
        assert_eq!(lab.ask(0, &echo(ip("10.0.0.2"), router().into(), id, 1, 64, b"x")).len(), 1);
    }
    let lines = lab.show();
    assert_eq!(lines.iter().filter(|line| line.nic == NicId(0)).count(), 16);
    assert_eq!(lines.iter().filter(|line| line.nic == NicId(1)).count(), 1);
}

#[test]
fn other_messages_of_guests_are_not_translated() {
    let mut lab = Lab::new(config());
    let mut timestamp = echo(ip("10.0.0.2"), router().into(), 7, 1, 64, &[0; 12]);
    timestamp[34] = 13;
    let mut error = echo(ip("10.0.0.2"), router().into(), 7, 1, 64, &[0; 40]);
    error[34] = 3;
    let mut solicitation = echo(ip("fd00::2"), router6().into(), 7, 1, 64, &[0; 40]);
    solicitation[54] = 135;
    for frame in [timestamp, error, solicitation] {
        assert!(lab.send(0, &frame).is_empty());
    }
    assert_eq!(lab.drops(DropReason::NotTranslated), 3);
    let mut broken = echo(ip("10.0.0.2"), router().into(), 7, 1, 64, b"abc");
    broken[43] ^= 1;
    lab.send(0, &broken);
    assert_eq!(lab.drops(DropReason::BadPacket), 1);
}
