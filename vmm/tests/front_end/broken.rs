//! A device that breaks the rules of its rings: the card says so, and goes on saying so.

use std::os::unix::net::{UnixListener, UnixStream};

use sys::{arena::Arena, split::SplitMemory};
use vmm::{
    Features,
    front_end::{Nic, NicError, Peer, State},
    vhost_user::message::code,
    virtqueue::driver::UsedError,
};
use wire::{Clock, Mac, Offload, VirtualClock};

use crate::{script::Script, switch::frame};

const RX: usize = 0;
const TX: usize = 1;

/// A card that is up, and its device.
struct Pair {
    nic: Nic,
    back: Script,
    clock: VirtualClock,
}

impl Pair {
    fn new(without: Features) -> Pair {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let nic = Nic::new(Peer::Stream(ours), Mac::new([2; 6])).unwrap();
        let mut pair = Pair { nic, back: Script::new(theirs), clock: VirtualClock::default() };
        pair.back.offered = pair.back.offered.without(without);
        pair.settle();
        assert!(pair.nic.is_up(), "{:?}", pair.nic.front_end().failure());
        pair
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            self.nic.maintain(self.clock.now());
            self.back.serve();
        }
    }

    /// Fills the next buffers of the receive ring: the header of the first says that there are `count`.
    fn fill(&mut self, ring: &SplitMemory, count: u16, parts: &[&[u8]]) {
        let mut arena = Arena::new(4096).unwrap();
        let map = arena.insert(self.back.memory.clone().unwrap());
        let map = arena.map(map).unwrap();
        for (n, part) in parts.iter().enumerate() {
            let used = ring.used_index();
            let head = ring.avail_head(used);
            let room = map.room(ring.descriptor(head).unwrap().guest, part.len() as u32 + 12).unwrap();
            let header = Offload::NONE.to_bytes(count);
            let bytes = if n == 0 { [&header[..], part].concat() } else { part.to_vec() };
            assert_eq!(map.write(room, &bytes), bytes.len());
            ring.set_used(used, head, bytes.len() as u32);
            ring.set_used_index(used.wrapping_add(1));
        }
    }

    fn receive(&mut self) -> Result<Vec<Vec<u8>>, NicError> {
        let mut got = Vec::new();
        self.nic.receive(usize::MAX, &mut |_, frame| got.push(frame.to_vec()))?;
        Ok(got)
    }
}

#[test]
fn a_frame_whose_parts_come_one_by_one_is_waited_for() {
    let mut pair = Pair::new(Features::default());
    let ring = pair.back.ring(RX);
    pair.fill(&ring, 3, &[&[1; 100]]);
    assert_eq!(pair.receive().unwrap().len(), 0);
    pair.fill(&ring, 0, &[&[], &[2; 2048]]);
    // What begins without a header is the last part of the first frame.
    assert_eq!(pair.receive().unwrap(), [[vec![1; 100], Offload::NONE.to_bytes(0).to_vec(), vec![2; 2048]].concat()]);
    pair.fill(&ring, 1, &[&frame(1, 60)]);
    assert_eq!(pair.receive().unwrap(), [frame(1, 60)]);
}

#[test]
fn bad_frames_are_counted_and_no_obstacle() {
    let mut pair = Pair::new(Features::GUEST_TSO4);
    let ring = pair.back.ring(RX);
    pair.fill(&ring, 1, &[&[]]);
    pair.fill(&ring, 1, &[&[0; 13]]);
    pair.fill(&ring, 1, &[&frame(1, 60)]);
    assert_eq!(pair.receive().unwrap(), [frame(1, 60)]);
    assert_eq!((pair.nic.counters().bad_received, pair.nic.counters().received), (2, 1));
}

#[test]
fn a_back_end_without_protocol_features_will_do() {
    let pair = Pair::new(Features::PROTOCOL_FEATURES);
    assert_eq!((pair.nic.mac(), pair.nic.mtu()), (Mac::new([2; 6]), 1500), "it cannot be asked for its own");
    let more = [code::GET_CONFIG, code::SET_VRING_ENABLE, code::SET_STATUS, code::SET_PROTOCOL_FEATURES];
    assert!(!pair.back.heard.iter().any(|request| more.contains(request)), "{:?}", pair.back.heard);
}

#[test]
fn without_mergeable_buffers_the_number_of_them_says_nothing() {
    let mut pair = Pair::new(Features::MRG_RXBUF);
    assert!(!pair.nic.features().has(Features::GUEST_TSO4));
    let ring = pair.back.ring(RX);
    pair.fill(&ring, 0, &[&frame(1, 1500)]);
    assert_eq!(pair.receive().unwrap(), [frame(1, 1500)]);
}

#[test]
fn rules_that_a_device_breaks_are_named() {
    let rx = |error| NicError::Ring { ring: "receive ring", error };
    let shape = |bytes, buffers, what| NicError::Frame { bytes, buffers, what };
    type Break = fn(&mut Pair, &SplitMemory);
    let cases: [(Break, NicError); 8] = [
        (|_, ring| ring.set_used_index(257), rx(UsedError::IndexJump { by: 257, outstanding: 256 })),
        (|_, ring| ring.set_used_index(0xffff), rx(UsedError::IndexJump { by: 0xffff, outstanding: 256 })),
        (
            |_, ring| {
                ring.set_used(0, 256, 60);
                ring.set_used_index(1);
            },
            rx(UsedError::Id(256)),
        ),
        (
            |_, ring| {
                ring.set_used(0, 5, 2049);
                ring.set_used_index(1);
            },
            rx(UsedError::Written { id: 5, written: 2049, room: 2048 }),
        ),
        (
            |_, ring| {
                ring.set_used(0, 5, 11);
                ring.set_used_index(1);
            },
            shape(11, 0, "shorter than a header"),
        ),
        (|pair, ring| pair.fill(ring, 0, &[&[0; 60]]), shape(72, 0, "a number of buffers that there are not")),
        (|pair, ring| pair.fill(ring, 257, &[&[0; 60]]), shape(72, 257, "a number of buffers that there are not")),
        (
            |pair, ring| {
                let parts = vec![&[7; 2000][..]; 33];
                pair.fill(ring, 33, &parts);
            },
            shape(66_012, 33, "longer than any frame"),
        ),
    ];
    for (break_it, expected) in cases {
        let mut pair = Pair::new(Features::default());
        let ring = pair.back.ring(RX);
        break_it(&mut pair, &ring);
        assert_eq!(pair.receive(), Err(expected.clone()));
        assert_eq!(pair.receive(), Err(expected.clone()), "it is of no use any more");
        assert_eq!(pair.nic.flush(), Err(expected.clone()));
        assert!(!pair.nic.send(Offload::NONE, &[&frame(1, 60)]), "{expected}");
    }
}

#[test]
fn a_transmit_ring_can_be_broken_too() {
    let mut pair = Pair::new(Features::default());
    assert!(pair.nic.send(Offload::NONE, &[&frame(1, 60)]));
    pair.nic.flush().unwrap();
    let ring = pair.back.ring(TX);
    ring.set_used(0, ring.avail_head(0), 1);
    ring.set_used_index(1);
    let error = UsedError::Written { id: 0, written: 1, room: 0 };
    assert_eq!(pair.nic.flush(), Err(NicError::Ring { ring: "transmit ring", error }));
    assert!(pair.receive().is_err());
}

#[test]
fn indices_that_were_overwritten_are_noticed_before_the_next_device_gets_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut nic = Nic::new(Peer::Connect(path), Mac::new([2; 6])).unwrap();
    let clock = VirtualClock::default();
    nic.maintain(clock.now());
    let mut back = Script::new(listener.accept().unwrap().0);
    while !nic.is_up() {
        back.serve();
        nic.maintain(clock.now());
    }
    back.ring(TX).set_used_index(7);
    drop(back);
    let at = nic.maintain(clock.now()).unwrap();
    assert_eq!(nic.front_end().state(), State::Absent);
    clock.advance(at.since(clock.now()));
    nic.maintain(clock.now());
    let mut back = Script::new(listener.accept().unwrap().0);
    while nic.front_end().state() == State::Greeting {
        back.serve();
        nic.maintain(clock.now());
    }
    assert_eq!(nic.front_end().state(), State::NeedsReset);
    let error = nic.receive(1, &mut |_, _| ()).unwrap_err().to_string();
    assert!(error.contains("ring 1 cannot go on: its used index is 7 and its available index 0"), "{error}");
    assert!(!back.is_started());
}

#[test]
fn random_bytes_over_all_rings_make_errors_only() {
    let mut bad_ends = 0;
    for seed in 0..300u64 {
        let mut pair = Pair::new(Features::default());
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut outcome = Ok(vec![]);
        for _ in 0..40 {
            let ring = pair.back.ring(random() as usize % 2);
            match random() % 4 {
                0 => ring.set_used(random() as u16, random() as u16 % 300, random() as u32 % 4096),
                1 => ring.set_used_index(ring.used_index().wrapping_add(random() as u16 % 3)),
                2 => ring.set_avail_head(random() as u16, random() as u16),
                _ => ring.set_used_flags(random() as u16),
            }
            pair.nic.send(Offload::NONE, &[&frame(1, 60 + random() as usize % 9000)]);
            outcome = outcome.and(pair.receive()).and_then(|got| pair.nic.flush().map(|()| got));
            pair.nic.want_interrupts(random() % 2 == 0);
        }
        bad_ends += u32::from(outcome.is_err());
    }
    assert!(bad_ends > 100, "only {bad_ends} rings were broken");
}
