//! TCP through the socket engine, behaviour by behaviour: a guest whose segments are made by hand, against real sockets. What the host sends is in
//! `sockets_tcp_downloads.rs`. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::io::{ErrorKind, Write};

use scripted::{
    tcp::{ACK, End, PSH, RST, SYN, accept, bytes, connected, listener, read, segment, states},
    *,
};
use wire::{DropReason, Gso, Offload};

const GUEST: &str = "10.0.0.2:4000";
const GUEST6: &str = "[fd00::2]:4000";

#[test]
fn a_syn_is_answered_when_the_host_has_connected() {
    for (guest, v6, mss) in [(GUEST, false, 1460u16), (GUEST6, true, 1440)] {
        let mut lab = Lab::new(config());
        let (listener, name) = listener(v6);
        let mut guest = End::new(0, at(guest), name);
        let answer = guest.open(&mut lab);
        let [a, b] = mss.to_be_bytes();
        assert_eq!(answer.options[..4], [2, 4, a, b]);
        assert!(answer.options.windows(2).any(|option| option == [3, 3]), "scales its window as the guest does");
        accept(&listener);
        assert_eq!(states(&mut lab), ["established"]);
    }
}

#[test]
fn windows_are_scaled_only_for_who_scales() {
    let mut lab = Lab::new(config());
    let (listener, name) = listener(false);
    let mut guest = End::new(0, at(GUEST), name);
    (guest.scale, guest.mss) = (None, None);
    let answer = guest.open(&mut lab);
    assert_eq!(answer.options, [2, 4, 0x05, 0xb4]);
    let mut host = accept(&listener);
    host.write_all(&bytes(20_000)).unwrap();
    guest.until(&mut lab, |guest| guest.received.len() == 20_000);
    assert_eq!(guest.longest, 536, "who names no MSS takes 536 bytes (RFC 9293 section 3.7.1)");
}

#[test]
fn a_repeated_syn_makes_no_second_connection() {
    let mut lab = Lab::new(config());
    let (listener, name) = listener(false);
    let mut guest = End::new(0, at(GUEST), name);
    let syn = guest.frame(SYN, b"");
    let got = lab.turn(0, &[(&syn, Offload::NONE), (&syn, Offload::NONE)]);
    let first = if got.is_empty() { lab.receive()[0].clone() } else { got[0].bytes.clone() };
    let first = segment(&first).unwrap();
    let again = segment(&lab.ask(0, &syn)[0]).unwrap();
    assert_eq!((first.flags, again.flags), (SYN | ACK, SYN | ACK));
    assert_eq!((first.seq, first.ack), (again.seq, again.ack), "the same answer");
    guest.seq = guest.seq.wrapping_add(1);
    guest.ack = first.seq.wrapping_add(1);
    guest.acknowledge(&mut lab);
    accept(&listener);
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(states(&mut lab), ["established"]);
}

#[test]
fn an_answer_to_a_syn_that_was_lost_is_sent_again() {
    let mut lab = Lab::new(config());
    let (_listener, name) = listener(false);
    let guest = End::new(0, at(GUEST), name);
    let first = segment(&lab.ask(0, &guest.frame(SYN, b""))[0]).unwrap();
    lab.seconds(1);
    let again = segment(&lab.receive()[0]).unwrap();
    assert_eq!((again.flags, again.seq, again.ack), (SYN | ACK, first.seq, first.ack));
}

#[test]
fn who_is_refused_by_the_host_is_refused() {
    for (guest, v6) in [(GUEST, false), (GUEST6, true)] {
        let mut lab = Lab::new(config());
        let (listener, name) = listener(v6);
        drop(listener);
        let guest = End::new(0, at(guest), name);
        let answer = segment(&lab.ask(0, &guest.frame(SYN, b""))[0]).unwrap();
        assert_eq!((answer.flags, answer.ack), (RST | ACK, guest.seq.wrapping_add(1)));
        assert!(states(&mut lab).is_empty());
    }
}

#[test]
fn what_cannot_be_reached_is_told_as_the_network_tells_it() {
    if !in_namespace("what_cannot_be_reached_is_told_as_the_network_tells_it") {
        return;
    }
    let mut lab = Lab::new(config());
    for (from, to, kind, code) in [(GUEST, "203.0.113.9:80", 3, 0), (GUEST6, "[2001:db8:2::9]:80", 1, 0)] {
        let guest = End::new(0, at(from), at(to));
        let error = told(&lab.ask(0, &guest.frame(SYN, b""))[0]);
        assert_eq!((error.kind, error.code, ends(&error.quoted).0.ip()), (kind, code, at(from).ip()), "no route");
    }
    let net = Router::new();
    let guest = End::new(0, at(GUEST), at("203.0.113.9:80"));
    assert!(lab.send(0, &guest.frame(SYN, b"")).is_empty(), "nobody has answered the host yet");
    assert_eq!(states(&mut lab), ["connecting"]);
    net.run("ip route add unreachable 203.0.113.64/26");
    let guest = End::new(0, at(GUEST), at("203.0.113.70:80"));
    let error = told(&lab.ask(0, &guest.frame(SYN, b""))[0]);
    assert_eq!((error.kind, error.code), (3, 1), "host unreachable");
    let quoted = &guest.frame(SYN, b"")[26..42];
    assert_eq!(&error.quoted[26..42], quoted, "its own addresses, ports and number");
}

#[test]
fn the_host_is_out_of_reach_unless_allowed() {
    let mut config = config();
    config.host = None;
    let mut lab = Lab::new(config);
    lab.host_has(&[("192.0.2.7", 32)]);
    let error = told(&lab.ask(0, &End::new(0, at(GUEST), at("192.0.2.7:80")).frame(SYN, b""))[0]);
    assert_eq!((error.kind, error.code), (3, 13), "administratively prohibited");
    let (_listener, name) = listener(false);
    let guest = End::new(0, at(GUEST), name);
    assert_eq!(segment(&lab.ask(0, &guest.frame(SYN, b""))[0]).unwrap().flags, RST | ACK, "the router listens nowhere");
    for to in
        ["127.0.0.1:80", "0.0.0.0:80", "224.0.0.1:80", "255.255.255.255:80", "[::1]:80", "[::]:80", "[ff02::1]:80"]
    {
        let guest = if at(to).is_ipv4() { GUEST } else { GUEST6 };
        let said = lab.send(0, &End::new(0, at(guest), at(to)).frame(SYN, b""));
        assert!(said.iter().all(|said| segment(&said.bytes).is_none()), "{to}: an error at most");
    }
    lab.nothing();
    assert!(states(&mut lab).is_empty());
}

#[test]
fn what_is_the_hosts_from_the_first_moment_is_never_reached() {
    let mut config = config();
    config.host = None;
    config.host_addresses = vec![nat::Prefix::new("10.9.0.0".parse().unwrap(), 16).unwrap()];
    let mut lab = Lab::new(config);
    for to in ["10.9.3.4:80", "10.9.255.255:80"] {
        let error = told(&lab.ask(0, &End::new(0, at(GUEST), at(to)).frame(SYN, b""))[0]);
        assert_eq!((error.kind, error.code), (3, 13), "administratively prohibited");
    }
    assert!(states(&mut lab).is_empty());
}

#[test]
fn connections_to_what_becomes_the_hosts_end() {
    if !in_namespace("connections_to_what_becomes_the_hosts_end") {
        return;
    }
    run(&["ip", "route", "add", "local", "192.0.2.0/24", "dev", "lo"]);
    let mut config = config();
    config.host = None;
    let mut lab = Lab::new(config);
    // The engine has not heard of it.
    let listener = std::net::TcpListener::bind("192.0.2.7:80").unwrap();
    let mut guest = End::new(0, at(GUEST), at("192.0.2.7:80"));
    guest.open(&mut lab);
    let mut host = accept(&listener);
    // Whoever comes by a published port may well be the host.
    let of = nat::Publication {
        protocol: nat::Protocol::Tcp,
        listen: at("192.0.2.8:80"),
        to: at("10.0.0.2:80"),
        count: 1,
        nic: Some(wire::NicId(0)),
    };
    lab.publish(&of).unwrap();
    let _client = std::net::TcpStream::connect(of.listen).unwrap();
    lab.receive();
    let told_of = lab.host_has(&[("192.0.2.0", 24)]);
    guest.take(&told_of.into_iter().map(|got| got.bytes).collect::<Vec<_>>());
    assert!(guest.reset);
    assert_eq!(std::io::Read::read(&mut host, &mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(states(&mut lab), ["syn_sent", "published"]);
}

#[test]
fn a_super_frame_of_a_guest_is_taken_at_once() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let payload = bytes(60_000);
    let mut frame = guest.frame(ACK | PSH, &payload);
    frame[50..52].copy_from_slice(&[0x12, 0x34]);
    guest.seq = guest.seq.wrapping_add(60_000);
    let got = lab.turn(0, &[(&frame, Offload::new(Gso::Tcp4, 54, 1460, 34, 16))]);
    assert_eq!(got.len(), 1, "one acknowledgement");
    assert_eq!(segment(&got[0].bytes).unwrap().ack, guest.seq);
    assert!(read(&mut host, 60_000) == payload);
}

#[test]
fn what_the_host_does_not_take_is_not_acknowledged_and_the_window_says_so() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let chunk = bytes(1400);
    let start = guest.seq;
    // Until the host's reader is full; more than the window says is the guest's own fault and no harm.
    for _ in 0..20_000 {
        guest.send(&mut lab, &chunk);
        if guest.acked != guest.seq {
            break;
        }
    }
    let taken = guest.acked.wrapping_sub(start) as usize;
    assert!(guest.acked != guest.seq, "a reader that does not read was sent {taken} bytes");
    guest.until(&mut lab, |guest| guest.told < 100);
    guest.seq = guest.acked;
    let mut got = read(&mut host, taken);
    assert!(got.chunks(1400).all(|part| part == &chunk[..part.len()]));
    guest.until(&mut lab, |guest| guest.told > 100);
    let rest = chunk[taken % 1400..].to_vec();
    guest.send(&mut lab, &rest);
    got = read(&mut host, rest.len());
    assert_eq!((got, guest.acked), (rest, guest.seq));
}

#[test]
fn room_that_comes_together_with_data_is_told() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let chunk = bytes(1400);
    let start = guest.seq;
    for _ in 0..20_000 {
        guest.send(&mut lab, &chunk);
        if guest.acked != guest.seq {
            break;
        }
    }
    guest.until(&mut lab, |guest| guest.told < 100);
    guest.seq = guest.acked;
    // One event says both, and the frame with the data is all that the guest gets for it.
    read(&mut host, guest.acked.wrapping_sub(start) as usize);
    host.write_all(b"data").unwrap();
    guest.until(&mut lab, |guest| guest.received == b"data");
    assert!(guest.told > 100, "{}", guest.told);
}

#[test]
fn segments_lost_on_the_way_out_are_asked_for() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let all = bytes(5000);
    let part =
        |guest: &End, from: usize, to: usize| guest.frame_at(guest.seq.wrapping_add(from as u32), ACK, &all[from..to]);
    let (first, third, fourth) = (part(&guest, 0, 1000), part(&guest, 2000, 3000), part(&guest, 3000, 4000));
    guest.say(&mut lab, &first);
    let hole = guest.seq.wrapping_add(1000);
    let said = guest.burst(&mut lab, &[third, fourth]);
    assert_eq!(said.iter().map(|said| said.ack).collect::<Vec<_>>(), [hole, hole], "each is answered");
    // More than what was lost, some of it known.
    let again = part(&guest, 500, 5000);
    guest.say(&mut lab, &again);
    assert_eq!(guest.acked, guest.seq.wrapping_add(5000));
    let old = part(&guest, 0, 1000);
    assert_eq!(guest.say(&mut lab, &old).len(), 1, "what is old is acknowledged again");
    assert_eq!(read(&mut host, 5000), all);
    guest.seq = guest.seq.wrapping_add(5000);
    guest.send(&mut lab, b"end");
    assert_eq!(read(&mut host, 3), b"end", "and nothing came twice");
}

#[test]
fn a_keep_alive_is_answered() {
    let mut lab = Lab::new(config());
    let (mut guest, _host) = connected(&mut lab);
    for payload in [&b""[..], b"?"] {
        let ask = guest.frame_at(guest.seq.wrapping_sub(1), ACK, payload);
        let said = guest.say(&mut lab, &ask);
        assert_eq!((said.len(), said[0].ack, said[0].seq), (1, guest.seq, guest.ack));
    }
}

#[test]
fn a_segment_with_a_wrong_checksum_is_dropped() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let mut frame = guest.frame(ACK, b"wrong");
    *frame.last_mut().unwrap() ^= 1;
    assert!(guest.say(&mut lab, &frame).is_empty());
    assert_eq!(lab.drops(DropReason::BadPacket), 1);
    guest.send(&mut lab, b"right");
    assert_eq!(read(&mut host, 5), b"right");
}
