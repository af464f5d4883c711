//! RFC 7857 (what changed of RFC 4787, 5382 and 5508), section by section, in virtual time, over IPv4 and over IPv6. See `conformance.rs` for the
//! convention of the comments.

use nat::{Filtering, Kind, Pooling, Refusal, Side, State};

family!();

fn nat() -> Packets {
    Packets::new(&config())
}

fn strict() -> Packets {
    Packets::new(&Config { filtering: Filtering::AddressDependent, ..config() })
}

/// RFC 7857 section 2.1 | packet | met | Lifetimes of connections that open and that close are set apart.
#[test]
fn rfc7857_2_1_opening_and_closing_have_lifetimes_of_their_own() {
    let mut config = config();
    config.lifetimes.tcp_opening *= 2;
    let mut nat = Packets::new(&config);
    let source = nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "S")).outward().source;
    nat.seconds(479);
    nat.back(&tcp(ep(SERVER, 80), source, "SA")).inward();
    nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "FA")).outward();
    nat.back(&tcp(ep(SERVER, 80), source, "FA")).inward();
    nat.seconds(239);
    nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "A")).outward();
    nat.seconds(1);
    assert_eq!(
        nat.back(&tcp(ep(SERVER, 80), source, "A")).refused(),
        Refusal::NoSession,
        "not put off by the last ACK"
    );
}

/// RFC 7857 section 2.2 | packet | met | A reset is translated, and the connection kept for four minutes; who goes on has not been reset.
#[test]
fn rfc7857_2_2_resets_are_translated_and_waited_for() {
    let mut nat = nat();
    let source = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
    assert_eq!(nat.back(&tcp(ep(SERVER, 80), source, "R")).inward().destination, ep(GUEST, 4000));
    assert_eq!(state(&nat), [State::Closing]);
    nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "A")).outward();
    assert_eq!(state(&nat), [State::Established]);
    nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "RA")).outward();
    nat.seconds(239);
    nat.back(&tcp(ep(SERVER, 80), source, "R")).inward();
    nat.seconds(1);
    assert_eq!(nat.back(&tcp(ep(SERVER, 80), source, "R")).refused(), Refusal::NoSession);
}

/// RFC 7857 section 2 | packet | met | A SYN between the same endpoints opens the next connection.
#[test]
fn rfc7857_2_the_next_connection_may_have_the_same_endpoints() {
    for mut nat in [nat(), strict()] {
        for _ in 0..3 {
            let source = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
            nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "FA")).outward();
            nat.back(&tcp(ep(SERVER, 80), source, "FA")).inward();
            assert_eq!(state(&nat), [State::Closing]);
        }
        nat.seconds(10_000);
        connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
        assert_eq!(state(&nat), [State::Established]);
    }
}

/// RFC 7857 section 3 | packet | met | Ports are never shared by connections to other destinations: one outside endpoint is one inside endpoint (RFC 4787 REQ-3).
#[test]
fn rfc7857_3_ports_do_not_overlap() {
    let mut nat = nat();
    let sources = [GUEST, OTHER].map(|guest| nat.out(&tcp(ep(guest, 4000), ep(SERVER, 80), "S")).outward().source);
    let again = [GUEST, OTHER].map(|guest| nat.out(&tcp(ep(guest, 4000), ep(PEER, 443), "S")).outward().source);
    assert_eq!(sources, again);
    assert_ne!(sources[0], sources[1]);
}

/// RFC 7857 section 4 | packet | met | An inside address has one outside address for all protocols. Without a port there its packets are refused; they take another address only if that is chosen.
#[test]
fn rfc7857_4_a_paired_address_is_not_left() {
    for (pooling, elsewhere) in [(Pooling::Paired, false), (Pooling::Arbitrary, true)] {
        let outside = vec![OUTSIDE, outside(2)];
        let mut nat = Packets::new(&Config { mappings: 1 << 18, quota: 1 << 18, outside, pooling, ..config() });
        let first = nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "S")).outward().source.address;
        assert_eq!(nat.out(&echo(GUEST, SERVER, 9, false)).outward().source.address, first);
        // Another guest of that address takes one of its ports; of the guest's own 64,512 endpoints one is left without.
        let mut others = (256..300).map(|n| nat.out(&udp(ep(host(n), 5000), ep(SERVER, 7777), b"")).outward().source);
        assert!(others.any(|source| source.address == first));
        let fates = (1024..=u16::MAX).map(|port| nat.out(&udp(ep(GUEST, port), ep(SERVER, 7777), b"")));
        let (sent, refused): (Vec<Fate>, Vec<Fate>) = fates.partition(Fate::is_sent);
        let away = sent.into_iter().filter(|fate| fate.clone().outward().source.address != first).count();
        assert_eq!((away > 0, refused.is_empty()), (elsewhere, elsewhere));
        assert!(refused.into_iter().all(|fate| fate.refused() == Refusal::NoPort));
    }
}

/// RFC 7857 section 5 | packet | met | Mappings are of one protocol: a mapping of TCP says nothing of the same port's of UDP.
#[test]
fn rfc7857_5_mappings_are_of_one_protocol() {
    let mut nat = nat();
    let stream = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
    assert_eq!(nat.entries().iter().filter(|entry| entry.kind == Kind::Mapping).count(), 1);
    // Another guest may have the same outside port of the other protocol.
    let datagrams = nat.cross(Side::Inside, 1, &udp(ep(OTHER, stream.port), ep(SERVER, 80), b"")).outward().source;
    assert_eq!(datagrams, stream);
    assert_eq!(nat.back(&udp(ep(SERVER, 80), datagrams, b"")).inward().destination, ep(OTHER, stream.port));
    assert_eq!(nat.back(&tcp(ep(SERVER, 80), stream, "A")).inward().destination, ep(GUEST, 4000));
}

/// RFC 7857 section 6 | packet | met | Filtering is of one protocol: who was spoken to by UDP is not let in by TCP, nor through a mapping of the other.
#[test]
fn rfc7857_6_filtering_is_of_one_protocol() {
    for mut nat in [nat(), strict()] {
        let datagrams = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9), b"")).outward().source;
        assert_eq!(nat.back(&tcp(ep(PEER, 9), datagrams, "S")), Fate::Waits);
        let stream = connect(&mut nat, ep(GUEST, 4001), ep(SERVER, 80));
        assert_eq!(nat.back(&udp(ep(SERVER, 80), stream, b"")).refused(), Refusal::NotMapped);
    }
    let mut nat = strict();
    let stream = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
    let datagrams = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9), b"")).outward().source;
    assert_eq!(stream.port, datagrams.port, "one port of both");
    assert_eq!(nat.back(&udp(ep(SERVER, 80), datagrams, b"")).refused(), Refusal::Filtered);
}

/// RFC 7857 section 7 | packet | met | Whether what comes in renews a mapping of UDP can be chosen, also where anybody is let in; it does not unless chosen.
#[test]
fn rfc7857_7_inbound_refresh_is_a_choice() {
    for refresh in [false, true] {
        let mut nat = Packets::new(&Config { inbound_refresh: refresh, ..config() });
        let source = nat.out(&udp(ep(GUEST, 4000), ep(SERVER, 9999), b"")).outward().source;
        nat.seconds(299);
        nat.back(&udp(ep(PEER, 1), source, b"")).inward();
        nat.seconds(1);
        assert_eq!(nat.back(&udp(ep(PEER, 1), source, b"")).is_sent(), refresh);
    }
}

/// RFC 7857 section 7.1 | packet | met | What a guest answers to what came in, errors and resets, renews nothing.
#[test]
fn rfc7857_7_1_errors_and_resets_renew_nothing() {
    let mut nat = nat();
    let source = nat.out(&udp(ep(GUEST, 4000), ep(SERVER, 9999), b"")).outward().source;
    nat.seconds(299);
    let came = nat.back(&udp(ep(PEER, 1), source, b"")).inward();
    nat.out(&error(GUEST, PEER, PORT_UNREACHABLE, &came.frame, 8)).outward();
    nat.seconds(1);
    assert_eq!(nat.back(&udp(ep(PEER, 1), source, b"")).refused(), Refusal::NotMapped);

    let mut nat = self::nat();
    let source = nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "S")).outward().source;
    nat.back(&tcp(ep(PEER, 9), source, "S")).inward();
    nat.seconds(200);
    nat.out(&tcp(ep(GUEST, 4000), ep(PEER, 9), "RA")).outward();
    nat.seconds(39);
    nat.back(&tcp(ep(PEER, 10), ep(OUTSIDE, source.port), "S")).inward();
    nat.out(&tcp(ep(GUEST, 4000), ep(PEER, 10), "RA")).outward();
    nat.seconds(1);
    assert_eq!(nat.back(&tcp(ep(PEER, 9), source, "A")).refused(), Refusal::NoSession, "four minutes from its SYN");
    nat.seconds(238);
    nat.out(&tcp(ep(GUEST, 4000), ep(PEER, 10), "RA")).outward();
    nat.seconds(1);
    nat.table.sweep(nat.now, 100);
    assert_eq!(
        nat.back(&tcp(ep(PEER, 11), source, "S")),
        Fate::Waits,
        "the mapping has gone with the last that knocked"
    );
}

/// RFC 7857 section 8 | packet | met | Keeping the parity of ports can be switched off.
#[test]
fn rfc7857_8_parity_is_a_choice() {
    for parity in [true, false] {
        let mut nat = Packets::new(&Config { preserve_port: false, parity, ..config() });
        let mut port = |n| nat.out(&udp(ep(GUEST, 4000 + n), ep(PEER, 9999), b"")).outward().source.port;
        assert_eq!((0..50).all(|n| (port(n) ^ n) & 1 == 0), parity);
    }
}

/// RFC 7857 section 9 | packet | met | Ports can be made unforeseeable.
#[test]
fn rfc7857_9_ports_can_be_random() {
    let ports = |seed| {
        let mut nat = Packets::new(&Config { preserve_port: false, parity: false, seed, ..config() });
        (0..50)
            .map(|n| nat.out(&udp(ep(GUEST, 4000 + n), ep(PEER, 9999), b"")).outward().source.port)
            .collect::<Vec<_>>()
    };
    let (one, other) = (ports(1), ports(2));
    assert_ne!(one, other);
    assert!(one.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 64).count() < 10, "{one:?}");
}

/// RFC 7857 section 10 | packet | met | Packets that can be cut, or have been, never leave with the same identification, though guests chose the same.
#[test]
fn rfc7857_10_identifications_do_not_collide() {
    let mut nat = nat();
    let mut taken = std::collections::HashSet::new();
    for (nic, guest) in [(0, GUEST), (1, OTHER)] {
        let whole = udp(ep(guest, 4000), ep(PEER, 9999), &[1; 100]);
        for part in fragments(&whole, 80, 1).iter().take(1) {
            let sent = nat.cross(Side::Inside, nic, part).outward().frame;
            assert!(taken.insert(identification(&sent)));
        }
    }
}

/// RFC 7857 section 11 | packet | met | A mapping of ICMP queries has one time, a minute after the last query; there are no sessions on it that could end sooner, as it may end with them.
#[test]
fn rfc7857_11_query_mappings_end_with_their_last_query() {
    let mut nat = nat();
    let id = nat.out(&echo(GUEST, SERVER, 77, false)).outward().source.port;
    nat.seconds(30);
    nat.out(&echo(GUEST, PEER, 77, false)).outward();
    nat.back(&echo(PEER, OUTSIDE, id, true)).inward();
    nat.seconds(59);
    nat.back(&echo(SERVER, OUTSIDE, id, true)).inward();
    nat.seconds(1);
    assert_eq!(nat.back(&echo(PEER, OUTSIDE, id, true)).refused(), Refusal::NotMapped);
    nat.table.sweep(nat.now, 100);
    assert!(nat.entries().is_empty());
}

/// RFC 7857 section 12 | packet | met | ICMP errors are hairpinned, with what they quote; queries, whose identifiers are translated, need not be, and are refused.
#[test]
fn rfc7857_12_errors_are_hairpinned() {
    let mut nat = nat();
    let a = nat.out(&udp(ep(GUEST, 4000), ep(SERVER, 3478), b"")).outward().source;
    let b = nat.cross(Side::Inside, 1, &udp(ep(OTHER, 4000), ep(SERVER, 3478), b"")).outward().source;
    let there = nat.out(&udp(ep(GUEST, 4000), b, b"hello")).inward();
    assert_eq!(there.source, a);
    let told = nat.cross(Side::Inside, 1, &error(OTHER, OUTSIDE, UNREACHABLE, &there.frame, 40)).inward();
    assert_eq!((told.destination.address, quoted(&told.frame).source), (GUEST, ep(GUEST, 4000)));
    assert!(!nat.out(&echo(GUEST, OUTSIDE, 77, false)).is_sent());
}
