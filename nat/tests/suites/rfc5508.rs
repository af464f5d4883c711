//! RFC 5508 (ICMP), requirement by requirement, in virtual time, over IPv4 and over IPv6. See `conformance.rs` for the convention of the comments.

use nat::{Filtering, Refusal, Side};

family!();

fn nat() -> Packets {
    Packets::new(&config())
}

/// RFC 5508 REQ-1 | packet | met | Queries of guests and the replies to them pass; one identifier outside for one inside, whoever is asked.
#[test]
fn rfc5508_req1_queries_and_replies_pass() {
    let mut nat = nat();
    let first = nat.out(&echo(GUEST, SERVER, 77, false)).outward().source;
    assert_eq!(nat.out(&echo(GUEST, PEER, 77, false)).outward().source, first);
    let other = nat.cross(Side::Inside, 1, &echo(OTHER, SERVER, 77, false)).outward().source;
    assert_ne!(other, first);
    let reply = nat.back(&echo(SERVER, OUTSIDE, other.port, true)).inward();
    assert_eq!((reply.source.address, reply.destination), (SERVER, ep(OTHER, 77)));
    assert_eq!(
        nat.back(&echo(SERVER, OUTSIDE, other.port, false)).refused(),
        Refusal::NotMapped,
        "nobody asks a guest"
    );
    assert_eq!(nat.out(&echo(GUEST, SERVER, 5, true)).refused(), Refusal::NoSession);
}

/// RFC 5508 REQ-1b | packet | met | Filtering of replies is as that of UDP.
#[test]
fn rfc5508_req1b_filtering_is_as_chosen() {
    let mut strict = Packets::new(&Config { filtering: Filtering::AddressDependent, ..config() });
    let id = strict.out(&echo(GUEST, SERVER, 77, false)).outward().source.port;
    strict.back(&echo(SERVER, OUTSIDE, id, true)).inward();
    assert_eq!(strict.back(&echo(PEER, OUTSIDE, id, true)).refused(), Refusal::Filtered);
}

/// RFC 5508 REQ-2 | packet | met | Query mappings last 60 s unless told longer, and cannot be told less.
#[test]
fn rfc5508_req2_query_mappings_last_a_minute() {
    let mut nat = nat();
    let id = nat.out(&echo(GUEST, SERVER, 77, false)).outward().source.port;
    nat.seconds(59);
    nat.back(&echo(SERVER, OUTSIDE, id, true)).inward();
    nat.seconds(1);
    assert_eq!(nat.back(&echo(SERVER, OUTSIDE, id, true)).refused(), Refusal::NotMapped);
    let mut short = config();
    short.lifetimes.icmp /= 2;
    assert!(nat::NatTable::new(&short).is_err_and(|error| error.to_string().contains("RFC 5508 REQ-2")));
}

/// RFC 5508 REQ-3 | packet | met | Errors with a wrong checksum are dropped if they lie within the head (128 bytes); longer ones go on with their checksum as wrong as it was.
#[test]
fn rfc5508_req3_errors_are_validated() {
    let mut nat = nat();
    let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"data")).outward();
    let good = error(ROUTER, OUTSIDE, UNREACHABLE, &sent.frame, 8);
    let mut bad = good.clone();
    bad[L4 + 2] ^= 1;
    assert_eq!(nat.back(&bad).refused(), Refusal::BadChecksum);
    nat.back(&good).inward();
    let long = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), &[9; 400])).outward();
    nat.back(&error(ROUTER, OUTSIDE, UNREACHABLE, &long.frame, 408)).inward();
}

/// RFC 5508 REQ-4 | packet | met | Errors from outside about a mapping are translated with what they quote, others dropped.
#[test]
fn rfc5508_req4_errors_from_outside() {
    let mut nat = nat();
    let frames = [
        udp(ep(GUEST, 4000), ep(PEER, 9999), b"data"),
        tcp(ep(GUEST, 4000), ep(PEER, 80), "S"),
        echo(GUEST, PEER, 77, false),
    ];
    // Another guest has the same ports and identifiers first.
    for frame in [
        udp(ep(OTHER, 4000), ep(PEER, 9999), b""),
        tcp(ep(OTHER, 4000), ep(PEER, 80), "S"),
        echo(OTHER, PEER, 77, false),
    ] {
        nat.cross(Side::Inside, 1, &frame).outward();
    }
    for frame in frames {
        let sent = nat.out(&frame).outward();
        for what in [UNREACHABLE, EXCEEDED, PROBLEM, TOO_BIG] {
            let told = nat.back(&error(ROUTER, OUTSIDE, what, &sent.frame, 40)).inward();
            assert_eq!((told.source.address, told.destination.address), (ROUTER, GUEST));
            let (about, original) = (quoted(&told.frame), seen(&frame));
            assert_eq!((about.source, about.destination), (original.source, original.destination));
            check(&about.frame);
        }
    }
    let never = udp(ep(OUTSIDE, 4444), ep(PEER, 9999), b"data");
    assert_eq!(nat.back(&error(ROUTER, OUTSIDE, UNREACHABLE, &never, 8)).refused(), Refusal::NotMapped);
    let elsewhere = udp(ep(SERVER, 4000), ep(PEER, 9999), b"data");
    assert_eq!(nat.back(&error(ROUTER, OUTSIDE, UNREACHABLE, &elsewhere, 8)).refused(), Refusal::BadQuote);
}

/// RFC 5508 REQ-5 | packet | met | Errors from inside about what came in are translated with what they quote; a router inside is hidden, too.
#[test]
fn rfc5508_req5_errors_from_inside() {
    let mut nat = nat();
    nat.cross(Side::Inside, 1, &udp(ep(OTHER, 4000), ep(PEER, 9999), b"")).outward();
    let outside = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
    let came = nat.back(&udp(ep(PEER, 9999), outside, b"data")).inward();
    for from in [GUEST, ROUTER_INSIDE] {
        let told = nat.out(&error(from, PEER, PORT_UNREACHABLE, &came.frame, 40)).outward();
        assert_eq!((told.source.address, told.destination.address), (OUTSIDE, PEER));
        let about = quoted(&told.frame);
        assert_eq!((about.source, about.destination), (ep(PEER, 9999), outside));
        check(&about.frame);
    }
    let never = udp(ep(PEER, 9999), ep(GUEST, 5), b"");
    assert_eq!(nat.out(&error(GUEST, PEER, PORT_UNREACHABLE, &never, 8)).refused(), Refusal::NotMapped);
}

/// RFC 5508 REQ-6 | packet | met | An error neither renews nor ends a mapping.
#[test]
fn rfc5508_req6_errors_leave_mappings_alone() {
    let mut nat = nat();
    let sent = nat.out(&echo(GUEST, SERVER, 77, false)).outward();
    nat.seconds(30);
    let before = nat.entries();
    nat.back(&error(ROUTER, OUTSIDE, EXCEEDED, &sent.frame, 8)).inward();
    assert_eq!(nat.entries(), before);
    nat.seconds(30);
    assert_eq!(nat.back(&error(ROUTER, OUTSIDE, EXCEEDED, &sent.frame, 8)).refused(), Refusal::NotMapped);
}

/// RFC 5508 REQ-7 | packet | met | Errors are hairpinned. (Queries need be only where ports are not translated.)
#[test]
fn rfc5508_req7_errors_are_hairpinned() {
    let mut nat = nat();
    let a = nat.out(&udp(ep(GUEST, 4000), ep(SERVER, 3478), b"")).outward().source;
    let b = nat.cross(Side::Inside, 1, &udp(ep(OTHER, 4000), ep(SERVER, 3478), b"")).outward().source;
    let there = nat.out(&udp(ep(GUEST, 4000), b, b"hello")).inward();
    let told = nat.cross(Side::Inside, 1, &error(OTHER, OUTSIDE, PORT_UNREACHABLE, &there.frame, 40)).inward();
    assert_eq!((told.source.address, told.destination.address), (OUTSIDE, GUEST));
    let about = quoted(&told.frame);
    assert_eq!((about.source, about.destination), (ep(GUEST, 4000), b));
    check(&about.frame);
    assert_eq!(a.address, OUTSIDE);
}

/// RFC 5508 REQ-8 | packet | met | A packet refused for want of room is dropped and answered with "communication administratively prohibited".
#[test]
fn rfc5508_req8_want_of_room_is_answered() {
    let mut gate = port::Gate::new(port_config(Config { quota: 8, ..config() }));
    for n in 0..8 {
        port::one(gate.out(0, &udp(ep(GUEST, 4000 + n), ep(PEER, 9999), b"")), Side::Outside);
    }
    let told = port::one(gate.out(0, &udp(ep(GUEST, 5000), ep(PEER, 9999), b"")), Side::Inside);
    assert_eq!((port::icmp(&told), seen(&told).destination.address), ((PROHIBITED.0, PROHIBITED.1, 0), GUEST));
    assert_eq!(quoted(&told).source, ep(GUEST, 5000));
    assert_eq!(gate.drops(wire::NicId(0), wire::DropReason::NatQuota), 1);
}

/// RFC 5508 REQ-8 | packet | met | The table tells the reasons apart: `quota`, `full`, `no_port`.
#[test]
fn rfc5508_req8_want_of_room_is_told() {
    let mut nat = Packets::new(&Config { quota: 8, ..config() });
    for n in 0..8 {
        nat.out(&udp(ep(GUEST, 4000 + n), ep(PEER, 9999), b"")).outward();
    }
    assert_eq!(nat.out(&udp(ep(GUEST, 5000), ep(PEER, 9999), b"")).refused(), Refusal::Quota);
}

/// RFC 5508 REQ-9 | packet | met | How many errors are made for a NIC is limited, and can be set to none.
#[test]
fn rfc5508_req9_errors_can_be_switched_off() {
    for (errors, expected) in [(10, 1), (0, 0)] {
        let config = nat::PortConfig { errors, mtu: 1280, ..port_config(config()) };
        let mut gate = port::Gate::new(config);
        assert_eq!(gate.out(0, &udp(ep(GUEST, 4000), ep(PEER, 9999), &[7; 1300])).len(), expected);
    }
}

/// RFC 5508 REQ-10a | packet | met | "Time exceeded" is sent for what comes to its end at the NAT, with the address it was sent to.
#[test]
fn rfc5508_req10a_time_exceeded_is_sent() {
    let mut gate = port::Gate::new(port_config(config()));
    let source = seen(&port::one(gate.out(0, &udp(ep(GUEST, 4000), ep(PEER, 9999), b"")), Side::Outside)).source;
    let tired = with_hops(udp(ep(PEER, 9999), source, b""), 1);
    let told = port::one(gate.reply(tired), Side::Outside);
    assert_eq!(
        (port::icmp(&told), seen(&told).source.address, seen(&told).destination.address),
        ((EXCEEDED.0, EXCEEDED.1, 0), OUTSIDE, PEER)
    );
}

/// RFC 5508 REQ-10a | packet | met | An unsolicited SYN is answered from the address that it was sent to.
#[test]
fn rfc5508_req10a_port_unreachable_has_the_address_asked() {
    let mut nat = nat();
    nat.back(&tcp(ep(PEER, 4000), ep(OUTSIDE, 4000), "S"));
    nat.seconds(7);
    assert_eq!(
        nat.table.unreachable(nat.now).map(|due| due.outside.address),
        Some(OUTSIDE),
        "from which it is to be answered"
    );
}

/// RFC 5508 REQ-10 | packet | met | Destination unreachable, packet too big, time exceeded, parameter problem and echo are translated.
#[test]
fn rfc5508_req10_types_that_must_pass() {
    let mut nat = nat();
    let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"data")).outward();
    for what in ERRORS {
        nat.back(&error(ROUTER, OUTSIDE, what, &sent.frame, 8)).inward();
    }
    nat.out(&echo(GUEST, SERVER, 5, false)).outward();
}

/// RFC 5508 REQ-11 | packet | met | Other ICMP types (redirect, router advertisement, source quench, multicast listeners) are dropped.
#[test]
fn rfc5508_req11_other_types_are_dropped() {
    let mut nat = nat();
    let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"data")).outward();
    for kind in UNKNOWN_TYPES {
        assert_eq!(nat.back(&error(ROUTER, OUTSIDE, (kind, 0), &sent.frame, 8)).refused(), Refusal::UnknownIcmp);
    }
}

#[test]
fn what_lies_behind_an_error_is_not_taken_for_its_quote() {
    let mut nat = nat();
    let sent = nat.out(&tcp(ep(GUEST, 4000), ep(PEER, 80), "S")).outward();
    let mut padded = error(ROUTER, OUTSIDE, UNREACHABLE, &sent.frame, 8);
    let len = padded.len();
    padded.extend([0xa5; 20]);
    let told = nat.back(&padded).inward();
    assert_eq!(told.frame[len..], [0xa5; 20]);
    check(&told.frame[..len]);
    assert_eq!(quoted(&told.frame[..len]).source, ep(GUEST, 4000));
}
