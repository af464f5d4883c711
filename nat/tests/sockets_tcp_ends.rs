//! How TCP connections through the socket engine end: by one side, by both, by resets, by silence. See `scripted/mod.rs` for who is what.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod scripted;

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
};

use scripted::{
    tcp::{ACK, End, FIN, PSH, RST, bytes, connected, read, segment, states},
    *,
};

const GUEST: &str = "10.0.0.2:4000";

#[test]
fn an_end_that_is_known_comes_with_the_last_data() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    host.write_all(b"all").unwrap();
    drop(host);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let frames = lab.receive();
    assert_eq!(frames.len(), 1, "one segment");
    guest.take(&frames);
    assert!(guest.fin && guest.received == b"all");
    // Lost, it is sent again as it was.
    lab.seconds(1);
    let again = segment(&lab.receive()[0]).unwrap();
    assert_eq!((again.flags & FIN, &again.payload[..]), (FIN, &b"all"[..]));
    guest.acknowledge(&mut lab);
    guest.end(&mut lab);
    assert_eq!(lab.show().iter().map(|line| line.state).collect::<Vec<_>>(), ["closed"]);
}

/// Sends what comes before urgent data, urgent data, what comes after it, and ends.
const URGENT: &str = "import socket
l = socket.create_server(('127.0.0.1', 0)); print(l.getsockname()[1], flush=True); l.settimeout(10); c = l.accept()[0]
for _ in range(20): c.send(b'before'); c.send(b'!', socket.MSG_OOB); c.send(b'after')
";

#[test]
fn urgent_data_from_the_host_stays_in_its_place() {
    let python =
        std::process::Command::new("python3").args(["-c", URGENT]).stdout(std::process::Stdio::piped()).spawn();
    let Ok(mut python) = python else {
        return println!("SKIPPED urgent_data_from_the_host_stays_in_its_place: there is no python3");
    };
    let mut port = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(python.stdout.take().unwrap()), &mut port).unwrap();
    let mut lab = Lab::new(config());
    let mut guest = End::new(0, at(GUEST), (router(), port.trim().parse().unwrap()).into());
    guest.open(&mut lab);
    guest.until(&mut lab, |guest| guest.fin);
    assert_eq!(String::from_utf8_lossy(&guest.received), "before!after".repeat(20));
    python.wait().unwrap();
}

#[test]
fn a_host_that_ends_is_still_spoken_to() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    host.write_all(b"goodbye").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    guest.until(&mut lab, |guest| guest.fin);
    assert_eq!((&guest.received[..], states(&mut lab)), (&b"goodbye"[..], vec!["fin_wait"]));
    guest.send(&mut lab, b"not yet");
    assert_eq!(read(&mut host, 7), b"not yet");
    guest.end(&mut lab);
    assert_eq!(guest.acked, guest.seq, "its end is acknowledged");
    assert_eq!(host.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(states(&mut lab), ["closed"]);
    // What comes late is answered as before, and a new connection between the same ends is one.
    guest.seq = guest.seq.wrapping_sub(1);
    guest.end(&mut lab);
    assert_eq!(guest.acked, guest.seq);
    lab.seconds(60);
    lab.turn(0, &[]);
    assert!(states(&mut lab).is_empty());
}

#[test]
fn a_guest_that_ends_is_still_spoken_to() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let last = guest.frame(ACK | FIN | PSH, b"that is all");
    guest.seq = guest.seq.wrapping_add(12);
    guest.say(&mut lab, &last);
    assert_eq!((guest.acked, states(&mut lab)), (guest.seq, vec!["close_wait"]));
    let mut all = Vec::new();
    host.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"that is all");
    host.write_all(&bytes(200_000)).unwrap();
    drop(host);
    guest.until(&mut lab, |guest| guest.fin);
    assert!(guest.received == bytes(200_000));
    assert_eq!(states(&mut lab), ["closed"]);
}

#[test]
fn an_end_that_was_lost_is_sent_again() {
    let mut lab = Lab::new(config());
    let (mut guest, host) = connected(&mut lab);
    drop(host);
    let first = segment(&lab.receive()[0]).unwrap();
    lab.seconds(1);
    let again = segment(&lab.receive()[0]).unwrap();
    assert_eq!((first.flags & FIN, again.flags & FIN, first.seq), (FIN, FIN, again.seq));
    guest.ack = again.seq.wrapping_add(1);
    guest.acknowledge(&mut lab);
    lab.seconds(1);
    lab.nothing();
}

#[test]
fn a_reset_by_the_guest_resets_the_host() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    let reset = guest.frame(RST, b"");
    assert!(guest.say(&mut lab, &reset).is_empty(), "a reset is never answered");
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(states(&mut lab).is_empty());
}

#[test]
fn a_reset_by_the_host_resets_the_guest() {
    let mut lab = Lab::new(config());
    let (mut guest, host) = connected(&mut lab);
    guest.send(&mut lab, b"never read");
    // Who closes what has not been read resets (RFC 9293 section 3.6).
    drop(host);
    guest.until(&mut lab, |guest| guest.reset);
    assert!(states(&mut lab).is_empty());
}

#[test]
fn a_silent_connection_lives_for_two_hours_and_four_minutes() {
    let mut lab = Lab::new(config());
    let (mut guest, mut host) = connected(&mut lab);
    for _ in 0..2 {
        for _ in 0..123 {
            lab.seconds(60);
            assert!(lab.turn(0, &[]).is_empty());
        }
        guest.send(&mut lab, b"still here");
        assert_eq!(read(&mut host, 10), b"still here");
    }
    for _ in 0..126 {
        lab.seconds(60);
        let got = lab.turn(0, &[]);
        guest.take(&got.iter().map(|got| got.bytes.clone()).collect::<Vec<_>>());
    }
    assert!(guest.reset && states(&mut lab).is_empty());
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}
