//! RFC 6888 (carrier-grade NAT) where it applies, and what else the table promises: published ports, bounds, restarts.

use nat::{Filtering, NatTable, Protocol, Refusal, Side, State};
use wire::NicId;

family!();

fn nat() -> Packets {
    Packets::new(&config())
}

/// RFC 6888 REQ-1 | packet | met | TCP, UDP and ICMP are translated by the rules of their RFCs; other protocols are dropped with a reason.
#[test]
fn rfc6888_req1_other_protocols_are_told() {
    let mut nat = nat();
    let mut sctp = udp(ep(GUEST, 4000), ep(SERVER, 4000), b"");
    sctp[PROTOCOL] = 132;
    assert_eq!(nat.out(&sctp).refused(), Refusal::UnknownProtocol);
}

/// RFC 6888 REQ-2 | packet | met | Pooling is paired unless chosen otherwise; arbitrary pooling uses the other addresses when one has no ports left.
#[test]
fn rfc6888_req2_pooling_is_paired_by_default() {
    let outside = vec![OUTSIDE, outside(2)];
    for pooling in [nat::Pooling::Paired, nat::Pooling::Arbitrary] {
        let mut nat =
            Packets::new(&Config { mappings: 1 << 17, quota: 1 << 18, outside: outside.clone(), pooling, ..config() });
        let mut taken = std::collections::HashSet::new();
        let mut refused = 0;
        for port in 1..=1023u16 {
            for remote in [0u16, 1] {
                let fate = nat.out(&udp(ep(GUEST, port + remote * 2000), ep(SERVER, 9000), b""));
                if fate.is_sent() {
                    taken.insert(fate.outward().source.address)
                } else {
                    refused += 1;
                    false
                };
            }
        }
        assert_eq!((taken.len(), refused), (1, 0), "{pooling:?}");
    }
    assert_eq!(Config::new(vec![OUTSIDE], 1).pooling, nat::Pooling::Paired);
}

/// RFC 6888 REQ-3 | packet | met | The pool may be any 64 addresses, next to one another or not. (More are no case here.)
#[test]
fn rfc6888_req3_a_pool_need_not_be_contiguous() {
    let outside = vec![OUTSIDE, far(1), far(200)];
    let mut nat = Packets::new(&Config { outside: outside.clone(), ..config() });
    let used =
        (2..60).map(host).map(|host| nat.out(&udp(ep(host, 4000), ep(PEER, 9999), b"")).outward().source.address);
    assert_eq!(used.collect::<std::collections::HashSet<_>>().len(), outside.len());
}

/// RFC 6888 REQ-4 | packet | met | Ports per guest are limited by a quota; one guest takes nothing of another's.
#[test]
fn rfc6888_req4_a_guest_has_a_quota() {
    let mut nat = Packets::new(&Config { quota: 100, ..config() });
    nat.cross(Side::Inside, 1, &udp(ep(OTHER, 1), ep(PEER, 9999), b"")).outward();
    for n in 0..1000 {
        let fate = nat.out(&udp(ep(GUEST, 2000 + n), ep(PEER, 9999), b""));
        assert_eq!(fate.is_sent(), n < 100);
    }
    for n in 0..99 {
        nat.cross(Side::Inside, 1, &udp(ep(OTHER, 2000 + n), ep(PEER, 9999), b"")).outward();
    }
    assert_eq!((nat.table.count(NicId(0)), nat.table.count(NicId(1))), (100, 100));
}

/// RFC 6888 REQ-5 | packet | met | State per guest is limited; at the limit a guest's own short-lived state gives way first, established connections never.
#[test]
fn rfc6888_req5_own_brief_state_gives_way_first() {
    let mut nat = Packets::new(&Config { quota: 100, ..config() });
    let source = nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "S")).outward().source;
    nat.back(&tcp(ep(SERVER, 80), source, "SA")).inward();
    for n in 0..1000 {
        nat.out(&tcp(ep(GUEST, 4001 + n), ep(SERVER, 80), "S")).outward();
    }
    nat.back(&tcp(ep(SERVER, 80), source, "A")).inward();
    assert!(nat.table.count(NicId(0)) <= 100 && nat.table.stats().over_quota > 900);
}

/// RFC 6888 REQ-6 | packet | not met | Translation cannot be turned off for some destinations: everything that leaves is translated.
#[test]
fn rfc6888_req6_everything_is_translated() {
    let mut nat = nat();
    for to in [SERVER, PEER, ROUTER] {
        assert_eq!(nat.out(&udp(ep(GUEST, 4000), ep(to, 1), b"")).outward().source.address, OUTSIDE);
    }
}

/// RFC 6888 REQ-7 | packet | met | Filtering is endpoint-independent unless chosen otherwise.
#[test]
fn rfc6888_req7_filtering_is_endpoint_independent_by_default() {
    assert_eq!(Config::new(vec![OUTSIDE], 1).filtering, Filtering::EndpointIndependent);
    let mut nat = nat();
    let source = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
    nat.back(&udp(ep(SERVER, 1), source, b"")).inward();
}

/// RFC 6888 REQ-8 | packet | met | A port rests two minutes after its mapping has gone, while there are others; TCP ports, tracked to their end, need not.
#[test]
fn rfc6888_req8_ports_rest() {
    let mut nat = nat();
    let source = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
    nat.seconds(300);
    assert_eq!(nat.table.sweep(nat.now, 10), 1);
    let other =
        |nat: &mut Packets, n: u32| nat.out(&udp(ep(host(256 + n), 4000), ep(PEER, 9999), b"")).outward().source;
    assert_ne!(other(&mut nat, 1), source);
    nat.seconds(119);
    assert_ne!(other(&mut nat, 2), source);
    nat.seconds(1);
    assert_eq!(other(&mut nat, 3), source);
}

/// RFC 6888 REQ-9 | packet | not met | No port control protocol is spoken. Ports are published by the control side instead, live and with the client's address kept.
#[test]
fn rfc6888_req9_ports_can_be_published() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let mut nat = Packets::new(&Config { filtering, ..config() });
        let web = Forward {
            protocol: Protocol::Tcp,
            outside: OUTSIDE,
            ports: 8080..=8089,
            inside: ep(GUEST, 80),
            nic: NicId(0),
        };
        assert_eq!(nat.back(&tcp(ep(PEER, 9), ep(OUTSIDE, 8082), "S")), Fate::Waits);
        nat.table.publish(&web, nat.now).unwrap();
        let syn = nat.back(&tcp(ep(PEER, 9), ep(OUTSIDE, 8082), "S")).inward();
        assert_eq!((syn.source, syn.destination), (ep(PEER, 9), ep(GUEST, 82)));
        let answer = nat.out(&tcp(ep(GUEST, 82), ep(PEER, 9), "SA")).outward();
        assert_eq!(answer.source, ep(OUTSIDE, 8082));
        nat.seconds(7000);
        nat.back(&tcp(ep(PEER, 9), ep(OUTSIDE, 8082), "A")).inward();
        nat.seconds(70_000);
        nat.table.sweep(nat.now, 1000);
        nat.back(&tcp(ep(PEER, 10), ep(OUTSIDE, 8089), "S")).inward();
        assert_eq!(nat.table.unpublish(&web), 10);
        assert_eq!(nat.back(&tcp(ep(PEER, 10), ep(OUTSIDE, 8089), "A")).refused(), Refusal::NotMapped);
        assert!(nat.entries().is_empty());
        let dns = Forward { protocol: Protocol::Udp, ports: 53..=53, inside: ep(GUEST, 5353), ..web };
        nat.table.publish(&dns, nat.now).unwrap();
        assert_eq!(nat.back(&udp(ep(PEER, 9), ep(OUTSIDE, 53), b"")).inward().destination, ep(GUEST, 5353));
        assert_eq!(nat.out(&udp(ep(GUEST, 5353), ep(PEER, 9), b"")).outward().source, ep(OUTSIDE, 53));
    }
}

#[test]
fn what_is_published_does_not_count_against_what_a_guest_may_have() {
    let mut nat = Packets::new(&Config { quota: 4, ..config() });
    for port in 4000..4004 {
        nat.out(&udp(ep(GUEST, port), ep(PEER, 9999), b"")).outward();
    }
    assert_eq!(nat.out(&udp(ep(GUEST, 4004), ep(PEER, 9999), b"")).refused(), Refusal::Quota);
    let dns =
        Forward { protocol: Protocol::Udp, outside: OUTSIDE, ports: 53..=54, inside: ep(GUEST, 53), nic: NicId(0) };
    nat.table.publish(&dns, nat.now).unwrap();
    assert_eq!(nat.back(&udp(ep(PEER, 9), ep(OUTSIDE, 54), b"")).inward().destination, ep(GUEST, 54));
    assert_eq!(nat.entries().len(), 6);
}

#[test]
fn what_cannot_be_published_says_why_and_changes_nothing() {
    let mut nat = nat();
    let dynamic = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
    let good =
        Forward { protocol: Protocol::Udp, outside: OUTSIDE, ports: 53..=54, inside: ep(GUEST, 53), nic: NicId(0) };
    nat.table.publish(&good, nat.now).unwrap();
    let before = nat.entries();
    let wrong = [
        (Forward { protocol: Protocol::Icmp, ..good.clone() }, PublishError::Protocol),
        (Forward { outside: PEER, ..good.clone() }, PublishError::Address(PEER)),
        (Forward { ports: 0..=0, ..good.clone() }, PublishError::Range),
        (Forward { ports: 60_000..=65_535, inside: ep(GUEST, 60_001), ..good.clone() }, PublishError::Range),
        (Forward { nic: NicId(77), ..good.clone() }, PublishError::Nic(NicId(77))),
        (Forward { ports: 52..=53, inside: ep(OTHER, 9), ..good.clone() }, PublishError::Taken(ep(OUTSIDE, 53))),
        (
            Forward { ports: 99..=99, inside: ep(GUEST, 54), ..good.clone() },
            PublishError::Twice { inside: ep(GUEST, 54), outside: ep(OUTSIDE, 54) },
        ),
        (Forward { ports: 1000..=9000, inside: ep(OTHER, 1000), ..good.clone() }, PublishError::Full(2048)),
    ];
    for (forward, error) in wrong {
        assert_eq!(nat.table.publish(&forward, nat.now), Err(error));
    }
    assert_eq!(nat.entries(), before);
    // A dynamic mapping gives way to what is published.
    let taking = Forward { ports: dynamic.port..=dynamic.port, inside: ep(OTHER, 7), nic: NicId(1), ..good };
    nat.table.publish(&taking, nat.now).unwrap();
    assert_eq!(nat.back(&udp(ep(PEER, 9), dynamic, b"")).inward().destination, ep(OTHER, 7));
    assert_ne!(nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source, dynamic);
}

#[test]
fn who_floods_a_full_table_evicts_its_own() {
    let mut nat = Packets::new(&Config { mappings: 1024, quota: 4096, ..config() });
    for n in 0..100 {
        nat.cross(Side::Inside, 1, &udp(ep(OTHER, 1000 + n), ep(PEER, 9999), b"")).outward();
    }
    for n in 0..10_000 {
        nat.out(&udp(ep(GUEST, 10_000 + n), ep(PEER, 9999), b"")).outward();
    }
    assert_eq!((nat.table.count(NicId(1)), nat.table.len()), (100, 2048));
    assert!(nat.table.stats().evicted > 8000);
}

#[test]
fn a_restart_keeps_mappings_connections_and_ages() {
    for filtering in [Filtering::EndpointIndependent, Filtering::AddressDependent] {
        let config = Config { filtering, ..config() };
        let mut nat = Packets::new(&config);
        let first = nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "S")).outward().source;
        nat.back(&tcp(ep(SERVER, 80), first, "SA")).inward();
        nat.seconds(100);
        let second = nat.out(&udp(ep(GUEST, 4000), ep(PEER, 9999), b"")).outward().source;
        nat.out(&echo(GUEST, SERVER, 5, false)).outward();
        nat.seconds(50);
        let snapshot = nat.table.snapshot(nat.now);
        let mut next = Packets::new(&Config { seed: 99, ..config });
        assert_eq!(next.table.restore(&snapshot, next.now), 0);
        assert_eq!(next.table.snapshot(next.now), snapshot);
        assert_eq!(next.table.restore(&snapshot, next.now), snapshot.entries.len(), "known already");
        next.back(&tcp(ep(SERVER, 80), first, "A")).inward();
        next.seconds(249);
        next.back(&udp(ep(PEER, 9999), second, b"")).inward();
        next.seconds(1);
        assert_eq!(next.back(&udp(ep(PEER, 9999), second, b"")).refused(), Refusal::NotMapped);
        let mut elsewhere = NatTable::new(&Config::new(vec![PEER], 7)).unwrap();
        elsewhere.add_nic(NicId(0));
        assert_eq!(elsewhere.restore(&snapshot, next.now), snapshot.entries.len());
        assert_eq!(elsewhere.len(), 0);
    }
}

#[test]
fn entries_say_what_show_nat_prints() {
    let mut nat = nat();
    let frame = udp(ep(GUEST, 4000), ep(PEER, 9999), b"1234");
    let source = nat.out(&frame).outward().source;
    nat.back(&udp(ep(PEER, 9999), source, b"")).inward();
    nat.seconds(10);
    let [entry] = nat.entries()[..] else { panic!("{:?}", nat.entries()) };
    assert_eq!(
        (entry.protocol, entry.nic, entry.inside, entry.outside),
        (Protocol::Udp, NicId(0), ep(GUEST, 4000), source)
    );
    assert_eq!(
        (entry.state, entry.expires, entry.packets, entry.bytes),
        (State::Udp, Some(290), 2, 2 * (HEADER as u64 + 8) + 4)
    );
}
