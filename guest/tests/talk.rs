//! Two guests on a wire of their own, in virtual time: every command that needs a peer.
//!
//! The guest that is told what to do runs; while it sleeps, the other one turns, and when neither has anything to do, the clock
//! jumps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failing test panics")]

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use guest::{Ended, Guest, Header, Mac, Platform};

type Queue = Rc<RefCell<VecDeque<(Header, Vec<u8>)>>>;
/// The other guest's turn: whether it was busy.
type Turn = Rc<RefCell<dyn FnMut() -> bool>>;
/// Virtual microseconds between two turns of the other guest, at most.
const OTHER_TURNS: u64 = 1000;

#[derive(Clone)]
struct Side {
    mac: Mac,
    clock: Rc<Cell<u64>>,
    incoming: Queue,
    outgoing: Queue,
    /// Every how manyth frame is lost; 0 for none.
    loses: Rc<Cell<u64>>,
    sent: Rc<Cell<u64>>,
    lines: Rc<RefCell<VecDeque<String>>>,
    printed: Rc<RefCell<Vec<String>>>,
    other: Option<Turn>,
    state: u64,
}

impl Platform for Side {
    fn mac(&self) -> Mac {
        self.mac
    }
    fn receive(&mut self, max: usize, each: &mut dyn FnMut(Header, &[u8])) -> usize {
        let mut count = 0;
        while count < max {
            let Some((header, frame)) = self.incoming.borrow_mut().pop_front() else { break };
            each(header, &frame);
            count += 1;
        }
        count
    }
    fn send(&mut self, header: Header, parts: &[&[u8]]) -> bool {
        if self.outgoing.borrow().len() >= 256 {
            return false;
        }
        self.sent.set(self.sent.get() + 1);
        let lost = self.loses.get() > 0 && self.sent.get().is_multiple_of(self.loses.get());
        if !lost {
            self.outgoing.borrow_mut().push_back((header, parts.concat()));
        }
        true
    }
    fn has_room(&mut self) -> bool {
        self.outgoing.borrow().len() < 256
    }
    fn flush(&mut self) {
        // Ten microseconds pass with every turn, so that whoever waits busily gets somewhere.
        self.clock.set(self.clock.get() + 10);
        if let Some(other) = &self.other {
            (other.borrow_mut())();
        }
    }
    fn now_us(&self) -> u64 {
        self.clock.get()
    }
    fn idle(&mut self, until_us: Option<u64>) {
        let Some(other) = &self.other else { return };
        let busy = (other.borrow_mut())();
        if !busy && self.incoming.borrow().is_empty() {
            let now = self.clock.get();
            self.clock.set(until_us.unwrap_or(u64::MAX).clamp(now + 1, now + OTHER_TURNS));
        }
    }
    fn line(&mut self) -> Option<String> {
        self.lines.borrow_mut().pop_front()
    }
    fn print(&mut self, line: &str) {
        self.printed.borrow_mut().push(line.to_owned());
    }
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.state >> 11
    }
}

struct Pair {
    a: Guest<Side>,
    side: Side,
    a_address: &'static str,
}

/// Guest `a`, and the other one with the address `10.0.0.2/24` and these further words.
fn pair(other_address: &str) -> Pair {
    let (to_a, to_b) = (Queue::default(), Queue::default());
    let clock = Rc::new(Cell::new(1));
    let side = |n: u8, incoming: &Queue, outgoing: &Queue| Side {
        mac: [2, 0, 0, 0, 0, n],
        clock: Rc::clone(&clock),
        incoming: Rc::clone(incoming),
        outgoing: Rc::clone(outgoing),
        loses: Rc::default(),
        sent: Rc::default(),
        lines: Rc::default(),
        printed: Rc::default(),
        other: None,
        state: n.into(),
    };
    let b = side(2, &to_b, &to_a);
    b.lines.borrow_mut().extend([format!("address {other_address}"), "off".to_owned()]);
    let mut other = Guest::new(b);
    assert_eq!(other.run(), Ended::Off);
    let turn: Turn = Rc::new(RefCell::new(move || other.turn()));
    let a = Side { other: Some(turn), ..side(1, &to_a, &to_b) };
    Pair { a: Guest::new(a.clone()), side: a, a_address: "10.0.0.1/24" }
}

impl Pair {
    /// The replies to these commands.
    fn tell(&mut self, lines: &[&str]) -> Vec<String> {
        self.side.lines.borrow_mut().extend(lines.iter().map(|line| (*line).to_owned()));
        self.side.lines.borrow_mut().push_back("off".to_owned());
        let before = self.side.printed.borrow().len() + 1;
        assert_eq!(self.a.run(), Ended::Off);
        let printed = self.side.printed.borrow();
        printed[before..printed.len() - 1].to_vec()
    }
}

#[test]
fn guests_answer_each_other() {
    let mut pair = pair("10.0.0.2/24");
    let address = format!("address {}", pair.a_address);
    let replies = pair.tell(&[
        &address,
        "ping 10.0.0.2 count=5",
        "udp 10.0.0.2:7 bytes=1400",
        "tcp 10.0.0.2:7 bytes=300000",
        "ping 10.0.0.9 count=2 ms=50",
        "tcp 10.0.0.2:8 bytes=10",
        "udp 10.0.0.2:8 ms=50",
    ]);
    assert_eq!(replies[0], "ok 10.0.0.1/24");
    assert!(replies[1].starts_with("ok sent=5 received=5 min_us="), "{replies:?}");
    assert!(replies[2].starts_with("ok bytes=1400 us="), "{replies:?}");
    assert!(replies[3].starts_with("ok bytes=300000 us="), "{replies:?}");
    assert_eq!(replies[4], "no 10.0.0.9 answered none of 2 requests");
    assert_eq!(replies[5], "no 10.0.0.2:8: the connection was refused or broken after 0 of 10 bytes");
    assert_eq!(replies[6], "no 10.0.0.2:8 sent nothing back within 50 ms");
}

#[test]
fn a_stream_arrives_though_frames_are_lost() {
    let mut pair = pair("10.0.0.2/24");
    pair.side.loses.set(7);
    let address = format!("address {}", pair.a_address);
    let replies = pair.tell(&[&address, "tcp 10.0.0.2:7 bytes=100000 ms=600000"]);
    assert!(replies[1].starts_with("ok bytes=100000"), "{replies:?}");
}

#[test]
fn vlans_part_guests_and_join_them() {
    let mut pair = pair("10.0.0.2/24 vlan=100");
    let replies = pair.tell(&[
        "address 10.0.0.1/24",
        "ping 10.0.0.2 count=1 ms=100",
        "address 10.0.0.1/24 vlan=200",
        "ping 10.0.0.2 count=1 ms=100",
        "address 10.0.0.1/24 vlan=100",
        "ping 10.0.0.2 count=3",
        "udp 10.0.0.2:7 bytes=1400",
    ]);
    for (n, good) in [(1, false), (3, false), (5, true), (6, true)] {
        assert_eq!(replies[n].starts_with("ok "), good, "{replies:?}");
    }
}

#[test]
fn load_is_counted_where_it_comes_in() {
    let mut pair = pair("10.0.0.2/24");
    // Whatever is sent comes back to the sender's own sink.
    pair.side.outgoing = Rc::clone(&pair.side.incoming);
    pair.a = Guest::new(pair.side.clone());
    let replies = pair.tell(&[
        "source to=02:00:00:00:00:02 size=1514 count=1000 burst=64 flows=4",
        "source super to=02:00:00:00:00:02 size=65000 count=3",
        "sink clear",
        "sink",
        "source to=02:00:00:00:00:02 count=100 rate=10000 burst=1",
        "sink",
    ]);
    assert!(replies[0].starts_with("ok sent=1000 us="), "{replies:?}");
    let sum = 1000 * 1514 + 3 * 65_000;
    let told = format!("ok frames=1003 bytes={sum} bad=0 supers=3 longest=65000 us=");
    assert!(replies[2].starts_with(&told), "{replies:?}");
    assert_eq!(replies[3], "ok frames=0 bytes=0 bad=0 supers=0 longest=0 us=0");
    let us: u64 = replies[4].split("us=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((9_000..12_000).contains(&us), "100 frames at 10000 a second in {us} us of virtual time");
    assert!(replies[5].starts_with("ok frames=100 bytes=6000 bad=0"), "{replies:?}");
}

#[test]
fn what_is_no_command_is_refused_with_what_is() {
    let mut pair = pair("10.0.0.2/24");
    let replies =
        pair.tell(&["dance", "ping", "ping nobody", "address 10.0.0.1", "address 10.0.0.1/24 vlan=0", "source"]);
    let wanted = [
        "no dance is no command; address, dhcp, ping,",
        "no ping: an address is missing",
        "no nobody is not an address",
        "no 10.0.0.1 is not an address with its prefix length",
        "no vlan=0: 1 to 4094 are possible",
        "no source: to=MAC is missing",
    ];
    for (reply, wanted) in replies.iter().zip(wanted) {
        assert!(reply.starts_with(wanted), "{reply}");
    }
    assert_eq!(replies.len(), wanted.len());
}
