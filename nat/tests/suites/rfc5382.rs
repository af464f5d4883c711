//! RFC 5382 (TCP), requirement by requirement, in virtual time, over IPv4 and over IPv6. See `conformance.rs` for the convention of the comments.

use nat::{Filtering, Refusal, Side, State};

family!();

fn nat() -> Packets {
    Packets::new(&config())
}

fn strict() -> Packets {
    Packets::new(&Config { filtering: Filtering::AddressDependent, ..config() })
}

/// RFC 5382 REQ-1 | packet | met | One outside endpoint for an inside one, whoever it connects to.
#[test]
fn rfc5382_req1_mapping_is_endpoint_independent() {
    for mut nat in [nat(), strict()] {
        let first = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
        let second = connect(&mut nat, ep(GUEST, 4000), ep(PEER, 443));
        assert_eq!(first, second);
        assert_ne!(connect(&mut nat, ep(GUEST, 4001), ep(PEER, 443)), first);
    }
}

/// RFC 5382 REQ-2 | packet | met | All valid sequences are let through, simultaneous open included.
#[test]
fn rfc5382_req2_simultaneous_open_is_let_through() {
    for mut nat in [nat(), strict()] {
        let (inside, remote) = (ep(GUEST, 4000), ep(PEER, 4000));
        let source = nat.out(&tcp(inside, remote, "S")).outward().source;
        assert_eq!(state(&nat), [State::Opening]);
        nat.back(&tcp(remote, source, "S")).inward();
        assert_eq!(state(&nat), [State::Established]);
        nat.out(&tcp(inside, remote, "SA")).outward();
        nat.back(&tcp(remote, source, "SA")).inward();
        nat.out(&tcp(inside, remote, "A")).outward();
        nat.back(&tcp(remote, source, "FA")).inward();
        nat.out(&tcp(inside, remote, "A")).outward();
        assert_eq!(state(&nat), [State::Established], "half closed");
        nat.out(&tcp(inside, remote, "FA")).outward();
        nat.back(&tcp(remote, source, "A")).inward();
        assert_eq!(state(&nat), [State::Closing]);
    }
}

/// RFC 5382 REQ-3 | packet | met | Filtering is endpoint-independent or address-dependent, as chosen.
#[test]
fn rfc5382_req3_filtering_is_as_chosen() {
    let mut open = nat();
    let source = connect(&mut open, ep(GUEST, 4000), ep(SERVER, 80));
    assert_eq!(open.back(&tcp(ep(PEER, 9), source, "S")).inward().destination, ep(GUEST, 4000));
    let mut strict = strict();
    let source = connect(&mut strict, ep(GUEST, 4000), ep(SERVER, 80));
    assert_eq!(strict.back(&tcp(ep(PEER, 9), source, "S")), Fate::Waits);
    assert_eq!(strict.back(&tcp(ep(SERVER, 9), source, "S")).inward().destination, ep(GUEST, 4000));
}

/// RFC 5382 REQ-4 | packet | met | An unsolicited SYN is dropped in silence for six seconds, then answered by "port unreachable", unless a SYN from inside met it.
#[test]
fn rfc5382_req4_unsolicited_syns_wait_six_seconds() {
    let mut nat = nat();
    let (remote, outside) = (ep(PEER, 4000), ep(OUTSIDE, 4000));
    let syn = tcp(remote, outside, "S");
    assert_eq!(nat.back(&syn), Fate::Waits);
    nat.seconds(3);
    assert_eq!(nat.back(&syn), Fate::Waits, "sent again");
    nat.seconds(3);
    assert_eq!(nat.table.unreachable(nat.now), None);
    nat.seconds(1);
    let due = nat.table.unreachable(nat.now).unwrap();
    assert_eq!((due.remote, due.outside, due.quote()), (remote, outside, &syn[14..L4 + 8]));
    assert_eq!(nat.table.unreachable(nat.now), None);
    assert_eq!(nat.back(&syn), Fate::Waits);
    assert_eq!(nat.out(&tcp(ep(GUEST, 4000), remote, "S")).outward().source, outside);
    nat.seconds(60);
    assert_eq!(nat.table.unreachable(nat.now), None, "a SYN from inside met it");
    for n in 1..1000 {
        assert_eq!(nat.back(&tcp(ep(PEER, n), ep(OUTSIDE, 9), "S")), Fate::Waits, "bounded");
    }
    nat.seconds(60);
    assert!((0..1000).take_while(|_| nat.table.unreachable(nat.now).is_some()).count() < 1000);
}

/// RFC 5382 REQ-5 | packet | met | Established connections last 2 h 4 min, others 4 min, and can be told no less.
#[test]
fn rfc5382_req5_idle_connections_last() {
    let mut nat = nat();
    let source = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
    nat.seconds(7439);
    nat.back(&tcp(ep(SERVER, 80), source, "A")).inward();
    nat.seconds(7439);
    nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "A")).outward();
    nat.seconds(7440);
    assert_eq!(nat.back(&tcp(ep(SERVER, 80), source, "A")).refused(), Refusal::NoSession);
    let half_open = nat.out(&tcp(ep(GUEST, 4001), ep(SERVER, 80), "S")).outward().source;
    nat.seconds(239);
    nat.back(&tcp(ep(SERVER, 80), half_open, "SA")).inward();
    let half_open = nat.out(&tcp(ep(GUEST, 4002), ep(SERVER, 80), "S")).outward().source;
    nat.seconds(240);
    assert_eq!(nat.back(&tcp(ep(SERVER, 80), half_open, "SA")).refused(), Refusal::NoSession);
    let changes: [fn(&mut nat::Lifetimes); 3] =
        [|times| times.tcp_established /= 2, |times| times.tcp_opening /= 2, |times| times.tcp_closing /= 2];
    for change in changes {
        let mut short = config();
        change(&mut short.lifetimes);
        assert!(nat::NatTable::new(&short).is_err_and(|error| error.to_string().contains("RFC 5382 REQ-5")));
    }
}

/// RFC 5382 REQ-4 | packet | met | The answer is "port unreachable" from the address that the SYN was sent to.
#[test]
fn rfc5382_req4_port_unreachable_is_sent() {
    let mut gate = port::Gate::new(port_config(config()));
    let second = std::time::Duration::from_secs(1);
    let syn = tcp(ep(PEER, 4000), ep(OUTSIDE, 4000), "S");
    assert!(gate.reply(syn.clone()).is_empty());
    assert!(gate.wait(second * 6).iter().all(|out| !is_packet(&out.frame)));
    let told: Vec<port::Out> = gate.wait(second * 2).into_iter().filter(|out| is_packet(&out.frame)).collect();
    let told = port::one(told, Side::Outside);
    assert_eq!(
        (port::icmp(&told), seen(&told).source.address, seen(&told).destination.address),
        ((PORT_UNREACHABLE.0, PORT_UNREACHABLE.1, 0), OUTSIDE, PEER)
    );
    assert_eq!(quoted(&told).destination, ep(OUTSIDE, 4000));
    assert!(gate.reply(syn).is_empty());
    gate.out(0, &tcp(ep(GUEST, 4000), ep(PEER, 4000), "S"));
    assert!(gate.wait(second * 9).iter().all(|out| !is_packet(&out.frame)), "met by a SYN from inside");
}

/// RFC 5382 REQ-6 | packet | met | There are no application level gateways that would have to be off: payload is left alone.
#[test]
fn rfc5382_req6_payload_is_left_alone() {
    let mut nat = nat();
    let payload = b"PORT 10,0,0,2,15,160";
    let sent = nat.out(&udp(ep(GUEST, 21), ep(SERVER, 21), payload)).outward();
    assert_eq!(&sent.frame[L4 + 8..], payload);
}

/// RFC 5382 REQ-7 | packet | met | Port parity and range are no requirement of TCP; ports are never overloaded.
#[test]
fn rfc5382_req7_ports_are_never_overloaded() {
    let mut nat = nat();
    let mut taken = std::collections::HashSet::new();
    for n in 2..502 {
        assert!(taken.insert(nat.out(&tcp(ep(host(n), 4000), ep(SERVER, 80), "S")).outward().source));
    }
}

/// RFC 5382 REQ-8 | packet | met | Hairpinning, with the outside source address and port.
#[test]
fn rfc5382_req8_hairpinning_shows_the_outside_endpoint() {
    let mut nat = nat();
    let b = connect(&mut nat, ep(OTHER, 4000), ep(SERVER, 80));
    let syn = nat.cross(Side::Inside, 1, &tcp(ep(GUEST, 4000), b, "S")).inward();
    assert_eq!((syn.source.address, syn.destination), (OUTSIDE, ep(OTHER, 4000)));
    let a = syn.source;
    let answer = nat.out(&tcp(ep(OTHER, 4000), a, "SA")).inward();
    assert_eq!((answer.source, answer.destination), (b, ep(GUEST, 4000)));
    nat.cross(Side::Inside, 1, &tcp(ep(GUEST, 4000), b, "A")).inward();
    let sessions = state(&nat);
    assert_eq!(sessions, [State::Established; 3], "one with the server, and one of each end");
}

/// RFC 5382 REQ-9 | packet | met | ICMP errors about TCP are translated; "fragmentation needed" and "packet too big" are among them.
#[test]
fn rfc5382_req9_icmp_errors_are_translated() {
    let mut nat = nat();
    connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
    let sent = nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "A")).outward();
    for (what, quote) in [(TOO_BIG, 8), (UNREACHABLE, 20), (PORT_UNREACHABLE, 12)] {
        let told = nat.back(&error(ROUTER, OUTSIDE, what, &sent.frame, quote)).inward();
        assert_eq!(told.destination.address, GUEST);
        let about = quoted(&told.frame);
        assert_eq!((about.source, about.destination), (ep(GUEST, 4000), ep(SERVER, 80)));
        if quote == 20 {
            check(&about.frame);
        }
    }
}

/// RFC 5382 REQ-10 | packet | met | ICMP errors end neither mapping nor connection.
#[test]
fn rfc5382_req10_icmp_errors_do_not_end_connections() {
    let mut nat = nat();
    let source = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
    let sent = nat.out(&tcp(ep(GUEST, 4000), ep(SERVER, 80), "A")).outward();
    let before = nat.entries();
    nat.back(&error(ROUTER, OUTSIDE, UNREACHABLE, &sent.frame, 8)).inward();
    assert_eq!(nat.entries(), before);
    nat.back(&tcp(ep(SERVER, 80), source, "A")).inward();
}

#[test]
fn who_connects_to_its_own_outside_endpoint_has_one_session() {
    for mut nat in [nat(), strict()] {
        let own = connect(&mut nat, ep(GUEST, 4000), ep(SERVER, 80));
        nat.out(&tcp(ep(GUEST, 4000), own, "S"));
        assert!(state(&nat).len() <= 2, "{:?}", nat.entries());
    }
}
