//! TCP through the socket engine where the guest lies, is greedy, or is one of many. See `scripted/mod.rs`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use proptest::prelude::*;
use scripted::{
    tcp::{ACK, End, FIN, RST, SYN, Says, accept, connected, listener, lives, segment, tcp},
    *,
};
use wire::{DropReason, NicId, Offload};

const GUEST: &str = "10.0.0.2:4000";

#[test]
fn a_segment_of_no_connection_is_reset() {
    let mut lab = Lab::new(config());
    let mut guest = End::new(0, at(GUEST), at("198.51.100.1:80"));
    guest.ack = 77;
    for (flags, reset, seq, ack) in
        [(ACK, RST, 77, 0), (FIN, RST | ACK, 0, guest.seq.wrapping_add(2)), (ACK | SYN, RST, 77, 0)]
    {
        let said = guest.say(&mut lab, &guest.frame(flags, if flags == FIN { b"x" } else { b"" }));
        assert_eq!((said.len(), said[0].flags, said[0].seq, said[0].ack), (1, reset, seq, ack), "{flags:#x}");
    }
    assert!(guest.say(&mut lab, &guest.frame(RST, b"")).is_empty());
    assert!(lab.show().is_empty());
}

#[test]
fn numbers_that_are_guessed_are_challenged_and_break_nothing() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let (seq, ack) = (guest.seq, guest.ack);
    let challenge = |said: &[scripted::tcp::Segment]| said.len() == 1 && (said[0].flags, said[0].ack) == (ACK, seq);
    // RFC 5961 section 3: only the very number resets; one within the window is asked about.
    let said = guest.say(&mut lab, &guest.frame_at(seq.wrapping_add(9), RST, b""));
    assert!(challenge(&said), "{said:?}");
    assert!(guest.say(&mut lab, &guest.frame_at(seq.wrapping_sub(9), RST, b"")).is_empty());
    assert!(guest.say(&mut lab, &guest.frame_at(seq.wrapping_add(1 << 30), RST, b"")).is_empty());
    // Section 4: a SYN.
    for at in [seq, seq.wrapping_add(5), seq.wrapping_sub(1)] {
        let said = guest.say(&mut lab, &guest.frame_at(at, SYN, b""));
        assert!(challenge(&said), "{said:?}");
    }
    // Section 5: an acknowledgement of what was never sent.
    guest.ack = ack.wrapping_add(1000);
    let said = guest.say(&mut lab, &guest.frame(ACK, b"forged"));
    assert!(challenge(&said), "{said:?}");
    guest.ack = ack;
    lives(&mut lab, &mut guest, &mut host);
}

#[test]
fn a_segment_out_of_the_window_acknowledges_nothing() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    host.write_all(b"data").unwrap();
    let frames = lab.receive();
    assert_eq!(frames.len(), 1);
    let (seq, ack) = (guest.seq, guest.ack);
    guest.ack = ack.wrapping_add(4);
    for wrong in [seq.wrapping_add(1 << 30), seq.wrapping_sub(1 << 20)] {
        let said = guest.say(&mut lab, &guest.frame_at(wrong, ACK, b""));
        assert_eq!((said.len(), said[0].flags, said[0].ack), (1, ACK, seq), "{said:?}");
    }
    // What was not acknowledged is sent again.
    lab.seconds(1);
    guest.ack = ack;
    guest.take(&lab.receive());
    assert_eq!(guest.received, b"data");
    lives(&mut lab, &mut guest, &mut host);
}

#[test]
fn odd_flags_are_survived() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    for flags in 0..=255u8 {
        if flags & (RST | FIN) != 0 {
            continue;
        }
        let frame = guest.frame_at(guest.seq.wrapping_sub(1), flags, b"");
        guest.say(&mut lab, &frame);
    }
    assert!(!guest.reset);
    lives(&mut lab, &mut guest, &mut host);
    // Urgent data is data like any other.
    let mut urgent = guest.frame(ACK | 0x20, b"!");
    urgent[34 + 18..34 + 20].copy_from_slice(&[0, 1]);
    urgent[50..52].copy_from_slice(&[0x12, 0x34]);
    guest.seq = guest.seq.wrapping_add(1);
    // Of no matter what the checksum field says: it is owed.
    lab.turn(0, &[(&urgent, Offload::new(wire::Gso::None, 0, 0, 34, 16))]);
    let mut byte = [0];
    host.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"!");
    lives(&mut lab, &mut guest, &mut host);
}

#[test]
fn one_guests_connections_take_nothing_from_anothers() {
    let mut config = config();
    (config.descriptors, config.descriptor_quota) = (60, 40);
    let mut lab = Lab::new(config);
    let (listener, name) = listener(false);
    let mut refused = 0;
    for port in 0..60 {
        let guest = End::new(0, SocketAddr::new([10, 0, 0, 2].into(), 5000 + port), name);
        let answer = lab.ask(0, &guest.frame(SYN, b""));
        refused += usize::from(segment(&answer[0]).is_none_or(|answer| answer.flags & SYN == 0));
    }
    assert_eq!((refused, lab.show().len(), lab.drops(DropReason::NatQuota)), (20, 40, 20));
    for port in 0..20 {
        let mut other = End::new(1, SocketAddr::new([10, 0, 0, 3].into(), 5000 + port), name);
        other.open(&mut lab);
    }
    // Who ends has room again.
    for _ in 0..60 {
        let _ = accept(&listener);
    }
    lab.seconds(1);
    lab.turn(0, &[]);
    let mut lines = lab.show();
    lines.retain(|line| line.nic == NicId(1));
    assert_eq!(lines.len(), 20);
}

#[test]
fn connections_that_nobody_answers_give_way_to_new_ones() {
    if !in_namespace("connections_that_nobody_answers_give_way_to_new_ones") {
        return;
    }
    let net = Router::new();
    net.run("ip route add blackhole 203.0.113.64/26");
    let mut config = config();
    (config.descriptors, config.descriptor_quota) = (60, 10);
    let mut lab = Lab::new(config);
    let silent = at("203.0.113.70:80");
    let (_listener, name) = listener(false);
    for port in 0..10 {
        let guest = End::new(0, SocketAddr::new([10, 0, 0, 2].into(), 5000 + port), silent);
        assert!(lab.send(0, &guest.frame(SYN, b"")).is_empty());
    }
    let connecting = |lab: &mut Lab| lab.show().iter().filter(|line| line.state == "connecting").count();
    assert_eq!(connecting(&mut lab), 10);
    let mut more = End::new(0, at(GUEST), name);
    let refused = lab.ask(0, &more.frame(SYN, b""));
    assert!(segment(&refused[0]).is_none(), "they may still be answered");
    lab.seconds(4);
    more.open(&mut lab);
    assert_eq!(connecting(&mut lab), 9);
    let lines = lab.show();
    assert!(lines.iter().all(|line| line.inside.port() != 5000), "the oldest has gone: {lines:?}");
}

#[test]
fn thousands_of_connections_are_open_at_once() {
    const MANY: u16 = 3000;
    if sys::process::raise_descriptor_limit().is_ok_and(|limit| limit < 2 * u64::from(MANY) + 200) {
        println!(
            "SKIPPED thousands_of_connections_are_open_at_once: two descriptors for each of {MANY} are more than the limit"
        );
        return;
    }
    let mut lab = Lab::new(config());
    let (listener, name) = listener(false);
    let mut all = Vec::new();
    for n in 0..MANY {
        let [a, b] = (n / 500 + 2).to_be_bytes();
        let mut guest = End::new(0, SocketAddr::new([10, 0, a, b].into(), 1024 + n), name);
        guest.open(&mut lab);
        all.push((guest, accept(&listener)));
    }
    assert_eq!(lab.show().len(), usize::from(MANY));
    for (guest, host) in all.iter_mut().step_by(97) {
        lives(&mut lab, guest, host);
    }
    for (guest, host) in all {
        drop(host);
        let reset = guest.frame(RST, b"");
        lab.send(0, &reset);
    }
    assert!(lab.show().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_guest_sends_another_is_served(
        segments in prop::collection::vec((any::<u8>(), -3i64..70_000, -3i64..70_000, any::<u16>(), 0usize..200, 0u8..4, prop::collection::vec(any::<u8>(), 0..10)), 1..60),
    ) {
        let mut lab = Lab::new(config());
        let (listener, name) = listener(false);
        let mut guest = End::new(0, at(GUEST), name);
        guest.open(&mut lab);
        let mut host = accept(&listener);
        host.write_all(&[7; 5000]).unwrap();
        for (flags, seq, ack, window, len, kind, mut options) in segments {
            options.resize(options.len().div_ceil(4) * 4, 1);
            let says = Says {
                seq: guest.seq.wrapping_add(seq as u32),
                ack: guest.ack.wrapping_add(ack as u32),
                flags: if kind == 0 { flags } else { ACK | flags & 8 },
                window,
                options: &options,
            };
            lab.send(0, &tcp(guest.me, guest.peer, says, &vec![1; len]));
            if kind == 3 {
                lab.seconds(u64::from(window % 100));
            }
            if kind == 2 {
                let _ = host.write(&[8; 100]);
            }
        }
        let mut other = End::new(1, at("10.0.0.3:4000"), name);
        other.open(&mut lab);
        let mut host = (0..).map(|_| accept(&listener)).find(|host| {
            let mine = lab.show().into_iter().find(|line| line.nic == NicId(1)).unwrap();
            host.peer_addr().ok() == mine.outside
        }).unwrap();
        lives(&mut lab, &mut other, &mut host);
    }
}
