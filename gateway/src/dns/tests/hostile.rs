//! Bytes that nobody who means well sends, from both sides.

use proptest::prelude::*;

use super::*;

/// The header of a message of this kind with these counts, and what follows.
fn raw(flags: u16, counts: [u16; 4], rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
    bytes.extend(rest);
    bytes
}

#[test]
fn what_is_no_query_is_refused_or_not_answered() {
    let mut net = Net::new();
    let mut answered = |bytes: &[u8]| {
        net.resolver.ask(client(LAN, 1), bytes, net.now);
        let replies = net.replies();
        assert!(replies.len() <= 1);
        replies.first().map(|(_, reply)| u16::from(code(reply)))
    };
    let www = b"\x03www\x07example\x00\x00\x01\x00\x01";
    assert_eq!(answered(&[]), None);
    assert_eq!(answered(&[0; 11]), None);
    assert_eq!(answered(&raw(0x8100, [1, 0, 0, 0], www)), None, "an answer");
    assert_eq!(answered(&raw(0x0100, [0, 0, 0, 0], &[])), Some(u16::from(ResponseCode::FormErr)), "no question");
    assert_eq!(
        answered(&raw(0x0100, [2, 0, 0, 0], &[&www[..], &www[..]].concat())),
        Some(u16::from(ResponseCode::FormErr))
    );
    assert_eq!(
        answered(&raw(0x0100, [1, 0, 0, 0], b"\xc0\x0c\x00\x01\x00\x01")),
        Some(u16::from(ResponseCode::FormErr)),
        "a loop"
    );
    assert_eq!(
        answered(&raw(0x0100, [1, 0, 0, 0], b"\x01a\xc0\x0c\x00\x01\x00\x01")),
        Some(u16::from(ResponseCode::FormErr))
    );
    assert_eq!(
        answered(&raw(0x0100, [1, 0, 0, 9], www)),
        Some(u16::from(ResponseCode::FormErr)),
        "less than announced"
    );
    assert_eq!(answered(&raw(0x2800, [1, 0, 0, 0], www)), Some(u16::from(ResponseCode::NotImp)), "an update");
    assert_eq!(
        answered(&raw(0x0100, [1, 0, 0, 0], b"\x07version\x04bind\x00\x00\x10\x00\x03")),
        Some(u16::from(ResponseCode::Refused))
    );
    assert_eq!(
        answered(&raw(0x0100, [1, 0, 0, 0], b"\x03lan\x04test\x00\x00\xfc\x00\x01")),
        Some(u16::from(ResponseCode::Refused))
    );
    let version_1 = [&www[..], b"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00"].concat();
    assert_eq!(answered(&raw(0x0100, [1, 0, 0, 1], &version_1)), Some(u16::from(ResponseCode::BADVERS)));
}

#[test]
fn answers_with_loops_and_lies_about_lengths_are_passed_over() {
    let mut net = Net::new();
    let sent = net.forwarded(client(LAN, 1), &query("www.example.com.", RecordType::A));
    let good = answer(&sent.message, &[a("www.example.com.", 300, 7)]).to_vec().unwrap();
    let question = sent.message.to_vec().unwrap()[12..].to_vec();
    let id = sent.message.metadata.id.to_be_bytes();
    let mut with = |records: &[u8]| {
        let mut bytes = raw(0x8180, [1, 1, 0, 0], &[question.as_slice(), records].concat());
        bytes[..2].copy_from_slice(&id);
        net.resolver.answered(sent.exchange, sent.server, false, &bytes, net.now);
        assert_eq!(net.actions(), [], "{records:?}");
    };
    let at = (12 + question.len()) as u8;
    with(&[0xc0, at, 0, 1, 0, 1, 0, 0, 0, 9, 0, 0]);
    with(&[0xc0, at + 2, 0, 1, 0, 1, 0, 0, 0, 9, 0, 0]);
    with(&[0xc0, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 0]);
    with(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 5, 1]);
    with(&[0x40; 40]);
    with(&[]);
    net.resolver.answered(sent.exchange, sent.server, false, &good[..good.len() - 1], net.now);
    assert_eq!(net.actions(), []);
    net.resolver.answered(sent.exchange, sent.server, false, &good, net.now);
    assert_eq!(net.reply().answers.len(), 1);
}

proptest! {
    #[test]
    fn random_bytes_from_guests_never_panic_and_leave_nothing(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..20)) {
        let mut net = Net::new();
        for mut bytes in messages {
            net.resolver.ask(client(LAN, 1), &bytes, net.now);
            // And as something that looks more like a query.
            for (at, byte) in [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0].into_iter().enumerate().skip(2) {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            net.resolver.ask(by_tcp(client(LAN, 1)), &bytes, net.now);
        }
        net.actions();
        for _ in 0..20 {
            net.advance(Duration::from_secs(2));
            net.actions();
        }
        prop_assert_eq!((net.resolver.sizes().0, net.resolver.sizes().1), (0, 0));
    }

    #[test]
    fn bytes_changed_on_the_way_never_panic(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6), cut in 0usize..40, tcp: bool) {
        let mut net = Net::new();
        let name = "a.long.name.example.com.";
        let question = with_edns(query(name, RecordType::MX), 4096).to_vec().unwrap();
        let mangle = |mut bytes: Vec<u8>| {
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            bytes
        };
        net.resolver.ask(client(LAN, 1), &mangle(question), net.now);
        net.actions();
        let sent = net.forwarded(if tcp { by_tcp(client(LAN, 2)) } else { client(LAN, 2) }, &query(name, RecordType::A));
        let mut whole = answer(&sent.message, &[a(name, 300, 7), a("com.", 5, 8)]);
        whole.add_authority(soa("com.", 60, 60));
        let bytes = mangle(whole.to_vec().unwrap());
        net.resolver.answered(sent.exchange, sent.server, sent.tcp, &bytes, net.now);
        net.actions();
        // Whatever was kept of it can be looked up again.
        net.ask(client(LAN, 3), &query(name, RecordType::A));
        net.advance(Duration::from_secs(1));
        net.ask(client(LAN, 3), &query(name, RecordType::A));
    }
}
