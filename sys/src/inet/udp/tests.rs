//! Datagram sockets of both families over loopback: batches, what comes with a datagram, and errors that come back.

use std::net::SocketAddr;

use super::*;
use crate::arena::Arena;

fn open(at: &str) -> Datagrams {
    Datagrams::open(if at.starts_with('[') { Kind::Udp6 } else { Kind::Udp4 }, at.parse().unwrap(), 64, 0).unwrap()
}

fn to(socket: &Datagrams) -> Outgoing {
    Outgoing { to: socket.local().unwrap(), ttl: 64, tos: 0, segment: 0 }
}

#[test]
fn a_batch_arrives_as_it_was_sent_front_and_lent_bytes_together() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let (from, server) = (open(at), open(at));
        let mut arena = Arena::new(65_536).unwrap();
        let lent: Vec<_> = (0..3u8).map(|n| arena.pool(&[n; 100]).unwrap()).collect();
        let mut batch = SendBatch::default();
        for n in 0..BATCH {
            assert!(batch.push(&from, to(&server), &[n as u8; 10], lent.iter().take(n % 4).copied()));
        }
        assert!(!batch.push(&from, to(&server), b"", std::iter::empty()), "full");
        assert_eq!(batch.send(&from, &arena, 0).unwrap(), BATCH);
        let mut came = RecvBatch::default();
        assert_eq!(came.receive(&server, BATCH).unwrap(), BATCH);
        for n in 0..BATCH {
            let one = came.get(n).unwrap();
            let mut expected = vec![n as u8; 10];
            (0..n % 4).for_each(|piece| expected.extend([piece as u8; 100]));
            assert_eq!((one.bytes, one.from, one.segment), (&expected[..], from.local().unwrap(), 0));
        }
        assert!(came.get(BATCH).is_none());
        assert_eq!(came.receive(&server, BATCH).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
}

#[test]
fn a_datagram_that_finds_no_room_to_grow_stays_as_it_was() {
    let (from, server) = (open("127.0.0.1:0"), open("127.0.0.1:0"));
    let mut arena = Arena::new(65_536).unwrap();
    let piece = arena.pool(b"p").unwrap();
    let pieces = |n: usize| std::iter::repeat_n(piece, n);
    let mut batch = SendBatch::default();
    assert!(batch.push(&from, to(&server), b"a", pieces(1)));
    assert!(batch.join(b"b", pieces(0)));
    assert!(!batch.join(b"c", pieces(2000)), "its bytes would lie behind those of the last");
    assert!(batch.join(b"d", pieces(1)) && !batch.join(b"e", pieces(2000)));
    // Nothing is left behind that takes room.
    assert!(batch.push(&from, to(&server), b"f", pieces(1000)));
    assert_eq!(batch.send(&from, &arena, 0).unwrap(), 2);
    let mut came = RecvBatch::default();
    assert_eq!(came.receive(&server, 2).unwrap(), 2);
    assert_eq!((came.get(0).unwrap().bytes, came.get(1).unwrap().bytes.len()), (&b"apbdp"[..], 1001));
}

#[test]
fn what_is_not_lent_any_more_is_not_sent() {
    let (from, server) = (open("127.0.0.1:0"), open("127.0.0.1:0"));
    let mut other = Arena::new(4096).unwrap();
    let stale = other.pool(b"of another arena").unwrap();
    let mut batch = SendBatch::default();
    assert!(batch.push(&from, to(&server), b"front", std::iter::once(stale)));
    let arena = Arena::new(4096).unwrap();
    assert_eq!(batch.send(&from, &arena, 0).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    assert!(!batch.push(&from, to(&server), &[0; FRONT + 1], std::iter::empty()), "longer than what is copied");
}

#[test]
fn tos_goes_along_and_is_told() {
    for (at, kind) in [("127.0.0.1:0", Kind::Udp4), ("[::1]:0", Kind::Udp6)] {
        let from = Datagrams::open(kind, at.parse().unwrap(), 64, 0x28).unwrap();
        let (server, arena) = (open(at), Arena::new(4096).unwrap());
        let mut batch = SendBatch::default();
        for tos in [0x28, 0xb8] {
            assert!(batch.push(&from, Outgoing { tos, ..to(&server) }, b"x", std::iter::empty()));
        }
        assert_eq!(batch.send(&from, &arena, 0).unwrap(), 2);
        let mut came = RecvBatch::default();
        came.receive(&server, 2).unwrap();
        assert_eq!([0, 1].map(|n| came.get(n).unwrap().tos), [0x28, 0xb8]);
    }
}

#[test]
fn errors_come_back_with_who_sent_them_and_what_they_quote() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let (from, closed, arena) = (open(at), open(at), Arena::new(4096).unwrap());
        let gone = to(&closed);
        drop(closed);
        let mut batch = SendBatch::default();
        assert!(batch.push(&from, gone, b"anybody?", std::iter::empty()));
        assert_eq!(batch.send(&from, &arena, 0).unwrap(), 1);
        let mut errors = RecvBatch::default();
        let error = errors.error(&from).unwrap().unwrap();
        let expected: SocketAddr = gone.to;
        assert_eq!((error.found, error.to, error.offender), (Found::Outside, Some(expected), Some(expected.ip())));
        assert_eq!((error.kind, error.code), if expected.is_ipv6() { (1, 4) } else { (3, 3) });
        assert_eq!((error.errno, error.quoted), (libc::ECONNREFUSED, &b"anybody?"[..]));
        assert!(errors.error(&from).unwrap().is_none());
    }
}

#[test]
fn what_is_sent_to_a_group_that_another_socket_has_joined_is_not_heard() {
    let (group, lo) = (std::net::Ipv4Addr::new(239, 1, 2, 3), std::net::Ipv4Addr::LOCALHOST);
    let joined = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let ours = open("0.0.0.0:0");
    let port = ours.local().unwrap().port();
    if let Err(error) = joined.join_multicast_v4(&group, &lo) {
        return crate::testing::skip(
            "what_is_sent_to_a_group",
            &format!("the loopback device takes no groups: {error}"),
        );
    }
    let from = open("127.0.0.1:0");
    from.set(libc::IPPROTO_IP, libc::IP_MULTICAST_IF, i32::from_ne_bytes(lo.octets())).unwrap();
    let mut batch = SendBatch::default();
    for to in [group, lo] {
        let to = Outgoing { to: (to, port).into(), ttl: 1, tos: 0, segment: 0 };
        assert!(batch.push(&from, to, to.to.ip().to_string().as_bytes(), std::iter::empty()));
    }
    assert_eq!(batch.send(&from, &Arena::new(4096).unwrap(), 0).unwrap(), 2);
    let mut came = RecvBatch::default();
    assert_eq!(came.receive(&ours, BATCH).unwrap(), 1);
    assert_eq!(came.get(0).unwrap().bytes, b"127.0.0.1");
}
