//! What is asked upstream: transports, ids, retries, budgets and the cache.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_question_goes_upstream_under_an_id_of_ours_and_its_answer_comes_back_as_it_is() {
    let mut net = Net::new();
    let question = query("WWW.example.com.", RecordType::A);
    let sent = net.forwarded(client(LAN, 1), &question);
    assert_eq!((sent.server, sent.tcp), (server(1), false));
    assert_eq!(sent.message.queries, question.queries);
    assert!(sent.message.metadata.recursion_desired && sent.message.edns.is_none());
    net.answered(&sent, &answer(&sent.message, &[a("www.example.com.", 300, 7), a("www.example.com.", 200, 8)]));
    let reply = net.reply();
    assert_eq!((reply.metadata.id, reply.answers.len(), reply.answers[0].ttl), (0x1234, 2, 300));
    assert_eq!(reply.queries, question.queries);
    // Ids are not to be guessed.
    let ids: std::collections::HashSet<u16> = (0..60)
        .map(|n| net.forwarded(client(LAN, n), &query(&format!("n{n}.example."), RecordType::A)).message.metadata.id)
        .collect();
    assert!(ids.len() > 55, "{ids:?}");
}

#[test]
fn made_up_answers_do_not_count() {
    let mut net = Net::new();
    let sent = net.forwarded(client(LAN, 1), &query("www.example.com.", RecordType::A));
    let good = answer(&sent.message, &[a("www.example.com.", 300, 7)]);
    let mut wrong_id = good.clone();
    wrong_id.metadata.id ^= 1;
    let mut wrong_name = good.clone();
    wrong_name.queries = query("www.example.org.", RecordType::A).queries;
    let mut wrong_kind = good.clone();
    wrong_kind.queries = query("www.example.com.", RecordType::AAAA).queries;
    let mut no_answer = good.clone();
    no_answer.metadata.message_type = MessageType::Query;
    for wrong in [&wrong_id, &wrong_name, &wrong_kind, &no_answer] {
        net.answered(&sent, wrong);
        assert_eq!(net.actions(), []);
    }
    net.answered(&Sent { server: server(2), ..sent.clone() }, &good);
    net.answered(&Sent { tcp: true, ..sent.clone() }, &good);
    net.answered(&Sent { exchange: 999, ..sent.clone() }, &good);
    assert_eq!(net.actions(), []);
    net.answered(&sent, &good);
    assert_eq!(net.reply().answers.len(), 1);
}

#[test]
fn a_silent_server_is_passed_over_and_when_all_are_silent_somebody_says_so_once_a_minute() {
    let mut net = Net::new();
    let sent = net.forwarded(client(LAN, 1), &query("www.example.com.", RecordType::A));
    net.advance(2 * SECOND);
    let second = net.sent();
    assert_eq!((second.exchange, second.server), (sent.exchange, server(2)));
    // A late answer of the first counts no more: its socket is closed.
    net.answered(&sent, &answer(&sent.message, &[a("www.example.com.", 300, 7)]));
    assert_eq!(net.actions(), []);
    net.answered(&second, &answer(&second.message, &[a("www.example.com.", 300, 7)]));
    assert_eq!(net.reply().answers.len(), 1);
    // The silent one is asked last now.
    assert_eq!(net.forwarded(client(LAN, 1), &query("x.example.", RecordType::A)).server, server(2));

    let mut complaints = Vec::new();
    let mut failures = 0;
    for n in 0..100 {
        if n % 10 == 0 {
            net.ask(client(LAN, 1), &query(&format!("n{n}.example."), RecordType::A));
        }
        net.advance(SECOND);
        for action in net.actions() {
            match action {
                Action::Unanswered { servers } => complaints.push(servers),
                Action::Reply { bytes, .. } => {
                    assert_eq!(code(&Message::from_vec(&bytes).unwrap()), ResponseCode::ServFail);
                    failures += 1;
                }
                _ => {}
            }
        }
    }
    assert_eq!(complaints, [vec![server(1), server(2)], vec![server(1), server(2)]]);
    assert!((10..=11).contains(&failures), "{failures}");
    // One that is there again is asked again.
    let sent = net.forwarded(client(LAN, 1), &query("y.example.", RecordType::A));
    net.answered(&sent, &answer(&sent.message, &[a("y.example.", 300, 7)]));
    assert_eq!(net.reply().answers.len(), 1);
}

#[test]
fn a_server_that_cannot_be_reached_costs_no_time() {
    let mut net = Net::new();
    let sent = net.forwarded(client(LAN, 1), &query("www.example.com.", RecordType::A));
    net.resolver.failed(sent.exchange, net.now);
    assert_eq!(net.sent().server, server(2));
    net.resolver.set_upstreams(&[]);
    net.ask(client(LAN, 2), &query("z.example.", RecordType::A));
    let actions = net.actions();
    assert_eq!(actions[0], Action::Unanswered { servers: vec![] });
    assert!(matches!(&actions[1], Action::Reply { .. }));
}

#[test]
fn trouble_of_one_server_is_not_passed_on_while_another_may_know() {
    let mut net = Net::new();
    let sent = net.forwarded(client(LAN, 1), &query("www.example.com.", RecordType::A));
    let mut trouble = answer(&sent.message, &[]);
    trouble.metadata.response_code = ResponseCode::ServFail;
    net.answered(&sent, &trouble);
    let second = net.sent();
    assert_eq!(second.server, server(2));
    let mut refused = answer(&second.message, &[]);
    refused.metadata.response_code = ResponseCode::Refused;
    net.answered(&second, &refused);
    assert_eq!(code(&net.reply()), ResponseCode::Refused, "the last one's trouble");
}

fn long(sent: &Message, records: u8) -> Message {
    let records: Vec<Record> = (0..records).map(|n| a("long.example.", 300, n)).collect();
    answer(sent, &records)
}

#[test]
fn what_does_not_fit_is_told_by_udp_and_fetched_for_tcp() {
    let mut net = Net::new();
    let question = query("long.example.", RecordType::A);
    let (udp, tcp) = (client(LAN, 1), by_tcp(client(LAN, 2)));
    let sent = net.forwarded(udp, &question);
    net.ask(tcp, &question);
    assert_eq!(net.actions(), [], "one question, two who wait");
    let mut short = answer(&sent.message, &[]);
    short.metadata.truncation = true;
    net.answered(&sent, &short);
    let actions = net.actions();
    let [Action::Reply { client, bytes }, Action::Send { tcp: true, server: to, .. }] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!((*client, *to, Message::from_vec(bytes).unwrap().metadata.truncation), (udp, server(1), true));
    let Action::Send { exchange, server, tcp: by, bytes } = actions[1].clone() else { panic!() };
    let again = Sent { exchange, server, tcp: by, message: Message::from_vec(&bytes).unwrap() };
    net.answered(&again, &long(&again.message, 100));
    let replies = net.replies();
    assert_eq!((replies[0].0, replies[0].1.answers.len(), replies[0].1.metadata.truncation), (tcp, 100, false));
    // The whole answer was kept; each client gets what it can take.
    let plain = net.at_once(udp, &question);
    assert!(plain.metadata.truncation && plain.answers.is_empty());
    assert_eq!(net.at_once(tcp, &question).answers.len(), 100);
}

#[test]
fn a_client_gets_as_much_by_udp_as_it_says_and_no_more_than_goes_unfragmented() {
    let mut net = Net::new();
    for (n, size, fits) in
        [(30, None, false), (25, None, true), (30, Some(100), false), (60, Some(1232), true), (90, Some(65535), false)]
    {
        let name = format!("l{n}x{}.example.", size.unwrap_or(0));
        let question = query(&name, RecordType::A);
        let question = size.map_or(question.clone(), |size| with_edns(question, size));
        let sent = net.forwarded(client(LAN, 1), &question);
        assert_eq!(sent.message.edns.is_some(), size.is_some());
        let mut whole = long(&sent.message, n);
        whole.edns = sent.message.edns.clone();
        net.answered(&sent, &whole);
        let reply = net.reply();
        assert_eq!(reply.metadata.truncation, !fits, "{n} {size:?}");
        assert_eq!(reply.answers.len(), if fits { usize::from(n) } else { 0 });
        assert_eq!(reply.edns.is_some(), size.is_some());
        assert!(reply.to_vec().unwrap().len() <= usize::from(size.unwrap_or(512).clamp(512, 1232)));
    }
}

#[test]
fn answers_are_kept_for_as_long_as_they_say_and_count_down() {
    let mut net = Net::new();
    let question = query("www.example.com.", RecordType::A);
    let sent = net.forwarded(client(LAN, 1), &question);
    let mut whole = answer(&sent.message, &[a("www.example.com.", 100, 7)]);
    whole.metadata.authoritative = true;
    whole.add_additional(a("bank.example.", 3600, 66));
    net.answered(&sent, &whole);
    assert!(net.reply().metadata.authoritative);
    net.advance(30 * SECOND);
    let kept = net.at_once(client(DMZ, 1), &query("www.EXAMPLE.com.", RecordType::A));
    assert_eq!((kept.answers[0].ttl, kept.metadata.authoritative), (70, false));
    // What came along unasked answers nothing, nor does the answer to another type or to DNSSEC's.
    net.forwarded(client(LAN, 1), &query("bank.example.", RecordType::A));
    net.forwarded(client(LAN, 1), &query("www.example.com.", RecordType::AAAA));
    net.forwarded(client(LAN, 1), &with_edns(question.clone(), 1232));
    net.advance(71 * SECOND);
    net.forwarded(client(LAN, 1), &question);
}

#[test]
fn what_is_not_there_is_kept_as_long_as_its_zone_says() {
    for (n, authority, kept) in [
        (1, Some(soa("example.", 900, 60)), true),
        (2, Some(soa("example.", 60, 900)), true),
        (3, Some(soa("example.", 900, 0)), false),
        (4, None, false),
    ] {
        for rcode in [ResponseCode::NXDomain, ResponseCode::NoError] {
            let mut net = Net::new();
            let question = query(&format!("n{n}-{}.example.", u16::from(rcode)), RecordType::A);
            let sent = net.forwarded(client(LAN, 1), &question);
            let mut nothing = answer(&sent.message, &[]);
            nothing.metadata.response_code = rcode;
            nothing.add_authorities(authority.clone());
            net.answered(&sent, &nothing);
            assert_eq!(code(&net.reply()), rcode);
            net.advance(59 * SECOND);
            if kept {
                assert_eq!(code(&net.at_once(client(LAN, 2), &question)), rcode, "{n}");
                net.advance(2 * SECOND);
            }
            net.forwarded(client(LAN, 1), &question);
        }
    }
}

#[test]
fn the_cache_is_bounded_and_takes_from_whoever_fills_it() {
    let mut net = Net::with(Limits { cache_entries: 50, cache_bytes: 1 << 20, ..Limits::default() });
    let fill = |net: &mut Net, nic: u16, name: &str| {
        let sent = net.forwarded(client(LAN, nic), &query(name, RecordType::A));
        net.answered(&sent, &answer(&sent.message, &[a(name, 300, 7)]));
        net.actions();
    };
    for n in 0..5 {
        fill(&mut net, 1, &format!("mine{n}.example."));
    }
    for n in 0..500 {
        fill(&mut net, 2, &format!("flood{n}.example."));
    }
    assert_eq!(net.resolver.sizes().2.0, 50);
    for n in 0..5 {
        net.at_once(client(LAN, 3), &query(&format!("mine{n}.example."), RecordType::A));
    }
    net.advance(400 * SECOND);
    assert_eq!(net.resolver.sizes().2, (0, 0), "what has ended is forgotten");

    let mut net = Net::with(Limits { cache_bytes: 100_000, ..Limits::default() });
    for n in 0..500 {
        fill(&mut net, n, &format!("flood{n}.example."));
    }
    let (entries, bytes) = net.resolver.sizes().2;
    assert!(entries > 100 && bytes <= 100_000, "{entries} {bytes}");
    net.resolver.set_upstreams(&[server(9)]);
    assert_eq!(net.resolver.sizes().2, (0, 0), "other servers may say something else");
}

#[test]
fn a_flood_of_one_guest_takes_nothing_from_another() {
    let mut net = Net::with(Limits { waiting: 100, waiting_per_guest: 60, ..Limits::default() });
    let refused =
        |net: &mut Net| net.replies().iter().filter(|(_, reply)| code(reply) == ResponseCode::Refused).count();
    for n in 0..1000 {
        net.ask(client(LAN, 1), &query(&format!("a{n}.example."), RecordType::A));
    }
    assert_eq!((refused(&mut net), net.resolver.sizes().1), (940, 60));
    for n in 0..1000 {
        net.ask(client(LAN, 2), &query(&format!("b{n}.example."), RecordType::A));
    }
    net.actions();
    assert_eq!(net.resolver.sizes().1, 100);
    for n in 0..20 {
        let sent = net.forwarded(client(LAN, 3), &query(&format!("c{n}.example."), RecordType::A));
        net.answered(&sent, &answer(&sent.message, &[a("c.example.", 0, 7)]));
        let replies = net.replies();
        assert_eq!((replies.len(), replies[0].0), (1, client(LAN, 3)));
    }
    net.advance(13 * SECOND);
    net.advance(13 * SECOND);
    net.actions();
    assert_eq!((net.resolver.sizes().0, net.resolver.sizes().1), (0, 0), "everything ends");
}

#[test]
fn a_repeated_query_is_answered_once() {
    let mut net = Net::new();
    let question = query("www.example.com.", RecordType::A);
    let sent = net.forwarded(client(LAN, 1), &question);
    net.ask(client(LAN, 1), &question);
    assert_eq!(net.actions(), []);
    net.answered(&sent, &answer(&sent.message, &[a("www.example.com.", 300, 7)]));
    net.reply();
}

#[test]
fn routers_of_ours_are_no_upstreams() {
    let mut net = Net::new();
    let routers = ["10.0.0.1:53", "[fd00::1]:53", "10.1.0.1:53"].map(|text| text.parse().unwrap());
    net.resolver.set_upstreams(&[routers[0], server(4), routers[1], server(4), routers[2]]);
    assert_eq!(net.resolver.upstreams(), [server(4)]);
}

#[test]
fn a_server_that_does_not_know_edns_is_asked_again_without() {
    let mut net = Net::new();
    let question = with_edns(query("www.example.com.", RecordType::A), 1232);
    // What old servers say: a header and nothing else.
    let bare = |sent: &Sent| {
        let mut bytes = sent.message.metadata.id.to_be_bytes().to_vec();
        bytes.extend([0x81, 0x81, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes
    };
    let sent = net.forwarded(client(LAN, 1), &question);
    assert!(sent.message.edns.is_some());
    let mut strange = bare(&sent);
    strange[0] ^= 1;
    net.resolver.answered(sent.exchange, sent.server, false, &strange, net.now);
    assert_eq!(net.actions(), [], "under another id it is somebody else's");
    net.resolver.answered(sent.exchange, sent.server, false, &bare(&sent), net.now);
    let again = net.sent();
    assert_eq!((again.server, again.tcp, again.message.edns.is_none()), (sent.server, false, true));
    assert_eq!(again.message.queries, question.queries);
    net.answered(&again, &answer(&again.message, &[a("www.example.com.", 300, 7)]));
    assert_eq!(net.reply().answers.len(), 1);
    // With the question in it, it is the same.
    let sent = net.forwarded(client(LAN, 1), &with_edns(query("x.example.com.", RecordType::A), 1232));
    let mut refusal = answer(&sent.message, &[]);
    refusal.metadata.response_code = ResponseCode::FormErr;
    net.answered(&sent, &refusal);
    let again = net.sent();
    assert!(again.message.edns.is_none() && again.server == sent.server);
    // Who does not understand the plain question either is passed over, and another is asked as before.
    net.resolver.answered(again.exchange, again.server, false, &bare(&again), net.now);
    let other = net.sent();
    assert!(other.server != sent.server && other.message.edns.is_some());
}
