//! Both ends of a connection over loopback, peeked, discarded, ended and reset.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use super::*;

fn pair() -> (Stream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = Stream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

/// Tries again until it does not block: loopback delivers at its own time.
fn until<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::yield_now()
            }
            result => return result,
        }
    }
}

fn bytes(arena: &Arena, front: &[u8], rest: Lent) -> Vec<u8> {
    let mut all = front.to_vec();
    let mut pooled = vec![0; rest.len()];
    assert_eq!(arena.read(rest, &mut pooled), rest.len());
    all.extend(pooled);
    all
}

fn peeks_go_on() {
    let (mut ours, mut theirs) = pair();
    let mut arena = Arena::new(1 << 17).unwrap();
    let sent: Vec<u8> = (0..3000u16).map(|n| n as u8).collect();
    theirs.write_all(&sent).unwrap();
    let mut seen = Vec::new();
    while seen.len() < sent.len() {
        let mut front = [0; 100];
        let (n, rest) = until(|| ours.peek(&mut arena, seen.len(), &mut front, 900)).unwrap();
        seen.extend(bytes(&arena, &front[..n.min(100)], rest));
    }
    assert_eq!(seen, sent);
    let more = ours.peek(&mut arena, 3000, &mut [0; 4], 900).map(|(n, _)| n);
    assert_eq!(more.unwrap_err().kind(), ErrorKind::WouldBlock);
    // Discarded from the front: the place is 2000 bytes further now.
    assert_eq!(ours.discard(1000).unwrap(), 1000);
    ours.rewind(0).unwrap();
    let mut front = [0; 100];
    let (n, rest) = until(|| ours.peek(&mut arena, 0, &mut front, 900)).unwrap();
    assert_eq!(bytes(&arena, &front[..n.min(100)], rest), sent[1000..1000 + n]);
    ours.rewind(2000).unwrap();
    drop(theirs);
    let (n, _) = until(|| ours.peek(&mut arena, 2000, &mut front, 900)).unwrap();
    assert_eq!(n, 0, "the end");
}

#[test]
fn peeks_follow_on_each_other_and_tell_the_end() {
    peeks_go_on();
}

#[test]
fn peeks_follow_on_each_other_where_the_kernel_does_not_remember() {
    without_places(peeks_go_on);
    assert!(without_places(|| pair().0.reads_again()));
}

#[test]
fn small_peeks_far_behind_the_first_byte_read_over_all_that_came_before() {
    let (mut ours, mut theirs) = without_places(pair);
    let sent: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
    theirs.write_all(&sent).unwrap();
    let mut arena = Arena::new(1 << 17).unwrap();
    let mut at = 0;
    while at < sent.len() {
        let mut front = [0; 20];
        let (n, rest) = until(|| ours.peek(&mut arena, at, &mut front, 80)).unwrap();
        assert_eq!(bytes(&arena, &front[..n.min(20)], rest), sent[at..at + n]);
        at += n;
        arena.reset_pool();
    }
}

#[test]
fn who_is_told_of_no_more_room_has_room_for_a_segment() {
    for size in [46_080, 87_040, 2_626_560] {
        for queued in (0..=size).step_by(size / 1000) {
            let room = Room::of(size, queued);
            for segment in [536, 1460, 8960, size / 3] {
                assert!(room.scarce || room.of_segments(segment) >= segment, "{queued} of {size}, {segment}");
            }
            assert!(room.of_segments(1460) <= size - queued);
        }
    }
    assert_eq!(Room::of(90_000, 61_000).of_segments(9000), 6500, "the kernel tells of more");
}

#[test]
fn what_the_kernel_does_not_take_is_told_and_room_shrinks() {
    let (mut ours, mut theirs) = pair();
    let mut arena = Arena::new(1 << 20).unwrap();
    let before = ours.room();
    assert!(before.bytes > 0 && !before.scarce);
    let piece = arena.pool(&[7; 100_000]).unwrap();
    let mut sent = 0;
    loop {
        match ours.send(&arena, b"head", [piece].into_iter()) {
            Ok(n) => sent += n,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    let full = ours.room();
    assert!(sent > 4 && full.bytes < before.bytes && full.scarce && !ours.tell_of_room());
    ours.end().unwrap();
    let mut read = Vec::new();
    theirs.read_to_end(&mut read).unwrap();
    assert_eq!((read.len(), &read[..5]), (sent, &b"head\x07"[..]));
}

#[test]
fn refused_and_reset_are_told_as_they_are() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = match Stream::connect(closed) {
        Ok(ours) => until(|| ours.take_error()?.ok_or_else(|| ErrorKind::WouldBlock.into())).unwrap(),
        Err(error) => error,
    };
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    let (ours, mut theirs) = pair();
    ours.reset();
    assert_eq!(theirs.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn connections_come_in_at_a_listener() {
    let listener = Listener::open("[::1]:0".parse().unwrap()).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let theirs = TcpStream::connect(listener.local().unwrap()).unwrap();
    let (ours, from) = until(|| listener.accept()).unwrap();
    assert_eq!((from, ours.local().unwrap()), (theirs.local_addr().unwrap(), theirs.peer_addr().unwrap()));
    assert_eq!(Listener::open(listener.local().unwrap()).unwrap_err().kind(), ErrorKind::AddrInUse);
}
