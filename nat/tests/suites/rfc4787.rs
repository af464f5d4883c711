//! RFC 4787 (UDP), requirement by requirement, in virtual time, over IPv4 and over IPv6. See `conformance.rs` for the convention of the comments.

use nat::{Filtering, Refusal, State};

family!();

fn nat() -> Packets {
    Packets::new(&config())
}

fn strict() -> Packets {
    Packets::new(&Config { filtering: Filtering::AddressDependent, ..config() })
}

/// RFC 4787 REQ-1 | packet | met | One outside endpoint for an inside one, whoever it speaks to.
#[test]
fn rfc4787_req1_mapping_is_endpoint_independent() {
    for mut nat in [nat(), strict()] {
        let first = nat.out(&udp(ep(GUEST, 4000), ep(SERVER, 53), b"a")).outward();
        let second = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"b")).outward();
        assert_eq!((first.source, first.source.address), (second.source, OUTSIDE));
        assert_eq!((first.destination, second.destination), (ep(SERVER, 53), ep(PEER, 9999)));
        let another = nat.out(&udp(ep(GUEST, 4001), ep(SERVER, 53), b"c")).outward();
        assert_ne!(another.source, first.source);
    }
}

/// RFC 4787 REQ-2 | packet | met | All of an inside address has one outside address (paired); arbitrary pooling can be chosen.
#[test]
fn rfc4787_req2_pooling_is_paired() {
    let mut nat = Packets::new(&Config { outside: (1..=4).map(outside).collect(), ..config() });
    let mut taken = std::collections::HashSet::new();
    for n in 2..60 {
        let address = host(n);
        let outside =
            |nat: &mut Packets, port| nat.out(&udp(ep(address, port), ep(SERVER, 53), b"")).outward().source.address;
        let first = outside(&mut nat, 1024);
        assert!((1025..1040).all(|port| outside(&mut nat, port) == first), "{address}");
        let ping = nat.out(&echo(address, SERVER, 9, false)).outward();
        let syn = nat.out(&tcp(ep(address, 5), ep(SERVER, 80), "S")).outward();
        assert_eq!((ping.source.address, syn.source.address), (first, first), "other protocols, too");
        taken.insert(first);
    }
    assert_eq!(taken.len(), 4, "all addresses are used");
}

/// RFC 4787 REQ-3 | packet | met | No port overloading: two inside endpoints never share an outside one; when ports run out, packets are refused.
#[test]
fn rfc4787_req3_ports_are_never_overloaded() {
    let mut nat = Packets::new(&Config { mappings: 1 << 17, quota: 1 << 17, ..config() });
    let mut taken = std::collections::HashSet::new();
    for n in 0..64_512u32 {
        let source =
            nat.out(&udp(ep(host(2 + n / 5000), 2000 + (n % 5000) as u16), ep(SERVER, 7777), b"")).outward().source;
        assert!(taken.insert(source), "{source} twice");
    }
    assert_eq!(nat.out(&udp(ep(PEER, 2000), ep(SERVER, 7777), b"")).refused(), Refusal::NoPort);
}

/// RFC 4787 REQ-3a | packet | met | Well-known inside ports get well-known outside ports, others get others.
#[test]
fn rfc4787_req3a_port_range_is_kept() {
    let mut nat = nat();
    for n in 2..30 {
        let address = host(n);
        for (port, low) in [(500, true), (1023, true), (1, true), (1024, false), (65_535, false), (30_000, false)] {
            let source = nat.out(&udp(ep(address, port), ep(SERVER, 53), b"")).outward().source;
            assert_eq!(source.port < 1024, low, "{address}:{port} became {source}");
            assert_ne!(source.port, 0);
        }
    }
}

/// RFC 4787 REQ-4 | packet | met | Port parity is kept while there are ports of the right parity, and an odd port beside its even one.
#[test]
fn rfc4787_req4_parity_is_kept() {
    let mut nat = nat();
    let mut beside = 0;
    for n in 2..100 {
        let address = host(n);
        let even = nat.out(&udp(ep(address, 5004), ep(SERVER, 5004), b"")).outward().source;
        let odd = nat.out(&udp(ep(address, 5005), ep(SERVER, 5005), b"")).outward().source;
        assert_eq!((even.port % 2, odd.port % 2), (0, 1));
        beside += u32::from(odd.port == even.port + 1);
    }
    assert!(beside > 90, "of 98 pairs of RTP and RTCP only {beside} are beside each other");
}

/// RFC 4787 REQ-5 | packet | met | UDP mappings last five minutes unless told otherwise, and cannot be told less than two.
#[test]
fn rfc4787_req5_udp_mappings_last() {
    let mut nat = nat();
    let source = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
    nat.seconds(299);
    nat.back(&udp(ep(PEER, 9999), source, b"")).inward();
    nat.seconds(1);
    assert_eq!(nat.back(&udp(ep(PEER, 9999), source, b"")).refused(), Refusal::NotMapped);
    let mut short = config();
    short.lifetimes.udp = std::time::Duration::from_secs(119);
    assert!(nat::NatTable::new(&short).is_err_and(|error| error.to_string().contains("RFC 4787 REQ-5")));
}

/// RFC 4787 REQ-5a | packet | met | Mappings that speak to well-known ports only may be shorter: two minutes unless told otherwise.
#[test]
fn rfc4787_req5a_well_known_destinations_may_be_shorter() {
    let mut nat = nat();
    let source = nat.out(&udp(ep(GUEST, 4000), ep(SERVER, 53), b"")).outward().source;
    nat.seconds(119);
    nat.back(&udp(ep(SERVER, 53), source, b"")).inward();
    nat.seconds(1);
    assert_eq!(nat.back(&udp(ep(SERVER, 53), source, b"")).refused(), Refusal::NotMapped);
    nat.out(&udp(ep(GUEST, 4001), ep(SERVER, 53), b"")).outward();
    let source = nat.out(&udp(ep(GUEST, 4001), ep(PEER, 5060), b"")).outward().source;
    nat.out(&udp(ep(GUEST, 4001), ep(SERVER, 53), b"")).outward();
    nat.seconds(299);
    nat.back(&udp(ep(SERVER, 53), source, b"")).inward();
}

/// RFC 4787 REQ-6 | packet | met | Outbound packets renew a mapping; inbound ones do only if that is chosen.
#[test]
fn rfc4787_req6_outbound_refreshes_and_inbound_may() {
    for inbound in [false, true] {
        let mut nat = Packets::new(&Config { inbound_refresh: inbound, ..config() });
        let source = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
        for _ in 0..5 {
            nat.seconds(200);
            nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward();
        }
        nat.seconds(200);
        nat.back(&udp(ep(PEER, 9999), source, b"")).inward();
        nat.seconds(200);
        assert_eq!(nat.back(&udp(ep(PEER, 9999), source, b"")).is_sent(), inbound);
    }
}

/// RFC 4787 REQ-7 | packet | met | The outside is configured, not learnt; a configuration whose inside and outside overlap is refused, and packets that claim the other side's addresses are.
#[test]
fn rfc4787_req7_addresses_of_both_sides_are_kept_apart() {
    let mut nat = nat();
    assert_eq!(nat.out(&udp(ep(OUTSIDE, 4000), ep(PEER, 9999), b"")).refused(), Refusal::NotOurs);
    assert_eq!(nat.back(&udp(ep(PEER, 4000), ep(GUEST, 9999), b"")).refused(), Refusal::NotOurs);
    for (inside, bits, overlaps) in SUBNETS {
        match with_inside(config(), (inside, bits)) {
            Ok(()) => assert!(!overlaps, "{inside}/{bits}"),
            Err(error) => assert!(overlaps && error.to_string().contains("overlap"), "{inside}/{bits}: {error}"),
        }
    }
}

/// RFC 4787 REQ-8 | packet | met | Filtering is endpoint-independent or address-dependent, as chosen.
#[test]
fn rfc4787_req8_filtering_is_as_chosen() {
    let mut open = nat();
    let source = open.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
    assert_eq!(open.back(&udp(ep(SERVER, 1), source, b"")).inward().destination, ep(GUEST, 4000));
    let mut strict = strict();
    let source = strict.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
    assert_eq!(strict.back(&udp(ep(SERVER, 1), source, b"")).refused(), Refusal::Filtered);
    assert_eq!(strict.back(&udp(ep(PEER, 1), source, b"")).inward().destination, ep(GUEST, 4000));
    strict.out(&udp(ep(GUEST, 4000), ep(SERVER, 53), b"")).outward();
    strict.back(&udp(ep(SERVER, 1), source, b"")).inward();
    strict.seconds(299);
    strict.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward();
    strict.seconds(2);
    assert_eq!(
        strict.back(&udp(ep(SERVER, 1), source, b"")).refused(),
        Refusal::Filtered,
        "a permit expires on its own"
    );
    strict.back(&udp(ep(PEER, 1), source, b"")).inward();
}

/// RFC 4787 REQ-9 | packet | met | Hairpinning, with the outside source address and port.
#[test]
fn rfc4787_req9_hairpinning_shows_the_outside_endpoint() {
    let mut nat = nat();
    let a = nat.out(&udp(ep(GUEST, 4000), ep(SERVER, 3478), b"")).outward().source;
    let b = nat.cross(nat::Side::Inside, 1, &udp(ep(OTHER, 4000), ep(SERVER, 3478), b"")).outward().source;
    assert_ne!(a, b);
    let there = nat.out(&udp(ep(GUEST, 4000), b, b"hello")).inward();
    assert_eq!((there.source, there.destination), (a, ep(OTHER, 4000)));
    let back = nat.cross(nat::Side::Inside, 1, &udp(ep(OTHER, 4000), a, b"hello")).inward();
    assert_eq!((back.source, back.destination), (b, ep(GUEST, 4000)));
    let mut strict = strict();
    let a = strict.out(&udp(ep(GUEST, 4000), ep(SERVER, 3478), b"")).outward().source;
    let b = strict.cross(nat::Side::Inside, 1, &udp(ep(OTHER, 4001), ep(SERVER, 3478), b"")).outward().source;
    assert_eq!(strict.out(&udp(ep(GUEST, 4000), b, b"")).refused(), Refusal::Filtered, "not yet");
    // What was refused opened the way back, as it would have from a guest of another NAT.
    strict.cross(nat::Side::Inside, 1, &udp(ep(OTHER, 4001), a, b"")).inward();
    strict.out(&udp(ep(GUEST, 4000), b, b"")).inward();
}

/// RFC 4787 REQ-12 | packet | met | ICMP errors never end a mapping.
#[test]
fn rfc4787_req12_icmp_errors_do_not_end_mappings() {
    let mut nat = nat();
    let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"data")).outward();
    let before = nat.entries();
    for what in [PORT_UNREACHABLE, UNREACHABLE, EXCEEDED, TOO_BIG] {
        nat.back(&error(ROUTER, OUTSIDE, what, &sent.frame, 8)).inward();
    }
    assert_eq!(nat.entries(), before);
    nat.back(&udp(ep(PEER, 9999), sent.source, b"")).inward();
}

/// RFC 4787 REQ-11 | packet | met | Deterministic: the same packets under the same seed have the same outcome; nothing changes for mappings by load.
#[test]
fn rfc4787_req11_behaviour_is_deterministic() {
    let run = || {
        let mut nat = Packets::new(&Config { preserve_port: false, ..config() });
        let ports = |n: u16| nat.out(&udp(ep(GUEST, 1024 + n * 7), ep(PEER, n), b"")).outward().source;
        (0..1000).map(ports).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
    let mut nat = nat();
    let first = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 1), b"")).outward().source;
    for n in 0..1000 {
        nat.cross(nat::Side::Inside, 1, &udp(ep(OTHER, 4000 + n), ep(PEER, 1), b"")).outward();
        assert_eq!(nat.out(&udp(ep(GUEST, 4000), ep(PEER, n), b"")).outward().source, first);
    }
}

/// RFC 4787 REQ-12b | packet | met | Destination unreachable is passed on: without that, path MTU discovery (fragmentation needed, packet too big) would not work.
#[test]
fn rfc4787_req12b_fragmentation_needed_reaches_the_sender() {
    let mut nat = nat();
    let sent = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), &[7; 60])).outward();
    let told = nat.back(&error(ROUTER, OUTSIDE, TOO_BIG, &sent.frame, 8)).inward();
    assert_eq!((told.source.address, told.destination.address), (ROUTER, GUEST));
    assert_eq!(told.frame[L4 + 4..L4 + 8], [0, 0, 5, 0], "the MTU of the next hop");
    let about = quoted(&told.frame);
    assert_eq!((about.source, about.destination), (ep(GUEST, 4000), ep(PEER, 9999)));
}

/// RFC 4787 REQ-10 | packet | met | There are no application level gateways: payload is left alone.
#[test]
fn rfc4787_req10_payload_is_left_alone() {
    let mut nat = nat();
    let payload = b"c=IN IP4 10.0.0.2 m=audio 4000";
    let sent = nat.out(&udp(ep(GUEST, 5060), ep(SERVER, 5060), payload)).outward();
    assert_eq!(&sent.frame[L4 + 8..], payload);
}

/// RFC 4787 REQ-13 | packet | met | A packet that does not fit and may not be cut, as none of IPv6 may, is answered with "fragmentation needed" or "packet too big" and the MTU, on both sides.
#[test]
fn rfc4787_req13_what_may_not_be_cut_is_told_the_mtu() {
    let mut gate = port::Gate::new(nat::PortConfig { mtu: 1400, inside_mtu: 1300, ..port_config(config()) });
    let long = |from, to| udp(from, to, &[7; 1440]);
    let (kind, code) = TOO_BIG;
    let told = port::one(gate.out(0, &long(ep(GUEST, 4000), ep(SERVER, 9000))), nat::Side::Inside);
    assert_eq!((port::icmp(&told), seen(&told).destination.address), ((kind, code, 1400), GUEST));
    assert_eq!((quoted(&told).source, seen(&told).source.address), (ep(GUEST, 4000), ROUTER_INSIDE));
    let fits = udp(ep(GUEST, 4000), ep(SERVER, 9000), &vec![7; 1400 - HEADER - 8]);
    let source = seen(&port::one(gate.out(0, &fits), nat::Side::Outside)).source;
    let told = port::one(gate.reply(long(ep(SERVER, 9000), source)), nat::Side::Outside);
    assert_eq!((port::icmp(&told), seen(&told).source.address), ((kind, code, 1300), OUTSIDE));
    assert_eq!((quoted(&told).destination, seen(&told).destination.address), (source, SERVER));
}

/// RFC 4787 REQ-14 | packet | met | Fragments that come before the first wait for it, on both sides, and go on behind it.
#[test]
fn rfc4787_req14_fragments_out_of_order_wait_for_the_first() {
    let mut gate = port::Gate::new(port::port_config(config()));
    let parts = fragments(&udp(ep(GUEST, 4000), ep(SERVER, 9000), &[7; 100]), 40, 9);
    assert!(gate.out(0, &parts[2]).is_empty() && gate.out(0, &parts[1]).is_empty());
    let sent: Vec<Vec<u8>> = gate.out(0, &parts[0]).into_iter().map(|out| out.frame).collect();
    assert_eq!(sent.len(), 3);
    let source = seen(&reassemble(&sent)).source;
    let answer = udp(ep(SERVER, 9000), source, &[8; 100]);
    let parts: Vec<Vec<u8>> = fragments(&answer, 40, 10).into_iter().map(port::from_outside).collect();
    assert!(gate.back(&parts[1]).is_empty() && gate.back(&parts[2]).is_empty());
    let back: Vec<Vec<u8>> = gate.back(&parts[0]).into_iter().map(|out| out.frame).collect();
    assert_eq!(seen(&reassemble(&back)).destination, ep(GUEST, 4000));
}

/// RFC 4787 REQ-14 | packet | met | Fragments are translated as their first was, whatever their order; the table says which are to wait.
#[test]
fn rfc4787_req14_fragments_follow_the_first() {
    let mut nat = nat();
    let whole = udp(ep(GUEST, 4000), ep(PEER, 9999), &(0..100).collect::<Vec<u8>>());
    let parts = fragments(&whole, 40, 77);
    let out: Vec<Vec<u8>> = parts.iter().map(|part| nat.out(part).outward().frame).collect();
    let together = seen(&reassemble(&out));
    assert_eq!(together.destination, ep(PEER, 9999));
    assert_eq!(together.frame[L4 + 8..], whole[L4 + 8..]);
    let answer = udp(ep(PEER, 9999), together.source, &(0..200).collect::<Vec<u8>>());
    let parts = fragments(&answer, 80, 5);
    assert_eq!(nat.back(&parts[1]), Fate::Held);
    assert_eq!(nat.back(&parts[2]), Fate::Held);
    let back: Vec<Vec<u8>> = parts.iter().map(|part| nat.back(part).inward().frame).collect();
    let together = seen(&reassemble(&back));
    assert_eq!((together.source, together.destination), (ep(PEER, 9999), ep(GUEST, 4000)));
    nat.seconds(31);
    assert_eq!(nat.back(&parts[1]), Fate::Held, "forgotten");
}

/// RFC 4787 REQ-14a | packet | met | Memory for fragments is bounded: floods of them take nothing from mappings.
#[test]
fn rfc4787_req14a_fragments_are_bounded() {
    let mut nat = nat();
    let whole = udp(ep(GUEST, 4000), ep(PEER, 9999), &[1; 100]);
    let source = nat.out(&whole).outward().source;
    let memory = nat.table.memory();
    for id in 0..20_000 {
        nat.out(&fragments(&whole, 40, id)[0]).outward();
        assert_eq!(nat.back(&fragments(&udp(ep(PEER, 9), source, &[1; 100]), 40, id)[1]), Fate::Held);
    }
    assert_eq!((nat.table.memory(), nat.table.len()), (memory, 1));
    assert!(nat.entries().iter().all(|entry| entry.state == State::Udp));
    nat.out(&fragments(&whole, 40, 19_999)[1]).outward();
}
