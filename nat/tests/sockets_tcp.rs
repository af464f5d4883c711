//! TCP through the socket engine, behaviour by behaviour: a guest whose segments are made by hand, against real sockets. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};

use scripted::{
    tcp::{ACK, End, PSH, RST, SYN, accept, listener, segment},
    *,
};
use wire::{DropReason, Gso, Offload};

const GUEST: &str = "10.0.0.2:4000";
const GUEST6: &str = "[fd00::2]:4000";

/// A guest that is connected, and the host's end.
fn connected(lab: &mut Lab, change: impl FnOnce(&mut End)) -> (End, TcpStream) {
    let (listener, name) = listener(false);
    let mut guest = End::new(0, at(GUEST), name);
    change(&mut guest);
    guest.open(lab);
    (guest, accept(&listener))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8).collect()
}

/// Reads as much as there is to read of `len` bytes.
fn read(stream: &mut TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Some time passes in which no data comes.
fn still(lab: &mut Lab) {
    for _ in 0..20 {
        let got = lab.turn(0, &[]);
        assert!(got.iter().all(|got| segment(&got.bytes).unwrap().payload.is_empty()));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// The words of the connections that are told.
fn states(lab: &mut Lab) -> Vec<&'static str> {
    lab.show().iter().map(|line| line.state).collect()
}

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
    assert!(lab.remote.send(nat::Command::HostAddresses(vec!["192.0.2.7".parse().unwrap()])));
    lab.turn(0, &[]);
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
fn data_goes_both_ways_intact() {
    for (guest, v6) in [(GUEST, false), (GUEST6, true)] {
        let mut lab = Lab::new(config());
        let (listener, name) = listener(v6);
        let mut guest = End::new(0, at(guest), name);
        guest.open(&mut lab);
        let mut host = accept(&listener);
        for len in [1, 73, 74, 75, 1400] {
            guest.send(&mut lab, &bytes(len));
            assert_eq!(guest.acked, guest.seq, "{len}: acknowledged in the same turn");
            assert_eq!(read(&mut host, len), bytes(len));
            guest.received.clear();
            host.write_all(&bytes(len)).unwrap();
            guest.until(&mut lab, |guest| guest.received.len() == len);
            assert_eq!(guest.received, bytes(len));
        }
        guest.received.clear();
        host.set_nonblocking(true).unwrap();
        let all = bytes(4 << 20);
        let mut sent = 0;
        while guest.received.len() < all.len() {
            sent += host.write(&all[sent..]).unwrap_or(0);
            let before = guest.received.len();
            guest.until(&mut lab, |guest| guest.received.len() > before);
        }
        assert!(guest.received == all);
        assert!(guest.longest <= if v6 { 1440 } else { 1460 });
    }
}

#[test]
fn a_super_frame_of_a_guest_is_taken_at_once() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |_| ());
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
fn data_for_a_guest_comes_in_super_frames_of_its_segments() {
    let mut lab = Lab::new(config());
    let (_, mut host) = connected(&mut lab, |guest| guest.mss = Some(1000));
    host.write_all(&bytes(200_000)).unwrap();
    let got = lab.receive_as_is();
    let first = &got[0];
    assert_eq!((first.offload.gso(), first.offload.segment_size()), (Gso::Tcp4, 1000));
    assert!(first.bytes.len() > 60_000, "{} bytes", first.bytes.len());
    let cut = lab.settle(first);
    assert!(cut.iter().all(|frame| frame.len() <= 1054));
    assert_eq!(segment(cut.last().unwrap()).unwrap().flags, ACK | PSH);
    let whole: Vec<u8> = cut.iter().flat_map(|frame| segment(frame).unwrap().payload).collect();
    assert!(whole[..] == bytes(200_000)[..whole.len()]);
}

#[test]
fn segments_are_no_longer_than_the_mtu_whatever_the_guest_says() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |guest| guest.mss = Some(65_535));
    host.write_all(&bytes(50_000)).unwrap();
    guest.until(&mut lab, |guest| guest.received.len() == 50_000);
    assert_eq!(guest.longest, 1460);
    let (mut guest, mut host) = connected(&mut lab, |guest| {
        guest.mss = Some(1);
        guest.me.set_port(4001);
    });
    host.write_all(&bytes(5_000)).unwrap();
    guest.until(&mut lab, |guest| guest.received.len() == 5_000);
    assert_eq!(guest.longest, 88, "an MSS of 1 is not believed");
}

#[test]
fn a_guest_is_sent_no_more_than_its_window() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |guest| (guest.scale, guest.window) = (Some(0), 3000));
    host.write_all(&bytes(10_000)).unwrap();
    let got: Vec<_> = lab.receive();
    guest.take(&got);
    let more: usize =
        (0..10).flat_map(|_| lab.turn(0, &[])).map(|got| segment(&got.bytes).unwrap().payload.len()).sum();
    assert!(guest.received.len() + more <= 3000, "{} and {more}", guest.received.len());
    guest.until(&mut lab, |guest| guest.received.len() == 10_000);
    assert_eq!(guest.received, bytes(10_000));
}

#[test]
fn a_closed_window_is_probed_and_its_opening_seen() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |guest| guest.window = 0);
    host.write_all(&bytes(1000)).unwrap();
    still(&mut lab);
    for _ in 0..3 {
        lab.seconds(40);
        let probe = segment(&lab.receive()[0]).unwrap();
        assert_eq!((probe.seq, probe.payload.len()), (guest.ack.wrapping_sub(1), 0));
        assert!(guest.acknowledge(&mut lab).is_empty(), "still closed");
    }
    guest.window = 65_535;
    guest.acknowledge(&mut lab);
    guest.until(&mut lab, |guest| guest.received.len() == 1000);
}

#[test]
fn a_window_that_stays_closed_while_probes_are_answered_ends_nothing() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |guest| guest.window = 0);
    host.write_all(&bytes(1000)).unwrap();
    still(&mut lab);
    for _ in 0..40 {
        lab.seconds(40);
        guest.take(&lab.receive());
        guest.acknowledge(&mut lab);
    }
    assert!(!guest.reset, "RFC 9293 section 3.8.6.1: as long as the receiver answers");
    guest.window = 65_535;
    guest.acknowledge(&mut lab);
    guest.until(&mut lab, |guest| guest.received.len() == 1000);
}

#[test]
fn what_the_host_does_not_take_is_not_acknowledged_and_the_window_says_so() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |_| ());
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
    let (mut guest, mut host) = connected(&mut lab, |_| ());
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
fn an_acknowledgement_is_within_what_the_guest_expects_while_data_is_sent_again() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |_| ());
    let before = guest.ack;
    host.write_all(&bytes(20_000)).unwrap();
    let frames = lab.receive();
    guest.take(&frames);
    assert_eq!(guest.received.len(), 20_000);
    // What the guest says of it is lost, so the first of it comes once more.
    lab.seconds(1);
    assert!(!lab.receive().is_empty());
    let has = std::mem::replace(&mut guest.ack, before);
    let said = guest.send(&mut lab, b"data");
    assert_eq!(said.iter().map(|said| (said.seq, said.ack)).collect::<Vec<_>>(), [(has, guest.seq)]);
    assert_eq!(read(&mut host, 4), b"data");
}

#[test]
fn segments_lost_on_the_way_out_are_asked_for() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |_| ());
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
fn segments_lost_on_the_way_in_are_sent_again_after_silence() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |_| ());
    host.write_all(&bytes(3000)).unwrap();
    assert!(!lab.receive().is_empty(), "and nobody takes it");
    lab.nothing();
    lab.seconds(1);
    guest.until(&mut lab, |guest| guest.received.len() == 3000);
    assert_eq!(guest.received, bytes(3000));
    host.write_all(b"more").unwrap();
    guest.until(&mut lab, |guest| guest.received.ends_with(b"more"));
    assert_eq!(guest.received.len(), 3004);
}

#[test]
fn three_repeated_acknowledgements_have_the_rest_sent_again_at_once() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |_| ());
    host.write_all(&bytes(100_000)).unwrap();
    let got = lab.receive();
    guest.take(&got[..2]);
    assert_eq!(guest.received.len(), 2920);
    guest.acknowledge(&mut lab);
    let mut again = Vec::new();
    for _ in 0..3 {
        again = guest.acknowledge(&mut lab);
    }
    assert_eq!(again[0].payload[..], bytes(100_000)[2920..][..again[0].payload.len()]);
    guest.until(&mut lab, |guest| guest.received.len() == 100_000);
    assert!(guest.received == bytes(100_000));
}

#[test]
fn frames_that_are_lost_now_and_then_stop_nothing() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |guest| guest.window = 400);
    let all = bytes(1 << 20);
    host.set_nonblocking(true).unwrap();
    let (mut sent, mut count, mut rounds) = (0, 0u32, 0);
    while guest.received.len() < all.len() {
        rounds += 1;
        assert!(rounds < 20_000, "{} bytes", guest.received.len());
        sent += host.write(&all[sent..]).unwrap_or(0);
        let got = lab.turn(0, &[]);
        let mut frames: Vec<_> = got.iter().flat_map(|got| lab.settle(got)).collect();
        frames.retain(|_| {
            count = count.wrapping_add(1);
            count.wrapping_mul(2_654_435_761) >> 24 > 5
        });
        for frame in &frames {
            guest.take(std::slice::from_ref(frame));
            // Its answer may be lost, too.
            if count % 7 != 0 {
                let answer = guest.frame(ACK, b"");
                guest.say(&mut lab, &answer);
            }
        }
        if frames.is_empty() {
            lab.seconds(1);
        }
    }
    assert!(guest.received == all);
}

#[test]
fn a_keep_alive_is_answered() {
    let mut lab = Lab::new(config());
    let (mut guest, _host) = connected(&mut lab, |_| ());
    for payload in [&b""[..], b"?"] {
        let ask = guest.frame_at(guest.seq.wrapping_sub(1), ACK, payload);
        let said = guest.say(&mut lab, &ask);
        assert_eq!((said.len(), said[0].ack, said[0].seq), (1, guest.seq, guest.ack));
    }
}

#[test]
fn a_segment_with_a_wrong_checksum_is_dropped() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab, |_| ());
    let mut frame = guest.frame(ACK, b"wrong");
    *frame.last_mut().unwrap() ^= 1;
    assert!(guest.say(&mut lab, &frame).is_empty());
    assert_eq!(lab.drops(DropReason::BadPacket), 1);
    guest.send(&mut lab, b"right");
    assert_eq!(read(&mut host, 5), b"right");
}
